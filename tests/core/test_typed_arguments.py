"""A task receives what its annotations say, and results come back as it has returned them."""

import dataclasses
import datetime as dt
import enum
import json
import logging
from collections.abc import AsyncIterator, Callable, Hashable, Iterable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Generic, LiteralString, NewType, Protocol, TypeVar

import pydantic
import pytest

from flowrra import (
    ConfigError,
    Event,
    Flowrra,
    Job,
    SerializationError,
    TaskResult,
    TaskStatus,
    encode_arguments,
    result_of,
)
from flowrra_extras.testing import isolated
from tests.support import typed_work as shop
from tests.support.apps import make_app
from tests.support.typed_work import (
    BLUE,
    ORDER,
    RED,
    Box,
    Colour,
    Express,
    Line,
    Model,
    Order,
    Point,
    Secretive,
    Size,
    Struct,
)

T = TypeVar("T")


def task_of(annotation: Any, app: Flowrra | None = None, *, returns: Any = Any, default: Any = ...) -> Any:
    """A task with one parameter of that annotation, which returns what it has got."""

    async def echo(value: Any) -> Any:
        return value

    echo.__annotations__ = {"value": annotation, "return": returns}
    if default is not ...:
        echo.__defaults__ = (default,)
    return (app or make_app()).task(max_retries=2, retry_delay=0)(echo)


async def call(task: Any, *args: Any, **kwargs: Any) -> TaskResult[Any]:
    result: TaskResult[Any] = await task.app.wait_for_result(await task.submit(*args, **kwargs), timeout=20)
    return result


# ---------------------------------------------------------------------------
# What arrives
# ---------------------------------------------------------------------------


@pytest.mark.parametrize(("annotation", "values"), shop.SAMPLES, ids=[str(one) for one, _ in shop.SAMPLES])
async def test_what_is_annotated_arrives(annotation: Any, values: Sequence[Any]) -> None:
    app, seen = make_app(), []

    async def look(value: Any) -> Any:
        seen.append(value)
        return value

    look.__annotations__ = {"value": annotation, "return": annotation}
    task = app.task(look)
    async with app:
        for value in values:
            result = await call(task, value)
            assert result.status is TaskStatus.SUCCESS, result.error
            for found in (seen.pop(), result.result):
                assert (found, type(found)) == (value, type(value))
                assert found is not value or isinstance(value, enum.Enum | int | str | tuple | None)


async def test_all_kinds_of_parameters_are_converted() -> None:
    app = make_app()

    @app.task
    async def take(one: Line, /, two: Colour, *more: Line, three: Line | None = None, **rest: Colour) -> bool:
        return [one, two, more, three, rest] == [RED, Colour.RED, (RED, BLUE), RED, {"four": Colour.BLUE}]

    async with app:
        assert (await call(take, RED, Colour.RED, RED, BLUE, three=RED, four=Colour.BLUE)).result is True
        await app.submit(take, RED, two=Colour.RED, four=Colour.RED, priority=5)


async def test_threads_and_processes_get_the_same() -> None:
    app = shop.app
    async with app:
        result = await app.wait_for_result(await app.submit(shop.in_process, ORDER), timeout=20)
        assert result.result == dataclasses.replace(ORDER, id=2)
        parent = await shop.in_process.submit(ORDER)
        child = await app.submit(shop.in_process, result_of(parent))
        assert (await app.wait_for_result(child, timeout=20)).result.id == 3
        misfit = Job("misfit", shop.in_process_by_annotation.name, ({"id": 1},), queue="cpu")
        await app.submit_jobs([misfit])
        failed = await app.wait_for_result("misfit", timeout=20)
    assert (failed.status, failed.attempts) == (TaskStatus.FAILED, 1)
    where = f"an argument of {shop.in_process_by_annotation.name}: order"
    assert failed.error == f"SerializationError: {where} lacks 'lines', which Order must have"


