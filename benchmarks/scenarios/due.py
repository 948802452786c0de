"""A job due later: how long after its time it starts, in a worker that has nothing else to do."""

from __future__ import annotations

import asyncio
import os
import random
import time
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks import tools
from benchmarks.model import Check, Figures, Part, Scenario, Settings
from benchmarks.scenarios.drain import HUEY_WORKER, LOSES_ALL, TUNED, WORKER, url

SAMPLES = 120
LEAD = 1.5  # seconds before the first job is due, in which the worker starts
WITHIN = 3.0


def due_times() -> list[float]:
    """Return random times, so that the polling interval of a contestant neither helps nor hurts it."""
    chance = random.Random(7)  # noqa: S311 - no secret
    start = time.time() + LEAD
    return sorted(start + chance.random() * WITHIN for _ in range(SAMPLES))


def lateness(due: list[float], started: list[float]) -> Figures:
    pairs = zip(due, started, strict=True)
    return tools.spread("ms", [(begun - planned) * 1000 for planned, begun in pairs])


async def submit_and_wait(due: list[float]) -> list[float]:
    from benchmarks.apps import ours

    task = ours.wall_stamp
    ids = [await task.options(run_at=datetime.fromtimestamp(moment, UTC)).submit() for moment in due]
    await asyncio.sleep(LEAD + WITHIN)
    results: list[Any] = [await ours.app.wait_for_result(job, timeout=30) for job in ids]
    return [float(result.result) for result in results]


def flowrra_sqlite(settings: Settings) -> Figures:
    os.environ["BENCH_URL"] = url("full")

    async def measure() -> Figures:
        from benchmarks.apps import ours

        async with ours.app.client():
            due = due_times()
            return lateness(due, await submit_and_wait(due))

    with tools.process(*WORKER):
        time.sleep(1)
        return asyncio.run(measure())


def flowrra_memory(settings: Settings) -> Figures:
    async def measure() -> Figures:
        from benchmarks.apps import ours

        async with ours.app:
            due = due_times()
            return lateness(due, await submit_and_wait(due))

    return asyncio.run(measure())


def huey(settings: Settings) -> Figures:
    os.environ["BENCH_DB"] = str(Path("huey.db").resolve())
    os.environ["BENCH_TUNED"] = "1"
    queue: Any = import_module("benchmarks.apps.huey_sqlite")
    with tools.process(*HUEY_WORKER, *TUNED):
        time.sleep(1)
        due = due_times()
        # An aware time: huey cuts a naive one to whole seconds, and runs the job early.
        handles = [queue.wall_stamp.schedule(eta=datetime.fromtimestamp(moment, UTC)) for moment in due]
        time.sleep(LEAD + WITHIN)
        return lateness(due, [float(h.get(blocking=True, timeout=30)) for h in handles])


def call_at(settings: Settings) -> Figures:
    async def measure() -> Figures:
        loop = asyncio.get_running_loop()
        shift = loop.time() - time.time()
        started: list[float] = []
        due = due_times()

        def note() -> None:
            started.append(time.time())

        for moment in due:
            loop.call_at(moment + shift, note)
        await asyncio.sleep(LEAD + WITHIN + 0.5)
        return lateness(due, started)

    return asyncio.run(measure())


SCENARIO = Scenario(
    title=f"a job due later: how late it starts; {SAMPLES} of them within {WITHIN:.0f} s",
    rounds=1,
    parts={
        "SQLite": Part(
            run=flowrra_sqlite, needs="flowrra", setting="flowrra worker, synchronous=full"
        ),
        "memory": Part(run=flowrra_memory, needs="flowrra", setting="worker inside the process"),
        "huey tuned": Part(
            run=huey,
            needs="huey",
            setting="SQLite, fsync=False, 1 thread, looks every 1 ms; its scheduler looks each "
            "second, the shortest it takes",
            loses=LOSES_ALL,
        ),
        "call_at": Part(run=call_at, setting="limit: bare loop.call_at"),
    },
    checks=(
        Check(label="SQLite, p50", ours="SQLite", figure="ms_p50", unit="ms", goal=1.5,
              at_most=True),
        Check(label="SQLite, p99", ours="SQLite", figure="ms_p99", unit="ms", goal=5,
              at_most=True),
        Check(label="memory, p50", ours="memory", figure="ms_p50", unit="ms", goal=1.5,
              at_most=True),
        Check(label="memory, p99", ours="memory", figure="ms_p99", unit="ms", goal=5,
              at_most=True),
        Check(label="SQLite, p50", ours="SQLite", figure="ms_p50", unit="ms",
              against="huey tuned"),
        Check(label="SQLite, p50", ours="SQLite", figure="ms_p50", unit="ms", against="call_at"),
        Check(label="SQLite, p99", ours="SQLite", figure="ms_p99", unit="ms", against="call_at"),
    ),
)  # fmt: skip
