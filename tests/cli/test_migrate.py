"""Jobs that move from one broker to another, between any two kinds of them, and what stops on the way."""

import asyncio
import collections
import contextlib
import dataclasses
import functools
import itertools
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from flowrra import (
    BLOCKED,
    FINISHED,
    UNFINISHED,
    Action,
    Broker,
    BrokerError,
    Clock,
    ConfigError,
    Flowrra,
    Job,
    JobFilter,
    MemoryBroker,
    Outcome,
    SQLiteBroker,
    TaskStatus,
    WorkerInfo,
    current_job,
    decode_arguments,
    result_of,
)
from flowrra_extras import migrate as migrating
from flowrra_extras.commands import migrate as command
from flowrra_extras.migrate import Moved, adopt_jobs, hold_jobs, migrate, shared_broker
from flowrra_extras.postgres import PostgresBroker
from flowrra_extras.redis import RedisBroker
from tests.support.apps import eventually, explains, make_app, within
from tests.support.postgres_server import Connection, clean_schema, empty
from tests.support.redis_server import clean
from tests.support.services import POSTGRES_URL, REDIS_URL, require

KINDS = ("memory", "sqlite", "redis", "postgresql")
PAIRS = list(itertools.product(KINDS, KINDS))
# Each kind gives and takes once: every point at which a move can stop is tried on them.
CHAIN = [("memory", "sqlite"), ("sqlite", "redis"), ("redis", "postgresql"), ("postgresql", "memory")]

Maker = Callable[[str], Broker]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Maker]:
    """Makes a broker of a kind on an empty store. PostgreSQL has two, which are emptied and used in turns."""
    numbers, schemas = itertools.count(), list[tuple[Connection, str]]()
    with contextlib.ExitStack() as stack:

        def make(kind: str) -> Broker:
            if kind == "memory":
                return MemoryBroker()
            if kind == "sqlite":
                return SQLiteBroker(str(tmp_path / f"jobs{next(numbers)}.db"))
            if kind == "redis":
                return RedisBroker(f"{REDIS_URL}?prefix={stack.enter_context(clean(require(REDIS_URL)))[1]}")
            if len(schemas) < 2:
                schemas.append(stack.enter_context(clean_schema(require(POSTGRES_URL))))
            schemas.reverse()
            empty(*schemas[0])
            return PostgresBroker(f"{POSTGRES_URL}?schema={schemas[0][1]}")

        yield make


@contextlib.asynccontextmanager
async def sides(make: Maker, pair: tuple[str, str]) -> AsyncIterator[tuple[Broker, Broker]]:
    """Two open brokers."""
    async with contextlib.AsyncExitStack() as stack:
        source, target = map(make, pair)
        for broker in (source, target):
            await broker.open()
            stack.push_async_callback(broker.close)
        yield source, target


async def push(broker: Broker, *jobs: Job) -> None:
    assert await broker.push(jobs, now=time.time()) == [job.id for job in jobs]


async def claim(broker: Broker, limit: int = 100, queue: str = "default") -> list[Job]:
    now = time.time()
    await broker.heartbeat(WorkerInfo("w", pid=os.getpid(), queues={queue: 9}), lease=60.0, now=now)
    return await broker.claim(queue, limit=limit, worker="w", now=now)


async def settle(broker: Broker, *outcomes: Outcome) -> None:
    assert all(await broker.settle(outcomes, now=time.time()))


async def found(broker: Broker, **which: Any) -> dict[str, Job]:
    return {job.id: job for job in reversed(await broker.find(JobFilter(**which), limit=1000))}


async def states(broker: Broker) -> dict[str, str]:
    return {job.id: str(job.status) for job in (await found(broker)).values()}


async def runnable(broker: Broker) -> set[str]:
    """The jobs that run or may come to do so."""
    jobs = (await found(broker, status=UNFINISHED)).values()
    return {job.id for job in jobs if job.status is not BLOCKED or job.worker is None}


def lasting(job: Job) -> dict[str, Any]:
    """What a job takes along."""
    names = ("id", "task", "queue", "priority", "due", "expires", "unique", "parents", "overrides", "submitted",
             "attempt", "failures", "crashes", "error", "traceback", "history", "tags", "meta", "tolerates",
             "steps")  # fmt: skip
    args, kwargs = decode_arguments(job)
    return {name: getattr(job, name) for name in names} | {"args": repr(list(args)), "kwargs": dict(kwargs)}


