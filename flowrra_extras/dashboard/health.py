"""The verdict at the top of each page, which `api/health` returns too: problems and warnings.

A problem needs action now, a warning needs attention. Each links to the page that shows its cause.
"""

import asyncio
import collections
import datetime as dt
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypedDict

from flowrra import Activity, ConfigError, FlowrraError, Job, JobFilter, TaskStatus, WorkerInfo, duration
from flowrra_extras.dashboard.auth import Access
from flowrra_extras.dashboard.failures import FailureGroup, FailureGroups
from flowrra_extras.dashboard.html import NO_ANSWER, PATIENCE, several, trend
from flowrra_extras.dashboard.http import Request, Response, json_answer, path_of
from flowrra_extras.dashboard.job_search import search_path
from flowrra_extras.dashboard.jobs import moment
from flowrra_extras.dashboard.store import Fresh, Store, Tally

MAX_LAG = 60.0  # seconds that the oldest ready job of a queue may wait, by default
RECENT = 600.0  # seconds for which failures, crashes and lost workers are reported
_RECENTLY = f"{RECENT / 60:.0f}m"  # in a search line
FAILING_LEAST = 5  # failed jobs of a task that lead to a warning, if they are
FAILING_SHARE = 0.1  # of its jobs that have finished
OVERDUE = 60.0  # seconds that a schedule may be late: a scheduler that takes over needs 10
RUNNING_READ = 200  # running jobs, the first submitted
VERDICT_REST = 1.0  # seconds between two verdicts of the pages
MOST_AGE = 5.0  # seconds that one is good for


class Problem(TypedDict):
    """A problem or a warning: `what` is affected, and links to `path` below the dashboard's root."""

    what: str
    text: str
    since: dt.datetime | None
    path: str


class Health(TypedDict):
    """The health of queues, workers and schedules. `healthy` is true if there are no `problems`."""

    healthy: bool
    problems: list[str]
    warnings: list[str]
    workers: int
    ready: int
    lag: float | None


class QueueRow(TypedDict):
    """A queue. `capacity` is how many jobs its live workers can run at once.

    `lag` is how many seconds its oldest ready job has waited. `change` is by how many jobs per minute the number of
    ready jobs grows (below 0: shrinks); null if that is not known yet. `drained_in` is in how many seconds no ready job
    is left, if the trend continues.
    """

    name: str
    paused: bool
    ready: int
    running: int
    waiting: int  # scheduled, retrying and blocked
    capacity: int
    workers: int
    lag: float | None
    since: dt.datetime | None  # when that job became ready
    max_lag: float
    change: float | None
    drained_in: float | None


class Verdict(NamedTuple):
    """The verdict of a page. `level` is ok, warning or bad; `word` is part of the title."""

    level: str
    word: str
    said: str
    found: Sequence[Problem] = ()


def lag_limits(max_lag: float | Mapping[str, float] | None) -> Mapping[str, float]:
    """Seconds that the oldest ready job may wait, by queue.

    Raises:
        ConfigError: a limit is not a positive number.
    """
    given = max_lag if isinstance(max_lag, Mapping) else {} if max_lag is None else {"*": max_lag}
    for queue, seconds in given.items():
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
            raise ConfigError(f"max_lag= must be seconds above 0, or seconds by queue, not {seconds!r} for {queue!r}")
    return collections.defaultdict(lambda: given.get("*", MAX_LAG), given)


