"""SQLite: whether a file full of waiting and finished jobs slows anything down.

A small file (1,000 finished) and a large one take turns; both have enough waiting jobs for the
window that is measured. The large file is made with the program's own means: submit, drain, submit.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks import tools
from benchmarks.model import Check, Figures, Part, Scenario, Settings
from benchmarks.scenarios.drain import CONCURRENCY, WORKER, start_workers, url

LARGE = 200_000
LARGE_FULL = 1_000_000
SMALL = 1_000
WINDOW = 15_000
LOOKUPS = 3_000
SUBMITTERS = 64
EACH = 250
ROUNDS = 5


class File:
    """One database with so many jobs finished and at least so many waiting."""

    def __init__(self, name: str, finished: int, waiting: int) -> None:
        self.url = url("full", f"{name}.db")
        self.name = name
        self.rounds = 0
        self.waiting = 0
        self.done = asyncio.run(self.submit(finished))
        self.drain(finished)
        asyncio.run(self.submit(waiting))

    def app(self) -> Any:
        """A client of this file; the task's name is all that it shares with the worker."""
        from flowrra import BrokerConfig, Config, Flowrra

        from benchmarks.apps import ours

        app = Flowrra(Config(broker=BrokerConfig(url=self.url)))
        return app, app.task(name=ours.noop.name)(noop)

    async def submit(self, jobs: int) -> list[Any]:
        app, task = self.app()
        async with app.client():
            ids = list(await app.submit_many(task, ((n,) for n in range(jobs))))
        self.waiting += jobs
        return ids

    def drain(self, jobs: int) -> Path:
        """Let a worker run at least so many jobs."""
        self.rounds += 1
        marks = tools.marks_folder(f"{self.name}-{self.rounds}")
        os.environ["BENCH_URL"] = self.url
        with ExitStack() as stack:
            start_workers(stack, 1, *WORKER, marks=marks)
            if jobs == self.waiting:
                asyncio.run(self.wait_for(self.done[-2 * int(CONCURRENCY) :]))
            else:
                tools.wait_until(lambda: begun(marks) >= jobs, timeout=600)
        return marks

    async def wait_for(self, ids: list[Any]) -> None:
        app, _ = self.app()
        async with app.client():
            for job in ids:
                await app.wait_for_result(job, timeout=600)
        self.waiting = 0

    async def lookups(self) -> float:
        app, _ = self.app()
        chosen = random.Random(self.rounds).choices(self.done, k=LOOKUPS)
        async with app.client():
            await app.get_result(chosen[0])
            begin = time.perf_counter()
            for job in chosen:
                assert (await app.get_result(job)).is_success
            return LOOKUPS / (time.perf_counter() - begin)

    async def enqueue(self) -> float:
        app, task = self.app()

        async def submitter() -> None:
            for n in range(EACH):
                await app.submit(task, n)

        async with app.client():
            await app.submit(task, 0)
            begin = time.perf_counter()
            async with asyncio.TaskGroup() as group:
                for _ in range(SUBMITTERS):
                    group.create_task(submitter())
            return SUBMITTERS * EACH / (time.perf_counter() - begin)

    def measure(self) -> Figures:
        """It drains about what it enqueues, so that the file stays as it is."""
        figures = {"enqueue": asyncio.run(self.enqueue())}
        self.waiting += SUBMITTERS * EACH + 1
        marks = tools.read_marks(self.drain(WINDOW))
        figures["drain"] = tools.window_rate(marks, WINDOW)
        figures["lookup"] = asyncio.run(self.lookups())
        return figures


async def noop(n: int) -> int:
    """Never called: the workers have their own."""
    return n


def begun(folder: Path) -> int:
    return sum(worker[-1][1] for worker in tools.read_marks(folder))


def flowrra(settings: Settings) -> Figures:
    large = LARGE_FULL if settings.full else LARGE
    files = File("small", SMALL, WINDOW), File("large", large, large)
    rounds = [[file.measure() for file in files] for _ in range(ROUNDS)]
    figures = {}
    for name in ("enqueue", "drain", "lookup"):
        figures[f"{name}_small"] = statistics.median(r[0][name] for r in rounds)
        figures[f"{name}_large"] = statistics.median(r[1][name] for r in rounds)
        figures[f"{name}_ratio"] = statistics.median(r[1][name] / r[0][name] for r in rounds)
    return figures


SCENARIO = Scenario(
    title=f"SQLite: {LARGE:,} waiting and as many finished jobs (--full: {LARGE_FULL:,}) "
    f"against {SMALL:,}",
    rounds=1,
    parts={"flowrra": Part(run=flowrra, needs="flowrra", setting=f"{ROUNDS} rounds, FULL")},
    checks=tuple(
        Check(label=f"{name}, large / small", ours="flowrra", figure=f"{name}_ratio", unit="x",
              goal=0.95)
        for name in ("drain", "enqueue", "lookup")
    ),
)  # fmt: skip
