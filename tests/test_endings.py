"""Every end of a job fires its event and its log line, whoever brought it about."""

import asyncio
import logging

import pytest

from flowrra import Config, Event, ExecutorConfig, Flowrra, result_of


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
            late = await wait.options(delay=60, expires=0.01).submit()
            await app.cancel(parent)
            await asyncio.wait_for(all_told.wait(), 20.0)
    assert told == {
        parent: ("cancel", "it was cancelled"),
        child: ("cancel", f"its parent {parent} ended as cancelled"),
        late: ("cancel", "it expired before its first attempt began"),
    }
    for job_id, (_, error) in told.items():
        assert f"job {job_id} (wait): cancel: {error}" in caplog.text
