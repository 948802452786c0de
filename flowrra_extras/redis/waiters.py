"""Those who wait for what is published: for jobs in a queue, for results, for notices."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

from flowrra_extras.batching import closed
from flowrra_extras.redis.wire import Subscription

if TYPE_CHECKING:
    from collections.abc import Collection

    from flowrra_extras.redis.wire import Address

__all__ = ["Waiters"]


class Waiters:
    """The waiters of one broker. A topic is `jobs QUEUE`, `results ID` or `notices`; its first word is the channel.

    Who says `look(topic)` before looking, and `wait` after it, misses nothing that is published meanwhile.
    """

    def __init__(self, address: Address) -> None:
        self._subscription = Subscription(address, self._on_message)
        self._quiet: set[str] = set()  # topics that have been looked at, and not heard of since
        self._waiters: dict[str, set[asyncio.Future[None]]] = {}
        self._is_closed = False

    def abandon(self) -> None:
        """Stop listening for a loop that has ended."""
        self._is_closed = True
        self._subscription.abandon()

    async def close(self) -> None:
        """Stop listening. Those who wait get a BrokerError."""
        self._is_closed = True
        await self._subscription.close()
        for waiter in set().union(*self._waiters.values()):
            if not waiter.done():
                waiter.set_exception(closed())

    def look(self, topic: str) -> None:
        """Somebody is about to look: only what comes from now on wakes a wait."""
        self._quiet.add(topic)

    def forget(self, topic: str) -> None:
        """Nobody will look any more."""
        self._quiet.discard(topic)

    async def wait(self, topics: Collection[str], timeout: float) -> None:
        """Return when something is published on one of the topics, or after so many seconds."""
        if self._is_closed:
            raise closed()
        for topic in topics:
            self._subscription.want(topic.partition(" ")[0])
        if not self._quiet.issuperset(topics):
            return
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        timer = loop.call_later(max(0.0, timeout), _resolve, waiter)
        for topic in topics:
            self._waiters.setdefault(topic, set()).add(waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            for topic in topics:
                self._waiters[topic].discard(waiter)
                if not self._waiters[topic]:
                    del self._waiters[topic]

    def _on_message(self, channel: str, text: str | None) -> None:
        """What was published; None: anything may have been."""
        if text is None:
            topics = [topic for topic in {*self._quiet, *self._waiters} if topic.startswith(channel)]
        elif channel == "results":
            topics = [f"results {task_id}" for task_id in json.loads(text)]
        else:
            topics = [f"jobs {text}" if channel == "jobs" else channel]
        self._quiet.difference_update(topics)
        for topic in topics:
            for waiter in self._waiters.get(topic, ()):
                _resolve(waiter)


def _resolve(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
