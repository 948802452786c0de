"""Command lines that cannot work, and modules that cannot be loaded: said at once, and never with status 0."""

import argparse
import datetime as dt
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from flowrra import (
    OPERATOR_COMMANDS,
    RECYCLED,
    Config,
    ConfigError,
    ExecutorConfig,
    Flowrra,
    TaskNotFoundError,
    find_task,
    main,
)
from flowrra_extras.commands import supervisor as supervisor_module
from flowrra_extras.commands.supervisor import Supervisor
from flowrra_extras.testing import ManualClock
from tests.cli.test_cli_programs import Program

SHOP = """
from flowrra import Flowrra
app = Flowrra.from_urls("sqlite:///jobs.db")
def make_app():
    return app
class Settings:
    app = "shop"
number = 17
copied = type("Flowrra", (), {"__module__": "vendor.flowrra"})()
@app.task
async def double(number: int) -> int:
    return number * 2
"""

Say = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "leaving.py").write_text("import sys\n\nsys.exit(0)\n")
    (tmp_path / "unfinished.py").write_text("def f(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delenv("FLOWRRA_APP", raising=False)
    monkeypatch.delenv("FLOWRRA_BROKER", raising=False)
    yield tmp_path
    for name in ("shop", "leaving", "unfinished"):
        sys.modules.pop(name, None)


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """Runs a command; its status, its output and its complaints."""

    def run(*argv: str) -> tuple[int, str, str]:
        try:
            status = main(argv)
        except SystemExit as stop:
            status = int(str(stop.code))
        written = capsys.readouterr()
        return status, written.out, written.err

    return run


# ---------------------------------------------------------------------------
# Modules and apps
# ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv",
    [
        ("worker", "leaving:app"),
        ("enqueue", "leaving:app", "double"),
        *((command, "leaving:app") for command in ("status", "jobs", "purge")),
        ("show", "an-id", "leaving:app"),
        ("schedules", "list", "leaving:app"),
        ("dashboard", "leaving:app", "--port", "0"),
    ],
    ids=" ".join,
)
def test_a_module_that_ends_the_program_is_named(say: Say, folder: Path, argv: tuple[str, ...]) -> None:
    status, out, err = say(*argv)
    assert (status, out) == (2, "")
    assert err == (
        "flowrra: importing leaving ended the program: sys.exit(0) "
        f"({folder}/leaving.py, line 3); put that under `if __name__ == '__main__':`\n"
    )


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        ("shop:number", "'number' is not an app in the module shop but of type int; it has app\n"),
        (
            "shop:make_app",
            "'make_app' is not an app in the module shop but a function: write app = make_app() there and name",
        ),
        ("shop:app.submit", "'app.submit' is not an app in the module shop but a function"),
        ("shop:copied", "'copied' is not an app in the module shop but of type vendor.flowrra.Flowrra; it has app"),
        ("shop:Settings.app", "'Settings.app' is not an app in the module shop but of type str"),
        ("shop:Flowrra", "'Flowrra' is not an app in the module shop but of type type"),
        ("shop:apq", "'apq' is not an app in the module shop; it has app\n"),
        ("shop:app.tasks.x", "'app.tasks.x' is not an app in the module shop; it has app\n"),
    ],
)
def test_what_is_no_app_is_told_for_what_it_is(say: Say, target: str, complaint: str) -> None:
    status, out, err = say("worker", target)
    assert (status, out) == (2, "")
    assert err.startswith(f"flowrra: {complaint}")


@pytest.mark.parametrize("url", ["sqlite:///jobs.db", "redis://:pw@host", "postgresql+x://me:pw@host/db", "memory://"])
@pytest.mark.parametrize(
    "argv",
    [("worker",), ("status",), ("jobs",), ("show", "an-id"), ("cancel", "an-id"), ("explain", "an-id"), ("limit",)],
)
def test_a_url_in_the_place_of_an_app_is_told_its_option(say: Say, argv: tuple[str, ...], url: str) -> None:
    status, out, err = say(*argv, url)
    assert (status, out) == (2, "")
    scheme = url.partition(":")[0]
    assert err == f"flowrra: {scheme}://... is a URL, and not module:app: if the command takes one, it has --broker\n"


def test_a_module_with_a_syntax_error_is_shown_where_it_is(say: Say, caplog: pytest.LogCaptureFixture) -> None:
    assert say("worker", "unfinished:app")[0] == 1
    assert "loading unfinished:app failed" in caplog.text
    assert "SyntaxError" in caplog.text
    with pytest.raises(SyntaxError):
        main(["status", "unfinished:app"])


# ---------------------------------------------------------------------------
# Tasks by their names
# ---------------------------------------------------------------------------


async def nothing() -> None:
    pass


