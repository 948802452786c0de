"""Jobs: the list, the page of one job, the actions (cancel, requeue, delete, clone), and how jobs are shown.

Moments are aware UTC datetimes and lengths are seconds. Values of a job (arguments, results, tracebacks) are texts, cut
to a length, since a page shows nothing else.
"""

import asyncio
import datetime as dt
import json
import math
import reprlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypedDict

import flowrra
from flowrra_extras.dashboard import job_search
from flowrra_extras.dashboard.auth import Access
from flowrra_extras.dashboard.html import Entered, Shown, View, filled, query_of, timeline
from flowrra_extras.dashboard.http import (
    Done,
    Fields,
    Request,
    Response,
    UnsureError,
    logger,
    path_of,
    read_list,
    read_object,
    read_value,
    refusing_misfits,
    submitted,
    text_answer,
)
from flowrra_extras.dashboard.job_search import Found, Search, Surroundings, find_jobs, parse
from flowrra_extras.dashboard.store import Store
from flowrra_extras.metrics import ready_since

ACTIONS = ("cancel", "requeue", "delete")
PAGE_LENGTH = 50  # jobs in a list
STALE = dt.timedelta(seconds=2)  # counts that are older say so
PAGE_LIMIT = 500  # jobs on a page at the most
FAMILY = 50  # parents and children of a job that are shown
IDS_LIMIT = 1_000  # jobs that are named in one request
IDS_SHOWN = 100  # changed jobs that a report names
API_PATIENCE = 2.0  # seconds that a search without a match goes on: a caller reads an empty answer as "none"
AT_ONCE = 50
ACTION_BATCH = 200  # jobs of a filter that are changed at once
ACTION_SECONDS = 2.0  # that a request may spend on a filter; the rest is for another one
STATES = ("pending", "running", "scheduled", "retrying", "blocked", "success", "failed", "cancelled")
AGES = (("10m", "10 minutes"), ("1h", "hour"), ("24h", "day"), ("7d", "week"))


class Text(TypedDict):
    """A text, cut after 4,000 characters. `size` is its full length."""

    text: str
    size: int
    is_cut: bool


class Count(TypedDict):
    """A number of jobs. If `is_exact` is false, there are at least `number` jobs."""

    number: int
    is_exact: bool


class Progress(TypedDict):
    """The progress that a job has reported. `share` is from 0 to 1; null if the total is not known."""

    done: float
    total: float | None
    note: str | None
    share: float | None


class JobRow(TypedDict):
    """A job in a list."""

    id: str
    task: str
    queue: str
    status: str
    priority: int
    attempt: int
    failures: int
    crashes: int
    submitted: dt.datetime
    due: dt.datetime | None
    started: dt.datetime | None
    finished: dt.datetime | None
    waited: float | None  # seconds from ready to the latest start; so far, if it waits
    ran: float | None  # seconds of the latest attempt; so far, if it runs
    worker: str | None
    error: str | None  # its first line
    progress: Progress | None
    arguments: str  # in a line, as they would be written in Python; "redacted" where they are hidden
    actions: list[str]  # what may be done to it now: cancel, requeue, delete, clone


class AttemptRow(TypedDict):
    """An attempt at a job, or a note of an action (`outcome` is "note", `worker` is who acted)."""

    number: int
    worker: str
    started: dt.datetime
    ended: dt.datetime | None
    seconds: float | None
    outcome: str
    error: str | None
    traceback: Text | None


class StepRow(TypedDict):
    """A finished step of a job, with its return value."""

    name: str
    ended: dt.datetime
    seconds: float
    result: Text | None


class Relative(TypedDict):
    """A parent or a child of a job."""

    id: str
    task: str
    status: str


class JobView(JobRow):
    """A job with all its data."""

    args: Text  # JSON
    kwargs: Text  # JSON
    is_redacted: bool
    max_attempts: int | None  # failures after which it is given up; None if its task is not registered here
    alike: str  # the search line for the failures of its kind
    result: Text | None
    message: str | None  # the whole error
    traceback: Text | None
    attempts: list[AttemptRow]
    steps: list[StepRow]
    event: str | None  # the event that it waits for, or that it stands for and that has not been emitted
    tags: list[str]
    meta: dict[str, Any]
    parents: list[Relative]
    children: list[Relative]
    overrides: dict[str, Any]
    unique: str | None
    limit: str | None
    key: str | None
    expires: dt.datetime | None
    purge_at: dt.datetime | None
    explanation: str


