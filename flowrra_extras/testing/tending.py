"""The contract, part four: what an operator does by hand, and what is kept of the work that was done."""

import asyncio
import dataclasses
import itertools
from typing import Any

from flowrra import (
    FINISHED,
    HISTORY_LIMIT,
    UNFINISHED,
    Activity,
    Attempt,
    ExecutorConfig,
    Flowrra,
    JobFilter,
    Outcome,
    TaskStatus,
    length_bucket,
)
from flowrra_extras.activity import quantile
from flowrra_extras.testing.trial import SOON, Contract, Trial, job, job_in

MINUTE = 1_700_000_040  # the next one after the start of the manual clock


class SearchContract(Contract):
    """Finding jobs in a big store."""

    async def test_find_oldest_first(self) -> None:
        async with self.trial() as t:
            await t.push(*[job(f"j{n}", task=f"t{n % 2}") for n in range(10)])
            seen: list[str] = []
            after = None
            while page := await t.broker.find(JobFilter(task="t1"), limit=2, after=after, oldest_first=True):
                seen += [found.id for found in page]
                after = page[-1].seq
            assert seen == ["j1", "j3", "j5", "j7", "j9"]
            found = await t.broker.find(JobFilter(ids=["j4", "j2", "j8"]), limit=2, oldest_first=True)
            assert [one.id for one in found] == ["j2", "j4"]

    async def test_find_in_several_states_page_by_page(self) -> None:
        async with self.trial() as t:
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

    async def test_find_from_a_place_in_the_order(self) -> None:
        async with self.trial() as t:
            await t.push(*[job(f"j{n}") for n in range(6)])
            place = (await t.job("j2")).seq
            assert await t.find(from_seq=place) == ["j5", "j4", "j3", "j2"]
            window = await t.broker.find(JobFilter(from_seq=place), after=(await t.job("j5")).seq)
            assert [one.id for one in window] == ["j4", "j3", "j2"]
            assert sum((await t.broker.counts(JobFilter(from_seq=place))).values()) == 4
            assert await t.find(from_seq=place, ids=["j0", "j3"]) == ["j3"]

    async def test_find_by_a_part_of_the_error(self) -> None:
        async with self.trial() as t:
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
            assert await t.find(error="error", status=frozenset((TaskStatus.FAILED,)), task="task") == [
                "j2",
                "j1",
                "j0",
            ]

    async def test_find_the_children_of_a_job(self) -> None:
        async with self.trial() as t:
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

    async def test_a_job_still_tells_when_it_came_due(self) -> None:
        async with self.trial() as t:
            due = t.now + 5
            await t.push(job("a", due=due))
            t.clock.advance(6)
            (claimed,) = await t.claim()
            assert (claimed.due, (await t.job("a")).due) == (due, due)
            await t.settle(Outcome.succeed(claimed, 1))
            assert (await t.job("a")).due == due


