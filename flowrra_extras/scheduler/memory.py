"""Schedules in the memory of this process."""

import dataclasses
import heapq
import math
from collections.abc import Mapping, Sequence
from typing import Any

from flowrra import Clock, ConfigError, Fired, Schedule
from flowrra_extras.scheduler.protocol import ScheduleStore


class MemoryScheduleStore(ScheduleStore):
    """Schedules in the memory of this process; gone when it ends. Leases run on the monotonic side of `clock`."""

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
        self.put(schedule)
        return schedule.id

    def put(self, schedule: Schedule) -> None:
        """Keep a schedule, in place of one with its id."""
        self._drop(schedule.id)
        self._schedules[schedule.id] = schedule = dataclasses.replace(schedule)
        self._ids[schedule.key] = schedule.id
        self._queue(schedule)

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
        schedule = self._schedules.get(schedule_id)
        if schedule is None:
            return False
        key = changes.get("key", schedule.key)
        if self._ids.get(key, schedule_id) != schedule_id:
            raise ConfigError(f"the schedule {self._ids[key]!r} is that already: change or remove that one")
        if unknown := changes.keys() - _CHANGEABLE:
            raise ConfigError(f"{min(unknown)!r} is nothing that can be changed in a schedule")
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
        while len(taken) < limit and (schedule := self._first()) is not None and (schedule.next_fire or 0.0) <= now:
            heapq.heappop(self._due)
            schedule.turn += 1
            self._leases[schedule.id] = self._clock.monotonic() + lease
            taken.append(dataclasses.replace(schedule))
        return taken

    def _first(self) -> Schedule | None:
        """The one that is due first; what was taken under a lease that has run out is there again."""
        now = self._clock.monotonic()
        for schedule_id in [schedule_id for schedule_id, until in self._leases.items() if -math.inf < until <= now]:
            self._queue(self._schedules[schedule_id])
            self._leases[schedule_id] = -math.inf  # its taker may still advance it, as long as nobody else has it
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
        first = self._first()
        return None if first is None else first.next_fire

    async def purge(self, before: float) -> int:
        done = [s.id for s in self._schedules.values() if s.next_fire is None and (s.last_fire or before) < before]
        return sum(map(self._drop, done))


_CHANGEABLE = frozenset(f.name for f in dataclasses.fields(Schedule)) - frozenset(("id", "turn"))