class JobPage(TypedDict):
    """A page of jobs, the latest submitted first. Pass `after` to get the next page; null: there is none.

    `complete` is false if the time of the search ended before the page was full and all jobs were searched. Then
    `searched_to` says how far back it has searched, and `after` continues from there. `problems` are the words of the
    search that were not understood, each with the reason. Changes since `at` may be missing in `jobs` and `count`.
    """

    jobs: list[JobRow]
    at: dt.datetime
    after: str | None
    complete: bool
    count: Count | None
    searched_to: dt.datetime | None
    problems: list[str]


class Report(TypedDict):
    """The result of an action on several jobs. If one call did not change all of them, pass `after` to continue.

    `jobs` are the ids of the changed jobs, at most 100.
    """

    action: str
    done: int
    refused: int
    after: str | None
    jobs: list[str]


class Jobs:
    """The pages and actions of jobs. Unknown ids raise TaskNotFoundError; `by` says who did it."""

    def __init__(self, store: Store, searches: Mapping[str, str] | None = None) -> None:
        self._store = store
        self._searches = dict(searches or {})

    async def listed(
        self,
        search: str = "",
        state: str | None = None,
        task: str | None = None,
        queue: str | None = None,
        after: str | None = None,
        limit: int = 50,
    ) -> JobPage:
        """A page of jobs as the API asks for it."""
        line = job_search.written(search, state=state, task=task, queue=queue)
        return await self.jobs(line, after=after, limit=limit, patience=API_PATIENCE)

    async def jobs(
        self, line: str = "", *, after: str | None = None, limit: int = 50, patience: float | None = None
    ) -> JobPage:
        """The jobs that a search line asks for, the latest first; `after` is from the page before.

        If a search has found nothing, it ends after `patience` seconds (None: as long as a page can wait).
        """
        if not 1 <= limit <= PAGE_LIMIT:
            raise flowrra.ConfigError(f"limit must be between 1 and {PAGE_LIMIT}, not {limit}")
        await self._store.app.connect()
        now, wanted = self._store.app.now(), await self.understood(line)
        found = await find_jobs(self._store.app.broker, wanted, limit=limit, after=position(after), patience=patience)
        count, at = await self._number(wanted, found, is_first=not after)
        return {
            "jobs": [job_row(job, now, redacted=self._store.hides(job)) for job in found.jobs],
            "at": moment_after(min(now, at)),
            "after": None if found.after is None else str(found.after),
            "complete": found.searched_to is None,
            "count": count,
            "searched_to": moment_or_none(found.searched_to),
            "problems": wanted.problems,
        }

    async def _number(self, wanted: Search, found: Found, *, is_first: bool) -> tuple[Count | None, float]:
        """How many jobs there are in all, as far as that is known, and since when if it was counted before."""
        if wanted.problems:
            return None, math.inf
        if is_first and found.after is None:
            return {"number": len(found.jobs), "is_exact": True}, math.inf
        counted = await self._store.number(wanted.which) if wanted.is_for_the_store else None
        if counted is not None:
            return {"number": counted.number, "is_exact": True}, counted.at
        return ({"number": len(found.jobs), "is_exact": False} if is_first else None), math.inf

    async def understood(self, line: str) -> Search:
        tasks = await self._store.task_names()
        return parse(line, Surroundings(self._store.app.now(), tasks, self._store.named_arguments))

    async def job(self, task_id: str) -> JobView:
        job = await self._store.app.get_job(task_id)
        children = await self._store.app.broker.find(flowrra.JobFilter(parent=task_id), limit=FAMILY)
        return job_view(
            job,
            self._store.app.now(),
            redacted=self._store.hides(job),
            parents=await self._parents(job),
            children=[relative(child) for child in children],
            max_attempts=self._max_attempts(job),
            explanation=await self._store.app.explain(task_id),
        )

    def _max_attempts(self, job: flowrra.Job) -> int | None:
        task = self._store.app.registry.get(job.task)
        retries = (job.overrides or {}).get("max_retries", None if task is None else task.settings.max_retries)
        return None if retries is None else retries + 1

    async def whole_text(self, request: Request, access: Access, task_id: str, field: str) -> Response:
        """The whole of a long text of a job: args, kwargs, result, message, traceback, or traceback-2 of attempt 2."""
        job = await self._store.app.get_job(task_id)
        texts: dict[str, str | None] = {f"traceback-{attempt.number}": attempt.traceback for attempt in job.attempts}
        texts |= {"message": job.error, "traceback": job.traceback}
        if self._store.hides(job):
            texts |= dict.fromkeys(("args", "kwargs", "result"), REDACTED)
        else:
            args, kwargs = arguments_json(job)
            texts |= {"args": args, "kwargs": kwargs, "result": result_json(job)}
        found = texts.get(field)
        if found is None:
            raise flowrra.TaskNotFoundError(f"the job {task_id} has no text {field!r}")
        return text_answer(found)

    async def _parents(self, job: flowrra.Job) -> list[Relative]:
        if not job.parents:
            return []
        shown = job.parents[:FAMILY]
        found = {
            parent.id: parent
            for parent in await self._store.app.broker.find(flowrra.JobFilter(ids=shown), limit=FAMILY)
        }
        gone: Relative = {"id": "", "task": "", "status": "purged"}
        return [relative(found[i]) if i in found else {**gone, "id": i} for i in shown]

    async def complete(self, word: str = "") -> list[str]:
        """How the word that is being typed in the search line may go on."""
        await self._store.app.connect()
        workers = await self._store.app.broker.workers()
        choices = {
            "state": list(map(str, flowrra.TaskStatus)),
            "task": self._store.known_tasks(workers),
            "queue": await self._store.queue_names(),
            "worker": [worker.id for worker in workers],
        }
        return job_search.complete(word[:200], choices)

    async def act(self, action: str, line: str, *, after: str | None = None, by: str) -> Report:
        """Cancel, requeue or delete all jobs that match a search line, if their state allows it.

        If there are too many for one call, the report has the `after` from which to continue.

        Raises:
            ConfigError: a word of the line cannot be understood. Nothing was changed.
        """
        await self._store.app.connect()
        wanted, place = await self.understood(line), position(after)
        if wanted.problems:
            raise flowrra.ConfigError(f"nothing was changed: {'; '.join(wanted.problems)}")
        report: Report = {"action": action, "done": 0, "refused": 0, "after": None, "jobs": []}
        deadline = time.monotonic() + ACTION_SECONDS
        while True:
            found = await find_jobs(
                self._store.app.broker, wanted, limit=ACTION_BATCH, after=place, seconds=ACTION_SECONDS
            )
            changed = await self.change(action, [job.id for job in found.jobs], by=by)
            report["done"], report["refused"] = report["done"] + changed["done"], report["refused"] + changed["refused"]
            report["jobs"] = [*report["jobs"], *changed["jobs"]][:IDS_SHOWN]
            place = found.after
            if place is None or time.monotonic() > deadline:
                return {**report, "after": None if place is None else str(place)}

    async def change(self, action: str, ids: Sequence[str], *, by: str) -> Report:
        if action not in ACTIONS:
            raise flowrra.ConfigError(f"unknown action {action!r}: use one of {', '.join(ACTIONS)}")
        if len(ids) > IDS_LIMIT:
            raise flowrra.ConfigError(
                f"a request can name at most {IDS_LIMIT} jobs, not {len(ids)}; to change more, give a search"
            )
        await self._store.app.connect()
        broker, now = self._store.app.broker, self._store.app.now()
        if action == "cancel":
            done = []
            for first in range(0, len(ids), AT_ONCE):  # brokers write simultaneous calls as one group
                some = ids[first : first + AT_ONCE]
                done += await asyncio.gather(*(broker.cancel(task_id, now=now, by=by) for task_id in some))
        else:
            done = await (broker.requeue(ids, now=now, by=by) if action == "requeue" else broker.delete(ids))
        changed = [task_id for task_id, was in zip(ids, done, strict=True) if was]
        if changed:
            logger.info("%s: %s of %d job(s): %s", by, action, len(changed), ", ".join(changed))
            self._store.forget()
        refused = len(ids) - len(changed)
        return {"action": action, "done": len(changed), "refused": refused, "after": None, "jobs": changed[:IDS_SHOWN]}

    async def clone_it(self, fields: Fields, access: Access, task_id: str) -> Done:
        """Submits a job of the same task with the same options, its arguments changed where JSON texts are given.

        It has no `unique` key, and runs as soon as it can.
        """
        old = await self._store.app.get_job(task_id)
        args, kwargs = fields.json_text("args"), fields.json_text("kwargs")
        new = flowrra.Job(
            self._store.app.new_id(), old.task, old.args, old.kwargs, old.queue, old.priority, old.payload
        )
        new.parents, new.tolerates, new.overrides, new.tags = old.parents, old.tolerates, old.overrides, old.tags
        new.limit, new.key = old.limit, old.key
        if args is not None or kwargs is not None:
            old_args, old_kwargs = flowrra.decode_arguments(old)
            new.args = tuple(old_args if args is None else read_list(args))
            new.kwargs = old_kwargs if kwargs is None else read_object(kwargs)
            new.payload = None
            flowrra.find_parents(new)
            if task := self._store.app.registry.get(old.task):
                with refusing_misfits():
                    checked = task.make_job(*task.typed(new.args, new.kwargs))
                new.args, new.kwargs = checked.args, checked.kwargs
                if task.settings.key is not None:
                    new.key = checked.key
        (job_id,) = await self._store.app.submit_jobs([new])
        logger.info("%s has cloned the job %s: job %s", access.who, task_id, job_id)
        self._store.forget()
        return submitted(job_id)

    # What forms and JSON ask for ---------------------------------------------------------------

    def on_many(self, action: str) -> Callable[..., Awaitable[Done]]:
        """Cancels, requeues or deletes the jobs with these `ids`, or all that a `search` asks for."""

        async def change(fields: Fields, access: Access) -> Done:
            ids, line, begin = fields.texts("ids"), fields.values.get("search", ""), self._store.app.now()
            if fields.is_form and len(ids) > 1 and fields.values.get("sure") != str(len(ids)):
                raise UnsureError(f"{action} {len(ids)} jobs?")
            if ids:
                report = await self.change(action, ids, by=access.who)
            elif "search" in fields.values:
                after = fields.text("after", "") or None
                report = await self.act(action, fields.text("search"), after=after, by=access.who)
                if not after and report["after"] is None and (counted := fields.values.get("counted", "")).isdecimal():
                    # Of those that were counted, some were gone, or in another state, before they were looked at.
                    report["refused"] = max(report["refused"], int(counted[:9]) - report["done"])
            else:
                raise flowrra.ConfigError("no jobs are given: give ids, or a search for all jobs that match it")
            more = f".more.{report['after']}" if report["after"] is not None else ""
            figures = f".{report['done']}.{report['refused']}{more}"
            touched, is_exact = touched_by(report, line, begin)
            at = job_search.search_path(touched) if touched else ""
            undo = "/jobs/requeue" if action == "cancel" and is_exact else ""
            return Done(report, "/jobs", figures, touched=at, undo=undo, line=line if more else "")

        return change

    def on_one(self, action: str) -> Callable[..., Awaitable[Done]]:
        """Cancels, requeues or deletes one job."""

        async def change(fields: Fields, access: Access, task_id: str) -> Done:
            report = await self.change(action, [task_id], by=access.who)
            path = "/jobs" if action == "delete" and report["done"] else path_of("jobs", task_id)
            said = f".{report['done']}.{report['refused']}"
            if report["done"]:
                return Done(report, path, said)
            status = (await self.job(task_id))["status"]
            return Done({"error": f"the job is {status}, so {action} is not possible"}, path, said, 409)

        return change

    async def emit_it(self, fields: Fields, access: Access, task_id: str) -> Done:
        """Emits the event that a job waits for."""
        job = await self._store.app.get_job(task_id)
        event = event_of(job)
        if event is None:
            raise flowrra.ConfigError(f"the job {task_id} is {job.status} and does not wait for an event")
        if not await self._store.app.emit(event, read_value(fields.json_text("payload") or "null")):
            raise flowrra.ConfigError(f"the event {event!r} was already emitted; its payload does not change")
        logger.info("%s has emitted the event %s", access.who, event)
        self._store.forget()
        return Done({"event": event}, path_of("jobs", task_id))

    # Pages -------------------------------------------------------------------------------------

    async def list_page(self, view: View, entered: Entered | None) -> Shown:
        given = view.parameters
        line, after = job_search.line_of(given), given.get("after_job") or None
        if chosen := list(entered.many.get("ids", ())) if entered else []:
            line = job_search.written(id=",".join(chosen[:IDS_SHOWN]))
        page = await self.jobs(line, after=after, limit=PAGE_LENGTH)
        words = job_search.words_of(line)
        with_state = [(name, query_of(search=job_search.with_word(line, "state", name))) for name in STATES]
        context = {
            "at": page["at"],
            "page": page,
            "search": line,
            "state": words.get("state"),
            "chips_all": query_of(search=job_search.without(line, ("state",))),
            "chips": with_state,
            "rest": job_search.without(line, ("task", "queue", "after")),
            "words": words,
            "choices": await self._choices(words),
            "saved": [(name, query_of(search=saved)) for name, saved in self._searches.items()],
            "chosen": chosen,
            "entered": entered,
            "is_later": after is not None,
            "is_stale": moment(self._store.app.now()) - page["at"] > STALE,
            "first": query_of(search=line),
            "next": query_of(search=line, after_job=page["after"]),
            "back": "/jobs" + query_of(search=line, after_job=after),
        }
        return line or "Jobs", "jobs.html", context

    async def _choices(self, words: Mapping[str, str]) -> dict[str, list[tuple[str, str]]]:
        """What the plain controls offer, as values and texts; what the line already says is always among it."""
        names = {"task": await self._store.task_names(), "queue": await self._store.queue_names()}
        choices = {key: {name: name for name in found} for key, found in names.items()} | {"after": dict(AGES)}
        for key, choice in choices.items():
            if key in words:
                choice.setdefault(words[key], words[key])
        return {key: list(choice.items()) for key, choice in choices.items()}

    async def job_page(self, view: View, entered: Entered | None, task_id: str) -> Shown:
        job = await self.job(task_id)
        return f"{job['task']} {job['status']}", "job.html", {"job": job, "line": timeline(job)}

    async def clone_page(self, view: View, entered: Entered | None, task_id: str) -> Shown:
        job = await self.job(task_id)
        return f"Clone {job['task']}", "clone.html", {"job": job, **filled(entered)}

    async def emit_page(self, view: View, entered: Entered | None, task_id: str) -> Shown:
        job = await self.job(task_id)
        waiting = await self._store.app.broker.find(
            flowrra.JobFilter(ids=[flowrra.event_id(job["event"] or "")]), limit=1
        )
        return "Emit an event", "emit.html", {
            "job": job, "waiting": sum(len(one.steps) for one in waiting), **filled(entered, {"payload": "null"})
        }  # fmt: skip


