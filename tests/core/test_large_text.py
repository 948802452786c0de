"""Large values as text: converted in steps, with the same result as in one."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flowrra
from flowrra import SerializationError, apart, decode, encode

PARTS = st.sampled_from(["a", "é", "\U0001f600", "\ud83d", "\ude00", '"', "\\", "\n", "\x00", "u", "ud83d"])
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False)
    | st.lists(PARTS, max_size=60).map("".join)
    | st.binary(max_size=60)
    | st.datetimes()
)
VALUES = st.recursive(
    LEAVES,
    lambda values: (
        st.lists(values, max_size=6)
        | st.lists(values, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=3), values, max_size=4)
        | st.dictionaries(st.integers(-(10**9), 10**9), values, max_size=4)
    ),
    max_leaves=25,
)


@pytest.fixture(params=[36, 60, 120])
def small_steps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Make steps so small that each value takes many."""
    monkeypatch.setattr(flowrra, "_STEP", request.param)
    monkeypatch.setattr(flowrra, "_LARGE", 10)
    return int(request.param)


@pytest.mark.usefixtures("small_steps")
def test_steps_give_the_text_and_the_value_that_one_step_gives() -> None:
    @settings(max_examples=200, deadline=None)
    @given(VALUES)
    def check(value: Any) -> None:
        packed = flowrra._pack(value, 0)
        text = encode(value)
        assert text == flowrra._dump(packed)
        assert decode(text) == flowrra._load(text)
        assert flowrra._read(text, 0)[1] == len(text)  # it was not read in one step

    check()


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize(
    "text",
    [
        "[1,2,3",
        '["abcdefghijklmnopqrstuvwxyz',
        '{"abcdefghijklmnop" 1}',
        '{"abcdefghijklmnop":1;"b":2}',
        "[1,2,3,4,5,6,7,8,9,10;11]",
        "[1,2,3,4,5,6,7,8,9,10]]",
        '{"$":"datetime","v":"not a moment at all"}',
        '{"$":"unheard of","v":"not a moment at all"}',
        '["abcdefghijklmnopqrstuvwxyz\\',
    ],
)
def test_a_damaged_text_is_refused_as_in_one_step(text: str) -> None:
    with pytest.raises(SerializationError):
        decode(text)


@pytest.mark.usefixtures("small_steps")
def test_a_text_of_another_writer_is_read() -> None:
    value = {"numbers": list(range(50)), "text": ["some words", {"more": "é words"}]}
    for indent in (None, 2):
        for ascii_only in (False, True):
            assert decode(json.dumps(value, indent=indent, ensure_ascii=ascii_only)) == value


@pytest.mark.parametrize(
    ("value", "large"),
    [
        (None, False),
        ("x" * 100_001, True),
        (b"x" * 100_001, True),
        ([{"a": "x" * 60_000}, ("x" * 60_000,)], True),
        (list(range(30_000)), True),
        (list(range(1_000)), False),
        ({str(n): n for n in range(20_000)}, True),
        ({"a": {"b": {"c": ["x" * 200_000]}}}, True),
        (flowrra.Step("a", "x" * 100_001, 1.0, 2.0), True),
        ({"a": 1, "b": ["x", "y"]}, False),
    ],
)
def test_what_is_large(value: Any, large: bool) -> None:
    assert flowrra.is_large(value) is large
    assert flowrra.is_large(1, "a", value) is large


def test_what_contains_itself_is_looked_at_once() -> None:
    endless: list[Any] = [1]
    endless += [endless, {"again": endless}]
    flowrra.is_large(endless)
    with pytest.raises(SerializationError, match="contains itself"):
        encode(endless)


async def test_an_error_comes_out_of_the_thread() -> None:
    with pytest.raises(SerializationError, match=r"value\[20000\] is a builtins.object"):
        await apart(encode, ["x" * 10] * 20_000 + [object()])