@pytest.mark.parametrize("task", [shop.looked_at, shop.looked_at_in_process], ids=["thread", "process"])
async def test_the_result_of_a_parent_that_may_fail_has_the_annotated_type(task: Any) -> None:
    async with shop.app as app:
        good, bad = await shop.in_process.submit(ORDER), await shop.in_process.options(delay=60).submit(ORDER)
        assert await app.cancel(bad)
        outcome = await call(task, [result_of(good, failed="pass"), result_of(bad, failed="pass")])
        assert outcome.status is TaskStatus.SUCCESS, outcome.error
        assert outcome.result == [await app.get_result(good), await app.get_result(bad)]
        assert [one.result for one in outcome.result] == [dataclasses.replace(ORDER, id=2), None]


async def test_a_plain_result_of_a_parent_that_may_fail_is_not_checked() -> None:
    """As it is not in an argument: the type checker has done that."""
    async with make_app() as app:
        parent = await app.task(name="text")(lambda: "text").submit()
        child = task_of(TaskResult[int], app, returns=str)
        outcome = await call(child, result_of(parent, failed="pass"))
        assert outcome.status is TaskStatus.SUCCESS, outcome.error


async def test_annotations_are_resolved_when_what_they_name_is_there(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "flowrra")
    async with shop.app as app:
        result = await call(shop.later, shop.DefinedLater(1), mode="slow")
        assert result.result == shop.DefinedLater(1)
        with pytest.raises(SerializationError, match=r"mode is 'other', where Literal\['fast', 'slow'\]"):
            await shop.later.submit(shop.DefinedLater(1), mode="other")  # type: ignore[arg-type]
        for _ in range(2):
            task_id = await app.submit(shop.unresolved, {"a": 1}, RED)  # type: ignore[call-overload]
            assert (await app.wait_for_result(task_id)).result == ["dict", "Line"]
        with pytest.raises(ConfigError, match=r"refused_later: the parameter value is annotated with .*NoData"):
            await shop.refused_later.submit(shop.NoData())
    said = [record.getMessage() for record in caplog.records if "is not converted" in record.getMessage()]
    assert len(said) == 1
    assert "MovableClock" in said[0]


class Same(Protocol):
    """Of which nobody can tell what is one."""

    def same(self) -> None: ...


@pytest.mark.parametrize(
    "annotation",
    [
        *(Any, object, None, int, str, bytes, dict, list[int], dict[str, Any], tuple[int, ...], dt.datetime, T),
        *(list[T], "Missing", "list[Missing]", Hashable, Same, LiteralString, Iterable[int], float | None),  # type: ignore[valid-type]
    ],
)
async def test_what_the_codec_brings_back_needs_no_converter(annotation: Any) -> None:
    task = task_of(annotation, returns=annotation)
    assert task.converters is None or isinstance(annotation, str)
    async with task.app:
        for value in (None, 1, "a", {"a": [1]}, (1, {2})):
            assert (await call(task, value)).result == value


# ---------------------------------------------------------------------------
# What is stored
# ---------------------------------------------------------------------------


def test_a_dataclass_is_stored_as_the_dictionary_of_its_fields() -> None:
    job = task_of(Line | Point).make_job((Line(Decimal(1), Colour.BLUE),), {})
    assert encode_arguments(job) == '[[{"price":{"$":"decimal","v":"1"},"colour":"blue"}],{}]'
    assert encode_arguments(task_of(Point).make_job((Point(1),), {})) == '[[{"$":"tuple","v":[1,"red"]}],{}]'
    assert encode_arguments(task_of(Size).make_job((Size.LARGE,), {})) == '[["LARGE"],{}]'


async def test_a_stored_job_of_an_older_program_runs() -> None:
    app = make_app()
    task = task_of(Order, app, returns=Order)
    payloads = {
        "full": '[[{"id":1,"lines":[{"price":{"$":"decimal","v":"2"},"colour":"red"}],"parts":[],"note":null}],{}]',
        "without defaults": '[[],{"value":{"id":1,"lines":[{"price":"2"}]}}]',
    }
    async with app:
        for name, payload in payloads.items():
            await app.submit_jobs([Job(name, task.name, payload=payload)])
            result = await app.wait_for_result(name, timeout=20)
            assert result.result == Order(1, [Line(Decimal(2))]), result.error


