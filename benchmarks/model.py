"""The parts of a scenario: contestants that are measured, and checks that compare their figures.

This module measures and prints nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings from the command line for every part."""

    full: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One contestant of a scenario, which is measured in a separate process."""

    run: Callable[[Settings], Figures]
    needs: str = ""  # the distribution that must be installed
    setting: str = ""  # its settings, for the notes under the table
    loses: str = ""  # the jobs that a crash loses with this setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One row of the table: a figure of Flowrra, alone or as a ratio to another one.

    With `against` or `against_figure`, the goal is for the ratio; otherwise for the figure itself.
    """

    label: str
    ours: str
    figure: str
    unit: str = "/s"
    against: str = ""
    against_figure: str = ""
    goal: float | None = None
    at_most: bool = False

    @property
    def is_ratio(self) -> bool:
        return bool(self.against or self.against_figure)

    @property
    def other(self) -> tuple[str, str]:
        """The part and the figure to compare with."""
        return self.against or self.ours, self.against_figure or self.figure


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    title: str
    parts: Mapping[str, Part]
    checks: tuple[Check, ...]
    rounds: int = 3


@dataclass(slots=True)
class Measured:
    """The figures of the rounds of one scenario, or the reason why there are none."""

    rounds: list[dict[str, Figures]] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)

    def values(self, part: str, figure: str) -> list[float]:
        return [r[part][figure] for r in self.rounds if figure in r.get(part, {})]

    def ratios(self, check: Check) -> list[float]:
        """Return the ratios within each round, so that a slow minute of the machine affects both sides."""
        part, figure = check.other
        pairs = [
            (r[check.ours].get(check.figure), r[part].get(figure)) for r in self.rounds if check.ours in r and part in r
        ]
        return [mine / theirs for mine, theirs in pairs if mine is not None and theirs]
