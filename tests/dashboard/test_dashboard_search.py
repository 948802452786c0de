"""The search line: what its words mean, and how it goes on while it is typed."""

import datetime as dt
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowrra import Attempt, Job, TaskStatus
from flowrra_extras.dashboard import job_search
from flowrra_extras.dashboard.job_search import Search, Surroundings, as_of, changed, complete, parse, written

NOW = dt.datetime(2026, 11, 25, 12, tzinfo=dt.UTC).timestamp()
TASKS = ["shop.mail.send", "shop.pay", "other.pay"]


def read(line: str) -> Search:
    around = Surroundings(NOW, TASKS, lambda job: job_search.arguments_by_name(job, ["user", "order"]))
    return parse(line, around)


def found(line: str, *args: Any, **job: Any) -> bool:
    """Whether the line finds a job with these arguments."""
    wanted = read(line)
    assert wanted.problems == []
    one = Job("a1b2", job.pop("task", "shop.pay"), args, job.pop("kwargs", {}), submitted=NOW - 60, **job)
    return wanted.which.matches(one) and wanted.matches(one)


def test_words_are_parted_by_blanks_of_any_kind() -> None:
    wanted = read('state:failed\N{NO-BREAK SPACE}task:pay\u3000error:a"b c"d')
    assert (wanted.problems, wanted.which.task, wanted.which.error) == ([], "pay", "ab cd")


def test_what_the_store_can_tell_is_left_to_it() -> None:
    wanted = read('state:failed,retrying task:send queue:mail tag:t:42 worker:w1 error:"no answer" parent:p1 id:a,b')
    assert wanted.problems == []
    assert wanted.is_for_the_store
    assert wanted.which.status == frozenset((TaskStatus.FAILED, TaskStatus.RETRYING))
    assert (wanted.which.task, wanted.which.queue, wanted.which.worker) == ("shop.mail.send", "mail", "w1")
    assert (wanted.which.error, wanted.which.parent, wanted.which.ids) == ("no answer", "p1", ["a", "b"])
    assert wanted.which.tag == "t:42"


@pytest.mark.parametrize(
    ("line", "task"),
    [("task:shop.pay", "shop.pay"), ("task:pay", "pay"), ("task:send", "shop.mail.send"), ("task:gone", "gone")],
)
def test_a_task_may_be_given_by_its_last_part_if_that_is_clear(line: str, task: str) -> None:
    assert read(line).which.task == task


@pytest.mark.parametrize(
    "line",
    [
        "args.user:42",
        "args.0:42",
        "args.order.id:7",
        'args.order.name:"Ann B"',
        "args.order.lines.1:b",
        "args.order.paid:true",
        "args.order.note:null",
        "args.extra:1.5",
    ],
)
def test_arguments_are_found_by_name_position_and_path(line: str) -> None:
    order = {"id": 7, "name": "Ann B", "lines": ["a", "b"], "paid": True, "note": None}
    assert found(line, 42, order, kwargs={"extra": 1.5})
    assert not found(line, 43, {"id": 8, "note": 0}, kwargs={"extra": 2})


def test_moments_bound_the_submission() -> None:
    assert found("after:2m before:30s")
    assert not found("after:30s")
    assert not found("before:2m")
    assert read("after:2026-11-25").after == dt.datetime(2026, 11, 25, tzinfo=dt.UTC).timestamp()
    assert read("before:2026-11-25T10:00+02:00").before == NOW - 4 * 3600


def test_moments_bound_the_latest_change() -> None:
    assert found("since:2m until:30s")  # it was submitted a minute ago
    failed = {"status": TaskStatus.FAILED, "started": NOW - 50, "finished": NOW - 20}
    assert found("state:failed since:30s", **failed)
    assert not found("state:failed until:30s", **failed)
    assert not found("since:10s", **failed)
    exactly = dt.datetime.fromtimestamp(NOW - 20, dt.UTC).isoformat()
    assert found(f"since:{exactly} until:{exactly}", **failed)


