"""Tools for tests: an app whose jobs stay in memory and run when the test says so, and a clock that the test moves.

::

    async with isolated(app) as test:  # or `with`, and test.sync.drain(), in a test that is no coroutine
        await register_user("ada@example.com")
        test.assert_enqueued(send_welcome, "ada@example.com")
        await test.drain()

`drain` and `fire_due` do the same for an app that runs on its configured store. The fixture `flowrra_app` of the
pytest plugin is an isolated app.
"""

import asyncio
import contextlib
import dataclasses
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ParamSpec, Self, TypeVar

import flowrra

__all__ = [
    "EnqueuedJob",
    "IsolatedApp",
    "ManualClock",
    "StandInJob",
    "SyncIsolatedApp",
    "drain",
    "fire_due",
    "isolated",
    "job_context",
]

P = ParamSpec("P")
T = TypeVar("T")


class ManualClock(flowrra.Clock):
    """A clock that moves only when a test moves it.

    Args:
        wall: the first time of the wall clock, in seconds since the epoch.
        monotonic: the first time of the clock for leases and waits, in seconds.
    """

    def __init__(self, wall: float = 1_700_000_000.0, monotonic: float = 1_000.0) -> None:
        self._wall = wall
        self._monotonic = monotonic

    def time(self) -> float:
        return self._wall

    def monotonic(self) -> float:
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Move the clock forward by that many seconds."""
        if seconds < 0:
            raise ValueError(f"advance() cannot go back ({seconds!r} s): jump_wall() sets a wrong wall clock")
        self._wall += seconds
        self._monotonic += seconds

    def jump_wall(self, seconds: float) -> None:
        """Set the wall clock forward or back, as an administrator or NTP does. No time passes."""
        self._wall += seconds


# A task that is called directly ------------------------------------------------------------------


class StandInJob(flowrra.JobContext):
    """What `current_job()` returns inside `job_context()`. `reported` is the progress that the task reported."""

    __slots__ = ("_events", "_state", "reported")

    def __init__(self, job: flowrra.Job, state: Any, events: Mapping[str, Any]) -> None:
        super().__init__(job)
        self._state = state
        self._events = events
        self.reported: list[flowrra.Progress] = []

    @property
    def state(self) -> Any:
        return self._state

    def report(self, progress: flowrra.Progress) -> None:
        self.reported.append(progress)

    def count_wait(self, change: int) -> None:
        pass  # there is no slot to be freed

    async def keep_step(self, step: flowrra.Step) -> None:
        self.job.steps = (*self.job.steps, step)

    async def find_event(self, name: str) -> str | None:
        return flowrra.encode(self._events[name]) if name in self._events else None

    def wait_until(self, call: Coroutine[Any, Any, T]) -> T:
        return asyncio.run(call)


@contextlib.contextmanager
def job_context(
    *,
    attempt: int = 1,
    failures: int | None = None,
    id: str = "test",
    queue: str = "default",
    state: Any = None,
    events: Mapping[str, Any] = MappingProxyType({}),
) -> Iterator[StandInJob]:
    """Call a task directly although it uses `current_job()`: it gets a job of this attempt.

        with job_context(attempt=3) as job:
            await fetch("https://example.com")
        assert job.reported[-1].done == 1

    Args:
        attempt: the number of the attempt.
        failures: the number of failures before it; None: one less than `attempt`.
        id: the id of the job.
        queue: the queue of the job.
        state: stands for the value that the app's lifespan yields.
        events: the events that have been emitted, with their payloads.
    """
    job = flowrra.Job(id, "test", queue=queue, attempt=attempt, failures=attempt - 1 if failures is None else failures)
    context = StandInJob(job, state, events)
    token = flowrra.current_job_var.set(context)
    try:
        yield context
    finally:
        flowrra.current_job_var.reset(token)


# What an app has to do, without waiting for it ---------------------------------------------------


async def fire_due(app: flowrra.Flowrra) -> None:
    """Fire the schedules of `app` that are due on its clock: those in code and the stored ones.

    A running app does this, too, but checks only once per second of real time. A schedule in code counts from the first
    call, or from the start of the app: call `await fire_due(app)`, advance the clock, and call it again.
    """
    for schedules in (app.code_schedules, *app.schedulers):
        while await schedules.step() == 0.0:
            pass
    await _wake(app)


async def drain(app: flowrra.Flowrra, *, timeout: float = 30.0) -> None:
    """Let the running `app` work until nothing is left that it can run.

    A `ManualClock` is moved forward to jobs that are due later, including retries and jobs that wait for the rate of a
    limit. With another clock, such jobs are left. Jobs in paused queues, in queues that this app does not serve, and
    of tasks that it does not know are also left.

    Args:
        app: the running app.
        timeout: seconds of real time.

    Raises:
        ExecutorNotRunningError: the app is not running: call it inside `async with app:`.
        TimeoutError: after `timeout` seconds of real time there is still a job to run.
    """
    if app.worker is None:
        raise flowrra.ExecutorNotRunningError("drain(app) needs a worker: call it inside `async with app:`")
    async with asyncio.timeout(timeout):
        while True:
            due = await finish_what_is_ready(app)
            if due is None or not isinstance(app.clock, ManualClock):
                return
            app.clock.advance(due - app.now())
            await _wake(app)


_RUNNABLE = flowrra.UNFINISHED - {flowrra.TaskStatus.BLOCKED}


async def finish_what_is_ready(app: flowrra.Flowrra) -> float | None:
    """Wait until all jobs that can run have run. Return when the next one is due."""
    for pause in itertools.chain((0.0, 0.001, 0.002, 0.005), itertools.repeat(0.01)):
        moments = [job.due or 0.0 for job in await _served(app, _RUNNABLE)] + await _admissions(app)
        if all(moment > app.now() for moment in moments):
            return min(moments, default=None)
        await asyncio.sleep(pause)
    raise AssertionError("the pauses never end")


async def _served(app: flowrra.Flowrra, status: frozenset[flowrra.TaskStatus]) -> list[flowrra.Job]:
    """Return the jobs in these states that this app's worker would run."""
    queues = set(app.worker.queues if app.worker else ()) - await app.broker.paused()
    found: list[flowrra.Job] = []
    after: int | None = None
    while page := await app.broker.find(flowrra.JobFilter(status=status), limit=1_000, after=after):
        found += [job for job in page if job.queue in queues and job.task in app.registry]
        after = page[-1].seq
    return found


