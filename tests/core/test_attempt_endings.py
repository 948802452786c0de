"""What an attempt comes to that ends in an odd way, and how that is told."""

import asyncio
import datetime as dt
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from flowrra import (
    Backend,
    BrokerError,
    ConfigError,
    Flowrra,
    Job,
    MemoryBroker,
    Outcome,
    ResultOf,
    Retry,
    TaskResult,
    TaskStatus,
    TaskTimeoutError,
    WorkerInfo,
    result_of,
)
from flowrra_extras.testing import ManualClock
from tests.support import cpu_work
from tests.support.apps import make_app, within

NEVER = dt.datetime.max  # noqa: DTZ901 (as people write it)


@pytest.fixture
def app() -> Flowrra:
    return make_app()


async def run(app: Flowrra, function: Any, *args: Any, **options: Any) -> TaskResult[Any]:
    task = app.task(retry_delay=0, **options)(function)
    return await within(app.wait_for_result(await task.submit(*args)))


# ---------------------------------------------------------------------------
# Another attempt, or none
# ---------------------------------------------------------------------------


async def test_a_cpu_bound_task_that_returns_what_cannot_be_kept_runs_once(app: Flowrra) -> None:
    async with app:
        result = await run(app, cpu_work.no_json, cpu_bound=True)
    assert (result.status, result.attempts) == (TaskStatus.FAILED, 1)
    assert "SerializationError: the result of tests.support.cpu_work.no_json" in (result.error or "")


async def test_a_cpu_bound_task_may_raise_a_retry_of_its_own(app: Flowrra) -> None:
    async with app:
        pid = (await run(app, cpu_work.pid, cpu_bound=True)).result
        result = await run(app, cpu_work.ask_again, cpu_bound=True, no_retry_on=(Exception,))
    assert result.result == (2, pid)  # its process has survived


async def test_the_time_out_of_a_wait_inside_a_task_is_an_exception_like_others(app: Flowrra) -> None:
    async def waits() -> Any:
        other = await app.registry["sleeps"].options(delay=60).submit()
        return await app.wait_for_result(other, timeout=0.001)

    async def sleeps() -> None:
        await asyncio.sleep(60)

    app.task(name="sleeps")(sleeps)
    async with app:
        assert (await run(app, waits, name="one", retry_on=(KeyError,))).attempts == 1
        assert (await run(app, waits, name="all", max_retries=1)).attempts == 2
        assert (await run(app, waits, name="none", no_retry_on=(TimeoutError,))).attempts == 1
        slow = await run(app, sleeps, name="slow", timeout=0.001, retry_on=(KeyError,), max_retries=1)
    assert slow.attempts == 2
    assert "the attempt took longer than its timeout of 0.001 s" in (slow.error or "")


class AwayBroker(MemoryBroker):
    """Its results cannot be read at first."""

    failures = 1

    async def get(self, task_ids: Sequence[str]) -> list[TaskResult[Any] | None]:
        if self.failures:
            self.failures -= 1
            raise BrokerError("away")
        return await super().get(task_ids)


async def test_a_store_that_is_away_costs_no_attempt_of_a_job_that_waits_for_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("flowrra._AWAY_DELAY", 0.01)
    app = make_app(broker=AwayBroker())

    @app.task(max_retries=0)
    async def echo(value: int) -> int:
        return value

    async with app:
        result = await within(app.wait_for_result(await echo.submit(result_of(await echo.submit(7)))))
    assert (result.result, result.attempts) == (7, 2)


async def test_who_stands_in_for_a_parent_gives_its_result(app: Flowrra) -> None:
    @app.task(name="echo")
    async def echo(*values: Any) -> Any:
        return values

    async with app:
        await app.broker.push([Job("holder", "echo", (7,), unique="key", due=app.now() + 0.05)], now=app.now())
        child = Job("child", "echo", (ResultOf("q"), ResultOf("p"), ResultOf("p")), parents=("q", "p"))
        await app.broker.push([Job("q", "echo"), Job("p", "echo", (8,), unique="key"), child], now=app.now())
        assert (await within(app.wait_for_result("child"))).result == ((), (7,), (7,))


