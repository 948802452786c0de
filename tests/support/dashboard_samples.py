"""A dashboard's service with data made by hand, so that pages can be looked at without a store."""

import datetime as dt
import math
from typing import Any

from flowrra import Flowrra, TaskNotFoundError
from flowrra_extras.dashboard.app import Dashboard
from flowrra_extras.dashboard.failures import FailureGroup, Failures
from flowrra_extras.dashboard.health import Problem, QueueRow, Verdict
from flowrra_extras.dashboard.html import Pages
from flowrra_extras.dashboard.jobs import AttemptRow, JobPage, JobRow, JobView, Text
from flowrra_extras.dashboard.overview import Minute, RunningRow, Stats, WorkerRow
from flowrra_extras.dashboard.schedules import Preview, ScheduleRow
from flowrra_extras.dashboard.tasks import Parameter, TaskRow, TaskView

NOW = dt.datetime(2026, 11, 25, 9, 42, 44, 120_000, tzinfo=dt.UTC)
TRACEBACK = """Traceback (most recent call last):
  File "/srv/shop/mail.py", line 42, in send_receipt
    smtp.send_message(message)
  File "/usr/lib/python3.11/smtplib.py", line 986, in send_message
    return self.sendmail(from_addr, to_addrs, flatmsg, mail_options,
smtplib.SMTPRecipientsRefused: {'ada@example.com': (550, b'mailbox unavailable')}"""


def ago(seconds: float) -> dt.datetime:
    return NOW - dt.timedelta(seconds=seconds)


def text(value: str) -> Text:
    return {"text": value, "size": len(value), "is_cut": False}


def job(number: int = 1, **changes: Any) -> JobRow:
    row: JobRow = {
        "id": f"0193a5c2{number:08x}",
        "task": "shop.mail.send_receipt",
        "queue": "mail",
        "status": "success",
        "priority": 0,
        "attempt": 1,
        "failures": 0,
        "crashes": 0,
        "submitted": ago(20.0 * number),
        "due": None,
        "started": ago(20.0 * number - 0.2),
        "finished": ago(20.0 * number - 1.4),
        "waited": 0.2,
        "ran": 1.2345,
        "worker": "web-1.example.com:4121:9f3c",
        "error": None,
        "progress": None,
        "arguments": "'ada@example.com', order=4242",
        "actions": ["delete", "clone"],
    }
    return {**row, **changes}  # type: ignore[typeddict-item]


JOBS: list[JobRow] = [
    job(1, status="pending", started=None, finished=None, ran=None, worker=None, attempt=0, actions=["cancel"]),
    job(
        2, status="running", task="shop.images.resize", queue="cpu", finished=None, ran=12.3, actions=["cancel"],
        arguments="'catalogue/winter-boots-in-a-rather-long-file-name.png', 640, 480",
        progress={"done": 13, "total": 40, "note": "scaling", "share": 0.325},
    ),
    job(3, status="scheduled", due=ago(-3600), attempt=0, started=None, finished=None, ran=None, worker=None,
        task="shop.reports.monthly", queue="default", arguments="", actions=["cancel", "clone"]),
    job(4, status="retrying", error="ConnectionRefusedError: [Errno 111] Connection refused", due=ago(-14), failures=2,
        attempt=2, actions=["cancel", "clone"]),
    job(5, status="blocked", attempt=0, started=None, finished=None, ran=None, worker=None, waited=None,
        task="shop.orders.close", arguments="result_of('0193a5c200000002')", actions=["cancel", "clone"]),
    job(6),
    job(7, status="failed", attempt=4, failures=4, actions=["requeue", "delete", "clone"],
        error="SMTPRecipientsRefused: {'ada@example.com': (550, b'mailbox unavailable')}"),
    job(8, status="cancelled", ran=None, actions=["requeue", "delete", "clone"]),
    *(job(number, task=("shop.mail.send_receipt", "shop.stock.sync")[number % 3 == 0]) for number in range(9, 40)),
]  # fmt: skip


def minute(number: int) -> Minute:
    wave = math.sin(number / 7) + 1.2
    return {
        "at": ago(60.0 * (60 - number)),
        "succeeded": 0 if number < 6 else int(30 * wave),
        "failed": {31: 9, 32: 14, 33: 3, 50: 1}.get(number, 0),
        "retried": number % 3,
        "wait_p50": None if number < 6 else 0.004 * wave,
        "wait_p95": None if number < 6 else 0.02 * wave * (40 if number in (31, 32) else 1),
        "run_p50": None if number < 6 else 0.2 * wave,
        "run_p95": None if number < 6 else 0.9 * wave,
    }