@pytest.mark.parametrize(
    ("stored", "complaint"),
    [
        ('{"id":1}', r"value lacks 'lines', which Order must have"),
        ('{"id":1,"lines":[],"weight":2}', "value has 'weight', which Order does not have"),
        (
            '{"id":1,"lines":[{"price":"1"},{"price":"x"}]}',
            r"value.lines\[1\].price is 'x', where Decimal is annotated",
        ),
        (
            '{"id":1,"lines":[{"price":"1","colour":"pink"}]}',
            r"lines\[0\].colour is 'pink', where Colour \('red', 'blue'\)",
        ),
        ('{"id":1,"lines":{}}', r"value.lines is a dict, where list\[Line\] is annotated"),
        ("7", "value is 7, where Order is annotated"),
    ],
)
async def test_what_does_not_fit_ends_the_job_at_once(stored: str, complaint: str) -> None:
    task = task_of(Order)
    async with task.app:
        await task.app.submit_jobs([Job("odd", task.name, payload=f"[[{stored}],{{}}]")])
        result = await task.app.wait_for_result("odd", timeout=20)
        assert (result.status, result.attempts) == (TaskStatus.FAILED, 1)
        with pytest.raises(SerializationError, match=complaint):
            raise SerializationError(result.error)
        with pytest.raises(SerializationError, match=f"an argument of {task.name}: .*{complaint}"):
            await task.submit(json.loads(stored))
        assert len(await task.app.jobs()) == 1


# ---------------------------------------------------------------------------
# What is refused
# ---------------------------------------------------------------------------


class Custom:
    """A plain class."""


@dataclasses.dataclass
class Holder:
    inner: list[Custom]


@dataclasses.dataclass
class Prepared:
    x: int
    how: dataclasses.InitVar[str]


