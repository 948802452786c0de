"""Many jobs that have expired, or come due, together: none that has expired runs, and no claim does it all at once."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import pytest

from flowrra import Broker, Job, JobFilter, TaskStatus, WorkerInfo
from flowrra_extras.postgres import PostgresBroker
from flowrra_extras.postgres.groups import Groups
from flowrra_extras.redis import RedisBroker
from flowrra_extras.testing import ManualClock
from tests.support.apps import eventually
from tests.support.postgres_server import clean_schema
from tests.support.redis_server import clean
from tests.support.services import POSTGRES_URL, REDIS_URL

NOW = 1_700_000_000.0
STEP = 1_000  # jobs that a step makes ready, or cancels
EXPIRED = 2_500
MANY = 10_500  # more than a step of PostgreSQL's upkeep once took
LIVE = 5

pytestmark = pytest.mark.usefixtures("postgres_url", "redis_url")


@pytest.fixture(params=["postgresql", "redis"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "postgresql":
        with clean_schema(POSTGRES_URL) as (_, schema):
            yield f"{POSTGRES_URL}?schema={schema}"
    else:
        with clean(REDIS_URL) as (_, prefix):
            yield f"{REDIS_URL}?prefix={prefix}"


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[Broker]:
    clock = ManualClock(NOW)
    broker: Broker = RedisBroker(url, clock=clock) if url.startswith("redis") else PostgresBroker(url, clock=clock)
    await broker.open()
    try:
        await broker.heartbeat(WorkerInfo("w", queues={"default": 9}), lease=60, now=NOW)
        yield broker
    finally:
        await broker.close()


async def expired_ones_and_live(broker: Broker, expired: int) -> None:
    """Those that have expired stand first in their queue."""
    await broker.push([Job(f"old{n}", "task", expires=NOW + 1) for n in range(expired)], now=NOW)
    await broker.push([Job(f"live{n}", "task", expires=NOW + 99) for n in range(LIVE)], now=NOW)


async def cancelled(broker: Broker) -> int:
    return (await broker.counts()).get(("default", TaskStatus.CANCELLED), 0)


async def test_none_that_has_expired_is_handed_out(url: str) -> None:
    async with opened(url) as broker, asyncio.timeout(30):
        many = EXPIRED if url.startswith("redis") else MANY
        await expired_ones_and_live(broker, many)
        claimed: list[str] = []
        while len(claimed) < LIVE:
            claimed += [job.id for job in await broker.claim("default", limit=3, worker="w", now=NOW + 2)]
            if not claimed:
                await broker.wait([("queue", "default")], 1.0)
        assert claimed == [f"live{n}" for n in range(LIVE)]
        await eventually(lambda: is_all_cancelled(broker, many), "upkeep goes on until it is done")
        assert {job.error for job in await broker.find(JobFilter(status=frozenset({TaskStatus.CANCELLED})))} == {
            "it expired before its first attempt began"
        }


async def is_all_cancelled(broker: Broker, number: int) -> bool:
    await broker.claim("default", limit=1, worker="w", now=NOW + 2)
    return await cancelled(broker) == number


async def test_one_claim_cancels_a_bounded_number(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Groups, "_go_on", lambda *_: None)  # which goes on beside the claims
    async with opened(url) as broker:
        await expired_ones_and_live(broker, EXPIRED)
        assert await broker.claim("default", limit=3, worker="w", now=NOW + 2) == []
        assert STEP <= await cancelled(broker) <= 2 * STEP + 9


async def test_one_claim_makes_a_bounded_number_ready(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Groups, "_go_on", lambda *_: None)
    async with opened(url) as broker:
        await broker.push([Job(f"due{n}", "task", due=NOW + 1) for n in range(EXPIRED)], now=NOW)
        assert len(await broker.claim("default", limit=3, worker="w", now=NOW + 2)) == 3
        assert (await broker.counts())["default", TaskStatus.SCHEDULED] == EXPIRED - STEP


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
async def test_what_has_come_due_is_made_ready_to_the_end_though_nobody_claims(url: str) -> None:
    """On Redis each claim does a step, and who waits for jobs is told to claim again."""
    async with opened(url) as broker:
        await broker.push([Job(f"due{n}", "task", due=NOW + 1) for n in range(EXPIRED)], now=NOW)
        assert len(await broker.claim("default", limit=3, worker="w", now=NOW + 2)) == 3
        await eventually(lambda: is_all_ready(broker))


async def is_all_ready(broker: Broker) -> bool:
    return ("default", TaskStatus.SCHEDULED) not in await broker.counts()
