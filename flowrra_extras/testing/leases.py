"""The contract: what becomes of leases when the store, or a worker, was without an answer for a while."""

from flowrra import MAX_CRASHES, Job, Outcome, Progress, TaskStatus
from flowrra_extras.testing.trial import Contract, Trial, job


class LeaseContract(Contract):
    """Who was late rescues nobody: an outage of the store must not look like the death of all its workers."""

    async def two_workers(self, t: Trial) -> list[Job]:
        """w1 runs the job `a`, and w2 nothing."""
        claimed = await t.run(job("a"))
        await t.beat("w2")
        return claimed

    async def test_after_an_outage_everybody_keeps_what_it_ran(self) -> None:
        async with self.trial() as t:
            (claimed,) = await self.two_workers(t)
            await t.lapse(1.25)
            for worker in ("w2", "w1", "w2"):
                notices = await t.beat(worker)
                assert (notices.lapsed, list(notices.lost_workers), notices.suspects) == (False, [], False)
            found = await t.job("a")
            assert (found.status, found.attempt, found.crashes) == (TaskStatus.RUNNING, 1, 0)
            assert sorted(info.id for info in await t.broker.workers()) == ["w1", "w2"]
            assert await t.settle(Outcome.succeed(claimed, 1)) == [True]

    async def test_who_is_not_back_one_lease_after_an_outage_is_dead(self) -> None:
        async with self.trial() as t:
            await self.two_workers(t)
            await t.lapse(1.25)
            assert list((await t.beat("w2")).lost_workers) == []
            for _ in range(2):
                await t.lapse(0.45)
                assert list((await t.beat("w2")).lost_workers) == []
                assert await t.claim_ids(worker="w2") == []
            await t.lapse(0.2)
            assert list((await t.beat("w2")).lost_workers) == ["w1"]
            assert await t.endings("a") == [(1, "crash")]
            assert (await t.beat("w1")).lapsed

    async def test_a_claim_after_an_outage_rescues_nobody(self) -> None:
        async with self.trial() as t:
            await self.two_workers(t)
            await t.lapse(1.25)
            assert await t.claim_ids(worker="w2") == []
            await t.beat("w2")
            assert await t.claim_ids(worker="w2") == []
            assert not (await t.beat("w1")).lapsed
            assert await t.statuses("a") == ["running"]

    async def test_an_outage_that_only_one_lease_outlives(self) -> None:
        """Heartbeats are not in step: of two workers that were heard a little apart, one lease ends in the outage."""
        async with self.trial() as t:
            await self.two_workers(t)
            await t.lapse(0.3)
            await t.beat("w2")
            await t.lapse(0.9)
            assert await t.claim_ids(worker="w2") == []
            assert list((await t.beat("w2")).lost_workers) == []
            assert await t.claim_ids(worker="w2") == []
            assert not (await t.beat("w1")).lapsed
            assert await t.statuses("a") == ["running"]

    async def test_a_fresh_lease_is_given_once(self) -> None:
        """Else a worker that is late now and then would keep the dead alive for ever."""
        async with self.trial() as t:
            await self.two_workers(t)
            for _ in range(2):
                await t.lapse(1.25)
                assert list((await t.beat("w2")).lost_workers) == []
                assert await t.claim_ids(worker="w2") == []
            await t.lapse(0.3)
            assert list((await t.beat("w2")).lost_workers) == ["w1"]

    async def test_a_heartbeat_earns_the_next_fresh_lease(self) -> None:
        """Outage upon outage ends no job as if it had killed its workers."""
        async with self.trial() as t:
            await self.two_workers(t)
            for _ in range(MAX_CRASHES + 1):
                await t.lapse(1.25)
                for worker in ("w2", "w1"):
                    notices = await t.beat(worker)
                    assert (notices.lapsed, list(notices.lost_workers)) == (False, [])
            found = await t.job("a")
            assert (found.status, found.attempt, found.crashes) == (TaskStatus.RUNNING, 1, 0)

    async def test_a_new_worker_rescues_at_once(self) -> None:
        """One that is started when all others have died need not wait for a lease more."""
        async with self.trial() as t:
            await self.two_workers(t)
            await t.lapse(1.25)
            assert sorted((await t.beat("w3")).lost_workers) == ["w1", "w2"]
            assert await t.claim_ids(worker="w3") == ["a"]

    async def test_who_was_taken_for_dead_rescues_nobody_when_it_is_back(self) -> None:
        async with self.trial() as t:
            await self.two_workers(t)
            await t.beat("w3")
            await t.crash("w2", seen_by="w3")
            await t.beat("w3", lease=0)
            await t.beat("w1")
            assert await t.claim_ids(worker="w1") == ["a"]
            await t.lapse(1.25)
            assert (await t.beat("w2")).lapsed
            notices = await t.beat("w1")
            assert (notices.lapsed, list(notices.lost_workers)) == (False, [])
            assert await t.statuses("a") == ["running"]

    async def test_a_repeated_heartbeat_still_tells_of_the_lapse(self) -> None:
        """The answer to the first was lost. Who is not told goes on with jobs that others run by now."""
        async with self.trial() as t:
            await t.run(job("a"))
            before = t.worker("w1")
            await t.crash("w1", seen_by="w2")
            assert (await t.beat_as(before)).lapsed
            assert (await t.beat("w1")).lapsed
            assert not (await t.beat("w1")).lapsed

    async def test_a_repeated_first_heartbeat_tells_of_no_lapse(self) -> None:
        async with self.trial() as t:
            await t.beat_as(t.worker("w1"))
            assert not (await t.beat("w1")).lapsed
            assert not (await t.beat("w1")).lapsed

    async def test_progress_of_an_attempt_that_is_over_is_dropped(self) -> None:
        async with self.trial() as t:
            await t.run(job("a"))
            await t.broker.report({("a", 1): Progress(1)})
            await t.crash("w1", seen_by="w2")
            await t.broker.report({("a", 1): Progress(2)})
            assert (await t.job("a")).progress is None
            await t.claim(worker="w2")
            await t.broker.report({("a", 1): Progress(3), ("b", 1): Progress(3)})
            assert (await t.job("a")).progress is None
            await t.broker.report({("a", 2): Progress(4)})
            await t.broker.report({("a", 1): Progress(5)})
            assert (await t.job("a")).progress == Progress(4)
