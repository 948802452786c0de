"""saq on the database of BENCH_DATABASE: the worker's settings, and a client."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from benchmarks import work

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


def make_queue() -> Any:
    return import_module("saq").Queue.from_url(os.environ.get("BENCH_DATABASE", "postgresql://"))


queue = make_queue()
WORKER = ("-m", "saq", "benchmarks.apps.saq_app.settings", "--quiet")
GROUPS = ()


async def noop(context: Any, *, n: int) -> int:
    return work.noop(n)


async def stamp(context: Any) -> int:
    return work.stamp()


settings = {"queue": queue, "functions": [noop, stamp], "concurrency": 100}


class Client:
    """The calls that the scenarios need from a queue."""

    def __init__(self, queue: Any) -> None:
        self._queue = queue
        self._jobs: dict[str, Any] = {}

    async def submit(self, n: int) -> None:
        await self._queue.enqueue("noop", n=n)

    async def submit_many(self, jobs: int) -> None:
        """Submit jobs one by one: saq has no call for many."""
        for n in range(jobs):
            await self._queue.enqueue("noop", n=n)

    async def submit_stamp(self, name: str) -> None:
        self._jobs[name] = await self._queue.enqueue("stamp")

    async def left(self) -> int:
        return int(await self._queue.count("incomplete"))

    async def started(self, name: str) -> int:
        await self._jobs[name].refresh()
        return int(self._jobs[name].result)


@asynccontextmanager
async def client() -> AsyncIterator[Client]:
    queue = make_queue()  # its pool cannot be opened twice
    await queue.connect()
    yield Client(queue)
    await queue.disconnect()
