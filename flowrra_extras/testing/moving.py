"""The contract, part four: how jobs leave a store for another one, and come from another one."""

import asyncio
import dataclasses

from flowrra import UNFINISHED, Attempt, Job, Outcome, TaskNotFoundError, TaskStatus, decode_arguments
from flowrra_extras.migrate import adopt_jobs, hold_jobs, release_jobs
from flowrra_extras.testing.trial import SOON, Contract, Trial, job, job_in, raises

MOVE = "a move"  # by whom jobs are held


async def hold(t: Trial, *task_ids: str, by: str = MOVE) -> list[bool]:
    return await hold_jobs(t.broker, task_ids, by=by, now=t.now)


async def adopt(t: Trial, *jobs: Job, by: str = MOVE) -> list[bool]:
    return await adopt_jobs(t.broker, jobs, by=by, now=t.now)


async def let_go(t: Trial, *task_ids: str, gone: bool = False, by: str = MOVE) -> list[bool]:
    return await release_jobs(t.broker, task_ids, by=by, gone=gone, now=t.now)


async def claim(t: Trial) -> list[Job]:
    await t.beat()  # its lease may have run out meanwhile
    return await t.claim()


async def claim_ids(t: Trial) -> list[str]:
    return [claimed.id for claimed in await claim(t)]