@pytest.mark.parametrize(
    ("job", "ago"),
    [
        ({}, 60),
        ({"status": TaskStatus.RUNNING, "started": NOW - 50}, 50),
        ({"status": TaskStatus.SUCCESS, "started": NOW - 50, "finished": NOW - 40}, 40),
        ({"status": TaskStatus.PENDING, "due": NOW - 30}, 30),
        ({"status": TaskStatus.SCHEDULED, "due": NOW + 30}, 60),
        ({"history": (Attempt(1, "w", NOW - 50, NOW - 40, "failure"),)}, 40),
        ({"history": (Attempt(1, "Ada", NOW - 10, NOW - 10, "note", "requeued"),)}, 10),
    ],
)
def test_a_job_has_changed_when_it_came_into_its_state(job: dict[str, Any], ago: float) -> None:
    assert changed(Job("a", "shop.pay", submitted=NOW - 60, **job)) == NOW - ago


@pytest.mark.parametrize(
    ("line", "key", "bound"),
    [
        ("after:2h after:1h", "after", NOW - 3600),
        ("before:1h before:2h", "before", NOW - 7200),
        ("since:1h since:2h", "since", NOW - 3600),
        ("until:2h until:1h", "until", NOW - 7200),
    ],
)
def test_of_two_moments_the_narrower_counts(line: str, key: str, bound: float) -> None:
    assert getattr(read(line), key) == bound


def test_a_job_is_found_by_its_unique_key() -> None:
    assert found('unique:"receipt 42"', unique="receipt 42")
    assert not found("unique:receipt", unique="receipt 42")
    assert not found("unique:receipt")


@pytest.mark.parametrize(
    ("line", "bounded"),
    [
        ("", "before:2026-11-25"),
        ("task:pay args.user:42 tag:a", "task:pay args.user:42 tag:a before:2026-11-25"),
        ("task:pay state:failed", "task:pay state:failed until:2026-11-25"),
        ('"no answer"', '"no answer" until:2026-11-25'),
    ],
)
def test_a_line_is_bound_to_what_it_finds_at_a_moment(line: str, bounded: str) -> None:
    """By when the jobs came, or where what it asks for may change, by when they changed."""
    assert as_of(line, "2026-11-25") == bounded


def test_a_bare_word_is_part_of_the_id_the_task_or_the_error() -> None:
    assert found("A1B")
    assert found("PAY")
    assert found('"no answer"', error="There was no answer")
    assert not found("absent", error="There was no answer")
    assert found("http://host", error="cannot reach http://host")


def test_jobs_of_one_kind_of_failure_are_found_by_its_key() -> None:
    one = Job("a", "shop.pay", error="no answer after 3 s")
    key = job_search.failure_key(one)
    assert found(f"alike:{key}", error="no answer after 250 s")
    assert not found(f"alike:{key}", error="no money after 3 s")
    assert not found(f"alike:{key}", error="no answer after 3 s", task="other.pay")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("state:broken", "'broken' is not a state"),
        ("after:yesterday", "'yesterday' is not a time"),
        ("before:99999999999-01-01", "is not a time"),
        ("queue:", "has no value after the colon"),
        ("args:7", "names no argument"),
        ("args..a:7", "names no argument"),
        ('error:"open', "quotation mark"),
        ("x" * 4001, "4001 characters"),
        ("id:\0", "a NUL character"),
    ],
)
def test_what_cannot_be_understood_is_said(line: str, reason: str) -> None:
    (problem,) = read(line).problems
    assert reason in problem


@given(st.text(max_size=60))
def test_no_line_makes_it_stumble(line: str) -> None:
    wanted = read(line)
    wanted.matches(Job("a", "shop.pay", (1, {"id": 2}), submitted=NOW, error="no"))


@given(st.text(st.characters(exclude_characters='"\0', exclude_categories=["Cs"]), min_size=1, max_size=20))
def test_a_written_value_is_read_again(value: str) -> None:
    assert read(written(queue=value)).which.queue == value


def test_completion_offers_keys_then_values() -> None:
    choices = {"state": list(map(str, TaskStatus)), "task": TASKS, "queue": ["night shift"]}
    assert complete("qu", choices) == ["queue:"]
    assert complete("ar", choices) == ["args."]
    assert complete("state:re", choices) == ["state:retrying"]
    assert complete("task:pay", choices) == ["task:shop.pay", "task:other.pay"]
    assert complete("queue:n", choices) == ['queue:"night shift"']
    assert complete("nothing:x", choices) == []
