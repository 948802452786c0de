"""Whatever an attempt, a hook or a heartbeat does: each job comes to an outcome, and no loop of the worker ends."""

import asyncio
import functools
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from flowrra import (
    Event,
    Flowrra,
    FlowrraError,
    Job,
    MemoryBroker,
    Outcome,
    Progress,
    SQLiteBroker,
    TaskResult,
    TaskStatus,
    WorkerInfo,
    current_job,
    result_of,
)
from tests.support.apps import MovableClock, eventually, make_app, within


async def result_of_job(app: Flowrra, task: Any, *args: Any) -> TaskResult[Any]:
    return await app.wait_for_result(await app.submit(task, *args), timeout=20.0)


# ---------------------------------------------------------------------------
# Arguments
# ---------------------------------------------------------------------------


async def test_a_parent_whose_result_is_gone_fails_its_child(tmp_path: Path) -> None:
    """Deleted between the end of the parent and the start of the child."""
    app = make_app(f"sqlite:///{tmp_path}/jobs.db", queues={"first": 1})

    @app.task(queue="first")
    async def first() -> int:
        return 1

    @app.task(max_retries=0)
    async def second(number: int) -> int:
        return number

    async with app:
        parent = await app.submit(first)
        child = await app.submit(second, result_of(parent))
        await within(app.wait_for_result(parent))
        assert await app.delete(parent)
    later = make_app(f"sqlite:///{tmp_path}/jobs.db")
    later.task(name=second.name, max_retries=0)(second.function)
    async with later:
        result = await within(later.wait_for_result(child))
    assert (result.status, result.error) == (
        TaskStatus.FAILED,
        f"TaskNotFoundError: the result of its parent {parent} was removed: raise result_ttl or max_results",
    )


# ---------------------------------------------------------------------------
# Attempts that are hard to tell of
# ---------------------------------------------------------------------------


class WithTracebackError(Exception):
    traceback = 3


class WithoutTextError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("it says nothing")


class WithExitInTextError(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)  # of the attempt it would be a failure like others, too


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (WithTracebackError("boom"), "WithTracebackError: boom"),
        (WithoutTextError(), "WithoutTextError: <exception str() failed>"),
        (WithExitInTextError(), "WithExitInTextError: <exception str() failed>"),
    ],
)
async def test_a_strange_exception_is_a_failure_like_others(error: Exception, text: str) -> None:
    app = make_app(io_workers=1)

    @app.task(max_retries=0)
    async def fail() -> None:
        raise error

    @app.task
    async def good() -> str:
        return "goes on"

    async with app:
        result = await result_of_job(app, fail)
        assert (await result_of_job(app, good)).result == "goes on"
    assert (result.status, result.error) == (TaskStatus.FAILED, text)
    assert "raise error" in str(result.traceback)


async def test_a_job_with_an_option_of_a_newer_version_fails() -> None:
    app = make_app(io_workers=1)

    @app.task(max_retries=0)
    async def task() -> None:
        """Never begun."""

    async with app:
        await app.broker.push([Job("new", task.name, overrides={"from_the_future": 1})], now=app.now())
        result = await app.wait_for_result("new", timeout=20.0)
        assert (await result_of_job(app, task)).is_success
    assert (result.status, "from_the_future" in str(result.error)) == (TaskStatus.FAILED, True)


async def test_an_async_function_in_a_plain_decorator_is_awaited() -> None:
    app = make_app()

    def plain(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any) -> Any:
            return function(*args)

        return call

    @app.task
    @plain
    async def double(number: int) -> int:
        await asyncio.sleep(0)
        return number * 2

    async with app:
        assert (await result_of_job(app, double, 4)).result == 8


async def test_a_claim_that_is_cancelled_by_the_store_does_not_end_the_line() -> None:
    class Cancelling(MemoryBroker):
        left = 3

        async def claim(self, queue: str, **options: Any) -> list[Job]:
            if self.left:
                self.left -= 1
                raise asyncio.CancelledError("the driver has dropped its connection")
            return await super().claim(queue, **options)

    app = make_app(broker=Cancelling(), io_workers=1)

    @app.task
    async def work() -> str:
        return "done"

    async with app:
        assert (await result_of_job(app, work)).result == "done"


# ---------------------------------------------------------------------------
# Slots
# ---------------------------------------------------------------------------


