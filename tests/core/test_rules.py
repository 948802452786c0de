"""The rules alone, without a store: what may become of a job, and what a walk does to those around it."""

import dataclasses
import sys
from collections.abc import Callable, Iterable
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

import flowrra
from flowrra import FINISHED, TRANSITIONS, Attempt, BackendConfig, Job, Outcome, TaskStatus
from flowrra import copy_of as copied_job

NOW = 1_700_000_000.0
KEEP = BackendConfig()
T = TypeVar("T")

moments = st.none() | st.sampled_from([NOW - 5, NOW, NOW + 5])


@st.composite
def some_jobs(draw: st.DrawFn) -> Job:
    """A job as a store may hold it."""
    status = draw(st.sampled_from(TaskStatus))
    job = Job("a", "task", status=status, seq=draw(st.integers(1, 3)), expires=draw(moments), due=draw(moments))
    job.attempt, job.failures, job.crashes = (draw(st.integers(0, 3)) for _ in range(3))
    job.cancel_requested = draw(st.booleans())
    if status in (TaskStatus.SCHEDULED, TaskStatus.RETRYING):
        job.due = draw(st.sampled_from([NOW - 5, NOW + 5]))
    if status is TaskStatus.BLOCKED:
        job.waits, job.worker = draw(st.integers(1, 3)), draw(st.sampled_from([None, "a move"]))
    if draw(st.booleans()):
        job.limit, job.key = "api", draw(st.sampled_from([None, "k"]))
        job.waits = 0 if job.status is TaskStatus.BLOCKED and job.worker is None and draw(st.booleans()) else job.waits
    if status is TaskStatus.RUNNING or (status in FINISHED and draw(st.booleans())):
        job.attempt, job.worker, job.started = job.attempt + 1, "w", NOW - 9
    if status in FINISHED:
        job.finished, job.purge_at = NOW - 1, NOW + 9
        job.error = None if status is TaskStatus.SUCCESS else "why"
    job.history = tuple(Attempt(n, "w", NOW, NOW, "failure") for n in range(draw(st.sampled_from([0, 1, 20]))))
    return job


@st.composite
def outcomes(draw: st.DrawFn, job: Job) -> Outcome:
    old = copied_job(job)
    old.attempt += draw(st.sampled_from([0, 0, 0, -1]))
    old.seq += draw(st.sampled_from([0, 0, 0, 1]))
    return draw(
        st.sampled_from(
            [
                Outcome.succeed(old, 1),
                Outcome.fail(old, "boom"),
                Outcome.retry_at(old, NOW + 1, "boom"),
                Outcome.release(old, "later"),
                Outcome.release(old, "later", NOW + 1, begun=False),
                Outcome.cancel(old, "why"),
            ]
        )
    )


@st.composite
def moves(draw: st.DrawFn) -> tuple[Job, Job, bool]:
    """A job before and after some move, and whether it was allowed."""
    before = draw(some_jobs())
    job = copied_job(before)
    parent = Job("p", "task", status=draw(st.sampled_from(TaskStatus)))
    tried: list[Callable[[], bool]] = [
        lambda: flowrra.start(job, "w2", NOW),
        lambda: flowrra.settle_one(job, draw(outcomes(before)), NOW, KEEP),
        lambda: flowrra.rescue_one(job, NOW, KEEP, crashed=draw(st.booleans())),
        lambda: flowrra.promote_one(job, NOW),
        lambda: flowrra.expire_one(job, NOW, KEEP),
        lambda: flowrra.cancel_one(job, draw(st.sampled_from([None, "Ada"])), NOW, KEEP),
        lambda: flowrra.requeue_one(job, [parent, None], "Ada", NOW, KEEP),
        lambda: flowrra.hold_one(job, "a move"),
        lambda: flowrra.unhold_one(job, [parent], "a move", NOW, KEEP),
        lambda: flowrra.parent_ended(job, NOW),
        lambda: flowrra.parent_failed(job, parent, NOW, KEEP),
        lambda: flowrra.admit_one(job),
        lambda: flowrra.withdraw_one(job),
    ]
    return before, job, draw(st.sampled_from(tried))()


