"""Large values on all four brokers: the loop's thread neither writes nor reads their text, and they have a limit."""

import asyncio
import contextlib
import enum
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import flowrra
from flowrra import (
    BackendConfig,
    BrokerConfig,
    ConfigError,
    Event,
    Job,
    SerializationError,
    current_job,
    decode_arguments,
    result_of,
)
from tests.support.apps import make_app
from tests.support.postgres_server import clean_schema
from tests.support.processes import until
from tests.support.typed_work import total_length


class Color(enum.Enum):
    RED = "red"


LARGE = [{"name": f"name {n}", "tags": ["a", "b"]} for n in range(4_000)]


@pytest.fixture(params=["memory", "sqlite", "redis", "postgresql"])
def url(request: pytest.FixtureRequest, redis_prefix: str, postgres_url: str) -> Iterator[str]:
    if request.param == "postgresql":
        with clean_schema(postgres_url) as (_, schema):
            yield f"{postgres_url}?schema={schema}"
    else:
        yield {"memory": "memory://", "sqlite": "sqlite://", "redis": redis_prefix}[request.param]


@pytest.fixture
def converted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What is done with large values: "write" their text, or "read" it. Never on this thread, where the loop runs."""
    loop_thread = threading.get_ident()
    apart: list[str] = []
    on_loop: list[str] = []

    def watched(name: str, convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def watch(value: Any) -> Any:
            (on_loop if threading.get_ident() == loop_thread else apart).append(name)
            return convert(value)

        return watch

    monkeypatch.setattr(flowrra, "_pieces", watched("write", flowrra._pieces))
    monkeypatch.setattr(flowrra, "_load_in_steps", watched("read", flowrra._load_in_steps))
    yield apart
    assert on_loop == []


async def test_arguments_and_results(url: str, converted: list[str]) -> None:
    async with make_app(url) as app:

        @app.task
        async def echo(value: Any, **more: Any) -> Any:
            return [value, more] if more else value

        plain = await app.submit(echo, LARGE)
        keyword = await app.submit(echo, 1, value_of_keyword=LARGE)
        (row,) = await app.submit_many(echo, [(LARGE,)])
        child = await app.submit(echo, result_of(plain))
        for task_id in (plain, row, child):
            assert (await app.wait_for_result(task_id, timeout=20)).result == LARGE
        assert (await app.wait_for_result(keyword, timeout=20)).result == [1, {"value_of_keyword": LARGE}]
        found = await app.get_result(plain)
        assert found is not None
        assert found.result == LARGE
        assert [job.result for job in await app.jobs() if job.id in (plain, row, child)] == [LARGE] * 3
        assert {"write", "read"} <= set(converted)


async def test_a_job_with_children(url: str, converted: list[str]) -> None:
    async with make_app(url) as app:
        has_children = asyncio.Event()

        @app.task
        async def make() -> Any:
            await has_children.wait()
            return LARGE

        @app.task
        async def echo(value: Any) -> Any:
            return value

        parent = await app.submit(make)
        child = await app.submit(echo, result_of(parent))
        has_children.set()
        assert (await app.wait_for_result(child, timeout=20)).result == LARGE
        late = await app.submit(echo, result_of(parent))
        assert (await app.wait_for_result(late, timeout=20)).result == LARGE
        assert {"write", "read"} <= set(converted)


async def test_jobs_that_are_looked_up_have_their_arguments_if_these_are_short(url: str) -> None:
    async with make_app(url).client() as app:

        @app.task
        async def take(*args: Any, **kwargs: Any) -> None: ...

        lines = [(1, "a"), {2}]
        short = await app.submit(take, lines, 7, name={"b": None})
        plain = await app.submit(take, 7, name="c")
        large = await app.submit(take, LARGE)
        lines.clear()
        for found in (await app.jobs(), [await app.get_job(task_id) for task_id in (large, plain, short)]):
            assert [(job.id, job.args, job.kwargs) for job in found] == [
                (large, (), {}),
                (plain, (7,), {"name": "c"}),
                (short, ([(1, "a"), {2}], 7), {"name": {"b": None}}),
            ]
        assert decode_arguments(found[0])[0] == [LARGE]


async def test_middleware_and_hooks_get_the_arguments_as_the_task_does(url: str) -> None:
    app = make_app(url)
    seen: list[Any] = []

    @app.middleware
    async def around(job: Job, call_next: Any) -> Any:
        seen.append(("middleware", job.args, dict(job.kwargs)))
        return await call_next(job)

    @app.on("start")
    @app.on("retry")
    @app.on("success")
    def hear(event: Event) -> None:
        assert event.job is not None
        seen.append((event.name, event.job.args, dict(event.job.kwargs)))

    @app.task
    async def one() -> list[int]:
        return [1]

    @app.task(max_retries=1, retry_delay=0.0)
    async def take(rows: list[int], color: Color, number: int = 0) -> None:
        if current_job().failures == 0:
            raise ValueError

    async with app.client():
        rows = await app.submit(one)
        task_id = await app.submit(take, result_of(rows), Color.RED, number=7)
        await app.start()
        await app.wait_for_result(task_id, timeout=20)
        await until(lambda: len(seen) == 9, "all events")
    with_arguments = [entry for entry in seen if entry[1]]  # in no fixed order: events follow a little later
    assert sorted(name for name, *_ in with_arguments) == ["middleware"] * 2 + ["retry", "start", "start", "success"]
    assert all(entry[1:] == (([1], Color.RED), {"number": 7}) for entry in with_arguments)


async def test_each_reader_gets_its_own_copy(url: str) -> None:
    async with make_app(url) as app:

        @app.task
        async def make() -> Any:
            return LARGE

        task_id = await app.submit(make)
        first = (await app.wait_for_result(task_id, timeout=20)).result
        first[0]["name"] = "changed"
        assert (await app.wait_for_result(task_id, timeout=20)).result == LARGE


async def test_steps(url: str, converted: list[str]) -> None:
    async with make_app(url) as app:

        async def make() -> Any:
            return LARGE

        @app.task
        async def in_steps() -> bool:
            made: Any = await current_job().step("make", make)
            return bool(made == LARGE)

        assert (await app.wait_for_result(await app.submit(in_steps), timeout=20)).result is True
    assert {"write", "read"} <= set(converted)


async def test_cpu_bound(url: str, converted: list[str]) -> None:
    async with make_app(url) as app:
        task = app.task(cpu_bound=True)(total_length)
        result = await app.wait_for_result(await app.submit(task, [str(one["name"]) for one in LARGE] * 4), timeout=60)
        assert result.result == (4 * sum(len(str(one["name"])) for one in LARGE), ["long"] * 40_000)
        assert {"write", "read"} <= set(converted)


async def test_a_separate_backend(url: str, converted: list[str]) -> None:
    app = make_app("sqlite://", retention=BackendConfig(url=url))

    @app.task
    async def make() -> Any:
        return LARGE

    async with app:
        assert (await app.wait_for_result(await app.submit(make), timeout=20)).result == LARGE
    assert {"write", "read"} <= set(converted)


def test_plain_code_is_refused_what_is_too_large(tmp_path: Path) -> None:
    app = make_app(settings=BrokerConfig(url=f"sqlite:///{tmp_path}/jobs.db", max_value_size=200_000))

    @app.task
    async def take(text: str) -> None:
        pass

    with contextlib.closing(sqlite3.connect(tmp_path / "jobs.db")) as db, contextlib.closing(app.sync):
        with pytest.raises(SerializationError, match="and max_value_size is 200,000"):
            app.sync.submit(take, "x" * 300_000)
        with pytest.raises(SerializationError, match="and max_value_size is 200,000"):
            app.sync.submit_in(db, take, "x" * 300_000)


def test_a_limit_that_could_not_hold_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_value_size must be at least 100000, not 99999"):
        BrokerConfig(max_value_size=99_999)


async def test_what_is_too_large_is_refused(url: str) -> None:
    app = make_app(settings=BrokerConfig(url=url, max_value_size=200_000))

    @app.task(max_retries=3)
    async def repeat(part: str, times: int) -> list[str]:
        return [part] * times

    async with app:
        with pytest.raises(
            SerializationError, match=r"arguments of .*repeat has 300,0\d\d characters, and max_value_s"
        ):
            await app.submit(repeat, "x" * 300_000, 1)
        result = await app.wait_for_result(await app.submit(repeat, "x" * 1_000, 300), timeout=20)
        assert (result.status, result.attempts) == ("failed", 1)
        assert "SerializationError: the text of the result of " in (result.error or "")
        assert "repeat has 300,901 characters, and max_value_size is 200,000" in (result.error or "")
        fits = await app.wait_for_result(await app.submit(repeat, "x" * 1_000, 199), timeout=20)
        assert fits.result == ["x" * 1_000] * 199
