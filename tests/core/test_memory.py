"""What only the memory broker has: heaps with entries of jobs that moved on, and bounds of what it keeps."""

import asyncio
from typing import Any

import pytest

from flowrra import (
    BackendConfig,
    BrokerConfig,
    Job,
    JobFilter,
    MemoryBroker,
    Outcome,
    QueueFullError,
    TaskResult,
    TaskStatus,
    WorkerInfo,
    decode_arguments,
)
from flowrra_extras.migrate import adopt_jobs, hold_jobs, unhold_jobs
from flowrra_extras.testing import ManualClock
from tests.support.apps import make_app, within


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


async def fail_all(broker: MemoryBroker, ids: list[str], now: float) -> None:
    """Have jobs run and fail."""
    await broker.push([Job(task_id, "task") for task_id in ids], now=now)
    await broker.heartbeat(WorkerInfo("w", queues={"default": 1}), lease=100, now=now)
    jobs = await broker.claim("default", limit=len(ids), worker="w", now=now)
    assert await broker.settle([Outcome.fail(job, "boom") for job in jobs], now=now) == [True] * len(ids)


# ---------------------------------------------------------------------------
# Arguments
# ---------------------------------------------------------------------------


@pytest.mark.parametrize("payload", [None, '[["text",[1]],{"more":{}}]'])
async def test_arguments_that_can_be_changed_are_stored_as_text_alone(clock: ManualClock, payload: str | None) -> None:
    broker = MemoryBroker(clock=clock)
    items, more = [1], dict[str, int]()
    await broker.push([Job("a", "task", ("text", items), {"more": more}, payload=payload)], now=clock.time())
    items.append(2)
    more["changed"] = 1
    await broker.heartbeat(WorkerInfo("w", queues={"default": 1}), lease=100, now=clock.time())
    (job,) = await broker.claim("default", limit=1, worker="w", now=clock.time())
    assert (job.args, job.kwargs) == ((), {})
    assert decode_arguments(job) == (["text", [1]], {"more": {}})


async def test_the_text_of_a_large_argument_is_not_stored_twice(clock: ManualClock) -> None:
    """The app has made the text of what is large before it pushes the job."""
    broker = MemoryBroker(clock=clock)
    await broker.push([Job("a", "task", ("large",), payload='[["large"],{}]')], now=clock.time())
    (found,) = await broker.find(JobFilter(ids=["a"]))
    assert (found.args, found.payload) == ((), '[["large"],{}]')


async def test_arguments_that_cannot_be_changed_are_stored_as_they_are(clock: ManualClock) -> None:
    broker = MemoryBroker(clock=clock)
    more = {"more": 1}
    await broker.push([Job("a", "task", ("text", 2**63 - 1, None), more)], now=clock.time())
    more["more"] = 2
    (found,) = await broker.find(JobFilter(ids=["a"]))
    assert (found.args, found.kwargs, found.payload) == (("text", 2**63 - 1, None), {"more": 1}, None)


# ---------------------------------------------------------------------------
# Results
# ---------------------------------------------------------------------------


async def test_who_waits_gets_the_end_that_came_even_if_the_job_is_requeued_at_once(clock: ManualClock) -> None:
    broker = MemoryBroker(clock=clock)
    await broker.push([Job("a", "task")], now=clock.time())
    waiter: asyncio.Task[TaskResult[Any]] = asyncio.create_task(broker.wait_for("a", None))
    await asyncio.sleep(0)
    await fail_all(broker, ["a"], clock.time())
    assert await broker.requeue(["a"], now=clock.time()) == [True]  # before the waiter had its turn
    assert (await within(waiter)).status is TaskStatus.FAILED


async def test_who_waits_gets_a_result_that_is_not_kept(clock: ManualClock) -> None:
    broker = MemoryBroker(retention=BackendConfig(max_results=1), clock=clock)
    await broker.push([Job(task_id, "task") for task_id in "abc"], now=clock.time())
    waiters = [asyncio.create_task(broker.wait_for(task_id, None)) for task_id in "abc"]
    await asyncio.sleep(0)
    await broker.heartbeat(WorkerInfo("late", queues={"default": 1}), lease=10, now=clock.time())
    await broker.claim("default", limit=3, worker="late", now=clock.time())
    clock.advance(11)
    await broker.heartbeat(WorkerInfo("w", queues={"default": 1}), lease=10, now=clock.time())
    for _ in "abc":
        (job,) = await broker.claim("default", limit=1, worker="w", now=clock.time())
        await broker.settle([Outcome.succeed(job, job.id)], now=clock.time())
    results = await within(asyncio.gather(*waiters))
    assert [(result.status, result.result) for result in results] == [(TaskStatus.SUCCESS, name) for name in "abc"]


async def test_requeued_jobs_are_finished_no_more(clock: ManualClock) -> None:
    """Whatever their place among the finished ones, also if all are requeued at once."""
    broker = MemoryBroker(retention=BackendConfig(max_results=4), clock=clock)
    ids = list("abcd")
    await fail_all(broker, ids, clock.time())
    assert await broker.requeue(["d", "b", "nobody", "b"], now=clock.time()) == [True, True, False, False]
    await fail_all(broker, ["b", "d", "e"], clock.time())
    assert [result and result.status for result in await broker.get([*ids, "e"])] == [None, *["failed"] * 4]


# ---------------------------------------------------------------------------
# What is kept
# ---------------------------------------------------------------------------


