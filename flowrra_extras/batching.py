"""Group commit: what concurrent callers want of a store goes out together.

    batcher = Batcher(send, limit=1_000)
    answer = await batcher.put(item)

While one group is on its way, what other callers put in gathers and is the next one: one transaction,
one script or one statement serves them all. Knows nothing of jobs and stores.
"""

from __future__ import annotations

import asyncio
import collections
from typing import TYPE_CHECKING, Generic, TypeVar

from flowrra import BrokerError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

Item = TypeVar("Item")
Answer = TypeVar("Answer")

__all__ = ["Batcher", "closed"]


class Batcher(Generic[Item, Answer]):
    """Sends the items of concurrent callers in groups, one group at a time, on the running loop.

    `send` takes the items of a group and returns an answer for each, in their order; where that is an
    exception it is raised for that caller alone. If `send` itself raises, all of the group get that.
    A group weighs at most `limit`, or is one item that weighs more. A lone caller waits for nobody: its
    group leaves in the next turn of the loop, with whatever else has come in this one. With `in_place` it
    leaves at once, on the caller's own task, which saves 15 us: then cancelling that call cancels `send`,
    and `close` leaves it to whatever `send` waits for.
    """

    def __init__(
        self,
        send: Callable[[list[Item]], Awaitable[Sequence[Answer | BaseException]]],
        *,
        limit: int = 1_000,
        in_place: bool = False,
    ):
        self._send = send
        self._limit = limit
        self._in_place = in_place
        self._waiting: collections.deque[tuple[Item, int, asyncio.Future[Answer]]] = collections.deque()
        self._is_sending = False
        self._task: asyncio.Task[None] | None = None  # there while it has something to send
        self._is_closed = False

    async def put(self, item: Item, weight: int = 1) -> Answer:
        """Have `item` sent with the next group, and return its answer.

        Cancelling the call leaves it open whether the item goes out; its neighbours do not notice.

        Raises:
            BrokerError: the batcher has been closed, before the call or during it.
        """
        if self._is_closed:
            raise closed()
        if self._in_place and not self._is_sending:
            return await self._send_in_place(item)
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, weight, future))
        self._start()
        return await future

    async def _send_in_place(self, item: Item) -> Answer:
        self._is_sending = True
        try:
            (answer,) = await self._send([item])
        finally:
            self._is_sending = False
            self._start()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def _start(self) -> None:
        if self._waiting and not self._is_sending and not self._is_closed:
            self._is_sending = True
            self._task = asyncio.get_running_loop().create_task(self._send_all())

    async def close(self) -> None:
        """Stop sending. Callers that still wait get a BrokerError; what is on its way may arrive."""
        self._is_closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        while self._waiting:
            _fail(self._waiting.popleft()[2], closed())

    async def _send_all(self) -> None:
        try:
            while group := self._next_group():
                await self._send_group(group)
                await asyncio.sleep(0)  # who has just been answered may come again: in one group with those who waited
        finally:
            self._is_sending = False
            self._task = None

    def _next_group(self) -> list[tuple[Item, asyncio.Future[Answer]]]:
        """The items that have waited longest, without those whose callers have gone."""
        group: list[tuple[Item, asyncio.Future[Answer]]] = []
        room = self._limit
        while self._waiting and (not group or self._waiting[0][1] <= room):
            item, weight, future = self._waiting.popleft()
            if not future.done():
                group.append((item, future))
                room -= weight
        return group

    async def _send_group(self, group: list[tuple[Item, asyncio.Future[Answer]]]) -> None:
        try:
            answers = await self._send([item for item, _ in group])
        except BaseException as error:
            told = error if isinstance(error, Exception) else closed()
            for _, future in group:
                _fail(future, told)
            if told is not error:
                raise
            return
        for (_, future), answer in zip(group, answers, strict=True):
            if isinstance(answer, BaseException):
                _fail(future, answer)
            elif not future.done():
                future.set_result(answer)


def _fail(future: asyncio.Future[Answer], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)


def closed() -> BrokerError:
    """What those get who wait when a broker is closed."""
    return BrokerError("the broker was closed while this call was waiting")
