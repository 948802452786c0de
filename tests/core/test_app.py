"""The public API: submitting, options, results, looking at jobs and changing them.

Each test runs on every broker that comes with the file. What runs around a job (middleware,
hooks, current_job) is in test_app_running.py, starting and stopping in test_app_life.py.
"""

import asyncio
import datetime as dt
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flowrra import (
    BackendConfig,
    ConfigError,
    Flowrra,
    TaskId,
    TaskNotFoundError,
    TaskResult,
    TaskStatus,
    TaskTimeoutError,
    result_of,
)
from tests.support.apps import MovableClock, eventually, make_app

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["memory", "file", "private"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return {"memory": "memory://", "file": f"sqlite:///{tmp_path}/jobs.db", "private": "sqlite://"}[request.param]


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


@pytest.fixture
def app(url: str, clock: MovableClock) -> Flowrra:
    """Not started: a test that wants no worker uses `app.client()`."""
    app = make_app(url, clock=clock)

    @app.task(name="add")
    async def add(left: int, right: int = 0) -> int:
        return left + right

    @app.task(name="fail", max_retries=0)
    async def fail() -> None:
        raise ValueError("as it was told to")

    @app.task(name="again", retry_delay=240.0)
    async def again() -> None:
        raise ConnectionError("no answer")

    @app.task(name="total")
    def total(numbers: Any) -> int:
        return sum(numbers.values() if isinstance(numbers, dict) else numbers)

    return app


async def run(app: Flowrra, name: str, *args: Any, **options: Any) -> TaskResult[Any]:
    """Submit a task by its name, and wait for its end."""
    task_id = await app.registry[name].options(**options).submit(*args)
    return await app.wait_for_result(task_id, timeout=20.0)


# ---------------------------------------------------------------------------
# The quick example
# ---------------------------------------------------------------------------

QUICK_EXAMPLE = """
import asyncio
from flowrra import Flowrra

app = Flowrra.from_urls()

@app.task()
async def send_email(to: str, subject: str):
    return {"status": "sent", "to": to}

@app.task(max_retries=5, retry_delay=2.0)
async def fetch_data(url: str): ...

async def main():
    async with app:
        task_id = await app.submit(send_email, "user@example.com", "Hello")
        result = await app.wait_for_result(task_id, timeout=20)
        print(f"Result: {result.result}")

asyncio.run(main())
"""


def test_the_quick_example_prints_its_result(tmp_path: Path) -> None:
    shutil.copy(ROOT / "flowrra.py", tmp_path)
    (tmp_path / "quick.py").write_text(QUICK_EXAMPLE)
    done = subprocess.run(
        [sys.executable, "-W", "error", "quick.py"], cwd=tmp_path, capture_output=True, text=True, timeout=30
    )
    assert done.stdout == "Result: {'status': 'sent', 'to': 'user@example.com'}\n"
    assert (done.stderr, done.returncode) == ("", 0)


# ---------------------------------------------------------------------------
# Submitting
# ---------------------------------------------------------------------------


async def test_submit_returns_an_id_that_leads_to_the_result(app: Flowrra) -> None:
    async with app:
        task_id = await app.submit(app.registry["add"], 2, right=3)
        result = await app.wait_for_result(task_id, timeout=20.0)
    assert isinstance(task_id, str)
    assert (result.task_id, result.task, result.status) == (task_id, "add", TaskStatus.SUCCESS)
    assert (result.result, result.is_success, result.is_finished, result.attempts) == (5, True, True, 1)
    assert (result.error, result.traceback) == (None, None)


async def test_times_are_aware_and_in_order(app: Flowrra) -> None:
    async with app:
        result = await run(app, "add", 1)
    moments = [result.submitted_at, result.started_at, result.finished_at]
    assert all(moment is not None and moment.utcoffset() == dt.timedelta(0) for moment in moments)
    assert moments == sorted(moment for moment in moments if moment is not None)


async def test_a_failure_brings_its_error_and_traceback(app: Flowrra) -> None:
    async with app:
        result = await run(app, "fail")
    assert (result.status, result.is_success, result.is_finished) == (TaskStatus.FAILED, False, True)
    assert result.error == "ValueError: as it was told to"
    assert result.traceback is not None
    assert 'raise ValueError("as it was told to")' in result.traceback


async def test_submit_many_keeps_the_order_of_its_rows(app: Flowrra) -> None:
    async with app:
        ids = await app.submit_many(app.registry["add"], [(1,), [2, 3], {"left": 4, "right": 5}])
        results = [await app.wait_for_result(task_id, timeout=20.0) for task_id in ids]
    assert [result.result for result in results] == [1, 5, 9]


async def test_submit_many_takes_options_and_an_empty_list(app: Flowrra) -> None:
    async with app.client():
        assert await app.submit_many(app.registry["add"], []) == []
        ids = await app.submit_many(app.registry["add"].options(priority=7), [(1,), (2,)])
        assert [(await app.get_job(task_id)).priority for task_id in ids] == [7, 7]


async def test_submit_many_takes_all_or_none(app: Flowrra) -> None:
    async with app.client():
        with pytest.raises(TypeError, match="missing a required argument: 'left'"):
            await app.submit_many(app.registry["add"], [(1,), ()])
        assert await app.jobs() == []


async def test_many_submit_at_once_to_an_app_that_is_not_open_yet(app: Flowrra) -> None:
    """The first of them opens the stores, and the others wait for it."""
    ids = await asyncio.gather(*(app.submit(app.registry["add"], number) for number in range(20)))
    async with app:
        results = [(await app.wait_for_result(task_id, timeout=20.0)).result for task_id in ids]
    assert results == list(range(20))


async def test_what_is_submitted_before_the_start_runs_after_it(app: Flowrra) -> None:
    task_id = await app.submit(app.registry["add"], 1)
    assert not app.is_running
    async with app:
        assert (await app.wait_for_result(task_id, timeout=20.0)).result == 1


async def test_priority_is_an_option_where_the_task_has_no_such_parameter(app: Flowrra) -> None:
    async with app.client():
        task_id = await app.submit(app.registry["add"], 1, priority=-5)
        job = await app.get_job(task_id)
    assert (job.priority, job.args or (1,)) == (-5, (1,))


async def test_priority_goes_to_a_task_that_has_such_a_parameter(app: Flowrra) -> None:
    @app.task
    async def named(priority: int) -> int:
        return priority

    async with app:
        task_id = await app.submit(named, priority=3)
        assert (await app.wait_for_result(task_id, timeout=20.0)).result == 3
        assert (await app.get_job(task_id)).priority == 0


async def test_a_task_can_still_be_called(app: Flowrra) -> None:
    assert await app.registry["add"](1, 2) == 3


async def test_arguments_and_results_keep_their_types(app: Flowrra) -> None:
    @app.task
    async def mirror(value: Any) -> Any:
        return value

    value = {"when": dt.datetime(2024, 2, 29, tzinfo=dt.UTC), "tuple": (1, b"x"), 3: {4}, "$": "tag"}
    async with app:
        task_id = await app.submit(mirror, value)
        assert (await app.wait_for_result(task_id, timeout=20.0)).result == value


# ---------------------------------------------------------------------------
# Options
# ---------------------------------------------------------------------------


async def test_lower_priority_runs_first_and_equal_ones_in_order(url: str) -> None:
    app = make_app(url, io_workers=1)
    order: list[str] = []

    @app.task
    async def note(name: str) -> None:
        order.append(name)

    await app.submit_many(note.options(priority=5), [("late",), ("later",)])
    last = await note.options(priority=9).submit("last")
    await app.submit_many(note, [("first",), ("second",)])
    async with app:
        await app.wait_for_result(last, timeout=20.0)
    assert order == ["first", "second", "late", "later", "last"]


@pytest.mark.parametrize("delay", [60, 60.0, dt.timedelta(minutes=1)])
async def test_a_delayed_job_waits_until_it_is_due(app: Flowrra, clock: MovableClock, delay: Any) -> None:
    async with app:
        task_id = await app.registry["add"].options(delay=delay).submit(1)
        job = await app.get_job(task_id)
        assert job.status is TaskStatus.SCHEDULED
        assert job.due_at is not None
        assert (job.due_at - job.submitted_at).total_seconds() == pytest.approx(60, abs=1)
        clock.wall_offset += 61
        await app.broker.set_queue("default", paused=False)  # the worker's own timer knows nothing of the jump
        assert (await app.wait_for_result(task_id, timeout=20.0)).is_success


async def test_a_short_delay_needs_no_help(app: Flowrra) -> None:
    async with app:
        result = await run(app, "add", 1, delay=0.05)
    assert result.started is not None
    assert result.started - result.submitted >= 0.05


async def test_run_at_takes_aware_moments_and_local_ones(app: Flowrra) -> None:
    moment = dt.datetime(2090, 1, 2, 3, 4, tzinfo=dt.timezone(dt.timedelta(hours=5)))
    naive = moment.astimezone().replace(tzinfo=None)
    async with app.client():
        for run_at in (moment, naive):
            task_id = await app.registry["add"].options(run_at=run_at).submit(1)
            assert (await app.get_job(task_id)).due_at == moment


async def test_a_moment_that_has_passed_is_now(app: Flowrra) -> None:
    async with app:
        assert (await run(app, "add", 1, run_at=dt.datetime(2020, 1, 1, tzinfo=dt.UTC))).is_success


async def test_a_queue_of_its_own(app: Flowrra) -> None:
    async with app.client():
        task_id = await app.registry["add"].options(queue="mail").submit(1)
        assert (await app.get_job(task_id)).queue == "mail"
        assert [job.id for job in await app.jobs(queue="mail")] == [task_id]


async def test_unique_holds_until_the_job_has_ended(app: Flowrra) -> None:
    once = app.registry["add"].options(unique="report")
    async with app.client():
        first = await once.submit(1)
        assert await once.submit(2) == first
        await app.cancel(first)
        assert await once.submit(3) != first


async def test_a_task_id_is_taken_once(app: Flowrra) -> None:
    named = app.registry["add"].options(task_id="order-17")
    async with app:
        assert await named.submit(1) == "order-17"
        assert (await app.wait_for_result("order-17", timeout=20.0)).result == 1
        assert await named.submit(2) == "order-17"
        assert (await app.wait_for_result("order-17", timeout=20.0)).result == 1


async def test_a_timeout_ends_the_attempt(app: Flowrra) -> None:
    @app.task(max_retries=0)
    async def sleep() -> None:
        await asyncio.Event().wait()

    async with app:
        task_id = await sleep.options(timeout=0.05).submit()
        result = await app.wait_for_result(task_id, timeout=20.0)
    assert result.status is TaskStatus.FAILED
    assert result.error == "TaskTimeoutError: the attempt took longer than its timeout of 0.05 s"


@pytest.mark.parametrize("form", ["seconds", "timedelta", "moment"])
async def test_a_job_that_has_expired_does_not_begin(app: Flowrra, clock: MovableClock, form: str) -> None:
    expires: Any = {
        "seconds": 30,
        "timedelta": dt.timedelta(seconds=30),
        "moment": dt.datetime.now(dt.UTC) + dt.timedelta(seconds=30),
    }[form]
    late = await app.registry["add"].options(expires=expires).submit(1)
    in_time = await app.registry["add"].options(expires=3600).submit(2)
    clock.wall_offset += 31
    async with app:
        result = await app.wait_for_result(late, timeout=20.0)
        assert (await app.wait_for_result(in_time, timeout=20.0)).result == 2
    assert (result.status, result.attempts) == (TaskStatus.CANCELLED, 0)
    assert result.error == "it expired before its first attempt began"


async def test_retry_options_of_one_submission(app: Flowrra) -> None:
    async with app:
        result = await run(app, "again", max_retries=2, retry_delay=0.0)
    assert (result.status, result.attempts) == (TaskStatus.FAILED, 3)


# ---------------------------------------------------------------------------
# Results
# ---------------------------------------------------------------------------


async def test_waiting_takes_no_longer_than_it_may(app: Flowrra) -> None:
    async with app.client():
        task_id = await app.submit(app.registry["add"], 1)
        with pytest.raises(
            TaskTimeoutError, match=rf"{task_id} has not finished within 0\.01 s; the job continues"
        ) as caught:
            await app.wait_for_result(task_id, timeout=0.01)
        assert isinstance(caught.value, TimeoutError)


async def test_get_result_tells_how_it_stands(app: Flowrra) -> None:
    assert await app.get_result("nobody") is None
    task_id = await app.submit(app.registry["add"], 1)
    waiting = await app.get_result(task_id)
    assert waiting is not None
    assert (waiting.status, waiting.is_finished, waiting.finished_at) == (TaskStatus.PENDING, False, None)
    async with app:
        await app.wait_for_result(task_id, timeout=20.0)
        done = await app.get_result(task_id)
    assert done is not None
    assert (done.status, done.result) == (TaskStatus.SUCCESS, 1)


async def test_many_may_wait_for_one_result(app: Flowrra) -> None:
    task_id = await app.submit(app.registry["add"], 1)
    waiters = [asyncio.create_task(app.wait_for_result(task_id, timeout=20.0)) for _ in range(5)]
    async with app:
        assert [result.result for result in await asyncio.gather(*waiters)] == [1] * 5


async def test_a_result_is_there_for_as_long_as_the_task_says(app: Flowrra, clock: MovableClock) -> None:
    async with app:
        short = await run(app, "add", 1, result_ttl=10)
        day = await run(app, "add", 2)
        clock.wall_offset += 60
        assert await app.broker.purge(app.now(), 100) == 1
        assert await app.get_result(short.task_id) is None
        assert await app.get_result(day.task_id) is not None
        clock.wall_offset += 86_400
        assert await app.broker.purge(app.now(), 100) == 1


async def test_memory_keeps_so_many_results() -> None:
    app = make_app(retention=BackendConfig(max_results=3))

    @app.task
    async def same(number: int) -> int:
        return number

    async with app:
        ids = [await app.submit(same, number) for number in range(5)]
        await app.wait_for_result(ids[-1], timeout=20.0)
        await eventually(lambda: len(app.broker._jobs) == 3)  # type: ignore[attr-defined]
        kept = [await app.get_result(task_id) for task_id in ids]
    assert [None if result is None else result.result for result in kept] == [None, None, 2, 3, 4]


# ---------------------------------------------------------------------------
# Jobs
# ---------------------------------------------------------------------------


async def test_cancel_ends_a_waiting_job_once(app: Flowrra) -> None:
    async with app.client():
        task_id = await app.submit(app.registry["add"], 1)
        assert await app.cancel(task_id)
        assert not await app.cancel(task_id)
        assert not await app.cancel("nobody")
        result = await app.wait_for_result(task_id, timeout=20.0)
    assert (result.status, result.error) == (TaskStatus.CANCELLED, "it was cancelled")


async def test_requeue_runs_a_failed_job_again(app: Flowrra) -> None:
    async with app:
        failed = await run(app, "fail")
        good = await run(app, "add", 1)
        assert await app.requeue(failed.task_id)
        await eventually(lambda: has_failed_twice(app, failed.task_id))
        assert not await app.requeue(good.task_id)
        assert not await app.requeue("nobody")


async def has_failed_twice(app: Flowrra, task_id: str) -> bool:
    job = await app.get_job(task_id)
    return [attempt.outcome for attempt in job.attempts] == ["failure", "failure"]


async def test_jobs_lists_the_latest_first_by_state_task_and_queue(app: Flowrra) -> None:
    async with app.client():
        ids = [await app.submit(app.registry["add"], number) for number in range(3)]
        other = await app.registry["total"].options(queue="slow", delay=60).submit([1])
        assert [job.id for job in await app.jobs()] == [other, *reversed(ids)]
        assert [job.id for job in await app.jobs(task="total")] == [other]
        assert [job.id for job in await app.jobs(queue="slow")] == [other]
        assert [job.id for job in await app.jobs(status=TaskStatus.SCHEDULED)] == [other]
        assert len(await app.jobs(status=[TaskStatus.PENDING, TaskStatus.SCHEDULED])) == 4


async def test_a_state_may_be_given_by_its_name(app: Flowrra) -> None:
    async with app.client():
        task_id = await app.submit(app.registry["add"], 1)
        assert [job.id for job in await app.jobs(status="pending")] == [task_id]
        assert [job.id for job in await app.jobs(status=["pending", "failed"])] == [task_id]
        with pytest.raises(ConfigError, match="'waiting' is not a state of a job: scheduled, blocked, pending"):
            await app.jobs(status="waiting")


async def test_jobs_are_read_page_by_page(app: Flowrra) -> None:
    async with app.client():
        ids = await app.submit_many(app.registry["add"], [(number,) for number in range(5)])
        seen: list[str] = []
        page = await app.jobs(limit=2)
        while page:
            seen += [job.id for job in page]
            page = await app.jobs(limit=2, after=page[-1].seq)
    assert seen == list(reversed(ids))


async def test_a_job_remembers_its_attempts(app: Flowrra) -> None:
    async with app:
        result = await run(app, "again", max_retries=1, retry_delay=0.0)
        job = await app.get_job(result.task_id)
        assert app.worker is not None
        worker = app.worker.id
    assert [(a.number, a.worker, a.outcome, a.error) for a in job.attempts] == [
        (1, worker, "failure", "ConnectionError: no answer"),
        (2, worker, "failure", "ConnectionError: no answer"),
    ]
    assert all(attempt.ended is not None and attempt.traceback for attempt in job.attempts)


# ---------------------------------------------------------------------------
# Results as arguments
# ---------------------------------------------------------------------------


async def test_a_chain(app: Flowrra) -> None:
    add = app.registry["add"]
    async with app:
        first = await app.submit(add, 1, 1)
        second = await app.submit(add, result_of(first), 10)
        third = await app.submit(add, left=result_of(second), right=result_of(first))
        assert (await app.wait_for_result(third, timeout=20.0)).result == 14


@pytest.mark.parametrize("form", ["list", "tuple", "dict", "deep"])
async def test_a_chord_gathers_a_group(app: Flowrra, form: str) -> None:
    """`total` adds up what a group of jobs has brought, wherever in its arguments that stands."""

    @app.task
    async def flatten(value: dict[str, list[tuple[int, ...]]]) -> int:
        return sum(value["all"][0])

    async with app:
        group = [result_of(task_id) for task_id in await app.submit_many(app.registry["add"], [(1,), (2,), (3,)])]
        arguments: dict[str, Any] = {
            "list": group,
            "tuple": tuple(group),
            "dict": dict(zip("abc", group, strict=True)),
            "deep": {"all": [tuple(group)]},
        }
        task = flatten if form == "deep" else app.registry["total"]
        chord = await app.submit(task, arguments[form])
        assert (await app.wait_for_result(chord, timeout=20.0)).result == 6


async def test_a_child_is_blocked_until_its_parent_succeeds(app: Flowrra) -> None:
    async with app.client():
        parent = await app.submit(app.registry["add"], 1)
        child = await app.submit(app.registry["add"], result_of(parent))
        job = await app.get_job(child)
    assert (job.status, job.parents) == (TaskStatus.BLOCKED, (parent,))


async def test_a_parent_that_fails_cancels_all_its_descendants(app: Flowrra) -> None:
    async with app:
        parent = await app.submit(app.registry["fail"])
        child = await app.submit(app.registry["add"], result_of(parent))
        grandchild = await app.submit(app.registry["add"], result_of(child))
        results = [await app.wait_for_result(task_id, timeout=20.0) for task_id in (child, grandchild)]
        late = await app.submit(app.registry["add"], result_of(parent))
        results.append(await app.wait_for_result(late, timeout=20.0))
    assert [result.status for result in results] == [TaskStatus.CANCELLED] * 3
    assert [result.error for result in results] == [
        f"its parent {parent} ended as failed",
        f"its parent {child} ended as cancelled",
        f"its parent {parent} ended as failed",
    ]


async def test_a_parent_that_is_not_known_is_refused(app: Flowrra) -> None:
    async with app.client():
        with pytest.raises(TaskNotFoundError, match="no job 'nobody' is known here"):
            await app.submit(app.registry["add"], result_of(TaskId("nobody")))
        assert await app.jobs() == []


AT_EXIT = """
import atexit, threading
from flowrra import Flowrra

app = Flowrra.from_urls("sqlite:///jobs.db")

@app.task
def nothing() -> None: ...

def refuse(thread):
    raise RuntimeError("can't create new thread at interpreter shutdown")

print(len(app.sync.submit_many(nothing, [(), ()])))
atexit.register(setattr, threading.Thread, "start", refuse)  # CPython 3.12.0 to 3.12.2 is like that
"""


def test_app_sync_ends_quietly_where_python_starts_no_thread_at_its_exit(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", AT_EXIT]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "2\n", "")
