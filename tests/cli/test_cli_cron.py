"""`python -m flowrra cron`: what is printed for a schedule, and what clock changes do to it."""

import subprocess
import sys
from collections.abc import Callable

import pytest

from flowrra import main

Say = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """Runs the command; its status and the lines that it wrote."""

    def run(*argv: str) -> tuple[int, list[str]]:
        status = main(["cron", *argv])
        written = capsys.readouterr()
        return status, (written.out + written.err).splitlines()

    return run


def test_the_next_fires_and_how_far_they_are(say: Say) -> None:
    status, lines = say("0 9 * * mon-fri", "--tz", "Europe/Riga", "-n", "3", "--after", "2026-01-02T08:59:18")
    assert status == 0
    assert lines == [
        "At 09:00 on Monday through Friday, Europe/Riga",
        "Fri 2026-01-02 09:00:00 +0200  in 42 s",
        "Mon 2026-01-05 09:00:00 +0200  in 3 d 0 h",
        "Tue 2026-01-06 09:00:00 +0200  in 4 d 0 h",
    ]


def test_ten_fires_from_now_on_in_utc() -> None:
    command = [sys.executable, "-m", "flowrra", "cron", "* * * * *"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[0] == "Every minute, UTC"
    assert len(lines) == 11
    assert " +0000  in " in lines[1]


def test_a_fire_that_a_gap_moves(say: Say) -> None:
    _, lines = say("30 2 * * *", "--tz", "America/New_York", "-n", "3", "--after", "2026-03-07T00:00")
    assert lines[1:] == [
        "Sat 2026-03-07 02:30:00 -0500  in 2 h 30 m",
        "Sun 2026-03-08 03:00:00 -0400  in 1 d 2 h".ljust(48)
        + "2026-03-08 02:30 moved here, the clock goes from 02:00 to 03:00",
        "Mon 2026-03-09 02:30:00 -0400  in 2 d 1 h",
    ]


def test_a_day_that_has_it_not_at_all(say: Say) -> None:
    _, lines = say("*/30 2 * * *", "--tz", "America/New_York", "-n", "3", "--after", "2026-03-07T02:10")
    assert lines[1:] == [
        "Sat 2026-03-07 02:30:00 -0500  in 20 m 0 s",
        "2026-03-08 02:00 does not run, the clock goes from 02:00 to 03:00",
        "Mon 2026-03-09 02:00:00 -0400  in 1 d 22 h",
        "Mon 2026-03-09 02:30:00 -0400  in 1 d 23 h",
    ]
    _, lines = say("0 9 * * *", "--tz", "Pacific/Apia", "-n", "1", "--after", "2011-12-29T12:00")
    assert lines[1] == "2011-12-30 09:00 does not run, the clock goes from 00:00 to 00:00"


def test_a_day_that_has_it_twice(say: Say) -> None:
    _, lines = say("*/60 1 * * *", "--tz", "America/New_York", "-n", "2", "--after", "2026-10-31T12:00")
    assert lines[1:] == [
        "Sun 2026-11-01 01:00:00 -0400  in 13 h 0 m      the first of two, the clock goes from 02:00 to 01:00",
        "Sun 2026-11-01 01:00:00 -0500  in 14 h 0 m      the second of two, the clock goes from 02:00 to 01:00",
    ]


def test_a_time_that_comes_twice_and_runs_once(say: Say) -> None:
    _, lines = say("30 1 * * *", "--tz", "America/New_York", "-n", "2", "--after", "2026-10-31T12:00")
    assert lines[1:] == [
        "Sun 2026-11-01 01:30:00 -0400  in 13 h 30 m     runs once, although the clock goes from 02:00 to 01:00",
        "Mon 2026-11-02 01:30:00 -0500  in 1 d 14 h",
    ]


def test_nothing_is_said_of_a_fire_that_is_not_shown(say: Say) -> None:
    """Each line begins with a moment: that the clock changed before the first fire is no news."""
    _, lines = say("*/30 1 * * *", "--tz", "America/New_York", "-n", "1", "--after", "2026-11-01T01:45")
    assert lines[1:] == [
        "Sun 2026-11-01 01:00:00 -0500  in 15 m 0 s      the second of two, the clock goes from 02:00 to 01:00"
    ]
    _, lines = say("30 1 * * *", "--tz", "America/New_York", "-n", "1", "--after", "2026-11-01T01:45")
    assert lines[1:] == ["Mon 2026-11-02 01:30:00 -0500  in 1 d 0 h"]
    _, lines = say("*/30 1 * * *", "--tz", "America/New_York", "-n", "1", "--after", "2026-11-01T00:45")
    assert lines[1:] == [
        "Sun 2026-11-01 01:00:00 -0400  in 15 m 0 s      the first of two, the clock goes from 02:00 to 01:00"
    ]


NOTE = "note: a day matches if day-of-month or day-of-week matches; if one begins with *, both must match"


@pytest.mark.parametrize(
    ("expr", "is_warned"),
    [
        *(("0 0 13 * fri", True), ("0 0 L * mon#1", True)),
        *(("0 0 13 * *", False), ("0 0 * * fri", False), ("0 0 */2 * fri", False), ("0 0 13 * ?", False)),
    ],
)
def test_the_rule_of_days_is_told_where_it_surprises(say: Say, expr: str, is_warned: bool) -> None:
    _, lines = say(expr, "-n", "1")
    assert (NOTE in lines) == is_warned


def test_a_schedule_that_is_over(say: Say) -> None:
    assert say("0 0 0 1 1 * 2020") == (0, ["At 00:00 on the 1st in January in 2020, UTC", "it never fires again"])


@pytest.mark.parametrize("zone", ["UTC", "Europe/Riga", "America/New_York", "+14:00", "-12:00"])
@pytest.mark.parametrize("expression", ["0 0 * * *", "* * * * *", "59 23 31 12 *"])
@pytest.mark.parametrize(
    "after", ["0001-01-01", "0001-01-01T05:00+05:00", "9999-12-31", "9999-12-31T23:59", "9999-12-31T23:59-05:00"]
)
def test_the_ends_of_the_calendar(say: Say, expression: str, zone: str, after: str) -> None:
    status, lines = say(expression, f"--tz={zone}", "--after", after)
    assert status == 0 or lines[-1].startswith("flowrra: ")
    assert status == 0 or "not within the years 1 to 9999" in lines[-1] or "not all is within" in lines[-1]


def test_h_goes_by_the_name(say: Say) -> None:
    assert say("H 3 * * *", "--name", "report", "-n", "1")[1][0] == "At 03:06, UTC"


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["0 24 * * *"], "flowrra: bad hour field '24': 24 is not in 0-23"),
        (["@daily", "--tz", "Mars"], "flowrra: there is no time zone 'Mars': give a key such as 'Europe/Riga'"),
        (["@daily", "-n", "0"], "flowrra: -n must be at least 1, not 0"),
        (["@daily", "--after", "soon"], "flowrra: a time has the form 2026-03-07T12:00, not 'soon'"),
    ],
)
def test_what_is_refused(say: Say, argv: list[str], complaint: str) -> None:
    assert say(*argv) == (2, [complaint])
