"""What is built, what is in it, and that it works where it is installed.

The way of a release is taken: an sdist from this folder, a wheel from that sdist, and fresh
virtual environments. Nothing is fetched: the build backend is in the `test` extra, and there
are no dependencies. The one test that installs the extras fetches what they bring.

The snippets in `tests/typing` are checked against the installed wheel, as a user's code is.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from dataclasses import dataclass
from email import message_from_bytes
from pathlib import Path

import pytest

from tests.support import source_layout as layout
from tests.support.services import do_without

ROOT = Path(__file__).parents[2]
SNIPPETS = ROOT / "tests" / "typing"
VERSION = layout.source_version((ROOT / "flowrra.py").read_text())
OFFLINE = ("--no-index", "--no-deps", "--no-build-isolation")
# What `pip install --editable` asks of the backend; pip itself would want it in each environment.
BUILD_EDITABLE = "import sys; from hatchling.build import build_editable as b; b(sys.argv[1])"

# A fixture builds, installs or runs a type checker from cold, in the first test that asks for it.
pytestmark = pytest.mark.timeout(180)


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@dataclass(frozen=True)
class Environment:
    """A virtual environment with nothing in it but what a test installs."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.program("python")

    def program(self, name: str) -> Path:
        return self.folder / ("Scripts" if os.name == "nt" else "bin") / name

    def says(self, code: str) -> str:
        return run(self.python, "-I", "-c", code, cwd=self.folder).strip()


def environment_with(folder: Path, wheel: Path) -> Environment:
    venv.create(folder)
    environment = Environment(folder)
    pip = (sys.executable, "-m", "pip", "--python", environment.python)
    run(*pip, "install", *OFFLINE, wheel, cwd=folder)
    return environment


def extras() -> set[str]:
    """The files of `flowrra_extras`, whatever they are: pages and scripts are shipped too."""
    files = (path for path in (ROOT / "flowrra_extras").rglob("*") if path.is_file())
    return {file.relative_to(ROOT).as_posix() for file in files if file.suffix != ".pyc"}


# ---------------------------------------------------------------------------
# What is built
# ---------------------------------------------------------------------------


def build_sdist(folder: Path) -> Path:
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder, cwd=ROOT)
    return folder / f"flowrra-{VERSION}.tar.gz"


def build_wheel(sdist: Path, folder: Path) -> Path:
    run(sys.executable, "-m", "pip", "wheel", *OFFLINE, "-w", folder, sdist, cwd=folder)
    return folder / f"flowrra-{VERSION}-py3-none-any.whl"


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sdist(tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="session")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(sdist, tmp_path_factory.mktemp("wheel"))


