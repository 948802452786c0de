"""Nothing is lost: workers and producers die at any moment, and every job still comes to its one end.

All with real processes and `kill -9`. A job runs at least once; what these tests hold besides is
that an end that was written stays, and that a crash costs innocent jobs nothing.
"""

import asyncio
import contextlib
import os
import random
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from flowrra import KILLED, WORKER_LOST, Flowrra, Job, JobFilter, TaskResult, TaskStatus
from tests.support.pages import ROOT
from tests.support.processes import (
    SHORT_LEASE,
    Process,
    Site,
    all_finished,
    all_jobs,
    count,
    site_on,
    some_running,
    some_succeeded,
    stand_in,
    statuses,
    until,
)

# A job that is still running whenever its first worker is killed, however slow the machine is.
LINGERING = """
@app.task
async def linger():
    await asyncio.sleep(60 if current_job().attempt == 1 else 0.01)
    return os.getpid()


@app.task(max_retries=0)
async def order():
    job = current_job()

    async def work(what):
        note("steps", f"{job.id} begins {what}")
        await asyncio.sleep(0.02)
        return what

    for what in ("charge", "ship", "mail"):
        done = await job.step(what, work, what)
        note("steps", f"{job.id} has {done}")
    return os.getpid()
"""


BROKERS = ("sqlite", "redis", "postgresql")


@pytest.fixture
def file_site(tmp_path: Path) -> Iterator[Site]:
    with site_on("sqlite", tmp_path, LINGERING) as site:
        yield site


@pytest.fixture(params=BROKERS)
def site(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    with site_on(request.param, tmp_path, LINGERING) as site:
        yield site


def assert_innocents_paid_nothing(jobs: list[Job]) -> None:
    """They all succeeded, and no retry was used up by what happened to their workers."""
    assert statuses(jobs) == {TaskStatus.SUCCESS: len(jobs)}
    assert {job.failures for job in jobs} == {0}


def first_crash(job: Job) -> float:
    """When the store noticed that the job's first worker was gone."""
    (crash, *_) = [attempt for attempt in job.attempts if attempt.outcome == "crash"]
    assert crash.ended is not None
    assert crash.error == WORKER_LOST
    return crash.ended


# ---------------------------------------------------------------------------
# Killed workers
# ---------------------------------------------------------------------------


async def test_a_worker_started_after_a_kill_takes_up_everything(site: Site) -> None:
    async with site.client() as app:
        await app.submit_many(stand_in(app, "app.nap"), [(0.02 + n % 7 / 500,) for n in range(500)])  # not in step
        first = await site.worker()
        await some_succeeded(app, 50)
        await first.kill()
        killed = time.time()
        interrupted = [job.id for job in await app.jobs(status=TaskStatus.RUNNING)]
        assert interrupted, "the kill came too late to interrupt anything"
        await site.worker()
        jobs = await all_finished(app)
    assert_innocents_paid_nothing(jobs)
    again = [job for job in jobs if job.attempt > 1]
    assert [job.id for job in again] == sorted(interrupted)
    assert min(job.started or 0.0 for job in again) - killed < 5.0  # of the 10 that its lease has
    twice = {task_id for task_id, runs in site.runs().items() if runs > 1}
    assert twice <= set(interrupted)


async def test_workers_killed_at_random_moments_lose_nothing(site: Site) -> None:
    draw = random.Random(20250301)  # noqa: S311 (repeatable, not secret)
    async with site.client() as app:
        workers = [await site.worker("--concurrency", "5") for _ in range(2)]
        for _ in range(5):
            await app.submit_many(stand_in(app, "app.nap"), [(0.04,)] * 200)
            await asyncio.sleep(draw.uniform(0.1, 0.4))  # the random moment
            victim = draw.randrange(len(workers))
            await workers[victim].kill()
            assert await count(app, TaskStatus.PENDING, TaskStatus.RUNNING), "there was nothing left to lose"
            workers[victim] = await site.worker("--concurrency", "5")
        jobs = await all_finished(app)
    assert len(jobs) == 1000
    assert_innocents_paid_nothing(jobs)
    assert sum(job.crashes for job in jobs) > 0
    assert all(1 <= site.runs()[job.id] <= job.attempt for job in jobs)


async def test_no_step_that_is_kept_is_done_again_whenever_workers_are_killed(site: Site) -> None:
    draw = random.Random(20261129)  # noqa: S311 (repeatable, not secret)
    async with site.client() as app:
        await app.submit_many(stand_in(app, "app.order"), [()] * 300)
        workers = [await site.worker("--concurrency", "4") for _ in range(2)]
        for _ in range(5):
            await asyncio.sleep(draw.uniform(0.1, 0.4))  # the random moment
            victim = draw.randrange(len(workers))
            await workers[victim].kill()
            workers[victim] = await site.worker("--concurrency", "4")
        jobs = await all_finished(app)
    assert_innocents_paid_nothing(jobs)
    assert sum(job.crashes for job in jobs) > 0
    assert {tuple(step.name for step in job.steps) for job in jobs} == {("charge", "ship", "mail")}
    kept: set[tuple[str, str]] = set()
    begun: Counter[tuple[str, str]] = Counter()
    for line in site.lines("steps"):
        task_id, verb, what = line.split()
        if verb == "has":
            kept.add((task_id, what))
        else:
            assert (task_id, what) not in kept, line
            begun[task_id, what] += 1
    crashes = {job.id: job.crashes for job in jobs}
    assert len(begun) == 900
    assert all(
        sum(begun[task_id, what] for what in ("charge", "ship", "mail")) <= 3 + n for task_id, n in crashes.items()
    )


# How often workers of the example are killed: by default as often as the gate has time for.
KILLS = int(os.environ.get("FLOWRRA_TEST_KILLS", "10"))
ORDER = (ROOT / "examples" / "order.py").read_text()


@contextlib.contextmanager
def closed_for_writers(path: Path) -> Iterator[None]:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=30)) as db:
        db.execute("BEGIN IMMEDIATE")
        yield


