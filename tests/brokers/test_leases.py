"""Leases on this host: processes that live, boots without an id, and what a worker does while it has no lease."""

import asyncio
import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest

import flowrra
from flowrra import (
    BrokerError,
    Flowrra,
    Job,
    MemoryBroker,
    Notices,
    Outcome,
    Progress,
    SQLiteBroker,
    TaskId,
    TaskStatus,
    WorkerInfo,
    current_job,
)
from flowrra_extras.testing import ManualClock
from tests.support.apps import eventually, make_app

NOW = 1_700_000_000.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@pytest.fixture
def stranger() -> Iterator[int]:
    """The pid of another process that is alive."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process.pid
        process.kill()


@contextlib.asynccontextmanager
async def opened_with(path: Path, clock: ManualClock) -> AsyncIterator[SQLiteBroker]:
    broker = SQLiteBroker(str(path), clock=clock)
    await broker.open()
    try:
        yield broker
    finally:
        await broker.close()


def set_process(path: Path, worker: str, pid: int) -> None:
    """As if the worker had registered from that process."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        birth = flowrra._birth_of(pid)
        db.execute("UPDATE flowrra_worker SET pid = ?, birth = ? WHERE id = ?", (pid, birth, worker))


# ---------------------------------------------------------------------------
# SQLite: processes of this host
# ---------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="without /proc nobody can tell")
async def test_a_lapsed_worker_whose_process_lives_is_not_rescued(path: Path, stranger: int) -> None:
    """It may be busy or starved, and goes on with its jobs. One that is stopped does not, and is as good as gone."""
    clock = ManualClock()
    async with opened_with(path, clock) as broker:
        late, here = WorkerInfo("late", pid=stranger), WorkerInfo("here", pid=os.getpid())
        await broker.heartbeat(late, lease=10, now=NOW)
        await broker.push([Job("a", "task")], now=NOW)
        assert len(await broker.claim("default", limit=1, worker="late", now=NOW)) == 1
        set_process(path, "late", stranger)
        for _ in range(6):
            assert (await broker.heartbeat(here, lease=10, now=NOW)).lost_workers == []
            assert await broker.claim("default", limit=1, worker="here", now=NOW) == []
            clock.advance(4)
        os.kill(stranger, signal.SIGSTOP)
        await eventually(lambda: Path(f"/proc/{stranger}/stat").read_text().rpartition(")")[2].split()[0] == "T")
        assert (await broker.heartbeat(here, lease=10, now=NOW)).lost_workers == ["late"]


