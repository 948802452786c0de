"""Stored schedules: made, found again, changed and fired, on every store."""

import asyncio
import dataclasses
import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from flowrra import (
    ConfigError,
    Flowrra,
    Schedule,
    Task,
    TaskNotFoundError,
)
from flowrra_extras.scheduler import ScheduleDefinition, ScheduleStore, SyncReport, store_from_url
from flowrra_extras.testing import ManualClock, drain, fire_due
from tests.core.test_schedules import at, jobs_of, moments
from tests.support.apps import eventually, make_app
from tests.support.schedule_stores import KINDS, place

START = 1_700_000_000.0  # 2023-11-14 22:13:20 UTC


class Stage:
    """An app on a manual clock with a task and a scheduler on the store that is under test."""

    def __init__(self, store: ScheduleStore, clock: ManualClock) -> None:
        self.clock = clock
        self.app = make_app(clock=clock)
        self.add: Task[[int, int], int] = self.app.task(name="add")(add)
        self.scheduler = self.app.create_scheduler(store)

    async def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        await fire_due(self.app)

    async def schedule(self, schedule_id: str) -> Schedule:
        found = await self.scheduler.get_scheduled_task(schedule_id)
        assert found is not None
        return found


async def add(left: int, right: int) -> int:
    return left + right


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START)


@pytest.fixture
def stage(store: ScheduleStore, clock: ManualClock) -> Stage:
    return Stage(store, clock)


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, clock: ManualClock, tmp_path: Path) -> Iterator[ScheduleStore]:
    with place(request.param, tmp_path) as url:
        yield store_from_url(url, clock)


# ---------------------------------------------------------------------------
# What is made
# ---------------------------------------------------------------------------


async def test_a_cron_is_kept_and_fires(stage: Stage) -> None:
    async with stage.app.client():
        made = await stage.scheduler.schedule_cron(
            stage.add, "0  9 * * MON-FRI", (1,), {"right": 2}, tz="Europe/Riga", description="each morning"
        )
        schedule = await stage.schedule(made)
        assert (schedule.task, schedule.kind, schedule.rule, schedule.tz) == (
            "add", "cron", "0 9 * * MON-FRI", "Europe/Riga",
        )  # fmt: skip
        assert (schedule.payload, schedule.description) == ('[[1],{"right":2}]', "each morning")
        assert (schedule.created, schedule.updated) == (START, START)
        assert schedule.next_fire_at == dt.datetime(2023, 11, 15, 9, tzinfo=ZoneInfo("Europe/Riga"))
        await stage.pass_time(12 * 3600)
        (job,) = await jobs_of(stage.app)
        assert (job.id, job.task, job.payload) == (f"{made}@2023-11-15T07:00:00Z", "add", schedule.payload)
        schedule = await stage.schedule(made)
        assert schedule.last_fire_at == dt.datetime(2023, 11, 15, 7, tzinfo=dt.UTC)
        assert schedule.last_job == job.id
        assert schedule.next_fire == at("2023-11-16T07:00:00")


async def test_an_interval_counts_from_its_making(stage: Stage) -> None:
    async with stage.app.client():
        made = await stage.scheduler.schedule_interval("add", dt.timedelta(minutes=1), (1, 2))
        for seconds in (59.0, 7.0, 100.0, 14.0):
            await stage.pass_time(seconds)
        assert await moments(stage.app) == ["2023-11-14T22:14:20Z", "2023-11-14T22:15:20Z", "2023-11-14T22:16:20Z"]
        assert (await stage.schedule(made)).rule == "60"


async def test_once_fires_once_and_is_forgotten_later(stage: Stage) -> None:
    run_at = dt.datetime(2023, 11, 15, 1, 30, tzinfo=ZoneInfo("Europe/Riga"))
    async with stage.app.client():
        made = await stage.scheduler.schedule_once(stage.add, run_at, (1, 2), misfire="all")
        assert (await stage.schedule(made)).rule == "2023-11-14T23:30:00+00:00"
        await stage.pass_time(2 * 3600)
        assert await moments(stage.app) == ["2023-11-14T23:30:00Z"]
        schedule = await stage.schedule(made)
        assert (schedule.next_fire, schedule.last_fire) == (None, run_at.timestamp())
        assert await stage.scheduler.schedule_once(stage.add, run_at, (1, 2)) == made
        await stage.pass_time(8 * 86_400)
        assert await stage.scheduler.get_scheduled_task(made) is None
        assert len(await jobs_of(stage.app)) == 1


