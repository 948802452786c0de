"""Run all jobs that can run, and fire the schedules that are due."""

import asyncio
import itertools

from flowrra import ExecutorNotRunningError, Flowrra, Job, JobFilter, TaskStatus
from flowrra_extras.testing.clock import ManualClock


async def fire_due(app: Flowrra) -> None:
    """Fire the schedules of `app` that are due on its clock: those in code and the stored ones.

    A running app does this, too, but checks only once per second of real time. A schedule in code counts from the first
    call, or from the start of the app: call `await fire_due(app)`, advance the clock, and call it again.
    """
    for schedules in (app.code_schedules, *app.schedulers):
        while await schedules.step() == 0.0:
            pass
    await _wake(app)


async def drain(app: Flowrra, *, timeout: float = 30.0) -> None:
    """Let the running `app` work until nothing is left that it can run.

    A `ManualClock` is moved forward to jobs that are due later, including retries. With another clock, such jobs are
    left. Jobs in paused queues, in queues that this app does not serve, and of tasks that it does not know are also
    left.

    Args:
        app: the running app.
        timeout: seconds of real time.

    Raises:
        ExecutorNotRunningError: the app is not running: call it inside `async with app:`.
        TimeoutError: after `timeout` seconds of real time there is still a job to run.
    """
    if app.worker is None:
        raise ExecutorNotRunningError("drain(app) needs a worker: call it inside `async with app:`")
    async with asyncio.timeout(timeout):
        while True:
            due = await finish_what_is_ready(app)
            if due is None or not isinstance(app.clock, ManualClock):
                return
            app.clock.advance(due - app.now())
            await _wake(app)


_UNFINISHED = frozenset((TaskStatus.PENDING, TaskStatus.RUNNING, TaskStatus.SCHEDULED, TaskStatus.RETRYING))


async def finish_what_is_ready(app: Flowrra) -> float | None:
    """Wait until all jobs that can run have run. Return when the next one is due."""
    for pause in itertools.chain((0.0, 0.001, 0.002, 0.005), itertools.repeat(0.01)):
        moments = [job.due or 0.0 for job in await _served(app, _UNFINISHED)]
        if all(moment > app.now() for moment in moments):
            return min(moments, default=None)
        await asyncio.sleep(pause)
    raise AssertionError("the pauses never end")


async def _served(app: Flowrra, status: frozenset[TaskStatus]) -> list[Job]:
    """Return the jobs in these states that this app's worker would run."""
    queues = set(app.worker.queues if app.worker else ()) - await app.broker.paused()
    found: list[Job] = []
    after: int | None = None
    while page := await app.broker.find(JobFilter(status=status), limit=1_000, after=after):
        found += [job for job in page if job.queue in queues and job.task in app.registry]
        after = page[-1].seq
    return found


async def _wake(app: Flowrra) -> None:
    """Tell the worker that the clock has moved. It cannot notice this itself, because it waits by real time."""
    if app.worker is None:
        return
    await app.broker.heartbeat(app.worker, lease=app.config.executor.lease, now=app.now())
    for queue in set(app.worker.queues) - await app.broker.paused():
        await app.broker.set_queue(queue, paused=False)  # changes nothing, but wakes who waits for it
