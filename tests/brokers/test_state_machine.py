"""Each broker against a small model of what a broker is, driven at random.

The model is a dictionary of jobs and knows nothing of heaps, statements or groups: what it says
follows from the docstrings of the protocol. Claims, answers, states and fencing must agree.
"""

import asyncio
import os
import tempfile
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from flowrra import (
    FINISHED,
    MAX_CRASHES,
    Broker,
    Job,
    JobFilter,
    Limit,
    MemoryBroker,
    Outcome,
    SQLiteBroker,
    Step,
    WorkerInfo,
)
from flowrra_extras.migrate import hold_jobs, unhold_jobs
from flowrra_extras.testing import ManualClock

T = TypeVar("T")
LEASE = 10.0
KEEP = 100.0  # seconds that a settled job is kept
QUEUES = ("default", "other")
WORKERS = ("w1", "w2")
IDS = tuple("abcdef")
KEYS = ("k", "l")


@dataclass
class Known:
    """A job as the model knows it."""

    id: str
    queue: str
    priority: int
    seq: int
    unique: str | None
    parents: tuple[str, ...]
    key: str | None = None  # if it has one, it has the limit as well: one at a time
    status: str = "pending"
    asks: bool = False  # blocked, as it waits for its limit
    due: float | None = None
    expires: float | None = None
    attempt: int = 0
    failures: int = 0
    crashes: int = 0
    worker: str | None = None
    held: bool = False
    asked_to_end: bool = False
    purge_at: float | None = None
    steps: dict[str, Step] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        return self.status in FINISHED


