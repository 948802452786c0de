"""What is particular to the memory broker."""

import pytest

from flowrra import BrokerConfig, Job, MemoryBroker, Outcome, QueueFullError, WorkerInfo
from tests.apps import make_app, within


async def test_who_has_waited_leaves_nothing_behind() -> None:
    broker = MemoryBroker()
    for queues in (["default", "other"], []):
        await broker.wait_ready(queues, 0.0)
    assert broker._ready_waiters == {}


async def test_a_held_job_takes_no_room_in_its_queue() -> None:
    broker = MemoryBroker(BrokerConfig(max_queue_size=1))
    await broker.push([Job("a", "task")], now=1.0)
    await broker.hold(["a"], by="a move", now=1.0)
    await broker.push([Job("b", "task")], now=1.0)
    await broker.let_go(["b"], by="a move", gone=True, now=1.0)  # it is not held
    with pytest.raises(QueueFullError):
        await broker.push([Job("c", "task")], now=1.0)


async def test_only_attempts_that_came_to_an_end_of_their_own_are_activity() -> None:
    broker = MemoryBroker()
    await broker.heartbeat(WorkerInfo("w"), lease=60.0, now=1.0)
    await broker.push([Job("a", "task")], now=1.0)
    for end in (Outcome.release, Outcome.cancel):
        (job,) = await broker.claim("default", limit=1, worker="w", now=1.0)
        await broker.settle([end(job, "asked to")], now=2.0)
    assert await broker.activity(0.0) == []


async def test_a_worker_claims_again_when_a_suspect_has_run() -> None:
    broker = MemoryBroker()
    await broker.adopt([Job("suspect", "task", attempt=1, crashes=1), Job("a", "task")], by="a move", now=1.0)
    await broker.let_go(["suspect", "a"], by="a move", gone=False, now=1.0)
    app = make_app(broker=broker)

    @app.task(name="task")
    async def task() -> str:
        return "done"

    async with app:
        results = [await within(app.wait_for_result(task_id)) for task_id in ("suspect", "a")]
    assert [result.result for result in results] == ["done", "done"]
