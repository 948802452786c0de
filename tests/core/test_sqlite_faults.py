"""The SQLite broker when the system refuses: descriptors, threads, sockets, syncs, and files of other shapes."""

import asyncio
import contextlib
import errno
import gc
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import flowrra
from flowrra import BrokerError, Job, JobFilter, SQLiteBroker, TaskNotFoundError, TaskStatus, WorkerInfo
from tests.support.apps import eventually, opened

NOW = 1_700_000_000.0
DESCRIPTORS = Path("/proc/self/fd")
SOON = 30.0  # seconds within which what is waited for must have come


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


async def push_together(broker: SQLiteBroker, *names: str) -> list[Any]:
    """Pushes of several callers at once, which the writer's thread commits as a group."""
    async with asyncio.timeout(SOON):
        return await asyncio.gather(*(broker.push([Job(name, "t")], now=NOW) for name in names), return_exceptions=True)


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
                taken.enter_context(Path(os.devnull).open())
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


async def test_a_process_that_is_hidden_is_not_dead(path: Path, stranger: int, monkeypatch: pytest.MonkeyPatch) -> None:
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
        waiting = asyncio.create_task(there.wait([("queue", "default")], 600))
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
        assert [str(error).partition("wal ")[2].partition(" (")[0] for error in pushed] == [
            "cannot be synced to disk"
        ] * 2
        running = await broker.find(JobFilter(status=frozenset((TaskStatus.RUNNING,))))
        assert {job.id for job in running} == {job.id for job in [*claimed, *more]}


# ---------------------------------------------------------------------------
# No thread, no socket, no more descriptors half-way, a look that fails
# ---------------------------------------------------------------------------


async def test_a_writer_that_cannot_start_is_tried_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async with opened(path) as broker:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            refused = await asyncio.gather(
                *(broker.push([Job(name, "t")], now=NOW) for name in "ab"), return_exceptions=True
            )
        assert any(isinstance(answer, RuntimeError) for answer in refused)
        assert await push_together(broker, "c", "d") == [["c"], ["d"]]


async def test_without_a_socket_a_wait_looks(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def refuse(*args: Any, **options: Any) -> Any:
        raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")

    monkeypatch.setattr(asyncio.get_running_loop(), "create_datagram_endpoint", refuse)
    async with opened(path) as here, opened(path) as there:
        await there.push([Job("a", "t", due=NOW + 1e9)], now=NOW)
        waiting = asyncio.create_task(there.wait_for("a", SOON))
        await asyncio.sleep(0.05)
        assert await here.cancel("a", now=NOW)
        assert (await waiting).status is TaskStatus.CANCELLED
    assert caplog.text.count("polling every second") == 1


@pytest.mark.skipif(not DESCRIPTORS.exists(), reason="this system does not list descriptors")
async def test_an_open_that_fails_leaves_nothing_open(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(path):
        pass
    connect = flowrra._connect

    def refuse(path: str | None, *, read_only: bool = False) -> sqlite3.Connection:
        if read_only:
            raise sqlite3.OperationalError("unable to open database file")
        return connect(path)

    monkeypatch.setattr(flowrra, "_connect", refuse)
    before = descriptors_of(path)
    with pytest.raises(BrokerError):
        await SQLiteBroker(str(path)).open()
    assert descriptors_of(path) == before


def descriptors_of(path: Path) -> int:
    """How many descriptors this process has of the file, its log and its index."""
    gc.collect()
    return sum(str(path) in str(entry.resolve()) for entry in DESCRIPTORS.iterdir())


async def test_a_look_that_fails_is_not_the_last(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flowrra, "_LOOK_EVERY", 0.01)
    failed = asyncio.Event()
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: failed.set())
    async with opened(path) as here, opened(path) as there:
        await here.push([Job("a", "t", due=NOW + 1e9)], now=NOW)
        look = there.data_version
        monkeypatch.setattr(there, "data_version", lambda: look() if failed.is_set() else 1 // 0)
        waiting = asyncio.create_task(there.wait_for("a", SOON))
        async with asyncio.timeout(SOON):
            await failed.wait()
        monkeypatch.setattr(there, "get", lambda ids: asyncio.sleep(0, [None]))  # no other way to learn of it
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.execute("UPDATE flowrra_job SET status = 'cancelled', finished = 1.0")
            db.commit()
        with pytest.raises(TaskNotFoundError):  # woken, it asked `get`
            await waiting


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_loops_that_end_without_closing_leave_no_listeners_behind(path: Path) -> None:
    broker = SQLiteBroker(str(path))

    def listeners() -> list[int]:
        with contextlib.closing(sqlite3.connect(path)) as db:
            return [port for (port,) in db.execute("SELECT port FROM flowrra_listener")]

    async def wait(earlier: list[int]) -> list[int]:
        await broker.open()
        waiting = asyncio.ensure_future(broker.wait([("queue", "default")], 600))
        await eventually(lambda: not set(listeners()) <= set(earlier))
        waiting.cancel()
        return listeners()

    ports: list[int] = []
    for _ in range(3):
        ports = asyncio.run(wait(ports))
        assert len(ports) == 1, "those of the loops before have gone"

    async def end() -> None:
        await broker.open()
        await broker.close()

    asyncio.run(end())
    gc.collect()  # the sockets of those loops


# ---------------------------------------------------------------------------
# Files of other shapes, and connections of other minds
# ---------------------------------------------------------------------------


@pytest.fixture(params=["to a file", "to nothing yet"])
def target(request: pytest.FixtureRequest, path: Path, tmp_path: Path) -> Path:
    """What `path` is a symbolic link to, in another folder."""
    target = tmp_path / "folder" / "target.db"
    target.parent.mkdir()
    if request.param == "to a file":
        target.touch()
    try:
        path.symlink_to(target)
    except OSError as error:
        pytest.skip(f"no symbolic links here: {error}")
    return target


async def test_a_link_to_a_file_is_that_file(path: Path, target: Path) -> None:
    async with opened(path) as by_link, opened(target) as by_name:
        for broker, task_id in ((by_link, "a"), (by_name, "b")):
            await broker.push([Job(task_id, "t")], now=NOW)
        assert {job.id for job in await by_link.find(JobFilter())} == {"a", "b"}


async def test_a_refused_job_leaves_no_transaction_that_nobody_began(path: Path) -> None:
    """It would lock the file for all others, until the caller thinks of ending it."""
    async with opened(path) as broker:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
            with pytest.raises(TaskNotFoundError):
                broker.push_in(db, [Job("a", "t", parents=("nobody",))], now=NOW)
            assert not db.in_transaction
            assert await broker.push([Job("b", "t")], now=NOW) == ["b"]


async def test_a_transaction_that_has_read_what_is_old_is_told_how_to_begin(path: Path) -> None:
    async with opened(path) as broker:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("BEGIN")
            db.execute("SELECT count(*) FROM flowrra_job").fetchone()
            await broker.push([Job("a", "t")], now=NOW)
            with pytest.raises(BrokerError, match=r"changed by others after .*: begin it by BEGIN IMMEDIATE"):
                broker.push_in(db, [Job("b", "t")], now=NOW)
            db.execute("ROLLBACK")
