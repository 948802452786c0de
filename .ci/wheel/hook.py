"""Lays the wheel out as a typed package.

PEP 561 knows no `py.typed` for a single module, so in the wheel `flowrra.py` is
`flowrra/__init__.py` beside one. Hatchling's `force-include` would put that copy into
editable installs too, where it goes stale; hence a hook.

It lives under `.ci/`, since it serves the build and nobody who reads or copies the
library; the sdist carries it, or no wheel could be built from an sdist.
"""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class WheelLayout(BuildHookInterface[Any]):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        build_data["force_include"] |= {
            "flowrra.py": "flowrra/__init__.py",
            ".ci/wheel/__main__.py": "flowrra/__main__.py",
            ".ci/wheel/py.typed": "flowrra/py.typed",
        }