class HandContract(Contract):
    """What an operator does, and the line that stays of it."""

    async def test_a_finished_job_can_be_deleted(self) -> None:
        for status in FINISHED:
            async with self.trial() as t:
                await job_in(t, status, unique="key")
                assert await t.broker.delete(["unknown", "a"]) == [False, True]
                assert await t.broker.get(["a"]) == [None]
                assert (await t.find(), await t.broker.counts()) == ([], {})
                assert await t.broker.delete(["a"]) == [False]
                assert await t.broker.purge(t.now + 1e9, 10) == 0
                assert await t.push(job("a", unique="key")) == ["a"]
                assert await t.claim_ids() == ["a"]
                assert await t.broker.delete([]) == []

    async def test_an_unfinished_job_is_not_deleted(self) -> None:
        for status in UNFINISHED:
            async with self.trial() as t:
                before = await job_in(t, status)
                assert await t.broker.delete(["a"]) == [False]
                assert await t.job("a") == before

    async def test_who_cancelled_and_requeued_is_noted(self) -> None:
        for status in (TaskStatus.SCHEDULED, TaskStatus.BLOCKED, TaskStatus.PENDING, TaskStatus.RETRYING):
            async with self.trial() as t:
                before = await job_in(t, status)
                t.clock.advance(1)
                assert await t.broker.cancel("a", now=t.now, by="Ada") is True
                cancelled = Attempt(before.attempt, "Ada", t.now, t.now, "note", "cancelled")
                assert (await t.job("a")).attempts == (*before.attempts, cancelled)
                t.clock.advance(1)
                assert await t.broker.requeue(["a", "unknown"], now=t.now, by="Бо") == [True, False]
                requeued = Attempt(before.attempt, "Бо", t.now, t.now, "note", "requeued")
                assert (await t.job("a")).attempts == (*before.attempts, cancelled, requeued)

    async def test_a_note_stays_when_what_runs_is_cancelled(self) -> None:
        async with self.trial() as t:
            (claimed,) = await t.run(job("a"))
            assert await t.broker.cancel("a", now=t.now, by="Ada") is True
            await t.settle(Outcome.cancel(claimed, "it was cancelled"))
            assert sorted(await t.endings("a")) == [(1, "cancel"), (1, "note")]
            assert await t.broker.requeue(["a"], now=t.now, by="Ada") == [True]
            assert sorted(await t.endings("a")) == [(1, "cancel"), (1, "note"), (1, "note")]
            assert [again.attempt for again in await t.claim()] == [2]

    async def test_what_is_refused_leaves_no_note(self) -> None:
        for status in TaskStatus:
            async with self.trial() as t:
                before = await job_in(t, status)
                may_cancel, may_requeue = status in UNFINISHED, status in FINISHED - {TaskStatus.SUCCESS}
                if not may_cancel:
                    assert await t.broker.cancel("a", now=t.now, by="Ada") is False
                if not may_requeue:
                    assert await t.broker.requeue(["a"], now=t.now, by="Ada") == [False]
                assert await t.job("a") == before

    async def test_notes_are_bounded_with_the_history(self) -> None:
        async with self.trial() as t:
            await t.push(job("a"))
            for _ in range(HISTORY_LIMIT):
                await t.broker.cancel("a", now=t.now, by="Ada")
                await t.broker.requeue(["a"], now=t.now, by="Ada")
            history = (await t.job("a")).history
            assert [note.error for note in history] == ["cancelled", "requeued"] * (HISTORY_LIMIT // 2)


class ActivityContract(Contract):
    """What workers did, told by their heartbeats or, without that, from the jobs that are kept."""

    async def test_the_memory_of_a_worker_is_told(self) -> None:
        async with self.trial() as t:
            await t.beat("w1", memory=10_000_000_000)
            await t.beat("w2", started=t.now + 1)
            assert [info.memory for info in await t.broker.workers()] == [10_000_000_000, None]

    async def test_there_is_no_activity_at_first(self) -> None:
        async with self.trial() as t:
            assert await t.broker.activity(0) == []

    async def test_rows_are_summed_over_workers(self) -> None:
        async with self.trial() as t:
            if not t.broker.keeps_activity:
                return
            one, two = row(0, "a", 1, runs={0: 1, 34: 2}), row(0, "a", 2, failed=1, retried=3, runs={34: 1})
            await t.tell(one, row(0, "b", 5, waits={3: 5}), row(60, "a", 7))
            await t.tell(two, worker="w2")
            both = row(0, "a", 3, failed=1, retried=3, runs={0: 1, 34: 3})
            assert await t.broker.activity(MINUTE) == [both, row(0, "b", 5, waits={3: 5}), row(60, "a", 7)]
            assert await t.broker.activity(MINUTE + 60) == [row(60, "a", 7)]
            assert await t.broker.activity(MINUTE + 61) == []

    async def test_a_repeated_heartbeat_doubles_nothing(self) -> None:
        async with self.trial() as t:
            if not t.broker.keeps_activity:
                return
            for _ in range(2):
                await t.tell(row(0, "a", 1), row(60, "a", 2))
            await t.tell(row(60, "a", 5), row(60, "b", 1))
            await t.tell()
            expected = [row(0, "a", 1), row(60, "a", 5), row(60, "b", 1)]
            assert await t.broker.activity(0) == expected

    async def test_activity_outlives_its_worker(self) -> None:
        async with self.trial() as t:
            if not t.broker.keeps_activity:
                return
            await t.tell(row(0, "a", 1))
            await t.tell(row(60, "a", 2), lease=0)
            assert await t.broker.workers() == []
            assert await t.broker.activity(0) == [row(0, "a", 1), row(60, "a", 2)]

    async def test_activity_is_kept_for_a_day(self) -> None:
        async with self.trial() as t:
            if not t.broker.keeps_activity:
                return
            await t.tell(row(0, "a", 1), row(120, "a", 2))
            t.clock.advance(MINUTE - t.now + 86_400 + 90)
            await t.tell(row(86_460, "a", 3))
            assert await t.broker.activity(0) == [row(120, "a", 2), row(86_460, "a", 3)]

    async def test_totals_grow_by_what_is_new(self) -> None:
        async with self.trial() as t:
            if not t.broker.keeps_activity:
                return
            assert await t.broker.totals() == []
            await t.tell(row(0, "a", 1, waits={3: 1}, waited=0.5), row(60, "a", 2, runs={4: 2}, ran=0.25))
            for _ in range(2):
                await t.tell(row(60, "a", 5, failed=1, runs={4: 5, 9: 1}, ran=1.75), row(60, "b c.d", 1))
            await t.tell(row(60, "a", 1, retried=3), worker="w2")
            assert await t.broker.totals() == [
                total("a", 7, failed=1, retried=3, waits={3: 1}, waited=0.5, runs={4: 5, 9: 1}, ran=1.75),
                total("b c.d", 1),
            ]

    async def test_totals_never_fall(self) -> None:
        """Whatever becomes of the minutes, of workers and of those who look."""
        async with self.trial() as t:
            if not t.broker.keeps_activity:
                return
            await t.tell(row(0, "a", 1))
            await t.tell(row(60, "a", 2), lease=0)
            t.clock.advance(MINUTE - t.now + 2 * 86_400)
            await t.tell(row(2 * 86_400, "a", 3))
            assert [one.minute for one in await t.broker.activity(0)] == [MINUTE + 2 * 86_400]
            assert await t.broker.totals() == [total("a", 6)]
            await t.tell(row(0, "a", 1))  # a worker that was asleep, and does not know whether it was heard
            assert await t.broker.totals() == [total("a", 6)]

    async def test_what_an_app_does_is_counted(self) -> None:
        """Whole: a worker runs jobs, and the broker comes to know what became of them and how long it took."""
        async with self.trial() as t:
            t.clock.advance(MINUTE - t.now + 1)
            app = Flowrra(broker=t.broker, clock=t.clock)
            app.config.executor = ExecutorConfig(heartbeat=0.01, lease=60)
            fails = iter((True, False))

            @app.task(name="good")
            async def good() -> None:
                t.clock.advance(3)

            @app.task(name="bad", max_retries=1, retry_delay=0)
            async def bad() -> None:
                raise ValueError

            @app.task(name="shaky", retry_delay=0)
            async def shaky() -> None:
                if next(fails):
                    raise ValueError

            async with app:
                waits = await good.options(delay=1).submit()  # a claim that is under way now cannot take it
                t.clock.advance(3)
                await t.broker.set_queue("default", paused=False)  # that wakes the worker
                await app.wait_for_result(waits, timeout=SOON)
                for task in (bad, shaky):
                    await app.wait_for_result(await app.submit(task), timeout=SOON)
                rows, totals = await self.told(t, 5), await t.broker.totals()
            by_task = {one.task: (one.minute, one.succeeded, one.failed, one.retried) for one in rows}
            assert by_task == {
                "good": (MINUTE, 1, 0, 0),
                "bad": (MINUTE, 0, 1, 1),
                "shaky": (MINUTE, 1, 0, 1),
            }
            assert totals == [dataclasses.replace(one, minute=0) for one in sorted(rows, key=lambda one: one.task)]
            (told,) = (one for one in rows if one.task == "good")
            assert (round(told.waited), round(told.ran)) == (2, 3)
            assert (told.waits, told.runs) == ({length_bucket(2): 1}, {length_bucket(3): 1})
            assert 1.5 < (quantile(told.runs, 0.5) or 0) <= 3.3

    async def told(self, t: Trial, attempts: int) -> list[Activity]:
        """What is known when so many attempts have been told of."""
        async with asyncio.timeout(SOON):
            for pause in itertools.repeat(0.005):
                rows = await t.broker.activity(0)
                if sum(one.succeeded + one.failed + one.retried for one in rows) >= attempts:
                    return rows
                await asyncio.sleep(pause)
        raise AssertionError("the pauses never end")


def row(after: int, task: str, succeeded: int, **more: Any) -> Activity:
    """A row of the minute so many seconds after MINUTE."""
    made = Activity(MINUTE + after, task, succeeded, more.pop("failed", 0), more.pop("retried", 0))
    made.waits.update(more.pop("waits", {}))
    made.runs.update(more.pop("runs", {}))
    made.waited, made.ran = more.pop("waited", 0.0), more.pop("ran", 0.0)
    assert not more
    return made


def total(task: str, succeeded: int, **more: Any) -> Activity:
    """A row of the totals."""
    return dataclasses.replace(row(0, task, succeeded, **more), minute=0)