async def busy_one(app: Flowrra, workers: Sequence[Process]) -> int:
    """The place of a worker that runs a job; of any, if none is seen to run one for half a second."""
    pids = [worker.popen.pid for worker in workers]
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        for job in await app.broker.find(JobFilter(status=frozenset((TaskStatus.RUNNING,)))):
            pid = int(str(job.worker).split("-")[-2])
            if pid in pids:  # else of a worker that was killed before
                return pids.index(pid)
    return 0


async def test_an_order_is_charged_once_however_often_its_workers_are_killed(site: Site) -> None:
    """The example, with events that come before, during and after the wait for them."""
    draw = random.Random(42)  # noqa: S311 (repeatable, not secret)
    services = site.folder / "services.db"
    env = {"FLOWRRA_BROKER": site.url, "ORDER_SERVICES": str(services)}
    site.write("app.py", ORDER)
    orders = KILLS * 20
    async with site.client() as app:
        await app.submit_many(stand_in(app, "app.order"), [(number,) for number in range(orders)])
        workers = [await site.worker("--concurrency", "4", env=env) for _ in range(2)]
        numbers = list(range(orders))
        draw.shuffle(numbers)
        for kill in range(KILLS):
            emits = asyncio.gather(*(app.emit(f"delivered:parcel {number}") for number in numbers[kill::KILLS]))
            # At a random moment, or certainly amidst a job: the services do not answer it.
            with contextlib.nullcontext() if kill % 2 else closed_for_writers(services):
                victim = await busy_one(app, workers)
                await asyncio.sleep(draw.uniform(0.0, 0.01))
                await workers[victim].kill()
            await emits
            workers[victim] = await site.worker("--concurrency", "4", env=env)
        # A job that was running in three crashes is given up, in 200 kills one in some thousand. A person requeues it.
        given_up = [job.id for job in await all_finished(app) if job.error == KILLED]
        assert len(given_up) <= KILLS // 20
        assert await app.requeue_all(task="app.order") == len(given_up)
        jobs = [job for job in await all_finished(app) if job.task == "app.order"]
    assert statuses(jobs) == {TaskStatus.SUCCESS: orders}
    assert_succeeded_after_one_failure([job for job in jobs if job.id not in given_up])
    assert any(attempt.outcome == "crash" for job in jobs for attempt in job.history)
    with contextlib.closing(sqlite3.connect(services)) as db:
        called = Counter(what for (what,) in db.execute("SELECT what FROM called"))
    assert called == {f"{what} {number}": 1 for what in ("charge", "ship", "mail") for number in range(orders)}


def assert_succeeded_after_one_failure(jobs: list[Job]) -> None:
    assert statuses(jobs) == {TaskStatus.SUCCESS: len(jobs)}
    assert {job.failures for job in jobs} == {1}


