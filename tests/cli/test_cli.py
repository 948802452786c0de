"""The command line: what each command says and which status it ends with.

Most commands run inside this process, which is faster and the same code; test_cli_programs.py
runs them as programs.
"""

import asyncio
import json
import os
import re
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flowrra import OPERATOR_COMMANDS, Flowrra, Job, Outcome, Progress, SQLiteBroker, WorkerInfo, main
from tests.support.apps import make_app

APP = """
import os
from flowrra import Flowrra
app = Flowrra.from_urls("sqlite:///jobs.db")
memory = Flowrra.from_urls()
private = Flowrra.from_urls("sqlite://")
number = 17
@app.task
async def double(number: int, *, note: str = "") -> int:
    return number * 2
@app.task(max_retries=0, queue="slow")
def fail(name: str) -> None:
    raise ValueError(f"no {name}")
"""

Say = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's project, as the working directory of a shell."""
    (tmp_path / "shop.py").write_text(APP)
    (tmp_path / "broken.py").write_text("import flowrra\nraise RuntimeError('no settings')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delenv("FLOWRRA_APP", raising=False)
    monkeypatch.delenv("FLOWRRA_BROKER", raising=False)
    yield tmp_path
    for name in ("shop", "broken"):
        sys.modules.pop(name, None)


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """Runs a command; its status, its output and its complaints."""

    def run(*argv: str) -> tuple[int, str, str]:
        try:
            status = main(argv)
        except SystemExit as stop:
            status = int(stop.code or 0)
        written = capsys.readouterr()
        return status, written.out, written.err

    return run


def enqueue(say: Say, *argv: str) -> str:
    status, out, err = say("enqueue", "shop:app", *argv)
    assert (status, err) == (0, "")
    return out.strip()


def on_the_store(action: Callable[[Flowrra], Awaitable[Any]]) -> Any:
    """What another program does with the same store."""

    async def act() -> Any:
        async with make_app("sqlite:///jobs.db").client() as app:
            return await action(app)

    return asyncio.run(act())


def work(say: Say) -> None:
    """Run what is ready, as a worker would, until nothing is left to do."""

    async def run() -> None:
        shop = __import__("shop")
        async with shop.app:
            for job in await shop.app.jobs():
                if not job.status.is_finished:
                    await shop.app.wait_for_result(job.id, timeout=20.0)

    asyncio.run(run())


# ---------------------------------------------------------------------------
# Help
# ---------------------------------------------------------------------------

COMMANDS = {
    "worker": [
        "module:app",
        "--import",
        "--concurrency",
        "--queues",
        "--processes",
        "--drain",
        "--reload",
        "--log-format",
    ],
    "enqueue": ["module:app", "--arg", "NAME=JSON", "--wait"],
    "status": ["--broker", "--json"],
    "jobs": ["--state", "--task", "--queue", "--tag", "--limit", "--json", "--broker"],
    "show": ["id", "--json", "--broker"],
    "explain": ["id", "--broker"],
    "cancel": ["id", "--task", "--queue", "--tag", "--broker"],
    "requeue": ["id", "--task", "--queue", "--tag", "--broker"],
    "purge": ["--broker"],
    "pause": ["queue", "--key", "--limit", "--broker"],
    "resume": ["queue", "--key", "--limit", "--broker"],
    "limit": ["name", "--concurrency", "--rate", "--burst", "--turn", "--broker"],
    "cron": ["expression", "--tz", "--name", "--after", "-n"],
    "schedules": ["list", "add", "remove", "enable", "disable", "run"],
    "demo": ["worker"],
}


def test_help_lists_every_command_and_shows_examples(say: Say) -> None:
    status, out, _ = say("--help")
    assert status == 0
    assert {line.split()[0] for line in out.splitlines() if re.match("    [a-z]", line)} == set(COMMANDS) | set(
        OPERATOR_COMMANDS
    )
    assert "flowrra worker shop.jobs:app" in out
    assert "FLOWRRA_APP and FLOWRRA_BROKER" in out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_names_its_options(say: Say, command: str) -> None:
    status, out, _ = say(command, "--help")
    assert status == 0
    assert [word for word in COMMANDS[command] if word not in out] == []
    assert len(out) < 2_000


def test_without_a_command_it_says_what_is_missing(say: Say) -> None:
    status, out, err = say()
    assert (status, out) == (2, "")
    assert "the following arguments are required: COMMAND" in err


# ---------------------------------------------------------------------------
# Which store
# ---------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["app", "broker", "FLOWRRA_APP", "FLOWRRA_BROKER"])
def test_the_store_is_named_in_one_of_four_ways(say: Say, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    task_id = enqueue(say, "double", "--arg", "1")
    value = "shop:app" if way.endswith(("app", "APP")) else "sqlite:///jobs.db"
    if way.isupper():
        monkeypatch.setenv(way, value)
    where = {"app": ["shop:app"], "broker": ["--broker", "sqlite:///jobs.db"]}.get(way, [])
    assert say("explain", task_id, *where) == (
        0,
        "It is ready, but no live worker serves the queue default (0 alive).\n",
        "",
    )


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["status"], "no store is given: pass module:app or --broker URL, or set FLOWRRA_APP or FLOWRRA_BROKER"),
        (["worker"], "no app is given: pass module:app, or set FLOWRRA_APP"),
        (["status", "shop"], "an app has the form module:app, such as shop.jobs:app, not 'shop'"),
        (["worker", "nowhere:app"], "there is no module 'nowhere' in "),
        (["worker", "shop.py:app"], "an app has the form module:app, such as shop.jobs:app, not 'shop.py:app'"),
        (["worker", ".shop:app"], "an app has the form module:app, such as shop.jobs:app, not '.shop:app'"),
        (["worker", "shop:App"], "'App' is not an app in the module shop; it has app, memory, private"),
        (
            ["worker", "shop:number"],
            "'number' is not an app in the module shop but of type int; it has app, memory, pr",
        ),
        (["status", "--broker", "nosuch://x"], "no broker has the scheme 'nosuch'"),
        (["status", "--broker", "sqlite:///typo.db"], "typo.db yet: the first worker or submit creates it"),
        (["status", "--broker", "memory://"], "memory:// is private to one process: use a file"),
        (["worker", "shop:memory"], "memory:// is private to one process: use a file"),
        (["enqueue", "shop:private", "double"], "sqlite:// is private to one process"),
        (["worker", "shop:app", "--concurrency", "0"], "--concurrency must be at least 1, not 0"),
        (["worker", "shop:app", "--processes", "0"], "--processes must be at least 1, not 0"),
        (["worker", "shop:app", "--drain", "-1"], "--drain must be at least 0 s, not -1.0"),
        (["worker", "shop:app", "--queues", "default"], "--queues='default' cannot be read as queues with their"),
        (["worker", "shop:app", "--queues", "a:0"], "the capacity of queue 'a' must be at least 1, not 0"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_call_ends_with_2_and_one_line(say: Say, folder: Path, argv: list[str], complaint: str) -> None:
    before = sorted(path.name for path in folder.iterdir() if path.suffix == ".db")
    status, out, err = say(*argv)
    assert (status, out) == (2, "")
    assert err.startswith("flowrra: ")
    assert complaint in err
    assert err.count("\n") == 1
    assert sorted(path.name for path in folder.iterdir() if path.suffix == ".db") == before


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["jobs", "shop:app", "--state", "odd"], "invalid choice: 'odd' (choose from"),
        (["jobs", "shop:app", "--limit", "x"], "argument --limit: invalid int value: 'x'"),
        (["show"], "the following arguments are required: id"),
        (["start"], "invalid choice: 'start'"),
        (["jobs", "shop:app", "--json", "shop:app"], "unrecognized arguments: shop:app"),
        (["status", "shop:app", "--all"], "unrecognized arguments: --all; see flowrra status --help"),
    ],
)
def test_argparse_refuses_with_2_as_well(say: Say, argv: list[str], complaint: str) -> None:
    status, out, err = say(*argv)
    assert (status, out) == (2, "")
    assert complaint in err


