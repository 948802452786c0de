"""The dashboard over a million jobs in SQLite: how long each page takes, and what a first visit loads.

A worker is alive and the server is a process of its own, asked over a connection that stays open, as a
browser does. The jobs are submitted by the program's own means; that they have finished is written by SQL.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import re
import sqlite3
import time
import urllib.parse
from importlib import import_module
from typing import TYPE_CHECKING

from benchmarks import tools
from benchmarks.model import Check, Figures, Part, Scenario, Settings
from benchmarks.scenarios.drain import WORKER, url

if TYPE_CHECKING:
    from collections.abc import Iterator

JOBS = 1_000_000
LOOKS = 100
GOAL = 50.0  # ms
PORT = 8429

# Of each hundred jobs so many have come so far; the rest waits.
FINISH = """
    UPDATE flowrra_job SET attempt = 1, worker = 'w', started = submitted + 0.01, finished = submitted + 0.02,
        purge_at = submitted + 864000,
        status = CASE WHEN seq % 100 < 2 THEN 'failed' WHEN seq % 100 < 3 THEN 'cancelled' ELSE 'success' END,
        result = CASE WHEN seq % 100 >= 3 THEN '[1]' END,
        failures = CASE WHEN seq % 100 < 2 THEN 1 ELSE 0 END,
        error = CASE WHEN seq % 100 < 2 THEN 'ConnectionError: no answer from host ' || (seq % 7) END
    WHERE seq % 100 < 95"""

SEARCHES = {
    "jobs": "",
    "jobs failed": "state:failed",
    "jobs by error": "error:refused",  # there is none: all of them are looked through
    "jobs by argument": "args.n:77",  # one of the oldest
    "jobs by moment": "before:1m",
}


def pages(job: str, task: str) -> dict[str, str]:
    """The pages by what the table calls them."""
    found = {"overview": "/", "failures": "/failures"}
    found |= {name: f"/jobs?{urllib.parse.urlencode({'search': line})}" for name, line in SEARCHES.items()}
    found |= {"job": f"/jobs/{job}", "tasks": "/tasks", "task": f"/tasks/{task}"}
    return found | {"schedules": "/schedules", "workers": "/workers", "api stats": "/api/stats", "metrics": "/metrics"}


async def fill(database: str) -> None:
    """A million jobs, of which most have finished."""
    app = import_module("flowrra").Flowrra.from_urls(database)
    work = app.task(name="benchmarks.apps.ours.other")(_never)
    async with app.client():
        for first in range(0, JOBS, 50_000):
            await app.submit_many(work, ((n,) for n in range(first, first + 50_000)))
    with contextlib.closing(sqlite3.connect(database.removeprefix("sqlite:///"))) as connection, connection:
        connection.execute(FINISH)


async def _never(n: int) -> None:
    """No worker knows it, so that nothing changes while the pages are measured."""


@contextlib.contextmanager
def server(database: str) -> Iterator[http.client.HTTPConnection]:
    """The dashboard as a user would start it, and a connection to it."""
    with tools.process("-m", "flowrra", "dashboard", "--broker", database, "--port", str(PORT)):
        connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
        tools.wait_until(lambda: _answers(connection), timeout=30)
        with contextlib.closing(connection):
            yield connection


def _answers(connection: http.client.HTTPConnection) -> bool:
    try:
        fetch(connection, "/")
    except OSError:
        connection.close()
        return False
    return True


def fetch(connection: http.client.HTTPConnection, path: str) -> bytes:
    """A page as it comes over the wire."""
    connection.request("GET", path, headers={"Accept-Encoding": "gzip"})
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{path}: {answer.status}")
    return body


def flowrra(settings: Settings) -> Figures:
    database = url("full", "dashboard.db").split("?")[0]
    asyncio.run(fill(database))
    with tools.process(*WORKER, BENCH_URL=database), server(database) as connection:
        time.sleep(4)  # the worker has told of itself
        listing = _plain(connection, "/jobs")
        job = re.findall(r'/jobs/([0-9a-f]{20,})"', listing)[0]
        figures: Figures = {"first_visit_kb": _first_visit(connection, listing) / 1000}
        for name, path in pages(job, "benchmarks.apps.ours.other").items():
            fetch(connection, path)
            figures |= {f"{name}_{k}": v for k, v in _spread([_took(connection, path) for _ in range(LOOKS)]).items()}
        return figures


def _plain(connection: http.client.HTTPConnection, path: str) -> str:
    connection.request("GET", path)
    return connection.getresponse().read().decode()


def _first_visit(connection: http.client.HTTPConnection, listing: str) -> int:
    """Bytes of the jobs page and of what it loads."""
    files = re.findall(r'(?:src|href)="(/static/[^"]+)"', listing)
    return sum(len(fetch(connection, path)) for path in ("/jobs", *files))


def _took(connection: http.client.HTTPConnection, path: str) -> float:
    begin = time.perf_counter()
    fetch(connection, path)
    return 1000 * (time.perf_counter() - begin)


def _spread(values: list[float]) -> Figures:
    return {"p50": tools.percentile(values, 0.5), "p95": tools.percentile(values, 0.95)}


SCENARIO = Scenario(
    title="the dashboard over a million jobs in SQLite",
    rounds=1,
    parts={"flowrra": Part(run=flowrra, needs="flowrra", setting=f"python -m flowrra dashboard; {LOOKS} looks a page")},
    checks=(
        *(
            Check(label=f"{name}, p95", ours="flowrra", figure=f"{name}_p95", unit="ms", goal=GOAL, at_most=True)
            for name in pages("", "")
        ),
        Check(
            label="bytes of a first visit", ours="flowrra", figure="first_visit_kb", unit="kB", goal=40, at_most=True
        ),
    ),
)
