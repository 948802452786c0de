"""CPU-bound jobs on two cores, both pools warm."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

from benchmarks import work
from benchmarks.model import Check, Figures, Part, Scenario, Settings

JOBS = 200
MILLISECONDS = 10.0
WARM = 20


def flowrra(settings: Settings) -> Figures:
    from benchmarks.apps import ours_cpu

    app, burn = ours_cpu.app, ours_cpu.burn

    async def run(jobs: int) -> None:
        ids = [await app.submit(burn, MILLISECONDS) for _ in range(jobs)]
        for job in ids:
            result: Any = await app.wait_for_result(job, timeout=60)
            assert result.is_success, result

    async def measure() -> Figures:
        async with app:
            await run(WARM)
            begin = time.perf_counter()
            await run(JOBS)
            return {"jobs": JOBS / (time.perf_counter() - begin)}

    return asyncio.run(measure())


def pool(settings: Settings) -> Figures:
    with ProcessPoolExecutor(max_workers=2, mp_context=get_context("spawn")) as executor:
        list(executor.map(work.burn, [MILLISECONDS] * WARM))
        begin = time.perf_counter()
        list(executor.map(work.burn, [MILLISECONDS] * JOBS))
        return {"jobs": JOBS / (time.perf_counter() - begin)}


SCENARIO = Scenario(
    title=f"{JOBS} jobs of {MILLISECONDS:.0f} ms of CPU time in two processes",
    parts={
        "flowrra": Part(run=flowrra, needs="flowrra", setting="in memory, cpu_workers=2"),
        "pool.map": Part(run=pool, setting="limit: ProcessPoolExecutor.map, 2 workers, spawned"),
    },
    checks=(Check(label="jobs", ours="flowrra", figure="jobs", against="pool.map", goal=0.95),),
)