def touched_by(report: Report, line: str, begin: float) -> tuple[str, bool]:
    """The search line for the jobs that an action has changed since `begin`, and whether it finds no others.

    It names them, if they are few. Otherwise it has those words of the action's `line` that still hold of them.
    """
    if report["action"] == "delete" or not report["done"]:
        return "", False
    ids = job_search.written(id=",".join(report["jobs"]))
    if len(report["jobs"]) == report["done"] and len(ids) <= job_search.LINE_LIMIT:
        return ids, True
    return job_search.written(job_search.lasting(line), since=moment(begin - 1e-6).isoformat()), False


def position(after: str | None) -> int | None:
    """The cursor that a page gave, as the store's; ConfigError if it is none."""
    if after is None:
        return None
    if not (after.isdecimal() and len(after) <= 18):
        raise flowrra.ConfigError(f"after={after!r:.80} is not a cursor: use the `after` of the previous page")
    return int(after)


# How a job shows: pure ---------------------------------------------------------------------------


TEXT_LIMIT = 4_000  # characters of a long text on a page; the rest is behind a link
LINE_LIMIT = 200  # characters of an error or of arguments in a list
_DECODED = 20_000  # characters of arguments that are worth reading for one line of a list
REDACTED = "redacted"


def moment(seconds: float) -> dt.datetime:
    """Seconds since the epoch as a datetime; the latest possible one if they are too large."""
    try:
        return dt.datetime.fromtimestamp(seconds, dt.UTC)
    except (OverflowError, ValueError, OSError):
        return dt.datetime.max.replace(tzinfo=dt.UTC)


