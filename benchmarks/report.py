"""The table and the JSON."""

from __future__ import annotations

import os
import platform
import sqlite3
import statistics
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from benchmarks.model import Check, Measured, Part, Scenario

HEAD = ("what", "flowrra", "against", "its figure", "ratio", "rounds", "goal", "met")


def number(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{text}{unit if unit.startswith('/') else ' ' + unit}"


def median(values: Iterable[float]) -> float | None:
    found = list(values)
    return statistics.median(found) if found else None


def row(check: Check, measured: Measured) -> dict[str, Any]:
    """Return one check with its verdict, for the table and the JSON."""
    part, figure = check.other
    mine = measured.values(check.ours, check.figure)
    judged = measured.ratios(check) if check.is_ratio else mine
    middle = median(judged)
    return {
        "what": check.label,
        "flowrra": median(mine),
        "unit": check.unit,
        "against": _against(check),
        "its_figure": median(measured.values(part, figure)) if check.is_ratio else None,
        "ratio": middle if check.is_ratio else None,
        "judged": judged,
        "goal": check.goal,
        "at_most": check.at_most,
        "met": None if check.goal is None or middle is None else _met(check, middle),
        "rounds_met": 0 if check.goal is None else sum(_met(check, value) for value in judged),
        "why_not": measured.errors.get(check.ours) or measured.errors.get(part, ""),
    }


def _against(check: Check) -> str:
    if not check.is_ratio:
        return ""
    return check.against or f"its own {check.against_figure}"


def _met(check: Check, value: float) -> bool:
    assert check.goal is not None
    return value <= check.goal if check.at_most else value >= check.goal


def cells(entry: Mapping[str, Any], marked: set[str]) -> tuple[str, ...]:
    """Return the row as text. If a part could not run, the reason replaces its figure."""
    unit = entry["unit"]
    sign = "<=" if entry["at_most"] else ">="
    goal = "-" if entry["goal"] is None else f"{sign} {_goal(entry)}"
    against = entry["against"] + ("*" if entry["against"] in marked else "")
    return (
        entry["what"],
        number(entry["flowrra"], unit),
        against or "-",
        entry["why_not"] or number(entry["its_figure"], unit),
        "-" if entry["ratio"] is None else f"{entry['ratio']:.2f}",
        _range(entry["judged"]),
        goal,
        _verdict(entry),
    )


def _range(judged: list[float]) -> str:
    if len(judged) < 2:
        return "-"
    return " to ".join(number(value, "").strip() for value in (min(judged), max(judged)))


def _verdict(entry: Mapping[str, Any]) -> str:
    """Return the verdict by the median. If the rounds disagree, add how many met the goal."""
    if entry["met"] is None:
        return "-"
    word, met, rounds = "yes" if entry["met"] else "NO", entry["rounds_met"], len(entry["judged"])
    return word if met in (0, rounds) else f"{word} ({met} of {rounds})"


def _goal(entry: Mapping[str, Any]) -> str:
    return f"{entry['goal']:g}x" if entry["against"] else number(entry["goal"], entry["unit"])


def table(rows: list[tuple[str, ...]]) -> str:
    # A reason for not running may be long, and must not make the columns too wide.
    cut = [tuple(cell if len(cell) <= 44 else cell[:41] + "..." for cell in r) for r in rows]
    widths = [max(len(r[i]) for r in [HEAD, *cut]) for i in range(len(HEAD))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in (0, 2) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(r, widths, strict=True))
        ).rstrip()
        for r in [HEAD, tuple("-" * w for w in widths), *cut]
    )


def notes(scenario: Scenario, measured: Measured) -> list[str]:
    """Return notes on each part: its settings, its figures, and the jobs that a crash loses."""
    lines = []
    for name, part in scenario.parts.items():
        star = f" *a crash loses {part.loses}." if part.loses else ""
        found = figures_of(name, measured) or measured.errors.get(name, "not run")
        lines.append(f"  {name}: {part.setting or '-'}.{star}\n      {found}")
    return lines


def figures_of(name: str, measured: Measured) -> str:
    keys = {key for r in measured.rounds for key in r.get(name, {})}
    middle = {key: median(measured.values(name, key)) for key in sorted(keys)}
    return ", ".join(f"{key} {number(value, '').strip()}" for key, value in middle.items())


def text(name: str, scenario: Scenario, measured: Measured) -> str:
    marked = {n for n, part in scenario.parts.items() if part.loses}
    rows = [cells(row(check, measured), marked) for check in scenario.checks]
    lines = ["", f"{name}: {scenario.title}", table(rows), *notes(scenario, measured)]
    return "\n".join(lines)


def record(scenario: Scenario, measured: Measured) -> dict[str, Any]:
    return {
        "title": scenario.title,
        "rows": [row(check, measured) for check in scenario.checks],
        "rounds": measured.rounds,
        "errors": measured.errors,
        "settings": {name: part.setting for name, part in scenario.parts.items()},
        "queues": [name for name, part in scenario.parts.items() if is_queue(part)],
        "loses": {name: part.loses for name, part in scenario.parts.items() if part.loses},
    }


def is_queue(part: Part) -> bool:
    """Whether the part is another queue or library, not Flowrra or a limit."""
    return part.needs not in ("", "flowrra") and not part.setting.startswith("limit")


def machine() -> dict[str, Any]:
    """Return the machine and its load, without which figures cannot be compared."""
    return {
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }
