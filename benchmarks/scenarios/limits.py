"""Limits: what a job costs that has one, with many limits, many keys and many jobs that wait, against a job without.

The store knows the limits. One process submits the jobs in one call, then a worker in it runs them. A figure counts
from the start of the worker to the last of them. In "beside", as many jobs as in `flat` wait for one key in a queue
that no worker serves, and jobs without a limit run; in "behind", jobs of the key itself run, 50 at a time.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import tools
from benchmarks.databases import database
from benchmarks.model import Check, Figures, Part, Scenario, Settings

if TYPE_CHECKING:
    from collections.abc import Callable

JOBS = 5_000
MANY_KEYS = 10_000
MANY_LIMITS = 100
WAITING, WAITING_FULL = 100_000, 1_000_000
STEP = 5_000  # jobs that are submitted in one call
AT_ONCE = 50


def on(store: str) -> Callable[[Settings], Figures]:
    """Measure each case on an empty store of that kind."""

    def run(settings: Settings) -> Figures:
        waiting = WAITING_FULL if settings.full else WAITING
        figures: Figures = {}
        for name in ("none", "limits", "keys", "rate", "fair", "beside", "behind"):
            with ExitStack() as stack:
                url = "memory://"
                if store == "SQLite":
                    url = f"sqlite:///{Path(f'{name}.db').resolve()}"
                elif store == "PostgreSQL":
                    url = stack.enter_context(database())
                elif store == "Redis":
                    url = stack.enter_context(tools.redis_server())
                figures[name] = asyncio.run(measure(url, name, waiting))
        return figures

    return run


def varied(case: str, number: int) -> dict[str, Any]:
    """The options of a job that has another limit or key than the one before."""
    if case == "limits":
        return {"limit": f"limit {number % MANY_LIMITS}"}
    return {"limit": "one", "key": number % MANY_KEYS} if case == "keys" else {"key": number % MANY_LIMITS}


async def measure(url: str, case: str, waiting: int) -> float:
    from flowrra import BrokerConfig, Config, ExecutorConfig, Flowrra

    app = Flowrra(Config(broker=BrokerConfig(url=url), executor=ExecutorConfig(queues={"default": AT_ONCE})))
    done, last = 0, asyncio.Event()

    @app.task
    async def noop(number: int) -> int:
        nonlocal done
        done += 1
        if done == JOBS:
            last.set()
        return number

    app.limit("one", concurrency=1)
    app.limit("many", concurrency=AT_ONCE)
    app.limit("rate", rate="100000/s")
    for number in range(MANY_LIMITS):
        app.limit(f"limit {number}", concurrency=AT_ONCE)
    if case == "fair":
        app.fair_queue("default")

    async def submit(count: int, **options: Any) -> None:
        for first in range(0, count, STEP):
            rows = [(n,) for n in range(first, min(count, first + STEP))]
            await app.submit_many(noop.options(**options), rows)

    await app.start()  # which declares the limits
    await app.stop(wait=False)
    async with app.client():
        if case == "beside":
            await submit(waiting, limit="one", key="k", queue="nobody")
        if case == "behind":
            await submit(waiting, limit="many", key="k")
        elif case in ("none", "beside"):
            await submit(JOBS)
        elif case == "rate":
            await submit(JOBS, limit="rate")
        else:  # of different limits and keys, in turn
            made = [noop.options(**varied(case, number)).make_job((number,), {}) for number in range(JOBS)]
            await app.submit_jobs(made)
        begun = time.perf_counter()
        await app.start()
        await last.wait()
        taken = time.perf_counter() - begun
        await app.stop(wait=False)
    return JOBS / taken


GOAL = 1 / 1.3


def checks(store: str) -> tuple[Check, ...]:
    rows = {
        f"{store}: jobs of {MANY_LIMITS} limits": "limits",
        f"{store}: jobs of {MANY_KEYS:,} keys, one at a time": "keys",
        f"{store}: jobs of a rate": "rate",
        f"{store}: jobs of {MANY_LIMITS} keys in a fair queue": "fair",
        f"{store}: jobs without a limit, many of one key wait": "beside",
        f"{store}: jobs of the key for which many wait": "behind",
    }
    plain = Check(label=f"{store}: jobs without a limit", ours=store, figure="none")
    against = [
        Check(label=label, ours=store, figure=figure, against=store, against_figure="none", goal=GOAL)
        for label, figure in rows.items()
    ]
    return (plain, *against)


STORES = ("Memory", "SQLite", "PostgreSQL", "Redis")
SCENARIO = Scenario(
    title="Limits",
    parts={store: Part(run=on(store), needs="flowrra") for store in STORES},
    checks=tuple(check for store in STORES for check in checks(store)),
)
