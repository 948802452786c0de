"""Runs a Django task in a worker: with usable database connections, the task's context, and Django's signals."""

import asyncio
import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from asgiref.sync import ThreadSensitiveContext, sync_to_async
from django.db import close_old_connections, connections, reset_queries

from flowrra import Event, Flowrra, FlowrraError, Job, TaskNotFoundError, current_job
from flowrra_extras.django.interface import (
    BaseTaskBackend,
    Task,
    TaskContext,
    TaskResultStatus,
    normalize_json,
    result_of,
    task_finished,
    task_started,
)


@contextlib.contextmanager
def fresh_connections() -> Iterator[None]:
    """Close database connections that are broken or older than CONN_MAX_AGE, as Django does around a request."""
    reset_queries()
    close_old_connections()
    try:
        yield
    finally:
        close_old_connections()


def runner(task: Task[Any, Any], sender: type[BaseTaskBackend], app: Flowrra) -> Callable[..., Any]:
    """Return the function that a worker calls for a Django task. Its signature is that of `enqueue`."""

    def begin() -> tuple[Any, ...]:
        """Send the signal `task_started`. Return the arguments that precede those of the job."""
        job = current_job().job
        if job.attempt > 1:  # a claimed job comes without its earlier attempts
            job = app.sync.get_job(job.id)
        started = result_of(job, task, task.backend)
        task_started.send(sender=sender, task_result=started)
        return (TaskContext(task_result=started),) if task.takes_context else ()

    def run(*args: Any, **kwargs: Any) -> Any:
        with fresh_connections():
            return normalize_json(task.func(*begin(), *args, **kwargs))

    async def run_async(*args: Any, **kwargs: Any) -> Any:
        # Like a request under ASGI, a job has a separate thread for the ORM, which ends with the job.
        async with ThreadSensitiveContext():
            try:
                return normalize_json(await task.func(*await sync_to_async(begin)(), *args, **kwargs))
            finally:
                await sync_to_async(connections.close_all)()

    chosen = run_async if inspect.iscoroutinefunction(task.func) else run
    function: Any = functools.wraps(task.func)(chosen)
    signature = inspect.signature(task.func)
    parameters = list(signature.parameters.values())[1 if task.takes_context else 0 :]
    function.__signature__ = signature.replace(parameters=parameters)
    return chosen


def announce_endings(app: Flowrra, tasks: Mapping[str, Task[Any, Any]], sender: type[BaseTaskBackend]) -> None:
    """Send `task_finished` after the end of a job of one of the `tasks` was stored."""

    async def announce(event: Event) -> None:
        if event.job is None or event.job.task not in tasks:
            return
        try:
            job = await app.get_job(event.job.id)
        except TaskNotFoundError:  # it has been purged
            return
        if job.status.is_finished:  # otherwise it has been requeued meanwhile
            await asyncio.to_thread(_send_finished, job, tasks[job.task], sender)

    for name in ("success", "failure", "cancel"):
        app.on(name)(announce)


def _send_finished(job: Job, task: Task[Any, Any], sender: type[BaseTaskBackend]) -> None:
    result = result_of(job, task, task.backend)
    with fresh_connections():
        if result.status == TaskResultStatus.SUCCESSFUL:
            task_finished.send(sender=sender, task_result=result)
            return
        try:  # Django's receiver of the signal logs the current exception
            raise FlowrraError(job.traceback or job.error or str(job.status))
        except FlowrraError:
            task_finished.send(sender=sender, task_result=result)