async def test_a_moment_in_the_past_fires_at_once_unless_misfires_are_skipped(stage: Stage) -> None:
    past = dt.datetime.fromtimestamp(START - 3600, dt.UTC)
    async with stage.app.client():
        await stage.scheduler.schedule_once(stage.add, past, (1, 2))
        skipped = await stage.scheduler.schedule_once(stage.add, past, (3, 4), misfire="skip")
        await fire_due(stage.app)
        (job,) = await jobs_of(stage.app)
        assert job.payload == "[[1,2],{}]"
        assert (await stage.schedule(skipped)).next_fire is None


async def test_a_naive_moment_is_local_or_of_the_zone_that_is_given(stage: Stage) -> None:
    naive = dt.datetime(2030, 6, 1, 12)  # noqa: DTZ001
    async with stage.app.client():
        local = await stage.scheduler.schedule_once(stage.add, naive, (1, 2))
        riga = await stage.scheduler.schedule_once(stage.add, naive, (1, 2), tz="Europe/Riga")
        assert (await stage.schedule(local)).next_fire == naive.timestamp()
        assert (await stage.schedule(riga)).next_fire == at("2030-06-01T09:00:00")
        assert (await stage.schedule(riga)).tz == "Europe/Riga"


async def test_the_options_are_those_of_the_jobs(stage: Stage) -> None:
    async with stage.app.client():
        made = await stage.scheduler.schedule_interval(
            stage.add, 60, (1, 2), priority=-3, queue="slow", max_retries=9, retry_delay=0.25
        )
        plain = await stage.scheduler.schedule_interval(stage.add, 60, (3, 4))
        await stage.pass_time(60)
        jobs = {job.id.partition("@")[0]: job for job in await jobs_of(stage.app)}
    assert (jobs[made].priority, jobs[made].queue) == (-3, "slow")
    assert jobs[made].overrides == {"max_retries": 9, "retry_delay": 0.25}
    assert (jobs[plain].priority, jobs[plain].queue, jobs[plain].overrides) == (0, "default", None)


async def test_a_retry_setting_of_a_schedule_is_obeyed(stage: Stage) -> None:
    tried: list[int] = []

    @stage.app.task(name="fail", max_retries=5)
    async def fail() -> None:
        tried.append(1)
        raise ValueError("as it is meant to be")

    async with stage.app:
        await stage.scheduler.schedule_interval(fail, 60, max_retries=1, retry_delay=0)
        await stage.pass_time(60)
        await drain(stage.app)
        assert len(tried) == 2


# ---------------------------------------------------------------------------
# The same again
# ---------------------------------------------------------------------------


async def test_the_same_again_is_the_one_that_is_there(stage: Stage) -> None:
    scheduler = stage.scheduler
    async with stage.app.client():
        made = await scheduler.schedule_cron("add", "0 9 * * *", (1, 2), tz="Europe/Riga")
        await scheduler.update(made, priority=7, description="by hand")
        await scheduler.disable_task(made)
        again = await scheduler.schedule_cron(stage.add, "0  9 * * *", [1, 2], {}, tz=ZoneInfo("Europe/Riga"))
        assert again == made
        schedule = await stage.schedule(made)
        assert (schedule.enabled, schedule.options, schedule.description) == (False, {"priority": 7}, "by hand")
        others = [
            await scheduler.schedule_cron("add", "0 9 * * *", (1, 2)),
            await scheduler.schedule_cron("add", "0 9 * * *", (2, 1), tz="Europe/Riga"),
            await scheduler.schedule_cron("add", "1 9 * * *", (1, 2), tz="Europe/Riga"),
            await scheduler.schedule_cron("subtract", "0 9 * * *", (1, 2), tz="Europe/Riga"),
            await scheduler.schedule_cron("add", "0 9 * * *", (1, 2), tz="Europe/Riga", task_id="mine"),
            await scheduler.schedule_interval("add", 9, (1, 2), tz="Europe/Riga"),
        ]
        assert len({made, *others}) == 7
        assert [schedule.id for schedule in await scheduler.list_scheduled_tasks()] == [made, *others]


