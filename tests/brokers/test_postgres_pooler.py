"""PostgreSQL behind pgbouncer in transaction mode, where a session is ours for one transaction only."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from flowrra import Broker, BrokerConfig, BrokerError, Flowrra, Job, Outcome, WorkerInfo
from flowrra_extras.contracts import BrokerContract
from flowrra_extras.postgres import PostgresBroker, statements
from flowrra_extras.postgres.connections import ARRAYS
from flowrra_extras.testing import ManualClock
from tests.support.pgbouncer_server import pgbouncer
from tests.support.postgres_server import Connection, age_leases, clean_schema, empty
from tests.support.services import POSTGRES_URL

NOW = 1_700_000_000.0

pytestmark = pytest.mark.usefixtures("postgres_url")


@pytest.fixture(scope="module")
def pooler() -> Iterator[str]:
    with pgbouncer(POSTGRES_URL) as url:
        yield url


@pytest.fixture
def url(pooler: str) -> Iterator[str]:
    with clean_schema(POSTGRES_URL) as (_, schema):
        yield f"{pooler}?schema={schema}&statement_cache_size=0"


class TestPooled(BrokerContract):
    """All that a broker promises, but for walks through all states, which take a minute and are on one connection."""

    test_no_move_but_those_of_the_table = None  # type: ignore[assignment]
    test_every_move_of_the_table_can_be_made = None  # type: ignore[assignment]

    @pytest.fixture(autouse=True)
    def use_schema(self, pooler: str, schema_of_module: tuple[Connection, str]) -> None:
        self.pooler = pooler
        self.connection, self.schema = schema_of_module

    async def make_broker(self, clock: ManualClock) -> Broker:
        empty(self.connection, self.schema)
        return PostgresBroker(f"{self.pooler}?schema={self.schema}&statement_cache_size=0", clock=clock)

    async def let_pass(self, broker: Broker, clock: ManualClock, seconds: float) -> None:
        clock.advance(seconds)
        age_leases(self.connection, self.schema, seconds)


async def test_more_callers_than_sessions_get_their_own_answers(url: str) -> None:
    brokers = [PostgresBroker(url) for _ in range(4)]
    await asyncio.gather(*(broker.open() for broker in brokers))

    async def use(number: int, broker: PostgresBroker) -> None:
        await broker.heartbeat(WorkerInfo(f"w{number}"), lease=60, now=NOW)
        for turn in range(20):
            task_id = f"{number}-{turn}"
            jobs = [Job(task_id, "task", queue=f"q{number}"), Job(f"{task_id}-child", "task", parents=(task_id,))]
            assert await broker.push(jobs, now=NOW) == [job.id for job in jobs]
            (job,) = await broker.claim(f"q{number}", limit=1, worker=f"w{number}", now=NOW)
            assert job.id == task_id
            assert await broker.settle([Outcome.succeed(job, task_id)], now=NOW) == [True]
            (result,) = await broker.get([task_id])
            assert result is not None
            assert result.result == task_id
            assert await broker.cancel(f"{task_id}-child", now=NOW)

    await asyncio.gather(*(use(number, broker) for number, broker in enumerate(brokers)))
    for broker in brokers:
        await broker.close()


async def test_a_worker_and_a_waiting_client_need_no_notifications(url: str) -> None:
    app = Flowrra.from_urls(url)

    @app.task
    async def double(n: int) -> int:
        return 2 * n

    async with asyncio.timeout(30), app:
        ids = [await app.submit(double, n) for n in range(5)]
        assert [(await app.wait_for_result(task_id)).result for task_id in ids] == [0, 2, 4, 6, 8]


async def test_no_setting_stays_in_a_session_that_others_get(url: str, pooler: str) -> None:
    """Heartbeats, claims and progress do not wait for the disk; what others commit on that session does."""
    broker = PostgresBroker(url)
    await broker.open()
    await broker.push([Job("a", "task")], now=NOW)
    await broker.heartbeat(WorkerInfo("w"), lease=60, now=NOW)
    assert len(await broker.claim("default", limit=1, worker="w", now=NOW)) == 1
    await broker.close()
    with psycopg.connect(pooler, autocommit=True, prepare_threshold=None) as connection:
        ours = (
            "SELECT setting = reset_val FROM pg_settings WHERE name IN ('synchronous_commit', 'enable_seqscan', 'jit')"
        )
        assert connection.execute(ours).fetchall() == [(True,)] * 3
        assert connection.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() == (0,)


def test_every_array_of_a_statement_is_learned_when_a_connection_is_made() -> None:
    """Else asyncpg looks it up in the middle of things, and leaves jit off in a session that others get."""
    texts = " ".join(path.read_text(encoding="utf-8") for path in Path(statements.__file__).parent.glob("*.py"))
    used = set(re.findall(r"\$\d+::(\w+)\[\]", texts))
    assert {"bigint", "integer", "text"} <= used
    assert used - {"text"} <= set(ARRAYS)  # text[] is built into asyncpg


async def test_who_does_not_say_that_there_is_a_pooler_is_told_how(pooler: str) -> None:
    broker = PostgresBroker(f"{pooler}?schema=flowrra_never", BrokerConfig(timeout=5))
    with pytest.raises(BrokerError, match=r"unsupported startup parameter.*statement_cache_size=0"):
        await broker.open()
