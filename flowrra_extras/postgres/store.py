"""The calls of a broker on one connection. If a method needs a transaction, its docstring says so.

This module does not know groups, pools and waiting callers. The rules of the core decide on jobs: a walk reads without
locks, and its changes are written in one statement if nothing that it read has changed; otherwise it runs again.
Plain pushes, claims, promotions and the successes of jobs without children are separate statements.

What moves jobs of limits does so in a transaction, and remembers their limit keys. At its end `admit` locks these, so
that it sees all that others have done, and lets the next jobs run. So rows are locked before limit keys, always.
"""

import collections
import contextlib
import json
import operator
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import asyncpg

import flowrra
from flowrra_extras.postgres import statements as sql
from flowrra_extras.postgres.connections import Session

T = TypeVar("T")

_FINDS: Mapping[type[flowrra.Find], str] = {
    flowrra.Jobs: sql.FIND_JOBS,
    flowrra.Children: sql.FIND_CHILDREN,
    flowrra.Holders: sql.FIND_HOLDERS,
    flowrra.Running: sql.FIND_RUNNING,
    flowrra.EventWaiters: sql.FIND_WAITERS,
    flowrra.Expired: sql.FIND_EXPIRED,
    flowrra.Admitted: sql.FIND_ADMITTED,
}
_TRIES = 2  # tries of a walk outside a transaction


class _ChangedError(Exception):
    """Something that a walk has read was changed before it could write. Nothing was written."""


class _LimitedError(Exception):
    """A walk outside of a transaction has moved jobs of limits: nothing was written."""


class Locks(NamedTuple):
    """What a transaction knows when it comes to limits: whether it has locked all limit keys that it has touched.

    `moved`: of limit keys of which it has only ended (`have_ended`) or only claimed jobs, how many.
    """

    are_held: bool = False
    moved: Mapping[str, int] = types.MappingProxyType({})
    have_ended: bool = False


@dataclass(slots=True)
class _Line:
    """The first jobs that wait for a limit key: `asked` were requested, of `number`. Others have locked the rest."""

    asked: int
    number: int = 0
    waiters: list[flowrra.LimitWaiter] = field(default_factory=list)


class _View:
    """The jobs that one walk has read, each with its seq and revision."""

    def __init__(self, session: Session, locks: Locks | None) -> None:
        self._db = session
        self._locks = locks  # None: limit keys are not read, and `admit` does so at the end
        self.revisions: dict[str, tuple[int, str]] = {}
        self.guarded: set[str] = set()  # without those that were found by their unique keys, which the index guards
        self.contended: list[str] = []  # limit keys with waiting jobs that others have locked
        self._line: dict[str, _Line] = {}
        self._parents: dict[str, int] = {}  # possible parents

    async def look(self, find: flowrra.Find) -> list[Any]:
        if isinstance(find, flowrra.LimitKeys):
            return await self._limit_keys(find.names)
        if isinstance(find, flowrra.WaitingFor):
            return await self._waiting_for(find.most)
        if isinstance(find, flowrra.DueKeys):
            return [row[0] for row in await self._db.fetch(sql.DUE_KEYS, *find)]
        values: Sequence[Any] = find if isinstance(find, flowrra.Expired) else [find[0]]
        if isinstance(find, flowrra.Children):
            values = [[self._parents[task_id] for task_id in find.of if task_id in self._parents]]
            if not values[0]:
                return []
        rows = [tuple(row) for row in await self._db.fetch(_FINDS[type(find)], *values)]
        jobs = await flowrra.apart(jobs_of_rows, rows)
        for job, (*_, has_children, revision) in zip(jobs, rows, strict=True):
            self.revisions.setdefault(job.id, (job.seq, revision))
            if has_children:
                self._parents[job.id] = job.seq
            if not isinstance(find, flowrra.Holders):
                self.guarded.add(job.id)
        return jobs

    async def _limit_keys(self, names: Sequence[str]) -> list[flowrra.LimitKey]:
        if self._locks is None:
            return list(map(flowrra.LimitKey, names))  # of which nothing is known, so that nothing is admitted
        if not self._locks.are_held:
            await self._db.fetch(sql.LOCK_KEYS, names)
        most = [self._locks.moved.get(name, 0) for name in names]
        rows = await self._db.fetch(sql.LIMIT_KEYS, names, most, self._locks.have_ended, False)
        self._line = {name: _Line(number) for name, number in zip(names, most, strict=True)}
        self._take((row[0], row[4], *row[-4:]) for row in rows)
        states = limit_keys_of_rows(rows)
        return [states.get(name) or flowrra.LimitKey(name) for name in names]  # without a row, nothing to admit

    async def _waiting_for(self, most: Mapping[str, int]) -> list[flowrra.LimitWaiter]:
        """Of these jobs, those that nobody else can change now."""
        if more := {name: number for name, number in most.items() if number > self._line[name].asked}:
            self._line |= {name: _Line(number) for name, number in more.items()}
            self._take(await self._db.fetch(sql.WAITING_FOR, list(more), list(more.values())))
        lines = {name: self._line[name] for name in most}
        self.contended += [name for name, line in lines.items() if len(line.waiters) < min(line.number, most[name])]
        return [waiter for line in lines.values() for waiter in line.waiters]

    def _take(self, rows: Iterable[Any]) -> None:
        for name, number, *waiter in rows:
            line = self._line[name]
            line.number = number
            if waiter[0] is not None:
                line.waiters.append(flowrra.LimitWaiter(name, *waiter))


