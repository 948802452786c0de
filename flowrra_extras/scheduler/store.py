"""The protocol of a store of schedules, and the store in memory."""

import dataclasses
import heapq
import math
from collections.abc import Mapping, Sequence
from typing import Any

from flowrra import MAX_LEASE, Clock, ConfigError, Fired, Schedule

FIELDS = tuple(field.name for field in dataclasses.fields(Schedule))
_FIXED = frozenset(("id", "turn"))  # what change() leaves alone


class ScheduleStore:
    """Stores schedules. It makes no decisions: the scheduler says when a schedule fires next.

    `now` is the caller's wall clock in seconds since the epoch. The lease of a taken schedule uses the store's own
    clock. Every change is guarded: a late or repeated call changes nothing and returns that.
    """

    async def open(self) -> None:
        """Prepare for use on the running loop: connect, create or migrate the schema."""

    async def close(self) -> None:
        """Release all resources."""

    async def add(self, schedule: Schedule) -> str:
        """Add a new schedule and return its id. If its `key` or `id` exists, change nothing and return the existing id.

        Two simultaneous callers get the same id: the store enforces unique keys, it does not look them up first.
        """
        raise NotImplementedError

    async def find(self, ids: Sequence[str] | None = None) -> list[Schedule]:
        """Return the schedules with these ids (None: all), in order of creation."""
        raise NotImplementedError

    async def change(self, schedule_id: str, changes: Mapping[str, Any]) -> bool:
        """Set fields of a schedule, and end the lease of whoever has taken it. False: there is no such schedule.

        Raises:
            ConfigError: the changed `key` belongs to another schedule.
        """
        raise NotImplementedError

    async def remove(self, schedule_id: str) -> bool:
        """Delete a schedule. False: there is none."""
        raise NotImplementedError

    async def take(self, *, now: float, lease: float, limit: int) -> list[Schedule]:
        """Take up to `limit` enabled schedules whose `next_fire` has come, earliest first, for `lease` seconds.

        Each gets a new `turn`. Until the lease ends, nobody else can take it.
        """
        raise NotImplementedError

    async def advance(self, fired: Sequence[Fired]) -> list[bool]:
        """Write what was fired of taken schedules and end their leases. False: another turn has begun."""
        raise NotImplementedError

    async def next_fire(self) -> float | None:
        """Return the earliest `next_fire` of an enabled schedule that is not taken. Uses an index."""
        raise NotImplementedError

    async def purge(self, before: float) -> int:
        """Delete the schedules that never fire again and fired last before that moment. Return how many."""
        raise NotImplementedError


def check_changes(changes: Mapping[str, Any]) -> None:
    if wrong := changes.keys() - FIELDS | changes.keys() & _FIXED:
        raise ConfigError(f"{min(wrong)!r} of a schedule cannot be changed")


def check_lease(lease: float) -> None:
    if not 0 < lease <= MAX_LEASE:
        raise ConfigError(f"a lease must be more than 0 and at most {MAX_LEASE:g} s, not {lease!r}")


class MemoryScheduleStore(ScheduleStore):
    """Schedules in the memory of this process, lost when it ends. Leases use the monotonic part of `clock`."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or Clock()
        self._schedules: dict[str, Schedule] = {}
        self._ids: dict[str, str] = {}  # by key
        self._leases: dict[str, float] = {}  # of those that are taken and not advanced
        self._due: list[tuple[float, str]] = []  # a heap; an entry that no longer holds is dropped when it comes up

    async def add(self, schedule: Schedule) -> str:
        old = self._ids.get(schedule.key) or (schedule.id if schedule.id in self._schedules else None)
        if old is not None:
            return old
        self._schedules[schedule.id] = schedule = dataclasses.replace(schedule)
        self._ids[schedule.key] = schedule.id
        self._queue(schedule)
        return schedule.id

    def _queue(self, schedule: Schedule) -> None:
        self._leases.pop(schedule.id, None)
        if schedule.enabled and schedule.next_fire is not None:
            heapq.heappush(self._due, (schedule.next_fire, schedule.id))

    def _drop(self, schedule_id: str) -> bool:
        schedule = self._schedules.pop(schedule_id, None)
        if schedule is None:
            return False
        self._leases.pop(schedule_id, None)
        del self._ids[schedule.key]
        return True

    async def find(self, ids: Sequence[str] | None = None) -> list[Schedule]:
        wanted = self._schedules if ids is None else set(ids)
        return [dataclasses.replace(schedule) for schedule in self._schedules.values() if schedule.id in wanted]

    async def change(self, schedule_id: str, changes: Mapping[str, Any]) -> bool:
        check_changes(changes)
        schedule = self._schedules.get(schedule_id)
        if schedule is None:
            return False
        key = changes.get("key", schedule.key)
        if self._ids.get(key, schedule_id) != schedule_id:
            raise ConfigError(f"the schedule {self._ids[key]!r} is the same: change or remove that one")
        del self._ids[schedule.key]
        schedule = dataclasses.replace(schedule, **changes, turn=schedule.turn + 1)
        self._schedules[schedule_id] = schedule
        self._ids[key] = schedule_id
        self._queue(schedule)
        return True

    async def remove(self, schedule_id: str) -> bool:
        return self._drop(schedule_id)

    async def take(self, *, now: float, lease: float, limit: int) -> list[Schedule]:
        taken: list[Schedule] = []
        self._free()
        while len(taken) < limit and (schedule := self._first()) is not None and (schedule.next_fire or 0.0) <= now:
            heapq.heappop(self._due)
            schedule.turn += 1
            self._leases[schedule.id] = self._clock.monotonic() + lease
            taken.append(dataclasses.replace(schedule))
        return taken

    def _free(self) -> None:
        """Let the schedules whose lease has ended be taken again."""
        now = self._clock.monotonic()
        for schedule_id in [schedule_id for schedule_id, until in self._leases.items() if -math.inf < until <= now]:
            self._queue(self._schedules[schedule_id])
            self._leases[schedule_id] = -math.inf  # its taker may still advance it, as long as nobody else has it

    def _first(self) -> Schedule | None:
        """Return the schedule that is due first."""
        now = self._clock.monotonic()
        while self._due:
            moment, schedule_id = self._due[0]
            schedule = self._schedules.get(schedule_id)
            is_free = self._leases.get(schedule_id, -math.inf) <= now
            if schedule and schedule.enabled and schedule.next_fire == moment and is_free:
                return schedule
            heapq.heappop(self._due)
        return None

    async def advance(self, fired: Sequence[Fired]) -> list[bool]:
        return [self._advance(one) for one in fired]

    def _advance(self, fired: Fired) -> bool:
        schedule = self._schedules.get(fired.schedule_id)
        if schedule is None or schedule.turn != fired.turn or schedule.id not in self._leases:
            return False
        schedule.next_fire, schedule.last_fire, schedule.last_job = fired[2:]
        self._queue(schedule)
        return True

    async def next_fire(self) -> float | None:
        self._free()
        first = self._first()
        return None if first is None else first.next_fire

    async def purge(self, before: float) -> int:
        done = [s.id for s in self._schedules.values() if s.next_fire is None and (s.last_fire or before) < before]
        return sum(map(self._drop, done))
