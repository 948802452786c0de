"""The OpenAPI document of the JSON API. What is answered is described by the types of `shapes`, read from there."""

from __future__ import annotations

import datetime as dt
import functools
import types
import typing
from typing import TYPE_CHECKING, Any

import flowrra
from flowrra_extras.dashboard import shapes

if TYPE_CHECKING:
    from flowrra_extras.dashboard.schema import Schema

_PLAIN: dict[Any, Schema] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    dt.datetime: {"type": "string", "format": "date-time"},
    type(None): {"type": "null"},
    Any: {},
}


def schema_of(kind: Any) -> Schema:
    """The JSON schema of a type that stands in `shapes`."""
    if kind in _PLAIN:
        return _PLAIN[kind]
    if typing.is_typeddict(kind):
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
    hints = typing.get_type_hints(kind, localns={"dt": dt})
    return {
        "type": "object",
        "description": (kind.__doc__ or "").strip(),
        "properties": {name: schema_of(hint) for name, hint in hints.items()},
        "required": sorted(hints),
    }


# Requests --------------------------------------------------------------------------------------


def _object(required: tuple[str, ...] = (), **properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


_NO_NUL = r"^[^\x00]*$"
TEXT: Schema = {"type": "string", "minLength": 1, "maxLength": 200, "pattern": _NO_NUL}
NUMBER: Schema = {"type": "number", "minimum": 0, "maximum": 1e6}  # seconds
PRIORITY: Schema = {"type": "integer", "minimum": -(2**53), "maximum": 2**53}
QUEUE: Schema = {"type": "string", "pattern": r"^[^\s,:\x00]([^,:\x00]*[^\s,:\x00])?$", "maxLength": 200}
MOMENT: Schema = {"type": "string", "format": "date-time"}
WHOLE: Schema = {"type": "integer", "minimum": 0, "maximum": 1_000_000}
ARGUMENTS: dict[str, Schema] = {
    "args": {"type": "array", "description": "arguments by position"},
    "kwargs": {"type": "object", "description": "arguments by name"},
}
NOTHING = _object()
_SEARCH = {"type": "string", "maxLength": 1_000, "description": "a search line: all jobs that it finds"}
_AFTER = {
    "type": "string",
    "pattern": "^[0-9]{1,18}$",
    "description": "what an earlier report gave, to go on from there",
}
_ID = {"type": "string", "pattern": _NO_NUL}
MANY: Schema = {
    "anyOf": [
        _object(("ids",), ids={"type": "array", "items": _ID, "minItems": 1, "maxItems": 1_000}),
        _object(("search",), search=_SEARCH, after=_AFTER),
    ]
}
CLONE = _object((), **ARGUMENTS)
RUN = _object(
    ("task_name",),
    task_name=TEXT,
    **ARGUMENTS,
    priority=PRIORITY,
    queue=QUEUE,
    delay=NUMBER,
    run_at=MOMENT,
    expires={"anyOf": [NUMBER, MOMENT], "description": "seconds from now, or a moment"},
    unique=TEXT,
    task_id=TEXT,
    timeout={"type": "number", "minimum": 0.001, "maximum": 1e6},
    max_retries=WHOLE,
    retry_delay=NUMBER,
    backoff=NUMBER,
    max_delay=NUMBER,
    jitter={"type": "boolean"},
    result_ttl=NUMBER,
)
RUN_IT = {
    **RUN,
    "properties": {key: one for key, one in RUN["properties"].items() if key != "task_name"},
    "required": [],
}
_SCHEDULED: dict[str, Schema] = {
    "task_name": TEXT,
    **ARGUMENTS,
    "tz": {"type": "string", "pattern": _NO_NUL, "description": "such as Europe/Riga"},
    "task_id": {**TEXT, "description": "the schedule's id"},
    "description": {"type": "string", "pattern": _NO_NUL},
    "enabled": {"type": "boolean"},
    "misfire": {"enum": list(flowrra.MISFIRES)},
    "overlap": {"enum": list(flowrra.OVERLAPS)},
    "jitter": NUMBER,
    "priority": PRIORITY,
    "queue": QUEUE,
    "max_retries": WHOLE,
    "retry_delay": NUMBER,
}
_INTERVAL = {"type": "number", "minimum": 0.001, "maximum": 3_153_600_000, "description": "seconds"}
CRON = _object(
    ("task_name", "cron"), cron={"type": "string", "maxLength": 500, "examples": ["0 9 * * mon-fri"]}, **_SCHEDULED
)
INTERVAL = _object(("task_name", "interval"), interval=_INTERVAL, **_SCHEDULED)
ONCE = _object(("task_name", "run_at"), run_at=MOMENT, **_SCHEDULED)
_KEPT = {"task_name", "task_id"}  # of a schedule, whatever is changed
CHANGE = _object(
    (),
    cron=CRON["properties"]["cron"],
    interval=_INTERVAL,
    run_at=MOMENT,
    **{name: one for name, one in _SCHEDULED.items() if name not in _KEPT},
)

JOB_ID: Schema = {"type": "object", "properties": {"id": {"type": "string"}}, "required": ["id"]}
SCHEDULE_ID: Schema = {
    "type": "object",
    "properties": {"id": {"type": "string"}, "schedule_id": {"type": "string"}},
    "required": ["id", "schedule_id"],
}
CHANGED: Schema = {"type": "object"}
TEXT_BODY: Schema = {"type": "string"}  # as text/plain
EVENTS: Schema = {"description": "an event `main` with the HTML of the page, whenever it has changed"}
_WORDS: Schema = {
    "type": "object",
    "properties": {"words": {"type": "array", "items": {"type": "string"}}},
    "required": ["words"],
}
_MEDIA = ((TEXT_BODY, "text/plain"), (EVENTS, "text/event-stream"))  # by identity; all else is JSON


def _listed(name: str, kind: Any) -> Schema:
    return {"type": "object", "properties": {name: schema_of(list[kind])}, "required": [name]}


def _query(name: str, text: str, **schema: Any) -> Schema:
    return {"name": name, "in": "query", "description": text, "schema": {"type": "string", **schema}}


# Path, method, what it does, body, answer, status. Each stands in the router's table under the same path.
OPERATIONS: tuple[tuple[str, str, str, Schema | None, Schema, int], ...] = (
    ("/stats", "get", "The state of things", None, schema_of(shapes.Overview), 200),
    ("/health", "get", "Whether someone is at work: 503 if not", None, schema_of(shapes.Health), 200),
    ("/tasks", "get", "The tasks", None, _listed("tasks", shapes.TaskRow), 200),
    ("/tasks/{name}", "get", "A task", None, schema_of(shapes.TaskView), 200),
    ("/tasks/{name}/run", "post", "Submit a job of a task", RUN_IT, JOB_ID, 201),
    ("/jobs", "get", "A page of jobs, the latest first", None, schema_of(shapes.JobPage), 200),
    ("/jobs/cancel", "post", "Cancel jobs", MANY, schema_of(shapes.Report), 200),
    ("/jobs/requeue", "post", "Let failed and cancelled jobs run again", MANY, schema_of(shapes.Report), 200),
    ("/jobs/delete", "post", "Delete finished jobs", MANY, schema_of(shapes.Report), 200),
    ("/jobs/{task_id}", "get", "A job", None, schema_of(shapes.JobView), 200),
    ("/jobs/{task_id}/cancel", "post", "Cancel a job", NOTHING, schema_of(shapes.Report), 200),
    ("/jobs/{task_id}/requeue", "post", "Let a job run again", NOTHING, schema_of(shapes.Report), 200),
    ("/jobs/{task_id}/delete", "post", "Delete a finished job", NOTHING, schema_of(shapes.Report), 200),
    ("/jobs/{task_id}/clone", "post", "Submit a job like it", CLONE, JOB_ID, 201),
    ("/run", "post", "Submit a job of a task", RUN, JOB_ID, 201),
    ("/queues", "get", "The queues", None, _listed("queues", shapes.QueueRow), 200),
    ("/queues/{name}/pause", "post", "Hand out no more jobs of a queue", NOTHING, CHANGED, 200),
    ("/queues/{name}/resume", "post", "Hand out its jobs again", NOTHING, CHANGED, 200),
    ("/workers", "get", "The live workers", None, _listed("workers", shapes.WorkerRow), 200),
    ("/schedules", "get", "The schedules", None, _listed("schedules", shapes.ScheduleRow), 200),
    ("/schedules/cron", "post", "Store a schedule by a cron expression", CRON, SCHEDULE_ID, 201),
    ("/schedules/interval", "post", "Store a schedule that fires each so many seconds", INTERVAL, SCHEDULE_ID, 201),
    ("/schedules/once", "post", "Store a schedule that fires once", ONCE, SCHEDULE_ID, 201),
    ("/schedules/{schedule_id}", "get", "A schedule", None, schema_of(shapes.ScheduleRow), 200),
    ("/schedules/{schedule_id}", "patch", "Change what is given of a stored schedule", CHANGE, CHANGED, 200),
    ("/schedules/{schedule_id}", "delete", "Delete a schedule", NOTHING, CHANGED, 200),
    ("/schedules/{schedule_id}/enable", "put", "Let a schedule fire", NOTHING, CHANGED, 200),
    ("/schedules/{schedule_id}/disable", "put", "Let a schedule not fire", NOTHING, CHANGED, 200),
    ("/schedules/{schedule_id}/run", "post", "Submit its job now, beside its fires", NOTHING, JOB_ID, 201),
    ("/jobs/{task_id}/text/{field}", "get", "The whole of a long text of a job", None, TEXT_BODY, 200),
    ("/complete", "get", "How a word of a search line may go on", None, _WORDS, 200),
    ("/preview", "get", "What the rule of a schedule means", None, schema_of(shapes.Preview), 200),
    ("/metrics", "get", "The metrics for Prometheus", None, TEXT_BODY, 200),
    ("/events", "get", "News of a page, as server-sent events, for as long as it is looked at", None, EVENTS, 200),
    ("/openapi.json", "get", "This document", None, {"type": "object"}, 200),
)
_STATES = "|".join(flowrra.TaskStatus)
_JOBS_QUERY = [
    _query("search", "a search line, such as state:failed args.user:42 after:2h", maxLength=1_000),
    _query("state", "states, with commas between them", pattern=f"^({_STATES})(,({_STATES}))*$"),
    _query("task", "a task's name, or its last part", minLength=1),
    _query("queue", "a queue's name", minLength=1),
    _query("after", "what the page before gave", pattern="^[0-9]{1,18}$"),
    _query("limit", "jobs on the page", type="integer", minimum=1, maximum=500, default=50),
]
_QUERIES: dict[str, list[Schema]] = {
    "/jobs": _JOBS_QUERY,
    "/complete": [_query("word", "what is typed so far")],
    "/preview": [
        _query("kind", "what kind of rule it is: cron, interval or once", default="cron"),
        _query("rule", "the rule"),
        _query("tz", "such as Europe/Riga", default="UTC"),
    ],
    "/events": [
        _query("view", "the path of the page, with its query", default="/"),
        _query("digest", "what of it is known: the id of an event"),
    ],
}
_TROUBLES = {
    "400": "The body cannot be read, or not in one way only",
    "401": "Who you are is not known",
    "403": "You may not do that, or the request was sent by another site",
    "404": "There is no such thing",
    "405": "That cannot be done here",
    "409": "It is in no state for that",
    "408": "The body did not come in time",
    "413": "The request is too long",
    "415": "The body is compressed",
    "422": "Something in the request cannot be understood",
    "503": "The store does not answer",
}


@functools.lru_cache(maxsize=8)  # a proxy may tell the root in a header
def document(root: str) -> Schema:
    """The document of an API that is served under `root`."""
    kinds = [kind for kind in vars(shapes).values() if typing.is_typeddict(kind)]
    trouble = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Flowrra", "version": flowrra.__version__},
        "servers": [{"url": root}],
        "paths": _paths(),
        "components": {"schemas": {"Trouble": trouble, **{kind.__name__: _component(kind) for kind in kinds}}},
    }


