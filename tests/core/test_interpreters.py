"""CPU-bound tasks in interpreters inside the worker's process; and where there are none, the error that says so."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from flowrra import Config, ConfigError, ExecutorConfig, Flowrra, TaskResult, TaskStatus
from tests.core.test_cpu_processes import one_process
from tests.support import cpu_work
from tests.support.processes import Site, stand_in, until

needs_interpreters = pytest.mark.skipif(sys.version_info < (3, 14), reason="this Python has no concurrent.interpreters")


def register(app: Flowrra, function: Any, **options: Any) -> Any:
    return app.task(cpu_bound=True, executor="interpreter", **{"max_retries": 0, **options})(function)


async def run(app: Flowrra, function: Any, *args: Any, **options: Any) -> TaskResult[Any]:
    task = register(app, function, **options)
    result: TaskResult[Any] = await app.wait_for_result(await app.submit(task, *args), timeout=20)
    return result


def test_a_python_without_interpreters_is_said_at_the_registration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 13, 9, "final", 0))
    with pytest.raises(ConfigError, match=r"^executor='interpreter' needs Python 3\.14, this is 3\.13: use executor="):
        register(Flowrra(), cpu_work.pid)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"cpu_bound": True, "executor": "thread"}, "executor must be 'process' or 'interpreter', not 'thread'"),
        ({"executor": "interpreter"}, r"executor='interpreter' is for CPU-bound tasks: add cpu_bound=True"),
        (
            {"cpu_bound": True, "executor": "interpreter", "soft_timeout": 1, "timeout": 2},
            r"soft_timeout=1 .* needs executor='process', since an interpreter gets no signals",
        ),
    ],
)
def test_an_executor_that_cannot_be_is_refused(
    options: dict[str, Any], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 14, 0, "final", 0))
    with pytest.raises(ConfigError, match=text):
        Flowrra().task(**options)(cpu_work.pid)


@needs_interpreters
async def test_it_runs_in_the_workers_process_but_not_in_its_interpreter() -> None:
    async with one_process() as app:
        found = [(await run(app, cpu_work.interpreter)).result for _ in range(2)]
        process = app.task(cpu_bound=True)(cpu_work.pid)
        other = await app.wait_for_result(await app.submit(process), timeout=20)
    assert found[0] == found[1]  # the same one, for as long as it is fit
    assert found[0][0] == os.getpid() != other.result
    assert found[0][1] != 0


@needs_interpreters
async def test_what_a_job_has_it_has_in_an_interpreter(caplog: pytest.LogCaptureFixture) -> None:
    async with one_process() as app:
        result = await run(app, cpu_work.tell_of_itself)
        assert (result.error, result.progress) == (None, (1.0, 2.0, "half"))
        job = await app.get_job(result.task_id)
        assert [step.name for step in job.steps] == ["charge"]
        assert (await run(app, cpu_work.think, 20)).result == 21  # an async def
    assert "low on ink" in caplog.text


@needs_interpreters
async def test_what_it_raises_is_the_error_of_the_job() -> None:
    async with one_process() as app:
        result = await run(app, cpu_work.refuse)
        assert result.status is TaskStatus.FAILED
        assert "in refuse" in (result.traceback or "")
        again = await run(app, cpu_work.ask_again, max_retries=3, retry_delay=0)
        assert (again.attempts, again.result) == (2, (2, os.getpid()))


@needs_interpreters
async def test_a_module_that_no_interpreter_can_load_is_an_error_that_says_so() -> None:
    pytest.importorskip("pydantic_core")
    async with one_process() as app:
        result = await run(app, cpu_work.import_pydantic)
    assert (result.error or "").startswith("ImportError: ")
    assert "subinterpreters" in (result.error or "")


@needs_interpreters
async def test_an_interpreter_that_cannot_start_fails_the_attempt(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with one_process() as app:
        assert (await run(app, cpu_work.think, 1)).result == 2  # now this process has imported all that it needs
    async with one_process() as app:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "path", [])
            result = await run(app, cpu_work.pid)
        assert result.error == "ProcessDiedError: the process of the task exited with status 1 before the task began"
        assert "an interpreter for CPU-bound tasks has ended: ModuleNotFoundError" in caplog.text
        assert (await run(app, cpu_work.interpreter)).result[0] == os.getpid()  # the next one starts


@needs_interpreters
async def test_a_timeout_ends_python_code(tmp_path: Path) -> None:
    path = tmp_path / "spins"
    async with one_process() as app:
        result = await run(app, cpu_work.spin, str(path), timeout=0.3)
        assert result.error == "TaskTimeoutError: the attempt took longer than its timeout of 0.3 s"
        await until((tmp_path / "spins.end").exists, "the end of the loop")
        assert (tmp_path / "spins.end").read_text() == "CancelledError"
        assert (await run(app, cpu_work.think, 1)).result == 2  # in another one


@needs_interpreters
async def test_a_cancelled_job_ends_in_its_interpreter(tmp_path: Path) -> None:
    path = tmp_path / "spins"
    async with one_process() as app:
        task_id = await app.submit(register(app, cpu_work.spin), str(path))
        await until(path.exists, "the loop")
        assert await app.cancel(task_id)
        assert (await app.wait_for_result(task_id, timeout=20)).status is TaskStatus.CANCELLED
        await until((tmp_path / "spins.end").exists, "the end of the loop")


@needs_interpreters
async def test_an_interpreter_is_replaced_after_max_jobs() -> None:
    async with one_process(max_jobs=2, max_memory=1) as app:  # memory is counted by process
        found = [(await run(app, cpu_work.interpreter)).result[1] for _ in range(4)]
    assert found[0] == found[1] != found[2] == found[3]


@needs_interpreters
async def test_two_interpreters_compute_at_the_same_time(tmp_path: Path) -> None:
    async with Flowrra(Config(executor=ExecutorConfig(cpu_workers=2))) as app:
        meet = register(app, cpu_work.meet)
        ids = [await app.submit(meet, str(tmp_path), number, 2) for number in range(2)]
        results = [await app.wait_for_result(task_id, timeout=20) for task_id in ids]
    assert [result.error for result in results] == [None, None]


JOBS = """
from tests.support import cpu_work

app.task(name="hang", cpu_bound=True, executor="interpreter")(cpu_work.hang)
"""


@needs_interpreters
async def test_a_worker_ends_although_an_interpreter_hangs(tmp_path: Path) -> None:
    with Site(tmp_path, JOBS) as site:
        worker = await site.worker("--drain", "0.1")
        async with site.client() as app:
            job = await app.submit(stand_in(app, "hang"), str(tmp_path / "hangs"))
            await until((tmp_path / "hangs").exists, "the job hangs")
            assert (tmp_path / "hangs").read_text() == str(worker.pid)
            worker.send(signal.SIGTERM)
            assert await worker.ends() == 0
            assert (await app.get_job(job)).status is TaskStatus.PENDING
