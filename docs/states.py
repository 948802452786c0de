"""Draws the state diagram from `flowrra.TRANSITIONS`: an SVG in the colour of the text around it.

This module decides where the boxes are. `TRANSITIONS` decides which arrows there are.
"""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flowrra import TaskStatus

WIDTH, HEIGHT = 860, 360
BOX_WIDTH, BOX_HEIGHT = 116, 36
GAP = 5  # between the tip of an arrow and its box
PAIR_BOW = 24  # how far two arrows between the same boxes curve away from each other

CENTRES: Mapping[str, tuple[float, float]] = {
    "scheduled": (90, 90),
    "blocked": (90, 230),
    "pending": (320, 160),
    "running": (560, 160),
    "retrying": (440, 245),
    "failed": (770, 90),
    "success": (770, 160),
    "cancelled": (320, 335),
}
# How far an arrow curves to the left, where a straight one would cross something.
BOWS: Mapping[tuple[str, str], float] = {
    ("running", "scheduled"): -70,
    ("failed", "pending"): -105,
    ("running", "cancelled"): 45,
    ("pending", "blocked"): 4,
    ("blocked", "pending"): 16,
    ("blocked", "cancelled"): 12,
}


class Point(NamedTuple):
    x: float
    y: float


def draw(transitions: Mapping[TaskStatus, frozenset[TaskStatus]]) -> str:
    """Return the diagram; KeyError if a state has no place yet."""
    arrows = "\n".join(_arrow(a, b, transitions) for a in transitions for b in sorted(transitions[a]))
    boxes = "\n".join(_box(status, is_end=status.is_finished) for status in transitions)
    return f"""<div class="wide"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" xmlns="http://www.w3.org/2000/svg"
  fill="none" stroke="currentColor" stroke-width="1.3" font-family="inherit" font-size="15">
<title>The states of a job and the moves between them</title>
<defs><marker id="point" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">
<path d="M0 0.5 L8 4 L0 7.5 z" fill="currentColor" stroke="none"/></marker></defs>
{arrows}
{boxes}
</svg></div>
"""


def _box(status: str, *, is_end: bool) -> str:
    x, y = CENTRES[status]
    corner = f'x="{x - BOX_WIDTH / 2:g}" y="{y - BOX_HEIGHT / 2:g}"'
    return (
        f'<rect id="state-{escape(status)}" {corner} width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="7" '
        f'stroke-width="{2.6 if is_end else 1.3}"/>'
        f'<text x="{x:g}" y="{y + 5:g}" text-anchor="middle" fill="currentColor" stroke="none">{escape(status)}</text>'
    )


def _arrow(a: TaskStatus, b: TaskStatus, transitions: Mapping[TaskStatus, frozenset[TaskStatus]]) -> str:
    bow = BOWS.get((a, b), PAIR_BOW if a in transitions[b] else 0.0)
    start, end = Point(*CENTRES[a]), Point(*CENTRES[b])
    bend = _beside(start, end, bow)
    first, last = _leaving(start, bend, 0), _leaving(end, bend, GAP)
    path = f"M{first.x:.1f} {first.y:.1f} Q{bend.x:.1f} {bend.y:.1f} {last.x:.1f} {last.y:.1f}"
    return f'<path data-from="{escape(a)}" data-to="{escape(b)}" d="{path}" marker-end="url(#point)"/>'


def _beside(start: Point, end: Point, bow: float) -> Point:
    """Return the control point of a curve whose middle is `bow` beside the middle of the straight line."""
    length = math.dist(start, end)
    across = Point((end.y - start.y) / length, (start.x - end.x) / length)
    return Point((start.x + end.x) / 2 + 2 * bow * across.x, (start.y + end.y) / 2 + 2 * bow * across.y)


def _leaving(centre: Point, towards: Point, gap: float) -> Point:
    """Return the point `gap` behind the place where the line from a box's centre leaves the box."""
    dx, dy = towards.x - centre.x, towards.y - centre.y
    share = min(_share(dx, BOX_WIDTH / 2), _share(dy, BOX_HEIGHT / 2))
    share += gap / math.hypot(dx, dy)
    return Point(centre.x + share * dx, centre.y + share * dy)


def _share(distance: float, half: float) -> float:
    return half / abs(distance) if distance else math.inf
