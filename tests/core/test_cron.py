"""Cron expressions: what they say, what is refused and how, what they are in words."""

import copy
import datetime as dt
import itertools
import os
import pickle
import subprocess
import sys
import threading
import zoneinfo
from pathlib import Path

import pytest

import flowrra
from flowrra import ConfigError, Cron

UTC = dt.UTC
START = dt.datetime(2026, 1, 1, tzinfo=UTC)  # a Thursday


def fires(expr: str, count: int) -> list[str]:
    return [f"{fire:%m-%d %H:%M}" for fire in itertools.islice(Cron(expr).iter(START), count)]


def days_of(expr: str, year: int, month: int, *, both_days: bool = False) -> list[int]:
    """The days of a month on which an expression (day-of-month month day-of-week) fires."""
    cron = Cron(f"0 12 {expr}", both_days=both_days)
    begin = dt.datetime(year, month, 1, tzinfo=UTC) - dt.timedelta(seconds=1)
    found = itertools.takewhile(lambda fire: (fire.year, fire.month) == (year, month), cron.iter(begin))
    return [fire.day for fire in found]


def minutes_of(field: str, *, name: str | None = None) -> list[int]:
    """The minutes of one hour that a minute field stands for."""
    cron = Cron(f"{field} * * * *", name=name)
    return [
        fire.minute
        for fire in itertools.takewhile(lambda fire: fire.hour == 5, cron.iter(START.replace(hour=4, minute=59)))
    ]


# ---------------------------------------------------------------------------
# Fields
# ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "minutes"),
    [
        ("7", [7]),
        ("007", [7]),
        ("1,30,59", [1, 30, 59]),
        ("10-13", [10, 11, 12, 13]),
        ("10-10", [10]),
        ("10-20/5", [10, 15, 20]),
        ("*/20", [0, 20, 40]),
        ("*/59", [0, 59]),
        ("*/60", [0]),
        ("*/99999999999999999999", [0]),
        ("50/4", [50, 54, 58]),
        ("58-2", [0, 1, 2, 58, 59]),
        ("50-10/7", [4, 50, 57]),
        ("0-59/30,1", [0, 1, 30]),
    ],
)
def test_what_a_field_stands_for(field: str, minutes: list[int]) -> None:
    assert minutes_of(field) == minutes


@pytest.mark.parametrize(
    ("field", "days"),
    [
        ("mon", "Mon"),
        ("0", "Sun"),
        ("7", "Sun"),
        ("00007", "Sun"),
        ("1-5", "Mon Tue Wed Thu Fri"),
        ("MON-Fri", "Mon Tue Wed Thu Fri"),
        ("5-7", "Fri Sat Sun"),
        ("0-7", "Mon Tue Wed Thu Fri Sat Sun"),
        ("7-2", "Mon Tue Sun"),
        ("fri-mon", "Mon Fri Sat Sun"),
        ("sun-tue", "Mon Tue Sun"),
        ("6-2/2", "Mon Sat"),
        ("7-7", "Sun"),
        ("3/2", "Wed Fri"),
        ("7/3", "Wed Sat Sun"),
        ("tue,4", "Tue Thu"),
        ("mon-fri/2", "Mon Wed Fri"),
    ],
)
def test_days_of_the_week(field: str, days: str) -> None:
    cron = Cron(f"0 0 * * {field}")
    week = [START + dt.timedelta(days=number) for number in range(4, 11)]  # Monday to Sunday
    assert " ".join(f"{day:%a}" for day in week if cron.matches(day)) == days


def test_months_by_name_and_around_the_turn_of_the_year() -> None:
    assert fires("0 0 1 NOV-feb *", 5) == ["02-01 00:00", "11-01 00:00", "12-01 00:00", "01-01 00:00", "02-01 00:00"]
    assert fires("0 0 1 jan,7/5 *", 3) == ["07-01 00:00", "12-01 00:00", "01-01 00:00"]


