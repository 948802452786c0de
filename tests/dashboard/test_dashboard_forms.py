"""The form of a task: fields that know types, and what becomes of what is typed into them."""

import dataclasses
import datetime as dt
import decimal
import enum
import inspect
import json
import re
import uuid
from typing import Any, Literal

import pytest

from flowrra import ConfigError, decode
from flowrra_extras.dashboard.tasks import call_from, hints_of, parameters_of
from tests.support.dashboards import dashboard, shop, with_token


class Paper(enum.Enum):
    A4 = "A4"
    LETTER = 2


@dataclasses.dataclass
class Address:
    street: str
    since: dt.date
    floor: int = 0
    tags: list[str] = dataclasses.field(default_factory=list)


def send(
    to: str, paper: Paper, at: dt.datetime | None = None, *, address: Address | None = None,
    kind: Literal["new", "old"] = "new", loud: bool = False, day: "dt.date | None" = None, hour: dt.time | None = None,
) -> None: ...  # fmt: skip


def call(**fields: str) -> tuple[list[Any], dict[str, Any]]:
    """The arguments, as they come out of the store."""
    args, kwargs = call_from(inspect.signature(send), fields, hints_of(send))
    args, kwargs = decode(json.dumps([args, kwargs]))
    return args, kwargs


def test_each_parameter_has_a_field_of_its_type() -> None:
    found = {one["name"]: one for one in parameters_of(send, inspect.signature(send))}
    assert {name: one["input"] for name, one in found.items() if one["input"] != "json"} == {
        "to": "text", "at": "datetime", "day": "date", "hour": "time",
    }  # fmt: skip
    assert {name: one["choices"] for name, one in found.items() if one["choices"]} == {
        "paper": ["A4", "2"], "kind": ["new", "old"], "loud": ["true", "false"],
    }  # fmt: skip
    parts = found["address"]["fields"]
    assert [(part["name"], part["input"], part["required"], part["default"]) for part in parts] == [
        ("street", "text", True, None), ("since", "date", True, None), ("floor", "integer", False, "0"),
        ("tags", "json", False, None),
    ]  # fmt: skip


def test_what_is_typed_becomes_a_value_of_the_type() -> None:
    assert call(to="42", paper="2", at="2026-12-24T18:00Z") == (
        ["42", 2, dt.datetime(2026, 12, 24, 18, tzinfo=dt.UTC)],
        {},
    )
    fields = {"address.street": "7", "address.since": "2026-01-02", "address.tags": '["a"]'}
    assert call(to="x", paper="A4", **fields, kind="old", loud="true", day="2026-01-02", hour="18:00") == (
        ["x", "A4"],
        {
            "address": {"street": "7", "since": dt.date(2026, 1, 2), "tags": ["a"]},
            "kind": "old", "loud": True, "day": dt.date(2026, 1, 2), "hour": dt.time(18),
        },
    )  # fmt: skip


@pytest.mark.parametrize("text", ["1.50", "12345678901234567890.123456789", "1e3", " 2 ", '"3.10"', "NaN", "null"])
async def test_a_decimal_is_the_number_that_was_typed(text: str) -> None:
    app = shop()

    @app.task(name="shop.pay")
    async def pay(amount: decimal.Decimal | None) -> str:
        return str(amount)

    async with app, dashboard(app) as client:
        answer = await client.post("/tasks/shop.pay/run", data={**await with_token(client), "param.amount": text})
        assert answer.status_code == 303, answer.text
        (job,) = await app.jobs()
        result = await app.wait_for_result(job.id, timeout=10)
        assert result.result == {" 2 ": "2", "1e3": "1E+3", "null": "None"}.get(text, text.strip('"'))


def test_an_id_of_digits_only_is_an_id() -> None:
    def find(key: uuid.UUID) -> None: ...

    digits = "12345678123456781234567812345678"
    assert call_from(inspect.signature(find), {"key": digits}, hints_of(find)) == ([digits], {})


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"paper": "2", "colour": "red"}, "there is no parameter 'colour'"),
        ({"paper": "A5"}, "paper must be one of A4, 2, not 'A5'"),
        ({"day": "tomorrow"}, "day must be a date such as 2026-12-24, not 'tomorrow'"),
        ({"at": "6 pm"}, "at must be a datetime such as"),
        ({"address.since": "x"}, "address.since must be a date"),
    ],
)
def test_what_is_no_value_of_the_type_is_refused(fields: dict[str, str], reason: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(reason)):
        call(**fields)


def test_a_function_whose_types_cannot_be_resolved_has_plain_fields() -> None:
    def odd(one: "Nowhere", two: "str") -> None: ...  # type: ignore[name-defined]  # noqa: F821

    assert [one["input"] for one in parameters_of(odd, inspect.signature(odd))] == ["json", "text"]
    assert call_from(inspect.signature(odd), {"one": "1", "two": "2"}) == ([1, "2"], {})


async def test_a_task_is_run_with_dates_enums_and_dataclasses() -> None:
    app = shop()
    app.task(name="shop.send")(send)
    async with app.client(), dashboard(app) as client:
        page = (await client.get("/tasks/shop.send")).text
        assert re.search(
            r'<select id="param.paper" name="param.paper" required>\s*<option value=""></option>\s*<option>A4', page
        )
        assert re.search(r'<input id="param.address.since" name="param.address.since" type="date"', page)
        form = {**await with_token(client), "param.to": "x", "param.paper": "2", "param.address.since": "2026-01-02"}
        form["param.address.street"] = "Elm"
        answer = await client.post("/tasks/shop.send/run", data=form)
        assert answer.status_code == 303, answer.text
        (job,) = await app.jobs()
        address = {"street": "Elm", "since": dt.date(2026, 1, 2), "floor": 0, "tags": []}
        assert (job.args, job.kwargs) == (("x", 2), {"address": address})
        answer = await client.post("/tasks/shop.send/run", data={**form, "param.address.since": "soon"})
        assert answer.status_code == 422
        assert 'value="soon"' in answer.text
