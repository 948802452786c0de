"""The session, which is the app open on one loop: whoever uses the app from inside of it, and starts beside stops."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from flowrra import _MOVES, Event, ExecutorNotRunningError, Flowrra, FlowrraError, Job, MemoryBroker, TaskStatus
from tests.support.apps import eventually, flowrra_threads, make_app, within

URLS = {"memory": "memory://", "sqlite": "sqlite:///{folder}/jobs.db"}


@pytest.fixture(params=list(URLS))
def app(request: pytest.FixtureRequest, tmp_path: Path) -> Flowrra:
    app = make_app(URLS[request.param].format(folder=tmp_path))

    @app.task(name="double")
    async def double(number: int) -> int:
        return number * 2

    return app


async def doubled(app: Flowrra, number: int) -> Any:
    return (await app.wait_for_result(await app.submit(app.registry["double"], number), timeout=20.0)).result


async def submit_as_client(app: Flowrra) -> Any:
    async with app.client() as same:
        return await same.submit(app.registry["double"], 1)


async def schedule(app: Flowrra) -> Any:
    return await app.schedulers[0].schedule_cron("double", "0 9 * * *", [1])


USES: dict[str, Callable[[Flowrra], Awaitable[Any]]] = {
    "submit": lambda app: app.submit(app.registry["double"], 1),
    "client": submit_as_client,
    "schedule": schedule,
    "jobs": lambda app: app.jobs(),
}
use_of_the_app = pytest.mark.parametrize("use", list(USES.values()), ids=list(USES))


# ---------------------------------------------------------------------------
# From the inside
# ---------------------------------------------------------------------------


@use_of_the_app
async def test_a_lifespan_may_use_the_app_when_it_begins_and_when_it_ends(
    app: Flowrra, use: Callable[[Flowrra], Awaitable[Any]]
) -> None:
    app.create_scheduler("memory://")
    done: list[Any] = []

    @app.lifespan
    @contextlib.asynccontextmanager
    async def around(app: Flowrra) -> AsyncIterator[None]:
        done.append(await use(app))
        yield
        done.append(await use(app))

    await within(app.start())
    assert await within(doubled(app, 2)) == 4
    await within(app.stop())
    assert len(done) == 2


@use_of_the_app
async def test_hooks_and_middleware_may_use_the_app(app: Flowrra, use: Callable[[Flowrra], Awaitable[Any]]) -> None:
    app.create_scheduler("memory://")
    used: set[str] = set()

    @app.on("worker_start")
    @app.on("worker_stop")
    async def at_both_ends(event: Event) -> None:
        await use(app)
        used.add(event.name)

    @app.middleware
    async def around(job: Job, call_next: Callable[[Job], Awaitable[Any]]) -> Any:
        if "middleware" not in used:
            used.add("middleware")
            await use(app)
        return await call_next(job)

    async with asyncio.timeout(20), app:
        assert await doubled(app, 3) == 6
    assert used == {"worker_start", "middleware", "worker_stop"}


async def test_a_job_may_become_a_client_while_the_app_drains(app: Flowrra) -> None:
    begun, go = asyncio.Event(), asyncio.Event()
    submitted: list[str] = []

    @app.task
    async def work() -> str:
        begun.set()
        await go.wait()
        submitted.append(await submit_as_client(app))
        return "done"

    await app.start()
    task_id = await app.submit(work)
    await begun.wait()
    stopping = asyncio.create_task(app.stop(timeout=20))
    await asyncio.sleep(0)
    go.set()
    await within(stopping, 10)
    async with app.client():
        job = await app.get_job(task_id)
        assert (job.status, job.attempt) == (TaskStatus.SUCCESS, 1)
        assert (await app.get_job(submitted[0])).status is TaskStatus.PENDING


@pytest.mark.parametrize("call", ["start", "stop"])
async def test_a_lifespan_that_would_wait_for_itself_is_told_so(app: Flowrra, call: str) -> None:
    @app.lifespan
    @contextlib.asynccontextmanager
    async def around(app: Flowrra) -> AsyncIterator[None]:
        await getattr(app, call)()
        yield

    with pytest.raises(FlowrraError, match=rf"the lifespan cannot await app\.{call}\(\), which waits for it: use"):
        await within(app.start())
    assert not app.is_running


async def test_a_lifespan_that_calls_exit_fails_the_start(app: Flowrra) -> None:
    @app.lifespan
    @contextlib.asynccontextmanager
    async def around(app: Flowrra) -> AsyncIterator[None]:
        raise SystemExit(0)
        yield

    with pytest.raises(FlowrraError, match=r"the app's lifespan called sys\.exit\(0\)"):
        await within(app.start())


async def test_a_lifespan_is_entered_and_left_in_one_task_that_is_not_the_callers(app: Flowrra) -> None:
    tasks: list[asyncio.Task[Any] | None] = []

    @app.lifespan
    @contextlib.asynccontextmanager
    async def around(app: Flowrra) -> AsyncIterator[None]:
        tasks.append(asyncio.current_task())
        async with asyncio.timeout(60):
            yield
        tasks.append(asyncio.current_task())

    await asyncio.create_task(app.start())
    await asyncio.create_task(app.stop())
    assert len(tasks) == 2
    assert tasks[0] is tasks[1] is not asyncio.current_task()


async def test_what_a_lifespan_raises_at_its_end_is_told_to_who_stops(app: Flowrra) -> None:
    @app.lifespan
    @contextlib.asynccontextmanager
    async def around(app: Flowrra) -> AsyncIterator[None]:
        yield
        raise ZeroDivisionError("at the end")

    await app.start()
    with pytest.raises(ZeroDivisionError, match="at the end"):
        await within(app.stop())
    assert not app.is_running
    assert not flowrra_threads()


async def test_a_client_around_a_running_app_keeps_the_stores(app: Flowrra) -> None:
    async with app.client():
        async with app:
            assert await doubled(app, 1) == 2
        assert not app.is_running
        task_id = await app.submit(app.registry["double"], 2)
        async with app:
            assert (await app.wait_for_result(task_id, timeout=20.0)).result == 4
        assert len(await app.jobs()) == 2
    assert not flowrra_threads()


async def test_a_start_that_fails_leaves_the_stores_to_the_clients(app: Flowrra) -> None:
    @app.lifespan
    @contextlib.asynccontextmanager
    async def around(app: Flowrra) -> AsyncIterator[None]:
        raise ZeroDivisionError
        yield

    async with app.client():
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                await within(app.start())
            assert not app.is_running
            await app.submit(app.registry["double"], 1)


# ---------------------------------------------------------------------------
# Starts beside stops, and callers that are cancelled
# ---------------------------------------------------------------------------


def with_gate(app: Flowrra) -> tuple[asyncio.Event, asyncio.Event]:
    """A lifespan that says when it has begun and waits until it may go on."""
    begun, go = asyncio.Event(), asyncio.Event()

    @app.lifespan
    @contextlib.asynccontextmanager
    async def around(app: Flowrra) -> AsyncIterator[None]:
        begun.set()
        await go.wait()
        yield

    return begun, go


async def cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_stop_that_is_cancelled_goes_on_and_can_be_called_again(app: Flowrra) -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    @app.task
    async def work() -> None:
        begun.set()
        await go.wait()

    await app.start()
    await app.submit(work)
    await begun.wait()
    stopping = asyncio.create_task(app.stop())
    await asyncio.sleep(0.02)
    await cancelled(stopping)
    go.set()
    await eventually(lambda: not app.is_running)
    await within(app.stop())
    with pytest.raises(ExecutorNotRunningError):
        await app.submit(work)


async def test_a_second_stop_shortens_the_first(app: Flowrra) -> None:
    begun = asyncio.Event()

    @app.task
    async def endless() -> None:
        begun.set()
        await asyncio.Event().wait()

    await app.start()
    await app.submit(endless)
    await begun.wait()
    first = asyncio.create_task(app.stop(timeout=None))
    await asyncio.sleep(0.02)
    await within(asyncio.gather(first, app.stop(timeout=0.1)), 10)


async def test_a_stop_that_was_shortened_does_not_shorten_a_later_one(app: Flowrra) -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    @app.task
    async def work() -> None:
        begun.set()
        await go.wait()

    async with app.client():
        await app.start()
        await app.submit(work)
        await begun.wait()
        asyncio.get_running_loop().call_later(0.02, go.set)
        await within(asyncio.gather(app.stop(timeout=None), app.stop(timeout=0.2)))
        begun.clear()
        go.clear()
        await app.start()
        task_id = await app.submit(work)
        await begun.wait()
        await asyncio.sleep(0.3)  # until the time of the first stop is up
        asyncio.get_running_loop().call_later(0.05, go.set)
        await within(app.stop())
        assert (await app.get_job(task_id)).status is TaskStatus.SUCCESS


async def test_a_stop_beside_a_start_wins_if_it_is_later(app: Flowrra) -> None:
    begun, _ = with_gate(app)
    starting = asyncio.create_task(app.start())
    await within(begun.wait())
    await within(app.stop())
    with pytest.raises(ExecutorNotRunningError, match="the app was stopped while it was starting"):
        await within(starting)
    assert not app.is_running


async def test_a_start_beside_a_stop_wins_if_it_is_later(app: Flowrra) -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    @app.task
    async def work() -> None:
        begun.set()
        await go.wait()

    await app.start()
    first = app.worker
    task_id = await app.submit(work)
    await begun.wait()
    stopping = asyncio.create_task(app.stop())
    await asyncio.sleep(0.02)
    starting = asyncio.create_task(app.start())
    await asyncio.sleep(0.02)
    assert not starting.done(), "it waits for the drain"
    go.set()
    await within(asyncio.gather(starting, stopping))
    assert app.is_running
    assert app.worker is not first
    assert (await app.wait_for_result(task_id, timeout=20.0)).attempts == 1
    assert await within(doubled(app, 4)) == 8
    await app.stop()


async def test_a_start_and_a_stop_in_one_turn_of_the_loop(app: Flowrra) -> None:
    await app.start()
    await within(asyncio.gather(app.stop(), app.start()))
    assert app.is_running
    assert await within(doubled(app, 4)) == 8
    answers = await within(asyncio.gather(app.start(), app.stop(), return_exceptions=True))
    assert answers[1] is None
    assert not app.is_running


async def test_a_start_beside_the_end_of_a_block_wins_if_it_is_later(app: Flowrra) -> None:
    await app.start()
    await within(asyncio.gather(app.__aexit__(None, None, None), app.start()))
    assert app.is_running
    assert await within(doubled(app, 4)) == 8
    await app.stop()


async def test_a_start_that_is_cancelled_leaves_nothing_open(app: Flowrra) -> None:
    begun, _ = with_gate(app)
    starting = asyncio.create_task(app.start())
    await within(begun.wait())
    await cancelled(starting)
    await eventually(lambda: not flowrra_threads())
    assert not app.is_running
    assert app.sessions.present is not None
    await eventually(lambda: app.sessions.present is not None and app.sessions.present.state == "closed")


async def test_of_two_that_wait_for_a_start_one_may_go(app: Flowrra) -> None:
    begun, go = with_gate(app)
    first, second = asyncio.create_task(app.start()), asyncio.create_task(app.start())
    await within(begun.wait())
    await cancelled(first)
    go.set()
    await within(second)
    assert app.is_running
    await app.stop()


class SlowBroker(MemoryBroker):
    """Takes until `go` to open."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()
        self.opened = self.given_up = self.closed = 0

    async def open(self) -> None:
        self.opened += 1
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.given_up += 1
            raise

    async def close(self) -> None:
        self.closed += 1


