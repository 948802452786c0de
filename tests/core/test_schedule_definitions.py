"""What a schedule is defined by: two that are alike, one that is defined again, and tasks that nobody knows."""

import asyncio
import datetime as dt
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flowrra import BrokerConfig, Config, ConfigError, Flowrra, Schedule, TaskNotFoundError
from flowrra_extras.scheduler import ScheduleStore, store_from_url
from flowrra_extras.testing import ManualClock, fire_due
from tests.core.test_schedules import jobs_of, moments
from tests.support.apps import make_app
from tests.support.schedule_stores import KINDS, place

START = 1_700_000_000.0  # 2023-11-14 22:13:20 UTC


async def tick() -> None:
    pass


async def add(left: int, right: int) -> int:
    return left + right


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START)


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, clock: ManualClock, tmp_path: Path) -> Iterator[ScheduleStore]:
    with place(request.param, tmp_path) as url:
        yield store_from_url(url, clock)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


# ---------------------------------------------------------------------------
# In code
# ---------------------------------------------------------------------------


async def test_two_that_are_alike_but_for_the_queue_both_fire(clock: ManualClock) -> None:
    app = make_app(clock=clock)
    task = app.task(name="tick")(tick)
    for queue in ("default", "mail", "slow"):
        app.every(60, queue=queue)(task)
    async with app.client():
        await fire_due(app)
        clock.advance(60)
        await fire_due(app)
        assert sorted(job.queue for job in await jobs_of(app)) == ["default", "mail", "slow"]


def test_a_queue_that_is_the_tasks_own_makes_no_other_schedule() -> None:
    app = make_app()
    task = app.task(name="tick", queue="mail")(tick)
    app.every(60)(task)
    with pytest.raises(ConfigError, match="two schedules of tick"):
        app.every(60, queue="mail")(task)


@pytest.mark.parametrize("options", [{}, {"priority": 3}, {"description": "again"}, {"enabled": False}])
def test_a_second_one_alike_is_refused(options: Any) -> None:
    app = make_app()
    task = app.task(name="add")(add)
    app.cron("0 9 * * *", args=(1, 2))(task)
    with pytest.raises(ConfigError, match=r"two schedules of add have the same task, cron 0 9 \* \* \* \(UTC\)"):
        app.cron("0  9 * * *", kwargs={}, args=[1, 2], **options)(task)
    assert [one.options for one in app.schedules.values()] == [{}]


def test_a_schedule_without_a_rule_is_refused() -> None:
    """As a decorator without parentheses it would otherwise take the place of the task, which never fires."""
    app = Flowrra.from_urls()

    @app.task
    async def sweep() -> None: ...

    for declare in (app.every, app.cron):
        with pytest.raises(ConfigError, match=r", not <task .*sweep>$"):
            declare(sweep)  # type: ignore[arg-type]


def test_a_module_that_is_loaded_again_may_declare_its_schedules_again() -> None:
    app = make_app()
    for _ in range(2):
        app.every(60)(app.task(name="tick")(tick))
    assert len(app.schedules) == 1


# ---------------------------------------------------------------------------
# Stored: a known one is defined again
# ---------------------------------------------------------------------------


class Stage:
    """An app on a manual clock, with a scheduler on a store."""

    def __init__(self, store: ScheduleStore, clock: ManualClock) -> None:
        self.clock = clock
        self.app = make_app(clock=clock)
        self.app.task(name="add")(add)
        self.scheduler = self.app.create_scheduler(store)

    async def only(self) -> Schedule:
        (schedule,) = await self.scheduler.list_scheduled_tasks()
        return schedule


@pytest.fixture
def stage(store: ScheduleStore, clock: ManualClock) -> Stage:
    return Stage(store, clock)