MINUTES = [minute(number) for number in range(60)]
HOUR: Minute = {
    "at": ago(3600), "succeeded": 2140, "failed": 27, "retried": 60,
    "wait_p50": 0.0048, "wait_p95": 0.0312, "run_p50": 0.241, "run_p95": 1.12,
}  # fmt: skip


def queue(name: str, ready: int, running: int, capacity: int, lag: float, **changes: Any) -> QueueRow:
    row: QueueRow = {
        "name": name,
        "paused": False,
        "ready": ready,
        "running": running,
        "waiting": 0,
        "capacity": capacity,
        "workers": int(capacity > 0),
        "lag": lag,
        "since": ago(lag),
        "max_lag": 60.0,
        "change": 4.0,
        "drained_in": None,
    }
    return {**row, **changes}  # type: ignore[typeddict-item]


QUEUES = [
    queue("cpu", 214, 2, 2, 41.0),
    queue("default", 3, 17, 100, 0.2, waiting=12, change=None),
    queue("mail", 1208, 0, 50, 3720.0, paused=True, waiting=1, change=-31.0, drained_in=2340.0),
    queue("reports", 4, 0, 0, 200.0, change=0.0),
]
PROBLEMS: list[Problem] = [
    {"what": "queue reports", "text": "4 jobs wait, and no live worker serves the queue", "since": ago(200.0),
     "path": "/jobs?search=queue%3Areports+state%3Apending"},
    {"what": "queue mail", "text": "it is paused, and 1,200+ jobs wait", "since": ago(3720.0),
     "path": "/jobs?search=queue%3Amail+state%3Apending"},
]  # fmt: skip


def worker(number: int, running: list[RunningRow]) -> WorkerRow:
    return {
        "id": f"web-{number}.example.com:4121:9f3c",
        "host": f"web-{number}.example.com",
        "pid": 4121 + number,
        "queues": {"default": 50, "mail": 50, "cpu": 2},
        "tasks": ["shop.images.resize", "shop.mail.send_receipt", "shop.stock.sync"],
        "busy": len(running),
        "running": running,
        "started": ago(86_400 * 3.2),
        "seen": ago(number),
        "memory": 84_000_000 + number * 5_000_000,
        "version": "0.2.0",
    }


WORKERS = [
    worker(
        1,
        [
            {
                "id": JOBS[1]["id"],
                "task": "shop.images.resize",
                "status": "running",
                "started": ago(12.3),
                "arguments": "'boots.png', 640, 480",
            }
        ],
    ),
    worker(2, []),
]


def attempt(number: int, begun: float, ended: float | None, outcome: str, **rest: Any) -> AttemptRow:
    row: AttemptRow = {
        "number": number,
        "worker": "web-1.example.com:4121:9f3c",
        "started": ago(begun),
        "ended": None if ended is None else ago(ended),
        "seconds": None if ended is None else begun - ended,
        "outcome": outcome,
        "error": None,
        "traceback": None,
    }
    return {**row, **rest}  # type: ignore[typeddict-item]


FAILED_JOB: JobView = {
    **JOBS[6],
    "args": text('["ada@example.com"]'),
    "kwargs": text('{"order": 4242, "lines": [{"sku": "BOOT-42", "count": 1}]}'),
    "is_redacted": False,
    "max_attempts": 4,
    "alike": "state:failed task:shop.mail.send_receipt alike:1",
    "result": None,
    "message": "SMTPRecipientsRefused: {'ada@example.com': (550, b'mailbox unavailable')}",
    "traceback": text(TRACEBACK),
    "attempts": [
        attempt(1, 139, 137, "failure", error="TimeoutError: timed out", traceback=text(TRACEBACK)),
        attempt(2, 130, 118, "crash", error="the worker web-1 died"),
        attempt(3, 100, 98, "failure", error="SMTPRecipientsRefused: …", traceback=text(TRACEBACK)),
        attempt(3, 60, 60, "note", worker="ada@shop.example", error="requeued"),
        attempt(4, 50, 48, "failure", error="SMTPRecipientsRefused: …", traceback=text(TRACEBACK)),
    ],
    "event": None,
    "steps": [{"name": "charge", "ended": ago(99), "seconds": 0.4, "result": text('{"cents": 1200}')}],
    "tags": ["tenant:42", "receipt"],
    "meta": {"user": "ada"},
    "parents": [{"id": JOBS[1]["id"], "task": "shop.images.resize", "status": "success"}],
    "children": [{"id": JOBS[4]["id"], "task": "shop.orders.close", "status": "cancelled"}],
    "overrides": {"max_retries": 3, "timeout": 30.0},
    "unique": "receipt-4242",
    "limit": "smtp",
    "key": "customer:42",
    "expires": None,
    "purge_at": ago(-7 * 86_400),
    "explanation": "It failed 4 times and its retries are used up.",
}

