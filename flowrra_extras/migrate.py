"""Moves jobs from one broker to another while workers run on both: `python -m flowrra migrate SRC DST`.

    moved = await migrate("sqlite:///jobs.db", "redis://localhost:6379/0", results=True)

No job can ever run on both sides, whatever happens between any two of these steps:

    hold at the source > adopt at the target, held > remove from the source > end the hold at the target

The hold of a copy at the target ends only when the source no longer has the job, because only a move removes an
unfinished job from a store. So a second start can see from the two stores how far the first one got. A family (parents
and children) is adopted completely before a member is removed. If a member is running, the whole family stays.

Events that have been emitted are emitted at the target, too. One that has not been emitted stays: a job that waits for
it runs at the target as soon as it has moved, and begins to wait there.

Schedules have separate stores and are not moved. This module uses the broker protocol only, and no specific store.
"""

import asyncio
import collections
import contextlib
import itertools
import os
import socket
import time
import urllib.parse
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flowrra import (
    BLOCKED,
    EVENT,
    FINISHED,
    RUNNING,
    SUCCESS,
    UNFINISHED,
    Broker,
    BrokerError,
    Clock,
    Config,
    ConfigError,
    Job,
    JobFilter,
    MemoryBroker,
    Notices,
    SerializationError,
    SQLiteBroker,
    TaskStatus,
    WorkerInfo,
    awaited_event,
    broker_from_url,
    describe,
    encode,
    jittered,
    join_limit_key,
    logger,
    result_from,
)
from flowrra_extras.urls import read_server_url

__all__ = ["Moved", "adopt_jobs", "count_open_events", "hold_jobs", "migrate", "opened", "shared_broker", "unhold_jobs"]

_BATCH = 500  # jobs in one step; they cannot run on either side during the step
_PAGE = 1_000  # jobs in one read
_LEASE = 3.0  # seconds after which another start may take over from one that died


@dataclass(slots=True)
class Moved:
    """The result of a move, or its progress so far.

    `jobs` counts the moved jobs by the state in which they were found, `resumed` those that an earlier run had left
    half-moved, `waiting` those that are known to be left to move, `events` the emitted events that were copied. Of the
    jobs that stayed, `running` run at the source, `relatives` wait there for such a job or belong to a family with a
    job that stays, and `stays` gives, by id, the reason for each other one. `paused` are the queues that the move
    paused at the target, because the source had. `limits` are those that it declared at the target, `kept` those that
    have other numbers there and keep them, and `paused_keys` the limit keys that it paused there.
    """

    jobs: collections.Counter[TaskStatus] = field(default_factory=collections.Counter)
    resumed: int = 0
    results: int = 0
    events: int = 0
    waiting: int = 0
    running: int = 0
    relatives: int = 0
    stays: dict[str, str] = field(default_factory=dict)
    paused: list[str] = field(default_factory=list)
    limits: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    paused_keys: list[str] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """Whether the source had no unfinished job left at the end."""
        return not (self.running or self.relatives or self.stays)


async def migrate(
    source: Broker | str,
    target: Broker | str,
    *,
    results: bool = False,
    wait: float = 30.0,
    clock: Clock | None = None,
    tell: Callable[[Moved], None] = lambda _: None,
) -> Moved:
    """Move all unfinished jobs and, with `results`, copy the results of finished ones.

    Jobs keep all their data, including their attempts, and their order in the queue. A family moves together, at the
    place of its oldest job. If the move was interrupted, start it again to continue. When everything has moved, another
    start changes nothing. If it is cancelled, it ends the current step first.

    Args:
        source: the broker that has the jobs: a URL or an open broker.
        target: the broker that receives them: a URL or an open broker.
        results: also copy the results of finished jobs. They stay at the source too, until their retention there ends.
        wait: how many seconds to wait for jobs that are running at the source, because they may be released. After
            that they stay, with their relatives.
        clock: the wall clock.
        tell: called with the progress at the start and after each step.

    Returns:
        The number of jobs that moved and that stayed, with the reasons.

    Raises:
        ConfigError: both sides are one store, or a side does not support moves.
        BrokerError: a store failed, or this move already runs elsewhere; held jobs wait for the next start.
    """
    if not wait >= 0.0:  # nor is NaN
        raise ConfigError(f"wait must be a number of seconds, at least 0, not {wait!r}")
    async with contextlib.AsyncExitStack() as stack:
        sides = [await opened(side, stack) for side in (source, target)]
        move = _Move(*sides, by=_holder(*map(_name, sides)), clock=clock or Clock(), tell=tell)
        async with move.alone():
            tell(move.moved)
            await move.run(wait)
            if results:
                await move.copy_results()
        return move.moved


