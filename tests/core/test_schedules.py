"""Schedules declared in code: when they fire, what they submit, and that many processes make one job of a fire."""

import datetime as dt
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowrra import (
    BackendConfig,
    Config,
    ConfigError,
    Flowrra,
    Job,
    Schedule,
    Task,
    TaskStatus,
    current_job,
    upcoming,
)
from flowrra_extras.testing import ManualClock, drain, fire_due
from tests.support.apps import eventually, make_app

# 2023-11-14 22:13:20 UTC, a Tuesday; not on a multiple of anything that is used here but 10 and 20 s.
START = 1_700_000_000.0


def at(moment: str) -> float:
    return dt.datetime.fromisoformat(f"{moment}+00:00").timestamp()


def app_on(clock: ManualClock, url: str = "memory://", **options: Any) -> tuple[Flowrra, Task[[], None]]:
    """An app with one task, `tick`, that nothing fires yet."""
    app = make_app(url, clock=clock, **options)

    @app.task(name="tick")
    async def tick() -> None:
        """Nothing to do."""

    return app, tick


async def jobs_of(app: Flowrra) -> list[Job]:
    """All jobs, the first submitted first."""
    return (await app.jobs(limit=10_000))[::-1]


async def moments(app: Flowrra) -> list[str]:
    """The moments of the fires, in order of submission."""
    return [job.id.rpartition("@")[2] for job in await jobs_of(app)]


# ---------------------------------------------------------------------------
# When they fire
# ---------------------------------------------------------------------------


async def test_an_interval_is_anchored_to_the_epoch_and_does_not_drift() -> None:
    clock = ManualClock(START)
    app, tick = app_on(clock)
    app.every(30)(tick)
    async with app.client():
        for seconds in (0.0, 3.0, 11.0, 31.5, 27.2, 12.4):
            clock.advance(seconds)
            await fire_due(app)
        assert clock.time() == pytest.approx(START + 85.1)
        assert await moments(app) == ["2023-11-14T22:13:30Z", "2023-11-14T22:14:00Z", "2023-11-14T22:14:30Z"]


async def test_a_cron_fires_in_its_zone() -> None:
    clock = ManualClock(at("2025-03-28T12:00:00"))  # Friday; Riga's clocks go forward on Sunday
    app, tick = app_on(clock)
    app.cron("0 9 * * mon-fri", tz="Europe/Riga")(tick)
    async with app.client():
        for _ in range(5 * 24):
            clock.advance(3600)
            await fire_due(app)
        assert await moments(app) == ["2025-03-31T06:00:00Z", "2025-04-01T06:00:00Z", "2025-04-02T06:00:00Z"]


async def test_two_schedules_of_a_task_are_two() -> None:
    clock = ManualClock(START)
    app = make_app(clock=clock)

    @app.every(60, args=("minute",))
    @app.every(dt.timedelta(hours=1), args=("hour",))
    @app.task(name="note")
    async def note(what: str) -> str:
        return what

    async with app:
        await fire_due(app)  # from here on it counts
        clock.advance(3600)
        await fire_due(app)
        await drain(app)
        assert sorted([job.result for job in await jobs_of(app)]) == ["hour", "minute"]
    assert len(app.schedules) == 2


async def test_a_schedule_fires_by_itself_while_the_app_runs() -> None:
    app = make_app(clock=None)
    ran: list[int] = []

    @app.every(0.05)
    @app.task
    async def tick() -> None:
        ran.append(1)

    async with app:
        await eventually(lambda: len(ran) >= 3)


async def test_a_schedule_that_is_declared_late_fires_too() -> None:
    app = make_app()
    async with app:
        ran: list[int] = []

        @app.every(0.05)
        @app.task(name="late")
        async def late() -> None:
            ran.append(1)

        await eventually(lambda: len(ran) >= 2)


@pytest.mark.parametrize("how", ["option", "environment", "disabled"])
async def test_what_is_switched_off_does_not_fire(how: str) -> None:
    app = make_app(scheduler=how != "option")
    if how == "environment":
        app.config = Config.from_env("F_", {"F_EXECUTOR_SCHEDULER": "No"})
    on = app.every(0.01, enabled=how != "disabled")

    @on
    @app.task(name="tick")
    async def tick() -> None:
        """Nothing to do."""

    async with app:
        other = await app.submit(app.task(name="other")(lambda: None))
        await app.wait_for_result(other, timeout=20)
        if how == "disabled":
            await fire_due(app)
        assert [job.task for job in await jobs_of(app)] == ["other"]


