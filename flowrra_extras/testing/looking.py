"""The contract, part three: reading, tidying up, and waiting to be told."""

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
from flowrra_extras.testing.tools import ManualClock
from flowrra_extras.testing.trial import SOON, Contract, Trial, job, job_in, raises


class LookingContract(Contract):
    """Reading, and tidying up."""

    async def test_results_come_in_the_order_of_the_ids(self) -> None:
        async with self.trial() as t:
            await t.push(job("a"), job("b"))
            results = await t.broker.get(["b", "unknown", "a", "b"])
            assert [result and result.task_id for result in results] == ["b", None, "a", "b"]
            assert [result and result.status for result in results] == ["pending", None, "pending", "pending"]
            assert await t.broker.get([]) == []
            many = await t.broker.get([f"unknown {n}" for n in range(300)] + ["a"])
            assert [result is not None for result in many] == [False] * 300 + [True]

    async def test_results_can_be_recorded(self) -> None:
        async with self.trial() as t:
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

    async def test_a_job_is_not_recorded_over(self) -> None:
        """A record is of a job that ran elsewhere. If it is one of this store, its own row says more."""
        for status in TaskStatus:
            async with self.trial() as t:
                before = await job_in(t, status)
                ended = TaskResult[Any]("a", "task", TaskStatus.SUCCESS, 7, attempts=9, started=t.now, finished=t.now)
                await t.broker.record([ended, TaskResult("b", "task", TaskStatus.SUCCESS, 8, finished=t.now)])
                assert await t.job("a") == before
                other = (await t.broker.get(["b"]))[0]
                assert other is not None, "it ended before it ever ran, as far as the record tells"
                assert (other.status, other.result, other.attempts) == (TaskStatus.SUCCESS, 8, 0)

    async def test_find_by_each_property(self) -> None:
        async with self.trial() as t:
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

    async def test_find_page_by_page(self) -> None:
        async with self.trial() as t:
            await t.push(*[job(f"j{n}", task=f"t{n % 2}") for n in range(10)])
            seen: list[str] = []
            after = None
            while page := await t.broker.find(JobFilter(task="t0"), limit=2, after=after):
                assert len(page) <= 2
                seen += [found.id for found in page]
                after = page[-1].seq
            assert seen == ["j8", "j6", "j4", "j2", "j0"]
            assert len(await t.broker.find(JobFilter(), limit=3)) == 3

    async def test_counts(self) -> None:
        async with self.trial() as t:
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

    async def test_counts_of_what_is_ahead(self) -> None:
        async with self.trial() as t:
            await t.push(job("running"))
            await t.claim()
            await t.push(job("a"), job("b"), job("me", priority=1), job("c", priority=1), job("d", priority=-1))
            await t.push(job("later", due=t.now + 9), job("elsewhere", queue="q2"))
            me = await t.job("me")
            assert await t.broker.counts(JobFilter(ahead_of=me)) == {("default", TaskStatus.PENDING): 3}
            assert await t.find(ahead_of=me) == ["d", "b", "a"]
            assert await t.broker.counts(JobFilter(ahead_of=await t.job("d"))) == {}

    async def test_progress(self) -> None:
        async with self.trial() as t:
            (running,) = await t.run(job("a"))
            await t.push(job("waits"))
            others = {("waits", 0): Progress(2), ("waits", 1): Progress(2), ("unknown", 1): Progress(3)}
            await t.broker.report({("a", 1): Progress(1, 4, "one"), **others})
            await t.broker.report({("a", 1): Progress(2.5, 4, "two")})
            a, waits = await t.broker.get(["a", "waits"])
            assert a is not None
            assert waits is not None
            assert a.progress == Progress(2.5, 4, "two")
            assert waits.progress is None
            assert (await t.job("a")).progress == Progress(2.5, 4, "two")
            await t.settle(Outcome.release(running, "again"))
            assert (await t.job("a")).progress is None

    async def test_purge_is_by_retention(self) -> None:
        async with self.trial() as t:
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

    async def test_purge_in_steps(self) -> None:
        async with self.trial() as t:
            jobs = await t.run(*[job(f"j{n}") for n in range(5)])
            await t.settle(*[Outcome.succeed(done, 1, keep=0) for done in jobs])
            assert [await t.broker.purge(t.now + 1, 2) for _ in range(4)] == [2, 2, 1, 0]

    async def test_what_is_past_its_retention_longest_is_purged_first(self) -> None:
        async with self.trial() as t:
            jobs = await t.run(*[job(task_id) for task_id in "abc"])
            keep = {"a": 9, "b": 3, "c": 6}
            await t.settle(*[Outcome.succeed(done, 1, keep=keep[done.id]) for done in jobs])
            left = []
            while await t.broker.purge(t.now + 10, 1):
                left.append(await t.find())
            assert left == [["c", "a"], ["a"], []]

    async def test_what_runs_again_is_not_purged(self) -> None:
        async with self.trial() as t:
            (failed,) = await t.run(job("a"))
            await t.settle(Outcome.fail(failed, "boom"))
            await t.requeue("a")
            assert await t.broker.purge(t.now + 1e9, 10) == 0
            (again,) = await t.claim()
            await t.settle(Outcome.succeed(again, 1, keep=5))
            assert await t.broker.purge(t.now + 4, 10) == 0
            assert await t.broker.purge(t.now + 6, 10) == 1

    async def test_a_purged_id_is_free(self) -> None:
        async with self.trial() as t:
            (done,) = await t.run(job("a", unique="key"))
            await t.settle(Outcome.succeed(done, 1, keep=0))
            await t.broker.purge(t.now + 1, 10)
            with raises(TaskNotFoundError):
                await t.broker.wait_for("a", SOON)
            assert await t.push(job("a", unique="key")) == ["a"]
            assert await t.claim_ids() == ["a"]


