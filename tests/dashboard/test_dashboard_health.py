"""The verdict: what is called a problem, what a warning, and where each leads to."""

import asyncio
import datetime as dt
import socket
from pathlib import Path
from typing import Any

import pytest

from flowrra import KILLED, Activity, ConfigError, Flowrra, Job, TaskStatus, WorkerInfo, job_of_fire
from flowrra_extras.dashboard import failures, health, html
from flowrra_extras.dashboard.failures import grouped
from flowrra_extras.dashboard.health import (
    LostWorkers,
    Trend,
    _of_activity,
    _of_crashes,
    _of_queue,
    _of_queues,
    about,
    lag_limits,
)
from flowrra_extras.dashboard.job_search import search_path
from flowrra_extras.dashboard.overview import still_waiting
from flowrra_extras.dashboard.store import Tally
from tests.support import dashboard_samples as samples
from tests.support.apps import MovableClock, eventually
from tests.support.dashboards import (
    Service,
    dashboard,
    finished,
    in_state,
    service_of,
    shop,
    store,
    submitted,
    with_token,
)  # fmt: skip

WAITED = 124.0
BY = {"by": "ann"}


async def hung(app: Flowrra) -> list[str]:
    """Two jobs that fill the queue `default` of an app, and never end."""
    ids = [await submitted(app, "shop.wait") for _ in range(2)]
    for task_id in ids:
        await in_state(app, task_id, TaskStatus.RUNNING)
    return ids


async def says(service: Service, text: str) -> None:
    """Wait until the only problem says that: counts may be of a moment ago."""

    async def is_so() -> bool:
        service.forget()
        problems = (await service.health())["problems"]
        return len(problems) == 1 and text in problems[0]

    await eventually(is_so, text)


@pytest.mark.parametrize("broker", ["memory", "sqlite", "redis", "postgresql"])
async def test_a_queue_full_of_hung_jobs_is_a_problem(broker: str, tmp_path: Path) -> None:
    clock = MovableClock()
    with store(broker, tmp_path) as url:
        app = shop(url, clock=clock, queues={"default": 2, "mail": 1})
        async with app, service_of(app) as service:
            ids = await hung(app)
            for number in range(5):
                await submitted(app, "shop.greet", str(number))
            assert (await service.health())["healthy"]
            clock.wall_offset += WAITED
            await says(service, "queue default: 5 jobs wait, all 2 slots are taken by running jobs, for 2 m ")
            assert not (await service.health())["healthy"]
            verdict = await service.verdict()
            assert (verdict.level, verdict.word) == ("bad", "1 problem")
            assert [one["path"] for one in verdict.found] == [search_path(queue="default", state="running")]
            stats = await service.overview()
            assert {job["id"] for job in stats["longest"]} == set(ids)
            hour = stats["last_hour"]
            assert WAITED - 1 < (hour["wait_p95"] or 0.0) < WAITED + 10
            assert (stats["minutes"][-1]["wait_p95"], stats["waiting"]) == (hour["wait_p95"], 5)
            clock.wall_offset += 30.0
            await says(service, "; stable, for 2 m ")
            await service.cancel(ids, **BY)
            await finished(app, *ids)


@pytest.mark.parametrize("max_lag", [300, {"default": 300}, {"*": 300.0, "mail": 1}])
async def test_the_limit_of_the_lag_can_be_set_by_queue(max_lag: Any) -> None:
    clock = MovableClock()
    app = shop(clock=clock, queues={"default": 2})
    async with app, service_of(app, max_lag=max_lag) as service:
        ids = await hung(app)
        await submitted(app, "shop.greet", "Ann")
        clock.wall_offset += WAITED
        service.forget()
        assert (await service.health())["healthy"]
        assert (await service.queues())[0]["max_lag"] == 300
        await service.cancel(ids, **BY)
        await finished(app, *ids)


@pytest.mark.parametrize("max_lag", [0, -1.0, True, "60", {"mail": None}, float("nan")])
def test_a_limit_that_is_none_is_refused(max_lag: Any) -> None:
    with pytest.raises(ConfigError, match="max_lag= must be seconds"):
        lag_limits(max_lag)


async def test_a_paused_queue_is_a_warning() -> None:
    app = shop()
    async with app, service_of(app) as service:
        await service.pause("default", **BY)
        await submitted(app, "shop.greet", "Ann")
        health = await service.health()
        assert health["healthy"]
        assert health["warnings"][0].startswith("queue default: it is paused, and 1 job waits")
        assert (await service.verdict()).level == "warning"
        await service.resume("default", **BY)


async def test_all_is_well_is_said_too() -> None:
    app = shop()
    async with app, service_of(app) as service:
        verdict = await service.verdict()
        assert verdict == ("ok", "OK", "No problems: 1 worker alive, and no ready job has waited longer than 1 m.", ())