def test_the_environment_says_yes_or_no() -> None:
    assert Config.from_env("F_", {"F_EXECUTOR_SCHEDULER": "true"}).executor.scheduler
    assert not Config.from_env("F_", {"F_EXECUTOR_SCHEDULER": "0"}).executor.scheduler
    with pytest.raises(ConfigError, match="F_EXECUTOR_SCHEDULER='maybe' cannot be read as bool"):
        Config.from_env("F_", {"F_EXECUTOR_SCHEDULER": "maybe"})


# ---------------------------------------------------------------------------
# What they submit
# ---------------------------------------------------------------------------


async def test_the_options_are_those_of_the_jobs() -> None:
    clock = ManualClock(START)
    app = make_app(clock=clock)

    @app.every(60, args=(1,), kwargs={"b": 2}, priority=-5, queue="slow", max_retries=7, retry_delay=0.5)
    @app.task(name="work", priority=3, queue="fast")
    async def work(a: int, b: int) -> int:
        return a + b

    async with app.client():
        await fire_due(app)
        clock.advance(60)
        await fire_due(app)
        (job,) = await jobs_of(app)
    assert (job.priority, job.queue, job.payload) == (-5, "slow", '[[1],{"b":2}]')
    assert job.overrides == {"max_retries": 7, "retry_delay": 0.5}


async def test_what_is_not_said_is_as_the_task_has_it() -> None:
    clock = ManualClock(START)
    app = make_app(clock=clock)

    @app.every(60)
    @app.task(name="work", priority=3, queue="fast", max_retries=0)
    async def work() -> None:
        raise ValueError("once is enough")

    async with app:
        await fire_due(app)
        clock.advance(60)
        await fire_due(app)
        await drain(app)
        (job,) = await jobs_of(app)
    assert (job.priority, job.queue, job.status, job.failures) == (3, "fast", TaskStatus.FAILED, 1)


async def test_overlap_skip_leaves_out_what_would_run_beside_an_unfinished_one() -> None:
    clock = ManualClock(START)
    app, tick = app_on(clock)
    app.every(60, overlap="skip")(tick)
    async with app.client():
        await fire_due(app)
        for _ in range(3):
            clock.advance(60)
            await fire_due(app)
        assert await moments(app) == ["2023-11-14T22:14:00Z"]
        (job,) = await jobs_of(app)
        await app.cancel(job.id)
        clock.advance(60)
        await fire_due(app)
        assert await moments(app) == ["2023-11-14T22:14:00Z", "2023-11-14T22:17:00Z"]


async def test_jitter_is_the_same_for_all_and_spreads(tmp_path: Path) -> None:
    dues: list[list[float | None]] = []
    for name in ("one", "other"):
        clock = ManualClock(START)
        app, tick = app_on(clock, f"sqlite:///{tmp_path}/{name}.db")
        app.every(60, jitter=45, misfire="all")(tick)
        async with app.client():
            await fire_due(app)
            clock.advance(20 * 60)
            await fire_due(app)
            dues.append([job.due for job in await jobs_of(app)])
    assert dues[0] == dues[1]
    late = [due - at(f"2023-11-14T22:{14 + n}:00") for n, due in enumerate(dues[0]) if due is not None]
    assert len(late) >= 1
    assert all(0 <= seconds <= 45 for seconds in late)
    assert len({round(seconds, 3) for seconds in late}) == len(late)


# ---------------------------------------------------------------------------
# Many schedulers, one job
# ---------------------------------------------------------------------------


async def test_every_process_fires_and_one_job_comes_of_it(tmp_path: Path) -> None:
    clocks = [ManualClock(START + offset) for offset in (0.0, 2.5, -4.0)]
    apps = []
    for clock in clocks:
        app, tick = app_on(clock, f"sqlite:///{tmp_path}/jobs.db")
        app.every(10)(tick)
        apps.append(app)
    async with apps[0].client(), apps[1].client(), apps[2].client():
        for _ in range(60):
            for clock, app in zip(clocks, apps, strict=True):
                await fire_due(app)
                clock.advance(1)
        assert await moments(apps[0]) == [f"2023-11-14T22:{13 + s // 60}:{s % 60:02}Z" for s in range(20, 81, 10)]


