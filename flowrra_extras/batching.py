"""Group commit: the calls of concurrent callers are sent to a store together.

    batcher = Batcher(send, limit=1_000)
    answer = await batcher.put(item)

While one group is being sent, the items of other callers are collected for the next group. One transaction, one
script or one statement then serves the whole group. This module does not know jobs and stores.
"""

import asyncio
import collections
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

from flowrra import BrokerError

Item = TypeVar("Item")
Answer = TypeVar("Answer")

__all__ = ["Batcher", "closed", "end_task"]


class Batcher(Generic[Item, Answer]):
    """Sends the items of concurrent callers in groups, one group at a time, on the running loop.

    Args:
        send: takes the items of a group and returns one answer per item, in the same order. If an answer is an
            exception, it is raised in that caller only. If `send` raises, all callers of the group get the exception.
        limit: the maximum weight of a group. An item that weighs more is sent alone.
        in_place: send immediately, in the caller's task, if no group is being sent. This saves 15 us, but if that call
            is cancelled, `send` is cancelled too, and `close` does not wait for it. Otherwise a group is sent in the
            next turn of the loop, together with all items of this turn.
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
        """Send `item` with the next group, and return its answer.

        If the call is cancelled, the item may or may not be sent. Other items are not affected.

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
        """Stop sending. Waiting callers get a BrokerError; a group that was already sent may still arrive."""
        self._is_closed = True
        await end_task(self._task)
        while self._waiting:
            _fail(self._waiting.popleft()[2], closed())

    async def _send_all(self) -> None:
        try:
            while group := self._next_group():
                await self._send_group(group)
                await asyncio.sleep(0)  # callers that were just answered may put their next item in the same group
        finally:
            self._is_sending = False
            self._task = None

    def _next_group(self) -> list[tuple[Item, asyncio.Future[Answer]]]:
        """Return the items that have waited longest, without those whose callers were cancelled."""
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


async def end_task(task: asyncio.Task[Any] | None) -> None:
    """Cancel a task, if there is one, and wait for its end."""
    if task is not None:
        task.cancel()
        await asyncio.wait([task])


def closed() -> BrokerError:
    """Return the error for calls that are waiting when a broker is closed."""
    return BrokerError("the broker was closed while this call was waiting")
