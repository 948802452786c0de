"""Batch tasks: one call for many jobs, and for each job its own result, retries and history."""

import asyncio
import dataclasses
import threading
from pathlib import Path
from typing import Any

import pytest

from flowrra import ConfigError, Flowrra, FlowrraError, TaskStatus, current_job
from tests.support.apps import eventually, make_app, within


@dataclasses.dataclass
class Row:
    """A row of a type of the program's own."""

    number: int


calls: list[list[Any]] = []


@pytest.fixture(autouse=True)
def nothing_called() -> None:
    calls.clear()


@pytest.fixture(params=["memory", "file"])
def app(request: pytest.FixtureRequest, tmp_path: Path) -> Flowrra:
    return make_app("memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/jobs.db")


async def results(app: Flowrra, ids: list[Any]) -> list[Any]:
    return [(await within(app.wait_for_result(task_id))).result for task_id in ids]


async def number_of(app: Flowrra, status: TaskStatus, number: int) -> bool:
    return len(await app.jobs(status=status)) == number


async def test_a_call_gets_up_to_so_many_jobs_and_each_its_own_result(app: Flowrra) -> None:
    @app.task(batch=100, linger=0.5)
    async def double(rows: list[int]) -> list[int]:
        calls.append(rows)
        return [row * 2 for row in rows]

    async with app.client():
        ids = await app.submit_many(double, [(number,) for number in range(250)])
    async with app:
        assert await results(app, ids) == [number * 2 for number in range(250)]
    assert [len(rows) for rows in calls[:2]] == [100, 100]
    assert [row for rows in calls for row in rows] == list(range(250))


async def test_a_batch_that_does_not_fill_starts_after_its_linger(app: Flowrra) -> None:
    @app.task(batch=100, linger=0.05)
    def store(rows: list[Row]) -> None:
        calls.append([rows, threading.current_thread() is threading.main_thread()])

    async with app:
        assert await results(app, await app.submit_many(store, [(Row(1),), (Row(2),)])) == [None, None]
    assert calls == [[[Row(1), Row(2)], False]]


async def test_an_exception_in_the_list_fails_its_job_alone(app: Flowrra) -> None:
    @app.task(batch=3, retry_delay=0, linger=0.02)
    async def store(rows: list[int]) -> list[int | ValueError]:
        calls.append(rows)
        odd = [row for row in rows if row % 2]
        return [ValueError(f"{row} is odd") if odd and len(calls) < 3 and row % 2 else row for row in rows]

    async with app:
        ids = await app.submit_many(store, [(0,), (1,), (2,)])
        assert await results(app, ids) == [0, 1, 2]
        jobs = [await app.get_job(task_id) for task_id in ids]
    assert calls == [[0, 1, 2], [1], [1]]
    assert [job.failures for job in jobs] == [0, 2, 0]
    assert [attempt.error for attempt in jobs[1].attempts][:2] == ["ValueError: 1 is odd"] * 2


async def test_a_call_that_raises_fails_each_job_and_each_is_tried_again(app: Flowrra) -> None:
    @app.task(batch=5, retry_delay=0, linger=0.02)
    async def store(rows: list[int]) -> None:
        calls.append(rows)
        if len(calls) == 1:
            raise ConnectionError("no database")

    async with app:
        ids = await app.submit_many(store, [(number,) for number in range(5)])
        assert await results(app, ids) == [None] * 5
        assert {(await app.get_job(task_id)).failures for task_id in ids} == {1}
    assert sorted(row for rows in calls[1:] for row in rows) == list(range(5))


@pytest.mark.parametrize("returned", [[1], [1, 2, 3], "ab", 7])
async def test_a_list_of_another_length_fails_all_of_them_at_once(app: Flowrra, returned: Any) -> None:
    @app.task(batch=2)
    async def store(rows: list[int]) -> Any:
        calls.append(rows)
        return returned

    async with app:
        ids = await app.submit_many(store, [(1,), (2,)])
        ended = [await within(app.wait_for_result(task_id)) for task_id in ids]
    assert {one.status for one in ended} == {TaskStatus.FAILED}
    assert "must return a list of 2 results, one for each job, or None" in (ended[0].error or "")
    assert len(calls) == 1, "another attempt would return the same"


async def test_while_jobs_are_gathered_others_use_their_slots(tmp_path: Path) -> None:
    app = make_app(f"sqlite:///{tmp_path}/jobs.db", queues={"default": 1})

    @app.task(batch=10, linger=60)
    async def store(rows: list[int]) -> None:
        calls.append(rows)

    @app.task
    async def other() -> str:
        return "ran"

    async with app:
        ids = await app.submit_many(store, [(1,), (2,)])
        assert await results(app, [await other.submit()]) == ["ran"]
        assert calls == []
        await app.submit_many(store, [(number,) for number in range(3, 11)])
        assert await results(app, ids) == [None, None]
    assert calls == [list(range(1, 11))]


async def test_a_running_batch_takes_one_slot(app: Flowrra) -> None:
    app.config.executor = dataclasses.replace(app.config.executor, queues={"default": 2})
    running, most, may_end = 0, 0, asyncio.Event()

    @app.task(batch=5, linger=0)
    async def store(rows: list[int]) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await may_end.wait()
        running -= 1

    async with app:
        ids = await app.submit_many(store, [(number,) for number in range(40)])
        await eventually(lambda: running == 2)
        await asyncio.sleep(0.05)
        assert app.worker is not None
        held = len(await app.jobs(status="running"))
        may_end.set()
        assert await results(app, ids) == [None] * 40
    assert (most, held) == (2, 10), "no more jobs are claimed than can run"


