"""Steps of a job: each is done once, whatever becomes of the attempts."""

import asyncio
import dataclasses
import datetime as dt
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from flowrra import (
    Cancel,
    ConfigError,
    Flowrra,
    FlowrraError,
    Job,
    Retry,
    Snooze,
    TaskResult,
    TaskStatus,
    current_job,
)
from flowrra_extras.testing import ManualClock, job_context
from tests.support import cpu_work
from tests.support.apps import eventually, make_app, within


@dataclasses.dataclass
class Receipt:
    """What a step returns that is of the program's own type."""

    order: int
    lines: tuple[str, ...]


ran: list[str] = []


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    ran.clear()


@pytest.fixture(params=["memory", "file"])
def app(request: pytest.FixtureRequest, tmp_path: Path) -> Flowrra:
    return make_app("memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/jobs.db")


async def charge(order: int) -> Receipt:
    ran.append(f"charge {order}")
    return Receipt(order, ("a", "b"))


def ship(receipt: Receipt) -> str:
    ran.append(f"ship {receipt.order}")
    return f"shipped {receipt!r}"


async def result(app: Flowrra, task_id: str) -> TaskResult[Any]:
    return await within(app.wait_for_result(task_id))


async def test_a_step_that_is_done_is_not_done_again(app: Flowrra) -> None:
    @app.task(retry_delay=0, max_retries=2)
    async def order(number: int) -> str:
        job = current_job()
        receipt = await job.step("charge", charge, number)
        assert isinstance(receipt, Receipt)
        if job.attempt == 1:
            raise ConnectionError("before it was shipped")
        shipped = await job.step("ship", ship, receipt)
        if job.attempt == 2:
            raise ConnectionError("before the mail")
        return shipped

    async with app:
        task_id = await order.submit(7)
        ended = await result(app, task_id)
        job = await app.get_job(task_id)
    assert (ended.result, ended.attempts) == ("shipped Receipt(order=7, lines=('a', 'b'))", 3)
    assert ran == ["charge 7", "ship 7"]
    assert [step.name for step in job.steps] == ["charge", "ship"]
    assert all(step.started <= step.ended for step in job.steps)


async def test_plain_tasks_have_steps_too(app: Flowrra) -> None:
    @app.task(retry_delay=0)
    def order() -> str:
        job = current_job()
        receipt = job.step_sync("charge", Receipt, 7, lines=("a",))
        shipped = [job.step_sync(f"ship {number}", ship, receipt) for number in range(3)]
        if job.attempt == 1:
            raise ConnectionError
        return shipped[-1]

    async with app:
        assert (await result(app, await order.submit())).result == "shipped Receipt(order=7, lines=('a',))"
    assert ran == ["ship 7"] * 3


async def test_steps_may_run_at_once(app: Flowrra) -> None:
    @app.task(retry_delay=0)
    async def order() -> list[int]:
        receipts = await asyncio.gather(*[current_job().step(f"charge {n}", charge, n) for n in range(10)])
        if current_job().attempt == 1:
            raise ConnectionError
        return [receipt.order for receipt in receipts]

    async with app:
        assert (await result(app, await order.submit())).result == list(range(10))
    assert sorted(ran) == sorted(f"charge {n}" for n in range(10))


async def test_a_step_that_fails_is_done_again(app: Flowrra) -> None:
    async def flaky() -> int:
        ran.append("flaky")
        if len(ran) < 3:
            raise ConnectionError("not yet")
        return len(ran)

    @app.task(retry_delay=0)
    async def order() -> int:
        return await current_job().step("flaky", flaky)

    async with app:
        assert (await result(app, await order.submit())).result == 3


async def test_a_name_is_used_once_in_an_attempt(app: Flowrra) -> None:
    @app.task(max_retries=0)
    async def order() -> None:
        for number in range(2):
            await current_job().step("charge", charge, number)

    async with app:
        ended = await result(app, await order.submit())
    assert ended.status is TaskStatus.FAILED
    assert "the step 'charge' was run in this attempt: give each its own name" in (ended.error or "")
    assert ran == ["charge 0"]


async def test_what_a_step_returns_must_be_kept(app: Flowrra) -> None:
    @app.task
    async def order() -> None:
        await current_job().step("odd", object)

    async with app:
        ended = await result(app, await order.submit())
    assert (ended.status, ended.attempts) == (TaskStatus.FAILED, 1)
    assert "the result of the step 'odd'" in (ended.error or "")


async def test_a_step_that_is_not_asked_for_any_more_is_told(app: Flowrra, caplog: pytest.LogCaptureFixture) -> None:
    @app.task(retry_delay=0)
    async def order() -> None:
        await current_job().step(f"charge in attempt {current_job().attempt}", charge, 1)
        if current_job().attempt == 1:
            raise ConnectionError

    with caplog.at_level(logging.WARNING, "flowrra"):
        async with app:
            await result(app, await order.submit())
    assert "did not use its earlier steps 'charge in attempt 1': has the task changed?" in caplog.text


