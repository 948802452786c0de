"""The contract: push, claim and settle."""

import asyncio
import itertools
import sys
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from typing import Any

from flowrra import (
    EVENT,
    HISTORY_LIMIT,
    TRANSITIONS,
    Attempt,
    Conflict,
    Job,
    JobFilter,
    Outcome,
    Progress,
    SerializationError,
    Step,
    TaskNotFoundError,
    TaskStatus,
    decode_arguments,
)
from flowrra_extras.contracts.harness import (
    SOON,
    Contract,
    Harness,
    for_each,
    job,
    job_in,
    outcomes_of,
    raises,
    tests_take,
)
from flowrra_extras.migrate import hold_jobs


async def most_memory(t: Harness, running: Job, name: str) -> int:
    """Return the bytes that a step takes at most while it is stored; the smallest of three steps."""
    peaks = []
    for number in range(3):
        outcome = Outcome.done(running, running.attempt, Step(f"{name} {number}", "1", t.now, t.now))
        tracemalloc.start()
        try:
            assert await t.settle(outcome) == [True]
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    return min(peaks)


@tests_take(Contract.harness)
class PushContract(Contract):
    """Pushing jobs."""

    async def test_what_is_pushed_comes_out(self, t: Harness) -> None:
        pushed = job("a", args=(1, ("x", b"y")), kwargs={"k": {2}}, priority=3, overrides={"timeout": 2.5})
        assert await t.push(pushed) == ["a"]
        (claimed,) = await t.claim()
        args, kwargs = decode_arguments(claimed)
        assert (list(args), dict(kwargs)) == ([1, ("x", b"y")], {"k": {2}})
        assert (claimed.task, claimed.queue, claimed.priority) == ("task", "default", 3)
        assert claimed.overrides == {"timeout": 2.5}
        assert claimed.submitted == t.now

    async def test_any_text_may_be_an_id(self, t: Harness) -> None:
        ids = ["plain", 'quote"d', "back\\slash", "new\nline", "ключ 🗝", "$", "a,b:c", "' OR 1=1 --", "é"]
        assert await t.push(*map(job, ids)) == ids
        for result in await t.broker.get(ids):
            assert result is not None
        jobs = await t.claim()
        assert [claimed.id for claimed in jobs] == ids
        assert all(await t.settle(*[Outcome.succeed(claimed, None) for claimed in jobs]))

    async def test_a_known_id_changes_nothing(self, t: Harness) -> None:
        await t.push(job("a", args=(1,), priority=1))
        assert await t.push(job("a", args=(2,), priority=2), job("b"), job("b", priority=9)) == ["a", "b", "b"]
        jobs = await t.claim()
        assert [(claimed.id, claimed.priority) for claimed in jobs] == [("b", 0), ("a", 1)]
        assert list(decode_arguments(jobs[1])[0]) == [1]

    async def test_a_known_id_among_others_that_are_alike(self, t: Harness) -> None:
        await t.push(job("b", args=(1,)))
        assert await t.push(job("a"), job("b", args=(2,)), job("c")) == ["a", "b", "c"]
        jobs = await t.claim()
        assert [claimed.id for claimed in jobs] == ["b", "a", "c"]
        assert list(decode_arguments(jobs[0])[0]) == [1]

    @for_each(TaskStatus)
    async def test_a_known_id_changes_nothing_in_any_state(self, t: Harness, status: TaskStatus) -> None:
        before = await job_in(t, status)
        assert await t.push(job(before.id, args=(2,))) == [before.id]
        assert await t.job(before.id) == before

    async def test_a_unique_key_gives_the_unfinished_job(self, t: Harness) -> None:
        await t.push(job("a", unique="key"))
        assert await t.push(job("b", unique="key"), job("c", unique="other")) == ["a", "c"]
        assert await t.push(job("d", unique="new"), job("e", unique="new")) == ["d", "d"]
        assert await t.find() == ["d", "c", "a"]

    @for_each(TaskStatus)
    async def test_a_unique_key_is_taken_in_every_unfinished_state(self, t: Harness, status: TaskStatus) -> None:
        held = await job_in(t, status, unique="key")
        assert await t.push(job("new", unique="key")) == ["new" if status.is_finished else held.id]

    async def test_a_requeue_needs_the_unique_key(self, t: Harness) -> None:
        held = await job_in(t, TaskStatus.FAILED, unique="key")
        await t.push(job("new", unique="key"))
        before = await t.job(held.id)
        assert await t.requeue(held.id) == [False]
        assert await t.job(held.id) == before
        await t.cancel("new")
        assert await t.requeue(held.id) == [True]
        assert await t.push(job("newer", unique="key")) == [held.id]

    async def test_a_push_is_all_or_none(self, t: Harness) -> None:
        with raises(TaskNotFoundError):
            await t.push(job("a"), job("b", unique="key"), job("c", parents=("nobody",)), job("d"))
        assert await t.find() == []
        assert await t.push(job("e", unique="key")) == ["e"]

    async def test_an_argument_that_cannot_be_kept_is_refused(self, t: Harness) -> None:
        with raises(SerializationError):
            await t.push(job("a"), job("b", args=(object(),)))
        with raises(SerializationError):
            await t.push(job("a"), job("b", kwargs={"n": 10 ** sys.get_int_max_str_digits()}))
        assert await t.find() == []

    async def test_nothing_may_be_pushed(self, t: Harness) -> None:
        assert await t.push() == []

    async def test_concurrent_pushes_fail_alone(self, t: Harness) -> None:
        bad = {7, 23, 31}
        jobs = [job(f"j{n}", parents=("nobody",) if n in bad else ()) for n in range(40)]
        done = await asyncio.gather(*map(t.push, jobs), return_exceptions=True)
        assert {n for n, ids in enumerate(done) if isinstance(ids, TaskNotFoundError)} == bad
        assert set(await t.find()) == {f"j{n}" for n in range(40) if n not in bad}


