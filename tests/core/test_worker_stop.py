"""Workers that are told to stop: what ends in time is not interrupted, what does not is handed back."""

import asyncio
import contextlib
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flowrra import BackendError, ExecutorNotRunningError, Flowrra, Job, TaskResult, TaskStatus
from tests.support.processes import Process, Site, all_jobs, count, some_running, stand_in, statuses, until

STOPS = [signal.SIGTERM, signal.SIGINT]

# Tasks of each kind that take for ever, until a later attempt.
SLOW = """
@app.task
async def slow():
    note("runs", current_job().id)
    await asyncio.sleep(60 if current_job().attempt == 1 else 0)


@app.task
def slow_in_a_thread():
    note("runs", current_job().id)
    time.sleep(60 if current_job().attempt == 1 else 0)


@app.task(cpu_bound=True)
def slow_in_a_process():
    note("runs", current_job().id)
    time.sleep(60 if current_job().attempt == 1 else 0)


@app.task
async def slow_in_to_thread():
    note("runs", current_job().id)
    await asyncio.to_thread(time.sleep, 60 if current_job().attempt == 1 else 0)


@app.task
async def blocking():
    note("runs", current_job().id)
    time.sleep(60 if current_job().attempt == 1 else 0)


@app.task
async def stubborn():
    note("runs", current_job().id)
    while current_job().attempt == 1:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            note("refusals", current_job().id)
"""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with Site(tmp_path, SLOW) as site:
        yield site


def assert_released(job: Job) -> None:
    """Handed back: ready for the next worker, and nothing charged."""
    assert (job.status, job.failures, job.crashes) == (TaskStatus.PENDING, 0, 0)
    assert [attempt.outcome for attempt in job.history] == ["release"]


# ---------------------------------------------------------------------------
# The drain
# ---------------------------------------------------------------------------


@pytest.mark.parametrize("number", STOPS)
async def test_no_job_that_ends_within_the_drain_is_interrupted(site: Site, number: signal.Signals) -> None:
    async with site.client() as app:
        await app.submit_many(stand_in(app, "app.nap"), [(0.7,)] * 60)
        worker = await site.worker()
        await until(lambda: len(site.lines("runs")) == 10, "ten jobs have begun")  # not only been claimed
        worker.send(number)
        assert await worker.ends() == 0
        jobs = await all_jobs(app)
    begun = [job for job in jobs if job.attempt]
    assert len(begun) >= 10
    assert statuses(begun) == {TaskStatus.SUCCESS: len(begun)}, worker.log
    assert {job.attempt for job in begun} == {1}
    assert statuses(jobs)[TaskStatus.PENDING] == len(jobs) - len(begun) > 0, "after the signal nothing is claimed"
    assert sorted(site.lines("runs")) == [job.id for job in begun]
    assert "worker stopped" in worker.log


@pytest.mark.parametrize("kind", ["slow", "slow_in_a_thread", "slow_in_to_thread", "slow_in_a_process", "stubborn"])
async def test_what_does_not_end_within_the_drain_runs_again_elsewhere(site: Site, kind: str) -> None:
    async with site.client() as app:
        queue = "cpu" if kind == "slow_in_a_process" else "default"
        task_id = await app.submit(stand_in(app, f"app.{kind}", queue=queue))
        worker = await site.worker("--drain", "0.2")
        await until(lambda: site.runs()[task_id] == 1, "the job runs")
        worker.send(signal.SIGTERM)
        assert await worker.ends() == 0
        (job,) = await all_jobs(app)
        assert_released(job)
        await site.worker()
        result: TaskResult[Any] = await app.wait_for_result(task_id, timeout=20)
    assert (result.status, result.attempts, site.runs()[task_id]) == (TaskStatus.SUCCESS, 2, 2)


async def test_an_idle_worker_exits_within_half_a_second(site: Site) -> None:
    """One of five does at least, since the machine may be busy with something else."""
    seconds: list[float] = []
    while min(seconds, default=1.0) >= 0.5:
        assert len(seconds) < 5, seconds
        worker = await site.worker()
        told = time.monotonic()
        worker.send(signal.SIGTERM)
        assert await asyncio.to_thread(worker.popen.wait, 20) == 0
        seconds.append(time.monotonic() - told)


@pytest.mark.parametrize("number", STOPS)
async def test_a_second_signal_waits_for_no_job(site: Site, number: signal.Signals) -> None:
    async with site.client() as app:
        await app.submit_many(stand_in(app, "app.slow"), [()] * 3)
        worker = await site.worker("--drain", "60")
        await some_running(app, 3)
        worker.send(number)
        await worker.says("stopping: running jobs get up to 60 s")
        worker.send(number)
        assert await worker.ends() == 0
        for job in await all_jobs(app):
            assert_released(job)


