"""Schedules, those in code and those in stores: their list, the page and the form of one, and changing them."""

import dataclasses
import datetime as dt
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, TypedDict

import flowrra
from flowrra_extras.dashboard.api_schema import STORED_OPTIONS, form_options, given_options
from flowrra_extras.dashboard.auth import Access
from flowrra_extras.dashboard.health import is_overdue
from flowrra_extras.dashboard.html import Entered, Shown, View, filled
from flowrra_extras.dashboard.http import (
    Done,
    Fields,
    logger,
    path_of,
    read_list,
    read_object,
    refusing_misfits,
    submitted,
    whole,
)
from flowrra_extras.dashboard.jobs import REDACTED, Text, arguments_json, arguments_line, moment, text
from flowrra_extras.dashboard.store import Store
from flowrra_extras.scheduler import Scheduler, submit_now, unknown_schedule

# What JSON calls the rule of each kind, as Python does; forms call it `rule`.
RULES: Mapping[str, str] = {"cron": "cron", "interval": "interval", "once": "run_at"}
KINDS = tuple(RULES)
FIRES = 10  # next fires that are shown
RULE_LIMIT = 500  # characters; what is longer is no rule that a person wrote
# The form has these fields of its own; the others are in a list.
_OWN_FIELDS = ("tz", "description", "misfire", "overlap")
MORE_OPTIONS = {name: one for name, one in STORED_OPTIONS.items() if name not in _OWN_FIELDS}


class ScheduleRow(TypedDict):
    """A schedule. If it is defined in code (`in_code`), it can be run, but not changed."""

    id: str
    task: str
    kind: str  # cron, interval, once
    rule: str
    tz: str
    explanation: str
    enabled: bool
    in_code: bool
    description: str | None
    arguments: str
    args: Text
    kwargs: Text
    options: dict[str, Any]
    misfire: str
    overlap: str
    jitter: float
    next_fire: dt.datetime | None
    next_fires: list[dt.datetime]  # a few
    last_fire: dt.datetime | None
    last_job: str | None
    last_status: str | None  # the state of that job; None where there is none, or it was purged
    overdue: bool  # its next fire is more than a minute late


class Preview(TypedDict):
    """The meaning of a rule. `problem` is set if the rule cannot be read."""

    explanation: str | None
    fires: list[dt.datetime]
    problem: str | None