async def test_a_job_that_waits_for_many_lends_one_slot() -> None:
    app = make_app(io_workers=2)
    running = highest = 0

    @app.task
    async def leaf() -> None:
        nonlocal running, highest
        running += 1
        highest = max(highest, running)
        await asyncio.sleep(0.001)
        running -= 1

    @app.task
    async def parent() -> None:
        ids = await app.submit_many(leaf, [()] * 20)
        await asyncio.gather(*(app.wait_for_result(task_id, timeout=20.0) for task_id in ids))

    async with app:
        assert (await result_of_job(app, parent)).is_success
        assert (await result_of_job(app, parent)).is_success
    assert highest == 2


async def test_what_is_left_of_an_attempt_lends_no_slot() -> None:
    app = make_app(io_workers=1)
    never = asyncio.Event()
    left: list[asyncio.Task[Any]] = []

    @app.task
    async def wait() -> None:
        await never.wait()

    @app.task
    async def leave() -> None:
        left.append(asyncio.create_task(app.wait_for_result(held, timeout=20.0)))
        await asyncio.sleep(0)

    async with app:
        held = await wait.options(delay=3600).submit()
        await result_of_job(app, leave)
        blocked = [await app.submit(wait), await app.submit(wait)]
        await eventually(lambda: (worker := app.sessions.worker()) is not None and len(worker.attempts()) == 1)
        await asyncio.sleep(0.05)
        assert [job.status for job in await app.jobs(limit=2)] == [TaskStatus.PENDING, TaskStatus.RUNNING]
        await app.cancel(held)
        await within(asyncio.gather(*left))
        never.set()
        for task_id in blocked:
            assert (await app.wait_for_result(task_id, timeout=20.0)).is_success


# ---------------------------------------------------------------------------
# A lease that was lost
# ---------------------------------------------------------------------------


async def test_what_was_claimed_under_a_new_lease_is_not_dropped_with_the_old() -> None:
    """The heartbeat that tells of the lapse gives a new lease, under which a claim may come before the news."""
    clock = MovableClock()
    app = make_app(clock=clock, heartbeat=5.0, lease=10.0)
    begun: list[int] = []
    go = asyncio.Event()

    @app.task
    async def slow() -> int:
        begun.append(current_job().attempt)
        if current_job().attempt == 1:
            await asyncio.Event().wait()
        await go.wait()
        return current_job().attempt

    async with app:
        task_id = await app.submit(slow)
        await eventually(lambda: begun == [1])
        clock.boot_offset += 11
        other = WorkerInfo("other", queues={"elsewhere": 1})
        await app.broker.heartbeat(other, lease=60, now=app.now())  # it puts the job back
        await app.broker.set_queue("default", paused=False)  # the worker wakes, and its heartbeat too
        await eventually(lambda: begun == [1, 2])
        await asyncio.sleep(0.05)
        go.set()
        result = await app.wait_for_result(task_id, timeout=20.0)
    assert (result.status, result.result) == (TaskStatus.SUCCESS, 2)


async def test_an_attempt_that_will_not_end_does_not_hide_its_successor() -> None:
    """Both may run here at once; the end of the first is not that of the second."""
    clock = MovableClock()
    app = make_app(clock=clock, heartbeat=5.0, lease=10.0, io_workers=2)
    begun: list[int] = []
    ends = {1: asyncio.Event(), 2: asyncio.Event()}

    @app.task
    async def stubborn() -> int:
        attempt = current_job().attempt
        begun.append(attempt)
        while not ends[attempt].is_set():
            try:
                await ends[attempt].wait()
            except asyncio.CancelledError:
                continue
        return attempt

    async with app:
        worker = app.sessions.worker()
        assert worker is not None
        task_id = await app.submit(stubborn)
        await eventually(lambda: begun == [1])
        clock.boot_offset += 11
        await app.broker.heartbeat(WorkerInfo("other", queues={"elsewhere": 1}), lease=60, now=app.now())
        await app.broker.set_queue("default", paused=False)
        await eventually(lambda: begun == [1, 2])
        ends[1].set()
        await eventually(lambda: len(worker.attempts()) == 1)
        await asyncio.sleep(0.02)
        assert [attempt.attempt for attempt in worker.attempts()] == [2]
        ends[2].set()
        assert (await app.wait_for_result(task_id, timeout=20.0)).result == 2