TASKS: list[TaskRow] = [
    {"name": "shop.images.resize", "is_registered": True, "kind": "process", "queue": "cpu", "succeeded": 340,
     "failed": 0, "retried": 0, "failure_share": 0.0, "run_p50": 2.31, "run_p95": 8.4, "workers": 1},
    {"name": "shop.mail.send_receipt", "is_registered": True, "kind": "async", "queue": "mail", "succeeded": 1710,
     "failed": 27, "retried": 60, "failure_share": 0.0155, "run_p50": 0.241, "run_p95": 1.12, "workers": 2},
    {"name": "shop.old.import_feed", "is_registered": False, "kind": None, "queue": None, "succeeded": 0,
     "failed": 0, "retried": 0, "failure_share": None, "run_p50": None, "run_p95": None, "workers": 0},
]  # fmt: skip


def parameter(name: str, annotation: str, given: str, **changes: Any) -> Parameter:
    found: Parameter = {
        "name": name,
        "kind": "positional",
        "annotation": annotation,
        "default": None,
        "required": True,
        "input": given,
        "choices": [],
        "fields": [],
    }
    return {**found, **changes}  # type: ignore[typeddict-item]


TASK: TaskView = {
    **TASKS[1],
    "summary": "Send the receipt of an order.\n\nDoes nothing if it was sent before.",
    "signature": "(to: str, order: int, *, copies: list[str] | None = None)",
    "parameters": [
        parameter("to", "str", "text"),
        parameter("order", "int", "integer"),
        parameter("copies", "list[str] | None", "json", kind="keyword", default="None", required=False),
        parameter("paper", "Paper", "json", choices=["A4", "letter"]),
        parameter("address", "Address", "json", fields=[parameter("since", "date", "date")]),
    ],
    "options": {"max_retries": 3, "retry_delay": 1.0, "backoff": 2.0, "timeout": 30.0, "retry_on": ["Exception"],
                "jitter": False, "queue": "mail"},
    "minutes": MINUTES,
    "latest": JOBS[:8],
}  # fmt: skip


def schedule(name: str, **changes: Any) -> ScheduleRow:
    row: ScheduleRow = {
        "id": name,
        "task": "shop.reports.monthly",
        "kind": "cron",
        "rule": "0 9 * * mon-fri",
        "tz": "Europe/Riga",
        "explanation": "At 09:00 on Monday through Friday",
        "enabled": True,
        "in_code": False,
        "description": "What the bookkeepers wait for",
        "arguments": "'emea'",
        "args": text('["emea"]'),
        "kwargs": text("{}"),
        "options": {"priority": 5},
        "misfire": "latest",
        "overlap": "skip",
        "jitter": 0.0,
        "next_fire": ago(-80_000),
        "next_fires": [ago(-80_000 - 86_400 * day) for day in range(5)],
        "last_fire": ago(6_400),
        "last_job": JOBS[2]["id"],
        "last_status": "success",
        "overdue": False,
    }
    return {**row, **changes}  # type: ignore[typeddict-item]


SCHEDULES = [
    schedule("monthly"),
    schedule("sync", kind="interval", rule="300", tz="UTC", task="shop.stock.sync", in_code=True, arguments="",
             explanation="every 5 m", description=None, next_fire=ago(-120)),
    schedule("gone", kind="once", rule="2026-12-24T18:00", explanation="once", enabled=False, last_fire=None,
             last_job=None, description=None),
]  # fmt: skip


