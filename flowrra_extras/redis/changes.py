"""The rules at work: jobs are read, a walk decides, and one script writes, if what was read still holds."""

from __future__ import annotations

import collections
import os
from typing import TYPE_CHECKING, Any, TypeVar

from flowrra import (
    BLOCKED,
    FINISHED,
    HISTORY_LIMIT,
    NOT_BEGUN,
    PENDING,
    RETRYING,
    RUNNING,
    SCHEDULED,
    SUCCESS,
    UNFINISHED,
    Children,
    Expired,
    Holders,
    Jobs,
    Running,
    Unit,
    drive_async,
)
from flowrra_extras.redis.calls import head_of, in_turns, job_of, member_of, to_json
from flowrra_extras.redis.scripts import READ_FIELDS
from flowrra_extras.redis.wire import Call

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from flowrra import BackendConfig, Find, Job, Walk
    from flowrra_extras.redis.calls import Calls

__all__ = ["Changes", "Plan"]

T = TypeVar("T")
_REVISION = READ_FIELDS.index("rev") + 1  # its fields come first
_CHILDREN = READ_FIELDS.index("children")
_UNDO = {"ZADD": "ZREM", "SADD": "SREM", "HSET": "HDEL"}


class Changes:
    """Runs walks on the jobs in Redis. In a unit here, `result` is its text and `history` what is added to it."""

    def __init__(self, calls: Calls, retention: BackendConfig) -> None:
        self._calls = calls
        self._retention = retention

    async def run(self, now: float, start: Callable[[Unit], Walk[T]], *, new: int = 0) -> tuple[T, Unit]:
        """Run a walk until nothing that it has read changes before it is written. `new`: jobs that may come in."""
        while True:
            unit, plan, answer = await self.attempt(now, start, new=new)
            if await self.write(unit, plan):
                return answer, unit

    async def attempt(self, now: float, start: Callable[[Unit], Walk[T]], *, new: int = 0) -> tuple[Unit, Plan, T]:
        """What a walk would write, and its answer."""
        unit, plan = Unit(now, self._retention), Plan(self._calls, new)
        answer = await drive_async(start(unit), plan.look)
        return unit, plan, answer

    async def write(self, unit: Unit, plan: Plan) -> bool:
        """Write a plan; False: something that it rests on has changed."""
        await plan.add(unit)
        return plan.is_empty or bool(await self._calls.join(Call("apply", plan.text(unit)), 1 + len(unit.changed)))


