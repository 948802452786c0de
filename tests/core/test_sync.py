"""app.sync has what plain code needs: options, jobs, and a transaction of the caller's own."""

import contextlib
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from flowrra import ConfigError, Flowrra, SyncFace, TaskNotFoundError, TaskStatus
from tests.support.apps import flowrra_threads, make_app
from tests.support.postgres_server import clean_schema
from tests.support.services import POSTGRES_URL, require


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Flowrra]:
    app = with_double(make_app(f"sqlite:///{tmp_path}/jobs.db"))
    yield app
    app.sync.close()
    assert not flowrra_threads()


def with_double(app: Flowrra) -> Flowrra:
    @app.task(name="double")
    async def double(number: int) -> int:
        return number * 2

    return app


def test_a_task_with_options_is_submitted(app: Flowrra) -> None:
    double: Any = app.registry["double"]
    task_id = app.sync.submit(double.options(delay=60, priority=2, queue="far", unique="one"), 4)
    job = app.sync.get_job(task_id)
    assert (job.status, job.priority, job.queue, job.unique) == (TaskStatus.SCHEDULED, 2, "far", "one")
    assert app.sync.submit(double.options(unique="one"), 5) == task_id
    assert len(app.sync.submit_many(double.options(priority=1), [(1,), (2,)])) == 2


def test_a_job_that_is_not_known_is_an_error(app: Flowrra) -> None:
    with pytest.raises(TaskNotFoundError, match="'nobody'"):
        app.sync.get_job("nobody")


def test_a_job_is_submitted_in_the_callers_transaction_of_sqlite(app: Flowrra, tmp_path: Path) -> None:
    """The connection is one that sqlite3 binds to the thread that has made it, as it does unless told otherwise."""
    double: Any = app.registry["double"]
    app.sync.jobs()
    with contextlib.closing(sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)) as connection:
        for end, left in (("ROLLBACK", 0), ("COMMIT", 1)):
            connection.execute("BEGIN")
            task_id = app.sync.submit_in(connection, double, left)
            connection.execute(end)
            assert [job.id for job in app.sync.jobs()] == [task_id] * left


DYING = """
import asyncio, os, sys
from flowrra import Flowrra

async def main():
    await Flowrra.from_urls(sys.argv[1]).start()
    os._exit(0)

asyncio.run(main())
"""


@pytest.mark.parametrize("dead", [False, True], ids=["nobody died", "a worker died"])
def test_a_transaction_that_has_written_is_not_waited_for_by_its_own_first_job(
    app: Flowrra, tmp_path: Path, dead: bool
) -> None:
    """An open would wait for the lock that the caller holds, as long as the caller waits for the open."""
    app.sync.jobs()
    app.sync.close()
    if dead:  # whom the open would put back
        subprocess.run([sys.executable, "-c", DYING, app.config.broker.url], check=True)
    app.config.broker.timeout = 10.0
    with contextlib.closing(sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)) as connection:
        connection.execute("CREATE TABLE orders (id INTEGER)")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO orders VALUES (1)")
        task_id = app.sync.submit_in(connection, app.registry["double"], 1)
        connection.execute("COMMIT")
    assert [job.id for job in app.sync.jobs()] == [task_id]
    app.sync.close()
    app.sync.jobs()  # the next open puts them back
    assert app.sync.run(app.broker.workers()) == []


def test_a_transaction_on_another_database_is_refused(app: Flowrra, tmp_path: Path) -> None:
    with (
        contextlib.closing(sqlite3.connect(tmp_path / "other.db")) as connection,
        pytest.raises(ConfigError, match="the connection is on"),
    ):
        app.sync.submit_in(connection, app.registry["double"], 1)


def test_a_job_is_submitted_in_the_callers_transaction_of_postgresql() -> None:
    with clean_schema(require(POSTGRES_URL)) as (_, schema), psycopg.connect(POSTGRES_URL) as connection:
        app = with_double(make_app(f"{POSTGRES_URL}?schema={schema}"))
        double: Any = app.registry["double"]
        app.sync.submit_in(connection, double, 1)
        connection.rollback()
        task_id = app.sync.submit_in(connection, double, 2)
        connection.commit()
        assert [job.id for job in app.sync.jobs()] == [task_id]
        app.sync.close()


def test_it_has_every_call_of_the_app_that_awaits_and_concerns_jobs() -> None:
    calls = {"submit", "submit_many", "submit_in", "wait_for_result", "get_result", "get_job", "jobs", "cancel",
             "requeue", "delete", "explain"}  # fmt: skip
    assert calls <= set(dir(SyncFace)) & set(dir(Flowrra))
