"""Moves jobs from one broker to another while workers run on both: `python -m flowrra migrate SRC DST`.

    moved = await migrate("sqlite:///jobs.db", "redis://localhost:6379/0", results=True)

No job is ever able to run on both sides, whatever happens between any two of these steps:

    hold at the source > adopt at the target, held > let go of it for good at the source > let it wait at the target

A copy that is held at the target may wait there as soon as the source knows of no such job, and only then: nothing
but a move takes an unfinished job out of a store. So a second start reads from the two stores how far the first one
came. Families (parents and children) are adopted whole before one of them leaves; one of which a member runs stays.

Schedules live in stores of their own and are not moved. Knows the protocol of brokers, and nothing of any one store.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import itertools
import os
import random
import socket
import sys
import time
import urllib.parse
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowrra import (
    BLOCKED,
    FINISHED,
    RUNNING,
    SUCCESS,
    UNFINISHED,
    Broker,
    BrokerError,
    Clock,
    Config,
    ConfigError,
    FlowrraError,
    Job,
    JobFilter,
    MemoryBroker,
    Notices,
    SerializationError,
    SQLiteBroker,
    TaskStatus,
    WorkerInfo,
    broker_from_url,
    describe,
    logger,
    result_from,
)
from flowrra_extras.urls import read_server_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence

__all__ = ["Moved", "adopt_jobs", "hold_jobs", "main", "migrate", "release_jobs"]

_BATCH = 500  # jobs in one step; so many may be unable to run anywhere while it lasts
_PAGE = 1_000  # jobs in one look
_LEASE = 3.0  # seconds after which another start may take over from one that died


@dataclass(slots=True)
class Moved:
    """What a move came to, or has come to so far.

    `jobs` counts what went over by the state in which it was found, `resumed` what an earlier start had left half way,
    `waiting` what is known to be left to move. Of what stayed, `running` runs at the source,
    `kin` waits there for such a job or belongs to a family with one that stays, and `stays` gives the reason of each
    other one by its id. `paused` are the queues that are paused at the target now because they were at the source.
    """

    jobs: collections.Counter[TaskStatus] = field(default_factory=collections.Counter)
    resumed: int = 0
    results: int = 0
    waiting: int = 0
    running: int = 0
    kin: int = 0
    stays: dict[str, str] = field(default_factory=dict)
    paused: list[str] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """Whether nothing unfinished was seen at the source at the end."""
        return not (self.running or self.kin or self.stays)


async def migrate(
    source: Broker | str,
    target: Broker | str,
    *,
    results: bool = False,
    wait: float = 30.0,
    clock: Clock | None = None,
    tell: Callable[[Moved], None] = lambda _: None,
) -> Moved:
    """Move every unfinished job, and with `results` copy the results of finished ones.

    Each side is a URL or an open broker. Jobs keep all that they are, with their attempts so far, and their order in
    their queue; a family goes as one, at the place of its oldest job. What runs at the source is waited for up to
    `wait` seconds, since it may be put back; then it stays, and its kin with it. Results stay at the source too, until
    their retention there ends. `tell` is called at the start and after each step.

    Start it again to go on where it was interrupted; when all has moved, that changes nothing. Cancelling it ends the
    step under way first.

    Raises:
        ConfigError: both are one store, or a side cannot take part.
        BrokerError: a store failed, or this move is under way elsewhere; what is held waits for the next start.
    """
    if not wait >= 0.0:  # nor is NaN
        raise ConfigError(f"wait is a number of seconds from 0 on, not {wait!r}")
    async with contextlib.AsyncExitStack() as stack:
        sides = [await _opened(side, stack) for side in (source, target)]
        move = _Move(*sides, by=_holder(*map(_name, sides)), clock=clock or Clock(), tell=tell)
        async with move.alone():
            tell(move.moved)
            await move.run(wait)
            if results:
                await move.copy_results()
        return move.moved


async def _opened(side: Broker | str, stack: contextlib.AsyncExitStack) -> Broker:
    if isinstance(side, Broker):
        return side
    broker = _from_url(side)
    await broker.open()
    stack.push_async_callback(broker.close)
    return broker


def _from_url(url: str) -> Broker:
    broker = broker_from_url(url, Config(), Clock())
    if isinstance(broker, MemoryBroker) or (isinstance(broker, SQLiteBroker) and broker.path is None):
        raise ConfigError(f"{url} lives in one process, out of reach of any other: nothing can be moved from or to it")
    return broker


def _name(broker: Broker) -> str:
    """What tells the store from others, without its secrets: the same at every start."""
    if isinstance(broker, SQLiteBroker):
        return f"sqlite:///{broker.path or ''}"
    url = str(getattr(broker, "url", type(broker).__name__))
    if "://" not in url:
        return url
    parts = read_server_url(url)
    query = urllib.parse.urlencode({name: text for name, text in parts.options.items() if "password" not in name})
    return f"{parts.shown}?{query}" if query else parts.shown


def _holder(source: str, target: str) -> str:
    """By whom jobs are held, at both sides."""
    return f"migrate {source} {target}"


# The waiting jobs of a store ---------------------------------------------------------------------


async def hold_jobs(broker: Broker, task_ids: Sequence[str], *, by: str, now: float) -> list[bool]:
    """Keep waiting jobs from running: each is BLOCKED, with `by` as its worker. False: it runs, or has ended."""
    return await broker.change(task_ids, "hold", now=now, by=by)


async def adopt_jobs(broker: Broker, jobs: Sequence[Job], *, by: str, now: float) -> list[bool]:
    """Take in jobs of another store, held by `by`. False: an unfinished job here has its unique key."""
    return [taken == job.id for taken, job in zip(await broker.push(jobs, now=now, by=by), jobs, strict=True)]


async def release_jobs(broker: Broker, task_ids: Sequence[str], *, by: str, gone: bool, now: float) -> list[bool]:
    """End a hold: the job waits as before, or with `gone` leaves the store as if it had never come."""
    if not gone:
        return await broker.change(task_ids, "release", now=now, by=by)
    left = await broker.remove(task_ids, by=by)
    return [task_id in left for task_id in task_ids]


class _Survey:
    """The unfinished jobs of a store at one look: who waits, and who is kin to whom."""

    def __init__(self, by: str) -> None:
        self._by = by
        self.waiting: dict[str, TaskStatus] = {}  # in order of submission
        self.queues: set[str] = set()
        self.running: set[str] = set()
        self.held: set[str] = set()  # of those that wait: by an earlier start
        self.others: dict[str, str] = {}  # held by another move
        self._parents: dict[str, tuple[str, ...]] = {}

    def add(self, job: Job) -> None:
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
        """What waits, in families, the oldest first. Most jobs are alone; a parent that has ended binds nobody."""
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
        """Whether the job cannot leave, so that its kin cannot either."""
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
    """Whole families, as many as make up a step."""
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
    """The jobs with these ids, in order of submission."""
    jobs: list[Job] = []
    for part in _parts(dict.fromkeys(ids)):
        jobs += await broker.find(JobFilter(ids=part), limit=len(part))
    return sorted(jobs, key=lambda job: job.seq)


async def _pages(broker: Broker, which: JobFilter) -> AsyncIterator[list[Job]]:
    """The jobs in order of submission, a page at a time."""
    after = None
    while page := await broker.find(which, limit=_PAGE, after=after, oldest_first=True):
        yield page
        after = page[-1].seq


# The move ----------------------------------------------------------------------------------------


class _Move:
    """Moves what waits at the source, family by family."""

    def __init__(self, source: Broker, target: Broker, *, by: str, clock: Clock, tell: Callable[[Moved], None]) -> None:
        self._source = source
        self._target = target
        self._by = by
        self._clock = clock
        self._tell = tell
        self._me = WorkerInfo(f"{by} {uuid.uuid4().hex[:8]}", socket.gethostname(), os.getpid(), started=clock.time())
        self._is_ousted = False
        self._lost: BaseException | None = None  # why the lease could not be renewed until it had run out
        self.moved = Moved()

    # One at a time -----------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Be the only one who carries out this move: a lease as a worker of the source, which runs no jobs.

        Two at once could each undo what the other relies on, and a job be gone from both sides.
        """
        await self._check()
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

    async def _check(self) -> None:
        """That both sides can take part, before anything is held."""
        await hold_jobs(self._source, [], by=self._by, now=self._clock.time())
        await adopt_jobs(self._target, [], by=self._by, now=self._clock.time())

    async def _enter(self) -> None:
        """Register; if there is another one, step back, so that of two at least one sees the other."""
        patience = time.monotonic() + _LEASE + 2.0
        while True:
            await self._beat(_LEASE)
            others = await self._others()
            if not others:
                return
            await self._beat(0.0)
            if time.monotonic() > patience:
                raise BrokerError(f"this move is under way already, on {others[0].host} with the pid {others[0].pid}")
            await asyncio.sleep(random.uniform(0.1, 0.4))  # noqa: S311 (no secret)

    async def _beat(self, lease: float) -> Notices:
        return await self._source.heartbeat(self._me, lease=lease, now=self._clock.time())

    async def _others(self) -> list[WorkerInfo]:
        workers = await self._source.workers()
        return [worker for worker in workers if worker.id.startswith(f"{self._by} ") and worker.id != self._me.id]

    async def _keep_beating(self) -> None:
        """Keep the lease; this also puts back the jobs of the source's workers that have died."""
        renewed = time.monotonic()
        while not self._is_ousted:
            await asyncio.sleep(_LEASE / 4)
            began = time.monotonic()
            try:
                notices = await self._beat(_LEASE)
                self._is_ousted = notices.lapsed and bool(await self._others())
            except Exception as error:  # whatever it is: without a lease another start may take over
                logger.warning("the lease of the move could not be renewed, trying again: %s", describe(error))
                self._lost = error if time.monotonic() - renewed > _LEASE else None
            else:
                renewed, self._lost = began, None

    def _check_lease(self) -> None:
        if self._is_ousted:
            raise BrokerError("another start of this move has taken over, since this one was silent for too long")
        if self._lost is not None:
            raise BrokerError(
                f"the move cannot keep its lease at the source ({describe(self._lost)}), so that another start may "
                "take over: start it again, it goes on from here"
            ) from self._lost

    # Looking and waiting -----------------------------------------------------------------------

    async def run(self, wait: float) -> None:
        await self._finish_interrupted()
        until = time.monotonic() + wait
        pause = 0.05
        while True:
            self._check_lease()
            if await self._pass():
                pause = 0.05
            elif not self.moved.running or time.monotonic() >= until:
                return
            else:
                await asyncio.sleep(min(pause, max(0.0, until - time.monotonic())))
                pause = min(2.0, 2 * pause)

    async def _finish_interrupted(self) -> None:
        """Decide on the copies of an earlier start whose originals are gone already, or have ended."""
        async for page in _pages(self._target, JobFilter(worker=self._by, status=frozenset((BLOCKED,)))):
            await self._whole(self._decide([job.id for job in page]))

    async def _pass(self) -> bool:
        """Try to move what waits now; whether there was something to try."""
        survey = _Survey(self._by)
        async for page in _pages(self._source, JobFilter(status=UNFINISHED)):
            for job in page:
                survey.add(job)
        self.moved.running = len(survey.running)
        self.moved.waiting = len(survey.waiting)
        self.moved.stays.update(
            (task_id, f"it is held by {by!r}: finish that") for task_id, by in survey.others.items()
        )
        await self._carry_pauses(survey.queues)
        stuck: set[str] = set()
        tried = False
        for batch in _batches(self._movable(survey, stuck)):
            await self._whole(self._move(batch, survey.waiting))
            self._tell(self.moved)
            tried = True
        self.moved.kin = len(stuck)
        await self._whole(self._let_wait(stuck & survey.held))
        return tried

    def _movable(self, survey: _Survey, stuck: set[str]) -> Iterator[list[str]]:
        """The families that can go. What waits in others goes into `stuck`."""
        for family in survey.families():
            if any(survey.stays(member) or member in self.moved.stays for member in family):
                stuck.update(member for member in family if member in survey.waiting and member not in self.moved.stays)
            else:
                yield family

    async def _carry_pauses(self, queues: set[str]) -> None:
        """What an operator has stopped shall not run because it moves."""
        paused = await self._source.paused() & queues
        for queue in sorted(paused - await self._target.paused()) if paused else ():
            await self._target.set_queue(queue, paused=True)
            self.moved.paused.append(queue)

    async def _whole(self, step: Coroutine[Any, Any, None]) -> None:
        """Run a step to its end, also when this is cancelled meanwhile."""
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
        bound = {job.id for job in held if not unfinished.isdisjoint(job.parents)}  # a parent began to run just now
        jobs = await self._put_back(bound | await self._disputed(held), held, families)
        await self._copy_missing([parent for parent in parents if parent.status in FINISHED])
        jobs = await self._put_back(await self._adopt(jobs), jobs, families)
        for part in _parts(job.id for job in jobs):
            await self._hand_over(part, states)

    async def _disputed(self, held: Sequence[Job]) -> set[str]:
        """The held jobs whose id the target knows of a job that came to a bad end there."""
        known = await _found(self._target, [job.id for job in held])
        ended = {job.id: job.status for job in known if job.status in _BAD_ENDS and job.worker != self._by}
        for task_id, status in ended.items():
            self.moved.stays[task_id] = f"the target has a job of this id, which is {status}"
        return set(ended)

    async def _put_back(self, stays: set[str], held: Sequence[Job], families: list[list[str]]) -> list[Job]:
        """Let those jobs and their families wait at the source again; the other jobs."""
        back = {member for family in families if not stays.isdisjoint(family) for member in family} if stays else set()
        await self._let_wait(back)
        return [job for job in held if job.id not in back]

    async def _let_wait(self, ids: Iterable[str]) -> None:
        """End the hold of jobs at the source, once the target has no copy of them any more."""
        for part in _parts(ids):
            await release_jobs(self._target, part, by=self._by, gone=True, now=self._clock.time())
            await release_jobs(self._source, part, by=self._by, gone=False, now=self._clock.time())

    async def _adopt(self, jobs: Sequence[Job]) -> set[str]:
        """Have the target take the jobs in, held; those that it does not take."""
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
        left = await release_jobs(self._source, ids, by=self._by, gone=True, now=self._clock.time())
        gone = [task_id for task_id, has_left in zip(ids, left, strict=True) if has_left]
        await release_jobs(self._target, gone, by=self._by, gone=False, now=self._clock.time())
        self.moved.jobs.update(states[task_id] for task_id in gone)
        self.moved.waiting -= len(gone)
        if len(gone) < len(ids):  # cancelled at the source just now, or the answer was lost
            await self._decide([task_id for task_id, has_left in zip(ids, left, strict=True) if not has_left])

    async def _decide(self, ids: list[str]) -> None:
        """What becomes of held copies: if the original is gone, it may wait; if that runs or has ended, it is void."""
        for part in _parts(ids):
            known = {job.id: job.status for job in await _found(self._source, part)}
            void = [task_id for task_id, status in known.items() if status in FINISHED or status is RUNNING]
            alone = [task_id for task_id in part if task_id not in known]
            await release_jobs(self._target, void, by=self._by, gone=True, now=self._clock.time())
            freed = await release_jobs(self._target, alone, by=self._by, gone=False, now=self._clock.time())
            self.moved.resumed += sum(freed)

    # Results -----------------------------------------------------------------------------------

    async def copy_results(self) -> None:
        """Copy what has finished at the source and the target does not know, the oldest first."""
        async for page in _pages(self._source, JobFilter(status=FINISHED)):
            await self._whole(self._copy_missing(page))
            self._tell(self.moved)

    async def _copy_missing(self, jobs: Sequence[Job]) -> None:
        known = await self._target.get([job.id for job in jobs]) if jobs else ()
        results = [result_from(job) for job, old in zip(jobs, known, strict=True) if old is None]
        if results:
            await self._target.record(results)
            self.moved.results += len(results)


