"""PostgreSQL: limits hold for several brokers at once, and cost nothing where there are none."""

import asyncio
import collections
import contextlib
import itertools
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any

import asyncpg
import psycopg
import pytest

from flowrra import BrokerConfig, Job, JobFilter, Limit, Outcome, TaskStatus, Unit, WorkerInfo
from flowrra_extras.postgres import PostgresBroker
from flowrra_extras.postgres import statements as sql
from flowrra_extras.postgres.connections import Session
from flowrra_extras.postgres.store import Store
from tests.support.apps import eventually
from tests.support.services import POSTGRES_URL

NOW = 1_700_000_000.0
BLOCKED, PENDING, RUNNING = TaskStatus.BLOCKED, TaskStatus.PENDING, TaskStatus.RUNNING

pytestmark = pytest.mark.usefixtures("postgres_url")


@contextlib.asynccontextmanager
async def brokers(schema: str, number: int) -> AsyncIterator[list[PostgresBroker]]:
    """So many open brokers on one schema, each with a worker `w0`, `w1` and so on."""
    url = f"{POSTGRES_URL}?schema={schema}&application_name={schema}"
    opened = [PostgresBroker(url, BrokerConfig(timeout=20.0)) for _ in range(number)]
    try:
        for n, broker in enumerate(opened):
            await broker.open()
            await broker.heartbeat(WorkerInfo(f"w{n}"), lease=600, now=NOW)
        yield opened
    finally:
        for broker in opened:
            await broker.close()


def of(key: str, task_id: str, **fields: Any) -> Job:
    return Job(task_id, "task", limit="api", key=key, **fields)


async def state_of(broker: PostgresBroker, task_id: str) -> TaskStatus:
    (job,) = await broker.find(JobFilter(ids=[task_id]))
    return job.status


class Counts:
    """What the jobs of each key see of each other, and what the table has of them."""

    def __init__(self) -> None:
        self.running: collections.Counter[str | None] = collections.Counter()
        self.most: collections.Counter[str | None] = collections.Counter()
        self.ended: collections.Counter[str] = collections.Counter()
        self.most_held = 0

    async def run(self, broker: PostgresBroker, worker: str, total: int) -> None:
        """Claim and settle until all have ended."""
        while len(self.ended) < total:
            jobs = await broker.claim("default", limit=5, worker=worker, now=NOW)
            for job in jobs:
                self.running[job.key] += 1
                self.most[job.key] = max(self.most[job.key], self.running[job.key])
            await asyncio.sleep(0.002)
            self.running.subtract(job.key for job in jobs)
            ends = [Outcome.release(j, "again") if j.attempt == 1 and j.seq % 5 == 0 else Outcome.succeed(j, 1)
                    for j in jobs]  # fmt: skip
            assert all(await broker.settle(ends, now=NOW))
            self.ended.update(end.job.id for end in ends if end.status is TaskStatus.SUCCESS)

    async def watch(self, schema: str, total: int) -> None:
        """Look at the table all the time."""
        query = f"""SELECT coalesce(max(number), 0) FROM (SELECT count(*) AS number FROM {schema}.job
            WHERE status IN ('pending', 'running') GROUP BY limit_key) AS v"""  # noqa: S608 (our own)
        connection = await asyncpg.connect(POSTGRES_URL)
        try:
            while len(self.ended) < total:
                self.most_held = max(self.most_held, await connection.fetchval(query))
                await asyncio.sleep(0)
        finally:
            await connection.close()