async def opened(side: Broker | str, stack: contextlib.AsyncExitStack) -> Broker:
    """Return a side of the move as an open broker. A broker that was given by its URL is closed with `stack`."""
    if isinstance(side, Broker):
        return side
    broker = shared_broker(side)
    await broker.open()
    stack.push_async_callback(broker.close)
    return broker


def shared_broker(url: str) -> Broker:
    """Return the broker of a URL; ConfigError if other processes cannot open its store."""
    broker = broker_from_url(url, Config(), Clock())
    if isinstance(broker, MemoryBroker) or (isinstance(broker, SQLiteBroker) and broker.path is None):
        raise ConfigError(f"{url} is private to one process: name a store that several processes can open")
    return broker


def _name(broker: Broker) -> str:
    """Return a name of the store that is unique, the same at every start, and contains no password."""
    if isinstance(broker, SQLiteBroker):
        return f"sqlite:///{broker.path or ''}"
    url = str(getattr(broker, "url", type(broker).__name__))
    if "://" not in url:
        return url
    parts = read_server_url(url)
    query = urllib.parse.urlencode({name: text for name, text in parts.options.items() if "password" not in name})
    return f"{parts.shown}?{query}" if query else parts.shown


def _holder(source: str, target: str) -> str:
    """Return the name that holds the jobs of this move, on both sides."""
    return f"migrate {source} {target}"


# The waiting jobs of a store ---------------------------------------------------------------------


async def hold_jobs(broker: Broker, task_ids: Sequence[str], *, by: str, now: float) -> list[bool]:
    """Hold waiting jobs: each becomes BLOCKED, with `by` as its worker. False: the job is running or has ended."""
    return await broker.change(task_ids, "hold", now=now, by=by)


async def adopt_jobs(broker: Broker, jobs: Sequence[Job], *, by: str, now: float) -> list[bool]:
    """Add jobs of another store, held by `by`. False: an unfinished job of this store has the same unique key."""
    return [taken == job.id for taken, job in zip(await broker.push(jobs, now=now, by=by), jobs, strict=True)]


async def unhold_jobs(broker: Broker, task_ids: Sequence[str], *, by: str, gone: bool, now: float) -> list[bool]:
    """End a hold: the job waits as before or, with `gone`, is removed from the store without a trace."""
    if not gone:
        return await broker.change(task_ids, "unhold", now=now, by=by)
    left = await broker.remove(task_ids, by=by)
    return [task_id in left for task_id in task_ids]