async def identify(session: Session) -> str | None:
    """Return the identity of the store; None if its schema must be created or migrated."""
    server = session.connection.get_server_version().major
    if server < 13:
        raise flowrra.ConfigError(f"PostgreSQL {server} is too old: 13 or later is needed")
    newest = len(sql.MIGRATIONS)
    version, store = await session.store()
    if version > newest:
        raise flowrra.BrokerError(
            f"schema {session.schema} has version {version}, newer than the {newest} of this flowrra: upgrade it"
        )
    return store if version == newest else None


async def migrate(session: Session) -> None:
    """Create or migrate the schema. Of two callers, the second one waits and then finds the current schema."""
    async with session.transaction():
        await session.fetch("SELECT pg_advisory_xact_lock(hashtext($1))", f"flowrra {session.schema}")
        # While this waits for a lock, all later callers wait too, also the heartbeats of workers.
        await session.fetch("SELECT set_config('lock_timeout', '3s', true)")
        if (await session.store())[1] is None:
            await session.make_schema()
            await session.script(sql.META)
        version, _ = await session.store()
        for script in sql.MIGRATIONS[version:]:
            await session.script(script)
        await session.fetch("UPDATE flowrra.meta SET version = $1 WHERE version < $1", len(sql.MIGRATIONS))


