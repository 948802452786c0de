"""What the dashboard says: the plain dictionaries that the service gives, and pages and API show.

Moments are aware UTC datetimes and lengths are seconds; the API writes moments in ISO 8601. Values of
a job (arguments, results, tracebacks) are texts, cut to a length, since a page shows nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    import datetime as dt


class Text(TypedDict):
    """A long text as it is shown: cut after some thousand characters. `size` is its whole length."""

    text: str
    size: int
    is_cut: bool


class Count(TypedDict):
    """A number of jobs. Where the store could not count all of them in time, there are at least `number`."""

    number: int
    is_exact: bool


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


class Progress(TypedDict):
    """How far a job says it is. `share` is from 0 to 1 where the total is known."""

    done: float
    total: float | None
    note: str | None
    share: float | None


class AttemptRow(TypedDict):
    """One try at a job, or a line that an action left on it (`outcome` is "note", `worker` who did it)."""

    number: int
    worker: str
    started: dt.datetime
    ended: dt.datetime | None
    seconds: float | None
    outcome: str
    error: str | None
    traceback: Text | None


class Relative(TypedDict):
    """A parent or a child of a job."""

    id: str
    task: str
    status: str


class JobView(JobRow):
    """A job with all that is known of it."""

    args: Text  # JSON
    kwargs: Text  # JSON
    is_redacted: bool
    result: Text | None
    message: str | None  # the whole error
    traceback: Text | None
    attempts: list[AttemptRow]
    parents: list[Relative]
    children: list[Relative]
    overrides: dict[str, Any]
    unique: str | None
    expires: dt.datetime | None
    purge_at: dt.datetime | None
    explanation: str


class JobPage(TypedDict):
    """A page of jobs, the latest submitted first. `after` goes on from it; None where nothing is left.

    `complete` is False where the search ran out of time before the page was full or all jobs were looked at:
    `searched_to` is the moment back to which it has looked, and `after` goes on from there. `problems` are the words
    of the search that cannot be understood, each with the reason.
    """

    jobs: list[JobRow]
    after: str | None
    complete: bool
    count: Count | None
    searched_to: dt.datetime | None
    problems: list[str]


class QueueRow(TypedDict):
    """A queue. `capacity` is what its live workers can run at once; `lag` how long its oldest ready job waits."""

    name: str
    paused: bool
    ready: int
    running: int
    waiting: int  # scheduled, retrying and blocked
    capacity: int
    workers: int
    lag: float | None


class WorkerRow(TypedDict):
    """A live worker. `busy` is how many jobs it runs, by its latest heartbeat; `running` are those that are shown."""

    id: str
    host: str
    pid: int
    queues: dict[str, int]
    tasks: list[str]
    busy: int
    running: list[Relative]
    started: dt.datetime
    seen: dt.datetime
    memory: int | None  # bytes
    version: str


class FailureGroup(TypedDict):
    """Failed jobs with the same task and error; `key` finds them. Numbers in the text count as equal."""

    key: str
    task: str
    error: str
    number: int
    first: dt.datetime
    latest: dt.datetime
    sample: str  # the id of the latest one
    search: str  # the search line that lists them


class Failures(TypedDict):
    """The groups, most jobs first. `looked_at` of the failed jobs were read, the latest."""

    groups: list[FailureGroup]
    looked_at: int
    total: Count


class Minute(TypedDict):
    """What the workers did in a minute. Quantiles are None where nothing ran."""

    at: dt.datetime
    succeeded: int
    failed: int
    retried: int
    wait_p50: float | None
    wait_p95: float | None
    run_p50: float | None
    run_p95: float | None


class Overview(TypedDict):
    """The state of things at `at`; `counted_at` is when the counts were taken."""

    at: dt.datetime
    counted_at: dt.datetime
    counts: dict[str, int]  # by state, all states
    minutes: list[Minute]  # the last hour, oldest first, each minute
    last_hour: Minute  # the same over all of it
    queues: list[QueueRow]
    workers: list[WorkerRow]
    failures: list[JobRow]  # the latest few
    broker: str  # its URL without the password
    version: str


class Parameter(TypedDict):
    """A parameter of a task. `annotation` and `default` are texts as in the source; None where there is none."""

    name: str
    kind: str  # positional, keyword, args, kwargs
    annotation: str | None
    default: str | None
    required: bool


class TaskRow(TypedDict):
    """A task, registered here or known from the store and its workers only, and what it did in the last hour."""

    name: str
    is_registered: bool  # here, so that it may be run through a form
    kind: str | None  # async, thread, process; None if it is not registered here
    queue: str | None
    succeeded: int
    failed: int
    retried: int
    failure_share: float | None
    run_p50: float | None
    run_p95: float | None
    workers: int  # live ones that know it


class TaskView(TaskRow):
    """A task with its options and parameters."""

    summary: str | None  # the docstring
    signature: str | None
    parameters: list[Parameter]
    options: dict[str, Any]  # by name, those of @app.task
    minutes: list[Minute]
    latest: list[JobRow]


class ScheduleRow(TypedDict):
    """A schedule; one in code (`in_code`) can be looked at and run, not changed."""

    id: str
    task: str
    kind: str  # cron, interval, once
    rule: str
    tz: str
    explanation: str
    enabled: bool
    in_code: bool
    description: str | None
    arguments: str
    args: Text
    kwargs: Text
    options: dict[str, Any]
    misfire: str
    overlap: str
    jitter: float
    next_fire: dt.datetime | None
    next_fires: list[dt.datetime]  # a few
    last_fire: dt.datetime | None
    last_job: str | None


class Preview(TypedDict):
    """What a rule that is being typed means. `problem` is set where it cannot be read."""

    explanation: str | None
    fires: list[dt.datetime]
    problem: str | None


class Health(TypedDict):
    """Whether someone is at work: `problems` is empty if so."""

    healthy: bool
    problems: list[str]
    workers: int
    ready: int
    lag: float | None


class Report(TypedDict):
    """What came of an action on several jobs. `after` goes on where there were too many for one call."""

    action: str
    done: int
    refused: int
    after: str | None