async def test_a_lease_of_an_earlier_boot_does_not_hold(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no boot id, the length tells: the clock of a new boot begins anew."""
    monkeypatch.setattr(flowrra, "_home_name", lambda: "host")
    for seconds_up in (500.0, 1_005.0):  # since the boot: half as long as before, and almost as long
        clock = ManualClock()  # up for 1,000 s
        async with opened_with(path, clock) as broker:
            await broker.heartbeat(WorkerInfo("before", pid=os.getpid()), lease=10, now=NOW)
            await broker.push([Job(f"job {seconds_up}", "task")], now=NOW)
            assert len(await broker.claim("default", limit=1, worker="before", now=NOW)) == 1
        clock = ManualClock(monotonic=seconds_up)
        async with opened_with(path, clock) as broker:
            after = WorkerInfo("after", pid=os.getpid())
            lost = list((await broker.heartbeat(after, lease=10, now=NOW)).lost_workers)
            if seconds_up < 990:
                assert lost == ["before"]
            else:  # it looks like a lease of this boot, and holds no longer than one
                clock.advance(6)
                lost += (await broker.heartbeat(after, lease=10, now=NOW)).lost_workers
                assert lost == ["before"]
            assert [info.id for info in await broker.workers()] == ["after"]
            await broker.heartbeat(after, lease=0, now=NOW)


async def test_a_lease_holds_where_the_clock_of_another_core_is_behind(path: Path) -> None:
    ahead, behind = ManualClock(), ManualClock(monotonic=999.999)
    worker, other = WorkerInfo("worker", pid=os.getpid()), WorkerInfo("other", pid=os.getpid())
    async with opened_with(path, ahead) as broker, opened_with(path, behind) as late:
        await broker.heartbeat(worker, lease=10, now=NOW)
        await broker.push([Job("a", "task")], now=NOW)
        assert [info.id for info in await late.workers()] == ["worker"]
        assert len(await late.claim("default", limit=1, worker="worker", now=NOW)) == 1
        assert (await late.heartbeat(other, lease=10, now=NOW)).lost_workers == []


async def test_a_worker_of_an_older_version_keeps_its_lease(path: Path) -> None:
    """It goes on after a newer one has migrated the file, and does not say how long its leases are."""
    clock = ManualClock()
    async with opened_with(path, clock) as broker:
        await broker.heartbeat(WorkerInfo("old", pid=os.getpid()), lease=100, now=NOW)
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("UPDATE flowrra_worker SET length = NULL, term = ''")
        new = WorkerInfo("new", pid=os.getpid())
        rescued = []
        for seconds in range(0, 120, 4):
            if (await broker.heartbeat(new, lease=10, now=NOW)).lost_workers:
                rescued.append(seconds)
            clock.advance(4)
        assert rescued == [100]


# ---------------------------------------------------------------------------
# The worker without a lease
# ---------------------------------------------------------------------------


class Far(MemoryBroker):
    """Heartbeats get no answer while it is `away`; the answer to a claim is on its way until `arrives`."""

    def __init__(self) -> None:
        super().__init__()
        self.away = False
        self.claimed: list[Job] = []
        self.arrives = asyncio.Event()

    async def claim(self, queue: str, *, limit: int, worker: str, now: float, crashes: int = 2) -> list[Job]:
        jobs = await super().claim(queue, limit=limit, worker=worker, now=now, crashes=crashes)
        self.claimed += jobs
        if jobs:
            await self.arrives.wait()
        return jobs

    async def heartbeat(self, worker: WorkerInfo, *, lease: float, now: float) -> Notices:
        if self.away and worker.id != "other":
            raise BrokerError("the store is away")
        return await super().heartbeat(worker, lease=lease, now=now)


@contextlib.asynccontextmanager
async def claimed_before_an_outage() -> AsyncIterator[tuple[Flowrra, Far, TaskId[None], list[int]]]:
    """A job that the store has handed out and that has not arrived when the lease ends; and the attempts that begin."""
    broker = Far()
    app = make_app(broker=broker, heartbeat=0.05, lease=0.3)
    begun: list[int] = []

    @app.task
    async def work() -> None:
        begun.append(current_job().attempt)

    async with app:
        task_id = await app.submit(work)
        await eventually(lambda: bool(broker.claimed))
        broker.away = True
        await asyncio.sleep(0.4)  # longer than the lease
        yield app, broker, task_id, begun


async def test_nothing_is_begun_without_a_lease() -> None:
    """What was claimed before an outage, and arrives when the lease has run out, waits for its renewal."""
    async with claimed_before_an_outage() as (app, broker, task_id, begun):
        broker.arrives.set()
        await asyncio.sleep(0.1)
        assert begun == []
        broker.away = False
        assert (await app.wait_for_result(task_id, timeout=20.0)).attempts == 1
    assert begun == [1]


async def test_what_arrives_after_the_lease_was_lost_is_not_begun() -> None:
    async with claimed_before_an_outage() as (app, broker, task_id, begun):
        notices = await broker.heartbeat(WorkerInfo("other", queues={"default": 1}), lease=0.1, now=app.now())
        assert len(notices.lost_workers) == 1
        broker.arrives.set()
        await asyncio.sleep(0.1)
        assert begun == []
        broker.away = False
        result = await app.wait_for_result(task_id, timeout=20.0)
    assert result.status is TaskStatus.SUCCESS
    assert len(begun) == 1
    assert begun[0] > 1, "not the attempt that had become another's"


async def test_what_arrives_when_the_lease_was_lost_and_given_anew_is_not_begun(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with claimed_before_an_outage() as (app, broker, task_id, begun):
        other = WorkerInfo("other", queues={"default": 1})
        assert len((await broker.heartbeat(other, lease=10.0, now=app.now())).lost_workers) == 1
        (taken,) = await MemoryBroker.claim(broker, "default", limit=1, worker="other", now=app.now())
        broker.away = False
        await eventually(lambda: "lost its lease" in caplog.text)
        broker.arrives.set()
        await eventually(lambda: "so this attempt changes nothing" in caplog.text)
        assert begun == [], "the other worker runs it"
        await broker.settle([Outcome.release(taken, "not here")], now=app.now())
        assert (await app.wait_for_result(task_id, timeout=20.0)).is_success


class Spy(MemoryBroker):
    """Remembers what was reported."""

    def __init__(self) -> None:
        super().__init__()
        self.reported: list[Progress] = []

    async def settle(self, outcomes: Sequence[Outcome], *, now: float) -> list[bool]:
        written = await super().settle(outcomes, now=now)
        self.reported += [outcome.progress for outcome in outcomes if outcome.progress is not None]
        return written


async def test_a_thread_of_an_earlier_attempt_does_not_report_for_the_next() -> None:
    """What a plain function has left behind goes on when its attempt is over."""
    broker = Spy()
    app = make_app(broker=broker)
    second, ends = threading.Event(), threading.Event()

    @app.task(max_retries=1, retry_delay=0)
    def work() -> None:
        job = current_job()

        def report_late() -> None:
            second.wait(20)
            job.progress(100 if job.attempt == 1 else -1)

        if job.attempt == 1:
            threading.Thread(target=report_late).start()
            raise ValueError
        job.progress(2)
        second.set()
        ends.wait(20)

    async with app:
        task_id = await app.submit(work)
        await eventually(lambda: {Progress(100), Progress(2)} <= {*broker.reported})
        (found,) = await broker.get([task_id])
        assert found is not None
        assert found.progress == Progress(2)
        ends.set()
        assert (await app.wait_for_result(task_id, timeout=20.0)).is_success