async def one_of_each(broker: Broker) -> None:
    """Jobs in every state, with all that a job can have."""
    later = float(round(time.time()) + 500)
    first = Job("parent", "t"), Job("failing", "t", priority=1), Job("runs", "t", priority=2, queue="slow")
    await push(broker, *first, Job("waits for runs", "t", parents=("runs",)))
    parent, failing = await claim(broker)
    await claim(broker, queue="slow")
    await settle(broker, Outcome.succeed(parent, 42), Outcome.retry_at(failing, later, "boom", "line 1"))
    await push(
        broker,
        Job("plain", "t", args=(1, ("x", b"y")), kwargs={"k": {2}}, overrides={"timeout": 2.5}),
        Job("mail", "t", queue="mail", priority=-3),
        Job("first", "t", priority=-1),
        Job("later", "t", due=later, expires=later + 100, unique="key"),
        Job("child", "t", args=(result_of_id("parent"),), parents=("parent",)),
        Job("middle", "t", args=(result_of_id("child"),), parents=("child",)),
        Job("last", "t", parents=("middle", "parent", "plain")),
    )


def result_of_id(task_id: str) -> Any:
    return result_of(task_id)  # type: ignore[call-overload]  # a TaskId is a str at run time


MOVABLE = ["failing", "plain", "mail", "first", "later", "child", "middle", "last"]


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
async def test_jobs_take_along_all_that_they_are(make: Maker, pair: tuple[str, str]) -> None:
    async with sides(make, pair) as (source, target):
        await one_of_each(source)
        before = await found(source)
        moved = await migrate(source, target, wait=0)
        after = await found(target)
        assert [task_id for task_id in after if task_id != "parent"] == MOVABLE
        for task_id in MOVABLE:
            assert lasting(after[task_id]) == lasting(before[task_id])
        assert {job.worker for job in after.values()} <= {None, "w"}
        assert await states(source) == {"parent": "success", "runs": "running", "waits for runs": "blocked"}
        assert (moved.jobs.total(), moved.running, moved.relatives, moved.results) == (8, 1, 1, 1)
        assert not moved.is_complete
        assert [job.id for job in await claim(target)] == ["first", "plain", "child"]


@pytest.mark.parametrize("pair", CHAIN, ids="-".join)
async def test_a_second_start_moves_nothing(make: Maker, pair: tuple[str, str]) -> None:
    async with sides(make, pair) as (source, target):
        await push(source, Job("a", "t"), Job("b", "t", parents=("a",)))
        assert (await migrate(source, target)).jobs.total() == 2
        before = await found(target)
        assert await migrate(source, target, results=True) == Moved()
        assert await found(target) == before
        assert await found(source) == {}


@pytest.mark.parametrize("pair", CHAIN, ids="-".join)
async def test_results_are_copied_and_may_be_read_on_both_sides(make: Maker, pair: tuple[str, str]) -> None:
    async with sides(make, pair) as (source, target):
        await push(source, Job("good", "t"), Job("bad", "t"), Job("off", "t"))
        good, bad, _ = await claim(source)
        await settle(source, Outcome.succeed(good, {"x": (1, b"y")}), Outcome.fail(bad, "boom", "line 1"))
        await source.heartbeat(WorkerInfo("w"), lease=0, now=time.time())
        await source.cancel("off", now=time.time())
        assert (await migrate(source, target)).results == 0
        assert (await migrate(source, target, results=True)).results == 3
        ids = ["good", "bad", "off", "nobody"]
        assert await target.get(ids) == await source.get(ids)
        assert (await migrate(source, target, results=True)).results == 0


async def test_order_is_kept_within_a_queue_over_many_steps(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrating, "_BATCH", 7)
    monkeypatch.setattr(migrating, "_PAGE", 10)
    async with sides(make, ("sqlite", "memory")) as (source, target):
        ids = [f"j{n}" for n in range(100)]
        await push(source, *[Job(task_id, "t", priority=n % 3) for n, task_id in enumerate(ids)])
        assert (await migrate(source, target)).jobs.total() == 100
        assert list(await found(target)) == ids


