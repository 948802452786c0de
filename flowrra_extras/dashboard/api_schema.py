"""Schemas of the requests and answers of the API: checks, options, and the OpenAPI document.

Answers are described by the types that handlers return, options by the types that the engine has for them.
"""

from __future__ import annotations

import datetime as dt
import inspect
import re
import types
import typing
from typing import TYPE_CHECKING, Any

import flowrra
from flowrra import ConfigError, SubmitOptions
from flowrra_extras.dashboard.http import value_of
from flowrra_extras.dashboard.job_search import LINE_LIMIT
from flowrra_extras.scheduler import StoredOptions

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from flowrra_extras.dashboard.app import Route
    from flowrra_extras.dashboard.http import Fields

Schema = dict[str, Any]

_PLAIN: dict[Any, Schema] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    dt.datetime: {"type": "string", "format": "date-time"},
    type(None): {"type": "null"},
    Any: {},
}


_COMPONENTS: dict[str, Schema] = {}  # of the types that were asked for, by name


def schema_of(kind: Any) -> Schema:
    """The JSON schema of a type that a handler answers."""
    if kind in _PLAIN:
        return _PLAIN[kind]
    if typing.is_typeddict(kind):
        if kind.__name__ not in _COMPONENTS:
            _COMPONENTS[kind.__name__] = {}  # a type may hold itself
            _COMPONENTS[kind.__name__] = _component(kind)
        return {"$ref": f"#/components/schemas/{kind.__name__}"}
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is list:
        return {"type": "array", "items": schema_of(parts[0])}
    if origin is dict:
        return {"type": "object", "additionalProperties": schema_of(parts[1])}
    if origin in (types.UnionType, typing.Union):
        return {"anyOf": [schema_of(part) for part in parts]}
    raise TypeError(f"there is no schema for {kind!r}")


def _component(kind: Any) -> Schema:
    hints = typing.get_type_hints(kind)
    return {
        "type": "object",
        "description": inspect.cleandoc(kind.__doc__ or ""),
        "properties": {name: schema_of(hint) for name, hint in hints.items()},
        "required": sorted(hints),
    }


# Options: every one that the engine has, in the API and in forms ---------------------------------

_NO_NUL = r"^[^\x00]*$"
TEXT: Schema = {"type": "string", "minLength": 1, "maxLength": 200, "pattern": _NO_NUL}
SECONDS: Schema = {"type": "number", "minimum": 0, "maximum": 1e6}
MOMENT: Schema = {"type": "string", "format": "date-time"}
WHOLE: Schema = {"type": "integer", "minimum": 0, "maximum": 1_000_000}
NO_NUL: Schema = {"type": "string", "pattern": _NO_NUL}

# What is known of an option beside its type. One that is not here is described by its type and name.
_KNOWN: dict[str, Schema] = {
    "priority": {
        "type": "integer", "minimum": -(2**53), "maximum": 2**53, "title": "Priority",
        "description": "a job with a lower number runs first",
    },
    "queue": {"type": "string", "pattern": r"^[^\s,:\x00]([^,:\x00]*[^\s,:\x00])?$", "maxLength": 200},
    "delay": {**SECONDS, "title": "Delay", "description": "seconds from now"},
    "run_at": {**MOMENT, "title": "Or run at", "description": "a time, such as 2026-12-24T18:00Z"},
    "expires": {"anyOf": [SECONDS, MOMENT], "title": "Expires", "description": "seconds from now, or a time"},
    "unique": {**TEXT, "title": "Unique key"},
    "limit": NO_NUL,
    "key": {**TEXT, "title": "Limit key"},
    "on_conflict": {"enum": ["keep", "replace", "postpone"], "title": "If the unique key is in use"},
    "task_id": {**TEXT, "title": "Id"},
    "tags": {"type": "array", "items": TEXT, "maxItems": 20, "description": "such as tenant:42, urgent"},
    "meta": {"type": "object", "description": 'plain values, such as {"user": 7}'},
    "timeout": {"type": "number", "minimum": 0.001, "maximum": 1e6, "title": "Time-out", "description": "seconds"},
    "max_retries": {**WHOLE, "title": "Retries"},
    "result_ttl": {**SECONDS, "title": "Result TTL", "description": "seconds"},
    "tz": {**NO_NUL, "title": "Zone", "description": "such as Europe/Riga"},
    "description": NO_NUL,
    "misfire": {"enum": list(flowrra.MISFIRES)},
    "overlap": {"enum": list(flowrra.OVERLAPS)},
}  # fmt: skip