def test_a_module_that_raises_is_shown_with_its_traceback(say: Say, caplog: pytest.LogCaptureFixture) -> None:
    status, out, _ = say("worker", "broken:app")
    assert (status, out) == (1, "")
    (record,) = [record for record in caplog.records if record.getMessage() == "loading broken:app failed"]
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "no settings"


# ---------------------------------------------------------------------------
# enqueue
# ---------------------------------------------------------------------------


def test_enqueue_takes_positional_and_named_arguments(say: Say) -> None:
    task_id = enqueue(say, "shop.double", "--arg", "4", "--arg", 'note="a=b"')
    job = json.loads(say("show", task_id, "shop:app", "--json")[1])
    assert (job["task"], job["arguments"]) == ("shop.double", [[4], {"note": "a=b"}])


def test_an_argument_with_a_sign_of_equality_may_be_a_string(say: Say) -> None:
    task_id = enqueue(say, "fail", "--arg", '"x=1"')
    assert json.loads(say("show", task_id, "shop:app", "--json")[1])["arguments"] == [["x=1"], {}]


@pytest.mark.parametrize(
    ("argv", "status", "complaint"),
    [
        (["double", "--arg", "Bob"], 2, "--arg 'Bob' is not JSON; to pass a text, write --arg '\"Bob\"'"),
        (
            ["double", "--arg", "number=Bob"],
            2,
            "--arg 'number=Bob' is not JSON; to pass a text, write --arg 'number=\"Bob\"'",
        ),
        (["double"], 2, "shop.double(number: int, *, note: str = '') -> int: missing a required argument: 'number'"),
        (["double", "--arg", '"four"'], 2, "an argument of shop.double: number is 'four', where int is annotated"),
        (["triple"], 1, "no task 'triple' is registered here; there are shop.double, shop.fail"),
    ],
    ids=str,
)
def test_enqueue_refuses(say: Say, argv: list[str], status: int, complaint: str) -> None:
    ended, out, err = say("enqueue", "shop:app", *argv)
    assert (ended, out) == (status, "")
    assert err.startswith(f"flowrra: {complaint}")