async def test_the_order_of_named_arguments_does_not_matter(stage: Stage) -> None:
    async with stage.app.client():
        one = await stage.scheduler.schedule_interval("add", 60, kwargs={"left": 1, "right": 2})
        other = await stage.scheduler.schedule_interval("add", 60, kwargs={"right": 2, "left": 1})
        assert one == other


async def test_an_id_that_is_given_is_the_identity(stage: Stage) -> None:
    async with stage.app.client():
        assert await stage.scheduler.schedule_interval("add", 60, (1, 2), task_id="sums") == "sums"
        assert await stage.scheduler.schedule_interval("add", 60, (1, 2), task_id="sums") == "sums"
        await stage.pass_time(60)
        assert [job.id for job in await jobs_of(stage.app)] == ["sums@2023-11-14T22:14:20Z"]


# ---------------------------------------------------------------------------
# Changing
# ---------------------------------------------------------------------------


async def test_a_schedule_is_disabled_enabled_and_removed(stage: Stage) -> None:
    scheduler = stage.scheduler
    async with stage.app.client():
        made = await scheduler.schedule_interval("add", 60, (1, 2), misfire="all")
        await scheduler.disable_task(made)
        await stage.pass_time(150)
        assert await jobs_of(stage.app) == []
        await scheduler.enable_task(made)
        await fire_due(stage.app)
        assert await jobs_of(stage.app) == []
        await stage.pass_time(30)
        assert await moments(stage.app) == ["2023-11-14T22:16:20Z"]
        await scheduler.unschedule(made)
        await stage.pass_time(600)
        assert len(await jobs_of(stage.app)) == 1
        assert await scheduler.get_scheduled_task(made) is None


async def test_what_could_not_be_made_any_more_can_be_disabled_all_the_same(stage: Stage) -> None:
    async with stage.app.client():
        made = await stage.scheduler.schedule_interval("changed", 60, ("too", "many", "now"))
        stage.app.task(name="changed")(lambda: None)
        await stage.scheduler.store.change(made, {"rule": "soon"})
        await stage.scheduler.disable_task(made)
        assert not (await stage.schedule(made)).enabled


async def test_what_is_done_does_not_fire_again_when_it_is_enabled(stage: Stage) -> None:
    async with stage.app.client():
        made = await stage.scheduler.schedule_once("add", dt.datetime.fromtimestamp(START + 5, dt.UTC), (1, 2))
        await stage.pass_time(10)
        await stage.scheduler.disable_task(made)
        await stage.scheduler.enable_task(made)
        await stage.pass_time(10)
        assert len(await jobs_of(stage.app)) == 1
        assert (await stage.schedule(made)).next_fire is None


async def test_update_changes_what_is_given(stage: Stage) -> None:
    scheduler = stage.scheduler
    async with stage.app.client():
        made = await scheduler.schedule_interval("add", 60, (1, 2), priority=3, description="sums", jitter=5)
        before = await stage.schedule(made)
        stage.clock.advance(10)
        after = await scheduler.update(made, args=(5, 6), max_retries=0, overlap="skip")
        changed = {name for name in vars_of(before) if getattr(before, name) != getattr(after, name)}
        assert changed == {"payload", "key", "options", "overlap", "updated", "turn"}
        assert (after.payload, after.options, after.updated) == (
            "[[5,6],{}]", {"priority": 3, "max_retries": 0}, START + 10,
        )  # fmt: skip
        after = await scheduler.update(made, rule=90)
        assert (after.rule, after.anchor, after.next_fire) == ("90", START + 10, START + 100)
        assert not (await scheduler.update(made, enabled=False)).enabled
        after = await scheduler.update(made, enabled=True)
        assert (after.enabled, after.next_fire) == (True, START + 100)
        assert await scheduler.update(made, priority=None) == dataclasses.replace(
            after, options={"max_retries": 0}, turn=after.turn + 1
        )


