"""`flowrra.__all__` is the public surface: what pages and examples import, and what the extras use, is in it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import flowrra
from tests.pages import FENCE, ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROGRAMS = sorted(path for folder in ("docs", "examples") for path in (ROOT / folder).rglob("*.py"))
EXTRAS = sorted((ROOT / "flowrra_extras").rglob("*.py"))
PUBLIC = {*flowrra.__all__, "__version__"}
IN_THE_REFERENCE = re.compile(r"^\.\. (?:currentmodule|auto(?:class|function|exception|data)):: (\S+)$", re.MULTILINE)


def names_used(source: str) -> Iterator[str]:
    """The names that a program takes from `flowrra`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "flowrra" and not node.level:
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "flowrra":
            yield node.attr


def names_on_page(page: str) -> Iterator[str]:
    """Those that its programs use, and those that the reference describes."""
    for fence in FENCE.finditer(page):
        if fence[1] == "python":
            yield from names_used(fence[2])
    module = ""
    for found in IN_THE_REFERENCE.finditer(page):
        if "currentmodule" in found[0]:
            module = found[1]
        elif module == "flowrra" and "." not in found[1]:
            yield found[1]


def ident(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_every_public_name_exists_once() -> None:
    assert [name for name in flowrra.__all__ if not hasattr(flowrra, name)] == []
    assert len(flowrra.__all__) == len(set(flowrra.__all__))
    assert not [name for name in flowrra.__all__ if name.startswith("_")]


@pytest.mark.parametrize("path", PAGES, ids=ident)
def test_a_page_tells_of_public_names(path: Path) -> None:
    assert set(names_on_page(path.read_text())) - PUBLIC == set()


@pytest.mark.parametrize("path", PROGRAMS, ids=ident)
def test_an_example_uses_public_names(path: Path) -> None:
    assert set(names_used(path.read_text())) - PUBLIC == set()


@pytest.mark.parametrize("path", EXTRAS, ids=ident)
def test_an_extra_uses_public_names(path: Path) -> None:
    assert set(names_used(path.read_text())) - PUBLIC == set()


def test_names_are_seen_where_they_are_used() -> None:
    source = "from flowrra import A, _b as b\nfrom .flowrra import C\nimport flowrra\nflowrra.d.e(x.flowrra)"
    assert set(names_used(source)) == {"A", "_b", "d"}
    page = f"```python\n{source}\n```\n.. currentmodule:: flowrra\n\n.. autoclass:: F\n\n.. autofunction:: other.g\n"
    assert set(names_on_page(page)) == {"A", "_b", "d", "F"}