async def test_jobs_that_ended_while_they_waited_leave_nothing_behind(clock: ManualClock) -> None:
    """Entries of cancelled jobs stay on a heap until they come to its top, which may be never: nobody claims here."""
    broker = MemoryBroker(retention=BackendConfig(max_results=10), clock=clock)
    for number in range(3_000):
        later = clock.time() + 1e9
        job = Job(
            f"j{number}", "task", due=later if number % 3 == 0 else None, expires=later if number % 3 == 1 else None
        )
        await broker.push([job], now=clock.time())
        await broker.cancel(job.id, now=clock.time())
    kept = [*broker._ready["default", 0], *broker._waiting, *broker._expiring]
    assert len(kept) < 3 * 1_100
    await broker.push([Job("due", "task", due=clock.time() + 5), Job("ready", "task")], now=clock.time())
    for number in range(1_100):
        await broker.push([Job(f"x{number}", "task", due=clock.time() + 9)], now=clock.time())
        await broker.cancel(f"x{number}", now=clock.time())
    clock.advance(6)
    await broker.heartbeat(WorkerInfo("w", queues={"default": 1}), lease=10, now=clock.time())
    jobs = await broker.claim("default", limit=9, worker="w", now=clock.time())
    assert [job.id for job in jobs] == ["due", "ready"]


async def test_jobs_with_an_expiry_leave_nothing_behind(clock: ManualClock) -> None:
    broker = MemoryBroker(retention=BackendConfig(max_results=10), clock=clock)
    await broker.push([Job("mortal", "task", queue="unserved", expires=clock.time() + 5)], now=clock.time())
    await broker.heartbeat(WorkerInfo("w", queues={"default": 1}), lease=100, now=clock.time())
    for number in range(3_000):
        await broker.push([Job(f"j{number}", "task", expires=clock.time() + 1e9)], now=clock.time())
        (job,) = await broker.claim("default", limit=1, worker="w", now=clock.time())
        await broker.settle([Outcome.succeed(job, None)], now=clock.time())
    assert len(broker._expiring) < 1_100
    clock.advance(6)
    await broker.claim("default", limit=1, worker="w", now=clock.time())
    (result,) = await broker.get(["mortal"])
    assert result is not None
    assert result.status is TaskStatus.CANCELLED


# ---------------------------------------------------------------------------
# A full queue
# ---------------------------------------------------------------------------


@pytest.mark.parametrize("when_full", ["raise", "wait"])
async def test_what_is_there_already_needs_no_room(clock: ManualClock, when_full: str) -> None:
    broker = MemoryBroker(BrokerConfig(max_queue_size=1, when_full=when_full), clock=clock)
    await broker.push([Job("a", "task", unique="key")], now=clock.time())
    again = [Job("a", "task"), Job("b", "task", unique="key")]
    assert await within(broker.push(again, now=clock.time()), 1.0) == ["a", "a"]


async def test_who_gives_up_waiting_for_room_leaves_nothing_behind(clock: ManualClock) -> None:
    broker = MemoryBroker(BrokerConfig(max_queue_size=1, when_full="wait"), clock=clock)
    await broker.push([Job("a", "task")], now=clock.time())
    for _ in range(3):
        push = asyncio.create_task(broker.push([Job("b", "task")], now=clock.time()))
        await asyncio.sleep(0)
        push.cancel()
        await asyncio.wait([push])
        assert push.cancelled()
    assert not broker.hub.waiters
    assert await broker.get(["b"]) == [None]


async def test_room_in_one_queue_is_none_in_another(clock: ManualClock) -> None:
    broker = MemoryBroker(BrokerConfig(max_queue_size=1, when_full="wait"), clock=clock)
    queues = ("one", "other")
    await broker.push([Job(queue, "task", queue=queue) for queue in queues], now=clock.time())
    pushes = {q: asyncio.create_task(broker.push([Job(f"{q} 2", "task", queue=q)], now=clock.time())) for q in queues}
    await asyncio.sleep(0)
    await broker.cancel("one", now=clock.time())
    assert await within(pushes["one"]) == ["one 2"]
    assert not pushes["other"].done()
    await broker.close()
    with pytest.raises(Exception, match="the broker was closed while this call was waiting"):
        await within(pushes["other"])


async def test_recorded_results_take_no_room(clock: ManualClock) -> None:
    broker = MemoryBroker(BrokerConfig(max_queue_size=1), clock=clock)
    await broker.record([TaskResult(name, "task", TaskStatus.SUCCESS, 1) for name in "abc"])
    await broker.push([Job("first", "task")], now=clock.time())
    with pytest.raises(QueueFullError):
        await broker.push([Job("second", "task")], now=clock.time())


# ---------------------------------------------------------------------------
# Waiting, holding, activity
# ---------------------------------------------------------------------------


async def test_who_has_waited_leaves_nothing_behind() -> None:
    broker = MemoryBroker()
    for queues in (["default", "other"], []):
        await broker.wait([("queue", queue) for queue in queues] or [("worker", "")], 0.0)
    assert not broker.hub.waiters


async def test_a_held_job_takes_no_room_in_its_queue() -> None:
    broker = MemoryBroker(BrokerConfig(max_queue_size=1))
    await broker.push([Job("a", "task")], now=1.0)
    await hold_jobs(broker, ["a"], by="a move", now=1.0)
    await broker.push([Job("b", "task")], now=1.0)
    await unhold_jobs(broker, ["b"], by="a move", gone=True, now=1.0)  # it is not held
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
    await adopt_jobs(broker, [Job("suspect", "task", attempt=1, crashes=1), Job("a", "task")], by="a move", now=1.0)
    await unhold_jobs(broker, ["suspect", "a"], by="a move", gone=False, now=1.0)
    app = make_app(broker=broker)

    @app.task(name="task")
    async def task() -> str:
        return "done"

    async with app:
        results = [await within(app.wait_for_result(task_id)) for task_id in ("suspect", "a")]
    assert [result.result for result in results] == ["done", "done"]
