"""Results in the store that the jobs are in already, by whatever name: then it is no separate backend."""

import contextlib
import datetime as dt
import os
from pathlib import Path
from typing import Any

import pytest

from flowrra import BackendConfig, BrokerConfig, Config, Flowrra, JobFilter, MemoryBroker, TaskStatus, TaskTimeoutError
from tests.support.services import address


async def fail(*args: Any) -> None:
    raise ValueError("boom")


async def runs_and_requeues(app: Flowrra) -> None:
    """A job that has failed can be requeued, keeps its queue and its past, and runs again."""
    task = app.task(max_retries=0, name="fail")(fail)
    async with app:
        task_id = await task.options(queue="mail").submit(1)
        assert (await app.wait_for_result(task_id, timeout=20)).status is TaskStatus.FAILED
        (job,) = await app.broker.find(JobFilter(ids=[task_id]))
        assert (job.queue, job.attempt, job.error) == ("mail", 1, "ValueError: boom")
        assert await app.requeue(task_id)
        assert (await app.wait_for_result(task_id, timeout=20)).attempts == 2


def app_of(url: str, results: str) -> Flowrra:
    app = Flowrra(Config(broker=BrokerConfig(url=url), backend=BackendConfig(url=results)))
    app.config.executor.queues = {"mail": 1}
    return app


@pytest.mark.parametrize("url", ["memory://", "sqlite://", "sqlite:///jobs.db"])
async def test_an_equal_url_is_no_separate_backend(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    app = app_of(url, url)
    assert app.backend is None
    await runs_and_requeues(app)


@pytest.mark.parametrize("url", ["memory://", "sqlite:///jobs.db"])
async def test_a_job_that_was_requeued_has_no_longer_its_earlier_result(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The separate backend has that until the next attempt ends."""
    monkeypatch.chdir(tmp_path)
    app = app_of(url, "sqlite:///results.db")
    task = app.task(max_retries=0, name="fail")(fail)
    async with app.client():
        async with app:
            task_id = await task.options(queue="mail").submit(1)
            assert (await app.wait_for_result(task_id, timeout=20)).status is TaskStatus.FAILED
        assert app.backend is not None
        (kept,) = await app.backend.get([task_id])
        assert kept is not None
        assert await app.requeue(task_id)
        result = await app.get_result(task_id)
        assert result is not None
        assert (result.status, result.error) == (TaskStatus.PENDING, None)
        assert await app.cancel(task_id)
        assert (await app.wait_for_result(task_id, timeout=20)).status is TaskStatus.CANCELLED


async def test_a_broker_is_no_backend_of_its_own() -> None:
    broker = MemoryBroker()
    assert Flowrra(broker=broker, backend=broker).backend is None


@pytest.mark.parametrize("spelled", ["sqlite:///./jobs.db", "sqlite:///{folder}/jobs.db", "sqlite:///{folder}/link.db"])
async def test_a_file_is_the_same_by_any_name(spelled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if "link" in spelled:
        try:
            (tmp_path / "link.db").symlink_to(tmp_path / "jobs.db")
        except OSError as error:
            pytest.skip(f"no symbolic links here: {error}")
    app = app_of("sqlite:///jobs.db", spelled.format(folder=tmp_path))
    await runs_and_requeues(app)
    assert app.backend is None


async def test_a_redis_is_the_same_by_any_name(redis_url: str) -> None:
    host, port = address(redis_url)
    if host not in ("127.0.0.1", "localhost"):
        pytest.skip("it is not known by what other name this server goes")
    prefix = f"same-{os.urandom(8).hex()}"
    urls = [f"redis://{name}:{port}/0?prefix={prefix}" for name in ("localhost", "127.0.0.1")]
    await runs_and_requeues(app := app_of(*urls))
    assert app.backend is None
    app = app_of(urls[0], f"{urls[1]}-results")
    async with app.client():
        assert app.backend is not None, "another prefix is another store"


async def test_a_schema_is_the_same_by_any_name(postgres_schema: str) -> None:
    url = postgres_schema.replace("search_path=", "schema=")
    app = app_of(url, f"{url}&pool_size=2")
    await runs_and_requeues(app)
    assert app.backend is None


async def test_another_file_is_a_separate_backend(tmp_path: Path) -> None:
    app = app_of(f"sqlite:///{tmp_path}/jobs.db", f"sqlite:///{tmp_path}/results.db")
    async with app:
        assert app.backend is not None
        task = app.task(max_retries=0, name="fail")(fail)
        task_id = await task.options(queue="mail").submit(1)
        assert (await app.wait_for_result(task_id, timeout=20)).status is TaskStatus.FAILED


@pytest.mark.parametrize("backend", [None, MemoryBroker()], ids=["none", "separate"])
@pytest.mark.parametrize("is_open", [True, False], ids=["open", "closed"])
async def test_what_a_timeout_says_is_so(backend: MemoryBroker | None, is_open: bool) -> None:
    """The job is there and has not ended: the store has answered, and so the message says."""
    app = Flowrra(broker=MemoryBroker(), backend=backend)
    task = app.task(name="fail")(fail)
    async with contextlib.AsyncExitStack() as stack:
        if is_open:
            await stack.enter_async_context(app.client())
        task_id = await task.submit()
        for timeout in (0.05, 0):
            with pytest.raises(TaskTimeoutError, match=rf"has not finished within {timeout:g} s; the job continues"):
                await app.wait_for_result(task_id, timeout)
    await app.stop()


def test_plain_code_gives_a_timeout_as_a_timedelta_too() -> None:
    app = Flowrra(broker=MemoryBroker())
    task_id = app.sync.submit(app.task(name="fail")(fail))
    with pytest.raises(TaskTimeoutError, match=r"has not finished within 0\.05 s"):
        app.sync.wait_for_result(task_id, dt.timedelta(seconds=0.05))  # type: ignore[call-overload]
    app.sync.close()