_BAD_ENDS = FINISHED - {SUCCESS}


# The command -------------------------------------------------------------------------------------


def main(argv: Sequence[str]) -> int | None:
    """`python -m flowrra migrate`; returns the exit status."""
    arguments = _parser().parse_args(argv)
    for url in (arguments.source, arguments.target):
        broker = _from_url(url)
        if url is arguments.source and isinstance(broker, SQLiteBroker) and not Path(broker.path or "").exists():
            raise ConfigError(f"there is no {broker.path} to move jobs from")
    if arguments.dry_run:
        asyncio.run(_show(arguments.source, results=arguments.results))
        return 0
    return _run(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="flowrra migrate", description=_DESCRIPTION, epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("source", metavar="SRC", help="the URL of the broker that has the jobs")
    parser.add_argument("target", metavar="DST", help="the URL of the broker that is to have them")
    parser.add_argument("--results", action="store_true", help="copy the results of finished jobs, too")
    parser.add_argument("--wait", type=float, default=30.0, metavar="S",
                        help="seconds to wait for running jobs, which may be put back (30)")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="show what is there to be moved, and move nothing")
    return parser


_DESCRIPTION = """\
Move unfinished jobs from one broker to another. Workers may run on both sides meanwhile: a job
is never able to run on both. What runs at the source ends there. Stopped at any moment, even
by kill -9, it goes on when it is started again."""

