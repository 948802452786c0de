"""A value that takes long to find, shared by all who ask and found again behind their backs."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")

logger = logging.getLogger("flowrra.dashboard")

REST = 20  # a search rests for so many times its own length, which bounds its load to a twentieth of a core
LEAST_REST = 0.05  # seconds: a small store is counted anew at each look
GLANCE = 0.005  # seconds that one waits for a value that may be left out
PATIENCE = 0.02  # seconds that a page waits for a newer value when it has an older one


class _Found(NamedTuple, Generic[T]):
    value: T
    at: float  # on the loop's clock
    took: float


class Fresh(Generic[T]):
    """What `find` gave lately. Any number of askers cause one search at a time, and few of them.

    The first asker waits for the search; a later one gets what there is if a newer value takes too long.
    """

    def __init__(self, find: Callable[[], Awaitable[T]]) -> None:
        self._find = find
        self._found: _Found[T] | None = None
        self._search: asyncio.Task[_Found[T]] | None = None
        self._has_failed = False

    async def get(self) -> T:
        """The value. A search that fails is the asker's trouble only if there is no older value.

        Cancelling it leaves the search to those who come next.
        """
        search = self._current()
        if search is not None:
            await asyncio.wait({search}, timeout=None if self._found is None else PATIENCE)
        if self._found is None and search is not None:
            return search.result().value
        return cast("_Found[T]", self._found).value

    async def glance(self) -> T | None:
        """The value; None if it takes too long to find for the first time, or cannot be found."""
        search = self._current()
        if search is not None:
            await asyncio.wait({search}, timeout=GLANCE)
        return None if self._found is None else self._found.value

    def _current(self) -> asyncio.Task[_Found[T]] | None:
        """The latest search: a new one, if it is time for that."""
        if self._is_due():
            self._search = asyncio.create_task(self._look())
            self._search.add_done_callback(self._note)
        return self._search

    def _is_due(self) -> bool:
        loop = asyncio.get_running_loop()
        if self._search is not None and self._search.get_loop() is not loop:
            self._search = self._found = None  # an app that was opened again on another loop
        if self._search is not None and not self._search.done():
            return False
        return self._found is None or loop.time() - self._found.at > max(LEAST_REST, REST * self._found.took)

    async def _look(self) -> _Found[T]:
        clock = asyncio.get_running_loop().time
        begin = clock()
        value = await self._find()
        end = clock()
        return _Found(value, end, end - begin)

    def _note(self, search: asyncio.Task[_Found[T]]) -> None:
        if search.cancelled():
            return
        error = search.exception()
        if error is None:
            self._found = search.result()
        elif not self._has_failed:  # once: it is tried again at each look
            logger.warning("the dashboard shows older figures: %s", error)
        self._has_failed = error is not None

    def forget(self) -> None:
        """Have the next asker wait for a new value: something was changed from here."""
        if self._found is not None:
            self._found = self._found._replace(at=float("-inf"))

    async def close(self) -> None:
        """End a search that is under way."""
        if self._search is not None and not self._search.done():
            self._search.cancel()
            await asyncio.wait({self._search})
