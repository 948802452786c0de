"""Stored schedules: made, changed, removed, and fired by whichever scheduler on the same store is first."""

import datetime as dt
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Unpack

from flowrra import (
    CHECK_EVERY,
    ConfigError,
    Firing,
    Flowrra,
    Schedule,
    ScheduleOptions,
    Task,
    TaskId,
    TaskNotFoundError,
    check_key,
    decode,
    job_of_fire,
    logger,
    make_schedule,
    nearest,
    schedule_key,
    upcoming,
)
from flowrra_extras.scheduler.protocol import ScheduleStore

TAKE_LEASE = 10.0  # seconds that a scheduler has to push and advance what it has taken
_TAKE_LIMIT = 100
_DONE_KEPT = 604_800.0  # seconds that a schedule with nothing left to fire is kept
_PURGE_DONE_EVERY = 3600.0


class StoredOptions(ScheduleOptions, total=False):
    """What a stored schedule may be told besides: its zone (None: UTC), and its id."""

    tz: str | dt.tzinfo | None
    task_id: str | None


class Scheduler(Firing):
    """Schedules that are kept in a store; made by `app.create_scheduler`.

    They fire while the app runs, in whichever process has a scheduler on the same store, and each fire is
    one job. What is changed here reaches the others within two seconds. A task may be given by its name,
    also one that is registered elsewhere only; its arguments are checked if it is registered here.
    """

    def __init__(self, app: Flowrra, store: ScheduleStore) -> None:
        super().__init__(app)
        self.store = store
        self._purge_at = -math.inf

    async def schedule_cron(
        self,
        task_name: str | Task[..., Any],
        cron: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[StoredOptions],
    ) -> str:
        """Fire when `cron` says, in the zone `tz` (None: UTC); the schedule's id.

        Without a `task_id`, one of the same task, rule, zone and arguments is the same. What is given here
        and is otherwise in one that is there already is changed, and a warning says so; what is left out
        stays. So a program may make its schedules at each start.

        Raises:
            ConfigError: a bad expression, zone or option, or the `task_id` is that of another task.
            TaskNotFoundError: a worker runs in this app, and neither it nor another live one knows the name.
                An app that only submits stores the schedule, with a warning.
            TypeError: the arguments do not fit the task.
            BackendError: the store failed.
        """
        return await self._add(task_name, "cron", cron, args=args, kwargs=kwargs, **options)

    async def schedule_interval(
        self,
        task_name: str | Task[..., Any],
        interval: float | dt.timedelta,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[StoredOptions],
    ) -> str:
        """Fire each `interval` seconds from now on; see `schedule_cron`. `tz` matters for showing it only."""
        return await self._add(task_name, "interval", interval, args=args, kwargs=kwargs, **options)

    async def schedule_once(
        self,
        task_name: str | Task[..., Any],
        run_at: dt.datetime,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[StoredOptions],
    ) -> str:
        """Fire once at `run_at`; see `schedule_cron`. It is forgotten a week after that.

        A naive moment is one of the zone `tz`, or else the machine's local time. One in the past is a
        misfire: it fires at once, unless `misfire` is "skip".
        """
        return await self._add(task_name, "once", run_at, args=args, kwargs=kwargs, **options)

    async def _add(
        self, task: str | Task[..., Any], kind: str, rule: object, *, task_id: str | None = None, **options: Any
    ) -> str:
        schedule = make_schedule(self._task_or_name(task), kind, rule, **options)
        await self._ready()
        await self._check_name(schedule.task)
        schedule.created = schedule.updated = now = self._app.clock.time()
        schedule.id = new_id = check_key("task_id", task_id) or self._app.new_id()
        schedule.key = schedule.key if task_id is None else f"id:{task_id}"
        self._start_from(schedule, now)
        kept = await self.store.add(schedule)
        if task_id is not None or kept != new_id:
            for old in await self.store.find([kept]):
                await self._redefine(old, schedule, rule, options)
        return kept

    async def _redefine(self, old: Schedule, new: Schedule, rule: object, options: Mapping[str, Any]) -> None:
        """Change what is given otherwise in a new definition of the schedule, and say so."""
        if old.task != new.task:
            raise ConfigError(f"{old.id!r} is a schedule of {old.task}: give another task_id, or unschedule() it")
        changes = self._changes(old, new.kind, rule, **options)
        if not changes or not await self.store.change(old.id, changes | {"updated": new.updated}):
            return
        said = [f"{name} {getattr(old, name)!r} -> {changes[name]!r}" for name in _DEFINING if name in changes]
        said += ["other arguments"] if "payload" in changes else []
        said += ["enabled" if changes["enabled"] else "disabled"] if "enabled" in changes else []
        logger.warning("schedule %s (%s) has a new definition: %s", old.id, old.task, ", ".join(said))

    def _changes(self, old: Schedule, kind: str, rule: object, **options: Any) -> dict[str, Any]:
        """The changes that make `old` what is given here; what is not given stays."""
        given = {name: getattr(old, name) for name in _EDITED} | {**old.options, **options}
        new = make_schedule(self._task_or_name(old.task), kind, rule, **given)
        changes = {name: getattr(new, name) for name in _DEFINING if getattr(new, name) != getattr(old, name)}
        if json.loads(new.payload) != json.loads(old.payload):
            changes["payload"] = new.payload
        now = self._app.clock.time()
        if "enabled" in options and new.enabled != old.enabled:
            changes |= _switched(old, now, enabled=new.enabled)
        if changes.keys() & {"kind", "rule", "tz"}:
            new.id = old.id
            self._start_from(new, now)
            changes |= {"anchor": new.anchor, "next_fire": new.next_fire}
        if old.key == schedule_key(old) != new.key:
            changes["key"] = new.key
        return changes

    def _task_or_name(self, task: str | Task[..., Any]) -> str | Task[..., Any]:
        if isinstance(task, Task) and task.app is not self._app:
            raise TaskNotFoundError(f"the task {task.name!r} belongs to another app: schedule it there")
        if not isinstance(task, Task | str) or not task:
            raise ConfigError(f"a schedule is given a task or its name, not {task!r}")
        return self._app.registry.get(task, task) if isinstance(task, str) else task

    async def _check_name(self, name: str) -> None:
        """Refuse the name of a task that nobody knows, or say so where the app only submits."""
        if name in self._app.registry:
            return
        known = {*self._app.registry, *(task for worker in await self._app.broker.workers() for task in worker.tasks)}
        if name in known:
            return
        trouble = f"no task {name!r} is registered here or known to a live worker{nearest(name, known)}"
        if self._app.is_running:
            raise TaskNotFoundError(trouble)
        logger.warning("%s; its schedule is stored, and fires when a program that knows the task runs", trouble)

    def _start_from(self, schedule: Schedule, now: float) -> None:
        """Set when it fires first, counted from now; ConfigError if that is never."""
        schedule.anchor = round(now * 1e6) / 1e6
        once = schedule.kind == "once"
        schedule.next_fire = dt.datetime.fromisoformat(schedule.rule).timestamp() if once else upcoming(schedule, now)
        if schedule.next_fire is None:
            raise ConfigError(f"{schedule.rule!r} has no moment to come: it would never fire")

    async def update(
        self,
        schedule_id: str,
        *,
        rule: str | float | dt.timedelta | dt.datetime | None = None,
        tz: str | dt.tzinfo | None = None,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[ScheduleOptions],
    ) -> Schedule:
        """Change what is given and return the schedule as it is then. `rule` is of the kind that it has.

        With another rule or zone it counts from now.

        Raises:
            TaskNotFoundError: there is no such schedule.
            ConfigError: a value cannot work, or another schedule is that already.
        """
        old = await self._known(schedule_id)
        old_args, old_kwargs = decode(old.payload)
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
        """Delete a schedule; what it has fired runs all the same. TaskNotFoundError: there is none."""
        await self._ready()
        if not await self.store.remove(schedule_id):
            raise unknown_schedule(schedule_id)

    async def enable_task(self, schedule_id: str) -> None:
        """Let a schedule fire again, from now on; what it has left out is no misfire.

        Raises:
            TaskNotFoundError: there is no such schedule.
        """
        await self._enable(schedule_id, enabled=True)

    async def disable_task(self, schedule_id: str) -> None:
        """Let a schedule not fire until it is enabled again. TaskNotFoundError: there is none."""
        await self._enable(schedule_id, enabled=False)

    async def _enable(self, schedule_id: str, *, enabled: bool) -> None:
        schedule = await self._known(schedule_id)
        changes = _switched(schedule, self._app.clock.time(), enabled=enabled)
        if not await self.store.change(schedule_id, changes):
            raise unknown_schedule(schedule_id)

    async def get_scheduled_task(self, schedule_id: str) -> Schedule | None:
        """A schedule as it stands; None if there is none."""
        await self._ready()
        found = await self.store.find([schedule_id])
        return found[0] if found else None

    async def list_scheduled_tasks(self) -> list[Schedule]:
        """All schedules that are kept here, in order of creation."""
        await self._ready()
        return await self.store.find()

    async def run_now(self, schedule_id: str) -> TaskId[Any]:
        """Submit a job of the schedule here and now, beside its fires; the job's id.

        With `overlap="skip"` that is the id of the job that is unfinished, if there is one.

        Raises:
            TaskNotFoundError: there is no such schedule, or its task is not registered here.
        """
        return await submit_now(self._app, await self._known(schedule_id))

    async def _known(self, schedule_id: str) -> Schedule:
        schedule = await self.get_scheduled_task(schedule_id)
        if schedule is None:
            raise unknown_schedule(schedule_id)
        return schedule

    # Firing ------------------------------------------------------------------------------------

    async def step(self) -> float:
        """Fire what is due: take it, push its jobs, advance it. The seconds to sleep until there may be more.

        A crash or a cancellation between any two of these leaves the schedule due again, as soon as its lease
        has run out, and the ids of its jobs keep them single.
        """
        await self._ready()
        now = self._app.clock.time()
        if not 0.0 <= now - self._purge_at < _PURGE_DONE_EVERY:
            await self.store.purge(now - _DONE_KEPT)
            self._purge_at = now
        first = await self.store.next_fire()
        if first is None or first > now:
            return CHECK_EVERY if first is None else min(CHECK_EVERY, first - now)
        taken = await self.store.take(now=now, lease=TAKE_LEASE, limit=_TAKE_LIMIT)
        due = [plan for schedule in taken if (plan := self.plan(schedule, now)) is not None]
        await self.store.advance(await self.push(due))
        return 0.0 if taken else 0.05

    async def _ready(self) -> None:
        """Make sure that the app's stores and this one are open here."""
        await (await self._app.sessions.connect()).open_store(self.store)


