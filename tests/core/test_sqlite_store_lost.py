"""The SQLite file is taken from under those who use it, or its disk is full, or its writer fails: all are told."""

import asyncio
import itertools
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import flowrra
from flowrra import BrokerError, Job, Outcome, SQLiteBroker, StoreLostError, WorkerInfo
from tests.support.apps import eventually, opened, within
from tests.support.disks import small_file_system
from tests.support.processes import Site, stand_in

NOW = 1_700_000_000.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


# ---------------------------------------------------------------------------
# Another file, or none
# ---------------------------------------------------------------------------


def delete(path: Path) -> None:
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()


def names_in(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir()]


def replace(path: Path) -> None:
    other = path.with_name("other.db")
    shutil.copy(path, other)
    other.replace(path)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked for at each call, and not once a second."""
    monkeypatch.setattr(flowrra, "_CHECK_EVERY", 0.0)
    monkeypatch.setattr(flowrra, "_LOOK_EVERY", 0.01)


@pytest.mark.skipif(os.name != "posix", reason="an open file cannot be deleted here")
@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(("take", "said"), [(delete, "was deleted"), (replace, "was replaced")])
async def test_who_uses_a_file_that_is_gone_is_told(path: Path, take: Any, said: str) -> None:
    """What is pushed there would be lost, and nobody would ever run it."""
    async with opened(path) as broker:
        await broker.push([Job("a", "t")], now=NOW)
        await broker.heartbeat(WorkerInfo("w", "host", os.getpid()), lease=10, now=NOW)
        waits = [asyncio.create_task(broker.wait_for("a", 60)), asyncio.create_task(broker.wait([("worker", "")], 60))]
        await asyncio.wait(waits, timeout=0.05)
        take(path)
        calls = [
            *waits,
            broker.push([Job("b", "t")], now=NOW),
            broker.push([Job("c", "t"), Job("d", "t")], now=NOW),
            broker.heartbeat(WorkerInfo("w", "host", os.getpid()), lease=10, now=NOW),
            broker.claim("default", limit=1, worker="w", now=NOW),
            broker.get(["a"]),
            broker.counts(),
        ]
        answers = await within(asyncio.gather(*calls, return_exceptions=True))
        assert [type(answer) for answer in answers] == [StoreLostError] * len(calls)
        assert {said in str(answer) for answer in answers} == {True}


@pytest.mark.skipif(os.name != "posix", reason="an open file cannot be deleted here")
async def test_a_read_makes_no_file_in_the_place_of_one_that_is_gone(path: Path) -> None:
    """Before the next check, a second after the last."""
    async with opened(path) as broker:
        delete(path)
        with pytest.raises(BrokerError, match="cannot be opened"):
            await broker.counts()
        assert names_in(path.parent) == []


@pytest.mark.parametrize("name", ["jobs?mode=memory.db", "50% of #1.db", "jöbs 1.db"])
async def test_a_file_can_have_any_name(tmp_path: Path, name: str) -> None:
    async with opened(tmp_path / name) as broker:
        await broker.push([Job("a", "t")], now=NOW)
        assert sum((await broker.counts()).values()) == 1
    assert names_in(tmp_path) == [name]


def away_and_back(path: Path) -> None:
    away = path.with_name("away.db")
    path.rename(away)
    away.rename(path)


async def test_a_file_that_is_moved_back_in_time_is_the_same(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked for once a second at most; the worker goes on."""
    async with opened(path) as broker:
        away_and_back(path)
        monkeypatch.setattr(flowrra, "_CHECK_EVERY", 0.0)
        assert await broker.push([Job("a", "t")], now=NOW) == ["a"]


