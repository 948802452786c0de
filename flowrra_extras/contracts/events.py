"""The contract: events. A waiting job becomes ready, whether the event is emitted before or after its settle."""

import asyncio
from typing import Any

from flowrra import EVENT, FlowrraError, Job, JobFilter, Outcome, TaskStatus, event_id
from flowrra_extras.contracts.harness import Contract, Harness, job, raises, tests_take

LATER = 3600.0


def waits_for(claimed: Job, event: str, due: float) -> Outcome:
    """Return an outcome with which the job waits until the event is emitted, or until `due`."""
    outcome = Outcome.snooze(claimed, due, f"it waits for {event}")
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
        waiting = asyncio.ensure_future(t.broker.wait([("queue", "default")], 60))
        await asyncio.sleep(0.05)
        await emit(t, "paid")
        await asyncio.wait_for(waiting, 10)
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
