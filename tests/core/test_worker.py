"""The worker: capacities and order, retries, what tasks may do to it, and what it leaves behind."""

import asyncio
import contextvars
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

from flowrra import Flowrra, Retry, TaskResult, TaskStatus, current_job
from tests.support.apps import MovableClock, eventually, flowrra_threads, make_app


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return {"memory": "memory://", "file": f"sqlite:///{tmp_path}/jobs.db"}[request.param]


async def result_of_job(app: Flowrra, task: Any, *args: Any) -> TaskResult[Any]:
    return await app.wait_for_result(await app.submit(task, *args), timeout=20.0)


async def look_again(app: Flowrra, queue: str = "default") -> None:
    """Have the worker claim; its own timers know nothing of a clock that jumps."""
    await app.broker.set_queue(queue, paused=False)


# ---------------------------------------------------------------------------
# Capacities and order
# ---------------------------------------------------------------------------


class Crowd:
    """Counts who is in at once, and lets all go when the expected number is in."""

    def __init__(self, expected: int) -> None:
        self.inside = 0
        self.highest = 0
        self.full = asyncio.Event()
        self._expected = expected

    async def visit(self) -> None:
        self.inside += 1
        self.highest = max(self.highest, self.inside)
        if self.inside == self._expected:
            self.full.set()
        await self.full.wait()
        await asyncio.sleep(0)
        self.inside -= 1


async def test_each_queue_fills_its_capacity_and_no_more(url: str) -> None:
    app = make_app(url, queues={"narrow": 2, "wide": 5})
    crowds = {"narrow": Crowd(2), "wide": Crowd(5)}

    @app.task
    async def visit(name: str) -> None:
        await crowds[name].visit()

    async with app:
        ids: list[str] = []
        for name in crowds:
            ids += await app.submit_many(visit.options(queue=name), [(name,)] * 12)
        for task_id in ids:
            await app.wait_for_result(task_id, timeout=20.0)
    assert {name: crowd.highest for name, crowd in crowds.items()} == {"narrow": 2, "wide": 5}


async def test_threads_fill_the_capacity_too(url: str) -> None:
    app = make_app(url, io_workers=3)
    barrier = threading.Barrier(3, timeout=20)

    @app.task(max_retries=0)
    def meet() -> None:
        barrier.wait()

    async with app:
        ids = await app.submit_many(meet, [()] * 6)
        results = [await app.wait_for_result(task_id, timeout=20.0) for task_id in ids]
    assert [result.error for result in results] == [None] * 6


async def test_a_lone_slow_job_leaves_the_other_slots_to_others(url: str) -> None:
    app = make_app(url, io_workers=2)
    begun, over = asyncio.Event(), asyncio.Event()

    @app.task
    async def slow() -> None:
        begun.set()
        await over.wait()

    @app.task
    async def quick() -> str:
        return "beside it"

    async with app:
        task_id = await app.submit(slow)
        await begun.wait()
        for _ in range(3):
            assert (await result_of_job(app, quick)).result == "beside it"
        over.set()
        await app.wait_for_result(task_id, timeout=20.0)


async def test_queues_that_are_not_named_are_not_served(url: str) -> None:
    app = make_app(url, queues={"mail": 1})

    @app.task
    async def note() -> None:
        """Nothing to do."""

    async with app:
        left = await app.submit(note)
        done = await note.options(queue="mail").submit()
        await app.wait_for_result(done, timeout=20.0)
        assert (await app.get_job(left)).status is TaskStatus.PENDING


async def test_order_is_by_priority_and_then_by_submission(url: str) -> None:
    app = make_app(url, io_workers=1)
    order: list[int] = []

    @app.task
    async def note(number: int) -> None:
        order.append(number)

    numbers = [7, 1, 4, 0, 3, 9, 2, 8]
    for number in numbers:
        await note.options(priority=number % 3).submit(number)
    async with app:
        await eventually(lambda: len(order) == len(numbers))
    assert order == sorted(numbers, key=lambda number: number % 3)


async def test_a_paused_queue_waits_and_goes_on(url: str) -> None:
    app = make_app(url)

    @app.task
    async def note() -> None:
        """Nothing to do."""

    async with app:
        await app.broker.set_queue("default", paused=True)
        held = await app.submit(note)
        await result_of_job(app, app.task(name="other", queue="other")(note.function))
        assert (await app.get_job(held)).status is TaskStatus.PENDING
        await app.broker.set_queue("default", paused=False)
        assert (await app.wait_for_result(held, timeout=20.0)).is_success


# ---------------------------------------------------------------------------
# Retries
# ---------------------------------------------------------------------------


