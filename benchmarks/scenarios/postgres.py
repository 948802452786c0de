"""PostgreSQL: jobs are submitted, drained and started. Each contestant has its own database.

A drain is measured as in `drain`: from the start of the first job in the worker until another process sees
that no job is left.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from contextlib import ExitStack
from importlib import import_module
from typing import TYPE_CHECKING, Any

from benchmarks import tools
from benchmarks.databases import command, connect, database
from benchmarks.model import Check, Figures, Part, Scenario, Settings
from benchmarks.scenarios import enqueue, latency
from benchmarks.scenarios.drain import WORKER, busy_cores, drained, fill, start_workers, wait_for_all

if TYPE_CHECKING:
    from collections.abc import Callable

GROUP = 1_000
FINISHED, BEHIND = 50_000, 12_000
RAW = 60_000
RAW_LONE = 1_000


def flowrra(workers: int) -> Callable[[Settings], Figures]:
    """Measure Flowrra, with results, and one worker process or several."""

    def run(settings: Settings) -> Figures:
        with database():
            return drained(workers)

    return run


def analyzed(settings: Settings) -> Figures:
    """Measure the same drain before and after an ANALYZE that sees only finished jobs, as in a quiet hour."""
    with database() as url:
        empty(FINISHED)
        before = empty(BEHIND)
        asyncio.run(command("ANALYZE", url))
        after = empty(BEHIND)
        return {"before": before, "jobs": after, "ratio": before / after}


def empty(jobs: int) -> float:
    """Jobs in a second by one worker, until none is left."""
    with ExitStack() as stack:
        marks = tools.marks_folder(f"drain-{secrets.token_hex(4)}")
        ids = asyncio.run(fill(jobs))
        start_workers(stack, 1, *WORKER, marks=marks)
        end = asyncio.run(wait_for_all(ids))
        return tools.rate(tools.read_marks(marks), len(ids), end)


def submitted(settings: Settings) -> Figures:
    with database():
        return asyncio.run(enqueue.measure())


def started(settings: Settings) -> Figures:
    with database():
        return latency.flowrra_on(os.environ["BENCH_URL"], watch=latency.WATCHED / 4)


def peer(module: str, *, jobs: int, many: int, lone: int) -> dict[str, Callable[[Settings], Figures]]:
    """Return the three parts for another queue, whose module in `apps` has a worker and a client."""

    def load() -> Any:
        return import_module(f"benchmarks.apps.{module}")

    def drain(settings: Settings) -> Figures:
        with database(), ExitStack() as stack:
            marks, app = tools.marks_folder(), load()
            asyncio.run(fill_peer(app, jobs))
            start_workers(stack, 1, *app.WORKER, *app.GROUPS, marks=marks)
            end = asyncio.run(wait_for_none(app))
            return {"jobs": tools.rate(tools.read_marks(marks), jobs, end)}

    def submit(settings: Settings) -> Figures:
        with database():
            return asyncio.run(submit_to_peer(load(), many, lone))

    def start(settings: Settings) -> Figures:
        with database():
            app = load()
            asyncio.run(fill_peer(app, 0))
            with tools.process(*app.WORKER) as worker:
                return asyncio.run(start_on_peer(app, worker.pid))

    return {"drain": drain, "submit": submit, "start": start}


async def fill_peer(app: Any, jobs: int) -> None:
    async with app.client() as client:
        if jobs:
            await client.submit_many(jobs)


async def wait_for_none(app: Any) -> int:
    async with app.client() as client:
        async with asyncio.timeout(200):
            while await client.left():  # noqa: ASYNC110 (a peer tells nobody)
                await asyncio.sleep(0.02)
        return time.monotonic_ns()


async def submit_to_peer(app: Any, many: int, lone: int) -> Figures:
    async with app.client() as client:
        begin = time.perf_counter()
        await client.submit_many(many)
        figures = {"many": many / (time.perf_counter() - begin)}
        for n in range(50):
            await client.submit(n)
        begin = time.perf_counter()
        for n in range(lone):
            await client.submit(n)
        return figures | {"sequential": lone / (time.perf_counter() - begin)}


async def start_on_peer(app: Any, worker: int) -> Figures:
    async with app.client() as client:
        names = (str(number) for number in range(1_000_000))

        async def submit() -> str:
            name = next(names)
            await client.submit_stamp(name)
            return name

        async def started(name: str) -> int:
            async with asyncio.timeout(30):
                while True:
                    try:
                        return int(await client.started(name))
                    except (FileNotFoundError, ValueError):  # it has not started, or is writing
                        await asyncio.sleep(0.01)

        return await latency.measure(submit, started, worker, watch=0, idle=False)


# --- limits -------------------------------------------------------------------

TABLE = """
CREATE TABLE job (seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, id text NOT NULL UNIQUE, status text NOT NULL,
    payload text NOT NULL, result text);
