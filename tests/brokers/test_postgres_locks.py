"""PostgreSQL: statements that wait for locks, are given up, or run into each other."""

import asyncio
import contextlib
import itertools
import random
from collections.abc import AsyncIterator, Sequence
from typing import Any

import asyncpg
import psycopg
import pytest

from flowrra import (
    FINISHED,
    BrokerConfig,
    BrokerError,
    Config,
    ExecutorConfig,
    Flowrra,
    Job,
    JobFilter,
    Outcome,
    SerializationError,
    Step,
    TaskStatus,
    Unit,
    WorkerInfo,
)
from flowrra_extras.postgres import PostgresBroker, groups
from flowrra_extras.postgres.store import Store
from tests.support.apps import eventually
from tests.support.postgres_server import Connection
from tests.support.services import POSTGRES_URL

NOW = 1_700_000_000.0

pytestmark = pytest.mark.usefixtures("postgres_url")


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


async def test_a_step_waits_for_what_ends_its_attempt(schema: str) -> None:
    """Otherwise a step that is stored would be unknown to the next attempt, which may begin at once."""
    with (
        psycopg.connect(POSTGRES_URL) as other,
        psycopg.connect(POSTGRES_URL, autocommit=True) as observer,
    ):
        async with running(schema, 2) as (broker, jobs):
            change(other, schema, "status = 'pending', worker = NULL, started = NULL", "j01")
            steps = [Outcome.done(job, 1, Step("charge", "1", NOW, NOW)) for job in jobs]
            settling = asyncio.create_task(broker.settle(steps, now=NOW + 1))
            await eventually(lambda: waiting(observer, schema) == 1, "the step waits")
            other.commit()
            assert await settling == [True, False]
            assert [len(job.steps) for job in await broker.find(JobFilter(), oldest_first=True)] == [1, 0]


async def test_a_step_leaves_the_row_of_its_job_as_it_is(schema: str) -> None:
    """So its cost does not grow with the steps before it."""
    async with running(schema, 1) as (broker, (job,)):
        query = "SELECT xmin::text, ctid::text, (SELECT count(*) FROM flowrra.step) AS steps FROM flowrra.job"
        (before,) = await broker._run(query)
        for number in range(20):
            assert await broker.settle([Outcome.done(job, 1, Step(f"{number}", "1", NOW, NOW))], now=NOW) == [True]
        (after,) = await broker._run(query)
        assert (*before[:2], before[2] + 20) == tuple(after)
        await broker.settle([Outcome.succeed(job, 1)], now=NOW)
        assert await broker.purge(1e10, 9) == 1
        assert [row[0] for row in await broker._run("SELECT count(*) FROM flowrra.step")] == [0]


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


