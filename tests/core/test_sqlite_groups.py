"""The SQLite broker at work: what is committed together, what fails alone, and how others come to hear of it."""

import asyncio
import contextlib
import errno
import os
import socket
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import flowrra
from flowrra import BrokerError, Job, JobFilter, Outcome, SQLiteBroker, TaskResult, TaskStatus, WorkerInfo
from tests.support.apps import opened, within

NOW = 1_700_000_000.0
SOON = 30.0  # seconds within which a wake-up must have come; it is there in milliseconds


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


async def ids(broker: SQLiteBroker) -> set[str]:
    return {job.id for job in await broker.find(JobFilter(), limit=10_000)}


async def claim(broker: SQLiteBroker, limit: int = 10) -> list[Job]:
    await broker.heartbeat(WorkerInfo("w1", "host", os.getpid()), lease=60, now=NOW)
    return await broker.claim("default", limit=limit, worker="w1", now=NOW)


# ---------------------------------------------------------------------------
# Groups
# ---------------------------------------------------------------------------


class Commits:
    """The transactions of all connections: the thread of each that was committed, and those rolled back."""

    def __init__(self) -> None:
        self.threads: list[int] = []
        self.rollbacks = 0

    def note(self, statement: str) -> None:
        if statement == "COMMIT":
            self.threads.append(threading.get_ident())
        self.rollbacks += statement == "ROLLBACK"

    def clear(self) -> None:
        self.threads.clear()
        self.rollbacks = 0


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> Commits:
    seen = Commits()

    class Watched(sqlite3.Connection):
        def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
            cursor = super().execute(sql, *values)
            seen.note(sql)
            return cursor

    plain = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **options: plain(*args, factory=Watched, **options))
    return seen


async def test_concurrent_pushes_share_transactions(path: Path, commits: Commits) -> None:
    async with opened(path) as broker:
        commits.clear()
        pushes = [broker.push([Job(f"j{n}", "task")], now=NOW) for n in range(500)]
        assert await asyncio.gather(*pushes) == [[f"j{n}"] for n in range(500)]
        assert len(commits.threads) <= 10
        assert len(await ids(broker)) == 500


async def test_what_many_tasks_do_at_once_shares_transactions(path: Path, commits: Commits) -> None:
    """Submitters that each wait for their own answer: a group forms while the one before is written."""

    async def submitter(name: int) -> None:
        for number in range(20):
            await broker.push([Job(f"{name}-{number}", "task")], now=NOW)

    async with opened(path) as broker:
        commits.clear()
        await asyncio.gather(*map(submitter, range(50)))
        assert len(await ids(broker)) == 1_000
        assert len(commits.threads) <= 100


async def test_a_lone_push_is_committed_by_itself_off_the_loop(path: Path, commits: Commits) -> None:
    async with opened(path) as broker:
        commits.clear()
        for number in range(20):
            await broker.push([Job(f"j{number}", "task")], now=NOW)
            assert len(commits.threads) == number + 1
        assert threading.get_ident() not in commits.threads


async def test_a_lone_push_does_not_block_the_loop_on_a_lock(path: Path, commits: Commits) -> None:
    """While another program holds the lock, it waits in the writer's thread, and the loop goes on."""
    async with opened(path) as broker:
        commits.clear()
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as holder:
            holder.execute("BEGIN IMMEDIATE")
            push = asyncio.create_task(broker.push([Job("a", "task")], now=NOW))
            await asyncio.wait([push], timeout=0.05)
            assert not push.done()
            assert (await broker.get(["a"])) == [None]
            holder.execute("ROLLBACK")
        assert await push == ["a"]
        assert commits.threads != [threading.get_ident()]


async def test_what_fails_in_a_group_fails_alone(path: Path, commits: Commits) -> None:
    unfinished: TaskResult[Any] = TaskResult("bad", "task", TaskStatus.PENDING, None, finished=1.0)
    async with opened(path) as broker:
        commits.clear()
        pushes = [broker.push([Job(f"j{n}", "task")], now=NOW) for n in range(10)]
        bad = broker.record([unfinished])
        more = [broker.push([Job(f"k{n}", "task")], now=NOW) for n in range(10)]
        answers = await asyncio.gather(*pushes, bad, *more, return_exceptions=True)
        assert isinstance(answers.pop(10), BrokerError)
        assert answers == [[f"j{n}"] for n in range(10)] + [[f"k{n}"] for n in range(10)]
        assert await ids(broker) == {name for (name,) in answers}  # type: ignore[misc]  # no exceptions are left
        assert commits.rollbacks >= 1


