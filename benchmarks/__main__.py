"""python -m benchmarks: every scenario, one table each, in a few minutes."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import harness, peers, report
from benchmarks.model import Settings


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--only", action="append", choices=harness.NAMES, metavar="NAME", default=[],
        help=f"run only this scenario (may be repeated): {', '.join(harness.NAMES)}",
    )  # fmt: skip
    parser.add_argument(
        "--part", action="append", default=[], metavar="PART",
        help="run only these parts of the scenarios (may be repeated)",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, help="the number of rounds for every scenario")
    parser.add_argument("--full", action="store_true", help="flat: a million jobs, not 200,000")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures to this file")
    parser.add_argument(
        "--flowrra", type=Path, default=peers.ROOT, metavar="FOLDER",
        help="the folder with the flowrra.py to measure (this repository)",
    )  # fmt: skip
    return parser.parse_args()


def main() -> int:
    options = arguments()
    # As an exception, so that the measured processes are ended too: they have their own session.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    peers.install_old()
    begun = time.monotonic()
    found: dict[str, Any] = {"machine": report.machine(), "scenarios": {}}
    print("  ".join(f"{key} {value}" for key, value in found["machine"].items()))
    for name in options.only or harness.NAMES:
        found["scenarios"][name] = _one(name, options)
    print(f"\n{time.monotonic() - begun:.0f} s")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def _one(name: str, options: argparse.Namespace) -> dict[str, Any]:
    begun = time.monotonic()
    scenario = harness.load(name)
    measured = harness.measure(
        name,
        target=options.flowrra.resolve(),
        settings=Settings(full=options.full),
        rounds=options.rounds,
        only=tuple(options.part),
        say=_say,
    )
    _say("")
    print(report.text(name, scenario, measured))
    print(f"  took {time.monotonic() - begun:.0f} s", flush=True)
    return report.record(scenario, measured)


def _say(line: str) -> None:
    """Show progress in one line that is overwritten. Without a terminal, show nothing."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
