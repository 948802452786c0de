"""When schedules fire across clock changes: golden vectors, worked out by hand from the zones' histories.

Each says what the clock did and, as times with their offset, what fires after a moment.
"""

import datetime as dt
import itertools
from collections.abc import Sequence
from zoneinfo import ZoneInfo

import pytest

from flowrra import Cron
from flowrra_extras.cron_words import clock_marks

UTC = dt.UTC

# zone, after (naive: the zone's clock), expression, the fires
FORWARD = [
    # 02:00 -> 03:00
    ("America/New_York", "2026-03-07T12:00", "30 2 * * *", ["2026-03-08T03:00-04:00", "2026-03-09T02:30-04:00"]),
    ("America/New_York", "2026-03-07T12:00", "0 2 * * *", ["2026-03-08T03:00-04:00", "2026-03-09T02:00-04:00"]),
    ("America/New_York", "2026-03-07T12:00", "59 1 * * *", ["2026-03-08T01:59-05:00", "2026-03-09T01:59-04:00"]),
    # Several in one gap run once, also together with what is due at its end.
    ("America/New_York", "2026-03-08T01:30", "0,20,40 2 * * *", ["2026-03-08T03:00-04:00", "2026-03-09T02:00-04:00"]),
    ("America/New_York", "2026-03-08T00:00", "0,30 2-3 * * *", ["2026-03-08T03:00-04:00", "2026-03-08T03:30-04:00"]),
    ("America/New_York", "2026-03-07T12:00", "30 2 8 3 *", ["2026-03-08T03:00-04:00", "2027-03-08T02:30-05:00"]),
    # The day is that of the time in the gap.
    ("America/New_York", "2026-03-02T00:00", "30 2 * * sun", ["2026-03-08T03:00-04:00", "2026-03-15T02:30-04:00"]),
    ("America/New_York", "2026-03-07T12:00", "0-59/30 2 * * *", ["2026-03-08T03:00-04:00", "2026-03-09T02:00-04:00"]),
    ("America/New_York", "2026-03-07T12:00", "15 30 2 * * *", ["2026-03-08T03:00-04:00", "2026-03-09T02:30:15-04:00"]),
    # With a star in front of minute or hour: not there, not run.
    ("America/New_York", "2026-03-08T01:30", "*/30 2 * * *", ["2026-03-09T02:00-04:00", "2026-03-09T02:30-04:00"]),
    ("America/New_York", "2026-03-08T01:10", "30 * * * *", ["2026-03-08T01:30-05:00", "2026-03-08T03:30-04:00"]),
    ("America/New_York", "2026-03-08T01:10", "@hourly", ["2026-03-08T03:00-04:00", "2026-03-08T04:00-04:00"]),
    ("America/New_York", "2026-03-07T03:00", "30 */2 8 3 *", ["2026-03-08T00:30-05:00", "2026-03-08T04:30-04:00"]),
    ("America/New_York", "2026-03-07T03:00", "* 30 2 * * *", ["2026-03-09T02:30-04:00", "2026-03-09T02:30:01-04:00"]),
    # 03:00 -> 04:00
    ("Europe/Riga", "2026-03-28T12:00", "30 3 * * *", ["2026-03-29T04:00+03:00", "2026-03-30T03:30+03:00"]),
    # 02:00 -> 02:30
    ("Australia/Lord_Howe", "2026-10-04T00:00", "15 2 * * *", ["2026-10-04T02:30+11:00", "2026-10-05T02:15+11:00"]),
    ("Australia/Lord_Howe", "2026-10-04T00:00", "45 2 * * *", ["2026-10-04T02:45+11:00", "2026-10-05T02:45+11:00"]),
    ("Australia/Lord_Howe", "2026-10-04T01:40", "*/15 * * * *", ["2026-10-04T01:45+10:30", "2026-10-04T02:30+11:00"]),
    # 01:00 -> 03:00
    ("Antarctica/Troll", "2026-03-28T12:00", "15 2 * * *", ["2026-03-29T03:00+02:00", "2026-03-30T02:15+02:00"]),
    ("Antarctica/Troll", "2026-03-29T00:30", "*/40 * * * *", ["2026-03-29T00:40+00:00", "2026-03-29T03:00+02:00"]),
    # 00:00 -> 01:00
    ("Africa/Cairo", "2024-04-25T12:00", "@daily", ["2024-04-26T01:00+03:00", "2024-04-27T00:00+03:00"]),
    ("Africa/Cairo", "2024-04-25T12:00", "30 0 * * fri", ["2024-04-26T01:00+03:00", "2024-05-03T00:30+03:00"]),
    ("America/Santiago", "2024-09-07T12:00", "0 0 * * *", ["2024-09-08T01:00-03:00", "2024-09-09T00:00-03:00"]),
    ("Asia/Tehran", "2022-03-21T12:00", "0 0 * * *", ["2022-03-22T01:00+04:30", "2022-03-23T00:00+04:30"]),
    ("Atlantic/Azores", "2024-03-30T12:00", "0 0 * * *", ["2024-03-31T01:00+00:00", "2024-04-01T00:00+00:00"]),
    ("Atlantic/Azores", "2024-03-30T12:00", "59 23 * * *", ["2024-03-30T23:59-01:00", "2024-03-31T23:59+00:00"]),
    # 00:01 -> 01:01
    ("America/St_Johns", "2007-03-10T12:00", "0 0 * * *", ["2007-03-11T00:00-03:30", "2007-03-12T00:00-02:30"]),
    ("America/St_Johns", "2007-03-10T12:00", "1 0 * * *", ["2007-03-11T01:01-02:30", "2007-03-12T00:01-02:30"]),
    # 30 December 2011 and 21 August 1993 were left out.
    ("Pacific/Apia", "2011-12-29T12:00", "0 9 * * *", ["2011-12-31T09:00+14:00", "2012-01-01T09:00+14:00"]),
    ("Pacific/Apia", "2011-12-29T12:00", "0 9 30 12 *", ["2012-12-30T09:00+14:00", "2013-12-30T09:00+14:00"]),
    ("Pacific/Apia", "2011-12-29T23:30", "*/30 * * * *", ["2011-12-31T00:00+14:00", "2011-12-31T00:30+14:00"]),
    ("Pacific/Kwajalein", "1993-08-20T12:00", "0 9 * * *", ["1993-08-22T09:00+12:00", "1993-08-23T09:00+12:00"]),
]

