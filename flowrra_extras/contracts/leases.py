"""The contract: leases, workers that die or leave, suspects, outages of the store, and the activity of workers."""

import asyncio
import dataclasses
import itertools
import os
from typing import Any

from flowrra import (
    BY_HAND,
    EXPIRED,
    FINISHED,
    KILLED,
    MAX_CRASHES,
    Activity,
    ExecutorConfig,
    Flowrra,
    Job,
    JobFilter,
    Notices,
    Outcome,
    Progress,
    TaskStatus,
    Turns,
    length_bucket,
    orphaned,
)
from flowrra_extras.contracts.harness import SOON, Contract, Harness, for_each, job, tests_take
from flowrra_extras.metrics import quantile
from flowrra_extras.testing import ManualClock


@tests_take(Contract.harness)
class CrashContract(Contract):
    """Workers that die or leave."""

    async def test_a_lapsed_lease_puts_jobs_back(self, t: Harness) -> None:
        await t.run(job("a"), job("b"))
        notices = await t.crash("w1", seen_by="w2")
        assert list(notices.lost_workers) == ["w1"]
        assert notices.suspects
        lost = await t.job("a")
        assert (lost.status, lost.crashes, lost.failures, lost.worker) == (TaskStatus.PENDING, 1, 0, None)
        assert await t.endings("a") == [(1, "crash")]
        assert await t.endings("b") == [(1, "crash")]

    async def test_a_suspect_in_a_paused_queue_holds_up_nobody(self, t: Harness) -> None:
        await t.run(job("a"))
        await t.broker.set_queue("default", paused=True)
        await t.crash("w1", seen_by="w2")
        assert not (await t.beat("w2")).suspects
        await t.broker.set_queue("default", paused=False)
        assert (await t.beat("w2")).suspects

    async def test_what_is_put_back_is_ready_at_once(self, t: Harness) -> None:
        await t.push(job("a", due=t.now + 5))
        t.clock.advance(6)
        await t.claim()
        await t.crash("w1", seen_by="w2")
        assert (await t.job("a")).due is None
        await t.claim(worker="w2")
        await t.beat("w2", lease=0)
        assert (await t.job("a")).due is None

    async def test_a_claim_rescues_too(self, t: Harness) -> None:
        await t.run(job("a"))
        await t.beat("w2")
        await t.lapse(0.6)
        await t.beat("w2")
        await t.lapse(0.6)
        (again,) = await t.claim(worker="w2")
        assert (again.id, again.attempt, again.crashes) == ("a", 2, 1)

    async def test_a_heartbeat_keeps_the_lease(self, t: Harness) -> None:
        (claimed,) = await t.run(job("a"))
        for _ in range(4):
            await t.lapse(0.6)
            assert not (await t.beat("w1")).lapsed
            assert not (await t.beat("w2")).lost_workers
        assert await t.settle(Outcome.succeed(claimed, 1)) == [True]

    async def test_a_jump_of_the_wall_clock_costs_no_lease(self, t: Harness) -> None:
        (claimed,) = await t.run(job("a"))
        await t.beat("w2")
        for seconds in (86_400, -2 * 86_400):
            t.clock.jump_wall(seconds)
            assert not (await t.beat("w2")).lost_workers
            assert not (await t.beat("w1")).lapsed
        assert await t.settle(Outcome.succeed(claimed, 1)) == [True]

    async def test_who_lost_its_lease_is_told_and_cannot_settle(self, t: Harness) -> None:
        (claimed,) = await t.run(job("a"))
        await t.crash("w1", seen_by="w2")
        assert await t.settle(Outcome.succeed(claimed, 1)) == [False]
        assert (await t.beat("w1")).lapsed
        assert not (await t.beat("w1")).lapsed
        assert await t.status("a") is TaskStatus.PENDING

    async def test_a_new_worker_is_not_told_of_a_lapse(self, t: Harness) -> None:
        assert await t.beat("w1") == Notices([], False, frozenset(), 0, [], [])

    async def test_an_end_that_no_attempt_came_to_is_told_to_one_heartbeat(self, t: Harness) -> None:
        await t.beat("w1")
        await t.push(job("cancelled"), job("late", expires=t.now + 1), job("fine"))
        await t.push(job("orphan", parents=("cancelled",)))
        await t.cancel("cancelled")
        t.clock.advance(2)
        (fine,) = await t.run()
        await t.settle(Outcome.succeed(fine, 1))
        told = {one.id: (one.task, one.attempt, one.status, one.error) for one in (await t.beat("w1")).endings}
        task = fine.task
        assert told == {
            "cancelled": (task, 0, TaskStatus.CANCELLED, BY_HAND),
            "orphan": (task, 0, TaskStatus.CANCELLED, orphaned("cancelled", TaskStatus.CANCELLED)),
            "late": (task, 0, TaskStatus.CANCELLED, EXPIRED),
        }
        assert (await t.beat("w1")).endings == []

    async def test_the_end_of_a_job_that_kills_its_workers_is_told(self, t: Harness) -> None:
        await t.push(job("guilty"))
        told: list[Job] = []
        for number in range(MAX_CRASHES):
            await t.claim(worker=f"w{number}", crashes=MAX_CRASHES)
            told += (await t.crash(f"w{number}", seen_by="seer")).endings
        told += (await t.beat("seer")).endings
        assert [(one.id, one.status, one.error) for one in told] == [("guilty", TaskStatus.FAILED, KILLED)]

    async def test_a_suspect_runs_alone(self, t: Harness) -> None:
        await t.run(job("a"), job("b"))
        await t.crash("w1", seen_by="w2")
        await t.push(job("other", priority=-1))
        (suspect,) = await t.claim(worker="w2")
        assert suspect.id == "a"
        assert await t.claim_ids(worker="w2") == []
        assert await t.claim_ids(worker="w2", queue="other") == []
        await t.settle(Outcome.succeed(suspect, 1))
        assert await t.claim_ids(worker="w2") == ["b"]

    async def test_a_busy_worker_gets_the_innocent_only(self, t: Harness) -> None:
        await t.run(job("suspect"))
        await t.push(job("busy", queue="other"))
        await t.beat("w2")
        assert await t.claim_ids(worker="w2", queue="other") == ["busy"]
        await t.crash("w1", seen_by="w2")
        await t.push(job("c"), job("d"))
        assert await t.claim_ids(worker="w2") == ["c", "d"]
        assert await t.claim_ids(worker="w2") == []
        assert await t.claim_ids(worker="w3") == ["suspect"]

    async def test_suspects_are_remembered_across_queues_and_retries(self, t: Harness) -> None:
        await t.run(job("suspect"))
        await t.crash("w1", seen_by="w2")
        await t.push(job("elsewhere", queue="other"))
        assert await t.claim_ids(worker="w3", queue="other") == ["elsewhere"]
        (suspect,) = await t.claim(worker="w2")
        assert suspect.id == "suspect"
        await t.push(job("c"), job("e", queue="other"))
        assert await t.claim_ids(worker="w4", queue="other") == ["e"]
        assert await t.claim_ids(worker="w2") == []
        await t.settle(Outcome.release(suspect, "no such task", t.now + 1, begun=False))
        t.clock.advance(1)
        assert await t.claim_ids(worker="w2") == ["suspect"]
        assert await t.claim_ids(worker="w2") == []

    async def test_the_most_suspect_come_first_as_far_as_they_are_wanted(self, t: Harness) -> None:
        await t.run(job("twice"))
        await t.crash("w1", seen_by="w2")
        await t.push(job("once"))
        assert await t.claim_ids(worker="w2") == ["twice"]
        await t.beat("w3")
        assert await t.claim_ids(worker="w3") == ["once"]
        await t.lapse()
        assert (await t.beat("w4")).suspects == 1
        await t.push(job("other"))
        assert await t.claim_ids(worker="w4", crashes=0) == ["other"]
        assert await t.claim_ids(worker="w5", crashes=0) == []
        (once,) = await t.claim(worker="w5", crashes=1)
        assert (once.id, once.crashes) == ("once", 1)
        assert (await t.beat("w6")).suspects == 2
        assert await t.claim_ids(worker="w6", crashes=1) == []
        await t.settle(Outcome.release(once, "the worker stopped"))
        assert await t.claim_ids(worker="w6") == ["twice"]
        assert await t.claim_ids(worker="w5", crashes=1) == ["once"]

    async def test_a_suspect_that_survives_a_run_is_less_suspect(self, t: Harness) -> None:
        await t.run(job("a"))
        await t.crash("w1", seen_by="w2")
        assert await t.claim_ids(worker="w2") == ["a"]
        await t.crash("w2", seen_by="w3")
        for crashes in (1, 0):
            (suspect,) = await t.claim(worker="w3")
            assert suspect.crashes == crashes + 1
            await t.settle(Outcome.retry_at(suspect, t.now, "boom"))
            assert (await t.job("a")).crashes == crashes
        await t.push(job("b"))
        assert await t.claim_ids(worker="w3") == ["a", "b"]

    @for_each((1, 2))
    async def test_a_worker_that_is_killed_each_second_ends_the_guilty_only(self, t: Harness, workers: int) -> None:
        await RepeatedKills(t, workers=workers).run()

    async def test_the_guilty_is_given_up(self, t: Harness) -> None:
        await t.push(job("a"))
        await t.push(job("child", parents=("a",)))
        for n in range(1, MAX_CRASHES + 1):
            assert await t.claim_ids(worker=f"w{n}") == ["a"]
            await t.crash(f"w{n}", seen_by=f"w{n + 1}")
        guilty = await t.job("a")
        assert (guilty.status, guilty.error) == (TaskStatus.FAILED, f"killed its worker {MAX_CRASHES} times")
        assert (guilty.crashes, guilty.failures, guilty.finished) == (MAX_CRASHES, 0, t.now)
        assert await t.endings("a") == [(n, "crash") for n in range(1, MAX_CRASHES + 1)]
        assert await t.status("child") is TaskStatus.CANCELLED
        assert not (await t.beat(f"w{MAX_CRASHES + 1}")).suspects

    async def test_a_requeue_forgets_failures_and_crashes(self, t: Harness) -> None:
        await t.run(job("a"))
        await t.crash("w1", seen_by="w2")
        (claimed,) = await t.claim(worker="w2")
        await t.settle(Outcome.fail(claimed, "boom", "line 1"))
        assert await t.requeue("a", "unknown") == [True, False]
        ready = await t.job("a")
        assert (ready.status, ready.failures, ready.crashes) == (TaskStatus.PENDING, 0, 0)
        assert (ready.error, ready.traceback, ready.finished, ready.purge_at) == (None, None, None, None)
        assert await t.endings("a") == [(1, "crash"), (2, "failure")]
        await t.push(job("b"))
        jobs = await t.claim(worker="w2")
        assert [(claimed.id, claimed.attempt) for claimed in jobs] == [("a", 3), ("b", 1)]

    async def test_a_leave_releases(self, t: Harness) -> None:
        (claimed, _) = await t.run(job("a"), job("b"))
        await t.beat("w1", lease=0)
        assert await t.broker.workers() == []
        assert await t.settle(Outcome.succeed(claimed, 1)) == [False]
        back = await t.job("a")
        assert (back.status, back.crashes, back.failures) == (TaskStatus.PENDING, 0, 0)
        assert await t.endings("a") == [(1, "release")]
        assert await t.claim_ids(worker="w2") == ["a", "b"]

    async def test_workers_are_those_with_a_lease(self, t: Harness) -> None:
        await t.beat("w1", queues={"default": 3, "cpu": 1}, tasks=("t1", "t2"))
        t.clock.advance(1)
        await t.beat("w2", running=4)
        one, two = sorted(await t.broker.workers(), key=lambda info: info.id)
        assert (one.id, one.host, one.pid) == ("w1", "host", os.getpid())
        assert (dict(one.queues), list(one.tasks)) == ({"default": 3, "cpu": 1}, ["t1", "t2"])
        assert (one.started, one.seen, two.seen, two.running) == (t.now - 1, t.now - 1, t.now, 4)
        assert two.memory is None
        await t.lapse(0.6)
        await t.beat("w2")
        await t.lapse(0.6)
        assert [info.id for info in await t.broker.workers()] == ["w2"]

    async def test_a_heartbeat_tells_what_has_changed(self, t: Harness) -> None:
        await t.beat("w1")
        told: dict[str, Any] = {
            "queues": {"default": 3, "cpu": 1},
            "tasks": ["t1", "t2"],
            "running": 4,
            "memory": 10_000_000_000,
        }
        await t.beat("w1", **told)
        (seen,) = await t.broker.workers()
        assert [dict(seen.queues), list(seen.tasks), seen.running, seen.memory] == list(told.values())


