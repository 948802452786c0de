"""Workers that do not come to run: the exit status, what is said, and signals at each stage."""

import asyncio
import signal
from pathlib import Path

import pytest

from tests.support.processes import PRELUDE, Site, until
from tests.support.redis_server import free_port

STOPS = [signal.SIGTERM, signal.SIGINT]

LIFESPAN = """
import contextlib, threading


@app.lifespan
@contextlib.asynccontextmanager
async def around(app):
    note("stage", "begun")
    {begin}
    yield
    note("stage", "ending")
    {end}
    note("stage", "ended")
"""


def site_with(folder: Path, *, begin: str = "pass", end: str = "pass", more: str = "") -> Site:
    return Site(folder, LIFESPAN.format(begin=begin, end=end) + more)


# ---------------------------------------------------------------------------
# Starts that fail
# ---------------------------------------------------------------------------

THREAD = "threading.Thread(target=time.sleep, args=[60]).start()"
TO_THREAD = "asyncio.ensure_future(asyncio.to_thread(time.sleep, 60)); await asyncio.sleep(0.1)"


@pytest.mark.parametrize("thread", [THREAD, TO_THREAD], ids=["thread", "to_thread"])
async def test_a_lifespan_that_raises_while_a_thread_runs(tmp_path: Path, thread: str) -> None:
    with site_with(tmp_path, begin=f"{thread}\n    raise ZeroDivisionError('in the lifespan')") as site:
        worker = site.begin_worker()
        assert await worker.ends() == 1
        assert "Traceback (most recent call last)" in worker.log
        assert "ZeroDivisionError: in the lifespan" in worker.log
        assert "app.py" in worker.log


@pytest.mark.parametrize("status", ["0", "", "'bye'"])
async def test_a_lifespan_that_exits_is_no_success(tmp_path: Path, status: str) -> None:
    with site_with(tmp_path, begin=f"sys.exit({status})") as site:
        worker = site.begin_worker()
        assert await worker.ends() == 1
        assert f"the app's lifespan called sys.exit({status or None})" in worker.log


async def test_a_lifespan_that_raises_at_its_end_is_no_success(tmp_path: Path) -> None:
    with site_with(tmp_path, end="raise ZeroDivisionError('at the end')") as site:
        worker = await site.worker()
        worker.send(signal.SIGTERM)
        assert await worker.ends() == 1
        assert "ZeroDivisionError: at the end" in worker.log


@pytest.mark.parametrize("scheme", ["redis", "postgresql"])
async def test_a_worker_without_a_server_says_so_and_ends_at_a_signal(tmp_path: Path, scheme: str) -> None:
    port = free_port()
    with Site(tmp_path) as site:
        site.write("app.py", PRELUDE.replace("URL", f"{scheme}://127.0.0.1:{port}/0"))
        worker = site.begin_worker()
        await worker.says("does not answer (")
        worker.send(signal.SIGTERM)
        assert await worker.ends() == 0
        assert "Traceback" not in worker.log
        assert worker.log.count("does not answer (") == 1


async def test_a_store_that_does_not_open_is_one_line(tmp_path: Path) -> None:
    with Site(tmp_path, url=f"sqlite:///{tmp_path}/nowhere/jobs.db") as site:
        worker = site.begin_worker()
        assert await worker.ends() == 1
        assert "nowhere/jobs.db cannot be opened: does its folder exist" in worker.log
        assert "Traceback" not in worker.log


# ---------------------------------------------------------------------------
# Signals at each stage
# ---------------------------------------------------------------------------


async def reaches(site: Site, stage: str) -> None:
    await until(lambda: stage in site.lines("stage"), f"the stage {stage!r}")


@pytest.mark.parametrize("number", STOPS)
async def test_a_signal_while_the_lifespan_begins(tmp_path: Path, number: signal.Signals) -> None:
    begin = "try:\n        await asyncio.Event().wait()\n    finally:\n        note('stage', 'given up')"
    with site_with(tmp_path, begin=begin) as site:
        worker = site.begin_worker()
        await reaches(site, "begun")
        worker.send(number)
        assert await worker.ends() == 0
        assert site.lines("stage") == ["begun", "given up"]
        assert "Traceback" not in worker.log


async def test_a_second_signal_ends_a_lifespan_that_does_not_let_itself_be_cancelled(tmp_path: Path) -> None:
    begin = "\n    ".join(
        (
            "while True:",
            "    try:",
            "        await asyncio.sleep(60)",
            "    except BaseException: note('stage', 'stays')",
        )
    )
    with site_with(tmp_path, begin=begin) as site:
        worker = site.begin_worker()
        await reaches(site, "begun")
        worker.send(signal.SIGTERM)
        await reaches(site, "stays")
        worker.send(signal.SIGTERM)
        assert await worker.ends() == 1
        assert "the process did not end in time" in worker.log


async def test_a_third_signal_waits_for_nothing(tmp_path: Path) -> None:
    with site_with(tmp_path, end="await asyncio.sleep(60)") as site:
        worker = await site.worker()
        for number in range(3):
            worker.send(signal.SIGINT)
            await reaches(site, "ending")
            await asyncio.sleep(0.1 * number)
        assert await worker.ends(within=4.0) == 1  # after a second one it would get 5 s


async def test_a_signal_while_the_lifespan_ends_after_a_drain(tmp_path: Path) -> None:
    with site_with(tmp_path, end="await asyncio.sleep(0.5)") as site:
        worker = await site.worker()
        worker.send(signal.SIGTERM)
        await reaches(site, "ending")
        worker.send(signal.SIGTERM)
        assert await worker.ends() == 0
        assert site.lines("stage")[-1] == "ended"


HOLD = """
@app.task
async def hold():
    note("stage", "held")
    await asyncio.sleep(60)
"""


@pytest.mark.parametrize("number", STOPS)
async def test_a_second_signal_during_the_drain(tmp_path: Path, number: signal.Signals) -> None:
    with site_with(tmp_path, more=HOLD) as site:
        async with site.client() as app:

            @app.task(name="app.hold")
            async def hold() -> None:
                """Runs in the worker."""

            await app.submit(hold)
            worker = await site.worker("--drain", "60")
            await reaches(site, "held")
            worker.send(number)
            await worker.says("stopping: running jobs get up to 60 s")
            worker.send(number)
            assert await worker.ends() == 0
            (job,) = await app.jobs()
        assert [attempt.outcome for attempt in job.history] == ["release"]
        assert site.lines("stage")[-1] == "ended"


async def test_ctrl_c_twice_ends_a_program_of_the_users_own(tmp_path: Path) -> None:
    program = """
import asyncio, app
async def main():
    async with app.app:
        await app.app.submit(app.hold)
        await asyncio.Event().wait()
asyncio.run(main())
"""
    with site_with(tmp_path, more=HOLD) as site:
        process = site.script(program)
        await reaches(site, "held")
        process.send(signal.SIGINT)
        await asyncio.sleep(0.3)
        assert not process.is_over, "the job gets its drain"
        process.send(signal.SIGINT)
        assert await process.ends() in (130, -signal.SIGINT, 1)
        assert process.log.rstrip().endswith("KeyboardInterrupt")
        assert site.lines("stage")[-1] == "ended"
        async with site.client() as app:
            (job,) = await app.jobs()
            assert await app.broker.workers() == []
    assert (job.status, [attempt.outcome for attempt in job.history]) == ("pending", ["release"])