# Running jobs and their kin ----------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["success", "failure", "release"])
async def test_running_jobs_are_waited_for(make: Maker, ending: str) -> None:
    async with sides(make, ("sqlite", "memory")) as (source, target):
        await push(source, Job("a", "t"), Job("b", "t", parents=("a",)))
        (running,) = await claim(source)
        ends = {"success": Outcome.succeed(running, 7), "failure": Outcome.fail(running, "x"),
                "release": Outcome.release(running, "x")}  # fmt: skip
        told: list[Moved] = []
        moving = asyncio.create_task(migrate(source, target, wait=20.0, tell=told.append))
        await asyncio.sleep(0.2)
        assert await states(target) == {}
        await settle(source, ends[ending])
        moved = await moving
        assert moved.is_complete
        expected = {"success": {"a": "success", "b": "pending"}, "failure": {},
                    "release": {"a": "pending", "b": "blocked"}}  # fmt: skip
        assert await states(target) == expected[ending]
        (result,) = await target.get(["a"])
        assert ending != "success" or (result is not None and result.result == 7)


async def test_the_jobs_of_a_dead_worker_are_put_back_and_moved(make: Maker) -> None:
    async with sides(make, ("sqlite", "memory")) as (source, target):
        await push(source, Job("a", "t"))
        now = time.time()
        await source.heartbeat(WorkerInfo("w", pid=os.getpid(), queues={"default": 1}), lease=0.2, now=now)
        await source.claim("default", limit=1, worker="w", now=now)
        assert (await migrate(source, target)).is_complete
        job = (await found(target))["a"]
        assert (job.status, job.attempt, job.crashes) == ("pending", 1, 1)


async def test_what_starts_during_the_move_stays_with_its_kin(make: Maker) -> None:
    async with sides(make, ("sqlite", "memory")) as (source, target):
        await push(source, Job("a", "t"), Job("b", "t", parents=("a",)), Job("c", "t", queue="other"))
        racing = Tampered(source)
        racing.before["hold"] = lambda: claim(source)
        moved = await migrate(racing, target, wait=0)
        assert await states(source) == {"a": "running", "b": "blocked"}
        assert await states(target) == {"c": "pending"}
        assert (moved.running, moved.relatives) == (1, 1)


async def test_a_parent_that_has_ended_binds_nobody(make: Maker) -> None:
    async with sides(make, ("sqlite", "memory")) as (source, target):
        children = [Job(f"c{n}", "t", args=(result_of_id("p"),), parents=("p",)) for n in range(5)]
        await push(source, Job("p", "t"), *children)
        await settle(source, *[Outcome.succeed(job, 7) for job in await claim(source)])
        assert [job.id for job in await claim(source, limit=2)] == ["c0", "c1"]
        moved = await migrate(source, target, wait=0)
        assert (moved.jobs.total(), moved.running, moved.relatives, moved.results) == (3, 2, 0, 1)
        assert await states(target) == {"p": "success", **dict.fromkeys(("c2", "c3", "c4"), "pending")}


async def test_what_an_earlier_start_holds_waits_again_if_it_has_to_stay(make: Maker) -> None:
    async with sides(make, ("sqlite", "memory")) as (source, target):
        await push(source, Job("a", "t"), Job("b", "t", parents=("a",)))
        by = migrating._holder(migrating._name(source), migrating._name(target))
        await hold_jobs(source, ["b"], by=by, now=time.time())
        await adopt_jobs(target, [Job("b", "t", parents=("a",))], by=by, now=time.time())
        (running,) = await claim(source)
        assert (await migrate(source, target, wait=0)).relatives == 1
        assert await states(target) == {}
        await settle(source, Outcome.succeed(running, 1))
        assert await states(source) == {"a": "success", "b": "pending"}


async def test_who_is_cancelled_during_the_move_stays_so(make: Maker) -> None:
    for step, side in [("push", 0), ("remove", 0), ("unhold", 1)]:
        async with sides(make, ("sqlite", "memory")) as pair:
            await push(pair[0], Job("a", "t"))
            racing = Tampered(pair[0] if step == "remove" else pair[1])
            racing.before[step] = functools.partial(pair[side].cancel, "a", now=time.time())
            both = (racing, pair[1]) if racing.inner is pair[0] else (pair[0], racing)
            moved = await migrate(*both)
            assert moved.is_complete
            assert [(await states(broker)).get("a") for broker in pair] == (
                ["cancelled", None] if side == 0 else [None, "cancelled"]
            )


