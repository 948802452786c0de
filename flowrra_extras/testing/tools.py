"""A clock that a test moves, and running what there is to run."""

import asyncio
import itertools

from flowrra import Clock, ExecutorNotRunningError, Flowrra, Job, JobFilter, TaskStatus


class ManualClock(Clock):
    """A clock that stands still until it is told to move."""

    def __init__(self, wall: float = 1_700_000_000.0, monotonic: float = 1_000.0) -> None:
        self._wall = wall
        self._monotonic = monotonic

    def time(self) -> float:
        return self._wall

    def monotonic(self) -> float:
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Let so much time pass."""
        if seconds < 0:
            raise ValueError(f"time does not pass backwards ({seconds!r} s): jump_wall() is for wrong clocks")
        self._wall += seconds
        self._monotonic += seconds

    def jump_wall(self, seconds: float) -> None:
        """Set the wall clock forward or back, as an administrator or NTP does; no time passes."""
        self._wall += seconds


async def fire_due(app: Flowrra) -> None:
    """Fire the schedules of `app` that are due on its clock, those in code and the stored ones.

    A running app does so too, but looks once a second by real time. A schedule in code counts from the
    first call, or from the start of the app: `await fire_due(app)`, advance the clock, and again.
    """
    for schedules in (app.code_schedules, *app.schedulers):
        while await schedules.step() == 0.0:
            pass
    await _wake(app)


async def drain(app: Flowrra, *, timeout: float = 30.0) -> None:
    """Let the running `app` work until there is nothing left that it could do.

    On a `ManualClock`, time is put forward to what is due later, retries included; on another clock
    that is left where it is. So are jobs in paused queues, in queues that this app does not serve, and
    of tasks that it does not know.

    Raises:
        ExecutorNotRunningError: the app is not running: call it inside `async with app:`.
        TimeoutError: after `timeout` seconds of real time there is still something to do.
    """
    if app.worker is None:
        raise ExecutorNotRunningError("drain(app) needs a worker: call it inside `async with app:`")
    async with asyncio.timeout(timeout):
        while True:
            due = await _finish_what_is_ready(app)
            if due is None or not isinstance(app.clock, ManualClock):
                return
            app.clock.advance(due - app.now())
            await _wake(app)


_UNFINISHED = frozenset((TaskStatus.PENDING, TaskStatus.RUNNING, TaskStatus.SCHEDULED, TaskStatus.RETRYING))


async def _finish_what_is_ready(app: Flowrra) -> float | None:
    """Wait until every job that could run has run; when the next one is due."""
    for pause in itertools.chain((0.0, 0.001, 0.002, 0.005), itertools.repeat(0.01)):
        moments = [job.due or 0.0 for job in await _served(app, _UNFINISHED)]
        if all(moment > app.now() for moment in moments):
            return min(moments, default=None)
        await asyncio.sleep(pause)
    raise AssertionError("the pauses never end")


async def _served(app: Flowrra, status: frozenset[TaskStatus]) -> list[Job]:
    """The jobs in these states that this app's worker would run."""
    queues = set(app.worker.queues if app.worker else ()) - await app.broker.paused()
    found: list[Job] = []
    after: int | None = None
    while page := await app.broker.find(JobFilter(status=status), limit=1_000, after=after):
        found += [job for job in page if job.queue in queues and job.task in app.registry]
        after = page[-1].seq
    return found


async def _wake(app: Flowrra) -> None:
    """Tell the worker that the clock has moved, which it could not notice: it waits by real time."""
    if app.worker is None:
        return
    await app.broker.heartbeat(app.worker, lease=app.config.executor.lease, now=app.now())
    for queue in set(app.worker.queues) - await app.broker.paused():
        await app.broker.set_queue(queue, paused=False)  # changes nothing, but wakes who waits for it