def risen(number: int) -> list[int]:
    """Failures that became more and more since some minute of the hour."""
    return [n // number if n > 20 + 9 * number else 0 for n in range(60)]


GROUPS: list[FailureGroup] = [
    {"key": str(number), "task": task, "error": error, "number": count, "is_cut": False, "first": ago(7000),
     "latest": ago(130 * number), "minutes": risen(number), "killed": "killed" in error,
     "sample": JOBS[6]["id"], "search": f"state:failed task:{task}"}
    for number, (task, error, count) in enumerate([
        ("shop.mail.send_receipt", "SMTPRecipientsRefused: {'ada@example.com': (550, b'unavailable')}", 96),
        ("shop.stock.sync", "TimeoutError: no answer from https://stock.example.com/v1/levels in 30 s", 30),
        ("shop.images.resize", "killed its worker 3 times", 1)], 1)
]  # fmt: skip


class SampleService:
    """What Service is to pages, with the data above. `is_empty`: as on the first day."""

    def __init__(self, *, is_empty: bool = False) -> None:
        self._is_empty = is_empty

    async def overview(self) -> Stats:
        counts = {"pending": 1429, "running": 19, "scheduled": 12, "retrying": 1, "blocked": 3, "success": 48_210,
                  "failed": 127, "cancelled": 14}  # fmt: skip
        nothing: Minute = {
            **HOUR,
            "succeeded": 0,
            "failed": 0,
            "retried": 0,
            "wait_p50": None,
            "run_p50": None,
        }
        return {
            "at": NOW,
            "counted_at": NOW,
            "counts": dict.fromkeys(counts, 0) if self._is_empty else counts,
            "minutes": [] if self._is_empty else MINUTES,
            "last_hour": nothing if self._is_empty else HOUR,
            "queues": [] if self._is_empty else QUEUES,
            "workers": [] if self._is_empty else WORKERS,
            "waiting": 0 if self._is_empty else 1429,
            "failures": [] if self._is_empty else GROUPS[:2],
            "more_failures": 0 if self._is_empty else 1,
            "longest": [] if self._is_empty else [JOBS[1]],
            "schedules": [] if self._is_empty else SCHEDULES,
            "broker": "sqlite:///jobs.db",
            "version": "0.2.0",
        }

    async def verdict(self) -> Verdict:
        return (
            Verdict("ok", "OK", "No problems.")
            if self._is_empty
            else Verdict("bad", "1 problem", "1 problem and 1 warning", PROBLEMS)
        )

    async def failures(self) -> Failures:
        number = 0 if self._is_empty else 127
        return {
            "groups": [] if self._is_empty else GROUPS,
            "looked_at": number,
            "total": {"number": number, "is_exact": True},
            "at": NOW,
        }

    async def jobs(self, line: str, *, after: str | None, limit: int) -> JobPage:
        return {
            "jobs": [] if self._is_empty else JOBS,
            "at": NOW,
            "after": None if self._is_empty else "9",
            "count": {"number": 0 if self._is_empty else 49_815, "is_exact": True},
            "complete": True,
            "searched_to": None,
            "problems": ["'purple' is not a state"] if "purple" in line else [],
        }

    async def job(self, job_id: str) -> JobView:
        if self._is_empty:
            raise TaskNotFoundError(f"no job {job_id!r}")
        return FAILED_JOB

    async def tasks(self) -> list[TaskRow]:
        return [] if self._is_empty else TASKS

    async def task(self, name: str) -> TaskView:
        return TASK

    async def schedules(self) -> list[ScheduleRow]:
        return [] if self._is_empty else SCHEDULES

    async def schedule(self, schedule_id: str) -> ScheduleRow:
        return next(row for row in SCHEDULES if row["id"] == schedule_id)

    async def preview(self, kind: str, rule: str, tz: str) -> Preview:
        fires = [ago(-80_000 - 86_400 * day) for day in range(5)]
        return {"explanation": "At 09:00 on Monday through Friday", "fires": fires, "problem": None}

    async def queues(self) -> list[QueueRow]:
        return [] if self._is_empty else QUEUES

    async def workers(self) -> list[WorkerRow]:
        return [] if self._is_empty else WORKERS


def pages_of(service: SampleService) -> Pages:
    """The pages of a dashboard that tells what the service does."""
    app = Flowrra.from_urls("memory://")
    for row in TASKS:
        app.task(name=row["name"])(_never)
    board: Any = Dashboard(app)
    board.overview.stats, board.failures.failures = service.overview, service.failures
    board.health.queues, board.overview.workers = service.queues, service.workers
    board.pages._judge = service.verdict
    board.jobs.jobs, board.jobs.job = service.jobs, service.job
    board.tasks.tasks, board.tasks.task = service.tasks, service.task
    board.schedules.schedules, board.schedules.schedule = service.schedules, service.schedule
    board.schedules.preview = service.preview
    found: Pages = board.pages
    return found


async def _never() -> None: ...
