"""Who is woken on SQLite, by what and when; and what one bad operation costs those who were written with it."""

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import flowrra
from flowrra import BrokerError, Job, Outcome, SQLiteBroker, TaskResult, TaskStatus, WorkerInfo
from flowrra_extras.testing import ManualClock
from tests.support.apps import opened, within

NOW = 1_700_000_000.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@pytest.fixture(autouse=True)
def only_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks by himself: what is not said is not heard."""
    monkeypatch.setattr(flowrra, "_LOOK_EVERY", 3600.0)
    monkeypatch.setattr(flowrra, "_LISTENERS_FRESH", 0.0)


class Waiting:
    """Somebody who waits for jobs of some queues, having looked for them."""

    def __init__(self, broker: SQLiteBroker, *queues: str) -> None:
        self.broker = broker
        self.queues = queues
        self.task: asyncio.Task[None]

    async def begin(self) -> None:
        info = WorkerInfo("w", "host", os.getpid(), dict.fromkeys(self.queues, 1))
        await self.broker.heartbeat(info, lease=600, now=NOW)
        topics = [("queue", queue) for queue in self.queues] or [("worker", "")]
        for _ in range(100):  # who begins to listen looks once more, soon
            for queue in self.queues:
                assert await self.broker.claim(queue, limit=1, worker="w", now=NOW) == []
            self.task = asyncio.create_task(self.broker.wait(topics, 600))
            if not (await asyncio.wait([self.task], timeout=0.03))[0]:
                return
        raise AssertionError("it looks again and again")

    @property
    def is_over(self) -> bool:
        return self.task.done()


@contextlib.contextmanager
def ending(*tasks: asyncio.Task[None]) -> Iterator[None]:
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()


@pytest.mark.parametrize("elsewhere", [False, True], ids=["in this process", "in another"])
async def test_a_push_wakes_those_who_wait_for_its_queue(path: Path, elsewhere: bool) -> None:
    async with opened(path) as one, opened(path) as other:
        mail, both = Waiting(other if elsewhere else one, "mail"), Waiting(one, "default", "mail")
        await mail.begin()
        await both.begin()
        with ending(mail.task, both.task):
            await one.push([Job("a", "t")], now=NOW)
            await one.push([Job(name, "t") for name in "bc"], now=NOW)
            await within(both.task)
            await asyncio.sleep(0.05)
            assert not mail.is_over
            await one.push([Job("d", "t", queue="mail")], now=NOW)
            await within(mail.task)


async def test_what_becomes_ready_wakes_those_of_its_queue(path: Path) -> None:
    """A retry, a release, a child whose parent has succeeded, a requeue, the jobs of a worker that left."""
    async with opened(path) as broker:
        for number, act in enumerate((retry, release, succeed, cancel_and_requeue, leave)):
            queue = f"q{number}"
            await broker.heartbeat(WorkerInfo("other", "host", os.getpid(), {}), lease=600, now=NOW)
            await broker.push([Job(f"p{number}", "t", queue=queue)], now=NOW)
            await broker.push([Job(f"c{number}", "t", queue=queue, parents=(f"p{number}",))], now=NOW)
            (job,) = await broker.claim(queue, limit=1, worker="other", now=NOW)
            waiting, mail = Waiting(broker, queue), Waiting(broker, "mail")
            await waiting.begin()
            await mail.begin()
            with ending(waiting.task, mail.task):
                await act(broker, job)
                await within(waiting.task)
                assert not mail.is_over or act is cancel_and_requeue


async def retry(broker: SQLiteBroker, job: Job) -> None:
    await broker.settle([Outcome.retry_at(job, NOW, "boom")], now=NOW)


async def release(broker: SQLiteBroker, job: Job) -> None:
    await broker.settle([Outcome.release(job, "later")], now=NOW)


async def succeed(broker: SQLiteBroker, job: Job) -> None:
    await broker.settle([Outcome.succeed(job, None)], now=NOW)


async def cancel_and_requeue(broker: SQLiteBroker, job: Job) -> None:
    await broker.settle([Outcome.cancel(job, "why")], now=NOW)
    await broker.requeue([job.id], now=NOW)


async def leave(broker: SQLiteBroker, job: Job) -> None:
    await broker.heartbeat(WorkerInfo("other", "host", os.getpid(), {}), lease=0, now=NOW)


async def test_what_was_not_written_wakes_nobody(path: Path) -> None:
    async with opened(path) as one, opened(path) as other:
        await one.push([Job("a", "t", queue="elsewhere")], now=NOW)
        here, there = Waiting(one, "default"), Waiting(other, "default")
        await here.begin()
        await there.begin()
        with ending(here.task, there.task):
            await one.push([Job("a", "t")], now=NOW)  # it is there already
            with pytest.raises(flowrra.TaskNotFoundError):
                await one.push([Job("b", "t", parents=("nobody",))], now=NOW)
            refused = [one.push([Job(name, "t", parents=("nobody",))], now=NOW) for name in "cde"]
            await asyncio.gather(*refused, return_exceptions=True)
            assert await one.cancel("unknown", now=NOW) is False
            await asyncio.sleep(0.05)
            assert not here.is_over
            assert not there.is_over


async def test_a_look_finds_what_a_lost_message_told_and_heartbeats_wake_nobody(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flowrra._Signals, "_send", lambda *call: None)
    async with opened(path) as one, opened(path) as other:
        waiting = Waiting(one, "default", "mail")
        await waiting.begin()

        async def is_woken() -> bool:
            one._signals._look()
            return bool((await asyncio.wait([waiting.task], timeout=0.05))[0])

        with ending(waiting.task):
            assert not await is_woken()
            await other.heartbeat(WorkerInfo("other", "host", os.getpid(), {}), lease=600, now=NOW)
            assert not await is_woken()
            await other.push([Job("a", "t", queue="elsewhere")], now=NOW)
            assert not await is_woken()
            await other.push([Job("b", "t", queue="mail")], now=NOW)
            assert await is_woken()
            assert len(await one.claim("mail", limit=1, worker="w", now=NOW)) == 1
            await waiting.begin()
            await other.push([Job("c", "t", due=NOW + 3600)], now=NOW)  # its timer is to be set
            assert await is_woken()


async def test_a_keeper_does_not_look_for_commits_but_for_dead_workers_and_the_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(path) as one:
        waiting = Waiting(one)
        await waiting.begin()
        looks: list[object] = []
        monkeypatch.setattr(one, "data_version", lambda: looks.append(None))
        with ending(waiting.task):
            one._signals._look()
            await asyncio.sleep(0.05)
            assert (waiting.is_over, looks) == (False, [])
            gone = WorkerInfo("gone", "host", os.getpid(), {})
            await one.heartbeat(gone, lease=600, now=NOW)
            await one.run(
                flowrra._Operation(
                    lambda table: table._db.execute(
                        "UPDATE flowrra_worker SET birth = 'of an earlier process' WHERE id = 'gone'"
                    )
                )
            )
            one._signals._look()
            await within(waiting.task)
        assert looks == []


async def test_news_come_after_the_commit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who comes sooner finds nothing, or waits for the lock."""
    found: list[int] = []

    def send(signals: Any, port: int, topics: Any) -> None:
        with contextlib.closing(sqlite3.connect(path)) as db:
            found.extend(db.execute("SELECT count(*) FROM flowrra_job").fetchone())

    async with opened(path) as one, opened(path) as other:
        waiting = Waiting(other, "default")
        await waiting.begin()
        monkeypatch.setattr(flowrra._Signals, "_send", send)
        with ending(waiting.task):
            await one.push([Job("a", "t")], now=NOW)
            await one.push([Job("b", "t"), Job("c", "t")], now=NOW)
    assert found[:2] == [1, 3]


