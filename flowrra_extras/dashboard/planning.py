"""Schedules as the dashboard shows and changes them, those in code and those in stores."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import logging
from typing import TYPE_CHECKING, Any

from flowrra import (
    ConfigError,
    Cron,
    FlowrraError,
    Schedule,
    TaskNotFoundError,
    decode,
    duration,
    make_schedule,
    nearest,
    upcoming,
)
from flowrra_extras.dashboard import rows
from flowrra_extras.dashboard.base import Base
from flowrra_extras.dashboard.given import strictly
from flowrra_extras.scheduler import submit_now

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from flowrra_extras.dashboard import shapes
    from flowrra_extras.scheduler import Scheduler

logger = logging.getLogger("flowrra.dashboard")

KINDS = ("cron", "interval", "once")
FIRES = 10  # next fires that are shown
RULE_LIMIT = 500  # characters; what is longer is no rule that a person wrote
OPTIONS = frozenset(
    {*("tz", "task_id", "enabled", "description", "misfire", "overlap", "jitter")}
    | {*("priority", "queue", "max_retries", "retry_delay")}
)


class Planning(Base):
    """Looks at schedules and changes them. `by` says who did it."""

    async def schedules(self) -> list[shapes.ScheduleRow]:
        """All schedules: those in code, then those that are stored, in order of creation."""
        await self.app.connect()
        coded = [self._schedule_row(schedule, in_code=True) for schedule in self.app.schedules.values()]
        stored = [
            self._schedule_row(schedule, in_code=False)
            for scheduler in self.schedulers
            for schedule in await scheduler.list_scheduled_tasks()
        ]
        return [*coded, *stored]

    async def schedule(self, schedule_id: str) -> shapes.ScheduleRow:
        """A schedule with its next fires."""
        await self.app.connect()
        if schedule_id in self.app.schedules:
            return self._schedule_row(self.app.schedules[schedule_id], in_code=True, fires=FIRES)
        _, schedule = await self._stored(schedule_id)
        return self._schedule_row(schedule, in_code=False, fires=FIRES)

    async def preview(self, kind: str, rule: str, tz: str = "UTC") -> shapes.Preview:
        """What a rule that is being typed means."""
        now = self.app.now()
        try:
            schedule = make_schedule("preview", kind, read_rule(kind, rule), tz=tz or "UTC")
            schedule.anchor = now
            fires = list(fires_of(schedule, now, FIRES))
        except (FlowrraError, ValueError, OverflowError) as error:
            return {"explanation": None, "fires": [], "problem": str(error)}
        problem = None if fires else "It has no moment to come: it would never fire."
        return {"explanation": explained(schedule), "fires": fires, "problem": problem}

    async def add_schedule(
        self, kind: str, task: str, rule: object, *, args: str = "[]", kwargs: str = "{}", by: str, **options: Any
    ) -> str:
        """Store a schedule of a task, which may be one that is registered elsewhere only; its id.

        `args` and `kwargs` are JSON texts; `options` are those of `Scheduler.schedule_cron`.
        """
        await self.app.connect()
        if not self.schedulers:
            raise FlowrraError("this program stores no schedules: app.create_scheduler() makes a store for them")
        scheduler = self.schedulers[0]
        ways: Mapping[str, Any] = {
            "cron": scheduler.schedule_cron,
            "interval": scheduler.schedule_interval,
            "once": scheduler.schedule_once,
        }
        moment = read_rule(kind, rule)
        if not task or not isinstance(task, str):
            raise ConfigError(f"a schedule is given a task's name, not {task!r}")
        known = await self.known_tasks(await self.app.broker.workers())
        if known and task not in known:
            raise ConfigError(f"no task {task!r} is registered here or known to a live worker{nearest(task, known)}")
        given = {"args": read_list(args), "kwargs": read_object(kwargs), **_checked(options)}
        with refusing_misfits():
            schedule_id: str = await ways[kind](task, moment, **given)
        logger.info("%s has stored the schedule %s of %s: %s %r", by, schedule_id, task, kind, rule)
        return schedule_id

    async def update_schedule(
        self,
        schedule_id: str,
        *,
        rule: object = None,
        args: str | None = None,
        kwargs: str | None = None,
        by: str,
        **options: Any,
    ) -> None:
        """Change what is given of a stored schedule."""
        scheduler, schedule = await self._stored(schedule_id)
        with refusing_misfits():
            await scheduler.update(
                schedule_id,
                rule=None if rule is None else read_rule(schedule.kind, rule),
                args=None if args is None else read_list(args),
                kwargs=None if kwargs is None else read_object(kwargs),
                **_checked(options),
            )
        logger.info("%s has changed the schedule %s", by, schedule_id)

    async def remove_schedule(self, schedule_id: str, *, by: str) -> None:
        """Delete a stored schedule; what it has submitted stays."""
        scheduler, _ = await self._stored(schedule_id)
        await scheduler.unschedule(schedule_id)
        logger.info("%s has deleted the schedule %s", by, schedule_id)

    async def enable_schedule(self, schedule_id: str, *, by: str) -> None:
        """Let a stored schedule fire again."""
        scheduler, _ = await self._stored(schedule_id)
        await scheduler.enable_task(schedule_id)
        logger.info("%s has enabled the schedule %s", by, schedule_id)

    async def disable_schedule(self, schedule_id: str, *, by: str) -> None:
        """Let a stored schedule not fire until it is enabled again."""
        scheduler, _ = await self._stored(schedule_id)
        await scheduler.disable_task(schedule_id)
        logger.info("%s has disabled the schedule %s", by, schedule_id)

    async def run_schedule(self, schedule_id: str, *, by: str) -> str:
        """Submit a job of a schedule now, beside its fires; the job's id."""
        await self.app.connect()
        if schedule_id in self.app.schedules:
            job_id: str = await submit_now(self.app, self.app.schedules[schedule_id])
        else:
            _, schedule = await self._stored(schedule_id)
            job_id = await submit_now(self.app, schedule)
        logger.info("%s has run the schedule %s: job %s", by, schedule_id, job_id)
        return job_id

    async def _stored(self, schedule_id: str) -> tuple[Scheduler, Schedule]:
        """The schedule, and the scheduler that stores it."""
        await self.app.connect()
        for scheduler in self.schedulers:
            schedule = await scheduler.get_scheduled_task(schedule_id)
            if schedule is not None:
                return scheduler, schedule
        if schedule_id in self.app.schedules:
            raise ConfigError(f"the schedule {schedule_id!r} is declared in code: change it there")
        raise TaskNotFoundError(f"no schedule {schedule_id!r} is kept here: never made, removed, or done a week ago")

    def _schedule_row(self, schedule: Schedule, *, in_code: bool, fires: int = 1) -> shapes.ScheduleRow:
        now = self.app.now()
        if in_code:
            schedule = dataclasses.replace(schedule, next_fire=upcoming(schedule, now))
        try:
            following = list(fires_of(schedule, now, fires)) if schedule.enabled else []
        except ValueError:  # a rule or a zone that this version cannot read
            following = []
        return rows.schedule_row(
            schedule,
            in_code=in_code,
            redacted=self.hides(rows.job_of(schedule)),
            explanation=explained(schedule),
            next_fires=following,
        )


