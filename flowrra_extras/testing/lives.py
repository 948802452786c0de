"""The contract, part two: workers that die, jobs that are cancelled, jobs that wait for others."""

import asyncio
import os
from typing import Any

from flowrra import (
    BY_HAND,
    EXPIRED,
    FINISHED,
    KILLED,
    MAX_CRASHES,
    Job,
    Notices,
    Outcome,
    TaskNotFoundError,
    TaskStatus,
    orphaned,
)
from flowrra_extras.testing.kills import Kills
from flowrra_extras.testing.trial import SOON, Contract, job, job_in, raises


class CrashContract(Contract):
    """Workers that die, and those that leave."""

    async def test_a_lapsed_lease_puts_jobs_back(self) -> None:
        async with self.trial() as t:
            await t.run(job("a"), job("b"))
            notices = await t.crash("w1", seen_by="w2")
            assert list(notices.lost_workers) == ["w1"]
            assert notices.suspects
            lost = await t.job("a")
            assert (lost.status, lost.crashes, lost.failures, lost.worker) == (TaskStatus.PENDING, 1, 0, None)
            assert await t.endings("a") == [(1, "crash")]
            assert await t.endings("b") == [(1, "crash")]

    async def test_a_suspect_in_a_paused_queue_holds_up_nobody(self) -> None:
        async with self.trial() as t:
            await t.run(job("a"))
            await t.broker.set_queue("default", paused=True)
            await t.crash("w1", seen_by="w2")
            assert not (await t.beat("w2")).suspects
            await t.broker.set_queue("default", paused=False)
            assert (await t.beat("w2")).suspects

    async def test_what_is_put_back_is_ready_at_once(self) -> None:
        async with self.trial() as t:
            await t.push(job("a", due=t.now + 5))
            t.clock.advance(6)
            await t.claim()
            await t.crash("w1", seen_by="w2")
            assert (await t.job("a")).due is None
            await t.claim(worker="w2")
            await t.beat("w2", lease=0)
            assert (await t.job("a")).due is None

    async def test_a_claim_rescues_too(self) -> None:
        async with self.trial() as t:
            await t.run(job("a"))
            await t.beat("w2")
            await t.lapse(0.6)
            await t.beat("w2")
            await t.lapse(0.6)
            (again,) = await t.claim(worker="w2")
            assert (again.id, again.attempt, again.crashes) == ("a", 2, 1)

    async def test_a_heartbeat_keeps_the_lease(self) -> None:
        async with self.trial() as t:
            (claimed,) = await t.run(job("a"))
            for _ in range(4):
                await t.lapse(0.6)
                assert not (await t.beat("w1")).lapsed
                assert not (await t.beat("w2")).lost_workers
            assert await t.settle(Outcome.succeed(claimed, 1)) == [True]

    async def test_a_jump_of_the_wall_clock_costs_no_lease(self) -> None:
        async with self.trial() as t:
            (claimed,) = await t.run(job("a"))
            await t.beat("w2")
            for seconds in (86_400, -2 * 86_400):
                t.clock.jump_wall(seconds)
                assert not (await t.beat("w2")).lost_workers
                assert not (await t.beat("w1")).lapsed
            assert await t.settle(Outcome.succeed(claimed, 1)) == [True]

    async def test_who_lost_its_lease_is_told_and_cannot_settle(self) -> None:
        async with self.trial() as t:
            (claimed,) = await t.run(job("a"))
            await t.crash("w1", seen_by="w2")
            assert await t.settle(Outcome.succeed(claimed, 1)) == [False]
            assert (await t.beat("w1")).lapsed
            assert not (await t.beat("w1")).lapsed
            assert await t.status("a") is TaskStatus.PENDING

    async def test_a_new_worker_is_not_told_of_a_lapse(self) -> None:
        async with self.trial() as t:
            assert await t.beat("w1") == Notices([], False, frozenset(), 0, [], [])

    async def test_an_end_that_no_attempt_came_to_is_told_to_one_heartbeat(self) -> None:
        async with self.trial() as t:
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

    async def test_the_end_of_a_job_that_kills_its_workers_is_told(self) -> None:
        async with self.trial() as t:
            await t.push(job("guilty"))
            told: list[Job] = []
            for number in range(MAX_CRASHES):
                await t.claim(worker=f"w{number}", crashes=MAX_CRASHES)
                told += (await t.crash(f"w{number}", seen_by="seer")).endings
            told += (await t.beat("seer")).endings
            assert [(one.id, one.status, one.error) for one in told] == [("guilty", TaskStatus.FAILED, KILLED)]

    async def test_a_suspect_runs_alone(self) -> None:
        async with self.trial() as t:
            await t.run(job("a"), job("b"))
            await t.crash("w1", seen_by="w2")
            await t.push(job("innocent", priority=-1))
            (suspect,) = await t.claim(worker="w2")
            assert suspect.id == "a"
            assert await t.claim_ids(worker="w2") == []
            assert await t.claim_ids(worker="w2", queue="other") == []
            await t.settle(Outcome.succeed(suspect, 1))
            assert await t.claim_ids(worker="w2") == ["b"]

    async def test_a_busy_worker_gets_the_innocent_only(self) -> None:
        async with self.trial() as t:
            await t.run(job("suspect"))
            await t.push(job("busy", queue="other"))
            await t.beat("w2")
            assert await t.claim_ids(worker="w2", queue="other") == ["busy"]
            await t.crash("w1", seen_by="w2")
            await t.push(job("c"), job("d"))
            assert await t.claim_ids(worker="w2") == ["c", "d"]
            assert await t.claim_ids(worker="w2") == []
            assert await t.claim_ids(worker="w3") == ["suspect"]

    async def test_suspects_are_remembered_across_queues_and_retries(self) -> None:
        async with self.trial() as t:
            await t.run(job("suspect"))
            await t.crash("w1", seen_by="w2")
            await t.push(job("elsewhere", queue="other"))
            assert await t.claim_ids(worker="w3", queue="other") == ["elsewhere"]
            (suspect,) = await t.claim(worker="w2")
            assert suspect.id == "suspect"
            await t.push(job("c"), job("e", queue="other"))
            assert await t.claim_ids(worker="w4", queue="other") == ["e"]
            assert await t.claim_ids(worker="w2") == []
            await t.settle(Outcome.release(suspect, "the worker stopped", t.now + 1))
            t.clock.advance(1)
            assert await t.claim_ids(worker="w2") == ["suspect"]
            assert await t.claim_ids(worker="w2") == []

    async def test_the_most_suspect_come_first_as_far_as_they_are_wanted(self) -> None:
        async with self.trial() as t:
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

    async def test_a_suspect_that_survives_a_run_is_less_suspect(self) -> None:
        async with self.trial() as t:
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

    async def test_a_worker_that_is_killed_each_second_ends_the_guilty_only(self) -> None:
        async with self.trial() as t:
            await Kills(t, workers=1).run()

    async def test_two_workers_that_are_killed_each_second_end_the_guilty_only(self) -> None:
        async with self.trial() as t:
            await Kills(t, workers=2).run()

    async def test_the_guilty_is_given_up(self) -> None:
        async with self.trial() as t:
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

    async def test_a_requeue_forgets_failures_and_crashes(self) -> None:
        async with self.trial() as t:
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

    async def test_a_leave_releases(self) -> None:
        async with self.trial() as t:
            (claimed, _) = await t.run(job("a"), job("b"))
            await t.beat("w1", lease=0)
            assert await t.broker.workers() == []
            assert await t.settle(Outcome.succeed(claimed, 1)) == [False]
            back = await t.job("a")
            assert (back.status, back.crashes, back.failures) == (TaskStatus.PENDING, 0, 0)
            assert await t.endings("a") == [(1, "release")]
            assert await t.claim_ids(worker="w2") == ["a", "b"]

    async def test_workers_are_those_with_a_lease(self) -> None:
        async with self.trial() as t:
            await t.beat("w1", queues={"default": 3, "cpu": 1}, tasks=("t1", "t2"))
            t.clock.advance(1)
            await t.beat("w2", running=4)
            one, two = sorted(await t.broker.workers(), key=lambda info: info.id)
            assert (one.id, one.host, one.pid) == ("w1", "host", os.getpid())
            assert (dict(one.queues), list(one.tasks)) == ({"default": 3, "cpu": 1}, ["t1", "t2"])
            assert (one.started, one.seen, two.seen, two.running) == (t.now - 1, t.now - 1, t.now, 4)
            await t.lapse(0.6)
            await t.beat("w2")
            await t.lapse(0.6)
            assert [info.id for info in await t.broker.workers()] == ["w2"]

    async def test_a_heartbeat_tells_what_has_changed(self) -> None:
        async with self.trial() as t:
            await t.beat("w1")
            told: dict[str, Any] = {
                "queues": {"default": 3, "cpu": 1},
                "tasks": ["t1", "t2"],
                "running": 4,
                "memory": 10_000_000,
            }
            await t.beat("w1", **told)
            (seen,) = await t.broker.workers()
            assert [dict(seen.queues), list(seen.tasks), seen.running, seen.memory] == list(told.values())


