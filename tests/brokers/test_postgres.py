"""PostgreSQL as broker: the contract, the model, and what is particular to it."""

import asyncio
import contextlib
import gc
import urllib.parse
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from flowrra import (
    Broker,
    BrokerConfig,
    BrokerError,
    ConfigError,
    Flowrra,
    Job,
    JobFilter,
    Outcome,
    SerializationError,
    TaskNotFoundError,
    TaskStatus,
    WorkerInfo,
    result_of,
)
from flowrra_extras.contracts import BrokerContract
from flowrra_extras.postgres import PostgresBroker, notifications
from flowrra_extras.postgres import statements as sql
from flowrra_extras.testing import ManualClock
from tests.brokers.test_state_machine import BrokerMachine
from tests.support.apps import eventually
from tests.support.postgres_server import Connection, age_leases, empty
from tests.support.redis_server import free_port
from tests.support.services import POSTGRES_URL

NOW = 1_700_000_000.0

pytestmark = pytest.mark.usefixtures("postgres_url")


class TestPostgres(BrokerContract):
    @pytest.fixture(autouse=True)
    def use_schema(self, schema_of_module: tuple[Connection, str]) -> None:
        self.connection, self.schema = schema_of_module

    async def make_broker(self, clock: ManualClock) -> Broker:
        """Some tests ask for several, each on an empty store."""
        empty(self.connection, self.schema)
        return PostgresBroker(f"{POSTGRES_URL}?schema={self.schema}", clock=clock)

    async def let_pass(self, broker: Broker, clock: ManualClock, seconds: float) -> None:
        clock.advance(seconds)
        age_leases(self.connection, self.schema, seconds)


class PostgresMachine(BrokerMachine):
    always_promotes = False
    connection: Connection
    schema: str

    @classmethod
    def make_broker(cls, folder: Path, clock: ManualClock) -> Broker:
        return PostgresBroker(f"{POSTGRES_URL}?schema={cls.schema}", clock=clock)

    def let_pass(self, seconds: float) -> None:
        super().let_pass(seconds)
        age_leases(self.connection, self.schema, seconds)

    def teardown(self) -> None:
        super().teardown()
        empty(self.connection, self.schema)


@pytest.mark.timeout(600)  # a failure is made small first, which takes its time
def test_the_broker_agrees_with_the_model(schema_of_module: tuple[Connection, str]) -> None:
    PostgresMachine.connection, PostgresMachine.schema = schema_of_module
    empty(*schema_of_module)
    chosen = settings(
        max_examples=40, stateful_step_count=30, suppress_health_check=[HealthCheck.too_slow], deadline=None
    )
    run_state_machine_as_test(PostgresMachine, settings=chosen)


# ---------------------------------------------------------------------------
# The URL
# ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("postgresql://host/db?timeout=3", "unknown option 'timeout'"),
        ("postgresql://host/db?schema=Jobs", "schema must be"),
        ("postgresql://host/db?schema=pg_jobs", "schema must be"),
        ("postgresql://host/db?pool_size=0", "pool_size must be a whole number of at least 1, not '0'"),
        ("postgresql://host/db?statement_cache_size=many", "statement_cache_size must be a whole number"),
        ("postgresql://host/db?synchronous_commit=maybe", "synchronous_commit must be one of on, off"),
        ("postgresql://host/db?synchronous_commit=off&statement_cache_size=0", "leave it out behind a pooler"),
        ("postgresql://user:secret@host:port/db", "must be a number from 1 to 65535"),
    ],
)
def test_a_url_that_cannot_work_is_refused(url: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        Flowrra.from_urls(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgres://",
        "postgresql:///db?host=/var/run/postgresql&schema=billing",
        "postgresql://us%40er:p%2Fw@[::1]:5432/db?sslmode=require",
        "postgresql://one:1,two:2/db?target_session_attrs=read-write&application_name=shop",
    ],
)
def test_urls_that_can_work(url: str) -> None:
    assert isinstance(Flowrra.from_urls(url).broker, PostgresBroker)