BACK = [
    # 02:00 -> 01:00
    ("America/New_York", "2026-10-31T12:00", "30 1 * * *", ["2026-11-01T01:30-04:00", "2026-11-02T01:30-05:00"]),
    ("America/New_York", "2026-10-31T12:00", "0 2 * * *", ["2026-11-01T02:00-05:00", "2026-11-02T02:00-05:00"]),
    ("America/New_York", "2026-10-31T12:00", "0 1 * * *", ["2026-11-01T01:00-04:00", "2026-11-02T01:00-05:00"]),
    ("America/New_York", "2026-11-01T01:40", "*/30 1 * * *", ["2026-11-01T01:00-05:00", "2026-11-01T01:30-05:00"]),
    (
        *("America/New_York", "2026-11-01T00:30", "@hourly"),
        ["2026-11-01T01:00-04:00", "2026-11-01T01:00-05:00", "2026-11-01T02:00-05:00"],
    ),
    # Asked from inside the second pass: the first one has done it.
    ("America/New_York", "2026-11-01T01:10-05:00", "30 1 * * *", ["2026-11-02T01:30-05:00"]),
    ("America/New_York", "2026-11-01T01:10-05:00", "30 1,2 * * *", ["2026-11-01T02:30-05:00"]),
    ("America/New_York", "2026-11-01T06:10+00:00", "30 1 * * *", ["2026-11-02T01:30-05:00"]),
    ("America/New_York", "2026-11-01T01:10-05:00", "30 * * * *", ["2026-11-01T01:30-05:00"]),
    ("America/New_York", "2026-11-01T01:30-04:00", "30 * * * *", ["2026-11-01T01:30-05:00"]),
    # A naive moment is the first of the two.
    ("America/New_York", "2026-11-01T01:10", "30 * * * *", ["2026-11-01T01:30-04:00", "2026-11-01T01:30-05:00"]),
    # 04:00 -> 03:00
    ("Europe/Riga", "2026-10-24T12:00", "30 3 * * *", ["2026-10-25T03:30+03:00", "2026-10-26T03:30+02:00"]),
    # 02:00 -> 01:30
    ("Australia/Lord_Howe", "2026-04-04T12:00", "45 1 * * *", ["2026-04-05T01:45+11:00", "2026-04-06T01:45+10:30"]),
    (
        *("Australia/Lord_Howe", "2026-04-05T01:20", "*/15 * * * *"),
        ["2026-04-05T01:30+11:00", "2026-04-05T01:45+11:00", "2026-04-05T01:30+10:30", "2026-04-05T01:45+10:30"],
    ),
    # 03:00 -> 01:00
    ("Antarctica/Troll", "2026-10-25T00:30", "30 1,2 * * *", ["2026-10-25T01:30+02:00", "2026-10-25T02:30+02:00"]),
    ("Antarctica/Troll", "2026-10-25T02:30", "30 1,2 * * *", ["2026-10-26T01:30+00:00"]),
    ("Antarctica/Troll", "2026-10-25T02:30", "30 * * * *", ["2026-10-25T01:30+00:00", "2026-10-25T02:30+00:00"]),
    # 24:00 -> 23:00, so that the evening comes twice and midnight once
    ("Africa/Cairo", "2024-10-31T12:00", "@daily", ["2024-11-01T00:00+02:00", "2024-11-02T00:00+02:00"]),
    ("Africa/Cairo", "2024-10-31T12:00", "30 23 * * *", ["2024-10-31T23:30+03:00", "2024-11-01T23:30+02:00"]),
    ("Africa/Cairo", "2024-10-31T12:00", "*/60 23 * * *", ["2024-10-31T23:00+03:00", "2024-10-31T23:00+02:00"]),
    ("America/Santiago", "2024-04-06T12:00", "0 0 * * *", ["2024-04-07T00:00-04:00", "2024-04-08T00:00-04:00"]),
    ("America/Santiago", "2024-04-06T12:00", "30 23 * * sat", ["2024-04-06T23:30-03:00", "2024-04-13T23:30-04:00"]),
    ("Asia/Tehran", "2022-09-21T12:00", "0 0 * * *", ["2022-09-22T00:00+03:30", "2022-09-23T00:00+03:30"]),
    # 01:00 -> 00:00
    ("Atlantic/Azores", "2024-10-26T12:00", "0 0 * * *", ["2024-10-27T00:00+00:00", "2024-10-28T00:00-01:00"]),
    ("Atlantic/Azores", "2024-10-26T12:00", "*/60 0 * * *", ["2024-10-27T00:00+00:00", "2024-10-27T00:00-01:00"]),
    # 00:01 -> 23:01 of the day before: midnight comes twice
    ("America/St_Johns", "2007-11-03T12:00", "0 0 * * *", ["2007-11-04T00:00-02:30", "2007-11-05T00:00-03:30"]),
    ("America/St_Johns", "2007-11-03T12:00", "0 */24 * * *", ["2007-11-04T00:00-02:30", "2007-11-04T00:00-03:30"]),
    ("America/St_Johns", "2007-11-03T12:00", "30 23 * * *", ["2007-11-03T23:30-02:30", "2007-11-04T23:30-03:30"]),
    ("America/St_Johns", "2007-11-03T12:00", "1 0 * * *", ["2007-11-04T00:01-03:30", "2007-11-05T00:01-03:30"]),
    # 30 September 1969 came twice, but for an hour: more than three hours, so everything runs in both passes.
    (
        *("Pacific/Kwajalein", "1969-09-30T08:00", "0 9 * * *"),
        ["1969-09-30T09:00+11:00", "1969-09-30T09:00-12:00", "1969-10-01T09:00-12:00"],
    ),
]


