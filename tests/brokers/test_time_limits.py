"""A server that is gone, silent or locked: a caller's time-out stays the caller's, and the trouble is said at once."""

import asyncio
import contextlib
import logging
import socket
import sqlite3
import threading
import time
import urllib.parse
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from flowrra import (
    Backend,
    ExecutorNotRunningError,
    Flowrra,
    MemoryBroker,
    Notices,
    TaskResult,
    TaskStatus,
    TaskTimeoutError,
    WorkerInfo,
)
from tests.support.apps import eventually, make_app, within
from tests.support.postgres_server import clean_schema
from tests.support.proxy import Proxy, proxy_to
from tests.support.redis_server import clean, free_port
from tests.support.services import POSTGRES_URL, REDIS_URL, require

SERVERS = ["redis", "postgresql"]


@pytest.fixture
def gone() -> int:
    """A port on which nobody listens."""
    return free_port()


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that takes connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as server:
        yield server.getsockname()[1]


@pytest.fixture(params=["gone", "silent"])
def port(request: pytest.FixtureRequest) -> int:
    return int(request.getfixturevalue(request.param))


def app_at(kind: str, port: int) -> Flowrra:
    app = make_app(f"{kind}://127.0.0.1:{port}/0")

    @app.task
    async def nothing() -> None:
        """Does nothing."""

    return app


LIMIT = 20.0  # real seconds; a call that did not keep its own time-out would go on for the 30 s of the broker's


@contextlib.contextmanager
def soon() -> Iterator[None]:
    began = time.monotonic()
    yield
    took = time.monotonic() - began
    assert took < LIMIT, f"it took {took:.1f} s"


# ---------------------------------------------------------------------------
# Waiting for a result
# ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SERVERS)
async def test_a_wait_for_a_result_keeps_its_time_out_without_a_server(kind: str, port: int) -> None:
    app = app_at(kind, port)
    for timeout in (1.0, 0.0):
        with (
            soon(),
            pytest.raises(TaskTimeoutError, match=rf"has not answered within {timeout:g} s, so that job x"),
        ):
            await app.wait_for_result("x", timeout=timeout)
    await within(app.stop(), LIMIT)


@pytest.mark.parametrize("kind", SERVERS)
def test_plain_code_keeps_its_time_out_without_a_server(kind: str, silent: int) -> None:
    app = app_at(kind, silent)
    with soon(), pytest.raises(TaskTimeoutError, match="has not answered within 1 s"):
        app.sync.wait_for_result("x", timeout=1)
    with soon():
        app.sync.close()


def test_plain_code_keeps_its_time_out_while_the_loop_is_blocked() -> None:
    app = make_app()
    free, blocked = threading.Event(), threading.Event()

    async def work() -> None:
        async with app.client():
            blocked.set()
            free.wait(30)

    thread = threading.Thread(target=asyncio.run, args=[work()])
    thread.start()
    try:
        assert blocked.wait(20)
        with soon(), pytest.raises(TaskTimeoutError, match=r"event loop is blocked: no answer within 0\.2 s"):
            app.sync.wait_for_result("x", timeout=0.2)
    finally:
        free.set()
        thread.join()


def test_plain_code_does_not_wait_for_a_loop_that_has_ended() -> None:
    app = make_app()
    loop = asyncio.new_event_loop()
    loop.run_until_complete(app.connect())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def endless() -> None:
        loop.stop()
        await asyncio.Event().wait()

    with soon(), pytest.raises(ExecutorNotRunningError, match="closed during this call"):
        app.sync.run(endless())
    thread.join()
    loop.run_until_complete(app.stop())
    loop.close()


# ---------------------------------------------------------------------------
# A server that goes while it is in use
# ---------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def behind_a_proxy(kind: str) -> AsyncIterator[tuple[Flowrra, Proxy]]:
    """An app whose server can be cut off from it."""
    url = require(REDIS_URL if kind == "redis" else POSTGRES_URL)
    with contextlib.ExitStack() as stack:
        if kind == "redis":
            option = f"prefix={stack.enter_context(clean(url))[1]}"
        else:
            option = f"schema={stack.enter_context(clean_schema(url))[1]}"
        async with proxy_to(url) as proxy:
            parts = urllib.parse.urlsplit(url)
            user, at, _ = parts.netloc.rpartition("@")
            place = parts._replace(netloc=f"{user}{at}127.0.0.1:{proxy.port}", query=option)
            yield make_app(place.geturl()), proxy


async def take_away(proxy: Proxy, how: str) -> None:
    if how == "cut":
        await proxy.cut()
    else:
        proxy.silence()


OUTAGES = pytest.mark.parametrize("how", ["cut", "silence"])


