"""Moves between real stores, with workers at work on both sides, `kill -9` at the move, and the command line."""

import asyncio
import itertools
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from flowrra import FINISHED, SUCCESS, UNFINISHED, Flowrra, Job, JobFilter, TaskStatus, result_of
from tests.support.processes import Process, Site, count, site_on, stand_in, until

TASKS = """
@app.task
async def add(one, other):
    note("runs", current_job().id)
    return one + other


@app.task
async def wait_for_file():
    note("runs", current_job().id)
    while not (HERE / "go").exists():
        await asyncio.sleep(0.02)
"""

STORES = ("sqlite", "redis", "postgresql")
PAIRS = list(itertools.permutations(STORES, 2))


@pytest.fixture(params=PAIRS, ids="-".join)
def two_sites(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Site, Site]]:
    kinds: tuple[str, str] = request.param
    folders = tmp_path / "source", tmp_path / "target"
    for folder in folders:
        folder.mkdir()
    with site_on(kinds[0], folders[0], TASKS) as source, site_on(kinds[1], folders[1], TASKS) as target:
        yield source, target


@pytest.fixture
def files(tmp_path: Path) -> Iterator[tuple[Site, Site]]:
    folders = tmp_path / "source", tmp_path / "target"
    for folder in folders:
        folder.mkdir()
    with Site(folders[0], TASKS) as source, Site(folders[1], TASKS) as target:
        yield source, target


def move(source: Site, target: Site, *options: str) -> list[str]:
    return ["-m", "flowrra", "migrate", source.url, target.url, *options]


