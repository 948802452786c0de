"""What clients do while a server does not answer: pauses between attempts, and few lines in the log."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterator

from flowrra import BrokerError, StoreStatus, describe, jittered, logger

__all__ = ["listen", "note_outage", "pauses"]


def pauses() -> Iterator[float]:
    """Yield seconds to wait before each attempt, without end: at most half a second.

    The first is 0; the others are random.
    """
    yield 0.0
    yield from map(jittered, itertools.chain((0.02, 0.05, 0.1, 0.2), itertools.repeat(0.5)))


def note_outage(status: StoreStatus, name: str, error: Exception, timeout: float) -> str:
    """Store and return why a server does not answer. Log it when the outage begins, and not again with each attempt."""
    why = str(error) or "it is silent"
    if not status.problem:
        logger.warning("%s does not answer (%s); trying again for up to %g s", name, why, timeout)
    status.problem = why
    return why


async def listen(
    follow: Callable[[], Awaitable[None]], name: str, lost: tuple[type[Exception], ...] = (BrokerError, OSError)
) -> None:
    """Receive messages with `follow`. It returns or raises one of `lost` without a connection, and is called again."""
    for failures in itertools.count():
        try:
            await follow()
        except lost as error:
            if failures % 20 == 0:
                logger.warning("%s: cannot receive messages (%s); trying again", name, describe(error))
        await asyncio.sleep(jittered(0.5))