class CancelContract(Contract):
    """Ending jobs by hand, and letting them run again."""

    async def test_what_waits_ends_at_once(self) -> None:
        for status in (TaskStatus.SCHEDULED, TaskStatus.BLOCKED, TaskStatus.PENDING, TaskStatus.RETRYING):
            async with self.trial() as t:
                await job_in(t, status)
                t.clock.advance(1)
                assert await t.cancel("a") is True
                ended = await t.job("a")
                assert (ended.status, ended.error) == (TaskStatus.CANCELLED, "it was cancelled")
                assert (ended.finished, ended.traceback) == (t.now, None)
                t.clock.advance(100)
                await t.beat()
                assert await t.claim() == []

    async def test_what_is_finished_or_unknown_is_not_cancelled(self) -> None:
        for status in FINISHED:
            async with self.trial() as t:
                before = await job_in(t, status)
                assert await t.cancel("a") is False
                assert await t.cancel("unknown") is False
                assert await t.job("a") == before

    async def test_what_runs_is_ended_by_its_worker(self) -> None:
        async with self.trial() as t:
            (claimed,) = await t.run(job("a"))
            await t.beat("w2")
            assert await t.cancel("a") is True
            running = await t.job("a")
            assert (running.status, running.cancel_requested) == (TaskStatus.RUNNING, True)
            assert list((await t.beat("w2")).cancelled) == []
            assert list((await t.beat("w1")).cancelled) == ["a"]
            assert await t.settle(Outcome.cancel(claimed, "it was cancelled")) == [True]
            assert list((await t.beat("w1")).cancelled) == []

    async def test_a_worker_may_finish_before_it_hears(self) -> None:
        async with self.trial() as t:
            (claimed,) = await t.run(job("a"))
            await t.cancel("a")
            assert await t.settle(Outcome.succeed(claimed, 1)) == [True]
            assert await t.status("a") is TaskStatus.SUCCESS
            assert list((await t.beat("w1")).cancelled) == []

    async def test_a_cancelled_job_does_not_run_again(self) -> None:
        """Someone was told that it would end: neither a retry nor a release nor a crash brings it back."""
        for back in (Outcome.retry_at, lambda job, due, why: Outcome.release(job, why, due)):
            async with self.trial() as t:
                (claimed,) = await t.run(job("a"))
                await t.cancel("a")
                assert await t.settle(back(claimed, t.now + 1, "boom")) == [True]
                assert await t.status("a") is TaskStatus.CANCELLED
        async with self.trial() as t:
            await t.run(job("a"))
            await t.cancel("a")
            await t.crash("w1", seen_by="w2")
            assert (await t.statuses("a"), await t.endings("a")) == (["cancelled"], [(1, "crash")])
        async with self.trial() as t:
            await t.run(job("a"))
            await t.cancel("a")
            await t.beat("w1", lease=0)
            assert (await t.statuses("a"), await t.endings("a")) == (["cancelled"], [(1, "release")])

    async def test_requeue_makes_ready(self) -> None:
        for status in TaskStatus:
            async with self.trial() as t:
                before = await job_in(t, status)
                may = status in (TaskStatus.FAILED, TaskStatus.CANCELLED)
                assert await t.requeue("a") == [may]
                after = await t.job("a")
                assert after.status is TaskStatus.PENDING if may else after == before

    async def test_requeue_is_now_also_for_what_was_due_later_or_expired(self) -> None:
        async with self.trial() as t:
            await t.push(job("later", due=t.now + 60), job("stale", expires=t.now + 1))
            await t.cancel("later")
            t.clock.advance(2)
            assert await t.claim() == []
            assert await t.requeue("later", "stale") == [True, True]
            assert await t.claim_ids() == ["later", "stale"]

    async def test_a_requeued_job_can_be_cancelled_again(self) -> None:
        async with self.trial() as t:
            (claimed,) = await t.run(job("a"))
            await t.cancel("a")
            await t.settle(Outcome.cancel(claimed, "it was cancelled"))
            await t.requeue("a")
            (again,) = await t.claim()
            assert list((await t.beat()).cancelled) == []
            await t.settle(Outcome.retry_at(again, t.now + 1, "boom"))
            assert await t.status("a") is TaskStatus.RETRYING
            assert await t.cancel("a") is True

    async def test_requeue_leaves_the_past_as_it_was(self) -> None:
        for end in (Outcome.fail, Outcome.cancel):
            async with self.trial() as t:
                (claimed,) = await t.run(job("a"))
                t.clock.advance(1)
                await t.settle(end(claimed, "boom"))
                before = (await t.job("a")).attempts
                t.clock.advance(100)
                await t.requeue("a")
                assert (await t.job("a")).history == before

    async def test_a_deleted_child_waits_for_nobody(self) -> None:
        """One that comes under its id has parents of its own."""
        async with self.trial() as t:
            parent, other = await t.run(job("parent"), job("other"))
            await t.push(job("child", parents=("parent",)))
            await t.cancel("child")
            assert await t.broker.delete(["child"]) == [True]
            await t.push(job("child", parents=("other",)))
            await t.settle(Outcome.fail(parent, "boom"))
            assert await t.statuses("child") == ["blocked"]
            await t.settle(Outcome.succeed(other, 1))
            assert await t.claim_ids() == ["child"]

    async def test_requeue_keeps_the_old_place(self) -> None:
        async with self.trial() as t:
            await t.push(job("a"), job("b"))
            await t.cancel("a")
            await t.requeue("a")
            assert await t.claim_ids() == ["a", "b"]


