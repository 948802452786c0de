"""Workers that end when they have run their share, so that others take their places; and their event loops."""

import asyncio
import re
import signal
import sys
from pathlib import Path

import pytest

import flowrra
from flowrra import ConfigError, ExecutorConfig, Flowrra, TaskStatus
from tests.support.processes import Site, all_finished, some_running, stand_in, statuses

LEAKING = """
kept = []

@app.task(max_retries=0)
async def leak():
    note("runs", current_job().id)
    note("pids", os.getpid())
    kept.append(b"x" * 10_000_000)  # written to, so that it is really there
"""


@pytest.mark.timeout(120)  # some thirty processes start, one after the other
async def test_a_leaking_worker_is_recycled_and_no_job_is_lost(tmp_path: Path) -> None:
    with Site(tmp_path, LEAKING) as site:
        supervisor = site.begin_worker("--processes", "2", "--concurrency", "2", "--recycle-memory", "400M")
        async with site.client() as app:
            await app.submit_many(stand_in(app, "app.leak"), [()] * 500)
            jobs = await all_finished(app, within=100)
        assert statuses(jobs) == {TaskStatus.SUCCESS: 500}
        assert site.runs() == {job.id: 1 for job in jobs}  # each was settled before its worker ended
        pids = site.lines("pids")
        assert len(set(pids)) > 5000 // 400  # 5 GB were left behind, in processes of 400 MB
        assert max(map(pids.count, pids)) < 50
        assert "ended with status" not in supervisor.log
        supervisor.send(signal.SIGTERM)
        assert await supervisor.ends() == 0


async def test_a_worker_ends_after_so_many_jobs(tmp_path: Path) -> None:
    with Site(tmp_path) as site:
        async with site.client() as app:
            await app.submit_many(stand_in(app, "app.nap"), [(0,)] * 200)
            worker = await site.worker("--recycle-jobs", "50", "--concurrency", "2")
            assert await worker.ends() == 0
            counted = statuses(await app.jobs(limit=1000))
        assert 50 <= counted[TaskStatus.SUCCESS] < 150
        assert counted[TaskStatus.SUCCESS] + counted[TaskStatus.PENDING] == 200
        assert "the worker has reached its limit" in worker.log


async def test_a_job_that_runs_is_waited_for(tmp_path: Path) -> None:
    with Site(tmp_path) as site:
        async with site.client() as app:
            nap = stand_in(app, "app.nap")
            worker = await site.worker("--recycle-jobs", "1")
            slow = await app.submit(nap, 1)
            await some_running(app, 1)
            await app.submit(nap, 0)
            assert await worker.ends() == 0
            assert (await app.get_job(slow)).attempts[-1].outcome == "success"


def configured(*words: str) -> ExecutorConfig:
    app = Flowrra.from_urls()
    flowrra._configure(app, flowrra.parsed(flowrra._parser(), ["worker", "a:b", *words]))
    return app.config.executor


def test_processes_that_start_together_end_one_after_the_other() -> None:
    limits = ["--recycle-jobs", "1000", "--recycle-memory", "1g", "--processes", "4"]
    found = [configured(*limits, "--supervised", str(number)) for number in (1, 2, 3, 4)]
    assert [config.recycle_jobs for config in found] == [1000, 938, 875, 813]
    assert [config.recycle_memory for config in found] == [n * 2**30 // 16 for n in (16, 15, 14, 13)]
    assert configured(*limits).recycle_jobs == 1000


@pytest.mark.parametrize("wrong", ["0", "", "12 MB", "1.5G", "M", "-1"])
def test_a_size_that_is_none_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"--recycle-memory must be a number of bytes such as 512M"):
        configured(f"--recycle-memory={wrong}")


def test_limits_need_a_system_that_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    assert configured("--recycle-memory", "5k").recycle_memory == 5 * 1024
    monkeypatch.setattr(flowrra, "resident_memory", lambda: None)
    with pytest.raises(ConfigError, match="no effect: this system"):
        configured("--recycle-memory", "5k")
    with pytest.raises(ConfigError, match="recycle_jobs must be at least 1"):
        ExecutorConfig(recycle_jobs=0)


# ---------------------------------------------------------------------------
# Event loops
# ---------------------------------------------------------------------------

LOOPS = """
@app.task
async def which():
    return type(asyncio.get_running_loop()).__module__

@app.task
async def block():
    note("runs", current_job().id)
    time.sleep(60)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="uvloop is not made for it")
async def test_a_worker_may_run_on_uvloop(tmp_path: Path) -> None:
    with Site(tmp_path, LOOPS) as site:
        worker = await site.worker("--loop", "uvloop")
        async with site.client() as app:
            which = await app.submit(stand_in(app, "app.which"))
            assert (await app.wait_for_result(which, timeout=20)).result == "uvloop"
        worker.send(signal.SIGTERM)
        assert await worker.ends() == 0


@pytest.mark.skipif(sys.platform == "win32", reason="uvloop is not made for it")
async def test_a_blocked_uvloop_does_not_hold_up_a_second_signal(tmp_path: Path) -> None:
    with Site(tmp_path, LOOPS) as site:
        worker = await site.worker("--loop", "uvloop", "--drain", "1")
        async with site.client() as app:
            await app.submit(stand_in(app, "app.block"))
            await some_running(app, 1)
        await worker.says("blocked for more than 1 s")
        worker.send(signal.SIGTERM)
        await asyncio.sleep(0.2)  # a signal that is still pending takes in another one of its kind
        worker.send(signal.SIGTERM)
        assert await worker.ends() in (0, 1)  # within 5 s, as on asyncio's own loop
        assert "ending it now" in worker.log


def test_a_loop_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    with pytest.raises(ConfigError, match=re.escape("--loop uvloop is not available here")) as caught:
        flowrra._loop_factory("uvloop")
    assert "pip install 'flowrra[uvloop]'" in str(caught.value)
    assert flowrra._loop_factory("asyncio") is None