async def test_a_job_sleeps_between_steps(app: Flowrra) -> None:
    @app.task(max_retries=0)
    async def order() -> str:
        job = current_job()
        receipt = await job.step("charge", charge, 7)
        await job.sleep(0.2, name="until it is paid")
        return await job.step("ship", ship, receipt)

    async with app:
        task_id = await order.submit()
        assert (await result(app, task_id)).is_success
        job = await app.get_job(task_id)
    assert ran == ["charge 7", "ship 7"]
    assert [(attempt.outcome, attempt.error) for attempt in job.attempts] == [
        ("snooze", "it sleeps (until it is paid)"), ("success", None),
    ]  # fmt: skip
    assert job.failures == 0


async def test_a_year_of_sleep() -> None:
    clock = ManualClock()
    app = make_app(clock=clock)
    reached = asyncio.Event()

    @app.task
    async def order() -> str:
        reached.set()
        await current_job().sleep(days=365)
        return "awake"

    async with app:
        task_id = await order.submit()
        await within(reached.wait())
        await app.broker.counts()
        clock.advance(364 * 86_400.0)
        job: Job = await app.get_job(task_id)
        assert job.status in (TaskStatus.SCHEDULED, TaskStatus.RUNNING)
        clock.advance(2 * 86_400.0)
        assert (await result(app, task_id)).result == "awake"


async def test_a_cpu_bound_task_has_steps_that_outlive_its_process(app: Flowrra, tmp_path: Path) -> None:
    path = tmp_path / "lines"
    async with app:
        task_id = await app.task(cpu_bound=True, retry_delay=0)(cpu_work.steps).submit(str(path))
        assert (await result(app, task_id)).result == f"one 3 {task_id}:key"
        assert [step.name for step in (await app.get_job(task_id)).steps] == ["one", "rows", "key"]
    assert path.read_text().split() == ["one", "a", "b"]


async def test_a_cpu_bound_coroutine_has_steps_sleeps_and_waits_for_events(app: Flowrra, tmp_path: Path) -> None:
    path = tmp_path / "lines"
    async with app:
        task_id = await app.task(cpu_bound=True, max_retries=0)(cpu_work.waits).submit(str(path))
        await eventually(lambda: is_told(app, task_id, "waits for the event go"))
        await app.emit("go", 7)
        ended = await result(app, task_id)
    assert (ended.result, path.read_text().split()) == ("['one', 'two'] 7", ["one", "two"])


async def is_told(app: Flowrra, task_id: str, what: str) -> bool:
    return what in ((await app.get_job(task_id)).error or "")


async def test_a_step_of_a_cpu_bound_task_that_is_used_twice_says_so(app: Flowrra) -> None:
    async with app:
        ended = await result(app, await app.task(cpu_bound=True, max_retries=0)(cpu_work.same_step).submit())
    assert "the step 'one' was run in this attempt" in (ended.error or "")


async def test_a_step_of_a_plain_task_does_not_block_the_loop(app: Flowrra) -> None:
    @app.task(max_retries=0)
    async def order() -> None:
        current_job().step_sync("ship", ship, Receipt(1, ()))

    async with app:
        assert "await step() instead" in ((await result(app, await order.submit())).error or "")


async def test_a_task_with_steps_is_called_directly() -> None:
    with job_context() as job:
        assert await current_job().step("charge", charge, 1) == Receipt(1, ("a", "b"))
        with pytest.raises(FlowrraError, match="was run in this attempt"):
            await current_job().step("charge", charge, 1)
        with pytest.raises(Snooze, match="it sleeps"):
            await current_job().sleep(minutes=1)
    assert [step.name for step in job.job.steps] == ["charge", "sleep 1"]


async def test_sleeps_without_names_are_counted(app: Flowrra) -> None:
    @app.task(max_retries=0)
    async def order() -> None:
        await current_job().sleep(0.01)
        await current_job().sleep(dt.timedelta(seconds=0.01))

    async with app:
        task_id = await order.submit()
        assert (await result(app, task_id)).is_success
        assert [step.name for step in (await app.get_job(task_id)).steps] == ["sleep 1", "sleep 2"]


@pytest.mark.parametrize("wrong", [-1, float("nan"), "3"])
async def test_a_sleep_of_no_length_of_time_is_refused(wrong: Any) -> None:
    with job_context() as job, pytest.raises(FlowrraError, match="delay must be"):
        await current_job().sleep(wrong)
    assert job.job.steps == ()


# ---------------------------------------------------------------------------
# Retries of a step, and its key
# ---------------------------------------------------------------------------


async def test_a_step_is_tried_again_inside_of_the_attempt(app: Flowrra) -> None:
    async def fetch(url: str) -> str:
        ran.append(url)
        if len(ran) < 3:
            raise ConnectionError("not yet")
        return url

    @app.task(max_retries=0)
    async def order() -> str:
        return await current_job().with_retries(2, retry_delay=0).step("fetch", fetch, "https://example.org")

    async with app:
        ended = await result(app, await order.submit())
    assert (ended.result, ended.attempts, len(ran)) == ("https://example.org", 1, 3)


