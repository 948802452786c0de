"""PostgreSQL: how much space finished jobs take, in a table that is vacuumed while they come and go."""

import itertools
from pathlib import Path

import psycopg

from flowrra import Job, Outcome, WorkerInfo
from flowrra_extras.postgres import PostgresBroker
from tests.support.postgres_server import Server

NOW = 1_700_000_000.0
WORKER = "host-1234-0a1b2c3d"
GROUPS, JOBS = 10, 2_000
MOST = 430  # bytes; the documentation says 410


async def test_a_finished_job_takes_as_much_space_as_documented(tmp_path: Path) -> None:
    """On a server of its own: what other tests on a shared one still read, no vacuum removes."""
    numbers = itertools.count(1_000_000)
    with Server(tmp_path) as server, psycopg.connect(server.url, autocommit=True) as connection:
        broker = PostgresBroker(server.url)
        await broker.open()
        try:
            await broker.heartbeat(WorkerInfo(WORKER), lease=600, now=NOW)
            for group in range(GROUPS):
                jobs = [Job(f"6b0d49507bc3d8f85619583c{next(numbers)}", "shop.mails.send_welcome") for _ in range(JOBS)]
                await broker.push(jobs, now=NOW + group)
                while claimed := await broker.claim("default", limit=100, worker=WORKER, now=NOW + group + 0.25):
                    await broker.settle([Outcome.succeed(job, 1) for job in claimed], now=NOW + group + 0.5)
                connection.execute("VACUUM flowrra.job")
        finally:
            await broker.close()
        (size,) = connection.execute("SELECT pg_total_relation_size('flowrra.job')").fetchall()[0]
        assert size / (GROUPS * JOBS) <= MOST