@pytest.mark.parametrize("result_ttl", [0, 86_400])
@pytest.mark.parametrize("succeeds", [True, False])
async def test_a_slow_clock_does_not_fire_again_what_has_been_purged_elsewhere(
    tmp_path: Path, succeeds: bool, result_ttl: float
) -> None:
    """With a retention of nothing the job would be gone when the slow host comes to the moment."""
    url, runs = f"sqlite:///{tmp_path}/jobs.db", []
    clocks = [ManualClock(START), ManualClock(START - 40)]
    apps = []
    for clock in clocks:
        app = make_app(url, clock=clock, retention=BackendConfig(result_ttl=result_ttl, failed_ttl=0))

        @app.every(60)
        @app.task(name="tick", max_retries=0)
        async def tick() -> None:
            runs.append(1)
            if not succeeds:
                raise ValueError("as it is meant to be")

        apps.append(app)
    for clock, app in zip(clocks, apps, strict=True):
        async with app:
            await fire_due(app)
            clock.advance(42)
            await fire_due(app)
            await drain(app)
            clock.advance(1)
            await app.broker.purge(app.now(), 100)
        clocks[1].advance(40)
    assert runs == [1]


async def test_what_has_fired_before_a_stop_does_not_fire_again_after_the_clock_was_set_back() -> None:
    """The memory broker forgets a job when there are too many of them; the schedule knows where it is all the same."""
    clock = ManualClock(START)
    app = make_app(clock=clock, retention=BackendConfig(max_results=1))
    runs: list[str] = []

    @app.every(600, misfire="all")
    @app.task
    async def tick() -> None:
        runs.append(current_job().id[-9:-4])

    for expected in (["22:20", "22:30"], ["22:20", "22:30"]):
        async with app:
            await fire_due(app)
            clock.advance(1200)
            await fire_due(app)
            await drain(app)
            assert runs == expected
        clock.jump_wall(-1200)


async def test_what_came_due_while_nothing_ran_is_not_made_up_for() -> None:
    clock = ManualClock(START)
    app, tick = app_on(clock)
    app.every(60, misfire="all")(tick)
    for _ in range(2):
        async with app:
            await fire_due(app)
            clock.advance(60)
            await fire_due(app)
        clock.advance(240)
    async with app.client():
        assert await moments(app) == ["2023-11-14T22:14:00Z", "2023-11-14T22:19:00Z"]


# ---------------------------------------------------------------------------
# Late loops and wrong clocks
# ---------------------------------------------------------------------------


async def fired_after(seconds: float, misfire: str, every: float = 60) -> list[str]:
    """What fires when the loop has slept so long."""
    clock = ManualClock(START)
    app, tick = app_on(clock)
    app.every(every, misfire=misfire)(tick)
    async with app.client():
        await fire_due(app)
        clock.advance(seconds)
        await fire_due(app)
        return await moments(app)


@pytest.mark.parametrize(
    ("misfire", "expected"),
    [
        ("latest", ["2023-11-14T22:16:00Z"]),
        ("skip", []),
        ("all", ["2023-11-14T22:14:00Z", "2023-11-14T22:15:00Z", "2023-11-14T22:16:00Z"]),
    ],
)
async def test_a_late_loop_keeps_the_rule_of_misfires(misfire: str, expected: list[str]) -> None:
    assert await fired_after(200, misfire) == expected


@pytest.mark.parametrize("misfire", ["latest", "all"])
async def test_what_is_a_little_late_is_no_misfire(misfire: str) -> None:
    """A scheduler that dies leaves what it had taken to others for 10 s; no fire may be lost by that.

    With misfire="skip" the latest of them is not, either.
    """
    expected = [f"2023-11-14T22:13:{s}Z" for s in range(21, 36)]
    assert await fired_after(15, misfire, every=1) == expected


async def test_what_is_made_up_for_is_bounded() -> None:
    fires = await fired_after(86_400, "all", every=1)
    assert len(fires) == 100
    assert fires[-1] == "2023-11-15T22:13:20Z"
    assert fires[0] == "2023-11-15T22:11:41Z"


