"""Phrases that readers did not understand do not come back to the pages, the code and the help of the commands.

The list is short on purpose. It grows when a reader or a translator reports a phrase; it does not enforce a style.
"""

import re
import tokenize
from pathlib import Path

import pytest

import flowrra
from flowrra import OPERATOR_COMMANDS
from tests.support.pages import FENCE, ROOT

# A phrase, and what to write instead.
PHRASES = {
    "worker need be": "if no worker is running, the job waits",
    "there they wait": "the jobs wait",
    "is said in": "the words that this page uses",
    "as it should be": "say what was expected, and what happened",
    "taken for dead": "a worker that was presumed dead",
    "made up for": "a fire that was due while no worker was running does not happen later",
    "these only": "the queues to serve, each with its capacity",
    "unless told otherwise": "by default",
    "in the task's stead": "for this job",
    "anew": "again; restart",
    "found out": "identified",
    "the guilty": "the job that caused the crash",
    "innocent": "jobs that did not cause the crash",
    "at hand": "claimed in advance",
    "the whole truth": "the list is complete",
    "what becomes of": "what happens to",
    "comes to nothing": "is rolled back",
    "of one's own": "custom",
    "as it stands": "by default; without changes",
    "so many": "a number of",
    "is no more": "was removed",
    "has gone": "was removed",
    "the dozen words": "the words",
    "unless told": "by default",
    "is away": "the store is unreachable",
    "came of it": "the result",
    "may look, not act": "read-only access",
    "is no moment": "is not a time",
    "is no state": "is not a state",
    "handed out": "start; its jobs do not start",
    "left alone": "not changed",
    "in no state for": "in a state that does not allow it",
    "beside its fires": "now",
    "be put right": "be corrected",
    "look further back": "continue the search",
    "what is no": "a value that is not",
    "all is well": "no problems",
    "lets everybody in": "allows every request",
}
CODE = [ROOT / "flowrra.py", *sorted((ROOT / "flowrra_extras").rglob("*.py"))]
WRITTEN = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("*.py")),
    *sorted((ROOT / "flowrra_extras/dashboard/templates").glob("*.html")),
    *sorted((ROOT / "flowrra_extras/dashboard/static").glob("*.js")),
    *sorted((ROOT / "flowrra_extras/redis/lua").glob("*.lua")),
]


def hard_phrases(text: str) -> dict[str, str]:
    """The phrases that a text contains, in any case and across line breaks, and what to write instead."""
    plain = " ".join(text.lower().split())
    return {phrase: better for phrase, better in PHRASES.items() if re.search(rf"\b{re.escape(phrase)}\b", plain)}


def ident(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", WRITTEN, ids=ident)
def test_a_page_has_none(path: Path) -> None:
    assert hard_phrases(FENCE.sub("", path.read_text(encoding="utf-8"))) == {}


@pytest.mark.parametrize("command", ["", "worker", "enqueue", "status", "show", "explain", "demo", *OPERATOR_COMMANDS])
def test_the_help_of_a_command_has_none(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        flowrra.main([*command.split(), "--help"])
    assert hard_phrases(capsys.readouterr().out) == {}


@pytest.mark.parametrize("path", CODE, ids=ident)
def test_the_docstrings_comments_and_messages_of_a_file_have_none(path: Path) -> None:
    with path.open("rb") as file:
        tokens = tokenize.tokenize(file.readline)
        texts = [token.string for token in tokens if token.type in (tokenize.COMMENT, tokenize.STRING)]
    assert hard_phrases(" ".join(text.lstrip("# ") for text in texts)) == {}


def test_a_phrase_is_found_across_lines_and_not_inside_a_word() -> None:
    assert hard_phrases("Serve THESE\n    only, please.") == {"these only": PHRASES["these only"]}
    assert hard_phrases("theseonly") == {}
