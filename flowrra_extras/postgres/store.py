"""What a call does on one connection. Methods that say so want a transaction around them.

Knows nothing of groups, pools and those who wait. What may become of a job, the rules of the core say: a walk reads
without locks, and what it comes to is written in one statement if all that it read is as it was; else it is walked
anew. Plain pushes, claims, promotions and the successes of jobs without children are statements of their own.
"""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any, TypeVar

import asyncpg

from flowrra import (
    ACTIVITY_KEPT,
    BLOCKED,
    FINISHED,
    RUNNING,
    SUCCESS,
    UNFINISHED,
    Action,
    BackendConfig,
    BrokerError,
    Children,
    ConfigError,
    Expired,
    Holders,
    Job,
    Jobs,
    Notices,
    Outcome,
    Running,
    Unit,
    WorkerInfo,
    activity_texts,
    adopt,
    change,
    copy_of,
    drive_async,
    ended_job,
    expire,
    push,
    rescue,
    settle,
)
from flowrra_extras.postgres import statements as sql
from flowrra_extras.postgres.rows import born_values, changing_values, clean, job_of_row, overrides_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from flowrra import Find, Walk
    from flowrra_extras.postgres.connections import Session

__all__ = ["Store", "identify", "migrate"]

T = TypeVar("T")

_FINDS: Mapping[type[Find], str] = {
    Jobs: sql.FIND_JOBS,
    Children: sql.FIND_CHILDREN,
    Holders: sql.FIND_HOLDERS,
    Running: sql.FIND_RUNNING,
    Expired: sql.FIND_EXPIRED,
}
_TRIES = 2  # of a walk outside of a transaction


class _ChangedError(Exception):
    """What a walk has read was changed before it could write: nothing was written."""


class _View:
    """What one walk has read, each job with its seq and revision."""

    def __init__(self, session: Session) -> None:
        self._db = session
        self.revisions: dict[str, tuple[int, str]] = {}
        self.guarded: set[str] = set()  # all but those that were found by their keys: these the index guards
        self._parents: dict[str, int] = {}  # those that jobs may wait for

    async def look(self, find: Find) -> list[Job]:
        values: Sequence[Any] = find if isinstance(find, Expired) else [find[0]]
        if isinstance(find, Children):
            values = [[self._parents[task_id] for task_id in find.of if task_id in self._parents]]
            if not values[0]:
                return []
        jobs = []
        for row in await self._db.fetch(_FINDS[type(find)], *values):
            job = job_of_row(row)
            has_children, revision = row[-2:]
            self.revisions.setdefault(job.id, (job.seq, revision))
            if has_children:
                self._parents[job.id] = job.seq
            if not isinstance(find, Holders):
                self.guarded.add(job.id)
            jobs.append(job)
        return jobs


async def identify(session: Session) -> str | None:
    """What identifies the store; None if its schema is to be made, or brought up to date."""
    server = session.connection.get_server_version().major
    if server < 13:
        raise ConfigError(f"PostgreSQL {server} is too old: 13 or later is needed")
    newest = len(sql.MIGRATIONS)
    version, store = await session.store()
    if version > newest:
        raise BrokerError(
            f"schema {session.schema} has version {version}, newer than the {newest} of this flowrra: upgrade it"
        )
    return store if version == newest else None


async def migrate(session: Session) -> None:
    """Bring the schema up to date. Of two at once, the second waits and finds it done."""
    async with session.transaction():
        await session.fetch("SELECT pg_advisory_xact_lock(hashtext($1))", f"flowrra {session.schema}")
        # Whoever comes after a lock that is waited for waits as well: workers, with their heartbeats.
        await session.fetch("SELECT set_config('lock_timeout', '3s', true)")
        if (await session.store())[1] is None:
            if not await session.fetch("SELECT FROM pg_namespace WHERE nspname = $1", session.schema):
                await session.script(sql.NAMESPACE)  # asked first: even IF NOT EXISTS needs the right to create one
            await session.script(sql.META)
        version, _ = await session.store()
        for script in sql.MIGRATIONS[version:]:
            await session.script(script)
        await session.fetch("UPDATE flowrra.meta SET version = $1 WHERE version < $1", len(sql.MIGRATIONS))


