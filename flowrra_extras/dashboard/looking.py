"""What the dashboard shows of jobs, tasks, queues and workers. Nothing here changes anything."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
from typing import TYPE_CHECKING, Any

from flowrra import (
    ConfigError,
    Job,
    JobFilter,
    TaskNotFoundError,
    TaskStatus,
    WorkerInfo,
    __version__,
    kind_name,
)
from flowrra_extras.dashboard import failures, minutes, rows, search
from flowrra_extras.dashboard.base import Base
from flowrra_extras.dashboard.fresh import Fresh
from flowrra_extras.dashboard.seeking import seek
from flowrra_extras.urls import shown_url

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flowrra import Activity, Flowrra, Task
    from flowrra_extras.dashboard import shapes
    from flowrra_extras.dashboard.counting import Tally
    from flowrra_extras.dashboard.seeking import Found

PAGE_LIMIT = 500  # jobs on a page at the most
LATEST = 10  # jobs of a short list
FEW_WORKERS = 20
RUNNING_SHOWN = 200  # running jobs that are shown with their workers
QUIET = 60.0  # seconds that the oldest ready job may wait before the health is called bad
FAILURES_READ = 1_000  # failed jobs that are put into groups
FAMILY = 50  # parents and children of a job that are shown
FAILED_JOBS = JobFilter(status=frozenset({TaskStatus.FAILED}))


class Looking(Base):
    """The questions. Unknown names and ids raise TaskNotFoundError."""

    def __init__(self, app: Flowrra, **options: Any) -> None:
        super().__init__(app, **options)
        self._failures = Fresh(self._group_failures)

    async def close(self) -> None:
        await self._failures.close()
        await super().close()

    def forget(self) -> None:
        """Show what is there now: something was changed from here."""
        self._counting.forget()
        self._failures.forget()

    async def overview(self) -> shapes.Overview:
        """The state of things."""
        await self.app.connect()
        now = self.app.now()
        tally, workers, paused = await self._around()
        activity = await self._activity(now)
        failed = await self.app.broker.find(FAILED_JOBS, limit=LATEST)
        return {
            "at": rows.moment(now),
            "counted_at": rows.moment(tally.at),
            "counts": {str(status): tally.total(status) for status in TaskStatus},
            "minutes": minutes.each_minute(activity, now),
            "last_hour": minutes.summed(activity, minutes.begin(now)),
            "queues": queue_rows(tally, workers, paused, now),
            "workers": [worker_row(worker, ()) for worker in workers],
            "failures": [self._row(job, now) for job in failed],
            "broker": shown_url(self.app.config.broker.url),
            "version": __version__,
        }

    async def queues(self) -> list[shapes.QueueRow]:
        """The queues that hold jobs, are paused or are served."""
        await self.app.connect()
        tally, workers, paused = await self._around()
        return queue_rows(tally, workers, paused, self.app.now())

    async def workers(self) -> list[shapes.WorkerRow]:
        """The live workers with what they run."""
        await self.app.connect()
        workers = await self.app.broker.workers()
        running = await self._running_on([worker for worker in workers if worker.running])
        return [worker_row(worker, running) for worker in workers]

    async def _running_on(self, workers: Sequence[WorkerInfo]) -> list[Job]:
        """The jobs that run on these workers: by worker as long as they are few, since stores find them so at once."""
        which = JobFilter(status=frozenset({TaskStatus.RUNNING}))
        if len(workers) > FEW_WORKERS:
            return await self.app.broker.find(which, limit=RUNNING_SHOWN)
        by_worker = [dataclasses.replace(which, worker=worker.id) for worker in workers]
        return [job for one in by_worker for job in await self.app.broker.find(one, limit=RUNNING_SHOWN)]

    async def tally(self) -> tuple[Mapping[tuple[str, TaskStatus], int], Mapping[str, float]]:
        """How many jobs there are, by queue and state; since when the oldest ready job of a queue waits."""
        tally = await self._counting.tally()
        return tally.counts, tally.oldest

    async def health(self) -> shapes.Health:
        """Whether someone is at work."""
        queues = await self.queues()
        workers = await self.app.broker.workers()
        problems = [] if workers else ["no worker is alive"]
        for queue in queues if workers else ():
            if queue["ready"] and not queue["workers"] and not queue["paused"]:
                problems.append(f"no live worker serves the queue {queue['name']}, where {queue['ready']} job(s) wait")
            elif (queue["lag"] or 0.0) > QUIET and not queue["paused"] and queue["running"] < queue["capacity"]:
                problems.append(f"the oldest job of the queue {queue['name']} waits although workers are free")
        lags = [queue["lag"] for queue in queues if queue["lag"] is not None]
        return {
            "healthy": not problems,
            "problems": problems,
            "workers": len(workers),
            "ready": sum(queue["ready"] for queue in queues),
            "lag": max(lags, default=None),
        }

    async def _around(self) -> tuple[Tally, list[WorkerInfo], set[str]]:
        broker = self.app.broker
        return await self._counting.tally(), await broker.workers(), await broker.paused()

    async def _activity(self, now: float) -> list[Activity]:
        return await self.app.broker.activity(minutes.begin(now))

    # Jobs --------------------------------------------------------------------------------------

    async def failures(self) -> shapes.Failures:
        """The latest failed jobs in groups, most jobs first."""
        await self.app.connect()
        groups, looked_at = await self._failures.get()
        number = await self._counting.number(FAILED_JOBS)
        return {
            "groups": groups,
            "looked_at": looked_at,
            "total": {"number": looked_at, "is_exact": False}
            if number is None
            else {"number": number, "is_exact": True},
        }

    async def _group_failures(self) -> tuple[list[shapes.FailureGroup], int]:
        jobs = await self.app.broker.find(FAILED_JOBS, limit=FAILURES_READ)
        return await asyncio.to_thread(failures.groups, jobs), len(jobs)

    async def jobs(
        self, line: str = "", *, after: str | None = None, limit: int = 50, patience: float | None = None
    ) -> shapes.JobPage:
        """The jobs that a search line asks for, the latest first; `after` is from the page before.

        A search that has found nothing goes on for so many seconds of `patience` (None: as long as a page can wait).
        """
        if not 1 <= limit <= PAGE_LIMIT:
            raise ConfigError(f"limit must be between 1 and {PAGE_LIMIT}, not {limit}")
        await self.app.connect()
        now, wanted = self.app.now(), await self.understood(line)
        found = await seek(self.app.broker, wanted, limit=limit, after=position(after), patience=patience)
        return {
            "jobs": [self._row(job, now) for job in found.jobs],
            "after": None if found.after is None else str(found.after),
            "complete": found.searched_to is None,
            "count": await self._number(wanted, found, is_first=not after),
            "searched_to": rows.moment_or_none(found.searched_to),
            "problems": wanted.problems,
        }

    async def _number(self, wanted: search.Search, found: Found, *, is_first: bool) -> shapes.Count | None:
        """How many jobs there are in all, as far as that is known."""
        if wanted.problems:
            return None
        if is_first and found.after is None:
            return {"number": len(found.jobs), "is_exact": True}
        number = await self._counting.number(wanted.which) if wanted.is_for_the_store else None
        if number is not None:
            return {"number": number, "is_exact": True}
        return {"number": len(found.jobs), "is_exact": False} if is_first else None

    async def understood(self, line: str) -> search.Search:
        """The search that a line stands for."""
        workers = await self.app.broker.workers()
        tasks = await self.known_tasks(workers)
        return search.parse(line, search.Surroundings(self.app.now(), tasks, self.named_arguments, failures.key))

    async def job(self, task_id: str) -> shapes.JobView:
        """A job with all that is known of it."""
        await self.app.connect()
        job = await self.app.get_job(task_id)
        children = await self.app.broker.find(JobFilter(parent=task_id), limit=FAMILY)
        return rows.job_view(
            job,
            self.app.now(),
            redacted=self.hides(job),
            parents=await self._parents(job),
            children=[rows.relative(child) for child in children],
            explanation=await self.app.explain(task_id),
        )

    async def text(self, task_id: str, field: str) -> str:
        """The whole of a long text of a job: args, kwargs, result, message, traceback, or traceback-2 of attempt 2."""
        await self.app.connect()
        job = await self.app.get_job(task_id)
        texts: dict[str, str | None] = {f"traceback-{attempt.number}": attempt.traceback for attempt in job.attempts}
        texts |= {"message": job.error, "traceback": job.traceback}
        if self.hides(job):
            texts |= dict.fromkeys(("args", "kwargs", "result"), rows.REDACTED)
        else:
            args, kwargs = rows.arguments_json(job)
            texts |= {"args": args, "kwargs": kwargs, "result": rows.result_json(job)}
        found = texts.get(field)
        if found is None:
            raise TaskNotFoundError(f"the job {task_id} has no text {field!r}")
        return found

    async def _parents(self, job: Job) -> list[shapes.Relative]:
        if not job.parents:
            return []
        shown = job.parents[:FAMILY]
        found = {parent.id: parent for parent in await self.app.broker.find(JobFilter(ids=shown), limit=FAMILY)}
        gone: shapes.Relative = {"id": "", "task": "", "status": "purged"}
        return [rows.relative(found[i]) if i in found else {**gone, "id": i} for i in shown]

    def _row(self, job: Job, now: float) -> shapes.JobRow:
        return rows.job_row(job, now, redacted=self.hides(job))

    # Tasks -------------------------------------------------------------------------------------

    async def tasks(self) -> list[shapes.TaskRow]:
        """The tasks that are registered here, known to a live worker, or were run in the last hour."""
        await self.app.connect()
        workers = await self.app.broker.workers()
        activity = minutes.by_task(await self._activity(self.app.now()))
        names = sorted({*await self.known_tasks(workers), *activity})
        return [self._task_row(name, workers, activity.get(name, [])) for name in names]

    async def task(self, name: str) -> shapes.TaskView:
        """A task with its options and parameters."""
        await self.app.connect()
        now, workers = self.app.now(), await self.app.broker.workers()
        activity = minutes.by_task(await self._activity(now)).get(name, [])
        task = self.app.registry.get(name)
        latest = await self._latest_of(name)
        if task is None and not activity and not latest and name not in await self.known_tasks(workers):
            raise TaskNotFoundError(f"no task {name!r} is registered here, known to a live worker, or that of a job")
        return {
            **self._task_row(name, workers, activity),
            "summary": None if task is None else inspect.getdoc(task.function),
            "signature": None if task is None else str(task.signature),
            "parameters": [] if task is None else [parameter_of(p) for p in task.signature.parameters.values()],
            "options": {} if task is None else options_of(task),
            "minutes": minutes.each_minute(activity, now),
            "latest": [self._row(job, now) for job in latest],
        }

    async def _latest_of(self, task: str) -> list[Job]:
        wanted = search.Search(JobFilter(task=task))
        return (await seek(self.app.broker, wanted, limit=LATEST)).jobs

    def _task_row(self, name: str, workers: list[WorkerInfo], activity: list[Activity]) -> shapes.TaskRow:
        task, hour = self.app.registry.get(name), minutes.summed(activity, self.app.now())
        ended = hour["succeeded"] + hour["failed"]
        return {
            "name": name,
            "is_registered": task is not None,
            "kind": None if task is None else kind_of(task),
            "queue": None if task is None else task.queue,
            "succeeded": hour["succeeded"],
            "failed": hour["failed"],
            "retried": hour["retried"],
            "failure_share": hour["failed"] / ended if ended else None,
            "run_p50": hour["run_p50"],
            "run_p95": hour["run_p95"],
            "workers": sum(name in worker.tasks for worker in workers),
        }

    # The search line ---------------------------------------------------------------------------

    async def complete(self, word: str) -> list[str]:
        """How the word that is being typed in the search line may go on."""
        await self.app.connect()
        workers = await self.app.broker.workers()
        tally = await self._counting.tally()
        choices = {
            "state": list(map(str, TaskStatus)),
            "task": await self.known_tasks(workers),
            "queue": sorted({queue for queue, _ in tally.counts} | {q for w in workers for q in w.queues}),
            "worker": [worker.id for worker in workers],
        }
        return search.complete(word, choices)


# Rows of what is no job ------------------------------------------------------------------------


def position(after: str | None) -> int | None:
    """The cursor that a page gave, as the store's; ConfigError if it is none."""
    if after is None:
        return None
    if not (after.isdecimal() and len(after) <= 18):
        raise ConfigError(f"after={after!r:.80} is no cursor that a page gave")
    return int(after)


