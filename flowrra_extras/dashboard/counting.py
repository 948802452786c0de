"""How many jobs there are: figures that a big store needs time for, counted behind the pages' backs."""

from __future__ import annotations

import asyncio
import collections
from typing import TYPE_CHECKING, NamedTuple

from flowrra import JobFilter, TaskStatus
from flowrra_extras.dashboard.fresh import Fresh
from flowrra_extras.metrics import oldest_ready

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flowrra import Flowrra

_KEPT = 32  # filters whose counts are kept


class Tally(NamedTuple):
    """The jobs by queue and state, counted at `at`; since when the oldest ready job of a queue waits."""

    at: float
    counts: Mapping[tuple[str, TaskStatus], int]
    oldest: Mapping[str, float]

    def total(self, *statuses: TaskStatus, queue: str | None = None) -> int:
        """How many jobs are in one of these states (in all queues, unless one is given)."""
        return sum(
            number
            for (name, status), number in self.counts.items()
            if status in statuses and (queue is None or name == queue)
        )


class Counting:
    """Counts all jobs, and those of some filters."""

    def __init__(self, app: Flowrra) -> None:
        self._app = app
        self._all = Fresh(self._count)
        self._some: collections.OrderedDict[str, Fresh[int]] = collections.OrderedDict()
        self._one_at_a_time = asyncio.Lock()

    async def tally(self) -> Tally:
        """All jobs; a second old at the most where that takes less than 50 ms."""
        return await self._all.get()

    async def number(self, which: JobFilter) -> int | None:
        """How many jobs a filter finds; None while that is not known."""
        if which == JobFilter(status=which.status, queue=which.queue):
            return (await self.tally()).total(*(which.status or TaskStatus), queue=which.queue)
        key = repr(which)
        fresh = self._some.setdefault(key, Fresh(lambda: self._count_some(which)))
        self._some.move_to_end(key)
        if len(self._some) > _KEPT:
            await self._some.popitem(last=False)[1].close()
        return await fresh.glance()

    def forget(self) -> None:
        """Count anew: something was changed from here."""
        self._all.forget()
        for fresh in self._some.values():
            fresh.forget()

    async def close(self) -> None:
        """End what is being counted."""
        await self._all.close()
        for fresh in self._some.values():
            await fresh.close()

    async def _count_some(self, which: JobFilter) -> int:
        async with self._one_at_a_time:
            return sum((await self._app.broker.counts(which)).values())

    async def _count(self) -> Tally:
        counts = await self._app.broker.counts()
        return Tally(self._app.now(), counts, await oldest_ready(self._app.broker, counts))
