"""The codec: what goes in comes back equal, or is refused when it goes in; nothing that a text names is run."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import decimal
import enum
import io
import json
import math
import struct
import sys
import uuid
from collections import OrderedDict, namedtuple
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

import flowrra
from flowrra import (
    MAX_DEPTH,
    Job,
    Outcome,
    Progress,
    ResultError,
    ResultOf,
    SerializationError,
    TaskResult,
    TaskStatus,
    are_plain,
    decode,
    decode_arguments,
    decode_result,
    encode,
    encode_arguments,
    encode_result,
    encode_value,
    is_plain,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

# ---------------------------------------------------------------------------
# Round trip
# ---------------------------------------------------------------------------

FIXED = dt.UTC, dt.timezone(dt.timedelta(hours=-3, minutes=-30)), dt.timezone(dt.timedelta(seconds=1))
ZONES = st.sampled_from([*FIXED, ZoneInfo("Europe/Riga"), ZoneInfo("America/New_York"), ZoneInfo("UTC")])
FOLDS = st.integers(0, 1)
MOMENTS = st.builds(lambda moment, fold: moment.replace(fold=fold), st.datetimes(timezones=st.none() | ZONES), FOLDS)
TIMES = st.builds(lambda time, fold: time.replace(fold=fold), st.times(timezones=st.none() | ZONES), FOLDS)

HASHABLE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(),
    st.binary(),
    MOMENTS,
    st.dates(),
    TIMES,
    st.timedeltas(),
    st.decimals(allow_nan=False),
    st.uuids(),
)
VALUES = st.recursive(
    HASHABLE,
    lambda inner: st.one_of(
        st.lists(inner),
        st.lists(inner).map(tuple),
        st.dictionaries(st.text() | st.sampled_from(["$", "v"]), inner),
        st.dictionaries(HASHABLE, inner),
        st.sets(HASHABLE),
        st.frozensets(HASHABLE),
    ),
    max_leaves=20,
)


def same(one: Any, other: Any) -> bool:
    """Equal, and of the same type all the way down: 1, 1.0 and True are not the same."""
    if type(one) is not type(other):
        return False
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return same(list(one.items()), list(other.items()))
    if isinstance(one, dt.datetime | dt.time):
        return repr(one) == repr(other)  # with its zone and fold
    return bool(one == other)


@given(VALUES)
def test_what_goes_in_comes_back(value: Any) -> None:
    assert same(decode(encode(value)), value)


@given(VALUES)
def test_the_text_is_ascii_and_strict_json(value: Any) -> None:
    text = encode(value)
    assert text.isascii()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    json.loads(text, parse_constant=refuse)


@given(st.lists(VALUES, max_size=4), st.dictionaries(st.text(), VALUES, max_size=4))
def test_arguments_come_back(args: list[Any], kwargs: dict[str, Any]) -> None:
    stored = Job("id", "task", payload=encode_arguments(Job("id", "task", tuple(args), kwargs)))
    found_args, found_kwargs = decode_arguments(stored)
    assert same(list(found_args), args)
    assert same(dict(found_kwargs), kwargs)


@given(MOMENTS | TIMES)
def test_a_moment_keeps_its_zone_and_which_of_two_passes_it_is_of(value: dt.datetime | dt.time) -> None:
    assert repr(decode(encode(value))) == repr(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"$":"datetime","v":"2024-10-27T03:30:00"}', dt.datetime(2024, 10, 27, 3, 30)),  # noqa: DTZ001
        ('{"$":"datetime","v":"2024-10-27T03:30:00+02:00"}', dt.datetime.fromisoformat("2024-10-27T03:30:00+02:00")),
        ('{"$":"time","v":"03:30:00+02:00"}', dt.time.fromisoformat("03:30:00+02:00")),
    ],
)
def test_a_moment_in_a_text_of_the_first_version_is_read(text: str, value: Any) -> None:
    assert same(decode(text), value)
    assert encode(value) == text


class OddZone(dt.tzinfo):
    """A time zone of a program's own."""

    def utcoffset(self, moment: dt.datetime | None) -> dt.timedelta:
        return dt.timedelta(hours=1)

    def dst(self, moment: dt.datetime | None) -> None:
        return None

    def tzname(self, moment: dt.datetime | None) -> str:
        return "odd"


