"""procrastinate on the database of BENCH_DATABASE: its app, and a client. It keeps no results."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from benchmarks import work

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

procrastinate: Any = import_module("procrastinate")
app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=os.environ.get("BENCH_DATABASE", "")))
WORKER = ("-m", "procrastinate", "--app", "benchmarks.apps.procrastinate_app.app", "worker", "--concurrency", "100")
GROUPS = ()


@app.task  # type: ignore[untyped-decorator]
async def noop(n: int) -> int:
    return work.noop(n)


@app.task  # type: ignore[untyped-decorator]
async def stamp(name: str) -> None:
    work.leave_stamp(name)


class Client:
    """The calls that the scenarios need from a queue."""

    async def submit(self, n: int) -> None:
        await noop.defer_async(n=n)

    async def submit_many(self, jobs: int) -> None:
        await noop.batch_defer_async(*({"n": n} for n in range(jobs)))

    async def submit_stamp(self, name: str) -> None:
        await stamp.defer_async(name=name)

    async def left(self) -> int:
        query = "SELECT count(*) AS n FROM procrastinate_jobs WHERE status IN ('todo', 'doing')"
        return int((await app.connector.execute_query_one_async(query))["n"])

    async def started(self, name: str) -> int:
        return work.read_stamp(name)


@asynccontextmanager
async def client() -> AsyncIterator[Client]:
    async with app.open_async():
        query = "SELECT to_regclass('procrastinate_jobs') IS NULL AS new"
        if (await app.connector.execute_query_one_async(query))["new"]:
            await app.schema_manager.apply_schema_async()
        yield Client()
