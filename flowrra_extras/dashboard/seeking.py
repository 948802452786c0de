"""Looks for jobs in a store of any size within a given time, a stretch after another."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, NamedTuple

from flowrra import JobFilter

if TYPE_CHECKING:
    from flowrra import Broker, Job
    from flowrra_extras.dashboard.search import Search

SECONDS = 0.015  # that a page gives to a search which has found something
PATIENCE = 0.3  # seconds that a page gives to one which has found nothing yet
_STRETCH = 4_096  # numbers of submissions that are looked through at first; more if that was quick
_BATCH = 200  # jobs that are read at once to be tested
_CLOSE = 256  # jobs among which a moment need not be found more exactly


class Found(NamedTuple):
    """Jobs, the latest first. `after` goes on from there; None where nothing is left.

    `searched_to` is the moment back to which was looked when the time was up.
    """

    jobs: list[Job]
    after: int | None = None
    searched_to: float | None = None


class _Until(NamedTuple):
    """When a search ends, on the monotonic clock."""

    found: float  # where it has found something
    nothing: float  # where it has not


async def seek(
    broker: Broker,
    wanted: Search,
    *,
    limit: int,
    after: int | None = None,
    seconds: float | None = None,
    patience: float | None = None,
) -> Found:
    """Up to `limit` of the jobs that are wanted, behind the position `after`.

    It looks for so many `seconds`, and as long as it has found nothing for those of its `patience` (None: as a page).
    """
    begin = time.monotonic()
    found, nothing = SECONDS if seconds is None else seconds, PATIENCE if patience is None else patience
    until = _Until(begin + found, begin + max(found, nothing))
    newest = await broker.find(JobFilter(), limit=1, after=after)
    if not newest or wanted.problems:
        return Found([])
    top, floor = newest[0].seq + 1, 0
    if wanted.before is not None:
        top = (await _around(broker, wanted.before, top))[1]
    if wanted.after is not None:
        floor = (await _around(broker, wanted.after, top))[0]
    return await _look_through(broker, wanted, limit, top, floor, until)


async def _around(broker: Broker, moment: float, top: int) -> tuple[int, int]:
    """Two positions below `top` with the first job since `moment` between them, by halving.

    Jobs are numbered as they come in, so that their moments grow with their numbers.
    """
    low, high = 0, top
    while high - low > _CLOSE:
        middle = (low + high) // 2
        found = await broker.find(JobFilter(), limit=1, after=middle)
        if found and found[0].submitted >= moment:
            high = found[0].seq
        else:
            low = middle
    return low, high


async def _look_through(broker: Broker, wanted: Search, limit: int, top: int, floor: int, until: _Until) -> Found:
    jobs: list[Job] = []
    batch = limit + 1 if wanted.is_for_the_store else _BATCH
    stretch = _STRETCH
    while top > floor:
        begin = time.monotonic()
        which = dataclasses.replace(wanted.which, from_seq=max(floor, top - stretch))
        read = await broker.find(which, limit=batch, after=top)
        for job in filter(wanted.matches, read):
            if len(jobs) == limit:
                return Found(jobs, jobs[-1].seq)
            jobs.append(job)
        top = read[-1].seq if len(read) == batch else max(floor, top - stretch)
        now, deadline = time.monotonic(), until.found if jobs else until.nothing
        if now >= deadline:
            return await _out_of_time(broker, jobs, top, floor)
        if now - begin < (deadline - now) / 8:
            stretch *= 4
    return Found(jobs)


async def _out_of_time(broker: Broker, jobs: list[Job], top: int, floor: int) -> Found:
    """What was found; it goes on from `top`, unless there is nothing behind it."""
    behind = await broker.find(JobFilter(from_seq=floor), limit=1, after=top)
    return Found(jobs, top, behind[0].submitted) if behind else Found(jobs)
