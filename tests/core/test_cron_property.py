"""`Cron` against a scan of every minute that shares no code with it: it reads no expression and does what a daemon
does that looks at the clock once a minute.
"""

import datetime as dt
import itertools
from dataclasses import dataclass
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowrra import ConfigError, Cron

UTC = dt.UTC
MINUTE = dt.timedelta(minutes=1)
HOURS_3 = dt.timedelta(hours=3)

# Moments, in UTC, at which these zones changed their clocks: by 30 minutes, 1, 2, 3 and 24 hours, at all hours.
CHANGES = [
    ("America/New_York", "2026-03-08T07:00"),
    ("America/New_York", "2026-11-01T06:00"),
    ("Europe/Riga", "2026-03-29T01:00"),
    ("Europe/Riga", "2026-10-25T01:00"),
    ("Australia/Lord_Howe", "2026-04-04T15:00"),
    ("Australia/Lord_Howe", "2026-10-03T15:30"),
    ("Antarctica/Troll", "2026-03-29T01:00"),
    ("Antarctica/Troll", "2026-10-25T01:00"),
    ("Africa/Cairo", "2024-04-25T22:00"),
    ("Africa/Cairo", "2024-10-31T21:00"),
    ("America/Santiago", "2024-09-08T04:00"),
    ("America/Santiago", "2024-04-07T03:00"),
    ("Asia/Tehran", "2022-03-21T20:30"),
    ("Asia/Tehran", "2022-09-21T19:30"),
    ("Atlantic/Azores", "2024-03-31T01:00"),
    ("Atlantic/Azores", "2024-10-27T01:00"),
    ("America/St_Johns", "2007-03-11T03:31"),
    ("America/St_Johns", "2007-11-04T02:31"),
    ("Pacific/Apia", "2011-12-30T10:00"),
    ("Pacific/Kwajalein", "1993-08-21T12:00"),
    ("America/Noronha", "2000-10-08T02:00"),  # and back a week later
    ("Asia/Pyongyang", "2018-05-04T15:00"),
    ("UTC", "2026-01-01T00:00"),
]


