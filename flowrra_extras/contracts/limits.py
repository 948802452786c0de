"""The contract: limits of running jobs and of starts in a time, keys, fair queues, and what frees a place."""

import asyncio
import contextlib
import unittest
from collections.abc import AsyncIterator

import flowrra
from flowrra_extras.contracts.harness import SOON, Contract, Harness, job, outcomes_of, raises, tests_take

PENDING, BLOCKED, RUNNING = flowrra.TaskStatus.PENDING, flowrra.TaskStatus.BLOCKED, flowrra.TaskStatus.RUNNING


def of(key: str | None, task_id: str, **fields: object) -> flowrra.Job:
    """A job of the limit `api`, with that key."""
    return job(task_id, limit="api", key=key, **fields)


async def declare(t: Harness, **numbers: object) -> None:
    name = str(numbers.pop("name", "api"))
    await t.broker.set_limit(flowrra.Limit(name=name, **numbers), now=t.now)  # type: ignore[arg-type]


async def state(t: Harness, key: str = "") -> flowrra.LimitKey:
    (found,) = await t.broker.limit_states([f"api:{key}"])
    return found


async def later(t: Harness, seconds: float) -> None:
    """Let time pass, in which the workers keep their leases."""
    t.clock.advance(seconds)
    for worker in ("w1", "w2"):
        await t.beat(worker)


async def run_all(t: Harness, most: int = 100) -> list[str]:
    """Claim and settle, one job after the other, until nothing is ready; the ids in this order."""
    ids: list[str] = []
    while len(ids) < most and (claimed := await t.claim(1)):
        ids += [one.id for one in claimed]
        await t.settle(*(flowrra.Outcome.succeed(one, None) for one in claimed))
    return ids


class _LimitContract(Contract):
    """What the parts below share."""

    has_limits = True  # False: the broker refuses limits; see RefusedLimitContract

    @contextlib.asynccontextmanager
    async def limited(self) -> AsyncIterator[Harness]:
        """An open broker that has limits."""
        if not self.has_limits:
            raise unittest.SkipTest("this broker has no limits")
        async with self.harness() as t:
            yield t


class RefusedLimitContract(_LimitContract):
    """A broker without limits says so; it never runs a job as if it had none."""

    async def test_a_broker_without_limits_refuses_them(self) -> None:
        async with self.harness() as t:
            assert t.broker.has_limits is self.has_limits
            if self.has_limits:
                return
            for action in ("limit", "pause"):
                with raises(flowrra.ConfigError, match="limit"):
                    await t.broker.change(["api"], action, now=t.now, by=flowrra.Limit(name="api", concurrency=1).text)
            for by in (None, "a move"):
                with raises(flowrra.ConfigError, match="'api'"):
                    await t.broker.push([of(None, "a")], now=t.now, by=by)
            assert await t.find() == []


