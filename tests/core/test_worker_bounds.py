"""How far a worker goes ahead of what is written: it claims no more than a crash may repeat, and settles in groups."""

import asyncio
import collections
from collections.abc import Sequence
from pathlib import Path

import pytest

import flowrra
from flowrra import Config, ExecutorConfig, Flowrra, Job, MemoryBroker, Outcome, TaskStatus
from tests.support.apps import eventually
from tests.support.processes import site_on, some_succeeded, stand_in


class Slow(MemoryBroker):
    """One that writes nothing before it may, and counts what it hands out and takes back."""

    def __init__(self) -> None:
        super().__init__()
        self.claimed = 0
        self.groups: list[int] = []
        self.may_settle = asyncio.Event()

    async def claim(self, queue: str, *, limit: int, worker: str, now: float, crashes: int = 2) -> list[Job]:
        jobs = await super().claim(queue, limit=limit, worker=worker, now=now, crashes=crashes)
        self.claimed += len(jobs)
        return jobs

    async def settle(self, outcomes: Sequence[Outcome], *, now: float) -> list[bool]:
        self.groups.append(len(outcomes))
        await self.may_settle.wait()
        return await super().settle(outcomes, now=now)


@pytest.mark.parametrize(("capacity", "most"), [(1, 21), (5, 25), (30, 90)])
async def test_no_more_is_claimed_than_the_slots_and_two_rounds(capacity: int, most: int) -> None:
    broker = Slow()
    app = Flowrra(Config(executor=ExecutorConfig(queues={"default": capacity})), broker=broker)

    @app.task
    async def nap(seconds: float) -> None:
        await asyncio.sleep(seconds)

    async with app:
        jobs = await app.submit_many(nap, [(0.0,)] * 100)
        await eventually(lambda: broker.claimed == most)
        await asyncio.sleep(0.05)
        assert broker.claimed == most
        broker.may_settle.set()
        for job in jobs:
            await app.wait_for_result(job, timeout=20.0)
    assert broker.claimed == 100
    assert max(broker.groups) <= most


async def test_a_slow_queue_does_not_hold_up_another() -> None:
    """The bound is a queue's own."""
    broker = Slow()
    app = Flowrra(Config(executor=ExecutorConfig(queues={"one": 1, "two": 1})), broker=broker)
    ran: list[str] = []

    @app.task
    async def note(word: str) -> None:
        ran.append(word)

    async with app:
        await app.submit_many(note.options(queue="one"), [("one",)] * 30)
        await eventually(lambda: ran == ["one"] * 21)
        await note.options(queue="two").submit("two")
        await eventually(lambda: ran == ["one"] * 21 + ["two"])
        broker.may_settle.set()


async def test_outcomes_are_settled_in_groups_of_a_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flowrra, "_GROUP", 10)
    broker = Slow()
    app = Flowrra(Config(executor=ExecutorConfig(queues={"default": 40})), broker=broker)

    @app.task
    async def noop() -> None: ...

    async with app:
        jobs = await app.submit_many(noop, [()] * 100)
        await eventually(lambda: broker.claimed == 60)
        broker.may_settle.set()
        for job in jobs:
            await app.wait_for_result(job, timeout=20.0)
    assert max(broker.groups) == 10


async def test_one_outcome_that_is_refused_costs_its_neighbours_little() -> None:
    class Picky(Slow):
        async def settle(self, outcomes: Sequence[Outcome], *, now: float) -> list[bool]:
            self.groups.append(len(outcomes))
            await self.may_settle.wait()
            if any(outcome.result == 7 for outcome in outcomes):
                raise RuntimeError("not 7")
            return await MemoryBroker.settle(self, outcomes, now=now)

    broker = Picky()
    app = Flowrra(Config(executor=ExecutorConfig(queues={"default": 64})), broker=broker)

    @app.task(max_retries=0)
    async def same(number: int) -> int:
        return number

    async with app:
        jobs = await app.submit_many(same, [(n,) for n in range(100)])
        await eventually(lambda: broker.claimed == 100)
        broker.may_settle.set()
        results = [await app.wait_for_result(job, timeout=20.0) for job in jobs]
    assert [n for n, result in enumerate(results) if not result.is_success] == [7]
    assert "its outcome was refused: RuntimeError: not 7" in (results[7].error or "")
    assert len(broker.groups) < 30


@pytest.mark.parametrize("broker", ["sqlite", "redis", "postgresql"])
async def test_a_kill_repeats_at_most_what_ran_and_two_rounds(broker: str, tmp_path: Path) -> None:
    """Of what the dead worker holds, ten ran, and twenty may have ended without being written."""
    with site_on(broker, tmp_path) as site:
        async with site.client() as app:
            await app.submit_many(stand_in(app, "app.nap"), [(0.005,)] * 2_000)
            for kills in range(2):
                worker = await site.worker("--concurrency", "10")
                await some_succeeded(app, 100 * (kills + 1))
                await worker.kill()
                held = await app.jobs(status=TaskStatus.RUNNING, limit=1_000)
                assert max(collections.Counter(job.worker for job in held).values(), default=0) <= 30
