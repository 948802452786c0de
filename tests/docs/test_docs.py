"""What the pages in docs/ say of the code is true of it, and they can be built."""

import ast
import dataclasses
import json
import math
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import flowrra
from benchmarks import pages
from docs import llms, states, terminal
from flowrra import TRANSITIONS
from tests.support.pages import ROOT, read_blocks

MOVES = {(source, target) for source, targets in TRANSITIONS.items() for target in targets}
GUARANTEES = (ROOT / "docs" / "more" / "guarantees.md").read_text()
EXAMPLES_PAGE = (ROOT / "docs" / "guide" / "examples.md").read_text()


def names_in(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


# ---------------------------------------------------------------------------
# Guarantees
# ---------------------------------------------------------------------------

PROMISES = re.findall(
    r"^\| (?!promise |---)(.+?) \| (.+) \|$", GUARANTEES.partition("## Not promised")[0], re.MULTILINE
)


@pytest.mark.parametrize(("promise", "held_by"), PROMISES, ids=[promise[:40] for promise, _ in PROMISES])
def test_a_promise_is_held_by_tests_that_exist(promise: str, held_by: str) -> None:
    named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", held_by)
    assert len(named) == held_by.count("`") / 2, f"{promise}: a test is not named as `file.py::test_name`"
    assert named
    assert [test for file, test in named if test not in names_in(file)] == []


def test_there_are_promises() -> None:
    assert len(PROMISES) > 20


# ---------------------------------------------------------------------------
# States
# ---------------------------------------------------------------------------


DIAGRAM = states.draw(TRANSITIONS)
ARROW = re.compile(r'data-from="(\w+)" data-to="(\w+)" d="M([\d.]+) ([\d.]+) Q\S+ \S+ ([\d.]+) ([\d.]+)"')
BOX = re.compile(r'<rect id="state-(\w+)" x="([\d.]+)" y="([\d.]+)" width="(\d+)" height="(\d+)"')


def test_the_state_diagram_shows_the_moves_of_the_table() -> None:
    assert sorted(arrow[:2] for arrow in ARROW.findall(DIAGRAM)) == sorted(MOVES)
    assert sorted(box[0] for box in BOX.findall(DIAGRAM)) == sorted(TRANSITIONS)


def test_an_arrow_begins_and_ends_at_its_boxes() -> None:
    boxes = {name: tuple(map(float, place)) for name, *place in BOX.findall(DIAGRAM)}
    for source, target, *points in ARROW.findall(DIAGRAM):
        first, last = map(float, points[:2]), map(float, points[2:])
        assert distance(*first, *boxes[source]) <= 0.1
        assert distance(*last, *boxes[target]) <= states.GAP + 0.1


def distance(x: float, y: float, left: float, top: float, width: float, height: float) -> float:
    """From a point to a box."""
    aside, above = max(left - x, 0, x - left - width), max(top - y, 0, y - top - height)
    return math.hypot(aside, above)


def test_the_table_of_moves_is_that_of_the_code() -> None:
    page = (ROOT / "docs" / "more" / "states.md").read_text()
    assert sorted(re.findall(r"^\| ([a-z]+) \| ([a-z]+) \| (?!when)", page, re.MULTILINE)) == sorted(MOVES)


# ---------------------------------------------------------------------------
# Performance
# ---------------------------------------------------------------------------

ROW = {"what": "jobs", "against": "huey", "flowrra": 9.0, "its_figure": 3.0, "unit": "/s", "ratio": 3.0}
TIME = {"what": "p50", "against": "bare|limit", "flowrra": 2.0, "its_figure": 1.0, "unit": "ms", "ratio": 2.0}
SCENARIO: dict[str, Any] = {
    "title": "a drain",
    "rows": [
        ROW | {"judged": [2.0, 4.0, 3.0], "why_not": ""},
        TIME | {"judged": [2.0], "why_not": ""},
        ROW | {"against": "saq", "its_figure": None, "ratio": None, "judged": [], "why_not": "not installed"},
    ],
    "errors": {"saq": "not installed"},
    "settings": {"huey": "one thread", "bare|limit": "limit: a loop", "saq": ""},
    "queues": ["huey", "saq", "rq"],
    "loses": {"huey": "the running jobs"},
}


def test_a_table_shows_ratios_ranges_losses_and_why_one_did_not_run() -> None:
    text = pages.tables({"machine": {"cores": 2}, "scenarios": {"drain": SCENARIO}})
    assert "| jobs | 9/s | huey\\* | 3/s | 3.00 | 2.00 to 4.00 |" in text
    assert "| p50 | 2 ms | bare\\|limit | 1 ms | 2.00 | - |" in text
    assert "| jobs | 9/s | saq | could not run | - | - |" in text
    assert "- *huey*: one thread. \\*A crash loses the running jobs." in text
    assert "- *saq*: as it comes. Could not run: not installed" in text


def test_in_a_plot_more_is_better_whatever_the_unit() -> None:
    assert pages.points(SCENARIO) == [
        ("jobs, against huey", [2.0, 4.0, 3.0], True),
        ("p50, against bare|limit", [0.5], False),
    ]


def test_a_headline_is_against_the_best_of_the_other_queues() -> None:
    slower = ROW | {"against": "rq", "ratio": 5.0, "judged": [5.0], "why_not": ""}
    limit = ROW | {"against": "bare|limit", "ratio": 0.5, "judged": [0.5], "why_not": ""}
    found = SCENARIO | {"rows": [slower, limit, *SCENARIO["rows"]]}
    assert pages.best_other(found, "jobs") == SCENARIO["rows"][0]
    assert pages.best_other(found, "p50") is None


def test_the_tables_are_made_of_the_figures_beside_them() -> None:
    found = json.loads((pages.FOLDER / "figures.json").read_text())
    assert (pages.FOLDER / "tables.md").read_text() == pages.tables(found)
    assert pages.README.read_text() == pages.with_headlines(pages.README.read_text(), found)
    assert {path.stem for path in pages.FOLDER.glob("*.svg")} == {
        name for name, scenario in found["scenarios"].items() if pages.points(scenario)
    }


# ---------------------------------------------------------------------------
# What the guide says
# ---------------------------------------------------------------------------


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def first_cells(text: str) -> set[str]:
    """What stands as code in the first column of the tables of a page."""
    cells = re.findall(r"^\| (`[^|]+) \|", text, re.MULTILINE)
    return {word for cell in cells for word in re.findall(r"`([^`]+)`", cell)}


PARTS = [
    "Getting started",
    "Guides",
    "Running in production",
    "Integrations",
    "Moving from another queue",
    "Reference",
    "Internals",
]


def test_the_table_of_contents_has_every_page_once() -> None:
    """The pages of a folder that has an index, such as guide/moving, are in the contents of that one."""
    parts = re.findall(r":caption: (.+)\n\n((?:\S+\n)+)```", page("index.md"))
    assert [name for name, _ in parts] == PARTS
    entries = sorted(entry for _, entries in parts for entry in entries.split())
    pages = [path.relative_to(ROOT / "docs").with_suffix("").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    inside = re.compile(r"index|more/performance/tables|guide/moving/(?!index$).+")
    assert entries == sorted(name for name in pages if not inside.fullmatch(name))


def test_the_pages_name_the_numbers_and_messages_of_the_code() -> None:
    assert f'"{flowrra.KILLED}"' in page("guide/workers.md")
    assert f"hands it back for {flowrra.UNKNOWN_TASK_DELAY:g} s" in page("guide/workers.md")
    assert f"more than {flowrra.ON_TIME:g} s late" in page("guide/scheduling.md")
    assert f"at most the latest {flowrra.MAX_CATCH_UP}" in page("guide/scheduling.md")
    assert f"after {flowrra.ExecutorConfig().lease:g} s" in page("guide/workers.md")
    assert f"({flowrra.ExecutorConfig().drain:g})" in page("guide/workers.md")
    assert f"| {flowrra.BackendConfig().max_results:,} |" in page("guide/backends.md")


def test_the_symptoms_are_messages_of_the_code() -> None:
    symptoms = (
        "no live worker serves the queue",
        "is paused",
        "are ahead of it",
        "whose lease has ended",
        "is locked by another connection",
        "is presumed dead; its jobs are ready again",
        "lost its lease",
        "the event loop has been blocked",
        "is out of memory, so that nothing was written",
    )
    sources = [ROOT / "flowrra.py", *(ROOT / "flowrra_extras" / "redis").glob("*.py")]
    code = "".join(path.read_text() for path in sources)
    shown = page("guide/troubleshooting.md")
    assert [text for text in symptoms if text not in code or text not in shown] == []


def test_settings_to_copy_have_their_comments_on_lines_of_their_own() -> None:
    """Neither Redis nor systemd takes a comment behind a value: Redis would not even start."""
    blocks = [block for path in (ROOT / "docs").rglob("*.md") for block in read_blocks(path.read_text())]
    settings = [block.text for block in blocks if block.language in ("ini", "dockerfile")]
    assert len(settings) >= 3
    assert [line for text in settings for line in text.splitlines() if re.search(r"\S.*\s#", line)] == []


def test_the_commands_are_those_of_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        flowrra.main(["--help"])
    listed = re.findall(r"^    ([a-z]+)\b", capsys.readouterr().out, re.MULTILINE)
    named = {entry.split()[0] for entry in first_cells(page("guide/command-line.md"))}
    assert named == set(listed)


def test_the_options_of_a_worker_are_those_of_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        flowrra.main(["worker", "--help"])
    offered = set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - {"--help"}
    assert {entry.split()[0] for entry in first_cells(page("guide/workers.md"))} == offered


def test_the_options_of_a_task_are_those_of_the_code() -> None:
    named = first_cells(page("guide/tasks.md"))
    of_task = {"name", *(option.name for option in dataclasses.fields(flowrra.TaskOptions))}
    assert named == of_task | flowrra.SUBMIT_OPTIONS
    defaults = flowrra.TaskOptions()
    assert f"| `max_retries` | {defaults.max_retries} |" in page("guide/tasks.md")
    delays = f"{defaults.retry_delay:g}, {defaults.backoff:g}, {defaults.max_delay:g}"
    assert f"| `retry_delay`, `backoff`, `max_delay` | {delays} |" in page("guide/tasks.md")


# ---------------------------------------------------------------------------
# The README
# ---------------------------------------------------------------------------


def test_the_readme_is_short_and_its_links_lead_somewhere() -> None:
    text = pages.README.read_text()
    assert len(text.splitlines()) < 150
    linked = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert linked
    assert [link for link in linked if not (ROOT / link).exists()] == []


def test_the_badge_line_of_the_readme_is_that_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    badges = pages.README.read_text().splitlines()[2].split(" · ")
    assert badges[:2] == [f"CPython {project['requires-python'].removeprefix('>=')} or later", "no dependencies"]
    assert badges[2:4] == ["typed", f"{project['license']} license"]
    assert badges[4].startswith("[beta]")
    assert project["dependencies"] == []
    kinds = {
        "Typing :: Typed",
        "Development Status :: 4 - Beta",
        "Programming Language :: Python :: Implementation :: CPython",
    }
    assert kinds <= set(project["classifiers"])


def test_the_picture_of_the_demo_is_drawn_from_its_output() -> None:
    assert terminal.PICTURE.read_text() == terminal.draw(terminal.DEMO), "run python -m docs.terminal"


# ---------------------------------------------------------------------------
# Examples
# ---------------------------------------------------------------------------


def test_the_page_of_examples_shows_all_of_them() -> None:
    shown = re.findall(r"^```\{literalinclude\} \.\./\.\./(examples/\w+\.py)$", EXAMPLES_PAGE, re.MULTILINE)
    assert sorted(shown) == sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "examples").glob("*.py"))


# ---------------------------------------------------------------------------
# The build
# ---------------------------------------------------------------------------


@pytest.mark.timeout(180)  # Sphinx reads and writes everything
def test_the_pages_are_built_without_a_warning(tmp_path: Path) -> None:
    options = ["-W", "--keep-going", "-q", "-b", "html", "-d", str(tmp_path / "trees")]
    command = [sys.executable, "-m", "sphinx", *options, str(ROOT / "docs"), str(tmp_path / "html")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "html" / "api" / "app.html").exists()
    outline = (tmp_path / "html" / "llms.txt").read_text()
    linked = re.findall(rf"^- \[[^\]]+\]\({re.escape(llms.ADDRESS)}/([^)]+)\)", outline, re.MULTILINE)
    assert len(linked) == outline.count("\n- ")
    assert [page for page in linked if not (tmp_path / "html" / page).exists()] == []
    assert "# Troubleshooting" in (tmp_path / "html" / "llms-full.txt").read_text()