@tests_take(Contract.harness)
class ClaimContract(Contract):
    """Claiming jobs."""

    async def test_order_is_by_priority_then_submission(self, t: Harness) -> None:
        await t.push(job("c"), job("d"), job("b", priority=-1), job("f", priority=7))
        await t.push(job("a", priority=-2), job("e"))
        assert await t.claim_ids(limit=4) == ["a", "b", "c", "d"]
        assert await t.claim_ids(limit=4) == ["e", "f"]
        assert await t.claim_ids() == []

    async def test_what_expires_ends_at_the_moment_of_the_claim(self, t: Harness) -> None:
        await t.push(job("a", expires=t.now + 2))
        await t.broker.set_queue("paused", paused=True)
        await t.beat()
        t.clock.advance(2)
        await t.claim(queue="paused")
        assert await t.claim() == []  # at the same moment as the other one
        found = await t.job("a")
        assert (found.status, found.finished) == (TaskStatus.CANCELLED, t.now)

    async def test_order_is_that_of_submission_over_calls(self, t: Harness) -> None:
        await t.push(job("a"), job("b"), job("c"))
        await t.push(job("d"))
        assert await t.find() == ["d", "c", "b", "a"]
        assert await t.claim_ids() == ["a", "b", "c", "d"]

    async def test_order_is_that_of_submission_also_in_one_call(self, t: Harness) -> None:
        kinds: Sequence[dict[str, Any]] = ({}, {"task": "other"}, {"unique": "k"}, {}, {"expires": t.now + 99})
        ids = [f"j{n}" for n in range(len(kinds))]
        await t.push(*[job(task_id, **kind) for task_id, kind in zip(ids, kinds, strict=True)])
        assert await t.find() == ids[::-1]
        assert await t.claim_ids() == ids

    async def test_a_claimed_job_is_running(self, t: Harness) -> None:
        t.clock.advance(5)
        (claimed,) = await t.run(job("a"))
        kept = await t.job("a")
        for seen in (claimed, kept):
            assert seen.status is TaskStatus.RUNNING
            assert (seen.attempt, seen.worker, seen.started) == (1, "w1", t.now)
        assert kept.attempts == (Attempt(1, "w1", t.now, None, "running"),)

    async def test_a_job_is_given_out_once(self, t: Harness) -> None:
        await t.push(*[job(f"j{n}") for n in range(20)])
        await t.beat("w1")
        await t.beat("w2")
        claims = await asyncio.gather(*[t.claim_ids(3, f"w{n % 2 + 1}") for n in range(10)])
        ids = list(itertools.chain(*claims))
        assert len(ids) == len(set(ids)) == 20

    async def test_queues_are_apart(self, t: Harness) -> None:
        await t.push(job("a"), job("b", queue="other"))
        assert await t.claim_ids(queue="other") == ["b"]
        assert await t.claim_ids(queue="nobody's") == []
        assert await t.claim_ids() == ["a"]

    async def test_a_job_waits_for_its_moment(self, t: Harness) -> None:
        await t.push(job("later", due=t.now + 60), job("past", due=t.now - 1), job("sooner", due=t.now + 30))
        assert await t.statuses("later", "past", "sooner") == ["scheduled", "pending", "scheduled"]
        assert (await t.job("later")).due == t.now + 60
        assert await t.claim_ids() == ["past"]
        t.clock.advance(29)
        await t.beat()
        assert await t.claim_ids() == []
        t.clock.advance(1)
        assert await t.claim_ids() == ["sooner"]

    async def test_what_has_come_due_has_its_old_place(self, t: Harness) -> None:
        await t.push(job("a", due=t.now + 1), job("b"), job("c", due=t.now + 1, priority=-1))
        t.clock.advance(2)
        assert await t.claim_ids() == ["c", "a", "b"]

    async def test_a_claim_needs_a_lease(self, t: Harness) -> None:
        await t.push(job("a"))
        assert await t.broker.claim("default", limit=1, worker="nobody", now=t.now) == []
        await t.beat("w1")
        await t.lapse()
        assert await t.claim_ids(worker="w1") == []
        await t.beat("w1")
        assert await t.claim_ids(worker="w1") == ["a"]

    async def test_a_worker_that_left_gets_nothing(self, t: Harness) -> None:
        await t.beat("w1")
        await t.beat("w1", lease=0)
        await t.push(job("a"))
        assert await t.claim_ids(worker="w1") == []

    async def test_a_paused_queue_gives_nothing(self, t: Harness) -> None:
        (running,) = await t.run(job("running"))
        await t.push(job("a"), job("b", queue="other"))
        await t.broker.set_queue("default", paused=True)
        await t.broker.set_queue("default", paused=True)
        assert await t.broker.paused() == {"default"}
        assert set((await t.beat()).paused) == {"default"}
        assert await t.claim_ids() == []
        assert await t.claim_ids(queue="other") == ["b"]
        assert await t.settle(Outcome.succeed(running, 1)) == [True]
        await t.broker.set_queue("default", paused=False)
        assert await t.broker.paused() == set()
        assert set((await t.beat()).paused) == set()
        assert await t.claim_ids() == ["a"]

    async def test_what_has_expired_is_cancelled(self, t: Harness) -> None:
        soon = t.now + 5
        await t.push(job("ready", expires=soon), job("due", expires=soon, due=t.now + 60), job("parent"))
        await t.push(job("child", parents=("parent",), expires=soon), job("long", expires=t.now + 6))
        await t.push(job("grandchild", parents=("child",)))
        t.clock.advance(5)
        assert await t.claim_ids() == ["parent", "long"]
        assert await t.statuses("ready", "due", "child", "grandchild") == ["cancelled"] * 4
        ready = await t.job("ready")
        assert "expired" in (ready.error or "")
        assert (ready.attempts, ready.finished) == ((), t.now)

    async def test_a_job_that_has_begun_does_not_expire(self, t: Harness) -> None:
        (claimed,) = await t.run(job("a", expires=t.now + 5))
        await t.settle(Outcome.release(claimed, "later"))
        t.clock.advance(6)
        assert await t.claim_ids() == ["a"]

    @for_each((None, 1))
    async def test_a_job_that_was_handed_back_untouched_still_expires(self, t: Harness, due: Any) -> None:
        (claimed,) = await t.run(job("a", expires=t.now + 5))
        later = None if due is None else t.now + due
        assert await t.settle(Outcome.release(claimed, "it never began", later, begun=False)) == [True]
        t.clock.advance(6)
        await t.beat()
        assert (await t.claim_ids(), await t.statuses("a")) == ([], ["cancelled"])

    @for_each(outcomes_of()[2:4])  # a retry, a release
    async def test_it_may_begin_before_it_expires_after_all(self, t: Harness, back: Any) -> None:
        (claimed,) = await t.run(job("a", expires=t.now + 5))
        await t.settle(Outcome.release(claimed, "it never began", begun=False))
        (claimed,) = await t.claim()
        await t.settle(back(claimed, t.now))
        t.clock.advance(6)
        await t.beat()
        assert await t.claim_ids() == ["a"]

    @for_each((True, False))
    async def test_a_job_whose_worker_died_does_not_expire(self, t: Harness, leaves: Any) -> None:
        """Because its attempt may have started."""
        await t.run(job("a", expires=t.now + 5))
        await (t.beat("w1", lease=0) if leaves else t.crash("w1", seen_by="w2"))
        t.clock.advance(6)
        await t.beat("w2")
        assert await t.claim_ids(worker="w2") == ["a"]

    async def test_many_that_expire_or_come_due_at_once(self, t: Harness) -> None:
        """With more jobs than one claim processes, no expired job is claimed, and all of them end soon."""
        many = 2_500
        await t.push(*[job(f"stale {n}", expires=t.now + 5) for n in range(many)], job("fresh"))
        await t.push(*[job(f"due {n}", due=t.now + 5, queue="other") for n in range(many)])
        t.clock.advance(6)
        await t.beat()
        claimed: list[str] = []
        async with asyncio.timeout(SOON):
            while len(claimed) < 1 + many:
                claimed += await t.claim_ids() + await t.claim_ids(many, queue="other")
                await asyncio.sleep(0)
        assert Counter(claimed) == Counter(["fresh", *(f"due {n}" for n in range(many))])
        async with asyncio.timeout(SOON):
            while (await t.broker.counts()).get(("default", TaskStatus.CANCELLED)) != many:
                await t.claim()
                await asyncio.sleep(0)


