"""When a failed attempt is tried again, and what an attempt that raised comes to."""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowrra import (
    ConfigError,
    Job,
    ProcessDiedError,
    RemoteError,
    ResultError,
    Retry,
    TaskOptions,
    TaskStatus,
    TaskTimeoutError,
    is_retryable,
    judge,
    retry_delay,
)

SECONDS = st.floats(min_value=0, max_value=1e6)
OPTIONS = st.builds(
    TaskOptions,
    retry_delay=SECONDS,
    backoff=st.floats(min_value=0, max_value=100),
    max_delay=SECONDS,
    jitter=st.just(False),
)


@pytest.mark.parametrize(("retry", "delay"), [(1, 2.0), (2, 6.0), (3, 18.0), (4, 50.0), (5, 50.0), (5000, 50.0)])
def test_the_delay_grows_by_its_factor_up_to_its_limit(retry: int, delay: float) -> None:
    assert retry_delay(TaskOptions(retry_delay=2.0, backoff=3.0, max_delay=50.0), retry) == delay


@given(OPTIONS, st.integers(min_value=1, max_value=10**6))
def test_the_delay_keeps_its_bounds(options: TaskOptions, retry: int) -> None:
    assert 0 <= retry_delay(options, retry) <= options.max_delay


@given(st.integers(min_value=1, max_value=50), st.floats(min_value=0, max_value=1, exclude_max=True))
def test_jitter_draws_from_nothing_to_the_whole_delay(retry: int, drawn: float) -> None:
    whole = retry_delay(TaskOptions(), retry)
    assert retry_delay(TaskOptions(jitter=True), retry, lambda: drawn) == whole * drawn


class FlakyError(ConnectionError):
    """An error that somebody might want to retry."""


def ended_attempt() -> TaskTimeoutError:
    """What an attempt raises that took longer than its `timeout`."""
    error = TaskTimeoutError("the attempt took longer")
    error.ends_attempt = True
    return error


@pytest.mark.parametrize(
    ("options", "error", "again"),
    [
        ({}, ValueError(), True),
        ({}, SystemExit(1), False),
        ({}, KeyboardInterrupt(), False),
        ({"retry_on": (ConnectionError,)}, FlakyError(), True),
        ({"retry_on": (ConnectionError,)}, ValueError(), False),
        ({"no_retry_on": (ConnectionError,)}, FlakyError(), False),
        ({"no_retry_on": (ConnectionError,)}, ValueError(), True),
        ({"retry_on": (ConnectionError,)}, Retry(), True),
        ({"no_retry_on": (Exception,)}, Retry(), True),
        ({"no_retry_on": (Exception,)}, RemoteError("E", ["flowrra.Retry", "builtins.Exception"], "", None), True),
        ({"retry_on": (ConnectionError,)}, TaskTimeoutError("of a job that it waited for"), False),
        ({"retry_on": (TimeoutError,)}, TaskTimeoutError("of a job that it waited for"), True),
        ({"retry_on": (ConnectionError,)}, ended_attempt(), True),
        ({"retry_on": (ConnectionError,)}, ProcessDiedError(), True),
        ({"no_retry_on": (TaskTimeoutError,)}, ended_attempt(), False),
        ({"retry_on": (Exception,)}, ResultError("cannot be kept"), False),
        ({}, RemoteError("E", ["flowrra.ResultError", "builtins.Exception"], "", None), False),
        (
            {"retry_on": (ConnectionError,)},
            RemoteError("E", ["tests.FlakyError", "builtins.ConnectionError"], "", None),
            True,
        ),
        ({"retry_on": (ConnectionError,)}, RemoteError("E", ["builtins.ValueError"], "", None), False),
        ({"retry_on": (ConnectionError,)}, RemoteError("E", ["flowrra.SoftTimeoutError"], "", None), True),
    ],
)
def test_what_is_tried_again(options: dict[str, Any], error: BaseException, again: bool) -> None:
    assert is_retryable(TaskOptions(**options), error) is again