async def test_a_settled_group_answers_each_its_own(path: Path) -> None:
    async with opened(path) as broker:
        await broker.push([Job(f"j{n}", "task") for n in range(20)], now=NOW)
        jobs = await claim(broker, 20)
        stale = [Job(job.id, job.task, seq=job.seq, attempt=9, worker="w1") for job in jobs[:5]]
        outcomes = [[Outcome.succeed(job, n)] for n, job in enumerate([*jobs, *stale])]
        settled = await asyncio.gather(*[broker.settle(outcome, now=NOW) for outcome in outcomes])
        assert settled == [[True]] * 20 + [[False]] * 5
        results = await broker.get([job.id for job in jobs])
        assert [result and result.result for result in results] == list(range(20))


async def test_a_cancelled_caller_harms_nobody(path: Path) -> None:
    async with opened(path) as broker:
        calls = [asyncio.create_task(broker.push([Job(f"j{n}", "task")], now=NOW)) for n in range(30)]
        await asyncio.sleep(0)
        for call in calls[::3]:
            call.cancel()
        answers = await asyncio.gather(*calls, return_exceptions=True)
        kept = {f"j{n}" for n in range(30) if n % 3}
        assert {answer[0] for answer in answers if isinstance(answer, list)} >= kept
        assert await ids(broker) >= kept
        assert await broker.push([Job("after", "task")], now=NOW) == ["after"]


async def test_closing_lets_what_was_handed_in_be_written(path: Path) -> None:
    broker = SQLiteBroker(str(path))
    await broker.open()
    pushes = [asyncio.create_task(broker.push([Job(f"j{n}", "task")], now=NOW)) for n in range(100)]
    await asyncio.sleep(0)
    await broker.close()
    assert await asyncio.gather(*pushes) == [[f"j{n}"] for n in range(100)]
    async with opened(path) as again:
        assert len(await ids(again)) == 100


async def test_closing_while_a_wait_begins_leaves_no_look_behind(path: Path) -> None:
    async with opened(path) as broker:
        await broker.push([Job("a", "task")], now=NOW)
        wait = asyncio.create_task(broker.wait_for("a", SOON))
        await asyncio.sleep(0)  # it is on its way to listen
    with pytest.raises(BrokerError):
        await wait
    with pytest.raises(BrokerError, match="is not open"):
        await broker.wait([("worker", "")], SOON)
    await asyncio.sleep(5 * flowrra._LISTENERS_FRESH)  # a look at a closed file would complain to the loop


async def test_closing_ends_all_waits(path: Path) -> None:
    broker = SQLiteBroker(str(path))
    await broker.open()
    await broker.push([Job("a", "task", due=NOW + 1e9)], now=NOW)
    await claim(broker)
    waits = [
        asyncio.create_task(broker.wait_for("a", None)),
        asyncio.create_task(broker.wait([("queue", "default")], 600)),
        asyncio.create_task(broker.wait([("worker", "")], 600)),
    ]
    done, _ = await asyncio.wait(waits, timeout=0.1)
    assert waits[0] not in done
    await broker.close()
    async with asyncio.timeout(SOON):
        answers = await asyncio.gather(*waits, return_exceptions=True)
    assert [answer for answer in answers if answer is not None] == [
        answer for answer in answers if isinstance(answer, BrokerError)
    ]
    assert isinstance(answers[0], BrokerError)
    assert not [thread for thread in threading.enumerate() if thread.name == "flowrra-sqlite"]
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*) FROM flowrra_listener").fetchone() == (0,)


# ---------------------------------------------------------------------------
# News between brokers on one file
# ---------------------------------------------------------------------------


def ports(path: Path) -> list[int]:
    with contextlib.closing(sqlite3.connect(path)) as db:
        return [row[0] for row in db.execute("SELECT port FROM flowrra_listener")]


async def is_listening(path: Path, *kinds: str) -> None:
    """Wait until somebody listens for these kinds of news."""

    def listened() -> str:
        with contextlib.closing(sqlite3.connect(path)) as db:
            return "".join(row[0] for row in db.execute("SELECT kinds FROM flowrra_listener"))

    async with asyncio.timeout(SOON):
        for _ in iter(lambda: set(kinds) <= set(listened()), True):
            await asyncio.sleep(0.005)


