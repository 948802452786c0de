"""What the build does beyond hatchling's own: the layout of the wheel, and the text that an index shows.

They live under `.ci/`, since they serve the build and nobody who reads or copies the
library; the sdist carries them, or no wheel could be built from an sdist.
"""

import re
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

RELATIVE_LINK = re.compile(r"(?P<picture>!?)\[(?P<text>[^]]*)\]\((?!https?:|#)(?P<path>[^)]+)\)")


class WheelLayout(BuildHookInterface[Any]):
    """Lays the wheel out as a typed package.

    PEP 561 knows no `py.typed` for a single module, so in the wheel `flowrra.py` is
    `flowrra/__init__.py` beside one. Hatchling's `force-include` would put that copy into
    editable installs too, where it goes stale; hence a hook.
    """

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        build_data["force_include"] |= {
            "flowrra.py": "flowrra/__init__.py",
            ".ci/wheel/__main__.py": "flowrra/__main__.py",
            ".ci/wheel/py.typed": "flowrra/py.typed",
        }


class LongDescription(MetadataHookInterface):
    """README.md with links into the repository as it was at this version: an index resolves no relative ones."""

    def update(self, metadata: dict[str, Any]) -> None:
        repository, tag = metadata["urls"]["Repository"], f"v{metadata['version']}"

        def absolute(link: re.Match[str]) -> str:
            path = link["path"]
            kind = "raw" if link["picture"] else "tree" if path.endswith("/") else "blob"
            return f"{link['picture']}[{link['text']}]({repository}/{kind}/{tag}/{path})"

        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": RELATIVE_LINK.sub(absolute, text)}