async def test_an_opening_goes_on_as_long_as_somebody_waits_for_it() -> None:
    broker = SlowBroker()
    app = make_app(broker=broker)
    first, second = asyncio.create_task(app.jobs()), asyncio.create_task(app.jobs())
    await eventually(lambda: broker.opened == 1)
    await cancelled(first)
    broker.go.set()
    assert await within(second) == []
    await app.stop()
    assert (broker.opened, broker.given_up, broker.closed) == (1, 0, 1)


async def test_an_opening_that_nobody_waits_for_any_more_is_given_up() -> None:
    broker = SlowBroker()
    app = make_app(broker=broker)
    for calls in range(1, 3):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(app.jobs(), 0.01)
        await eventually(lambda calls=calls: broker.given_up == calls)
    stopping = asyncio.create_task(app.jobs())
    await eventually(lambda: broker.opened == 3)
    await within(app.stop())
    with pytest.raises(ExecutorNotRunningError, match="has been stopped"):
        await stopping
    assert (broker.opened, broker.given_up, broker.closed) == (3, 3, 0)


async def test_a_failure_to_open_is_told_to_all_who_wait_and_tried_anew_by_the_next() -> None:
    class Away(MemoryBroker):
        opened = 0

        async def open(self) -> None:
            self.opened += 1
            await asyncio.sleep(0)
            if self.opened == 1:
                raise FlowrraError("away")

    app = make_app(broker=Away())
    answers = await asyncio.gather(app.jobs(), app.jobs(), app.start(), return_exceptions=True)
    assert [str(answer) for answer in answers] == ["away"] * 3
    assert await within(app.jobs()) == []
    await app.stop()


