"""Schedules in Redis 6.2+ or Valkey, under the prefix of the URL, beside the jobs of a broker or alone.

The script `schedules.lua` beside those of the broker does all, so that each call is atomic.
"""

import contextlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flowrra import BackendError, BrokerError, ConfigError, Fired, Schedule
from flowrra_extras.redis.connection import Call, Link, address_from_url
from flowrra_extras.redis.scripts import SCRIPTS, Script
from flowrra_extras.scheduler.store import FIELDS, ScheduleStore, check_changes, check_lease

_CHUNK = 500  # schedules in one answer: the server does nothing else meanwhile

SCRIPTS["schedules"] = Script("schedules", SCHEDULE_FIELDS=FIELDS)


class RedisScheduleStore(ScheduleStore):
    """Schedules in Redis, for many processes on many machines. `url` is as for the broker.

    If the server is unreachable, restarts or fails over, a call waits up to `timeout` seconds, then raises a
    BackendError. It sends an interrupted call again; this changes nothing if the call had been carried out.
    """

    def __init__(self, url: str, *, timeout: float = 10.0) -> None:
        self._address = address_from_url(url)
        self._timeout = timeout
        self._link: Link | None = None
        self._pid = 0
        self._inherited: Link | None = None

    async def open(self) -> None:
        if self._pid == os.getpid():
            with contextlib.suppress(RuntimeError):  # of a loop that has ended
                await self.close()
        else:  # the parent of a fork goes on to use its link: neither used nor collected
            self._inherited = self._link
        self._link, self._pid = Link(self._address), os.getpid()
        self._link.open(self._timeout)
        await self.next_fire()

    async def close(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            await link.close()

    async def _run(self, act: str, *words: str) -> Any:
        link, call = self._link, Call("schedules", act, *words)
        if link is not None:
            await link.send([call])
        if link is None or (link is not self._link and isinstance(call.answer, BrokerError)):
            raise BackendError(f"the store of schedules in {self._address.name} is not open")
        if isinstance(call.answer, BrokerError):
            raise call.answer
        return call.answer

    async def add(self, schedule: Schedule) -> str:
        fields = {name: getattr(schedule, name) for name in FIELDS}
        return str(await self._run("add", schedule.id, schedule.key, *_words(fields)))

    async def find(self, ids: Sequence[str] | None = None) -> list[Schedule]:
        wanted = list(dict.fromkeys(await self._run("ids") if ids is None else ids))
        found: list[tuple[float, Schedule]] = []
        for start in range(0, len(wanted), _CHUNK):
            answer = await self._run("find", *wanted[start : start + _CHUNK])
            found += zip(map(float, answer[::2]), map(_schedule, answer[1::2]), strict=True)
        return [schedule for _, schedule in sorted(found, key=lambda one: one[0])]

    async def change(self, schedule_id: str, changes: Mapping[str, Any]) -> bool:
        check_changes(changes)
        mark = ("1", changes["key"]) if "key" in changes else ("0",)
        answer = await self._run("change", schedule_id, *mark, *_words(changes))
        if answer == -1:
            raise ConfigError(f"schedule {schedule_id} cannot become the same as another schedule: {changes['key']!r}")
        return bool(answer)

    async def remove(self, schedule_id: str) -> bool:
        return bool(await self._run("remove", schedule_id))

    async def purge(self, before: float) -> int:
        return int(await self._run("purge", repr(before)))

    async def take(self, *, now: float, lease: float, limit: int) -> list[Schedule]:
        check_lease(lease)
        return list(map(_schedule, await self._run("take", repr(now), repr(lease), str(limit))))

    async def advance(self, fired: Sequence[Fired]) -> list[bool]:
        words = [word for one in fired for word in (one.schedule_id, *map(json.dumps, one[1:]))]
        return [bool(written) for written in await self._run("advance", *words)] if fired else []

    async def next_fire(self) -> float | None:
        first = await self._run("next")
        return None if first is None else float(first)


def _words(fields: Mapping[str, Any]) -> Iterable[str]:
    """Return fields and their values as stored in the hash."""
    for name, value in fields.items():
        yield from (name, json.dumps(dict(value) if name == "options" else value, allow_nan=False))


def _schedule(row: str) -> Schedule:
    return Schedule(**dict(zip(FIELDS, json.loads(row), strict=True)))


def store_from_url(url: str, *, timeout: float) -> ScheduleStore:
    """Return the store for `redis://`, `rediss://`, `redis+sentinel://` and `unix://`."""
    return RedisScheduleStore(url, timeout=timeout)
