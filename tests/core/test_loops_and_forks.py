"""An app that was left open: on a loop that no longer runs, or by the process that this one was forked from."""

import asyncio
import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from flowrra import Flowrra, TaskStatus
from tests.support.apps import eventually, flowrra_threads, make_app
from tests.support.postgres_server import clean_schema
from tests.support.processes import Site
from tests.support.redis_server import clean
from tests.support.services import POSTGRES_URL, REDIS_URL, require

DURABLE = ["sqlite", "redis", "postgresql"]
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")


@contextlib.contextmanager
def url_of(kind: str, folder: Path) -> Iterator[str]:
    with contextlib.ExitStack() as stack:
        if kind == "redis":
            yield f"{REDIS_URL}?prefix={stack.enter_context(clean(require(REDIS_URL)))[1]}"
        elif kind == "postgresql":
            yield f"{POSTGRES_URL}?schema={stack.enter_context(clean_schema(require(POSTGRES_URL)))[1]}"
        else:
            yield {"memory": "memory://", "sqlite": f"sqlite:///{folder}/jobs.db"}[kind]


@pytest.fixture(params=["memory", *DURABLE])
def app(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Flowrra]:
    with url_of(request.param, tmp_path) as url:
        app = make_app(url, lease=2.0, heartbeat=0.5)

        @app.task(name="double")
        async def double(number: int) -> int:
            return number * 2

        yield app


@pytest.fixture
def loops() -> Iterator[list[asyncio.AbstractEventLoop]]:
    """Loops that a test runs by hand; none is closed before its end."""
    loops = [asyncio.new_event_loop() for _ in range(2)]
    yield loops
    for loop in loops:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0.05))
        loop.close()


# ---------------------------------------------------------------------------
# Loops
# ---------------------------------------------------------------------------


def test_an_app_moves_on_from_a_loop_that_does_not_run(app: Flowrra, loops: list[asyncio.AbstractEventLoop]) -> None:
    double = app.registry["double"]

    async def submit_and_wait(number: int) -> str:
        task_id: str = await app.submit(double, number)
        with contextlib.suppress(TimeoutError):
            await app.wait_for_result(task_id, timeout=0.3)  # it listens now, too
        return task_id

    ids = [loop.run_until_complete(submit_and_wait(1)) for loop in (*loops, *loops)]
    ids.append(app.sync.submit(double, 1))
    ids.append(loops[0].run_until_complete(submit_and_wait(1)))
    ids.append(app.sync.submit(double, 1))
    assert sorted(job.id for job in app.sync.jobs()) == sorted(ids)
    app.sync.close()
    assert loops[1].run_until_complete(work_all_off(app)) == 7


async def work_all_off(app: Flowrra) -> int:
    """Run what waits; how many have succeeded."""
    async with asyncio.timeout(30), app:
        await eventually(lambda: all_have_ended(app))
        counts = await app.broker.counts()
    return counts["default", TaskStatus.SUCCESS]


async def all_have_ended(app: Flowrra) -> bool:
    return {status for _, status in await app.broker.counts()} <= {TaskStatus.SUCCESS}


def test_a_stop_that_ends_with_its_loop_ends_the_threads(app: Flowrra) -> None:
    begun = asyncio.Event()

    @app.task
    def plain() -> str:
        return threading.current_thread().name

    @app.task
    async def stubborn() -> None:
        begun.set()
        for _ in range(2):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        await asyncio.Event().wait()

    async def main() -> str:
        await app.start()
        thread = (await app.wait_for_result(await app.submit(plain), timeout=20.0)).result
        await app.submit(stubborn)
        await begun.wait()
        keeper = app.sessions.worker().keeper  # type: ignore[union-attr]
        stopping.append(asyncio.create_task(app.stop(wait=False)))
        await eventually(keeper._ended.is_set, "the worker leaves, and waits for the job once more")
        return str(thread)

    stopping: list[asyncio.Task[None]] = []
    assert asyncio.run(main()) == "flowrra-thread"
    app.sync.close()
    for thread in flowrra_threads():
        thread.join(20)
    assert not flowrra_threads()


