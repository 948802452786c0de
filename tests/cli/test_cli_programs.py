"""The command line as programs: workers with their logs and signals, pipes, --reload, and the demonstration."""

import datetime as dt
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from docs import terminal
from flowrra import Flowrra
from tests.support.apps import SECONDS
from tests.support.pages import copy_program

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals and pipes of POSIX")

APP = """
import asyncio, os
from docs import terminal
from flowrra import Flowrra
app = Flowrra.from_urls("sqlite:///jobs.db")
@app.task
async def double(number: int) -> int:
    return number * 2
@app.task(max_retries=0)
def fail() -> None:
    raise ValueError("as it was told to")
@app.task(cpu_bound=True)
def crunch(number: int) -> int:
    print("a task may print")
    return sum(range(number))
@app.task
async def process() -> int:
    return os.getpid()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(APP)
    return tmp_path


class Program:
    """`python -m flowrra …` under way. What it says on stderr is read by a thread."""

    def __init__(self, folder: Path, *argv: str) -> None:
        self._lines: list[str] = []
        self._news = threading.Condition()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "flowrra", *argv],
            cwd=folder,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._news:
                self._lines.append(line)
                self._news.notify_all()

    @property
    def said(self) -> str:
        with self._news:
            return "".join(self._lines)

    def wait_for(self, text: str, times: int = 1) -> None:
        with self._news:
            heard = self._news.wait_for(lambda: "".join(self._lines).count(text) >= times, SECONDS)
        assert heard, f"it never said {text!r}:\n{self.said}"

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        try:
            return self.process.wait(SECONDS)
        finally:
            self.close()

    def close(self) -> None:
        """Leave nothing of it behind, however the test went."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()


