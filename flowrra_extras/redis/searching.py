"""Look-ups in Redis: of jobs by the index that has them, of workers, and of what workers did."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import json
import operator
from typing import TYPE_CHECKING, Any

from flowrra import (
    PENDING,
    Activity,
    Broker,
    Job,
    JobFilter,
    Overview,
    TaskStatus,
    WorkerInfo,
    sum_of_activity,
    totals_of_activity,
)
from flowrra_extras.redis.calls import counted, filter_text, job_of, member_of
from flowrra_extras.redis.wire import Call

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from flowrra_extras.redis.calls import Calls

__all__ = ["PAGE", "SearchingBroker"]

# What one call looks at, so that it never holds the server for long.
PAGE = 250  # jobs
_MINUTES = 60  # of activity
_HIGHEST = 2**52 - 1  # seq: what 13 hex digits hold


class SearchingBroker(Broker):
    """The part of a RedisBroker that looks, and changes nothing."""

    _calls: Calls

    async def find(
        self, which: JobFilter, *, limit: int = 100, after: int | None = None, oldest_first: bool = False
    ) -> list[Job]:
        parts = (self._first(part, limit, after, oldest_first=oldest_first) for part in _apart(which))
        found = [job for jobs in await asyncio.gather(*parts) for job in jobs]
        return sorted(found, key=lambda job: job.seq, reverse=not oldest_first)[:limit]

    async def _first(self, which: JobFilter, limit: int, after: int | None, *, oldest_first: bool) -> list[Job]:
        """The first jobs in order. `which` has one state, or any."""
        found: list[Job] = []
        async for jobs in self._search(which, limit, after, oldest_first=oldest_first):
            found += jobs
            if len(found) >= limit:
                break
        return found[:limit]

    async def _search(
        self, which: JobFilter, limit: int, after: int | None, *, oldest_first: bool = False
    ) -> AsyncIterator[list[Job]]:
        """The jobs in order, a list for each step."""
        rest = dataclasses.replace(which, ids=None)
        async for rows in self._steps(which, limit, after, oldest_first=oldest_first):
            jobs = [job_of(*rows[i : i + 3]) for i in range(0, len(rows), 3)]
            jobs.sort(key=lambda job: job.seq, reverse=not oldest_first)
            is_behind = operator.gt if oldest_first else operator.lt
            yield [job for job in jobs if rest.matches(job) and (after is None or is_behind(job.seq, after))]

    async def _steps(
        self, which: JobFilter, limit: int, after: int | None, *, oldest_first: bool = False
    ) -> AsyncIterator[list[Any]]:
        """What the steps of a look-up answer; a `limit` of 0 counts."""
        low, high = which.from_seq or 0, _HIGHEST
        is_exact = which == JobFilter(status=which.status, queue=which.queue, from_seq=which.from_seq)
        page = min(limit, PAGE) if limit and is_exact and which.queue is None else PAGE
        last: Any = "" if after is None else after
        while True:
            if last != "":
                low, high = (max(low, int(last) + 1), high) if oldest_first else (low, min(high, int(last) - 1))
            if low > high:
                return
            bounds = str(low), str(high)
            call = Call("find", filter_text(which), str(limit), str(page), str(int(oldest_first)), *bounds)
            last, *rows = await self._calls.run(call)
            yield rows
            if last == "":
                return

    async def counts(self, which: JobFilter | None = None) -> dict[tuple[str, TaskStatus], int]:
        which = which or JobFilter()
        found: collections.Counter[tuple[str, TaskStatus]] = collections.Counter()
        if which == JobFilter(status=which.status, queue=which.queue):
            state, _ = await self._look()
            for status, queue, number in counted(state):
                if which.queue in (None, queue) and (which.status is None or status in which.status):
                    found[queue, status] += number
        elif which.ahead_of is not None and which == JobFilter(ahead_of=which.ahead_of):
            queue = which.ahead_of.queue
            found[queue, PENDING] = await self._calls.run(Call("ahead", queue, member_of(which.ahead_of)))
        else:
            for part in _apart(which):
                await self._count(part, found)
        return dict(+found)

    async def _count(self, which: JobFilter, found: collections.Counter[tuple[str, TaskStatus]]) -> None:
        if which.error is None or which.error.isascii():
            async for rows in self._steps(which, 0, None):
                for status, queue, number in counted(dict(zip(rows[::2], rows[1::2], strict=True))):
                    found[queue, status] += number
        else:  # lower case is more than ASCII only here
            async for jobs in self._search(which, PAGE, None):
                found.update((job.queue, job.status) for job in jobs)

    async def overview(self, since: float | None = None) -> Overview:
        state, texts = await self._look()
        workers = sorted((WorkerInfo(*json.loads(text)) for text in texts), key=lambda info: info.started)
        paused = {queue for word, _, queue in (name.partition(" ") for name in state) if word == "paused"}
        if since is None:
            return Overview(workers, paused, [], [])
        return Overview(workers, paused, await self._activity(since), await self._totals())

    async def _look(self) -> tuple[dict[str, str], list[str]]:
        """The state, and the workers."""
        pairs, workers = await self._calls.run(Call("look"))
        return dict(zip(pairs[::2], pairs[1::2], strict=True)), workers

    async def _activity(self, since: float) -> list[Activity]:
        texts: list[str] = []
        first = repr(since)
        while first != "(":
            last, *found = await self._calls.run(Call("activity", first, str(_MINUTES)))
            texts += found
            first = f"({last}"
        return sum_of_activity(texts)

    async def _totals(self) -> list[Activity]:
        words = await self._calls.run(Call("totals"))
        names = (word.partition(" ") for word in words[::2])
        return totals_of_activity(
            (task, what, float(number)) for (what, _, task), number in zip(names, words[1::2], strict=True)
        )


def _apart(which: JobFilter) -> list[JobFilter]:
    """Filters of one state each, since there is an index for each; or the one of all states, which has its own."""
    status = which.status
    if which.ahead_of is not None:
        status = frozenset({PENDING}) if status is None else status & {PENDING}
    elif status and (which.ids is not None or which.parent is not None or status == frozenset(TaskStatus)):
        return [which]
    return [which] if status is None else [dataclasses.replace(which, status=frozenset({one})) for one in status]
