"""A move whose lease cannot be kept: it says so, and stops before another start may take over."""

import asyncio
import logging
import os
import time
from typing import Any

import pytest

from flowrra import Broker, BrokerError, Job, JobFilter, MemoryBroker, Notices, WorkerInfo
from flowrra_extras import migrate as migrating
from flowrra_extras.migrate import migrate


class Failing(MemoryBroker):
    """A source whose heartbeats fail in the given way, from the second one on and so many times."""

    def __init__(self, error: BaseException, times: int) -> None:
        super().__init__()
        self.error, self.times, self.beats = error, times, 0

    async def heartbeat(self, worker: WorkerInfo, **options: Any) -> Notices:
        if worker.id != "w" and options["lease"]:
            self.beats += 1
            if 1 < self.beats <= 1 + self.times:
                raise self.error
        return await super().heartbeat(worker, **options)


async def with_a_running_job(source: Broker) -> None:
    """One that keeps the move waiting."""
    await source.push([Job("runs", "t")], now=time.time())
    await source.heartbeat(WorkerInfo("w", pid=os.getpid(), queues={"default": 9}), lease=60.0, now=time.time())
    assert len(await source.claim("default", limit=1, worker="w", now=time.time())) == 1


ERRORS = [RuntimeError("out of luck"), OSError(24, "Too many open files"), BrokerError("the store is away")]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
async def test_a_move_whose_lease_cannot_be_kept_stops(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(migrating, "_LEASE", 0.4)
    source, target = Failing(error, times=1_000), MemoryBroker()
    await source.open()
    await target.open()
    await with_a_running_job(source)
    began = asyncio.get_running_loop().time()
    with pytest.raises(BrokerError, match="could not renew its lease") as caught:
        await migrate(source, target, wait=20.0)
    assert str(error) in str(caught.value)
    assert asyncio.get_running_loop().time() - began < 10
    assert any(str(error) in record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
    # What it has left unheld may be moved by the next start.
    source.times = 0
    await source.push([Job("later", "t")], now=time.time())
    assert (await migrate(source, target, wait=0.0)).jobs.total() == 1
    await target.close()
    await source.close()


async def test_a_heartbeat_that_fails_once_is_made_up_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(migrating, "_LEASE", 1.6)
    source, target = Failing(RuntimeError("out of luck"), times=1), MemoryBroker()
    await source.open()
    await target.open()
    await with_a_running_job(source)
    assert (await migrate(source, target, wait=2.0)).running == 1
    assert source.beats > 3
    assert len(await source.find(JobFilter())) == 1
    assert [r.getMessage() for r in caplog.records if "out of luck" in r.getMessage()] == [
        "the lease of the move could not be renewed, trying again: RuntimeError: out of luck"
    ]
    await target.close()
    await source.close()
