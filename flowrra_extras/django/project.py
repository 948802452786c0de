"""Reads Flowrra's settings from Django's settings, makes one app for each backend in TASKS, and runs its tasks."""

import asyncio
import contextlib
import dataclasses
import functools
import inspect
import threading
import urllib.parse
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from asgiref.sync import ThreadSensitiveContext, sync_to_async
from django.conf import settings
from django.db import DEFAULT_DB_ALIAS, close_old_connections, connections, reset_queries
from django.db.backends.base.base import BaseDatabaseWrapper

import flowrra
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

_SECTIONS: Mapping[str, Any] = {
    "broker": flowrra.BrokerConfig,
    "backend": flowrra.BackendConfig,
    "executor": flowrra.ExecutorConfig,
}
# The settings in FLOWRRA, named like the environment variables without their prefix; in OPTIONS in lower case.
_CONFIG = {
    f"{section}_{option.name}": (section, option.name)
    for section, kind in _SECTIONS.items()
    for option in dataclasses.fields(kind)
}
# Not `cpu_bound`: its process could not import the function, which the decorator has replaced; `executor` and
# `soft_timeout` need it. A Django task has no batches, and sets its queue and priority itself.
OF_TASKS = {option.name for option in dataclasses.fields(flowrra.TaskOptions)}
OF_TASKS -= {"cpu_bound", "executor", "soft_timeout", "batch", "linger", "queue", "priority"}
# The options for libpq in Django's settings that say where the database is and how to connect.
_LIBPQ = ("sslmode", "sslrootcert", "sslcert", "sslkey", "target_session_attrs")


class Options:
    """The OPTIONS of a backend, and the settings in FLOWRRA, which hold for all backends.

    `database`: the alias of a database in DATABASES. Jobs that are enqueued in a transaction of it are committed with
    it. Without `url`, it also contains the jobs. `results`: the URL of a separate store of results. `tasks`: defaults
    for the tasks.

    Raises:
        ConfigError: an option does not exist, or its value is wrong.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        general = getattr(settings, "FLOWRRA", {})
        for name in general.keys() - {known.upper() for known in _CONFIG}:
            raise flowrra.ConfigError(
                f"FLOWRRA has no setting {name!r}{flowrra.nearest(name, [n.upper() for n in _CONFIG])}"
            )
        known = {"database", "url", "results", *_CONFIG, *OF_TASKS}
        for name in options.keys() - known:
            raise flowrra.ConfigError(
                f"OPTIONS of a backend of TASKS has no option {name!r}{flowrra.nearest(name, known)}"
            )
        merged = {name.lower(): value for name, value in general.items()} | dict(options)
        self.database: str = merged.get("database", DEFAULT_DB_ALIAS)
        self._url: str | None = merged.get("url", merged.pop("broker_url", None))
        self._results: str | None = merged.get("results", merged.pop("backend_url", None))
        # Flowrra's own default is 3, but other backends of Django do not retry.
        self.tasks = {"max_retries": 0} | {name: value for name, value in merged.items() if name in OF_TASKS}
        self._config = {_CONFIG[name]: value for name, value in merged.items() if name in _CONFIG}

    @property
    def is_in_database(self) -> bool:
        """Whether the jobs are in Django's database, because no URL is given."""
        return self._url is None

    @property
    def url(self) -> str:
        """The URL of the broker."""
        return url_of(connections[self.database]) if self._url is None else self._url

    def config(self, url: str) -> flowrra.Config:
        """Return the configuration of the app for this URL of the broker."""
        values: dict[str, dict[str, Any]] = {section: {} for section in _SECTIONS}
        values["broker"]["url"], values["backend"]["url"] = url, self._results
        for (section, option), value in self._config.items():
            values[section][option] = value
        return flowrra.Config(**{section: kind(**values[section]) for section, kind in _SECTIONS.items()})


def url_of(connection: BaseDatabaseWrapper) -> str:
    """Return the URL of the broker that stores jobs in a database of Django.

    Raises:
        ConfigError: such a database cannot store jobs, or no URL can express its settings.
    """
    place = connection.settings_dict
    if connection.vendor == "sqlite":
        name = str(place["NAME"])
        if getattr(connection, "is_in_memory_db", bool)():
            return "memory://"  # the database of a test
        if name.startswith("file:"):
            raise flowrra.ConfigError(
                f"the database {connection.alias!r} has the name {name!r}: use a path, or set `url` in OPTIONS"
            )
        return f"sqlite:///{urllib.parse.quote(Path(name).resolve().as_posix())}"
    if connection.vendor == "postgresql":
        return _url_of_postgresql(connection.alias, place)
    raise flowrra.ConfigError(
        f"the database {connection.alias!r} ({connection.vendor}) cannot store jobs: set `url` in OPTIONS"
    )


def _url_of_postgresql(alias: str, place: Mapping[str, Any]) -> str:
    given = place.get("OPTIONS", {})
    if not place["NAME"] or {"service", "passfile"} & given.keys():
        raise flowrra.ConfigError(
            f"a file of libpq contains the address of the database {alias!r}: set `url` in OPTIONS"
        )
    options = {name: str(given[name]) for name in _LIBPQ if name in given}
    host = place["HOST"] or "/var/run/postgresql"
    if host.startswith("/"):
        options["host"], host = host, ""
    login = ":".join(urllib.parse.quote(place[name] or "", safe="") for name in ("USER", "PASSWORD")).rstrip(":")
    port = f":{place['PORT']}" if place["PORT"] and host else ""
    if place["PORT"] and not host:
        options["port"] = str(place["PORT"])
    name = urllib.parse.quote(place["NAME"], safe="")
    query = f"?{urllib.parse.urlencode(options)}" if options else ""
    return f"postgresql://{login}{'@' if login else ''}{host}{port}/{name}{query}"


