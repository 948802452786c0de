"""The contract: reading, purging and waiting for jobs and results."""

import asyncio
from typing import Any

from flowrra import (
    BackendError,
    JobFilter,
    Outcome,
    Progress,
    TaskNotFoundError,
    TaskResult,
    TaskStatus,
    TaskTimeoutError,
)
from flowrra_extras.contracts.harness import SOON, Contract, Harness, for_each, job, job_in, raises, tests_take
from flowrra_extras.testing import ManualClock


@tests_take(Contract.harness)
class ResultContract(Contract):
    """Reading and purging results."""

    async def test_results_come_in_the_order_of_the_ids(self, t: Harness) -> None:
        await t.push(job("a"), job("b"))
        results = await t.broker.get(["b", "unknown", "a", "b"])
        assert [result and result.task_id for result in results] == ["b", None, "a", "b"]
        assert [result and result.status for result in results] == ["pending", None, "pending", "pending"]
        assert await t.broker.get([]) == []
        many = await t.broker.get([f"unknown {n}" for n in range(300)] + ["a"])
        assert [result is not None for result in many] == [False] * 300 + [True]

    async def test_results_can_be_recorded(self, t: Harness) -> None:
        late = t.now + 5
        good = TaskResult[Any]("a", "task", TaskStatus.SUCCESS, (1, b"x"), None, None, 2, t.now, t.now + 1, late)
        bad = TaskResult[Any]("b", "task", TaskStatus.FAILED, None, "boom", "line 1", 3, t.now, t.now + 1, late)
        await t.broker.record([good, bad])
        assert await t.broker.get(["a", "b"]) == [good, bad]
        good.result, good.finished = "newer", late + 100
        await t.broker.record([good])
        assert await t.broker.purge(late + t.broker.retention.result_ttl + 1, 10) == 0  # it was replaced
        assert [result and result.result for result in await t.broker.get(["a", "b"])] == ["newer", None]
        assert await t.broker.wait_for("b", SOON) == bad
        ttl = t.broker.retention.failed_ttl + t.broker.retention.result_ttl
        assert await t.broker.purge(late + 100 + ttl, 10) == 2
        assert await t.broker.get(["a", "b"]) == [None, None]

    @for_each(TaskStatus)
    async def test_a_job_is_not_recorded_over(self, t: Harness, status: TaskStatus) -> None:
        """A record describes a job of another store. The row of a job of this store contains more."""
        before = await job_in(t, status)
        ended = TaskResult[Any]("a", "task", TaskStatus.SUCCESS, 7, attempts=9, started=t.now, finished=t.now)
        await t.broker.record([ended, TaskResult("b", "task", TaskStatus.SUCCESS, 8, finished=t.now)])
        assert await t.job("a") == before
        other = (await t.broker.get(["b"]))[0]
        assert other is not None, "it ended before it ever ran, as far as the record tells"
        assert (other.status, other.result, other.attempts) == (TaskStatus.SUCCESS, 8, 0)

    async def test_find_by_each_property(self, t: Harness) -> None:
        await t.push(job("a", task="t1"), job("b", task="t2", queue="q2"), job("c", task="t1", due=t.now + 9))
        await t.claim(1)
        assert await t.find() == ["c", "b", "a"]
        assert await t.find(ids=["a", "c", "unknown", "a"]) == ["c", "a"]
        assert await t.find(ids=[]) == []
        assert await t.find(task="t1") == ["c", "a"]
        assert await t.find(queue="q2") == ["b"]
        assert await t.find(worker="w1") == ["a"]
        assert await t.find(status=frozenset((TaskStatus.PENDING, TaskStatus.SCHEDULED))) == ["c", "b"]
        assert await t.find(status=frozenset()) == []
        assert await t.find(task="t1", status=frozenset((TaskStatus.RUNNING,)), ids=["a", "b"]) == ["a"]

    async def test_find_page_by_page(self, t: Harness) -> None:
        await t.push(*[job(f"j{n}", task=f"t{n % 2}") for n in range(10)])
        for oldest_first in (False, True):
            seen: list[str] = []
            after = None
            while page := await t.broker.find(JobFilter(task="t0"), limit=2, after=after, oldest_first=oldest_first):
                assert len(page) <= 2
                seen += [found.id for found in page]
                after = page[-1].seq
            assert seen == sorted(("j0", "j2", "j4", "j6", "j8"), reverse=not oldest_first)
        assert len(await t.broker.find(JobFilter(), limit=3)) == 3
        found = await t.broker.find(JobFilter(ids=["j4", "j2", "j8"]), limit=2, oldest_first=True)
        assert [one.id for one in found] == ["j2", "j4"]

    async def test_counts(self, t: Harness) -> None:
        assert await t.broker.counts() == {}
        await t.push(job("a"), job("b"), job("c", queue="q2"), job("d", due=t.now + 9))
        await t.claim(1)
        assert await t.broker.counts() == {
            ("default", TaskStatus.RUNNING): 1,
            ("default", TaskStatus.PENDING): 1,
            ("default", TaskStatus.SCHEDULED): 1,
            ("q2", TaskStatus.PENDING): 1,
        }
        assert await t.broker.counts(JobFilter(queue="q2")) == {("q2", TaskStatus.PENDING): 1}

    async def test_counts_of_what_is_ahead(self, t: Harness) -> None:
        await t.push(job("running"))
        await t.claim()
        await t.push(job("a"), job("b"), job("me", priority=1), job("c", priority=1), job("d", priority=-1))
        await t.push(job("later", due=t.now + 9), job("elsewhere", queue="q2"))
        me = await t.job("me")
        assert await t.broker.counts(JobFilter(ahead_of=me)) == {("default", TaskStatus.PENDING): 3}
        assert await t.find(ahead_of=me) == ["d", "b", "a"]
        assert await t.broker.counts(JobFilter(ahead_of=await t.job("d"))) == {}

    async def test_progress(self, t: Harness) -> None:
        (running,) = await t.run(job("a"))
        await t.push(job("waits"))
        waiting = await t.job("waits")
        others = [Outcome.report(waiting, number, Progress(2)) for number in (0, 1)]
        others.append(Outcome.report(job("unknown"), 1, Progress(3)))
        first = Outcome.report(running, 1, Progress(1, 4, "one"))
        assert await t.settle(first, *others) == [True, False, False, False]
        assert await t.settle(Outcome.report(running, 1, Progress(2.5, 4, "two"))) == [True]
        a, waits = await t.broker.get(["a", "waits"])
        assert a is not None
        assert waits is not None
        assert a.progress == Progress(2.5, 4, "two")
        assert waits.progress is None
        assert (await t.job("a")).progress == Progress(2.5, 4, "two")
        await t.settle(Outcome.release(running, "again"))
        assert (await t.job("a")).progress is None

    async def test_purge_is_by_retention(self, t: Harness) -> None:
        jobs = await t.run(*[job(task_id) for task_id in ("good", "bad", "kept", "brief", "runs")])
        good, bad, kept, brief, _ = jobs
        await t.settle(Outcome.succeed(good, 1), Outcome.fail(bad, "boom"))
        await t.settle(Outcome.succeed(kept, 1, keep=1e9), Outcome.succeed(brief, 1, keep=5))
        await t.push(job("waits"), job("later", due=t.now + 1e8), job("cancelled"))
        await t.cancel("cancelled")
        retention = t.broker.retention
        assert await t.broker.purge(t.now + 5, 10) == 0
        assert await t.broker.purge(t.now + 6, 10) == 1
        assert await t.broker.get(["brief"]) == [None]
        assert await t.broker.purge(t.now + retention.result_ttl + 1, 10) == 1
        assert set(await t.find()) == {"bad", "kept", "runs", "waits", "later", "cancelled"}
        assert await t.broker.purge(t.now + retention.failed_ttl + 1, 10) == 2
        assert set(await t.find()) == {"kept", "runs", "waits", "later"}

    async def test_purge_in_steps(self, t: Harness) -> None:
        jobs = await t.run(*[job(f"j{n}") for n in range(5)])
        await t.settle(*[Outcome.succeed(done, 1, keep=0) for done in jobs])
        assert [await t.broker.purge(t.now + 1, 2) for _ in range(4)] == [2, 2, 1, 0]

    async def test_what_is_past_its_retention_longest_is_purged_first(self, t: Harness) -> None:
        jobs = await t.run(*[job(task_id) for task_id in "abc"])
        keep = {"a": 9, "b": 3, "c": 6}
        await t.settle(*[Outcome.succeed(done, 1, keep=keep[done.id]) for done in jobs])
        left = []
        while await t.broker.purge(t.now + 10, 1):
            left.append(await t.find())
        assert left == [["c", "a"], ["a"], []]

    async def test_what_runs_again_is_not_purged(self, t: Harness) -> None:
        (failed,) = await t.run(job("a"))
        await t.settle(Outcome.fail(failed, "boom"))
        await t.requeue("a")
        assert await t.broker.purge(t.now + 1e9, 10) == 0
        (again,) = await t.claim()
        await t.settle(Outcome.succeed(again, 1, keep=5))
        assert await t.broker.purge(t.now + 4, 10) == 0
        assert await t.broker.purge(t.now + 6, 10) == 1

    async def test_a_purged_id_is_free(self, t: Harness) -> None:
        (done,) = await t.run(job("a", unique="key"))
        await t.settle(Outcome.succeed(done, 1, keep=0))
        await t.broker.purge(t.now + 1, 10)
        with raises(TaskNotFoundError):
            await t.broker.wait_for("a", SOON)
        assert await t.push(job("a", unique="key")) == ["a"]
        assert await t.claim_ids() == ["a"]