class WaitingContract(Contract):
    """Being told, in place of asking again and again."""

    async def test_a_finished_result_is_there_at_once(self) -> None:
        async with self.trial() as t:
            (claimed,) = await t.run(job("a"))
            await t.settle(Outcome.succeed(claimed, 7))
            assert (await t.broker.wait_for("a", 0)).result == 7
            assert (await t.broker.wait_for("a", None)).result == 7

    async def test_an_unknown_id_is_an_error_at_once(self) -> None:
        async with self.trial() as t:
            async with asyncio.timeout(SOON):
                with raises(TaskNotFoundError):
                    await t.broker.wait_for("unknown", None)

    async def test_a_result_that_does_not_come(self) -> None:
        async with self.trial() as t:
            await t.push(job("a"))
            with raises(TaskTimeoutError):
                await t.broker.wait_for("a", 0.02)
            (claimed,) = await t.claim()
            assert await t.settle(Outcome.succeed(claimed, 1)) == [True]

    async def test_all_who_wait_are_told(self) -> None:
        async with self.trial() as t:
            a, b = await t.run(job("a"), job("b"))
            async with asyncio.timeout(SOON), asyncio.TaskGroup() as group:
                waits = [group.create_task(t.broker.wait_for(task_id, None)) for task_id in "aabb"]
                await self.is_waiting(*waits)
                await t.settle(Outcome.succeed(a, 1), Outcome.fail(b, "boom"))
            assert [wait.result().status for wait in waits] == ["success", "success", "failed", "failed"]

    async def test_who_waits_is_told_of_every_ending(self) -> None:
        async with self.trial() as t:
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

    async def test_who_waits_through_a_retry_gets_the_end(self) -> None:
        async with self.trial() as t:
            (first,) = await t.run(job("a"))
            async with asyncio.timeout(SOON), asyncio.TaskGroup() as group:
                wait = group.create_task(t.broker.wait_for("a", None))
                await self.is_waiting(wait)
                await t.settle(Outcome.retry_at(first, t.now, "boom"))
                (second,) = await t.claim()
                await t.settle(Outcome.succeed(second, 2))
            assert wait.result().result == 2

    async def test_a_cancelled_wait_leaves_nothing_behind(self) -> None:
        async with self.trial() as t:
            (claimed,) = await t.run(job("a"))
            waits = [asyncio.create_task(t.broker.wait_for("a", None)) for _ in range(2)]
            await self.is_waiting(*waits)
            waits[0].cancel()
            await asyncio.wait(waits[:1])
            assert await t.settle(Outcome.succeed(claimed, 7)) == [True]
            async with asyncio.timeout(SOON):
                assert (await waits[1]).result == 7

    async def test_a_push_wakes_who_wants_jobs(self) -> None:
        async with self.trial() as t:
            assert await self.consume(t, lambda: t.push(job("a"))) == ["a"]

    async def test_a_release_wakes_who_wants_jobs(self) -> None:
        async with self.trial() as t:
            (claimed,) = await t.run(job("a"))
            back = Outcome.release(claimed, "stopping")
            assert await self.consume(t, lambda: t.settle(back)) == ["a"]

    async def test_a_parent_wakes_who_wants_jobs(self) -> None:
        async with self.trial() as t:
            (parent,) = await t.run(job("parent"))
            await t.push(job("child", parents=("parent",)))
            assert await self.consume(t, lambda: t.settle(Outcome.succeed(parent, 1))) == ["child"]

    async def test_a_requeue_wakes_who_wants_jobs(self) -> None:
        async with self.trial() as t:
            await t.push(job("a"))
            await t.cancel("a")
            assert await self.consume(t, lambda: t.requeue("a")) == ["a"]

    async def test_a_resumed_queue_wakes_who_wants_jobs(self) -> None:
        async with self.trial() as t:
            await t.push(job("a"))
            await t.broker.set_queue("default", paused=True)
            assert await self.consume(t, lambda: t.broker.set_queue("default", paused=False)) == ["a"]

    async def test_a_due_job_wakes_who_wants_jobs(self) -> None:
        """The wait ends by itself when the first job is due; the clock of the test moves on with it."""
        async with self.trial() as t:
            await t.push(job("a", due=t.now + 0.05), job("b", due=t.now + 60))
            async with asyncio.timeout(SOON):
                while not (ids := await t.claim_ids()):
                    await t.broker.wait_ready(["default"], 60)
                    t.clock.advance(0.05)
            assert ids == ["a"]

    async def test_a_due_job_wakes_also_who_waits_already(self) -> None:
        async with self.trial() as t:

            async def push_and_let_pass() -> None:
                await t.push(job("a", due=t.now + 0.01))
                t.clock.advance(0.01)

            assert await self.consume(t, push_and_let_pass) == ["a"]

    async def test_a_due_job_of_a_paused_queue_lets_its_workers_sleep(self) -> None:
        """They get nothing however often they ask, so that its moment, which is past, must not wake them."""
        async with self.trial() as t:
            await t.push(job("a", due=t.now + 1))
            await t.broker.set_queue("default", paused=True)
            t.clock.advance(2)
            wait = await self.fall_asleep(t)
            await t.broker.set_queue("default", paused=False)
            async with asyncio.timeout(SOON):
                await wait
            assert await t.claim_ids() == ["a"]

    async def test_a_wait_ends_after_its_time(self) -> None:
        async with self.trial() as t:
            await t.claim()
            async with asyncio.timeout(SOON):
                await t.broker.wait_ready(["default"], 0.01)
                await t.broker.wait_ready([], 0.01)
                await t.broker.wait_ready(["default"], 0)

    async def test_who_waits_for_news_is_told_of_a_cancellation(self) -> None:
        async with self.trial() as t:
            await t.run(job("a"))
            async with asyncio.timeout(SOON), asyncio.TaskGroup() as group:
                news = group.create_task(self.wait_for_news(t))
                await t.cancel("a")
            assert news.result() == ["a"]

    async def test_closing_ends_all_waits(self) -> None:
        clock = ManualClock()
        broker = await self.make_broker(clock)
        await broker.open()
        t = Trial(broker, clock, self.lease, self)
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
        """None of these has ended, nor does within a moment."""
        done, _ = await asyncio.wait(waits, timeout=0.03, return_when=asyncio.FIRST_COMPLETED)
        assert not done

    async def fall_asleep(self, t: Trial) -> asyncio.Task[None]:
        """The wait of a worker that finds nothing; some before it may have ended at once."""
        for _ in range(20):
            assert await t.claim() == []
            wait = asyncio.create_task(t.broker.wait_ready(["default"], 60))
            done, _ = await asyncio.wait([wait], timeout=0.03)
            if not done:
                return wait
        raise AssertionError("it asks for jobs again and again")

    async def consume(self, t: Trial, change: Any) -> list[str]:
        """What a worker gets that waits for long when it finds nothing, if `change` comes after it looked."""
        looked = asyncio.Event()

        async def worker() -> list[str]:
            while not (ids := await t.claim_ids()):
                looked.set()
                await t.broker.wait_ready(["default"], 60)
            return ids

        async with asyncio.timeout(SOON), asyncio.TaskGroup() as group:
            consumer = group.create_task(worker())
            await looked.wait()
            await change()
        return consumer.result()

    async def wait_for_news(self, t: Trial) -> list[str]:
        while not (cancelled := (await t.beat("w1")).cancelled):
            await t.broker.wait_ready([], 60)
        return list(cancelled)
