"""A custom broker: a dictionary of jobs that follows the rules and passes the contract.

It has no index and scans its jobs; a real store has an index for each find. Values are kept as text, as in a store.

Prints:
    42
"""

import asyncio
import collections
import dataclasses
import itertools
import math
import operator
import os
from collections.abc import Collection, Sequence
from typing import Any, TypeVar

import flowrra
from flowrra import FINISHED, PENDING, RUNNING, SUCCESS, Broker, Job, JobFilter, Lease, Notices, Overview, Unit

T = TypeVar("T")


class DictBroker(Broker):
    """Jobs in a dictionary."""

    keeps_text = True
    has_limits = True

    def __init__(self, clock: flowrra.Clock | None = None) -> None:
        self.clock = clock or flowrra.Clock()
        self.hub = flowrra.WaiterHub()
        self.jobs: dict[str, Job] = {}
        self.steps: dict[str, dict[str, flowrra.Step]] = collections.defaultdict(dict)  # by job and name
        self.declared: dict[str, flowrra.Limit] = {}
        self.rows: dict[str, flowrra.LimitKey] = {}  # what is kept of limit keys besides their jobs
        self.leases: dict[str, Lease] = {}
        self.infos: dict[str, flowrra.WorkerInfo] = {}
        self.stopped: set[str] = set()
        self.endings: collections.deque[Job] = collections.deque()
        self.activities = flowrra.ActivityLog()
        self.numbers = itertools.count(1)

    async def close(self) -> None:
        self.hub.close(flowrra.BrokerError("the broker was closed"))

    # The rules: find the jobs that a walk asks for, and write its changes.

    def run(self, unit: Unit, walk: flowrra.Walk[T]) -> T:
        answer = flowrra.drive(walk, self.look)
        for placed in unit.placed:
            placed.place = next(self.numbers)
        for before, job in unit.changes():
            job.seq = next(self.numbers) if before is None else job.seq
            self.jobs[job.id] = job
            self.wake_for(job)
        for job, step in unit.steps:
            self.steps[job.id][step.name] = step
        for waiter in unit.admitted:
            job = self.jobs[waiter.id]
            flowrra.admit_one(job)
            job.place = waiter.place
            self.wake_for(job)
        self.endings += unit.endings
        self.write_limits(unit)
        return answer

    def look(self, find: flowrra.Find) -> Sequence[Any]:
        match find:
            case flowrra.LimitKeys(names):
                return [self.state(name) for name in names]
            case flowrra.WaitingFor(most):
                jobs = (job for name, number in most.items() for job in self.waiting(name)[:number])
                return list(map(flowrra.LimitWaiter.of, jobs))
            case flowrra.DueKeys(now, limit):
                return [name for name, row in self.rows.items() if row.due is not None and row.due <= now][:limit]
        return [job for job in self.jobs.values() if self.fits(find, job)]

    def fits(self, find: flowrra.Find, job: Job) -> bool:
        match find:
            case flowrra.Jobs(ids):
                return job.id in ids
            case flowrra.Children(parents):
                return job.status is flowrra.BLOCKED and not set(parents).isdisjoint(job.parents)
            case flowrra.Holders(keys):
                return job.unique in keys and job.status not in FINISHED
            case flowrra.Running(workers):
                return job.worker in workers and job.status is RUNNING
            case flowrra.EventWaiters(events):
                return any(job.id in self.steps[event] for event in events)
            case flowrra.Expired(now, _):
                return flowrra.is_expired(job, now)
            case flowrra.Admitted(names):
                return job.status is PENDING and job.limit is not None and flowrra.limit_key(job) in names
        return False

    def waiting(self, name: str) -> list[Job]:
        jobs = [job for job in self.jobs.values() if flowrra.awaits_limit(job) and flowrra.limit_key(job) == name]
        return sorted(jobs, key=operator.attrgetter("priority", "seq"))

    def state(self, name: str) -> flowrra.LimitKey:
        mine = [job.status for job in self.jobs.values() if job.limit is not None and flowrra.limit_key(job) == name]
        row = self.rows.get(name, flowrra.LimitKey(name))
        limit = self.declared.get(flowrra.split_limit_key(name)[0])
        counts = mine.count(RUNNING), mine.count(PENDING), bool(self.waiting(name))
        return flowrra.LimitKey(name, limit, *counts, *row.row)

    def write_limits(self, unit: Unit) -> None:
        for limit in unit.limits:
            self.declared[limit.name] = limit
            for name in {flowrra.limit_key(job) for job in self.jobs.values() if job.limit == limit.name}:
                if self.waiting(name):
                    self.rows[name] = dataclasses.replace(self.state(name), due=unit.now)
            self.hub.wake_all("queue")
        self.rows |= {state.name: state for state in unit.changed_keys()}
        for queue in unit.timed:
            self.hub.wake(("queue", queue))

    def wake_for(self, job: Job) -> None:
        if job.status in FINISHED:
            self.hub.wake(("job", job.id))
        elif job.status is RUNNING and job.cancel_requested:
            self.hub.wake(("worker", ""))
        elif job.status is not flowrra.BLOCKED:
            self.hub.wake(("queue", job.queue))

    # Push, claim, settle, change and remove jobs.

    async def push(self, jobs: Sequence[Job], *, now: float, by: str | None = None) -> list[str]:
        for job in jobs:
            job.payload, job.args, job.kwargs = flowrra.encode_arguments(job), (), {}
        unit = Unit(now, self.retention)
        jobs = list(map(flowrra.copy_of, jobs))
        return self.run(unit, flowrra.push(unit, jobs) if by is None else flowrra.adopt(unit, jobs, by))

    async def claim(
        self, queue: str, *, limit: int, worker: str, now: float, crashes: int = flowrra.LAST_CHANCE
    ) -> list[Job]:
        promoted = [job for job in self.jobs.values() if flowrra.promote_one(job, now)]
        for job in promoted:
            self.wake_for(job)
        unit = Unit(now, self.retention, (flowrra.limit_key(job) for job in promoted if job.limit is not None))
        self.run(unit, flowrra.admit_due(unit, flowrra.UPKEEP_STEP))
        lease = self.leases.get(worker)
        if queue in self.stopped or lease is None or lease.until <= self.clock.monotonic():
            return []
        self.rescue_dead(worker, now, beats=False)
        unit = Unit(now, self.retention)
        self.run(unit, flowrra.expire(unit, flowrra.UPKEEP_STEP))
        held = [job.crashes for job in self.jobs.values() if job.worker == worker and job.status is RUNNING]
        if any(held):
            return []  # this worker runs a suspect, and a suspect runs alone
        ready = sorted(self.ready(queue), key=operator.attrgetter("priority", "place", "seq"))
        suspects = sorted((job for job in ready if 0 < job.crashes <= crashes), key=lambda job: -job.crashes)
        taken = suspects[:1] if suspects and not held else [job for job in ready if not job.crashes][:limit]
        started = [job for job in taken if flowrra.start(job, worker, now)]
        unit = Unit(now, self.retention)
        self.run(unit, flowrra.charge(unit, [flowrra.limit_key(job) for job in started if job.limit is not None]))
        return list(map(self.copied, started))

    def ready(self, queue: str) -> list[Job]:
        return [job for job in self.jobs.values() if job.queue == queue and job.status is PENDING]

    async def settle(self, outcomes: Sequence[flowrra.Outcome], *, now: float) -> list[bool]:
        for outcome in outcomes:
            if outcome.status is SUCCESS and outcome.text is None:
                outcome.text = flowrra.encode_value(outcome)
            if outcome.text is not None:
                outcome.result = flowrra.decode(outcome.text)
        unit = Unit(now, self.retention)
        return self.run(unit, flowrra.settle(unit, outcomes))

    async def change(
        self, task_ids: Sequence[str], action: flowrra.Action, *, now: float, by: str | None = None
    ) -> list[bool]:
        unit = Unit(now, self.retention)
        return self.run(unit, flowrra.change(unit, task_ids, action, flowrra.emitted(action, by)))

    async def remove(
        self, task_ids: Sequence[str] = (), *, by: str | None = None, before: float | None = None, limit: int = 1000
    ) -> Collection[str]:
        jobs = [self.jobs[task_id] for task_id in task_ids if task_id in self.jobs]
        if before is not None:
            over = [job for job in self.jobs.values() if (job.purge_at or math.inf) < before]
            jobs = sorted(over, key=operator.attrgetter("purge_at"))[:limit]
            self.rows = {name: row for name, row in self.rows.items() if row.due or row.paused or row.tat > before}
        gone = [job.id for job in jobs if (job.status in FINISHED if by is None else flowrra.is_held(job, by))]
        for task_id in gone:
            del self.jobs[task_id]
            self.steps.pop(task_id, None)
            self.hub.wake(("job", task_id))
        return gone

    # Workers and leases.

    async def heartbeat(self, worker: flowrra.WorkerInfo, *, lease: float, now: float) -> Notices:
        self.activities.add(worker, now)
        if lease <= 0:
            self.remove_worker(worker.id, now, crashed=False)
            return Notices()
        lost = self.rescue_dead(worker.id, now, beats=True, is_new=not worker.term)
        term = self.infos[worker.id].term if worker.id in self.infos else os.urandom(4).hex()
        lapsed = worker.term not in ("", term)
        worker.seen, worker.term = now, term
        self.infos[worker.id], self.leases[worker.id] = worker, Lease(self.clock.monotonic() + lease, lease)
        mine = [job for job in self.jobs.values() if job.worker == worker.id and job.status is RUNNING]
        waiting = [job.crashes for q in worker.queues if q not in self.stopped for job in self.ready(q) if job.crashes]
        endings = [self.endings.popleft() for _ in range(len(self.endings))]
        cancelled = [job.id for job in mine if job.cancel_requested]
        return Notices(cancelled, lapsed, set(self.stopped), min(waiting, default=0), lost, endings)

    def rescue_dead(self, by: str, now: float, *, beats: bool, is_new: bool = False) -> list[str]:
        clock = self.clock.monotonic()
        late = {w: one for w, one in self.leases.items() if one.until - one.length / 2 <= clock and w != by}
        late = {w: one for w, one in late.items() if beats or not one.graced}
        dead, fresh = flowrra.judge_leases(late, self.leases.get(by), clock, is_new=is_new)
        for name in fresh if beats else ():
            self.leases[name] = Lease(clock + late[name].length, late[name].length, graced=True)
        for name in dead:
            self.remove_worker(name, now, crashed=True)
        return dead

    def remove_worker(self, name: str, now: float, *, crashed: bool) -> None:
        unit = Unit(now, self.retention)
        self.run(unit, flowrra.rescue(unit, [name], crashed=crashed))
        self.infos.pop(name, None)
        self.leases.pop(name, None)

    async def set_queue(self, queue: str, *, paused: bool) -> None:
        (self.stopped.add if paused else self.stopped.discard)(flowrra.check_queue(queue))
        self.hub.wake(("queue", queue))
        self.hub.wake(("worker", ""))

    # Wait and find.

    async def wait(self, topics: Sequence[flowrra.Topic], timeout: float | None) -> None:
        later = [job.due or 0.0 for job in self.jobs.values() if job.status in (flowrra.SCHEDULED, flowrra.RETRYING)]
        later += [row.due for row in self.rows.values() if row.due is not None]
        if later and topics[0][0] == "queue":
            timeout = min(math.inf if timeout is None else timeout, min(later) - self.clock.time())
        for kind, name in topics:
            if kind == "job" and (name not in self.jobs or self.jobs[name].status in flowrra.FINISHED):
                return
        for topic in topics:
            self.hub.look(topic)  # there is no await between a claim and its wait, so no wake-up is lost
        await self.hub.wait(topics, timeout)

    async def find(
        self, which: JobFilter, *, limit: int = 100, after: int | None = None, oldest_first: bool = False
    ) -> list[Job]:
        behind = operator.gt if oldest_first else operator.lt
        jobs = [job for job in self.jobs.values() if which.matches(job) and (after is None or behind(job.seq, after))]
        jobs.sort(key=operator.attrgetter("seq"), reverse=not oldest_first)
        return [self.copied(job) for job in jobs[:limit]]

    def copied(self, job: Job) -> Job:
        job = flowrra.copy_of(job)
        job.result = flowrra.decode(flowrra.encode(job.result))
        job.steps = tuple(self.steps[job.id].values())
        return job

    async def limit_states(self, names: Sequence[str]) -> list[flowrra.LimitKey]:
        return [self.state(name) for name in names]

    async def limits(self) -> list[flowrra.LimitUse]:
        names = {flowrra.limit_key(job) for job in self.jobs.values() if job.limit and job.status not in FINISHED}
        states = [(self.state(name), len(self.waiting(name))) for name in sorted(names | self.rows.keys())]
        rows = [(state.name, state.running, state.pending, waiting, state.paused) for state, waiting in states]
        return flowrra.uses_of(self.declared.values(), rows)

    async def counts(self, which: JobFilter | None = None) -> dict[tuple[str, flowrra.TaskStatus], int]:
        which = which or JobFilter()
        return dict(collections.Counter((j.queue, j.status) for j in self.jobs.values() if which.matches(j)))

    async def overview(self, since: float | None = None) -> Overview:
        clock = self.clock.monotonic()
        alive = [info for name, info in self.infos.items() if self.leases[name].until > clock]
        if since is None:
            return Overview(alive, set(self.stopped), [], [])
        return Overview(alive, set(self.stopped), self.activities.since(since), self.activities.totals())

    async def record(self, results: Sequence[flowrra.TaskResult[object]]) -> None:
        for result in results:
            if result.task_id in self.jobs and self.jobs[result.task_id].queue:
                continue  # this id is a job of this broker
            job = flowrra.recorded(result, self.retention)
            job.result, job.seq = flowrra.decode(flowrra.encode(result.result)), next(self.numbers)
            self.jobs[job.id] = job
            self.hub.wake(("job", job.id))


async def main() -> None:
    app = flowrra.Flowrra(broker=DictBroker())

    @app.task
    async def double(n: int) -> int:
        return 2 * n

    async with app:
        task_id = await app.submit(double, 21)
        print((await app.wait_for_result(task_id, timeout=10)).result)


if __name__ == "__main__":
    asyncio.run(main())
