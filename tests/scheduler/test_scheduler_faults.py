"""What schedulers meet: stores and brokers that fail, tasks that are gone, rules that cannot be read."""

import asyncio
import datetime as dt
import gc
import itertools
import logging
import sys
import urllib.parse
from collections.abc import Sequence
from pathlib import Path

import pytest

from flowrra import (
    FIRES_AT_ONCE,
    BackendError,
    BrokerConfig,
    BrokerError,
    ConfigError,
    Fired,
    Job,
    MemoryBroker,
    Schedule,
    encode,
)
from flowrra_extras.scheduler import MemoryScheduleStore, Scheduler
from flowrra_extras.testing import ManualClock, fire_due
from tests.core.test_schedules import jobs_of, moments
from tests.support.apps import eventually, make_app
from tests.support.proxy import proxy_to
from tests.support.schedule_stores import place

START = 1_700_000_000.0  # 2023-11-14 22:13:20 UTC


class FlakyStore(MemoryScheduleStore):
    """Fails in the methods that are named in `broken`."""

    def __init__(self, clock: ManualClock | None = None) -> None:
        super().__init__(clock)
        self.broken: set[str] = set()
        self.is_open = False

    def _check(self, name: str) -> None:
        if name in self.broken:
            raise BackendError(f"{name} is broken")

    async def open(self) -> None:
        self._check("open")
        self.is_open = True

    async def close(self) -> None:
        self.is_open = False

    async def next_fire(self) -> float | None:
        self._check("next_fire")
        return await super().next_fire()

    async def take(self, *, now: float, lease: float, limit: int) -> list[Schedule]:
        self._check("take")
        return await super().take(now=now, lease=lease, limit=limit)

    async def advance(self, fired: Sequence[Fired]) -> list[bool]:
        self._check("advance")
        return await super().advance(fired)


class FlakyBroker(MemoryBroker):
    """Fails in push while it is `broken`."""

    broken = False

    async def push(self, jobs: Sequence[Job], *, now: float, by: str | None = None) -> list[str]:
        if self.broken:
            raise BrokerError("push is broken")
        return await super().push(jobs, now=now, by=by)


class Stage:
    """An app with a task and a scheduler, all of which can be made to fail."""

    def __init__(self, clock: ManualClock | None = None, settings: BrokerConfig | None = None) -> None:
        self.store = FlakyStore(clock)
        self.broker = FlakyBroker(settings, clock=clock)
        self.app = make_app(clock=clock, broker=self.broker, settings=settings)
        self.scheduler: Scheduler = self.app.create_scheduler(self.store)

        @self.app.task(name="tick")
        async def tick() -> None:
            """Nothing to do."""


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START)


@pytest.fixture
def stage(clock: ManualClock) -> Stage:
    return Stage(clock)


def warnings_of(caplog: pytest.LogCaptureFixture, part: str) -> list[str]:
    found = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    return [message for message in found if part in message]


# ---------------------------------------------------------------------------
# Stores and brokers that fail
# ---------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["next_fire", "take", "push", "advance"])
async def test_what_was_due_when_something_failed_fires_once_it_is_back(
    stage: Stage, clock: ManualClock, where: str
) -> None:
    async with stage.app.client():
        await stage.scheduler.schedule_interval("tick", 5)
        clock.advance(5)
        stage.store.broken.add(where)
        stage.broker.broken = where == "push"
        with pytest.raises(BackendError, match=f"{where} is broken"):
            await stage.scheduler.step()
        stage.store.broken.clear()
        stage.broker.broken = False
        clock.advance(10)  # the lease of what had been taken runs out
        await fire_due(stage.app)
        assert await moments(stage.app) == [f"2023-11-14T22:13:{s}Z" for s in (25, 30, 35)]


async def test_the_loop_is_loud_about_a_failure_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    stage = Stage()
    async with stage.app:
        await stage.scheduler.schedule_interval("tick", 0.1, misfire="all")
        stage.store.broken.add("next_fire")
        await eventually(lambda: len(warnings_of(caplog, "next_fire is broken (failure 2 in a row")) == 1)
        stage.store.broken.clear()
        before = len(await jobs_of(stage.app))

        async def fires_again() -> bool:
            return len(await jobs_of(stage.app)) >= before + 5

        await eventually(fires_again)