@tests_take(_LimitContract.limited)
class ConcurrencyContract(_LimitContract):
    """At most a number of jobs of a limit key run at once, and whatever ends one lets the next run."""

    async def test_jobs_above_the_concurrency_wait_and_others_flow_past(self, t: Harness) -> None:
        await declare(t, concurrency=2)
        await t.push(*(of(None, name) for name in "abcd"), job("x"), of("k", "y"))
        assert await t.statuses(*"abcdxy") == ["pending", "pending", "blocked", "blocked", "pending", "pending"]
        assert await t.claim_ids() == ["a", "b", "x", "y"]
        assert await t.claim_ids() == []

    async def test_every_ending_of_an_attempt_lets_the_next_run(self, t: Harness) -> None:
        await declare(t, concurrency=1)
        for number, make in enumerate(outcomes_of()):
            # The first one goes on later, or comes back to its place by priority behind the second.
            await t.push(of(None, f"a{number}", priority=-9), of(None, f"b{number}", priority=-9))
            (claimed,) = await t.claim()
            assert claimed.id == f"a{number}"
            assert await t.status(f"b{number}") is BLOCKED
            assert await t.settle(make(claimed, t.now)) == [True]
            is_back = await t.status(claimed.id) is PENDING
            assert await t.claim_ids() == [claimed.id if is_back else f"b{number}"]
            (running,) = await t.broker.find(flowrra.JobFilter(status=frozenset((RUNNING,))))
            await t.settle(flowrra.Outcome.succeed(running, None))
            await later(t, 10)
            rest = await run_all(t)
            assert len(rest) == len(set(rest)) <= 1

    async def test_a_job_that_comes_back_alone_runs_again(self, t: Harness) -> None:
        await declare(t, concurrency=1)
        (claimed,) = await t.run(of("k", "a"))
        await t.settle(flowrra.Outcome.release(claimed, "why"))
        (claimed,) = await t.claim()
        await t.settle(flowrra.Outcome.retry_at(claimed, t.now - 1, "boom"))
        assert await t.claim_ids() == ["a"]

    async def test_of_several_that_end_in_one_call_each_lets_one_run(self, t: Harness) -> None:
        await declare(t, concurrency=2)
        await t.push(*(of(None, name) for name in "abcde"))
        claimed = await t.claim()
        await t.settle(flowrra.Outcome.succeed(claimed[0], 1), flowrra.Outcome.fail(claimed[1], "boom"))
        assert await t.claim_ids() == ["c", "d"]
        assert await t.statuses("e") == ["blocked"]

    async def test_a_report_of_a_running_job_lets_nothing_run(self, t: Harness) -> None:
        await declare(t, concurrency=1)
        await t.push(of(None, "a"), of(None, "b"))
        (claimed,) = await t.claim()
        assert await t.settle(flowrra.Outcome.report(claimed, 1, flowrra.Progress(1, 2))) == [True]
        assert await t.cancel("a")
        assert await t.claim_ids() == []

    async def test_keys_wait_in_the_order_of_priority_and_submission(self, t: Harness) -> None:
        await declare(t, concurrency=1)
        await t.push(of("k", "a"), of("k", "b", priority=5), of("k", "c"), of("k", "d", priority=-5), of("l", "e"))
        assert await run_all(t) == ["d", "a", "c", "e", "b"]

    async def test_the_rescue_of_a_killed_worker_frees_the_only_place(self, t: Harness) -> None:
        await declare(t, concurrency=1)
        await t.push(of("k", "a"), of("k", "b"))
        assert await t.claim_ids(worker="w1") == ["a"]
        assert (await t.crash("w1", seen_by="w2")).lost_workers == ["w1"]
        assert await t.statuses("a", "b") == ["pending", "blocked"]
        (again,) = await t.claim(worker="w2")
        assert (again.id, again.limit, again.key) == ("a", "api", "k")
        await t.settle(flowrra.Outcome.succeed(again, 1))
        assert await t.claim_ids(worker="w2") == ["b"]

    async def test_a_worker_that_leaves_gives_its_places_back(self, t: Harness) -> None:
        await declare(t, concurrency=1)
        await t.push(of("k", "a"), of("k", "b", priority=-1))
        await t.claim(worker="w1")
        await t.beat("w1", 0.0)
        assert await t.claim_ids(worker="w2") == ["b"] or await t.status("a") is PENDING

    async def test_what_leaves_the_queue_before_it_runs_lets_the_next_in(self, t: Harness) -> None:
        await declare(t, concurrency=1)
        await t.push(of("k", "a"), of("k", "b", expires=t.now + 5), of("k", "c"), of("k", "d"))
        assert await t.cancel("a")
        assert await t.status("b") is PENDING
        await later(t, 6)
        await t.claim(queue="another")  # its upkeep
        assert await t.statuses("b", "c") == ["cancelled", "pending"]
        assert await t.broker.change(["c"], "hold", now=t.now, by="a move") == [True]
        assert await t.claim_ids() == ["d"]

    async def test_what_waits_for_its_limit_can_be_cancelled_and_expires(self, t: Harness) -> None:
        await declare(t, concurrency=1)
        await t.push(of("k", "a"), of("k", "b"), of("k", "c", expires=t.now + 5), of("k", "d"))
        assert await t.cancel("b")
        await later(t, 6)
        assert await run_all(t) == ["a", "d"]
        assert await t.statuses("b", "c") == ["cancelled", "cancelled"]

    async def test_what_is_due_later_asks_when_it_is_due(self, t: Harness) -> None:
        await declare(t, concurrency=1)
        await t.push(of("k", "a", due=t.now + 5, priority=-1), of("k", "b"), of("k", "c"))
        (claimed,) = await t.claim()
        assert claimed.id == "b"
        await later(t, 6)
        assert await t.claim_ids() == []
        assert await t.status("a") is BLOCKED
        await t.settle(flowrra.Outcome.retry_at(claimed, t.now + 5, "boom"))
        assert await run_all(t) == ["a", "c"]
        await later(t, 6)
        assert await run_all(t) == ["b"]

    async def test_a_child_asks_when_its_parents_have_ended(self, t: Harness) -> None:
        await declare(t, concurrency=1)
        await t.push(of("k", "a"), job("p", queue="parents"), of("k", "b", parents=("p",)))
        await t.claim()
        (parent,) = await t.claim(queue="parents")
        await t.settle(flowrra.Outcome.succeed(parent, 1))
        assert await t.status("b") is BLOCKED
        assert await t.claim_ids() == []
        (running,) = await t.broker.find(flowrra.JobFilter(ids=["a"]))
        await t.settle(flowrra.Outcome.succeed(running, 1))
        assert await t.claim_ids() == ["b"]

    async def test_a_parent_that_ends_again_lets_nothing_run_past_the_limit(self, t: Harness) -> None:
        await declare(t, concurrency=1)
        await t.push(of("k", "a"), job("p", queue="parents"), of("k", "b", parents=("p",), tolerates=("p",)))
        await t.claim()
        for _ in range(2):
            (parent,) = await t.claim(queue="parents")
            await t.settle(flowrra.Outcome.fail(parent, "boom"))
            assert await t.status("b") is BLOCKED
            await t.requeue("p")
        assert await t.claim_ids() == []

    async def test_a_requeue_and_the_end_of_a_hold_ask_again(self, t: Harness) -> None:
        await declare(t, concurrency=1)
        await t.push(of("k", "a"), of("k", "b"))
        (claimed,) = await t.claim()
        await t.settle(flowrra.Outcome.fail(claimed, "boom"))
        assert await t.requeue("a") == [True]
        assert await t.statuses("a", "b") == ["blocked", "pending"]
        assert await t.broker.change(["a"], "hold", now=t.now, by="a move") == [True]
        assert flowrra.is_held(await t.job("a"), "a move")
        assert await run_all(t) == ["b"]
        assert await t.broker.change(["a"], "unhold", now=t.now, by="a move") == [True]
        assert await t.claim_ids() == ["a"]

    async def test_a_job_of_another_store_keeps_its_limit_and_key(self, t: Harness) -> None:
        await declare(t, concurrency=1)
        await t.push(of("k", "a"))
        await t.broker.push([of("k", "b"), of("l", "c")], now=t.now, by="a move")
        assert await t.broker.change(["b", "c"], "unhold", now=t.now, by="a move") == [True, True]
        assert await t.statuses("b", "c") == ["blocked", "pending"]
        found = await t.job("b")
        assert (found.limit, found.key) == ("api", "k")
        assert await run_all(t) == ["a", "b", "c"]

    async def test_what_takes_the_place_of_a_job_takes_its_key_along(self, t: Harness) -> None:
        await declare(t, concurrency=1)
        await t.push(of("k", "a", unique="u"), of("k", "b"), of("l", "c"))
        new = of("l", "new", unique="u", conflict=flowrra.Conflict("replace"))
        assert await t.push(new) == ["a"]
        assert await t.statuses("a", "b", "c") == ["blocked", "pending", "pending"]
        assert (await t.job("a")).key == "l"
        postponed = of("k", "newer", unique="u", conflict=flowrra.Conflict("postpone"), due=t.now + 5)
        assert await t.push(postponed) == ["a"]
        assert await t.status("a") is flowrra.TaskStatus.SCHEDULED
        assert await run_all(t) == ["b", "c"]
        await later(t, 6)
        assert await run_all(t) == ["a"]

    async def test_a_suspect_waits_for_its_limit_and_then_runs_alone(self, t: Harness) -> None:
        await declare(t, concurrency=1)
        await t.push(of("k", "a"), job("x"))
        assert await t.claim_ids(1, worker="w1") == ["a"]
        await t.push(of("k", "b", priority=-1))
        await t.crash("w1", seen_by="w2")
        assert await t.statuses("a", "b") == ["blocked", "pending"]
        assert await t.claim_ids(1, worker="w2") == ["b"]
        (running,) = await t.broker.find(flowrra.JobFilter(ids=["b"]))
        await t.settle(flowrra.Outcome.succeed(running, 1))
        assert await t.claim_ids(worker="w2") == ["a"]

    async def test_a_freed_job_wakes_those_who_wait_for_its_queue(self, t: Harness) -> None:
        await declare(t, concurrency=1)
        await t.push(of("k", "a"), of("k", "b", queue="other"))
        (claimed,) = await t.claim()
        assert await t.claim(queue="other") == []
        async with t.woken("other"):
            await t.settle(flowrra.Outcome.succeed(claimed, 1))
        assert await t.claim_ids(queue="other") == ["b"]

    async def test_a_push_of_many_jobs_admits_what_may_run_and_comes_to_an_end(self, t: Harness) -> None:
        await declare(t, concurrency=1)
        number = flowrra.UPKEEP_STEP + 200
        await declare(t, name="wide", concurrency=number)
        await t.push(*(job(f"wide {n}", limit="wide", queue="other") for n in range(number)))
        assert (await t.broker.counts())["other", PENDING] == number
        await t.push(*(of(f"k{n % number}", f"j{n}") for n in range(2 * number)))
        seen: set[str] = set()
        for _ in range(20):
            claimed = await t.claim(number)
            seen.update(one.id for one in claimed)
            await t.settle(*(flowrra.Outcome.succeed(one, 1) for one in claimed))
            await asyncio.sleep(0)
        assert len(seen) == 2 * number


