"""The contract: the activity of workers, which their heartbeats report."""

import asyncio
import dataclasses
import itertools
from typing import Any

from flowrra import Activity, ExecutorConfig, Flowrra, length_bucket
from flowrra_extras.contracts.harness import SOON, Contract, Harness, tests_take
from flowrra_extras.metrics import quantile

MINUTE = 1_700_000_040  # the next one after the start of the manual clock


@tests_take(Contract.harness)
class ActivityContract(Contract):
    """The activity of workers, which their heartbeats report."""

    async def test_there_is_no_activity_at_first(self, t: Harness) -> None:
        assert await t.broker.activity(0) == []

    async def test_what_an_app_does_is_counted(self, t: Harness) -> None:
        """From end to end: a worker runs jobs, and the broker learns their outcomes and durations."""
        t.clock.advance(MINUTE - t.now + 1)
        app = Flowrra(broker=t.broker, clock=t.clock)
        app.config.executor = ExecutorConfig(heartbeat=0.01, lease=60)
        fails = iter((True, False))

        @app.task(name="good")
        async def good() -> None:
            t.clock.advance(3)

        @app.task(name="bad", max_retries=1, retry_delay=0)
        async def bad() -> None:
            raise ValueError

        @app.task(name="shaky", retry_delay=0)
        async def shaky() -> None:
            if next(fails):
                raise ValueError

        async with app:
            waits = await good.options(delay=1).submit()  # a claim that is already waiting cannot take it
            t.clock.advance(3)
            await t.broker.set_queue("default", paused=False)  # wakes the worker
            await app.wait_for_result(waits, timeout=SOON)
            for task in (bad, shaky):
                await app.wait_for_result(await app.submit(task), timeout=SOON)
            rows, totals = await self.told(t, 5), await t.broker.totals()
        by_task = {one.task: (one.minute, one.succeeded, one.failed, one.retried) for one in rows}
        assert by_task == {"good": (MINUTE, 1, 0, 0), "bad": (MINUTE, 0, 1, 1), "shaky": (MINUTE, 1, 0, 1)}
        assert totals == [dataclasses.replace(one, minute=0) for one in sorted(rows, key=lambda one: one.task)]
        (told,) = (one for one in rows if one.task == "good")
        assert (round(told.waited), round(told.ran)) == (2, 3)
        assert (told.waits, told.runs) == ({length_bucket(2): 1}, {length_bucket(3): 1})
        assert 1.5 < (quantile(told.runs, 0.5) or 0) <= 3.3

    async def told(self, t: Harness, attempts: int) -> list[Activity]:
        """Wait until this number of attempts was reported, and return the activity."""
        async with asyncio.timeout(SOON):
            for pause in itertools.repeat(0.005):
                rows = await t.broker.activity(0)
                if sum(one.succeeded + one.failed + one.retried for one in rows) >= attempts:
                    return rows
                await asyncio.sleep(pause)
        raise AssertionError("the pauses never end")

    async def test_rows_are_summed_over_workers(self, t: Harness) -> None:
        one, two = row(0, "a", 1, runs={0: 1, 34: 2}), row(0, "a", 2, failed=1, retried=3, runs={34: 1})
        await t.tell(one, row(0, "b", 5, waits={3: 5}), row(60, "a", 7))
        await t.tell(two, worker="w2")
        both = row(0, "a", 3, failed=1, retried=3, runs={0: 1, 34: 3})
        assert await t.broker.activity(MINUTE) == [both, row(0, "b", 5, waits={3: 5}), row(60, "a", 7)]
        assert await t.broker.activity(MINUTE + 60) == [row(60, "a", 7)]
        assert await t.broker.activity(MINUTE + 61) == []

    async def test_a_repeated_heartbeat_doubles_nothing(self, t: Harness) -> None:
        for _ in range(2):
            await t.tell(row(0, "a", 1), row(60, "a", 2))
        await t.tell(row(60, "a", 5), row(60, "b", 1))
        await t.tell()
        expected = [row(0, "a", 1), row(60, "a", 5), row(60, "b", 1)]
        assert await t.broker.activity(0) == expected

    async def test_activity_outlives_its_worker(self, t: Harness) -> None:
        await t.tell(row(0, "a", 1))
        await t.tell(row(60, "a", 2), lease=0)
        assert await t.broker.workers() == []
        assert await t.broker.activity(0) == [row(0, "a", 1), row(60, "a", 2)]

    async def test_activity_is_kept_for_a_day(self, t: Harness) -> None:
        await t.tell(row(0, "a", 1), row(120, "a", 2))
        t.clock.advance(MINUTE - t.now + 86_400 + 90)
        await t.tell(row(86_460, "a", 3))
        assert await t.broker.activity(0) == [row(120, "a", 2), row(86_460, "a", 3)]

    async def test_totals_grow_by_what_is_new(self, t: Harness) -> None:
        assert await t.broker.totals() == []
        await t.tell(row(0, "a", 1, waits={3: 1}, waited=0.5), row(60, "a", 2, runs={4: 2}, ran=0.25))
        for _ in range(2):
            await t.tell(row(60, "a", 5, failed=1, runs={4: 5, 9: 1}, ran=1.75), row(60, "b c.d", 1))
        await t.tell(row(60, "a", 1, retried=3), worker="w2")
        assert await t.broker.totals() == [
            total("a", 7, failed=1, retried=3, waits={3: 1}, waited=0.5, runs={4: 5, 9: 1}, ran=1.75),
            total("b c.d", 1),
        ]

    async def test_totals_never_fall(self, t: Harness) -> None:
        """Even if minutes are purged, and workers leave or repeat a report."""
        await t.tell(row(0, "a", 1))
        await t.tell(row(60, "a", 2), lease=0)
        t.clock.advance(MINUTE - t.now + 2 * 86_400)
        await t.tell(row(2 * 86_400, "a", 3))
        assert [one.minute for one in await t.broker.activity(0)] == [MINUTE + 2 * 86_400]
        assert await t.broker.totals() == [total("a", 6)]
        await t.tell(row(0, "a", 1))  # a worker was suspended and repeats its report
        assert await t.broker.totals() == [total("a", 6)]


def row(after: int, task: str, succeeded: int, **more: Any) -> Activity:
    """Return a row for the minute that begins `after` seconds after MINUTE."""
    made = Activity(MINUTE + after, task, succeeded, more.pop("failed", 0), more.pop("retried", 0))
    made.waits.update(more.pop("waits", {}))
    made.runs.update(more.pop("runs", {}))
    made.waited, made.ran = more.pop("waited", 0.0), more.pop("ran", 0.0)
    assert not more
    return made


def total(task: str, succeeded: int, **more: Any) -> Activity:
    """Return a row of the totals."""
    return dataclasses.replace(row(0, task, succeeded, **more), minute=0)
