"""Cron expressions in words, and the effect of clock changes on their fires.

This module reads the fields of `flowrra.Cron`. It is not in `flowrra.py`, because firing a schedule does not need it.
"""

import datetime as dt
import itertools
from collections.abc import Callable, Iterator, Sequence

from flowrra import CRON_FIELDS, LAST_DAY, LAST_WORKDAY, NEAREST, Cron, cron_bits, cron_values

__all__ = ["clock_marks", "explain", "takes_either_day"]

_MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
)
_WEEKDAYS = ("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")


def explain(cron: Cron) -> str:
    """Return the schedule in words: `At 09:00 on Monday through Friday, Europe/Riga`."""
    second, minute, hour, day, month, weekday, year = cron.fields
    said = _said_time(second, minute, hour) + _said_days(day, weekday, both=cron.both_days)
    if month != cron_bits("month", "*"):
        said += f" in {_spans(month, lambda month: _MONTHS[month - 1])}"
    if year:
        said += f" in {_spans(year, str)}"
    return f"{said[0].upper()}{said[1:]}, {cron.tz}"


def takes_either_day(cron: Cron) -> bool:
    """Whether both fields of days restrict the days, and a match of one of them is enough."""
    *_, day, _, weekday, _ = cron.fields
    return not cron.both_days and day != cron_bits("day-of-month", "*") and weekday != cron_bits("day-of-week", "*")


def clock_marks(cron: Cron, begin: dt.datetime, end: dt.datetime) -> Iterator[tuple[dt.datetime, str]]:
    """Yield the effects of clock changes on the fires after `begin` and up to `end`: the moment in UTC, and a text."""
    years = range(begin.astimezone(dt.UTC).year, end.astimezone(dt.UTC).year + 1)
    for change in sorted({change for year in years for change in cron.zone[year]}):
        left, entered = change.left, change.entered
        match = cron.match_from(min(left, entered))
        if match is None or match >= max(left, entered):
            continue
        before, after = left - change.at, entered - change.at  # the offsets
        why = f"the clock goes from {left:%H:%M} to {entered:%H:%M}"
        if left < entered:
            moved_to = change.moved_to if cron.is_fixed else None
            what = "does not run" if moved_to is None else "moved here"
            marks = [((moved_to or entered) - after, f"{match:%Y-%m-%d %H:%M} {what}, {why}")]
        elif cron.is_fixed and change.is_repeat:
            marks = [(match - before, f"runs once, although {why}")]
        else:
            marks = [(match - before, f"the first of two, {why}"), (match - after, f"the second of two, {why}")]
        known = ((moment.replace(tzinfo=dt.UTC), mark) for moment, mark in marks)
        yield from ((moment, mark) for moment, mark in known if begin < moment <= end)


def _listed(words: Sequence[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def _spans(bits: int, say: Callable[[int], str]) -> str:
    """Return values in words: `1, 3 and 5 through 9`."""
    spans: list[list[int]] = []
    for value in cron_values(bits):
        if spans and spans[-1][-1] == value - 1:
            spans[-1].append(value)
        else:
            spans.append([value])
    # Two neighbours are listed as two values, not as a range.
    words = [[f"{say(span[0])} through {say(span[-1])}"] if len(span) > 2 else map(say, span) for span in spans]
    return _listed(list(itertools.chain.from_iterable(words)))


def _nth(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def _step_of(field: str, bits: int) -> int | None:
    """Return n if the field is `*/n`, and 1 if it is `*`; otherwise None."""
    least = CRON_FIELDS[field][0]
    step = (cron_values(bits)[1:2] or [least])[0] - least
    return step if step and bits == cron_bits(field, f"*/{step}") else None


def _said_time(seconds: int, minutes: int, hours: int) -> str:
    """Return the times in words: `at 09:00 and 17:30`, or by unit: `every 5 minutes of hours 9 through 17`."""
    if seconds.bit_count() * minutes.bit_count() * hours.bit_count() <= 6:
        times = itertools.product(cron_values(hours), cron_values(minutes), cron_values(seconds))
        return f"at {_listed([f'{h:02}:{m:02}' + (f':{s:02}' if seconds != 1 else '') for h, m, s in times])}"
    words: list[str] = []
    last: int | None = None
    units = {"second": seconds, "minute": minutes, "hour": hours}
    for unit, bits in list(units.items())[seconds == 1 :]:
        step = _step_of(unit, bits)
        if step is None or (24 if unit == "hour" else 60) % step:
            step = None
            words.append(f"{'of' if words else 'at'} {unit}{'s' * (bits.bit_count() > 1)} {_spans(bits, str)}")
        elif not words:
            words.append(f"every {unit}" if step == 1 else f"every {step} {unit}s")
        elif step > 1 or last is None:  # "every 5 minutes" already means in every hour
            words.append(f"of every {unit}" if step == 1 else f"of every {_nth(step)} {unit}")
        last = step
    return " ".join(words)


def _said_days(days: int, weekdays: int, *, both: bool) -> str:
    said = []
    if days != cron_bits("day-of-month", "*"):
        said.append(_listed(list(_said_by_month(days))))
    if weekdays != cron_bits("day-of-week", "*"):
        said.append(_listed(list(_said_by_week(weekdays))))
    return f" on {(' if it is ' if both else ' or on ').join(said)}" if said else ""


def _said_by_month(days: int) -> Iterator[str]:
    plain = days & cron_bits("day-of-month", "*")
    step = _step_of("day-of-month", plain) if plain.bit_count() > 3 else None
    if plain:
        yield f"the {_spans(plain, _nth)}" if step is None else f"every {_nth(step)} day of the month"
    if days >> LAST_DAY & 1:
        yield "the last day of the month"
    for day in cron_values(days >> NEAREST & cron_bits("day-of-month", "*")):
        yield f"the weekday nearest the {_nth(day)}"
    if days >> LAST_WORKDAY & 1:
        yield "the last weekday of the month"


def _said_by_week(weekdays: int) -> Iterator[str]:
    if plain := weekdays & 127:
        yield _spans(plain, lambda day: _WEEKDAYS[day])
    for week, which in enumerate(("first", "second", "third", "fourth", "fifth", "last"), 1):
        for day in cron_values(weekdays >> 7 * week & 127):
            yield f"the {which} {_WEEKDAYS[day]} of the month"