@tests_take(_LimitContract.limited)
class RateContract(_LimitContract):
    """At most a number of jobs start in a time. The claim counts them, and counts none that may not run."""

    async def test_a_burst_runs_at_once_and_then_one_in_each_interval(self, t: Harness) -> None:
        await declare(t, rate="2/s", burst=3)
        await t.push(*(of(None, f"j{n}") for n in range(8)))
        assert await t.claim_ids() == ["j0", "j1", "j2"]
        assert await t.claim_ids() == []
        for n in range(3, 6):
            await later(t, 0.4)
            assert await t.claim_ids() == []
            await later(t, 0.1)
            assert await t.claim_ids() == [f"j{n}"]
        await later(t, 60)
        assert await t.claim_ids() == ["j6", "j7"]

    async def test_the_rate_holds_over_any_time_whenever_claims_come(self, t: Harness) -> None:
        await declare(t, rate="10/s", burst=2)
        await t.push(*(of(None, f"j{n}") for n in range(60)))
        taken: list[float] = []
        for _ in range(40):
            taken += [t.now for _ in await t.claim(5)]
            await later(t, 0.07)
        assert len(taken) >= 27
        for first in range(len(taken)):
            for last in range(first, len(taken)):
                assert last - first + 1 <= 2 + 1e-6 + 10 * (taken[last] - taken[first] + 1e-5)

    async def test_keys_have_rates_of_their_own(self, t: Harness) -> None:
        await declare(t, rate="1/s")
        await t.push(of("k", "a"), of("k", "b"), of("l", "c"), of(None, "d"))
        assert await t.claim_ids() == ["a", "c", "d"]
        await later(t, 1.0)
        assert await t.claim_ids() == ["b"]

    async def test_a_wait_for_jobs_ends_when_the_rate_allows_the_next(self, t: Harness) -> None:
        await declare(t, rate="5/s")
        await t.push(of(None, "a"), of(None, "b"))
        assert await t.claim_ids() == ["a"]
        assert await t.claim_ids() == []
        due = (await state(t)).due
        assert due is not None
        assert 0.0 < due - t.now <= 0.2 + 1e-5
        await asyncio.wait_for(t.broker.wait([("queue", "default")], 60), SOON)
        await later(t, 0.2)
        assert await t.claim_ids() == ["b"]

    async def test_a_job_that_must_wait_for_the_rate_changes_the_end_of_the_wait(self, t: Harness) -> None:
        await declare(t, rate="5/s")
        await t.push(of(None, "a"))
        assert await t.claim_ids() == ["a"]
        assert await t.claim_ids() == []
        async with t.woken():
            await t.push(of(None, "b"))

    async def test_a_job_that_comes_back_needs_the_rate_again(self, t: Harness) -> None:
        await declare(t, rate="1/s", burst=2)
        (first, _) = await t.run(of(None, "a"), of(None, "b"))
        await t.settle(flowrra.Outcome.release(first, "why"))
        assert await t.claim_ids() == []
        await later(t, 1.0)
        assert await t.claim_ids() == ["a"]

    async def test_a_rate_and_a_concurrency_both_hold(self, t: Harness) -> None:
        await declare(t, concurrency=1, rate="1/s", burst=2)
        await t.push(of(None, "a"), of(None, "b"), of(None, "c"))
        (claimed,) = await t.claim()
        await t.settle(flowrra.Outcome.succeed(claimed, 1))
        (claimed,) = await t.claim()
        await later(t, 5.0)
        assert await t.claim_ids() == []
        await t.settle(flowrra.Outcome.succeed(claimed, 1))
        assert await t.claim_ids() == ["c"]

    async def test_a_cancelled_job_does_not_use_up_the_rate(self, t: Harness) -> None:
        await declare(t, rate="1/m")
        await t.push(of(None, "a"), of(None, "b"))
        assert await t.cancel("a")
        assert await t.claim_ids() == ["b"]

    async def test_a_clock_that_is_put_back_stops_a_limit_for_a_burst_only(self, t: Harness) -> None:
        await declare(t, rate="1/s", burst=2)
        await t.push(*(of(None, name) for name in "abcd"))
        assert await t.claim_ids() == ["a", "b"]
        t.clock.jump_wall(-3_600.0)
        await t.push(of(None, "e"))
        ids: list[str] = []
        for _ in range(4):
            await later(t, 1.0)
            ids += await t.claim_ids()
        assert ids[:2] == ["c", "d"]

    async def test_the_rows_of_keys_that_are_not_used_any_more_are_dropped(self, t: Harness) -> None:
        await declare(t, rate="1/s")
        await t.run(of("k", "a"), of("l", "b"))
        assert (await state(t, "k")).tat > t.now
        await t.broker.purge(t.now + 10, 100)
        assert (await state(t, "k")).row == (0.0, None, False)