@tests_take(Contract.harness)
class OutageContract(Contract):
    """A late worker rescues no jobs: after an outage of the store, no worker may count as dead."""

    async def two_workers(self, t: Harness) -> list[Job]:
        """Register w1, which runs the job `a`, and w2, which runs nothing."""
        claimed = await t.run(job("a"))
        await t.beat("w2")
        return claimed

    async def test_after_an_outage_everybody_keeps_what_it_ran(self, t: Harness) -> None:
        (claimed,) = await self.two_workers(t)
        await t.lapse(1.25)
        for worker in ("w2", "w1", "w2"):
            notices = await t.beat(worker)
            assert (notices.lapsed, list(notices.lost_workers), notices.suspects) == (False, [], False)
        found = await t.job("a")
        assert (found.status, found.attempt, found.crashes) == (TaskStatus.RUNNING, 1, 0)
        assert sorted(info.id for info in await t.broker.workers()) == ["w1", "w2"]
        assert await t.settle(Outcome.succeed(claimed, 1)) == [True]

    async def test_who_is_not_back_one_lease_after_an_outage_is_dead(self, t: Harness) -> None:
        await self.two_workers(t)
        await t.lapse(1.25)
        assert list((await t.beat("w2")).lost_workers) == []
        for _ in range(2):
            await t.lapse(0.45)
            assert list((await t.beat("w2")).lost_workers) == []
            assert await t.claim_ids(worker="w2") == []
        await t.lapse(0.2)
        assert list((await t.beat("w2")).lost_workers) == ["w1"]
        assert await t.endings("a") == [(1, "crash")]
        assert (await t.beat("w1")).lapsed

    async def test_a_claim_after_an_outage_rescues_nobody(self, t: Harness) -> None:
        await self.two_workers(t)
        await t.lapse(1.25)
        assert await t.claim_ids(worker="w2") == []
        await t.beat("w2")
        assert await t.claim_ids(worker="w2") == []
        assert not (await t.beat("w1")).lapsed
        assert await t.statuses("a") == ["running"]

    async def test_an_outage_that_only_one_lease_outlives(self, t: Harness) -> None:
        """Two workers send heartbeats at different times, so an outage can end only one of their leases."""
        await self.two_workers(t)
        for before, after in ((0.3, 0.9), (0.9, 0.2)):
            await t.lapse(before)
            await t.beat("w2")
            await t.lapse(after)
            assert await t.claim_ids(worker="w2") == []
            assert list((await t.beat("w2")).lost_workers) == []
            assert await t.claim_ids(worker="w2") == []
            assert not (await t.beat("w1")).lapsed
            assert await t.statuses("a") == ["running"]

    async def test_a_fresh_lease_is_given_once(self, t: Harness) -> None:
        """Otherwise a worker that is sometimes late would keep the leases of dead workers alive."""
        await self.two_workers(t)
        for _ in range(2):
            await t.lapse(1.25)
            assert list((await t.beat("w2")).lost_workers) == []
            assert await t.claim_ids(worker="w2") == []
        await t.lapse(0.3)
        assert list((await t.beat("w2")).lost_workers) == ["w1"]

    async def test_a_heartbeat_earns_the_next_fresh_lease(self, t: Harness) -> None:
        """Repeated outages must not fail a job as if it had killed its workers."""
        await self.two_workers(t)
        for _ in range(MAX_CRASHES + 1):
            await t.lapse(1.25)
            for worker in ("w2", "w1"):
                notices = await t.beat(worker)
                assert (notices.lapsed, list(notices.lost_workers)) == (False, [])
        found = await t.job("a")
        assert (found.status, found.attempt, found.crashes) == (TaskStatus.RUNNING, 1, 0)

    async def test_a_new_worker_rescues_at_once(self, t: Harness) -> None:
        """If all other workers have died, a new worker does not wait for another lease."""
        await self.two_workers(t)
        await t.lapse(1.25)
        assert sorted((await t.beat("w3")).lost_workers) == ["w1", "w2"]
        assert await t.claim_ids(worker="w3") == ["a"]

    async def test_who_was_taken_for_dead_rescues_nobody_when_it_is_back(self, t: Harness) -> None:
        await self.two_workers(t)
        await t.beat("w3")
        await t.crash("w2", seen_by="w3")
        await t.beat("w3", lease=0)
        await t.beat("w1")
        assert await t.claim_ids(worker="w1") == ["a"]
        await t.lapse(1.25)
        assert (await t.beat("w2")).lapsed
        notices = await t.beat("w1")
        assert (notices.lapsed, list(notices.lost_workers)) == (False, [])
        assert await t.statuses("a") == ["running"]

    async def test_a_repeated_heartbeat_still_tells_of_the_lapse(self, t: Harness) -> None:
        """The answer to the first was lost. Without the report, the worker would continue jobs that others now run."""
        await t.run(job("a"))
        before = t.worker("w1")
        await t.crash("w1", seen_by="w2")
        assert (await t.beat_as(before)).lapsed
        assert (await t.beat("w1")).lapsed
        assert not (await t.beat("w1")).lapsed

    async def test_a_repeated_first_heartbeat_tells_of_no_lapse(self, t: Harness) -> None:
        await t.beat_as(t.worker("w1"))
        assert not (await t.beat("w1")).lapsed
        assert not (await t.beat("w1")).lapsed

    async def test_progress_of_an_attempt_that_is_over_is_dropped(self, t: Harness) -> None:
        (first,) = await t.run(job("a"))
        assert await t.settle(Outcome.report(first, 1, Progress(1))) == [True]
        await t.crash("w1", seen_by="w2")
        assert await t.settle(Outcome.report(first, 1, Progress(2))) == [False]
        assert (await t.job("a")).progress is None
        (second,) = await t.claim(worker="w2")
        assert await t.settle(Outcome.report(first, 1, Progress(3))) == [False]
        assert (await t.job("a")).progress is None
        assert await t.settle(Outcome.report(second, 2, Progress(4))) == [True]
        assert await t.settle(Outcome.report(first, 1, Progress(5))) == [False]
        assert (await t.job("a")).progress == Progress(4)