@pytest.fixture(params=["datagram", "data_version"])
def channel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How news may travel: with looks an hour apart only datagrams bring it; without datagrams the looks do."""
    if request.param == "datagram":
        monkeypatch.setattr(flowrra, "_LOOK_EVERY", 3600.0)
    return str(request.param)


def hush(path: Path, channel: str) -> None:
    """Make the store forget who listens, so that no datagram is sent."""
    if channel == "data_version":
        with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=30)) as db:
            db.execute("DELETE FROM flowrra_listener")


async def test_a_result_is_heard_of(path: Path, channel: str) -> None:
    async with opened(path) as here, opened(path) as there:
        await here.push([Job("a", "task")], now=NOW)
        (job,) = await claim(there)
        wait = asyncio.create_task(here.wait_for("a", SOON))
        await is_listening(path, "j")
        hush(path, channel)
        await there.settle([Outcome.succeed(job, 7)], now=NOW)
        assert (await wait).result == 7


async def consume(broker: SQLiteBroker, looked: asyncio.Event) -> list[str]:
    """What a worker does that finds nothing: it looks, and waits for long."""
    while not (jobs := await claim(broker)):
        looked.set()
        await broker.wait([("queue", "default")], 600)
    return [job.id for job in jobs]


async def test_a_job_is_heard_of(path: Path, channel: str) -> None:
    async with opened(path) as here, opened(path) as there:
        looked = asyncio.Event()
        consumer = asyncio.create_task(consume(here, looked))
        await looked.wait()
        await is_listening(path, "q")
        hush(path, channel)
        await there.push([Job("a", "task")], now=NOW)
        async with asyncio.timeout(SOON):
            assert await consumer == ["a"]


async def test_a_job_from_a_callers_transaction_is_heard_of(path: Path) -> None:
    """Nobody sends a datagram for it: data_version tells."""
    async with opened(path) as here:
        looked = asyncio.Event()
        consumer = asyncio.create_task(consume(here, looked))
        await looked.wait()
        with contextlib.closing(sqlite3.connect(path)) as db:
            here.push_in(db, [Job("a", "task")], now=NOW)
            db.commit()
        async with asyncio.timeout(SOON):
            assert await consumer == ["a"]


class Looks:
    """Counts a broker's looks at its file."""

    def __init__(self, broker: SQLiteBroker, monkeypatch: pytest.MonkeyPatch) -> None:
        self._look = broker.check
        self.count = 0
        self._another = asyncio.Event()
        monkeypatch.setattr(broker, "check", self._noted)

    def _noted(self) -> None:
        self.count += 1
        self._another.set()
        self._look()

    async def more(self, count: int) -> None:
        goal = self.count + count
        async with asyncio.timeout(SOON):
            while self.count < goal:
                self._another.clear()
                await self._another.wait()


