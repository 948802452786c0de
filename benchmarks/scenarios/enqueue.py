"""SQLite: how many jobs per second are accepted and committed, while no worker runs."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.model import Check, Figures, Part, Scenario, Settings
from benchmarks.scenarios.drain import GROUP, url

if TYPE_CHECKING:
    from collections.abc import Callable

SUBMITTERS = 64
EACH = 600
MANY = 60_000
SEQUENTIAL = 4_000
WARM = 200


def flowrra(synchronous: str) -> Callable[[Settings], Figures]:
    def run(settings: Settings) -> Figures:
        os.environ["BENCH_URL"] = url(synchronous)
        return asyncio.run(measure())

    return run


async def measure() -> Figures:
    from benchmarks.apps import ours

    async def submitter(jobs: int) -> None:
        for n in range(jobs):
            await ours.app.submit(ours.noop, n)

    async with ours.app.client():
        begin = time.perf_counter()
        await ours.app.submit_many(ours.noop, ((n,) for n in range(MANY)))
        many = MANY / (time.perf_counter() - begin)
        await submitter(WARM)
        begin = time.perf_counter()
        await submitter(SEQUENTIAL)
        alone = SEQUENTIAL / (time.perf_counter() - begin)
        begin = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(SUBMITTERS):
                group.create_task(submitter(EACH))
        together = SUBMITTERS * EACH / (time.perf_counter() - begin)
    return {"sequential": alone, "concurrent": together, "many": many}


def huey(jobs: int, tuned: bool) -> Callable[[Settings], Figures]:
    def run(settings: Settings) -> Figures:
        os.environ["BENCH_DB"] = str(Path("huey.db").resolve())
        if tuned:
            os.environ["BENCH_TUNED"] = "1"
        queue = import_module("benchmarks.apps.huey_sqlite")
        for n in range(WARM):
            queue.noop(n)
        begin = time.perf_counter()
        for n in range(jobs):
            queue.noop(n)
        return {"sequential": jobs / (time.perf_counter() - begin)}

    return run


INSERT = "INSERT INTO job(id, queue, task, args, status, submitted) VALUES (?, ?, ?, ?, ?, ?)"


LINE = "CREATE INDEX line ON job(queue, status, seq)"


def raw(synchronous: str, *, line: bool = False) -> Callable[[Settings], Figures]:
    """Insert rows with the minimum of a job, one for each commit, and a thousand for each commit.

    With `line` there is an index for claims, which every queue needs. The groups come first: while the log of a new
    file grows, each sync takes 40 us longer.
    """

    def run(settings: Settings) -> Figures:
        db = sqlite3.connect("raw.db", isolation_level=None)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute(f"PRAGMA synchronous={synchronous}")
        db.execute(
            "CREATE TABLE job(seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, "
            "queue TEXT, task TEXT, args TEXT, status TEXT, submitted REAL)"
        )
        if line:
            db.execute(LINE)
        begin = time.perf_counter()
        insert_grouped(db, range(MANY))
        many = MANY / (time.perf_counter() - begin)
        insert_each(db, range(MANY, MANY + WARM))
        begin = time.perf_counter()
        insert_each(db, range(MANY + WARM, MANY + WARM + SEQUENTIAL))
        return {"sequential": SEQUENTIAL / (time.perf_counter() - begin), "many": many}

    return run


def job_row(n: int) -> tuple[object, ...]:
    """Return a row with an id in order: with random ids, such a large index would have half the speed."""
    return (f"{n:032x}", "default", "benchmarks.noop", f"[[{n}],{{}}]", "pending", time.time())


def insert_each(db: sqlite3.Connection, numbers: range) -> None:
    for n in numbers:
        db.execute(INSERT, job_row(n))  # autocommit: a transaction of its own


def insert_grouped(db: sqlite3.Connection, numbers: range) -> None:
    for start in range(0, len(numbers), GROUP):
        db.execute("BEGIN IMMEDIATE")
        db.executemany(INSERT, (job_row(n) for n in numbers[start : start + GROUP]))
        db.execute("COMMIT")


SCENARIO = Scenario(
    title="SQLite: submit, each accepted job committed",
    parts={
        "FULL": Part(
            run=flowrra("full"), needs="flowrra", setting="app.client(), synchronous=full"
        ),
        "NORMAL": Part(
            run=flowrra("normal"), needs="flowrra", setting="app.client(), synchronous=normal"
        ),
        "raw FULL": Part(
            run=raw("FULL"), setting="limit: sqlite3; one INSERT a commit, and 1,000 a commit"
        ),
        "raw NORMAL": Part(run=raw("NORMAL"), setting="limit: the same, synchronous=normal"),
        "line FULL": Part(run=raw("FULL", line=True), setting="limit: raw FULL, with an index to claim by"),
        "line NORMAL": Part(run=raw("NORMAL", line=True), setting="limit: the same, synchronous=normal"),
        "huey": Part(
            run=huey(3_000, False), needs="huey", setting="SqliteHuey as it comes, one producer"
        ),
        "huey tuned": Part(
            run=huey(10_000, True),
            needs="huey",
            setting="fsync=False, cache_mb=64, one producer",
            loses="at a power cut what was written last, or the file",
        ),
    },
    checks=(
        Check(label=f"FULL, {SUBMITTERS} submitters", ours="FULL", figure="concurrent",
              goal=80_000),
        Check(label="FULL, submit_many", ours="FULL", figure="many", goal=150_000),
        Check(label="FULL, one after the other", ours="FULL", figure="sequential",
              against="line FULL", goal=0.8),
        Check(label="NORMAL, one after the other", ours="NORMAL", figure="sequential",
              against="line NORMAL", goal=0.8),
        Check(label="FULL, one after the other", ours="FULL", figure="sequential",
              against="raw FULL"),
        Check(label="NORMAL, one after the other", ours="NORMAL", figure="sequential",
              against="raw NORMAL"),
        Check(label="FULL, one after the other", ours="FULL", figure="sequential",
              against="huey"),
        Check(label="NORMAL, one after the other", ours="NORMAL", figure="sequential",
              against="huey tuned"),
        Check(label=f"FULL, {SUBMITTERS} submitters", ours="FULL", figure="concurrent",
              against="huey tuned", against_figure="sequential"),
        Check(label="FULL, submit_many", ours="FULL", figure="many", against="raw FULL"),
        Check(label="FULL against NORMAL, submitters", ours="FULL", figure="concurrent",
              against="NORMAL"),
    ),
)  # fmt: skip
