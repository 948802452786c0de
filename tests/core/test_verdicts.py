"""What a task says of its job by raising: again later (Snooze), or not at all (Cancel)."""

import asyncio
import datetime as dt
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowrra import Cancel, ConfigError, Event, Flowrra, Job, Snooze, TaskOptions, TaskResult, TaskStatus, judge
from tests.support import cpu_work
from tests.support.apps import eventually, make_app, within

OPTIONS = TaskOptions(max_retries=0, no_retry_on=(Exception,), retry_delay=7.0)


@pytest.fixture(params=["memory", "file"])
def app(request: pytest.FixtureRequest, tmp_path: Path) -> Flowrra:
    return make_app("memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/jobs.db")


async def run(app: Flowrra, function: Callable[..., Any], **options: Any) -> tuple[TaskResult[Any], Job]:
    task_id = await app.task(max_retries=0, **options)(function).submit()
    return await within(app.wait_for_result(task_id)), await app.get_job(task_id)


class RateLimited(Snooze):
    """One that does not call super().__init__()."""

    def __init__(self, delay: float | None) -> None:
        if delay is not None:
            self.delay = delay


@pytest.mark.parametrize(
    ("error", "delay"),
    [
        (Snooze(30), 30.0),
        (Snooze(0), 0.0),
        (Snooze(dt.timedelta(minutes=1)), 60.0),
        (Snooze(until=dt.datetime.fromtimestamp(1_030, dt.UTC)), 30.0),
        (Snooze(until=dt.datetime.fromtimestamp(930, dt.UTC)), 0.0),
        (RateLimited(5), 5.0),
        (RateLimited(None), 7.0),
        (RateLimited(-1), 7.0),  # no delay: as for a retry
    ],
)
def test_a_snooze_is_due_when_it_says(error: Snooze, delay: float) -> None:
    outcome = judge(Job("a", "task", failures=3), OPTIONS, error, now=1_000.0)
    assert (outcome.status, outcome.ending, outcome.due) == (TaskStatus.SCHEDULED, "snooze", 1_000.0 + delay)


def test_a_cancel_ends_the_job_with_its_reason() -> None:
    outcome = judge(Job("a", "task"), OPTIONS, Cancel("user 7: is gone"), now=0.0)
    assert (outcome.status, outcome.error, outcome.traceback) == (TaskStatus.CANCELLED, "user 7: is gone", None)
    assert judge(Job("a", "task"), OPTIONS, type("Gone", (Cancel,), {})(""), now=0.0).error == "Gone"


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({}, "one of the two"),
        ({"delay": 1, "until": dt.datetime.now(dt.UTC)}, "one of the two"),
        ({"delay": -1}, "at least 0 s, not -1"),
        ({"delay": "1"}, "not '1'"),
        ({"until": 5}, "until must be a datetime, not 5"),
    ],
)
def test_a_snooze_that_says_nothing_is_refused(arguments: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        Snooze(**arguments)


@pytest.mark.parametrize("kind", ["async", "thread", "process"])
async def test_a_task_that_snoozes_runs_again_and_has_used_up_no_retry(app: Flowrra, kind: str) -> None:
    attempts: list[int] = []

    async def snoozes() -> str:
        attempts.append(0)
        if len(attempts) < 5:
            raise Snooze(0.001, reason="429 Too Many Requests")
        return "done"

    functions = {"async": snoozes, "thread": lambda: asyncio.run(snoozes()), "process": cpu_work.snooze_once}
    async with app:
        result, job = await run(app, functions[kind], name="snoozes", cpu_bound=kind == "process")
    assert (result.status, result.result, job.failures) == (TaskStatus.SUCCESS, "done", 0)
    *before, last = job.attempts
    assert {(a.outcome, a.error) for a in before} == {("snooze", "429 Too Many Requests")}
    assert (last.outcome, last.number) == ("success", 2 if kind == "process" else 5)


@pytest.mark.parametrize("kind", ["async", "thread", "process"])
async def test_a_task_that_cancels_its_job_is_not_run_again(app: Flowrra, kind: str) -> None:
    async def leaves() -> None:
        raise Cancel("user 7 is gone")

    functions = {"async": leaves, "thread": lambda: asyncio.run(leaves()), "process": cpu_work.cancel_itself}
    async with app:
        result, job = await run(app, functions[kind], name="leaves", cpu_bound=kind == "process")
    assert (result.status, result.error, len(job.attempts)) == (TaskStatus.CANCELLED, "user 7 is gone", 1)


async def test_a_snooze_holds_no_slot_and_is_told(app: Flowrra, caplog: pytest.LogCaptureFixture) -> None:
    events: list[Event] = []
    app.on("snooze")(events.append)

    @app.task
    async def sleeps() -> None:
        raise Snooze(until=dt.datetime.now(dt.UTC) + dt.timedelta(hours=1))

    with caplog.at_level(logging.INFO, "flowrra"):
        async with app:
            task_id = await sleeps.submit()
            await eventually(lambda: bool(events))
            job = await app.get_job(task_id)
            assert (job.status, job.worker) == (TaskStatus.SCHEDULED, None)
            assert 3_590 < (job.due or 0.0) - time.time() <= 3_600
            assert "the task asked to run later" in await app.explain(task_id)
            assert await app.cancel(task_id)
    assert [(event.name, event.error) for event in events] == [("snooze", "the task asked to run later")]
    (line,) = [record.getMessage() for record in caplog.records if ": snooze " in record.getMessage()]
    assert "attempt 1: snooze after" in line
    assert "again in 3" in line


async def test_a_job_that_somebody_cancels_does_not_snooze(app: Flowrra) -> None:
    async def snoozes() -> None:
        await app.broker.cancel(task_id, now=app.now())
        raise Snooze(60)

    task = app.task(snoozes)
    async with app:
        task_id = await task.options(delay=0.05).submit()
        assert (await within(app.wait_for_result(task_id))).status is TaskStatus.CANCELLED
