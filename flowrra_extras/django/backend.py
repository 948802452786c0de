"""The backend of Django's tasks. If the jobs are in Django's database, it enqueues in Django's transaction."""

import dataclasses
import datetime as dt
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from django.core import checks
from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils import timezone
from django.utils.asyncio import async_unsafe

from flowrra import ConfigError, Flowrra, Job, SQLiteBroker, TaskNotFoundError, TaskOptions
from flowrra_extras.django.interface import (
    BaseTaskBackend,
    Task,
    TaskResult,
    TaskResultDoesNotExist,
    django_time,
    normalize_json,
    result_of,
    task_backends,
    task_enqueued,
)
from flowrra_extras.django.project import OF_TASKS, Options, ProjectApp, given_options, project_of

P = ParamSpec("P")
T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FlowrraTask(Task):  # type: ignore[type-arg]  # Django's own is not generic
    """A Django task with options of Flowrra, for `@task(...)` and `using(...)`. None: as in the backend's OPTIONS.

    Only `@task(...)` takes `retry_on` and `no_retry_on`.
    """

    max_retries: int | None = None
    retry_delay: float | None = None
    backoff: float | None = None
    max_delay: float | None = None
    jitter: bool | None = None
    timeout: float | None = None
    expires: float | dt.timedelta | dt.datetime | None = None
    result_ttl: float | None = None
    retry_on: type[BaseException] | tuple[type[BaseException], ...] | None = None
    no_retry_on: type[BaseException] | tuple[type[BaseException], ...] | None = None
    tags: Sequence[str] | None = None
    meta: Mapping[str, Any] | None = None

    def using(
        self,
        *,
        priority: int | None = None,
        queue_name: str | None = None,
        run_after: dt.datetime | None = None,
        backend: str | None = None,
        **options: Any,
    ) -> "FlowrraTask":
        """Return the task with other options: those of `Task.using` and the fields of this class."""
        given = {"priority": priority, "queue_name": queue_name, "run_after": run_after, "backend": backend}
        return dataclasses.replace(self, **{n: v for n, v in {**given, **options}.items() if v is not None})


