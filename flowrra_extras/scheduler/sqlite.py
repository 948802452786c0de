"""Schedules in a SQLite file, through aiosqlite."""

import asyncio
import datetime as dt
import sqlite3
import time
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiosqlite

from flowrra import MAX_LEASE, ConfigError
from flowrra_extras.scheduler.database import Dialect

_DIALECT = Dialect(
    mark=lambda number: "?",
    begin="BEGIN IMMEDIATE",  # so that transactions wait for each other at their begin, where nothing is lost
    serial="INTEGER PRIMARY KEY",
    moment="TEXT",  # UTC, "2026-11-25 06:33:24.123456": of one length, so that they sort
    lease="REAL",  # on the monotonic clock of this boot: everyone is on one host
    index="""CREATE INDEX flowrra_schedule_due ON flowrra_schedule (enabled, next_fire, seq)
        WHERE enabled = TRUE AND next_fire IS NOT NULL""",
    existing="SELECT 1 FROM sqlite_master WHERE name = 'flowrra_schedule_meta'",
    # A lease that is too long to be true is of an earlier boot.
    free=f"(lease IS NULL OR lease <= :clock OR lease > :clock + {MAX_LEASE})",
    until=":clock + :lease",
    to_column=lambda moment: moment.replace(tzinfo=None).isoformat(" ", "microseconds"),
    from_column=lambda text: dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC),
    code=lambda error: getattr(error, "sqlite_errorname", None),
    duplicate="SQLITE_CONSTRAINT_UNIQUE",
)


class SQLite:
    """A SQLite file; without `path`, private and in memory."""

    dialect = _DIALECT

    def __init__(self, path: str | None) -> None:
        self._path = None if path is None else str(Path(path).absolute())

    @property
    def place(self) -> str:
        return self._path or "SQLite in memory"

    async def connect(self, timeout: float) -> "_Link":
        # Half the time, so that a file that stays locked is told as such and not as a time-out.
        connection = aiosqlite.Connection(lambda: _open(self._path, timeout / 2), 64)
        # A program that ends without closing the store would wait for its thread for ever.
        thread: Any = getattr(connection, "_thread", connection)  # before 0.22 the connection was the thread
        thread.daemon = True
        try:
            return _Link(await connection, self._path is None)
        except Exception:
            await asyncio.to_thread(thread.join, timeout)  # its last word is for this loop, which may be closed next
            raise


class _Link:
    def __init__(self, connection: aiosqlite.Connection, is_all_there_is: bool) -> None:
        self._connection = connection
        self._is_all_there_is = is_all_there_is

    async def is_alive(self) -> bool:
        return True

    async def fetch(self, statement: str, values: Sequence[Any] = ()) -> Sequence[Sequence[Any]]:
        return list(await self._connection.execute_fetchall(statement, values))

    async def execute(self, statement: str, values: Sequence[Any] = ()) -> int:
        async with self._connection.execute(statement, values) as cursor:
            return cursor.rowcount

    async def execute_each(self, statement: str, rows: Sequence[Sequence[Any]]) -> None:
        async with self._connection.executemany(statement, rows):
            pass

    async def drop(self) -> bool:
        # Comes after whatever a cancelled caller has left in the thread's queue.
        if self._is_all_there_is:
            await self._connection.rollback()
        else:
            await self._connection.close()
        return not self._is_all_there_is

    async def close(self) -> None:
        await self._connection.close()


def _open(path: str | None, patience: float) -> sqlite3.Connection:
    connection = sqlite3.connect(path or ":memory:", timeout=patience, isolation_level=None)
    try:
        _use_wal(connection, time.monotonic() + patience)
        connection.execute("PRAGMA synchronous=FULL")
    except BaseException:
        connection.close()
        raise
    return connection


def _use_wal(connection: sqlite3.Connection, deadline: float) -> None:
    """Readers never wait for a writer then. SQLite's own patience does not cover this one."""
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                raise
            time.sleep(0.005)
        else:
            return


def database_from_url(url: str) -> SQLite:
    parts = urllib.parse.urlsplit(url)
    if parts.netloc or parts.fragment or parts.path == "/:memory:":
        form = "sqlite:///name.db or sqlite:////folder/name.db, with %23 for #; sqlite:// is private and in memory"
        raise ConfigError(f"{url!r} names no file: that is {form}")
    if parts.query:
        raise ConfigError(f"{url!r} has options, of which a SQLite store of schedules knows none")
    return SQLite(urllib.parse.unquote(parts.path)[1:] or None)
