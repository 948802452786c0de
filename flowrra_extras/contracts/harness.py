"""The test harness: an open broker or store, its clock, and short calls for the tests."""

import asyncio
import contextlib
import dataclasses
import functools
import inspect
import itertools
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import Any, TypeVar

from flowrra import LAST_CHANCE, Activity, Broker, Job, JobFilter, Notices, Outcome, TaskStatus, WorkerInfo
from flowrra_extras.testing import ManualClock

SOON = 10.0  # real seconds; a wake-up must come within this time, and takes milliseconds


def job(task_id: str, **fields: Any) -> Job:
    """Return a job of the task `task`."""
    return Job(task_id, fields.pop("task", "task"), **fields)


@contextlib.contextmanager
def raises(kind: type[BaseException], *, match: str = "") -> Iterator[None]:
    """Check that the block raises an exception of this kind, whose text matches the pattern."""
    try:
        yield
    except kind as error:
        if re.search(match, str(error)):
            return
        raise AssertionError(f"{match!r} is not in the text of {error!r}") from error
    raise AssertionError(f"{kind.__name__} was not raised")


T = TypeVar("T", bound=type)
Test = TypeVar("Test", bound=Callable[..., Awaitable[None]])


def for_each(*values: Iterable[Any]) -> Callable[[Test], Test]:
    """Return a decorator: `tests_take` runs the test for each combination of these values, its further arguments."""

    def with_cases(test: Test) -> Test:
        vars(test)["cases"] = list(itertools.product(*values))
        return test

    return with_cases


def tests_take(opened: Callable[[Any], contextlib.AbstractAsyncContextManager[Any]]) -> Callable[[T], T]:
    """Return a class decorator: a test with arguments gets what `opened(contract)` yields, a new one for each case."""

    def with_argument(test: Callable[..., Awaitable[None]]) -> Callable[[Any], Awaitable[None]]:
        @functools.wraps(test)
        async def run(contract: Any) -> None:
            for case in vars(test).get("cases", [()]):
                async with opened(contract) as argument:
                    await test(contract, argument, *case)

        del run.__dict__["__wrapped__"]  # otherwise pytest treats the arguments as fixtures
        return run

    def wrap_tests(contract: T) -> T:
        for name, test in list(vars(contract).items()):
            if name.startswith("test_") and len(inspect.signature(test).parameters) > 1:
                setattr(contract, name, with_argument(test))
        return contract

    return wrap_tests


