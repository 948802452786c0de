"""Three workers with schedules in code and in a store; one of them is killed again and again.

    python -m tests.support.schedule_chaos --seconds 60 --store sqlite --store postgresql --store mysql

The jobs wait in a SQLite file. At the end every moment that was due must have its one job, and a job may
have run twice only if its worker was killed.
"""

import argparse
import asyncio
import datetime as dt
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from flowrra import Flowrra, Job
from tests.support.processes import Site, all_finished, all_jobs, until
from tests.support.schedule_stores import place

APP = """
@app.every(1)
@app.task
async def coded():
    note("runs", current_job().id)


@app.task
async def stored():
    note("runs", current_job().id)


app.create_scheduler(os.environ["SCHEDULES"])
"""


@dataclass
class Figures:
    """What came of the fires of one schedule. `due`: the moments from its first job to the end of the killing."""

    name: str
    due: int
    jobs: int
    missing: list[int]
    doubled: list[int]
    run_again: int
    run_again_unkilled: int

    @property
    def is_right(self) -> bool:
        return self.due > 0 and not (self.missing or self.doubled or self.run_again_unkilled)

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.due} moments due, {self.jobs} jobs, {len(self.missing)} missing, "
            f"{len(self.doubled)} doubled, {self.run_again} run again after a kill, "
            f"{self.run_again_unkilled} for no reason"
        )


async def rage(site: Site, store: str, seconds: float, *, kill_every: float) -> tuple[int, list[Figures]]:
    """Let three workers live that dangerously; how many kills there were, and the figures of both schedules."""
    env = {"SCHEDULES": store}
    await make_schedule(store)
    workers = [await site.worker(env=env) for _ in range(3)]
    kills, end = 0, time.time() + seconds
    while time.time() < end:
        await asyncio.sleep(random.uniform(0.5, 1.5) * kill_every)  # noqa: S311
        victim = random.choice(workers)  # noqa: S311
        workers.remove(victim)
        await until(lambda: any("worker ready" in one.log for one in workers), "a worker that survives")
        await victim.kill()
        kills += 1
        workers.append(site.begin_worker(env=env))
    async with site.client() as app:
        last = int(end)

        async def all_are_past_the_end() -> bool:
            jobs = await all_jobs(app)
            return all(max(moments(jobs, name), default=0) > last for name in ("coded", "stored"))

        await until(all_are_past_the_end, "a fire after the end", within=60)
        jobs = await all_finished(app, within=60)
        runs = site.runs()
        return kills, [figures(name, jobs, runs, last) for name in ("coded", "stored")]


async def make_schedule(store: str) -> None:
    app = Flowrra()
    scheduler = app.create_scheduler(store)
    async with app.client():
        await scheduler.schedule_interval("app.stored", 1, task_id="stored")


def moments(jobs: list[Job], name: str) -> list[int]:
    """The moments of a schedule's jobs in whole seconds; a stored one counts from a fraction of one."""
    fires = (job.id.rpartition("@")[2] for job in jobs if job.task == f"app.{name}")
    return sorted(int(dt.datetime.fromisoformat(moment).timestamp()) for moment in fires)


def figures(name: str, jobs: list[Job], runs: dict[str, int], last: int) -> Figures:
    own = [job for job in jobs if job.task == f"app.{name}"]
    fired = moments(jobs, name)
    due = range(fired[0], last + 1)
    again = [job for job in own if runs[job.id] > 1]
    return Figures(
        name,
        due=len(due),
        jobs=sum(moment <= last for moment in fired),
        missing=sorted(set(due) - set(fired)),
        doubled=sorted({moment for moment in fired if fired.count(moment) > 1}),
        run_again=len(again),
        run_again_unkilled=sum(job.crashes == 0 for job in again),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--kill-every", type=float, default=2.0)
    parser.add_argument("--store", action="append", help="sqlite, postgresql, mysql")
    arguments = parser.parse_args()
    right = True
    for kind in arguments.store or ["sqlite"]:
        with tempfile.TemporaryDirectory() as folder, place(kind, Path(folder)) as url, Site(Path(folder), APP) as site:
            kills, both = asyncio.run(rage(site, url, arguments.seconds, kill_every=arguments.kill_every))
        print(f"{kind}: {kills} kills in {arguments.seconds:g} s")
        for one in both:
            print(f"  {one}{'' if one.is_right else '  NOT as it should be'}")
            right = right and one.is_right
    return 0 if right else 1


if __name__ == "__main__":
    raise SystemExit(main())