class Store:
    """The jobs, through one connection. `ready`, `notices` and `finished` say what a caller should tell others."""

    def __init__(self, session: Session, retention: BackendConfig) -> None:
        self._db = session
        self._retention = retention
        self.ready = False  # jobs may have become ready, other than by a plain push
        self.notices = False  # a worker is to be told something
        self.finished: list[str] = []

    # The rules at work -------------------------------------------------------------------------

    async def run(self, now: float, walk: Callable[[Unit], Walk[T]]) -> T:
        """Run a walk of the rules and write what it comes to; again, as long as others were faster.

        In a transaction each try keeps its locks for the next, so that it comes to an end.
        """
        if self._db.is_in_transaction():
            return await self._run_under_locks(now, walk)
        for _ in range(_TRIES):
            with contextlib.suppress(_ChangedError, asyncpg.UniqueViolationError):
                return await self._try(now, walk)
        async with self._db.transaction():
            return await self._run_under_locks(now, walk)

    async def _run_under_locks(self, now: float, walk: Callable[[Unit], Walk[T]]) -> T:
        while True:
            with contextlib.suppress(_ChangedError):
                return await self._try(now, walk)

    async def _try(self, now: float, walk: Callable[[Unit], Walk[T]]) -> T:
        unit, view = Unit(now, self._retention), _View(self._db)
        answer = await drive_async(walk(unit), view.look)
        if unit.changed:
            await self._write(unit, view)
        return answer

    async def _write(self, unit: Unit, view: _View) -> None:
        changes = unit.changes()
        old = {job.id: job for before, job in changes if before is not None}
        new = {job.id: job for before, job in changes if before is None}
        waits = _new_waits(unit)
        parents = {parent for parent, _ in waits}
        old |= {parent: unit.jobs[parent] for parent in parents - new.keys()}  # so that whoever ends it notices
        guards = sorted(view.revisions[task_id] for task_id in view.guarded | old.keys())
        places = {task_id: -place for place, task_id in enumerate(new, 1)} | {i: job.seq for i, job in old.items()}
        rows = await self._db.fetch(
            sql.WRITE,
            [seq for seq, _ in guards],
            [revision for _, revision in guards],
            json.dumps([changing_values(job) | {"has_children": job.id in parents} for job in old.values()]),
            json.dumps([born_values(job) | {"has_children": job.id in parents} for job in new.values()]),
            [places[parent] for parent, _ in waits],
            [places[child] for _, child in waits],
            [job.seq for job in old.values() if job.status in FINISHED],
            [json.dumps([j.id, j.task, j.attempt, j.status, clean(j.error)]) for j in unit.endings],
        )
        if not rows[0][0]:
            raise _ChangedError
        for _, job in changes:
            self._note(job)

    def _note(self, job: Job) -> None:
        """Remember whom the change of a job concerns."""
        if job.status in FINISHED:
            self.finished.append(job.id)
        elif job.status is RUNNING:
            self.notices = True
        elif job.status is not BLOCKED:
            self.ready = True

    # Taking in ---------------------------------------------------------------------------------

    async def push(self, jobs: Sequence[Job], now: float) -> list[str]:
        """Take in jobs; repeating it changes nothing."""
        if not all(map(is_plain, jobs)):
            return await self.run(now, lambda unit: push(unit, [copy_of(job) for job in jobs]))
        await self._db.fetch(sql.INSERT, now, *_columns(jobs))
        return [job.id for job in jobs]

    async def push_one(self, job: Job, now: float, channel: str, payload: str, *, early: bool) -> None:
        """Take in a plain job, and notify in the same transaction.

        `early`: others are told, and see the job, before it is on disk; the call waits for that all the same.
        """
        values = (job.id, job.payload, job.task, job.queue, job.priority, job.due, job.expires, overrides_text(job))
        await self._db.fetch(sql.INSERT_ONE_EARLY if early else sql.INSERT_ONE, now, *values, channel, payload)
        if early:
            await self._db.fetch(sql.SYNC)

    async def adopt(self, jobs: Sequence[Job], by: str, now: float) -> list[str]:
        """Take in jobs of another store, held by `by`."""
        return await self.run(now, lambda unit: adopt(unit, jobs, by))

    # Writing down ------------------------------------------------------------------------------

    async def settle(self, outcomes: Sequence[Outcome], now: float, *, careful: bool) -> set[tuple[int, int]]:
        """Write down outcomes, at most one of an attempt; the (seq, attempt) of those that were written.

        Unless `careful`, only successes of jobs that nobody waits for are.
        """
        if careful:
            written = await self.run(now, lambda unit: settle(unit, outcomes))
            return {(o.job.seq, o.attempt) for o, is_in in zip(outcomes, written, strict=True) if is_in}
        done = sorted((o for o in outcomes if o.status is SUCCESS), key=lambda o: o.job.seq)  # as all lock their rows
        if not done:
            return set()
        keep = [self._retention.result_ttl if o.keep is None else o.keep for o in done]
        columns = [[o.job.seq for o in done], [o.attempt for o in done], [o.text for o in done]]
        rows = await self._db.fetch(sql.SUCCEED, now, *columns, [now + seconds for seconds in keep])
        self.finished += [row[2] for row in rows]
        return {(row[0], row[1]) for row in rows}

    async def written(self, outcomes: Sequence[Outcome]) -> set[tuple[int, int]]:
        """Those that an earlier settle has written."""
        columns = zip(*((o.job.seq, o.attempt, o.status, o.ending) for o in outcomes), strict=True)
        return {(row[0], row[1]) for row in await self._db.fetch(sql.WRITTEN, *columns)}

    # Workers, and by hand --------------------------------------------------------------------

    async def beat(
        self, worker: WorkerInfo, lease: float, now: float, *, is_new: bool = False, again: bool = False
    ) -> tuple[Notices, str]:
        """Extend a worker's lease, or register it. What that brings back, with workers that are dead; and its term."""
        names = sql.WORKER_COLUMNS.split(", ")
        texts = {"seen": now, "queues": json.dumps(dict(worker.queues)), "tasks": json.dumps(list(worker.tasks))}
        values = [texts[name] if name in texts else getattr(worker, name) for name in names]
        activity = activity_texts(worker.activity)
        rest = (lease, list(worker.queues), list(activity), list(activity.values()), int(now - ACTIVITY_KEPT))
        (row,) = await self._db.fetch(sql.BEAT, *values, *rest, is_new, again)
        term = row["term"] or ""  # none if it was registered at the same moment by an earlier try
        lapsed = worker.term not in ("", term)
        endings = [ended_job(text) for text in row["endings"]]
        paused = frozenset(row["paused"])
        return Notices(row["cancelled"], lapsed, paused, row["suspects"], row["lost"], endings), term

    async def upkeep(self, worker: str, now: float) -> bool:
        """One step of what is to be done first: rescue, promote, expire. Whether more is left. In a transaction."""
        await self.rescue([row[0] for row in await self._db.fetch(sql.LOST_TO, worker)], now)
        promoted = await self._db.fetch(sql.PROMOTE, now)
        self.ready = bool(promoted) or self.ready
        is_left = await self.run(now, lambda unit: expire(unit, sql.UPKEEP))
        return is_left or len(promoted) >= sql.UPKEEP

    async def rescue(self, dead: Sequence[str], now: float) -> list[str]:
        """Put back the jobs of workers that are dead; those that have not come back meanwhile. In a transaction."""
        lost = [row[0] for row in await self._db.fetch(sql.RESCUE, dead)]
        if lost:
            await self.run(now, lambda unit: rescue(unit, lost, crashed=True))
        return lost

    async def leave(self, worker: WorkerInfo, now: float) -> None:
        """Take a worker off the list and release what it holds. In a transaction."""
        await self.beat(worker, 0.0, now)
        await self._db.fetch("DELETE FROM flowrra.worker WHERE id = $1", worker.id)
        await self.run(now, lambda unit: rescue(unit, [worker.id], crashed=False))

    async def change(self, task_ids: Sequence[str], action: Action, now: float, by: str | None) -> list[bool]:
        """What people do to jobs, and moves to another store."""
        return await self.run(now, lambda unit: change(unit, task_ids, action, clean(by)))

    async def remove(self, task_ids: Sequence[str], by: str | None) -> list[str]:
        """Delete finished jobs, or those that `by` holds."""
        if by is None:
            return [row[0] for row in await self._db.fetch(sql.DELETE, task_ids)]
        gone = [row[0] for row in await self._db.fetch(sql.LEAVE, task_ids, by)]
        self.finished += gone
        return gone


