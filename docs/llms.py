"""Makes `llms.txt` from docs/index.md: every page with its address and its first sentence, for language models.

`llms-full.txt` is the text of these pages. `make docs` puts both beside the pages.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ADDRESS = "https://flowrra.readthedocs.io/en/latest"
PART = re.compile(r":caption: (.+)\n\n((?:\S+\n)+)```")
CONTENTS = re.compile(r"```\{toctree\}\n((?:[^:\n]\S*\n)+)```")
FIRST_SENTENCE = re.compile(r"(?:\A|\n\n)(?![#<|:!\d\s-]|```)((?:.|\n(?!\n))+?\.)(?=\s|\Z)")
LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")


def parts(folder: Path) -> list[tuple[str, list[str]]]:
    """Return the parts of the contents, each with the names of its pages. The pages of an index follow it."""
    found = PART.findall((folder / "index.md").read_text(encoding="utf-8"))
    return [
        (title, [page for entry in entries.split() for page in _with_pages(folder, entry)]) for title, entries in found
    ]


def _with_pages(folder: Path, entry: str) -> Iterator[str]:
    yield entry
    if entry.endswith("/index"):
        for contents in CONTENTS.findall(read(folder, entry)):
            yield from (f"{entry.removesuffix('index')}{name}" for name in contents.split())


def read(folder: Path, page: str) -> str:
    return (folder / f"{page}.md").read_text(encoding="utf-8")


def outline(folder: Path) -> str:
    """Return the text of llms.txt."""
    lines = ["# Flowrra", "", f"> {first_sentence(read(folder, 'index'))}"]
    for title, pages in parts(folder):
        lines += ["", f"## {title}", ""]
        for page in pages:
            text = read(folder, page)
            heading = re.match(r"# (.+)", text)
            name = heading[1] if heading else page.rpartition("/")[2].capitalize()
            lines.append(f"- [{name}]({ADDRESS}/{page}.html): {first_sentence(text)}".removesuffix(": "))
    return "\n".join(lines) + "\n"


def first_sentence(text: str) -> str:
    """Return the first sentence of a page's prose without its links; "" if it has none."""
    found = FIRST_SENTENCE.search(re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))
    return LINK.sub(r"\1", " ".join(found[1].split())) if found else ""


def whole(folder: Path) -> str:
    """Return the text of llms-full.txt: all pages that are written by hand."""
    pages = [page for _, pages in parts(folder) for page in pages if not page.startswith("api/")]
    return "\n".join(re.sub(r"^<!--.*-->\n", "", read(folder, page), flags=re.MULTILINE) for page in pages)
