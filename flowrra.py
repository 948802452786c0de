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
    No job is lost: when `await submit()` has returned on a durable broker, the job is on disk, and a killed
    worker loses no job. A job runs at least once, not "exactly once"; its final state is written once.
    Safe: data from a store is never unpickled or evaluated. Typed: `mypy --strict` rejects a wrong argument
    to a task. Flat: the cost of a job does not grow with the backlog or the history.

The map (each section uses earlier ones only)
    1. Errors
    2. Models
    3. Codec
    4. Types
    5. Clock and retry policy
    6. Cron
    7. Rules
    8. Brokers
    9. Memory broker
    10. SQLite broker
    11. Tasks
    12. Executors
    13. Worker
    14. Schedules
    15. App
    16. Command line

To vendor it, copy this one file; to upgrade, copy the newer one over it. A store written by an older
version is migrated when it is opened, and one written by a newer version is refused.
"""

from __future__ import annotations

# `python -m flowrra` loads this file as `__main__`, and the user's program would import it again as `flowrra`: two
# registries, two sets of classes. So this file, run as a program, calls `main` of the importable module.
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
import bisect
import calendar
import collections
import concurrent.futures
import contextlib
import contextvars
import dataclasses
import datetime as dt
import enum
import errno
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
import typing
import weakref
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
    MutableSequence,
    MutableSet,
    Sequence,
)
from collections.abc import Set as AbstractSet
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
    TextIO,
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

    # A copied file has no flowrra_extras beside it. `import X as X` has type checkers take X for a name of this module;
    # at run time `__getattr__` fetches it.
    from flowrra_extras.cron_union import CronUnion  # type: ignore[import-not-found, unused-ignore]
    from flowrra_extras.scheduler import (  # type: ignore[import-not-found, unused-ignore]
        MemoryScheduleStore as MemoryScheduleStore,
    )
    from flowrra_extras.scheduler import Scheduler as Scheduler
    from flowrra_extras.scheduler import ScheduleStore as ScheduleStore
    from flowrra_extras.scheduler import StoredOptions as StoredOptions
    from flowrra_extras.scheduler import schedule_store_from_url as schedule_store_from_url

__version__ = "0.2.0"

__all__ = ["Attempt", "BackendConfig", "BackendError", "BrokerConfig", "BrokerError", "Cancel", "Config", "ConfigError"]
__all__ += ["Cron", "Event", "ExecutorConfig", "ExecutorNotRunningError", "Flowrra", "FlowrraError", "Job"]
__all__ += ["JobContext", "JobFilter", "NoFire", "ProcessDiedError", "Progress", "QueueFullError", "RemoteError"]
__all__ += ["ResultError", "Retry", "Schedule", "ScheduleOptions", "SerializationError", "Snooze", "Step"]
__all__ += ["Submission", "SyncFace", "Task", "TaskId", "TaskNotFoundError", "TaskOptions", "TaskResult"]
__all__ += ["StoreLostError", "SubmitOptions", "TaskSet", "TaskStatus", "TaskTimeoutError", "WorkerInfo"]
__all__ += ["SoftTimeoutError", "current_job", "main", "result_of", "results_of"]
# For authors of brokers and backends:
__all__ += ["EVENT", "LIMIT_ACTIONS", "RETRYING", "SCHEDULED", "TRANSITIONS", "UPKEEP_STEP", "Action", "Activity"]
__all__ += ["ActivityLog", "ActivitySums", "Admitted", "Backend", "Broker", "BrokerFactory", "Children", "Clock"]
__all__ += ["DueKeys", "EventWaiters", "Expired", "Find", "Holders", "Jobs", "Lease", "Limit", "LimitKey", "LimitKeys"]
__all__ += ["LimitUse", "LimitWaiter", "MemoryBroker", "Notices", "Outcome", "Overview", "ResultOf", "Running"]
__all__ += ["SQLiteBroker", "StoreStatus", "Submitter", "Topic", "Unit", "WaiterHub", "WaitingFor", "Walk", "admit"]
__all__ += ["admit_due", "admit_one", "adopt", "apart", "are_plain", "awaited_event", "awaits_limit", "broker_from_url"]
__all__ += ["change", "charge", "conclude", "copy_of", "decode", "decode_arguments", "decode_result", "drive"]
__all__ += ["drive_async", "emitted", "encode", "encode_arguments", "encode_result", "encode_value", "event_id"]
__all__ += ["expire", "give_labels", "give_limit_key", "is_expired", "is_held", "jittered", "jobs_of_rows"]
__all__ += ["join_limit_key", "judge_leases", "labels_of", "labels_text", "limit_key", "logger", "promote_one", "push"]
__all__ += ["recorded", "refuse_limits", "rescue", "settle", "split_limit_key", "spread", "start", "stored_limit_key"]
__all__ += ["uses_of"]
# For brokers and extras, and not for others:
__all__ += ["ACTIVITY_KEPT", "BLOCKED", "BY_HAND", "CHECK_EVERY", "CRON_FIELDS", "ENDINGS_KEPT", "ENDINGS_TAKEN"]
__all__ += ["EXPIRED", "FAILED", "FINISHED", "FIRES_AT_ONCE", "HISTORY_LIMIT", "KILLED", "LAST_CHANCE", "LAST_DAY"]
__all__ += ["LAST_WORKDAY", "LEFT", "MAX_CRASHES", "MAX_LEASE", "MISFIRES", "NEAREST", "NOT_BEGUN", "NO_ARGUMENTS"]
__all__ += ["OPERATOR_COMMANDS", "OVERLAPS", "PENDING", "RECYCLED", "REQUEUABLE", "RUNNING", "SUBMIT_OPTIONS"]
__all__ += ["SUCCESS", "UNFINISHED", "WORKER_LOST", "Conflict", "Fired", "Firing", "Turns", "activity_texts"]
__all__ += ["add_store", "answer_calls", "ask", "check_key", "check_queue", "check_shared", "claimed_job", "cron_bits"]
__all__ += ["cron_values", "current_job_var", "describe", "duration", "ended_job", "find_parents", "find_task"]
__all__ += ["first_line", "first_status", "import_extra", "job_as_json", "job_of_fire", "kind_name", "length_bucket"]
__all__ += ["load_app", "make_schedule", "nearest", "next_key", "orphaned", "parents_in", "parsed", "print_table"]
__all__ += ["python", "read_arguments", "resolved", "result_from", "result_limit", "schedule_key", "steps_of"]
__all__ += ["json_or", "sum_of_activity", "totals_of_activity", "unknown_job", "upcoming", "worker_of_row"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
TaskT = TypeVar("TaskT", bound="Task[..., Any]")

logger = logging.getLogger("flowrra")
logger.addHandler(logging.NullHandler())  # or Python would print warnings of a program that sets up no logging


# ---------------------------------------------------------------------------
# 1. Errors
#
# One tree of errors, and the checks of options that raise them. A message says
# what was wrong, with the value, and what to do.
# ---------------------------------------------------------------------------


class FlowrraError(Exception):
    """The base class of all errors that Flowrra raises."""


class ConfigError(FlowrraError, ValueError):
    """An option, a URL or a registration is not valid."""


class TaskNotFoundError(FlowrraError, LookupError):
    """A task is not registered, or the store does not know a task id."""


class TaskTimeoutError(FlowrraError, TimeoutError):
    """A result was not ready in time, or an attempt took longer than its `timeout`."""

    ends_attempt = False  # True for the second: the first may come out of a task that waits for another job


class SoftTimeoutError(FlowrraError):  # not a TimeoutError, which is an OSError: much code ignores these
    """An attempt of a CPU-bound task took longer than its `soft_timeout`. It is raised inside the task."""


class ExecutorNotRunningError(FlowrraError, RuntimeError):
    """The app, or the executor that should run the call, has been stopped."""


class SerializationError(FlowrraError, TypeError):
    """A value cannot be stored as JSON, or a stored text cannot be read."""


class ArgumentsError(SerializationError):
    """Stored arguments do not fit the task's annotations. The job is not retried: the next attempt would fail, too."""


class ResultError(SerializationError):
    """The return value of a task cannot be stored. The job is not retried: the next attempt would fail, too."""


class BackendError(FlowrraError):
    """The store of results failed."""


class BrokerError(BackendError):
    """The store of jobs failed."""


class StoreLostError(BrokerError):
    """The open file was deleted or replaced. Close the broker and open it again."""


class QueueFullError(BrokerError):
    """The queue already holds `max_queue_size` jobs."""


class ProcessDiedError(FlowrraError):
    """The process that ran a CPU-bound attempt ended unexpectedly."""


class RemoteError(FlowrraError):
    """An exception of a CPU-bound task, reported by its process: the names of its types, text, traceback."""

    def __init__(
        self, text: str, kinds: Sequence[str], traceback: str, delay: float | None, event: str | None = None
    ) -> None:
        super().__init__(text)
        self.kinds = frozenset(kinds)
        self.traceback = traceback
        self.delay = delay
        self.event = event  # the id of the event that the job waits for


class Retry(FlowrraError):  # noqa: N818 (raised as a request, read as a sentence: raise Retry(delay=5))
    """Raise it inside a task to run the job again. Like a failure, it uses up a retry.

    `delay`, in seconds (0 or more), replaces the delay of the task's retry policy.
    """

    delay: float | None = None  # also of a subclass that does not call super().__init__()

    def __init__(self, reason: str = "the task asked to be retried", *, delay: float | None = None):
        if isinstance(reason, int | float | dt.timedelta):
            raise ConfigError(f"Retry takes the delay by its name, as in Retry(delay={reason!r})")
        super().__init__(reason)
        self.delay = None if delay is None else _seconds("delay", delay)


class Snooze(FlowrraError):  # noqa: N818 (as Retry)
    """Raise it inside a task to run the job again later, for example after HTTP status 429. It uses up no retry.

    Give `delay` (seconds or a timedelta) or `until` (a datetime; a naive one is in the machine's local time).
    """

    delay: float | None = None  # a subclass that does not call super().__init__() may set these; else as for a retry
    until: dt.datetime | None = None

    def __init__(
        self,
        delay: float | dt.timedelta | None = None,
        *,
        until: dt.datetime | None = None,
        reason: str = "the task asked to run later",
    ):
        super().__init__(reason)
        if (delay is None) == (until is None):
            raise ConfigError("Snooze takes seconds or until=, one of the two")
        self.delay = None if delay is None else _seconds("delay", delay)
        self.until = until
        if until is not None:
            _timestamp("until", until)


class _EventNotYet(Snooze):
    """Raised by `wait_event`: the job runs again when the event is emitted, or at the end of its time."""

    event: str | None = None


class Cancel(FlowrraError):  # noqa: N818 (as Retry)
    """Raise it inside a task to end the job as CANCELLED. The reason is stored as the error of the job."""

    def __init__(self, reason: str = "the task cancelled its job") -> None:
        super().__init__(reason)


LAST_MOMENT = 253_402_300_800.0  # the end of the year 9999: what datetime.max is as a float


def _timestamp(name: str, moment: object) -> float:
    if not isinstance(moment, dt.datetime):
        raise ConfigError(f"{name} must be a datetime, not {moment!r}")
    try:
        return min(moment.timestamp(), LAST_MOMENT)
    except (ValueError, OverflowError, OSError):  # the last one: on Windows, before the epoch
        raise ConfigError(f"{name} lies too far from now for this machine's local time: {moment!r}") from None


def _seconds(name: str, value: object, *, least: float = 0.0) -> float:
    """Check a number of seconds or a timedelta, and return it in seconds. It must be at least `least`."""
    if isinstance(value, dt.timedelta):
        value = value.total_seconds()
    seconds = _finite(name, value, "a finite number of seconds")
    if seconds < least:
        raise ConfigError(f"{name} must be at least {least:g} s, not {value!r}")
    return float(seconds)


def _finite(name: str, value: object, wanted: str = "a finite number") -> float:
    """Return `value` if it is a number that a float can hold. A bool is refused."""
    # Compared, since math.isfinite() raises an OverflowError for a huge int.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise ConfigError(f"{name} must be {wanted}, not {value!r}")
    return value


def _whole(name: str, value: object, *, least: int = -(2**63)) -> int:
    """Return `value` as an int of at least `least` that every store can hold. A bool is refused."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{name} must be an int, not {value!r}")
    if not least <= value < 2**63:
        wanted = f"at least {least}" if value < least else f"at most {2**63 - 1}"
        raise ConfigError(f"{name} must be {wanted}, not {value!r}")
    return value


def _flag(name: str, value: object) -> None:
    if not isinstance(value, bool):  # a text such as "false" would count as true
        raise ConfigError(f"{name} must be True or False, not {value!r}")


def import_extra(module: str, name: str, trouble: str, package: str = "flowrra") -> Any:
    """Import a module or name of an extra. If it is missing, raise a ConfigError that begins with `trouble`."""
    if __name__ != "flowrra":  # extras import `flowrra`, which would be another module with other classes
        why = f"{__name__} is a copy of flowrra.py, and extras work with the installed flowrra only"
        raise ConfigError(f"{trouble} ({why}): pip install '{package}' and import flowrra instead of the copy")
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise ConfigError(f"{trouble} ({error}): pip install '{package}'") from error


def closest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that was probably meant. The last part of a dotted name is enough."""
    import difflib

    names = sorted(known)
    by_part = {full.rpartition(".")[2]: full for full in reversed(names)} | {full: full for full in names}
    found = difflib.get_close_matches(name, by_part, n=1)
    return by_part[found[0]] if found else None


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: the name that was probably meant, or the known names."""
    names = sorted(known)
    if (close := closest(name, names)) is not None:
        return f"; did you mean {close!r}?"
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"; there are {', '.join(names[:10]) or 'none'}{more}"


# Names that moved to flowrra_extras.scheduler. They can still be imported from here.
_MOVED = ("MemoryScheduleStore", "ScheduleStore", "Scheduler", "StoredOptions", "schedule_store_from_url")
_NOT_STORED = "schedules cannot be stored here"

# Names of Flowrra 0.1, and what replaces them.
_GONE: Mapping[str, str] = {
    "CPUExecutor": "Flowrra",
    "IOExecutor": "Flowrra",
    "TaskRegistry": "app.registry, a dictionary",
}

if not TYPE_CHECKING:  # otherwise a type checker would accept every name

    def __getattr__(name: str) -> Any:
        if name in _GONE:  # `from flowrra import ...` would hide the text of an AttributeError
            page = "https://flowrra.readthedocs.io/en/latest/guide/moving/flowrra-0.1.html"
            raise ImportError(f"flowrra.{name} was removed in version 0.2: use {_GONE[name]}; see {page}")
        if name in _MOVED:
            return import_extra("flowrra_extras.scheduler", name, _NOT_STORED, "flowrra[scheduler]")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# ---------------------------------------------------------------------------
# 2. Models
#
# What a job is, and which changes of state it may make. Every change, in every
# broker, is one entry of TRANSITIONS. Nothing here does I/O or reads a clock.
# Internal times are seconds since the epoch; users see aware UTC datetimes.
# ---------------------------------------------------------------------------


class TaskStatus(enum.StrEnum):
    """The state of a job."""

    SCHEDULED = "scheduled"  # not due yet
    BLOCKED = "blocked"  # waits for its parents, or for its limit
    PENDING = "pending"  # ready to run
    RUNNING = "running"
    RETRYING = "retrying"  # failed, and due again later
    SUCCESS = "success"
    FAILED = "failed"
    CANCELLED = "cancelled"

    __hash__ = str.__hash__  # that of Enum is written in Python: 0.2 us for each lookup in a set

    @property
    def is_finished(self) -> bool:
        """Whether the state is final."""
        return self in FINISHED


# Plain names: a lookup of a member in its class takes 0.07 us, some twenty times a job.
SCHEDULED, BLOCKED, PENDING, RUNNING, RETRYING, SUCCESS, FAILED, CANCELLED = TaskStatus
FINISHED = frozenset((SUCCESS, FAILED, CANCELLED))
UNFINISHED = frozenset(TaskStatus) - FINISHED

TRANSITIONS: Mapping[TaskStatus, frozenset[TaskStatus]] = {
    # BLOCKED: the job waits for its parents or its limit, or is held while it is moved to another store.
    SCHEDULED: frozenset((PENDING, BLOCKED, CANCELLED, SUCCESS)),  # SUCCESS: an event that is emitted
    BLOCKED: frozenset((PENDING, SCHEDULED, CANCELLED)),
    PENDING: frozenset((RUNNING, BLOCKED, SCHEDULED, CANCELLED)),  # SCHEDULED: postponed
    # A release leads to PENDING, or to SCHEDULED if the job must wait; a rescue leads to PENDING. A job with a limit
    # becomes BLOCKED instead.
    RUNNING: FINISHED | {RETRYING, PENDING, BLOCKED, SCHEDULED},
    RETRYING: frozenset((PENDING, BLOCKED, CANCELLED)),
    SUCCESS: frozenset(),
    FAILED: frozenset((PENDING,)),  # requeued by hand
    CANCELLED: frozenset((PENDING, BLOCKED)),  # requeued by hand
}


def sources(target: TaskStatus) -> frozenset[TaskStatus]:
    """Return the states from which a job can change to `target`."""
    return frozenset(status for status, targets in TRANSITIONS.items() if target in targets)


REQUEUABLE = sources(PENDING) & FINISHED
UPKEEP_STEP = 1_000  # due or expired jobs that one step of upkeep processes; takes some 10 ms
MAX_CRASHES = 3  # a job that was running in this number of crashes of its worker is FAILED
LAST_CHANCE = MAX_CRASHES - 1  # crashes of a job that one more crash would fail
MAX_LEASE = 3600.0  # seconds; a stored lease that is longer comes from another boot of the machine
HISTORY_LIMIT = 20  # earlier attempts kept with a job
ACTIVITY_KEPT = 86_400.0  # seconds for which the store keeps the activity of workers


class TaskId(str, Generic[R]):
    """The id of a job: to a type checker, a `str` that carries the type of the job's result.

    At run time, `submit` returns a plain `str`, because a subclass makes each dictionary lookup 0.04 us slower.
    """

    __slots__ = ()


class Attempt(NamedTuple):
    """One attempt at a job. `outcome` is running, success, failure, crash, release, snooze or cancel.

    If `outcome` is "note", the entry records an action of a person: `worker` is the person, `error` the action.
    """

    number: int
    worker: str
    started: float
    ended: float | None
    outcome: str
    error: str | None = None
    traceback: str | None = None


class Progress(NamedTuple):
    """The progress that a running job has reported."""

    done: float
    total: float | None = None
    note: str | None = None


class Step(NamedTuple):
    """A finished step of a job: its name, and the text of its return value. See `JobContext.step`."""

    name: str
    text: str
    started: float
    ended: float


_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def _moment(seconds: float | None) -> dt.datetime | None:
    # Added, since fromtimestamp() knows no moments before the epoch on Windows.
    if seconds is None:
        return None
    try:
        return _EPOCH + dt.timedelta(seconds=seconds)
    except OverflowError:  # a store may hold anything
        return dt.datetime.max.replace(tzinfo=dt.UTC) if seconds > 0 else dt.datetime.min.replace(tzinfo=dt.UTC)


class _Moments:
    """The times of a job as aware datetimes in UTC."""

    __slots__ = ()
    submitted: float
    started: float | None
    finished: float | None

    @property
    def submitted_at(self) -> dt.datetime:
        """When the job was submitted."""
        return cast("dt.datetime", _moment(self.submitted))

    @property
    def started_at(self) -> dt.datetime | None:
        """When the latest attempt started."""
        return _moment(self.started)

    @property
    def finished_at(self) -> dt.datetime | None:
        """When the job finished."""
        return _moment(self.finished)


class Conflict(NamedTuple):
    """How a push changes a job that has the same unique key and has not started: "replace" or "postpone".

    Both give it the new arguments. "postpone" also sets `due`, up to `max_wait` seconds after its submission.
    """

    how: str
    max_wait: float | None = None


@dataclass(slots=True)
class Job(_Moments):
    """One submission of a task, from the submission to the result.

    `due` is the moment at which the job becomes (or became) ready. `seq` is the order of submission. `attempt` never
    decreases and is the fencing token. `failures` use up retries; `crashes` do not. `payload` is the stored text of the
    arguments, if there is one. `args` and `kwargs` are then empty, except in jobs that `Flowrra.jobs` and `get_job`
    return. `overrides` are the task options that this submission changed. `worker` runs the job; for a BLOCKED job, it
    names the holder of a hold. `started` is the start of the latest attempt, or None once that attempt is in the
    history. `waits` is the number of parents and holds that a BLOCKED job waits for; it is 0 in other states. `tags`
    are for searching. `meta` is data that the submitter stored with the job. `tolerates`: the parents that may end
    without success. `conflict` is used by the push and is not stored. `steps`: the finished steps, in the order in
    which they ended, if a claim or a search returned the job; see `Unit`. `limit` and `key`: what limits it, see
    `Limit`. `place`: if its queue is fair, its place among the ready jobs of its priority; else 0.
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
    tags: tuple[str, ...] = ()
    meta: Mapping[str, Any] | None = None
    tolerates: tuple[str, ...] = ()
    conflict: Conflict | None = field(default=None, compare=False, repr=False)
    steps: tuple[Step, ...] = ()
    limit: str | None = None
    key: str | None = None
    place: int = field(default=0, compare=False, repr=False)

    @property
    def due_at(self) -> dt.datetime | None:
        """When the job becomes ready, or became ready."""
        return _moment(self.due)

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """All attempts that are still recorded, the latest last."""
        latest = self.latest_attempt(_ENDING_OF.get(self.status, ""))
        return self.history if latest is None else (*self.history, latest)

    def latest_attempt(self, outcome: str) -> Attempt | None:
        """Return the attempt that started at `started`, ended with `outcome`; None if it is in the history."""
        if self.started is None or self.worker is None:
            return None
        return Attempt(self.attempt, self.worker, self.started, self.finished, outcome, self.error, self.traceback)


@dataclass(slots=True)
class TaskResult(_Moments, Generic[R]):
    """The state of a job, with `result` if it succeeded, otherwise `error` and possibly `traceback`.

    `result` has the return type of the task; it is None unless `is_success`.
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
        """Whether the job has finished."""
        return self.status in FINISHED

    # As Flowrra 0.1 called them -----------------------------------------------------------------

    @property
    def task_name(self) -> str:
        """The same as `task`."""
        return self.task

    @property
    def is_complete(self) -> bool:
        """The same as `is_finished`."""
        return self.is_finished

    @property
    def retries(self) -> int:
        """The number of attempts after the first."""
        return max(0, self.attempts - 1)


def result_from(job: Job) -> TaskResult[Any]:
    """Return the result of `job` in its current state."""
    return TaskResult(
        job.id, job.task, job.status, job.result, job.error, job.traceback,
        job.attempt, job.submitted, job.started, job.finished, job.progress,
    )  # fmt: skip


@dataclass(slots=True)
class Outcome:
    """The outcome of an attempt, or its progress. Use the constructors: they set the right fields together.

    `attempt` is the fencing token; it is copied from the job when the outcome is made. `keep`: how many seconds to keep
    the finished job (None: as the broker is configured). `text` is the encoded result, for brokers that store text.
    `begun`: whether the task started to run; if not, the job can still expire. `event`: the id of the event that a
    snoozed job waits for.
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
    progress: Progress | None = None
    step: Step | None = None
    event: str | None = None

    @property
    def ending(self) -> str:
        """The ending of the attempt (success, failure, release, snooze or cancel), or running if it has not ended."""
        return "snooze" if self.status is SCHEDULED and self.begun else _ENDING_OF[self.status]

    @classmethod
    def succeed(cls, job: Job, result: Any, keep: float | None = None) -> Outcome:
        """The task returned `result`."""
        return cls(job, job.attempt, SUCCESS, result, None, None, None, keep)

    @classmethod
    def fail(cls, job: Job, error: str, traceback: str | None = None) -> Outcome:
        """The attempt failed, and there is no other attempt."""
        return cls(job, job.attempt, FAILED, None, error, traceback)

    @classmethod
    def retry_at(cls, job: Job, due: float, error: str, traceback: str | None = None) -> Outcome:
        """The attempt failed and uses up a retry. The next attempt is due at `due`."""
        return cls(job, job.attempt, RETRYING, None, error, traceback, due)

    @classmethod
    def release(cls, job: Job, reason: str, due: float | None = None, *, begun: bool = True) -> Outcome:
        """The job goes back to its queue, to run immediately or from `due` (a snooze). This uses up no retry."""
        return cls(job, job.attempt, PENDING if due is None else SCHEDULED, None, reason, None, due, begun=begun)

    @classmethod
    def cancel(cls, job: Job, reason: str) -> Outcome:
        """The attempt was cancelled."""
        return cls(job, job.attempt, CANCELLED, None, reason)

    @classmethod
    def report(cls, job: Job, attempt: int, progress: Progress) -> Outcome:
        """The attempt continues and reports its progress."""
        return cls(job, attempt, RUNNING, progress=progress)

    @classmethod
    def done(cls, job: Job, attempt: int, step: Step) -> Outcome:
        """The attempt continues and has finished a step of the job."""
        return cls(job, attempt, RUNNING, step=step)


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
    """Selects jobs. A field that is None is not compared.

    `ahead_of`: ready jobs that are ahead of this one; of a job that waits for its limit, those that the limit lets run
    before it. `error`: a part of the job's error, in upper or lower case. `parent`: jobs that wait or waited for this
    one. `tag`: jobs with this tag. `from_seq`: jobs with at least this `seq`, to search a large store in parts.
    """

    ids: Sequence[str] | None = None
    status: frozenset[TaskStatus] | None = None
    task: str | None = None
    queue: str | None = None
    worker: str | None = None
    ahead_of: Job | None = None
    error: str | None = None
    parent: str | None = None
    tag: str | None = None
    from_seq: int | None = None

    def matches(self, job: Job) -> bool:
        """Whether the filter selects `job`."""
        return (
            (self.ids is None or job.id in self.ids)
            and (self.status is None or job.status in self.status)
            and (self.task is None or job.task == self.task)
            and (self.queue is None or job.queue == self.queue)
            and (self.worker is None or job.worker == self.worker)
            and (self.error is None or self.error.lower() in (job.error or "").lower())
            and (self.parent is None or self.parent in job.parents)
            and (self.tag is None or self.tag in job.tags)
            and (self.from_seq is None or job.seq >= self.from_seq)
            and (self.ahead_of is None or _is_ahead(job, self.ahead_of))
        )


def awaits_limit(job: Job) -> bool:
    """Whether the job waits until its limit lets it run. What else is BLOCKED waits for parents or is held."""
    return job.status is BLOCKED and job.limit is not None and job.worker is None and job.waits == 0


def _is_ahead(job: Job, other: Job) -> bool:
    if not awaits_limit(other):
        place = (job.priority, job.place, job.seq)
        return (job.status, job.queue) == (PENDING, other.queue) and place < (other.priority, other.place, other.seq)
    if (job.limit, job.key) != (other.limit, other.key):
        return False
    waits = awaits_limit(job) and (job.priority, job.seq) < (other.priority, other.seq)
    return waits or job.status in (PENDING, RUNNING)


# The bucket of a duration in seconds: bucket k holds durations below 0.0001 s * 2**k. Without a function in Python.
length_bucket = functools.partial(bisect.bisect_right, [0.0001 * 2**k for k in range(50)])


@dataclass(slots=True)
class Activity:
    """What workers did with the jobs of one task in the minute that starts at `minute` (seconds since the epoch).

    `retried` counts the failed attempts that led to a retry. `waits` (from submission or `due` to the first attempt,
    without jobs that have parents) and `runs` (of attempts) are histograms: bucket -> number. `waited` and `ran` are
    the sums of these durations, in seconds.
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
        """Return a copy with its own histograms."""
        return dataclasses.replace(self, waits=self.waits.copy(), runs=self.runs.copy())

    def count(self, status: TaskStatus, attempts: Sequence[tuple[Job, float]], ended: float) -> None:
        """Add attempts, each a job and the moment when it began, that ended as SUCCESS, FAILED or RETRYING."""
        self.succeeded += len(attempts) * (status is SUCCESS)
        self.failed += len(attempts) * (status is FAILED)
        self.retried += len(attempts) * (status is RETRYING)
        runs = [max(0.0, ended - began) for _, began in attempts]
        first = [(job, began) for job, began in attempts if job.attempt == 1 and not job.parents]
        waits = [max(0.0, began - max(job.submitted, job.due or 0.0)) for job, began in first]
        self.ran += sum(runs)
        self.waited += sum(waits)
        for counts, seconds in ((self.runs, runs), (self.waits, waits)):
            for bucket in map(length_bucket, seconds):
                counts[bucket] = counts.get(bucket, 0) + 1


def _add_counts(own: dict[int, int], others: Mapping[int, int]) -> None:
    for bucket, number in others.items():
        own[bucket] = own.get(bucket, 0) + number


class ActivitySums(dict[tuple[int, str], Activity]):
    """Rows of activity, by minute and task."""

    def __missing__(self, key: tuple[int, str]) -> Activity:
        row = self[key] = Activity(*key)
        return row

    def add(self, other: Activity) -> None:
        """Add the rows of another worker or store."""
        row = self[other.minute, other.task]
        row.succeeded += other.succeeded
        row.failed += other.failed
        row.retried += other.retried
        row.waited += other.waited
        row.ran += other.ran
        _add_counts(row.waits, other.waits)
        _add_counts(row.runs, other.runs)

    def in_order(self) -> list[Activity]:
        """Return the rows, the oldest minute first."""
        return [self[key] for key in sorted(self)]


@dataclass(slots=True)
class WorkerInfo:
    """A worker, as the store shows it. `queues` maps each queue to its capacity.

    `memory`: resident bytes of the process, or None if the system does not report them. `activity`: what a heartbeat
    carries: all rows of each minute that changed since the last heartbeat, oldest first. `term`: the broker's name of
    the current lease. If it differs from the last heartbeat's, the lease had ended in between.
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
    """The answer to a heartbeat.

    `cancelled`: ids of jobs of this worker that someone cancelled. `lapsed`: the lease had ended, so the worker no
    longer owns the jobs that it claimed before. `paused`: queues from which nothing is claimed. `suspects`: a job that
    was running in a crash runs alone afterwards; this is the fewest `crashes` of the suspects that wait, 0 if none
    waits. `lost_workers`: workers that were found dead; this call has rescued their jobs. `endings`: jobs that ended
    without an attempt to report it (expired, cancelled while waiting, or too many crashes): id, task, attempt, status
    and error. Each is sent to one heartbeat, for its log line and its event.
    """

    cancelled: Sequence[str] = ()
    lapsed: bool = False
    paused: Collection[str] = ()
    suspects: int = 0
    lost_workers: Sequence[str] = ()
    endings: Sequence[Job] = ()


ENDINGS_KEPT = 10_000  # endings that a store keeps until a heartbeat takes them: the latest
ENDINGS_TAKEN = 1_000  # the maximum for one heartbeat


def ended_job(text: str) -> Job:
    """Read an ended job of `Notices.endings` from its stored text: the JSON of id, task, attempt, status and error."""
    task_id, task, attempt, status, error = json.loads(text)
    return Job(task_id, task, attempt=attempt, status=TaskStatus(status), error=error)


def _is_storable(text: object) -> TypeGuard[str]:
    """Whether every store can hold the text: no NUL, and no halves of surrogate pairs."""
    return isinstance(text, str) and not re.search("[\0\ud800-\udfff]", text)


def check_queue(name: object) -> str:
    """Return `name` if it can be the name of a queue: no commas, no colons, and no blanks at the ends."""
    if not _is_storable(name) or not name or name != name.strip() or set(name) & {",", ":"}:
        raise ConfigError(f"a queue's name is text without ',' and ':', and without blanks at its ends, not {name!r}")
    return name


def check_id(task_id: object) -> str:
    """Return `task_id` if it can be the id of a job, and not, for example, the coroutine of a submit."""
    if not isinstance(task_id, str) or not (task_id.isalnum() or _is_storable(task_id)):  # the first is faster
        raise ConfigError(f"the id of a job is the text that submit() returned, not {task_id!r}")
    return task_id


def check_limit(name: object) -> str:
    """Return `name` if it can be the name of a limit: as that of a queue, and not longer than 200 characters."""
    if not _is_storable(name) or not 0 < len(name) <= 200 or name != name.strip() or set(name) & {",", ":"}:
        wanted = "a text of 1 to 200 characters without ',' and ':', and without blanks at its ends"
        raise ConfigError(f"the name of a limit is {wanted}, not {name!r}")
    return name


def check_limit_key(key: object) -> str:
    """Return a key of a limit as text. An int is turned into text."""
    if isinstance(key, int) and not isinstance(key, bool):
        key = str(key)
    if not _is_storable(key) or not 0 < len(key) <= 200:
        raise ConfigError(f"a key is a text of 1 to 200 characters, or an int, not {key!r}")
    return key


_RATE = re.compile(r"([0-9]+(?:\.[0-9]+)?)/([0-9]*)([smhd])", re.ASCII)
_SECONDS_IN: Mapping[str, float] = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_RATE_SLACK = 2e-6  # seconds by which a job may start too early: floats hold moments of today to 0.24 us


@functools.lru_cache(maxsize=1_000)
def _interval_of(rate: str) -> float:
    """Return the seconds between two jobs of a rate; ConfigError if the text is no rate."""
    found = _RATE.fullmatch(rate)
    number, seconds = (float(found[1]), float(found[2] or 1) * _SECONDS_IN[found[3]]) if found else (0.0, 0.0)
    if not 1e-9 < seconds / (number or math.inf) < 1e9:
        raise ConfigError(f"a rate is a number of jobs in a time, such as '10/s', '100/m' or '3/10s', not {rate!r}")
    return seconds / number


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """How many jobs of a limit run at once, and how many start in a time.

    The numbers hold for all jobs of the limit that have the same key, and for all that have none. `concurrency`: jobs
    at once. `rate`: jobs in a time, such as "100/m". `burst`: how many may start immediately after a pause; None: what
    the rate allows in 0.1 s, at least one. `turn`, for the limit of a fair queue: how many jobs of a key are ready at
    once; the others follow behind those of other keys. `declared` and `by`: when, and by whom.
    """

    name: str
    concurrency: int | None = None
    rate: str | None = None
    burst: int | None = None
    turn: int | None = None
    declared: float = field(default=0.0, compare=False)
    by: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        check_limit(self.name)
        for number in ("concurrency", "burst", "turn"):
            if getattr(self, number) is not None:
                _whole(number, getattr(self, number), least=1)
        if self.rate is not None:
            if not isinstance(self.rate, str):
                raise ConfigError(f"a rate is a text such as '100/m', not {self.rate!r}")
            _interval_of(self.rate)
        elif self.burst is not None:
            raise ConfigError(f"burst={self.burst} needs rate=, such as '100/m'")

    @property
    def interval(self) -> float:
        """The seconds between two jobs of the rate; 0 without a rate."""
        return 0.0 if self.rate is None else _interval_of(self.rate)

    @property
    def is_counted(self) -> bool:
        """Whether jobs that run take its places, so that the end of one makes room."""
        return self.concurrency is not None

    @property
    def is_charged(self) -> bool:
        """Whether a claim uses up a rate, or makes room in a turn."""
        return self.rate is not None or self.turn is not None

    @property
    def most(self) -> int:
        """How many jobs may start immediately after a pause."""
        return self.burst or max(1, math.floor(0.1 / self.interval + 1e-9))

    @property
    def most_ready(self) -> int:
        """How many jobs that the rate allows are ready at once, as stores count them. A claim makes room for others."""
        return min(self.most, UPKEEP_STEP)

    def __str__(self) -> str:
        parts = [] if self.concurrency is None else [f"{self.concurrency} at a time"]
        if self.rate is not None:
            parts.append(self.rate if self.burst is None else f"{self.rate} with bursts of {self.burst}")
        if self.turn is not None:
            parts.append(f"{self.turn} in turn")
        return ", ".join(parts) or "no limit"

    @property
    def text(self) -> str:
        """The limit as text for a store."""
        return json.dumps([self.name, self.concurrency, self.rate, self.burst, self.turn, self.declared, self.by])

    @staticmethod
    @functools.lru_cache(maxsize=1_000)
    def from_text(text: str) -> Limit:
        """Return the limit of which `text` was made."""
        name, concurrency, rate, burst, turn, declared, by = json.loads(text)
        return Limit(name=name, concurrency=concurrency, rate=rate, burst=burst, turn=turn, declared=declared, by=by)


def join_limit_key(limit: str | None, key: str | None) -> str:
    """Return a limit and a key as one text, which `split_limit_key` divides: the name of a limit has no colon."""
    return f"{limit}:{key or ''}"


def split_limit_key(text: str) -> tuple[str, str | None]:
    """Return the limit and the key of which `join_limit_key` made the text. Jobs without a key have None."""
    limit, _, key = text.partition(":")
    return limit, key or None


def limit_key(job: Job) -> str:
    """Return what the jobs are counted by that are limited together with this one: its limit, and its key."""
    return join_limit_key(job.limit, job.key)


def stored_limit_key(job: Job) -> str | None:
    """Return the limit key of a job as stores keep it; None if it has no limit."""
    return None if job.limit is None else limit_key(job)


def give_limit_key(job: Job, text: str | None) -> None:
    """Set on a job what `stored_limit_key` returned."""
    if text is not None:
        job.limit, job.key = split_limit_key(text)


@dataclass(slots=True)
class LimitKey:
    """The state of a limit key, which `limit_key` names: of all jobs of one limit that have the same key, or none.

    `running` and `pending` are the jobs that hold a place of the limit, counted in the store. `has_waiting`: whether
    jobs wait for one. `limit`: its numbers; None if nobody has declared it. The rest is a row of the store, which
    exists only if it differs from this: `tat`: the moment from which on the rate allows a full burst (0.0: it does);
    `due`: when the upkeep is to admit jobs (None: only a job that ends will); `paused`: nothing is admitted.
    """

    name: str
    limit: Limit | None = None
    running: int = 0
    pending: int = 0
    has_waiting: bool = False
    tat: float = 0.0
    due: float | None = None
    paused: bool = False

    @property
    def row(self) -> tuple[float, float | None, bool]:
        """What the store keeps; (0.0, None, False) is not kept."""
        return self.tat, self.due, self.paused


@dataclass(slots=True)
class LimitUse:
    """The use of a limit: its jobs by state, the keys for which jobs wait, and the one for which the most wait."""

    limit: Limit
    is_declared: bool = True
    running: int = 0
    pending: int = 0
    waiting: int = 0
    waiting_keys: int = 0
    longest_key: str = ""
    longest: int = 0
    paused: tuple[str, ...] = ()


def uses_of(declared: Iterable[Limit], rows: Iterable[tuple[str, int, int, int, bool]]) -> list[LimitUse]:
    """Return the use of limits, by name. `rows`: limit key, running, pending and waiting jobs, whether it is paused."""
    found = {limit.name: LimitUse(limit) for limit in declared}
    for name, running, pending, waiting, paused in sorted(rows):
        if not (running or pending or waiting or paused):
            continue
        limit, key = split_limit_key(name)
        use = found.setdefault(limit, LimitUse(Limit(name=limit), is_declared=False))
        use.running += running
        use.pending += pending
        use.waiting += waiting
        use.waiting_keys += waiting > 0
        if waiting > use.longest:
            use.longest_key, use.longest = key or "", waiting
        use.paused += (key or "",) if paused else ()
    return [found[name] for name in sorted(found)]


MAX_VALUE_SIZE = 64 * 2**20
_LARGE = 100_000  # characters, which take some 2 ms to convert; arguments below are not measured


@dataclass(slots=True, kw_only=True)
class BrokerConfig:
    """Where jobs are stored. `timeout`: how many seconds a call may wait for a store that is locked or unreachable.

    `max_queue_size` limits the ready jobs of each queue of the memory broker. `when_full`: if a queue is full, `submit`
    raises a QueueFullError ("raise") or waits for room ("wait"). `max_value_size` limits the arguments of a job, and
    its result, each in characters of JSON.
    """

    url: str = field(default="memory://", repr=False)  # it may hold a password
    timeout: float = 30.0
    max_queue_size: int | None = None
    when_full: str = "raise"
    max_value_size: int = MAX_VALUE_SIZE

    def __post_init__(self) -> None:
        self.timeout = _seconds("timeout", self.timeout)
        _whole("max_value_size", self.max_value_size, least=_LARGE)
        if self.max_queue_size is not None:
            _whole("max_queue_size", self.max_queue_size, least=1)
        if self.when_full not in ("raise", "wait"):
            raise ConfigError(f"when_full must be 'raise' or 'wait', not {self.when_full!r}")


@dataclass(slots=True, kw_only=True)
class BackendConfig:
    """Where results are stored (None: in the broker), and for how many seconds.

    `max_results` limits the finished jobs that are kept in memory.
    """

    url: str | None = field(default=None, repr=False)
    result_ttl: float = 86_400.0
    failed_ttl: float = 604_800.0
    max_results: int = 10_000

    def ttl(self, status: TaskStatus) -> float:
        """Return for how many seconds a job that ended in this state is kept."""
        return self.result_ttl if status is SUCCESS else self.failed_ttl

    def __post_init__(self) -> None:
        self.result_ttl = _seconds("result_ttl", self.result_ttl)
        self.failed_ttl = _seconds("failed_ttl", self.failed_ttl)
        _whole("max_results", self.max_results, least=1)


@dataclass(slots=True, kw_only=True)
class ExecutorConfig:
    """How many jobs a worker runs at once, and its lease, drain and process limits.

    `io_workers` and `cpu_workers` are the capacities of the queues `default` and `cpu`. `queues` names other queues;
    then the worker serves only these. `lease`: the seconds after which a silent worker counts as dead. `heartbeat`: the
    seconds between renewals. `drain`: how many seconds a stop waits for running jobs. `scheduler`: whether this worker
    fires schedules. A process for CPU-bound tasks is replaced, between two jobs, after `max_jobs` jobs or when it uses
    more than `max_memory` bytes. The process of a worker that the command line runs drains and ends after
    `recycle_jobs` attempts, or when it uses more than `recycle_memory` bytes.
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
    recycle_jobs: int | None = None
    recycle_memory: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_jobs", "max_memory", "recycle_jobs", "recycle_memory"):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), least=1)
        _whole("io_workers", self.io_workers, least=1)
        _whole("cpu_workers", self.cpu_workers, least=1)
        _flag("scheduler", self.scheduler)
        if self.queues is not None and not (self.queues and isinstance(self.queues, Mapping)):
            wanted = f"such as {{'mail': 5}}, not {self.queues!r}: leave it out to serve the queues of the tasks"
            raise ConfigError(f"queues must be a dictionary with the capacity of each queue, {wanted}")
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
    """The whole configuration. `Config.from_env("FLOWRRA_")` reads, for example, FLOWRRA_EXECUTOR_IO_WORKERS=50."""

    broker: BrokerConfig = field(default_factory=BrokerConfig)
    backend: BackendConfig = field(default_factory=BackendConfig)
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)

    def __post_init__(self) -> None:
        for part in dataclasses.fields(self):  # None is the default, as in from_urls()
            kind, value = cast("type", part.default_factory), getattr(self, part.name)
            if not isinstance(value, kind | None):  # the value may be a URL with a password
                raise ConfigError(f"{part.name} must be a {kind.__name__}, not a {type(value).__name__}")
            setattr(self, part.name, kind() if value is None else value)

    @classmethod
    def from_env(cls, prefix: str = "FLOWRRA_", environ: Mapping[str, str] | None = None) -> Config:
        """Read the variables PREFIX + SECTION + _ + OPTION. PREFIX + BROKER and PREFIX + BACKEND are URLs.

        A variable of one of the three sections that is not an option raises a ConfigError, and so does a text where a
        number is expected. Other variables with the prefix may belong to another program or be misspelt. They are named
        in a warning; with a custom prefix, only those that are similar to a setting.
        """
        env = os.environ if environ is None else environ
        warn_of_unknown_settings(prefix, env)
        values: dict[str, dict[str, Any]] = {section: {} for section in _SECTIONS}
        settings = _settings()
        for name in sorted((name for name in env if name.startswith(prefix)), reverse=True):  # BROKER wins
            key = name.removeprefix(prefix)
            if key in settings:
                section, option = settings[key]
                values[section][option.name] = _from_text(name, str(option.type), env[name])
            elif kind := _SECTIONS.get(key.partition("_")[0].lower()):
                known = sorted(option.name for option in dataclasses.fields(kind))
                raise ConfigError(f"{name} is not an option; the options are {', '.join(known)}")
        return cls(**{section: kind(**values[section]) for section, kind in _SECTIONS.items()})


_SECTIONS: Mapping[str, Any] = {"broker": BrokerConfig, "backend": BackendConfig, "executor": ExecutorConfig}
# Other variables with the prefix FLOWRRA_: those of the command line, and of Flowrra's own tests (FLOWRRA_TEST_...).
_NO_SETTINGS = frozenset(("FLOWRRA_APP", "FLOWRRA_DEMO", "FLOWRRA_REQUIRE_SERVICES"))


def _settings() -> dict[str, tuple[str, dataclasses.Field[Any]]]:
    """Return the variable names without the prefix, each with its section and option."""
    found = {f"{s.upper()}_{o.name.upper()}": (s, o) for s, kind in _SECTIONS.items() for o in dataclasses.fields(kind)}
    return {**found, "BROKER": found["BROKER_URL"], "BACKEND": found["BACKEND_URL"]}


def warn_of_unknown_settings(prefix: str, env: Mapping[str, str]) -> None:
    """Log which variables with the prefix are ignored, and which setting was probably meant."""
    known = _settings()
    for name in sorted(name for name in env if name.startswith(prefix)):
        if name.removeprefix(prefix) in known or name in _NO_SETTINGS or name.startswith("FLOWRRA_TEST_"):
            continue
        close = closest(name.removeprefix(prefix), known)
        if close is not None or prefix == "FLOWRRA_":
            _warn_once(f"{name} is not a setting and is ignored{f'; did you mean {prefix}{close}?' if close else ''}")


@functools.lru_cache(maxsize=100)
def _warn_once(text: str) -> None:
    logger.warning("%s", text)


_YES_OR_NO: Mapping[str, bool] = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


def _from_text(name: str, kind: str, text: str) -> Any:
    """Read an option of type `kind` from the environment or the command line."""
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
# when it is encoded. Reading a text never imports or calls what it names.
# This section does not know jobs and brokers.
#
# A type that JSON lacks is an object with the key "$": {"$": "tuple", "v":
# [1, 2]}. A dictionary with that key, or with keys that are not strings, is
# stored as a list of pairs, so users' data cannot look like a tag. Floats may
# be NaN or infinite, ints have up to 4,300 digits (Python's own limit), lone
# surrogates are kept, and nesting ends at MAX_DEPTH, which also stops cycles.
# An enum that is a str or an int is stored as that. Another enum is refused,
# because reading it would import a module that the store names. A dataclass
# is stored as the dictionary of its fields, and read as that; a task gets the
# object by its annotations: see Types, below.
# Of a time zone, its fixed offset or the key of its ZoneInfo is stored.
# Large values are converted in a thread (`apart`), and in steps: the C code of
# `json` holds the interpreter, so in one step it would hold the loop as well.
# ---------------------------------------------------------------------------

MAX_DEPTH = 100
_TAG = "$"


def _make_dump() -> Callable[[Any], str]:
    """Return what writes JSON in ASCII. `JSONEncoder.encode` makes the encoder in C for each call: 1.9 us, not 0.5."""
    encoder = json.JSONEncoder(ensure_ascii=True, allow_nan=False, check_circular=False, separators=(",", ":"))
    make = getattr(json.encoder, "c_make_encoder", None)
    if make is None:  # not CPython
        return encoder.encode
    write = make(None, encoder.default, json.encoder.encode_basestring_ascii, None, ":", ",", False, False, False)
    return lambda value: "".join(write(value, 0))


_dump = _make_dump()


class ResultOf(Generic[R]):
    """Placeholder in the arguments for the result of the job `task_id`; see `result_of`."""

    __slots__ = ("is_tolerant", "task_id")

    def __init__(self, task_id: str, is_tolerant: bool = False) -> None:
        self.task_id = task_id
        self.is_tolerant = is_tolerant  # whether it stands for the whole TaskResult, also of a failure

    @property
    def tag(self) -> str:
        """The name of the placeholder in stored text."""
        return "outcome_of" if self.is_tolerant else "result_of"

    def __repr__(self) -> str:
        return f"result_of({str(self.task_id)!r}{', failed=' + repr('pass') if self.is_tolerant else ''})"


@overload
def result_of(task_id: TaskId[R], *, failed: Literal["cancel"] = ...) -> R: ...
@overload
def result_of(task_id: TaskId[R], *, failed: Literal["pass"]) -> TaskResult[R]: ...


def result_of(task_id: TaskId[Any], *, failed: Literal["cancel", "pass"] = "cancel") -> Any:
    """Return a placeholder for the result of another job, to pass as an argument. The job waits for that parent.

    The placeholder can be inside lists, tuples, dictionaries and fields of dataclasses, but not in a set or a key. The
    parent must be in the same broker.

    Args:
        failed: what happens if the parent ends without success. "cancel" cancels the job. With "pass" the job runs
            anyway, and receives the whole TaskResult of the parent.
    """
    if failed not in ("cancel", "pass"):
        raise ConfigError(f"failed must be 'cancel' or 'pass', not {failed!r}")
    return ResultOf(check_id(task_id), failed == "pass")


@overload
def results_of(task_ids: Iterable[TaskId[R]], *, failed: Literal["cancel"] = ...) -> list[R]: ...
@overload
def results_of(task_ids: Iterable[TaskId[R]], *, failed: Literal["pass"]) -> list[TaskResult[R]]: ...


def results_of(task_ids: Iterable[TaskId[Any]], *, failed: Literal["cancel", "pass"] = "cancel") -> list[Any]:
    """Return a list of placeholders, one per id, as from `result_of`: for a job that runs after many others."""
    return [result_of(task_id, failed="pass") if failed == "pass" else result_of(task_id) for task_id in task_ids]


def encode(value: Any, name: str = "value") -> str:
    """Return `value` as JSON text in ASCII.

    Raises:
        SerializationError: names the part that cannot be stored by its path, such as `name[2]['key']`.
    """
    if value is None:
        return "null"
    try:
        packed = value if type(value) is int else _pack(value, 0)
        return _dump(packed) if type(packed) in _NUMBERS or not is_large(packed) else "".join(_pieces(packed))
    except _Unfit as unfit:
        raise SerializationError(f"{name}{unfit.path} {unfit.why}") from None
    except ValueError as error:  # an int with more digits than Python turns into text
        raise SerializationError(f"{name} holds a number that cannot be stored: {error}") from None


def decode(text: str) -> Any:
    """Return the value that `encode` made `text` of; SerializationError if it is not such a text."""
    try:
        return _load(text) if len(text) < _LARGE else _load_in_steps(text)
    except SerializationError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError, OSError) as error:
        shown = str(text)  # a damaged store may contain something else
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        raise SerializationError(f"stored text cannot be read ({error}): {shown!r}") from None


_NUMBERS = frozenset((type(None), bool, int, float))
_CONTAINERS = (list, tuple, dict, set, frozenset)
_STEP = 60_000  # characters, or bytes, that are converted in one step


def is_large(*values: Any) -> bool:
    """Whether the text of the values would have more than about 100,000 characters. Takes at most some 3 ms."""
    return _room_after(values, _LARGE, MAX_DEPTH) < 0


def _room_after(values: Iterable[Any], room: int, depth: int) -> int:
    """Return what these values leave of a room for characters; any negative number if it is not enough."""
    if room >= 0 <= depth:
        for value in values:
            kind = type(value)
            if kind in _NUMBERS:
                continue
            if kind is str or isinstance(value, str | bytes):
                room -= len(value)
            elif kind is dict:
                room = _room_after(value.values(), room - 10 * len(value), depth - 1)
            elif isinstance(value, _CONTAINERS):
                room = _room_after(value, room - 5 * len(value), depth - 1)
            elif hasattr(value, "__dataclass_fields__"):
                inside = [getattr(value, name, None) for name in value.__dataclass_fields__]
                room = _room_after(inside, room - 10 * len(inside), depth - 1)
            if room < 0:
                break
    return room


async def apart(work: Callable[..., T], *values: Any) -> T:
    """Return `work(*values)`. If the values are large, run it in a thread, so that the loop is not blocked."""
    return await asyncio.to_thread(work, *values) if is_large(*values) else work(*values)


def check_size(text: str, most: int, error: type[SerializationError], what: str, task: str) -> None:
    """Refuse the text of a value that is too long."""
    if len(text) > most:
        raise error(
            f"{what} {task} has {len(text):,} characters, and max_value_size is {most:,}: pass the place of the data, "
            "such as a path or a key"
        )


def _pieces(packed: Any) -> Iterator[str]:
    """Yield the text of packed data in pieces of about _STEP characters."""
    if not is_large(packed):
        yield _dump(packed)
    elif isinstance(packed, str):
        yield '"'
        for at in range(0, len(packed), _STEP):
            yield _dump(packed[at : at + _STEP])[1:-1]
        yield '"'
    elif isinstance(packed, dict):
        mark = "{"
        for key, value in packed.items():
            yield f"{mark}{_dump(key)}:"
            yield from _pieces(value)
            mark = ","
        yield "}"
    elif len(packed) == 1:
        yield "["
        yield from _pieces(packed[0])
        yield "]"
    else:
        mark, size = "[", min(1_000, -(-len(packed) // 2))
        for at in range(0, len(packed), size):
            yield mark
            yield "".join(_pieces(packed[at : at + size]))[1:-1]
            mark = ","
        yield "]"


def _load_in_steps(text: str) -> Any:
    """Return what `_load` returns. The text was written by `encode`; another one is read in one step."""
    try:
        value, end = _read(text, 0)
    except (ValueError, IndexError):
        return _load(text)
    return value if end == len(text) else _load(text)


def _read(text: str, at: int) -> tuple[Any, int]:
    """Return the value that begins at `at`, and where it ends."""
    with contextlib.suppress(ValueError):  # which may mean only that it goes on after this step
        value, size = _scan(text[at : at + _STEP], 0)
        if size < _STEP:
            return value, at + size
    return _read_long(text, at)


def _read_long(text: str, at: int) -> tuple[Any, int]:
    match text[at]:
        case "[":
            return _read_list(text, at + 1)
        case "{":
            return _read_object(text, at)
        case '"':
            return _read_string(text, at + 1)
    raise ValueError(f"there is no value at {at}")


def _read_list(text: str, at: int) -> tuple[list[Any], int]:
    items: list[Any] = []
    while True:
        window, size = text[at : at + _STEP], 0
        try:
            while True:
                item, end = _scan(window, size)
                if window[end] not in ",]":
                    raise ValueError("the item is a number that is cut off here")
                items.append(item)
                size = end + 1
                if window[end] == "]":
                    return items, at + size
        except (ValueError, IndexError):  # the item goes on after this step
            if size == 0:
                item, end = _read_long(text, at)
                items.append(item)
                size = end + 1 - at
                if text[end] != ",":
                    return _ended(items, text, "]", end)
        at += size


def _read_object(text: str, start: int) -> tuple[Any, int]:
    at = start
    found: dict[str, Any] = {}
    while at == start or text[at] == ",":
        key, end = _read(text, at + 1)
        if text[end] != ":":
            break
        found[key], at = _read(text, end + 1)
    return _ended(_unpack(found), text, "}", at)


def _ended(value: T, text: str, closing: str, at: int) -> tuple[T, int]:
    if text[at] != closing:
        raise ValueError(f"there is {text[at]!r} at {at}")
    return value, at + 1


# Whole characters and escapes. The two halves of a surrogate pair stay together.
_CHARACTERS = re.compile(r'(?:[^"\\]{1,500}+|\\u.{4}(?:\\u[dD][c-fC-F].{2})?|\\[^u]){0,200}+')


def _read_string(text: str, at: int) -> tuple[str, int]:
    parts = []
    while text[at] != '"':
        end = cast("re.Match[str]", _CHARACTERS.match(text, at)).end()
        if end == at:
            raise ValueError(f"there is no character at {at}")
        parts.append(_scan(f'"{text[at:end]}"', 0)[0])
        at = end
    return "".join(parts), at + 1


class _Unfit(Exception):  # noqa: N818 (never leaves this section)
    """A value cannot be stored. Each container around the value adds its part to the path."""

    def __init__(self, why: str) -> None:
        self.why = why
        self.path = ""


def _pack(value: Any, depth: int) -> Any:
    """Return `value` as types of JSON."""
    packer = _PACKERS.get(type(value))
    if packer is None:
        packer = _pack_other
    return packer(value, depth)


def _pack_each(items: Iterable[tuple[Any, Any]], depth: int) -> Iterator[Any]:
    """Pack the second item of each pair. The first item names it in the path of an error."""
    if depth >= MAX_DEPTH:
        raise _Unfit(f"is nested more than {MAX_DEPTH} levels deep, or contains itself")
    for key, item in items:
        try:
            yield _pack(item, depth + 1)
        except _Unfit as unfit:
            long = len(unfit.path) > 80
            unfit.path = f"...{unfit.path.removeprefix('...')}" if long else f"[{key!r}]{unfit.path}"
            raise


_SCALARS = frozenset((type(None), bool, int, str))  # JSON represents them; a float may be NaN
_PLAIN = frozenset((type(None), bool, float, str))  # immutable; an int may be too large for a store
_TEXT = frozenset((str,))


def is_plain(value: Any) -> bool:
    """Whether `value` is immutable and every store returns it unchanged, so that it need not become text."""
    kind = type(value)
    return kind in _PLAIN or (kind is int and -(2**63) <= value < 2**63)


def are_plain(values: Iterable[Any]) -> bool:
    """Whether all values are plain."""
    return all(map(is_plain, values))


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
    """Return members of a set or keys of a dictionary, if they will be hashable when they are read."""
    if not _SCALARS.issuperset(map(type, packed)):
        text = _dump(packed)
        if _has_placeholder(text):
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
    """Pack a datetime or a time with the key of its zone: an offset alone would be wrong after a clock change."""
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
        f"has the time zone {zone!r}, which cannot be stored: use zoneinfo.ZoneInfo, or .astimezone(datetime.UTC)"
    )


def _unpack_clock(read: Callable[[str], Any], parts: Sequence[Any]) -> Any:
    text, key, fold = parts
    value = read(text).replace(fold=fold)
    return value if key is None else value.replace(tzinfo=importlib.import_module("zoneinfo").ZoneInfo(key))


def _base64(value: bytes) -> str:
    parts = (value[at : at + _STEP] for at in range(0, len(value), _STEP))  # a step is a multiple of 3
    return "".join([binascii.b2a_base64(part, newline=False).decode() for part in parts])


def _from_base64(text: str) -> bytes:
    parts = (text[at : at + _STEP] for at in range(0, len(text), _STEP))  # and of 4
    return b"".join([binascii.a2b_base64(part, strict_mode=True) for part in parts])


_PACKERS: Mapping[type, Callable[[Any, int], Any]] = {
    **dict.fromkeys(_SCALARS, lambda value, depth: value),
    float: lambda value, depth: value if math.isfinite(value) else _tagged("float", repr(value)),
    list: _pack_list,
    dict: _pack_dict,
    tuple: lambda value, depth: _tagged("tuple", _pack_list(value, depth)),
    set: lambda value, depth: _tagged("set", _hashable(_pack_list(value, depth))),
    frozenset: lambda value, depth: _tagged("frozenset", _hashable(_pack_list(value, depth))),
    bytes: _packer("bytes", _base64),
    dt.datetime: _pack_clock,
    dt.date: _packer("date", dt.date.isoformat),
    dt.time: _pack_clock,
    dt.timedelta: _packer("timedelta", lambda value: [value.days, value.seconds, value.microseconds]),
    ResultOf: lambda value, depth: _tagged(value.tag, str(value.task_id)),
}

# Values of derived types (an enum, a named tuple, an ordered dictionary) are kept as their base type.
_BASES: Mapping[type, Any] = {str: str.__str__, int: int, float: float, dict: dict, tuple: tuple, list: list}


def _pack_other(value: Any, depth: int) -> Any:
    """Pack a value whose type is not in the table: from a module that is not imported here, or a subclass."""
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
        f"is a {kind.__module__}.{kind.__qualname__}, which cannot be stored as JSON: "
        "pass plain data, such as a number, a string, a list or an id"
    )


def _unpack(found: dict[str, Any]) -> Any:
    """Return the value that a JSON object stands for. Inner objects are unpacked first."""
    tag = found.get(_TAG)
    if tag is None:
        return found
    unpacker = _UNPACKERS.get(tag)
    if unpacker is None or len(found) != 2:
        raise SerializationError(f"stored text has the tag {tag!r}, which this version does not know")
    return unpacker(found["v"])


_scan = json.JSONDecoder(object_hook=_unpack).raw_decode  # returns a value, and where it ends


def _load(text: str) -> Any:
    """Return the value of a JSON text. `JSONDecoder.decode` also matches patterns of spaces: 1.4 us, not 0.6."""
    text = text.strip()
    value, end = _scan(text)
    if end != len(text):
        raise ValueError(f"there is more text after {end} characters")
    return value


_UNPACKERS: Mapping[str, Callable[[Any], Any]] = {
    "float": float,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "dict": dict,
    "bytes": _from_base64,
    "datetime": dt.datetime.fromisoformat,
    "date": dt.date.fromisoformat,
    "time": dt.time.fromisoformat,
    "zoned datetime": functools.partial(_unpack_clock, dt.datetime.fromisoformat),
    "zoned time": functools.partial(_unpack_clock, dt.time.fromisoformat),
    "timedelta": lambda parts: dt.timedelta(*parts),
    "decimal": lambda text: importlib.import_module("decimal").Decimal(text),
    "uuid": lambda text: importlib.import_module("uuid").UUID(text),
    "result_of": ResultOf,
    "outcome_of": functools.partial(ResultOf, is_tolerant=True),
}

NO_ARGUMENTS = "[[],{}]"


def _has_placeholder(text: str) -> bool:
    """Whether an encoded text contains a placeholder. In a user's text, the quotes would be escaped."""
    return '"$":"result_of"' in text or '"$":"outcome_of"' in text


def encode_arguments(job: Job) -> str:
    """Return the text of the job's arguments; a SerializationError names the one that cannot be stored."""
    if job.payload is not None:
        return job.payload
    if not job.args and not job.kwargs:
        return NO_ARGUMENTS
    name = f"an argument of {job.task}: "
    kwargs = encode(dict(job.kwargs), name + "kwargs") if job.kwargs else "{}"
    return f"[{encode(list(job.args), name + 'args')},{kwargs}]"


def decode_arguments(job: Job) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """Return the job's arguments, from its payload if it has one."""
    if job.payload is None:
        return job.args, job.kwargs
    if job.payload == NO_ARGUMENTS:
        return (), {}
    match decode(job.payload):
        case [list() as args, dict() as kwargs]:
            return args, kwargs
    raise SerializationError(f"stored text is not a list and a dictionary of arguments: {job.payload[:80]!r}")


def rename_parents(job: Job, names: Mapping[str, str]) -> None:
    """Make the placeholders in the job's arguments name the jobs that took the place of its parents."""
    text = encode_arguments(job)
    for tag, (parent, holder) in itertools.product(("result_of", "outcome_of"), names.items()):
        text = text.replace(_dump(_tagged(tag, parent)), _dump(_tagged(tag, holder)))
    if job.payload is None:
        job.args, job.kwargs = decode(text)
    else:
        job.payload = text


def encode_value(outcome: Outcome) -> str:
    """Return the text of what a successful attempt returned."""
    return encode_returned(outcome.result, outcome.job.task)


def encode_returned(value: Any, task: str) -> str:
    """Return the text of what a task returned; ResultError if it cannot be stored."""
    try:
        text = encode(value, f"the result of {task}")
    except SerializationError as error:
        raise ResultError(str(error)) from None
    if _has_placeholder(text):
        raise ResultError(f"the result of {task} contains result_of(), which is allowed in arguments only")
    return text


def encode_result(result: TaskResult[Any]) -> str:
    """Return a result as text, for backends that store text."""
    return encode([getattr(result, f.name) for f in dataclasses.fields(result)], f"result of {result.task}")


def decode_result(text: str) -> TaskResult[Any]:
    """Return the result that `encode_result` made `text` of."""
    values = decode(text)
    try:
        result = TaskResult[Any](*values)
        result.status = TaskStatus(result.status)
        result.progress = Progress(*result.progress) if result.progress else None
    except (ValueError, TypeError) as error:
        raise SerializationError(f"stored text is not a result ({error}): {text[:80]!r}") from None
    return result


# ---------------------------------------------------------------------------
# 4. Types
#
# A task gets the types of its annotations. The store has plain data without
# names of types. The annotations that the task has now decide what is made of
# the data: each becomes a Converter. Types that the codec itself restores (int,
# list[str], datetime ...) need none; a task that has only such parameters has
# no extra cost. If an annotation says nothing (Any, a type variable) or cannot
# be resolved (an import for type checkers), the codec's value is used. Models
# (`model_validate`) and structs (`__struct_fields__`) are recognised by these
# attributes: no library is imported.
# ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Converter:
    """Converts values of one annotation to plain data, and back.

    With `loading`, `convert(value, loading)` converts plain data to the annotated type. Without, it converts to plain
    data; plain data that could be loaded, such as from a command line, is returned unchanged. It raises `_Unfit` if a
    value does not fit. `is_plain`: the codec returns such values without a converter. `reads_text`: a text can stand
    for a value. Values whose type is in `kinds` need no check.
    """

    name: str
    convert: Callable[[Any, bool], Any]
    is_plain: bool = False
    reads_text: bool = False
    kinds: frozenset[type] = frozenset()


_ANYTHING = Converter("Any", lambda value, loading: value, is_plain=True)
_BUILTINS = (list, tuple, set, frozenset)


def _misfit(value: Any, wanted: str) -> _Unfit:
    shown = repr(value) if is_plain(value) else f"a {type(value).__qualname__}"
    return _Unfit(f"is {shown[:60]}, where {wanted} is annotated")


def _part(converter: Converter, value: Any, loading: bool, place: str, key: object = None) -> Any:
    """Convert a part of a value, or return its placeholder. An error's path gets the place of the part."""
    if type(value) is ResultOf:
        return value
    try:
        return converter.convert(value, loading)
    except _Unfit as unfit:
        inner = unfit.path if len(unfit.path) <= 80 else "..."
        unfit.path = (place if key is None else f"[{key!r}]") + inner
        raise


def _parts(converter: Converter, values: Collection[Any], loading: bool, keys: Iterable[Any]) -> list[Any]:
    """Convert the parts of a collection; numbers and texts in one step."""
    if converter is _ANYTHING or converter.kinds.issuperset(map(type, values)):
        return list(values)
    return [_part(converter, value, loading, "", key) for key, value in zip(keys, values, strict=False)]


def _leaf(kind: type, *others: type, read: Callable[[str], Any] | None = None, read_from: Any = str) -> Converter:
    """Convert a type that the codec stores. `read` makes one from a text, or from the text of a `read_from`."""
    name = "None" if kind is type(None) else kind.__qualname__
    kinds = (kind, *others)

    def convert(value: Any, loading: bool) -> Any:
        if isinstance(value, kinds):
            return value
        if read is not None and isinstance(value, read_from):
            with contextlib.suppress(ValueError, ArithmeticError):
                return read(str(value))
        raise _misfit(value, name)

    return Converter(name, convert, True, read is not None, frozenset(kinds))


_LEAVES: Mapping[Any, Converter] = {
    **{kind: _leaf(kind) for kind in (type(None), bool, int, str, bytes, dt.timedelta, dict, *_BUILTINS)},
    **{kind: _leaf(kind, read=kind.fromisoformat) for kind in (dt.datetime, dt.date, dt.time)},
    float: _leaf(float, int),
}
_READ_FROM: Mapping[str, Any] = {"decimal.Decimal": str | int | float, "uuid.UUID": str}
_KEPT_AS_TEXT = ("pathlib", "ipaddress")
_CONCRETE: Mapping[Any, Callable[[Any], Any]] = {
    **{kind: kind for kind in _BUILTINS},
    **dict.fromkeys((Iterable, Collection, Sequence, MutableSequence), list),
    **dict.fromkeys((AbstractSet, MutableSet), set),
}
_MAPPINGS = (dict, Mapping, MutableMapping)
_QUALIFIERS = (typing.Annotated, typing.Required, typing.NotRequired, typing.Final)


def _collection(kind: Any, item: Converter) -> Converter:
    """Make a converter for a list, set or tuple of any length. A value that fits an abstract type keeps its type."""
    name = f"{kind.__name__}[{item.name}]"

    def convert(value: Any, loading: bool) -> Any:
        if not isinstance(value, _BUILTINS):
            if item.is_plain and isinstance(value, kind):  # a text is a sequence of texts
                return value
            raise _misfit(value, name)
        items = _parts(item, value, loading, itertools.count())
        own: Any = type(value)
        try:
            return own(items) if own in _BUILTINS and issubclass(own, kind) else _CONCRETE[kind](items)
        except TypeError:
            if loading:
                raise _misfit(value, name) from None
            return items  # an object may be hashable although its plain data is not

    return Converter(name, convert, item.is_plain)


def _mapping(key: Converter, item: Converter) -> Converter:
    name = f"dict[{key.name}, {item.name}]"
    key = _leaf(int, read=int) if key is _LEAVES[int] else key  # keys in JSON are texts

    def convert(value: Any, loading: bool) -> Any:
        if not isinstance(value, dict):
            raise _misfit(value, name)
        keys, items = _parts(key, value, loading, value), _parts(item, value.values(), loading, value)
        try:
            return dict(zip(keys, items, strict=True))
        except TypeError:
            raise _Unfit("has a key that would come back as a dictionary or list") from None

    return Converter(name, convert, key.is_plain and item.is_plain)


def _fixed_tuple(items: Sequence[Converter]) -> Converter:
    name = f"tuple[{', '.join(item.name for item in items)}]"

    def convert(value: Any, loading: bool) -> Any:
        if not isinstance(value, list | tuple) or len(value) != len(items):
            raise _misfit(value, name)
        pairs = enumerate(zip(items, value, strict=True))
        return tuple([_part(item, one, loading, "", number) for number, (item, one) in pairs])

    return Converter(name, convert, all(item.is_plain for item in items))


def _literal(options: Sequence[Any]) -> Converter:
    stored = [_enum(type(one)).convert(one, False) if isinstance(one, enum.Enum) else one for one in options]
    name = f"Literal[{', '.join(map(repr, stored))}]"

    def convert(value: Any, loading: bool) -> Any:
        for option, plain in zip(options, stored, strict=True):
            if any(isinstance(value, type(one)) and value == one for one in (option, plain)):
                return option if loading else plain
        raise _misfit(value, name)

    return Converter(name, convert)


def _union(members: Sequence[Converter]) -> Converter:
    """Use the first member that the value fits. The program's own types come first, then plain types, then texts."""
    if _ANYTHING in members:
        return _ANYTHING
    name = " | ".join(member.name for member in members)
    members = sorted(members, key=operator.attrgetter("is_plain", "reads_text"))
    own = sum(not member.is_plain for member in members)

    def first_fit(value: Any, loading: bool) -> Any:
        errors = []
        for member in members:
            try:
                return member.convert(value, loading)
            except _Unfit as unfit:
                errors.append(unfit)
        deepest = max(errors, key=lambda one: len(one.path))
        is_meant = deepest.path or (own == 1 and not is_plain(value))
        raise deepest if is_meant else _misfit(value, name)

    def convert(value: Any, loading: bool) -> Any:
        made = first_fit(value, loading)
        if not loading and made is not value and own > 1:
            again = first_fit(made, True)
            if again != value and not (type(again) is type(value) and "__eq__" not in vars(type(value))):
                raise _Unfit(f"would come back as another one of {name}: give them fields or values that differ")
        return made

    return Converter(name, convert, all(member.is_plain for member in members))


def _rebuilt(cls: Any, pack: Callable[[Any], Any], make: Callable[[Any], Any], *, exact: bool = False) -> Converter:
    """Convert objects of a class: `pack` makes plain data, `make` the object. Both may run the user's code."""

    def guarded(call: Callable[[Any], Any], value: Any, failed: str) -> Any:
        try:
            return call(value)
        except (_Unfit, MemoryError):
            raise
        except Exception as error:
            said = " ".join(str(error).split())
            raise _Unfit(f"{failed}: {type(error).__name__}: {said[:500]}") from error

    def convert(value: Any, loading: bool) -> Any:
        if not isinstance(value, cls) or (loading and cls is TaskResult):  # that of a parent, with plain data in it
            made = guarded(make, value, f"makes no {cls.__qualname__}")
            return made if loading else value
        if loading:
            return value
        if exact and type(value) is not cls:
            raise _Unfit(f"is a {type(value).__qualname__}, and would come back as a {cls.__qualname__}")
        return guarded(pack, value, "cannot be made plain data")

    return Converter(cls.__qualname__, convert)


def _derived(cls: Any, base: Any) -> Converter:
    """Convert subclasses of str, int or float, and types that are stored as text."""
    pack = _BASES[base] if issubclass(cls, base) else base
    return _rebuilt(cls, pack, lambda value: cls(_LEAVES[base].convert(value, True)))


def _enum(cls: Any) -> Converter:
    """Convert an enum by value if all values are plain, otherwise by name."""
    by_value = all(is_plain(member.value) for member in cls)
    choices = ", ".join(repr(member.value if by_value else member.name) for member in cls)

    def make(value: Any) -> Any:
        with contextlib.suppress(LookupError, ValueError, TypeError):
            return cls(value) if by_value else cls[value]
        raise _misfit(value, f"{cls.__qualname__} ({choices[:200]})")

    return _rebuilt(cls, lambda member: member.value if by_value else member.name, make)


def _model(cls: Any) -> Converter:
    """Convert a class that validates itself. A value that loses data, such as a secret, is refused."""
    is_pydantic = hasattr(cls, "__pydantic_core_schema__")
    dumped = {"mode": "json", "by_alias": True, "round_trip": True} if is_pydantic else {}
    strict = {"strict": False} if is_pydantic else {}  # a moment is a text in JSON, for a strict model too

    def make(value: Any) -> Any:
        try:
            return cls.model_validate(value, **strict)
        except ValueError as error:
            if not is_pydantic:
                raise
            first = cast("Any", error).errors(include_url=False)[0]
            unfit = _Unfit(f"does not fit {cls.__qualname__}: {first['msg']}")
            unfit.path = "".join(f".{part}" if isinstance(part, str) else f"[{part}]" for part in first["loc"])
            raise unfit from error

    def pack(value: Any) -> Any:
        plain = value.model_dump(**dumped)
        if make(plain).model_dump() != value.model_dump():
            raise _Unfit("does not come back from its model_dump() as it was")
        return plain

    return _rebuilt(cls, pack, make, exact=True)


def _record(cls: Any, fields: Mapping[str, Converter], required: Collection[str], given: Collection[str]) -> Converter:
    """Convert a class with fields: `required` are those it must have, `given` those that its constructor takes."""
    name, is_dict, is_tuple = cls.__qualname__, issubclass(cls, dict), issubclass(cls, tuple)

    def parts(value: Any, loading: bool) -> dict[str, Any]:
        if is_tuple and isinstance(value, list | tuple) and len(value) <= len(fields):
            value = dict(zip(fields, value, strict=False))
        if not isinstance(value, dict):
            raise _misfit(value, name)
        if missing := [one for one in required if one not in value]:
            raise _Unfit(f"lacks {missing[0]!r}, which {name} must have")
        if not is_dict and (unknown := value.keys() - fields.keys()):
            raise _Unfit(f"has {min(map(repr, unknown))}, which {name} does not have")
        return {n: _part(fields.get(n, _ANYTHING), one, loading, f".{n}") for n, one in value.items()}

    def pack(value: Any) -> Any:
        values = {n: _part(one, getattr(value, n), False, f".{n}") for n, one in fields.items()}
        return tuple(values.values()) if is_tuple else values

    def make(value: Any) -> Any:
        if isinstance(value, cls):  # as elsewhere, what the codec has restored is not checked
            own = {n: one for n, one in fields.items() if not one.is_plain}
            return dataclasses.replace(value, **{n: _part(own[n], getattr(value, n), True, f".{n}") for n in own})
        values = parts(value, True)
        made = cls(**{n: one for n, one in values.items() if n in given})
        for n in values.keys() - given:
            object.__setattr__(made, n, values[n])
        return made

    return Converter(name, parts) if is_dict else _rebuilt(cls, pack, make, exact=True)


class Annotations:
    """Reads annotations, and the annotations of the classes in them. `unresolved` are those that name nothing."""

    def __init__(self) -> None:
        self.unresolved: list[str] = []
        self._known: dict[Any, Converter] = {}  # classes that may contain themselves

    def resolve(self, annotation: Any, names: Any, more: Any = None) -> Any:
        """Return what a text annotation stands for; Any if the name does not exist (yet)."""
        holder = types.SimpleNamespace(__annotations__={"it": annotation})
        try:
            return typing.get_type_hints(holder, names, more, include_extras=True)["it"]
        except Exception as error:  # NameError as a rule, but the program's own code is evaluated
            self.unresolved.append(f"{annotation!r} ({error})")
            return Any

    def read(self, annotation: Any, default: Any = inspect.Parameter.empty) -> Converter:
        """Return the converter of an annotation; _Unfit if nothing can make such a value and there is no default.

        A plain default is accepted even if it does not fit the annotation: None often does not.
        """
        if default is not inspect.Parameter.empty:
            return self._read_with_default(annotation, default)
        origin, args = typing.get_origin(annotation), typing.get_args(annotation)
        if origin in _QUALIFIERS or str(origin).endswith(".ReadOnly"):  # new in Python 3.13
            return self.read(args[0])
        if origin in (typing.Union, types.UnionType):
            return self._read_union(args)
        if origin is Literal:
            return _literal(args)
        if hasattr(annotation, "__supertype__"):  # of a NewType
            return self.read(annotation.__supertype__)
        if hasattr(annotation, "__value__"):  # of a `type` statement
            return self._read_alias(annotation, args)
        kind: Any = origin or annotation
        if not isinstance(kind, type) or kind in (Any, object):
            return _ANYTHING
        if args and kind is tuple and args[1:] != (...,):
            return _fixed_tuple([self.read(arg) for arg in args])
        if args and kind in _CONCRETE:
            return _collection(kind, self.read(args[0]))
        if args and kind in _MAPPINGS:
            return _mapping(self.read(args[0]), self.read(args[1]))
        return _LEAVES.get(kind) or self._read_class(kind, args)

    def _read_with_default(self, annotation: Any, default: Any) -> Converter:
        try:
            converter = self.read(annotation)
        except _Unfit:
            return _ANYTHING  # if a value is passed, the codec refuses it
        if is_plain(default):
            try:
                converter.convert(default, False)
            except _Unfit:
                return _union([converter, dataclasses.replace(_literal([default]), is_plain=True)])
        return converter

    def _read_union(self, args: Sequence[Any]) -> Converter:
        members, refused = [], None
        for arg in args:
            try:
                members.append(self.read(arg))
            except _Unfit as unfit:  # a single member
                refused = unfit
        if refused and not members:
            raise refused
        return _union(members)

    def _read_alias(self, alias: Any, args: tuple[Any, ...]) -> Converter:
        if alias not in self._known:
            self._known[alias] = Converter(str(alias), lambda *value: found.convert(*value), is_plain=True)
            self._known[alias] = found = self.read(alias.__value__[args] if args else alias.__value__)
        return self._known[alias]

    def _read_class(self, cls: Any, args: tuple[Any, ...]) -> Converter:
        full = f"{cls.__module__}.{cls.__qualname__}".removeprefix("builtins.")
        if issubclass(cls, enum.Enum):
            return _enum(cls)
        if callable(getattr(cls, "model_validate", None)) and callable(getattr(cls, "model_dump", None)):
            return _model(cls)
        if (names := _field_names(cls)) is not None:
            return self._read_fields(cls, args, names)
        if full in _READ_FROM:
            return _leaf(cls, read=cls, read_from=_READ_FROM[full])
        for base in (str, int, float):
            if issubclass(cls, base) or (base is str and full.partition(".")[0] in _KEPT_AS_TEXT):
                return _derived(cls, base)
        if hasattr(cls, "__get_pydantic_core_schema__") or _may_be_plain(cls):
            return _ANYTHING
        raise _Unfit(f"is annotated with {full}, and no such object can be made from stored data")

    def _read_fields(self, cls: Any, args: tuple[Any, ...], names: Iterable[str]) -> Converter:
        if (cls, args) in self._known:
            return self._known[cls, args]
        if cls is TaskResult:  # without success, there is no result
            args = tuple(arg | None for arg in args)
        hints, fields, defaults = self._hints(cls, args), dict[str, Converter](), dict[str, Any]()
        if issubclass(cls, dict):
            # A TypedDict does not know its required keys itself if its annotations are texts.
            known, own = {typing.Required: True, typing.NotRequired: False}, cast("Any", cls).__required_keys__
            required = [name for name, hint in hints.items() if known.get(typing.get_origin(hint), name in own)]
        else:
            named = [one for one in inspect.signature(cls).parameters.values() if one.kind not in _REST]
            defaults = {one.name: one.default for one in named}
            required = [name for name, default in defaults.items() if default is inspect.Parameter.empty]
            if missing := [name for name in required if name not in names]:
                raise _Unfit(f"is annotated with {cls.__qualname__}, which needs {missing[0]!r}, which is not a field")
        self._known[cls, args] = _record(cls, fields, required, defaults)
        for name in names:
            try:
                fields[name] = self.read(hints.get(name, Any), defaults.get(name, inspect.Parameter.empty))
            except _Unfit as unfit:
                del self._known[cls, args]
                unfit.path = f".{name}{unfit.path}"
                raise
        return self._known[cls, args]

    def _hints(self, cls: Any, args: tuple[Any, ...]) -> dict[str, Any]:
        """Return the annotations of a class and its bases, with type variables replaced."""
        hints: dict[str, Any] = {}
        variables = {cls: dict(zip(getattr(cls, "__parameters__", ()), args, strict=False))}
        for base in cls.__mro__:
            own = variables.get(base, {})
            for parent in vars(base).get("__orig_bases__", ()):
                kind, given = typing.get_origin(parent), [_filled(one, own) for one in typing.get_args(parent)]
                variables[kind] = dict(zip(getattr(kind, "__parameters__", ()), given, strict=False))
            module = vars(sys.modules.get(base.__module__, types))
            annotations: dict[str, Any] = {}
            with contextlib.suppress(NameError):  # from Python 3.14 on, of an import for type checkers
                annotations = inspect.get_annotations(base)
            for name, annotation in annotations.items():
                if name not in hints:
                    hints[name] = _filled(self.resolve(annotation, dict(vars(base)), module), own)
        return hints


_REST = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _field_names(cls: Any) -> Collection[str] | None:
    """Return the names of the fields of a dataclass, struct, named tuple or TypedDict."""
    if dataclasses.is_dataclass(cls):
        return [one.name for one in dataclasses.fields(cls)]
    if hasattr(cls, "__struct_fields__"):
        return cast("tuple[str, ...]", cls.__struct_fields__)
    if issubclass(cls, tuple):
        return getattr(cls, "_fields", None)
    return cls.__annotations__.keys() if issubclass(cls, dict) and hasattr(cls, "__total__") else None


def _may_be_plain(cls: Any) -> bool:
    """Whether a value from the codec may be one: an abstract class, a protocol, a subclass of a container."""
    try:
        return issubclass(cls, (dict, *_BUILTINS)) or any(issubclass(kind, cls) for kind in _PACKERS)
    except TypeError:  # a protocol that cannot be asked
        return True


def _filled(hint: Any, variables: Mapping[Any, Any]) -> Any:
    if isinstance(hint, TypeVar):
        return variables.get(hint, hint)
    parameters = getattr(hint, "__parameters__", ()) if typing.get_origin(hint) else ()
    return hint[tuple([variables.get(one, one) for one in parameters])] if parameters else hint


class Converters:
    """The converters of a task's parameters and result. `refusal`: why its arguments could never be rebuilt."""

    def __init__(self, task: str, function: Callable[..., Any], signature: inspect.Signature) -> None:
        self._task, self._function, self._signature = task, function, signature
        kinds = {one.kind: name for name, one in signature.parameters.items()}
        self._rest, self._named_rest = (kinds.get(kind, "") for kind in _REST)
        in_order = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        self._in_order = [name for name, one in signature.parameters.items() if one.kind in in_order]
        self._is_reported = False
        self._read()

    def _read(self) -> None:
        names, annotations = getattr(inspect.unwrap(self._function), "__globals__", {}), Annotations()
        self._all: dict[str, Converter] = {}  # by parameter
        self.refusal: str | None = None
        for name, one in self._signature.parameters.items():
            hint = Any if one.annotation is one.empty else annotations.resolve(one.annotation, names)
            try:
                self._all[name] = annotations.read(hint, () if one.kind in _REST else one.default)
            except _Unfit as unfit:
                why = "use a type that holds plain data, such as a dataclass, or give it a default"
                self.refusal = f"{self._task}: the parameter {name}{unfit.path} {unfit.why}: {why}"
            except Exception as error:  # a class that cannot be inspected
                annotations.unresolved.append(f"{hint!r} ({error})")
        self._needed = {name: one for name, one in self._all.items() if not one.is_plain}
        returned = self._signature.return_annotation
        hint = Any if returned is inspect.Signature.empty else annotations.resolve(returned, names)
        if typing.get_origin(hint) in (Awaitable, Coroutine):  # a plain function that returns an awaitable
            hint = typing.get_args(hint)[-1]
        self._returned = _ANYTHING
        with contextlib.suppress(Exception):  # a type that cannot be stored: the codec refuses the value
            self._returned = annotations.read(hint)
        self._unresolved = annotations.unresolved

    def _read_again(self) -> None:
        """Try again what could not be resolved at the registration: it may exist now."""
        self._read()
        if self._unresolved:
            logger.debug("%s: what is annotated so is not converted: %s", self._task, ", ".join(self._unresolved))
            self._unresolved = []

    @property
    def are_needed(self) -> bool:
        """Whether there is something to convert, or to resolve again."""
        return bool(self._needed or self._unresolved or not self._returned.is_plain)

    def arguments(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], *, loading: bool, every: bool = False
    ) -> tuple[list[Any], dict[str, Any]]:
        """Convert arguments to plain data or, if `loading`, to their annotated types; `every`: plain types, too.

        Raises:
            SerializationError: names the part that does not fit by its path.
            ConfigError: an annotation that could not be resolved at the registration is refused now.
        """
        if self._unresolved:
            self._read_again()
        if self.refusal is not None and not loading:
            raise ConfigError(self.refusal)
        converters, known = self._all if every else self._needed, self._signature.parameters
        names = itertools.chain(self._in_order, itertools.repeat(self._rest))
        return [
            self._argument(converters.get(name), name, value, loading) for name, value in zip(names, args, strict=False)
        ], {
            name: self._argument(converters.get(name if name in known else self._named_rest), name, value, loading)
            for name, value in kwargs.items()
        }

    def _argument(self, converter: Converter | None, name: str, value: Any, loading: bool) -> Any:
        try:
            return value if converter is None else _part(converter, value, loading, name)
        except _Unfit as unfit:
            with contextlib.suppress(SerializationError):
                if not loading and _has_placeholder(encode(value)):
                    return value  # checked when the result has replaced it
            raise SerializationError(f"an argument of {self._task}: {unfit.path} {unfit.why}") from unfit.__cause__

    def result(self, value: Any, *, loading: bool) -> Any:
        """Convert a result to plain data, or to its annotated type. A result that does not fit is not changed."""
        if self._unresolved:
            self._read_again()
        try:
            return value if self._returned.is_plain else _part(self._returned, value, loading, "")
        except _Unfit as unfit:
            if not self._is_reported:
                self._is_reported = True
                logger.warning("a result of %s does not fit its annotation, and is left as it is: it%s %s",
                               self._task, unfit.path, unfit.why)  # fmt: skip
            return value


# ---------------------------------------------------------------------------
# 5. Clock and retry policy
#
# The only place where time is read, so that a test can use a manual clock; and
# the rule that says when a failed attempt is retried.
# ---------------------------------------------------------------------------


class Clock:
    """The wall clock, for due times and records, and a clock that never jumps, for leases and waits."""

    def time(self) -> float:
        """Seconds since the epoch, by the clock of this host."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds since the boot, the same for all processes of a host. It stops while the host is suspended."""
        return time.monotonic()


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions:
    """The options of a task.

    The delay before retry n is min(max_delay, retry_delay * backoff**(n - 1)) seconds. With `jitter` it is chosen at
    random between 0 and that value. `retry_on` and `no_retry_on` are exception types. `timeout`: seconds for one
    attempt; after `soft_timeout` seconds, a CPU-bound task gets a SoftTimeoutError. A job with a lower `priority` runs
    first. `queue` None: `cpu` if CPU-bound, else `default`. `result_ttl`: seconds to keep the result; None: as set.
    `executor` "interpreter": a CPU-bound task runs in an interpreter inside the worker's process (from Python 3.14 on).
    `batch`: one call of the function gets the arguments of up to this many jobs, in a list; a job waits at most
    `linger` seconds for others. `limit`: the name of a limit of its jobs, see `Flowrra.limit`; or directly
    `concurrency`, `rate` and `burst`, of a limit that has the name of the task. `key`: a function of some or all of the
    task's arguments that returns a text or an int; the limit then holds for each key.
    """

    max_retries: int = 3
    retry_delay: float = 1.0
    backoff: float = 2.0
    max_delay: float = 3600.0
    jitter: bool = False
    retry_on: tuple[type[BaseException], ...] = (Exception,)
    no_retry_on: tuple[type[BaseException], ...] = ()
    timeout: float | None = None
    soft_timeout: float | None = None
    queue: str | None = None
    priority: int = 0
    cpu_bound: bool = False
    executor: Literal["process", "interpreter"] = "process"
    result_ttl: float | None = None
    batch: int | None = None
    linger: float = 0.1
    limit: str | None = None
    concurrency: int | None = None
    rate: str | None = None
    burst: int | None = None
    key: Callable[..., str | int] | None = None

    def __post_init__(self) -> None:
        _whole("max_retries", self.max_retries, least=0)
        _flag("jitter", self.jitter)
        _flag("cpu_bound", self.cpu_bound)
        if self.batch is not None and _whole("batch", self.batch, least=1) and self.cpu_bound:
            raise ConfigError("batch= and cpu_bound=True cannot be combined: submit lists of rows to a CPU-bound task")
        self._check_executor()
        self._check_limit()
        _whole("priority", self.priority)
        if _finite("backoff", self.backoff) < 0:
            raise ConfigError(f"backoff must be at least 0, not {self.backoff!r}")
        for name, least in _LEAST_SECONDS.items():
            if (value := getattr(self, name)) is not None or name not in ("timeout", "soft_timeout", "result_ttl"):
                object.__setattr__(self, name, _seconds(name, value, least=least))  # a float, also of a timedelta
        if self.queue is not None:
            check_queue(self.queue)
        for name in ("retry_on", "no_retry_on"):
            kinds = getattr(self, name) if isinstance(getattr(self, name), tuple) else (getattr(self, name),)
            object.__setattr__(self, name, kinds)
            for kind in kinds:
                if not (isinstance(kind, type) and issubclass(kind, BaseException)):
                    raise ConfigError(f"{name} takes exception types, not {kind!r}")

    def _check_limit(self) -> None:
        Limit(name="numbers", concurrency=self.concurrency, rate=self.rate, burst=self.burst)  # checks them
        if self.limit is not None:
            check_limit(self.limit)
            if self.has_own_limit:
                raise ConfigError(f"limit={self.limit!r} has its own numbers: give them to app.limit() or leave it out")
        if self.key is not None and not callable(self.key):
            raise ConfigError(
                f"key is a function of the task's arguments, not {self.key!r}: for one job use options(key=...)"
            )

    @property
    def has_own_limit(self) -> bool:
        """Whether the task has a limit of its own."""
        return not (self.concurrency is None and self.rate is None)

    def _check_executor(self) -> None:
        if self.executor not in ("process", "interpreter"):
            raise ConfigError(f"executor must be 'process' or 'interpreter', not {self.executor!r}")
        if self.executor == "interpreter" and not self.cpu_bound:
            raise ConfigError("executor='interpreter' is for CPU-bound tasks: add cpu_bound=True")
        if self.executor == "interpreter" and sys.version_info < (3, 14):
            version = ".".join(map(str, sys.version_info[:2]))
            raise ConfigError(f"executor='interpreter' needs Python 3.14, this is {version}: use executor='process'")

    @property
    def effective_queue(self) -> str:
        """The queue of the task's jobs."""
        return self.queue or ("cpu" if self.cpu_bound else "default")


_LEAST_SECONDS: Mapping[str, float] = {
    **dict.fromkeys(("timeout", "soft_timeout"), 0.001),
    **dict.fromkeys(("retry_delay", "max_delay", "result_ttl", "linger"), 0.0),
}


def is_retryable(options: TaskOptions, error: BaseException) -> bool:
    """Whether `error` may lead to another attempt."""
    if is_kind(error, ArgumentsError, ResultError):
        return False
    if is_kind(error, Retry):
        return True
    if is_kind(error, *options.no_retry_on):
        return False
    timed_out = isinstance(error, TaskTimeoutError) and error.ends_attempt
    return timed_out or is_kind(error, *options.retry_on, ProcessDiedError, SoftTimeoutError)


def is_kind(error: BaseException, *types: type[BaseException]) -> bool:
    """isinstance(), also for an exception of another process, where only the names of the types are known."""
    if isinstance(error, RemoteError):
        return any(kind_name(kind) in error.kinds for kind in types)
    return isinstance(error, types)


def asked_delay(error: BaseException, now: float) -> float | None:
    """Return the delay that a Retry or Snooze asks for; None if it names none, or a subclass set an invalid one."""
    delay = error.delay if isinstance(error, Retry | Snooze | RemoteError) else None
    with contextlib.suppress(ConfigError):
        if isinstance(error, Snooze) and error.until is not None:
            return max(0.0, _timestamp("until", error.until) - now)
        return None if delay is None else _seconds("delay", delay)
    return None


def kind_name(kind: type) -> str:
    """Return a type as module and qualified name, the same in the worker and in the processes of its executor."""
    return f"{_module_of(kind)}.{kind.__qualname__}"


MAIN_IN_CHILD = "__mp_main__"  # the main script's name in a process of the executor, as `multiprocessing` calls it


def _module_of(thing: Any) -> str:
    """Return the module of a function or a type. For the main script, return the name by which it can be imported."""
    module = cast("str", thing.__module__)
    if _is_in_main(thing):
        name, file = _main_script()
        module = name or os.path.splitext(os.path.basename(file or module))[0]
    return module.removesuffix(".__main__")


def _is_in_main(thing: Any) -> bool:
    return thing.__module__ in ("__main__", MAIN_IN_CHILD)


def _main_script() -> tuple[str | None, str]:
    """Return its import name (None for a file, a folder or an interactive session), and its file."""
    main = sys.modules.get(MAIN_IN_CHILD) or sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    return None if spec is None or spec.name == "__main__" else spec.name, getattr(main, "__file__", None) or ""


# Not the functions of `random`: they would change the numbers of a program that has seeded them, as many tests do,
# and a forked process would repeat those of its parent.
_chance = random.SystemRandom()


def jittered(seconds: float) -> float:
    """Return between half and all of `seconds`, at random, so that clients that wait do not come back at once."""
    return seconds * _chance.uniform(0.5, 1.0)


def retry_delay(options: TaskOptions, retry: int, draw: Callable[[], float] = _chance.random) -> float:
    """Return the seconds to wait before retry number `retry` (the first is 1). `draw` returns numbers in [0, 1)."""
    try:
        delay = min(options.max_delay, options.retry_delay * options.backoff ** (retry - 1))
    except OverflowError:
        delay = options.max_delay if options.retry_delay else 0.0
    return delay * draw() if options.jitter else delay


def duration(seconds: float) -> str:
    """Return a duration as text: 0.25 s, 42 s, 4 m 10 s, 3 h 5 m, 2 d 1 h."""
    if seconds < 10:
        return f"{round(max(0.0, seconds), 3):.2g} s"
    for size, unit, small, small_unit in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "m"), (60, "m", 1, "s")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit} {int(seconds % size // small)} {small_unit}"
    return f"{seconds:.0f} s"


# ---------------------------------------------------------------------------
# 6. Cron
#
# When a cron expression is due, with time zones and clock changes. This section
# does not know jobs, schedules and loops. The reference is Debian's cron:
# crontab(5), and its entry.c and cron.c.
#
# A field becomes one int with a bit for each value. First, a match is found on
# the wall clock alone; then clock changes are applied.
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
    """Return the values of a field's text as bits. `name` is the text that H hashes."""
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
    """Return the values of `*`, `a` or `a-b`, each with or without a step."""
    found = _CRON_ITEM.fullmatch(item)
    if not found:
        raise ValueError(f"{item!r} is not a value, a range or a step")
    star, first, last, step = found.groups()
    least, most = CRON_FIELDS[field]
    low = least if star else _cron_value(field, first)
    high = _cron_value(field, last) if last else most if star or step else low
    return _cron_range(field, low, high, step)


def _cron_range(field: str, low: int, high: int, step: str | None) -> list[int]:
    """Return the values from `low` to `high`. If `low` is greater, the range continues at the field's first value."""
    if step is not None and not int(step):
        raise ValueError("a step must be at least 1")
    least, most = CRON_FIELDS[field]
    size = most - least + 1
    length = high - low if low <= high else (high - low) % size
    return [(value - least) % size + least for value in range(low, low + length + 1, int(step or 1))]


def _cron_value(field: str, text: str) -> int:
    """Return the value of a number or name. A Sunday written as 7 stays 7, so that 5-7 is not a descending range."""
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
    """Return the values of H in any field, L and W in days of the month, L and # in days of the week; else nothing."""
    if item[:1] == "h" and (found := _CRON_HASH.fullmatch(item)):
        return _cron_hashed(field, *found.groups(), name=name)
    if field == "day-of-month" and (found := _CRON_DAY.fullmatch(item)):
        if found[1]:
            return [NEAREST + _cron_value(field, found[1])]
        return [LAST_DAY if item == "l" else LAST_WORKDAY]
    if field == "day-of-week" and (found := _CRON_WEEKDAY.fullmatch(item)):
        day, week = _cron_value(field, found[1]) % 7, int(found[2] or 0)
        if found[2] and not 1 <= week <= 5:
            raise ValueError(f"{week} is not in 1-5, the weeks that # accepts")
        return [7 * (week or LAST_WEEK) + day]
    return []


def _cron_hashed(field: str, low: str | None, high: str | None, step: str | None, *, name: str | None) -> list[int]:
    """Return the values of H: one value, or its steps from a first one, by a stable hash of the schedule's name."""
    import hashlib

    if name is None:
        raise ValueError("H takes its values from the name of the schedule, which has none: pass name=")
    least, most = (1, 28) if field == "day-of-month" else CRON_FIELDS[field]  # 28: every month has it
    if low is not None and high is not None:
        least, most = _cron_value(field, low), _cron_value(field, high)
    if least > most:
        raise ValueError(f"the range of H must go up, not {least}-{most}")
    choices = most - least + 1 if step is None else max(1, min(int(step), most - least + 1))
    digest = hashlib.blake2b(f"{field} {name}".encode(), digest_size=8).digest()
    first = least + int.from_bytes(digest) % choices
    return _cron_range(field, first, first if step is None else most, step)


def cron_values(bits: int) -> list[int]:
    """Return the values of a field, in order."""
    values = []
    while bits:
        values.append((bits & -bits).bit_length() - 1)
        bits &= bits - 1
    return values


@functools.lru_cache(maxsize=1024)
def _first_from(bits: int) -> tuple[int | None, ...]:
    """Return, for each i from 0 to 60, the first value at or after i, or None."""
    table: list[int | None] = []
    for value in cron_values(bits):
        table += [value] * (value + 1 - len(table))
    return *table, *[None] * (61 - len(table))


@functools.lru_cache(maxsize=4096)
def _days_in_month(days: int, weekdays: int, both: bool, first: int, length: int) -> int:
    """Return the matching days of a month of `length` days whose first day is the weekday `first` (0 is Sunday)."""
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
    """The matching days of each year, computed on first use: bit 32 * month + day."""

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
        """Return the first matching day after this one."""
        begin = 32 * month + day + 1
        while not (days := self[year] >> begin):
            year, begin = year + 1, 0
            if year > self._last_year:
                return None
        month, day = divmod(begin + (days & -days).bit_length() - 1, 32)
        return year, month, day


@functools.lru_cache(maxsize=1024)
def _days_of(days: int, months: int, weekdays: int, years: int, both: bool) -> _Days | None:
    """Return the calendar of these fields, shared by all schedules that have them; None if no day ever matches."""
    found = _Days(days, months, weekdays, years, both)
    # 28 years hold each kind of year: leap or not, beginning on each weekday.
    return found if any(found[year] for year in cron_values(years) or range(2000, 2028)) else None


class ClockChange(NamedTuple):
    """A clock change: its moment in UTC, and the zone's wall time before and after it (all naive).

    A change by 3 h or more (backwards: by more than 3 h) is not daylight saving time; fixed times are not adjusted.
    """

    at: dt.datetime
    left: dt.datetime
    entered: dt.datetime
    moved_to: dt.datetime | None  # if it is put forward: when fixed times in the gap run, as the clock shows it
    is_repeat: bool  # if it is put back: fixed times that the clock shows again have run before
    low: dt.datetime  # from here on, and up to `high`, in the zone, times are disturbed: they compare as they read
    high: dt.datetime


class Zone(dict[int, tuple[ClockChange, ...]]):
    """A time zone, with the clock changes of each year and the days around it, computed on first use."""

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
        """Return the clock changes around a moment (naive, UTC): the last before or at it, and the first after it."""
        behind = max((change for change in self[moment.year] if change.at <= moment), default=None)
        return behind, min((change for change in self[moment.year] if change.at > moment), default=None)

    def offset(self, moment: dt.datetime) -> dt.timedelta:
        """Return the offset from UTC at a naive moment in UTC."""
        return self.aware(moment).utcoffset() or dt.timedelta(0)

    def aware(self, moment: dt.datetime) -> dt.datetime:
        """Return the zone's time at a naive moment in UTC."""
        return self.tzinfo.fromutc(moment.replace(tzinfo=self.tzinfo))


_CATCH_UP = dt.timedelta(hours=3)  # fixed times are adjusted for clock changes up to this, as in Debian's cron
_EARLIEST = dt.datetime(1, 1, 5, tzinfo=dt.UTC)  # far enough from the calendar's end to be moved into any zone
_LATEST = dt.datetime.max.replace(tzinfo=dt.UTC)
_MINUTE = dt.timedelta(minutes=1)
_SECOND = dt.timedelta(seconds=1)
_INSTANT = dt.timedelta(microseconds=1)


def _begin_of(year: int) -> dt.datetime:
    """Return the naive start of the year; for the year 10000, the last possible moment."""
    return (dt.datetime(year, 1, 1, tzinfo=dt.UTC) if year <= dt.MAXYEAR else _LATEST).replace(tzinfo=None)


def _zone_of(tz: object) -> Zone:
    if isinstance(tz, str):
        return _named_zone(tz)
    if not isinstance(tz, dt.tzinfo):
        raise ConfigError(f"tz must be a time zone's key or a tzinfo, not {tz!r}")
    # A zone of pytz has one tzinfo for each offset, and cannot be set on a datetime.
    if dt.datetime(2000, 1, 1, tzinfo=dt.UTC).astimezone(tz).tzinfo is not tz:
        raise ConfigError(f"{tz!r} is not a tzinfo that a datetime can use: give its key, such as 'Europe/Riga'")
    return Zone(tz)


@functools.lru_cache(maxsize=1024)
def _named_zone(key: str) -> Zone:
    """Return the zone of a key. UTC and offsets such as +02:00 need no zone database."""
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
            f"no time zone database to look {key!r} up in: pip install tzdata (UTC and '+02:00' do not need it)"
        ) from None


def _cron_texts(expr: object) -> list[str]:
    """Return the seven fields of an expression; the year is `*` if it has none."""
    if not isinstance(expr, str):
        raise ConfigError(f"a cron expression is a text, not {expr!r}")
    texts = _CRON_TEXTS.findall(expr)
    if len(texts) == 1 and expr.isascii():
        name = texts[0].lower()
        if name == "@reboot":
            raise ConfigError("@reboot is not a time: put what runs at the start into @app.lifespan")
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
    """The schedule does not fire after (or before) that moment."""


class Cron:
    """A cron expression in a time zone, by default UTC: `Cron("30 9 * * mon-fri", "Europe/Riga")`.

    Five fields: minute, hour, day of month, month, day of week. Six fields: a second comes first. Seven fields: a year
    (1970-2199) comes last. `tz` is a key or a tzinfo. H chooses values from a hash of `name`: the same name gives the
    same times. A day matches if day-of-month or day-of-week matches; both must match if one of them begins with `*`, or
    with `both_days`.

    A naive datetime is the wall clock of the zone. Fires are aware, in the schedule's own tzinfo. If the clock is put
    forward (by less than 3 h), a time in the gap fires at the first minute after the gap. If it is put back (by up to 3
    h), a repeated time fires only the first time. A schedule whose second, minute or hour begins with `*` follows the
    clock: it does not fire in a gap, and fires in both passes of a repeated hour.

    Immutable. Two are equal if their fields and zones are equal.

    Raises:
        ConfigError: (a ValueError) the expression is wrong or never fires, or the zone does not exist.
    """

    # Brokers and extras may read: `fields`, one int for each field with a bit for each value (year: 0 for any);
    # `is_fixed`, whether fires are adjusted for clock changes; `zone`.
    __slots__ = (
        *("_days", "_expr", "_first", "_hours", "_minutes", "_seconds", "_tzinfo"),
        *("both_days", "fields", "is_fixed", "zone"),
    )

    def __init__(
        self, expr: str, tz: str | dt.tzinfo = "UTC", *, name: str | None = None, both_days: bool = False
    ) -> None:
        texts = _cron_texts(expr)
        salt = name if "h" in expr.lower() else None  # otherwise the cache would contain the fields once for each name
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
        """The key of the zone, or str() of a tzinfo that has no key."""
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
        """Return the first fire after `after`.

        Raises:
            ValueError: (NoFire) there is none before the year 10000.
        """
        # The usual case: no clock change affects `after` or the match. A change between the two has no effect.
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
        """Iterate over the fires after `after`, in order. The iteration ends if the schedule ends."""
        with contextlib.suppress(NoFire):
            while True:
                after = self.next(after)
                yield after

    def local(self, moment: dt.datetime) -> dt.datetime:
        """Convert the moment to the schedule's zone. A naive one is the wall clock of that zone."""
        if moment.tzinfo is None:
            return moment.replace(tzinfo=self._tzinfo, fold=0)
        try:
            return moment.astimezone(self._tzinfo)
        except OverflowError:
            raise NoFire(f"{moment} is not within the years 1 to 9999 in {self.tz}") from None

    def _later(self, after: dt.datetime) -> dt.datetime | None:
        """Return the first match after `after` on a wall clock that never changes, with the same tzinfo."""
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
        """Return the first match at or after `wall` (naive) on a wall clock that never changes."""
        return self._later(wall - _INSTANT)

    def _next_carefully(self, after: dt.datetime) -> dt.datetime:
        """Compute `next` from one clock change to the next one: between two changes, a wall time is one moment."""
        moment = after.astimezone(dt.UTC).replace(tzinfo=None) + _INSTANT  # the earliest possible fire
        while True:
            behind, ahead = self.zone.around(moment)
            end = ahead.at if ahead else _begin_of(moment.year + 1)
            offset = self.zone.offset(moment)
            found = self._from(moment + offset, behind)
            if found is not None and found - offset < end:
                return self.zone.aware(found - offset)
            if found is None and ahead is None:  # and no clock change repeats a time
                raise NoFire(f"{self!r} does not fire after {after}")
            moment = end

    def _from(self, wall: dt.datetime, change: ClockChange | None) -> dt.datetime | None:
        """Return the first fire at or after `wall` (naive) on a clock whose latest change was this one."""
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
        """Return the last fire before `before`.

        Raises:
            ValueError: (NoFire) there is none since the year 1.
        """
        limit = low = self._utc(before)
        step, found = _MINUTE, None
        # Search further back each time until a fire comes before the limit; then bisect.
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
        """Return the moment in UTC, limited to the years that `previous` searches."""
        try:
            return max(self.local(moment).astimezone(dt.UTC), _EARLIEST)
        except OverflowError:
            return _EARLIEST if moment.year == dt.MINYEAR else _LATEST

    def _fire(self, after: dt.datetime, limit: dt.datetime) -> dt.datetime | None:
        """Return the next fire in UTC, if there is one before `limit`."""
        try:
            found = self.next(after).astimezone(dt.UTC)
        except (NoFire, OverflowError):
            return None
        return found if found < limit else None

    def matches(self, moment: dt.datetime) -> bool:
        """Whether it fires in the minute of `moment`; if the expression has seconds, in that second."""
        begin, length = self._utc(moment).replace(microsecond=0), _SECOND
        if self.fields[0] == 1:
            begin, length = begin.replace(second=0), _MINUTE
        return self._fire(begin - _INSTANT, begin + length) is not None

    def explain(self) -> str:
        """Return the schedule in words: `At 09:00 on Monday through Friday, Europe/Riga`.

        Raises:
            ConfigError: flowrra_extras is missing, because this is a copy of the single file.
        """
        return cast("str", import_extra("flowrra_extras.cron_words", "explain", "cron is not put in words here")(self))


# ---------------------------------------------------------------------------
# 7. Rules
#
# All changes of jobs, written once: moves of one job, and walks over several
# jobs that one call concerns. No clock, no store and no loop: a broker finds
# jobs and writes the changes that are made here. It decides nothing itself.
# ---------------------------------------------------------------------------

EXPIRED = "it expired before its first attempt began"
BY_HAND = "it was cancelled"
KILLED = f"killed its worker {MAX_CRASHES} times"
WORKER_LOST = "its worker died or lost its lease"
LEFT = "its worker left without settling it"


def orphaned(parent: str, status: TaskStatus) -> str:
    """Return the reason of a job that is cancelled because its parent did not succeed."""
    return f"its parent {parent} ended as {status}"


def unknown_job(task_id: str) -> TaskNotFoundError:
    """Return the error for an id that is not in the store."""
    return TaskNotFoundError(f"no job {str(task_id)!r} is known here: never submitted, or purged after its retention")


# Moves of one job ------------------------------------------------------------------------------
#
# Each one changes the job that it is given and returns True, or returns False and changes nothing: the move is not
# allowed from this state. Callers that need the old job copy it first; a claim of 100 jobs cannot afford 100 copies.


def _move(job: Job, status: TaskStatus) -> None:
    if status is not job.status and status not in TRANSITIONS[job.status]:
        raise AssertionError(f"job {job.id} cannot go from {job.status} to {status}")
    job.status = status


def first_status(due: float | None, now: float, limit: str | None = None) -> TaskStatus:
    """Return the state of a job that waits for no other job: SCHEDULED until it is due, then PENDING.

    A job of a limit is not PENDING yet, but BLOCKED, until `admit` lets it run.
    """
    if due is not None and due > now:
        return SCHEDULED
    return PENDING if limit is None else BLOCKED


def _make_ready(job: Job) -> None:
    """Make a job PENDING or, if it has a limit, let it wait for that. See `admit`."""
    _move(job, PENDING if job.limit is None else BLOCKED)
    job.place = 0


def place(job: Job, parents: Sequence[Job | None], now: float, retention: BackendConfig) -> None:
    """Put a job into the state in which it waits: for its parents, its due time, or a worker. Cancel an orphan.

    A parent that is None was purged: it had succeeded, otherwise this job would have been cancelled.
    """
    if not parents:
        is_plain = job.due is None and job.limit is None
        job.status, job.worker, job.waits = PENDING if is_plain else first_status(job.due, now, job.limit), None, 0
        return
    known = [parent for parent in parents if parent is not None]
    job.status, job.worker = BLOCKED, None
    job.waits = sum(parent.status in UNFINISHED for parent in known)
    if lost := next((parent for parent in known if _is_lost_to(job, parent)), None):
        finish(job, CANCELLED, now, retention.failed_ttl, orphaned(lost.id, lost.status))
    elif not job.waits:
        _move(job, first_status(job.due, now, job.limit))


def _is_lost_to(child: Job, parent: Job) -> bool:
    """Whether the child can no longer run, because that parent ended without success."""
    return parent.status in REQUEUABLE and parent.id not in child.tolerates


def is_expired(job: Job, now: float) -> bool:
    """Whether the job may no longer start. `expires` is not checked after an attempt has started to run."""
    return job.expires is not None and job.expires <= now and job.status in NOT_BEGUN


NOT_BEGUN = frozenset((SCHEDULED, BLOCKED, PENDING))


def start(job: Job, worker: str, now: float) -> bool:
    """Start an attempt: assign the job to a worker."""
    if job.status is not PENDING or (job.expires is not None and is_expired(job, now)):
        return False
    job.status = RUNNING  # without _move(), for speed: a start and a success happen for every job
    job.attempt += 1
    job.worker = worker
    # The clocks of hosts differ, so a claim may be earlier than the push of its job.
    job.started = now if now > job.submitted else job.submitted
    return True


def settle_one(job: Job, outcome: Outcome, now: float, retention: BackendConfig) -> bool:
    """Apply an outcome to a job. False: the job was rescued, or deleted and pushed again, during the attempt.

    Id and attempt cannot distinguish a job from a later one with the same id. `seq`, which no store repeats, can.
    """
    if job.status is not RUNNING or job.attempt != outcome.attempt or job.seq != outcome.job.seq:
        return False
    if outcome.status is SUCCESS:
        job.status = SUCCESS  # as in `start`, what finish() does
        job.finished, job.result, job.error, job.traceback, job.waits = now, outcome.result, None, None, 0
        job.purge_at = now + (retention.result_ttl if outcome.keep is None else outcome.keep)
        return True
    if outcome.status is RUNNING:
        if outcome.step is None:  # steps are stored apart
            job.progress = outcome.progress
        return True
    failed = outcome.status is FAILED or outcome.status is RETRYING
    job.failures += failed
    if outcome.status in FINISHED:
        ttl = retention.failed_ttl if outcome.keep is None else outcome.keep
        finish(job, outcome.status, now, ttl, outcome.error, outcome.traceback)
        return True
    if job.crashes and (failed or outcome.ending == "snooze"):
        job.crashes -= 1  # it ran alone, and ended without killing its worker
    if outcome.begun:
        job.expires = None
    job.due = outcome.due
    _end_attempt(job, outcome.ending, now, outcome.error, outcome.traceback)
    if job.cancel_requested:
        finish(job, CANCELLED, now, retention.failed_ttl, BY_HAND)
    elif outcome.status is PENDING:
        _make_ready(job)
    else:
        _move(job, outcome.status)
    return True


def rescue_one(job: Job, now: float, retention: BackendConfig, *, crashed: bool) -> bool:
    """Take a running job from its worker, because the worker has died or left."""
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
        _make_ready(job)
    return True


def promote_one(job: Job, now: float) -> bool:
    """Make a job ready that is due."""
    if job.status not in (SCHEDULED, RETRYING) or (job.due or 0.0) > now:
        return False
    _make_ready(job)
    return True


def expire_one(job: Job, now: float, retention: BackendConfig) -> bool:
    """End a job that did not start before it expired."""
    if not is_expired(job, now):
        return False
    finish(job, CANCELLED, now, retention.failed_ttl, EXPIRED)
    return True


def cancel_one(job: Job, by: str | None, now: float, retention: BackendConfig) -> bool:
    """End a job that waits. If it runs, request its worker to end it."""
    if job.status in FINISHED:
        return False
    job.history = noted(job, by, "cancelled", now)
    if job.status is RUNNING:
        job.cancel_requested = True
    else:
        finish(job, CANCELLED, now, retention.failed_ttl, BY_HAND)
    return True


def requeue_one(job: Job, parents: Sequence[Job | None], by: str | None, now: float, retention: BackendConfig) -> bool:
    """Restart a failed or cancelled job with its failures and crashes reset, unless a parent is failed or cancelled."""
    if job.status not in REQUEUABLE or any(parent and _is_lost_to(job, parent) for parent in parents):
        return False
    _archive(job, _ENDING_OF[job.status])
    job.history = noted(job, by, "requeued", now)
    job.failures = job.crashes = 0
    job.error = job.traceback = job.due = job.expires = None
    job.cancel_requested = False
    place(job, parents, now, retention)
    return True


def replace_one(job: Job, new: Job, conflict: Conflict, now: float) -> bool:
    """Give a job that has not started the arguments of a new job of its task, and its due time if it is postponed."""
    if job.task != new.task or job.status not in NOT_BEGUN or job.attempt or job.worker is not None:
        return False
    job.args, job.kwargs, job.payload = new.args, new.kwargs, new.payload
    has_moved = (job.limit, job.key) != (new.limit, new.key)
    waits = job.status is BLOCKED and not awaits_limit(job)
    job.limit, job.key = new.limit, new.key
    if conflict.how == "postpone":
        latest = math.inf if conflict.max_wait is None else job.submitted + conflict.max_wait
        job.due = min(now if new.due is None else new.due, latest)
    if not waits and (has_moved or conflict.how == "postpone"):
        status = first_status(job.due, now, job.limit)
        if has_moved or (job.status, status) != (PENDING, BLOCKED):  # else the limit has let it run
            _move(job, status)
            job.place = 0
    return True


def hold_one(job: Job, by: str) -> bool:
    """Keep a waiting job from running. The hold counts as one more thing that it waits for."""
    if job.status is RUNNING or job.status in FINISHED:
        return False
    if job.worker is None:
        _move(job, BLOCKED)
        job.worker, job.waits = by, job.waits + 1
    return job.worker == by


def unhold_one(job: Job, parents: Sequence[Job | None], by: str, now: float, retention: BackendConfig) -> bool:
    """End a hold: the job checks its parents again."""
    if not is_held(job, by):
        return False
    place(job, parents, now, retention)
    return True


def is_held(job: Job, by: str) -> bool:
    """Whether `by` holds the job."""
    return job.status is BLOCKED and job.worker == by


def parent_ended(child: Job, now: float) -> bool:
    """Let a child continue unless it waits for more. A held child counts its parents again when its hold ends."""
    if child.status is not BLOCKED or child.worker is not None or awaits_limit(child):
        return False
    child.waits -= 1
    if child.waits <= 0:
        child.waits = 0
        _move(child, first_status(child.due, now, child.limit))
    return True


def parent_failed(child: Job, parent: Job, now: float, retention: BackendConfig) -> bool:
    """Cancel a child of a parent that ended without success. A held child checks this when its hold ends."""
    if child.status is not BLOCKED or child.worker is not None or awaits_limit(child):
        return False
    finish(child, CANCELLED, now, retention.failed_ttl, orphaned(parent.id, parent.status))
    return True


def admit_one(job: Job) -> bool:
    """Let a job that waits for its limit run: it takes a place of the limit."""
    if not awaits_limit(job):
        return False
    _move(job, PENDING)
    job.place = 0
    return True


def withdraw_one(job: Job) -> bool:
    """Let a job that holds a place of its limit, and does not run, wait for one again."""
    if job.status is not PENDING or job.limit is None:
        return False
    _make_ready(job)
    return True


def finish(
    job: Job, status: TaskStatus, now: float, ttl: float, error: str | None, traceback: str | None = None
) -> None:
    """End a job. Nothing else does. Only a success has no error text: stores find the other endings by it."""
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
    """Return the history of `job` with a note of an action; without a note if nobody is named."""
    if by is None:
        return job.history
    return (*job.history[1 - HISTORY_LIMIT :], Attempt(job.attempt, by, now, now, "note", action))


def recorded(result: TaskResult[Any], retention: BackendConfig) -> Job:
    """Make a finished job for a result that came from another store: in no queue, and without arguments."""
    job = Job(result.task_id, result.task, queue="", payload=NO_ARGUMENTS, status=result.status)
    job.submitted, job.attempt, job.started = result.submitted, result.attempts, result.started
    job.finished, job.result, job.progress = result.finished, result.result, result.progress
    job.purge_at = (result.finished or 0.0) + retention.ttl(result.status)
    job.error = result.error if result.is_success else result.error or ""
    job.traceback = result.traceback
    return job


# Leases ----------------------------------------------------------------------------------------


class Lease(NamedTuple):
    """The right of a worker to the jobs that it claimed, on the store's clock. `length` is in seconds.

    `graced`: the lease is valid because it was renewed once on the worker's behalf, not by a heartbeat of the worker.
    """

    until: float
    length: float
    graced: bool = False


def judge_leases(
    others: Mapping[str, Lease], mine: Lease | None, clock: float, *, is_new: bool = False
) -> tuple[list[str], list[str]]:
    """Return, of other workers that have missed a heartbeat, those that are dead and those that get one more lease.

    A heartbeat is missed half a lease after the last one (a lease is at least two heartbeats). `mine` is the lease of
    the worker that asks. If three quarters of it are over, or there is none, the store may have been unreachable for
    all workers, so none is declared dead. Otherwise, another worker is dead if its lease has ended, and it had already
    missed a heartbeat at the last one of the worker that asks. `is_new`: the worker that asks has just started; it
    declares all whose leases have ended dead, so that jobs do not wait after a restart. One more lease is given once,
    until the next heartbeat. Otherwise, a worker that is sometimes late would keep the leases of dead workers valid.
    """
    is_late = mine is not None and mine.until - mine.length / 4 <= clock
    unheard = math.inf if mine is None and is_new else -math.inf
    heard = unheard if mine is None or is_late else mine.until - mine.length
    # A lease that ends later than any lease can is from an earlier boot.
    ended = {w: one for w, one in others.items() if not clock < one.until <= clock + one.length + 1.0}
    dead = [w for w, (until, length, _) in ended.items() if until > clock or until - length / 2 <= heard]
    return dead, [w for w, one in (others if is_late else ended).items() if not one.graced and w not in dead]


# Walks over several jobs -----------------------------------------------------------------------
#
# A walk is a generator: it yields what it must find, and is sent the jobs; what it wants to write it leaves in its
# unit, which the store applies all or none when the walk has returned. So the same code runs on a store that is read
# under a lock (memory, SQLite: `drive`) and on one that is asked over a network (PostgreSQL, Redis: `drive_async`).


class Jobs(NamedTuple):
    """Find the jobs with these ids."""

    ids: Sequence[str]


class Children(NamedTuple):
    """Find the blocked jobs that have one of these as a parent."""

    of: Sequence[str]


class Holders(NamedTuple):
    """Find the unfinished jobs with these unique keys."""

    keys: Sequence[str]


class Running(NamedTuple):
    """Find the jobs that these workers are running."""

    workers: Sequence[str]


class Expired(NamedTuple):
    """Find up to `limit` jobs that `is_expired`, by (expires, seq)."""

    now: float
    limit: int


class LimitKeys(NamedTuple):
    """Find the states of these limit keys, one LimitKey for each. A walk asks once, with the names in order.

    `own`: those for which jobs of the unit itself wait. Of the others, a store need not count the running and pending
    jobs if no job waits there.
    """

    names: Sequence[str]
    own: frozenset[str] = frozenset()


class WaitingFor(NamedTuple):
    """Find jobs of each of these keys that await their limit (`awaits_limit`), up to its number, by (priority, seq).

    They are found as `LimitWaiter`. A walk asks for them last.
    """

    most: Mapping[str, int]


class Admitted(NamedTuple):
    """Find the PENDING jobs of these limit keys."""

    names: Sequence[str]


class EventWaiters(NamedTuple):
    """Find the jobs after which the steps of these events are named."""

    events: Sequence[str]


class DueKeys(NamedTuple):
    """Find the names of up to `limit` limit keys whose rows are due at `now`."""

    now: float
    limit: int


@dataclass(slots=True)
class LimitWaiter:
    """A job that awaits its limit, and the limit key. `place`: that of the job when it is admitted."""

    name: str
    id: str
    queue: str
    priority: int
    seq: int
    place: int = 0

    @classmethod
    def of(cls, job: Job) -> LimitWaiter:
        """Return a job as a walk takes it. A new one, without `seq`, is behind the others."""
        return cls(limit_key(job), job.id, job.queue, job.priority, job.seq or sys.maxsize)


Find = Jobs | Children | Holders | Running | Expired | EventWaiters | LimitKeys | WaitingFor | Admitted | DueKeys
Walk = Generator[Find, list[Any], T]

_job_values = operator.attrgetter(*Job.__slots__)


def copy_of(job: Job) -> Job:
    """Return another job with the same values. Takes 1 us; dataclasses.replace() takes 5.6 us."""
    return Job(*_job_values(job))


class Unit:
    """What one call has read and will write. Its reads include its own writes.

    `found`: the jobs as stored, None for an unknown id. `jobs`: copies of them, and new jobs, as they will be. Those in
    `changed` are written, those in `replaced` with new arguments and limit keys. `endings`: the changed jobs that ended
    without a report of a worker, for `Notices.endings`.

    `steps`: finished steps to store, each with its job, whose row need not change. A step replaces the one of the same
    name and takes its place. No rule reads steps, so the cost of a step does not grow with their number.

    Of limits: `touched`: for `admit`, the limit key of each job that the store has moved itself. Written are `limits`,
    with all limit keys of each that have waiting jobs becoming due `now`; the rows of `changed_keys`; for those in
    `placed`, in this order, the next higher `place` of their queue; and then the jobs in `admitted`, which are not in
    `changed`: by `admit_one`, with that place. `timed`: queues whose workers are to be woken, as the next moment at
    which something is due has changed.
    """

    def __init__(self, now: float, retention: BackendConfig, touched: Iterable[str] = ()) -> None:
        self.now = now
        self.retention = retention
        self.moved = len(moved := list(touched))  # jobs
        self.touched = set(moved)
        self.limit_keys: dict[str, LimitKey] = {}
        self.limits: list[Limit] = []
        self.admitted: list[LimitWaiter] = []
        self.placed: list[Job | LimitWaiter] = []
        self.timed: dict[str, None] = {}
        self._as_read: dict[str, tuple[int, int, tuple[Any, ...]]] = {}  # running, pending, row
        self.found: dict[str, Job | None] = {}
        self.jobs: dict[str, Job] = {}
        self.changed: dict[str, None] = {}
        self.replaced: set[str] = set()
        self.steps: list[tuple[Job, Step]] = []
        self.endings: list[Job] = []
        self.ended: list[Job] = []  # whose children have not been looked at
        self.blocked: list[Job] = []  # changed jobs that wait, which a find of children may not return

    def find(self, what: Find) -> Walk[list[Job]]:
        """Ask the store for jobs. Return copies, which a rule may change."""
        return [self._copy(job) for job in (yield what)]

    def _copy(self, job: Job) -> Job:
        if self.found.get(job.id) is None:
            self.found[job.id] = job
            self.jobs[job.id] = copy_of(job)
        return self.jobs[job.id]

    def get(self, ids: Iterable[str]) -> Walk[list[Job | None]]:
        """Return the jobs in the order of the ids; None for an unknown id."""
        ids = list(ids)
        if missing := [task_id for task_id in dict.fromkeys(ids) if task_id not in self.found]:
            yield from self.find(Jobs(missing))
            for task_id in missing:
                self.found.setdefault(task_id, None)
        return [self.jobs.get(task_id) for task_id in ids]

    def write(self, job: Job, moved: bool = True, *, is_reported: bool = False) -> bool:
        """Mark a job to be written if a rule changed it; return whether. `is_reported`: a worker reports its end."""
        if moved:
            self.jobs[job.id] = job
            self.changed[job.id] = None
            if job.status in FINISHED:
                self.ended.append(job)
                if not is_reported:
                    self.endings.append(job)
            elif job.status is BLOCKED and job.parents:
                self.blocked.append(job)
        return moved

    def changes(self) -> list[tuple[Job | None, Job]]:
        """Return each job to write: as it was (None if it is new), and as it will be."""
        return [(self.found.get(task_id), self.jobs[task_id]) for task_id in self.changed]

    def read_limit_keys(self, names: Iterable[str]) -> Walk[list[LimitKey]]:
        """Return the states of limit keys, with the changes of this unit counted in."""
        wanted = sorted(names)
        if missing := [name for name in wanted if name not in self.limit_keys]:
            waiting = (self.jobs[task_id] for task_id in self.changed)
            own = frozenset(limit_key(job) for job in waiting if awaits_limit(job))
            for state in (yield LimitKeys(missing, own)):
                self.limit_keys[state.name] = state
                self._as_read[state.name] = state.running, state.pending, state.row
        for name, state in self.limit_keys.items() if self.changed else ():
            state.running, state.pending, _ = self._as_read[name]
        for sign, job in ((sign, job) for pair in self.changes() for sign, job in zip((-1, 1), pair, strict=True)):
            if job is not None and job.limit is not None and (state := self.limit_keys.get(limit_key(job))):
                state.running += sign * (job.status is RUNNING)
                state.pending += sign * (job.status is PENDING)
        return [self.limit_keys[name] for name in wanted]

    def changed_keys(self) -> list[LimitKey]:
        """Return the limit keys whose rows are to be written."""
        return [state for name, state in self.limit_keys.items() if state.row != self._as_read[name][2]]


def spread(unit: Unit) -> Walk[None]:
    """Apply the ends in this unit to children, then to their children, and so on: one find per generation.

    Each end is followed through all its descendants before the next one. So if two parents have failed, the first one
    is the reason of the child's end.
    """
    ends, unit.ended = unit.ended, []
    children = yield from _descendants(unit, ends)
    for end in ends:
        line = [end]
        for parent in line:  # grows during the loop: a long chain would be too deep for recursion
            for child in children.get(parent.id, ()):
                if not _is_lost_to(child, parent):
                    unit.write(child, parent_ended(child, unit.now))
                elif unit.write(child, parent_failed(child, parent, unit.now, unit.retention)):
                    line.append(child)
    unit.ended = []


def _descendants(unit: Unit, ends: Sequence[Job]) -> Walk[dict[str, list[Job]]]:
    """Return, by parent, the children of ended jobs, and all descendants of those that ended without success."""
    children: dict[str, list[Job]] = {}
    lost = {job.id for job in ends if job.status is not SUCCESS}
    generation = {job.id for job in ends}
    while generation:
        following: set[str] = set()
        children.update((parent, []) for parent in generation)
        found = yield from unit.find(Children(sorted(generation)))
        for child in {job.id: job for job in (*found, *unit.blocked)}.values():
            parents = generation.intersection(child.parents)
            for parent in parents:
                children[parent].append(child)
            if not parents.isdisjoint(lost.difference(child.tolerates)) and child.id not in children:
                following.add(child.id)
        generation = following
        lost |= following
    return children


def push(unit: Unit, jobs: Sequence[Job], before: Mapping[str, str] | None = None) -> Walk[list[str]]:
    """Add new jobs, unless their id or unique key exists. Return the ids of the jobs or of those that exist instead.

    `before`: for jobs earlier in the same call, their ids and the ids that took their place.
    """
    ids = dict(before or {})  # of a parent whose key was taken, that of the job which stands in for it
    named = (task_id for job in jobs for task_id in (job.id, *job.parents))
    yield from unit.get(one for task_id in named for one in (task_id, ids.get(task_id, task_id)))
    holders = yield from _holders(unit, jobs)
    for job in jobs:
        holder = job.id if job.id in unit.jobs else _holder(unit, job, holders)
        if holder is None:
            if taken := {parent: ids[parent] for parent in job.parents if ids.get(parent, parent) != parent}:
                rename_parents(job, taken)
            job.parents = tuple(dict.fromkeys(ids.get(parent, parent) for parent in job.parents))
            job.tolerates = tuple(dict.fromkeys(ids.get(parent, parent) for parent in job.tolerates))
            for parent in job.parents:
                if parent not in unit.jobs:
                    raise unknown_job(parent)
            job.submitted = unit.now
            place(job, [unit.jobs[parent] for parent in job.parents], unit.now, unit.retention)
            unit.write(job)
            if job.unique is not None and job.status in UNFINISHED:
                holders[job.unique] = job.id
        ids[job.id] = holder or job.id
    unit.ended.clear()  # orphans from birth: a child of theirs in this call has seen it in place()
    yield from admit(unit)
    return [ids[job.id] for job in jobs]


def _holder(unit: Unit, job: Job, holders: Mapping[str, str]) -> str | None:
    """Return the job that has the unique key of a new one and stands in for it; None if there is none.

    A job that has started cannot take the new arguments of a conflict: the new job waits for its end, whatever its
    outcome. As no two jobs have one key, it gets the other of a pair of keys, and both keys are checked.
    """
    if job.unique is None:
        return None
    pair = (job.unique, next_key(job.unique))
    those = [unit.jobs[holders[key]] for key in pair if key in holders]
    if job.conflict is None or not those:
        return latest_of(those).id if those else None
    for holder in those:
        if unit.write(holder, replace_one(holder, job, job.conflict, unit.now)):
            unit.replaced.add(holder.id)
            return holder.id
    begun = [holder.id for holder in those]
    if len(begun) == len(pair) or any(holder.task != job.task for holder in those):  # the first: one is being moved
        taken = " and ".join(f"{holder.id} ({holder.task})" for holder in those)
        raise FlowrraError(f"the key {job.unique!r} is taken by {taken}: submit later, or give {job.task} other keys")
    job.unique = next(key for key in pair if key not in holders)
    job.parents, job.tolerates = (*job.parents, *begun), (*job.tolerates, *begun)
    return None


def latest_of(pair: Sequence[Job]) -> Job:
    """Of the jobs that have a key and its next key, return the one that waits for the other."""
    return next((job for job in pair if not job.attempt), pair[0])


def next_key(unique: str) -> str:
    """Return the unique key of the job that follows one that has started. The key after that is the first one again."""
    return unique.removesuffix(_NEXT) if unique.endswith(_NEXT) else unique + _NEXT


_NEXT = " (next)"


def _holders(unit: Unit, jobs: Iterable[Job]) -> Walk[dict[str, str]]:
    """Return those unique keys of these jobs that unfinished jobs have, with the ids of those."""
    keys = [key for job in jobs if job.unique is not None for key in (job.unique, next_key(job.unique))]
    found = (yield from unit.find(Holders(keys))) if keys else []
    return {cast("str", job.unique): job.id for job in found}


def adopt(unit: Unit, jobs: Sequence[Job], by: str) -> Walk[list[str]]:
    """Add jobs of another store, with their history and held by `by`. Return "" for one whose unique key is taken."""
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
            unit.steps += ((new, step) for step in job.steps)
    return [job.id if job.id in unit.jobs else "" for job in jobs]


# An event is a job that never runs. Until it is emitted, it is SCHEDULED without end, and its steps are named after the
# jobs that wait for it. Then it is a success, and its result is the payload.
EVENT = "flowrra.event"
EVENTS_KEPT = 30 * 86_400.0  # seconds after an event is emitted in which a job may begin to wait for it


def event_id(name: str) -> str:
    """Return the id of the job that stands for an event."""
    return f"event:{name}"


_AWAITS = "it waits for the event "


def awaited_event(job: Job) -> str | None:
    """Return the name of the event that a job waits for; None if it waits for none."""
    waits = job.status in (SCHEDULED, BLOCKED) and job.error is not None and job.error.startswith(_AWAITS)
    return cast("str", job.error).removeprefix(_AWAITS) if waits else None


def _new_event(unit: Unit, task_id: str) -> Job:
    event = Job(task_id, EVENT, queue="events", payload=NO_ARGUMENTS, due=LAST_MOMENT, submitted=unit.now)
    event.status = SCHEDULED
    return event


def _await_event(unit: Unit, job: Job, task_id: str) -> None:
    """Let a job that snoozes run as soon as an event is emitted, or immediately if it has been."""
    event = unit.jobs.get(task_id) or _new_event(unit, task_id)
    if event.status in FINISHED:
        job.due = unit.now
        _make_ready(job)
    else:
        unit.steps.append((event, Step(job.id, "null", unit.now, unit.now)))
        unit.write(event)  # so that an emit that has just read its steps reads them again


def _emit(unit: Unit, task_ids: Sequence[str], payload: Any) -> Walk[list[bool]]:
    """Emit events, and let the jobs that wait for them run. Return False for one that was emitted before."""
    done = []
    for task_id, known in zip(task_ids, (yield from unit.get(task_ids)), strict=True):
        event = known or _new_event(unit, task_id)
        if event.status is BLOCKED:
            raise FlowrraError(f"{task_id} is being moved to another store: emit it again when that is done")
        done.append(event.task == EVENT and event.status is SCHEDULED)
        if done[-1]:
            for job in (yield from unit.find(EventWaiters([task_id]))) if known is not None else ():
                if job.status is SCHEDULED:
                    job.due = unit.now
                    unit.write(job, promote_one(job, unit.now))
            finish(event, SUCCESS, unit.now, EVENTS_KEPT, None)
            event.result, event.due = payload, None
            unit.write(event, is_reported=True)
    yield from conclude(unit)
    return done


def settle(unit: Unit, outcomes: Sequence[Outcome]) -> Walk[list[bool]]:
    """Apply outcomes of attempts, in order. Return for each whether the attempt still held its job."""
    written = []
    yield from unit.get(outcome.event for outcome in outcomes if outcome.event is not None)
    for job, outcome in zip((yield from unit.get(o.job.id for o in outcomes)), outcomes, strict=True):
        written.append(job is not None and settle_one(job, outcome, unit.now, unit.retention))
        if job is None or not written[-1]:
            continue
        if outcome.step is not None:
            unit.steps.append((job, outcome.step))
            continue
        if outcome.event is not None and job.status is SCHEDULED:
            _await_event(unit, job, outcome.event)
        unit.write(job, is_reported=outcome.status in FINISHED)
    yield from conclude(unit)
    return written


def rescue(unit: Unit, workers: Sequence[str], *, crashed: bool) -> Walk[None]:
    """Put back the jobs that these workers were running: the workers have died or left."""
    for job in (yield from unit.find(Running(workers))) if workers else ():
        unit.write(job, rescue_one(job, unit.now, unit.retention, crashed=crashed))
    yield from conclude(unit)


def expire(unit: Unit, limit: int) -> Walk[bool]:
    """End up to `limit` jobs that have expired. Return whether there may be more."""
    late = yield from unit.find(Expired(unit.now, limit))
    for job in late:
        unit.write(job, expire_one(job, unit.now, unit.retention))
    yield from conclude(unit)
    return len(late) >= limit


Action = Literal["cancel", "requeue", "hold", "unhold", "emit", "limit", "pause", "resume"]
LIMIT_ACTIONS = frozenset(("limit", "pause", "resume"))


def emitted(action: Action, by: str | None) -> Any:
    """Return what `change` takes from a broker whose results are values: to emit, the payload in place of its text."""
    return by if action != "emit" or by is None else decode(by)


def change(unit: Unit, ids: Sequence[str], action: Action, by: Any) -> Walk[list[bool]]:
    """Apply an action of a person, or a move to another store, to jobs. Return for each whether it was allowed.

    To emit, `by` is the payload, as the broker has results in jobs. For the actions on limits see `Broker.change`.
    """
    if action == "emit":
        return (yield from _emit(unit, ids, by))
    if action == "limit":
        unit.limits = [dataclasses.replace(Limit.from_text(by), name=name) for name in ids]
        return [True] * len(ids)
    if action in LIMIT_ACTIONS:
        return (yield from _pause_keys(unit, ids, action == "pause"))
    jobs = yield from unit.get(ids)
    known = [job for job in jobs if job is not None]
    if action in ("requeue", "unhold"):
        yield from unit.get(parent for job in known for parent in job.parents)
    holders = (yield from _holders(unit, known)) if action == "requeue" else {}
    done = []
    for job in jobs:
        done.append(job is not None and unit.write(job, _changed(unit, job, action, by, holders)))
        yield from spread(unit)  # the next one may be a child of this one
    yield from conclude(unit)
    return done


def _changed(unit: Unit, job: Job, action: Action, by: str | None, holders: dict[str, str]) -> bool:
    if job.task == EVENT and action not in ("hold", "unhold"):
        return False
    if action == "cancel":
        return cancel_one(job, by, unit.now, unit.retention)
    if action == "hold":
        return hold_one(job, by or "")
    parents = [unit.jobs.get(parent) for parent in job.parents]
    if action == "unhold":
        return unhold_one(job, parents, by or "", unit.now, unit.retention)
    if job.unique is not None:  # only one that this job waits for may be unfinished and have the key
        beside = holders.get(next_key(job.unique), job.id)
        if holders.get(job.unique, job.id) != job.id or beside not in (job.id, *job.parents):
            return False
    done = requeue_one(job, parents, by, unit.now, unit.retention)
    holders |= {job.unique: job.id} if done and job.unique is not None else {}
    return done


# Limits ----------------------------------------------------------------------------------------
#
# A job of a limit is PENDING only if it holds a place of its limit; until then it waits as BLOCKED. Places are counted
# in the rows of jobs, so that a crash cannot leave a wrong number. So claims need not look at limits, and what moves a
# job out of PENDING or RUNNING, or makes one wait, asks `admit` in the same transaction who comes next.
#
# A rate is one moment for each limit key (GCRA): `tat`, from which on it would allow a full burst again. A claim adds
# an interval for each job. Since no more jobs are PENDING than the rate allows, and time only makes that more, no
# claim needs to be refused.


def conclude(unit: Unit) -> Walk[None]:
    """Do what follows from the changes of a unit: for children of jobs that have ended, and for limits."""
    yield from spread(unit)
    yield from admit(unit)


def admit(unit: Unit) -> Walk[None]:
    """Let waiting jobs of the limit keys that this unit has touched run, as far as their limits allow."""
    moved = (job for pair in unit.changes() for job in pair if job is not None and job.limit is not None)
    if names := unit.touched.union(map(limit_key, moved)):
        yield from _fill(unit, (yield from unit.read_limit_keys(names)))


def admit_due(unit: Unit, limit: int) -> Walk[bool]:
    """Admit jobs of up to `limit` limit keys that are due. Return whether there may be more.

    Call it with the limit keys of the jobs that were promoted as `unit.touched`.
    """
    names = yield DueKeys(unit.now, limit)
    unit.touched.update(names)
    yield from admit(unit)
    return len(names) >= limit


def charge(unit: Unit, claimed: Iterable[str]) -> Walk[None]:
    """Charge claimed jobs, which have just become RUNNING, to their rates, and admit others of fair queues.

    `claimed`: the limit key of each of these jobs that has one.
    """
    taken = collections.Counter(claimed)
    states = yield from unit.read_limit_keys(taken)
    for state in states:
        if state.limit is not None and state.limit.rate is not None:
            state.tat = max(_tat(state, state.limit, unit.now), unit.now) + taken[state.name] * state.limit.interval
    yield from _fill(unit, states)


def _tat(state: LimitKey, limit: Limit, now: float) -> float:
    """Return `tat`, but not later than any burst can move it: if a clock was put back, the limit does not wait long."""
    return min(state.tat, now + (limit.most + 1) * limit.interval)


def _allowed(state: LimitKey, limit: Limit, now: float) -> float:
    """Return how many more jobs the rate allows now."""
    if limit.rate is None:
        return math.inf
    left = limit.most * limit.interval - max(0.0, state.tat - now) + _RATE_SLACK
    return min(limit.most_ready, math.floor(left / limit.interval)) - state.pending


class _Room(NamedTuple):
    """A limit key with free places for which jobs wait: how many, how many more the rate allows; how many to admit."""

    state: LimitKey
    limit: Limit
    before: float | None  # when it was due
    free: float
    allowed: float
    number: int


def _fill(unit: Unit, states: Sequence[LimitKey]) -> Walk[None]:
    """Admit the next jobs of these limit keys, and note when the rate allows more."""
    lines, stale = _waiters_of(unit)
    budget = max(UPKEEP_STEP, len(unit.changed), unit.moved)
    share = max(1, budget // max(1, len(states)))  # so that a limit key without a bound leaves room for the others
    rooms: list[_Room] = []
    wanted: dict[str, int] = {}
    for state in states:
        name, limit, before = state.name, state.limit, state.due
        if limit is None:
            continue
        state.due = None
        if limit.rate is not None:
            state.tat = _tat(state, limit, unit.now)
        if state.paused or not (state.has_waiting or name in lines):
            continue
        free = math.inf if limit.concurrency is None else limit.concurrency - state.running - state.pending
        if limit.turn is not None:
            free = min(free, limit.turn - state.pending)
        if free <= 0:
            continue  # only a job that moves makes room
        allowed = _allowed(state, limit, unit.now)
        most = min(budget, share if state.has_waiting else len(lines[name]))
        number = max(0, int(min(free, allowed, most)))
        budget -= number
        rooms.append(_Room(state, limit, before, free, allowed, number))
        if state.has_waiting and (number or before is None):
            # If places stay free, one more, to know whether one is left, and in which queue.
            wanted[name] = number + (free > number) + stale[name]
    for waiter in (yield WaitingFor(wanted)) if wanted else ():
        if waiter.id not in unit.changed:
            lines[waiter.name].append(waiter)
    for room in rooms:
        _admit_into(unit, room, lines[room.state.name])


def _waiters_of(unit: Unit) -> tuple[dict[str, list[LimitWaiter]], collections.Counter[str]]:
    """Return the jobs that begin to wait in this unit, and of those that did before it how many it has changed."""
    own: dict[str, list[LimitWaiter]] = collections.defaultdict(list)
    stale: collections.Counter[str] = collections.Counter()
    for before, job in unit.changes():
        if before is not None and awaits_limit(before):
            stale[limit_key(before)] += 1
        if awaits_limit(job):
            own[limit_key(job)].append(LimitWaiter.of(job))
    return own, stale


def _admit_into(unit: Unit, room: _Room, line: list[LimitWaiter]) -> None:
    state, limit = room.state, room.limit
    if len(line) > 1:
        line.sort(key=operator.attrgetter("priority", "seq"))
    first = line[: room.number]
    for waiter in first:
        job = unit.jobs[waiter.id] if waiter.id in unit.changed else None
        if job is None:
            unit.admitted.append(waiter)
        else:
            admit_one(job)
        if limit.turn is not None:
            unit.placed.append(job or waiter)
    state.pending += len(first)
    waiting = line[len(first) :]
    if room.free > len(first) and (waiting or (state.has_waiting and not room.number)):
        _set_due(unit, room, room.allowed - len(first), waiting)


def _set_due(unit: Unit, room: _Room, allowed: float, waiting: Sequence[LimitWaiter]) -> None:
    """Note when the upkeep is to admit more jobs of a limit key with free places; None if only a claim makes room."""
    state, limit = room.state, room.limit
    state.due = unit.now  # this unit has admitted enough
    if limit.rate is not None and allowed <= 0:
        if state.pending >= limit.most_ready:  # a claim makes room, and time does not
            state.due = None
            return
        state.due = state.tat - (limit.most - 1 - state.pending) * limit.interval
    if waiting and (room.before is None or state.due < room.before):
        unit.timed[waiting[0].queue] = None


def _pause_keys(unit: Unit, names: Sequence[str], paused: bool) -> Walk[list[bool]]:
    """Pause or resume limit keys. Return for each whether it was not yet so."""
    states = yield from unit.read_limit_keys(dict.fromkeys(names))
    done = {state.name: state.paused is not paused for state in states}
    for state in states:
        state.paused = paused
    for job in (yield from unit.find(Admitted([state.name for state in states]))) if paused else ():
        unit.write(job, withdraw_one(job))
    unit.touched.update(names)
    yield from admit(unit)
    return [done[name] for name in names]


def refuse_limits(kind: str, jobs: Iterable[Job] = (), action: str = "") -> None:
    """Raise a ConfigError if a broker that has no limits is to take jobs of limits, or to store a limit."""
    if job := next((job for job in jobs if job.limit is not None), None):
        raise ConfigError(f"{kind} has no limits, so {job.task} cannot be submitted with the limit {job.limit!r}")
    if action in LIMIT_ACTIONS:
        raise ConfigError(f"{kind} has no limits: use a broker of Flowrra")


def drive(walk: Walk[T], look: Callable[[Find], Sequence[Any]]) -> T:
    """Run a walk on a store that is read under a lock. The caller then applies its unit."""
    try:
        find = next(walk)
        while True:
            find = walk.send(list(look(find)))
    except StopIteration as end:
        return cast("T", end.value)


async def drive_async(walk: Walk[T], look: Callable[[Find], Awaitable[list[Any]]]) -> T:
    """Run a walk on a store that is read by awaits. The caller then applies its unit if nothing it read has changed."""
    try:
        find = next(walk)
        while True:
            find = walk.send(await look(find))
    except StopIteration as end:
        return cast("T", end.value)


# ---------------------------------------------------------------------------
# 8. Brokers
#
# The protocol of a store. A Backend stores results; a Broker is a Backend that
# also stores jobs: it finds them, applies the rules, and wakes waiting callers.
# The worker judges the outcomes. Only models are passed between the two.
# ---------------------------------------------------------------------------

# What to wait for: ("queue", its name), "" for all; ("job", its id); ("worker", "") for notices; ("room", queue).
Topic = tuple[str, str]


class WaiterHub:
    """The callers on one loop that wait for topics. A wake-up only means "look again".

    Call `look`, then read the store, then `wait`. If the topic is woken after the look, the wait returns immediately,
    so no wake-up is missed. A wait without an earlier look also returns immediately; each wait needs a new look.
    """

    def __init__(self) -> None:
        self.waiters: dict[Topic, list[asyncio.Future[Any]]] = {}
        self._quiet: set[Topic] = set()  # looked at, and not woken since

    def look(self, topic: Topic) -> None:
        """Register a look: a later wake-up ends the next wait."""
        self._quiet.add(topic)

    async def wait(self, topics: Sequence[Topic], timeout: float | None) -> Any:
        """Return when one of the topics is woken, with the value of the wake-up, or after `timeout` seconds."""
        if not self._quiet.issuperset(topics):
            return None
        with self.expect(topics) as waiter:
            try:
                return await resolved(waiter, timeout)
            finally:
                self._quiet.difference_update(topics)

    @contextlib.contextmanager
    def expect(self, topics: Sequence[Topic]) -> Iterator[asyncio.Future[Any]]:
        """Make a waiter for `resolved`, for a store that is read by awaits while others look at the same topics."""
        waiter = asyncio.get_running_loop().create_future()
        for topic in topics:
            self.waiters.setdefault(topic, []).append(waiter)
        try:
            yield waiter
        finally:
            for topic in topics:
                those = self.waiters.get(topic, [])
                if waiter in those:  # else it was woken
                    those.remove(waiter)
                if not those:
                    self.waiters.pop(topic, None)

    def wake(self, topic: Topic, brings: Any = None) -> None:
        """End the waits for the topic, and the next wait that has no new look."""
        if self._quiet:
            self._quiet.discard(topic)
        if self.waiters and topic in self.waiters:
            for waiter in self.waiters.pop(topic):
                _resolve(waiter, brings)

    def wake_all(self, kind: str) -> None:
        """Wake all topics of a kind."""
        for name in self.awaited(kind):
            self.wake((kind, name))

    def awaited(self, kind: str) -> list[str]:
        """Return the names of a kind for which somebody waits, or is about to."""
        return [name for topic, name in {*self.waiters, *self._quiet} if topic == kind]

    def waiting(self, kind: str) -> list[str]:
        """Return the names of a kind for which somebody waits."""
        return [name for topic, name in self.waiters if topic == kind]

    def close(self, error: Exception | None) -> None:
        """End all waits with `error`. None: drop them, because their loop has ended."""
        waiters = [waiter for those in self.waiters.values() for waiter in those if not waiter.done()]
        self.waiters.clear()
        if error is not None:
            for waiter in dict.fromkeys(waiters):
                waiter.set_exception(error)
                waiter.exception()  # whoever still looks may not come to wait for it


async def resolved(waiter: asyncio.Future[Any], timeout: float | None) -> Any:
    """Wait for the waiter, for up to `timeout` seconds."""
    timer = None if timeout is None else asyncio.get_running_loop().call_later(max(0.0, timeout), _resolve, waiter)
    try:
        return await waiter
    finally:
        if timer is not None:
            timer.cancel()


def _resolve(waiter: asyncio.Future[Any], result: Any = None) -> None:
    if not waiter.done():
        waiter.set_result(result)


class Backend:
    """Stores the results of finished jobs. A subclass must have `record` and `get`; the other methods have defaults.

    `store_id` identifies the open store, whatever URL or name it was opened with; None if this is not possible.
    """

    store_id: str | None = None

    async def open(self) -> None:
        """Prepare for use on the running loop. Called once, before all other methods."""

    async def close(self) -> None:
        """Release all resources. Callers that still wait get a BackendError."""

    async def record(self, results: Sequence[TaskResult[Any]]) -> None:
        """Store finished results. They replace earlier results; a job of this store itself is not changed."""
        raise NotImplementedError

    async def get(self, task_ids: Sequence[str]) -> list[TaskResult[Any] | None]:
        """Return the results in the order of the ids; None for an id that is not known (yet)."""
        raise NotImplementedError

    async def wait_for(self, task_id: str, timeout: float | None) -> TaskResult[Any]:
        """Return the result of `task_id` when the job has finished.

        This default polls; brokers are notified. Cancelling it leaves nothing behind.

        Raises:
            TaskTimeoutError: it is not finished after `timeout` seconds (None: wait without limit).
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


_FIRST_LOOK = 0.5  # seconds that a store gets to answer whether a job has ended, even if the time-out is shorter (0)


@contextlib.asynccontextmanager
async def result_limit(
    task_id: str, timeout: float | None, began: float | None = None
) -> AsyncIterator[Callable[[], None]]:
    """Enforce a caller's time-out for a result, whatever the store does. The body calls what it gets on each answer.

    `began`: the start of the caller's time, on the loop's clock; None: now.
    """
    now, is_answered = asyncio.get_running_loop().time(), False
    began = now if began is None else began
    limit = asyncio.timeout_at(None if timeout is None else max(began + timeout, now + _FIRST_LOOK))

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
        text = f"the store has not answered within {timeout:g} s, so that job {task_id} may have ended or not"
        if is_answered:
            text = f"job {task_id} has not finished within {timeout:g} s; the job continues"
        raise TaskTimeoutError(text) from None


class Overview(NamedTuple):
    """What an operator sees: the workers whose leases are valid, the paused queues, and the activity.

    `activity` is by minute and task, oldest first. `totals` counts since the store was created: one row of minute 0 per
    task. Both are empty unless they were requested.
    """

    workers: list[WorkerInfo]
    paused: set[str]
    activity: list[Activity]
    totals: list[Activity]


@dataclass(slots=True)
class StoreStatus:
    """Whether the server of a store answers: `problem` is the reason why it does not; empty if it does."""

    problem: str = ""


class Broker(Backend):
    """Stores jobs until they have finished. It is also the backend, unless another one is configured.

    `now` is the caller's wall clock in seconds since the epoch. Leases use the store's own clock. Every change is
    guarded: a late or repeated call changes nothing and returns that.

    A subclass implements the methods from `open` to `record`. The methods under *Written once* call them.
    """

    retention = BackendConfig()
    keeps_text = False  # whether arguments and results are kept as text
    has_limits = False  # whether it admits jobs of limits, as `Broker.change` says
    store_status = StoreStatus()  # a broker that has a server sets its own

    async def push(self, jobs: Sequence[Job], *, now: float, by: str | None = None) -> list[str]:
        """Add new jobs, all or none, and return their ids.

        If the id of a job exists, or an unfinished job has its `unique` key, nothing is changed and the old id is
        returned. A job with `parents` is BLOCKED until all have succeeded, and CANCELLED if one ended without success.
        If the call is cancelled, the jobs may or may not have been added.

        With `by`, the jobs come from another store, with their history, and are held by `by`. If an unfinished job has
        the key of one, "" is returned for it. A parent that is not known here counts as purged.

        Raises:
            TaskNotFoundError: a parent is not known.
            SerializationError: an argument cannot be stored.
            BrokerError: the store failed; nothing was written.
        """
        raise NotImplementedError

    async def claim(self, queue: str, *, limit: int, worker: str, now: float, crashes: int = LAST_CHANCE) -> list[Job]:
        """Take up to `limit` ready jobs of `queue` under the worker's lease, in order, and make each of them RUNNING.

        Jobs that have become due are ready; expired jobs are not returned. A job that was running in a crash is a
        suspect: a worker that runs nothing gets it alone, before all other jobs, and nothing else while it runs.
        `crashes`: take only suspects with at most this many crashes, those with the most first; 0: only jobs without
        crashes. Without a lease (no heartbeat yet, or it has ended) or from a paused queue, nothing is returned.
        """
        raise NotImplementedError

    async def settle(self, outcomes: Sequence[Outcome], *, now: float) -> list[bool]:
        """Write the outcomes or progress of attempts. False: the attempt no longer holds its job; nothing is written.

        If a job was cancelled during the attempt, it does not run again: it becomes CANCELLED. A suspect that fails or
        snoozes and will run again has survived a run alone: its crashes decrease by one.
        """
        raise NotImplementedError

    async def heartbeat(self, worker: WorkerInfo, *, lease: float, now: float) -> Notices:
        """Register the worker or extend its lease to `lease` seconds from now; 0 removes the worker.

        When a worker is removed, its running jobs are released. The rows of `worker.activity` replace the rows of the
        same minutes that this worker has sent before. `judge_leases` judges the other workers whose leases have ended.
        If the answer was lost and the call is repeated, it still reports that the lease had ended.
        """
        raise NotImplementedError

    async def wait(self, topics: Sequence[Topic], timeout: float | None) -> None:
        """Return when one of the topics, all of one kind, may have something new, or after `timeout` seconds.

        This is a hint and may come early or late. It reports what has happened since the last claim from the queue or
        the last heartbeat. For a job that has finished or is not known, it returns immediately.
        """
        raise NotImplementedError

    async def find(
        self, which: JobFilter, *, limit: int = 100, after: int | None = None, oldest_first: bool = False
    ) -> list[Job]:
        """Return jobs, the latest submitted first or the oldest first. `after`: the last `seq` of the previous page."""
        raise NotImplementedError

    async def counts(self, which: JobFilter | None = None) -> dict[tuple[str, TaskStatus], int]:
        """Return the number of jobs by queue and state."""
        raise NotImplementedError

    async def overview(self, since: float | None = None) -> Overview:
        """Return workers and paused queues; with `since`, also the activity from that minute on, at most a day back."""
        raise NotImplementedError

    async def change(self, task_ids: Sequence[str], action: Action, *, now: float, by: str | None = None) -> list[bool]:
        """Cancel, requeue, hold or unhold jobs, or emit events, as the rules allow. False: not allowed, or unknown.

        To emit, `task_ids` are those of events, and `by` is the text of their payload. False: emitted before.
        `by` says who did it; a note is stored in the history of the job. A hold and the end of a hold need it. A broker
        that does not support moves to another store raises a ConfigError for holds, and for a push with `by`.

        "limit" stores the limits that have these names, with the numbers of `by`, the text of a Limit. "pause" and
        "resume" stop and continue these limit keys (see `limit_key`); jobs that are running continue. A broker without
        limits raises a ConfigError for these three, and for a push of jobs that have a limit; see `refuse_limits`.
        """
        raise NotImplementedError

    async def remove(
        self, task_ids: Sequence[str] = (), *, by: str | None = None, before: float | None = None, limit: int = 1000
    ) -> Collection[str]:
        """Delete finished jobs, or with `by` the jobs that it holds, without a trace. Return the ids that were deleted.

        `before`: instead, delete up to `limit` finished jobs whose retention ended before that moment. Callers that
        wait for a deleted job get a TaskNotFoundError.
        """
        raise NotImplementedError

    async def set_queue(self, queue: str, *, paused: bool) -> None:
        """Pause or resume the claims from `queue`. Running jobs continue."""
        raise NotImplementedError

    # Optional methods --------------------------------------------------------------------------

    async def limits(self) -> list[LimitUse]:
        """Return the use of each limit that is declared or has jobs. It may be slow: it counts all that waits."""
        return []

    async def limit_states(self, names: Sequence[str]) -> list[LimitKey]:
        """Return the states of limit keys, in the order of their names."""
        return [LimitKey(name) for name in names]

    def clone(self) -> Broker | None:
        """Return another connection to the same store, for another thread's loop; None if this is not possible."""
        return None

    def push_in(self, connection: Any, jobs: Sequence[Job], *, now: float) -> list[str] | Awaitable[list[str]]:
        """Push jobs through the caller's own `connection`, inside its current transaction. May be async."""
        raise ConfigError(f"{type(self).__name__} cannot enqueue inside a caller's transaction: use a SQL broker")

    # Methods that use the ones above -----------------------------------------------------------

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

    async def cancel(self, task_id: str, *, now: float, by: str | None = None) -> bool:
        """Cancel a job: immediately if it waits, through its worker if it runs. False: finished already, or unknown."""
        return (await self.change([task_id], "cancel", now=now, by=by))[0]

    async def requeue(self, task_ids: Sequence[str], *, now: float, by: str | None = None) -> list[bool]:
        """Make FAILED and CANCELLED jobs ready again, and reset their failures and crashes.

        They wait again for parents that are not finished. False: the job has another state, a parent has ended without
        success (requeue that one first), or an unfinished job has its `unique` key.
        """
        return await self.change(task_ids, "requeue", now=now, by=by)

    async def set_limit(self, limit: Limit, *, now: float) -> None:
        """Store a limit. It holds until it is stored again."""
        if not self.has_limits:
            raise ConfigError(f"{type(self).__name__} has no limits, so {limit.name!r} would not hold")
        text = dataclasses.replace(limit, declared=now).text
        await self.change([limit.name], "limit", now=now, by=text)

    async def delete(self, task_ids: Sequence[str]) -> list[bool]:
        """Delete finished jobs before their retention ends. False: it is unknown, or not finished."""
        gone = await self.remove(task_ids)
        return [task_id in gone for task_id in task_ids]

    async def purge(self, before: float, limit: int) -> int:
        """Delete up to `limit` finished jobs whose retention ended before `before`. Return how many."""
        return len(await self.remove(before=before, limit=limit))

    async def workers(self) -> list[WorkerInfo]:
        """Return the workers whose leases are valid."""
        return (await self.overview()).workers

    async def paused(self) -> set[str]:
        """Return the names of the paused queues."""
        return (await self.overview()).paused

    async def activity(self, since: float) -> list[Activity]:
        """Return what all workers did from the minute `since` on, by minute and task, the oldest first."""
        return (await self.overview(since)).activity

    async def totals(self) -> list[Activity]:
        """Return what workers did since the store was created: one row of minute 0 per task. Totals never decrease."""
        return (await self.overview(math.inf)).totals


class ActivityLog:
    """The activity of workers, for brokers in memory: each minute of the last day as the worker reported it last."""

    def __init__(self) -> None:
        self._minutes: dict[tuple[int, str], list[Activity]] = {}  # by minute and worker
        self._older = ActivitySums()

    def add(self, worker: WorkerInfo, now: float) -> None:
        """Add the activity from a heartbeat."""
        oldest = now - ACTIVITY_KEPT
        for minute, rows in itertools.groupby(worker.activity, operator.attrgetter("minute")):
            if minute >= oldest:  # of another one it is not known whether it was counted
                self._minutes[minute, worker.id] = list(rows)
        for key in [key for key in self._minutes if key[0] < oldest] if worker.activity else ():
            for row in self._minutes.pop(key):
                self._older.add(dataclasses.replace(row, minute=0))

    def since(self, begin: float) -> list[Activity]:
        """Return the rows of the minutes from `begin` on."""
        return self._summed(row for (minute, _), rows in self._minutes.items() if minute >= begin for row in rows)

    def totals(self) -> list[Activity]:
        """Return the totals since the start, as rows of minute 0."""
        recent = (dataclasses.replace(row, minute=0) for rows in self._minutes.values() for row in rows)
        return self._summed(itertools.chain(self._older.values(), recent))

    def _summed(self, rows: Iterable[Activity]) -> list[Activity]:
        sums = ActivitySums()
        for row in rows:
            sums.add(row)
        return sums.in_order()


def labels_of(job: Job) -> dict[str, Any] | None:
    """Return overrides, tags, meta and tolerated parents of a job. Stores keep them together: most jobs have none."""
    if not (job.overrides or job.tags or job.meta or job.tolerates):
        return None
    labels = {"tags": list(job.tags), "meta": job.meta and dict(job.meta), "tolerates": list(job.tolerates)}
    return {**(job.overrides or {}), **{name: value for name, value in labels.items() if value}}


def give_labels(job: Job, labels: Mapping[str, Any]) -> None:
    """Set on a job what `labels_of` returned."""
    own = dict(labels)
    job.tags, job.meta = tuple(own.pop("tags", ())), own.pop("meta", None)
    job.tolerates = tuple(own.pop("tolerates", ()))
    job.overrides = own or None


def labels_text(job: Job) -> str | None:
    """Return the value of `labels_of` as text."""
    labels = labels_of(job)
    return None if labels is None else json.dumps(labels, sort_keys=True)


def activity_texts(rows: Iterable[Activity]) -> dict[int, str]:
    """Return rows as texts for a store, one per minute."""
    minutes: dict[int, list[Any]] = {}
    for row in rows:
        values = [row.minute, row.task, row.succeeded, row.failed, row.retried, row.waits, row.runs]
        values += [round(row.waited, 6), round(row.ran, 6)]
        minutes.setdefault(row.minute, []).append(values)
    return {minute: json.dumps(values) for minute, values in minutes.items()}


def sum_of_activity(texts: Iterable[str]) -> list[Activity]:
    """Return the rows of such texts, summed by minute and task, the oldest first."""
    sums = ActivitySums()
    for values in itertools.chain.from_iterable(map(json.loads, texts)):
        values[5:7] = ({int(bucket): number for bucket, number in part.items()} for part in values[5:7])
        sums.add(Activity(*values))
    return sums.in_order()


def totals_of_activity(numbers: Iterable[tuple[str, str, float]]) -> list[Activity]:
    """Make rows of minute 0 from (task, what, number). `what` is a place in such a text: 2, or 6.3 in a histogram."""
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
# 9. Memory broker
#
# Jobs in this process: dictionaries, and a heap for each queue. Arguments and
# results are stored as text unless they are immutable, so nobody can change them.
# Everything runs on one loop, so a method without an await is a transaction.
# ---------------------------------------------------------------------------


class _Text(str):
    """The text of a result that is not plain. It is decoded for each reader."""

    __slots__ = ()


_Found = TypeVar("_Found", Job, TaskResult[Any])


async def _decoded(found: _Found) -> _Found:
    """Return a job or result, as it is stored, with the value in place of its text."""
    if type(found.result) is _Text:
        found.result = await apart(decode, found.result)
    return found


_Heap = list[tuple[Any, ...]]  # what orders the jobs, and their id; an entry may be out of date


@dataclass(slots=True, eq=False)
class _KeyJobs:
    """The jobs of a limit key by state, and its row, which has its limit if that is declared."""

    row: LimitKey
    pending: dict[str, Job] = field(default_factory=dict)
    running: int = 0
    waiting: _Heap = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is known of it that a new one would not say."""
        return not (self.pending or self.running or self.waiting) and self.row.row == LimitKey("").row


class _Limits:
    """The limits of the memory broker, and its limit keys."""

    def __init__(self, jobs: Mapping[str, Job]) -> None:
        self._jobs = jobs
        self.declared: dict[str, Limit] = {}
        self.keys: dict[str, _KeyJobs] = {}
        self._names: dict[str, set[str]] = collections.defaultdict(set)  # of limit keys, by limit
        self._held: dict[str, _KeyJobs] = {}  # by the id of a job that is pending or running
        self._entries: dict[str, tuple[Any, ...]] = {}  # the entries of waiting jobs; all others are outdated
        self._due: _Heap = []

    def _key(self, name: str) -> _KeyJobs:
        if (key := self.keys.get(name)) is None:
            limit = split_limit_key(name)[0]
            key = self.keys[name] = _KeyJobs(LimitKey(name, self.declared.get(limit)))
            self._names[limit].add(name)
        return key

    def enter(self, job: Job) -> None:
        """Count a job of a limit that has come into its state."""
        key = self._key(limit_key(job))
        if job.status is PENDING:
            self._held[job.id] = key
            key.pending[job.id] = job
        elif job.status is RUNNING:
            self._held[job.id] = key
            key.running += 1
        elif awaits_limit(job):
            entry = self._entries[job.id] = (job.priority, job.seq, job.id)
            heapq.heappush(key.waiting, entry)

    def leave(self, job: Job) -> str | None:
        """Remove a job from what is counted. Return its limit key if others may wait for its place."""
        self._entries.pop(job.id, None)
        if (key := self._held.pop(job.id, None)) is None:
            return None
        if key.pending.pop(job.id, None) is None:
            key.running -= 1
        return key.row.name if key.waiting and (limit := key.row.limit) is not None and limit.is_counted else None

    def start(self, job: Job) -> str | None:
        """Count a job that was ready as running. Return its limit key if the claim is charged."""
        key = self._held[job.id]
        del key.pending[job.id]
        key.running += 1
        return key.row.name if (limit := key.row.limit) is not None and limit.is_charged else None

    def admit(self, waiters: Iterable[LimitWaiter]) -> Iterator[Job]:
        """Make jobs ready that waited, and return them."""
        for waiter in waiters:
            del self._entries[waiter.id]
            job = self._jobs[waiter.id]
            admit_one(job)
            job.place = waiter.place
            yield job

    def look(self, find: LimitKeys | WaitingFor | Admitted | DueKeys) -> Sequence[Any]:
        if isinstance(find, LimitKeys):
            return list(map(self.state, find.names))
        if isinstance(find, WaitingFor):
            found = ((name, job) for name, most in find.most.items() for job in self._first(name, most))
            return [LimitWaiter(name, job.id, job.queue, job.priority, job.seq) for name, job in found]
        if isinstance(find, Admitted):
            return [job for name in find.names if name in self.keys for job in self.keys[name].pending.values()]
        return list(self._due_keys(find.now, find.limit))

    def state(self, name: str) -> LimitKey:
        """Return the state of a limit key, counted now."""
        if (key := self.keys.get(name)) is None:
            return LimitKey(name, self.declared.get(split_limit_key(name)[0]))
        waits, row = self._has_waiting(key.waiting), key.row
        return LimitKey(name, row.limit, key.running, len(key.pending), waits, row.tat, row.due, row.paused)

    def _has_waiting(self, heap: _Heap) -> bool:
        """Whether jobs wait. Drop the outdated entries before the first one."""
        while heap and self._entries.get(heap[0][2]) is not heap[0]:
            heapq.heappop(heap)
        return bool(heap)

    def _first(self, name: str, most: int) -> list[Job]:
        """Return the first jobs that wait for a key, and drop the outdated entries before them."""
        heap, found = self.keys[name].waiting if name in self.keys else [], list[tuple[Any, ...]]()
        while len(found) < most and self._has_waiting(heap):
            found.append(heapq.heappop(heap))
        for entry in found:
            heapq.heappush(heap, entry)
        return [self._jobs[entry[2]] for entry in found]

    def _due_keys(self, now: float, limit: int) -> dict[str, float]:
        found: dict[str, float] = {}
        while self._due and self._due[0][0] <= now and len(found) < limit:
            due, name = heapq.heappop(self._due)
            if name in self.keys and self.keys[name].row.due == due:
                found[name] = due
        for name, due in found.items():
            heapq.heappush(self._due, (due, name))
        return found

    @property
    def next_due(self) -> float:
        """When the next limit key is due, or earlier."""
        return self._due[0][0] if self._due else math.inf

    def write(self, unit: Unit) -> None:
        """Write limits, and the rows of limit keys."""
        for limit in unit.limits:
            self.declared[limit.name] = limit
            for name in self._names.get(limit.name, ()):
                key = self.keys[name]
                key.row.limit = limit
                if self._has_waiting(key.waiting):
                    self._set_row(name, LimitKey(name, limit, tat=key.row.tat, due=unit.now, paused=key.row.paused))
        for state in unit.changed_keys():
            self._set_row(state.name, state)

    def _set_row(self, name: str, state: LimitKey) -> None:
        key = self._key(name)
        if state.due is not None and state.due != key.row.due:
            heapq.heappush(self._due, (state.due, name))
        key.row = state

    def use(self) -> list[LimitUse]:
        """Return the use of each limit."""
        waiting = collections.Counter(limit_key(self._jobs[task_id]) for task_id in self._entries)
        rows = ((name, k.running, len(k.pending), waiting[name], k.row.paused) for name, k in self.keys.items())
        return uses_of(self.declared.values(), rows)

    def forget(self, before: float) -> None:
        """Drop limit keys without jobs whose rows say nothing any more: the rate allows a full burst."""
        for name, key in list(self.keys.items()):
            if key.row.tat < before:
                key.row.tat = 0.0
            if key.is_empty:
                del self.keys[name]
                self._names[split_limit_key(name)[0]].discard(name)


class MemoryBroker(Broker):
    """Stores jobs in the memory of this process, for one event loop. They are lost when the process ends.

    Leases use the monotonic part of `clock`, due times its wall part.
    """

    has_limits = True

    def __init__(
        self, config: BrokerConfig | None = None, retention: BackendConfig | None = None, clock: Clock | None = None
    ) -> None:
        self.config = config or BrokerConfig()
        self.retention = retention or BackendConfig()
        self._clock = clock or Clock()
        self._size = self.config.max_queue_size
        self.hub = WaiterHub()
        self._jobs: dict[str, Job] = {}
        self._steps: dict[str, dict[str, Step]] = collections.defaultdict(dict)  # by job and name
        self._ready: dict[tuple[str, int], _Heap] = collections.defaultdict(list)  # by queue and crashes
        self._waiting: _Heap = []  # SCHEDULED and RETRYING, by `due`
        self._expiring: _Heap = []
        self._running: dict[str, dict[str, Job]] = collections.defaultdict(dict)  # by worker
        self._cancelling: set[str] = set()  # running jobs that are to be cancelled
        # In the order of their ends. A dict would step over all removed entries to find its first one.
        self._finished: collections.OrderedDict[str, Job] = collections.OrderedDict()
        self._emitted: dict[str, Job] = {}  # events, which stay however many jobs finish
        self._unique: dict[str, str] = {}
        self._children: dict[str, dict[str, None]] = {}  # of parents that have not finished
        self._depth: collections.Counter[str] = collections.Counter()  # ready jobs, for max_queue_size only
        self._workers: dict[str, WorkerInfo] = {}
        self._leases: dict[str, Lease] = {}
        self._paused: set[str] = set()
        self._limits = _Limits(self._jobs)
        self._activity = ActivityLog()
        self._endings: collections.deque[Job] = collections.deque(maxlen=ENDINGS_KEPT)
        self._sequence = itertools.count(1)
        self._places = itertools.count(1)
        self._is_upkeep_left = False  # the loop is about to take another step
        self._given = 0  # jobs returned since other tasks could run
        self._pid = os.getpid()

    async def open(self) -> None:
        if self._pid != os.getpid():  # a fork: both processes would run the same jobs
            if waiting := sum(job.status in UNFINISHED for job in self._jobs.values()):
                logger.warning("%d jobs in memory stay with the process that this one was forked from", waiting)
            MemoryBroker.__init__(self, self.config, self.retention, self._clock)
        self.hub.close(None)

    async def close(self) -> None:
        self.hub.close(BrokerError("the broker was closed while this call was waiting"))

    # Jobs and their indexes --------------------------------------------------------------------

    def _run(self, unit: Unit, walk: Walk[T]) -> T:
        """Run a walk of the rules, and apply its changes to the jobs."""
        answer = drive(walk, self._look)
        for placed in unit.placed:
            placed.place = next(self._places)
        for before, job in unit.changes():
            self._jobs[job.id] = job
            if before is None:
                self._add(job)
            else:
                self._leave(before.status, before)
            stays = before is not None and (before.status, before.worker, job.status) == (BLOCKED, None, BLOCKED)
            if not stays or awaits_limit(job):
                self._enter(job)  # else it waits for one parent less, and stands where it stood
            if job.status in FINISHED:
                self._children.pop(job.id, None)
        for job, step in unit.steps:
            self._steps[job.id][step.name] = step
        for job in self._limits.admit(unit.admitted):
            self._enter(job)
        for job in unit.endings:
            self._note_ending(job)
        if unit.limits or unit.limit_keys:
            self._limits.write(unit)
            for queue in unit.timed:
                self.hub.wake(("queue", queue))
            if unit.limits:
                self.hub.wake_all("queue")
        return answer

    def _look(self, find: Find) -> Sequence[Any]:
        if isinstance(find, LimitKeys | WaitingFor | Admitted | DueKeys):
            return self._limits.look(find)
        if isinstance(find, Expired):
            return self._pop_expired(find)
        if isinstance(find, Running):
            return [job for worker in find.workers for job in self._running.get(worker, {}).values()]
        if isinstance(find, Jobs):
            ids: Iterable[str] = find.ids
        elif isinstance(find, Children):
            ids = [child for parent in find.of for child in self._children.get(parent, ())]
        elif isinstance(find, EventWaiters):
            ids = [name for event in find.events for name in self._steps.get(event, ())]
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
        """Put a job into the indexes of its state, and wake those who wait for it."""
        if job.unique is not None and job.status not in FINISHED:
            self._unique[job.unique] = job.id
        if job.limit is not None and job.status not in FINISHED:
            self._limits.enter(job)
        if job.status is PENDING:
            heapq.heappush(self._ready[job.queue, job.crashes], (job.priority, job.place, job.seq, job.id))
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
        (self._emitted if job.task == EVENT else self._finished)[job.id] = job
        if len(self._finished) > self.retention.max_results:
            self._drop((next(iter(self._finished)),))
        if job.unique is not None:
            self._unique.pop(job.unique, None)
        # With the result as it is now: the job may be requeued, or be gone, before they look.
        if self.hub.waiters and ("job", job.id) in self.hub.waiters:
            self.hub.wake(("job", job.id), result_from(job))

    def _leave(self, status: TaskStatus, job: Job) -> None:
        """Remove a job from its indexes. Entries in heaps stay; whoever pops one sees that it is outdated."""
        if job.limit is not None:
            self._limits.leave(job)
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
        """Remove the entries of ended jobs if most entries are such. A claim checks only the top of a heap."""
        if len(heap) > 2 * len(self._jobs) + 1000:
            alive = (entry for entry in heap if (job := self._jobs.get(entry[-1])) and job.status not in FINISHED)
            heap[:] = sorted(set(alive))

    # Pushing -----------------------------------------------------------------------------------

    async def push(self, jobs: Sequence[Job], *, now: float, by: str | None = None) -> list[str]:
        is_plain = True
        for job in jobs:
            if job.payload is not None or job.kwargs or not are_plain(job.args):  # their owner may change them
                if job.payload is None and not (are_plain(job.args) and are_plain(job.kwargs.values())):
                    job.payload = encode_arguments(job)
                job.args, job.kwargs = (job.args, dict(job.kwargs)) if job.payload is None else ((), {})
            if job.parents or job.conflict or job.limit is not None:
                is_plain = False
        if by is not None:
            unit = Unit(now, self.retention)
            return self._run(unit, adopt(unit, jobs, by))
        if self._size is not None:
            await self._make_room(jobs, self._size)
        if not is_plain:
            unit = Unit(now, self.retention)
            return self._run(unit, push(unit, jobs))
        return [self._push_one(job, now) for job in jobs]

    def _push_one(self, job: Job, now: float) -> str:
        if job.id in self._jobs:
            return job.id
        if job.unique is not None:
            pair = (self._unique.get(key) for key in (job.unique, next_key(job.unique)))
            if those := [self._jobs[task_id] for task_id in pair if task_id is not None]:
                return latest_of(those).id
        job.submitted = now
        place(job, (), now, self.retention)
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
            self.hub.look(("room", queue))
            await self.hub.wait([("room", queue)], None)

    def _full_queue(self, jobs: Sequence[Job], size: int) -> str | None:
        """Return a queue that has no room for these jobs. An empty queue takes more of them than its limit."""
        new = (job.queue for job in jobs if job.id not in self._jobs and job.unique not in self._unique)
        for queue, more in collections.Counter(new).items():
            if self._depth[queue] and self._depth[queue] + more > size:
                return queue
        return None

    # Claiming ----------------------------------------------------------------------------------

    async def claim(self, queue: str, *, limit: int, worker: str, now: float, crashes: int = LAST_CHANCE) -> list[Job]:
        if self._given >= 100:
            self._given = 0
            await asyncio.sleep(0)  # a worker whose jobs never wait must not block other tasks
        self.hub.look(("queue", queue))
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
            await asyncio.sleep(0)  # let other tasks run in between

    def _has_lease(self, worker: str) -> bool:
        return worker in self._leases and self._leases[worker].until > self._clock.monotonic()

    def _take(self, queue: str, crashes: int, limit: int, worker: str, now: float) -> list[Job] | None:
        """Start up to `limit` ready jobs; None if a whole step has found only outdated entries."""
        heap, running = self._ready.get((queue, crashes)), self._running[worker]
        jobs: list[Job] = []
        passed = 0
        while heap and len(jobs) < limit and passed < UPKEEP_STEP:
            _, place, seq, task_id = heapq.heappop(heap)
            job = self._jobs.get(task_id)
            # Cancelled while on the heap; requeued and on it twice; or expired, which the upkeep ends.
            is_same = job is not None and job.seq == seq and job.place == place and job.crashes == crashes
            if job is None or not is_same or not start(job, worker, now):
                passed += 1
                continue
            jobs.append(job)
            running[task_id] = job
            if task_id in self._steps:
                job.steps = tuple(self._steps[task_id].values())
            if self._size is not None:
                self._leave(PENDING, job)
        if charged := [name for job in jobs if job.limit is not None and (name := self._limits.start(job))]:
            unit = Unit(now, self.retention)
            self._run(unit, charge(unit, charged))
        self._given += len(jobs)
        return None if passed == UPKEEP_STEP and not jobs else jobs

    def _first_suspect(self, queue: str) -> int:
        """Return the fewest crashes of a suspect that waits for a worker that runs nothing else; 0 if there is none."""
        for crashes in range(1, MAX_CRASHES):
            for *_, seq, task_id in self._ready.get((queue, crashes), ()):
                job = self._jobs.get(task_id)
                if job is not None and (job.seq, job.crashes, job.status) == (seq, crashes, PENDING):
                    return crashes
        return 0

    def _upkeep(self, now: float, *, expires: bool = True) -> None:
        """Promote due jobs and end expired ones, in bounded steps. The loop continues with the rest."""
        touched: set[str] = set()
        left = bool(self._waiting) and self._waiting[0][0] <= now and self._promote(now, touched)
        if touched or self._limits.next_due <= now:
            unit = Unit(now, self.retention, touched)
            left |= self._run(unit, admit_due(unit, UPKEEP_STEP))
        if expires and self._expiring and self._expiring[0][0] <= now:
            unit = Unit(now, self.retention)
            left |= self._run(unit, expire(unit, UPKEEP_STEP))
        if left and not self._is_upkeep_left:
            self._is_upkeep_left = True
            asyncio.get_running_loop().call_soon(self._go_on, now)

    def _go_on(self, now: float) -> None:
        self._is_upkeep_left = False
        self._upkeep(now)

    def _promote(self, now: float, touched: set[str]) -> bool:
        for _ in range(UPKEEP_STEP):
            if not self._waiting or self._waiting[0][0] > now:
                return False
            due, seq, task_id = heapq.heappop(self._waiting)
            job = self._jobs.get(task_id)
            if job is not None and (job.due, job.seq) == (due, seq) and promote_one(job, now):
                self._enter(job)
                if job.limit is not None:
                    touched.add(limit_key(job))
        return True

    def _rescue_lapsed(self, now: float, by: str, *, beats: bool = False, is_new: bool = False) -> list[str]:
        """Put back the jobs of workers that `by` may presume dead. A claim leaves doubtful ones to heartbeats."""
        clock = self._clock.monotonic()
        leases = self._leases.items()
        late = {w: o for w, o in leases if o.until - o.length / 2 <= clock and w != by and (beats or not o.graced)}
        if not late:
            return []
        dead, fresh = judge_leases(late, self._leases.get(by), clock, is_new=is_new)
        for name in fresh if beats else ():
            self._leases[name] = Lease(clock + late[name].length, late[name].length, graced=True)
        self._remove_workers(dead, now, crashed=True)
        return dead

    def _remove_workers(self, names: Sequence[str], now: float, *, crashed: bool) -> None:
        """Remove workers. Job objects that they still hold are not changed: a unit changes copies."""
        unit = Unit(now, self.retention)
        self._run(unit, rescue(unit, names, crashed=crashed))
        for name in names:
            self._workers.pop(name, None)
            self._leases.pop(name, None)
            self._running.pop(name, None)

    # Settling ----------------------------------------------------------------------------------

    async def settle(self, outcomes: Sequence[Outcome], *, now: float) -> list[bool]:
        # Before anything is written: it may be refused.
        results = [
            o.result if o.text is None and is_plain(o.result) else _Text(o.text or encode_value(o)) for o in outcomes
        ]
        unit = Unit(now, self.retention)
        ended = unit.ended
        written = [self._settle_one(o, result, now, unit) for o, result in zip(outcomes, results, strict=True)]
        if ended or unit.touched:
            self._run(unit, conclude(unit))
            for job in ended:
                del self._children[job.id]
        return written

    def _settle_one(self, outcome: Outcome, result: Any, now: float, then: Unit) -> bool:
        """Settle in place, without a copy. The caller must run `then`, for children and limits."""
        if outcome.event is not None or outcome.step is not None:
            unit = Unit(now, self.retention)
            return self._run(unit, settle(unit, [outcome]))[0]
        job = self._jobs.get(outcome.job.id)
        worker = None if job is None else job.worker
        if job is None or not settle_one(job, outcome, now, self.retention):
            return False
        if job.status is RUNNING:
            return True  # it was a report
        self._running[worker or ""].pop(job.id, None)
        if job.limit is not None and (name := self._limits.leave(job)) is not None:
            then.touched.add(name)
        if self._cancelling:
            self._cancelling.discard(job.id)
        job.result = result  # perhaps its text, in place of the object that the task has returned
        if job.status in FINISHED:
            self._enter_finished(job)
            if outcome.status not in FINISHED:
                self._note_ending(job)
            if self._children and job.id in self._children:
                then.ended.append(job)
            return True
        if job.expires is not None:
            heapq.heappush(self._expiring, (job.expires, job.seq, job.id))
        self._enter(job)
        if awaits_limit(job):
            then.touched.add(limit_key(job))
        return True

    # Workers and waiting -----------------------------------------------------------------------

    async def heartbeat(self, worker: WorkerInfo, *, lease: float, now: float) -> Notices:
        self.hub.look(("worker", ""))
        self._activity.add(worker, now)
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
        return Notices(
            cancelled=[task_id for task_id in self._cancelling if self._jobs[task_id].worker == worker.id],
            lapsed=lapsed,
            paused=frozenset(self._paused),
            suspects=min(filter(None, map(self._first_suspect, worker.queues.keys() - self._paused)), default=0),
            lost_workers=lost,
            endings=[self._endings.popleft() for _ in range(min(ENDINGS_TAKEN, len(self._endings)))],
        )

    async def wait(self, topics: Sequence[Topic], timeout: float | None) -> None:
        if (self._waiting or self._limits.keys) and topics[0][0] == "queue":
            due = min(self._waiting[0][0] if self._waiting else math.inf, self._limits.next_due) - self._clock.time()
            timeout = min(math.inf if timeout is None else timeout, due)
            timeout = None if timeout == math.inf else timeout
        for kind, name in topics:
            if kind == "job":
                if name not in self._jobs or self._jobs[name].status in FINISHED:
                    return
                self.hub.look((kind, name))
        await self.hub.wait(topics, timeout)

    async def record(self, results: Sequence[TaskResult[Any]]) -> None:
        values = [
            r.result if is_plain(r.result) else _Text(await apart(encode_returned, r.result, r.task)) for r in results
        ]
        for result, value in zip(results, values, strict=True):
            known = self._jobs.get(result.task_id)
            if known is None or not known.queue:  # else it is a job, which is in a queue
                job = recorded(result, self.retention)
                job.result = value
                self._drop([job.id])
                self._add(job)
                self._enter(job)

    # Reading -----------------------------------------------------------------------------------

    async def get(self, task_ids: Sequence[str]) -> list[TaskResult[Any] | None]:
        return [None if job is None else await _decoded(result_from(job)) for job in map(self._jobs.get, task_ids)]

    async def wait_for(self, task_id: str, timeout: float | None) -> TaskResult[Any]:
        job = self._jobs.get(task_id)
        result = result_from(job) if job is not None and job.status in FINISHED else None
        if job is not None and result is None:
            async with result_limit(task_id, timeout) as answered:
                answered()
                self.hub.look(("job", task_id))
                result = await self.hub.wait([("job", task_id)], None)
        if result is None:
            raise unknown_job(task_id)
        return result if type(result.result) is not _Text else await _decoded(result)

    async def find(
        self, which: JobFilter, *, limit: int = 100, after: int | None = None, oldest_first: bool = False
    ) -> list[Job]:
        jobs: Iterable[Job] = self._jobs.values() if oldest_first else reversed(self._jobs.values())
        if which.ids is not None:
            known = [self._jobs[task_id] for task_id in set(which.ids) & self._jobs.keys()]
            jobs = sorted(known, key=lambda job: job.seq, reverse=not oldest_first)
        is_behind = operator.gt if oldest_first else operator.lt
        found = (job for job in jobs if which.matches(job) and (after is None or is_behind(job.seq, after)))
        jobs = [copy_of(job) for job in itertools.islice(found, limit)]
        for job in jobs:
            job.kwargs, job.steps = dict(job.kwargs), tuple(self._steps.get(job.id, {}).values())
        return [await _decoded(job) for job in jobs]

    async def counts(self, which: JobFilter | None = None) -> dict[tuple[str, TaskStatus], int]:
        which = which or JobFilter()
        return dict(collections.Counter((j.queue, j.status) for j in self._jobs.values() if which.matches(j)))

    async def overview(self, since: float | None = None) -> Overview:
        clock = self._clock.monotonic()
        return Overview(
            [info for name, info in self._workers.items() if self._leases[name].until > clock],
            set(self._paused),
            [] if since is None else self._activity.since(since),
            [] if since is None else self._activity.totals(),
        )

    async def limits(self) -> list[LimitUse]:
        return self._limits.use()

    async def limit_states(self, names: Sequence[str]) -> list[LimitKey]:
        return list(map(self._limits.state, names))

    # Changes by hand ---------------------------------------------------------------------------

    async def change(self, task_ids: Sequence[str], action: Action, *, now: float, by: str | None = None) -> list[bool]:
        unit = Unit(now, self.retention)
        done = self._run(unit, change(unit, task_ids, action, _Text(by) if action == "emit" and by is not None else by))
        self._compact(self._waiting)
        for heap in self._ready.values() if action == "cancel" else ():
            self._compact(heap)
        return done

    async def remove(
        self, task_ids: Sequence[str] = (), *, by: str | None = None, before: float | None = None, limit: int = 1000
    ) -> Collection[str]:
        if before is not None:
            ended = itertools.chain(self._finished.values(), self._emitted.values())
            due = ((job.purge_at, job.seq, job.id) for job in ended if (job.purge_at or 0.0) < before)
            gone = {task_id for *_, task_id in heapq.nsmallest(limit, due)}
            self._limits.forget(before)
        else:
            jobs = [self._jobs[task_id] for task_id in task_ids if task_id in self._jobs]
            gone = {job.id for job in jobs if (job.status in FINISHED if by is None else is_held(job, by))}
        self._drop(gone)
        return gone

    def _drop(self, ids: Iterable[str]) -> None:
        for task_id in ids:
            job = self._jobs.pop(task_id, None)
            for of in (self._finished, self._emitted, self._steps):
                of.pop(task_id, None)
            if job is not None and job.unique is not None and self._unique.get(job.unique) == task_id:
                del self._unique[job.unique]
            self.hub.wake(("job", task_id))

    async def set_queue(self, queue: str, *, paused: bool) -> None:
        check_queue(queue)
        (self._paused.add if paused else self._paused.discard)(queue)
        self.hub.wake(("queue", queue))
        self.hub.wake(("worker", ""))


# ---------------------------------------------------------------------------
# 10. SQLite broker
#
# A table of jobs in one file. The frequent moves are one statement for a whole
# group, over a JSON text, for two measured reasons: sqlite3 releases the GIL
# per statement, not per row; and 1,000 rows take 10.0 us each by executemany,
# 4.2 us by one INSERT ... FROM json_each.
# One writer thread commits all waiting calls as one group, reads never wait for
# a writer, and loopback datagrams wake other processes.
# ---------------------------------------------------------------------------


def _quoted(statuses: Iterable[TaskStatus]) -> str:
    """Return states as an SQL list, in a fixed order, so that a query's text equals that of its partial index."""
    return "(" + ", ".join(f"'{status}'" for status in TaskStatus if status in set(statuses)) + ")"


_DUE_LATER = _quoted((SCHEDULED, RETRYING))
_NOT_BEGUN = _quoted(NOT_BEGUN)
_FINISHED = _quoted(FINISHED)
_UNFINISHED = _quoted(UNFINISHED)

_ADMITTED = "limit_key IS NOT NULL AND status IN ('pending', 'running')"
_WAITING = "limit_key IS NOT NULL AND status = 'blocked' AND waits = 0"  # awaits_limit() in SQL

# The version is in a separate table, because the file may be the user's application database, whose `user_version`
# belongs to the application.
_SCHEMA_VERSION = 9
_SCHEMA = f"""
CREATE TABLE flowrra_job (
    -- The order of submission. Never used again: an attempt that outlives its job would fit the next one.
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE, task TEXT NOT NULL, queue TEXT NOT NULL, priority INTEGER NOT NULL,
    status TEXT NOT NULL, payload TEXT NOT NULL, submitted REAL NOT NULL,
    due REAL, expires REAL, unique_key TEXT, parents TEXT,
    overrides TEXT,  -- and tags, and notes: see labels_text
    attempt INTEGER NOT NULL DEFAULT 0, failures INTEGER NOT NULL DEFAULT 0, crashes INTEGER NOT NULL DEFAULT 0,
    cancel_requested INTEGER NOT NULL DEFAULT 0,
    worker TEXT, started REAL, finished REAL, purge_at REAL,
    result TEXT, error TEXT, traceback TEXT, progress TEXT, history TEXT,
    waits INTEGER NOT NULL DEFAULT 0,
    limit_key TEXT,  -- see limit_key()
    place INTEGER NOT NULL DEFAULT 0,
    CHECK (CASE status  -- one CASE: the same as four CHECKs costs each write 2.5 us
        WHEN 'pending' THEN finished IS NULL
        WHEN 'running' THEN finished IS NULL AND attempt > 0 AND worker IS NOT NULL AND started IS NOT NULL
        WHEN 'success' THEN finished IS NOT NULL
        WHEN 'scheduled' THEN finished IS NULL AND due IS NOT NULL
        WHEN 'retrying' THEN finished IS NULL AND due IS NOT NULL AND failures > 0
        WHEN 'blocked' THEN finished IS NULL
        WHEN 'failed' THEN finished IS NOT NULL
        WHEN 'cancelled' THEN finished IS NOT NULL
        ELSE false END)
);
-- Waiting jobs stay out of the line by their status: with `due` in this index every claim sorts the
-- backlog (8,000 jobs/s instead of 60,000). Suspects have a line of their own, by their crashes.
CREATE INDEX flowrra_ready ON flowrra_job (queue, priority, place, seq) WHERE status = 'pending' AND crashes = 0;
CREATE INDEX flowrra_suspect ON flowrra_job (queue, crashes, priority, seq) WHERE status = 'pending' AND crashes > 0;
CREATE INDEX flowrra_due ON flowrra_job (due) WHERE status IN {_DUE_LATER};
CREATE INDEX flowrra_expiring ON flowrra_job (expires) WHERE expires IS NOT NULL AND status IN {_NOT_BEGUN};
CREATE INDEX flowrra_running ON flowrra_job (worker, crashes) WHERE status = 'running';
CREATE INDEX flowrra_cancelling ON flowrra_job (worker) WHERE status = 'running' AND cancel_requested = 1;
CREATE INDEX flowrra_purge ON flowrra_job (purge_at) WHERE purge_at IS NOT NULL;
CREATE INDEX flowrra_blocked ON flowrra_job (seq) WHERE waits > 0;
-- Of jobs that have a limit: what holds its places, what waits for one, and in what order fair queues have filled.
CREATE INDEX flowrra_admitted ON flowrra_job (limit_key, status) WHERE {_ADMITTED};
CREATE INDEX flowrra_waiting ON flowrra_job (limit_key, priority, seq) WHERE {_WAITING};
CREATE INDEX flowrra_place ON flowrra_job (place) WHERE place > 0 AND status = 'pending';
-- For failed and cancelled jobs. A column or condition on `status` would cost every job's moves 2 us of 14.
CREATE INDEX flowrra_troubled ON flowrra_job (seq) WHERE error IS NOT NULL;
CREATE UNIQUE INDEX flowrra_unique ON flowrra_job (unique_key)
    WHERE unique_key IS NOT NULL AND status IN {_UNFINISHED};
CREATE TABLE flowrra_family (  -- all parents of all jobs
    parent TEXT NOT NULL, child INTEGER NOT NULL, PRIMARY KEY (parent, child)
) WITHOUT ROWID;
CREATE TRIGGER flowrra_child_gone AFTER DELETE ON flowrra_job WHEN old.parents IS NOT NULL BEGIN
    DELETE FROM flowrra_family WHERE child = old.seq AND parent IN (SELECT value FROM json_each(old.parents));
END;
CREATE TABLE flowrra_step (  -- a row each: in one text for all, a step would cost as much as all before it
    job INTEGER NOT NULL, number INTEGER NOT NULL, name TEXT NOT NULL, step TEXT NOT NULL,
    PRIMARY KEY (job, number), UNIQUE (job, name)
) WITHOUT ROWID;
CREATE TRIGGER flowrra_steps_gone AFTER DELETE ON flowrra_job BEGIN DELETE FROM flowrra_step WHERE job = old.seq; END;
CREATE TABLE flowrra_tag (tag TEXT NOT NULL, job_seq INTEGER NOT NULL, PRIMARY KEY (tag, job_seq)) WITHOUT ROWID;
CREATE TRIGGER flowrra_tagged AFTER INSERT ON flowrra_job WHEN new.overrides IS NOT NULL BEGIN
    INSERT OR IGNORE INTO flowrra_tag SELECT value, new.seq FROM json_each(new.overrides, '$.tags');
END;
CREATE TRIGGER flowrra_tagged_gone AFTER DELETE ON flowrra_job WHEN old.overrides IS NOT NULL BEGIN
    DELETE FROM flowrra_tag WHERE job_seq = old.seq AND tag IN (SELECT value FROM json_each(old.overrides, '$.tags'));
END;
CREATE TABLE flowrra_worker (
    id TEXT PRIMARY KEY, host TEXT NOT NULL,
    home TEXT NOT NULL,  -- where its pid means something: boot and pid namespace
    pid INTEGER NOT NULL,
    birth TEXT NOT NULL,  -- when the process began, since pids are used again
    queues TEXT NOT NULL, tasks TEXT NOT NULL, started REAL NOT NULL, seen REAL NOT NULL,
    running INTEGER NOT NULL, version TEXT NOT NULL, memory INTEGER,
    lease REAL NOT NULL,  -- on the monotonic clock of this boot
    length REAL,  -- seconds; a lease that ends later than this from now is of an earlier boot
    graced INTEGER NOT NULL DEFAULT 0,  -- whether it is a fresh one that another worker gave it after an outage
    term TEXT NOT NULL DEFAULT ''
);
CREATE TABLE flowrra_listener (  -- loopback ports of those who want to be told
    port INTEGER PRIMARY KEY, kinds TEXT NOT NULL, home TEXT NOT NULL, pid INTEGER NOT NULL, birth TEXT NOT NULL
);
CREATE TABLE flowrra_paused (queue TEXT PRIMARY KEY);
CREATE TABLE flowrra_limit (name TEXT PRIMARY KEY, text TEXT NOT NULL);  -- see Limit.text
CREATE TABLE flowrra_limit_key (  -- see LimitKey.row
    name TEXT PRIMARY KEY, tat REAL NOT NULL DEFAULT 0, due REAL, paused INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE INDEX flowrra_limit_due ON flowrra_limit_key (due) WHERE due IS NOT NULL;
CREATE TABLE flowrra_activity (
    minute INTEGER NOT NULL, worker TEXT NOT NULL, counts TEXT NOT NULL, PRIMARY KEY (minute, worker)
) WITHOUT ROWID;
CREATE TABLE flowrra_total (  -- what workers did since there is this table; see totals_of_activity
    task TEXT NOT NULL, what TEXT NOT NULL, number REAL NOT NULL, PRIMARY KEY (task, what)
) WITHOUT ROWID;
CREATE TABLE flowrra_ending (  -- jobs that have ended without an attempt that tells of it, until a heartbeat does
    seq INTEGER PRIMARY KEY AUTOINCREMENT, job TEXT NOT NULL  -- see ended_job
);
"""

# Rules that older versions did not have, apart from columns: all parents are in flowrra_family (version 2),
# `expires` is removed when an attempt starts (4), and a job's row counts what it waits for (7).
_LATER_RULES = f"""
UPDATE flowrra_job SET expires = NULL WHERE attempt > 0 AND :version < 4;
INSERT OR IGNORE INTO flowrra_family SELECT value, seq FROM flowrra_job, json_each(parents) WHERE parents IS NOT NULL;
UPDATE flowrra_job SET waits = (worker IS NOT NULL) + (SELECT count(*) FROM flowrra_family AS f
    JOIN flowrra_job AS p ON p.id = f.parent AND p.status IN {_UNFINISHED} WHERE f.child = flowrra_job.seq)
WHERE status = 'blocked';
"""

# Add to the totals by how much the new rows of a minute exceed those that they replace, so that a heartbeat that is
# repeated counts once. json_each gives one row with the key NULL for a plain number.
_COUNT_ACTIVITY = """
    INSERT INTO flowrra_total
    SELECT json_extract(row.value, '$[1]'), part.key || coalesce('.' || one.key, ''), sum(sign * one.value) AS number
    FROM (SELECT 1 AS sign, :counts AS counts UNION ALL
            SELECT -1, counts FROM flowrra_activity WHERE minute = :minute AND worker = :worker) AS texts,
        json_each(counts) AS row, json_each(row.value) AS part, json_each(part.value) AS one
    WHERE part.key > 1 GROUP BY 1, 2 HAVING number != 0
    ON CONFLICT DO UPDATE SET number = number + excluded.number"""

_ALIKE = "task, queue, priority, status, submitted, due, expires, overrides, limit_key"
_PUSH_ONE = (
    f"INSERT INTO flowrra_job (id, payload, {_ALIKE}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
)
_PUSH_ALIKE = f"""
    INSERT INTO flowrra_job (id, payload, {_ALIKE})
    SELECT key, value, ?, ?, ?, ?, ?, ?, ?, ?, ? FROM json_each(?) WHERE true ON CONFLICT DO NOTHING"""

# A job's columns, in the order of its fields. Rules get NULL as `result`, which is large: no move leads away from a
# success, so that none is written back.
_BORN = "id, task, queue, priority, payload, submitted, unique_key, parents, overrides, limit_key"
_CHANGING = """status, due, expires, attempt, failures, crashes, worker, started, finished, purge_at, result, error,
    traceback, progress, history, cancel_requested, waits, place"""
_STEPS = (
    "(SELECT '[' || group_concat(step) || ']' FROM (SELECT step FROM flowrra_step WHERE job = seq ORDER BY number))"
)
_COLUMNS = f"seq, {_BORN}, {_CHANGING}, {_STEPS}"
_JOBS = f"SELECT {_COLUMNS.replace('result', 'NULL').replace(_STEPS, 'NULL')} FROM flowrra_job WHERE"
_LISTED = "IN (SELECT value FROM json_each(?))"
_FINDS: Mapping[type[Find], str] = {
    Jobs: f"{_JOBS} id {_LISTED}",
    Children: f"""{_JOBS} status = 'blocked' AND waits > 0 AND seq IN
        (SELECT f.child FROM json_each(?) CROSS JOIN flowrra_family AS f ON f.parent = value) ORDER BY seq""",
    Holders: f"{_JOBS} unique_key {_LISTED} AND unique_key IS NOT NULL AND status IN {_UNFINISHED}",
    Running: f"{_JOBS} worker {_LISTED} AND status = 'running'",
    EventWaiters: f"""{_JOBS} id IN (SELECT s.name FROM json_each(?) CROSS JOIN flowrra_job AS e ON e.id = value
        CROSS JOIN flowrra_step AS s ON s.job = e.seq) ORDER BY seq""",
    Expired: f"""{_JOBS} expires IS NOT NULL AND status IN {_NOT_BEGUN} AND expires <= ?
        ORDER BY expires, seq LIMIT ?""",
    WaitingFor: f"""SELECT n.value, j.id, j.queue, j.priority, j.seq
        FROM json_each(?) AS n CROSS JOIN flowrra_job AS j WHERE j.seq IN (SELECT seq FROM flowrra_job
            WHERE limit_key = n.value AND {_WAITING} ORDER BY priority, seq LIMIT ?)""",
    Admitted: f"{_JOBS} limit_key {_LISTED} AND {_ADMITTED} AND +status = 'pending'",
    DueKeys: "SELECT name FROM flowrra_limit_key WHERE due IS NOT NULL AND due <= ? LIMIT ?",
}
_PLACES = f"SELECT count(*) FROM flowrra_job WHERE limit_key = n.name AND {_ADMITTED} AND status"
_LIMIT_KEYS = f"""
    SELECT n.name, l.text,
        CASE WHEN waits OR own THEN ({_PLACES} = 'running') ELSE 0 END,
        CASE WHEN waits OR own THEN ({_PLACES} = 'pending') ELSE 0 END,
        waits, coalesce(k.tat, 0.0), k.due, coalesce(k.paused, 0)
    FROM (SELECT key AS name, value AS own,
            EXISTS (SELECT 1 FROM flowrra_job WHERE limit_key = key AND {_WAITING}) AS waits
        FROM json_each(?) LIMIT -1) AS n  -- the LIMIT keeps it from being asked again for each use of `waits`
        LEFT JOIN flowrra_limit_key AS k ON k.name = n.name
        LEFT JOIN flowrra_limit AS l ON l.name = substr(n.name, 1, instr(n.name, ':') - 1)"""
# Of limit keys, those for whose places jobs wait: their limits count jobs, see Limit.is_counted.
_AWAITED = f"""
    SELECT value FROM json_each(?)
    WHERE EXISTS (SELECT 1 FROM flowrra_job WHERE limit_key = value AND {_WAITING})
        AND EXISTS (SELECT 1 FROM flowrra_limit WHERE name = substr(value, 1, instr(value, ':') - 1)
            AND json_extract(text, '$[1]') IS NOT NULL)"""
_ADMIT = """
    UPDATE flowrra_job SET status = 'pending', place = v.value FROM json_each(?) AS v
    WHERE seq = CAST(v.key AS INTEGER)"""
_KEEP_STEP = """
    INSERT INTO flowrra_step
    SELECT seq, coalesce((SELECT max(number) FROM flowrra_step WHERE job = seq), 0) + 1, ?, ?
    FROM flowrra_job WHERE id = ?
    ON CONFLICT (job, name) DO UPDATE SET step = excluded.step"""
_KEEP_KEY = "INSERT OR REPLACE INTO flowrra_limit_key (name, tat, due, paused) VALUES (?, ?, ?, ?)"
# Each key of a limit for which jobs wait, found by one step of the index for each, however many wait for it.
_MAKE_DUE = f"""
    WITH RECURSIVE waiting(name) AS (
        SELECT min(limit_key) FROM flowrra_job WHERE {_WAITING} AND limit_key >= :begin AND limit_key < :end
        UNION ALL SELECT (SELECT min(limit_key) FROM flowrra_job
            WHERE {_WAITING} AND limit_key > waiting.name AND limit_key < :end) FROM waiting WHERE name IS NOT NULL)
    INSERT INTO flowrra_limit_key (name, due) SELECT name, :now FROM waiting WHERE name IS NOT NULL
    ON CONFLICT DO UPDATE SET due = excluded.due"""
_LIMIT_USE = f"""
    SELECT limit_key, sum(status = 'running'), sum(status = 'pending'), 0, 0
        FROM flowrra_job WHERE {_ADMITTED} GROUP BY 1
    UNION ALL SELECT limit_key, 0, 0, count(*), 0 FROM flowrra_job WHERE {_WAITING} GROUP BY 1
    UNION ALL SELECT name, 0, 0, 0, 1 FROM flowrra_limit_key WHERE paused"""
_places = ", ".join("?" * len(f"{_BORN}, {_CHANGING}".split(",")))
_INSERT = f"INSERT INTO flowrra_job ({_BORN}, {_CHANGING}) VALUES ({_places})"
_UPDATE = f"UPDATE flowrra_job SET {', '.join(f'{name.strip()} = ?' for name in _CHANGING.split(','))} WHERE seq = ?"
_PROMOTE = f"""
    UPDATE flowrra_job SET status = CASE WHEN limit_key IS NULL THEN 'pending' ELSE 'blocked' END WHERE seq IN
        (SELECT seq FROM flowrra_job WHERE status IN {_DUE_LATER} AND due <= ? ORDER BY due, seq LIMIT ?)
    RETURNING queue, limit_key"""
_NEXT_DUE = f"""
    SELECT min(due) FROM (SELECT min(due) AS due FROM flowrra_job WHERE status IN {_DUE_LATER}
        UNION ALL SELECT min(due) FROM flowrra_limit_key WHERE due IS NOT NULL)"""
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

# Later than possible: from an earlier boot. A second more, because clocks of two cores differ (0.1 ms in a VM).
_LAPSED = f"(lease <= :clock OR lease > :clock + coalesce(length, {MAX_LEASE}) + 1.0)"
_LATE = f"(lease - coalesce(length, 0) / 2 <= :clock OR {_LAPSED})"
# All that a claim must know first. One statement, because each costs an idle worker 20 us with cold caches. The
# last but one is NULL if the worker runs nothing, otherwise the most crashes of its running jobs.
_BEFORE_CLAIM = f"""
    SELECT EXISTS (SELECT 1 FROM flowrra_worker WHERE id = :worker AND lease > :clock)
            AND NOT EXISTS (SELECT 1 FROM flowrra_paused WHERE queue = :queue),
        EXISTS (SELECT 1 FROM flowrra_worker WHERE {_LAPSED} AND NOT graced AND id != :worker),
        EXISTS (SELECT 1 FROM flowrra_job WHERE status IN {_DUE_LATER} AND due <= :now)
            OR EXISTS (SELECT 1 FROM flowrra_limit_key WHERE due IS NOT NULL AND due <= :now),
        EXISTS (SELECT 1 FROM flowrra_job
            WHERE expires IS NOT NULL AND status IN {_NOT_BEGUN} AND expires <= :now),
        (SELECT crashes FROM flowrra_job WHERE status = 'running' AND worker = :worker ORDER BY crashes DESC LIMIT 1),
        EXISTS (SELECT 1 FROM flowrra_job WHERE status = 'pending' AND crashes > 0 AND queue = :queue)"""
_CLAIMED = """seq, id, task, payload, queue, priority, submitted, due, attempt, failures, crashes, overrides, parents,
    steps, limit_key"""
_READY = f"""
    SELECT {_CLAIMED.replace("steps", f"CASE WHEN attempt > 0 THEN {_STEPS} END AS steps")}
    FROM flowrra_job WHERE status = 'pending' AND crashes = 0 AND queue = :queue
    ORDER BY priority, place, seq LIMIT :limit"""
# For when there may be expired jobs: skipping 100,000 of them here takes 50 ms; to end them, as the upkeep
# does, takes more than a second.
_EXPIRING = _READY.replace("limit_key", "limit_key, expires").replace(":limit", str(100 * UPKEEP_STEP))
_READY_STILL = f"""
    SELECT {_CLAIMED} FROM ({_EXPIRING})
    WHERE expires IS NULL OR expires > :now LIMIT :limit"""
# BETWEEN, because with `=` next to the `> 0` of the index the planner sorts.
_AS_SUSPECT = "crashes > 0 AND crashes BETWEEN :crashes AND :crashes"
_SUSPECT = _READY.replace("crashes = 0", _AS_SUSPECT).replace("priority, place", "crashes, priority")
_START = """
    UPDATE flowrra_job SET status = 'running', attempt = attempt + 1, worker = ?, started = max(?, submitted)
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
    """The host, boot and process of a worker, so that another process can tell whether it is still alive."""

    name: str
    pid: int
    birth: str

    @classmethod
    def here(cls) -> _Home:
        return cls(_home_name(), os.getpid(), _birth_of(os.getpid()) or "")

    def lives(self, home: str, pid: int, birth: str) -> bool:
        """Whether such a process certainly exists on this host and is not stopped (a stopped one counts as gone)."""
        found = _process(pid) if home == self.name and pid != self.pid else None
        return found is not None and found[0] not in ("", "T") and found[1] == birth

    def is_dead(self, home: str, pid: int, birth: str) -> bool:
        """Whether such a process certainly no longer exists."""
        if home == self.name:
            found = self.birth if pid == self.pid else _birth_of(pid)  # an idle worker asks each second
            return found is None or (found != birth and "" not in (found, birth))
        boot = self.name.partition(" ")[0]
        return " " in self.name and not home.startswith(f"{boot} ")  # on Linux: of an earlier boot


def _home_name() -> str:
    """Return the boot and the pid namespace; where they do not exist (no Linux), the name of the host."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        import platform

        return platform.node()


def _birth_of(pid: int) -> str | None:
    """Return when the process started: "" where this is unknown, None if there is no such process."""
    found = _process(pid)
    return found if found is None else found[1]


def _process(pid: int) -> tuple[str, str] | None:
    """Return the state of a process as a letter of proc(5), and its start; both "" where they are unknown."""
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


_SPARE_PAGES = 300  # 600 kB; giving them back takes some 10 ms


def _purge(db: sqlite3.Connection, before: float, limit: int) -> list[tuple[str]]:
    """Delete finished jobs and return their ids. If a quarter of the file is free, give some pages back to the disk."""
    rows = db.execute(_PURGE, (before, limit)).fetchall()
    db.execute("DELETE FROM flowrra_limit_key WHERE tat < ? AND due IS NULL AND NOT paused", (before,))
    (free,), (pages,) = (db.execute(f"PRAGMA {name}").fetchone() for name in ("freelist_count", "page_count"))
    if free > max(_SPARE_PAGES, pages // 4):
        for _ in range(_SPARE_PAGES):  # the module sqlite3 takes one step of it, whatever number is given
            db.execute("PRAGMA incremental_vacuum(1)")
    return rows


class SQLiteTable:
    """The jobs in one SQLite file. One caller at a time; each method that writes runs inside a transaction.

    `woken`: the topics that the transaction changed; after the commit, its caller wakes those who wait, and empties it.
    `upkeep_left`: the time as of which claims have left something for `upkeep` to do.
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
        """Run a walk of the rules, and apply its changes to the jobs."""
        answer = drive(walk, self._look)
        if unit.placed:
            _give_places(self._db, unit.placed)
        for before, job in unit.changes():
            if before is None:
                self._insert(job)
            else:
                self._db.execute(_UPDATE, (*_changing_values(job), job.seq))
                if job.id in unit.replaced:
                    values = (job.payload, stored_limit_key(job), job.seq)
                    self._db.execute("UPDATE flowrra_job SET payload = ?, limit_key = ? WHERE seq = ?", values)
            self._wake_for(job)
        if unit.admitted:
            places = ",".join([f'"{waiter.seq}":{waiter.place}' for waiter in unit.admitted])
            self._db.execute(_ADMIT, (f"{{{places}}}",))
            self.woken.update(dict.fromkeys(("queue", waiter.queue) for waiter in unit.admitted))
        for job, step in unit.steps:
            self._db.execute(_KEEP_STEP, (step.name, json.dumps(step), job.id))
        if unit.limits or unit.limit_keys:
            _write_limits(self._db, unit)
            queues = ("",) if unit.limits else unit.timed
            self.woken.update(dict.fromkeys(("queue", queue) for queue in queues))
        if unit.endings:
            rows = ((json.dumps([j.id, j.task, j.attempt, j.status, j.error]),) for j in unit.endings)
            self._db.executemany("INSERT INTO flowrra_ending (job) VALUES (?)", rows)
        return answer

    def _look(self, find: Find) -> Sequence[Any]:
        query = self._db.execute
        if isinstance(find, LimitKeys):
            return self.limit_states(find.names, find.own)
        if isinstance(find, DueKeys):
            return [row[0] for row in query(_FINDS[DueKeys], find)]
        if isinstance(find, WaitingFor):
            alike: dict[int, list[str]] = {}
            for name, most in find.most.items():
                alike.setdefault(most, []).append(name)
            groups = ((json.dumps(names), most) for most, names in alike.items())
            return [LimitWaiter(*row) for group in groups for row in query(_FINDS[WaitingFor], group)]
        values = find if isinstance(find, Expired) else (json.dumps(list(find[0])),)
        return jobs_of_rows(query(_FINDS[type(find)], values))

    def _insert(self, job: Job) -> None:
        parents = json.dumps(job.parents) if job.parents else None
        row = (job.id, job.task, job.queue, job.priority, job.payload, job.submitted, job.unique, parents,
               labels_text(job), stored_limit_key(job), *_changing_values(job))  # fmt: skip
        self._db.execute(_INSERT, row)
        if parents:
            family = "INSERT OR IGNORE INTO flowrra_family SELECT value, last_insert_rowid() FROM json_each(?)"
            self._db.execute(family, (parents,))

    def _wake_for(self, job: Job) -> None:
        if job.status in FINISHED:
            self.woken["job", job.id] = None
        elif job.status is RUNNING and job.cancel_requested:
            self.woken["worker", ""] = None
        elif job.status not in (RUNNING, BLOCKED):
            self.woken["queue", job.queue] = None

    # Pushing -----------------------------------------------------------------------------------

    def push(self, jobs: Sequence[Job], *, now: float, by: str | None = None) -> list[str]:
        unit = Unit(now, self._retention)
        if by is not None:
            return self.run(unit, adopt(unit, jobs, by))
        ids: list[str] = []
        pushed: list[str] = []
        limited: list[str] = []
        for is_plain, run in itertools.groupby(jobs, _plainness):  # neighbours only, so that the order is kept
            some = list(run)
            if is_plain:
                ids += self._push_plain(some, now)
                if some[0].limit is not None:
                    limited += map(limit_key, some)
            else:
                unit = Unit(now, self._retention)
                ids += self.run(unit, push(unit, some, dict(zip(pushed, ids, strict=True))))
            pushed += [job.id for job in some]
        if limited:
            unit = Unit(now, self._retention, limited)
            self.run(unit, admit(unit))
        return ids

    def _push_plain(self, jobs: Sequence[Job], now: float) -> list[str]:
        """Push jobs that differ only in ids and arguments, in one statement. A job whose id exists is skipped."""
        first = jobs[0]
        status = first_status(first.due, now, first.limit)
        alike = (first.task, first.queue, first.priority, status, now, first.due, first.expires, labels_text(first))
        keys: list[str | None] = [stored_limit_key(job) for job in jobs] if first.limit is not None else [None]
        shared = (*alike, keys[0])
        if len(jobs) == 1:
            done = self._db.execute(_PUSH_ONE, (first.id, first.payload, *shared))
        elif keys.count(keys[0]) != len(keys):
            rows = [(job.id, job.payload, *alike, key) for job, key in zip(jobs, keys, strict=True)]
            done = self._db.executemany(_PUSH_ONE, rows)
        else:
            payloads: dict[str, str | None] = {}
            for job in jobs:
                key = f'"{job.id}"' if job.id.isalnum() and job.id.isascii() else json.dumps(job.id)
                payloads.setdefault(key, job.payload)
            text = ",".join([f"{key}:{payload}" for key, payload in payloads.items()])
            done = self._db.execute(_PUSH_ALIKE, (*shared, f"{{{text}}}"))
        if done.rowcount and status is not BLOCKED:
            self.woken["queue", first.queue] = None
        return [job.id for job in jobs]

    # Claiming ----------------------------------------------------------------------------------

    def claim(self, queue: str, *, limit: int, worker: str, now: float, crashes: int = LAST_CHANCE) -> list[Any]:
        """Return rows for `claimed_job`. The jobs are made from them after the commit, for which others wait.

        Due and expired jobs are processed in a bounded step; the broker continues with the rest.
        """
        place = {"queue": queue, "worker": worker, "now": now, "limit": limit, "clock": self._clock.monotonic()}
        may_claim, lapsed, due, expired, held, suspects = self._db.execute(_BEFORE_CLAIM, place).fetchone()
        if due:
            self._promote(now)  # even if nothing may be claimed: otherwise a due job would end all waits at once
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
            if limited := [row[-1] for row in rows if row[-1] is not None]:
                self._charge(limited, now)
        return rows

    def _charge(self, names: Sequence[str], now: float) -> None:
        texts = self._db.execute(
            f"SELECT name, text FROM flowrra_limit WHERE name {_LISTED}",
            (json.dumps(list({split_limit_key(name)[0] for name in names})),),
        ).fetchall()
        charged = {name for name, text in texts if Limit.from_text(text).is_charged}
        if limited := [name for name in names if split_limit_key(name)[0] in charged]:
            unit = Unit(now, self._retention)
            self.run(unit, charge(unit, limited))

    def upkeep(self, now: float) -> None:
        """Do a step of what claims have left. When no expired job is left, the jobs behind them may be claimed."""
        self._promote(now)
        if not self._expire(now):
            self.woken["queue", ""] = None

    def _promote(self, now: float) -> None:
        """Make ready what is due: jobs, and jobs of limit keys whose rates allow more."""
        rows = self._db.execute(_PROMOTE, (now, UPKEEP_STEP)).fetchall()
        self.woken.update(dict.fromkeys(("queue", queue) for queue, _ in rows))  # also others than the claim's own
        unit = Unit(now, self._retention, (name for _, name in rows if name is not None))
        is_left = self.run(unit, admit_due(unit, UPKEEP_STEP))
        self._leave_to_upkeep(is_left or len(rows) >= UPKEEP_STEP, now)

    def _expire(self, now: float) -> bool:
        unit = Unit(now, self._retention)
        return self._leave_to_upkeep(self.run(unit, expire(unit, UPKEEP_STEP)), now)

    def _leave_to_upkeep(self, is_left: bool, now: float) -> bool:
        if is_left:
            self.upkeep_left = now
        return is_left

    def next_due(self) -> float | None:
        """Return the earliest moment at which a waiting job becomes ready."""
        return cast("float | None", self._db.execute(_NEXT_DUE).fetchone()[0])

    # Settling ----------------------------------------------------------------------------------

    def settle(self, outcomes: Sequence[Outcome], *, now: float) -> list[bool]:
        """Write the outcomes of attempts. If an attempt has several endings, the first one counts."""
        done = self._settle_successes(outcomes, now)
        self.woken.update(dict.fromkeys(("job", outcome.job.id) for outcome in done.values()))
        names = {limit_key(o.job) for o in done.values() if o.job.limit is not None}
        awaited = self._db.execute(_AWAITED, (json.dumps(list(names)),)).fetchall() if names else ()
        unit = Unit(now, self._retention, (row[0] for row in awaited))
        unit.ended = self._parents_among([outcome.job for outcome in done.values()])
        others = [outcome for index, outcome in enumerate(outcomes) if index not in done]
        if not others and not unit.ended and not unit.touched:
            return [True] * len(outcomes)
        written = iter(self.run(unit, settle(unit, others)))
        return [index in done or next(written) for index in range(len(outcomes))]

    def _settle_successes(self, outcomes: Sequence[Outcome], now: float) -> dict[int, Outcome]:
        """Write the successes, one statement per attempt number, worker and retention. Return what was written.

        If there are several outcomes of one attempt, only the first is considered here.
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
        """Return copies of those jobs that have children, as the successes that they are."""
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

    # Workers -----------------------------------------------------------------------------------

    def heartbeat(self, worker: WorkerInfo, *, lease: float, now: float) -> tuple[Notices, str]:
        """Return the notices, and the term of the lease."""
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
            if minute >= now - ACTIVITY_KEPT:  # purged minutes cannot be compared
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
        """Put back the jobs of workers that `by` may presume dead. A claim leaves doubtful ones to heartbeats.

        `beat`: the length of the lease that a heartbeat will get. A process that lives on this host is not dead,
        however late it is. A stopped process runs nothing, so it may be.
        """
        clock = self._clock.monotonic()
        query = f"SELECT id, lease, length, graced, home, pid, birth FROM flowrra_worker WHERE id = :by OR {_LATE}"
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
        """Return the workers of this host whose process no longer exists, without waiting for the lease."""
        workers = self._db.execute("SELECT id, home, pid, birth FROM flowrra_worker")
        return [worker for worker, *process in workers if self._home.is_dead(*process)]

    def _remove_workers(self, workers: list[str], now: float, *, crashed: bool = True) -> list[str]:
        if workers:
            unit = Unit(now, self._retention)
            self.run(unit, rescue(unit, workers, crashed=crashed))
            self._db.execute(f"DELETE FROM flowrra_worker WHERE id {_LISTED}", (json.dumps(workers),))
        return workers

    def rescue_dead(self, now: float) -> None:
        """Put back the jobs of dead workers and remove their ports. Whoever opens the store does this first."""
        self._remove_workers(self.dead_workers(), now)
        for port in _dead_ports(self._db, self._home):
            self.unlisten(port)

    # Changes by hand ---------------------------------------------------------------------------

    def change(self, task_ids: Sequence[str], action: Action, *, now: float, by: str | None = None) -> list[bool]:
        unit = Unit(now, self._retention)
        return self.run(unit, change(unit, task_ids, action, emitted(action, by)))

    def remove(
        self, task_ids: Sequence[str] = (), by: str | None = None, before: float | None = None, limit: int = 1000
    ) -> set[str]:
        ids = json.dumps(task_ids)
        if before is not None:
            rows = _purge(self._db, before, limit)
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

    # Reading -----------------------------------------------------------------------------------

    def find(self, which: JobFilter, *, limit: int, after: int | None, oldest_first: bool) -> list[Sequence[Any]]:
        """Return the rows of jobs."""
        states = which.status
        if states and len(states) > 1 and SUCCESS not in states and not states <= REQUEUABLE:
            single = (dataclasses.replace(which, status=frozenset((status,))) for status in states)
            found = [self.find(one, limit=limit, after=after, oldest_first=oldest_first) for one in single]
            rows = itertools.chain.from_iterable(found)  # no index has several states in the order of `seq`
            return sorted(rows, key=operator.itemgetter(0), reverse=not oldest_first)[:limit]
        where, values = self._where(which)
        order, behind = ("ASC", ">") if oldest_first else ("DESC", "<")
        if after is not None:
            where, values = f"{where} AND seq {behind} ?", [*values, after]
        place = "seq" if which.tag is None else "job_seq"  # otherwise it would sort all jobs with the tag
        query = f"SELECT {_COLUMNS} FROM {_source(which)} WHERE {where} ORDER BY {place} {order} LIMIT ?"
        return self._db.execute(query, (*values, limit)).fetchall()

    def finished(self, task_ids: Sequence[str]) -> list[str]:
        """Return which of the jobs have finished or do not exist."""
        query = f"SELECT id FROM flowrra_job WHERE id {_LISTED} AND status IN {_UNFINISHED}"
        waiting = {row[0] for row in self._db.execute(query, (json.dumps(task_ids),))}
        return [task_id for task_id in task_ids if task_id not in waiting]

    def counts(self, which: JobFilter) -> dict[tuple[str, TaskStatus], int]:
        where, values = self._where(which)
        query = f"SELECT queue, status, count(*) FROM {_source(which)} WHERE {where} GROUP BY queue, status"
        return {(queue, TaskStatus(status)): count for queue, status, count in self._db.execute(query, values)}

    def _where(self, which: JobFilter) -> tuple[str, list[Any]]:
        if which.error is not None:  # SQLite's own lower() knows the letters A to Z only
            self._db.create_function("flowrra_lower", 1, str.lower, deterministic=True)
        return _where(which)

    def overview(self, since: float | None) -> Overview:
        query = f"SELECT {_WORKER_COLUMNS} FROM flowrra_worker WHERE NOT {_LAPSED} ORDER BY started"
        workers = [worker_of_row(*row) for row in self._db.execute(query, {"clock": self._clock.monotonic()})]
        if since is None:
            return Overview(workers, self._paused(), [], [])
        texts = self._db.execute("SELECT counts FROM flowrra_activity WHERE minute >= ?", (since,))
        totals = self._db.execute("SELECT task, what, number FROM flowrra_total")
        return Overview(workers, self._paused(), sum_of_activity(row[0] for row in texts), totals_of_activity(totals))

    def _paused(self) -> set[str]:
        return {row[0] for row in self._db.execute("SELECT queue FROM flowrra_paused")}

    def limit_states(self, names: Sequence[str], own: Collection[str]) -> list[LimitKey]:
        rows = self._db.execute(_LIMIT_KEYS, (json.dumps({name: name in own for name in names}),)).fetchall()
        return [
            LimitKey(name, text and Limit.from_text(text), running, pending, bool(waits), tat, due, bool(paused))
            for name, text, running, pending, waits, tat, due, paused in rows
        ]

    def limits(self) -> list[LimitUse]:
        declared = [Limit.from_text(text) for (text,) in self._db.execute("SELECT text FROM flowrra_limit")]
        return uses_of(declared, self._db.execute(_LIMIT_USE))

    # Listeners ---------------------------------------------------------------------------------

    def listen(self, port: int, kinds: str) -> None:
        """Send topics of these kinds, given by their first letters, to a loopback port."""
        row = (port, kinds, *self._home)
        self._db.execute("INSERT OR REPLACE INTO flowrra_listener VALUES (?, ?, ?, ?, ?)", row)

    def unlisten(self, port: int) -> None:
        self._db.execute("DELETE FROM flowrra_listener WHERE port = ?", (port,))

    def listeners(self) -> list[tuple[int, str]]:
        """Return the ports, each with the kinds of topics that it listens to."""
        return self._db.execute("SELECT port, kinds FROM flowrra_listener").fetchall()


def _give_places(db: sqlite3.Connection, jobs: Iterable[Job | LimitWaiter]) -> None:
    """Place jobs of fair queues behind all those that are ready now."""
    last = "SELECT coalesce(max(place), 0) FROM flowrra_job WHERE place > 0 AND status = 'pending'"
    for place, job in enumerate(jobs, db.execute(last).fetchone()[0] + 1):
        job.place = place


def _write_limits(db: sqlite3.Connection, unit: Unit) -> None:
    for limit in unit.limits:
        db.execute("INSERT OR REPLACE INTO flowrra_limit VALUES (?, ?)", (limit.name, limit.text))
        db.execute(_MAKE_DUE, {"begin": join_limit_key(limit.name, None), "end": f"{limit.name};", "now": unit.now})
    for state in unit.changed_keys():
        if state.row == LimitKey("").row:
            db.execute("DELETE FROM flowrra_limit_key WHERE name = ?", (state.name,))
        else:
            db.execute(_KEEP_KEY, (state.name, *state.row))


def _ready_queues(table: SQLiteTable, queues: Sequence[str]) -> list[str]:
    """Return which of the queues have jobs that are ready."""
    ready = "SELECT 1 FROM flowrra_job WHERE status = 'pending' AND queue = :queue AND crashes"
    query = f"{ready} = 0 UNION ALL {ready} > 0 LIMIT 1"
    return [queue for queue in queues if table._db.execute(query, {"queue": queue}).fetchone()]


def _dead_ports(db: sqlite3.Connection, home: _Home) -> list[int]:
    """The ports on which processes listened that are gone."""
    listeners = db.execute("SELECT port, home, pid, birth FROM flowrra_listener").fetchall()
    return [port for port, *process in listeners if home.is_dead(*process)]


def _plainness(job: Job) -> tuple[Any, ...]:
    """Return what jobs must have in common for one INSERT; () if the rules must see them."""
    if job.unique is not None or job.parents:
        return ()
    return (job.task, job.queue, job.priority, job.due, job.expires, labels_text(job), job.limit is None)


def json_or(text: str | None, default: Any) -> Any:
    """Return the value of a JSON text; `default` if there is none."""
    return default if text is None else json.loads(text)


def claimed_job(row: Sequence[Any], worker: str, now: float) -> Job:
    """Return the job of a row that `worker` has claimed at `now`."""
    seq, task_id, task, payload, queue, priority, submitted, due, attempt, failures, *rest = row
    crashes, labels, parents, steps, limited = rest
    started = now if now > submitted else submitted
    job = Job(  # by position, and RUNNING as _START has written: this is done for every job
        task_id, task, (), _NO_KEYWORDS, queue, priority, payload, due, None, None, (), None,
        RUNNING, submitted, seq, attempt + 1, failures, crashes, worker, started,
    )  # fmt: skip
    if labels is not None:
        give_labels(job, json.loads(labels))
    if parents is not None:
        job.parents = tuple(json.loads(parents))
    if steps is not None:
        job.steps = steps_of(steps)
    if limited is not None:
        give_limit_key(job, limited)
    return job


def steps_of(text: str | None) -> tuple[Step, ...]:
    """Return steps that are stored as a list in JSON."""
    return tuple([Step(*step) for step in json_or(text, ())])


_NO_KEYWORDS: Mapping[str, Any] = types.MappingProxyType({})


def _job_of_row(row: Sequence[Any]) -> Job:
    seq, task_id, task, queue, priority, payload, submitted, unique, parents, labels, limited, *rest = row
    status, due, expires, *rest = rest
    attempt, failures, crashes, worker, started, finished, purge_at, result, error, traceback, *rest = rest
    progress, history, cancel_requested, waits, place, steps = rest
    job = Job(
        task_id, task, (), {}, queue, priority, payload, due, expires, unique, tuple(json_or(parents, ())),
        None, TaskStatus(status), submitted, seq, attempt, failures, crashes, worker, started,
        finished, purge_at, _stored_result(result), error, traceback,
        None if progress is None else Progress(*json.loads(progress)),
        tuple([Attempt(*entry) for entry in json_or(history, ())]), bool(cancel_requested), waits,
    )  # fmt: skip
    give_labels(job, json_or(labels, {}))
    job.steps = steps_of(steps)
    give_limit_key(job, limited)
    job.place = place
    return job


def jobs_of_rows(rows: Iterable[Sequence[Any]]) -> list[Job]:
    """Return the jobs of rows of _COLUMNS."""
    return [_job_of_row(row) for row in rows]


def _changing_values(job: Job) -> tuple[Any, ...]:
    """The values of _CHANGING."""
    return (
        job.status, job.due, job.expires, job.attempt, job.failures, job.crashes, job.worker, job.started,
        job.finished, job.purge_at, f"[{encode(job.result)}]" if job.status is SUCCESS else None, job.error,
        job.traceback, json.dumps(job.progress) if job.progress else None,
        json.dumps(job.history) if job.history else None, job.cancel_requested, job.waits, job.place,
    )  # fmt: skip


def worker_of_row(worker: str, host: str, pid: int, queues: str, tasks: str, *rest: Any) -> WorkerInfo:
    """Return the worker of a row of an SQL store."""
    return WorkerInfo(worker, host, pid, json.loads(queues), json.loads(tasks), *rest)


def _stored_result(text: str | None) -> Any:
    """Return a result as a list of one, so that json_each returns its text unchanged."""
    return None if text is None or text == "[null]" else decode(text)[0]


def _first_of(*parts: str) -> str:
    """Return the query for the first of few jobs, which `parts` find by an index; 0 if there are many."""
    few = " UNION ALL ".join(f"SELECT +seq AS seq FROM flowrra_job WHERE {part}" for part in parts)
    return f"SELECT CASE WHEN count(*) < 1000 THEN min(seq) ELSE 0 END FROM ({few} LIMIT 1000)"


# How far back to look: a list of the few running jobs would otherwise read all finished ones (0.3 us each).
_FIRST_OF: Mapping[TaskStatus, str] = {
    RUNNING: _first_of("status = 'running'"),
    PENDING: _first_of("status = 'pending' AND crashes = 0", "status = 'pending' AND crashes > 0"),
    **dict.fromkeys((SCHEDULED, RETRYING), _first_of(f"status IN {_DUE_LATER}")),
    BLOCKED: _first_of("waits > 0", _WAITING),
}


def _source(which: JobFilter) -> str:
    """Return the table to search: jobs of a tag are found in the order of its index."""
    return "flowrra_job" if which.tag is None else "flowrra_tag CROSS JOIN flowrra_job ON seq = job_seq"


def _where(which: JobFilter) -> tuple[str, list[Any]]:
    """Return a filter as the text of a WHERE clause, with its values."""
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
        ("tag = ?", which.tag),
        ("seq >= ?", which.from_seq),
    ):
        if value is not None:
            terms.append((term, [value]))
    if which.ahead_of is not None:
        job = which.ahead_of
        place = "status = 'pending' AND queue = ? AND (priority, place, seq) < (?, ?, ?)"
        values = [job.queue, job.priority, job.place, job.seq]
        if awaits_limit(job):  # by rowid, since no index has both kinds of what is ahead
            place = f"""seq IN (SELECT seq FROM flowrra_job WHERE limit_key = ? AND {_ADMITTED} UNION ALL
                SELECT seq FROM flowrra_job WHERE limit_key = ? AND {_WAITING} AND (priority, seq) < (?, ?))"""
            values = [limit_key(job), limit_key(job), job.priority, job.seq]
        terms.append((place, values))
    clause = " AND ".join(term for term, _ in terms) or "true"
    return clause, [value for _, values in terms for value in values]


# When a commit is synced to disk. Lazily: by the next one that is, and a power cut may undo it (claims, leases). Before
# the answer: its caller waits for it, others may see it sooner (submits: a worker is on its way to the job meanwhile).
# Before the sight: nobody sees it sooner (ends of jobs: who has seen a result must not find the job running again).
_LAZILY, _BEFORE_ANSWER, _BEFORE_SIGHT = 0, 1, 2

_LISTENERS_FRESH = 0.01  # seconds for which the list of listeners is assumed to be unchanged
_LOOK_EVERY = 1.0  # seconds between checks of data_version, in case a datagram was lost
_SMALL_DISK = 50_000_000  # free bytes on the disk; with less, the log is kept short
_SQLITE_FULL = 13
_CHECK_EVERY = 1.0  # seconds between checks whether the file is still the one under its path
_LOCKED_CLOSE = 1.0  # seconds that a close waits for the locks of other processes
_RESCUE_WAIT = 1.0  # seconds that an open waits for these locks to rescue the jobs of dead workers
_DATAGRAM_LIMIT = 32_000  # bytes of topics in one datagram; if there are more, the listener polls


@dataclass(slots=True, eq=False)
class _Operation:
    """One call on the table. Operations of one `kind` that have `items` run as a single call on all items."""

    work: Callable[..., Any]  # of the table, and of the items
    sync: int = _LAZILY
    kind: str = ""
    items: Sequence[Any] | None = None
    future: asyncio.Future[Any] | None = None
    result: Any = None
    error: Exception | None = None

    @property
    def is_abandoned_claim(self) -> bool:
        """Whether it would claim jobs for a caller that was cancelled."""
        return self.kind == "claim" and self.future is not None and self.future.cancelled()


class _NotSyncedError(BrokerError):
    """What was committed may be lost in a power cut."""


class _SQLiteFile:
    """A write connection with its transactions. One thread at a time uses it, under `lock`."""

    def __init__(self, path: str | None, synchronous: str, timeout: float) -> None:
        self.path = path
        self.lock = threading.Lock()
        self.publish: Callable[[SQLiteTable], None] = lambda table: None  # called after each commit, under the lock
        self._synchronous = synchronous.upper()
        self._level = ""
        self._log: int | None = None  # the write-ahead log, to sync it while others may write on
        self._timeout = timeout
        self._pid = os.getpid()
        self.give_up_at = math.inf  # when the close of the broker stops waiting for locks
        self.identity: str | None = None
        self._check_at = 0.0  # when to check next whether the file still exists

    def check(self) -> None:
        """Refuse, within a second, a file that was deleted or replaced: other processes would not see the writes."""
        if self.path is None or time.monotonic() < self._check_at:
            return
        found = self._identify()
        if self.identity is None:
            self.identity = found
        elif found != self.identity:
            what = "deleted" if found is None else "replaced by another file"
            raise StoreLostError(
                f"{self.path} was {what} while it was open: other processes would not see what is written to it. "
                "Stop what uses it, put the old file back together with its -wal, or keep the new file, and start again"
            )
        self._check_at = time.monotonic() + _CHECK_EVERY

    def _identify(self) -> str | None:
        try:
            found = os.stat(cast("str", self.path))
        except FileNotFoundError:
            return None
        except OSError:  # a mount may be missing for a moment: that is not another file
            return self.identity
        return f"{found.st_dev} {found.st_ino}"

    @property
    def is_ours(self) -> bool:
        """Whether this process has opened it: a connection and a lock of SQLite do not survive a fork."""
        return self._pid == os.getpid()

    def open(self, retention: BackendConfig, clock: Clock) -> None:
        self.reader = self.connection = _connect(self.path)
        self.table = SQLiteTable(self.connection, retention, clock)
        try:
            # Of a new file. A commit writes whole pages to the log: a lone submit takes 20 us, with pages of 4 kB 25.
            self.connection.execute("PRAGMA page_size=2048")
            give_up = time.monotonic() + self._timeout
            if self.path is not None and not os.path.getsize(self.path):  # in an old file, it would wait for writers
                self._wait_for_lock("PRAGMA auto_vacuum=INCREMENTAL", give_up)  # see _purge()
            self._wait_for_lock("PRAGMA journal_mode=WAL", give_up)
            self._bound_log()
            self.connection.execute("PRAGMA synchronous=FULL")
            self._prepare(clock)
            if self.path is not None:
                self.reader = _connect(self.path, read_only=True)
            self.check()
        except BaseException:
            self.close()
            raise

    def _prepare(self, clock: Clock) -> None:
        """Have the tables as they are now, and put back the dead's jobs.

        Where there is nothing to be done no lock is waited for: it may be that of a transaction which begins to submit.
        """
        now, patience = clock.time(), self._timeout
        with contextlib.suppress(Exception):  # there is no such table, or another process recovers the log
            (version,) = self.connection.execute("SELECT schema FROM flowrra_meta").fetchone()
            if version == _SCHEMA_VERSION:
                if not (self.table.dead_workers() or _dead_ports(self.connection, _Home.here())):
                    return
                patience = min(_RESCUE_WAIT, patience)  # if it takes longer, a worker's next look finds them
        try:
            self.transact(lambda: self._migrate(now), sync=_BEFORE_SIGHT, patience=patience)
        except Exception as error:
            if patience == self._timeout or not _is_busy(error):
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
        if version > _SCHEMA_VERSION:
            raise BrokerError(f"{self.path} has schema {version}, newer than {_SCHEMA_VERSION}: upgrade this flowrra")
        if version < _SCHEMA_VERSION:
            self._rebuild(version)
            db.execute("DELETE FROM flowrra_meta")
            db.execute("INSERT INTO flowrra_meta VALUES (?)", (_SCHEMA_VERSION,))
        self.table.rescue_dead(now)

    def _rebuild(self, version: int) -> None:
        """Create all tables in their current form, and fill them from an older version. Other tables stay."""
        db = self.connection
        # The last two are tables and indexes of older versions, which are dropped.
        ours = {*re.findall(r"CREATE .*?(flowrra_\w+)", _SCHEMA), "flowrra_dependency", "flowrra_child"}
        made = [row for row in db.execute("SELECT type, name FROM sqlite_master").fetchall() if row[1] in ours]
        tables = [name for kind, name in made if kind == "table"]
        if tables and not version:
            raise BrokerError(f"{self.path} has a table {tables[0]} that Flowrra has not made: use another file")
        for kind, name in made:
            db.execute(f"ALTER TABLE {name} RENAME TO old_{name}" if kind == "table" else f"DROP {kind} {name}")
        for statement in _statements(_SCHEMA):
            db.execute(statement)
        if tables:
            db.execute("INSERT INTO sqlite_sequence SELECT substr(name, 5), seq FROM sqlite_sequence "
                       "WHERE name LIKE 'old!_flowrra!_%' ESCAPE '!'")  # fmt: skip
        for name in tables:
            columns, old = ([row[1] for row in db.execute(f"PRAGMA table_info({t})")] for t in (name, f"old_{name}"))
            kept = ", ".join(column for column in old if column in columns)
            if kept:
                db.execute(f"INSERT INTO {name} ({kept}) SELECT {kept} FROM old_{name}")
            db.execute(f"DROP TABLE old_{name}")
        for statement in _statements(_LATER_RULES) if tables else ():
            db.execute(statement, {"version": version} if ":version" in statement else {})

    def _bound_log(self) -> None:
        """Keep the log small on a small disk: if the log fills the disk, it cannot be written back into the file."""
        is_small = False
        with contextlib.suppress(OSError, AttributeError):  # Windows has no statvfs
            disk = os.statvfs(os.path.dirname(self.path)) if self.path is not None else None
            is_small = disk is not None and disk.f_bavail * disk.f_frsize < _SMALL_DISK
        # 2,000 pages are 4 MB. A sync takes 40 us more while the log grows; with 2 MB a drain at FULL is 10 % slower.
        self.connection.execute(f"PRAGMA wal_autocheckpoint={100 if is_small else 2000}")
        self.connection.execute(f"PRAGMA journal_size_limit={200_000 if is_small else 5_000_000}")

    def transact(self, work: Callable[[], T], *, sync: int, patience: float) -> T:
        """Run `work` in one transaction, waiting up to `patience` seconds for locks of other processes.

        If the disk is full, the log is written back into the file and `work` is run again: there may be room now.
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
            self.publish(self.table)  # before it is on disk: others can start the job meanwhile
        if apart:
            self._sync_log()
        elif sync != _LAZILY and self._log is None:
            self._open_log()
        return done

    def _open_log(self) -> None:
        """From now on, sync as a commit at FULL does, but after the lock is released.

        The first commit is one at FULL: it also syncs the folder in which the log was created. Without fdatasync
        (Windows, macOS), all commits are.
        """
        if self.path is not None and self._synchronous == "FULL" and hasattr(os, "fdatasync"):
            (_, _, target), *_ = self.connection.execute("PRAGMA database_list")  # behind a symbolic link
            with contextlib.suppress(FileNotFoundError):  # it was deleted, as the next check will find
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
                logger.warning("%s is locked by another connection; waiting up to %g s", self.path, deadline - began)
            time.sleep(jittered(pause))
            pause = min(pause * 1.5, 0.01)

    def run_group(self, group: Sequence[_Operation], patience: float) -> dict[Topic, None]:
        """Run the operations as one transaction. If it fails, run each half on its own. Return the changed topics."""
        sync = max(operation.sync for operation in group)
        try:
            self.transact(lambda: self._run_each(group), sync=sync, patience=patience)
            return self.table.woken
        except _NotSyncedError as error:  # committed anyway: if they were repeated, claims would take other jobs
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
        for alike in merged.values():  # first, as calls that are under way at once have no order among them
            items = [item for operation in alike for item in operation.items or ()]
            results = iter(alike[0].work(self.table, items))  # at the `now` of the first: milliseconds apart
            for operation in alike:
                operation.result = list(itertools.islice(results, len(operation.items or ())))
        for operation in group:
            if operation.items is None and not operation.is_abandoned_claim:
                operation.result = operation.work(self.table)


class _Signals(asyncio.DatagramProtocol):
    """Tells other processes which topics were changed, and wakes callers in this process when others tell.

    `publish` is called by the thread that commits, under the file's lock. All else runs on the loop that opened the
    broker. A check of the file once per second finds what a lost datagram would have reported.
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
        self._due: float | None = None  # when the next job is due, as of the last look

    # Notifying ---------------------------------------------------------------------------------

    def publish(self, table: SQLiteTable) -> None:
        """Send the changed topics to those who listen to them."""
        if table.woken and (now := time.monotonic()) > self._fresh_until:  # a check costs 1.8 us, a single submit 25 us
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

    # Receiving ---------------------------------------------------------------------------------

    async def listen(self, kind: str) -> None:
        """Make other processes send this one a kind of topics."""
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
                    logger.warning("%s: no socket for wake-ups (%s); polling every second", self._broker.path, error)
                    return
            port: int = self._transport.get_extra_info("sockname")[1]
            self._port, kinds = port, self._kinds + kind
            await self._broker.run(_Operation(lambda table: table.listen(port, kinds)))
            self._kinds = kinds
            if self._look_timer is not None:
                self._look_timer.cancel()
            self._look_timer = self._loop.call_later(2 * _LISTENERS_FRESH, self._look)  # the writer may not know us yet

    def datagram_received(self, data: bytes, addr: object) -> None:
        try:
            topics = [(str(kind), str(name)) for kind, name in json.loads(data)]
        except (ValueError, TypeError, RecursionError):  # not one of ours
            topics = []
        if topics:
            self.wake(topics)
        else:  # too much for one datagram; notices come with the next heartbeat
            self._wake_finished()
            self.wake([("queue", "")])

    def wake(self, topics: Iterable[Topic]) -> None:
        """Wake those who wait for the topic; ("queue", "") stands for all queues."""
        for topic in topics:
            if topic == ("queue", ""):
                self._broker.hub.wake_all("queue")
            else:
                self._broker.hub.wake(topic)

    # Reading -----------------------------------------------------------------------------------

    def next_look(self) -> float:
        """Return the time of the next look, the same for all timers: an idle process wakes once for all of them."""
        now = self._loop.time()
        return now + _LOOK_EVERY - now % _LOOK_EVERY

    def keep_looking(self) -> None:
        """Look at the file regularly, as long as somebody waits."""
        if self._look_timer is None and self._broker.path is not None:
            self._look_timer = self._loop.call_at(self.next_look(), self._look)

    def _look(self) -> None:
        """Check by data_version whether anything was committed (2.6 us), and whether workers of this host have died."""
        self._look_timer = None
        waiters = self._broker.hub.waiters
        if waiters:
            self.keep_looking()  # now, since this look may fail
        try:
            if waiters.keys() == {("worker", "")}:  # of a keeper, which no commit concerns
                self._broker.check()
            elif (version := self._broker.data_version()) != self._data_version:
                self._data_version = version
                self._look_for_work()
            if ("worker", "") in waiters and self._broker.peek(SQLiteTable.dead_workers):
                self._broker.hub.wake(("worker", ""))  # the next heartbeat will put their jobs back
        except StoreLostError as error:
            self._broker.hub.close(error)
        except BrokerError as error:  # the store was just lost, or is unreachable for a moment: the next check decides
            logger.warning("cannot check what other processes wrote: %s", error)

    def _look_for_work(self) -> None:
        """Wake those for whom a commit may have brought something. Usually it was the heartbeat of some worker."""
        queues = self._broker.hub.awaited("queue")
        due, ready = (
            self._broker.peek(lambda table: (table.next_due(), _ready_queues(table, queues))) if queues else (None, [])
        )
        if due != self._due:
            self._due, ready = due, [""]
        self._wake_finished()
        self.wake(("queue", queue) for queue in ready)

    def _wake_finished(self) -> None:
        if waited := self._broker.hub.waiting("job"):
            self.wake(("job", task_id) for task_id in self._broker.peek(lambda table: table.finished(waited)))

    # Closing -----------------------------------------------------------------------------------

    async def close(self) -> None:
        """Stop listening."""
        async with self._lock:
            self.abandon()

    def abandon(self) -> None:
        """Close after the loop has ended, without waiting. If the loop is closed, the transport cannot be closed."""
        if self._look_timer is not None:
            self._look_timer.cancel()
        if self._transport is not None:
            with contextlib.suppress(RuntimeError):
                self._transport.close()

    def unlisten(self) -> None:
        """Remove this process from the listeners, from the thread that closes the file."""
        if self._socket is not None:
            self._socket.close()
        if (port := self._port) is not None:
            with contextlib.suppress(Exception):  # a store that is gone has no list of listeners either
                self._file.transact(lambda: self._file.table.unlisten(port), sync=_LAZILY, patience=0.1)


def _call_soon(loop: asyncio.AbstractEventLoop, function: Callable[..., Any], *args: Any) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed; nobody waits any more
        loop.call_soon_threadsafe(function, *args)


class SQLiteBroker(Broker):
    """Stores jobs in a SQLite file that processes of one host share. Without `path`: private, in memory.

    With `synchronous="normal"`, a power cut can undo the last commits before it; with "full" it cannot.
    """

    keeps_text = True
    has_limits = True

    def __init__(
        self,
        path: str | None = None,
        config: BrokerConfig | None = None,
        retention: BackendConfig | None = None,
        clock: Clock | None = None,
        *,
        synchronous: str = "full",
    ) -> None:
        if synchronous.lower() not in ("full", "normal"):
            raise ConfigError(f"synchronous must be 'full' or 'normal', not {synchronous!r}")
        self.path = None if path is None else os.path.abspath(path)
        self.config = config or BrokerConfig()
        self.retention = retention or BackendConfig()
        self.clock = clock or Clock()
        self.hub = WaiterHub()
        self._synchronous = synchronous
        self._signals: _Signals
        self._file: _SQLiteFile | None = None
        self._writer: threading.Thread | None = None
        if path is not None and hasattr(os, "register_at_fork"):
            _fork_between_transactions(self)

    def clone(self) -> SQLiteBroker | None:
        if self.path is None:
            return None
        return SQLiteBroker(self.path, self.config, self.retention, self.clock, synchronous=self._synchronous)

    # Opening and closing -----------------------------------------------------------------------

    async def open(self) -> None:
        if self._file is not None and self._file.is_ours:
            self._signals.abandon()
            await asyncio.to_thread(self._abandon, self._file)
        elif self._file is not None:  # of the parent of a fork: kept, since collecting it would close the parent's
            self._inherited, self._writer = vars(self).copy(), None
        self.hub = WaiterHub()
        file = _SQLiteFile(self.path, self._synchronous, self.config.timeout)
        self._loop = asyncio.get_running_loop()
        self._inbox: thread_queue.SimpleQueue[list[_Operation] | None] = thread_queue.SimpleQueue()
        self._gathered: list[_Operation] = []  # of this turn of the loop, on their way to the writer
        self._written = asyncio.Event()  # the writer has ended
        self._upkeep: asyncio.Future[Any] = self._loop.create_future()  # the latest step, to be followed by another
        self._upkeep.set_result(None)
        self._signals = _Signals(self, file)
        with self._translated():
            await asyncio.to_thread(file.open, self.retention, self.clock)
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
            await self._written.wait()  # not joined in a thread: at the interpreter's exit none can be started
        await asyncio.sleep(0)  # the writer's last answers are on the loop by now
        await self._signals.close()
        self.hub.close(BrokerError("the broker was closed while this call was waiting"))
        self._abandon(file)
        await asyncio.sleep(0)  # for the transport, which closes its socket in the next turn

    def _abandon(self, file: _SQLiteFile) -> None:
        """Close everything that is bound to no loop, also if the loop ended without closing it."""
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

    def run(self, operation: _Operation) -> asyncio.Future[Any]:
        """Give the operation to the writer thread, together with all others of this turn of the loop.

        The future gets its result. If it is cancelled, the operation may or may not have been done.
        """
        file = self._opened()
        if self._writer is None:
            writer = threading.Thread(target=self._write, args=(file,), name="flowrra-sqlite", daemon=True)
            writer.start()
            self._writer = writer
        operation.future = self._loop.create_future()
        if not self._gathered:
            self._loop.call_soon(self._pass_on)
        self._gathered.append(operation)
        return operation.future

    def _pass_on(self) -> None:
        if self._gathered:
            self._inbox.put(self._gathered)
            self._gathered = []

    def _write(self, file: _SQLiteFile) -> None:
        """The writer thread: take the operations that wait, commit them as one group, and answer them."""
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
        """Write a group. The thread must survive any error, because its callers wait: each of them gets the error."""
        try:
            with file.lock:
                return file.run_group(group, self.config.timeout)
        except BaseException as error:
            logger.critical("the writer of %s failed", self.path or "sqlite://", exc_info=error)
            for operation in group:
                operation.error = BrokerError(f"the writer of {self.path or 'sqlite://'} failed: {error!r}")
            return {}

    def _answer(self, group: Sequence[_Operation], woken: Mapping[Topic, None], left: float | None) -> None:
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
        """Let the writer take another step of an upkeep that is too much for one claim, unless one is scheduled."""
        if now is None or self._file is None or not self._upkeep.done():
            return
        self._upkeep = self.run(_Operation(lambda table: table.upkeep(now)))
        self._upkeep.add_done_callback(lambda done: done.cancelled() or done.exception())  # the next claim tries again

    # The protocol ------------------------------------------------------------------------------

    async def push(self, jobs: Sequence[Job], *, now: float, by: str | None = None) -> list[str]:
        self._opened()
        for job in jobs:
            job.payload = encode_arguments(job)
        if by is not None:
            return cast("list[str]", await self._durably(lambda table: table.push(jobs, now=now, by=by)))
        operation = _Operation(lambda table, jobs: table.push(jobs, now=now), _BEFORE_ANSWER, "push", jobs)
        return cast("list[str]", await self.run(operation))

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
        if kind == "job":
            for topic in topics:
                self.hub.look(topic)
            if self.peek(lambda table: table.finished([name for _, name in topics])):
                return
        self._signals.keep_looking()
        now = self._loop.time()
        if timeout is not None and now + timeout > (look := self._signals.next_look()):
            timeout -= (now + timeout - look) % _LOOK_EVERY
        due = self.peek(SQLiteTable.next_due) if kind == "queue" else None
        if due is not None:
            timeout = min(math.inf if timeout is None else timeout, due - self.clock.time())
        await self.hub.wait(topics, timeout)

    async def claim(self, queue: str, *, limit: int, worker: str, now: float, crashes: int = LAST_CHANCE) -> list[Job]:
        self.hub.look(("queue", queue))
        operation = _Operation(
            lambda table: table.claim(queue, limit=limit, worker=worker, now=now, crashes=crashes), kind="claim"
        )
        rows = await self.run(operation)
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
        notices, term = cast("tuple[Notices, str]", await self.run(operation))
        worker.seen, worker.term = now, term or worker.term
        return notices

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
        def look(table: SQLiteTable) -> list[Sequence[Any]]:
            return table.find(which, limit=limit, after=after, oldest_first=oldest_first)

        if which.ids is None or len(which.ids) > 100:
            return await self._look_up(lambda table: jobs_of_rows(look(table)))
        self._opened()
        return await apart(jobs_of_rows, self.peek(look))  # by key, from the page cache: 20 us; a reader never waits

    async def counts(self, which: JobFilter | None = None) -> dict[tuple[str, TaskStatus], int]:
        return await self._look_up(lambda table: table.counts(which or JobFilter()))

    async def overview(self, since: float | None = None) -> Overview:
        return await self._look_up(lambda table: table.overview(since))

    async def limits(self) -> list[LimitUse]:
        return await self._look_up(lambda table: table.limits())

    async def limit_states(self, names: Sequence[str]) -> list[LimitKey]:
        states = {one.name: one for one in await self._look_up(lambda table: table.limit_states(names, names))}
        return [states[name] for name in names]

    def check(self) -> None:
        """Raise a StoreLostError if the file was deleted or replaced."""
        if self._file is not None:  # else it is just being closed
            self._file.check()

    def data_version(self) -> int:
        """Return a number that changes with each commit to the file by another connection."""
        self.check()
        with self._translated():
            return cast("int", self._reader.execute("PRAGMA data_version").fetchone()[0])

    def peek(self, look: Callable[[SQLiteTable], T]) -> T:
        """Run a fast read on this thread."""
        # A private database has but one connection.
        with self._translated(), contextlib.nullcontext() if self.path is not None else self._opened().lock:
            return look(self._reading)

    async def _look_up(self, look: Callable[[SQLiteTable], T]) -> T:
        """Run a read that may be slow, in a thread with its own connection."""
        file = self._opened()
        with self._translated():
            return await asyncio.to_thread(self._look_apart, file, look)

    def _look_apart(self, file: _SQLiteFile, look: Callable[[SQLiteTable], T]) -> T:
        if self.path is None:
            return self.peek(look)
        with contextlib.closing(_connect(self.path, read_only=True)) as connection:
            return look(SQLiteTable(connection, self.retention, self.clock))


def _fork_between_transactions(broker: SQLiteBroker) -> None:
    """Let a fork of the process wait for the end of a transaction, for at most a second.

    SQLite keeps in memory which locks the process holds. For a child that is forked during a transaction, its file
    would be locked for ever.
    """
    reference, held = weakref.ref(broker), dict[int, _SQLiteFile]()  # by the thread that forks

    def begin() -> None:
        open_broker = reference()
        file = None if open_broker is None else open_broker._file
        if file is not None and file.lock.acquire(timeout=1.0):
            held[threading.get_ident()] = file

    def end() -> None:
        if (file := held.pop(threading.get_ident(), None)) is not None:
            file.lock.release()

    os.register_at_fork(before=begin, after_in_parent=end, after_in_child=end)


@contextlib.contextmanager
def _plain_rows(connection: sqlite3.Connection) -> Iterator[None]:
    """Make a user's connection return tuples of text in this context, whatever its row type is."""
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
    import urllib.parse

    if sqlite3.sqlite_version_info < (3, 35):
        raise ConfigError(f"SQLite {sqlite3.sqlite_version} is too old: Flowrra needs 3.35 or later")
    place = path or ":memory:"
    if read_only:  # and if the file was deleted, do not make another
        name = urllib.parse.quote(os.fsencode(os.path.abspath(place).replace(os.sep, "/").lstrip("/")))
        place = f"file:///{name}?mode=rw"
    connection = sqlite3.connect(place, timeout=0, isolation_level=None, check_same_thread=False, uri=read_only)
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
    **dict.fromkeys((5, 6), "has been locked for {timeout:g} s: is something holding a transaction open?"),
    8: "cannot be written: make the file and its folder writable for this user",
    10: "cannot be read or written ({error}): look at the disk and its mount",
    11: "is damaged ({error}): restore a backup, or use another file",
    13: "is on a full disk: nothing of this call was written; make room and try again",
    14: "cannot be opened: does its folder exist, and may this user write there?",
    26: "is not a SQLite database: choose another file",
    517: "was changed by others after this transaction had begun to read it: begin it by BEGIN IMMEDIATE",
}


def _explain_sqlite(error: Exception, path: str | None, timeout: float) -> Exception:
    """Return a clear error for a sqlite3 error; other errors unchanged."""
    import sqlite3

    if not isinstance(error, sqlite3.Error):
        return error
    code = getattr(error, "sqlite_errorcode", 0)
    reason = _SQLITE_REASONS.get(code) or _SQLITE_REASONS.get(code & 0xFF, "failed: {error}")
    return BrokerError(f"{path or 'sqlite://'} " + reason.format(error=error, timeout=timeout))


# ---------------------------------------------------------------------------
# 11. Tasks
#
# What users declare and call: a function with its options, one submission of
# it, and the context of a running job. Arguments are checked against the
# signature here, so that a wrong call fails in the caller.
# ---------------------------------------------------------------------------


class Submitter:
    """What a task needs from its app to submit jobs. `limits`: those that it declares, by name."""

    limits: dict[str, Limit]

    def check_limit(self, name: str) -> None:
        """Raise a ConfigError if the app declares no limit of that name."""
        if name not in self.limits:
            raise ConfigError(f"no limit {name!r} is declared here by app.limit(){nearest(name, self.limits)}")

    def submit_jobs(self, jobs: Sequence[Job]) -> Awaitable[list[str]]:
        """Push the jobs and return their ids."""
        raise ConfigError(_NO_APP)

    def new_id(self) -> str:
        """Return a new job id."""
        raise ConfigError(_NO_APP)

    def now(self) -> float:
        """Return the app's wall clock."""
        raise ConfigError(_NO_APP)


_NO_APP = "these tasks belong to no app, so nothing can be submitted: app.include() their set first"


class _Unawaited(Coroutine[Any, Any, T]):
    """A call that was made without a running event loop. If it is dropped without `await`, an error is logged."""

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
            logger.error("%s() was called without await, so it did nothing: use app.sync in plain code", self._name)


def _never_dropped(call: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Wrap an `async def` so that a call without `await` in plain code, such as a Flask view, is reported."""

    @functools.wraps(call)
    def made(*args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]:
        coroutine = call(*args, **kwargs)
        return _Unawaited(coroutine, call.__qualname__) if asyncio._get_running_loop() is None else coroutine

    if sys.version_info >= (3, 12):
        return inspect.markcoroutinefunction(made)
    made._is_coroutine = asyncio.coroutines._is_coroutine  # type: ignore[attr-defined]  # frameworks check this
    return made


class SubmitOptions(TypedDict, total=False):
    """The options of one submission, for `Task.options` and for `Flowrra.submit`; None means "not given".

    `priority`: a job with a lower number runs first. `queue`: the queue in which the job waits. `delay`: the earliest
    start, in seconds after the submission; `run_at`: the earliest start as a datetime (a naive one is in the machine's
    local time). `expires`: seconds or a datetime; a job that has not started by then is cancelled. `unique`: a key;
    while an unfinished job has this key, submit returns the id of that job. `on_conflict`: what happens to that job if
    it has not started. "keep", the default, changes nothing. "replace" gives it the new arguments, limit and key, and
    no other option. "postpone" also gives it the new `delay` or `run_at`, up to `max_wait` seconds after its
    submission. If it has started, both submit a second job, which waits for the first; another task's is an error.
    `task_id`: the id of the job; if a job with this id exists, submit changes nothing. `tags`: up to 20 texts to find
    the job by. `meta`: data to store with the job, a dictionary of plain values. `limit`: the name of a limit, in place
    of that of the task. `key`: limits hold for each key, and a fair queue serves its keys in turns. `submit` takes
    these options if the task has no parameter of the same name; `limit` and `key`, which may be arguments, also not if
    the task takes any keywords. All other options replace those of the task for this job.
    """

    priority: int | None
    queue: str | None
    delay: float | dt.timedelta | None
    run_at: dt.datetime | None
    expires: float | dt.timedelta | dt.datetime | None
    unique: str | None
    on_conflict: Literal["keep", "replace", "postpone"] | None
    max_wait: float | dt.timedelta | None
    task_id: str | None
    tags: Sequence[str] | None
    meta: Mapping[str, str | int | float | bool | None] | None
    limit: str | None
    key: str | int | None
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
_OF_A_FUNCTION = (*functools.WRAPPER_ASSIGNMENTS, "__code__", "__defaults__", "__kwdefaults__", "__annotations__")


class Task(Generic[P, R]):
    """A registered function with its options. A call runs the function directly, without a job."""

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
        try:
            self.signature = inspect.signature(function)
        except ValueError as error:  # of some that are written in C
            raise ConfigError(f"{function!r} has no signature to check arguments by: wrap it in a function") from error
        if _is_method(function, self.signature):
            raise ConfigError(
                f"the task {name!r} is a method, whose object cannot be kept with a job: use a function, a "
                "@staticmethod, or register the method of an object, as in app.task(mailer.send)"
            )
        if options.batch is not None:
            self.signature = _signature_of_one(name, function, self.signature)
        self._least, self._most = _positional_range(self.signature)
        parameters = self.signature.parameters.values()
        named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        self.submit_options = SUBMIT_OPTIONS - named
        if any(one.kind is one.VAR_KEYWORD for one in parameters):
            self.submit_options -= {"limit", "key"}
        self.limit = options.limit or (limit_of_task(name) if options.has_own_limit else None)
        self.key_parameters = None if options.key is None else _key_parameters(name, options.key, self.signature)
        converters = Converters(name, function, self.signature)
        if converters.refusal is not None:
            raise ConfigError(converters.refusal)
        self.converters = converters if converters.are_needed else None
        _check_soft_timeout(self, options)
        self.__wrapped__ = function  # for type checkers; the next line sets it, too
        functools.update_wrapper(self, function, _OF_A_FUNCTION, ())

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<task {self.name}>"

    @_never_dropped
    async def submit(self, *args: P.args, **kwargs: P.kwargs) -> TaskId[R]:
        """Submit one job. See `Flowrra.submit`."""
        return cast("TaskId[R]", (await self.app.submit_jobs([self.make_job(args, kwargs)]))[0])

    def options(self, **options: Unpack[SubmitOptions]) -> Submission[P, R]:
        """Return the task with options for the jobs that you submit through the returned object. See `SubmitOptions`.

        Raises:
            ConfigError: an option is out of range.
            TypeError: there is no such option.
        """
        for wrong in options.keys() - SUBMIT_OPTIONS:
            raise TypeError(f"{self.name} cannot be submitted with {wrong!r}{nearest(wrong, SUBMIT_OPTIONS)}")
        given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        if "delay" in given and "run_at" in given:
            raise ConfigError("give delay= or run_at=, not both")
        if str(given.get("task_id")).startswith(event_id("")):
            raise ConfigError(f"task_id={given['task_id']!r} is the id of an event: emit() that, or give another id")
        fields = {field: check(given[name]) for name, (field, check) in _JOB_FIELDS.items() if name in given}
        overrides = {name: value for name, value in given.items() if name in _OVERRIDES}
        if "timeout" in overrides and self.settings.batch is not None:
            raise ConfigError(f"timeout={given['timeout']!r} of one job: a batch has that of its task {self.name}")
        checked = dataclasses.replace(self.settings, **overrides)
        _check_soft_timeout(self, checked)
        fields["conflict"] = _conflict(given)
        fields["overrides"] = {name: getattr(checked, name) for name in overrides} or None
        if isinstance(expires := given.get("expires"), dt.datetime):
            fields["expires"], expires = _timestamp("expires", expires), None
        return Submission(
            self,
            fields,
            delay=_seconds("delay", given["delay"]) if "delay" in given else None,
            expires=None if expires is None else _seconds("expires", expires),
            limit=check_limit(given["limit"]) if "limit" in given else self.limit,
            key=check_limit_key(given["key"]) if "key" in given else None,
        )

    def check(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Raise a TypeError if the function cannot be called with these arguments."""
        try:
            self.signature.bind(*args, **kwargs)
        except TypeError as error:
            wrong = min(kwargs.keys() - self.signature.parameters.keys(), default=None)
            hint = f", and submit has no such option{nearest(wrong, self.submit_options)}" if wrong else ""
            raise TypeError(f"{self.name}{self.signature}: {error}{hint}") from None

    def typed(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Convert arguments from JSON to the annotated types; a SerializationError names the part that does not fit."""
        return Converters(self.name, self.function, self.signature).arguments(args, kwargs, loading=True, every=True)

    def make_job(self, args: Sequence[Any], kwargs: Mapping[str, Any], *, is_limited: bool = True) -> Job:
        """Make a job of this task: checked, and ready to be pushed. If not `is_limited`, call `limit_job` next."""
        given = args, kwargs
        if kwargs or not self._least <= len(args) <= self._most:
            self.check(args, kwargs)
        if self.converters is not None:
            args, kwargs = self.converters.arguments(args, kwargs, loading=False)
        job = Job(self.app.new_id(), self.name, tuple(args), kwargs, self.queue, self.priority)
        if kwargs or not _SCALARS.issuperset(map(type, args)):
            find_parents(job)
        if is_limited and (self.limit is not None or self.settings.key is not None or self.app.limits):
            self.limit_job(job, self.limit, None, *given)
        return job

    def limit_job(
        self, job: Job, limit: str | None, key: str | None, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        """Give a job its limit and key. The arguments are those that the key function gets.

        Raises:
            ConfigError: the app does not declare the limit, or the key cannot be computed or has no limit.
        """
        job.limit, job.key = limit, self._key_of(args, kwargs) if key is None else key
        if job.limit is None and limit_of_queue(job.queue) in self.app.limits:
            job.limit = limit_of_queue(job.queue)
        elif job.limit is not None:
            if self.function is not run_elsewhere:
                self.app.check_limit(job.limit)
        elif job.key is not None:
            raise ConfigError(
                f"{self.name} has the key {job.key!r} and no limit: give the task limit=, concurrency= or rate=, or "
                f"declare app.fair_queue({job.queue!r})"
            )

    def _key_of(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
        if self.settings.key is None:
            return None
        try:
            if self.key_parameters is not None:
                given = self.signature.bind(*args, **kwargs)
                given.apply_defaults()
                args, kwargs = [given.arguments[name] for name in self.key_parameters], {}
            return check_limit_key(self.settings.key(*args, **kwargs))
        except Exception as error:
            why = f"{error}" if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
            raise ConfigError(f"the key function of {self.name} gives no key for these arguments: {why}") from error


def _signature_of_one(name: str, function: Callable[..., Any], signature: inspect.Signature) -> inspect.Signature:
    """Return the signature of one job of a batch task, whose function takes a list and returns a list or None."""
    parameters = [one for one in signature.parameters.values() if one.kind not in _REST]
    if not parameters or any(one.default is one.empty for one in parameters[1:]):
        raise ConfigError(f"the batch task {name!r} must take one argument, the list of its jobs' arguments")
    rows, names = parameters[0], getattr(inspect.unwrap(function), "__globals__", {})
    taken, returned = (
        Any if hint is rows.empty else Annotations().resolve(hint, names)
        for hint in (rows.annotation, signature.return_annotation)
    )
    kind: Any = typing.get_origin(taken) or taken
    if taken is not Any and not (isinstance(kind, type) and issubclass(list, kind)):
        raise ConfigError(f"the batch task {name!r} gets a list, but {rows.name!r} is a {rows.annotation!r}")
    one_row = rows.replace(annotation=_item(taken), default=rows.empty)
    return signature.replace(parameters=[one_row], return_annotation=_without_errors(_item(returned)))


def _item(annotation: Any) -> Any:
    return (*typing.get_args(annotation), Any)[0]


def _without_errors(returned: Any) -> Any:
    """Return the annotation without exception types: a batch task may put an exception in the place of a result."""
    kinds = typing.get_args(returned) if typing.get_origin(returned) in (typing.Union, types.UnionType) else (returned,)
    kept = [kind for kind in kinds if not (isinstance(kind, type) and issubclass(kind, BaseException))]
    return functools.reduce(operator.or_, kept) if kept else Any


def run_elsewhere(*args: Any, **kwargs: Any) -> Any:
    raise TaskNotFoundError("this task is not registered here: it can be submitted, but not called")


def limit_of_task(name: str) -> str:
    """Return the name of the limit of a task that has a limit of its own."""
    try:
        return check_limit(name)
    except ConfigError as error:
        raise ConfigError(f"the task {name!r} cannot have numbers of its own, but limit= ({error})") from None


def limit_of_queue(queue: str) -> str:
    """Return the name of the limit of a fair queue."""
    return f"queue {queue}"


def _key_parameters(task: str, key: Callable[..., Any], signature: inspect.Signature) -> list[str] | None:
    """Return the names of the task's parameters that its key function takes; None if it takes all arguments."""
    try:
        parameters = list(inspect.signature(key).parameters.values())
    except (ValueError, TypeError):  # of some that are written in C
        return None
    if any(one.kind in _REST for one in parameters):
        return None
    for one in parameters:
        if one.name not in signature.parameters or one.kind is one.KEYWORD_ONLY:
            known = ", ".join(signature.parameters)
            raise ConfigError(f"the key function of {task} takes {one.name!r}; it may take these arguments: {known}")
    return [one.name for one in parameters]


def _is_method(function: Callable[..., Any], signature: inspect.Signature) -> bool:
    """Whether it is a method that needs an object, or the class itself."""
    inside = getattr(function, "__qualname__", "").rpartition(".")[0]
    return bool(inside) and not inside.endswith("<locals>") and next(iter(signature.parameters), "") in ("self", "cls")


def _check_soft_timeout(task: Task[..., Any], options: TaskOptions) -> None:
    """Refuse a soft time limit that could not be kept."""
    seconds = options.soft_timeout
    needs = {
        "cpu_bound=True and a def (an async def has asyncio.timeout())": options.cpu_bound and not task.is_async,
        "signal.setitimer(), which this system does not have: use timeout= alone": hasattr(signal, "setitimer"),
        "executor='process', since an interpreter gets no signals": options.executor == "process",
        "a longer timeout=, at which the process is killed": (options.timeout or math.inf) > (seconds or 0.0),
    }
    for need, is_met in needs.items():
        if seconds is not None and not is_met:
            raise ConfigError(f"soft_timeout={seconds:g} of the task {task.name!r} needs {need}")


def _positional_range(signature: inspect.Signature) -> tuple[int, float]:
    """Return the least and greatest number of positional arguments; (1, 0) if positional arguments never suffice."""
    parameters = signature.parameters.values()
    if any(one.kind is one.KEYWORD_ONLY and one.default is one.empty for one in parameters):
        return 1, 0
    placed = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    has_no_end = any(one.kind is one.VAR_POSITIONAL for one in parameters)
    return sum(one.default is one.empty for one in placed), math.inf if has_no_end else len(placed)


def parents_in(args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, bool]:
    """Return the ids of the jobs whose results are in the arguments, and whether each may end without success."""
    parents: dict[str, bool] = {}
    seen: set[int] = set()  # a container may stand in several places, and in itself
    values = [*args, *kwargs.values()]
    for value in values:  # it grows meanwhile
        if isinstance(value, ResultOf):
            parents[value.task_id] = value.is_tolerant and parents.get(value.task_id, True)
        elif type(value) in _PLAIN or id(value) in seen:
            continue
        elif isinstance(value, list | tuple | dict):
            seen.add(id(value))
            values += value.values() if isinstance(value, dict) else value
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            seen.add(id(value))
            values += [getattr(value, f.name) for f in dataclasses.fields(value)]
    return parents


def find_parents(job: Job) -> None:
    """Make a job wait for the jobs that its arguments name."""
    parents = parents_in(job.args, job.kwargs)
    job.parents = tuple(parents)
    job.tolerates = tuple(parent for parent, is_tolerant in parents.items() if is_tolerant)


def put_results(value: Any, results: Mapping[str, TaskResult[Any]]) -> Any:
    """Return `value` with each placeholder replaced by its result; without placeholders, return `value` itself.

    It does not search in dataclasses: the codec has already turned them into dictionaries.
    """
    if isinstance(value, ResultOf):
        return results[value.task_id] if value.is_tolerant else results[value.task_id].result
    if not (isinstance(value, list | tuple | dict) and parents_in([value], {})):
        return value
    if isinstance(value, dict):
        return {key: put_results(item, results) for key, item in value.items()}
    placed = [put_results(item, results) for item in value]
    return placed if isinstance(value, list) else tuple(placed)


def _from_now(name: str, now: float, seconds: float) -> float:
    if now + seconds > LAST_MOMENT:
        raise ConfigError(f"{name}={seconds!r} s from now lies beyond the year 9999")
    return now + seconds


def _check_text(name: str, text: object, most: int = 255) -> str:
    if _is_storable(text) and 0 < len(text) <= most:
        return text
    raise ConfigError(f"{name} must be a text of 1 to {most} characters, not {text!r}")


def check_key(name: str, key: object) -> str | None:
    """Return `key` if it is None or a text of 1 to 255 characters; otherwise raise a ConfigError with `name`."""
    return None if key is None else _check_text(name, key)


def _conflict(given: Mapping[str, Any]) -> Conflict | None:
    """Return what the options `on_conflict` and `max_wait` mean."""
    how, max_wait = given.get("on_conflict", "keep"), given.get("max_wait")
    if how not in ("keep", "replace", "postpone"):
        raise ConfigError(f"on_conflict must be 'keep', 'replace' or 'postpone', not {how!r}")
    if max_wait is not None and how != "postpone":
        raise ConfigError("max_wait= goes with on_conflict='postpone'")
    if how == "keep":
        return None
    if "unique" not in given:
        raise ConfigError(f"on_conflict={how!r} needs unique=, the key that jobs conflict by")
    if how == "postpone" and "delay" not in given and "run_at" not in given:
        raise ConfigError("on_conflict='postpone' needs delay= or run_at=, the moment to postpone to")
    return Conflict(how, None if max_wait is None else _seconds("max_wait", max_wait))


_MOST_TAGS = 20


def check_tags(tags: object) -> tuple[str, ...]:
    """Return `tags` as a tuple of texts that every store can hold, without duplicates."""
    if not isinstance(tags, list | tuple | set | frozenset):
        raise ConfigError(f"tags are a list of texts, such as ['tenant:42'], not {tags!r}")
    for tag in tags:
        _check_text("a tag", tag)
    if len(tags) > _MOST_TAGS:
        raise ConfigError(f"a job has {_MOST_TAGS} tags at most, not {len(tags)}")
    return tuple(dict.fromkeys(sorted(tags) if isinstance(tags, set | frozenset) else tags))


def check_meta(meta: object) -> Mapping[str, Any] | None:
    """Return `meta` as a dictionary of values that every store can hold; None for an empty one."""
    if not isinstance(meta, Mapping):
        raise ConfigError(f"meta is a dictionary of plain values, not {meta!r}")
    for name, value in meta.items():
        fits = _is_storable(value) if isinstance(value, str) else is_plain(value)
        if not _is_storable(name) or not fits or (isinstance(value, float) and not math.isfinite(value)):
            raise ConfigError(f"meta holds texts, numbers, booleans and None under names, not {name!r}: {value!r}")
    return dict(meta) or None


# The options that are fields of a job: which, and what checks them.
_JOB_FIELDS: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    "priority": ("priority", functools.partial(_whole, "priority")),
    "queue": ("queue", check_queue),  # without it, that of the task, which is known when its set is included
    "run_at": ("due", functools.partial(_timestamp, "run_at")),
    "unique": ("unique", functools.partial(check_key, "unique")),
    "task_id": ("id", functools.partial(check_key, "task_id")),
    "tags": ("tags", check_tags),
    "meta": ("meta", check_meta),
}


class RetryKeywords(TypedDict, total=False):
    """When something is tried again. See `TaskOptions`."""

    retry_delay: float | dt.timedelta
    backoff: float
    max_delay: float | dt.timedelta
    jitter: bool
    retry_on: type[BaseException] | tuple[type[BaseException], ...]
    no_retry_on: type[BaseException] | tuple[type[BaseException], ...]


class TaskKeywords(RetryKeywords, total=False):
    """The options of `@app.task` for all kinds of tasks. See `TaskOptions`."""

    max_retries: int
    timeout: float | dt.timedelta | None
    queue: str | None
    priority: int
    result_ttl: float | dt.timedelta | None
    limit: str | None
    concurrency: int | None
    rate: str | None
    burst: int | None
    key: Callable[..., str | int] | None


@dataclass(frozen=True, slots=True)
class Submission(Generic[P, R]):
    """A task with options for a submission. `Task.options` makes it."""

    task: Task[P, R]
    fields: Mapping[str, Any]  # of its jobs
    delay: float | None  # from the submission on, as the next
    expires: float | None
    limit: str | None
    key: str | None

    @property
    def app(self) -> Submitter:
        """The app that receives the jobs."""
        return self.task.app

    @_never_dropped
    async def submit(self, *args: P.args, **kwargs: P.kwargs) -> TaskId[R]:
        """Submit one job with these options. See `Flowrra.submit`."""
        return cast("TaskId[R]", (await self.app.submit_jobs([self.make_job(args, kwargs)]))[0])

    def make_job(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Job:
        """Make a job of the task with these options: checked, and ready to be pushed."""
        job = self.task.make_job(args, kwargs, is_limited=False)
        now = self.task.app.now()
        for name, value in self.fields.items():
            setattr(job, name, value)
        if job.conflict is not None and job.parents:
            raise ConfigError("on_conflict= cannot be given with result_of(): the waiting job has its own parents")
        if self.delay is not None:
            job.due = _from_now("delay", now, self.delay)
        if self.expires is not None:
            job.expires = _from_now("expires", now, self.expires)
        if job.due is not None and job.expires is not None and job.expires <= job.due:
            late, start = _moment(job.expires), _moment(job.due)
            raise ConfigError(f"expires= ends at {late}, before delay= or run_at=, {start}: the job could never run")
        if self.limit is not None or self.key is not None or self.task.settings.key is not None or self.app.limits:
            self.task.limit_job(job, self.limit, self.key, args, kwargs)
        return job


class Registry(dict[str, Task[..., Any]]):
    """The tasks of an app, by name. `on_new` is called with each task that is added."""

    def __init__(self) -> None:
        super().__init__()
        self.on_new: Callable[[Task[..., Any]], None] = lambda task: None

    def add(self, task: Task[..., Any]) -> None:
        """Register a task; ConfigError if its name belongs to another function, or to this one with other options."""
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

    def converters_of(self, name: str) -> Converters | None:
        """Return what converts the values of a task; None if it needs no conversion or is not known here."""
        task = self.get(name)
        return None if task is None else task.converters

    def as_returned(self, name: str, result: Any) -> Any:
        """Return a stored result as the type that the task returned; unchanged if the task is not known here."""
        converters = self.converters_of(name)
        return result if converters is None else converters.result(result, loading=True)


def names_like(registry: Registry, name: str) -> list[str]:
    """Return the name if a task has it; otherwise all names that end in a dot and this name."""
    return [name] if name in registry else sorted(full for full in registry if full.endswith(f".{name}"))


def _is_reloaded(old: Callable[..., Any], new: Callable[..., Any]) -> bool:
    """Whether a reload of a module, or an edited cell of a notebook, has compiled the function again.

    Two closures of one `def` share their code, and two lambdas of one line differ in their columns.
    """
    was, now = inspect.unwrap(old), inspect.unwrap(new)
    if not (inspect.isfunction(was) and inspect.isfunction(now)) or was.__code__ is now.__code__:
        return False
    is_named, codes = was.__name__ != "<lambda>", (was.__code__, now.__code__)
    if codes[0].co_filename != codes[1].co_filename:  # each cell has its own
        return is_named and was.__globals__ is now.__globals__
    return _place(old) == _place(new) and (is_named or [*codes[0].co_positions()] == [*codes[1].co_positions()])


def _place(function: Callable[..., Any]) -> str:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else repr(function)


def _check_importable(task: Task[..., Any]) -> None:
    """Refuse a CPU-bound task that another process cannot import by module and name."""
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
    """Return the default name: module and qualified name. For a script, the module name is as if it were imported."""
    name = getattr(function, "__qualname__", None)
    if not callable(function) or name is None or getattr(function, "__module__", None) is None:
        raise ConfigError(f"a task must be a function, not {function!r}")
    return f"{_module_of(function)}.{name}"


class JobContext:
    """The running job: its data, its progress and its steps. See `current_job`."""

    __slots__ = ("_kept_steps", "attempt", "job", "step_names")

    def __init__(self, job: Job) -> None:
        self.job = job
        self.step_names: dict[str, None] = {}  # of this attempt
        #: The number of this attempt, from 1 on; it also counts attempts that did not fail.
        self.attempt = job.attempt  # kept, as a broker may share the job, which then goes on to the next one

    @property
    def id(self) -> str:
        """The id of the job."""
        return self.job.id

    @property
    def task(self) -> str:
        """The name of the task."""
        return self.job.task

    @property
    def queue(self) -> str:
        """The queue of the job."""
        return self.job.queue

    @property
    def failures(self) -> int:
        """How many earlier attempts have failed."""
        return self.job.failures

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags of the job."""
        return tuple(self.job.tags)

    @property
    def meta(self) -> Mapping[str, Any]:
        """The `meta` of the job."""
        return self.job.meta or {}

    @property
    def state(self) -> Any:
        """The value that the app's lifespan yielded; None in a CPU-bound task."""
        return None

    def progress(self, done: float, total: float | None = None, note: str | None = None) -> None:
        """Report the progress. You can call it often: only the latest report is written, at most twice per second.

        Args:
            done: how much is done.
            total: how much there is to do, if it is known.
            note: a text for the people who look at the job.
        """
        # Plain values: a store takes no number of numpy or decimal, and no page shows a NaN.
        total = None if total is None else _finite("total", float(total))
        self.report(Progress(_finite("done", float(done)), total, None if note is None else str(note)))

    def report(self, progress: Progress) -> None:
        """Pass the progress to the worker."""
        raise NotImplementedError

    @overload
    async def step(
        self, name: str, function: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T: ...
    @overload
    async def step(self, name: str, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...

    async def step(self, name: str, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Run a part of the job and store its return value. A later attempt gets that value and does not run it again.

        If a crash interrupts a step, the step runs again: a step runs at least once, like a job. If the call is
        cancelled, the step may or may not be stored.

        Args:
            name: a name that is unique in the job, for example f"row {number}" in a loop.
            function: a function or a coroutine function. If it raises an exception, nothing is stored.
            *args: its arguments.
            **kwargs: its keyword arguments.

        Raises:
            FlowrraError: the name was already used in this attempt.
            SerializationError: the return value cannot be stored.
        """
        return await RetriedSteps(self, _ONE_TRY).step(name, function, *args, **kwargs)

    def step_sync(self, name: str, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """The same as `step`, for tasks that are a plain `def`.

        Args:
            name, function: see `step`.
            *args: the arguments of the function.
            **kwargs: its keyword arguments.
        """
        return RetriedSteps(self, _ONE_TRY).step_sync(name, function, *args, **kwargs)

    def with_retries(self, max_retries: int, **options: Unpack[RetryKeywords]) -> RetriedSteps:
        """Return an object whose `step` and `step_sync` retry a step inside the attempt, which keeps its slot.

        Args:
            max_retries: how many times a step is retried.
            **options: as for a task: `retry_delay`, `backoff`, `max_delay`, `jitter`, `retry_on`, `no_retry_on`.
        """
        settings = TaskOptions(max_retries=max_retries, **cast("Any", options))
        return RetriedSteps(self, dataclasses.replace(settings, no_retry_on=(*settings.no_retry_on, Snooze, Cancel)))

    @property
    def step_key(self) -> str:
        """The id of the job and the name of the running step, the same each time that the step runs.

        Give it as an idempotency key to a service that must not do the same thing twice.

        Raises:
            FlowrraError: no step is running.
        """
        if (name := _step_name.get()) is None:
            raise FlowrraError("step_key was read outside of a step")
        return f"{self.id}:{name}"

    async def sleep(
        self,
        delay: float | dt.timedelta = 0.0,
        *,
        days: float = 0.0,
        hours: float = 0.0,
        minutes: float = 0.0,
        name: str | None = None,
    ) -> None:
        """Make the job wait, without a slot and without using up a retry. Then its task starts again.

        Finished steps are not run again, so a job that sleeps should do its work in steps.

        Args:
            delay: seconds or a timedelta, to which the other lengths of time are added.
            days: days to add.
            hours: hours to add.
            minutes: minutes to add.
            name: a name that is unique in the job. By default the sleeps of an attempt are numbered, so give names if
                an attempt can skip one.

        Raises:
            Snooze: the time is not over. Do not catch it.
        """
        whole = _seconds("delay", delay) + _seconds("a sleep", dt.timedelta(days, hours=hours, minutes=minutes))
        if name is None:
            name = f"sleep {sum(step.startswith('sleep ') for step in self.step_names) + 1}"
        if (due := await _end_of(self, name, "delay", whole)) > self.now():
            raise Snooze(until=_EPOCH + dt.timedelta(seconds=due), reason=f"it sleeps ({name})")

    async def wait_event(self, name: str, *, timeout: float | dt.timedelta | None = None) -> Any:
        """Wait until `app.emit(name, payload)` was called, before or after this, and return the payload.

        The job waits without a slot and without using up a retry; then its task starts again, as after a `sleep`. An
        event is emitted once; any number of jobs can wait for it.

        Args:
            name: the name of the event.
            timeout: seconds or a timedelta, counted from the first call (None: no limit).

        Raises:
            TaskTimeoutError: the event was not emitted within `timeout` seconds; in later attempts again.
            Snooze: the event has not been emitted yet. Do not catch it.
        """
        kept = self._begin_step(f"event {_check_text('the name of an event', name, 200)}")
        if kept is None:
            end = LAST_MOMENT - 1.0
            if timeout is not None:
                end = await _end_of(self, f"end of wait for event {name}", "timeout", _seconds("timeout", timeout))
            text = await self.find_event(name)
            if text is None and end > self.now():
                not_yet = _EventNotYet(until=_EPOCH + dt.timedelta(seconds=end), reason=_AWAITS + name)
                not_yet.event = event_id(name)
                raise not_yet
            now = self.now()
            kept = Step(f"event {name}", text or "", now, now)
            await self.keep_step(kept)
        if not kept.text:
            raise TaskTimeoutError(f"the event {name!r} was not emitted in time")
        return await apart(decode, kept.text)

    async def find_event(self, name: str) -> str | None:
        """Return the text of the payload of an event; None if it has not been emitted."""
        raise NotImplementedError

    async def resume(
        self,
        name: str,
        rows: Iterable[T] | AsyncIterable[T] | Callable[[Any], Iterable[T] | AsyncIterable[T]],
        *,
        key: Callable[[T], Any] | None = None,
    ) -> AsyncIterator[T]:
        """Go through `rows`, in a later attempt from after the last row that was finished.

        A row is finished when the next one is requested. The position is stored at most twice per second, so a crash
        can repeat the rows of the last half second.

        Args:
            name: a name that is unique in the job, as of a step.
            rows: the rows, or a function that receives the key of the last finished row (at first None) and returns the
                rows after it, so that earlier rows need not be read again.
            key: a function that returns what identifies a row, as plain data. Without it, rows are counted, and must
                have the same order each time.

        Raises:
            FlowrraError: the last finished row is not among `rows` any more.
        """
        cursor = _Cursor(name, key, self._begin_step(name), self.now())
        async for row in _each(cursor.rows_of(rows)):
            if cursor.passes_over(row):
                continue
            yield row
            if cursor.finish_row():
                await self.keep_step(cursor.step(self.now()))
        if cursor.finish():
            await self.keep_step(cursor.step(self.now()))

    def resume_sync(
        self,
        name: str,
        rows: Iterable[T] | Callable[[Any], Iterable[T]],
        *,
        key: Callable[[T], Any] | None = None,
    ) -> Iterator[T]:
        """The same as `resume`, for tasks that are a plain `def`.

        Args:
            name, rows, key: see `resume`.
        """
        cursor = _Cursor(name, key, self._begin_step(name), self.now())
        for row in cursor.rows_of(rows):
            if cursor.passes_over(row):
                continue
            yield row
            if cursor.finish_row():
                self.wait_until(self.keep_step(cursor.step(self.now())))
        if cursor.finish():
            self.wait_until(self.keep_step(cursor.step(self.now())))

    def _begin_step(self, name: str) -> Step | None:
        """Return the step if an earlier attempt has stored it."""
        check_key("the name of a step", name)
        if not self.step_names:
            self._kept_steps = {step.name: step for step in self.job.steps}
        if name in self.step_names:
            raise FlowrraError(f"the step {name!r} was run in this attempt: give each its own name: f'row {{number}}'")
        self.step_names[name] = None
        return self._kept_steps.get(name)

    async def keep_step(self, step: Step) -> None:
        """Store a step before the job continues."""
        raise NotImplementedError

    def wait_until(self, call: Coroutine[Any, Any, T]) -> T:
        """Return what a call returns on the worker's loop. Called from a thread."""
        raise NotImplementedError

    def now(self) -> float:
        """Return the wall clock of the worker."""
        return time.time()

    def count_wait(self, change: int) -> None:
        """Count that the job starts to wait for another job (1) or stops waiting (-1)."""
        raise NotImplementedError

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """While the job waits for another job, let other jobs use its slot. Only on the loop's thread."""
        self.count_wait(1)
        try:
            yield
        finally:
            self.count_wait(-1)


class RetriedSteps:
    """Steps of a job with retries of their own. `JobContext.with_retries` makes it."""

    def __init__(self, job: JobContext, options: TaskOptions) -> None:
        self._job, self._options = job, options

    @overload
    async def step(
        self, name: str, function: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T: ...
    @overload
    async def step(self, name: str, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...

    async def step(self, name: str, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """See `JobContext.step`."""
        job, failures = self._job, 0
        kept, converters = job._begin_step(name), _converters_of(function)
        while kept is None:
            started, running = job.now(), _step_name.set(name)
            try:
                returned = function(*args, **kwargs)
                if inspect.isawaitable(returned):
                    returned = await returned
                kept = Step(name, await apart(_step_text, name, converters, returned), started, job.now())
            except Exception as error:
                failures += 1
                await asyncio.sleep(_delay_of_step(self._options, error, failures))
            finally:
                _step_name.reset(running)
            if kept is not None:
                await job.keep_step(kept)
        return await apart(_step_value, converters, kept.text)

    def step_sync(self, name: str, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """See `JobContext.step_sync`."""
        job, failures = self._job, 0
        kept, converters = job._begin_step(name), _converters_of(function)
        while kept is None:
            started, running = job.now(), _step_name.set(name)
            try:
                returned = function(*args, **kwargs)
                kept = Step(name, _step_text(name, converters, returned), started, job.now())
            except Exception as error:
                failures += 1
                time.sleep(_delay_of_step(self._options, error, failures))
            finally:
                _step_name.reset(running)
            if kept is not None:
                job.wait_until(job.keep_step(kept))
        return cast("T", _step_value(converters, kept.text))


_ONE_TRY = TaskOptions(max_retries=0)
_step_name: contextvars.ContextVar[str | None] = contextvars.ContextVar("flowrra_step", default=None)


def _delay_of_step(options: TaskOptions, error: Exception, failures: int) -> float:
    """Return the seconds to wait before a step is tried again; raise its error if it is not."""
    if failures > options.max_retries or not is_retryable(options, error):
        raise error
    delay = asked_delay(error, 0.0)
    return retry_delay(options, failures) if delay is None else delay


async def _end_of(job: JobContext, step: str, what: str, seconds: float) -> float:
    """Return the end of a time that began when the first attempt came here, as that has stored it."""
    kept = job._begin_step(step)
    if kept is None:
        now = job.now()
        kept = Step(step, str(_from_now(what, now, seconds)), now, now)
        await job.keep_step(kept)
    return float(kept.text)


_SAVE_EVERY = 0.5  # seconds between two stored places of a cursor


class _Cursor:
    """How far a job has come in its rows."""

    def __init__(self, name: str, key: Callable[[Any], Any] | None, kept: Step | None, now: float) -> None:
        self._name, self._key, self._began = name, key, now
        self._last = None if kept is None else decode(kept.text)  # the key of the last finished row
        self._is_there = kept is None  # whether the rows have come past that one
        self._number = 0
        self._current: Any = None
        self._is_saved = True
        self._saved_at = time.monotonic()

    def rows_of(self, rows: Any) -> Any:
        if not callable(rows):
            return rows
        if self._key is None:
            raise ConfigError(f"resume({self._name!r}) needs key=: the function gets the key of the last finished row")
        self._is_there = True
        return rows(self._last)

    def passes_over(self, row: Any) -> bool:
        """Whether an earlier attempt has finished the row."""
        self._number += 1
        self._current = self._number if self._key is None else self._key(row)
        if self._is_there:
            return False
        self._is_there = self._current == self._last
        return True

    def finish_row(self) -> bool:
        """Note that the row is finished. Whether it is time to store the place."""
        self._last, self._is_saved = self._current, False
        return time.monotonic() - self._saved_at >= _SAVE_EVERY

    def finish(self) -> bool:
        """Note that there are no more rows. Whether the place must be stored."""
        if not self._is_there:
            raise FlowrraError(
                f"resume({self._name!r}): the last finished row, {self._last!r}, is not among the rows any more: "
                "give a function that gets this key and returns the rows after it"
            )
        return not self._is_saved

    def step(self, now: float) -> Step:
        """Return the place to store."""
        self._is_saved, self._saved_at = True, time.monotonic()
        return Step(self._name, encode(self._last), self._began, now)


async def _each(rows: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    if isinstance(rows, AsyncIterable):
        async for row in rows:
            yield row
    else:
        for row in rows:
            yield row


@functools.lru_cache(maxsize=1_000)
def _converters_of(function: Callable[..., Any]) -> Converters:
    """Return the converter for the return annotation of a step."""
    if isinstance(function, type):  # a call makes one of these
        return Converters("a step", function, inspect.Signature(return_annotation=function))
    signature = inspect.Signature()
    with contextlib.suppress(ValueError, TypeError):  # of a function that is written in C
        signature = inspect.signature(function)
    return Converters("a step", function, signature)


def _step_text(name: str, converters: Converters, returned: Any) -> str:
    return encode_returned(converters.result(returned, loading=False), f"the step {name!r}")


def _step_value(converters: Converters, text: str) -> Any:
    return converters.result(decode(text), loading=True)


current_job_var: contextvars.ContextVar[JobContext | None] = contextvars.ContextVar("flowrra_job", default=None)
_in_child: contextvars.ContextVar[bool] = contextvars.ContextVar("flowrra_child", default=False)


def current_job() -> JobContext:
    """Return the running job: its id, attempt, progress(), step(), and the state of the app's lifespan.

    Raises:
        FlowrraError: the caller is not inside a job.
    """
    context = current_job_var.get()
    if context is None:
        raise FlowrraError("current_job() was called outside of a job")
    return context


# ---------------------------------------------------------------------------
# 12. Executors
#
# How a function is run: on the loop, in a thread, or in a process that can be
# killed. This section knows functions and payloads, but no brokers and retries.
# ---------------------------------------------------------------------------


class ThreadExecutor:
    """Runs plain functions in as many daemon threads as there are calls. A running thread cannot be ended."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._calls: thread_queue.SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]] | None]
        self._calls = thread_queue.SimpleQueue()
        self._idle = 0  # threads that wait for a call
        self._pid = os.getpid()
        self._is_closed = False

    async def run(self, function: Callable[[], T]) -> T:
        """Return or raise what `function` does. If it returns a coroutine, it is awaited here.

        If cancelled, the thread continues until its call returns; the return value is dropped.
        """
        context = contextvars.copy_context()
        result, error = await self.call(lambda: context.run(function))
        if error is not None:
            raise error
        return cast("T", await result if inspect.iscoroutine(result) else result)

    def call(self, function: Callable[[], T]) -> asyncio.Future[tuple[T, BaseException | None]]:
        """Run it in a thread. The future gets what it returned and what it raised."""
        future: asyncio.Future[tuple[T, BaseException | None]] = self._loop.create_future()
        if self._idle:
            self._idle -= 1
            self._calls.put((function, future))
        else:  # also after the close: it waits for processes that were killed late
            threading.Thread(target=self._work, args=((function, future),), name="flowrra-thread", daemon=True).start()
        return future

    def _work(self, item: tuple[Callable[[], Any], asyncio.Future[Any]] | None) -> None:
        while item is not None:
            function, future = item
            try:
                answer: tuple[Any, BaseException | None] = (function(), None)
            except BaseException as error:
                answer = (None, error)
            if os.getpid() != self._pid:
                return  # a process that the call has forked, whose only thread this is
            _call_soon(self._loop, self._resolve, future, answer)
            del item, function, future, answer
            item = self._calls.get()
        self._calls.put(None)  # for the next thread

    def _resolve(self, future: asyncio.Future[Any], answer: tuple[Any, BaseException | None]) -> None:
        _resolve(future, answer)
        if not self._is_closed:
            self._idle += 1

    def close(self) -> None:
        """End the threads when their calls have returned, also those whose answers the loop has not seen."""
        self._is_closed, self._idle = True, 0
        self._calls.put(None)


class CpuCall(NamedTuple):
    """A call of a CPU-bound task, in a form that another process can read."""

    module: str
    file: str | None
    qualname: str
    payload: str
    job: Mapping[str, Any]
    soft_timeout: float | None
    executor: str

    @classmethod
    def of(cls, task: Task[..., Any], job: Job, args: Sequence[Any], kwargs: Mapping[str, Any]) -> CpuCall:
        """Make the call of `task` for `job`. The arguments are encoded, unless the job has them encoded."""
        payload = job.payload
        if payload is None or job.parents:
            payload = encode_arguments(Job(job.id, task.name, tuple(args), kwargs))
        module, file = task.function.__module__, None
        if _is_in_main(task.function):
            name, file = _main_script()
            module = name or "__main__"
        known = ("id", "task", "queue", "attempt", "failures", "tags", "meta", "steps")
        shown = {name: getattr(job, name) for name in known}
        settings = task.settings
        return cls(module, file, task.function.__qualname__, payload, shown, settings.soft_timeout, settings.executor)


class _ProcessSlot:
    """One process that runs one call at a time. It is started when needed. `run` and `reap` block.

    The process of the executor "interpreter" is an interpreter inside this process, which looks like one.
    """

    def __init__(self, executor: str, max_jobs: int | None, max_memory: int | None) -> None:
        self.executor = executor
        self.is_spent = True  # whether the next call needs another process
        self._limits = max_jobs, max_memory if executor == "process" else None
        self._in_use = threading.Lock()  # held by the thread that uses the process
        self._process: subprocess.Popen[bytes] | None = None
        self._has_begun = self._killed = False

    def run(
        self,
        call: CpuCall | None = None,
        notify: Callable[..., Any] = lambda *parts: None,
        sent: Callable[[], object] = lambda: None,
    ) -> str:
        """Return the encoded result. Without a call, it only starts the process, before it is needed.

        `notify` is called with "begin" when the task itself starts, with "progress" and the progress, with "step" and
        the step, and with "event" and its name. To the last two it returns an error text, or None, and an answer.
        `sent` is called when the call has been sent; a second time if another process must get it.
        """
        with self._in_use:
            while True:
                process, is_new = self._get_process()
                self._has_begun, self.is_spent = False, True  # until it has answered
                try:
                    _write_frame(process.stdin, [logging.getLogger().level, call])
                    sent()
                    return self._read_answer(process, call, notify)
                except (EOFError, OSError):
                    if is_new or self._has_begun or self._killed:  # otherwise it died while it was idle
                        when = "" if self._has_begun else " before the task began"
                        raise ProcessDiedError(f"the process of the task {_how_it_ended(process)}{when}") from None

    def _get_process(self) -> tuple[subprocess.Popen[bytes], bool]:
        """Return the process, and whether it is new."""
        if self._killed:
            raise ProcessDiedError("the call was given up before it began")
        process = self._process
        if process is not None and not self.is_spent and process.poll() is None:
            return process, False
        if process is not None:
            process.kill()
            process.communicate()
        try:
            trouble, start = "a task with executor='interpreter' cannot run", _start_process
            if self.executor == "interpreter":
                start = import_extra("flowrra_extras.interpreters", "Interpreter", trouble)
            self._process = process = start()
        except OSError as error:
            raise ProcessDiedError(f"no process could be started for the task: {error}") from error
        if self._killed:  # the call was cancelled while the process was starting
            process.kill()
        with contextlib.suppress(OSError):  # it is dead already; the next write raises an error
            _write_frame(process.stdin, [[str(argument) for argument in sys.argv], *self._limits])
        return process, True

    def _read_answer(self, process: subprocess.Popen[bytes], call: CpuCall | None, notify: Callable[..., Any]) -> str:
        expected = None if call is None else [call.job["id"], call.job["attempt"]]
        while True:
            kind, sender, *parts = _read_frame(process.stdout, decode)
            if kind == "log":
                _handle_record(*parts)
            elif kind in ("step", "event"):
                answer = notify(kind, *parts) if sender == expected else ("the attempt is over", None)
                _write_frame(process.stdin, ["answer", sender, *answer])
            elif sender != expected:
                continue  # from a thread that an earlier call did not end
            elif kind in ("begin", "progress"):
                self._has_begun = True
                notify(kind, *parts)
            else:
                self.is_spent = parts.pop()
                if kind == "error":
                    raise RemoteError(*parts)
                return cast("str", parts[0])

    def kill(self) -> None:
        """Kill the process and its call."""
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
    # In a separate session: Ctrl-C in the terminal is for the worker, and would break a process that is starting.
    return subprocess.Popen(python("serve_calls()"), stdin=pipe, stdout=pipe, start_new_session=True)


def _handle_record(fields: dict[str, Any]) -> None:
    """Handle a log record of an executor's process as if it had been logged here."""
    record = logging.makeLogRecord(fields)
    try:
        if logging.getLogger(record.name).isEnabledFor(record.levelno):
            logging.getLogger().handle(record)  # the logger's own handlers have handled it in the process
    except Exception:  # of a filter
        tracebacks.print_exc()


def python(call: str) -> list[str]:
    """Return a command that runs `call` of this module in a new interpreter with the same module search path."""
    import subprocess

    path = [entry for entry in sys.path if isinstance(entry, str)]  # import ignores other objects, such as a Path
    start = f"import sys; sys.path[:] = {path!r}; import importlib; "
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # as multiprocessing does
    return [sys.executable, *flags, "-c", f"{start}sys.exit(importlib.import_module({__name__!r}).{call})"]


def _how_it_ended(process: subprocess.Popen[bytes]) -> str:
    process.communicate()
    code = process.returncode
    names = {number.value: number.name for number in signal.Signals}  # real-time signals have none
    return f"was ended by {names.get(-code, f'signal {-code}')}" if code < 0 else f"exited with status {code}"


def _write_frame(pipe: Any, message: Any) -> None:
    data = ("".join(_pieces(message)) if is_large(message) else json.dumps(message)).encode()
    pipe.write(len(data).to_bytes(4, "big") + data)
    pipe.flush()


def _read_frame(pipe: Any, load: Callable[[str], Any] = json.loads) -> Any:
    size = pipe.read(4)
    data = pipe.read(int.from_bytes(size, "big"))
    if len(size) < 4 or len(data) < int.from_bytes(size, "big"):
        raise EOFError
    return load(data.decode())


class _NoProcessFree(FlowrraError):  # noqa: N818 (never leaves the worker)
    """A call has waited for a process, and shall not wait longer."""


# Seconds that a CPU-bound job may take if others are claimed before a process is free, and that such a job waits.
_AT_HAND = 0.25
_Answer = asyncio.Future[tuple[str, BaseException | None]]


class ProcessExecutor:
    """Runs CPU-bound tasks in up to `size` processes, one call in each.

    The thread that has received an answer sends the next call itself. If the loop did that, each process would be idle
    for 0.4 ms between two calls: 4 % of the time with jobs of 10 ms.
    """

    def __init__(self, size: int, threads: ThreadExecutor, max_jobs: int | None, max_memory: int | None) -> None:
        if max_memory is not None and resident_memory() is None:
            raise ConfigError("max_memory has no effect: this system does not report the memory of a process")
        self.places = asyncio.Semaphore(size)  # for callers that must know before `run` that a process is free
        self.are_short = False  # whether the latest call took less than _AT_HAND
        self._loop = asyncio.get_running_loop()
        self._size = size
        self._threads = threads
        self._limits = max_jobs, max_memory
        self._lock = threading.Lock()  # of the next three, which threads change
        self._waiting: dict[_Answer, tuple[CpuCall, Callable[..., Any]]] = {}  # calls in order
        self._busy: dict[_Answer, _ProcessSlot] = {}
        self._idle: list[_ProcessSlot] = []

    def warm_up(self, executor: str) -> None:
        """Start all processes of a kind now, so that the first jobs need not wait for them."""
        for _ in range(self._size):
            self._idle.append(_ProcessSlot(executor, *self._limits))
            self._threads.call(self._idle[-1].run)

    async def run(
        self, call: CpuCall, job: JobContext, may_wait: Callable[[], bool], begin: Callable[[], None] | None = None
    ) -> Any:
        """Return the result of the call, whose reports and questions go to `job`. If cancelled, kill its process.

        On this loop are called: `may_wait` after each _AT_HAND seconds in which no process was free, and `begin` when
        the task itself starts.

        Raises:
            RemoteError: the task raised an exception.
            ProcessDiedError: its process ended.
            _NoProcessFree: `may_wait` returned False.
        """

        def report(kind: str, *parts: Any) -> Any:
            if kind == "progress":
                return job.report(Progress(*parts))
            if kind == "begin":
                return None if begin is None else _call_soon(self._loop, begin)
            asked = job.keep_step(Step(*parts)) if kind == "step" else job.find_event(*parts)
            return asyncio.run_coroutine_threadsafe(_answered(asked), self._loop).result()

        answer: _Answer = self._loop.create_future()
        with self._lock:
            self._waiting[answer] = call, report
        self._start_next()
        try:
            while answer in self._waiting and not (await asyncio.wait([answer], timeout=_AT_HAND))[0]:
                self.are_short = False  # the calls before it have taken longer
                if not may_wait() and self._take_back(answer):
                    raise _NoProcessFree
            result, error = await answer
        except asyncio.CancelledError:
            self._end(answer)
            raise
        if error is not None:
            raise error
        return await apart(decode, result)

    def _start_next(self) -> None:
        if self._waiting and len(self._busy) < self._size:  # else the thread of a call that ends takes the next one
            self._threads.call(self._run_calls)

    def _run_calls(self, deliver: Callable[[], object] = lambda: None) -> None:
        """Run calls as long as some wait. Each answer is given to the loop when the next call has been sent."""
        while (found := self._take_next()) is not None:
            answer, slot, call, report = found
            if slot.is_spent:
                deliver()  # now: another process must be started first
            began, result, failure = time.monotonic(), "", cast("BaseException | None", None)
            try:
                result = slot.run(call, report, deliver)
            except BaseException as error:
                failure = error
                deliver()  # the call may not have been sent
            deliver = functools.partial(_call_soon, self._loop, _resolve, answer, (result, failure))
            self.are_short = time.monotonic() - began < _AT_HAND
            with self._lock:
                if self._busy.pop(answer, None) is not None:  # else it was killed
                    self._idle.insert(0 if slot.is_spent else len(self._idle), slot)  # one with a process is used first
            if slot.is_spent:
                _call_soon(self._loop, self._threads.call, slot.run)
        deliver()

    def _take_next(self) -> tuple[_Answer, _ProcessSlot, CpuCall, Callable[..., Any]] | None:
        """Return the next call with a slot for it, if there is one."""
        with self._lock:
            if not self._waiting or len(self._busy) >= self._size:
                return None
            answer = next(iter(self._waiting))
            call, report = self._waiting.pop(answer)
            fitting = [slot for slot in self._idle if slot.executor == call.executor]
            slot = self._busy[answer] = fitting[-1] if fitting else _ProcessSlot(call.executor, *self._limits)
            self._idle = [one for one in self._idle if one is not slot]
            return answer, slot, call, report

    def _take_back(self, answer: _Answer) -> bool:
        """Take back a call that waits for a slot. Return False if it has one."""
        with self._lock:
            return self._waiting.pop(answer, None) is not None

    def _end(self, answer: _Answer) -> None:
        """Take back a call that waits for a slot, or kill the process that runs it."""
        if not self._take_back(answer) and (slot := self._busy.pop(answer, None)) is not None:
            slot.kill()
            self._threads.call(slot.reap)  # the call may not have come to the process
            self._start_next()

    def close(self) -> None:
        """End all processes."""
        with self._lock:
            self._size = 0  # no call starts any more
            slots, self._idle = (*self._idle, *self._busy.values()), []
        for slot in slots:
            slot.kill()
            self._threads.call(slot.reap)


async def _answered(call: Awaitable[T]) -> tuple[str | None, T | None]:
    """Return the text of the error of a call, and what it returned."""
    try:
        return None, await call
    except FlowrraError as error:
        return str(error), None


def serve_calls() -> None:
    """The main function of an executor's process: run calls from stdin until it closes. sys.argv comes first.

    A thread reads, so that the process ends with its parent even in the middle of a call. What tasks print goes to
    stderr, and their stdin is empty, because stdin and stdout carry the calls and answers.
    """
    handle_signals(_pass_over, lambda: _close_in_fork(pipe, answers))  # the worker ends this process itself
    pipe, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    sys.stdout = sys.stderr  # written line by line: a buffer is lost when the process is killed
    answer_calls(pipe, answers, lambda: os._exit(0))  # the parent is gone or has no more use for this process


def answer_calls(pipe: Any, answers: Any, end: Callable[[], object], *, daemon: bool = True) -> None:
    """Run calls from `pipe` until it closes. Then `end` is called in the thread that reads, also during a call."""
    pid = os.getpid()
    _in_child.set(True)
    calls: thread_queue.SimpleQueue[Any] = thread_queue.SimpleQueue()
    asking: _Asking = weakref.WeakValueDictionary()
    threading.Thread(target=_read_calls, args=(pipe, calls, asking, end), daemon=daemon).start()
    if (settings := calls.get()) is None:
        return
    sys.argv[:], max_jobs, max_memory = settings
    logging.getLogger().addHandler(_WorkerLog(answers))
    done = 0
    while (item := calls.get()) is not None:
        level, call = item
        logging.getLogger().setLevel(level)
        answer = _perform_call(CpuCall(*call), answers, asking) if call else ["result", None, "null", False]
        done += bool(call)
        if os.getpid() != pid:
            return  # a process that the task has forked and that has not ended
        answer[-1] = answer[-1] or _is_spent(done, max_jobs, max_memory)
        try:
            _write_frame(answers, answer)
        except OSError:
            end()


def handle_signals(
    handler: Callable[[int, FrameType | None], object], leave: Callable[[], None] = lambda: None
) -> Callable[[], None]:
    """Handle SIGINT and SIGTERM in this process. The returned function undoes it.

    In a process that is forked from this one, it is undone and `leave` called before a signal can reach it: a pool of
    `multiprocessing` sends SIGTERM to processes that are just starting, and waits for their end. Through the wakeup
    file descriptor, which they share, their signals would look like signals to this process.
    """
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    masks = threading.local()

    def is_handled(number: int) -> bool:
        return signal.getsignal(number) is handler  # otherwise the user's own handler has replaced it

    def undo() -> None:
        for number in filter(is_handled, before):
            signal.signal(number, before[number] or signal.SIG_DFL)

    def begin_fork() -> None:
        masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, before)

    def end_fork() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, masks.before)

    def begin_in_child() -> None:
        if any(map(is_handled, before)):
            signal.set_wakeup_fd(-1)
        undo()
        leave()
        end_fork()

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=begin_fork, after_in_parent=end_fork, after_in_child=begin_in_child)
    return undo


def _pass_over(number: int, frame: FrameType | None) -> None:
    """Handle a signal by doing nothing. If it were ignored, programs that tasks start would ignore it, too."""


def _is_spent(done: int, max_jobs: int | None, max_memory: int | None) -> bool:
    """Whether this process has reached its limit of jobs or memory."""
    if max_jobs is not None and done >= max_jobs:
        return True
    if max_memory is None or (memory := resident_memory() or 0) <= max_memory:
        return False
    logger.warning(
        "process %d holds %d bytes, more than its limit of %d: it is replaced", os.getpid(), memory, max_memory
    )
    return True


def resident_memory() -> int | None:
    """Return the bytes of memory that this process uses; None if the system does not report it."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


class _WorkerLog(logging.Handler):
    """In a process of the executor: sends log records to the worker, which logs them as its own."""

    def __init__(self, answers: Any) -> None:
        super().__init__()
        self._answers = answers
        self._pid = os.getpid()

    def emit(self, record: logging.LogRecord) -> None:
        """Send the record. A process that the task has forked has nobody to send it to."""
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


def _close_in_fork(*pipes: Any) -> None:
    """In a process that a task has forked: close the pipes, otherwise the worker cannot see that its process died."""
    for pipe in pipes:
        os.dup2(os.open(os.devnull, os.O_RDWR), pipe.fileno())


# Where answers go, by job and attempt, as long as anything has the context of the attempt. A thread that a task has
# started may still ask when the next task runs.
_Asking = weakref.WeakValueDictionary[tuple[str, int], thread_queue.SimpleQueue[Any]]


def _read_calls(pipe: Any, calls: thread_queue.SimpleQueue[Any], asking: _Asking, end: Callable[[], object]) -> None:
    try:
        while True:
            first, *rest = _read_frame(pipe)
            if first != "answer":
                calls.put([first, *rest])
            elif (replies := asking.get((rest[0][0], rest[0][1]))) is not None:
                replies.put(rest[1:])
    except (EOFError, OSError):
        end()
    calls.put(None)
    for replies in list(asking.values()):
        replies.put(("the attempt is over", None))


def _perform_call(call: CpuCall, answers: Any, asking: _Asking) -> list[Any]:
    """Return the frame that answers a call. Its last part says whether the process must be replaced."""
    pid, context = os.getpid(), _ChildContext(Job(**call.job), answers, asking)
    try:
        return ["result", context.sender, _run_call(call, context), False]
    except BaseException as error:
        if os.getpid() != pid:
            raise  # in a process that the task has forked
        kinds = [kind_name(kind) for kind in type(error).__mro__]
        delay = asked_delay(error, time.time())
        traceback = format_traceback(error)
        # After a MemoryError, memory stays short. The text also contains nested errors and errors in a group.
        parts = [reason_of(error), kinds, traceback, delay, getattr(error, "event", None)]
        return ["error", context.sender, *parts, "MemoryError" in traceback]


def _run_call(call: CpuCall, context: _ChildContext) -> str:
    current_job_var.set(None)
    function, converters = _find_function(call)
    args, kwargs = decode(call.payload)
    if converters is not None:
        try:
            args, kwargs = converters.arguments(args, kwargs, loading=True)
        except SerializationError as error:
            raise ArgumentsError(str(error)) from error.__cause__
    current_job_var.set(context)
    context.send("begin")
    with _soft_limit(call.soft_timeout) if call.soft_timeout is not None else contextlib.nullcontext():
        result: Any = function(*args, **kwargs)
        if inspect.iscoroutine(result):
            result = asyncio.run(result)
    return encode_returned(result if converters is None else converters.result(result, loading=False), context.task)


@contextlib.contextmanager
def _soft_limit(seconds: float) -> Iterator[None]:
    """Raise a SoftTimeoutError in the block after `seconds`. On the main thread only, which is the one for signals."""
    uninterrupted = (_write_frame, _ChildContext.ask, logging.Logger.makeRecord, logging.Handler.handle)
    busy = {call.__code__ for call in uninterrupted}

    def interrupt(number: int, frame: FrameType | None) -> None:
        if busy.isdisjoint(one.f_code for one, _ in tracebacks.walk_stack(frame)):
            raise SoftTimeoutError(f"the attempt took longer than its soft_timeout of {seconds:g} s")
        signal.setitimer(signal.ITIMER_REAL, 0.001)  # an exception raised here would break a frame

    signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, _pass_over)  # also if the timer has just expired
        signal.setitimer(signal.ITIMER_REAL, 0)


class _ChildContext(JobContext):
    """The running job in a process of the executor."""

    __slots__ = ("_answers", "_lock", "_replies", "sender")

    def __init__(self, job: Job, answers: Any, asking: _Asking) -> None:
        super().__init__(job)
        job.steps = tuple(Step(*step) for step in job.steps)
        self.sender = [job.id, job.attempt]
        self._answers = answers
        self._lock = threading.Lock()
        self._replies = asking[job.id, job.attempt] = thread_queue.SimpleQueue()

    def send(self, kind: str, *parts: Any) -> None:
        """Send the worker a message about this attempt."""
        _write_frame(self._answers, [kind, self.sender, *parts])

    def report(self, progress: Progress) -> None:
        self.send("progress", *progress)

    def ask(self, kind: str, *parts: Any) -> Any:
        """Ask the worker, and wait for its answer. This blocks an event loop in this process."""
        with self._lock:
            self.send(kind, *parts)
            error, answer = self._replies.get()
        if error is not None:
            raise FlowrraError(error)
        return answer

    async def keep_step(self, step: Step) -> None:
        self.ask("step", *step)

    async def find_event(self, name: str) -> str | None:
        return cast("str | None", self.ask("event", name))

    def wait_until(self, call: Coroutine[Any, Any, T]) -> T:
        try:
            call.send(None)
        except StopIteration as end:
            return cast("T", end.value)
        raise AssertionError("what a process asks its worker awaits nothing")

    def count_wait(self, change: int) -> None:
        raise FlowrraError(
            "a CPU-bound task cannot wait for another job, because its process would be idle: use result_of()"
        )


def _find_function(call: CpuCall) -> tuple[Callable[..., Any], Converters | None]:
    is_script = call.module == "__main__" and call.file
    found: Any = _load_main(cast("str", call.file)) if is_script else importlib.import_module(call.module)
    for name in call.qualname.split("."):
        found = getattr(found, name)
    if isinstance(found, Task):
        return found.function, found.converters
    return found, Converters(call.job["task"], found, inspect.signature(found))


def _load_main(file: str) -> Any:
    """Import the program's main script under another module name, so that its main guard is not executed."""
    if getattr(sys.modules.get(MAIN_IN_CHILD), "__file__", None) != file:
        import runpy

        module = sys.modules["__main__"] = types.ModuleType(MAIN_IN_CHILD)
        module.__file__ = file  # so that the tasks have the same names as in the worker
        module.__dict__.update(runpy.run_path(file, run_name=MAIN_IN_CHILD))
        sys.modules[MAIN_IN_CHILD] = module
    return sys.modules[MAIN_IN_CHILD]


def format_traceback(error: BaseException) -> str:
    """Return the traceback from the first frame outside this module on."""
    if isinstance(error, RemoteError):
        return error.traceback
    frame = error.__traceback__
    while frame is not None and frame.tb_frame.f_code.co_filename == __file__:
        frame = frame.tb_next
    try:
        return _written_out("".join(tracebacks.format_exception(type(error), error, frame or error.__traceback__)))
    except Exception:  # the exception has unusual attributes
        return f"(no traceback can be made) {describe(error)}"


def describe(error: BaseException) -> str:
    """Return an exception in a few words: its type and its message."""
    try:
        text = _written_out(str(error))
    except BaseException:  # from its own __str__; a traceback uses the same words
        text = "<exception str() failed>"
    if isinstance(error, RemoteError):
        return text
    # By the name that users know.
    kind = SerializationError if isinstance(error, ArgumentsError | ResultError) else type(error)
    return f"{kind.__name__}: {text}" if text else kind.__name__


def reason_of(error: BaseException) -> str:
    """Return the error text to store: for a Cancel or Snooze, the message without the type."""
    text = describe(error)
    return text.partition(": ")[2] or text if isinstance(error, Cancel | Snooze) else text


def _written_out(text: str) -> str:
    """Return `text` with halves of surrogate pairs (from odd file names) escaped: some stores cannot hold them."""
    return text.encode(errors="backslashreplace").decode()


# ---------------------------------------------------------------------------
# 13. Worker
#
# Claims jobs, runs them, settles them. A _ServedQueue claims; an _Attempt then
# passes through named steps: resolve, decode, run, judge (_Steps), settle,
# announce (_Settler). Worker.stop() ends every task and thread that is started
# here. This section knows the Broker protocol, and no store.
# ---------------------------------------------------------------------------

UNKNOWN_TASK_DELAY = 15.0  # seconds for which a job of an unknown task is handed back
_AWAY_DELAY = 1.0  # the same for a job whose parents' results could not be read, as the store was away
_IDLE_WAIT = 5.0  # seconds after which an idle queue is looked at in any case
_PURGE_EVERY = 60.0
_PURGE_LIMIT = 500  # jobs deleted in one step
# Seconds that a leaving worker waits for a store that does not answer. After that, its jobs are rescued instead.
_PATIENCE, _NO_PATIENCE = 5.0, 1.0
_REPORT_EVERY = 0.5
_GROUP = 1_000  # the maximum of outcomes in one call of the broker
# Outcomes that may wait, however few jobs run at once. With 10, a worker of 10 slots waits for each commit before it
# claims again: 0.75 to 0.85 of the jobs per second on PostgreSQL. With 30 or 50 it is not faster than with 20.
_LEAST_GROUP = 20
_WELL = 10.0  # seconds after which a loop that fails had been well
_STEADY = 3.0  # leases after which nothing seems to kill a worker again and again
_TRACEBACK_LIMIT = 20_000  # characters
_REFUSED = "the store refused its outcome: the worker's log says why"
# Jobs of a lost lease are settled as released anyway: the store refuses that if another worker has
# the job now, and releases a job that was just claimed and would otherwise stay running.
_LEASE_LOST = "its worker had lost its lease"

Middleware = Callable[[Job, Callable[[Job], Awaitable[Any]]], Awaitable[Any]]

_ENDINGS = ("success", "failure", "retry", "cancel", "release", "snooze")
EVENTS = frozenset(("start", *_ENDINGS, "worker_lost", "worker_start", "worker_stop"))


class Event(NamedTuple):
    """What a hook receives: the event, the worker, and if there is one, the job with its outcome."""

    name: str
    worker: str
    job: Job | None = None
    result: Any = None
    error: str | None = None


class Hooks(dict[str, list[Callable[[Event], Any]]]):
    """The functions to call on events, by name. If one raises an exception, it is logged; nothing else changes."""

    async def fire(self, event: Event) -> None:
        """Call the hooks of an event, one after the other."""
        caller = cast("asyncio.Task[Any]", asyncio.current_task())
        cancelled = caller.cancelling()
        for hook in self.get(event.name, ()):
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
    """One attempt in the worker. Inside the attempt, `current_job()` returns it."""

    __slots__ = ("began", "has_place", "options", "runner", "served", "stop_reason")

    def __init__(self, job: Job, served: _ServedQueue) -> None:
        self.job = job
        self.attempt = job.attempt
        self.step_names = {}
        self.began = job.started or 0.0  # a broker that shares the job clears it when the job is to run again
        self.served = served
        self.options = _DEFAULT_OPTIONS  # those of its task, as soon as that is known
        self.runner: asyncio.Task[Any] | None = None  # once it has begun
        self.stop_reason: str | None = None  # why the worker stops it: cancel, release or lapsed
        self.has_place = False  # whether it holds one of the places for CPU-bound tasks

    @property
    def state(self) -> Any:
        return self.served.worker.state

    def report(self, progress: Progress) -> None:
        self.served.worker.report(self, progress)

    def count_wait(self, change: int) -> None:
        self.served.count_wait(self, change)

    async def keep_step(self, step: Step) -> None:
        await self.served.worker.settler.keep_step(self, step)

    async def find_event(self, name: str) -> str | None:
        worker, which = self.served.worker, JobFilter(ids=[event_id(name)])
        found = await worker.call(lambda _: worker.broker.find(which, limit=1))
        return await apart(encode, found[0].result) if found and found[0].status is SUCCESS else None

    def wait_until(self, call: Coroutine[Any, Any, T]) -> T:
        if threading.get_ident() == self.served.worker.keeper.watched:
            call.close()
            raise FlowrraError("step_sync() would block the event loop here: await step() instead")
        return asyncio.run_coroutine_threadsafe(call, self.served.worker.loop).result()

    def now(self) -> float:
        return self.served.worker.clock.time()

    def stop(self, why: str) -> None:
        """Stop the attempt."""
        if self.stop_reason is None:
            self.stop_reason = why
            if self.runner is not None:
                self.runner.cancel()


def judge(job: Job, options: TaskOptions, error: BaseException, now: float) -> Outcome:
    """Return the outcome of an attempt that raised `error`: another attempt later, or the end of the job."""
    if is_kind(error, Cancel):
        return Outcome.cancel(job, reason_of(error))
    delay = asked_delay(error, now)
    if is_kind(error, Snooze):
        outcome = Outcome.release(job, reason_of(error), now + (options.retry_delay if delay is None else delay))
        outcome.event = error.event if isinstance(error, _EventNotYet | RemoteError) else None
        return outcome
    if job.failures >= options.max_retries or not is_retryable(options, error):
        return _failure(job, error)
    if delay is None:
        delay = retry_delay(options, job.failures + 1)
    return Outcome.retry_at(job, now + delay, describe(error), _short_traceback(error))


def _failure(job: Job, error: BaseException) -> Outcome:
    return Outcome.fail(job, describe(error), _short_traceback(error))


def _short_traceback(error: BaseException) -> str:
    return format_traceback(error)[-_TRACEBACK_LIMIT:]


def _warn_of_left_steps(attempt: _Attempt) -> None:
    """Log the stored steps that this attempt did not run: the task has changed, or it took another path."""
    if left := [step.name for step in attempt.job.steps if step.name not in attempt.step_names]:
        logger.warning("job %s (%s) did not use its earlier steps %s: has the task changed?",
                       attempt.id, attempt.task, ", ".join(map(repr, left)), extra=_fields(attempt.job))  # fmt: skip


class _Batch:
    """Attempts that are gathered for one call, each with its argument and a future for its part of the answer."""

    def __init__(self) -> None:
        self.members: dict[_Attempt, tuple[Any, asyncio.Future[Any]]] = {}
        self.is_closed = asyncio.Event()
        self.call: asyncio.Task[None] | None = None


class _Batches:
    """Gathers the jobs of batch tasks. An attempt waits here, without a slot until the call of its batch begins.

    The call runs in a task of its own, so that a job which is cancelled does not end it for the others.
    """

    def __init__(self, threads: ThreadExecutor) -> None:
        self.calls: set[asyncio.Task[None]] = set()
        self._threads = threads
        self._gathering: dict[str, _Batch] = {}  # by task

    async def run(self, attempt: _Attempt, task: Task[..., Any], row: Any) -> Any:
        """Return or raise what the call of the batch comes to for this job."""
        loop = attempt.served.worker.loop
        batch = self._gathering.get(task.name)
        if batch is None:
            batch = self._gathering[task.name] = _Batch()
            batch.call = loop.create_task(self._call(task, batch), context=contextvars.Context())
            self.calls.add(batch.call)
            batch.call.add_done_callback(self.calls.discard)
        batch.members[attempt] = row, loop.create_future()
        with attempt.waiting():
            if len(batch.members) >= cast("int", task.settings.batch):
                self._close(task.name)
            try:
                result, error = await batch.members[attempt][1]
            finally:
                self._leave(batch, attempt)
        if error is not None:
            raise error
        return result

    def _leave(self, batch: _Batch, attempt: _Attempt) -> None:
        """Take out a job that has its part, or that is cancelled."""
        was_first = next(iter(batch.members)) is attempt
        del batch.members[attempt]
        if batch.call is not None and not batch.members:  # nobody wants its answer any more
            batch.call.cancel()
            if not batch.is_closed.is_set():
                del self._gathering[attempt.task]
        elif was_first and batch.is_closed.is_set():
            next(iter(batch.members)).count_wait(-1)

    def gathered(self, queue: str) -> int:
        """Return how many jobs of a queue have begun and wait for the call of their batch."""
        return sum(attempt.queue == queue for batch in self._gathering.values() for attempt in batch.members)

    def close_all(self) -> None:
        """Wait for no more jobs."""
        for name in list(self._gathering):
            self._close(name)

    def _close(self, name: str) -> None:
        """Begin the call of the batch that is being gathered. It takes the slot of its first job."""
        batch = self._gathering.pop(name)
        batch.is_closed.set()
        next(iter(batch.members)).count_wait(-1)

    async def _call(self, task: Task[..., Any], batch: _Batch) -> None:
        """Wait until the batch is full or its time is up, call the function, and give each job its part."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(task.settings.linger):
                await batch.is_closed.wait()
        if not batch.is_closed.is_set():
            self._close(task.name)
        members = dict(batch.members)
        rows = [row for row, _ in members.values()]
        answers: list[tuple[Any, BaseException | None]]
        try:
            call = task.function(rows) if task.is_async else self._threads.run(lambda: task.function(rows))
            answers = _answers(task, await _within(task.settings.timeout, call), len(members))
        except BaseException as error:
            answers = [(None, error)] * len(members)
        for (_, future), answer in zip(members.values(), answers, strict=True):
            _resolve(future, answer)


def _answers(task: Task[..., Any], returned: Any, number: int) -> list[tuple[Any, BaseException | None]]:
    """Return for each job of a batch its result or its exception."""
    if returned is None:
        return [(None, None)] * number
    if not isinstance(returned, list | tuple) or len(returned) != number:
        raise ResultError(
            f"the batch task {task.name} must return a list of {number} results, one for each job, or None, "
            f"not {returned!r:.60}"
        )
    return [(None, one) if isinstance(one, BaseException) else (one, None) for one in returned]


class _Steps:
    """Takes an attempt through its steps: resolve, decode, run, judge. It writes nothing to the store."""

    def __init__(self, worker: Worker, middleware: Sequence[Middleware]) -> None:
        config = worker.config
        self.threads = ThreadExecutor()
        self.processes = ProcessExecutor(config.cpu_workers, self.threads, config.max_jobs, config.max_memory)
        self.batches = _Batches(self.threads)
        self.unknown: set[str] = set()  # names of tasks that a warning has been given of
        self._worker = worker
        self._middleware = list(middleware)

    async def perform(self, attempt: _Attempt) -> Outcome:
        """Return the outcome of the attempt."""
        worker, job = self._worker, attempt.job
        if attempt.stop_reason is not None:  # before it has begun
            return self._end(attempt, begun=False)
        task = worker.registry.get(job.task)
        if task is None:
            return self._hand_back_unknown(job)
        arguments: _Arguments = job.args, job.kwargs
        try:
            attempt.options = options = task.settings
            if task.limit is not None and job.limit is None:
                _warn_once(
                    f"jobs of {task.name} come without its limit {task.limit!r}, so it does not hold for them: "
                    "they were submitted before it was declared, or by a program that does not have the task"
                )
            if time.monotonic() >= worker.keeper.lease_end and not await worker.keeper.renewal():
                return Outcome.release(job, _LEASE_LOST, begun=False)
            is_observed = worker.hooks or self._middleware
            if options.cpu_bound and is_observed:  # they are not called for a job that is handed back
                await self._take_place(attempt)
            if job.overrides:
                attempt.options = dataclasses.replace(options, **job.overrides)
            if is_observed or job.payload is not None or job.parents or task.converters is not None:
                decoded = await self._decode(attempt, task)
                if is_observed:
                    job = self._show(attempt, decoded)
                if isinstance(decoded, Outcome):
                    return decoded
                arguments = decoded
            run = self._run_wrapped if self._middleware else self._execute
            result = await run(attempt, task, arguments)
            if task.converters is not None:
                result = await apart(functools.partial(task.converters.result, loading=False), result)
            if job.steps and not options.cpu_bound:  # a process does not say which steps it used
                _warn_of_left_steps(attempt)
            outcome = Outcome.succeed(job, result, attempt.options.result_ttl)
            if worker.broker.keeps_text or not is_plain(result):
                if type(result) in _NUMBERS:
                    outcome.text = encode_returned(result, job.task)
                else:
                    outcome.text = await apart(encode_returned, result, job.task)
                check_size(outcome.text, worker.max_value_size, ResultError, "the text of the result of", job.task)
        except BaseException as error:
            if is_kind(error, TypeError):
                try:
                    task.check(*arguments)  # a submit by name cannot do that
                except TypeError as wrong:  # another attempt would end in the same way
                    return self._keep_failure(attempt, _failure(job, wrong.with_traceback(None)))
            return self._judge(attempt, error)
        finally:
            if attempt.has_place:
                self.processes.places.release()
        return outcome

    async def _take_place(self, attempt: _Attempt) -> None:
        """Wait until a process is free; _NoProcessFree if the job was claimed in advance, and that takes long."""
        while not attempt.has_place:
            try:
                async with asyncio.timeout(_AT_HAND):
                    attempt.has_place = await self.processes.places.acquire()
            except TimeoutError:
                if not attempt.served.may_wait():
                    raise _NoProcessFree from None

    def _hand_back_unknown(self, job: Job) -> Outcome:
        if job.task not in self.unknown:
            self.unknown.add(job.task)
            logger.warning(
                "worker %s does not know the task %r, and hands back its jobs for %g s at a time%s",
                self._worker.info.id, job.task, UNKNOWN_TASK_DELAY, nearest(job.task, self._worker.registry),
                extra=_fields(job),
            )  # fmt: skip
        due = self._worker.clock.time() + UNKNOWN_TASK_DELAY
        return Outcome.release(job, f"no task {job.task!r} in this worker", due, begun=False)

    async def _decode(self, attempt: _Attempt, task: Task[..., Any]) -> _Arguments | Outcome:
        """Return the arguments; if they cannot be read, the outcome of the attempt."""
        job = attempt.job
        try:
            is_short = len(job.payload or "") < _LARGE
            args, kwargs = decode_arguments(job) if is_short else await asyncio.to_thread(decode_arguments, job)
            if job.parents:
                args, kwargs = await self._put_results(job, args, kwargs)
            if task.converters is not None and not task.settings.cpu_bound:  # else its process does that
                load = functools.partial(task.converters.arguments, loading=True)
                args, kwargs = await apart(load, args, kwargs)
            return args, kwargs
        except (SerializationError, TaskNotFoundError) as error:  # another attempt would get the same error
            return self._keep_failure(attempt, _failure(job, error))
        except BrokerError as error:
            return Outcome.release(job, describe(error), self._worker.clock.time() + _AWAY_DELAY, begun=False)

    def _show(self, attempt: _Attempt, decoded: _Arguments | Outcome) -> Job:
        """Return the job as middleware and hooks see it, with its arguments, and fire the first event."""
        if not isinstance(decoded, Outcome):
            attempt.job = copy_of(attempt.job)  # a broker may share the other one
            attempt.job.args, attempt.job.kwargs = tuple(decoded[0]), decoded[1]
        self._worker.settler.emit(Event("start", self._worker.info.id, attempt.job))
        return attempt.job

    async def _put_results(self, job: Job, args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Arguments:
        """Return the arguments with the results of the job's parents in place of the placeholders."""
        named = tuple(parents_in(args, kwargs))
        # In an older store arguments may name other jobs than those that have taken their places.
        holders = [name if name in job.parents else parent for name, parent in zip(named, job.parents, strict=False)]
        results = {}
        for name, result in zip(named, await self._worker.broker.get(holders), strict=False):
            if result is None:
                raise TaskNotFoundError(f"the result of its parent {name} was removed: raise result_ttl or max_results")
            results[name] = result
        return put_results(args, results), put_results(kwargs, results)

    def _run_wrapped(self, attempt: _Attempt, task: Task[..., Any], arguments: _Arguments) -> Awaitable[Any]:
        """Run the task inside the middleware. The first middleware is the outermost."""

        def call(_: Job) -> Awaitable[Any]:
            return self._execute(attempt, task, arguments)

        wrapped: Callable[[Job], Awaitable[Any]] = call
        for middleware in reversed(self._middleware):
            wrapped = functools.partial(_wrap, middleware, wrapped)
        return wrapped(attempt.job)

    def _execute(self, attempt: _Attempt, task: Task[..., Any], arguments: _Arguments) -> Awaitable[Any]:
        """Run the function on the loop, in a thread or in a process, within the time limit of the attempt."""
        (args, kwargs), options = arguments, attempt.options
        if options.cpu_bound:
            return self._in_process(attempt, task, args, kwargs)
        if attempt.served.ahead:
            attempt.served.claim_ahead(False)
        if options.batch is not None:
            return self.batches.run(attempt, task, *args, *kwargs.values())
        if task.is_async:
            call = task.function(*args, **kwargs)
        else:
            call = self.threads.run(lambda: task.function(*args, **kwargs))
        return call if options.timeout is None else _within(options.timeout, call)

    async def _in_process(self, attempt: _Attempt, task: Task[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a call in a process. The time limit counts from the task's first line, without the wait for a process."""
        call = await apart(functools.partial(CpuCall.of, task, attempt.job), args, kwargs)
        limit, timeout, loop = asyncio.timeout(None), attempt.options.timeout, self._worker.loop

        def start_timeout() -> None:
            with contextlib.suppress(RuntimeError):  # the attempt is over
                limit.reschedule(loop.time() + cast("float", timeout))

        try:
            begin = None if timeout is None else start_timeout
            answer = self.processes.run(call, attempt, attempt.served.may_wait, begin)
            result = await (answer if timeout is None else _within(timeout, answer, limit))
            return await apart(self._worker.registry.as_returned, task.name, result)
        finally:
            attempt.served.claim_ahead(self.processes.are_short)

    def _judge(self, attempt: _Attempt, error: BaseException) -> Outcome:
        """Return the outcome of an attempt that did not return."""
        if isinstance(error, asyncio.CancelledError):
            if attempt.stop_reason is not None:
                return self._end(attempt)
            if self._worker.is_torn_down and attempt.runner and attempt.runner.cancelling():
                raise error
            # else the job has cancelled itself
        if isinstance(error, _NoProcessFree):
            return Outcome.release(attempt.job, "it was claimed in advance, and no process became free", begun=False)
        outcome = judge(attempt.job, attempt.options, error, self._worker.clock.time())
        return self._keep_failure(attempt, outcome)

    def _keep_failure(self, attempt: _Attempt, outcome: Outcome) -> Outcome:
        """Return the outcome. A failure is kept at least as long as a success."""
        if outcome.status is FAILED and (attempt.options.result_ttl or 0.0) > self._worker.broker.retention.failed_ttl:
            outcome.keep = attempt.options.result_ttl
        return outcome

    def _end(self, attempt: _Attempt, *, begun: bool = True) -> Outcome:
        """Return the outcome of an attempt that the worker ends."""
        while attempt.runner and attempt.runner.cancelling():
            attempt.runner.uncancel()
        if attempt.stop_reason == "cancel":
            return Outcome.cancel(attempt.job, BY_HAND)
        why = _LEASE_LOST if attempt.stop_reason == "lapsed" else "the worker stopped"
        return Outcome.release(attempt.job, why if begun else f"{why} before it began", begun=begun)


def _wrap(middleware: Middleware, inner: Callable[[Job], Awaitable[Any]], job: Job) -> Awaitable[Any]:
    answer = middleware(job, inner)
    if not inspect.isawaitable(answer):
        raise ConfigError(f"a middleware is an async def that returns `await call_next(job)`; {middleware!r} is not")
    return answer


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
    """Writes the outcomes of attempts in groups, then logs them and fires their events."""

    def __init__(self, worker: Worker, backend: Backend | None) -> None:
        self._worker = worker
        self._backend = backend
        self._outcomes: list[tuple[_Attempt, Outcome]] = []
        self._has_outcomes = asyncio.Event()  # set as long as there are any
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self._log = _GroupLog()

    def post(self, attempt: _Attempt, outcome: Outcome) -> None:
        """Queue an outcome to be settled."""
        self._outcomes.append((attempt, outcome))
        attempt.served.unsettled += 1
        if len(self._outcomes) == 1:
            self._has_outcomes.set()

    async def keep_step(self, attempt: _Attempt, step: Step) -> None:
        """Write a step, and retry while the store is unreachable. An attempt that has ended writes none."""
        outcome = Outcome.done(attempt.job, attempt.attempt, step)
        (is_kept,) = await self._worker.call(lambda now: self._worker.broker.settle([outcome], now=now))
        if not is_kept:
            raise FlowrraError(f"the step {step.name!r} is not kept: the job's lease was lost, and it runs elsewhere")

    async def settle_all(self) -> None:
        """Write outcomes in groups: those that arrive while one group is being written are the next group."""
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
        """Settle the group, retry as long as the broker fails, and announce what was written."""
        worker, outcomes = self._worker, [outcome for _, outcome in group]
        try:
            written = await worker.call(lambda now: worker.broker.settle(outcomes, now=now))
        except Exception as error:
            await self._settle_apart(group, error)
            return
        worker.tally.count(itertools.compress(group, written), worker.clock.time())
        worker.note_ended(len(group))
        if self._backend is not None:
            await self._record(self._backend, [o for (_, o), ok in zip(group, written, strict=True) if ok])
        is_heard = worker.hooks or logger.isEnabledFor(logging.INFO)
        heard = [
            (attempt, outcome, ok)
            for (attempt, outcome), ok in zip(group, written, strict=True)
            if is_heard or not ok or outcome.status is not SUCCESS
        ]
        if heard:
            with self._log:
                for attempt, outcome, ok in heard:
                    self._announce_outcome(attempt, outcome, ok)

    async def _settle_apart(self, group: Sequence[tuple[_Attempt, Outcome]], error: Exception) -> None:
        """Settle a refused group in two halves, so that an outcome that the broker refuses fails alone."""
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
        """Store results in the separate backend, too. The broker has them already, so none can be lost."""
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
        result = outcome.result
        if name in self._worker.hooks and outcome.status is SUCCESS:
            result = self._worker.registry.as_returned(job.task, result)
        self._announce(name, job, how, result, outcome.error, duration=seconds)

    def announce_ending(self, job: Job) -> None:
        """Announce the end of a job without an attempt: cancelled as it waited, expired, orphaned, many crashes."""
        name = "failure" if job.status is FAILED else "cancel"
        self._announce(name, job, f": {name}", None, job.error)

    def _announce(self, name: str, job: Job, how: str, result: Any, error: str | None, **fields: float) -> None:
        """Log the ending of an attempt or job, and fire its event. All endings go through here."""
        level = logging.WARNING if name in ("failure", "retry") else logging.INFO
        why = f": {error}" if error else ""
        self._log.write(level, "job %s (%s)%s%s", (job.id, job.task, how, why), {**_fields(job), **fields})
        self.emit(Event(name, self._worker.info.id, job, result, error))

    def emit(self, event: Event) -> None:
        """Queue an event for its hooks, if there are any. They are called later, in order."""
        if event.name in self._worker.hooks:
            self.events.put_nowait(event)

    async def fire_events(self) -> None:
        """Call the hooks of each event in turn."""
        while True:
            event = await self.events.get()
            try:
                await self._worker.hooks.fire(event)
            finally:
                self.events.task_done()


class LogHandler(logging.StreamHandler[TextIO]):
    """Writes log records to stderr, while it is held several in one piece. A warning or error is written at once."""

    def __init__(self) -> None:
        super().__init__()
        self.is_held = False
        self._entries: list[str] = []
        self._size = 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record) + self.terminator
            if self._size + len(line) > _WHOLE:
                self.flush()
            self._entries.append(line)
            self._size += len(line)
            if not self.is_held or record.levelno >= logging.WARNING:
                self.flush()
        except RecursionError:
            raise
        except Exception:
            self.handleError(record)

    def flush(self) -> None:
        with cast("threading.RLock", self.lock):
            lines, self._entries, self._size = self._entries, [], 0
            if lines:
                self.stream.write("".join(lines))
            super().flush()


_WHOLE = 4000  # characters; a pipe to which several processes write takes 4,096 bytes without a break


class LogFormatter(logging.Formatter):
    """Formats a log record as the worker's command does by default."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        if record.exc_info or record.exc_text or record.stack_info:
            return super().format(record)
        return f"{self.formatTime(record)} {record.levelname:<7} {record.getMessage()}"

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802 (logging's name)
        return f"{_second_text(int(record.created))},{int(record.msecs):03d}"


@functools.lru_cache(maxsize=1)
def _second_text(second: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))


class _GroupLog:
    """Logs lines of jobs. In a `with` block, which does not await, it logs a group: 7 us a line, 18 us one by one.

    The records of a group share what costs most: the place in the code, the thread, the process, the moment.
    """

    def __init__(self) -> None:
        self._first: dict[int, logging.LogRecord] | None = None  # of the group, by level
        self._held: list[LogHandler] = []

    def __enter__(self) -> None:
        self._first = {}
        self._held = [handler for handler in logging.getLogger().handlers if isinstance(handler, LogHandler)]
        for handler in self._held:
            handler.is_held = True

    def __exit__(self, *error: object) -> None:
        self._first = None
        for handler in self._held:
            handler.is_held = False
            handler.flush()

    def write(self, level: int, text: str, values: tuple[object, ...], extra: Mapping[str, object]) -> None:
        if not logger.isEnabledFor(level):
            return
        if self._first is None or logging.getLogRecordFactory() is not logging.LogRecord:
            logger.log(level, text, *values, extra=extra)
            return
        first = self._first.get(level)
        if first is None:
            self._first[level] = first = logger.makeRecord(logger.name, level, *logger.findCaller()[:2], text, (), None)
        record = logging.LogRecord.__new__(logging.LogRecord)
        record.__dict__ = {**first.__dict__, **extra, "args": values}
        logger.handle(record)


def _fields(job: Job) -> dict[str, Any]:
    """Return the extra fields of a log record."""
    return {"job_id": job.id, "task": job.task, "attempt": job.attempt}


def _result_of(outcome: Outcome, now: float) -> TaskResult[Any]:
    values = {name: getattr(outcome, name) for name in ("status", "result", "error", "traceback")}
    return dataclasses.replace(result_from(outcome.job), **values, attempts=outcome.attempt, finished=now)


class _Tally:
    """The activity of this worker. The loop counts it; the heartbeat thread reads it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums = ActivitySums()
        self._changed: set[int] = set()  # minutes that the broker does not know completely

    def count(self, attempts: Iterable[tuple[_Attempt, Outcome]], now: float) -> None:
        """Count attempts whose outcomes were written."""
        minute = int(now) // 60 * 60
        alike: dict[tuple[str, TaskStatus], list[tuple[Job, float]]] = collections.defaultdict(list)
        for attempt, outcome in attempts:
            alike[attempt.job.task, outcome.status].append((attempt.job, attempt.began))
        with self._lock:
            for (task, status), those in alike.items():
                if status in (SUCCESS, FAILED, RETRYING):
                    self._sums[minute, task].count(status, those, now)
            self._changed.add(minute)

    def take(self, now: float) -> list[Activity]:
        """Return the rows of each minute that has changed, for a heartbeat."""
        with self._lock:
            changed, self._changed = self._changed, set()
            for key in [key for key in self._sums if key[0] < now - 180 and key[0] not in changed]:
                del self._sums[key]  # 180 s: a clock that is set back must not start a minute again
            return [row.copy() for row in self._sums.in_order() if row.minute in changed]

    def keep(self, rows: Iterable[Activity]) -> None:
        """Keep rows that did not arrive for the next heartbeat."""
        with self._lock:
            self._changed.update(row.minute for row in rows)


class Turns:
    """Says how many crashes the next claimed job may have: suspects and other jobs take turns.

    If something else kills workers repeatedly, such as a host without memory, no job must be blamed for it. A job that
    would fail after one more crash only goes to a worker that has just started, which has the longest time until the
    next kill, or to one that has run for several leases.
    """

    def __init__(self, clock: Clock, lease: float) -> None:
        self._clock = clock
        self._steady_from = clock.monotonic() + _STEADY * lease
        self._asked: set[str] = set()  # the queues that have been claimed from
        self._others: set[str] = set()  # those in which it is the turn of jobs without crashes
        self._is_new = True  # no job has been claimed yet

    @property
    def most(self) -> int:
        """The most crashes that a suspect may have to run in this worker after its start."""
        return LAST_CHANCE - (self._clock.monotonic() < self._steady_from)

    def crashes(self, queue: str) -> int:
        """Return the limit of crashes for the next claim from this queue."""
        if queue in self._others:
            return 0
        return LAST_CHANCE if self._is_new and queue not in self._asked else self.most

    def note(self, queue: str, jobs: Sequence[Job]) -> None:
        """Record what that claim returned: after a suspect, it is the turn of other jobs, if there are any."""
        self._asked.add(queue)
        self._is_new = self._is_new and not jobs
        (self._others.add if jobs and jobs[0].crashes else self._others.discard)(queue)


class _ServedQueue:
    """A queue that a worker serves: one task claims jobs, and runs them as long as they do not wait.

    If a job waits, another task continues to claim, and each claimed job that has not started gets a task. (A new task
    for every job would cost as much as the job.) CPU-bound jobs are claimed in advance, so that a process need not wait
    for the store: otherwise it would be idle for a fifth of the time with 10 ms jobs.
    """

    def __init__(self, worker: Worker, queue: str, capacity: int) -> None:
        self.worker = worker
        self.queue = queue
        self.capacity = capacity
        self.ahead = 0  # jobs that may be claimed beyond that
        self.batch = 1  # jobs that may use one slot
        # Outcomes that may wait to be written: those of one round on their way, those of the next gathering. With one
        # round, each claim waits for the settle before it: 0.75 of the jobs a second on Redis.
        self.group = max(_LEAST_GROUP, min(2 * capacity, _GROUP))
        self.claimed: collections.deque[_Attempt] = collections.deque()  # and not begun yet
        self.running: set[_Attempt] = set()
        self.unsettled = 0  # attempts that have ended and are not written yet
        self.claimer: asyncio.Task[Any] | None = None
        self._waits: dict[_Attempt, int] = {}  # the jobs that wait for others, whose slots are free: how often at once

    def room(self) -> int:
        """Return how many jobs may be claimed now.

        A crash repeats the running jobs and those not yet written: at most the slots, and two rounds of them.
        """
        if self.worker.is_reserved and not self.worker.may_claim():
            return 0
        free = self.capacity + self.ahead + len(self._waits) - len(self.running) - len(self.claimed)
        if self.batch > 1 and free > 0:
            free = free * self.batch - self.worker.steps.batches.gathered(self.queue)
        return free - max(0, self.unsettled - self.group)

    def claim_ahead(self, are_short: bool) -> None:
        """Claim twice as many CPU-bound jobs as run if they are short; no more if slots outnumber processes."""
        self.ahead = self.capacity if are_short and self.capacity <= self.worker.config.cpu_workers else 0

    def may_wait(self) -> bool:
        """Claim no more in advance, as no process was free. Return False if jobs are here that were."""
        self.claim_ahead(False)
        return len(self.running) + len(self.claimed) <= self.capacity + len(self._waits)

    def count_wait(self, attempt: _Attempt, change: int) -> None:
        """Count that a running job starts to wait for another (1) or stops (-1). It may wait several times at once."""
        waits = self._waits.pop(attempt, 0) + change
        if waits > 0 and attempt in self.running:  # else the attempt is over, and only a part of it goes on
            self._waits[attempt] = waits
            self.worker.changed.set()

    def start_claimer(self) -> None:
        """Let another task claim, and run each job that is claimed by now in a separate task."""
        loop = self.worker.loop
        for _ in self.claimed:  # while such a task waits, its attempt refers to it
            loop.create_task(self._run_claimed(), context=contextvars.Context())
        self.claimer = loop.create_task(self._serve(), context=contextvars.Context())

    async def _serve(self) -> None:
        """Claim jobs and run them, until another task takes over or the worker drains."""
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
        """Claim jobs for the free slots. If there are no slots or no jobs, wait until there may be some."""
        worker = self.worker
        if (limit := self.room()) < 1:
            worker.changed.clear()
            await worker.changed.wait()
            return
        crashes, now, term = worker.turns.crashes(self.queue), worker.clock.time(), worker.info.term
        jobs = await worker.broker.claim(self.queue, limit=limit, worker=worker.info.id, now=now, crashes=crashes)
        worker.turns.note(self.queue, jobs)
        self.claimed.extend([_Attempt(job, self) for job in jobs])
        if jobs and jobs[0].crashes:
            worker.is_reserved = True
        if worker.is_draining:
            self.hand_back()
        elif worker.info.term != term:  # the lease was lost after this claim, perhaps
            self.hand_back("lapsed")
        elif crashes and not jobs:  # else suspects may be left
            await worker.broker.wait([("queue", self.queue)], _IDLE_WAIT)

    async def _run_claimed(self) -> bool:
        """Run the claimed jobs one by one. False if a job left a context variable or a cancellation behind."""
        task, worker = cast("asyncio.Task[Any]", asyncio.current_task()), self.worker
        is_clean = True
        while self.claimed and is_clean:
            attempt = self.claimed.popleft()
            attempt.runner = task
            self.running.add(attempt)
            current_job_var.set(attempt)
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

    def hand_back(self, why: str = "release") -> None:
        """Release the claimed jobs that have not started."""
        for attempt in self.claimed:
            attempt.stop(why)


class Worker:
    """Runs the jobs of one app. It is created, started and stopped on one loop."""

    def __init__(self, app: Flowrra) -> None:
        import socket

        self.loop = asyncio.get_running_loop()
        self.broker = app.broker
        self.registry = app.registry
        self.config = app.config.executor
        self.clock = app.clock
        self.hooks = app._hooks
        self.state = app.state
        self.max_value_size = app.config.broker.max_value_size
        host = socket.gethostname()
        self.info = WorkerInfo(f"{host}-{os.getpid()}-{os.urandom(4).hex()}", host, os.getpid())
        self.steps = _Steps(self, app._middleware)
        self.settler = _Settler(self, app.backend)
        self.tally = _Tally()
        self.turns = Turns(app.clock, self.config.lease)
        self.keeper = _Keeper(self)
        self.changed = asyncio.Event()  # set when a job ends, outcomes are written, and the like
        self.is_draining = False
        self.is_reserved = False  # whether a suspect runs, or waits to be claimed: see `may_claim`
        self.on_store_lost: Callable[[], object] = lambda: None  # called on the loop, perhaps more than once
        self.on_spent: Callable[[], object] = lambda: None  # called in the same way when `recycle_jobs` have ended, ...
        self._ended = 0  # attempts
        self._backend = app.backend
        self._schedules = app.schedules
        self._is_drain_over = False
        self._residents: list[asyncio.Task[None]] = []  # loops that run until the worker leaves
        self._queues: dict[str, _ServedQueue] = {}
        self._progress: dict[_Attempt, Progress] = {}
        self._has_progress = asyncio.Event()

    # Starting and stopping ---------------------------------------------------------------------

    async def start(self) -> None:
        """Register with the broker and start to claim."""
        self.info.started = self.clock.time()
        for queue, capacity in (self.config.queues or {"default": self.config.io_workers}).items():
            self._queues[check_queue(queue)] = _ServedQueue(self, queue, capacity)
        for task in self.registry.values():
            self._serve_queue_of(task, task.queue)
        for schedule in self._schedules.values():
            if schedule.task in self.registry and "queue" in schedule.options:
                self._serve_queue_of(self.registry[schedule.task], schedule.options["queue"])
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
        declared = [task.settings for task in self.registry.values() if task.queue in self._queues]
        for executor in {settings.executor for settings in declared if settings.cpu_bound}:
            self.steps.processes.warm_up(executor)
        self.settler.emit(Event("worker_start", self.info.id))

    def _serve_queue_of(self, task: Task[..., Any], queue: str) -> _ServedQueue | None:
        """Return a queue of a task if it must be served now; None if it is served, or the user chose the queues."""
        if self.config.queues is not None or queue in self._queues:
            return None
        capacity = self.config.cpu_workers if task.settings.cpu_bound else self.config.io_workers
        served = self._queues[queue] = _ServedQueue(self, queue, capacity)
        return served

    def _describe(self) -> None:
        self.info.queues = {served.queue: served.capacity for served in self._queues.values()}
        for served in self._queues.values():
            batches = [task.settings.batch or 1 for task in self.registry.values() if task.queue == served.queue]
            served.batch = max(batches, default=1) if 1 not in batches else 1
        self.info.tasks = sorted(self.registry)

    def add_task(self, task: Task[..., Any]) -> None:
        """Serve a task that was registered after the start, and its queue."""
        if not self.is_draining and (served := self._serve_queue_of(task, task.queue)) is not None:
            served.start_claimer()
        self.steps.unknown.discard(task.name)
        self._describe()

    async def stop(self, drain: float) -> None:
        """Stop claiming, wait up to `drain` seconds for running jobs, release the rest, and sign off."""
        self.stop_claiming()
        patience = _PATIENCE if drain else _NO_PATIENCE
        try:
            if self.is_torn_down:
                return
            await self._until(lambda: self._is_drain_over or not self.attempts(), drain)
            if self.attempts():
                self._is_drain_over = False
                for attempt in self.attempts():
                    attempt.stop("release")
                await self._until(lambda: self._is_drain_over or not self.attempts(), 2.0)
                for attempt in self.attempts():  # what they still do is refused
                    reason = "the worker stopped, and the job ignored its cancellation"
                    self.settler.post(attempt, Outcome.release(attempt.job, reason))
            # If the broker is unreachable for longer, they are rescued.
            await self._until(lambda: not self._unsettled, patience)
            self.settler.emit(Event("worker_stop", self.info.id))
            try:
                await asyncio.wait_for(self.settler.events.join(), patience)
            except TimeoutError:
                left = self.settler.events.qsize() + 1  # that which is with its hooks
                logger.warning("%d event(s) are dropped: their hooks did not end within %g s", left, patience)
        finally:
            await self._leave(patience)

    def note_ended(self, attempts: int) -> None:
        """Count attempts whose outcomes were written, and say when the process has run its share."""
        self._ended += attempts
        if not self.is_draining and _is_spent(self._ended, self.config.recycle_jobs, self.config.recycle_memory):
            self.on_spent()

    def stop_claiming(self) -> None:
        """Claim no more jobs, and release those that have not started."""
        self.is_draining = True
        for served in self._queues.values():
            served.hand_back()
        self.steps.batches.close_all()
        self.changed.set()

    def end_drain(self) -> None:
        """Stop waiting for running jobs."""
        self._is_drain_over = True
        self.changed.set()

    async def _until(self, condition: Callable[[], bool], seconds: float) -> None:
        """Return when the condition is true, at the latest after that many seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if seconds == math.inf else seconds):
                while not condition():
                    self.changed.clear()
                    await self.changed.wait()

    def owned(self) -> set[asyncio.Task[Any]]:
        """Return the tasks that this worker runs."""
        claimers = [served.claimer for served in self._queues.values()]
        runners = [attempt.runner for attempt in self.attempts()]
        owned = (*self._residents, *claimers, *runners, *self.steps.batches.calls)
        return {task for task in owned if task is not None}

    def abandon(self) -> None:
        """End what outlives the loop, which has ended without a stop. The lease is no longer extended."""
        self.keeper.stop()
        self.steps.processes.close()
        self.steps.threads.close()

    async def _leave(self, patience: float) -> None:
        self.keeper.stop()
        owned = self.owned()
        for task in owned:
            task.cancel()
        try:
            await asyncio.wait(owned, timeout=1.0)
        finally:  # a loop that is torn down cancels this, too
            self.abandon()
        await asyncio.to_thread(self.keeper.join, patience)  # a heartbeat after the leave would register it again
        try:
            await asyncio.wait_for(self.keeper.send_heartbeat(self.broker, lease=0), patience)
        except TimeoutError:
            logger.warning("worker %s could not sign off: no answer from the broker in %g s", self.info.id, patience)
        except BrokerError as error:
            logger.warning("worker %s could not sign off: %s", self.info.id, describe(error))

    def handle_notices(self, notices: Notices, earlier: Collection[_Attempt] = ()) -> None:
        """Act on the answer to a heartbeat. `earlier` are the attempts from before it. On the loop's thread."""
        attempts = self.attempts()
        for attempt in attempts:
            if attempt.job.id in notices.cancelled:
                attempt.stop("cancel")
            elif notices.lapsed and attempt in earlier:  # the others are under the lease that it gave
                attempt.stop("lapsed")
        if notices.lapsed:
            logger.error("worker %s lost its lease: its attempts are dropped, and their jobs run again", self.info.id)
        self.keeper.confirm_lease(not notices.lapsed)
        if attempts and 0 < notices.suspects <= self.turns.most:
            self.is_reserved = True
        for worker in notices.lost_workers:
            logger.warning("worker %s is presumed dead; its jobs are ready again", worker)
            self.settler.emit(Event("worker_lost", worker))
        for job in notices.endings:
            self.settler.announce_ending(job)

    # What runs ---------------------------------------------------------------------------------

    @property
    def _unsettled(self) -> int:
        return sum(served.unsettled for served in self._queues.values())

    @property
    def is_torn_down(self) -> bool:
        """Whether the whole loop is shutting down, and the worker with it."""
        return bool(self._residents[0].cancelling())

    def attempts(self) -> list[_Attempt]:
        """Return the current attempts; from any thread."""
        return [attempt for served in list(self._queues.values()) for attempt in (*served.running, *served.claimed)]

    def may_claim(self) -> bool:
        """Whether jobs may be claimed. A suspect runs alone in the worker.

        If a suspect waits or was claimed, nothing is claimed until all attempts have ended and are written.
        """
        if self.is_reserved and not self.attempts() and not self._unsettled:
            self.is_reserved = False
        return not self.is_reserved

    def keep_running(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a background coroutine until it returns or the worker leaves."""
        self._residents.append(self.loop.create_task(self.supervise(work)))

    async def supervise(self, work: Callable[[], Coroutine[Any, Any, None]], longest: float = 10.0) -> None:
        """Run a coroutine until it returns: log an exception, and restart it after at most `longest` seconds."""
        failures, task = 0, cast("asyncio.Task[None]", asyncio.current_task())
        while True:
            began = time.monotonic()
            try:
                return await work()
            except (Exception, asyncio.CancelledError) as error:
                if task.cancelling():
                    raise
                failures = 1 if time.monotonic() - began > _WELL else failures + 1
                await self.recover(error, failures, longest)

    async def call(self, operation: Callable[[float], Awaitable[T]]) -> T:
        """Return what an operation of the broker, called with the time, returns. Retry as long as it fails."""
        failures = 0
        while True:
            try:
                return await operation(self.clock.time())
            except BrokerError as error:
                failures += 1
                await self.recover(error, failures)

    async def recover(self, error: BaseException, failures: int, longest: float = 10.0) -> None:
        """Log the latest of several failures in a row, and sleep before the next try, longer each time."""
        if isinstance(error, StoreLostError):
            _call_soon(self.loop, self.on_store_lost)
        if isinstance(error, BackendError):
            text = str(error) or describe(error)
            logger.error("worker %s: %s (failure %d in a row; trying again)", self.info.id, text, failures)
        else:
            logger.error("worker %s: unexpected error; continuing", self.info.id, exc_info=error)
        await asyncio.sleep(jittered(min(longest, 0.1 * 2.0 ** min(failures, 10))))

    # Housekeeping ------------------------------------------------------------------------------

    def report(self, attempt: _Attempt, progress: Progress) -> None:
        """Record progress; from any thread."""
        self._progress[attempt] = progress
        if not self._has_progress.is_set():
            _call_soon(self.loop, self._has_progress.set)

    async def _write_progress(self) -> None:
        while True:
            await self._has_progress.wait()
            self._has_progress.clear()  # first, so that what comes meanwhile is written next time
            reported = [self._progress.popitem() for _ in range(len(self._progress))]
            outcomes = [Outcome.report(attempt.job, attempt.attempt, progress) for attempt, progress in reported]
            try:
                await self.broker.settle(outcomes, now=self.clock.time())
            except BaseException:
                for attempt, progress in reported:  # unless it has said more meanwhile
                    self._progress.setdefault(attempt, progress)
                self._has_progress.set()
                raise
            await asyncio.sleep(_REPORT_EVERY)

    async def _purge(self) -> None:
        stores = [store for store in (self.broker, self._backend) if isinstance(store, Broker)]
        while True:
            count = max([await store.purge(self.clock.time(), _PURGE_LIMIT) for store in stores])
            await asyncio.sleep(_PURGE_EVERY if count < _PURGE_LIMIT else 0.01)


class _Keeper(threading.Thread):
    """Extends the lease in a separate thread with a clone of the broker, and detects a blocked loop."""

    def __init__(self, worker: Worker) -> None:
        super().__init__(name="flowrra-keeper", daemon=True)
        # On time.monotonic(), counted from before the heartbeat went out: while the store cannot be reached after that,
        # other workers may run the jobs that were claimed here, and none of these is started.
        self.lease_end = self._granted = 0.0
        self.broker: Broker | None = None  # without one the heartbeats go out on the worker's loop
        self._worker = worker
        self._renewals: list[asyncio.Future[bool]] = []  # attempts that wait for a renewal of the lease
        self.watched = threading.get_ident()  # the thread of the loop
        self._ended = threading.Event()
        self._main: asyncio.Task[None] | None = None

    async def send_heartbeat(self, broker: Broker, lease: float) -> Notices:
        """Send one heartbeat through `broker`, on the loop that runs this."""
        worker, info = self._worker, self._worker.info
        now, began = worker.clock.time(), time.monotonic()
        info.running, info.memory, info.activity = len(worker.attempts()), resident_memory(), worker.tally.take(now)
        try:
            notices = await broker.heartbeat(info, lease=lease, now=now)
        except BaseException:
            worker.tally.keep(info.activity)
            raise
        self._granted = began + lease
        if not notices.lapsed:  # otherwise no job starts before the worker has dropped the jobs that it has lost
            self.lease_end = self._granted
        return notices

    async def keep_lease(self, broker: Broker) -> None:
        """Send heartbeats repeatedly through `broker`, on the loop that runs this."""
        worker = self._worker
        while True:
            await broker.wait([("worker", "")], worker.config.heartbeat)
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
        """Let jobs start under the lease. If it had been lost, the attempts under it have been dropped by now."""
        if not was_kept:
            self.lease_end = self._granted
        while self._renewals:
            _resolve(self._renewals.pop(), was_kept)

    def run(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            asyncio.run(self._keep())

    def stop(self) -> None:
        """Request the thread to end; from another thread."""
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
        """Report once a loop that has been blocked for a second, with the stack that blocks it."""
        reported = False
        while True:
            turned = threading.Event()
            if self._worker.attempts():  # an idle worker's loop is left asleep
                _call_soon(self._worker.loop, turned.set)
            else:
                turned.set()
            await asyncio.sleep(1.0 - time.monotonic() % 1.0)
            if not turned.is_set() and not reported:
                frame = sys._current_frames().get(self.watched)
                stack = "".join(tracebacks.format_stack(frame)) if frame else "(its thread has ended)"
                jobs = [attempt.job for attempt in self._worker.attempts()]
                named = ", ".join(f"{job.id} ({job.task})" for job in jobs) or "none"
                logger.warning("the event loop has been blocked for more than 1 s; jobs running: %s\n%s", named, stack)
            reported = not turned.is_set()


# ---------------------------------------------------------------------------
# 14. Schedules
#
# Rules that submit jobs: schedules in code, and what stored schedules share with
# them. One fire makes one job, even if several schedulers run, because the id of
# the job is a digest of schedule and moment. Of a broker, only `push` is used.
# ---------------------------------------------------------------------------


MISFIRES = ("latest", "all", "skip")
OVERLAPS = ("allow", "skip")


@dataclass(slots=True, kw_only=True)
class Schedule:
    """A stored rule that submits jobs of `task`.

    `rule` is the text of a cron expression, an interval in seconds or a moment in ISO format; `kind` says which. `tz`
    is the key of a zone. Intervals count from `anchor`. `payload` is the text of the arguments. `options` are the
    options of each submission (priority, queue, max_retries, retry_delay, ...). `next_fire` is None if the schedule
    never fires again. `key` identifies the schedule: two with the same key are the same schedule. `turn` grows each
    time a scheduler takes the schedule and each time it changes; it is the fencing token.
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
        """When the schedule fires next."""
        return _moment(self.next_fire)

    @property
    def last_fire_at(self) -> dt.datetime | None:
        """The latest moment that it fired."""
        return _moment(self.last_fire)

    @property
    def explanation(self) -> str:
        """The rule in words."""
        try:
            if self.kind == "interval":
                return f"Every {duration(float(self.rule))}"
            return "Once" if self.kind == "once" else Cron(self.rule, tz=self.tz, name=self.id).explain()
        except ValueError as error:
            return f"The rule cannot be read: {error}"

    @property
    def args(self) -> Sequence[Any]:
        """The positional arguments of its jobs."""
        return decode_arguments(Job("", self.task, payload=self.payload))[0]

    @property
    def kwargs(self) -> Mapping[str, Any]:
        """The keyword arguments of its jobs."""
        return decode_arguments(Job("", self.task, payload=self.payload))[1]

    # As Flowrra 0.1 called them -----------------------------------------------------------------

    @property
    def task_name(self) -> str:
        """The same as `task`."""
        return self.task

    @property
    def next_run_at(self) -> dt.datetime | None:
        """The same as `next_fire_at`."""
        return self.next_fire_at

    @property
    def last_run_at(self) -> dt.datetime | None:
        """The same as `last_fire_at`."""
        return self.last_fire_at


class Fired(NamedTuple):
    """What a scheduler did with a schedule that it took under `turn`."""

    schedule_id: str
    turn: int
    next_fire: float | None
    last_fire: float | None
    last_job: str | None


# When a schedule fires --------------------------------------------------------------------------
#
# Moments are whole microseconds since the epoch here, so that all hosts compute the same and no interval
# drifts by rounding.

ON_TIME = 15.0  # seconds; a later fire is a misfire. The lease of a dead scheduler ends after 10 s
MAX_CATCH_UP = 100  # the maximum of missed fires of one schedule that run at once
FIRES_AT_ONCE = 500  # the maximum of schedules that fire in one step: more would block the event loop for too long
_LEAST_INTERVAL = 0.001
_MAX_INTERVAL = 36_525 * 86_400.0


class _Rule(NamedTuple):
    """The next moment after one, and the last moment before one; None if there is none."""

    next: Callable[[int], int | None]
    previous: Callable[[int], int | None]


def _rule_of(schedule: Schedule) -> _Rule:
    """Return the parsed rule of a schedule; ConfigError if its text cannot be read."""
    if schedule.kind == "cron":
        return _cron_rule(schedule.rule, schedule.tz, schedule.id if "h" in schedule.rule.lower() else None)
    if schedule.kind == "interval":
        step = _micro(_seconds("an interval", float(schedule.rule), least=_LEAST_INTERVAL))
        anchor = _micro(schedule.anchor)
        return _Rule(
            lambda after: after + step - (after - anchor) % step,
            lambda before: before - 1 - (before - 1 - anchor) % step,
        )
    moment = _micro(dt.datetime.fromisoformat(schedule.rule).timestamp())
    return _Rule(lambda after: moment if moment > after else None, lambda before: moment if moment < before else None)


@functools.lru_cache(maxsize=1024)
def _cron_rule(expression: str, tz: str, name: str | None) -> _Rule:
    """Return the rule of a cron expression. Those that share it usually ask for the moment after the same fire."""
    cron = Cron(expression, tz, name=name)
    following = functools.lru_cache(maxsize=1)(functools.partial(_found, cron.next))
    return _Rule(following, functools.partial(_found, cron.previous))


def _found(search: Callable[[dt.datetime], dt.datetime], moment: int) -> int | None:
    try:
        return (search(_EPOCH + dt.timedelta(microseconds=moment)) - _EPOCH) // dt.timedelta(microseconds=1)
    except ValueError:  # it matches nothing there any more
        return None


def _micro(seconds: float) -> int:
    return round(seconds * 1e6)


def upcoming(schedule: Schedule, after: float) -> float | None:
    """Return the first moment after `after` at which the schedule is due; None if there is none."""
    moment = _rule_of(schedule).next(_micro(after))
    return None if moment is None else moment / 1e6


def _due_moments(rule: _Rule, first: int, now: int) -> tuple[list[int], int | None]:
    """Return the fires from `first` to `now`, the earliest first, and the next one; at most the latest MAX_CATCH_UP."""
    following = rule.next(first)
    if following is None or following > now:  # the usual case; `previous` is slower
        return [first], following
    moments: list[int] = []
    moment = rule.previous(now + 1)
    while moment is not None and moment > first and len(moments) < MAX_CATCH_UP:
        moments.append(moment)
        moment = rule.previous(moment)
    return [*moments, first][:MAX_CATCH_UP][::-1], rule.next(now)


def _to_fire(misfire: str, moments: Sequence[int], now: int) -> Sequence[int]:
    """Return which of the moments that have come must be fired."""
    if misfire == "all":
        return moments
    in_time = [moment for moment in moments if now - moment <= ON_TIME * 1e6]
    # With "skip" a moment is missed as soon as the next one has come, however short the interval is.
    return in_time[-1:] if misfire == "skip" else in_time or moments[-1:]


def _stamp(moment: int) -> str:
    return (_EPOCH + dt.timedelta(microseconds=moment)).isoformat().replace("+00:00", "Z")


# Making a schedule ------------------------------------------------------------------------------


class ScheduleOptions(TypedDict, total=False):
    """The options of a schedule, in addition to its rule and arguments.

    `misfire`: which fires happen if they are more than ON_TIME seconds late: "latest" the latest one, "all" each one
    (the latest MAX_CATCH_UP), "skip" none of them; "skip" also drops a fire if the next one has come. `overlap="skip"`
    drops a fire while an unfinished job of the schedule exists. `jitter`: each job waits up to this many seconds, the
    same number on all hosts. All other options are options of the jobs; if one is not given, that of the task counts.
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
    """Make a checked schedule. Its id is a digest of task, rule, zone, arguments and queue. It has no next fire yet.

    `options` are those of ScheduleOptions.
    """
    for wrong in options.keys() - (known := ScheduleOptions.__annotations__.keys()):
        raise TypeError(f"a schedule has no option {wrong!r}{nearest(wrong, known)}")
    names = ("priority", "queue", "max_retries", "retry_delay")  # of the options that its jobs get
    of_jobs = {name: value for name in names if (value := options.pop(name, None)) is not None}
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
    _flag("enabled", schedule.enabled)
    schedule.jitter = _seconds("jitter", schedule.jitter)
    schedule.key = key = schedule_key(schedule)
    queue = of_jobs.get("queue")
    if queue is not None and not (isinstance(task, Task) and task.queue == queue):
        key = _digest(f"{key} in {queue}")
    schedule.id = f"{schedule.task[:100]}:{key[:12]}"
    _rule_of(schedule)
    return schedule


def _rule_text(kind: str, rule: object, tz: str | dt.tzinfo | None) -> str:
    """Return the text of the rule for the store."""
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
    """Return the text of the arguments. They are checked if the task is known."""
    if not isinstance(args, list | tuple) or not isinstance(kwargs, Mapping):
        raise ConfigError(f"args is a tuple and kwargs a dictionary, not {args!r} and {kwargs!r}")
    if parents_in(args, kwargs):
        raise ConfigError("a schedule's arguments cannot hold result_of(): it fires again and again")
    if isinstance(task, Task):
        task.check(args, kwargs)
        if task.converters is not None:
            args, kwargs = task.converters.arguments(args, kwargs, loading=False)
        task = task.name
    return encode_arguments(Job("", task, tuple(args), kwargs))


def schedule_key(schedule: Schedule) -> str:
    """Return a digest that is the same for two schedules that count as one."""
    parts = [schedule.task, schedule.kind, schedule.rule, schedule.tz, json.loads(schedule.payload)]
    return _digest(json.dumps(parts, sort_keys=True))


def _digest(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()


# Firing -----------------------------------------------------------------------------------------

CHECK_EVERY = 1.0  # seconds between checks for changes by others
# Seconds that the job of a fire is kept at least. While it exists, a scheduler whose clock is slow, or that continues
# after a failure, cannot repeat the fire.
FIRES_KEPT = 3600.0
_NONE_YET = 5.0  # seconds between checks of an app without schedules; each check wakes an idle worker
_RETRY_AFTER = 10.0  # seconds until a fire that a full queue has refused is tried again


class Firing:
    """Fires schedules: it selects the moments that have come, and pushes their jobs."""

    def __init__(self, app: Flowrra) -> None:
        self._app = app
        self._reported: set[str] = set()  # schedules that a warning has been given of

    async def run(self) -> None:
        """Fire what is due, until cancelled. It can be called again after a failure; no fire is lost."""
        while True:
            pause = await self.step()
            if pause >= CHECK_EVERY:  # ends with the other timers of an idle process, so that it wakes once for all
                pause -= (time.monotonic() + pause) % CHECK_EVERY
            await asyncio.sleep(pause)

    async def step(self) -> float:
        """Fire what is due. Return the seconds to sleep until there may be more.

        If it is cancelled, some of the jobs may have been pushed. A fire that was not recorded is due again.
        """
        raise NotImplementedError

    def plan(self, schedule: Schedule, now: float) -> tuple[list[Job], Fired] | None:
        """Make the jobs of a taken schedule. None leaves it to others, which can take it when the lease ends."""
        task = self._app.registry.get(schedule.task)
        if task is None:  # it stays due until a program that knows the task runs, as jobs of an unknown task do
            self._report(schedule, f"no task {schedule.task!r} is registered here, so it does not fire")
            return None
        try:
            rule = _rule_of(schedule)
            moments, following = _due_moments(rule, _micro(cast("float", schedule.next_fire)), _micro(now))
            chosen = _to_fire(schedule.misfire, moments, _micro(now))
            jobs = [job_of_fire(schedule, task, moment, self._app.broker.retention) for moment in chosen]
        except (ValueError, SerializationError) as error:  # its rule cannot be read, or its arguments give no key
            self._report(schedule, f"it does not fire: {error}")
            return None
        if len(chosen) < len(moments):
            logger.warning("schedule %s (%s) is late: %d of %d fires up to %s are dropped", schedule.id, task.name,
                           len(moments) - len(chosen), len(moments), _stamp(moments[-1]))  # fmt: skip
        over = moments if following is None else chosen  # where nothing follows, what was dropped is over, too
        last = over[-1] / 1e6 if over else schedule.last_fire
        following_at = None if following is None else following / 1e6
        return jobs, Fired(schedule.id, schedule.turn, following_at, last, schedule.last_job)

    def _report(self, schedule: Schedule, what: str) -> None:
        if schedule.id not in self._reported:
            self._reported.add(schedule.id)
            logger.warning("schedule %s: %s", schedule.id, what)

    async def fire(self, due: Iterable[Schedule], now: float) -> list[Fired]:
        """Push the jobs of schedules that are due. Return the schedules whose jobs were pushed."""
        return await self.push([plan for schedule in due if (plan := self.plan(schedule, now)) is not None])

    async def push(self, due: Sequence[tuple[list[Job], Fired]]) -> list[Fired]:
        """Push the jobs of several schedules at once. Return the schedules whose jobs were pushed."""
        jobs = [job for its_jobs, _ in due for job in its_jobs]
        try:
            ids = iter(await self._app.submit_jobs(jobs) if jobs else ())
        except Exception as error:  # of a full queue, or a hook: it must not affect other schedules
            if isinstance(error, BackendError) and not isinstance(error, QueueFullError):
                raise
            if len(due) == 1:
                logger.error("schedule %s cannot fire, trying again: %s", due[0][1].schedule_id, describe(error))
                return []
            half = len(due) // 2
            return [*await self.push(due[:half]), *await self.push(due[half:])]
        pushed = [(fired, list(itertools.islice(ids, len(its_jobs)))) for its_jobs, fired in due]
        return [fired._replace(last_job=these[-1]) if these else fired for fired, these in pushed]


def job_of_fire(schedule: Schedule, task: Task[..., Any], moment: int, retention: BackendConfig) -> Job:
    """Make the job of a fire. Its id is a digest of schedule and moment, so all schedulers make the same job."""
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
    if task.limit is not None or task.settings.key is not None or task.app.limits:
        args, kwargs = decode_arguments(job)
        task.limit_job(job, task.limit, None, *task.typed(args, kwargs))
    return job


class CodeSchedules(Firing):
    """Fires the schedules that an app declares. It stores nothing from one process to the next."""

    def __init__(self, app: Flowrra) -> None:
        super().__init__(app)
        self._schedules: dict[str, Schedule] = {}  # as they stand since the start, by id
        self._last_fires: dict[str, float | None] = {}  # before the start
        self._retry_at: dict[str, float] = {}  # on the monotonic clock, of those whose jobs were refused
        self._due: list[tuple[float, str]] = []  # a heap of next fires; an entry that no longer holds is dropped

    def restart(self) -> None:
        """Let all schedules fire from now on, when the app starts. A moment that has fired does not fire again."""
        self._last_fires |= {schedule.id: schedule.last_fire for schedule in self._schedules.values()}
        self._schedules.clear()
        self._due.clear()

    async def step(self) -> float:
        now, clock = self._app.clock.time(), self._app.clock.monotonic()
        self._add_new(now)
        for schedule_id in [schedule_id for schedule_id, at in self._retry_at.items() if at <= clock]:
            del self._retry_at[schedule_id]
            self._queue(self._schedules[schedule_id])
        due = self._select(now)
        fired = {one.schedule_id: one for one in await self.fire(due, now)}
        for schedule in due:
            if (one := fired.get(schedule.id)) is not None:
                schedule.next_fire, schedule.last_fire, schedule.last_job = one[2:]
                self._queue(schedule)
            else:
                self._retry_at[schedule.id] = clock + _RETRY_AFTER
        first = self._first()
        pause = CHECK_EVERY if first is None else min(CHECK_EVERY, max(0.0, cast("float", first.next_fire) - now))
        return pause if self._app.schedules else _NONE_YET

    def _add_new(self, now: float) -> None:
        """Add the schedules that were declared since the last step."""
        if len(self._schedules) == len(self._app.schedules):
            return
        for schedule in self._app.schedules.values():
            if schedule.id not in self._schedules:
                last = self._last_fires.get(schedule.id)
                first = upcoming(schedule, now if last is None else max(now, last))
                self._schedules[schedule.id] = added = dataclasses.replace(schedule, next_fire=first, last_fire=last)
                self._queue(added)

    def _queue(self, schedule: Schedule) -> None:
        if schedule.enabled and schedule.next_fire is not None:
            heapq.heappush(self._due, (schedule.next_fire, schedule.id))

    def _select(self, now: float) -> list[Schedule]:
        """Return schedules that are due, the earliest first. They are due until they have fired, if a push fails."""
        due: dict[str, Schedule] = {}
        while len(due) < FIRES_AT_ONCE and (first := self._first()) and cast("float", first.next_fire) <= now:
            due[first.id] = first
            heapq.heappop(self._due)
        for schedule in due.values():
            self._queue(schedule)
        return [*due.values()]

    def _first(self) -> Schedule | None:
        """Return the schedule that is due first."""
        while self._due:
            moment, schedule_id = self._due[0]
            schedule = self._schedules[schedule_id]
            if schedule.next_fire == moment and schedule_id not in self._retry_at:
                return schedule
            heapq.heappop(self._due)
        return None


# ---------------------------------------------------------------------------
# 15. App
#
# The app object: it registers tasks, submits jobs, waits for results, and runs
# a worker if it is started. Only here is decided which class a URL stands for.
# ---------------------------------------------------------------------------

BrokerFactory = Callable[[str, Config, Clock], Broker]


def _memory_from_url(url: str, config: Config, clock: Clock) -> Broker:
    if url not in ("memory://", "memory"):
        raise ConfigError(f"the URL of the memory broker is memory://, not {url!r}")
    return MemoryBroker(config.broker, config.backend, clock)


def _sqlite_from_url(url: str, config: Config, clock: Clock) -> Broker:
    import urllib.parse

    parts = urllib.parse.urlsplit(url)
    if parts.netloc or parts.fragment or parts.path == "/:memory:" or "%00" in parts.path:
        form = "sqlite:///name.db or sqlite:////folder/name.db, with %23 for #; sqlite:// is private and in memory"
        raise ConfigError(f"{url!r} names no file: the form is {form}")
    options = dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))
    synchronous = options.pop("synchronous", "full")
    if options:
        raise ConfigError(f"{url!r} has the unknown option {min(options)!r}; there is synchronous=full|normal")
    path = urllib.parse.unquote(parts.path)[1:] or None
    return SQLiteBroker(path, config.broker, config.backend, clock, synchronous=synchronous)


_SCHEMES: Mapping[str, BrokerFactory] = {"memory": _memory_from_url, "sqlite": _sqlite_from_url}
# Scheme: the module whose `broker_from_url` serves it, imported on first use, and the package with its driver.
_EXTRAS: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys(("redis", "rediss", "unix"), ("flowrra_extras.redis", "flowrra[redis]")),
    **dict.fromkeys(("postgresql", "postgres"), ("flowrra_extras.postgres", "flowrra[postgresql]")),
}


def broker_from_url(url: str, config: Config, clock: Clock) -> Broker:
    """Return the broker for a URL. Other packages add schemes by the entry-point group `flowrra.brokers`.

    Raises:
        ConfigError: the scheme is unknown, the URL is not valid, or a driver is not installed.
    """
    if not isinstance(url, str) or not url:
        raise ConfigError(f"a broker needs a URL such as sqlite:///jobs.db, not {url!r}")
    scheme, mark, _ = url.partition("://")
    if not mark and url != "memory":
        shown = "name.db" if "@" in url else url  # never a password
        raise ConfigError(f"{shown!r} is not a URL: a file is sqlite:///{shown.removeprefix('sqlite:')}")
    return _factory_for(scheme.lower())(url, config, clock)


def _factory_for(scheme: str) -> BrokerFactory:
    if (kind := scheme.removesuffix("+sentinel")) in _EXTRAS:
        module, package = _EXTRAS[kind]
        found: BrokerFactory = import_extra(module, "broker_from_url", f"{scheme}:// needs a driver", package)
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
    raise ConfigError(f"no broker has the scheme {scheme!r}; the schemes are {known}")


class _TaskMaker(Protocol):
    """The decorator that `app.task(...)` returns."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Task[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Task[P, R]: ...


class _BatchMaker(Protocol):
    """The decorator that `app.task(batch=...)` returns: the function takes a list, each job one item of it."""

    @overload
    def __call__(self, function: Callable[[list[T]], Coroutine[Any, Any, None]], /) -> Task[[T], None]: ...
    @overload
    def __call__(
        self, function: Callable[[list[T]], Coroutine[Any, Any, Sequence[R | BaseException]]], /
    ) -> Task[[T], R]: ...
    @overload
    def __call__(self, function: Callable[[list[T]], None], /) -> Task[[T], None]: ...
    @overload
    def __call__(self, function: Callable[[list[T]], Sequence[R | BaseException]], /) -> Task[[T], R]: ...


class TaskSet(Submitter):
    """Tasks and schedules that a module declares without an app. `app.include(tasks)` registers them.

    `name` replaces the module in the names of the tasks: `send` in TaskSet("mail") is "mail.send".
    """

    def __init__(self, name: str | None = None) -> None:
        self.name = check_key("name", name)
        self.registry = Registry()
        self.limits: dict[str, Limit] = {}  # by name
        self.on_new_limit: Callable[[Limit], None] = lambda limit: None
        self.schedules: dict[str, Schedule] = {}  # those that are declared in code, by id
        self._scheduled: dict[str, Task[..., Any]] = {}  # the tasks they were declared for
        self._app: Flowrra | None = None  # that has taken them in
        self._queue: str | None = None  # as that has said, for tasks that name none

    @property
    def _home(self) -> Submitter:
        """The app that receives the jobs of its tasks."""
        return self if self._app is None else self._app

    @overload
    def task(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Task[P, R]: ...
    @overload
    def task(self, function: Callable[P, R], /) -> Task[P, R]: ...
    @overload
    def task(
        self,
        *,
        name: str | None = None,
        batch: int,
        linger: float | dt.timedelta = 0.1,
        **options: Unpack[TaskKeywords],
    ) -> _BatchMaker: ...
    @overload
    def task(
        self,
        *,
        name: str | None = None,
        cpu_bound: bool = False,
        executor: Literal["process", "interpreter"] = "process",
        soft_timeout: float | dt.timedelta | None = None,
        **options: Unpack[TaskKeywords],
    ) -> _TaskMaker: ...

    def task(self, function: Any = None, *, name: str | None = None, **options: Any) -> Any:
        """Register a function as a task, with `@app.task` or `@app.task(...)`. See `TaskOptions`.

        `async def` runs on the event loop, `def` runs in a thread. With `cpu_bound=True`, both run in a separate
        process. With `batch=100`, one call gets a list with the arguments of up to 100 jobs. It returns a list with
        their results, in the same order, or None; an exception in the list fails that job alone.

        Raises:
            ConfigError: an option is out of range, the name is taken, another process cannot import a CPU-bound
                function (a lambda, a closure), or the function of a batch does not take one list.
        """
        known = [option.name for option in dataclasses.fields(TaskOptions)]
        for wrong in options.keys() - set(known):
            raise ConfigError(f"@app.task has no option {wrong!r}{nearest(wrong, known)}")
        if "linger" in options and options.get("batch") is None:
            raise ConfigError("linger= goes with batch=: it is how long a job waits for others of its batch")
        settings = TaskOptions(**options)

        def register(function: Callable[..., Any]) -> Task[..., Any]:
            default = task_name(function)
            if self.name is not None:
                default = f"{self.name}.{function.__qualname__}"
            task: Task[..., Any] = Task(
                self._home, function, check_key("the name of a task", name) or default, settings
            )
            self.add_task(task)
            return task

        return register if function is None else register(function)

    def add_task(self, task: Task[..., Any]) -> None:
        """Register a task here and in the app that includes this set."""
        task.app, task.queue = self._home, task.settings.queue or self._queue or task.settings.effective_queue
        self.registry.add(task)
        if self._app is not None:
            self._app.registry.add(task)
        if task.settings.has_own_limit and task.limit is not None:
            own = task.settings
            limit = Limit(name=task.limit, concurrency=own.concurrency, rate=own.rate, burst=own.burst)
            self.add_limit(limit, is_new=False)  # the task may have been loaded again

    def limit(
        self, name: str, *, concurrency: int | None = None, rate: str | None = None, burst: int | None = None
    ) -> None:
        """Declare a limit of jobs, for tasks with `@app.task(limit=name)`. It holds across all workers of the store.

        If jobs have keys, the numbers hold for each key, and for all jobs without a key together. What is above the
        limit waits, without a slot, and other jobs pass it. A worker stores its limits when it starts; the latest
        start counts. See `Limit`.

        Args:
            concurrency: how many jobs run at once.
            rate: how many jobs start in a time, such as "10/s", "100/m" or "3/10s".
            burst: how many of them may start immediately after a pause; None: as many as the rate allows in 0.1 s.

        Raises:
            ConfigError: a number is wrong, or the limit is declared with other numbers.
        """
        if concurrency is None and rate is None:
            raise ConfigError(f"the limit {name!r} limits nothing: give concurrency= or rate=")
        if isinstance(name, str) and name.startswith(limit_of_queue("")):
            raise ConfigError(f"the limit {name!r} has the name of the limit of a fair queue: choose another")
        self.add_limit(Limit(name=name, concurrency=concurrency, rate=rate, burst=burst))

    def fair_queue(self, name: str, *, turn: int = 10, concurrency: int | None = None) -> None:
        """Make a queue serve the keys of its jobs in turns, so that many jobs of one key do not delay the others.

        Give jobs their keys by `@app.task(key=...)` or `options(key=...)`. Jobs of a task that has a limit get their
        turns by that limit's keys.

        Args:
            turn: how many jobs of a key are ready at once; its next jobs go behind those of all other keys.
            concurrency: how many jobs of a key run at once (None: no limit).

        Raises:
            ConfigError: a number is wrong, or the queue is declared with other numbers.
        """
        self.add_limit(Limit(name=limit_of_queue(check_queue(name)), turn=turn, concurrency=concurrency))

    def add_limit(self, limit: Limit, *, is_new: bool = True) -> None:
        """Declare a limit here and in the app that includes this set."""
        known = self.limits.get(limit.name)
        if is_new and known is not None and known != limit:
            raise ConfigError(f"the limit {limit.name!r} is declared twice, as {known} and as {limit}")
        self.limits[limit.name] = limit
        if known != limit:
            self.on_new_limit(limit)
        if self._app is not None:
            self._app.add_limit(limit, is_new=is_new)

    def cron(
        self,
        expression: str,
        *,
        tz: str | dt.tzinfo | None = None,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[ScheduleOptions],
    ) -> Callable[[TaskT], TaskT]:
        """Fire a task by a cron expression in the zone `tz` (None: UTC). Write it above `@app.task`.

        It fires while the app runs. If several processes run on one broker, each fire still makes only one job. A fire
        that is due while no process runs does not happen later; use `create_scheduler` for that.

        Raises:
            ConfigError: the expression, zone or an option is wrong, or the decorated object is not a task of this app.
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
        """Fire a task every `interval` seconds, counted from the epoch so that all processes agree. See `cron`."""
        return self._schedule("interval", interval, args=args, kwargs=kwargs, **options)

    def _schedule(self, kind: str, rule: object, **options: Any) -> Callable[[TaskT], TaskT]:
        _rule_text(kind, rule, None)  # raises an error if the rule is the task: `@app.every` without an interval

        def declare(task: TaskT) -> TaskT:
            if not isinstance(task, Task) or task.app is not self._home:
                raise ConfigError(f"{task!r} is not a task of this app: write the schedule above @app.task, not below")
            self.add_schedule(make_schedule(task, kind, rule, **options), task)
            return task

        return declare

    def join(self, app: Flowrra, queue: str | None) -> None:
        """Attach the set to `app`. Its tasks that name no queue use `queue`."""
        if self._app not in (None, app) and self._app.is_running:
            raise ConfigError("the tasks of this set run in another app: stop that first")
        self._app, self._queue = app, queue
        for limit in self.limits.values():
            app.add_limit(limit)
        for task in self.registry.values():
            self.add_task(task)
        for schedule in self.schedules.values():
            app.add_schedule(schedule, self._scheduled[schedule.id])

    def add_schedule(self, schedule: Schedule, task: Task[..., Any]) -> None:
        """Add a schedule of a task, here and in the app that includes this set."""
        # A task that was registered again, by a reload of its module, brings its schedules again.
        known = self.schedules.get(schedule.id)
        if known is not None and known is not schedule and self._scheduled[schedule.id] is task:
            same = f"task, {schedule.kind} {schedule.rule} ({schedule.tz}), arguments and queue"
            raise ConfigError(f"two schedules of {task.name} have the same {same}: they would fire as one")
        self.schedules[schedule.id], self._scheduled[schedule.id] = schedule, task
        if self._app is not None:
            self._app.add_schedule(schedule, task)


def _check_call(what: str, function: object, *given: str) -> None:
    """Refuse, as `what`, a function that cannot be called with the arguments of these names."""
    try:
        inspect.signature(cast("Any", function)).bind(*given)
    except ValueError:  # of some that are written in C
        return
    except TypeError as error:  # also of a value that is not a function
        raise ConfigError(f"{what} is a function of ({', '.join(given)}), unlike {function!r}: {error}") from None


class Declarations(TaskSet):
    """What a program declares to its app: tasks, schedules, middleware and hooks. It runs nothing."""

    def __init__(self) -> None:
        super().__init__()
        self._hooks = Hooks()
        self._middleware: list[Middleware] = []
        self._lifespan: Callable[[Any], contextlib.AbstractAsyncContextManager[Any]] | None = None
        self._submit_hooks: list[Callable[[Job], object]] = []

    def middleware(self, function: Middleware) -> Middleware:
        """Wrap each attempt of each job: `async def mw(job, call_next): return await call_next(job)`.

        The first one registered is the outermost. What it returns or raises counts as the outcome of the task.
        """
        _check_call("a middleware", function, "job", "call_next")
        self._middleware.append(function)
        return function

    def include(self, tasks: TaskSet, *, queue: str | None = None) -> None:
        """Register the tasks and schedules of a set, including those that it declares later.

        `queue` is the queue of its tasks that name none. A set belongs to one app. If another one includes it later, as
        when each test makes an app, its jobs go there; the first app still runs the tasks and schedules that it has.

        Raises:
            ConfigError: the name of a task is taken, or the tasks of the set run in another app now.
        """
        if not isinstance(tasks, TaskSet) or isinstance(tasks, Declarations):
            raise ConfigError(f"include() takes a TaskSet, not {tasks!r}")
        tasks.join(cast("Flowrra", self), None if queue is None else check_queue(queue))

    def task_named(self, name: str) -> Task[..., Any]:
        """Return the task of that name, or the only task whose name ends in a dot and that name.

        If no task here has the name, the returned task stands for a task of another program. It takes any arguments;
        the worker checks them. Its jobs go to the queue `default` or to that of `options(queue=...)`.
        """
        if len(found := names_like(self.registry, name)) == 1:
            return self.registry[found[0]]
        return Task(self, run_elsewhere, _check_text("the name of a task", name), TaskOptions())

    def on_submit(self, function: Callable[[Job], T]) -> Callable[[Job], T]:
        """Register a plain function that receives each job before it is pushed. It may set the job's `tags` and `meta`.

        It runs in the process that submits the job, also for schedules. If it raises, the submit raises the same error.
        """
        if inspect.iscoroutinefunction(function):
            raise ConfigError(f"on_submit takes a plain def, since it runs in plain code too, not {function!r}")
        _check_call("a hook of on_submit", function, "job")
        self._submit_hooks.append(function)
        return function

    def _stamp(self, jobs: Iterable[Job]) -> None:
        """Call the hooks with each job."""
        for job in jobs:
            for hook in self._submit_hooks:
                hook(job)
            job.tags, job.meta = check_tags(job.tags), check_meta(job.meta or {})

    def on(self, name: str) -> Callable[[Callable[[Event], T]], Callable[[Event], T]]:
        """Register a plain or async function to be called with each `Event` of that name.

        start, success, failure, retry, cancel, release, snooze, worker_lost, worker_start, worker_stop. Hooks run on
        the worker's loop, after the outcome is stored. If one raises an exception, it is logged.
        """

        if name not in EVENTS:  # or it is the function, if the decorator was written without a name
            raise ConfigError(f"there is no event {name!r}, only {', '.join(sorted(EVENTS))}")

        def register(hook: Callable[[Event], T]) -> Callable[[Event], T]:
            _check_call("a hook", hook, "event")
            self._hooks.setdefault(name, []).append(hook)
            return hook

        return register

    def lifespan(self, function: Callable[[Flowrra], contextlib.AbstractAsyncContextManager[T]]) -> Any:
        """Enter `function(app)` before the worker starts, and leave it after the worker has stopped.

        The value that it yields is `app.state`, and in tasks that are not CPU-bound also `current_job().state`.
        """
        kinds = (inspect.isasyncgenfunction, inspect.isgeneratorfunction, inspect.iscoroutinefunction)
        if not callable(function) or any(is_kind(function) for is_kind in kinds):
            raise ConfigError(f"a lifespan is a function with @contextlib.asynccontextmanager, not {function!r}")
        _check_call("a lifespan", function, "app")
        if self._lifespan not in (None, function) and not _is_reloaded(self._lifespan, function):
            raise ConfigError(f"the app has a lifespan, at {_place(self._lifespan)}: open both resources in one")
        self._lifespan = function
        return function


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
    """The app open on one loop: its stores and, while it is started, its lifespan, schedules and worker.

    One task, `_live`, changes its state. Callers state what they want and wait for a state, so a cancelled caller does
    not interrupt the others. No lock is held while a lifespan, a hook or a job runs.
    """

    def __init__(self, app: Flowrra) -> None:
        self.loop = asyncio.get_running_loop()
        self.thread = threading.get_ident()
        self.state = "new"
        self.is_open = False  # whether the stores can be used
        self.worker: Worker | None = None  # while it is running or draining
        self.works_off = False  # whether a stop also runs the jobs that are ready, within the drain time
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
        context.run(current_job_var.set, None)  # it is not a part of the job that may have opened it
        self._task = self.loop.create_task(self._live(), name="flowrra-session", context=context)
        # A loop may end without it, as after run_until_complete(app.submit(...)): no fault to be reported.
        self._task._log_destroy_pending = False  # type: ignore[attr-defined]

    @property
    def is_alive(self) -> bool:
        """Whether it still runs. A loop that is not running counts as ended, closed or not."""
        return self.state != "closed" and self.loop.is_running()

    # What callers want -------------------------------------------------------------------------

    async def connect(self) -> bool:
        """Wait until the stores are open; False if it closes first. If nobody waits any more, it is given up."""
        await self._reach(lambda: self.is_open)
        if not self.is_open and self._failure is not None:
            raise self._failure
        return self.is_open

    async def start(self) -> None:
        """Wait until the worker runs. If nobody waits for the start any more, it is undone."""
        if self.state != "running":
            self.refuse_own_task("start")
        self._goal, self.works_off = "running", False
        self._notify()
        await self._reach(lambda: self.state == "running" or self._goal != "running")
        if self.state != "running":
            await self._settled()
            raise self._failure or ExecutorNotRunningError("the app was stopped while it was starting")

    async def stop(self, drain: float) -> None:
        """Wait until the worker has stopped and, unless a client needs them, the stores are closed.

        Cancelling it does not interrupt the stop. A second stop with a shorter drain shortens the first.
        """
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
        """Let a stop in progress wait no longer for jobs."""
        self._drain_end = 0.0
        if self.worker is not None:
            self.worker.end_drain()

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[None]:
        """Keep the stores open in this context. The last client closes them, unless a worker needs them."""
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
        """Request that the worker stops, and the stores close unless a client needs them."""
        self._goal = "closed"
        if self.state in ("opening", "starting") and not self._is_given_up:
            self._is_given_up = self._task.cancel()
        self._notify()

    def refuse_own_task(self, call: str) -> None:
        """Raise an error if the caller is a task that the call waits for."""
        caller = asyncio.current_task()
        if caller is self._task or (self.worker is not None and caller in self.worker.owned()):
            who = "the lifespan" if caller is self._task else "a job or a hook"
            raise FlowrraError(f"{who} cannot await app.{call}(), which waits for it: use asyncio.create_task()")

    async def _reach(self, condition: Callable[[], bool]) -> None:
        """Return when `condition` is true, or the session is closed. If nobody waits any more, it is released."""
        self._callers += 1
        try:
            while self.state != "closed" and not condition():
                await self._changed.wait()
        finally:
            self._callers -= 1
            if not self._callers and not condition():
                self._release()

    async def _settled(self) -> None:
        """Return when it is closed, or as far closed as a client or a new start allows."""
        while self.state != "closed" and self._goal != "running" and not (self.state == "open" and self._clients):
            await self._changed.wait()

    def _notify(self) -> None:
        """Let all waiting callers check their conditions again."""
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
        """Take a step, which may be given up. The callers that wait get the exception that it raises.

        No `finally` in such a step awaits: a task that is collected after its loop has ended cannot await.
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
        """Keep the stores open, and run a worker whenever one is wanted, until nobody needs them."""
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
        if app.limits:
            await _declare_limits(app, list(app.limits.values()))
        worker = Worker(app)
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
        """Wait until no ready job is left here, as long as jobs may run."""
        for pause in itertools.chain((0.0, 0.001, 0.005, 0.01), itertools.repeat(0.05)):
            if self.loop.time() >= self._drain_end:
                return
            counts = await self._app.broker.counts(JobFilter(status=frozenset((PENDING, RUNNING))))
            served = worker.info.queues.keys() - await self._app.broker.paused()
            if not any(queue in served or status is RUNNING for queue, status in counts):
                return
            await asyncio.sleep(pause)


async def _declare_limits(app: Flowrra, limits: Sequence[Limit]) -> None:
    """Store limits of the app, and log which of them another app has declared with other numbers."""
    import socket

    _check_broker_of_limits(app)
    stored = await app.broker.limit_states([join_limit_key(limit.name, None) for limit in limits])
    for limit, old in zip(limits, (state.limit for state in stored), strict=True):
        if old is not None and old != limit:
            logger.warning("the limit %s was %s, as %s has declared it; from now on it is %s",
                           limit.name, old, old.by or "someone", limit)  # fmt: skip
        if old != limit:
            who = f"{socket.gethostname()}:{os.getpid()}"
            await app.broker.set_limit(dataclasses.replace(limit, by=who), now=app.now())


def _check_broker_of_limits(app: Flowrra) -> None:
    if not app.broker.has_limits:
        name = next(iter(app.limits))
        raise ConfigError(f"{type(app.broker).__name__} has no limits, so the limit {name!r} would not hold")


async def _report_left(broker: Broker) -> None:
    """Log which jobs are lost with the memory of this process, unless the app is started again."""
    counts = await broker.counts(JobFilter(status=UNFINISHED))
    left = ", ".join(f"{number} {status} in {queue!r}" for (queue, status), number in sorted(counts.items()))
    if left:
        logger.warning("jobs are left in memory, and lost when this process ends: %s", left)


def is_private(broker: Broker) -> bool:
    """Whether the jobs exist only in this process, and are lost when it ends."""
    return isinstance(broker, MemoryBroker) or (isinstance(broker, SQLiteBroker) and broker.path is None)


def _stopped() -> ExecutorNotRunningError:
    return ExecutorNotRunningError("the app has been stopped: start() it again, or use app.client()")


class _Sessions:
    """Holds the current session. After a loop has ended, after a fork and for plain code, a new one is made."""

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
        """Reset what a forked child must not share with its parent: the counter of the ids, and the open session."""
        # Ids are short, in the order of creation, and unique without coordination: 64 random bits per process.
        prefix = f"{int(self._app.clock.time()):08x}{os.urandom(8).hex()}"
        numbers = itertools.count(1_000_000)  # of one length as long as may be, so that they sort
        self._app.new_id = lambda: f"{prefix}{next(numbers)}"  # type: ignore[method-assign]
        self._inherited += (self.present, self._app.sync._loop)  # to collect these would close what the parent uses
        self.present, self.is_stopped = None, False
        self._app.sync.begin_in_process()

    def open_here(self) -> _Session | None:
        """Return the session whose stores are open on the running loop, if there is one.

        On CPython 3.11 get_running_loop() asks the system for the process id: 0.25 us, twice per job.
        """
        session = self.present
        if session is None or not session.is_open or session.thread != threading.get_ident():
            return None
        return session if session.loop.is_running() else None

    async def here(self) -> _Session | None:
        """Return the session on the running loop, if there is one that is alive."""
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
        """Return the session on the running loop with its stores open; make one if none is alive."""
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

    async def stop(self, drain: float) -> None:
        """Stop the session on the running loop, if there is one, and let no call open another."""
        session = await self.here()
        if session is not None:
            session.refuse_own_task("stop")
        self.is_stopped = True
        if session is not None:
            await session.stop(drain)

    def worker(self) -> Worker | None:
        """Return the worker that runs inside the app."""
        return self.present.worker if self.present is not None and self.present.is_alive else None

    def serve_new(self, task: Task[..., Any]) -> None:
        """Let a running worker serve a task that was registered after its start."""
        if (worker := self.worker()) is not None:
            _call_soon(worker.loop, worker.add_task, task)

    def declare_new(self, limit: Limit) -> None:
        """Let a running worker store a limit that was declared after its start."""
        if (worker := self.worker()) is not None:
            _call_soon(worker.loop, worker.keep_running, functools.partial(_declare_limits, self._app, [limit]))


def _check_child(broker: Broker) -> None:
    """In a process for CPU-bound tasks, refuse all but submits to a store that processes share."""
    # In the main thread without a task: this comes from a module that is being loaded. Other threads know neither.
    if _in_child.get() and current_job_var.get() is None:
        raise ConfigError(
            "the app is being started by a process that was made for a CPU-bound task: "
            "put the start of your program under `if __name__ == '__main__':`"
        )
    if broker.clone() is None:
        raise ConfigError(
            "a CPU-bound task cannot reach the app's jobs: it runs in a process of its own, and the store is "
            "private to another; use sqlite:///jobs.db, or result_of() for the result of another job"
        )


TaskOrName = Task[..., Any] | str


class Flowrra(Declarations):
    """An app: its tasks, and the methods to submit jobs and look at them.

    `async with app:` starts a worker in this process; at the end it drains and stops the worker. `async with
    app.client():` only submits and waits, and so does a call of `submit` without either.
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
        parts = (config, Config), (broker, Broker), (backend, Backend), (clock, Clock)
        if not all(isinstance(part, kind | None) for part, kind in parts):
            raise ConfigError("Flowrra() takes a Config, Broker and Backend; for URLs, write Flowrra.from_urls(broker)")
        self.config = config or Config()
        self.clock = clock or Clock()
        self.broker = broker or broker_from_url(self.config.broker.url, self.config, self.clock)
        if (url := self.config.backend.url) not in (None, self.config.broker.url):
            backend = backend or broker_from_url(url, self.config, self.clock)
        self.backend = backend if backend is not self.broker else None
        self.state: Any = None
        self.schedulers: list[Scheduler] = []  # made by create_scheduler()
        self.code_schedules = CodeSchedules(self)
        self.sync = SyncFace(self)
        self.sessions = _Sessions(self)
        self.registry.on_new = self.sessions.serve_new
        self.on_new_limit = self.sessions.declare_new

    @classmethod
    def from_urls(cls, broker: str | None = None, backend: str | None = None) -> Self:
        """Make an app from URLs.

        Args:
            broker: memory:// (in this process, the default), sqlite:///relative.db, sqlite:////absolute.db, sqlite://
                (private, in memory), redis:// or postgresql://. With ?synchronous=normal, a power cut can undo the last
                jobs that a SQLite broker has acknowledged.
            backend: where results are stored, if not in the broker.
        """
        url = "memory://" if broker is None else broker
        return cls(Config(broker=BrokerConfig(url=url), backend=BackendConfig(url=backend)))

    # Life --------------------------------------------------------------------------------------

    @property
    def is_running(self) -> bool:
        """Whether a worker runs inside this app."""
        return self.sessions.worker() is not None

    @property
    def worker(self) -> WorkerInfo | None:
        """The worker that runs inside this app."""
        worker = self.sessions.worker()
        return None if worker is None else worker.info

    async def start(self) -> None:
        """Open the stores and start a worker on the running loop. If it runs already, nothing changes.

        If `start` and `stop` are called at the same time, the later call wins. Cancelling `start` undoes it.

        Raises:
            ExecutorNotRunningError: the app was stopped during the start.
        """
        self.sessions.is_stopped = False
        await (await self.sessions.connect()).start()

    async def stop(self, wait: bool = True, timeout: float | None = 30.0) -> None:
        """Drain and stop the worker. Close the stores, unless a `client()` uses them.

        A second call waits for the first and may shorten its drain. Cancelling the call does not interrupt the stop.

        Args:
            wait: if False, stop immediately; running jobs are released, to run again.
            timeout: how many seconds running jobs get to finish (None: no limit).
        """
        drain = 0.0 if not wait else math.inf if timeout is None else _seconds("timeout", timeout)
        await self.sessions.stop(drain)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and is_private(self.broker) and self.sessions.present is not None:
            self.sessions.present.works_off = True  # no other process would run the jobs that are left in memory
        await self.stop(timeout=self.config.executor.drain)

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[Self]:
        """Open the stores to submit and wait, without a worker, and close them at the end.

        Inside another `client()` or a running app, it opens and closes nothing.
        """
        self.sessions.is_stopped = False
        async with (await self.sessions.connect()).client():
            yield self

    async def connect(self) -> None:
        """Open the stores on the running loop, unless they are open. Each call on the app does this first."""
        await self.sessions.connect()

    def create_scheduler(self, backend: str | ScheduleStore | None = None) -> Scheduler:
        """Return a scheduler that stores its schedules. They fire while the app runs.

        `backend` is a store or its URL: memory://, sqlite:///file.db, postgresql://, mysql://, redis://. None means the
        SQLite file .flowrra_schedule.db. Several processes can share each of these, except memory://.

        Raises:
            ConfigError: the store does not exist, or its driver is not installed.
        """
        make = import_extra("flowrra_extras.scheduler", "scheduler_for", _NOT_STORED, "flowrra[scheduler]")
        scheduler: Scheduler = make(self, backend)
        self.schedulers.append(scheduler)
        if (worker := self.sessions.worker()) is not None and self.config.executor.scheduler:
            _call_soon(worker.loop, worker.keep_running, scheduler.run)
        return scheduler

    # Submitting --------------------------------------------------------------------------------

    @overload
    async def submit(self, task: Task[P, R] | Submission[P, R], /, *args: P.args, **kwargs: P.kwargs) -> TaskId[R]: ...
    @overload
    async def submit(self, task: Task[..., R], /, *args: Any, priority: int, **kwargs: Any) -> TaskId[R]: ...
    @overload
    async def submit(self, task: str, /, *args: Any, **kwargs: Any) -> TaskId[Any]: ...

    @_never_dropped
    async def submit(self, task: Any, /, *args: Any, **kwargs: Any) -> TaskId[Any]:
        """Submit one job and return its id. On a durable broker, the job is then on disk.

        If the call is cancelled, the job may or may not have been submitted.

        Args:
            task: a task, the return value of `task.options(...)`, or a name (see `task_named`).
            *args: the arguments of the task.
            **kwargs: its keyword arguments. Options of `task.options`, such as `priority=` and `delay=`, are options
                here, too, unless the task has a parameter of the same name.

        Raises:
            TaskNotFoundError: `task` is not a task of this app.
            TypeError: the arguments do not fit the task's signature.
            SerializationError: an argument cannot be stored, or does not fit its annotation.
            QueueFullError: the queue is full, and `when_full` is "raise".
            ExecutorNotRunningError: the app has been stopped.
            BrokerError: the store failed; the job was not submitted.
        """
        if is_large(*args, *kwargs.values()):
            job = await _made_apart(self, functools.partial(_job_for, self, task), args, kwargs)
        else:
            job = _job_for(self, task, args, kwargs)
        return cast("TaskId[Any]", (await self.submit_jobs((job,)))[0])

    @_never_dropped
    async def submit_many(self, task: Task[..., R] | Submission[..., R], rows: Iterable[Any]) -> list[TaskId[R]]:
        """Submit one job per row, all or none, and return their ids in order. Cancelled or failed as `submit`.

        Args:
            task: a task, or the return value of `task.options(...)`.
            rows: a tuple of arguments or a dictionary of keyword arguments for each job.
        """
        _check_own(self, task)
        jobs = []
        for number, row in enumerate(rows):
            if number % 1000 == 999:
                await asyncio.sleep(0)  # let others have the loop
            if not isinstance(row, tuple | list | Mapping):
                raise TypeError(f"row {number} is {row!r}: a row is a tuple of arguments, such as ({row!r},)")
            try:
                jobs.append(await _made(self, task.make_job, *(((), row) if isinstance(row, Mapping) else (row, {}))))
            except Exception as error:
                error.add_note(f"Row {number} of submit_many has these arguments. No job was submitted.")
                raise
        _check_ids(jobs)
        return cast("list[TaskId[R]]", await self.submit_jobs(jobs)) if jobs else []

    @_never_dropped
    async def submit_chain(
        self, tasks: Sequence[Task[..., Any] | Submission[..., Any]], /, *args: Any, **kwargs: Any
    ) -> list[TaskId[Any]]:
        """Submit jobs, all or none, where each gets the result of the one before as its argument. Return their ids.

        Args:
            tasks: the tasks in order, at least one.
            *args: the arguments of the first job.
            **kwargs: its keyword arguments.
        """
        jobs: list[Job] = []
        for task in tasks:
            _check_own(self, task)
            one = ((ResultOf(jobs[-1].id),), {}) if jobs else (args, kwargs)
            jobs.append(await _made(self, task.make_job, *one))
        if not jobs:
            raise ConfigError("a chain has one task at least")
        _check_ids(jobs)
        return cast("list[TaskId[Any]]", await self.submit_jobs(jobs))

    @_never_dropped
    async def submit_in(
        self, connection: Any, task: Task[P, R] | Submission[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> TaskId[R]:
        """Submit one job through the caller's own connection to the broker's database.

        The job exists if the caller's transaction commits. If it rolls back, the job was never submitted. A worker
        finds the job within a second of the commit.

        Args:
            connection: the caller's connection, inside a transaction.
            task: a task, or the return value of `task.options(...)`.
            *args: the arguments of the task.
            **kwargs: its keyword arguments.

        Raises:
            ConfigError: the broker has no SQL database, or the connection belongs to another database.
        """
        job = await _made(self, functools.partial(_job_for, self, task), args, kwargs)
        self._stamp([job])
        await self.connect()
        pushed = self.broker.push_in(connection, [job], now=self.now())
        (task_id,) = await pushed if inspect.isawaitable(pushed) else pushed
        return cast("TaskId[R]", task_id)

    def submit_jobs(self, jobs: Sequence[Job]) -> Coroutine[Any, Any, list[str]]:
        """Push jobs that a task has made. While a job waits for room in a queue, other jobs may use its slot."""
        if self.sessions.open_here() is None:
            return _connect_and_submit(self, jobs)
        if self._submit_hooks:
            self._stamp(jobs)
        if self.limits:
            _check_broker_of_limits(self)
        now = self.clock.time()
        for job in jobs:
            job.submitted = now
        push = self.broker.push(jobs, now=now)
        return push if self.config.broker.max_queue_size is None or not is_private(self.broker) else _freeing_slot(push)

    def now(self) -> float:
        """Return the wall clock, in seconds since the epoch."""
        return self.clock.time()

    # Results and jobs --------------------------------------------------------------------------

    @overload
    async def wait_for_result(self, task_id: TaskId[R], timeout: float | None = ...) -> TaskResult[R]: ...
    @overload
    async def wait_for_result(self, task_id: str, timeout: float | None = ...) -> TaskResult[Any]: ...

    async def wait_for_result(self, task_id: str, timeout: float | None = None) -> TaskResult[Any]:
        """Wait until a job has finished, and return its result.

        Inside a job, other jobs may use its slot during the wait. Cancelling the call does not affect the job.

        Args:
            task_id: the id of the job.
            timeout: how many seconds to wait at most (None: no limit).

        Raises:
            TaskNotFoundError: no such job.
            TaskTimeoutError: the job has not finished within `timeout` seconds.
        """
        left = timeout = None if timeout is None else _seconds("timeout", timeout)
        began = 0.0 if timeout is None else time.monotonic()
        if self.sessions.open_here() is None:
            async with result_limit(task_id, timeout):
                await self.connect()
            left = None if timeout is None else round(max(0.0, began + timeout - time.monotonic()), 3)
        waited = self.broker.wait_for(check_id(task_id), left)
        if self.backend is not None:
            waited = _wait_for(self.backend, waited, task_id, timeout, began)
        result = await _freeing_slot(waited)
        converters = self.registry.converters_of(result.task)
        return result if converters is None else await _as_annotated(converters, result)

    @overload
    async def get_result(self, task_id: TaskId[R]) -> TaskResult[R] | None: ...
    @overload
    async def get_result(self, task_id: str) -> TaskResult[Any] | None: ...

    async def get_result(self, task_id: str) -> TaskResult[Any] | None:
        """Return the current result of a job, finished or not; None for an unknown id."""
        await self.connect()
        (result,) = await self.broker.get([check_id(task_id)])
        if self.backend is not None:
            result = await _kept_by(self.backend, task_id, result)
        return result and await _as_annotated(self.registry.converters_of(result.task), result)

    @_never_dropped
    async def cancel(self, task_id: str, *, by: str | None = None) -> bool:
        """Cancel a job: immediately if it waits, through its worker if it runs. False: it has finished, or is unknown.

        Args:
            task_id: the id of the job.
            by: who cancels it. A note of it is stored with the attempts of the job.
        """
        await self.connect()
        return await self.broker.cancel(check_id(task_id), now=self.now(), by=by)

    async def requeue(self, task_id: str, *, by: str | None = None) -> bool:
        """Run a failed or cancelled job again, and reset its failures. Return False if it has another state.

        Args:
            task_id: the id of the job.
            by: who requeues it.
        """
        await self.connect()
        return (await self.broker.requeue([check_id(task_id)], now=self.now(), by=by))[0]

    async def cancel_all(
        self, *, task: TaskOrName | None = None, queue: str | None = None, tag: str | None = None, by: str | None = None
    ) -> int:
        """Cancel all unfinished jobs that match all arguments, and return their number.

        It cancels the jobs that exist now, in steps. Cancelling the call leaves the rest unchanged.

        Args:
            task, queue, tag: a task or its name (see `task_named`), the name of a queue, a tag.
            by: who cancels them.
        """
        return await _change_all(self, "cancel", _filter_of(self, UNFINISHED, task, queue, tag), by)

    async def requeue_all(
        self, *, task: TaskOrName | None = None, queue: str | None = None, tag: str | None = None, by: str | None = None
    ) -> int:
        """Run all failed and cancelled jobs that match all arguments again, and return their number.

        Args:
            task, queue, tag, by: see `cancel_all`.
        """
        return await _change_all(self, "requeue", _filter_of(self, REQUEUABLE, task, queue, tag), by)

    @_never_dropped
    async def emit(self, event: str, payload: Any = None) -> bool:
        """Emit an event: jobs that wait for it by `current_job().wait_event(event)` get the payload, now or later.

        Return False if it was emitted before. If the call is cancelled, it may or may not have been emitted.

        Args:
            event: the name of the event.
            payload: what `wait_event` returns. The payload of the first emit counts, and is kept for 30 days.

        Raises:
            SerializationError: the payload cannot be stored.
        """
        task_id = event_id(_check_text("the name of an event", event, 200))
        text = await apart(encode_returned, payload, f"the event {event!r}")
        await self.connect()
        return (await self.broker.change([task_id], "emit", now=self.now(), by=text))[0]

    async def delete(self, task_id: str) -> bool:
        """Delete a finished job before its retention ends. False: it has not finished, or is unknown."""
        await self.connect()
        (deleted,) = await self.broker.delete([check_id(task_id)])
        if deleted and isinstance(self.backend, Broker):
            await self.backend.delete([task_id])
        return deleted

    async def jobs(
        self,
        *,
        status: str | Iterable[str] | None = None,
        task: TaskOrName | None = None,
        queue: str | None = None,
        tag: str | None = None,
        limit: int = 100,
        after: int | None = None,
    ) -> list[Job]:
        """Return the jobs that match all arguments, the latest submitted first.

        Args:
            status: a state, or several.
            task, queue, tag: see `cancel_all`.
            limit: the maximum number of jobs.
            after: the `seq` of the last job of the previous page.
        """
        await self.connect()
        states = None if status is None else frozenset(map(_status, [status] if isinstance(status, str) else status))
        which = _filter_of(self, states, task, queue, tag)
        after = None if after is None else _whole("after", after)
        return _with_arguments(await self.broker.find(which, limit=_whole("limit", limit, least=1), after=after))

    async def get_job(self, task_id: str) -> Job:
        """Return a job with its attempts; TaskNotFoundError for an unknown id."""
        await self.connect()
        found = _with_arguments(await self.broker.find(JobFilter(ids=[check_id(task_id)]), limit=1))
        if not found:
            raise unknown_job(task_id)
        return found[0]

    async def explain(self, task_id: str) -> str:
        """Return one sentence: the state of a job and, if it does not run, the reason."""
        return await _explain(self.broker, await self.get_job(task_id), self.now())


async def _connect_and_submit(app: Flowrra, jobs: Sequence[Job]) -> list[str]:
    await app.connect()
    return await app.submit_jobs(jobs)


def _job_for(
    app: Flowrra, call: Task[..., Any] | Submission[..., Any] | str, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Job:
    """Make a job from a call of `app.submit`, where keywords may be options."""
    if type(call) is not Task or call.app is not app:
        call = app.task_named(call) if isinstance(call, str) else call
        _check_own(app, call)
    if not kwargs or isinstance(call, Submission) or call.submit_options.isdisjoint(kwargs):
        return call.make_job(args, kwargs)
    options = {name: value for name, value in kwargs.items() if name in call.submit_options}
    own = {name: value for name, value in kwargs.items() if name not in options}
    return call.options(**options).make_job(args, own)


def _with_arguments(jobs: list[Job]) -> list[Job]:
    """Give jobs their arguments as values, unless their text is large or cannot be read."""
    for job in jobs:
        if job.payload is not None and len(job.payload) < _LARGE:
            with contextlib.suppress(SerializationError):
                args, job.kwargs = decode_arguments(job)
                job.args = tuple(args)
    return jobs


def _check_ids(jobs: Sequence[Job]) -> None:
    """Refuse several jobs with one id, of which only the first would be submitted."""
    for task_id, number in collections.Counter(job.id for job in jobs).items():
        if number > 1:
            raise ConfigError(f"task_id={task_id!r} is the id of one job, and here of {number}")


async def _made(app: Flowrra, make: Callable[[Any, Any], Job], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Job:
    """Return the job that `make` makes of arguments, which may be large."""
    if is_large(*args, *kwargs.values()):
        return await _made_apart(app, make, args, kwargs)
    return make(args, kwargs)


async def _made_apart(app: Flowrra, make: Callable[[Any, Any], Job], args: Any, kwargs: Any) -> Job:
    """Return the job that `make` makes of large arguments, with their text. It is made in a thread."""

    def make_text() -> Job:
        job = make(args, kwargs)
        job.payload = encode_arguments(job)
        most = app.config.broker.max_value_size
        check_size(job.payload, most, SerializationError, "the text of the arguments of", job.task)
        return job

    return await asyncio.to_thread(make_text)


_CHANGED_AT_ONCE = 500  # jobs that are cancelled or requeued in one step


def _filter_of(
    app: Flowrra, status: frozenset[TaskStatus] | None, task: TaskOrName | None, queue: str | None, tag: str | None
) -> JobFilter:
    if task is not None:
        task = task.name if isinstance(task, Task) else app.task_named(task).name
    return JobFilter(status=status, task=task, queue=queue, tag=tag)


async def _change_all(app: Flowrra, action: Action, which: JobFilter, by: str | None) -> int:
    """Cancel or requeue all matching jobs that exist now. Return how many changed."""
    if (which.task, which.queue, which.tag) == (None, None, None):
        raise ConfigError(f"say which jobs to {action}: task=, queue= or tag=")
    await app.connect()
    newest = await app.broker.find(which, limit=1)
    changed, after = 0, None
    while newest and (after is None or after < newest[0].seq):
        jobs = await app.broker.find(which, limit=_CHANGED_AT_ONCE, after=after, oldest_first=True)
        ids = [job.id for job in jobs if job.seq <= newest[0].seq]
        changed += sum(await app.broker.change(ids, action, now=app.now(), by=by))
        if len(jobs) < _CHANGED_AT_ONCE:
            break
        after = jobs[-1].seq
    return changed


def _check_own(app: Flowrra, call: object) -> None:
    task = call.task if isinstance(call, Submission) else call
    if not isinstance(task, Task):
        trouble = "decorate the function with @app.task and submit that, or the name of a task"
        raise TaskNotFoundError(f"{task!r} is not a task: {trouble}")
    if task.app is not app:
        elsewhere = f"the task {task.name!r} belongs to another app: submit it there"
        raise TaskNotFoundError(elsewhere if isinstance(task.app, Flowrra) else _NO_APP)


def _freeing_slot(call: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
    """If the caller is a job, let other jobs use its slot during the call, in which it waits for others."""
    context = current_job_var.get()
    return call if context is None else _in_free_slot(context, call)


async def _in_free_slot(context: JobContext, call: Coroutine[Any, Any, T]) -> T:
    with context.waiting():
        return await call


async def _as_annotated(converters: Converters | None, result: TaskResult[Any]) -> TaskResult[Any]:
    """Return a stored result as the type that the task returned."""
    if converters is None or not result.is_success:
        return result
    load = functools.partial(converters.result, loading=True)
    return dataclasses.replace(result, result=await apart(load, result.result))


async def _wait_for(
    backend: Backend, waited: Awaitable[TaskResult[Any]], task_id: str, timeout: float | None, began: float
) -> TaskResult[Any]:
    """Return what the wait for a job in the broker comes to, as the separate backend has it."""
    result: TaskResult[Any] | None = None
    with contextlib.suppress(TaskNotFoundError):
        result = await waited
    async with result_limit(task_id, timeout, began):
        result = await _kept_by(backend, task_id, result)
    if result is None:
        raise unknown_job(task_id)
    return result


async def _kept_by(backend: Backend, task_id: str, result: TaskResult[Any] | None) -> TaskResult[Any] | None:
    """Return the result from the separate backend; from the broker if the backend does not have it (yet)."""
    (kept,) = await backend.get([task_id])
    is_same = result is None or (kept and (kept.attempts, kept.status)) == (result.attempts, result.status)
    return kept if is_same else result


def _status(name: str) -> TaskStatus:
    try:
        return TaskStatus(name)
    except ValueError:
        raise ConfigError(f"{name!r} is not a state of a job: {', '.join(TaskStatus)}") from None


async def _explain(broker: Broker, job: Job, now: float) -> str:
    due, ago = (job.due or now) - now, duration(now - (job.finished or now))
    error = (job.error or "").partition("\n")[0]
    match job.status:
        case TaskStatus.PENDING:
            return f"It is ready, {await _why_waiting(broker, job)}."
        case TaskStatus.BLOCKED if job.worker is not None:
            return f"It is held by {job.worker}: if that was interrupted, start it again."
        case TaskStatus.BLOCKED if awaits_limit(job):
            return await _why_limited(broker, job, now)
        case TaskStatus.BLOCKED:
            parents = [one for one in await broker.get(job.parents) if one is not None and not one.is_finished]
            named = " and ".join(f"its parent {one.task_id} ({one.task}), which is {one.status}" for one in parents)
            return f"It is blocked by {named or 'parents that have just ended'}."
        case TaskStatus.SCHEDULED | TaskStatus.RETRYING if due <= 0:
            return f"It has been due for {duration(-due)}, {await _why_waiting(broker, job)}."
        case TaskStatus.SCHEDULED if job.task == EVENT:
            return f"It is an event that has not been emitted; {len(job.steps)} job(s) have begun to wait for it."
        case TaskStatus.SCHEDULED if (event := awaited_event(job)) is not None:
            end = "" if due > 1e10 else f", for at most {duration(due)} more"  # 300 years: it has no timeout
            return f"It waits for the event {event!r}{end}; `flowrra emit` or app.emit() emits it."
        case TaskStatus.SCHEDULED:
            return f"It is due in {duration(due)}{f': {error}' if error else ''}."
        case TaskStatus.RETRYING:
            return f"It failed {job.failures} time(s) and is due again in {duration(due)}: {error}."
        case TaskStatus.RUNNING if job.worker not in {worker.id for worker in await broker.workers()}:
            return f"It was running on {job.worker}, whose lease has ended: it runs again when another worker runs."
        case TaskStatus.RUNNING:
            ending = ", and has been asked to end" if job.cancel_requested else ""
            return f"It has been running on {job.worker} for {duration(now - (job.started or now))}{ending}."
        case TaskStatus.SUCCESS:
            return f"It succeeded {ago} ago."
        case _:
            return f"It ended as {job.status} {ago} ago: {error}."


async def _why_limited(broker: Broker, job: Job, now: float) -> str:
    """Return the sentence about a job that waits for its limit."""
    (state,) = await broker.limit_states([limit_key(job)])
    limit, of_key = state.limit, f" of key {job.key}" if job.key is not None else ""
    if limit is None:
        return (
            f"It waits, as the limit {job.limit} is not declared in this store: start a worker whose app declares it."
        )
    if state.paused:
        return f"It waits, as the key {job.key or ''} of the limit {job.limit} is paused."
    counts = await broker.counts(JobFilter(ahead_of=job))
    ahead = sum(counts.values())
    places = "" if limit.concurrency is None else f" ({limit.concurrency} at a time)"
    text = f"It is behind {ahead} job(s){of_key} of the limit {job.limit}{places}"
    if state.due is not None and limit.rate is not None:
        text = f"It waits for the limit {job.limit} ({limit.rate}), which allows the next{of_key} in "
        text += duration(max(0.0, state.due - now)) + (f"; {ahead} job(s) are ahead of it" if ahead else "")
    if limit.turn is not None:
        text = f"It waits for a turn in its fair queue, behind {ahead} job(s){of_key}"
    if not state.running and state.pending:
        which = JobFilter(ahead_of=job, status=frozenset((PENDING,)))
        (first, *_) = await broker.find(which, limit=1, oldest_first=True) or [job]
        text += f", of which none runs: explain {first.id}"
    return f"{text}."


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
        last = ", and has just started or run for a while" if job.crashes == LAST_CHANCE else ""
        return f"but it was running in {job.crashes} crash(es), so it waits for a worker that runs nothing else{last}"
    ahead = sum((await broker.counts(JobFilter(ahead_of=job))).values())
    return f"but {ahead} job(s) are ahead of it in the queue {job.queue}" if ahead else f"the next in {job.queue}"


def _blocking(call: Callable[Concatenate[Flowrra, P], Coroutine[Any, Any, T]]) -> Callable[Concatenate[SyncFace, P], T]:
    """Make a blocking method of `SyncFace` from a method of the app."""

    @functools.wraps(call)
    def blocking(self: SyncFace, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.run(call(self._app, *args, **kwargs))

    return blocking


_LOOP_LATE = 1.0  # seconds after which a call checks whether its loop still runs, or is blocked


class SyncFace:
    """The app for code without async: the same methods, blocking. For web views and scripts without an event loop.

    The calls run on the loop on which the app is open; otherwise on one in a separate thread, until `close`.
    """

    def __init__(self, app: Flowrra) -> None:
        self._app = app
        self.begin_in_process()

    def begin_in_process(self) -> None:
        """Reset what a fork has copied: a thread that does not run here, and a lock that nobody will release."""
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.thread: threading.Thread | None = None  # of these calls' own, if they have one

    @overload
    def submit(self, task: Task[P, R] | Submission[P, R], /, *args: P.args, **kwargs: P.kwargs) -> TaskId[R]: ...
    @overload
    def submit(self, task: Task[..., R], /, *args: Any, priority: int, **kwargs: Any) -> TaskId[R]: ...
    @overload
    def submit(self, task: str, /, *args: Any, **kwargs: Any) -> TaskId[Any]: ...

    def submit(self, task: Any, /, *args: Any, **kwargs: Any) -> TaskId[Any]:
        """See `Flowrra.submit`; also for a task with options: `submit(task.options(delay=60), ...)`."""
        return self.run(self._app.submit(task, *args, **kwargs))

    @overload
    def wait_for_result(self, task_id: TaskId[R], timeout: float | None = ...) -> TaskResult[R]: ...
    @overload
    def wait_for_result(self, task_id: str, timeout: float | None = ...) -> TaskResult[Any]: ...

    def wait_for_result(self, task_id: str, timeout: float | None = None) -> TaskResult[Any]:
        """See `Flowrra.wait_for_result`."""
        seconds = None if timeout is None else _seconds("timeout", timeout)
        return self.run(self._app.wait_for_result(task_id, seconds), seconds)

    @overload
    def get_result(self, task_id: TaskId[R]) -> TaskResult[R] | None: ...
    @overload
    def get_result(self, task_id: str) -> TaskResult[Any] | None: ...

    def get_result(self, task_id: str) -> TaskResult[Any] | None:
        """See `Flowrra.get_result`."""
        return self.run(self._app.get_result(task_id))

    def submit_in(
        self, connection: Any, task: Task[P, R] | Submission[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> TaskId[R]:
        """See `Flowrra.submit_in`. The connection is used in this thread, because some drivers require that."""
        job = self.run(_made(self._app, functools.partial(_job_for, self._app, task), args, kwargs))
        self._app._stamp([job])
        self.run(self._app.connect())
        pushed = self._app.broker.push_in(connection, [job], now=self._app.now())
        (task_id,) = self.run(pushed) if inspect.iscoroutine(pushed) else cast("list[str]", pushed)
        return cast("TaskId[R]", task_id)

    submit_many = _blocking(Flowrra.submit_many)
    submit_chain = _blocking(Flowrra.submit_chain)
    cancel = _blocking(Flowrra.cancel)
    requeue = _blocking(Flowrra.requeue)
    cancel_all = _blocking(Flowrra.cancel_all)
    requeue_all = _blocking(Flowrra.requeue_all)
    emit = _blocking(Flowrra.emit)
    delete = _blocking(Flowrra.delete)
    jobs = _blocking(Flowrra.jobs)
    get_job = _blocking(Flowrra.get_job)
    explain = _blocking(Flowrra.explain)

    def run(self, call: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run a coroutine that uses the app, on the same loop as the other calls, and return its result.

        `timeout` is the time-out that the call has itself; it is also enforced if something else blocks the loop.
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
        """Return the loop for the calls: the app's, or a new one in a thread that is started now."""
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
        """Close the stores and end the thread, if these calls opened and started them."""
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
    # The runner ends the loop and its tasks in a thread, which CPython before 3.12.3 does not start at its end.
    with contextlib.suppress(RuntimeError), runner:
        while True:
            with contextlib.suppress(SystemExit):  # from a call; its caller gets it
                return runner.get_loop().run_forever()


# ---------------------------------------------------------------------------
# 16. Command line
#
# `python -m flowrra ...`: runs workers, shows jobs. Everything here goes
# through the app; exit status 0 is success, 1 a failure that the output
# names, 2 a wrong call.
# ---------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        if argv[:1] and argv[0] in OPERATOR_COMMANDS:
            command = import_extra("flowrra_extras.commands", "main", f"the command {argv[0]!r} cannot be run here")
            status: int = command(argv) or 0
        else:
            arguments = parsed(_parser(), argv)
            arguments.argv = argv
            status = arguments.command(arguments) or 0
        print(end="", flush=True)  # a closed pipe must raise here, not when Python ends
        return status
    except FlowrraError as error:
        print(f"flowrra: {str(error) or describe(error)}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        return 130
    except OSError as error:  # the reader of our output has closed the pipe, or its disk is full
        if error.errno not in (errno.EPIPE, errno.ENOSPC):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno == errno.ENOSPC:
            print(f"flowrra: the output cannot be written: {error}", file=sys.stderr)
        return int(error.errno == errno.ENOSPC)


def parsed(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments, including `show ID --json module:app`, which argparse before CPython 3.12.7 cannot."""
    options = collections.Counter(word.partition("=")[0] for word in argv if word[:2] == "--")
    if twice := [name for name, number in options.items() if number > 1 and name not in ("--arg", "--import")]:
        parser.error(f"{twice[0]} is given twice")
    arguments, left = parser.parse_known_args(argv)
    if len(left) == 1 and left[0][:1] != "-" and getattr(arguments, "where", "") is None:
        arguments.where = left.pop()
    if left:
        parser.error(f"unrecognized arguments: {' '.join(left)}; see {parser.prog} {argv[0]} --help")
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
    worker.add_argument("--import", action="append", default=[], dest="modules", metavar="MODULE",
                        help="also import this module, which declares tasks (may be repeated)")  # fmt: skip
    worker.add_argument("--concurrency", type=int, metavar="N", help="capacity of each queue except cpu (10)")
    worker.add_argument("--queues", metavar="default:50,cpu:2", help="the queues to serve, each with its capacity")
    worker.add_argument("--processes", type=int, default=1, metavar="N", help="number of worker processes (1)")
    worker.add_argument("--drain", type=float, metavar="S", help="how many seconds a stop waits for running jobs (30)")
    worker.add_argument("--reload", action="store_true", help="restart when a source file changes")
    worker.add_argument("--supervised", type=int, default=0, help=argparse.SUPPRESS)  # its number
    worker.add_argument("--recycle-jobs", type=int, metavar="N", help="stop after N attempts, to be restarted")
    worker.add_argument("--recycle-memory", metavar="512M", help="stop above this memory use, to be restarted")
    worker.add_argument("--health", metavar="[HOST:]PORT", help="answer probes on this port: /live, /ready, /metrics")
    worker.add_argument("--loop", default="asyncio", choices=["asyncio", "uvloop"], help="the event loop (asyncio)")
    worker.add_argument("--no-scheduler", action="store_true", help="do not fire schedules in this worker")
    levels = ["debug", "info", "warning", "error"]
    text = f"log messages of this level and above: {', '.join(levels)} (info)"
    worker.add_argument("--log-level", default="info", choices=levels, metavar="LEVEL", help=text)
    worker.add_argument("--log-format", default="text", choices=["text", "json"], help="text, or a JSON object a line")
    enqueue = add("enqueue", _enqueue_command, "submit one job")
    enqueue.add_argument("app", help="module:app")
    enqueue.add_argument("task", help="name of the task; its last part is enough if it is unique")
    enqueue.add_argument("--arg", action="append", default=[], metavar="JSON", help="an argument, or NAME=JSON")
    enqueue.add_argument("--wait", action="store_true", help="wait for the result and print it")
    status = add("status", _status_command, "show queues and workers")
    show = add("show", _show_command, "show one job with its attempts and traceback")
    text = "explain in one sentence why a job is not running"
    explain = add("explain", lambda given: print(ask(given, lambda app: app.explain(given.id))), text)
    for sub in (show, explain):
        sub.add_argument("id", help="the id of the job")
    for sub in (status, show):
        sub.add_argument("--json", action="store_true", help="print JSON")
    for sub in (status, show, explain):
        add_store(sub)
    demo = add("demo", _demo_command, "run 321 jobs, kill their worker, and start another one")
    demo.add_argument("--keep", metavar="FILE", help="keep the jobs in this new SQLite file")
    for name, text in OPERATOR_COMMANDS.items():
        commands.add_parser(name, help=text)  # main() passes these on before it parses
    return parser


def add_store(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name the store for a command; see `ask`."""
    parser.add_argument("where", nargs="?", metavar="module:app", help="the app whose broker is read (or FLOWRRA_APP)")
    parser.add_argument("--broker", metavar="URL", help="the broker to read (or FLOWRRA_BROKER)")


_EPILOG = """\
examples:
  flowrra demo                                    see a retry, a killed worker and a rescue
  flowrra worker shop.jobs:app                    run the jobs of `app` in shop/jobs.py
  flowrra status --broker sqlite:///jobs.db       show queues and workers of a store
  flowrra explain ID shop.jobs:app                explain why a job is not running
If module:app and --broker are left out, FLOWRRA_APP and FLOWRRA_BROKER are used."""


# What flowrra_extras.commands carries out, with a line of help each.
OPERATOR_COMMANDS: Mapping[str, str] = {
    "jobs": "list jobs, newest first",
    "cancel": "cancel waiting or running jobs",
    "requeue": "run failed or cancelled jobs again",
    "purge": "delete finished jobs whose retention is over",
    "pause": "pause a queue or a key: its jobs wait",
    "resume": "resume a paused queue or key",
    "limit": "show and change limits",
    "emit": "emit an event that jobs wait for",
    "cron": "show when a cron expression fires",
    "schedules": "list and change schedules",
    "dashboard": "serve the dashboard",
    "migrate": "move jobs from one broker to another",
}


# Finding the app -------------------------------------------------------------------------------


def load_app(target: str) -> Flowrra:
    """Return the app that `module:app` names; ConfigError if there is none. Errors of the module are not changed."""
    module_name, _, attribute = target.partition(":")
    if attribute.startswith("//"):  # never shown whole: it may hold a password
        raise ConfigError(
            f"{module_name}://... is a URL, and not module:app: if the command takes one, it has --broker"
        )
    if not all(map(str.isidentifier, module_name.split("."))) or module_name.endswith(".py") or not attribute:
        raise ConfigError(f"an app has the form module:app, such as shop.jobs:app, not {target!r}")
    module = _import(module_name)
    found = functools.reduce(lambda found, name: getattr(found, name, None), attribute.split("."), module)
    if isinstance(found, Flowrra):
        return found
    kind = "" if found is None else f" but of type {kind_name(type(found)).removeprefix('builtins.')}"
    if inspect.isroutine(found):
        kind = f" but a function: write app = {attribute}() there and name {module_name}:app"
    apps = ", ".join(name for name, value in vars(module).items() if isinstance(value, Flowrra))
    raise ConfigError(f"{attribute!r} is not an app in the module {module_name}{kind}; it has {apps or 'none'}")


def _import(module_name: str) -> Any:
    """Import the module. ConfigError if it does not exist or ends the program; its other exceptions are not changed."""
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(module_name)
    except SystemExit as stop:
        at = tracebacks.extract_tb(stop.__traceback__)[-1]
        where = f"sys.exit({stop.code!r}) ({at.filename}, line {at.lineno})"
        put = "put that under `if __name__ == '__main__':`"
        raise ConfigError(f"importing {module_name} ended the program: {where}; {put}") from None
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ConfigError(f"there is no module {error.name!r} in {os.getcwd()} or on the search path") from None


def check_shared(app: Flowrra) -> None:
    """Refuse a store that no other process can open: jobs that are submitted there would be lost silently."""
    if is_private(app.broker):
        raise ConfigError(f"{app.config.broker.url} is private to one process: use a file, as in sqlite:///jobs.db")


def _app_for(arguments: argparse.Namespace) -> Flowrra:
    """Return the app for a command, or one without tasks on the broker."""
    target = arguments.where or os.environ.get("FLOWRRA_APP")
    url = arguments.broker or (None if target else os.environ.get("FLOWRRA_BROKER"))
    if url:
        return Flowrra.from_urls(url)
    if target:
        return load_app(target)
    given = f"only {arguments.id!r}" if getattr(arguments, "id", None) else "no store"
    raise ConfigError(f"{given} is given: pass module:app or --broker URL, or set FLOWRRA_APP or FLOWRRA_BROKER")


def ask(arguments: argparse.Namespace, question: Callable[[Flowrra], Awaitable[T]]) -> T:
    """Open the store, ask, and close it. A file that does not exist is not created."""
    app = _app_for(arguments)
    check_shared(app)
    if isinstance(app.broker, SQLiteBroker) and not os.path.exists(app.broker.path or ""):
        raise ConfigError(f"there is no {app.broker.path} yet: the first worker or submit creates it")
    return asyncio.run(_answer(app, question))


async def _answer(app: Flowrra, question: Callable[[Flowrra], Awaitable[T]]) -> T:
    """Return the answer while the app's stores are open. If the store does not answer, wait and say so."""
    text = "flowrra: the store does not answer; waiting for it"
    notice = asyncio.get_running_loop().call_later(2.0, lambda: print(text, file=sys.stderr, flush=True))
    async with app.client():
        notice.cancel()
        return await question(app)


# Workers ---------------------------------------------------------------------------------------


def _worker_command(arguments: argparse.Namespace) -> int:
    target = arguments.app or os.environ.get("FLOWRRA_APP")
    if not target:
        raise ConfigError("no app is given: pass module:app, or set FLOWRRA_APP")
    _whole("--processes", arguments.processes, least=1)
    formatter: logging.Formatter = LogFormatter()
    if arguments.log_format == "json":
        formatter = import_extra("flowrra_extras.commands.supervisor", "JsonLines", "JSON cannot be logged here")()
    (handler := LogHandler()).setFormatter(formatter)
    logging.basicConfig(level=arguments.log_level.upper(), handlers=[handler])
    if not arguments.supervised:
        warn_of_unknown_settings("FLOWRRA_", os.environ)
        if arguments.processes > 1 or arguments.reload:
            trouble = "--processes and --reload are not available here; you can start several workers instead"
            return cast("int", import_extra("flowrra_extras.commands.supervisor", "run", trouble)(arguments))
    try:
        app = load_app(target)
        for name in arguments.modules:
            _import(name)
    except FlowrraError:
        raise
    except Exception:
        logger.exception("loading %s failed", target)
        return 1
    check_shared(app)
    if not app.registry:
        logger.warning("%s has no tasks: import the modules that declare them there, or name them by --import", target)
    _warn_of_unused_settings(app)
    _configure(app, arguments)
    loop_factory = _loop_factory(arguments.loop)
    if arguments.health is not None:
        trouble = "--health cannot be served here"
        import_extra("flowrra_extras.commands.health", "serve", trouble)(app, arguments.health, arguments.supervised)
    status = _run_worker(app, loop_factory)
    return 0 if status == RECYCLED and not arguments.supervised else status


def _loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    if name == "asyncio":
        return None
    try:
        return cast("Callable[[], asyncio.AbstractEventLoop]", importlib.import_module(name).new_event_loop)
    except ImportError as error:
        raise ConfigError(
            f"--loop {name} is not available here ({error}): pip install 'flowrra[{name}]' or {name}"
        ) from None


def _size(name: str, text: str) -> int:
    """Return a number of bytes from text such as 512M. K, M and G are powers of 1024."""
    found = re.fullmatch(r"([1-9][0-9]*)([KMG]?)", text.upper(), re.ASCII)
    if found is None:
        raise ConfigError(f"{name} must be a number of bytes such as 512M, not {text!r}")
    return cast("int", int(found[1]) * 1024 ** " KMG".index(found[2] or " "))


def _warn_of_unused_settings(app: Flowrra) -> None:
    """Log the settings in the environment that have no effect because the app does not use Config.from_env()."""
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
    if arguments.recycle_jobs is not None:
        changes["recycle_jobs"] = _whole("--recycle-jobs", arguments.recycle_jobs, least=1)
    if arguments.recycle_memory is not None:
        changes["recycle_memory"] = _size("--recycle-memory", arguments.recycle_memory)
        if resident_memory() is None:
            raise ConfigError("--recycle-memory has no effect: this system does not report the memory of a process")
    for name in ("recycle_jobs", "recycle_memory"):  # processes that start together must not end together
        limit = changes.get(name, getattr(app.config.executor, name))
        if limit is not None and arguments.supervised > 1:
            changes[name] = max(1, limit - limit * (arguments.supervised - 1) // (4 * arguments.processes))
    app.config.executor = dataclasses.replace(app.config.executor, **changes)
    if arguments.concurrency is not None and app.config.executor.queues is not None:
        raise ConfigError("--concurrency has no effect if the queues have capacities: use --queues alone")


def _run_worker(app: Flowrra, loop_factory: Callable[[], asyncio.AbstractEventLoop] | None) -> int:
    """Run the app's worker until it is stopped, then end the threads that keep the process. Return the exit status."""
    import gc
    import socket

    gc.freeze()  # a full collection need not look at what is loaded by now: 0.92 of the time of a job on SQLite
    earlier = threading.enumerate()
    signals, wakeup = socket.socketpair()
    wakeup.setblocking(False)
    with signals, wakeup:
        before = signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
        try:
            with asyncio.Runner(loop_factory=loop_factory) as runner:
                return runner.run(_work(app, signals, wakeup))
        finally:
            signal.set_wakeup_fd(before)
            for thread in threading.enumerate():  # the end of the process waits for them
                if thread not in earlier and not thread.daemon:
                    thread.join()
            wakeup.shutdown(socket.SHUT_WR)


async def _work(app: Flowrra, signals: socket.socket, wakeup: socket.socket) -> int:
    """Run a worker until a signal stops it. After a second signal, or without its store, it does not wait for jobs."""
    loop, drain = asyncio.get_running_loop(), app.config.executor.drain
    signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)  # again: uvloop has replaced it
    stopping: asyncio.Future[str] = loop.create_future()
    starting = loop.create_task(app.start())

    def stop(why: str) -> None:
        if why == "spent" and stopping.done():
            return  # the worker repeats it until it has stopped claiming
        if not stopping.done():
            stopping.set_result(why)
            starting.cancel()
        elif app.sessions.present is not None:
            app.sessions.present.end_drain()

    undo = handle_signals(lambda *_: _call_soon(loop, stop, "signal"))
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
            worker.on_spent = functools.partial(stop, "spent")
            queues = ", ".join(f"{name}:{capacity}" for name, capacity in worker.info.queues.items())
            logger.info("worker ready: pid %d, %d task(s), queues %s", os.getpid(), len(app.registry), queues)
        if (why := await stopping) == "store":
            logger.critical("the store is lost: the worker stops, and cannot settle its jobs")
            return status
        if why == "spent":
            logger.info("the worker has reached its limit of jobs or memory, and stops to be restarted")
        logger.info("stopping: running jobs get up to %g s", drain)
        await app.stop(timeout=drain)
        logger.info("worker stopped")
        status = RECYCLED if why == "spent" else 0
    except Exception as error:  # logged now, because a thread may delay the end of the process
        status = 2 if isinstance(error, ConfigError) else 1
        logger.error("%s", describe(error), exc_info=None if isinstance(error, FlowrraError) else error)
    finally:
        undo()
        wakeup.send(bytes([_LOOP_ENDED + status]))
    return status


RECYCLED = 3  # the exit status for the supervisor of a worker that has reached its limit; without a supervisor 0
_LOOP_ENDED = 200  # plus the exit status; lower numbers are signals


def _enforce_end(signals: socket.socket, loop: asyncio.AbstractEventLoop, drain: float) -> None:
    """End the process when its time to stop is over, even if a job prevents a normal end.

    A job may block the loop, suppress its cancellation, or run in a thread of `asyncio.to_thread`, for which
    `asyncio.run` waits. This thread reads the number of each signal from the wakeup file descriptor, because a signal
    handler runs only when the main thread executes Python code.
    """
    end, status = math.inf, 0
    limits = itertools.chain((drain + 20.0, 5.0), itertools.repeat(0.0))  # after the first signal, the second, ...
    while True:
        left = max(0.001, end - time.monotonic())
        try:
            signals.settimeout(None if left > threading.TIMEOUT_MAX else left)
            received = signals.recv(1)
        except TimeoutError:
            logger.warning("the process did not end in time: ending it now")
            os._exit(status)
        except OSError:
            return
        if not received:
            return
        _call_soon(loop, lambda: None)  # on Windows, a signal does not wake up the loop
        seconds, code = math.inf, 1  # for other signals, such as the user's own
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

    async def enqueue(app: Flowrra) -> TaskResult[Any] | None:
        try:
            args, kwargs = task.typed(*read_arguments(arguments.arg))
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
        found = result.result
        print(_shown(found if task.converters is None else task.converters.result(found, loading=False)))
    return 0


def find_task(app: Flowrra, name: str) -> Task[..., Any]:
    """Return the task of that name, or the only task whose name ends in it."""
    found = names_like(app.registry, name)
    if len(found) > 1:
        raise TaskNotFoundError(f"{name!r} may be {' or '.join(found)}: give the full name")
    if not found:
        raise TaskNotFoundError(f"no task {name!r} is registered here{nearest(name, app.registry)}")
    return app.registry[found[0]]


def read_arguments(texts: Sequence[str]) -> tuple[list[Any], dict[str, Any]]:
    """Read arguments, each given as JSON or as NAME=JSON."""
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
            raise ConfigError(f"--arg {text!r} is not JSON; to pass a text, write --arg '{meant}'") from None
        if name in kwargs:
            raise ConfigError(f"--arg {name}= is given twice")
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
        queues = {name: {status: n for (queue, status), n in counts.items() if queue == name} for name, _ in counts}
        shown = {"queues": queues, "paused": sorted(paused), "workers": [dataclasses.asdict(w) for w in workers]}
        print(json.dumps(shown))
        return
    rows = [
        [name, *(str(counts.get((name, status), 0)) for status in TaskStatus), "paused" * (name in paused)]
        for name in sorted({queue for queue, _ in counts} | paused)
    ]
    print_table(["QUEUE", *(status.upper() for status in TaskStatus), ""], rows, "no jobs")
    print()
    rows = []
    for worker in workers:
        served = ",".join(f"{queue}:{capacity}" for queue, capacity in worker.queues.items())
        rows.append([worker.id, str(worker.pid), str(worker.running), served, duration(time.time() - worker.started)])
    print_table(["WORKER", "PID", "RUNNING", "QUEUES", "UP"], rows, "no live workers")


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]], none: str = "") -> None:
    """Print rows in columns under their heads, or `none` if there are no rows."""
    lines = [head, *rows]
    if len(lines) == 1:
        print(none)
        return
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for row in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def first_line(text: str | None) -> str:
    """Return the beginning of a message, for a table."""
    line = (text or "").partition("\n")[0]
    return line if len(line) <= 60 else f"{line[:57]}..."


_SHOWN = (
    *("id", "task", "arguments", "status", "queue", "priority", "unique", "tags", "meta", "parents"),
    *("limit", "key", "submitted_at", "due_at", "started_at", "finished_at", "worker", "progress", "error"),
)


def job_as_json(job: Job) -> dict[str, Any]:
    """Return a job as plain JSON: times in ISO format, arguments and result as stored text."""
    stored = {
        "arguments": json.loads(encode_arguments(job)),
        "result": json.loads(encode(job.result)),
        "progress": job.progress and job.progress._asdict(),
        "steps": [step._asdict() for step in job.steps],
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
    shown["parents"], shown["tags"] = ", ".join(job.parents) or None, ", ".join(job.tags) or None
    shown["meta"] = ", ".join(f"{name}={json.dumps(value)}" for name, value in (job.meta or {}).items()) or None
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
        raise ConfigError(f"{kept} exists already: give the demo a new file")
    with tempfile.TemporaryDirectory(prefix="flowrra-demo-") as folder:
        with open(os.path.join(folder, "flowrra_demo.py"), "w", encoding="utf-8") as file:
            file.write(_DEMO.format(module=__name__, url=f"sqlite:///{kept or os.path.join(folder, 'demo.db')}"))
        sys.path.insert(0, folder)
        try:
            return asyncio.run(_demonstrate(importlib.import_module("flowrra_demo"), kept))
        finally:
            sys.path.remove(folder)


async def _demonstrate(demo: Any, kept: str | None) -> int:
    """Run some hundred jobs: one worker is killed in the middle, and a second worker finishes the work."""
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
        print(f"killed worker {first.pid} with kill -9 while it was running jobs; starting a second worker", flush=True)
        with _demo_worker():
            await _until_finished(app, total, total)
        jobs = await app.jobs(limit=total)
    count = collections.Counter(job.status for job in jobs)
    seconds = time.monotonic() - began
    retried = sum(job.failures > 0 for job in jobs if job.status is SUCCESS)
    print(f"{total} jobs in {seconds:.1f} s: {count[SUCCESS]} succeeded, {count[FAILED]} failed (1 is written to fail)")
    print(f"  retry:  {retried} jobs raised an exception at their first attempt, and succeeded at the next")
    print(f"  rescue: {sum(job.crashes > 0 for job in jobs)} jobs lost their worker, and ran again in the second one")
    if expected := total - 1 == count[SUCCESS] and count[FAILED] == 1:
        print(_demo_ending(kept, next(job.id for job in jobs if job.status is FAILED)))
    else:
        print("this is NOT the expected result: please report it")
    return 0 if expected else 1


def _demo_ending(kept: str | None, failed: str) -> str:
    """Return the next three commands to try. They look at the jobs if the jobs were kept."""
    program, store = f"python -m {__name__}", f"--broker sqlite:///{kept or 'demo.db'}"
    show = (f"show {failed} {store}", "the job that failed, with its traceback")
    steps = [("demo --keep demo.db", "run it again and keep the jobs in a file")] if kept is None else []
    steps += [(f"status {store}", "queues and workers"), *([show] if kept else [])]
    steps += [(f"dashboard {store}", "the web UI; needs pip install 'flowrra[dashboard]'")]
    width = max(len(step) for step, _ in steps)
    return "No job was lost. Next:\n" + "\n".join(f"  {program} {step:<{width}}  # {what}" for step, what in steps)


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
    """Wait for that many finished jobs. In a terminal, show the progress."""
    finished, until = 0, time.monotonic() + 60.0
    while finished < goal:
        await asyncio.sleep(0.05)
        counts = await app.broker.counts()
        finished = sum(count for (_, status), count in counts.items() if status in FINISHED)
        if sys.stdout.isatty():
            print(f"\r  {finished}/{total} finished", end="\n" * (finished >= goal), flush=True)
        if finished < goal and time.monotonic() > until:
            raise FlowrraError(f"the demo's worker has finished {finished} of {goal} jobs in 60 s: it cannot run here")
