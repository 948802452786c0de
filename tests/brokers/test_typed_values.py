"""Values of random annotations, nested in each other, on all four brokers: what arrives is what was submitted."""

import asyncio
import contextlib
import dataclasses
import datetime as dt
import random
import uuid
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowrra import Flowrra, result_of
from tests.support.apps import make_app
from tests.support.postgres_server import clean_schema
from tests.support.typed_work import Box, Colour, Page, Point, Size, UserId


class Kind(NamedTuple):
    """An annotation, and the values that fit it."""

    annotation: Any
    values: st.SearchStrategy[Any]
    is_hashable: bool = True


TEXTS = st.text(max_size=5)
LEAVES: list[Kind] = [
    Kind(int, st.integers(-(2**80), 2**80)),
    Kind(str, TEXTS),
    Kind(bool, st.booleans()),
    Kind(float, st.floats(allow_nan=False)),
    Kind(bytes, st.binary(max_size=5)),
    Kind(type(None), st.none()),
    Kind(dt.datetime, st.datetimes(timezones=st.just(dt.UTC))),
    Kind(dt.timedelta, st.timedeltas()),
    Kind(Decimal, st.decimals(allow_nan=False)),
    Kind(uuid.UUID, st.uuids()),
    Kind(Colour, st.sampled_from(Colour)),
    Kind(Size, st.sampled_from(Size)),
    Kind(UserId, TEXTS.map(UserId)),
    Kind(Path, st.sampled_from(["a", "a/b", "."]).map(Path)),
    Kind(Point, st.builds(Point, st.integers(), st.sampled_from(Colour))),
]


def of(kind: Any, *inner: Any) -> Any:
    """A generic with these types in it, as `list[int]`."""
    return kind[inner]


def lists(values: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(values, max_size=3)


def sets(inner: Kind) -> st.SearchStrategy[Kind]:
    return st.just(Kind(of(frozenset, inner.annotation), st.frozensets(inner.values, max_size=3)))


def around(kinds: st.SearchStrategy[Kind]) -> st.SearchStrategy[Kind]:
    """Kinds that hold others."""
    hashable = kinds.filter(lambda kind: kind.is_hashable)
    return st.one_of(
        kinds.map(lambda one: Kind(of(list, one.annotation), lists(one.values), False)),
        kinds.map(lambda one: Kind(of(tuple, one.annotation, ...), lists(one.values).map(tuple), one.is_hashable)),
        kinds.map(lambda one: Kind(one.annotation | None, st.none() | one.values, one.is_hashable)),
        kinds.map(lambda one: Kind(of(Box, one.annotation), one.values.map(Box), one.is_hashable)),
        kinds.map(lambda one: Kind(of(Page, one.annotation), lists(one.values).map(Page), False)),
        kinds.map(lambda one: Kind(of(dict, Colour, one.annotation), dictionaries(one), False)),
        st.tuples(kinds, kinds).map(
            lambda two: Kind(
                of(tuple, two[0].annotation, two[1].annotation),
                st.tuples(two[0].values, two[1].values),
                two[0].is_hashable and two[1].is_hashable,
            )
        ),
        hashable.flatmap(sets),
    )


def dictionaries(inner: Kind) -> st.SearchStrategy[dict[Any, Any]]:
    return st.dictionaries(st.sampled_from(Colour), inner.values, max_size=2)


def typed(value: Any) -> Any:
    """A value as tuples, with the type of each part."""
    if isinstance(value, dict):
        return dict, frozenset((typed(key), typed(one)) for key, one in value.items())
    if isinstance(value, frozenset):
        return frozenset, frozenset(map(typed, value))
    if dataclasses.is_dataclass(value):
        parts = [typed(getattr(value, one.name)) for one in dataclasses.fields(value)]
        return type(value), tuple(parts)
    return (type(value), tuple(map(typed, value))) if isinstance(value, list | tuple) else (type(value), value)


KINDS = st.recursive(st.sampled_from(LEAVES), around, max_leaves=4)


@pytest.fixture
def four(redis_prefix: str, postgres_url: str) -> Iterator[tuple[asyncio.Runner, list[Flowrra]]]:
    """An open app on each broker, and what runs their loop."""
    with clean_schema(postgres_url) as (_, schema), asyncio.Runner() as runner:
        postgres = f"{postgres_url}?schema={schema}"
        apps = [make_app(url) for url in ("memory://", "sqlite://", redis_prefix, postgres)]
        stack = contextlib.AsyncExitStack()
        for app in apps:
            runner.run(stack.enter_async_context(app))
        try:
            yield runner, apps
        finally:
            runner.run(stack.aclose())


async def sent_through(app: Flowrra, annotation: Any, value: Any) -> Any:
    """What a task gets and returns, and what a child gets that stands behind it."""
    seen: list[Any] = []

    async def echo(value: Any) -> Any:
        seen.append(value)
        return value

    echo.__annotations__ = {"value": annotation, "return": annotation}
    task = app.task(name=f"echo {len(app.registry)}", max_retries=0)(echo)
    parent = await app.submit(task, value)
    child = await app.submit(task, value=result_of(parent))
    for task_id in (parent, child):
        result = await app.wait_for_result(task_id, timeout=20)
        assert result.is_success, result.error
        seen.append(result.result)
    return seen


def test_the_random_numbers_of_a_program_stay_its_own(four: tuple[asyncio.Runner, list[Flowrra]]) -> None:
    """A test that has seeded `random` gets the same numbers again, whatever a worker does beside it."""
    runner, apps = four
    begin = random.getstate()

    async def fail_once(app: Flowrra) -> None:
        attempts: list[int] = []

        @app.task(retry_delay=0.001, jitter=True)
        async def flaky() -> None:
            attempts.append(1)
            if len(attempts) == 1:
                raise ConnectionError("once")

        result = await app.wait_for_result(await app.submit(flaky), timeout=20)
        assert result.is_success
        assert len(attempts) == 2

    async def run() -> None:
        await asyncio.gather(*map(fail_once, apps))

    runner.run(run())
    assert random.getstate() == begin


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
def test_values_arrive_as_annotated_on_all_brokers(
    four: tuple[asyncio.Runner, list[Flowrra]], data: st.DataObject
) -> None:
    runner, apps = four
    kind = data.draw(KINDS, "kind")
    value = data.draw(kind.values, "value")

    async def send() -> list[Any]:
        return await asyncio.gather(*(sent_through(app, kind.annotation, value) for app in apps))

    for seen in runner.run(send()):
        assert len(seen) == 4
        for found in seen:
            assert found == value
            assert typed(found) == typed(value)