@pytest.mark.parametrize(
    ("name", "expr"),
    [
        ("@yearly", "0 0 1 1 *"),
        ("@annually", "0 0 1 1 *"),
        ("@monthly", "0 0 1 * *"),
        ("@weekly", "0 0 * * 0"),
        ("@daily", "0 0 * * *"),
        ("@midnight", "0 0 * * *"),
        ("@hourly", "0 * * * *"),
        (" @HOURLY\t", "0 * * * *"),
        ("0\t0\n* \v*\f*\r", "0 0 * * *"),
        ("0 0 0 * * *", "0 0 * * *"),
        ("0 0 0 * * * *", "0 0 * * *"),
        ("0 0 ? * ?", "0 0 * * *"),
        ("0 9 * * MON-FRI", "0 9 * * 1-5"),
        ("5,3,4 * * * *", "3-5 * * * *"),
    ],
)
def test_the_same_schedule_in_other_words(name: str, expr: str) -> None:
    assert Cron(name) == Cron(expr)
    assert hash(Cron(name)) == hash(Cron(expr))


def test_seconds_and_years() -> None:
    every = Cron("*/20 59 23 31 12 * 2027-2028")
    assert [str(fire) for fire in every.iter(START)] == [
        f"{year}-12-31 23:59:{second:02}+00:00" for year in (2027, 2028) for second in (0, 20, 40)
    ]
    assert every.previous(START.replace(year=2199)).year == 2028
    with pytest.raises(ValueError, match="does not fire after 2029-01-01"):
        every.next(START.replace(year=2029))
    with pytest.raises(ValueError, match="does not fire before 2027-01-01"):
        every.previous(START.replace(year=2027))


# ---------------------------------------------------------------------------
# Days
# ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expr", "year", "month", "days"),
    [
        ("13 * fri", 2026, 1, [2, 9, 13, 16, 23, 30]),  # either
        ("*/10 * fri", 2026, 5, [1]),  # begins with *: both (the 1st, 11th, 21st and 31st; only the 1st is a Friday)
        ("1-7 * */1", 2026, 1, [1, 2, 3, 4, 5, 6, 7]),
        ("1-7 * */6", 2026, 1, [3, 4]),  # Sunday and Saturday of the first week
        ("? * mon", 2026, 1, [5, 12, 19, 26]),
        ("1,*/30 * mon", 2026, 1, [1, 5, 12, 19, 26, 31]),  # a star further on is none
        ("L * *", 2026, 2, [28]),
        ("L * *", 2028, 2, [29]),
        ("l,1 * *", 2026, 4, [1, 30]),
        ("LW * *", 2026, 5, [29]),  # the 31st is a Sunday
        ("LW * *", 2026, 2, [27]),  # the 28th is a Saturday
        ("LW * *", 2026, 3, [31]),
        ("15W * *", 2026, 2, [16]),  # a Sunday
        ("15W * *", 2026, 8, [14]),  # a Saturday
        ("15w * *", 2026, 4, [15]),
        ("1W * *", 2026, 8, [3]),  # Saturday the 1st: not in July
        ("1W * *", 2026, 2, [2]),
        ("31W * *", 2026, 5, [29]),  # Sunday the 31st: not in June
        ("31W,2 * *", 2026, 4, [2]),  # there is no 31 April
        ("1W,LW,10 * *", 2026, 8, [3, 10, 31]),
        ("* * mon#1", 2026, 6, [1]),
        ("* * 1#5", 2026, 6, [29]),
        ("* * fri#5", 2026, 6, []),
        ("* * 0#2,7#3", 2026, 6, [14, 21]),
        ("* * 5L", 2026, 6, [26]),
        ("* * SATL,sunL", 2026, 2, [22, 28]),
        ("* * tue#2,wed", 2026, 6, [3, 9, 10, 17, 24]),
        ("L * fri", 2026, 4, [3, 10, 17, 24, 30]),
        ("15 * 5L", 2026, 6, [15, 26]),
        ("*/15 * mon#3", 2026, 6, []),
    ],
)
def test_the_days_of_a_month(expr: str, year: int, month: int, days: list[int]) -> None:
    assert days_of(expr, year, month) == days