def app_with(*names: str) -> Flowrra:
    app = Flowrra()
    for name in names:
        app.task(name=name)(nothing)
    return app


def test_an_exact_name_wins_over_the_last_parts_of_others() -> None:
    app = app_with("mail.send", "send", "sms.send")
    assert find_task(app, "send").name == "send"
    assert find_task(app, "mail.send").name == "mail.send"


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("send", "'send' may be mail.send or sms.send: give the full name"),
        ("mail.sned", "no task 'mail.sned' is registered here; did you mean 'mail.send'?"),
        ("sent", "no task 'sent' is registered here; did you mean 'mail.send'?"),
        ("end", "no task 'end' is registered here"),
        ("zzz", "no task 'zzz' is registered here; there are mail.send, sms.send"),
        ("", "no task '' is registered here"),
    ],
)
def test_a_name_that_is_no_task_is_answered_with_the_nearest(name: str, complaint: str) -> None:
    with pytest.raises(TaskNotFoundError) as caught:
        find_task(app_with("mail.send", "sms.send"), name)
    assert str(caught.value).startswith(complaint)


def test_an_app_without_tasks_says_so() -> None:
    with pytest.raises(TaskNotFoundError, match="there are none"):
        find_task(Flowrra(), "send")


# ---------------------------------------------------------------------------
# Options
# ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("queues", "complaint"),
    [
        ("", "--queues='' names no queue"),
        (" ", "--queues=' ' names no queue"),
        (",,", "--queues=',,' names no queue"),
        ("a:", "--queues='a:' cannot be read as queues with their capacities, such as default:50,cpu:2"),
        ("a,a", "--queues='a,a' cannot be read as queues"),
        ("a:1,a:2", "--queues='a:1,a:2' names the queue 'a' twice"),
        ("a:0", "the capacity of queue 'a' must be at least 1, not 0"),
        (":5", "a queue's name is text"),
        ("a:b:5", "a queue's name is text without ',' and ':'"),
    ],
)
def test_queues_that_cannot_be_served_are_refused(say: Say, queues: str, complaint: str) -> None:
    status, out, err = say("worker", "shop:app", "--queues", queues)
    assert (status, out) == (2, "")
    assert err.startswith(f"flowrra: {complaint}")


def test_no_queues_at_all_are_refused_in_code_and_environment_too() -> None:
    with pytest.raises(ConfigError, match=r"queues must be a dictionary .*, not \{\}: leave it out"):
        ExecutorConfig(queues={})
    with pytest.raises(ConfigError, match="FLOWRRA_EXECUTOR_QUEUES='' names no queue"):
        Config.from_env(environ={"FLOWRRA_EXECUTOR_QUEUES": ""})


def test_a_concurrency_that_would_have_no_effect_is_refused(say: Say) -> None:
    status, _, err = say("worker", "shop:app", "--concurrency", "5", "--queues", "default:2")
    assert status == 2
    assert err.startswith("flowrra: --concurrency has no effect if the queues have capacities")


@pytest.mark.parametrize(
    "argv",
    [
        ("worker", "shop:app", "--queues", "a:1", "--queues", "b:2"),
        ("worker", "shop:app", "--concurrency=1", "--concurrency", "2"),
        ("jobs", "shop:app", "--state", "failed", "--state", "success"),
        ("status", "--broker", "sqlite:///a.db", "--broker", "sqlite:///b.db"),
    ],
    ids=" ".join,
)
def test_an_option_that_is_given_twice_is_refused(say: Say, argv: tuple[str, ...]) -> None:
    status, out, err = say(*argv)
    assert (status, out) == (2, "")
    assert "is given twice" in err


@pytest.mark.parametrize("command", ["enqueue", "schedules add"])
def test_a_keyword_that_is_given_twice_is_refused(say: Say, command: str) -> None:
    where = ("shop:app", "double") if command == "enqueue" else ("double", "sqlite:///s.db", "--every", "5")
    status, out, err = say(*command.split(), *where, "--arg", "number=1", "--arg", "number=2")
    assert (status, out, err) == (2, "", "flowrra: --arg number= is given twice\n")


@pytest.mark.parametrize("command", ["show", "explain", "cancel", "requeue"])
def test_an_app_in_the_place_of_the_id(say: Say, command: str) -> None:
    status, out, err = say(command, "shop:app")
    assert (status, out) == (2, "")
    assert err.startswith("flowrra: only 'shop:app' is given: pass module:app or --broker URL, or set FLOWRRA_APP")


def test_an_argument_may_be_given_often(say: Say) -> None:
    status, _, err = say("enqueue", "shop:app", "double", "--arg", "1", "--arg", "2")
    assert status == 2
    assert "too many positional arguments" in err