async def test_two_handles_look_each_for_itself(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is woken once in a while, however many wait; when one is closed, the other goes on."""
    monkeypatch.setattr(flowrra, "_LOOK_EVERY", 0.05)
    async with opened(path) as here:
        twin = here.clone()
        assert twin is not None
        await twin.open()
        own, others = Looks(here, monkeypatch), Looks(twin, monkeypatch)
        keeper = asyncio.create_task(beat(twin))
        looked = asyncio.Event()
        consumer = asyncio.create_task(consume(here, looked))
        await looked.wait()
        await is_listening(path, "q", "w")
        await others.more(4)
        assert own.count <= others.count + 2  # one follows the registration as a listener
        await push_in_silence(here, "a")
        assert await within(consumer) == ["a"]

        consumer = asyncio.create_task(consume(here, looked))
        keeper.cancel()
        await asyncio.wait([keeper])
        await twin.close()
        await own.more(1)
        await push_in_silence(here, "b")
        assert await within(consumer) == ["b"]


async def beat(twin: SQLiteBroker) -> None:
    while True:
        await twin.heartbeat(WorkerInfo("w1", "host", os.getpid()), lease=60, now=NOW)
        await twin.wait([("worker", "")], 600)


async def push_in_silence(broker: SQLiteBroker, task_id: str) -> None:
    """As `submit_in` does it: nobody sends a datagram."""
    with contextlib.closing(sqlite3.connect(str(broker.path))) as db:
        broker.push_in(db, [Job(task_id, "task")], now=NOW)
        db.commit()


async def test_a_cancellation_is_heard_of(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flowrra, "_LOOK_EVERY", 3600.0)
    async with opened(path) as here, opened(path) as there:
        await here.push([Job("a", "task")], now=NOW)
        await claim(here)
        info = WorkerInfo("w1", "host", os.getpid(), seen=NOW)

        async def wait_for_news() -> list[str]:
            while not (cancelled := (await here.heartbeat(info, lease=60, now=NOW)).cancelled):
                await here.wait([("worker", "")], 600)
            return list(cancelled)

        news = asyncio.create_task(wait_for_news())
        await is_listening(path, "w")
        assert await there.cancel("a", now=NOW)
        async with asyncio.timeout(SOON):
            assert await news == ["a"]


async def test_more_news_than_a_datagram_holds(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flowrra, "_LOOK_EVERY", 3600.0)
    names = [f"{n:04d}{'x' * 200}" for n in range(400)]
    async with opened(path) as here, opened(path) as there:
        await here.push([Job(name, "task") for name in names], now=NOW)
        jobs = await claim(there, 1_000)
        wait = asyncio.create_task(here.wait_for(names[-1], SOON))
        await is_listening(path, "j")
        await there.settle([Outcome.succeed(job, None) for job in jobs], now=NOW)
        assert (await wait).is_success


@pytest.mark.parametrize(
    "noise", [b"", b"\xff\xfe", b"[]", b"{}", b"null", b"[1,2]", b'["r",1]', b'["x"]', b"[" * 60_000]
)
async def test_noise_on_the_port_harms_nobody(path: Path, noise: bytes) -> None:
    async with opened(path) as broker:
        await broker.push([Job("a", "task")], now=NOW)
        wait = asyncio.create_task(broker.wait_for("a", SOON))
        await is_listening(path, "j")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for port in ports(path):
                sender.sendto(noise, ("127.0.0.1", port))
        (job,) = await claim(broker)
        await broker.settle([Outcome.succeed(job, 7)], now=NOW)
        assert (await wait).result == 7


async def test_a_listener_that_is_gone_harms_nobody(path: Path) -> None:
    async with opened(path) as broker:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unused:
            unused.bind(("127.0.0.1", 0))
            port = unused.getsockname()[1]
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.execute("INSERT INTO flowrra_listener VALUES (?, 'jrn', 'elsewhere', 1, '')", (port,))
            db.commit()
        for number in range(3):
            assert await broker.push([Job(f"j{number}", "task")], now=NOW) == [f"j{number}"]
    async with opened(path):
        assert ports(path) == []


async def test_a_twin_serves_another_threads_loop(path: Path) -> None:
    async with opened(path) as broker:
        await broker.push([Job("a", "task")], now=NOW)
        twin = broker.clone()
        assert twin is not None

        async def look() -> TaskStatus | None:
            await twin.open()
            await twin.heartbeat(WorkerInfo("w1", "host", os.getpid()), lease=60, now=NOW)
            (result,) = await twin.get(["a"])
            await twin.close()
            return None if result is None else result.status

        assert await asyncio.to_thread(asyncio.run, look()) is TaskStatus.PENDING
        assert [info.id for info in await broker.workers()] == ["w1"]


# ---------------------------------------------------------------------------
# When it is on disk, and who hears of it sooner
# ---------------------------------------------------------------------------


class Disk:
    """Stands before fdatasync: notes what is committed by then, and refuses when told to."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = path
        self.committed: list[int] = []
        self.is_broken = False
        self.sync = os.fdatasync
        monkeypatch.setattr(os, "fdatasync", self.fdatasync)

    def fdatasync(self, descriptor: int) -> None:
        if self.is_broken:
            raise OSError(errno.EIO, "Input/output error")
        with contextlib.closing(sqlite3.connect(self.path)) as db:
            self.committed += db.execute("SELECT count(*) FROM flowrra_job").fetchone()
        self.sync(descriptor)


@pytest.mark.skipif(not hasattr(os, "fdatasync"), reason="this system has no fdatasync")
async def test_a_submit_is_synced_after_its_commit_and_before_its_answer(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(path) as broker:
        await broker.push([Job("first", "t")], now=NOW)  # through SQLite, which syncs the folder too
        disk = Disk(path, monkeypatch)
        await broker.push([Job("a", "t")], now=NOW)
        assert disk.committed == [2]
        await broker.push([Job("b", "t"), Job("c", "t")], now=NOW)  # by the writer's thread
        assert disk.committed == [2, 4]


@pytest.mark.skipif(not hasattr(os, "fdatasync"), reason="this system has no fdatasync")
async def test_a_disk_that_cannot_sync_is_an_error_of_the_submit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(path) as broker:
        await broker.push([Job("first", "t")], now=NOW)
        disk = Disk(path, monkeypatch)
        disk.is_broken = True
        for jobs in ([Job("a", "t")], [Job("b", "t"), Job("c", "t")]):
            with pytest.raises(BrokerError, match=r"jobs\.db-wal cannot be synced to disk .*: look at the disk"):
                await broker.push(jobs, now=NOW)
        disk.is_broken = False
        assert await broker.push([Job("a", "t")], now=NOW) == ["a"]


async def test_a_listener_that_the_writer_does_not_know_yet_looks_soon(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flowrra, "_LISTENERS_FRESH", 0.5)
    monkeypatch.setattr(flowrra, "_LOOK_EVERY", 1_000.0)
    async with opened(path) as writer, opened(path) as listener:
        await writer.push([Job("first", "t")], now=NOW)  # from now on it knows: nobody listens
        assert await claim(listener) != []
        waiting = asyncio.create_task(listener.wait([("queue", "default")], 1_000.0))
        await asyncio.to_thread(wait_for_listener, path)
        assert await claim(listener) == []
        await writer.push([Job("second", "t")], now=NOW)
        async with asyncio.timeout(SOON):
            await waiting
        assert [job.id for job in await claim(listener)] == ["second"]


def wait_for_listener(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        while not db.execute("SELECT count(*) FROM flowrra_listener").fetchone()[0]:
            time.sleep(0.001)
