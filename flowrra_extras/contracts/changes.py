"""The contract: cancel, requeue and delete by hand, and jobs that a move to another store holds and adopts."""

import asyncio
import dataclasses
from typing import Any

from flowrra import (
    FINISHED,
    HISTORY_LIMIT,
    UNFINISHED,
    Attempt,
    Job,
    Outcome,
    TaskNotFoundError,
    TaskStatus,
    decode_arguments,
)
from flowrra_extras.contracts.harness import SOON, Contract, Harness, for_each, job, job_in, raises, tests_take
from flowrra_extras.migrate import adopt_jobs, hold_jobs, unhold_jobs


@tests_take(Contract.harness)
class CancelContract(Contract):
    """Cancelling and requeueing jobs."""

    @for_each((TaskStatus.SCHEDULED, TaskStatus.BLOCKED, TaskStatus.PENDING, TaskStatus.RETRYING))
    async def test_what_waits_ends_at_once(self, t: Harness, status: TaskStatus) -> None:
        await job_in(t, status)
        t.clock.advance(1)
        assert await t.cancel("a") is True
        ended = await t.job("a")
        assert (ended.status, ended.error) == (TaskStatus.CANCELLED, "it was cancelled")
        assert (ended.finished, ended.traceback) == (t.now, None)
        t.clock.advance(100)
        await t.beat()
        assert await t.claim() == []

    async def test_what_runs_is_ended_by_its_worker(self, t: Harness) -> None:
        (claimed,) = await t.run(job("a"))
        await t.beat("w2")
        assert await t.cancel("a") is True
        running = await t.job("a")
        assert (running.status, running.cancel_requested) == (TaskStatus.RUNNING, True)
        assert list((await t.beat("w2")).cancelled) == []
        assert list((await t.beat("w1")).cancelled) == ["a"]
        assert await t.settle(Outcome.cancel(claimed, "it was cancelled")) == [True]
        assert list((await t.beat("w1")).cancelled) == []

    async def test_a_worker_may_finish_before_it_hears(self, t: Harness) -> None:
        (claimed,) = await t.run(job("a"))
        await t.cancel("a")
        assert await t.settle(Outcome.succeed(claimed, 1)) == [True]
        assert await t.status("a") is TaskStatus.SUCCESS
        assert list((await t.beat("w1")).cancelled) == []

    @for_each(("retry", "release", "crash", "leave"))
    async def test_a_cancelled_job_does_not_run_again(self, t: Harness, way: str) -> None:
        """Cancel returned True, so no retry, release or crash may run the job again."""
        (claimed,) = await t.run(job("a"))
        await t.cancel("a")
        if way == "crash":
            await t.crash("w1", seen_by="w2")
            assert await t.endings("a") == [(1, "crash")]
        elif way == "leave":
            await t.beat("w1", lease=0)
            assert await t.endings("a") == [(1, "release")]
        else:
            retry = Outcome.retry_at(claimed, t.now + 1, "boom")
            assert await t.settle(retry if way == "retry" else Outcome.release(claimed, "boom", t.now + 1)) == [True]
        assert await t.status("a") is TaskStatus.CANCELLED

    @for_each(TaskStatus)
    async def test_requeue_makes_ready(self, t: Harness, status: TaskStatus) -> None:
        before = await job_in(t, status)
        may = status in (TaskStatus.FAILED, TaskStatus.CANCELLED)
        assert await t.requeue("a") == [may]
        after = await t.job("a")
        assert after.status is TaskStatus.PENDING if may else after == before

    async def test_requeue_is_now_also_for_what_was_due_later_or_expired(self, t: Harness) -> None:
        await t.push(job("later", due=t.now + 60), job("stale", expires=t.now + 1))
        await t.cancel("later")
        t.clock.advance(2)
        assert await t.claim() == []
        assert await t.requeue("later", "stale") == [True, True]
        assert await t.claim_ids() == ["later", "stale"]

    async def test_a_requeued_job_can_be_cancelled_again(self, t: Harness) -> None:
        (claimed,) = await t.run(job("a"))
        await t.cancel("a")
        await t.settle(Outcome.cancel(claimed, "it was cancelled"))
        await t.requeue("a")
        (again,) = await t.claim()
        assert list((await t.beat()).cancelled) == []
        await t.settle(Outcome.retry_at(again, t.now + 1, "boom"))
        assert await t.status("a") is TaskStatus.RETRYING
        assert await t.cancel("a") is True

    @for_each((Outcome.fail, Outcome.cancel))
    async def test_requeue_leaves_the_past_as_it_was(self, t: Harness, end: Any) -> None:
        (claimed,) = await t.run(job("a"))
        t.clock.advance(1)
        await t.settle(end(claimed, "boom"))
        before = (await t.job("a")).attempts
        t.clock.advance(100)
        await t.requeue("a")
        assert (await t.job("a")).history == before

    async def test_a_deleted_child_waits_for_nobody(self, t: Harness) -> None:
        """A new job with the id of a deleted one has its own parents."""
        parent, other = await t.run(job("parent"), job("other"))
        await t.push(job("child", parents=("parent",)))
        await t.cancel("child")
        assert await t.broker.delete(["child"]) == [True]
        await t.push(job("child", parents=("other",)))
        await t.settle(Outcome.fail(parent, "boom"))
        assert await t.statuses("child") == ["blocked"]
        await t.settle(Outcome.succeed(other, 1))
        assert await t.claim_ids() == ["child"]

    async def test_requeue_keeps_the_old_place(self, t: Harness) -> None:
        await t.push(job("a"), job("b"))
        await t.cancel("a")
        await t.requeue("a")
        assert await t.claim_ids() == ["a", "b"]


