"""What runs around a job: middleware, hooks, lifespan, current_job(), waiting inside of jobs, full queues."""

import asyncio
import contextlib
import logging
import re
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from flowrra import (
    BrokerConfig,
    ConfigError,
    Event,
    Flowrra,
    FlowrraError,
    Job,
    Notices,
    Progress,
    QueueFullError,
    TaskStatus,
    current_job,
)
from tests.support.apps import eventually, make_app, within

CallNext = Callable[[Job], Awaitable[Any]]


@pytest.fixture
def app() -> Flowrra:
    app = make_app()

    @app.task(name="double", max_retries=0)
    async def double(number: int) -> int:
        return number * 2

    @app.task(name="fail", max_retries=0)
    async def fail() -> None:
        raise ValueError("as it was told to")

    return app


async def run(app: Flowrra, name: str, *args: Any) -> Any:
    task_id = await app.submit(app.registry[name], *args)
    return await app.wait_for_result(task_id, timeout=20.0)


# ---------------------------------------------------------------------------
# Middleware
# ---------------------------------------------------------------------------


async def test_the_middleware_registered_first_is_the_outermost(app: Flowrra) -> None:
    seen: list[str] = []

    def wrap(name: str) -> None:
        @app.middleware
        async def around(job: Job, call_next: CallNext) -> Any:
            seen.append(f"{name} before {job.task}")
            result = await call_next(job)
            seen.append(f"{name} after {result}")
            return result

    wrap("outer")
    wrap("inner")
    async with app:
        await run(app, "double", 2)
    assert seen == ["outer before double", "inner before double", "inner after 4", "outer after 4"]


async def test_middleware_may_replace_the_result_and_skip_the_task(app: Flowrra) -> None:
    @app.middleware
    async def one_more(job: Job, call_next: CallNext) -> Any:
        return "skipped" if job.task == "fail" else await call_next(job) + 1

    async with app:
        assert (await run(app, "double", 2)).result == 5
        assert (await run(app, "fail")).result == "skipped"


async def test_middleware_sees_the_exception_of_the_task(app: Flowrra) -> None:
    seen: list[str] = []

    @app.middleware
    async def look(job: Job, call_next: CallNext) -> Any:
        try:
            return await call_next(job)
        except ValueError as error:
            seen.append(str(error))
            raise

    async with app:
        result = await run(app, "fail")
    assert (seen, result.error) == (["as it was told to"], "ValueError: as it was told to")


async def test_an_exception_of_the_middleware_is_the_failure_of_the_job(app: Flowrra) -> None:
    @app.middleware
    async def refuse(job: Job, call_next: CallNext) -> Any:
        raise PermissionError(f"{job.task} is not allowed")

    async with app:
        result = await run(app, "double", 1)
    assert (result.status, result.error) == (TaskStatus.FAILED, "PermissionError: double is not allowed")


async def test_a_middleware_that_does_not_await_is_named_in_the_failure(app: Flowrra) -> None:
    def plain(job: Job, call_next: CallNext) -> Any:
        return "not awaited"

    async def outer(job: Job, call_next: CallNext) -> Any:
        return await call_next(job)

    for middleware in (outer, plain):
        app.middleware(middleware)
    async with app:
        result = await run(app, "double", 1)
    assert result.error == (
        f"ConfigError: a middleware is an async def that returns `await call_next(job)`; {plain!r} is not"
    )


async def test_middleware_wraps_plain_functions_too(app: Flowrra) -> None:
    @app.task
    def plain() -> str:
        return threading.current_thread().name

    @app.middleware
    async def shout(job: Job, call_next: CallNext) -> Any:
        return (await call_next(job)).upper()

    async with app:
        task_id = await app.submit(plain)
        assert (await app.wait_for_result(task_id, timeout=20.0)).result == "FLOWRRA-THREAD"


# ---------------------------------------------------------------------------
# Hooks
# ---------------------------------------------------------------------------


class Watcher:
    """Keeps the events of an app, by plain and async hooks in turn."""

    def __init__(self, app: Flowrra, *names: str) -> None:
        self.events: list[Event] = []
        for number, name in enumerate(names):
            app.on(name)(self.note if number % 2 else self.note_later)

    def note(self, event: Event) -> None:
        self.events.append(event)

    async def note_later(self, event: Event) -> None:
        await asyncio.sleep(0)
        self.events.append(event)

    async def wait(self, name: str) -> Event:
        await eventually(lambda: name in self.names(), f"the event {name}")
        return next(event for event in self.events if event.name == name)

    def names(self) -> list[str]:
        return [event.name for event in self.events]