async def test_only_one_start_of_a_move_is_at_work(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrating, "_BATCH", 5)
    async with sides(make, ("sqlite", "memory")) as (source, target):
        await push(source, *[Job(f"j{n}", "t") for n in range(100)])
        first, second = await asyncio.gather(migrate(source, target), migrate(source, target))
        assert {first.jobs.total(), second.jobs.total()} == {0, 100}
        other = WorkerInfo(
            migrating._holder(migrating._name(source), migrating._name(target)) + " x", "host", os.getpid()
        )
        await source.heartbeat(other, lease=60.0, now=time.time())
        monkeypatch.setattr(migrating, "_LEASE", 0.1)
        with pytest.raises(BrokerError, match=f"already running on host with the pid {os.getpid()}"):
            await migrate(source, target)


async def test_a_start_that_was_taken_over_from_ends(make: Maker) -> None:
    async with sides(make, ("sqlite", "memory")) as (source, target):
        move = migrating._Move(source, target, by="migrate x y", clock=Clock(), tell=lambda _: None)
        async with move.alone():
            other = WorkerInfo("migrate x y other", "host", os.getpid())
            await source.heartbeat(dataclasses.replace(move._me), lease=0.0, now=time.time())
            await source.heartbeat(other, lease=60.0, now=time.time())
            await push(source, Job("a", "t"), Job("b", "t", parents=("a",)))
            await claim(source)
            with pytest.raises(BrokerError, match="taken over"):
                await move.run(20.0)


# What stays --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_a_unique_key_that_is_taken_keeps_a_family_at_the_source(make: Maker, kind: str) -> None:
    async with sides(make, ("sqlite", kind)) as (source, target):
        await push(source, Job("a", "t"), Job("b", "t", unique="k", parents=("a",)), Job("c", "t"))
        await push(target, Job("x", "t", unique="k"))
        before = await found(source, ids=["a", "b"])
        moved = await migrate(source, target)
        assert list(moved.stays) == ["b"]
        assert "'k'" in moved.stays["b"]
        assert (moved.relatives, moved.jobs.total(), moved.is_complete) == (1, 1, False)
        assert await found(source) == before
        assert await states(target) == {"x": "pending", "c": "pending"}
        await target.cancel("x", now=time.time())
        assert (await migrate(source, target)).is_complete
        assert await states(target) == {"x": "cancelled", "c": "pending", "a": "pending", "b": "blocked"}


async def test_a_job_that_failed_at_the_target_is_not_lost_at_the_source(make: Maker) -> None:
    async with sides(make, ("sqlite", "memory")) as (source, target):
        await push(source, Job("a", "t"))
        (running,) = await claim(source)
        await settle(source, Outcome.fail(running, "boom"))
        await migrate(source, target, results=True)
        await source.requeue(["a"], now=time.time())
        moved = await migrate(source, target)
        assert moved.stays == {"a": "the target has a job of this id, which is failed"}
        assert await states(source) == {"a": "pending"}


@pytest.mark.parametrize("status", ["pending", "success"])
async def test_a_job_that_the_target_has_already_is_not_doubled(make: Maker, status: str) -> None:
    async with sides(make, ("sqlite", "memory")) as (source, target):
        await push(target, Job("fire@9", "t"))
        if status == "success":
            await settle(target, *[Outcome.succeed(job, 1) for job in await claim(target)])
        await push(source, Job("fire@9", "t"))
        assert (await migrate(source, target)).is_complete
        assert (await states(source), await states(target)) == ({}, {"fire@9": status})


async def test_a_job_that_another_move_holds_is_left_to_it(make: Maker) -> None:
    async with sides(make, ("sqlite", "memory")) as (source, target):
        await push(source, Job("a", "t"), Job("b", "t"))
        await hold_jobs(source, ["a"], by="migrate x y", now=time.time())
        moved = await migrate(source, target)
        assert moved.stays == {"a": "another move ('migrate x y') holds it: finish that one first"}
        assert await states(target) == {"b": "pending"}


async def test_paused_queues_are_paused_at_the_target(make: Maker) -> None:
    async with sides(make, ("sqlite", "memory")) as (source, target):
        await push(source, Job("a", "t"), Job("b", "t", queue="slow"))
        for queue in ("slow", "empty"):
            await source.set_queue(queue, paused=True)
        assert (await migrate(source, target)).paused == ["slow"]
        assert await target.paused() == {"slow"}
        await target.set_queue("slow", paused=False)
        assert (await migrate(source, target)).paused == []
        assert await target.paused() == set()


