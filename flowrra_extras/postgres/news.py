"""Those who wait for jobs, news and results; what is heard of them, and what others are told."""

from __future__ import annotations

import asyncio
import collections
import functools
import itertools
import json
import logging
import secrets
from typing import TYPE_CHECKING

from flowrra import BrokerError, Clock, FlowrraError
from flowrra_extras.batching import Batcher
from flowrra_extras.postgres import statements as sql
from flowrra_extras.postgres.connections import Address, Ear, Link, Session

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Waits"]

logger = logging.getLogger("flowrra")

_LOOK_EVERY = 1.0  # seconds between looks, should a notification have been lost


class Mouth:
    """Tells other processes what was committed: what gathers while one notice is on its way is the next."""

    def __init__(self, link: Link, token: str) -> None:
        self._link = link
        self._token = token  # tells our own notices from those of others
        self._finished: list[str] = []
        self._news: dict[str, str] = {}  # channel > the queue that has news, "" if several have
        self._task: asyncio.Task[None] | None = None

    def tell(self, finished: Iterable[str], news: Iterable[tuple[str, str]]) -> None:
        """Tell who awaits one of the finished jobs, and who listens to a channel that a queue has news."""
        self._finished += finished
        for channel, queue in news:
            self._news[channel] = queue if self._news.get(channel, queue) == queue else ""
        if self._task is None and (self._finished or self._news):
            self._task = asyncio.create_task(self._send())

    async def _send(self) -> None:
        try:
            while self._finished or self._news:
                finished, self._finished = self._finished, []
                news, self._news = self._news, {}
                payloads = [f"{self._token} {queue}" for queue in news.values()]
                await self._link.run(functools.partial(_tell, finished, list(news), payloads))
        except FlowrraError as error:
            logger.warning("nobody is told of what has changed, but they will look: %s", error)
        finally:
            self._task = None

    async def close(self) -> None:
        """Say what is still to be said."""
        if self._task is not None:
            await asyncio.wait([self._task], timeout=1.0)
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])


async def _tell(finished: Sequence[str], channels: Sequence[str], payloads: Sequence[str], session: Session) -> None:
    await session.fetch(sql.TELL, finished, channels, payloads)


class Waits:
    """Who waits here for jobs, news and results, what has been heard of them, and what others are told."""

    def __init__(self, address: Address, link: Link, clock: Clock) -> None:
        self._link = link
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._is_pooled = address.is_pooled
        token = secrets.token_hex(8)
        self._token = token
        self._jobs, self._news, self._results = (f"{address.schema}_{kind}" for kind in ("jobs", "notices", token))
        self._mouth = Mouth(link, token)
        self.ear = Ear(address, self._hear)
        self._heard: collections.Counter[str | None] = collections.Counter()  # by queue; "" for news, None for all
        self._seen: dict[str, int] = {}  # what had been heard before the latest claim or heartbeat
        self._ready: dict[asyncio.Future[None], Sequence[str]] = {}
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}
        self._announced: set[str] = set()
        self._announces: Batcher[str, None] = Batcher(self._announce_group)
        self._look_timer: asyncio.TimerHandle | None = None

    async def close(self) -> None:
        if self._look_timer is not None:
            self._look_timer.cancel()
        await self._announces.close()
        await self._mouth.close()
        await self.ear.close()
        closed = BrokerError("the broker was closed while this call was waiting")
        for waiter in (*self._ready, *itertools.chain(*self._waiting.values())):
            if not waiter.done():
                waiter.set_exception(closed)

    # News --------------------------------------------------------------------------------------

    def tell(self, *, ready: Iterable[str | None] = (), news: bool = False, finished: Sequence[str] = ()) -> None:
        """Let everybody know, here and elsewhere, of queues with news (None: any), and of jobs that have ended."""
        queues = list(ready)
        self.tell_here(queues)
        if news:
            self._wake("")
        self._resolve(finished)
        told = [(self._jobs, queue or "") for queue in queues] + ([(self._news, "")] if news else [])
        self._mouth.tell(finished, told)

    def tell_here(self, queues: Iterable[str | None]) -> None:
        """Let only those know who wait here."""
        for queue in queues:
            self._wake(queue)

    def notice(self, queue: str) -> tuple[str, str]:
        """Channel and payload that tell of jobs in a queue."""
        return self._jobs, f"{self._token} {queue}"

    def _hear(self, channel: str, payload: str | None) -> None:
        """What was notified; None: anything may have been."""
        if channel == self._results:
            self._resolve(json.loads(payload) if payload else list(self._waiting))
            return
        token, _, queue = (payload or "").partition(" ")
        if token != self._token:
            self._wake("" if channel == self._news else queue or None)

    def _wake(self, queue: str | None) -> None:
        self._heard[queue] += 1
        for waiter, queues in self._ready.items():
            if (queue in queues if queue else not queues) or (queue is None and queues):
                _resolve(waiter)

    def _resolve(self, ids: Iterable[str]) -> None:
        for task_id in ids if self._waiting else ():
            self._announced.discard(task_id)
            for waiter in self._waiting.pop(task_id, ()):
                _resolve(waiter)

    # Jobs and news -----------------------------------------------------------------------------

    def look(self, queue: str) -> None:
        """Somebody looks now for jobs of the queue, or for news ("")."""
        self._seen[queue] = self._count(queue)

    def _count(self, queue: str) -> int:
        return self._heard[queue] + (self._heard[None] if queue else 0)

    async def wait_ready(self, queues: Sequence[str], timeout: float, next_due: float | None) -> None:
        self.ear.want(self._jobs if queues else self._news)
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

    # Results -----------------------------------------------------------------------------------

    def expect(self, task_id: str) -> asyncio.Future[None]:
        """What is done when the job has ended, or may have."""
        if self._look_timer is None:
            self._look_timer = self._loop.call_later(_LOOK_EVERY, self._look_again)
        waiter = self._loop.create_future()
        self._waiting.setdefault(task_id, []).append(waiter)
        return waiter

    def expect_no_more(self, task_id: str, waiter: asyncio.Future[None]) -> None:
        waiters = self._waiting.get(task_id, [])
        if waiter in waiters:
            waiters.remove(waiter)
        if not waiters:
            self._waiting.pop(task_id, None)
            self._announced.discard(task_id)

    async def announce(self, task_id: str) -> bool:
        """Have whoever ends the job tell this process. True if that is new: then it may have ended before."""
        if self._is_pooled or task_id in self._announced:
            return False
        self.ear.want(self._results)
        await self._announces.put(task_id)
        self._announced.add(task_id)
        return True

    async def _announce_group(self, ids: list[str]) -> list[None]:
        await self._link.run(lambda session: session.fetch(sql.AWAIT, ids, self._results))
        return [None] * len(ids)

    def _look_again(self) -> None:
        """Have all who wait look for themselves, as long as somebody does."""
        self._look_timer = None
        for waiter in list(itertools.chain(*self._waiting.values())):
            _resolve(waiter)


def _resolve(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