async def test_a_clock_that_is_set_back_fires_nothing_twice() -> None:
    clock = ManualClock(START)
    app, tick = app_on(clock)
    app.every(600)(tick)
    async with app.client():
        await fire_due(app)
        clock.advance(600)
        await fire_due(app)
        clock.jump_wall(-3600)
        for _ in range(6):
            await fire_due(app)
            clock.advance(600)
        await fire_due(app)
        assert await moments(app) == ["2023-11-14T22:20:00Z"]
        clock.advance(600)
        await fire_due(app)
        assert await moments(app) == ["2023-11-14T22:20:00Z", "2023-11-14T22:30:00Z"]


async def test_a_clock_that_is_set_forward_is_a_misfire() -> None:
    clock = ManualClock(START)
    app, tick = app_on(clock)
    app.every(600)(tick)
    async with app.client():
        await fire_due(app)
        clock.jump_wall(3600)
        await fire_due(app)
        assert await moments(app) == ["2023-11-14T23:10:00Z"]


# ---------------------------------------------------------------------------
# The arithmetic of intervals
# ---------------------------------------------------------------------------


@given(
    step=st.integers(1, 5_000_000),
    anchor=st.integers(0, 2_000_000_000_000_000),
    after=st.integers(0, 2_000_000_000_000_000),
)
def test_an_interval_is_a_grid_of_microseconds(step: int, anchor: int, after: int) -> None:
    step *= 1_000
    schedule = Schedule(id="a", key="a", task="a", kind="interval", rule=f"{step / 1e6:.6f}", anchor=anchor / 1e6)
    moment = upcoming(schedule, after / 1e6)
    assert moment is not None
    exact = round(moment * 1e6)
    assert after < exact <= after + step
    assert (exact - anchor) % step == 0


# ---------------------------------------------------------------------------
# Bad input
# ---------------------------------------------------------------------------


@pytest.mark.parametrize("interval", [0, -1, float("nan"), float("inf"), 1e-9, 1e10, True, "60", None])
def test_a_bad_interval_is_refused(interval: Any) -> None:
    app, tick = app_on(ManualClock())
    with pytest.raises(ConfigError, match="an interval must be"):
        app.every(interval)(tick)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"misfire": "never"}, "misfire must be one of latest, all, skip, not 'never'"),
        ({"overlap": None}, "overlap must be one of allow, skip, not None"),
        ({"jitter": -1}, "jitter must be at least 0 s, not -1"),
        ({"jitter": float("nan")}, "jitter must be a finite number"),
        ({"priority": "high"}, "priority must be an int"),
        ({"queue": "a,b"}, "a queue's name is text"),
        ({"max_retries": -1}, "max_retries must be at least 0"),
        ({"args": "abc"}, "args is a tuple and kwargs a dictionary"),
    ],
)
def test_a_bad_option_is_refused(options: Any, complaint: str) -> None:
    app, tick = app_on(ManualClock())
    with pytest.raises(ConfigError, match=complaint):
        app.every(60, **options)(tick)


@pytest.mark.parametrize("expression", ["", "* * * *", "0 24 * * *", "0 0 30 2 *", 5, None])
def test_a_bad_expression_is_refused(expression: Any) -> None:
    app, tick = app_on(ManualClock())
    with pytest.raises(ValueError, match=r".+"):
        app.cron(expression)(tick)


def test_a_bad_zone_is_refused() -> None:
    app, tick = app_on(ManualClock())
    with pytest.raises(ValueError, match="Mars/Olympus"):
        app.cron("0 9 * * *", tz="Mars/Olympus")(tick)


def test_arguments_are_checked_where_they_are_written() -> None:
    app, tick = app_on(ManualClock())
    with pytest.raises(TypeError, match="tick"):
        app.every(60, args=(1,))(tick)
    with pytest.raises(TypeError, match="no option 'colour'"):
        app.every(60, colour="red")(tick)  # type: ignore[call-arg]


def test_a_schedule_stands_above_a_task_of_its_own_app() -> None:
    app, _ = app_on(ManualClock())
    _, foreign = app_on(ManualClock())
    with pytest.raises(ConfigError, match="above @app"):
        app.every(60)(foreign)
    with pytest.raises(ConfigError, match="above @app"):
        app.every(60)(print)  # type: ignore[type-var]