class Store:
    """The jobs, through one connection. `ready`, `notices` and `finished` say what to notify others of.

    A caller that opens a transaction around calls ends it with `admit` or `ask`.
    """

    def __init__(self, session: Session, retention: flowrra.BackendConfig) -> None:
        self._db = session
        self._retention = retention
        self.ready: set[str | None] = set()  # queues in which jobs may have become ready, not only by a plain push
        self.notices = False  # a worker must be notified
        self.finished: list[str] = []
        self._touched: collections.Counter[str] = collections.Counter()  # limit keys of jobs that were moved
        self._ended: collections.Counter[str] = collections.Counter()  # and of which it has ended jobs, how many
        self._are_locked = False  # whether these are locked
        self._now = 0.0  # when

    # The rules at work -------------------------------------------------------------------------

    async def run(self, now: float, walk: Callable[[flowrra.Unit], flowrra.Walk[T]]) -> T:
        """Run a walk of the rules and write its changes. If others changed the jobs meanwhile, run it again.

        In a transaction, each try keeps its locks for the next one, so that the tries come to an end.
        """
        if self._db.is_in_transaction():
            return await self._run_under_locks(now, walk)
        with contextlib.suppress(_LimitedError):
            for _ in range(_TRIES):
                with contextlib.suppress(_ChangedError, asyncpg.UniqueViolationError):
                    return await self._try(flowrra.Unit(now, self._retention), walk)
        async with self._db.transaction():
            answer = await self._run_under_locks(now, walk)
            await self.admit()
            return answer

    async def _run_under_locks(self, now: float, walk: Callable[[flowrra.Unit], flowrra.Walk[T]]) -> T:
        while True:
            with contextlib.suppress(_ChangedError):
                return await self._try(flowrra.Unit(now, self._retention), walk)

    async def _try(
        self, unit: flowrra.Unit, walk: Callable[[flowrra.Unit], flowrra.Walk[T]], locks: Locks | None = None
    ) -> T:
        view = _View(self._db, locks)
        answer = await flowrra.drive_async(walk(unit), view.look)
        if locks is None and (touched := _touched(unit)):
            if not self._db.is_in_transaction():
                raise _LimitedError
            self._touch(touched, unit.now)
        if unit.steps or unit.changed:
            await self._write(unit, view)
        if locks is not None:
            await self._write_admitted(unit, view)
        return answer

    # Limits ------------------------------------------------------------------------------------

    def _touch(self, names: Iterable[str], now: float) -> None:
        self._touched.update(names)
        self._now = now

    async def admit(self) -> None:
        """Let others run of the limits of which jobs were moved. Ends a transaction."""
        if names := sorted({*self._touched, *self._ended}):
            ended = {name: number for name, number in self._ended.items() if name not in self._touched}
            locks = Locks(self._are_locked and not self._touched, ended, have_ended=True)
            moved = [name for name in names[: sql.MOST_KEYS] for _ in range(max(1, self._touched[name]))]
            await self._try(flowrra.Unit(self._now, self._retention, moved), flowrra.admit, locks)
            self._ended.clear()
            self._touched = collections.Counter(names[sql.MOST_KEYS :])
            await self.ask()

    async def ask(self) -> None:
        """Leave that to the next upkeep: a transaction that may last is not to lock limit keys."""
        if self._touched:
            await self._db.fetch(sql.ASK, sorted(self._touched))
            self.ready.add(None)
            self._touched.clear()

    async def charge(
        self, claimed: Sequence[str], now: float, locked: Mapping[str, flowrra.Limit] | None = None
    ) -> None:
        """Charge claimed jobs, of which these are the limit keys. In the transaction of the claim.

        `locked`: their limits by name, if the claim has locked the keys. Of one without a rate, others follow.
        """
        if claimed:
            limits = locked or {}
            turns = {name for name, limit in limits.items() if limit.rate is None}
            moved = collections.Counter(key for key in claimed if flowrra.split_limit_key(key)[0] in turns)
            locks = Locks(locked is not None, moved)
            await self._try(flowrra.Unit(now, self._retention), lambda unit: flowrra.charge(unit, claimed), locks)

    async def _set_limits(self, limits: Iterable[flowrra.Limit]) -> None:
        for one in limits:
            await self._db.fetch(sql.LOCK_LIMITS)
            await self._db.fetch(sql.SET_LIMIT, one.name, one.text, one.is_counted, one.is_charged)
            self.ready.add(None)

    async def _write_admitted(self, unit: flowrra.Unit, view: _View) -> None:
        """Write what a walk that has locked its limit keys has come to: jobs that are ready now, and rows of keys."""
        admitted, states = unit.admitted, unit.changed_keys()
        placed = {job.id for job in unit.placed}
        kept = [state for state in states if state.row != flowrra.LimitKey("").row]
        if admitted or states:
            await self._db.fetch(
                sql.ADMIT,
                [waiter.seq for waiter in admitted],
                [waiter.id in placed for waiter in admitted] if placed else [],
                [state.name for state in kept],
                [state.tat for state in kept],
                [state.due for state in kept],
                [state.paused for state in kept],
                [state.name for state in states if state not in kept],
            )
        if view.contended:
            await self._db.fetch(sql.ASK, view.contended)
        self.ready.update(waiter.queue for waiter in admitted)
        self.ready.update(unit.timed)

    async def _write(self, unit: flowrra.Unit, view: _View) -> None:
        changes = unit.changes()
        old = {job.id: job for before, job in changes if before is not None}
        new = {job.id: job for before, job in changes if before is None}
        waits = _new_waits(unit)
        parents = {parent for parent, _ in waits}
        old |= {parent: unit.jobs[parent] for parent in parents - new.keys()}  # so that its end sees the child
        guards = sorted(view.revisions[task_id] for task_id in view.guarded | old.keys())
        places = {task_id: -place for place, task_id in enumerate(new, 1)} | {i: job.seq for i, job in old.items()}
        old_values, new_values = await flowrra.apart(
            lambda *_: (
                json.dumps([_old_values(job, unit) | {"has_children": job.id in parents} for job in old.values()]),
                json.dumps([born_values(job) | {"has_children": job.id in parents} for job in new.values()]),
            ),
            *[job.result for job in unit.jobs.values()],
        )
        rows = await self._db.fetch(
            sql.WRITE,
            [seq for seq, _ in guards],
            [revision for _, revision in guards],
            old_values,
            new_values,
            [places[parent] for parent, _ in waits],
            [places[child] for _, child in waits],
            [job.seq for job in old.values() if job.status in flowrra.FINISHED],
            [json.dumps([j.id, j.task, j.attempt, j.status, sql.clean(j.error)]) for j in unit.endings],
            [places.get(job.id, job.seq) for job, _ in unit.steps],
            [step.name for _, step in unit.steps],
            [json.dumps(step) for _, step in unit.steps],
        )
        if not rows[0][0]:
            raise _ChangedError
        for _, job in changes:
            self._note(job)

    def _note(self, job: flowrra.Job) -> None:
        """Note who must be notified of the change of a job."""
        if job.status in flowrra.FINISHED:
            self.finished.append(job.id)
        elif job.status is flowrra.RUNNING:
            self.notices |= job.cancel_requested
        elif job.status is not flowrra.BLOCKED:
            self.ready.add(job.queue)

    # Pushing -----------------------------------------------------------------------------------

    async def push(self, jobs: Sequence[flowrra.Job], now: float) -> list[str]:
        """Add jobs. A repetition changes nothing. In a transaction if a job has a limit."""
        if not all(map(is_plain, jobs)):
            return await self.run(now, lambda unit: flowrra.push(unit, [flowrra.copy_of(job) for job in jobs]))
        await self._db.fetch(sql.INSERT, now, *_columns(jobs))
        self._touch((flowrra.limit_key(job) for job in jobs if job.limit is not None), now)
        return [job.id for job in jobs]

    async def push_one(self, job: flowrra.Job, now: float, channel: str, payload: str, *, early: bool) -> None:
        """Add a plain job, and notify in the same transaction.

        With `early`, others are notified and see the job before it is on disk. The call still waits for the disk.
        """
        labels = flowrra.labels_text(job)
        values = job.id, job.payload, job.task, job.queue, job.priority, job.due, job.expires, labels
        await self._db.fetch(sql.INSERT_ONE_EARLY if early else sql.INSERT_ONE, now, *values, channel, payload)
        if early:
            await self._db.fetch(sql.SYNC)

    async def adopt(self, jobs: Sequence[flowrra.Job], by: str, now: float) -> list[str]:
        """Add jobs of another store, held by `by`."""
        return await self.run(now, lambda unit: flowrra.adopt(unit, jobs, by))

    # Settling ----------------------------------------------------------------------------------

    async def settle(self, outcomes: Sequence[flowrra.Outcome], now: float, *, careful: bool) -> set[tuple[int, int]]:
        """Write outcomes, at most one per attempt. Return the (seq, attempt) of those that were written.

        Without `careful`, only successes of jobs without children are written; of those with limits, in a transaction.
        """
        if careful:
            written = await self.run(now, lambda unit: flowrra.settle(unit, outcomes))
            return {(o.job.seq, o.attempt) for o, is_in in zip(outcomes, written, strict=True) if is_in}
        # All lock rows in this order.
        done = sorted((o for o in outcomes if o.status is flowrra.SUCCESS), key=lambda o: o.job.seq)
        if not done:
            return set()
        keep = [self._retention.result_ttl if o.keep is None else o.keep for o in done]
        columns = [[o.job.seq for o in done], [o.attempt for o in done], [o.text for o in done]]
        columns.append([now + seconds for seconds in keep])
        if self._db.is_in_transaction():
            rows = await self._db.fetch(sql.SUCCEED_LIMITED, now, *columns, len(outcomes))
            self._ended.update(row[3] for row in rows)
            self._are_locked, self._now = bool(rows) and rows[0][4], now
        else:
            rows = await self._db.fetch(sql.SUCCEED, now, *columns)
        self.finished += [row[2] for row in rows]
        return {(row[0], row[1]) for row in rows}

    async def keep_steps(self, outcomes: Iterable[flowrra.Outcome]) -> set[tuple[int, int]]:
        """Store steps. Return the (seq, attempt) of the attempts that still hold their jobs."""
        latest = {(o.job.seq, o.attempt, o.step.name): json.dumps(o.step) for o in outcomes if o.step is not None}
        rows = sorted(((*key, step) for key, step in latest.items()), key=operator.itemgetter(0))
        return {(row[0], row[1]) for row in await self._db.fetch(sql.KEEP_STEPS, *zip(*rows, strict=True))}

    async def written(self, outcomes: Sequence[flowrra.Outcome]) -> set[tuple[int, int]]:
        """Return the (seq, attempt) of those that an earlier settle has written."""
        columns = zip(*((o.job.seq, o.attempt, o.status, o.ending) for o in outcomes), strict=True)
        return {(row[0], row[1]) for row in await self._db.fetch(sql.WRITTEN, *columns)}

    # Workers, and changes by hand --------------------------------------------------------------

    async def beat(
        self, worker: flowrra.WorkerInfo, lease: float, now: float, *, is_new: bool = False, again: bool = False
    ) -> tuple[flowrra.Notices, str]:
        """Extend a worker's lease, or register it. Return the notices, with the dead workers, and the term."""
        names = sql.WORKER_COLUMNS.split(", ")
        texts = {"seen": now, "queues": json.dumps(dict(worker.queues)), "tasks": json.dumps(list(worker.tasks))}
        values = [texts[name] if name in texts else getattr(worker, name) for name in names]
        activity = flowrra.activity_texts(worker.activity)
        rest = (lease, list(worker.queues), list(activity), list(activity.values()), int(now - flowrra.ACTIVITY_KEPT))
        (row,) = await self._db.fetch(sql.BEAT, *values, *rest, is_new, again)
        term = row["term"] or ""  # none if an earlier try has just registered it
        lapsed = worker.term not in ("", term)
        endings = [flowrra.ended_job(text) for text in row["endings"]]
        paused = frozenset(row["paused"])
        return flowrra.Notices(row["cancelled"], lapsed, paused, row["suspects"], row["lost"], endings), term

    async def upkeep(self, worker: str, now: float) -> bool:
        """Do one step of upkeep: rescue, promote, expire. Return whether more is left. Needs a transaction."""
        await self.rescue([row[0] for row in await self._db.fetch(sql.LOST_TO, worker)], now)
        promoted = await self._db.fetch(sql.PROMOTE, now)
        self.ready.update([None] if promoted else [])
        is_left = await self.run(now, lambda unit: flowrra.expire(unit, sql.UPKEEP))
        self._touch((row[0] for row in promoted if row[0] is not None), now)
        unit = flowrra.Unit(now, self._retention, self._touched)
        self._touched.clear()
        are_due = await self._try(unit, lambda unit: flowrra.admit_due(unit, sql.UPKEEP_KEYS), Locks())
        return is_left or are_due or len(promoted) >= sql.UPKEEP

    async def rescue(self, dead: Sequence[str], now: float) -> list[str]:
        """Rescue the jobs of dead workers, except workers that renewed their lease meanwhile. Needs a transaction."""
        lost = [row[0] for row in await self._db.fetch(sql.RESCUE, dead)]
        if lost:
            await self.run(now, lambda unit: flowrra.rescue(unit, lost, crashed=True))
        return lost

    async def leave(self, worker: flowrra.WorkerInfo, now: float) -> None:
        """Remove a worker and release its jobs. Needs a transaction."""
        await self.beat(worker, 0.0, now)
        await self._db.fetch("DELETE FROM flowrra.worker WHERE id = $1", worker.id)
        await self.run(now, lambda unit: flowrra.rescue(unit, [worker.id], crashed=False))

    async def change(self, task_ids: Sequence[str], action: flowrra.Action, now: float, by: str | None) -> list[bool]:
        """What people do to jobs and limits, and moves to another store. In a transaction."""
        unit, by_whom = flowrra.Unit(now, self._retention), flowrra.emitted(action, sql.clean(by))
        if action in ("limit", "pause", "resume"):
            done = await self._try(unit, lambda unit: flowrra.change(unit, task_ids, action, by_whom), Locks())
            await self._set_limits(unit.limits)
            return done
        return await self.run(now, lambda unit: flowrra.change(unit, task_ids, action, by_whom))

    async def remove(self, task_ids: Sequence[str], by: str | None) -> list[str]:
        """Delete finished jobs, or those that `by` holds."""
        if by is None:
            return [row[0] for row in await self._db.fetch(sql.DELETE, task_ids)]
        gone = [row[0] for row in await self._db.fetch(sql.LEAVE, task_ids, by)]
        self.finished += gone
        return gone