def moment(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text)


def instants(moments: Sequence[dt.datetime]) -> list[str]:
    """As text with the offset: times of one zone are equal on both sides of a fold."""
    return [found.isoformat() for found in moments]


@pytest.mark.parametrize(("zone", "after", "expr", "fires"), [*FORWARD, *BACK])
def test_what_fires_across_a_clock_change(zone: str, after: str, expr: str, fires: list[str]) -> None:
    cron = Cron(expr, zone)
    found = [fire for fire, _ in zip(cron.iter(moment(after)), fires, strict=False)]
    assert instants(found) == [moment(fire).isoformat() for fire in fires]
    assert all(fire.tzinfo is ZoneInfo(zone) for fire in found)


@pytest.mark.parametrize(("zone", "after", "expr", "fires"), [*FORWARD, *BACK])
def test_previous_goes_the_same_way_back(zone: str, after: str, expr: str, fires: list[str]) -> None:
    cron = Cron(expr, zone)
    for earlier, later in itertools.pairwise(fires):
        assert cron.previous(moment(later)).isoformat() == moment(earlier).isoformat()
        assert cron.matches(moment(later))


def test_a_moment_in_the_gap_is_taken_with_the_offset_before_it() -> None:
    cron = Cron("*/10 * * * *", "America/New_York")
    # 02:30 EST is 07:30 UTC, when the clock shows 03:30.
    assert cron.next(moment("2026-03-08T02:30")).isoformat() == "2026-03-08T03:40:00-04:00"
    own = dt.datetime(2026, 3, 8, 2, 30, tzinfo=ZoneInfo("America/New_York"))
    assert cron.next(own).isoformat() == "2026-03-08T03:40:00-04:00"