async def submit_all(app: Flowrra, plain: int) -> set[str]:
    """Plain jobs, and among them jobs with a key, with a time, and families."""
    nap, add = stand_in(app, "app.nap"), stand_in(app, "app.add")
    ids: set[str] = set()
    for part in range(20):
        ids.update(await app.submit_many(nap, [(0.02,)] * (plain // 20)))
        ids.add(await nap.options(unique=f"key {part}", priority=-part).submit(0.02))
        ids.add(await nap.options(delay=3.0).submit(0.02))
        first = await add.submit(1, 2)
        second = await add.submit(result_of(first), 3)
        ids.update((first, second, await add.submit(result_of(first), result_of(second))))
    return ids


async def finished(app: Flowrra) -> dict[str, Job]:
    jobs = await app.broker.find(JobFilter(status=FINISHED), limit=100_000)
    return {job.id: job for job in jobs}


@pytest.mark.timeout(120)  # some six starts of a move, and all the jobs
async def test_no_job_is_lost_or_doubled_by_moves_that_are_killed(two_sites: tuple[Site, Site]) -> None:
    source, target = two_sites
    async with source.client() as old, target.client() as new:
        ids = await submit_all(old, 4000)
        await source.worker("--concurrency", "4")
        await target.worker("--concurrency", "100")
        killed = moved = 0
        while killed < 3:
            moving = source.start(*move(source, target))

            async def more(moving: Process = moving, moved: int = moved) -> bool:
                return moving.is_over or sum((await new.broker.counts()).values()) > moved

            await until(more, f"more than {moved} jobs moved")
            await moving.kill()
            killed += moving.popen.returncode == -signal.SIGKILL
            moved = sum((await new.broker.counts()).values())
            if await count(old, *UNFINISHED) < 1000:  # not enough to be killed amidst
                ids |= await submit_all(old, 3000)
        last = source.start(*move(source, target, "--results"))
        assert await last.ends(within=60.0) == 0, last.log

        async def nothing_is_left() -> bool:
            return await count(new, *UNFINISHED) == 0

        assert await count(old, *UNFINISHED) == 0
        await until(nothing_is_left, "the end of all jobs", within=60.0)
        ended = await finished(old), await finished(new)
    assert {job.status for jobs in ended for job in jobs.values()} == {SUCCESS}
    runs = source.runs() + target.runs()
    assert set(runs) == ids
    assert set(runs.values()) == {1}
    assert len(target.runs()) > 1000
    assert set(ended[1]) == ids
    assert set(ended[0]) == set(source.runs())
    sums = [job.result for job in ended[1].values() if job.task == "app.add" and len(set(job.parents)) == 2]
    assert sums
    assert set(sums) == {9}


# The command line --------------------------------------------------------------------------------


async def said(source: Site, *arguments: str, status: int = 0) -> str:
    process = source.start(*arguments)
    assert process.popen.stdout is not None
    text = (await asyncio.to_thread(process.popen.stdout.read)).decode()
    assert await process.ends() == status, process.log
    return text + process.log


async def test_the_command_says_what_it_did(files: tuple[Site, Site]) -> None:
    source, target = files
    async with source.client() as app:
        nap = stand_in(app, "app.nap")
        await app.submit_many(nap, [(0.01,)] * 3)
        await nap.options(delay=60.0).submit(0.01)
    dry = await said(source, *move(source, target, "--dry-run"))
    assert dry.split("\n") == ["         1 scheduled are moved", "         3 pending   are moved", ""]
    assert not target.store.exists()
    assert await said(source, *move(source, target)) == "moved 4 jobs: 1 scheduled, 3 pending\n"
    assert await said(source, *move(source, target)) == "moved 0 jobs\n"
    assert await said(source, *move(source, target, "--dry-run")) == "the source has no jobs\n"


async def test_what_runs_is_left_with_its_count(files: tuple[Site, Site]) -> None:
    source, target = files
    async with source.client() as app:
        wait_for_file, add = stand_in(app, "app.wait_for_file"), stand_in(app, "app.add")
        running = await wait_for_file.submit()
        await add.options(queue="nobody").submit(result_of(running), 1)
        await source.worker()

        async def runs() -> bool:
            return await count(app, TaskStatus.RUNNING) == 1

        await until(runs, "a running job")
        assert await said(source, *move(source, target, "--wait", "0"), status=1) == (
            "moved 0 jobs\n"
            "left 1 running job at the source: when they have ended, start the move again\n"
            "left 1 job at the source, because a parent or child stays there\n"
        )
        waiting = source.start(*move(source, target, "--results"))
        source.write("go", "")
        assert await waiting.ends() == 0
    async with target.client() as app:
        assert [str(job.status) for job in await app.jobs()] == ["pending", "success"]


async def test_ctrl_c_ends_the_step_and_says_how_far_it_came(files: tuple[Site, Site]) -> None:
    source, target = files
    async with source.client() as app:
        await app.submit_many(stand_in(app, "app.nap"), [(0.01,)] * 20_000)  # too many for a move to end at once
        moving = source.start(*move(source, target))
        await until(lambda: target.store.exists(), "the beginning of the move")
        async with target.client() as new:

            async def some() -> bool:
                return sum((await new.broker.counts()).values()) > 0

            await until(some, "a moved job")
            moving.send(signal.SIGINT)
            assert await moving.ends() == 130
            assert "start it again to continue" in moving.log
            held = JobFilter(status=frozenset((TaskStatus.BLOCKED,)))
            assert await app.broker.counts(held) == await new.broker.counts(held) == {}
            jobs = sum((await new.broker.counts()).values())
            assert 0 < jobs < 20_000
            assert sum((await app.broker.counts()).values()) == 20_000 - jobs


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["memory://", "sqlite:///x.db"], "is private to one process"),
        (["sqlite:///jobs.db", "sqlite://"], "is private to one process"),
        (["sqlite:///none.db", "sqlite:///x.db"], "does not exist"),
        (["sqlite:///jobs.db", "sqlite:///./jobs.db"], "one store"),
        (["sqlite:///jobs.db", "x.db"], "is not a URL"),
        (
            ["sqlite:///jobs.db", "sqlite:///x.db", "--wait", "-1"],
            "wait must be a number of seconds, at least 0, not -1.0",
        ),
        (
            ["sqlite:///jobs.db", "sqlite:///x.db", "--wait", "nan"],
            "wait must be a number of seconds, at least 0, not nan",
        ),
    ],
)
async def test_a_wrong_call_is_refused(files: tuple[Site, Site], arguments: list[str], text: str) -> None:
    source, _ = files
    async with source.client():
        pass
    assert text in await said(source, "-m", "flowrra", "migrate", *arguments, status=2)


async def test_a_store_that_cannot_be_opened_interrupts_nothing(files: tuple[Site, Site]) -> None:
    source, _ = files
    async with source.client():
        pass
    moving = source.start("-m", "flowrra", "migrate", "sqlite:///jobs.db", "sqlite:///no/folder.db")
    assert await moving.ends() == 1
    assert await moving.line() == b""
    assert re.fullmatch("flowrra: .*folder.db cannot be opened: .*\n", moving.log)


async def test_the_help_teaches(files: tuple[Site, Site]) -> None:
    text = await said(files[0], "-m", "flowrra", "migrate", "--help")
    assert text.count("flowrra migrate sqlite:///jobs.db redis://") == 2
