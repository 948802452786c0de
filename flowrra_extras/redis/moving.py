"""How jobs leave Redis for another store, and come from another one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowrra import Broker, Job, encode_arguments
from flowrra_extras.redis.calls import member_of, to_json
from flowrra_extras.redis.wire import Call

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowrra_extras.redis.calls import Calls

__all__ = ["MovingBroker"]


class MovingBroker(Broker):
    """The part of a RedisBroker that serves moves."""

    _calls: Calls

    def _bury_at(self, now: float) -> float:
        return now + self.retention.failed_ttl

    async def hold(self, task_ids: Sequence[str], *, by: str, now: float) -> list[bool]:
        return [bool(flag) for flag in await self._calls.run(Call("hold", by, *task_ids))]

    async def adopt(self, jobs: Sequence[Job], *, by: str, now: float) -> list[bool]:
        words = [word for job in jobs for word in _words(job)]
        return [bool(flag) for flag in await self._calls.run(Call("adopt", by, *words))]

    async def let_go(self, task_ids: Sequence[str], *, by: str, gone: bool, now: float) -> list[bool]:
        moments = repr(now), repr(self._bury_at(now))
        return [bool(flag) for flag in await self._calls.run(Call("let_go", by, str(int(gone)), *moments, *task_ids))]


def _words(job: Job) -> tuple[str, ...]:
    """A job of another store as the script that adopts it takes it."""
    moments = {"submitted": job.submitted, "due": job.due, "expires": job.expires}
    numbers = {"attempt": job.attempt, "failures": job.failures, "crashes": job.crashes}
    values = {
        "head": to_json([job.task, dict(job.overrides) if job.overrides else None]), "payload": encode_arguments(job),
        "unique": job.unique, "parents": to_json(job.parents) if job.parents else None,
        "error": job.error, "traceback": job.traceback,
        **{name: None if moment is None else repr(moment) for name, moment in moments.items()},
        **{name: number or None for name, number in numbers.items()},  # a crash of 0 would count as one in Lua
    }  # fmt: skip
    fields = [text for name, value in values.items() if value is not None for text in (name, str(value))]
    expires = repr(job.expires) if job.expires is not None else ""
    history = [to_json(attempt) for attempt in job.history]
    return job.id, member_of(job)[:16], job.queue, job.unique or "", expires, to_json(fields), to_json(history)