async def test_survivors_rescue_the_jobs_of_a_killed_worker_within_two_seconds(file_site: Site) -> None:
    async with file_site.client() as app:
        victim = await file_site.worker("--concurrency", "5")
        await app.submit_many(stand_in(app, "app.linger"), [()] * 5)
        await some_running(app, 5)
        await file_site.worker()
        await victim.kill()
        killed = time.time()
        jobs = await all_finished(app)
    assert_innocents_paid_nothing(jobs)
    assert {job.crashes for job in jobs} == {1}
    assert max(first_crash(job) for job in jobs) - killed < 2.0 + 2.5  # and a margin for a busy machine; its lease: 7 s


async def test_a_restarted_only_worker_rescues_before_it_is_ready(file_site: Site) -> None:
    """With its lease of 10 s still valid, the dead worker is told by its pid."""
    async with file_site.client() as app:
        await app.submit_many(stand_in(app, "app.linger"), [()] * 3)
        victim = await file_site.worker()
        await some_running(app, 3)
        await victim.kill()
        killed = time.time()
        await file_site.worker()
        ready = time.time()
        jobs = await all_finished(app)
    assert all(killed <= first_crash(job) <= ready for job in jobs)
    assert_innocents_paid_nothing(jobs)


async def test_one_process_of_several_is_enough_to_open_and_rescue(file_site: Site) -> None:
    """A producer that opens the store also puts back what the dead were running."""
    async with file_site.client() as app:
        await app.submit(stand_in(app, "app.linger"))
        victim = await file_site.worker()
        await some_running(app, 1)
        await victim.kill()
    async with file_site.client() as app:
        (job,) = await all_jobs(app)
    assert (job.status, job.crashes, job.failures) == (TaskStatus.PENDING, 1, 0)


# ---------------------------------------------------------------------------
# Named crash points
# ---------------------------------------------------------------------------

CRASH_POINTS = """
broker, store = app.broker, flowrra.SQLiteTable
claim, settle = broker.claim, broker.settle
store_claim, store_settle, store_heartbeat = store.claim, store.settle, store.heartbeat
reached = []


def reach(work):
    # Die the third time that there is something to do, so that earlier times have left their traces.
    if work:
        reached.append(work)
    if len(reached) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return work


async def after_claim(*args, **options):
    return reach(await claim(*args, **options))


async def before_settle(outcomes, **options):
    reach(outcomes)
    return await settle(outcomes, **options)


async def after_settle(*args, **options):
    return reach(await settle(*args, **options))


POINTS = {
    "before the commit of a claim": lambda: setattr(store, "claim", lambda *a, **k: reach(store_claim(*a, **k))),
    "after a claim": lambda: setattr(broker, "claim", after_claim),
    "between run and settle": lambda: setattr(broker, "settle", before_settle),
    "before the commit of a settle": lambda: setattr(store, "settle", lambda *a, **k: reach(store_settle(*a, **k))),
    "after a settle, before it is announced": lambda: setattr(broker, "settle", after_settle),
    "in a hook": lambda: app.on("success")(reach),
}
if "CRASH_AT" in os.environ:
    POINTS[os.environ["CRASH_AT"]]()
"""

# What the third time leaves: runs whose end was not written, and ends that were.
POINTS = {
    "before the commit of a claim": (0, 0),
    "after a claim": (0, 0),
    "between run and settle": (1, 2),
    "before the commit of a settle": (1, 2),
    "after a settle, before it is announced": (0, 3),
    "in a hook": (0, 3),
}


@pytest.mark.parametrize("point", POINTS)
async def test_a_crash_at_a_named_point_loses_nothing(tmp_path: Path, point: str) -> None:
    with Site(tmp_path, CRASH_POINTS) as site:
        async with site.client() as app:
            await app.submit_many(stand_in(app, "app.nap"), [(0.005,)] * 60)
            doomed = site.begin_worker("--concurrency", "3", env={"CRASH_AT": point})
            assert await doomed.ends() == -signal.SIGKILL, doomed.log
            before = {job.id: job for job in await all_jobs(app)}
            await site.worker()
            jobs = await all_finished(app)
        runs = site.runs()
    assert_innocents_paid_nothing(jobs)
    assert len(jobs) == 60
    for job in jobs:
        old = before[job.id]
        if old.status is TaskStatus.SUCCESS:
            assert (job.finished, job.attempt, runs[job.id]) == (old.finished, 1, 1), "its end was written once"
    repeated = [job for job in jobs if runs[job.id] > 1]
    assert all(before[job.id].status is TaskStatus.RUNNING for job in repeated)
    least_repeated, least_kept = POINTS[point]
    assert len(repeated) >= least_repeated
    assert statuses(list(before.values()))[TaskStatus.SUCCESS] >= least_kept


