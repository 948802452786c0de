"""What workers did, minute by minute: their counts and histograms go in, rates and quantiles come out."""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING, Any

from flowrra_extras.dashboard.rows import moment

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from flowrra_extras.dashboard import shapes

HOUR = 60  # minutes that are shown
_LEAST = 0.0001  # seconds: bucket k of a histogram holds lengths up to _LEAST * 2**k


def quantile(histogram: Mapping[int, int], share: float) -> float | None:
    """The length that `share` of all do not exceed, in seconds; None of nothing."""
    total = sum(histogram.values())
    wanted, seen = share * total, 0
    for bucket, number in sorted(histogram.items()):
        if seen + number >= wanted and number:
            return float(_LEAST * 2.0 ** (bucket - 1 + (wanted - seen) / number))
        seen += number
    return None


def summed(rows: Iterable[Any], at: float) -> shapes.Minute:
    """All of these rows as one."""
    waits: collections.Counter[int] = collections.Counter()
    runs: collections.Counter[int] = collections.Counter()
    succeeded = failed = retried = 0
    for row in rows:
        succeeded, failed, retried = succeeded + row.succeeded, failed + row.failed, retried + row.retried
        waits.update(row.waits)
        runs.update(row.runs)
    return {
        "at": moment(at),
        "succeeded": succeeded,
        "failed": failed,
        "retried": retried,
        "wait_p50": quantile(waits, 0.5),
        "wait_p95": quantile(waits, 0.95),
        "run_p50": quantile(runs, 0.5),
        "run_p95": quantile(runs, 0.95),
    }


def begin(now: float) -> int:
    """The first of the minutes that are shown."""
    return int(now // 60 - HOUR + 1) * 60


def each_minute(rows: Sequence[Any], now: float) -> list[shapes.Minute]:
    """The last hour minute by minute, the empty ones too."""
    by_minute: dict[int, list[Any]] = {begin(now) + 60 * number: [] for number in range(HOUR)}
    for row in rows:
        if row.minute in by_minute:
            by_minute[row.minute].append(row)
    return [summed(found, minute) for minute, found in by_minute.items()]


def by_task(rows: Iterable[Any]) -> dict[str, list[Any]]:
    """The rows of each task."""
    found: dict[str, list[Any]] = collections.defaultdict(list)
    for row in rows:
        found[row.task].append(row)
    return found
