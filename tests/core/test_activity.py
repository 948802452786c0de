"""What a worker tells of its work with its heartbeats, whatever becomes of them; and actions with a name to them."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from flowrra import (
    Activity,
    BrokerError,
    Flowrra,
    Job,
    MemoryBroker,
    Notices,
    Outcome,
    Overview,
    WorkerInfo,
    _Attempt,
    _Tally,
)
from tests.support.apps import eventually, make_app

HAS_PROC = Path("/proc/self/statm").exists()


class Recorder(MemoryBroker):
    """Notes the rows that heartbeats hand over; one that brings some fails as often as it is told to."""

    def __init__(self, failures: int = 0) -> None:
        super().__init__()
        self.failures = failures
        self.told: list[Sequence[Activity]] = []

    async def heartbeat(self, worker: WorkerInfo, *, lease: float, now: float) -> Notices:
        if worker.activity and self.failures:
            self.failures -= 1
            raise BrokerError("the store is away")
        if worker.activity:
            self.told.append(worker.activity)
        return await super().heartbeat(worker, lease=lease, now=now)


def attempts_in(rows: Sequence[Activity]) -> dict[str, int]:
    return {row.task: row.succeeded + row.failed + row.retried for row in rows}


async def run_two(app: Flowrra) -> None:
    @app.task(name="noop")
    async def noop() -> None:
        """Nothing to do."""

    for _ in range(2):
        await app.wait_for_result(await app.submit(noop), timeout=20.0)


async def test_rows_that_could_not_be_told_are_told_by_the_next_heartbeat() -> None:
    broker = Recorder(failures=1)
    app = make_app(broker=broker, heartbeat=0.01)
    async with app:
        await run_two(app)
        await eventually(lambda: bool(broker.told) and attempts_in(broker.told[-1]) == {"noop": 2})
        assert broker.failures == 0
        told = len(broker.told)
        await eventually(lambda: app.worker is not None and app.worker.activity == [])  # quiet again
    assert len(broker.told) == told


async def test_a_worker_that_leaves_tells_the_rest() -> None:
    broker = Recorder()
    app = make_app(broker=broker, heartbeat=5.0)
    async with app:
        await run_two(app)
    assert [attempts_in(rows) for rows in broker.told] == [{"noop": 2}]


def ended(now: float, *endings: str) -> list[tuple[_Attempt, Outcome]]:
    """Attempts that began at `now` and ended so."""
    job = Job("a", "task", submitted=now, started=now, attempt=1)
    outcomes = {
        "success": Outcome.succeed(job, 1),
        "failure": Outcome.fail(job, "why"),
        "retry": Outcome.retry_at(job, now, "why"),
        "release": Outcome.release(job, "why"),
        "cancel": Outcome.cancel(job, "why"),
    }
    run = _Attempt(job, cast("Any", None))  # its queue is not asked
    return [(run, outcomes[ending]) for ending in endings]


def test_a_minute_is_told_whole_when_it_has_changed() -> None:
    tally = _Tally()
    tally.count(ended(60, "success", "failure", "retry", "release", "cancel"), 60)
    (first,) = tally.take(65)
    assert (first.minute, first.succeeded, first.failed, first.retried) == (60, 1, 1, 1)
    assert tally.take(70) == []
    tally.count(ended(119, "success"), 119)
    tally.count(ended(121, "success"), 121)
    assert [(row.minute, row.succeeded) for row in tally.take(122)] == [(60, 2), (120, 1)]
    assert first.succeeded == 1, "what has been handed over changes no more"


def test_a_minute_goes_on_when_the_clock_is_set_back() -> None:
    tally = _Tally()
    for now in (119, 121, 118):
        tally.count(ended(now, "success"), now)
        rows = tally.take(now)
    assert [(row.minute, row.succeeded) for row in rows] == [(60, 2)]


def test_minutes_that_have_been_told_are_forgotten() -> None:
    tally = _Tally()
    for now in range(0, 86_400, 30):
        tally.count(ended(now, "success"), now)
        assert len(tally.take(now)) == 1
    assert len(tally._sums) <= 5


async def test_a_worker_tells_its_memory_where_the_system_does() -> None:
    app = make_app()
    async with app:
        (info,) = await app.broker.workers()
    assert (2**20 < (info.memory or 0) < 2**36) is HAS_PROC


# ---------------------------------------------------------------------------
# Actions with a name to them
# ---------------------------------------------------------------------------


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return {"memory": "memory://", "file": f"sqlite:///{tmp_path}/jobs.db"}[request.param]


async def test_who_cancelled_requeued_and_deleted(url: str) -> None:
    app = make_app(url)

    @app.task
    async def noop() -> None:
        """Nothing to do."""

    async with app.client():
        task_id = await app.submit(noop)
        assert not await app.delete(task_id)
        assert await app.cancel(task_id, by="Ada")
        assert await app.requeue(task_id, by="Grace")
        notes = [(attempt.worker, attempt.error) for attempt in (await app.get_job(task_id)).attempts]
        assert notes == [("Ada", "cancelled"), ("Grace", "requeued")]
        assert await app.cancel(task_id)
        assert await app.delete(task_id)
        assert not await app.delete(task_id)
        assert await app.get_result(task_id) is None


def test_the_same_from_plain_code(tmp_path: Path) -> None:
    app = make_app(f"sqlite:///{tmp_path}/jobs.db")

    @app.task
    async def noop() -> None:
        """Nothing to do."""

    task_id = app.sync.submit(noop)
    assert app.sync.cancel(task_id, by="Ada")
    assert app.sync.requeue(task_id, by="Ada")
    assert app.sync.cancel(task_id)
    assert app.sync.delete(task_id)
    app.sync.close()


class Brief(MemoryBroker):
    """A broker that keeps no activity, and deletes nothing before its time."""

    async def overview(self, since: float | None = None) -> Overview:
        return await super().overview()

    async def remove(
        self, task_ids: Sequence[str] = (), *, by: str | None = None, before: float | None = None, limit: int = 1000
    ) -> Collection[str]:
        return await super().remove(task_ids, by=by, before=before, limit=limit) if before is not None else ()


async def test_a_broker_may_do_less() -> None:
    app = make_app(broker=Brief())
    async with app:
        await run_two(app)
        task_id = await app.registry["noop"].options(delay=60).submit()
        assert await app.cancel(task_id)
        assert await app.requeue(task_id)
        assert await app.broker.activity(0) == []
        assert not await app.delete(task_id)
