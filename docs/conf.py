"""The configuration of Sphinx, for `make docs`. The build needs no network."""

from __future__ import annotations

import ast
import builtins
import functools
import importlib
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docutils import nodes
from sphinx.pycode import ModuleAnalyzer

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import flowrra  # noqa: E402 (the one of this tree)
from docs import llms, states  # noqa: E402

if TYPE_CHECKING:
    from sphinx.addnodes import pending_xref
    from sphinx.application import Sphinx

project = "Flowrra"
author = "The Flowrra authors"
copyright = f"2026 {author}"
version = release = flowrra.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["__pycache__", "more/performance/tables.md"]  # included in another page
nitpicky = True
smartquotes = False  # they would make a dash of `--concurrency` in the notes of the benchmarks

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3  # so that [a link](page.md#to-a-heading) is checked too

default_role = "code"  # single backticks in docstrings mark code
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_use_type_comments = False  # there are none, and looking for them took a fifth of the time
# On Python 3.11, `inspect` parses the whole file for the source of each class, and is asked a thousand times: half of
# the time.
ast.parse = functools.lru_cache(maxsize=100)(ast.parse)  # type: ignore[assignment]
autodoc_default_options = {"members": True}

html_theme = "furo"
html_title = f"Flowrra {release}"
html_static_path = ["static"]
html_css_files = ["flowrra.css"]
html_show_sphinx = False
html_copy_source = False

BUILT = HERE.parent / ".cache" / "docs"
BUILT.mkdir(parents=True, exist_ok=True)
(BUILT / "states.svg").write_text(states.draw(flowrra.TRANSITIONS))
(BUILT / "llms.txt").write_text(llms.outline(HERE))
(BUILT / "llms-full.txt").write_text(llms.whole(HERE))
html_extra_path = [str(BUILT / "llms.txt"), str(BUILT / "llms-full.txt")]

PYTHON = "https://docs.python.org/3/library"


TYPE_VARIABLES = ("P", "R", "T", "TaskT", "Item", "Answer")
# Types of other packages, and internal types of the extras.
FOREIGN_TYPES = (
    "APIRouter",
    "HttpResponse",
    "URLPattern",
    "Blueprint",
    "Dashboard",
    "Counts",
    "ClientMaker",
    "MeterProvider",
    "RetryKeywords",
    "RetriedSteps",
    "Redis",
    "TracerProvider",
    "Context",
)
nitpick_ignore_regex = [
    ("py:(class|obj)", rf"([\w.]+\.)?({'|'.join(TYPE_VARIABLES)})(\.k?w?args)?"),
    ("py:class", rf"([\w.]+\.)?({'|'.join(FOREIGN_TYPES)})"),
]


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", mark_code, priority=100)  # before napoleon
    app.connect("autodoc-process-signature", spell_signature)
    app.connect("missing-reference", link_to_python)
    # autodoc cannot render `*args: P.args` in an overload; api/app.md contains the first one as text.
    analyzer = ModuleAnalyzer.for_module("flowrra")
    analyzer.analyze()
    for name in ("Flowrra.submit", "SyncFace.submit"):
        del analyzer.overloads[name]


def mark_code(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Mark indented paragraphs of a docstring as code. Arguments and errors follow a heading without a blank line."""
    marked: list[str] = []
    text_before = False
    for before, line in zip(["", *lines], lines, strict=False):
        if line.startswith("    ") and not before and text_before:
            marked += ["::", ""]
        if line:
            text_before = not line.startswith(" ")
        marked.append(line)
    lines[:] = marked


def spell_signature(
    app: Sphinx, what: str, name: str, thing: object, options: object, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Write default factories and the parameters of a task as in Python."""
    if signature is not None:
        signature = signature.replace("<factory>", "...").replace("[~P,", "[P,")
        signature = re.sub(r"\*(args|kwargs): ~typing\.~P", r"*\1: P.\1", signature)
    return signature, returns


def link_to_python(app: Sphinx, env: object, node: pending_xref, content: nodes.TextElement) -> nodes.Node | None:
    """Return a link into Python's documentation for a name of the standard library."""
    found = standard_name(node.get("reftarget", ""))
    if node.get("refdomain") != "py" or found is None:
        return None
    module, name = found
    place = f"{page_of(name)}.html#{name}" if module == "builtins" else f"{module}.html#{module}.{name}"
    return nodes.reference("", "", content, internal=False, refuri=f"{PYTHON}/{place}")


def page_of(name: str) -> str:
    """Return the page of Python's documentation for a builtin."""
    if isinstance(getattr(builtins, name), type) and issubclass(getattr(builtins, name), BaseException):
        return "exceptions"
    return {"None": "constants", **dict.fromkeys(("bool", "float", "int", "object", "type"), "functions")}.get(
        name, "stdtypes"
    )


def standard_name(target: str) -> tuple[str, str] | None:
    """Return the module and the name of a target in the standard library; None if there is no such name."""
    module, _, name = target.rpartition(".")
    module = module or "builtins"
    if module.partition(".")[0] not in sys.stdlib_module_names:
        return None
    found: Any = builtins if module == "builtins" else importlib.import_module(module)
    return (module, name) if hasattr(found, name) else None
