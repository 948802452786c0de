"""An isolated app for tests: its jobs stay in memory, on a manual clock, and run when the test says so."""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, ParamSpec, Self

from flowrra import (
    FINISHED,
    UNFINISHED,
    BackendConfig,
    ExecutorNotRunningError,
    Flowrra,
    FlowrraError,
    Job,
    JobFilter,
    MemoryBroker,
    SerializationError,
    Submission,
    Task,
    TaskStatus,
    decode_arguments,
)
from flowrra_extras.testing.clock import ManualClock
from flowrra_extras.testing.drain import drain, finish_what_is_ready, fire_due

P = ParamSpec("P")

_RETENTION = BackendConfig(result_ttl=1e9, failed_ttl=1e9)  # nothing is purged because a test moves the clock


@dataclasses.dataclass(frozen=True, slots=True)
class EnqueuedJob:
    """A job as it was submitted, with the arguments that the task receives."""

    id: str
    task: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    queue: str
    priority: int
    delay: float  #: seconds until it is due
    expires: float | None  #: seconds after which it does not begin any more
    unique: str | None
    overrides: Mapping[str, Any]  #: what else was given, such as `timeout` and `max_retries`

    @property
    def options(self) -> Mapping[str, Any]:
        """What `task.options(...)` sets, without the id."""
        names = ("queue", "priority", "delay", "expires", "unique")
        return {**dict(self.overrides), **{name: getattr(self, name) for name in names}}


def _enqueued(app: Flowrra, job: Job, now: float) -> EnqueuedJob:
    args, kwargs = decode_arguments(job)
    task = app.registry.get(job.task)
    if task is not None and task.converters is not None and not job.parents:
        with contextlib.suppress(SerializationError):  # a worker says so
            args, kwargs = task.converters.arguments(args, kwargs, loading=True)
    return EnqueuedJob(
        id=job.id,
        task=job.task,
        args=tuple(args),
        kwargs=kwargs,
        queue=job.queue,
        priority=job.priority,
        delay=max(0.0, round((job.due or now) - now, 6)),
        expires=None if job.expires is None else round(job.expires - now, 6),
        unique=job.unique,
        overrides=job.overrides or {},
    )


def _arguments(task: Task[..., Any], job: EnqueuedJob) -> Mapping[str, Any]:
    """Return the arguments by name, however they were passed."""
    bound = task.signature.bind(*job.args, **job.kwargs)
    bound.apply_defaults()
    return bound.arguments


class _RecordingBroker(MemoryBroker):
    """Records each job as it was when it was pushed."""

    def __init__(self, app: Flowrra, clock: ManualClock, after_push: Callable[[], Awaitable[None]]) -> None:
        super().__init__(app.config.broker, _RETENTION, clock)
        self.enqueued: dict[str, EnqueuedJob] = {}
        self._app = app
        self._after_push = after_push

    async def push(self, jobs: Sequence[Job], *, now: float, by: str | None = None) -> list[str]:
        ids = await super().push(jobs, now=now, by=by)
        for job, task_id in zip(jobs, ids, strict=True):
            if job.id == task_id:  # else the unique key was taken
                self.enqueued.setdefault(task_id, _enqueued(self._app, job, now))
        await self._after_push()
        return ids

    def push_in(self, connection: Any, jobs: Sequence[Job], *, now: float) -> Awaitable[list[str]]:
        return self.push(jobs, now=now)  # whether the caller's transaction commits is not looked at


