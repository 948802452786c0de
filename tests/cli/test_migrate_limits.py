"""Jobs of limits that move to another broker: they keep their keys, and the limits hold there."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from flowrra import Broker, ConfigError, Job, JobFilter, Limit, MemoryBroker, SQLiteBroker, WorkerInfo
from flowrra_extras.commands.migrate import main
from flowrra_extras.migrate import migrate

NOW = 1_700_000_000.0


@contextlib.asynccontextmanager
async def filled(tmp_path: Path) -> AsyncIterator[Broker]:
    broker = SQLiteBroker(str(tmp_path / "jobs.db"))
    await broker.open()
    await broker.set_limit(Limit(name="import", concurrency=1, by="host:1"), now=NOW)
    await broker.set_limit(Limit(name="smtp", rate="100/m", by="host:1"), now=NOW)
    jobs = [Job(f"i{n}", "import", limit="import", key="customer:42") for n in range(3)]
    jobs += [Job("p", "import", limit="import", key="paused")]
    await broker.push(jobs, now=NOW)
    await broker.change(["import:paused"], "pause", now=NOW)
    yield broker
    await broker.close()


async def test_jobs_keep_their_limits_and_keys(tmp_path: Path) -> None:
    target = MemoryBroker()
    await target.open()
    await target.set_limit(Limit(name="smtp", rate="50/m"), now=NOW)
    async with filled(tmp_path) as source:
        moved = await migrate(source, target)
    assert (moved.is_complete, moved.limits) == (True, ["import"])
    assert (moved.kept, moved.paused_keys) == (["smtp"], ["import:paused"])
    found = {job.id: (job.limit, job.key, str(job.status)) for job in await target.find(JobFilter())}
    assert found == {
        "i0": ("import", "customer:42", "pending"),
        "i1": ("import", "customer:42", "blocked"),
        "i2": ("import", "customer:42", "blocked"),
        "p": ("import", "paused", "blocked"),
    }
    limits = {use.limit.name: use.limit for use in await target.limits()}
    assert limits == {"import": Limit(name="import", concurrency=1), "smtp": Limit(name="smtp", rate="50/m")}
    assert limits["import"].by == "host:1"
    await target.heartbeat(WorkerInfo("w"), lease=60, now=NOW)
    assert [job.id for job in await target.claim("default", limit=9, worker="w", now=NOW)] == ["i0"]


async def test_the_command_says_what_becomes_of_limits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = (f"sqlite:///{tmp_path / name}.db" for name in ("jobs", "new"))
    async with filled(tmp_path) as source:
        await source.change(["smtp:"], "pause", now=NOW)
    target = SQLiteBroker(str(tmp_path / "new.db"))
    await target.open()
    await target.set_limit(Limit(name="smtp", rate="50/m"), now=NOW)
    await target.close()
    assert await asyncio.to_thread(main, ["migrate", old, new]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "declared at the target: the limit import",
        "the target has other numbers, and keeps them: the limit smtp",
        "paused the key paused of the limit import at the target, as it is at the source",
        "paused the key (no key) of the limit smtp at the target, as it is at the source",
    ]
    assert await asyncio.to_thread(main, ["migrate", old, new]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["the target has other numbers, and keeps them: the limit smtp"]


class WithoutLimits(MemoryBroker):
    has_limits = False


async def test_a_target_without_limits_is_refused_before_anything_moves(tmp_path: Path) -> None:
    target = WithoutLimits()
    await target.open()
    async with filled(tmp_path) as source:
        with pytest.raises(ConfigError, match="the target has no limits, and the source has the limit 'import'"):
            await migrate(source, target)
        assert await target.find(JobFilter()) == []
        assert [job.worker for job in await source.find(JobFilter())] == [None] * 4