@dataclass
class Scanned:
    """A schedule as the test knows it: its values are drawn first and written down as text then."""

    text: str
    minutes: set[int]
    hours: set[int]
    days: set[int]
    months: set[int]
    weekdays: set[int]
    both: bool
    wild: bool

    def is_match(self, wall: dt.datetime) -> bool:
        day, weekday = wall.day in self.days, wall.isoweekday() % 7 in self.weekdays
        return (
            wall.minute in self.minutes
            and wall.hour in self.hours
            and wall.month in self.months
            and ((day and weekday) if self.both else (day or weekday))
        )

    def fires(self, zone: str, begin: dt.datetime, minutes: int) -> list[dt.datetime]:
        """The minutes from `begin` on at which a daemon runs it, in UTC."""
        tz = ZoneInfo(zone)
        found = []
        quiet_until = begin - dt.timedelta(days=9)
        offset = (begin - dt.timedelta(days=2)).astimezone(tz).utcoffset()
        # Two days earlier, so that it knows of a fold which `begin` is in.
        for number in range(-2 * 1440, minutes):
            moment = begin + number * MINUTE
            wall = moment.astimezone(tz)
            before, offset = offset, wall.utcoffset()
            assert before is not None
            assert offset is not None
            change = offset - before
            skipped = range(change // MINUTE, 0, -1) if dt.timedelta(0) < change < HOURS_3 else ()
            if -HOURS_3 <= change < dt.timedelta(0):
                quiet_until = moment - change
            due = self.is_match(wall)
            if not self.wild:
                due = due and moment >= quiet_until
                due = due or any(self.is_match(wall.replace(tzinfo=None) - back * MINUTE) for back in skipped)
            if due and number >= 0:
                found.append(moment)
        return found


def field(least: int, most: int, *, dense: bool = False) -> st.SearchStrategy[tuple[str, set[int]]]:
    """A field's text and its values."""
    value = st.integers(least, most)
    every = list(range(least, most + 1))

    def ranged(low: int, high: int, step: int | None) -> tuple[str, set[int]]:
        around = every[low - least :] + every[: low - least]
        span = around[: around.index(high) + 1]
        return f"{low}-{high}" + (f"/{step}" if step else ""), set(span[:: step or 1])

    steps = st.none() | st.integers(1, most + 2)
    star = steps.map(lambda step: (f"*/{step}" if step else "*", set(every[:: step or 1])))
    one = value.map(lambda low: (f"{low:02}", {low}))
    opened = st.tuples(value, st.integers(1, most)).map(lambda v: (f"{v[0]}/{v[1]}", set(every[v[0] - least :: v[1]])))
    item = st.one_of(one, opened, st.builds(ranged, value, value, steps))
    several = st.lists(item, min_size=1, max_size=3).map(
        lambda items: (",".join(text for text, _ in items), set().union(*(values for _, values in items)))
    )
    return st.one_of(st.just(("*", set(every))), star, several) if dense else st.one_of(star, several)


@st.composite
def schedules(draw: st.DrawFn) -> Scanned:
    minute, hour = draw(field(0, 59)), draw(field(0, 23))
    any_day, any_month = ("*", set(range(1, 32))), ("*", set(range(1, 13)))
    day = draw(st.just(any_day) | field(1, 31, dense=True))
    month = draw(st.just(any_month) | field(1, 12, dense=True))
    weekday = draw(st.just(("*", set(range(7)))) | field(0, 6, dense=True))
    drawn = (minute, hour, day, month, weekday)
    minutes, hours, days, months, weekdays = (values for _, values in drawn)
    return Scanned(
        " ".join(text for text, _ in drawn), minutes, hours, days, months, weekdays,
        both="*" in (day[0][0], weekday[0][0]), wild="*" in (minute[0][0], hour[0][0]),
    )  # fmt: skip


@st.composite
def places(draw: st.DrawFn) -> tuple[str, dt.datetime]:
    """A zone and a minute near one of its clock changes."""
    zone, change = draw(st.sampled_from(CHANGES))
    near = st.integers(-240, 240) | st.integers(-1500, 1500)
    return zone, dt.datetime.fromisoformat(change).replace(tzinfo=UTC) + draw(near) * MINUTE


def made(schedule: Scanned, zone: str) -> Cron | None:
    """The schedule; None if it is one of those that never fire (30 February)."""
    try:
        return Cron(schedule.text, zone)
    except ConfigError as error:
        assert "there is no such day" in str(error)  # noqa: PT017 (nothing else may be wrong with it)
        return None


SCAN = 2 * 1440  # minutes


@given(schedules(), places(), st.timedeltas(dt.timedelta(0), MINUTE - dt.timedelta(microseconds=1)))
@settings(max_examples=250)
def test_next_finds_what_the_scan_finds(schedule: Scanned, place: tuple[str, dt.datetime], rest: dt.timedelta) -> None:
    zone, begin = place
    cron = made(schedule, zone)
    expected = schedule.fires(zone, begin + MINUTE, SCAN)
    if cron is None:
        assert not expected
        return
    end = begin + SCAN * MINUTE
    found = list(itertools.takewhile(lambda fire: fire.astimezone(UTC) <= end, cron.iter(begin + rest)))
    assert [fire.astimezone(UTC) for fire in found] == expected
    assert all(fire.tzinfo is cron.next(begin).tzinfo and not fire.microsecond for fire in found)
    # The second fires again from where the first was, and the other way round.
    for earlier, later in itertools.pairwise(found[:20]):
        assert cron.previous(later).astimezone(UTC) == earlier.astimezone(UTC)
        assert cron.matches(later)
    scanned = set(expected)
    for minute in range(1, 200):
        moment = begin + minute * MINUTE
        assert cron.matches(moment + rest) == (moment in scanned)


@given(schedules(), places(), st.sampled_from([1, 60, 3_601, 86_400, 40_000_000]))
@settings(max_examples=250)
def test_previous_is_the_inverse_of_next(schedule: Scanned, place: tuple[str, dt.datetime], seconds: int) -> None:
    zone, moment = place
    cron = made(schedule, zone)
    if cron is None:
        return
    moment += dt.timedelta(seconds=seconds)
    earlier, later = cron.previous(moment), cron.next(moment)
    assert earlier.astimezone(UTC) < moment < later.astimezone(UTC)
    assert cron.next(earlier).astimezone(UTC) in (moment, later.astimezone(UTC))
    assert cron.previous(later).astimezone(UTC) <= moment


@given(schedules(), places(), st.integers(-500 * 1440, 500 * 1440))
@settings(max_examples=400)
def test_the_fast_path_says_what_the_careful_one_says(
    schedule: Scanned, place: tuple[str, dt.datetime], far: int
) -> None:
    zone, moment = place
    cron = made(schedule, zone)
    if cron is None:
        return
    for start in (moment, moment + far * MINUTE):
        own = start.astimezone(ZoneInfo(zone))
        for _ in range(3):
            careful = cron._next_carefully(own)
            assert cron.next(own).isoformat() == careful.isoformat()
            own = careful


@given(schedules(), schedules(), places())
@settings(max_examples=100)
def test_a_union_fires_when_either_does(one: Scanned, other: Scanned, place: tuple[str, dt.datetime]) -> None:
    zone, moment = place
    first, second = made(one, zone), made(other, "UTC")
    if first is None or second is None:
        return
    union = first | second
    fires = {fire.astimezone(UTC) for part in (first, second) for fire in itertools.islice(part.iter(moment), 5)}
    expected = sorted(fires)[:5]
    assert [fire.astimezone(UTC) for fire in itertools.islice(union.iter(moment), 5)] == expected
    assert union.previous(expected[4]).astimezone(UTC) == expected[3]
    assert all(union.matches(fire) for fire in expected)


# Words that are nearly right, and any text at all.
PIECES = st.text("0123456789*/-,?LWH#()@ \tadefijmnorstuvy\u00a0\u0661\u017f+_.", max_size=12)
FIELDS = st.sampled_from(
    ["*", "0", "*/5", "1-5", "L", "LW", "15W", "mon#2", "5L", "?", "H", "H/15", "H(0-29)", "7", "0-7", ""]
)


@given(
    st.one_of(st.text(), PIECES, st.lists(FIELDS | PIECES, max_size=9).map(" ".join)), st.none() | st.text(max_size=3)
)
@settings(max_examples=600)
def test_what_cannot_be_read_is_a_value_error_and_what_can_fires(text: str, name: str | None) -> None:
    try:
        cron = Cron(text, name=name)
    except ValueError:
        return
    assert Cron(text, name=name) == cron
    assert cron.explain()
    try:
        cron.next(dt.datetime(2026, 1, 1, tzinfo=UTC))
    except ValueError as error:
        assert "does not fire after" in str(error)  # noqa: PT017 (years that are over)


@given(st.text(max_size=12))
@settings(max_examples=200)
def test_a_zone_that_is_none_is_a_value_error(key: str) -> None:
    try:
        Cron("* * * * *", key)
    except ValueError as error:
        assert repr(key) in str(error)  # noqa: PT017 (some texts are zones)


@pytest.mark.parametrize(("zone", "change"), CHANGES[:-1])
def test_the_clock_changes_that_this_file_relies_on(zone: str, change: str) -> None:
    moment = dt.datetime.fromisoformat(change).replace(tzinfo=UTC)
    tz = ZoneInfo(zone)
    assert moment.astimezone(tz).utcoffset() != (moment - MINUTE).astimezone(tz).utcoffset()
