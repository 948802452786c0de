"""The overview by cause, queues with pause and resume, the workers' page, and metrics."""

import collections
import dataclasses
import datetime as dt
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TypedDict

import flowrra
from flowrra_extras import metrics
from flowrra_extras.dashboard import html
from flowrra_extras.dashboard.auth import Access
from flowrra_extras.dashboard.failures import HOUR, FailureGroup, FailureGroups, latest_first
from flowrra_extras.dashboard.health import HealthCheck, QueueRow
from flowrra_extras.dashboard.html import Entered, Shown, View
from flowrra_extras.dashboard.http import Done, Fields, Request, Response, logger, text_answer
from flowrra_extras.dashboard.job_search import search_path
from flowrra_extras.dashboard.jobs import REDACTED, STALE, JobRow, Relative, arguments_line, job_row, moment, relative
from flowrra_extras.dashboard.schedules import ScheduleRow, Schedules
from flowrra_extras.dashboard.store import Store, Tally
from flowrra_extras.metrics import quantile
from flowrra_extras.urls import shown_url

GROUPS = 5  # groups of failures on the overview
LONGEST = 5  # running jobs there
SCHEDULES = 5
FEW_WORKERS = 20
RUNNING_SHOWN = 200  # running jobs that are shown with their workers
SPREAD = 20  # moments that stand for the waiting times of all ready jobs of a queue
# A job's way through the overview, from left to right.
FLOW = (
    ("Waiting", ("scheduled", "retrying", "blocked")),
    ("Ready", ("pending",)),
    ("Running", ("running",)),
    ("Finished", ("success", "failed", "cancelled")),
)


class RunningRow(Relative):
    """A job that a worker runs, since `started`."""

    started: dt.datetime | None
    arguments: str


class WorkerRow(TypedDict):
    """A live worker. `busy` is how many jobs it ran at its latest heartbeat; `running` lists jobs, up to a limit."""

    id: str
    host: str
    pid: int
    queues: dict[str, int]
    tasks: list[str]
    busy: int
    running: list[RunningRow]
    started: dt.datetime
    seen: dt.datetime
    memory: int | None  # bytes
    version: str


class Minute(TypedDict):
    """What the workers did in one minute. Quantiles are null if no job ran.

    The waiting times of the latest minute and of the hour include jobs that still wait.
    """

    at: dt.datetime
    succeeded: int
    failed: int
    retried: int
    wait_p50: float | None
    wait_p95: float | None
    run_p50: float | None
    run_p95: float | None


class Stats(TypedDict):
    """The overview at the time `at`. `counted_at` is when the jobs were counted."""

    at: dt.datetime
    counted_at: dt.datetime
    counts: dict[str, int]  # by state, all states
    minutes: list[Minute]  # the last hour, oldest first, each minute
    last_hour: Minute  # the same over all of it
    queues: list[QueueRow]
    workers: list[WorkerRow]
    waiting: int  # ready jobs, whose waiting so far is in the figures
    failures: list[FailureGroup]  # those with most failures in the last hour, a few
    more_failures: int  # groups that are not among them
    longest: list[JobRow]  # the jobs that have been running longest, a few
    schedules: list[ScheduleRow]  # those in trouble, and those that fire next, a few
    broker: str  # its URL without the password
    version: str


