"""Finds and installs the other queues.

Most are ordinary installs (the `bench` extra). The published Flowrra 0.1.8 has the import name of the
Flowrra under test, so it is in a separate folder, which only the parts that measure it add to their path.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "bench"
OLD = "flowrra-0.1.8"


def old_folder() -> Path:
    return CACHE / f"{OLD}-py{sys.version_info[0]}{sys.version_info[1]}"


def install_old() -> None:
    """Install the published version once. Without a network, its rows give that as the reason."""
    folder = old_folder()
    if folder.exists():
        return
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(
        [*command, "--target", str(folder.with_suffix(".part")), OLD.replace("-", "==")],
        check=False,
        capture_output=True,
    )
    if done.returncode == 0:
        folder.with_suffix(".part").rename(folder)


def missing(needs: str, target: Path) -> str:
    """Return why a part that needs this cannot run; "" if it can."""
    if needs == OLD:
        return "" if old_folder().exists() else f"cannot install {OLD}"
    if needs == "flowrra":
        found = (target / "flowrra.py").exists() or (target / "flowrra").exists()
        return "" if found else f"no flowrra.py in {target}"
    if needs and importlib.util.find_spec(needs) is None:
        return f"{needs} is not installed (pip install 'flowrra[bench]')"
    return ""


def python_path(needs: str, target: Path) -> str:
    """Return the import path, with a link to these benchmarks first: the measured folder may have others."""
    lib = CACHE / "lib"
    lib.mkdir(parents=True, exist_ok=True)
    if not (lib / "benchmarks").is_symlink():
        (lib / "benchmarks").symlink_to(ROOT / "benchmarks", target_is_directory=True)
    return os.pathsep.join([str(lib), str(old_folder() if needs == OLD else target)])
