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
    Activity,
    ActivitySums,
    BackendConfig,
    BrokerConfig,
    Config,
    ConfigError,
    ExecutorConfig,
    Job,
    JobFilter,
    Outcome,
    TaskResult,
    TaskStatus,
    activity_texts,
    length_bucket,
    make_schedule,
    sources,
    sum_of_activity,
)
from flowrra_extras.metrics import quantile


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
    assert sources(TaskStatus.SUCCESS) == {TaskStatus.RUNNING, TaskStatus.SCHEDULED}  # an event that is emitted


@pytest.mark.parametrize(
    ("outcome", "status", "ending"),
    [
        (Outcome.succeed(Job("a", "t", attempt=3), 1), TaskStatus.SUCCESS, "success"),
        (Outcome.fail(Job("a", "t", attempt=3), "E"), TaskStatus.FAILED, "failure"),
        (Outcome.retry_at(Job("a", "t", attempt=3), 5.0, "E"), TaskStatus.RETRYING, "failure"),
        (Outcome.release(Job("a", "t", attempt=3), "stop"), TaskStatus.PENDING, "release"),
        (Outcome.release(Job("a", "t", attempt=3), "later", 5.0, begun=False), TaskStatus.SCHEDULED, "release"),
        (Outcome.release(Job("a", "t", attempt=3), "429", 5.0), TaskStatus.SCHEDULED, "snooze"),
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
        (JobFilter(error="ERROR: [n"), True),
        (JobFilter(error="other"), False),
        (JobFilter(parent="p"), True),
        (JobFilter(parent="a"), False),
        (JobFilter(from_seq=5), True),
        (JobFilter(from_seq=6), False),
    ],
)
def test_filters(which: JobFilter, matches: bool) -> None:
    job = Job("a", "t", queue="q", worker="w", seq=5, error="KeyError: [no]", parents=("p",))
    assert which.matches(job) is matches
    assert not JobFilter(error="none").matches(Job("a", "t"))


# ---------------------------------------------------------------------------
# Activity
# ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "bucket"),
    [(-1.0, 0), (0.0, 0), (0.000_09, 0), (0.000_11, 1), (0.000_19, 1), (0.000_21, 2), (1.0, 14), (86_400.0, 30)],
)
def test_lengths_go_to_buckets_that_double(seconds: float, bucket: int) -> None:
    assert length_bucket(seconds) == bucket
    assert seconds < 0.0001 * 2**bucket


def test_quantiles_lie_in_their_buckets() -> None:
    histogram = {14: 80, 3: 10, 20: 10}
    assert quantile({}, 0.5) is None
    assert quantile(histogram, 0.0) == pytest.approx(0.0001 * 2**2)
    assert quantile(histogram, 0.05) == pytest.approx(0.0001 * 2**2.5)
    assert quantile(histogram, 0.5) == pytest.approx(0.0001 * 2**13.5)
    assert quantile(histogram, 0.9) == pytest.approx(0.0001 * 2**14)
    assert quantile(histogram, 1.0) == pytest.approx(0.0001 * 2**20)


def test_an_attempt_is_counted_where_it_ended() -> None:
    sums = ActivitySums()
    first, second = Job("a", "t", attempt=1, submitted=50.0), Job("b", "t", attempt=1, submitted=50.0, due=60.0)
    sums[60, "t"].count(TaskStatus.SUCCESS, [(first, 58.0)], 61.0)
    sums[60, "t"].count(TaskStatus.FAILED, [(second, 61.0)], 61.0)
    sums[60, "t"].count(TaskStatus.RETRYING, [(Job("c", "t", attempt=2, submitted=50.0), 60.0)], 61.0)
    child = Job("d", "t", attempt=1, submitted=50.0, parents=("a",))
    sums[120, "t"].count(TaskStatus.SUCCESS, [(child, 60.0)], 120.0)
    runs = {length_bucket(3.0): 1, 0: 1, length_bucket(1.0): 1}
    assert sums.in_order() == [
        Activity(60, "t", 1, 1, 1, {length_bucket(8.0): 1, length_bucket(1.0): 1}, runs, waited=9.0, ran=4.0),
        Activity(120, "t", 1, 0, 0, {}, {length_bucket(60.0): 1}, ran=60.0),
    ]


def test_activity_survives_being_stored() -> None:
    rows = [Activity(60, "t", 1, 2, 3, {0: 4}, {34: 5}), Activity(120, "täsk", 1)]
    texts = activity_texts(rows)
    assert list(texts) == [60, 120]
    assert sum_of_activity(texts.values()) == rows
    doubled = [Activity(60, "t", 2, 4, 6, {0: 8}, {34: 10}), Activity(120, "täsk", 2)]
    assert sum_of_activity([*texts.values(), *texts.values()]) == doubled


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


def settings_that_are_none(caplog: pytest.LogCaptureFixture, prefix: str, *names: str) -> list[str]:
    Config.from_env(prefix, dict.fromkeys(names, "1"))
    return [record.getMessage() for record in caplog.records]


def test_a_variable_that_is_no_setting_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """Not refused: it may be another program's, or what Kubernetes makes for a service called `flowrra`."""
    names = ["FLOWRRA_SCHEDULER_DATABASE_URL", "FLOWRRA_EXECUTER_IO_WORKERS", "FLOWRRA_BROKR"]
    for _ in range(2):
        said = settings_that_are_none(caplog, "FLOWRRA_", *names, "FLOWRRA_SERVICE_HOST", "FLOWRRA")
        assert said == [
            "FLOWRRA_BROKR is not a setting and is ignored; did you mean FLOWRRA_BROKER?",
            "FLOWRRA_EXECUTER_IO_WORKERS is not a setting and is ignored; did you mean FLOWRRA_EXECUTOR_IO_WORKERS?",
            "FLOWRRA_SCHEDULER_DATABASE_URL is not a setting and is ignored",
            "FLOWRRA_SERVICE_HOST is not a setting and is ignored",
        ]


def test_a_variable_of_something_else_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    own = ("FLOWRRA_APP", "FLOWRRA_TEST_REDIS_URL", "FLOWRRA_REQUIRE_SERVICES", "OTHER_EXECUTER_IO_WORKERS")
    assert settings_that_are_none(caplog, "FLOWRRA_", *own) == []
    assert settings_that_are_none(caplog, "SHOP_", "SHOP_SECRET_KEY", "SHOP_EXECUTER_DRAIN") == [
        "SHOP_EXECUTER_DRAIN is not a setting and is ignored; did you mean SHOP_EXECUTOR_DRAIN?"
    ]


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        (
            "FLOWRRA_EXECUTOR_IO_WORKER",
            "7",
            "FLOWRRA_EXECUTOR_IO_WORKER is not an option; the options are .*io_workers",
        ),
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


def test_results_and_schedules_have_the_names_of_the_first_version_too() -> None:
    result = TaskResult[Any]("a", "mail.send", TaskStatus.SUCCESS, 7, attempts=3)
    assert (result.task_name, result.is_complete, result.retries) == ("mail.send", True, 2)
    assert TaskResult[Any]("a", "t", TaskStatus.PENDING, None).retries == 0
    made = make_schedule("mail.send", "interval", 60, args=(1,), kwargs={"to": "Ada"})
    made.next_fire, made.last_fire = 120.0, 60.0
    assert (made.task_name, list(made.args), dict(made.kwargs)) == ("mail.send", [1], {"to": "Ada"})
    assert (made.next_run_at, made.last_run_at) == (made.next_fire_at, made.last_fire_at)
