"""A SQLite store that an earlier Flowrra wrote is brought up to date when it is opened."""

import contextlib
import os
import sqlite3
from pathlib import Path

import pytest

import flowrra
from flowrra import Activity, Attempt, Job, JobFilter, Outcome, SQLiteBroker, TaskStatus, WorkerInfo
from tests.support.apps import opened

NOW = 1_700_000_000.0

# What the first version wrote, of which stores are out in the world.
SCHEMA_1 = """
CREATE TABLE flowrra_job (
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, task TEXT NOT NULL, queue TEXT NOT NULL, priority INTEGER NOT
    NULL, status TEXT NOT NULL, payload TEXT NOT NULL, submitted REAL NOT NULL, due REAL, expires REAL, unique_key
    TEXT, parents TEXT, overrides TEXT, attempt INTEGER NOT NULL DEFAULT 0, failures INTEGER NOT NULL DEFAULT 0,
    crashes INTEGER NOT NULL DEFAULT 0, cancel_requested INTEGER NOT NULL DEFAULT 0, worker TEXT, started REAL,
    finished REAL, purge_at REAL, result TEXT, error TEXT, traceback TEXT, progress TEXT, history TEXT,
    CHECK (CASE status
        WHEN 'pending' THEN finished IS NULL
        WHEN 'running' THEN finished IS NULL AND attempt > 0 AND worker IS NOT NULL AND started IS NOT NULL
        WHEN 'success' THEN finished IS NOT NULL AND attempt > 0
        WHEN 'scheduled' THEN finished IS NULL AND due IS NOT NULL
        WHEN 'retrying' THEN finished IS NULL AND due IS NOT NULL AND failures > 0
        WHEN 'blocked' THEN finished IS NULL
        WHEN 'failed' THEN finished IS NOT NULL
        WHEN 'cancelled' THEN finished IS NOT NULL
        ELSE false END)
);
CREATE INDEX flowrra_ready ON flowrra_job (queue, priority, seq) WHERE status = 'pending' AND crashes = 0;
CREATE INDEX flowrra_suspect ON flowrra_job (queue, crashes, priority, seq) WHERE status = 'pending' AND crashes > 0;
CREATE INDEX flowrra_due ON flowrra_job (due) WHERE status IN ('scheduled', 'retrying');
CREATE INDEX flowrra_expiring ON flowrra_job (expires)
    WHERE expires IS NOT NULL AND attempt = 0 AND status IN ('scheduled', 'blocked', 'pending');
CREATE INDEX flowrra_running ON flowrra_job (worker, crashes) WHERE status = 'running';
CREATE INDEX flowrra_cancelling ON flowrra_job (worker) WHERE status = 'running' AND cancel_requested = 1;
CREATE INDEX flowrra_purge ON flowrra_job (purge_at) WHERE purge_at IS NOT NULL;
CREATE UNIQUE INDEX flowrra_unique ON flowrra_job (unique_key)
    WHERE unique_key IS NOT NULL AND status IN ('scheduled', 'blocked', 'pending', 'running', 'retrying');
CREATE TABLE flowrra_dependency (
    parent TEXT NOT NULL,
    child INTEGER NOT NULL,
    PRIMARY KEY (parent, child)
) WITHOUT ROWID;
CREATE INDEX flowrra_child ON flowrra_dependency (child);
CREATE TABLE flowrra_worker (
    id TEXT PRIMARY KEY,
    host TEXT NOT NULL,
    home TEXT NOT NULL,
    pid INTEGER NOT NULL,
    birth TEXT NOT NULL,
    queues TEXT NOT NULL,
    tasks TEXT NOT NULL,
    started REAL NOT NULL,
    seen REAL NOT NULL,
    running INTEGER NOT NULL,
    version TEXT NOT NULL,
    lease REAL NOT NULL
);
CREATE TABLE flowrra_listener (
    port INTEGER PRIMARY KEY,
    kinds TEXT NOT NULL,
    home TEXT NOT NULL,
    pid INTEGER NOT NULL,
    birth TEXT NOT NULL
);
CREATE TABLE flowrra_paused (queue TEXT PRIMARY KEY);
CREATE TABLE flowrra_meta (schema INTEGER NOT NULL);
INSERT INTO flowrra_meta VALUES (1);
"""
ROWS_1 = """
INSERT INTO flowrra_job (id, task, queue, priority, status, payload, submitted, attempt, worker, started, finished,
        purge_at, result, error, history) VALUES
    ('good', 'task', 'default', 0, 'success', '[[1],{}]', 1, 1, 'w', 2, 3, 9e9, '[7]', NULL, NULL),
    ('bad', 'task', 'default', 0, 'failed', '[[],{}]', 1, 2, 'w', 2, 3, 9e9, NULL, 'KeyError: 1',
        '[[1, "w", 1, 1.5, "failure", "KeyError: 0", "line 1"]]'),
    ('ready', 'task', 'default', 0, 'pending', '[[2],{}]', 1, 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO flowrra_job (id, task, queue, priority, status, payload, submitted, due, parents) VALUES
    ('later', 'task', 'default', 0, 'scheduled', '[[],{}]', 1, 9e9, NULL),
    ('child', 'task', 'default', 0, 'blocked', '[[],{}]', 1, NULL, '["ready", "good", "ready"]'),
    ('freed', 'task', 'default', 5, 'pending', '[[],{}]', 1, NULL, '["good"]');
INSERT INTO flowrra_dependency SELECT 'ready', seq FROM flowrra_job WHERE id = 'child';
INSERT INTO flowrra_paused VALUES ('slow');
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


def write_version_1(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.executescript(SCHEMA_1 + ROWS_1)


async def test_a_store_of_the_first_version_lives_on(path: Path) -> None:
    write_version_1(path)
    broker = SQLiteBroker(str(path))
    await broker.open()
    try:
        found = await broker.find(JobFilter())
        assert [job.id for job in found] == ["freed", "child", "later", "ready", "bad", "good"]
        assert await broker.paused() == {"slow"}
        assert [job.id for job in await broker.find(JobFilter(parent="good"))] == ["freed", "child"]
        assert [job.id for job in await broker.find(JobFilter(parent="ready"))] == ["child"]
        (bad,) = await broker.find(JobFilter(status=frozenset((TaskStatus.FAILED,)), error="keyerror"))
        assert [attempt.error for attempt in bad.attempts] == ["KeyError: 0", "KeyError: 1"]
        worker = WorkerInfo("w1", "host", os.getpid(), {"default": 9}, memory=5, activity=[Activity(60, "task", 1)])
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
    finally:
        await broker.close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT schema FROM flowrra_meta").fetchall() == [(flowrra._SCHEMA_VERSION,)]


async def test_what_was_used_again_or_ran_once_is_brought_up_to_date(path: Path) -> None:
    """Jobs keep their places, what has begun to run does not expire, and no place is used again."""
    write_version_1(path)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        row = "INSERT INTO flowrra_job (id, task, queue, priority, status, payload, submitted, expires, attempt)"
        for values in (("new", NOW + 1, 0), ("begun", NOW + 1, 1)):
            db.execute(f"{row} VALUES (?, 't', 'default', 0, 'pending', '[[],{{}}]', {NOW}, ?, ?)", values)
        db.execute("UPDATE flowrra_job SET status = 'blocked', worker = 'mover' WHERE id = 'freed'")  # held
        before = db.execute("SELECT id, seq FROM flowrra_job ORDER BY seq DESC").fetchall()
    broker = SQLiteBroker(str(path))
    await broker.open()
    try:
        after = {job.id: job for job in await broker.find(JobFilter())}
        assert [(job.id, job.seq) for job in after.values()] == before
        assert {job.id: job.waits for job in after.values() if job.waits} == {"child": 1, "freed": 1}
        assert (after["new"].expires, after["begun"].expires) == (NOW + 1, None)
        assert await broker.change(["freed"], "unhold", now=NOW, by="mover") == [True]
        await broker.cancel("begun", now=NOW)
        assert await broker.delete(["begun"]) == [True]
        await broker.push([Job("last", "t")], now=NOW)
        (last,) = await broker.find(JobFilter(ids=["last"]))
        assert last.seq > before[0][1]
    finally:
        await broker.close()


def shape_of(path: Path) -> dict[str, tuple[str, list[tuple[object, ...]]]]:
    """Tables, indexes and triggers with their columns, whatever the words that made them."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        names = db.execute("SELECT name, type, tbl_name FROM sqlite_master").fetchall()
        return {
            name: (
                table,
                db.execute(f"PRAGMA {'index_xinfo' if kind == 'index' else 'table_xinfo'}({name})").fetchall(),
            )
            for name, kind, table in names
        }


async def test_a_migrated_store_is_like_a_new_one(path: Path, tmp_path: Path) -> None:
    write_version_1(path)
    for each in (path, tmp_path / "new.db"):
        broker = SQLiteBroker(str(each))
        await broker.open()
        await broker.close()
    assert shape_of(path) == shape_of(tmp_path / "new.db")


async def test_a_file_becomes_smaller_when_jobs_are_purged(path: Path) -> None:
    async with opened(path) as broker:
        for first in range(0, 20_000, 5_000):
            ids = await broker.push([Job(f"j{first + n}", "t", args=("x" * 200,)) for n in range(5_000)], now=NOW)
            assert all(await broker.change(ids, "cancel", now=NOW))
        most = pages_of(path)
        while await broker.purge(NOW + 1e7, 1_000):
            assert pages_of(path) > most // 8, "some pages are kept for new jobs"
        left = pages_of(path)
        assert left < most // 2
        await broker.push([Job(f"k{n}", "t", args=("x" * 200,)) for n in range(500)], now=NOW)
        assert pages_of(path) == left, "new jobs use the free pages"


def pages_of(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("PRAGMA page_count").fetchone()[0])
