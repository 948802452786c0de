"""PostgreSQL: statements that wait for locks, are given up, or run into each other."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import asyncpg
import psycopg
import pytest

from flowrra import (
    BrokerConfig,
    BrokerError,
    Config,
    ExecutorConfig,
    Flowrra,
    Job,
    JobFilter,
    Outcome,
    SerializationError,
    TaskStatus,
    WorkerInfo,
)
from flowrra_extras.postgres import PostgresBroker, groups
from flowrra_extras.postgres.store import Store
from tests.apps import eventually
from tests.postgres_server import Connection, clean_schema
from tests.services import POSTGRES_URL

NOW = 1_700_000_000.0

pytestmark = pytest.mark.usefixtures("postgres_url")


@pytest.fixture
def schema() -> Iterator[str]:
    with clean_schema(POSTGRES_URL) as (_, schema):
        yield schema


@contextlib.asynccontextmanager
async def running(schema: str, number: int) -> AsyncIterator[tuple[PostgresBroker, list[Job]]]:
    """A broker, and so many jobs that a worker w runs."""
    broker = PostgresBroker(f"{POSTGRES_URL}?schema={schema}&application_name={schema}", BrokerConfig(timeout=20.0))
    await broker.open()
    try:
        await broker.push([Job(f"j{n:02}", "task") for n in range(number)], now=NOW)
        await broker.heartbeat(WorkerInfo("w"), lease=60, now=NOW)
        yield broker, await broker.claim("default", limit=number, worker="w", now=NOW)
    finally:
        await broker.close()


def change(connection: Connection, schema: str, what: str, task_id: str) -> None:
    connection.execute(f"UPDATE {schema}.job SET {what} WHERE id = '{task_id}'".encode())  # noqa: S608 (our own)


def waiting(observer: Connection, schema: str) -> int:
    """How many sessions of the broker wait for a lock."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND wait_event_type = 'Lock'"
    row = observer.execute(query, [schema]).fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.parametrize("what", ["progress = '[1, 2, null]'", "has_children = true", "cancel_requested = true"])
@pytest.mark.parametrize("ending", ["success", "retry"])
async def test_a_job_that_changes_while_a_settle_waits_for_it_is_settled(schema: str, what: str, ending: str) -> None:
    with (
        psycopg.connect(POSTGRES_URL) as other,
        psycopg.connect(POSTGRES_URL, autocommit=True) as observer,
    ):
        async with running(schema, 3) as (broker, jobs):
            change(other, schema, what, "j01")
            ends = [Outcome.succeed(j, 1) if ending == "success" else Outcome.retry_at(j, NOW + 9, "no") for j in jobs]
            settling = asyncio.create_task(broker.settle(ends, now=NOW + 1))
            await eventually(lambda: waiting(observer, schema) == 1, "the settle waits")
            other.commit()
            assert await settling == [True] * 3
            assert TaskStatus.RUNNING not in {job.status for job in await broker.find(JobFilter())}