def environment() -> dict[str, str]:
    """The checkout comes first."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


@pytest.fixture
def worker(folder: Path) -> Iterator[Callable[..., Program]]:
    started: list[Program] = []

    def start(*options: str, ready: str = "worker ready") -> Program:
        program = Program(folder, "worker", "shop:app", *options)
        started.append(program)
        program.wait_for(ready)
        return program

    yield start
    for program in started:
        program.close()


def run(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flowrra", *argv]
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=50)


# ---------------------------------------------------------------------------
# Workers
# ---------------------------------------------------------------------------


def test_enqueue_waits_for_what_a_worker_returns(folder: Path, worker: Callable[..., Program]) -> None:
    worker()
    done = run(folder, "enqueue", "shop:app", "double", "--arg", "21", "--wait")
    task_id, result = done.stdout.splitlines()
    assert (result, done.stderr, done.returncode) == ("42", "", 0)
    failed = run(folder, "enqueue", "shop:app", "fail", "--wait")
    (failed_id,) = failed.stdout.splitlines()
    assert (failed.stderr, failed.returncode) == (
        f"flowrra: job {failed_id} is failed: ValueError: as it was told to\n",
        1,
    )
    assert task_id != failed_id


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_says_when_it_is_ready_and_ends_with_0(worker: Callable[..., Program], number: signal.Signals) -> None:
    program = worker()
    assert f"worker ready: pid {program.process.pid}, 4 task(s), queues default:10, cpu:" in program.said
    assert program.end(number) == 0
    assert "stopping: running jobs get up to 30 s" in program.said
    assert program.said.rstrip().endswith("worker stopped")
    assert "Traceback" not in program.said


def test_options_of_a_worker(worker: Callable[..., Program]) -> None:
    program = worker("--queues", "default:3,mail:2", "--drain", "7")
    assert "queues default:3, mail:2\n" in program.said
    assert program.end() == 0
    assert "running jobs get up to 7 s" in program.said


def test_a_worker_imports_the_modules_that_declare_its_tasks(worker: Callable[..., Program], folder: Path) -> None:
    (folder / "mail.py").write_text("from shop import app\n@app.task\nasync def send() -> None: ...\n")
    (folder / "more.py").write_text("from shop import app\n@app.task(queue='more')\nasync def more() -> None: ...\n")
    assert "6 task(s), queues default:10, cpu:" in worker("--import", "mail", "--import=more").said
    missing = run(folder, "worker", "shop:app", "--import", "shop.nothing")
    assert (missing.returncode, missing.stderr.count("\n")) == (2, 1)
    assert "there is no module 'shop.nothing'" in missing.stderr


def test_concurrency_is_that_of_the_queues_but_cpu(worker: Callable[..., Program]) -> None:
    assert f"queues default:5, cpu:{os.cpu_count()}\n" in worker("--concurrency", "5").said


def test_a_quiet_worker(worker: Callable[..., Program], folder: Path) -> None:
    program = Program(folder, "worker", "shop:app", "--log-level", "error")
    try:
        assert run(folder, "enqueue", "shop:app", "double", "--arg", "1", "--wait").stdout.endswith("\n2\n")
        assert program.end() == 0
        assert program.said == ""
    finally:
        program.close()


def test_a_json_log_has_an_object_a_line(folder: Path, worker: Callable[..., Program]) -> None:
    program = worker("--log-format", "json")
    for task in (["double", "--arg", "1"], ["fail"]):
        run(folder, "enqueue", "shop:app", *task, "--wait")
    assert program.end() == 0
    records = [json.loads(line) for line in program.said.splitlines()]
    assert all({"time", "level", "logger", "message"} <= record.keys() for record in records)
    assert {dt.datetime.fromisoformat(record["time"]).utcoffset() for record in records} == {dt.timedelta(0)}
    (good, bad) = [record for record in records if "job_id" in record]
    assert (good["task"], good["attempt"], good["level"]) == ("shop.double", 1, "INFO")
    assert (bad["task"], bad["attempt"], bad["level"]) == ("shop.fail", 1, "WARNING")
    assert 0 <= good["duration"] < SECONDS


def test_what_a_cpu_bound_task_prints_does_not_disturb_its_answer(folder: Path, worker: Callable[..., Program]) -> None:
    program = worker("--queues", "cpu:1")
    done = run(folder, "enqueue", "shop:app", "crunch", "--arg", "10", "--wait")
    assert done.stdout.splitlines()[1] == "45"
    assert program.end() == 0
    assert "a task may print" in program.said


def test_several_processes_share_the_work_and_end_together(folder: Path, worker: Callable[..., Program]) -> None:
    program = worker("--processes", "2")
    program.wait_for("worker ready", times=2)
    status = json.loads(run(folder, "status", "shop:app", "--json").stdout)
    pids = [found["pid"] for found in status["workers"]]
    assert len(set(pids)) == 2
    os.kill(pids[0], signal.SIGKILL)
    program.wait_for("worker ready", times=3)
    assert f"worker process {pids[0]} ended with status -9" in program.said
    assert program.end() == 0
    assert program.said.count("worker stopped") == 2


def test_reload_starts_anew_when_a_source_file_changes(folder: Path, worker: Callable[..., Program]) -> None:
    program = worker("--reload")
    assert run(folder, "enqueue", "shop:app", "double", "--arg", "4", "--wait").stdout.splitlines()[1] == "8"
    (folder / "shop.py").write_text(APP.replace("number * 2", "number * 1000"))
    program.wait_for("worker ready", times=2)
    assert run(folder, "enqueue", "shop:app", "double", "--arg", "4", "--wait").stdout.splitlines()[1] == "4000"
    assert program.end() == 0
    assert "a source file has changed: restarting" in program.said
    assert "ERROR" not in program.said


def test_reload_waits_for_a_broken_file_to_be_mended(folder: Path, worker: Callable[..., Program]) -> None:
    program = worker("--reload")
    (folder / "shop.py").write_text("import nothing_like_this\n")
    program.wait_for("loading shop:app failed")
    (folder / "shop.py").write_text(APP)
    program.wait_for("worker ready", times=2)
    assert program.end() == 0


# ---------------------------------------------------------------------------
# Pipes
# ---------------------------------------------------------------------------


def test_a_reader_that_has_seen_enough_is_no_error(folder: Path) -> None:
    submit = "import shop; shop.app.sync.submit_many(shop.double, [(n,) for n in range(1000)])"
    subprocess.run([sys.executable, "-c", submit], cwd=folder, env=environment(), check=True, timeout=50)
    for command in ("jobs shop:app --json --limit 1000", "jobs shop:app", "status shop:app"):
        script = f"{sys.executable} -m flowrra {command} | head -n 1; exit ${{PIPESTATUS[0]}}"
        env = {key: value for key, value in environment().items() if key != "PYTHONUNBUFFERED"}
        done = subprocess.run(
            ["/bin/bash", "-c", script], cwd=folder, env=env, capture_output=True, text=True, timeout=50
        )
        assert len(done.stdout.splitlines()) == 1
        assert (done.stderr, done.returncode) == ("", 0)


def test_a_program_without_an_output_is_no_error(folder: Path) -> None:
    run(folder, "enqueue", "shop:app", "double", "--arg", "1")
    script = f"exec {sys.executable} -m flowrra status shop:app >&-"
    command = ["/bin/bash", "-c", script]
    done = subprocess.run(command, cwd=folder, env=environment(), stderr=subprocess.PIPE, text=True, timeout=50)
    assert (done.stderr, done.returncode) == ("", 0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
@pytest.mark.parametrize("buffered", [True, False])
def test_output_that_cannot_be_written_is_an_error_without_a_traceback(folder: Path, buffered: bool) -> None:
    run(folder, "enqueue", "shop:app", "double", "--arg", "1")
    env = {key: value for key, value in environment().items() if key != "PYTHONUNBUFFERED"}
    for argv in (["status", "shop:app"], ["jobs", "shop:app"], ["cron", "@daily"]):
        command = [sys.executable, *([] if buffered else ["-u"]), "-m", "flowrra", *argv]
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                command, cwd=folder, env=env, stdout=full, stderr=subprocess.PIPE, text=True, timeout=50, check=False
            )
        error = "flowrra: the output cannot be written: [Errno 28] No space left on device\n"
        assert (done.stderr, done.returncode) == (error, 1)


def test_a_worker_without_tasks_says_so(folder: Path) -> None:
    (folder / "empty.py").write_text("from flowrra import Flowrra\napp = Flowrra.from_urls('sqlite:///jobs.db')\n")
    program = Program(folder, "worker", "empty:app")
    try:
        program.wait_for("WARNING empty:app has no tasks: import the modules that declare them there, or name them by")
        program.wait_for("worker ready")
    finally:
        assert program.end() == 0


def test_a_reader_that_was_never_there_is_no_error(folder: Path) -> None:
    """All of the output fits into Python's buffer, so that the pipe is first met at the end."""
    run(folder, "enqueue", "shop:app", "double", "--arg", "1")
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        env = {key: value for key, value in environment().items() if key != "PYTHONUNBUFFERED"}
        command = [sys.executable, "-m", "flowrra", "status", "shop:app"]
        done = subprocess.run(
            command, cwd=folder, env=env, stdout=closed, stderr=subprocess.PIPE, text=True, timeout=50
        )
    assert (done.stderr, done.returncode) == ("", 0)