class Overview:
    """The state of the store: counts, queues, workers, failures."""

    def __init__(self, store: Store, health: HealthCheck, failures: FailureGroups, schedules: Schedules) -> None:
        self._store = store
        self._health = health
        self._failures = failures
        self._schedules = schedules
        self._exporter = metrics.Exporter(store.app, self._tally)

    async def stats(self) -> Stats:
        await self._store.app.connect()
        now, tally = self._store.app.now(), await self._store.tally()
        seen = await self._store.app.broker.overview(begin(now))
        minutes, hour = each_minute(seen.activity, now), summed(seen.activity, begin(now))
        if tally.oldest:
            waits, longest = still_waiting(tally, now), now - min(tally.oldest.values())
            latest = [row for row in seen.activity if row.minute == waits.minute]
            minutes[-1] = with_waiting(minutes[-1], summed([*latest, waits], waits.minute), longest)
            hour = with_waiting(hour, summed([*seen.activity, waits], begin(now)), longest)
        failures = latest_first((await self._failures.groups.get()).groups)
        return {
            "at": moment(now),
            "counted_at": moment(tally.at),
            "counts": {str(status): tally.total(status) for status in flowrra.TaskStatus},
            "minutes": minutes,
            "last_hour": hour,
            "queues": self._health.queue_rows(tally, seen.workers, seen.paused),
            "workers": [worker_row(worker, ()) for worker in seen.workers],
            "waiting": tally.total(flowrra.TaskStatus.PENDING),
            "failures": failures[:GROUPS],
            "more_failures": len(failures[GROUPS:]),
            "longest": await self._longest(now),
            "schedules": await self._few_schedules(),
            "broker": shown_url(self._store.app.config.broker.url),
            "version": flowrra.__version__,
        }

    async def _few_schedules(self) -> list[ScheduleRow]:
        try:
            return (await self._schedules.by_trouble())[:SCHEDULES]
        except flowrra.BackendError:  # their store may be another one than that of the jobs; the verdict reports it
            return []

    async def _longest(self, now: float) -> list[JobRow]:
        running = sorted(await self._health.running.get(), key=lambda job: job.started or now)
        return [job_row(job, now, redacted=self._store.hides(job)) for job in running[:LONGEST]]

    async def workers(self) -> list[WorkerRow]:
        """The live workers with what they run."""
        await self._store.app.connect()
        workers = await self._store.app.broker.workers()
        running = await self._running_on([worker for worker in workers if worker.running])
        rows = [(job.worker, self._running_row(job)) for job in running]
        return [worker_row(worker, [row for name, row in rows if name == worker.id]) for worker in workers]

    def _running_row(self, job: flowrra.Job) -> RunningRow:
        arguments = REDACTED if self._store.hides(job) else arguments_line(job)
        started = None if job.started is None else moment(job.started)
        return {**relative(job), "started": started, "arguments": arguments}

    async def _running_on(self, workers: Sequence[flowrra.WorkerInfo]) -> list[flowrra.Job]:
        """The jobs that run on these workers: by worker as long as they are few, since stores find them so at once."""
        which = flowrra.JobFilter(status=frozenset({flowrra.TaskStatus.RUNNING}))
        if len(workers) > FEW_WORKERS:
            return await self._store.app.broker.find(which, limit=RUNNING_SHOWN)
        by_worker = [dataclasses.replace(which, worker=worker.id) for worker in workers]
        return [job for one in by_worker for job in await self._store.app.broker.find(one, limit=RUNNING_SHOWN)]

    async def _tally(self) -> tuple[Mapping[tuple[str, flowrra.TaskStatus], int], Mapping[str, float]]:
        tally = await self._store.tally()
        return tally.counts, tally.oldest

    # Actions and answers of their own kind ------------------------------------------------------

    def sets_queue(self, *, paused: bool) -> Callable[..., Awaitable[Done]]:
        """Pauses a queue, or resumes it."""

        async def set_queue(fields: Fields, access: Access, name: str) -> Done:
            await self._store.app.connect()
            await self._store.app.broker.set_queue(flowrra.check_queue(name), paused=paused)
            self._store.forget()
            logger.info("%s has %s the queue %s", access.who, "paused" if paused else "resumed", name)
            return Done({"queue": name, "paused": paused}, "/", touched=search_path(queue=name))

        return set_queue

    async def metrics(self, request: Request, access: Access) -> Response:
        return text_answer(await self._exporter.text(), metrics.CONTENT_TYPE)

    # Pages -------------------------------------------------------------------------------------

    async def overview_page(self, view: View, entered: Entered | None) -> Shown:
        stats = await self.stats()
        minutes = stats["minutes"]
        drawn = {
            "finished": html.finished(minutes),
            "wait": html.spans(minutes, "wait"),
            "run": html.spans(minutes, "run"),
        }
        is_stale = stats["at"] - stats["counted_at"] > STALE
        context = {"view": stats, "hour": stats["last_hour"], "charts": drawn, "flow": FLOW, "is_stale": is_stale}
        return "Overview", "overview.html", context

    async def workers_page(self, view: View, entered: Entered | None) -> Shown:
        workers = await self.workers()
        room = sum(sum(worker["queues"].values()) for worker in workers)
        return "Workers", "workers.html", {"workers": workers, "room": room}


