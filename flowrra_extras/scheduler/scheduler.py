"""Stored schedules: make, change, remove and fire them. Of several schedulers on one store, the first one fires."""

import datetime as dt
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Unpack

import flowrra
from flowrra_extras.scheduler.store import ScheduleStore

TAKE_LEASE = 10.0  # seconds that a scheduler has to push and advance what it has taken
_DONE_KEPT = 604_800.0  # seconds that a schedule with nothing left to fire is kept
_PURGE_DONE_EVERY = 3600.0


class StoredOptions(flowrra.ScheduleOptions, total=False):
    """Additional options of a stored schedule: `tz`, the key of its zone (None: UTC), and `task_id`, its id."""

    tz: str | dt.tzinfo | None
    task_id: str | None


class ScheduleDefinition:
    """A schedule that a program declares for `Scheduler.sync`: by a cron expression or by an interval in seconds.

    `schedule_id` identifies the schedule from one deploy to the next. Options that are not given have their defaults.
    The exception is `enabled`: if it is not given, a schedule that somebody has disabled stays disabled.
    """

    def __init__(
        self,
        schedule_id: str,
        task: str | flowrra.Task[..., Any],
        *,
        cron: str | None = None,
        every: float | dt.timedelta | None = None,
        tz: str | dt.tzinfo | None = None,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[flowrra.ScheduleOptions],
    ) -> None:
        if (cron is None) == (every is None):
            raise flowrra.ConfigError(f"the schedule {schedule_id!r} needs either cron= or every=")
        flowrra.check_key("schedule_id", schedule_id or "")
        self.id = schedule_id
        self.task = task
        self.kind = "interval" if cron is None else "cron"
        self.rule: object = every if cron is None else cron
        self.options: dict[str, Any] = {"tz": tz, "args": args, "kwargs": kwargs, **options}


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What `Scheduler.sync` changed, as ids of schedules."""

    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)


class Scheduler(flowrra.Firing):
    """Stored schedules. `app.create_scheduler` makes it.

    They fire while the app runs, in any process that has a scheduler on the same store, and each fire makes one job.
    The other processes see a change within two seconds. A task can be given by name, even if only another program
    registers it; its arguments are checked if it is registered here.
    """

    def __init__(self, app: flowrra.Flowrra, store: ScheduleStore) -> None:
        super().__init__(app)
        self.store = store
        self._purge_at = -math.inf

    async def schedule_cron(
        self,
        task_name: str | flowrra.Task[..., Any],
        cron: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[StoredOptions],
    ) -> str:
        """Fire by a cron expression, and return the id of the schedule.

        Without a `task_id`, two schedules with the same task, rule, zone and arguments are the same schedule. If the
        schedule exists, the options that are given here and differ are changed, with a warning in the log; the others
        stay. So a program can call this at each start.

        Args:
            task_name: the task, or its name.
            cron: the expression, such as "0 9 * * mon-fri".
            args: positional arguments of the jobs.
            kwargs: keyword arguments of the jobs.
            options: `tz`, the key of the time zone (None: UTC); `task_id`, the id of the schedule; and the options of
                `ScheduleOptions`.

        Raises:
            ConfigError: the expression, the zone or an option is wrong, or the `task_id` belongs to another task.
            TaskNotFoundError: a worker runs in this app, and neither it nor another live one knows the name. An app
                that only submits stores the schedule, with a warning.
            TypeError: the arguments do not fit the task.
            BackendError: the store failed.
        """
        return await self._add(task_name, "cron", cron, args=args, kwargs=kwargs, **options)

    async def schedule_interval(
        self,
        task_name: str | flowrra.Task[..., Any],
        interval: float | dt.timedelta,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[StoredOptions],
    ) -> str:
        """Fire every `interval`, in seconds or as a timedelta, from now on. `tz` is only for display.

        The other arguments and the errors are those of `schedule_cron`.
        """
        return await self._add(task_name, "interval", interval, args=args, kwargs=kwargs, **options)

    async def schedule_once(
        self,
        task_name: str | flowrra.Task[..., Any],
        run_at: dt.datetime,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[StoredOptions],
    ) -> str:
        """Fire once at `run_at`. The schedule is deleted a week after that.

        A naive datetime is in the zone `tz` or, without `tz`, in the machine's local time. A time in the past is a
        misfire: it fires immediately, unless `misfire` is "skip". The other arguments and the errors are those of
        `schedule_cron`.
        """
        return await self._add(task_name, "once", run_at, args=args, kwargs=kwargs, **options)

    async def _add(
        self, task: str | flowrra.Task[..., Any], kind: str, rule: object, *, task_id: str | None = None, **options: Any
    ) -> str:
        new_id = flowrra.check_key("task_id", task_id) or self._app.new_id()
        schedule = self._make(new_id, task, kind, rule, options)
        await self._ready()
        await self._check_name(schedule.task)
        schedule.key = schedule.key if task_id is None else f"id:{task_id}"
        kept = await self.store.add(schedule)
        if task_id is not None or kept != new_id:
            for old in await self.store.find([kept]):
                await self._redefine(old, schedule, rule, options)
        return kept

    def _make(
        self, schedule_id: str, task: str | flowrra.Task[..., Any], kind: str, rule: object, options: Mapping[str, Any]
    ) -> flowrra.Schedule:
        """Make a new schedule that counts from now."""
        schedule = flowrra.make_schedule(self._task_or_name(task), kind, rule, **options)
        schedule.id = schedule_id
        schedule.created = schedule.updated = now = self._app.clock.time()
        _start_from(schedule, now)
        return schedule

    async def _redefine(
        self, old: flowrra.Schedule, new: flowrra.Schedule, rule: object, options: Mapping[str, Any]
    ) -> None:
        """Change what a new definition of the schedule gives differently, and log it."""
        if old.task != new.task:
            raise flowrra.ConfigError(
                f"{old.id!r} is a schedule of {old.task}: give another task_id, or unschedule() it"
            )
        changes = self._changes(old, new.kind, rule, **options)
        if changes and await self.store.change(old.id, changes | {"updated": new.updated}):
            flowrra.logger.warning(
                "schedule %s (%s) has a new definition: %s", old.id, old.task, _described(old, changes)
            )

    def _changes(self, old: flowrra.Schedule, kind: str, rule: object, **options: Any) -> dict[str, Any]:
        """Return the changes that give `old` the options given here. Options that are not given stay."""
        given = {name: getattr(old, name) for name in _EDITED} | {**old.options, **options}
        return self._difference(old, flowrra.make_schedule(self._task_or_name(old.task), kind, rule, **given), options)

    def _difference(self, old: flowrra.Schedule, new: flowrra.Schedule, options: Mapping[str, Any]) -> dict[str, Any]:
        changes = {name: getattr(new, name) for name in _DEFINING if getattr(new, name) != getattr(old, name)}
        if json.loads(new.payload) != json.loads(old.payload):
            changes["payload"] = new.payload
        now = self._app.clock.time()
        if "enabled" in options and new.enabled != old.enabled:
            changes |= _switched(old, now, enabled=new.enabled)
        if changes.keys() & {"kind", "rule", "tz"}:
            new.id = old.id
            _start_from(new, now)
            changes |= {"anchor": new.anchor, "next_fire": new.next_fire}
        if old.key == flowrra.schedule_key(old) != new.key:
            changes["key"] = new.key
        return changes

    def _task_or_name(self, task: str | flowrra.Task[..., Any]) -> str | flowrra.Task[..., Any]:
        if isinstance(task, flowrra.Task) and task.app is not self._app:
            raise flowrra.TaskNotFoundError(f"the task {task.name!r} belongs to another app: schedule it there")
        if not isinstance(task, flowrra.Task | str) or not task:
            raise flowrra.ConfigError(f"a schedule takes a task or its name, not {task!r}")
        return self._app.registry.get(task, task) if isinstance(task, str) else task

    async def _check_name(self, name: str) -> None:
        """Refuse the name of a task that nobody knows; if the app only submits, log a warning."""
        if name in self._app.registry:
            return
        known = {*self._app.registry, *(task for worker in await self._app.broker.workers() for task in worker.tasks)}
        if name in known:
            return
        trouble = f"no task {name!r} is registered here or known to a live worker{flowrra.nearest(name, known)}"
        if self._app.is_running:
            raise flowrra.TaskNotFoundError(trouble)
        flowrra.logger.warning("%s; its schedule is stored, and fires when a program that knows the task runs", trouble)

    async def sync(
        self, definitions: Iterable[ScheduleDefinition], *, prune: bool = False, owner: str = "app"
    ) -> SyncReport:
        """Make the stored schedules equal to the definitions, for a deploy. Each change is one line in the log.

        New schedules are added, and schedules that differ are changed. An unchanged schedule keeps its next fire. All
        definitions are checked before anything is written. If the store fails in the middle, call sync again.

        Args:
            definitions: all schedules of the owner.
            prune: remove schedules that belong to `owner` and are no longer defined. Schedules that were made by hand
                or belong to another owner are not removed.
            owner: the owner of the schedules that this call adds or changes, even if they were made by hand.

        Raises:
            ConfigError: a definition is wrong, an id is used twice, or it belongs to another owner.
            TaskNotFoundError, TypeError, BackendError: as `schedule_cron`.
        """
        if ":" in owner:
            raise flowrra.ConfigError(f"the name of an owner must not contain a colon: {owner!r}")
        mark = f"sync:{owner}:"
        wanted: dict[str, tuple[flowrra.Schedule, ScheduleDefinition]] = {}
        for one in definitions:
            if one.id in wanted:
                raise flowrra.ConfigError(f"the schedule {one.id!r} is defined twice")
            schedule = self._make(one.id, one.task, one.kind, one.rule, one.options)
            schedule.key = mark + one.id
            flowrra.check_key("an owner and a schedule_id, taken together,", schedule.key)
            wanted[one.id] = schedule, one
        await self._ready()
        for name in {schedule.task for schedule, _ in wanted.values()}:
            await self._check_name(name)
        stored = {schedule.id: schedule for schedule in await self.store.find()}
        for old in stored.values():
            if old.id in wanted and old.key.startswith("sync:") and not old.key.startswith(mark):
                raise flowrra.ConfigError(f"the schedule {old.id!r} belongs to the owner {old.key.split(':')[1]!r}")
        report = SyncReport()
        for schedule, definition in wanted.values():
            await self._sync_one(stored.get(schedule.id), schedule, definition, report)
        for old in stored.values():
            if prune and old.key.startswith(mark) and old.id not in wanted and await self.store.remove(old.id):
                flowrra.logger.info("schedule %s (%s) was removed: it is no longer defined", old.id, old.task)
                report.removed.append(old.id)
        return report

    async def _sync_one(
        self, old: flowrra.Schedule | None, new: flowrra.Schedule, definition: ScheduleDefinition, report: SyncReport
    ) -> None:
        if old is None:
            await self.store.add(new)
            flowrra.logger.info("schedule %s (%s) was added: %s", new.id, new.task, new.rule)
            report.added.append(new.id)
            return
        changes = self._difference(old, new, definition.options)
        changes |= {name: getattr(new, name) for name in ("task", "key") if getattr(new, name) != getattr(old, name)}
        if not changes:
            report.unchanged.append(old.id)
            return
        await self.store.change(old.id, changes | {"updated": new.updated})
        flowrra.logger.info("schedule %s (%s) was changed: %s", old.id, new.task, _described(old, changes))
        report.changed.append(old.id)

    async def update(
        self,
        schedule_id: str,
        *,
        rule: str | float | dt.timedelta | dt.datetime | None = None,
        tz: str | dt.tzinfo | None = None,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[flowrra.ScheduleOptions],
    ) -> flowrra.Schedule:
        """Change a schedule and return it. Arguments and options that are not given stay.

        Args:
            schedule_id: the id of the schedule.
            rule: a new rule of the same kind. With a new rule or zone, the schedule counts from now.
            tz: the key of a new time zone.
            args: new positional arguments of the jobs.
            kwargs: new keyword arguments of the jobs.
            options: the options of `ScheduleOptions` to change.

        Raises:
            TaskNotFoundError: there is no such schedule.
            ConfigError: a value is wrong, or another schedule would be the same.
        """
        old = await self._known(schedule_id)
        old_args, old_kwargs = flowrra.decode(old.payload)
        changes = self._changes(
            old,
            old.kind,
            _READERS[old.kind](old.rule) if rule is None else rule,
            tz=old.tz if tz is None else tz,
            args=old_args if args is None else args,
            kwargs=old_kwargs if kwargs is None else kwargs,
            **options,
        )
        if not await self.store.change(schedule_id, changes | {"updated": self._app.clock.time()}):
            raise unknown_schedule(schedule_id)
        return await self._known(schedule_id)

    async def unschedule(self, schedule_id: str) -> None:
        """Delete a schedule. Jobs that it has already submitted still run. TaskNotFoundError: there is none."""
        await self._ready()
        if not await self.store.remove(schedule_id):
            raise unknown_schedule(schedule_id)

    async def enable_task(self, schedule_id: str) -> None:
        """Let a schedule fire again, from now on. What was due while it was disabled is not a misfire.

        Raises:
            TaskNotFoundError: there is no such schedule.
        """
        await self._enable(schedule_id, enabled=True)

    async def disable_task(self, schedule_id: str) -> None:
        """Disable a schedule: it does not fire until it is enabled. TaskNotFoundError: there is none."""
        await self._enable(schedule_id, enabled=False)

    async def _enable(self, schedule_id: str, *, enabled: bool) -> None:
        schedule = await self._known(schedule_id)
        changes = _switched(schedule, self._app.clock.time(), enabled=enabled)
        if not await self.store.change(schedule_id, changes):
            raise unknown_schedule(schedule_id)

    async def get_scheduled_task(self, schedule_id: str) -> flowrra.Schedule | None:
        """Return a schedule; None if there is none with this id."""
        await self._ready()
        found = await self.store.find([schedule_id])
        return found[0] if found else None

    async def list_scheduled_tasks(self) -> list[flowrra.Schedule]:
        """Return all schedules of the store, in order of creation."""
        await self._ready()
        return await self.store.find()

    async def run_now(self, schedule_id: str) -> flowrra.TaskId[Any]:
        """Submit a job of the schedule now, in addition to its fires. Return the id of the job.

        With `overlap="skip"`, if a job of the schedule is unfinished, return the id of that job.

        Raises:
            TaskNotFoundError: there is no such schedule, or its task is not registered here.
        """
        return await submit_now(self._app, await self._known(schedule_id))

    async def _known(self, schedule_id: str) -> flowrra.Schedule:
        schedule = await self.get_scheduled_task(schedule_id)
        if schedule is None:
            raise unknown_schedule(schedule_id)
        return schedule

    # Firing ------------------------------------------------------------------------------------

    async def step(self) -> float:
        """Fire what is due: take it, push its jobs, advance it. Return the seconds to sleep until there may be more.

        If a crash or a cancellation interrupts this, the schedule is due again when its lease has ended. The ids of its
        jobs prevent duplicates.
        """
        await self._ready()
        now = self._app.clock.time()
        if not 0.0 <= now - self._purge_at < _PURGE_DONE_EVERY:
            await self.store.purge(now - _DONE_KEPT)
            self._purge_at = now
        first = await self.store.next_fire()
        if first is None or first > now:
            return flowrra.CHECK_EVERY if first is None else min(flowrra.CHECK_EVERY, first - now)
        taken = await self.store.take(now=now, lease=TAKE_LEASE, limit=flowrra.FIRES_AT_ONCE)
        await self.store.advance(await self.fire(taken, now))
        return 0.0 if taken else 0.05

    async def _ready(self) -> None:
        """Open the stores of the app and this one on this loop, unless they are open."""
        await (await self._app.sessions.connect()).open_store(self.store)


_EDITED = ("description", "misfire", "overlap", "jitter")  # as they are in make_schedule()
_DEFINING = ("kind", "rule", "tz", "options", *_EDITED)
_READERS: Mapping[str, Callable[[str], Any]] = {"cron": str, "interval": float, "once": dt.datetime.fromisoformat}


def _start_from(schedule: flowrra.Schedule, now: float) -> None:
    """Set the first fire, counted from now; ConfigError if there is none."""
    schedule.anchor = round(now * 1e6) / 1e6
    if schedule.kind == "once":
        schedule.next_fire = dt.datetime.fromisoformat(schedule.rule).timestamp()
    else:
        schedule.next_fire = flowrra.upcoming(schedule, now)
    if schedule.next_fire is None:
        raise flowrra.ConfigError(f"{schedule.rule!r} has no time in the future: it would never fire")


def _described(old: flowrra.Schedule, changes: Mapping[str, Any]) -> str:
    """Return the changes of a schedule in words."""
    said = [f"{name} {getattr(old, name)!r} -> {changes[name]!r}" for name in ("task", *_DEFINING) if name in changes]
    said += ["other arguments"] if "payload" in changes else []
    said += ["enabled" if changes["enabled"] else "disabled"] if "enabled" in changes else []
    return ", ".join(said) or "another owner"


def _switched(schedule: flowrra.Schedule, now: float, *, enabled: bool) -> dict[str, Any]:
    """Return the changes that enable or disable a schedule. Fires that came due while it was disabled are dropped."""
    changes: dict[str, Any] = {"enabled": enabled, "updated": now}
    if enabled and not schedule.enabled and schedule.kind != "once":
        changes["next_fire"] = flowrra.upcoming(schedule, now)
    return changes


async def submit_now(app: flowrra.Flowrra, schedule: flowrra.Schedule) -> flowrra.TaskId[Any]:
    """Submit a job of a schedule now, in addition to its fires; TaskNotFoundError if its task is not known."""
    task = app.registry.get(schedule.task)
    if task is None:
        raise flowrra.TaskNotFoundError(
            f"no task {schedule.task!r} is registered here: run it in a program that has the task"
        )
    job = flowrra.job_of_fire(schedule, task, round(app.now() * 1e6), app.broker.retention)
    job.id, job.due = app.new_id(), None
    (job_id,) = await app.submit_jobs([job])
    return flowrra.TaskId(job_id)


def unknown_schedule(schedule_id: str) -> flowrra.TaskNotFoundError:
    """Return the error for an id that is not in the store."""
    return flowrra.TaskNotFoundError(
        f"no schedule {schedule_id!r} is stored here: it was never created, was removed, or ended a week ago"
    )