@pytest.fixture
def url(schema: str) -> str:
    return f"{POSTGRES_URL}?schema={schema}"


@contextlib.asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[PostgresBroker]:
    broker = PostgresBroker(url, BrokerConfig(**options))
    await broker.open()
    try:
        yield broker
    finally:
        await broker.close()


async def test_the_url_says_how_commits_are_made(url: str) -> None:
    async with opened(f"{url}&synchronous_commit=off&application_name=shop") as broker:
        (row,) = await broker._run("SELECT current_setting('synchronous_commit'), current_setting('application_name')")
        assert tuple(row) == ("off", "shop")


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [("postgresql://nobody@127.0.0.1:5432/test", "nobody"), ("postgresql://postgres@127.0.0.1:5432/none", "none")],
)
async def test_who_is_not_let_in_is_told_at_once(wrong: str, complaint: str) -> None:
    broker = PostgresBroker(wrong)
    async with asyncio.timeout(20):
        with pytest.raises(BrokerError, match=complaint):
            await broker.open()


async def test_a_server_that_is_not_there_is_named_after_the_timeout() -> None:
    url = f"postgresql://user:secret@127.0.0.1:{free_port()}/db"
    broker = PostgresBroker(url, BrokerConfig(timeout=0.2))
    with pytest.raises(
        BrokerError, match=r"127\.0\.0\.1:\d+/db has not answered for 0\.2 s: .*Connect call failed"
    ) as caught:
        await broker.open()
    assert "secret" not in str(caught.value)
    with pytest.raises(BrokerError, match="is not open"):
        await broker.get(["a"])


# ---------------------------------------------------------------------------
# The schema
# ---------------------------------------------------------------------------


async def test_many_may_open_a_new_store_at_once(url: str) -> None:
    brokers = [PostgresBroker(url) for _ in range(5)]
    await asyncio.gather(*(broker.open() for broker in brokers))
    assert len({broker.store_id for broker in brokers}) == 1
    assert await brokers[0].push([Job("a", "task")], now=NOW) == ["a"]
    assert [job.id for job in await brokers[4].find(JobFilter())] == ["a"]
    for broker in brokers:
        await broker.close()


async def test_a_migration_may_take_longer_than_a_call(url: str, schema: str) -> None:
    with psycopg.connect(POSTGRES_URL) as other:
        other.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [f"flowrra {schema}"])
        broker = PostgresBroker(url, BrokerConfig(timeout=2.0))
        opening = asyncio.create_task(broker.open())
        done, _ = await asyncio.wait([opening], timeout=2.5)
        assert not done
    await opening
    await broker.close()


async def test_a_newer_schema_is_refused(url: str, schema: str) -> None:
    async with opened(url) as broker:
        await broker._run("UPDATE flowrra.meta SET version = 99")
    with pytest.raises(BrokerError, match=f"has version 99, newer than the {len(sql.MIGRATIONS)} of this flowrra"):
        await PostgresBroker(url).open()


async def test_a_user_who_may_not_create_opens_what_is_there(url: str, schema: str) -> None:
    role = f"{schema}_user"
    with psycopg.connect(POSTGRES_URL, autocommit=True) as connection:
        async with opened(url):
            pass
        connection.execute(f"CREATE ROLE {role} LOGIN".encode())
        try:
            connection.execute(f"GRANT USAGE ON SCHEMA {schema} TO {role}".encode())
            rights = "SELECT, INSERT, UPDATE, DELETE ON ALL TABLES"
            connection.execute(f"GRANT {rights} IN SCHEMA {schema} TO {role}".encode())
            parts = urllib.parse.urlsplit(url)
            guest = parts._replace(netloc=f"{role}@{parts.netloc.rpartition('@')[2]}").geturl()
            async with opened(guest) as broker:
                assert await broker.push([Job("a", "task")], now=NOW) == ["a"]
            elsewhere = guest.replace(f"schema={schema}", f"schema={schema}_x")
            with pytest.raises(BrokerError, match=rf"permission denied .* on the tables of schema {schema}_x"):
                await PostgresBroker(elsewhere).open()
            connection.execute(f"CREATE SCHEMA {schema}_x AUTHORIZATION {role}".encode())
            async with opened(elsewhere) as broker:
                assert await broker.push([Job("a", "task")], now=NOW) == ["a"]
        finally:
            connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())