_EPILOG = """\
examples:
  flowrra migrate sqlite:///jobs.db redis://localhost:6379/0 --dry-run   what is there?
  flowrra migrate sqlite:///jobs.db redis://localhost:6379/0 --results   move it
To change brokers without a pause: start workers and whoever submits on DST, move, then stop the
workers on SRC. Results stay on SRC, too, until their retention ends. Schedules are not moved.
Exit status: 0 if nothing unfinished is left at SRC, 1 if something is, which the output names."""


def _run(arguments: argparse.Namespace) -> int:
    line = _Line()
    seen: Moved | None = None

    def tell(moved: Moved) -> None:
        nonlocal seen
        seen = moved
        line.show(f"moved {_number(moved.jobs.total(), 'job')}, {moved.waiting:,} to go, {moved.results:,} results")

    try:
        moved = asyncio.run(
            migrate(arguments.source, arguments.target, results=arguments.results, wait=arguments.wait, tell=tell)
        )
    except ConfigError:
        raise
    except (FlowrraError, KeyboardInterrupt):
        line.clear()
        if seen is not None:  # it had begun
            print("\n".join(_came_over(seen)))
            print("It was interrupted: start it again to go on.", file=sys.stderr)
        raise
    line.clear()
    print("\n".join([*_came_over(moved), *_stayed(moved)]))
    return 0 if moved.is_complete else 1