def test_each_state_leads_on_to_known_ones_and_at_last_to_the_close() -> None:
    assert {after for moves in _MOVES.values() for after in moves} == _MOVES.keys() - {"new"}
    reached, before = {"closed"}, 0
    while len(reached) > before:
        before = len(reached)
        reached |= {state for state, moves in _MOVES.items() if reached & set(moves)}
    assert reached == _MOVES.keys()


# ---------------------------------------------------------------------------
# What is left in memory
# ---------------------------------------------------------------------------

PRIVATE = pytest.mark.parametrize("url", ["memory://", "sqlite://"])


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@PRIVATE
async def test_what_is_ready_in_memory_is_worked_off(url: str, caplog: pytest.LogCaptureFixture) -> None:
    app = make_app(url, io_workers=2)
    ran: list[int] = []

    @app.task
    async def work(number: int) -> None:
        ran.append(number)
        if number < 5:
            await app.submit(work, number + 100)  # and what the jobs submit

    async with app:
        for number in range(30):
            await app.submit(work, number)
    assert sorted(ran) == [*range(30), *range(100, 105)]
    assert warnings(caplog) == []


@PRIVATE
async def test_what_is_left_in_memory_is_counted_in_a_warning(url: str, caplog: pytest.LogCaptureFixture) -> None:
    app = make_app(url, drain=20.0)

    @app.task(retry_delay=60.0)
    async def fails() -> None:
        raise ZeroDivisionError

    @app.task(queue="paused")
    async def rests() -> None:
        """Never runs."""

    async with asyncio.timeout(20), app:
        await app.broker.set_queue("paused", paused=True)
        parent = await app.submit(fails)
        await fails.options(delay=60).submit()
        for _ in range(2):
            await app.submit(rests)
    assert parent
    (text,) = [text for text in warnings(caplog) if "left in memory" in text]
    assert text == (
        "jobs are left in memory, and lost when this process ends: "
        "1 retrying in 'default', 1 scheduled in 'default', 2 pending in 'paused'"
    )