@tests_take(_LimitContract.limited)
class LimitChangeContract(_LimitContract):
    """Limits that are declared late, change or are paused; and how they are seen."""

    async def test_jobs_of_an_undeclared_limit_wait_until_it_is_declared(self, t: Harness) -> None:
        await t.push(of("k", "a"), of("k", "b"), of("l", "c"))
        assert await t.claim_ids() == []
        assert (await state(t, "k")).limit is None
        async with t.woken():
            await declare(t, concurrency=1)
        assert sorted(await t.claim_ids()) == ["a", "c"]

    async def test_a_higher_limit_lets_more_run_and_a_lower_one_lets_them_end(self, t: Harness) -> None:
        await declare(t, concurrency=1)
        await t.push(*(of("k", name) for name in "abcd"))
        assert await t.claim_ids() == ["a"]
        await declare(t, concurrency=3)
        claimed = [*await t.claim(), *await t.broker.find(flowrra.JobFilter(ids=["a"]))]
        assert [one.id for one in claimed] == ["b", "c", "a"]
        await declare(t, concurrency=1)
        for one in claimed[:2]:
            await t.settle(flowrra.Outcome.succeed(one, 1))
            assert await t.claim_ids() == []
        await t.settle(flowrra.Outcome.succeed(claimed[2], 1))
        assert await t.claim_ids() == ["d"]

    async def test_a_limit_without_numbers_limits_nothing(self, t: Harness) -> None:
        await declare(t, rate="1/d")
        await t.push(*(of("k", name) for name in "abc"))
        assert await t.claim_ids() == ["a"]
        await declare(t)
        assert await t.claim_ids() == ["b", "c"]

    async def test_a_change_reaches_all_keys_however_many(self, t: Harness) -> None:
        await declare(t, concurrency=1)
        number = flowrra.UPKEEP_STEP + 50
        await t.push(*(of(f"k{n}", f"a{n}") for n in range(number)), *(of(f"k{n}", f"b{n}") for n in range(number)))
        await declare(t, concurrency=2)
        seen: set[str] = set()
        for _ in range(20):
            seen.update(await t.claim_ids(number))
            await asyncio.sleep(0)
        assert len(seen) == 2 * number

    async def test_a_limit_that_is_lifted_lets_the_jobs_of_all_keys_run(self, t: Harness) -> None:
        await declare(t, concurrency=1)
        await t.push(*(of(f"k{n % 5}", f"j{n}") for n in range(20)))
        await declare(t)
        await t.claim(queue="another")  # its upkeep
        assert len(await t.claim_ids()) == 20

    async def test_a_rate_may_become_slower_and_faster(self, t: Harness) -> None:
        await declare(t, rate="10/s")
        await t.push(*(of(None, name) for name in "abcd"))
        assert await t.claim_ids() == ["a"]
        await declare(t, rate="1/m")
        await later(t, 1.0)
        assert await t.claim_ids() == ["b"]
        await later(t, 1.0)
        assert await t.claim_ids() == []
        await declare(t, rate="1/s")
        assert await t.claim_ids() == []
        await later(t, 2.0)
        assert await t.claim_ids() == ["c"]

    async def test_a_paused_key_runs_nothing_until_it_is_resumed(self, t: Harness) -> None:
        await declare(t, concurrency=2)
        await t.push(*(of("k", name) for name in "abc"), of("l", "x"))
        (claimed,) = await t.claim(1)
        assert await t.broker.change(["api:k"], "pause", now=t.now) == [True]
        assert await t.broker.change(["api:k", "api:l"], "pause", now=t.now) == [False, True]
        assert await t.broker.change(["api:l"], "resume", now=t.now) == [True]
        assert await t.claim_ids() == ["x"]
        assert await t.statuses("a", "b", "c") == ["running", "blocked", "blocked"]
        assert await t.settle(flowrra.Outcome.succeed(claimed, 1)) == [True]
        await t.push(of("k", "d"))
        await declare(t, concurrency=3)
        assert await t.claim_ids() == []
        assert (await state(t, "k")).paused
        async with t.woken():
            assert await t.broker.change(["api:k"], "resume", now=t.now) == [True]
        assert await t.claim_ids() == ["b", "c", "d"]
        assert await t.broker.change(["api:k"], "resume", now=t.now) == [False]

    async def test_the_use_of_a_limit_is_counted(self, t: Harness) -> None:
        await declare(t, concurrency=1)
        await declare(t, name="none", rate="100/m", burst=20)
        await t.push(*(of("k", name) for name in "abc"), *(of("l", name) for name in "de"), of("m", "f"))
        await t.push(job("u", limit="unknown"))
        await t.claim(1)
        await t.broker.change(["api:m"], "pause", now=t.now)
        api, none, unknown = await t.broker.limits()
        assert (api.limit, api.is_declared) == (flowrra.Limit(name="api", concurrency=1), True)
        assert (none.limit, none.waiting) == (flowrra.Limit(name="none", rate="100/m", burst=20), 0)
        assert (unknown.limit.name, unknown.is_declared, unknown.waiting) == ("unknown", False, 1)
        assert (api.running, api.pending, api.waiting, api.waiting_keys) == (1, 1, 4, 3)
        assert (api.longest_key, api.longest, api.paused) == ("k", 2, ("m",))
        assert api.limit.declared == t.now

    async def test_jobs_ahead_of_one_that_waits_are_those_of_its_key(self, t: Harness) -> None:
        await declare(t, concurrency=1)
        await t.push(of("k", "a"), of("l", "b"), of(None, "c"), of("k", "d"), of("k", "e"), of("k", "f", priority=-1))
        await t.push(job("x"))
        ahead = await t.broker.counts(flowrra.JobFilter(ahead_of=await t.job("e")))
        assert ahead == {("default", PENDING): 1, ("default", BLOCKED): 2}
        (claimed,) = await t.claim(1)
        assert (claimed.limit, claimed.key) == ("api", "k")
        before = await state(t, "k")
        assert (before.running, before.pending, before.has_waiting) == (1, 0, True)


