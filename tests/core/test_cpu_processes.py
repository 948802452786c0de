"""What a CPU-bound task may do in its process: submit jobs, start programs and processes, log, fork."""

import asyncio
import contextlib
import io
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import flowrra
from flowrra import Config, ExecutorConfig, Flowrra, Job, Progress, TaskResult, TaskStatus
from tests.support import cpu_limits_work as work
from tests.support.apps import flowrra_threads
from tests.support.processes import ROOT, Site, site_on, stand_in, until


@contextlib.asynccontextmanager
async def one_process(**options: Any) -> AsyncIterator[Flowrra]:
    """An app whose CPU-bound tasks run one after the other in the same process."""
    async with Flowrra(Config(executor=ExecutorConfig(cpu_workers=1, **options))) as app:
        yield app


async def run(app: Flowrra, function: Any, *args: Any, **options: Any) -> Any:
    """What the function returns as a CPU-bound task, at its first attempt."""
    task = app.task(cpu_bound=True, max_retries=0, **options)(function)
    result: TaskResult[Any] = await app.wait_for_result(await app.submit(task, *args), timeout=20)
    assert (result.error, result.attempts) == (None, 1), result.traceback
    return result.result


def is_alive(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


# ---------------------------------------------------------------------------
# Jobs from inside a job
# ---------------------------------------------------------------------------

SUBMITTING = """
import gc, threading


@app.task(cpu_bound=True, max_retries=0)
def submit():
    return os.getpid(), [app.sync.submit(nap, 0) for _ in range(2)]


@app.task(cpu_bound=True, max_retries=0)
async def submit_on_a_loop():
    return os.getpid(), [await app.submit(nap, 0), *await app.submit_many(nap, [(0,)])]


@app.task(cpu_bound=True, max_retries=0)
def submit_on_loops():
    return os.getpid(), [asyncio.run(app.submit(nap, 0)) for _ in range(2)]


@app.task(cpu_bound=True, max_retries=0)
def submit_in_a_thread():
    ids = []
    thread = threading.Thread(target=lambda: ids.append(app.sync.submit(nap, 0)))
    thread.start()
    thread.join()
    return os.getpid(), ids


@app.task(cpu_bound=True, max_retries=0)
def handles():
    gc.collect()  # what a loop of the task has left behind
    return os.getpid(), len(os.listdir("/proc/self/fd")) + threading.active_count()
"""
WAYS = ["submit", "submit_on_a_loop", "submit_on_loops", "submit_in_a_thread"]


@pytest.mark.parametrize("broker", ["sqlite", "redis", "postgresql"])
async def test_a_task_submits_jobs_in_every_way_and_again(tmp_path: Path, broker: str) -> None:
    with site_on(broker, tmp_path, SUBMITTING) as site:
        async with site.client() as app:
            tasks = {name: stand_in(app, f"app.{name}", queue="cpu") for name in (*WAYS, "handles")}
            await site.worker("--queues", "default:5,cpu:1", env={"FLOWRRA_EXECUTOR_CPU_WORKERS": "1"})

            async def result_of(name: str) -> Any:
                result: TaskResult[Any] = await app.wait_for_result(await app.submit(tasks[name]), timeout=20)
                assert result.is_success, (name, result.error, result.traceback)
                return result.result

            pids, held = set(), []
            for _ in range(3):
                for name in WAYS:
                    pid, ids = await result_of(name)
                    pids.add(pid)
                    for task_id in ids:
                        assert (await app.wait_for_result(task_id, timeout=20)).is_success
                held.append((await result_of("handles"))[1])
    assert len(pids) == 1, "all in one process"
    assert held[2] <= held[1] + 1, "nothing stays open"


SCRIPT = """
import asyncio, multiprocessing, os, pickle, sys
from flowrra import Flowrra

app = Flowrra.from_urls("sqlite:///script.db")


class Price:
    pass


def square(number):
    return number * number


@app.task
def double(number):
    return 2 * number


@app.task(cpu_bound=True, max_retries=0)
def submit(number):
    return app.sync.submit(double, number)


@app.task(cpu_bound=True, max_retries=0)
async def submit_on_a_loop(number):
    return await app.submit(double, number)


@app.task(cpu_bound=True, max_retries=0, timeout=20)
def use_processes(method):
    with multiprocessing.get_context(method).Pool(2) as pool:
        return pool.map(square, range(4))


@app.task(cpu_bound=True, max_retries=0)
def make_pickle():
    assert sys.modules["__mp_main__"] is sys.modules["__main__"]
    return pickle.dumps(Price())


async def main():
    async with app:
        for task in (submit, submit_on_a_loop) * 2:
            result = await app.wait_for_result(await app.submit(task, 4), timeout=20)
            assert result.is_success, result.traceback
            print((await app.wait_for_result(result.result, timeout=20)).result)
        for method in ("spawn", "forkserver", "fork"):
            result = await app.wait_for_result(await app.submit(use_processes, method), timeout=30)
            print(method, result.result, result.error)
        result = await app.wait_for_result(await app.submit(make_pickle), timeout=20)
        print(type(pickle.loads(result.result)) is Price)


if __name__ == "__main__":
    asyncio.run(main())
"""


async def test_tasks_of_a_script_submit_jobs_and_use_multiprocessing(tmp_path: Path) -> None:
    with Site(tmp_path) as site:
        script = site.script(SCRIPT, env={"FLOWRRA_EXECUTOR_CPU_WORKERS": "1"})
        assert script.popen.stdout is not None
        said = (await asyncio.to_thread(script.popen.stdout.read)).decode().splitlines()
        assert await script.ends() == 0, script.log
    assert said[:4] == ["8"] * 4
    assert said[4:7] == [f"{method} [0, 1, 4, 9] None" for method in ("spawn", "forkserver", "fork")]
    assert said[7:] == ["True"], "a pickle names the main script as the standard library does"


async def test_a_store_in_memory_is_refused_in_a_thread_of_the_task_too() -> None:
    async with one_process() as app:
        (said,) = await run(app, work.submit_in_a_thread)
    assert "a CPU-bound task cannot reach the app's jobs" in said


# ---------------------------------------------------------------------------
# Programs and signals
# ---------------------------------------------------------------------------


async def test_programs_that_a_task_starts_can_be_ended_by_signals(tmp_path: Path) -> None:
    async with one_process() as app:
        assert await run(app, work.end_programs) == [-15, -2]
        assert await run(app, work.end_forks, str(tmp_path / "ready")) == [-15, -9]


FORKS = """
def fork():
    pid = os.fork()
    if not pid:
        os._exit(3)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


app.task(name="in_thread", max_retries=0)(fork)
app.task(name="in_process", max_retries=0, cpu_bound=True)(fork)
"""
TOO_EARLY = "import os, signal; os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.SIGTERM))"


@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
async def test_a_signal_ends_a_process_that_has_just_been_forked_and_no_other(tmp_path: Path, kind: str) -> None:
    """As if a pool of multiprocessing were ended at once. To the worker it would be the order to stop."""
    with Site(tmp_path, FORKS) as site:
        site.write("sitecustomize.py", TOO_EARLY)
        worker = await site.worker("--loop", kind, env={"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"})
        async with site.client() as app:
            for name in ("in_thread", "in_process", "in_thread"):
                task_id = await app.submit(stand_in(app, name))
                result: TaskResult[Any] = await app.wait_for_result(task_id, timeout=20)
                assert (name, result.result, result.error) == (name, -signal.SIGTERM, None)
        assert not worker.is_over
        assert "stopping" not in worker.log
        worker.send(signal.SIGTERM)
        assert await worker.ends() == 0, worker.log


async def test_a_process_leaves_signals_to_its_worker() -> None:
    async with one_process() as app:
        assert await run(app, work.be_signalled) == "alive"


@pytest.mark.parametrize("how", ["return", "exit"])
async def test_a_copy_that_a_task_forks_ends_with_the_task(tmp_path: Path, how: str) -> None:
    path = tmp_path / "copy"
    async with one_process() as app:
        answer = await run(app, work.fork_and_forget, str(path), how)
        await until(path.exists, "the copy runs")
        copy = int(path.read_text())
        assert answer == (3 if how == "exit" else await run(app, work.pid)), "nobody has heard the copy"
        # A zombie until its parent, the process of the task, ends.
        await until(
            lambda: not is_alive(copy) or " Z " in Path(f"/proc/{copy}/stat").read_text(), "the end of the copy"
        )


FORGOTTEN = """
@app.task(max_retries=0, timeout=20)
def forget():
    pid = os.fork()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) if pid else "the copy"
"""


async def test_a_copy_that_a_task_in_a_thread_forks_ends_with_the_call(tmp_path: Path) -> None:
    """It would wait for the next call for ever: it has no loop that hears of this one's end."""
    with Site(tmp_path, FORGOTTEN) as site:
        await site.worker()
        async with site.client() as app:
            task_id = await app.submit(stand_in(app, "app.forget"))
            result: TaskResult[Any] = await app.wait_for_result(task_id, timeout=30)
    assert (result.result, result.error) == (0, None)


# ---------------------------------------------------------------------------
# Logs
# ---------------------------------------------------------------------------

LOGGING = """
import logging

log = logging.getLogger("shop.prices")


@app.task(cpu_bound=True)
def log_lines():
    log.debug("not wanted")
    log.info("price of %s: %d", "tea", 3)
    log.warning("it is high", extra={"odd": object()})
    try:
        raise ValueError("no price")
    except ValueError:
        log.exception("cannot tell")
"""


async def test_a_task_logs_as_the_worker_was_told_to(tmp_path: Path) -> None:
    with Site(tmp_path, LOGGING) as site:
        async with site.client() as app:
            task_id = await app.submit(stand_in(app, "app.log_lines", queue="cpu"))
            worker = await site.worker("--log-format", "json")
            assert (await app.wait_for_result(task_id, timeout=20)).is_success
            await worker.says("cannot tell")
            lines = [json.loads(line) for line in worker.log.splitlines()]
    mine = [line for line in lines if line["logger"] == "shop.prices"]
    said = [(line["level"], line["message"]) for line in mine]
    assert said == [("INFO", "price of tea: 3"), ("WARNING", "it is high"), ("ERROR", "cannot tell")]
    assert "traceback" not in mine[1]
    assert mine[2]["traceback"].endswith("ValueError: no price")


async def test_a_task_logs_to_the_handlers_of_the_program(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with one_process() as app:
        await run(app, work.log_lines)
    records = [record for record in caplog.records if record.name == "shop.prices"]
    assert [record.getMessage() for record in records] == ["price of tea: 3", "cannot tell"]
    assert records[0].process != os.getpid()
    assert "ValueError: no price" in (records[1].exc_text or "")


async def test_a_copy_that_a_task_forks_logs_to_stderr(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    async with one_process() as app:
        await run(app, work.log_in_copy)
    assert "said in a copy" in capfd.readouterr().err


# ---------------------------------------------------------------------------
# What comes from where
# ---------------------------------------------------------------------------


async def test_progress_of_a_thread_that_a_job_left_is_not_credited_to_the_next_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[tuple[str, Progress]] = []
    monkeypatch.setattr(
        flowrra.Worker, "report", lambda self, attempt, progress: reported.append((attempt.id, progress))
    )
    paths = str(tmp_path / "go"), str(tmp_path / "done")
    async with one_process() as app:
        await run(app, work.leave_a_thread, *paths)
        await run(app, work.let_the_thread_report, *paths)
    assert [progress for _, progress in reported] == [Progress(2, 2, "my own")]


async def test_large_arguments_and_results_go_through() -> None:
    text = "x" * 20_000_000
    async with one_process() as app:
        assert await run(app, work.size_of, text) == text + "!"


BROKEN = """
import sys
if "pytest" not in sys.modules:
    import no_such_module_at_all


def work():
    pass
"""


async def test_a_module_that_a_process_cannot_import_fails_the_job_with_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_in_processes.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    broken: Any = __import__("broken_in_processes")
    async with one_process() as app:
        task = app.task(cpu_bound=True, max_retries=0)(broken.work)
        result: TaskResult[Any] = await app.wait_for_result(await app.submit(task), timeout=20)
    assert result.status is TaskStatus.FAILED
    assert result.error == "ModuleNotFoundError: No module named 'no_such_module_at_all'"
    assert f'File "{tmp_path}/broken_in_processes.py", line 4' in (result.traceback or "")


async def test_a_process_that_cannot_be_started_is_named_as_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    async with one_process() as app:
        task = app.task(cpu_bound=True, max_retries=0)(work.pid)
        result: TaskResult[Any] = await app.wait_for_result(await app.submit(task), timeout=20)
    assert result.status is TaskStatus.FAILED
    assert (result.error or "").startswith("ProcessDiedError: no process could be started for the task: ")


def test_a_process_is_started_with_the_options_of_the_interpreter() -> None:
    program = "import flowrra, subprocess; subprocess.run(flowrra.python('sys.exit(print(sys.flags))'), check=True)"
    flags = subprocess.run(
        [sys.executable, "-O", "-P", "-X", "utf8", "-c", f"import sys; sys.path.append({str(ROOT)!r}); {program}"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "optimize=1" in flags
    assert "utf8_mode=1" in flags
    assert "safe_path=True" in flags


async def test_a_process_that_is_given_up_after_the_close_is_waited_for() -> None:
    """Its thread is one of those that have been told to end."""
    threads = flowrra.ThreadExecutor()
    assert (await threads.call(lambda: 1))[0] == 1
    await asyncio.sleep(0.05)  # it is idle
    threads.close()
    async with asyncio.timeout(20):
        assert [(await threads.call(lambda: 2))[0], (await threads.call(lambda: 3))[0]] == [2, 3]


async def test_no_call_is_left_behind_by_threads_that_end() -> None:
    """A thread is counted as idle before it looks whether it is to end; what it was given then must run."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        async with asyncio.timeout(30):
            for _ in range(300):
                threads = flowrra.ThreadExecutor()
                await asyncio.gather(*[threads.call(int) for _ in range(3)])
                late = [threads.call(int) for _ in range(3)]
                threads.close()
                assert await asyncio.gather(*late) == [(0, None)] * 3
    finally:
        sys.setswitchinterval(interval)


def test_threads_end_at_a_close_after_their_loop() -> None:
    """Nobody has counted them as idle: their answers went to a loop that had ended."""
    over = threading.Event()

    async def main() -> flowrra.ThreadExecutor:
        threads = flowrra.ThreadExecutor()
        for _ in range(3):
            threads.call(over.wait)
        return threads

    threads = asyncio.run(main())
    started = flowrra_threads()
    assert len(started) == 3
    over.set()
    time.sleep(0.05)  # until they wait for another call
    threads.close()
    for thread in started:
        thread.join(20)
    assert not flowrra_threads()


def test_a_process_keeps_nothing_of_attempts_that_are_over() -> None:
    asking: Any = weakref.WeakValueDictionary()
    context = flowrra._ChildContext(Job("a", "t"), io.BytesIO(), asking)
    assert list(asking) == [("a", 0)]
    del context
    assert not asking