class HealthCheck:
    """Finds the problems and warnings of queues, workers, schedules and failures."""

    def __init__(self, store: Store, failures: FailureGroups, max_lag: float | Mapping[str, float] | None) -> None:
        self._store = store
        self._failures = failures
        self._max_lag = lag_limits(max_lag)
        self._trend = Trend()
        self._lost = LostWorkers(store.app.config.executor.heartbeat)
        self._verdict = store.share(self._judge, rest=VERDICT_REST)
        self.running: Fresh[list[Job]] = store.share(self._find_running)

    async def queues(self) -> list[QueueRow]:
        """The queues that hold jobs, are paused or are served."""
        await self._store.app.connect()
        tally, seen = await self._store.tally(), await self._store.app.broker.overview()
        return self.queue_rows(tally, seen.workers, seen.paused)

    def queue_rows(self, tally: Tally, workers: Sequence[WorkerInfo], paused: set[str]) -> list[QueueRow]:
        """A row for each queue that holds jobs, is paused or is served."""
        self._trend.note(tally)
        names = {queue for queue, _ in tally.counts} | paused | {queue for worker in workers for queue in worker.queues}
        return [self._queue_row(name, tally, workers, paused=name in paused) for name in sorted(names)]

    def _queue_row(self, name: str, tally: Tally, workers: Sequence[WorkerInfo], *, paused: bool) -> QueueRow:
        serving = [worker for worker in workers if name in worker.queues]
        later = (TaskStatus.SCHEDULED, TaskStatus.RETRYING, TaskStatus.BLOCKED)
        oldest, ready = tally.oldest.get(name), tally.total(TaskStatus.PENDING, queue=name)
        change = self._trend.change(name)
        return {
            "name": name,
            "paused": paused,
            "ready": ready,
            "running": tally.total(TaskStatus.RUNNING, queue=name),
            "waiting": tally.total(*later, queue=name),
            "capacity": sum(worker.queues[name] for worker in serving),
            "workers": len(serving),
            "lag": None if oldest is None else max(0.0, self._store.app.now() - oldest),
            "since": None if oldest is None else moment(oldest),
            "max_lag": self._max_lag[name],
            "change": None if change is None else change * 60,
            "drained_in": ready / -change if change is not None and change < 0 and ready else None,
        }

    async def health(self) -> Health:
        problems, warnings, queues, workers = await self._look()
        lags = [queue["lag"] for queue in queues if queue["lag"] is not None]
        now = self._store.app.now()
        return {
            "healthy": not problems,
            "problems": [in_words(problem, now) for problem in problems],
            "warnings": [in_words(warning, now) for warning in warnings],
            "workers": len(workers),
            "ready": sum(queue["ready"] for queue in queues),
            "lag": max(lags, default=None),
        }

    async def _look(self) -> tuple[list[Problem], list[Problem], list[QueueRow], list[WorkerInfo]]:
        await self._store.app.connect()
        now = self._store.app.now()
        tally, seen = await self._store.tally(), await self._store.app.broker.overview(now - RECENT)
        queues = self.queue_rows(tally, seen.workers, seen.paused)
        problems = [*_of_queues(queues, seen.workers), *await self._of_schedules(now)]
        groups = (await self._failures.groups.get()).groups
        warnings = [
            *_of_pauses(queues),
            *_of_crashes(groups, await self.running.get(), now),
            *_of_activity(seen.activity),
            *self._lost.warnings(seen.workers, now),
        ]
        return problems, warnings, queues, seen.workers

    async def _find_running(self) -> list[Job]:
        running = JobFilter(status=frozenset({TaskStatus.RUNNING}))
        return await self._store.app.broker.find(running, limit=RUNNING_READ, oldest_first=True)

    async def _of_schedules(self, now: float) -> list[Problem]:
        """Stored schedules that nobody fires. Those in code are fired by the workers, if there are any."""
        try:
            stored = [one for scheduler in self._store.schedulers for one in await scheduler.list_scheduled_tasks()]
        except FlowrraError as error:
            return [_problem("the store of schedules does not answer", f"{error}", "/schedules")]
        return [
            _problem(f"schedule of {one.task}", "it is overdue, and no running scheduler fires it",
                     path_of("schedules", one.id), one.next_fire_at)
            for one in stored if is_overdue(one.next_fire if one.enabled else None, now)
        ]  # fmt: skip

    async def health_answer(self, request: Request, access: Access) -> Response:
        """The answer has `healthy` also if the store is unreachable or the app has stopped."""
        try:
            async with asyncio.timeout(PATIENCE):
                health = await self.health()
        except (FlowrraError, TimeoutError) as error:
            health = {
                "healthy": False, "problems": [self._store.explained(str(error) or NO_ANSWER)], "warnings": [],
                "workers": 0, "ready": 0, "lag": None,
            }  # fmt: skip
        return json_answer(health, 200 if health["healthy"] else 503)

    # The verdict of the pages --------------------------------------------------------------------

    async def verdict(self) -> Verdict:
        """The verdict of the last seconds. A page waits for it only if there is no recent one."""
        try:
            async with asyncio.timeout(PATIENCE):
                return await self._verdict.recent(MOST_AGE)
        except (FlowrraError, TimeoutError) as error:
            return store_is_away(self._store.explained(str(error) or NO_ANSWER))

    async def _judge(self) -> Verdict:
        problems, warnings, queues, workers = await self._look()
        if problems:
            word = several(len(problems), "problem")
            more = f" and {several(len(warnings), 'warning')}" if warnings else ""
            return Verdict("bad", word, f"{word}{more}", [*problems, *warnings])
        if warnings:
            word = several(len(warnings), "warning")
            return Verdict("warning", word, word, warnings)
        limit = _span(max((queue["max_lag"] for queue in queues), default=MAX_LAG))
        alive = f"{several(len(workers), 'worker')} alive"
        return Verdict("ok", "OK", f"No problems: {alive}, and no ready job has waited longer than {limit}.")