async def come_due(t: Harness, _: Job) -> None:
    t.clock.advance(61)
    await t.beat()
    await t.claim(queue="another")  # a claim promotes the jobs of all queues


async def succeed_parent(t: Harness, _: Job) -> None:
    (parent,) = await t.claim(queue="parents")
    await t.settle(Outcome.succeed(parent, 1))


def claim(t: Harness, _: Job) -> Any:
    return t.claim()


def cancel(t: Harness, job: Job) -> Any:
    return t.cancel(job.id)


def requeue(t: Harness, job: Job) -> Any:
    return t.requeue(job.id)


def postpone(t: Harness, before: Job) -> Any:
    return t.push(job("later", unique=before.unique, due=t.now + 60, conflict=Conflict("postpone")))


def hold(t: Harness, job: Job) -> Any:
    return hold_jobs(t.broker, [job.id], by="a move", now=t.now)


async def emit(t: Harness, job: Job) -> None:
    assert await t.broker.change([job.id], "emit", now=t.now, by="1") == [True]


SETTLES = [lambda t, job, make=make: t.settle(make(job, t.now)) for make in outcomes_of()]
MOVES: Sequence[Any] = (claim, cancel, requeue, *SETTLES)
# The first state of a job, its fields (numbers are seconds from now), and the calls that follow.
WAYS: Sequence[Any] = (
    *((TaskStatus.SCHEDULED, {}, move) for move in (come_due, hold, cancel)),
    (TaskStatus.SCHEDULED, {"task": EVENT}, emit),
    *((TaskStatus.RETRYING, {}, move) for move in (come_due, hold, cancel)),
    *((TaskStatus.PENDING, {}, move) for move in (claim, hold, cancel)),
    (TaskStatus.PENDING, {"unique": "k"}, postpone),
    *((TaskStatus.RUNNING, {}, settle) for settle in SETTLES),
    (TaskStatus.BLOCKED, {}, succeed_parent),
    (TaskStatus.BLOCKED, {"due": 60}, succeed_parent),
    (TaskStatus.BLOCKED, {}, cancel, requeue),
    (TaskStatus.CANCELLED, {}, requeue),
    (TaskStatus.FAILED, {}, requeue),
)