async def test_an_overdue_schedule_is_a_problem() -> None:
    clock = MovableClock()
    app = shop(clock=clock)
    scheduler = app.create_scheduler("memory://")
    async with app.client(), service_of(app) as service:  # which fires nothing
        await scheduler.schedule_interval("shop.greet", 30, ["Ann"], task_id="often")
        assert not (await service.schedule("often"))["overdue"]
        clock.wall_offset += 600
        assert (await service.schedule("often"))["overdue"]
        problems = (await service.health())["problems"]
        assert problems[-1].startswith("schedule of shop.greet: it is overdue, and no running scheduler fires it")
        assert [row["id"] for row in (await service.overview())["schedules"]] == ["often"]
        async with dashboard(app) as client:
            page = (await client.get("/schedules/often")).text
            assert "This schedule was due at" in page
            assert '<dt>State</dt><dd><span class="state s-failed">overdue</span></dd>' in page
        await scheduler.disable_task("often")
        assert len((await service.health())["problems"]) == 1


async def test_a_schedule_whose_jobs_cannot_be_made_is_shown() -> None:
    app = Flowrra()

    @app.cron("* * * * *")
    @app.task(concurrency=1, key=lambda: str(1 / 0))
    async def tick() -> None: ...

    async with dashboard(app) as client:
        for path in ("/", "/schedules", "/api/schedules"):
            assert (await client.get(path)).status_code == 200