# ---------------------------------------------------------------------------
# Hooks and progress
# ---------------------------------------------------------------------------


async def test_a_hook_that_awaits_what_was_cancelled_is_logged_like_others(caplog: pytest.LogCaptureFixture) -> None:
    app = make_app()
    told: list[Event] = []

    @app.on("success")
    async def ask(event: Event) -> None:
        told.append(event)
        answer = asyncio.get_running_loop().create_future()
        answer.cancel()
        await answer

    @app.task
    async def work() -> None:
        """Nothing to do."""

    async with app:
        for number in range(1, 3):
            await result_of_job(app, work)
            await eventually(lambda number=number: len(told) == number)
    assert caplog.text.count("a hook of the event 'success' failed") == 2


async def test_a_stop_ends_a_hook_that_hangs() -> None:
    app = make_app()
    hangs, cancelled = asyncio.Event(), asyncio.Event()

    @app.on("success")
    async def hang(event: Event) -> None:
        hangs.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    @app.task
    async def work() -> None:
        """Nothing to do."""

    async with app:
        await result_of_job(app, work)
        await within(hangs.wait())
    assert cancelled.is_set()


async def test_a_job_cannot_await_the_stop_of_its_own_worker() -> None:
    app = make_app()
    stops: list[asyncio.Task[None]] = []

    @app.task(max_retries=0)
    async def waiting() -> None:
        await app.stop()

    @app.task
    async def leaving() -> None:
        stops.append(asyncio.create_task(app.stop()))

    await app.start()
    result = await result_of_job(app, waiting)
    assert str(result.error).startswith("FlowrraError: a job or a hook cannot await app.stop()")
    await app.submit(leaving)
    await eventually(lambda: bool(stops))
    await within(stops[0])
    assert not app.is_running


async def test_a_hook_cannot_await_the_stop_of_its_own_worker(caplog: pytest.LogCaptureFixture) -> None:
    app = make_app()
    refused = asyncio.Event()

    @app.on("success")
    async def stop(event: Event) -> None:
        with pytest.raises(FlowrraError, match="cannot await"):
            await app.stop()
        refused.set()

    @app.task
    async def work() -> None:
        """Nothing to do."""

    async with app:
        await result_of_job(app, work)
        await within(refused.wait())
        assert (await result_of_job(app, work)).is_success


async def test_progress_in_a_tight_loop_does_not_flood_the_event_loop() -> None:
    reports: list[list[Progress]] = []

    class Counting(MemoryBroker):
        async def settle(self, outcomes: Sequence[Outcome], *, now: float) -> list[bool]:
            if progress := [outcome.progress for outcome in outcomes if outcome.progress is not None]:
                reports.append(progress)
            return await super().settle(outcomes, now=now)

    app = make_app(broker=Counting())
    wake_ups = 0
    done, go = threading.Event(), threading.Event()

    @app.task
    def work() -> None:
        for step in range(10_000):
            current_job().progress(step)
        done.set()
        go.wait(20)

    async with app:
        loop = asyncio.get_running_loop()
        original = loop.call_soon_threadsafe

        def counted(*args: Any, **options: Any) -> Any:
            nonlocal wake_ups
            wake_ups += 1
            return original(*args, **options)

        loop.call_soon_threadsafe = counted  # type: ignore[method-assign, assignment]
        task_id = await app.submit(work)
        await eventually(done.is_set)
        counted_until_then = wake_ups
        await eventually(lambda: bool(reports) and reports[-1] == [Progress(9_999)])
        go.set()
        await app.wait_for_result(task_id, timeout=20.0)
        del loop.call_soon_threadsafe
    assert counted_until_then < 5_000
    assert 1 <= len(reports) <= 40


# ---------------------------------------------------------------------------
# Housekeeping
# ---------------------------------------------------------------------------


async def test_a_separate_backend_is_purged_too(tmp_path: Path) -> None:
    backend = SQLiteBroker(str(tmp_path / "results.db"))
    app = Flowrra(broker=MemoryBroker(), backend=backend)
    old = TaskResult("old", "task", TaskStatus.SUCCESS, 1, attempts=1, finished=1.0)
    async with app.client():
        await backend.record([old])
        assert await backend.get(["old"]) != [None]
        async with app:

            async def is_purged() -> bool:
                return await backend.get(["old"]) == [None]

            await eventually(is_purged)
