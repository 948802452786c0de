"""Checks JSON that was sent against its schema: as much of JSON Schema as our own schemas say."""

from __future__ import annotations

import datetime as dt
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

Schema = dict[str, Any]

# An int is a number too, but True is neither.
_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}


def fault(value: Any, schema: Schema, name: str = "the body") -> str | None:
    """What is wrong with `value`, in words; None if it is as the schema says."""
    if "anyOf" in schema:
        faults = [fault(value, one, name) for one in schema["anyOf"]]
        return None if None in faults else " or ".join(filter(None, faults))
    if "enum" in schema:
        return None if value in schema["enum"] else f"{name} must be one of {', '.join(schema['enum'])}"
    kind = schema.get("type")
    if kind is None:
        return None
    if kind == "integer" and isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "boolean"):
        return f"{name} must be of the type {kind}, not {value!r:.80}"
    check = _CHECKS.get(kind)
    return check(value, schema, name) if check else None


def _object_fault(value: dict[str, Any], schema: Schema, name: str) -> str | None:
    properties = schema.get("properties", {})
    missing = [key for key in schema.get("required", ()) if key not in value]
    if missing:
        return f"{name} lacks {', '.join(missing)}"
    unknown = value.keys() - properties
    if unknown and schema.get("additionalProperties") is False:
        return f"{name} has no field {min(unknown)!r}{': ' if properties else ''}{', '.join(properties)}"
    faults = (fault(one, properties[key], key) for key, one in value.items() if key in properties)
    return next(filter(None, faults), None)


def _array_fault(value: list[Any], schema: Schema, name: str) -> str | None:
    if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
        return f"{name} must have {schema.get('minItems', 0)} to {schema.get('maxItems')} items, not {len(value)}"
    faults = (fault(one, schema.get("items", {}), f"{name}[{number}]") for number, one in enumerate(value))
    return next(filter(None, faults), None)


def _string_fault(value: str, schema: Schema, name: str) -> str | None:
    if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
        return f"{name} must have {schema.get('minLength', 0)} to {schema.get('maxLength')} characters"
    if "pattern" in schema and not re.search(schema["pattern"], value):
        return f"{name} must match {schema['pattern']}, which {value!r:.80} does not"
    if schema.get("format") == "date-time":
        try:
            dt.datetime.fromisoformat(value)
        except ValueError:
            return f"{name} must be a moment, such as 2026-12-24T18:00:00Z, not {value!r:.80}"
    return None


def _number_fault(value: float, schema: Schema, name: str) -> str | None:
    least, most = schema.get("minimum", value), schema.get("maximum", value)
    return None if least <= value <= most else f"{name} must be from {least} to {most}, not {value!r:.80}"


_CHECKS: Mapping[str, Any] = {
    "object": _object_fault,
    "array": _array_fault,
    "string": _string_fault,
    "integer": _number_fault,
    "number": _number_fault,
}