def worker_row(worker: flowrra.WorkerInfo, running: Iterable[RunningRow]) -> WorkerRow:
    """A worker with the running jobs that are its own."""
    return {
        "id": worker.id,
        "host": worker.host,
        "pid": worker.pid,
        "queues": dict(worker.queues),
        "tasks": list(worker.tasks),
        "busy": worker.running,
        "running": sorted(running, key=lambda job: job["started"] or moment(worker.seen)),
        "started": moment(worker.started),
        "seen": moment(worker.seen),
        "memory": worker.memory,
        "version": worker.version,
    }


def still_waiting(tally: Tally, now: float) -> flowrra.Activity:
    """The waiting so far of all ready jobs, as if they had started now: assumed to be spread evenly in each queue."""
    waits: collections.Counter[int] = collections.Counter()
    for queue, oldest in tally.oldest.items():
        number, newest = tally.total(flowrra.TaskStatus.PENDING, queue=queue), tally.newest.get(queue, oldest)
        points = max(1, min(number, SPREAD))
        for point in range(points):
            since = oldest + (newest - oldest) * point / max(1, points - 1)
            waits[flowrra.length_bucket(now - since)] += number * (point + 1) // points - number * point // points
    return flowrra.Activity(int(now // 60) * 60, "", waits=dict(+waits))


def with_waiting(started: Minute, all_of_them: Minute, longest: float) -> Minute:
    """The figures of what has started, with the waiting of those that still wait; none has waited longer so far."""
    low, high = (max(started[name] or 0.0, longest) for name in ("wait_p50", "wait_p95"))
    return {
        **started,
        "wait_p50": min(all_of_them["wait_p50"] or 0.0, low),
        "wait_p95": min(all_of_them["wait_p95"] or 0.0, high),
    }


def summed(rows: Iterable[flowrra.Activity], at: float) -> Minute:
    waits: collections.Counter[int] = collections.Counter()
    runs: collections.Counter[int] = collections.Counter()
    succeeded = failed = retried = 0
    for row in rows:
        succeeded, failed, retried = succeeded + row.succeeded, failed + row.failed, retried + row.retried
        waits.update(row.waits)
        runs.update(row.runs)
    return {
        "at": moment(at),
        "succeeded": succeeded,
        "failed": failed,
        "retried": retried,
        "wait_p50": quantile(waits, 0.5),
        "wait_p95": quantile(waits, 0.95),
        "run_p50": quantile(runs, 0.5),
        "run_p95": quantile(runs, 0.95),
    }


def begin(now: float) -> int:
    """The first of the minutes that are shown."""
    return int(now // 60 - HOUR + 1) * 60


def each_minute(rows: Sequence[flowrra.Activity], now: float) -> list[Minute]:
    """The last hour minute by minute, the empty ones too."""
    by_minute: dict[int, list[flowrra.Activity]] = {begin(now) + 60 * number: [] for number in range(HOUR)}
    for row in rows:
        if row.minute in by_minute:
            by_minute[row.minute].append(row)
    return [summed(found, minute) for minute, found in by_minute.items()]


def by_task(rows: Iterable[flowrra.Activity]) -> dict[str, list[flowrra.Activity]]:
    found: dict[str, list[flowrra.Activity]] = collections.defaultdict(list)
    for row in rows:
        found[row.task].append(row)
    return found