async def test_a_child_that_comes_in_while_its_parent_ends_is_freed_with_it(
    schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes between what the settle reads and what it writes."""
    write, late = Store._write, iter([True])

    async def be_late(store: Store, unit: Unit, view: Any) -> None:
        if "j00" in unit.changed and next(late, False):
            await broker.push([Job("second", "task", parents=("j00",))], now=NOW)
        await write(store, unit, view)

    async with running(schema, 1) as (broker, jobs):
        await broker.push([Job("first", "task", parents=("j00",))], now=NOW)
        monkeypatch.setattr(Store, "_write", be_late)
        assert await broker.settle([Outcome.succeed(job, 1) for job in jobs], now=NOW + 1) == [True]
        assert {job.id: job.status for job in await broker.find(JobFilter(status=frozenset({TaskStatus.PENDING})))} == {
            "first": TaskStatus.PENDING,
            "second": TaskStatus.PENDING,
        }


async def test_two_parents_that_end_at_once_free_their_child(schema: str) -> None:
    async with running(schema, 20) as (broker, jobs):
        children = [Job(f"c{n}", "task", parents=(f"j{n:02}", f"j{n + 10:02}")) for n in range(10)]
        await broker.push(children, now=NOW)
        other = PostgresBroker(f"{POSTGRES_URL}?schema={schema}")
        await other.open()
        try:
            first, second = ([Outcome.succeed(job, 1) for job in some] for some in (jobs[:10], jobs[10:]))
            done = await asyncio.gather(broker.settle(first, now=NOW + 1), other.settle(second[::-1], now=NOW + 1))
        finally:
            await other.close()
        assert list(done) == [[True] * 10, [True] * 10]
        assert (await broker.counts())["default", TaskStatus.PENDING] == 10


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_a_key_that_another_transaction_takes_meanwhile(schema: str, driver: str) -> None:
    """Who comes second waits for what becomes of the first, and goes on in its own transaction."""
    async with running(schema, 1) as (broker, _):
        first, second = [await asyncpg.connect(POSTGRES_URL) for _ in range(2)]
        plain = await psycopg.AsyncConnection.connect(POSTGRES_URL, application_name=schema)
        await second.execute(f"SET application_name = '{schema}'")
        try:
            with psycopg.connect(POSTGRES_URL, autocommit=True) as observer:
                taking = first.transaction()
                await taking.start()
                assert await broker.push_in(first, [Job("a", "task", unique="key")], now=NOW) == ["a"]
                following = second.transaction()
                await following.start()
                mine = second if driver == "asyncpg" else plain
                jobs = [Job("plain", "task"), Job("b", "task", unique="key"), Job("c", "task", parents=("b",))]
                pushing = asyncio.create_task(broker.push_in(mine, jobs, now=NOW))
                await eventually(lambda: waiting(observer, schema) == 1, "the second waits")
                await taking.commit()
                assert await pushing == ["plain", "a", "c"]
                await (following.commit() if driver == "asyncpg" else plain.commit())
            (child,) = await broker.find(JobFilter(ids=["c"]))
            assert (child.status, child.parents, child.waits) == (TaskStatus.BLOCKED, ("a",), 1)
        finally:
            await plain.close()
            await first.close()
            await second.close()


async def test_races_leave_nobody_behind(schema: str) -> None:
    """Pushes of families, endings of all kinds and what people do, through two handles, as fast as they go."""
    rng, ids = random.Random(7), []  # noqa: S311 (no secret)
    async with running(schema, 1) as (broker, (begun,)):
        other = PostgresBroker(f"{POSTGRES_URL}?schema={schema}")
        await other.open()
        ids.append(begun.id)
        until = asyncio.get_running_loop().time() + 2

        def goes_on() -> bool:
            return asyncio.get_running_loop().time() < until

        async def push(through: PostgresBroker, name: str) -> None:
            for n in itertools.takewhile(lambda _: goes_on(), itertools.count()):
                parents = tuple(rng.sample(ids[-9:], min(len(ids), rng.randrange(3))))
                unique = f"key{rng.randrange(5)}" if rng.random() < 0.4 else None
                job = Job(f"{name}{n}", "task", parents=parents, unique=unique)
                ids.extend(await through.push([job, Job(f"{name}{n}x", "task", parents=(job.id,))], now=NOW))

        async def work(through: PostgresBroker) -> None:
            while goes_on():
                jobs = await through.claim("default", limit=rng.randrange(1, 6), worker="w", now=NOW)
                ends = [
                    rng.choice((Outcome.succeed(j, 1), Outcome.fail(j, "no"), Outcome.retry_at(j, NOW - 1, "no")))
                    for j in jobs
                ]
                assert all(await through.settle(ends, now=NOW))

        async def meddle(through: PostgresBroker, by: str) -> None:
            while goes_on():
                some = rng.sample(ids[-30:], min(len(ids), 3))
                await through.change(some, "hold", now=NOW, by=by)
                await through.change(some, rng.choice(["cancel", "requeue"]), now=NOW, by=by)
                await through.change(some, "unhold", now=NOW, by=by)

        assert await broker.settle([Outcome.succeed(begun, 1)], now=NOW) == [True]
        sides = ((broker, "a"), (other, "b"))
        try:
            await asyncio.gather(*(
                each for side, name in sides for each in (push(side, name), push(side, name * 2), work(side),
                                                          meddle(side, name))
            ))  # fmt: skip
        finally:
            await other.close()
        while jobs := await broker.claim("default", limit=100, worker="w", now=NOW):
            await broker.settle([Outcome.succeed(job, 1) for job in jobs], now=NOW)
        assert {status for _, status in await broker.counts()} <= FINISHED
        assert len(await broker._run("SELECT FROM flowrra.dependency")) == 0