async def test_the_schema_refuses_states_that_cannot_be(url: str) -> None:
    async with opened(url) as broker:
        await broker.push([Job("a", "task")], now=NOW)
        for change in ("status = 'running'", "status = 'success'", "status = 'lost'", "finished = 1"):
            with pytest.raises(BrokerError, match="violates check constraint"):
                await broker._run(f"UPDATE flowrra.job SET {change}")  # noqa: S608 (our own statements)


# ---------------------------------------------------------------------------
# Values
# ---------------------------------------------------------------------------


async def test_text_that_postgresql_cannot_hold(url: str) -> None:
    """In a message it is written out; as an id it is refused, and only that call fails."""
    async with opened(url) as broker:
        tries = [broker.push([Job(task_id, "task")], now=NOW) for task_id in ("a", "nul\0", "half \ud800", "b")]
        a, nul, half, b = await asyncio.gather(*tries, return_exceptions=True)
        assert (a, b) == (["a"], ["b"])
        assert isinstance(nul, SerializationError)
        assert isinstance(half, SerializationError)
        await broker.heartbeat(WorkerInfo("w"), lease=60, now=NOW)
        first, second = await broker.claim("default", limit=2, worker="w", now=NOW)
        outcomes = [Outcome.fail(first, "nul \0", "half \ud800"), Outcome.succeed(second, "\0\ud800")]
        assert await broker.settle(outcomes, now=NOW) == [True, True]
        failed, succeeded = await broker.get(["a", "b"])
        assert failed is not None
        assert succeeded is not None
        assert (failed.error, failed.traceback, succeeded.result) == ("nul \\0", "half \\ud800", "\0\ud800")


async def test_a_large_push_is_one_transaction(url: str) -> None:
    async with opened(url) as broker:
        jobs = [Job(f"j{n}", "task", args=(n,)) for n in range(5_000)]
        assert await broker.push(jobs, now=NOW) == [job.id for job in jobs]
        assert [job.id for job in await broker.find(JobFilter(), limit=3)] == ["j4999", "j4998", "j4997"]
        more = [Job(f"k{n}", "task", args=(n if n < 4_500 else object(),)) for n in range(5_000)]
        with pytest.raises(SerializationError):
            await broker.push(more, now=NOW)
        assert sum((await broker.counts()).values()) == 5_000


async def test_an_urgent_job_of_another_process_overtakes_a_backlog(url: str) -> None:
    async with opened(url) as worker, opened(url) as producer:
        await producer.push([Job(f"j{n}", "task") for n in range(50)], now=NOW)
        await worker.heartbeat(WorkerInfo("w"), lease=60, now=NOW)
        ids = [job.id for job in await worker.claim("default", limit=2, worker="w", now=NOW)]
        ids += [job.id for job in await worker.claim("default", limit=2, worker="w", now=NOW + 0.01)]
        assert ids == ["j0", "j1", "j2", "j3"]
        await producer.push([Job("urgent", "task", priority=-1)], now=NOW)
        assert [job.id for job in await worker.claim("default", limit=2, worker="w", now=NOW + 5)] == ["urgent", "j4"]


# ---------------------------------------------------------------------------
# Inside the caller's transaction
# ---------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def callers(kind: str) -> AsyncIterator[Any]:
    if kind == "asyncpg":
        connection: Any = await asyncpg.connect(POSTGRES_URL)
        yield connection
        await connection.close()
    elif kind == "psycopg async":
        async with await psycopg.AsyncConnection.connect(POSTGRES_URL) as connection:
            yield connection
            await connection.rollback()
    else:
        with psycopg.connect(POSTGRES_URL) as connection:
            yield connection
            connection.rollback()


async def finish(connection: Any, word: str) -> None:
    done = connection.execute(word)
    if not isinstance(connection, psycopg.Connection):
        await done