class Schedules:
    """The pages and actions of schedules; `by` says who did it."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def schedules(self) -> list[ScheduleRow]:
        """All schedules: those in code, then those that are stored, in order of creation."""
        await self._store.app.connect()
        coded = [self._schedule_row(schedule, in_code=True) for schedule in self._store.app.schedules.values()]
        stored = [
            self._schedule_row(schedule, in_code=False)
            for scheduler in self._store.schedulers
            for schedule in await scheduler.list_scheduled_tasks()
        ]
        await self._find_outcomes(rows := [*coded, *stored])
        return rows

    async def by_trouble(self) -> list[ScheduleRow]:
        """Those that are overdue, or whose last job has failed, before the others that fire next."""
        rows = [row for row in await self.schedules() if row["enabled"] or is_in_trouble(row)]
        never = dt.datetime.max.replace(tzinfo=dt.UTC)
        return sorted(rows, key=lambda row: (not is_in_trouble(row), row["next_fire"] or never))

    async def _find_outcomes(self, rows: Sequence[ScheduleRow]) -> None:
        """Fill in the state of the last job of each."""
        ids = [row["last_job"] for row in rows if row["last_job"]]
        jobs = await self._store.app.broker.find(flowrra.JobFilter(ids=ids), limit=len(ids)) if ids else []
        found = {job.id: job for job in jobs}
        for row in rows:
            job = found.get(row["last_job"] or "")
            row["last_status"] = None if job is None else str(job.status)
            if row["in_code"] and job is None:  # it was reckoned, and may not have been fired
                row["last_fire"] = row["last_job"] = None

    async def schedule(self, schedule_id: str) -> ScheduleRow:
        await self._store.app.connect()
        coded = self._store.app.schedules.get(schedule_id)
        schedule = coded or (await self._stored(schedule_id))[1]
        row = self._schedule_row(schedule, in_code=coded is not None, fires=FIRES)
        await self._find_outcomes([row])
        return row

    async def preview(self, kind: str = "cron", rule: str = "", tz: str = "UTC") -> Preview:
        now = self._store.app.now()
        try:
            schedule = flowrra.make_schedule("preview", kind, read_rule(kind, rule), tz=tz or "UTC")
            schedule.anchor = now
            fires = list(fires_of(schedule, now, FIRES))
        except (flowrra.FlowrraError, ValueError, OverflowError) as error:
            return {"explanation": None, "fires": [], "problem": str(error)}
        problem = None if fires else "The rule has no time in the future: the schedule would never fire."
        return {"explanation": schedule.explanation, "fires": fires, "problem": problem}

    async def _stored(self, schedule_id: str) -> tuple[Scheduler, flowrra.Schedule]:
        for scheduler in self._store.schedulers:
            schedule = await scheduler.get_scheduled_task(schedule_id)
            if schedule is not None:
                return scheduler, schedule
        if schedule_id in self._store.app.schedules:
            raise flowrra.ConfigError(f"the schedule {schedule_id!r} is declared in code: change it there")
        raise unknown_schedule(schedule_id)

    def _schedule_row(self, schedule: flowrra.Schedule, *, in_code: bool, fires: int = 1) -> ScheduleRow:
        now = self._store.app.now()
        if in_code:
            schedule = dataclasses.replace(
                schedule, next_fire=flowrra.upcoming(schedule, now), **self._last_of(schedule, now)
            )
        try:
            following = list(fires_of(schedule, now, fires)) if schedule.enabled else []
        except ValueError:  # a rule or a zone that this version cannot read
            following = []
        job = flowrra.Job("", schedule.task, payload=schedule.payload)  # to show its arguments by
        redacted = self._store.hides(job)
        args, kwargs = (REDACTED, REDACTED) if redacted else arguments_json(job)
        options: Mapping[str, Any] = schedule.options
        return {
            "id": schedule.id,
            "task": schedule.task,
            "kind": schedule.kind,
            "rule": schedule.rule,
            "tz": schedule.tz,
            "explanation": schedule.explanation,
            "enabled": schedule.enabled,
            "in_code": in_code,
            "description": schedule.description,
            "arguments": REDACTED if redacted else arguments_line(job),
            "args": text(args),
            "kwargs": text(kwargs),
            "options": dict(options),
            "misfire": schedule.misfire,
            "overlap": schedule.overlap,
            "jitter": schedule.jitter,
            "next_fire": schedule.next_fire_at,
            "next_fires": following,
            "last_fire": schedule.last_fire_at,
            "last_job": schedule.last_job,
            "last_status": None,
            "overdue": not in_code and is_overdue(schedule.next_fire if schedule.enabled else None, now),
        }

    def _last_of(self, schedule: flowrra.Schedule, now: float) -> dict[str, Any]:
        """The latest fire of a schedule in code, by its rule: nobody keeps it, but its job has a name of its own."""
        task, fire = self._store.app.registry.get(schedule.task), previous_fire(schedule, now)
        if task is None or fire is None:
            return {}
        try:
            job = flowrra.job_of_fire(schedule, task, fire, self._store.app.broker.retention)
        except flowrra.FlowrraError:  # no job could be made of it, so that it has not fired
            return {}
        return {"last_fire": fire / 1e6, "last_job": job.id}

    # What forms and JSON ask for ---------------------------------------------------------------

    def adds(self, kind: str | None = None) -> Callable[..., Awaitable[Done]]:
        """Stores a schedule of that kind, or of the one that the form names. Its task may be registered elsewhere."""

        async def add(fields: Fields, access: Access) -> Done:
            its_kind = kind or fields.text("kind")
            rule, task = _rule_in(fields, its_kind), fields.text("task" if fields.is_form else "task_name")
            options = _options_in(fields, self._store.app.registry.get(task))
            if rule is None:
                raise flowrra.ConfigError("the rule is missing: it says when the schedule fires")
            if not self._store.schedulers:
                raise flowrra.FlowrraError("this program has no store of schedules: call app.create_scheduler() in it")
            scheduler, read = self._store.schedulers[0], read_rule(its_kind, rule)
            if not task:
                raise flowrra.ConfigError(f"a schedule needs the name of a task, not {task!r}")
            known = await self._store.task_names()
            if known and task not in known:
                raise flowrra.ConfigError(
                    f"no task {task!r} is registered here or known to a live worker{flowrra.nearest(task, known)}"
                )
            ways: Mapping[str, Any] = {
                "cron": scheduler.schedule_cron,
                "interval": scheduler.schedule_interval,
                "once": scheduler.schedule_once,
            }
            with refusing_misfits():
                schedule_id: str = await ways[its_kind](task, read, **whole(options))
            logger.info("%s has stored the schedule %s of %s: %s %r", access.who, schedule_id, task, its_kind, rule)
            value = {"id": schedule_id, "schedule_id": schedule_id}
            return Done(value, path_of("schedules", schedule_id), "", 201)

        return add

    async def update(self, fields: Fields, access: Access, schedule_id: str) -> Done:
        """Changes what is given of a stored schedule; what a form leaves empty stays, but for what it can empty."""
        scheduler, schedule = await self._stored(schedule_id)
        task = self._store.app.registry.get(schedule.task)
        rule, options = _rule_in(fields, schedule.kind), _options_in(fields, task)
        if fields.is_form and "description" in fields.values:
            options["description"] = fields.values["description"] or None
        if fields.is_form and "tz" in fields.values:  # an emptied field means what the form says beside it
            options.setdefault("tz", "UTC")
        with refusing_misfits():
            read = None if rule is None else read_rule(schedule.kind, rule)
            await scheduler.update(schedule_id, rule=read, **whole(options))
        logger.info("%s has changed the schedule %s", access.who, schedule_id)
        return _done(schedule_id, "update")

    async def remove(self, fields: Fields, access: Access, schedule_id: str) -> Done:
        """Deletes a stored schedule; what it has submitted stays."""
        scheduler, _ = await self._stored(schedule_id)
        await scheduler.unschedule(schedule_id)
        logger.info("%s has deleted the schedule %s", access.who, schedule_id)
        return Done({"schedule_id": schedule_id, "removed": True}, "/schedules")

    def switches(self, way: str) -> Callable[..., Awaitable[Done]]:
        """Lets a stored schedule fire again ("enable"), or not fire until it is enabled again ("disable")."""

        async def switch(fields: Fields, access: Access, schedule_id: str) -> Done:
            scheduler, _ = await self._stored(schedule_id)
            await (scheduler.enable_task if way == "enable" else scheduler.disable_task)(schedule_id)
            logger.info("%s has %sd the schedule %s", access.who, way, schedule_id)
            return _done(schedule_id, way)

        return switch

    async def run_now(self, fields: Fields, access: Access, schedule_id: str) -> Done:
        """Submits a job of a schedule now, in addition to its fires."""
        app = self._store.app
        job_id = await submit_now(app, app.schedules.get(schedule_id) or (await self._stored(schedule_id))[1])
        logger.info("%s has run the schedule %s: job %s", access.who, schedule_id, job_id)
        return submitted(job_id)

    # Pages -------------------------------------------------------------------------------------

    async def list_page(self, view: View, entered: Entered | None) -> Shown:
        return "Schedules", "schedules.html", {"schedules": await self.schedules()}

    async def schedule_page(self, view: View, entered: Entered | None, schedule_id: str) -> Shown:
        row = await self.schedule(schedule_id)
        stored = {
            "rule": row["rule"],
            "tz": row["tz"],
            "description": row["description"] or "",
            "misfire": row["misfire"],
            "overlap": row["overlap"],
            "jitter": f"{row['jitter']:.15g}" if row["jitter"] else "",
            **{name: str(value) for name, value in row["options"].items()},
        }
        if row["arguments"] != REDACTED:  # what is left empty stays as it is
            arguments = {"args": row["args"], "kwargs": row["kwargs"]}
            stored |= {name: found["text"] for name, found in arguments.items() if not found["is_cut"]}
        typed = view.parameters
        context = await self._form(row["kind"], {**stored, **typed}, entered, preview="rule" in typed)
        # Its id is what it is, and it is enabled by a button of its own.
        context["more"] = form_options({n: o for n, o in MORE_OPTIONS.items() if n not in ("task_id", "enabled")})
        return f"Schedule of {row['task']}", "schedule.html", {"row": row, **context}

    async def new_page(self, view: View, entered: Entered | None) -> Shown:
        kind = (entered.fields if entered else view.parameters).get("kind", "cron")
        kind = kind if kind in ("interval", "once") else "cron"
        context = await self._form(kind, view.parameters, entered, preview=True)
        context["more"] = form_options(MORE_OPTIONS)
        context["tasks"] = [(name, name) for name in sorted(self._store.app.registry)]
        return "New schedule", "schedule_new.html", context

    async def _form(
        self, kind: str, fields: Mapping[str, str], entered: Entered | None, *, preview: bool
    ) -> dict[str, Any]:
        """The form's fields, and what the rule in them means."""
        shown = filled(entered, fields)
        rule, tz = shown["filled"]["rule"], shown["filled"]["tz"] or "UTC"
        meaning = await self.preview(kind, rule, tz) if rule and (preview or entered) else None
        return {"kind": kind, "preview": meaning, **shown}