def test_both_days_by_an_option() -> None:
    assert days_of("13 * fri", 2026, 3, both_days=True) == [13]
    assert days_of("13 * fri", 2026, 1, both_days=True) == []
    assert Cron("0 0 13 * fri", both_days=True) != Cron("0 0 13 * fri")
    assert Cron("0 0 13 * *", both_days=True) == Cron("0 0 13 * *")


def test_a_day_that_is_rare() -> None:
    leap = Cron("0 0 29 2 *")
    assert [fire.year for fire in itertools.islice(leap.iter(START.replace(year=2092)), 4)] == [2092, 2096, 2104, 2108]
    rarest = Cron("0 0 * 2 MON#5")
    assert [fire.year for fire in itertools.islice(rarest.iter(START), 4)] == [2044, 2072, 2112, 2140]
    assert rarest.previous(START).isoformat() == "2016-02-29T00:00:00+00:00"


# ---------------------------------------------------------------------------
# H
# ---------------------------------------------------------------------------


def test_h_is_the_same_for_a_name_for_ever() -> None:
    # Drawn once and written down: a change here moves everybody's schedules.
    assert [minutes_of("H", name=name)[0] for name in ("a", "b", "c", "report")] == [37, 17, 31, 6]


def test_h_spreads() -> None:
    minutes = [minutes_of("H", name=f"job-{number}")[0] for number in range(600)]
    assert set(minutes) == set(range(60))
    assert max(minutes.count(minute) for minute in range(60)) < 40
    hours = {Cron("H H * * *", name=f"job-{number}").next(START).hour for number in range(300)}
    assert hours == set(range(24))


def test_h_in_a_range_with_a_step_and_in_days() -> None:
    for number in range(50):
        name = str(number)
        assert 10 <= minutes_of("H(10-19)", name=name)[0] <= 19
        found = minutes_of("H/15", name=name)
        assert found == list(range(found[0], 60, 15))
        assert found[0] < 15
        assert Cron("0 0 H 2 *", name=name).next(START).year == 2026  # never the 29th
        assert len(minutes_of("H/90", name=name)) == 1
        assert len(minutes_of("H,H(0-0)", name=name)) <= 2