def _option(name: str, hint: Any) -> Schema:
    kinds = [kind for kind in (typing.get_args(hint) or (hint,)) if kind in _PLAIN and kind is not type(None)]
    title = name.replace("_", " ").capitalize()
    choices = [value for kind in typing.get_args(hint) for value in typing.get_args(kind) if isinstance(value, str)]
    plain = _KNOWN.get(name) or ({"enum": choices} if choices else SECONDS if float in kinds else _PLAIN[kinds[0]])
    return {"title": title, **({"description": "seconds"} if plain is SECONDS else {}), **plain}


def _options(kind: Any) -> dict[str, Schema]:
    return {name: _option(name, hint) for name, hint in typing.get_type_hints(kind).items()}


JOB_OPTIONS = _options(SubmitOptions)
JOB_OPTIONS["backoff"].pop("description", None)  # it is a factor
STORED_OPTIONS = _options(StoredOptions)


def form_options(options: Mapping[str, Schema]) -> list[dict[str, Any]]:
    """The options as a form shows them: `choices` are the values of a select, and None where anything may be typed."""
    return [
        {
            "name": name,
            "label": one["title"],
            "hint": one.get("description", ""),
            "mode": {"integer": "numeric", "number": "decimal"}.get(one.get("type", ""), "text"),
            "choices": ["true", "false"] if one.get("type") == "boolean" else one.get("enum"),
        }
        for name, one in options.items()
    ]


def given_options(fields: Fields, options: Mapping[str, Schema], prefix: str = "") -> dict[str, Any]:
    """The options among the fields; those of a form bear the prefix, and are read as their types say.

    Raises:
        ConfigError: an option of the form that there is not.
    """
    if not fields.is_form:
        return {name: value for name, value in fields.values.items() if name in options}
    texts = fields.named(prefix)
    if prefix and (unknown := texts.keys() - options.keys()):
        raise ConfigError(f"there is no option {min(unknown)!r}; the options are {', '.join(options)}")
    return {name: _value_of(text, options[name]) for name, text in texts.items() if name in options}


def _value_of(text: str, option: Schema) -> Any:
    """A text of a form: a queue named 42 stays one, a priority becomes a number, and texts with commas a list."""
    if option.get("type") == "array" and not text.startswith("["):
        return [part.strip() for part in text.split(",") if part.strip()]
    return text if option.get("type") == "string" or "enum" in option else value_of(text)


# Bodies ----------------------------------------------------------------------------------------


def body(*required: str, **properties: Schema) -> Schema:
    """An object with these fields and no others."""
    return {
        "type": "object", "properties": properties, "required": list(required), "additionalProperties": False,
    }  # fmt: skip


def _all_of(**properties: Schema) -> Schema:
    """An object that has each of these fields."""
    return {"type": "object", "properties": properties, "required": list(properties)}


_ARGUMENTS: dict[str, Schema] = {
    "args": {"type": "array", "description": "arguments by position"},
    "kwargs": {"type": "object", "description": "arguments by name"},
}
NOTHING = body()
MANY: Schema = {
    "anyOf": [
        body("ids", ids={"type": "array", "items": NO_NUL, "minItems": 1, "maxItems": 1_000}),
        body(
            "search",
            search={
                "type": "string", "maxLength": LINE_LIMIT,
                "description": "a search; the action applies to all jobs that match it",
            },
            after={
                "type": "string", "pattern": "^[0-9]{1,18}$",
                "description": "the `after` of the previous report, to continue from there",
            },
        ),
    ]
}  # fmt: skip
CLONE = body(**_ARGUMENTS)
LIMIT_KEY = body(key={**NO_NUL, "maxLength": 200, "description": 'the key; "" for jobs without one'})
EMIT = body(payload={"description": "the value that wait_event() returns"})
RUN_IT = body(**_ARGUMENTS, **JOB_OPTIONS)
RUN = body("task_name", task_name=TEXT, **_ARGUMENTS, **JOB_OPTIONS)
_RULES: dict[str, Schema] = {
    "cron": {"type": "string", "maxLength": 500, "examples": ["0 9 * * mon-fri"]},
    "interval": {"type": "number", "minimum": 0.001, "maximum": 3_153_600_000, "description": "seconds"},
    "run_at": MOMENT,
}
SCHEDULE = {
    rule: body("task_name", rule, task_name=TEXT, **{rule: schema}, **_ARGUMENTS, **STORED_OPTIONS)
    for rule, schema in _RULES.items()
}
CHANGE = body(**_RULES, **_ARGUMENTS, **{name: one for name, one in STORED_OPTIONS.items() if name != "task_id"})
OBJECT: Schema = {"type": "object"}
STRING: Schema = {"type": "string"}
JOB_ID = _all_of(id=STRING)
SCHEDULE_ID = _all_of(id=STRING, schedule_id=STRING)
EMITTED = _all_of(event=STRING)
_STATES = "|".join(flowrra.TaskStatus)