async def test_delays_grow_and_hold_no_slot(url: str) -> None:
    clock = MovableClock()
    app = make_app(url, clock=clock, io_workers=1)

    @app.task(max_retries=4, retry_delay=100.0, backoff=3.0, max_delay=1000.0)
    async def fail() -> None:
        raise ConnectionError("no answer")

    @app.task
    async def other() -> str:
        return "ran meanwhile"

    async def is_retrying(failures: int) -> bool:
        job = await app.get_job(task_id)
        return job.status is TaskStatus.RETRYING and job.failures == failures

    delays = []
    async with app:
        task_id = await app.submit(fail)
        for failures in range(1, 5):
            await eventually(lambda failures=failures: is_retrying(failures))
            job = await app.get_job(task_id)
            ended = job.attempts[-1].ended
            assert job.due is not None
            assert ended is not None
            delays.append(job.due - ended)
            assert (await result_of_job(app, other)).result == "ran meanwhile"
            clock.wall_offset += delays[-1] + 1
            await look_again(app)
        result = await app.wait_for_result(task_id, timeout=20.0)
    assert delays == [pytest.approx(delay, abs=1) for delay in (100, 300, 900, 1000)]
    assert (result.status, result.attempts) == (TaskStatus.FAILED, 5)


async def test_a_task_may_ask_to_be_retried_later(url: str) -> None:
    app = make_app(url)

    @app.task(retry_delay=600.0, retry_on=ConnectionError)
    async def limited() -> str:
        if current_job().attempt == 1:
            raise Retry("rate limit", delay=0)
        return "through"

    async with app:
        result = await result_of_job(app, limited)
        job = await app.get_job(result.task_id)
    assert (result.result, job.failures) == ("through", 1)
    assert job.attempts[0].error == "Retry: rate limit"


@pytest.mark.parametrize(
    ("error", "attempts"),
    [(ConnectionError("a"), 3), (ConnectionResetError("a"), 1), (ValueError("a"), 1), (TimeoutError("a"), 3)],
    ids=lambda value: type(value).__name__,
)
async def test_which_errors_are_retried(error: Exception, attempts: int) -> None:
    app = make_app()

    @app.task(
        max_retries=2, retry_delay=0.0, retry_on=(ConnectionError, TimeoutError), no_retry_on=ConnectionResetError
    )
    async def fail() -> None:
        raise error

    async with app:
        result = await result_of_job(app, fail)
    assert (result.status, result.attempts) == (TaskStatus.FAILED, attempts)


@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_a_timeout_is_a_failure_like_others(url: str, kind: str) -> None:
    """A thread cannot be killed: it is left to end, and what it returns is dropped."""
    app = make_app(url, io_workers=1)
    over = threading.Event()

    def plain() -> str:
        if current_job().attempt == 1:
            over.wait(20)
        return "second attempt"

    async def later() -> str:
        if current_job().attempt == 1:
            await asyncio.Event().wait()
        return "second attempt"

    task = app.task(name="slow", timeout=0.1, retry_delay=0.0)(plain if kind == "plain" else later)
    async with app:
        result = await result_of_job(app, task)
        job = await app.get_job(result.task_id)
        over.set()
    assert (result.result, result.attempts) == ("second attempt", 2)
    assert job.attempts[0].error == "TaskTimeoutError: the attempt took longer than its timeout of 0.1 s"


async def test_a_timeout_of_the_task_itself_is_not_taken_for_ours() -> None:
    app = make_app()

    @app.task(timeout=20.0, max_retries=0)
    async def inner() -> None:
        raise TimeoutError("of its own")

    async with app:
        assert (await result_of_job(app, inner)).error == "TimeoutError: of its own"


# ---------------------------------------------------------------------------
# What a task may do to its worker
# ---------------------------------------------------------------------------


class Rude(BaseException):
    """No Exception."""


@pytest.mark.parametrize("kind", ["async", "plain"])
@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, asyncio.CancelledError, GeneratorExit, Rude])
async def test_any_exception_is_a_failure_of_its_job_alone(kind: str, error: type[BaseException]) -> None:
    app = make_app(io_workers=1)

    def plain() -> None:
        raise error(3)

    async def later() -> None:
        raise error(3)

    @app.task
    async def good() -> str:
        return "goes on"

    bad = app.task(name="bad")(plain if kind == "plain" else later)
    async with app:
        result = await result_of_job(app, bad)
        assert (await result_of_job(app, good)).result == "goes on"
    assert (result.status, result.error, result.attempts) == (TaskStatus.FAILED, f"{error.__name__}: 3", 1)
    assert result.traceback is not None
    assert "raise error(3)" in result.traceback