def queue_rows(tally: Tally, workers: list[WorkerInfo], paused: set[str], now: float) -> list[shapes.QueueRow]:
    """A row for each queue that holds jobs, is paused or is served."""
    names = {queue for queue, _ in tally.counts} | paused | {queue for worker in workers for queue in worker.queues}
    return [_queue_row(name, tally, workers, now, paused=name in paused) for name in sorted(names)]


def _queue_row(name: str, tally: Tally, workers: list[WorkerInfo], now: float, *, paused: bool) -> shapes.QueueRow:
    serving = [worker for worker in workers if name in worker.queues]
    later = (TaskStatus.SCHEDULED, TaskStatus.RETRYING, TaskStatus.BLOCKED)
    oldest = tally.oldest.get(name)
    return {
        "name": name,
        "paused": paused,
        "ready": tally.total(TaskStatus.PENDING, queue=name),
        "running": tally.total(TaskStatus.RUNNING, queue=name),
        "waiting": tally.total(*later, queue=name),
        "capacity": sum(worker.queues[name] for worker in serving),
        "workers": len(serving),
        "lag": None if oldest is None else max(0.0, now - oldest),
    }


def worker_row(worker: WorkerInfo, running: Any) -> shapes.WorkerRow:
    """A worker with those of the running jobs that are its own."""
    return {
        "id": worker.id,
        "host": worker.host,
        "pid": worker.pid,
        "queues": dict(worker.queues),
        "tasks": list(worker.tasks),
        "busy": worker.running,
        "running": [rows.relative(job) for job in running if job.worker == worker.id],
        "started": rows.moment(worker.started),
        "seen": rows.moment(worker.seen),
        "memory": worker.memory,
        "version": worker.version,
    }


