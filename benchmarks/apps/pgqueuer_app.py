"""pgqueuer on the database of BENCH_DATABASE: the worker's factory, and a client. It keeps no results."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from benchmarks import work

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

database = os.environ.get("BENCH_DATABASE", "")
WORKER = ("-m", "pgqueuer", "run", "benchmarks.apps.pgqueuer_app:make")
GROUPS = ("--batch-size", "100", "--max-concurrent-tasks", "200")  # the fastest of 10, 50, 100, 200 and 500


async def connect() -> tuple[Any, Any]:
    connection = await import_module("asyncpg").connect(database)
    return connection, import_module("pgqueuer.db").AsyncpgDriver(connection)


async def make() -> Any:
    _, driver = await connect()
    worker = import_module("pgqueuer").PgQueuer(driver)

    @worker.entrypoint("noop")  # type: ignore[untyped-decorator]
    async def noop(job: Any) -> None:
        work.noop(int(job.payload))

    @worker.entrypoint("stamp")  # type: ignore[untyped-decorator]
    async def stamp(job: Any) -> None:
        work.leave_stamp(job.payload.decode())

    return worker


class Client:
    """What the scenarios want of a queue."""

    def __init__(self, connection: Any, driver: Any) -> None:
        self._connection = connection
        self._queries = import_module("pgqueuer.queries").Queries(driver)

    async def submit(self, n: int) -> None:
        await self._queries.enqueue("noop", str(n).encode())

    async def submit_many(self, jobs: int) -> None:
        await self._queries.enqueue(["noop"] * jobs, [str(n).encode() for n in range(jobs)], [0] * jobs)

    async def submit_stamp(self, name: str) -> None:
        await self._queries.enqueue("stamp", name.encode())

    async def left(self) -> int:
        return int(await self._connection.fetchval("SELECT count(*) FROM pgqueuer"))

    async def started(self, name: str) -> int:
        return work.read_stamp(name)


@asynccontextmanager
async def client() -> AsyncIterator[Client]:
    connection, driver = await connect()
    found = Client(connection, driver)
    if await connection.fetchval("SELECT to_regclass('pgqueuer') IS NULL"):
        await found._queries.install()
    yield found
    await connection.close()