async def test_an_app_whose_store_cannot_be_opened_does_not_start(stage: Stage) -> None:
    stage.store.broken.add("open")
    with pytest.raises(BackendError, match="open is broken"):
        await stage.app.start()
    assert not stage.app.is_running
    stage.store.broken.clear()
    async with stage.app:
        assert stage.store.is_open
    assert not stage.store.is_open


async def test_a_store_is_opened_when_it_is_used_and_closed_with_the_app(stage: Stage) -> None:
    for _ in range(2):
        async with stage.app.client():
            assert not stage.store.is_open
            await asyncio.gather(*(stage.scheduler.list_scheduled_tasks() for _ in range(3)))
            assert stage.store.is_open
        assert not stage.store.is_open


async def test_a_full_queue_keeps_its_own_schedules_only(clock: ManualClock, caplog: pytest.LogCaptureFixture) -> None:
    stage = Stage(clock, BrokerConfig(max_queue_size=1))
    async with stage.app.client():
        for queue in ("full", "free"):
            await stage.scheduler.schedule_interval("tick", 60, queue=queue, task_id=queue)
        await stage.app.submit_jobs([Job("in the way", "tick", queue="full")])
        clock.advance(60)
        await fire_due(stage.app)
        assert [job.id for job in await jobs_of(stage.app)] == ["in the way", "free@2023-11-14T22:14:20Z"]
        assert (
            len(warnings_of(caplog, "schedule full cannot fire, trying again: QueueFullError: queue 'full' is full"))
            == 1
        )


# ---------------------------------------------------------------------------
# Others, who change what is being fired
# ---------------------------------------------------------------------------


async def test_a_scheduler_that_was_too_slow_changes_nothing(stage: Stage, clock: ManualClock) -> None:
    """It has taken a schedule, slept, and comes back when another one has fired it and its job is done."""
    async with stage.app.client():
        await stage.scheduler.schedule_interval("tick", 5, misfire="all")
        clock.advance(5)
        slow = stage.app.create_scheduler(SlowStore(stage.store, stage.scheduler, clock))
        await slow.step()
        assert await moments(stage.app) == ["2023-11-14T22:13:25Z", "2023-11-14T22:13:30Z", "2023-11-14T22:13:35Z"]
        (schedule,) = await stage.scheduler.list_scheduled_tasks()
        assert schedule.next_fire == START + 20


class SlowStore(FlakyStore):
    """Hands out what it takes from a store after another scheduler has fired it too."""

    def __init__(self, store: FlakyStore, other: Scheduler, clock: ManualClock) -> None:
        super().__init__(clock)
        self._store, self._other, self._manual = store, other, clock
        for name in ("next_fire", "advance"):
            setattr(self, name, getattr(store, name))

    async def take(self, *, now: float, lease: float, limit: int) -> list[Schedule]:
        taken = await self._store.take(now=now, lease=lease, limit=limit)
        self._manual.advance(lease)
        await self._other.step()
        return taken


async def test_a_schedule_that_is_changed_while_it_fires_keeps_the_change(stage: Stage, clock: ManualClock) -> None:
    async with stage.app.client():
        made = await stage.scheduler.schedule_interval("tick", 5)
        clock.advance(5)
        (taken,) = await stage.store.take(now=clock.time(), lease=10, limit=1)
        await stage.scheduler.update(made, rule=7)
        assert await stage.store.advance([Fired(made, taken.turn, START + 10, START + 5, "a job")]) == [False]
        schedule = await stage.scheduler.get_scheduled_task(made)
        assert schedule is not None
        assert (schedule.next_fire, schedule.last_fire) == (START + 12, None)


# ---------------------------------------------------------------------------
# Schedules that cannot fire
# ---------------------------------------------------------------------------