def test_a_worker_says_which_variables_are_no_settings(
    say: Say, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FLOWRRA_EXECUTOR_IO_WORKRS", "50")
    assert say("worker", "shop:number")[0] == 2
    assert [record.getMessage() for record in caplog.records] == [
        "FLOWRRA_EXECUTOR_IO_WORKRS is not a setting and is ignored; did you mean FLOWRRA_EXECUTOR_IO_WORKERS?"
    ]


def test_a_worker_says_which_settings_its_app_does_not_read(
    say: Say, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FLOWRRA_EXECUTOR_IO_WORKERS", "50")
    monkeypatch.setenv("FLOWRRA_BACKEND_URL", "sqlite:///results.db")
    monkeypatch.setenv("FLOWRRA_BROKER", "sqlite:///jobs.db")  # which is the app's own
    assert say("worker", "shop:app", "--concurrency", "5", "--queues", "default:2")[0] == 2
    assert [record.getMessage() for record in caplog.records] == [
        f"{name} has no effect: Flowrra(Config.from_env()) would read it"
        for name in ("FLOWRRA_BACKEND_URL", "FLOWRRA_EXECUTOR_IO_WORKERS")
    ]


def test_a_job_that_is_due_at_the_end_of_time_can_be_looked_at(say: Say) -> None:
    app = Flowrra.from_urls("sqlite:///jobs.db")
    task = app.task(name="later")(nothing)
    job_id = app.sync.run(task.options(run_at=dt.datetime.max.replace(tzinfo=dt.UTC)).submit())
    app.sync.close()
    for argv in (("jobs", "--json"), ("jobs",), ("show", job_id), ("show", job_id, "--json"), ("explain", job_id)):
        status, out, err = say(*argv, "--broker", "sqlite:///jobs.db")
        assert (status, err) == (0, ""), argv
        assert job_id in out or argv[0] == "explain"
    assert '"due_at": "9999-12-31T23:59:59.999999+00:00"' in say("show", job_id, "--json", "shop:app")[1]
    assert "It is due in " in out


@pytest.mark.parametrize("command", ["status", *OPERATOR_COMMANDS])
def test_an_unknown_option_is_refused_by_every_command(say: Say, command: str) -> None:
    status, out, err = say(command, "--no-such-option")
    assert (status, out) == (2, "")
    assert "error:" in err


# ---------------------------------------------------------------------------
# A supervisor
# ---------------------------------------------------------------------------


@pytest.fixture
def supervised(folder: Path) -> Iterator[Callable[[str], Program]]:
    started: list[Program] = []

    def start(module: str) -> Program:
        started.append(Program(folder, "worker", f"{module}:app", "--processes", "2"))
        return started[-1]

    yield start
    for program in started:
        program.close()


class Ending:
    """A worker process that has ended as soon as it is looked at, with status 0."""

    pid, returncode = 7, 0

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def poll(self) -> int:
        return 0

    def wait(self) -> int:
        return 0


def test_workers_that_end_at_once_are_started_ever_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever their status: a module may end its process by os._exit(0), and nothing can keep it from that."""
    supervisor = Supervisor(argparse.Namespace(argv=[], processes=1, reload=False))
    clock = ManualClock()

    def sleep(seconds: float) -> None:
        clock.advance(seconds)
        supervisor._signals = int(len(caplog.records) > 2_000)

    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(supervisor_module, "time", SimpleNamespace(sleep=sleep, monotonic=clock.monotonic))
    monkeypatch.setattr("subprocess.Popen", Ending)
    assert supervisor.run() == 0
    said = [record.getMessage().rpartition(" in ")[2] for record in caplog.records]
    assert said[:7] == ["0.2 s", "0.4 s", "0.8 s", "1.6 s", "3.2 s", "5.0 s", "5.0 s"]
    assert clock.monotonic() - 1_000 > 5 * 1_990  # no process was started before its time


@pytest.mark.parametrize(("ends", "status"), [((0, RECYCLED), 0), ((RECYCLED, -signal.SIGTERM), 0), ((RECYCLED, 2), 2)])
def test_a_worker_that_reaches_its_limit_during_the_stop_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, ends: tuple[int, ...], status: int
) -> None:
    supervisor = Supervisor(argparse.Namespace(argv=[], processes=2, reload=False))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(supervisor, "_signals", 1)
    monkeypatch.setattr(supervisor, "_wait", lambda: list(ends))
    assert supervisor.run() == status


def test_a_supervisor_that_waits_before_it_tries_again_ends_at_once(supervised: Callable[[str], Program]) -> None:
    program = supervised("leaving")
    program.wait_for("ended with status 2", times=8)  # from here on it waits for seconds
    assert "importing leaving ended the program" in program.said
    began = time.monotonic()
    assert program.end(signal.SIGTERM) == 0
    assert time.monotonic() - began < 1.0
