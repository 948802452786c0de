"""Runs scenarios: each part in a separate process, the parts in turn, round after round."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import peers
from benchmarks.model import Measured, Part, Scenario, Settings

if TYPE_CHECKING:
    from collections.abc import Callable

NAMES = (
    "memory",
    "drain",
    "enqueue",
    "latency",
    "due",
    "flat",
    "cpu",
    "cron",
    "steps",
    "limits",
    "dashboard",
    "footprint",
    "redis_drain",
    "redis_enqueue",
    "redis_latency",
    "postgres",
)
TIME_LIMIT = 300.0
FULL_TIME_LIMIT = 1200.0


def load(name: str) -> Scenario:
    scenario: Scenario = import_module(f"benchmarks.scenarios.{name}").SCENARIO
    return scenario


def measure(
    name: str,
    *,
    target: Path,
    settings: Settings,
    rounds: int | None = None,
    only: tuple[str, ...] = (),
    say: Callable[[str], None] = lambda line: None,
) -> Measured:
    """Measure the parts in turn: A B C A B C ... A part that failed once is left out of the later rounds."""
    scenario = load(name)
    measured = Measured()
    for number in range(rounds or scenario.rounds):
        measured.rounds.append({})
        for part_name, part in scenario.parts.items():
            if part_name in measured.errors or (only and part_name not in only):
                continue
            say(f"{name} {number + 1}: {part_name}")
            answer = run_part(name, part_name, part, target, settings)
            if "error" in answer:
                measured.errors[part_name] = answer["error"]
            else:
                measured.rounds[-1][part_name] = answer["figures"]
    return measured


def run_part(scenario: str, name: str, part: Part, target: Path, settings: Settings) -> dict[str, Any]:
    reason = peers.missing(part.needs, target)
    if reason:
        return {"error": reason}
    scratch = peers.CACHE / "scratch"  # not /tmp, which is memory on many machines
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch, ignore_cleanup_errors=True) as folder:
        return _run_in(Path(folder), scenario, name, part, target, settings)


def clean_environment() -> dict[str, str]:
    """Return an environment without variables of this shell that change results. Compiled files are kept, as usual."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return ours | {"PYTHONPYCACHEPREFIX": str(peers.CACHE / "pycache")}


def _run_in(folder: Path, scenario: str, name: str, part: Part, target: Path, settings: Settings) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.part", scenario, name, str(int(settings.full))]
    environment = clean_environment() | {"PYTHONPATH": peers.python_path(part.needs, target)}
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # its workers are in its group and end with it
    )
    try:
        limit = FULL_TIME_LIMIT if settings.full else TIME_LIMIT
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        return {"error": f"took longer than {limit:.0f} s"}
    finally:
        _end_group(process)
    return _answer(out, err)


def _end_group(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _answer(out: str, err: str) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = json.loads(out.splitlines()[-1])
    except (ValueError, IndexError):
        lines = err.strip().splitlines()
        return {"error": lines[-1] if lines else "it ended without an answer"}
    return answer
