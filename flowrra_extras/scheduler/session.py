"""One connection that is there when it is needed: made anew when it was lost, its schema looked after."""

import asyncio
import contextlib
import itertools
import math
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from flowrra import BackendError, FlowrraError, describe
from flowrra_extras.scheduler.database import Database, Link

T = TypeVar("T")

_CLOSE_LIMIT = 1.0  # seconds: a server that is silent is not waited for
_TRIES = 5  # of a transaction to which others are preferred
_SET_VERSION = "INSERT INTO flowrra_schedule_meta VALUES (:version)"


class Session:
    """Runs one call after the other on a link to the database; `SQLScheduleStore` says what a call promises."""

    def __init__(self, database: Database, migrations: Sequence[Sequence[str]], timeout: float) -> None:
        self._database = database
        self._dialect = database.dialect
        self._migrations = migrations
        self._timeout = timeout
        self._link: Link | None = None
        self._lock: asyncio.Lock | None = None  # held by whoever uses the link; None: not open
        self._answered = -math.inf  # when a call came through last, on the loop's clock
        self._pid = os.getpid()
        self._inherited: Link | None = None

    async def open(self) -> None:
        if self._pid != os.getpid():  # the parent of a fork goes on to use its link: neither used nor collected
            self._inherited, self._link, self._pid = self._link, None, os.getpid()
        self._lock, self._answered = asyncio.Lock(), -math.inf  # another loop has another clock
        await self.call(lambda link: link.is_alive())

    async def close(self) -> None:
        lock, self._lock = self._lock, None
        link = self._link
        try:
            async with asyncio.timeout(_CLOSE_LIMIT), lock or contextlib.nullcontext():
                if (link := self._link) is not None:
                    await link.close()
        except BaseException as error:
            if link is not None:
                await link.drop()
            if not isinstance(error, Exception):
                raise
        self._link = None

    async def transact(self, work: Callable[[Link], Awaitable[T]]) -> T:
        """Do `work` in a transaction."""

        async def whole(link: Link) -> T:
            await link.execute(self._dialect.begin)
            done = await work(link)
            await link.execute("COMMIT")
            return done

        return await self.call(whole)

    async def call(self, work: Callable[[Link], Awaitable[T]]) -> T:
        """Do `work` on the link, again if another transaction was preferred.

        The time-out counts from the call, or from the last answer to one before it: to wait in a long line
        is no failure as long as the store answers, and if it does not, all who wait are told at once.
        """
        loop, lock = asyncio.get_running_loop(), self._lock
        began = loop.time()
        try:
            async with lock or contextlib.nullcontext():
                if lock is None or lock is not self._lock:  # closed while this call was waiting
                    raise BackendError(f"the store of schedules in {self._database.place} is not open")
                async with asyncio.timeout_at(max(began, self._answered) + self._timeout):
                    done = await self._insist(work)
                self._answered = loop.time()
                return done
        except FlowrraError:
            raise
        except TimeoutError as error:
            raise BackendError(f"{self._database.place}: no answer in time (timeout={self._timeout:g})") from error
        except Exception as error:  # drivers raise what they like when a server goes away
            raise BackendError(f"{self._database.place}: {describe(error)}") from error

    async def _insist(self, work: Callable[[Link], Awaitable[T]]) -> T:
        for _ in range(_TRIES - 1):
            try:
                return await self._try(work)
            except Exception as error:
                if self._dialect.code(error) not in self._dialect.conflicts:
                    raise
        return await self._try(work)

    async def _try(self, work: Callable[[Link], Awaitable[T]]) -> T:
        link = await self._connected()
        try:
            return await work(link)
        except BaseException:
            if await link.drop():
                self._link = None
            raise

    async def _connected(self) -> Link:
        if self._link is not None:
            if await self._link.is_alive():
                return self._link
            await self._link.drop()
            self._link = None
        connecting = asyncio.ensure_future(self._connect())
        try:
            self._link = link = await asyncio.shield(connecting)
        except asyncio.CancelledError:
            # Drivers leave loose ends if they are stopped half-way. The next caller will use it.
            await asyncio.wait([connecting])
            self._link = None if connecting.exception() else connecting.result()
            raise
        return link

    async def _connect(self) -> Link:
        async with asyncio.timeout(self._timeout / 2):
            link = await self._database.connect(self._timeout / 2)
            try:
                await self._migrate(link)
            except BaseException:
                await link.drop()
                raise
            return link

    # The schema --------------------------------------------------------------------------------

    async def _migrate(self, link: Link) -> None:
        if await self._version(link) == len(self._migrations):
            return
        await link.execute(self._dialect.begin)
        if self._dialect.lock:
            await link.fetch(self._dialect.lock)  # the time-out of the call bounds the wait
        version = await self._version(link)
        for statement in itertools.chain.from_iterable(self._migrations[version:]):
            await link.execute(*self._dialect.bind(statement, {}))
        await link.execute("DELETE FROM flowrra_schedule_meta")
        await link.execute(*self._dialect.bind(_SET_VERSION, {"version": len(self._migrations)}))
        await link.execute("COMMIT")
        if self._dialect.unlock:
            await link.fetch(self._dialect.unlock)

    async def _version(self, link: Link) -> int:
        if not await link.fetch(self._dialect.existing):
            return 0
        rows = await link.fetch("SELECT coalesce(max(version), 0) FROM flowrra_schedule_meta")
        version = int(rows[0][0])
        if version > len(self._migrations):
            newest = len(self._migrations)
            raise BackendError(
                f"{self._database.place} has schema {version} of schedules, newer than the {newest} of this flowrra: "
                "upgrade it"
            )
        return version