@given(moves())
def test_a_move_that_is_not_allowed_changes_nothing(move: tuple[Job, Job, bool]) -> None:
    before, after, allowed = move
    assert allowed or dataclasses.asdict(after) == dataclasses.asdict(before)


@given(moves())
def test_a_move_is_one_of_the_table(move: tuple[Job, Job, bool]) -> None:
    """Or two of them: what is requeued or released looks at once at what it waits for."""
    before, after, _ = move
    steps = TRANSITIONS[before.status]
    assert after.status in {before.status, *steps, *(two for one in steps for two in TRANSITIONS[one])}


@given(moves())
def test_what_a_job_is_stays_consistent(move: tuple[Job, Job, bool]) -> None:
    before, after, _ = move
    assert after.attempt >= before.attempt
    assert len(after.history) <= flowrra.HISTORY_LIMIT
    assert (after.finished is not None) is (after.status in FINISHED)
    assert (after.status is TaskStatus.BLOCKED) is (after.waits > 0 or flowrra.awaits_limit(after))
    assert after.status is not TaskStatus.RUNNING or (after.worker is not None and after.started is not None)
    assert after.status not in flowrra.REQUEUABLE or after.error is not None
    assert after.status not in (TaskStatus.SCHEDULED, TaskStatus.RETRYING) or after.due is not None
    if before.status is TaskStatus.RUNNING and after.status not in (TaskStatus.RUNNING, *FINISHED):
        assert after.history[-1].number == before.attempt


@given(moves())
def test_only_the_admission_makes_a_job_of_a_limit_ready(move: tuple[Job, Job, bool]) -> None:
    before, after, _ = move
    if after.limit is not None and after.status is TaskStatus.PENDING and before.status is not TaskStatus.PENDING:
        assert flowrra.awaits_limit(before)


@given(moves())
def test_an_end_is_final_but_by_hand(move: tuple[Job, Job, bool]) -> None:
    before, after, _ = move
    if before.status in FINISHED and after.status is not before.status:
        assert before.status in flowrra.REQUEUABLE
        assert (after.failures, after.crashes, after.expires, after.cancel_requested) == (0, 0, None, False)
        assert [entry for entry in after.history if entry.error == "requeued"]


# Walks over several jobs, on a store that is a dictionary ------------------------------------------


class Jar:
    """A store: jobs by id, all written when a walk has returned."""

    def __init__(self, *jobs: Job) -> None:
        self.jobs = {job.id: job for job in jobs}
        self.finds = 0

    def look(self, find: flowrra.Find) -> list[Job]:
        self.finds += 1
        if isinstance(find, flowrra.Jobs):
            return [self.jobs[task_id] for task_id in find.ids if task_id in self.jobs]
        if isinstance(find, flowrra.Children):
            return [
                job for job in self.jobs.values() if job.status is TaskStatus.BLOCKED and {*job.parents} & {*find.of}
            ]
        if isinstance(find, flowrra.Holders):
            return [job for job in self.jobs.values() if job.unique in find.keys and job.status not in FINISHED]
        if isinstance(find, flowrra.Running):
            return [
                job for job in self.jobs.values() if job.worker in find.workers and job.status is TaskStatus.RUNNING
            ]
        assert isinstance(find, flowrra.Expired)
        return [job for job in self.jobs.values() if flowrra.is_expired(job, find.now)][: find.limit]

    def run(self, walk: flowrra.Walk[T], unit: flowrra.Unit) -> T:
        answer = flowrra.drive(walk, self.look)
        for _, job in unit.changes():
            job.seq = job.seq or len(self.jobs) + 1
            self.jobs[job.id] = job
        return answer

    def push(self, *jobs: Job) -> list[str]:
        unit = flowrra.Unit(NOW, KEEP)
        return self.run(flowrra.push(unit, jobs), unit)

    def start(self, *ids: str) -> list[Job]:
        for task_id in ids:
            assert flowrra.start(self.jobs[task_id], "w", NOW)
        return [copied_job(self.jobs[task_id]) for task_id in ids]

    def settle(self, *made: Outcome) -> list[bool]:
        unit = flowrra.Unit(NOW, KEEP)
        answer = self.run(flowrra.settle(unit, made), unit)
        self.endings = [job.id for job in unit.endings]
        return answer

    def states(self, ids: Iterable[str]) -> list[str]:
        return [str(self.jobs[task_id].status) for task_id in ids]


