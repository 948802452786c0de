"""Django's test runner runs the cases of tests/django/project, on SQLite and on PostgreSQL."""

import ast
import contextlib
import os
import re
import subprocess
import sys
import urllib.parse
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.services import POSTGRES_URL, require

ROOT = Path(__file__).parents[2]
CASES = Path(__file__).parent / "project" / "cases.py"
CLASSES = [node.name for node in ast.parse(CASES.read_text()).body if isinstance(node, ast.ClassDef)]
pytestmark = pytest.mark.timeout(180)  # Django empties all tables after each test


@contextlib.contextmanager
def database(vendor: str, folder: Path) -> Iterator[Mapping[str, str]]:
    """The environment that names a database of a test's own."""
    if vendor == "sqlite":
        yield {"DATABASE": vendor, "DATABASE_NAME": str(folder / "db.sqlite3")}
        return
    parts = urllib.parse.urlsplit(require(POSTGRES_URL))
    yield {
        "DATABASE": vendor,
        "DATABASE_NAME": f"flowrra_{uuid.uuid4().hex}",
        "DATABASE_USER": urllib.parse.unquote(parts.username or ""),
        "DATABASE_PASSWORD": urllib.parse.unquote(parts.password or ""),
        "DATABASE_HOST": parts.hostname or "127.0.0.1",
        "DATABASE_PORT": str(parts.port or 5432),
    }


@pytest.mark.parametrize("vendor", ["sqlite", "postgresql"])
def test_django_runs_the_cases(vendor: str, tmp_path: Path) -> None:
    with database(vendor, tmp_path) as environment:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "django", "test", "-v", "2", "tests.django.project.cases"],
            cwd=ROOT,
            env={
                **os.environ,
                **environment,
                "FOLDER": str(tmp_path),
                "DJANGO_SETTINGS_MODULE": "tests.django.project.settings",
            },
            capture_output=True,
            text=True,
            timeout=170,
        )
    assert done.returncode == 0, done.stderr
    ran = set(re.findall(r"^test_\w+ \(tests\.django\.project\.cases\.(\w+)\.", done.stderr, re.MULTILINE))
    assert ran == set(CLASSES) - {"JobsTestCase"}