def test_a_failure_is_tried_again_as_long_as_there_are_retries() -> None:
    options = TaskOptions(max_retries=2, retry_delay=5.0)
    outcome = judge(Job("id", "task", attempt=9, failures=1), options, ValueError("no"), 100.0)
    assert (outcome.status, outcome.due, outcome.error) == (TaskStatus.RETRYING, 110.0, "ValueError: no")
    assert outcome.attempt == 9
    outcome = judge(Job("id", "task", failures=2), options, ValueError("no"), 100.0)
    assert (outcome.status, outcome.due) == (TaskStatus.FAILED, None)
    assert outcome.traceback is not None
    assert "ValueError: no" in outcome.traceback


def test_a_task_may_choose_its_delay() -> None:
    outcome = judge(Job("id", "task"), TaskOptions(), Retry("later", delay=0.5), 100.0)
    assert (outcome.status, outcome.due, outcome.error) == (TaskStatus.RETRYING, 100.5, "Retry: later")
    outcome = judge(Job("id", "task"), TaskOptions(), RemoteError("Retry: later", ["flowrra.Retry"], "", 7.0), 100.0)
    assert (outcome.status, outcome.due) == (TaskStatus.RETRYING, 107.0)


class LaterError(Retry):
    """A subclass that does not call its base's __init__()."""

    def __init__(self, delay: Any = None) -> None:
        if delay is not None:
            self.delay = delay


@pytest.mark.parametrize(
    ("delay", "due"),
    [(None, 101.0), (5, 105.0), (dt.timedelta(seconds=7), 107.0), *((odd, 101.0) for odd in ("5", -1))],
)
def test_a_retry_may_be_of_a_kind_of_its_own(delay: Any, due: float) -> None:
    outcome = judge(Job("id", "task"), TaskOptions(no_retry_on=(Retry,)), LaterError(delay), 100.0)
    assert (outcome.status, outcome.due, (outcome.error or "")[:10]) == (TaskStatus.RETRYING, due, "LaterError")


@pytest.mark.parametrize("delay", [-1, float("nan"), float("inf"), "5", True])
def test_a_delay_that_is_none_is_refused(delay: Any) -> None:
    with pytest.raises(ConfigError, match="delay must be"):
        Retry(delay=delay)


def test_options_are_what_the_documentation_says() -> None:
    options = TaskOptions()
    assert (options.max_retries, options.retry_delay, options.backoff, options.max_delay) == (3, 1.0, 2.0, 3600.0)
    assert (options.jitter, options.timeout, options.priority, options.cpu_bound) == (False, None, 0, False)
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.priority = 1  # type: ignore[misc]


def test_a_task_has_a_queue_by_its_kind() -> None:
    assert TaskOptions().effective_queue == "default"
    assert TaskOptions(cpu_bound=True).effective_queue == "cpu"
    assert TaskOptions(cpu_bound=True, queue="films").effective_queue == "films"


def test_options_at_their_limits_are_taken() -> None:
    options = TaskOptions(max_retries=0, retry_delay=0.0, max_delay=0.0, timeout=0.001, result_ttl=0.0, queue="a b")
    assert options.queue == "a b"
    assert [TaskOptions(priority=bound).priority for bound in (-(2**63), 2**63 - 1)] == [-(2**63), 2**63 - 1]


@pytest.mark.parametrize(
    "options",
    [
        {"max_retries": -1},
        {"max_retries": 1.5},
        {"retry_delay": -0.1},
        {"backoff": float("nan")},
        {"max_delay": "1"},
        {"timeout": 0},
        {"timeout": 0.0009},
        {"priority": "high"},
        {"priority": 2**63},
        {"priority": -(2**63) - 1},
        {"queue": "a,b"},
        {"queue": "a:b"},
        {"queue": " a"},
        {"queue": "a "},
        {"queue": ""},
        {"queue": 1},
        {"retry_on": (1,)},
        {"result_ttl": -1},
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ConfigError, match=name):
        TaskOptions(**options)


def test_one_exception_type_needs_no_tuple() -> None:
    options = TaskOptions(retry_on=ValueError, no_retry_on=KeyError)  # type: ignore[arg-type]  # as @app.task takes it
    assert (options.retry_on, options.no_retry_on) == ((ValueError,), (KeyError,))
    assert is_retryable(options, ValueError())
    assert not is_retryable(options, KeyError())