def from_a_file(key: str | None) -> ZoneInfo:
    """A zone that is one hour ahead, of no database."""
    counts = struct.pack(">6l", 0, 0, 0, 0, 1, 4)
    return ZoneInfo.from_file(
        io.BytesIO(b"TZif" + bytes(16) + counts + struct.pack(">lbb", 3600, 0, 0) + b"ODD\0"), key
    )


@pytest.mark.parametrize("zone", [OddZone(), from_a_file(None), from_a_file("Nowhere/Known")])
def test_a_zone_that_cannot_be_kept_is_refused(zone: dt.tzinfo) -> None:
    for value in (dt.datetime(2024, 1, 1, tzinfo=zone), dt.time(1, tzinfo=zone)):
        with pytest.raises(
            SerializationError, match=r"value\['at'\] has the time zone .* which cannot be stored: use zone"
        ):
            encode({"at": value})


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_infinite_floats_come_back(value: float) -> None:
    assert decode(encode(value)) == value


def test_nan_comes_back() -> None:
    assert math.isnan(decode(encode(math.nan)))


@pytest.mark.parametrize(
    "value",
    [
        {"$": "tuple", "v": [1, 2]},
        {"$": "nothing known"},
        {"$": None},
        {"$": {"$": "set", "v": []}},
        {1: "one", "1": "text"},
        {(1, 2): {None: True}},
    ],
)
def test_a_dictionary_that_looks_like_a_tag_survives(value: dict[Any, Any]) -> None:
    assert same(decode(encode(value)), value)


def test_surrogates_survive() -> None:
    assert decode(encode("\ud800 and \udfff")) == "\ud800 and \udfff"


def test_huge_ints_survive_up_to_the_digits_that_python_allows() -> None:
    largest = 10 ** (sys.get_int_max_str_digits() - 1)
    assert decode(encode(largest)) == largest
    with pytest.raises(SerializationError, match="holds a number that cannot be stored"):
        encode([largest * 100], "args")


@given(VALUES)
def test_what_is_plain_needs_no_text(value: Any) -> None:
    assert are_plain([None, value]) == is_plain(value)
    if is_plain(value):
        assert same(decode(encode(value)), value)
        hash(value)


def test_what_may_not_be_kept_is_not_plain() -> None:
    assert not any(map(is_plain, (10**5_000, 2**63, Level.HIGH, Name.ADA, (), b"", ResultOf("x"))))
    assert all(map(is_plain, (2**63 - 1, -(2**63), None, True, math.nan, "text")))


def test_what_a_result_may_not_hold_is_refused() -> None:
    for value, complaint in (([ResultOf("a")], "result of task contains result_of"), ({"a": object()}, r"task\['a'\]")):
        with pytest.raises(ResultError, match=complaint):
            encode_value(Outcome.succeed(Job("id", "task"), value))


def test_arguments_come_back_and_a_refusal_names_the_one_that_cannot_be_kept() -> None:
    args = ([1, {"a": (2, ResultOf("b"))}],)
    text = encode_arguments(Job("id", "app.send", args, {"to": [1]}))
    assert str(decode_arguments(Job("id", "app.send", payload=text))) == str((list(args), {"to": [1]}))
    with pytest.raises(SerializationError, match=r"argument of app\.send: args\[1\] is a builtins.object"):
        encode_arguments(Job("id", "app.send", (1, object())))
    with pytest.raises(SerializationError, match=r"argument of app\.send: kwargs\['to'\]"):
        encode_arguments(Job("id", "app.send", (), {"to": object()}))


@given(VALUES)
def test_a_python_without_the_encoder_in_c_writes_the_same(value: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json.encoder, "c_make_encoder", None)
        patch.setattr(flowrra, "_dump", flowrra._make_dump())
        slow = encode(value)
    assert encode(value) == slow


def test_a_value_that_contains_itself_is_refused() -> None:
    cycle: list[Any] = []
    cycle += [cycle, cycle]
    with pytest.raises(SerializationError, match=r"^value\.\.\.\[.*contains itself"):
        encode(cycle)


def test_a_placeholder_comes_back_as_one() -> None:
    (found,) = decode(encode([ResultOf("abc")]))
    assert isinstance(found, ResultOf)
    assert found.task_id == "abc"


# ---------------------------------------------------------------------------
# Kin of what is kept
# ---------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Name(enum.StrEnum):
    ADA = "ada"


