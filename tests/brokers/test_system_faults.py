"""What surrounds the queue fails: locks, disks, clocks, power. Jobs are neither lost nor doubled."""

import asyncio
import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import flowrra
from flowrra import BrokerConfig, BrokerError, Config, Flowrra, TaskStatus, WorkerInfo
from tests.support import power_cut
from tests.support.disks import small_file_system
from tests.support.processes import (
    Process,
    Site,
    all_finished,
    all_jobs,
    count,
    some_running,
    some_succeeded,
    stand_in,
    statuses,
)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with Site(tmp_path) as site:
        yield site


# ---------------------------------------------------------------------------
# A locked database
# ---------------------------------------------------------------------------


@contextlib.contextmanager
def locked(store: Path) -> Iterator[None]:
    """Another program's transaction that holds the write lock."""
    connection = sqlite3.connect(store, isolation_level=None, timeout=30)
    try:
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("COMMIT")
    finally:
        connection.close()


async def test_a_lock_of_seconds_only_delays(site: Site) -> None:
    async with site.client() as app:
        nap = stand_in(app, "app.nap")
        worker = await site.worker()
        await app.submit_many(nap, [(0.3,)] * 10)
        await some_running(app, 10)
        with locked(site.store):
            submits = [asyncio.create_task(app.submit(nap, 0)) for _ in range(20)]
            lone = asyncio.create_task(app.submit_many(nap, [(0,)] * 50))
            done, _ = await asyncio.wait([*submits, lone], timeout=2.0)
            assert not done, "the lock did not hold"
            assert await count(app, TaskStatus.RUNNING) == 10, "readers go on"
        await asyncio.gather(*submits, lone)
        jobs = await all_finished(app)
    assert statuses(jobs) == {TaskStatus.SUCCESS: 80}
    assert {job.attempt for job in jobs} == {1}
    assert "ERROR" not in worker.log


async def test_a_worker_survives_a_lock_that_lasts_longer_than_it_waits(site: Site) -> None:
    """It says what is the matter in words of its own, and settles what has run when the lock is gone."""
    async with site.client() as app:
        await app.submit_many(stand_in(app, "app.nap"), [(0.2,)] * 30)
        worker = await site.worker(env={"FLOWRRA_BROKER_TIMEOUT": "0.2"})
        await some_running(app, 10)
        with locked(site.store):
            await worker.says("has been locked for 0.2 s")
        jobs = await all_finished(app)
    assert statuses(jobs) == {TaskStatus.SUCCESS: 30}
    assert {job.attempt for job in jobs} == {1}
    assert "database is locked" not in worker.log


async def test_a_submit_that_waited_long_enough_says_who_is_in_the_way(site: Site) -> None:
    async with site.client():
        pass
    app = Flowrra(Config(broker=BrokerConfig(url=site.url, timeout=0.2)))
    nap = stand_in(app, "app.nap")
    async with app.client():
        with locked(site.store), pytest.raises(BrokerError, match=r"locked for 0\.2 s") as caught:
            await app.submit(nap, 0)
        assert "database is locked" not in str(caught.value)
        assert await all_jobs(app) == []
        await app.submit(nap, 0)
        assert len(await all_jobs(app)) == 1


async def test_a_claim_that_was_given_up_while_it_waited_takes_no_job(site: Site) -> None:
    """As by a worker that is stopped meanwhile: it could neither run the job nor hand it back."""
    async with site.client() as app:
        await app.submit(stand_in(app, "app.nap"), 0)
        worker = WorkerInfo("stopped")
        await app.broker.heartbeat(worker, lease=10, now=time.time())
        with locked(site.store):
            claim = asyncio.create_task(app.broker.claim("default", limit=1, worker=worker.id, now=time.time()))
            done, _ = await asyncio.wait([claim], timeout=0.3)
            assert not done, "the lock did not hold"
            claim.cancel()
            await asyncio.wait([claim])
        await app.broker.heartbeat(worker, lease=10, now=time.time())  # behind the claim, in the same line
        (job,) = await all_jobs(app)
    assert (job.status, job.attempt) == (TaskStatus.PENDING, 0)


async def test_opening_waits_for_a_lock_too(site: Site) -> None:
    with locked(site.store):  # of a file in which the tables are yet to be made
        worker = site.begin_worker()
        opening = asyncio.create_task(open_and_close(Flowrra.from_urls(site.url)))
        done, _ = await asyncio.wait([opening], timeout=1.0)
        assert not done
        assert not worker.is_over
    await opening
    await worker.says("worker ready")