_EDITED = ("description", "misfire", "overlap", "jitter")  # as they are in make_schedule()
_DEFINING = ("kind", "rule", "tz", "options", *_EDITED)
_READERS: Mapping[str, Callable[[str], Any]] = {"cron": str, "interval": float, "once": dt.datetime.fromisoformat}


def _switched(schedule: Schedule, now: float, *, enabled: bool) -> dict[str, Any]:
    """The changes that let a schedule fire or not; what came due while it did not is left out."""
    changes: dict[str, Any] = {"enabled": enabled, "updated": now}
    if enabled and not schedule.enabled and schedule.kind != "once":
        changes["next_fire"] = upcoming(schedule, now)
    return changes


async def submit_now(app: Flowrra, schedule: Schedule) -> TaskId[Any]:
    """Submit a job of a schedule here and now, beside its fires; TaskNotFoundError if its task is not known."""
    task = app.registry.get(schedule.task)
    if task is None:
        raise TaskNotFoundError(f"no task {schedule.task!r} is registered here: run it where it is")
    job = job_of_fire(schedule, task, round(app.now() * 1e6), app.broker.retention)
    job.id, job.due = app.new_id(), None
    (job_id,) = await app.submit_jobs([job])
    return TaskId(job_id)


def unknown_schedule(schedule_id: str) -> TaskNotFoundError:
    return TaskNotFoundError(f"no schedule {schedule_id!r} is kept here: never made, removed, or done a week ago")
