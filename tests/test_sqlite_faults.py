"""The SQLite broker when the system refuses: descriptors, threads, sockets, syncs, and files of other shapes."""

import asyncio
import contextlib
import errno
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import flowrra
from flowrra import Job, JobFilter, SQLiteBroker, TaskStatus, WorkerInfo

NOW = 1_700_000_000.0
SOON = 30.0  # seconds within which what is waited for must have come


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@contextlib.asynccontextmanager
async def opened(path: Path) -> AsyncIterator[SQLiteBroker]:
    broker = SQLiteBroker(str(path))
    await broker.open()
    try:
        yield broker
    finally:
        await broker.close()


async def push_together(broker: SQLiteBroker, *names: str) -> list[Any]:
    """Pushes of several callers at once, which the writer's thread commits as a group."""
    async with asyncio.timeout(SOON):
        return await asyncio.gather(
            *(broker.push([Job(name, "t")], now=NOW) for name in names), return_exceptions=True
        )


# ---------------------------------------------------------------------------
# No descriptor left
# ---------------------------------------------------------------------------


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """A time in which no file and no socket can be opened."""
    resource = pytest.importorskip("resource", reason="this system does not limit descriptors")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as taken:
        taken.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, limits[0]), limits[1]))
        with contextlib.suppress(OSError):
            while True:
                taken.enter_context(open(os.devnull))
        yield


@pytest.fixture
def stranger() -> Iterator[int]:
    """The pid of another process that is alive."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process.pid


def set_pid(path: Path, worker: str, pid: int) -> None:
    with contextlib.closing(flowrra._connect(str(path))) as db:
        birth = flowrra._birth_of(pid)
        db.execute("UPDATE flowrra_worker SET pid = ?, birth = ? WHERE id = ?", (pid, birth, worker))


async def test_who_cannot_look_takes_nobody_for_dead(path: Path, stranger: int) -> None:
    async with opened(path) as broker:
        await broker.heartbeat(WorkerInfo("w1", "host", stranger), lease=60, now=NOW)
        set_pid(path, "w1", stranger)
        with no_descriptors():
            notices = await broker.heartbeat(WorkerInfo("w2", "host", os.getpid()), lease=60, now=NOW)
        assert notices.lost_workers == []


async def test_a_process_that_is_hidden_is_not_dead(
    path: Path, stranger: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with /proc mounted with hidepid=2, and a worker of another user."""

    def refuse(*args: Any, **options: Any) -> Any:
        raise FileNotFoundError(2, "No such file or directory")

    def may_not(pid: int, signal: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    async with opened(path) as broker:
        await broker.heartbeat(WorkerInfo("w1", "host", stranger), lease=60, now=NOW)
        set_pid(path, "w1", stranger)
        monkeypatch.setattr("builtins.open", refuse)
        monkeypatch.setattr(os, "kill", may_not)
        notices = await broker.heartbeat(WorkerInfo("w2", "host", os.getpid()), lease=60, now=NOW)
        monkeypatch.undo()
        assert notices.lost_workers == []


async def test_who_cannot_be_called_is_left_uncalled(path: Path) -> None:
    """Without a descriptor for the socket; the listener looks by itself."""
    async with opened(path) as here, opened(path) as there:
        waiting = asyncio.create_task(there.wait_ready(["default"], 600))
        await asyncio.sleep(0.1)
        with no_descriptors():
            assert await push_together(here, "a", "b", "c") == [["a"], ["b"], ["c"]]
            assert await here.push([Job("d", "t")], now=NOW) == ["d"]
        async with asyncio.timeout(SOON):
            await waiting


# ---------------------------------------------------------------------------
# A disk that cannot sync
# ---------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fdatasync"), reason="this system has no fdatasync")
async def test_a_group_that_cannot_be_synced_is_not_done_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim that was done twice would leave the jobs of the first time running for ever, with nobody to run them."""

    def refuse(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    async with opened(path) as broker:
        await broker.heartbeat(WorkerInfo("w1", "host", os.getpid()), lease=60, now=NOW)
        await broker.push([Job(name, "t") for name in "abc"], now=NOW)
        claimed = await broker.claim("default", limit=1, worker="w1", now=NOW)  # in place; the next one is in the group
        monkeypatch.setattr(os, "fdatasync", refuse)
        pushes = [broker.push([Job(name, "t")], now=NOW) for name in "de"]
        claim = broker.claim("default", limit=1, worker="w1", now=NOW)
        more, *pushed = await asyncio.gather(claim, *pushes, return_exceptions=True)
        assert isinstance(more, list)
        monkeypatch.undo()
        assert [str(error).partition("wal ")[2].partition(" (")[0] for error in pushed] == ["cannot be synced to disk"] * 2
        running = await broker.find(JobFilter(status=frozenset((TaskStatus.RUNNING,))))
        assert {job.id for job in running} == {job.id for job in [*claimed, *more]}
