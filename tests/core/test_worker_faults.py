"""The worker when what is around it fails: unknown tasks, lost leases, a broker that is away, a blocked loop."""

import asyncio
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import flowrra
from flowrra import (
    BrokerError,
    Flowrra,
    Job,
    MemoryBroker,
    Notices,
    Outcome,
    Progress,
    TaskStatus,
    WorkerInfo,
    current_job,
)
from tests.support.apps import MovableClock, eventually, make_app, within


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return {"memory": "memory://", "file": f"sqlite:///{tmp_path}/jobs.db"}[request.param]


# ---------------------------------------------------------------------------
# Unknown tasks
# ---------------------------------------------------------------------------


def push_unknown(app: Flowrra, task_id: str) -> Any:
    """A job as a newer version of the program would submit it."""
    return app.broker.push([Job(task_id, "brand.new", (4,), {})], now=app.now())


async def test_a_job_of_an_unknown_task_waits_for_a_worker_that_knows_it(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    clock = MovableClock()
    app = make_app(url, clock=clock)

    async def is_handed_back(task_id: str) -> bool:
        return (await app.get_job(task_id)).status is TaskStatus.SCHEDULED

    async with app:
        for task_id in ("first", "second"):
            await push_unknown(app, task_id)
            await eventually(lambda task_id=task_id: is_handed_back(task_id))
        job = await app.get_job("first")

        @app.task(name="brand.new")
        async def brand_new(number: int) -> int:
            return number + 1

        clock.wall_offset += 16
        await app.broker.set_queue("default", paused=False)
        result = await app.wait_for_result("first", timeout=20.0)
    assert (job.failures, job.crashes) == (0, 0)
    assert [(a.outcome, a.error) for a in job.attempts] == [("release", "no task 'brand.new' in this worker")]
    assert (result.result, result.status) == (5, TaskStatus.SUCCESS)
    warnings = [text for text in caplog.messages if "does not know the task 'brand.new'" in text]
    assert len(warnings) == 1, "it is said once, not for each job"


# ---------------------------------------------------------------------------
# Leases
# ---------------------------------------------------------------------------


async def test_what_a_worker_settles_after_its_lease_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    clock = MovableClock()
    app = make_app(clock=clock, heartbeat=5.0, lease=10.0)
    begun, go = asyncio.Event(), asyncio.Event()

    @app.task
    async def slow() -> str:
        begun.set()
        await go.wait()
        return "of the worker that was late"

    async with app:
        task_id = await app.submit(slow)
        await begun.wait()
        # No turn of the loop from here to the claim, so that no heartbeat of the late worker comes between.
        clock.boot_offset += 11
        other = WorkerInfo("other", queues={"default": 1})
        notices = await app.broker.heartbeat(other, lease=60, now=app.now())
        (job,) = await app.broker.claim("default", limit=1, worker="other", now=app.now())
        assert app.worker is not None
        assert notices.lost_workers == [app.worker.id]
        go.set()
        await eventually(lambda: "its lease was lost, so this attempt changes nothing" in caplog.text)
        assert await app.broker.settle([Outcome.succeed(job, "of its successor")], now=app.now()) == [True]
        result = await app.wait_for_result(task_id, timeout=20.0)
    assert (result.result, result.attempts, job.crashes) == ("of its successor", 2, 1)


async def test_a_worker_that_hears_of_its_lost_lease_drops_its_jobs(caplog: pytest.LogCaptureFixture) -> None:
    """What the store still counts as running here, as it was claimed a moment ago, goes back and does not stay so."""
    app = make_app()
    begun, ended = asyncio.Event(), asyncio.Event()

    @app.task
    async def slow() -> int:
        begun.set()
        try:
            if current_job().attempt == 1:
                await asyncio.Event().wait()
        finally:
            ended.set()
        return current_job().attempt

    async with app:
        task_id = await app.submit(slow)
        await begun.wait()
        worker = app.sessions.worker()
        assert worker is not None
        worker.handle_notices(Notices(lapsed=True), worker.attempts())
        await within(ended.wait())
        assert "lost its lease: its attempts are dropped, and their jobs run again" in caplog.text
        assert (await app.wait_for_result(task_id, timeout=20.0)).result == 2


# ---------------------------------------------------------------------------
# A broker that is away for a while
# ---------------------------------------------------------------------------


class Shaky(MemoryBroker):
    """Raises BrokerError from the methods in `broken`, and counts how often."""

    def __init__(self) -> None:
        super().__init__()
        self.broken: set[str] = set()
        self.failures: dict[str, int] = {}

    def _check(self, method: str) -> None:
        if method in self.broken:
            self.failures[method] = self.failures.get(method, 0) + 1
            raise BrokerError(f"{method}: the store is away")

    async def claim(self, queue: str, **options: Any) -> list[Job]:
        self._check("claim")
        return await super().claim(queue, **options)

    async def settle(self, outcomes: Sequence[Outcome], *, now: float) -> list[bool]:
        if "report" in self.broken and any(outcome.progress is not None for outcome in outcomes):
            self.broken.discard("report")
            raise RuntimeError("a bug of the broker")
        self._check("settle")
        return await super().settle(outcomes, now=now)

    async def heartbeat(self, worker: WorkerInfo, *, lease: float, now: float) -> Notices:
        self._check("heartbeat")
        return await super().heartbeat(worker, lease=lease, now=now)


@pytest.fixture
def broker() -> Shaky:
    return Shaky()


@pytest.fixture
def app(broker: Shaky) -> Flowrra:
    return make_app(broker=broker, io_workers=1)


async def test_claims_are_tried_again_loudly(app: Flowrra, broker: Shaky, caplog: pytest.LogCaptureFixture) -> None:
    @app.task
    async def note() -> str:
        return "done"

    async with app:
        broker.broken = {"claim"}
        task_id = await app.submit(note)
        await eventually(lambda: broker.failures.get("claim", 0) >= 2)
        broker.broken.clear()
        assert (await app.wait_for_result(task_id, timeout=20.0)).result == "done"
    assert "claim: the store is away (failure 1 in a row; trying again)" in caplog.text
    assert "claim: the store is away (failure 2 in a row; trying again)" in caplog.text
    assert {record.levelname for record in caplog.records if "away" in record.getMessage()} == {"ERROR"}


async def test_failures_long_apart_are_not_counted_together(
    broker: Shaky, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flowrra, "_WELL", 0.0)  # any time is long
    async with make_app(broker=broker, heartbeat=0.01):
        broker.broken = {"heartbeat"}
        await eventually(lambda: broker.failures.get("heartbeat", 0) >= 3)
        broker.broken.clear()
    assert caplog.text.count("heartbeat: the store is away (failure 1 in a row") >= 2
    assert "failure 2 in a row" not in caplog.text


async def test_running_jobs_go_on_and_are_settled_when_the_broker_is_back(app: Flowrra, broker: Shaky) -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    @app.task
    async def work() -> str:
        begun.set()
        await go.wait()
        return "kept"

    async with app:
        task_id = await app.submit(work)
        await begun.wait()
        broker.broken = {"settle", "claim", "heartbeat"}
        go.set()
        await eventually(lambda: broker.failures.get("settle", 0) >= 2)
        broker.broken.clear()
        result = await app.wait_for_result(task_id, timeout=20.0)
    assert (result.result, result.attempts) == ("kept", 1)


async def test_a_stop_does_not_hang_on_a_broker_that_is_away(app: Flowrra, broker: Shaky) -> None:
    @app.task
    async def note() -> None:
        """Nothing to do."""

    await app.start()
    await app.wait_for_result(await app.submit(note), timeout=20.0)
    broker.broken = {"settle", "claim", "heartbeat"}
    await within(app.stop())
    assert not app.is_running


async def test_a_loop_of_the_worker_that_fails_begins_again(
    app: Flowrra, broker: Shaky, caplog: pytest.LogCaptureFixture
) -> None:
    done = asyncio.Event()

    @app.task
    async def work() -> None:
        for step in range(1000):
            current_job().progress(step)
            if done.is_set():
                return
            await asyncio.sleep(0.01)

    async def shows_progress() -> bool:
        return (await app.get_job(task_id)).progress is not None

    async with app:
        broker.broken = {"report"}
        task_id = await app.submit(work)
        await eventually(shows_progress)
        done.set()
    (record,) = [record for record in caplog.records if "unexpected error; continuing" in record.getMessage()]
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "a bug of the broker"


async def test_progress_that_could_not_be_written_is_written_later(app: Flowrra, broker: Shaky) -> None:
    done = asyncio.Event()

    @app.task
    async def work() -> None:
        current_job().progress(7)  # once and never again
        await done.wait()

    async def is_shown() -> bool:
        return (await app.get_job(task_id)).progress == Progress(7)

    async with app:
        broker.broken = {"report"}
        task_id = await app.submit(work)
        await eventually(is_shown)
        assert broker.broken == set()
        done.set()


async def test_an_outcome_that_the_broker_refuses_fails_alone(caplog: pytest.LogCaptureFixture) -> None:
    class Picky(MemoryBroker):
        async def settle(self, outcomes: Sequence[Outcome], *, now: float) -> list[bool]:
            if any(outcome.result == "bad" for outcome in outcomes):
                raise ValueError("I do not keep such a thing")
            return await super().settle(outcomes, now=now)

    app = make_app(broker=Picky())

    @app.task
    async def give(value: str) -> str:
        return value

    async with app:
        ids = await app.submit_many(give, [("good",), ("bad",), ("good",)])
        results = [await app.wait_for_result(task_id, timeout=20.0) for task_id in ids]
    assert [result.result for result in results] == ["good", None, "good"]
    assert results[1].error == "its outcome was refused: ValueError: I do not keep such a thing"


# ---------------------------------------------------------------------------
# The log
# ---------------------------------------------------------------------------


class Listener(logging.Handler):
    """Sets `heard` when a record holds `text`, from whichever thread."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.heard = threading.Event()
        self.message = ""
        self._text = text

    def emit(self, record: logging.LogRecord) -> None:
        if self._text in record.getMessage():
            self.message = record.getMessage()
            self.heard.set()


async def test_a_blocked_loop_is_reported_with_what_blocks_it() -> None:
    app = make_app()
    listener = Listener("the event loop has been blocked")

    @app.task(name="block")
    async def block_the_loop() -> bool:
        return listener.heard.wait(20)

    logger = logging.getLogger("flowrra")
    logger.addHandler(listener)
    try:
        async with app:
            task_id = await app.submit(block_the_loop)
            assert (await app.wait_for_result(task_id, timeout=30.0)).result is True
    finally:
        logger.removeHandler(listener)
    assert f"jobs running: {task_id} (block)" in listener.message
    assert "return listener.heard.wait(20)" in listener.message


async def test_records_carry_the_job(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "flowrra")
    app = make_app()

    @app.task(name="twice", retry_delay=0.0)
    async def twice() -> None:
        if current_job().attempt == 1:
            raise ConnectionError("no answer")

    async with app:
        task_id = await app.submit(twice)
        await app.wait_for_result(task_id, timeout=20.0)
        await eventually(lambda: "attempt 2" in caplog.text)
    records = [record for record in caplog.records if hasattr(record, "job_id")]
    assert {record.name for record in records} == {"flowrra"}
    assert [(record.levelname, vars(record)["attempt"]) for record in records] == [("WARNING", 1), ("INFO", 2)]
    for record in records:
        assert (vars(record)["job_id"], vars(record)["task"]) == (task_id, "twice")
        assert 0 <= vars(record)["duration"] < 60
    assert records[0].getMessage().endswith(": ConnectionError: no answer")


PROGRAM = """
import asyncio
from flowrra import Flowrra
app = Flowrra.from_urls("URL")

@app.task(max_retries=1, retry_delay=0.0)
async def fail() -> None:
    raise ConnectionError("no answer")

@app.on("failure")
def broken(event):
    raise RuntimeError("hook is broken")

async def main() -> None:
    async with app:
        await app.broker.push([Job("unknown", "not.known")], now=app.now())
        result = await app.wait_for_result(await app.submit(fail), timeout=20.0)
        assert result.attempts == 2, result

from flowrra import Job
asyncio.run(main())
"""


@pytest.mark.parametrize("url", ["memory://", "sqlite:///jobs.db"])
def test_the_library_prints_nothing(url: str, tmp_path: Path) -> None:
    """Not even where the program sets up no logging, and Python prints warnings on its own account."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("URL", url)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=40,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