CREATE INDEX ready ON job (seq) WHERE status = 'pending'"""
INSERT = "INSERT INTO job (id, status, payload) SELECT id, 'pending', '[[1],{}]' FROM unnest($1::text[]) AS v (id)"
CLAIM = """UPDATE job SET status = 'running' WHERE seq = ANY (ARRAY(SELECT seq FROM job WHERE status = 'pending'
    ORDER BY seq LIMIT $1 FOR UPDATE SKIP LOCKED)) RETURNING seq, payload"""
SETTLE = """UPDATE job SET status = 'success', result = v.result
    FROM unnest($1::bigint[], $2::text[]) AS v (seq, result) WHERE job.seq = v.seq AND status = 'running'"""


def raw(settings: Settings) -> Figures:
    """Measure asyncpg in a program that does the same steps and nothing else."""
    with database() as url:
        return asyncio.run(measure_raw(url))


async def measure_raw(url: str) -> Figures:
    db = await connect(url)
    await db.execute(TABLE)
    begin = time.perf_counter()
    for n in range(RAW_LONE):
        await db.execute(INSERT, [f"lone{n}"])
    alone = RAW_LONE / (time.perf_counter() - begin)
    begin = time.perf_counter()
    for start in range(0, RAW, GROUP):
        await db.execute(INSERT, [f"{n:032x}" for n in range(start, start + GROUP)])
    many = RAW / (time.perf_counter() - begin)
    begin = time.perf_counter()
    count = 0
    while rows := await db.fetch(CLAIM, 100):
        await db.execute(SETTLE, [row["seq"] for row in rows], ["1"] * len(rows))
        count += len(rows)
    figures = {"sequential": alone, "many": many, "jobs": count / (time.perf_counter() - begin)}
    await db.close()
    return figures | await measure_notify(url)


async def measure_notify(url: str) -> Figures:
    """Measure from a commit with a NOTIFY until another connection receives it."""
    here, there = await connect(url), await connect(url)
    heard: asyncio.Queue[int] = asyncio.Queue()
    await there.add_listener("bell", lambda *_: heard.put_nowait(time.monotonic_ns()))
    found = []
    for _ in range(latency.SAMPLES):
        await asyncio.sleep(latency.GAP)
        begin = time.monotonic_ns()
        await here.execute("NOTIFY bell")
        found.append((await heard.get() - begin) / tools.MS)
    await here.close()
    await there.close()
    return tools.spread("ms", found)


PGQUEUER = peer("pgqueuer_app", jobs=20_000, many=30_000, lone=2_000)
PROCRASTINATE = peer("procrastinate_app", jobs=2_000, many=5_000, lone=500)
SAQ = peer("saq_app", jobs=2_000, many=1_000, lone=500)
OWN = "flowrra worker --concurrency 100, statements and pool as they come"

SCENARIO = Scenario(
    title="PostgreSQL: no-op jobs, results kept, commits as the server makes them",
    parts={
        "drain": Part(run=flowrra(1), needs="flowrra", setting=OWN),
        "drain, 2 workers": Part(run=flowrra(2), needs="flowrra", setting="from the time both are at it"),
        "drain, analyzed": Part(
            run=analyzed, needs="flowrra", setting=f"{FINISHED:,} done, ANALYZE, {BEHIND:,} more"
        ),
        "submit": Part(run=submitted, needs="flowrra", setting="app.client()"),
        "start": Part(run=started, needs="flowrra", setting="an idle worker, a job each 50 ms"),
        "pgqueuer drain": Part(
            run=PGQUEUER["drain"], needs="pgqueuer", setting="batch_size=100, max_concurrent_tasks=200; no results"
        ),
        "pgqueuer submit": Part(run=PGQUEUER["submit"], needs="pgqueuer", setting="Queries.enqueue on asyncpg"),
        "pgqueuer start": Part(run=PGQUEUER["start"], needs="pgqueuer", setting="as it comes"),
        "procrastinate drain": Part(
            run=PROCRASTINATE["drain"], needs="procrastinate", setting="--concurrency 100; keeps no results"
        ),
        "procrastinate submit": Part(run=PROCRASTINATE["submit"], needs="procrastinate", setting="defer_async"),
        "procrastinate start": Part(run=PROCRASTINATE["start"], needs="procrastinate", setting="--concurrency 100"),
        "saq drain": Part(run=SAQ["drain"], needs="saq", setting="concurrency 100"),
        "saq submit": Part(run=SAQ["submit"], needs="saq", setting="Queue.enqueue"),
        "saq start": Part(run=SAQ["start"], needs="saq", setting="concurrency 100"),
        "raw": Part(run=raw, needs="asyncpg", setting="limit: asyncpg; 1,000 jobs an INSERT, claims of 100, NOTIFY"),
    },
    checks=(
        *(Check(label="drain", ours="drain", figure="jobs", against=f"{name} drain", goal=goal)
          for name, goal in (("pgqueuer", 1.3), ("procrastinate", None), ("saq", None))),
        Check(label="drain", ours="drain", figure="jobs", against="raw"),
        Check(label="drain, time after ANALYZE / before", ours="drain, analyzed", figure="ratio", unit="x", goal=1.2,
              at_most=True),
        Check(label="drain, 2 workers", ours="drain, 2 workers", figure="jobs", against="drain", goal=1.1),
        busy_cores("drain", "drain"),
        busy_cores("drain, 2 workers", "drain, 2 workers"),
        *(Check(label="submit_many", ours="submit", figure="many", against=f"{name} submit", goal=goal)
          for name, goal in (("pgqueuer", 1.2), ("procrastinate", None))),
        Check(label="submit_many", ours="submit", figure="many", against="raw"),
        *(Check(label="one after the other", ours="submit", figure="sequential", against=f"{name} submit", goal=goal)
          for name, goal in (("pgqueuer", 1), ("procrastinate", None), ("saq", None))),
        Check(label="one after the other", ours="submit", figure="sequential", against="raw"),
        Check(label="64 submitters", ours="submit", figure="concurrent"),
        Check(label="submit to start, p50", ours="start", figure="ms_p50", unit="ms", goal=0.9, at_most=True),
        Check(label="submit to start, p99", ours="start", figure="ms_p99", unit="ms", goal=3, at_most=True),
        *(Check(label=f"submit to start, {share}", ours="start", figure=f"ms_{share}", unit="ms", against=against)
          for against in ("pgqueuer start", "procrastinate start", "saq start", "raw") for share in ("p50", "p99")),
    ),
)  # fmt: skip