class ParentsContract(Contract):
    """Jobs that wait for others."""

    async def test_a_child_waits_for_all_its_parents(self) -> None:
        async with self.trial() as t:
            await t.push(job("p1"), job("p2"))
            await t.push(job("child", parents=("p1", "p2", "p1"), priority=-1))
            first, second = await t.claim()
            assert await t.status("child") is TaskStatus.BLOCKED
            await t.settle(Outcome.succeed(first, 1))
            assert (await t.statuses("child"), await t.claim()) == (["blocked"], [])
            await t.settle(Outcome.succeed(second, 1))
            (child,) = await t.claim()
            assert (child.id, child.parents) in (("child", ("p1", "p2", "p1")), ("child", ("p1", "p2")))

    async def test_a_known_key_needs_no_known_parent(self) -> None:
        async with self.trial() as t:
            await t.push(job("a", unique="key"))
            assert await t.push(job("b", unique="key", parents=("nobody",))) == ["a"]
            twice = job("c", unique="new"), job("d", unique="new", parents=("nobody",))
            assert await t.push(*twice, job("c", parents=("nobody",)), job("e", parents=("c",))) == ["c", "c", "c", "e"]
            assert await t.claim_ids() == ["a", "c"]
            # One that changes nothing takes no key either.
            with raises(TaskNotFoundError):
                await t.push(job("a", unique="free"), job("f", unique="free", parents=("nobody",)))

    async def test_a_job_cannot_wait_for_itself(self) -> None:
        async with self.trial() as t:
            for later in ((), (job("b"),)):
                with raises(TaskNotFoundError):
                    await t.push(job("a", parents=("a", *[one.id for one in later])), *later)
            assert await t.find() == []

    async def test_who_stands_in_for_a_parent_is_waited_for(self) -> None:
        """The parent's unique key was taken: there is no job of its id, and the child gets the other one's result."""
        async with self.trial() as t:
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

    async def test_two_parents_that_end_at_once(self) -> None:
        async with self.trial() as t:
            parents = await t.run(*[job(f"p{n}") for n in range(8)])
            for round_ in range(4):
                both = parents[2 * round_ : 2 * round_ + 2]
                await t.push(job(f"c{round_}", parents=tuple(parent.id for parent in both)))
                await asyncio.gather(*[t.settle(Outcome.succeed(parent, 1)) for parent in both])
            assert await t.claim_ids() == ["c0", "c1", "c2", "c3"]

    async def test_a_child_of_many_parents(self) -> None:
        async with self.trial() as t:
            ids = [f"p{n}" for n in range(300)]
            await t.push(*map(job, ids))
            await t.push(job("child", parents=tuple(ids), priority=-1))
            for _ in range(3):
                jobs = await t.claim()
                assert await t.status("child") is TaskStatus.BLOCKED
                assert all(await t.settle(*[Outcome.succeed(parent, None) for parent in jobs]))
            assert await t.claim_ids() == ["child"]

    async def test_a_late_outcome_of_a_parent_tells_its_children_nothing(self) -> None:
        for late in (Outcome.succeed, Outcome.fail):
            async with self.trial() as t:
                (first,) = await t.run(job("parent"))
                stale = late(first, "late")
                await t.push(job("child", parents=("parent",)), job("grandchild", parents=("child",)))
                await t.settle(Outcome.release(first, "stopping"))
                (second,) = await t.claim()
                end = Outcome.fail(second, "boom") if late is Outcome.succeed else Outcome.succeed(second, 1)
                assert await t.settle(end, stale) == [True, False]
                expected = ["cancelled"] * 2 if late is Outcome.succeed else ["pending", "blocked"]
                assert await t.statuses("child", "grandchild") == expected

    async def test_of_two_parents_that_fail_the_first_is_named(self) -> None:
        async with self.trial() as t:
            one, two = await t.run(job("one"), job("two"))
            await t.push(job("child", parents=("one", "two")), job("grandchild", parents=("one", "child")))
            assert await t.settle(Outcome.cancel(two, "why"), Outcome.fail(one, "boom")) == [True, True]
            assert (await t.job("child")).error == "its parent two ended as cancelled"
            assert (await t.job("grandchild")).error == "its parent child ended as cancelled"

    async def test_parents_that_succeed_in_one_call(self) -> None:
        async with self.trial() as t:
            parents = await t.run(job("p1"), job("p2"))
            await t.push(job("child", parents=("p1", "p2")))
            await t.settle(*[Outcome.succeed(parent, 1) for parent in parents])
            assert await t.claim_ids() == ["child"]

    async def test_a_child_may_be_due_later(self) -> None:
        async with self.trial() as t:
            (parent,) = await t.run(job("parent"))
            await t.push(job("child", parents=("parent",), due=t.now + 60))
            await t.settle(Outcome.succeed(parent, 1))
            assert await t.status("child") is TaskStatus.SCHEDULED
            t.clock.advance(60)
            await t.beat()
            assert await t.claim_ids() == ["child"]

    async def test_a_retry_of_the_parent_keeps_the_child_waiting(self) -> None:
        async with self.trial() as t:
            (parent,) = await t.run(job("parent"))
            await t.push(job("child", parents=("parent",)))
            await t.settle(Outcome.retry_at(parent, t.now, "boom"))
            assert await t.status("child") is TaskStatus.BLOCKED

    async def test_a_parent_that_fails_cancels_its_line(self) -> None:
        for end in ("fail", "cancel", "cancel by hand"):
            async with self.trial() as t:
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

    async def test_a_long_line_is_cancelled_to_its_end(self) -> None:
        async with self.trial() as t:
            await t.push(job("j0"))
            for start in range(1, 1501, 100):
                chain = [job(f"j{n}", parents=(f"j{n - 1}",)) for n in range(start, start + 100)]
                await t.push(*chain)
            assert await t.cancel("j0") is True
            assert await t.broker.counts() == {("default", TaskStatus.CANCELLED): 1501}

    async def test_parents_that_have_finished_already(self) -> None:
        async with self.trial() as t:
            good, bad = await t.run(job("good"), job("bad"))
            await t.settle(Outcome.succeed(good, 1), Outcome.fail(bad, "boom"))
            await t.push(job("runs", parents=("good",)), job("ends", parents=("good", "bad")))
            assert await t.statuses("runs", "ends") == ["pending", "cancelled"]
            assert (await t.job("ends")).error == "its parent bad ended as failed"
            assert (await t.broker.wait_for("ends", SOON)).status is TaskStatus.CANCELLED

    async def test_an_unknown_parent(self) -> None:
        async with self.trial() as t:
            with raises(TaskNotFoundError):
                await t.push(job("child", parents=("nobody",)))
            assert await t.find() == []

    async def test_a_parent_may_come_in_the_same_call(self) -> None:
        async with self.trial() as t:
            assert await t.push(job("parent"), job("child", parents=("parent",))) == ["parent", "child"]
            assert await t.statuses("parent", "child") == ["pending", "blocked"]

    async def test_a_known_child_needs_no_known_parent(self) -> None:
        async with self.trial() as t:
            (parent,) = await t.run(job("parent"))
            await t.settle(Outcome.succeed(parent, 1, keep=0))
            await t.push(job("child", parents=("parent",)))
            assert await t.broker.purge(t.now + 1, 10) == 1
            assert await t.push(job("child", parents=("parent",))) == ["child"]
            assert await t.claim_ids() == ["child"]

    async def test_children_are_requeued_after_their_parent(self) -> None:
        async with self.trial() as t:
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

    async def test_a_requeued_child_does_without_a_purged_parent(self) -> None:
        async with self.trial() as t:
            (parent,) = await t.run(job("parent"))
            await t.settle(Outcome.succeed(parent, 1, keep=0))
            await t.push(job("child", parents=("parent",)))
            await t.cancel("child")
            assert await t.broker.purge(t.now + 1, 10) == 1
            assert await t.requeue("child") == [True]
            assert await t.claim_ids() == ["child"]
