"""Runs what README.md and docs/**/*.md show.

Every block runs in a folder of its own, with `flowrra.py` and the page's files so far in it.

- A ```python block runs. If the next block is ```text, that is its output (standard output and
  standard error together), where `...` stands for anything.
- A ```console or ```bash block runs when it is marked. In a ```console block the lines with `$ `
  are the commands; if there are others, they are the output, as above.

Marks are comments, each on a line of its own right above the block:

    <!-- file: app.py -->           save the block under this name, for itself and later blocks
    <!-- runs -->                   run it
    <!-- runs: until "ready" -->    run it until a line says so, then press Ctrl-C: it must end
                                    without a traceback
    <!-- not run: why -->           leave it; the reason is needed
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SECONDS = 40
SHELLS = ("console", "bash")
# In order: of its own accord, as a shell reports it, by the signal itself once all is cleaned up.
ENDINGS_BY_CTRL_C = {0, 130, -signal.SIGINT}
TRACEBACK = "Traceback (most recent call last)"

FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMENTS_ABOVE = re.compile(r"(?:<!--[^\n]*-->\s*)+\Z")
MARK = re.compile(r'<!-- (?:(file): (\S+)|(runs)(?:: until "([^"]+)")?|(not run): (.+?)) -->')
LOOKS_LIKE_A_MARK = re.compile(r"<!--\s*(file|runs?|not)\b", re.IGNORECASE)

needs_processes = pytest.mark.skipif(os.name == "nt", reason="the blocks are POSIX shell")


# ---------------------------------------------------------------------------
# Reading a page
# ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    line: int
    language: str
    text: str
    runs: bool
    name: str | None = None
    until: str | None = None
    output: str | None = None
    # (name, text) of what the page has saved before this block, and of the block itself.
    files: tuple[tuple[str, str], ...] = ()

    @property
    def commands(self) -> str:
        if self.language != "console":
            return self.text
        lines = self.text.splitlines()
        return "\n".join(line.removeprefix("$ ") for line in lines if line.startswith("$ "))


def read_block(page: str, fence: re.Match[str]) -> Block:
    line = page.count("\n", 0, fence.start()) + 1
    above = COMMENTS_ABOVE.search(page, 0, fence.start())
    comments = above[0] if above else ""
    marks = list(MARK.finditer(comments))
    if len(marks) != len(LOOKS_LIKE_A_MARK.findall(comments)):
        raise ValueError(f"line {line}: a mark that is none: {comments.strip()}")
    block = Block(line, fence[1], fence[2], runs=fence[1] == "python")
    for _, name, runs, until, not_run, _ in (mark.groups() for mark in marks):
        if name:
            block = replace(block, name=name)
        if runs:
            block = replace(block, runs=True, until=until)
        if not_run:
            block = replace(block, runs=False)
    return block


def shown_output(block: Block, following: Block | None) -> str | None:
    if block.language == "console":
        lines = block.text.splitlines(keepends=True)
        return "".join(line for line in lines if not line.startswith("$ ")) or None
    if block.language == "python" and following and following.language == "text":
        return following.text
    return None


def read_blocks(page: str) -> list[Block]:
    blocks = [read_block(page, fence) for fence in FENCE.finditer(page)]
    files: dict[str, str] = {}
    complete = []
    for block, following in zip(blocks, [*blocks[1:], None], strict=True):
        if block.name:
            files[block.name] = block.text
        output = shown_output(block, following)
        complete.append(replace(block, output=output, files=tuple(files.items())))
    return complete


# ---------------------------------------------------------------------------
# Running a block
# ---------------------------------------------------------------------------


def command_for(block: Block, folder: Path) -> list[str]:
    if block.language in SHELLS:
        return ["bash", "-euo", "pipefail", "-c", block.commands]
    script = folder / (block.name or "block.py")
    script.write_text(block.text)
    return [sys.executable, script.name]


@contextmanager
def started(command: list[str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process group of its own, of which nothing is left afterwards."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    limit = threading.Timer(SECONDS, kill, [process, signal.SIGKILL])
    limit.start()
    try:
        with process:
            yield process
    finally:
        limit.cancel()
        kill(process, signal.SIGKILL)


def kill(process: subprocess.Popen[str], number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def run_block(block: Block, folder: Path) -> str:
    """The block's output; AssertionError if it ends badly or never says what it should."""
    shutil.copy(ROOT / "flowrra.py", folder)
    for name, text in block.files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    output = ""
    with started(command_for(block, folder), folder) as process:
        if block.until:
            output = read_until(process, block.until)
            kill(process, signal.SIGINT)
        rest, _ = process.communicate()
    endings = ENDINGS_BY_CTRL_C if block.until else {0}
    assert process.returncode in endings, f"exit code {process.returncode}:\n{output}{rest}"
    assert not (block.until and TRACEBACK in rest), output + rest
    return output + rest


def read_until(process: subprocess.Popen[str], word: str) -> str:
    assert process.stdout
    output = ""
    for line in process.stdout:
        output += line
        if word in line:
            return output
    raise AssertionError(f"never said {word!r}:\n{output}")


def matches(expected: str, output: str) -> bool:
    pattern = re.escape(expected.strip()).replace(re.escape("..."), ".*")
    return re.fullmatch(pattern, output.strip(), re.DOTALL) is not None


def check_block(block: Block, folder: Path) -> None:
    output = run_block(block, folder)
    if block.output is not None:
        assert matches(block.output, output), f"expected:\n{block.output}\ngot:\n{output}"


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
    "other comments": "<!-- TODO -->\n```python\n```\n",
}

BAD_PAGES = {
    "python fails": "```python\n1 / 0\n```\n",
    "other output": "```python\nprint(1)\n```\n```text\n2\n```\n",
    "more output": "```python\nprint(1)\nprint(2)\n```\n```text\n1\n```\n",
    "shell fails": "<!-- runs -->\n```bash\nfalse\ntrue\n```\n",
    "console prints another thing": "<!-- runs -->\n```console\n$ echo a\nb\n```\n",
    "file of a later block": "```python\nimport a\n```\n<!-- file: a.py -->\n```python\n```\n",
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