def _done(schedule_id: str, what: str) -> Done:
    return Done({"schedule_id": schedule_id, "done": what}, path_of("schedules", schedule_id))


def _rule_in(fields: Fields, kind: str) -> object:
    """The rule that came, None if none did; ConfigError for one of another kind."""
    if fields.is_form:
        return fields.values.get("rule")
    rules = [name for name in RULES.values() if name in fields.values]
    if len(rules) > 1:
        raise flowrra.ConfigError(f"a schedule has only one rule: give one of {', '.join(RULES.values())}")
    if rules and RULES.get(kind) != rules[0]:
        raise flowrra.ConfigError(f"the kind of this schedule is {kind}, so give its rule as {RULES.get(kind)}")
    return fields.values[rules[0]] if rules else None


def _options_in(fields: Fields, task: flowrra.Task[..., Any] | None) -> dict[str, Any]:
    """The options that came. Arguments get the types of the task's annotations, if the task is registered here."""
    options = given_options(fields, STORED_OPTIONS)
    args, kwargs = fields.json_text("args"), fields.json_text("kwargs")
    given: tuple[Any, Any] = read_list(args or "[]"), read_object(kwargs or "{}")
    typed = given if task is None else task.typed(*given)
    options |= {} if args is None else {"args": typed[0]}
    return options | ({} if kwargs is None else {"kwargs": typed[1]})