def _paths() -> Schema:
    paths: dict[str, Schema] = {}
    for path, method, text, body, answer, status in OPERATIONS:
        operation: Schema = {"summary": text, "operationId": f"{method} {path}"}
        operation["parameters"] = [_in_path(part[1:-1]) for part in path.split("/") if part.startswith("{")]
        operation["parameters"] += _QUERIES.get(path, ())
        if body is not None:
            operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
        operation["responses"] = {str(status): _answered(text, answer), **_troubles(path, answer)}
        paths.setdefault(path, {})[method] = operation
    return paths


def _in_path(name: str) -> Schema:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def _answered(text: str, schema: Schema) -> Schema:
    media = next((kind for one, kind in _MEDIA if one is schema), "application/json")
    return {"description": text, "content": {media: {"schema": schema}}}


def _troubles(path: str, answer: Schema) -> Schema:
    trouble: Schema = {"$ref": "#/components/schemas/Trouble"}
    schemas = dict.fromkeys(_TROUBLES, trouble)
    if path == "/health":
        schemas["503"] = {"anyOf": [answer, trouble]}
    if path == "/jobs":
        schemas["422"] = {"anyOf": [answer, trouble]}
    return {status: _answered(_TROUBLES[status], schema) for status, schema in schemas.items()}