class Quiet(str, enum.Enum):  # noqa: UP042 (the older form, which programs still have)
    MOUSE = "mouse"


@dataclasses.dataclass
class Address:
    street: str
    tags: set[str]


Point = namedtuple("Point", "x y")


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (Level.HIGH, 3),
        (Name.ADA, "ada"),
        (Quiet.MOUSE, "mouse"),
        (Address("Elm", {"home"}), {"street": "Elm", "tags": {"home"}}),
        (Point(1, 2), (1, 2)),
        (OrderedDict(a=1), {"a": 1}),
    ],
)
def test_kin_come_back_as_what_they_are_at_heart(value: Any, found: Any) -> None:
    assert same(decode(encode(value)), found)


# ---------------------------------------------------------------------------
# What is refused
# ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (object(), r"value is a builtins\.object, which cannot be stored as JSON: pass plain data"),
        ([1, {"key": (2, object())}], r"value\[1\]\['key'\]\[1\] is a builtins\.object"),
        ({"a": Colour.RED}, r"value\['a'\] is the enum member Colour\.RED: pass its \.name or \.value"),
        ({object(): 1}, r"is a builtins\.object"),
        (Address("Elm", {object()}), r"value\['tags'\]\[0\]"),  # type: ignore[arg-type]
        (lambda: None, r"is a builtins\.function"),
    ],
)
def test_what_cannot_be_kept_is_named_with_its_path(value: Any, complaint: str) -> None:
    with pytest.raises(SerializationError, match=complaint):
        encode(value)


def nested(depth: int, value: Any = ()) -> Any:
    value = value or []
    for _ in range(depth):
        value = [value]
    return value


def test_nesting_ends_somewhere() -> None:
    assert decode(encode(nested(MAX_DEPTH - 1))) == nested(MAX_DEPTH - 1)
    with pytest.raises(SerializationError, match=f"nested more than {MAX_DEPTH} levels deep, or contains itself"):
        encode(nested(MAX_DEPTH + 1))


def test_depth_of_dictionaries_with_odd_keys_counts_as_it_looks() -> None:
    """Each is a list of pairs in the text, thus three levels of JSON."""
    value: Any = 1
    for _ in range(MAX_DEPTH):
        value = {1: value}
    assert decode(encode(value)) == value


def test_a_cycle_is_refused() -> None:
    cycle: list[Any] = []
    cycle.append({"ring": cycle})
    with pytest.raises(SerializationError, match=r"^value\.\.\.\[.*contains itself"):
        encode(cycle)


def test_an_argument_that_cannot_be_kept_is_named() -> None:
    with pytest.raises(SerializationError, match=r"app\.send.*args\[1\]"):
        encode_arguments(Job("id", "app.send", (1, object())))
    with pytest.raises(SerializationError, match=r"app\.send.*kwargs\['to'\]"):
        encode_arguments(Job("id", "app.send", (), {"to": object()}))


# ---------------------------------------------------------------------------
# What comes out of a store
# ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[",
        "nonsense",
        '{"$": "pickle", "v": "gASVAAAA"}',
        '{"$": "tuple"}',
        '{"$": "tuple", "v": 3}',
        '{"$": "datetime", "v": "yesterday"}',
        *(
            f'{{"$":"zoned datetime","v":["2024-01-01T00:00:00",{key},0]}}'
            for key in (
                '"../../etc/passwd"',
                '"/etc/passwd"',
                '"Nowhere/Known"',
                '"os.system"',
                '"Europe"',
                '""',
                '"\\u0000"',
                "5",
                "[]",
                "{}",
            )
        ),
        '{"$":"zoned datetime","v":["2024-01-01T00:00:00",null,2]}',
        '{"$":"zoned time","v":["2024-01-01T00:00:00",null,0]}',
        '{"$":"zoned time","v":[]}',
        '{"$": "decimal", "v": "many"}',
        '{"$": "uuid", "v": "x"}',
        '{"$": "bytes", "v": "*"}',
        '{"$": "set", "v": [[]]}',
        '{"$": ["tuple"], "v": []}',
        '{"$": "timedelta", "v": [1e300]}',
        '{"$": "timedelta", "v": {"days": 1}}',
        '{"$": "tuple", "v": [], "w": 1}',
        '{"$": "dict", "v": [[1]]}',
        '{"$": "dict", "v": [[[1], 2]]}',
        '{"$": "bytes", "v": 1}',
        '{"$": "uuid", "v": []}',
        '{"$": "float", "v": "x"}',
        '{"$": {"a": 1}, "v": 1}',
        '{"$": 1}',
        "1" * 5_000,
        "[" * 100_000,
    ],
)
def test_a_damaged_text_is_an_error_of_ours(text: str) -> None:
    with pytest.raises(SerializationError, match="stored text"):
        decode(text)