@dataclass
class Model:
    """What a broker is."""

    retention: float
    jobs: dict[str, Known] = field(default_factory=dict)
    leases: dict[str, float] = field(default_factory=dict)
    heard: dict[str, float] = field(default_factory=dict)  # when a worker's latest heartbeat came
    seen: set[str] = field(default_factory=set)  # workers that have had a heartbeat at any time
    paused: set[str] = field(default_factory=set)
    paused_keys: set[str] = field(default_factory=set)
    submitted: int = 0

    def push(self, new: Known, now: float) -> str:
        if new.id in self.jobs:
            return new.id
        for old in self.jobs.values():
            if new.unique is not None and old.unique == new.unique and not old.finished:
                return old.id
        self.submitted += 1
        new.seq = self.submitted
        self.jobs[new.id] = new
        self.settle_waiting(new, now)
        return new.id

    def make_ready(self, job: Known) -> None:
        job.status, job.asks = ("pending", False) if job.key is None else ("blocked", True)

    def admit(self) -> None:
        """Let the first of each key run, if none of the key does."""
        for key in KEYS:
            mine = [job for job in self.jobs.values() if job.key == key]
            waiting = [job for job in mine if job.status == "blocked" and job.asks]
            is_free = key not in self.paused_keys and not any(job.status in ("pending", "running") for job in mine)
            if is_free and waiting:
                first = min(waiting, key=lambda job: (job.priority, job.seq))
                first.status, first.asks = "pending", False

    def settle_waiting(self, job: Known, now: float) -> None:
        """Put a job that is not running where it belongs."""
        states = [self.jobs[parent].status for parent in job.parents if parent in self.jobs]
        if "failed" in states or "cancelled" in states:
            self.finish(job, "cancelled", now)
        elif any(state != "success" for state in states):
            job.status, job.asks = "blocked", False
        elif job.due is not None and job.due > now:
            job.status = "scheduled"
        else:
            self.make_ready(job)

    def finish(self, job: Known, status: str, now: float, keep: float | None = None) -> None:
        job.status, job.held = status, False
        job.purge_at = now + (self.retention if keep is None else keep)
        for child in list(self.jobs.values()):
            if child.status == "blocked" and not child.held and not child.asks and job.id in child.parents:
                self.settle_waiting(child, now)

    def put_back(self, job: Known, status: str, due: float | None, now: float, *, begun: bool = True) -> None:
        job.worker, job.status, job.due = None, status, due
        if status == "pending":
            self.make_ready(job)
        job.expires = None if begun else job.expires
        if job.asked_to_end:
            self.finish(job, "cancelled", now)

    def held(self, worker: str) -> list[Known]:
        return [job for job in self.jobs.values() if job.status == "running" and job.worker == worker]

    def rescue(self, now: float, clock: float, by: str, *, beats: bool) -> list[str]:
        """Who was late rescues nobody, and a claim leaves to heartbeats who got a fresh lease since its own."""
        others = {worker: until for worker, until in self.leases.items() if worker != by}
        lapsed = [worker for worker, until in others.items() if until <= clock]
        graced = {worker for worker, until in others.items() if until > self.heard[worker] + LEASE}
        is_late = by in self.leases and self.leases[by] - LEASE / 4 <= clock
        lost = lapsed
        if by in self.seen:
            is_judge = by in self.leases and not is_late
            lost = [worker for worker in lapsed if is_judge and self.heard[by] >= others[worker] - LEASE / 2]
        doubtful = [worker for worker, until in others.items() if until - LEASE / 2 <= clock] if is_late else lapsed
        for worker in doubtful:
            if beats and worker not in graced and worker not in lost:
                self.leases[worker] = clock + LEASE
        lost = [worker for worker in lost if beats or worker not in graced]
        for worker in lost:
            del self.leases[worker]
            for job in self.held(worker):
                job.crashes += 1
                self.put_back(job, "pending", None, now)
                if job.crashes >= MAX_CRASHES and not job.finished:
                    self.finish(job, "failed", now)
        return lost

    def promote(self, now: float) -> None:
        for job in self.jobs.values():
            if job.status in ("scheduled", "retrying") and job.due is not None and job.due <= now:
                self.make_ready(job)
        self.admit()

    def expire(self, now: float) -> None:
        for job in self.jobs.values():
            waits = job.status in ("scheduled", "blocked", "pending")
            if waits and job.expires is not None and job.expires <= now:
                self.finish(job, "cancelled", now)

    def claim(self, queue: str, limit: int, worker: str, now: float, crashes: int) -> list[str]:
        held = self.held(worker)
        if queue in self.paused or any(job.crashes for job in held):
            return []
        ready = [job for job in self.jobs.values() if job.status == "pending" and job.queue == queue]
        ready.sort(key=lambda job: (job.priority, job.seq))
        suspects = sorted((job for job in ready if 0 < job.crashes <= crashes), key=lambda job: -job.crashes)
        chosen = suspects[:1] if suspects and not held else [job for job in ready if not job.crashes][:limit]
        for job in chosen:
            job.status, job.worker, job.attempt = "running", worker, job.attempt + 1
        return [job.id for job in chosen]

    def requeue(self, job: Known, now: float) -> bool:
        if job.status not in ("failed", "cancelled"):
            return False
        states = [self.jobs[parent].status for parent in job.parents if parent in self.jobs]
        if "failed" in states or "cancelled" in states:
            return False
        others = (old for old in self.jobs.values() if old is not job and not old.finished)
        if job.unique is not None and any(old.unique == job.unique for old in others):
            return False
        job.failures = job.crashes = 0
        job.due = job.expires = job.worker = job.purge_at = None
        job.asked_to_end = False
        self.settle_waiting(job, now)
        return True

    def let_go(self, job: Known, gone: bool, now: float) -> None:
        job.held = False
        if gone:
            del self.jobs[job.id]
        else:
            self.settle_waiting(job, now)

    def purge(self, before: float) -> int:
        gone = [job.id for job in self.jobs.values() if job.purge_at is not None and job.purge_at < before]
        for task_id in gone:
            del self.jobs[task_id]
        return len(gone)


PUSH: dict[str, Any] = {
    "task_id": st.sampled_from(IDS),
    "queue": st.sampled_from(QUEUES),
    "priority": st.integers(-1, 1),
    "delay": st.sampled_from((None, None, -1, 0, 3, 30)),
    "life": st.sampled_from((None, None, None, 2, 20)),
    "unique": st.sampled_from((None, None, "k1", "k2")),
    "parents": st.one_of(st.just(set()), st.sets(st.sampled_from(IDS), max_size=2)),
    "key": st.sampled_from((None, *KEYS)),
}
CLAIM: dict[str, Any] = {
    "queue": st.sampled_from(QUEUES),
    "limit": st.integers(1, 4),
    "worker": st.sampled_from(WORKERS),
    "fresh": st.sampled_from((True, True, True, False)),
    "crashes": st.sampled_from((0, 1, 1, MAX_CRASHES - 1, MAX_CRASHES - 1)),
}
SETTLE: dict[str, Any] = {
    "picks": st.lists(st.integers(0, 1_000), min_size=1, max_size=3),
    "ending": st.sampled_from(
        (
            "succeed",
            "succeed",
            "fail",
            "retry",
            "retry now",
            "release",
            "release later",
            "release untouched",
            "cancel",
            "step",
        )
    ),
}
CALLS = st.one_of(
    st.tuples(st.just("push"), st.fixed_dictionaries(PUSH)),
    st.tuples(st.just("claim"), st.fixed_dictionaries(CLAIM)),
    st.tuples(st.just("settle"), st.fixed_dictionaries(SETTLE)),
    st.tuples(st.just("crash"), st.fixed_dictionaries({"witness": st.sampled_from(WORKERS)})),
)