# ---------------------------------------------------------------------------
# Looking
# ---------------------------------------------------------------------------


def test_the_app_may_stand_behind_options(say: Say) -> None:
    task_id = enqueue(say, "double", "--arg", "1")
    assert json.loads(say("show", task_id, "--json", "shop:app")[1])["id"] == task_id


def test_a_store_that_does_not_answer_is_not_waited_for_in_silence(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    async def open_late(broker: SQLiteBroker, open_it: Any = SQLiteBroker.open) -> None:
        await asyncio.sleep(2.1)
        await open_it(broker)

    make_store()
    monkeypatch.setattr(SQLiteBroker, "open", open_late)
    status, _, err = say("status", "shop:app")
    assert (status, err) == (0, "flowrra: the store does not answer; waiting for it\n")


def make_store() -> None:
    on_the_store(lambda app: app.broker.counts())


def test_an_empty_store_says_so(say: Say) -> None:
    make_store()
    assert say("status", "shop:app") == (0, "no jobs\n\nno live workers\n", "")
    assert say("jobs", "shop:app") == (0, "no such jobs\n", "")
    assert say("jobs", "shop:app", "--json") == (0, "", "")


async def add_worker(app: Flowrra) -> None:
    worker = WorkerInfo("box-17-abc", "box", queues={"default": 20, "slow": 2}, tasks=["shop.double"])
    worker.pid = os.getpid()  # a live one, or whoever opens the store takes the worker for dead
    worker.started, worker.running = app.now() - 125, 3
    await app.broker.heartbeat(worker, lease=60, now=app.now())


def test_status_shows_queues_and_workers(say: Say) -> None:
    enqueue(say, "double", "--arg", "1")
    enqueue(say, "fail", "--arg", '"x"')
    on_the_store(lambda app: app.broker.set_queue("slow", paused=True))
    on_the_store(add_worker)
    status, out, err = say("status", "shop:app")
    assert (status, err) == (0, "")
    queues, workers = out.split("\n\n")
    assert [line.split() for line in queues.splitlines()] == [
        ["QUEUE", "SCHEDULED", "BLOCKED", "PENDING", "RUNNING", "RETRYING", "SUCCESS", "FAILED", "CANCELLED"],
        ["default", "0", "0", "1", "0", "0", "0", "0", "0"],
        ["slow", "0", "0", "1", "0", "0", "0", "0", "0", "paused"],
    ]
    assert [line.split(maxsplit=4) for line in workers.splitlines()] == [
        ["WORKER", "PID", "RUNNING", "QUEUES", "UP"],
        ["box-17-abc", str(os.getpid()), "3", "default:20,slow:2", "2 m 5 s"],
    ]


def test_status_as_json(say: Say) -> None:
    enqueue(say, "double", "--arg", "1")
    on_the_store(add_worker)
    shown = json.loads(say("status", "shop:app", "--json")[1])
    assert shown["queues"] == {"default": {"pending": 1}}
    assert shown["paused"] == []
    assert [(worker["id"], worker["queues"]) for worker in shown["workers"]] == [
        ("box-17-abc", {"default": 20, "slow": 2})
    ]


def test_jobs_are_filtered_by_state_task_and_queue(say: Say) -> None:
    good = enqueue(say, "double", "--arg", "1")
    bad = enqueue(say, "fail", "--arg", '"x"')
    work(say)
    assert ids(say("jobs", "shop:app")) == [bad, good]
    assert ids(say("jobs", "shop:app", "--state", "failed")) == [bad]
    for task in ("shop.double", "double"):
        assert ids(say("jobs", "shop:app", "--task", task)) == [good]
    hint = "(the full name of a task has dots, as in shop.double)\n"
    assert say("jobs", "--broker", "sqlite:///jobs.db", "--task", "double") == (0, f"no such jobs {hint}", "")
    assert say("cancel", "--broker", "sqlite:///jobs.db", "--task", "double") == (0, f"cancelled: 0 job(s) {hint}", "")
    assert say("jobs", "shop:app", "--task", "other.double") == (0, "no such jobs\n", "")
    assert ids(say("jobs", "shop:app", "--queue", "slow")) == [bad]
    assert ids(say("jobs", "shop:app", "--limit", "1")) == [bad]


def ids(said: tuple[int, str, str]) -> list[str]:
    status, out, err = said
    assert (status, err) == (0, "")
    head, *rows = out.splitlines()
    assert head.split() == ["ID", "TASK", "QUEUE", "STATE", "ATTEMPT", "AGE", "ERROR"]
    return [row.split()[0] for row in rows]


def test_jobs_as_json_lines(say: Say) -> None:
    good = enqueue(say, "double", "--arg", "4")
    bad = enqueue(say, "fail", "--arg", '"x"')
    work(say)
    failed, succeeded = (json.loads(line) for line in say("jobs", "shop:app", "--json")[1].splitlines())
    assert (failed["id"], failed["status"], failed["error"]) == (bad, "failed", "ValueError: no x")
    assert (succeeded["id"], succeeded["result"], succeeded["error"]) == (good, 8, None)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00", succeeded["finished_at"])


def test_show_has_the_attempts_and_the_traceback_of_the_user(say: Say) -> None:
    task_id = enqueue(say, "fail", "--arg", '"x"')
    work(say)
    status, out, err = say("show", task_id, "shop:app")
    assert (status, err) == (0, "")
    facts, attempts, trace = out.split("\n\n")
    shown = dict(line.split(maxsplit=1) for line in facts.splitlines())
    assert (shown["id"], shown["task"], shown["arguments"]) == (task_id, "shop.fail", '"x"')
    assert (shown["status"], shown["queue"], shown["error"]) == ("failed", "slow", "ValueError: no x")
    assert re.search(r"^1 +failure +\S+ +[\d.]+ s +ValueError: no x$", attempts, re.MULTILINE)
    assert trace.startswith("Traceback (most recent call last):\n")
    assert "flowrra.py" not in trace
    assert trace.endswith("ValueError: no x\n")


def test_show_has_the_notes_that_actions_left(say: Say) -> None:
    task_id = enqueue(say, "fail", "--arg", '"x"')
    work(say)
    on_the_store(lambda app: app.requeue(task_id, by="Ada"))
    out = say("show", task_id, "shop:app")[1]
    assert re.search(r"^1 +failure .*\n +requeued +by Ada$", out, re.MULTILINE)
    note = json.loads(say("show", task_id, "shop:app", "--json")[1])["attempts"][-1]
    assert (note["outcome"], note["worker"], note["error"]) == ("note", "Ada", "requeued")


def test_show_of_a_success_and_of_a_child(say: Say) -> None:
    parent = enqueue(say, "double", "--arg", "4", "--arg", 'note="n"')
    child = on_the_store(lambda app: app.broker.push([Job("child", "shop.double", parents=(parent,))], now=app.now()))
    out = say("show", "child", "shop:app")[1]
    assert child == ["child"]
    assert f"parents    {parent}\n" in out
    assert "status     blocked\n" in out
    on_the_store(lambda app: app.cancel("child"))
    work(say)
    out = say("show", parent, "shop:app")[1]
    assert 'arguments  4, note="n"\n' in out
    assert "result     8\n" in out


def test_show_of_a_running_job_has_its_worker_and_progress(say: Say) -> None:
    task_id = enqueue(say, "double", "--arg", "1")
    on_the_store(start_it)
    out = say("show", task_id, "shop:app")[1]
    assert "status     running\n" in out
    assert "worker     box-17-abc\n" in out
    assert "progress   3 of 10 reading\n" in out
    assert re.search(r"^1 +running +box-17-abc$", out, re.MULTILINE)


async def start_it(app: Flowrra) -> Job:
    await add_worker(app)
    (job,) = await app.broker.claim("default", limit=1, worker="box-17-abc", now=app.now())
    await app.broker.settle([Outcome.report(job, job.attempt, Progress(3, 10, "reading"))], now=app.now())
    return job


@pytest.mark.parametrize("command", ["show", "explain", "cancel", "requeue"])
def test_an_unknown_id_ends_with_1(say: Say, command: str) -> None:
    make_store()
    status, out, err = say(command, "nobody", "shop:app")
    assert (status, out) == (1, "")
    assert err == "flowrra: no job 'nobody' is known here: never submitted, or purged after its retention\n"


# ---------------------------------------------------------------------------
# Changing
# ---------------------------------------------------------------------------


def test_cancel_and_requeue(say: Say) -> None:
    task_id = enqueue(say, "double", "--arg", "1")
    assert say("cancel", task_id, "shop:app") == (0, f"cancelled: {task_id}\n", "")
    assert say("cancel", task_id, "shop:app") == (
        1,
        "",
        f"flowrra: job {task_id} is cancelled, so it cannot be cancelled\n",
    )
    assert say("requeue", task_id, "shop:app") == (0, f"requeued: {task_id}\n", "")
    assert say("requeue", task_id, "shop:app") == (
        1,
        "",
        f"flowrra: job {task_id} is pending, so it cannot be requeued\n",
    )


def test_cancel_and_requeue_by_task_queue_and_tag(say: Say) -> None:
    on_the_store(lambda app: app.submit("shop.double", 1, tags=["old"]))
    on_the_store(lambda app: app.submit("shop.double", 2, tags=["old"]))
    on_the_store(lambda app: app.submit("shop.double", 3, tags=["new"]))
    assert say("cancel", "--tag", "old", "shop:app") == (0, "cancelled: 2 job(s)\n", "")
    assert say("cancel", "shop:app", "--task", "shop.double", "--queue", "default") == (0, "cancelled: 1 job(s)\n", "")
    assert say("requeue", "--broker", "sqlite:///jobs.db", "--tag", "old") == (0, "requeued: 2 job(s)\n", "")
    status, out, _ = say("jobs", "shop:app", "--tag", "new")
    assert (status, out.count(" cancelled "), out.count("\n")) == (0, 1, 2)
    status, _, err = say("cancel", "some-id", "shop:app", "--tag", "old")
    assert (status, err) == (2, "flowrra: give the id 'some-id' or --task, --queue and --tag, not both\n")
    status, _, err = say("requeue", "--broker", "sqlite:///jobs.db")
    assert (status, err) == (2, "flowrra: no jobs are selected: give an id, or --task, --queue or --tag\n")


def test_cancel_of_a_running_job_says_that_its_worker_has_been_told(say: Say) -> None:
    task_id = enqueue(say, "double", "--arg", "1")
    on_the_store(start_it)
    assert say("cancel", task_id, "shop:app") == (0, f"cancelled: {task_id} (its worker was notified)\n", "")


def test_purge_deletes_what_is_past_its_retention(say: Say) -> None:
    enqueue(say, "double", "--arg", "1")
    on_the_store(finish_it)
    enqueue(say, "double", "--arg", "2")
    assert say("purge", "shop:app") == (0, "purged: 1 job(s)\n", "")
    assert say("purge", "shop:app") == (0, "purged: 0 job(s)\n", "")
    assert len(ids(say("jobs", "shop:app"))) == 1


async def finish_it(app: Flowrra) -> None:
    job = await start_it(app)
    outcome = Outcome.succeed(job, 2, keep=0.0)
    assert await app.broker.settle([outcome], now=app.now() - 60) == [True]


def test_pause_and_resume(say: Say) -> None:
    task_id = enqueue(say, "double", "--arg", "1")
    assert say("pause", "default", "shop:app") == (0, "paused: default, served by 0 live workers\n", "")
    assert say("explain", task_id, "shop:app")[1] == "It is ready, but its queue default is paused.\n"
    assert say("resume", "default", "shop:app") == (0, "resumed: default, served by 0 live workers\n", "")
    assert "paused" not in say("explain", task_id, "shop:app")[1]
    assert say("pause", "a,b", "shop:app")[0] == 2