LIFETIME = 10  # steps from the start of a worker to its end
START = 2  # steps that its start takes
CAPACITY = 4
JOBS = 30
KILLER = "job07"


@dataclasses.dataclass
class KilledWorker:
    """One worker between two kills."""

    name: str
    turns: Turns
    age: int = 0
    running: dict[str, tuple[Job, int]] = dataclasses.field(default_factory=dict)  # with the number of remaining steps

    @property
    def is_over(self) -> bool:
        return self.age >= LIFETIME or KILLER in self.running


class RepeatedKills:
    """Workers that are killed and replaced again and again, and their jobs."""

    def __init__(self, t: Harness, *, workers: int) -> None:
        self.t = t
        self.clock = ManualClock()  # the clock of the workers, which does not move while leases end
        self.names = (f"w{number}" for number in itertools.count(1))
        self.workers = [self.new_worker(age=-3 * number) for number in range(workers)]
        self.kills = 0

    def new_worker(self, age: int = 0) -> KilledWorker:
        return KilledWorker(next(self.names), Turns(self.clock, lease=10.0), age)

    async def run(self) -> None:
        """Run until all jobs have ended. The job that kills its workers must fail, and the others succeed."""
        await self.t.push(*(job(f"job{number:02}") for number in range(JOBS)))
        while (begun := await self.jobs_begun()) < JOBS:
            assert self.kills < 20 * len(self.workers), f"{JOBS - begun} jobs have not begun"
            await self.step()
        while waiting := [found.id for found in await self.jobs() if found.status not in FINISHED]:
            assert self.kills < 60 * len(self.workers), waiting
            await self.step()
        failed = {found.id: found for found in await self.jobs() if found.status is not TaskStatus.SUCCESS}
        assert sorted(failed) == [KILLER]
        assert failed[KILLER].crashes == MAX_CRASHES

    async def jobs(self) -> list[Job]:
        return await self.t.broker.find(JobFilter(), limit=JOBS)

    async def jobs_begun(self) -> int:
        return sum(found.attempt > 0 for found in await self.jobs())

    async def step(self) -> None:
        """Let all workers run for a tenth of a second."""
        for number, worker in enumerate(self.workers):
            if worker.age >= START:
                await self.claim(worker)
                await self.work(worker)
            worker.age += 1
            if worker.is_over:
                self.kills += 1
                self.workers[number] = self.new_worker()
                await self.expire_lease(worker)
        self.clock.advance(0.1)

    async def claim(self, worker: KilledWorker) -> None:
        while len(worker.running) < CAPACITY and not any(running.crashes for running, _ in worker.running.values()):
            crashes = worker.turns.crashes("default")
            jobs = await self.t.claim(CAPACITY - len(worker.running), worker.name, crashes=crashes)
            worker.turns.note("default", jobs)
            for claimed in jobs:  # jobs take 0.1 to 0.6 s, in turn
                worker.running[claimed.id] = claimed, 1 + int(claimed.id[3:]) % 6
            if crashes and not jobs:
                return

    async def work(self, worker: KilledWorker) -> None:
        if KILLER not in worker.running:
            worker.running = {task_id: (running, left - 1) for task_id, (running, left) in worker.running.items()}
            ended = [running for running, left in worker.running.values() if left == 0]
            assert all(await self.t.settle(*(Outcome.succeed(running, 1) for running in ended)))
            worker.running = {task_id: entry for task_id, entry in worker.running.items() if entry[1] > 0}

    async def expire_lease(self, dead: KilledWorker) -> None:
        """Let the lease of a killed worker end, while the others renew theirs."""
        for share in (0.6, 0.6, 0.0):
            for worker in self.workers:
                await self.t.beat(worker.name)
            await self.t.lapse(share)


