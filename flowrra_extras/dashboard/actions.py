"""What changes something: the same handlers for forms, which lead back to a page, and for JSON."""

from __future__ import annotations

import json
import re
import urllib.parse
from typing import TYPE_CHECKING, Any, NamedTuple

from flowrra import ConfigError
from flowrra_extras.dashboard import api
from flowrra_extras.dashboard.access import sealed, token_of
from flowrra_extras.dashboard.given import Given, value_of
from flowrra_extras.dashboard.web import Response

if TYPE_CHECKING:
    import inspect
    from collections.abc import Awaitable, Callable, Mapping

    from flowrra_extras.dashboard.access import Access
    from flowrra_extras.dashboard.service import Service
    from flowrra_extras.dashboard.web import Request

# A path of our own that a form may lead back to. A second slash or a backslash would begin another host's name.
_BACK = re.compile(r"/(?![/\\])[!-\[\]-~]{0,2000}")


class Done(NamedTuple):
    """What came of an action: the value for JSON, and for a form the page to go on at, with what it is to say."""

    value: object
    path: str
    notice: str
    status: int = 200


def answer(request: Request, given: Given, done: Done) -> Response:
    """The answer to a form or to JSON."""
    if not given.is_form:
        return api.answer(done.value, done.status)
    back = given.values.get("back", "")
    path = back if _BACK.fullmatch(back) else done.path
    mark = "&" if "?" in path else "?"
    notice = sealed(done.notice, token_of(request) or "") if ".more." in done.notice else done.notice
    place = urllib.parse.quote(request.root) + f"{path}{mark}notice={urllib.parse.quote(notice)}"
    return Response(303, b"", {"location": place})


def _path(*parts: str) -> str:
    return "".join(f"/{urllib.parse.quote(part, safe='')}" for part in parts)


class Actions:
    """The handlers: each is given the fields, the visitor's access and the parts of the path."""

    def __init__(self, service: Service) -> None:
        self._service = service

    # Jobs --------------------------------------------------------------------------------------

    def on_many(self, action: str) -> Callable[..., Awaitable[Done]]:
        """Cancels, requeues or deletes the jobs with these `ids`, or all that a `search` asks for."""

        async def change(given: Given, access: Access) -> Done:
            ids = given.texts("ids")
            if ids:
                report = await getattr(self._service, action)(ids, by=access.who)
            elif "search" in given.values:
                after = given.text("after", "") or None
                report = await self._service.act(action, given.text("search"), after=after, by=access.who)
            else:
                raise ConfigError("say which jobs: ids, or search for all that it finds")
            more = f".more.{report['after']}" if report["after"] is not None else ""
            return Done(report, "/jobs", f"{action}.{report['done']}.{report['refused']}{more}")

        return change

    def on_one(self, action: str) -> Callable[..., Awaitable[Done]]:
        """Cancels, requeues or deletes one job."""

        async def change(given: Given, access: Access, task_id: str) -> Done:
            report = await getattr(self._service, action)([task_id], by=access.who)
            path = "/jobs" if action == "delete" and report["done"] else _path("jobs", task_id)
            notice = f"{action}.{report['done']}.{report['refused']}"
            if report["done"]:
                return Done(report, path, notice)
            status = (await self._service.job(task_id))["status"]
            return Done({"error": f"the job is {status}: {action} does not fit"}, path, notice, 409)

        return change

    async def clone(self, given: Given, access: Access, task_id: str) -> Done:
        """Submits a job like this one, with other arguments if some are given."""
        args, kwargs = given.json_text("args"), given.json_text("kwargs")
        return _submitted(await self._service.clone(task_id, args, kwargs, by=access.who), "clone")

    # Tasks -------------------------------------------------------------------------------------

    async def run(self, given: Given, access: Access) -> Done:
        """Submits a job of the task that the fields name."""
        args, kwargs = given.json_text("args", "[]"), given.json_text("kwargs", "{}")
        options = given.without("task_name", "args", "kwargs")
        job_id = await self._service.run(given.text("task_name"), args or "", kwargs or "", options, by=access.who)
        return _submitted(job_id, "run")

    async def run_task(self, given: Given, access: Access, name: str) -> Done:
        """Submits a job of a task, by its form (`param.NAME`, `option.NAME`) or by `args` and `kwargs`."""
        args, kwargs = given.json_text("args", "[]"), given.json_text("kwargs", "{}")
        options = given.without("args", "kwargs")
        if given.is_form:
            task = self._service.app.registry.get(name)
            if task is not None:
                args, kwargs = map(json.dumps, call_from(task.signature, _named("param.", options)))
            options = _numbers_read(_named("option.", options))
        return _submitted(await self._service.run(name, args or "", kwargs or "", options, by=access.who), "run")

    # Queues ------------------------------------------------------------------------------------

    async def pause(self, given: Given, access: Access, name: str) -> Done:
        await self._service.pause(name, by=access.who)
        return Done({"queue": name, "paused": True}, "/", "pause")

    async def resume(self, given: Given, access: Access, name: str) -> Done:
        await self._service.resume(name, by=access.who)
        return Done({"queue": name, "paused": False}, "/", "resume")

    # Schedules ---------------------------------------------------------------------------------

    def adds(self, kind: str) -> Callable[..., Awaitable[Done]]:
        """Stores a schedule of that kind."""

        async def add(given: Given, access: Access) -> Done:
            return await self.add_schedule(given, access, kind)

        return add

    async def add_schedule(self, given: Given, access: Access, kind: str | None = None) -> Done:
        """Stores a schedule; JSON calls the rule as Python does: cron, interval or run_at."""
        kind = kind or given.text("kind")
        names = ("rule", "task") if given.is_form else (_RULES.get(kind, "rule"), "task_name")
        rule = given.values.get(names[0])
        if rule is None:
            raise ConfigError(f"{names[0]} is missing: say when the schedule is to fire")
        args, kwargs = given.json_text("args", "[]"), given.json_text("kwargs", "{}")
        options = given.without("kind", "args", "kwargs", *names)
        options = _numbers_read(options) if given.is_form else options
        schedule_id = await self._service.add_schedule(
            kind, given.text(names[1]), rule, args=args or "", kwargs=kwargs or "", by=access.who, **options
        )
        value = {"id": schedule_id, "schedule_id": schedule_id}
        return Done(value, _path("schedules", schedule_id), "add", 201)

    async def update_schedule(self, given: Given, access: Access, schedule_id: str) -> Done:
        args, kwargs = given.json_text("args"), given.json_text("kwargs")
        options = _numbers_read(given.without("kind", "rule", "args", "kwargs"))
        if "description" in given.values:
            options["description"] = given.values["description"] or None
        if "tz" in given.values:  # an emptied field means what the form says beside it
            options.setdefault("tz", "UTC")
        rule = given.values.get("rule")
        await self._service.update_schedule(schedule_id, rule=rule, args=args, kwargs=kwargs, by=access.who, **options)
        return self._on_schedule(schedule_id, "update")

    async def change_schedule(self, given: Given, access: Access, schedule_id: str) -> Done:
        """Changes what is given of a stored schedule; JSON calls the rule as it does when the schedule is made."""
        rules = [given.values[name] for name in _RULES.values() if name in given.values]
        if len(rules) > 1:
            raise ConfigError(f"a schedule has one rule: give one of {', '.join(_RULES.values())}")
        kind = (await self._service.schedule(schedule_id))["kind"]
        if rules and _RULES[kind] not in given.values:
            raise ConfigError(f"this schedule is of the kind {kind}: its rule is given as {_RULES[kind]}")
        args, kwargs = given.json_text("args"), given.json_text("kwargs")
        options = given.without("args", "kwargs", *_RULES.values())
        rule = rules[0] if rules else None
        await self._service.update_schedule(schedule_id, rule=rule, args=args, kwargs=kwargs, by=access.who, **options)
        return self._on_schedule(schedule_id, "update")

    async def remove_schedule(self, given: Given, access: Access, schedule_id: str) -> Done:
        await self._service.remove_schedule(schedule_id, by=access.who)
        return Done({"schedule_id": schedule_id, "removed": True}, "/schedules", "remove")

    async def enable_schedule(self, given: Given, access: Access, schedule_id: str) -> Done:
        await self._service.enable_schedule(schedule_id, by=access.who)
        return self._on_schedule(schedule_id, "enable")

    async def disable_schedule(self, given: Given, access: Access, schedule_id: str) -> Done:
        await self._service.disable_schedule(schedule_id, by=access.who)
        return self._on_schedule(schedule_id, "disable")

    async def run_schedule(self, given: Given, access: Access, schedule_id: str) -> Done:
        return _submitted(await self._service.run_schedule(schedule_id, by=access.who), "fire")

    def _on_schedule(self, schedule_id: str, deed: str) -> Done:
        return Done({"schedule_id": schedule_id, "done": deed}, _path("schedules", schedule_id), deed)


