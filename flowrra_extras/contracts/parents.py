"""The contract: jobs that wait for other jobs or for events, and submits with a unique key."""

import asyncio
from typing import Any

from flowrra import (
    EVENT,
    Conflict,
    FlowrraError,
    Job,
    JobFilter,
    Outcome,
    ResultOf,
    TaskNotFoundError,
    TaskStatus,
    decode_arguments,
    event_id,
)
from flowrra_extras.contracts.harness import SOON, Contract, Harness, for_each, job, raises, tests_take


@tests_take(Contract.harness)
class ParentsContract(Contract):
    """Jobs that wait for other jobs."""

    async def test_a_child_waits_for_all_its_parents(self, t: Harness) -> None:
        await t.push(job("p1"), job("p2"))
        await t.push(job("child", parents=("p1", "p2", "p1"), priority=-1))
        first, second = await t.claim()
        assert await t.status("child") is TaskStatus.BLOCKED
        await t.settle(Outcome.succeed(first, 1))
        assert (await t.statuses("child"), await t.claim()) == (["blocked"], [])
        await t.settle(Outcome.succeed(second, 1))
        (child,) = await t.claim()
        assert (child.id, child.parents) in (("child", ("p1", "p2", "p1")), ("child", ("p1", "p2")))

    async def test_a_known_key_needs_no_known_parent(self, t: Harness) -> None:
        await t.push(job("a", unique="key"))
        assert await t.push(job("b", unique="key", parents=("nobody",))) == ["a"]
        twice = job("c", unique="new"), job("d", unique="new", parents=("nobody",))
        assert await t.push(*twice, job("c", parents=("nobody",)), job("e", parents=("c",))) == ["c", "c", "c", "e"]
        assert await t.claim_ids() == ["a", "c"]
        # A push that adds nothing takes no key either.
        with raises(TaskNotFoundError):
            await t.push(job("a", unique="free"), job("f", unique="free", parents=("nobody",)))

    async def test_a_job_cannot_wait_for_itself(self, t: Harness) -> None:
        for later in ((), (job("b"),)):
            with raises(TaskNotFoundError):
                await t.push(job("a", parents=("a", *[one.id for one in later])), *later)
        assert await t.find() == []

    async def test_arguments_name_who_stands_in_for_parents(self, t: Harness) -> None:
        """Two parents have the same key, and a third one has not: the arguments name the right jobs."""
        await t.push(job("holder", unique="k"), job("c"))
        child = job("child", args=(ResultOf("a"), ResultOf("c"), [ResultOf("b")]), parents=("a", "c", "b"))
        await t.push(job("a", unique="k"), job("b", unique="k"), child)
        found = await t.job("child")
        assert found.parents == ("holder", "c")
        (one, two, (three,)), _ = decode_arguments(found)
        assert [placeholder.task_id for placeholder in (one, two, three)] == ["holder", "c", "holder"]

    async def test_who_stands_in_for_a_parent_is_waited_for(self, t: Harness) -> None:
        """Another job has the parent's unique key, so the parent does not exist: the child gets that job's result."""
        (holder,) = await t.run(job("holder", unique="key"))
        child = job("child", parents=("q", "p"), priority=-1)
        twin = job("p", unique="key")
        pushed = await t.push(job("q"), twin, child, job("x", queue="x"), job("other", parents=("p",)))
        assert pushed == ["q", "holder", "child", "x", "other"]
        assert await t.statuses("child", "other") == ["blocked"] * 2
        assert (await t.job("child")).parents == ("q", "holder")
        assert await t.find(parent="holder") == ["other", "child"]
        (q,) = await t.claim()
        await t.settle(Outcome.succeed(q, 1))
        assert await t.status("child") is TaskStatus.BLOCKED
        await t.settle(Outcome.succeed(holder, 1))
        assert await t.claim_ids() == ["child", "other"]

    async def test_two_parents_that_end_at_once(self, t: Harness) -> None:
        parents = await t.run(*[job(f"p{n}") for n in range(8)])
        for round_ in range(4):
            both = parents[2 * round_ : 2 * round_ + 2]
            await t.push(job(f"c{round_}", parents=tuple(parent.id for parent in both)))
            await asyncio.gather(*[t.settle(Outcome.succeed(parent, 1)) for parent in both])
        assert await t.claim_ids() == ["c0", "c1", "c2", "c3"]

    async def test_a_child_of_many_parents(self, t: Harness) -> None:
        ids = [f"p{n}" for n in range(300)]
        await t.push(*map(job, ids))
        await t.push(job("child", parents=tuple(ids), priority=-1))
        for _ in range(3):
            jobs = await t.claim()
            assert await t.status("child") is TaskStatus.BLOCKED
            assert all(await t.settle(*[Outcome.succeed(parent, None) for parent in jobs]))
        assert await t.claim_ids() == ["child"]

    @for_each((Outcome.succeed, Outcome.fail))
    async def test_a_late_outcome_of_a_parent_tells_its_children_nothing(self, t: Harness, late: Any) -> None:
        (first,) = await t.run(job("parent"))
        stale = late(first, "late")
        await t.push(job("child", parents=("parent",)), job("grandchild", parents=("child",)))
        await t.settle(Outcome.release(first, "stopping"))
        (second,) = await t.claim()
        end = Outcome.fail(second, "boom") if late is Outcome.succeed else Outcome.succeed(second, 1)
        assert await t.settle(end, stale) == [True, False]
        expected = ["cancelled"] * 2 if late is Outcome.succeed else ["pending", "blocked"]
        assert await t.statuses("child", "grandchild") == expected

    async def test_of_two_parents_that_fail_the_first_is_named(self, t: Harness) -> None:
        one, two = await t.run(job("one"), job("two"))
        await t.push(job("child", parents=("one", "two")), job("grandchild", parents=("one", "child")))
        assert await t.settle(Outcome.cancel(two, "why"), Outcome.fail(one, "boom")) == [True, True]
        assert (await t.job("child")).error == "its parent two ended as cancelled"
        assert (await t.job("grandchild")).error == "its parent child ended as cancelled"

    async def test_parents_that_succeed_in_one_call(self, t: Harness) -> None:
        parents = await t.run(job("p1"), job("p2"))
        await t.push(job("child", parents=("p1", "p2")))
        await t.settle(*[Outcome.succeed(parent, 1) for parent in parents])
        assert await t.claim_ids() == ["child"]

    async def test_a_child_may_be_due_later(self, t: Harness) -> None:
        (parent,) = await t.run(job("parent"))
        await t.push(job("child", parents=("parent",), due=t.now + 60))
        await t.settle(Outcome.succeed(parent, 1))
        assert await t.status("child") is TaskStatus.SCHEDULED
        t.clock.advance(60)
        await t.beat()
        assert await t.claim_ids() == ["child"]

    async def test_a_retry_of_the_parent_keeps_the_child_waiting(self, t: Harness) -> None:
        (parent,) = await t.run(job("parent"))
        await t.push(job("child", parents=("parent",)))
        await t.settle(Outcome.retry_at(parent, t.now, "boom"))
        assert await t.status("child") is TaskStatus.BLOCKED

    @for_each(("fail", "cancel", "cancel by hand"))
    async def test_a_parent_that_fails_cancels_its_line(self, t: Harness, end: Any) -> None:
        await t.push(job("p"), job("other", queue="other"))
        await t.push(job("child", parents=("other", "p"), unique="key"), job("bystander", parents=("other",)))
        await t.push(job("grandchild", parents=("child",)))
        if end != "cancel by hand":
            (parent,) = await t.claim()
            await t.settle(Outcome.fail(parent, "boom") if end == "fail" else Outcome.cancel(parent, "why"))
        else:
            await t.cancel("p")
        assert await t.statuses("child", "grandchild", "bystander") == ["cancelled", "cancelled", "blocked"]
        child = await t.job("child")
        assert child.error == f"its parent p ended as {await t.status('p')}"
        assert (await t.job("grandchild")).error == "its parent child ended as cancelled"
        assert await t.push(job("free", unique="key")) == ["free"]

    async def test_a_long_line_is_cancelled_to_its_end(self, t: Harness) -> None:
        await t.push(job("j0"))
        for start in range(1, 1101, 100):  # deeper than Python's calls may be
            chain = [job(f"j{n}", parents=(f"j{n - 1}",)) for n in range(start, start + 100)]
            await t.push(*chain)
        assert await t.cancel("j0") is True
        assert await t.broker.counts() == {("default", TaskStatus.CANCELLED): 1101}

    async def test_parents_that_have_finished_already(self, t: Harness) -> None:
        good, bad = await t.run(job("good"), job("bad"))
        await t.settle(Outcome.succeed(good, 1), Outcome.fail(bad, "boom"))
        await t.push(job("runs", parents=("good",)), job("ends", parents=("good", "bad")))
        assert await t.statuses("runs", "ends") == ["pending", "cancelled"]
        assert (await t.job("ends")).error == "its parent bad ended as failed"
        assert (await t.broker.wait_for("ends", SOON)).status is TaskStatus.CANCELLED

    async def test_an_unknown_parent(self, t: Harness) -> None:
        with raises(TaskNotFoundError):
            await t.push(job("child", parents=("nobody",)))
        assert await t.find() == []

    async def test_a_parent_may_come_in_the_same_call(self, t: Harness) -> None:
        assert await t.push(job("parent"), job("child", parents=("parent",))) == ["parent", "child"]
        assert await t.statuses("parent", "child") == ["pending", "blocked"]

    async def test_a_known_child_needs_no_known_parent(self, t: Harness) -> None:
        (parent,) = await t.run(job("parent"))
        await t.settle(Outcome.succeed(parent, 1, keep=0))
        await t.push(job("child", parents=("parent",)))
        assert await t.broker.purge(t.now + 1, 10) == 1
        assert await t.push(job("child", parents=("parent",))) == ["child"]
        assert await t.claim_ids() == ["child"]

    async def test_children_are_requeued_after_their_parent(self, t: Harness) -> None:
        (parent,) = await t.run(job("parent"))
        await t.push(job("child", parents=("parent",)))
        await t.settle(Outcome.fail(parent, "boom"))
        before = await t.job("child")
        assert await t.requeue("child") == [False]
        assert await t.job("child") == before
        assert await t.requeue("parent", "child") == [True, True]
        assert await t.statuses("parent", "child") == ["pending", "blocked"]
        (again,) = await t.claim()
        await t.settle(Outcome.succeed(again, 1))
        assert await t.claim_ids() == ["child"]

    async def test_a_requeued_child_does_without_a_purged_parent(self, t: Harness) -> None:
        (parent,) = await t.run(job("parent"))
        await t.settle(Outcome.succeed(parent, 1, keep=0))
        await t.push(job("child", parents=("parent",)))
        await t.cancel("child")
        assert await t.broker.purge(t.now + 1, 10) == 1
        assert await t.requeue("child") == [True]
        assert await t.claim_ids() == ["child"]

    @for_each((Outcome.fail, Outcome.cancel))
    async def test_a_child_may_tolerate_that_a_parent_ends_without_success(self, t: Harness, end: Any) -> None:
        bad, good, late = await t.run(job("bad"), job("good"), job("late"))
        await t.push(job("both", parents=("bad", "good"), tolerates=("bad",)), job("strict", parents=("bad",)))
        await t.push(job("grandchild", parents=("strict",), tolerates=("strict",)))
        await t.settle(end(bad, "boom"))
        assert await t.statuses("both", "strict", "grandchild") == ["blocked", "cancelled", "pending"]
        await t.push(job("new", parents=("bad", "late"), tolerates=("bad",)))
        assert await t.statuses("new") == ["blocked"]
        await t.settle(Outcome.succeed(good, 1))
        assert sorted(await t.claim_ids()) == ["both", "grandchild"]
        await t.settle(Outcome.fail(late, "boom"))
        assert await t.statuses("new") == ["cancelled"]
        assert (await t.job("new")).error == "its parent late ended as failed"
        assert (await t.job("both")).tolerates == ("bad",)

    async def test_a_cancelled_child_is_requeued_though_a_tolerated_parent_has_failed(self, t: Harness) -> None:
        (bad,) = await t.run(job("bad"))
        await t.settle(Outcome.fail(bad, "boom"))
        await t.push(job("child", parents=("bad",), tolerates=("bad",)))
        assert await t.broker.cancel("child", now=t.now)
        assert await t.broker.requeue(["child"], now=t.now) == [True]
        assert await t.claim_ids() == ["child"]