class FlowrraBackend(BaseTaskBackend):
    """The backend to name in TASKS. `flowrra_extras.django.project.Options` describes its OPTIONS."""

    task_class = FlowrraTask
    supports_defer = True
    supports_async_task = True
    supports_get_result = True
    supports_priority = True

    def __init__(self, alias: str, params: dict[str, Any]) -> None:
        super().__init__(alias, params)
        self._options = Options(self.options)
        self._project = project_of(alias)
        self._is_elsewhere = False  # whether a submit has shown that the jobs are in another database

    @property
    def app(self) -> ProjectApp:
        """The app of this backend."""
        return self._project.app(self, self._options)

    @property
    def database(self) -> BaseDatabaseWrapper:
        """The connection to the database of the option `database`. A job is committed with its transactions."""
        return connections[self._options.database]

    def validate_task(self, task: Task[Any, Any]) -> None:
        """Check a task, as Django's backends do, and its options of Flowrra.

        Raises:
            ConfigError: an option is out of range.
        """
        super().validate_task(task)
        TaskOptions(**given_options(task, OF_TASKS))
        self._project.declare(task, self, self._options)

    # Enqueueing ----------------------------------------------------------------------------------

    @async_unsafe("enqueue() would block the event loop: use aenqueue()")
    def enqueue(self, task: Task[P, T], args: Sequence[Any], kwargs: Mapping[str, Any]) -> TaskResult[T]:
        """Submit a job. Inside a transaction of `database`, the job exists only if the transaction commits.

        Raises:
            TypeError: the arguments do not fit the task, or are not plain JSON.
            SynchronousOnlyOperation: an event loop runs in this thread.
            BrokerError: the store failed; nothing was enqueued.
        """
        self.validate_task(task)
        app = self.app
        arguments: list[Any] = normalize_json(list(args))
        named: dict[str, Any] = normalize_json(dict(kwargs))
        call = app.registry[task.module_path].options(task_id=app.new_id(), **self._options_of(task))
        job = call.make_job(arguments, named)  # wrong arguments raise now, not at the commit
        job.submitted = app.now()
        result: TaskResult[T] = result_of(job, task, self.alias)

        def submit() -> None:
            app.sync.run(app.submit_jobs([job]))
            object.__setattr__(result, "enqueued_at", django_time(job.submitted_at))  # as the store has it
            task_enqueued.send(type(self), task_result=result)

        connection = self.database
        if not (connection.in_atomic_block or (connection.connection is not None and not connection.autocommit)):
            submit()
        elif self._shares_database(app) and self._submit_in(connection, app, job):
            task_enqueued.send(type(self), task_result=result)
        else:
            transaction.on_commit(submit, using=connection.alias)
        return result

    def _options_of(self, task: Task[Any, Any]) -> dict[str, Any]:
        """Return the options for a job of this task. `options()` then refuses those that only a task can have."""
        run_after = task.run_after
        if run_after is not None and timezone.is_naive(run_after):
            run_after = timezone.make_aware(run_after)
        known = given_options(self._project.tasks[task.module_path], ("retry_on", "no_retry_on"))
        given = given_options(task, (*OF_TASKS, "expires", "tags", "meta"))
        own = {name: value for name, value in given.items() if value is not known.get(name)}
        return {**own, "priority": -task.priority, "queue": task.queue_name, "run_at": run_after}

    def _submit_in(self, connection: BaseDatabaseWrapper, app: ProjectApp, job: Job) -> bool:
        """Submit through Django's connection. Return False if the jobs are in another database."""
        connection.validate_no_broken_transaction()
        try:
            app.submit_job_in(connection.connection, job)
        except ConfigError:
            if self._options.is_in_database:
                raise
            self._is_elsewhere = True
            return False
        return True

    def _shares_database(self, app: Flowrra) -> bool:
        """Whether the jobs may be in Django's database and can be written through Django's connection."""
        connection, broker = self.database, app.broker
        if self._is_elsewhere:
            return False
        if isinstance(broker, SQLiteBroker):
            if connection.vendor != "sqlite" or broker.path is None:
                return False
            return Path(connection.settings_dict["NAME"]).resolve() == Path(broker.path).resolve()
        is_postgres = type(broker).__module__ == "flowrra_extras.postgres"
        return is_postgres and connection.vendor == "postgresql" and _has_psycopg()

    # Results ---------------------------------------------------------------------------------------

    @async_unsafe("this would block the event loop: use aget_result() or arefresh()")
    def get_result(self, result_id: str) -> TaskResult[Any]:
        """Return the result of a job. Any process of the project can ask for it.

        Raises:
            TaskResultDoesNotExist: the id is unknown, its transaction has not been committed, the job has been purged,
                or this process does not know its task.
        """
        try:
            job = self.app.sync.get_job(result_id)
        except TaskNotFoundError:
            raise TaskResultDoesNotExist(result_id) from None
        return self._result_of(job)

    def _result_of(self, job: Job) -> TaskResult[Any]:
        task = self._project.tasks.get(job.task)
        if task is None:
            raise TaskResultDoesNotExist(f"{job.id} is a job of {job.task!r}, which this process does not know")
        return result_of(job, task, self.alias)

    # The project -----------------------------------------------------------------------------------

    def make_tables(self, database: str) -> None:
        """Create the tables of the jobs, if the jobs are in this database."""
        if database == self._options.database and self._shares_database(self.app):
            self.app.sync.run(_open_once(self.app))

    def check(self, **kwargs: Any) -> list[checks.CheckMessage]:
        """Return the messages for Django's system checks."""
        try:
            app = self.app
        except ConfigError as error:
            return [checks.Error(f"TASKS[{self.alias!r}]: {error}", id="flowrra.E001")]
        if self._options.is_in_database and self.database.vendor == "postgresql" and not _has_psycopg():
            text = "Django uses psycopg2, so jobs are enqueued after the commit of a transaction, not in it"
            return [checks.Warning(text, hint="pip install 'psycopg[binary]'", obj=app, id="flowrra.W001")]
        return []


def get_app(alias: str = "default") -> Flowrra:
    """Return the Flowrra app of a backend in TASKS, for schedules, hooks, middleware and tests.

    Args:
        alias: the name of the backend in TASKS.

    Raises:
        ConfigError: the backend is not a FlowrraBackend.
    """
    backend = task_backends[alias]
    if not isinstance(backend, FlowrraBackend):
        raise ConfigError(
            f"TASKS[{alias!r}] is a {type(backend).__name__}: set its BACKEND to flowrra_extras.django.FlowrraBackend"
        )
    return backend.app


async def _open_once(app: Flowrra) -> None:
    async with app.client():  # opening it creates the tables
        pass


def _has_psycopg() -> bool:
    """Whether Django connects to PostgreSQL with psycopg 3."""
    from django.db.backends.postgresql.psycopg_any import is_psycopg3

    return bool(is_psycopg3)
