"""What a user may write. `mypy --strict` and pyright must accept every line."""

import dataclasses
import datetime as dt
import enum
from typing import Literal, NamedTuple, TypedDict, assert_type

from flowrra import (
    Cancel,
    Flowrra,
    Job,
    Schedule,
    Snooze,
    Task,
    TaskId,
    TaskResult,
    TaskSet,
    current_job,
    result_of,
    results_of,
)

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


@app.task(max_retries=0, cpu_bound=True, executor="interpreter")
def total(numbers: list[int]) -> int:
    return sum(numbers)


@app.task(batch=100, linger=dt.timedelta(seconds=0.2), max_retries=5)
async def import_rows(rows: list[tuple[int, str]]) -> list[int | ValueError]:
    return [number if text else ValueError("no text") for number, text in rows]


app.limit("smtp", concurrency=5, rate="100/m", burst=20)
app.fair_queue("imports", turn=5)


def domain_of(address: str) -> str:
    return address.partition("@")[2]


def customer_of(customer_id: int) -> int:
    return customer_id


@app.task(limit="smtp", key=domain_of)
async def send_mail(address: str) -> None:
    await forget.options(key=42, limit="smtp").submit(address)


@app.task(concurrency=1, key=customer_of)
def import_orders(customer_id: int) -> int:
    return customer_id


@app.task(rate="10/s", burst=5, batch=10)
def call_all(numbers: list[int]) -> list[int]:
    return numbers


@app.task(batch=10)
def log_rows(rows: list[str]) -> None:
    print(*rows, sep="\n")


@app.task
async def forget(key: str) -> None:
    job = current_job()
    job.progress(job.attempt, 3, f"{job.id}: {key}")


class Colour(enum.Enum):
    RED = 1


class Point(NamedTuple):
    x: int
    colour: Colour


class Address(TypedDict):
    street: str


@dataclasses.dataclass
class Order:
    points: list[Point]
    address: Address | None = None


@app.task
async def charge(order: Order, mode: Literal["fast", "slow"] = "fast", **more: Order) -> dict[Colour, Order]:
    return {Colour.RED: order}


async def values_of_own_types_pass() -> None:
    order = Order([Point(1, Colour.RED)], {"street": "Elm"})
    task_id = await charge.submit(order, "slow", other=order)
    assert_type(task_id, TaskId[dict[Colour, Order]])
    result = await app.wait_for_result(await app.submit(charge, order, mode="fast"), timeout=5)
    assert_type(result, TaskResult[dict[Colour, Order]])
    assert_type(result.result[Colour.RED].points[0].colour, Colour)
    assert_type(app.sync.wait_for_result(task_id).result, dict[Colour, Order])


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


@app.task
async def report(results: list[TaskResult[int]]) -> str:
    if not results:
        raise Cancel("nothing to report")
    if current_job().meta.get("late"):
        raise Snooze(dt.timedelta(minutes=5))
    raise Snooze(until=dt.datetime.now(dt.UTC), reason=", ".join(current_job().tags))


async def results_of_many_are_arguments() -> None:
    parents = await app.submit_many(add, [(1, 2), (3, 4)])
    assert_type(results_of(parents), list[int])
    assert_type(await total.submit(results_of(parents)), TaskId[int])
    assert_type(result_of(parents[0], failed="pass"), TaskResult[int])
    assert_type(await app.submit(report, results_of(parents, failed="pass")), TaskId[str])
    ids: list[str] = [*await app.submit_chain([fetch, describe.options(queue="cpu")], "https://example.org")]
    print(ids)


mail = TaskSet("mail")


@mail.cron("0 9 * * *", args=("all",))
@mail.task(max_retries=1)
async def send(to: str) -> int:
    return len(to)


@app.on_submit
def stamp(job: Job) -> None:
    job.tags, job.meta = (*job.tags, "tenant:42"), {"late": True}


async def tasks_of_a_set_keep_their_signature() -> None:
    app.include(mail, queue="mail")
    assert_type(await send.submit("Ada"), TaskId[int])
    assert_type(await app.submit(send, "Ada"), TaskId[int])
    await app.submit("shop.send", "Ada", queue="mail", delay=5)
    later = send.options(
        unique="k", on_conflict="postpone", delay=60, max_wait=dt.timedelta(hours=1), tags=["t"], meta={"n": 1}
    )
    assert_type(await later.submit("Ada"), TaskId[int])
    assert_type(await app.cancel_all(tag="t", by="ops"), int)
    assert_type(app.sync.requeue_all(task="mail.send"), int)


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
