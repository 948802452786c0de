"""How jobs leave PostgreSQL for another store, and come from another one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from flowrra import Job, encode_arguments
from flowrra_extras.postgres import statements as sql
from flowrra_extras.postgres.rows import clean

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from flowrra_extras.postgres.connections import Session

__all__ = ["MovingStore"]


class MovingStore:
    """The part of a Store that serves moves. Each method in a transaction."""

    _db: Session
    finished: list[str]

    async def _await_parents(self, family: Mapping[int, Iterable[str]], now: float, *, strict: bool) -> None:
        raise NotImplementedError

    async def hold(self, task_ids: Sequence[str], by: str) -> list[bool]:
        held = {task_id: seq for seq, task_id in await self._db.fetch(sql.HOLD, task_ids, by)}
        await self._db.fetch(sql.FORGET_CHILDREN, list(held.values()))
        return [task_id in held for task_id in task_ids]

    async def adopt(self, jobs: Sequence[Job], by: str) -> list[bool]:
        columns = zip(*map(_row, jobs), strict=True) if jobs else [()] * 17
        await self._db.fetch(sql.ADOPT, by, *map(list, columns))
        known = {row[0] for row in await self._db.fetch(sql.GET, [job.id for job in jobs])}
        return [job.id in known for job in jobs]

    async def release(self, task_ids: Sequence[str], by: str, now: float) -> list[bool]:
        rows = await self._db.fetch(sql.LET_GO, task_ids, by)
        family = {seq: json.loads(parents) if parents else () for seq, _, parents in rows}
        await self._await_parents(family, now, strict=False)
        found = {row[1] for row in rows}
        return [task_id in found for task_id in task_ids]


def _row(job: Job) -> tuple[Any, ...]:
    """A job of another store as sql.ADOPT takes it."""
    past = [a._replace(error=clean(a.error), traceback=clean(a.traceback)) for a in job.history]
    return (
        job.id, encode_arguments(job), job.task, job.queue, job.priority, job.due, job.expires,
        json.dumps(dict(job.overrides), sort_keys=True) if job.overrides else None, job.unique,
        json.dumps(list(dict.fromkeys(job.parents))) if job.parents else None,
        job.submitted, job.attempt, job.failures, job.crashes, clean(job.error), clean(job.traceback),
        json.dumps(past) if past else None,
    )  # fmt: skip