@tests_take(Contract.harness)
class FindContract(Contract):
    """Finding jobs in a large store."""

    async def test_find_in_several_states_page_by_page(self, t: Harness) -> None:
        jobs = await t.run(*[job(f"j{n}") for n in range(9)])
        endings: list[Any] = [Outcome.fail, Outcome.cancel, lambda one, why: Outcome.retry_at(one, t.now + 9, why)]
        await t.settle(*[endings[n % 3](one, "why") for n, one in enumerate(jobs)])
        ended = JobFilter(status=frozenset((TaskStatus.FAILED, TaskStatus.CANCELLED)))
        for oldest_first in (False, True):
            expected = sorted((f"j{n}" for n in range(9) if n % 3 < 2), reverse=not oldest_first)
            page = await t.broker.find(ended, limit=4, oldest_first=oldest_first)
            rest = await t.broker.find(ended, limit=4, after=page[-1].seq, oldest_first=oldest_first)
            assert [one.id for one in page + rest] == expected
        assert await t.find(status=frozenset((TaskStatus.FAILED, TaskStatus.SUCCESS))) == ["j6", "j3", "j0"]
        assert sum((await t.broker.counts(ended)).values()) == 6

    async def test_find_from_a_place_in_the_order(self, t: Harness) -> None:
        await t.push(*[job(f"j{n}") for n in range(6)])
        place = (await t.job("j2")).seq
        assert await t.find(from_seq=place) == ["j5", "j4", "j3", "j2"]
        window = await t.broker.find(JobFilter(from_seq=place), after=(await t.job("j5")).seq)
        assert [one.id for one in window] == ["j4", "j3", "j2"]
        assert sum((await t.broker.counts(JobFilter(from_seq=place))).values()) == 4
        assert await t.find(from_seq=place, ids=["j0", "j3"]) == ["j3"]

    async def test_find_by_a_part_of_the_error(self, t: Harness) -> None:
        errors = ("KeyError: 'a_b' is 100% wrong", "ValueError: [no] a.b", "ValueError: straße, ÉTÉ, Ёж")
        jobs = await t.run(*[job(f"j{n}") for n in range(4)])
        await t.settle(*[Outcome.fail(one, error) for one, error in zip(jobs, errors, strict=False)])
        assert await t.find(error="valueERROR") == ["j2", "j1"]
        assert await t.find(error="100% W") == await t.find(error="a_b") == ["j0"]
        assert await t.find(error="A.B") == await t.find(error="[NO]") == ["j1"]
        for part in ("straße", "STRAßE", "été", "Ét", "ёЖ"):
            assert await t.find(error=part) == ["j2"], part
        assert await t.find(error="strasse") == await t.find(error="ete") == []
        assert await t.find(error="%") == ["j0"]
        assert await t.find(error="ValueError", status=frozenset((TaskStatus.PENDING,))) == []
        assert await t.find(error="error", status=frozenset((TaskStatus.FAILED,)), task="task") == ["j2", "j1", "j0"]

    async def test_find_the_children_of_a_job(self, t: Harness) -> None:
        good, bad = await t.run(job("good"), job("bad"))
        await t.push(job("c1", parents=("good",)), job("c2", parents=("bad", "good", "bad")), job("other"))
        await t.push(job("grandchild", parents=("c1",)))
        assert await t.find(parent="good") == ["c2", "c1"]
        await t.settle(Outcome.succeed(good, 1), Outcome.fail(bad, "boom"))
        await t.push(job("late", parents=("good",)))
        assert await t.find(parent="good") == ["late", "c2", "c1"]
        assert await t.find(parent="bad") == ["c2"]
        assert await t.find(parent="good", status=frozenset((TaskStatus.CANCELLED,))) == ["c2"]
        assert await t.find(parent="other") == await t.find(parent="unknown") == []
        assert await t.broker.delete(["c2", "good"]) == [True, True]
        assert await t.find(parent="good") == ["late", "c1"]
        assert await t.find(parent="bad") == []

    async def test_find_by_a_tag(self, t: Harness) -> None:
        tags = {"a": ("tenant:42", "é"), "b": ("tenant:42",), "c": (), "d": ("tenant:7",), "key": ("tenant:42",)}
        await t.push(*[job(name, tags=tags[name]) for name in ("a", "b", "c", "d")])
        await t.push(job("key", unique="k", tags=("tenant:42",), due=t.now + 60, meta={"n": 1}))
        assert await t.find(tag="tenant:42") == ["key", "b", "a"]
        assert await t.find(tag="é") == ["a"]
        assert await t.find(tag="tenant:42", status=frozenset((TaskStatus.SCHEDULED,))) == ["key"]
        assert await t.find(tag="tenant") == await t.find(tag="") == []
        found = await t.broker.find(JobFilter(tag="tenant:42"), limit=2, oldest_first=True)
        assert [job.id for job in found] == ["a", "b"]
        rest = await t.broker.find(JobFilter(tag="tenant:42"), limit=2, oldest_first=True, after=found[-1].seq)
        assert [job.id for job in rest] == ["key"]
        assert sum((await t.broker.counts(JobFilter(tag="tenant:42"))).values()) == 3
        assert {job.id: job.tags for job in await t.broker.find(JobFilter())} == tags
        for claimed in await t.claim():
            assert claimed.tags == tags[claimed.id]
            await t.settle(Outcome.succeed(claimed, 1))
        assert sorted(await t.broker.remove(["a", "d"])) == ["a", "d"]
        assert await t.find(tag="tenant:42") == ["key", "b"]
        assert await t.find(tag="tenant:7") == []

    async def test_labels_stay_with_the_job(self, t: Harness) -> None:
        meta = {"trace": "00-4bf9", "n": 1, "of": 2.5, "is_new": True, "user": None, "tags": "mine"}
        parent, given = job("p"), {"tags": ("t",), "meta": meta, "overrides": {"timeout": 5.0}}
        await t.push(parent, job("a", **given), job("b", parents=("p",), **given), job("c", meta=meta))
        (first, *_) = await t.claim(1)
        await t.settle(Outcome.succeed(first, 1))
        for attempt in (1, 2):
            claimed = {job.id: job for job in await t.claim()}
            assert [(claimed[name].meta, claimed[name].attempt) for name in ("a", "b", "c")] == [(meta, attempt)] * 3
            assert [claimed[name].tags for name in ("a", "b", "c")] == [("t",), ("t",), ()]
            assert [claimed[name].overrides for name in ("a", "b", "c")] == [{"timeout": 5.0}, {"timeout": 5.0}, None]
            await t.settle(*(Outcome.retry_at(job, t.now, "again") for job in claimed.values()))
        assert await t.find(tag="t") == ["b", "a"]
        waiting = await t.job("a")
        assert (waiting.tags, waiting.meta, waiting.overrides) == (("t",), meta, {"timeout": 5.0})

    async def test_a_job_still_tells_when_it_came_due(self, t: Harness) -> None:
        due = t.now + 5
        await t.push(job("a", due=due))
        t.clock.advance(6)
        (claimed,) = await t.claim()
        assert (claimed.due, (await t.job("a")).due) == (due, due)
        await t.settle(Outcome.succeed(claimed, 1))
        assert (await t.job("a")).due == due