async def test_no_more_jobs_of_a_key_hold_a_place_than_it_has(schema: str, caplog: pytest.LogCaptureFixture) -> None:
    number, counts = 40, Counts()
    async with brokers(schema, 4) as opened:
        await opened[0].set_limit(Limit(name="api", concurrency=2), now=NOW)

        async def push(through: PostgresBroker, key: str) -> None:
            for n in range(number // 2):
                await through.push([of(key, f"{key}{n}a"), of(key, f"{key}{n}b")], now=NOW)

        async def meddle(through: PostgresBroker) -> None:
            """What people do beside it takes and frees places too."""
            for n in range(number // 2):
                ids = [f"k{n}a", f"l{n}b"]
                await through.change(ids, "hold", now=NOW, by="me")
                await through.change(ids, "unhold", now=NOW, by="me")
                await through.change(["api:m"], "resume" if n % 2 else "pause", now=NOW)

        total = 3 * number
        async with asyncio.timeout(120):
            await asyncio.gather(
                *(push(opened[n], key) for n, key in enumerate("klm")),
                *(counts.run(broker, f"w{n}", total) for n, broker in enumerate(opened)),
                meddle(opened[3]), counts.watch(schema, total),
            )  # fmt: skip
        assert counts.most == {"k": 2, "l": 2, "m": 2}
        assert counts.most_held == 2
        assert set(counts.ended.values()) == {1}
        assert [record.message for record in caplog.records if record.name == "flowrra"] == []


async def test_a_rate_holds_for_several_brokers(schema: str) -> None:
    async with brokers(schema, 4) as opened:
        await opened[0].set_limit(Limit(name="api", rate="10/s", burst=4), now=NOW)
        await opened[0].push([of("k", f"j{n}") for n in range(60)], now=NOW)
        claimed: list[str] = []
        for moment in (NOW, NOW, NOW + 0.3, NOW + 0.3, NOW + 10):
            claims = (b.claim("default", limit=9, worker=f"w{n}", now=moment) for n, b in enumerate(opened))
            for jobs in await asyncio.gather(*claims):
                claimed += [job.id for job in jobs]
        assert len(claimed) == len(set(claimed)) == 4 + 3 + 4


async def test_jobs_without_a_limit_cost_no_statement_more(schema: str, monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []
    fetch = Session.fetch

    async def count(session: Session, text: str, *values: Any) -> Sequence[Any]:
        assert not session.is_in_transaction()
        texts.append(text)
        return await fetch(session, text, *values)

    async with brokers(schema, 1) as (broker,):
        await broker.set_limit(Limit(name="api", rate="10/s"), now=NOW)
        await broker.push([of("k", "limited", queue="other")], now=NOW)
        await broker.push([Job("first", "task")], now=NOW)
        await asyncio.sleep(0.01)
        monkeypatch.setattr(Session, "fetch", count)
        await broker.push([Job("a", "task"), Job("b", "task")], now=NOW)
        jobs = await broker.claim("default", limit=9, worker="w0", now=NOW)
        assert await broker.settle([Outcome.succeed(job, 1) for job in jobs], now=NOW) == [True] * 3
        assert [text for text in texts if text != sql.NOTIFY] == [sql.INSERT, sql.CLAIM, sql.SUCCEED]


async def test_a_callers_transaction_locks_no_limit_key(schema: str) -> None:
    """Its jobs are admitted after its commit, by the upkeep of a claim."""
    async with brokers(schema, 1) as (broker,):
        await broker.set_limit(Limit(name="api", concurrency=1), now=NOW)
        connection = await asyncpg.connect(POSTGRES_URL)
        try:
            async with connection.transaction():
                jobs = [of("k", "mine"), of("k", "family", parents=("mine",)), of("l", "other")]
                assert await broker.push_in(connection, jobs, now=NOW) == ["mine", "family", "other"]
                await broker.push([of("k", "theirs")], now=NOW)
                assert [job.id for job in await broker.claim("default", limit=9, worker="w0", now=NOW)] == ["theirs"]
            assert [await state_of(broker, task_id) for task_id in ("mine", "family", "other")] == [BLOCKED] * 3
            assert [job.id for job in await broker.claim("default", limit=9, worker="w0", now=NOW)] == ["other"]
            (theirs,) = await broker.find(JobFilter(ids=["theirs"]))
            await broker.settle([Outcome.succeed(theirs, 1)], now=NOW)
            assert [job.id for job in await broker.claim("default", limit=9, worker="w0", now=NOW)] == ["mine"]
        finally:
            await connection.close()


async def meanwhile(
    schema: str,
    monkeypatch: pytest.MonkeyPatch,
    first: Coroutine[Any, Any, object],
    second: Coroutine[Any, Any, object],
) -> None:
    """Start the second call when the first has read its limit keys. The first goes on when the second waits for it."""
    has_read, goes_on = asyncio.Event(), asyncio.Event()
    write = Store._write_admitted

    async def be_late(store: Store, unit: Unit, view: Any) -> None:
        has_read.set()
        await goes_on.wait()
        await write(store, unit, view)

    monkeypatch.setattr(Store, "_write_admitted", be_late)
    earlier = asyncio.create_task(first)
    await has_read.wait()
    monkeypatch.setattr(Store, "_write_admitted", write)
    later = asyncio.create_task(second)
    with psycopg.connect(POSTGRES_URL, autocommit=True) as observer:
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND wait_event = 'advisory'"

        def waits() -> bool:
            row = observer.execute(query, [schema]).fetchone()
            return row is not None and row[0] == 1

        await eventually(waits, "the second call waits")
    goes_on.set()
    await asyncio.gather(earlier, later)


async def test_a_limit_that_changes_waits_for_those_who_have_read_it(
    schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a job that began to wait meanwhile would not be looked at again."""
    async with brokers(schema, 2) as (broker, other):
        declaring = other.set_limit(Limit(name="api", concurrency=1), now=NOW)
        await meanwhile(schema, monkeypatch, broker.push([of("k", "a")], now=NOW), declaring)
        assert [job.id for job in await other.claim("default", limit=9, worker="w1", now=NOW)] == ["a"]


async def test_an_end_waits_for_those_who_have_counted_its_job(schema: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise neither would let the job run that one of them adds, and the other does not see yet."""
    async with brokers(schema, 2) as (broker, other):
        await broker.set_limit(Limit(name="api", concurrency=1), now=NOW)
        await broker.push([of("k", "a")], now=NOW)
        (job,) = await other.claim("default", limit=9, worker="w1", now=NOW)
        ending = other.settle([Outcome.succeed(job, 1)], now=NOW)
        await meanwhile(schema, monkeypatch, broker.push([of("k", "b")], now=NOW), ending)
        assert [job.id for job in await other.claim("default", limit=9, worker="w1", now=NOW)] == ["b"]


async def test_a_claim_waits_for_those_who_have_read_its_rate(schema: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise one of two charges would be lost, and more jobs would start than the rate allows."""
    async with brokers(schema, 2) as (broker, other):
        await broker.set_limit(Limit(name="api", rate="1/m", burst=4), now=NOW)
        await broker.push([of("k", f"j{n}") for n in range(9)], now=NOW)
        claims = [b.claim("default", limit=2, worker=f"w{n}", now=NOW) for n, b in enumerate((broker, other))]
        await meanwhile(schema, monkeypatch, *claims)
        (state,) = await broker.limit_states(["api:k"])
        assert (state.running, state.pending, state.tat) == (4, 0, NOW + 240)


async def test_a_waiting_job_that_somebody_has_locked_is_admitted_later(schema: str) -> None:
    async with brokers(schema, 1) as (broker,):
        await broker.set_limit(Limit(name="api", concurrency=1), now=NOW)
        await broker.push([of("k", "a"), of("k", "b")], now=NOW)
        (job,) = await broker.claim("default", limit=9, worker="w0", now=NOW)
        with psycopg.connect(POSTGRES_URL) as other:
            other.execute(f"SELECT FROM {schema}.job WHERE id = 'b' FOR UPDATE".encode())
            assert await broker.settle([Outcome.succeed(job, 1)], now=NOW) == [True]
            assert await broker.claim("default", limit=9, worker="w0", now=NOW) == []
            assert await state_of(broker, "b") is BLOCKED
        assert [job.id for job in await broker.claim("default", limit=9, worker="w0", now=NOW)] == ["b"]


async def test_many_keys_at_once_and_few_do_not_block_each_other(schema: str, caplog: pytest.LogCaptureFixture) -> None:
    """More keys than are locked one by one, in two orders, beside calls for one key each."""
    number = sql._KEYS + 50
    async with brokers(schema, 3) as opened:
        await opened[0].set_limit(Limit(name="api", concurrency=1), now=NOW)

        async def push(through: PostgresBroker, name: str, keys: Sequence[int]) -> None:
            await through.push([of(f"k{n}", f"{name}{n}") for n in keys], now=NOW)

        await asyncio.gather(
            push(opened[0], "a", range(number)),
            push(opened[1], "b", range(number)[::-1]),
            *(push(opened[2], f"c{n}-", [n]) for n in range(20)),
        )
        ended: set[str] = set()
        for _ in range(10):
            jobs = [job for n, b in enumerate(opened)
                    for job in await b.claim("default", limit=number, worker=f"w{n}", now=NOW)]  # fmt: skip
            assert len({job.key for job in jobs}) == len(jobs)
            settled = await asyncio.gather(
                opened[0].settle([Outcome.succeed(job, 1) for job in jobs[::2]], now=NOW),
                opened[1].settle([Outcome.succeed(job, 1) for job in jobs[1::2][::-1]], now=NOW),
            )
            assert all(itertools.chain(*settled))
            ended.update(job.id for job in jobs)
            if len(ended) == 2 * number + 20:
                break
        assert len(ended) == 2 * number + 20
        assert [record.message for record in caplog.records if record.name == "flowrra"] == []


async def test_a_commit_whose_answer_is_lost_counts_once(schema: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lost: list[str] = []
    transaction = Session.transaction

    @contextlib.asynccontextmanager
    async def lose_the_first(session: Session) -> AsyncIterator[None]:
        async with transaction(session):
            yield
        if not lost:
            lost.append("the answer")
            raise ConnectionResetError("the answer was lost")

    monkeypatch.setattr(Session, "transaction", lose_the_first)
    async with brokers(schema, 1) as (broker,):
        await broker.set_limit(Limit(name="api", rate="1/m", burst=2), now=NOW)
        lost.clear()
        assert await broker.push([of("k", name) for name in "abc"], now=NOW) == ["a", "b", "c"]
        lost.clear()
        jobs = await broker.claim("default", limit=9, worker="w0", now=NOW)
        assert [job.id for job in jobs] == ["a", "b"]
        (state,) = await broker.limit_states(["api:k"])
        assert (state.running, state.pending, state.tat, state.due) == (2, 0, NOW + 120, NOW + 60)
        lost.clear()
        assert await broker.settle([Outcome.succeed(job, 1) for job in jobs], now=NOW) == [True, True]
        assert lost
        lost.clear()
        assert await broker.change(["api:k"], "pause", now=NOW) == [True]
        assert await broker.change(["api:k"], "pause", now=NOW) == [False]
