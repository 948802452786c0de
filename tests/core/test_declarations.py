"""What is declared wrongly is refused where it is declared, and not in a worker later."""

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from unittest.mock import MagicMock

import pytest

from flowrra import ConfigError, Event, Flowrra, FlowrraError, Job, Retry, TaskNotFoundError, TaskSet, current_job
from tests.support.apps import make_app, within


@pytest.fixture
def app() -> Flowrra:
    return make_app("memory://")


def none() -> None: ...


def three(one: object, two: object, three: object) -> None: ...


REGISTRARS: dict[str, tuple[Callable[[Flowrra], Callable[[Any], Any]], str]] = {
    "middleware": (lambda app: app.middleware, r"a middleware is a function of \(job, call_next\), unlike "),
    "hook": (lambda app: app.on("success"), r"a hook is a function of \(event\), unlike "),
    "on_submit": (lambda app: app.on_submit, r"a hook of on_submit is a function of \(job\), unlike "),
    "lifespan": (lambda app: app.lifespan, r"a lifespan is a function "),
}


@pytest.mark.parametrize("kind", REGISTRARS)
@pytest.mark.parametrize("wrong", [none, three, None, 5, "name", lambda: None, functools.partial(none)])
def test_what_cannot_be_called_as_a_worker_does(app: Flowrra, kind: str, wrong: Any) -> None:
    register, message = REGISTRARS[kind]
    with pytest.raises(ConfigError, match=message):
        register(app)(wrong)


@pytest.mark.parametrize("kind", REGISTRARS)
def test_what_can_be_called(app: Flowrra, kind: str) -> None:
    register, _ = REGISTRARS[kind]
    for fine in (MagicMock(), lambda *rest: None, lambda one, two=1: None, functools.partial(lambda *rest: None, 1)):
        if kind != "lifespan":
            register(app)(fine)
    Flowrra().lifespan(lambda app: contextlib.nullcontext())


def test_a_lifespan_without_its_decorator(app: Flowrra) -> None:
    async def returns(app: Flowrra) -> int:
        return 5

    async def yields(app: Flowrra) -> AsyncIterator[int]:
        yield 5

    def plain(app: Flowrra) -> Iterator[int]:
        yield 5

    for wrong in (returns, yields, plain):
        with pytest.raises(ConfigError, match=r"a lifespan is a function with @contextlib\.asynccontextmanager, not "):
            app.lifespan(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", ["no", 0, None])
def test_whether_a_schedule_is_enabled_is_true_or_false(app: Flowrra, wrong: Any) -> None:
    task = app.task(none)
    with pytest.raises(ConfigError, match="enabled must be True or False, not "):
        app.every(5, enabled=wrong)(task)


@pytest.mark.parametrize("part", ["config", "broker", "backend", "clock"])
@pytest.mark.parametrize("wrong", ["sqlite:///jobs.db", 5, Flowrra], ids=str)
def test_an_app_is_made_of_its_parts(part: str, wrong: Any) -> None:
    with pytest.raises(ConfigError, match=r"Flowrra\(\) takes a Config, Broker and Backend; for URLs, write "):
        Flowrra(**{part: wrong})


async def test_the_queue_of_a_schedule_in_code_is_served(app: Flowrra) -> None:
    ran = asyncio.Event()

    @app.every(0.05, queue="by the clock")
    @app.task
    async def tick() -> None:
        if current_job().queue == "by the clock":
            ran.set()

    app.config.executor.io_workers = 3
    async with app:
        await within(ran.wait())
        assert app.worker is not None
        assert app.worker.queues == {"default": 3, "by the clock": 3}
    app.config.executor.queues = {"default": 1}
    async with app:
        assert app.worker is not None
        assert app.worker.queues == {"default": 1}


async def test_a_task_of_a_set_without_an_app_says_so(app: Flowrra) -> None:
    tasks = TaskSet("mail")
    send = tasks.task(none)
    async with app.client():
        with pytest.raises(
            TaskNotFoundError, match=r"^these tasks belong to no app, .*: app\.include\(\) their set first$"
        ):
            await app.submit(send)
        app.include(tasks)
        await app.submit(send)
        with pytest.raises(TaskNotFoundError, match=r"^the task 'mail\.none' belongs to another app: submit it there$"):
            await Flowrra().submit(send)


def test_an_unknown_option_of_a_schedule_gets_the_nearest_one(app: Flowrra) -> None:
    with pytest.raises(TypeError, match=r"^a schedule has no option 'prio'; did you mean 'priority'\?$"):
        app.every(5, prio=1)(app.task(none))  # type: ignore[call-arg]


async def test_the_delay_of_a_retry_has_its_name(app: Flowrra) -> None:
    @app.task(max_retries=0)
    async def again() -> None:
        raise Retry(30)  # type: ignore[arg-type]

    async with app:
        result = await app.wait_for_result(await again.submit(), timeout=20.0)
    assert result.error == "ConfigError: Retry takes the delay by its name, as in Retry(delay=30)"


async def test_a_stop_that_a_job_may_not_make_leaves_the_app_as_it_is(app: Flowrra) -> None:
    @app.task(max_retries=0)
    async def stop() -> None:
        await app.stop()

    async def on_another_loop() -> str:
        return await app.submit(stop)

    async with app:
        result = await app.wait_for_result(await stop.submit(), timeout=20.0)
        assert "a job or a hook cannot await app.stop()" in (result.error or "")
        with pytest.raises(ConfigError, match="the app is open on another event loop, in another thread"):
            await within(asyncio.to_thread(asyncio.run, on_another_loop()))
    with pytest.raises(FlowrraError, match="the app has been stopped"):
        await app.submit(stop)


async def test_hooks_and_middleware_are_called_with_what_was_checked(app: Flowrra) -> None:
    seen: list[object] = []

    @app.middleware
    async def wrap(job: Job, call_next: Callable[[Job], Any]) -> Any:
        seen.append(job.id)
        return await call_next(job)

    @app.on("success")
    def hear(event: Event) -> None:
        seen.append(event.name)

    @app.task
    async def task() -> str:
        return current_job().id

    async with app:
        task_id = await task.submit()
        await app.wait_for_result(task_id, timeout=20.0)
    assert seen == [task_id, "success"]
