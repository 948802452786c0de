"""How a page says numbers, lengths of time, sizes and moments. Knows neither jobs nor markup."""

from __future__ import annotations

import datetime as dt
import zoneinfo
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flowrra_extras.dashboard.shapes import Count


NOTHING = "\N{EN DASH}"


def number(value: float) -> str:
    """1,234,567: with commas, and a fraction only where there is one."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def count(value: Count) -> str:
    """A count as it is known: 1,234, or 10k+ where the store could not count them all."""
    if value["is_exact"]:
        return number(value["number"])
    thousands = value["number"] // 1000
    return f"{number(thousands)}k+" if thousands else f"{value['number']}+"


def length(seconds: float | None) -> str:
    """A length of time in few characters: 0.4 ms, 12 ms, 1.23 s, 42.1 s, 4 m 10 s, 3 h 5 m, 2 d 1 h."""
    if seconds is None:
        return NOTHING
    seconds = max(0.0, seconds)
    if seconds < 0.9995:
        return f"{seconds * 1000:.{1 if seconds < 0.00995 else 0}f} ms"
    if seconds < 99.95:
        return f"{seconds:.{2 if seconds < 9.995 else 1}f} s"
    return _long(round(seconds))


def _long(seconds: int) -> str:
    for size, unit, small, small_unit in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "m")):
        if seconds >= size:
            return f"{number(seconds // size)} {unit} {seconds % size // small} {small_unit}"
    return f"{seconds // 60} m {seconds % 60} s"


def share(value: float | None) -> str:
    """A part of the whole in per cent; what is there is never said to be 0 %."""
    if value is None:
        return NOTHING
    if 0 < value < 0.001:
        return "<0.1 %"
    return f"{value * 100:.{1 if value < 0.0995 and value else 0}f} %"


def size(value: int | None) -> str:
    """Bytes as people say them: 812 B, 4.2 kB, 118 MB."""
    if value is None:
        return NOTHING
    scaled = float(value)
    for unit in ("B", "kB", "MB"):
        if scaled < 999.5:
            return f"{scaled:.{1 if unit != 'B' and scaled < 9.95 else 0}f} {unit}"
        scaled /= 1000
    return f"{scaled:,.1f} GB"


def iso(moment: dt.datetime) -> str:
    """A moment for a machine: UTC, to the millisecond."""
    return moment.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def stamp(moment: dt.datetime, zone: str = "UTC") -> str:
    """A moment for people, by the clock of `zone`: 2026-11-25 09:42:44."""
    return moment.astimezone(_zone(zone)).strftime("%Y-%m-%d %H:%M:%S")


def short(moment: dt.datetime) -> str:
    """The same for a narrow column, without the year: 11-25 09:42:44."""
    return moment.astimezone(dt.UTC).strftime("%m-%d %H:%M:%S")


def weekday(moment: dt.datetime, zone: str = "UTC") -> str:
    """The day of the week there: Wed."""
    return moment.astimezone(_zone(zone)).strftime("%a")


def _zone(name: str) -> dt.tzinfo:
    """The zone; UTC where this machine does not know it, since a page has to be shown all the same."""
    try:
        return dt.UTC if name == "UTC" else zoneinfo.ZoneInfo(name)
    except (ValueError, OSError, zoneinfo.ZoneInfoNotFoundError):
        return dt.UTC