class MovingContract(Contract):
    """Holding, adopting, letting go."""

    async def test_a_held_job_does_not_run_until_it_is_let_go(self) -> None:
        for status in UNFINISHED - {TaskStatus.RUNNING}:
            async with self.trial() as t:
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

    async def test_a_job_that_waits_for_its_time_does_so_again(self) -> None:
        async with self.trial() as t:
            await t.push(job("a", due=t.now + 60))
            assert await hold(t, "a") == await let_go(t, "a") == [True]
            assert await t.statuses("a") == ["scheduled"]
            assert await claim_ids(t) == []
            t.clock.advance(61)
            assert await claim_ids(t) == ["a"]

    async def test_only_what_waits_can_be_held(self) -> None:
        for status in (*(set(TaskStatus) - UNFINISHED), TaskStatus.RUNNING):
            async with self.trial() as t:
                before = await job_in(t, status)
                assert await hold(t, "a", "nobody") == [False, False]
                assert await let_go(t, "a", gone=True) == [False]
                assert await t.job("a") == before

    async def test_a_hold_is_its_holders(self) -> None:
        async with self.trial() as t:
            await t.push(job("a"))
            assert await hold(t, "a") == await hold(t, "a") == [True]
            assert await hold(t, "a", by="another") == [False]
            assert await let_go(t, "a", by="another") == await let_go(t, "a", by="another", gone=True) == [False]
            assert await t.find(worker=MOVE, status=frozenset((TaskStatus.BLOCKED,))) == ["a"]
            assert await t.find(status=frozenset((TaskStatus.PENDING,))) == []
            assert await let_go(t, "a") == [True]
            assert await let_go(t, "a") == await let_go(t, "a", gone=True) == [False]
            assert await claim_ids(t) == ["a"]

    async def test_what_is_put_back_keeps_its_place(self) -> None:
        async with self.trial() as t:
            await t.push(job("a"), job("b"), job("c", priority=-1), job("d"))
            assert await hold(t, "d", "c", "a") == [True] * 3
            assert await let_go(t, "d", "a", "c") == [True] * 3
            assert await claim_ids(t) == ["c", "a", "b", "d"]

    async def test_what_is_gone_has_never_been(self) -> None:
        async with self.trial() as t:
            await t.push(job("a", unique="key"), job("b", due=t.now + 1))
            await hold(t, "a", "b")
            assert await let_go(t, "a", "b", gone=True) == [True, True]
            assert await t.find() == []
            assert await t.broker.counts() == {}
            t.clock.advance(2)
            assert await claim_ids(t) == []
            assert await t.push(job("c", unique="key"), job("a")) == ["c", "a"]
            assert await claim_ids(t) == ["c", "a"]

    async def test_who_waits_for_a_job_is_told_that_it_is_gone(self) -> None:
        async with self.trial() as t:
            await t.push(job("a"))
            waiting = asyncio.ensure_future(t.broker.wait_for("a", SOON))
            await asyncio.sleep(0.05)
            await hold(t, "a")
            await let_go(t, "a", gone=True)
            with raises(TaskNotFoundError):
                await waiting

    async def test_a_held_job_can_be_cancelled(self) -> None:
        async with self.trial() as t:
            await t.push(job("a", unique="key"), job("b", parents=("a",)))
            await hold(t, "a")
            assert await t.cancel("a")
            assert await t.statuses("a", "b") == ["cancelled"] * 2
            assert await let_go(t, "a") == await let_go(t, "a", gone=True) == [False]
            assert await t.requeue("a") == [True]
            assert await claim_ids(t) == ["a"]

    async def test_a_held_child_does_not_run_when_its_parent_succeeds(self) -> None:
        async with self.trial() as t:
            await t.push(job("a"), job("b", parents=("a",)))
            (parent,) = await claim(t)
            assert await hold(t, "b") == [True]
            await t.settle(Outcome.succeed(parent, 1))
            assert await claim_ids(t) == []
            assert await let_go(t, "b") == [True]
            assert await claim_ids(t) == ["b"]

    async def test_a_child_that_is_let_go_waits_for_its_parents(self) -> None:
        async with self.trial() as t:
            await t.push(job("a"), job("b", parents=("a",)), job("c", parents=("b",)))
            assert await hold(t, "b") == await let_go(t, "b") == [True]
            (parent,) = await claim(t)
            assert parent.id == "a"
            assert await t.statuses("b", "c") == ["blocked"] * 2
            await t.settle(Outcome.fail(parent, "boom"))
            assert await t.statuses("b", "c") == ["cancelled"] * 2

    async def test_an_adopted_job_keeps_what_it_is_and_was(self) -> None:
        async with self.trial() as t:
            history = (
                Attempt(1, "w9", 5.0, 6.0, "failure", "boom", "line 1"),
                Attempt(2, "w9", 7.0, 8.0, "crash", "x"),
            )
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

    async def test_an_adopted_job_waits_as_one_that_was_pushed(self) -> None:
        async with self.trial() as t:
            later = job("later", due=t.now + 60)
            family = job("parent"), job("child", parents=("parent",))
            await adopt(t, job("a"), later, *family, job("old", expires=t.now - 1), job("first", priority=-1))
            assert await claim_ids(t) == []
            assert await t.find(parent="parent") == ["child"]
            assert set(await t.find(status=UNFINISHED)) == {"a", "later", "parent", "child", "first"}
            counts = {TaskStatus.BLOCKED: 5, TaskStatus.CANCELLED: 1}  # what has expired, the claim has ended
            assert await t.broker.counts() == {("default", status): count for status, count in counts.items()}
            await let_go(t, "child", "parent", "first", "later", "a", "old")
            assert await t.statuses("later", "child") == ["scheduled", "blocked"]
            claimed = await claim(t)
            assert [found.id for found in claimed] == ["first", "a", "parent"]
            assert await t.statuses("old") == ["cancelled"]
            await t.settle(Outcome.succeed(claimed[2], 1))
            t.clock.advance(61)
            assert set(await claim_ids(t)) == {"later", "child"}

    async def test_an_adopted_suspect_runs_alone(self) -> None:
        async with self.trial() as t:
            assert await adopt(t, job("suspect", attempt=1, crashes=1), job("a")) == [True, True]
            await let_go(t, "suspect", "a")
            assert (await t.beat()).suspects
            assert await claim_ids(t) == ["suspect"]
            assert await claim_ids(t) == []

    async def test_a_known_id_is_not_adopted_again(self) -> None:
        for status in TaskStatus:
            async with self.trial() as t:
                before = await job_in(t, status)
                assert await adopt(t, job("a", args=(2,))) == [True]
                assert await t.job("a") == before
                assert await let_go(t, "a", gone=True) == [False]

    async def test_an_unfinished_job_with_its_key_keeps_a_job_out(self) -> None:
        async with self.trial() as t:
            (claimed,) = await t.run(job("a", unique="key"))
            assert await adopt(t, job("b", unique="key"), job("c")) == [False, True]
            assert set(await t.find()) == {"a", "c"}
            await t.settle(Outcome.succeed(claimed, 1))
            assert await adopt(t, job("b", unique="key")) == [True]
            assert await t.push(job("d", unique="key")) == ["b"]