async def test_hooks_are_told_of_a_worker_and_of_a_success_in_order(app: Flowrra) -> None:
    watcher = Watcher(app, "worker_start", "start", "success", "worker_stop")
    async with app:
        assert app.worker is not None
        worker = app.worker.id
        result = await run(app, "double", 2)
        event = await watcher.wait("success")
    assert watcher.names() == ["worker_start", "start", "success", "worker_stop"]
    assert {event.worker for event in watcher.events} == {worker}
    assert event.job is not None
    assert (event.job.id, event.result, event.error) == (result.task_id, 4, None)


async def test_a_hook_is_told_of_a_failure(app: Flowrra) -> None:
    watcher = Watcher(app, "failure", "success", "retry")
    async with app:
        await run(app, "fail")
        event = await watcher.wait("failure")
    assert (watcher.names(), event.error) == (["failure"], "ValueError: as it was told to")


async def test_a_hook_is_told_of_each_retry(app: Flowrra) -> None:
    watcher = Watcher(app, "retry", "success")

    @app.task(max_retries=2, retry_delay=0.0)
    async def third_time() -> None:
        if current_job().attempt < 3:
            raise ConnectionError("not yet")

    async with app:
        await app.wait_for_result(await app.submit(third_time), timeout=20.0)
        await watcher.wait("success")
    assert watcher.names() == ["retry", "retry", "success"]
    assert watcher.events[0].error == "ConnectionError: not yet"


async def test_hooks_are_told_of_a_cancelled_and_of_a_released_job(app: Flowrra) -> None:
    watcher = Watcher(app, "start", "cancel", "release")

    @app.task
    async def wait() -> None:
        await asyncio.Event().wait()

    async with app:
        first = await app.submit(wait)
        await watcher.wait("start")
        await app.cancel(first)
        await watcher.wait("cancel")
        await app.submit(wait)
        await eventually(lambda: watcher.names().count("start") == 2)
        await app.stop(wait=False)
    assert watcher.names() == ["start", "cancel", "start", "release"]


async def test_a_hook_is_told_of_a_lost_worker(app: Flowrra) -> None:
    """The worker is told so by its heartbeat; here it is handed the notice."""
    watcher = Watcher(app, "worker_lost")
    async with app:
        worker = app.sessions.worker()
        assert worker is not None
        worker.handle_notices(Notices(lost_workers=["w-1"]))
        assert (await watcher.wait("worker_lost")).worker == "w-1"


async def test_a_hook_that_fails_is_logged_and_changes_nothing(app: Flowrra, caplog: pytest.LogCaptureFixture) -> None:
    @app.on("success")
    def broken(event: Event) -> None:
        raise RuntimeError("hook is broken")

    watcher = Watcher(app, "success")
    async with app:
        assert (await run(app, "double", 2)).is_success
        await watcher.wait("success")
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.getMessage() == "a hook of the event 'success' failed"
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "hook is broken"


def test_an_event_that_does_not_exist_is_refused(app: Flowrra) -> None:
    with pytest.raises(
        ConfigError, match="there is no event 'sucess', only cancel, failure, release, retry, snooze, start"
    ):
        app.on("sucess")(lambda event: None)


async def test_events_that_a_stop_drops_are_counted(app: Flowrra, caplog: pytest.LogCaptureFixture) -> None:
    begun = asyncio.Event()

    @app.on("success")
    async def never_ends(event: Event) -> None:
        begun.set()
        await asyncio.Event().wait()

    async with app:
        await app.submit_many(app.registry["double"], [(1,), (2,), (3,)])
        await begun.wait()
        await eventually(lambda: (worker := app.sessions.worker()) is not None and worker.settler.events.qsize() == 2)
        await app.stop(wait=False)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        "3 event(s) are dropped: their hooks did not end within 1 s"
    ]


def test_a_hook_without_the_name_of_its_event_is_refused(app: Flowrra) -> None:
    def forgotten(event: Event) -> None:
        """It would never be called."""

    with pytest.raises(ConfigError, match=r"there is no event <function .*forgotten"):
        app.on(forgotten)  # type: ignore[arg-type]


def test_a_hook_of_submits_that_nobody_would_await_is_refused(app: Flowrra) -> None:
    with pytest.raises(ConfigError, match=r"on_submit takes a plain def, .*, not <function .*stamp"):

        @app.on_submit
        async def stamp(job: Job) -> None:
            """A submit in plain code cannot await it."""


# ---------------------------------------------------------------------------
# Lifespan and state
# ---------------------------------------------------------------------------


