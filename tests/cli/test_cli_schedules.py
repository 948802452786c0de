"""`flowrra schedules`: what each action says and does, on an app and on the URL of a store."""

import asyncio
import datetime as dt
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flowrra import Flowrra, Job, Schedule, decode, main

APP = """
from datetime import datetime
from flowrra import Flowrra
app = Flowrra.from_urls("sqlite:///jobs.db")
bare = Flowrra.from_urls("sqlite:///jobs.db")
forgetful = Flowrra.from_urls("sqlite:///jobs.db")
@app.cron("0 9 * * mon-fri", tz="Europe/Riga")
@app.every(90, enabled=False)
@app.task
async def report() -> None: ...
@app.task
async def double(number: int) -> int:
    return number * 2
@app.task
async def remind(at: datetime) -> None: ...
app.create_scheduler("sqlite:///schedules.db")
forgetful.create_scheduler("memory://")
"""
STORE = "sqlite:///schedules.db"

Say = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's project, as the working directory of a shell."""
    (tmp_path / "crontab.py").write_text(APP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delenv("FLOWRRA_APP", raising=False)
    yield tmp_path
    sys.modules.pop("crontab", None)


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """Runs an action; its status, its output and its complaints."""

    def run(*argv: str) -> tuple[int, str, str]:
        try:
            status = main(["schedules", *argv])
        except SystemExit as stop:
            status = int(stop.code or 0)
        written = capsys.readouterr()
        return status, written.out, written.err

    return run


def done(say: Say, *argv: str) -> str:
    status, out, err = say(*argv)
    assert (status, err) == (0, "")
    return out.strip()


def stored() -> list[Schedule]:
    async def look() -> list[Schedule]:
        app = Flowrra()
        scheduler = app.create_scheduler(STORE)
        async with app.client():
            return await scheduler.list_scheduled_tasks()

    return asyncio.run(look())


def jobs() -> list[Job]:
    async def look() -> list[Job]:
        async with Flowrra.from_urls("sqlite:///jobs.db").client() as app:
            return await app.jobs()

    return asyncio.run(look())


def test_list_shows_what_is_in_code_and_what_is_stored(say: Say) -> None:
    made = done(say, "add", "double", "crontab:app", "--cron", "30 2 * * *", "--tz", "America/New_York", "--arg", "4")
    lines = done(say, "list", "crontab:app").splitlines()
    assert lines[0].split("  ")[0] == "ID"
    assert len(lines) == 4
    assert "in code disabled  Every 1 m 30 s" in lines[1]
    assert "crontab.report" in lines[2]
    assert " 09:00:00+0" in lines[2]
    assert "in code           At 09:00 on Monday through Friday, Europe/Riga" in lines[2]
    assert lines[3].startswith(f"{made}  crontab.double")
    assert " 02:30:00-0" in lines[3]
    assert done(say, "list", STORE).splitlines()[1].split()[:2] == lines[3].split()[:2]


def test_list_as_json(say: Say) -> None:
    done(say, "add", "double", "crontab:app", "--every", "30", "--arg", "4", "--id", "mine")
    shown = [json.loads(line) for line in done(say, "list", "--json", "crontab:app").splitlines()]
    assert [(s["task"], s["in_code"]) for s in shown] == [
        ("crontab.report", True), ("crontab.report", True), ("crontab.double", False),
    ]  # fmt: skip
    mine = shown[-1]
    assert (mine["id"], mine["rule"], mine["arguments"], mine["explanation"]) == ("mine", "30", [[4], {}], "Every 30 s")
    assert mine["next_fire"].endswith("+00:00")
    assert mine["last_fire"] is None


def test_list_tells_of_herds(say: Say) -> None:
    for number in range(6):
        done(say, "add", "double", "crontab:app", "--cron", "0 0 * * *", "--arg", str(number))
    done(say, "add", "double", "crontab:app", "--cron", "0 1 * * *", "--arg", "1")
    last = done(say, "list", "crontab:app").splitlines()[-1]
    assert last.startswith("6 schedules fire at 2")
    assert " 00:00 UTC: write H for the minute" in last


def test_a_rule_that_cannot_be_read_is_listed_too(say: Say) -> None:
    made = done(say, "add", "double", STORE, "--every", "30")

    async def spoil() -> None:
        app = Flowrra()
        scheduler = app.create_scheduler(STORE)
        async with app.client():
            await scheduler.list_scheduled_tasks()
            await scheduler.store.change(made, {"rule": "soon", "tz": "Mars/Olympus"})

    asyncio.run(spoil())
    assert "The rule cannot be read: could not convert string to float: 'soon'" in done(say, "list", STORE)


def test_what_is_added_is_there_once(say: Say) -> None:
    how = ("add", "double", STORE, "--every", "30", "--arg", "number=4", "--priority", "3", "--description", "fours")
    assert done(say, *how) == done(say, *how)
    (schedule,) = stored()
    assert (schedule.task, schedule.options, schedule.description) == ("double", {"priority": 3}, "fours")
    once = done(say, "add", "double", STORE, "--at", "2031-05-01 12:00", "--tz", "Asia/Tokyo", "--misfire", "skip")
    schedule = next(schedule for schedule in stored() if schedule.id == once)
    assert (schedule.rule, schedule.misfire) == ("2031-05-01T03:00:00+00:00", "skip")


def test_arguments_get_the_types_of_the_annotations(say: Say) -> None:
    done(say, "add", "remind", "crontab:app", "--every", "60", "--arg", '"2026-12-24T18:00Z"')
    (schedule,) = stored()
    assert decode(schedule.payload) == [[dt.datetime(2026, 12, 24, 18, tzinfo=dt.UTC)], {}]
    status, _, complaint = say("add", "double", "crontab:app", "--every", "60", "--arg", '"two"')
    assert status == 2
    assert "number is 'two', where int is annotated" in complaint


def test_a_schedule_is_disabled_enabled_run_and_removed(say: Say) -> None:
    made = done(say, "add", "double", "crontab:app", "--every", "3600", "--arg", "4")
    assert done(say, "disable", made, STORE) == f"disabled: {made}"
    assert [schedule.enabled for schedule in stored()] == [False]
    assert "  disabled  Every 1 h 0 m" in done(say, "list", STORE)
    assert done(say, "enable", made, "crontab:app") == f"enabled: {made}"
    assert [schedule.enabled for schedule in stored()] == [True]
    job_id = done(say, "run", made, "crontab:app")
    assert [(job.id, job.task) for job in jobs()] == [(job_id, "crontab.double")]
    assert done(say, "remove", made, STORE) == f"removed: {made}"
    assert stored() == []
    assert done(say, "list", STORE) == "no schedules"


def test_a_schedule_in_code_is_run_too_but_not_changed(say: Say) -> None:
    coded = done(say, "list", "crontab:app").splitlines()[1].split()[0]
    job_id = done(say, "run", coded, "crontab:app")
    assert [(job.id, job.task) for job in jobs()] == [(job_id, "crontab.report")]
    for action in ("enable", "disable", "remove"):
        status, _, err = say(action, coded, "crontab:app")
        assert status == 2
        assert "is declared in code: change it there" in err


def test_to_look_makes_nothing(say: Say, folder: Path) -> None:
    status, _, err = say("list", STORE)
    assert status == 2
    assert "there is no schedules.db yet" in err
    done(say, "list", "crontab:bare")
    assert not list(folder.glob("*.db"))


def test_the_environment_names_the_app(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWRRA_APP", "crontab:app")
    assert "crontab.report" in done(say, "list")


@pytest.mark.parametrize(
    ("argv", "status", "complaint"),
    [
        (["list"], 2, "no store is given"),
        (["list", "mongodb://x"], 2, "mongodb"),
        (["list", "crontab:none"], 2, "is not an app"),
        (["remove", "nobody", "crontab:app"], 1, "no schedule 'nobody' is stored here"),
        (["run", "nobody", "crontab:app"], 1, "no schedule 'nobody' is stored here"),
        (["add", "double", "crontab:app", "--every", "0"], 2, "an interval must be at least"),
        (["add", "double", "crontab:app", "--every", "30"], 2, "missing a required argument"),
        (["add", "nothing", "crontab:app", "--every", "30"], 1, "no task 'nothing' is registered here"),
        (["add", "double", "crontab:app", "--cron", "0 25 * * *", "--arg", "1"], 2, "hour"),
        (["add", "double", "crontab:app", "--cron", "0 5 * * *", "--tz", "Mars/Olympus", "--arg", "1"], 2, "Mars"),
        (["add", "double", "crontab:app", "--at", "soon", "--arg", "1"], 2, "the form 2026-03-07T12:00, not 'soon'"),
        (["add", "double", "crontab:app", "--at", "0001-01-01", "--tz", "Asia/Tokyo", "--arg", "1"], 2, "out of range"),
        (["add", "double", "crontab:app"], 2, "--cron --every --at is required"),
        (["add", "double", "crontab:bare", "--every", "30"], 2, "no store of schedules for other processes"),
        (["add", "double", "crontab:forgetful", "--every", "30"], 2, "no store of schedules for other processes"),
        (["add", "double", "memory://", "--every", "30"], 2, "no store of schedules for other processes"),
    ],
)
def test_a_wrong_call_is_told_so(say: Say, argv: list[str], status: int, complaint: str) -> None:
    ended, _, err = say(*argv)
    assert (ended, complaint in err) == (status, True), err


def test_the_app_may_stand_behind_the_options(say: Say) -> None:
    made = done(say, "add", "double", "--every", "30", "--arg", "1", "crontab:app")
    assert [schedule.id for schedule in stored()] == [made]


def test_a_file_may_be_given_in_percent_codes(say: Say, folder: Path) -> None:
    made = done(say, "add", "double", "sqlite:///my%20schedules.db", "--every", "30")
    assert (folder / "my schedules.db").exists()
    assert done(say, "remove", made, "sqlite:///my%20schedules.db") == f"removed: {made}"


def test_a_store_alone_cannot_run_a_job(say: Say) -> None:
    made = done(say, "add", "double", STORE, "--every", "30")
    status, _, err = say("run", made, STORE)
    assert status == 2
    assert "module:app" in err


def test_what_a_definition_replaces_and_what_nobody_knows_is_said() -> None:
    """On the command's own stderr: a program of its own, since pytest has set up logging in this one."""

    def add(*argv: str) -> tuple[str, str]:
        command = [sys.executable, "-m", "flowrra", "schedules", "add", *argv]
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=50, check=True)
        return run.stdout, run.stderr

    stored = ["--every", "60", "--id", "sums", "--arg", "1"]
    assert add("crontab.double", "crontab:app", *stored) == ("sums\n", "")
    assert add("crontab.double", "crontab:app", *stored, "--priority", "3") == (
        "sums\n",
        "flowrra: schedule sums (crontab.double) has a new definition: options {} -> {'priority': 3}\n",
    )
    assert (
        "flowrra: no task 'crontab.doubel' is registered here or known" in add("crontab.doubel", STORE, *stored[:2])[1]
    )