def test_the_fold_of_a_moment_counts_if_it_is_aware_and_not_if_it_is_naive() -> None:
    cron = Cron("*/30 * * * *", "Europe/Riga")
    second = moment("2026-10-25T03:10").replace(fold=1)
    assert cron.next(second).isoformat() == "2026-10-25T03:30:00+03:00"
    assert cron.next(second.replace(tzinfo=ZoneInfo("Europe/Riga"))).isoformat() == "2026-10-25T03:30:00+02:00"


def test_a_zone_that_gave_up_changing_its_clock() -> None:
    assert (
        Cron("30 2 * * *", "Europe/Moscow").next(moment("2050-01-01T12:00")).isoformat() == "2050-01-02T02:30:00+03:00"
    )
    # Asked in the last fold that there was, of years that never come again.
    cron = Cron("0 30 1 26 10 ? 2014", "Europe/Moscow")
    with pytest.raises(ValueError, match="does not fire after"):
        cron.next(moment("2014-10-26T01:40+04:00"))
    assert cron.next(moment("2014-10-26T00:00+04:00")).isoformat() == "2014-10-26T01:30:00+04:00"
    # With a star it has its second pass still before it.
    wild = Cron("0 */30 1 26 10 ? 2014", "Europe/Moscow")
    assert instants(list(wild.iter(moment("2014-10-26T01:40+04:00")))) == [
        "2014-10-26T01:00:00+03:00",
        "2014-10-26T01:30:00+03:00",
    ]


def test_the_last_clock_change_of_the_calendar() -> None:
    daily, last = Cron("30 3 * * *", "Europe/Riga"), Cron("0 12 31 12 *", "Europe/Riga")
    change = dt.datetime(9999, 10, 31, 0, 45, tzinfo=UTC)  # the clock shows 03:45 for the first time
    assert daily.next(change).isoformat() == "9999-11-01T03:30:00+02:00"
    assert last.next(change).isoformat() == "9999-12-31T12:00:00+02:00"


# ---------------------------------------------------------------------------
# Changes of every size, in zones that are made for it
# ---------------------------------------------------------------------------


class OneChange(dt.tzinfo):
    """UTC until `at`, and `shift` from then on."""

    def __init__(self, at: dt.datetime, shift: dt.timedelta) -> None:
        self.at = at
        self.shift = shift

    def fromutc(self, moment: dt.datetime) -> dt.datetime:
        utc = moment.replace(tzinfo=None)
        if utc < self.at:
            return moment
        return (moment + self.shift).replace(fold=utc < self.at - self.shift)

    def utcoffset(self, moment: dt.datetime | None) -> dt.timedelta:
        assert moment is not None
        wall = moment.replace(tzinfo=None, fold=0)
        low, high = sorted((self.at, self.at + self.shift))
        is_doubtful = low <= wall < high
        is_after = bool(moment.fold) == (self.shift < dt.timedelta(0)) if is_doubtful else wall >= high
        return self.shift if is_after else dt.timedelta(0)

    def dst(self, moment: dt.datetime | None) -> None:
        return None

    def tzname(self, moment: dt.datetime | None) -> str:
        return "one"


NOON = dt.datetime(2026, 6, 10, 12)  # noqa: DTZ001 (a naive moment in UTC)
MINUTE = dt.timedelta(minutes=1)


def fires_around(expr: str, shift: dt.timedelta) -> list[str]:
    """The fires of three days around the change, each as its moment in UTC."""
    cron = Cron(expr, OneChange(NOON, shift))
    begin = (NOON - dt.timedelta(days=1)).replace(hour=0, tzinfo=UTC)
    found = []
    for fire in cron.iter(begin):
        if fire - begin > dt.timedelta(days=3):
            break
        found.append(f"{fire.astimezone(UTC):%d %H:%M}")
    return found


