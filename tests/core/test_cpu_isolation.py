"""CPU-bound tasks in processes of their own: what ends one of them ends nothing else."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from flowrra import Config, ExecutorConfig, Flowrra, Job, Progress, TaskResult, TaskStatus
from tests.support import cpu_work
from tests.support.processes import Site, some_running, stand_in, until

RETRY_AT_ONCE = {"retry_delay": 0.0}


@pytest.fixture
def app() -> Flowrra:
    return Flowrra(Config(executor=ExecutorConfig(cpu_workers=2)))


async def result_of(app: Flowrra, function: Any, *args: Any, **options: Any) -> TaskResult[Any]:
    """Run the function as a CPU-bound task of a started app."""
    task = app.task(cpu_bound=True, **{**RETRY_AT_ONCE, **options})(function)
    result: TaskResult[Any] = await app.wait_for_result(await app.submit(task, *args), timeout=20)
    return result


def is_alive(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


async def pid_in(path: Path) -> int:
    """The process that hangs, as it has noted itself."""
    await until(path.exists, "the task runs")
    return pid_of(path)


def pid_of(path: Path) -> int:
    return int(path.read_text())


async def job_of(app: Flowrra, task_id: str) -> Job:
    (job,) = [job for job in await app.jobs() if job.id == task_id]
    return job


# ---------------------------------------------------------------------------
# Ends of a process
# ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "told"),
    [("SIGKILL", "ended by SIGKILL"), ("SIGSEGV", "ended by SIGSEGV"), ("exit", "exited with status 3")],
)
async def test_a_process_that_dies_takes_its_own_attempt_and_no_other(
    app: Flowrra, tmp_path: Path, how: str, told: str
) -> None:
    wait_for = app.task(cpu_bound=True)(cpu_work.wait_for)
    async with app:
        neighbour = await app.submit(wait_for, str(tmp_path / "go"))
        await some_running(app, 1)
        dead = await result_of(app, cpu_work.die, how)
        assert (dead.result, dead.status) == (2, TaskStatus.SUCCESS)
        job = await job_of(app, dead.task_id)
        assert (job.failures, job.crashes) == (1, 0), "it is a failure of the task, since the worker lives"
        assert told in (job.history[0].error or "")
        (tmp_path / "go").touch()
        result: TaskResult[Any] = await app.wait_for_result(neighbour, timeout=20)
    assert (result.status, result.attempts) == (TaskStatus.SUCCESS, 1)


async def test_a_timeout_kills_the_process(app: Flowrra, tmp_path: Path) -> None:
    async with app:
        hanging = tmp_path / "pid"
        waiting = asyncio.create_task(result_of(app, cpu_work.hang, str(hanging), timeout=2.0, max_retries=0))
        pid = await pid_in(hanging)
        result = await waiting
        await until(lambda: not is_alive(pid), "the end of the process")
        assert result.status is TaskStatus.FAILED
        assert "took longer than its timeout of 2 s" in (result.error or "")
        assert (await result_of(app, cpu_work.pid)).result != pid


async def test_cancelling_kills_the_process(app: Flowrra, tmp_path: Path) -> None:
    hang = app.task(cpu_bound=True)(cpu_work.hang)
    async with app:
        task_id = await app.submit(hang, str(tmp_path / "pid"))
        pid = await pid_in(tmp_path / "pid")
        assert await app.cancel(task_id)
        result: TaskResult[Any] = await app.wait_for_result(task_id, timeout=20)
        assert result.status is TaskStatus.CANCELLED
        await until(lambda: not is_alive(pid), "the end of the process")


async def test_stopping_the_app_leaves_no_process_behind(app: Flowrra, tmp_path: Path) -> None:
    hang = app.task(cpu_bound=True)(cpu_work.hang)
    await app.start()
    await app.submit(hang, str(tmp_path / "pid"))
    idle = (await result_of(app, cpu_work.pid)).result
    busy = await pid_in(tmp_path / "pid")
    await app.stop(timeout=0)
    await until(lambda: not is_alive(busy) and not is_alive(idle), "the end of the processes")


async def test_a_task_that_calls_exit_fails_and_its_process_goes_on(app: Flowrra) -> None:
    async with app:
        before = {(await result_of(app, cpu_work.pid)).result for _ in range(2)}
        result = await result_of(app, cpu_work.leave, 3)
        assert (result.status, result.error, result.attempts) == (TaskStatus.FAILED, "SystemExit: 3", 1)
        assert "sys.exit(code)" in (result.traceback or "")
        assert {(await result_of(app, cpu_work.pid)).result for _ in range(2)} & before


# ---------------------------------------------------------------------------
# What goes to a process and comes back
# ---------------------------------------------------------------------------


async def test_as_many_run_at_once_as_there_are_cpu_workers(app: Flowrra, tmp_path: Path) -> None:
    meet = app.task(cpu_bound=True)(cpu_work.meet)
    async with app:
        ids = await app.submit_many(meet, [(str(tmp_path), number, 2) for number in range(6)])
        results: list[TaskResult[Any]] = [await app.wait_for_result(task_id, timeout=20) for task_id in ids]
    spans = [result.result for result in results]
    at_once = [sum(began <= moment < ended for began, ended in spans) for moment, _ in spans]
    assert max(at_once) == 2


async def test_printing_and_reading_do_not_disturb_the_answers(app: Flowrra) -> None:
    async with app:
        result = await result_of(app, cpu_work.be_noisy)
        assert result.result == ("", "''"), "there is nothing to read"
        assert (await result_of(app, cpu_work.think, 1)).result == 2


async def test_progress_reaches_the_job_while_it_runs(app: Flowrra, tmp_path: Path) -> None:
    report = app.task(cpu_bound=True)(cpu_work.report)
    async with app:
        task_id = await app.submit(report, str(tmp_path / "go"))

        async def is_reported() -> bool:
            return (await job_of(app, task_id)).progress == Progress(3, 10, "a third")

        await until(is_reported, "the progress")
        (tmp_path / "go").touch()
        assert (await app.wait_for_result(task_id, timeout=20)).status is TaskStatus.SUCCESS


async def test_values_with_tags_survive_both_ways(app: Flowrra) -> None:
    async with app:
        assert (await result_of(app, cpu_work.echo, cpu_work.VALUES)).result == cpu_work.VALUES


async def test_a_result_that_cannot_be_kept_fails_the_job_alone(app: Flowrra) -> None:
    async with app:
        result = await result_of(app, cpu_work.unfit, max_retries=0)
        assert result.status is TaskStatus.FAILED
        assert "SerializationError" in (result.error or "")
        assert "['kept'][1]" in (result.error or "")
        assert (await result_of(app, cpu_work.think, 1)).result == 2


@pytest.mark.parametrize(
    ("options", "attempts"),
    [
        ({"retry_on": cpu_work.RefusalError}, 3),
        ({"retry_on": ValueError}, 3),
        ({"retry_on": KeyError}, 1),
        ({"no_retry_on": ValueError}, 1),
    ],
    ids=["itself", "its base", "another", "excluded"],
)
async def test_an_exception_is_retried_by_its_type(app: Flowrra, options: dict[str, Any], attempts: int) -> None:
    async with app:
        result = await result_of(app, cpu_work.refuse, max_retries=2, **options)
    assert (result.error, result.attempts) == ("RefusalError: not today", attempts)
    assert 'raise RefusalError("not today")' in (result.traceback or "")


async def test_a_task_may_ask_for_a_retry_with_a_delay_of_its_own(app: Flowrra) -> None:
    async with app:
        result = await result_of(app, cpu_work.ask_for_another_try, retry_delay=600.0)
    assert result.result == 2


async def test_an_async_function_may_be_cpu_bound(app: Flowrra) -> None:
    async with app:
        assert (await result_of(app, cpu_work.think, 41)).result == 42


@pytest.mark.parametrize("function", [cpu_work.wait_for_another, cpu_work.wait_for_another_plainly])
async def test_a_private_store_cannot_be_reached_from_a_process(app: Flowrra, function: Any) -> None:
    async with app:
        result = await result_of(app, function, "some-id", max_retries=0)
    assert result.status is TaskStatus.FAILED
    assert "a CPU-bound task cannot reach the app's jobs" in (result.error or "")


# ---------------------------------------------------------------------------
# Programs
# ---------------------------------------------------------------------------

PROGRAM = """
import asyncio, os
from flowrra import Flowrra