async def test_a_second_signal_ends_a_worker_whose_loop_is_blocked(site: Site) -> None:
    """Nobody is left who could hand the job back; it is rescued as after a crash."""
    async with site.client() as app:
        task_id = await app.submit(stand_in(app, "app.blocking"))
        worker = await site.worker("--drain", "60")
        await until(lambda: site.runs()[task_id] == 1, "the job blocks the loop")
        worker.send(signal.SIGTERM)
        worker.send(signal.SIGINT)
        assert await worker.ends() == 1
        await site.worker()
        result: TaskResult[Any] = await app.wait_for_result(task_id, timeout=20)
    assert (result.status, result.attempts) == (TaskStatus.SUCCESS, 2)


async def test_a_signal_that_comes_before_the_worker_is_ready_stops_it_too(site: Site) -> None:
    slow_start = site.folder / "app.py"
    slow_start.write_text(slow_start.read_text() + GATE)
    worker = site.begin_worker()
    await until(lambda: "opened" in site.lines("gate"), "the app is starting")
    worker.send(signal.SIGTERM)
    site.write("go", "")
    assert await worker.ends() == 0


GATE = """
import contextlib


@app.lifespan
@contextlib.asynccontextmanager
async def gate(app):
    note("gate", "opened")
    while not (HERE / "go").exists():
        await asyncio.sleep(0.01)
    yield
    note("gate", "closed")
"""


# ---------------------------------------------------------------------------
# stop() in a program
# ---------------------------------------------------------------------------

URLS = ["memory://", "sqlite:///{folder}/jobs.db"]


@pytest.fixture(params=URLS, ids=["memory", "sqlite"])
def app(request: pytest.FixtureRequest, tmp_path: Path) -> Flowrra:
    return Flowrra.from_urls(str(request.param).format(folder=tmp_path))


async def test_stopping_twice_at_once_waits_for_the_same_drain(app: Flowrra) -> None:
    begun, finish = asyncio.Event(), asyncio.Event()

    @app.task
    async def work() -> None:
        begun.set()
        await finish.wait()

    await app.start()
    await app.submit(work)
    await begun.wait()
    stops = [asyncio.create_task(app.stop()) for _ in range(2)]
    done, _ = await asyncio.wait(stops, timeout=0.05)
    assert not done, "it does not return while the job runs"
    finish.set()
    await asyncio.gather(*stops)
    assert not app.is_running
    await app.stop()  # and once more, when there is nothing left to stop
    with pytest.raises(ExecutorNotRunningError):
        await app.submit(work)


async def test_a_program_may_stop_its_app_from_a_signal_handler(app: Flowrra) -> None:
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    stops: list[asyncio.Task[None]] = []
    ran: list[int] = []

    def stop() -> None:
        stops.append(asyncio.create_task(app.stop()))
        told.set()

    @app.task
    async def work() -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        await told.wait()
        ran.append(1)

    loop.add_signal_handler(signal.SIGUSR1, stop)
    try:
        async with app:
            await app.submit(work)
            await told.wait()
            await stops[0]
            assert not app.is_running
    finally:
        loop.remove_signal_handler(signal.SIGUSR1)
    assert ran == [1]


async def test_those_who_wait_for_a_result_learn_that_the_app_was_stopped(app: Flowrra) -> None:
    begun = asyncio.Event()

    @app.task
    async def endless() -> None:
        begun.set()
        await asyncio.sleep(60)

    await app.start()
    task_id = await app.submit(endless)
    waiters: list[asyncio.Task[TaskResult[Any]]] = [asyncio.create_task(app.wait_for_result(task_id)) for _ in range(3)]
    await begun.wait()
    await app.stop(timeout=0)
    answers = await asyncio.wait_for(asyncio.gather(*waiters, return_exceptions=True), 20)
    assert [isinstance(answer, BackendError) for answer in answers] == [True] * 3, answers


async def test_stopping_without_waiting_hands_back_what_runs(tmp_path: Path) -> None:
    app = Flowrra.from_urls(f"sqlite:///{tmp_path}/jobs.db")
    begun = asyncio.Event()

    @app.task
    async def endless() -> None:
        begun.set()
        await asyncio.sleep(60)

    await app.start()
    await app.submit(endless)
    await begun.wait()
    async with asyncio.timeout(20):
        await app.stop(wait=False)
    async with app.client():
        (job,) = await app.jobs()
    assert_released(job)


