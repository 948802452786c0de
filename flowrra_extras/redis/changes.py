"""Applies the rules: jobs are read, a walk decides, and one script writes if nothing that was read has changed."""

import collections
import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar, cast

import flowrra
from flowrra_extras.redis.calls import Calls, head_of, in_turns, job_of, member_of, ready_place, task_index, to_json
from flowrra_extras.redis.connection import Call
from flowrra_extras.redis.scripts import FIELDS, READ_AT_ONCE, READ_FIELDS

T = TypeVar("T")
Start = Callable[[flowrra.Unit], flowrra.Walk[T]]  # begins a walk
_REVISION = READ_FIELDS.index("rev") + 1  # the fields of the revision come first
_CHILDREN = READ_FIELDS.index("children")
_UNDO = {"ZADD": "ZREM", "SADD": "SREM", "HSET": "HDEL", "ENTER": "LEAVE"}  # the script knows ENTER and PURGE


class Changes:
    """Runs walks on the jobs in Redis. In its units, `result` is text and `history` contains only new attempts.

    A walk finds limit keys for which no job waits, so it admits none. The script admits them after it has written.
    """

    def __init__(self, calls: Calls, retention: flowrra.BackendConfig) -> None:
        self._calls = calls
        self._retention = retention

    async def run(
        self, now: float, start: Start[T], *, new: int = 0, assumed: Iterable[flowrra.Job] = ()
    ) -> tuple[T, flowrra.Unit]:
        """Run a walk and write its changes. If what it has read was changed meanwhile, run it again.

        Args:
            new: the maximum number of jobs that the walk may add.
            assumed: running jobs that are not read in the first run, because most have not changed since their claim.
        """
        while True:
            unit, plan, answer = await self.attempt(now, start, new=new, assumed=assumed)
            if await self.write(unit, plan):
                return answer, unit
            assumed = ()

    async def attempt(
        self, now: float, start: Start[T], *, new: int = 0, assumed: Iterable[flowrra.Job] = ()
    ) -> tuple[flowrra.Unit, "Plan", T]:
        """Run a walk once. Return its unit, the plan of what to write, and its answer."""
        unit, plan = flowrra.Unit(now, self._retention), Plan(self._calls, new, assumed)
        answer = await flowrra.drive_async(start(unit), plan.look)
        return unit, plan, answer

    async def write(self, unit: flowrra.Unit, plan: "Plan") -> bool:
        """Write a plan. False: something that the walk has read has changed."""
        await plan.add(unit)
        return plan.is_empty or bool(
            await self._calls.join(Call("apply", await plan.text(unit)), 1 + len(unit.changed))
        )

    # Workers that have died or left ------------------------------------------------------------

    async def judge(
        self, leases: Sequence[Any], now: float, *, beat: float = 0.0, is_new: bool = False, is_sure: bool = True
    ) -> list[str] | None:
        """Rescue the jobs of dead workers, and give others fresh leases. None: the leases have changed meanwhile.

        A claim does not decide on doubtful workers, only a heartbeat does. Without `is_sure`, the server was silent, or
        its answer was lost.
        """
        clock, until, length, lapsed = leases
        others = {w: flowrra.Lease(float(end), float(size or beat), graced == "1") for w, end, size, graced in lapsed}
        mine = flowrra.Lease(float(until), float(length or beat)) if until and is_sure else None
        dead, fresh = flowrra.judge_leases(others, mine, float(clock), is_new=is_new and is_sure)
        renewed = {worker: float(clock) + others[worker].length for worker in fresh} if beat else {}
        ends = {worker: end for worker, end, *_ in lapsed if worker in dead or worker in renewed}
        return dead if await self.rescue(dead, now, ends, renewed) else None

    async def rescue(
        self,
        workers: Sequence[str],
        now: float,
        ends: Mapping[str, str] | None = None,
        renewed: Mapping[str, float] | None = None,
    ) -> bool:
        """Release the jobs of workers. `ends`: the ends of their leases as judged; without it, the workers leave."""
        while True:
            unit, plan, _ = await self.attempt(
                now, lambda unit: flowrra.rescue(unit, workers, crashed=ends is not None)
            )
            plan.leases.update(ends or {})
            plan.end_leases(workers)
            plan.renew_leases(renewed or {})
            if await self.write(unit, plan):
                return True
            if ends is not None:
                return False