async def test_working_off_ends_with_the_drain(caplog: pytest.LogCaptureFixture) -> None:
    app = make_app(io_workers=1, drain=0.2)

    @app.task
    async def slow() -> None:
        await asyncio.sleep(60)

    async with asyncio.timeout(20), app:
        await app.submit_many(slow, [()] * 3)
    assert "3 pending in 'default'" in warnings(caplog)[-1]


async def test_working_off_can_be_hurried(caplog: pytest.LogCaptureFixture) -> None:
    app = make_app(io_workers=1, drain=60.0)
    begun = asyncio.Event()

    @app.task
    async def slow() -> None:
        begun.set()
        await asyncio.Event().wait()

    async with asyncio.timeout(20), app:
        await app.submit_many(slow, [()] * 3)
        hurrying = asyncio.create_task(hurry_when(begun, app))
    await hurrying
    assert "3 pending in 'default'" in warnings(caplog)[-1]


async def hurry_when(begun: asyncio.Event, app: Flowrra) -> None:
    await begun.wait()
    await asyncio.sleep(0.05)
    await app.stop(wait=False)


@pytest.mark.parametrize("way", ["stop", "client", "error"])
async def test_jobs_that_nobody_will_run_are_told_of(way: str, caplog: pytest.LogCaptureFixture) -> None:
    app = make_app()

    @app.task(queue="far")
    async def work() -> None:
        """Never runs."""

    with contextlib.suppress(ZeroDivisionError):
        if way == "client":
            async with app.client():
                await app.submit(work)
        else:
            async with app:
                await app.submit(work.options(queue="unserved").task, *())
                await app.broker.set_queue("far", paused=True)
                await work.options(queue="unserved").submit()
                if way == "stop":
                    await app.stop()
                else:
                    raise ZeroDivisionError
    assert "jobs are left in memory, and lost when this process ends" in warnings(caplog)[-1]


async def test_a_durable_broker_is_left_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    app = make_app(f"sqlite:///{tmp_path}/jobs.db", io_workers=1)
    begun, go = asyncio.Event(), asyncio.Event()

    @app.task
    async def work() -> None:
        begun.set()
        await go.wait()

    async with app:
        await app.submit_many(work, [()] * 3)
        await begun.wait()
        asyncio.get_running_loop().call_later(0.05, go.set)
    async with app.client():
        counts = await app.broker.counts()
    assert counts == {("default", TaskStatus.SUCCESS): 1, ("default", TaskStatus.PENDING): 2}
    assert warnings(caplog) == []