# ---------------------------------------------------------------------------
# Several processes
# ---------------------------------------------------------------------------


def ready_pids(supervisor: Process) -> list[int]:
    return [int(pid) for pid in re.findall(r"worker ready: pid (\d+)", supervisor.log)]


def is_alive(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


@pytest.mark.parametrize("number", STOPS)
async def test_a_killed_child_is_replaced_and_signals_are_passed_on(site: Site, number: signal.Signals) -> None:
    async with site.client() as app:
        supervisor = site.begin_worker("--processes", "2")
        await supervisor.says("worker ready", times=2)
        first, second = ready_pids(supervisor)
        await app.submit_many(stand_in(app, "app.nap"), [(2.0,)] * 20)
        await some_running(app, 20)
        os.kill(first, signal.SIGKILL)
        await supervisor.says("worker ready", times=3)
        third = ready_pids(supervisor)[2]
        await until(lambda: not is_alive(first), "the dead child is waited for")
        supervisor.send(number)
        assert await supervisor.ends() == 0, supervisor.log
        assert not is_alive(second)
        assert not is_alive(third)
        assert await count(app, TaskStatus.RUNNING, TaskStatus.FAILED) == 0
    assert len(re.findall("INFO    worker stopped$", supervisor.log, re.M)) == 2, supervisor.log
    assert "release" not in supervisor.log, supervisor.log


async def test_children_that_are_still_starting_are_no_failure_of_a_stop(site: Site) -> None:
    site.write("slow.py", "import time\nwith open('loading', 'a') as file:\n    file.write('x\\n')\ntime.sleep(60)\n")
    supervisor = site.start("-m", "flowrra", "worker", "slow:app", "--processes", "2")
    await until(lambda: len(site.lines("loading")) == 2, "both are loading")
    supervisor.send(signal.SIGTERM)
    assert await supervisor.ends() == 0, supervisor.log


HASTY = """
import os, signal, subprocess, sys
import flowrra

class Interrupted(subprocess.Popen):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGTERM)

subprocess.Popen = Interrupted
flowrra.main(["worker", "app:app", "--processes", "2"])
"""


async def test_a_signal_while_a_child_is_being_started_ends_that_one_too(site: Site) -> None:
    supervisor = site.script(HASTY)
    assert await supervisor.ends() == 0, supervisor.log


# ---------------------------------------------------------------------------
# Starts that fail
# ---------------------------------------------------------------------------

ENDLESS_START = """
import contextlib

@app.lifespan
@contextlib.asynccontextmanager
async def waits_for_a_server(app):
    note("begun", "")
    await asyncio.Event().wait()
    yield
"""


@pytest.mark.parametrize("number", STOPS)
async def test_a_worker_that_is_still_starting_ends_at_once(tmp_path: Path, number: signal.Signals) -> None:
    with Site(tmp_path, ENDLESS_START) as site:
        worker = site.begin_worker()
        await until(lambda: site.lines("begun") != [], "the lifespan has begun")
        await worker.says("the worker is not ready yet")
        worker.send(number)
        assert await worker.ends() == 0
        assert "Traceback" not in worker.log


async def test_a_module_that_raises_ends_the_worker_with_its_traceback(site: Site) -> None:
    site.write("broken.py", "def load():\n    raise ZeroDivisionError('while loading')\n\n\nload()\n")
    worker = site.start("-m", "flowrra", "worker", "broken:app")
    assert await worker.ends() == 1
    assert "Traceback (most recent call last)" in worker.log
    assert "ZeroDivisionError: while loading" in worker.log
    assert "broken.py" in worker.log


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        ("nowhere:app", "there is no module 'nowhere'"),
        ("app:nothing", "is not an app in the module app; it has app"),
        ("app", "an app has the form module:app"),
    ],
)
async def test_an_app_that_cannot_be_found_is_one_line(site: Site, target: str, complaint: str) -> None:
    worker = site.start("-m", "flowrra", "worker", target)
    assert await worker.ends() == 2
    assert complaint in worker.log
    assert "Traceback" not in worker.log


async def test_a_supervisor_whose_children_cannot_start_still_heeds_a_signal(site: Site) -> None:
    site.write("broken.py", "raise ZeroDivisionError('while loading')\n")
    supervisor = site.start("-m", "flowrra", "worker", "broken:app", "--processes", "2")
    await supervisor.says("ended with status 1", times=2)
    supervisor.send(signal.SIGTERM)
    await supervisor.ends()
    assert "ZeroDivisionError: while loading" in supervisor.log