async def test_a_store_is_not_moved_onto_itself(make: Maker) -> None:
    for kind in KINDS:
        async with sides(make, (kind, kind)) as (source, _):
            await push(source, Job("a", "t"))
            async with contextlib.AsyncExitStack() as stack:
                twin = source.clone() or source
                if twin is not source:
                    await twin.open()
                    stack.push_async_callback(twin.close)
                with pytest.raises(ConfigError, match="one store"):
                    await migrate(source, twin)
            assert await states(source) == {"a": "pending"}
            assert await source.workers() == []


class Plain(MemoryBroker):
    """A broker that takes part in no move."""

    async def push(self, jobs: Sequence[Job], *, now: float, by: str | None = None) -> list[str]:
        if by is not None:
            raise ConfigError("Plain can take part in no move")
        return await super().push(jobs, now=now)

    async def change(self, task_ids: Sequence[str], action: Action, *, now: float, by: str | None = None) -> list[bool]:
        if action == "hold":
            raise ConfigError("Plain can take part in no move")
        return await super().change(task_ids, action, now=now, by=by)


async def test_a_broker_that_takes_part_in_no_move_is_refused_at_once(make: Maker) -> None:
    plain, memory = Plain(), MemoryBroker()
    await push(memory, Job("a", "t"))
    for pair in [(plain, memory), (memory, plain)]:
        with pytest.raises(ConfigError, match="Plain can take part in no move"):
            await migrate(*pair)
    assert await states(memory) == {"a": "pending"}


# Interruptions -----------------------------------------------------------------------------------


class PowerCutError(BrokerError):
    """The power is gone."""


