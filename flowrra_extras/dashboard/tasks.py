"""Tasks: their list, the page of one task with its form, and running one."""

import dataclasses
import datetime as dt
import decimal
import enum
import inspect
import json
import types
import typing
import uuid
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypedDict

import flowrra
from flowrra_extras.dashboard import html
from flowrra_extras.dashboard.api_schema import JOB_OPTIONS, form_options, given_options
from flowrra_extras.dashboard.auth import Access
from flowrra_extras.dashboard.html import Entered, Shown, View
from flowrra_extras.dashboard.http import (
    Done,
    Fields,
    logger,
    read_list,
    read_object,
    refusing_misfits,
    submitted,
    value_of,
    whole,
)
from flowrra_extras.dashboard.job_search import Search, find_jobs
from flowrra_extras.dashboard.jobs import JobRow, job_row, line
from flowrra_extras.dashboard.overview import Minute, begin, by_task, each_minute, summed
from flowrra_extras.dashboard.store import Store

LATEST = 10  # jobs of a task's page


class Parameter(TypedDict):
    """A parameter of a task, or a field of a parameter that is a dataclass.

    `annotation` and `default` are source text, or null. `input` is the type of its form field: json, text, integer,
    number, date, time or datetime. If there are `choices` or `fields`, these are used instead.
    """

    name: str
    kind: str  # positional, keyword, args, kwargs
    annotation: str | None
    default: str | None
    required: bool
    input: str
    choices: list[str]
    fields: list["Parameter"]


class TaskRow(TypedDict):
    """A task and its activity in the last hour. It is registered here, or only known from the store and the workers."""

    name: str
    is_registered: bool  # here, so that it may be run through a form
    kind: str | None  # async, thread, process; None if it is not registered here
    queue: str | None
    succeeded: int
    failed: int
    retried: int
    failure_share: float | None
    run_p50: float | None
    run_p95: float | None
    workers: int  # live ones that know it


class TaskView(TaskRow):
    """A task with its options and parameters."""

    summary: str | None  # the docstring
    signature: str | None
    parameters: list[Parameter]
    options: dict[str, Any]  # by name, those of @app.task
    minutes: list[Minute]
    latest: list[JobRow]


