"""Failed jobs in groups of the same task and error."""

import asyncio
import datetime as dt
from collections.abc import Iterable
from typing import NamedTuple, TypedDict

from flowrra import KILLED, Job, JobFilter, TaskStatus
from flowrra_extras.dashboard.html import Entered, Shown, View
from flowrra_extras.dashboard.job_search import failure_key, failure_search
from flowrra_extras.dashboard.jobs import Count, line, moment, moment_after
from flowrra_extras.dashboard.store import Fresh, Store

READ = 1_000  # failed jobs that are put into groups
TASKS_READ = 10  # tasks with failures in the last hour of which none is among those jobs
READ_OF_TASK = 100
HOUR = 60  # minutes
FAILED_JOBS = JobFilter(status=frozenset({TaskStatus.FAILED}))


class FailureGroup(TypedDict):
    """Failed jobs with the same task and the same error, apart from numbers in it. `key` identifies the group.

    If `is_cut`, the group may have more jobs than `number`, because not all failed jobs were read.
    """

    key: str
    task: str
    error: str
    number: int
    is_cut: bool
    first: dt.datetime
    latest: dt.datetime
    minutes: list[int]  # how many in each minute of the last hour, the oldest first
    killed: bool  # they failed because they killed their workers
    sample: str  # the id of the latest one
    search: str  # the search line that lists them


class Failures(TypedDict):
    """The groups, those with the most jobs first. Only the `looked_at` latest failed jobs were read."""

    groups: list[FailureGroup]
    looked_at: int
    total: Count
    at: dt.datetime  # later changes are not included


class Grouped(NamedTuple):
    """The groups, of how many jobs they are made, and when they were read."""

    groups: list[FailureGroup]
    looked_at: int
    at: float


class FailureGroups:
    """The failed jobs of the store in groups."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.groups: Fresh[Grouped] = store.share(self._find)

    async def failures(self) -> Failures:
        """The latest failed jobs in groups, most jobs first."""
        await self._store.app.connect()
        found, counted = await self.groups.get(), await self._store.number(FAILED_JOBS)
        return {
            "groups": found.groups,
            "looked_at": found.looked_at,
            "total": {"number": found.looked_at, "is_exact": False}
            if counted is None
            else {"number": counted.number, "is_exact": True},
            "at": moment_after(found.at),
        }

    async def _find(self) -> Grouped:
        now, broker = self._store.app.now(), self._store.app.broker
        jobs = await broker.find(FAILED_JOBS, limit=READ)
        if is_cut := len(jobs) == READ:
            jobs += await self._hidden({job.id for job in jobs}, {job.task for job in jobs}, now)
        return Grouped(await asyncio.to_thread(grouped, jobs, now, is_cut=is_cut), len(jobs), now)

    async def _hidden(self, ids: set[str], tasks: set[str], now: float) -> list[Job]:
        """Failures that a flood of one error would hide: those of other tasks, and those that killed their workers."""
        broker = self._store.app.broker
        failing = {row.task for row in await broker.activity(now - 60 * HOUR) if row.failed}
        ways = [JobFilter(status=FAILED_JOBS.status, task=task) for task in sorted(failing - tasks)[:TASKS_READ]]
        ways.append(JobFilter(status=FAILED_JOBS.status, error=KILLED))
        found = {job.id: job for which in ways for job in await broker.find(which, limit=READ_OF_TASK)}
        return [job for name, job in found.items() if name not in ids]

    async def page(self, view: View, entered: Entered | None) -> Shown:
        found = await self.failures()
        return "Failures", "failures.html", {"view": found, "at": found["at"]}


def grouped(jobs: Iterable[Job], now: float, *, is_cut: bool = False) -> list[FailureGroup]:
    """The groups of failed jobs, which come the latest first; those of most jobs first."""
    found: dict[str, list[Job]] = {}
    for job in jobs:
        found.setdefault(failure_key(job), []).append(job)
    shown = [_group(name, alike, now, is_cut=is_cut) for name, alike in found.items()]
    return sorted(shown, key=lambda group: (-group["number"], group["key"]))


def latest_first(groups: Iterable[FailureGroup]) -> list[FailureGroup]:
    """The groups with most failures in the last hour first."""
    return sorted(groups, key=lambda group: (-sum(group["minutes"]), -group["number"], group["key"]))


def _group(name: str, jobs: list[Job], now: float, *, is_cut: bool) -> FailureGroup:
    ends = [job.finished or job.submitted for job in jobs]
    return {
        "key": name,
        "task": jobs[0].task,
        "error": line(jobs[0].error or ""),
        "number": len(jobs),
        "is_cut": is_cut,
        "first": moment(min(ends)),
        "latest": moment(max(ends)),
        "minutes": _by_minute(ends, now),
        "killed": jobs[0].error == KILLED,
        "sample": jobs[0].id,
        "search": failure_search(jobs[0]),
    }


def _by_minute(ends: Iterable[float], now: float) -> list[int]:
    """How many of these moments are in each minute of the last hour, by the clock."""
    minutes, latest = [0] * HOUR, int(now // 60)
    for end in ends:
        ago = latest - int(end // 60)
        if 0 <= ago < HOUR:
            minutes[HOUR - 1 - ago] += 1
    return minutes