class Tampered(Broker):
    """Another broker, with something that happens at its steps."""

    def __init__(self, inner: Broker, stop: Callable[[], bool] = lambda: False) -> None:
        self.inner = inner
        self.before: dict[str, Callable[[], Any]] = {}  # done once
        self._stop = stop

    def __getattribute__(self, name: str) -> Any:
        if name in ("inner", "before", "_stop", "_step") or name.startswith("__"):
            return object.__getattribute__(self, name)
        if name in ("change", "push", "remove", "record", "set_queue"):
            return lambda *args, **kwargs: self._step(name, args, kwargs)
        return getattr(self.inner, name)

    async def _step(self, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        step = args[1] if name == "change" else name
        if args[0] and step in self.before:
            await self.before.pop(step)()
        if self._stop():
            raise PowerCutError("before it")
        done = await getattr(self.inner, name)(*args, **kwargs)
        if self._stop():
            raise PowerCutError("after it")
        return done


async def interrupted(source: Broker, target: Broker, point: int) -> bool:
    """Move until that point is reached; whether it was."""
    points = itertools.count()
    pair = [Tampered(broker, lambda: next(points) == point) for broker in (source, target)]
    try:
        await migrate(*pair, results=True, wait=0)
    except PowerCutError:
        return True
    return False


@pytest.mark.timeout(300)  # some hundred moves, half of them on servers
@pytest.mark.parametrize("pair", CHAIN, ids="-".join)
async def test_a_move_may_stop_at_any_point(
    make: Maker, pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrating, "_BATCH", 4)
    for point in itertools.count():
        async with sides(make, pair) as (source, target):
            await one_of_each(source)
            await push(target, Job("x", "t", unique="taken"))
            await push(source, Job("y", "t", unique="taken"))
            before = await found(source)
            was_stopped = await interrupted(source, target, point)
            assert await runnable(source) & await runnable(target) == set()
            await migrate(Tampered(source), Tampered(target), results=True, wait=0)  # by the same name
            left = {"runs", "waits for runs", "y"}
            assert await runnable(source) == left
            assert await runnable(target) == {"x", *MOVABLE}
            after = await found(target)
            for task_id in MOVABLE:
                assert lasting(after[task_id]) == lasting(before[task_id])
            for broker in (source, target):
                assert all(job.worker in (None, "w") for job in (await found(broker)).values())
        if not was_stopped:
            break
    assert point > 30


async def work_off(broker: Broker, runs: collections.Counter[str]) -> None:
    """Run what can run now, and note it."""
    while jobs := [*await claim(broker), *await claim(broker, queue="mail")]:
        runs.update(job.id for job in jobs)
        await settle(broker, *[Outcome.succeed(job, job.id) for job in jobs])


@pytest.mark.timeout(120)  # some thirty moves
@pytest.mark.parametrize("pair", CHAIN[:2], ids="-".join)
async def test_a_job_runs_once_wherever_a_move_stopped(
    make: Maker, pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrating, "_BATCH", 4)
    for point in itertools.count():
        async with sides(make, pair) as (source, target):
            await one_of_each(source)
            runs = collections.Counter[str]()
            was_stopped = await interrupted(source, target, point)
            for broker in (source, target):
                await work_off(broker, runs)
            await migrate(Tampered(source), Tampered(target), wait=0)  # by the same name
            for broker in (source, target):
                await work_off(broker, runs)
            assert runs == dict.fromkeys(set(MOVABLE) - {"later", "failing"}, 1)  # which are not due yet
        if not was_stopped:
            break


def order_app(broker: Broker, charges: list[str]) -> Flowrra:
    app = make_app(broker=broker)

    @app.task(name="order")
    async def order() -> list[Any]:
        job = current_job()
        await job.step("charge", charges.append, "charged")
        return [await job.wait_event("paid"), await job.wait_event("delivered")]

    return app


@pytest.mark.parametrize("emitter", ["source", "target"])
@pytest.mark.parametrize("pair", CHAIN, ids="-".join)
async def test_a_job_that_waits_for_an_event_gets_it_at_the_target(
    make: Maker, pair: tuple[str, str], emitter: str
) -> None:
    charges: list[str] = []
    apps = {name: order_app(make(kind), charges) for name, kind in zip(("source", "target"), pair, strict=True)}
    source, target = apps["source"].broker, apps["target"].broker
    async with apps["source"], apps["target"]:
        await apps["source"].emit("paid", {"cents": 5})
        task_id = await apps["source"].submit("order")
        await eventually(lambda: explains(apps["source"], task_id, "waits for the event 'delivered'"))
        assert await migrate(source, target) == Moved(collections.Counter({TaskStatus.SCHEDULED: 1}), events=1)
        await eventually(lambda: explains(apps["target"], task_id, "waits for the event 'delivered'"))
        await apps[emitter].emit("delivered", "Ada")
        assert await migrate(source, target) == Moved(events=emitter == "source")
        result = await within(apps["target"].wait_for_result(task_id))
    assert (result.result, charges) == ([{"cents": 5}, "Ada"], ["charged"])


async def test_cancelling_ends_the_step_under_way(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrating, "_BATCH", 5)
    async with sides(make, ("sqlite", "memory")) as (source, target):
        await push(source, *[Job(f"j{n}", "t") for n in range(50)])
        slow = Tampered(target)
        slow.before["push"] = lambda: asyncio.sleep(0)
        moving = asyncio.ensure_future(migrate(source, slow))
        slow.before["push"] = lambda: asyncio.sleep(0, moving.cancel())
        with pytest.raises(asyncio.CancelledError):
            await moving
        assert len(await runnable(target)) == 5
        assert len(await runnable(source)) == 45
        assert (await migrate(source, target)).jobs.total() == 45
        assert not await found(source, status=UNFINISHED - FINISHED)
        assert dataclasses.asdict(await migrate(source, target)) == dataclasses.asdict(Moved())


def test_the_name_of_a_holder_keeps_secrets() -> None:
    names = [
        migrating._name(RedisBroker("redis://u:secret@h:1/2?prefix=p")),
        migrating._name(PostgresBroker("postgresql://u:secret@h/db?schema=s&password=secret")),
        migrating._name(SQLiteBroker("/x/jobs.db")),
    ]
    assert names == ["redis://h:1/2?prefix=p", "postgresql://h/db?schema=s", "sqlite:////x/jobs.db"]


def test_every_state_has_a_word_in_a_dry_run() -> None:
    assert {command._plan(status, results=True) for status in TaskStatus} >= {"are moved", "migrate waits for them"}


async def test_a_dry_run_says_which_events_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    async with order_app(shared_broker(url), []) as app:
        await app.emit("paid")
        task_id = await app.submit("order")
        await eventually(lambda: explains(app, task_id, "waits for the event 'delivered'"))
        await command._show(url, results=False)
    scheduled, success, events = capsys.readouterr().out.splitlines()
    assert scheduled == "         1 scheduled are moved"
    assert success == "         1 success   stay (see --results)"
    assert events.startswith("         1 events    stay: ")


async def test_a_held_job_says_what_holds_it(tmp_path: Path) -> None:
    async with make_app(f"sqlite:///{tmp_path / 'jobs.db'}").client() as app:
        await push(app.broker, Job("a", "t"))
        await hold_jobs(app.broker, ["a"], by="migrate x y", now=time.time())
        assert await app.explain("a") == "It is held by migrate x y: if that was interrupted, start it again."