async def test_opening_waits_for_no_lock_where_there_is_nothing_to_do(site: Site) -> None:
    async with site.client():
        pass
    with locked(site.store):
        await asyncio.wait_for(open_and_close(Flowrra.from_urls(site.url)), timeout=20)
        worker = site.begin_worker()
        await worker.says("is locked by another connection")  # its first heartbeat waits
    await worker.says("worker ready")


async def open_and_close(app: Flowrra) -> None:
    async with app.client():
        pass


# ---------------------------------------------------------------------------
# A full disk
# ---------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with small_file_system(tmp_path / "disk", megabytes=2) as folder:
        yield folder


def fill(folder: Path) -> Path:
    """Take the last byte of the file system."""
    filler = folder / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return filler


async def test_a_full_disk_refuses_a_submit_and_leaves_nothing_half_written(tmp_path: Path, small_disk: Path) -> None:
    with Site(tmp_path, store=small_disk / "jobs.db") as site:
        async with site.client() as app:
            nap = stand_in(app, "app.nap")
            kept = await app.submit(nap, 0)
            filler = fill(small_disk)
            with pytest.raises(BrokerError, match="full disk"):
                await app.submit_many(nap, [(0, "x" * 100)] * 2000)
            submits = (app.submit(nap, 0, "x" * 5000) for _ in range(50))
            answers = await asyncio.gather(*submits, return_exceptions=True)
            assert any(isinstance(answer, BrokerError) for answer in answers), "there was room for all"
            jobs = [job.id for job in await all_jobs(app)]
            assert jobs == [kept, *(answer for answer in answers if isinstance(answer, str))]
            filler.unlink()
            again = await app.submit(nap, 0)
            assert {job.id for job in await all_jobs(app)} == {*jobs, again}
        with contextlib.closing(sqlite3.connect(site.store)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


async def test_a_worker_goes_on_when_there_is_room_again(tmp_path: Path, small_disk: Path) -> None:
    with Site(tmp_path, BULKY, store=small_disk / "jobs.db") as site:
        async with site.client() as app:
            await app.submit_many(stand_in(app, "app.bulky"), [()] * 20)
            worker = await site.worker()
            filler = fill(small_disk)
            site.write("go", "")
            await worker.says("is on a full disk")
            assert await count(app, TaskStatus.SUCCESS) < 20
            filler.unlink()
            jobs = await all_finished(app)
        assert statuses(jobs) == {TaskStatus.SUCCESS: 20}
        assert {job.attempt for job in jobs} == {1}, "they ran once, and only their settling waited"


BULKY = """
@app.task
async def bulky():
    while not (HERE / "go").exists():
        await asyncio.sleep(0.01)
    return "x" * 20_000
"""


# ---------------------------------------------------------------------------
# Many processes on one file
# ---------------------------------------------------------------------------

BURST = """
import asyncio, sys
from app import app, nap


async def submit(number):
    for _ in range(number):
        print(await app.submit(nap, 0.001), flush=True)


async def main():
    async with app.client():
        await asyncio.gather(*(submit(25) for _ in range(20)))


asyncio.run(main())
"""


def printed(process: Process) -> list[str]:
    assert process.popen.stdout is not None
    return process.popen.stdout.read().decode().split()


async def test_workers_and_producers_share_one_file(site: Site) -> None:
    workers = [await site.worker() for _ in range(2)]
    producers = [site.script(BURST) for _ in range(2)]
    ids = [task_id for producer in producers for task_id in await asyncio.to_thread(printed, producer)]
    assert [await producer.ends() for producer in producers] == [0, 0]
    async with site.client() as app:
        jobs = await all_finished(app)
    assert sorted(ids) == sorted(job.id for job in jobs)
    assert len(set(ids)) == 1000
    assert statuses(jobs) == {TaskStatus.SUCCESS: 1000}
    assert set(site.runs().values()) == {1}, "each ran once"
    assert {job.result for job in jobs} == {worker.pid for worker in workers}, "both had work"
    for process in (*workers, *producers):
        assert "locked" not in process.log


AT_ONCE = """
import asyncio, sys, time
from pathlib import Path
from app import app, nap


async def main():
    async with app.client():
        print("here", flush=True)
        while not Path("go").exists():
            time.sleep(0.001)
        print(await nap.options(KEY="the-one").submit(0))


asyncio.run(main())
"""


@pytest.mark.parametrize("key", ["unique", "task_id"])
async def test_of_simultaneous_pushes_with_one_key_one_gets_in(site: Site, key: str) -> None:
    producers = [site.script(AT_ONCE.replace("KEY", key)) for _ in range(4)]
    for producer in producers:
        assert producer.popen.stdout is not None
        assert await asyncio.to_thread(producer.popen.stdout.readline) == b"here\n"
    site.write("go", "")
    ids = [task_id for producer in producers for task_id in await asyncio.to_thread(printed, producer)]
    assert [await producer.ends() for producer in producers] == [0] * 4, producers[0].log
    async with site.client() as app:
        (job,) = await all_jobs(app)
    assert ids == [job.id] * 4


async def test_who_waits_in_another_process_is_told_at_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A datagram tells, not a poll."""
    monkeypatch.setattr(flowrra, "_LOOK_EVERY", 3600.0)
    async with site.client() as app:
        nap = stand_in(app, "app.nap")
        await site.worker()
        for _ in range(3):
            await app.wait_for_result(await app.submit(nap, 0.3), timeout=20)


# ---------------------------------------------------------------------------
# Clocks
# ---------------------------------------------------------------------------

JUMPING = """
class JumpingClock(flowrra.Clock):
    # A wall clock that is off by as many seconds as the file says.

    def time(self):
        return time.time() + float((HERE / "offset").read_text())


app = Flowrra(config, clock=JumpingClock())
app.task(name="app.nap")(nap.function)
"""


async def test_a_wall_clock_that_jumps_neither_loses_nor_doubles_jobs(tmp_path: Path) -> None:
    """An hour forth and back, under two workers that would inherit from each other."""
    with Site(tmp_path, JUMPING) as site:
        site.write("offset", "0")
        async with site.client() as app:
            nap = stand_in(app, "app.nap")
            workers = [await site.worker("--concurrency", "10") for _ in range(2)]
            for number, offset in enumerate((0, 3600, -3600, 86_400, 0)):
                turn_clock(site, offset)
                await app.submit_many(nap, [(0.02,)] * 100)
                await some_succeeded(app, 100 * number + 50)
            jobs = await all_finished(app)
    assert statuses(jobs) == {TaskStatus.SUCCESS: 500}
    assert {job.attempt for job in jobs} == {1}
    assert set(site.runs().values()) == {1}
    assert all("lost its lease" not in worker.log for worker in workers)
    assert all("is presumed dead" not in worker.log for worker in workers)


def turn_clock(site: Site, offset: float) -> None:
    """Replaced in one step, so that nobody reads half a number."""
    site.write("offset.new", str(offset)).replace(site.folder / "offset")


async def test_a_clock_that_is_set_forward_makes_due_what_waits(tmp_path: Path) -> None:
    with Site(tmp_path, JUMPING) as site:
        site.write("offset", "0")
        async with site.client() as app:
            await site.worker()
            task_id = await stand_in(app, "app.nap").options(delay=3000).submit(0)
            (job,) = await all_jobs(app)
            assert job.status is TaskStatus.SCHEDULED
            turn_clock(site, 3600)
            result: Any = await app.wait_for_result(task_id, timeout=20)
    assert result.is_success


# ---------------------------------------------------------------------------
# Power cuts
# ---------------------------------------------------------------------------

TRACED = """
import asyncio, os
from app import app, nap


def say(text):
    os.write(1, f"{text}\\n".encode())  # one call, so that the trace has it in one line


async def submits():
    for _ in range(10):
        say(await app.submit(nap, 0))


async def concurrent_submits():
    await asyncio.gather(*(submits() for _ in range(5)))


async def ends():
    await app.start()
    for _ in range(5):
        task_id = await app.submit(nap, 0)
        await app.wait_for_result(task_id)
        say(task_id)
    await app.stop()


async def claims():
    await app.submit_many(nap, [(0,)] * 40)
    await app.broker.heartbeat(flowrra.WorkerInfo("w"), lease=10, now=time.time())
    say("begin")
    for _ in range(20):
        await app.broker.heartbeat(flowrra.WorkerInfo("w"), lease=10, now=time.time())
        (job,) = await app.broker.claim("default", limit=1, worker="w", now=time.time())
    say("end")


async def main():
    async with app.client():
        await SCENE()


import flowrra, time
asyncio.run(main())
"""


@pytest.fixture
def strace() -> str:
    path = shutil.which("strace")
    if path is None:
        pytest.skip("strace is not installed")
    if subprocess.run([path, "-f", "-o", os.devnull, "true"], capture_output=True).returncode:
        pytest.skip("strace may not trace here")
    return path


async def moments(site: Site, strace: str, scene: str) -> list[power_cut.Moment]:
    """Run a scene of TRACED under strace."""
    script = site.write("traced.py", TRACED.replace("SCENE", scene))
    trace = site.folder / "trace"
    process = site.start(str(script), program=[strace, *power_cut.OPTIONS, "-o", str(trace), sys.executable])
    assert await process.ends(within=30) == 0, process.log
    return list(power_cut.replay(trace, site.store))


def found_after(moment: power_cut.Moment, folder: Path) -> dict[str, str]:
    """The jobs and their states that are found after a power cut at that moment."""
    power_cut.restore(moment.files, folder, ["jobs.db", "jobs.db-wal", "jobs.db-shm"])
    if not (folder / "jobs.db").exists():
        return {}
    with contextlib.closing(sqlite3.connect(folder / "jobs.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'flowrra_job'").fetchone():
            return {}
        return dict(connection.execute("SELECT id, status FROM flowrra_job").fetchall())


@pytest.mark.parametrize(
    ("scene", "number", "status"),
    [("submits", 10, "pending"), ("concurrent_submits", 50, "pending"), ("ends", 5, "success")],
)
async def test_a_power_cut_takes_nothing_that_was_acknowledged(
    site: Site, strace: str, tmp_path_factory: pytest.TempPathFactory, scene: str, number: int, status: str
) -> None:
    folder = tmp_path_factory.mktemp("after")
    acknowledged: list[str] = []
    for moment in await moments(site, strace, scene):
        acknowledged.append(moment.said)
        found = found_after(moment, folder)
        assert {task_id: found.get(task_id) for task_id in acknowledged} == dict.fromkeys(acknowledged, status)
    assert len(acknowledged) == number


async def test_with_synchronous_normal_a_power_cut_takes_the_last_moments(
    tmp_path: Path, strace: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What the URL offers for speed; and the proof that the replay would see a loss."""
    with Site(tmp_path, APP_WITH_NORMAL) as site:
        (*_, last) = await moments(site, strace, "submits")
    assert last.said not in found_after(last, tmp_path_factory.mktemp("after"))


APP_WITH_NORMAL = """
config.broker.url += "?synchronous=normal"
app = Flowrra(config)
nap = app.task(name="app.nap")(nap.function)
"""


async def test_claims_and_heartbeats_do_not_wait_for_the_disk(site: Site, strace: str) -> None:
    begin, end = await moments(site, strace, "claims")
    assert (begin.said, end.said) == ("begin", "end")
    assert begin.syncs > 0
    assert end.syncs == begin.syncs


# ---------------------------------------------------------------------------
# Forks
# ---------------------------------------------------------------------------

FORKING = """
import asyncio, os, signal, sys, warnings
from app import app, nap
from flowrra import FlowrraError

warnings.filterwarnings("ignore", ".*fork.*")  # of threads in a process that forks: that is what is tried here
signal.alarm(15)  # neither side may hang, nor at its exit


async def submit():
    return await app.submit(nap, 0)


async def submit_as_client():
    async with app.client():
        return await app.submit(nap, 0)


def tell(call):
    try:
        told = call()
    except FlowrraError as error:
        told = str(error).replace(" ", "_")
    os.write(1, f"{told}\\n".encode())  # whole lines: two processes write here


tell(lambda: app.sync.submit(nap, 0))
PREPARE
child = os.fork()
if child == 0:
    tell(lambda: app.sync.submit(nap, 0))
    tell(lambda: asyncio.run(submit()))
    tell(lambda: asyncio.run(submit_as_client()))
    sys.exit(0)
tell(lambda: app.sync.submit(nap, 0))
_, status = os.waitpid(child, 0)
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.parametrize("prepare", ["app.sync.close()", ""], ids=["closed", "open"])
async def test_an_app_is_used_on_both_sides_of_a_fork(site: Site, prepare: str) -> None:
    """As when a server loads the app, submits once, and forks."""
    program = site.script(FORKING.replace("PREPARE", prepare))
    told = await asyncio.to_thread(printed, program)
    assert await program.ends() == 0, program.log
    assert program.log == ""
    async with site.client() as app:
        jobs = {job.id for job in await all_jobs(app)}
    assert sorted(told) == sorted(jobs)
    assert len(jobs) == 5


async def test_a_script_that_leaves_its_app_open_ends_without_a_word(site: Site) -> None:
    program = site.script("from app import app, nap\n\nprint(*app.sync.submit_many(nap, [(0,)] * 3))\n")
    assert len(await asyncio.to_thread(printed, program)) == 3
    assert await program.ends() == 0
    assert program.log == ""
