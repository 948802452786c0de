"""Events: a job waits for one without a slot, before or after it is emitted."""

import asyncio
import datetime as dt
from pathlib import Path
from typing import Any

import pytest

from flowrra import (
    BackendConfig,
    BrokerError,
    Config,
    ConfigError,
    Flowrra,
    Job,
    JobFilter,
    SerializationError,
    Snooze,
    TaskStatus,
    TaskTimeoutError,
    current_job,
)
from flowrra_extras.testing import ManualClock, job_context
from tests.support.apps import eventually, make_app, within

ran: list[str] = []


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    ran.clear()


@pytest.fixture(params=["memory", "file"])
def app(request: pytest.FixtureRequest, tmp_path: Path) -> Flowrra:
    app = make_app("memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/jobs.db")

    @app.task(name="order", max_retries=0)
    async def order(number: int, timeout: float | None = None) -> Any:
        ran.append(f"charge {number}")
        return await current_job().wait_event(f"approved:{number}", timeout=timeout)

    return app


async def waits(app: Flowrra, task_id: str) -> bool:
    return (await app.get_job(task_id)).status is TaskStatus.SCHEDULED


async def test_a_job_waits_for_an_event_and_gets_its_payload(app: Flowrra) -> None:
    async with app:
        task_id = await app.submit("order", 42)
        await eventually(lambda: waits(app, task_id))
        assert (await app.explain(task_id)).startswith("It waits for the event 'approved:42'; ")
        assert "1 job(s) have begun to wait" in await app.explain("event:approved:42")
        assert await app.emit("approved:42", {"by": "Ada", "at": dt.date(2026, 11, 29)})
        result = await within(app.wait_for_result(task_id))
        job = await app.get_job(task_id)
    assert result.result == {"by": "Ada", "at": dt.date(2026, 11, 29)}
    assert ([one.outcome for one in job.attempts], job.failures) == (["snooze", "success"], 0)


async def test_an_event_that_was_emitted_before_is_not_waited_for(app: Flowrra) -> None:
    async with app:
        assert await app.emit("approved:1", True)
        result = await within(app.wait_for_result(await app.submit("order", 1)))
    assert (result.result, result.attempts) == (True, 1)


async def test_a_store_that_is_away_costs_no_retry(app: Flowrra, monkeypatch: pytest.MonkeyPatch) -> None:
    find, outages = app.broker.find, [BrokerError("away"), BrokerError("still away")]

    async def find_at_last(which: JobFilter, **options: Any) -> list[Job]:
        if outages and which.ids == ["event:approved:1"]:
            raise outages.pop()
        return await find(which, **options)

    async with app:
        await app.emit("approved:1", True)
        monkeypatch.setattr(app.broker, "find", find_at_last)
        result = await within(app.wait_for_result(await app.submit("order", 1)))
    assert (outages, result.result, result.attempts) == ([], True, 1)


async def test_the_first_emit_counts(app: Flowrra) -> None:
    async with app:
        assert await app.emit("approved:1", "yes")
        assert not await app.emit("approved:1", "no")
        assert not await app.emit("approved:1", "yes")
        assert (await within(app.wait_for_result(await app.submit("order", 1)))).result == "yes"


async def test_many_jobs_wait_for_one_event(app: Flowrra) -> None:
    async with app:
        ids = [await app.submit("order", 7) for _ in range(20)]
        for task_id in ids:
            await eventually(lambda task_id=task_id: waits(app, task_id))
        await app.emit("approved:7", "all of them")
        results = [(await within(app.wait_for_result(task_id))).result for task_id in ids]
    assert results == ["all of them"] * 20


async def test_an_event_without_a_payload_and_with_none(app: Flowrra) -> None:
    async with app:
        await app.emit("approved:1")
        result = await within(app.wait_for_result(await app.submit("order", 1)))
    assert (result.status, result.result) == (TaskStatus.SUCCESS, None)


async def test_a_wait_is_over_after_its_timeout_and_stays_so(app: Flowrra) -> None:
    @app.task(retry_delay=0, max_retries=1)
    async def patient() -> str:
        try:
            await current_job().wait_event("never", timeout=0.05)
        except TaskTimeoutError as error:
            ran.append(str(error))
        if current_job().failures == 0:
            await app.emit("never", "after all")
            raise ConnectionError("an attempt later it is still timed out")
        return "gave up"

    async with app:
        assert (await within(app.wait_for_result(await patient.submit()))).result == "gave up"
    assert ran == ["the event 'never' was not emitted in time"] * 2


