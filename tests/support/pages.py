"""Reads pages in Markdown and runs the blocks that they show.

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
    <!-- runs: beside "command" -->   run it while that command runs, as in another terminal
    <!-- not run: why -->           leave it; the reason is needed
"""

import functools
import os
import py_compile
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

ROOT = Path(__file__).parents[2]
SECONDS = 40
SHELLS = ("console", "bash")
# In order: of its own accord, as a shell reports it, by the signal itself once all is cleaned up.
ENDINGS_BY_CTRL_C = {0, 130, -signal.SIGINT}
TRACEBACK = "Traceback (most recent call last)"

FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMENTS_ABOVE = re.compile(r"(?:<!--[^\n]*-->\s*)+\Z")
MARK = re.compile(r'<!-- (?:(file): (\S+)|(runs)(?:: (until|beside) "([^"]+)")?|(not run): (.+?)) -->')
LOOKS_LIKE_A_MARK = re.compile(r"<!--\s*(file|runs?|not)\b", re.IGNORECASE)


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
    reason: str | None = None  # why it does not run
    until: str | None = None
    beside: str | None = None
    output: str | None = None
    # (name, text) of what the page has saved before this block, and of the block itself.
    files: tuple[tuple[str, str], ...] = ()

    @property
    def is_program(self) -> bool:
        return self.language in ("python", "py", "sh", *SHELLS)

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
    for _, name, runs, how, what, not_run, why in (mark.groups() for mark in marks):
        if name:
            block = replace(block, name=name)
        if runs:
            until, beside = (what if how == word else None for word in ("until", "beside"))
            block = replace(block, runs=True, until=until, beside=beside)
        if not_run:
            block = replace(block, runs=False, reason=why)
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
    for block, following in zip_longest(blocks, blocks[1:]):
        if block.name:
            files[block.name] = block.text
        output = shown_output(block, following)
        complete.append(replace(block, output=output, files=tuple(files.items())))
    return complete


# ---------------------------------------------------------------------------
# Running a block
# ---------------------------------------------------------------------------


WORKER_RUNS = """
import sqlite3
db = sqlite3.connect("file:jobs.db?mode=ro", uri=True)
assert db.execute("SELECT 1 FROM flowrra_worker").fetchone()
"""


def command_for(block: Block, folder: Path) -> list[str]:
    if block.language in SHELLS:
        beside = f"{block.beside} &\ntrap 'kill %1; wait' EXIT\n" if block.beside else ""
        if beside and any("jobs.db" in text for _, text in block.files):
            beside += f"until python -c {shlex.quote(WORKER_RUNS)} 2> /dev/null; do sleep 0.1; done\n"
        # Any free port, where the page's reader gets 8420.
        commands = block.commands.replace("flowrra dashboard ", "flowrra dashboard --port 0 ")
        return ["bash", "-euo", "pipefail", "-c", beside + commands]
    script = folder / (block.name or "block.py")
    script.write_text(block.text)
    return [sys.executable, script.name]


@functools.cache
def compiled_program() -> Path:
    mode = py_compile.PycInvalidationMode.TIMESTAMP
    compiled = py_compile.compile(str(ROOT / "flowrra.py"), doraise=True, invalidation_mode=mode)
    assert compiled
    return Path(compiled)


def copy_program(folder: Path) -> None:
    """Copy `flowrra.py`, and the compiled module beside it: to compile it takes longer than most examples."""
    shutil.copy2(ROOT / "flowrra.py", folder)  # with its time, which is in the compiled module
    cache = folder / "__pycache__"
    cache.mkdir(exist_ok=True)
    shutil.copy(compiled_program(), cache)


@contextmanager
def started(command: list[str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process group of its own, of which nothing is left afterwards."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    process = subprocess.Popen(
        command,
        cwd=folder,
        # uvicorn takes any free port, where the page's reader gets 8000.
        env={**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1", "UVICORN_PORT": "0"},
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
    copy_program(folder)
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
