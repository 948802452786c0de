"""What a user must not write. Every line marked `# E:` is an error, and no other is."""

import dataclasses
import enum
from typing import Literal

from flowrra import Flowrra, Snooze, Task, TaskId, TaskSet, result_of, results_of

app = Flowrra.from_urls()


@app.task
async def add(left: int, right: int) -> int:
    return left + right


@app.task(max_retries=5)
def describe(name: str, *, loud: bool = False) -> str:
    return name.upper() if loud else name


class Colour(enum.Enum):
    RED = 1


@dataclasses.dataclass
class Order:
    colour: Colour


@app.task
async def charge(order: Order, mode: Literal["fast", "slow"] = "fast") -> Order:
    return order


async def values_of_own_types_are_checked() -> None:
    await charge.submit({"colour": 1})  # E: a dictionary is no Order
    await app.submit(charge, Order(Colour.RED), "medium")  # E: no such literal
    await charge.submit(Order(1))  # E: a number is no Colour
    task_id = await charge.submit(Order(Colour.RED))
    wrong: int = (await app.wait_for_result(task_id)).result  # E: it is an Order
    print(wrong)
    await charge.submit(result_of(await add.submit(1, 2)))  # E: an int is no Order


async def the_app_submits() -> None:
    await app.submit(add, 1, "2")  # E: wrong type
    await app.submit(add, 1)  # E: missing argument
    await app.submit(add, 1, 2, 3)  # E: too many arguments
    await app.submit(add, 1, 2, third=3)  # E: unknown keyword
    await app.submit(describe, "a", loud="yes")  # E: wrong type of a keyword
    await app.submit(describe, "a", True)  # E: keyword-only
    await app.submit(len, "a")  # E: not a task


async def the_task_submits() -> None:
    await add.submit(1, "2")  # E: wrong type
    await add.submit(1)  # E: missing argument
    await describe.submit("a", quiet=True)  # E: unknown keyword


async def options_keep_the_signature() -> None:
    await add.options(priority=5).submit(1, "2")  # E: wrong type
    await describe.options(delay=1.0).submit()  # E: missing argument
    add.options(priority="high")  # E: wrong type of an option
    add.options(colour="red")  # E: unknown option
    await app.submit(add, 1, 2, delay=5)  # E: only options() is typed
    app.sync.submit(add, 1, 2, delay=5)  # E: only options() is typed


def plain_code_is_checked_too() -> None:
    app.sync.submit_many(len, [])  # E: not a task
    app.sync.jobs(limit="ten")  # E: wrong type
    app.sync.cancel("an id", byy="Ada")  # E: unknown keyword


tasks = TaskSet()


@tasks.task
async def send(to: str, numbers: list[int]) -> None: ...


async def tasks_of_a_set_are_checked() -> None:
    await send.submit(7, [])  # E: wrong type
    await app.submit(send, "Ada")  # E: missing argument
    await send.submit("Ada", results_of([await describe.submit("a")]))  # E: texts are no numbers
    await send.submit("Ada", results_of([await add.submit(1, 2)], failed="pass"))  # E: nor are whole results
    result_of(await add.submit(1, 2), failed="ignore")  # E: no such choice
    add.options(unique="k", on_conflict="merge")  # E: no such choice
    add.options(tags=7)  # E: no list
    app.include(app.registry)  # E: no set
    Snooze("5")  # E: no seconds
    await app.cancel_all(state="failed")  # E: unknown keyword


async def results_have_the_type_of_the_task() -> None:
    wrong: str = (await app.wait_for_result(await app.submit(add, 1, 2))).result  # E: it is an int
    task_id: TaskId[str] = await app.submit(add, 1, 2)  # E: it is a TaskId[int]
    print(wrong, task_id)


async def results_are_arguments() -> None:
    name = await describe.submit("a")
    await add.submit(result_of(name), 1)  # E: a str is no int
    await app.submit(add, 1, result_of(name))  # E: a str is no int
    result_of("an id")  # E: a plain str does not remember its type


@app.task(batch=10)
async def store_rows(rows: list[int]) -> list[int]:
    return rows


@app.task(batch=10)  # E: the function must take a list
async def store_row(row: int) -> None: ...


@app.task(batch=10, cpu_bound=True)  # E: not both
async def store_elsewhere(rows: list[int]) -> None: ...


@app.task(cpu_bound=True, executor="thread")  # E: a process or an interpreter
def compute() -> None: ...


async def submits_to_batches() -> None:
    await store_rows.submit(1)
    await app.submit(store_rows, [1])  # E: one item of the list
    await app.submit(store_rows, 1, 2)  # E: one argument only


async def passes_a_task_on(task: Task[[int, int], int]) -> None:
    await task.submit(1, 2)


async def hands_over_a_task() -> None:
    await passes_a_task_on(describe)  # E: another signature


@app.every("often")  # E: no number of seconds
@app.task
async def often() -> None: ...


@app.every(30)  # E: the function is no task: @app.task is missing
async def forgotten() -> None: ...


@app.cron("0 9 * * *", colour="red")  # E: unknown option
@app.task
async def red() -> None: ...


@app.cron("0 9 * * *")
@app.task
async def daily(number: int) -> None: ...


async def schedules_are_stored() -> None:
    await daily.submit("1")  # E: wrong type, also under a schedule
    scheduler = app.create_scheduler()
    await scheduler.schedule_cron(len, "0 9 * * *")  # E: not a task
    await scheduler.schedule_interval(add, "often")  # E: no number of seconds
    await scheduler.schedule_once(add, 30)  # E: no datetime
    await scheduler.schedule_interval(add, 30, priority="high")  # E: wrong type of an option
    await scheduler.schedule_interval(add, 30, colour="red")  # E: unknown option
    await scheduler.update("an id", task_id="other")  # E: an id stays


app.limit("smtp", rate=100)  # E: a rate is a text
app.limit("smtp", concurrency="5")  # E: no number


@app.task(concurrency="1")  # E: no number
async def once() -> None: ...


@app.task(concurrency=1, key="customer")  # E: the key of a task is a function
async def one_each() -> None: ...


async def keys_are_texts_or_numbers() -> None:
    await add.options(key=1.5).submit(1, 2)  # E: neither
    await add.options(limit=1).submit(1, 2)  # E: no name
