"""Jobs as they are shown: what the store holds goes in, the texts and numbers of a page come out.

Pure: nothing here asks the store or reads a clock.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import reprlib
from typing import TYPE_CHECKING, Any

from flowrra import (
    FINISHED,
    REQUEUABLE,
    Attempt,
    Job,
    Schedule,
    SerializationError,
    TaskStatus,
    decode_arguments,
    encode,
    encode_arguments,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flowrra import Progress
    from flowrra_extras.dashboard import shapes

TEXT_LIMIT = 4_000  # characters of a long text on a page; the rest is behind a link
LINE_LIMIT = 200  # characters of an error or of arguments in a list
_DECODED = 20_000  # characters of arguments that are worth reading for one line of a list
REDACTED = "redacted"


def moment(seconds: float) -> dt.datetime:
    """Seconds since the epoch as people write them; what no calendar reaches is its end."""
    try:
        return dt.datetime.fromtimestamp(seconds, dt.UTC)
    except (OverflowError, ValueError, OSError):
        return dt.datetime.max.replace(tzinfo=dt.UTC)


def moment_or_none(seconds: float | None) -> dt.datetime | None:
    return None if seconds is None else moment(seconds)


def text(whole: str, limit: int = TEXT_LIMIT) -> shapes.Text:
    """A text, cut to so many characters."""
    return {"text": whole[:limit], "size": len(whole), "is_cut": len(whole) > limit}


def text_or_none(whole: str | None) -> shapes.Text | None:
    return None if whole is None else text(whole)


def line(whole: str, limit: int = LINE_LIMIT) -> str:
    """The first line of a text, cut to so many characters."""
    first = whole[: limit + 1].partition("\n")[0]
    return first if len(first) <= limit else f"{first[: limit - 1]}…"


# Arguments -------------------------------------------------------------------------------------


def _short() -> reprlib.Repr:
    """Writes a value in a few words, whatever it is: an object of a user's own may fail to say what it is."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 60
    short.maxlevel, short.maxdict, short.maxlist, short.maxtuple, short.maxset = 3, 6, 6, 6, 6
    return short


def arguments_line(job: Job) -> str:
    """The arguments in a line, as they would be written in Python."""
    if job.payload is not None and len(job.payload) > _DECODED:
        return line(job.payload)
    try:
        args, kwargs = decode_arguments(job)
    except SerializationError:
        return line(job.payload or "")
    short = _short().repr
    return line(", ".join([*map(short, args), *(f"{name}={short(value)}" for name, value in kwargs.items())]))


def arguments_json(job: Job) -> tuple[str, str]:
    """Arguments and keyword arguments as JSON texts, as the store keeps them."""
    try:
        args, kwargs = json.loads(encode_arguments(job))
    except SerializationError:  # the memory broker keeps what no other could
        return _short().repr(list(job.args)), _short().repr(dict(job.kwargs))
    return json.dumps(args, ensure_ascii=False), json.dumps(kwargs, ensure_ascii=False)


def result_json(job: Job) -> str | None:
    """The result as a JSON text; None unless the job succeeded."""
    if job.status is not TaskStatus.SUCCESS:
        return None
    try:
        return json.dumps(json.loads(encode(job.result)), ensure_ascii=False)
    except SerializationError:
        return _short().repr(job.result)


# Jobs ------------------------------------------------------------------------------------------


def actions(job: Job) -> list[str]:
    """What may be done to the job now."""
    allowed = []
    if job.status not in FINISHED and not job.cancel_requested:
        allowed.append("cancel")
    if job.status in REQUEUABLE:
        allowed.append("requeue")
    if job.status in FINISHED:
        allowed.append("delete")
    return [*allowed, "clone"]


def progress_of(progress: Progress | None) -> shapes.Progress | None:
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


def _ready_since(job: Job) -> float:
    """When it became ready for its latest attempt."""
    ended = job.history[-1].ended if job.history else None
    return max(job.submitted, job.due or 0.0, ended or 0.0)


def waited(job: Job, now: float) -> float | None:
    """Seconds from ready to the latest start; so far, if it waits for a worker."""
    if job.started is not None:
        return max(0.0, job.started - _ready_since(job))
    return max(0.0, now - _ready_since(job)) if job.status is TaskStatus.PENDING else None


def ran(job: Job, now: float) -> float | None:
    """Seconds of the latest attempt; so far, if it runs."""
    if job.started is None:
        return None
    end = now if job.status is TaskStatus.RUNNING else job.finished
    return None if end is None else max(0.0, end - job.started)


def job_row(job: Job, now: float, *, redacted: bool) -> shapes.JobRow:
    """A job in a list."""
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


def attempt_row(attempt: Attempt) -> shapes.AttemptRow:
    """One try at a job."""
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


def relative(job: Job) -> shapes.Relative:
    return {"id": job.id, "task": job.task, "status": str(job.status)}


def job_view(
    job: Job,
    now: float,
    *,
    redacted: bool,
    parents: Sequence[shapes.Relative],
    children: Sequence[shapes.Relative],
    explanation: str,
) -> shapes.JobView:
    """A job with all that is known of it."""
    args, kwargs = (REDACTED, REDACTED) if redacted else arguments_json(job)
    result = REDACTED if redacted and job.status is TaskStatus.SUCCESS else result_json(job)
    return {
        **job_row(job, now, redacted=redacted),
        "args": text(args),
        "kwargs": text(kwargs),
        "is_redacted": redacted,
        "result": text_or_none(result),
        "message": None if job.error is None else job.error[:TEXT_LIMIT],
        "traceback": text_or_none(job.traceback),
        "attempts": [attempt_row(attempt) for attempt in job.attempts],
        "parents": list(parents),
        "children": list(children),
        "overrides": dict(job.overrides or {}),
        "unique": job.unique,
        "expires": moment_or_none(job.expires),
        "purge_at": moment_or_none(job.purge_at),
        "explanation": explanation[:TEXT_LIMIT],
    }


# Schedules -------------------------------------------------------------------------------------


def job_of(schedule: Schedule) -> Job:
    """The job that a schedule would submit, to show its arguments by."""
    return Job("", schedule.task, payload=schedule.payload)


def schedule_row(
    schedule: Schedule,
    *,
    in_code: bool,
    redacted: bool,
    explanation: str,
    next_fires: Sequence[dt.datetime],
) -> shapes.ScheduleRow:
    """A schedule, with the fires that its rule has next."""
    job = job_of(schedule)
    args, kwargs = (REDACTED, REDACTED) if redacted else arguments_json(job)
    options: Mapping[str, Any] = schedule.options
    return {
        "id": schedule.id,
        "task": schedule.task,
        "kind": schedule.kind,
        "rule": schedule.rule,
        "tz": schedule.tz,
        "explanation": explanation,
        "enabled": schedule.enabled,
        "in_code": in_code,
        "description": schedule.description,
        "arguments": REDACTED if redacted else arguments_line(job),
        "args": text(args),
        "kwargs": text(kwargs),
        "options": dict(options),
        "misfire": schedule.misfire,
        "overlap": schedule.overlap,
        "jitter": schedule.jitter,
        "next_fire": schedule.next_fire_at,
        "next_fires": list(next_fires),
        "last_fire": schedule.last_fire_at,
        "last_job": schedule.last_job,
    }
