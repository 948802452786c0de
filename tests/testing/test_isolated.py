"""An isolated app: what a test sees of the jobs, and that nothing outside of it is touched."""

import asyncio
import datetime as dt
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from flowrra import Config, Flowrra, FlowrraError, Job, QueueFullError, Retry, TaskStatus, current_job
from flowrra_extras.testing import ManualClock, isolated

NOWHERE = "redis://127.0.0.1:1/0"  # nobody listens there


@pytest.fixture(params=["memory://", NOWHERE, "postgresql://nobody:x@127.0.0.1:1/none"])
def app(request: pytest.FixtureRequest) -> Flowrra:
    return Flowrra.from_urls(request.param)


def add_tasks(app: Flowrra) -> list[Any]:
    @app.task(max_retries=2, retry_delay=60)
    async def greet(name: str, loudly: bool = False) -> str:
        if current_job().failures == 0:
            raise Retry("not yet")
        return f"hello {name}"

    @app.task(queue="mail")
    def send(to: str) -> None: ...

    return [greet, send]


async def test_jobs_wait_until_they_are_drained(app: Flowrra) -> None:
    greet, send = add_tasks(app)
    async with isolated(app) as test:
        task_id = await app.submit(greet, "Ada")
        await send.options(queue="elsewhere", delay=3_600).submit("ada@example.com")
        assert {job.status for job in await app.jobs()} == {TaskStatus.PENDING, TaskStatus.SCHEDULED}
        began = test.clock.time()
        ended = await test.drain()
        assert [(job.id == task_id, job.status, job.attempt) for job in ended] == [
            (True, TaskStatus.SUCCESS, 2),
            (False, TaskStatus.SUCCESS, 1),
        ]
        assert test.clock.time() - began == 3_600
        assert await test.drain() == []
        assert (await app.wait_for_result(task_id)).result == "hello Ada"
        await app.submit(greet, "Bob")  # after a drain as before
        assert len(await test.drain()) == 1


def test_plain_code(app: Flowrra) -> None:
    greet, send = add_tasks(app)
    with isolated(app) as test:
        task_id = app.sync.submit(greet, "Ada")
        app.sync.submit(send, "x")
        assert [job.status for job in test.sync.drain()] == [TaskStatus.SUCCESS] * 2
        assert app.sync.wait_for_result(task_id, timeout=20).result == "hello Ada"
    with isolated(app) as test:
        assert (test.enqueued(), app.sync.jobs()) == ([], [])


async def test_what_was_enqueued(app: Flowrra) -> None:
    greet, send = add_tasks(app)
    async with isolated(app) as test:
        await app.submit(greet, "Ada", loudly=True, delay=5)
        await send.options(unique="key", priority=-1, timeout=9, expires=60).submit("a")
        await send.options(unique="key").submit("taken")
        (first,) = test.enqueued(greet)
        assert (first.args, first.kwargs, first.delay, first.queue) == (("Ada",), {"loudly": True}, 5.0, "default")
        (mail,) = test.enqueued(send)
        assert mail.options == {
            "queue": "mail",
            "priority": -1,
            "delay": 0.0,
            "expires": 60.0,
            "unique": "key",
            "timeout": 9.0,
        }
        assert [job.task for job in test.enqueued()] == [greet.name, send.name]
        await test.drain()
        assert test.enqueued(greet) == [first]  # as it was


async def test_an_assertion_looks_at_arguments_and_options() -> None:
    app = Flowrra()
    greet, send = add_tasks(app)
    async with isolated(app) as test:
        moment = dt.datetime.fromtimestamp(test.clock.time() + 90, dt.UTC)
        await greet.options(run_at=moment).submit("Ada")
        assert test.assert_enqueued(greet, name="Ada").delay == 90
        assert test.assert_enqueued(greet, "Ada", False) is test.assert_enqueued(greet.options(delay=90), "Ada")
        with pytest.raises(AssertionError, match=r"(?s)not enqueued as.*Bob.*but there are:.*Ada"):
            test.assert_enqueued(greet, "Bob")
        with pytest.raises(AssertionError, match=r"there are:\n.*delay=90"):
            test.assert_enqueued(greet.options(delay=91), "Ada")
        with pytest.raises(AssertionError, match="there are: none"):
            test.assert_enqueued(send, "Ada")
        with pytest.raises(TypeError, match="missing a required argument"):
            test.assert_enqueued(greet)


async def test_inline_jobs_have_run_when_submit_returns(app: Flowrra) -> None:
    add_tasks(app)
    order: list[str] = []

    @app.task
    async def inner() -> None:
        order.append("inner")

    @app.task
    async def outer() -> None:
        await app.submit(inner)
        order.append("outer")

    @app.task(max_retries=0)
    def fails() -> None:
        raise ValueError

    async with isolated(app, inline=True) as test:
        task_id = await app.submit(outer)
        assert order == ["outer", "inner"]
        assert (await app.get_job(task_id)).status is TaskStatus.SUCCESS
        failed = await app.submit(fails)
        assert (await app.get_job(failed)).status is TaskStatus.FAILED
        later = await inner.options(delay=9).submit()
        assert (await app.get_job(later)).status is TaskStatus.SCHEDULED
        assert [job.id for job in await test.drain()] == [later]


def test_inline_in_plain_code(app: Flowrra) -> None:
    greet, _ = add_tasks(app)
    with isolated(app, inline=True) as test:
        task_id = app.sync.submit(greet, "Ada")
        assert app.sync.get_job(task_id).status is TaskStatus.RETRYING
        test.sync.drain()
        assert app.sync.get_job(task_id).status is TaskStatus.SUCCESS


