"""Limits in Redis: many brokers on one store, evicted jobs, and the cost of waiting jobs."""

import asyncio
import collections
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import flowrra
from flowrra import Job, JobFilter, Limit, Outcome, TaskStatus, WorkerInfo
from flowrra_extras.redis import RedisBroker, scripts
from flowrra_extras.testing import ManualClock
from tests.brokers.test_redis_faults import claim, lose_answer_to, through_a_proxy
from tests.brokers.test_redis_lookups import agree
from tests.support.redis_server import Server, clean, keys
from tests.support.services import REDIS_URL

pytestmark = pytest.mark.usefixtures("redis_url")

ADMITTED = frozenset((TaskStatus.PENDING, TaskStatus.RUNNING))


@pytest.fixture
def store() -> Iterator[tuple[Any, str]]:
    with clean(REDIS_URL) as (client, prefix):
        yield client, prefix


def broker_on(prefix: str) -> RedisBroker:
    return RedisBroker(f"{REDIS_URL}?prefix={prefix}", clock=ManualClock())


def limited(task_id: str, key: str | None = None, **fields: Any) -> Job:
    return Job(task_id, "task", limit="api", key=key, **fields)


def test_the_slack_of_a_rate_is_that_of_the_rules() -> None:
    assert scripts.RATE_SLACK == flowrra._RATE_SLACK


@pytest.mark.parametrize("turn", [None, 1])
async def test_brokers_at_once_never_exceed_a_limit(store: tuple[Any, str], turn: int | None) -> None:
    """Four brokers claim and settle jobs of three keys, in groups and with several endings; one key is often paused."""
    client, prefix = store
    brokers = [broker_on(prefix) for _ in range(4)]
    finished: collections.Counter[str] = collections.Counter()
    running: collections.Counter[str] = collections.Counter()
    is_done = asyncio.Event()
    allowed, total = 2, 240
    await asyncio.gather(*(broker.open() for broker in brokers))
    try:
        await brokers[0].set_limit(Limit(name="api", concurrency=allowed, turn=turn), now=1.0)
        jobs = [limited(f"j{n}", "abc"[n % 3], priority=n % 2) for n in range(total)]
        pushes = (broker.push(jobs[n::4], now=1.0) for n, broker in enumerate(brokers))
        await asyncio.gather(*pushes)

        async def work(number: int, broker: RedisBroker) -> None:
            worker = f"w{number}"
            await broker.heartbeat(WorkerInfo(worker, queues={"default": 9}), lease=600, now=1.0)
            while finished.total() < total:
                claimed = await broker.claim("default", limit=1 + number % 3, worker=worker, now=1.0)
                for job in claimed:
                    running[job.key or ""] += 1
                    assert running[job.key or ""] <= allowed
                await asyncio.sleep(0)
                outcomes = [end(job) for job in claimed]
                for outcome in outcomes:  # others may run as soon as the settle has reached the server
                    running[outcome.job.key or ""] -= 1
                    finished[outcome.job.id] += outcome.status is not TaskStatus.PENDING
                if outcomes:
                    assert all(await broker.settle(outcomes, now=1.0))
            is_done.set()

        def end(job: Job) -> Outcome:
            if job.attempt == 1 and job.seq % 3 == 0:
                return Outcome.release(job, "not yet")
            return Outcome.fail(job, "boom") if job.seq % 5 == 0 else Outcome.succeed(job, None)

        async def watch(broker: RedisBroker) -> None:
            while not is_done.is_set():
                for state in await broker.limit_states([f"api:{key}" for key in "abc"]):
                    assert state.running + state.pending <= allowed
                    assert state.pending <= (turn or allowed)
                assert await broker.change(["api:a"], "pause", now=1.0) == [True]
                await asyncio.sleep(0.001)
                (paused,) = await broker.limit_states(["api:a"])
                assert (paused.paused, paused.pending) == (True, 0)
                assert await broker.change(["api:a"], "resume", now=1.0) == [True]
                await asyncio.sleep(0.01)

        async with asyncio.timeout(50):
            await asyncio.gather(watch(brokers[0]), *(work(n, broker) for n, broker in enumerate(brokers)))
        assert set(finished.values()) == {1}
        assert await brokers[0].find(JobFilter(status=ADMITTED)) == []
        (use,) = await brokers[0].limits()
        assert (use.running, use.pending, use.waiting) == (0, 0, 0)
        assert not {name for name in keys(client, prefix) if name.startswith(("key-", "limit-keys", "placed"))}
    finally:
        await asyncio.gather(*(broker.close() for broker in brokers))


