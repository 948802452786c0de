"""`flowrra limit`, and `flowrra pause --key`: what they say, and what they do to the jobs of a store."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from flowrra import Flowrra, Job, Limit, WorkerInfo, main

URL = "sqlite:///jobs.db"
BROKER = ("--broker", URL)
Say = Callable[..., tuple[int, str]]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FLOWRRA_APP", raising=False)
    monkeypatch.delenv("FLOWRRA_BROKER", raising=False)
    monkeypatch.setenv("LOGNAME", "ada")


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """Runs a command; its status and what it wrote."""

    def run(*argv: str) -> tuple[int, str]:
        try:
            status = main(argv)
        except SystemExit as stop:
            status = int(stop.code or 0)
        written = capsys.readouterr()
        return status, written.out + written.err

    return run


def on_the_store(action: Callable[[Flowrra], Awaitable[Any]]) -> Any:
    async def act() -> Any:
        async with Flowrra.from_urls(URL).client() as app:
            return await action(app)

    return asyncio.run(act())


@pytest.fixture(autouse=True)
def store(folder: None) -> None:
    async def fill(app: Flowrra) -> None:
        await app.broker.set_limit(Limit(name="smtp", rate="100/m", burst=20, by="host:1"), now=app.now())
        await app.broker.set_limit(Limit(name="import", concurrency=1, by="host:1"), now=app.now())
        jobs = [Job(f"s{n}", "send", limit="smtp") for n in range(2)]
        jobs += [Job(f"i{n}", "import", limit="import", key="customer:42") for n in range(4)]
        await app.broker.push(jobs, now=app.now())

    on_the_store(fill)


def limit_named(name: str) -> Limit:
    async def find(app: Flowrra) -> Limit:
        return next(use.limit for use in await app.broker.limits() if use.limit.name == name)

    found: Limit = on_the_store(find)
    return found


def test_limits_are_listed_with_their_use(say: Say) -> None:
    status, out = say("limit", *BROKER)
    assert status == 0
    head, *rows = [line.split("  ") for line in out.splitlines()]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in (head, *rows)]
    assert cells[0] == ["LIMIT", "NUMBERS", "RUNNING", "READY", "WAITING", "KEYS", "LONGEST", "PAUSED KEYS", "BY"]
    assert cells[1] == ["import", "1 at a time", "0", "1", "3", "1", "3 of customer:42", "host:1"]
    assert cells[2] == ["smtp", "100/m with bursts of 20", "0", "2", "0", "0", "host:1"]
    assert say("limit", "smtp", *BROKER)[1].count("\n") == 2


def test_a_limit_is_changed_until_it_is_declared_again(say: Say) -> None:
    status, out = say("limit", "smtp", "--rate", "50/m", *BROKER)
    assert (status, out) == (
        0,
        "smtp: 50/m with bursts of 20, was 100/m with bursts of 20; until a worker starts whose app declares another\n",
    )
    assert (limit_named("smtp"), limit_named("smtp").by) == (Limit(name="smtp", rate="50/m", burst=20), "ada")
    assert say("limit", "smtp", "--rate", "none", "--concurrency", "3", *BROKER)[0] == 0
    assert limit_named("smtp") == Limit(name="smtp", concurrency=3)


def test_a_higher_number_lets_jobs_run_at_once(say: Say) -> None:
    assert say("limit", "import", "--concurrency", "3", *BROKER)[0] == 0

    async def ready(app: Flowrra) -> int:
        await app.broker.heartbeat(worker_of(app), lease=60, now=app.now())
        return len(await app.broker.claim("default", limit=9, worker="w1", now=app.now()))

    assert on_the_store(ready) == 5


def worker_of(app: Flowrra) -> WorkerInfo:
    return WorkerInfo("w1", queues={"default": 9}, started=app.now())


def test_a_key_is_paused_and_resumed(say: Say) -> None:
    paused = "paused: the key customer:42 of the limit import\n"
    assert say("pause", "--key", "customer:42", *BROKER) == (0, paused)
    assert "customer:42" in say("limit", "import", *BROKER)[1].splitlines()[1].split("host:1")[0][-30:]
    explained = say("explain", "i0", *BROKER)[1]
    assert explained == "It waits, as the key customer:42 of the limit import is paused.\n"
    resumed = "resumed: the key customer:42 of the limit import\n"
    assert say("resume", "--key", "customer:42", *BROKER) == (0, resumed)
    assert "of key customer:42 of the limit import (1 at a time)" in say("explain", "i3", *BROKER)[1]


def test_a_key_without_jobs_is_paused_for_a_named_limit(say: Say) -> None:
    status, out = say("pause", "--key", "new", *BROKER)
    assert (status, "no limit has jobs of the key: name one with --limit" in out) == (2, True)
    assert say("pause", "--key", "new", "--limit", "import", *BROKER)[0] == 0
    assert say("resume", "--key", "new", *BROKER)[0] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["limit", "smtps"], "there is no limit 'smtps' in this store; did you mean 'smtp'?"),
        (["limit", "smtp", "--rate", "100/x"], "a rate is a number of jobs in a time"),
        (["limit", "smtp", "--concurrency", "many"], "--concurrency is a number or 'none', not 'many'"),
        (["limit", "import", "--burst", "5"], "burst=5 needs rate="),
        (["limit", "--rate", "1/s"], "say which limit to change"),
        (["pause", "--key", "k", "--limit", "imports"], "there is no limit 'imports' in this store"),
        (["resume", "--key", "k"], "'k': the key is not paused"),
        (["pause", "default", "more", "--key", "k"], "give a queue or --key, not both"),
        (["pause"], "give a queue, or --key"),
        (["pause", "default", "--limit", "smtp"], "give a queue, or --key"),
    ],
)
def test_wrong_calls_say_what_to_do(say: Say, words: list[str], message: str) -> None:
    status, out = say(*words, *BROKER)
    assert status == 2
    assert message in out