def test_the_sdist_holds_what_a_build_needs(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names == extras() | {
        ".ci/wheel/__main__.py",
        ".ci/wheel/hook.py",
        ".ci/wheel/py.typed",
        ".gitignore",
        "CHANGELOG.md",
        "LICENSE",
        "PKG-INFO",
        "README.md",
        "flowrra.py",
        "pyproject.toml",
    }


def test_the_wheel_holds_the_library_only(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    records = f"flowrra-{VERSION}.dist-info"
    assert names == extras() | {
        "flowrra/__init__.py",
        "flowrra/__main__.py",
        "flowrra/py.typed",
        f"{records}/METADATA",
        f"{records}/RECORD",
        f"{records}/WHEEL",
        f"{records}/entry_points.txt",
        f"{records}/licenses/LICENSE",
    }
    assert names >= {"flowrra_extras/py.typed", "flowrra_extras/redis/lua/claim.lua"}


def test_the_wheel_holds_the_file_as_it_is(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read("flowrra/__init__.py") == (ROOT / "flowrra.py").read_bytes()


def test_the_page_of_an_index_is_the_readme_with_links_that_hold_there(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        metadata = message_from_bytes(archive.read(f"flowrra-{VERSION}.dist-info/METADATA"))
    assert metadata["Description-Content-Type"] == "text/markdown"
    payload = metadata.get_payload(decode=True)
    assert isinstance(payload, bytes)
    shown = payload.decode()
    repository = "https://github.com/flowrra/flowrra"
    assert f"]({repository}/blob/v{VERSION}/docs/start/quickstart.md)" in shown
    assert f"]({repository}/raw/v{VERSION}/docs/images/overview.png)" in shown
    assert f"]({repository}/tree/v{VERSION}/examples/)" in shown
    assert re.findall(r"\]\((?!https://)[^)]*\)", shown) == []
    as_it_was = re.sub(rf"{repository}/(blob|raw|tree)/v{VERSION}/", "", shown)
    assert as_it_was.strip() == (ROOT / "README.md").read_text().strip()


def test_an_index_would_take_both(sdist: Path, wheel: Path) -> None:
    assert run(sys.executable, "-m", "twine", "check", "--strict", sdist, wheel, cwd=ROOT).count("PASSED") == 2


def test_built_again_both_are_the_same_to_the_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    (tmp_path / "again").mkdir()
    first, second = build_sdist(tmp_path), build_sdist(tmp_path / "again")
    assert first.read_bytes() == second.read_bytes()
    with tarfile.open(first) as archive:
        assert {member.mtime for member in archive} == {1_700_000_000}
    assert build_wheel(first, tmp_path).read_bytes() == build_wheel(second, tmp_path / "again").read_bytes()


# ---------------------------------------------------------------------------
# What is installed
# ---------------------------------------------------------------------------


@pytest.fixture(scope="session")
def from_wheel(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return environment_with(tmp_path_factory.mktemp("from_wheel"), wheel)


@pytest.fixture(scope="session")
def editable(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    folder = tmp_path_factory.mktemp("editable_wheel")
    run(sys.executable, "-c", BUILD_EDITABLE, folder, cwd=ROOT)
    (wheel,) = folder.iterdir()
    return environment_with(tmp_path_factory.mktemp("editable"), wheel)


@pytest.fixture(params=["from_wheel", "editable"])
def environment(request: pytest.FixtureRequest) -> Environment:
    installed: Environment = request.getfixturevalue(request.param)
    return installed


def test_the_program_runs(environment: Environment, tmp_path: Path) -> None:
    assert f"{VERSION}" in run(environment.program("flowrra"), "--version", cwd=tmp_path)


def test_the_module_runs(environment: Environment, tmp_path: Path) -> None:
    assert f"{VERSION}" in run(environment.python, "-m", "flowrra", "--version", cwd=tmp_path)


def test_the_metadata_knows_the_version(environment: Environment) -> None:
    code = "import importlib.metadata as m, flowrra; print(m.version('flowrra'), flowrra.__version__)"
    assert environment.says(code) == f"{VERSION} {VERSION}"


def test_the_extras_are_importable(environment: Environment) -> None:
    assert environment.says("import flowrra_extras; print(flowrra_extras.__name__)")


def test_the_lua_scripts_are_where_they_are_read(environment: Environment) -> None:
    code = "import importlib.resources as r; print((r.files('flowrra_extras') / 'redis/lua/claim.lua').read_text())"
    assert environment.says(code) == (ROOT / "flowrra_extras/redis/lua/claim.lua").read_text().strip()


def test_an_editable_install_is_this_file_and_no_copy(editable: Environment) -> None:
    assert editable.says("import flowrra; print(flowrra.__file__)") == str(ROOT / "flowrra.py")
    packages = Path(editable.says("import sysconfig; print(sysconfig.get_path('purelib'))"))
    assert {path.name for path in packages.iterdir()} == {"_flowrra.pth", f"flowrra-{VERSION}.dist-info"}


# What each extra brings, by the modules that need it.
EXTRAS = {
    "redis": ["flowrra_extras.redis", "flowrra_extras.scheduler.redis"],
    "postgresql": ["flowrra_extras.postgres", "flowrra_extras.scheduler.postgresql"],
    "mysql": ["flowrra_extras.scheduler.mysql"],
    "scheduler": ["flowrra_extras.scheduler.sql"],
    "dashboard": ["flowrra_extras.dashboard", "flowrra_extras.metrics"],
    "django": ["flowrra_extras.django", "flowrra_extras.dashboard.django"],
    "otel": ["flowrra_extras.otel"],
    "uvloop": ["uvloop"],
}
FOR_DEVELOPERS = {"bench", "docs", "test"}
UNREACHABLE = re.compile("No matching distribution found|NewConnectionError|ConnectTimeoutError|ProxyError")


@pytest.mark.network
@pytest.mark.timeout(600)
def test_each_extra_brings_what_its_modules_import(wheel: Path, tmp_path: Path) -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(EXTRAS) == set(declared) - FOR_DEVELOPERS
    for extra, modules in EXTRAS.items():
        environment = Environment(tmp_path / extra)
        venv.create(environment.folder)
        pip = (sys.executable, "-m", "pip", "--python", environment.python)
        try:
            run(*pip, "install", "--no-input", "--no-compile", f"{wheel}[{extra}]", cwd=tmp_path)
        except AssertionError as error:
            if not UNREACHABLE.search(str(error)):
                raise
            do_without(f"what the extra {extra!r} needs cannot be fetched")
        assert environment.says(f"import {', '.join(modules)}; print('imported')") == "imported"


# ---------------------------------------------------------------------------
# What a type checker says to users' code
# ---------------------------------------------------------------------------

# (name of the file, line) of every error.
Errors = set[tuple[str, int]]


@pytest.fixture(scope="session")
def snippets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies in a folder of their own, so that only the installed wheel can be found."""
    folder = tmp_path_factory.mktemp("typing")
    shutil.copytree(SNIPPETS, folder, dirs_exist_ok=True)
    (folder / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict"}')
    return folder


def check(*command: str | Path, cwd: Path) -> str:
    """Runs a type checker, which has errors to report; more than that is a failure of its own."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=150)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def mypy_errors(from_wheel: Environment, snippets: Path) -> Errors:
    output = check(
        *(sys.executable, "-m", "mypy", "--strict", "--config-file="),
        *("--python-executable", from_wheel.python, "accepted.py", "rejected.py"),
        cwd=snippets,
    )
    found = re.findall(r"^(\S+?):(\d+): error: ", output, re.MULTILINE)
    return {(Path(file).name, int(line)) for file, line in found}


@pytest.fixture(scope="session")
def pyright_errors(from_wheel: Environment, snippets: Path) -> Errors:
    output = check(
        *(sys.executable, "-m", "pyright", "--outputjson"),
        *("--pythonpath", from_wheel.python, "--project", snippets),
        cwd=snippets,
    )
    return {
        (Path(found["file"]).name, found["range"]["start"]["line"] + 1)
        for found in json.loads(output)["generalDiagnostics"]
        if found["severity"] == "error"
    }


@pytest.fixture(params=["mypy_errors", "pyright_errors"])
def errors(request: pytest.FixtureRequest) -> Errors:
    found: Errors = request.getfixturevalue(request.param)
    return found


def lines_of(errors: Errors, name: str) -> set[int]:
    return {line for file, line in errors if file == name}


def test_what_is_right_is_accepted(errors: Errors) -> None:
    assert lines_of(errors, "accepted.py") == set()


def test_what_is_wrong_is_rejected_and_nothing_else(errors: Errors) -> None:
    lines = (SNIPPETS / "rejected.py").read_text().splitlines()
    marked = {number for number, line in enumerate(lines, 1) if "  # E: " in line}
    assert marked
    assert lines_of(errors, "rejected.py") == marked