class _Survey:
    """The unfinished jobs of a store at one moment: which ones wait, and which ones are related."""

    def __init__(self, by: str) -> None:
        self._by = by
        self.waiting: dict[str, TaskStatus] = {}  # in order of submission
        self.queues: set[str] = set()
        self.running: set[str] = set()
        self.held: set[str] = set()  # waiting jobs that an earlier start of this move holds
        self.others: dict[str, str] = {}  # held by another move
        self._parents: dict[str, tuple[str, ...]] = {}

    def add(self, job: Job) -> None:
        if job.task == EVENT:
            return
        if job.status is RUNNING:
            self.running.add(job.id)
        elif job.worker not in (None, self._by):
            self.others[job.id] = str(job.worker)
        else:
            self.waiting[job.id] = job.status
            self.queues.add(job.queue)
            if job.worker is not None:
                self.held.add(job.id)
        if job.parents:
            self._parents[job.id] = job.parents

    def families(self) -> Iterator[list[str]]:
        """Yield the waiting jobs as families, the oldest first. Most jobs are alone; finished parents do not count."""
        near: dict[str, list[str]] = collections.defaultdict(list)
        for child, parents in self._parents.items():
            for parent in parents:
                if parent in self.waiting or self.stays(parent):
                    near[child].append(parent)
                    near[parent].append(child)
        seen: set[str] = set()
        for task_id in self.waiting:
            if task_id not in near:
                yield [task_id]
            elif task_id not in seen:
                family = _reachable(task_id, near)
                seen |= family
                yield list(family)

    def stays(self, task_id: str) -> bool:
        """Whether the job cannot be moved; then its relatives cannot be moved either."""
        return task_id in self.running or task_id in self.others


def _reachable(start: str, near: Mapping[str, Sequence[str]]) -> set[str]:
    found, left = {start}, [start]
    while left:
        for other in near[left.pop()]:
            if other not in found:
                found.add(other)
                left.append(other)
    return found


def _batches(families: Iterable[list[str]]) -> Iterator[list[list[str]]]:
    """Yield groups of complete families, each group for one step."""
    batch: list[list[str]] = []
    size = 0
    for family in families:
        batch.append(family)
        size += len(family)
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _parts(items: Iterable[Any]) -> Iterator[list[Any]]:
    left = iter(items)
    while part := list(itertools.islice(left, _BATCH)):
        yield part


async def _found(broker: Broker, ids: Iterable[str]) -> list[Job]:
    """Return the jobs with these ids, in order of submission."""
    jobs: list[Job] = []
    for part in _parts(dict.fromkeys(ids)):
        jobs += await broker.find(JobFilter(ids=part), limit=len(part))
    return sorted(jobs, key=lambda job: job.seq)


async def _pages(broker: Broker, which: JobFilter) -> AsyncIterator[list[Job]]:
    """Yield the jobs in order of submission, in pages."""
    after = None
    while page := await broker.find(which, limit=_PAGE, after=after, oldest_first=True):
        yield page
        after = page[-1].seq


async def _copy_limits(source: Broker, target: Broker, now: float, moved: Moved) -> None:
    """Declare the limits of the source at the target, unless it has others, and pause the keys that are paused."""
    uses = await source.limits()
    if uses and not target.has_limits:
        raise ConfigError(f"the target has no limits, and the source has the limit {uses[0].limit.name!r}")
    known = {use.limit.name: use.limit for use in await target.limits() if use.is_declared}
    for use in uses:
        if use.is_declared and use.limit.name not in known:
            await target.set_limit(use.limit, now=now)
            moved.limits.append(use.limit.name)
        elif use.is_declared and known[use.limit.name] != use.limit:
            moved.kept.append(use.limit.name)
        if names := [join_limit_key(use.limit.name, key) for key in use.paused]:
            done = await target.change(names, "pause", now=now)
            moved.paused_keys += itertools.compress(names, done)


async def _emit(events: Sequence[Job], target: Broker, now: float, moved: Moved) -> None:
    known = await target.get([event.id for event in events])
    for event, old in zip(events, known, strict=True):
        if old is None or old.status not in FINISHED:
            moved.events += sum(await target.change([event.id], "emit", now=now, by=encode(event.result)))


async def count_open_events(broker: Broker) -> int:
    """Return the number of events that jobs wait for and that have not been emitted. A move leaves them."""
    return sum([len(page) async for page in _pages(broker, JobFilter(task=EVENT, status=UNFINISHED))])