def vars_of(schedule: Schedule) -> list[str]:
    return [field.name for field in dataclasses.fields(schedule)]


async def test_update_refuses_what_could_not_have_been_made(stage: Stage) -> None:
    scheduler = stage.scheduler
    async with stage.app.client():
        made = await scheduler.schedule_cron("add", "0 9 * * *", (1, 2))
        other = await scheduler.schedule_cron("add", "0 10 * * *", (1, 2))
        with pytest.raises(ConfigError, match="schedule"):
            await scheduler.update(made, rule="0 10 * * *")
        with pytest.raises(ValueError, match="hour"):
            await scheduler.update(made, rule="0 25 * * *")
        with pytest.raises(TypeError, match="add"):
            await scheduler.update(made, args=(1, 2, 3), enabled=False)
        assert (await stage.schedule(made)).enabled
        with pytest.raises(TaskNotFoundError, match="no schedule 'nobody'"):
            await scheduler.update("nobody", priority=1)
        assert [s.rule for s in await scheduler.list_scheduled_tasks()] == ["0 9 * * *", "0 10 * * *"]
        assert (await stage.schedule(other)).turn == 0


async def test_run_now_is_beside_the_fires(stage: Stage) -> None:
    async with stage.app.client():  # which stores a schedule of a task that nobody knows
        unknown = await stage.scheduler.schedule_interval("elsewhere", 60)
    async with stage.app:
        made = await stage.scheduler.schedule_interval(stage.add, 60, (1, 2), jitter=30, overlap="skip", priority=2)
        job_id = await stage.scheduler.run_now(made)
        result = await stage.app.wait_for_result(job_id, timeout=20)
        assert (result.result, (await stage.app.get_job(job_id)).priority) == (3, 2)
        assert (await stage.schedule(made)).next_fire == START + 60
        for schedule_id in (unknown, "nobody"):
            with pytest.raises(TaskNotFoundError):
                await stage.scheduler.run_now(schedule_id)


# ---------------------------------------------------------------------------
# Many schedulers, late ones, and clocks
# ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("misfire", "expected"),
    [
        ("latest", ["2023-11-14T22:22:20Z"]),
        ("skip", []),
        ("all", [f"2023-11-14T22:{m}:20Z" for m in range(14, 23)]),
    ],
)
async def test_what_came_due_while_nothing_ran_is_a_misfire(stage: Stage, misfire: str, expected: list[str]) -> None:
    async with stage.app.client():
        made = await stage.scheduler.schedule_interval("add", 60, (1, 2), misfire=misfire)
        await stage.pass_time(570)
        assert await moments(stage.app) == expected
        assert (await stage.schedule(made)).next_fire == START + 600


async def test_two_schedulers_on_one_store_make_one_job_of_a_fire(stage: Stage, store: ScheduleStore) -> None:
    second = stage.app.create_scheduler(store)
    async with stage.app.client():
        await second.schedule_interval("add", 10, (1, 2))
        for _ in range(60):
            stage.clock.advance(1)
            await second.step()
            await stage.scheduler.step()
        assert await moments(stage.app) == [f"2023-11-14T22:{13 + s // 60}:{s % 60:02}Z" for s in range(30, 81, 10)]


async def test_a_clock_that_is_set_back_fires_nothing_twice(stage: Stage) -> None:
    async with stage.app.client():
        await stage.scheduler.schedule_interval("add", 600, (1, 2))
        await stage.pass_time(600)
        stage.clock.jump_wall(-3600)
        for _ in range(6):
            await stage.pass_time(600)
        assert len(await jobs_of(stage.app)) == 1
        await stage.pass_time(600)
        assert await moments(stage.app) == ["2023-11-14T22:23:20Z", "2023-11-14T22:33:20Z"]


async def test_a_fire_that_is_years_away(stage: Stage) -> None:
    async with stage.app.client():
        made = await stage.scheduler.schedule_cron("add", "0 0 29 2 mon", (1, 2))
        schedule = await stage.schedule(made)
        assert schedule.next_fire_at is not None
        assert schedule.next_fire_at.year > 2024 or schedule.next_fire_at.day != 29
        far = await stage.scheduler.schedule_cron("add", "0 0 0 1 1 * 2150", (1, 2))
        assert (await stage.schedule(far)).next_fire == at("2150-01-01T00:00:00")
        assert await stage.scheduler.step() == 1.0