KINDS = ("asyncpg", "psycopg async", "psycopg")


@pytest.mark.parametrize("kind", KINDS)
async def test_a_job_is_there_if_the_callers_transaction_commits(url: str, kind: str) -> None:
    app = Flowrra.from_urls(url)

    @app.task
    async def greet(name: str) -> str:
        return f"hello {name}"

    async with app.client(), callers(kind) as connection:
        await finish(connection, "BEGIN")
        lost = await app.submit_in(connection, greet, "nobody")
        await finish(connection, "ROLLBACK")
        await finish(connection, "BEGIN")
        kept = await app.submit_in(connection, greet, "Ada")
        child = await app.submit_in(connection, greet, result_of(kept))
        assert await app.get_result(kept) is None
        await finish(connection, "COMMIT")
        assert await app.get_result(lost) is None
        assert [job.id for job in await app.jobs()] == [child, kept]
        assert (await app.get_job(child)).status is TaskStatus.BLOCKED


@pytest.mark.parametrize("kind", KINDS)
async def test_what_is_refused_leaves_the_callers_transaction_as_it_was(url: str, kind: str) -> None:
    async with opened(url) as broker, callers(kind) as connection:
        await finish(connection, "BEGIN")
        await broker.push_in(connection, [Job("a", "task")], now=NOW)
        with pytest.raises(TaskNotFoundError):
            await broker.push_in(connection, [Job("b", "task"), Job("c", "task", parents=("nobody",))], now=NOW)
        assert await broker.push_in(connection, [Job("d", "task"), Job("a", "task")], now=NOW) == ["d", "a"]
        await finish(connection, "COMMIT")
        assert [job.id for job in await broker.find(JobFilter())] == ["d", "a"]


async def test_a_connection_that_cannot_do_is_refused(url: str) -> None:
    async with opened(url) as broker, callers("asyncpg") as connection:
        with pytest.raises(ConfigError, match="not in a transaction"):
            await broker.push_in(connection, [Job("a", "task")], now=NOW)
        with pytest.raises(ConfigError, match="takes a connection of asyncpg or psycopg here, not object"):
            await broker.push_in(object(), [Job("a", "task")], now=NOW)
        elsewhere = await asyncpg.connect(POSTGRES_URL, database="postgres")
        async with elsewhere.transaction():
            with pytest.raises(ConfigError, match="another database"):
                await broker.push_in(elsewhere, [Job("a", "task")], now=NOW)
            assert await elsewhere.fetchval("SELECT 1") == 1
        await elsewhere.close()


async def test_who_waits_is_told_by_the_callers_commit(url: str) -> None:
    async with opened(url) as worker, opened(url) as producer, callers("asyncpg") as connection:
        await worker.heartbeat(WorkerInfo("w"), lease=60, now=NOW)
        await worker.wait([("queue", "default")], 0.2)
        while not worker._groups.notifications.listener._subscribed:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert await worker.claim("default", limit=1, worker="w", now=NOW) == []
        async with connection.transaction():
            await producer.push_in(connection, [Job("a", "task")], now=NOW)
        began = asyncio.get_running_loop().time()
        await worker.wait([("queue", "default")], 5)
        assert asyncio.get_running_loop().time() - began < 0.9, "a look comes after a second"
        assert [job.id for job in await worker.claim("default", limit=1, worker="w", now=NOW)] == ["a"]


# ---------------------------------------------------------------------------
# Connections
# ---------------------------------------------------------------------------


async def test_connections_are_bounded_and_given_back(url: str, schema: str) -> None:
    with psycopg.connect(POSTGRES_URL, autocommit=True) as observer:

        def count() -> int:
            query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s"
            row = observer.execute(query, [schema]).fetchone()
            assert row is not None
            return int(row[0])

        async with opened(f"{url}&pool_size=3&application_name={schema}") as broker:
            await broker.push([Job(f"j{n}", "task") for n in range(20)], now=NOW)
            waits = [asyncio.create_task(broker.wait_for(f"j{n}", None)) for n in range(20)]
            await asyncio.gather(*(broker.find(JobFilter(ids=["j1"])) for _ in range(50)))
            abandoned = [asyncio.create_task(broker.counts()) for _ in range(10)]
            await asyncio.sleep(0)
            for task in (*waits, *abandoned):
                task.cancel()
            await asyncio.gather(*waits, *abandoned, return_exceptions=True)
            assert len(await broker.get(["j1"])) == 1
            await eventually(lambda: count() <= 4, "three connections, and one that listens")
        await eventually(lambda: count() == 0, "no connection is left")


