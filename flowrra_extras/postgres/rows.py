"""Rows of the database as jobs, results and workers, and what is looked for as a WHERE clause."""

from __future__ import annotations

import json
import operator
from typing import TYPE_CHECKING, Any

from flowrra import (
    SUCCESS,
    Attempt,
    BackendConfig,
    Job,
    JobFilter,
    Progress,
    TaskResult,
    TaskStatus,
    WorkerInfo,
    claimed_job,
    decode,
    encode,
    encode_arguments,
)
from flowrra_extras.postgres import statements as sql

if TYPE_CHECKING:
    from collections.abc import Sequence


def where_clause(which: JobFilter) -> tuple[str, list[Any]]:
    """A filter as the text of a WHERE clause and its values."""
    # A database of locale C knows the lower case of A to Z only; ICU, where it is needed, that of all letters.
    fold = "" if (which.error or "").isascii() else ' COLLATE "und-x-icu"'
    terms: list[str] = []
    values: list[Any] = []
    for term, value in (
        ("id = ANY (${}::text[])", None if which.ids is None else list(which.ids)),
        ("task = ${}", which.task),
        ("queue = ${}", which.queue),
        ("worker = ${}", which.worker),
        (f"strpos(lower(error{fold}), lower(${{}}{fold})) > 0", clean(which.error)),
        ("parents IS NOT NULL AND parents::jsonb ? ${}", which.parent),
        ("seq >= ${}", which.from_seq),
    ):
        if value is not None:
            values.append(value)
            terms.append(term.format(len(values)))
    if which.status is not None:  # in the text, so that partial indexes can serve; one by "=", for their order
        states = sorted(which.status)
        terms.append(
            f"status = '{states[0]}'" if len(states) == 1 else f"status = ANY ('{{{','.join(states)}}}'::text[])"
        )
    if which.ahead_of is not None:
        job, n = which.ahead_of, len(values)
        values += [job.queue, job.priority, job.seq]
        terms.append(
            f"status = 'pending' AND queue = ${n + 1} AND (priority, seq) < (${n + 2}::bigint, ${n + 3}::bigint)"
        )
    return " AND ".join(terms) or "true", values


def search(
    which: JobFilter, *, limit: int, after: int | None = None, oldest_first: bool = False
) -> tuple[str, list[Any]]:
    """The query for jobs in order, and its values."""
    where, values = where_clause(which)
    order, behind = ("ASC", ">") if oldest_first else ("DESC", "<")
    is_narrow = which.ids is not None or (which.worker is not None and which.status == frozenset({TaskStatus.RUNNING}))
    key = "seq + 0" if is_narrow else "seq"  # which keeps a plan from going through all in the order of seq
    if after is not None:
        where, values = f"{where} AND seq {behind} ${len(values) + 1}", [*values, after]
    return f"SELECT {sql.JOB_COLUMNS} FROM flowrra.job WHERE {where} ORDER BY {key} {order} LIMIT {int(limit)}", values


def counting(which: JobFilter) -> tuple[str, list[Any]]:
    """The query for numbers of jobs by queue and state, and its values."""
    where, values = where_clause(which)
    return f"SELECT queue, status, count(*) FROM flowrra.job WHERE {where} GROUP BY queue, status", values


def jobs_of_claim(rows: Sequence[Any], worker: str, now: float) -> list[Job]:
    """The jobs that a claim has taken, in order: an UPDATE returns them in any."""
    jobs = [claimed_job(row[-sql.CLAIMED.count(",") - 1 :], worker, now) for row in rows if row["seq"] is not None]
    jobs.sort(key=lambda job: (job.priority, job.seq))
    return jobs


_FIELDS = sql.JOB_COLUMNS.replace("unique_key", "unique").replace("::text", "").split(", ")


def job_of_row(row: Any) -> Job:
    """A job from a row that begins with sql.JOB_COLUMNS."""
    values = dict(zip(_FIELDS, row, strict=False))
    values["status"] = TaskStatus(values["status"])
    values["parents"] = tuple(_parsed(values["parents"], ()))
    values["overrides"] = _parsed(values["overrides"], None)
    values["history"] = tuple(Attempt(*entry) for entry in _parsed(values["history"], ()))
    values["progress"] = _progress_of(values["progress"])
    values["result"] = _stored_result(values["result"])
    return Job(**values)


_CHANGING: Sequence[str] = (
    "seq", "status", "due", "expires", "attempt", "failures", "crashes", "worker", "started", "finished", "purge_at",
    "cancel_requested", "waits",
)  # fmt: skip
_BORN: Sequence[str] = ("id", "task", "queue", "priority", "submitted")
_values_changing, _values_born = operator.attrgetter(*_CHANGING), operator.attrgetter(*_BORN)


def changing_values(job: Job) -> dict[str, Any]:
    """What the rules may change of a job, as sql.WRITE takes it."""
    values: dict[str, Any] = dict(zip(_CHANGING, _values_changing(job), strict=True))
    values["result"] = encode(job.result) if job.status is SUCCESS else None
    values["error"] = clean(job.error)
    values["traceback"] = clean(job.traceback)
    values["progress"] = json.dumps(job.progress) if job.progress else None
    past = [a._replace(error=clean(a.error), traceback=clean(a.traceback)) for a in job.history]
    values["history"] = past or None
    return values


def born_values(job: Job) -> dict[str, Any]:
    """A new job as sql.WRITE takes it."""
    values = changing_values(job) | dict(zip(_BORN, _values_born(job), strict=True))
    values["payload"] = encode_arguments(job)
    values["unique_key"] = job.unique
    values["parents"] = json.dumps(job.parents) if job.parents else None
    values["overrides"] = overrides_text(job)
    return values


def overrides_text(job: Job) -> str | None:
    return json.dumps(dict(job.overrides), sort_keys=True) if job.overrides else None


def result_of_row(row: Any) -> TaskResult[Any]:
    task_id, task, status, result, *rest, progress = row
    values = [TaskStatus(status), _stored_result(result), *rest, _progress_of(progress)]
    return TaskResult(task_id, task, *values)


def worker_of_row(worker: str, host: str, pid: int, queues: str, tasks: str, *rest: Any) -> WorkerInfo:
    return WorkerInfo(worker, host, pid, json.loads(queues), json.loads(tasks), *rest)


def recorded_columns(results: Sequence[TaskResult[Any]], retention: BackendConfig) -> list[list[Any]]:
    """Results from elsewhere as the arrays that sql.RECORD takes."""
    return [
        [r.task_id for r in results],
        [r.task for r in results],
        [r.status for r in results],
        [r.submitted for r in results],
        [r.attempts for r in results],
        [r.started for r in results],
        [r.finished or 0.0 for r in results],
        [(r.finished or 0.0) + retention.ttl(r.status) for r in results],
        [clean(r.error) for r in results],
        [clean(r.traceback) for r in results],
        [encode(r.result) if r.is_success else None for r in results],
    ]


def clean(text: str | None) -> str | None:
    """Text that PostgreSQL can hold: a NUL or half a surrogate pair is written out."""
    if text is None or (text.isascii() and "\0" not in text):
        return text
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()


def _parsed(text: str | None, default: Any) -> Any:
    return default if text is None else json.loads(text)


def _stored_result(text: str | None) -> Any:
    return None if text is None or text == "null" else decode(text)


def _progress_of(text: str | None) -> Progress | None:
    return None if text is None else Progress(*json.loads(text))