MINUTE = 1_700_000_040  # the next one after the start of the manual clock


@tests_take(Contract.harness)
class ActivityContract(Contract):
    """The activity of workers, which their heartbeats report."""

    async def test_there_is_no_activity_at_first(self, t: Harness) -> None:
        assert await t.broker.activity(0) == []

    async def test_what_an_app_does_is_counted(self, t: Harness) -> None:
        """From end to end: a worker runs jobs, and the broker learns their outcomes and durations."""
        t.clock.advance(MINUTE - t.now + 1)
        app = Flowrra(broker=t.broker, clock=t.clock)
        app.config.executor = ExecutorConfig(heartbeat=0.01, lease=60)
        fails = iter((True, False))

        @app.task(name="good")
        async def good() -> None:
            t.clock.advance(3)

        @app.task(name="bad", max_retries=1, retry_delay=0)
        async def bad() -> None:
            raise ValueError

        @app.task(name="shaky", retry_delay=0)
        async def shaky() -> None:
            if next(fails):
                raise ValueError

        async with app:
            waits = await good.options(delay=1).submit()  # a claim that is already waiting cannot take it
            t.clock.advance(3)
            await t.broker.set_queue("default", paused=False)  # wakes the worker
            await app.wait_for_result(waits, timeout=SOON)
            for task in (bad, shaky):
                await app.wait_for_result(await app.submit(task), timeout=SOON)
            rows, totals = await self.told(t, 5), await t.broker.totals()
        by_task = {one.task: (one.minute, one.succeeded, one.failed, one.retried) for one in rows}
        assert by_task == {"good": (MINUTE, 1, 0, 0), "bad": (MINUTE, 0, 1, 1), "shaky": (MINUTE, 1, 0, 1)}
        assert totals == [dataclasses.replace(one, minute=0) for one in sorted(rows, key=lambda one: one.task)]
        (told,) = (one for one in rows if one.task == "good")
        assert (round(told.waited), round(told.ran)) == (2, 3)
        assert (told.waits, told.runs) == ({length_bucket(2): 1}, {length_bucket(3): 1})
        assert 1.5 < (quantile(told.runs, 0.5) or 0) <= 3.3

    async def told(self, t: Harness, attempts: int) -> list[Activity]:
        """Wait until this number of attempts was reported, and return the activity."""
        async with asyncio.timeout(SOON):
            for pause in itertools.repeat(0.005):
                rows = await t.broker.activity(0)
                if sum(one.succeeded + one.failed + one.retried for one in rows) >= attempts:
                    return rows
                await asyncio.sleep(pause)
        raise AssertionError("the pauses never end")

    async def test_rows_are_summed_over_workers(self, t: Harness) -> None:
        one, two = row(0, "a", 1, runs={0: 1, 34: 2}), row(0, "a", 2, failed=1, retried=3, runs={34: 1})
        await t.tell(one, row(0, "b", 5, waits={3: 5}), row(60, "a", 7))
        await t.tell(two, worker="w2")
        both = row(0, "a", 3, failed=1, retried=3, runs={0: 1, 34: 3})
        assert await t.broker.activity(MINUTE) == [both, row(0, "b", 5, waits={3: 5}), row(60, "a", 7)]
        assert await t.broker.activity(MINUTE + 60) == [row(60, "a", 7)]
        assert await t.broker.activity(MINUTE + 61) == []

    async def test_a_repeated_heartbeat_doubles_nothing(self, t: Harness) -> None:
        for _ in range(2):
            await t.tell(row(0, "a", 1), row(60, "a", 2))
        await t.tell(row(60, "a", 5), row(60, "b", 1))
        await t.tell()
        expected = [row(0, "a", 1), row(60, "a", 5), row(60, "b", 1)]
        assert await t.broker.activity(0) == expected

    async def test_activity_outlives_its_worker(self, t: Harness) -> None:
        await t.tell(row(0, "a", 1))
        await t.tell(row(60, "a", 2), lease=0)
        assert await t.broker.workers() == []
        assert await t.broker.activity(0) == [row(0, "a", 1), row(60, "a", 2)]

    async def test_activity_is_kept_for_a_day(self, t: Harness) -> None:
        await t.tell(row(0, "a", 1), row(120, "a", 2))
        t.clock.advance(MINUTE - t.now + 86_400 + 90)
        await t.tell(row(86_460, "a", 3))
        assert await t.broker.activity(0) == [row(120, "a", 2), row(86_460, "a", 3)]

    async def test_totals_grow_by_what_is_new(self, t: Harness) -> None:
        assert await t.broker.totals() == []
        await t.tell(row(0, "a", 1, waits={3: 1}, waited=0.5), row(60, "a", 2, runs={4: 2}, ran=0.25))
        for _ in range(2):
            await t.tell(row(60, "a", 5, failed=1, runs={4: 5, 9: 1}, ran=1.75), row(60, "b c.d", 1))
        await t.tell(row(60, "a", 1, retried=3), worker="w2")
        assert await t.broker.totals() == [
            total("a", 7, failed=1, retried=3, waits={3: 1}, waited=0.5, runs={4: 5, 9: 1}, ran=1.75),
            total("b c.d", 1),
        ]

    async def test_totals_never_fall(self, t: Harness) -> None:
        """Even if minutes are purged, and workers leave or repeat a report."""
        await t.tell(row(0, "a", 1))
        await t.tell(row(60, "a", 2), lease=0)
        t.clock.advance(MINUTE - t.now + 2 * 86_400)
        await t.tell(row(2 * 86_400, "a", 3))
        assert [one.minute for one in await t.broker.activity(0)] == [MINUTE + 2 * 86_400]
        assert await t.broker.totals() == [total("a", 6)]
        await t.tell(row(0, "a", 1))  # a worker was suspended and repeats its report
        assert await t.broker.totals() == [total("a", 6)]


def row(after: int, task: str, succeeded: int, **more: Any) -> Activity:
    """Return a row for the minute that begins `after` seconds after MINUTE."""
    made = Activity(MINUTE + after, task, succeeded, more.pop("failed", 0), more.pop("retried", 0))
    made.waits.update(more.pop("waits", {}))
    made.runs.update(more.pop("runs", {}))
    made.waited, made.ran = more.pop("waited", 0.0), more.pop("ran", 0.0)
    assert not more
    return made


def total(task: str, succeeded: int, **more: Any) -> Activity:
    """Return a row of the totals."""
    return dataclasses.replace(row(0, task, succeeded, **more), minute=0)
