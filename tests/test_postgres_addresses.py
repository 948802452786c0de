"""URLs of PostgreSQL as hosted databases hand them out: the broker and the store of schedules take the same ones."""

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from flowrra import BackendError, BrokerConfig, BrokerError, ConfigError, Flowrra, Job
from flowrra_extras.postgres import PostgresBroker
from flowrra_extras.scheduler import store_from_url
from tests.apps import eventually
from tests.postgres_server import Server, clean_schema
from tests.services import POSTGRES_URL, address

pytestmark = pytest.mark.usefixtures("postgres_url")


@pytest.fixture
def schema() -> Iterator[str]:
    with clean_schema(POSTGRES_URL) as (_, schema):
        yield schema


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


def test_what_cannot_be_had_is_refused() -> None:
    for make in (PostgresBroker, store_from_url):
        with pytest.raises(ConfigError, match="host/db: gssencmode=require cannot be had"):
            make("postgresql://user:secret@host/db?gssencmode=require")
        with pytest.raises(ConfigError, match="unknown option 'timeout'"):
            make("postgresql://user:secret@host/db?timeout=3")


def test_what_is_left_out_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        PostgresBroker("postgresql://user:secret@host/db?channel_binding=require&sslmode=require")
    assert "host/db: channel_binding=require cannot be had with asyncpg" in caplog.text
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
        async with asyncio.timeout(5):
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