class Plan:
    """What one call has read, as guards, and what it writes by command and key: removals first."""

    def __init__(self, calls: Calls, new: int) -> None:
        self._calls = calls
        self._reserve = new
        self._seq = 0  # before the first that is reserved
        self.token = os.urandom(8).hex()
        self.revisions: dict[str, list[str]] = {}
        self.holders: dict[str, str] = {}
        self.running: dict[str, int] = {}
        self.leases: dict[str, str] = {}
        self.removed: dict[tuple[str, str], list[str]] = collections.defaultdict(list)
        self.added: dict[tuple[str, str], list[str]] = collections.defaultdict(list)
        self.counts: collections.Counter[str] = collections.Counter()
        self._childless: set[str] = set()
        self._with_children: set[str] = set()

    # Reading -----------------------------------------------------------------------------------

    async def look(self, find: Find) -> list[Job]:
        if isinstance(find, Children):
            find = Children([parent for parent in find.of if parent not in self._childless])
            if not find.of:
                return []
        words = (repr(find.now), str(find.limit)) if isinstance(find, Expired) else find[0]
        last, found, *rows = await self._calls.join(
            Call("read", str(self._reserve), type(find).__name__, *words), len(words)
        )
        if self._reserve:
            self._seq, self._reserve = last - self._reserve, 0
        if isinstance(find, Holders):
            self.holders.update((key, "".join(ids)) for key, ids in zip(find.keys, found, strict=True))
        elif isinstance(find, Running):
            self._note_running(find.workers, found)
        jobs = [self._read(*rows[i : i + 2]) async for i in in_turns(range(0, len(rows), 2))]
        known = [job for job in jobs if job is not None]
        if isinstance(find, Jobs | Holders):
            return known
        if isinstance(find, Expired):
            return sorted(known, key=lambda job: (job.expires, job.seq))
        if isinstance(find, Running):
            return sorted(known, key=lambda job: job.seq)
        return sorted((job for job in known if _is_waiting(job)), key=lambda job: job.seq)

    def _note_running(self, workers: Sequence[str], found: Sequence[list[str]]) -> None:
        for worker, ids in zip(workers, found, strict=True):
            self.running[worker] = len(ids)
            self.removed["SREM", f"running:{worker}"] += ids  # also those of jobs that were thrown away

    def _read(self, task_id: str, values: Sequence[str | None]) -> Job | None:
        self.revisions.setdefault(task_id, [value or "" for value in values[:_REVISION]])
        if values[0] is None:
            return None
        if values[_CHILDREN] is None:
            self._childless.add(task_id)  # and it has none when it is written, or its revision is another one
        present = ((name, value) for name, value in zip(READ_FIELDS, values, strict=True) if value is not None)
        return job_of(task_id, [word for pair in present for word in pair], ())

    # Writing -----------------------------------------------------------------------------------

    async def add(self, unit: Unit) -> None:
        """Note what has become of the jobs of a unit, and of their places in the indexes."""
        async for before, job in in_turns(unit.changes()):
            if before is None:
                self._seq += 1
                job.seq = self._seq
            self._move(before, job)
            self._change_fields(before, job)
            if _is_waiting(job) and not (before is not None and _is_waiting(before)):
                self._with_children.update(job.parents)
        for parent in self._with_children & unit.jobs.keys():
            if unit.jobs[parent].status in UNFINISHED:  # its end, if it has missed this child, must fail
                self.added["HSET", f"job:{parent}"] += ("children", "1", "rev", self.token)

    def _move(self, before: Job | None, job: Job) -> None:
        old, new = {} if before is None else _entries(before), _entries(job)
        for command, key, member in old:
            if (command, key, member) not in new:
                self.removed[_UNDO[command], key].append(member)
        for (command, key, member), value in new.items():
            if old.get((command, key, member)) != value:
                pair = (value, member) if command == "ZADD" else (member, value)
                self.added[command, key] += pair if value else (member,)
        if before is not None:
            self.counts[_kind(before)] -= 1
        self.counts[_kind(job)] += 1

    def _change_fields(self, before: Job | None, job: Job) -> None:
        key = f"job:{job.id}"
        old, new = {} if before is None else _fields(before), _fields(job)
        gone = [name for name in old if name not in new]
        if "started" in gone or (before is not None and before.status in FINISHED):
            gone += "progress", "result"  # which are not read
        if gone:
            self.removed["HDEL", key] += gone
        changed = (pair for pair in new.items() if old.get(pair[0]) != pair[1])
        self.added["HSET", key] += ("rev", self.token, *(word for pair in changed for word in pair))
        if job.history:
            self.added["RPUSH", f"history:{job.id}"] += map(to_json, job.history)
            self.added["LTRIM", f"history:{job.id}"] = [str(-HISTORY_LIMIT), "-1"]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to write."""
        return not any(self.removed.values()) and not self.added

    def text(self, unit: Unit) -> str:
        """The plan as the script takes it. A job that is only read may be written, so long as it keeps its state."""
        jobs = [
            [task_id, *(seen if task_id in unit.changed else seen[:-1])] for task_id, seen in self.revisions.items()
        ]
        changed = [unit.jobs[task_id] for task_id in unit.changed]
        return to_json(
            {
                "token": self.token, "jobs": jobs, "holders": self.holders, "running": self.running,
                "leases": self.leases, "changed": list(unit.changed),
                "writes": [[*place, items] for part in (self.removed, self.added) for place, items in part.items()],
                "counts": {name: step for name, step in self.counts.items() if step},
                "endings": [to_json([job.id, job.task, job.attempt, job.status, job.error]) for job in unit.endings],
                "ended": [job.id for job in changed if job.status in FINISHED],
                "woken": _unique(job.queue for job in changed if _wakes(job)),
                "notices": _unique(job.worker for job in changed if job.status is RUNNING),
            }
        )  # fmt: skip

    def end_leases(self, workers: Iterable[str]) -> None:
        """Forget workers that are gone."""
        for worker in workers:
            self.removed["ZREM", "leases"].append(worker)
            self.removed["HDEL", "workers"].append(worker)
            self.removed["HDEL", "state"] += (
                f"{name} {worker}" for name in ("claims", "alone", "length", "term", "graced")
            )

    def renew_leases(self, leases: Mapping[str, float]) -> None:
        """Give workers fresh leases, until those moments."""
        for worker, until in leases.items():
            self.added["ZADD", "leases"] += (f"{until:.6f}", worker)
            self.added["HSET", "state"] += (f"graced {worker}", "1")


def _unique(items: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(items))


def _is_waiting(job: Job) -> bool:
    """Whether it waits for parents. One that is held looks at them when its hold ends."""
    return job.status is BLOCKED and job.worker is None


def _wakes(job: Job) -> bool:
    """Whether who waits for jobs is woken; of one that enters an empty queue, the script sees to that."""
    return job.status in (SCHEDULED, RETRYING) or (job.status is PENDING and job.crashes > 0)


def _kind(job: Job) -> str:
    return f"{'suspect' if job.status is PENDING and job.crashes else job.status} {job.queue}"


def _entries(job: Job) -> dict[tuple[str, str, str], str]:
    """Where a job stands in the indexes: its score or value, by the command that enters it, the key and the member.

    Ready jobs are found in their queue, running ones by their worker, and each move of a job costs: so that one which
    comes in, runs and succeeds enters one index only.
    """
    seq = str(job.seq)
    found = {("ZADD", "all", job.id): seq}
    found |= {("ZADD", f"family:{parent}", job.id): seq for parent in job.parents}
    if job.status is PENDING:
        queue = f"{'suspects' if job.crashes else 'ready'}:{job.queue}"
        found["ZADD", queue, member_of(job)] = str(job.crashes)
    elif job.status is RUNNING:
        found["SADD", f"running:{job.worker}", job.id] = ""
        if job.cancel_requested:
            found["SADD", "cancelling", job.id] = ""
        if job.crashes:
            found["HSET", "state", f"alone {job.worker}"] = job.id
    else:
        found["ZADD", f"by:{job.status}", job.id] = seq
    if job.error is not None:
        found["ZADD", "by:error", job.id] = seq
    if job.status in FINISHED:
        found["ZADD", "purge", job.id] = repr(job.purge_at)
    elif job.unique is not None:
        found["HSET", "unique", job.unique] = job.id
    if job.status in (SCHEDULED, RETRYING):
        found["ZADD", "due", job.id] = repr(job.due)
    if job.expires is not None and job.status in NOT_BEGUN:
        found["ZADD", "expiring", job.id] = repr(job.expires)
    return found


_MOMENTS = ("submitted", "due", "expires", "started", "finished", "purge_at")
_NUMBERS = ("attempt", "failures", "crashes", "waits")  # one of 0 is not there
_TEXTS = ("queue", "payload", "unique", "worker", "error", "traceback")


def _fields(job: Job) -> dict[str, str]:
    """A job as its hash, but for what is the script's own."""
    values = {"place": member_of(job)[:29], "status": str(job.status), "head": head_of(job)}
    values |= {name: text for name in _TEXTS if (text := getattr(job, name)) is not None}
    values |= {name: repr(moment) for name in _MOMENTS if (moment := getattr(job, name)) is not None}
    values |= {name: str(number) for name in _NUMBERS if (number := getattr(job, name))}
    if job.parents:
        values["parents"] = to_json(job.parents)
    if job.progress is not None:
        values["progress"] = to_json(job.progress)
    if job.cancel_requested:
        values["cancel"] = "1"
    if job.status is SUCCESS and job.result is not None:
        values["result"] = job.result
    return values