def moment_after(seconds: float) -> dt.datetime:
    """The first moment of a calendar, which has microseconds, that is not before these."""
    return moment(math.ceil(seconds * 1e6) / 1e6)


def moment_or_none(seconds: float | None) -> dt.datetime | None:
    return None if seconds is None else moment(seconds)


def text(whole: str, limit: int = TEXT_LIMIT) -> Text:
    """A text, cut to `limit` characters."""
    return {"text": whole[:limit], "size": len(whole), "is_cut": len(whole) > limit}


def text_or_none(whole: str | None) -> Text | None:
    return None if whole is None else text(whole)


def line(whole: str) -> str:
    """The first line of a text, cut to LINE_LIMIT characters."""
    first = whole[: LINE_LIMIT + 1].partition("\n")[0]
    return first if len(first) <= LINE_LIMIT else f"{first[: LINE_LIMIT - 1]}…"


# Arguments -------------------------------------------------------------------------------------


def _short() -> reprlib.Repr:
    """Writes any value in a few characters, even an object whose `repr` raises an exception."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 60
    short.maxlevel, short.maxdict, short.maxlist, short.maxtuple, short.maxset = 3, 6, 6, 6, 6
    return short


def arguments_line(job: flowrra.Job) -> str:
    """The arguments in a line, as they would be written in Python."""
    if job.payload is not None and len(job.payload) > _DECODED:
        return line(job.payload)
    try:
        args, kwargs = flowrra.decode_arguments(job)
    except flowrra.SerializationError:
        return line(job.payload or "")
    short = _short().repr
    return line(", ".join([*map(short, args), *(f"{name}={short(value)}" for name, value in kwargs.items())]))


def arguments_json(job: flowrra.Job) -> tuple[str, str]:
    """Arguments and keyword arguments as JSON texts, as the store keeps them."""
    try:
        args, kwargs = json.loads(flowrra.encode_arguments(job))
    except flowrra.SerializationError:  # the memory broker keeps what no other could
        return _short().repr(list(job.args)), _short().repr(dict(job.kwargs))
    return json.dumps(args, ensure_ascii=False), json.dumps(kwargs, ensure_ascii=False)


def result_json(job: flowrra.Job) -> str | None:
    """The result as a JSON text; None unless the job succeeded."""
    if job.status is not flowrra.TaskStatus.SUCCESS:
        return None
    try:
        return json.dumps(json.loads(flowrra.encode(job.result)), ensure_ascii=False)
    except flowrra.SerializationError:
        return _short().repr(job.result)


def actions(job: flowrra.Job) -> list[str]:
    """The actions that the job's state allows now."""
    if job.task == flowrra.EVENT:
        return ["delete"] if job.status in flowrra.FINISHED else []
    allowed = []
    if job.status not in flowrra.FINISHED and not job.cancel_requested:
        allowed.append("cancel")
    if job.status in flowrra.REQUEUABLE:
        allowed.append("requeue")
    if job.status in flowrra.FINISHED:
        allowed.append("delete")
    return [*allowed, "clone"]


