"""Every end of a job fires its event and its log line, whoever brought it about."""

import asyncio
import logging
from collections.abc import Sequence

import pytest

from flowrra import Config, Event, ExecutorConfig, Flowrra, MemoryBroker, Outcome, result_of
from tests.support.apps import eventually


async def test_ends_that_no_attempt_came_to_fire_their_events(caplog: pytest.LogCaptureFixture) -> None:
    app = Flowrra(Config(executor=ExecutorConfig(heartbeat=0.05, lease=5.0)))
    told: dict[str, tuple[str, str | None]] = {}
    all_told = asyncio.Event()

    @app.task(name="wait")
    async def wait(text: str = "") -> str:
        return text

    def hear(event: Event) -> None:
        assert event.job is not None
        told[event.job.id] = event.name, event.error
        if len(told) == 3:
            all_told.set()

    for name in ("cancel", "failure"):
        app.on(name)(hear)
    with caplog.at_level(logging.INFO, "flowrra"):
        async with app:
            parent = await wait.options(delay=60).submit()
            child = await wait.submit(result_of(parent))
            late = await wait.options(queue="unserved", expires=0.01).submit()
            await app.cancel(parent)
            await asyncio.wait_for(all_told.wait(), 20.0)
    assert told == {
        parent: ("cancel", "it was cancelled"),
        child: ("cancel", f"its parent {parent} ended as cancelled"),
        late: ("cancel", "it expired before its first attempt began"),
    }
    for job_id, (_, error) in told.items():
        assert f"job {job_id} (wait): cancel: {error}" in caplog.text


class Fussy(MemoryBroker):
    """One that has trouble with some outcomes, of a kind that nobody expects."""

    def __init__(self, *, takes_plain: bool) -> None:
        super().__init__()
        self.takes_plain = takes_plain

    async def settle(self, outcomes: Sequence[Outcome], *, now: float) -> list[bool]:
        if any(outcome.traceback is not None or not self.takes_plain for outcome in outcomes):
            raise ValueError("what is that?")
        return await super().settle(outcomes, now=now)


async def fail() -> None:
    raise RuntimeError("boom")


async def test_a_failure_that_the_store_refuses_ends_the_job_all_the_same() -> None:
    app = Flowrra(broker=Fussy(takes_plain=True))
    task = app.task(max_retries=0)(fail)
    async with app:
        result = await app.wait_for_result(await app.submit(task), timeout=20)
    assert (result.status, result.error) == ("failed", "the store refused its outcome: the worker's log says why")


async def test_a_store_that_refuses_every_outcome_is_said(caplog: pytest.LogCaptureFixture) -> None:
    app = Flowrra(Config(executor=ExecutorConfig(drain=0.1)), broker=Fussy(takes_plain=False))
    task = app.task(max_retries=0)(fail)
    async with app:
        job_id = await app.submit(task)
        await eventually(lambda: f"job {job_id} stays running until this worker stops" in caplog.text)