@tests_take(_LimitContract.limited)
class FairContract(_LimitContract):
    """In a fair queue each key has a few jobs ready, and the next of it go behind those of all others."""

    async def test_keys_take_turns(self, t: Harness) -> None:
        await declare(t, turn=2)
        await t.push(*(of("big", f"b{n}") for n in range(6)), *(of("small", f"s{n}") for n in range(3)))
        assert await t.claim_ids(4) == ["b0", "b1", "s0", "s1"]
        assert await t.claim_ids(3) == ["b2", "b3", "s2"]
        assert await t.claim_ids() == ["b4", "b5"]

    async def test_turns_are_given_in_the_order_of_keys_however_jobs_are_stored(self, t: Harness) -> None:
        await declare(t, turn=2)
        for name in ("s0", "s1", "s2", "s3", *(f"b{n}" for n in range(6))):
            await t.push(of("small" if name[0] == "s" else "big", name))
        assert await t.claim_ids(4) == ["s0", "s1", "b0", "b1"]
        assert await t.claim_ids(4) == ["b2", "b3", "s2", "s3"]

    async def test_a_new_key_waits_for_one_round_at_most(self, t: Harness) -> None:
        await declare(t, turn=2)
        await t.push(*(of("big", f"b{n}") for n in range(30)), *(of("huge", f"h{n}") for n in range(30)))
        for _ in range(7):
            await t.claim(1)
        await t.push(of("new", "n"))
        order = [task_id for _ in range(10) for task_id in await t.claim_ids(1)]
        assert order.index("n") <= 4
        assert await t.find(ids=["n"], status=frozenset((RUNNING,))) == ["n"]

    async def test_priorities_come_before_turns(self, t: Harness) -> None:
        await declare(t, turn=1)
        await t.push(of("k", "a"), of("k", "b", priority=-1), of("l", "c"), of("l", "d", priority=5))
        assert await run_all(t) == ["a", "b", "c", "d"] or await t.find() != []

    async def test_jobs_ahead_are_counted_by_turns(self, t: Harness) -> None:
        await declare(t, turn=1)
        await t.push(of("k", "a"), of("k", "b"), of("l", "c"))
        assert await t.claim_ids(1) == ["a"]
        assert await t.broker.counts(flowrra.JobFilter(ahead_of=await t.job("b"))) == {("default", PENDING): 1}
        assert await t.broker.counts(flowrra.JobFilter(ahead_of=await t.job("c"))) == {}

    async def test_a_fair_key_may_have_a_concurrency_as_well(self, t: Harness) -> None:
        await declare(t, turn=2, concurrency=1)
        await t.push(*(of("k", name) for name in "abc"), of("l", "x"))
        assert await t.claim_ids() == ["a", "x"]

    async def test_a_job_that_comes_back_goes_to_the_end(self, t: Harness) -> None:
        await declare(t, turn=5)
        await t.push(of("k", "a"), of("l", "b"), of("l", "c"))
        (claimed,) = await t.claim(1)
        await t.settle(flowrra.Outcome.release(claimed, "why"))
        assert await t.claim_ids() == ["b", "c", "a"]
