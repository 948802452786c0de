"""pgqueuer on the database of BENCH_DATABASE: a client, and the worker if run as a program. It keeps no results."""

from __future__ import annotations

import os
import sys
from contextlib import asynccontextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from benchmarks import work

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

database = os.environ.get("BENCH_DATABASE", "")
WORKER = ("-m", "benchmarks.apps.pgqueuer_app")
GROUPS = ("100", "200")  # batch size, concurrent tasks: the fastest of 10, 50, 100, 200 and 500


async def connect() -> tuple[Any, Any]:
    connection = await import_module("asyncpg").connect(database)
    return connection, import_module("pgqueuer.db").AsyncpgDriver(connection)


async def serve() -> None:
    """Run a worker as its own command does, without the command's additions."""
    _, driver = await connect()
    worker = import_module("pgqueuer").PgQueuer(driver)

    @worker.entrypoint("noop")  # type: ignore[untyped-decorator]
    async def noop(job: Any) -> None:
        work.noop(int(job.payload))

    @worker.entrypoint("stamp")  # type: ignore[untyped-decorator]
    async def stamp(job: Any) -> None:
        work.leave_stamp(job.payload.decode())

    groups = dict(zip(("batch_size", "max_concurrent_tasks"), map(int, sys.argv[1:]), strict=False))
    await worker.run(**groups)


class Client:
    """The calls that the scenarios need from a queue."""

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


if __name__ == "__main__":
    import_module("uvloop").run(serve())  # the loop that its command takes