async def test_a_scheduler_that_is_made_while_the_app_runs_fires(store: ScheduleStore) -> None:
    app = make_app()
    ran: list[int] = []

    @app.task(name="tick")
    async def tick() -> None:
        ran.append(1)

    async with app:
        scheduler = app.create_scheduler(store)
        await scheduler.schedule_interval(tick, 0.05)
        await eventually(lambda: len(ran) >= 1)


# ---------------------------------------------------------------------------
# Bad input
# ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda s: s.schedule_cron("add", "0 25 * * *"), "hour"),
        (lambda s: s.schedule_cron("add", 5), "a cron expression is a text"),
        (lambda s: s.schedule_cron("add", "0 9 * * *", tz="Mars/Olympus"), "Mars/Olympus"),
        (lambda s: s.schedule_cron("add", "0 0 0 1 1 * 2020"), "would never fire"),
        (lambda s: s.schedule_interval("add", 0), "an interval must be at least"),
        (lambda s: s.schedule_interval("add", float("nan")), "an interval must be a finite"),
        (lambda s: s.schedule_interval("add", 60, misfire="sometimes"), "misfire must be one of"),
        (lambda s: s.schedule_interval("add", 60, overlap="never"), "overlap must be one of"),
        (lambda s: s.schedule_interval("add", 60, task_id=""), "task_id must be a text"),
        (lambda s: s.schedule_interval("add", 60, task_id="x" * 256), "task_id must be a text"),
        (lambda s: s.schedule_interval("", 60), "a schedule takes a task or its name"),
        (lambda s: s.schedule_interval(None, 60), "a schedule takes a task or its name"),
        (lambda s: s.schedule_once("add", "tomorrow"), "run_at must be a datetime"),
        (lambda s: s.schedule_once("add", 1_700_000_000), "run_at must be a datetime"),
        (lambda s: s.schedule_once("add", "tomorrow", tz="Europe/Riga"), "run_at must be a datetime"),
    ],
)
async def test_bad_input_is_refused_at_the_call(call: Any, complaint: str) -> None:
    app = make_app()
    scheduler = app.create_scheduler("memory://")
    async with app.client():
        with pytest.raises(ValueError, match=complaint):
            await call(scheduler)
        assert await scheduler.list_scheduled_tasks() == []


async def test_arguments_are_checked_where_the_task_is_known(stage: Stage) -> None:
    foreign = Flowrra.from_urls().task(name="add")(add)
    async with stage.app.client():
        with pytest.raises(TypeError, match="add"):
            await stage.scheduler.schedule_interval("add", 60, (1,))
        with pytest.raises(TypeError, match="no option 'colour'"):
            await stage.scheduler.schedule_interval("add", 60, (1, 2), colour="red")  # type: ignore[call-arg]
        with pytest.raises(TaskNotFoundError, match="another app"):
            await stage.scheduler.schedule_interval(foreign, 60, (1, 2))
        assert await stage.scheduler.schedule_interval("unknown", 60, ("anything",))


@pytest.mark.parametrize("backend", ["", 5, "mongodb://x", "schedules.db"])
def test_a_store_that_is_none_is_refused(backend: Any) -> None:
    with pytest.raises(ConfigError):
        make_app().create_scheduler(backend)


# ---------------------------------------------------------------------------
# Sync
# ---------------------------------------------------------------------------


def defined(schedule_id: str, **options: Any) -> ScheduleDefinition:
    rule = {} if "cron" in options else {"every": 60}
    return ScheduleDefinition(schedule_id, "add", args=(1, 2), **rule | options)