class IsolatedApp:
    """An isolated app, made by `isolated(app)`. Its `sync` has `drain` and `fire_due` for code without async."""

    def __init__(self, app: Flowrra, clock: ManualClock, *, inline: bool) -> None:
        self.app = app
        self.clock = clock
        self.sync = SyncIsolatedApp(self)
        self._is_inline = inline
        self._runs_inline = False
        self._broker = _RecordingBroker(app, clock, self._run_inline)
        self._restore = contextlib.ExitStack()
        self._clients = contextlib.AsyncExitStack()
        self._session: object = None  # the one in which `_clients` keep the stores open

    # What tests ask for and do -------------------------------------------------------------------

    def enqueued(self, task: Task[..., Any] | None = None) -> list[EnqueuedJob]:
        """Return the jobs of this task, or all jobs, that were submitted since the isolation began, in that order."""
        return [job for job in self._broker.enqueued.values() if task is None or job.task == task.name]

    def assert_enqueued(
        self, task: Task[P, Any] | Submission[P, Any], /, *args: P.args, **kwargs: P.kwargs
    ) -> EnqueuedJob:
        """Return the latest job of a task with these arguments; for `task.options(...)`, one with these options.

        Raises:
            AssertionError: there is none; the message lists the jobs of the task.
            TypeError: the arguments do not fit the task.
        """
        wanted = _enqueued(self.app, task.make_job(args, kwargs), self.clock.time())
        plain = task.task if isinstance(task, Submission) else task
        jobs = self.enqueued(plain)
        for job in reversed(jobs):
            has_options = task is plain or job.options == wanted.options
            if has_options and _arguments(plain, job) == _arguments(plain, wanted):
                return job
        listed = "".join(f"\n  {job}" for job in jobs) or " none"
        raise AssertionError(f"{plain.name} was not enqueued as\n  {wanted}\nbut there are:{listed}")

    async def drain(self, *, timeout: float = 30.0) -> list[Job]:
        """Run all jobs. The clock is moved forward to jobs that are due later, and to retries.

        Returns the jobs that have finished. They run as in production: in the app's lifespan, with its middleware and
        hooks, CPU-bound ones in processes. All queues are served, except paused ones.

        Raises:
            TimeoutError: after `timeout` seconds of real time there is still a job to run.
        """
        before = {job.id for job in await self._jobs(FINISHED)}
        while True:
            async with self._worker():
                served = set(self.app.worker.queues if self.app.worker else ())
                await drain(self.app, timeout=timeout)
            if {job.queue for job in await self._jobs(UNFINISHED)} <= served | await self._broker.paused():
                return [job for job in await self._jobs(FINISHED) if job.id not in before]

    async def fire_due(self) -> None:
        """Submit the jobs of the schedules that have become due on the clock since the isolation began."""
        await self._connect()
        await fire_due(self.app)

    # How ----------------------------------------------------------------------------------------

    async def _jobs(self, status: frozenset[TaskStatus]) -> list[Job]:
        return await self._broker.find(JobFilter(status=status), limit=1_000_000, oldest_first=True)

    async def _run_inline(self) -> None:
        if self._is_inline and not self._runs_inline and not self.app.is_running:
            self._runs_inline = True
            try:
                async with self._worker(), asyncio.timeout(30):
                    await finish_what_is_ready(self.app)
            finally:
                self._runs_inline = False

    @contextlib.asynccontextmanager
    async def _worker(self) -> AsyncIterator[None]:
        """Run a worker for all queues, unless the code under test runs one."""
        await self._connect()
        if self.app.is_running:
            yield
            return
        config, executor = self.app.config, self.app.config.executor
        queues = {task.queue: executor.io_workers for task in self.app.registry.values()}
        queues |= {job.queue: executor.io_workers for job in await self._jobs(UNFINISHED)}
        queues |= {"default": executor.io_workers, "cpu": executor.cpu_workers, **(executor.queues or {})}
        self.app.config = dataclasses.replace(config, executor=dataclasses.replace(executor, queues=queues))
        try:
            await self.app.start()
            yield
        finally:
            await self.app.stop(wait=False)
            self.app.config = config

    async def _connect(self) -> None:
        """Keep the stores open on this loop until the end, so that jobs can wait from one drain to the next."""
        await self.app.connect()
        if self.app.sessions.present is not self._session:
            self._clients = contextlib.AsyncExitStack()
            await self._clients.enter_async_context(self.app.client())
            self._session = self.app.sessions.present

    def _begin(self) -> None:
        app = self.app
        app.sync.close()  # what plain code has left open
        if app.sessions.present is not None and app.sessions.present.is_alive:
            raise FlowrraError("the app is open: isolate it before it is started or used")
        firing = type(app.code_schedules)(app)  # one that has fired nothing yet
        changes = {"broker": self._broker, "backend": None, "clock": self.clock, "code_schedules": firing}
        self._change(app, **changes)
        self._change(app.sessions, is_stopped=False)
        if app.schedulers:
            from flowrra_extras.scheduler import MemoryScheduleStore

            for scheduler in app.schedulers:
                self._change(scheduler, store=MemoryScheduleStore(self.clock))

    def _change(self, owner: Any, **values: Any) -> None:
        """Set attributes until the end."""
        for name, value in values.items():
            self._restore.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)

    async def _close(self) -> None:
        """Close the stores without a warning about the jobs that wait."""
        with contextlib.suppress(ExecutorNotRunningError):  # they are closed
            await self._connect()
            for job in await self._jobs(UNFINISHED):
                await self._broker.cancel(job.id, now=self.clock.time())
            await self._clients.aclose()
            await self.app.stop(wait=False)

    def __enter__(self) -> Self:
        self._begin()
        if self.app.schedules:
            self.app.sync.run(self.app.code_schedules.step())  # they count from now
        return self

    def __exit__(self, *_: object) -> None:
        with self._restore:
            if self.app.sync.thread is not None:
                self.app.sync.run(self._close())
                self.app.sync.close()

    async def __aenter__(self) -> Self:
        self._begin()
        await self.app.code_schedules.step()  # they count from now
        return self

    async def __aexit__(self, *_: object) -> None:
        with self._restore:
            await self._close()


class SyncIsolatedApp:
    """An isolated app for code without async."""

    def __init__(self, isolated: IsolatedApp) -> None:
        self._isolated = isolated

    def drain(self, *, timeout: float = 30.0) -> list[Job]:
        """See `IsolatedApp.drain`."""
        return self._isolated.app.sync.run(self._isolated.drain(timeout=timeout))

    def fire_due(self) -> None:
        """See `IsolatedApp.fire_due`."""
        self._isolated.app.sync.run(self._isolated.fire_due())


def isolated(app: Flowrra, *, inline: bool = False, clock: ManualClock | None = None) -> IsolatedApp:
    """Keep the jobs, results and schedules of an app in memory, whatever its URLs say. Nothing is connected.

        async with isolated(app) as test:       # or `with`, in a test that is no coroutine
            await register_user("ada@example.com")
            test.assert_enqueued(send_welcome, "ada@example.com")
            await test.drain()                  # test.sync.drain() in plain code

    The clock moves only with `test.clock.advance(seconds)` or a drain.

    Args:
        app: the app. It must not be open.
        inline: run a ready job before `submit` returns. Otherwise jobs wait for `drain()`.
        clock: the clock of the test; None: a clock that starts at the present time.

    Raises:
        FlowrraError: the app is open already.
    """
    return IsolatedApp(app, clock or ManualClock(time.time()), inline=inline)