def test_a_worker_that_was_left_on_another_loop_is_replaced(
    app: Flowrra, loops: list[asyncio.AbstractEventLoop]
) -> None:
    loops[0].run_until_complete(app.start())
    assert loops[1].run_until_complete(app.submit(app.registry["double"], 1))
    assert not app.is_running
    assert loops[1].run_until_complete(work_all_off(app)) == 1
    assert not [thread for thread in flowrra_threads() if thread.name == "flowrra-keeper"]


def test_a_loop_that_is_run_by_asyncio_run_and_ends_without_a_stop_signs_the_worker_off(app: Flowrra) -> None:
    begun = asyncio.Event()

    @app.task(name="endless")
    async def endless() -> None:
        begun.set()
        await asyncio.Event().wait()

    async def main() -> str:
        await app.start()
        task_id = await app.submit(endless)
        await begun.wait()
        return task_id

    async def look(task_id: str) -> tuple[list[Any], Any]:
        return await app.broker.workers(), await app.get_job(task_id)

    task_id = asyncio.run(main())
    assert not flowrra_threads()
    workers, job = app.sync.run(connected(app, look, task_id))
    app.sync.close()
    assert workers == []
    assert (job.status, job.crashes, [attempt.outcome for attempt in job.history]) == (
        TaskStatus.PENDING, 0, ["release"],
    )  # fmt: skip


async def connected(app: Flowrra, look: Any, *args: Any) -> Any:
    await app.connect()
    return await look(*args)


# ---------------------------------------------------------------------------
# Forks
# ---------------------------------------------------------------------------

FORKED = """
import asyncio, contextlib, faulthandler, os, sys, threading, warnings
from flowrra import Flowrra

warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)  # from Python 3.12 on
app = Flowrra.from_urls(sys.argv[1])
scheduler = app.create_scheduler(sys.argv[2])

@app.task
async def double(number):
    return 2 * number

async def schedules():
    await scheduler.schedule_cron(double, "0 9 * * *", [1], task_id="nine")
    return len(await scheduler.list_scheduled_tasks())

async def work():
    async with app:
        task_id = await app.submit(double, 4)
        result = await app.wait_for_result(task_id, timeout=20)
    async with app.client():  # which ends the stop
        return result.result

async def listen():
    with contextlib.suppress(TimeoutError):
        await app.wait_for_result(await app.submit(double, 1), timeout=0.1)

def use(who):
    print(who, len(app.sync.submit(double, 1)) > 0, app.sync.run(schedules()), asyncio.run(work()), flush=True)

def fork():
    child = os.fork()
    if child:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        return
    faulthandler.dump_traceback_later(30, exit=True)
    use("child")
    app.sync.close()
    sys.stdout.flush()
    os._exit(0)
"""

# How an app may be open when a server forks.
OPEN = {
    "by plain code": "use('parent'); app.sync.submit(double, 1); app.sync.run(listen()); fork(); use('parent')",
    "on a loop that rests": """
loop = asyncio.new_event_loop()
loop.run_until_complete(listen())
fork()
loop.run_until_complete(listen())
loop.run_until_complete(work())
loop.close()
use('parent')
""",
    "with a worker": """
async def main():
    async with app:
        await listen()
        await schedules()
        fork()
        assert (await app.wait_for_result(await app.submit(double, 4), timeout=20)).result == 8
asyncio.run(main())
asyncio.run(work())
use('parent')
""",
}