@tests_take(Contract.harness)
class SettleContract(Contract):
    """Settling attempts."""

    async def test_success(self, t: Harness) -> None:
        (claimed,) = await t.run(job("a"))
        started = t.now
        t.clock.advance(2)
        assert await t.settle(Outcome.succeed(claimed, {"n": (1, 2)})) == [True]
        (result,) = await t.broker.get(["a"])
        assert result is not None
        assert result.is_success
        assert result.is_finished
        assert result.result == {"n": (1, 2)}
        assert (result.error, result.traceback, result.attempts) == (None, None, 1)
        assert (result.task_id, result.task, result.submitted) == ("a", "task", started)
        assert (result.started, result.finished) == (started, t.now)
        assert (await t.job("a")).attempts == (Attempt(1, "w1", started, t.now, "success"),)

    async def test_results_go_to_their_jobs(self, t: Harness) -> None:
        jobs = await t.run(*[job(f"j{n}") for n in range(30)])
        outcomes = [Outcome.succeed(claimed, n, keep=n % 3) for n, claimed in enumerate(jobs)]
        settled = await asyncio.gather(*[t.settle(outcome) for outcome in outcomes[:10]])
        assert [*itertools.chain(*settled), *await t.settle(*outcomes[10:])] == [True] * 30
        results = await t.broker.get([f"j{n}" for n in range(30)])
        assert [result and result.result for result in results] == list(range(30))

    async def test_failure(self, t: Harness) -> None:
        (claimed,) = await t.run(job("a"))
        assert await t.settle(Outcome.fail(claimed, "boom", "line 1")) == [True]
        failed = await t.job("a")
        assert (failed.status, failed.error, failed.traceback) == (TaskStatus.FAILED, "boom", "line 1")
        assert (failed.failures, failed.crashes, failed.finished) == (1, 0, t.now)
        assert failed.attempts == (Attempt(1, "w1", t.now, t.now, "failure", "boom", "line 1"),)

    async def test_retry(self, t: Harness) -> None:
        (first,) = await t.run(job("a"))
        assert await t.settle(Outcome.retry_at(first, t.now + 10, "boom", "line 1")) == [True]
        waiting = await t.job("a")
        assert (waiting.status, waiting.due, waiting.failures) == (TaskStatus.RETRYING, t.now + 10, 1)
        assert (waiting.worker, waiting.started, waiting.finished) == (None, None, None)
        assert (waiting.error, waiting.traceback) == ("boom", "line 1")
        assert await t.claim() == []
        failed_at = t.now
        t.clock.advance(10)
        await t.beat()
        (second,) = await t.claim()
        assert (second.attempt, second.failures) == (2, 1)
        await t.settle(Outcome.succeed(second, None))
        done = await t.job("a")
        assert (done.error, done.traceback) == (None, None)
        assert done.attempts == (
            Attempt(1, "w1", failed_at, failed_at, "failure", "boom", "line 1"),
            Attempt(2, "w1", t.now, t.now, "success"),
        )

    async def test_release_costs_nothing(self, t: Harness) -> None:
        first, _ = await t.run(job("a"), job("b"))
        assert await t.settle(Outcome.release(first, "stopping")) == [True]
        assert await t.status("a") is TaskStatus.PENDING
        await t.push(job("c"))
        second, _ = await t.claim()
        assert (second.id, second.attempt, second.failures, second.crashes) == ("a", 2, 0, 0)
        await t.settle(Outcome.release(second, "unknown task", due=t.now + 15, begun=False))
        waiting = await t.job("a")
        assert (waiting.status, waiting.due, waiting.error) == (TaskStatus.SCHEDULED, t.now + 15, "unknown task")
        assert await t.endings("a") == [(1, "release"), (2, "release")]
        t.clock.advance(15)
        await t.beat()
        assert await t.claim_ids() == ["a"]

    async def test_an_attempt_ends_though_it_has_just_told_of_its_progress(self, t: Harness) -> None:
        a, b, c = await t.run(job("a"), job("b"), job("c"))
        told = [Outcome.report(one, 1, Progress(1)) for one in (a, b, c)]
        ends = [Outcome.succeed(a, 1), Outcome.fail(b, "boom"), Outcome.retry_at(c, t.now + 60, "again")]
        assert (await t.settle(*told, *ends))[3:] == [True] * 3
        assert await t.statuses("a", "b", "c") == ["success", "failed", "retrying"]
        assert await t.settle(*told) == [False] * 3

    async def test_the_steps_of_a_job_are_kept_by_its_attempt_alone(self, t: Harness) -> None:
        one, two, three = (Step(name, '{"$":"tuple","v":["é\\u0000"]}', t.now, t.now + 1) for name in "123")
        first, other = await t.run(job("a"), job("b"))
        assert await t.settle(Outcome.done(first, 1, one), Outcome.done(first, 1, two)) == [True, True]
        assert await t.settle(Outcome.done(first, 1, one)) == [True]  # repeated, because its answer was lost
        assert await t.settle(Outcome.report(first, 1, Progress(1)), Outcome.succeed(other, 1)) == [True, True]
        assert (await t.job("a")).steps == (one, two)
        assert await t.settle(Outcome.retry_at(first, t.now, "boom")) == [True]
        assert await t.settle(Outcome.done(first, 1, three)) == [False]
        (second,) = await t.claim()
        assert (second.attempt, second.steps) == (2, (one, two))
        assert await t.settle(Outcome.done(first, 1, three), Outcome.done(second, 2, three)) == [False, True]
        await t.settle(Outcome.fail(second, "boom"))
        assert await t.settle(Outcome.done(second, 2, Step("late", "1", 0.0, 0.0))) == [False]
        assert await t.broker.requeue(["a"], now=t.now) == [True]
        (third,) = await t.claim()
        await t.settle(Outcome.succeed(third, 1))
        assert third.steps == (await t.job("a")).steps == (one, two, three)
        assert (await t.job("b")).steps == ()

    async def test_steps_keep_their_order_and_go_with_their_job(self, t: Harness) -> None:
        """A step replaces the one of its name, as each place of a cursor does. A later job of that id has none."""
        steps = [Step(f"step {number}", str(number), t.now, t.now) for number in range(200)]
        (first,) = await t.run(job("a"))
        await t.settle(*(Outcome.done(first, 1, step) for step in steps))
        steps[7] = Step("step 7", "77", t.now + 1, t.now + 2)
        assert await t.settle(Outcome.done(first, 1, steps[7])) == [True]
        await t.settle(Outcome.retry_at(first, t.now, "boom"))
        (second,) = await t.claim()
        assert second.steps == (await t.job("a")).steps == tuple(steps)
        await t.settle(Outcome.succeed(second, 1))
        assert await t.broker.delete(["a"]) == [True]
        (new,) = await t.run(job("a"))
        assert await t.settle(Outcome.done(second, 2, steps[0])) == [False]
        await t.settle(Outcome.retry_at(new, t.now, "boom"))
        (again,) = await t.claim()
        assert again.steps == (await t.job("a")).steps == ()

    async def test_a_step_takes_no_more_memory_after_many_steps(self, t: Harness) -> None:
        """So the broker neither reads nor sends the earlier ones: those are two megabytes here."""
        (running,) = await t.run(job("a"))
        few = await most_memory(t, running, "early")
        await t.settle(*(Outcome.done(running, 1, Step(f"step {n}", f'"{n:010000}"', 0.0, 0.0)) for n in range(200)))
        many = await most_memory(t, running, "late")
        assert many < few + 100_000, (few, many)

    async def test_no_attempt_starts_before_its_job_was_submitted(self, t: Harness) -> None:
        """Even if the clock of the worker is behind."""
        await t.broker.push([job("a"), job("b")], now=t.now + 5)
        await t.beat()
        for claimed in await t.claim():
            assert claimed.started == claimed.submitted == t.now + 5
            assert (await t.job(claimed.id)).started == t.now + 5

    async def test_a_snooze_uses_up_nothing_and_forgets_the_expiry(self, t: Harness) -> None:
        (first,) = await t.run(job("a", expires=t.now + 5))
        assert await t.settle(Outcome.release(first, "429", t.now + 60)) == [True]
        waiting = await t.job("a")
        assert (waiting.status, waiting.due, waiting.error) == (TaskStatus.SCHEDULED, t.now + 60, "429")
        t.clock.advance(60)
        await t.beat()
        (second,) = await t.claim()
        assert (second.attempt, second.failures, second.crashes) == (2, 0, 0)
        await t.settle(Outcome.succeed(second, 1))
        assert await t.endings("a") == [(1, "snooze"), (2, "success")]

    async def test_cancel(self, t: Harness) -> None:
        (claimed,) = await t.run(job("a"))
        assert await t.settle(Outcome.cancel(claimed, "asked to")) == [True]
        assert (await t.job("a")).error == "asked to"
        assert await t.endings("a") == [(1, "cancel")]

    async def test_a_doubled_outcome_is_refused(self, t: Harness) -> None:
        a, b, c = await t.run(job("a"), job("b"), job("c"))
        twice = [Outcome.succeed(a, 1), Outcome.succeed(a, 2), Outcome.fail(b, "boom"), Outcome.succeed(c, 3)]
        assert await t.settle(*twice, Outcome.fail(b, "bang")) == [True, False, True, True, False]
        assert await t.settle(Outcome.succeed(a, 4), Outcome.fail(c, "late")) == [False, False]
        results = await t.broker.get(["a", "b", "c"])
        assert [(result.result, result.error) for result in results if result] == [(1, None), (None, "boom"), (3, None)]

    @for_each(range(len(outcomes_of())))
    async def test_of_several_endings_in_one_call_the_first_counts(self, t: Harness, first: Any) -> None:
        (a, b) = await t.run(job("a"), job("b"))
        made = [make(a, t.now) for make in outcomes_of()]
        made = [*made[first:], *made[:first]]
        others = [Outcome.succeed(b, 1), Outcome.fail(b, "late")]
        assert await t.settle(others[0], *made, others[1]) == [True, True, *[False] * len(made)]
        assert (await t.job("a")).status is made[0].status
        assert [ending for _, ending in await t.endings("a")] == [made[0].ending]

    async def test_a_job_that_was_due_before_is_ready_at_the_next_claim(self, t: Harness) -> None:
        past = t.now - 5
        await t.push(job("new", due=past), job("released"), job("retried"), job("child", due=past, parents=("new",)))
        assert (await t.job("new")).due == past
        new, released, retried = await t.claim()
        assert new.due == past
        again = [Outcome.release(released, "why", due=past), Outcome.retry_at(retried, past, "boom")]
        assert all(await t.settle(Outcome.succeed(new, 1), *again))
        assert await t.statuses("released", "retried", "child") == ["scheduled", "retrying", "pending"]
        assert [(await t.job(task_id)).due for task_id in ("released", "retried", "child")] == [past] * 3
        assert await t.claim_ids() == ["released", "retried", "child"]

    async def test_a_place_in_the_queue_goes_with_its_job(self, t: Harness) -> None:
        await t.push(job("a", priority=-1), job("due", due=t.now + 1), job("stale", expires=t.now + 1))
        for task_id in ("a", "due", "stale"):
            await t.cancel(task_id)
        assert await t.broker.delete(["a", "due", "stale"]) == [True] * 3
        await t.push(job("b"), job("a"), job("due", due=t.now + 9), job("stale", expires=t.now + 9))
        t.clock.advance(1)
        assert await t.claim_ids() == ["b", "a", "stale"]

    @for_each(outcomes_of())
    async def test_a_late_outcome_is_refused(self, t: Harness, make: Any) -> None:
        """The fencing token: an attempt that lost its job cannot overwrite a newer attempt."""
        (first,) = await t.run(job("a"))
        late = make(first, t.now)
        await t.settle(Outcome.release(first, "stopping"))
        (second,) = await t.claim()
        running = await t.job("a")
        assert await t.settle(late) == [False]
        assert await t.job("a") == running
        assert await t.settle(Outcome.succeed(second, "mine"), late) == [True, False]
        assert (await t.job("a")).result == "mine"

    async def test_unknown_jobs_are_refused(self, t: Harness) -> None:
        stranger = job("a", attempt=1, seq=1, status=TaskStatus.RUNNING)
        outcomes = [make(stranger, t.now) for make in outcomes_of()]
        assert await t.settle(*outcomes) == [False] * len(outcomes)
        assert await t.settle() == []

    async def test_a_late_outcome_of_a_purged_job_hits_no_other(self, t: Harness) -> None:
        (old,) = await t.run(job("old"))
        await t.crash("w1", seen_by="w2")
        (again,) = await t.claim(worker="w2")
        await t.settle(Outcome.succeed(again, 1, keep=0))
        assert await t.broker.purge(t.now + 1, 10) == 1
        await t.push(job("new"))
        (new,) = await t.claim(worker="w2")
        assert await t.settle(Outcome.succeed(old, "late")) == [False]
        assert await t.status("new") is TaskStatus.RUNNING
        assert await t.settle(Outcome.succeed(new, "mine")) == [True]

    @for_each(("a", "b"), (True, False), outcomes_of())
    async def test_a_late_outcome_of_a_deleted_job_hits_no_other(
        self, t: Harness, name: Any, leaves: Any, make: Any
    ) -> None:
        """Neither a job with the same id, queue and attempt, nor a job that the store might put in the same place."""
        (old,) = await t.run(job("a"))
        late = make(old, t.now)
        await (t.beat("w1", lease=0) if leaves else t.crash("w1", seen_by="w2"))
        assert await t.cancel("a") is True
        assert await t.broker.delete(["a"]) == [True]
        await t.push(job(name))
        await t.beat("w1")
        (new,) = await t.claim(worker="w1")
        assert (new.id, new.attempt) == (name, old.attempt)
        before = await t.job(name)
        assert await t.settle(late) == [False]
        assert await t.job(name) == before
        assert await t.settle(late, Outcome.succeed(new, "mine")) == [False, True]

    async def test_the_history_is_bounded(self, t: Harness) -> None:
        await t.push(job("a"))
        for n in range(1, HISTORY_LIMIT + 6):
            (claimed,) = await t.claim()
            await t.settle(Outcome.release(claimed, f"release {n}"))
        numbers = [attempt.number for attempt in (await t.job("a")).history]
        assert numbers == list(range(6, HISTORY_LIMIT + 6))

    @for_each(TaskStatus, MOVES)
    async def test_no_move_but_those_of_the_table(self, t: Harness, status: TaskStatus, move: Any) -> None:
        """In every state, every call makes a transition of TRANSITIONS or changes nothing.

        The exception is that a cancel marks a running job.
        """
        before = await job_in(t, status)
        await move(t, before)
        after = await t.job(before.id)
        after.cancel_requested = before.cancel_requested
        assert after == before or after.status in TRANSITIONS[status], (status, move)

    async def test_every_move_of_the_table_can_be_made(self) -> None:
        made = set()
        for first, fields, *moves in WAYS:
            async with self.harness() as t:
                await job_in(t, first, **{n: t.now + one if isinstance(one, int) else one for n, one in fields.items()})
                for move in moves:
                    before = await t.job("a")
                    await move(t, before)
                    made.add((before.status, await t.status("a")))
                    there_are = await t.broker.find(JobFilter())
                    assert await t.broker.counts() == Counter((job.queue, job.status) for job in there_are)
        by_limits = {(TaskStatus.RUNNING, TaskStatus.BLOCKED)}  # see ConcurrencyContract
        assert made == {(one, target) for one, targets in TRANSITIONS.items() for target in targets} - by_limits

    @for_each(set(TaskStatus) - {TaskStatus.RUNNING})
    async def test_only_a_running_job_can_be_settled(self, t: Harness, status: TaskStatus) -> None:
        before = await job_in(t, status)
        outcomes = [make(before, t.now) for make in outcomes_of()]
        assert await t.settle(*outcomes) == [False] * len(outcomes)
        assert await t.job(before.id) == before