def is_plain(job: flowrra.Job) -> bool:
    """Whether one statement can insert the job without the rules."""
    return job.unique is None and not job.parents


def _touched(unit: flowrra.Unit) -> set[str]:
    """The limit keys of jobs that a walk moves; a report of a job that goes on to run does not."""
    return {
        flowrra.limit_key(job)
        for before, after in unit.changes()
        if before is None or before.status is not flowrra.RUNNING or after.status is not flowrra.RUNNING
        for job in (before, after)
        if job is not None and job.limit is not None
    }


def _new_waits(unit: flowrra.Unit) -> list[tuple[str, str]]:
    """Return pairs of unfinished parents and children that now wait for them. Held children do not wait."""
    return [
        (parent, job.id)
        for before, job in unit.changes()
        if job.status is flowrra.BLOCKED and job.worker is None and job.waits
        if before is None or before.status is not flowrra.BLOCKED or before.worker is not None
        for parent in job.parents
        if parent in unit.jobs and unit.jobs[parent].status in flowrra.UNFINISHED
    ]


def _columns(jobs: Sequence[flowrra.Job]) -> list[list[Any]]:
    """Return jobs as the arrays that sql.INSERT takes."""
    return [
        [job.id for job in jobs],
        [job.payload for job in jobs],
        _one_for_all([job.task for job in jobs]),
        _one_for_all([job.queue for job in jobs]),
        _one_for_all([job.priority for job in jobs]),
        _none_if_none([job.due for job in jobs]),
        _none_if_none([job.expires for job in jobs]),
        _none_if_none([flowrra.labels_text(job) for job in jobs]),
        _none_if_none([flowrra.stored_limit_key(job) for job in jobs]),
    ]


