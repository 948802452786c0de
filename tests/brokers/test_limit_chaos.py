"""Limits with real processes: workers are killed and stopped at random, and no limit is ever exceeded.

How many jobs run at once is counted by the jobs themselves: each holds one of the lock files of its key, which the
system frees when its process dies. The moments of starts are those of the claims.
"""

import asyncio
import random
import signal
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

import pytest

from flowrra import KILLED, Job, TaskStatus
from tests.support.processes import Site, all_finished, site_on, some_succeeded, stand_in, statuses

BROKERS = ("sqlite", "redis", "postgresql")
KEYS = ("ada", "bob", "eve")
AT_ONCE, RATE, BURST = 2, 40, 5
LATE = 0.1  # seconds

APP = f"""
import fcntl
app.limit("api", rate="{RATE}/s", burst={BURST})


@app.task(concurrency={AT_ONCE}, key=lambda key: key)
async def guarded(key):
    for number in range({AT_ONCE}):
        with open(HERE / f"{{key}}.{{number}}.lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            note("runs", current_job().id)
            note("places", f"{{key}} {{number}}")
            await asyncio.sleep(0.1)
            return
    note("exceeded", f"{{key}} by {{current_job().id}}")


@app.task(limit="api")
async def call():
    note("runs", current_job().id)
"""


@pytest.fixture(params=BROKERS)
def site(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    with site_on(request.param, tmp_path, APP) as site:
        yield site


def starts_of(jobs: Sequence[Job]) -> list[float]:
    """When attempts began, in order."""
    return sorted(attempt.started for job in jobs for attempt in job.attempts if attempt.outcome != "note")


def assert_rate_held(starts: Sequence[float]) -> None:
    """A claim notes the moment at which it was asked for, and may then wait for others, on a busy machine for long."""
    for (first, begin), (last, end) in combinations(enumerate(starts), 2):
        assert last - first + 1 <= BURST + RATE * (end - begin + LATE), (first, last, end - begin)


async def test_killed_workers_never_make_a_key_exceed_its_limit(site: Site) -> None:
    draw = random.Random(20261129)  # noqa: S311 (repeatable, not secret)
    async with site.client() as app:
        guarded = stand_in(app, "app.guarded", concurrency=AT_ONCE)
        for key in KEYS:
            await app.submit_many(guarded.options(key=key), [(key,)] * 60)
        workers = [await site.worker("--concurrency", "5") for _ in range(3)]
        for _ in range(5):
            await asyncio.sleep(draw.uniform(0.1, 0.6))  # the random moment
            victim, other = draw.sample(range(len(workers)), 2)
            workers[other].send(signal.SIGSTOP)
            await workers[victim].kill()
            workers[other].send(signal.SIGCONT)
            workers[victim] = site.begin_worker("--concurrency", "5")
        jobs = await all_finished(app)
        (use,) = [use for use in await app.broker.limits() if use.limit.name == "app.guarded"]
    assert site.lines("exceeded") == []
    assert len(jobs) == 180
    assert {job.error for job in jobs} <= {None, KILLED}  # of one that was running whenever a worker was killed
    assert sum(job.crashes for job in jobs) > 0
    assert {f"{key} {number}" for key in KEYS for number in range(AT_ONCE)} == set(site.lines("places"))
    assert (use.running, use.pending, use.waiting) == (0, 0, 0)


async def test_several_workers_hold_a_rate_together(site: Site) -> None:
    async with site.client() as app:
        app.limit("api", rate=f"{RATE}/s", burst=BURST)
        for worker in [site.begin_worker("--concurrency", "5") for _ in range(4)]:
            await worker.says("worker ready")
        await app.submit_many(stand_in(app, "app.call", limit="api"), [()] * 150)
        jobs = await all_finished(app)
    starts = starts_of(jobs)
    assert len(starts) == 150
    assert_rate_held(starts)
    assert starts[-1] - starts[0] < 2.5 * 150 / RATE  # and it is used


async def test_a_rate_holds_while_workers_are_killed(site: Site) -> None:
    async with site.client() as app:
        app.limit("api", rate=f"{RATE}/s", burst=BURST)
        workers = [await site.worker("--concurrency", "5") for _ in range(2)]
        await app.submit_many(stand_in(app, "app.call", limit="api"), [()] * 120)
        for number in range(2):
            await some_succeeded(app, 30 * (number + 1))
            await workers[number].kill()
            await site.worker("--concurrency", "5")
        jobs = await all_finished(app)
    assert statuses(jobs) == {TaskStatus.SUCCESS: 120}
    assert_rate_held(starts_of(jobs))