class BrokerMachine(RuleBasedStateMachine):
    """Does the same to a broker and to the model, and compares. It owns the loop that the broker lives on."""

    make_broker: Callable[[Path, ManualClock], Broker]
    always_promotes = True  # also in a claim that may take nothing

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.loop = asyncio.new_event_loop()
        self.clock = ManualClock()
        self.broker = type(self).make_broker(Path(self.folder.name), self.clock)
        self.model = Model(self.broker.retention.failed_ttl)
        self.infos = {name: WorkerInfo(name, "host", os.getpid(), queues=dict.fromkeys(QUEUES, 9)) for name in WORKERS}
        # Every attempt that was ever handed out, also those that are over, and the job of the model that it was of.
        self.claimed: list[tuple[Job, Known]] = []
        self.run(self.broker.open())
        self.run(self.broker.set_limit(Limit(name="api", concurrency=1), now=self.now))

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(call)

    def teardown(self) -> None:
        self.run(self.broker.close())
        self.run(self.loop.shutdown_default_executor())
        self.loop.close()
        self.folder.cleanup()

    @property
    def now(self) -> float:
        return self.clock.time()

    @initialize(calls=st.lists(CALLS, min_size=5, max_size=40))
    def start(self, calls: list[tuple[str, dict[str, Any]]]) -> None:
        """A life with all the usual events. Hypothesis switches rules off, so that few runs would have one."""
        for method, arguments in calls:
            if method != "settle" or self.claimed:
                getattr(self, method)(**arguments)
                self.states_agree()

    @rule(**PUSH)
    def push(
        self,
        task_id: str,
        queue: str,
        priority: int,
        delay: float | None,
        life: float | None,
        unique: str | None,
        parents: set[str],
        key: str | None,
    ) -> None:
        known = tuple(sorted(parent for parent in parents if parent in self.model.jobs and parent != task_id))
        due = None if delay is None else self.now + delay
        expires = None if life is None else self.now + life
        new = Known(task_id, queue, priority, 0, unique, known, key, due=due, expires=expires)
        job = Job(task_id, "task", queue=queue, priority=priority, due=due, expires=expires, unique=unique)
        job.parents, job.key, job.limit = known, key, None if key is None else "api"
        assert self.run(self.broker.push([job], now=self.now)) == [self.model.push(new, self.now)]
        self.model.admit()

    @rule(**CLAIM)
    def claim(self, queue: str, limit: int, worker: str, fresh: bool, crashes: int) -> None:
        if fresh:
            self.beat(worker)
        jobs = self.run(self.broker.claim(queue, limit=limit, worker=worker, now=self.now, crashes=crashes))
        expected: list[str] = []
        may = self.has_lease(worker) and queue not in self.model.paused
        if may or self.always_promotes:
            self.model.promote(self.now)
        if may:
            self.model.rescue(self.now, self.clock.monotonic(), worker, beats=False)
            self.model.expire(self.now)
            self.model.admit()
            expected = self.model.claim(queue, limit, worker, self.now, crashes)
        assert [job.id for job in jobs] == expected
        for job in jobs:
            known = self.model.jobs[job.id]
            assert (job.attempt, job.failures, job.crashes) == (known.attempt, known.failures, known.crashes)
            assert job.steps == tuple(known.steps.values())
            self.claimed.append((job, known))

    def has_lease(self, worker: str) -> bool:
        return self.model.leases.get(worker, 0.0) > self.clock.monotonic()

    @precondition(lambda self: self.claimed)
    @rule(**SETTLE)
    def settle(self, picks: list[int], ending: str) -> None:
        """Settle some attempts, the latest ones most of the time; many are over, and some come twice."""
        chosen = [self.claimed[-1 - pick % min(len(self.claimed), 6)] for pick in picks]
        outcomes = [self.outcome(job, ending) for job, _ in chosen]
        expected = [self.settle_in_model(o, known) for o, (_, known) in zip(outcomes, chosen, strict=True)]
        assert self.run(self.broker.settle(outcomes, now=self.now)) == expected
        self.model.admit()

    def outcome(self, job: Job, ending: str) -> Outcome:
        match ending:
            case "succeed":
                return Outcome.succeed(job, job.attempt, keep=KEEP)
            case "fail":
                return Outcome.fail(job, "boom")
            case "retry" | "retry now":
                return Outcome.retry_at(job, self.now + (3 if ending == "retry" else -1_000), "boom")
            case "release" | "release later":
                return Outcome.release(job, "why", None if ending == "release" else self.now + 3)
            case "release untouched":
                return Outcome.release(job, "why", begun=False)
            case "step":
                step = Step(f"step {self.now % 3}", f"{job.attempt}", self.now, self.now)
                return Outcome.done(job, job.attempt, step)
        return Outcome.cancel(job, "why")

    def settle_in_model(self, outcome: Outcome, job: Known) -> bool:
        is_there = self.model.jobs.get(job.id) is job  # else it was deleted, and another may have its id
        if not is_there or job.status != "running" or job.attempt != outcome.attempt:
            return False
        if outcome.step is not None:
            job.steps[outcome.step.name] = outcome.step
            return True
        job.failures += outcome.ending == "failure"
        if outcome.status in FINISHED:
            self.model.finish(job, str(outcome.status), self.now, outcome.keep)
        else:
            job.crashes = max(0, job.crashes - (outcome.ending in ("failure", "snooze")))
            self.model.put_back(job, str(outcome.status), outcome.due, self.now, begun=outcome.begun)
        return True

    @rule(worker=st.sampled_from(WORKERS))
    def beat(self, worker: str) -> None:
        notices = self.run(self.broker.heartbeat(self.infos[worker], lease=LEASE, now=self.now))
        known = worker in self.model.leases or worker not in self.model.seen
        lost = self.model.rescue(self.now, self.clock.monotonic(), worker, beats=True)
        self.model.heard[worker] = self.clock.monotonic()
        self.model.leases[worker] = self.clock.monotonic() + LEASE
        self.model.seen.add(worker)
        self.model.admit()
        assert notices.lapsed is not known
        assert sorted(notices.lost_workers) == sorted(lost)
        held = self.model.held(worker)
        assert sorted(notices.cancelled) == sorted(job.id for job in held if job.asked_to_end)
        assert set(notices.paused) == self.model.paused
        jobs = [job for job in self.model.jobs.values() if job.queue not in self.model.paused]
        suspects = [job for job in jobs if job.crashes and self.expected(job)[1] == "pending"]
        ready = min((job.crashes for job in suspects), default=0)
        sure = min((job.crashes for job in suspects if job.status == "pending"), default=0)
        assert min(ready, sure) <= notices.suspects <= max(ready, sure)

    @rule(worker=st.sampled_from(WORKERS))
    def leave(self, worker: str) -> None:
        self.run(self.broker.heartbeat(self.infos[worker], lease=0, now=self.now))
        self.model.leases.pop(worker, None)
        for job in self.model.held(worker):
            self.model.put_back(job, "pending", None, self.now)
        self.model.admit()

    @rule(seconds=st.sampled_from((1, 1, 2, 4, 4, 11, 40)))
    def advance(self, seconds: float) -> None:
        self.let_pass(seconds)

    def let_pass(self, seconds: float) -> None:
        """Let time pass; where leases run on the store's clock, there too."""
        self.clock.advance(seconds)

    @rule(witness=st.sampled_from(WORKERS))
    def crash(self, witness: str) -> None:
        """The other worker falls silent for longer than its lease, and this one sees it."""
        for _ in range(2):
            self.beat(witness)
            self.let_pass(0.6 * LEASE)
        self.beat(witness)

    @rule(seconds=st.sampled_from((-5, 5)))
    def jump(self, seconds: float) -> None:
        self.clock.jump_wall(seconds)

    @rule(task_id=st.sampled_from(IDS))
    def cancel(self, task_id: str) -> None:
        job = self.model.jobs.get(task_id)
        may = job is not None and not job.finished
        if job is not None and may:
            if job.status == "running":
                job.asked_to_end = True
            else:
                self.model.finish(job, "cancelled", self.now)
        assert self.run(self.broker.cancel(task_id, now=self.now)) is may
        self.model.admit()

    @rule(task_ids=st.lists(st.sampled_from(IDS), min_size=1, max_size=3))
    def requeue(self, task_ids: list[str]) -> None:
        known = [self.model.jobs.get(task_id) for task_id in task_ids]
        expected = [job is not None and self.model.requeue(job, self.now) for job in known]
        assert self.run(self.broker.requeue(task_ids, now=self.now)) == expected
        self.model.admit()

    @rule(task_ids=st.sets(st.sampled_from(IDS), min_size=1))
    def hold(self, task_ids: set[str]) -> None:
        ids = sorted(task_ids)
        jobs = [self.model.jobs.get(task_id) for task_id in ids]
        may = [job is not None and job.status != "running" and not job.finished for job in jobs]
        for job in jobs:
            if job is not None and job.status != "running" and not job.finished:
                job.status, job.held, job.asks = "blocked", True, False
        assert self.run(hold_jobs(self.broker, ids, by="move", now=self.now)) == may
        self.model.admit()

    @rule(task_id=st.sampled_from(IDS), gone=st.booleans())
    def let_go(self, task_id: str, gone: bool) -> None:
        job = self.model.jobs.get(task_id)
        left = any(task_id in child.parents and not child.held for child in self.model.jobs.values())
        gone = gone and not left  # a family leaves as a whole
        is_held = job is not None and job.held
        assert self.run(unhold_jobs(self.broker, [task_id], by="move", gone=gone, now=self.now)) == [is_held]
        if job is not None and is_held:
            self.model.let_go(job, gone, self.now)
            self.model.admit()

    @rule(task_ids=st.sets(st.sampled_from(IDS), min_size=1, max_size=3))
    def delete(self, task_ids: set[str]) -> None:
        known = [self.model.jobs.get(task_id) for task_id in task_ids]
        expected = [job is not None and job.finished for job in known]
        gone = {job.id for job in known if job is not None and job.finished}
        self.model.jobs = {task_id: job for task_id, job in self.model.jobs.items() if task_id not in gone}
        assert self.run(self.broker.delete(list(task_ids))) == expected

    @rule(queue=st.sampled_from(QUEUES), paused=st.sampled_from((False, False, False, True)))
    def pause(self, queue: str, paused: bool) -> None:
        (self.model.paused.add if paused else self.model.paused.discard)(queue)
        self.run(self.broker.set_queue(queue, paused=paused))

    @rule(key=st.sampled_from(KEYS), paused=st.sampled_from((False, False, True)))
    def pause_key(self, key: str, paused: bool) -> None:
        changes = (key in self.model.paused_keys) is not paused
        (self.model.paused_keys.add if paused else self.model.paused_keys.discard)(key)
        for job in self.model.jobs.values():
            if paused and job.key == key and job.status == "pending":
                self.model.make_ready(job)
        self.model.admit()
        call = self.broker.change([f"api:{key}"], "pause" if paused else "resume", now=self.now)
        assert self.run(call) == [changes]

    @rule(ahead=st.sampled_from((0.0, KEEP, 1e6)))
    def purge(self, ahead: float) -> None:
        before = self.now + ahead
        assert self.run(self.broker.purge(before, 100)) == self.model.purge(before)

    @invariant()
    def states_agree(self) -> None:
        found = self.run(self.broker.find(JobFilter(), limit=1_000))
        jobs = sorted(self.model.jobs.values(), key=lambda job: -job.seq)
        assert [self.seen(job) for job in found] == [self.expected(job) for job in jobs]

    def seen(self, job: Job) -> tuple[Any, ...]:
        return (job.id, *self.place(str(job.status), job.due, job.worker), *self.counters(job))

    def expected(self, job: Known) -> tuple[Any, ...]:
        return (job.id, *self.place(job.status, job.due, job.worker), *self.counters(job))

    def counters(self, job: Job | Known) -> tuple[Any, ...]:
        return job.attempt, job.failures, job.crashes, job.purge_at

    def place(self, status: str, due: float | None, worker: str | None) -> tuple[Any, ...]:
        """Where a job is. What is due may be promoted when the broker likes, at the latest by a claim."""
        if status in ("scheduled", "retrying"):
            return ("pending",) if due is not None and due <= self.now else (status, due)
        return (status, worker) if status == "running" else (status,)


class MemoryMachine(BrokerMachine):
    make_broker = staticmethod(lambda folder, clock: MemoryBroker(clock=clock))


class FileMachine(BrokerMachine):
    make_broker = staticmethod(lambda folder, clock: SQLiteBroker(str(folder / "jobs.db"), clock=clock))


class PrivateMachine(BrokerMachine):
    make_broker = staticmethod(lambda folder, clock: SQLiteBroker(clock=clock))


@pytest.mark.timeout(600)  # a failure is made small first, which takes its time
@pytest.mark.parametrize("machine", [MemoryMachine, FileMachine, PrivateMachine])
def test_the_broker_agrees_with_the_model(machine: type[BrokerMachine]) -> None:
    examples = 20 if machine is FileMachine else 80
    chosen = settings(
        max_examples=examples, stateful_step_count=30, suppress_health_check=[HealthCheck.too_slow], deadline=None
    )
    run_state_machine_as_test(machine, settings=chosen)
