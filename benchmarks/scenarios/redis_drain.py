"""Redis: worker processes, started as users would, empty a queue of jobs that do nothing.

The time is measured as in `drain`. Every part has its own Redis server, which writes nothing to disk.
"""

from __future__ import annotations

import asyncio
import functools
import time
from contextlib import ExitStack
from importlib import import_module
from typing import TYPE_CHECKING, Any

from benchmarks import tools
from benchmarks.model import Check, Figures, Part, Scenario, Settings
from benchmarks.scenarios.drain import CONCURRENCY, LOSES_RUNNING, busy_cores, drained, start_workers

if TYPE_CHECKING:
    from collections.abc import Callable

OURS = 60_000
PEERS = 12_000
RAW = 100_000
GROUP = 100


def flowrra(workers: int) -> Callable[[Settings], Figures]:
    def run(settings: Settings) -> Figures:
        with tools.redis_server():
            return drained(workers, OURS)

    return run


def drained_by(command: tuple[str, ...], wait: Callable[[], None]) -> Figures:
    """Return the jobs per second of one worker of another queue, until `wait` returns."""
    marks = tools.marks_folder()
    with ExitStack() as stack:
        start_workers(stack, 1, *command, marks=marks)
        wait()
        end = time.monotonic_ns()
    return {"jobs": tools.rate(tools.read_marks(marks), PEERS, end)}


def huey(threads: int) -> Callable[[Settings], Figures]:
    def run(settings: Settings) -> Figures:
        with tools.redis_server():
            queue = import_module("benchmarks.apps.huey_redis")
            for n in range(PEERS):
                queue.noop(n)
            command = ("-m", "huey.bin.huey_consumer", "benchmarks.apps.huey_redis.huey", "--quiet", "-w", str(threads))
            storage = queue.huey.storage
            return drained_by(
                command, lambda: tools.wait_until(lambda: storage.result_store_size() == PEERS, pause=0.02)
            )

    return run


def dramatiq(settings: Settings) -> Figures:
    with tools.redis_server():
        queue = import_module("benchmarks.apps.dramatiq_redis")
        messages = [queue.noop.send(n) for n in range(PEERS)]

        def is_done(message: Any) -> bool:
            try:
                message.get_result(block=False)
            except queue.results.ResultMissing:
                return False
            return True

        def wait() -> None:  # a blocking read would be longer than redis-py's socket time-out
            for message in reversed(messages[-400:]):
                tools.wait_until(functools.partial(is_done, message))

        command = ("-m", "dramatiq", "benchmarks.apps.dramatiq_redis", "-p", "1", "-t", "8")
        return drained_by(command, wait)


def saq(settings: Settings) -> Figures:
    with tools.redis_server() as url:
        queue = import_module("benchmarks.apps.saq_redis").queue

        async def enqueue() -> None:
            for n in range(PEERS):
                await queue.enqueue("noop", n=n)
            await queue.disconnect()

        asyncio.run(enqueue())
        client: Any = import_module("redis").Redis.from_url(url)
        command = ("-m", "saq", "benchmarks.apps.saq_redis.settings", "--quiet")
        return drained_by(
            command, lambda: tools.wait_until(lambda: not client.zcard("saq:default:incomplete"), pause=0.02)
        )


def raw(settings: Settings) -> Figures:
    """Measure a client that takes a hundred ids, writes as many results, and does nothing else."""
    with tools.redis_server() as url:
        client: Any = import_module("redis").Redis.from_url(url)
        for start in range(0, RAW, 1000):
            client.rpush("queue", *range(start, start + 1000))
        begin = time.perf_counter()
        while ids := client.lpop("queue", GROUP):
            pipeline = client.pipeline(transaction=False)
            for task_id in ids:
                pipeline.hget("jobs", task_id)
                pipeline.set(b"result:" + task_id, task_id, ex=86_400)
            pipeline.execute()
        return {"jobs": RAW / (time.perf_counter() - begin)}


SCENARIO = Scenario(
    title="Redis: a worker process drains a queue of no-op jobs, results kept",
    parts={
        "Flowrra": Part(run=flowrra(1), needs="flowrra", setting=f"flowrra worker --concurrency {CONCURRENCY}"),
        "Flowrra, 2 workers": Part(
            run=flowrra(2), needs="flowrra", setting="two worker processes, from the time both are at it"
        ),
        "huey": Part(run=huey(1), needs="huey", setting="RedisHuey, 1 thread", loses=LOSES_RUNNING),
        "huey, 4 threads": Part(run=huey(4), needs="huey", setting="the same, 4 threads", loses=LOSES_RUNNING),
        "dramatiq": Part(run=dramatiq, needs="dramatiq", setting="one process of 8 threads, results in Redis"),
        "saq": Part(run=saq, needs="saq", setting="concurrency 50"),
        "raw": Part(run=raw, setting="limit: redis-py, 100 jobs a pipeline: read one, write its result"),
    },
    checks=(
        Check(label="1 worker", ours="Flowrra", figure="jobs", goal=20_000),
        Check(label="1 worker", ours="Flowrra", figure="jobs", against="huey", goal=3),
        Check(label="1 worker", ours="Flowrra", figure="jobs", against="huey, 4 threads", goal=3),
        Check(label="1 worker", ours="Flowrra", figure="jobs", against="dramatiq", goal=4),
        Check(label="1 worker", ours="Flowrra", figure="jobs", against="saq"),
        Check(label="2 workers", ours="Flowrra, 2 workers", figure="jobs", against="Flowrra", goal=1.2),
        busy_cores("1 worker", "Flowrra"),
        busy_cores("2 workers", "Flowrra, 2 workers"),
        Check(label="1 worker", ours="Flowrra", figure="jobs", against="raw"),
    ),
)