# ---------------------------------------------------------------------------
# The demonstration
# ---------------------------------------------------------------------------


def demo(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The demonstration by the file alone."""
    copy_program(folder)
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [sys.executable, "-S", "flowrra.py", "demo", *options]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=140, check=False)


def without_figures(text: str) -> str:
    return re.sub(r"[\d.]+", "N", re.sub(r"sqlite:////\S+", "sqlite:///PATH", text))


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "__pycache__")


@pytest.mark.timeout(150)  # two workers with a process a core; on a busy machine they take their time to start
def test_the_demonstration_needs_the_file_alone(tmp_path: Path) -> None:
    done = demo(tmp_path)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    lines = done.stdout.splitlines()
    assert lines[0].startswith("submitted 321 jobs to sqlite:///")
    assert "kill -9" in lines[1]
    assert [line.split()[0] for line in lines[3:5]] == ["retry:", "rescue:"]
    assert lines[5] == "No job was lost. Next:"
    assert [line.split()[3] for line in lines[6:]] == ["demo", "status", "dashboard"]
    assert without_figures(done.stdout) == without_figures(terminal.DEMO.partition("\n")[2]), (
        "the picture in the README"
    )
    assert not {"\r", "\x1b"} & set(done.stdout), "plain when piped"
    assert left_in(tmp_path) == ["flowrra.py"]


@pytest.mark.timeout(150)
def test_the_demonstration_keeps_its_jobs_in_a_new_file(tmp_path: Path) -> None:
    done = demo(tmp_path, "--keep", "jobs.db")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert left_in(tmp_path) == ["flowrra.py", "jobs.db"]
    shown = next(line for line in done.stdout.splitlines() if " show " in line)
    command = [sys.executable, *shown.partition("#")[0].split()[1:]]
    assert "this one is meant to fail" in subprocess.check_output(command, cwd=tmp_path, text=True)
    app = Flowrra.from_urls(f"sqlite:///{tmp_path}/jobs.db")
    assert len(app.sync.jobs(limit=1000)) == 321
    app.sync.close()
    again = demo(tmp_path, "--keep", "jobs.db")
    assert (again.returncode, again.stdout) == (2, "")
    assert "jobs.db exists already: give the demo a new file" in again.stderr