def test_a_line_is_cancelled_in_one_find_a_generation() -> None:
    jar = Jar()
    jar.push(Job("j0", "t"), *(Job(f"j{n}", "t", parents=(f"j{n - 1}",)) for n in range(1, 50)))
    (job,) = jar.start("j0")
    jar.finds = 0
    assert jar.settle(Outcome.fail(job, "boom")) == [True]
    assert set(jar.states(f"j{n}" for n in range(1, 50))) == {"cancelled"}
    assert jar.finds == 1 + 50
    assert jar.endings == [f"j{n}" for n in range(1, 50)]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_parents_that_end_in_one_call_let_a_child_go_once(order: tuple[int, int]) -> None:
    jar = Jar()
    jar.push(Job("a", "t"), Job("b", "t"), Job("c", "t", parents=("a", "b")), Job("d", "t", parents=("c",)))
    started = jar.start("a", "b")
    assert jar.settle(*(Outcome.succeed(started[n], None) for n in order)) == [True, True]
    assert jar.states("abcd") == ["success", "success", "pending", "blocked"]


def test_the_first_end_in_a_call_is_the_one_that_counts() -> None:
    jar = Jar()
    jar.push(Job("a", "t"))
    (job,) = jar.start("a")
    assert jar.settle(Outcome.fail(job, "boom"), Outcome.succeed(job, 1)) == [True, False]
    assert jar.states("a") == ["failed"]


def test_a_unit_reads_its_own_writes() -> None:
    jar = Jar(Job("p", "t", status=TaskStatus.FAILED, error="x", finished=NOW, seq=1))
    jar.jobs["c"] = Job("c", "t", status=TaskStatus.CANCELLED, error="x", finished=NOW, parents=("p",), seq=2)
    unit = flowrra.Unit(NOW, KEEP)
    assert jar.run(flowrra.change(unit, ["c", "p", "c"], "requeue", None), unit) == [False, True, True]
    assert jar.states("pc") == ["pending", "blocked"]


def calls_to_cancel(number: int) -> int:
    """How many functions, also of C, one call passes that cancels so many jobs."""
    jar = Jar()
    ids = jar.push(*(Job(f"j{n}", "t") for n in range(number)))
    unit, calls = flowrra.Unit(NOW, KEEP), 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    sys.setprofile(count)
    try:
        assert all(jar.run(flowrra.change(unit, ids, "cancel", None), unit))
    finally:
        sys.setprofile(None)
    return calls


def test_a_cancel_costs_the_same_however_many_jobs_the_call_cancels() -> None:
    assert calls_to_cancel(400) < 4.5 * calls_to_cancel(100)


def test_a_job_under_a_move_is_not_let_go_by_its_parents() -> None:
    """It comes with one thing to wait for, its hold, however many parents it has."""
    jar = Jar()
    jar.push(Job("a", "t"))
    unit = flowrra.Unit(NOW, KEEP)
    assert jar.run(flowrra.adopt(unit, [Job("c", "t", parents=("a",))], "a move"), unit) == ["c"]
    (job,) = jar.start("a")
    jar.settle(Outcome.succeed(job, None))
    assert jar.states("c") == ["blocked"]
    unit = flowrra.Unit(NOW, KEEP)
    assert jar.run(flowrra.change(unit, ["c"], "unhold", "a move"), unit) == [True]
    assert jar.states("c") == ["pending"]


def test_one_job_that_stands_in_for_two_parents_is_waited_for_once() -> None:
    jar = Jar()
    jar.push(Job("holder", "t", unique="k"))
    jar.push(Job("a", "t", unique="k"), Job("b", "t", unique="k"), Job("c", "t", parents=("a", "b", "holder")))
    assert jar.jobs["c"].parents == ("holder",)
    (job,) = jar.start("holder")
    jar.settle(Outcome.succeed(job, None))
    assert jar.states("c") == ["pending"]


def test_no_attempt_begins_before_its_job_was_submitted() -> None:
    """As when the host that claims has a clock that is late."""
    job = Job("a", "task", submitted=10.0)
    assert flowrra.start(job, "w", 9.0)
    assert job.started == 10.0
