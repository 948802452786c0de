"""Small apps, a clock that can be set, and waits with a deadline, shared by the tests."""

import asyncio
import contextlib
import inspect
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from flowrra import BackendConfig, Broker, BrokerConfig, Clock, Config, ExecutorConfig, Flowrra, SQLiteBroker

T = TypeVar("T")

SECONDS = 20.0  # no wait takes longer; on an idle machine none takes a tenth of it


class MovableClock(Clock):
    """The machine's clocks, moved forward by hand. Time goes on between the moves."""

    def __init__(self) -> None:
        self.wall_offset = 0.0
        self.boot_offset = 0.0

    def time(self) -> float:
        return super().time() + self.wall_offset

    def monotonic(self) -> float:
        return super().monotonic() + self.boot_offset


def make_app(
    url: str = "memory://",
    *,
    clock: Clock | None = None,
    broker: Broker | None = None,
    settings: BrokerConfig | None = None,
    retention: BackendConfig | None = None,
    **executor: Any,
) -> Flowrra:
    """An app whose worker keeps few slots, as `executor` says."""
    config = Config(
        broker=settings or BrokerConfig(url=url),
        backend=retention or BackendConfig(),
        executor=ExecutorConfig(**{"cpu_workers": 1, **executor}),
    )
    return Flowrra(config, clock=clock, broker=broker)


@contextlib.asynccontextmanager
async def opened(path: Path) -> AsyncIterator[SQLiteBroker]:
    broker = SQLiteBroker(str(path))
    await broker.open()
    try:
        yield broker
    finally:
        await broker.close()


async def eventually(condition: Callable[[], bool] | Callable[[], Awaitable[bool]], what: str = "") -> None:
    """Return as soon as `condition` holds; AssertionError if it never does."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        holds = condition()
        if inspect.isawaitable(holds):
            holds = await holds
        if holds:
            return
        await asyncio.sleep(0.005)
    raise AssertionError(f"it never came to pass: {what or inspect.getsource(condition).strip()}")


async def within(awaitable: Awaitable[T], seconds: float = SECONDS) -> T:
    """What `awaitable` gives; TimeoutError instead of a test that hangs."""
    async with asyncio.timeout(seconds):
        return await awaitable


def flowrra_threads() -> set[threading.Thread]:
    """The threads that the library has running."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("flowrra")}


async def explains(app: Flowrra, task_id: str, text: str) -> bool:
    """Whether the explanation of a job has this text."""
    return text in await app.explain(task_id)
