"""Pauses between attempts to reach a server: short at first, never longer than half a second, and random."""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["pauses"]


def pauses() -> Iterator[float]:
    """Yield seconds to wait before each attempt, without end. They are random, so that clients return one by one."""
    for pause in itertools.chain((0.0, 0.02, 0.05, 0.1, 0.2), itertools.repeat(0.5)):
        yield pause * random.uniform(0.5, 1.0)  # noqa: S311 (no secret)
