"""Those who wait for what is published: for jobs in a queue, for results, for notices."""

from __future__ import annotations

import asyncio
import collections
import itertools
import json
from typing import TYPE_CHECKING

from flowrra import BrokerError
from flowrra_extras.redis.wire import Ear

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowrra_extras.redis.wire import Address

__all__ = ["News"]

_LOOK_EVERY = 5.0  # seconds between looks for results, should a message have been lost


class News:
    """The waiters of one broker. A channel is listened to from the first wait on; that counts as news of all kinds."""

    def __init__(self, address: Address) -> None:
        self._ear = Ear(address, self._hear)
        self._heard: collections.Counter[str] = collections.Counter()  # messages by channel, and by queue
        self._looked: dict[str, int] = {}  # what had been heard when somebody last looked
        self._ready: dict[asyncio.Future[None], Sequence[str]] = {}  # the queues, or none for notices
        self._results: dict[str, list[asyncio.Future[None]]] = {}
        self._look_timer: asyncio.TimerHandle | None = None

    async def close(self) -> None:
        """Stop listening. Those who wait get a BrokerError."""
        if self._look_timer is not None:
            self._look_timer.cancel()
        await self._ear.close()
        for waiter in (*self._ready, *itertools.chain(*self._results.values())):
            if not waiter.done():
                waiter.set_exception(BrokerError("the broker was closed while this call was waiting"))

    def _hear(self, channel: str, text: str | None) -> None:
        """What was published; None: anything may have been."""
        if channel == "results":
            for task_id in list(self._results) if text is None else json.loads(text):
                for waiter in self._results.pop(task_id, ()):
                    _resolve(waiter)
            return
        topic = channel if channel == "notices" or text is None else f"jobs {text}"
        self._heard[topic] += 1
        for waiter, queues in self._ready.items():
            if not queues if channel == "notices" else queues and (text is None or text in queues):
                _resolve(waiter)

    # Jobs and notices --------------------------------------------------------------------------

    def look(self, queue: str | None) -> None:
        """Somebody is about to look for jobs in `queue`, or for notices: only what comes now is news."""
        self._looked[queue or ""] = self._heard_of(queue)

    def _heard_of(self, queue: str | None) -> int:
        return self._heard["jobs"] + self._heard[f"jobs {queue}"] if queue else self._heard["notices"]

    async def wait_ready(self, queues: Sequence[str], timeout: float) -> None:
        """Return when there is news of one of the queues, or with none of them of other kinds."""
        self._ear.want("jobs" if queues else "notices")
        if any(self._looked.get(queue or "", -1) != self._heard_of(queue) for queue in queues or (None,)):
            return
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        self._ready[waiter] = queues
        timer = loop.call_later(max(0.0, timeout), _resolve, waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            self._ready.pop(waiter, None)

    # Results -----------------------------------------------------------------------------------

    def expect(self, task_id: str) -> asyncio.Future[None]:
        """A future that is done when the job may have ended: to be had before looking whether it has."""
        loop = asyncio.get_running_loop()
        if self._look_timer is None:
            self._look_timer = loop.call_later(_LOOK_EVERY, self._look)
        waiter = loop.create_future()
        self._results.setdefault(task_id, []).append(waiter)
        return waiter

    def listen(self) -> None:
        """Be told of results. When that begins, all who expect one look again."""
        self._ear.want("results")

    def forget(self, task_id: str, waiter: asyncio.Future[None]) -> None:
        """Expect it no more."""
        waiters = self._results.get(task_id, [])
        if waiter in waiters:
            waiters.remove(waiter)
        if not waiters:
            self._results.pop(task_id, None)

    def _look(self) -> None:
        """Have all who wait look for themselves, as long as somebody does."""
        self._look_timer = None
        self._hear("results", None)


def _resolve(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
