"""What the jobs do, the same for every contestant, and the marks that they leave behind.

A rate is measured from the first job's start to the last one's end. The start is known only
inside the worker, so a counting job writes a mark now and then to a file of its process.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TextIO

EVERY = 250  # jobs between two marks: rare enough to cost nothing, close enough to count by


class Ticker:
    """Counts the jobs of this process; silent where nobody asked for marks."""

    def __init__(self) -> None:
        self.count = 0
        self._file: TextIO | None = None

    def tick(self) -> None:
        self.count += 1
        if self.count % EVERY == 1:
            self._mark()

    def _mark(self) -> None:
        folder = os.environ.get("BENCH_MARKS")
        if folder is None:
            return
        if self._file is None:
            self._file = Path(folder, str(os.getpid())).open("w", buffering=1)  # noqa: SIM115 - for as long as the process lives
        self._file.write(f"{time.monotonic_ns()} {self.count - 1}\n")


ticker = Ticker()


def noop(n: int) -> int:
    """It returns something, since huey keeps no result that is None."""
    ticker.tick()
    return n


def stamp() -> int:
    """When the job started, on the clock that all processes of a Linux host share."""
    return time.monotonic_ns()


def leave_stamp(name: str) -> None:
    """The same into a file, for queues that keep no results."""
    Path(f"stamp-{name}").write_text(str(stamp()))


def read_stamp(name: str) -> int:
    return int(Path(f"stamp-{name}").read_text())


def wall_stamp() -> float:
    return time.time()


def burn(milliseconds: float) -> int:
    """So much CPU time of this thread, whatever else runs beside it."""
    end = time.thread_time() + milliseconds / 1000
    rounds = 0
    while time.thread_time() < end:
        rounds += 1
    return rounds