async def test_a_plain_step_is_tried_again_too(app: Flowrra) -> None:
    def fetch() -> int:
        ran.append("fetch")
        if len(ran) < 2:
            raise ConnectionError("not yet")
        return len(ran)

    @app.task(max_retries=0)
    def order() -> int:
        return current_job().with_retries(1, retry_delay=0).step_sync("fetch", fetch)

    async with app:
        assert (await result(app, await order.submit())).result == 2


@pytest.mark.parametrize(
    ("error", "tries"),
    [(ConnectionError("no"), 3), (KeyError("no"), 1), (Snooze(60), 1), (Cancel("no"), 1), (Retry("no", delay=0), 3)],
)
async def test_what_is_not_to_be_retried_leaves_the_step(error: Exception, tries: int) -> None:
    def fail() -> None:
        ran.append("fail")
        raise error

    with job_context() as job, pytest.raises(type(error)):
        await job.with_retries(2, retry_delay=0, no_retry_on=KeyError).step("fail", fail)
    assert len(ran) == tries


async def test_the_key_of_a_step_is_the_same_each_time_it_runs(app: Flowrra) -> None:
    def charged() -> str:
        ran.append(current_job().step_key)
        if len(ran) == 1:
            raise ConnectionError("no answer")
        return ran[-1]

    async def shipped() -> str:
        await asyncio.sleep(0)
        return current_job().step_key

    @app.task(retry_delay=0)
    async def order() -> list[str]:
        job = current_job()
        both = await asyncio.gather(job.step("charge", charged), job.step("ship", shipped))
        with pytest.raises(FlowrraError, match="outside of a step"):
            job.step_key  # noqa: B018
        return [*both]

    async with app:
        task_id = await order.submit()
        assert (await result(app, task_id)).result == [f"{task_id}:charge", f"{task_id}:ship"]
    assert ran == [f"{task_id}:charge"] * 2


# ---------------------------------------------------------------------------
# Cursors
# ---------------------------------------------------------------------------


async def numbers(first: int, last: int) -> AsyncIterator[int]:
    for number in range(first, last):
        yield number


@pytest.fixture
def save_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowrra._SAVE_EVERY", 0.0)


@pytest.mark.usefixtures("save_always")
@pytest.mark.parametrize("kind", ["list", "async", "function", "async function"])
async def test_rows_go_on_after_the_last_finished_one(app: Flowrra, kind: str) -> None:
    sources: dict[str, Any] = {
        "list": range(10, 20),
        "async": numbers(10, 20),
        "function": lambda last: range(10 if last is None else last + 1, 20),
        "async function": lambda last: numbers(10 if last is None else last + 1, 20),
    }

    @app.task(retry_delay=0, max_retries=5)
    async def work() -> int:
        rows = sources[kind] if kind != "async" else numbers(10, 20)
        async for row in current_job().resume("rows", rows, key=lambda row: row):
            ran.append(str(row))
            if row % 4 == 3 and ran.count(str(row)) == 1:
                raise ConnectionError("in the middle of this row")
        return current_job().attempt

    async with app:
        task_id = await work.submit()
        assert (await result(app, task_id)).result == 4
        assert [step.name for step in (await app.get_job(task_id)).steps] == ["rows"]
    assert [int(row) for row in ran] == [10, 11, 11, 12, 13, 14, 15, 15, 16, 17, 18, 19, 19]


@pytest.mark.usefixtures("save_always")
async def test_plain_tasks_resume_too_and_rows_without_keys_are_counted(app: Flowrra) -> None:
    @app.task(retry_delay=0)
    def work() -> None:
        for row in current_job().resume_sync("rows", ["a", "b", "c"]):
            ran.append(row)
            if row == "b" and ran.count("b") == 1:
                raise ConnectionError("in the middle of this row")

    async with app:
        assert (await result(app, await work.submit())).is_success
    assert ran == ["a", "b", "b", "c"]


async def test_the_place_is_stored_at_the_end_and_not_after_each_row() -> None:
    with job_context() as job:
        async for row in job.resume("rows", range(1_000)):
            assert len(job.job.steps) == 0, row
        assert [(step.name, step.text) for step in job.job.steps] == [("rows", "1000")]


@pytest.mark.usefixtures("save_always")
async def test_a_last_row_that_is_gone_is_an_error_and_not_an_empty_run(app: Flowrra) -> None:
    rows = [1, 2, 3]

    @app.task(retry_delay=0, max_retries=1)
    async def work() -> None:
        async for row in current_job().resume("rows", list(rows), key=lambda row: row):
            if row == 2:
                rows.remove(1)
                raise ConnectionError("and another one deletes a row")

    async with app:
        ended = await result(app, await work.submit())
    assert "the last finished row, 1, is not among the rows any more" in (ended.error or "")


async def test_a_function_of_rows_needs_keys() -> None:
    with job_context() as job, pytest.raises(ConfigError, match="needs key="):
        async for _ in job.resume("rows", lambda last: []):
            pass