@pytest.mark.parametrize("kind", ["waiting", "ready", "running"])
async def test_an_evicted_job_holds_no_place_of_its_limit(store: tuple[Any, str], kind: str) -> None:
    """The server evicts jobs when its memory is full, unless its policy is noeviction."""
    client, prefix = store
    broker = broker_on(prefix)
    await broker.open()
    try:
        await broker.set_limit(Limit(name="api", concurrency=1), now=1.0)
        await broker.heartbeat(WorkerInfo("w", queues={"default": 9}), lease=600, now=1.0)
        await broker.push([limited(name) for name in "abc"], now=1.0)
        if kind == "running":
            await broker.claim("default", limit=1, worker="w", now=1.0)
        client.unlink(f"{{{prefix}}}:job:{'b' if kind == 'waiting' else 'a'}")
        await broker.purge(1.0, 100)
        ids: list[str] = []
        for _ in range(3):
            claimed = await broker.claim("default", limit=9, worker="w", now=1.0)
            ids += [job.id for job in claimed]
            await broker.settle([Outcome.succeed(job, None) for job in claimed], now=1.0)
        assert ids == (["a", "c"] if kind == "waiting" else ["b", "c"])
    finally:
        await broker.close()


async def test_jobs_of_a_fair_queue_are_found_in_order(store: tuple[Any, str]) -> None:
    """Their order in the queue is not that of their submission."""
    _, prefix = store
    broker = broker_on(prefix)
    await broker.open()
    try:
        await broker.set_limit(Limit(name="api", turn=3), now=1.0)
        await broker.push([limited(f"j{n}", "abc"[n % 3], priority=-(n % 2)) for n in range(30)], now=1.0)
        await broker.push([Job("plain", "task"), limited("other", "d", queue="q"), limited("last", "a")], now=1.0)
        await agree(broker)
        await broker.heartbeat(WorkerInfo("x", queues={"default": 9}), lease=600, now=1.0)
        claimed = await broker.claim("default", limit=4, worker="x", now=1.0)
        await broker.change(["api:a"], "pause", now=1.0)
        await agree(broker)
        await broker.settle([Outcome.release(job, "why") for job in claimed], now=1.0)
        await broker.change(["api:a"], "resume", now=1.0)
        await agree(broker)
        found = await broker.find(JobFilter(status=frozenset({TaskStatus.PENDING})), limit=3)
        assert [job.seq for job in found] == sorted((job.seq for job in found), reverse=True)
        for job in await broker.find(JobFilter()):  # that a filter and a job agree
            counted = await broker.counts(JobFilter(ahead_of=job))
            ahead = await broker.find(JobFilter(ahead_of=job))
            assert collections.Counter((one.queue, one.status) for one in ahead) == counted
    finally:
        await broker.close()


async def test_jobs_that_wait_cost_a_claim_nothing(tmp_path: Path) -> None:
    with Server(tmp_path / "redis") as server:
        broker, client = RedisBroker(server.url), server.client()
        await broker.open()
        try:
            await broker.set_limit(Limit(name="api", concurrency=1, rate="1000/s", burst=1000), now=1.0)
            await broker.heartbeat(WorkerInfo("w", queues={"default": 9}), lease=600, now=1.0)
            costs = []
            for first, number in ((0, 10), (10, 5_000)):
                await broker.push([limited(f"j{n}") for n in range(first, first + number)], now=1.0)
                before = commands(client)
                (job,) = await broker.claim("default", limit=9, worker="w", now=1.0)
                assert await broker.settle([Outcome.succeed(job, None)], now=1.0) == [True]
                costs.append(commands(client) - before)
            assert costs[1] <= costs[0] < 60
        finally:
            await broker.close()
            client.close()


async def test_calls_whose_answers_are_lost_are_counted_once() -> None:
    async with through_a_proxy() as (broker, proxy):
        await broker.set_limit(Limit(name="api", concurrency=2, rate="1/m", burst=3), now=0.0)
        await broker.push([limited("first", "another")], now=0.0)
        lose_answer_to(proxy, "push")
        assert await broker.push([limited(name) for name in "abcd"], now=0.0) == ["a", "b", "c", "d"]
        lose_answer_to(proxy, "claim")
        claimed = await claim(broker)
        assert [job.id for job in claimed] == ["first", "a", "b"]
        (state,) = await broker.limit_states(["api:"])
        assert (state.running, state.pending, state.tat) == (2, 0, 120.0)
        lose_answer_to(proxy, "settle")
        assert await broker.settle([Outcome.succeed(job, None) for job in claimed], now=0.0) == [True] * 3
        (state,) = await broker.limit_states(["api:"])
        assert (state.running, state.pending, state.has_waiting, state.due) == (0, 1, True, 60.0)
        lose_answer_to(proxy, "limit")
        assert await broker.change(["api:"], "pause", now=0.0) == [True]
        assert await broker.change(["api:"], "pause", now=0.0) == [False]
        lose_answer_to(proxy, "apply")
        assert await broker.cancel("c", now=0.0)
        assert await broker.change(["api:"], "resume", now=0.0) == [True]
        assert [job.id for job in await claim(broker)] == ["d"]


def commands(client: Any) -> int:
    """Return how many commands the server has carried out, those of scripts included."""
    return sum(int(one["calls"]) for one in client.info("commandstats").values())
