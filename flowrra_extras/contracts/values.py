"""The contract: arguments and results are the same on every broker."""

import contextlib
import dataclasses
import datetime as dt
import enum
import zoneinfo
from collections.abc import AsyncIterator, Callable
from typing import Any

import flowrra
from flowrra_extras.contracts.harness import SOON, Contract, Harness, job, raises, tests_take


class Colour(enum.StrEnum):
    RED = "red"


class Kind(enum.Enum):
    HOME = "home"
    AWAY = "away"


@dataclasses.dataclass
class Address:
    street: Any
    colours: tuple[Any, ...] = ()


@dataclasses.dataclass
class RunningApp:
    """A running app on the broker under test."""

    t: Harness
    app: flowrra.Flowrra
    seen: list[Any] = dataclasses.field(default_factory=list)  # the arguments that tasks received

    def task(self, function: Callable[..., Any], **options: Any) -> flowrra.Task[..., Any]:
        made: flowrra.Task[..., Any] = self.app.task(name=function.__name__, **options)(function)
        return made

    async def result(self, task_id: str) -> flowrra.TaskResult[Any]:
        return await self.app.wait_for_result(task_id, timeout=SOON)

    async def call(self, task: flowrra.Task[..., Any], *args: Any, **kwargs: Any) -> flowrra.TaskResult[Any]:
        return await self.result(await task.submit(*args, **kwargs))


@contextlib.asynccontextmanager
async def running_app(contract: Contract) -> AsyncIterator[RunningApp]:
    async with contract.harness() as t:
        app = flowrra.Flowrra(broker=t.broker, clock=t.clock)
        app.config.executor = flowrra.ExecutorConfig(heartbeat=0.01, lease=60)
        async with app:
            yield RunningApp(t, app)


