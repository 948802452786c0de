"""What workers did, minute by minute: their counts and histograms go in, rates and quantiles come out."""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING

from flowrra_extras.activity import quantile
from flowrra_extras.dashboard.rows import moment

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from flowrra import Activity
    from flowrra_extras.dashboard import shapes

HOUR = 60  # minutes that are shown


def summed(rows: Iterable[Activity], at: float) -> shapes.Minute:
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


def each_minute(rows: Sequence[Activity], now: float) -> list[shapes.Minute]:
    """The last hour minute by minute, the empty ones too."""
    by_minute: dict[int, list[Activity]] = {begin(now) + 60 * number: [] for number in range(HOUR)}
    for row in rows:
        if row.minute in by_minute:
            by_minute[row.minute].append(row)
    return [summed(found, minute) for minute, found in by_minute.items()]


def by_task(rows: Iterable[Activity]) -> dict[str, list[Activity]]:
    """The rows of each task."""
    found: dict[str, list[Activity]] = collections.defaultdict(list)
    for row in rows:
        found[row.task].append(row)
    return found