class Plan:
    """What one call has read, as guards, and what it writes, by command and key. Removals come first."""

    def __init__(self, calls: Calls, new: int, assumed: Iterable[flowrra.Job] = ()) -> None:
        self._calls = calls
        self._assumed = {job.id: job for job in assumed}
        self._reserve = new
        self._seq = -1  # the number before the first reserved seq; -1: none is reserved
        self.token = os.urandom(8).hex()
        self.revisions: dict[str, list[str]] = {}
        self.holders: dict[str, str] = {}
        self.running: dict[str, int] = {}
        self.leases: dict[str, str] = {}
        self.removed: dict[tuple[str, str], list[str]] = collections.defaultdict(list)
        self.added: dict[tuple[str, str], list[str]] = collections.defaultdict(list)
        self.new: list[tuple[int, str]] = []
        self.counts: collections.Counter[str] = collections.Counter()
        self.asking: set[str] = set()  # limit keys from or to which jobs move
        self._childless: set[str] = set()
        self._with_children: set[str] = set()

    # Reading -----------------------------------------------------------------------------------

    async def look(self, find: flowrra.Find) -> list[Any]:
        taken: list[flowrra.Job] = []
        if isinstance(find, flowrra.LimitKeys):
            return list(map(flowrra.LimitKey, find.names))
        if isinstance(find, flowrra.Jobs):
            taken = [self._assume(self._assumed[task_id]) for task_id in find.ids if task_id in self._assumed]
            find = flowrra.Jobs([task_id for task_id in find.ids if task_id not in self._assumed])
            if not find.ids:
                return taken
        if isinstance(find, flowrra.Children):
            find = flowrra.Children([parent for parent in find.of if parent not in self._childless])
            if not find.of:
                return []
        words = (
            (repr(find.now), str(find.limit)) if isinstance(find, flowrra.Expired) else cast("Sequence[str]", find[0])
        )
        last, found, *rows = await self._calls.join(
            Call("read", str(self._reserve), type(find).__name__, *words), len(words)
        )
        if len(rows) >= 2 * READ_AT_ONCE:
            rows += await self._read_rest(list(dict.fromkeys(itertools.chain(*found)))[READ_AT_ONCE:])
        if self._reserve:
            self._seq, self._reserve = last - self._reserve, 0
        if isinstance(find, flowrra.Holders):
            self.holders.update((key, "".join(ids)) for key, ids in zip(find.keys, found, strict=True))
        elif isinstance(find, flowrra.Running):
            self._note_running(find.workers, found)
        jobs = [self._read(*rows[i : i + 2]) async for i in in_turns(range(0, len(rows), 2))]
        known = [job for job in jobs if job is not None]
        if isinstance(find, flowrra.Jobs | flowrra.Holders):
            return taken + known
        if isinstance(find, flowrra.Expired):
            return sorted(known, key=lambda job: (job.expires, job.seq))
        if isinstance(find, flowrra.Running | flowrra.EventWaiters):
            return sorted(known, key=lambda job: job.seq)
        # Held jobs too: this unit may have ended their holds.
        return sorted((job for job in known if job.status is flowrra.BLOCKED), key=lambda job: job.seq)

    async def _read_rest(self, ids: Sequence[str]) -> list[Any]:
        """Read the jobs that were too many for one call. If one changes meanwhile, nothing is written."""
        rows: list[Any] = []
        for first in range(0, len(ids), READ_AT_ONCE):
            some = ids[first : first + READ_AT_ONCE]
            rows += (await self._calls.join(Call("read", "0", "Jobs", *some), len(some)))[2:]
        return rows

    def _assume(self, job: flowrra.Job) -> flowrra.Job:
        """Return a job in its first attempt as its claim has left it: since its push, only the claim wrote it."""
        self.revisions[job.id] = [member_of(job)[:29], job.status, str(job.attempt), ""]
        self._childless.add(job.id)
        found = flowrra.copy_of(job)
        found.expires = 0.0  # unknown, so it is deleted if it must be absent
        return found

    def _note_running(self, workers: Sequence[str], found: Sequence[list[str]]) -> None:
        for worker, ids in zip(workers, found, strict=True):
            self.running[worker] = len(ids)
            self.removed["SREM", f"running:{worker}"] += ids  # also those of jobs that were deleted

    def _read(self, task_id: str, values: Sequence[str | None]) -> flowrra.Job | None:
        self.revisions.setdefault(task_id, [value or "" for value in values[:_REVISION]])
        if values[0] is None:
            return None
        if values[_CHILDREN] is None:
            self._childless.add(task_id)  # and it has none when it is written, or its revision differs
        present = ((FIELDS[name], value) for name, value in zip(READ_FIELDS, values, strict=True) if value is not None)
        return job_of(task_id, [word for pair in present for word in pair])

    # Writing -----------------------------------------------------------------------------------

    async def add(self, unit: flowrra.Unit) -> None:
        """Add the changes of a unit's jobs, and of their entries in the indexes."""
        async for before, job in in_turns(unit.changes()):
            if before is None:
                if self._seq < 0:
                    raise AssertionError("the call did not say how many new jobs may come in")
                self._seq += 1
                job.seq = self._seq
                self.new.append((job.seq, job.id))
            self._move(before, job)
            self._change_fields(before, job)
            if _is_waiting(job) and not (before is not None and _is_waiting(before)):
                self._with_children.update(job.parents)
        for parent in self._with_children & unit.jobs.keys():
            if unit.jobs[parent].status in flowrra.UNFINISHED:  # if its end has missed this child, that write must fail
                self.added["HSET", f"job:{parent}"] += (FIELDS["children"], "1", FIELDS["rev"], self.token)

    def _move(self, before: flowrra.Job | None, job: flowrra.Job) -> None:
        old, new = {} if before is None else _entries(before), _entries(job)
        for command, key, member in old:
            if (command, key, member) not in new and command in _UNDO:
                self.removed[_UNDO[command], key].append(member)
        for (command, key, member), value in new.items():
            if old.get((command, key, member)) != value:
                pair = (value, member) if command == "ZADD" else (member, value)
                self.added[command, key] += pair if value else (member,)
        if before is not None:
            self.counts[_kind(before)] -= 1
        self.counts[_kind(job)] += 1

    def _change_fields(self, before: flowrra.Job | None, job: flowrra.Job) -> None:
        self.asking.update(flowrra.limit_key(one) for one in (before, job) if one is not None and one.limit is not None)
        key = f"job:{job.id}"
        old, new = {} if before is None else _fields(before), _fields(job)
        gone = [name for name in old if name not in new]
        if "started" in gone or (before is not None and before.status in flowrra.FINISHED):
            gone += "progress", "result"  # they were not read
        if gone:
            self.removed["HDEL", key] += (FIELDS[name] for name in gone)
        changed = {"rev": self.token, **{name: text for name, text in new.items() if old.get(name) != text}}
        self.added["HSET", key] += (word for name, text in changed.items() for word in (FIELDS[name], text))
        if job.history:
            self.added["RPUSH", f"history:{job.id}"] += map(to_json, job.history)
            self.added["LTRIM", f"history:{job.id}"] = [str(-flowrra.HISTORY_LIMIT), "-1"]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to write."""
        return not any(self.removed.values()) and not self.added

    async def text(self, unit: flowrra.Unit) -> str:
        """Return the plan for the script. A job that was only read may be changed if it keeps its state."""
        jobs = (
            (task_id, *(seen if task_id in unit.changed else seen[:-1])) for task_id, seen in self.revisions.items()
        )
        writes = ((*place, items) for part in (self.removed, self.added) for place, items in part.items())
        changed = [unit.jobs[task_id] for task_id in unit.changed]
        others = {
            "token": self.token, "plain": list(self._assumed), "holders": self.holders, "running": self.running,
            "leases": self.leases, "changed": list(unit.changed), "new": self.new,
            "counts": {name: step for name, step in self.counts.items() if step},
            "steps": [(job.id, step.name, to_json(step)) for job, step in unit.steps],
            "endings": [to_json([job.id, job.task, job.attempt, job.status, job.error]) for job in unit.endings],
            "ended": [job.id for job in changed if job.status in flowrra.FINISHED],
            "woken": _unique(job.queue for job in changed if _wakes(job)),
            "notices": _unique(job.worker for job in changed if job.status is flowrra.RUNNING and job.cancel_requested),
        }  # fmt: skip
        if self.asking:
            others |= {"asking": list(self.asking), "now": repr(unit.now)}
        pieces = [f'"{name}":[{await _joined(items)}]' for name, items in (("jobs", jobs), ("writes", writes))]
        return f"{{{','.join(pieces)},{to_json(others)[1:]}"

    def end_leases(self, workers: Iterable[str]) -> None:
        """Remove workers that have left or died."""
        for worker in workers:
            self.removed["ZREM", "leases"].append(worker)
            self.removed["HDEL", "workers"].append(worker)
            self.removed["HDEL", "state"] += (
                f"{name} {worker}" for name in ("claims", "alone", "length", "term", "graced")
            )

    def renew_leases(self, leases: Mapping[str, float]) -> None:
        """Give workers new leases, with these end times."""
        for worker, until in leases.items():
            self.added["ZADD", "leases"] += (f"{until:.6f}", worker)
            self.added["HSET", "state"] += (f"graced {worker}", "1")


async def _joined(items: Iterable[Any]) -> str:
    return ",".join([to_json(item) async for item in in_turns(items)])


def _unique(items: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(items))


def _is_waiting(job: flowrra.Job) -> bool:
    """Whether the job waits for parents. A held job checks them when its hold ends."""
    return job.status is flowrra.BLOCKED and job.worker is None and job.waits > 0


def _wakes(job: flowrra.Job) -> bool:
    """Whether workers that wait for jobs must be woken. For a job in an empty queue, the script does it."""
    return job.status in (flowrra.SCHEDULED, flowrra.RETRYING) or (job.status is flowrra.PENDING and job.crashes > 0)


def _kind(job: flowrra.Job) -> str:
    return f"{'suspect' if job.status is flowrra.PENDING and job.crashes else job.status} {job.queue}"


def _entries(job: flowrra.Job) -> dict[tuple[str, str, str], str]:
    """Return a job's entries in the indexes: (command, key, member) -> score or value.

    Each entry costs time, so a job that is pushed, runs and succeeds is in few indexes. Ready jobs are found through
    their queue, and running jobs through their worker.
    """
    seq = str(job.seq)
    found = {("ZADD", f"family:{parent}", job.id): seq for parent in job.parents}
    found |= {("ENTER", index, seq): "" for index in (task_index(job), *(f"tag:{tag}" for tag in job.tags))}
    if job.status is flowrra.PENDING:
        if job.crashes:
            found["ZADD", f"suspects:{job.queue}", member_of(job)] = str(job.crashes)
        else:
            found["ZADD", f"ready:{job.queue}", ready_place(job) + job.id] = "0"
        if job.place:
            found["ENTER", "placed", seq] = ""
    elif job.status is flowrra.RUNNING:
        found["SADD", f"running:{job.worker}", job.id] = ""
        if job.cancel_requested:
            found["SADD", "cancelling", job.id] = ""
        if job.crashes:
            found["HSET", "state", f"alone {job.worker}"] = job.id
    else:
        found["ENTER", f"by:{job.status}", seq] = ""
    if job.limit is not None and job.status in (flowrra.PENDING, flowrra.RUNNING):
        found["SADD", f"key-{job.status}:{flowrra.limit_key(job)}", job.id] = ""
    elif flowrra.awaits_limit(job):
        found["ZADD", f"key-waiting:{flowrra.limit_key(job)}", member_of(job)] = "0"
    if job.error is not None:
        found["ENTER", "by:error", seq] = ""
    if job.status in flowrra.FINISHED:
        found["PURGE", repr(job.purge_at), seq] = ""
    elif job.unique is not None:
        found["HSET", "unique", job.unique] = job.id
    if job.status in (flowrra.SCHEDULED, flowrra.RETRYING):
        found["ZADD", "due", job.id] = repr(job.due)
    if job.expires is not None and job.status in flowrra.NOT_BEGUN:
        found["ZADD", "expiring", job.id] = repr(job.expires)
    return found


_MOMENTS = ("submitted", "due", "expires", "started", "finished", "purge_at")
_NUMBERS = ("attempt", "failures", "crashes", "waits")  # a count of 0 has no entry
_TEXTS = ("queue", "payload", "unique", "worker", "error", "traceback")


def _fields(job: flowrra.Job) -> dict[str, str]:
    """Return a job as its hash, without the fields that the script maintains."""
    values = {"place": member_of(job)[:29], "status": str(job.status), "head": head_of(job)}
    values |= {name: text for name in _TEXTS if (text := getattr(job, name)) is not None}
    values |= {name: repr(moment) for name in _MOMENTS if (moment := getattr(job, name)) is not None}
    values |= {name: str(number) for name in _NUMBERS if (number := getattr(job, name))}
    if job.parents:
        values["parents"] = to_json(job.parents)
    if job.progress is not None:
        values["progress"] = to_json(job.progress)
    if (limit := flowrra.stored_limit_key(job)) is not None:
        values["limit"] = limit
    if job.status is flowrra.PENDING and job.place:
        values["turn"] = str(job.place)
    if job.cancel_requested:
        values["cancel"] = "1"
    if job.status is flowrra.SUCCESS and job.result is not None:
        values["result"] = job.result
    return values
