"""What a user may write. `mypy --strict` and pyright must accept every line."""

import datetime as dt
from typing import assert_type

from flowrra import Flowrra, Schedule, Task, TaskId, TaskResult, current_job, result_of

app = Flowrra.from_urls()


@app.task
async def add(left: int, right: int) -> int:
    return left + right


@app.task
def describe(name: str, *, loud: bool = False) -> str:
    return name.upper() if loud else name


@app.task(max_retries=5)
async def fetch(url: str) -> bytes:
    return url.encode()


@app.task(max_retries=0, cpu_bound=True)
def total(numbers: list[int]) -> int:
    return sum(numbers)


@app.task
async def forget(key: str) -> None:
    job = current_job()
    job.progress(job.attempt, 3, f"{job.id}: {key}")


async def the_decorator_keeps_the_signature() -> None:
    assert_type(await add.submit(1, right=2), TaskId[int])
    assert_type(await describe.submit("a"), TaskId[str])
    assert_type(await fetch.submit("https://example.org"), TaskId[bytes])
    assert_type(await total.submit([1, 2]), TaskId[int])
    assert_type(await forget.submit("a"), TaskId[None])


async def the_app_submits() -> None:
    assert_type(await app.submit(add, 1, 2), TaskId[int])
    assert_type(await app.submit(add, 1, right=2), TaskId[int])
    assert_type(await app.submit(describe, "a", loud=True), TaskId[str])
    assert_type(await app.submit(add, 1, 2, priority=5), TaskId[int])
    assert_type(await app.submit(describe, "a", loud=True, priority=5), TaskId[str])
    assert_type(await app.submit_many(add, [(1, 2), (3, 4)]), list[TaskId[int]])


async def options_keep_the_signature() -> None:
    assert_type(await add.options(priority=5, delay=1.5).submit(1, 2), TaskId[int])
    assert_type(await describe.options(delay=1.0).submit("a", loud=True), TaskId[str])


def plain_code_submits() -> None:
    assert_type(app.sync.submit(add, 1, 2), TaskId[int])
    assert_type(app.sync.submit(add.options(delay=1.5), 1, right=2), TaskId[int])
    assert_type(app.sync.submit_in(None, describe, "a", loud=True), TaskId[str])


async def results_have_the_type_of_the_task() -> None:
    result = await app.wait_for_result(await app.submit(add, 1, 2), timeout=5)
    assert_type(result, TaskResult[int])
    number: int = result.result
    print(number, result.status, result.is_success)


async def results_are_arguments() -> None:
    parent = await add.submit(1, 2)
    assert_type(result_of(parent), int)
    assert_type(await add.submit(result_of(parent), 1), TaskId[int])
    assert_type(await app.submit(add, result_of(parent), result_of(parent)), TaskId[int])


async def passes_a_task_on(task: Task[[int, int], int]) -> str:
    task_id: str = await task.submit(1, 2)
    return task_id


async def hands_over_a_task() -> None:
    await passes_a_task_on(add)


@app.cron("0 9 * * mon-fri", tz="Europe/Riga", args=("report",), priority=-1, overlap="skip")
@app.every(dt.timedelta(hours=1), kwargs={"name": "a", "loud": True}, jitter=30, misfire="skip")
@app.task(max_retries=1)
def scheduled(name: str, *, loud: bool = False) -> str:
    return name


async def schedules_keep_the_type_of_the_task() -> None:
    assert_type(await scheduled.submit("a", loud=True), TaskId[str])
    await passes_a_task_on(app.every(30)(add))


async def schedules_are_stored() -> None:
    scheduler = app.create_scheduler("memory://")
    made = await scheduler.schedule_cron(add, "0 9 * * *", (1, 2), tz=dt.UTC, description="sums", max_retries=0)
    await scheduler.schedule_interval("shop.add", 30, kwargs={"left": 1, "right": 2}, task_id="mine", queue="slow")
    await scheduler.schedule_once(add, dt.datetime.now(dt.UTC), (1, 2), misfire="all", enabled=False)
    assert_type(made, str)
    assert_type(await scheduler.update(made, rule="0 10 * * *", args=(3, 4), priority=None), Schedule)
    assert_type(await scheduler.list_scheduled_tasks(), list[Schedule])
    assert_type(await scheduler.get_scheduled_task(made), Schedule | None)
    await scheduler.disable_task(made)
    await scheduler.unschedule(made)