@dataclasses.dataclass
class Harness:
    """An open broker, its clock, and short calls for the tests."""

    broker: Broker
    clock: ManualClock
    lease: float
    contract: "Contract"
    _workers: dict[str, WorkerInfo] = dataclasses.field(default_factory=dict)

    @property
    def now(self) -> float:
        return self.clock.time()

    async def push(self, *jobs: Job) -> list[str]:
        return await self.broker.push(jobs, now=self.now)

    async def beat(self, worker: str = "w1", lease: float | None = None, **changes: Any) -> Notices:
        """Send a heartbeat of a worker, known or new, with these fields changed."""
        self._workers[worker] = info = dataclasses.replace(self.worker(worker), **changes)
        return await self.beat_as(info, lease)

    async def beat_as(self, info: WorkerInfo, lease: float | None = None) -> Notices:
        """Send a heartbeat with this object. A broker keeps data in it for the next heartbeat."""
        return await self.broker.heartbeat(info, lease=self.lease if lease is None else lease, now=self.now)

    def worker(self, worker: str) -> WorkerInfo:
        """Return the information that a worker, known or new, sends with a heartbeat."""
        new = WorkerInfo(worker, "host", os.getpid(), {"default": 10}, ("task",), self.now)
        return dataclasses.replace(self._workers.get(worker, new))

    async def tell(self, *activity: Activity, worker: str = "w1", lease: float | None = None) -> None:
        """Send a heartbeat with the activity of the worker."""
        await self.beat(worker)
        self._workers[worker].activity = activity
        await self.beat(worker, lease)
        self._workers[worker].activity = ()

    async def claim(
        self, limit: int = 100, worker: str = "w1", queue: str = "default", crashes: int = LAST_CHANCE
    ) -> list[Job]:
        """Claim jobs for a worker. A new worker gets a lease first."""
        if worker not in self._workers:
            await self.beat(worker)
        return await self.broker.claim(queue, limit=limit, worker=worker, now=self.now, crashes=crashes)

    async def claim_ids(
        self, limit: int = 100, worker: str = "w1", queue: str = "default", crashes: int = LAST_CHANCE
    ) -> list[str]:
        return [job.id for job in await self.claim(limit, worker, queue, crashes)]

    async def run(self, *jobs: Job) -> list[Job]:
        """Push the jobs and claim them."""
        await self.push(*jobs)
        return await self.claim()

    async def settle(self, *outcomes: Outcome) -> list[bool]:
        return await self.broker.settle(outcomes, now=self.now)

    async def cancel(self, task_id: str) -> bool:
        return await self.broker.cancel(task_id, now=self.now)

    async def requeue(self, *task_ids: str) -> list[bool]:
        return await self.broker.requeue(task_ids, now=self.now)

    async def find(self, **which: Any) -> list[str]:
        return [job.id for job in await self.broker.find(JobFilter(**which))]

    async def job(self, task_id: str) -> Job:
        (found,) = await self.broker.find(JobFilter(ids=[task_id]))
        return found

    async def status(self, task_id: str) -> TaskStatus:
        return (await self.job(task_id)).status

    async def statuses(self, *task_ids: str) -> list[str]:
        return [str(await self.status(task_id)) for task_id in task_ids]

    async def endings(self, task_id: str) -> list[tuple[int, str]]:
        """Return the recorded attempts of a job: number and outcome."""
        return [(attempt.number, attempt.outcome) for attempt in (await self.job(task_id)).attempts]

    @contextlib.asynccontextmanager
    async def woken(self, queue: str = "default") -> AsyncIterator[None]:
        """Check that the block wakes a caller that waits for jobs of the queue."""
        waiting = asyncio.ensure_future(self.broker.wait([("queue", queue)], 60))
        await asyncio.sleep(0.05)
        yield
        await asyncio.wait_for(waiting, SOON)

    async def lapse(self, share: float = 1.1) -> None:
        """Let this share of a lease pass."""
        await self.contract.let_pass(self.broker, self.clock, self.lease * share)

    async def crash(self, worker: str, *, seen_by: str) -> Notices:
        """Let the lease of `worker` end, while the worker `seen_by` renews its own."""
        await self.beat(seen_by)
        await self.lapse(0.6)
        await self.beat(seen_by)
        await self.lapse(0.6)
        return await self.beat(seen_by)


class Contract:
    """The base of all parts of the contract; see `BrokerContract`."""

    lease = 10.0

    async def make_broker(self, clock: ManualClock) -> Broker:
        raise NotImplementedError("a subclass returns a broker on an empty store, not opened yet")

    async def let_pass(self, broker: Broker, clock: ManualClock, seconds: float) -> None:
        clock.advance(seconds)

    @contextlib.asynccontextmanager
    async def harness(self) -> AsyncIterator[Harness]:
        """Yield an open broker on an empty store, and close it at the end."""
        clock = ManualClock()
        broker = await self.make_broker(clock)
        await broker.open()
        try:
            yield Harness(broker, clock, self.lease, self)
        finally:
            await broker.close()


def outcomes_of() -> list[Callable[[Job, float], Outcome]]:
    """Return for each kind of outcome a function of a job and the time that makes it."""
    return [
        lambda job, now: Outcome.succeed(job, "late"),
        lambda job, now: Outcome.fail(job, "late"),
        lambda job, now: Outcome.retry_at(job, now + 1, "late"),
        lambda job, now: Outcome.release(job, "late"),
        lambda job, now: Outcome.release(job, "late", due=now + 1),
        lambda job, now: Outcome.cancel(job, "late"),
    ]


async def job_in(t: Harness, status: TaskStatus, **fields: Any) -> Job:
    """Return a job with the id "a" in this state."""
    if status is TaskStatus.BLOCKED:
        await t.push(job("parent", queue="parents"))
        fields["parents"] = ("parent",)
    if status is TaskStatus.SCHEDULED:
        fields["due"] = t.now + 60
    await t.push(job("a", **fields))
    if status not in (TaskStatus.SCHEDULED, TaskStatus.BLOCKED, TaskStatus.PENDING):
        (claimed,) = await t.claim()
        endings = {
            TaskStatus.RETRYING: Outcome.retry_at(claimed, t.now + 60, "boom", "line 1"),
            TaskStatus.SUCCESS: Outcome.succeed(claimed, 1),
            TaskStatus.FAILED: Outcome.fail(claimed, "boom", "line 1"),
            TaskStatus.CANCELLED: Outcome.cancel(claimed, "asked to"),
        }
        if status in endings:
            assert await t.settle(endings[status]) == [True]
    found = await t.job("a")
    assert found.status is status
    return found