# Rules -----------------------------------------------------------------------------------------


def read_rule(kind: str, rule: object) -> Any:
    """A rule as it was typed or sent, as `make_schedule` takes it."""
    if kind not in KINDS:
        raise flowrra.ConfigError(f"the kind of a schedule must be one of {', '.join(KINDS)}, not {kind!r:.80}")
    if isinstance(rule, str) and len(rule) > RULE_LIMIT:
        raise flowrra.ConfigError(f"a rule can have at most {RULE_LIMIT} characters, not {len(rule)}")
    try:
        if kind == "interval" and isinstance(rule, str):
            return float(rule)
        if kind == "once" and isinstance(rule, str):
            return dt.datetime.fromisoformat(rule.strip())
    except ValueError:
        wanted = "a number of seconds, such as 300" if kind == "interval" else "a time, such as 2026-12-24T18:00"
        raise flowrra.ConfigError(f"the rule must be {wanted}, not {rule!r}") from None
    return rule


def fires_of(schedule: flowrra.Schedule, now: float, limit: int) -> Iterator[dt.datetime]:
    """The next fires by the schedule's rule."""
    at = flowrra.upcoming(schedule, now)
    while at is not None and limit:
        yield moment(at)
        at, limit = flowrra.upcoming(schedule, at), limit - 1


def previous_fire(schedule: flowrra.Schedule, now: float) -> int | None:
    """The latest moment at which the rule was due, in microseconds since the epoch; None if there was none."""
    if schedule.kind == "interval":
        following = flowrra.upcoming(schedule, now)
        return None if following is None else round(following * 1e6) - round(float(schedule.rule) * 1e6)
    try:
        before = flowrra.Cron(schedule.rule, tz=schedule.tz).previous(moment(now))
    except ValueError:
        return None
    return (before - moment(0)) // dt.timedelta(microseconds=1)


def is_in_trouble(row: ScheduleRow) -> bool:
    return row["overdue"] or row["last_status"] == flowrra.TaskStatus.FAILED