@pytest.mark.skipif(os.name != "posix", reason="an open file cannot be deleted here")
async def test_a_worker_whose_file_is_gone_stops_with_an_error(tmp_path: Path) -> None:
    with Site(tmp_path) as site:
        async with site.client() as app:
            worker = await site.worker()
            await app.submit(stand_in(app, "app.nap"), 0)
        delete(site.store)
        assert await worker.ends() == 1
        assert "ERROR" in worker.log
        assert f"{site.store} was deleted while it was open" in worker.log
        assert "Traceback" not in worker.log


# ---------------------------------------------------------------------------
# A full disk
# ---------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with small_file_system(tmp_path / "disk", megabytes=4) as folder:
        yield folder


async def push_on(broker: SQLiteBroker, ids: Iterator[int]) -> None:
    while True:
        await broker.push([Job(str(next(ids)), "t", args=("x" * 2_000,))], now=NOW)


async def push_until_full(broker: SQLiteBroker) -> int:
    """How many jobs of 2 kB went in before the disk was full."""
    ids = itertools.count()
    with pytest.raises(BrokerError, match="full disk"):
        await push_on(broker, ids)
    return next(ids) - 1


def sizes(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_size for file in folder.iterdir()}


async def test_the_log_does_not_take_the_whole_disk(small_disk: Path) -> None:
    """What is in the log cannot leave it where the file has no room to grow."""
    async with opened(small_disk / "jobs.db") as broker:
        assert await push_until_full(broker) > 1_000
        found = sizes(small_disk)
        assert found["jobs.db-wal"] < 1_000_000 < found["jobs.db"], found


async def test_work_goes_on_when_there_is_room_again(small_disk: Path) -> None:
    """Much more than what there is room for goes through the log afterwards."""
    filler = small_disk / "filler"
    filler.write_bytes(bytes(2_000_000))
    async with opened(small_disk / "jobs.db") as broker:
        await broker.heartbeat(WorkerInfo("w", "host", os.getpid()), lease=600, now=NOW)
        await push_until_full(broker)
        filler.unlink()
        for _ in range(40):
            await broker.push([Job(f"{time.monotonic_ns()}", "t", args=("y" * 100_000,))], now=NOW)
            jobs = await broker.claim("default", limit=100, worker="w", now=NOW)
            assert jobs
            assert all(await broker.settle([Outcome.succeed(job, None, keep=-1) for job in jobs], now=NOW))
            await broker.purge(NOW + 1, 1_000)


# ---------------------------------------------------------------------------
# A writer that fails
# ---------------------------------------------------------------------------


class Broken(BaseException):
    """As from a thread that is made to end."""


async def test_callers_of_a_writer_that_fails_are_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **options: Any) -> Any:
        raise Broken("out of everything")

    async with opened(path) as broker:
        with monkeypatch.context() as patch:
            patch.setattr(flowrra._SQLiteFile, "run_group", fail)
            pushes = [broker.push([Job(name, "t"), Job(f"{name}2", "t")], now=NOW) for name in "abc"]
            answers = await within(asyncio.gather(*pushes, return_exceptions=True))
            assert [type(answer) for answer in answers] == [BrokerError] * 3
            assert {"out of everything" in str(answer) for answer in answers} == {True}
        pushes = [broker.push([Job(name, "t")], now=NOW) for name in "abc"]
        assert await within(asyncio.gather(*pushes)) == [["a"], ["b"], ["c"]]


async def test_a_watch_that_fails_does_not_end_the_heartbeats(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that beats also watches the loop. Without heartbeats all its jobs would run twice."""
    failed: list[int] = []

    async def fail(keeper: Any) -> None:
        failed.append(1)
        raise RuntimeError("it cannot watch")

    monkeypatch.setattr(flowrra._Keeper, "_watch", fail)
    app = flowrra.Flowrra.from_urls(f"sqlite:///{path}")
    app.config.executor.heartbeat = 0.02
    async with app:
        worker = app.worker
        assert worker is not None
        await eventually(lambda: bool(failed))
        seen = worker.seen
        await eventually(lambda: worker.seen > seen + 0.05)