async def test_a_known_id_with_new_options_is_changed_and_said(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    scheduler = stage.scheduler
    async with stage.app.client():
        await scheduler.schedule_interval("add", 60, (1, 2), task_id="sums", priority=1, jitter=5)
        before = await stage.only()
        stage.clock.advance(10)
        caplog.clear()
        await scheduler.schedule_interval("add", 60, (1, 2), task_id="sums", priority=4, queue="slow", misfire="skip")
        after = await stage.only()
        assert (after.options, after.misfire) == ({"priority": 4, "queue": "slow"}, "skip")
        assert (after.jitter, after.next_fire, after.anchor) == (5, before.next_fire, before.anchor)
        assert (after.created, after.updated) == (START, START + 10)
        (said,) = warnings_of(caplog)
        what = "options {'priority': 1} -> {'priority': 4, 'queue': 'slow'}, misfire 'latest' -> 'skip'"
        assert said == f"schedule sums (add) has a new definition: {what}"


async def test_a_known_id_with_another_rule_counts_anew(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    scheduler = stage.scheduler
    async with stage.app.client():
        await scheduler.schedule_interval("add", 60, (1, 2), task_id="sums")
        stage.clock.advance(30)
        await scheduler.schedule_interval("add", 90, (1, 2), task_id="sums")
        assert ((await stage.only()).rule, (await stage.only()).next_fire) == ("90", START + 120)
        await scheduler.schedule_cron("add", "30 22 * * *", (3, 4), task_id="sums", tz="UTC")
        schedule = await stage.only()
        assert (schedule.kind, schedule.rule, schedule.payload) == ("cron", "30 22 * * *", "[[3,4],{}]")
        once = dt.datetime.fromtimestamp(START + 40, dt.UTC)
        await scheduler.schedule_once("add", once, (3, 4), task_id="sums")
        stage.clock.advance(10)
        await fire_due(stage.app)
        assert await moments(stage.app) == ["2023-11-14T22:14:00Z"]
        assert (await stage.only()).next_fire is None
        await scheduler.schedule_once("add", once, (3, 4), task_id="sums")
        assert (await stage.only()).next_fire is None  # the same: what is done stays done
    assert [said.partition(": ")[2] for said in warnings_of(caplog) if "new definition" in said] == [
        "rule '60' -> '90'",
        "kind 'interval' -> 'cron', rule '90' -> '30 22 * * *', other arguments",
        "kind 'cron' -> 'once', rule '30 22 * * *' -> '2023-11-14T22:14:00+00:00'",
    ]


async def test_the_same_definition_again_changes_nothing(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    scheduler = stage.scheduler
    async with stage.app.client():
        for _ in range(2):
            await scheduler.schedule_cron("add", "0 9 * * *", (1,), {"right": 2}, tz="Europe/Riga", priority=5)
            await scheduler.schedule_interval("add", 0.1, (1, 2), task_id="x", jitter=0.3, retry_delay=0.1)
            await scheduler.schedule_interval("add", 7, kwargs={"left": 1, "right": 2}, task_id="y")
            await scheduler.schedule_interval("add", 7, kwargs={"right": 2, "left": 1}, task_id="y")
            await scheduler.schedule_once("add", dt.datetime(2040, 1, 1, tzinfo=dt.UTC), (1, 2), description="far")
        found = await scheduler.list_scheduled_tasks()
        assert [schedule.turn for schedule in found] == [0, 0, 0, 0]
    assert warnings_of(caplog) == []


async def test_what_is_left_out_of_a_definition_stays(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """So what somebody has changed by hand is not undone at each start of the program."""
    scheduler = stage.scheduler
    async with stage.app.client():
        made = await scheduler.schedule_cron("add", "0 9 * * *", (1, 2))
        await scheduler.update(made, priority=7, description="by hand")
        await scheduler.disable_task(made)
        assert await scheduler.schedule_cron("add", "0 9 * * *", (1, 2), queue="slow") == made
        schedule = await stage.only()
        assert (schedule.enabled, schedule.description) == (False, "by hand")
        assert schedule.options == {"priority": 7, "queue": "slow"}
        assert await scheduler.schedule_cron("add", "0 9 * * *", (1, 2), priority=None, enabled=True) == made
        assert (await stage.only()).options == {"queue": "slow"}
        assert (await stage.only()).enabled
    assert len(warnings_of(caplog)) == 2
    assert warnings_of(caplog)[1].endswith("options {'priority': 7, 'queue': 'slow'} -> {'queue': 'slow'}, enabled")


async def test_a_known_id_of_another_task_is_refused(stage: Stage) -> None:
    other = stage.app.task(name="tick")(tick)
    async with stage.app.client():
        await stage.scheduler.schedule_interval("add", 60, (1, 2), task_id="sums")
        with pytest.raises(ConfigError, match="'sums' is a schedule of add: give another task_id"):
            await stage.scheduler.schedule_interval(other, 60, task_id="sums")
        assert (await stage.only()).task == "add"


async def test_a_moment_beyond_the_calendar_is_refused(stage: Stage) -> None:
    for moment in (dt.datetime.max, dt.datetime.max.replace(tzinfo=dt.UTC)):  # noqa: DTZ901
        async with stage.app.client():
            with pytest.raises(ConfigError, match="beyond the year 9999"):
                await stage.scheduler.schedule_once("add", moment, (1, 2), tz="UTC")


# ---------------------------------------------------------------------------
# Ids and names that nobody knows
# ---------------------------------------------------------------------------


async def test_an_unknown_id_is_an_error_in_every_call(stage: Stage) -> None:
    scheduler = stage.scheduler
    calls = (scheduler.enable_task, scheduler.disable_task, scheduler.unschedule, scheduler.run_now, scheduler.update)
    async with stage.app.client():
        for call in calls:
            with pytest.raises(TaskNotFoundError, match="no schedule 'nobody' is stored here"):
                await call("nobody")
        assert await scheduler.get_scheduled_task("nobody") is None


def test_an_unknown_id_is_an_error_in_plain_code_too() -> None:
    app = make_app()
    scheduler = app.create_scheduler("memory://")
    try:
        with pytest.raises(TaskNotFoundError, match="no schedule 'nobody'"):
            app.sync.run(scheduler.enable_task("nobody"))
    finally:
        app.sync.close()


async def test_a_name_that_no_task_has_is_refused_where_a_worker_runs() -> None:
    app = make_app()
    app.task(name="shop.add")(add)
    scheduler = app.create_scheduler("memory://")
    async with app:
        for call in (
            scheduler.schedule_interval("shop.ad", 60),
            scheduler.schedule_cron("shop.ad", "0 9 * * *"),
            scheduler.schedule_once("shop.ad", dt.datetime(2040, 1, 1, tzinfo=dt.UTC)),
        ):
            with pytest.raises(TaskNotFoundError, match=r"no task 'shop\.ad' is .*; did you mean 'shop\.add'\?"):
                await call
        assert await scheduler.list_scheduled_tasks() == []


async def test_a_name_that_no_task_has_is_stored_with_a_warning_where_the_app_only_submits(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = Flowrra()
    scheduler = app.create_scheduler("memory://")
    async with app.client():
        made = await scheduler.schedule_interval("shop.add", 60)
        assert await scheduler.get_scheduled_task(made) is not None
    (said,) = warnings_of(caplog)
    assert said == (
        "no task 'shop.add' is registered here or known to a live worker; there are none; "
        "its schedule is stored, and fires when a program that knows the task runs"
    )


async def test_a_name_that_a_live_worker_knows_is_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    url = f"sqlite:///{tmp_path}/jobs.db"
    worker, web = make_app(url), make_app(url)
    worker.task(name="shop.add")(add)
    web.task(name="tick")(tick)
    scheduler = web.create_scheduler("memory://")
    async with worker, web.client():
        await scheduler.schedule_interval("shop.add", 60)
        await scheduler.schedule_interval("shop.ad", 60)
    async with worker, web:
        await scheduler.schedule_interval("shop.add", 61)
    assert [said.partition(";")[0] for said in warnings_of(caplog)] == [
        "no task 'shop.ad' is registered here or known to a live worker"
    ]


# ---------------------------------------------------------------------------
# What a schedule skips
# ---------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [True, False], ids=["stored", "in code"])
async def test_a_skipped_misfire_bursts_at_no_interval(stored: bool, clock: ManualClock) -> None:
    app = make_app(clock=clock)
    task = app.task(name="tick")(tick)
    async with app.client():
        if stored:
            await app.create_scheduler("memory://").schedule_interval(task, 1, misfire="skip")
        else:
            app.every(1, misfire="skip")(task)
        await fire_due(app)
        for seconds in (1, 12, 1, 3600, 1):
            clock.advance(seconds)
            await fire_due(app)
        assert await moments(app) == [
            f"2023-11-14T{moment}Z" for moment in ("22:13:21", "22:13:33", "22:13:34", "23:13:34", "23:13:35")
        ]


async def test_a_skipped_misfire_that_is_followed_by_none_has_15_seconds(clock: ManualClock) -> None:
    """A scheduler that dies has a lease of 10 s on what it has taken; that is no reason to skip a day."""
    for late, fires in ((0, 1), (14, 1), (16, 0)):
        app = make_app(clock=clock)
        task = app.task(name="tick")(tick)
        async with app.client():
            await app.create_scheduler("memory://").schedule_interval(task, 3600, misfire="skip")
            clock.advance(3600 + late)
            await fire_due(app)
            assert len(await jobs_of(app)) == fires


async def test_a_fire_that_a_full_queue_refuses_is_tried_again_later(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    app = Flowrra(Config(broker=BrokerConfig(max_queue_size=1)), clock=clock)
    task = app.task(name="tick")(tick)
    app.every(60)(task)
    async with app.client():
        await fire_due(app)
        blocking = await app.submit(task)
        clock.advance(60)
        for _ in range(5):
            await fire_due(app)
        assert len([record for record in caplog.records if "cannot fire, trying again" in record.getMessage()]) == 1
        await app.cancel(blocking)
        clock.advance(10)
        await fire_due(app)
        assert [job.id.partition("@")[2] for job in await app.jobs(status="pending")] == ["2023-11-14T22:14:00Z"]


@pytest.mark.parametrize("of", ["a hook", "a key function"])
@pytest.mark.parametrize("is_stored", [False, True])
async def test_a_fire_that_the_program_refuses_holds_up_no_other_schedule(
    clock: ManualClock, caplog: pytest.LogCaptureFixture, of: str, is_stored: bool
) -> None:
    def refuse(what: str) -> str:
        raise LookupError(f"no tenant of {what}")

    app = make_app(clock=clock)
    good, bad = app.task(name="tick")(tick), app.task(name="bad", concurrency=1, key=refuse)(lambda what: None)
    if of == "a hook":
        bad = app.task(name="worse")(lambda what: None)
        app.on_submit(lambda job: refuse("x") if job.task == "worse" else None)
    if not is_stored:
        app.every(60, args=("x",))(bad)
        app.every(60)(good)
    async with app.client():
        if is_stored:
            scheduler = app.create_scheduler("memory://")
            await scheduler.schedule_interval(bad, 60, ("x",))
            await scheduler.schedule_interval(good, 60)
        for _ in range(3):
            await fire_due(app)
            clock.advance(60)
        assert [job.task for job in await jobs_of(app)] == ["tick", "tick"]
    said = [record.getMessage() for record in caplog.records if "LookupError: no tenant of x" in record.getMessage()]
    assert said
    assert all("schedule " in text and "fire" in text for text in said)


# ---------------------------------------------------------------------------
# Many calls at once
# ---------------------------------------------------------------------------


class SlowLink:
    """A link whose statements take a while, or for ever."""

    def __init__(self, link: Any, seconds: float) -> None:
        self._link, self.seconds = link, seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._link, name)

    async def execute(self, *statement: Any) -> Any:
        await asyncio.sleep(self.seconds)
        return await self._link.execute(*statement)


async def test_the_time_out_of_a_call_does_not_count_the_calls_before_it(tmp_path: Path) -> None:
    store: Any = store_from_url(f"sqlite:///{tmp_path}/schedules.db", timeout=1.5)
    app = make_app()
    app.task(name="add")(add)
    scheduler = app.create_scheduler(store)
    async with app.client():
        await scheduler.schedule_interval("add", 60, (0, 0))
        store._link = SlowLink(store._link, 0.1)
        made = await asyncio.gather(*(scheduler.schedule_interval("add", 60, (0, n)) for n in range(1, 21)))
        assert len({*made}) == 20


async def test_calls_that_wait_in_line_for_a_silent_store_end_together(tmp_path: Path) -> None:
    """Each keeps its time-out: it is not that of the calls before it, one after the other."""
    store: Any = store_from_url(f"sqlite:///{tmp_path}/schedules.db", timeout=0.4)
    await store.open()
    store._link = SlowLink(store._link, 60)
    loop = asyncio.get_running_loop()
    began = loop.time()
    ended = await asyncio.gather(*(store.remove("x") for _ in range(50)), return_exceptions=True)
    said = [str(one).rpartition(": ")[2] for one in ended]
    # On Python 3.14 the last ones may get the new connection, just within their time.
    assert set(said) - {"False"} == {"no answer in time (timeout=0.4)"}
    assert loop.time() - began < 10  # one after the other would take 20
    await store.close()