async def test_an_event_and_the_end_of_its_time(app: Flowrra) -> None:
    async with app:
        task_id = await app.submit("order", 3, timeout=60.0)
        await eventually(lambda: waits(app, task_id))
        due = (await app.get_job(task_id)).due_at
        assert due is not None
        assert 50 < (due - dt.datetime.now(dt.UTC)).total_seconds() <= 60
        await app.emit("approved:3", "in time")
        assert (await within(app.wait_for_result(task_id))).result == "in time"


async def test_a_year_of_waiting() -> None:
    clock = ManualClock()
    app = make_app(clock=clock)

    @app.task
    async def order() -> str:
        return str(await current_job().wait_event("paid"))

    async with app:
        task_id = await order.submit()
        await eventually(lambda: waits(app, task_id))
        clock.advance(365 * 86_400.0)
        assert await waits(app, task_id)
        await app.emit("paid", "at last")
        assert (await within(app.wait_for_result(task_id))).result == "at last"


async def test_events_in_memory_stay_however_many_jobs_finish() -> None:
    clock = ManualClock()
    app = Flowrra(Config(backend=BackendConfig(max_results=3)), clock=clock)

    @app.task
    async def order(number: int) -> Any:
        return await current_job().wait_event("paid") if number == 0 else number

    async with app:
        assert await app.emit("paid", "early")
        for task_id in [await order.submit(number) for number in range(1, 9)]:
            await eventually(lambda task_id=task_id: ended(app, task_id))
        assert (await within(app.wait_for_result(await order.submit(0)))).result == "early"
        assert not await app.emit("paid", "late")
        assert len(await app.jobs(task="order")) <= 3
        clock.advance(31 * 86_400.0)
        await app.broker.purge(clock.time(), 100)
        assert await app.emit("paid", "a month later")


async def ended(app: Flowrra, task_id: str) -> bool:
    """Whether it has finished, or is gone."""
    result = await app.get_result(task_id)
    return result is None or result.is_finished


async def test_a_cancelled_job_does_not_run_when_its_event_comes(app: Flowrra) -> None:
    async with app:
        task_id = await app.submit("order", 1)
        await eventually(lambda: waits(app, task_id))
        assert await app.cancel(task_id)
        assert await app.emit("approved:1", True)
        await asyncio.sleep(0)
        assert (await app.get_job(task_id)).status is TaskStatus.CANCELLED
    assert ran == ["charge 1"]


async def test_an_event_is_no_job_that_could_be_cancelled_or_run(app: Flowrra) -> None:
    async with app:
        task_id = await app.submit("order", 1)
        await eventually(lambda: waits(app, task_id))
        assert not await app.cancel("event:approved:1")
        assert await app.cancel_all(queue="events") == 0
        assert await app.emit("approved:1", True)
        assert not await app.requeue("event:approved:1")
        assert (await within(app.wait_for_result("event:approved:1"))).result is True


async def test_code_without_async_emits(tmp_path: Path) -> None:
    app = make_app(f"sqlite:///{tmp_path}/jobs.db")
    try:
        assert await asyncio.to_thread(app.sync.emit, "done", 3)
        assert not await asyncio.to_thread(app.sync.emit, "done", 3)
    finally:
        await asyncio.to_thread(app.sync.close)


@pytest.mark.parametrize("name", ["", "x" * 201, "a\0b", 7, None])
async def test_what_cannot_name_an_event_is_refused(app: Flowrra, name: Any) -> None:
    with pytest.raises(ConfigError, match="the name of an event must be a text of 1 to 200 characters"):
        await app.emit(name)
    with job_context() as job, pytest.raises(ConfigError, match="the name of an event"):
        await job.wait_event(name)


async def test_no_job_takes_the_id_of_an_event(app: Flowrra) -> None:
    """An emit would change nothing, and those who wait would get the job's result."""
    with pytest.raises(
        ConfigError, match=r"task_id='event:x' is the id of an event: emit\(\) that, or give another id"
    ):
        await app.submit("some.task", task_id="event:x")
    assert await app.emit("x")


async def test_a_payload_that_cannot_be_stored_is_refused(app: Flowrra) -> None:
    with pytest.raises(SerializationError, match="the event 'x'"):
        await app.emit("x", object())


async def test_a_task_that_waits_is_called_directly() -> None:
    with job_context(events={"paid": 5}) as job:
        assert await job.wait_event("paid") == 5
        with pytest.raises(Snooze, match="it waits for the event shipped"):
            await job.wait_event("shipped")
