"""The tasks that the tests enqueue."""

import time
from typing import Any

from django.db import connection

from flowrra import Cancel, Snooze
from tests.django.project.models import Order
from tests.django.project.versions import TaskContext, task


@task
def place(item: str) -> int:
    order: Order = Order.objects.create(item=item)
    return int(order.pk)


@task
async def place_async(item: str) -> int:
    order: Order = await Order.objects.acreate(item=item)
    return int(order.pk)


@task(takes_context=True)
def tell(context: TaskContext, word: str = "hello") -> list[Any]:
    return [word, context.attempt, context.task_result.id, context.task_result.worker_ids]


@task(takes_context=True)
def fail_first(context: TaskContext) -> int:
    if context.attempt == 1:
        raise LookupError("not the first time")
    return context.attempt


@task(retry_on=OSError)
def fail_and_look_on() -> None:
    raise LookupError("no such file")


@task
def fail(text: str) -> None:
    raise ValueError(text)


@task
def give_odd() -> object:
    return object()


@task(timeout=0.05)
def dawdle() -> None:
    time.sleep(0.3)


@task(takes_context=True)
def snooze_and_cancel(context: TaskContext) -> None:
    if context.attempt == 1:
        raise Snooze(0)
    raise Cancel("no longer needed")


@task
def had_connection() -> bool:
    """Whether a connection was left open here by the job before."""
    had = connection.connection is not None
    Order.objects.count()
    return had
