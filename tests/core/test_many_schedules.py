"""Many schedules in code: they fire in groups, whatever fails, and cost nothing while they are not due."""

import asyncio
import gc
import sys
from collections.abc import Sequence

import pytest

from flowrra import FIRES_AT_ONCE, BrokerError, Flowrra, Job, MemoryBroker, SerializationError
from flowrra_extras.testing import ManualClock, fire_due
from tests.core.test_schedules import START, app_on, jobs_of
from tests.support.apps import make_app


def many_ticks(app: Flowrra, number: int, rule: str = "* * * * *") -> None:
    @app.task(name="count")
    async def count(n: int) -> None:
        """Nothing to do."""

    for n in range(number):
        app.cron(rule, args=(n,))(count)


class CountingBroker(MemoryBroker):
    """Keeps how many jobs each push had. It refuses the job whose id is `refused`, and fails if it is `broken`."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock=clock)
        self.pushes: list[int] = []
        self.refused, self.is_broken = "", False

    async def push(self, jobs: Sequence[Job], *, now: float, by: str | None = None) -> list[str]:
        self.pushes.append(len(jobs))
        if self.is_broken:
            raise BrokerError("the broker is away")
        if any(job.id == self.refused for job in jobs):
            raise SerializationError("too much")
        return await super().push(jobs, now=now, by=by)


def counting_app(clock: ManualClock) -> tuple[Flowrra, CountingBroker]:
    broker = CountingBroker(clock)
    return make_app(clock=clock, broker=broker), broker


async def test_what_is_due_in_one_moment_is_pushed_in_groups() -> None:
    clock = ManualClock(START)
    app, broker = counting_app(clock)
    many_ticks(app, 2 * FIRES_AT_ONCE + 7)
    async with app.client():
        assert await app.code_schedules.step() > 0.0
        clock.advance(60)
        assert [await app.code_schedules.step() for _ in range(4)] == [0.0, 0.0, 1.0, 1.0]
        assert broker.pushes == [FIRES_AT_ONCE, FIRES_AT_ONCE, 7]
        assert len(await jobs_of(app)) == 2 * FIRES_AT_ONCE + 7


async def test_what_was_due_when_the_broker_failed_fires_once_it_is_back() -> None:
    clock = ManualClock(START)
    app, broker = counting_app(clock)
    many_ticks(app, FIRES_AT_ONCE + 1)
    async with app.client():
        await app.code_schedules.step()
        clock.advance(60)
        await app.code_schedules.step()
        broker.is_broken = True
        for _ in range(2):
            with pytest.raises(BrokerError, match="away"):
                await app.code_schedules.step()
        broker.is_broken = False
        await fire_due(app)
        assert len(await jobs_of(app)) == FIRES_AT_ONCE + 1
        assert len({job.payload for job in await jobs_of(app)}) == FIRES_AT_ONCE + 1


async def test_one_job_that_is_refused_costs_few_pushes_and_is_tried_again() -> None:
    clock = ManualClock(START)
    app, broker = counting_app(clock)
    many_ticks(app, 256)
    async with app.client():
        await fire_due(app)
        clock.advance(60)
        broker.refused = [*app.schedules][100] + "@2023-11-14T22:14:00Z"
        await fire_due(app)
        assert len(await jobs_of(app)) == 255
        assert len(broker.pushes) == 1 + 2 * 8  # it halves the group until one is left
        broker.refused = ""
        clock.advance(9.9)
        await fire_due(app)
        assert len(await jobs_of(app)) == 255
        clock.advance(0.1)
        await fire_due(app)
        assert len(await jobs_of(app)) == 256


async def test_two_steps_at_once_fire_the_same() -> None:
    """`fire_due` while the app itself is about to fire."""
    clock = ManualClock(START)
    app, broker = counting_app(clock)
    many_ticks(app, 3)
    async with app.client():
        await fire_due(app)
        for fires in (1, 2):
            clock.advance(60)
            await asyncio.gather(fire_due(app), fire_due(app))
            assert len(await jobs_of(app)) == 3 * fires
        clock.advance(60)
        broker.pushes.clear()
        await fire_due(app)
        assert broker.pushes == [3]


async def calls_of_a_step(schedules: int) -> int:
    """How many calls of functions a step takes that fires one of so many schedules."""
    clock = ManualClock(START)
    app, tick = app_on(clock)
    app.every(50)(tick)
    many_ticks(app, schedules, "0 0 1 1 *")
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    async with app.client():
        for _ in range(2):
            await fire_due(app)
            clock.advance(50)
        gc.disable()
        sys.setprofile(count)
        try:
            await app.code_schedules.step()
        finally:
            sys.setprofile(None)
            gc.enable()
        assert len(await jobs_of(app)) == 2
    return calls


async def test_a_step_costs_what_is_due_and_not_what_is_declared() -> None:
    few, many = await calls_of_a_step(10), await calls_of_a_step(5_000)
    assert few > 10
    assert many == few
