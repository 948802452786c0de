"""The footprint: the time of the import, and the memory of an idle worker."""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import tools
from benchmarks.model import Check, Figures, Part, Scenario, Settings
from benchmarks.peers import OLD
from benchmarks.scenarios.drain import HUEY_WORKER, WORKER, url

if TYPE_CHECKING:
    from collections.abc import Callable

IMPORTS = 7


def seconds(code: str) -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - begin


def import_ms(module: str) -> float:
    """Return the time of an import, without that of a bare start measured next to it."""
    seconds(f"import {module}")  # compiles it
    return 1000 * statistics.median(seconds(f"import {module}") - seconds("pass") for _ in range(IMPORTS))


def imported(module: str) -> Callable[[Settings], Figures]:
    return lambda settings: {"import_ms": import_ms(module)}


def flowrra(settings: Settings) -> Figures:
    """Measure a worker that has run a job, so that everything is loaded."""
    os.environ["BENCH_URL"] = url("full")
    with tools.process(*WORKER) as worker:
        asyncio.run(one_job())
        time.sleep(1)
        return {**tools.memory_mb(worker.pid), "import_ms": import_ms("flowrra")}


async def one_job() -> None:
    from benchmarks.apps import ours

    async with ours.app.client():
        job = await ours.app.submit(ours.noop, 1)
        await ours.app.wait_for_result(job, timeout=30)


def huey(settings: Settings) -> Figures:
    os.environ["BENCH_DB"] = str(Path("huey.db").resolve())
    queue = import_module("benchmarks.apps.huey_sqlite")
    with tools.process(*HUEY_WORKER) as worker:
        queue.noop(1).get(blocking=True, timeout=30)
        time.sleep(1)
        return {**tools.memory_mb(worker.pid), "import_ms": import_ms("huey")}


BARE = """
import asyncio, sqlite3
db = sqlite3.connect("bare.db")
db.execute("CREATE TABLE t(a)")
asyncio.run(asyncio.sleep(60))
"""


def bare(settings: Settings) -> Figures:
    with tools.process("-c", BARE) as process:
        time.sleep(1.5)
        return tools.memory_mb(process.pid)


SCENARIO = Scenario(
    title="import on top of bare Python; resident memory of an idle worker process",
    rounds=2,
    parts={
        "flowrra": Part(run=flowrra, needs="flowrra", setting="flowrra worker on SQLite"),
        "bare": Part(run=bare, setting="limit: asyncio.run and an open sqlite3 connection"),
        "huey": Part(run=huey, needs="huey", setting="huey_consumer on SQLite, as it comes"),
        OLD: Part(run=imported("flowrra"), needs=OLD, setting="import alone"),
        "taskiq": Part(run=imported("taskiq"), needs="taskiq", setting="import alone"),
    },
    checks=(
        Check(label="import", ours="flowrra", figure="import_ms", unit="ms", goal=60,
              at_most=True),
        Check(label="idle worker, memory", ours="flowrra", figure="rss_mb", unit="MB",
              against="bare", goal=1.3, at_most=True),
        Check(label="import", ours="flowrra", figure="import_ms", unit="ms", against="huey"),
        Check(label="import", ours="flowrra", figure="import_ms", unit="ms", against=OLD),
        Check(label="import", ours="flowrra", figure="import_ms", unit="ms", against="taskiq"),
        Check(label="idle worker, memory", ours="flowrra", figure="rss_mb", unit="MB",
              against="huey"),
    ),
)  # fmt: skip