def query(name: str, text: str, **schema: Any) -> Schema:
    return {"name": name, "in": "query", "description": text, "schema": {"type": "string", **schema}}


JOBS_QUERY = (
    query("search", "a search, such as state:failed args.user:42 after:2h", maxLength=LINE_LIMIT),
    query("state", "states, separated by commas", pattern=f"^({_STATES})(,({_STATES}))*$"),
    query("task", "the name of a task, or the last part of the name", minLength=1, pattern=_NO_NUL),
    query("queue", "the name of a queue", minLength=1, pattern=_NO_NUL),
    query("after", "the `after` of the previous page", pattern="^[0-9]{1,18}$"),
    query("limit", "the number of jobs on the page", type="integer", minimum=1, maximum=500, default=50),
)
PREVIEW_QUERY = (
    query("kind", "the kind of the rule: cron, interval or once", default="cron"),
    query("rule", "the rule"),
    query("tz", "a time zone, such as Europe/Riga", default="UTC"),
)
EVENTS_QUERY = (
    query("view", "the path of the page, with its query", default="/"),
    query("digest", "the id of the last event that was received"),
)


# Checks: as much of JSON Schema as our own schemas say --------------------------------------------

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
        return f"{name} must be of type {kind}, not {value!r:.80}"
    check = _CHECKS.get(kind)
    return check(value, schema, name) if check else None


def _object_fault(value: dict[str, Any], schema: Schema, name: str) -> str | None:
    properties = schema.get("properties", {})
    missing = [key for key in schema.get("required", ()) if key not in value]
    if missing:
        return f"{name} lacks {', '.join(missing)}"
    unknown = value.keys() - properties
    if unknown and schema.get("additionalProperties") is False:
        return f"{name} has no field {min(unknown)!r}{'; its fields are ' if properties else ''}{', '.join(properties)}"
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
        return f"{name} must match {schema['pattern']}, not {value!r:.80}"
    if schema.get("format") == "date-time":
        try:
            dt.datetime.fromisoformat(value)
        except ValueError:
            return f"{name} must be a time, such as 2026-12-24T18:00:00Z, not {value!r:.80}"
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


# The document ----------------------------------------------------------------------------------

_TROUBLES = {
    "400": "The body cannot be read, or is ambiguous",
    "401": "You are not authenticated",
    "403": "You are not allowed to do this, or the request was sent by another site",
    "404": "Not found",
    "405": "The method is not allowed here",
    "409": "The current state does not allow this",
    "408": "The body was not received in time",
    "413": "The request is too long",
    "415": "The body is compressed",
    "422": "The request is not valid",
    "503": "The store does not answer",
}


def document(root: str, routes: Iterable[Route]) -> Schema:
    trouble = {**_all_of(error=STRING), "description": "Why a request was refused or failed."}
    paths: dict[str, Schema] = {}
    for route in routes:
        path = route.path.removeprefix("/api")
        paths.setdefault(path, {})[route.method.lower()] = _operation(path, route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Flowrra", "version": flowrra.__version__},
        "servers": [{"url": root}],
        "paths": paths,
        "components": {"schemas": {"Trouble": trouble, **_COMPONENTS}},
    }


def _operation(path: str, route: Route) -> Schema:
    entry = route.entry
    operation: Schema = {"summary": entry.text, "operationId": f"{route.method.lower()} {path}"}
    operation["parameters"] = [_in_path(part[1:-1]) for part in path.split("/") if part.startswith("{")]
    operation["parameters"] += entry.query
    if entry.body is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": entry.body}}}
    answer = _all_of(**{entry.listed: entry.answer}) if entry.listed else entry.answer
    answered = {str(entry.status): _answered(entry.text, answer, entry.media)}
    operation["responses"] = {**answered, **_troubles(path, entry.answer)}
    return operation


def _in_path(name: str) -> Schema:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def _answered(text: str, schema: Schema, media: str = "application/json") -> Schema:
    return {"description": text, "content": {media: {"schema": schema}}}


def _troubles(path: str, answer: Schema) -> Schema:
    trouble: Schema = {"$ref": "#/components/schemas/Trouble"}
    schemas = dict.fromkeys(_TROUBLES, trouble)
    if path == "/health":
        schemas["503"] = {"anyOf": [answer, trouble]}
    if path == "/jobs":
        schemas["422"] = {"anyOf": [answer, trouble]}
    return {status: _answered(_TROUBLES[status], schema) for status, schema in schemas.items()}