async def test_what_is_given_up_is_cancelled_before_it_is_tried_again(
    schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise each try leaves one behind that waits, and that may hold what the next one needs."""
    monkeypatch.setattr(groups, "SILENCE", 0.2)
    tries: list[int] = []
    settle = Store.settle

    async def count(store: Store, outcomes: Sequence[Outcome], now: float, *, careful: bool) -> Any:
        tries.append(len(outcomes))
        return await settle(store, outcomes, now, careful=careful)

    monkeypatch.setattr(Store, "settle", count)
    with (
        psycopg.connect(POSTGRES_URL) as other,
        psycopg.connect(POSTGRES_URL, autocommit=True) as observer,
    ):
        async with running(schema, 2) as (broker, jobs):
            change(other, schema, "progress = NULL", "j01")
            settling = asyncio.create_task(broker.settle([Outcome.succeed(job, 1) for job in jobs], now=NOW + 1))
            await eventually(lambda: len(tries) > 3, "it was tried several times")
            await eventually(lambda: waiting(observer, schema) <= 1, "only one of them waits")
            assert not settling.done()
            other.commit()
            assert await settling == [True, True]
            await eventually(lambda: waiting(observer, schema) == 0)


async def test_a_settle_that_fails_is_tried_again_in_smaller_groups(
    schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "_SETTLED", 16)
    sizes: list[int] = []
    settle = Store.settle

    async def lose_one(store: Store, outcomes: Sequence[Outcome], now: float, *, careful: bool) -> Any:
        sizes.append(len(outcomes))
        if len(sizes) == 2:
            raise asyncpg.DeadlockDetectedError("deadlock detected")
        return await settle(store, outcomes, now, careful=careful)

    monkeypatch.setattr(Store, "settle", lose_one)
    async with running(schema, 40) as (broker, jobs):
        ends = [Outcome.succeed(job, 1) for job in reversed(jobs)]
        assert await broker.settle(ends, now=NOW + 1) == [True] * 40
        assert sizes == [16, 16, *[4] * 6], "what was written is not sent again"
        assert await broker.counts() == {("default", TaskStatus.SUCCESS): 40}


async def test_what_a_settle_wrote_before_it_failed_for_good_is_known_later(
    schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "_SETTLED", 2)
    settle, calls = Store.settle, iter(range(100))

    async def refuse(store: Store, outcomes: Sequence[Outcome], now: float, *, careful: bool) -> Any:
        if next(calls) == 1:
            raise asyncpg.DiskFullError("no room")
        return await settle(store, outcomes, now, careful=careful)

    async with running(schema, 4) as (broker, jobs):
        monkeypatch.setattr(Store, "settle", refuse)
        ends = [Outcome.succeed(job, 1) for job in jobs]
        with pytest.raises(BrokerError, match="no room"):
            await broker.settle(ends, now=NOW + 1)
        assert await broker.settle(ends, now=NOW + 2) == [True] * 4
        assert await broker.settle(ends, now=NOW + 3) == [False] * 4


async def test_two_hundred_queues_at_once_run_each_job_once(schema: str, caplog: pytest.LogCaptureFixture) -> None:
    queues = [f"q{n}" for n in range(200)]
    config = Config(
        broker=BrokerConfig(url=f"{POSTGRES_URL}?schema={schema}"),
        executor=ExecutorConfig(queues=dict.fromkeys(queues, 10)),
    )
    app = Flowrra(config)
    ran: list[int] = []

    @app.task
    async def note(number: int) -> None:
        ran.append(number)

    async with app.client():
        rows = [[(10 * n + m,) for m in range(10)] for n in range(len(queues))]
        for queue, numbers in zip(queues, rows, strict=True):
            await app.submit_many(note.options(queue=queue), numbers)
    async with app:
        await eventually(lambda: has_succeeded(app, 2_000))
    assert sorted(ran) == list(range(2_000))
    assert [record.message for record in caplog.records if record.name == "flowrra"] == []


async def has_succeeded(app: Flowrra, number: int) -> bool:
    return sum((await app.broker.counts(JobFilter(status=frozenset({TaskStatus.SUCCESS})))).values()) == number


async def test_one_push_that_is_refused_costs_its_neighbours_little(
    schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    push_group = groups.Groups._push_group

    async def count(self: groups.Groups, items: Sequence[Any]) -> Any:
        sent.append(len(items))
        return await push_group(self, items)

    monkeypatch.setattr(groups.Groups, "_push_group", count)
    async with running(schema, 1) as (broker, _):
        sent.clear()
        tries = [broker.push([Job("nul\0" if n == 70 else f"k{n}", "task")], now=NOW) for n in range(150)]
        answers = await asyncio.gather(*tries, return_exceptions=True)
        refused = [n for n, answer in enumerate(answers) if isinstance(answer, Exception)]
        assert refused == [70]
        assert isinstance(answers[70], SerializationError)
        assert len(sent) < 20
