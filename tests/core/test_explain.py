"""`explain`: one sentence on where a job stands. One test for each sentence, on both brokers."""

import asyncio
import re
from pathlib import Path

import pytest

from flowrra import Flowrra, Job, TaskNotFoundError, TaskStatus, WorkerInfo, result_of
from flowrra_extras.migrate import adopt_jobs, unhold_jobs
from tests.support.apps import MovableClock, eventually, make_app


@pytest.fixture(params=["memory", "file"])
def app(request: pytest.FixtureRequest, tmp_path: Path) -> Flowrra:
    url = {"memory": "memory://", "file": f"sqlite:///{tmp_path}/jobs.db"}[request.param]
    app = make_app(url, clock=MovableClock(), io_workers=1)
    app.task(name="work")(work)
    app.task(name="fail", retry_delay=600.0)(fail)
    return app


async def work(value: object = None) -> None:
    """Nothing to do."""


async def fail() -> None:
    raise ConnectionError("no answer\nand more lines")


async def register(app: Flowrra, queues: dict[str, int], tasks: list[str]) -> None:
    """A live worker, as far as the store can see, that claims nothing."""
    worker = WorkerInfo("w-1", queues=queues, tasks=tasks)
    await app.broker.heartbeat(worker, lease=60, now=app.now())


async def test_due_later(app: Flowrra) -> None:
    async with app.client():
        task_id = await app.registry["work"].options(delay=250.5).submit()
        assert await app.explain(task_id) == "It is due in 4 m 10 s."


async def test_retrying(app: Flowrra) -> None:
    async with app:
        task_id = await app.submit(app.registry["fail"])
        await eventually(lambda: is_in_state(app, task_id, TaskStatus.RETRYING))
        sentence = await app.explain(task_id)
    assert re.fullmatch(r"It failed 1 time\(s\) and is due again in (10 m 0|9 m 5\d) s: .*", sentence)
    assert sentence.endswith(": ConnectionError: no answer.")


async def test_a_suspect_waits_for_an_idle_worker(app: Flowrra) -> None:
    async with app.client():
        job = Job("a", "work", payload="[[], {}]", attempt=1, crashes=1)
        await adopt_jobs(app.broker, [job], by="a move", now=app.now())
        await unhold_jobs(app.broker, ["a"], by="a move", gone=False, now=app.now())
        await register(app, {"default": 1}, ["work"])
        assert await app.explain("a") == (
            "It is ready, but it was running in 1 crash(es), so it waits for a worker that runs nothing else."
        )


async def test_due_and_nobody_there(app: Flowrra) -> None:
    """A job that waited becomes ready when a worker looks: without one, it stays as it is."""
    async with app.client():
        task_id = await app.registry["work"].options(delay=60).submit()
        assert isinstance(app.clock, MovableClock)
        app.clock.wall_offset = 7300
        sentence = await app.explain(task_id)
        assert sentence == "It has been due for 2 h 0 m, but no live worker serves the queue default (0 alive)."


async def is_in_state(app: Flowrra, task_id: str, status: TaskStatus) -> bool:
    return (await app.get_job(task_id)).status is status


async def test_queue_paused(app: Flowrra) -> None:
    async with app.client():
        await app.broker.set_queue("default", paused=True)
        task_id = await app.submit(app.registry["work"])
        assert await app.explain(task_id) == "It is ready, but its queue default is paused."


async def test_blocked_by_its_parents(app: Flowrra) -> None:
    async with app.client():
        first, second = await app.submit_many(app.registry["work"], [(), ()])
        child = await app.submit(app.registry["work"], [result_of(first), result_of(second)])
        assert await app.explain(child) == (
            f"It is blocked by its parent {first} (work), which is pending"
            f" and its parent {second} (work), which is pending."
        )


async def test_no_live_worker(app: Flowrra) -> None:
    async with app.client():
        task_id = await app.submit(app.registry["work"])
        assert await app.explain(task_id) == "It is ready, but no live worker serves the queue default (0 alive)."
        await register(app, {"mail": 1}, ["work"])
        assert await app.explain(task_id) == "It is ready, but no live worker serves the queue default (1 alive)."


async def test_no_worker_knows_the_task(app: Flowrra) -> None:
    async with app.client():
        task_id = await app.submit(app.registry["work"])
        await register(app, {"default": 1}, ["another"])
        assert await app.explain(task_id) == (
            "It is ready, but no live worker that serves the queue default knows the task work."
        )


async def test_jobs_ahead_of_it_and_none(app: Flowrra) -> None:
    async with app.client():
        await register(app, {"default": 1}, ["work"])
        first, *_, last = await app.submit_many(app.registry["work"], [()] * 4)
        await app.registry["work"].options(priority=9).submit()
        assert await app.explain(last) == "It is ready, but 3 job(s) are ahead of it in the queue default."
        assert await app.explain(first) == "It is ready, the next in default."


async def test_running_and_asked_to_end(app: Flowrra) -> None:
    begun, ending = asyncio.Event(), asyncio.Event()

    @app.task(name="stubborn")
    async def stubborn() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await ending.wait()
            raise

    async with app:
        task_id = await app.submit(stubborn)
        await begun.wait()
        assert app.worker is not None
        start = f"It has been running on {app.worker.id} for "
        sentence = await app.explain(task_id)
        await app.cancel(task_id)
        asked = await app.explain(task_id)
        ending.set()
        await app.wait_for_result(task_id, timeout=20.0)
    assert sentence.startswith(start)
    assert re.fullmatch(r"[\d.]+ s\.", sentence.removeprefix(start))
    assert asked.endswith(" s, and has been asked to end.")


async def test_running_in_a_worker_that_is_gone(app: Flowrra) -> None:
    async with app.client():
        task_id = await app.submit(app.registry["work"])
        await register(app, {"default": 1}, ["work"])
        await app.broker.claim("default", limit=1, worker="w-1", now=app.now())
        assert (await app.explain(task_id)).startswith("It has been running on w-1 for ")
        assert isinstance(app.clock, MovableClock)
        app.clock.boot_offset = 61
        assert await app.explain(task_id) == (
            "It was running on w-1, whose lease has ended: it runs again when another worker runs."
        )


async def test_finished(app: Flowrra) -> None:
    async with app:
        good = await app.submit(app.registry["work"])
        bad = await app.registry["fail"].options(max_retries=0).submit()
        for task_id in (good, bad):
            await app.wait_for_result(task_id, timeout=20.0)
        gone = await app.registry["work"].options(delay=60).submit()
        await app.cancel(gone)
        sentences = [await app.explain(task_id) for task_id in (good, bad, gone)]
    assert re.fullmatch(r"It succeeded [\d.]+ s ago\.", sentences[0])
    assert re.fullmatch(r"It ended as failed [\d.]+ s ago: ConnectionError: no answer\.", sentences[1])
    assert re.fullmatch(r"It ended as cancelled [\d.]+ s ago: it was cancelled\.", sentences[2])


async def test_an_unknown_id_has_no_story(app: Flowrra) -> None:
    async with app.client():
        with pytest.raises(TaskNotFoundError, match="no job 'nobody' is known here: never submitted, or purged"):
            await app.explain("nobody")