@pytest.mark.parametrize(
    ("minutes", "fires"),
    [
        (1, ["09 12:00", "10 12:00", "11 11:59"]),
        (179, ["09 12:00", "10 12:00", "11 09:01"]),
        (180, ["09 12:00", "11 09:00"]),
        (181, ["09 12:00", "11 08:59"]),
        (-1, ["09 12:00", "10 12:01", "11 12:01"]),
    ],
)
def test_a_fixed_time_at_the_gap_runs_unless_the_change_is_3_hours(minutes: int, fires: list[str]) -> None:
    assert fires_around("0 12 * * *", minutes * MINUTE) == fires


@pytest.mark.parametrize(
    ("minutes", "fires"),
    [
        (-60, ["09 11:30", "10 11:30", "11 12:30"]),
        (-180, ["09 11:30", "10 11:30", "11 14:30"]),
        (-181, ["09 11:30", "10 11:30", "10 14:31", "11 14:31"]),
        (-23 * 60, ["09 11:30", "10 11:30", "11 10:30"]),
    ],
)
def test_a_fixed_time_in_the_fold_runs_once_unless_the_change_is_above_3_hours(minutes: int, fires: list[str]) -> None:
    assert fires_around("30 11 * * *", minutes * MINUTE) == fires


def test_the_first_full_minute_after_a_gap_that_ends_within_one() -> None:
    zone = OneChange(NOON, dt.timedelta(minutes=20, seconds=25))
    cron = Cron("5 12 * * *", zone)
    found = cron.next(dt.datetime(2026, 6, 10, 9, tzinfo=UTC))
    assert found.replace(tzinfo=None) == dt.datetime(2026, 6, 10, 12, 21)  # noqa: DTZ001 (as the clock shows it)
    assert cron.next(dt.datetime(2026, 6, 10, 12, 0, 10, tzinfo=UTC)) == found
    assert cron.previous(found + MINUTE) == found
    assert cron.matches(found)


def marks_of(expr: str, zone: str, begin: str, end: str) -> list[tuple[str, str]]:
    found = clock_marks(Cron(expr, zone), dt.datetime.fromisoformat(begin), dt.datetime.fromisoformat(end))
    return [(f"{moment:%Y-%m-%d %H:%M:%S}", mark.partition(",")[0]) for moment, mark in found]


@pytest.mark.parametrize(
    ("expr", "zone", "begin", "end", "marks"),
    [
        # 02:00 -> 03:00 at 07:00 UTC: later than `begin`, and up to `end`
        *(
            ("30 2 * * *", "America/New_York", f"2026-03-08T{begin}Z", f"2026-03-08T{end}Z", marks)
            for begin, end, marks in (
                ("06:59", "07:00", [("2026-03-08 07:00:00", "2026-03-08 02:30 moved here")]),
                ("07:00", "08:00", []),
                ("06:00", "06:59", []),
            )
        ),
        # What the clock shows before and after it is not touched, and nothing is said once the schedule is over.
        ("59 1 8 3 *", "America/New_York", "2026-01-01T00:00Z", "2027-01-01T00:00Z", []),
        ("0 3 8 3 *", "America/New_York", "2026-01-01T00:00Z", "2027-01-01T00:00Z", []),
        ("0 2 1 11 *", "America/New_York", "2026-01-01T00:00Z", "2027-01-01T00:00Z", []),
        ("0 30 2 1 1 * 2026", "America/New_York", "2026-01-02T00:00Z", "2027-01-01T00:00Z", []),
        # 02:00 -> 05:00 and 02:00 -> 23:00, by three hours
        ("30 3 * * *", "Antarctica/Casey", "2009-10-17T00:00Z", "2009-10-19T00:00Z",
         [("2009-10-17 18:00:00", "2009-10-18 03:30 does not run")]),
        ("30 23 * * *", "Antarctica/Casey", "2010-03-04T00:00Z", "2010-03-06T00:00Z",
         [("2010-03-04 12:30:00", "runs once")]),
        # 00:00:00 -> 00:44:30
        ("30 0 * * *", "Africa/Monrovia", "1972-01-06T03:00Z", "1972-01-08T03:00Z",
         [("1972-01-07 00:45:00", "1972-01-07 00:30 moved here")]),
        ("*/30 0 * * *", "Africa/Monrovia", "1972-01-06T03:00Z", "1972-01-08T03:00Z",
         [("1972-01-07 00:44:30", "1972-01-07 00:00 does not run")]),
    ],
)  # fmt: skip
def test_what_a_clock_change_does_is_said_of_the_time_asked_for(
    expr: str, zone: str, begin: str, end: str, marks: list[tuple[str, str]]
) -> None:
    assert marks_of(expr, zone, begin, end) == marks