def progress_of(progress: flowrra.Progress | None) -> Progress | None:
    if progress is None:
        return None
    done, total = _finite(progress.done) or 0, _finite(progress.total)
    share = min(1.0, max(0.0, done / total)) if total else None
    note = None if progress.note is None else line(progress.note)
    return {"done": done, "total": total, "note": note, "share": share}


def _finite(value: float | None) -> float | None:
    """The number; None where it is none that JSON can write, or too large."""
    try:
        return value if value is not None and math.isfinite(value) else None
    except OverflowError:
        return None


def waited(job: flowrra.Job, now: float) -> float | None:
    """Seconds from ready to the latest start; so far, if it waits for a worker."""
    if job.started is not None:
        return max(0.0, job.started - ready_since(job))
    return max(0.0, now - ready_since(job)) if job.status is flowrra.TaskStatus.PENDING else None


def ran(job: flowrra.Job, now: float) -> float | None:
    """Seconds of the latest attempt; so far, if it runs."""
    if job.started is None:
        return None
    end = now if job.status is flowrra.TaskStatus.RUNNING else job.finished
    return None if end is None else max(0.0, end - job.started)


def job_row(job: flowrra.Job, now: float, *, redacted: bool) -> JobRow:
    return {
        "id": job.id,
        "task": job.task,
        "queue": job.queue,
        "status": str(job.status),
        "priority": job.priority,
        "attempt": job.attempt,
        "failures": job.failures,
        "crashes": job.crashes,
        "submitted": moment(job.submitted),
        "due": moment_or_none(job.due),
        "started": moment_or_none(job.started),
        "finished": moment_or_none(job.finished),
        "waited": waited(job, now),
        "ran": ran(job, now),
        "worker": job.worker,
        "error": None if job.error is None else line(job.error),
        "progress": progress_of(job.progress),
        "arguments": REDACTED if redacted else arguments_line(job),
        "actions": actions(job),
    }


