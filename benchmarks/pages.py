"""python -m benchmarks.pages FIGURES: the documentation's tables and plots, from what `--json` has written.

Writes `docs/more/performance/`: the figures that are shown, `tables.md`, and a plot of each scenario's ratios;
and the table in README.md between its two marks. The tables need no more than Python, the plots matplotlib.
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.peers import ROOT
from benchmarks.report import number

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

README = ROOT / "README.md"
FOLDER = ROOT / "docs" / "more" / "performance"
BEGIN, END = "<!-- figures: made by `make bench` -->\n", "<!-- end of figures -->"
HIGHER_IS_BETTER = ("/s", "x")
TEXT = "#767676"  # the lightest grey that can be read on white; docs/static/flowrra.css lightens it on black

# The rows of the README's table, each against the best of the other queues: scenario, row, and what to call it there.
HEADLINES = (
    ("drain", "FULL", "SQLite: a worker empties a file"),
    ("enqueue", "FULL, 64 submitters", "SQLite: submits"),
    ("redis_drain", "1 worker", "Redis: a worker empties a queue"),
    ("postgres", "drain", "PostgreSQL: a worker empties a table"),
    ("memory", "jobs", "in memory: submit, run, read back"),
    ("cron", "next, 0 9 * * 1-5 Europe/Riga", "cron: the next fire"),
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pages", description=__doc__)
    parser.add_argument("figures", type=Path, help="what `python -m benchmarks --json` has written")
    found = json.loads(parser.parse_args(argv).figures.read_text())
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "figures.json").write_text(json.dumps(shortened(found), indent=1) + "\n")
    (FOLDER / "tables.md").write_text(tables(found))
    README.write_text(with_headlines(README.read_text(), found))
    for name, scenario in found["scenarios"].items():
        if points(scenario):
            plot(scenario, FOLDER / f"{name}.svg")
    return 0


def shortened(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures without those of each round. The rows contain what is shown."""
    kept = {
        name: {key: value for key, value in scenario.items() if key != "rounds"}
        for name, scenario in found["scenarios"].items()
    }
    return {"machine": found["machine"], "scenarios": kept}


# ---------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------


def tables(found: Mapping[str, Any]) -> str:
    """Return the tables of all scenarios, as a page without a title."""
    machine = ", ".join(f"{key} {value}" for key, value in found["machine"].items())
    parts = [f"Measured on: {machine}.\n", *(section(*item) for item in found["scenarios"].items())]
    return "\n".join(parts)


def section(name: str, scenario: Mapping[str, Any]) -> str:
    head = ("what", "Flowrra", "against", "its figure", "ratio", "rounds")
    rows = [cells(row, scenario) for row in scenario["rows"]]
    picture = f"![Ratios of {name}](performance/{name}.svg)\n\n" if points(scenario) else ""
    return f"### {name}\n\n{scenario['title']}\n\n{picture}{markdown(head, rows)}\n{notes(scenario)}"


def cells(row: Mapping[str, Any], scenario: Mapping[str, Any]) -> tuple[str, ...]:
    judged = row["judged"] if row["ratio"] is not None else []
    star = "\\*" if row["against"] in scenario.get("loses", {}) else ""
    return (
        row["what"],
        number(row["flowrra"], row["unit"]),
        row["against"] + star or "-",
        "could not run" if row["why_not"] else number(row["its_figure"], row["unit"]),
        "-" if row["ratio"] is None else f"{row['ratio']:.2f}",
        f"{min(judged):.2f} to {max(judged):.2f}" if len(judged) > 1 else "-",
    )