@tests_take(Contract.harness)
class ConflictContract(Contract):
    """The effect of a push on a job with the same unique key."""

    async def arguments(self, t: Harness, task_id: str) -> list[Any]:
        return list(decode_arguments(await t.job(task_id))[0])

    async def test_a_job_that_has_not_begun_takes_the_new_arguments(self) -> None:
        for due, parents in ((None, ()), (60, ()), (None, ("p",))):
            async with self.harness() as t:
                when = None if due is None else t.now + due
                await t.push(job("p"), job("a", args=(1,), unique="k", due=when, parents=parents))
                before = await t.job("a")
                new = job("b", args=({"x": [2]},), unique="k", due=t.now + 5, conflict=Conflict("replace"))
                assert await t.push(new) == ["a"]
                after = await t.job("a")
                assert (after.status, after.due, after.seq) == (before.status, before.due, before.seq)
                assert await self.arguments(t, "a") == [{"x": [2]}]
                assert await t.find() == ["a", "p"]

    async def test_of_several_in_one_call_the_last_counts(self, t: Harness) -> None:
        jobs = [job(f"j{n}", args=(n,), unique="k", conflict=Conflict("replace")) for n in range(4)]
        assert await t.push(*jobs, job("other")) == ["j0", "j0", "j0", "j0", "other"]
        assert await self.arguments(t, "j0") == [3]
        assert await t.claim_ids() == ["j0", "other"]

    async def test_a_job_is_postponed_but_not_for_ever(self, t: Harness) -> None:
        first = t.now
        waits = Conflict("postpone", 100.0)
        for n, (due, expected) in enumerate(((60, 60), (90, 90), (150, 100), (10, 10))):
            later = job(f"j{n}", args=(n,), unique="k", due=first + due, conflict=waits)
            assert await t.push(later) == ["j0"]
            found = await t.job("j0")
            assert (found.status, found.due) == (TaskStatus.SCHEDULED, first + expected)
            assert await self.arguments(t, "j0") == [n]
        assert await t.claim() == []
        t.clock.advance(10)
        await t.beat()
        assert await t.claim_ids() == ["j0"]

    async def test_a_ready_job_is_postponed(self, t: Harness) -> None:
        await t.push(job("a", args=(1,), unique="k"), job("b"))
        await t.push(job("c", args=(2,), unique="k", due=t.now + 30, conflict=Conflict("postpone")))
        assert await t.statuses("a") == ["scheduled"]
        assert await t.claim_ids() == ["b"]
        t.clock.advance(30)
        await t.beat()
        (claimed,) = await t.claim()
        assert (claimed.id, list(decode_arguments(claimed)[0])) == ("a", [2])

    @for_each((True, False))
    async def test_one_that_has_begun_is_followed_by_another(self, t: Harness, is_success: Any) -> None:
        """Of the jobs with one key, at most one runs and one waits at any time, however earlier ones ended."""
        replace = Conflict("replace")
        (running,) = await t.run(job("a", unique="k"))
        for round_ in range(3):
            names = [f"b{round_}", f"c{round_}"]
            assert await t.push(job(names[0], args=(1,), unique="k", conflict=replace)) == [names[0]]
            assert await t.push(job(names[1], args=(2,), unique="k", conflict=replace)) == [names[0]]
            assert await t.push(job("kept", unique="k")) == [names[0]]
            assert await t.claim() == []
            await t.settle(Outcome.succeed(running, 1) if is_success else Outcome.fail(running, "boom"))
            assert await t.push(job("late", args=(3,), unique="k", conflict=replace)) == [names[0]]
            (running,) = await t.claim()
            assert (running.id, list(decode_arguments(running)[0])) == (names[0], [3])
        await t.settle(Outcome.succeed(running, 1))
        assert await t.push(job("free", unique="k", conflict=replace)) == ["free"]

    async def test_one_that_waits_for_a_retry_has_begun(self, t: Harness) -> None:
        (claimed,) = await t.run(job("a", args=(1,), unique="k"))
        await t.settle(Outcome.retry_at(claimed, t.now + 60, "boom"))
        assert await t.push(job("b", args=(2,), unique="k", conflict=Conflict("replace"))) == ["b"]
        assert await t.statuses("a", "b") == ["retrying", "blocked"]
        assert await t.broker.cancel("a", now=t.now)
        assert await t.claim_ids() == ["b"]