class Tasks:
    """The pages and actions of tasks. Unknown names raise TaskNotFoundError."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def tasks(self) -> list[TaskRow]:
        """The tasks that are registered here, known to a live worker, or were run in the last hour."""
        await self._store.app.connect()
        workers = await self._store.app.broker.workers()
        activity = by_task(await self._store.app.broker.activity(begin(self._store.app.now())))
        names = sorted({*self._store.known_tasks(workers), *activity})
        return [self._task_row(name, workers, activity.get(name, [])) for name in names]

    async def task(self, name: str) -> TaskView:
        await self._store.app.connect()
        now, workers = self._store.app.now(), await self._store.app.broker.workers()
        activity = by_task(await self._store.app.broker.activity(begin(now))).get(name, [])
        task = self._store.app.registry.get(name)
        latest = (await find_jobs(self._store.app.broker, Search(flowrra.JobFilter(task=name)), limit=LATEST)).jobs
        if task is None and not activity and not latest and name not in self._store.known_tasks(workers):
            raise flowrra.TaskNotFoundError(f"there is no task {name!r}: no program, worker or job here has it")
        return {
            **self._task_row(name, workers, activity),
            "summary": None if task is None else inspect.getdoc(task.function),
            "signature": None if task is None else str(task.signature),
            "parameters": [] if task is None else parameters_of(task.function, task.signature),
            "options": {} if task is None else options_of(task),
            "minutes": each_minute(activity, now),
            "latest": [job_row(job, now, redacted=self._store.hides(job)) for job in latest],
        }

    def _task_row(self, name: str, workers: list[flowrra.WorkerInfo], activity: list[flowrra.Activity]) -> TaskRow:
        task, hour = self._store.app.registry.get(name), summed(activity, self._store.app.now())
        ended = hour["succeeded"] + hour["failed"]
        return {
            "name": name,
            "is_registered": task is not None,
            "kind": None if task is None else kind_of(task),
            "queue": None if task is None else task.queue,
            "succeeded": hour["succeeded"],
            "failed": hour["failed"],
            "retried": hour["retried"],
            "failure_share": hour["failed"] / ended if ended else None,
            "run_p50": hour["run_p50"],
            "run_p95": hour["run_p95"],
            "workers": sum(name in worker.tasks for worker in workers),
        }

    async def run_named(self, fields: Fields, access: Access) -> Done:
        """Submits a job of the task that the fields name."""
        return await self.run_it(fields, access, fields.text("task_name"))

    async def run_it(self, fields: Fields, access: Access, name: str) -> Done:
        """Submits a job of a task, by its form (`param.NAME`, `option.NAME`) or by `args` and `kwargs`."""
        args, kwargs = fields.json_text("args", "[]") or "", fields.json_text("kwargs", "{}") or ""
        options = given_options(fields, JOB_OPTIONS, prefix="option.")
        task = self._store.app.registry.get(name)
        if task is None:
            near = flowrra.nearest(name, self._store.app.registry)
            raise flowrra.TaskNotFoundError(
                f"no task {name!r} is registered in this program, so it cannot be run here{near}"
            )
        if fields.is_form:
            given = call_from(task.signature, fields.named("param."), hints_of(task.function))
            args, kwargs = map(json.dumps, given)
        with refusing_misfits():
            submission = task.options(**_options(options))
            job = submission.make_job(*task.typed(read_list(args), read_object(kwargs)))
        (job_id,) = await self._store.app.submit_jobs([job])
        logger.info("%s has run %s: job %s", access.who, name, job_id)
        self._store.forget()
        return submitted(job_id)

    async def list_page(self, view: View, entered: Entered | None) -> Shown:
        return "Tasks", "tasks.html", {"tasks": await self.tasks()}

    async def task_page(self, view: View, entered: Entered | None, name: str) -> Shown:
        task = await self.task(name)
        drawn = {"finished": html.finished(task["minutes"]), "run": html.spans(task["minutes"], "run")}
        context = {"task": task, "charts": drawn, "options": form_options(JOB_OPTIONS), **html.filled(entered)}
        return name, "task.html", context


def kind_of(task: flowrra.Task[..., Any]) -> str:
    """Where the task runs: async, thread or process."""
    if task.settings.cpu_bound:
        return "process"
    return "async" if task.is_async else "thread"


_KINDS: Mapping[inspect._ParameterKind, str] = {
    inspect.Parameter.POSITIONAL_ONLY: "positional",
    inspect.Parameter.POSITIONAL_OR_KEYWORD: "positional",
    inspect.Parameter.VAR_POSITIONAL: "args",
    inspect.Parameter.KEYWORD_ONLY: "keyword",
    inspect.Parameter.VAR_KEYWORD: "kwargs",
}


def parameters_of(function: Callable[..., Any], signature: inspect.Signature) -> list[Parameter]:
    """The parameters of a task, as its form asks for them."""
    hints = hints_of(function)
    return [parameter_of(parameter, hints.get(name)) for name, parameter in signature.parameters.items()]


def parameter_of(parameter: inspect.Parameter, hint: Any = None) -> Parameter:
    """A parameter, as a form asks for it; `hint` is its annotation, resolved."""
    empty, variable = parameter.empty, parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    note, default = parameter.annotation, parameter.default
    kind = None if variable else _without_none(note if hint is None else hint)
    return {
        "name": parameter.name,
        "kind": _KINDS[parameter.kind],
        "annotation": None if note is empty else note if isinstance(note, str) else inspect.formatannotation(note),
        "default": None if default is empty or default is dataclasses.MISSING else line(repr(default)),
        "required": default is empty and not variable,
        "input": _INPUTS.get(kind, "json"),
        "choices": list(_choices(kind)),
        "fields": [parameter_of(field, field.annotation) for field in _fields_of(kind)],
    }


def options_of(task: flowrra.Task[..., Any]) -> dict[str, Any]:
    """The options of a task as they would be written; exception types by their names."""
    names = task.settings.__dataclass_fields__
    values = {name: getattr(task.settings, name) for name in names}
    for name in ("retry_on", "no_retry_on"):
        values[name] = [flowrra.kind_name(kind) for kind in values[name]]
    return {**values, "queue": task.queue}


_MOMENTS = ("run_at", "expires")


def _options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a job as JSON brings them."""
    options = whole({name: value for name, value in given.items() if value is not None})
    for name in _MOMENTS:
        if isinstance(options.get(name), str):
            try:
                options[name] = dt.datetime.fromisoformat(options[name])
            except ValueError:
                raise flowrra.ConfigError(
                    f"{name} must be a time, such as 2026-12-24T18:00Z, not {given[name]!r}"
                ) from None
    return options