@pytest.mark.parametrize("url", ["memory://", "sqlite:///{}/jobs.db"])
async def test_of_two_parents_behind_one_key_and_a_third_each_gives_its_own_result(url: str, tmp_path: Path) -> None:
    app = Flowrra.from_urls(url.format(tmp_path))

    @app.task(name="echo")
    async def echo(*values: Any) -> Any:
        return values

    async with app:
        await app.broker.push([Job("x", "echo", ("X",), unique="k", due=app.now() + 0.05)], now=app.now())
        one, two = Job("a", "echo", ("a",), unique="k"), Job("b", "echo", ("b",), unique="k")
        child = Job("child", "echo", (ResultOf("a"), ResultOf("b"), ResultOf("c")), parents=("a", "b", "c"))
        await app.broker.push([one, two, Job("c", "echo", ("c",)), child], now=app.now())
        assert (await within(app.wait_for_result("child"))).result == (("X",), ("X",), ("c",))


# ---------------------------------------------------------------------------
# Many parents
# ---------------------------------------------------------------------------


async def test_ten_thousand_parents_in_memory_take_no_longer_than_as_many_jobs() -> None:
    broker = MemoryBroker()
    ids = [f"j{n}" for n in range(10_000)]
    await broker.push([Job(task_id, "task") for task_id in ids], now=1.0)
    await broker.push([Job("child", "task", parents=tuple(ids), priority=1)], now=1.0)
    await broker.heartbeat(WorkerInfo("w", queues={"default": 1}), lease=1e6, now=1.0)
    began = time.process_time()
    while jobs := await broker.claim("default", limit=10, worker="w", now=1.0):
        await broker.settle([Outcome.succeed(job, 1) for job in jobs], now=1.0)
    (child,) = await broker.get(["child"])
    assert child is not None
    assert child.is_success
    assert time.process_time() - began < 3.0  # 0.1 s; 7 s and more if each end looks at all parents


# ---------------------------------------------------------------------------
# What is told
# ---------------------------------------------------------------------------


async def test_the_log_tells_the_length_of_an_attempt_from_the_wait_for_the_next(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = ManualClock()
    app = make_app(clock=clock)

    async def fails() -> None:
        clock.advance(2.5)
        if len(app.registry) < 99 and not caplog.text.count("retry in"):
            raise Retry("not yet", delay=0)

    with caplog.at_level(logging.INFO, "flowrra"):
        async with app:
            await run(app, fails)
    lines = [record.getMessage().partition("attempt ")[2] for record in caplog.records if "attempt" in record.message]
    assert lines == ["1: failure after 2.500 s, retry in 0.000 s: Retry: not yet", "2: success after 2.500 s"]


class SlowBackend(Backend):
    async def get(self, task_ids: Sequence[str]) -> list[TaskResult[Any] | None]:
        raise TimeoutError("the server of results did not answer")


async def test_a_time_out_of_a_backend_is_not_told_as_the_jobs() -> None:
    with pytest.raises(TimeoutError, match="the server of results did not answer") as caught:
        await SlowBackend().wait_for("a", 60.0)
    assert not isinstance(caught.value, TaskTimeoutError)


async def test_a_moment_at_the_end_of_the_calendar_can_be_shown(app: Flowrra) -> None:
    async def task() -> None: ...

    job = app.task(task)
    last = dt.datetime.max.replace(tzinfo=dt.UTC)
    async with app.client():
        for moment in (NEVER, last, last.replace(tzinfo=dt.timezone(dt.timedelta(hours=-12)))):
            found = await app.get_job(await job.options(run_at=moment).submit())
            assert found.due_at == last
            assert (await app.get_job(await job.options(expires=moment).submit())).expires == found.due
            assert found.status is TaskStatus.SCHEDULED
            assert "due in" in await app.explain(found.id)
        assert Job("a", "task", due=1e300).due_at == last
        assert Job("a", "task", due=-1e300).due_at == dt.datetime.min.replace(tzinfo=dt.UTC)
        for options in ({"delay": 1e12}, {"expires": 1e12}, {"delay": dt.timedelta.max}):
            with pytest.raises(ConfigError, match="lies beyond the year 9999"):
                await job.options(**options).submit()
        scheduler = app.create_scheduler("memory://")
        with pytest.raises(ConfigError, match="lies beyond the year 9999"):
            await scheduler.schedule_once(job, NEVER)