# ---------------------------------------------------------------------------
# What is refused
# ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expr", "message"),
    [
        ("0 24 * * *", "bad hour field '24': 24 is not in 0-23"),
        ("60 * * * *", "bad minute field '60': 60 is not in 0-59"),
        ("60 * * * * *", "bad second field '60': 60 is not in 0-59"),
        ("0 0 0 * *", "bad day-of-month field '0': 0 is not in 1-31"),
        ("0 0 1-32 * *", "bad day-of-month field '1-32': 32 is not in 1-31"),
        ("0 0 * 13 *", "bad month field '13': 13 is not in 1-12"),
        ("0 0 * * 8", "bad day-of-week field '8': 8 is not in 0-7"),
        ("0 0 0 * * * 1969", "bad year field '1969': 1969 is not in 1970-2199"),
        ("*/0 * * * *", "bad minute field '*/0': a step must be at least 1"),
        ("1-5/ * * * *", "bad minute field '1-5/': '1-5/' is not a value, a range or a step"),
        ("-1 * * * *", "bad minute field '-1': '-1' is not a value, a range or a step"),
        ("+1 * * * *", "bad minute field '+1': '+1' is not a value, a range or a step"),
        ("1_0 * * * *", "bad minute field '1_0': '1_0' is not a value, a range or a step"),
        ("1.0 * * * *", "bad minute field '1.0': '1.0' is not a value, a range or a step"),
        ("\u0661 * * * *", "bad minute field '\u0661': '\u0661' is not a value, a range or a step"),
        ("1, * * * *", "bad minute field '1,': '' is not a value, a range or a step"),
        ("? * * * *", "bad minute field '?': '?' is not a value, a range or a step"),
        ("* * ?,1 * *", "bad day-of-month field '?,1': '?' is not a value, a range or a step"),
        ("* * ?/2 * *", "bad day-of-month field '?/2': '?/2' is not a value, a range or a step"),
        ("x * * * *", "bad minute field 'x': 'x' is not a number"),
        ("* L * * *", "bad hour field 'L': 'l' is not a number"),
        ("* * W15 * *", "bad day-of-month field 'W15': 'w15' is not a value, a range or a step"),
        ("* * 1-15W * *", "bad day-of-month field '1-15W': '1-15w' is not a value, a range or a step"),
        ("* * L-3 * *", "bad day-of-month field 'L-3': 'l' is not a number"),
        ("* * 32W * *", "bad day-of-month field '32W': 32 is not in 1-31"),
        ("* * mon * *", "bad day-of-month field 'mon': 'mon' is not a number"),
        ("* * * L *", "bad month field 'L': 'l' is neither a number nor one of jan, feb, mar, apr, may, jun, "),
        ("* * * * L", "bad day-of-week field 'L': 'l' is neither a number nor one of sun, mon, tue, wed, thu, fri"),
        ("* * * * monday", "bad day-of-week field 'monday': 'monday' is neither a number nor one of sun, "),
        ("* * * * 5W", "bad day-of-week field '5W': '5w' is not a value, a range or a step"),
        ("* * * * 1#6", "bad day-of-week field '1#6': 6 is not in 1-5, the weeks that # accepts"),
        ("* * * * 1#0", "bad day-of-week field '1#0': 0 is not in 1-5, the weeks that # accepts"),
        ("* * * * 1-5#2", "bad day-of-week field '1-5#2': '1-5#2' is not a value, a range or a step"),
        ("* * * * mon-friL", "bad day-of-week field 'mon-friL': 'fril' is neither a number nor one of sun, "),
        ("* * * * \u017fun", "bad day-of-week field '\u017fun': '\u017fun' is not a value, a range or a step"),
        (
            "H * * * *",
            "bad minute field 'H': H takes its values from the name of the schedule, which has none: pass name=",
        ),
        ("0 0 30 2 *", "bad day-of-month field '30': with month '2', day-of-week '*' and year '*' there is no such"),
        ("0 0 31 4,6,9,11 *", "bad day-of-month field '31': with month '4,6,9,11', "),
        ("0 0 31W 2 *", "bad day-of-month field '31W': with month '2', "),
        ("0 0 */31 * fri#2", "bad day-of-month field '*/31': with month '*', day-of-week 'fri#2' "),
        ("0 0 0 29 2 * 2026", "bad day-of-month field '29': with month '2', day-of-week '*' and year '2026' "),
        ("@reboot", "@reboot is not a time: put what runs at the start into @app.lifespan"),
        ("@never", "there is no '@never': there are @yearly, @annually, @monthly, @weekly, @daily, "),
        ("@wee\u212aly", "a cron expression has five fields"),
        ("", "a cron expression has five fields (minute hour day-of-month month day-of-week), six (second first)"),
        (" \t", "or seven (year last), not 0: ' \\t'"),
        ("* * * *", "or seven (year last), not 4: '* * * *'"),
        ("* * * * * * * *", "not 8: "),
        ("*\u00a0* * * * *", "bad minute field '*\\xa0*': "),
        ("*\x1c* * * * *", "bad minute field '*\\x1c*': "),
        (7, "a cron expression is a text, not 7"),
        (None, "a cron expression is a text, not None"),
    ],
)
def test_what_is_wrong_with_an_expression(expr: str, message: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011 (the text is compared below)
        Cron(expr)
    assert message in str(refused.value)
    assert isinstance(refused.value, ConfigError)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("H(0-60)", "60 is not in 0-59"),
        ("H(20-10)", "the range of H must go up, not 20-10"),
        ("H/0", "a step must be at least 1"),
        ("H(5)", "'h(5)' is not a value, a range or a step"),
        ("H-5", "'h' is not a number"),
    ],
)
def test_what_is_wrong_with_an_h(field: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Cron(f"{field} * * * *", name="x")
    assert str(refused.value) == f"bad minute field {field!r}: {message}"


# ---------------------------------------------------------------------------
# Zones
# ---------------------------------------------------------------------------


def test_utc_if_no_zone_is_given() -> None:
    cron = Cron("0 9 * * *")
    assert cron.tz == "UTC"
    assert cron.next(START).tzinfo is UTC
    assert cron == Cron("0 9 * * *", zoneinfo.ZoneInfo("UTC"))


def test_a_fire_is_in_the_schedules_own_zone_and_what_it_is_asked_with_in_any() -> None:
    riga = zoneinfo.ZoneInfo("Europe/Riga")
    for zone in ("Europe/Riga", riga):
        found = Cron("0 9 * * *", zone).next(dt.datetime(2026, 1, 1, 6, tzinfo=UTC))
        assert (found.isoformat(), found.tzinfo) == ("2026-01-01T09:00:00+02:00", riga)
    naive = dt.datetime(2026, 1, 1, 8, 59)  # noqa: DTZ001 (the wall clock of Riga)
    assert Cron("0 9 * * *", riga).next(naive).isoformat() == "2026-01-01T09:00:00+02:00"
    own = zoneinfo.ZoneInfo.no_cache("Europe/Riga")
    assert Cron("0 9 * * *", own).next(START).tzinfo is own
    assert Cron("0 9 * * *", own) == Cron("0 9 * * *", riga)


@pytest.mark.parametrize("key", ["+02:00", "UTC+02:00", "+0200", "UTC+0200"])
def test_a_fixed_offset(key: str) -> None:
    cron = Cron("0 9 * * *", key)
    assert cron.next(START).isoformat() == "2026-01-01T09:00:00+02:00"
    assert cron == Cron("0 9 * * *", dt.timezone(dt.timedelta(hours=2)))
    assert cron == Cron(cron.expr, cron.tz)


@pytest.mark.parametrize("key", ["Nope/Nope", "Europe", "", "/etc/passwd", "a\0b", "+25:00", "\ud800", "riga"])
def test_a_zone_that_is_none(key: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Cron("0 9 * * *", key)
    assert str(refused.value) == f"there is no time zone {key!r}: give a key such as 'Europe/Riga'"


def test_a_tz_that_cannot_be_one() -> None:
    with pytest.raises(ConfigError, match="tz must be a time zone's key or a tzinfo, not 2"):
        Cron("0 9 * * *", 2)  # type: ignore[arg-type]

    class LikePytz(dt.tzinfo):
        """It answers with another tzinfo, one for each offset."""

        def fromutc(self, moment: dt.datetime) -> dt.datetime:
            return moment.replace(tzinfo=dt.timezone(dt.timedelta(hours=1)))

        def utcoffset(self, moment: dt.datetime | None) -> dt.timedelta:
            return dt.timedelta(minutes=97)

        dst = utcoffset

        def tzname(self, moment: dt.datetime | None) -> str:
            return "LMT"

    with pytest.raises(ConfigError, match="is not a tzinfo that a datetime can use: give its key"):
        Cron("0 9 * * *", LikePytz())


def test_without_a_zone_database_utc_and_offsets_work_and_a_key_says_what_to_install() -> None:
    program = """
from flowrra import Cron
from datetime import datetime, UTC
print(Cron("0 9 * * *", "UTC").next(datetime(2026, 1, 1, tzinfo=UTC)))
print(Cron("0 9 * * *", "+02:00").next(datetime(2026, 1, 1, tzinfo=UTC)))
import sys
print("zoneinfo" in sys.modules)
sys.modules["tzdata"] = None
try:
    Cron("0 9 * * *", "Europe/Riga")
except ValueError as error:
    print(error)
"""
    environment = {**os.environ, "PYTHONTZPATH": "", "PYTHONPATH": str(Path(flowrra.__file__).parent)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "2026-01-01 09:00:00+00:00",
        "2026-01-01 09:00:00+02:00",
        "False",
        "no time zone database to look 'Europe/Riga' up in: pip install tzdata (UTC and '+02:00' do not need it)",
    ]


# ---------------------------------------------------------------------------
# The object
# ---------------------------------------------------------------------------


def test_equal_by_fields_and_zone() -> None:
    cron = Cron("0 9 * * *", "Europe/Riga")
    assert cron != Cron("0 9 * * *")
    assert cron != Cron("1 9 * * *", "Europe/Riga")
    assert cron != "0 9 * * *"
    assert Cron("0-59 9 * * *") != Cron("* 9 * * *")  # the one is fixed, the other goes with the clock
    assert len({cron, Cron("0 09 ? * *", "Europe/Riga"), Cron("0 9 * * *", zoneinfo.ZoneInfo("Europe/Riga"))}) == 1
    assert (cron.expr, cron.tz, repr(cron)) == ("0 9 * * *", "Europe/Riga", "Cron('0 9 * * *', 'Europe/Riga')")
    assert cron == pickle.loads(pickle.dumps(cron)) == copy.deepcopy(cron)  # noqa: S301 (our own)


def test_nothing_of_it_can_be_set() -> None:
    cron = Cron("0 9 * * *")
    for name in ("expr", "tz", "anything"):
        with pytest.raises(AttributeError):
            setattr(cron, name, "x")


def test_many_threads_ask_one_schedule() -> None:
    cron = Cron("*/7 * * * *", "America/New_York")
    expected = list(itertools.islice(Cron("*/7 * * * *", "America/New_York").iter(START), 3_000))
    found: list[list[dt.datetime]] = []
    threads = [
        threading.Thread(target=lambda: found.append(list(itertools.islice(cron.iter(START), 3_000)))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


def test_the_moment_itself_never_counts_to_the_microsecond() -> None:
    cron = Cron("0 9 * * *")
    nine = START.replace(hour=9)
    tick = dt.timedelta(microseconds=1)
    assert cron.next(nine) == nine + dt.timedelta(days=1)
    assert cron.next(nine - tick) == nine
    assert cron.previous(nine) == nine - dt.timedelta(days=1)
    assert cron.previous(nine + tick) == nine


def test_a_moment_matches_in_its_minute_or_second() -> None:
    nine = START.replace(hour=9)
    assert Cron("0 9 * * *").matches(nine.replace(second=59, microsecond=999_999))
    assert not Cron("0 9 * * *").matches(nine.replace(minute=1))
    assert not Cron("2 9 * * *").matches(nine.replace(minute=1))
    assert Cron("30 0 9 * * *").matches(nine.replace(second=30, microsecond=5))
    assert not Cron("30 0 9 * * *").matches(nine)


def test_which_centuries_have_a_leap_day() -> None:
    leap = Cron("0 0 29 2 *")
    assert [leap.next(START.replace(year=year)).year for year in (1897, 1997, 2097, 2397)] == [1904, 2000, 2104, 2400]


@pytest.mark.parametrize("zone", ["UTC", "Europe/Riga", "America/New_York"])
def test_the_ends_of_the_calendar(zone: str) -> None:
    cron = Cron("0 9 * * *", zone)
    with pytest.raises(ValueError, match="does not fire after"):
        cron.next(dt.datetime.max)  # noqa: DTZ901
    with pytest.raises(ValueError, match="does not fire before"):
        cron.previous(dt.datetime.min)  # noqa: DTZ901
    assert cron.next(dt.datetime.min).year == 1  # noqa: DTZ901
    assert cron.previous(dt.datetime.max).isoformat()[:16] == "9999-12-31T09:00"  # noqa: DTZ901
    for end in (dt.datetime.max, dt.datetime.min):  # noqa: DTZ901
        for ask in (cron.next, cron.previous):
            try:
                ask(end.replace(tzinfo=UTC))
            except ValueError as error:
                assert "does not fire" in str(error) or "not within the years 1 to 9999" in str(error)  # noqa: PT017


def test_a_union() -> None:
    union = Cron("0 9 * * mon-fri") | Cron("0 10 * * sat", "Europe/Riga") | Cron("0 9 * * 1-5")
    assert [f"{fire:%a %H:%M %Z}" for fire in itertools.islice(union.iter(START.replace(hour=12)), 3)] == [
        "Fri 09:00 UTC",
        "Sat 10:00 EET",
        "Mon 09:00 UTC",
    ]
    assert union == Cron("0 10 * * sat", "Europe/Riga") | Cron("0 9 * * mon-fri")
    assert hash(union) == hash(union | union)
    assert union != Cron("0 9 * * mon-fri")
    assert repr(union) == "Cron('0 9 * * mon-fri', 'UTC') | Cron('0 10 * * sat', 'Europe/Riga')"
    assert union.explain() == "At 09:00 on Monday through Friday, UTC; At 10:00 on Saturday, Europe/Riga"
    assert union.matches(START.replace(hour=9))
    assert not union.matches(START.replace(hour=10))
    with pytest.raises(TypeError):
        union | "0 9 * * *"  # type: ignore[operator]


def test_a_union_goes_on_when_one_part_has_ended() -> None:
    union = Cron("0 0 0 1 1 * 2027") | Cron("0 0 0 1 1 * 2029")
    assert [fire.year for fire in union.iter(START)] == [2027, 2029]
    assert union.previous(START.replace(year=2028)).year == 2027
    with pytest.raises(ValueError, match="has no fire on that side of 2030"):
        union.next(START.replace(year=2030))


# ---------------------------------------------------------------------------
# In words
# ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expr", "words"),
    [
        ("0 9 * * 1-5", "At 09:00 on Monday through Friday"),
        ("* * * * *", "Every minute"),
        ("* * * * * *", "Every second"),
        ("*/10 * * * * *", "Every 10 seconds"),
        ("5 * * * * *", "At second 5 of every minute"),
        ("30 */5 * * * *", "At second 30 of every 5th minute"),
        ("* 5 * * * *", "Every second of minute 5 of every hour"),
        ("*/5 9-17 * * mon-fri", "Every 5 minutes of hours 9 through 17 on Monday through Friday"),
        ("@hourly", "At minute 0 of every hour"),
        ("30 */2 * * *", "At minute 30 of every 2nd hour"),
        ("*/25 * * * *", "At minutes 0, 25 and 50 of every hour"),
        ("0 9,17 * * *", "At 09:00 and 17:00"),
        ("15 30 9 * * *", "At 09:30:15"),
        ("0 0 13 * fri", "At 00:00 on the 13th or on Friday"),
        ("0 0 */2 * mon", "At 00:00 on every 2nd day of the month if it is Monday"),
        ("0 0 1-7,11,22 * *", "At 00:00 on the 1st through 7th, 11th and 22nd"),
        ("0 0 3,L,15W * *", "At 00:00 on the 3rd, the last day of the month and the weekday nearest the 15th"),
        ("0 0 1,2 * 0", "At 00:00 on the 1st and 2nd or on Sunday"),
        ("0 0 1,16,31 * *", "At 00:00 on the 1st, 16th and 31st"),
        ("0,10 9,12,15 * * *", "At 09:00, 09:10, 12:00, 12:10, 15:00 and 15:10"),
        ("0 0 LW * *", "At 00:00 on the last weekday of the month"),
        ("0 0 * jan,jun 1#2", "At 00:00 on the second Monday of the month in January and June"),
        ("0 0 * * fri,5L", "At 00:00 on Friday and the last Friday of the month"),
        ("0 0 12 1 * ? 2026-2029", "At 12:00 on the 1st in 2026 through 2029"),
    ],
)
def test_an_expression_in_words(expr: str, words: str) -> None:
    assert Cron(expr, "Europe/Riga").explain() == f"{words}, Europe/Riga"
