"""Redis: from submit to the start of a single job in another process that is idle."""

from __future__ import annotations

import asyncio
import sys
from importlib import import_module
from typing import Any

from benchmarks import tools, work
from benchmarks.model import Check, Figures, Part, Scenario, Settings
from benchmarks.scenarios.drain import LOSES_RUNNING, WORKER
from benchmarks.scenarios.latency import GAP, WATCHED, measure, measure_ours


def flowrra(settings: Settings) -> Figures:
    with tools.redis_server(), tools.process(*WORKER) as worker:
        return asyncio.run(measure_ours(worker.pid, WATCHED))


def huey(settings: Settings) -> Figures:
    command = ("-m", "huey.bin.huey_consumer", "benchmarks.apps.huey_redis.huey", "--quiet", "-w", "1")
    with tools.redis_server(), tools.process(*command) as worker:
        queue = import_module("benchmarks.apps.huey_redis")

        async def submit() -> Any:
            return queue.stamp()

        async def start(result: Any) -> int:
            return int(result.get(blocking=True, timeout=30))

        return asyncio.run(measure(submit, start, worker.pid, watch=WATCHED / 4))


def blpop(settings: Settings) -> Figures:
    """Measure the minimum: RPUSH in one process, BLPOP in the other."""
    with tools.redis_server() as url, tools.process("-m", "benchmarks.scenarios.redis_latency", url) as worker:
        client: Any = import_module("redis").Redis.from_url(url)

        async def submit() -> Any:
            client.rpush("jobs", 1)

        async def start(_: Any) -> int:
            return int(client.blpop("stamps")[1])

        return asyncio.run(measure(submit, start, worker.pid, watch=0, idle=False))


def serve(url: str) -> None:
    client: Any = import_module("redis").Redis.from_url(url, socket_timeout=None)
    while client.blpop("jobs"):
        client.rpush("stamps", work.stamp())


SCENARIO = Scenario(
    title=f"Redis: submit to start in another, idle process, a job each {GAP * 1000:.0f} ms",
    parts={
        "Flowrra": Part(run=flowrra, needs="flowrra", setting="flowrra worker"),
        "huey": Part(run=huey, needs="huey", setting="RedisHuey, 1 thread (blocking pop)", loses=LOSES_RUNNING),
        "BLPOP": Part(run=blpop, setting="limit: redis-py, RPUSH and BLPOP"),
    },
    checks=(
        Check(label="p50", ours="Flowrra", figure="ms_p50", unit="ms", goal=0.3, at_most=True),
        Check(label="p99", ours="Flowrra", figure="ms_p99", unit="ms", goal=1.0, at_most=True),
        Check(label="p50", ours="Flowrra", figure="ms_p50", unit="ms", against="huey"),
        Check(label="p99", ours="Flowrra", figure="ms_p99", unit="ms", against="huey"),
        Check(label="p50", ours="Flowrra", figure="ms_p50", unit="ms", against="BLPOP"),
        Check(label="idle worker, share of a core", ours="Flowrra", figure="idle_percent", unit="%"),
    ),
)

if __name__ == "__main__":
    serve(sys.argv[1])
