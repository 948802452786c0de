"""What came with a request that is to change something: the fields of a form or of a JSON object."""

from __future__ import annotations

import json
import math
import re
import urllib.parse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from flowrra import ConfigError
from flowrra_extras.dashboard.access import TOKEN_FIELD, media_type

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flowrra_extras.dashboard.web import Request


class UnreadableError(ConfigError):
    """What was sent is not what it says it is: it cannot be parsed, or not in one way only."""


FIELDS_LIMIT = 2_000
FORM = "application/x-www-form-urlencoded"
_UNWRITABLE = re.compile("[\0\ud800-\udfff]")


@dataclass(slots=True, frozen=True)
class Given:
    """The fields. Those of a form are all texts; `many` holds every value of a name that came more than once."""

    values: Mapping[str, Any]
    many: Mapping[str, Sequence[str]]
    is_form: bool

    @property
    def token(self) -> str | None:
        """The token that the form brought."""
        return self.values.get(TOKEN_FIELD) if self.is_form else None

    def text(self, name: str, default: str | None = None) -> str:
        """A text; ConfigError if there is none, or it is something else."""
        value = self.values.get(name, default)
        if not isinstance(value, str):
            raise ConfigError(f"{name} must be a text, not {value!r:.80}")
        return value

    def texts(self, name: str) -> list[str]:
        """A list of texts; empty if there is none."""
        values = list(self.many.get(name, ())) if self.is_form else self.values.get(name, [])
        if not isinstance(values, list) or not all(
            isinstance(value, str) and not _UNWRITABLE.search(value) for value in values
        ):
            raise ConfigError(f"{name} must be a list of texts, not {values!r:.80}")
        return values

    def json_text(self, name: str, default: str | None = None) -> str | None:
        """A JSON value as its text, which a form brings as it is; `default` if there is none."""
        value = self.values.get(name)
        if value is None or (self.is_form and not value.strip()):
            return default
        return value if self.is_form else json.dumps(value)

    def without(self, *names: str) -> dict[str, Any]:
        """The other fields, those of a form that were left empty not among them."""
        names = (*names, TOKEN_FIELD, "back") if self.is_form else names
        return {
            name: value
            for name, value in self.values.items()
            if name not in names and not (self.is_form and not value.strip())
        }


def read(request: Request) -> Given:
    """The fields of the request's body; ConfigError if they cannot be read."""
    found = _read_form(request.body) if media_type(request) == FORM else _read_json(request.body)
    for name, value in found.values.items():
        if isinstance(value, str) and _UNWRITABLE.search(value):
            raise ConfigError(f"{name} holds a NUL or half of a surrogate pair: {value!r:.80}")
    return found


def _read_json(body: bytes) -> Given:
    try:
        values = strictly(body) if body.strip() else {}
    except (ValueError, RecursionError) as error:
        raise UnreadableError(f"the body is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise UnreadableError(f"the body must be a JSON object, not {values!r:.80}")
    return Given(values, {}, is_form=False)


def _read_form(body: bytes) -> Given:
    try:
        many = urllib.parse.parse_qs(body.decode(), keep_blank_values=True, max_num_fields=FIELDS_LIMIT)
    except ValueError as error:
        raise UnreadableError(f"the form cannot be read: {error}") from None
    return Given({name: values[-1] for name, values in many.items()}, many, is_form=True)


def strictly(text: str | bytes) -> Any:
    """A JSON text's value; ValueError where it is none, or readers would differ over it."""
    return json.loads(text, parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_without_doubles)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"the number {text[:40]} is too large")
    return number


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        double = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {double[:80]!r} stands twice in an object")
    return found


def value_of(text: str) -> Any:
    """A field of a form that stands for any value: JSON, or else the text itself."""
    try:
        return strictly(text)
    except (ValueError, RecursionError):
        return text