async def _admissions(app: flowrra.Flowrra) -> list[float]:
    """Return when rates let jobs run that this app's worker would run. Other jobs of limits wait for those that run."""
    blocked = await _served(app, frozenset({flowrra.TaskStatus.BLOCKED}))
    names = sorted({flowrra.limit_key(job) for job in blocked if flowrra.awaits_limit(job)})
    return [state.due for state in await app.broker.limit_states(names) if state.due is not None]


async def _wake(app: flowrra.Flowrra) -> None:
    """Tell the worker that the clock has moved. It cannot notice this itself, because it waits by real time."""
    if app.worker is None:
        return
    await app.broker.heartbeat(app.worker, lease=app.config.executor.lease, now=app.now())
    for queue in set(app.worker.queues) - await app.broker.paused():
        await app.broker.set_queue(queue, paused=False)  # changes nothing, but wakes who waits for it


# An isolated app ---------------------------------------------------------------------------------

_RETENTION = flowrra.BackendConfig(result_ttl=1e9, failed_ttl=1e9)  # nothing is purged because a test moves the clock


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
    limit: str | None
    key: str | None
    tags: tuple[str, ...]
    meta: Mapping[str, Any]
    overrides: Mapping[str, Any]  #: what else was given, such as `timeout` and `max_retries`

    @property
    def options(self) -> Mapping[str, Any]:
        """What `task.options(...)` sets, without the id."""
        names = ("queue", "priority", "delay", "expires", "unique")
        given = {name: value for name in ("limit", "key", "tags", "meta") if (value := getattr(self, name))}
        return {**dict(self.overrides), **given, **{name: getattr(self, name) for name in names}}

    def has_options_of(self, wanted: "EnqueuedJob") -> bool:
        """Whether the options are the same. Hooks may have added tags and meta."""
        has_labels = {*wanted.tags} <= {*self.tags} and wanted.meta.items() <= self.meta.items()
        return has_labels and dataclasses.replace(self, tags=wanted.tags, meta=wanted.meta).options == wanted.options


def _enqueued(app: flowrra.Flowrra, job: flowrra.Job, now: float) -> EnqueuedJob:
    args, kwargs = flowrra.decode_arguments(job)
    task = app.registry.get(job.task)
    if task is not None and task.converters is not None and not job.parents:
        with contextlib.suppress(flowrra.SerializationError):  # a worker says so
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
        limit=job.limit,
        key=job.key,
        tags=job.tags,
        meta=job.meta or {},
        overrides=job.overrides or {},
    )


def _arguments(task: flowrra.Task[..., Any], job: EnqueuedJob) -> Mapping[str, Any]:
    """Return the arguments by name, however they were passed."""
    bound = task.signature.bind(*job.args, **job.kwargs)
    bound.apply_defaults()
    return bound.arguments


