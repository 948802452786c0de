"""Where the peers are found.

huey and taskiq are ordinary installs (the `bench` extra). The published Flowrra 0.1.8 has the
import name of the Flowrra under test, so it lives in a folder of its own, which only the parts
that measure it put on their path.
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
    """Fetch the published version once; without a network its rows say so."""
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
    """Why a part that needs this cannot run; empty if it can."""
    if needs == OLD:
        return "" if old_folder().exists() else f"cannot install {OLD}"
    if needs == "flowrra":
        found = (target / "flowrra.py").exists() or (target / "flowrra").exists()
        return "" if found else f"no flowrra.py in {target}"
    if needs and importlib.util.find_spec(needs) is None:
        return f"{needs} is not installed (pip install 'flowrra[bench]')"
    return ""


def python_path(needs: str, target: Path) -> str:
    """These benchmarks first, by a link: the measured folder may have others, and ROOT a flowrra.py."""
    lib = CACHE / "lib"
    lib.mkdir(parents=True, exist_ok=True)
    if not (lib / "benchmarks").is_symlink():
        (lib / "benchmarks").symlink_to(ROOT / "benchmarks", target_is_directory=True)
    return os.pathsep.join([str(lib), str(old_folder() if needs == OLD else target)])
