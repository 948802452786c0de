"""URLs of PostgreSQL as hosted databases hand them out: the broker and the store of schedules take the same ones."""

import asyncio
import logging
import urllib.parse
from pathlib import Path

import psycopg
import pytest

from flowrra import BackendError, BrokerConfig, BrokerError, ConfigError, Fired, Flowrra, Job, JobFilter
from flowrra_extras.contracts.schedules import schedule
from flowrra_extras.postgres import PostgresBroker
from flowrra_extras.scheduler import store_from_url
from tests.support.apps import eventually
from tests.support.pgbouncer_server import pgbouncer
from tests.support.postgres_server import Server
from tests.support.services import POSTGRES_URL, address

pytestmark = pytest.mark.usefixtures("postgres_url")


@pytest.mark.parametrize(
    "options",
    [
        "connect_timeout=10&sslmode=prefer",
        "channel_binding=prefer&gssencmode=disable",
        "keepalives=1&keepalives_idle=30&keepalives_interval=10&keepalives_count=5&tcp_user_timeout=9000",
        "options=-c%20statement_timeout%3D9000",
        "search_path=public",
        "statement_cache_size=0",
        "pool_size=2&synchronous_commit=off&application_name=shop",
    ],
)
async def test_what_hosted_databases_hand_out_is_taken(schema: str, options: str) -> None:
    url = f"{POSTGRES_URL}?{options}&schema={schema}"
    broker, store = PostgresBroker(url), store_from_url(url)
    await broker.open()
    await broker.push([Job("a", "task")], now=0.0)
    if "options" in options:
        assert (await broker._run("SELECT current_setting('statement_timeout')"))[0][0] == "9s"
    await broker.close()
    await store.open()
    assert await store.find() == []
    await store.close()
    with psycopg.connect(POSTGRES_URL) as connection:
        tables = connection.execute("SELECT relname FROM pg_class WHERE relnamespace = %s::regnamespace", [schema])
        assert {"job", "flowrra_schedule"} <= {name for (name,) in tables}


async def test_one_of_several_hosts_is_there(schema: str) -> None:
    host, port = address(POSTGRES_URL)
    for where in (f"{host}:1,{host}:{port}/test?", f"/test?host={host},{host}&port=1,{port}&"):
        url = f"postgresql://postgres@{where}schema={schema}&target_session_attrs=read-write"
        for store in (PostgresBroker(url), store_from_url(url)):
            await store.open()
            await store.close()


async def use_both(url: str) -> None:
    """Push a job and store a schedule, each read back by another handle on the same URL."""
    for number in range(2):
        broker, store = PostgresBroker(url), store_from_url(url)
        await broker.open()
        await broker.push([Job(f"job{number}", "task")], now=0.0)
        assert len(await broker.find(JobFilter())) == number + 1
        await broker.close()
        await store.open()
        await store.add(schedule(f"s{number}", next_fire=1.0))
        assert [one.id for one in await store.take(now=1.0, lease=60, limit=9)] == [f"s{number}"]
        assert await store.advance([Fired(f"s{number}", 1, None, 1.0, None)]) == [True]
        await store.close()


async def test_a_pooler_in_transaction_mode_serves_both(schema: str) -> None:
    """The store names its schema in each statement: the pooler refuses a search_path."""
    with pgbouncer(POSTGRES_URL) as pooler:
        await use_both(f"{pooler}?schema={schema}&statement_cache_size=0")


async def test_a_socket_serves_both(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        folder = urllib.parse.quote(str(server.socket_folder), safe="")
        await use_both(f"postgresql:///postgres?host={folder}&port={server.port}&user=postgres&schema=one")
        await use_both(f"postgresql://postgres@{folder}:{server.port}/postgres?schema=other")


async def test_no_message_of_either_has_the_password(schema: str) -> None:
    host, port = address(POSTGRES_URL)
    url = f"postgresql://nobody:top%2Fsecret@{host}:{port}/test?schema={schema}&sslmode=disable"
    for store in (PostgresBroker(url), store_from_url(url)):
        with pytest.raises(BackendError, match=f"{host}:{port}/test") as caught:
            await store.open()
        assert "secret" not in f"{caught.value!r} {caught.value.__cause__!r}"


async def test_a_database_that_does_not_exist_is_told_what_to_do() -> None:
    host, port = address(POSTGRES_URL)
    with pytest.raises(BrokerError, match='database "nothing" does not exist; create it, for example with createdb'):
        await PostgresBroker(f"postgresql://postgres@{host}:{port}/nothing").open()


async def test_a_wrong_sslmode_is_told_by_both(schema: str) -> None:
    url = f"{POSTGRES_URL}?sslmode=require&schema={schema}"
    for store in (PostgresBroker(url, BrokerConfig(timeout=0.5)), store_from_url(url)):
        with pytest.raises(BackendError, match=r"(?i)ssl"):
            await store.open()


def test_what_cannot_be_had_is_refused() -> None:
    for make in (PostgresBroker, store_from_url):
        with pytest.raises(ConfigError, match="host/db: gssencmode=require is not supported by asyncpg"):
            make("postgresql://user:secret@host/db?gssencmode=require")
        with pytest.raises(ConfigError, match="unknown option 'timeout'"):
            make("postgresql://user:secret@host/db?timeout=3")


def test_what_is_left_out_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        PostgresBroker("postgresql://user:secret@host/db?channel_binding=require&sslmode=require")
    assert "host/db: channel_binding=require is not supported by asyncpg" in caplog.text
    assert "secret" not in caplog.text


async def test_a_worker_has_as_many_connections_as_documented(schema: str) -> None:
    """With pool_size=1: that one, one that listens, and two of the heartbeat."""
    app = Flowrra.from_urls(f"{POSTGRES_URL}?schema={schema}&pool_size=1&application_name={schema}")

    @app.task
    async def noop(number: int) -> int:
        return number

    with psycopg.connect(POSTGRES_URL, autocommit=True) as observer:

        def count() -> int:
            query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s"
            return int(observer.execute(query, [schema]).fetchall()[0][0])

        async with app:
            jobs = await app.submit_many(noop, [(n,) for n in range(200)])
            await asyncio.gather(*(app.wait_for_result(job, timeout=20.0) for job in jobs))
            await eventually(lambda: count() == 4)
            await asyncio.gather(*(app.jobs(limit=1) for _ in range(20)))
            assert count() == 4


async def test_a_standby_is_named_at_once(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        server.become_standby()
        async with asyncio.timeout(20):
            broker = PostgresBroker(server.url, BrokerConfig(timeout=30.0))
            with pytest.raises(BrokerError, match=r"is a standby, .*target_session_attrs=read-write"):
                await broker.open()
            with pytest.raises(BackendError, match=r"is a standby, .*target_session_attrs=read-write"):
                await store_from_url(server.url).open()


async def test_a_call_that_meets_a_standby_for_too_long_names_the_option(tmp_path: Path) -> None:
    """As after a failover that leads nowhere else."""
    with Server(tmp_path) as server:
        broker = PostgresBroker(server.url, BrokerConfig(timeout=0.5))
        await broker.open()
        await asyncio.to_thread(server.read_only, True)
        with pytest.raises(BrokerError, match=r"read-only transaction; .*target_session_attrs=read-write"):
            await broker.push([Job("a", "task")], now=0.0)
        await broker.close()
