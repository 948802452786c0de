"""SQLite: worker processes, started as users would, empty a file of jobs that do nothing.

The time is measured from the start of the first job in the worker (see work.Ticker) until another
process sees the last result. Results are kept.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import tools, work
from benchmarks.model import Check, Figures, Part, Scenario, Settings

if TYPE_CHECKING:
    from collections.abc import Callable

CONCURRENCY = "100"
OURS = 30_000
HUEY = 2_000
HUEY_TUNED = 8_000
GROUP = 1_000
RAW = 100_000

# A log line for each job takes as long as the job; huey is quiet too.
WORKER = ("-m", "flowrra", "worker", "benchmarks.apps.ours:app", "--concurrency", CONCURRENCY, "--log-level", "warning")
HUEY_WORKER = ("-m", "huey.bin.huey_consumer", "benchmarks.apps.huey_sqlite.huey", "--quiet")


def url(synchronous: str, filename: str = "jobs.db") -> str:
    return f"sqlite:///{Path(filename).resolve()}?synchronous={synchronous}"


def start_workers(stack: ExitStack, count: int, *command: str, marks: Path) -> None:
    for _ in range(count):
        stack.enter_context(tools.process(*command, BENCH_MARKS=str(marks)))


def flowrra(synchronous: str, workers: int = 1) -> Callable[[Settings], Figures]:
    def run(settings: Settings) -> Figures:
        os.environ["BENCH_URL"] = url(synchronous)
        return drained(workers)

    return run


def drained(workers: int, jobs: int = OURS) -> Figures:
    """Fill the store at BENCH_URL with so many jobs for each worker, and measure until they are done."""
    folder = tools.marks_folder()
    ids = asyncio.run(fill(jobs * workers))
    with tools.BusyCores() as busy, ExitStack() as stack:
        start_workers(stack, workers, *WORKER, marks=folder)
        end = asyncio.run(wait_for_all(ids))
    marks = tools.read_marks(folder)
    return {"jobs": tools.rate(marks, len(ids), end), "cores": busy.between(tools.all_at_it(marks), end)}


def busy_cores(label: str, part: str) -> Check:
    """The row of the cores that a drain keeps busy: if it is all of them, another worker cannot add to them."""
    return Check(label=f"{label}: busy cores of {os.cpu_count()}", ours=part, figure="cores", unit="cores")


async def fill(jobs: int) -> list[Any]:
    from benchmarks.apps import ours

    async with ours.app.client():
        return list(await ours.app.submit_many(ours.noop, ((n,) for n in range(jobs))))


async def wait_for_all(ids: list[Any]) -> int:
    """Wait for the last job. The queue is first in, first out, so few others can be unfinished then."""
    from benchmarks.apps import ours

    async with ours.app.client():
        for job in reversed(ids[-4 * int(CONCURRENCY) :]):
            result: Any = await ours.app.wait_for_result(job, timeout=120)
            assert result.is_success, result
        end = time.monotonic_ns()
        for job in ids[:: len(ids) // 100]:  # and a sample, to be sure
            assert (await ours.app.wait_for_result(job, timeout=1)).is_success
        return end


def huey(jobs: int, tuned: bool, *options: str) -> Callable[[Settings], Figures]:
    def run(settings: Settings) -> Figures:
        os.environ["BENCH_DB"] = str(Path("huey.db").resolve())
        if tuned:
            os.environ["BENCH_TUNED"] = "1"
        marks = tools.marks_folder()
        queue = import_module("benchmarks.apps.huey_sqlite")
        with queue.huey.storage.db(commit=True) as cursor:
            fill_huey(queue, cursor, jobs)
        with ExitStack() as stack:
            start_workers(stack, 1, *HUEY_WORKER, *options, marks=marks)
            tools.wait_until(lambda: not queue.huey.storage.queue_size(), pause=0.02)
            tools.wait_until(lambda: queue.huey.storage.result_store_size() == jobs)
            end = time.monotonic_ns()
        return {"jobs": tools.rate(tools.read_marks(marks), jobs, end)}

    return run


def fill_huey(queue: Any, cursor: Any, jobs: int) -> None:
    """Fill the queue in one transaction. Its enqueue commits each job, which another scenario measures."""
    rows = ((queue.huey.name, queue.huey.serialize_task(queue.noop.s(n)), 0) for n in range(jobs))
    cursor.executemany("insert into task (queue, data, priority) values (?, ?, ?)", rows)


def raw(synchronous: str) -> Callable[[Settings], Figures]:
    """Return the limit of sqlite3: a thousand jobs share each of two transactions, claim and settle."""

    def run(settings: Settings) -> Figures:
        db = sqlite3.connect("raw.db", isolation_level=None)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute(f"PRAGMA synchronous={synchronous}")
        db.execute("CREATE TABLE job(seq INTEGER PRIMARY KEY, status TEXT, n INT, result INT)")
        db.execute("CREATE INDEX waiting ON job(seq) WHERE status = 'pending'")
        db.execute("BEGIN")
        rows = ((n,) for n in range(RAW))
        db.executemany("INSERT INTO job(status, n) VALUES ('pending', ?)", rows)
        db.execute("COMMIT")
        begin = time.perf_counter()
        while drain_group(db):
            pass
        return {"jobs": RAW / (time.perf_counter() - begin)}

    return run


def drain_group(db: sqlite3.Connection) -> bool:
    db.execute("BEGIN IMMEDIATE")
    claimed = db.execute(
        "UPDATE job SET status = 'running' WHERE seq IN (SELECT seq FROM job "
        "WHERE status = 'pending' ORDER BY seq LIMIT ?) RETURNING seq, n",
        (GROUP,),
    ).fetchall()
    db.execute("COMMIT")
    results = [(work.noop(n), seq) for seq, n in claimed]
    db.execute("BEGIN IMMEDIATE")
    db.executemany("UPDATE job SET status = 'success', result = ? WHERE seq = ?", results)
    db.execute("COMMIT")
    return bool(claimed)


TUNED = ("-w", "1", "-d", "0.001", "-m", "0.001", "--no-periodic")
LOSES_RUNNING = "the jobs that run when the worker is killed"
LOSES_ALL = f"{LOSES_RUNNING}, and at a power cut what was written last or the file"

SCENARIO = Scenario(
    title="SQLite: a worker process drains a file of no-op jobs, results kept",
    parts={
        "FULL": Part(
            run=flowrra("full"),
            needs="flowrra",
            setting=f"flowrra worker --concurrency {CONCURRENCY}, synchronous=full (as it comes)",
        ),
        "NORMAL": Part(
            run=flowrra("normal"), needs="flowrra", setting="the same, synchronous=normal"
        ),
        "FULL, 2 workers": Part(
            run=flowrra("full", 2),
            needs="flowrra",
            setting="two worker processes on one file, from the time both are at it",
        ),
        "huey": Part(
            run=huey(HUEY, False),
            needs="huey",
            setting="SqliteHuey and huey_consumer as they come, --quiet",
            loses=LOSES_RUNNING,
        ),
        "huey tuned": Part(
            run=huey(HUEY_TUNED, True, *TUNED),
            needs="huey",
            setting="fsync=False, cache_mb=64; 1 thread (the best of 1, 2, 4, 8 and of 2 processes), "
            "looks every 1 ms",
            loses=LOSES_ALL,
        ),
        "raw FULL": Part(run=raw("FULL"), setting="limit: sqlite3, 1,000 jobs a transaction"),
    },
    checks=(
        Check(label="FULL", ours="FULL", figure="jobs", against="huey", goal=10),
        Check(label="FULL", ours="FULL", figure="jobs", against="huey tuned", goal=2),
        Check(label="NORMAL", ours="NORMAL", figure="jobs", against="huey tuned", goal=3),
        Check(label="FULL, 2 workers", ours="FULL, 2 workers", figure="jobs", against="FULL",
              goal=1.3),
        busy_cores("FULL", "FULL"),
        busy_cores("FULL, 2 workers", "FULL, 2 workers"),
        Check(label="FULL", ours="FULL", figure="jobs", against="NORMAL"),
        Check(label="FULL", ours="FULL", figure="jobs", against="raw FULL"),
    ),
)  # fmt: skip