def _one_for_all(values: list[T]) -> list[T]:
    return values[:1] if values.count(values[0]) == len(values) else values


def _none_if_none(values: list[T | None]) -> list[T | None]:
    return [] if values.count(None) == len(values) else values


# Rows -------------------------------------------------------------------------------------------


async def jobs_of_claim(session: Session, rows: Sequence[Any], worker: str, now: float) -> list[flowrra.Job]:
    """Return the jobs of a claim, in order: an UPDATE returns them in any order."""
    jobs: list[flowrra.Job] = []
    for row in rows:
        if row["seq"] is not None:
            job = flowrra.claimed_job(row[-sql.CLAIMED.count(",") - 1 :], worker, now)
            job.place = row["place"]
            jobs.append(job)
    jobs.sort(key=operator.attrgetter("priority", "place", "seq"))
    if again := {job.seq: job for job in jobs if job.attempt > 1}:
        for seq, steps in await session.fetch(sql.STEPS_OF, list(again)):
            again[seq].steps = flowrra.steps_of(steps)
    return jobs


_FIELDS = sql.JOB_COLUMNS.replace("unique_key", "unique").replace("::text", "").split(", ")


def jobs_of_rows(rows: Sequence[Any]) -> list[flowrra.Job]:
    """Return the jobs of rows that begin with sql.JOB_COLUMNS."""
    return [_job_of_row(row) for row in rows]