TAGS = ("tuple", "set", "dict", "bytes", "datetime", "timedelta", "decimal", "uuid", "float", "result_of", "pickle")
TEXTS = st.one_of(
    st.text(),
    st.text(alphabet='{}[]":,$v01 tuplesdicfoarbyw'),
    st.builds(
        lambda tag, value: json.dumps([{"$": tag, "v": value}]),
        st.sampled_from(TAGS),
        st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3)),
    ),
)


class Watch:
    """Notes what the interpreter is made to do that reading data has no business with."""

    EVENTS = ("import", "exec", "compile", "open", "os.", "subprocess.", "socket.", "pickle.", "marshal.", "ctypes.")

    def __init__(self) -> None:
        self.on = False
        self.seen: list[str] = []
        sys.addaudithook(self.hear)  # it cannot be taken away again, but does nothing when it is off

    def hear(self, event: str, args: tuple[Any, ...]) -> None:
        if self.on and event.startswith(self.EVENTS):
            self.seen.append(f"{event} {args!r}"[:200])

    @contextlib.contextmanager
    def watching(self) -> Iterator[list[str]]:
        self.seen = []
        self.on = True
        try:
            yield self.seen
        finally:
            self.on = False


@pytest.fixture(scope="module")
def watch() -> Watch:
    decode(encode([b"", decimal.Decimal(1), uuid.UUID(int=1)]))  # the imports that reading needs are done
    return Watch()


@given(text=TEXTS)
def test_no_text_does_worse_than_be_refused(watch: Watch, text: str) -> None:
    with watch.watching() as seen, contextlib.suppress(SerializationError):
        decode(text)
    assert seen == []


@pytest.mark.parametrize(
    "text",
    [
        '[{"$":"enum","v":["antigravity:geohash","X"]}]',
        '{"$":"os.system","v":"true"}',
        '{"$":"__import__","v":"antigravity"}',
        '{"py/object":"antigravity.geohash","py/reduce":["os.system",["true"]]}',
        '{"__reduce__":["os.system",["true"]],"__class__":"tests.core.test_codec.Colour"}',
    ],
)
def test_reading_does_nothing_that_a_text_names(watch: Watch, text: str) -> None:
    with watch.watching() as seen, contextlib.suppress(SerializationError):
        decode(text)
    assert seen == []
    assert "antigravity" not in sys.modules


def test_the_watch_sees(watch: Watch) -> None:
    with watch.watching() as seen:
        compile("1", "here", "eval")
    assert seen


@pytest.mark.parametrize(("text", "shown"), [("x" * 80, "x" * 80), ("x" * 81, "x" * 77 + "...")], ids=["80", "81"])
def test_an_error_shows_the_text_and_the_beginning_of_a_long_one(text: str, shown: str) -> None:
    with pytest.raises(SerializationError) as caught:
        decode(text)
    assert str(caught.value).endswith(f": {shown!r}")


def test_an_unknown_tag_is_named() -> None:
    with pytest.raises(SerializationError, match="tag 'future', which this version does not know"):
        decode('[{"$":"future","v":1}]')


@pytest.mark.parametrize("text", ["", "[]", "{}", "1", '["id"]', encode(list(range(11))), encode(list(range(30)))])
def test_a_text_that_is_no_result_is_an_error_of_ours(text: str) -> None:
    with pytest.raises(SerializationError, match="stored text"):
        decode_result(text)


def test_a_result_comes_back_whole() -> None:
    result = TaskResult[Any](
        "id", "task", TaskStatus.SUCCESS, {"sum": decimal.Decimal("1.10"), "of": uuid.UUID(int=7)}, None, None, 2,
        1.0, 2.0, 3.5, Progress(3, 4, "nearly"),
    )  # fmt: skip
    assert decode_result(encode_result(result)) == result
    failed = dataclasses.replace(result, status=TaskStatus.FAILED, result=None, error="E: no", progress=None)
    assert decode_result(encode_result(failed)) == failed