def store_is_away(reason: str) -> Verdict:
    """The verdict if the store is unreachable."""
    return Verdict("bad", "no answer", "The store does not answer", [_problem(reason, "", "/")])


def is_overdue(next_fire: float | None, now: float) -> bool:
    return next_fire is not None and now - next_fire > OVERDUE


def in_words(problem: Problem, now: float) -> str:
    since = problem["since"]
    said = f"{problem['what']}: {problem['text']}" if problem["text"] else problem["what"]
    return said if since is None else f"{said}, for {duration(now - since.timestamp())}"


def _problem(what: str, text: str, path: str, since: dt.datetime | None = None) -> Problem:
    return {"what": what, "text": text, "since": since, "path": path}


def _span(seconds: float) -> str:
    """A round length of time: 10 m."""
    return duration(seconds).removesuffix(" 0 s").removesuffix(" 0 m")


def about(number: int) -> str:
    """A number with two significant digits, so that the page does not change at each look."""
    size = 10 ** max(0, len(str(number)) - 2)
    return f"{number // size * size:,}" + ("+" if number % size else "")


# What is wrong: pure ------------------------------------------------------------------------------


def _waiting(number: int) -> str:
    return "1 job waits" if number == 1 else f"{about(number)} jobs wait"


def _of_queues(queues: Sequence[QueueRow], workers: Sequence[WorkerInfo]) -> Iterator[Problem]:
    if not workers:
        number = sum(queue["ready"] for queue in queues)
        since = min((queue["since"] for queue in queues if queue["since"] is not None), default=None)
        yield _problem("no worker is alive", _waiting(number) if number else "", "/workers", since)
        return
    for queue in queues:
        if queue["ready"] and not queue["paused"] and (found := _of_queue(queue)):
            why, state = found
            path, text = search_path(queue=queue["name"], state=state), f"{_waiting(queue['ready'])}, {why}"
            text += "" if queue["change"] is None else f"; {trend(queue)}"
            yield _problem(f"queue {queue['name']}", text, path, queue["since"])


def _of_queue(queue: QueueRow) -> tuple[str, str] | None:
    """Why the ready jobs of a queue wait, and the state of those to look at; None if they do not wait too long."""
    free = queue["capacity"] - queue["running"]
    if not queue["workers"]:
        return "and no live worker serves the queue", "pending"
    if (queue["lag"] or 0.0) <= queue["max_lag"]:
        return None
    if free > 0:
        return f"although workers have free slots ({free} of {queue['capacity']})", "pending"
    if queue["capacity"] == 1:
        return "the only slot is taken by a running job", "running"
    return f"all {queue['capacity']:,} slots are taken by running jobs", "running"


