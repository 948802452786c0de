"""A store that is silent or locked for longer than a lease, under running jobs: nothing runs twice or is charged."""

import asyncio
import contextlib
import os
import signal
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from flowrra import Flowrra, TaskStatus
from tests.support import postgres_server, redis_server
from tests.support.processes import (
    SHORT_LEASE,
    Process,
    Site,
    all_finished,
    all_jobs,
    some_running,
    stand_in,
    statuses,
    until,
)

LEASE = float(SHORT_LEASE["FLOWRRA_EXECUTOR_LEASE"])
OUTAGE = 1.5 * LEASE

TASKS = """
@app.task
def hold(seconds):
    note("runs", current_job().id)
    time.sleep(seconds)
    note("ends", current_job().id)


@app.task
async def linger(seconds):
    note("runs", current_job().id)
    await asyncio.sleep(seconds)
    note("ends", current_job().id)
"""

Silence = Callable[[], AbstractContextManager[None]]


@contextlib.contextmanager
def sqlite_site(folder: Path) -> Iterator[tuple[Site, Silence]]:
    """Silent: another program holds the lock."""
    with Site(folder, TASKS, env=SHORT_LEASE) as site:

        @contextlib.contextmanager
        def silence() -> Iterator[None]:
            with contextlib.closing(sqlite3.connect(site.store, timeout=10, isolation_level=None)) as connection:
                connection.execute("BEGIN IMMEDIATE")
                yield
                connection.execute("ROLLBACK")

        yield site, silence


@contextlib.contextmanager
def redis_site(folder: Path) -> Iterator[tuple[Site, Silence]]:
    with redis_server.Server(folder / "redis") as server, Site(folder, TASKS, url=server.url, env=SHORT_LEASE) as site:

        @contextlib.contextmanager
        def silence() -> Iterator[None]:
            server.send(signal.SIGSTOP)
            try:
                yield
            finally:
                server.send(signal.SIGCONT)

        yield site, silence


@contextlib.contextmanager
def postgres_site(folder: Path) -> Iterator[tuple[Site, Silence]]:
    with postgres_server.Server(folder) as server, Site(folder, TASKS, url=server.url, env=SHORT_LEASE) as site:

        @contextlib.contextmanager
        def silence() -> Iterator[None]:
            stopped = server.processes()
            for pid in stopped:
                os.kill(pid, signal.SIGSTOP)
            try:
                yield
            finally:
                for pid in stopped:
                    os.kill(pid, signal.SIGCONT)

        yield site, silence


@pytest.fixture(params=[sqlite_site, redis_site, postgres_site], ids=["sqlite", "redis", "postgresql"])
def place(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Site, Silence]]:
    with request.param(tmp_path) as place:
        yield place


@contextlib.asynccontextmanager
async def two_busy_workers(site: Site, seconds: float, **env: str) -> AsyncIterator[tuple[Flowrra, list[Process]]]:
    """Two workers with three jobs each, of which half block a thread."""
    async with site.client() as app:
        workers = [await site.worker("--concurrency", "3", env=env) for _ in range(2)]
        for name in ("app.hold", "app.linger"):
            await app.submit_many(stand_in(app, name), [(seconds,)] * 3)
        await some_running(app, 6)
        await until(lambda: len(site.lines("runs")) == 6, "six runs")
        yield app, workers


async def test_outages_longer_than_a_lease_run_nothing_twice(place: tuple[Site, Silence]) -> None:
    """Three in a row, as many as a job may have crashes."""
    site, silence = place
    async with two_busy_workers(site, 3 * OUTAGE + 3.0) as (app, workers):
        for _ in range(3):
            with silence():
                await asyncio.sleep(OUTAGE)
            await asyncio.sleep(0.6)
        jobs = await all_finished(app, within=40.0)
    assert site.runs() == dict.fromkeys((job.id for job in jobs), 1)
    assert statuses(jobs) == {TaskStatus.SUCCESS: 6}
    assert {(job.attempt, job.crashes, job.failures) for job in jobs} == {(1, 0, 0)}
    assert all("lost its lease" not in worker.log and "is presumed dead" not in worker.log for worker in workers)


async def test_who_has_given_up_often_is_back_in_time(tmp_path: Path) -> None:
    """The pauses between tries grow, for heartbeats to one of their intervals: a fresh lease lasts for two at least."""
    with redis_site(tmp_path) as (site, silence):
        async with two_busy_workers(site, 9.0, FLOWRRA_BROKER_TIMEOUT="0.2") as (app, workers):
            with silence():
                await asyncio.sleep(6.0)
            jobs = await all_finished(app, within=40.0)
    assert site.runs() == dict.fromkeys((job.id for job in jobs), 1)
    assert {(job.attempt, job.crashes) for job in jobs} == {(1, 0)}
    assert all("lost its lease" not in worker.log for worker in workers)


async def test_who_is_killed_in_an_outage_is_rescued_after_it(place: tuple[Site, Silence]) -> None:
    site, silence = place
    async with two_busy_workers(site, 4.0) as (app, (victim, survivor)):
        jobs = await all_jobs(app)
        hit = {job.id for job in jobs if job.worker is not None and f"-{victim.pid}-" in job.worker}
        with silence():
            await asyncio.sleep(OUTAGE / 2)
            await victim.kill()
            await asyncio.sleep(OUTAGE / 2)
        await survivor.says("is presumed dead; its jobs are ready again", within=3 * LEASE + 5.0)
        jobs = await all_finished(app, within=40.0)
    assert statuses(jobs) == {TaskStatus.SUCCESS: 6}
    assert {job.id for job in jobs if job.crashes} == hit
    assert all(site.runs()[job.id] == (2 if job.id in hit else 1) for job in jobs)
