"""Real scheduler processes on one store: killed at random, killed at the worst moment, started at once."""

import asyncio
import datetime as dt
import os
from pathlib import Path

import pytest

from flowrra import Flowrra
from tests.support.processes import Site, all_finished, all_jobs, until
from tests.support.schedule_chaos import APP, rage
from tests.support.schedule_stores import place

SECONDS = float(os.environ.get("FLOWRRA_TEST_CHAOS_SECONDS", "4"))


@pytest.mark.timeout(SECONDS + 120)  # and then the leases of the killed have to run out
@pytest.mark.parametrize("kind", ["sqlite", "postgresql", "mysql", "redis"])
def test_each_fire_is_one_job_and_none_is_lost_while_workers_are_killed(kind: str, tmp_path: Path) -> None:
    with place(kind, tmp_path) as url, Site(tmp_path, APP) as site:
        kills, both = asyncio.run(rage(site, url, SECONDS, kill_every=0.8))
    assert kills > 1
    assert [str(one) for one in both if not one.is_right] == []


DYING = """
from flowrra_extras.scheduler import scheduler as stored
stored.TAKE_LEASE = 1.0


@app.task
async def once():
    note("runs", current_job().id)


store = app.create_scheduler(os.environ["SCHEDULES"]).store
take, advance = store.take, store.advance


async def dying_take(**options):
    taken = await take(**options)
    if taken and os.environ.get("DIES") == "taken":
        os.kill(os.getpid(), signal.SIGKILL)
    return taken


async def dying_advance(fired):
    if fired and os.environ.get("DIES") == "pushed":
        os.kill(os.getpid(), signal.SIGKILL)
    return await advance(fired)


store.take, store.advance = dying_take, dying_advance
"""


@pytest.mark.parametrize("moment", ["taken", "pushed"])
async def test_a_scheduler_that_dies_between_two_steps_leaves_its_fire_to_others(moment: str, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/schedules.db"
    app = Flowrra()
    scheduler = app.create_scheduler(url)
    with Site(tmp_path, DYING) as site:
        async with app.client(), site.client() as jobs:
            made = await scheduler.schedule_once("app.once", dt.datetime.now(dt.UTC))
            # It serves another queue, or it might claim the job in the moment before it dies.
            dying = site.begin_worker("--queues", "other:1", env={"SCHEDULES": url, "DIES": moment})
            assert await dying.ends() == -9
            assert [job.status for job in await all_jobs(jobs)] == ([] if moment == "taken" else ["pending"])
            await site.worker(env={"SCHEDULES": url})

            async def is_advanced() -> bool:
                schedule = await scheduler.get_scheduled_task(made)
                return schedule is not None and schedule.next_fire is None

            await until(is_advanced, "the fire by the other one")
            (job,) = await all_finished(jobs)
            assert site.runs() == {job.id: 1}


async def test_a_worker_without_scheduler_leaves_schedules_to_others(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/schedules.db"
    with Site(tmp_path, APP) as site:
        async with site.client() as jobs:
            idle = await site.worker("--no-scheduler", "--processes", "2", env={"SCHEDULES": url})
            await site.worker("--no-scheduler", env={"SCHEDULES": url})
            await asyncio.sleep(1.2)  # a fire is due each second; this is for one that must not come
            assert await all_jobs(jobs) == []
            assert not idle.is_over
            await site.worker(env={"SCHEDULES": url})

            async def has_fired() -> bool:
                return bool(await all_jobs(jobs))

            await until(has_fired, "a fire of the worker that has a scheduler")


MAKING = """
import asyncio, os
from app import app


async def main():
    async with app.client():
        print(*[await app.schedulers[0].schedule_cron("app.stored", "0 9 * * *", (n,)) for n in range(20)])


asyncio.run(main())
"""


@pytest.mark.parametrize("kind", ["sqlite", "postgresql", "mysql", "redis"])
def test_processes_that_make_the_same_schedules_at_once_share_them(kind: str, tmp_path: Path) -> None:
    async def run() -> None:
        makers = [site.script(MAKING, env={"SCHEDULES": url}) for _ in range(4)]
        said = []
        for maker in makers:
            assert await maker.ends(within=30) == 0, maker.log
            assert maker.popen.stdout is not None
            said.append(maker.popen.stdout.read().decode().split())
        app = Flowrra()
        scheduler = app.create_scheduler(url)
        async with app.client():
            kept = [schedule.id for schedule in await scheduler.list_scheduled_tasks()]
        assert len(set(said[0])) == 20
        assert said == [said[0]] * 4
        assert sorted(kept) == sorted(said[0])

    with place(kind, tmp_path) as url, Site(tmp_path, APP.replace("stored():", "stored(n):")) as site:
        asyncio.run(run())