def call_from(
    signature: inspect.Signature, fields: Mapping[str, str], hints: Mapping[str, Any] = MappingProxyType({})
) -> tuple[list[Any], dict[str, Any]]:
    """Arguments from the fields of a form made from a signature. What was left empty is left out.

    By position as far as no parameter was left out, so that parameters that take no name get theirs.
    """
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    if unknown := {name.partition(".")[0] for name in fields} - signature.parameters.keys():
        raise flowrra.ConfigError(f"there is no parameter {min(unknown)!r}: load the form again")
    for name, parameter in signature.parameters.items():
        if name not in fields and not any(one.startswith(f"{name}.") for one in fields):
            continue
        if parameter.kind is parameter.VAR_POSITIONAL:
            args += _expect(name, value_of(fields[name]), list)
            continue
        if parameter.kind is parameter.VAR_KEYWORD:
            kwargs |= _expect(name, value_of(fields[name]), dict)
            continue
        value = _argument(name, fields, hints.get(name, parameter.annotation))
        if parameter.kind is parameter.KEYWORD_ONLY or len(args) != list(signature.parameters).index(name):
            kwargs[name] = value
        else:
            args.append(value)
    return args, kwargs


def _argument(name: str, fields: Mapping[str, str], hint: Any) -> Any:
    """What the field of that name holds, or the fields below it: by the type, or else JSON, or a text.

    Where the type is a text, 42 is one too, and so it is of a Decimal, which a float would round, or a UUID. Moments
    are as JSON keeps them.
    """
    kind = _without_none(hint)
    if name not in fields:
        parts = [field.name for field in _fields_of(kind) if f"{name}.{field.name}" in fields]
        hints = {field.name: field.annotation for field in _fields_of(kind)}
        return {part: _argument(f"{name}.{part}", fields, hints[part]) for part in parts}
    text, choices = fields[name], _choices(kind)
    if choices and text not in choices:
        raise flowrra.ConfigError(f"{name} must be one of {', '.join(choices)}, not {text[:80]!r}")
    if choices:
        return choices[text]
    if kind in (dt.date, dt.time, dt.datetime):
        try:
            return {"$": kind.__name__, "v": kind.fromisoformat(text.strip()).isoformat()}
        except ValueError:
            raise flowrra.ConfigError(
                f"{name} must be a {kind.__name__} such as {_EXAMPLES[kind]}, not {text[:80]!r}"
            ) from None
    value = value_of(text)
    if kind in (decimal.Decimal, uuid.UUID) and isinstance(value, int | float):
        return text.strip()
    return text if kind in (str, "str") and not isinstance(value, str) else value


# What a form knows of types ----------------------------------------------------------------------

_INPUTS: Mapping[Any, str] = {
    str: "text", "str": "text", int: "integer", float: "number", dt.date: "date", dt.time: "time",
    dt.datetime: "datetime",
}  # fmt: skip
_EXAMPLES: Mapping[Any, str] = {dt.date: "2026-12-24", dt.time: "18:00", dt.datetime: "2026-12-24T18:00+00:00"}


def hints_of(function: Any) -> dict[str, Any]:
    """The annotations of a function or a dataclass, resolved; none where one cannot be."""
    try:
        return typing.get_type_hints(function)
    except Exception:  # it names what is imported for type checkers only, or nothing at all
        return {}


def _without_none(hint: Any) -> Any:
    """The type, of `T | None` as well."""
    if typing.get_origin(hint) not in (types.UnionType, typing.Union):
        return hint
    parts = [part for part in typing.get_args(hint) if part is not type(None)]
    return parts[0] if len(parts) == 1 else hint


def _choices(kind: Any) -> dict[str, Any]:
    """The values of a type that has few, by what a form calls them. Members of an enum are kept as by the core."""
    if kind is bool:
        return {"true": True, "false": False}
    if typing.get_origin(kind) is typing.Literal:
        return {str(value): value for value in typing.get_args(kind)}
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        is_by_value = all(isinstance(member.value, str | int | float | None) for member in kind)
        values = [member.value if is_by_value else member.name for member in kind]
        return {str(value): value for value in values}
    return {}


def _fields_of(kind: Any) -> list[inspect.Parameter]:
    """The fields of a dataclass as parameters; none of another type."""
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        return []
    hints, empty = hints_of(kind), inspect.Parameter.empty
    return [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, annotation=hints.get(field.name, field.type),
            default=empty if field.default is field.default_factory is dataclasses.MISSING else field.default,
        )
        for field in dataclasses.fields(kind) if field.init
    ]  # fmt: skip


def _expect(name: str, value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise flowrra.ConfigError(f"{name} must be a JSON {'list' if kind is list else 'object'}, not {value!r:.80}")
    return value