@tests_take(running_app)
class ValuesContract(Contract):
    """Arguments and results. Objects of the caller are never shared: each attempt and each reader gets a copy."""

    async def test_a_result_that_cannot_be_kept_ends_the_job_at_once(self, b: RunningApp) -> None:
        async def returns_object(value: Any) -> Any:
            b.seen.append(1)
            return [value, object()]

        async def returns_placeholder() -> Any:
            return {"later": flowrra.result_of(await returns.submit(1))}

        def returns_huge() -> int:
            return 10**5_000

        returns = b.task(returns_object, retry_delay=0)
        for task in (returns, b.task(returns_huge, retry_delay=0), b.task(returns_placeholder, retry_delay=0)):
            result = await b.call(task, *((1,) if task is returns else ()))
            assert (result.status, result.attempts, result.result) == (flowrra.TaskStatus.FAILED, 1, None)
            assert f"the result of {task.name}" in (result.error or ""), result.error

    async def test_arguments_that_cannot_be_read_end_the_job_at_once(self, b: RunningApp) -> None:
        b.task(echo, retry_delay=0)
        await b.t.push(job("a", task="echo", payload='[[{"$":"of the future","v":1}],{}]'))
        result = await b.result("a")
        assert (result.status, result.attempts) == (flowrra.TaskStatus.FAILED, 1)
        assert "of the future" in (result.error or "")

    async def test_a_parent_whose_result_is_gone_ends_the_job_at_once(self, b: RunningApp) -> None:
        b.task(echo, retry_delay=0)
        parent: Any = flowrra.ResultOf("parent")
        await b.t.push(job("parent", queue="other"), job("child", args=(parent,), parents=("parent",), task="echo"))
        await b.t.cancel("child")
        (claimed,) = await b.t.claim(queue="other")
        await b.t.settle(flowrra.Outcome.succeed(claimed, 1))
        assert await b.t.broker.delete(["parent"]) == [True]
        await b.t.requeue("child")
        result = await b.result("child")
        assert (result.status, result.attempts) == (flowrra.TaskStatus.FAILED, 1)
        assert "the result of its parent parent was removed" in (result.error or "")

    async def test_a_retry_gets_what_the_first_attempt_got(self, b: RunningApp) -> None:
        async def spoils(values: list[Any], *, more: dict[str, Any]) -> Any:
            b.seen.append((list(values), dict(more)))
            values.append("spoilt")
            more["spoilt"] = True
            if len(b.seen) < 3:
                raise ValueError
            return "done"

        assert (await b.call(b.task(spoils, retry_delay=0), [1, [2]], more={"a": {1}})).result == "done"
        assert b.seen == [([1, [2]], {"a": {1}})] * 3

    async def test_what_is_submitted_is_what_it_was_then(self, b: RunningApp) -> None:
        task = b.task(echo)
        shared: dict[str, Any] = {"n": 0, "list": []}
        ids = []
        for n in range(3):
            shared["n"] = n
            shared["list"].append(n)
            ids.append(await task.options(delay=1).submit(shared))
        rows = [{"value": shared["list"]}]
        ids += await b.app.submit_many(task.options(delay=1), rows)
        rows[0]["value"] = "changed"
        shared.clear()
        b.t.clock.advance(2)
        await b.t.broker.set_queue("default", paused=False)  # wakes the worker
        results = [(await b.result(task_id)).result for task_id in ids]
        assert results == [{"n": n, "list": list(range(n + 1))} for n in range(3)] + [[0, 1, 2]]

    async def test_values_arrive_as_they_are_kept(self, b: RunningApp) -> None:
        async def look(value: Any) -> Any:
            b.seen.append(value)
            return value

        task = b.task(look)
        riga = dt.datetime(2024, 10, 27, 3, 30, tzinfo=zoneinfo.ZoneInfo("Europe/Riga"), fold=1)
        for value, kept in (
            ((1, (2.5, b"x")), (1, (2.5, b"x"))),
            (Address("Elm", (Colour.RED,)), {"street": "Elm", "colours": ("red",)}),
            (Colour.RED, "red"),
            ({Colour.RED: {1}}, {"red": {1}}),
            (riga, riga),
            (riga.timetz(), riga.timetz()),
        ):
            result = (await b.call(task, value)).result
            for found in (result, b.seen.pop()):
                assert (found, type(found), repr(found)) == (kept, type(kept), repr(kept))

    async def test_a_task_gets_what_it_is_annotated_with(self, b: RunningApp) -> None:
        async def move(address: Address, kind: Kind, *more: Address) -> list[Address]:
            b.seen.append((address, kind, more))
            return [address, *more]

        task = b.task(move)
        address = Address("Elm", (1,))
        parent = await task.submit(address, Kind.HOME, Address("Oak"))
        child = await task.submit(
            Address(flowrra.result_of(parent)), "away", flowrra.result_of(await b.task(echo).submit(address))
        )
        assert (await b.result(parent)).result == [address, Address("Oak")]
        plain = [{"street": "Elm", "colours": (1,)}, {"street": "Oak", "colours": ()}]
        assert (await b.result(child)).result == [Address(plain), address]
        assert b.seen == [(address, Kind.HOME, (Address("Oak"),)), (Address(plain), Kind.AWAY, (address,))]
        (kept,) = await b.t.broker.get([parent])
        assert kept is not None
        assert kept.result == plain
        await b.t.push(job("misfit", task="move", args=({"street": 1}, "neither")))
        failed = await b.result("misfit")
        assert (failed.status, failed.attempts) == (flowrra.TaskStatus.FAILED, 1)
        with raises(flowrra.SerializationError, match="an argument of move: kind is 'neither', where Kind"):
            await task.submit(address, "neither")

    async def test_each_reader_of_a_result_has_a_copy(self, b: RunningApp) -> None:
        async def lends() -> Any:
            return b.seen

        b.seen.append({"a": [1]})
        task_id = await b.task(lends).submit()
        found = await b.result(task_id)
        found.result.append(1)
        b.seen[0]["a"].append(2)
        assert (await b.result(task_id)).result == [{"a": [1]}]
        (read,) = await b.t.broker.get([task_id])
        assert read is not None
        read.result[0].clear()
        (await b.app.get_job(task_id)).result.clear()
        assert (await b.app.get_job(task_id)).result == [{"a": [1]}]
        await b.t.broker.record([dataclasses.replace(found, task_id="recorded")])
        found.result.clear()
        assert (await b.result("recorded")).result == [{"a": [1]}, 1]

    async def test_a_result_stands_in_for_its_placeholder_wherever_that_may_be(self, b: RunningApp) -> None:
        task = b.task(echo)
        parent: Any = flowrra.result_of(await task.submit(7))
        values: tuple[tuple[Any, Any], ...] = (
            ([{"a": (parent, 1)}], [{"a": (7, 1)}]),
            (Address(parent, (parent,)), {"street": 7, "colours": (7,)}),
            ([Address("Elm", (Address(parent),))], [{"street": "Elm", "colours": ({"street": 7, "colours": ()},)}]),
        )
        for value, resolved in values:
            assert (await b.call(task, value)).result == resolved
            assert (await b.call(task, value=value)).result == resolved
        for value in ({parent}, frozenset((parent,)), {parent: 1}, {(1, parent): 2}, [Address({parent})]):
            with raises(flowrra.SerializationError, match="result_of"):
                await task.submit(value)
            with raises(flowrra.SerializationError, match=r"kwargs\['value'\]"):
                await task.submit(value=value)

    async def test_an_argument_that_cannot_be_kept_is_named(self, b: RunningApp) -> None:
        task = b.task(echo)
        with raises(flowrra.SerializationError, match=r"args\[0\]\['a'\]\[1\]"):
            await task.submit({"a": [1, object()]})
        with raises(flowrra.SerializationError, match="time zone"):
            await task.submit(dt.datetime(2024, 1, 1, tzinfo=_OddZone()))
        with raises(flowrra.TaskNotFoundError):
            await task.submit(flowrra.result_of("nobody"))  # type: ignore[call-overload]
        assert await b.app.jobs() == []


async def echo(value: Any) -> Any:
    return value


class _OddZone(dt.tzinfo):
    def utcoffset(self, moment: dt.datetime | None) -> dt.timedelta:
        return dt.timedelta(hours=1)

    def dst(self, moment: dt.datetime | None) -> None:
        return None

    def tzname(self, moment: dt.datetime | None) -> str:
        return "odd"