async def test_schedules_fire_on_the_clock_of_the_test() -> None:
    app = Flowrra.from_urls(NOWHERE)
    _, send = add_tasks(app)
    app.every(600, args=("every",))(send)
    scheduler = app.create_scheduler("postgresql://nobody:x@127.0.0.1:1/none")
    clock = ManualClock()
    async with isolated(app, clock=clock) as test:
        await scheduler.schedule_interval(send, 600, args=("stored",))
        await test.fire_due()
        assert test.enqueued(send) == []
        clock.advance(600)
        await test.fire_due()
        assert sorted(job.args for job in test.enqueued(send)) == [("every",), ("stored",)]
        assert len(await test.drain()) == 2


def test_schedules_fire_in_plain_code() -> None:
    app = Flowrra.from_urls(NOWHERE)
    _, send = add_tasks(app)
    app.cron("0 * * * *", args=("hourly",))(send)
    for _ in range(2):
        with isolated(app, clock=ManualClock()) as test:
            test.clock.advance(3_600)
            test.sync.fire_due()
            assert len(test.enqueued(send)) == 1


async def test_jobs_run_within_the_lifespan() -> None:
    app = Flowrra.from_urls(NOWHERE)
    states: list[object] = []

    @asynccontextmanager
    async def lifespan(_: Flowrra) -> AsyncIterator[str]:
        yield "state"

    app.lifespan(lifespan)

    @app.task
    async def look() -> None:
        states.append(current_job().state)

    async with isolated(app) as test:
        await app.submit(look)
        await test.drain()
    assert states == ["state"]


async def test_the_app_is_as_it_was_afterwards(app: Flowrra, caplog: pytest.LogCaptureFixture) -> None:
    greet, _ = add_tasks(app)
    before = dict(vars(app))
    async with isolated(app):
        await app.submit(greet, "Ada")
    now = vars(app)
    assert {name for name in before if now[name] is not before[name]} == set()
    assert not app.sessions.is_stopped
    assert caplog.records == []  # no word on the jobs that were left
    if app.broker is before["broker"] and app.config.broker.url == "memory://":
        async with app.client():
            assert await app.jobs() == []


async def test_code_that_starts_the_app_itself(app: Flowrra) -> None:
    greet, _ = add_tasks(app)
    async with isolated(app) as test, app:
        await app.submit(greet, "Ada")
        assert len(await test.drain()) == 1
        assert app.is_running


async def test_jobs_in_the_callers_transaction_are_recorded(app: Flowrra) -> None:
    greet, _ = add_tasks(app)
    async with isolated(app) as test:
        await app.submit_in(object(), greet, "Ada")
        test.assert_enqueued(greet, "Ada")


async def test_the_limit_of_a_queue_holds() -> None:
    config = Config()
    config.broker.max_queue_size, config.broker.when_full = 1, "raise"
    app = Flowrra(config)
    greet, _ = add_tasks(app)
    async with isolated(app) as test:
        await app.submit(greet, "Ada")
        with pytest.raises(QueueFullError):
            await app.submit(greet, "Bob")
        assert len(test.enqueued()) == 1


async def test_jobs_of_a_rate_are_drained_before_a_worker_has_declared_it() -> None:
    app = Flowrra()

    @app.task(rate="1/h")
    async def call() -> None: ...

    async with isolated(app) as test:
        began = test.clock.time()
        await app.submit_many(call, [()] * 3)
        assert len(await test.drain()) == 3
        assert test.clock.time() - began == pytest.approx(7200, abs=0.01)


@pytest.mark.parametrize(
    "other",
    [{"tags": ["b"]}, {"tags": ["a", "b"]}, {"meta": {"n": 2}}, {"meta": {"m": 1}}, {"limit": "m"}, {"key": "l"}],
)
async def test_a_job_with_other_labels_or_limits_is_another(other: dict[str, Any]) -> None:
    app = Flowrra()
    greet, _ = add_tasks(app)
    app.limit("l", concurrency=1)
    app.limit("m", concurrency=1)
    given: dict[str, Any] = {"tags": ["a"], "meta": {"n": 1}, "limit": "l", "key": "k"}

    @app.on_submit
    def trace(job: Job) -> None:
        job.tags, job.meta = (*job.tags, "traced"), {**(job.meta or {}), "trace": "id"}

    async with isolated(app) as test:
        await app.submit(greet.options(**given), "Ada")
        job = test.assert_enqueued(greet.options(**given), "Ada")
        assert (job.tags, job.meta) == (("a", "traced"), {"n": 1, "trace": "id"})
        assert (job.limit, job.key) == ("l", "k")
        with pytest.raises(AssertionError, match="was not enqueued as"):
            test.assert_enqueued(greet.options(**given | other), "Ada")


async def test_an_open_app_is_not_isolated() -> None:
    app = Flowrra()
    async with app.client():
        with pytest.raises(FlowrraError, match="isolate it before"):
            async with isolated(app):
                pass


async def test_a_drain_gives_up_in_time() -> None:
    app = Flowrra()

    @app.task
    async def endless() -> None:
        await asyncio.Event().wait()

    async with isolated(app) as test:
        await app.submit(endless)
        with pytest.raises(TimeoutError):
            await test.drain(timeout=0.05)


def test_time_begins_now() -> None:
    with isolated(Flowrra()) as test:
        assert abs(test.clock.time() - time.time()) < 60
