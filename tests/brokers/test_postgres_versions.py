"""A PostgreSQL store that an earlier Flowrra wrote is brought up to date when it is opened."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Iterator

import pytest

from flowrra import Activity, Attempt, Job, JobFilter, Limit, Outcome, TaskStatus, WorkerInfo
from flowrra_extras.postgres import PostgresBroker
from flowrra_extras.postgres import statements as sql
from tests.support.postgres_server import Connection, clean_schema
from tests.support.services import POSTGRES_URL

NOW = 1_700_000_000.0

pytestmark = pytest.mark.usefixtures("postgres_url")

# What the first version wrote. Stores of it are out in the world: its schema is not to be changed any more.
DIGEST_1 = "c7116bfb3d152bbeb713d704081363fd8fc49bee17ea45fd2c3005d4ddc6f38f"
ROWS_1 = """
INSERT INTO flowrra.job (id, task, queue, priority, status, payload, submitted, attempt, worker, started, finished,
        purge_at, result, error, history) VALUES
    ('good', 'task', 'default', 0, 'success', '[[1],{}]', 1, 1, 'w', 2, 3, 9e9, '7', NULL, NULL),
    ('bad', 'task', 'default', 0, 'failed', '[[],{}]', 1, 2, 'w', 2, 3, 9e9, NULL, 'KeyError: 1',
        '[[1, "w", 1, 1.5, "failure", "KeyError: 0", "line 1"]]'),
    ('ready', 'task', 'default', 0, 'pending', '[[2],{}]', 1, 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO flowrra.job (id, task, queue, priority, status, payload, submitted, due, parents) VALUES
    ('later', 'task', 'default', 0, 'scheduled', '[[],{}]', 1, 9e9, NULL),
    ('child', 'task', 'default', 0, 'blocked', '[[],{}]', 1, NULL, '["ready", "good", "ready"]'),
    ('freed', 'task', 'default', 5, 'pending', '[[],{}]', 1, NULL, '["good"]');
INSERT INTO flowrra.dependency SELECT parent.seq, child.seq FROM flowrra.job AS parent, flowrra.job AS child
    WHERE parent.id = 'ready' AND child.id = 'child';
UPDATE flowrra.job SET has_children = true WHERE id = 'ready';
INSERT INTO flowrra.paused VALUES ('slow');
UPDATE flowrra.meta SET version = 1
"""


@pytest.fixture
def url() -> Iterator[str]:
    with clean_schema(POSTGRES_URL) as (connection, schema):
        write_version(1, ROWS_1, connection, schema)
        yield f"{POSTGRES_URL}?schema={schema}"


def write_version(version: int, rows: str, connection: Connection, schema: str) -> None:
    for script in (f"CREATE SCHEMA {schema}", sql.META, *sql.MIGRATIONS[:version], rows):
        connection.execute(sql.in_schema(script, schema).encode())


@contextlib.asynccontextmanager
async def opened(version: int, rows: str) -> AsyncIterator[PostgresBroker]:
    """A broker on a store of an earlier version."""
    with clean_schema(POSTGRES_URL) as (connection, schema):
        write_version(version, rows, connection, schema)
        broker = PostgresBroker(f"{POSTGRES_URL}?schema={schema}")
        await broker.open()
        try:
            yield broker
        finally:
            await broker.close()


def test_the_first_schema_stays_as_it_was() -> None:
    assert hashlib.sha256(sql.MIGRATIONS[0].encode()).hexdigest() == DIGEST_1


async def test_a_store_of_the_first_version_lives_on(url: str) -> None:
    brokers = [PostgresBroker(url) for _ in range(4)]
    await asyncio.gather(*(broker.open() for broker in brokers))
    broker = brokers[0]
    try:
        assert [job.id for job in await broker.find(JobFilter())] == ["freed", "child", "later", "ready", "bad", "good"]
        assert await broker.paused() == {"slow"}
        assert [job.id for job in await broker.find(JobFilter(parent="good"))] == ["freed", "child"]
        (bad,) = await broker.find(JobFilter(status=frozenset((TaskStatus.FAILED,)), error="keyerror"))
        assert [attempt.error for attempt in bad.attempts] == ["KeyError: 0", "KeyError: 1"]
        worker = WorkerInfo("w1", queues={"default": 9}, memory=5, activity=[Activity(60, "task", 1)])
        await broker.heartbeat(worker, lease=60, now=120)
        assert [info.memory for info in await broker.workers()] == [5]
        assert await broker.activity(0) == [Activity(60, "task", 1)]
        ready, freed = await broker.claim("default", limit=9, worker="w1", now=NOW)
        assert (ready.id, freed.id) == ("ready", "freed")
        assert await broker.settle([Outcome.succeed(ready, 1), Outcome.succeed(freed, 1)], now=NOW) == [True, True]
        assert [job.id for job in await broker.claim("default", limit=9, worker="w1", now=NOW)] == ["child"]
        assert await broker.requeue(["bad"], now=NOW, by="Ada") == [True]
        (bad,) = await broker.find(JobFilter(ids=["bad"]))
        assert bad.attempts[-1] == Attempt(2, "Ada", NOW, NOW, "note", "requeued")
        assert [tuple(row) for row in await broker._run("SELECT version FROM flowrra.meta")] == [(len(sql.MIGRATIONS),)]
    finally:
        for each in brokers:
            await each.close()


# What the sixth version wrote: it kept who waits for whom in a table only, and forgot that of jobs that are held.
ROWS_6 = """
INSERT INTO flowrra.job (id, task, queue, priority, status, payload, submitted, parents, worker, has_children) VALUES
    ('one', 'task', 'default', 0, 'pending', '[[],{}]', 1, NULL, NULL, true),
    ('two', 'task', 'default', 0, 'pending', '[[],{}]', 1, NULL, NULL, true),
    ('child', 'task', 'default', 0, 'blocked', '[[],{}]', 1, '["one", "two"]', NULL, false),
    ('held', 'task', 'default', 0, 'blocked', '[[],{}]', 1, '["two"]', 'move', false);
INSERT INTO flowrra.dependency SELECT parent.seq, child.seq FROM flowrra.job AS parent, flowrra.job AS child
    WHERE parent.has_children AND child.id = 'child';
UPDATE flowrra.meta SET version = 6
"""


async def test_what_waits_in_a_store_of_the_sixth_version_goes_on_to_wait() -> None:
    async with opened(6, ROWS_6) as broker:
        jobs = await broker.find(JobFilter(status=frozenset((TaskStatus.BLOCKED,))))
        assert {job.id: job.waits for job in jobs} == {"child": 2, "held": 1}
        await broker.heartbeat(WorkerInfo("w"), lease=60, now=NOW)
        one, two = await broker.claim("default", limit=9, worker="w", now=NOW)
        await broker.settle([Outcome.succeed(one, 1)], now=NOW)
        assert await broker.claim("default", limit=9, worker="w", now=NOW) == []
        await broker.settle([Outcome.succeed(two, 1)], now=NOW)
        assert [job.id for job in await broker.claim("default", limit=9, worker="w", now=NOW)] == ["child"]
        assert await broker.change(["held"], "unhold", now=NOW, by="move") == [True]
        assert [job.id for job in await broker.claim("default", limit=9, worker="w", now=NOW)] == ["held"]


ROWS_8 = """
INSERT INTO flowrra.job
    (id, task, queue, priority, status, payload, submitted, due, parents, waits, has_children) VALUES
    ('low', 'task', 'default', 5, 'pending', '[[],{}]', 1, NULL, NULL, 0, false),
    ('ready', 'task', 'default', 0, 'pending', '[[],{}]', 1, NULL, NULL, 0, true),
    ('due', 'task', 'default', 0, 'scheduled', '[[],{}]', 1, 2, NULL, 0, false),
    ('child', 'task', 'default', 0, 'blocked', '[[],{}]', 1, NULL, '["ready"]', 1, false);
INSERT INTO flowrra.dependency SELECT parent.seq, child.seq FROM flowrra.job AS parent, flowrra.job AS child
    WHERE parent.has_children AND child.id = 'child';
UPDATE flowrra.meta SET version = 8
"""


async def test_a_store_of_the_eighth_version_gets_limits() -> None:
    async with opened(8, ROWS_8) as broker:
        await broker.heartbeat(WorkerInfo("w"), lease=60, now=NOW)
        await broker.set_limit(Limit(name="api", concurrency=1), now=NOW)
        await broker.push([Job(task_id, "task", limit="api") for task_id in ("new", "next")], now=NOW)
        jobs = await broker.claim("default", limit=9, worker="w", now=NOW)
        assert [job.id for job in jobs] == ["ready", "due", "new", "low"]
        assert await broker.settle([Outcome.succeed(job, 1) for job in jobs], now=NOW) == [True] * 4
        assert [job.id for job in await broker.claim("default", limit=9, worker="w", now=NOW)] == ["child", "next"]


# What the ninth version wrote. Its index for purges had the times as they are, whatever they are.
ROWS_9 = """
INSERT INTO flowrra.job (id, task, queue, priority, status, payload, submitted, finished, purge_at) VALUES
    ('forever', 'task', 'default', 0, 'success', '[[],{}]', 1, 2, 1.7e308),
    ('later', 'task', 'default', 0, 'success', '[[],{}]', 1, 2, 10.75),
    ('now', 'task', 'default', 0, 'success', '[[],{}]', 1, 2, 10.5),
    ('before', 'task', 'default', 0, 'success', '[[],{}]', 1, 2, 3);
UPDATE flowrra.meta SET version = 9
"""


async def test_a_store_of_the_ninth_version_is_purged_to_the_moment() -> None:
    async with opened(9, ROWS_9) as broker:
        assert await broker.remove(before=10.5) == ["before"]
        assert await broker.remove(before=10.6) == ["now"]
        assert await broker.remove(before=1.7e308) == ["later"]
        assert [job.id for job in await broker.find(JobFilter())] == ["forever"]
