"""Redis: how many jobs per second are accepted while no worker runs, and the cost of a claim in a long queue."""

from __future__ import annotations

import asyncio
import time
from importlib import import_module
from typing import Any

from benchmarks import tools, work
from benchmarks.model import Check, Figures, Part, Scenario, Settings
from benchmarks.scenarios import enqueue
from benchmarks.scenarios.drain import GROUP
from benchmarks.scenarios.enqueue import MANY, SEQUENTIAL, WARM

LONG = 200_000
LONGEST = 1_000_000  # with --full
CLAIMS = 300
UNCOUNTED = 100  # claims to skip while the server still collects garbage of large pushes
CLAIMED = 10
SHORT = (UNCOUNTED + CLAIMS) * CLAIMED + 1_000


def flowrra(settings: Settings) -> Figures:
    with tools.redis_server():
        return asyncio.run(enqueue.measure())


def backlog(settings: Settings) -> Figures:
    """Return the microseconds for a claim of ten jobs and its settle, by the length of the queue."""
    with tools.redis_server():
        return asyncio.run(measure_backlog(LONGEST if settings.full else LONG))


async def measure_backlog(most: int) -> Figures:
    from benchmarks.apps import ours

    async with ours.app.client():
        await ours.app.submit_many(ours.noop, ((n,) for n in range(SHORT)))
        few = await claim_cost(ours.app.broker)
        for _ in range(most // 50_000):
            await ours.app.submit_many(ours.noop, ((n,) for n in range(50_000)))
        return {"few": few, "many": await claim_cost(ours.app.broker)}


async def claim_cost(broker: Any) -> float:
    """Return the median, in microseconds."""
    flow = import_module("flowrra")
    now = time.time()
    await broker.heartbeat(flow.WorkerInfo("bench"), lease=600, now=now)
    costs = []
    for _ in range(UNCOUNTED + CLAIMS):
        begin = time.perf_counter()
        jobs = await broker.claim("default", limit=CLAIMED, worker="bench", now=now)
        await broker.settle([flow.Outcome.succeed(job, None) for job in jobs], now=now)
        costs.append((time.perf_counter() - begin) * 1e6)
    return tools.percentile(costs[UNCOUNTED:], 0.5)


def saq(settings: Settings) -> Figures:
    with tools.redis_server():
        return asyncio.run(measure_saq())


async def measure_saq() -> Figures:
    queue = import_module("benchmarks.apps.saq_redis").queue
    for n in range(WARM):
        await queue.enqueue("noop", n=n)
    begin = time.perf_counter()
    for n in range(SEQUENTIAL):
        await queue.enqueue("noop", n=n)
    rate = SEQUENTIAL / (time.perf_counter() - begin)
    await queue.disconnect()
    return {"sequential": rate}


def rq(settings: Settings) -> Figures:
    with tools.redis_server() as url:
        module = import_module("rq")
        queue = module.Queue(connection=import_module("redis").Redis.from_url(url))
        rate = 0.0
        for jobs in (WARM, MANY // 3):
            begin = time.perf_counter()
            queue.enqueue_many([queue.prepare_data(work.noop, args=(n,)) for n in range(jobs)])
            rate = jobs / (time.perf_counter() - begin)
        return {"many": rate}


def raw(settings: Settings) -> Figures:
    """Write a hash with the minimum of a job and its id in a list; a thousand for each pipeline, and one."""
    with tools.redis_server() as url:
        client: Any = import_module("redis").Redis.from_url(url)
        begin = time.perf_counter()
        for n in range(SEQUENTIAL):
            insert(client, range(n, n + 1))
        alone = SEQUENTIAL / (time.perf_counter() - begin)
        begin = time.perf_counter()
        for start in range(SEQUENTIAL, SEQUENTIAL + MANY, GROUP):
            insert(client, range(start, start + GROUP))
        return {"sequential": alone, "many": MANY / (time.perf_counter() - begin)}


def insert(client: Any, numbers: range) -> None:
    pipeline = client.pipeline(transaction=False)
    for n in numbers:
        row = {"task": "benchmarks.noop", "args": f"[[{n}],{{}}]", "status": "pending", "submitted": "1700000000.5"}
        pipeline.hset(f"job:{n:032x}", mapping=row)
        pipeline.rpush("queue", f"{n:032x}")
    pipeline.execute()


SCENARIO = Scenario(
    title="Redis: submit, and claim from a long queue",
    parts={
        "Flowrra": Part(run=flowrra, needs="flowrra", setting="app.client(), one process"),
        "backlog": Part(
            run=backlog,
            needs="flowrra",
            setting=f"us for a claim and settle of {CLAIMED} jobs, {SHORT:,} in the queue and {LONG:,} "
            f"(with --full {LONGEST:,}) more",
        ),
        "saq": Part(run=saq, needs="saq", setting="Queue.enqueue, one after the other"),
        "rq": Part(run=rq, needs="rq", setting="enqueue_many"),
        "raw": Part(run=raw, setting="limit: redis-py, an HSET and an RPUSH a job; 1 and 1,000 jobs a pipeline"),
    },
    checks=(
        Check(label="submit_many", ours="Flowrra", figure="many", goal=75_000),
        Check(label="submit_many", ours="Flowrra", figure="many", against="rq", goal=3),
        Check(label="submit_many", ours="Flowrra", figure="many", against="raw"),
        Check(label="one after the other", ours="Flowrra", figure="sequential", against="saq", goal=1),
        Check(label="one after the other", ours="Flowrra", figure="sequential", against="raw"),
        Check(label="64 submitters", ours="Flowrra", figure="concurrent"),
        Check(label="a claim, long queue against short", ours="backlog", figure="many", unit="us",
              against_figure="few", goal=1.3, at_most=True),
    ),
)  # fmt: skip
