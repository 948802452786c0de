"""The dashboard over a million jobs in SQLite, and 200,000 in Redis and in PostgreSQL: how long each page takes.

A worker is alive. The server is a separate process, and the requests use one open connection, like a browser.
The program submits the jobs. SQL marks most of them as finished in SQLite; in the other stores, a worker's calls do.
Also measured: the bytes of a first visit.
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
from typing import TYPE_CHECKING, Any

from benchmarks import databases, tools
from benchmarks.model import Check, Figures, Part, Scenario, Settings
from benchmarks.scenarios.drain import WORKER, url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from flowrra import Flowrra, Job, Outcome

JOBS = 1_000_000
SERVER_JOBS = 200_000
GROUP = 1_000
LOOKS = 100
GOAL = 50.0  # ms
PORT = 8429

# The number of jobs in each state, of a hundred; the rest waits.
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
    "jobs by error": "error:refused",  # there is none, so all jobs are read
    "jobs by argument": "args.n:77",  # one of the oldest
    "jobs by moment": "before:1m",
}


def pages(job: str, task: str) -> dict[str, str]:
    """Return the pages by their names in the table."""
    found = {"overview": "/", "failures": "/failures"}
    found |= {name: f"/jobs?{urllib.parse.urlencode({'search': line})}" for name, line in SEARCHES.items()}
    found |= {"job": f"/jobs/{job}", "tasks": "/tasks", "task": f"/tasks/{task}"}
    return found | {"schedules": "/schedules", "workers": "/workers", "api stats": "/api/stats", "metrics": "/metrics"}


async def fill(database: str, jobs: int, *, by_workers: bool) -> None:
    """Create so many jobs, most of which have finished."""
    app = import_module("flowrra").Flowrra.from_urls(database)
    work = app.task(name="benchmarks.apps.ours.other")(_never)
    async with app.client():
        for first in range(0, jobs, 50_000):
            await app.submit_many(work, ((n,) for n in range(first, first + 50_000)))
        if by_workers:
            await finish(app, jobs * 95 // 100)
            return
    with contextlib.closing(sqlite3.connect(database.removeprefix("sqlite:///"))) as connection, connection:
        connection.execute(FINISH)


async def finish(app: Flowrra, jobs: int) -> None:
    """Have the first so many jobs come as far as FINISH has them come."""
    module: Any = import_module("flowrra")
    broker = app.broker
    worker = module.WorkerInfo("w", queues={"default": GROUP}, started=app.now(), seen=app.now())

    def outcome(job: Job) -> Outcome:
        kind = job.seq % 100
        error = f"ConnectionError: no answer from host {job.seq % 7}"
        made = module.Outcome
        found: Outcome = (
            made.fail(job, error) if kind < 2 else made.succeed(job, 1) if kind > 2 else made.cancel(job, "")
        )
        return found

    await broker.heartbeat(worker, lease=600.0, now=app.now())
    for _ in range(0, jobs, GROUP):
        claimed = await broker.claim("default", limit=GROUP, worker="w", now=app.now())
        await broker.settle([outcome(job) for job in claimed], now=app.now())
    await broker.heartbeat(worker, lease=0, now=app.now())


async def _never(n: int) -> None:
    """A task that no worker knows, so that nothing changes while the pages are measured."""


@contextlib.contextmanager
def server(database: str) -> Iterator[http.client.HTTPConnection]:
    """Start the dashboard as a user would, and yield a connection to it."""
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
    """Return the body of a page as it is transferred."""
    connection.request("GET", path, headers={"Accept-Encoding": "gzip"})
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{path}: {answer.status}")
    return body


def measured(database: str, jobs: int, *, by_workers: bool = False) -> Figures:
    """How long each page takes over so many jobs in that store."""
    asyncio.run(fill(database, jobs, by_workers=by_workers))
    with tools.process(*WORKER, BENCH_URL=database), server(database) as connection:
        time.sleep(4)  # the worker has sent its heartbeat
        listing = _plain(connection, "/jobs")
        job = re.findall(r'/jobs/([0-9a-f]{20,})"', listing)[0]
        figures: Figures = {"first_visit_kb": _first_visit(connection, listing) / 1000}
        for name, path in pages(job, "benchmarks.apps.ours.other").items():
            fetch(connection, path)
            figures |= {f"{name}_{k}": v for k, v in _spread([_took(connection, path) for _ in range(LOOKS)]).items()}
        return figures


def sqlite(settings: Settings) -> Figures:
    return measured(url("full", "dashboard.db").split("?")[0], JOBS)


def redis(settings: Settings) -> Figures:
    with tools.redis_server() as database:
        return measured(database, SERVER_JOBS, by_workers=True)


def postgres(settings: Settings) -> Figures:
    with databases.database() as database:
        return measured(database, SERVER_JOBS, by_workers=True)


def _plain(connection: http.client.HTTPConnection, path: str) -> str:
    connection.request("GET", path)
    return connection.getresponse().read().decode()


def _first_visit(connection: http.client.HTTPConnection, listing: str) -> int:
    """Return the bytes of the jobs page and of everything that it loads."""
    files = re.findall(r'(?:src|href)="(/static/[^"]+)"', listing)
    return sum(len(fetch(connection, path)) for path in ("/jobs", *files))


def _took(connection: http.client.HTTPConnection, path: str) -> float:
    begin = time.perf_counter()
    fetch(connection, path)
    return 1000 * (time.perf_counter() - begin)


def _spread(values: list[float]) -> Figures:
    return {"p50": tools.percentile(values, 0.5), "p95": tools.percentile(values, 0.95)}


STORES: dict[str, tuple[str, Callable[[Settings], Figures]]] = {
    "SQLite": ("1,000,000 jobs", sqlite),
    "Redis": ("200,000 jobs", redis),
    "PostgreSQL": ("200,000 jobs", postgres),
}
SCENARIO = Scenario(
    title="the dashboard over a million jobs in SQLite, and 200,000 in Redis and in PostgreSQL",
    rounds=1,
    parts={
        store: Part(run=run, needs="flowrra", setting=f"python -m flowrra dashboard; {jobs}, {LOOKS} looks a page")
        for store, (jobs, run) in STORES.items()
    },
    checks=(
        *(
            Check(label=f"{store}: {name}, p95", ours=store, figure=f"{name}_p95", unit="ms", goal=GOAL, at_most=True)
            for store in STORES
            for name in pages("", "")
        ),
        Check(label="bytes of a first visit", ours="SQLite", figure="first_visit_kb", unit="kB", goal=40, at_most=True),
    ),
)