async def test_who_waits_while_the_broker_is_closed_leaves_nothing(url: str) -> None:
    async with opened(url) as broker:
        await broker.push([Job("a", "task")], now=NOW)
        listening = broker._groups.notifications
        wait = asyncio.create_task(broker.wait_for("a", None))
        await eventually(lambda: bool(listening._awaited))
        assert await broker.get(["a"]), "it has looked by now, and waits"
    with pytest.raises(BrokerError):
        await wait
    listening.listener.want("more")
    assert len(asyncio.all_tasks()) == 1, "nobody listens"
    del wait
    gc.collect()  # an exception that nobody fetched is complained of


@pytest.mark.parametrize(("option", "polls"), [("", False), ("&statement_cache_size=0", True)])
async def test_an_idle_queue_is_polled_only_if_no_notification_arrives(
    url: str, option: str, polls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifications, "LOOK_EVERY", 0.02)
    async with opened(f"{url}{option}") as broker:
        listener, channel = broker._groups.notifications.listener, broker._groups.notifications._jobs
        listener.want(channel)
        await eventually(lambda: polls or listener.receives(channel))
        assert await broker.claim("default", limit=1, worker="w", now=NOW) == []
        began = asyncio.get_running_loop().time()
        await broker.wait([("queue", "default")], 0.2)
        assert (asyncio.get_running_loop().time() - began < 0.2) is polls


@pytest.mark.parametrize("turns", [0, 1, 2])
async def test_a_listener_that_is_closed_just_as_it_is_called_ends(url: str, turns: int) -> None:
    async with opened(url) as broker:
        listener = broker._groups.notifications.listener
        listener.want("one")
        await eventually(lambda: "one" in listener._subscribed)
        await asyncio.sleep(0)  # it waits to be called now
        listener.want("two")
        for _ in range(turns):
            await asyncio.sleep(0)
        async with asyncio.timeout(20):
            await listener.close()


async def test_behind_a_pooler_nothing_is_kept_in_a_session(url: str) -> None:
    """No prepared statement, no setting, no LISTEN: looks alone bring news, and the end of a wait."""
    async with opened(f"{url}&statement_cache_size=0") as broker:
        await broker.push([Job("a", "task"), Job("b", "task")], now=NOW)
        await broker.heartbeat(WorkerInfo("w"), lease=60, now=NOW)
        first, second = await broker.claim("default", limit=2, worker="w", now=NOW)
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            wait = group.create_task(broker.wait_for("a", None))
            async with opened(url) as other:
                assert await other.settle([Outcome.succeed(first, 1), Outcome.fail(second, "x")], now=NOW) == [True] * 2
        assert wait.result().result == 1
        for text in (
            "SELECT count(*) FROM pg_prepared_statements",
            "SELECT count(*) FROM pg_listening_channels()",
            "SELECT count(*) FROM pg_settings WHERE source = 'client' AND name IN ('jit', 'enable_seqscan')",
        ):
            assert (await broker._run(text))[0][0] == 0


@pytest.mark.filterwarnings("ignore:.*unclosed", "ignore:.*_SelectorTransport.__del__", "ignore:.*socket.socket")
async def test_a_store_is_opened_again_on_another_loop(url: str) -> None:
    """After a loop that ended without closing it."""
    broker = PostgresBroker(url)
    await asyncio.to_thread(asyncio.run, broker.open())
    await broker.open()
    assert await broker.push([Job("a", "task")], now=NOW) == ["a"]
    await broker.close()
    gc.collect()  # here, where what the loop has left open is expected
