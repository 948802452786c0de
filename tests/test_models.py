"""What a job is, which moves it may make, and how it is configured."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from flowrra import (
    FINISHED,
    REQUEUABLE,
    TRANSITIONS,
    UNFINISHED,
    BackendConfig,
    BrokerConfig,
    Config,
    ConfigError,
    ExecutorConfig,
    Job,
    JobFilter,
    Outcome,
    TaskStatus,
    sources,
)


def reachable(start: TaskStatus) -> set[TaskStatus]:
    found = {start}
    while more := {target for status in found for target in TRANSITIONS[status]} - found:
        found |= more
    return found


def test_every_state_has_its_moves() -> None:
    assert set(TRANSITIONS) == set(TaskStatus)
    assert set(TaskStatus) == FINISHED | UNFINISHED
    assert not FINISHED & UNFINISHED


@pytest.mark.parametrize("status", sorted(UNFINISHED))
def test_every_unfinished_job_can_come_to_each_end(status: TaskStatus) -> None:
    assert reachable(status) >= FINISHED


def test_success_is_the_end() -> None:
    assert TRANSITIONS[TaskStatus.SUCCESS] == frozenset()
    assert {TaskStatus.FAILED, TaskStatus.CANCELLED} == REQUEUABLE


def test_only_a_ready_job_begins_to_run() -> None:
    assert sources(TaskStatus.RUNNING) == {TaskStatus.PENDING}
    assert sources(TaskStatus.SUCCESS) == {TaskStatus.RUNNING}


@pytest.mark.parametrize(
    ("outcome", "status", "ending"),
    [
        (Outcome.succeed(Job("a", "t", attempt=3), 1), TaskStatus.SUCCESS, "success"),
        (Outcome.fail(Job("a", "t", attempt=3), "E"), TaskStatus.FAILED, "failure"),
        (Outcome.retry_at(Job("a", "t", attempt=3), 5.0, "E"), TaskStatus.RETRYING, "failure"),
        (Outcome.release(Job("a", "t", attempt=3), "stop"), TaskStatus.PENDING, "release"),
        (Outcome.release(Job("a", "t", attempt=3), "later", 5.0), TaskStatus.SCHEDULED, "release"),
        (Outcome.cancel(Job("a", "t", attempt=3), "asked"), TaskStatus.CANCELLED, "cancel"),
    ],
)
def test_an_outcome_says_where_the_job_goes_and_for_which_attempt(
    outcome: Outcome, status: TaskStatus, ending: str
) -> None:
    assert (outcome.status, outcome.ending, outcome.attempt) == (status, ending, 3)
    assert status in TRANSITIONS[TaskStatus.RUNNING]
    outcome.job.attempt += 1
    assert outcome.attempt == 3, "the token is that of the moment when the outcome was made"


def test_times_are_aware_and_in_utc() -> None:
    job = Job("a", "t", submitted=0.0, due=1.5, started=2.0)
    assert job.submitted_at == dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    assert job.due_at == dt.datetime(1970, 1, 1, 0, 0, 1, 500_000, tzinfo=dt.UTC)
    assert job.started_at is not None
    assert job.started_at.tzinfo is dt.UTC
    assert job.finished_at is None


def test_the_latest_attempt_follows_the_history() -> None:
    job = Job("a", "t", attempt=2, status=TaskStatus.FAILED, worker="w", started=1.0, finished=2.0, error="E: no")
    (latest,) = job.attempts
    assert (latest.number, latest.outcome, latest.worker, latest.error) == (2, "failure", "w", "E: no")
    waiting = Job("a", "t", attempt=2, status=TaskStatus.RETRYING, history=(latest,))
    assert waiting.attempts == (latest,)


@pytest.mark.parametrize(
    ("which", "matches"),
    [
        (JobFilter(), True),
        (JobFilter(ids=["a"]), True),
        (JobFilter(ids=[]), False),
        (JobFilter(status=frozenset({TaskStatus.PENDING})), True),
        (JobFilter(status=frozenset()), False),
        (JobFilter(task="t", queue="q", worker="w"), True),
        (JobFilter(task="other"), False),
        (JobFilter(queue="other"), False),
        (JobFilter(worker="other"), False),
        (JobFilter(ahead_of=Job("b", "t", queue="q", priority=0, seq=6)), True),
        (JobFilter(ahead_of=Job("b", "t", queue="q", priority=0, seq=5)), False),
        (JobFilter(ahead_of=Job("b", "t", queue="q", priority=-1, seq=6)), False),
        (JobFilter(ahead_of=Job("b", "t", queue="other", seq=6)), False),
    ],
)
def test_filters(which: JobFilter, matches: bool) -> None:
    assert which.matches(Job("a", "t", queue="q", worker="w", seq=5)) is matches


# ---------------------------------------------------------------------------
# Configuration
# ---------------------------------------------------------------------------


def test_the_environment_configures() -> None:
    config = Config.from_env(
        environ={
            "FLOWRRA_BROKER": "sqlite:///jobs.db",
            "FLOWRRA_BROKER_TIMEOUT": "2.5",
            "FLOWRRA_BROKER_MAX_QUEUE_SIZE": "100",
            "FLOWRRA_BACKEND": "memory://",
            "FLOWRRA_EXECUTOR_IO_WORKERS": "7",
            "FLOWRRA_EXECUTOR_QUEUES": "default:50, mail:2",
            "FLOWRRA_APP": "shop:app",
            "OTHER_BROKER": "no",
        }
    )
    assert config.broker == BrokerConfig(url="sqlite:///jobs.db", timeout=2.5, max_queue_size=100)
    assert config.backend == BackendConfig(url="memory://")
    assert config.executor.io_workers == 7
    assert config.executor.queues == {"default": 50, "mail": 2}
    assert Config.from_env("MY_", {"MY_BROKER": "sqlite://"}).broker.url == "sqlite://"
    assert Config.from_env(environ={}) == Config()


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("FLOWRRA_EXECUTOR_IO_WORKER", "7", "FLOWRRA_EXECUTOR_IO_WORKER names no option; there are .*io_workers"),
        ("FLOWRRA_EXECUTOR_IO_WORKERS", "many", "FLOWRRA_EXECUTOR_IO_WORKERS='many' cannot be read"),
        ("FLOWRRA_EXECUTOR_IO_WORKERS", "0", "io_workers must be at least 1, not 0"),
        ("FLOWRRA_BROKER_TIMEOUT", "nan", "timeout must be a finite number of seconds, not nan"),
    ],
)
def test_a_wrong_variable_is_named(name: str, text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        Config.from_env(environ={name: text})


@pytest.mark.parametrize(
    ("section", "options"),
    [
        (BrokerConfig, {"timeout": -1}),
        (BrokerConfig, {"max_queue_size": 0}),
        (BrokerConfig, {"when_full": "drop"}),
        (BackendConfig, {"result_ttl": -1}),
        (BackendConfig, {"failed_ttl": float("nan")}),
        (BackendConfig, {"max_results": 0}),
        (ExecutorConfig, {"io_workers": True}),
        (ExecutorConfig, {"cpu_workers": 0}),
        (ExecutorConfig, {"queues": {"default": 0}}),
        (ExecutorConfig, {"drain": -1}),
        (ExecutorConfig, {"lease": 10_000}),
        (ExecutorConfig, {"heartbeat": 6.0}),
    ],
)
def test_what_cannot_work_is_refused_at_once(section: Any, options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ConfigError, match="queue 'default'" if name == "queues" else name):
        section(**options)