async def test_a_cancelled_job_does_not_end_the_call_of_the_others(app: Flowrra) -> None:
    begun, may_end = asyncio.Event(), asyncio.Event()

    @app.task(batch=2)
    async def store(rows: list[int]) -> list[int]:
        begun.set()
        await may_end.wait()
        return rows

    async with app:
        first, second = await app.submit_many(store, [(1,), (2,)])
        await within(begun.wait())
        await app.cancel(first)
        assert (await within(app.wait_for_result(first))).status is TaskStatus.CANCELLED
        third = await store.submit(3)
        may_end.set()
        assert await results(app, [third]) == [3]
        assert await results(app, [second]) == [2]


async def test_a_job_that_is_cancelled_while_it_waits_for_others_leaves_their_batch(app: Flowrra) -> None:
    @app.task(batch=2, linger=60)
    async def store(rows: list[int]) -> list[int]:
        calls.append(rows)
        return rows

    async with app:
        for number in (1, 2):
            task_id = await store.submit(number)
            await eventually(lambda: number_of(app, TaskStatus.RUNNING, 1))
            await app.cancel(task_id)
            assert (await within(app.wait_for_result(task_id))).status is TaskStatus.CANCELLED
        assert await results(app, await app.submit_many(store, [(3,), (4,)])) == [3, 4]
    assert calls == [[3, 4]]


async def test_a_call_that_nobody_waits_for_any_more_is_cancelled(app: Flowrra) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    @app.task(batch=2)
    async def store(rows: list[int]) -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    async with app:
        ids = await app.submit_many(store, [(1,), (2,)])
        await within(begun.wait())
        for task_id in ids:
            await app.cancel(task_id)
        await within(ended.wait())


async def test_a_stop_does_not_wait_for_a_batch_to_fill(app: Flowrra) -> None:
    @app.task(batch=100, linger=60)
    async def store(rows: list[int]) -> None:
        calls.append(rows)

    await app.start()
    await app.submit_many(store, [(1,), (2,)])

    await eventually(lambda: number_of(app, TaskStatus.RUNNING, 2))
    await within(app.stop())
    assert calls == [[1, 2]]


async def test_a_timeout_counts_for_the_call(app: Flowrra) -> None:
    @app.task(batch=2, timeout=0.05, max_retries=0)
    async def store(rows: list[int]) -> None:
        await asyncio.sleep(60)

    async with app:
        ids = await app.submit_many(store, [(1,), (2,)])
        ended = [await within(app.wait_for_result(task_id)) for task_id in ids]
    assert {one.error for one in ended} == {"TaskTimeoutError: the attempt took longer than its timeout of 0.05 s"}


async def test_one_job_has_no_timeout_of_its_own(app: Flowrra) -> None:
    task: Any = app.task(batch=2, name="store")(lambda rows: None)
    async with app.client():
        for submit in (lambda: task.options(timeout=5).submit(1), lambda: app.submit(task, 1, timeout=5)):
            with pytest.raises(ConfigError, match="timeout=5 of one job: a batch has that of its task store"):
                await submit()
        assert await app.submit(task, 1, timeout=None)


async def test_inside_of_a_batch_there_is_no_current_job(app: Flowrra) -> None:
    @app.task(batch=1, max_retries=0)
    async def store(rows: list[int]) -> None:
        current_job()

    async with app:
        ended = await within(app.wait_for_result(await store.submit(1)))
    assert ended.error == "FlowrraError: current_job() was called outside of a job"


async def test_a_job_is_checked_against_an_item_of_the_list(app: Flowrra) -> None:
    @app.task(batch=10)
    async def store(rows: list[Row]) -> list[Row]:
        return rows

    with pytest.raises(FlowrraError, match=r"rows is \[\], where|rows is a list, where|argument of .*rows"):
        await app.submit(store, [Row(1)])  # type: ignore[call-overload]  # the list is made of many jobs
    with pytest.raises(TypeError, match="missing a required argument: 'rows'"):
        await app.submit(store)  # type: ignore[call-overload]
    async with app:
        assert await results(app, [await app.submit(store, Row(5))]) == [Row(5)]


def test_what_cannot_be_a_batch_is_refused_at_once(app: Flowrra) -> None:
    def none() -> None: ...
    def two(rows: list[int], more: int) -> None: ...
    def one(row: int) -> None: ...
    def fine(rows: list[int]) -> None: ...

    with pytest.raises(ConfigError, match="must take one argument, the list of its jobs' arguments"):
        app.task(batch=2)(none)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="must take one argument"):
        app.task(batch=2)(two)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="gets a list, but 'row' is a"):
        app.task(batch=2)(one)  # type: ignore[arg-type]
    for wrong in (0, -1, True, "2"):
        with pytest.raises(ConfigError, match="batch must be"):
            app.task(batch=wrong)(fine)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="linger must be at least 0 s"):
        app.task(batch=2, linger=-1)(fine)
    with pytest.raises(ConfigError, match="batch= and cpu_bound=True cannot be combined"):
        app.task(batch=2, cpu_bound=True)(fine)  # type: ignore[call-overload]