def test_a_second_lifespan_is_refused_and_no_lifespan_too(app: Flowrra) -> None:
    @contextlib.asynccontextmanager
    async def first(app: Flowrra) -> AsyncIterator[None]:
        yield

    @contextlib.asynccontextmanager
    async def second(app: Flowrra) -> AsyncIterator[None]:
        yield

    async def bare(app: Flowrra) -> AsyncIterator[None]:
        yield

    for wrong in (bare, None, 5):
        with pytest.raises(ConfigError, match=r"a lifespan is a function with @contextlib\.asynccontextmanager, not "):
            app.lifespan(wrong)  # type: ignore[arg-type]
    app.lifespan(first)
    app.lifespan(first)
    with pytest.raises(ConfigError, match=rf"the app has a lifespan, at {re.escape(__file__)}:\d+: open both"):
        app.lifespan(second)


async def test_what_the_lifespan_yields_reaches_tasks(app: Flowrra) -> None:
    steps: list[str] = []

    @app.lifespan
    @contextlib.asynccontextmanager
    async def pool(app: Flowrra) -> AsyncIterator[dict[str, str]]:
        steps.append(f"enter, running: {app.is_running}")
        yield {"pool": "open"}
        steps.append(f"leave, running: {app.is_running}")

    @app.task
    async def in_loop() -> Any:
        return current_job().state

    @app.task
    def in_thread() -> Any:
        return current_job().state

    async with app:
        assert app.state == {"pool": "open"}
        for task in (in_loop, in_thread):
            task_id = await app.submit(task)
            assert (await app.wait_for_result(task_id, timeout=20.0)).result == {"pool": "open"}
    assert steps == ["enter, running: False", "leave, running: False"]


async def test_a_lifespan_that_fails_leaves_nothing_open(app: Flowrra) -> None:
    broken = True

    @app.lifespan
    @contextlib.asynccontextmanager
    async def pool(app: Flowrra) -> AsyncIterator[None]:
        if broken:
            raise ConnectionError("no database")
        yield

    with pytest.raises(ConnectionError, match="no database"):
        await app.start()
    assert not app.is_running
    broken = False
    async with app:
        assert (await run(app, "double", 2)).result == 4


# ---------------------------------------------------------------------------
# The job from inside
# ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_a_job_knows_itself(app: Flowrra, kind: str) -> None:
    def about() -> list[Any]:
        job = current_job()
        if job.attempt == 1:
            raise ConnectionError("once more")
        return [job.id, job.task, job.queue, job.attempt, job.failures]

    async def about_later() -> list[Any]:
        return about()

    task = app.task(name="about", retry_delay=0.0, queue="own")(about if kind == "plain" else about_later)
    async with app:
        task_id = await app.submit(task)
        result = await app.wait_for_result(task_id, timeout=20.0)
    assert result.result == [task_id, "about", "own", 2, 1]


async def test_outside_of_a_job_there_is_none() -> None:
    with pytest.raises(FlowrraError, match=r"current_job\(\) was called outside of a job"):
        current_job()


@pytest.mark.parametrize("url", ["memory://", "file"])
async def test_progress_can_be_seen_from_outside(url: str, tmp_path: Path) -> None:
    app = make_app(f"sqlite:///{tmp_path}/jobs.db" if url == "file" else url)
    seen = asyncio.Event()

    @app.task
    async def work() -> None:
        current_job().progress(1)
        current_job().progress(3, 10, "reading")
        await seen.wait()

    async def is_shown() -> bool:
        result = await app.get_result(task_id)
        return result is not None and result.progress == Progress(3, 10, "reading")

    async with app:
        task_id = await app.submit(work)
        await eventually(is_shown)
        seen.set()


async def test_progress_of_a_plain_function(app: Flowrra) -> None:
    seen = threading.Event()

    @app.task
    def work() -> None:
        current_job().progress(0.5, note="half")
        assert seen.wait(20)

    async def is_shown() -> bool:
        return (await app.get_job(task_id)).progress == Progress(0.5, None, "half")

    async with app:
        task_id = await app.submit(work)
        await eventually(is_shown)
        seen.set()


# ---------------------------------------------------------------------------
# Waiting for another job, inside of a job
# ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["async", "plain"])
@pytest.mark.parametrize("url", ["memory://", "file"])
async def test_a_job_that_waits_for_another_lends_its_slot(kind: str, url: str, tmp_path: Path) -> None:
    """One slot, and three jobs of which each waits for the next: without lending they would stand still."""
    app = make_app(f"sqlite:///{tmp_path}/jobs.db" if url == "file" else url, io_workers=1)

    async def later(depth: int) -> int:
        if depth == 0:
            return 1
        task_id = await app.submit(app.registry["nest"], depth - 1)
        result: Any = await app.wait_for_result(task_id, timeout=20.0)
        return 1 + int(result.result)

    def plain(depth: int) -> int:
        if depth == 0:
            return 1
        task_id = app.sync.submit(app.registry["nest"], depth - 1)
        result: Any = app.sync.wait_for_result(task_id, timeout=20.0)
        return 1 + int(result.result)

    task = app.task(name="nest")(later if kind == "async" else plain)
    async with app:
        result = await app.wait_for_result(await app.submit(task, 3), timeout=20.0)
    assert (result.status, result.result, result.error) == (TaskStatus.SUCCESS, 4, None)


