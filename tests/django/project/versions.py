"""Django's tasks for the tests: from Django 6.0 on its own, and else those of the package django-tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import django

NAME = "django.tasks" if django.VERSION >= (6, 0) else "django_tasks"

if TYPE_CHECKING or django.VERSION < (6, 0):
    from django_tasks import TaskContext, TaskResult, TaskResultStatus, default_task_backend, task, task_backends
    from django_tasks import exceptions as errors
    from django_tasks.exceptions import TaskResultDoesNotExist, TaskResultMismatch
    from django_tasks.signals import task_enqueued, task_finished, task_started
else:
    from django.tasks import TaskContext, TaskResult, TaskResultStatus, default_task_backend, task, task_backends
    from django.tasks import exceptions as errors
    from django.tasks.exceptions import TaskResultDoesNotExist, TaskResultMismatch
    from django.tasks.signals import task_enqueued, task_finished, task_started

# Django's name; django-tasks 0.12 had another one.
InvalidTaskError: type[Exception] = getattr(errors, "InvalidTask", None) or errors.InvalidTaskError

__all__ = ["InvalidTaskError", "TaskContext", "TaskResult", "TaskResultDoesNotExist", "TaskResultMismatch"]
__all__ += ["TaskResultStatus", "default_task_backend", "task", "task_backends"]
__all__ += ["task_enqueued", "task_finished", "task_started"]
