"""Those who wait for jobs, notices and results, and the notifications that wake them, here and elsewhere."""

from __future__ import annotations

import asyncio
import collections
import itertools
import json
import logging
import secrets
from typing import TYPE_CHECKING

from flowrra import Clock, FlowrraError
from flowrra_extras.batching import Batcher, closed
from flowrra_extras.postgres import statements as sql
from flowrra_extras.postgres.connections import Address, Link, Listener

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Waits"]

logger = logging.getLogger("flowrra")

_LOOK_EVERY = 1.0  # seconds between looks, should a notification have been lost
Waiter = asyncio.Future[None]


class Waits:
    """Who waits here for jobs, notices and results, which notifications came in, and which are to go out.

    A queue's name stands for its jobs, None for those of some queue, "" for notices to a worker.
    """

    def __init__(self, address: Address, link: Link, clock: Clock) -> None:
        self._link = link
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._is_pooled = address.is_pooled
        self._token = secrets.token_hex(8)  # tells our own notifications from those of others
        self._jobs, self._notices, self._results = (
            f"{address.schema}_{kind}" for kind in ("jobs", "notices", self._token)
        )
        self.listener = Listener(address, self._receive)
        self._signals: collections.Counter[str | None] = collections.Counter()
        self._seen: dict[str, int] = {}  # signals before the latest claim or heartbeat
        self._ready: dict[Waiter, Sequence[str]] = {}
        self._waiting: dict[str, list[Waiter]] = {}  # for the end of a job
        self._announced: set[str] = set()
        self._announces: Batcher[str, None] = Batcher(self._announce_group)
        self._look_timer: asyncio.TimerHandle | None = None
        self._unsent: dict[str, str] = {}  # channel > the queue with jobs, "" for several
        self._unsent_ends: list[str] = []  # jobs that have ended
        self._sending: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """Say what is still to be said, within a second. Who still waits gets a BrokerError."""
        if self._look_timer is not None:
            self._look_timer.cancel()
        await self._announces.close()
        if self._sending is not None:
            await asyncio.wait([self._sending], timeout=1.0)
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.wait([self._sending])
        await self.listener.close()
        for waiter in (*self._ready, *itertools.chain(*self._waiting.values())):
            if not waiter.done():
                waiter.set_exception(closed())
                waiter.exception()  # whoever is looking just now does not come back to it

    # Sending -----------------------------------------------------------------------------------

    def notify(self, *, ready: Iterable[str | None] = (), notices: bool = False, finished: Sequence[str] = ()) -> None:
        """Let everybody know, here and elsewhere, of queues with jobs, of notices, and of jobs that have ended.

        What gathers while one notification is on its way is the next.
        """
        for queue in (*ready, *([""] if notices else ())):
            self.wake(queue)
            channel = self._notices if queue == "" else self._jobs
            self._unsent[channel] = (queue or "") if self._unsent.get(channel, queue) == queue else ""
        self._resolve(finished)
        self._unsent_ends += finished
        if self._sending is None and (self._unsent or self._unsent_ends):
            self._sending = self._loop.create_task(self._send())

    async def _send(self) -> None:
        try:
            while self._unsent or self._unsent_ends:
                finished, self._unsent_ends = self._unsent_ends, []
                signals, self._unsent = self._unsent, {}
                payloads = [f"{self._token} {queue}" for queue in signals.values()]
                await self._link.fetch(sql.NOTIFY, finished, list(signals), payloads)
        except FlowrraError as error:
            logger.warning("nobody is told of what has changed, but they will look: %s", error)
        finally:
            self._sending = None

    def notice(self, queue: str) -> tuple[str, str]:
        """Channel and payload that notify others of jobs in a queue."""
        return self._jobs, f"{self._token} {queue}"

    # Receiving ---------------------------------------------------------------------------------

    def _receive(self, channel: str, payload: str | None) -> None:
        """What was notified; None: anything may have been."""
        if channel == self._results:
            self._resolve(json.loads(payload) if payload else list(self._waiting))
            return
        token, _, queue = (payload or "").partition(" ")
        if token != self._token:
            self.wake("" if channel == self._notices else queue or None)

    def wake(self, queue: str | None) -> None:
        """Let those know who wait here."""
        self._signals[queue] += 1
        for waiter, queues in self._ready.items():
            if (queue in queues if queue else not queues) or (queue is None and queues):
                _resolve(waiter)

    def _resolve(self, ids: Iterable[str]) -> None:
        for task_id in ids if self._waiting else ():
            self._announced.discard(task_id)
            for waiter in self._waiting.pop(task_id, ()):
                _resolve(waiter)

    # Waiting for jobs and notices --------------------------------------------------------------

    def look(self, queue: str) -> None:
        """Somebody looks now for jobs of the queue, or for notices ("")."""
        self._seen[queue] = self._count(queue)

    def _count(self, queue: str) -> int:
        return self._signals[queue] + (self._signals[None] if queue else 0)

    async def wait_ready(self, queues: Sequence[str], timeout: float, next_due: float | None) -> None:
        self.listener.want(self._jobs if queues else self._notices)
        if any(self._seen.get(queue, -1) != self._count(queue) for queue in queues or ("",)):
            return
        if queues:
            timeout = min(timeout, _LOOK_EVERY)
            if next_due is not None:
                timeout = min(timeout, next_due - self._clock.time())
        waiter = self._loop.create_future()
        self._ready[waiter] = queues
        timer = self._loop.call_later(max(0.0, timeout), _resolve, waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            self._ready.pop(waiter, None)

    # Waiting for results -----------------------------------------------------------------------

    def expect(self, task_id: str) -> Waiter:
        """What is done when the job has ended, or may have."""
        if self._look_timer is None:
            self._look_timer = self._loop.call_later(_LOOK_EVERY, self._look_again)
        waiter = self._loop.create_future()
        self._waiting.setdefault(task_id, []).append(waiter)
        return waiter

    def expect_no_more(self, task_id: str, waiter: Waiter) -> None:
        waiters = self._waiting.get(task_id, [])
        if waiter in waiters:
            waiters.remove(waiter)
        if not waiters:
            self._waiting.pop(task_id, None)
            self._announced.discard(task_id)

    async def announce(self, task_id: str) -> bool:
        """Have whoever ends the job notify this process. True if that is new: then it may have ended before."""
        if self._is_pooled or task_id in self._announced:
            return False
        self.listener.want(self._results)
        await self._announces.put(task_id)
        self._announced.add(task_id)
        return True

    async def _announce_group(self, ids: list[str]) -> list[None]:
        await self._link.fetch(sql.AWAIT, ids, self._results)
        return [None] * len(ids)

    def _look_again(self) -> None:
        """Have all who wait look for themselves, as long as somebody does."""
        self._look_timer = None
        for waiter in list(itertools.chain(*self._waiting.values())):
            _resolve(waiter)


def _resolve(waiter: Waiter) -> None:
    if not waiter.done():
        waiter.set_result(None)