async def test_a_schedule_of_a_task_that_is_gone_stays_due_and_is_reported_once(
    stage: Stage, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage.app.client():
        gone = await stage.scheduler.schedule_interval("gone", 3600)
        await stage.scheduler.schedule_interval("tick", 3600)
        clock.advance(3600)
        assert await stage.scheduler.step() == 0.0
        assert await stage.scheduler.step() == 1.0  # no hot loop
        assert [job.task for job in await jobs_of(stage.app)] == ["tick"]
        clock.advance(3600)
        assert await stage.scheduler.step() == 0.0
        assert await stage.scheduler.step() == 1.0
        schedule = await stage.scheduler.get_scheduled_task(gone)
        assert schedule is not None
        assert schedule.last_fire is None
        assert len(warnings_of(caplog, "no task 'gone' is registered here, so it does not fire")) == 1
        assert {job.task for job in await jobs_of(stage.app)} == {"tick"}


async def test_a_task_that_another_process_knows_is_left_to_it(stage: Stage, clock: ManualClock) -> None:
    """A rolling deploy: the old program takes the schedule of a new task first."""
    newer = make_app(clock=clock, broker=stage.broker)
    newer.task(name="new")(lambda: None)
    other = newer.create_scheduler(stage.store)
    async with stage.app.client(), newer.client():
        await stage.scheduler.schedule_interval("new", 3600)
        clock.advance(3600)
        await stage.scheduler.step()
        assert await jobs_of(stage.app) == []
        clock.advance(10)
        await other.step()
        assert await moments(stage.app) == ["2023-11-14T23:13:20Z"]


async def test_one_fire_of_a_task_that_is_away_for_a_day_is_not_lost(stage: Stage, clock: ManualClock) -> None:
    async with stage.app.client():
        await stage.scheduler.schedule_once("new", dt.datetime.fromtimestamp(clock.time() + 10, dt.UTC))
        for _ in range(24):
            clock.advance(3600)
            await stage.scheduler.step()
        assert await jobs_of(stage.app) == []
        stage.app.task(name="new")(lambda: None)
        clock.advance(10)
        await stage.scheduler.step()
        assert [job.task for job in await jobs_of(stage.app)] == ["new"]


@pytest.mark.parametrize("changes", [{"kind": "cron", "rule": "at noon"}, {"rule": "soon"}, {"rule": "-5"}])
async def test_a_rule_that_cannot_be_read_is_reported_once_and_holds_up_nobody(
    stage: Stage, clock: ManualClock, caplog: pytest.LogCaptureFixture, changes: dict[str, str]
) -> None:
    async with stage.app.client():
        broken = await stage.scheduler.schedule_interval("tick", 60)
        await stage.store.change(broken, changes)
        await stage.scheduler.schedule_interval("tick", 61)
        for _ in range(4):
            clock.advance(61)
            assert await stage.scheduler.step() == 0.0
            assert await stage.scheduler.step() > 0.0
        assert len(await jobs_of(stage.app)) == 4
        assert len(warnings_of(caplog, "it does not fire: ")) == 1


@pytest.mark.parametrize("args", [[{}], [{"id": "no number"}], ["no dictionary"]])
async def test_jobs_that_cannot_be_made_are_reported_once_and_hold_up_nobody(
    stage: Stage, clock: ManualClock, caplog: pytest.LogCaptureFixture, args: list[object]
) -> None:
    """The schedule was stored by a program whose task took other arguments."""

    @stage.app.task(name="of_order", concurrency=1, key=lambda order: str(order["id"]))
    def of_order(order: dict[str, int]) -> None: ...

    async with stage.app.client():
        broken = await stage.scheduler.schedule_interval("of_order", 60, [{"id": 1}])
        await stage.store.change(broken, {"payload": encode([args, {}])})
        await stage.scheduler.schedule_interval("tick", 61)
        for _ in range(4):
            clock.advance(61)
            assert await stage.scheduler.step() == 0.0
            assert await stage.scheduler.step() > 0.0
        assert [job.task for job in await jobs_of(stage.app)] == ["tick"] * 4
        assert len(warnings_of(caplog, "it does not fire: ")) == 1
        await stage.store.change(broken, {"payload": encode([[{"id": 1}], {}])})
        await stage.scheduler.step()
        assert {job.task for job in await jobs_of(stage.app)} == {"of_order", "tick"}


# ---------------------------------------------------------------------------
# Many schedules
# ---------------------------------------------------------------------------


async def calls_of_a_tick(schedules: int) -> int:
    """How many calls of functions a tick takes that fires one of so many schedules."""
    clock = ManualClock(START)
    stage = Stage(clock)
    async with stage.app.client():
        for number in range(schedules):
            await stage.store.add(
                Schedule(
                    id=f"{number}",
                    key=f"{number}",
                    task="tick",
                    kind="interval",
                    rule="86400",
                    next_fire=START + number,
                )
            )
        await stage.scheduler.step()  # opens, purges, and fires number 0
        clock.advance(1)
        calls = 0

        def count(frame: object, event: str, argument: object) -> None:
            nonlocal calls
            calls += event == "call"

        gc.disable()
        sys.setprofile(count)
        try:
            await stage.scheduler.step()
        finally:
            sys.setprofile(None)
            gc.enable()
        assert len(await jobs_of(stage.app)) == 2
        return calls


async def test_a_tick_costs_what_is_due_and_not_what_is_there() -> None:
    few, many = await calls_of_a_tick(10), await calls_of_a_tick(10_000)
    assert few > 10
    assert many == few


async def test_what_is_due_in_one_moment_fires_whatever_its_number(stage: Stage, clock: ManualClock) -> None:
    async with stage.app.client():
        number = 2 * FIRES_AT_ONCE + 1
        for n in range(number):
            await stage.scheduler.schedule_interval("tick", 60, task_id=f"n{n}")
        clock.advance(60)
        pauses = [await stage.scheduler.step() for _ in range(4)]
        assert (pauses, len(await jobs_of(stage.app))) == ([0.0, 0.0, 0.0, 1.0], number)


# ---------------------------------------------------------------------------
# Drivers and databases
# ---------------------------------------------------------------------------


def test_without_the_extras_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flowrra_extras.scheduler", None)
    with pytest.raises(ConfigError, match=r"pip install 'flowrra\[scheduler\]'"):
        make_app().create_scheduler()


def test_the_store_is_a_file_here_unless_told_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    async def make_one() -> None:
        app = make_app()
        async with app.client():
            await app.create_scheduler().schedule_interval("tick", 60)

    asyncio.run(make_one())
    assert (tmp_path / ".flowrra_schedule.db").exists()


@pytest.mark.parametrize("kind", ["postgresql", "mysql", "redis"])
def test_a_database_that_goes_away_and_comes_back_loses_nothing(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is cut off in the middle of a fire comes back then.
    monkeypatch.setattr("flowrra_extras.scheduler.scheduler.TAKE_LEASE", 1.0)

    async def run(url: str) -> None:
        async with proxy_to(url) as proxy:
            parts = urllib.parse.urlsplit(url)
            through = parts._replace(netloc=f"{parts.username or ''}@127.0.0.1:{proxy.port}").geturl()
            app = make_app()
            app.task(name="tick")(lambda: None)
            scheduler = app.create_scheduler(through)

            async def has_fired(number: int) -> bool:
                return len(await jobs_of(app)) >= number

            async with app:
                made = await scheduler.schedule_interval("tick", 0.25)
                await eventually(lambda: has_fired(2))
                await proxy.cut()
                sign = "does not answer" if kind == "redis" else "failure 2 in a row"  # a call to Redis tries for 10 s
                await eventually(lambda: len(warnings_of(caplog, sign)) >= 1)
                before = len(await jobs_of(app))
                await proxy.start()
                await eventually(lambda: has_fired(before + 6))
                schedule = await scheduler.get_scheduled_task(made)
                fired = [float(job.id[-10:-1]) for job in await jobs_of(app)]
            assert schedule is not None
            steps = [round((later - earlier) % 60, 3) for earlier, later in itertools.pairwise(fired)]
            assert set(steps) == {0.25}

    with place(kind, tmp_path) as url:
        asyncio.run(run(url))


# ---------------------------------------------------------------------------
# Steps
# ---------------------------------------------------------------------------


async def test_a_step_says_how_long_to_sleep_until_the_next_fire(stage: Stage, clock: ManualClock) -> None:
    async with stage.app.client():
        await stage.scheduler.schedule_interval("tick", 5)
        assert await stage.scheduler.step() == 1.0  # to look for what others have changed
        clock.advance(4.75)
        assert await stage.scheduler.step() == pytest.approx(0.25)


async def test_a_moment_that_has_passed_while_it_was_disabled_is_a_misfire(stage: Stage, clock: ManualClock) -> None:
    run_at = dt.datetime.fromtimestamp(START + 5, dt.UTC)
    async with stage.app.client():
        made = await stage.scheduler.schedule_once("tick", run_at)
        await stage.scheduler.disable_task(made)
        clock.advance(60)
        await fire_due(stage.app)
        assert await moments(stage.app) == []
        await stage.scheduler.enable_task(made)
        await fire_due(stage.app)
        assert await moments(stage.app) == ["2023-11-14T22:13:25Z"]