@pytest.mark.parametrize(
    ("annotation", "complaint"),
    [
        (Custom, "the parameter value is annotated with tests.core.test_typed_arguments.Custom, and no such object"),
        (logging.Logger, "annotated with logging.Logger"),
        (dict[str, list[Custom]], "annotated with .*Custom"),
        (Holder, r"the parameter value.inner is annotated with .*Custom"),
        (Prepared, "annotated with Prepared, which needs 'how', which is not a field"),
        (Callable[[int], int], "annotated with collections.abc.Callable"),
        (AsyncIterator[int], "annotated with collections.abc.AsyncIterator"),
        (complex, "annotated with complex"),
    ],
)
def test_what_could_never_arrive_is_refused_at_the_registration(annotation: Any, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        task_of(annotation)
    optional = task_of(annotation, default=None)  # nobody needs to give it
    with pytest.raises(SerializationError, match="which cannot be stored as JSON"):
        encode_arguments(optional.make_job((Custom(),), {}))


@dataclasses.dataclass
class Left:
    x: int


@dataclasses.dataclass
class Right:
    x: int


@dataclasses.dataclass
class Counted:
    x: int

    def __post_init__(self) -> None:
        if self.x < 0:
            raise ValueError("less than nothing")


@pytest.mark.parametrize(
    ("annotation", "value", "complaint"),
    [
        (Order, Express(1, []), "value is a Express, and would come back as a Order"),
        (Order, Order(1, [Line("free")]), r"value.lines\[0\].price is 'free', where Decimal is annotated"),  # type: ignore[arg-type]
        (list[Order], [ORDER, 5], r"value\[1\] is 5, where Order is annotated"),
        (dict[str, Line], {"a": Custom()}, r"value\['a'\] is a Custom, where Line is annotated"),
        (dict[Colour, int], {"pink": 1}, r"value\['pink'\] is 'pink', where Colour"),
        (dict[Box[int], int], {Box(1): 1}, "value has a key that would come back as a dictionary or list"),
        (tuple[int, Line], (1, RED, RED), r"value is a tuple, where tuple\[int, Line\] is annotated"),
        (Left | Right, Right(1), r"would come back as another one of Left \| Right"),
        (Left | int | None, "x", r"value is 'x', where Left \| int \| None is annotated"),
        (Left | None, {"y": 1}, "value lacks 'x', which Left must have"),
        (Colour, "pink", r"value is 'pink', where Colour \('red', 'blue'\) is annotated"),
        (Counted, {"x": -1}, "value makes no Counted: ValueError: less than nothing"),
        (Secretive, Secretive(password=pydantic.SecretStr("x")), "does not come back from its model_dump"),
        (
            Model,
            {"colour": "red", "when": "2024-01-01", "line": {}},
            "value.line.price does not fit Model: Field required",
        ),
        (Struct, {"line": {"price": "1"}, "size": 1}, "value has 'size', which Struct does not have"),
        (Point, (1, "red", 3), "value is a tuple, where Point is annotated"),
        (Box[Any], Box(Custom()), "which cannot be stored as JSON"),
    ],
)
async def test_a_value_that_cannot_be_rebuilt_is_refused_by_submit(annotation: Any, value: Any, complaint: str) -> None:
    task = task_of(annotation)
    async with task.app.client():
        with pytest.raises(SerializationError, match=f"an argument of {task.name}: .*{complaint}"):
            await task.submit(value)
        with pytest.raises(SerializationError, match=complaint):
            await task.app.submit_many(task, [{"value": value}])
        assert await task.app.jobs() == []


async def test_what_contains_itself_is_refused() -> None:
    order = Order(1, [])
    order.parts = (order,)
    with pytest.raises(SerializationError, match="RecursionError"):
        task_of(Order).make_job((order,), {})


def test_a_schedule_is_checked_too() -> None:
    app = make_app()
    task = task_of(Colour, app)
    app.every(60, args=("red",))(task)
    with pytest.raises(SerializationError, match="value is 'pink'"):
        app.every(60, args=("pink",))(task)
    assert [schedule.payload for schedule in app.schedules.values()] == ['[["red"],{}]']


async def test_a_stored_schedule_is_checked_too() -> None:
    app = make_app()
    task = task_of(Order, app)
    async with app.client():
        scheduler = app.create_scheduler("memory://")
        for named in (task, task.name):
            with pytest.raises(SerializationError, match="value lacks 'lines'"):
                await scheduler.schedule_interval(named, 60, ({"id": 1},))
        made = await scheduler.schedule_interval(task, 60, (ORDER,))
        found = await scheduler.get_scheduled_task(made)
    assert found is not None
    assert found.payload == encode_arguments(task.make_job((ORDER,), {}))


def test_what_comes_as_json_is_read_as_annotated() -> None:
    app = make_app()

    @app.task
    def take(
        number: int, price: Decimal, when: dt.datetime, pair: tuple[int, str], colour: Colour | None = None
    ) -> None:
        """Takes."""

    assert take.converters is not None
    args, kwargs = take.typed([1, "1.5", "2024-02-29T12:30:00+00:00"], {"pair": [1, "a"], "colour": "blue"})
    assert args == [1, Decimal("1.5"), shop.MOMENT]
    assert kwargs == {"pair": (1, "a"), "colour": Colour.BLUE}
    assert take.typed([1, 0.1, shop.MOMENT, (1, "a")], {}) == ([1, Decimal("0.1"), shop.MOMENT, (1, "a")], {})
    for wrong in (["one"], [1, "much"], [1, 2, "tomorrow"], [1.5]):
        with pytest.raises(SerializationError, match=r"where (int|Decimal|datetime) is annotated"):
            take.typed(wrong, {})


# ---------------------------------------------------------------------------
# Results
# ---------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["memory://", "sqlite://"])
async def test_results_come_back_as_returned(url: str) -> None:
    app, events = make_app(url), []
    make = app.task(_make)

    @app.task
    async def total(orders: list[Order], order: Order | None = None) -> Decimal:
        assert order is None or type(order) is Order
        return sum((one.total for one in orders), Decimal(0))

    @app.on("success")
    def note(event: Event) -> None:
        events.append(event.result)

    async with app:
        task_id = await make.submit(2)
        result = await app.wait_for_result(task_id, timeout=20)
        assert result.result == [ORDER, ORDER]
        found = await app.get_result(task_id)
        assert found is not None
        assert found.result == [ORDER, ORDER]
        assert (await app.get_job(task_id)).result[0]["lines"][1]["colour"] == "blue"
        both = Order(1, [])
        both.lines = result_of(await app.task(_lines).submit())
        assert (await call(total, result_of(task_id), both)).result == 4
    assert events == [[ORDER, ORDER], [RED, BLUE], Decimal(4)]
    app.sync.close()


async def _make(count: int) -> list[Order]:
    return [ORDER] * count


async def _lines() -> list[Line]:
    return [RED, BLUE]


def test_plain_code_gets_them_too() -> None:
    app = make_app()
    make = app.task(_make)
    with isolated(app) as test:
        task_id = app.sync.submit(make, 1)
        test.sync.drain()
        assert app.sync.wait_for_result(task_id, timeout=20).result == [ORDER]
        assert (app.sync.get_result(task_id) or pytest.fail("none")).result == [ORDER]


async def test_who_does_not_know_the_task_gets_plain_data(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    app = make_app(url)
    async with app:
        task_id = await app.task(_make).submit(1)
        await app.wait_for_result(task_id, timeout=20)
    async with make_app(url).client() as other:
        (order,) = (await other.wait_for_result(str(task_id))).result
    assert (order["id"], order["lines"][1]["colour"]) == (1, "blue")


async def test_a_separate_backend_keeps_plain_data(tmp_path: Path) -> None:
    path = tmp_path / "results.db"
    app = Flowrra.from_urls("memory://", f"sqlite:///{path}")
    async with app:
        task_id = await app.task(_make).submit(1)
        assert (await app.wait_for_result(task_id, timeout=20)).result == [ORDER]
        assert (await app.get_result(task_id) or pytest.fail("none")).result == [ORDER]


async def test_a_result_that_does_not_fit_stays_as_it_is_and_that_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    task = task_of(Any, returns=Order)
    async with task.app:
        for _ in range(2):
            assert (await call(task, None)).result is None
        assert (await call(task, {"id": 1, "lines": []})).result == Order(1, [])
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith(f"a result of {task.name} does not fit its annotation, and is left as it is")
    assert said.endswith("it is None, where Order is annotated")


async def test_middleware_sees_what_the_task_returns() -> None:
    app, seen = make_app(), []

    @app.middleware
    async def look(job: Job, call_next: Any) -> Any:
        seen.append(await call_next(job))
        return seen[-1]

    async with app:
        assert (await call(app.task(_make), 1)).result == [ORDER]
    assert seen == [[ORDER]]


async def test_a_test_sees_arguments_as_the_task_gets_them() -> None:
    app = make_app()
    task = task_of(Order, app)
    async with isolated(app) as test:
        await task.submit(ORDER)
        assert test.assert_enqueued(task, ORDER).args == (ORDER,)


# ---------------------------------------------------------------------------
# Odd annotations
# ---------------------------------------------------------------------------


class Old(Generic[T]):
    """With no fields."""


async def test_new_types_and_bare_generics() -> None:
    order = NewType("order", Order)  # type: ignore[valid-newtype, unused-ignore]
    task = task_of(order, returns=order)
    bare = task_of(Box, returns=Box)
    async with task.app, bare.app:
        assert (await call(task, ORDER)).result == ORDER
        assert (await call(bare, Box(1))).result == Box(1)
    with pytest.raises(ConfigError, match="Old"):
        task_of(Old[int])


async def test_a_class_with_model_validate_need_not_be_of_pydantic() -> None:
    class Own:
        def __init__(self, x: int) -> None:
            self.x = x

        @classmethod
        def model_validate(cls, value: Any) -> "Own":
            return cls(**value)

        def model_dump(self) -> dict[str, Any]:
            return {"x": self.x}

    task = task_of(Own, returns=Own)
    async with task.app:
        assert (await call(task, Own(3))).result.x == 3
    with pytest.raises(SerializationError, match=r"makes no .*Own: TypeError"):
        task.make_job(({"y": 1},), {})
