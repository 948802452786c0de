"""The time and the memory of CPU-bound tasks: what counts, and when a process is replaced."""

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowrra import Config, ConfigError, ExecutorConfig, Flowrra, TaskResult, TaskStatus
from tests.core.test_cpu_processes import is_alive, one_process, run
from tests.support import cpu_limits_work as work
from tests.support import cpu_work
from tests.support.processes import until

SLOW = """
import sys, time
from pathlib import Path

HERE = Path(__file__).parent
if "pytest" not in sys.modules:
    (HERE / "importing").write_text("")
    DELAY


def work():
    (HERE / "began").write_text("")
    time.sleep(0.1)
    return "done"
"""


def import_slowly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, delay: str) -> Callable[[], str]:
    """The function of a module that takes its time in every other process."""
    (tmp_path / f"{name}.py").write_text(SLOW.replace("DELAY", delay))
    monkeypatch.syspath_prepend(tmp_path)
    module: Any = __import__(name)
    function: Callable[[], str] = module.work
    return function


# ---------------------------------------------------------------------------
# Time
# ---------------------------------------------------------------------------


async def test_a_timeout_does_not_count_the_import_of_the_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    function = import_slowly(tmp_path, monkeypatch, "slow_in_processes", "time.sleep(1.7)")
    async with one_process() as app:
        assert await run(app, function, timeout=1.5) == "done"


async def test_a_timeout_does_not_count_the_wait_for_a_process() -> None:
    config = Config(executor=ExecutorConfig(cpu_workers=1, queues={"cpu": 3}))
    async with Flowrra(config) as app:
        nap = app.task(cpu_bound=True, max_retries=0, timeout=1.5)(work.nap)
        ids = [await nap.options(timeout=20).submit(1.7)] + [await nap.submit(0.0) for _ in range(3)]
        results: list[TaskResult[Any]] = [await app.wait_for_result(task_id, timeout=20) for task_id in ids]
    assert [result.error for result in results] == [None] * 4


async def test_a_job_that_is_cancelled_before_its_first_line_runs_nothing_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    function = import_slowly(tmp_path, monkeypatch, "hanging_in_processes", "time.sleep(60)")
    async with one_process() as app:
        task_id = await app.submit(app.task(cpu_bound=True, timeout=0.1)(function))
        await until((tmp_path / "importing").exists, "the import")
        await asyncio.sleep(0.2)
        assert (await app.get_job(task_id)).status is TaskStatus.RUNNING
        assert await app.cancel(task_id)
        assert (await app.wait_for_result(task_id, timeout=20)).status is TaskStatus.CANCELLED
        assert await run(app, cpu_work.think, 1) == 2
    assert not (tmp_path / "began").exists()


# ---------------------------------------------------------------------------
# The soft time limit
# ---------------------------------------------------------------------------


async def test_a_task_may_tidy_up_and_return_at_its_soft_timeout(tmp_path: Path) -> None:
    written = tmp_path / "part"
    async with one_process() as app:
        result = await run(app, work.report_a_part, str(written), soft_timeout=0.2, timeout=20)
    assert result == "the attempt took longer than its soft_timeout of 0.2 s"
    assert not written.exists()


async def test_a_soft_timeout_is_a_failure_and_its_process_is_used_again() -> None:
    async with one_process() as app:
        pid = await run(app, work.pid)
        task = app.task(cpu_bound=True, soft_timeout=0.1, max_retries=1, retry_delay=0, retry_on=OSError)(work.hang)
        result: TaskResult[Any] = await app.wait_for_result(await app.submit(task), timeout=20)
        assert result.error == "SoftTimeoutError: the attempt took longer than its soft_timeout of 0.1 s"
        assert result.attempts == 2
        assert "time.sleep(30)" in (result.traceback or "")
        assert await run(app, work.pid) == pid


async def test_a_task_that_survives_its_soft_timeout_is_killed_at_its_timeout(caplog: pytest.LogCaptureFixture) -> None:
    async with one_process() as app:
        pid = await run(app, work.pid)
        task = app.task(cpu_bound=True, soft_timeout=0.2, timeout=1.0, max_retries=0)(work.go_on_regardless)
        result: TaskResult[Any] = await app.wait_for_result(await app.submit(task), timeout=20)
        assert result.error == "TaskTimeoutError: the attempt took longer than its timeout of 1 s"
        assert await run(app, work.nap, 0) != pid
    assert caplog.text.count("not done yet: the attempt took longer than its soft_timeout of 0.2 s") == 1


async def test_a_soft_timeout_leaves_no_half_message_to_the_worker() -> None:
    async with one_process() as app:
        pid = await run(app, work.pid)
        task = app.task(cpu_bound=True, soft_timeout=0.02, max_retries=0)(work.report_all_the_time)
        ids = await app.submit_many(task, [()] * 20)
        results = [await app.wait_for_result(task_id, timeout=20) for task_id in ids]
        assert [result.error for result in results] == [None] * 20
        assert await run(app, work.nap, 0.1) == pid  # whom none of the timers interrupts


