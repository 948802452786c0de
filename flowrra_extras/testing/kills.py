"""Workers that something kills each second, as a system without memory does, and among their jobs one that kills too.

Time goes in steps of a tenth of a second, so that what comes out is the same each time.
"""

import itertools
from dataclasses import dataclass, field

from flowrra import FINISHED, MAX_CRASHES, Job, JobFilter, Outcome, TaskStatus, Turns
from flowrra_extras.testing.tools import ManualClock
from flowrra_extras.testing.trial import Trial, job

__all__ = ["Kills"]

LIFE = 10  # steps from the start of a worker to its end
START = 2  # steps that its start takes
CAPACITY = 4
INNOCENT = 30
GUILTY = "job07"


@dataclass
class Life:
    """One worker between two kills."""

    name: str
    turns: Turns
    age: int = 0
    running: dict[str, tuple[Job, int]] = field(default_factory=dict)  # with the steps that are left

    @property
    def is_over(self) -> bool:
        return self.age >= LIFE or GUILTY in self.running


class Kills:
    """Some workers, each replaced when it is killed, and what becomes of their jobs."""

    def __init__(self, t: Trial, *, workers: int) -> None:
        self.t = t
        self.clock = ManualClock()  # of the workers: leases that run out take no time from them
        self.names = (f"w{number}" for number in itertools.count(1))
        self.lives = [self.new_life(age=-3 * number) for number in range(workers)]
        self.kills = 0

    def new_life(self, age: int = 0) -> Life:
        return Life(next(self.names), Turns(self.clock, lease=10.0), age)

    async def run(self) -> None:
        """All come to their end: the guilty is found out, and the others succeed."""
        await self.t.push(*(job(f"job{number:02}") for number in range(INNOCENT)))
        while (begun := await self.jobs_begun()) < INNOCENT:
            assert self.kills < 20 * len(self.lives), f"{INNOCENT - begun} jobs have not begun"
            await self.step()
        while waiting := [found.id for found in await self.jobs() if found.status not in FINISHED]:
            assert self.kills < 60 * len(self.lives), waiting
            await self.step()
        failed = {found.id: found for found in await self.jobs() if found.status is not TaskStatus.SUCCESS}
        assert sorted(failed) == [GUILTY]
        assert failed[GUILTY].crashes == MAX_CRASHES

    async def jobs(self) -> list[Job]:
        return await self.t.broker.find(JobFilter(), limit=INNOCENT)

    async def jobs_begun(self) -> int:
        return sum(found.attempt > 0 for found in await self.jobs())

    async def step(self) -> None:
        """A tenth of a second of all workers."""
        for number, life in enumerate(self.lives):
            if life.age >= START:
                await self.claim(life)
                await self.work(life)
            life.age += 1
            if life.is_over:
                self.kills += 1
                self.lives[number] = self.new_life()
                await self.let_lapse(life)
        self.clock.advance(0.1)

    async def claim(self, life: Life) -> None:
        while len(life.running) < CAPACITY and not any(running.crashes for running, _ in life.running.values()):
            crashes = life.turns.crashes("default")
            jobs = await self.t.claim(CAPACITY - len(life.running), life.name, crashes=crashes)
            life.turns.note("default", jobs)
            for claimed in jobs:  # each takes longer than the one before, up to 0.6 s
                life.running[claimed.id] = claimed, 1 + int(claimed.id[3:]) % 6
            if crashes and not jobs:
                return

    async def work(self, life: Life) -> None:
        if GUILTY not in life.running:
            life.running = {task_id: (running, left - 1) for task_id, (running, left) in life.running.items()}
            ended = [running for running, left in life.running.values() if left == 0]
            assert all(await self.t.settle(*(Outcome.succeed(running, 1) for running in ended)))
            life.running = {task_id: entry for task_id, entry in life.running.items() if entry[1] > 0}

    async def let_lapse(self, dead: Life) -> None:
        """Let the lease of a worker that was killed run out, while the others keep theirs."""
        for share in (0.6, 0.6, 0.0):
            for life in self.lives:
                await self.t.beat(life.name)
            await self.t.lapse(share)
