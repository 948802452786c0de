"""What a user may write. `mypy --strict` and pyright must accept every line."""

from typing import assert_type

from flowrra import Flowrra, Task, TaskId, TaskResult, current_job, result_of

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