@pytest.mark.parametrize(
    ("options", "need"),
    [
        ({}, r"cpu_bound=True and a def \(an async def has asyncio\.timeout\(\)\)"),
        ({"cpu_bound": True, "timeout": 0.5}, "a longer timeout=, at which the process is killed"),
        ({"cpu_bound": True, "timeout": 0.4}, "a longer timeout=, at which the process is killed"),
    ],
)
def test_a_soft_timeout_that_could_not_be_kept_is_refused(options: dict[str, Any], need: str) -> None:
    with pytest.raises(ConfigError, match=rf"^soft_timeout=0\.5 of the task 'tests\.\S+\.nap' needs {need}$"):
        Flowrra().task(soft_timeout=0.5, **options)(work.nap)


def test_a_timeout_of_one_job_is_longer_than_the_soft_timeout_of_its_task() -> None:
    nap = Flowrra().task(soft_timeout=0.5, cpu_bound=True)(work.nap)
    for timeout in (0.1, 0.5):
        with pytest.raises(ConfigError, match=r"^soft_timeout=0\.5 of the task .* needs a longer timeout=, at which"):
            nap.options(timeout=timeout)
    assert nap.options(timeout=0.6).fields["overrides"] == {"timeout": 0.6}


def test_an_async_def_and_a_system_without_timers_have_no_soft_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"an async def has asyncio\.timeout\(\)"):
        Flowrra().task(soft_timeout=0.5, cpu_bound=True)(cpu_work.think)
    monkeypatch.delattr(signal, "setitimer")
    with pytest.raises(
        ConfigError, match=r"needs signal\.setitimer\(\), which this system does not have: use timeout="
    ):
        Flowrra().task(soft_timeout=0.5, cpu_bound=True)(work.nap)


# ---------------------------------------------------------------------------
# Memory, and processes that are replaced
# ---------------------------------------------------------------------------


async def test_a_process_that_ran_out_of_memory_fails_nobody_else() -> None:
    async with one_process() as app:
        before = await run(app, work.pid)
        leak = app.task(cpu_bound=True, max_retries=0)(work.run_out_of_memory)
        need = app.task(cpu_bound=True, max_retries=0)(work.need_memory)
        leaking = await app.submit(leak)
        innocent = await app.submit_many(need, [()] * 3)
        assert (await app.wait_for_result(leaking, timeout=20)).error == "RuntimeError: the cache cannot grow"
        results: list[TaskResult[Any]] = [await app.wait_for_result(task_id, timeout=20) for task_id in innocent]
        assert [result.error for result in results] == [None] * 3
        assert await run(app, work.pid) != before


async def test_a_process_is_replaced_after_max_jobs_between_two_jobs() -> None:
    async with one_process(max_jobs=2) as app:
        pids = [await run(app, work.pid) for _ in range(5)]
    assert pids[0] == pids[1] != pids[2] == pids[3] != pids[4]
    await until(lambda: not any(map(is_alive, pids)), "the end of all processes")


async def test_a_process_that_holds_too_much_memory_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    async with one_process(max_memory=200_000_000) as app:
        pids = [await run(app, work.leak, size) for size in (1, 1, 300_000_000, 1)]
    assert pids[0] == pids[1] == pids[2] != pids[3]
    assert f"process {pids[2]} holds" in caplog.text
    assert "more than its limit of 200000000: it is replaced" in caplog.text


@pytest.mark.parametrize("option", ["max_jobs", "max_memory"])
def test_limits_are_whole_numbers(option: str) -> None:
    with pytest.raises(ConfigError, match=f"{option} must be at least 1, not 0"):
        Config.from_env(environ={f"FLOWRRA_EXECUTOR_{option.upper()}": "0"})
    assert getattr(Config.from_env(environ={f"FLOWRRA_EXECUTOR_{option.upper()}": "7"}).executor, option) == 7


# ---------------------------------------------------------------------------
# Processes that are killed
# ---------------------------------------------------------------------------


async def test_a_process_that_is_killed_while_it_is_idle_costs_nobody_an_attempt() -> None:
    async with one_process() as app:
        for _ in range(2):
            pid = await run(app, work.pid)
            os.kill(pid, signal.SIGKILL)
            assert await run(app, work.pid) != pid


async def test_a_process_that_dies_during_the_import_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dying = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    function = import_slowly(tmp_path, monkeypatch, "dying_in_processes", dying)
    async with one_process() as app:
        task = app.task(cpu_bound=True, max_retries=0)(function)
        result: TaskResult[Any] = await app.wait_for_result(await app.submit(task), timeout=20)
        assert result.error == ("ProcessDiedError: the process of the task was ended by SIGKILL before the task began")
        assert await run(app, cpu_work.think, 1) == 2