def is_plain(job: Job) -> bool:
    """Whether one statement can insert it; otherwise the rules must look at it."""
    return job.unique is None and not job.parents


def _new_waits(unit: Unit) -> list[tuple[str, str]]:
    """Unfinished parents, and the children that have begun to wait for them; one that is held does not."""
    return [
        (parent, job.id)
        for before, job in unit.changes()
        if job.status is BLOCKED and job.worker is None
        if before is None or before.status is not BLOCKED or before.worker is not None
        for parent in job.parents
        if parent in unit.jobs and unit.jobs[parent].status in UNFINISHED
    ]


def _columns(jobs: Sequence[Job]) -> list[list[Any]]:
    """Jobs as the arrays that sql.INSERT takes."""
    return [
        [job.id for job in jobs],
        [job.payload for job in jobs],
        _one_for_all([job.task for job in jobs]),
        _one_for_all([job.queue for job in jobs]),
        _one_for_all([job.priority for job in jobs]),
        _none_if_none([job.due for job in jobs]),
        _none_if_none([job.expires for job in jobs]),
        _none_if_none([overrides_text(job) for job in jobs]),
    ]


def _one_for_all(values: list[T]) -> list[T]:
    return values[:1] if values.count(values[0]) == len(values) else values


def _none_if_none(values: list[T | None]) -> list[T | None]:
    return [] if values.count(None) == len(values) else values