def _of_pauses(queues: Iterable[QueueRow]) -> Iterator[Problem]:
    for queue in queues:
        if queue["paused"] and queue["ready"]:
            path = search_path(queue=queue["name"], state="pending")
            yield _problem(f"queue {queue['name']}", f"it is paused, and {_waiting(queue['ready'])}",
                           path, queue["since"])  # fmt: skip


def _of_activity(rows: Iterable[Activity]) -> Iterator[Problem]:
    """Tasks of which many jobs have failed lately."""
    ended: collections.Counter[str] = collections.Counter()
    failed: collections.Counter[str] = collections.Counter()
    for row in rows:
        ended[row.task] += row.succeeded + row.failed
        failed[row.task] += row.failed
    for task, number in failed.most_common():
        if number >= FAILING_LEAST and number >= FAILING_SHARE * ended[task]:
            text = f"{number:,} of {ended[task]:,} jobs failed in the last {_span(RECENT)}"
            yield _problem(f"task {task}", text, search_path(state="failed", task=task, since=_RECENTLY))


def _of_crashes(groups: Iterable[FailureGroup], running: Iterable[Job], now: float) -> Iterator[Problem]:
    """Jobs that kill their workers."""
    for group in groups:
        if group["killed"] and now - group["latest"].timestamp() < RECENT:
            text = f"{several(group['number'], 'job')} failed: {group['error']}"
            yield _problem(f"task {group['task']}", text, search_path(group["search"]))
    for job in running:
        if job.crashes:
            often = "once" if job.crashes == 1 else f"{job.crashes} times"
            text = f"a job that has killed its worker {often} is running again"
            yield _problem(f"task {job.task}", text, path_of("jobs", job.id))


class LostWorkers:
    """Workers that died: they had missed a heartbeat. A worker that is stopped misses none before it is removed."""

    def __init__(self, heartbeat: float) -> None:
        self._heartbeat = heartbeat
        self._looked = 0.0
        self._alive: dict[str, WorkerInfo] = {}
        self._lost: dict[str, tuple[WorkerInfo, float]] = {}

    def warnings(self, workers: Sequence[WorkerInfo], now: float) -> Iterator[Problem]:
        """Warnings of the workers that were alive at an earlier call and are not among `workers`."""
        alive = {worker.id: worker for worker in workers}
        gone = [worker for name, worker in self._alive.items() if name not in alive]
        least = self._heartbeat + (now - self._looked) + 1.0
        lost = self._lost | {worker.id: (worker, now) for worker in gone if now - worker.seen > least}
        self._lost = {name: one for name, one in lost.items() if now - one[1] < RECENT and name not in alive}
        self._alive, self._looked = alive, now
        for worker, _ in self._lost.values():
            text = f"it was lost while it ran {several(worker.running, 'job')}; a lost job runs again elsewhere"
            yield _problem(f"worker {worker.host} {worker.pid}", text, "/workers", moment(worker.seen))


# The trend of a backlog ----------------------------------------------------------------------------

_SPAN = 60.0  # seconds over which a change is measured, if there were counts
_LEAST_SPAN = 10.0
_STEP = 5.0  # seconds between two counts that are kept


class Trend:
    """How many jobs were ready in each queue within the last minute, at each count."""

    def __init__(self) -> None:
        self._counts: collections.deque[tuple[float, Mapping[str, int]]] = collections.deque()
        self._latest: tuple[float, Mapping[str, int]] = 0.0, {}

    def note(self, tally: Tally) -> None:
        ready = {queue: number for (queue, status), number in tally.counts.items() if status is TaskStatus.PENDING}
        self._latest = tally.at, ready
        if not self._counts or tally.at - self._counts[-1][0] >= _STEP:
            self._counts.append(self._latest)
        while tally.at - self._counts[0][0] > _SPAN + _STEP:
            self._counts.popleft()

    def change(self, queue: str) -> float | None:
        """By how many jobs per second it has grown; None if there were too few counts."""
        (then, before), (now, after) = (self._counts[0] if self._counts else self._latest), self._latest
        if now - then < _LEAST_SPAN:
            return None
        return (after.get(queue, 0) - before.get(queue, 0)) / (now - then)
