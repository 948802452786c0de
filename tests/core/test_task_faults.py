"""Tasks, exceptions and arguments of odd kinds: each job comes to an end that says what was wrong."""

import dataclasses
import datetime as dt
import functools
import os
import signal
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from flowrra import (
    Config,
    ConfigError,
    ExecutorConfig,
    Flowrra,
    Job,
    SerializationError,
    TaskOptions,
    TaskResult,
    TaskStatus,
    decode,
    decode_arguments,
    encode,
    parents_in,
    put_results,
    result_of,
    retry_delay,
)

Point = namedtuple("Point", "x y")


@dataclasses.dataclass(frozen=True)
class Frozen:
    x: int


class SilentError(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


class MarkedError(Exception):
    traceback = 17
    delay = dt.timedelta(seconds=1)


def fail(kind: str) -> None:
    raise {"silent": SilentError, "marked": MarkedError}.get(kind, ValueError)(kind)


def fork_and_die() -> None:
    if os.fork() == 0:
        signal.alarm(60)  # its end
        signal.pause()
    Path(sys.argv[0])  # what argv holds came over the pipe
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def app() -> Flowrra:
    return Flowrra(Config(executor=ExecutorConfig(cpu_workers=1)))


@pytest.mark.parametrize("cpu_bound", [False, True])
@pytest.mark.parametrize(
    ("kind", "error"),
    [("silent", "SilentError: <exception str() failed>"), ("marked", "MarkedError: marked"), ("\udce9", r"\udce9")],
)
async def test_an_odd_exception_ends_its_job(tmp_path: Path, cpu_bound: bool, kind: str, error: str) -> None:
    app = Flowrra.from_urls(f"sqlite:///{tmp_path}/jobs.db")
    task = app.task(cpu_bound=cpu_bound, max_retries=0)(fail)
    async with app:
        result: Any = await app.wait_for_result(await app.submit(task, kind), timeout=20)
    assert error in result.error
    assert "raise " in result.traceback


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
async def test_a_process_that_dies_is_noticed_though_one_that_it_forked_lives(app: Flowrra) -> None:
    task = app.task(cpu_bound=True, max_retries=0)(fork_and_die)
    async with app:
        result: Any = await app.wait_for_result(await app.submit(task), timeout=20)
    assert "was ended by SIGKILL" in result.error


async def test_a_coroutine_that_a_plain_wrapper_returns_is_run(app: Flowrra) -> None:
    async def inner() -> int:
        return 7

    @app.task
    @functools.wraps(inner)
    def wrapper() -> Any:
        return inner()

    async with app:
        assert (await app.wait_for_result(await app.submit(wrapper), timeout=20)).result == 7


def test_results_are_put_beside_named_tuples_and_into_them() -> None:
    other = Point(1, 2)
    values = [other, Point(result_of("a"), 3), {"k": [result_of("a")]}]  # type: ignore[call-overload]
    placed = put_results(values, {"a": TaskResult("a", "t", TaskStatus.SUCCESS, 9)})
    assert placed == [(1, 2), (9, 3), {"k": [9]}]
    assert placed[0] is other


def test_parents_are_found_in_containers_that_hold_one_another() -> None:
    ring: list[Any] = [result_of("a")]  # type: ignore[call-overload]
    for _ in range(60):
        ring = [ring, ring]
    ring.append(ring)
    assert set(parents_in([ring], {"k": result_of("b")})) == {"a", "b"}  # type: ignore[call-overload]


@pytest.mark.parametrize("value", [{Frozen(1)}, {Frozen(1): 2}, {(Frozen(1),)}, frozenset([Frozen(1)])])
def test_what_no_set_could_hold_when_it_is_read_is_refused(value: Any) -> None:
    with pytest.raises(SerializationError, match="would come back as a dictionary or list"):
        encode(value)
    assert decode(encode({(1, Point(2, 3)): {dt.date(2000, 1, 1)}})) == {(1, (2, 3)): {dt.date(2000, 1, 1)}}


@pytest.mark.parametrize("payload", ["5", "null", "[1,2,3]", '["ab",{}]', "[[],[]]"])
def test_a_payload_that_holds_no_arguments(payload: str) -> None:
    with pytest.raises(SerializationError, match="not a list and a dictionary of arguments"):
        decode_arguments(Job("id", "task", payload=payload))


@pytest.mark.parametrize("stored", [5, None, b"[1]"])
def test_what_is_stored_is_no_text(stored: Any) -> None:
    with pytest.raises(SerializationError, match="stored text"):
        decode(stored)


def test_lengths_of_time() -> None:
    options = TaskOptions(timeout=dt.timedelta(seconds=5))  # type: ignore[arg-type]
    assert type(options.timeout) is float
    for wrong in (10**400, float("inf")):
        with pytest.raises(ConfigError, match="timeout must be"):
            TaskOptions(timeout=wrong)
    with pytest.raises(ConfigError, match="backoff must be a finite number, not 'x'"):
        TaskOptions(backoff="x")  # type: ignore[arg-type]
    assert retry_delay(TaskOptions(retry_delay=0.0), 5_000) == 0.0


def test_what_cannot_be_a_task(app: Flowrra) -> None:
    def numbers() -> Any:
        yield 1

    with pytest.raises(ConfigError, match="is a generator"):
        app.task(numbers)
    with pytest.raises(ConfigError, match="of an object, which another process cannot import"):
        app.task(cpu_bound=True)(Path().exists)
    with pytest.raises(ConfigError, match="a queue's name"):
        ExecutorConfig(queues={"": 5})
    for name in ("\0", "\ud800"):
        with pytest.raises(ConfigError, match="unique must be"):
            app.task(fail).options(unique=name)