@tests_take(Contract.harness)
class WaitContract(Contract):
    """Waiting for a notification instead of polling."""

    async def test_a_finished_result_is_there_at_once(self, t: Harness) -> None:
        (claimed,) = await t.run(job("a"))
        await t.settle(Outcome.succeed(claimed, 7))
        assert (await t.broker.wait_for("a", 0)).result == 7
        assert (await t.broker.wait_for("a", None)).result == 7

    async def test_an_unknown_id_is_an_error_at_once(self, t: Harness) -> None:
        async with asyncio.timeout(SOON):
            with raises(TaskNotFoundError):
                await t.broker.wait_for("unknown", None)

    async def test_a_result_that_does_not_come(self, t: Harness) -> None:
        await t.push(job("a"))
        with raises(TaskTimeoutError):
            await t.broker.wait_for("a", 0.02)
        (claimed,) = await t.claim()
        assert await t.settle(Outcome.succeed(claimed, 1)) == [True]

    async def test_all_who_wait_are_told(self, t: Harness) -> None:
        a, b = await t.run(job("a"), job("b"))
        async with asyncio.timeout(SOON), asyncio.TaskGroup() as group:
            waits = [group.create_task(t.broker.wait_for(task_id, None)) for task_id in "aabb"]
            await self.is_waiting(*waits)
            await t.settle(Outcome.succeed(a, 1), Outcome.fail(b, "boom"))
        assert [wait.result().status for wait in waits] == ["success", "success", "failed", "failed"]

    async def test_who_waits_is_told_of_every_ending(self, t: Harness) -> None:
        await t.push(job("p"), job("stale", expires=t.now + 1))
        await t.push(job("child", parents=("p",)))
        async with asyncio.timeout(SOON), asyncio.TaskGroup() as group:
            ids = ("p", "child", "stale")
            waits = [group.create_task(t.broker.wait_for(task_id, None)) for task_id in ids]
            await self.is_waiting(*waits)
            await t.cancel("p")
            t.clock.advance(2)
            await t.claim()
        assert [wait.result().status for wait in waits] == ["cancelled"] * 3

    async def test_who_waits_through_a_retry_gets_the_end(self, t: Harness) -> None:
        (first,) = await t.run(job("a"))
        async with asyncio.timeout(SOON), asyncio.TaskGroup() as group:
            wait = group.create_task(t.broker.wait_for("a", None))
            await self.is_waiting(wait)
            await t.settle(Outcome.retry_at(first, t.now, "boom"))
            (second,) = await t.claim()
            await t.settle(Outcome.succeed(second, 2))
        assert wait.result().result == 2

    async def test_a_cancelled_wait_leaves_nothing_behind(self, t: Harness) -> None:
        (claimed,) = await t.run(job("a"))
        waits = [asyncio.create_task(t.broker.wait_for("a", None)) for _ in range(2)]
        await self.is_waiting(*waits)
        waits[0].cancel()
        await asyncio.wait(waits[:1])
        assert await t.settle(Outcome.succeed(claimed, 7)) == [True]
        async with asyncio.timeout(SOON):
            assert (await waits[1]).result == 7

    async def test_a_wait_for_a_job_ends_when_it_has_ended(self, t: Harness) -> None:
        """Also if it has already ended or is unknown. A wait for several jobs returns when one has ended."""
        (a,) = await t.run(job("a"))
        await t.push(job("b", due=t.now + 999))

        async def wait_until_one_is_over(*names: str) -> None:
            while not any(result and result.is_finished for result in await t.broker.get(names)):
                await t.broker.wait([("job", name) for name in names], None)  # a wake-up may come early

        async with asyncio.timeout(SOON), asyncio.TaskGroup() as group:
            waits = [group.create_task(wait_until_one_is_over(*names)) for names in ("a", "ba", "b")]
            await self.is_waiting(*waits)
            await t.settle(Outcome.succeed(a, 1))
            await asyncio.wait(waits[:2])
            await t.broker.wait([("job", "a")], None)
            await t.broker.wait([("job", "unknown")], None)
            await t.broker.wait([("job", "b")], 0.01)
            await t.cancel("b")

    async def test_a_push_wakes_who_wants_jobs(self, t: Harness) -> None:
        assert await self.consume(t, lambda: t.push(job("a"))) == ["a"]

    async def test_a_release_wakes_who_wants_jobs(self, t: Harness) -> None:
        (claimed,) = await t.run(job("a"))
        back = Outcome.release(claimed, "stopping")
        assert await self.consume(t, lambda: t.settle(back)) == ["a"]

    async def test_a_parent_wakes_who_wants_jobs(self, t: Harness) -> None:
        (parent,) = await t.run(job("parent"))
        await t.push(job("child", parents=("parent",)))
        assert await self.consume(t, lambda: t.settle(Outcome.succeed(parent, 1))) == ["child"]

    async def test_a_requeue_wakes_who_wants_jobs(self, t: Harness) -> None:
        await t.push(job("a"))
        await t.cancel("a")
        assert await self.consume(t, lambda: t.requeue("a")) == ["a"]

    async def test_a_resumed_queue_wakes_who_wants_jobs(self, t: Harness) -> None:
        await t.push(job("a"))
        await t.broker.set_queue("default", paused=True)
        assert await self.consume(t, lambda: t.broker.set_queue("default", paused=False)) == ["a"]

    async def test_a_due_job_wakes_who_wants_jobs(self, t: Harness) -> None:
        """The wait ends when the first job is due. The test advances its clock in the same steps."""
        await t.push(job("a", due=t.now + 0.05), job("b", due=t.now + 60))
        async with asyncio.timeout(SOON):
            while not (ids := await t.claim_ids()):
                await t.broker.wait([("queue", "default")], 60)
                t.clock.advance(0.05)
        assert ids == ["a"]

    async def test_a_due_job_wakes_also_who_waits_already(self, t: Harness) -> None:
        async def push_and_let_pass() -> None:
            await t.push(job("a", due=t.now + 0.01))
            t.clock.advance(0.01)

        assert await self.consume(t, push_and_let_pass) == ["a"]

    async def test_a_due_job_of_a_paused_queue_lets_its_workers_sleep(self, t: Harness) -> None:
        """Its due time has passed, but they cannot claim it, so it must not wake them again and again."""
        await t.push(job("a", due=t.now + 1))
        await t.broker.set_queue("default", paused=True)
        t.clock.advance(2)
        wait = await self.fall_asleep(t)
        await t.broker.set_queue("default", paused=False)
        async with asyncio.timeout(SOON):
            await wait
        assert await t.claim_ids() == ["a"]

    async def test_a_wait_ends_after_its_time(self, t: Harness) -> None:
        await t.claim()
        async with asyncio.timeout(SOON):
            await t.broker.wait([("queue", "default")], 0.01)
            await t.broker.wait([("worker", "")], 0.01)
            await t.broker.wait([("queue", "default")], 0)

    async def test_who_waits_for_news_is_told_of_a_cancellation(self, t: Harness) -> None:
        await t.run(job("a"))
        async with asyncio.timeout(SOON), asyncio.TaskGroup() as group:
            news = group.create_task(self.wait_for_news(t))
            await t.cancel("a")
        assert news.result() == ["a"]

    async def test_closing_ends_all_waits(self) -> None:
        clock = ManualClock()
        broker = await self.make_broker(clock)
        await broker.open()
        t = Harness(broker, clock, self.lease, self)
        await t.push(job("a", due=t.now + 999))
        await t.claim()
        wait = asyncio.create_task(broker.wait_for("a", None))
        await self.is_waiting(wait)
        await broker.close()
        async with asyncio.timeout(SOON):
            with raises(BackendError):
                await wait
        await broker.close()

    async def is_waiting(self, *waits: asyncio.Task[Any]) -> None:
        """Check that none of these waits ends within 30 ms."""
        done, _ = await asyncio.wait(waits, timeout=0.03, return_when=asyncio.FIRST_COMPLETED)
        assert not done

    async def fall_asleep(self, t: Harness) -> asyncio.Task[None]:
        """Return the wait of a worker that found no job. Earlier waits may have ended immediately."""
        for _ in range(20):
            assert await t.claim() == []
            wait = asyncio.create_task(t.broker.wait([("queue", "default")], 60))
            done, _ = await asyncio.wait([wait], timeout=0.03)
            if not done:
                return wait
        raise AssertionError("it asks for jobs again and again")

    async def consume(self, t: Harness, change: Any) -> list[str]:
        """Return what a waiting worker claims if `change` happens after it found nothing."""
        looked = asyncio.Event()

        async def worker() -> list[str]:
            while not (ids := await t.claim_ids()):
                looked.set()
                await t.broker.wait([("queue", "default")], 60)
            return ids

        async with asyncio.timeout(SOON), asyncio.TaskGroup() as group:
            consumer = group.create_task(worker())
            await looked.wait()
            await change()
        return consumer.result()

    async def wait_for_news(self, t: Harness) -> list[str]:
        while not (cancelled := (await t.beat("w1")).cancelled):
            await t.broker.wait([("worker", "")], 60)
        return list(cancelled)