LATER = 3600.0


def waits_for(claimed: Job, event: str, due: float) -> Outcome:
    """Return an outcome with which the job waits until the event is emitted, or until `due`."""
    outcome = Outcome.release(claimed, f"it waits for {event}", due)
    outcome.event = event_id(event)
    return outcome


async def emit(t: Harness, event: str, text: str = "null") -> bool:
    return (await t.broker.change([event_id(event)], "emit", now=t.now, by=text))[0]


async def payload(t: Harness, event: str) -> Any:
    (result,) = await t.broker.get([event_id(event)])
    assert result is not None
    return result.result


@tests_take(Contract.harness)
class EventContract(Contract):
    """Events: an event is emitted once, and every job that waits for it finds it, before or after."""

    async def test_a_job_that_waits_for_an_event_is_ready_when_it_is_emitted(self, t: Harness) -> None:
        (claimed,) = await t.run(job("a"))
        assert await t.settle(waits_for(claimed, "paid", t.now + LATER)) == [True]
        assert (await t.status("a"), await t.status(event_id("paid"))) == (TaskStatus.SCHEDULED, TaskStatus.SCHEDULED)
        assert await t.claim_ids() == []
        assert await emit(t, "paid", '{"cents": 5}')
        assert await payload(t, "paid") == {"cents": 5}
        (again,) = await t.claim()
        assert (again.id, again.attempt, again.failures) == ("a", 2, 0)

    async def test_an_emit_wakes_those_who_wait_for_jobs(self, t: Harness) -> None:
        (claimed,) = await t.run(job("a"))
        await t.settle(waits_for(claimed, "paid", t.now + LATER))
        assert await t.claim_ids() == []
        async with t.woken():
            await emit(t, "paid")
        assert await t.claim_ids() == ["a"]

    async def test_an_event_that_has_been_emitted_is_not_waited_for(self, t: Harness) -> None:
        assert await emit(t, "paid", "1")
        (claimed,) = await t.run(job("a"))
        assert await t.settle(waits_for(claimed, "paid", t.now + LATER)) == [True]
        assert await t.claim_ids() == ["a"]

    async def test_the_first_emit_counts(self, t: Harness) -> None:
        assert await emit(t, "paid", "1")
        assert not await emit(t, "paid", "2")
        assert await payload(t, "paid") == 1
        assert (await t.job(event_id("paid"))).task == EVENT

    async def test_of_emits_at_once_one_counts_and_no_waiting_job_is_forgotten(self, t: Harness) -> None:
        claimed = await t.run(*(job(f"j{number}") for number in range(8)))
        moves: list[Any] = [t.settle(waits_for(one, "paid", t.now + LATER)) for one in claimed]
        moves[4:4] = [emit(t, "paid", str(number)) for number in range(3)]
        answers = await asyncio.gather(*moves)
        assert answers[4:7].count(True) == 1
        assert await payload(t, "paid") == answers[4:7].index(True)
        assert sorted(await t.claim_ids()) == sorted(one.id for one in claimed)

    async def test_jobs_wait_for_one_event_until_their_own_ends(self, t: Harness) -> None:
        first, second = await t.run(job("a"), job("b"))
        await t.settle(waits_for(first, "paid", t.now + 60), waits_for(second, "paid", t.now + LATER))
        t.clock.advance(61)
        await t.beat()
        assert await t.claim_ids() == ["a"]
        assert await emit(t, "paid")
        assert await t.claim_ids() == ["b"]

    async def test_events_and_jobs_have_places_of_their_own(self, t: Harness) -> None:
        claimed = await t.run(*(job(f"j{number}") for number in range(3)))
        await t.settle(*(waits_for(one, one.id, t.now + LATER) for one in claimed))
        for number in range(1, 5):
            await emit(t, f"j{number}")
        found = await t.broker.find(JobFilter())
        assert len(found) == len({one.seq for one in found}) == 8

    async def test_a_job_that_is_gone_or_cancelled_is_passed_over(self, t: Harness) -> None:
        claimed = await t.run(job("a"), job("b"), job("c"))
        await t.settle(*(waits_for(one, "paid", t.now + LATER) for one in claimed))
        assert await t.cancel("a")
        assert await t.cancel("b")
        assert await t.broker.delete(["b"]) == [True]
        assert await emit(t, "paid")
        assert await t.claim_ids() == ["c"]
        assert await t.status("a") is TaskStatus.CANCELLED

    async def test_a_cancelled_attempt_does_not_begin_to_wait(self, t: Harness) -> None:
        (claimed,) = await t.run(job("a"))
        await t.cancel("a")
        assert await t.settle(waits_for(claimed, "paid", t.now + LATER)) == [True]
        assert await t.status("a") is TaskStatus.CANCELLED

    async def test_a_late_attempt_does_not_begin_to_wait(self, t: Harness) -> None:
        (claimed,) = await t.run(job("a"))
        await t.settle(Outcome.release(claimed, "stopped"))
        assert await t.settle(waits_for(claimed, "paid", t.now + LATER)) == [False]
        assert await t.claim_ids() == ["a"]

    async def test_an_event_is_not_cancelled_requeued_or_claimed(self, t: Harness) -> None:
        (claimed,) = await t.run(job("a"))
        await t.settle(waits_for(claimed, "paid", t.now + LATER))
        assert not await t.cancel(event_id("paid"))
        assert await emit(t, "paid")
        assert await t.requeue(event_id("paid")) == [False]
        assert await t.claim_ids(queue="events") == []

    async def test_a_job_whose_id_is_like_that_of_an_event_is_no_event(self, t: Harness) -> None:
        await t.push(job(event_id("paid")))
        assert not await emit(t, "paid")
        assert await t.status(event_id("paid")) is TaskStatus.PENDING

    async def test_an_event_that_is_held_is_emitted_after_that(self, t: Harness) -> None:
        (claimed,) = await t.run(job("a"))
        await t.settle(waits_for(claimed, "paid", t.now + LATER))
        assert await t.broker.change([event_id("paid")], "hold", now=t.now, by="mover") == [True]
        with raises(FlowrraError, match="is being moved to another store"):
            await emit(t, "paid")
        assert await t.broker.change([event_id("paid")], "unhold", now=t.now, by="mover") == [True]
        assert await emit(t, "paid")
        assert await t.claim_ids() == ["a"]
