"""CPU-bound jobs that are claimed ahead of a free process, and handed back where none becomes free soon."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from flowrra import Config, Event, ExecutorConfig, Flowrra, Job, MemoryBroker, Task, TaskStatus, task_name
from tests.support import cpu_work as work
from tests.support.apps import eventually


class Watched(MemoryBroker):
    """Remembers how many jobs the worker had at most."""

    app: Flowrra
    most = 0

    async def claim(self, queue: str, **options: Any) -> list[Job]:
        jobs = await super().claim(queue, **options)
        worker = self.app.sessions.worker()
        if worker is not None and queue == "cpu":
            self.most = max(self.most, len(jobs) + len(worker.attempts()))
        return jobs

    def running(self) -> list[str]:
        return [task_id for those in self._running.values() for task_id in those]


@contextlib.asynccontextmanager
async def processes(number: int = 1, **options: Any) -> AsyncIterator[tuple[Flowrra, Watched]]:
    broker = Watched()
    config = Config(executor=ExecutorConfig(cpu_workers=number, **options))
    broker.app = Flowrra(config, broker=broker)
    async with broker.app as app:
        yield app, broker


async def run_short_ones(app: Flowrra, number: int) -> None:
    short: Task[..., Any] = app.task(cpu_bound=True)(work.pid)
    ids = await app.submit_many(short, [()] * number)
    assert all([(await app.wait_for_result(task_id, timeout=20)).is_success for task_id in ids])


async def test_a_process_has_its_next_short_job_at_hand() -> None:
    async with processes() as (app, broker):
        await run_short_ones(app, 1)
        assert broker.most == 1, "before it is known that they are short"
        await run_short_ones(app, 20)
        assert broker.most == 2


@pytest.mark.parametrize("is_observed", [False, True])
async def test_what_waits_at_hand_behind_a_long_job_is_handed_back_and_not_claimed_again(
    tmp_path: Path, is_observed: bool
) -> None:
    seen: list[str] = []
    async with processes() as (app, broker):
        if is_observed:

            @app.on("start")
            def note(event: Event) -> None:
                seen.append(event.job.id if event.job else "")

        await run_short_ones(app, 3)
        hold: Task[..., Any] = app.task(cpu_bound=True)(work.wait_for)
        first, second = await app.submit(hold, str(tmp_path / "go")), await app.submit(hold, str(tmp_path / "go"))
        await eventually(lambda: broker._jobs[second].attempt == 1)
        await eventually(lambda: broker._jobs[second].status is TaskStatus.PENDING)
        assert broker.running() == [first]
        worker = app.sessions.worker()
        assert worker is not None
        assert worker._queues["cpu"].room() == 0, "nothing more is claimed while the long one runs"
        (attempt,) = (await app.get_job(second)).attempts
        assert (attempt.outcome, attempt.error) == ("release", "it was claimed in advance, and no process became free")
        (tmp_path / "go").touch()
        assert (await app.wait_for_result(second, timeout=20)).attempts == 2
        assert (await app.wait_for_result(first, timeout=20)).attempts == 1
    assert seen[3:] == [first, second] * is_observed, "no hook hears of an attempt that was handed back"


async def test_a_job_at_hand_that_is_cancelled_never_begins(tmp_path: Path) -> None:
    async with processes() as (app, broker):
        await run_short_ones(app, 3)
        hold: Task[..., Any] = app.task(cpu_bound=True)(work.wait_for)
        touch: Task[..., Any] = app.task(cpu_bound=True)(work.touch)
        first, second = await app.submit(hold, str(tmp_path / "go")), await app.submit(touch, str(tmp_path / "touched"))
        await eventually(lambda: broker._jobs[second].attempt == 1)
        assert await app.cancel(second)
        assert (await app.wait_for_result(second, timeout=20)).status is TaskStatus.CANCELLED
        (tmp_path / "go").touch()
        assert (await app.wait_for_result(first, timeout=20)).is_success
        await run_short_ones(app, 3)  # its place is not lost
        assert not (tmp_path / "touched").exists()


async def test_calls_that_end_die_and_are_cancelled_together_lose_no_process() -> None:
    dice = random.Random(11)  # noqa: S311
    async with processes(2) as (app, _):
        await run_short_ones(app, 5)
        die: Task[..., Any] = app.task(cpu_bound=True, max_retries=0)(work.die)
        short = app.registry[task_name(work.pid)]
        ids = [await (app.submit(short) if number % 12 else app.submit(die, "exit")) for number in range(120)]
        cancelled = dice.sample(ids, 40)
        for task_id in cancelled:
            await app.cancel(task_id)
            await asyncio.sleep(dice.choice((0.0, 0.001, 0.004)))
        for number, task_id in enumerate(ids):
            result: Any = await app.wait_for_result(task_id, timeout=20)
            wanted = TaskStatus.SUCCESS if number % 12 else TaskStatus.FAILED
            assert result.status is wanted or (task_id in cancelled and result.status is TaskStatus.CANCELLED), result
        await run_short_ones(app, 5)
        worker = app.sessions.worker()
        assert worker is not None
        executor = worker.steps.processes
        await eventually(lambda: len(executor._idle) == 2)
        assert (executor._waiting, executor._busy) == ({}, {})


async def test_a_process_whose_call_is_cancelled_before_it_is_sent_is_reaped() -> None:
    async with processes() as (app, _):
        await run_short_ones(app, 3)
        worker = app.sessions.worker()
        assert worker is not None
        executor = worker.steps.processes
        await eventually(lambda: len(executor._idle) == 1)
        (slot,) = executor._idle
        process = slot._process
        assert process is not None
        with slot._in_use:  # so the thread of the call waits here
            task_id = await app.submit(app.registry[task_name(work.pid)])
            await eventually(lambda: slot in executor._busy.values())
            await app.cancel(task_id)
            await eventually(lambda: executor._busy == {})
        await eventually(lambda: process.returncode is not None)
        assert process.stdin is not None
        assert process.stdin.closed
        await run_short_ones(app, 3)


async def test_a_queue_with_more_slots_than_processes_claims_nothing_ahead() -> None:
    async with processes(queues={"cpu": 3}) as (app, broker):
        await run_short_ones(app, 20)
        assert broker.most == 3


async def test_an_async_task_in_the_queue_keeps_its_capacity() -> None:
    async with processes() as (app, broker):
        await run_short_ones(app, 3)
        now = 0
        most = 0

        @app.task(queue="cpu")
        async def nap() -> None:
            nonlocal now, most
            now += 1
            most = max(most, now)
            await asyncio.sleep(0.01)
            now -= 1

        broker.most = 0
        ids = await app.submit_many(nap, [()] * 10)
        assert all([(await app.wait_for_result(task_id, timeout=20)).is_success for task_id in ids])
        assert most <= 2, "one that was claimed ahead, before it was known"
        assert broker.most <= 2