_RULES: Mapping[str, str] = {"cron": "cron", "interval": "interval", "once": "run_at"}
_TEXTS = frozenset(("queue", "unique", "task_id", "run_at", "tz", "description", "misfire", "overlap"))


def _submitted(job_id: str, deed: str) -> Done:
    return Done({"id": job_id}, _path("jobs", job_id), deed, 201)


def _numbers_read(options: Mapping[str, str]) -> dict[str, Any]:
    """The options that a form brought, all as texts: a queue named 42 stays one, a priority becomes a number."""
    return {name: text if name in _TEXTS else value_of(text) for name, text in options.items()}


def _named(prefix: str, values: Mapping[str, str]) -> dict[str, str]:
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def call_from(signature: inspect.Signature, fields: Mapping[str, str]) -> tuple[list[Any], dict[str, Any]]:
    """Arguments from the fields of a form made from a signature. What was left empty is left out.

    By position as far as no parameter was left out, so that parameters that take no name get theirs.
    """
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for name, parameter in signature.parameters.items():
        if name not in fields:
            continue
        value = _argument(fields[name], parameter)
        if parameter.kind is parameter.VAR_POSITIONAL:
            args += _expect(name, value, list)
        elif parameter.kind is parameter.VAR_KEYWORD:
            kwargs |= _expect(name, value, dict)
        elif parameter.kind is parameter.KEYWORD_ONLY or len(args) != list(signature.parameters).index(name):
            kwargs[name] = value
        else:
            args.append(value)
    return args, kwargs


def _argument(text: str, parameter: inspect.Parameter) -> Any:
    """What a field holds: JSON, or else text; where the parameter is a text, 42 is one too."""
    value = value_of(text)
    return text if parameter.annotation in (str, "str") and not isinstance(value, str) else value


def _expect(name: str, value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise ConfigError(f"{name} takes a JSON {'list' if kind is list else 'object'}, not {value!r:.80}")
    return value