async def test_sync_adds_changes_and_removes(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "flowrra")
    sync = stage.scheduler.sync
    async with stage.app.client():
        by_hand = await stage.scheduler.schedule_cron("add", "0 9 * * *", (1, 2), task_id="by hand")
        first = [defined("a"), defined("b", cron="0 9 * * *", misfire="skip", priority=3), defined("c")]
        assert await sync(first, prune=True) == SyncReport(added=["a", "b", "c"])
        stage.clock.advance(30)
        again = [defined("a"), defined("b", cron="0 8 * * *", tz="Europe/Riga"), defined("d")]
        assert await sync(again) == SyncReport(added=["d"], changed=["b"], unchanged=["a"])
        assert await sync(again, prune=True) == SyncReport(removed=["c"], unchanged=["a", "b", "d"])
        changed = await stage.schedule("b")
        assert (changed.rule, changed.tz, changed.misfire, changed.options) == (
            "0 8 * * *",
            "Europe/Riga",
            "latest",
            {},
        )
        assert changed.next_fire_at == dt.datetime(2023, 11, 15, 8, tzinfo=ZoneInfo("Europe/Riga"))
        assert (await stage.schedule("a")).next_fire == START + 60  # it goes on counting
        await stage.pass_time(30)
        assert await moments(stage.app) == ["2023-11-14T22:14:20Z"]
        assert {one.id for one in await stage.scheduler.list_scheduled_tasks()} == {by_hand, "a", "b", "d"}
    assert [line for line in caplog.messages if line.startswith("schedule ")] == [
        "schedule a (add) was added: 60",
        "schedule b (add) was added: 0 9 * * *",
        "schedule c (add) was added: 60",
        (
            "schedule b (add) was changed: rule '0 9 * * *' -> '0 8 * * *', tz 'UTC' -> 'Europe/Riga', "
            "options {'priority': 3} -> {}, misfire 'skip' -> 'latest'"
        ),
        "schedule d (add) was added: 60",
        "schedule c (add) was removed: it is no longer defined",
    ]


async def test_sync_leaves_what_was_disabled_disabled(stage: Stage) -> None:
    async with stage.app.client():
        await stage.scheduler.sync([defined("a")])
        await stage.scheduler.disable_task("a")
        assert (await stage.scheduler.sync([defined("a", jitter=5.0)])).changed == ["a"]
        assert not (await stage.schedule("a")).enabled
        assert (await stage.scheduler.sync([defined("a", enabled=True)])).changed == ["a"]
        assert (await stage.schedule("a")).enabled


async def test_sync_takes_over_what_was_made_by_hand_and_nothing_of_another_owner(stage: Stage) -> None:
    stage.app.task(name="other")(add)
    async with stage.app.client():
        await stage.scheduler.schedule_interval("other", 60, (1, 2), task_id="a")
        await stage.scheduler.sync([defined("b")], owner="billing")
        assert await stage.scheduler.sync([defined("a")], prune=True) == SyncReport(changed=["a"])
        assert (await stage.schedule("a")).task == "add"
        with pytest.raises(ConfigError, match="'b' belongs to the owner 'billing'"):
            await stage.scheduler.sync([defined("b")])
        assert await stage.scheduler.sync([], prune=True) == SyncReport(removed=["a"])
        assert await stage.scheduler.sync([], prune=True, owner="billing") == SyncReport(removed=["b"])


async def test_sync_checks_all_before_it_writes(stage: Stage) -> None:
    async with stage.app:
        for wrong, why in (
            ([defined("a"), defined("a")], "'a' is defined twice"),
            ([defined("a"), defined("b", cron="0 25 * * *")], "hour"),
            ([defined("a"), ScheduleDefinition("b", "ad", every=5)], "did you mean 'add'"),
        ):
            with pytest.raises((ConfigError, TaskNotFoundError), match=why):
                await stage.scheduler.sync(wrong)
        with pytest.raises(ConfigError, match="must not contain a colon"):
            await stage.scheduler.sync([], owner="a:b")
        with pytest.raises(ConfigError, match="either cron= or every="):
            ScheduleDefinition("b", "add", every=5, cron="* * * * *")
        assert await stage.scheduler.list_scheduled_tasks() == []


async def test_programs_that_sync_at_once_agree(stage: Stage) -> None:
    async with stage.app.client():
        reports = await asyncio.gather(*(stage.scheduler.sync([defined("a"), defined("b")], prune=True) for _ in "123"))
        assert reports
        assert [one.id for one in await stage.scheduler.list_scheduled_tasks()] == ["a", "b"]