# ---------------------------------------------------------------------------
# Jobs that kill their worker
# ---------------------------------------------------------------------------

KILLER = """
@app.task
async def kill_worker():
    note("runs", current_job().id)
    os.kill(os.getpid(), signal.SIGKILL)


@app.task
def kill_worker_from_a_thread():
    os.kill(os.getpid(), signal.SIGKILL)
"""


async def work_until_all_is_finished(site: Site, app: Flowrra) -> int:
    """Keep a worker alive as an init system would; how often one was killed."""
    deaths = 0
    worker = await site.worker()
    while await count(app, TaskStatus.PENDING, TaskStatus.RUNNING, TaskStatus.RETRYING):
        if worker.is_over:
            deaths += 1
            worker = site.begin_worker()
        await asyncio.sleep(0.02)
    return deaths


@pytest.mark.parametrize("broker", BROKERS)
@pytest.mark.parametrize("name", ["kill_worker", "kill_worker_from_a_thread"])
async def test_only_the_job_that_kills_its_worker_is_charged(tmp_path: Path, name: str, broker: str) -> None:
    with site_on(broker, tmp_path, KILLER) as site:
        async with site.client() as app:
            nap = stand_in(app, "app.nap")
            innocents = await app.submit_many(nap, [(0.1,)] * 5)
            guilty = await app.submit(stand_in(app, f"app.{name}"))
            innocents += await app.submit_many(nap, [(0.1,)] * 10)
            async with asyncio.timeout(20):
                deaths = await work_until_all_is_finished(site, app)
            jobs = {job.id: job for job in await all_jobs(app)}
    killer = jobs.pop(guilty)
    assert (killer.status, killer.error, killer.crashes) == (TaskStatus.FAILED, KILLED, 3)
    assert [attempt.outcome for attempt in killer.history] == ["crash"] * 3
    assert deaths == 3
    assert sorted(jobs) == sorted(innocents)
    assert_innocents_paid_nothing(list(jobs.values()))
    assert max(job.crashes for job in jobs.values()) == 1, "after the first crash each suspect runs alone"


# ---------------------------------------------------------------------------
# Producers
# ---------------------------------------------------------------------------

PRODUCER = """
import asyncio
from app import app, nap


async def produce():
    while True:
        print(await app.submit(nap, 0), flush=True)


async def produce_batches():
    while True:
        ids = await app.submit_many(nap, [(0,)] * 100)
        print("\\n".join(ids), flush=True)


async def main():
    async with app.client():
        await asyncio.gather(*(PRODUCE() for _ in range(COUNT)))


asyncio.run(main())
"""


async def acknowledged(producer: Process, number: int) -> list[str]:
    """Kill the producer after so many acknowledgements; all that it gave until it died."""
    pipe = producer.popen.stdout
    assert pipe is not None
    lines = [await asyncio.to_thread(pipe.readline) for _ in range(number)]
    await producer.kill()
    lines += pipe.readlines()
    return [line.decode().strip() for line in lines if line.endswith(b"\n")]


@pytest.mark.parametrize("producers", [1, 16])
async def test_what_a_killed_producer_had_acknowledged_is_there(site: Site, producers: int) -> None:
    program = PRODUCER.replace("PRODUCE", "produce").replace("COUNT", str(producers))
    ids = await acknowledged(site.script(program), 200)
    assert len(ids) >= 200
    async with site.client() as app:
        jobs = await all_jobs(app)
        assert {job.status for job in jobs} == {TaskStatus.PENDING}
    missing = set(ids) - {job.id for job in jobs}
    assert missing == set()


async def test_a_killed_producer_leaves_no_half_of_a_batch(site: Site) -> None:
    program = PRODUCER.replace("PRODUCE", "produce_batches").replace("COUNT", "3")
    ids = await acknowledged(site.script(program), 1000)
    async with site.client() as app:
        jobs = await all_jobs(app)
    assert set(ids) <= {job.id for job in jobs}
    assert len(jobs) % 100 == 0


# ---------------------------------------------------------------------------
# Leases
# ---------------------------------------------------------------------------

