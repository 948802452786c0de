"""Jobs that get the results of others: chains, fan-ins, and parents that may end without success."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from flowrra import (
    ConfigError,
    Flowrra,
    FlowrraError,
    TaskId,
    TaskNotFoundError,
    TaskResult,
    TaskStatus,
    result_of,
    results_of,
)
from tests.support.apps import eventually, make_app, within


@pytest.fixture(params=["memory", "file"])
def app(request: pytest.FixtureRequest, tmp_path: Path) -> Flowrra:
    app = make_app("memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/jobs.db")

    @app.task(name="double")
    async def double(number: int) -> int:
        return number * 2

    @app.task(name="fail", max_retries=0)
    def fail(number: int) -> int:
        raise ValueError(f"no {number}")

    @app.task(name="count")
    async def count(results: list[TaskResult[int]]) -> Any:
        return [(one.status, one.result, one.error) for one in results]

    return app


def total_of(numbers: list[int]) -> int:
    return sum(numbers)


async def result(app: Flowrra, task_id: str) -> TaskResult[Any]:
    return await within(app.wait_for_result(task_id))


async def test_a_chain_hands_each_result_on(app: Flowrra) -> None:
    double = app.registry["double"]
    async with app:
        ids = await app.submit_chain([double, double.options(priority=-1), double], 5)
        assert [(await result(app, task_id)).result for task_id in ids] == [10, 20, 40]


async def test_a_chain_is_submitted_whole_or_not_at_all(app: Flowrra) -> None:
    double, other = app.registry["double"], make_app().task(name="other")(lambda: None)
    async with app.client():
        with pytest.raises(TaskNotFoundError, match="belongs to another app"):
            await app.submit_chain([double, other], 5)
        with pytest.raises(TypeError, match="missing a required argument"):
            await app.submit_chain([double, double])
        with pytest.raises(ConfigError, match="one task at least"):
            await app.submit_chain([])
        assert await app.jobs() == []


def test_plain_code_submits_chains_too(app: Flowrra) -> None:
    double = app.registry["double"]
    assert len(app.sync.submit_chain([double, double], number=1)) == 2
    app.sync.close()


async def test_a_chain_that_breaks_cancels_what_follows(app: Flowrra) -> None:
    double, fail = app.registry["double"], app.registry["fail"]
    async with app:
        ids = await app.submit_chain([double, fail, double, double], 5)
        states = [(await result(app, task_id)).status for task_id in ids]
    assert states == [TaskStatus.SUCCESS, TaskStatus.FAILED, TaskStatus.CANCELLED, TaskStatus.CANCELLED]


async def test_one_job_gets_the_results_of_many(app: Flowrra) -> None:
    double, total = app.registry["double"], app.task(name="sum")(total_of)
    async with app:
        ids: list[TaskId[int]] = await app.submit_many(double, [(number,) for number in range(20)])
        assert (await result(app, await total.submit(results_of(ids)))).result == 380


async def test_a_job_that_tolerates_failures_gets_what_became_of_each(app: Flowrra) -> None:
    double, fail, count = (app.registry[name] for name in ("double", "fail", "count"))
    async with app:
        ids = [await double.submit(1), await fail.submit(2), await double.options(delay=60).submit(3)]
        after = await count.submit(results_of(ids, failed="pass"))
        mixed = await count.submit([result_of(ids[1], failed="pass"), result_of(ids[1])])
        await app.cancel(ids[2])
        assert (await result(app, after)).result == [
            ("success", 2, None), ("failed", None, "ValueError: no 2"), ("cancelled", None, "it was cancelled"),
        ]  # fmt: skip
        assert (await result(app, mixed)).status is TaskStatus.CANCELLED
        late = await count.submit([result_of(ids[1], failed="pass")])
        assert (await result(app, late)).result == [("failed", None, "ValueError: no 2")]


async def test_a_tolerant_placeholder_is_refused_where_others_are(app: Flowrra) -> None:
    @app.task(name="returns", max_retries=0)
    async def returns() -> Any:
        return result_of(TaskId("a"), failed="pass")

    async with app:
        outcome = await result(app, await returns.submit())
        assert "contains result_of(), which is allowed in arguments only" in (outcome.error or "")
    with pytest.raises(ConfigError, match="failed must be 'cancel' or 'pass', not 'ignore'"):
        result_of(TaskId("a"), failed="ignore")  # type: ignore[call-overload]
    assert repr(result_of(TaskId("a"), failed="pass")) == "result_of('a', failed='pass')"


# ---------------------------------------------------------------------------
# Jobs that take the place of others
# ---------------------------------------------------------------------------


async def test_the_last_of_many_submits_counts(app: Flowrra) -> None:
    double = app.registry["double"]
    async with app.client():
        latest = double.options(unique="k", on_conflict="replace")
        ids = {await app.submit(latest, number) for number in range(5)}
        (task_id,) = ids
        async with app:
            assert (await result(app, task_id)).result == 8


async def test_a_burst_of_submits_runs_once_after_it(app: Flowrra) -> None:
    double = app.registry["double"]
    quiet = double.options(unique="k", on_conflict="postpone", delay=60, max_wait=90)
    async with app.client():
        task_id = await quiet.submit(1)
        first = await app.get_job(task_id)
        assert await double.options(unique="k", on_conflict="postpone", delay=600, max_wait=90).submit(2) == task_id
        last = await app.get_job(task_id)
    assert (last.due, last.status) == (first.submitted + 90, TaskStatus.SCHEDULED)


async def test_a_requeue_lets_no_two_jobs_of_a_key_run(app: Flowrra) -> None:
    begin = asyncio.Event()

    @app.task(max_retries=0)
    async def work(number: int) -> int:
        await begin.wait()
        if number < 0:
            raise ValueError(number)
        return number

    latest = work.options(unique="k", on_conflict="replace")

    async def runs(task_id: str) -> bool:
        return (await app.get_job(task_id)).status is TaskStatus.RUNNING

    async with app:
        first = await latest.submit(-1)
        await eventually(lambda: runs(first))
        second = await latest.submit(2)
        assert await app.cancel(second)
        assert await app.requeue(second)  # it waits for the first one again
        assert (await app.get_job(second)).status is TaskStatus.BLOCKED
        begin.set()
        assert (await result(app, first)).status is TaskStatus.FAILED
        begin.clear()
        await eventually(lambda: runs(second))
        assert not await app.requeue(first)
        third = await latest.submit(3)
        assert (await app.get_job(third)).parents == (second,)
        begin.set()
        assert [(await result(app, task_id)).result for task_id in (second, third)] == [2, 3]
        assert await app.requeue(first)


async def test_jobs_of_a_key_that_are_being_moved_are_neither_replaced_nor_followed(app: Flowrra) -> None:
    double = app.registry["double"]
    latest = double.options(unique="k", on_conflict="replace")
    async with app.client():
        first = await latest.submit(1)
        await app.broker.change([first], "hold", now=app.now(), by="a move")
        second = await latest.submit(2)
        await app.broker.change([second], "hold", now=app.now(), by="a move")
        with pytest.raises(FlowrraError, match=rf"'k' is taken by {first} \(double\) and {second} \(double\): submit"):
            await latest.submit(3)
        assert await double.options(unique="k").submit(3) in (first, second)


async def test_a_job_takes_no_arguments_of_another_task(app: Flowrra) -> None:
    double, fail = (app.registry[name].options(unique="k", on_conflict="replace") for name in ("double", "fail"))
    async with app.client():
        first = await double.submit(1)
        with pytest.raises(FlowrraError, match=rf"'k' is taken by {first} \(double\): .* or give fail other keys"):
            await fail.submit(2)
        assert await double.submit(3) == first
        async with app:
            assert (await result(app, first)).result == 6
        assert await fail.submit(4) != first


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"on_conflict": "replace"}, "needs unique="),
        ({"on_conflict": "postpone", "unique": "k"}, "needs delay= or run_at="),
        ({"on_conflict": "merge", "unique": "k"}, "must be 'keep', 'replace' or 'postpone', not 'merge'"),
        ({"on_conflict": "replace", "unique": "k", "max_wait": 5}, "goes with on_conflict='postpone'"),
        ({"max_wait": 5}, "goes with on_conflict='postpone'"),
        ({"on_conflict": "postpone", "unique": "k", "delay": 1, "max_wait": -1}, "max_wait must be at least 0 s"),
    ],
)
def test_conflicts_that_cannot_work_are_refused(app: Flowrra, options: Any, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        app.registry["double"].options(**options)


async def test_what_waits_for_others_takes_no_place(app: Flowrra) -> None:
    double = app.registry["double"]
    async with app.client():
        parent = await double.submit(1)
        with pytest.raises(ConfigError, match=r"cannot be given with result_of\(\)"):
            await double.options(unique="k", on_conflict="replace").submit(result_of(parent))