def _job_of_row(row: Any) -> flowrra.Job:
    values = dict(zip(_FIELDS, row, strict=False))
    values["status"] = flowrra.TaskStatus(values["status"])
    values["started"] = _started(values["started"], values["submitted"])
    values["parents"] = tuple(flowrra.json_or(values["parents"], ()))
    labels, limited = values.pop("overrides"), values.pop("limit_key")
    values["history"] = tuple(flowrra.Attempt(*entry) for entry in flowrra.json_or(values["history"], ()))
    values["steps"] = flowrra.steps_of(values["steps"])
    values["progress"] = _progress_of(values["progress"])
    values["result"] = _stored_result(values["result"])
    job = flowrra.Job(**values)
    flowrra.give_labels(job, flowrra.json_or(labels, {}))
    flowrra.give_limit_key(job, limited)
    return job


def limit_keys_of_rows(rows: Iterable[Any]) -> dict[str, flowrra.LimitKey]:
    """Return the states of limit keys, by name, from rows of sql.LIMIT_KEYS."""
    states: dict[str, flowrra.LimitKey] = {}
    for name, text, running, pending, waiting, tat, due, paused, *_ in rows:
        if name not in states:
            limit = None if text is None else flowrra.Limit.from_text(text)
            states[name] = flowrra.LimitKey(name, limit, running, pending, waiting > 0, tat or 0.0, due, bool(paused))
    return states