STOPPER = """
import contextlib

settle = app.broker.settle


async def stop_before_settle(outcomes, **options):
    file = getattr(app.broker, "_file", None)
    with contextlib.nullcontext() if file is None else file.lock:  # not while the writer holds SQLite's lock
        os.kill(os.getpid(), signal.SIGSTOP)
    return await settle(outcomes, **options)


if "STOP" in os.environ:
    app.broker.settle = stop_before_settle


@app.task
async def block(seconds):
    note("runs", current_job().id)
    time.sleep(seconds)
    return os.getpid()
"""


@pytest.fixture(params=BROKERS)
def stopping_site(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    with site_on(request.param, tmp_path, LINGERING + STOPPER) as site:
        yield site


async def test_a_settle_that_comes_after_the_lease_is_refused(stopping_site: Site) -> None:
    """The first worker stops between run and settle, sleeps past its lease, and goes on."""
    site = stopping_site
    async with site.client() as app:
        task_id = await app.submit(stand_in(app, "app.nap"), 0.01)
        late = await site.worker(env={**SHORT_LEASE, "STOP": "1"})
        await until(lambda: state_of(late) == "T", "the first worker stops itself")
        successor = await site.worker(env=SHORT_LEASE)
        result: TaskResult[Any] = await app.wait_for_result(task_id, timeout=20)
        assert (result.result, result.attempts) == (successor.pid, 2)
        late.send(signal.SIGCONT)
        await late.says("its lease was lost, so this attempt changes nothing")
        (job,) = await all_jobs(app)
    assert (job.result, job.attempt, job.finished) == (successor.pid, 2, result.finished)
    assert [attempt.outcome for attempt in job.attempts] == ["crash", "success"]
    assert job.failures == 0


async def stop_outside_of_transactions(site: Site, process: Process) -> None:
    """SIGSTOP. A process that is stopped while it holds SQLite's lock stops all others as well."""
    if not site.url.startswith("sqlite"):
        process.send(signal.SIGSTOP)
        return

    def is_stopped_without_the_lock() -> bool:
        process.send(signal.SIGSTOP)
        with contextlib.closing(sqlite3.connect(site.store, timeout=0, isolation_level=None)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                process.send(signal.SIGCONT)
                return False
            connection.execute("ROLLBACK")
        return True

    await until(is_stopped_without_the_lock, "a stop between two transactions")


def state_of(process: Process) -> str:
    """The letter that stands for the state of a process, T if it is stopped; see proc(5)."""
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]


async def test_a_worker_that_was_stopped_past_its_lease_goes_on_working(stopping_site: Site) -> None:
    """As after a suspend: what it was running is another's by now, and it starts again with an empty hand."""
    site = stopping_site
    async with site.client() as app:
        nap = stand_in(app, "app.nap")
        sleeper = await site.worker(env=SHORT_LEASE)
        await app.submit_many(stand_in(app, "app.linger"), [()] * 4)
        await some_running(app, 4)
        await stop_outside_of_transactions(site, sleeper)
        successor = await site.worker(env=SHORT_LEASE)
        jobs = await all_finished(app)
        assert {job.result for job in jobs} == {successor.pid}
        successor.send(signal.SIGTERM)
        assert await successor.ends() == 0
        sleeper.send(signal.SIGCONT)
        await sleeper.says("lost its lease")
        last = await app.submit(nap, 0.01)
        assert (await app.wait_for_result(last, timeout=20)).result == sleeper.pid
        again = await all_jobs(app)
    assert [(job.finished, job.attempt, job.result) for job in again[:4]] == [
        (job.finished, job.attempt, job.result) for job in jobs
    ]
    assert_innocents_paid_nothing(again)


async def test_a_job_that_blocks_the_loop_keeps_its_lease_and_is_reported(stopping_site: Site) -> None:
    """Blocked for three leases, with another worker waiting to inherit."""
    site = stopping_site
    async with site.client() as app:
        task_id = await app.submit(stand_in(app, "app.block"), 3.0)
        worker = await site.worker(env=SHORT_LEASE)
        await until(lambda: site.runs()[task_id] == 1, "the job runs")
        await site.worker(env=SHORT_LEASE)
        result: TaskResult[Any] = await app.wait_for_result(task_id, timeout=20)
    assert (result.result, result.attempts) == (worker.pid, 1)
    assert site.runs()[task_id] == 1
    assert worker.log.count("the event loop has been blocked") == 1
    report = worker.log.partition("the event loop has been blocked")[2]
    assert task_id in report
    assert "time.sleep(seconds)" in report
