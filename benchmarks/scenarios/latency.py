"""SQLite: from submit to the start of a lone job in another process that is idle."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks import tools
from benchmarks.apps import poller
from benchmarks.model import Check, Figures, Part, Scenario, Settings
from benchmarks.scenarios.drain import HUEY_WORKER, LOSES_ALL, TUNED, WORKER, url

GAP = 0.05
SAMPLES = 150
IDLE = 1.0
IDLE_SAMPLES = 15
WARM = 5
WATCHED = 10.0  # seconds for the CPU share of an idle worker

Submit = Callable[[], Any]  # returns a handle
Start = Callable[[Any], int]  # of the job with this handle, in ns


def lone_jobs(submit: Submit, start: Start, *, gap: float, samples: int) -> list[float]:
    """Milliseconds each. The result is asked for after the gap, so that nobody polls before."""
    found = []
    for _ in range(samples):
        begin = time.monotonic_ns()
        handle = submit()
        time.sleep(gap)
        found.append((start(handle) - begin) / tools.MS)
    return found


def measure(submit: Submit, start: Start, worker: int) -> Figures:
    lone_jobs(submit, start, gap=1.0, samples=1)  # the worker is up
    lone_jobs(submit, start, gap=GAP, samples=WARM)
    figures = tools.spread("ms", lone_jobs(submit, start, gap=GAP, samples=SAMPLES))
    idle = lone_jobs(submit, start, gap=IDLE, samples=IDLE_SAMPLES)
    figures["idle_ms_p50"] = tools.percentile(idle, 0.5)
    figures["idle_ms_max"] = max(idle)
    return figures | idle_share(worker)


def idle_share(worker: int) -> Figures:
    """Percent of one core that the worker and its children use while nothing happens."""
    time.sleep(1)
    pids = tools.family(worker)
    before = sum(map(tools.cpu_seconds, pids))
    time.sleep(WATCHED)
    used = sum(map(tools.cpu_seconds, pids)) - before
    return {"idle_percent": 100 * used / WATCHED}


def flowrra(settings: Settings) -> Figures:
    os.environ["BENCH_URL"] = url("full")
    from benchmarks.apps import ours

    async def submit() -> Any:
        return await ours.app.submit(ours.stamp)

    async def start(job: Any) -> int:
        return int((await ours.app.wait_for_result(job, timeout=30)).result)

    # The submitter is plain code with a loop of its own, so that it sleeps like the others.
    with asyncio.Runner() as runner:
        client = ours.app.client()
        runner.run(client.__aenter__())
        with tools.process(*WORKER) as worker:
            figures = measure(
                lambda: runner.run(submit()), lambda job: runner.run(start(job)), worker.pid
            )
        runner.run(client.__aexit__(None, None, None))
    return figures


def huey(settings: Settings) -> Figures:
    os.environ["BENCH_DB"] = str(Path("huey.db").resolve())
    os.environ["BENCH_TUNED"] = "1"
    queue = import_module("benchmarks.apps.huey_sqlite")

    def start(result: Any) -> int:
        return int(result.get(blocking=True, timeout=30))

    with tools.process(*HUEY_WORKER, *TUNED) as worker:
        return measure(queue.stamp, start, worker.pid)


def poll(settings: Settings) -> Figures:
    db = poller.connect("poll.db")

    def submit() -> Any:
        return db.execute("INSERT INTO job(status) VALUES ('pending')").lastrowid

    def start(job: Any) -> int:
        found: list[tuple[int | None]] = []

        def done() -> bool:
            found[:] = db.execute("SELECT result FROM job WHERE id = ?", (job,)).fetchall()
            return found[0][0] is not None

        tools.wait_until(done, timeout=30)
        return found[0][0] or 0

    with tools.process("-m", "benchmarks.apps.poller", "poll.db") as worker:
        return measure(submit, start, worker.pid)


SCENARIO = Scenario(
    title=f"SQLite: submit to start in another, idle process, a job each {GAP * 1000:.0f} ms",
    rounds=1,
    parts={
        "flowrra": Part(
            run=flowrra, needs="flowrra", setting="flowrra worker, synchronous=full"
        ),
        "huey tuned": Part(
            run=huey,
            needs="huey",
            setting="fsync=False, 1 thread, looks every 1 ms",
            loses=LOSES_ALL,
        ),
        "1 ms poll": Part(run=poll, setting="limit: sqlite3 at FULL, a look each millisecond"),
    },
    checks=(
        Check(label="p50", ours="flowrra", figure="ms_p50", unit="ms", goal=0.3, at_most=True),
        Check(label="p99", ours="flowrra", figure="ms_p99", unit="ms", goal=1.5, at_most=True),
        Check(label="p50 after 1 s of idleness", ours="flowrra", figure="idle_ms_p50", unit="ms",
              against_figure="ms_p50", goal=2, at_most=True),
        Check(label="idle worker, share of a core", ours="flowrra", figure="idle_percent",
              unit="%", goal=0.05, at_most=True),
        Check(label="p50", ours="flowrra", figure="ms_p50", unit="ms", against="huey tuned"),
        Check(label="p99", ours="flowrra", figure="ms_p99", unit="ms", against="huey tuned"),
        Check(label="p50", ours="flowrra", figure="ms_p50", unit="ms", against="1 ms poll"),
        Check(label="p99", ours="flowrra", figure="ms_p99", unit="ms", against="1 ms poll"),
        Check(label="idle worker, share of a core", ours="flowrra", figure="idle_percent",
              unit="%", against="huey tuned"),
        Check(label="idle worker, share of a core", ours="flowrra", figure="idle_percent",
              unit="%", against="1 ms poll"),
    ),
)  # fmt: skip
