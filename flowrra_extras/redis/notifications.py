"""Published messages, which wake callers that wait for jobs, results and notices."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from flowrra import WaiterHub
from flowrra_extras.batching import closed
from flowrra_extras.redis.connection import Subscription

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from flowrra import Topic
    from flowrra_extras.redis.connection import Address

__all__ = ["Notifications"]

_CHANNELS = {"queue": "jobs", "job": "results", "worker": "notices"}
_KINDS = {channel: kind for kind, channel in _CHANNELS.items()}


class Notifications:
    """The callers that wait on this loop (`hub`), and the channels that wake them."""

    def __init__(self, address: Address) -> None:
        self.hub = WaiterHub()
        self._subscription = Subscription(address, self._on_message)

    async def abandon(self) -> None:
        """Stop listening for a loop that has ended."""
        await self._subscription.abandon()

    async def close(self) -> None:
        """Stop listening. Waiting callers get a BrokerError."""
        await self._subscription.close()
        self.hub.close(closed())

    def want(self, topics: Sequence[Topic]) -> None:
        """Start to listen for these topics."""
        for kind, _ in topics:
            self._subscription.want(_CHANNELS[kind])

    def _on_message(self, channel: str, text: str | None) -> None:
        """Handle a published message. A text of None means that some may have been missed; "" means all queues."""
        kind = _KINDS[channel]
        if not text:  # any queue, or anything since this began
            self.hub.wake_all(kind)
            return
        names: Iterable[str] = json.loads(text) if kind == "job" else [text if kind == "queue" else ""]
        for name in names:
            self.hub.wake((kind, name))
