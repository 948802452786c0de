"""Flowrra: a task queue for Python in one file, without dependencies and without a server.

    import asyncio
    from flowrra import Flowrra

    app = Flowrra.from_urls()                     # in memory; "sqlite:///jobs.db" keeps jobs on disk

    @app.task(max_retries=5)
    async def send_email(to: str, subject: str) -> str:
        return f"sent to {to}"

    async def main() -> None:
        async with app:
            task_id = await app.submit(send_email, "user@example.com", "Hello")
            print((await app.wait_for_result(task_id, timeout=10.0)).result)

    asyncio.run(main())

Promises
    Nothing is lost: when `await submit()` has returned on a durable broker the job is on disk, and a
    killed worker loses none. A job runs at least once, never "exactly once"; its end is written once.
    Safe: what comes out of a store is neither unpickled nor evaluated. Typed: `mypy --strict` rejects a
    wrong argument to a task. Flat: a job's cost does not grow with the backlog or the history.

The map (each section uses earlier ones only)
    1. Errors
    2. Models
    3. Codec
    4. Clock and retry policy
    5. Cron
    6. Rules
    7. Brokers
    8. Memory broker
    9. SQLite broker
    10. Tasks
    11. Executors
    12. Worker
    13. Schedules
    14. App
    15. Command line

To vendor it, copy this one file; to upgrade, copy the newer one over it. A store written by an older
version is migrated when it is opened, and one written by a newer version is refused.
"""

from __future__ import annotations

# `python -m flowrra` would load this file a second time, as `__main__`, beside the `flowrra` that the
# user's program imports: two registries, two sets of classes. So it hands over to the importable one.
if __name__ == "__main__":
    import importlib
    import os
    import sys

    if __spec__ is None:  # run as a file; -I and -P leave its folder out of the search path
        sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
        _own_name: str = os.path.splitext(os.path.basename(__file__))[0]
    else:
        _own_name = __spec__.name
    sys.exit(importlib.import_module(_own_name).main())

import asyncio
import atexit
import binascii
import calendar
import collections
import concurrent.futures
import contextlib
import contextvars
import dataclasses
import datetime as dt
import enum
import functools
import heapq
import importlib
import inspect
import itertools
import json
import logging
import math
import operator
import os
import queue as thread_queue
import random
import re
import signal
import sys
import threading
import time
import traceback as tracebacks
import types
import weakref
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    Literal,
    NamedTuple,
    ParamSpec,
    Protocol,
    Self,
    TypedDict,
    TypeGuard,
    TypeVar,
    Unpack,
    cast,
    overload,
)

if TYPE_CHECKING:
    import argparse
    import socket
    import sqlite3
    import subprocess
    from types import FrameType

    # Beside a copied file there are none. `X as X`: they are names of this module too, see `__getattr__`.
    from flowrra_extras.cron_union import CronUnion  # type: ignore[import-not-found, unused-ignore]
    from flowrra_extras.scheduler import (  # type: ignore[import-not-found, unused-ignore]
        MemoryScheduleStore as MemoryScheduleStore,
    )
    from flowrra_extras.scheduler import Scheduler as Scheduler
    from flowrra_extras.scheduler import ScheduleStore as ScheduleStore
    from flowrra_extras.scheduler import StoredOptions as StoredOptions
    from flowrra_extras.scheduler import schedule_store_from_url as schedule_store_from_url

__version__ = "0.2.0"

__all__ = ["Attempt", "BackendConfig", "BackendError", "BrokerConfig", "BrokerError", "Config", "ConfigError"]
__all__ += ["Cron", "Event", "ExecutorConfig", "ExecutorNotRunningError", "Flowrra", "FlowrraError", "Job"]
__all__ += ["JobContext", "JobFilter", "NoFire", "ProcessDiedError", "Progress", "QueueFullError", "RemoteError"]
__all__ += ["ResultError", "Retry", "Schedule", "ScheduleOptions", "SerializationError", "StoreLostError"]
__all__ += ["Submission", "SyncFace", "Task", "TaskId", "TaskNotFoundError", "TaskOptions", "TaskResult"]
__all__ += ["SubmitOptions", "TaskStatus", "TaskTimeoutError", "WorkerInfo", "current_job", "main", "result_of"]
# For authors of brokers and backends:
__all__ += ["RETRYING", "SCHEDULED", "TRANSITIONS", "UPKEEP_STEP", "Action", "Activity", "ActivitySums", "Backend"]
__all__ += ["Broker", "BrokerFactory", "Children", "Clock", "Expired", "Find", "Holders", "Jobs", "Lease"]
__all__ += ["MemoryBroker", "Notices", "Outcome", "Overview", "ResultOf", "Running", "SQLiteBroker", "Submitter"]
__all__ += ["Topic", "Unit", "WaiterHub", "Walk", "adopt", "broker_from_url", "change", "copied", "copy_arguments"]
__all__ += ["copy_of", "copy_returned", "decode", "decode_arguments", "decode_result", "drive", "drive_async", "encode"]
__all__ += ["encode_arguments", "encode_result", "encode_value", "expire", "is_expired", "is_held", "judge_leases"]
__all__ += ["logger", "promote_one", "push", "recorded", "rescue", "settle", "spread", "start"]
# For brokers and extras, and not for others:
__all__ += [
    "ACTIVITY_KEPT",
    "BLOCKED",
    "BY_HAND",
    "CHECK_EVERY",
    "CRON_FIELDS",
    "ENDINGS_KEPT",
    "ENDINGS_TAKEN",
    "SUBMIT_OPTIONS",
]
__all__ += ["EXPIRED", "FAILED", "FINISHED", "HISTORY_LIMIT", "KILLED", "LAST_CHANCE", "LAST_DAY", "LAST_WORKDAY"]
__all__ += ["LEFT", "MAX_CRASHES", "MAX_LEASE", "MISFIRES", "NEAREST", "NO_ARGUMENTS", "OPERATOR_COMMANDS"]
__all__ += ["OVERLAPS", "PENDING", "REQUEUABLE", "RUNNING", "SUCCESS", "UNFINISHED", "WORKER_LOST", "Fired", "Firing"]
__all__ += ["Turns", "activity_texts", "add_store", "ask", "check_key", "check_queue", "check_shared", "claimed_job"]
__all__ += ["cron_bits", "cron_values", "describe", "duration", "ended_job", "find_task", "first_line"]
__all__ += ["import_extra", "job_as_json", "job_of_fire", "kind_name", "length_bucket", "load_app", "make_schedule"]
__all__ += ["nearest", "orphaned", "parents_in", "parsed", "print_table", "python", "read_arguments", "result_from"]
__all__ += ["NOT_BEGUN", "first_status"]
__all__ += ["result_limit", "schedule_key", "sum_of_activity", "totals_of_activity", "unknown_job", "upcoming"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
TaskT = TypeVar("TaskT", bound="Task[..., Any]")

logger = logging.getLogger("flowrra")
logger.addHandler(logging.NullHandler())  # or Python would print warnings of a program that sets up no logging


# ---------------------------------------------------------------------------
# 1. Errors
#
# One tree. A message says what was wrong, with the value, and what to do.
# ---------------------------------------------------------------------------


class FlowrraError(Exception):
    """The root of every error that Flowrra raises."""


class ConfigError(FlowrraError, ValueError):
    """An option, a URL or a registration that cannot work."""


class TaskNotFoundError(FlowrraError, LookupError):
    """A task that is not registered, or a task id that the store does not know."""


class TaskTimeoutError(FlowrraError, TimeoutError):
    """A result did not come in time, or an attempt took longer than its `timeout` (then `ends_attempt`)."""

    ends_attempt = False


class ExecutorNotRunningError(FlowrraError, RuntimeError):
    """The app, or what should run the call, has been stopped."""


class SerializationError(FlowrraError, TypeError):
    """A value that cannot be kept as JSON, or a stored text that cannot be read back."""


class ResultError(SerializationError):
    """What a task returned cannot be kept: another attempt would end alike, so there is none."""


class BackendError(FlowrraError):
    """The store of results failed."""


class BrokerError(BackendError):
    """The store of jobs failed."""


class StoreLostError(BrokerError):
    """The store that was opened is no longer the one at its place. Only opening it anew helps."""


class QueueFullError(BrokerError):
    """The queue already holds `max_queue_size` jobs."""


class ProcessDiedError(FlowrraError):
    """The process that ran a CPU-bound attempt ended under it."""


class RemoteError(FlowrraError):
    """An exception of a CPU-bound task, as its process reported it: names of its types, text, traceback."""

    def __init__(self, text: str, kinds: Sequence[str], traceback: str, delay: float | None) -> None:
        super().__init__(text)
        self.kinds = frozenset(kinds)
        self.traceback = traceback
        self.delay = delay


class Retry(FlowrraError):  # noqa: N818 (raised as a request, read as a sentence: raise Retry(delay=5))
    """Raise it inside a task to be run again.

    It uses up a retry as any failure does. `delay` (seconds, 0 or more) replaces the policy's delay.
    """

    delay: float | None = None  # also of a subclass that does not call super().__init__()

    def __init__(self, reason: str = "the task asked to be retried", *, delay: float | None = None):
        super().__init__(reason)
        self.delay = None if delay is None else _seconds("delay", delay)


def _seconds(name: str, value: object, *, least: float = 0.0) -> float:
    """`value` as a number of seconds, at least `least`; a timedelta will do."""
    if isinstance(value, dt.timedelta):
        value = value.total_seconds()
    seconds = _finite(name, value, "a finite number of seconds")
    if seconds < least:
        raise ConfigError(f"{name} must be at least {least:g} s, not {value!r}")
    return float(seconds)


def _finite(name: str, value: object, wanted: str = "a finite number") -> float:
    """`value` as it is, if it is a number that a float can hold (a bool is none)."""
    # Compared, since math.isfinite() raises an OverflowError for a huge int.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise ConfigError(f"{name} must be {wanted}, not {value!r}")
    return value


def _whole(name: str, value: object, *, least: int | None = None) -> int:
    """`value` as an int (a bool is none), at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{name} must be an int, not {value!r}")
    if least is not None and value < least:
        raise ConfigError(f"{name} must be at least {least}, not {value!r}")
    return value


def import_extra(module: str, name: str, trouble: str, package: str = "flowrra") -> Any:
    """What an extra brings, imported when it is used; a ConfigError says what `trouble` its lack is."""
    if __name__ != "flowrra":  # extras import `flowrra`, which would be another module with classes of its own
        why = f"{__name__} is a copy of flowrra.py, and extras work with the installed flowrra only"
        raise ConfigError(f"{trouble} ({why}): pip install '{package}' and import flowrra instead of the copy")
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise ConfigError(f"{trouble} ({error}): pip install '{package}'") from error


def closest(name: str, known: Iterable[str]) -> str | None:
    """Which of the known names may have been meant; the last part of a dotted one will do."""
    import difflib

    names = sorted(known)
    by_part = {full.rpartition(".")[2]: full for full in reversed(names)} | {full: full for full in names}
    found = difflib.get_close_matches(name, by_part, n=1)
    return by_part[found[0]] if found else None


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: which one may have been meant, or which there are."""
    names = sorted(known)
    if (close := closest(name, names)) is not None:
        return f"; did you mean {close!r}?"
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"; there are {', '.join(names[:10]) or 'none'}{more}"


_MOVED = frozenset(
    ("MemoryScheduleStore", "ScheduleStore", "Scheduler", "StoredOptions", "schedule_store_from_url")
)  # to flowrra_extras.scheduler; they may still be imported from here

if not TYPE_CHECKING:  # or every name would be one of this module

    def __getattr__(name: str) -> Any:
        if name in _MOVED:
            return import_extra(
                "flowrra_extras.scheduler", name, "schedules cannot be stored here", "flowrra[scheduler]"
            )
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# ---------------------------------------------------------------------------
# 2. Models
#
# What a job is and which moves it may make. Every change of state, in every
# broker, is one entry of TRANSITIONS. Nothing here does I/O or reads a clock.
# Moments are seconds since the epoch inside, aware UTC datetimes for people.
# ---------------------------------------------------------------------------


class TaskStatus(enum.StrEnum):
    """Where a job stands."""

    SCHEDULED = "scheduled"  # not due yet
    BLOCKED = "blocked"  # waits for its parents
    PENDING = "pending"  # ready to run
    RUNNING = "running"
    RETRYING = "retrying"  # failed, and due again later
    SUCCESS = "success"
    FAILED = "failed"
    CANCELLED = "cancelled"

    __hash__ = str.__hash__  # an Enum's own is written in Python: 0.2 us for each look into a set

    @property
    def is_finished(self) -> bool:
        """Whether the job has come to its end."""
        return self in FINISHED


# Plain names: a lookup of a member in its class takes 0.07 us, some twenty times a job.
SCHEDULED, BLOCKED, PENDING, RUNNING, RETRYING, SUCCESS, FAILED, CANCELLED = TaskStatus
FINISHED = frozenset((SUCCESS, FAILED, CANCELLED))
UNFINISHED = frozenset(TaskStatus) - FINISHED

TRANSITIONS: Mapping[TaskStatus, frozenset[TaskStatus]] = {
    # What waits is BLOCKED while it is held for a move to another store.
    SCHEDULED: frozenset((PENDING, BLOCKED, CANCELLED)),
    BLOCKED: frozenset((PENDING, SCHEDULED, CANCELLED)),
    PENDING: frozenset((RUNNING, BLOCKED, CANCELLED)),
    # A release goes back to PENDING, or to SCHEDULED when it is to wait; a rescue to PENDING.
    RUNNING: FINISHED | {RETRYING, PENDING, SCHEDULED},
    RETRYING: frozenset((PENDING, BLOCKED, CANCELLED)),
    SUCCESS: frozenset(),
    FAILED: frozenset((PENDING,)),  # requeued by hand
    CANCELLED: frozenset((PENDING, BLOCKED)),  # requeued by hand
}


def sources(target: TaskStatus) -> frozenset[TaskStatus]:
    """The states from which `target` may be reached."""
    return frozenset(status for status, targets in TRANSITIONS.items() if target in targets)


REQUEUABLE = sources(PENDING) & FINISHED
UPKEEP_STEP = 1_000  # jobs that are promoted, or have expired, and are dealt with in one step: some 10 ms
MAX_CRASHES = 3  # a job that was running in so many crashes of its worker is FAILED
LAST_CHANCE = MAX_CRASHES - 1  # crashes of a job that another one would end
MAX_LEASE = 3600.0  # seconds; a stored lease that is longer comes from another boot of the machine
HISTORY_LIMIT = 20  # earlier attempts kept with a job
ACTIVITY_KEPT = 86_400.0  # seconds for which the store keeps what workers did


class TaskId(str, Generic[R]):
    """A job's id: for the type checker, a `str` that remembers what the job returns.

    What `submit` returns is a plain `str` at run time: a subclass costs each lookup in a dictionary 0.04 us.
    """

    __slots__ = ()


class Attempt(NamedTuple):
    """One try at a job. `outcome` is running, success, failure, crash, release or cancel.

    A "note" is no try but the record of a person's action: `worker` did what `error` says.
    """

    number: int
    worker: str
    started: float
    ended: float | None
    outcome: str
    error: str | None = None
    traceback: str | None = None


class Progress(NamedTuple):
    """How far a running job says it is."""

    done: float
    total: float | None = None
    note: str | None = None


_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
LAST_MOMENT = 253_402_300_800.0  # the end of the year 9999: what datetime.max is as a float


def _moment(seconds: float | None) -> dt.datetime | None:
    # Added, since fromtimestamp() knows no moments before the epoch on Windows.
    if seconds is None:
        return None
    try:
        return _EPOCH + dt.timedelta(seconds=seconds)
    except OverflowError:  # a store may hold anything
        return dt.datetime.max.replace(tzinfo=dt.UTC) if seconds > 0 else dt.datetime.min.replace(tzinfo=dt.UTC)


class _Moments:
    """The times of a job as aware UTC datetimes."""

    __slots__ = ()
    submitted: float
    started: float | None
    finished: float | None

    @property
    def submitted_at(self) -> dt.datetime:
        """When the job was accepted."""
        return _EPOCH + dt.timedelta(seconds=self.submitted)

    @property
    def started_at(self) -> dt.datetime | None:
        """When its latest attempt began."""
        return _moment(self.started)

    @property
    def finished_at(self) -> dt.datetime | None:
        """When it came to its end."""
        return _moment(self.finished)


@dataclass(slots=True)
class Job(_Moments):
    """One submission of a task, from birth to result.

    `due` is the moment at which a job becomes ready, or became so. `seq` is the order of submission. `attempt` only
    grows, and is the fencing token; `failures` use up retries, `crashes` do not. `payload` is the
    stored text of the arguments, where the broker keeps text. `overrides` are the task options that
    this submission changed. `waits` counts what a BLOCKED job waits for.
    """

    id: str
    task: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    queue: str = "default"
    priority: int = 0
    payload: str | None = None
    due: float | None = None
    expires: float | None = None
    unique: str | None = None
    parents: tuple[str, ...] = ()
    overrides: Mapping[str, Any] | None = None
    status: TaskStatus = PENDING
    submitted: float = 0.0
    seq: int = 0
    attempt: int = 0
    failures: int = 0
    crashes: int = 0
    worker: str | None = None
    started: float | None = None
    finished: float | None = None
    purge_at: float | None = None
    result: Any = None
    error: str | None = None
    traceback: str | None = None
    progress: Progress | None = None
    history: tuple[Attempt, ...] = ()
    cancel_requested: bool = False
    waits: int = field(default=0, compare=False, repr=False)

    @property
    def due_at(self) -> dt.datetime | None:
        """When the job becomes ready, or became so."""
        return _moment(self.due)

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """Every attempt that is still recorded, the latest last."""
        latest = self.latest_attempt(_ENDING_OF.get(self.status, ""))
        return self.history if latest is None else (*self.history, latest)

    def latest_attempt(self, outcome: str) -> Attempt | None:
        """The attempt that began at `started`, as ended with `outcome`; None if it is in the history."""
        if self.started is None or self.worker is None:
            return None
        return Attempt(self.attempt, self.worker, self.started, self.finished, outcome, self.error, self.traceback)


@dataclass(slots=True)
class TaskResult(_Moments, Generic[R]):
    """What became of a job: `result` if it succeeded, else `error` and perhaps `traceback`.

    `result` is typed as what the task returns; it is None unless `is_success`.
    """

    task_id: str
    task: str
    status: TaskStatus
    result: R
    error: str | None = None
    traceback: str | None = None
    attempts: int = 0
    submitted: float = 0.0
    started: float | None = None
    finished: float | None = None
    progress: Progress | None = None

    @property
    def is_success(self) -> bool:
        """Whether the job succeeded."""
        return self.status is SUCCESS

    @property
    def is_finished(self) -> bool:
        """Whether the job has come to its end."""
        return self.status in FINISHED


_result_fields = operator.attrgetter(
    *("id", "task", "status", "result", "error", "traceback", "attempt", "submitted", "started", "finished", "progress")
)


def result_from(job: Job) -> TaskResult[Any]:
    """The result as it stands in `job`."""
    return TaskResult(*_result_fields(job))


@dataclass(slots=True)
class Outcome:
    """What an attempt came to. Made by the five constructors, so that no wrong mixture can be written.

    `attempt` is the fencing token: it is read from the job when the outcome is made. `keep` is for how
    many seconds the finished job is retained (None: as the broker is configured). `text` is the encoded
    result, for brokers that keep text. `begun`: whether the task began to run; if not, the job may still expire.
    """

    job: Job
    attempt: int
    status: TaskStatus
    result: Any = None
    error: str | None = None
    traceback: str | None = None
    due: float | None = None
    keep: float | None = None
    text: str | None = None
    begun: bool = True

    @property
    def ending(self) -> str:
        """How the attempt ended, in a word (success, failure, release or cancel)."""
        return _ENDING_OF[self.status]

    @classmethod
    def succeed(cls, job: Job, result: Any, keep: float | None = None) -> Outcome:
        """The task returned `result`."""
        return cls(job, job.attempt, SUCCESS, result, None, None, None, keep)

    @classmethod
    def fail(cls, job: Job, error: str, traceback: str | None = None) -> Outcome:
        """The attempt failed and there is none left."""
        return cls(job, job.attempt, FAILED, None, error, traceback)

    @classmethod
    def retry_at(cls, job: Job, due: float, error: str, traceback: str | None = None) -> Outcome:
        """The attempt failed; the next one is due at `due`. It counts as a failure."""
        return cls(job, job.attempt, RETRYING, None, error, traceback, due)

    @classmethod
    def release(cls, job: Job, reason: str, due: float | None = None, *, begun: bool = True) -> Outcome:
        """Handed back unfinished, to run at once or from `due` on. It costs the job nothing."""
        return cls(job, job.attempt, PENDING if due is None else SCHEDULED, None, reason, None, due, begun=begun)

    @classmethod
    def cancel(cls, job: Job, reason: str) -> Outcome:
        """The attempt was cancelled."""
        return cls(job, job.attempt, CANCELLED, None, reason)


_ENDING_OF: Mapping[TaskStatus, str] = {
    SUCCESS: "success",
    FAILED: "failure",
    RETRYING: "failure",
    PENDING: "release",
    SCHEDULED: "release",
    CANCELLED: "cancel",
    RUNNING: "running",
}


@dataclass(slots=True, kw_only=True)
class JobFilter:
    """Which jobs to find; what is None does not matter.

    `ahead_of`: the ready jobs before that one. `error`: a part of the job's error, its letters in upper or lower case.
    `parent`: the jobs that wait or waited for that one. `from_seq`: those with at least that `seq`, so
    that a big store can be searched a stretch at a time.
    """

    ids: Sequence[str] | None = None
    status: frozenset[TaskStatus] | None = None
    task: str | None = None
    queue: str | None = None
    worker: str | None = None
    ahead_of: Job | None = None
    error: str | None = None
    parent: str | None = None
    from_seq: int | None = None

    def matches(self, job: Job) -> bool:
        """Whether `job` is one of them."""
        ahead = self.ahead_of
        return (
            (self.ids is None or job.id in self.ids)
            and (self.status is None or job.status in self.status)
            and (self.task is None or job.task == self.task)
            and (self.queue is None or job.queue == self.queue)
            and (self.worker is None or job.worker == self.worker)
            and (self.error is None or self.error.lower() in (job.error or "").lower())
            and (self.parent is None or self.parent in job.parents)
            and (self.from_seq is None or job.seq >= self.from_seq)
            and (ahead is None or (job.status is PENDING and job.queue == ahead.queue))
            and (ahead is None or (job.priority, job.seq) < (ahead.priority, ahead.seq))
        )


@dataclass(slots=True)
class Activity:
    """What workers did with the jobs of one task in the minute that began at `minute` (s since the epoch).

    `retried` counts failed attempts that another one follows. `waits` (from submission or `due` to the first
    attempt; jobs with parents are left out) and `runs` (of attempts) are histograms: bucket -> number.
    `waited` and `ran` are the sums of these lengths, in seconds.
    """

    minute: int
    task: str
    succeeded: int = 0
    failed: int = 0
    retried: int = 0
    waits: dict[int, int] = field(default_factory=dict)
    runs: dict[int, int] = field(default_factory=dict)
    waited: float = 0.0
    ran: float = 0.0

    def copy(self) -> Activity:
        """The same, with histograms of its own."""
        return dataclasses.replace(self, waits=self.waits.copy(), runs=self.runs.copy())

    def count(self, job: Job, status: TaskStatus, began: float, ended: float) -> None:
        """Add an attempt of `job` that ended as SUCCESS, FAILED or RETRYING: 0.5 us, once a job."""
        self.succeeded += status is SUCCESS
        self.failed += status is FAILED
        self.retried += status is RETRYING
        ran = max(0.0, ended - began)
        self.ran += ran
        bucket = length_bucket(ran)
        self.runs[bucket] = self.runs.get(bucket, 0) + 1
        if job.attempt == 1 and not job.parents:
            waited = max(0.0, began - (job.submitted if job.due is None else max(job.due, job.submitted)))
            self.waited += waited
            bucket = length_bucket(waited)
            self.waits[bucket] = self.waits.get(bucket, 0) + 1


class ActivitySums(dict[tuple[int, str], Activity]):
    """Rows of activity by minute and task."""

    def __missing__(self, key: tuple[int, str]) -> Activity:
        row = self[key] = Activity(*key)
        return row

    def count(self, job: Job, status: TaskStatus, began: float, ended: float) -> None:
        """Add an attempt of `job` that ended as SUCCESS, FAILED or RETRYING."""
        self[int(ended) // 60 * 60, job.task].count(job, status, began, ended)

    def add(self, other: Activity) -> None:
        """Add what was done elsewhere."""
        row = self[other.minute, other.task]
        row.succeeded += other.succeeded
        row.failed += other.failed
        row.retried += other.retried
        row.waited += other.waited
        row.ran += other.ran
        for own, others in ((row.waits, other.waits), (row.runs, other.runs)):
            for bucket, number in others.items():
                own[bucket] = own.get(bucket, 0) + number

    def in_order(self) -> list[Activity]:
        """The rows, those of the oldest minute first."""
        return [self[key] for key in sorted(self)]


def length_bucket(seconds: float) -> int:
    """The bucket of a length in a histogram: number k holds those below 0.0001 s * 2**k."""
    return int(seconds * 10_000).bit_length() if seconds > 0 else 0


@dataclass(slots=True)
class WorkerInfo:
    """A worker as the store shows it. `queues` maps its queues to their capacities.

    `memory`: resident bytes of its process, where the system has the figure. `activity`: what a heartbeat hands over:
    all rows of each minute that has changed since the last one. `term`: what the broker calls the time since which
    the lease has held; another term than that of the last heartbeat's answer means that the lease was lost.
    """

    id: str
    host: str = ""
    pid: int = 0
    queues: Mapping[str, int] = field(default_factory=dict)
    tasks: Sequence[str] = ()
    started: float = 0.0
    seen: float = 0.0
    running: int = 0
    version: str = __version__
    memory: int | None = None
    activity: Sequence[Activity] = ()
    term: str = ""


@dataclass(slots=True)
class Notices:
    """What a heartbeat brings back.

    `cancelled`: ids of this worker's jobs that someone wants to end. `lapsed`: the lease had run out,
    so that nothing claimed before is this worker's any more. `paused`: queues not to claim from.
    `suspects`: the fewest `crashes` of the jobs that wait for a worker that runs nothing else, 0 if none does.
    `lost_workers`: workers found dead, whose jobs this call has put back. `endings`: jobs that have ended while no
    attempt ran that could report it, each brought to one heartbeat: their id, task, attempt, status and error.
    """

    cancelled: Sequence[str] = ()
    lapsed: bool = False
    paused: Collection[str] = ()
    suspects: int = 0
    lost_workers: Sequence[str] = ()
    endings: Sequence[Job] = ()


ENDINGS_KEPT = 10_000  # endings that a store keeps until a heartbeat takes them: the latest
ENDINGS_TAKEN = 1_000  # that one heartbeat takes


def ended_job(text: str) -> Job:
    """An ended job as a store keeps it for `Notices.endings`: the JSON of id, task, attempt, status and error."""
    task_id, task, attempt, status, error = json.loads(text)
    return Job(task_id, task, attempt=attempt, status=TaskStatus(status), error=error)


def _is_storable(text: object) -> TypeGuard[str]:
    """Whether it is a text that every store can hold: without NUL and halves of surrogate pairs."""
    return isinstance(text, str) and not re.search("[\0\ud800-\udfff]", text)


def check_priority(priority: object) -> int:
    """`priority` as an int that every store can hold."""
    checked = _whole("priority", priority)
    if not -(2**63) <= checked < 2**63:
        raise ConfigError(f"priority must be between {-(2**63)} and {2**63 - 1}, not {priority!r}")
    return checked


def check_queue(name: object) -> str:
    """`name` as the name of a queue: text without commas, colons and blanks at its ends."""
    if not _is_storable(name) or not name or name != name.strip() or set(name) & {",", ":"}:
        raise ConfigError(f"a queue's name is text without ',' and ':', nor blanks at its ends, not {name!r}")
    return name


@dataclass(slots=True, kw_only=True)
class BrokerConfig:
    """Where jobs wait. `timeout` (s): how long a call may wait for a store that is locked or away.

    `max_queue_size` bounds the ready jobs of each queue of the memory broker; `when_full` says what
    `submit` does then: "raise" a QueueFullError, or "wait" for room.
    """

    url: str = field(default="memory://", repr=False)  # it may hold a password
    timeout: float = 30.0
    max_queue_size: int | None = None
    when_full: str = "raise"

    def __post_init__(self) -> None:
        self.timeout = _seconds("timeout", self.timeout)
        if self.max_queue_size is not None:
            _whole("max_queue_size", self.max_queue_size, least=1)
        if self.when_full not in ("raise", "wait"):
            raise ConfigError(f"when_full must be 'raise' or 'wait', not {self.when_full!r}")


@dataclass(slots=True, kw_only=True)
class BackendConfig:
    """Where results are kept (None: in the broker), and for how many seconds.

    `max_results` bounds the finished jobs that are kept in memory.
    """

    url: str | None = field(default=None, repr=False)
    result_ttl: float = 86_400.0
    failed_ttl: float = 604_800.0
    max_results: int = 10_000

    def ttl(self, status: TaskStatus) -> float:
        """For how many seconds a job that has ended so is kept."""
        return self.result_ttl if status is SUCCESS else self.failed_ttl

    def __post_init__(self) -> None:
        self.result_ttl = _seconds("result_ttl", self.result_ttl)
        self.failed_ttl = _seconds("failed_ttl", self.failed_ttl)
        _whole("max_results", self.max_results, least=1)


@dataclass(slots=True, kw_only=True)
class ExecutorConfig:
    """What a worker may do at once, and how long it holds on.

    `io_workers` and `cpu_workers` are the capacities of the queues `default` and `cpu`; `queues` names
    others, and then only those named are served. `lease`: seconds after which a silent worker counts as
    dead; `heartbeat`: seconds between renewals; `drain`: seconds that a stop waits for running jobs.
    `scheduler`: whether schedules fire here. A process for CPU-bound tasks is replaced, between two jobs, after
    `max_jobs` of them or when it holds more than `max_memory` bytes.
    """

    io_workers: int = 10
    cpu_workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    queues: Mapping[str, int] | None = None
    lease: float = 10.0
    heartbeat: float = 3.0
    drain: float = 30.0
    scheduler: bool = True
    max_jobs: int | None = None
    max_memory: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_jobs", "max_memory"):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), least=1)
        _whole("io_workers", self.io_workers, least=1)
        _whole("cpu_workers", self.cpu_workers, least=1)
        if self.queues is not None and not self.queues:
            raise ConfigError("queues names none, so that nothing would run: leave it out to serve those of the tasks")
        for name, capacity in (self.queues or {}).items():
            _whole(f"the capacity of queue {check_queue(name)!r}", capacity, least=1)
        self.drain = _seconds("drain", self.drain)
        self.lease = _seconds("lease", self.lease)
        self.heartbeat = _seconds("heartbeat", self.heartbeat, least=0.01)
        if self.lease > MAX_LEASE:
            raise ConfigError(f"lease must be at most {MAX_LEASE:g} s, not {self.lease!r}")
        if self.heartbeat * 2 > self.lease:
            raise ConfigError(f"lease ({self.lease:g} s) must be at least twice heartbeat ({self.heartbeat:g} s)")


@dataclass(slots=True, kw_only=True)
class Config:
    """All of it. `Config.from_env("FLOWRRA_")` reads, say, FLOWRRA_EXECUTOR_IO_WORKERS=50."""

    broker: BrokerConfig = field(default_factory=BrokerConfig)
    backend: BackendConfig = field(default_factory=BackendConfig)
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)

    def __post_init__(self) -> None:
        for part in dataclasses.fields(self):  # None is the default, as in from_urls()
            if getattr(self, part.name) is None:
                setattr(self, part.name, cast("type", part.default_factory)())

    @classmethod
    def from_env(cls, prefix: str = "FLOWRRA_", environ: Mapping[str, str] | None = None) -> Config:
        """Read PREFIX + SECTION + _ + OPTION variables; PREFIX + BROKER and BACKEND are URLs alone.

        A variable under one of the three sections that names no option is a ConfigError, as is a text
        that is no number where a number belongs. Any other one with the prefix may be another program's, or
        a misspelt setting: it is named in a warning, with a prefix of your own only if it is like a setting.
        """
        env = os.environ if environ is None else environ
        warn_of_unknown_settings(prefix, env)
        values: dict[str, dict[str, Any]] = {section: {} for section in _SECTIONS}
        settings = _settings()
        for name in sorted((name for name in env if name.startswith(prefix)), reverse=True):  # BROKER after BROKER_URL
            key = name.removeprefix(prefix)
            if key in settings:
                section, option = settings[key]
                values[section][option.name] = _from_text(name, str(option.type), env[name])
            elif kind := _SECTIONS.get(key.partition("_")[0].lower()):
                known = sorted(option.name for option in dataclasses.fields(kind))
                raise ConfigError(f"{name} names no option; there are {', '.join(known)}")
        return cls(**{section: kind(**values[section]) for section, kind in _SECTIONS.items()})


_SECTIONS: Mapping[str, Any] = {"broker": BrokerConfig, "backend": BackendConfig, "executor": ExecutorConfig}
# What else has the prefix FLOWRRA_: the command line's, and that of Flowrra's own tests, as all of FLOWRRA_TEST_ is.
_NO_SETTINGS = frozenset(("FLOWRRA_APP", "FLOWRRA_DEMO", "FLOWRRA_REQUIRE_SERVICES"))


def _settings() -> dict[str, tuple[str, dataclasses.Field[Any]]]:
    """What a variable may be called behind the prefix: the section and the option that it sets."""
    found = {f"{s.upper()}_{o.name.upper()}": (s, o) for s, kind in _SECTIONS.items() for o in dataclasses.fields(kind)}
    return {**found, "BROKER": found["BROKER_URL"], "BACKEND": found["BACKEND_URL"]}


def warn_of_unknown_settings(prefix: str, env: Mapping[str, str]) -> None:
    """Say which variables with the prefix are ignored, and which setting may have been meant."""
    known = _settings()
    for name in sorted(name for name in env if name.startswith(prefix)):
        if name.removeprefix(prefix) in known or name in _NO_SETTINGS or name.startswith("FLOWRRA_TEST_"):
            continue
        close = closest(name.removeprefix(prefix), known)
        if close is not None or prefix == "FLOWRRA_":
            _warn_once(f"{name} is no setting and is ignored{f'; did you mean {prefix}{close}?' if close else ''}")


@functools.lru_cache(maxsize=100)
def _warn_once(text: str) -> None:
    logger.warning("%s", text)


_YES_OR_NO: Mapping[str, bool] = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


def _from_text(name: str, kind: str, text: str) -> Any:
    """`text` as an option of type `kind`, as it comes from the environment or the command line."""
    try:
        if "Mapping" in kind:
            return _queues_from_text(name, text)
        if kind == "bool":
            return _YES_OR_NO[text.strip().lower()]
        if "int" in kind:
            return int(text)
        return float(text) if "float" in kind else text
    except (ValueError, KeyError) as error:
        if isinstance(error, ConfigError):
            raise
        wanted = "queues with their capacities, such as default:50,cpu:2" if "Mapping" in kind else kind.split(" |")[0]
        raise ConfigError(f"{name}={text!r} cannot be read as {wanted}") from None


def _queues_from_text(name: str, text: str) -> dict[str, int]:
    queues: dict[str, int] = {}
    for queue, _, capacity in (item.rpartition(":") for item in text.split(",") if item.strip()):
        if queue.strip() in queues:
            raise ConfigError(f"{name}={text!r} names the queue {queue.strip()!r} twice")
        queues[queue.strip()] = int(capacity)
    if not queues:
        raise ConfigError(f"{name}={text!r} names no queue: give some, as in default:50,cpu:2, or leave it out")
    return queues


# ---------------------------------------------------------------------------
# 3. Codec
#
# Arguments and results as JSON text. A value comes back equal, or is refused
# when it goes in; reading a text never imports or calls what the text names.
# Knows nothing of jobs and brokers.
#
# What JSON lacks is an object with the key "$": {"$": "tuple", "v": [1, 2]}.
# A dictionary with that key, or with keys that are not strings, is kept as a
# list of pairs, so nothing a user writes can look like a tag. Floats may be
# NaN or infinite, ints have up to 4,300 digits (Python's own limit), lone
# surrogates survive, and nesting ends at MAX_DEPTH, which also stops cycles.
# An enum that is a str or an int is kept as that; another one is refused,
# since reading it back would import a module that the store names. A
# dataclass goes in as the dictionary of its fields and comes back as one.
# Of time zones, fixed offsets and the keys of ZoneInfo are kept.
# ---------------------------------------------------------------------------

MAX_DEPTH = 100
_TAG = "$"
_dump = json.JSONEncoder(ensure_ascii=True, allow_nan=False, check_circular=False, separators=(",", ":")).encode


class ResultOf(Generic[R]):
    """Stands in the arguments for the result of the job `task_id`; see `result_of`."""

    __slots__ = ("task_id",)

    def __init__(self, task_id: str) -> None:
        self.task_id = task_id

    def __repr__(self) -> str:
        return f"result_of({str(self.task_id)!r})"


def result_of(task_id: TaskId[R]) -> R:
    """A placeholder to pass as an argument: the job waits for that one and gets its result here.

    It may stand inside lists, tuples, dictionaries and the fields of dataclasses; not in a set or a key.
    The parent must be in the same broker.
    """
    if not isinstance(task_id, str):
        raise ConfigError(f"result_of() takes the id that submit() returned, not {task_id!r}")
    return cast("R", ResultOf(task_id))


def encode(value: Any, name: str = "value") -> str:
    """`value` as JSON text in ASCII.

    Raises:
        SerializationError: with the path of the part that cannot be kept, as `name[2]['key']`.
    """
    if value is None:
        return "null"
    try:
        return _dump(_pack(value, 0))
    except _Unfit as unfit:
        raise SerializationError(f"{name}{unfit.path} {unfit.why}") from None
    except ValueError as error:  # an int with more digits than Python turns into text
        raise SerializationError(f"{name} holds a number that cannot be kept: {error}") from None


def decode(text: str) -> Any:
    """The value that `encode` made `text` of; SerializationError if it is not such a text."""
    try:
        return _load(text)
    except SerializationError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError, OSError) as error:
        shown = str(text)  # a damaged store may have brought something else
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        raise SerializationError(f"stored text cannot be read ({error}): {shown!r}") from None


def copied(value: Any, name: str = "value") -> Any:
    """What `decode(encode(value, name))` returns or raises, made without a text where that is plain data."""
    try:
        return _copy(value, 0)
    except (_Unfit, ValueError):  # the text is what names the part that cannot be kept
        return decode(encode(value, name))


def _copy(value: Any, depth: int) -> Any:
    kind = type(value)
    if kind in _PLAIN or is_plain(value):
        return value
    if depth < MAX_DEPTH:
        if kind is dict and _TEXT.issuperset(map(type, value)):
            return {key: _copy(item, depth + 1) for key, item in value.items()}
        if kind is list:
            return value.copy() if _are_plain(value) else [_copy(item, depth + 1) for item in value]
        if kind is tuple:
            return tuple([_copy(item, depth + 1) for item in value])
    text = _dump(_pack(value, depth))
    if _PLACEHOLDER in text:  # right in arguments, wrong in a result: the caller's way through text knows
        raise _Unfit("holds result_of()")
    return _load(text)


class _Unfit(Exception):  # noqa: N818 (never leaves this section)
    """A value that cannot be kept; the path grows as it passes the containers around the value."""

    def __init__(self, why: str) -> None:
        self.why = why
        self.path = ""


def _pack(value: Any, depth: int) -> Any:
    """`value` in terms of what JSON has."""
    packer = _PACKERS.get(type(value))
    if packer is None:
        packer = _pack_other
    return packer(value, depth)


def _pack_each(items: Iterable[tuple[Any, Any]], depth: int) -> Iterator[Any]:
    """The second of each pair, packed; the first one names it in an error's path."""
    if depth >= MAX_DEPTH:
        raise _Unfit(f"is nested more than {MAX_DEPTH} levels deep, or contains itself")
    for key, item in items:
        try:
            yield _pack(item, depth + 1)
        except _Unfit as unfit:
            long = len(unfit.path) > 80
            unfit.path = f"...{unfit.path.removeprefix('...')}" if long else f"[{key!r}]{unfit.path}"
            raise


_SCALARS = frozenset((type(None), bool, int, str))  # JSON has them as they are
_PLAIN = frozenset((type(None), bool, float, str))
_TEXT = frozenset((str,))


def is_plain(value: Any) -> bool:
    """Whether `value` is immutable and comes back as it is from any store, so that it need not be copied."""
    return type(value) in _PLAIN or (type(value) is int and -(2**63) <= value < 2**63)


def _are_plain(values: list[Any]) -> bool:
    """Whether all are plain; quick for many of a kind."""
    kinds = set(map(type, values))
    return kinds <= _PLAIN or (kinds == {int} and is_plain(min(values)) and is_plain(max(values)))


def _pack_list(value: Iterable[Any], depth: int) -> list[Any]:
    items = list(value)
    if _SCALARS.issuperset(map(type, items)):
        return items
    return list(_pack_each(enumerate(items), depth))


def _pack_dict(value: Mapping[Any, Any], depth: int) -> Any:
    if _TAG in value or not _TEXT.issuperset(map(type, value)):
        keys = _hashable(list(_pack_each(((key, key) for key in value), depth)))
        return _tagged("dict", [list(pair) for pair in zip(keys, _pack_each(value.items(), depth), strict=True)])
    if _SCALARS.issuperset(map(type, value.values())):
        return dict(value)
    return dict(zip(value, _pack_each(value.items(), depth), strict=True))


def _hashable(packed: list[Any]) -> list[Any]:
    """The members of a set or the keys of a dictionary, if they can be that again when they are read."""
    if not _SCALARS.issuperset(map(type, packed)):
        text = _dump(packed)
        if _PLACEHOLDER in text:
            raise _Unfit("has result_of() as a member or key: pass it in a list, tuple or dictionary's value")
        try:
            set(_load(text))
        except TypeError:
            raise _Unfit("has a member or key that would come back as a dictionary or list") from None
    return packed


def _tagged(tag: str, value: Any) -> dict[str, Any]:
    return {_TAG: tag, "v": value}


def _packer(tag: str, simplify: Callable[[Any], Any]) -> Callable[[Any, int], Any]:
    return lambda value, depth: _tagged(tag, simplify(value))


def _pack_clock(value: Any, depth: int) -> dict[str, Any]:
    """A datetime or a time; with the key of its zone, as an offset would make another moment of it in half a year."""
    tag, zone = type(value).__name__, value.tzinfo
    if zone is None or type(zone) is dt.timezone:
        key = None
        if not value.fold:
            return _tagged(tag, value.isoformat())
    else:
        key = _key_of(zone)
        value = value.replace(tzinfo=None)
    return _tagged(f"zoned {tag}", [value.isoformat(), key, value.fold])


def _key_of(zone: dt.tzinfo) -> str:
    import zoneinfo

    with contextlib.suppress(ValueError, LookupError, OSError):
        if isinstance(zone, zoneinfo.ZoneInfo) and zone.key and zoneinfo.ZoneInfo(zone.key):
            return zone.key
    raise _Unfit(
        f"has the time zone {zone!r}, which cannot be kept: use zoneinfo.ZoneInfo, or .astimezone(datetime.UTC)"
    )


def _unpack_clock(read: Callable[[str], Any], parts: Sequence[Any]) -> Any:
    text, key, fold = parts
    value = read(text).replace(fold=fold)
    return value if key is None else value.replace(tzinfo=importlib.import_module("zoneinfo").ZoneInfo(key))


_PACKERS: Mapping[type, Callable[[Any, int], Any]] = {
    **dict.fromkeys(_SCALARS, lambda value, depth: value),
    float: lambda value, depth: value if math.isfinite(value) else _tagged("float", repr(value)),
    list: _pack_list,
    dict: _pack_dict,
    tuple: lambda value, depth: _tagged("tuple", _pack_list(value, depth)),
    set: lambda value, depth: _tagged("set", _hashable(_pack_list(value, depth))),
    frozenset: lambda value, depth: _tagged("frozenset", _hashable(_pack_list(value, depth))),
    bytes: _packer("bytes", lambda value: binascii.b2a_base64(value, newline=False).decode()),
    dt.datetime: _pack_clock,
    dt.date: _packer("date", dt.date.isoformat),
    dt.time: _pack_clock,
    dt.timedelta: _packer("timedelta", lambda value: [value.days, value.seconds, value.microseconds]),
    ResultOf: _packer("result_of", lambda value: str(value.task_id)),
}

# What a value is kept as whose type is derived from one of these: an enum, a named tuple, an ordered dictionary.
_BASES: Mapping[type, Any] = {str: str.__str__, int: int, float: float, dict: dict, tuple: tuple, list: list}


def _pack_other(value: Any, depth: int) -> Any:
    """A value whose type is not in the table: of a module that is not imported here, or derived from one that is."""
    kind = type(value)
    if (kind.__module__, kind.__name__) in (("decimal", "Decimal"), ("uuid", "UUID")):
        return _tagged(kind.__name__.lower(), str(value))
    if dataclasses.is_dataclass(kind):
        return _pack_dict({f.name: getattr(value, f.name) for f in dataclasses.fields(kind)}, depth)
    if isinstance(value, enum.Enum) and not isinstance(value, str | int):
        raise _Unfit(f"is the enum member {value}: pass its .name or .value")
    for base, simple in _BASES.items():
        if isinstance(value, base):
            return _pack(simple(value), depth)
    raise _Unfit(
        f"is a {kind.__module__}.{kind.__qualname__}, which cannot be kept as JSON: "
        "pass plain data, such as a number, a string, a list or an id"
    )


def _unpack(found: dict[str, Any]) -> Any:
    """What a JSON object stands for; called for the inner ones first."""
    tag = found.get(_TAG)
    if tag is None:
        return found
    unpacker = _UNPACKERS.get(tag)
    if unpacker is None or len(found) != 2:
        raise SerializationError(f"stored text has the tag {tag!r}, which this version does not know")
    return unpacker(found["v"])


_load = json.JSONDecoder(object_hook=_unpack).decode


_UNPACKERS: Mapping[str, Callable[[Any], Any]] = {
    "float": float,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "dict": dict,
    "bytes": lambda text: binascii.a2b_base64(text, strict_mode=True),
    "datetime": dt.datetime.fromisoformat,
    "date": dt.date.fromisoformat,
    "time": dt.time.fromisoformat,
    "zoned datetime": functools.partial(_unpack_clock, dt.datetime.fromisoformat),
    "zoned time": functools.partial(_unpack_clock, dt.time.fromisoformat),
    "timedelta": lambda parts: dt.timedelta(*parts),
    "decimal": lambda text: importlib.import_module("decimal").Decimal(text),
    "uuid": lambda text: importlib.import_module("uuid").UUID(text),
    "result_of": ResultOf,
}

NO_ARGUMENTS = "[[],{}]"
_PLACEHOLDER = '"$":"result_of"'  # in no other text: what a user writes has its quotes escaped


def encode_arguments(job: Job) -> str:
    """The text of the job's arguments; SerializationError names the one that cannot be kept."""
    if job.payload is not None:
        return job.payload
    if not job.args and not job.kwargs:
        return NO_ARGUMENTS
    name = f"an argument of {job.task}: "
    kwargs = encode(dict(job.kwargs), name + "kwargs") if job.kwargs else "{}"
    return f"[{encode(list(job.args), name + 'args')},{kwargs}]"


def decode_arguments(job: Job) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """The job's arguments, read from its payload where it has one."""
    if job.payload is None:
        return copy_arguments(job)
    if job.payload == NO_ARGUMENTS:
        return (), {}
    match decode(job.payload):
        case [list() as args, dict() as kwargs]:
            return args, kwargs
    raise SerializationError(f"stored text is no list and dictionary of arguments: {job.payload[:80]!r}")


def encode_value(outcome: Outcome) -> str:
    """The text of what a successful attempt returned."""
    return encode_returned(outcome.result, outcome.job.task)


def encode_returned(value: Any, task: str) -> str:
    """The text of what a task returned; ResultError if it cannot be kept."""
    try:
        text = encode(value, f"the result of {task} ")
    except SerializationError as error:
        raise ResultError(str(error)) from None
    if _PLACEHOLDER in text:
        raise ResultError(f"the result of {task} holds result_of(), which stands for a result in arguments only")
    return text


def copy_arguments(job: Job) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The job's arguments as values of their own; SerializationError names the one that cannot be kept."""
    if job.payload is None:
        try:
            args = job.args if all(map(is_plain, job.args)) else tuple([_copy(value, 1) for value in job.args])
            return args, _copy(dict(job.kwargs), 0) if job.kwargs else {}
        except (_Unfit, ValueError):
            pass
    args, kwargs = decode(encode_arguments(job))
    return tuple(args), kwargs


def copy_returned(value: Any, task: str) -> Any:
    """A copy of what a task returned; ResultError if it cannot be kept."""
    try:
        return _copy(value, 0)
    except (_Unfit, ValueError):
        return decode(encode_returned(value, task))


def encode_result(result: TaskResult[Any]) -> str:
    """A result as text, for backends that keep text."""
    return encode([getattr(result, f.name) for f in dataclasses.fields(result)], f"result of {result.task}")


def decode_result(text: str) -> TaskResult[Any]:
    """The result that `encode_result` made `text` of."""
    values = decode(text)
    try:
        result = TaskResult[Any](*values)
        result.status = TaskStatus(result.status)
        result.progress = Progress(*result.progress) if result.progress else None
    except (ValueError, TypeError) as error:
        raise SerializationError(f"stored text is no result ({error}): {text[:80]!r}") from None
    return result


# ---------------------------------------------------------------------------
# 4. Clock and retry policy
#
# The one place where time is read, so that a test can replace it by a manual
# clock; and the rule for when a failed attempt is tried again.
# ---------------------------------------------------------------------------


class Clock:
    """The wall clock, for due times and records, and one that never jumps, for leases and waits."""

    def time(self) -> float:
        """Seconds since the epoch, as this host believes."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds since the boot: the same for all processes of a host; halts while it is suspended."""
        return time.monotonic()


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions:
    """The options of a task.

    Delay before retry n: min(max_delay, retry_delay * backoff**(n - 1)) seconds; `jitter` draws it
    evenly from 0 to that ("full jitter"). `retry_on` and `no_retry_on` are exception types. `timeout`:
    seconds for one attempt. A lower `priority` runs first. `queue` None means `cpu` for a CPU-bound
    task and `default` for others. `result_ttl`: seconds to keep the result (None: as configured).
    """

    max_retries: int = 3
    retry_delay: float = 1.0
    backoff: float = 2.0
    max_delay: float = 3600.0
    jitter: bool = False
    retry_on: tuple[type[BaseException], ...] = (Exception,)
    no_retry_on: tuple[type[BaseException], ...] = ()
    timeout: float | None = None
    queue: str | None = None
    priority: int = 0
    cpu_bound: bool = False
    result_ttl: float | None = None

    def __post_init__(self) -> None:
        _whole("max_retries", self.max_retries, least=0)
        check_priority(self.priority)
        if _finite("backoff", self.backoff) < 0:
            raise ConfigError(f"backoff must be at least 0, not {self.backoff!r}")
        for name, least in (("retry_delay", 0.0), ("max_delay", 0.0), ("timeout", 0.001), ("result_ttl", 0.0)):
            if (value := getattr(self, name)) is not None or name in ("retry_delay", "max_delay"):
                object.__setattr__(self, name, _seconds(name, value, least=least))  # a float, also of a timedelta
        if self.queue is not None:
            check_queue(self.queue)
        for name, kinds in (("retry_on", self.retry_on), ("no_retry_on", self.no_retry_on)):
            for kind in kinds if isinstance(kinds, tuple) else (kinds,):
                if not (isinstance(kind, type) and issubclass(kind, BaseException)):
                    raise ConfigError(f"{name} takes exception types, not {kind!r}")

    @property
    def effective_queue(self) -> str:
        """The queue that the task's jobs go to."""
        return self.queue or ("cpu" if self.cpu_bound else "default")


def is_retryable(options: TaskOptions, error: BaseException) -> bool:
    """Whether `error` may be answered with another attempt."""
    if _is_kind(error, (ResultError,)):
        return False
    if _is_kind(error, (Retry,)):
        return True
    if _is_kind(error, options.no_retry_on):
        return False
    timed_out = isinstance(error, TaskTimeoutError) and error.ends_attempt
    return timed_out or _is_kind(error, (*options.retry_on, ProcessDiedError))


def _is_kind(error: BaseException, types: tuple[type[BaseException], ...]) -> bool:
    """isinstance(), also for an exception of another process, of which the types' names are known."""
    if isinstance(error, RemoteError):
        return any(kind_name(kind) in error.kinds for kind in types)
    return isinstance(error, types)


def asked_delay(error: BaseException) -> float | None:
    """The delay that a Retry asks for; None if it asks for none, or a subclass for what is no delay."""
    delay = error.delay if isinstance(error, Retry | RemoteError) else None
    with contextlib.suppress(ConfigError):
        return None if delay is None else _seconds("delay", delay)
    return None


def kind_name(kind: type) -> str:
    """A type as module and qualified name, the same in the worker and in the processes of its executor."""
    return f"{_module_of(kind)}.{kind.__qualname__}"


MAIN_IN_CHILD = "__mp_main__"  # the main script's name in a process of the executor, as `multiprocessing` calls it


def _module_of(thing: Any) -> str:
    """The module of a function or a type; what stands in the main script is in it as if it were imported."""
    module = cast("str", thing.__module__)
    if _is_in_main(thing):
        name, file = _main_script()
        module = name or os.path.splitext(os.path.basename(file or module))[0]
    return module.removesuffix(".__main__")


def _is_in_main(thing: Any) -> bool:
    return thing.__module__ in ("__main__", MAIN_IN_CHILD)


def _main_script() -> tuple[str | None, str]:
    """The name to import it by (None for a file, a folder or an interactive session), and its file."""
    main = sys.modules.get(MAIN_IN_CHILD) or sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    return None if spec is None or spec.name == "__main__" else spec.name, getattr(main, "__file__", None) or ""


def retry_delay(options: TaskOptions, retry: int, draw: Callable[[], float] = random.random) -> float:
    """Seconds to wait before retry number `retry` (1 is the first); `draw` gives numbers in [0, 1)."""
    try:
        delay = min(options.max_delay, options.retry_delay * options.backoff ** (retry - 1))
    except OverflowError:
        delay = options.max_delay if options.retry_delay else 0.0
    return delay * draw() if options.jitter else delay


# ---------------------------------------------------------------------------
# 5. Cron
#
# When a cron expression is due. Knows time zones and clock changes; knows
# nothing of jobs, schedules and loops. The authority is Debian's cron:
# crontab(5), and its entry.c and cron.c.
#
# A field becomes one int with a bit for each value. A match is looked up on
# the wall clock alone; what a clock change makes of it comes after that.
# ---------------------------------------------------------------------------


# In the order of the expression: the least and the greatest value of each field.
CRON_FIELDS: Mapping[str, tuple[int, int]] = {
    "second": (0, 59),
    "minute": (0, 59),
    "hour": (0, 23),
    "day-of-month": (1, 31),
    "month": (1, 12),
    "day-of-week": (0, 6),
    "year": (1970, 2199),
}
_CRON_WORDS: Mapping[str, Sequence[str]] = {
    "month": ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"),
    "day-of-week": ("sun", "mon", "tue", "wed", "thu", "fri", "sat"),
}
_CRON_NAMES: Mapping[str, str] = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}

# What the fields of days may ask for besides plain days: bits above those of the days themselves.
LAST_DAY = 32  # L
NEAREST = 32  # 32 + n: nW, the workday (Monday to Friday) nearest to day n
LAST_WORKDAY = 64  # LW
LAST_WEEK = 6  # 7 * k + d: d#k, and dL as if it were d#6

_CRON_TEXTS = re.compile(r"[^ \t\n\r\f\v]+")
_CRON_ITEM = re.compile(r"(?:(\*)|([0-9]+|[a-z]+)(?:-([0-9]+|[a-z]+))?)(?:/([0-9]+))?")
_CRON_HASH = re.compile(r"h(?:\(([0-9]+)-([0-9]+)\))?(?:/([0-9]+))?")
_CRON_DAY = re.compile(r"l|lw|([0-9]+)w")
_CRON_WEEKDAY = re.compile(r"([0-9]+|[a-z]{3})(?:l|#([0-9]+))")


@functools.lru_cache(maxsize=1024)
def cron_bits(field: str, text: str, name: str | None = None) -> int:
    """The values that the text of a field stands for, as bits; `name` is what H spreads by."""
    try:
        if text == "?" and field in ("day-of-month", "day-of-week"):
            text = "*"
        bits = 0
        for item in text.lower().split(","):
            for value in _cron_special(field, item, name) or _cron_item(field, item):
                bits |= 1 << value
        return bits
    except ValueError as error:
        raise ConfigError(f"bad {field} field {text!r}: {error}") from None


def _cron_item(field: str, item: str) -> list[int]:
    """`*`, `a`, `a-b`, each with a step or without."""
    found = _CRON_ITEM.fullmatch(item)
    if not found:
        raise ValueError(f"{item!r} is not a value, a range or a step")
    star, first, last, step = found.groups()
    least, most = CRON_FIELDS[field]
    low = least if star else _cron_value(field, first)
    high = _cron_value(field, last) if last else most if star or step else low
    return _cron_range(field, low, high, step)


def _cron_range(field: str, low: int, high: int, step: str | None) -> list[int]:
    """From `low` to `high`; a range that goes down runs on from the field's end at its beginning."""
    if step is not None and not int(step):
        raise ValueError("a step is 1 or more")
    least, most = CRON_FIELDS[field]
    size = most - least + 1
    length = high - low if low <= high else (high - low) % size
    return [(value - least) % size + least for value in range(low, low + length + 1, int(step or 1))]


def _cron_value(field: str, text: str) -> int:
    """A number or a name; a Sunday written as 7 stays 7, since 5-7 does not go down."""
    least, most = CRON_FIELDS[field]
    most += field == "day-of-week"
    if not text.isdigit():
        names = _CRON_WORDS.get(field, ())
        if text not in names:
            wanted = f"neither a number nor one of {', '.join(names)}" if names else "not a number"
            raise ValueError(f"{text!r} is {wanted}")
        return names.index(text) + least
    value = int(text)
    if not least <= value <= most:
        raise ValueError(f"{value} is not in {least}-{most}")
    return value


def _cron_special(field: str, item: str, name: str | None) -> list[int]:
    """H of any field, L and W of days of the month, L and # of days of the week; nothing if it is none of these."""
    if item[:1] == "h" and (found := _CRON_HASH.fullmatch(item)):
        return _cron_hashed(field, *found.groups(), name=name)
    if field == "day-of-month" and (found := _CRON_DAY.fullmatch(item)):
        if found[1]:
            return [NEAREST + _cron_value(field, found[1])]
        return [LAST_DAY if item == "l" else LAST_WORKDAY]
    if field == "day-of-week" and (found := _CRON_WEEKDAY.fullmatch(item)):
        day, week = _cron_value(field, found[1]) % 7, int(found[2] or 0)
        if found[2] and not 1 <= week <= 5:
            raise ValueError(f"{week} is not in 1-5, the weeks that # can ask for")
        return [7 * (week or LAST_WEEK) + day]
    return []


def _cron_hashed(field: str, low: str | None, high: str | None, step: str | None, *, name: str | None) -> list[int]:
    """H: one value, or the first of its steps, drawn by a hash of the schedule's name that never changes."""
    import hashlib

    if name is None:
        raise ValueError("H spreads schedules by their names, and this one has none (name=...)")
    least, most = (1, 28) if field == "day-of-month" else CRON_FIELDS[field]  # 28: every month has it
    if low is not None and high is not None:
        least, most = _cron_value(field, low), _cron_value(field, high)
    if least > most:
        raise ValueError(f"the range of an H goes up, and {least}-{most} does not")
    choices = most - least + 1 if step is None else max(1, min(int(step), most - least + 1))
    digest = hashlib.blake2b(f"{field} {name}".encode(), digest_size=8).digest()
    first = least + int.from_bytes(digest) % choices
    return _cron_range(field, first, first if step is None else most, step)


def cron_values(bits: int) -> list[int]:
    """The values of a field, in order."""
    values = []
    while bits:
        values.append((bits & -bits).bit_length() - 1)
        bits &= bits - 1
    return values


@functools.lru_cache(maxsize=1024)
def _first_from(bits: int) -> tuple[int | None, ...]:
    """For each i from 0 to 60 the first value at or after i, or None."""
    table: list[int | None] = []
    for value in cron_values(bits):
        table += [value] * (value + 1 - len(table))
    return *table, *[None] * (61 - len(table))


@functools.lru_cache(maxsize=4096)
def _days_in_month(days: int, weekdays: int, both: bool, first: int, length: int) -> int:
    """The days that match in a month of `length` days of which the first is the weekday `first` (0 is Sunday)."""
    every = range(1, length + 1)
    workdays = [day for day in every if 1 <= (first + day - 1) % 7 <= 5]
    wanted = [day for day in every if days >> NEAREST + day & 1] + [length] * (days >> LAST_WORKDAY & 1)
    near = {min((abs(workday - day), workday) for workday in workdays)[1] for day in wanted}
    found = 0
    for day in every:
        weekday = (first + day - 1) % 7
        by_month = days >> day | (day in near) | (day == length and days >> LAST_DAY)
        by_week = weekdays >> weekday | weekdays >> 7 * ((day + 6) // 7) + weekday
        if day > length - 7:
            by_week |= weekdays >> 7 * LAST_WEEK + weekday
        found |= ((by_month & by_week if both else by_month | by_week) & 1) << day
    return found


class _Days(dict[int, int]):
    """The matching days of each year, worked out when first asked for: bit 32 * month + day."""

    def __init__(self, days: int, months: int, weekdays: int, years: int, both: bool) -> None:
        super().__init__()
        self._fields = days, weekdays, both
        self._months = cron_values(months)
        self._years = years
        self._last_year = years.bit_length() - 1 if years else dt.MAXYEAR

    def __missing__(self, year: int) -> int:
        found = 0
        if not self._years or self._years >> year & 1:
            for month in self._months:
                weekday, length = calendar.monthrange(year, month)
                found |= _days_in_month(*self._fields, (weekday + 1) % 7, length) << 32 * month
        self[year] = found
        return found

    def later(self, year: int, month: int, day: int) -> tuple[int, int, int] | None:
        """The first matching day after this one."""
        begin = 32 * month + day + 1
        while not (days := self[year] >> begin):
            year, begin = year + 1, 0
            if year > self._last_year:
                return None
        month, day = divmod(begin + (days & -days).bit_length() - 1, 32)
        return year, month, day


@functools.lru_cache(maxsize=1024)
def _days_of(days: int, months: int, weekdays: int, years: int, both: bool) -> _Days | None:
    """The calendar of these fields, shared by all schedules that have them; None if no day ever matches."""
    found = _Days(days, months, weekdays, years, both)
    # 28 years hold each kind of year: leap or not, beginning on each weekday.
    return found if any(found[year] for year in cron_values(years) or range(2000, 2028)) else None


class ClockChange(NamedTuple):
    """A clock change: its moment in UTC, and what the zone's clock shows when it is left and entered (all naive).

    What changes a clock by 3 h or more (back: by more) is no daylight saving time, and not made good for fixed times.
    """

    at: dt.datetime
    left: dt.datetime
    entered: dt.datetime
    moved_to: dt.datetime | None  # if it is put forward: when fixed times in the gap run, as the clock shows it
    is_repeat: bool  # if it is put back: fixed times that the clock shows again have run before
    low: dt.datetime  # from here on, and up to `high`, in the zone, times are disturbed: they compare as they read
    high: dt.datetime


class Zone(dict[int, tuple[ClockChange, ...]]):
    """A time zone, and the clock changes of each year and the days around it, worked out when first asked for."""

    def __init__(self, tzinfo: dt.tzinfo) -> None:
        super().__init__()
        self.tzinfo = tzinfo
        self.key = str(tzinfo)

    def __missing__(self, year: int) -> tuple[ClockChange, ...]:
        self[year] = made = () if isinstance(self.tzinfo, dt.timezone) else tuple(self._changes(year))
        return made

    def _changes(self, year: int) -> Iterator[ClockChange]:
        """Compare every three days: no zone has ever changed twice within less than four."""
        first = _begin_of(year).toordinal() - 2
        days = (day for day in range(first, first + 375, 3) if 5 <= day <= _LATEST.toordinal() - 4)
        moments = map(dt.datetime.fromordinal, days)
        for (low, before), (high, after) in itertools.pairwise((moment, self.offset(moment)) for moment in moments):
            if before == after:
                continue
            while high - low > _SECOND:  # until `high` is the first second with another offset than before
                middle = low + (high - low) // (2 * _SECOND) * _SECOND
                low, high = (middle, high) if self.offset(middle) == before else (low, middle)
            left, entered = high + before, high + after
            minute = entered + dt.timedelta(seconds=-entered.second % 60)  # the first full one
            moved_to = minute if left < entered < left + _CATCH_UP else None
            is_repeat = left - _CATCH_UP <= entered < left
            first_wall, last_wall = (wall.replace(tzinfo=self.tzinfo) for wall in sorted((left, entered)))
            yield ClockChange(high, left, entered, moved_to, is_repeat, first_wall, last_wall + _MINUTE)

    def around(self, moment: dt.datetime) -> tuple[ClockChange | None, ClockChange | None]:
        """The clock changes of the moment's year (naive, in UTC) last before or at it, and first after it."""
        behind = max((change for change in self[moment.year] if change.at <= moment), default=None)
        return behind, min((change for change in self[moment.year] if change.at > moment), default=None)

    def offset(self, moment: dt.datetime) -> dt.timedelta:
        """The offset from UTC at a naive moment in UTC."""
        return self.aware(moment).utcoffset() or dt.timedelta(0)

    def aware(self, moment: dt.datetime) -> dt.datetime:
        """The zone's own time at a naive moment in UTC."""
        return self.tzinfo.fromutc(moment.replace(tzinfo=self.tzinfo))


_CATCH_UP = dt.timedelta(hours=3)  # clock changes up to this are made good for fixed times, as Debian's cron does
_EARLIEST = dt.datetime(1, 1, 5, tzinfo=dt.UTC)  # far enough from the calendar's end to be moved into any zone
_LATEST = dt.datetime.max.replace(tzinfo=dt.UTC)
_MINUTE = dt.timedelta(minutes=1)
_SECOND = dt.timedelta(seconds=1)
_INSTANT = dt.timedelta(microseconds=1)


def _begin_of(year: int) -> dt.datetime:
    """When the year begins, naive; for the year 10000 the last moment there is."""
    return (dt.datetime(year, 1, 1, tzinfo=dt.UTC) if year <= dt.MAXYEAR else _LATEST).replace(tzinfo=None)


def _zone_of(tz: object) -> Zone:
    if isinstance(tz, str):
        return _named_zone(tz)
    if not isinstance(tz, dt.tzinfo):
        raise ConfigError(f"tz must be a time zone's key or a tzinfo, not {tz!r}")
    # A zone of pytz answers with another tzinfo for each offset, and cannot be set on a datetime.
    if dt.datetime(2000, 1, 1, tzinfo=dt.UTC).astimezone(tz).tzinfo is not tz:
        raise ConfigError(f"{tz!r} is no tzinfo that a datetime can carry: give its key, such as 'Europe/Riga'")
    return Zone(tz)


@functools.lru_cache(maxsize=1024)
def _named_zone(key: str) -> Zone:
    """The zone of a key; UTC and offsets such as +02:00 need no zone database."""
    if offset := re.fullmatch(r"UTC|(?:UTC)?([+-][0-9]{2}:?[0-9]{2}(?::[0-9]{2})?)", key):
        with contextlib.suppress(ValueError):
            return Zone(dt.datetime.strptime(offset[1] or "+0000", "%z").tzinfo or dt.UTC)
    import zoneinfo

    try:
        return Zone(zoneinfo.ZoneInfo(key))
    except (KeyError, ValueError, OSError):  # the last two: a key such as "/etc" or "Europe"
        if zoneinfo.available_timezones():
            raise ConfigError(f"there is no time zone {key!r}: give a key such as 'Europe/Riga'") from None
        raise ConfigError(
            f"no time zone database to look {key!r} up in: pip install tzdata (UTC and '+02:00' go without)"
        ) from None


def _cron_texts(expr: object) -> list[str]:
    """The seven fields of an expression, the year `*` where there is none."""
    if not isinstance(expr, str):
        raise ConfigError(f"a cron expression is a text, not {expr!r}")
    texts = _CRON_TEXTS.findall(expr)
    if len(texts) == 1 and expr.isascii():
        name = texts[0].lower()
        if name == "@reboot":
            raise ConfigError("@reboot is no time: what is to run at the start goes into @app.lifespan")
        if name.startswith("@") and name not in _CRON_NAMES:
            raise ConfigError(f"there is no {texts[0]!r}: there are {', '.join(_CRON_NAMES)}")
        texts = _CRON_NAMES.get(name, name).split()
    if len(texts) == 5:
        return ["0", *texts, "*"]
    if len(texts) == 6:
        return [*texts, "*"]
    if len(texts) == 7:
        return texts
    raise ConfigError(
        f"a cron expression has five fields (minute hour day-of-month month day-of-week), six (second first) "
        f"or seven (year last), not {len(texts)}: {expr!r}"
    )


class NoFire(FlowrraError, ValueError):  # noqa: N818 (an answer, and to callers a ValueError)
    """There is no fire on that side of the moment."""


class Cron:
    """A cron expression in a time zone: `Cron("30 9 * * mon-fri", "Europe/Riga")`. UTC if no zone is given.

    Five fields: minute, hour, day of month, month, day of week; six: a second before them; seven: a year
    (1970-2199) after those. `tz` is a key or a tzinfo. `name` is what H spreads by: the same name, the same
    times. Days match if day-of-month or day-of-week does; both have to if one of them begins with `*`, or
    with `both_days`.

    A naive moment is the wall clock of the zone. Fires are aware, in the schedule's own tzinfo. Where the clock
    is put forward (less than 3 h) a time in the gap runs at the first minute after it; where it is put back (up
    to 3 h) a time runs in the first pass only. A schedule whose second, minute or hour begins with `*` follows
    the clock as it is: nothing in a gap, and both passes.

    Immutable; equal if fields and zone are.

    Raises:
        ConfigError: (a ValueError) the expression is wrong, or never fires; there is no such zone.
    """

    # What brokers and extras may read: `fields`, of each field one int with a bit for each value (year: 0 for any);
    # `is_fixed`, whether clock changes are made good; `zone`.
    __slots__ = (
        *("_days", "_expr", "_first", "_hours", "_minutes", "_seconds", "_tzinfo"),
        *("both_days", "fields", "is_fixed", "zone"),
    )

    def __init__(
        self, expr: str, tz: str | dt.tzinfo = "UTC", *, name: str | None = None, both_days: bool = False
    ) -> None:
        texts = _cron_texts(expr)
        salt = name if "h" in expr.lower() else None  # or the cache would hold fields once for each name
        bits = [cron_bits(field, text, salt) for field, text in zip(CRON_FIELDS, texts, strict=True)]
        if texts[6] == "*":
            bits[6] = 0
        second, minute, hour, *day_fields = bits
        self.both_days = both_days or texts[3][0] in "*?" or texts[5][0] in "*?"
        calendar = _days_of(*day_fields, self.both_days)
        if calendar is None:
            raise ConfigError(
                f"bad day-of-month field {texts[3]!r}: with month {texts[4]!r}, day-of-week {texts[5]!r} "
                f"and year {texts[6]!r} there is no such day"
            )
        self.fields = tuple(bits)
        self.is_fixed = "*" not in (texts[0][0], texts[1][0], texts[2][0])
        self.zone = _zone_of(tz)
        self._expr = expr
        self._tzinfo = self.zone.tzinfo
        self._days = calendar
        self._hours, self._minutes, self._seconds = _first_from(hour), _first_from(minute), _first_from(second)
        self._first = (self._hours[0] or 0, self._minutes[0] or 0, self._seconds[0] or 0)

    @property
    def expr(self) -> str:
        """The expression as it was given."""
        return self._expr

    @property
    def tz(self) -> str:
        """The zone's key, or what str() makes of a tzinfo without one."""
        return self.zone.key

    def __repr__(self) -> str:
        return f"Cron({self._expr!r}, {self.tz!r})"

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, Cron) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[object, ...]:
        return self.fields, self.both_days, self.is_fixed, self.tz

    def __or__(self, other: Cron) -> CronUnion:
        if not isinstance(other, Cron):
            return NotImplemented
        union = import_extra("flowrra_extras.cron_union", "CronUnion", "schedules are not put together here")
        return cast("CronUnion", union(self, other))

    def next(self, after: dt.datetime) -> dt.datetime:
        """The first fire later than `after`.

        Raises:
            ValueError: there is none before the year 10000.
        """
        # The usual case: no clock change touches `after` nor the match. One between the two changes nothing.
        if after.tzinfo is not self._tzinfo:
            after = self.local(after)
        found = self._later(after)
        end, year = found or after, after.year
        changes = self.zone[year] if end.year == year else self.zone[year] + self.zone[end.year]
        for change in changes:
            if change.low <= after < change.high or change.low <= end < change.high:
                return self._next_carefully(after)
        if found is None:
            raise NoFire(f"{self!r} does not fire after {after}")
        return found

    def iter(self, after: dt.datetime) -> Iterator[dt.datetime]:
        """The fires later than `after`, one after the other; it ends if they do."""
        with contextlib.suppress(NoFire):
            while True:
                after = self.next(after)
                yield after

    def local(self, moment: dt.datetime) -> dt.datetime:
        """The moment on the schedule's own clock; a naive one is read off it."""
        if moment.tzinfo is None:
            return moment.replace(tzinfo=self._tzinfo, fold=0)
        try:
            return moment.astimezone(self._tzinfo)
        except OverflowError:
            raise NoFire(f"{moment} is not within the years 1 to 9999 in {self.tz}") from None

    def _later(self, after: dt.datetime) -> dt.datetime | None:
        """The first match later than `after` on a wall clock that never changes, with the same tzinfo."""
        year, month, day = after.year, after.month, after.day
        if self._days[year] >> 32 * month + day & 1:
            hour = after.hour
            if self._hours[hour] == hour:
                minute = after.minute
                if self._minutes[minute] == minute and (second := self._seconds[after.second + 1]) is not None:
                    return dt.datetime(year, month, day, hour, minute, second, 0, after.tzinfo)
                if (next_minute := self._minutes[minute + 1]) is not None:
                    return dt.datetime(year, month, day, hour, next_minute, self._first[2], 0, after.tzinfo)
            if (next_hour := self._hours[hour + 1]) is not None:
                return dt.datetime(year, month, day, next_hour, self._first[1], self._first[2], 0, after.tzinfo)
        found = self._days.later(year, month, day)
        return found and dt.datetime(*found, *self._first, tzinfo=after.tzinfo)

    def match_from(self, wall: dt.datetime) -> dt.datetime | None:
        """The first match at or after `wall` (naive) on a wall clock that never changes."""
        return self._later(wall - _INSTANT)

    def _next_carefully(self, after: dt.datetime) -> dt.datetime:
        """What `next` is to return, from one clock change to the next: between them a wall time is one moment."""
        moment = after.astimezone(dt.UTC).replace(tzinfo=None) + _INSTANT  # the earliest that will do
        while True:
            behind, ahead = self.zone.around(moment)
            end = ahead.at if ahead else _begin_of(moment.year + 1)
            offset = self.zone.offset(moment)
            found = self._from(moment + offset, behind)
            if found is not None and found - offset < end:
                return self.zone.aware(found - offset)
            if found is None and ahead is None:  # nor is there a change that brings back what the clock has passed
                raise NoFire(f"{self!r} does not fire after {after}")
            moment = end

    def _from(self, wall: dt.datetime, change: ClockChange | None) -> dt.datetime | None:
        """The first time to run at or after `wall` (naive) on a clock whose latest change was this one."""
        if change is None or not self.is_fixed:
            return self.match_from(wall)
        if change.is_repeat:
            return self.match_from(max(wall, change.left))
        found = self.match_from(wall)
        if change.moved_to is not None and wall <= change.moved_to:
            skipped = self.match_from(change.left)
            if skipped is not None and skipped < change.entered:
                return change.moved_to if found is None else min(change.moved_to, found)
        return found

    def previous(self, before: dt.datetime) -> dt.datetime:
        """The last fire earlier than `before`.

        Raises:
            ValueError: there is none since the year 1.
        """
        limit = low = self._utc(before)
        step, found = _MINUTE, None
        # Further back each time until something fires before the limit; then what is between is halved.
        while found is None:
            if low == _EARLIEST:
                raise NoFire(f"{self!r} does not fire before {before}")
            low -= min(step, low - _EARLIEST)
            step *= 4
            found = self._fire(low, limit)
        high = limit
        while (later := self._fire(found, limit)) is not None:
            middle = later + (high - later) / 2
            found = self._fire(middle, limit)
            if found is None:
                high, found = middle, later
        return found.astimezone(self._tzinfo)

    def _utc(self, moment: dt.datetime) -> dt.datetime:
        """The moment in UTC, within what `previous` looks through."""
        try:
            return max(self.local(moment).astimezone(dt.UTC), _EARLIEST)
        except OverflowError:
            return _EARLIEST if moment.year == dt.MINYEAR else _LATEST

    def _fire(self, after: dt.datetime, limit: dt.datetime) -> dt.datetime | None:
        """The next fire in UTC, if there is one earlier than `limit`."""
        try:
            found = self.next(after).astimezone(dt.UTC)
        except (NoFire, OverflowError):
            return None
        return found if found < limit else None

    def matches(self, moment: dt.datetime) -> bool:
        """Whether it fires in the minute of `moment`; in its second, if the expression has seconds."""
        begin, length = self._utc(moment).replace(microsecond=0), _SECOND
        if self.fields[0] == 1:
            begin, length = begin.replace(second=0), _MINUTE
        return self._fire(begin - _INSTANT, begin + length) is not None

    def explain(self) -> str:
        """The schedule in words: `At 09:00 on Monday through Friday, Europe/Riga`.

        Raises:
            ConfigError: this is a copy of the one file, without flowrra_extras.
        """
        return cast("str", import_extra("flowrra_extras.cron_words", "explain", "cron is not put in words here")(self))


# ---------------------------------------------------------------------------
# 6. Rules
#
# What may become of a job, written once: moves of one job, and walks over the
# several jobs that a call concerns. No clock, no store and no loop: a broker
# finds jobs, and writes down what comes out of here. It decides nothing.
# ---------------------------------------------------------------------------

EXPIRED = "it expired before its first attempt began"
BY_HAND = "it was cancelled"
KILLED = f"killed its worker {MAX_CRASHES} times"
WORKER_LOST = "its worker died or lost its lease"
LEFT = "its worker left without settling it"


def orphaned(parent: str, status: TaskStatus) -> str:
    """The reason of a job that is cancelled because its parent did not succeed."""
    return f"its parent {parent} ended as {status}"


def unknown_job(task_id: str) -> TaskNotFoundError:
    """The error for an id that the store does not hold."""
    return TaskNotFoundError(f"no job {str(task_id)!r} is known here: never submitted, or purged after its retention")


# Moves of one job ------------------------------------------------------------------------------
#
# Each changes the job that it is given and returns True, or returns False and leaves it as it was: the move is not
# allowed from here. Who needs the job as it was takes a copy first; a claim of 100 jobs cannot afford 100 copies.


def _move(job: Job, status: TaskStatus) -> None:
    if status is not job.status and status not in TRANSITIONS[job.status]:
        raise AssertionError(f"job {job.id} cannot go from {job.status} to {status}")
    job.status = status


def first_status(due: float | None, now: float) -> TaskStatus:
    """Where a job stands that waits for nobody: ready, or ready when it is due."""
    return SCHEDULED if due is not None and due > now else PENDING


def begin(job: Job, parents: Sequence[Job | None], now: float, retention: BackendConfig) -> None:
    """Let a job wait for what it has to: its parents, its moment, or a worker. An orphan is cancelled.

    A parent that is None was purged: it had succeeded, or this job would have been cancelled.
    """
    if not parents:
        job.status, job.worker, job.waits = first_status(job.due, now), None, 0
        return
    known = [parent for parent in parents if parent is not None]
    job.status, job.worker = BLOCKED, None
    job.waits = sum(parent.status in UNFINISHED for parent in known)
    if lost := next((parent for parent in known if parent.status in REQUEUABLE), None):
        finish(job, CANCELLED, now, retention.failed_ttl, orphaned(lost.id, lost.status))
    elif not job.waits:
        _move(job, first_status(job.due, now))


def is_expired(job: Job, now: float) -> bool:
    """Whether it may not begin any more. `expires` is forgotten once an attempt has begun to run."""
    return job.expires is not None and job.expires <= now and job.status in NOT_BEGUN


NOT_BEGUN = frozenset((SCHEDULED, BLOCKED, PENDING))


def start(job: Job, worker: str, now: float) -> bool:
    """Give the job to a worker: an attempt begins."""
    if job.status is not PENDING or is_expired(job, now):
        return False
    job.status = RUNNING  # not by _move(): this and the success are what a worker in memory does all day
    job.attempt += 1
    job.worker = worker
    job.started = now
    return True


def settle_one(job: Job, outcome: Outcome, now: float, retention: BackendConfig) -> bool:
    """Write down what an attempt came to. False: it was rescued, or deleted and pushed anew, meanwhile.

    Id and attempt do not tell a job from a later one of the same id; `seq`, which no store gives twice, does.
    """
    if job.status is not RUNNING or (job.attempt, job.seq) != (outcome.attempt, outcome.job.seq):
        return False
    failed = outcome.status is FAILED or outcome.status is RETRYING
    job.failures += failed
    if outcome.status in FINISHED:
        ttl = retention.ttl(outcome.status) if outcome.keep is None else outcome.keep
        finish(job, outcome.status, now, ttl, outcome.error, outcome.traceback)
        job.result = outcome.result
        return True
    if failed and job.crashes:
        job.crashes -= 1  # a suspect that fails has survived a run beside nobody
    if outcome.begun:
        job.expires = None
    job.due = outcome.due
    _end_attempt(job, outcome.ending, now, outcome.error, outcome.traceback)
    if job.cancel_requested:
        finish(job, CANCELLED, now, retention.failed_ttl, BY_HAND)
    else:
        _move(job, outcome.status)
    return True


def rescue_one(job: Job, now: float, retention: BackendConfig, *, crashed: bool) -> bool:
    """Take a running job from its worker, which has died or has left."""
    if job.status is not RUNNING:
        return False
    job.crashes += crashed
    job.expires = job.due = None
    _end_attempt(job, "crash" if crashed else "release", now, WORKER_LOST if crashed else LEFT)
    if job.cancel_requested:
        finish(job, CANCELLED, now, retention.failed_ttl, BY_HAND)
    elif crashed and job.crashes >= MAX_CRASHES:
        finish(job, FAILED, now, retention.failed_ttl, KILLED)
    else:
        _move(job, PENDING)
    return True


def promote_one(job: Job, now: float) -> bool:
    """Make a job ready that has come due."""
    if job.status not in (SCHEDULED, RETRYING) or (job.due or 0.0) > now:
        return False
    _move(job, PENDING)
    return True


def expire_one(job: Job, now: float, retention: BackendConfig) -> bool:
    """End a job that waited until it was too late to begin."""
    if not is_expired(job, now):
        return False
    finish(job, CANCELLED, now, retention.failed_ttl, EXPIRED)
    return True


def cancel_one(job: Job, by: str | None, now: float, retention: BackendConfig) -> bool:
    """End a job that waits; have its worker end one that runs."""
    if job.status in FINISHED:
        return False
    job.history = noted(job, by, "cancelled", now)
    if job.status is RUNNING:
        job.cancel_requested = True
    else:
        finish(job, CANCELLED, now, retention.failed_ttl, BY_HAND)
    return True


def requeue_one(job: Job, parents: Sequence[Job | None], by: str | None, now: float, retention: BackendConfig) -> bool:
    """Begin a failed or cancelled job anew, its failures and crashes forgotten; not while a parent is such a one."""
    if job.status not in REQUEUABLE or any(parent and parent.status in REQUEUABLE for parent in parents):
        return False
    _archive(job, _ENDING_OF[job.status])
    job.history = noted(job, by, "requeued", now)
    job.failures = job.crashes = 0
    job.error = job.traceback = job.due = job.expires = None
    job.cancel_requested = False
    begin(job, parents, now, retention)
    return True


def hold_one(job: Job, by: str) -> bool:
    """Keep a waiting job from running. The hold is one more thing that it waits for."""
    if job.status is RUNNING or job.status in FINISHED:
        return False
    if job.worker is None:
        _move(job, BLOCKED)
        job.worker, job.waits = by, job.waits + 1
    return job.worker == by


def release_one(job: Job, parents: Sequence[Job | None], by: str, now: float, retention: BackendConfig) -> bool:
    """End a hold: the job looks at its parents anew."""
    if not is_held(job, by):
        return False
    begin(job, parents, now, retention)
    return True


def is_held(job: Job, by: str) -> bool:
    """Whether `by` keeps the job from running."""
    return job.status is BLOCKED and job.worker == by


def parent_succeeded(child: Job, now: float) -> bool:
    """Let a child go on, unless it waits for more; one that is held counts anew when its hold ends."""
    if child.status is not BLOCKED or child.worker is not None:
        return False
    child.waits -= 1
    if child.waits <= 0:
        _move(child, first_status(child.due, now))
    return True


def parent_failed(child: Job, parent: Job, now: float, retention: BackendConfig) -> bool:
    """Cancel a child of a parent that ended without success; one that is held looks when its hold ends."""
    if child.status is not BLOCKED or child.worker is not None:
        return False
    finish(child, CANCELLED, now, retention.failed_ttl, orphaned(parent.id, parent.status))
    return True


def finish(
    job: Job, status: TaskStatus, now: float, ttl: float, error: str | None, traceback: str | None = None
) -> None:
    """The one place where a job comes to its end. Only a success has no error text: stores find the others by it."""
    _move(job, status)
    job.finished = now
    job.purge_at = now + ttl
    job.error = error
    job.traceback = traceback
    job.waits = 0


def _end_attempt(job: Job, ending: str, now: float, error: str | None, traceback: str | None = None) -> None:
    job.error, job.traceback, job.finished = error, traceback, now
    _archive(job, ending)


def _archive(job: Job, ending: str) -> None:
    """Move the latest attempt into the history."""
    latest = job.latest_attempt(ending)
    if latest is not None:
        job.history = (*job.history[1 - HISTORY_LIMIT :], latest)
    job.worker = job.started = job.finished = job.purge_at = job.progress = None


def noted(job: Job, by: str | None, action: str, now: float) -> tuple[Attempt, ...]:
    """The history of `job` with a line on what somebody did to it; without, if nobody says who."""
    if by is None:
        return job.history
    return (*job.history[1 - HISTORY_LIMIT :], Attempt(job.attempt, by, now, now, "note", action))


def recorded(result: TaskResult[Any], retention: BackendConfig) -> Job:
    """A finished job that stands for a result which came from elsewhere: in no queue, and without arguments."""
    job = Job(result.task_id, result.task, queue="", payload=NO_ARGUMENTS, status=result.status)
    job.submitted, job.attempt, job.started = result.submitted, result.attempts, result.started
    job.finished, job.result, job.progress = result.finished, result.result, result.progress
    job.purge_at = (result.finished or 0.0) + retention.ttl(result.status)
    job.error = result.error if result.is_success else result.error or ""
    job.traceback = result.traceback
    return job


# Leases ----------------------------------------------------------------------------------------


class Lease(NamedTuple):
    """The right of a worker to what it has claimed, on the store's clock; `length` in seconds.

    `graced`: that it has not run out is a fresh start which it was given, and not a heartbeat of its own.
    """

    until: float
    length: float
    graced: bool = False


def judge_leases(
    others: Mapping[str, Lease], mine: Lease | None, clock: float, *, is_new: bool = False
) -> tuple[list[str], list[str]]:
    """Of workers whose leases have run out: those that are dead, and those that get a fresh lease as nobody can know.

    Who was late rescues nobody: it knows of no moment at which the store would have taken the heartbeats of others.
    Another one is dead if it had missed a heartbeat when the store last heard from the one that asks: half a lease
    after its own (a lease is two heartbeats at least). `is_new`: who asks has only just come; it takes the lapsed
    for dead, so that after a restart nobody waits. A fresh lease is given once until the next heartbeat: else one
    that is late now and then keeps the dead alive.
    """
    if mine is None or mine.until <= clock:
        heard = math.inf if mine is None and is_new else -math.inf
    else:
        heard = mine.until - mine.length
    dead = [name for name, (until, length, _) in others.items() if until > clock or until - length / 2 <= heard]
    return dead, [name for name, lease in others.items() if not lease.graced and name not in dead]


# Walks over several jobs -----------------------------------------------------------------------
#
# A walk is a generator: it yields what it must find, and is sent the jobs; what it wants to write it leaves in its
# unit, which the store applies all or none when the walk has returned. So one text serves a store that is read under
# a lock, and one that answers later.


class Jobs(NamedTuple):
    """Find the jobs with these ids."""

    ids: Sequence[str]


class Children(NamedTuple):
    """Find the blocked jobs that name one of these as a parent."""

    of: Sequence[str]


class Holders(NamedTuple):
    """Find the unfinished jobs with these unique keys."""

    keys: Sequence[str]


class Running(NamedTuple):
    """Find what these workers are running."""

    workers: Sequence[str]


class Expired(NamedTuple):
    """Find up to `limit` jobs that `is_expired`, by (expires, seq)."""

    now: float
    limit: int


Find = Jobs | Children | Holders | Running | Expired
Walk = Generator[Find, list[Job], T]

_job_values = operator.attrgetter(*Job.__slots__)


def copy_of(job: Job) -> Job:
    """Another job with the same values: 1 us, where dataclasses.replace() takes 5.6."""
    return Job(*_job_values(job))


class Unit:
    """What one call has read and what it wants to write. It reads its own writes.

    `found`: the jobs as the store has them, None for an id that it lacks. `jobs`: copies of them, and new ones, as
    they are to be; those in `changed` are to be written. `endings`: of those, the ones of whose end no worker tells.
    """

    def __init__(self, now: float, retention: BackendConfig) -> None:
        self.now = now
        self.retention = retention
        self.found: dict[str, Job | None] = {}
        self.jobs: dict[str, Job] = {}
        self.changed: dict[str, None] = {}
        self.endings: list[Job] = []
        self.ended: list[Job] = []  # whose children have not been looked at

    def find(self, what: Find) -> Walk[list[Job]]:
        return [self._copy(job) for job in (yield what)]

    def _copy(self, job: Job) -> Job:
        if self.found.get(job.id) is None:
            self.found[job.id] = job
            self.jobs[job.id] = copy_of(job)
        return self.jobs[job.id]

    def get(self, ids: Iterable[str]) -> Walk[list[Job | None]]:
        """The jobs in the order of the ids; None for one that is not known."""
        ids = list(ids)
        if missing := [task_id for task_id in dict.fromkeys(ids) if task_id not in self.found]:
            yield from self.find(Jobs(missing))
            for task_id in missing:
                self.found.setdefault(task_id, None)
        return [self.jobs.get(task_id) for task_id in ids]

    def write(self, job: Job, moved: bool = True, *, is_reported: bool = False) -> bool:
        """Have a job written if a move has changed it; whether one has. `is_reported`: a worker tells of its end."""
        if moved:
            self.jobs[job.id] = job
            self.changed[job.id] = None
            if job.status in FINISHED:
                self.ended.append(job)
                if not is_reported:
                    self.endings.append(job)
        return moved

    def changes(self) -> list[tuple[Job | None, Job]]:
        """Each job that is to be written: as it was, None if it is new, and as it is to be."""
        return [(self.found.get(task_id), self.jobs[task_id]) for task_id in self.changed]


def spread(unit: Unit) -> Walk[None]:
    """What the ends of this unit mean for children, theirs, and so on: one find a generation.

    Each end is followed to the last of its line before the next is looked at, so that the first of two failed parents
    is the reason of a child's end.
    """
    ends, unit.ended = unit.ended, []
    children = yield from _descendants(unit, ends)
    for end in ends:
        line = [end]
        for parent in line:  # grows as it is walked: a long line is too deep for recursion
            for child in children.get(parent.id, ()):
                if parent.status is SUCCESS:
                    unit.write(child, parent_succeeded(child, unit.now))
                elif unit.write(child, parent_failed(child, parent, unit.now, unit.retention)):
                    line.append(child)
    unit.ended = []


def _descendants(unit: Unit, ends: Sequence[Job]) -> Walk[dict[str, list[Job]]]:
    """The children of jobs that have ended, and all descendants of those that ended without success, by parent."""
    children: dict[str, list[Job]] = {}
    lost = {job.id for job in ends if job.status is not SUCCESS}
    generation = {job.id for job in ends}
    while generation:
        following: set[str] = set()
        children.update((parent, []) for parent in generation)
        for child in (yield from unit.find(Children(sorted(generation)))):
            parents = generation.intersection(child.parents)
            for parent in parents:
                children[parent].append(child)
            if not parents.isdisjoint(lost) and child.id not in children:
                following.add(child.id)
        generation = following
        lost |= following
    return children


def push(unit: Unit, jobs: Sequence[Job], before: Mapping[str, str] | None = None) -> Walk[list[str]]:
    """Take in new jobs; one whose id or unique key is there already changes nothing. The ids that hold their place.

    `before`: the same of jobs that came before them in the call.
    """
    ids = dict(before or {})  # of a parent whose key was taken, that of the job which stands in for it
    named = (task_id for job in jobs for task_id in (job.id, *job.parents))
    yield from unit.get(one for task_id in named for one in (task_id, ids.get(task_id, task_id)))
    holders = yield from _holders(unit, jobs)
    for job in jobs:
        holder = job.id if job.id in unit.jobs else None if job.unique is None else holders.get(job.unique)
        if holder is None:
            job.parents = tuple(dict.fromkeys(ids.get(parent, parent) for parent in job.parents))
            for parent in job.parents:
                if parent not in unit.jobs:
                    raise unknown_job(parent)
            job.submitted = unit.now
            begin(job, [unit.jobs[parent] for parent in job.parents], unit.now, unit.retention)
            unit.write(job)
            if job.unique is not None and job.status in UNFINISHED:
                holders[job.unique] = job.id
        ids[job.id] = holder or job.id
    unit.ended.clear()  # orphans from birth have no children yet
    return [ids[job.id] for job in jobs]


def _holders(unit: Unit, jobs: Iterable[Job]) -> Walk[dict[str, str]]:
    """The unique keys of these jobs that unfinished ones have, and the ids of those."""
    keys = [job.unique for job in jobs if job.unique is not None]
    found = (yield from unit.find(Holders(keys))) if keys else []
    return {cast("str", job.unique): job.id for job in found}


def adopt(unit: Unit, jobs: Sequence[Job], by: str) -> Walk[list[str]]:
    """Take in jobs of another store, each with its past and held by `by`; "" for one whose unique key is taken."""
    yield from unit.get(job.id for job in jobs)
    holders = yield from _holders(unit, jobs)
    for job in jobs:
        if job.id not in unit.jobs and (job.unique is None or holders.setdefault(job.unique, job.id) == job.id):
            new = copy_of(job)
            new.parents = tuple(dict.fromkeys(job.parents))
            new.started = new.finished = new.purge_at = new.result = new.progress = None
            new.cancel_requested = False
            new.status, new.worker, new.waits = BLOCKED, by, 1
            unit.write(new)
    return [job.id if job.id in unit.jobs else "" for job in jobs]


def settle(unit: Unit, outcomes: Sequence[Outcome]) -> Walk[list[bool]]:
    """Write down what attempts came to, in order; whether each still held its job."""
    written = []
    for job, outcome in zip((yield from unit.get(o.job.id for o in outcomes)), outcomes, strict=True):
        moved = job is not None and settle_one(job, outcome, unit.now, unit.retention)
        written.append(job is not None and unit.write(job, moved, is_reported=outcome.status in FINISHED))
    yield from spread(unit)
    return written


def rescue(unit: Unit, workers: Sequence[str], *, crashed: bool) -> Walk[None]:
    """Put back what these workers were running: they have died, or have left."""
    for job in (yield from unit.find(Running(workers))) if workers else ():
        unit.write(job, rescue_one(job, unit.now, unit.retention, crashed=crashed))
    yield from spread(unit)


def expire(unit: Unit, limit: int) -> Walk[bool]:
    """End up to `limit` jobs that have expired; whether there may be more of them."""
    late = yield from unit.find(Expired(unit.now, limit))
    for job in late:
        unit.write(job, expire_one(job, unit.now, unit.retention))
    yield from spread(unit)
    return len(late) >= limit


Action = Literal["cancel", "requeue", "hold", "release"]


def change(unit: Unit, ids: Sequence[str], action: Action, by: str | None) -> Walk[list[bool]]:
    """The one door for what people do to jobs, and moves to another store; whether each move was allowed."""
    jobs = yield from unit.get(ids)
    known = [job for job in jobs if job is not None]
    if action in ("requeue", "release"):
        yield from unit.get(parent for job in known for parent in job.parents)
    holders = (yield from _holders(unit, known)) if action == "requeue" else {}
    done = []
    for job in jobs:
        done.append(job is not None and unit.write(job, _changed(unit, job, action, by, holders)))
        if action == "cancel":
            yield from spread(unit)  # the next one may be a child of this one
    yield from spread(unit)
    return done


def _changed(unit: Unit, job: Job, action: Action, by: str | None, holders: dict[str, str]) -> bool:
    if action == "cancel":
        return cancel_one(job, by, unit.now, unit.retention)
    if action == "hold":
        return hold_one(job, by or "")
    parents = [unit.jobs.get(parent) for parent in job.parents]
    if action == "release":
        return release_one(job, parents, by or "", unit.now, unit.retention)
    if job.unique is not None and holders.get(job.unique, job.id) != job.id:
        return False  # an unfinished job has the key now
    if not requeue_one(job, parents, by, unit.now, unit.retention):
        return False
    holders |= {} if job.unique is None else {job.unique: job.id}
    return True


def drive(walk: Walk[T], look: Callable[[Find], list[Job]]) -> T:
    """Run a walk on a store that is read under a lock; the caller then applies its unit."""
    try:
        find = next(walk)
        while True:
            find = walk.send(look(find))
    except StopIteration as end:
        return cast("T", end.value)


async def drive_async(walk: Walk[T], look: Callable[[Find], Awaitable[list[Job]]]) -> T:
    """Run a walk on a store that answers later; the caller then applies its unit if what it read is as it was."""
    try:
        find = next(walk)
        while True:
            find = walk.send(await look(find))
    except StopIteration as end:
        return cast("T", end.value)


# ---------------------------------------------------------------------------
# 7. Brokers
#
# What a store must do. A Backend keeps results; a Broker is a Backend that
# also holds the jobs: it finds them, applies the rules, and wakes who waits.
# What an attempt came to, the worker judges. Only models cross this seam.
# ---------------------------------------------------------------------------

Topic = tuple[str, str]  # what to wait for: ("queue", its name), ("job", its id), ("worker", "") for notices


class WaiterHub:
    """Who waits for which topic, on one loop. A wake-up says "look again", and nothing else.

    Who looks before waiting says so by `look`: a wait returns at once if the topic was woken since.
    """

    def __init__(self) -> None:
        self.waiters: dict[Topic, list[asyncio.Future[Any]]] = {}
        self._woken: collections.Counter[Topic] = collections.Counter()
        self._looked: dict[Topic, int] = {}

    def look(self, topic: Topic) -> bool:
        """Note that somebody looks now; whether it was woken since the last time."""
        woken = self._woken[topic]
        missed = self._looked.get(topic) != woken
        self._looked[topic] = woken
        return missed

    def forget(self, topic: Topic) -> None:
        """Take it that nobody has looked yet."""
        self._looked.pop(topic, None)

    async def wait(self, topics: Iterable[Topic], timeout: float | None) -> Any:
        """Return when one of the topics is woken, with what that brings, or after `timeout` seconds."""
        topics = tuple(topics)
        if any(topic in self._looked and self._looked[topic] != self._woken[topic] for topic in topics):
            return None
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        for topic in topics:
            self.waiters.setdefault(topic, []).append(waiter)
        timer = None if timeout is None else loop.call_later(max(0.0, timeout), _resolve, waiter)
        try:
            return await waiter
        finally:
            if timer is not None:
                timer.cancel()
            for topic in topics:
                those = self.waiters.get(topic, [])
                if waiter in those:  # else it was woken
                    those.remove(waiter)
                if not those:
                    self.waiters.pop(topic, None)

    def wake(self, topic: Topic, brings: Any = None) -> None:
        """Have those who wait for the topic look again, and whoever waits next without having looked."""
        if topic in self._looked:
            self._woken[topic] += 1
        if topic in self.waiters:
            for waiter in self.waiters.pop(topic):
                _resolve(waiter, brings)

    def wake_all(self, kind: str) -> None:
        """Wake all topics of a kind."""
        for topic in [topic for topic in {*self.waiters, *self._looked} if topic[0] == kind]:
            self.wake(topic)

    def waiting(self, kind: str) -> list[str]:
        """The names of a kind that somebody waits for."""
        return [name for topic, name in self.waiters if topic == kind]

    def close(self, error: Exception | None) -> None:
        """End all waits, with `error`; None: they are of a loop that has ended."""
        waiters = [waiter for those in self.waiters.values() for waiter in those if not waiter.done()]
        self.waiters.clear()
        if error is not None:
            for waiter in dict.fromkeys(waiters):
                waiter.set_exception(error)


def _resolve(waiter: asyncio.Future[Any], result: Any = None) -> None:
    if not waiter.done():
        waiter.set_result(result)


class Backend:
    """Keeps the results of finished jobs. A subclass needs `record` and `get`; the rest has defaults.

    `store_id` tells, once it is open, which store it is, whatever it was called; None if that cannot be told.
    """

    store_id: str | None = None

    async def open(self) -> None:
        """Get ready to be used on the running loop. Called once before anything else."""

    async def close(self) -> None:
        """Give everything back. Callers that still wait get a BackendError."""

    async def record(self, results: Sequence[TaskResult[Any]]) -> None:
        """Keep finished results; one that was recorded before is replaced, a job of this store is left as it is."""
        raise NotImplementedError

    async def get(self, task_ids: Sequence[str]) -> list[TaskResult[Any] | None]:
        """The results, in the order of the ids; None for an id that is not known (yet)."""
        raise NotImplementedError

    async def wait_for(self, task_id: str, timeout: float | None) -> TaskResult[Any]:
        """The finished result of `task_id`.

        This default looks again and again; brokers are told. Cancelling it leaves nothing behind.

        Raises:
            TaskTimeoutError: it is not finished after `timeout` seconds (None: wait for ever).
        """
        pauses = itertools.chain((0.01, 0.02, 0.05), itertools.repeat(0.1))
        async with result_limit(task_id, timeout) as answered:
            while True:
                (result,) = await self.get([task_id])
                if result is not None and result.is_finished:
                    return result
                answered()
                await asyncio.sleep(next(pauses))
        raise AssertionError("the pauses never end")


_FIRST_LOOK = 0.5  # seconds that a store gets to say whether a job has ended, also if the time-out is shorter (0)


@contextlib.asynccontextmanager
async def result_limit(task_id: str, timeout: float | None) -> AsyncIterator[Callable[[], None]]:
    """A caller's time-out for a result, whatever the store does. The body calls what it gets when that has answered."""
    began, is_answered = asyncio.get_running_loop().time(), False
    limit = asyncio.timeout(None if timeout is None else max(timeout, _FIRST_LOOK))

    def answered() -> None:
        nonlocal is_answered
        is_answered = True
        if timeout is not None:
            limit.reschedule(began + timeout)

    try:
        async with limit:
            yield answered
    except TimeoutError:
        if not limit.expired():
            raise
        if is_answered:
            text = f"job {task_id} has not finished within {timeout:g} s; it goes on all the same"
            raise TaskTimeoutError(text) from None
        text = f"the store has not answered within {timeout:g} s, so that job {task_id} may have ended or not"
        raise TaskTimeoutError(text) from None


class Overview(NamedTuple):
    """What an operator sees at a look: the workers whose lease holds, the queues that are paused, and what was done.

    `activity` is by minute and task, the oldest first; `totals` since the store was made, a row of the minute 0 for
    each task. Both are empty where they were not asked for, or the broker does not keep them.
    """

    workers: list[WorkerInfo]
    paused: set[str]
    activity: list[Activity]
    totals: list[Activity]


class Broker(Backend):
    """Holds jobs on their way. It is also the backend unless another one is configured.

    `now` is the caller's wall clock in seconds since the epoch; leases run on the store's own clock.
    Every change is guarded: a late or doubled call changes nothing and is told so.

    A subclass writes the methods from `open` to `record`; those under *Written once* call them.
    """

    retention = BackendConfig()
    keeps_text = False  # whether arguments and results are kept as text
    keeps_activity = False  # whether heartbeats are to bring what the worker did

    async def push(self, jobs: Sequence[Job], *, now: float, by: str | None = None) -> list[str]:
        """Take in new jobs, all or none, and return their ids.

        A job whose id is there already, or whose `unique` key an unfinished job has, changes nothing and
        gets the old id. A job with `parents` is BLOCKED until all have succeeded, CANCELLED if one ended
        otherwise. Cancelling the call leaves it open whether the jobs are in.

        With `by`, they are jobs of another store, which come with their past and are held by `by`; one whose key an
        unfinished job has gets "", and a parent that is not known here counts as purged.

        Raises:
            TaskNotFoundError: a parent is not known.
            SerializationError: an argument cannot be kept.
            BrokerError: the store failed; nothing was written.
        """
        raise NotImplementedError

    async def claim(self, queue: str, *, limit: int, worker: str, now: float, crashes: int = LAST_CHANCE) -> list[Job]:
        """Take up to `limit` ready jobs of `queue` under the worker's lease, in order; each is RUNNING.

        What has come due is ready, what has expired is not given out. A job that was running in a crash is a
        suspect, given out alone: to a worker that runs nothing, before all others, and while it runs that worker
        gets nothing else. Only those with up to `crashes` of them are given out here, the most suspect first; 0 is
        the others' turn. Without a lease (no heartbeat yet, or lapsed) or from a paused queue: nothing.
        """
        raise NotImplementedError

    async def settle(self, outcomes: Sequence[Outcome], *, now: float) -> list[bool]:
        """Write down what attempts came to. False: that attempt no longer holds its job; nothing written.

        A job that someone has cancelled meanwhile does not go back: it is CANCELLED. A suspect that fails and
        is to be retried has survived a run beside nobody: it has one crash less.
        """
        raise NotImplementedError

    async def heartbeat(self, worker: WorkerInfo, *, lease: float, now: float) -> Notices:
        """Register the worker or extend its lease to `lease` seconds from here; 0 takes its leave.

        At a leave, what it still holds is released. The rows of `worker.activity` replace what this worker has
        handed over of the same minutes. Others whose leases have run out are judged by `judge_leases`. A repetition
        of the call, after its answer was lost, still tells of a lapse that the first one found.
        """
        raise NotImplementedError

    async def report(self, progress: Mapping[tuple[str, int], Progress]) -> None:
        """Keep how far running jobs are, by id and attempt; of another attempt than the latest nothing is kept."""
        raise NotImplementedError

    async def wait(self, topics: Sequence[Topic], timeout: float | None) -> None:
        """Return when a look may find something new of one of the topics, or after `timeout` seconds.

        A hint: it may come early or late. A claim is the look at a queue, a heartbeat that at notices.
        """
        raise NotImplementedError

    async def find(
        self, which: JobFilter, *, limit: int = 100, after: int | None = None, oldest_first: bool = False
    ) -> list[Job]:
        """Jobs, the latest submitted first or the oldest; `after`: the last `seq` of the page before."""
        raise NotImplementedError

    async def counts(self, which: JobFilter | None = None) -> dict[tuple[str, TaskStatus], int]:
        """How many jobs there are, by queue and state."""
        raise NotImplementedError

    async def overview(self, since: float | None = None) -> Overview:
        """Workers and paused queues; with `since`, also what was done from that minute on, at most a day back."""
        raise NotImplementedError

    async def change(self, task_ids: Sequence[str], action: Action, *, now: float, by: str | None = None) -> list[bool]:
        """Cancel or requeue jobs, hold them or release them, as the rules have it; False: not allowed, or unknown.

        `by` says who did it: a note of that stays in the job's history. A hold needs it, and its release the same.
        A broker that takes part in no move to another store refuses holds, and a push with `by`, by a ConfigError.
        """
        raise NotImplementedError

    async def remove(
        self, task_ids: Sequence[str] = (), *, by: str | None = None, before: float | None = None, limit: int = 1000
    ) -> Collection[str]:
        """Delete finished jobs, or with `by` those that it holds, as if they had never come; the ids that went.

        `before`: not these, but up to `limit` finished jobs whose retention ended before that moment. Whoever waits
        for a job that is gone gets a TaskNotFoundError.
        """
        raise NotImplementedError

    async def set_queue(self, queue: str, *, paused: bool) -> None:
        """Stop or resume handing out the jobs of `queue`. Running ones go on."""
        raise NotImplementedError

    # What a broker may have besides ------------------------------------------------------------

    def clone(self) -> Broker | None:
        """Another handle on the same store, for another thread's loop; None if there cannot be one."""
        return None

    def push_in(self, connection: Any, jobs: Sequence[Job], *, now: float) -> list[str] | Awaitable[list[str]]:
        """Take in jobs through the caller's own `connection`, inside the transaction it is in; it may be async."""
        raise ConfigError(f"{type(self).__name__} cannot enqueue inside a caller's transaction: use a SQL broker")

    # Written once ------------------------------------------------------------------------------

    async def get(self, task_ids: Sequence[str]) -> list[TaskResult[Any] | None]:
        found = {job.id: result_from(job) for job in await self.find(JobFilter(ids=task_ids), limit=len(task_ids))}
        return [found.get(task_id) for task_id in task_ids]

    async def wait_for(self, task_id: str, timeout: float | None) -> TaskResult[Any]:
        async with result_limit(task_id, timeout) as answered:
            while True:
                (result,) = await self.get([task_id])
                if result is None:
                    raise unknown_job(task_id)
                if result.is_finished:
                    return result
                answered()
                await self.wait([("job", task_id)], None)
        raise AssertionError("a wait without a time-out ends in a result")

    async def wait_ready(self, queues: Sequence[str], timeout: float) -> None:
        """Return when a claim from `queues` may find something; with none, when a heartbeat may bring news."""
        await self.wait([("queue", queue) for queue in queues] or [("worker", "")], timeout)

    async def cancel(self, task_id: str, *, now: float, by: str | None = None) -> bool:
        """End a job: at once if it waits, by its worker if it runs. False: finished already, or unknown."""
        return (await self.change([task_id], "cancel", now=now, by=by))[0]

    async def requeue(self, task_ids: Sequence[str], *, now: float, by: str | None = None) -> list[bool]:
        """Make FAILED and CANCELLED jobs ready again, with their failures and crashes forgotten.

        They wait again for parents that are not finished. False: it is in no such state, a parent has ended
        without success (requeue that one first), or an unfinished job has its `unique` key.
        """
        return await self.change(task_ids, "requeue", now=now, by=by)

    async def delete(self, task_ids: Sequence[str]) -> list[bool]:
        """Delete finished jobs at once, before their retention ends. False: it is unknown, or not finished."""
        gone = await self.remove(task_ids)
        return [task_id in gone for task_id in task_ids]

    async def purge(self, before: float, limit: int) -> int:
        """Delete up to `limit` finished jobs whose retention ended before `before`; how many went."""
        return len(await self.remove(before=before, limit=limit))

    async def workers(self) -> list[WorkerInfo]:
        """The workers whose lease holds."""
        return (await self.overview()).workers

    async def paused(self) -> set[str]:
        """The queues that are paused."""
        return (await self.overview()).paused

    async def activity(self, since: float) -> list[Activity]:
        """What all workers did in the minutes from `since` on, by minute and task, the oldest first."""
        return (await self.overview(since)).activity

    async def totals(self) -> list[Activity]:
        """What workers did since the store was made: a row of the minute 0 for each task. They never fall."""
        return (await self.overview(math.inf)).totals


def activity_texts(rows: Iterable[Activity]) -> dict[int, str]:
    """Rows as texts to be stored, one for each minute."""
    minutes: dict[int, list[Any]] = {}
    for row in rows:
        values = [row.minute, row.task, row.succeeded, row.failed, row.retried, row.waits, row.runs]
        values += [round(row.waited, 6), round(row.ran, 6)]
        minutes.setdefault(row.minute, []).append(values)
    return {minute: json.dumps(values) for minute, values in minutes.items()}


def sum_of_activity(texts: Iterable[str]) -> list[Activity]:
    """The rows in such texts, summed by minute and task, the oldest first."""
    sums = ActivitySums()
    for values in itertools.chain.from_iterable(map(json.loads, texts)):
        values[5:7] = ({int(bucket): number for bucket, number in part.items()} for part in values[5:7])
        sums.add(Activity(*values))
    return sums.in_order()


def totals_of_activity(numbers: Iterable[tuple[str, str, float]]) -> list[Activity]:
    """Rows of the minute 0 from (task, what, number): what is a place in such a text, as 2, or 6.3 in a histogram."""
    rows: dict[str, list[Any]] = {}
    for task, what, number in sorted(numbers):
        place, _, bucket = what.partition(".")
        row = rows.setdefault(task, [0, task, 0, 0, 0, {}, {}, 0.0, 0.0])
        if bucket:
            row[int(place)][int(bucket)] = int(number)
        else:
            row[int(place)] = number if int(place) > 4 else int(number)
    return [Activity(*row) for row in rows.values()]


# ---------------------------------------------------------------------------
# 8. Memory broker
#
# Jobs in this process: dictionaries, and a heap for each queue. Arguments and
# results are copied by the codec's rules, in and out, as if they were text.
# Everything happens on one loop, so that a method without an await is a
# transaction.
# ---------------------------------------------------------------------------


def _kept_result(job: Job) -> TaskResult[Any]:
    """The result, a copy for each who asks."""
    result = result_from(job)
    if not is_plain(result.result):
        result.result = copied(result.result)
    return result


def _copied_result(outcome: Outcome) -> Any:
    if outcome.text is not None:
        return decode(outcome.text)
    if outcome.status is not SUCCESS or is_plain(outcome.result):
        return outcome.result
    return copy_returned(outcome.result, outcome.job.task)


_Heap = list[tuple[Any, int, str]]  # what orders the jobs, their seq and id; an entry may be out of date


class MemoryBroker(Broker):
    """Jobs in the memory of this process; gone when it ends. For one event loop.

    Leases run on the monotonic side of `clock`, due times on its wall side.
    """

    def __init__(
        self, config: BrokerConfig | None = None, retention: BackendConfig | None = None, clock: Clock | None = None
    ) -> None:
        self.config = config or BrokerConfig()
        self.retention = retention or BackendConfig()
        self._clock = clock or Clock()
        self._size = self.config.max_queue_size
        self.hub = WaiterHub()
        self._jobs: dict[str, Job] = {}
        self._ready: dict[tuple[str, int], _Heap] = collections.defaultdict(list)  # by queue and crashes
        self._waiting: _Heap = []  # SCHEDULED and RETRYING, by `due`
        self._expiring: _Heap = []
        self._running: dict[str, dict[str, Job]] = collections.defaultdict(dict)  # by worker
        self._cancelling: set[str] = set()  # running jobs that someone wants to end
        # In the order of their ends. A dict would walk past all those that went before to find its first one.
        self._finished: collections.OrderedDict[str, Job] = collections.OrderedDict()
        self._unique: dict[str, str] = {}
        self._children: dict[str, dict[str, None]] = {}  # of parents that have not finished
        self._depth: collections.Counter[str] = collections.Counter()  # ready jobs, for max_queue_size only
        self._workers: dict[str, WorkerInfo] = {}
        self._leases: dict[str, Lease] = {}
        self._paused: set[str] = set()
        self._activity = ActivitySums()
        self._forgotten = ActivitySums()  # what the minutes that are not kept any more came to
        self._endings: collections.deque[Job] = collections.deque(maxlen=ENDINGS_KEPT)
        self._sequence = itertools.count(1)
        self._is_upkeep_left = False  # the loop is about to take another step
        self._given = 0  # jobs given out since the loop had its turn
        self._pid = os.getpid()

    async def open(self) -> None:
        if self._pid != os.getpid():  # a fork: both processes would run the same jobs
            if waiting := len(self._jobs) - len(self._finished):
                logger.warning("%d jobs in memory stay with the process that this one was forked from", waiting)
            MemoryBroker.__init__(self, self.config, self.retention, self._clock)
        self.hub.close(None)

    async def close(self) -> None:
        self.hub.close(BrokerError("the broker was closed while this call was waiting"))

    # Jobs and their indexes --------------------------------------------------------------------

    def _run(self, unit: Unit, walk: Walk[T]) -> T:
        """Run a walk of the rules, and write down what has become of the jobs."""
        answer = drive(walk, self._look)
        for before, job in unit.changes():
            self._jobs[job.id] = job
            if before is None:
                self._add(job)
            else:
                self._leave(before.status, before)
            self._enter(job)
            if job.status in FINISHED:
                self._children.pop(job.id, None)
        for job in unit.endings:
            self._note_ending(job)
        return answer

    def _look(self, find: Find) -> list[Job]:
        if isinstance(find, Expired):
            return self._pop_expired(find)
        if isinstance(find, Running):
            return [job for worker in find.workers for job in self._running.get(worker, {}).values()]
        if isinstance(find, Jobs):
            ids: Iterable[str] = find.ids
        elif isinstance(find, Children):
            ids = [child for parent in find.of for child in self._children.get(parent, ())]
        else:
            ids = [self._unique[key] for key in find.keys if key in self._unique]
        return [self._jobs[task_id] for task_id in dict.fromkeys(ids) if task_id in self._jobs]

    def _pop_expired(self, find: Expired) -> list[Job]:
        found: dict[str, Job] = {}
        while self._expiring and self._expiring[0][0] <= find.now and len(found) < find.limit:
            expires, seq, task_id = heapq.heappop(self._expiring)
            job = self._jobs.get(task_id)
            if job is not None and (job.expires, job.seq) == (expires, seq) and is_expired(job, find.now):
                found[task_id] = job
        return list(found.values())

    def _add(self, job: Job) -> None:
        job.seq = next(self._sequence)
        self._jobs[job.id] = job
        if job.expires is not None:
            heapq.heappush(self._expiring, (job.expires, job.seq, job.id))
            self._compact(self._expiring)

    def _enter(self, job: Job) -> None:
        """Put a job where its state belongs, and wake who waits for that."""
        if job.unique is not None and job.status not in FINISHED:
            self._unique[job.unique] = job.id
        if job.status is PENDING:
            heapq.heappush(self._ready[job.queue, job.crashes], (job.priority, job.seq, job.id))
            if self._size is not None:
                self._depth[job.queue] += 1
            self.hub.wake(("queue", job.queue))
        elif job.status in FINISHED:
            self._enter_finished(job)
        elif job.status is BLOCKED:
            for parent in job.parents if job.worker is None else ():
                if parent in self._jobs and self._jobs[parent].status not in FINISHED:
                    self._children.setdefault(parent, {})[job.id] = None
        elif job.status is RUNNING:
            self._running[cast("str", job.worker)][job.id] = job
            if job.cancel_requested:
                self._cancelling.add(job.id)
                self.hub.wake(("worker", ""))
        else:
            heapq.heappush(self._waiting, (job.due, job.seq, job.id))
            self.hub.wake(("queue", job.queue))

    def _enter_finished(self, job: Job) -> None:
        self._finished[job.id] = job
        if len(self._finished) > self.retention.max_results:
            del self._jobs[self._finished.popitem(last=False)[0]]
        if job.unique is not None:
            self._unique.pop(job.unique, None)
        # With the result as it is now: the job may be requeued, or be gone, before they look.
        if self.hub.waiters and ("job", job.id) in self.hub.waiters:
            self.hub.wake(("job", job.id), _kept_result(job))

    def _leave(self, status: TaskStatus, job: Job) -> None:
        """Take a job from where it was, so far as its entries do not prove to be out of date by themselves."""
        if status is RUNNING:
            self._running[cast("str", job.worker)].pop(job.id, None)
            self._cancelling.discard(job.id)
        elif status in FINISHED:
            self._finished.pop(job.id, None)
        elif status is PENDING and self._size is not None:
            self._depth[job.queue] -= 1
            self.hub.wake(("room", job.queue))

    def _note_ending(self, job: Job) -> None:
        self._endings.append(Job(job.id, job.task, attempt=job.attempt, status=job.status, error=job.error))

    def _compact(self, heap: _Heap) -> None:
        """Drop the entries of jobs that have ended, if most are such. A claim looks at the top of a heap only."""
        if len(heap) > 2 * len(self._jobs) + 1000:
            alive = (entry for entry in heap if (job := self._jobs.get(entry[2])) and job.status not in FINISHED)
            heap[:] = sorted(set(alive))

    # Taking in ---------------------------------------------------------------------------------

    async def push(self, jobs: Sequence[Job], *, now: float, by: str | None = None) -> list[str]:
        for job in jobs:
            if job.payload is None:
                job.args, job.kwargs = copy_arguments(job)
        if by is not None:
            unit = Unit(now, self.retention)
            return self._run(unit, adopt(unit, jobs, by))
        if self._size is not None:
            await self._make_room(jobs, self._size)
        if any(job.parents for job in jobs):
            unit = Unit(now, self.retention)
            return self._run(unit, push(unit, jobs))
        return [self._push_one(job, now) for job in jobs]

    def _push_one(self, job: Job, now: float) -> str:
        if job.id in self._jobs:
            return job.id
        if job.unique is not None and job.unique in self._unique:
            return self._unique[job.unique]
        job.submitted = now
        begin(job, (), now, self.retention)
        self._add(job)
        self._enter(job)
        return job.id

    async def _make_room(self, jobs: Sequence[Job], size: int) -> None:
        while (queue := self._full_queue(jobs, size)) is not None:
            if self.config.when_full == "raise":
                raise QueueFullError(
                    f"queue {queue!r} is full (max_queue_size={size}): try again later, "
                    "raise the limit, or configure when_full='wait'"
                )
            await self.hub.wait([("room", queue)], None)

    def _full_queue(self, jobs: Sequence[Job], size: int) -> str | None:
        """A queue that has no room for these jobs; more jobs than a queue ever holds fit into an empty one."""
        new = (job.queue for job in jobs if job.id not in self._jobs and job.unique not in self._unique)
        for queue, more in collections.Counter(new).items():
            if self._depth[queue] and self._depth[queue] + more > size:
                return queue
        return None

    # Handing out -------------------------------------------------------------------------------

    async def claim(self, queue: str, *, limit: int, worker: str, now: float, crashes: int = LAST_CHANCE) -> list[Job]:
        if self._given >= 100:
            self._given = 0
            await asyncio.sleep(0)  # a worker whose jobs never wait must not keep the loop from others
        may_claim = queue not in self._paused and self._has_lease(worker)
        self._upkeep(now, expires=may_claim)
        if not may_claim:
            return []
        self._rescue_lapsed(now, by=worker)
        held = self._running[worker]
        if len(held) == 1 and next(iter(held.values())).crashes:
            return []  # a suspect, which runs alone
        for number in range(crashes, 0, -1) if not held else ():
            if (queue, number) in self._ready and (suspects := self._take(queue, number, 1, worker, now)):
                return suspects
        while True:
            jobs = self._take(queue, 0, limit, worker, now)
            if jobs is not None:
                return jobs
            await asyncio.sleep(0)  # it has met with nothing but entries out of date, and there may be more

    def _has_lease(self, worker: str) -> bool:
        return worker in self._leases and self._leases[worker].until > self._clock.monotonic()

    def _take(self, queue: str, crashes: int, limit: int, worker: str, now: float) -> list[Job] | None:
        """Start up to `limit` ready jobs; None if the others shall have the loop first."""
        heap = self._ready.get((queue, crashes))
        jobs: list[Job] = []
        passed = 0
        while heap and len(jobs) < limit and passed < UPKEEP_STEP:
            _, seq, task_id = heapq.heappop(heap)
            job = self._jobs.get(task_id)
            # Cancelled on the heap, or requeued and on it twice; or expired, and for the upkeep to end.
            if job is None or (job.seq, job.crashes) != (seq, crashes) or not start(job, worker, now):
                passed += 1
                continue
            jobs.append(job)
            self._running[worker][task_id] = job
            if self._size is not None:
                self._leave(PENDING, job)
        self._given += len(jobs)
        return None if passed == UPKEEP_STEP and not jobs else jobs

    def _first_suspect(self, queue: str) -> int:
        """The fewest crashes of a job that waits for a worker that runs nothing else; 0 if there is none."""
        for crashes in range(1, MAX_CRASHES):
            for _, seq, task_id in self._ready.get((queue, crashes), ()):
                job = self._jobs.get(task_id)
                if job is not None and (job.seq, job.crashes, job.status) == (seq, crashes, PENDING):
                    return crashes
        return 0

    def _upkeep(self, now: float, *, expires: bool = True) -> None:
        """Promote what is due and end what has expired, a bounded step of it; the loop goes on with what is left."""
        left = bool(self._waiting) and self._waiting[0][0] <= now and self._promote(now)
        if expires and self._expiring and self._expiring[0][0] <= now:
            unit = Unit(now, self.retention)
            left |= self._run(unit, expire(unit, UPKEEP_STEP))
        if left and not self._is_upkeep_left:
            self._is_upkeep_left = True
            asyncio.get_running_loop().call_soon(self._go_on, now)

    def _go_on(self, now: float) -> None:
        self._is_upkeep_left = False
        self._upkeep(now)

    def _promote(self, now: float) -> bool:
        for _ in range(UPKEEP_STEP):
            if not self._waiting or self._waiting[0][0] > now:
                return False
            due, seq, task_id = heapq.heappop(self._waiting)
            job = self._jobs.get(task_id)
            if job is not None and (job.due, job.seq) == (due, seq) and promote_one(job, now):
                self._enter(job)
        return True

    def _rescue_lapsed(self, now: float, by: str, *, beats: bool = False, is_new: bool = False) -> list[str]:
        """Put back the jobs of workers that `by` may take for dead. A claim leaves those in doubt to heartbeats."""
        clock = self._clock.monotonic()
        leases = self._leases.items()
        lapsed = {w: o for w, o in leases if o.until <= clock and w != by and (beats or not o.graced)}
        if not lapsed:
            return []
        dead, fresh = judge_leases(lapsed, self._leases.get(by), clock, is_new=is_new)
        for name in fresh if beats else ():
            self._leases[name] = Lease(clock + lapsed[name].length, lapsed[name].length, graced=True)
        self._remove_workers(dead, now, crashed=True)
        return dead

    def _remove_workers(self, names: Sequence[str], now: float, *, crashed: bool) -> None:
        """The objects that they may still hold are left to them: a unit changes copies."""
        unit = Unit(now, self.retention)
        self._run(unit, rescue(unit, names, crashed=crashed))
        for name in names:
            self._workers.pop(name, None)
            self._leases.pop(name, None)
            self._running.pop(name, None)

    # Writing down ------------------------------------------------------------------------------

    async def settle(self, outcomes: Sequence[Outcome], *, now: float) -> list[bool]:
        results = [_copied_result(outcome) for outcome in outcomes]  # before anything is written: it may be refused
        ended: list[Job] = []
        written = [self._settle_one(o, result, now, ended) for o, result in zip(outcomes, results, strict=True)]
        if ended:
            unit = Unit(now, self.retention)
            unit.ended = ended
            self._run(unit, spread(unit))
            for job in ended:
                del self._children[job.id]
        return written

    def _settle_one(self, outcome: Outcome, result: Any, now: float, ended: list[Job]) -> bool:
        """In place, without a copy; a parent that has `ended` is for the caller to tell its children of."""
        job = self._jobs.get(outcome.job.id)
        worker, started = (None, now) if job is None else (job.worker, job.started or now)
        if job is None or not settle_one(job, outcome, now, self.retention):
            return False
        self._running[cast("str", worker)].pop(job.id, None)
        if self._cancelling:
            self._cancelling.discard(job.id)
        job.result = result
        if outcome.status is SUCCESS or outcome.ending == "failure":
            self._activity.count(job, outcome.status, started, now)
        if job.status in FINISHED:
            self._enter_finished(job)
            if outcome.status not in FINISHED:
                self._note_ending(job)
            if self._children and job.id in self._children:
                ended.append(job)
            return True
        if job.expires is not None:
            heapq.heappush(self._expiring, (job.expires, job.seq, job.id))
        self._enter(job)
        return True

    # Workers and waiting -----------------------------------------------------------------------

    async def heartbeat(self, worker: WorkerInfo, *, lease: float, now: float) -> Notices:
        if lease <= 0:
            self._remove_workers([worker.id], now, crashed=False)
            return Notices()
        lost = self._rescue_lapsed(now, by=worker.id, beats=True, is_new=not worker.term)
        term = self._workers[worker.id].term if worker.id in self._workers else os.urandom(4).hex()
        lapsed = worker.term not in ("", term)
        worker.seen, worker.term = now, term
        may_claim = self._has_lease(worker.id)
        self._workers[worker.id] = worker
        self._leases[worker.id] = Lease(self._clock.monotonic() + lease, lease)
        for queue in () if may_claim else worker.queues:
            self.hub.wake(("queue", queue))
        suspects = [self._first_suspect(queue) for queue in worker.queues if queue not in self._paused]
        return Notices(
            cancelled=[task_id for task_id in self._cancelling if self._jobs[task_id].worker == worker.id],
            lapsed=lapsed,
            paused=frozenset(self._paused),
            suspects=min(filter(None, suspects), default=0),
            lost_workers=lost,
            endings=[self._endings.popleft() for _ in range(min(ENDINGS_TAKEN, len(self._endings)))],
        )

    async def report(self, progress: Mapping[tuple[str, int], Progress]) -> None:
        for (task_id, attempt), reported in progress.items():
            job = self._jobs.get(task_id)
            if job is not None and job.status is RUNNING and job.attempt == attempt:
                job.progress = reported

    async def wait(self, topics: Sequence[Topic], timeout: float | None) -> None:
        if self._waiting and topics[0][0] == "queue":
            due = self._waiting[0][0] - self._clock.time()
            timeout = due if timeout is None else min(timeout, due)
        await self.hub.wait(topics, timeout)

    async def record(self, results: Sequence[TaskResult[Any]]) -> None:
        for result in results:
            known = self._jobs.get(result.task_id)
            if known is None or not known.queue:  # else it is a job, which is in a queue
                job = recorded(result, self.retention)
                job.result = copied(result.result)
                self._drop([job.id])
                self._add(job)
                self._enter(job)

    # Looking -----------------------------------------------------------------------------------

    async def get(self, task_ids: Sequence[str]) -> list[TaskResult[Any] | None]:
        jobs = map(self._jobs.get, task_ids)
        return [None if job is None else _kept_result(job) for job in jobs]

    async def wait_for(self, task_id: str, timeout: float | None) -> TaskResult[Any]:
        job = self._jobs.get(task_id)
        if job is not None and job.status in FINISHED:
            return _kept_result(job)
        result: TaskResult[Any] | None = None
        if job is not None:
            async with result_limit(task_id, timeout) as answered:
                answered()
                result = await self.hub.wait([("job", task_id)], None)
        if result is None:
            raise unknown_job(task_id)
        return result

    async def find(
        self, which: JobFilter, *, limit: int = 100, after: int | None = None, oldest_first: bool = False
    ) -> list[Job]:
        jobs: Iterable[Job] = self._jobs.values() if oldest_first else reversed(self._jobs.values())
        if which.ids is not None:
            known = [self._jobs[task_id] for task_id in set(which.ids) & self._jobs.keys()]
            jobs = sorted(known, key=lambda job: job.seq, reverse=not oldest_first)
        is_behind = operator.gt if oldest_first else operator.lt
        found = (job for job in jobs if which.matches(job) and (after is None or is_behind(job.seq, after)))
        return [
            dataclasses.replace(job, args=args, kwargs=kwargs, result=copied(job.result))
            for job in itertools.islice(found, limit)
            for args, kwargs in [(job.args, job.kwargs) if job.payload is not None else copy_arguments(job)]
        ]

    async def counts(self, which: JobFilter | None = None) -> dict[tuple[str, TaskStatus], int]:
        which = which or JobFilter()
        return dict(collections.Counter((j.queue, j.status) for j in self._jobs.values() if which.matches(j)))

    async def overview(self, since: float | None = None) -> Overview:
        clock = self._clock.monotonic()
        return Overview(
            [info for name, info in self._workers.items() if self._leases[name].until > clock],
            set(self._paused),
            [] if since is None else [row.copy() for row in self._activity.in_order() if row.minute >= since],
            [] if since is None else self._totals(),
        )

    def _totals(self) -> list[Activity]:
        sums = ActivitySums()
        for row in (*self._forgotten.values(), *self._activity.values()):
            sums.add(dataclasses.replace(row, minute=0))
        return sums.in_order()

    # By hand -----------------------------------------------------------------------------------

    async def change(self, task_ids: Sequence[str], action: Action, *, now: float, by: str | None = None) -> list[bool]:
        unit = Unit(now, self.retention)
        done = self._run(unit, change(unit, task_ids, action, by))
        self._compact(self._waiting)
        for heap in self._ready.values() if action == "cancel" else ():
            self._compact(heap)
        return done

    async def remove(
        self, task_ids: Sequence[str] = (), *, by: str | None = None, before: float | None = None, limit: int = 1000
    ) -> Collection[str]:
        if before is not None:
            for key in [key for key in self._activity if key[0] < before - ACTIVITY_KEPT]:
                self._forgotten.add(dataclasses.replace(self._activity.pop(key), minute=0))
            due = ((job.purge_at, job.seq, job.id) for job in self._finished.values() if (job.purge_at or 0.0) < before)
            gone = {task_id for *_, task_id in heapq.nsmallest(limit, due)}
        else:
            jobs = [self._jobs[task_id] for task_id in task_ids if task_id in self._jobs]
            gone = {job.id for job in jobs if (job.status in FINISHED if by is None else is_held(job, by))}
        self._drop(gone)
        return gone

    def _drop(self, ids: Iterable[str]) -> None:
        for task_id in ids:
            job = self._jobs.pop(task_id, None)
            self._finished.pop(task_id, None)
            if job is not None and job.unique is not None and self._unique.get(job.unique) == task_id:
                del self._unique[job.unique]
            self.hub.wake(("job", task_id))

    async def set_queue(self, queue: str, *, paused: bool) -> None:
        check_queue(queue)
        if paused:
            self._paused.add(queue)
        else:
            self._paused.discard(queue)
            self.hub.wake(("queue", queue))
        self.hub.wake(("worker", ""))


# ---------------------------------------------------------------------------
# 9. SQLite broker
#
# A table of jobs in one file: what the rules read and write, and the hot moves
# as one statement for a whole group over a JSON text, for two reasons, both
# measured: sqlite3 gives up the GIL for a statement, not for a row; and 1,000
# rows of executemany take 10.0 us each, as one INSERT ... FROM json_each 4.2 us.
# Above it one writer thread that commits what waits as one group, reads that
# never wait for a writer, and loopback datagrams that wake other processes.
# ---------------------------------------------------------------------------


def _quoted(statuses: Iterable[TaskStatus]) -> str:
    """States as an SQL list, in their own order, so that a query's text equals its partial index's."""
    return "(" + ", ".join(f"'{status}'" for status in TaskStatus if status in set(statuses)) + ")"


_DUE_LATER = _quoted((SCHEDULED, RETRYING))
_NOT_BEGUN = _quoted(NOT_BEGUN)
_FINISHED = _quoted(FINISHED)
_UNFINISHED = _quoted(UNFINISHED)

_JOB_TABLE = """
CREATE TABLE flowrra_job (
    seq INTEGER PRIMARY KEY,  -- the order of submission
    id TEXT NOT NULL UNIQUE, task TEXT NOT NULL, queue TEXT NOT NULL, priority INTEGER NOT NULL,
    status TEXT NOT NULL, payload TEXT NOT NULL, submitted REAL NOT NULL,
    due REAL, expires REAL, unique_key TEXT, parents TEXT, overrides TEXT,
    attempt INTEGER NOT NULL DEFAULT 0, failures INTEGER NOT NULL DEFAULT 0, crashes INTEGER NOT NULL DEFAULT 0,
    cancel_requested INTEGER NOT NULL DEFAULT 0,
    worker TEXT, started REAL, finished REAL, purge_at REAL,
    result TEXT, error TEXT, traceback TEXT, progress TEXT, history TEXT,
    CHECK (CASE status  -- one CASE: the same as four CHECKs costs each write 2.5 us
        WHEN 'pending' THEN finished IS NULL
        WHEN 'running' THEN finished IS NULL AND attempt > 0 AND worker IS NOT NULL AND started IS NOT NULL
        WHEN 'success' THEN finished IS NOT NULL AND attempt > 0
        WHEN 'scheduled' THEN finished IS NULL AND due IS NOT NULL
        WHEN 'retrying' THEN finished IS NULL AND due IS NOT NULL AND failures > 0
        WHEN 'blocked' THEN finished IS NULL
        WHEN 'failed' THEN finished IS NOT NULL
        WHEN 'cancelled' THEN finished IS NOT NULL
        ELSE false END)
);
"""
_JOB_INDEXES = f"""
-- Waiting jobs stay out of the line by their status: with `due` in this index every claim sorts the
-- backlog (8,000 jobs/s instead of 60,000). Suspects have a line of their own, by their crashes.
CREATE INDEX flowrra_ready ON flowrra_job (queue, priority, seq) WHERE status = 'pending' AND crashes = 0;
CREATE INDEX flowrra_suspect ON flowrra_job (queue, crashes, priority, seq) WHERE status = 'pending' AND crashes > 0;
CREATE INDEX flowrra_due ON flowrra_job (due) WHERE status IN {_DUE_LATER};
CREATE INDEX flowrra_expiring ON flowrra_job (expires)
    WHERE expires IS NOT NULL AND attempt = 0 AND status IN {_NOT_BEGUN};
CREATE INDEX flowrra_running ON flowrra_job (worker, crashes) WHERE status = 'running';
CREATE INDEX flowrra_cancelling ON flowrra_job (worker) WHERE status = 'running' AND cancel_requested = 1;
CREATE INDEX flowrra_purge ON flowrra_job (purge_at) WHERE purge_at IS NOT NULL;
CREATE UNIQUE INDEX flowrra_unique ON flowrra_job (unique_key)
    WHERE unique_key IS NOT NULL AND status IN {_UNFINISHED};
"""
_OTHER_TABLES = """
CREATE TABLE flowrra_dependency (  -- parents that a blocked job still waits for; '' if it is held
    parent TEXT NOT NULL, child INTEGER NOT NULL, PRIMARY KEY (parent, child)
) WITHOUT ROWID;
CREATE INDEX flowrra_child ON flowrra_dependency (child);
CREATE TABLE flowrra_worker (
    id TEXT PRIMARY KEY, host TEXT NOT NULL,
    home TEXT NOT NULL,  -- where its pid means something: boot and pid namespace
    pid INTEGER NOT NULL,
    birth TEXT NOT NULL,  -- when the process began, since pids are used again
    queues TEXT NOT NULL, tasks TEXT NOT NULL, started REAL NOT NULL, seen REAL NOT NULL,
    running INTEGER NOT NULL, version TEXT NOT NULL,
    lease REAL NOT NULL  -- on the monotonic clock of this boot
);
CREATE TABLE flowrra_listener (  -- loopback ports of those who want to be told
    port INTEGER PRIMARY KEY, kinds TEXT NOT NULL, home TEXT NOT NULL, pid INTEGER NOT NULL, birth TEXT NOT NULL
);
CREATE TABLE flowrra_paused (queue TEXT PRIMARY KEY);
"""

_TROUBLED = """
-- For failed and cancelled jobs. A column or condition on `status` would cost every job's moves 2 us of 14.
CREATE INDEX flowrra_troubled ON flowrra_job (seq) WHERE error IS NOT NULL;
"""
_CHILD_GONE = """
CREATE TRIGGER flowrra_child_gone AFTER DELETE ON flowrra_job WHEN old.parents IS NOT NULL BEGIN
    DELETE FROM flowrra_family WHERE child = old.seq AND parent IN (SELECT value FROM json_each(old.parents));
END;
"""
_SCHEMA_2 = f"""{_TROUBLED}
CREATE TABLE flowrra_family (  -- all parents of all jobs
    parent TEXT NOT NULL, child INTEGER NOT NULL, PRIMARY KEY (parent, child)
) WITHOUT ROWID;
INSERT INTO flowrra_family SELECT DISTINCT value, seq FROM flowrra_job, json_each(parents) WHERE parents IS NOT NULL;
{_CHILD_GONE}
CREATE TABLE flowrra_activity (
    minute INTEGER NOT NULL, worker TEXT NOT NULL, counts TEXT NOT NULL, PRIMARY KEY (minute, worker)
) WITHOUT ROWID;
ALTER TABLE flowrra_worker ADD COLUMN memory INTEGER;
"""

_SCHEMA_3 = """
-- Seconds; NULL: of an older Flowrra. A lease that ends later than this from now is of an earlier boot.
ALTER TABLE flowrra_worker ADD COLUMN length REAL;
-- Whether its lease is a fresh one that another worker gave it after an outage.
ALTER TABLE flowrra_worker ADD COLUMN graced INTEGER NOT NULL DEFAULT 0;
ALTER TABLE flowrra_worker ADD COLUMN term TEXT NOT NULL DEFAULT '';
"""

# A `seq` is not used again when its job is deleted: an attempt that outlived its job would fit the next one. And
# `expires` is forgotten when an attempt begins to run, so that a job which was handed back untouched still has it.
_NEVER_AGAIN = f"""
{
    _JOB_TABLE.replace("flowrra_job", "flowrra_new_job")
    .replace("PRIMARY KEY,", "PRIMARY KEY AUTOINCREMENT,")
    .replace("'success' THEN finished IS NOT NULL AND attempt > 0", "'success' THEN finished IS NOT NULL")
}
INSERT INTO flowrra_new_job SELECT * FROM flowrra_job;
UPDATE flowrra_new_job SET expires = NULL WHERE expires IS NOT NULL AND attempt > 0;
DROP TABLE flowrra_job;
ALTER TABLE flowrra_new_job RENAME TO flowrra_job;
{_JOB_INDEXES.replace("expires IS NOT NULL AND attempt = 0 AND", "expires IS NOT NULL AND")}{_TROUBLED}{_CHILD_GONE}
"""

_SCHEMA_TOTALS = """
CREATE TABLE flowrra_total (  -- what workers did since there is this table; see totals_of_activity
    task TEXT NOT NULL, what TEXT NOT NULL, number REAL NOT NULL, PRIMARY KEY (task, what)
) WITHOUT ROWID;
"""

_SCHEMA_ENDINGS = """
CREATE TABLE flowrra_ending (  -- jobs that have ended without an attempt that tells of it, until a heartbeat does
    seq INTEGER PRIMARY KEY AUTOINCREMENT, job TEXT NOT NULL  -- see ended_job
);
"""

# BLOCKED is what waits for something: parents that have not finished, and a hold. It is counted in the job's row, so
# that only the children of a parent that ends are looked at.
_SCHEMA_WAITS = """
ALTER TABLE flowrra_job ADD COLUMN waits INTEGER NOT NULL DEFAULT 0;
UPDATE flowrra_job SET waits = (SELECT count(*) FROM flowrra_dependency WHERE child = seq) WHERE status = 'blocked';
CREATE INDEX flowrra_blocked ON flowrra_job (seq) WHERE waits > 0;
DROP TABLE flowrra_dependency;
"""

# Entry n takes a store from schema n to n + 1. The version lives in a table of our own, since the file
# may be the user's application database, whose `user_version` is the application's.
_MIGRATIONS = (
    _JOB_TABLE + _JOB_INDEXES + _OTHER_TABLES,
    _SCHEMA_2,
    _SCHEMA_3,
    _NEVER_AGAIN,
    _SCHEMA_TOTALS,
    _SCHEMA_ENDINGS,
    _SCHEMA_WAITS,
)

# By what a minute's rows say more than those that they replace: told twice, they count once.
_COUNT_ACTIVITY = """
    INSERT INTO flowrra_total
    SELECT json_extract(row.value, '$[1]'), part.key || coalesce('.' || one.key, ''), sum(sign * one.value) AS number
    FROM (SELECT 1 AS sign, :counts AS counts UNION ALL
            SELECT -1, counts FROM flowrra_activity WHERE minute = :minute AND worker = :worker) AS texts,
        json_each(counts) AS row, json_each(row.value) AS part, json_each(part.value) AS one
    WHERE part.key > 1 GROUP BY 1, 2 HAVING number != 0
    ON CONFLICT DO UPDATE SET number = number + excluded.number"""

_ALIKE = "task, queue, priority, status, submitted, due, expires, overrides"
_PUSH_ONE = (
    f"INSERT INTO flowrra_job (id, payload, {_ALIKE}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
)
_PUSH_ALIKE = f"""
    INSERT INTO flowrra_job (id, payload, {_ALIKE})
    SELECT key, value, ?, ?, ?, ?, ?, ?, ?, ? FROM json_each(?) WHERE true ON CONFLICT DO NOTHING"""

# A job's columns, in the order of its fields. `result` is large, and no rule reads it.
_BORN = "id, task, queue, priority, payload, submitted, unique_key, parents, overrides"
_CHANGING = """status, due, expires, attempt, failures, crashes, worker, started, finished, purge_at, result, error,
    traceback, progress, history, cancel_requested, waits"""
_COLUMNS = f"seq, {_BORN}, {_CHANGING}"
_JOBS = f"SELECT {_COLUMNS.replace('result', 'NULL')} FROM flowrra_job WHERE"
_LISTED = "IN (SELECT value FROM json_each(?))"
_FINDS: Mapping[type[Find], str] = {
    Jobs: f"{_JOBS} id {_LISTED}",
    Children: f"""{_JOBS} status = 'blocked' AND seq IN
        (SELECT f.child FROM json_each(?) CROSS JOIN flowrra_family AS f ON f.parent = value) ORDER BY seq""",
    Holders: f"{_JOBS} unique_key {_LISTED} AND unique_key IS NOT NULL AND status IN {_UNFINISHED}",
    Running: f"{_JOBS} worker {_LISTED} AND status = 'running'",
    Expired: f"""{_JOBS} expires IS NOT NULL AND status IN {_NOT_BEGUN} AND expires <= ?
        ORDER BY expires, seq LIMIT ?""",
}
_places = ", ".join("?" * len(f"{_BORN}, {_CHANGING}".split(",")))
_INSERT = f"INSERT INTO flowrra_job ({_BORN}, {_CHANGING}) VALUES ({_places})"
_UPDATE = f"UPDATE flowrra_job SET {', '.join(f'{name.strip()} = ?' for name in _CHANGING.split(','))} WHERE seq = ?"
_PROMOTE = f"""
    UPDATE flowrra_job SET status = 'pending' WHERE seq IN
        (SELECT seq FROM flowrra_job WHERE status IN {_DUE_LATER} AND due <= ? ORDER BY due, seq LIMIT ?)"""
_SUCCEED = """
    UPDATE flowrra_job SET status = 'success', result = v.value, finished = ?, purge_at = ?,
        error = NULL, traceback = NULL
    FROM json_each(?) AS v
    WHERE seq = CAST(v.key AS INTEGER) AND status = 'running' AND attempt = ?
        AND +worker = ?  -- the plus keeps the planner off flowrra_running, which would pair all with all
    RETURNING seq"""
_DELETE_FINISHED = f"DELETE FROM flowrra_job WHERE id {_LISTED} AND status IN {_FINISHED} RETURNING id"
_DELETE_HELD = f"DELETE FROM flowrra_job WHERE id {_LISTED} AND status = 'blocked' AND worker = ? RETURNING id"
_PURGE = """
    DELETE FROM flowrra_job WHERE seq IN
        (SELECT seq FROM flowrra_job WHERE purge_at IS NOT NULL AND purge_at < ? ORDER BY purge_at LIMIT ?)
    RETURNING id"""
_TAKE_ENDINGS = f"""
    DELETE FROM flowrra_ending WHERE seq IN (SELECT seq FROM flowrra_ending ORDER BY seq LIMIT {ENDINGS_TAKEN})
    RETURNING seq, job"""

_LAPSED = f"(lease <= :clock OR lease > :clock + coalesce(length, {MAX_LEASE}))"
# All that a claim must know first, in one statement: each one costs an idle worker 20 us, its caches being cold.
_BEFORE_CLAIM = f"""
    SELECT EXISTS (SELECT 1 FROM flowrra_worker WHERE id = :worker AND lease > :clock)
            AND NOT EXISTS (SELECT 1 FROM flowrra_paused WHERE queue = :queue),
        EXISTS (SELECT 1 FROM flowrra_worker WHERE {_LAPSED} AND NOT graced AND id != :worker),
        EXISTS (SELECT 1 FROM flowrra_job WHERE status IN {_DUE_LATER} AND due <= :now),
        EXISTS (SELECT 1 FROM flowrra_job
            WHERE expires IS NOT NULL AND status IN {_NOT_BEGUN} AND expires <= :now),
        (SELECT crashes FROM flowrra_job WHERE status = 'running' AND worker = :worker ORDER BY crashes DESC LIMIT 1),
        EXISTS (SELECT 1 FROM flowrra_job WHERE status = 'pending' AND crashes > 0 AND queue = :queue)"""
_CLAIMED = "seq, id, task, payload, queue, priority, submitted, due, attempt, failures, crashes, overrides, parents"
_READY = f"""
    SELECT {_CLAIMED} FROM flowrra_job WHERE status = 'pending' AND crashes = 0 AND queue = :queue
    ORDER BY priority, seq LIMIT :limit"""
# While there may be some that have expired: these are passed by, but not without end. 100,000 take 50 ms, to be
# cancelled a second and more.
_READY_STILL = f"""
    SELECT {_CLAIMED} FROM ({_READY.replace(" FROM", ", expires FROM").replace(":limit", str(100 * UPKEEP_STEP))})
    WHERE expires IS NULL OR expires > :now LIMIT :limit"""
# BETWEEN, since `=` beside the `> 0` that the index asks for makes the planner sort.
_AS_SUSPECT = "crashes > 0 AND crashes BETWEEN :crashes AND :crashes"
_SUSPECT = _READY.replace("crashes = 0", _AS_SUSPECT).replace("ORDER BY", "ORDER BY crashes,")
_START = """
    UPDATE flowrra_job SET status = 'running', attempt = attempt + 1, worker = ?, started = ?
    WHERE seq IN (SELECT value FROM json_each(?))"""

_WORKER_COLUMNS = "id, host, pid, queues, tasks, started, seen, running, version, memory"
_BEAT = """
    UPDATE flowrra_worker SET lease = :until, length = :lease, graced = 0, seen = :seen, running = :running,
        queues = :queues, tasks = :tasks, memory = :memory WHERE id = :id RETURNING term"""
_REGISTER = f"""
    INSERT INTO flowrra_worker ({_WORKER_COLUMNS}, lease, length, term, home, birth)
    VALUES (:{_WORKER_COLUMNS.replace(", ", ", :")}, :until, :lease, lower(hex(randomblob(4))), :home, :birth)
    RETURNING term"""


class _Home(NamedTuple):
    """Where this process lives, so that another one can tell whether it is still alive."""

    name: str
    pid: int
    birth: str

    @classmethod
    def here(cls) -> _Home:
        return cls(_home_name(), os.getpid(), _birth_of(os.getpid()) or "")

    def lives(self, home: str, pid: int, birth: str) -> bool:
        """Whether it is surely there, in another process of this host, and not stopped: that one is as good as gone."""
        found = _process(pid) if home == self.name and pid != self.pid else None
        return found is not None and found[0] not in ("", "T") and found[1] == birth

    def is_dead(self, home: str, pid: int, birth: str) -> bool:
        """Whether such a process is surely gone."""
        if home == self.name:
            found = _birth_of(pid)
            return found is None or (found != birth and "" not in (found, birth))
        boot = self.name.partition(" ")[0]
        return " " in self.name and not home.startswith(f"{boot} ")  # of an earlier boot of this machine


def _home_name() -> str:
    """The boot and the pid namespace; without them (no Linux) the host's name must do."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        import platform

        return platform.node()


def _birth_of(pid: int) -> str | None:
    """When the process began, "" where that cannot be told, None if there is no such process."""
    found = _process(pid)
    return found if found is None else found[1]


def _process(pid: int) -> tuple[str, str] | None:
    """The state of a process, as a letter of proc(5), and when it began; both "" where that cannot be told."""
    if os.name != "posix":
        return "", ""  # os.kill(pid, 0) would end the process on Windows; its lease will run out
    try:
        with open(f"/proc/{pid}/stat", encoding="latin-1") as file:
            fields = file.read().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else (fields[0], fields[19])  # starttime, field 22
    except OSError:
        pass  # gone, or no /proc, or hidden there from other users, or no descriptor is left to read it
    try:
        os.kill(pid, 0)
    except OSError as error:
        return None if isinstance(error, ProcessLookupError) else ("", "")
    return "", ""


class SQLiteTable:
    """The jobs in one SQLite file. One caller at a time; each method that writes runs inside a transaction.

    `woken`: the topics that the transaction concerns, for whoever waits; its caller empties it, and has them told
    once it is committed. `upkeep_left`: the moment as of which claims have left something to `upkeep`.
    """

    def __init__(self, connection: sqlite3.Connection, retention: BackendConfig, clock: Clock) -> None:
        self._db = connection
        self._retention = retention
        self._clock = clock
        self._home = _Home.here()
        self.woken: dict[Topic, None] = {}
        self.upkeep_left: float | None = None

    # The rules at work -------------------------------------------------------------------------

    def run(self, unit: Unit, walk: Walk[T]) -> T:
        """Run a walk of the rules, and write down what has become of the jobs."""
        answer = drive(walk, self._look)
        for before, job in unit.changes():
            if before is None:
                self._insert(job)
            else:
                self._db.execute(_UPDATE, (*_changing_values(job), job.seq))
            self._wake_for(job)
        if unit.endings:
            rows = ((json.dumps([j.id, j.task, j.attempt, j.status, j.error]),) for j in unit.endings)
            self._db.executemany("INSERT INTO flowrra_ending (job) VALUES (?)", rows)
        return answer

    def _look(self, find: Find) -> list[Job]:
        if isinstance(find, Expired):
            rows = self._db.execute(_FINDS[Expired], (find.now, find.limit))
        else:
            rows = self._db.execute(_FINDS[type(find)], (json.dumps(list(find[0])),))
        return [_job_of_row(row) for row in rows]

    def _insert(self, job: Job) -> None:
        parents = json.dumps(job.parents) if job.parents else None
        row = (job.id, job.task, job.queue, job.priority, job.payload, job.submitted, job.unique, parents,
               _text(job.overrides), *_changing_values(job))  # fmt: skip
        self._db.execute(_INSERT, row)
        if parents:
            family = "INSERT OR IGNORE INTO flowrra_family SELECT value, last_insert_rowid() FROM json_each(?)"
            self._db.execute(family, (parents,))

    def _wake_for(self, job: Job) -> None:
        if job.status in FINISHED:
            self.woken["job", job.id] = None
        elif job.status is RUNNING:
            self.woken["worker", ""] = None
        elif job.status is not BLOCKED:
            self.woken["queue", job.queue] = None

    # Taking in ---------------------------------------------------------------------------------

    def push(self, jobs: Sequence[Job], *, now: float, by: str | None = None) -> list[str]:
        unit = Unit(now, self._retention)
        if by is not None:
            return self.run(unit, adopt(unit, jobs, by))
        ids: list[str] = []
        pushed: list[str] = []
        for is_plain, run in itertools.groupby(jobs, _plainness):  # neighbours only, so that the order is kept
            some = list(run)
            if is_plain:
                ids += self._push_plain(some, now)
            else:
                unit = Unit(now, self._retention)
                ids += self.run(unit, push(unit, some, dict(zip(pushed, ids, strict=True))))
            pushed += [job.id for job in some]
        return ids

    def _push_plain(self, jobs: Sequence[Job], now: float) -> list[str]:
        """Jobs that share all but their ids and arguments, in one statement; one whose id is there is passed over."""
        first = jobs[0]
        shared = (first.task, first.queue, first.priority, first_status(first.due, now), now, first.due, first.expires,
                  _text(first.overrides))  # fmt: skip
        if len(jobs) == 1:
            done = self._db.execute(_PUSH_ONE, (first.id, first.payload, *shared))
        else:
            payloads: dict[str, str | None] = {}
            for job in jobs:
                payloads.setdefault(job.id, job.payload)
            text = ",".join([f"{_json_key(task_id)}:{payload}" for task_id, payload in payloads.items()])
            done = self._db.execute(_PUSH_ALIKE, (*shared, f"{{{text}}}"))
        if done.rowcount:
            self.woken["queue", first.queue] = None
        return [job.id for job in jobs]

    # Handing out -------------------------------------------------------------------------------

    def claim(self, queue: str, *, limit: int, worker: str, now: float, crashes: int = LAST_CHANCE) -> list[Any]:
        """The rows of `claimed_job`, which is called when the transaction is over: others wait for its end.

        What is due, or has expired, is dealt with in a bounded step; the broker goes on with the rest.
        """
        place = {"queue": queue, "worker": worker, "now": now, "limit": limit, "clock": self._clock.monotonic()}
        may_claim, lapsed, due, expired, held, suspects = self._db.execute(_BEFORE_CLAIM, place).fetchone()
        if due:
            self._promote(now)  # in any case: a wait ends with the first of those that are left
        if not may_claim:
            return []
        if lapsed:
            self._rescue_lapsed(now, by=worker)
        more = bool(expired) and self._expire(now)
        if held:  # a suspect, which runs alone
            return []
        rows: list[Any] = []
        if held is None and (suspects or lapsed or due):
            for number in range(crashes, 0, -1):
                rows = rows or self._db.execute(_SUSPECT, {**place, "limit": 1, "crashes": number}).fetchall()
        rows = rows or self._db.execute(_READY_STILL if more else _READY, place).fetchall()
        if rows:
            self._db.execute(_START, (worker, now, f"[{','.join([str(row[0]) for row in rows])}]"))
        return rows

    def upkeep(self, now: float) -> None:
        """A step of what claims have left. Jobs behind expired ones are looked for when all of those are done with."""
        self._promote(now)
        if not self._expire(now):
            self.woken["queue", ""] = None

    def _promote(self, now: float) -> None:
        done = self._db.execute(_PROMOTE, (now, UPKEEP_STEP)).rowcount
        self._leave_to_upkeep(done >= UPKEEP_STEP, now)

    def _expire(self, now: float) -> bool:
        unit = Unit(now, self._retention)
        return self._leave_to_upkeep(self.run(unit, expire(unit, UPKEEP_STEP)), now)

    def _leave_to_upkeep(self, is_left: bool, now: float) -> bool:
        if is_left:
            self.upkeep_left = now
        return is_left

    def next_due(self) -> float | None:
        """The earliest moment at which a waiting job becomes ready."""
        row = self._db.execute(f"SELECT min(due) FROM flowrra_job WHERE status IN {_DUE_LATER}").fetchone()
        return cast("float | None", row[0])

    # Writing down ------------------------------------------------------------------------------

    def settle(self, outcomes: Sequence[Outcome], *, now: float) -> list[bool]:
        """Write down what attempts came to; of an attempt's ends the first one counts."""
        done = self._settle_successes(outcomes, now)
        self.woken.update(dict.fromkeys(("job", outcome.job.id) for outcome in done.values()))
        unit = Unit(now, self._retention)
        unit.ended = self._parents_among([outcome.job for outcome in done.values()])
        others = [outcome for index, outcome in enumerate(outcomes) if index not in done]
        if not others and not unit.ended:
            return [True] * len(outcomes)
        written = iter(self.run(unit, settle(unit, others)))
        return [index in done or next(written) for index in range(len(outcomes))]

    def _settle_successes(self, outcomes: Sequence[Outcome], now: float) -> dict[int, Outcome]:
        """Write the successes, one statement for all that share attempt number, worker and retention: what was written.

        Left out is what comes after another end of the same attempt.
        """
        alike: dict[tuple[int, str | None, float | None], dict[int, int]] = {}
        seen: set[tuple[int, int]] = set()
        for index, outcome in enumerate(outcomes):
            attempt = (outcome.job.seq, outcome.attempt)
            if outcome.status is SUCCESS and attempt not in seen:
                key = (outcome.attempt, outcome.job.worker, outcome.keep)
                alike.setdefault(key, {})[outcome.job.seq] = index
            seen.add(attempt)
        done: dict[int, Outcome] = {}
        for (number, worker, keep), indices in alike.items():
            text = ",".join([f'"{seq}":[{outcomes[index].text}]' for seq, index in indices.items()])
            purge_at = now + (self._retention.result_ttl if keep is None else keep)
            for (seq,) in self._db.execute(_SUCCEED, (now, purge_at, f"{{{text}}}", number, worker)).fetchall():
                done[indices[seq]] = outcomes[indices[seq]]
        return done

    def _parents_among(self, jobs: Sequence[Job]) -> list[Job]:
        """Copies of those that have children, as the successes that they are."""
        if not jobs or self._db.execute("SELECT NOT EXISTS (SELECT 1 FROM flowrra_family)").fetchone()[0]:
            return []
        having = "SELECT f.parent FROM json_each(?) CROSS JOIN flowrra_family AS f ON f.parent = value"
        found = {row[0] for row in self._db.execute(having, (json.dumps([job.id for job in jobs]),))}
        parents = [copy_of(job) for job in jobs if job.id in found]
        for job in parents:
            job.status = SUCCESS
        return parents

    def record(self, results: Sequence[TaskResult[Any]]) -> None:
        for result in results:
            if not self._db.execute(
                "SELECT 1 FROM flowrra_job WHERE id = ? AND queue != ''", (result.task_id,)
            ).fetchone():
                self._db.execute("DELETE FROM flowrra_job WHERE id = ?", (result.task_id,))
                self._insert(recorded(result, self._retention))
                self.woken["job", result.task_id] = None

    def report(self, progress: Mapping[tuple[str, int], Progress]) -> None:
        update = "UPDATE flowrra_job SET progress = ? WHERE id = ? AND attempt = ? AND status = 'running'"
        for (task_id, attempt), reported in progress.items():
            self._db.execute(update, (json.dumps(reported), task_id, attempt))

    # Workers -----------------------------------------------------------------------------------

    def heartbeat(self, worker: WorkerInfo, *, lease: float, now: float) -> tuple[Notices, str]:
        """What it brings back, and the term of the lease."""
        self._count_activity(worker, now)
        if lease <= 0:
            self._remove_workers([worker.id], now, crashed=False)
            return Notices(), ""
        lost = self._remove_workers(self.dead_workers(), now)
        lost += self._rescue_lapsed(now, worker.id, beat=lease, is_new=not worker.term)
        values = {name: getattr(worker, name) for name in _WORKER_COLUMNS.split(", ")}
        values |= {"queues": json.dumps(dict(worker.queues)), "tasks": json.dumps(list(worker.tasks)), "seen": now}
        values |= {"until": self._clock.monotonic() + lease, "lease": lease}
        values |= {"home": self._home.name, "birth": self._home.birth}
        ((term,),) = self._db.execute(_BEAT, values).fetchall() or self._db.execute(_REGISTER, values).fetchall()
        return self._notices(worker, lapsed=worker.term not in ("", term), lost=lost), term

    def _count_activity(self, worker: WorkerInfo, now: float) -> None:
        for minute, counts in activity_texts(worker.activity).items():
            values = {"minute": minute, "worker": worker.id, "counts": counts}
            if minute >= now - ACTIVITY_KEPT:  # what was forgotten is not known to be counted
                self._db.execute(_COUNT_ACTIVITY, values)
            self._db.execute("INSERT OR REPLACE INTO flowrra_activity VALUES (:minute, :worker, :counts)", values)
            self._db.execute("DELETE FROM flowrra_activity WHERE minute < ?", (now - ACTIVITY_KEPT,))

    def _notices(self, worker: WorkerInfo, *, lapsed: bool, lost: list[str]) -> Notices:
        cancelled = "SELECT id FROM flowrra_job WHERE status = 'running' AND cancel_requested = 1 AND worker = ?"
        suspects = """SELECT coalesce(min((SELECT min(crashes) FROM flowrra_job
                WHERE status = 'pending' AND crashes > 0 AND queue = value)), 0)
            FROM json_each(?) WHERE value NOT IN (SELECT queue FROM flowrra_paused)"""
        return Notices(
            cancelled=[row[0] for row in self._db.execute(cancelled, (worker.id,))],
            lapsed=lapsed,
            paused=self._paused(),
            suspects=self._db.execute(suspects, (json.dumps(list(worker.queues)),)).fetchone()[0],
            lost_workers=lost,
            endings=self._endings(),
        )

    def _endings(self) -> list[Job]:
        if not self._db.execute("SELECT EXISTS (SELECT 1 FROM flowrra_ending)").fetchone()[0]:
            return []
        self._db.execute(
            "DELETE FROM flowrra_ending WHERE seq <= (SELECT max(seq) FROM flowrra_ending) - ?", (ENDINGS_KEPT,)
        )
        return [ended_job(text) for _, text in sorted(self._db.execute(_TAKE_ENDINGS).fetchall())]

    def _rescue_lapsed(self, now: float, by: str, *, beat: float = 0.0, is_new: bool = False) -> list[str]:
        """Put back the jobs of workers that `by` may take for dead. A claim leaves those in doubt to heartbeats.

        `beat`: the length of the lease that a heartbeat is about to get. A process that lives on this host is not
        dead, however late it is; one that is stopped runs nothing meanwhile, and may be.
        """
        clock = self._clock.monotonic()
        query = f"SELECT id, lease, length, graced, home, pid, birth FROM flowrra_worker WHERE id = :by OR {_LAPSED}"
        rows = {row[0]: row[1:] for row in self._db.execute(query, {"by": by, "clock": clock}).fetchall()}
        leases = {w: Lease(row[0], row[1] or beat or MAX_LEASE, bool(row[2])) for w, row in rows.items()}
        mine = leases.pop(by, None)
        lapsed = {worker: lease for worker, lease in leases.items() if beat or not lease.graced}
        dead, fresh = judge_leases(lapsed, mine, clock, is_new=is_new)
        for worker in fresh if beat else ():
            values = (clock + lapsed[worker].length, worker)
            self._db.execute("UPDATE flowrra_worker SET lease = ?, graced = 1 WHERE id = ?", values)
        return self._remove_workers([worker for worker in dead if not self._home.lives(*rows[worker][3:])], now)

    def dead_workers(self) -> list[str]:
        """The workers whose process is gone: seen at once on this host, without waiting for the lease."""
        workers = self._db.execute("SELECT id, home, pid, birth FROM flowrra_worker")
        return [worker for worker, *process in workers if self._home.is_dead(*process)]

    def _remove_workers(self, workers: list[str], now: float, *, crashed: bool = True) -> list[str]:
        if workers:
            unit = Unit(now, self._retention)
            self.run(unit, rescue(unit, workers, crashed=crashed))
            self._db.execute(f"DELETE FROM flowrra_worker WHERE id {_LISTED}", (json.dumps(workers),))
        return workers

    def rescue_dead(self, now: float) -> None:
        """What whoever opens the store does first: put back the dead's jobs, drop their ports."""
        self._remove_workers(self.dead_workers(), now)
        for port, *process in self._db.execute("SELECT port, home, pid, birth FROM flowrra_listener").fetchall():
            if self._home.is_dead(*process):
                self.unlisten(port)

    # By hand -----------------------------------------------------------------------------------

    def change(self, task_ids: Sequence[str], action: Action, *, now: float, by: str | None = None) -> list[bool]:
        unit = Unit(now, self._retention)
        return self.run(unit, change(unit, task_ids, action, by))

    def remove(
        self, task_ids: Sequence[str] = (), by: str | None = None, before: float | None = None, limit: int = 1000
    ) -> set[str]:
        ids = json.dumps(task_ids)
        if before is not None:
            rows = self._db.execute(_PURGE, (before, limit)).fetchall()
        elif by is None:
            rows = self._db.execute(_DELETE_FINISHED, (ids,)).fetchall()
        else:
            rows = self._db.execute(_DELETE_HELD, (ids, by)).fetchall()
            self.woken.update(dict.fromkeys(("job", row[0]) for row in rows))
        return {row[0] for row in rows}

    def set_queue(self, queue: str, *, paused: bool) -> None:
        pause, resume = "INSERT OR IGNORE INTO flowrra_paused VALUES (?)", "DELETE FROM flowrra_paused WHERE queue = ?"
        self._db.execute(pause if paused else resume, (queue,))
        self.woken |= {("queue", queue): None, ("worker", ""): None}

    # Looking -----------------------------------------------------------------------------------

    def find(self, which: JobFilter, *, limit: int, after: int | None, oldest_first: bool) -> list[Job]:
        states = which.status
        if states and len(states) > 1 and SUCCESS not in states and not states <= REQUEUABLE:
            apart = (dataclasses.replace(which, status=frozenset((status,))) for status in states)
            found = [self.find(one, limit=limit, after=after, oldest_first=oldest_first) for one in apart]
            jobs = itertools.chain.from_iterable(found)  # no index has them in their order
            return sorted(jobs, key=lambda job: job.seq, reverse=not oldest_first)[:limit]
        where, values = self._where(which)
        order, behind = ("ASC", ">") if oldest_first else ("DESC", "<")
        if after is not None:
            where, values = f"{where} AND seq {behind} ?", [*values, after]
        query = f"SELECT {_COLUMNS} FROM flowrra_job WHERE {where} ORDER BY seq {order} LIMIT ?"
        return [_job_of_row(row) for row in self._db.execute(query, (*values, limit))]

    def finished(self, task_ids: Sequence[str]) -> list[str]:
        """Those of the jobs that have finished, or are gone."""
        query = f"SELECT id FROM flowrra_job WHERE id {_LISTED} AND status IN {_UNFINISHED}"
        waiting = {row[0] for row in self._db.execute(query, (json.dumps(task_ids),))}
        return [task_id for task_id in task_ids if task_id not in waiting]

    def counts(self, which: JobFilter) -> dict[tuple[str, TaskStatus], int]:
        where, values = self._where(which)
        query = f"SELECT queue, status, count(*) FROM flowrra_job WHERE {where} GROUP BY queue, status"
        return {(queue, TaskStatus(status)): count for queue, status, count in self._db.execute(query, values)}

    def _where(self, which: JobFilter) -> tuple[str, list[Any]]:
        if which.error is not None:  # SQLite's own lower() knows the letters A to Z only
            self._db.create_function("flowrra_lower", 1, str.lower, deterministic=True)
        return _where(which)

    def overview(self, since: float | None) -> Overview:
        query = f"SELECT {_WORKER_COLUMNS} FROM flowrra_worker WHERE NOT {_LAPSED} ORDER BY started"
        workers = [_worker_of_row(*row) for row in self._db.execute(query, {"clock": self._clock.monotonic()})]
        if since is None:
            return Overview(workers, self._paused(), [], [])
        texts = self._db.execute("SELECT counts FROM flowrra_activity WHERE minute >= ?", (since,))
        totals = self._db.execute("SELECT task, what, number FROM flowrra_total")
        return Overview(workers, self._paused(), sum_of_activity(row[0] for row in texts), totals_of_activity(totals))

    def _paused(self) -> set[str]:
        return {row[0] for row in self._db.execute("SELECT queue FROM flowrra_paused")}

    # Those who listen --------------------------------------------------------------------------

    def listen(self, port: int, kinds: str) -> None:
        """Have topics of these kinds, by their first letters, sent to a loopback port."""
        row = (port, kinds, *self._home)
        self._db.execute("INSERT OR REPLACE INTO flowrra_listener VALUES (?, ?, ?, ?, ?)", row)

    def unlisten(self, port: int) -> None:
        self._db.execute("DELETE FROM flowrra_listener WHERE port = ?", (port,))

    def listeners(self) -> list[tuple[int, str]]:
        """Ports and the kinds that they want to hear of."""
        return self._db.execute("SELECT port, kinds FROM flowrra_listener").fetchall()


def _plainness(job: Job) -> tuple[Any, ...]:
    """What jobs have in common that one statement can insert together; nothing, if the rules must look at them."""
    if job.unique is not None or job.parents:
        return ()
    return (job.task, job.queue, job.priority, job.due, job.expires, job.overrides)


def _json_key(text: str) -> str:
    return f'"{text}"' if text.isalnum() and text.isascii() else json.dumps(text)


def _text(value: Mapping[str, Any] | None) -> str | None:
    return json.dumps(value, sort_keys=True) if value else None


def _parsed(text: str | None, default: Any) -> Any:
    return default if text is None else json.loads(text)


def claimed_job(row: Sequence[Any], worker: str, now: float) -> Job:
    seq, task_id, task, payload, queue, priority, submitted, due, attempt, failures, crashes, overrides, parents = row
    job = Job(task_id, task, (), _NO_KEYWORDS, queue, priority, payload)
    job.status = RUNNING  # as _START has written
    job.worker = worker
    job.started = now
    job.submitted = submitted
    job.due = due
    job.seq = seq
    job.attempt = attempt + 1
    job.failures = failures
    job.crashes = crashes
    if overrides is not None:
        job.overrides = json.loads(overrides)
    if parents is not None:
        job.parents = tuple(json.loads(parents))
    return job


_NO_KEYWORDS: Mapping[str, Any] = types.MappingProxyType({})


def _job_of_row(row: Sequence[Any]) -> Job:
    seq, task_id, task, queue, priority, payload, submitted, unique, parents, overrides, status, due, expires, *rest = (
        row
    )
    attempt, failures, crashes, worker, started, finished, purge_at, result, error, traceback, *rest = rest
    progress, history, cancel_requested, waits = rest
    return Job(
        task_id, task, (), {}, queue, priority, payload, due, expires, unique, tuple(_parsed(parents, ())),
        _parsed(overrides, None), TaskStatus(status), submitted, seq, attempt, failures, crashes, worker, started,
        finished, purge_at, _stored_result(result), error, traceback,
        None if progress is None else Progress(*json.loads(progress)),
        tuple([Attempt(*entry) for entry in _parsed(history, ())]), bool(cancel_requested), waits,
    )  # fmt: skip


def _changing_values(job: Job) -> tuple[Any, ...]:
    """The values of _CHANGING."""
    return (
        job.status, job.due, job.expires, job.attempt, job.failures, job.crashes, job.worker, job.started,
        job.finished, job.purge_at, f"[{encode(job.result)}]" if job.status is SUCCESS else None, job.error,
        job.traceback, json.dumps(job.progress) if job.progress else None,
        json.dumps(job.history) if job.history else None, job.cancel_requested, job.waits,
    )  # fmt: skip


def _worker_of_row(worker: str, host: str, pid: int, queues: str, tasks: str, *rest: Any) -> WorkerInfo:
    return WorkerInfo(worker, host, pid, json.loads(queues), json.loads(tasks), *rest)


def _stored_result(text: str | None) -> Any:
    """A result is kept as a list of one, so that json_each hands its text over as it is."""
    return None if text is None or text == "[null]" else decode(text)[0]


def _first_of(*parts: str) -> str:
    """The query for the first of few jobs, which `parts` find by an index; 0 where they are many."""
    few = " UNION ALL ".join(f"SELECT +seq AS seq FROM flowrra_job WHERE {part}" for part in parts)
    return f"SELECT CASE WHEN count(*) < 1000 THEN min(seq) ELSE 0 END FROM ({few} LIMIT 1000)"


# How far back to look: to list the few jobs that run would else walk through all that finished since (0.3 us each).
_FIRST_OF: Mapping[TaskStatus, str] = {
    RUNNING: _first_of("status = 'running'"),
    PENDING: _first_of("status = 'pending' AND crashes = 0", "status = 'pending' AND crashes > 0"),
    **dict.fromkeys((SCHEDULED, RETRYING), _first_of(f"status IN {_DUE_LATER}")),
    BLOCKED: _first_of("waits > 0"),
}


def _where(which: JobFilter) -> tuple[str, list[Any]]:
    """A filter as the text of a WHERE clause and its values."""
    terms: list[tuple[str, list[Any]]] = []
    if which.ids is not None:
        terms.append(("id IN (SELECT value FROM json_each(?))", [json.dumps(list(which.ids))]))
    if which.status is not None:
        terms.append((f"status IN {_quoted(which.status)}", []))
        if which.status <= REQUEUABLE and which.ids is None:
            terms.append(("error IS NOT NULL", []))
        if len(which.status) == 1:
            terms += [(f"seq >= ({_FIRST_OF[status]})", []) for status in which.status if status in _FIRST_OF]
    for term, value in (
        ("task = ?", which.task),
        ("queue = ?", which.queue),
        ("worker = ?", which.worker),
        ("error IS NOT NULL AND instr(flowrra_lower(error), flowrra_lower(?)) > 0", which.error),
        ("seq IN (SELECT child FROM flowrra_family WHERE parent = ?)", which.parent),
        ("seq >= ?", which.from_seq),
    ):
        if value is not None:
            terms.append((term, [value]))
    if which.ahead_of is not None:
        job = which.ahead_of
        place = "status = 'pending' AND queue = ? AND (priority, seq) < (?, ?)"
        terms.append((place, [job.queue, job.priority, job.seq]))
    clause = " AND ".join(term for term, _ in terms) or "true"
    return clause, [value for _, values in terms for value in values]


# When a commit is synced to disk: not on its own, so that a power cut may undo it (claims, leases); before its caller
# is answered, while others may see it sooner (submits: a worker is on its way to the job meanwhile); before anybody
# sees it.
_LAZILY, _BEFORE_ANSWER, _BEFORE_SIGHT = 0, 1, 2

_LISTENERS_FRESH = 0.01  # seconds for which the list of listeners is taken to be as it was
_LOOK_EVERY = 1.0  # seconds between looks at data_version, should a datagram have been lost
_SLOW_COMMIT = 0.002  # seconds
_SMALL_DISK = 50_000_000  # bytes that are free; with less, the log is kept short
_SQLITE_FULL = 13
_CHECK_EVERY = 1.0  # seconds between looks at whether the file is still the one under its path
_LOCKED_CLOSE = 1.0  # seconds for which a close waits for the locks of other processes
_DATAGRAM_LIMIT = 32_000  # bytes of topics in one datagram; more than that, and the listener looks itself


@dataclass(slots=True, eq=False)
class _Operation:
    """One call on the table. Those of one `kind` that have `items` run as a single call on all of them."""

    work: Callable[..., Any]  # of the table, and of the items
    sync: int = _LAZILY
    kind: str = ""
    items: Sequence[Any] | None = None
    future: asyncio.Future[Any] | None = None
    result: Any = None
    error: Exception | None = None

    @property
    def is_idle_claim(self) -> bool:
        """Whether it would take jobs for somebody who has gone."""
        return self.kind == "claim" and self.future is not None and self.future.cancelled()


class _NotSyncedError(BrokerError):
    """What was committed may not outlive a power cut."""


class _SQLiteFile:
    """A write connection with its transactions. Used by one thread at a time, under `lock`."""

    def __init__(self, path: str | None, synchronous: str, timeout: float) -> None:
        self.path = path
        self.lock = threading.Lock()
        self.publish: Callable[[SQLiteTable], None] = lambda table: None  # called after each commit, under the lock
        self._synchronous = synchronous.upper()
        self._level = ""
        self._log: int | None = None  # the write-ahead log, to sync it while others may write on
        self._timeout = timeout
        self._pid = os.getpid()
        self.give_up_at = math.inf  # when the close of the broker waits for locks no longer
        self.identity: str | None = None
        self._check_at = 0.0  # when to look next whether the file is still there

    def check(self) -> None:
        """Refuse, within a second, to go on with a file that was deleted or replaced: nobody else would see it."""
        if self.path is None or time.monotonic() < self._check_at:
            return
        found = self._identify()
        if self.identity is None:
            self.identity = found
        elif found != self.identity:
            what = "deleted" if found is None else "replaced by another file"
            raise StoreLostError(
                f"{self.path} was {what} while it was open: nobody else would see what is written to the old one. "
                "Stop what uses it, put the file back together with its -wal, or leave the new one, and start again"
            )
        self._check_at = time.monotonic() + _CHECK_EVERY

    def _identify(self) -> str | None:
        try:
            found = os.stat(cast("str", self.path))
        except FileNotFoundError:
            return None
        except OSError:  # a mount that is away for a moment is no other file
            return self.identity
        return f"{found.st_dev} {found.st_ino}"

    @property
    def is_ours(self) -> bool:
        """Whether this process has opened it; neither a connection nor a lock of SQLite's bears a fork."""
        return self._pid == os.getpid()

    def open(self, retention: BackendConfig, clock: Clock, reads_apart: bool) -> None:
        self.reader = self.connection = _connect(self.path)
        self.table = SQLiteTable(self.connection, retention, clock)
        try:
            # Of a new file. A commit writes whole pages to the log: a lone submit takes 20 us, with pages of 4 kB 25.
            self.connection.execute("PRAGMA page_size=2048")
            self._wait_for_lock("PRAGMA journal_mode=WAL", time.monotonic() + self._timeout)
            self._bound_log()
            self.connection.execute("PRAGMA synchronous=FULL")
            self.transact(lambda: self._migrate(clock.time()), sync=_BEFORE_SIGHT, patience=self._timeout)
            if self.path is not None and reads_apart:
                self.reader = _connect(self.path, read_only=True)
            self.check()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._log is not None:
            os.close(self._log)
        self.reader.close()
        self.connection.close()

    def _migrate(self, now: float) -> None:
        db = self.connection
        db.execute("CREATE TABLE IF NOT EXISTS flowrra_meta (schema INTEGER NOT NULL)")
        (version,) = db.execute("SELECT coalesce(max(schema), 0) FROM flowrra_meta").fetchone()
        if version > len(_MIGRATIONS):
            raise BrokerError(
                f"{self.path} has schema {version}, newer than the {len(_MIGRATIONS)} of this flowrra: upgrade it"
            )
        for script in _MIGRATIONS[version:]:
            for statement in _statements(script):
                db.execute(statement)
        if version < len(_MIGRATIONS):
            db.execute("DELETE FROM flowrra_meta")
            db.execute("INSERT INTO flowrra_meta VALUES (?)", (len(_MIGRATIONS),))
        self.table.rescue_dead(now)

    def _bound_log(self) -> None:
        """Keep the log small where the disk is: one that has filled it leaves the file no room to take it in."""
        is_small = False
        with contextlib.suppress(OSError, AttributeError):  # Windows has no statvfs
            disk = os.statvfs(os.path.dirname(self.path)) if self.path is not None else None
            is_small = disk is not None and disk.f_bavail * disk.f_frsize < _SMALL_DISK
        # Pages, 4 MB: a log that still grows costs a sync 40 us more, and one of 2 MB a drain at FULL a tenth.
        self.connection.execute(f"PRAGMA wal_autocheckpoint={100 if is_small else 2000}")
        self.connection.execute(f"PRAGMA journal_size_limit={200_000 if is_small else 5_000_000}")

    def transact(self, work: Callable[[], T], *, sync: int, patience: float) -> T:
        """Run `work` inside one transaction, waiting up to `patience` seconds for other processes' locks.

        On a full disk the log is emptied into the file, and `work` done once more: there may be room again.
        """
        try:
            return self._transact(work, sync=sync, patience=patience)
        except Exception as error:
            if getattr(error, "sqlite_errorcode", 0) != _SQLITE_FULL:
                raise
            self._bound_log()
            try:
                self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            except Exception:
                raise error from None
        return self._transact(work, sync=sync, patience=patience)

    def _transact(self, work: Callable[[], T], *, sync: int, patience: float) -> T:
        if not self.is_ours:
            raise BrokerError("this process was forked after the broker was opened: open the app in the child")
        apart = sync == _BEFORE_ANSWER and self._log is not None
        level = "NORMAL" if sync == _LAZILY or apart else self._synchronous
        if level != self._level:
            self.connection.execute(f"PRAGMA synchronous={level}")
            self._level = level
        self._wait_for_lock("BEGIN IMMEDIATE", time.monotonic() + patience)
        self.table.woken, self.table.upkeep_left = {}, None
        try:
            done = work()
            self.connection.execute("COMMIT")
        except BaseException:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            raise
        with contextlib.suppress(Exception):  # it is written all the same
            self.publish(self.table)  # before it goes to disk: others are on their way to it meanwhile
        if apart:
            self._sync_log()
        elif sync != _LAZILY and self._log is None:
            self._open_log()
        return done

    def _open_log(self) -> None:
        """From now on, sync as a commit at FULL does, but when it has given back the lock.

        The first one is such a commit: that also syncs the folder in which the log was made. Where there is no
        fdatasync (Windows, macOS) all are.
        """
        if self.path is not None and self._synchronous == "FULL" and hasattr(os, "fdatasync"):
            (_, _, target), *_ = self.connection.execute("PRAGMA database_list")  # behind a symbolic link
            self._log = os.open(f"{target}-wal", os.O_RDONLY)

    def _sync_log(self) -> None:
        try:
            os.fdatasync(cast("int", self._log))
        except OSError as error:
            raise _NotSyncedError(f"{self.path}-wal cannot be synced to disk ({error}): look at the disk") from error

    def _wait_for_lock(self, statement: str, deadline: float) -> None:
        pause, began, has_warned = 0.0001, time.monotonic(), False
        while True:
            try:
                self.connection.execute(statement)
            except Exception as error:
                if not _is_busy(error) or (now := time.monotonic()) >= min(deadline, self.give_up_at):
                    raise
            else:
                return
            if began + 1.0 <= now and not has_warned:
                has_warned = True
                logger.warning("%s is locked by another process; waiting for up to %g s", self.path, deadline - began)
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 1.5, 0.01)

    def run_group(self, group: Sequence[_Operation], patience: float) -> dict[Topic, None]:
        """Run the operations as one transaction; the topics it concerns. If it fails, each half runs on its own."""
        sync = max(operation.sync for operation in group)
        try:
            self.transact(lambda: self._run_each(group), sync=sync, patience=patience)
            return self.table.woken
        except _NotSyncedError as error:  # committed all the same: done again, claims would take other jobs
            for operation in group:
                operation.error = error if operation.sync else None
            return self.table.woken
        except Exception as error:
            if len(group) == 1 or _is_busy(error):
                for operation in group:
                    operation.error = error
                return {}
        middle = len(group) // 2
        return self.run_group(group[:middle], patience) | self.run_group(group[middle:], patience)

    def _run_each(self, group: Sequence[_Operation]) -> None:
        merged: dict[str, list[_Operation]] = {}
        for operation in group:
            if operation.items is not None:
                merged.setdefault(operation.kind, []).append(operation)
        for alike in merged.values():
            items = [item for operation in alike for item in operation.items or ()]
            results = iter(alike[0].work(self.table, items))  # at the first one's `now`: they are of one moment
            for operation in alike:
                operation.result = list(itertools.islice(results, len(operation.items or ())))
        for operation in group:
            if operation.items is None and not operation.is_idle_claim:
                operation.result = operation.work(self.table)


class _Signals(asyncio.DatagramProtocol):
    """Tells other processes which topics were changed, and wakes who waits in this one when they tell.

    `publish` is for whichever thread commits, under the file's lock; all else is of the loop on which the broker was
    opened. What a lost datagram does not say, a look at the file each second finds.
    """

    def __init__(self, broker: SQLiteBroker, file: _SQLiteFile) -> None:
        self._broker = broker
        self._file = file
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.DatagramTransport | None = None
        self._port: int | None = None  # where this process listens
        self._kinds = ""  # first letters of the kinds of topics that others tell us of
        self._lock = asyncio.Lock()
        self._socket: socket.socket | None = None  # to send from
        self._listeners: list[tuple[int, str]] = []  # ports and kinds, as of a moment ago
        self._fresh_until = 0.0
        self._look_timer: asyncio.TimerHandle | None = None
        self._data_version = 0

    # Telling -----------------------------------------------------------------------------------

    def publish(self, table: SQLiteTable) -> None:
        """Say what changed to whom it concerns."""
        if table.woken and (now := time.monotonic()) > self._fresh_until:  # a look costs 1.8 us, a lone submit 25
            with contextlib.suppress(Exception):  # a store that is gone has no list of listeners either
                self._listeners = [listener for listener in table.listeners() if listener[0] != self._port]
            self._fresh_until = now + _LISTENERS_FRESH
        for port, kinds in self._listeners:
            if topics := [topic for topic in table.woken if topic[0][0] in kinds]:
                self._send(port, topics)

    def _send(self, port: int, topics: Sequence[Topic]) -> None:
        import socket

        text = json.dumps(topics)
        with contextlib.suppress(OSError):
            if self._socket is None:
                self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                self._socket.setblocking(False)
            self._socket.sendto((text if len(text) < _DATAGRAM_LIMIT else "[]").encode(), ("127.0.0.1", port))

    # Hearing -----------------------------------------------------------------------------------

    async def listen(self, kind: str) -> None:
        """Make sure that other processes tell this one of a kind of topics."""
        if kind in self._kinds or self._broker.path is None:
            return
        async with self._lock:  # two callers at once would open two sockets
            if kind in self._kinds:
                return
            if self._transport is None:
                try:
                    self._transport, _ = await self._loop.create_datagram_endpoint(
                        lambda: self, local_addr=("127.0.0.1", 0)
                    )
                except OSError as error:
                    self._kinds += kind  # said once is enough
                    logger.warning("%s: no socket for wake-ups (%s); looking each second", self._broker.path, error)
                    return
            port: int = self._transport.get_extra_info("sockname")[1]
            self._port, kinds = port, self._kinds + kind
            await self._broker.run(_Operation(lambda table: table.listen(port, kinds)))
            self._kinds = kinds
            if self._look_timer is not None:
                self._look_timer.cancel()
            self._look_timer = self._loop.call_later(2 * _LISTENERS_FRESH, self._look)  # who wrote may not know us yet

    def datagram_received(self, data: bytes, addr: object) -> None:
        try:
            topics = [(str(kind), str(name)) for kind, name in json.loads(data)]
        except (ValueError, TypeError, RecursionError):  # not one of ours
            topics = []
        if topics:
            self.wake(topics)
        else:
            self._look_everywhere()  # too much for one datagram

    def wake(self, topics: Iterable[Topic]) -> None:
        """Wake those who wait; ("queue", "") stands for all queues."""
        for topic in topics:
            if topic == ("queue", ""):
                self._broker.hub.wake_all("queue")
            else:
                self._broker.hub.wake(topic)

    # Looking -----------------------------------------------------------------------------------

    def next_look(self) -> float:
        """When to look next: the same moment for all timers, so that an idle process is woken once for all of them.

        A broker for another thread has other moments: two threads that wake at once get in each other's way.
        """
        now = self._loop.time()
        return now + _LOOK_EVERY - (now + (_LOOK_EVERY / 2 if self._broker.in_place else 0.0)) % _LOOK_EVERY

    def keep_looking(self) -> None:
        """Have the file looked at, as long as somebody waits."""
        if self._look_timer is None and self._broker.path is not None:
            self._look_timer = self._loop.call_at(self.next_look(), self._look)

    def _look(self) -> None:
        """See by data_version whether anything was committed (2.6 us)."""
        self._look_timer = None
        if self._broker.hub.waiters:
            self.keep_looking()  # now, since this look may fail
        try:
            version = self._broker.data_version()
            if version != self._data_version:
                self._data_version = version
                self._look_everywhere()
            elif ("worker", "") in self._broker.hub.waiters and self._broker.peek(SQLiteTable.dead_workers):
                self._broker.hub.wake(("worker", ""))  # the next heartbeat will put their jobs back
        except StoreLostError as error:
            self._broker.hub.close(error)
        except BrokerError as error:  # of a store that is just going, or away for a moment: the next look will tell
            logger.warning("cannot look for what others wrote: %s", error)

    def _look_everywhere(self) -> None:
        """Take it that anything may have happened; of notices the next heartbeat will tell."""
        waited = self._broker.hub.waiting("job")
        done = self._broker.peek(lambda table: table.finished(waited)) if waited else []
        self.wake([("queue", ""), *(("job", task_id) for task_id in done)])

    # The end -----------------------------------------------------------------------------------

    async def close(self) -> None:
        """Hear no more."""
        async with self._lock:
            self.abandon()

    def abandon(self) -> None:
        """The same on a loop that has ended; one that is closed has closed nothing of it, and cannot any more."""
        if self._look_timer is not None:
            self._look_timer.cancel()
        if self._transport is not None:
            with contextlib.suppress(RuntimeError):
                self._transport.close()

    def unlisten(self) -> None:
        """Leave the list of listeners, from whichever thread closes the file."""
        if self._socket is not None:
            self._socket.close()
        if (port := self._port) is not None:
            with contextlib.suppress(Exception):  # a store that is gone has no list of listeners either
                self._file.transact(lambda: self._file.table.unlisten(port), sync=_LAZILY, patience=0.1)


def _call_soon(loop: asyncio.AbstractEventLoop, function: Callable[..., Any], *args: Any) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed; nobody waits any more
        loop.call_soon_threadsafe(function, *args)


class SQLiteBroker(Broker):
    """Jobs in a SQLite file that many processes of one host share; without `path`, private and in memory.

    `synchronous="normal"` lets a power cut undo the last moments before it; "full" does not. With
    `in_place` every call runs on the calling thread, which is for a loop that does nothing else.
    """

    keeps_text = keeps_activity = True

    def __init__(
        self,
        path: str | None = None,
        config: BrokerConfig | None = None,
        retention: BackendConfig | None = None,
        clock: Clock | None = None,
        *,
        synchronous: str = "full",
        in_place: bool = False,
    ) -> None:
        if synchronous.lower() not in ("full", "normal"):
            raise ConfigError(f"synchronous must be 'full' or 'normal', not {synchronous!r}")
        self.path = None if path is None else os.path.abspath(path)
        self.config = config or BrokerConfig()
        self.retention = retention or BackendConfig()
        self.clock = clock or Clock()
        self.in_place = in_place
        self.hub = WaiterHub()
        self._synchronous = synchronous
        self._signals: _Signals
        self._file: _SQLiteFile | None = None
        self._writer: threading.Thread | None = None

    def clone(self) -> SQLiteBroker | None:
        if self.path is None:
            return None
        options: dict[str, Any] = {"synchronous": self._synchronous, "in_place": True}
        return SQLiteBroker(self.path, self.config, self.retention, self.clock, **options)

    # Opening and closing -----------------------------------------------------------------------

    async def open(self) -> None:
        if self._file is not None and self._file.is_ours:
            self._signals.abandon()
            await asyncio.to_thread(self._abandon, self._file)
        elif self._file is not None:  # of the parent of a fork, which goes on to use it: neither used nor collected
            self._inherited, self._writer = vars(self).copy(), None
        self.hub = WaiterHub()
        file = _SQLiteFile(self.path, self._synchronous, self.config.timeout)
        self._loop = asyncio.get_running_loop()
        self._inbox: thread_queue.SimpleQueue[list[_Operation] | None] = thread_queue.SimpleQueue()
        self._gathered: list[_Operation] = []  # of this turn of the loop, on their way to the writer
        self._written = asyncio.Event()  # the writer has ended
        self._upkeep: asyncio.Future[Any] = self._loop.create_future()  # the latest step, to be followed by another
        self._upkeep.set_result(None)
        self._pending = 0  # operations handed to the writer and not answered yet
        self._is_grouping = False  # whether the last group held more than one operation
        self._turn_of: asyncio.Task[Any] | None = None  # who has pushed in place in this turn of the loop
        self._turn_began = 0.0
        self._was_slow = False  # the last commit in place
        self._here_again = 0.0  # after slow commits: not in place before this moment
        self._signals = _Signals(self, file)
        with self._translated():
            await asyncio.to_thread(file.open, self.retention, self.clock, not self.in_place)
        self._reader = file.reader
        self._reading = SQLiteTable(self._reader, self.retention, self.clock)
        file.publish = self._signals.publish
        self.store_id = file.identity
        self._file = file

    async def close(self) -> None:
        file, self._file = self._file, None
        if file is None:
            return
        if self._writer is not None:
            file.give_up_at = time.monotonic() + _LOCKED_CLOSE
            self._pass_on()
            self._inbox.put(None)
            await self._written.wait()  # no thread could be had to join it at the exit of the interpreter
        await asyncio.sleep(0)  # the writer's last answers are on the loop by now
        await self._signals.close()
        self.hub.close(BrokerError("the broker was closed while this call was waiting"))
        self._abandon(file)
        await asyncio.sleep(0)  # for the transport, which closes its socket in the next turn

    def _abandon(self, file: _SQLiteFile) -> None:
        """Close all that is of no loop, also when its loop ended without closing it."""
        self._file = None
        if self._writer is not None:
            self._inbox.put(None)
            self._writer.join()
            self._writer = None
        self._signals.unlisten()
        file.close()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            translated = _explain_sqlite(error, self.path, self.config.timeout)
            if translated is error:
                raise
            raise translated from error

    def _opened(self) -> _SQLiteFile:
        if self._file is None:
            raise BrokerError(f"the broker on {self.path or 'sqlite://'} is not open")
        self._file.check()
        return self._file

    # Writing -----------------------------------------------------------------------------------

    async def run(self, operation: _Operation, *, here: bool = False) -> Any:
        """Have an operation run in the next group; or on this thread, which saves two thread hops (60 us).

        `here`: the caller does nothing else meanwhile. Cancelling leaves it open whether the operation was done.
        """
        file = self._opened()
        if (self.in_place or (here and not self._pending)) and self._run_here(file, operation):
            if operation.error is not None:
                raise _explain_sqlite(operation.error, self.path, self.config.timeout)
            return operation.result
        return await self._hand_over(operation)

    def _run_here(self, file: _SQLiteFile, operation: _Operation) -> bool:
        """Run it on this thread; False if somebody else holds a lock, or the disk is slow.

        After two commits in a row that took over 2 ms the next ones keep off the loop for three times as long, so
        that a slow disk blocks it for a quarter of the time at the most. One is but a checkpoint of the log.
        """
        began = time.monotonic()
        if (not self.in_place and began < self._here_again) or not file.lock.acquire(blocking=self.in_place):
            return False
        try:
            woken = file.run_group([operation], self.config.timeout if self.in_place else 0.0)
            left = file.table.upkeep_left
        finally:
            file.lock.release()
        took = time.monotonic() - began
        if took > _SLOW_COMMIT and self._was_slow:
            self._here_again = began + 4 * took
        self._was_slow = took > _SLOW_COMMIT
        if operation.error is not None and not self.in_place and _is_busy(operation.error):
            operation.error = None
            return False
        self._go_on(left)
        self._signals.wake(woken)
        return True

    def _hand_over(self, operation: _Operation) -> asyncio.Future[Any]:
        """Give the operation to the writer thread, with all others of this turn of the loop.

        The future brings its result.
        """
        file = self._opened()
        if self._writer is None:
            writer = threading.Thread(target=self._write, args=(file,), name="flowrra-sqlite", daemon=True)
            writer.start()
            self._writer = writer
        operation.future = self._loop.create_future()
        self._pending += 1
        if not self._gathered:
            self._loop.call_soon(self._pass_on)
        self._gathered.append(operation)
        return operation.future

    def _pass_on(self) -> None:
        if self._gathered:
            self._inbox.put(self._gathered)
            self._gathered = []

    def _write(self, file: _SQLiteFile) -> None:
        """The writer thread: take what has gathered, commit it as one group, answer the group."""
        while (group := self._inbox.get()) is not None:
            ending = False
            while not ending and not self._inbox.empty():
                more = self._inbox.get()
                ending = more is None
                group += more or ()
            woken = self._write_group(file, group)
            try:
                self._loop.call_soon_threadsafe(self._answer, group, woken, file.table.upkeep_left)
            except RuntimeError:  # the loop was closed without closing the broker
                return
            if ending:
                break
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._written.set)

    def _write_group(self, file: _SQLiteFile, group: Sequence[_Operation]) -> Mapping[Topic, None]:
        """What the thread must outlive, whatever it is, since its callers wait: then each of them is told."""
        try:
            with file.lock:
                return file.run_group(group, self.config.timeout)
        except BaseException as error:
            logger.critical("the writer of %s failed", self.path or "sqlite://", exc_info=error)
            for operation in group:
                operation.error = BrokerError(f"the writer of {self.path or 'sqlite://'} failed: {error!r}")
            return {}

    def _answer(self, group: Sequence[_Operation], woken: Mapping[Topic, None], left: float | None) -> None:
        self._pending -= len(group)
        self._is_grouping = len(group) > 1
        for operation in group:
            if operation.future is None or operation.future.done():
                continue  # its caller was cancelled
            if operation.error is None:
                operation.future.set_result(operation.result)
            else:
                operation.future.set_exception(_explain_sqlite(operation.error, self.path, self.config.timeout))
        self._go_on(left)
        self._signals.wake(woken)

    def _go_on(self, now: float | None) -> None:
        """Have the writer take another step of an upkeep that is too much for one claim, unless it is about to."""
        if now is None or self._file is None or self.in_place or not self._upkeep.done():
            return
        self._upkeep = self._hand_over(_Operation(lambda table: table.upkeep(now)))
        self._upkeep.add_done_callback(lambda done: done.cancelled() or done.exception())  # the next claim tries again

    # The protocol ------------------------------------------------------------------------------

    async def push(self, jobs: Sequence[Job], *, now: float, by: str | None = None) -> list[str]:
        self._opened()
        for job in jobs:
            job.payload = encode_arguments(job)
        if by is not None:
            return cast("list[str]", await self._durably(lambda table: table.push(jobs, now=now, by=by)))
        operation = _Operation(lambda table, jobs: table.push(jobs, now=now), _BEFORE_ANSWER, "push", jobs)
        here = len(jobs) == 1 and len(jobs[0].parents) < 100 and self._is_alone()
        ids = cast("list[str]", await self.run(operation, here=here))
        if here and time.monotonic() - self._turn_began > 0.001:
            await asyncio.sleep(0)  # others shall have the loop, too
        return ids

    def _is_alone(self) -> bool:
        """Whether the caller seems to be the only submitter: nothing is under way, and nobody else has pushed in
        this turn of the loop."""
        if self._is_grouping or self._pending:
            return False
        submitter = asyncio.current_task(self._loop)
        if self._turn_of is None:
            self._turn_of, self._turn_began = submitter, time.monotonic()
            self._loop.call_soon(self._end_turn)
        return self._turn_of is submitter

    def _end_turn(self) -> None:
        self._turn_of = None

    def push_in(self, connection: Any, jobs: Sequence[Job], *, now: float) -> list[str]:
        self._opened()
        for job in jobs:
            job.payload = encode_arguments(job)
        with self._translated(), _plain_rows(connection):
            files = {row[1]: row[2] for row in connection.execute("PRAGMA database_list")}
            if self.path is None or not files.get("main") or not os.path.samefile(files["main"], self.path):
                raise ConfigError(
                    f"the connection is on {files.get('main') or 'a private database'}, the jobs in {self.path}"
                )
            ids = _push_all_or_none(connection, SQLiteTable(connection, self.retention, self.clock), jobs, now)
        # Nothing tells us of the caller's commit; workers look on their own. It may be another thread's connection.
        _call_soon(self._loop, self._signals.keep_looking)
        return ids

    async def wait(self, topics: Sequence[Topic], timeout: float | None) -> None:
        self._opened()
        kind = topics[0][0]
        await self._signals.listen(kind[0])
        # From here to the wait nothing is awaited: else what happens in between would wake nobody.
        if kind == "job" and self.peek(lambda table: table.finished([name for _, name in topics])):
            return
        self._signals.keep_looking()
        now = self._loop.time()
        if timeout is not None and now + timeout > (look := self._signals.next_look()):
            timeout -= (now + timeout - look) % _LOOK_EVERY
        due = self.peek(SQLiteTable.next_due) if kind == "queue" else None
        if due is not None:
            timeout = min(math.inf if timeout is None else timeout, due - self.clock.time())
        try:
            await self.hub.wait(topics, timeout)
        finally:
            for topic in topics:  # so that the claim that follows is a lone one, made on this thread
                self.hub.forget(topic)

    async def claim(self, queue: str, *, limit: int, worker: str, now: float, crashes: int = LAST_CHANCE) -> list[Job]:
        is_fresh = self.hub.look(("queue", queue))
        operation = _Operation(
            lambda table: table.claim(queue, limit=limit, worker=worker, now=now, crashes=crashes), kind="claim"
        )
        rows = await self.run(operation, here=is_fresh and limit <= 100)
        return [claimed_job(row, worker, now) for row in rows]

    async def settle(self, outcomes: Sequence[Outcome], *, now: float) -> list[bool]:
        for outcome in outcomes:
            if outcome.status is SUCCESS and outcome.text is None:
                outcome.text = encode_value(outcome)
        work = _Operation(lambda table, items: table.settle(items, now=now), _BEFORE_SIGHT, "settle", outcomes)
        return cast("list[bool]", await self.run(work))

    async def heartbeat(self, worker: WorkerInfo, *, lease: float, now: float) -> Notices:
        self.hub.look(("worker", ""))
        operation = _Operation(lambda table: table.heartbeat(worker, lease=lease, now=now))
        notices, term = cast("tuple[Notices, str]", await self.run(operation, here=True))
        worker.seen, worker.term = now, term or worker.term
        return notices

    async def report(self, progress: Mapping[tuple[str, int], Progress]) -> None:
        await self.run(_Operation(lambda table: table.report(progress)))

    async def _durably(self, work: Callable[[SQLiteTable], T]) -> T:
        return cast("T", await self.run(_Operation(work, _BEFORE_SIGHT)))

    async def change(self, task_ids: Sequence[str], action: Action, *, now: float, by: str | None = None) -> list[bool]:
        return await self._durably(lambda table: table.change(task_ids, action, now=now, by=by))

    async def remove(
        self, task_ids: Sequence[str] = (), *, by: str | None = None, before: float | None = None, limit: int = 1000
    ) -> Collection[str]:
        operation = _Operation(lambda table: table.remove(task_ids, by, before, limit))
        operation.sync = _BEFORE_SIGHT if before is None else _LAZILY
        return cast("set[str]", await self.run(operation))

    async def set_queue(self, queue: str, *, paused: bool) -> None:
        check_queue(queue)
        await self._durably(lambda table: table.set_queue(queue, paused=paused))

    async def record(self, results: Sequence[TaskResult[Any]]) -> None:
        await self._durably(lambda table: table.record(results))

    async def find(
        self, which: JobFilter, *, limit: int = 100, after: int | None = None, oldest_first: bool = False
    ) -> list[Job]:
        def look(table: SQLiteTable) -> list[Job]:
            return table.find(which, limit=limit, after=after, oldest_first=oldest_first)

        if which.ids is None or len(which.ids) > 100:
            return await self._look_up(look)
        self._opened()
        return self.peek(look)  # by key, from the page cache: 20 us, and a reader never waits

    async def counts(self, which: JobFilter | None = None) -> dict[tuple[str, TaskStatus], int]:
        return await self._look_up(lambda table: table.counts(which or JobFilter()))

    async def overview(self, since: float | None = None) -> Overview:
        return await self._look_up(lambda table: table.overview(since))

    def data_version(self) -> int:
        """A number that changes with each commit to the file by another connection."""
        if self._file is not None:  # else it is just being closed
            self._file.check()
        with self._translated():
            return cast("int", self._reader.execute("PRAGMA data_version").fetchone()[0])

    def peek(self, look: Callable[[SQLiteTable], T]) -> T:
        """Read what is quickly read, on this thread."""
        # A private database has but one connection.
        with self._translated(), contextlib.nullcontext() if self.path is not None else self._opened().lock:
            return look(self._reading)

    async def _look_up(self, look: Callable[[SQLiteTable], T]) -> T:
        """Read what may take long, in a thread with a connection of its own."""
        file = self._opened()
        with self._translated():
            return await asyncio.to_thread(self._look_apart, file, look)

    def _look_apart(self, file: _SQLiteFile, look: Callable[[SQLiteTable], T]) -> T:
        if self.path is None:
            return self.peek(look)
        with contextlib.closing(_connect(self.path, read_only=True)) as connection:
            return look(SQLiteTable(connection, self.retention, self.clock))


@contextlib.contextmanager
def _plain_rows(connection: sqlite3.Connection) -> Iterator[None]:
    """Have a user's connection give tuples of text for a moment, whatever it gives to the user."""
    kept = connection.row_factory, connection.text_factory
    connection.row_factory, connection.text_factory = None, str
    try:
        yield
    finally:
        connection.row_factory, connection.text_factory = kept


def _push_all_or_none(connection: sqlite3.Connection, store: SQLiteTable, jobs: Sequence[Job], now: float) -> list[str]:
    begun = connection.in_transaction
    if not begun:
        connection.execute("BEGIN IMMEDIATE")
    connection.execute("SAVEPOINT flowrra_push")
    try:
        ids = store.push(jobs, now=now)
    except BaseException:
        if connection.in_transaction:  # a full disk has ended it
            for undo in ("ROLLBACK TO flowrra_push", "RELEASE flowrra_push") if begun else ("ROLLBACK",):
                connection.execute(undo)
        raise
    connection.execute("RELEASE flowrra_push")
    return ids


def _connect(path: str | None, *, read_only: bool = False) -> sqlite3.Connection:
    import sqlite3

    if sqlite3.sqlite_version_info < (3, 35):
        raise ConfigError(f"SQLite {sqlite3.sqlite_version} is too old: Flowrra needs 3.35 or later")
    connection = sqlite3.connect(path or ":memory:", timeout=0, isolation_level=None, check_same_thread=False)
    if read_only:
        connection.execute("PRAGMA busy_timeout=5000")  # a reader waits only while a log is recovered
        connection.execute("PRAGMA query_only=1")
    return connection


def _statements(script: str) -> Iterator[str]:
    import sqlite3

    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _is_busy(error: Exception) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (5, 6)  # SQLITE_BUSY, SQLITE_LOCKED, extended or not


_SQLITE_REASONS: Mapping[int, str] = {
    5: "has been locked by another process for {timeout:g} s: is something holding a transaction open?",
    6: "has been locked by another connection for {timeout:g} s: is something holding a transaction open?",
    8: "cannot be written: make the file and its folder writable for this user",
    10: "cannot be read or written ({error}): look at the disk and its mount",
    11: "is damaged ({error}): restore a backup, or use another file",
    13: "is on a full disk: nothing of this call was written; make room and try again",
    14: "cannot be opened: does its folder exist, and may this user write there?",
    26: "is not a SQLite database: choose another file",
    517: "was changed by others after this transaction had begun to read it: begin it by BEGIN IMMEDIATE",
}


def _explain_sqlite(error: Exception, path: str | None, timeout: float) -> Exception:
    """What a sqlite3 error means for the user; other errors as they are."""
    import sqlite3

    if not isinstance(error, sqlite3.Error):
        return error
    code = getattr(error, "sqlite_errorcode", 0)
    reason = _SQLITE_REASONS.get(code) or _SQLITE_REASONS.get(code & 0xFF, "failed: {error}")
    return BrokerError(f"{path or 'sqlite://'} " + reason.format(error=error, timeout=timeout))


# ---------------------------------------------------------------------------
# 10. Tasks
#
# What users declare and call: a function with its options, one submission of
# it, and what a running job knows of itself. Arguments are checked against
# the signature here, so that a wrong call fails in the caller.
# ---------------------------------------------------------------------------


class Submitter:
    """What a task needs of its app: a way to hand in jobs."""

    def submit_jobs(self, jobs: Sequence[Job]) -> Awaitable[list[str]]:
        """Push the jobs; their ids."""
        raise NotImplementedError

    def new_id(self) -> str:
        """An id that no other job has."""
        raise NotImplementedError

    def now(self) -> float:
        """The app's wall clock."""
        raise NotImplementedError


class _Unawaited(Coroutine[Any, Any, T]):
    """A call that was made where no event loop runs: if it is dropped without being awaited, that is said."""

    def __init__(self, call: Coroutine[Any, Any, T], name: str) -> None:
        self._call, self._name = call, name

    def send(self, value: Any) -> Any:
        return self._call.send(value)

    def throw(self, *error: Any) -> Any:
        return self._call.throw(*error)

    def close(self) -> None:
        self._call.close()

    def __await__(self) -> Generator[Any, Any, T]:
        return self._call.__await__()

    def __del__(self) -> None:  # Python itself warns too, to stderr, without a way out
        if inspect.getcoroutinestate(self._call) == inspect.CORO_CREATED:
            logger.error(
                "%s() was called without await, so nothing was submitted: use app.sync in plain code", self._name
            )


def _never_dropped(call: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """An `async def` whose call in plain code, such as a Flask view, does not get lost in silence."""

    @functools.wraps(call)
    def made(*args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]:
        coroutine = call(*args, **kwargs)
        return _Unawaited(coroutine, call.__qualname__) if asyncio._get_running_loop() is None else coroutine

    if sys.version_info >= (3, 12):
        return inspect.markcoroutinefunction(made)
    made._is_coroutine = asyncio.coroutines._is_coroutine  # type: ignore[attr-defined]  # what frameworks ask for
    return made


class SubmitOptions(TypedDict, total=False):
    """What `Task.options` takes, and `Flowrra.submit` where the task has no parameter of that name.

    `priority`: a lower number runs first. `queue`: the queue to wait in. `delay`: seconds from the submission
    before which it does not run; `run_at`: the same as a moment, a naive one is the machine's local time.
    `expires`: seconds or moment after which a job that has not begun is cancelled. `unique`: while an unfinished
    job has this key, submitting returns that job's id. `task_id`: the id to use; submitting it again changes
    nothing. The others are for the task's own; None is as if it were left out.
    """

    priority: int | None
    queue: str | None
    delay: float | dt.timedelta | None
    run_at: dt.datetime | None
    expires: float | dt.timedelta | dt.datetime | None
    unique: str | None
    task_id: str | None
    timeout: float | None
    max_retries: int | None
    retry_delay: float | None
    backoff: float | None
    max_delay: float | None
    jitter: bool | None
    result_ttl: float | None


SUBMIT_OPTIONS = frozenset(SubmitOptions.__annotations__)
# Those that stand for the task's own in each attempt; a job keeps them as its `overrides`.
_OVERRIDES = frozenset(("timeout", "max_retries", "retry_delay", "backoff", "max_delay", "jitter", "result_ttl"))


# With these, `inspect` takes an object for the function (its _signature_is_functionlike), so that frameworks
# await a task where they would await its function: FastAPI's BackgroundTasks would drop the coroutine otherwise.
_OF_A_FUNCTION = (
    *("__module__", "__name__", "__qualname__", "__doc__"),
    *("__code__", "__defaults__", "__kwdefaults__", "__annotations__"),
)


class Task(Generic[P, R]):
    """A registered function with its options. Calling it runs the function here and now."""

    __name__: str

    def __init__(self, app: Submitter, function: Callable[..., Any], name: str, options: TaskOptions) -> None:
        self.app = app
        self.function = function
        self.name = name
        self.settings = options
        self.queue = options.effective_queue
        self.priority = options.priority
        self.is_async = inspect.iscoroutinefunction(function)
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise ConfigError(f"the task {name!r} is a generator, of which a call runs nothing: return a list instead")
        self.signature = inspect.signature(function)
        self._least, self._most = _positional_range(self.signature)
        parameters = self.signature.parameters.values()
        named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        self.submit_options = SUBMIT_OPTIONS - named
        self.__wrapped__ = function
        for attribute in _OF_A_FUNCTION:
            if hasattr(function, attribute):
                setattr(self, attribute, getattr(function, attribute))

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<task {self.name}>"

    @_never_dropped
    async def submit(self, *args: P.args, **kwargs: P.kwargs) -> TaskId[R]:
        """Submit one job; see `Flowrra.submit`."""
        job = self.make_job(args, kwargs)
        return cast("TaskId[R]", (await self.app.submit_jobs((job,)))[0])

    def options(self, **options: Unpack[SubmitOptions]) -> Submission[P, R]:
        """The task with options for what is submitted through the returned object; see `SubmitOptions`.

        Raises:
            ConfigError: an option is out of range.
            TypeError: there is no such option.
        """
        for wrong in options.keys() - SUBMIT_OPTIONS:
            raise TypeError(f"{self.name} cannot be submitted with {wrong!r}{nearest(wrong, SUBMIT_OPTIONS)}")
        given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        if "delay" in given and "run_at" in given:
            raise ConfigError("give delay= or run_at=, not both")
        overrides = {name: value for name, value in given.items() if name in _OVERRIDES}
        checked = dataclasses.replace(self.settings, **overrides)
        expires = given.get("expires")
        return Submission(
            self,
            priority=check_priority(given.get("priority", self.priority)),
            queue=check_queue(given.get("queue", self.queue)),
            delay=_seconds("delay", given["delay"]) if "delay" in given else None,
            run_at=_timestamp("run_at", given["run_at"]) if "run_at" in given else None,
            expires=expires if expires is None or isinstance(expires, dt.datetime) else _seconds("expires", expires),
            unique=check_key("unique", given.get("unique")),
            task_id=check_key("task_id", given.get("task_id")),
            overrides={name: getattr(checked, name) for name in overrides} or None,
        )

    def check(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Raise the TypeError that calling the function with these arguments would raise."""
        try:
            self.signature.bind(*args, **kwargs)
        except TypeError as error:
            wrong = min(kwargs.keys() - self.signature.parameters.keys(), default=None)
            hint = f", nor has submit such an option{nearest(wrong, self.submit_options)}" if wrong else ""
            raise TypeError(f"{self.name}{self.signature}: {error}{hint}") from None

    def make_job(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Job:
        """A job of this task, checked and ready to be pushed."""
        if kwargs or not self._least <= len(args) <= self._most:
            self.check(args, kwargs)
        job = Job(self.app.new_id(), self.name, tuple(args), kwargs, self.queue, self.priority)
        if kwargs or not _SCALARS.issuperset(map(type, args)):
            job.parents = parents_in(args, kwargs)
        return job


def _positional_range(signature: inspect.Signature) -> tuple[int, float]:
    """How many arguments may be given if all are positional; (1, 0) if that never suffices."""
    least, most = 0, 0.0
    for parameter in signature.parameters.values():
        required = parameter.default is parameter.empty
        if parameter.kind is parameter.KEYWORD_ONLY:
            if required:
                return 1, 0
        elif parameter.kind is parameter.VAR_POSITIONAL:
            most = math.inf
        elif parameter.kind is not parameter.VAR_KEYWORD:
            least += required
            most += 1
    return least, most


def parents_in(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[str, ...]:
    """The ids of the jobs whose results stand in the arguments."""
    parents: dict[str, None] = {}
    seen: set[int] = set()  # a container may stand in several places, and in itself
    values = [*args, *kwargs.values()]
    for value in values:  # it grows meanwhile
        if isinstance(value, ResultOf):
            parents[str(value.task_id)] = None
        elif type(value) in _PLAIN or id(value) in seen:
            continue
        elif isinstance(value, list | tuple | dict):
            seen.add(id(value))
            values += value.values() if isinstance(value, dict) else value
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            seen.add(id(value))
            values += [getattr(value, f.name) for f in dataclasses.fields(value)]
    return tuple(parents)


def put_results(value: Any, results: Mapping[str, Any]) -> Any:
    """`value` with each placeholder in it replaced by the result it stands for; what holds none stays as it is."""
    if isinstance(value, ResultOf):
        return results[value.task_id]
    if not (isinstance(value, list | tuple | dict) and parents_in([value], {})):
        return value
    if isinstance(value, dict):
        return {key: put_results(item, results) for key, item in value.items()}
    placed = [put_results(item, results) for item in value]
    return placed if isinstance(value, list) else tuple(placed)


def _timestamp(name: str, moment: object) -> float:
    if not isinstance(moment, dt.datetime):
        raise ConfigError(f"{name} must be a datetime, not {moment!r}")
    try:
        return min(moment.timestamp(), LAST_MOMENT)
    except (ValueError, OverflowError, OSError):  # the last one: on Windows, before the epoch
        raise ConfigError(f"{name} lies too far from now for this machine's local time: {moment!r}") from None


def _from_now(name: str, now: float, seconds: float) -> float:
    if now + seconds > LAST_MOMENT:
        raise ConfigError(f"{name}={seconds!r} s from now lies beyond the year 9999")
    return now + seconds


def check_key(name: str, key: object) -> str | None:
    if key is None or (_is_storable(key) and 0 < len(key) <= 255):
        return key
    raise ConfigError(f"{name} must be a text of 1 to 255 characters, not {key!r}")


@dataclass(frozen=True, slots=True)
class Submission(Generic[P, R]):
    """A task with options for submitting; made by `Task.options`."""

    task: Task[P, R]
    priority: int
    queue: str
    delay: float | None
    run_at: float | None
    expires: float | dt.datetime | None
    unique: str | None
    task_id: str | None
    overrides: Mapping[str, Any] | None

    @_never_dropped
    async def submit(self, *args: P.args, **kwargs: P.kwargs) -> TaskId[R]:
        """Submit one job with these options; see `Flowrra.submit`."""
        job = self.make_job(args, kwargs)
        return cast("TaskId[R]", (await self.task.app.submit_jobs((job,)))[0])

    def make_job(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Job:
        """A job of the task with these options, ready to be pushed."""
        job = self.task.make_job(args, kwargs)
        now = self.task.app.now()
        job.id = self.task_id or job.id
        job.priority, job.queue, job.unique, job.overrides = self.priority, self.queue, self.unique, self.overrides
        job.due = self.run_at if self.delay is None else _from_now("delay", now, self.delay)
        if isinstance(self.expires, dt.datetime):
            job.expires = _timestamp("expires", self.expires)
        elif self.expires is not None:
            job.expires = _from_now("expires", now, self.expires)
        return job


class Registry(dict[str, Task[..., Any]]):
    """The tasks of an app by name. `on_new` is called with each task that is added."""

    def __init__(self) -> None:
        super().__init__()
        self.on_new: Callable[[Task[..., Any]], None] = lambda task: None

    def add(self, task: Task[..., Any]) -> None:
        """Register a task; ConfigError if its name is taken by another function, or by this one with other options."""
        old = self.get(task.name)
        if old is not None and not _is_reloaded(old.function, task.function):
            places = _place(old.function), _place(task.function)
            if old.function != task.function:
                raise ConfigError(
                    f"two tasks are called {task.name!r}, at {places[0]} and {places[1]}: give one another name=, "
                    "or let the decorator that made both use functools.wraps"
                )
            if old.settings != task.settings:
                raise ConfigError(f"the task {task.name!r} at {places[0]} is registered twice, with different options")
        if task.settings.cpu_bound:
            _check_importable(task)
        self[task.name] = task
        self.on_new(task)


def _is_reloaded(old: Callable[..., Any], new: Callable[..., Any]) -> bool:
    """Whether a reload of its module has compiled the function again; two closures of one `def` share their code."""
    codes = [getattr(inspect.unwrap(function), "__code__", None) for function in (old, new)]
    return codes[0] is not codes[1] and _place(old) == _place(new)


def _place(function: Callable[..., Any]) -> str:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else repr(function)


def _check_importable(task: Task[..., Any]) -> None:
    """A process finds a task by module and name only; what it cannot find so is refused at once."""
    function = task.function
    trouble = getattr(function, "__qualname__", "<unknown>")
    if inspect.ismethod(function) and not isinstance(function.__self__, type):
        trouble += " of an object"
    elif _is_in_main(function) and _main_script()[0] is None and not os.path.isfile(_main_script()[1]):
        trouble += " of an interactive session"
    elif "<" not in trouble:
        return
    raise ConfigError(
        f"the CPU-bound task {task.name!r} is {trouble}, which another process cannot import: "
        "define it with def at the top level of a module"
    )


def task_name(function: Callable[..., Any]) -> str:
    """The default name: module and qualified name. A script's module is called as when it is imported."""
    name = getattr(function, "__qualname__", None)
    if not callable(function) or name is None or getattr(function, "__module__", None) is None:
        raise ConfigError(f"a task must be a function, not {function!r}")
    return f"{_module_of(function)}.{name}"


class JobContext:
    """What a running job may know of itself and do; see `current_job`."""

    __slots__ = ("attempt", "job")

    def __init__(self, job: Job) -> None:
        self.job = job
        #: The number of this attempt, from 1 on; it also counts attempts that did not fail.
        self.attempt = job.attempt  # kept, as a broker may share the job, which then goes on to the next one

    @property
    def id(self) -> str:
        """The job's id."""
        return self.job.id

    @property
    def task(self) -> str:
        """The task's name."""
        return self.job.task

    @property
    def queue(self) -> str:
        """The queue that it came from."""
        return self.job.queue

    @property
    def failures(self) -> int:
        """How many attempts have failed before this one."""
        return self.job.failures

    @property
    def state(self) -> Any:
        """What the app's lifespan has yielded; None in a CPU-bound task."""
        return None

    def progress(self, done: float, total: float | None = None, note: str | None = None) -> None:
        """Say how far the job is. Cheap: what came last is written twice a second at the most."""
        # Plain values: a store takes no number of numpy or decimal, and no page shows a NaN.
        total = None if total is None else _finite("total", float(total))
        self.report(Progress(_finite("done", float(done)), total, None if note is None else str(note)))

    def report(self, progress: Progress) -> None:
        """Pass progress on to whoever runs the job."""
        raise NotImplementedError

    def count_wait(self, change: int) -> None:
        """The job begins to wait for another one (1), or has ended a wait (-1)."""
        raise NotImplementedError

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """While the job waits for another one, its slot is free for others. On the loop's thread only."""
        self.count_wait(1)
        try:
            yield
        finally:
            self.count_wait(-1)


_current: contextvars.ContextVar[JobContext | None] = contextvars.ContextVar("flowrra_job", default=None)
_in_child: contextvars.ContextVar[bool] = contextvars.ContextVar("flowrra_child", default=False)


def current_job() -> JobContext:
    """The job that is running here: its id, attempt, progress(), and state of the app's lifespan.

    Raises:
        FlowrraError: the caller does not run in a job.
    """
    context = _current.get()
    if context is None:
        raise FlowrraError("current_job() was called outside of a job")
    return context


# ---------------------------------------------------------------------------
# 11. Executors
#
# How a function is run: on the loop, in a thread, or in a process that can be
# killed. Knows functions and payloads, nothing of brokers and retries.
# ---------------------------------------------------------------------------


class ThreadExecutor:
    """Runs plain functions in threads, as many as are asked for at once. They are daemons: no thread can be ended."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._calls: thread_queue.SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]] | None]
        self._calls = thread_queue.SimpleQueue()
        self._idle = 0  # threads that wait for a call
        self._is_closed = False

    async def run(self, function: Callable[[], T]) -> T:
        """What `function` returns or raises; a coroutine that it returns is awaited here.

        If cancelled, the thread is left to end its call; what that returns is dropped.
        """
        context = contextvars.copy_context()
        result, error = await self.call(lambda: context.run(function))
        if error is not None:
            raise error
        return cast("T", await result if inspect.iscoroutine(result) else result)

    def call(self, function: Callable[[], T]) -> asyncio.Future[tuple[T, BaseException | None]]:
        """Run it in a thread; the future brings what it returned and what it raised."""
        future: asyncio.Future[tuple[T, BaseException | None]] = self._loop.create_future()
        if self._idle:
            self._idle -= 1
            self._calls.put((function, future))
        else:  # also after the close: a process that was given up late is still waited for
            threading.Thread(target=self._work, args=((function, future),), name="flowrra-thread", daemon=True).start()
        return future

    def _work(self, item: tuple[Callable[[], Any], asyncio.Future[Any]] | None) -> None:
        while item is not None:
            function, future = item
            try:
                answer: tuple[Any, BaseException | None] = (function(), None)
            except BaseException as error:
                answer = (None, error)
            _call_soon(self._loop, self._resolve, future, answer)
            del item, function, future, answer
            item = self._calls.get() if not self._is_closed else self._last()

    def _last(self) -> tuple[Callable[[], Any], asyncio.Future[Any]] | None:
        """After the close: a call that was meant for this thread, as it was counted among the idle ones."""
        with contextlib.suppress(thread_queue.Empty):
            if (item := self._calls.get_nowait()) is not None:
                return item
            self._calls.put(None)  # for another one
        return None

    def _resolve(self, future: asyncio.Future[Any], answer: tuple[Any, BaseException | None]) -> None:
        _resolve(future, answer)
        if self._is_closed:
            self._calls.put(None)
        else:
            self._idle += 1

    def close(self) -> None:
        """End the threads as soon as their calls return."""
        self._is_closed = True
        while self._idle:
            self._idle -= 1
            self._calls.put(None)


class CpuCall(NamedTuple):
    """A call of a CPU-bound task, in terms that another process understands."""

    module: str
    file: str | None
    qualname: str
    payload: str
    job: Mapping[str, Any]

    @classmethod
    def of(cls, task: Task[..., Any], job: Job, args: Sequence[Any], kwargs: Mapping[str, Any]) -> CpuCall:
        """The call of `task` for `job` with these arguments, encoded unless the job has them so."""
        payload = job.payload
        if payload is None or job.parents:
            payload = encode_arguments(Job(job.id, task.name, tuple(args), kwargs))
        module, file = task.function.__module__, None
        if _is_in_main(task.function):
            name, file = _main_script()
            module = name or "__main__"
        known = ("id", "task", "queue", "attempt", "failures")
        return cls(module, file, task.function.__qualname__, payload, {name: getattr(job, name) for name in known})


class _ProcessSlot:
    """One process that runs one call at a time, started when needed. `run` and `reap` block."""

    def __init__(self, max_jobs: int | None, max_memory: int | None) -> None:
        self.is_spent = False  # whether the process is to be replaced before the next call
        self._limits = max_jobs, max_memory
        self._in_use = threading.Lock()  # held by the thread that talks to the process
        self._process: subprocess.Popen[bytes] | None = None
        self._has_begun = False
        self._killed = False

    def run(self, call: CpuCall | None, notify: Callable[..., None]) -> str:
        """The encoded result. A None call only starts the process, ahead of its next one.

        `notify` is called with "begin" when the task itself begins, and with "progress" and what that is.
        """
        with self._in_use:
            while True:
                process, is_new = self._get_process()
                self._has_begun, self.is_spent = False, True  # until it has answered
                try:
                    _write_frame(process.stdin, [logging.getLogger().level, call])
                    return self._read_answer(process, call, notify)
                except (EOFError, OSError):
                    if is_new or self._has_begun or self._killed:  # else it died while it was idle
                        when = "" if self._has_begun else " before the task began"
                        raise ProcessDiedError(f"the process of the task {_how_it_ended(process)}{when}") from None

    def _get_process(self) -> tuple[subprocess.Popen[bytes], bool]:
        """The process, and whether it is a new one."""
        if self._killed:
            raise ProcessDiedError("the call was given up before it began")
        process = self._process
        if process is not None and not self.is_spent and process.poll() is None:
            return process, False
        if process is not None:
            process.kill()
            process.communicate()
        try:
            self._process = process = _start_process()
        except OSError as error:
            raise ProcessDiedError(f"no process could be started for the task: {error}") from error
        if self._killed:  # while it was being started
            process.kill()
        with contextlib.suppress(OSError):  # it is dead already, as whoever writes next finds out
            _write_frame(process.stdin, [[str(argument) for argument in sys.argv], *self._limits])
        return process, True

    def _read_answer(self, process: subprocess.Popen[bytes], call: CpuCall | None, notify: Callable[..., None]) -> str:
        expected = None if call is None else [call.job["id"], call.job["attempt"]]
        while True:
            kind, sender, *parts = _read_frame(process.stdout)
            if kind == "log":
                _handle_record(*parts)
            elif sender != expected:
                continue  # of a thread that an earlier call has left behind
            elif kind in ("begin", "progress"):
                self._has_begun = True
                notify(kind, *parts)
            else:
                self.is_spent = parts.pop()
                if kind == "error":
                    raise RemoteError(*parts)
                return cast("str", parts[0])

    def kill(self) -> None:
        """End the process, and with it the call."""
        self._killed = True
        if self._process is not None:
            self._process.kill()

    def reap(self) -> None:
        """Wait until the process has ended."""
        with self._in_use:
            if self._process is not None:
                self._process.communicate()


def _start_process() -> subprocess.Popen[bytes]:
    import subprocess

    pipe = subprocess.PIPE
    # In a session of its own: a Ctrl-C in the terminal is for the worker, and would break a process that is starting.
    return subprocess.Popen(python("serve_calls()"), stdin=pipe, stdout=pipe, start_new_session=True)


def _handle_record(fields: dict[str, Any]) -> None:
    """Log what was logged in a process of the executor, as if it had been here."""
    record = logging.makeLogRecord(fields)
    try:
        if logging.getLogger(record.name).isEnabledFor(record.levelno):
            logging.getLogger().handle(record)  # a logger's own handlers are in the process, too
    except Exception:  # of a filter
        tracebacks.print_exc()


def python(call: str) -> list[str]:
    """A command that runs `call` on this module in another interpreter, which finds modules as this one does."""
    import subprocess

    path = [entry for entry in sys.path if isinstance(entry, str)]  # import passes over others, such as a Path
    start = f"import sys; sys.path[:] = {path!r}; import importlib; "
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # as multiprocessing does
    return [sys.executable, *flags, "-c", f"{start}sys.exit(importlib.import_module({__name__!r}).{call})"]


def _how_it_ended(process: subprocess.Popen[bytes]) -> str:
    process.communicate()
    code = process.returncode
    names = {number.value: number.name for number in signal.Signals}  # real-time signals have none
    return f"was ended by {names.get(-code, f'signal {-code}')}" if code < 0 else f"exited with status {code}"


def _write_frame(pipe: Any, message: Any) -> None:
    data = json.dumps(message).encode()
    pipe.write(len(data).to_bytes(4, "big") + data)
    pipe.flush()


def _read_frame(pipe: Any) -> Any:
    size = pipe.read(4)
    data = pipe.read(int.from_bytes(size, "big"))
    if len(size) < 4 or len(data) < int.from_bytes(size, "big"):
        raise EOFError
    return json.loads(data)


class ProcessExecutor:
    """Runs CPU-bound tasks in up to `size` processes, one call in each."""

    def __init__(self, size: int, threads: ThreadExecutor, max_jobs: int | None, max_memory: int | None) -> None:
        if max_memory is not None and resident_memory() is None:
            raise ConfigError("max_memory cannot be kept here: this system does not tell how much a process holds")
        self._size = size
        self._threads = threads
        self._limits = max_jobs, max_memory
        self._free = asyncio.Semaphore(size)
        self._idle: list[_ProcessSlot] = []
        self._busy: set[_ProcessSlot] = set()

    def warm_up(self) -> None:
        """Start all processes now, so that the first jobs need not wait for them."""
        for _ in range(self._size):
            self._start(_ProcessSlot(*self._limits))

    def _start(self, slot: _ProcessSlot) -> None:
        self._idle.insert(0, slot)  # those whose process runs are taken before it
        self._threads.call(lambda: slot.run(None, lambda *parts: None))

    async def run(self, call: CpuCall, notify: Callable[..., None]) -> Any:
        """The result of the call; `notify` as in the slot. If cancelled, its process is killed.

        Raises:
            RemoteError: the task raised an exception.
            ProcessDiedError: its process ended.
        """
        notify = functools.partial(_call_soon, asyncio.get_running_loop(), notify)
        async with self._free:
            slot = self._idle.pop() if self._idle else _ProcessSlot(*self._limits)
            self._busy.add(slot)
            try:
                result, error = await self._threads.call(lambda: slot.run(call, notify))
            except asyncio.CancelledError:
                self._end(slot)
                raise
            finally:
                self._busy.discard(slot)
            if slot.is_spent:
                self._start(slot)
            else:
                self._idle.append(slot)
        if error is not None:
            raise error
        return decode(result)

    def _end(self, slot: _ProcessSlot) -> None:
        slot.kill()
        self._threads.call(slot.reap)

    def close(self) -> None:
        """End all processes."""
        for slot in (*self._idle, *self._busy):
            self._end(slot)
        self._idle.clear()


def serve_calls() -> None:
    """The main function of an executor's process: run calls from stdin until it closes; first comes sys.argv.

    A thread reads, so that the process ends with its parent also in the middle of a call. What tasks
    print goes to stderr and what they read is empty, as stdin and stdout carry the calls and answers.
    """
    pid = os.getpid()
    _in_child.set(True)
    for number in _SIGNALS:  # meant for the worker, which ends this process itself
        signal.signal(number, _pass_over)
    pipe, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    sys.stdout = sys.stderr  # written line by line: what waits in a buffer is lost when the process is killed
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: _leave_worker(pipe, answers))
    calls: thread_queue.SimpleQueue[Any] = thread_queue.SimpleQueue()
    threading.Thread(target=_read_calls, args=(pipe, calls), daemon=True).start()
    sys.argv[:], max_jobs, max_memory = calls.get()
    logging.getLogger().addHandler(_WorkerLog(answers))
    done = 0
    while True:
        level, call = calls.get()
        logging.getLogger().setLevel(level)
        answer = _perform_call(CpuCall(*call), answers) if call else ["result", None, "null", False]
        done += bool(call)
        if os.getpid() != pid:
            return  # a copy of this process, which the task has forked and not ended
        answer[-1] = answer[-1] or _is_spent(done, max_jobs, max_memory)
        try:
            _write_frame(answers, answer)
        except OSError:
            os._exit(0)  # the parent is gone


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def _pass_over(number: int, frame: FrameType | None) -> None:
    """Handle a signal by doing nothing. To ignore it would have the programs that tasks start ignore it, too."""


def _is_spent(done: int, max_jobs: int | None, max_memory: int | None) -> bool:
    """Whether this process has run as many jobs, or holds as much memory, as it may."""
    if max_jobs is not None and done >= max_jobs:
        return True
    if max_memory is None or (memory := resident_memory() or 0) <= max_memory:
        return False
    logger.warning("process %d holds %d bytes, more than max_memory: it is replaced", os.getpid(), memory)
    return True


def resident_memory() -> int | None:
    """Bytes of memory that this process has; None where the system does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


class _WorkerLog(logging.Handler):
    """In a process of the executor: hands log records over to the worker, to be logged as its own are."""

    def __init__(self, answers: Any) -> None:
        super().__init__()
        self._answers = answers
        self._pid = os.getpid()

    def emit(self, record: logging.LogRecord) -> None:
        """Send the record; a process that the task has forked has nobody to send it to."""
        try:
            if os.getpid() != self._pid:
                print(self.format(record), file=sys.stderr)
                return
            plain = str | int | float | None
            fields = {name: value if isinstance(value, plain) else str(value) for name, value in vars(record).items()}
            error = logging.Formatter().formatException(record.exc_info) if record.exc_info else None
            fields |= {"msg": record.getMessage(), "args": None, "exc_info": None, "exc_text": error}
            _write_frame(self._answers, ["log", None, fields])
        except Exception:
            self.handleError(record)


def _leave_worker(*pipes: Any) -> None:
    """In a process that a task has forked: what still holds the pipes keeps the worker from seeing that it died."""
    for pipe in pipes:
        os.dup2(os.open(os.devnull, os.O_RDWR), pipe.fileno())
    for number in _SIGNALS:
        if signal.getsignal(number) is _pass_over:  # else the task's own
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def _read_calls(pipe: Any, calls: thread_queue.SimpleQueue[Any]) -> None:
    try:
        while True:
            calls.put(_read_frame(pipe))
    except (EOFError, OSError):
        os._exit(0)  # the parent is gone or has no more use for this process


def _perform_call(call: CpuCall, answers: Any) -> list[Any]:
    """The frame that answers a call; the last part of it says whether the process is to be replaced."""
    pid, context = os.getpid(), _ChildContext(Job(**call.job), answers)
    try:
        return ["result", context.sender, _run_call(call, context), False]
    except BaseException as error:
        if os.getpid() != pid:
            raise  # in a process that the task has forked
        kinds = [kind_name(kind) for kind in type(error).__mro__]
        delay = asked_delay(error)
        traceback = format_traceback(error)
        # Memory that is short stays so. The text also has an error inside of another, or of a group.
        return ["error", context.sender, describe(error), kinds, traceback, delay, "MemoryError" in traceback]


def _run_call(call: CpuCall, context: _ChildContext) -> str:
    _current.set(None)
    function = _find_function(call.module, call.file, call.qualname)
    args, kwargs = decode(call.payload)
    _current.set(context)
    context.send("begin")
    result: Any = function(*args, **kwargs)
    if inspect.iscoroutine(result):
        result = asyncio.run(result)
    return encode_returned(result, context.task)


class _ChildContext(JobContext):
    """A job in a process of the executor."""

    __slots__ = ("_answers", "sender")

    def __init__(self, job: Job, answers: Any) -> None:
        super().__init__(job)
        self.sender = [job.id, job.attempt]
        self._answers = answers

    def send(self, kind: str, *parts: Any) -> None:
        """Tell the worker something of this attempt."""
        _write_frame(self._answers, [kind, self.sender, *parts])

    def report(self, progress: Progress) -> None:
        self.send("progress", *progress)

    def count_wait(self, change: int) -> None:
        raise FlowrraError(
            "a CPU-bound task cannot wait for another job: its process would stand still; use result_of()"
        )


def _find_function(module: str, file: str | None, qualname: str) -> Callable[..., Any]:
    found: Any = _load_main(file) if module == "__main__" and file else importlib.import_module(module)
    for name in qualname.split("."):
        found = getattr(found, name)
    return cast("Callable[..., Any]", found.function if isinstance(found, Task) else found)


def _load_main(file: str) -> Any:
    """The program's main script as a module under another name, so that its main guard stays shut."""
    if getattr(sys.modules.get(MAIN_IN_CHILD), "__file__", None) != file:
        import runpy

        module = sys.modules["__main__"] = types.ModuleType(MAIN_IN_CHILD)
        module.__file__ = file  # by it the tasks get the names that they have in the worker
        module.__dict__.update(runpy.run_path(file, run_name=MAIN_IN_CHILD))
        sys.modules[MAIN_IN_CHILD] = module
    return sys.modules[MAIN_IN_CHILD]


def format_traceback(error: BaseException) -> str:
    """The traceback as people want it: from the first frame that is not of this module on."""
    if isinstance(error, RemoteError):
        return error.traceback
    frame = error.__traceback__
    while frame is not None and frame.tb_frame.f_code.co_filename == __file__:
        frame = frame.tb_next
    try:
        return _written_out("".join(tracebacks.format_exception(type(error), error, frame or error.__traceback__)))
    except Exception:  # of an exception with odd attributes
        return f"(no traceback can be made) {describe(error)}"


def describe(error: BaseException) -> str:
    """An exception in a few words: its type, and what it says."""
    try:
        text = _written_out(str(error))
    except Exception:  # of its own __str__; the words are those of a traceback
        text = "<exception str() failed>"
    if isinstance(error, RemoteError):
        return text
    kind = SerializationError if isinstance(error, ResultError) else type(error)  # by the name that users know
    return f"{kind.__name__}: {text}" if text else kind.__name__


def _written_out(text: str) -> str:
    """`text` with halves of surrogate pairs, as odd file names bring, written out: not every store can hold them."""
    return text.encode(errors="backslashreplace").decode()


# ---------------------------------------------------------------------------
# 12. Worker
#
# Claims jobs, runs them, settles them. A _ServedQueue claims; an _Attempt then
# passes through named steps: resolve, decode, run, judge (_Steps), settle,
# announce (_Settler). Every task and thread started here is ended by
# Worker.stop(). Knows no store, only a Broker.
# ---------------------------------------------------------------------------

UNKNOWN_TASK_DELAY = 15.0  # seconds for which a job of an unknown task is handed back
_AWAY_DELAY = 1.0  # the same for a job whose parents' results could not be read, as the store was away
_IDLE_WAIT = 5.0  # seconds after which an idle queue is looked at in any case
_PURGE_EVERY = 60.0
_PURGE_LIMIT = 500  # jobs deleted in one step
# Seconds for which a worker that leaves waits for a store that does not answer: its jobs are then rescued instead.
_PATIENCE, _NO_PATIENCE = 5.0, 1.0
_REPORT_EVERY = 0.5
_GROUP = 1_000  # outcomes that go to the broker together, at most
# Outcomes that may wait however few jobs run at once. With 10, a worker of 10 slots waits for each commit before it
# claims again: 0.75 to 0.85 of the jobs a second on PostgreSQL. With 30 or 50 it does no more than with 20.
_LEAST_GROUP = 20
_WELL = 10.0  # seconds after which a loop that fails had been well
_STEADY = 3.0  # leases after which nothing seems to kill a worker again and again
_TRACEBACK_LIMIT = 20_000  # characters
# Said to the store too, which refuses it where another worker has the job by now: one that it still counts as running
# here, as it was claimed a moment ago, must not stay so.
_REFUSED = "the store refused its outcome: the worker's log says why"
_LEASE_LOST = "its worker had lost its lease"

Middleware = Callable[[Job, Callable[[Job], Awaitable[Any]]], Awaitable[Any]]

EVENTS = frozenset(
    ("start", "success", "failure", "retry", "cancel", "release", "worker_lost", "worker_start", "worker_stop")
)


class Event(NamedTuple):
    """What a hook gets: which event, on which worker, and the job with its outcome where there is one."""

    name: str
    worker: str
    job: Job | None = None
    result: Any = None
    error: str | None = None


class Hooks:
    """The functions to call on events. A hook that raises is logged and changes nothing."""

    def __init__(self) -> None:
        self._hooks: dict[str, list[Callable[[Event], Any]]] = {}
        self.any = False

    def add(self, name: str, hook: Callable[[Event], Any]) -> None:
        """Call `hook`, a plain or an async function, on each event of that name."""
        if name not in EVENTS:
            raise ConfigError(f"there is no event {name!r}, only {', '.join(sorted(EVENTS))}")
        self._hooks.setdefault(name, []).append(hook)
        self.any = True

    def __contains__(self, name: object) -> bool:
        return name in self._hooks

    async def fire(self, event: Event) -> None:
        """Call the hooks of an event, one after the other."""
        caller = cast("asyncio.Task[Any]", asyncio.current_task())
        cancelled = caller.cancelling()
        for hook in self._hooks.get(event.name, ()):
            try:
                answer = hook(event)
                if inspect.isawaitable(answer):
                    await answer
            except (Exception, asyncio.CancelledError):
                if caller.cancelling() > cancelled:
                    raise  # it is not the hook that was cancelled
                logger.exception("a hook of the event %r failed", event.name)


_Arguments = tuple[Sequence[Any], Mapping[str, Any]]
_DEFAULT_OPTIONS = TaskOptions()


class _Attempt(JobContext):
    """One attempt on its way through the worker; what `current_job()` gives inside it."""

    __slots__ = ("began", "ending", "options", "runner", "served")

    def __init__(self, job: Job, served: _ServedQueue) -> None:
        self.job = job
        self.attempt = job.attempt
        self.began = job.started or 0.0  # a broker that shares the job clears it when the job is to run again
        self.served = served
        self.options = _DEFAULT_OPTIONS  # those of its task, as soon as that is known
        self.runner: asyncio.Task[Any] | None = None  # once it has begun
        self.ending: str | None = None  # why the worker ends it: cancel, release or lapsed

    @property
    def state(self) -> Any:
        return self.served.worker.state

    def report(self, progress: Progress) -> None:
        self.served.worker.report(self.job.id, self.attempt, progress)

    def count_wait(self, change: int) -> None:
        self.served.count_wait(self, change)

    def end(self, why: str) -> None:
        """Have the attempt stopped."""
        if self.ending is None:
            self.ending = why
            if self.runner is not None:
                self.runner.cancel()


def judge(job: Job, options: TaskOptions, error: BaseException, now: float) -> Outcome:
    """What an attempt that raised `error` comes to: another one later, or the end."""
    if job.failures >= options.max_retries or not is_retryable(options, error):
        return _failure(job, error)
    delay = asked_delay(error)
    if delay is None:
        delay = retry_delay(options, job.failures + 1)
    return Outcome.retry_at(job, now + delay, describe(error), _short_traceback(error))


def _failure(job: Job, error: BaseException) -> Outcome:
    return Outcome.fail(job, describe(error), _short_traceback(error))


def _short_traceback(error: BaseException) -> str:
    return format_traceback(error)[-_TRACEBACK_LIMIT:]


class _Steps:
    """Takes an attempt through its steps: resolve, decode, run, judge. Writes nothing down."""

    def __init__(self, worker: Worker, middleware: Sequence[Middleware]) -> None:
        config = worker.config
        self.threads = ThreadExecutor()
        self.processes = ProcessExecutor(config.cpu_workers, self.threads, config.max_jobs, config.max_memory)
        self.unknown: set[str] = set()  # names of tasks that a warning has been given of
        self._worker = worker
        self._middleware = list(middleware)

    async def perform(self, attempt: _Attempt) -> Outcome:
        """What the attempt came to."""
        worker, job = self._worker, attempt.job
        if attempt.ending is not None:  # before it has begun
            return self._end(attempt, begun=False)
        task = worker.registry.get(job.task)
        if task is None:
            return self._hand_back_unknown(job)
        try:
            attempt.options = task.settings
            if time.monotonic() >= worker.keeper.lease_end and not await worker.keeper.renewal():
                return Outcome.release(job, _LEASE_LOST)
            if worker.hooks.any:
                worker.settler.emit(Event("start", worker.info.id, job))
            if job.overrides:
                attempt.options = dataclasses.replace(task.settings, **job.overrides)
            arguments = await self._decode(attempt) if job.args or job.kwargs or job.payload is not None else ((), {})
            if isinstance(arguments, Outcome):
                return arguments
            if self._middleware:
                result = await self._run_wrapped(attempt, task, arguments)
            else:
                result = await self._execute(attempt, task, arguments)
            outcome = Outcome.succeed(job, result, attempt.options.result_ttl)
            if worker.broker.keeps_text:
                outcome.text = encode_value(outcome)
            elif not is_plain(result):
                outcome.result = copy_returned(result, job.task)
        except BaseException as error:
            return self._judge(attempt, error)
        return outcome

    def _hand_back_unknown(self, job: Job) -> Outcome:
        if job.task not in self.unknown:
            self.unknown.add(job.task)
            logger.warning(
                "worker %s does not know the task %r: its jobs are handed back for %g s at a time until a worker does",
                self._worker.info.id, job.task, UNKNOWN_TASK_DELAY, extra=_fields(job),
            )  # fmt: skip
        due = self._worker.clock.time() + UNKNOWN_TASK_DELAY
        return Outcome.release(job, f"no task {job.task!r} in this worker", due, begun=False)

    async def _decode(self, attempt: _Attempt) -> _Arguments | Outcome:
        """The arguments; the outcome of the attempt if they cannot be had."""
        job = attempt.job
        try:
            args, kwargs = decode_arguments(job)
            return await self._put_results(job, args, kwargs) if job.parents else (args, kwargs)
        except (SerializationError, TaskNotFoundError) as error:  # another attempt would find the same
            return self._keep_failure(attempt, _failure(job, error))
        except BrokerError as error:
            return Outcome.release(job, describe(error), self._worker.clock.time() + _AWAY_DELAY)

    async def _put_results(self, job: Job, args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Arguments:
        """The arguments with the results of the job's parents in their places."""
        results = {}
        for parent, result in zip(job.parents, await self._worker.broker.get(job.parents), strict=True):
            if result is None:
                raise TaskNotFoundError(f"the result of its parent {parent} is gone: raise result_ttl or max_results")
            results[parent] = result.result
        for name, parent in zip(parents_in(args, kwargs), job.parents, strict=False):
            results.setdefault(name, results[parent])  # that parent's unique key was taken: another job stood in for it
        return put_results(args, results), put_results(kwargs, results)

    def _run_wrapped(self, attempt: _Attempt, task: Task[..., Any], arguments: _Arguments) -> Awaitable[Any]:
        """Run the task, and around it the middleware, of which the first one is the outermost."""

        def call(_: Job) -> Awaitable[Any]:
            return self._execute(attempt, task, arguments)

        wrapped: Callable[[Job], Awaitable[Any]] = call
        for middleware in reversed(self._middleware):
            wrapped = functools.partial(lambda around, inner, job: around(job, inner), middleware, wrapped)
        return wrapped(attempt.job)

    def _execute(self, attempt: _Attempt, task: Task[..., Any], arguments: _Arguments) -> Awaitable[Any]:
        """Run the function where it belongs, within the attempt's time."""
        (args, kwargs), options = arguments, attempt.options
        if options.cpu_bound:
            return self._in_process(attempt, CpuCall.of(task, attempt.job, args, kwargs))
        if task.is_async:
            call = task.function(*args, **kwargs)
        else:
            call = self.threads.run(lambda: task.function(*args, **kwargs))
        return call if options.timeout is None else _within(options.timeout, call)

    async def _in_process(self, attempt: _Attempt, call: CpuCall) -> Any:
        """Run a call in a process. The time counts from the task's first line, not while it waits for a process."""
        limit, timeout, loop = asyncio.timeout(None), attempt.options.timeout, self._worker.loop

        def notify(kind: str, *parts: Any) -> None:
            if kind == "progress":
                attempt.report(Progress(*parts))
            elif timeout is not None:
                with contextlib.suppress(RuntimeError):  # the attempt is over
                    limit.reschedule(loop.time() + timeout)

        return await _within(timeout, self.processes.run(call, notify), limit)

    def _judge(self, attempt: _Attempt, error: BaseException) -> Outcome:
        """The outcome of an attempt that did not return."""
        if isinstance(error, asyncio.CancelledError):
            if attempt.ending is not None:
                return self._end(attempt)
            if self._worker.is_torn_down and attempt.runner and attempt.runner.cancelling():
                raise error
            # else the job has cancelled itself
        outcome = judge(attempt.job, attempt.options, error, self._worker.clock.time())
        return self._keep_failure(attempt, outcome)

    def _keep_failure(self, attempt: _Attempt, outcome: Outcome) -> Outcome:
        """The outcome; a failure is not forgotten sooner than a success."""
        if outcome.status is FAILED and (attempt.options.result_ttl or 0.0) > self._worker.broker.retention.failed_ttl:
            outcome.keep = attempt.options.result_ttl
        return outcome

    def _end(self, attempt: _Attempt, *, begun: bool = True) -> Outcome:
        """The outcome of an attempt that the worker ends."""
        while attempt.runner and attempt.runner.cancelling():
            attempt.runner.uncancel()
        if attempt.ending == "cancel":
            return Outcome.cancel(attempt.job, BY_HAND)
        why = _LEASE_LOST if attempt.ending == "lapsed" else "the worker stopped"
        return Outcome.release(attempt.job, why if begun else f"{why} before it began", begun=begun)


async def _within(timeout: float | None, call: Awaitable[Any], limit: asyncio.Timeout | None = None) -> Any:
    limit = limit or asyncio.timeout(timeout)
    try:
        async with limit:
            return await call
    except TimeoutError:
        if not limit.expired():
            raise
        error = TaskTimeoutError(f"the attempt took longer than its timeout of {timeout:g} s")
        error.ends_attempt = True
        raise error from None


class _Settler:
    """What became of attempts: written down in groups, through one door, and then announced."""

    def __init__(self, worker: Worker, backend: Backend | None) -> None:
        self._worker = worker
        self._backend = backend
        self._outcomes: list[tuple[_Attempt, Outcome]] = []
        self._has_outcomes = asyncio.Event()  # set as long as there are any
        self.events: asyncio.Queue[Event] = asyncio.Queue()

    def post(self, attempt: _Attempt, outcome: Outcome) -> None:
        """Hand an outcome over to be settled."""
        self._outcomes.append((attempt, outcome))
        attempt.served.unsettled += 1
        if len(self._outcomes) == 1:
            self._has_outcomes.set()

    async def settle_all(self) -> None:
        """Write outcomes in groups: what gathers while one group is on its way is the next."""
        while True:
            await self._has_outcomes.wait()
            group, self._outcomes = self._outcomes[:_GROUP], self._outcomes[_GROUP:]
            if not self._outcomes:
                self._has_outcomes.clear()
            try:
                await self._settle(group)
            finally:
                for attempt, _ in group:
                    attempt.served.unsettled -= 1
                self._worker.changed.set()

    async def _settle(self, group: Sequence[tuple[_Attempt, Outcome]]) -> None:
        """Have the broker take the group, again and again as long as it fails, and announce what is written."""
        worker, failures = self._worker, 0
        while True:
            now = worker.clock.time()
            try:
                written = await worker.broker.settle([outcome for _, outcome in group], now=now)
                break
            except BrokerError as error:
                failures += 1
                await worker.recover(error, failures)
            except Exception as error:
                await self._settle_apart(group, error)
                return
        if worker.broker.keeps_activity:
            worker.tally.count(itertools.compress(group, written), now)
        if self._backend is not None:
            await self._record(self._backend, [o for (_, o), ok in zip(group, written, strict=True) if ok])
        is_heard = worker.hooks.any or logger.isEnabledFor(logging.INFO)
        for (attempt, outcome), ok in zip(group, written, strict=True):
            if is_heard or not ok or outcome.status is not SUCCESS:
                self._announce_outcome(attempt, outcome, ok)

    async def _settle_apart(self, group: Sequence[tuple[_Attempt, Outcome]], error: Exception) -> None:
        """Settle a group that was refused in two halves, so that an outcome that cannot be taken fails alone."""
        logger.error("worker %s: a group of outcomes was refused", self._worker.info.id, exc_info=error)
        if middle := len(group) // 2:
            await self._settle(group[:middle])
            await self._settle(group[middle:])
            return
        ((attempt, outcome),) = group
        if outcome.error == _REFUSED:  # nothing plainer can be written
            logger.critical("job %s stays running until this worker stops", attempt.id, extra=_fields(attempt.job))
            return
        why = _REFUSED if outcome.ending == "failure" else f"its outcome was refused: {describe(error)}"
        await self._settle([(attempt, Outcome.fail(attempt.job, why))])

    async def _record(self, backend: Backend, outcomes: Sequence[Outcome]) -> None:
        """Keep results in the separate backend too. The broker has them already, so none can be lost."""
        now = self._worker.clock.time()
        results = [_result_of(outcome, now) for outcome in outcomes if outcome.status in FINISHED]
        try:
            if results:
                await backend.record(results)
        except Exception as error:
            logger.error("the result backend did not take %d results: %s", len(results), describe(error))

    # Endings: a line in the log and an event ---------------------------------------------------

    def _announce_outcome(self, attempt: _Attempt, outcome: Outcome, written: bool) -> None:
        job, now = attempt.job, self._worker.clock.time()
        if not written:
            text = "job %s: its lease was lost, so this attempt changes nothing"
            logger.warning(text, job.id, extra=_fields(job))
            return
        name = "retry" if outcome.status is RETRYING else outcome.ending
        seconds = now - attempt.began
        how = f" attempt {outcome.attempt}: {outcome.ending} after {seconds:.3f} s"
        if outcome.due is not None:
            how += f", {'retry' if name == 'retry' else 'again'} in {max(0.0, outcome.due - now):.3f} s"
        self._announce(name, job, how, outcome.result, outcome.error, duration=seconds)

    def announce_ending(self, job: Job) -> None:
        """Announce an end that no attempt came to: cancelled while it waited, expired, orphaned, given up."""
        name = "failure" if job.status is FAILED else "cancel"
        self._announce(name, job, f": {name}", None, job.error)

    def _announce(self, name: str, job: Job, how: str, result: Any, error: str | None, **fields: float) -> None:
        """The one door: every ending is logged and brings its event here."""
        level = logging.WARNING if name in ("failure", "retry") else logging.INFO
        why = f": {error}" if error else ""
        logger.log(level, "job %s (%s)%s%s", job.id, job.task, how, why, extra={**_fields(job), **fields})
        self.emit(Event(name, self._worker.info.id, job, result, error))

    def emit(self, event: Event) -> None:
        """Have the hooks of an event called, if there are any, later and in order."""
        if self._worker.hooks.any and event.name in self._worker.hooks:
            self.events.put_nowait(event)

    async def fire_events(self) -> None:
        """Call the hooks of each event as it comes."""
        while True:
            event = await self.events.get()
            try:
                await self._worker.hooks.fire(event)
            finally:
                self.events.task_done()


def _fields(job: Job) -> dict[str, Any]:
    """What log records carry beside their text."""
    return {"job_id": job.id, "task": job.task, "attempt": job.attempt}


def _result_of(outcome: Outcome, now: float) -> TaskResult[Any]:
    values = {name: getattr(outcome, name) for name in ("status", "result", "error", "traceback")}
    return dataclasses.replace(result_from(outcome.job), **values, attempts=outcome.attempt, finished=now)


class _Tally:
    """What this worker has done: counted on the loop, read by the thread that sends heartbeats."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums = ActivitySums()
        self._changed: set[int] = set()  # minutes of which the broker does not know all

    def count(self, attempts: Iterable[tuple[_Attempt, Outcome]], now: float) -> None:
        """Add attempts whose outcomes were written."""
        count = self._sums.count
        with self._lock:
            for attempt, outcome in attempts:
                if outcome.status is SUCCESS or outcome.ending == "failure":
                    count(attempt.job, outcome.status, attempt.began, now)
            self._changed.add(int(now) // 60 * 60)

    def take(self, now: float) -> list[Activity]:
        """The rows of each minute that has changed, for a heartbeat."""
        with self._lock:
            changed, self._changed = self._changed, set()
            for key in [key for key in self._sums if key[0] < now - 180 and key[0] not in changed]:
                del self._sums[key]  # 180 s: a clock that is set back shall not begin a minute anew
            rows = [row for row in self._sums.in_order() if row.minute in changed]
            return [row.copy() for row in rows]

    def keep(self, rows: Iterable[Activity]) -> None:
        """These rows did not arrive: take them again."""
        with self._lock:
            self._changed.update(row.minute for row in rows)


class Turns:
    """How many crashes a job may have that a worker claims next: suspects and others take turns.

    Whatever kills workers again and again, as a system without memory does, is not to be blamed on a job. One that
    another crash would end is only for a worker that has just started, where it has all the time that there is between
    two such kills, or for one that has lived for some leases.
    """

    def __init__(self, clock: Clock, lease: float) -> None:
        self._clock = clock
        self._steady_from = clock.monotonic() + _STEADY * lease
        self._asked: set[str] = set()  # the queues that have been claimed from
        self._others: set[str] = set()  # those in which it is the turn of jobs without crashes
        self._is_new = True  # no job has been claimed yet

    @property
    def most(self) -> int:
        """The most crashes that a suspect may have to run in this worker, when that has started."""
        return LAST_CHANCE - (self._clock.monotonic() < self._steady_from)

    def crashes(self, queue: str) -> int:
        """What to ask for in the next claim from this queue."""
        if queue in self._others:
            return 0
        return LAST_CHANCE if self._is_new and queue not in self._asked else self.most

    def note(self, queue: str, jobs: Sequence[Job]) -> None:
        """What that claim has brought: after a suspect it is the turn of others, if there are any."""
        self._asked.add(queue)
        self._is_new = self._is_new and not jobs
        (self._others.add if jobs and jobs[0].crashes else self._others.discard)(queue)


class _ServedQueue:
    """A queue as a worker serves it: one task claims jobs, and runs them as long as they do not wait.

    When one waits, another task takes over the claiming, and each job that is claimed and not begun gets a task. (A
    task of its own for every job would cost as much as the job.)
    """

    def __init__(self, worker: Worker, queue: str, capacity: int) -> None:
        self.worker = worker
        self.queue = queue
        self.capacity = capacity
        self.group = max(_LEAST_GROUP, min(capacity, _GROUP))  # outcomes that may wait to be written
        self.claimed: collections.deque[_Attempt] = collections.deque()  # and not begun yet
        self.running: set[_Attempt] = set()
        self.unsettled = 0  # attempts that have ended and are not written yet
        self.claimer: asyncio.Task[Any] | None = None
        self._waits: dict[_Attempt, int] = {}  # the jobs that wait for others, whose slots are free: how often at once

    def room(self) -> int:
        """How many jobs may be claimed now.

        A crash repeats what runs and what is not written: no more than the slots and one group.
        """
        if self.worker.is_reserved and not self.worker.may_claim():
            return 0
        free = self.capacity + len(self._waits) - len(self.running) - len(self.claimed)
        return free - max(0, self.unsettled - self.group)

    def count_wait(self, attempt: _Attempt, change: int) -> None:
        """A running job begins to wait for another one (1), or has ended a wait (-1); it may do so several times."""
        waits = self._waits.pop(attempt, 0) + change
        if waits > 0 and attempt in self.running:  # else the attempt is over, and only a part of it goes on
            self._waits[attempt] = waits
            self.worker.changed.set()

    def start_claimer(self) -> None:
        """Have another task claim, and each job that is claimed by now run in one."""
        loop = self.worker.loop
        for _ in self.claimed:  # while such a task waits, its attempt refers to it
            loop.create_task(self._run_claimed(), context=contextvars.Context())
        self.claimer = loop.create_task(self._serve(), context=contextvars.Context())

    async def _serve(self) -> None:
        """Claim jobs and run them, until another task has taken over or the worker drains."""
        task, failures = cast("asyncio.Task[None]", asyncio.current_task()), 0
        while self.claimer is task and not self.worker.is_draining:
            try:
                await self._claim()
                failures = 0
                if self.claimed:
                    successor = self.worker.loop.call_soon(self.start_claimer)
                    if not await self._run_claimed():
                        return
                    successor.cancel()  # too late if a job has waited
            except (Exception, asyncio.CancelledError) as error:
                if task.cancelling():
                    raise
                failures += 1
                await self.worker.recover(error, failures)

    async def _claim(self) -> None:
        """Claim jobs for the free slots; if there are none, or no jobs, wait until there may be some."""
        worker = self.worker
        if (limit := self.room()) < 1:
            worker.changed.clear()
            await worker.changed.wait()
            return
        crashes, now = worker.turns.crashes(self.queue), worker.clock.time()
        jobs = await worker.broker.claim(self.queue, limit=limit, worker=worker.info.id, now=now, crashes=crashes)
        worker.turns.note(self.queue, jobs)
        self.claimed.extend([_Attempt(job, self) for job in jobs])
        if jobs and jobs[0].crashes:
            worker.is_reserved = True
        if worker.is_draining:
            self.hand_back()
        elif crashes and not jobs:  # else suspects may be left
            await worker.broker.wait_ready((self.queue,), _IDLE_WAIT)

    async def _run_claimed(self) -> bool:
        """Run one claimed job after the other; False if one has left a context variable or a cancellation behind."""
        task, worker = cast("asyncio.Task[Any]", asyncio.current_task()), self.worker
        is_clean = True
        while self.claimed and is_clean:
            attempt = self.claimed.popleft()
            attempt.runner = task
            self.running.add(attempt)
            _current.set(attempt)
            try:
                outcome = await worker.steps.perform(attempt)
            except Exception as error:  # one that cannot even be described: the job must not stay RUNNING
                text = "".join(tracebacks.format_exception_only(error)).strip()
                outcome = Outcome.fail(attempt.job, text, format_traceback(error))
            finally:
                self.running.discard(attempt)
                if self._waits:
                    self._waits.pop(attempt, None)
            worker.settler.post(attempt, outcome)
            is_clean = not task.cancelling() and len(contextvars.copy_context()) == 1
        worker.changed.set()
        return is_clean

    def hand_back(self) -> None:
        """Have released what has been claimed and not begun."""
        for attempt in self.claimed:
            attempt.end("release")


class Worker:
    """A running consumer of one app's jobs. Made, started and stopped on one loop."""

    def __init__(
        self,
        broker: Broker,
        registry: Registry,
        config: ExecutorConfig,
        *,
        backend: Backend | None = None,
        clock: Clock,
        hooks: Hooks,
        middleware: Sequence[Middleware] = (),
        state: Any = None,
    ) -> None:
        import socket

        self.loop = asyncio.get_running_loop()
        self.broker = broker
        self.registry = registry
        self.config = config
        self.clock = clock
        self.hooks = hooks
        self.state = state
        host = socket.gethostname()
        self.info = WorkerInfo(f"{host}-{os.getpid()}-{os.urandom(4).hex()}", host, os.getpid())
        self.steps = _Steps(self, middleware)
        self.settler = _Settler(self, backend)
        self.tally = _Tally()
        self.turns = Turns(clock, config.lease)
        self.keeper = _Keeper(self)
        self.changed = asyncio.Event()  # set when a job ends, outcomes are written, and the like
        self.is_draining = False
        self.is_reserved = False  # whether a suspect runs, or waits to be claimed: see `may_claim`
        self.on_store_lost: Callable[[], object] = lambda: None  # called on the loop, perhaps more than once
        self._backend = backend
        self._is_drain_over = False
        self._residents: list[asyncio.Task[None]] = []  # loops that run until the worker leaves
        self._queues: dict[str, _ServedQueue] = {}
        self._progress: dict[tuple[str, int], Progress] = {}
        self._has_progress = asyncio.Event()

    # Starting and stopping ---------------------------------------------------------------------

    async def start(self) -> None:
        """Register with the broker and begin to claim."""
        self.info.started = self.clock.time()
        for queue, capacity in (self.config.queues or {"default": self.config.io_workers}).items():
            self._queues[check_queue(queue)] = _ServedQueue(self, queue, capacity)
        for task in self.registry.values():
            self._serve_queue_of(task)
        self._describe()
        self.handle_notices(await self.keeper.send_heartbeat(self.broker, self.config.lease))
        for work in (self.settler.settle_all, self.settler.fire_events, self._write_progress, self._purge):
            self.keep_running(work)
        self.keeper.broker = self.broker.clone()
        if self.keeper.broker is None:
            self.keep_running(lambda: self.keeper.keep_lease(self.broker))
        self.keeper.start()
        for served in self._queues.values():
            served.start_claimer()
        if any(task.settings.cpu_bound and task.queue in self._queues for task in self.registry.values()):
            self.steps.processes.warm_up()
        self.settler.emit(Event("worker_start", self.info.id))

    def _serve_queue_of(self, task: Task[..., Any]) -> _ServedQueue | None:
        """A task's queue if it is served from now on; not if it was before, or the user has said which to serve."""
        if self.config.queues is not None or task.queue in self._queues:
            return None
        capacity = self.config.cpu_workers if task.settings.cpu_bound else self.config.io_workers
        served = self._queues[task.queue] = _ServedQueue(self, task.queue, capacity)
        return served

    def _describe(self) -> None:
        self.info.queues = {served.queue: served.capacity for served in self._queues.values()}
        self.info.tasks = sorted(self.registry)

    def add_task(self, task: Task[..., Any]) -> None:
        """Serve a task that was registered after the start, and its queue."""
        if not self.is_draining and (served := self._serve_queue_of(task)) is not None:
            served.start_claimer()
        self.steps.unknown.discard(task.name)
        self._describe()

    async def stop(self, drain: float) -> None:
        """Stop claiming, let what runs finish for up to `drain` seconds, release the rest, sign off."""
        self.stop_claiming()
        patience = _PATIENCE if drain else _NO_PATIENCE
        try:
            if self.is_torn_down:
                return
            await self._until(lambda: self._is_drain_over or not self.attempts(), drain)
            if self.attempts():
                self._is_drain_over = False
                for attempt in self.attempts():
                    attempt.end("release")
                await self._until(lambda: self._is_drain_over or not self.attempts(), 2.0)
                for attempt in self.attempts():  # what they still do is refused
                    reason = "the worker stopped; the job did not let itself be cancelled"
                    self.settler.post(attempt, Outcome.release(attempt.job, reason))
            await self._until(
                lambda: not self._unsettled, patience
            )  # else the broker is away, and they will be rescued
            self.settler.emit(Event("worker_stop", self.info.id))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.settler.events.join(), patience)
        finally:
            await self._leave(patience)

    def stop_claiming(self) -> None:
        """Take no more jobs, and hand back those that have not begun."""
        self.is_draining = True
        for served in self._queues.values():
            served.hand_back()
        self.changed.set()

    def end_drain(self) -> None:
        """Wait no longer for running jobs."""
        self._is_drain_over = True
        self.changed.set()

    async def _until(self, condition: Callable[[], bool], seconds: float) -> None:
        """Return when the condition holds, at the latest after so many seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if seconds == math.inf else seconds):
                while not condition():
                    self.changed.clear()
                    await self.changed.wait()

    def owned(self) -> set[asyncio.Task[Any]]:
        """The tasks that this worker runs."""
        claimers = [served.claimer for served in self._queues.values()]
        runners = [attempt.runner for attempt in self.attempts()]
        return {task for task in (*self._residents, *claimers, *runners) if task is not None}

    def abandon(self) -> None:
        """End what outlives the loop, which has ended without a stop: nobody keeps the lease any longer."""
        self.keeper.stop()
        self.steps.processes.close()
        self.steps.threads.close()

    async def _leave(self, patience: float) -> None:
        self.keeper.stop()
        owned = self.owned()
        for task in owned:
            task.cancel()
        await asyncio.wait(owned, timeout=1.0)
        self.abandon()
        await asyncio.to_thread(self.keeper.join, patience)  # a heartbeat after the leave would register it again
        try:
            await asyncio.wait_for(self.keeper.send_heartbeat(self.broker, lease=0), patience)
        except TimeoutError:
            logger.warning("worker %s could not sign off: no answer from the broker in %g s", self.info.id, patience)
        except BrokerError as error:
            logger.warning("worker %s could not sign off: %s", self.info.id, describe(error))

    def handle_notices(self, notices: Notices, earlier: Collection[_Attempt] = ()) -> None:
        """Act on what a heartbeat brought; `earlier` are the attempts from before it. On the loop's thread."""
        attempts = self.attempts()
        for attempt in attempts:
            if attempt.job.id in notices.cancelled:
                attempt.end("cancel")
            elif notices.lapsed and attempt in earlier:  # the others are under the lease that it gave
                attempt.end("lapsed")
        if notices.lapsed:
            logger.error("worker %s lost its lease: what it was running is dropped and runs again", self.info.id)
        self.keeper.confirm_lease(not notices.lapsed)
        if attempts and 0 < notices.suspects <= self.turns.most:
            self.is_reserved = True
        for worker in notices.lost_workers:
            logger.warning("worker %s is gone; its jobs are ready again", worker)
            self.settler.emit(Event("worker_lost", worker))
        for job in notices.endings:
            self.settler.announce_ending(job)

    # What runs ---------------------------------------------------------------------------------

    @property
    def _unsettled(self) -> int:
        return sum(served.unsettled for served in self._queues.values())

    @property
    def is_torn_down(self) -> bool:
        """Whether the whole loop is being torn down, and the worker with it."""
        return bool(self._residents[0].cancelling())

    def attempts(self) -> list[_Attempt]:
        """Those that are under way here; from any thread."""
        return [attempt for served in list(self._queues.values()) for attempt in (*served.running, *served.claimed)]

    def may_claim(self) -> bool:
        """Whether jobs may be claimed. A suspect has the worker to itself.

        From its claim on, or from when it is seen to wait, nothing is claimed until nothing runs and all is written.
        """
        if self.is_reserved and not self.attempts() and not self._unsettled:
            self.is_reserved = False
        return not self.is_reserved

    def keep_running(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a loop beside the others until the worker leaves."""
        self._residents.append(self.loop.create_task(self.supervise(work)))

    async def supervise(self, work: Callable[[], Coroutine[Any, Any, None]], longest: float = 10.0) -> None:
        """Keep a loop alive: an exception is logged, and the loop begins again after `longest` at most."""
        failures, task = 0, cast("asyncio.Task[None]", asyncio.current_task())
        while True:
            began = time.monotonic()
            try:
                await work()
            except (Exception, asyncio.CancelledError) as error:
                if task.cancelling():
                    raise
                failures = 1 if time.monotonic() - began > _WELL else failures + 1
                await self.recover(error, failures, longest)

    async def recover(self, error: BaseException, failures: int, longest: float = 10.0) -> None:
        """Log the latest of so many failures in a row and sleep before the next try, longer each time."""
        if isinstance(error, StoreLostError):
            _call_soon(self.loop, self.on_store_lost)
        if isinstance(error, BackendError):
            text = str(error) or describe(error)
            logger.error("worker %s: %s (failure %d in a row; trying again)", self.info.id, text, failures)
        else:
            logger.error("worker %s: unexpected error; going on", self.info.id, exc_info=error)
        await asyncio.sleep(min(longest, 0.1 * 2.0 ** min(failures, 10)) * random.uniform(0.5, 1.0))

    # Housekeeping ------------------------------------------------------------------------------

    def report(self, task_id: str, attempt: int, progress: Progress) -> None:
        """Note progress; from any thread."""
        self._progress[task_id, attempt] = progress
        if not self._has_progress.is_set():
            _call_soon(self.loop, self._has_progress.set)

    async def _write_progress(self) -> None:
        while True:
            await self._has_progress.wait()
            self._has_progress.clear()  # first, so that what comes meanwhile is written next time
            reported = dict(self._progress.popitem() for _ in range(len(self._progress)))
            await self.broker.report(reported)
            await asyncio.sleep(_REPORT_EVERY)

    async def _purge(self) -> None:
        stores = [store for store in (self.broker, self._backend) if isinstance(store, Broker)]
        while True:
            count = max([await store.purge(self.clock.time(), _PURGE_LIMIT) for store in stores])
            await asyncio.sleep(_PURGE_EVERY if count < _PURGE_LIMIT else 0.01)


class _Keeper(threading.Thread):
    """Keeps the lease, through a clone of the broker, and watches the loop, whatever tasks do to it."""

    def __init__(self, worker: Worker) -> None:
        super().__init__(name="flowrra-keeper", daemon=True)
        # On time.monotonic(), counted from before the heartbeat went out: while the store cannot be reached after that,
        # others may run what was claimed here, and nothing of it is begun.
        self.lease_end = self._granted = 0.0
        self.broker: Broker | None = None  # without one the heartbeats go out on the worker's loop
        self._worker = worker
        self._renewals: list[asyncio.Future[bool]] = []  # attempts that wait for a renewal of the lease
        self._watched = threading.get_ident()
        self._ended = threading.Event()
        self._main: asyncio.Task[None] | None = None

    async def send_heartbeat(self, broker: Broker, lease: float) -> Notices:
        """Tell the store, through `broker`, how the worker does; on whichever loop this runs."""
        worker, info = self._worker, self._worker.info
        now, began = worker.clock.time(), time.monotonic()
        info.running, info.memory, info.activity = len(worker.attempts()), resident_memory(), worker.tally.take(now)
        try:
            notices = await broker.heartbeat(info, lease=lease, now=now)
        except BaseException:
            worker.tally.keep(info.activity)
            raise
        self._granted = began + lease
        if not notices.lapsed:  # else nothing begins before the worker has dropped what is not its own any more
            self.lease_end = self._granted
        return notices

    async def keep_lease(self, broker: Broker) -> None:
        """Send heartbeats again and again through `broker`, on whichever loop this runs."""
        worker = self._worker
        while True:
            await broker.wait_ready((), worker.config.heartbeat)
            attempts = worker.attempts()
            notices = await self.send_heartbeat(broker, worker.config.lease)
            found = notices.cancelled, notices.lapsed, notices.suspects, notices.lost_workers, notices.endings
            if any(found) or self._renewals:
                _call_soon(worker.loop, worker.handle_notices, notices, attempts)

    async def renewal(self) -> bool:
        """Wait until a heartbeat has renewed the lease; False if it had been lost. On the worker's loop."""
        self._renewals.append(self._worker.loop.create_future())
        return await self._renewals[-1]

    def confirm_lease(self, was_kept: bool) -> None:
        """Let jobs begin under the lease: if it had been lost, what was held under it is dropped by now."""
        if not was_kept:
            self.lease_end = self._granted
        while self._renewals:
            _resolve(self._renewals.pop(), was_kept)

    def run(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            asyncio.run(self._keep())

    def stop(self) -> None:
        """Ask the thread to end; from another thread."""
        self._ended.set()
        if self._main is not None:
            _call_soon(self._main.get_loop(), self._main.cancel)

    async def _keep(self) -> None:
        self._main = asyncio.current_task()
        if self._ended.is_set():
            return
        async with asyncio.TaskGroup() as group:
            group.create_task(self._worker.supervise(self._watch))
            if (broker := self.broker) is not None:
                longest = self._worker.config.heartbeat  # after an outage the lease lasts for two of them at least
                group.create_task(self._worker.supervise(lambda: self._keep_through(broker), longest))

    async def _keep_through(self, broker: Broker) -> None:
        await broker.open()
        try:
            await self.keep_lease(broker)
        finally:
            await broker.close()

    async def _watch(self) -> None:
        """Report a loop that has not turned for a second, once, with what blocks it."""
        reported = False
        while True:
            turned = threading.Event()
            if self._worker.attempts():  # an idle worker's loop is left asleep
                _call_soon(self._worker.loop, turned.set)
            else:
                turned.set()
            await asyncio.sleep(1.0 - time.monotonic() % 1.0)
            if not turned.is_set() and not reported:
                self._report_blocked()
            reported = not turned.is_set()

    def _report_blocked(self) -> None:
        frame = sys._current_frames().get(self._watched)
        stack = "".join(tracebacks.format_stack(frame)) if frame else "(its thread is gone)"
        jobs = [attempt.job for attempt in self._worker.attempts()]
        named = ", ".join(f"{job.id} ({job.task})" for job in jobs) or "none"
        logger.warning("the event loop has been blocked for more than 1 s; jobs running: %s\n%s", named, stack)


# ---------------------------------------------------------------------------
# 13. Schedules
#
# Rules that submit jobs: those declared in code, and what stored ones share with
# them. One fire is one job however many schedulers run, since the job's id is
# made of the schedule and the moment. Knows brokers only by `push`.
# ---------------------------------------------------------------------------


MISFIRES = ("latest", "all", "skip")
OVERLAPS = ("allow", "skip")


@dataclass(slots=True, kw_only=True)
class Schedule:
    """A stored rule that submits jobs of `task`.

    `rule` is the text of a cron expression, an interval in seconds or a moment in ISO format, as `kind`
    says; `tz` is a zone's key. Intervals count from `anchor`. `payload` is the text of the arguments.
    `options` are those of each submission (priority, queue, max_retries, retry_delay, ...). `next_fire`
    is None when there is nothing left to fire. `key` says what makes two schedules the same one. `turn`
    only grows, at each taking and each change, and is the fencing token.
    """

    id: str
    key: str
    task: str
    kind: str
    rule: str
    tz: str = "UTC"
    payload: str = NO_ARGUMENTS
    options: Mapping[str, Any] = field(default_factory=dict)
    misfire: str = "latest"
    overlap: str = "allow"
    jitter: float = 0.0
    enabled: bool = True
    description: str | None = None
    anchor: float = 0.0
    next_fire: float | None = None
    last_fire: float | None = None
    last_job: str | None = None
    created: float = 0.0
    updated: float = 0.0
    turn: int = 0

    @property
    def next_fire_at(self) -> dt.datetime | None:
        """When it fires next."""
        return _moment(self.next_fire)

    @property
    def last_fire_at(self) -> dt.datetime | None:
        """The moment that it has fired last."""
        return _moment(self.last_fire)


class Fired(NamedTuple):
    """What a scheduler did with a schedule that it had taken under `turn`."""

    schedule_id: str
    turn: int
    next_fire: float | None
    last_fire: float | None
    last_job: str | None


# When a schedule fires --------------------------------------------------------------------------
#
# Moments are whole microseconds since the epoch here, so that all hosts reckon alike and no interval
# drifts by rounding.

ON_TIME = 15.0  # seconds; later than that it is a misfire. When a scheduler dies, its lease takes 10 s to run out
MAX_CATCH_UP = 100  # fires of one schedule that are made up for at once
_LEAST_INTERVAL = 0.001
_MAX_INTERVAL = 36_525 * 86_400.0


class _Rule(NamedTuple):
    """The first moment later than one, and the last one earlier than one; None where there is none."""

    next: Callable[[int], int | None]
    previous: Callable[[int], int | None]


def _rule_of(schedule: Schedule) -> _Rule:
    """The schedule's rule, ready to reckon with; ConfigError if its text cannot be read."""
    if schedule.kind == "cron":
        cron = Cron(schedule.rule, tz=schedule.tz, name=schedule.id)
        return _Rule(lambda after: _found(cron.next, after), lambda before: _found(cron.previous, before))
    if schedule.kind == "interval":
        step = _micro(_seconds("an interval", float(schedule.rule), least=_LEAST_INTERVAL))
        anchor = _micro(schedule.anchor)
        return _Rule(
            lambda after: after + step - (after - anchor) % step,
            lambda before: before - 1 - (before - 1 - anchor) % step,
        )
    moment = _micro(dt.datetime.fromisoformat(schedule.rule).timestamp())
    return _Rule(lambda after: moment if moment > after else None, lambda before: moment if moment < before else None)


def _found(search: Callable[[dt.datetime], dt.datetime], moment: int) -> int | None:
    try:
        return (search(_EPOCH + dt.timedelta(microseconds=moment)) - _EPOCH) // dt.timedelta(microseconds=1)
    except ValueError:  # it matches nothing there any more
        return None


def _micro(seconds: float) -> int:
    return round(seconds * 1e6)


def upcoming(schedule: Schedule, after: float) -> float | None:
    """The first moment later than `after` at which the schedule's rule is due; None if there is none."""
    moment = _rule_of(schedule).next(_micro(after))
    return None if moment is None else moment / 1e6


def _due_moments(rule: _Rule, first: int, now: int) -> list[int]:
    """The fires from `first` to `now`, the earliest first; of many the latest MAX_CATCH_UP."""
    moments: list[int] = []
    moment = rule.previous(now + 1)
    while moment is not None and moment > first and len(moments) < MAX_CATCH_UP:
        moments.append(moment)
        moment = rule.previous(moment)
    return [*moments, first][:MAX_CATCH_UP][::-1]


def _to_fire(misfire: str, moments: Sequence[int], now: int) -> Sequence[int]:
    """Which of the moments that have come are to be fired."""
    if misfire == "all":
        return moments
    in_time = [moment for moment in moments if now - moment <= ON_TIME * 1e6]
    # With "skip" a moment is missed as soon as the next one has come, however short the interval is.
    return in_time[-1:] if misfire == "skip" else in_time or moments[-1:]


def _stamp(moment: int) -> str:
    return (_EPOCH + dt.timedelta(microseconds=moment)).isoformat().replace("+00:00", "Z")


# Making one -------------------------------------------------------------------------------------


class ScheduleOptions(TypedDict, total=False):
    """The options of a schedule beside its rule and arguments.

    `misfire` says what becomes of fires that are more than ON_TIME seconds late: "latest" fires the latest
    one of them, "all" every one (the latest MAX_CATCH_UP), "skip" none, nor one that is followed by another
    that has come. `overlap="skip"` drops a fire while
    an unfinished job of the schedule is there. `jitter` has each job wait up to so many seconds, the same on
    all hosts. The others are options of the jobs; what is left out is as the task has it.
    """

    enabled: bool
    description: str | None
    misfire: str
    overlap: str
    jitter: float | dt.timedelta
    priority: int | None
    queue: str | None
    max_retries: int | None
    retry_delay: float | None


def make_schedule(
    task: str | Task[..., Any],
    kind: str,
    rule: object,
    *,
    tz: str | dt.tzinfo | None = None,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> Schedule:
    """A checked schedule whose id is made of its task, rule, zone, arguments and queue. It has no next fire yet.

    `options` are those of ScheduleOptions.
    """
    if unknown := options.keys() - ScheduleOptions.__annotations__.keys():
        raise TypeError(f"a schedule has no option {min(unknown)!r}")
    of_jobs = {name: value for name in _OF_JOBS if (value := options.pop(name, None)) is not None}
    TaskOptions(**of_jobs)  # checks them
    schedule = Schedule(
        id="",
        key="",
        task=task.name if isinstance(task, Task) else task,
        kind=kind,
        rule=_rule_text(kind, rule, tz),
        tz=_zone_of("UTC" if tz is None else tz).key,
        payload=_payload(task, args, kwargs or {}),
        options=of_jobs,
        **options,
    )
    for name, choices in (("misfire", MISFIRES), ("overlap", OVERLAPS)):
        if (value := getattr(schedule, name)) not in choices:
            raise ConfigError(f"{name} must be one of {', '.join(choices)}, not {value!r}")
    schedule.enabled, schedule.jitter = bool(schedule.enabled), _seconds("jitter", schedule.jitter)
    schedule.key = key = schedule_key(schedule)
    queue = of_jobs.get("queue")
    if queue is not None and not (isinstance(task, Task) and task.queue == queue):
        key = _digest(f"{key} in {queue}")
    schedule.id = f"{schedule.task[:100]}:{key[:12]}"
    _rule_of(schedule)
    return schedule


_OF_JOBS = ("priority", "queue", "max_retries", "retry_delay")  # options of a schedule that its jobs get


def _rule_text(kind: str, rule: object, tz: str | dt.tzinfo | None) -> str:
    """The rule as it is kept."""
    if kind == "cron":
        if not isinstance(rule, str):
            raise ConfigError(f"a cron expression is a text such as '0 9 * * mon-fri', not {rule!r}")
        return " ".join(rule.split())
    if kind == "interval":
        seconds = _seconds("an interval", rule, least=_LEAST_INTERVAL)
        if seconds > _MAX_INTERVAL:
            raise ConfigError(f"an interval must be at most {_MAX_INTERVAL:g} s (100 years), not {rule!r}")
        return f"{seconds:.6f}".rstrip("0").rstrip(".")
    if tz is not None and isinstance(rule, dt.datetime) and rule.tzinfo is None:
        rule = rule.replace(tzinfo=_zone_of(tz).tzinfo)
    moment = _timestamp("run_at", rule)
    if moment >= LAST_MOMENT:
        raise ConfigError(f"run_at={rule!r} lies beyond the year 9999: it would never fire")
    return (_EPOCH + dt.timedelta(microseconds=_micro(moment))).isoformat()


def _payload(task: str | Task[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """The text of the arguments, which are checked where the task is known."""
    if not isinstance(args, list | tuple) or not isinstance(kwargs, Mapping):
        raise ConfigError(f"args is a tuple and kwargs a dictionary, not {args!r} and {kwargs!r}")
    if parents_in(args, kwargs):
        raise ConfigError("a schedule's arguments cannot hold result_of(): it fires again and again")
    if isinstance(task, Task):
        task.check(args, kwargs)
        task = task.name
    return encode_arguments(Job("", task, tuple(args), kwargs))


def schedule_key(schedule: Schedule) -> str:
    """What two schedules that are the same have in common, as a digest."""
    parts = [schedule.task, schedule.kind, schedule.rule, schedule.tz, json.loads(schedule.payload)]
    return _digest(json.dumps(parts, sort_keys=True))


def _digest(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()


# Firing -----------------------------------------------------------------------------------------

CHECK_EVERY = 1.0  # seconds after which it checks again for what has been changed
# A job that a schedule has fired is kept for so many seconds at least: while it is there, a scheduler whose clock is
# slow, or that comes back from a failure, cannot fire the moment again.
FIRES_KEPT = 3600.0
_NONE_YET = 5.0  # seconds after which an app without schedules is asked for some: each time wakes an idle worker
_RETRY_AFTER = 10.0  # seconds until a fire that a full queue has refused is tried again


class Firing:
    """Fires schedules: which of their moments have come, and the jobs of these."""

    def __init__(self, app: Flowrra) -> None:
        self._app = app
        self._reported: set[str] = set()  # schedules that a warning has been given of

    async def run(self) -> None:
        """Fire what comes due, until it is cancelled. It may be called again after a failure: no fire is lost by it."""
        while True:
            pause = await self.step()
            await asyncio.sleep(pause)

    async def step(self) -> float:
        """Fire what is due; the seconds to sleep until there may be more.

        Cancelling it leaves open which of the jobs are in: what is not known to be fired is due again.
        """
        raise NotImplementedError

    def plan(self, schedule: Schedule, now: float) -> tuple[list[Job], Fired] | None:
        """The jobs of a taken schedule; None leaves it to others, who can take it when the lease is over."""
        task = self._app.registry.get(schedule.task)
        if task is None:  # it stays due until somebody comes who knows it, as jobs of an unknown task wait
            self._report(schedule, f"no task {schedule.task!r} is registered here, so it does not fire")
            return None
        try:
            rule = _rule_of(schedule)
        except ValueError as error:
            self._report(schedule, f"it cannot be read, so it does not fire: {error}")
            return None
        moments = _due_moments(rule, _micro(cast("float", schedule.next_fire)), _micro(now))
        chosen = _to_fire(schedule.misfire, moments, _micro(now))
        if len(chosen) < len(moments):
            logger.warning("schedule %s (%s) is late: %d of %d fires up to %s are dropped", schedule.id, task.name,
                           len(moments) - len(chosen), len(moments), _stamp(moments[-1]))  # fmt: skip
        jobs = [job_of_fire(schedule, task, moment, self._app.broker.retention) for moment in chosen]
        following = rule.next(_micro(now))
        over = moments if following is None else chosen  # where nothing follows, what was dropped is over, too
        last = over[-1] / 1e6 if over else schedule.last_fire
        following_at = None if following is None else following / 1e6
        return jobs, Fired(schedule.id, schedule.turn, following_at, last, schedule.last_job)

    def _report(self, schedule: Schedule, what: str) -> None:
        if schedule.id not in self._reported:
            self._reported.add(schedule.id)
            logger.warning("schedule %s: %s", schedule.id, what)

    async def push(self, due: Sequence[tuple[list[Job], Fired]]) -> list[Fired]:
        """Push the jobs of several schedules at once; the schedules whose jobs are in."""
        jobs = [job for its_jobs, _ in due for job in its_jobs]
        try:
            ids = iter(await self._app.submit_jobs(jobs) if jobs else ())
        except (QueueFullError, SerializationError) as error:  # the fault of one, which the others must not share
            if len(due) == 1:
                logger.error("schedule %s cannot fire, trying again: %s", due[0][1].schedule_id, error)
                return []
            return [fired for one in due for fired in await self.push([one])]
        pushed = [(fired, list(itertools.islice(ids, len(its_jobs)))) for its_jobs, fired in due]
        return [fired._replace(last_job=these[-1]) if these else fired for fired, these in pushed]


def job_of_fire(schedule: Schedule, task: Task[..., Any], moment: int, retention: BackendConfig) -> Job:
    """The job of a fire. Its id is made of the schedule and the moment, so that one comes of however many fires."""
    overrides = dict(schedule.options)
    job = Job(f"{schedule.id}@{_stamp(moment)}", task.name, payload=schedule.payload)
    job.queue, job.priority = overrides.pop("queue", task.queue), overrides.pop("priority", task.priority)
    if schedule.overlap == "skip":
        job.unique = f"schedule:{schedule.id}"
    if schedule.jitter:
        job.due = moment / 1e6 + schedule.jitter * int(_digest(job.id)[:8], 16) / 2**32
    kept = retention.result_ttl if task.settings.result_ttl is None else task.settings.result_ttl
    if min(kept, retention.failed_ttl) < FIRES_KEPT:
        overrides["result_ttl"] = max(kept, FIRES_KEPT)
    job.overrides = overrides or None
    return job


class CodeSchedules(Firing):
    """Fires the schedules that an app declares. It remembers nothing from one process to the next."""

    def __init__(self, app: Flowrra) -> None:
        super().__init__(app)
        self._schedules: dict[str, Schedule] = {}  # as they stand since the start, by id
        self._last_fires: dict[str, float | None] = {}  # before the start
        self._retry_at: dict[str, float] = {}  # on the monotonic clock, of those whose jobs were refused

    def restart(self) -> None:
        """Have all fire from now on, as the app starts; but no moment again that has fired before a stop."""
        self._last_fires |= {schedule.id: schedule.last_fire for schedule in self._schedules.values()}
        self._schedules.clear()

    async def step(self) -> float:
        now, clock = self._app.clock.time(), self._app.clock.monotonic()
        for schedule in self._app.schedules.values():
            if schedule.id not in self._schedules:
                last = self._last_fires.get(schedule.id)
                first = upcoming(schedule, now if last is None else max(now, last))
                self._schedules[schedule.id] = dataclasses.replace(schedule, next_fire=first, last_fire=last)
        due = [schedule for moment, schedule in self._waiting(clock) if moment <= now]
        plans = [plan for schedule in due if (plan := self.plan(schedule, now)) is not None]
        fired = {one.schedule_id: one for one in await self.push(plans)}
        for schedule in due:
            if (one := fired.get(schedule.id)) is not None:
                schedule.next_fire, schedule.last_fire, schedule.last_job = one[2:]
            else:
                self._retry_at[schedule.id] = clock + _RETRY_AFTER
        first = min((moment for moment, _ in self._waiting(clock)), default=math.inf)
        return min(CHECK_EVERY, max(0.0, first - now)) if self._app.schedules else _NONE_YET

    def _waiting(self, clock: float) -> list[tuple[float, Schedule]]:
        """Those that have something left to fire, and may, with the moment."""
        return [
            (schedule.next_fire, schedule)
            for schedule in self._schedules.values()
            if schedule.enabled and schedule.next_fire is not None and self._retry_at.get(schedule.id, clock) <= clock
        ]


# ---------------------------------------------------------------------------
# 14. App
#
# The object that users hold: registers tasks, submits jobs, waits for results,
# and runs a worker inside itself if it is started. Which class a URL stands
# for is decided here and nowhere else.
# ---------------------------------------------------------------------------

BrokerFactory = Callable[[str, Config, Clock], Broker]


def _memory_from_url(url: str, config: Config, clock: Clock) -> Broker:
    if url not in ("memory://", "memory"):
        raise ConfigError(f"the memory broker's URL is memory:// and no more, not {url!r}")
    return MemoryBroker(config.broker, config.backend, clock)


def _sqlite_from_url(url: str, config: Config, clock: Clock) -> Broker:
    import urllib.parse

    parts = urllib.parse.urlsplit(url)
    if parts.netloc or parts.fragment or parts.path == "/:memory:":
        form = "sqlite:///name.db or sqlite:////folder/name.db, with %23 for #; sqlite:// is private and in memory"
        raise ConfigError(f"{url!r} names no file: that is {form}")
    options = dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))
    synchronous = options.pop("synchronous", "full")
    if options:
        raise ConfigError(f"{url!r} has the unknown option {min(options)!r}; there is synchronous=full|normal")
    path = urllib.parse.unquote(parts.path)[1:] or None
    return SQLiteBroker(path, config.broker, config.backend, clock, synchronous=synchronous)


_SCHEMES: Mapping[str, BrokerFactory] = {"memory": _memory_from_url, "sqlite": _sqlite_from_url}
# Scheme: the module that serves it by `broker_from_url`, imported when it is used, and what installs its driver.
_EXTRAS: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys(("redis", "rediss", "unix"), ("flowrra_extras.redis", "flowrra[redis]")),
    **dict.fromkeys(("postgresql", "postgres"), ("flowrra_extras.postgres", "flowrra[postgresql]")),
}


def broker_from_url(url: str, config: Config, clock: Clock) -> Broker:
    """The broker that a URL stands for; third parties add schemes by the entry points `flowrra.brokers`.

    Raises:
        ConfigError: no such scheme, a URL that the scheme cannot read, or a driver that is not installed.
    """
    if not isinstance(url, str) or not url:
        raise ConfigError(f"a broker is given as a URL such as sqlite:///jobs.db, not {url!r}")
    scheme, mark, _ = url.partition("://")
    if not mark and url != "memory":
        shown = "name.db" if "@" in url else url  # never a password
        raise ConfigError(f"{shown!r} is no URL: a file is sqlite:///{shown}")
    return _factory_for(scheme.lower())(url, config, clock)


def _factory_for(scheme: str) -> BrokerFactory:
    if scheme in _EXTRAS:
        module, package = _EXTRAS[scheme]
        found: BrokerFactory = import_extra(module, "broker_from_url", f"{scheme}:// cannot be served", package)
        return found
    if scheme in _SCHEMES:
        return _SCHEMES[scheme]
    from importlib import metadata

    for point in metadata.entry_points(group="flowrra.brokers", name=scheme):
        try:
            return cast("BrokerFactory", point.load())
        except ImportError as error:
            owner = point.dist.name if point.dist else point.value
            raise ConfigError(f"{scheme}:// is served by {owner}, which needs more ({error}): install that") from error
    known = ", ".join(f"{name}://" for name in (*_SCHEMES, *_EXTRAS))
    raise ConfigError(f"nothing here serves the scheme {scheme!r} of the broker's URL; there are {known}")


class _TaskMaker(Protocol):
    """What `app.task(...)` returns: the decorator."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Task[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Task[P, R]: ...


class Declarations(Submitter):
    """What a program declares to its app: tasks, their schedules, and what is to happen around jobs. Runs nothing."""

    def __init__(self) -> None:
        self.registry = Registry()
        self._hooks = Hooks()
        self._middleware: list[Middleware] = []
        self._lifespan: Callable[[Any], contextlib.AbstractAsyncContextManager[Any]] | None = None
        self.schedules: dict[str, Schedule] = {}  # those that are declared in code, by id
        self._scheduled: dict[str, object] = {}  # the tasks they were declared for

    @overload
    def task(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Task[P, R]: ...
    @overload
    def task(self, function: Callable[P, R], /) -> Task[P, R]: ...
    @overload
    def task(
        self,
        *,
        name: str | None = None,
        max_retries: int = 3,
        retry_delay: float = 1.0,
        backoff: float = 2.0,
        max_delay: float = 3600.0,
        jitter: bool = False,
        retry_on: type[BaseException] | tuple[type[BaseException], ...] = (Exception,),
        no_retry_on: type[BaseException] | tuple[type[BaseException], ...] = (),
        timeout: float | None = None,
        queue: str | None = None,
        priority: int = 0,
        cpu_bound: bool = False,
        result_ttl: float | None = None,
    ) -> _TaskMaker: ...

    def task(self, function: Any = None, *, name: str | None = None, **options: Any) -> Any:
        """Register a function as a task, by `@app.task` or `@app.task(...)`; see `TaskOptions`.

        `async def` runs on the loop, `def` in a thread, and with `cpu_bound=True` either in a process.

        Raises:
            ConfigError: an option is out of range, the name is taken, or a CPU-bound function is one that
                another process cannot import (a lambda, a closure).
        """
        settings = _task_options(options)

        def register(function: Callable[..., Any]) -> Task[..., Any]:
            default = task_name(function)
            task: Task[..., Any] = Task(self, function, check_key("name", name) or default, settings)
            self.registry.add(task)
            return task

        return register if function is None else register(function)

    def cron(
        self,
        expression: str,
        *,
        tz: str | dt.tzinfo | None = None,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[ScheduleOptions],
    ) -> Callable[[TaskT], TaskT]:
        """Fire a task when a cron expression says, in the zone `tz` (None: UTC). It stands above `@app.task`.

        It fires while the app runs. Of many processes on one broker each tries to, and one job comes of it.
        Nothing is remembered of what came due while none was running; `create_scheduler` does that.

        Raises:
            ConfigError: a bad expression, zone or option, or what is decorated is no task of this app.
            TypeError: the arguments do not fit the task.
        """
        return self._schedule("cron", expression, tz=tz, args=args, kwargs=kwargs, **options)

    def every(
        self,
        interval: float | dt.timedelta,
        *,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[ScheduleOptions],
    ) -> Callable[[TaskT], TaskT]:
        """Fire a task each `interval` seconds, counted from the epoch so that all processes agree; see `cron`."""
        return self._schedule("interval", interval, args=args, kwargs=kwargs, **options)

    def _schedule(self, kind: str, rule: object, **options: Any) -> Callable[[TaskT], TaskT]:
        def declare(task: TaskT) -> TaskT:
            if not isinstance(task, Task) or task.app is not self:
                raise ConfigError(f"{task!r} is no task of this app: a schedule stands above @app.task, not below it")
            schedule = make_schedule(task, kind, rule, **options)
            # A task that was registered again, by a reload of its module, brings its schedules again.
            if schedule.id in self.schedules and self._scheduled[schedule.id] is task:
                same = f"task, {kind} {schedule.rule} ({schedule.tz}), arguments and queue"
                raise ConfigError(f"two schedules of {task.name} have the same {same}: they would fire as one")
            self.schedules[schedule.id], self._scheduled[schedule.id] = schedule, task
            return task

        return declare

    def middleware(self, function: Middleware) -> Middleware:
        """Wrap the running of every job: `async def mw(job, call_next): return await call_next(job)`.

        The one registered first is the outermost. What it raises or returns counts as the task's.
        """
        self._middleware.append(function)
        return function

    def on(self, name: str) -> Callable[[Callable[[Event], T]], Callable[[Event], T]]:
        """Register a plain or async function to be called with each `Event` of that name.

        start, success, failure, retry, cancel, release, worker_lost, worker_start, worker_stop. They run
        on the worker's loop after the fact is written down; one that raises is logged.
        """

        def register(hook: Callable[[Event], T]) -> Callable[[Event], T]:
            self._hooks.add(name, hook)
            return hook

        return register

    def lifespan(self, function: Callable[[Flowrra], contextlib.AbstractAsyncContextManager[T]]) -> Any:
        """Enter `function(app)` before the worker starts and leave it after it has stopped.

        What it yields is `app.state`, and `current_job().state` inside tasks (not in CPU-bound ones).
        """
        self._lifespan = function
        return function


def _task_options(options: dict[str, Any]) -> TaskOptions:
    """The options of a decorator; exception types may be given without a tuple."""
    known = [option.name for option in dataclasses.fields(TaskOptions)]
    for wrong in options.keys() - set(known):
        raise ConfigError(f"@app.task has no option {wrong!r}{nearest(wrong, known)}")
    for kind in ("retry_on", "no_retry_on"):
        if isinstance(options.get(kind), type):
            options[kind] = (options[kind],)
    return TaskOptions(**options)


# How far an opening of the app has come, and what may follow.
_MOVES: Mapping[str, tuple[str, ...]] = {
    "new": ("opening",),
    "opening": ("open", "closing"),
    "open": ("starting", "closing"),  # the stores can be used, here and in the next three
    "starting": ("running", "open"),  # the lifespan and the worker; back if that fails or is not wanted any more
    "running": ("draining",),
    "draining": ("open",),  # and on to another start, or to the close, unless a client needs the stores
    "closing": ("closed",),
    "closed": (),  # the next opening is another session
}


class _Session:
    """The app open on one loop: its stores, and while it is started its lifespan, schedules and worker.

    One task, `_live`, takes it from state to state. Callers say what they want and wait for a state, so that a
    caller that is cancelled interrupts nobody else. No lock is held while a lifespan, a hook or a job has its turn.
    """

    def __init__(self, app: Flowrra) -> None:
        self.loop = asyncio.get_running_loop()
        self.thread = threading.get_ident()
        self.state = "new"
        self.is_open = False  # whether the stores can be used
        self.worker: Worker | None = None  # while it is running or draining
        self.works_off = False  # whether a stop lets what is ready run, too, before the drain is over
        self._app = app
        self._stack = contextlib.AsyncExitStack()  # what is closed at the end
        self._stores: list[Backend | ScheduleStore] = []  # that are open
        self._opening = asyncio.Lock()  # of stores, one at a time
        self._callers = 0  # that wait for the stores or the worker; without any, an opening or a start is given up
        self._clients = 0
        self._goal = "open"  # or running or closed: of a start and a stop at once the later one decides
        self._is_given_up = False  # whether the step that is under way has been cancelled by us
        self._drain_end = 0.0  # when, by the loop's clock, a stop interrupts the jobs that still run
        self._failure: BaseException | None = None  # of the latest opening, start or stop
        self._changed = asyncio.Event()
        context = contextvars.copy_context()
        context.run(_current.set, None)  # it is not a part of the job that may have opened it
        self._task = self.loop.create_task(self._live(), name="flowrra-session", context=context)
        # A loop may end without it, as after run_until_complete(app.submit(...)): no fault to be reported.
        self._task._log_destroy_pending = False  # type: ignore[attr-defined]

    @property
    def is_alive(self) -> bool:
        """Whether it goes on. A loop that does not run is taken to have ended, closed or not."""
        return self.state != "closed" and self.loop.is_running()

    # What callers want -------------------------------------------------------------------------

    async def connect(self) -> bool:
        """Wait until the stores can be used; False if it closes before. It is given up when nobody waits any more."""
        await self._reach(lambda: self.is_open)
        if not self.is_open and self._failure is not None:
            raise self._failure
        return self.is_open

    async def start(self) -> None:
        """Wait until the worker runs. The start is undone when nobody waits for it any more."""
        if self.state != "running":
            self._refuse_own_task("start")
        self._goal, self.works_off = "running", False
        self._notify()
        await self._reach(lambda: self.state == "running" or self._goal != "running")
        if self.state != "running":
            await self._settled()
            raise self._failure or ExecutorNotRunningError("the app was stopped while it was starting")

    async def stop(self, drain: float) -> None:
        """Wait until the worker has stopped and, unless a client needs them, the stores are closed.

        Cancelling it changes nothing. A second stop with a shorter drain shortens the first.
        """
        self._refuse_own_task("stop")
        end = self.loop.time() + drain
        if self._goal == "running":
            self._drain_end, self._failure = end, None
            if self.worker is not None and not self.works_off:
                self.worker.stop_claiming()  # now, before anybody else has a turn
        elif end < self._drain_end:
            self._drain_end = end
            self.loop.call_later(drain, lambda: self.end_drain() if self._drain_end == end else None)
        self._release()
        await self._settled()
        if self._failure is not None and self._goal != "running":
            raise self._failure

    def end_drain(self) -> None:
        """Have a stop that is under way wait no longer for jobs."""
        self._drain_end = 0.0
        if self.worker is not None:
            self.worker.end_drain()

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[None]:
        """Need the stores meanwhile. The last client closes them, unless a worker needs them too."""
        self._clients += 1
        try:
            yield
        finally:
            self._clients -= 1
            if self.state == "open" and not self._clients and self._goal != "running":
                self._release()
                await self._settled()

    async def open_store(self, store: Backend | ScheduleStore) -> None:
        """Open a store until the session closes, unless it is open already."""
        async with self._opening:
            if store not in self._stores:
                await store.open()
                if self.state in ("closing", "closed"):
                    await store.close()
                    raise _stopped()
                self._stack.push_async_callback(store.close)
                self._stores.append(store)

    def _release(self) -> None:
        """Want no worker any more, nor the stores unless a client needs them."""
        self._goal = "closed"
        if self.state in ("opening", "starting") and not self._is_given_up:
            self._is_given_up = self._task.cancel()
        self._notify()

    def _refuse_own_task(self, call: str) -> None:
        caller = asyncio.current_task()
        if caller is self._task or (self.worker is not None and caller in self.worker.owned()):
            who = "the lifespan" if caller is self._task else "a job or a hook"
            raise FlowrraError(f"{who} cannot await app.{call}(), which waits for it: use asyncio.create_task()")

    async def _reach(self, condition: Callable[[], bool]) -> None:
        """Return when `condition` holds, or the session is closed. Without anybody who waits so it is released."""
        self._callers += 1
        try:
            while self.state != "closed" and not condition():
                await self._changed.wait()
        finally:
            self._callers -= 1
            if not self._callers and not condition():
                self._release()

    async def _settled(self) -> None:
        """Return when it is closed, or as far from it as a client or a new start wants."""
        while self.state != "closed" and self._goal != "running" and not (self.state == "open" and self._clients):
            await self._changed.wait()

    def _notify(self) -> None:
        """Have all who wait check their conditions again."""
        self._changed.set()
        self._changed = asyncio.Event()

    # The whole life, in one task ---------------------------------------------------------------

    def _move(self, state: str) -> None:
        if state not in _MOVES[self.state]:
            raise AssertionError(f"a session cannot go from {self.state} to {state}")
        self.state = state
        self.is_open = state in ("open", "starting", "running", "draining")
        self._notify()

    async def _live(self) -> None:
        self._move("opening")
        await self._attempt(self._serve())
        self._move("closing")
        await self._attempt(self._stack.aclose())
        self._move("closed")

    async def _attempt(self, step: Awaitable[None]) -> None:
        """Take a step, which may be given up; what it raises is for those who wait.

        There is no `finally` that awaits in these: a task that is collected after its loop has ended cannot.
        """
        try:
            await step
        except asyncio.CancelledError as error:
            if not self._is_given_up:  # the loop is being torn down
                self._failure = error
        except SystemExit as error:  # it would end the loop, and the process with its status
            self._failure = FlowrraError(f"the app's lifespan called sys.exit({error.code!r})")
        except Exception as error:
            self._failure = error
        if self._is_given_up:
            self._is_given_up = False
            self._task.uncancel()

    async def _serve(self) -> None:
        """Have the stores open, and a worker as often as one is wanted, until nobody needs them any more."""
        app = self._app
        await self.open_store(app.broker)
        if app.backend is not None:
            await self.open_store(app.backend)
        if app.backend is not None and app.backend.store_id is not None and app.backend.store_id == app.broker.store_id:
            app.backend = None  # the same store by another name
        self._move("open")
        while True:
            while self._goal == "open" or (self._goal == "closed" and self._clients):
                await self._changed.wait()
            if self._goal == "closed":
                return await _report_left(app.broker) if is_private(app.broker) else None
            await self._run_worker()
            if isinstance(self._failure, asyncio.CancelledError):
                raise self._failure

    async def _run_worker(self) -> None:
        self._move("starting")
        self._drain_end, self.works_off, self._failure = 0.0, False, None
        lifespan = contextlib.AsyncExitStack()
        await self._attempt(self._start_worker(lifespan))
        if (worker := self.worker) is not None:
            await self._attempt(self._run_jobs(worker))
            self._move("draining")
            if self.works_off:
                await self._attempt(self._work_off(worker))
            await self._attempt(worker.stop(max(0.0, self._drain_end - self.loop.time())))
            self.worker = None
        await self._attempt(lifespan.aclose())
        self._move("open")
        if self._failure is not None:
            self._release()

    async def _start_worker(self, lifespan: contextlib.AsyncExitStack) -> None:
        app = self._app
        if app._lifespan is not None:
            app.state = await lifespan.enter_async_context(app._lifespan(app))
        schedulers = [*app.schedulers] if app.config.executor.scheduler else []
        for scheduler in schedulers:
            await self.open_store(scheduler.store)
        worker = Worker(
            app.broker,
            app.registry,
            app.config.executor,
            backend=app.backend,
            clock=app.clock,
            hooks=app._hooks,
            middleware=app._middleware,
            state=app.state,
        )
        await worker.start()
        if app.config.executor.scheduler:
            app.code_schedules.restart()
            for firing in (app.code_schedules, *schedulers):
                worker.keep_running(firing.run)
        self.worker = worker
        self._move("running")

    async def _run_jobs(self, worker: Worker) -> None:
        # It may drain although it is wanted: after a stop and a start in one turn of the loop.
        while self._goal == "running" and not worker.is_draining:
            await self._changed.wait()

    async def _work_off(self, worker: Worker) -> None:
        """Wait until nothing is left that is ready here, as long as jobs may run."""
        for pause in itertools.chain((0.0, 0.001, 0.005, 0.01), itertools.repeat(0.05)):
            if self.loop.time() >= self._drain_end:
                return
            counts = await self._app.broker.counts(JobFilter(status=frozenset((PENDING, RUNNING))))
            served = worker.info.queues.keys() - await self._app.broker.paused()
            if not any(queue in served or status is RUNNING for queue, status in counts):
                return
            await asyncio.sleep(pause)


async def _report_left(broker: Broker) -> None:
    """Say which jobs go with the memory of this process, unless the app is started again."""
    counts = await broker.counts(JobFilter(status=UNFINISHED))
    left = ", ".join(f"{number} {status} in {queue!r}" for (queue, status), number in sorted(counts.items()))
    if left:
        logger.warning("jobs are left in memory, and lost when this process ends: %s", left)


def is_private(broker: Broker) -> bool:
    """Whether the jobs live in this process alone, and end with it."""
    return isinstance(broker, MemoryBroker) or (isinstance(broker, SQLiteBroker) and broker.path is None)


def _stopped() -> ExecutorNotRunningError:
    return ExecutorNotRunningError("the app has been stopped: start() it again, or use app.client()")


class _Sessions:
    """Which session is the present one: a loop that ended, a fork and plain code each leave it to a new one."""

    def __init__(self, app: Flowrra) -> None:
        self.present: _Session | None = None
        self.is_stopped = False  # so that no call opens the stores by itself
        self._app = app
        self._is_in_child = _in_child.get()  # here, as other threads do not know
        self._inherited: list[object] = []
        self._begin_in_process()
        if hasattr(os, "register_at_fork"):
            begin = weakref.WeakMethod(self._begin_in_process)
            os.register_at_fork(after_in_child=lambda: (renew := begin()) and renew())

    def _begin_in_process(self) -> None:
        """What a forked child must not share with its parent: where the ids count on, and what is open."""
        # Ids are short, in the order of their making, and unique without asking anybody: 64 random bits a process.
        prefix = f"{int(self._app.clock.time()):08x}{os.urandom(8).hex()}"
        numbers = itertools.count(1_000_000)  # of one length as long as may be, so that they sort
        self._app.new_id = lambda: f"{prefix}{next(numbers)}"  # type: ignore[method-assign]
        self._inherited += (self.present, self._app.sync._loop)  # to collect these would close what the parent uses
        self.present, self.is_stopped = None, False
        self._app.sync.begin_in_process()

    def open_here(self) -> _Session | None:
        """The session whose stores are open on the loop that runs here, if there is one.

        On CPython 3.11 get_running_loop() asks the system for the process id: 0.25 us, twice a job.
        """
        session = self.present
        if session is None or not session.is_open or session.thread != threading.get_ident():
            return None
        return session if session.loop.is_running() else None

    async def here(self) -> _Session | None:
        """The session on the running loop, if there is one that goes on."""
        plain = self._app.sync.thread
        if plain is not None and plain is not threading.current_thread():  # plain code has opened it
            await asyncio.to_thread(self._app.sync.close)
        session = self.present
        if session is None:
            return None
        if not session.is_alive:
            if session.worker is not None:
                session.worker.abandon()
            return None
        if session.loop is not asyncio.get_running_loop():
            raise ConfigError("the app is open on another event loop, in another thread: use app.sync there")
        return session

    async def connect(self) -> _Session:
        """The session on the running loop with its stores open; a new one if there is none that goes on."""
        if (session := self.open_here()) is not None:
            return session
        while not self.is_stopped:
            session = await self.here()
            if session is None:
                if self._is_in_child:
                    _check_child(self._app.broker)
                session = self.present = _Session(self._app)
            if await session.connect():
                return session
        raise _stopped()

    def worker(self) -> Worker | None:
        """The worker that runs inside the app."""
        return self.present.worker if self.present is not None and self.present.is_alive else None

    def serve_new(self, task: Task[..., Any]) -> None:
        """Have a worker that runs serve a task that was registered after its start."""
        if (worker := self.worker()) is not None:
            _call_soon(worker.loop, worker.add_task, task)


def _check_child(broker: Broker) -> None:
    """In a process for CPU-bound tasks: a task may submit to a store that processes share, and no more."""
    # In the main thread without a task: this comes from a module that is being loaded. Other threads know neither.
    if _in_child.get() and _current.get() is None:
        raise ConfigError(
            "the app is being started by a process that was made for a CPU-bound task: "
            "put the start of your program under `if __name__ == '__main__':`"
        )
    if broker.clone() is None:
        raise ConfigError(
            "a CPU-bound task cannot reach the app's jobs: it runs in a process of its own, and the store is "
            "private to another; use sqlite:///jobs.db, or result_of() for the result of another job"
        )


class Flowrra(Declarations):
    """An app: its tasks, and the way to its jobs.

    `async with app:` starts a worker inside this process, and drains and stops it at the end;
    `async with app.client():` only submits and waits, as does calling `submit` without either.
    """

    def __init__(
        self,
        config: Config | None = None,
        *,
        broker: Broker | None = None,
        backend: Backend | None = None,
        clock: Clock | None = None,
    ) -> None:
        super().__init__()
        self.config = config or Config()
        self.clock = clock or Clock()
        self.broker = broker or broker_from_url(self.config.broker.url, self.config, self.clock)
        url = self.config.backend.url
        if url not in (None, self.config.broker.url):
            backend = backend or broker_from_url(url, self.config, self.clock)
        self.backend = backend if backend is not self.broker else None
        self.state: Any = None
        self.schedulers: list[Scheduler] = []  # made by create_scheduler()
        self.code_schedules = CodeSchedules(self)
        self.sync = SyncFace(self)
        self.sessions = _Sessions(self)
        self.registry.on_new = self.sessions.serve_new

    @classmethod
    def from_urls(cls, broker: str | None = None, backend: str | None = None) -> Self:
        """An app on a broker and, if results are to be kept elsewhere, a backend, each given by its URL.

        memory:// (in this process, the default), sqlite:///relative.db, sqlite:////absolute.db, sqlite:// (private, in
        memory). With ?synchronous=normal a power cut may undo what a SQLite broker has acknowledged last.
        """
        url = "memory://" if broker is None else broker
        return cls(Config(broker=BrokerConfig(url=url), backend=BackendConfig(url=backend)))

    # Life --------------------------------------------------------------------------------------

    @property
    def is_running(self) -> bool:
        """Whether a worker runs inside this app."""
        return self._worker is not None

    @property
    def worker(self) -> WorkerInfo | None:
        """The worker that runs inside this app."""
        return None if self._worker is None else self._worker.info

    @property
    def _worker(self) -> Worker | None:
        return self.sessions.worker()

    async def start(self) -> None:
        """Open the stores and start a worker on the running loop. A second call changes nothing.

        Of a start and a stop at once the later one counts. Cancelling the call undoes it.

        Raises:
            ExecutorNotRunningError: the app was stopped meanwhile.
        """
        self.sessions.is_stopped = False
        await (await self.sessions.connect()).start()

    async def stop(self, wait: bool = True, timeout: float | None = 30.0) -> None:
        """Drain and stop the worker and close the stores, unless a `client()` needs them.

        A second call waits for the first, and may shorten it. Cancelling the call changes nothing: the stop goes on.

        Args:
            wait: False stops at once; running jobs are handed back, to run again.
            timeout: seconds that running jobs get to finish (None: as long as they take).
        """
        drain = 0.0 if not wait else math.inf if timeout is None else _seconds("timeout", timeout)
        session = await self.sessions.here()
        self.sessions.is_stopped = True
        if session is not None:
            await session.stop(drain)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and is_private(self.broker) and self.sessions.present is not None:
            self.sessions.present.works_off = True  # what is left in memory nobody else would run
        await self.stop(timeout=self.config.executor.drain)

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[Self]:
        """Open the stores to submit and wait, without a worker; close them at the end.

        Inside another `client()` or a running app it opens and closes nothing.
        """
        self.sessions.is_stopped = False
        async with (await self.sessions.connect()).client():
            yield self

    async def connect(self) -> None:
        """Open the stores on the running loop, unless they are open; each call on the app does so first."""
        await self.sessions.connect()

    def create_scheduler(self, backend: str | ScheduleStore | None = None) -> Scheduler:
        """A scheduler whose schedules are kept, and fire while the app runs.

        `backend` is a store or its URL: memory://, sqlite:///file.db, postgresql://, mysql://; None is the
        SQLite file .flowrra_schedule.db. All but memory:// may be shared by many processes.

        Raises:
            ConfigError: no such store, or its driver is not installed.
        """
        trouble = "schedules cannot be stored here"
        make = import_extra("flowrra_extras.scheduler", "scheduler_for", trouble, "flowrra[scheduler]")
        scheduler: Scheduler = make(self, backend)
        self.schedulers.append(scheduler)
        if self._worker is not None and self.config.executor.scheduler:
            _call_soon(self._worker.loop, self._worker.keep_running, scheduler.run)
        return scheduler

    # Submitting --------------------------------------------------------------------------------

    @overload
    async def submit(self, task: Task[P, R] | Submission[P, R], /, *args: P.args, **kwargs: P.kwargs) -> TaskId[R]: ...
    @overload
    async def submit(self, task: Task[..., R], /, *args: Any, priority: int, **kwargs: Any) -> TaskId[R]: ...

    @_never_dropped
    async def submit(self, task: Any, /, *args: Any, **kwargs: Any) -> TaskId[Any]:
        """Submit one job and return its id; on a durable broker it is on disk by then.

        `task` may be what `task.options(...)` returns. Keywords that are options there, such as `priority=` and
        `delay=`, are options here too, unless the task has a parameter of that name.
        If the call is cancelled, the job may have been taken or not.

        Raises:
            TaskNotFoundError: `task` is not a task of this app.
            TypeError: the arguments do not fit the task's signature.
            SerializationError: an argument cannot be kept.
            QueueFullError: the queue is full, and `when_full` is "raise".
            ExecutorNotRunningError: the app has been stopped.
            BrokerError: the store failed; the job was not taken.
        """
        job = _job_for(self, task, args, kwargs)
        return cast("TaskId[Any]", (await self.submit_jobs((job,)))[0])

    @_never_dropped
    async def submit_many(self, task: Task[..., R] | Submission[..., R], rows: Iterable[Any]) -> list[TaskId[R]]:
        """Submit a job for each row, all or none: a tuple of arguments, or a dictionary of named ones."""
        _check_own(self, task)
        jobs = []
        for number, row in enumerate(rows):
            if number % 1000 == 999:
                await asyncio.sleep(0)  # let others have the loop
            if isinstance(row, tuple | list):
                jobs.append(task.make_job(row, {}))
            elif isinstance(row, Mapping):
                jobs.append(task.make_job((), row))
            else:
                raise TypeError(f"row {number} is {row!r}: a row is a tuple of arguments, such as ({row!r},)")
        return cast("list[TaskId[R]]", await self.submit_jobs(jobs)) if jobs else []

    @_never_dropped
    async def submit_in(
        self, connection: Any, task: Task[P, R] | Submission[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> TaskId[R]:
        """Submit one job through the caller's own connection to the broker's database.

        The job is there if the caller's transaction commits, and never was if it rolls back. A worker
        notices it within a second of the commit.

        Raises:
            ConfigError: the broker has no SQL database, or the connection is to another one.
        """
        await self.connect()
        pushed = self.broker.push_in(connection, [_job_for(self, task, args, kwargs)], now=self.now())
        (task_id,) = await pushed if inspect.isawaitable(pushed) else pushed
        return cast("TaskId[R]", task_id)

    async def submit_jobs(self, jobs: Sequence[Job]) -> list[str]:
        """Push jobs that a task has made; a job that waits for room in a queue leaves its slot to others."""
        if self.sessions.open_here() is None:
            await self.connect()
        if self.config.broker.max_queue_size is None or not is_private(self.broker):
            return await self.broker.push(jobs, now=self.clock.time())
        with _slot_freed():
            return await self.broker.push(jobs, now=self.clock.time())

    def now(self) -> float:
        """The wall clock, in seconds since the epoch."""
        return self.clock.time()

    # Results and jobs --------------------------------------------------------------------------

    @overload
    async def wait_for_result(self, task_id: TaskId[R], timeout: float | None = ...) -> TaskResult[R]: ...
    @overload
    async def wait_for_result(self, task_id: str, timeout: float | None = ...) -> TaskResult[Any]: ...

    async def wait_for_result(self, task_id: str, timeout: float | None = None) -> TaskResult[Any]:
        """The result of a job, when it has come to its end.

        Inside a job, other jobs may have its slot meanwhile. Cancelling the call changes nothing.

        Raises:
            TaskNotFoundError: no such job.
            TaskTimeoutError: it has not ended within `timeout` seconds.
        """
        end = None if timeout is None else time.monotonic() + (timeout := _seconds("timeout", timeout))
        if self.backend is None and self.sessions.open_here() is not None:
            with _slot_freed():
                return await self.broker.wait_for(task_id, timeout)
        async with result_limit(task_id, timeout):  # of opening the stores and of asking a separate backend, too
            await self.connect()
            with _slot_freed():
                left = None if end is None else max(0.0, end - time.monotonic())
                result = await self.broker.wait_for(task_id, left)
            return result if self.backend is None else await _kept_by(self.backend, result)

    @overload
    async def get_result(self, task_id: TaskId[R]) -> TaskResult[R] | None: ...
    @overload
    async def get_result(self, task_id: str) -> TaskResult[Any] | None: ...

    async def get_result(self, task_id: str) -> TaskResult[Any] | None:
        """A job's result as it stands, finished or not; None for an unknown id."""
        await self.connect()
        (result,) = await self.broker.get([task_id])
        if self.backend is None:
            return result
        return (await self.backend.get([task_id]))[0] if result is None else await _kept_by(self.backend, result)

    async def cancel(self, task_id: str, *, by: str | None = None) -> bool:
        """End a job: at once if it waits, by its worker if it runs. False: it is finished, or unknown.

        `by` says who did it; a note of that stays with the job's attempts.
        """
        await self.connect()
        return await self.broker.cancel(task_id, now=self.now(), **_signed(by))

    async def requeue(self, task_id: str, *, by: str | None = None) -> bool:
        """Let a failed or cancelled job run again, its failures forgotten. False: it is neither. `by`: who did it."""
        await self.connect()
        return (await self.broker.requeue([task_id], now=self.now(), **_signed(by)))[0]

    async def delete(self, task_id: str) -> bool:
        """Delete a finished job before its retention ends. False: it is not finished, or unknown."""
        await self.connect()
        return (await self.broker.delete([task_id]))[0]

    async def jobs(
        self,
        *,
        status: str | Iterable[str] | None = None,
        task: str | None = None,
        queue: str | None = None,
        limit: int = 100,
        after: int | None = None,
    ) -> list[Job]:
        """Jobs, the latest submitted first; `after` is the `seq` of the last one of the page before."""
        await self.connect()
        wanted = [status] if isinstance(status, str) else status
        which = JobFilter(status=None if wanted is None else frozenset(map(_status, wanted)), task=task, queue=queue)
        return await self.broker.find(which, limit=_whole("limit", limit, least=1), after=after)

    async def get_job(self, task_id: str) -> Job:
        """A job with its attempts; TaskNotFoundError for an unknown id."""
        await self.connect()
        found = await self.broker.find(JobFilter(ids=[task_id]), limit=1)
        if not found:
            raise unknown_job(task_id)
        return found[0]

    async def explain(self, task_id: str) -> str:
        """One sentence on where a job stands and, if it does not run, why."""
        return await _explain(self.broker, await self.get_job(task_id), self.now())


def _job_for(
    app: Flowrra, call: Task[..., Any] | Submission[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Job:
    """A job for a call of `app.submit`, where keywords may be options."""
    if type(call) is not Task or call.app is not app:
        _check_own(app, call)
    if not kwargs or isinstance(call, Submission) or call.submit_options.isdisjoint(kwargs):
        return call.make_job(args, kwargs)
    options = {name: value for name, value in kwargs.items() if name in call.submit_options}
    own = {name: value for name, value in kwargs.items() if name not in options}
    return call.options(**options).make_job(args, own)


def _check_own(app: Flowrra, call: object) -> None:
    task = call.task if isinstance(call, Submission) else call
    if not isinstance(task, Task):
        raise TaskNotFoundError(f"{task!r} is not a task: decorate the function with @app.task and submit that")
    if task.app is not app:
        raise TaskNotFoundError(f"the task {task.name!r} belongs to another app: submit it there")


def _slot_freed() -> contextlib.AbstractContextManager[None]:
    """While the job that calls, if it is one, waits for others: they may have its slot."""
    context = _current.get()
    return contextlib.nullcontext() if context is None else context.waiting()


async def _kept_by(backend: Backend, result: TaskResult[Any]) -> TaskResult[Any]:
    """The result as the separate backend has it; the broker's own if it does not (yet)."""
    (kept,) = await backend.get([result.task_id])
    return kept if kept is not None and kept.attempts == result.attempts else result


def _signed(by: str | None) -> dict[str, str]:
    """The keyword that says who did something; brokers of third parties may not know it."""
    return {} if by is None else {"by": by}


def _status(name: str) -> TaskStatus:
    try:
        return TaskStatus(name)
    except ValueError:
        raise ConfigError(f"{name!r} is no state of a job: {', '.join(TaskStatus)}") from None


async def _explain(broker: Broker, job: Job, now: float) -> str:
    due, ago = (job.due or now) - now, duration(now - (job.finished or now))
    error = (job.error or "").partition("\n")[0]
    match job.status:
        case TaskStatus.PENDING:
            return f"It is ready, {await _why_waiting(broker, job)}."
        case TaskStatus.BLOCKED if job.worker is not None:
            return f"It is held for {job.worker}: if that was interrupted, start it again."
        case TaskStatus.BLOCKED:
            return f"It is blocked by {await _blockers(broker, job)}."
        case TaskStatus.SCHEDULED | TaskStatus.RETRYING if due <= 0:
            return f"It has been due for {duration(-due)}, {await _why_waiting(broker, job)}."
        case TaskStatus.SCHEDULED:
            return f"It is due in {duration(due)}{f': {error}' if error else ''}."
        case TaskStatus.RETRYING:
            return f"It failed {job.failures} time(s) and is due again in {duration(due)}: {error}."
        case TaskStatus.RUNNING if job.worker not in {worker.id for worker in await broker.workers()}:
            return f"It was running on {job.worker}, which is gone: it runs again as soon as another worker is there."
        case TaskStatus.RUNNING:
            ending = ", and has been asked to end" if job.cancel_requested else ""
            return f"It has been running on {job.worker} for {duration(now - (job.started or now))}{ending}."
        case TaskStatus.SUCCESS:
            return f"It succeeded {ago} ago."
        case _:
            return f"It ended as {job.status} {ago} ago: {error}."


async def _blockers(broker: Broker, job: Job) -> str:
    parents = await broker.get(job.parents)
    open_ones = [p for p in parents if p is not None and not p.is_finished]
    named = " and ".join(f"its parent {p.task_id} ({p.task}), which is {p.status}" for p in open_ones)
    return named or "parents that have just ended"


async def _why_waiting(broker: Broker, job: Job) -> str:
    if job.queue in await broker.paused():
        return f"but its queue {job.queue} is paused"
    workers = await broker.workers()
    serving = [worker for worker in workers if job.queue in worker.queues]
    if not serving:
        return f"but no live worker serves the queue {job.queue} ({len(workers)} alive)"
    if not any(job.task in worker.tasks for worker in serving):
        return f"but no live worker that serves the queue {job.queue} knows the task {job.task}"
    if job.crashes:
        last = ", and is new or has lived for a while" if job.crashes == LAST_CHANCE else ""
        return f"but it was running in {job.crashes} crash(es), so it waits for a worker that runs nothing else{last}"
    ahead = sum((await broker.counts(JobFilter(ahead_of=job))).values())
    return f"but {ahead} job(s) are ahead of it in the queue {job.queue}" if ahead else f"the next in {job.queue}"


def duration(seconds: float) -> str:
    """A length of time as people say it: 0.25 s, 42 s, 4 m 10 s, 3 h 5 m, 2 d 1 h."""
    if seconds < 10:
        return f"{round(max(0.0, seconds), 3):.2g} s"
    for size, unit, small, small_unit in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "m"), (60, "m", 1, "s")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit} {int(seconds % size // small)} {small_unit}"
    return f"{seconds:.0f} s"


def _blocking(call: Callable[Concatenate[Flowrra, P], Coroutine[Any, Any, T]]) -> Callable[Concatenate[SyncFace, P], T]:
    """A call of the app as one of its synchronous face."""

    @functools.wraps(call)
    def blocking(self: SyncFace, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.run(call(self._app, *args, **kwargs))

    return blocking


_LOOP_LATE = 1.0  # seconds after which a call looks whether its loop still runs, or is blocked


class SyncFace:
    """The app for plain code: the same calls, blocking. For web views and scripts without a loop.

    The calls run on the loop that the app is open on, or on one in a thread of its own, until `close`.
    """

    def __init__(self, app: Flowrra) -> None:
        self._app = app
        self.begin_in_process()

    def begin_in_process(self) -> None:
        """Forget what a fork has left behind: a thread that is not there, a lock that nobody will release."""
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.thread: threading.Thread | None = None  # of these calls' own, if they have one

    @overload
    def submit(self, task: Task[P, R] | Submission[P, R], /, *args: P.args, **kwargs: P.kwargs) -> TaskId[R]: ...
    @overload
    def submit(self, task: Task[..., R], /, *args: Any, priority: int, **kwargs: Any) -> TaskId[R]: ...

    def submit(self, task: Any, /, *args: Any, **kwargs: Any) -> TaskId[Any]:
        """See `Flowrra.submit`; also for a task with options: `submit(task.options(delay=60), ...)`."""
        return self.run(self._app.submit(task, *args, **kwargs))

    @overload
    def wait_for_result(self, task_id: TaskId[R], timeout: float | None = ...) -> TaskResult[R]: ...
    @overload
    def wait_for_result(self, task_id: str, timeout: float | None = ...) -> TaskResult[Any]: ...

    def wait_for_result(self, task_id: str, timeout: float | None = None) -> TaskResult[Any]:
        """See `Flowrra.wait_for_result`."""
        return self.run(self._app.wait_for_result(task_id, timeout), timeout)

    @overload
    def get_result(self, task_id: TaskId[R]) -> TaskResult[R] | None: ...
    @overload
    def get_result(self, task_id: str) -> TaskResult[Any] | None: ...

    def get_result(self, task_id: str) -> TaskResult[Any] | None:
        """See `Flowrra.get_result`."""
        return self.run(self._app.get_result(task_id))

    def submit_in(self, connection: Any, task: Task[P, R], /, *args: P.args, **kwargs: P.kwargs) -> TaskId[R]:
        """See `Flowrra.submit_in`. The connection is used in this thread, to which a driver may bind it."""
        self.run(self._app.connect())
        job = _job_for(self._app, task, args, kwargs)
        pushed = self._app.broker.push_in(connection, [job], now=self._app.now())
        (task_id,) = self.run(pushed) if inspect.iscoroutine(pushed) else cast("list[str]", pushed)
        return cast("TaskId[R]", task_id)

    submit_many = _blocking(Flowrra.submit_many)
    cancel = _blocking(Flowrra.cancel)
    requeue = _blocking(Flowrra.requeue)
    delete = _blocking(Flowrra.delete)
    jobs = _blocking(Flowrra.jobs)
    get_job = _blocking(Flowrra.get_job)
    explain = _blocking(Flowrra.explain)

    def run(self, call: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """What a coroutine gives that uses the app; it runs on the loop that these calls run on.

        `timeout` is one that the call keeps by itself, unless something else blocks the loop.
        """
        if asyncio._get_running_loop() is not None:
            call.close()
            raise FlowrraError("app.sync would block the event loop here: await the call on the app itself")
        with self._lock:  # so that no close() comes between
            loop = self._find_loop()
            called = asyncio.run_coroutine_threadsafe(call, loop)
        end = math.inf if timeout is None else time.monotonic() + timeout + _LOOP_LATE
        try:
            while not called.done():
                concurrent.futures.wait([called], max(0.0, min(_LOOP_LATE, end - time.monotonic())))
                if not loop.is_running() or time.monotonic() >= end:
                    called.cancel()
            return called.result()
        except concurrent.futures.CancelledError:
            if loop.is_running() and time.monotonic() >= end:
                raise TaskTimeoutError(f"the app's event loop is blocked: no answer within {timeout:g} s") from None
            raise ExecutorNotRunningError("the app was closed during this call, which may be done or not") from None

    def _find_loop(self) -> asyncio.AbstractEventLoop:
        """The loop to call on: the app's, or one in a thread that is started now."""
        session = self._app.sessions.present
        if session is not None and session.is_alive:
            return session.loop
        if self.thread is None or self._loop is None:
            runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
            self._loop = runner.get_loop()
            self.thread = threading.Thread(target=_run_loop, args=(runner,), name="flowrra-sync", daemon=True)
            self.thread.start()
            atexit.register(self.close)
        return self._loop

    def close(self) -> None:
        """Close the stores and end the thread, if these calls have opened and started them."""
        with self._lock:
            thread, self.thread = self.thread, None
            if thread is None or self._loop is None:
                return
            atexit.unregister(self.close)
            session = self._app.sessions.present
            try:
                if session is not None and session.is_alive and session.loop is self._loop:
                    asyncio.run_coroutine_threadsafe(session.stop(0.0), self._loop).result()
            finally:
                self._loop.call_soon_threadsafe(self._loop.stop)
                thread.join()


def _run_loop(runner: asyncio.Runner) -> None:
    # It ends the loop and what is left on it. CPython before 3.12.3 starts no thread, as that does, at its own end.
    with contextlib.suppress(RuntimeError), runner:
        while True:
            with contextlib.suppress(SystemExit):  # of a call; its caller gets it
                return runner.get_loop().run_forever()


# ---------------------------------------------------------------------------
# 15. Command line
#
# `python -m flowrra ...`: runs workers, shows jobs. Everything here goes
# through the app; exit status 0 is success, 1 a failure that the output
# names, 2 a wrong call.
# ---------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        if argv[:1] and argv[0] in OPERATOR_COMMANDS:
            command = import_extra("flowrra_extras.commands", "main", f"the command {argv[0]!r} cannot be run here")
            status: int = command(argv) or 0
        else:
            arguments = parsed(_parser(), argv)
            arguments.argv = argv
            status = arguments.command(arguments) or 0
        print(end="", flush=True)  # a reader that is gone is to be met here, not when Python ends
        return status
    except FlowrraError as error:
        print(f"flowrra: {str(error) or describe(error)}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def parsed(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """The arguments; `show ID --json module:app` is more than argparse understands before CPython 3.12.7."""
    options = collections.Counter(word.partition("=")[0] for word in argv if word[:2] == "--")
    if twice := [name for name, number in options.items() if number > 1 and name != "--arg"]:
        parser.error(f"{twice[0]} is given twice")
    arguments, left = parser.parse_known_args(argv)
    if len(left) == 1 and left[0][:1] != "-" and getattr(arguments, "where", "") is None:
        arguments.where = left.pop()
    if left:
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    return arguments


def _parser() -> argparse.ArgumentParser:
    import argparse

    parser = argparse.ArgumentParser(prog="flowrra", description="A task queue in one file.", epilog=_EPILOG,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("-V", "--version", action="version", version=f"flowrra {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, command: Callable[..., int | None], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=command)
        return sub

    worker = add("worker", _worker_command, "run the jobs of an app")
    worker.add_argument("app", nargs="?", help="module:app (or FLOWRRA_APP)")
    worker.add_argument("--concurrency", type=int, metavar="N", help="jobs at once of each queue but cpu")
    worker.add_argument("--queues", metavar="default:50,cpu:2", help="serve these only, each with its capacity")
    worker.add_argument("--processes", type=int, default=1, metavar="N", help="worker processes (1)")
    worker.add_argument("--drain", type=float, metavar="S", help="seconds that running jobs get at a stop (30)")
    worker.add_argument("--reload", action="store_true", help="start anew when a source file changes")
    worker.add_argument("--supervised", action="store_true", help=argparse.SUPPRESS)  # what a supervisor starts
    worker.add_argument("--no-scheduler", action="store_true", help="leave schedules to other workers")
    levels = ["debug", "info", "warning", "error"]
    text = f"{', '.join(levels)} (info)"
    worker.add_argument("--log-level", default="info", choices=levels, metavar="LEVEL", help=text)
    worker.add_argument("--log-format", default="text", choices=["text", "json"], help="text, or a JSON object a line")
    enqueue = add("enqueue", _enqueue_command, "submit one job")
    enqueue.add_argument("app", help="module:app")
    enqueue.add_argument("task", help="the task's name, or its last part if that is clear")
    enqueue.add_argument("--arg", action="append", default=[], metavar="JSON", help="an argument; NAME=JSON names it")
    enqueue.add_argument("--wait", action="store_true", help="wait for the result and print it")
    status = add("status", _status_command, "show queues and workers")
    show = add("show", _show_command, "show one job with its attempts and traceback")
    explain = add("explain", _explain_command, "say in a sentence why a job is not running")
    for sub in (show, explain):
        sub.add_argument("id")
    for sub in (status, show):
        sub.add_argument("--json", action="store_true", help="print JSON")
    for sub in (status, show, explain):
        add_store(sub)
    demo = add("demo", _demo_command, "see it work: a worker, some hundred jobs, a crash and its rescue")
    demo.add_argument("--keep", metavar="FILE", help="keep the jobs in this new SQLite file, to be looked at")
    for name, text in OPERATOR_COMMANDS.items():
        commands.add_parser(name, help=text)  # main() has handed these on before it comes to parse
    return parser


def add_store(parser: argparse.ArgumentParser) -> None:
    """The arguments that say which store a command asks; see `ask`."""
    parser.add_argument("where", nargs="?", metavar="module:app", help="the app whose broker to ask (or FLOWRRA_APP)")
    parser.add_argument("--broker", metavar="URL", help="the broker to ask (or FLOWRRA_BROKER)")


_EPILOG = """\
examples:
  flowrra demo                                    needs nothing else
  flowrra worker shop.jobs:app                    run the jobs of `app` in shop/jobs.py
  flowrra status --broker sqlite:///jobs.db       look at a store
  flowrra explain ID shop.jobs:app                why does that job not run?
FLOWRRA_APP and FLOWRRA_BROKER stand in for module:app and --broker where these may be left out."""


# What flowrra_extras.commands carries out, with a line of help each.
OPERATOR_COMMANDS: Mapping[str, str] = {
    "jobs": "list jobs, the latest first",
    "cancel": "end a waiting or running job",
    "requeue": "have an ended job run again",
    "purge": "delete finished jobs past their retention",
    "pause": "hand out no more jobs of a queue",
    "resume": "hand out the jobs of a paused queue again",
    "cron": "say when a cron expression fires",
    "schedules": "show and steer schedules",
    "dashboard": "serve the dashboard",
    "migrate": "move jobs from one broker to another",
}


# Finding the app -------------------------------------------------------------------------------


def load_app(target: str) -> Flowrra:
    """The app that `module:app` names; ConfigError if there is none. What the module raises comes as it is."""
    module_name, _, attribute = target.partition(":")
    if not all(map(str.isidentifier, module_name.split("."))) or module_name.endswith(".py") or not attribute:
        raise ConfigError(f"an app is given as module:app, such as shop.jobs:app, not {target!r}")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module: Any = importlib.import_module(module_name)
    except SystemExit as stop:
        at = tracebacks.extract_tb(stop.__traceback__)[-1]
        where = f"sys.exit({stop.code!r}) ({at.filename}, line {at.lineno})"
        put = "put that under `if __name__ == '__main__':`"
        raise ConfigError(f"importing {module_name} ended the program: {where}; {put}") from None
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ConfigError(f"there is no module {error.name!r} in {os.getcwd()} or on the search path") from None
    found = functools.reduce(lambda found, name: getattr(found, name, None), attribute.split("."), module)
    if isinstance(found, Flowrra):
        return found
    kind = "" if found is None else f" but of type {type(found).__name__}"
    if inspect.isroutine(found):
        kind = f" but a function: write app = {attribute}() there and name {module_name}:app"
    apps = ", ".join(name for name, value in vars(module).items() if isinstance(value, Flowrra))
    raise ConfigError(f"{attribute!r} is no app in the module {module_name}{kind}; it has {apps or 'none'}")


def check_shared(app: Flowrra) -> None:
    """Refuse a store that no other process can see: what is submitted there would be lost without a word."""
    if is_private(app.broker):
        url = app.config.broker.url
        raise ConfigError(f"{url} lives in one process, out of reach of any other: use a file, as in sqlite:///jobs.db")


def _app_for(arguments: argparse.Namespace) -> Flowrra:
    """The app that a command asks, or one without tasks on the broker."""
    target = arguments.where or os.environ.get("FLOWRRA_APP")
    url = arguments.broker or (None if target else os.environ.get("FLOWRRA_BROKER"))
    if url:
        return Flowrra.from_urls(url)
    if target:
        return load_app(target)
    raise ConfigError("say which store: module:app, --broker URL, FLOWRRA_APP or FLOWRRA_BROKER")


def ask(arguments: argparse.Namespace, question: Callable[[Flowrra], Awaitable[T]]) -> T:
    """Open the store, ask, close it. A question must not make one where there is none."""
    app = _app_for(arguments)
    check_shared(app)
    if isinstance(app.broker, SQLiteBroker) and not os.path.exists(app.broker.path or ""):
        raise ConfigError(f"there is no {app.broker.path} yet: the first worker or submit makes it")
    return asyncio.run(_answer(app, question))


async def _answer(app: Flowrra, question: Callable[[Flowrra], Awaitable[T]]) -> T:
    """The answer while the app's stores are open; one that does not answer is waited for, but not in silence."""
    text = "flowrra: the store does not answer; waiting for it"
    notice = asyncio.get_running_loop().call_later(2.0, lambda: print(text, file=sys.stderr, flush=True))
    async with app.client():
        notice.cancel()
        return await question(app)


# Workers ---------------------------------------------------------------------------------------


def _worker_command(arguments: argparse.Namespace) -> int:
    target = arguments.app or os.environ.get("FLOWRRA_APP")
    if not target:
        raise ConfigError("say which app: flowrra worker module:app (or set FLOWRRA_APP)")
    _whole("--processes", arguments.processes, least=1)
    formatter = logging.Formatter("%(asctime)s %(levelname)-7s %(message)s")
    if arguments.log_format == "json":
        formatter = import_extra("flowrra_extras.commands.json_lines", "JsonLines", "JSON cannot be logged here")()
    (handler := logging.StreamHandler()).setFormatter(formatter)
    logging.basicConfig(level=arguments.log_level.upper(), handlers=[handler])
    if not arguments.supervised:
        warn_of_unknown_settings("FLOWRRA_", os.environ)
        if arguments.processes > 1 or arguments.reload:
            trouble = "--processes and --reload cannot be served here; a worker may be started as often as you like"
            return cast("int", import_extra("flowrra_extras.commands.supervisor", "run", trouble)(arguments))
    try:
        app = load_app(target)
    except FlowrraError:
        raise
    except Exception:
        logger.exception("loading %s failed", target)
        return 1
    check_shared(app)
    _warn_of_unused_settings(app)
    _configure(app, arguments)
    return _run_worker(app)


def _warn_of_unused_settings(app: Flowrra) -> None:
    """Say which settings in the environment the app does not have, as it is not made by Config.from_env()."""
    try:
        config = Config.from_env()
    except ConfigError:  # an app that reads them has refused them itself
        return
    for name, (section, option) in _settings().items():
        wanted, used = (getattr(getattr(of, section), option.name) for of in (config, app.config))
        if f"FLOWRRA_{name}" in os.environ and wanted != used:
            logger.warning("FLOWRRA_%s has no effect: Flowrra(Config.from_env()) would read it", name)


def _configure(app: Flowrra, arguments: argparse.Namespace) -> None:
    changes: dict[str, Any] = {}
    if arguments.concurrency is not None:
        changes["io_workers"] = _whole("--concurrency", arguments.concurrency, least=1)
    if arguments.queues is not None:
        changes["queues"] = _from_text("--queues", "Mapping of queue:capacity", arguments.queues)
    if arguments.drain is not None:
        changes["drain"] = _seconds("--drain", arguments.drain)
    if arguments.no_scheduler:
        changes["scheduler"] = False
    app.config.executor = dataclasses.replace(app.config.executor, **changes)
    if arguments.concurrency is not None and app.config.executor.queues is not None:
        raise ConfigError("--concurrency has no effect beside queues with capacities of their own: use --queues alone")


def _run_worker(app: Flowrra) -> int:
    """Run the app's worker until it is stopped, and end with it whatever else keeps the process; the exit status."""
    import socket

    earlier = threading.enumerate()
    signals, wakeup = socket.socketpair()
    wakeup.setblocking(False)
    with signals, wakeup:
        before = signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
        try:
            return asyncio.run(_work(app, signals, wakeup))
        finally:
            signal.set_wakeup_fd(before)
            for thread in threading.enumerate():  # the end of the process would wait for them
                if thread not in earlier and not thread.daemon:
                    thread.join()
            wakeup.shutdown(socket.SHUT_WR)


async def _work(app: Flowrra, signals: socket.socket, wakeup: socket.socket) -> int:
    """Run a worker until a signal says stop; a second signal waits for no job. Without its store it stops at once."""
    loop, drain = asyncio.get_running_loop(), app.config.executor.drain
    stopping: asyncio.Future[str] = loop.create_future()
    starting = loop.create_task(app.start())

    def stop(why: str) -> None:
        if not stopping.done():
            stopping.set_result(why)
            starting.cancel()
        elif app.sessions.present is not None:
            app.sessions.present.end_drain()

    handled = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: _call_soon(loop, stop, "signal")) for number in handled]
    threading.Thread(target=_enforce_end, args=(signals, loop, drain), name="flowrra-end", daemon=True).start()
    notice = loop.call_later(2.0, logger.warning, "the worker is not ready yet: it waits for the store or the lifespan")
    status = 1
    try:
        await asyncio.wait([starting])
        notice.cancel()
        if not starting.cancelled():
            starting.result()
            worker = cast("Worker", app.sessions.worker())
            worker.on_store_lost = functools.partial(stop, "store")
            queues = ", ".join(f"{name}:{capacity}" for name, capacity in worker.info.queues.items())
            logger.info("worker ready: pid %d, %d task(s), queues %s", os.getpid(), len(app.registry), queues)
        if await stopping == "store":
            logger.critical("the worker stops with its jobs unsettled, as its store is lost")
            return status
        logger.info("stopping: running jobs get up to %g s", drain)
        await app.stop(timeout=drain)
        logger.info("worker stopped")
        status = 0
    except Exception as error:  # said now, as a thread may keep the process from coming to its end
        status = 2 if isinstance(error, ConfigError) else 1
        logger.error("%s", describe(error), exc_info=None if isinstance(error, FlowrraError) else error)
    finally:
        for number, handler in zip(handled, before, strict=True):
            signal.signal(number, handler)
        wakeup.send(bytes([_LOOP_ENDED + status]))
    return status


_LOOP_ENDED = 200  # and more by the status of the process; below are the numbers of signals


def _enforce_end(signals: socket.socket, loop: asyncio.AbstractEventLoop, drain: float) -> None:
    """End the process when the time for its end is up, whatever keeps it.

    A job may block the loop, swallow its cancellation, or sit in a thread of `asyncio.to_thread`, for which
    `asyncio.run` waits. This thread reads the number of each signal as the interpreter writes it at once
    (set_wakeup_fd), since a handler runs only when the main thread comes round to it.
    """
    end, status = math.inf, 0
    limits = itertools.chain((drain + 20.0, 5.0), itertools.repeat(0.0))  # after the first signal, the second, ...
    while True:
        left = max(0.001, end - time.monotonic())
        try:
            signals.settimeout(None if left > threading.TIMEOUT_MAX else left)
            received = signals.recv(1)
        except TimeoutError:
            logger.warning("something keeps this process from ending: it is ended now")
            os._exit(status)
        except OSError:
            return
        if not received:
            return
        _call_soon(loop, lambda: None)  # on Windows the loop does not wake up for a signal otherwise
        seconds, code = math.inf, 1  # as for a signal of the user's own
        if received[0] in (signal.SIGINT, signal.SIGTERM):
            seconds = next(limits)
        elif received[0] >= _LOOP_ENDED:
            seconds, code = 2.0, received[0] - _LOOP_ENDED
        if time.monotonic() + seconds < end:
            end, status = time.monotonic() + seconds, code


# Jobs ------------------------------------------------------------------------------------------


def _enqueue_command(arguments: argparse.Namespace) -> int:
    app = load_app(arguments.app)
    check_shared(app)
    task = find_task(app, arguments.task)
    args, kwargs = read_arguments(arguments.arg)

    async def enqueue(app: Flowrra) -> TaskResult[Any] | None:
        try:
            task_id = await app.submit(task, *args, **kwargs)
        except TypeError as error:
            raise ConfigError(str(error)) from None
        print(task_id, flush=True)
        return await app.wait_for_result(task_id) if arguments.wait else None

    result = asyncio.run(_answer(app, enqueue))
    if result is not None and not result.is_success:
        print(f"flowrra: job {result.task_id} is {result.status}: {result.error}", file=sys.stderr)
        return 1
    if result is not None:
        print(_shown(result.result))
    return 0


def find_task(app: Flowrra, name: str) -> Task[..., Any]:
    """The task of that name, or else the only one whose name ends in it."""
    found = [name] if name in app.registry else sorted(full for full in app.registry if full.endswith(f".{name}"))
    if len(found) > 1:
        raise TaskNotFoundError(f"{name!r} may be {' or '.join(found)}: give the full name")
    if not found:
        raise TaskNotFoundError(f"no task {name!r} is registered here{nearest(name, app.registry)}")
    return app.registry[found[0]]


def read_arguments(texts: Sequence[str]) -> tuple[list[Any], dict[str, Any]]:
    """Arguments, each given as JSON or as NAME=JSON."""
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (equals and name.isidentifier()):
            name, equals, value = "", "", text
        try:
            parsed = json.loads(value)
        except ValueError:
            meant = f"{name}{equals}{json.dumps(value)}"
            raise ConfigError(f"--arg {text!r} is not JSON; as a string it is --arg '{meant}'") from None
        if name:
            kwargs[name] = parsed
        else:
            args.append(parsed)
    return args, kwargs


def _shown(value: Any) -> str:
    try:
        return json.dumps(value)
    except (TypeError, ValueError):
        return repr(value)


def _status_command(arguments: argparse.Namespace) -> None:
    counts, workers, paused = ask(
        arguments, lambda app: asyncio.gather(app.broker.counts(), app.broker.workers(), app.broker.paused())
    )
    if arguments.json:
        queues: dict[str, dict[str, int]] = collections.defaultdict(dict)
        for (queue, status), count in counts.items():
            queues[queue][status] = count
        shown = {"queues": queues, "paused": sorted(paused), "workers": [dataclasses.asdict(w) for w in workers]}
        print(json.dumps(shown))
        return
    rows = [
        [name, *(str(counts.get((name, status), 0)) for status in TaskStatus), "paused" * (name in paused)]
        for name in sorted({queue for queue, _ in counts} | paused)
    ]
    print_table(["QUEUE", *(status.upper() for status in TaskStatus), ""], rows, "no jobs")
    print()
    print_table(["WORKER", "PID", "RUNNING", "QUEUES", "UP"], map(_worker_row, workers), "no live workers")


def _worker_row(worker: WorkerInfo) -> list[str]:
    queues = ",".join(f"{queue}:{capacity}" for queue, capacity in worker.queues.items())
    return [worker.id, str(worker.pid), str(worker.running), queues, duration(time.time() - worker.started)]


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]], none: str = "") -> None:
    """The rows in columns under their heads; `none` where there are no rows."""
    lines = [head, *rows]
    if len(lines) == 1:
        print(none)
        return
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for row in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def first_line(text: str | None) -> str:
    """The beginning of a message, for a table."""
    line = (text or "").partition("\n")[0]
    return line if len(line) <= 60 else f"{line[:57]}..."


_SHOWN = (
    *("id", "task", "arguments", "status", "queue", "priority", "unique", "parents", "submitted_at", "due_at"),
    *("started_at", "finished_at", "worker", "progress", "error"),
)


def job_as_json(job: Job) -> dict[str, Any]:
    """A job in plain JSON; times in ISO format, arguments and result as stored text."""
    stored = {
        "arguments": json.loads(encode_arguments(job)),
        "result": json.loads(encode(job.result)),
        "progress": job.progress and job.progress._asdict(),
        "attempts": [attempt._asdict() for attempt in job.attempts],
    }
    names = (*_SHOWN, "attempt", "failures", "crashes", "traceback")
    values = {name: getattr(job, name) for name in names if name not in stored}
    return {n: v.isoformat() if isinstance(v, dt.datetime) else v for n, v in values.items()} | stored


def _show_command(arguments: argparse.Namespace) -> None:
    job = ask(arguments, lambda app: app.get_job(arguments.id))
    shown = job_as_json(job)
    if arguments.json:
        print(json.dumps(shown))
        return
    args, kwargs = shown["arguments"]
    shown["arguments"] = ", ".join([*map(json.dumps, args), *(f"{k}={json.dumps(v)}" for k, v in kwargs.items())])
    shown["parents"] = ", ".join(job.parents) or None
    if job.progress is not None:
        of = "" if job.progress.total is None else f" of {job.progress.total:g}"
        shown["progress"] = f"{job.progress.done:g}{of} {job.progress.note or ''}".rstrip()
    for name in _SHOWN:
        if shown[name] is not None:
            print(f"{name.removesuffix('_at'):10} {shown[name]}")
    if job.status is SUCCESS:
        print(f"{'result':10} {_shown(job.result)}")
    if job.attempts:
        print()
        print_table(["ATTEMPT", "OUTCOME", "WORKER", "TOOK", "ERROR"], map(_attempt_row, job.attempts))
    if job.traceback:
        print(f"\n{job.traceback.rstrip()}")


def _attempt_row(attempt: Attempt) -> list[str]:
    if attempt.outcome == "note":
        return ["", attempt.error or "", f"by {attempt.worker}", "", ""]
    took = "" if attempt.ended is None else duration(attempt.ended - attempt.started)
    return [str(attempt.number), attempt.outcome, attempt.worker, took, first_line(attempt.error)]


def _explain_command(arguments: argparse.Namespace) -> None:
    print(ask(arguments, lambda app: app.explain(arguments.id)))


# The demonstration -----------------------------------------------------------------------------

_DEMO = """\
import asyncio
from {module} import Flowrra, current_job

app = Flowrra.from_urls({url!r})

@app.task
async def fetch(number: int) -> int:
    await asyncio.sleep(0.05)
    return number

@app.task(retry_delay=0.2)
def flaky(number: int) -> int:
    if current_job().failures == 0:
        raise ConnectionError("the first try always fails")
    return number

@app.task(cpu_bound=True)
def crunch(number: int) -> int:
    return sum(i * i for i in range(number))

@app.task(max_retries=0)
def hopeless() -> None:
    raise ValueError("this one is meant to fail")
"""


def _demo_command(arguments: argparse.Namespace) -> int:
    import tempfile

    kept = arguments.keep and os.path.abspath(arguments.keep)
    if kept and os.path.exists(kept):
        raise ConfigError(f"{kept} is there already: give the demo a new file")
    with tempfile.TemporaryDirectory(prefix="flowrra-demo-") as folder:
        with open(os.path.join(folder, "flowrra_demo.py"), "w", encoding="utf-8") as file:
            file.write(_DEMO.format(module=__name__, url=f"sqlite:///{kept or os.path.join(folder, 'demo.db')}"))
        sys.path.insert(0, folder)
        try:
            return asyncio.run(_demonstrate(importlib.import_module("flowrra_demo")))
        finally:
            sys.path.remove(folder)


async def _demonstrate(demo: Any) -> int:
    """Some hundred jobs for a worker that is killed in the middle, and for another one that takes over."""
    app: Flowrra = demo.app
    began = time.monotonic()
    rows = [(number,) for number in range(250)]
    async with app.client():
        ids: list[str] = [*await app.submit_many(demo.fetch, rows), *await app.submit_many(demo.flaky, rows[:50])]
        ids += [*await app.submit_many(demo.crunch, [(200_000,)] * 20), await app.submit(demo.hopeless)]
        total = len(ids)
        print(f"submitted {total} jobs to {app.config.broker.url}")
        with _demo_worker() as first:
            await _until_finished(app, total // 3, total)
            first.kill()
        print(f"killed worker {first.pid} with kill -9; starting another", flush=True)
        with _demo_worker():
            await _until_finished(app, total, total)
        jobs = await app.jobs(limit=total)
    count = collections.Counter(job.status for job in jobs)
    seconds = time.monotonic() - began
    print(f"{total} jobs in {seconds:.1f} s: {count[SUCCESS]} succeeded, {count[FAILED]} failed")
    print(f"  {sum(job.failures > 0 for job in jobs)} failed at first and were retried, as they were made to")
    print(f"  {sum(job.crashes > 0 for job in jobs)} were running when the worker was killed, and ran again")
    expected = total - 1 == count[SUCCESS] and count[FAILED] == 1
    print("as it should be" if expected else "that is NOT as it should be: please report it")
    return 0 if expected else 1


@contextlib.contextmanager
def _demo_worker() -> Iterator[subprocess.Popen[bytes]]:
    import subprocess

    command = python("main(['worker', 'flowrra_demo:app', '--log-level', 'error'])")
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


async def _until_finished(app: Flowrra, goal: int, total: int) -> None:
    """Wait for so many jobs; in a terminal, show how many have finished."""
    finished, until = 0, time.monotonic() + 60.0
    while finished < goal:
        await asyncio.sleep(0.05)
        counts = await app.broker.counts()
        finished = sum(count for (_, status), count in counts.items() if status in FINISHED)
        if sys.stdout.isatty():
            print(f"\r  {finished}/{total} finished", end="\n" * (finished >= goal), flush=True)
        if finished < goal and time.monotonic() > until:
            raise FlowrraError(f"the demo's worker has finished {finished} of {goal} jobs in 60 s: it cannot run here")