_CHANGING: Sequence[str] = (
    "seq", "status", "due", "expires", "attempt", "failures", "crashes", "worker", "started", "finished", "purge_at",
    "cancel_requested", "waits", "place",
)  # fmt: skip
_BORN: Sequence[str] = ("id", "task", "queue", "priority", "submitted")
_values_changing, _values_born = operator.attrgetter(*_CHANGING), operator.attrgetter(*_BORN)


def changing_values(job: flowrra.Job) -> dict[str, Any]:
    """Return the fields of a job that the rules may change, as sql.WRITE takes them."""
    values: dict[str, Any] = dict(zip(_CHANGING, _values_changing(job), strict=True))
    values["result"] = flowrra.encode(job.result) if job.status is flowrra.SUCCESS else None
    values["error"] = sql.clean(job.error)
    values["traceback"] = sql.clean(job.traceback)
    values["progress"] = json.dumps(job.progress) if job.progress else None
    past = [a._replace(error=sql.clean(a.error), traceback=sql.clean(a.traceback)) for a in job.history]
    values["history"] = past or None
    return values


def _old_values(job: flowrra.Job, unit: flowrra.Unit) -> dict[str, Any]:
    """Return an existing job as sql.WRITE takes it."""
    return changing_values(job) | (
        {"payload": job.payload, "limit_key": flowrra.stored_limit_key(job)} if job.id in unit.replaced else {}
    )


def born_values(job: flowrra.Job) -> dict[str, Any]:
    """Return a new job as sql.WRITE takes it."""
    values = changing_values(job) | dict(zip(_BORN, _values_born(job), strict=True))
    values["payload"] = flowrra.encode_arguments(job)
    values["unique_key"] = job.unique
    values["parents"] = json.dumps(job.parents) if job.parents else None
    values["overrides"] = flowrra.labels_text(job)
    values["limit_key"] = flowrra.stored_limit_key(job)
    return values


def results_of_rows(rows: Sequence[Any]) -> list[flowrra.TaskResult[Any]]:
    """Return the results of rows of sql.GET."""
    return [_result_of_row(row) for row in rows]


def _result_of_row(row: Any) -> flowrra.TaskResult[Any]:
    task_id, task, status, result, *rest, progress = row
    values = [flowrra.TaskStatus(status), _stored_result(result), *rest, _progress_of(progress)]
    found: flowrra.TaskResult[Any] = flowrra.TaskResult(task_id, task, *values)
    found.started = _started(found.started, found.submitted)
    return found


def _started(claimed: float | None, submitted: float) -> float | None:
    """Return the start as in the rules. The row has the time of the claim, by which a lost claim is found."""
    return None if claimed is None else max(claimed, submitted)


def recorded_columns(
    results: Sequence[flowrra.TaskResult[Any]], texts: Sequence[str | None], retention: flowrra.BackendConfig
) -> list[Sequence[Any]]:
    """Return results of other stores as the arrays that sql.RECORD takes."""
    return [
        [r.task_id for r in results],
        [r.task for r in results],
        [r.status for r in results],
        [r.submitted for r in results],
        [r.attempts for r in results],
        [r.started for r in results],
        [r.finished or 0.0 for r in results],
        [(r.finished or 0.0) + retention.ttl(r.status) for r in results],
        [sql.clean(r.error) for r in results],
        [sql.clean(r.traceback) for r in results],
        texts,
    ]


def _stored_result(text: str | None) -> Any:
    return None if text is None or text == "null" else flowrra.decode(text)


def _progress_of(text: str | None) -> flowrra.Progress | None:
    return None if text is None else flowrra.Progress(*json.loads(text))
