"""The small charts: from minutes and attempts to the paths of an SVG and to a sentence that says the same.

The paths are drawn on a canvas of `WIDTH` by `HEIGHT` units, which the page stretches to its place. Nothing here
knows a colour, and no text is drawn, since text would be stretched too.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from flowrra_extras.dashboard import wording

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Sequence

    from flowrra_extras.dashboard.shapes import AttemptRow, JobView, Minute

WIDTH = 240
HEIGHT = 48
TIMELINE_WIDTH = 1000
_GAP = 1.0  # between two bars
_LEAST = 1.5  # a bar's least height: one failed job among thousands has to be seen


class Chart(NamedTuple):
    """What is drawn: `paths` by the class that colours each, the scale's two ends, and all of it in words."""

    paths: dict[str, str]
    low: str
    high: str
    words: str


def finished(minutes: Sequence[Minute]) -> Chart:
    """Bars of the jobs that finished in each minute: those that failed stand on those that succeeded."""
    most = max((minute["succeeded"] + minute["failed"] for minute in minutes), default=0)
    good, bad = [], []
    for left, width, minute in _slots(minutes):
        foot = HEIGHT - _height(minute["succeeded"], most)
        good.append(_bar(left, width, foot, HEIGHT))
        bad.append(_bar(left, width, max(0.0, foot - _height(minute["failed"], most)), foot))
    succeeded, failed = (sum(minute[kind] for minute in minutes) for kind in ("succeeded", "failed"))
    words = f"Each minute of the last hour: {wording.number(succeeded)} succeeded, {wording.number(failed)} failed"
    if most:
        words += f", at most {wording.number(most)} in a minute"
    return Chart({"ok": "".join(good), "bad": "".join(bad)}, "0", f"{wording.number(most)}/min", words + ".")


def spans(minutes: Sequence[Minute], what: str) -> Chart:
    """Each minute's span from the 50th to the 95th percentile of `what` ("wait", "run"), on a scale of decades."""
    pairs = [_quantiles(minute, what) for minute in minutes]
    known = [value for pair in pairs if pair for value in pair]
    if not known:
        return Chart({}, "", "", "Nothing ran in the last hour.")
    low, high = math.floor(math.log10(min(known))), math.ceil(math.log10(max(known)))
    high = max(high, low + 1)

    def y(value: float) -> float:
        return HEIGHT * (1 - (math.log10(value) - low) / (high - low))

    span, middle = [], []
    for (left, width, _), pair in zip(_slots(minutes), pairs, strict=True):
        if pair:
            span.append(_bar(left, width, min(y(pair[1]), y(pair[0]) - _LEAST), y(pair[0])))
            middle.append(_bar(left, width, y(pair[0]) - _LEAST, y(pair[0])))
    grid = "".join(f"M0 {_short(y(10.0**decade))}H{WIDTH}" for decade in range(low + 1, high))
    paths = {"grid": grid, "span": "".join(span), "mid": "".join(middle)}
    low_text, high_text = wording.length(10.0**low), wording.length(10.0**high)
    worst = wording.length(max(known))
    words = f"Each minute of the last hour, from the 50th to the 95th percentile; the highest is {worst}."
    return Chart(paths, low_text, high_text, words)


def _quantiles(minute: Minute, what: str) -> tuple[float, float] | None:
    """The two, kept off zero, which a scale of decades has not."""
    low, high = (minute["wait_p50"], minute["wait_p95"]) if what == "wait" else (minute["run_p50"], minute["run_p95"])
    return None if low is None or high is None else (max(low, 0.0001), max(high, 0.0001))


def _slots(minutes: Sequence[Minute]) -> list[tuple[float, float, Minute]]:
    """Left edge and width of each minute's bar."""
    step = WIDTH / max(len(minutes), 1)
    return [(index * step, step - _GAP, minute) for index, minute in enumerate(minutes)]


def _height(value: int, most: int) -> float:
    return max(_LEAST, HEIGHT * value / most) if value else 0.0


def _bar(left: float, width: float, top: float, foot: float) -> str:
    if foot - top <= 0:
        return ""
    return f"M{_short(left)} {_short(foot)}V{_short(top)}h{_short(width)}V{_short(foot)}z"


def _short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def timeline(job: JobView) -> Chart | None:
    """A job's life from its submission on, as a line with its attempts on it. None before its first one."""
    tries = [attempt for attempt in job["attempts"] if attempt["outcome"] != "note"]
    if not tries:
        return None
    begin = min(job["submitted"], tries[0]["started"])
    last = max(attempt["ended"] or attempt["started"] for attempt in tries)
    # A running attempt goes on to the edge, a tenth beyond: drawn to scale, it would change at every look.
    whole = max((last - begin).total_seconds(), 0.001) * (1.1 if tries[-1]["ended"] is None else 1.0)

    def x(moment: dt.datetime) -> float:
        return min(TIMELINE_WIDTH, (moment - begin).total_seconds() / whole * TIMELINE_WIDTH)

    paths: dict[str, str] = {"grid": f"M0 4H{TIMELINE_WIDTH}"}
    for attempt in tries:
        left = min(x(attempt["started"]), TIMELINE_WIDTH - 3)
        right = TIMELINE_WIDTH if attempt["ended"] is None else max(x(attempt["ended"]), left + 3)
        kind = _kind(attempt)
        paths[kind] = paths.get(kind, "") + f"M{_short(left)} 0V8H{_short(right)}V0z"
    words = "; ".join(f"attempt {attempt['number']}: {attempt['outcome']}" for attempt in tries)
    end = "now" if tries[-1]["ended"] is None else f"{wording.length((last - begin).total_seconds())} later"
    return Chart(paths, "submitted", end, words)


def _kind(attempt: AttemptRow) -> str:
    return {"success": "ok", "failure": "bad", "crash": "bad", "running": "mid"}.get(attempt["outcome"], "off")