# The move ----------------------------------------------------------------------------------------


class _Move:
    """Moves the waiting jobs of the source, family by family."""

    def __init__(self, source: Broker, target: Broker, *, by: str, clock: Clock, tell: Callable[[Moved], None]) -> None:
        self._source = source
        self._target = target
        self._by = by
        self._clock = clock
        self._report = tell
        self._me = WorkerInfo(f"{by} {uuid.uuid4().hex[:8]}", socket.gethostname(), os.getpid(), started=clock.time())
        self._is_superseded = False
        self._lost: BaseException | None = None  # the error because of which the lease was not renewed in time
        self.moved = Moved()

    # One at a time -----------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Make sure that only one process runs this move. It takes a lease as a worker of the source, without jobs.

        If two processes ran the same move, each could undo steps of the other, and a job could be lost on both sides.
        """
        # Both brokers must support moves: checked before any job is held.
        await hold_jobs(self._source, [], by=self._by, now=self._clock.time())
        await adopt_jobs(self._target, [], by=self._by, now=self._clock.time())
        await self._enter()
        beating = asyncio.create_task(self._keep_beating())
        try:
            if self._me.id in {worker.id for worker in await self._target.workers()}:
                raise ConfigError("the source and the target are one store: there is nothing to move")
            yield
        finally:
            beating.cancel()
            await asyncio.wait([beating])
            with contextlib.suppress(BrokerError):
                await self._beat(0.0)

    async def _enter(self) -> None:
        """Register this move. If the same move is registered already, unregister and try again for a few seconds."""
        patience = time.monotonic() + 2 * _LEASE + 2.0  # the lease of one that died may be renewed once: Lease.graced
        while True:
            await self._beat(_LEASE)
            others = await self._others()
            if not others:
                return
            await self._beat(0.0)
            if time.monotonic() > patience:
                raise BrokerError(f"this move is already running on {others[0].host} with the pid {others[0].pid}")
            await asyncio.sleep(jittered(0.4))

    async def _beat(self, lease: float) -> Notices:
        return await self._source.heartbeat(self._me, lease=lease, now=self._clock.time())

    async def _others(self) -> list[WorkerInfo]:
        workers = await self._source.workers()
        return [worker for worker in workers if worker.id.startswith(f"{self._by} ") and worker.id != self._me.id]

    async def _keep_beating(self) -> None:
        """Renew the lease. The heartbeat also rescues the jobs of workers that have died at the source."""
        renewed = time.monotonic()
        while not self._is_superseded:
            await asyncio.sleep(_LEASE / 4)
            began = time.monotonic()
            try:
                notices = await self._beat(_LEASE)
                self._is_superseded = notices.lapsed and bool(await self._others())
            except Exception as error:  # any error: without a lease, another start may take over
                logger.warning("the lease of the move could not be renewed, trying again: %s", describe(error))
                self._lost = error if time.monotonic() - renewed > _LEASE else None
            else:
                renewed, self._lost = began, None

    def _check_lease(self) -> None:
        if self._is_superseded:
            raise BrokerError("the move did not renew its lease in time, and another start of it has taken over")
        if self._lost is not None:
            raise BrokerError(
                f"the move could not renew its lease at the source ({describe(self._lost)}), and another start may "
                "take over: start the move again to continue"
            ) from self._lost

    # Looking and waiting -----------------------------------------------------------------------

    async def run(self, wait: float) -> None:
        await _copy_limits(self._source, self._target, self._clock.time(), self.moved)
        await self._copy_events()
        await self._finish_interrupted()
        until = time.monotonic() + wait
        pause = 0.05
        while True:
            self._check_lease()
            if await self._pass():
                pause = 0.05
            elif not self.moved.running or time.monotonic() >= until:
                await self._copy_events()  # those that were emitted meanwhile
                return
            else:
                await asyncio.sleep(min(pause, max(0.0, until - time.monotonic())))
                pause = min(2.0, 2 * pause)

    async def _finish_interrupted(self) -> None:
        """Finish the jobs that an earlier start had adopted at the target; see `_decide`."""
        async for page in _pages(self._target, JobFilter(worker=self._by, status=frozenset((BLOCKED,)))):
            await self._shielded(self._decide([job.id for job in page]))

    async def _pass(self) -> bool:
        """Try to move the jobs that wait now. Return whether there were such jobs."""
        survey = _Survey(self._by)
        async for page in _pages(self._source, JobFilter(status=UNFINISHED)):
            for job in page:
                survey.add(job)
        self.moved.running = len(survey.running)
        self.moved.waiting = len(survey.waiting)
        self.moved.stays.update(
            (task_id, f"another move ({by!r}) holds it: finish that one first") for task_id, by in survey.others.items()
        )
        await self._carry_pauses(survey.queues)
        stuck: set[str] = set()
        tried = False
        for batch in _batches(self._movable(survey, stuck)):
            await self._shielded(self._move(batch, survey.waiting))
            self._report(self.moved)
            tried = True
        self.moved.relatives = len(stuck)
        await self._shielded(self._let_wait(stuck & survey.held))
        return tried

    def _movable(self, survey: _Survey, stuck: set[str]) -> Iterator[list[str]]:
        """Yield the families that can be moved. Add the waiting jobs of the other families to `stuck`."""
        for family in survey.families():
            if any(survey.stays(member) or member in self.moved.stays for member in family):
                stuck.update(member for member in family if member in survey.waiting and member not in self.moved.stays)
            else:
                yield family

    async def _carry_pauses(self, queues: set[str]) -> None:
        """Pause the queues at the target that are paused at the source: a move must not start paused jobs."""
        paused = await self._source.paused() & queues
        for queue in sorted(paused - await self._target.paused()) if paused else ():
            await self._target.set_queue(queue, paused=True)
            self.moved.paused.append(queue)

    async def _shielded(self, step: Coroutine[Any, Any, None]) -> None:
        """Run a step to its end, even if the move is cancelled meanwhile."""
        try:
            self._check_lease()
        except BrokerError:
            step.close()
            raise
        task = asyncio.ensure_future(step)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            await task
            raise

    # Moving ------------------------------------------------------------------------------------

    async def _move(self, families: list[list[str]], states: Mapping[str, TaskStatus]) -> None:
        wanted = list(itertools.chain(*families))
        for part in _parts(wanted):
            await hold_jobs(self._source, part, by=self._by, now=self._clock.time())
        held = [job for job in await _found(self._source, wanted) if job.status is BLOCKED and job.worker == self._by]
        parents = await _found(self._source, {p for job in held for p in job.parents}.difference(j.id for j in held))
        unfinished = {parent.id for parent in parents if parent.status not in FINISHED}
        bound = {job.id for job in held if not unfinished.isdisjoint(job.parents)}  # a parent has just started to run
        for job in held:
            if awaited_event(job) is not None:
                job.due = None
        jobs = await self._put_back(bound | await self._disputed(held), held, families)
        await self._copy_missing([parent for parent in parents if parent.status in FINISHED])
        jobs = await self._put_back(await self._adopt(jobs), jobs, families)
        for part in _parts(job.id for job in jobs):
            await self._hand_over(part, states)

    async def _disputed(self, held: Sequence[Job]) -> set[str]:
        """Return the held jobs whose id belongs to a failed or cancelled job at the target."""
        known = await _found(self._target, [job.id for job in held])
        ended = {job.id: job.status for job in known if job.status in _BAD_ENDS and job.worker != self._by}
        for task_id, status in ended.items():
            self.moved.stays[task_id] = f"the target has a job of this id, which is {status}"
        return set(ended)

    async def _put_back(self, stays: set[str], held: Sequence[Job], families: list[list[str]]) -> list[Job]:
        """End the hold of these jobs and their families at the source. Return the other jobs."""
        back = {member for family in families if not stays.isdisjoint(family) for member in family} if stays else set()
        await self._let_wait(back)
        return [job for job in held if job.id not in back]

    async def _let_wait(self, ids: Iterable[str]) -> None:
        """Remove the copies of jobs at the target, then end their hold at the source."""
        for part in _parts(ids):
            await unhold_jobs(self._target, part, by=self._by, gone=True, now=self._clock.time())
            await unhold_jobs(self._source, part, by=self._by, gone=False, now=self._clock.time())

    async def _adopt(self, jobs: Sequence[Job]) -> set[str]:
        """Add the jobs to the target, held. Return those that the target refuses."""
        refused = set()
        for part in _parts(jobs):
            try:
                taken = await adopt_jobs(self._target, part, by=self._by, now=self._clock.time())
            except SerializationError:
                taken = [await self._adopt_alone(job) for job in part]
            for job, is_in in zip(part, taken, strict=True):
                if not is_in:
                    refused.add(job.id)
                    why = f"an unfinished job of the target has its unique key {job.unique!r}"
                    self.moved.stays.setdefault(job.id, why)
        return refused

    async def _adopt_alone(self, job: Job) -> bool:
        try:
            return (await adopt_jobs(self._target, [job], by=self._by, now=self._clock.time()))[0]
        except SerializationError as error:
            self.moved.stays[job.id] = str(error)
            return False

    async def _hand_over(self, ids: list[str], states: Mapping[str, TaskStatus]) -> None:
        left = await unhold_jobs(self._source, ids, by=self._by, gone=True, now=self._clock.time())
        gone = [task_id for task_id, has_left in zip(ids, left, strict=True) if has_left]
        await unhold_jobs(self._target, gone, by=self._by, gone=False, now=self._clock.time())
        self.moved.jobs.update(states[task_id] for task_id in gone)
        self.moved.waiting -= len(gone)
        if len(gone) < len(ids):  # some were just cancelled at the source, or the answer was lost
            await self._decide([task_id for task_id, has_left in zip(ids, left, strict=True) if not has_left])

    async def _decide(self, ids: list[str]) -> None:
        """Decide on held copies at the target, by the original at the source.

        If the original no longer exists, end the hold of the copy. If it is running or has ended, delete the copy.
        """
        for part in _parts(ids):
            known = {job.id: job.status for job in await _found(self._source, part)}
            void = [task_id for task_id, status in known.items() if status in FINISHED or status is RUNNING]
            alone = [task_id for task_id in part if task_id not in known]
            await unhold_jobs(self._target, void, by=self._by, gone=True, now=self._clock.time())
            freed = await unhold_jobs(self._target, alone, by=self._by, gone=False, now=self._clock.time())
            self.moved.resumed += sum(freed)

    # Events and results ------------------------------------------------------------------------

    async def _copy_events(self) -> None:
        """Emit at the target what has been emitted at the source, before jobs that wait for it can run there."""
        async for page in _pages(self._source, JobFilter(task=EVENT, status=frozenset((SUCCESS,)))):
            await self._shielded(_emit(page, self._target, self._clock.time(), self.moved))

    async def copy_results(self) -> None:
        """Copy the results of finished jobs that the target does not have, the oldest first."""
        async for page in _pages(self._source, JobFilter(status=FINISHED)):
            await self._shielded(self._copy_missing(page))
            self._report(self.moved)

    async def _copy_missing(self, jobs: Sequence[Job]) -> None:
        known = await self._target.get([job.id for job in jobs]) if jobs else ()
        results = [result_from(job) for job, old in zip(jobs, known, strict=True) if old is None]
        if results:
            await self._target.record(results)
            self.moved.results += len(results)


_BAD_ENDS = FINISHED - {SUCCESS}