class ProjectApp(flowrra.Flowrra):
    """The app of a backend. By default its worker also serves the queues in QUEUES of the backend."""

    queues: Collection[str] = ()

    def use(self, config: flowrra.Config) -> None:
        """Change to the stores of another configuration."""
        self.sync.close()
        other = flowrra.Flowrra(config)
        self.config, self.broker, self.backend = config, other.broker, other.backend

    def submit_job_in(self, connection: Any, job: flowrra.Job) -> None:
        """As `app.sync.submit_in`, for a job that a task has made. `job.submitted` is the moment that is stored."""
        self._stamp([job])
        self.sync.run(self.connect())
        pushed = self.broker.push_in(connection, [job], now=job.submitted)
        if inspect.iscoroutine(pushed):
            self.sync.run(pushed)

    async def start(self) -> None:
        """See `Flowrra.start`."""
        executor = self.config.executor
        if executor.queues is None:
            queues = dict.fromkeys(sorted({"default", *self.queues}), executor.io_workers)
            for task in self.registry.values():
                queues.setdefault(task.queue, executor.cpu_workers if task.settings.cpu_bound else executor.io_workers)
            self.config.executor = dataclasses.replace(executor, queues=queues)
        await super().start()


class Project:
    """The tasks of one backend, and their app, which is made when it is first used.

    A test run uses another database, and tests change settings. The app then changes to the stores of these.
    """

    def __init__(self) -> None:
        self.tasks: dict[str, Task[Any, Any]] = {}  # by name
        self._lock = threading.RLock()
        self._app: ProjectApp | None = None
        self._made_of: object = None

    def declare(self, task: Task[Any, Any], backend: BaseTaskBackend, options: Options) -> None:
        """Add a task, unless it is known."""
        if task.module_path in self.tasks:
            return
        with self._lock:
            self.tasks[task.module_path] = task
            if self._app is not None:
                _register(self._app, task, type(backend), options)

    def app(self, backend: BaseTaskBackend, options: Options) -> ProjectApp:
        """Return the app, with the stores of these options."""
        url = options.url
        made_of = (url, repr(backend.options), repr(getattr(settings, "FLOWRRA", {})), backend.queues)
        with self._lock:
            if self._app is None:
                self._app = ProjectApp(options.config(url))
                announce_endings(self._app, self.tasks, type(backend))
            elif self._made_of != made_of:
                self._app.use(options.config(url))
            if self._made_of != made_of:
                self._made_of, self._app.queues = made_of, backend.queues
                for task in self.tasks.values():
                    _register(self._app, task, type(backend), options)
            return self._app


def _register(app: flowrra.Flowrra, task: Task[Any, Any], sender: type[BaseTaskBackend], options: Options) -> None:
    """Register the task in the app. It replaces the same task with other options."""
    app.registry.pop(task.module_path, None)
    function = runner(task, sender, app)
    own = given_options(task, ("retry_on", "no_retry_on"))  # each job carries the other options
    settings = {**options.tasks, **own, "queue": task.queue_name, "priority": -task.priority}
    app.task(name=task.module_path, **settings)(function)


def given_options(task: Task[Any, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return those of the options that the task sets. A plain task of Django has none of them."""
    return {name: value for name in names if (value := getattr(task, name, None)) is not None}


_projects: dict[str, Project] = {}  # by the alias of the backend; Django makes one backend for each thread


def project_of(alias: str) -> Project:
    return _projects.setdefault(alias, Project())


# A task in a worker: with usable database connections, its context, and Django's signals --------


@contextlib.contextmanager
def fresh_connections() -> Iterator[None]:
    """Close database connections that are broken or older than CONN_MAX_AGE, as Django does around a request."""
    reset_queries()
    close_old_connections()
    try:
        yield
    finally:
        close_old_connections()


def runner(task: Task[Any, Any], sender: type[BaseTaskBackend], app: flowrra.Flowrra) -> Callable[..., Any]:
    """Return the function that a worker calls for a Django task. Its signature is that of `enqueue`."""

    def begin() -> tuple[Any, ...]:
        """Send the signal `task_started`. Return the arguments that precede those of the job."""
        job = flowrra.current_job().job
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


def announce_endings(app: flowrra.Flowrra, tasks: Mapping[str, Task[Any, Any]], sender: type[BaseTaskBackend]) -> None:
    """Send `task_finished` after the end of a job of one of the `tasks` was stored."""

    async def announce(event: flowrra.Event) -> None:
        if event.job is None or event.job.task not in tasks:
            return
        try:
            job = await app.get_job(event.job.id)
        except flowrra.TaskNotFoundError:  # it has been purged
            return
        if job.status.is_finished:  # otherwise it has been requeued meanwhile
            await asyncio.to_thread(_send_finished, job, tasks[job.task], sender)

    for name in ("success", "failure", "cancel"):
        app.on(name)(announce)


def _send_finished(job: flowrra.Job, task: Task[Any, Any], sender: type[BaseTaskBackend]) -> None:
    result = result_of(job, task, task.backend)
    with fresh_connections():
        if result.status == TaskResultStatus.SUCCESSFUL:
            task_finished.send(sender=sender, task_result=result)
            return
        try:  # Django's receiver of the signal logs the current exception
            raise flowrra.FlowrraError(job.traceback or job.error or str(job.status))
        except flowrra.FlowrraError:
            task_finished.send(sender=sender, task_result=result)