class _RecordingBroker(flowrra.MemoryBroker):
    """Records each job as it was when it was pushed."""

    def __init__(self, app: flowrra.Flowrra, clock: ManualClock, after_push: Callable[[], Awaitable[None]]) -> None:
        super().__init__(app.config.broker, _RETENTION, clock)
        self.enqueued: dict[str, EnqueuedJob] = {}
        self._app = app
        self._after_push = after_push

    async def push(self, jobs: Sequence[flowrra.Job], *, now: float, by: str | None = None) -> list[str]:
        ids = await super().push(jobs, now=now, by=by)
        for job, task_id in zip(jobs, ids, strict=True):
            if job.id == task_id:  # else the unique key was taken
                self.enqueued.setdefault(task_id, _enqueued(self._app, job, now))
        await self._after_push()
        return ids

    def push_in(self, connection: Any, jobs: Sequence[flowrra.Job], *, now: float) -> Awaitable[list[str]]:
        return self.push(jobs, now=now)  # whether the caller's transaction commits is not looked at


class IsolatedApp:
    """An isolated app, made by `isolated(app)`. Its `sync` has `drain` and `fire_due` for code without async."""

    def __init__(self, app: flowrra.Flowrra, clock: ManualClock, *, inline: bool) -> None:
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

    def enqueued(self, task: flowrra.Task[..., Any] | None = None) -> list[EnqueuedJob]:
        """Return the jobs of this task, or all jobs, that were submitted since the isolation began, in that order."""
        return [job for job in self._broker.enqueued.values() if task is None or job.task == task.name]

    def assert_enqueued(
        self, task: flowrra.Task[P, Any] | flowrra.Submission[P, Any], /, *args: P.args, **kwargs: P.kwargs
    ) -> EnqueuedJob:
        """Return the latest job of a task with these arguments; for `task.options(...)`, one with these options.

        Raises:
            AssertionError: there is none; the message lists the jobs of the task.
            TypeError: the arguments do not fit the task.
        """
        wanted = _enqueued(self.app, task.make_job(args, kwargs), self.clock.time())
        plain = task.task if isinstance(task, flowrra.Submission) else task
        jobs = self.enqueued(plain)
        for job in reversed(jobs):
            has_options = task is plain or job.has_options_of(wanted)
            if has_options and _arguments(plain, job) == _arguments(plain, wanted):
                return job
        listed = "".join(f"\n  {job}" for job in jobs) or " none"
        raise AssertionError(f"{plain.name} was not enqueued as\n  {wanted}\nbut there are:{listed}")

    async def drain(self, *, timeout: float = 30.0) -> list[flowrra.Job]:
        """Run all jobs. The clock is moved forward to jobs that are due later, and to retries.

        Returns the jobs that have finished. They run as in production: in the app's lifespan, with its middleware and
        hooks, CPU-bound ones in processes. All queues are served, except paused ones.

        Raises:
            TimeoutError: after `timeout` seconds of real time there is still a job to run.
        """
        before = {job.id for job in await self._jobs(flowrra.FINISHED)}
        while True:
            async with self._worker():
                served = set(self.app.worker.queues if self.app.worker else ())
                await drain(self.app, timeout=timeout)
            if {job.queue for job in await self._jobs(flowrra.UNFINISHED)} <= served | await self._broker.paused():
                return [job for job in await self._jobs(flowrra.FINISHED) if job.id not in before]

    async def fire_due(self) -> None:
        """Submit the jobs of the schedules that have become due on the clock since the isolation began."""
        await self._connect()
        await fire_due(self.app)

    # How ----------------------------------------------------------------------------------------

    async def _jobs(self, status: frozenset[flowrra.TaskStatus]) -> list[flowrra.Job]:
        return await self._broker.find(flowrra.JobFilter(status=status), limit=1_000_000, oldest_first=True)

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
        queues |= {job.queue: executor.io_workers for job in await self._jobs(flowrra.UNFINISHED)}
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
            raise flowrra.FlowrraError("the app is open: isolate it before it is started or used")
        firing = type(app.code_schedules)(app)  # one that has fired nothing yet
        self._change(app, broker=self._broker, backend=None, clock=self.clock, code_schedules=firing)
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
        with contextlib.suppress(flowrra.ExecutorNotRunningError):  # they are closed
            await self._connect()
            for job in await self._jobs(flowrra.UNFINISHED):
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

    def drain(self, *, timeout: float = 30.0) -> list[flowrra.Job]:
        """See `IsolatedApp.drain`."""
        return self._isolated.app.sync.run(self._isolated.drain(timeout=timeout))

    def fire_due(self) -> None:
        """See `IsolatedApp.fire_due`."""
        self._isolated.app.sync.run(self._isolated.fire_due())


def isolated(app: flowrra.Flowrra, *, inline: bool = False, clock: ManualClock | None = None) -> IsolatedApp:
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