def attempt_row(attempt: flowrra.Attempt) -> AttemptRow:
    return {
        "number": attempt.number,
        "worker": attempt.worker,
        "started": moment(attempt.started),
        "ended": moment_or_none(attempt.ended),
        "seconds": None if attempt.ended is None else max(0.0, attempt.ended - attempt.started),
        "outcome": attempt.outcome,
        "error": None if attempt.error is None else attempt.error[:TEXT_LIMIT],
        "traceback": text_or_none(attempt.traceback),
    }


def event_of(job: flowrra.Job) -> str | None:
    """The event that a job waits for, or that it stands for, as long as that has not been emitted."""
    if job.task == flowrra.EVENT:
        return None if job.status in flowrra.FINISHED else job.id.removeprefix(flowrra.event_id(""))
    return flowrra.awaited_event(job)


def relative(job: flowrra.Job) -> Relative:
    return {"id": job.id, "task": job.task, "status": str(job.status)}


def step_row(step: flowrra.Step, *, redacted: bool) -> StepRow:
    return {
        "name": step.name,
        "ended": moment(step.ended),
        "seconds": step.ended - step.started,
        "result": text_or_none(REDACTED if redacted else step.text),
    }


def job_view(
    job: flowrra.Job,
    now: float,
    *,
    redacted: bool,
    parents: Sequence[Relative],
    children: Sequence[Relative],
    max_attempts: int | None,
    explanation: str,
) -> JobView:
    args, kwargs = (REDACTED, REDACTED) if redacted else arguments_json(job)
    result = REDACTED if redacted and job.status is flowrra.TaskStatus.SUCCESS else result_json(job)
    return {
        **job_row(job, now, redacted=redacted),
        "args": text(args),
        "kwargs": text(kwargs),
        "is_redacted": redacted,
        "max_attempts": max_attempts,
        "alike": job_search.failure_search(job),
        "result": text_or_none(result),
        "message": None if job.error is None else job.error[:TEXT_LIMIT],
        "traceback": text_or_none(job.traceback),
        "attempts": [attempt_row(attempt) for attempt in job.attempts],
        "steps": [step_row(step, redacted=redacted) for step in job.steps],
        "event": event_of(job),
        "tags": list(job.tags),
        "meta": {name: REDACTED if redacted else value for name, value in (job.meta or {}).items()},
        "parents": list(parents),
        "children": list(children),
        "overrides": dict(job.overrides or {}),
        "unique": job.unique,
        "limit": job.limit,
        "key": job.key,
        "expires": moment_or_none(job.expires),
        "purge_at": moment_or_none(job.purge_at),
        "explanation": explanation[:TEXT_LIMIT],
    }
