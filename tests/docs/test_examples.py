"""Each example runs as it stands, in an empty folder, and prints what its docstring says, where `...` is anything.

Those named `*_app.py` serve until they are stopped, and are tried with what they mount.
"""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from tests.support.pages import ROOT, matches

EXAMPLES = [path for path in sorted((ROOT / "examples").glob("*.py")) if not path.stem.endswith("_app")]


def promised_output(example: Path) -> str:
    """What stands under `Prints:`, the last part of the docstring."""
    docstring = ast.get_docstring(ast.parse(example.read_text()), clean=False) or ""
    _, heading, output = docstring.partition("\nPrints:\n")
    assert heading, f"{example.name} does not say what it prints"
    return dedent(output)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_prints_what_it_says(example: Path, tmp_path: Path) -> None:
    shutil.copy(example, tmp_path)
    done = subprocess.run(
        [sys.executable, "-W", "error", example.name],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert matches(promised_output(example), done.stdout), done.stdout
