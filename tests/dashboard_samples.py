"""A dashboard's service with data made by hand, so that pages can be looked at without a store."""

import datetime as dt
import math
from typing import Any

from flowrra import TaskNotFoundError
from flowrra_extras.dashboard import shapes

NOW = dt.datetime(2026, 11, 25, 9, 42, 44, 120_000, tzinfo=dt.UTC)
TRACEBACK = """Traceback (most recent call last):
  File "/srv/shop/mail.py", line 42, in send_receipt
    smtp.send_message(message)
  File "/usr/lib/python3.11/smtplib.py", line 986, in send_message
    return self.sendmail(from_addr, to_addrs, flatmsg, mail_options,
smtplib.SMTPRecipientsRefused: {'ada@example.com': (550, b'mailbox unavailable')}"""


def ago(seconds: float) -> dt.datetime:
    return NOW - dt.timedelta(seconds=seconds)


def text(value: str) -> shapes.Text:
    return {"text": value, "size": len(value), "is_cut": False}


def job(number: int = 1, **changes: Any) -> shapes.JobRow:
    row: shapes.JobRow = {
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


JOBS: list[shapes.JobRow] = [
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


def minute(number: int) -> shapes.Minute:
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
HOUR: shapes.Minute = {
    "at": ago(3600), "succeeded": 2140, "failed": 27, "retried": 60,
    "wait_p50": 0.0048, "wait_p95": 0.0312, "run_p50": 0.241, "run_p95": 1.12,
}  # fmt: skip
QUEUES: list[shapes.QueueRow] = [
    {"name": "cpu", "paused": False, "ready": 214, "running": 2, "waiting": 0, "capacity": 2, "workers": 1,
     "lag": 41.0},
    {"name": "default", "paused": False, "ready": 3, "running": 17, "waiting": 12, "capacity": 100, "workers": 2,
     "lag": 0.2},
    {"name": "mail", "paused": True, "ready": 1208, "running": 0, "waiting": 1, "capacity": 50, "workers": 1,
     "lag": 3720.0},
    {"name": "reports", "paused": False, "ready": 4, "running": 0, "waiting": 0, "capacity": 0, "workers": 0,
     "lag": 200.0},
]  # fmt: skip


def worker(number: int, running: list[shapes.Relative]) -> shapes.WorkerRow:
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
    worker(1, [{"id": JOBS[1]["id"], "task": "shop.images.resize", "status": "running"}]),
    worker(2, []),
]


def attempt(number: int, begun: float, ended: float | None, outcome: str, **rest: Any) -> shapes.AttemptRow:
    row: shapes.AttemptRow = {
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


FAILED_JOB: shapes.JobView = {
    **JOBS[6],
    "args": text('["ada@example.com"]'),
    "kwargs": text('{"order": 4242, "lines": [{"sku": "BOOT-42", "count": 1}]}'),
    "is_redacted": False,
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
    "parents": [{"id": JOBS[1]["id"], "task": "shop.images.resize", "status": "success"}],
    "children": [{"id": JOBS[4]["id"], "task": "shop.orders.close", "status": "cancelled"}],
    "overrides": {"max_retries": 3, "timeout": 30.0},
    "unique": "receipt-4242",
    "expires": None,
    "purge_at": ago(-7 * 86_400),
    "explanation": "It failed 4 times and its retries are used up.",
}

TASKS: list[shapes.TaskRow] = [
    {"name": "shop.images.resize", "is_registered": True, "kind": "process", "queue": "cpu", "succeeded": 340,
     "failed": 0, "retried": 0, "failure_share": 0.0, "run_p50": 2.31, "run_p95": 8.4, "workers": 1},
    {"name": "shop.mail.send_receipt", "is_registered": True, "kind": "async", "queue": "mail", "succeeded": 1710,
     "failed": 27, "retried": 60, "failure_share": 0.0155, "run_p50": 0.241, "run_p95": 1.12, "workers": 2},
    {"name": "shop.old.import_feed", "is_registered": False, "kind": None, "queue": None, "succeeded": 0,
     "failed": 0, "retried": 0, "failure_share": None, "run_p50": None, "run_p95": None, "workers": 0},
]  # fmt: skip
TASK: shapes.TaskView = {
    **TASKS[1],
    "summary": "Send the receipt of an order.\n\nDoes nothing if it was sent before.",
    "signature": "(to: str, order: int, *, copies: list[str] | None = None)",
    "parameters": [
        {"name": "to", "kind": "positional", "annotation": "str", "default": None, "required": True},
        {"name": "order", "kind": "positional", "annotation": "int", "default": None, "required": True},
        {"name": "copies", "kind": "keyword", "annotation": "list[str] | None", "default": "None", "required": False},
    ],
    "options": {"max_retries": 3, "retry_delay": 1.0, "backoff": 2.0, "timeout": 30.0, "retry_on": ["Exception"],
                "jitter": False, "queue": "mail"},
    "minutes": MINUTES,
    "latest": JOBS[:8],
}  # fmt: skip


def schedule(name: str, **changes: Any) -> shapes.ScheduleRow:
    row: shapes.ScheduleRow = {
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
    }
    return {**row, **changes}  # type: ignore[typeddict-item]


SCHEDULES = [
    schedule("monthly"),
    schedule("sync", kind="interval", rule="300", tz="UTC", task="shop.stock.sync", in_code=True, arguments="",
             explanation="every 5 m", description=None, next_fire=ago(-120)),
    schedule("gone", kind="once", rule="2026-12-24T18:00", explanation="once", enabled=False, last_fire=None,
             last_job=None, description=None),
]  # fmt: skip


class SampleService:
    """What Service is to pages, with the data above. `is_empty`: as on the first day."""

    def __init__(self, *, is_empty: bool = False) -> None:
        self._is_empty = is_empty

    async def overview(self) -> shapes.Overview:
        counts = {"pending": 1429, "running": 19, "scheduled": 12, "retrying": 1, "blocked": 3, "success": 48_210,
                  "failed": 127, "cancelled": 14}  # fmt: skip
        nothing: shapes.Minute = {**HOUR, "succeeded": 0, "failed": 0, "retried": 0, "wait_p50": None, "run_p50": None}
        return {
            "at": NOW,
            "counted_at": NOW,
            "counts": dict.fromkeys(counts, 0) if self._is_empty else counts,
            "minutes": [] if self._is_empty else MINUTES,
            "last_hour": nothing if self._is_empty else HOUR,
            "queues": [] if self._is_empty else QUEUES,
            "workers": [] if self._is_empty else WORKERS,
            "failures": [] if self._is_empty else [JOBS[6], job(70, **{**JOBS[6], "id": "0193a5c2ffff"})],
            "broker": "sqlite:///jobs.db",
            "version": "0.2.0",
        }

    async def failures(self) -> shapes.Failures:
        groups: list[shapes.FailureGroup] = [
            {"key": str(number), "task": task, "error": error, "number": count, "first": ago(7000),
             "latest": ago(130 * number), "sample": JOBS[6]["id"], "search": f"state:failed task:{task}"}
            for number, (task, error, count) in enumerate([
                ("shop.mail.send_receipt", "SMTPRecipientsRefused: {'ada@example.com': (550, b'unavailable')}", 96),
                ("shop.stock.sync", "TimeoutError: no answer from https://stock.example.com/v1/levels in 30 s", 30),
                ("shop.images.resize", "killed its worker 3 times", 1)], 1)
        ]  # fmt: skip
        number = 0 if self._is_empty else 127
        return {
            "groups": [] if self._is_empty else groups,
            "looked_at": number,
            "total": {"number": number, "is_exact": True},
        }

    async def jobs(self, line: str, *, after: str | None, limit: int) -> shapes.JobPage:
        return {
            "jobs": [] if self._is_empty else JOBS,
            "after": None if self._is_empty else "9",
            "count": {"number": 0 if self._is_empty else 49_815, "is_exact": True},
            "complete": True,
            "searched_to": None,
            "problems": ["'purple' is no state"] if "purple" in line else [],
        }

    async def job(self, job_id: str) -> shapes.JobView:
        if self._is_empty:
            raise TaskNotFoundError(f"no job {job_id!r}")
        return FAILED_JOB

    async def tasks(self) -> list[shapes.TaskRow]:
        return [] if self._is_empty else TASKS

    async def task(self, name: str) -> shapes.TaskView:
        return TASK

    async def schedules(self) -> list[shapes.ScheduleRow]:
        return [] if self._is_empty else SCHEDULES

    async def schedule(self, schedule_id: str) -> shapes.ScheduleRow:
        return next(row for row in SCHEDULES if row["id"] == schedule_id)

    async def preview(self, kind: str, rule: str, tz: str) -> shapes.Preview:
        fires = [ago(-80_000 - 86_400 * day) for day in range(5)]
        return {"explanation": "At 09:00 on Monday through Friday", "fires": fires, "problem": None}

    async def queues(self) -> list[shapes.QueueRow]:
        return [] if self._is_empty else QUEUES

    async def workers(self) -> list[shapes.WorkerRow]:
        return [] if self._is_empty else WORKERS
