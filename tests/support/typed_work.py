"""Types and tasks of a shop. Annotations are texts here, and some name what stands further down, or is not there."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, NotRequired, TypedDict, TypeVar

import msgspec
import pydantic
from typing_extensions import TypeAliasType

from flowrra import Flowrra, TaskResult

if TYPE_CHECKING:
    from tests.support.apps import MovableClock

T = TypeVar("T")
app = Flowrra.from_urls("memory://")


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Size(enum.Enum):
    """Its values are no plain data."""

    SMALL = (1, 2)
    LARGE = (3, 4)


class UserId(str):
    """A text of its own."""

    __slots__ = ()


class Point(NamedTuple):
    x: int
    colour: Colour = Colour.RED


class Delivery(TypedDict):
    colour: Colour
    point: NotRequired[Point]


@dataclasses.dataclass
class Line:
    price: Decimal
    colour: Colour = Colour.RED


@dataclasses.dataclass
class Order:
    id: int
    lines: list[Line]
    when: dt.datetime | None = None
    parts: tuple[Order, ...] = ()
    note: str = None  # type: ignore[assignment]  # as many write it
    total: Decimal = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.total = Decimal(len(self.lines))


@dataclasses.dataclass
class Express(Order):
    """An order with no field more."""


@dataclasses.dataclass(frozen=True)
class Box(Generic[T]):
    item: T


@dataclasses.dataclass(frozen=True)
class Page(Box[list[T]], Generic[T]):
    number: int = 0


class Struct(msgspec.Struct):
    line: Line
    sizes: list[Size] = []


class Model(pydantic.BaseModel):
    colour: Colour
    when: dt.datetime
    line: Line
    also: Model | None = None


class Secretive(pydantic.BaseModel):
    password: pydantic.SecretStr


@app.task(max_retries=0, cpu_bound=True)
def in_process(order: Order) -> Order:
    assert type(order) is Order, order
    return dataclasses.replace(order, id=order.id + 1)


@app.task(max_retries=2, retry_delay=0, cpu_bound=True)
def in_process_by_annotation(order: Order) -> None:
    """Gets nothing that is no order."""


def look_at(orders: list[TaskResult[Order]]) -> list[TaskResult[Order]]:
    assert [type(one.result) for one in orders] == [Order if one.is_success else type(None) for one in orders]
    return orders


looked_at = app.task(name="looked_at", max_retries=0)(look_at)
looked_at_in_process = app.task(cpu_bound=True, max_retries=0)(look_at)


@app.task
async def later(value: DefinedLater, mode: Literal["fast", "slow"] = "fast") -> DefinedLater:
    assert type(value) is DefinedLater
    return value


@app.task
async def unresolved(clock: MovableClock, line: Line) -> list[str]:
    return [type(clock).__name__, type(line).__name__]


@app.task
async def refused_later(value: NoData) -> None: ...


@dataclasses.dataclass
class DefinedLater:
    x: int


class NoData:
    """Nothing that a store could keep."""


Lines = TypeAliasType("Lines", list[Line])  # what `type Lines = list[Line]` makes from Python 3.12 on

# (annotation, values of it): each arrives as it is, of the type that it is.
RED = Line(Decimal("1.50"))
BLUE = Line(Decimal("0.1"), Colour.BLUE)
MOMENT = dt.datetime(2024, 2, 29, 12, 30, tzinfo=dt.UTC)
ORDER = Order(1, [RED, BLUE], MOMENT, (Order(2, []), Order(3, [BLUE], note="gift")))
SAMPLES: list[tuple[Any, Sequence[Any]]] = [
    (Order, [ORDER]),
    (Order | None, [ORDER, None]),
    (dict[str, Lines], [{"a": [RED]}]),
    (list[Order], [[], [ORDER, ORDER]]),
    (dict[str, Order], [{"a": ORDER}]),
    (dict[Colour, list[Line]], [{Colour.RED: [RED], Colour.BLUE: []}]),
    (Mapping[int, Colour], [{1: Colour.RED}]),
    (tuple[int, Line], [(1, RED)]),
    (tuple[Line, ...], [(), (RED, BLUE)]),
    (set[Colour], [{Colour.RED, Colour.BLUE}]),
    (frozenset[Box[int]], [frozenset({Box(1), Box(2)})]),
    (Sequence[Point], [[Point(1)], (Point(2, Colour.BLUE),)]),
    (Colour, list(Colour)),
    (Size, list(Size)),
    (UserId, [UserId("ada")]),
    (Path, [Path("a/b")]),
    (Delivery, [{"colour": Colour.RED}, {"colour": Colour.BLUE, "point": Point(1)}]),
    (Literal["fast", 1, Colour.BLUE], ["fast", 1, Colour.BLUE]),
    (Line | Point | int, [RED, Point(4), 7]),
    (Colour | str, [Colour.RED, "green"]),
    (Box[Order], [Box(ORDER)]),
    (Page[Line], [Page([RED], 3)]),
    (Struct, [Struct(RED), Struct(BLUE, [Size.LARGE])]),
    (Model, [Model(colour=Colour.RED, when=MOMENT, line=BLUE, also=Model(colour=Colour.BLUE, when=MOMENT, line=RED))]),
]


def total_length(names: list[str]) -> tuple[int, list[str]]:
    """How long all names are together, with a long list, which is a large result."""
    return sum(map(len, names)), ["long"] * 40_000
