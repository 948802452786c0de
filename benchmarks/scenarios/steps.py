"""Steps and batches: a job of many steps, and batches of 100, against single jobs; all in one process.

Submits, steps and enqueues are awaited one by one, as one job does them. "run" counts from the first submit to the last
result, with the default concurrency of a worker.
"""

from __future__ import annotations

import asyncio
import os
import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.databases import database
from benchmarks.model import Check, Figures, Part, Scenario, Settings

if TYPE_CHECKING:
    from collections.abc import Callable

WARM_UP, STEPS, MANY_STEPS = 10, 100, 1_000  # submits are measured later, so without a warm-up steps would seem slower
JOBS = 1_000
RUN = 5_000
BATCH = 100
PEER_JOBS = 300


def on_sqlite(measure: Callable[[str], Figures]) -> Callable[[Settings], Figures]:
    return lambda settings: measure(f"sqlite:///{Path('steps.db').resolve()}")


def on_postgres(measure: Callable[[str], Figures]) -> Callable[[Settings], Figures]:
    def run(settings: Settings) -> Figures:
        with database():
            return measure(os.environ["BENCH_URL"])

    return run


def rate(count: int, begun: float) -> float:
    return count / (time.perf_counter() - begun)


async def same(number: int) -> int:
    return number


def flowrra(url: str) -> Figures:
    return asyncio.run(_flowrra(url))


async def _flowrra(url: str) -> Figures:
    from flowrra import Flowrra, current_job

    app = Flowrra.from_urls(url)

    nothing = app.task(same)

    @app.task(batch=BATCH)
    async def together(numbers: list[int]) -> list[int]:
        return numbers

    @app.task
    async def in_steps(count: int) -> float:
        begun = time.perf_counter()
        for number in range(count):
            await current_job().step(f"step {number}", same, number)
        return rate(count, begun)

    figures: Figures = {}
    async with app:
        await app.wait_for_result(await in_steps.submit(WARM_UP), timeout=60)
        for count, name in ((STEPS, "step"), (MANY_STEPS, "many")):
            result = await app.wait_for_result(await in_steps.submit(count), timeout=200)
            figures[name] = float(result.result)
        begun = time.perf_counter()
        for number in range(JOBS):
            await nothing.options(queue="other").submit(number)
        figures["submit"] = rate(JOBS, begun)
        for name, task in (("single", nothing), ("batch", together)):
            begun = time.perf_counter()
            await app.submit_many(task, [(number,) for number in range(RUN)])
            states = ("pending", "running")
            while await app.jobs(status=states, task=task.name, queue="default", limit=1):  # noqa: ASYNC110
                await asyncio.sleep(0.02)  # 5,000 calls of wait_for_result would cost more than the jobs
            figures[name] = rate(RUN, begun)
    return figures


def peer(url: str) -> Figures:
    return asyncio.run(_peer(url))


async def _peer(url: str) -> Figures:
    dbos: Any = import_module("dbos").DBOS
    dbos(config={"name": "bench", "system_database_url": url, "log_level": "ERROR"})

    step, single = dbos.step()(same), dbos.workflow(name="single")(same)

    async def in_steps(count: int) -> float:
        begun = time.perf_counter()
        for number in range(count):
            await step(number)
        return rate(count, begun)

    workflow = dbos.workflow()(in_steps)
    dbos.launch()
    figures: Figures = {}
    await (await dbos.start_workflow_async(workflow, WARM_UP)).get_result()
    for count, name in ((STEPS, "step"), (MANY_STEPS, "many")):
        figures[name] = await (await dbos.start_workflow_async(workflow, count)).get_result()
    queue = await dbos.register_queue_async("bench", polling_interval_sec=0.05)
    begun = time.perf_counter()
    handles = [await queue.enqueue_async(single, number) for number in range(PEER_JOBS)]
    figures["submit"] = rate(PEER_JOBS, begun)
    for handle in handles:
        await handle.get_result(polling_interval_sec=0.05)
    figures["single"] = rate(PEER_JOBS, begun)
    dbos.destroy()
    return figures


def checks(store: str) -> tuple[Check, ...]:
    ours, peer = f"{store}", f"{store}, DBOS"
    return (
        Check(label=f"{store}: submits, one by one", ours=ours, figure="submit", against=peer),
        Check(label=f"{store}: empty steps of a job of {STEPS}", ours=ours, figure="step", against=peer),
        Check(label="  against submits", ours=ours, figure="step", against=ours, against_figure="submit", goal=1 / 1.5),
        Check(label=f"{store}: empty steps of a job of {MANY_STEPS:,}", ours=ours, figure="many", against=peer),
        Check(label="  against submits", ours=ours, figure="many", against=ours, against_figure="submit", goal=1 / 1.5),
        Check(label=f"{store}: single jobs, submitted and run", ours=ours, figure="single", against=peer),
        Check(label=f"{store}: jobs in batches of {BATCH}", ours=ours, figure="batch"),
        Check(label="  against single jobs", ours=ours, figure="batch", against=ours, against_figure="single"),
    )


PEER = "its queue looks every 0.05 s (1 s by default)"

SCENARIO = Scenario(
    title="Steps and batches",
    parts={
        "SQLite": Part(run=on_sqlite(flowrra), needs="flowrra", setting="synchronous=FULL"),
        "SQLite, DBOS": Part(run=on_sqlite(peer), needs="dbos", setting=PEER),
        "PostgreSQL": Part(run=on_postgres(flowrra), needs="flowrra"),
        "PostgreSQL, DBOS": Part(run=on_postgres(peer), needs="dbos", setting=PEER),
    },
    checks=(*checks("SQLite"), *checks("PostgreSQL")),
)
