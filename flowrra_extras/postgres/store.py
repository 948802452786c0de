"""What a call does on one connection. Methods that say so want a transaction around them.

Knows nothing of groups, pools and those who wait.
"""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any, TypeVar

from flowrra import (
    ACTIVITY_KEPT,
    BY_HAND,
    EXPIRED,
    FAILED,
    FINISHED,
    KILLED,
    LEFT,
    MAX_CRASHES,
    REQUEUABLE,
    SUCCESS,
    WORKER_LOST,
    BackendConfig,
    BrokerError,
    ConfigError,
    Job,
    Notices,
    Outcome,
    TaskStatus,
    WorkerInfo,
    activity_texts,
    ended_job,
    orphaned,
    unknown_job,
)
from flowrra_extras.postgres import statements as sql
from flowrra_extras.postgres.moving import MovingStore
from flowrra_extras.postgres.rows import clean

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from flowrra_extras.postgres.connections import Session

__all__ = ["Store", "identify", "migrate"]

T = TypeVar("T")


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


class Store(MovingStore):
    """The jobs, through one connection. `ready` and `finished` say what a caller should tell others."""

    def __init__(self, session: Session, retention: BackendConfig) -> None:
        self._db = session
        self._retention = retention
        self.ready = False  # jobs may have become ready, other than by a plain push
        self.finished: list[str] = []

    # Taking in ---------------------------------------------------------------------------------

    async def push(self, jobs: Sequence[Job], now: float) -> list[str]:
        """Take in jobs; repeating it changes nothing.

        In a transaction, if one of them has parents, or one of several a key.
        """
        ids = [job.id for job in jobs]
        new: dict[str, int] = {}
        left = jobs
        while left:
            new.update(await self._db.fetch(sql.INSERT, now, *_columns(left)))
            left = await self._resolve_keys([job for job in left if job.id not in new], ids, jobs)
        if new and any(job.parents for job in jobs):
            await self._await_parents(await self._family(jobs, ids, new), now, strict=True)
        return ids

    async def _family(
        self, jobs: Sequence[Job], ids: Sequence[str], new: Mapping[str, int]
    ) -> dict[int, dict[str, None]]:
        """The parents of the jobs that are new, by seq. Where another job stood in for a parent, that is put in."""
        family: dict[int, dict[str, None]] = {}
        stand_ins: dict[str, str] = {}
        seen: set[str] = set()
        for job, task_id in zip(jobs, ids, strict=True):
            is_first = task_id == job.id and job.id in new and job.id not in seen
            if is_first and job.parents:
                parents = [stand_ins.get(parent, parent) for parent in dict.fromkeys(job.parents)]
                family[new[job.id]] = dict.fromkeys(parents)
                if not stand_ins.keys().isdisjoint(job.parents):
                    await self._db.fetch(sql.SET_PARENTS, new[job.id], json.dumps(parents))
            if task_id == job.id:
                seen.add(job.id)
                stand_ins.pop(job.id, None)
            else:
                stand_ins[job.id] = task_id
        return family

    async def _resolve_keys(self, refused: Sequence[Job], ids: list[str], jobs: Sequence[Job]) -> list[Job]:
        """Put in the ids of those that have the unique keys; the jobs whose key came free meanwhile."""
        keyed = {job.id: job.unique for job in refused if job.unique is not None}
        if not keyed:
            return []
        rows = await self._db.fetch(sql.KNOWN, list(keyed), list(keyed.values()))
        known = {task_id for task_id, key in rows if key is None}
        holders = {key: task_id for task_id, key in rows if key is not None}
        left = []
        for index, job in enumerate(jobs):
            if job.id in keyed and job.id not in known:
                if job.unique in holders:
                    ids[index] = holders[job.unique]
                else:
                    left.append(job)
        return left

    async def push_lone(self, job: Job, now: float, channel: str, payload: str, *, early: bool) -> None:
        """Take in a job that has neither parents nor a key, and notify in the same transaction.

        `early`: others are told, and see the job, before it is on disk; the call waits for that all the same.
        """
        values = (job.id, job.payload, job.task, job.queue, job.priority, job.due, job.expires, _text(job.overrides))
        await self._db.fetch(sql.INSERT_LONE_EARLY if early else sql.INSERT_LONE, now, *values, channel, payload)
        if early:
            await self._db.fetch(sql.SYNC)

    async def _await_parents(self, family: Mapping[int, Iterable[str]], now: float, *, strict: bool) -> None:
        """Keep jobs blocked, given as seq and parents, until these have succeeded; cancel them if one cannot.

        `strict`: each parent must be known, and older. Otherwise one that has been purged had succeeded.
        """
        wanted = list(dict.fromkeys(itertools.chain.from_iterable(family.values())))
        known = {row[0]: (row[1], row[2]) for row in await self._db.fetch(sql.LOCK_PARENTS, wanted)}
        doomed: dict[int, str] = {}
        waits: list[tuple[int, int]] = []
        for child, parents in family.items():
            for parent in parents:
                seq, status = known.get(parent, (child, SUCCESS))
                if strict and seq >= child:
                    raise unknown_job(parent)
                if status in REQUEUABLE:
                    doomed.setdefault(child, orphaned(parent, TaskStatus(status)))
                elif status != SUCCESS:
                    waits.append((seq, child))
        waits = [(parent, child) for parent, child in waits if child not in doomed]
        if waits:
            await self._db.fetch(sql.DEPEND, [parent for parent, _ in waits], [child for _, child in waits])
        await self._bury(doomed, TaskStatus.CANCELLED, now)
        await self._unblock([child for child in family if child not in doomed], now)

    async def _unblock(self, children: Sequence[int], now: float) -> None:
        if children:
            await self._db.fetch(sql.UNBLOCK, children, now)
            self.ready = True

    # Ending ------------------------------------------------------------------------------------

    async def _bury(self, doomed: Mapping[int, str], status: TaskStatus, now: float) -> list[int]:
        """End jobs that are not running, by seq with reasons, and cancel what waits for them. In a transaction.

        What waits for them goes together, and whoever came in meanwhile with the next look: since a child that comes
        in locks its parent's row, none can come in after that.
        """
        first: list[int] = []
        purge_at = now + self._retention.failed_ttl
        while doomed:
            seqs = sorted(doomed)
            rows = await self._db.fetch(sql.BURY, seqs, [doomed[seq] for seq in seqs], status, now, purge_at)
            ended = dict(rows)
            first = first or list(ended)
            self.finished += ended.values()
            doomed = await self._children_of({seq: status for seq in doomed if seq in ended})
            status = TaskStatus.CANCELLED
        return first

    async def _children_of(self, ended: Mapping[int, TaskStatus]) -> dict[int, str]:
        """Those who wait for jobs that did not succeed, and for those in turn, each with its reason.

        Of several reasons it is that of the job that ended first, as where jobs end one after the other.
        """
        rows = await self._db.fetch(sql.DESCENDANTS, list(ended)) if ended else ()
        if rows:
            await self._db.fetch(sql.FORGET_PARENTS, list(ended))
        names = {parent: name for _, parent, name in rows}
        children: dict[int, list[int]] = {}
        for child, parent, _ in rows:
            children.setdefault(parent, []).append(child)
        doomed: dict[int, str] = {}
        for root, status in ended.items():
            told = [(root, status)]
            for parent, its_status in told:  # it grows meanwhile
                for child in children.get(parent, ()):
                    if child not in doomed:
                        doomed[child] = orphaned(names[parent], its_status)
                        told.append((child, TaskStatus.CANCELLED))
        return doomed

    async def settle(self, outcomes: Sequence[Outcome], now: float, *, careful: bool) -> set[tuple[int, int]]:
        """Write down outcomes, at most one of an attempt; the (seq, attempt) of those that were written.

        Unless `careful`, jobs that others wait for and those that are to be cancelled are left for a second
        call. That one is in a transaction.
        """
        in_order = sorted(outcomes, key=lambda outcome: outcome.job.seq)  # in which all lock their rows
        ended = [outcome for outcome in in_order if outcome.status in FINISHED]
        again = [outcome for outcome in in_order if outcome.status not in FINISHED]
        written: set[tuple[int, int]] = set()
        if ended:
            columns = [_none_if_none([o.text for o in ended]), [self._purge_at(o, now) for o in ended]]
            rows = await self._db.fetch(sql.FINISH, careful, now, *_columns_of(ended), *columns)
            written.update((row[0], row[3]) for row in rows)
            self.finished += [row[1] for row in rows]
            parents = {(row[0], row[3]) for row in rows if row[2]}
            await self._tell_children([o for o in outcomes if (o.job.seq, o.attempt) in parents], now)
        if again:
            columns = [[o.due for o in again], [o.ending for o in again], [o.begun for o in again]]
            rows = await self._db.fetch(sql.AGAIN, careful, now, *_columns_of(again), *columns)
            written.update((row[0], row[3]) for row in rows)
            self.ready = self.ready or bool(rows)
            await self._bury({row[0]: BY_HAND for row in rows if row[2]}, TaskStatus.CANCELLED, now)
        return written

    def _purge_at(self, outcome: Outcome, now: float) -> float:
        return now + (self._retention.ttl(outcome.status) if outcome.keep is None else outcome.keep)

    async def _tell_children(self, parents: Sequence[Outcome], now: float) -> None:
        """Free the children of those parents that have succeeded, and cancel the others'."""
        bad = {o.job.seq: o.status for o in parents if o.status is not SUCCESS}
        await self._bury(await self._children_of(bad), TaskStatus.CANCELLED, now)
        good = [o.job.seq for o in parents if o.status is SUCCESS]
        if good:
            children = [row[0] for row in await self._db.fetch(sql.LOCK_CHILDREN, good)]
            await self._db.fetch(sql.FORGET_PARENTS, good)
            await self._unblock(children, now)

    async def written(self, outcomes: Sequence[Outcome]) -> set[tuple[int, int]]:
        """Those that an earlier settle has written."""
        columns = zip(*((o.job.seq, o.attempt, o.status, o.ending) for o in outcomes), strict=True)
        return {(row[0], row[1]) for row in await self._db.fetch(sql.WRITTEN, *columns)}

    # Workers, and by hand ----------------------------------------------------------------------

    async def beat(
        self, worker: WorkerInfo, lease: float, now: float, *, is_new: bool = False, again: bool = False
    ) -> tuple[Notices, str]:
        """Extend a worker's lease, or register it. What that brings back, with workers that are dead; and its term."""
        names = sql.WORKER_COLUMNS.split(", ")
        told = {"seen": now, "queues": json.dumps(dict(worker.queues)), "tasks": json.dumps(list(worker.tasks))}
        values = [told[name] if name in told else getattr(worker, name) for name in names]
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
        expired = await self._db.fetch(sql.EXPIRED, now)
        await self._bury({row[0]: EXPIRED for row in expired}, TaskStatus.CANCELLED, now)
        return max(len(promoted), len(expired)) >= sql.UPKEEP

    async def rescue(self, dead: Sequence[str], now: float) -> list[str]:
        """Put back the jobs of workers that are dead; those that have not come back meanwhile. In a transaction."""
        lost = [row[0] for row in await self._db.fetch(sql.RESCUE, dead)]
        if lost:
            await self._put_back(lost, now, "crash", WORKER_LOST, crashes=1)
        return lost

    async def leave(self, worker: WorkerInfo, now: float) -> None:
        """Take a worker off the list and release what it holds. In a transaction."""
        await self.beat(worker, 0.0, now)
        await self._db.fetch("DELETE FROM flowrra.worker WHERE id = $1", worker.id)
        await self._put_back([worker.id], now, "release", LEFT, crashes=0)

    async def _put_back(self, workers: Sequence[str], now: float, ending: str, error: str, *, crashes: int) -> None:
        rows = await self._db.fetch(sql.PUT_BACK, workers, now, ending, error, crashes)
        await self._bury({seq: BY_HAND for seq, _, cancelled in rows if cancelled}, TaskStatus.CANCELLED, now)
        await self._bury({seq: KILLED for seq, times, _ in rows if times >= MAX_CRASHES}, FAILED, now)
        self.ready = True

    async def cancel(self, task_id: str, now: float, by: str | None) -> tuple[bool, bool]:
        """Whether the job ends, and whether that is up to its worker. In a transaction."""
        found = await self._db.fetch(sql.LOCK, task_id)
        ended = bool(await self._bury({row[0]: BY_HAND for row in found}, TaskStatus.CANCELLED, now))
        asked = bool(found) and not ended and bool(await self._db.fetch(sql.ASK_TO_END, task_id))
        await self._note([task_id] if ended or asked else [], by, now, "cancelled")
        return ended or asked, asked

    async def _note(self, task_ids: Sequence[str], by: str | None, now: float, deed: str) -> None:
        if task_ids and by is not None:
            await self._db.fetch(sql.NOTE, task_ids, clean(by), now, deed)

    async def requeue(self, task_ids: Sequence[str], now: float, by: str | None) -> list[bool]:
        """Make jobs ready again. In a transaction."""
        await self._db.fetch(sql.LOCK_PARENTS, task_ids)  # in the order in which all do that
        done = [await self._requeue_one(task_id, now) for task_id in task_ids]
        await self._note(list(itertools.compress(task_ids, done)), by, now, "requeued")
        return done

    async def remove(self, task_ids: Sequence[str], by: str | None) -> list[str]:
        """Delete finished jobs, or those that `by` holds. In a transaction."""
        if by is None:
            return [row[0] for row in await self._db.fetch(sql.DELETE, task_ids)]
        gone = [row[1] for row in await self._db.fetch(sql.LEAVE, task_ids, by)]
        self.finished += gone
        return gone

    async def _requeue_one(self, task_id: str, now: float) -> bool:
        found = await self._db.fetch(sql.LOCK_REQUEUED, task_id)
        if not found:
            return False
        seq, text = found[0]
        parents: list[str] = json.loads(text) if text else []
        known = [row[2] for row in await self._db.fetch(sql.LOCK_PARENTS, parents)] if parents else []
        if not REQUEUABLE.isdisjoint(known):
            return False
        if not await self._db.fetch(sql.REQUEUE, seq, "blocked" if parents else "pending"):
            return False  # an unfinished job has its unique key now
        if parents:
            await self._await_parents({seq: dict.fromkeys(parents)}, now, strict=False)
        self.ready = True
        return True


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
        _none_if_none([_text(job.overrides) for job in jobs]),
        _none_if_none([job.unique for job in jobs]),
        _none_if_none([json.dumps(list(dict.fromkeys(job.parents))) if job.parents else None for job in jobs]),
    ]


def _one_for_all(values: list[T]) -> list[T]:
    return values[:1] if values.count(values[0]) == len(values) else values


def _none_if_none(values: list[T | None]) -> list[T | None]:
    return [] if values.count(None) == len(values) else values


def _columns_of(outcomes: Sequence[Outcome]) -> list[list[Any]]:
    """Outcomes as the arrays that sql.FINISH and sql.AGAIN have in common."""
    return [
        [outcome.job.seq for outcome in outcomes],
        [outcome.attempt for outcome in outcomes],
        [outcome.status for outcome in outcomes],
        [int(outcome.ending == "failure") for outcome in outcomes],
        _none_if_none([clean(outcome.error) for outcome in outcomes]),
        _none_if_none([clean(outcome.traceback) for outcome in outcomes]),
    ]


def _text(value: Mapping[str, Any] | None) -> str | None:
    return json.dumps(value, sort_keys=True) if value else None
