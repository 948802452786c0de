"""`flowrra.__all__` is the public surface: what pages and examples import, and what the extras use, is in it.

Each name has a docstring in Google style, and what it says of arguments and exceptions agrees with the code.
"""

import ast
import builtins
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import flowrra
from tests.support.pages import FENCE, ROOT

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


# Docstrings ----------------------------------------------------------------------------------------

PARTS = ("Args", "Returns", "Yields", "Raises")
MODULES = ("batching", "cron_union", "metrics", "migrate", "otel", "postgres", "redis", "scheduler", "testing")


def documented() -> Iterator[Any]:
    """The public classes and functions, with the public methods and properties of the classes."""
    for module in (flowrra, *(importlib.import_module(f"flowrra_extras.{name}") for name in MODULES)):
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.isclass(thing) or inspect.isfunction(thing):
                yield pytest.param(thing, id=f"{module.__name__}.{name}")
                for own in vars(thing) if inspect.isclass(thing) else ():
                    member = getattr(thing, own)
                    if not own.startswith("_") and (inspect.isroutine(member) or isinstance(member, property)):
                        yield pytest.param(member, id=f"{module.__name__}.{name}.{own}")


def parts_of(docstring: str) -> dict[str, list[str]]:
    """The headings of a docstring, each with the names that it lists."""
    _, *split = re.split(r"^([A-Z]\w+):$", docstring, flags=re.MULTILINE)
    entries = re.compile(r"^    ([\w*][\w*, ]*?): ", re.MULTILINE)
    return {
        head: [name.strip("* ") for entry in entries.findall(text) for name in entry.split(",")]
        for head, text in zip(split[::2], split[1::2], strict=True)
    }


@pytest.mark.parametrize("thing", list(documented()))
def test_a_public_name_has_a_docstring_in_google_style(thing: Any) -> None:
    docstring = inspect.getdoc(thing) or ""
    sentence = docstring.partition("\n\n")[0]
    assert sentence.endswith((".", ":")), "it begins with a sentence"
    parts = parts_of(docstring)
    assert set(parts) <= set(PARTS)
    if "Args" in parts:
        assert set(parts["Args"]) <= set(inspect.signature(thing).parameters)
    for error in parts.get("Raises", ()):
        assert issubclass(getattr(flowrra, error, None) or getattr(builtins, error), BaseException)


def with_arguments() -> Iterator[Any]:
    """The public methods of an app and of a running job that take more than one argument."""
    for kind in (flowrra.Flowrra, flowrra.JobContext):
        for name in vars(kind):
            member = getattr(kind, name)
            if not name.startswith("_") and inspect.isroutine(member):
                names = [one for one in inspect.signature(member).parameters if one != "self"]
                if len(names) > 1:
                    yield pytest.param(member, names, id=f"{kind.__name__}.{name}")


@pytest.mark.parametrize(("method", "names"), list(with_arguments()))
def test_a_method_of_users_lists_all_of_its_arguments(method: Any, names: list[str]) -> None:
    assert parts_of(inspect.getdoc(method) or "").get("Args") == names


def test_the_parts_of_a_docstring_are_found() -> None:
    text = "Do it.\n\nArgs:\n    a: one\n        or: two.\n    **b: three.\n\nRaises:\n    KeyError, OSError: no.\n"
    assert parts_of(text) == {"Args": ["a", "b"], "Raises": ["KeyError", "OSError"]}