@OUTAGES
@pytest.mark.parametrize("kind", SERVERS)
async def test_a_wait_keeps_its_time_out_when_the_server_goes(
    kind: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with behind_a_proxy(kind) as (app, proxy):

        @app.task(queue="elsewhere")
        async def work() -> None:
            """Never runs."""

        async with app.client():
            task_id = await app.submit(work)
            with soon(), pytest.raises(TaskTimeoutError, match=r"has not finished within 0\.1 s"):
                await app.wait_for_result(task_id, timeout=0.1)
            await take_away(proxy, how)
            with soon(), pytest.raises(TaskTimeoutError, match=r"has not (answered|finished) within 1 s"):
                await app.wait_for_result(task_id, timeout=1)
            if how == "cut":
                await eventually(lambda: "trying again for up to 30 s" in caplog.text)
            with contextlib.suppress(RuntimeError):
                proxy.speak()


@OUTAGES
@pytest.mark.parametrize("kind", SERVERS)
async def test_a_stop_at_once_waits_for_no_server(kind: str, how: str) -> None:
    async with behind_a_proxy(kind) as (app, proxy):
        begun = asyncio.Event()

        @app.task
        async def work() -> None:
            begun.set()
            await asyncio.Event().wait()

        await app.start()
        await app.submit(work)
        await within(begun.wait())
        await take_away(proxy, how)
        with soon():
            await app.stop(wait=False)
        assert not app.is_running


def test_a_stop_at_once_waits_for_no_lock_of_sqlite(tmp_path: Path) -> None:
    app = make_app(f"sqlite:///{tmp_path}/jobs.db")

    async def main() -> None:
        begun = asyncio.Event()

        @app.task
        async def work() -> None:
            begun.set()
            await asyncio.Event().wait()

        await app.start()
        await app.submit(work)
        await within(begun.wait())
        with contextlib.closing(sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with soon():
                await app.stop(wait=False)

    asyncio.run(main())


# ---------------------------------------------------------------------------
# What is said, and when
# ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SERVERS)
async def test_a_start_without_a_server_says_so_at_once(kind: str, gone: int, caplog: pytest.LogCaptureFixture) -> None:
    app = app_at(kind, gone)
    starting = asyncio.create_task(app.start())
    with soon():
        await eventually(lambda: "trying again for up to 30 s" in caplog.text)
    await asyncio.sleep(0.2)  # some more tries, of which nothing is said
    starting.cancel()
    await asyncio.wait([starting])
    (record,) = [record for record in caplog.records if "does not answer (" in record.getMessage()]
    assert record.levelno == logging.WARNING
    assert f"127.0.0.1:{gone}" in record.getMessage()
    assert "()" not in record.getMessage()


async def test_a_start_on_a_locked_file_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    app = make_app(f"sqlite:///{tmp_path}/jobs.db")
    async with app.client():
        pass
    with contextlib.closing(sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        starting = asyncio.create_task(app.start())
        await eventually(lambda: "jobs.db is locked by another connection; waiting up to 30 s" in caplog.text)
        assert not starting.done()
    await within(starting)
    await app.stop()


async def test_a_worker_that_cannot_sign_off_says_why(caplog: pytest.LogCaptureFixture) -> None:
    class Deaf(MemoryBroker):
        is_deaf = False

        async def heartbeat(self, worker: WorkerInfo, *, lease: float, now: float) -> Notices:
            if self.is_deaf:
                await asyncio.Event().wait()
            return await super().heartbeat(worker, lease=lease, now=now)

    app = make_app(broker=(broker := Deaf()))
    await app.start()
    broker.is_deaf = True
    with soon():
        await app.stop(wait=False)
    assert "could not sign off: no answer from the broker in 1 s" in caplog.text


# ---------------------------------------------------------------------------
# A separate backend
# ---------------------------------------------------------------------------


class Slow(Backend):
    """Answers when it may."""

    def __init__(self) -> None:
        self.may = asyncio.Event()

    async def record(self, results: Sequence[TaskResult[Any]]) -> None:
        """Keeps nothing."""

    async def get(self, task_ids: Sequence[str]) -> list[TaskResult[Any] | None]:
        await self.may.wait()
        return [None for _ in task_ids]


async def test_a_backend_that_is_silent_does_not_hold_up_a_wait() -> None:
    app = Flowrra(backend=Slow())

    @app.task
    async def nothing() -> None:
        """Does nothing."""

    async with app:
        task_id = await app.submit(nothing)
        with soon(), pytest.raises(TaskTimeoutError, match=r"has not answered within 0\.5 s"):
            await app.wait_for_result(task_id, timeout=0.5)


async def test_a_time_out_of_zero_still_gives_what_has_ended(tmp_path: Path) -> None:
    app = make_app(f"sqlite:///{tmp_path}/jobs.db")

    @app.task
    async def nothing() -> None:
        """Does nothing."""

    async with app:
        task_id = await app.submit(nothing)
        await app.wait_for_result(task_id, timeout=20)
    app.sessions.is_stopped = False  # as in a new process
    result = await app.wait_for_result(task_id, timeout=0)
    assert result.status is TaskStatus.SUCCESS
    await app.stop()