async def test_a_result_that_cannot_be_kept_fails_its_job(tmp_path: Path) -> None:
    app = make_app(f"sqlite:///{tmp_path}/jobs.db")

    @app.task(name="lock", max_retries=0)
    async def lock() -> Any:
        return {"a": [threading.Lock()]}

    async with app:
        result = await result_of_job(app, lock)
    assert (result.status, result.result) == (TaskStatus.FAILED, None)
    assert result.error is not None
    assert result.error.startswith("SerializationError: the result of lock['a'][0] is a _thread.lock, which cannot be")


async def test_arguments_that_cannot_be_read_fail_their_job(tmp_path: Path) -> None:
    app = make_app(f"sqlite:///{tmp_path}/jobs.db")

    @app.task(max_retries=0)
    async def good(value: object) -> object:
        return value

    async with app.client():
        ids = await app.submit_many(good, [(1,), (2,), (3,)])
    garbage = ["{not json", '[[{"$":"no such tag","v":1}],{}]']
    with sqlite3.connect(tmp_path / "jobs.db") as connection:
        for task_id, payload in zip(ids, garbage, strict=False):
            connection.execute("UPDATE flowrra_job SET payload = ? WHERE id = ?", (payload, task_id))
    connection.close()
    async with app:
        results = [await app.wait_for_result(task_id, timeout=20.0) for task_id in ids]
    assert [result.status for result in results] == [TaskStatus.FAILED, TaskStatus.FAILED, TaskStatus.SUCCESS]
    assert [str(result.error).partition(":")[0] for result in results[:2]] == ["SerializationError"] * 2


NAME: contextvars.ContextVar[str] = contextvars.ContextVar("name", default="nobody")


@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_context_variables_do_not_leak_into_the_next_job(kind: str) -> None:
    app = make_app(io_workers=1)

    def plain(name: str) -> str:
        before = NAME.get()
        NAME.set(name)
        return before

    async def later(name: str) -> str:
        return plain(name)

    task = app.task(name="look")(plain if kind == "plain" else later)
    async with app:
        NAME.set("the one who submits")
        results = [await result_of_job(app, task, name) for name in ("a", "b", "c")]
    assert [result.result for result in results] == ["nobody"] * 3


async def test_a_worker_goes_on_after_many_rude_jobs() -> None:
    """Each of them costs its runner; there must be a new one for it each time."""
    app = make_app(io_workers=2)

    @app.task(max_retries=0)
    async def rude(number: int) -> None:
        NAME.set(str(number))
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    async with app:
        ids = await app.submit_many(rude, [(number,) for number in range(20)])
        results = [await app.wait_for_result(task_id, timeout=20.0) for task_id in ids]
    assert {result.error for result in results} == {"CancelledError"}


# ---------------------------------------------------------------------------
# Cancelling what runs
# ---------------------------------------------------------------------------


async def test_a_running_job_is_cancelled(url: str) -> None:
    app = make_app(url)
    begun, cleaned_up = asyncio.Event(), asyncio.Event()

    @app.task
    async def wait() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cleaned_up.set()

    async with app:
        task_id = await app.submit(wait)
        await begun.wait()
        assert await app.cancel(task_id)
        result = await app.wait_for_result(task_id, timeout=20.0)
        job = await app.get_job(task_id)
    assert cleaned_up.is_set()
    assert (result.status, result.error, job.failures) == (TaskStatus.CANCELLED, "it was cancelled", 0)
    assert [attempt.outcome for attempt in job.attempts] == ["cancel"]


async def test_a_job_that_swallows_its_cancellation_keeps_what_it_returns(url: str) -> None:
    app = make_app(url, io_workers=1)
    begun = asyncio.Event()

    @app.task
    async def stubborn() -> str:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
        return "finished all the same"

    @app.task
    async def next_one() -> str:
        await asyncio.sleep(0)
        return "not cancelled"

    async with app:
        task_id = await app.submit(stubborn)
        await begun.wait()
        await app.cancel(task_id)
        assert (await app.wait_for_result(task_id, timeout=20.0)).result == "finished all the same"
        assert (await result_of_job(app, next_one)).result == "not cancelled"


async def test_a_cancelled_thread_is_left_to_end(url: str) -> None:
    app = make_app(url, io_workers=1)
    begun, over = threading.Event(), threading.Event()

    @app.task
    def wait() -> str:
        begun.set()
        over.wait(20)
        return "too late"

    async with app:
        task_id = await app.submit(wait)
        await eventually(begun.is_set)
        await app.cancel(task_id)
        result = await app.wait_for_result(task_id, timeout=20.0)
        over.set()
    assert result.status is TaskStatus.CANCELLED
    await eventually(lambda: not flowrra_threads())
