"""SQLite: from submit to the start of a single job in another process that is idle.

This includes the commit after a pause, which on some disks is most of it. The limits are the same steps alone.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks import tools
from benchmarks.apps import poller
from benchmarks.model import Check, Figures, Part, Scenario, Settings
from benchmarks.scenarios.drain import HUEY_WORKER, LOSES_ALL, TUNED, WORKER, url

GAP = 0.05
SAMPLES = 80
IDLE = 1.0
IDLE_SAMPLES = 6
WARM = 5
WATCHED = 10.0  # seconds for the CPU share of an idle worker; a polling one needs fewer

Submit = Callable[[], Awaitable[Any]]  # returns a handle
Start = Callable[[Any], Awaitable[int]]  # of the job with this handle, in ns


async def lone_jobs(submit: Submit, start: Start, *, gap: float, samples: int) -> list[float]:
    """Return the milliseconds of each job. Its result is requested after the gap, so that no polling disturbs."""
    found = []
    for _ in range(samples):
        begin = time.monotonic_ns()
        handle = await submit()
        await asyncio.sleep(gap)
        found.append((await start(handle) - begin) / tools.MS)
    return found


async def measure(submit: Submit, start: Start, worker: int, *, watch: float, idle: bool = True) -> Figures:
    await lone_jobs(submit, start, gap=1.0, samples=1)  # the worker is up
    await lone_jobs(submit, start, gap=GAP, samples=WARM)
    found = await lone_jobs(submit, start, gap=GAP, samples=SAMPLES)
    figures = tools.spread("ms", found)
    if idle:
        later = await lone_jobs(submit, start, gap=IDLE, samples=IDLE_SAMPLES)
        figures["idle_ms_p50"] = tools.percentile(later, 0.5)
    return figures | idle_share(worker, watch) if watch else figures


def idle_share(worker: int, watch: float) -> Figures:
    """Return the percentage of one core that the worker and its children use while they are idle."""
    time.sleep(1)
    pids = tools.family(worker)
    before = sum(map(tools.cpu_seconds, pids))
    time.sleep(watch)
    used = sum(map(tools.cpu_seconds, pids)) - before
    return {"idle_percent": 100 * used / watch}


def flowrra(synchronous: str, *, watch: float) -> Callable[[Settings], Figures]:
    return lambda settings: flowrra_on(url(synchronous), watch=watch)


def flowrra_on(database: str, *, watch: float) -> Figures:
    os.environ["BENCH_URL"] = database
    with tools.process(*WORKER) as worker:
        return asyncio.run(measure_ours(worker.pid, watch))


async def measure_ours(worker: int, watch: float) -> Figures:
    from benchmarks.apps import ours

    async def submit() -> Any:
        return await ours.app.submit(ours.stamp)

    async def start(job: Any) -> int:
        return int((await ours.app.wait_for_result(job, timeout=30)).result)

    async with ours.app.client():
        return await measure(submit, start, worker, watch=watch)


def huey(settings: Settings) -> Figures:
    os.environ["BENCH_DB"] = str(Path("huey.db").resolve())
    os.environ["BENCH_TUNED"] = "1"
    queue = import_module("benchmarks.apps.huey_sqlite")

    async def submit() -> Any:
        return queue.stamp()

    async def start(result: Any) -> int:
        return int(result.get(blocking=True, timeout=30))

    with tools.process(*HUEY_WORKER, *TUNED) as worker:
        return asyncio.run(measure(submit, start, worker.pid, watch=WATCHED / 4))


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def bare(synchronous: str, *, datagram: bool, sync_after: bool = False) -> Callable[[Settings], Figures]:
    def part(settings: Settings) -> Figures:
        port = free_port() if datagram else 0
        command = ("-m", "benchmarks.apps.poller", "bare.db", synchronous, str(port))
        with tools.process(*command) as worker:
            return asyncio.run(measure_bare(synchronous, port, worker.pid, sync_after))

    return part


async def measure_bare(synchronous: str, port: int, worker: int, sync_after: bool) -> Figures:
    db = poller.connect("bare.db", synchronous)
    bell = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    journal = os.open("bare.db-wal", os.O_RDONLY)

    async def submit() -> Any:
        job = db.execute("INSERT INTO job(status) VALUES ('pending')").lastrowid
        if port:
            bell.sendto(b"x", ("127.0.0.1", port))
        if sync_after:
            os.fdatasync(journal)
        return job

    async def start(job: Any) -> int:
        found = db.execute("SELECT result FROM job WHERE id = ?", (job,)).fetchone()
        if found[0] is None:
            await asyncio.sleep(0.01)
            return await start(job)
        return int(found[0])

    with bell:
        return await measure(submit, start, worker, watch=0 if port else WATCHED / 4, idle=False)


SCENARIO = Scenario(
    title=f"SQLite: submit to start in another, idle process, a job each {GAP * 1000:.0f} ms",
    rounds=1,
    parts={
        "FULL": Part(
            run=flowrra("full", watch=WATCHED),
            needs="flowrra",
            setting="flowrra worker, synchronous=full",
        ),
        "NORMAL": Part(
            run=flowrra("normal", watch=0),
            needs="flowrra",
            setting="the same, synchronous=normal",
        ),
        "huey tuned": Part(
            run=huey,
            needs="huey",
            setting="fsync=False, 1 thread, looks every 1 ms",
            loses=LOSES_ALL,
        ),
        "1 ms poll": Part(
            run=bare("NORMAL", datagram=False),
            setting="limit: sqlite3 at NORMAL, a look each millisecond",
        ),
        "datagram FULL": Part(
            run=bare("FULL", datagram=True),
            setting="limit: sqlite3 at FULL, a datagram after the commit; the claim is a commit too",
        ),
        "datagram, then sync": Part(
            run=bare("NORMAL", datagram=True, sync_after=True),
            setting="limit: as durable as FULL when submit returns: commits at NORMAL, the datagram, "
            "then fdatasync of the journal while the worker is on its way",
        ),
        "datagram NORMAL": Part(
            run=bare("NORMAL", datagram=True), setting="limit: the same, synchronous=normal"
        ),
    },
    checks=(
        Check(label="FULL, p50", ours="FULL", figure="ms_p50", unit="ms", goal=0.3, at_most=True),
        Check(label="FULL, p99", ours="FULL", figure="ms_p99", unit="ms", goal=1.5, at_most=True),
        Check(label="NORMAL, p50", ours="NORMAL", figure="ms_p50", unit="ms", goal=0.3,
              at_most=True),
        Check(label="NORMAL, p99", ours="NORMAL", figure="ms_p99", unit="ms", goal=1.5,
              at_most=True),
        Check(label="FULL, p50 after 1 s of idleness", ours="FULL", figure="idle_ms_p50",
              unit="ms", against_figure="ms_p50", goal=2, at_most=True),
        Check(label="NORMAL, p50 after 1 s of idleness", ours="NORMAL", figure="idle_ms_p50",
              unit="ms", against_figure="ms_p50", goal=2, at_most=True),
        Check(label="idle worker, share of a core", ours="FULL", figure="idle_percent",
              unit="%", goal=0.05, at_most=True),
        Check(label="FULL, p50", ours="FULL", figure="ms_p50", unit="ms", against="huey tuned"),
        Check(label="FULL, p99", ours="FULL", figure="ms_p99", unit="ms", against="huey tuned"),
        Check(label="FULL, p50", ours="FULL", figure="ms_p50", unit="ms",
              against="datagram FULL"),
        Check(label="FULL, p50", ours="FULL", figure="ms_p50", unit="ms",
              against="datagram, then sync"),
        Check(label="NORMAL, p50", ours="NORMAL", figure="ms_p50", unit="ms",
              against="1 ms poll"),
        Check(label="NORMAL, p50", ours="NORMAL", figure="ms_p50", unit="ms",
              against="datagram NORMAL"),
        Check(label="idle worker, share of a core", ours="FULL", figure="idle_percent",
              unit="%", against="huey tuned"),
        Check(label="idle worker, share of a core", ours="FULL", figure="idle_percent",
              unit="%", against="1 ms poll"),
    ),
)  # fmt: skip