def notes(scenario: Mapping[str, Any]) -> str:
    """Return notes on each contestant: its settings, the jobs that a crash loses, and why it could not run."""
    lines = []
    for name, setting in scenario["settings"].items():
        loses, why_not = scenario.get("loses", {}).get(name), scenario["errors"].get(name)
        lost = f" \\*A crash loses {loses}." if loses else ""
        lines.append(f"- *{name}*: {setting or 'as it comes'}.{lost}{f' Could not run: {why_not}' if why_not else ''}")
    return "\n".join(lines) + "\n"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def with_headlines(page: str, found: Mapping[str, Any]) -> str:
    """Return the page with a new table between the two marks. Without marks, return it unchanged."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    return before + begin + headlines(found) + end + after if end else page


def headlines(found: Mapping[str, Any]) -> str:
    rows = []
    for name, what, words in HEADLINES:
        scenario = found["scenarios"].get(name, {"rows": []})
        if row := best_other(scenario, what):
            _, mine, against, theirs, ratio, _ = cells(row, scenario)
            rows.append((words, mine, f"{against}: {theirs}", ratio))
    return markdown(("", "Flowrra", "best of the others", "ratio"), rows)


def best_other(scenario: Mapping[str, Any], what: str) -> Mapping[str, Any] | None:
    """Return the row of that name against the other queue that comes closest to Flowrra."""
    rivals = [row for row in scenario["rows"] if row["what"] == what and row["against"] in scenario["queues"]]
    return min((row for row in rivals if row["ratio"] is not None), key=_better, default=None)


def _better(row: Mapping[str, Any]) -> float:
    """Return how many times better Flowrra was, for figures where more or less is better."""
    ratio: float = row["ratio"]
    return ratio if row["unit"] in HIGHER_IS_BETTER else 1 / ratio


# ---------------------------------------------------------------------------
# Plots
# ---------------------------------------------------------------------------


def points(scenario: Mapping[str, Any]) -> list[tuple[str, list[float], bool]]:
    """Return rows with a ratio: label, how many times better Flowrra was in each round, whether it is another queue."""
    found = []
    for row in scenario["rows"]:
        if row["ratio"] is None or row["against"] not in scenario["settings"]:
            continue
        better = row["judged"] if row["unit"] in HIGHER_IS_BETTER else [1 / ratio for ratio in row["judged"]]
        found.append((f"{row['what']}, against {row['against']}", better, row["against"] in scenario["queues"]))
    return found


def plot(scenario: Mapping[str, Any], path: Path) -> None:
    """Plot the ratios as dots on a logarithmic axis, with the range of the rounds, in greys that suit any page."""
    matplotlib: Any = import_module("matplotlib")
    matplotlib.use("svg")
    pyplot: Any = import_module("matplotlib.pyplot")
    pyplot.rcParams.update({"svg.hashsalt": "flowrra", "svg.fonttype": "none", "font.size": 10})
    rows = points(scenario)[::-1]
    figure, axes = pyplot.subplots(figsize=(8, 0.9 + 0.32 * len(rows)), layout="constrained")
    axes.axvline(1, color="#888888", linewidth=1)
    for height, (_, better, is_queue) in enumerate(rows):
        color = "#2a7fd4" if is_queue else "#999999"
        middle = sorted(better)[len(better) // 2]
        axes.plot([min(better), max(better)], [height, height], color=color, linewidth=3, solid_capstyle="round")
        axes.plot(middle, height, "o", color=color)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(_plain)
    axes.xaxis.set_minor_formatter(_plain)
    axes.set_yticks(range(len(rows)), [label for label, _, _ in rows])
    axes.set_xlabel("times better than the other (grey: a limit, or Flowrra itself)")
    for part in (axes.xaxis.label, *axes.get_xticklabels(which="both"), *axes.get_yticklabels()):
        part.set_color(TEXT)
    axes.tick_params(which="both", color=TEXT, labelcolor=TEXT)
    for spine in axes.spines.values():
        spine.set_visible(False)
    figure.savefig(path, transparent=True, metadata={"Date": None})
    pyplot.close(figure)


def _plain(value: float, place: int) -> str:
    """Return the label of a tick: only powers and their halves, otherwise the labels overlap."""
    return f"{value:g}" if f"{value:.0e}"[0] in "125" else ""


if __name__ == "__main__":
    sys.exit(main())