# ---------------------------------------------------------------------------
# What fails alone
# ---------------------------------------------------------------------------


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How transactions have ended, in order."""
    seen: list[str] = []

    class Watched(sqlite3.Connection):
        def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
            cursor = super().execute(sql, *values)
            if sql in ("COMMIT", "ROLLBACK"):
                seen.append(sql)
            return cursor

    plain = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **options: plain(*args, factory=Watched, **options))
    return seen


async def test_a_bad_operation_costs_few_transactions(path: Path, ends: list[str]) -> None:
    """Each of the others would else be written, and synced to disk, by itself."""
    bad = TaskResult[Any]("bad", "task", TaskStatus.PENDING, None, finished=1.0)
    async with opened(path) as broker:
        ends.clear()
        calls: list[Any] = [broker.push([Job(f"j{n}", "task")], now=NOW) for n in range(150)]
        calls.insert(100, broker.record([bad]))
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(answers.pop(100), BrokerError)
        assert answers == [[f"j{n}"] for n in range(150)]
        assert len(ends) <= 25, ends


async def test_several_bad_ones_are_each_told(path: Path) -> None:
    async with opened(path) as broker:
        calls = [
            broker.push([Job(f"j{n}", "t", parents=("nobody",) if n % 7 == 0 else ())], now=NOW) for n in range(50)
        ]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        for number, answer in enumerate(answers):
            if number % 7 == 0:
                assert isinstance(answer, flowrra.TaskNotFoundError)
            else:
                assert answer == [f"j{number}"]


async def test_what_a_claim_from_another_queue_makes_ready_wakes_who_waits_for_it() -> None:
    """In a private database, where no look at the file would find it a second later."""
    clock = ManualClock()
    broker = SQLiteBroker(clock=clock)
    await broker.open()
    try:
        await broker.heartbeat(WorkerInfo("w", "host", os.getpid()), lease=60, now=clock.time())
        await broker.push([Job("a", "task", queue="slow", due=clock.time() + 1)], now=clock.time())
        assert await broker.claim("slow", limit=1, worker="w", now=clock.time()) == []
        clock.advance(2)
        assert await broker.claim("default", limit=1, worker="w", now=clock.time()) == []
        async with asyncio.timeout(20):
            await broker.wait([("queue", "slow")], None)
        assert [job.id for job in await broker.claim("slow", limit=1, worker="w", now=clock.time())] == ["a"]
    finally:
        await broker.close()
