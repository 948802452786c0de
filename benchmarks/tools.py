"""Measuring: percentiles, marks of workers, processes and what they cost."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

MS = 1_000_000  # nanoseconds


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def spread(name: str, values: Sequence[float]) -> dict[str, float]:
    return {f"{name}_p50": percentile(values, 0.50), f"{name}_p99": percentile(values, 0.99)}


def wait_until(true: Callable[[], bool], *, timeout: float = 120.0, pause: float = 0.005) -> None:
    end = time.monotonic() + timeout
    while not true():
        if time.monotonic() > end:
            raise TimeoutError(f"nothing came of it in {timeout:.0f} s")
        time.sleep(pause)


# --- worker processes -------------------------------------------------------


@contextmanager
def process(*command: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process of the contest: `python -m command`, ended by SIGTERM, then by force."""
    with Path("worker.log").open("ab") as log:
        running = subprocess.Popen(
            [sys.executable, *command], env={**os.environ, **environment}, stdout=log, stderr=log
        )
    try:
        yield running
    finally:
        running.terminate()
        try:
            running.wait(5)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


@contextmanager
def redis_server() -> Iterator[str]:
    """A Redis of the part's own, which keeps nothing on disk; its URL, also as BENCH_URL."""
    program = shutil.which("redis-server")
    if program is None:
        raise RuntimeError("redis-server is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ("--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no")
    running = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: _answers(port), timeout=10)
        os.environ["BENCH_URL"] = f"redis://127.0.0.1:{port}/0"
        yield os.environ["BENCH_URL"]
    finally:
        running.kill()
        running.wait()


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def last_words() -> str:
    log = Path("worker.log")
    return log.read_text(errors="replace")[-2000:] if log.exists() else ""


# --- marks ------------------------------------------------------------------

Marks = list[list[tuple[int, int]]]  # of each worker: (time in ns, jobs begun before it)


def marks_folder(name: str = "marks") -> Path:
    folder = Path(name).resolve()
    folder.mkdir()
    return folder


def read_marks(folder: Path) -> Marks:
    found = []
    for file in folder.iterdir():
        lines = [line.split() for line in file.read_text().splitlines()]
        found.append([(int(at), int(count)) for at, count in lines])
    return [marks for marks in found if marks]


def all_at_it(marks: Marks) -> int:
    """When the last worker began its first job."""
    return max(worker[0][0] for worker in marks)


def rate(marks: Marks, total: int, end: int) -> float:
    """Jobs a second from the moment when all workers were at it until the end.

    What the first worker did before the last one had its first job does not count.
    """
    begin = all_at_it(marks)
    before = sum(_done_before(worker, begin) for worker in marks)
    return (total - before) / (end - begin) * 1e9


def _done_before(worker: list[tuple[int, int]], moment: int) -> int:
    return max((count for at, count in worker if at < moment), default=0)


def window_rate(marks: Marks, jobs: int) -> float:
    """Jobs a second over the first so many of one worker."""
    (worker,) = marks
    begin = worker[0][0]
    end, count = next((at, count) for at, count in worker if count >= jobs)
    return count / (end - begin) * 1e9


# --- what a process costs ---------------------------------------------------


def cpu_seconds(pid: int) -> float:
    """CPU time of a process in nanoseconds' resolution (Linux).

    /proc/PID/stat counts ticks of 10 ms, which is twice the goal for ten idle seconds.
    A process's CPU clock has the id (~pid << 3) | 2, see clock_getcpuclockid(3).
    """
    return time.clock_gettime((~pid << 3) | 2)


class BusyCores(threading.Thread):
    """How many of the machine's cores are busy, in any process, while this context lasts (Linux)."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._samples: list[tuple[int, int]] = []  # time in ns, seconds of all cores in ticks
        self._is_over = threading.Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self.join()

    def run(self) -> None:
        while not self._is_over.wait(0.01):
            user, nice, system, _idle, _waiting, *interrupts = map(int, Path("/proc/stat").read_text().split()[1:8])
            self._samples.append((time.monotonic_ns(), user + nice + system + sum(interrupts)))

    def between(self, begin: int, end: int) -> float:
        """How many cores were busy on average between two times."""
        first, *_, last = (sample for sample in self._samples if begin <= sample[0] <= end)
        return (last[1] - first[1]) / os.sysconf("SC_CLK_TCK") / (last[0] - first[0]) * 1e9


def family(pid: int) -> list[int]:
    """The process and its children, as long as the kernel tells them."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        children = task / "children"
        if children.exists():
            for child in children.read_text().split():
                found += family(int(child))
    return found


def memory_mb(pid: int) -> dict[str, float]:
    found = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(("Rss:", "Pss:")):
            name, kilobytes, _ = line.split()
            found[name[:-1].lower() + "_mb"] = int(kilobytes) / 1024
    return found