app = Flowrra.from_urls()
with open("starts", "a") as starts:
    print(os.getpid(), file=starts)


@app.task(cpu_bound=True, max_retries=1, retry_delay=0)
def square(number):
    return number * number, os.getpid()


async def main():
    async with app:
        result = await app.wait_for_result(await app.submit(square, 7), timeout=20)
        print(result.status, result.result[0] if result.is_success else result.error)
        assert not result.is_success or result.result[1] != os.getpid()


GUARD
    asyncio.run(main())
"""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with Site(tmp_path, HANGING) as site:
        yield site


HANGING = """
@app.task(cpu_bound=True)
def hang():
    note("pids", os.getpid())
    time.sleep(60)


@app.task(cpu_bound=True, max_retries=0)
def submit():
    return [app.sync.submit(nap, 0), asyncio.run(submit_as_client())]


async def submit_as_client():
    app.sync.close()
    async with app.client():
        return await app.submit(nap, 0)


@app.task(cpu_bound=True, max_retries=0)
def wait():
    app.sync.wait_for_result(app.sync.submit(nap, 0), timeout=20)


@app.task(cpu_bound=True, max_retries=0)
async def wait_on_a_loop():
    async with app.client():
        await app.wait_for_result(await app.submit(nap, 0), timeout=20)
