"""What `flowrra_extras.testing` gives to users: the manual clock and drain()."""

import asyncio

import pytest

from flowrra import (
    ExecutorNotRunningError,
    Flowrra,
    MemoryBroker,
    Retry,
    SQLiteBroker,
    TaskStatus,
    current_job,
    join_limit_key,
    result_of,
)
from flowrra_extras.testing import ManualClock, drain


@pytest.fixture(params=["memory", "sqlite"])
def app(request: pytest.FixtureRequest) -> Flowrra:
    clock = ManualClock()
    broker = MemoryBroker(clock=clock) if request.param == "memory" else SQLiteBroker(clock=clock)
    return Flowrra(broker=broker, clock=clock)


def test_the_clock_moves_by_hand_only() -> None:
    clock = ManualClock(wall=100.0, monotonic=5.0)
    assert (clock.time(), clock.monotonic()) == (100.0, 5.0)
    clock.advance(2.5)
    assert (clock.time(), clock.monotonic()) == (102.5, 7.5)
    clock.jump_wall(-50)
    assert (clock.time(), clock.monotonic()) == (52.5, 7.5)
    with pytest.raises(ValueError, match="cannot go back"):
        clock.advance(-1)


async def test_drain_runs_what_is_ready(app: Flowrra) -> None:
    @app.task
    async def double(n: int) -> int:
        await asyncio.sleep(0)
        return 2 * n

    @app.task
    def add(a: int, b: int) -> int:
        return a + b

    async with app:
        one, two = await app.submit_many(double, [(1,), (2,)])
        both = await app.submit(add, result_of(one), result_of(two))
        await drain(app)
        assert (await app.get_job(both)).result == 6


async def test_drain_puts_the_clock_forward(app: Flowrra) -> None:
    """A day's wait and all retries pass in a moment, and each at its time."""
    began = app.now()
    times: list[float] = []

    @app.task(max_retries=3, retry_delay=60.0, backoff=10.0)
    async def flaky() -> int:
        times.append(app.now() - began)
        if current_job().attempt < 4:
            raise Retry
        return current_job().attempt

    async with app:
        task_id = await flaky.options(delay=86_400).submit()
        await drain(app)
        assert (await app.get_job(task_id)).result == 4
    assert times == [86_400, 86_460, 87_060, 90_660]


async def test_drain_puts_the_clock_forward_to_the_rate_of_a_limit(app: Flowrra) -> None:
    began, times = app.now(), list[float]()

    @app.task(rate="1/m", key=str)
    async def call(_number: int) -> None:
        times.append(app.now() - began)

    @app.task(concurrency=1)
    async def alone() -> None: ...

    async with app:
        await app.submit_many(call, [(1,)] * 3)
        await app.submit_many(alone, [()] * 3)
        await app.broker.change([join_limit_key(str(call.limit), "2")], "pause", now=app.now())
        await app.submit(call, 2)
        await drain(app)
        assert [job.key for job in await app.jobs(status=TaskStatus.BLOCKED)] == ["2"]
    assert times == pytest.approx([0, 60, 120], abs=0.01)


async def test_drain_leaves_what_nobody_here_would_run(app: Flowrra) -> None:
    stranger = Flowrra(broker=MemoryBroker())

    @app.task
    async def known() -> None: ...

    @stranger.task
    async def unknown() -> None: ...

    async with app:
        await app.broker.set_queue("closed", paused=True)
        paused = await known.options(queue="closed").submit()
        unserved = await known.options(queue="elsewhere", delay=5).submit()
        foreign = unknown.make_job((), {})
        await app.submit_jobs([foreign])
        before = app.now()
        await drain(app)
        statuses = [(await app.get_job(task_id)).status for task_id in (paused, unserved)]
        assert statuses == [TaskStatus.PENDING, TaskStatus.SCHEDULED]
        assert (await app.get_job(foreign.id)).status in (TaskStatus.PENDING, TaskStatus.RUNNING, TaskStatus.SCHEDULED)
        assert app.now() == before


async def test_drain_leaves_a_real_clock_alone() -> None:
    app = Flowrra()

    @app.task
    async def note() -> None: ...

    async with app:
        later = await note.options(delay=3600).submit()
        now = await note.submit()
        await drain(app)
        assert (await app.get_job(now)).status is TaskStatus.SUCCESS
        assert (await app.get_job(later)).status is TaskStatus.SCHEDULED


async def test_drain_gives_up_in_time(app: Flowrra) -> None:
    @app.task
    async def endless() -> None:
        await asyncio.Event().wait()

    async with app:
        task_id = await app.submit(endless)
        with pytest.raises(TimeoutError):
            await drain(app, timeout=0.05)
        await app.cancel(task_id)


async def test_drain_needs_a_worker(app: Flowrra) -> None:
    async with app.client():
        with pytest.raises(ExecutorNotRunningError, match="async with app"):
            await drain(app)