@needs_fork
@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("memory", "by plain code"),
        ("sqlite", "by plain code"),
        ("sqlite", "on a loop that rests"),
        ("sqlite", "with a worker"),
        ("redis", "with a worker"),
        ("postgresql", "on a loop that rests"),
        ("postgresql", "with a worker"),
    ],
)
async def test_a_forked_child_uses_the_app_and_so_does_its_parent(tmp_path: Path, kind: str, how: str) -> None:
    with url_of(kind, tmp_path) as url, Site(tmp_path) as site:
        # asyncpg logs an exception that nobody fetched if it is cancelled while it asks the server for TLS.
        url += "&sslmode=disable" if kind == "postgresql" else ""
        program = site.write("forked.py", dedent(FORKED) + "\n" + OPEN[how])
        process = site.start(str(program), url, f"sqlite:///{tmp_path}/schedules.db")
        assert await process.ends(within=50) == 0, process.log
        said = (await asyncio.to_thread(process.popen.stdout.read)).decode().splitlines()  # type: ignore[union-attr]
    assert said == [f"{who} True 1 8" for who in ("parent", "child", "parent")[how != "by plain code" :]]
    quiet = [line for line in process.log.splitlines() if "append-only" not in line and "appendonly" not in line]
    assert quiet == [] or "lost when this process ends" in process.log, process.log


@needs_fork
async def test_a_child_that_is_forked_during_a_write_finds_the_file_free(tmp_path: Path) -> None:
    with url_of("sqlite", tmp_path) as url, Site(tmp_path) as site:
        during = """
        async def main():
            begun = threading.Event()

            def write(table):
                begun.set()
                time.sleep(0.3)

            async with app.client():
                writing = asyncio.create_task(app.broker._durably(write))
                await asyncio.to_thread(begun.wait)
                fork()
                await writing

        asyncio.run(main())
        """
        program = site.write("forked.py", f"import time\n{dedent(FORKED)}\n{dedent(during)}")
        process = site.start(str(program), url, f"sqlite:///{tmp_path}/schedules.db")
        assert await process.ends(within=50) == 0, process.log


TWO_FORKS = """
# Hooks run in the reverse of the order in which they were registered, and those of these modules hold locks.
import concurrent.futures.thread, logging, os, threading
waits, goes_on = threading.Event(), threading.Event()

def delay():
    if threading.current_thread().name == "slow":
        waits.set()
        goes_on.wait(20)

os.register_at_fork(before=delay)
{forked}
def fork_and_end():
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)

async def main():
    async with app.client():
        slow = threading.Thread(target=fork_and_end, name="slow")
        slow.start()
        await asyncio.to_thread(waits.wait)
        await asyncio.to_thread(fork_and_end)
        assert app.broker._file.lock.locked(), "no transaction may begin before the slow fork"
        goes_on.set()
        await asyncio.to_thread(slow.join)
        assert not app.broker._file.lock.locked()

asyncio.run(main())
"""


@needs_fork
async def test_a_fork_that_has_waited_in_vain_leaves_the_lock_to_another(tmp_path: Path) -> None:
    with url_of("sqlite", tmp_path) as url, Site(tmp_path) as site:
        program = site.write("forked.py", TWO_FORKS.format(forked=dedent(FORKED)))
        process = site.start(str(program), url, f"sqlite:///{tmp_path}/schedules.db")
        assert await process.ends(within=50) == 0, process.log


@needs_fork
async def test_jobs_in_memory_stay_with_the_parent_of_a_fork(tmp_path: Path) -> None:
    with Site(tmp_path) as site:
        code = (
            FORKED
            + """
import logging
logging.basicConfig()
app.sync.submit_many(double, [(1,), (2,)])
child = os.fork()
if child:
    os.waitpid(child, 0)
    print(len(app.sync.jobs()))
    app.sync.close()
else:
    faulthandler.dump_traceback_later(30, exit=True)
    print(len(app.sync.jobs()), flush=True)
    os._exit(0)
"""
        )
        process = site.start(str(site.write("forked.py", dedent(code))), "memory://", "memory://")
        assert await process.ends(within=50) == 0, process.log
        said = await asyncio.to_thread(process.popen.stdout.read)  # type: ignore[union-attr]
    assert said.split() == [b"0", b"2"]
    assert "2 jobs in memory stay with the process that this one was forked from" in process.log