class _Line:
    """One live line on a terminal; nothing elsewhere."""

    def __init__(self) -> None:
        self._is_live = sys.stderr.isatty()

    def show(self, text: str) -> None:
        if self._is_live:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        self.show("")


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _came_over(moved: Moved) -> Iterator[str]:
    states = ", ".join(f"{moved.jobs[status]:,} {status}" for status in TaskStatus if moved.jobs[status])
    yield f"moved {_number(moved.jobs.total(), 'job')}{states and ': ' + states}"
    if moved.resumed:
        yield f"finished the move of {_number(moved.resumed, 'job')} that an earlier start had left half way"
    if moved.results:
        yield f"copied {_number(moved.results, 'result')}"
    for queue in moved.paused:
        yield f"paused the queue {queue} at the target, as it is at the source"


def _stayed(moved: Moved) -> Iterator[str]:
    if moved.running:
        yield f"left {_number(moved.running, 'job')} at the source, running: start it again when they have ended"
    if moved.kin:
        yield f"left {_number(moved.kin, 'job')} at the source, being parents or children of what stays"
    for task_id, why in itertools.islice(moved.stays.items(), 20):
        yield f"left {task_id} at the source: {why}"
    if len(moved.stays) > 20:
        yield f"and {len(moved.stays) - 20:,} more of that kind"


async def _show(url: str, *, results: bool) -> None:
    """The counts of a dry run. The target is not opened, since that might make it."""
    async with contextlib.AsyncExitStack() as stack:
        counts = await (await _opened(url, stack)).counts()
    number = collections.Counter[TaskStatus]()
    for (_, status), count in counts.items():
        number[status] += count
    for status in TaskStatus:
        if number[status]:
            print(f"{number[status]:>10,} {status:<9} {_plan(status, results=results)}")
    if not number:
        print("there is nothing to be moved")


def _plan(status: TaskStatus, *, results: bool) -> str:
    if status is RUNNING:
        return "will be waited for"
    if status in FINISHED:
        return "will be copied as results" if results else "will stay (see --results)"
    return "will be moved"