async def test_a_lent_slot_is_taken_back() -> None:
    app = make_app(io_workers=1)
    running = highest = 0

    @app.task
    async def leaf() -> None:
        nonlocal running, highest
        running += 1
        highest = max(highest, running)
        await asyncio.sleep(0)
        running -= 1

    @app.task
    async def parent() -> None:
        await app.wait_for_result(await app.submit(leaf), timeout=20.0)

    async with app:
        await app.wait_for_result(await app.submit(parent), timeout=20.0)
        ids = await app.submit_many(leaf, [()] * 20)
        await app.wait_for_result(ids[-1], timeout=20.0)
    assert highest == 1


# ---------------------------------------------------------------------------
# A full queue
# ---------------------------------------------------------------------------


def bounded_app(size: int, when_full: str, **executor: Any) -> Flowrra:
    return make_app(settings=BrokerConfig(max_queue_size=size, when_full=when_full), **executor)


async def test_a_full_queue_refuses_and_says_what_to_do() -> None:
    app = bounded_app(2, "raise")
    add = app.task(name="add")(lambda: None)
    async with app.client():
        first = await app.submit(add)
        await app.submit(add)
        with pytest.raises(
            QueueFullError, match=r"queue 'default' is full \(max_queue_size=2\): try again later, raise .*'wait'"
        ):
            await app.submit(add)
        await add.options(queue="other").submit()
        await app.cancel(first)
        await app.submit(add)


async def test_a_full_queue_lets_the_caller_wait_until_there_is_room() -> None:
    app = bounded_app(1, "wait")
    done: list[int] = []

    @app.task
    async def note(number: int) -> None:
        done.append(number)

    async with app.client():
        await app.submit(note, 0)
        more = [asyncio.create_task(app.submit(note, number)) for number in range(1, 10)]
        await asyncio.sleep(0)
        assert len(await app.jobs()) == 1
        async with app:
            ids = await within(asyncio.gather(*more))
            for task_id in ids:
                await app.wait_for_result(task_id, timeout=20.0)
    assert sorted(done) == list(range(10))


async def test_retries_find_room_in_a_full_queue() -> None:
    app = bounded_app(1, "wait", io_workers=1)

    @app.task(retry_delay=0.0, max_retries=2)
    async def third_time() -> None:
        if current_job().attempt < 3:
            raise ConnectionError("not yet")

    async with app:
        ids = await within(asyncio.gather(*(app.submit(third_time) for _ in range(10))))
        results = [await app.wait_for_result(task_id, timeout=20.0) for task_id in ids]
    assert [result.attempts for result in results] == [3] * 10


async def test_jobs_that_submit_into_their_own_full_queue_do_not_stand_still() -> None:
    app = bounded_app(1, "wait", io_workers=1)

    @app.task
    async def leaf() -> None:
        """Nothing to do."""

    @app.task
    async def branch() -> None:
        for _ in range(3):
            await app.submit(leaf)

    async with app:
        branches = await within(asyncio.gather(*(app.submit(branch) for _ in range(4))))
        for task_id in branches:
            await app.wait_for_result(task_id, timeout=20.0)
        await eventually(lambda: has_succeeded(app, 16))


async def has_succeeded(app: Flowrra, count: int) -> bool:
    return len(await app.jobs(status=TaskStatus.SUCCESS)) == count


async def test_a_stop_ends_those_who_wait_for_room() -> None:
    app = bounded_app(1, "wait", io_workers=1)
    begun, free = asyncio.Event(), asyncio.Event()

    @app.task
    async def hold() -> None:
        begun.set()
        await free.wait()

    await app.start()
    await app.submit(hold)
    await begun.wait()
    await app.submit(hold)
    stuck = asyncio.create_task(app.submit(hold))
    await asyncio.sleep(0)
    free.set()
    await within(app.stop())
    with pytest.raises(FlowrraError, match="was closed while this call was waiting"):
        await within(stuck)


async def test_a_stop_does_not_wait_for_a_job_that_waits_for_room() -> None:
    """Nobody claims any more, so that there will be no room; the job is handed back."""
    app = bounded_app(1, "wait", io_workers=1)
    full = asyncio.Event()

    @app.task
    async def hold() -> None:
        await asyncio.Event().wait()

    @app.task
    async def greedy() -> None:
        full.set()
        for _ in range(5):
            await app.submit(hold)

    await app.start()
    await app.submit(greedy)
    await full.wait()
    await within(app.stop(timeout=0.1))
    assert not app.is_running