"""


async def output(site: Site, program: str) -> str:
    process = site.script(program)
    assert process.popen.stdout is not None
    said = await asyncio.to_thread(process.popen.stdout.read)
    assert await process.ends() == 0, process.log
    return said.decode()


async def test_a_task_may_stand_in_the_main_script(site: Site) -> None:
    assert await output(site, PROGRAM.replace("GUARD", 'if __name__ == "__main__":')) == "success 49\n"


async def test_a_script_without_a_main_guard_is_told_so(site: Site) -> None:
    said = await output(site, PROGRAM.replace("GUARD", "if True:"))
    assert said.startswith("failed ConfigError: the app is being started by a process")
    assert "if __name__ == '__main__':" in said
    assert len(site.lines("starts")) <= 1 + (os.cpu_count() or 1) + 1, "no process starts others"


@contextlib.asynccontextmanager
async def hanging_worker(site: Site) -> AsyncIterator[tuple[Any, list[int]]]:
    """A worker with two CPU-bound jobs that hang, and their processes."""
    async with site.client() as app:
        await app.submit_many(stand_in(app, "app.hang", queue="cpu"), [()] * 2)
        worker = await site.worker("--queues", "cpu:2")
        await until(lambda: len(site.lines("pids")) == 2, "both run")
        yield worker, [int(pid) for pid in site.lines("pids")]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_no_process_outlives_its_worker(site: Site, number: signal.Signals) -> None:
    async with hanging_worker(site) as (worker, pids):
        assert all(is_alive(pid) for pid in pids)
        worker.send(number)
        if number is signal.SIGTERM:
            await worker.says("stopping")
            worker.send(number)  # wait for no job
        await worker.ends()
        await until(lambda: not any(is_alive(pid) for pid in pids), "the end of its processes")
    assert "Traceback" not in worker.log


async def test_a_task_in_a_process_may_submit_jobs(site: Site) -> None:
    async with site.client() as app:
        task_id = await app.submit(stand_in(app, "app.submit", queue="cpu"))
        await site.worker()
        result: TaskResult[Any] = await app.wait_for_result(task_id, timeout=20)
        assert result.is_success, result.error
        for submitted in result.result:
            assert (await app.wait_for_result(submitted, timeout=20)).is_success


@pytest.mark.parametrize("name", ["wait", "wait_on_a_loop"])
async def test_a_task_in_a_process_that_waits_for_a_job_is_refused_with_the_reason(site: Site, name: str) -> None:
    """It would stand still in the very slot that the other job may need."""
    async with site.client() as app:
        task_id = await app.submit(stand_in(app, f"app.{name}", queue="cpu"))
        await site.worker()
        result: TaskResult[Any] = await app.wait_for_result(task_id, timeout=20)
    assert result.status is TaskStatus.FAILED
    assert "a CPU-bound task cannot wait for another job" in (result.error or "")
