"""The file alone: copied into an empty folder or into a package, with nothing installed.

The trap is `__main__`: run as a program, the file must import itself under its own name,
or a user's module that imports it would meet a second registry and a second set of classes.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import source_layout as layout
from tests.support.pages import copy_program

CORE = Path(__file__).parents[2] / "flowrra.py"
VERSION = layout.source_version(CORE.read_text())

# No site-packages, no user's site, no PYTHON* variables; the current folder stays importable.
BARE = (sys.executable, "-S", "-s", "-E")

# Runs what is said below as `__main__`, then loads a user's module, and counts the classes.
ONE_REGISTRY = """
import gc, importlib, runpy, sys
way, program, library = sys.argv[1:]
sys.argv = [program, "--version"]
try:
    if way == "script":
        runpy.run_path(program, run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)
except SystemExit as stop:
    assert not stop.code, stop.code
user = importlib.import_module("user")
assert user.Flowrra is sys.modules[library].Flowrra
classes = [x for x in gc.get_objects() if isinstance(x, type) and x.__name__ == "Flowrra"]
assert classes == [user.Flowrra], [(c, c.__module__) for c in classes]
print("one registry")
"""


def run(*command: str, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    copy_program(tmp_path)
    (tmp_path / "user.py").write_text("from flowrra import Flowrra\n")
    return tmp_path


@pytest.fixture
def vendored(tmp_path: Path) -> Path:
    vendor = tmp_path / "pkg" / "_vendor"
    vendor.mkdir(parents=True)
    for package in (vendor.parent, vendor):
        (package / "__init__.py").touch()
    copy_program(vendor)
    (tmp_path / "user.py").write_text("from pkg._vendor.flowrra import Flowrra\n")
    return tmp_path


def test_alone_it_runs_as_a_script(alone: Path) -> None:
    # -I takes even the script's own folder off sys.path.
    output = run(sys.executable, "-I", "-S", "flowrra.py", "--version", cwd=alone)
    assert VERSION
    assert VERSION in output


def test_alone_it_runs_from_another_folder(alone: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    output = run(sys.executable, "-I", "-S", str(alone / "flowrra.py"), "--version", cwd=elsewhere)
    assert str(VERSION) in output


def test_alone_it_runs_as_a_module(alone: Path) -> None:
    assert str(VERSION) in run(*BARE, "-m", "flowrra", "--version", cwd=alone)


def test_vendored_it_runs_as_a_module(vendored: Path) -> None:
    assert str(VERSION) in run(*BARE, "-m", "pkg._vendor.flowrra", "--version", cwd=vendored)


def test_alone_the_demo_runs(alone: Path) -> None:
    assert run(sys.executable, "-I", "-S", "flowrra.py", "demo", cwd=alone)


@pytest.mark.parametrize(("way", "program"), [("script", "flowrra.py"), ("module", "flowrra")])
def test_alone_there_is_one_registry(alone: Path, way: str, program: str) -> None:
    output = run(*BARE, "-c", ONE_REGISTRY, way, program, "flowrra", cwd=alone)
    assert output.endswith("one registry\n")


def test_vendored_there_is_one_registry(vendored: Path) -> None:
    name = "pkg._vendor.flowrra"
    output = run(*BARE, "-c", ONE_REGISTRY, "module", name, name, cwd=vendored)
    assert output.endswith("one registry\n")


# What a lone file lacks: it says so, and what brings it.
ABSENT = {
    "cron in words": ("flowrra.Cron('@daily').explain()", "cron is not put in words here", "flowrra"),
    "several crons": (
        "flowrra.Cron('@daily') | flowrra.Cron('@weekly')",
        "schedules are not put together here",
        "flowrra",
    ),
    "stored schedules": (
        "flowrra.Flowrra().create_scheduler()",
        "schedules cannot be stored here",
        "flowrra[scheduler]",
    ),
    "a name that has left": ("flowrra.Scheduler", "schedules cannot be stored here", "flowrra[scheduler]"),
    "a broker on a server": ("flowrra.Flowrra.from_urls('redis://h')", "redis:// needs a driver", "flowrra[redis]"),
}


def refusal(library: str, call: str, cwd: Path, *python: str) -> str:
    """What the ConfigError of a call says."""
    program = f"import {library} as flowrra\ntry: {call}\nexcept flowrra.ConfigError as error: print(error)"
    return run(*(python or BARE), "-c", program, cwd=cwd)


@pytest.mark.parametrize("what", ABSENT)
def test_alone_it_says_what_brings_an_extra(alone: Path, what: str) -> None:
    call, trouble, package = ABSENT[what]
    said = refusal("flowrra", call, alone)
    assert said == f"{trouble} (No module named 'flowrra_extras'): pip install '{package}'\n"


@pytest.mark.parametrize("what", ABSENT)
def test_vendored_it_takes_no_extra_of_the_installed_flowrra(vendored: Path, what: str) -> None:
    """An extra would work with the installed module's classes, of which the copy knows none."""
    call, trouble, package = ABSENT[what]
    assert refusal("flowrra", "print('is installed')", vendored, sys.executable) == "is installed\n"
    assert refusal("pkg._vendor.flowrra", call, vendored, sys.executable) == (
        f"{trouble} (pkg._vendor.flowrra is a copy of flowrra.py, and extras work with the installed flowrra only): "
        f"pip install '{package}' and import flowrra instead of the copy\n"
    )


@pytest.mark.parametrize(
    ("command", "trouble"),
    [
        *(
            (f"{command} --json", f"the command {command!r} cannot be run")
            for command in ("jobs", "schedules", "dashboard")
        ),
        ("worker user:app --log-format json", "JSON cannot be logged"),
    ],
)
def test_alone_a_command_says_what_brings_it(alone: Path, command: str, trouble: str) -> None:
    call = [*BARE, "-m", "flowrra", *command.split()]
    done = subprocess.run(call, cwd=alone, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"flowrra: {trouble} here (No module named 'flowrra_extras'): pip install 'flowrra'\n"
