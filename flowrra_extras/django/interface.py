"""Django's tasks (of Django 6.0, or else of the package django-tasks), and the conversion of a job to a TaskResult."""

from __future__ import annotations

import builtins
import dataclasses
import datetime as dt
import re
from typing import TYPE_CHECKING, Any

import django
from django.conf import settings
from django.utils import timezone

from flowrra import FINISHED, RUNNING, SUCCESS, Attempt, Job, decode_arguments

if TYPE_CHECKING or django.VERSION < (6, 0):
    from django_tasks import task_backends
    from django_tasks.backends.base import BaseTaskBackend
    from django_tasks.base import Task, TaskContext, TaskError, TaskResult, TaskResultStatus
    from django_tasks.exceptions import TaskResultDoesNotExist
    from django_tasks.signals import task_enqueued, task_finished, task_started
    from django_tasks.utils import normalize_json
else:
    from django.tasks import task_backends
    from django.tasks.backends.base import BaseTaskBackend
    from django.tasks.base import Task, TaskContext, TaskError, TaskResult, TaskResultStatus
    from django.tasks.exceptions import TaskResultDoesNotExist
    from django.tasks.signals import task_enqueued, task_finished, task_started
    from django.utils.json import normalize_json

__all__ = ["BaseTaskBackend", "Task", "TaskContext", "TaskError", "TaskResult", "TaskResultDoesNotExist"]
__all__ += ["TaskResultStatus", "normalize_json", "task_backends", "task_enqueued", "task_finished", "task_started"]
__all__ += ["exception_path", "result_of"]

_STATUS = {RUNNING: TaskResultStatus.RUNNING, SUCCESS: TaskResultStatus.SUCCESSFUL}


def result_of(job: Job, task: Task[Any, Any], backend: str) -> TaskResult[Any]:
    """Return the current result of a job of `task`."""
    attempts = [attempt for attempt in job.attempts if attempt.outcome != "note"]
    moments = [django_time(dt.datetime.fromtimestamp(attempt.started, dt.UTC)) for attempt in attempts]
    args, kwargs = decode_arguments(job)
    result: TaskResult[Any] = TaskResult(
        task=_as_enqueued(task, job),
        id=job.id,
        # Django has no status for cancelled tasks: a cancelled job counts as failed.
        status=_STATUS.get(job.status, TaskResultStatus.FAILED if job.status in FINISHED else TaskResultStatus.READY),
        enqueued_at=django_time(job.submitted_at),
        started_at=moments[0] if moments else None,
        finished_at=django_time(job.finished_at),
        last_attempted_at=moments[-1] if moments else None,
        args=list(args),
        kwargs=dict(kwargs),
        backend=backend,
        errors=_errors(job, attempts),
        worker_ids=[attempt.worker for attempt in attempts],
    )
    object.__setattr__(result, "_return_value", job.result)  # the class is frozen; Django's backends do this too
    return result


def _as_enqueued(task: Task[Any, Any], job: Job) -> Task[Any, Any]:
    """Return the task with the priority, queue and time of this job."""
    run_after = None if job.failures else django_time(job.due_at)
    changes: dict[str, Any] = {"priority": -job.priority, "queue_name": job.queue, "run_after": run_after}
    if all(getattr(task, name) == value for name, value in changes.items()):
        return task
    return dataclasses.replace(task, **changes)


def django_time(moment: dt.datetime | None) -> dt.datetime | None:
    """Convert a time for Django's settings: aware with USE_TZ, otherwise naive in Django's time zone."""
    return moment if moment is None or settings.USE_TZ else timezone.make_naive(moment)


def _errors(job: Job, attempts: list[Attempt]) -> list[TaskError]:
    """Return the error of each attempt or, for a job that ended without an attempt, the reason."""
    errors = [_error(one.error or "", one.traceback) for one in attempts if one.outcome in ("failure", "crash")]
    if not errors and job.error and job.status in FINISHED:
        errors = [_error(job.error, job.traceback)]
    return errors


def _error(text: str, traceback: str | None) -> TaskError:
    return TaskError(exception_class_path=exception_path(text, traceback), traceback=traceback or text)


def exception_path(text: str, traceback: str | None) -> str:
    """Return the import path of the exception that `text` ("Name: message") describes; see the end of its traceback."""
    name = re.match(r"\w+", text)
    if traceback is None or name is None:  # no exception: the job was cancelled, or its worker died
        return "flowrra.FlowrraError"
    found = re.findall(rf"^[ |]*((?:\w+\.)*{name[0]})(?=:|$)", traceback, re.MULTILINE)
    path: str = found[-1] if found else name[0]
    return f"builtins.{path}" if "." not in path and hasattr(builtins, path) else path