# Rules -----------------------------------------------------------------------------------------


def read_rule(kind: str, rule: object) -> Any:
    """A rule as it was typed or sent, as `make_schedule` takes it."""
    if kind not in KINDS:
        raise ConfigError(f"a schedule is of the kind {', '.join(KINDS)}, not {kind!r:.80}")
    if isinstance(rule, str) and len(rule) > RULE_LIMIT:
        raise ConfigError(f"a rule has {RULE_LIMIT} characters at the most, not {len(rule)}")
    try:
        if kind == "interval" and isinstance(rule, str):
            return float(rule)
        if kind == "once" and isinstance(rule, str):
            return dt.datetime.fromisoformat(rule.strip())
    except ValueError:
        wanted = "seconds, such as 300" if kind == "interval" else "a moment, such as 2026-12-24T18:00"
        raise ConfigError(f"the rule must be {wanted}, not {rule!r}") from None
    return rule


def fires_of(schedule: Schedule, now: float, limit: int) -> Iterator[dt.datetime]:
    """The next fires by the schedule's rule."""
    moment = upcoming(schedule, now)
    while moment is not None and limit:
        yield rows.moment(moment)
        moment, limit = upcoming(schedule, moment), limit - 1


def explained(schedule: Schedule) -> str:
    """The rule in words."""
    try:
        if schedule.kind == "interval":
            return f"Every {duration(float(schedule.rule))}"
        return "Once" if schedule.kind == "once" else Cron(schedule.rule, tz=schedule.tz, name=schedule.id).explain()
    except ValueError as error:
        return f"It cannot be read: {error}"


# Arguments -------------------------------------------------------------------------------------


def read_list(text: str) -> list[Any]:
    """Positional arguments from a JSON text; ConfigError if it is no list."""
    found: list[Any] = _read_json(text or "[]", list, 'a JSON list, such as ["a", 1]')
    return found


def read_object(text: str) -> dict[str, Any]:
    """Named arguments from a JSON text; ConfigError if it is no object."""
    found: dict[str, Any] = _read_json(text or "{}", dict, 'a JSON object, such as {"name": "a"}')
    return found


def _read_json(text: str, kind: type, wanted: str) -> Any:
    try:
        strictly(text)
        value = decode(text)
    except (FlowrraError, ValueError, RecursionError) as error:
        raise ConfigError(f"{text[:80]!r} cannot be read as {wanted}: {error}") from None
    if not isinstance(value, kind):
        raise ConfigError(f"{text[:80]!r} is not {wanted}")
    return value


@contextlib.contextmanager
def refusing_misfits() -> Iterator[None]:
    """Arguments and options that do not fit are the fault of whoever sent them."""
    try:
        yield
    except (TypeError, OverflowError) as error:
        raise ConfigError(str(error)) from None


def _checked(options: Mapping[str, Any]) -> Mapping[str, Any]:
    if unknown := options.keys() - OPTIONS:
        raise ConfigError(f"a schedule has no option {min(unknown)!r}: {', '.join(sorted(OPTIONS))}")
    return whole(options)


def whole(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, 3.0 as 3 where a whole number belongs: to JSON they are the same."""
    numbers = {name: options[name] for name in ("priority", "max_retries") if isinstance(options.get(name), float)}
    return {**options, **{name: int(value) for name, value in numbers.items() if value.is_integer()}}