def kind_of(task: Task[..., Any]) -> str:
    """Where the task runs: async, thread or process."""
    if task.settings.cpu_bound:
        return "process"
    return "async" if task.is_async else "thread"


_KINDS: Mapping[inspect._ParameterKind, str] = {
    inspect.Parameter.POSITIONAL_ONLY: "positional",
    inspect.Parameter.POSITIONAL_OR_KEYWORD: "positional",
    inspect.Parameter.VAR_POSITIONAL: "args",
    inspect.Parameter.KEYWORD_ONLY: "keyword",
    inspect.Parameter.VAR_KEYWORD: "kwargs",
}


def parameter_of(parameter: inspect.Parameter) -> shapes.Parameter:
    """A parameter of a task, as its form asks for it."""
    empty, variable = parameter.empty, parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    note, default = parameter.annotation, parameter.default
    return {
        "name": parameter.name,
        "kind": _KINDS[parameter.kind],
        "annotation": None if note is empty else note if isinstance(note, str) else inspect.formatannotation(note),
        "default": None if default is empty else rows.line(repr(default)),
        "required": default is empty and not variable,
    }


def options_of(task: Task[..., Any]) -> dict[str, Any]:
    """The options of a task as they would be written; exception types by their names."""
    names = task.settings.__dataclass_fields__
    values = {name: getattr(task.settings, name) for name in names}
    for name in ("retry_on", "no_retry_on"):
        values[name] = [kind_name(kind) for kind in values[name]]
    return {**values, "queue": task.queue}
