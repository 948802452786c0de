"""The program that docs/guide/backends.md shows, on each URL."""

import os
import re
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = re.compile(r"<!-- grow -->\n```python\n(.*?)```\n```text\n(.*?)```", re.DOTALL)


def run(folder: Path, url: str) -> str:
    found = EXAMPLE.search((ROOT / "docs" / "guide" / "backends.md").read_text())
    assert found is not None
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JOBS": url}
    command = [sys.executable, "-W", "error", "-c", found[1]]
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert ended.stdout == found[2], ended.stderr
    return ended.stdout


def with_option(url: str, name: str) -> str:
    return f"{url}{'&' if '?' in url else '?'}{name}=grow_{uuid.uuid4().hex}"


@pytest.mark.parametrize("url", ["memory://", "sqlite:///jobs.db", "sqlite://"])
def test_the_example_in_this_process_and_on_this_host(tmp_path: Path, url: str) -> None:
    run(tmp_path, url)


def test_the_example_on_redis(tmp_path: Path, redis_url: str) -> None:
    run(tmp_path, with_option(redis_url, "prefix"))


def test_the_example_on_postgresql(tmp_path: Path, postgres_schema: str) -> None:
    schema = postgres_schema.partition("?search_path=")
    run(tmp_path, f"{schema[0]}?schema={schema[2]}")