async def test_a_schedule_says_what_became_of_its_last_job() -> None:
    app = shop()

    @app.every(3600)
    @app.task(name="shop.sweep")
    async def sweep() -> None: ...

    (schedule,) = app.schedules.values()
    async with app, service_of(app) as service:
        assert (await service.schedule(schedule.id))["last_job"] is None
        last = int(app.now() // 3600) * 3600 * 10**6
        job = job_of_fire(schedule, sweep, last, app.broker.retention)
        await app.submit_jobs([job])
        await finished(app, job.id)
        row = await service.schedule(schedule.id)
        assert (row["last_job"], row["last_status"]) == (job.id, "success")
        assert row["last_fire"] == dt.datetime.fromtimestamp(last / 10**6, dt.UTC)


async def test_a_store_that_is_away_is_bad_on_every_page() -> None:
    app = Flowrra.from_urls("redis://127.0.0.1:1/0")
    app.config.broker.timeout = 0.1
    async with dashboard(app) as client:
        for path, status in (("/", 503), ("/schedules/new", 200)):
            answer = await client.get(path)
            assert answer.status_code == status
            assert "<title>no answer · " in answer.text
            assert 'class="v-bad"' in answer.text
            assert "redis://127.0.0.1:1/0" in answer.text
            assert ("This page is loaded again every 5 s." in answer.text) == (status == 503)
            assert answer.headers.get("refresh") == ("5" if status == 503 else None)
        health = (await client.get("/api/health")).json()
        assert (health["healthy"], health["warnings"]) == (False, [])


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1/0", "postgresql://127.0.0.1:1/none"])
async def test_the_reason_is_said_before_the_broker_gives_up(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    for module in (health, html):
        monkeypatch.setattr(module, "PATIENCE", 0.5)
    app = Flowrra.from_urls(url)  # whose calls may take 30 s
    async with dashboard(app) as client, asyncio.timeout(10):
        problem = (await client.get("/api/health")).json()["problems"][0]
        page = (await client.get("/")).text
    assert problem.startswith(f"No answer within 2.5 s ({url}): ")
    assert "Connect call failed" in problem or "Connection refused" in problem
    assert page.count("No answer within") == 1
    assert app.broker.store_status.problem in problem


async def test_a_store_that_is_silent_is_unhealthy_before_a_probe_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "PATIENCE", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        app = Flowrra.from_urls(f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        async with dashboard(app) as client, asyncio.timeout(5):
            answer = await client.get("/api/health")
    assert (answer.status_code, answer.json()["healthy"]) == (503, False)
    (problem,) = answer.json()["problems"]
    assert problem.startswith("No answer within 2.5 s (redis://127.0.0.1:")


# Pure ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("running", "capacity", "said"),
    [
        (0, 0, "1 job waits, and no live worker serves the queue"),
        (1, 1, "1 job waits, the only slot is taken by a running job"),
        (4, 4, "1 job waits, all 4 slots are taken by running jobs"),
        (3, 4, "1 job waits, although workers have free slots (1 of 4)"),
    ],
)
def test_a_problem_of_a_queue_says_why_its_jobs_wait(running: int, capacity: int, said: str) -> None:
    row = samples.queue("mail", 1, running, capacity, 90.0, change=None)
    assert [one["text"] for one in _of_queues([row], [WorkerInfo("a")])] == [said]
    assert _of_queue({**row, "lag": 59.0}) is None or capacity == 0


def test_many_failures_of_a_task_are_a_warning_with_their_base() -> None:
    rows = [Activity(0, "pay", succeeded=20, failed=3), Activity(60, "pay", failed=7), Activity(0, "mail", 999, 4)]
    (warning,) = _of_activity(rows)
    assert (warning["what"], warning["text"]) == ("task pay", "10 of 30 jobs failed in the last 10 m")
    assert warning["path"] == search_path(state="failed", task="pay", since="10m")
    assert list(_of_activity([Activity(0, "pay", succeeded=1000, failed=9)])) == []


def test_jobs_that_kill_their_workers_are_a_warning() -> None:
    gone = Job("1", "resize", error=KILLED, finished=1000.0, status=TaskStatus.FAILED)
    again = Job("2", "resize", crashes=2, status=TaskStatus.RUNNING)
    given_up, running = _of_crashes(grouped([gone], 1001.0), [again, Job("3", "resize")], 1001.0)
    assert given_up["text"] == f"1 job failed: {KILLED}"
    assert (running["text"], running["path"]) == (
        "a job that has killed its worker 2 times is running again",
        "/jobs/2",
    )
    assert list(_of_crashes(grouped([gone], 1001.0), [], 10_000.0)) == []


def test_a_worker_that_has_died_is_a_warning() -> None:
    lost, dead, stopped = (
        LostWorkers(3.0),
        WorkerInfo("a", "web-1", 7, running=3, seen=90.0),
        WorkerInfo("b", seen=98.5),
    )
    assert list(lost.warnings([dead, stopped], 99.0)) == []
    (warning,) = lost.warnings([], 100.0)
    assert (warning["what"], warning["path"]) == ("worker web-1 7", "/workers")
    assert "ran 3 jobs" in warning["text"]
    assert list(lost.warnings([dead], 101.0)) == []  # it was cut off for a while
    assert list(lost.warnings([], 102.0)) != []
    assert list(lost.warnings([], 1000.0)) == []


def test_a_worker_of_which_nobody_knows_when_it_went_is_none() -> None:
    lost = LostWorkers(3.0)
    assert list(lost.warnings([WorkerInfo("a", running=3, seen=98.0)], 100.0)) == []
    assert list(lost.warnings([], 130.0)) == []


def tally(at: float, ready: int, oldest: float = 0.0, newest: float = 0.0) -> Tally:
    return Tally(at, {("mail", TaskStatus.PENDING): ready}, {"mail": oldest}, {"mail": newest})


def test_a_trend_is_that_of_the_last_minute() -> None:
    trend = Trend()
    assert trend.change("mail") is None
    for at, ready in ((0, 999), (100, 200), (105, 190), (130, 140)):
        trend.note(tally(at, ready))
    assert trend.change("mail") == -2.0
    assert trend.change("other") == 0.0


@pytest.mark.parametrize(
    ("change", "drained_in", "said"),
    [
        (0.4, None, "stable"),
        (123.4, None, "grows by 120 per minute"),
        (-31.0, 2340.0, "shrinks by 31 per minute, empty in 39 m"),
        (-1.0, 360_000.0, "shrinks by 1 per minute, empty in 100 h"),
    ],
)
def test_a_trend_is_said_calmly(change: float, drained_in: float | None, said: str) -> None:
    assert html.trend(samples.queue("mail", 9, 0, 1, 1.0, change=change, drained_in=drained_in)) == said


def test_a_number_of_waiting_jobs_is_rounded() -> None:
    assert [about(number) for number in (1, 99, 150, 151, 1208)] == ["1", "99", "150", "150+", "1,200+"]


def test_waiting_so_far_is_spread_between_the_oldest_and_the_newest() -> None:
    row = still_waiting(tally(0.0, 1_000, oldest=0.0, newest=99.0), 100.0)
    assert sum(row.waits.values()) == 1_000
    assert max(row.waits) > min(row.waits)
    assert still_waiting(tally(0.0, 7, oldest=10.0, newest=10.0), 100.0).waits == {20: 7}


async def test_a_flood_of_one_error_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "READ", 5)
    app = shop()
    async with app, service_of(app) as service:
        quiet = await app.registry["shop.greet"].options(max_retries=0).submit(1, loud=True)  # it is no text
        flood = [await submitted(app, "shop.fail", "no answer", n) for n in range(6)]
        await finished(app, quiet, *flood)

        async def tasks() -> set[str]:
            service.forget()
            return {group["task"] for group in (await service.failures())["groups"]}

        async def both() -> bool:
            return await tasks() == {"shop.greet", "shop.fail"}

        await eventually(both)
        group = next(group for group in (await service.failures())["groups"] if group["task"] == "shop.greet")
        assert (sum(group["minutes"]), group["sample"]) == (1, quiet)


async def test_an_error_page_begins_with_the_verdict() -> None:
    """Of a page that is not there, a form that is refused and one that cannot be done; not for strangers."""
    app = shop()
    async with app.client(), dashboard(app) as client:
        await submitted(app, "shop.greet", "Ann")
        fields = await with_token(client)
        answers = [
            await client.get("/nothing"),
            await client.get("/jobs/nothing"),
            await client.get("/jobs?after_job=x"),
            await client.post("/jobs/cancel", data={"token": "wrong"}),
            await client.post("/jobs/cancel", data=fields),
            await client.put("/jobs"),
        ]
        assert [answer.status_code for answer in answers] == [404, 404, 422, 403, 422, 405]
        for answer in answers:
            assert "no worker is alive" in answer.text
            assert "<title>1 problem" in answer.text
        stranger = await client.get("/nothing", headers={"x-forwarded-for": "203.0.113.7"})
        assert stranger.status_code == 403
        assert "no worker" not in stranger.text