@tests_take(Contract.harness)
class DeleteContract(Contract):
    """Deleting jobs, and the record of changes by hand in the history."""

    @for_each(FINISHED)
    async def test_a_finished_job_can_be_deleted(self, t: Harness, status: TaskStatus) -> None:
        await job_in(t, status, unique="key")
        assert await t.broker.delete(["unknown", "a"]) == [False, True]
        assert await t.broker.get(["a"]) == [None]
        assert (await t.find(), await t.broker.counts()) == ([], {})
        assert await t.broker.delete(["a"]) == [False]
        assert await t.broker.purge(t.now + 1e9, 10) == 0
        assert await t.push(job("a", unique="key")) == ["a"]
        assert await t.claim_ids() == ["a"]
        assert await t.broker.delete([]) == []

    @for_each(UNFINISHED)
    async def test_an_unfinished_job_is_not_deleted(self, t: Harness, status: TaskStatus) -> None:
        before = await job_in(t, status)
        assert await t.broker.delete(["a"]) == [False]
        assert await t.job("a") == before

    @for_each((TaskStatus.SCHEDULED, TaskStatus.BLOCKED, TaskStatus.PENDING, TaskStatus.RETRYING))
    async def test_who_cancelled_and_requeued_is_noted(self, t: Harness, status: TaskStatus) -> None:
        before = await job_in(t, status)
        t.clock.advance(1)
        assert await t.broker.cancel("a", now=t.now, by="Ada") is True
        cancelled = Attempt(before.attempt, "Ada", t.now, t.now, "note", "cancelled")
        assert (await t.job("a")).attempts == (*before.attempts, cancelled)
        t.clock.advance(1)
        assert await t.broker.requeue(["a", "unknown"], now=t.now, by="Бо") == [True, False]
        requeued = Attempt(before.attempt, "Бо", t.now, t.now, "note", "requeued")
        assert (await t.job("a")).attempts == (*before.attempts, cancelled, requeued)

    async def test_a_note_stays_when_what_runs_is_cancelled(self, t: Harness) -> None:
        (claimed,) = await t.run(job("a"))
        assert await t.broker.cancel("a", now=t.now, by="Ada") is True
        await t.settle(Outcome.cancel(claimed, "it was cancelled"))
        assert sorted(await t.endings("a")) == [(1, "cancel"), (1, "note")]
        assert await t.broker.requeue(["a"], now=t.now, by="Ada") == [True]
        assert sorted(await t.endings("a")) == [(1, "cancel"), (1, "note"), (1, "note")]
        assert [again.attempt for again in await t.claim()] == [2]

    @for_each(TaskStatus, (None, "Ada"))
    async def test_what_is_refused_leaves_no_trace(self, t: Harness, status: TaskStatus, by: str | None) -> None:
        before = await job_in(t, status)
        may_cancel, may_requeue = status in UNFINISHED, status in FINISHED - {TaskStatus.SUCCESS}
        assert await t.broker.cancel("unknown", now=t.now, by=by) is False
        if not may_cancel:
            assert await t.broker.cancel("a", now=t.now, by=by) is False
        if not may_requeue:
            assert await t.broker.requeue(["a"], now=t.now, by=by) == [False]
        assert await t.job("a") == before

    async def test_notes_are_bounded_with_the_history(self, t: Harness) -> None:
        await t.push(job("a"))
        for _ in range(HISTORY_LIMIT):
            await t.broker.cancel("a", now=t.now, by="Ada")
            await t.broker.requeue(["a"], now=t.now, by="Ada")
        history = (await t.job("a")).history
        assert [note.error for note in history] == ["cancelled", "requeued"] * (HISTORY_LIMIT // 2)


MOVE = "a move"  # the name that holds jobs


async def hold(t: Harness, *task_ids: str, by: str = MOVE) -> list[bool]:
    return await hold_jobs(t.broker, task_ids, by=by, now=t.now)


async def adopt(t: Harness, *jobs: Job, by: str = MOVE) -> list[bool]:
    return await adopt_jobs(t.broker, jobs, by=by, now=t.now)


async def let_go(t: Harness, *task_ids: str, gone: bool = False, by: str = MOVE) -> list[bool]:
    return await unhold_jobs(t.broker, task_ids, by=by, gone=gone, now=t.now)


async def claim(t: Harness) -> list[Job]:
    await t.beat()  # its lease may have ended meanwhile
    return await t.claim()


async def claim_ids(t: Harness) -> list[str]:
    return [claimed.id for claimed in await claim(t)]


@tests_take(Contract.harness)
class HoldContract(Contract):
    """Holding and adopting jobs, and ending the hold."""

    @for_each(UNFINISHED - {TaskStatus.RUNNING})
    async def test_a_held_job_does_not_run_until_it_is_let_go(self, t: Harness, status: TaskStatus) -> None:
        before = await job_in(t, status, expires=None)
        assert await hold(t, "a") == [True]
        held = await t.job("a")
        assert (held.status, held.worker) == (TaskStatus.BLOCKED, MOVE)
        t.clock.advance(100)
        assert "a" not in await claim_ids(t)
        assert await let_go(t, "a") == [True]
        after = await t.job("a")
        assert after.worker is None
        assert dataclasses.replace(after, status=before.status, due=before.due) == before
        assert await claim_ids(t) == ([] if status is TaskStatus.BLOCKED else ["a"])

    async def test_a_job_that_waits_for_its_time_does_so_again(self, t: Harness) -> None:
        await t.push(job("a", due=t.now + 60))
        assert await hold(t, "a") == await let_go(t, "a") == [True]
        assert await t.statuses("a") == ["scheduled"]
        assert await claim_ids(t) == []
        t.clock.advance(61)
        assert await claim_ids(t) == ["a"]

    @for_each((*(set(TaskStatus) - UNFINISHED), TaskStatus.RUNNING))
    async def test_only_what_waits_can_be_held(self, t: Harness, status: TaskStatus) -> None:
        before = await job_in(t, status)
        assert await hold(t, "a", "nobody") == [False, False]
        assert await let_go(t, "a", gone=True) == [False]
        assert await t.job("a") == before

    async def test_a_hold_is_its_holders(self, t: Harness) -> None:
        await t.push(job("a"))
        assert await hold(t, "a") == await hold(t, "a") == [True]
        assert await hold(t, "a", by="another") == [False]
        assert await let_go(t, "a", by="another") == await let_go(t, "a", by="another", gone=True) == [False]
        assert await t.find(worker=MOVE, status=frozenset((TaskStatus.BLOCKED,))) == ["a"]
        assert await t.find(status=frozenset((TaskStatus.PENDING,))) == []
        assert await let_go(t, "a") == [True]
        assert await let_go(t, "a") == await let_go(t, "a", gone=True) == [False]
        assert await claim_ids(t) == ["a"]

    async def test_what_is_put_back_keeps_its_place(self, t: Harness) -> None:
        await t.push(job("a"), job("b"), job("c", priority=-1), job("d"))
        assert await hold(t, "d", "c", "a") == [True] * 3
        assert await let_go(t, "d", "a", "c") == [True] * 3
        assert await claim_ids(t) == ["c", "a", "b", "d"]

    async def test_what_is_gone_has_never_been(self, t: Harness) -> None:
        await t.push(job("a", unique="key"), job("b", due=t.now + 1))
        await hold(t, "a", "b")
        assert await let_go(t, "a", "b", gone=True) == [True, True]
        assert await t.find() == []
        assert await t.broker.counts() == {}
        t.clock.advance(2)
        assert await claim_ids(t) == []
        assert await t.push(job("c", unique="key"), job("a")) == ["c", "a"]
        assert await claim_ids(t) == ["c", "a"]

    async def test_who_waits_for_a_job_is_told_that_it_is_gone(self, t: Harness) -> None:
        await t.push(job("a"))
        waiting = asyncio.ensure_future(t.broker.wait_for("a", SOON))
        await asyncio.sleep(0.05)
        await hold(t, "a")
        await let_go(t, "a", gone=True)
        with raises(TaskNotFoundError):
            await waiting

    async def test_a_held_job_can_be_cancelled(self, t: Harness) -> None:
        await t.push(job("a", unique="key"), job("b", parents=("a",)))
        await hold(t, "a")
        assert await t.cancel("a")
        assert await t.statuses("a", "b") == ["cancelled"] * 2
        assert await let_go(t, "a") == await let_go(t, "a", gone=True) == [False]
        assert await t.requeue("a") == [True]
        assert await claim_ids(t) == ["a"]

    async def test_a_held_child_does_not_run_when_its_parent_succeeds(self, t: Harness) -> None:
        await t.push(job("a"), job("b", parents=("a",)))
        (parent,) = await claim(t)
        assert await hold(t, "b") == [True]
        await t.settle(Outcome.succeed(parent, 1))
        assert await claim_ids(t) == []
        assert await let_go(t, "b") == [True]
        assert await claim_ids(t) == ["b"]

    async def test_a_child_that_is_let_go_waits_for_its_parents(self, t: Harness) -> None:
        await t.push(job("a"), job("b", parents=("a",)), job("c", parents=("b",)))
        assert await hold(t, "b") == await let_go(t, "b") == [True]
        (parent,) = await claim(t)
        assert parent.id == "a"
        assert await t.statuses("b", "c") == ["blocked"] * 2
        await t.settle(Outcome.fail(parent, "boom"))
        assert await t.statuses("b", "c") == ["cancelled"] * 2

    @for_each(("bcd", "dcb"))
    async def test_children_that_are_let_go_with_their_parent_see_its_end_once(self, t: Harness, order: str) -> None:
        patient = job("d", parents=("b", "x"), tolerates=("b",))
        await t.push(job("a"), job("x"), job("b", parents=("a",)), job("c", parents=("b",)), patient)
        assert await hold(t, *order) == [True] * 3
        a, x = await claim(t)
        await t.settle(Outcome.fail(a, "boom"))
        assert await let_go(t, *order) == [True] * 3
        assert await t.statuses(*"bcd") == ["cancelled", "cancelled", "blocked"]
        await t.settle(Outcome.succeed(x, 1))
        assert await claim_ids(t) == ["d"]

    async def test_an_adopted_job_keeps_what_it_is_and_was(self, t: Harness) -> None:
        history = (Attempt(1, "w9", 5.0, 6.0, "failure", "boom", "line 1"), Attempt(2, "w9", 7.0, 8.0, "crash", "x"))
        stranger = job(
            "a", args=(1,), kwargs={"k": {2}}, queue="mail", priority=3, due=t.now + 60, expires=t.now + 90,
            unique="key", parents=("purged",), overrides={"timeout": 2.5}, submitted=4.0, attempt=2, failures=1,
            crashes=1, error="x", traceback="line 2", history=history,
        )  # fmt: skip
        assert await adopt(t, dataclasses.replace(stranger)) == [True]
        found = await t.job("a")
        assert (found.status, found.worker) == (TaskStatus.BLOCKED, MOVE)
        assert [list(decode_arguments(found)[0]), dict(decode_arguments(found)[1])] == [[1], {"k": {2}}]
        found.status, found.worker, found.seq = stranger.status, None, 0
        found.args, found.kwargs, found.payload = stranger.args, stranger.kwargs, None
        assert found == stranger
        assert await let_go(t, "a") == [True]
        t.clock.advance(61)
        await t.beat(queues={"mail": 1})
        (claimed,) = await t.claim(queue="mail")
        assert (claimed.attempt, claimed.failures, claimed.crashes) == (3, 1, 1)

    async def test_an_adopted_job_waits_as_one_that_was_pushed(self, t: Harness) -> None:
        later = job("later", due=t.now + 60)
        family = job("parent"), job("child", parents=("parent",))
        await adopt(t, job("a"), later, *family, job("old", expires=t.now - 1), job("first", priority=-1))
        assert await claim_ids(t) == []
        assert await t.find(parent="parent") == ["child"]
        assert set(await t.find(status=UNFINISHED)) == {"a", "later", "parent", "child", "first"}
        counts = {TaskStatus.BLOCKED: 5, TaskStatus.CANCELLED: 1}  # the claim has ended the expired job
        assert await t.broker.counts() == {("default", status): count for status, count in counts.items()}
        await let_go(t, "child", "parent", "first", "later", "a", "old")
        assert await t.statuses("later", "child") == ["scheduled", "blocked"]
        claimed = await claim(t)
        assert [found.id for found in claimed] == ["first", "a", "parent"]
        assert await t.statuses("old") == ["cancelled"]
        await t.settle(Outcome.succeed(claimed[2], 1))
        t.clock.advance(61)
        assert set(await claim_ids(t)) == {"later", "child"}

    async def test_an_adopted_suspect_runs_alone(self, t: Harness) -> None:
        assert await adopt(t, job("suspect", attempt=1, crashes=1), job("a")) == [True, True]
        await let_go(t, "suspect", "a")
        assert (await t.beat()).suspects
        assert await claim_ids(t) == ["suspect"]
        assert await claim_ids(t) == []

    @for_each(TaskStatus)
    async def test_a_known_id_is_not_adopted_again(self, t: Harness, status: TaskStatus) -> None:
        before = await job_in(t, status)
        assert await adopt(t, job("a", args=(2,))) == [True]
        assert await t.job("a") == before
        assert await let_go(t, "a", gone=True) == [False]

    async def test_an_unfinished_job_with_its_key_keeps_a_job_out(self, t: Harness) -> None:
        (claimed,) = await t.run(job("a", unique="key"))
        assert await adopt(t, job("b", unique="key"), job("c")) == [False, True]
        assert set(await t.find()) == {"a", "c"}
        await t.settle(Outcome.succeed(claimed, 1))
        assert await adopt(t, job("b", unique="key")) == [True]
        assert await t.push(job("d", unique="key")) == ["b"]
