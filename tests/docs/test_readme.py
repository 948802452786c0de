"""Runs what README.md and docs/**/*.md show; `tests/support/pages.py` says how a page marks its blocks."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.pages import ROOT, Block, check_block, read_blocks

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

needs_processes = pytest.mark.skipif(os.name == "nt", reason="the blocks are POSIX shell")


# ---------------------------------------------------------------------------
# The pages
# ---------------------------------------------------------------------------

RUNNABLE = [
    pytest.param(block, id=f"{page.relative_to(ROOT).as_posix()}:{block.line}")
    for page in PAGES
    for block in read_blocks(page.read_text(encoding="utf-8"))
    if block.runs
]


@needs_processes
@pytest.mark.parametrize("block", RUNNABLE)
def test_what_is_shown_works(block: Block, tmp_path: Path) -> None:
    check_block(block, tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_block_runs_or_says_why_not(page: Path) -> None:
    blocks = read_blocks(page.read_text(encoding="utf-8"))
    silent = [block.line for block in blocks if block.is_program and not block.runs and not block.reason]
    assert silent == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_text_above_a_file_names_it(page: Path) -> None:
    """Its mark is a comment, which nobody sees."""
    text = page.read_text(encoding="utf-8")
    lines = text.splitlines()
    for block in read_blocks(text):
        if block.name:
            above = lines[: block.line - 1]
            start = max((number for number, line in enumerate(above) if line.startswith("```")), default=0)
            assert f"`{block.name}`" in "\n".join(above[start:]), f"line {block.line}"


def test_the_readme_shows_something_that_runs() -> None:
    assert any(block.runs for block in read_blocks(PAGES[0].read_text(encoding="utf-8")))


# ---------------------------------------------------------------------------
# The runner itself
# ---------------------------------------------------------------------------

Check = Callable[[str], None]


@pytest.fixture
def check(tmp_path: Path) -> Check:
    def check_page(page: str) -> None:
        for number, block in enumerate(read_blocks(page)):
            folder = tmp_path / str(number)
            folder.mkdir()
            if block.runs:
                check_block(block, folder)

    return check_page


# Short sleeps: a signal that comes just before a long one would have to wait for its end.
LASTING = """
<!-- runs: until "ready" -->
```python
import sys, time
try:
    print("ready")
    while True:
        time.sleep(0.01)
except KeyboardInterrupt:
    {}
```
"""

GOOD_PAGES = {
    "python runs": "```python\nimport flowrra\n```\n",
    "output": "```python\nprint(1)\nprint(2)\n```\nSays:\n```text\n1\n2\n```\n",
    "output with dots": "```python\nprint('a 17 b')\n```\n```text\na ... b\n```\n",
    "not run": "<!-- not run: wants a server -->\n```python\n1 / 0\n```\n```text\nx\n```\n",
    "shell is left": "```bash\nfalse\n```\n",
    "shell runs": "<!-- runs -->\n```bash\ntest -f flowrra.py\n```\n",
    "console": "<!-- runs -->\n```console\n$ echo a\na\n$ echo b\nb\n```\n",
    "file": "<!-- file: a.py -->\n```python\nx = 1\n```\n```python\nfrom a import x\n```\n",
    "file and runs": "<!-- file: a.sh -->\n<!-- runs -->\n\n```bash\ntest -f a.sh\n```\n",
    "until": LASTING.format("print('bye')"),
    "beside": '<!-- runs: beside "touch a; sleep 30" -->\n```bash\nuntil test -f a; do sleep 0.01; done\n```\n',
    "no block": "Only text.\n",
    "other comments": "<!-- TODO -->\n```python\n```\n",
}

BAD_PAGES = {
    "python fails": "```python\n1 / 0\n```\n",
    "other output": "```python\nprint(1)\n```\n```text\n2\n```\n",
    "more output": "```python\nprint(1)\nprint(2)\n```\n```text\n1\n```\n",
    "shell fails": "<!-- runs -->\n```bash\nfalse\ntrue\n```\n",
    "console prints another thing": "<!-- runs -->\n```console\n$ echo a\nb\n```\n",
    "file of a later block": "```python\nimport a\n```\n<!-- file: a.py -->\n```python\n```\n",
    "fails beside": '<!-- runs: beside "sleep 30" -->\n```bash\nfalse\n```\n',
    "never ready": '<!-- runs: until "ready" -->\n```bash\necho no\n```\n',
    "dies at Ctrl-C": LASTING.format("raise"),
    "fails at Ctrl-C": LASTING.format("sys.exit(3)"),
}


@needs_processes
@pytest.mark.parametrize("page", GOOD_PAGES.values(), ids=GOOD_PAGES.keys())
def test_a_good_page_passes(check: Check, page: str) -> None:
    check(page)


@needs_processes
@pytest.mark.parametrize("page", BAD_PAGES.values(), ids=BAD_PAGES.keys())
def test_a_bad_page_fails(check: Check, page: str) -> None:
    with pytest.raises(AssertionError):
        check(page)


@pytest.mark.parametrize("mark", ["<!-- run -->", "<!-- runs: until -->", "<!-- not run -->"])
def test_a_misspelt_mark_is_refused(mark: str) -> None:
    with pytest.raises(ValueError, match="line 2: a mark that is none"):
        read_blocks(f"{mark}\n```bash\n```\n")
