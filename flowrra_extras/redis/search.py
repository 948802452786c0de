"""Searches in Redis: for jobs through an index, for workers, and for the activity of workers."""

import asyncio
import collections
import dataclasses
import json
import operator
from collections.abc import AsyncIterator, Sequence
from typing import Any

import flowrra
from flowrra_extras.redis.calls import Calls, counted, filter_text, job_of, limit_state, member_of, ready_place
from flowrra_extras.redis.connection import Call

# The limits of one call, so that it never blocks the server for long.
PAGE = 250  # jobs
_MINUTES = 60  # of activity
_MEMBERS = 1_000  # of an index
_HIGHEST = 2**52 - 1  # seq: the maximum of 13 hex digits


class Reader(flowrra.Broker):
    """The part of the broker that reads jobs, workers and their activity, and changes nothing."""

    _calls: Calls

    async def find(
        self, which: flowrra.JobFilter, *, limit: int = 100, after: int | None = None, oldest_first: bool = False
    ) -> list[flowrra.Job]:
        parts = (self._first(part, limit, after, oldest_first=oldest_first) for part in _apart(which))
        found = [job for jobs in await asyncio.gather(*parts) for job in jobs]
        return sorted(found, key=lambda job: job.seq, reverse=not oldest_first)[:limit]

    async def _first(
        self, which: flowrra.JobFilter, limit: int, after: int | None, *, oldest_first: bool
    ) -> list[flowrra.Job]:
        """Return the first jobs in order. `which` has one state, or any."""
        found: list[flowrra.Job] = []
        async for jobs in self._search(which, limit, after, oldest_first=oldest_first):
            found += jobs
            if len(found) >= limit:
                break
        return found[:limit]

    async def _search(
        self, which: flowrra.JobFilter, limit: int, after: int | None, *, oldest_first: bool = False
    ) -> AsyncIterator[list[flowrra.Job]]:
        """Yield the jobs in order, one list for each step."""
        rest = dataclasses.replace(which, ids=None)
        async for rows in self._steps(which, limit, after, oldest_first=oldest_first):
            jobs = await flowrra.apart(_jobs_of, rows)
            jobs.sort(key=lambda job: job.seq, reverse=not oldest_first)
            is_behind = operator.gt if oldest_first else operator.lt
            yield [job for job in jobs if rest.matches(job) and (after is None or is_behind(job.seq, after))]

    async def _steps(
        self, which: flowrra.JobFilter, limit: int, after: int | None, *, oldest_first: bool = False
    ) -> AsyncIterator[list[Any]]:
        """Yield the answers of the steps of a search. A `limit` of 0 counts."""
        low, high = which.from_seq or 0, _HIGHEST
        is_exact = which == flowrra.JobFilter(status=which.status, queue=which.queue, from_seq=which.from_seq)
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

    async def counts(self, which: flowrra.JobFilter | None = None) -> dict[tuple[str, flowrra.TaskStatus], int]:
        which = which or flowrra.JobFilter()
        found: collections.Counter[tuple[str, flowrra.TaskStatus]] = collections.Counter()
        if which == flowrra.JobFilter(status=which.status, queue=which.queue):
            state, _ = await self.look()
            for status, queue, number in counted(state):
                if which.queue in (None, queue) and (which.status is None or status in which.status):
                    found[queue, status] += number
        elif which.ahead_of is not None and which == flowrra.JobFilter(ahead_of=which.ahead_of):
            job = which.ahead_of
            if flowrra.awaits_limit(job):
                await self._count_before(job, found)
            else:
                place = ready_place(job) + job.id
                found[job.queue, flowrra.PENDING] = await self._calls.run(Call("ahead", job.queue, place))
        else:
            for part in _apart(which):
                await self._count(part, found)
        return dict(+found)

    async def _count(
        self, which: flowrra.JobFilter, found: collections.Counter[tuple[str, flowrra.TaskStatus]]
    ) -> None:
        is_exact = which.ahead_of is None or not flowrra.awaits_limit(which.ahead_of)
        if is_exact and (which.error is None or which.error.isascii()):
            async for rows in self._steps(which, 0, None):
                for status, queue, number in counted(dict(zip(rows[::2], rows[1::2], strict=True))):
                    found[queue, status] += number
        else:  # the server knows lower case of ASCII only
            async for jobs in self._search(which, PAGE, None):
                found.update((job.queue, job.status) for job in jobs)

    async def _count_before(self, job: flowrra.Job, found: collections.Counter[tuple[str, flowrra.TaskStatus]]) -> None:
        """Count the jobs of the same limit key that are ahead of one that waits."""
        last = ""
        while True:
            call = Call("before", flowrra.limit_key(job), member_of(job), last, str(_MEMBERS))
            last, *words = await self._calls.run(call)
            for status, queue, number in counted(dict(zip(words[::2], words[1::2], strict=True))):
                found[queue, status] += number
            if last == "":
                return

    async def limits(self) -> list[flowrra.LimitUse]:
        texts, paused, keys = await self._calls.run(Call("limit_keys", "", str(_MEMBERS)))
        found = {name: (name, 0, 0, 0, True) for name in paused}
        while keys:
            rows = await self._calls.run(Call("limit_states", *keys))
            found |= {name: (name, *row[1:4], bool(row[-1])) for name, row in zip(keys, rows, strict=True)}
            keys = (await self._calls.run(Call("limit_keys", keys[-1], str(_MEMBERS))))[2]
        return flowrra.uses_of(map(flowrra.Limit.from_text, texts), found.values())

    async def limit_states(self, names: Sequence[str]) -> list[flowrra.LimitKey]:
        rows = await self._calls.run(Call("limit_states", *names)) if names else []
        return list(map(limit_state, names, rows))

    async def overview(self, since: float | None = None) -> flowrra.Overview:
        state, texts = await self.look()
        workers = sorted((flowrra.WorkerInfo(*json.loads(text)) for text in texts), key=lambda info: info.started)
        paused = {queue for word, _, queue in (name.partition(" ") for name in state) if word == "paused"}
        if since is None:
            return flowrra.Overview(workers, paused, [], [])
        return flowrra.Overview(workers, paused, await self._activity(since), await self._totals())

    async def look(self) -> tuple[dict[str, str], list[str]]:
        """Return the state, and the workers."""
        pairs, workers = await self._calls.run(Call("look"))
        return dict(zip(pairs[::2], pairs[1::2], strict=True)), workers

    async def _activity(self, since: float) -> list[flowrra.Activity]:
        texts: list[str] = []
        first = repr(since)
        while first != "(":
            last, *found = await self._calls.run(Call("activity", first, str(_MINUTES)))
            texts += found
            first = f"({last}"
        return flowrra.sum_of_activity(texts)

    async def _totals(self) -> list[flowrra.Activity]:
        words = await self._calls.run(Call("totals"))
        names = (word.partition(" ") for word in words[::2])
        return flowrra.totals_of_activity(
            (task, what, float(number)) for (what, _, task), number in zip(names, words[1::2], strict=True)
        )


def _jobs_of(rows: Sequence[Any]) -> list[flowrra.Job]:
    return [job_of(*rows[i : i + 4]) for i in range(0, len(rows), 4)]


def _apart(which: flowrra.JobFilter) -> list[flowrra.JobFilter]:
    """Return one filter for each state, because each state has an index; or the filter of all states, which have one.

    A queue has jobs in few states, and the server knows immediately which.
    """
    status = which.status
    if which.ahead_of is not None:
        ahead = frozenset(
            {flowrra.PENDING, flowrra.RUNNING, flowrra.BLOCKED}
            if flowrra.awaits_limit(which.ahead_of)
            else {flowrra.PENDING}
        )
        status = ahead if status is None else status & ahead
    elif which.ids is not None or which.parent is not None:
        return [which]
    elif status is None or status == frozenset(flowrra.TaskStatus):
        if which.queue is None:
            return [which]
        status = frozenset(flowrra.TaskStatus)
    return [dataclasses.replace(which, status=frozenset({one})) for one in status]
