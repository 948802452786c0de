"""In memory: submit, run and read back jobs that do nothing, in waves and one by one."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from importlib import import_module
from typing import TYPE_CHECKING, Any

from benchmarks import work
from benchmarks.model import Check, Figures, Part, Scenario, Settings
from benchmarks.peers import OLD
from benchmarks.tools import spread

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

WAVE = 1_000
WAVES = 20
SLOW_WAVES = 8
ALIVE = 20_000
LONE = 200


async def jobs_a_second(
    submit: Callable[[int], Awaitable[Any]],
    read: Callable[[Any], Awaitable[Any]],
    *,
    waves: int = WAVES,
    wave: int = WAVE,
) -> float:
    """Run a warm-up and then the waves that count."""
    begin = 0.0
    for number in range(waves + 1):
        if number == 1:
            begin = time.perf_counter()
        handles = [await submit(n) for n in range(wave)]
        for handle in handles:
            await read(handle)
    return waves * wave / (time.perf_counter() - begin)


async def lone_latency(submit: Callable[[], Awaitable[Any]], read: Callable[[Any], Awaitable[int]]) -> Figures:
    """Measure from just before submit to the start of the job. Each job is alone, and the loop was idle."""
    found = []
    for _ in range(LONE):
        await asyncio.sleep(0.002)
        begin = work.stamp()
        started = await read(await submit())
        found.append((started - begin) / 1e6)
    return spread("lone_ms", found[LONE // 10 :])


def flowrra(settings: Settings) -> Figures:
    from benchmarks.apps import ours

    async def measure() -> Figures:
        async def value(job: Any) -> int:
            result: Any = await ours.app.wait_for_result(job, timeout=10)
            return int(result.result)

        async with ours.app:
            jobs = await jobs_a_second(lambda n: ours.app.submit(ours.noop, n), ours.app.wait_for_result)
            return {"jobs": jobs, **await lone_latency(lambda: ours.app.submit(ours.stamp), value)}

    return asyncio.run(measure())


def old_flowrra(settings: Settings) -> Figures:
    flowrra: Any = import_module("flowrra")
    executor = flowrra.ExecutorConfig(io_workers=32, max_queue_size=100_000)
    app = flowrra.Flowrra(flowrra.Config(executor=executor))

    async def noop(n: int) -> int:
        return work.noop(n)

    async def stamp() -> int:
        return work.stamp()

    async def value(job: Any) -> int:
        return int((await app.wait_for_result(job, timeout=10)).result)

    async def measure() -> Figures:
        tasks = app.task()(noop), app.task()(stamp)
        async with app:
            jobs = await jobs_a_second(lambda n: app.submit(tasks[0], n), app.wait_for_result, waves=SLOW_WAVES)
            return {"jobs": jobs, **await lone_latency(lambda: app.submit(tasks[1]), value)}

    return asyncio.run(measure())


def huey(settings: Settings) -> Figures:
    """huey uses threads and no event loop; its pauses are the shortest useful ones."""
    queue: Any = import_module("huey").MemoryHuey()
    noop, stamp = queue.task()(work.noop), queue.task()(work.stamp)
    consumer = import_module("huey.consumer").Consumer(
        queue, workers=1, periodic=False, initial_delay=0.01, max_delay=0.01
    )

    async def submit(n: int) -> Any:
        return noop(n)

    async def read(result: Any) -> Any:
        return result.get(blocking=True, backoff=1.0, max_delay=0.0005)

    async def measure() -> Figures:
        return {"jobs": await jobs_a_second(submit, read, waves=SLOW_WAVES)}

    for _, thread in consumer.worker_threads:
        thread.start()
    figures = asyncio.run(measure())
    consumer.stop_flag.set()
    return figures | huey_lone(queue, stamp)


def huey_lone(queue: Any, stamp: Any) -> Figures:
    """Use a second consumer that polls every millisecond, which would lower the rate."""
    consumer = import_module("huey.consumer").Consumer(
        queue, workers=1, periodic=False, initial_delay=0.001, max_delay=0.001
    )
    for _, thread in consumer.worker_threads:
        thread.start()

    async def submit() -> Any:
        return stamp()

    async def read(result: Any) -> int:
        return int(result.get(blocking=True, backoff=1.0, max_delay=0.001))

    figures = asyncio.run(lone_latency(submit, read))
    consumer.stop_flag.set()
    return figures


def taskiq(settings: Settings) -> Figures:
    # await_inplace would run the job inside the submit: faster here, but no queue at all.
    broker: Any = import_module("taskiq").InMemoryBroker(max_stored_results=-1, cast_types=False, max_async_tasks=WAVE)

    async def noop(n: int) -> int:
        return work.noop(n)

    async def stamp() -> int:
        return work.stamp()

    async def read(handle: Any) -> int:
        return int((await handle.wait_result(check_interval=0.0005)).return_value)

    async def measure() -> Figures:
        tasks = [broker.register_task(f, task_name=f.__name__) for f in (noop, stamp)]
        await broker.startup()
        jobs = await jobs_a_second(tasks[0].kiq, read, waves=SLOW_WAVES)
        figures = {"jobs": jobs, **await lone_latency(tasks[1].kiq, read)}
        await broker.shutdown()
        return figures

    return asyncio.run(measure())


async def _noop(n: int) -> int:
    return work.noop(n)


async def _stamp() -> int:
    return work.stamp()


def task_each(wave: int) -> Callable[[Settings], Figures]:
    """The limit of the loop: no queue, one asyncio.Task for each job, `wave` of them at a time."""

    async def submit(n: int) -> asyncio.Task[int]:
        return asyncio.create_task(_noop(n))

    async def submit_stamp() -> asyncio.Task[int]:
        return asyncio.create_task(_stamp())

    async def read(task: asyncio.Task[int]) -> int:
        return await task

    async def measure() -> Figures:
        waves = max(2, 60_000 // wave)
        jobs = await jobs_a_second(submit, read, waves=waves, wave=wave)
        return {"jobs": jobs, **await lone_latency(submit_stamp, read)}

    return lambda settings: asyncio.run(measure())


class Slip:
    """The smallest object that can be called a job."""

    __slots__ = ("finished", "id", "n", "result", "started", "submitted")

    def __init__(self, n: int, number: int) -> None:
        self.n = n
        self.id = f"{number:032x}"
        self.submitted = time.time()
        self.started = self.finished = 0.0
        self.result: int | None = None


def plain_deque(settings: Settings) -> Figures:
    """Measure the cost of a job object itself, without a loop and without waiting."""
    total = 0
    begin = time.perf_counter()
    for wave in range(WAVES * 3):
        slips = [Slip(n, wave * WAVE + n) for n in range(WAVE)]
        line = deque(slips)
        while line:
            slip = line.popleft()
            slip.started = time.time()
            slip.result = work.noop(slip.n)
            slip.finished = time.time()
        total += sum(1 for slip in slips if slip.result is not None)
    return {"jobs": total / (time.perf_counter() - begin)}


SCENARIO = Scenario(
    title=f"in memory: submit, run and read back, waves of {WAVE:,} no-op jobs",
    rounds=3,
    parts={
        "flowrra": Part(run=flowrra, needs="flowrra", setting="io_workers=100, one process"),
        "huey": Part(
            run=huey,
            needs="huey",
            setting="MemoryHuey, 1 consumer thread; rate: looks every 10 ms, results every 0.5 ms; "
            "lone: looks every 1 ms",
        ),
        OLD: Part(run=old_flowrra, needs=OLD, setting="io_workers=32, queue of 100,000"),
        "taskiq": Part(
            run=taskiq,
            needs="taskiq",
            setting="InMemoryBroker, cast_types=False, 1,000 tasks at once, results every 0.5 ms",
        ),
        "task each": Part(
            run=task_each(ALIVE), setting=f"limit: one asyncio.Task a job, {ALIVE:,} alive"
        ),
        "task each, 100": Part(
            run=task_each(100), setting="limit: one asyncio.Task a job, 100 alive"
        ),
        "deque": Part(run=plain_deque, setting="limit: job objects through a deque, no loop"),
    },
    checks=(
        Check(label="jobs", ours="flowrra", figure="jobs", against="huey", goal=3.5),
        Check(label="jobs", ours="flowrra", figure="jobs", against=OLD, goal=4.0),
        Check(label="jobs", ours="flowrra", figure="jobs", against="taskiq"),
        Check(label="jobs", ours="flowrra", figure="jobs", against="task each"),
        Check(label="jobs", ours="flowrra", figure="jobs", against="task each, 100"),
        Check(label="jobs", ours="flowrra", figure="jobs", against="deque"),
        Check(label="lone job, submit to start, p50", ours="flowrra", figure="lone_ms_p50",
              unit="ms", goal=0.05, at_most=True),
        Check(label="lone job, submit to start, p50", ours="flowrra", figure="lone_ms_p50",
              unit="ms", against="huey"),
        Check(label="lone job, submit to start, p50", ours="flowrra", figure="lone_ms_p50",
              unit="ms", against="taskiq"),
        Check(label="lone job, submit to start, p50", ours="flowrra", figure="lone_ms_p50",
              unit="ms", against="task each, 100"),
    ),
)  # fmt: skip
