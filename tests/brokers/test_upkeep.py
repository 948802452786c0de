"""What becomes of many jobs at once is done in steps, beside the claims; a claim never waits for all of it."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from flowrra import UPKEEP_STEP, BackendConfig, Broker, Job, MemoryBroker, Outcome, SQLiteBroker, TaskStatus, WorkerInfo
from flowrra_extras.migrate import adopt_jobs, unhold_jobs
from flowrra_extras.testing import ManualClock
from tests.support.apps import eventually, within

NOW = 1_700_000_000.0
MANY = 20_000

Make = Callable[[], Broker]


@pytest.fixture(params=["memory", "file", "private"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    makers: dict[str, Make] = {
        "memory": lambda: MemoryBroker(retention=BackendConfig(max_results=10 * MANY)),
        "file": lambda: SQLiteBroker(str(tmp_path / "jobs.db")),
        "private": SQLiteBroker,
    }
    return makers[request.param]


@asynccontextmanager
async def served(make: Make, *jobs: Job) -> AsyncIterator[Broker]:
    """A broker that holds these jobs, and on which worker w has a lease."""
    broker = make()
    await broker.open()
    for start in range(0, len(jobs), 5_000):
        await broker.push(jobs[start : start + 5_000], now=NOW)
    await broker.heartbeat(WorkerInfo("w", "host", os.getpid(), {"default": 10}), lease=600, now=NOW)
    try:
        yield broker
    finally:
        await broker.close()


async def claim(broker: Broker, limit: int = 10, now: float = NOW) -> list[str]:
    return [job.id for job in await broker.claim("default", limit=limit, worker="w", now=now)]


async def first_job(broker: Broker) -> str:
    """What a worker does until it has a job."""
    while not (ids := await claim(broker, now=NOW + 10)):
        await broker.wait([("queue", "default")], 60)
    return ids[0]


def expired(number: int) -> list[Job]:
    return [Job(f"stale {n}", "t", expires=NOW + 1) for n in range(number)]


async def test_a_claim_deals_with_a_step_of_what_has_expired(make: Make) -> None:
    async with served(make, *expired(3 * UPKEEP_STEP)) as broker:
        assert await claim(broker, now=NOW + 10) == []
        await eventually(lambda: is_done(broker, 3 * UPKEEP_STEP), "upkeep goes on without a claim")


async def is_done(broker: Broker, number: int) -> bool:
    """Whether the last of so many that have expired is ended: the one that expired first goes first."""
    (found,) = await broker.get([f"stale {number - 1}"])
    return found is not None and found.status is TaskStatus.CANCELLED


async def test_a_fresh_job_does_not_wait_for_all_that_has_expired(make: Make) -> None:
    """20,000 in front of it took 4 s on SQLite: each was ended by itself, and all in one transaction."""
    async with served(make, *expired(MANY), Job("fresh", "t")) as broker:
        began = time.process_time()
        assert await within(first_job(broker)) == "fresh"
        assert time.process_time() - began < 3.0, "of this process: the machine may be busy with something else"
        await eventually(lambda: is_done(broker, MANY))


async def test_others_have_their_turn_while_much_expires(make: Make) -> None:
    """No step holds up the loop, or the store, for long."""
    async with served(make, *expired(MANY)) as broker:
        turns = 0
        work = asyncio.create_task(first_job(broker))
        while not await is_done(broker, MANY):
            turns += 1
            await broker.push([Job(f"{turns}", "t", queue="other")], now=NOW)
            await asyncio.sleep(0)  # a push to memory does not wait for anything
        work.cancel()
        assert turns >= MANY // UPKEEP_STEP // 4  # of about as many as there are steps


async def test_what_comes_due_at_once_is_promoted_in_steps(make: Make) -> None:
    async with served(make, *(Job(f"j{n}", "t", due=NOW + 1) for n in range(3 * UPKEEP_STEP))) as broker:
        assert len(await claim(broker, 3 * UPKEEP_STEP, NOW + 10)) == UPKEEP_STEP
        found = UPKEEP_STEP
        async with asyncio.timeout(20):
            while found < 3 * UPKEEP_STEP:
                found += len(await claim(broker, 3 * UPKEEP_STEP, NOW + 10))
                await asyncio.sleep(0)


async def test_those_who_wait_for_what_expires_go_with_it(make: Make) -> None:
    children = [Job(f"child {n}", "t", parents=(f"stale {n}",)) for n in range(1_500)]
    async with served(make, *expired(1_500), *children) as broker:
        assert await claim(broker, now=NOW + 10) == []
        await eventually(lambda: is_done(broker, 1_500))
        (found,) = await broker.get(["child 1499"])
        assert found is not None
        assert found.status is TaskStatus.CANCELLED
        assert found.error == "its parent stale 1499 ended as cancelled"


# ---------------------------------------------------------------------------
# Suspects in memory
# ---------------------------------------------------------------------------


async def test_a_suspect_leaves_claims_flat() -> None:
    """One that waits for its turn: each claim of others sorted all that was ready."""
    clock = ManualClock(NOW)
    broker = MemoryBroker(clock=clock)
    beat = WorkerInfo("gone", "host", 1, {"default": 10}), WorkerInfo("w", "host", 1, {"default": 10})
    await broker.heartbeat(beat[0], lease=10, now=NOW)
    await broker.push([Job("suspect", "t")], now=NOW)
    assert len(await broker.claim("default", limit=1, worker="gone", now=NOW)) == 1
    clock.advance(20)
    assert (await broker.heartbeat(beat[1], lease=600, now=NOW)).lost_workers == ["gone"]
    await broker.push([Job("first", "t", queue="first")], now=NOW)
    held = await broker.claim("first", limit=1, worker="w", now=NOW)
    await broker.push([Job(f"j{n}", "t") for n in range(20_000)], now=NOW)
    began = time.process_time()
    for _ in range(200):
        assert len(await claim(broker, 1)) == 1
    assert time.process_time() - began < 1.0, "200 claims of one job"
    assert (await broker.heartbeat(beat[1], lease=600, now=NOW)).suspects
    assert await broker.settle([Outcome.succeed(held[0], None)], now=NOW) == [True]


async def test_a_requeued_suspect_is_none_any_more() -> None:
    """It has its old place in the queue again, and runs beside others."""
    broker = MemoryBroker()
    await broker.heartbeat(WorkerInfo("w", "host", 1, {"default": 10}), lease=600, now=NOW)
    await adopt_jobs(broker, [Job("a", "t", crashes=2, attempt=2)], by="move", now=NOW)
    await unhold_jobs(broker, ["a"], by="move", gone=False, now=NOW)
    assert (await broker.heartbeat(WorkerInfo("w", "host", 1, {"default": 10}), lease=600, now=NOW)).suspects
    await broker.cancel("a", now=NOW)
    assert await broker.requeue(["a"], now=NOW) == [True]
    assert not (await broker.heartbeat(WorkerInfo("w", "host", 1, {"default": 10}), lease=600, now=NOW)).suspects
    await broker.push([Job("b", "t")], now=NOW)
    assert await claim(broker) == ["a", "b"]
