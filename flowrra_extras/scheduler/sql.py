"""Schedules in SQL: the statements, the connection, the dialects, and the database SQLite.

A `Database` is a dialect and how to connect. `mysql` and `postgresql` have the other two.
"""

import asyncio
import contextlib
import datetime as dt
import itertools
import json
import math
import os
import re
import sqlite3
import time
import urllib.parse
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import flowrra
from flowrra_extras.scheduler.store import FIELDS, ScheduleStore, check_changes, check_lease

T = TypeVar("T")

_MOMENTS = frozenset(("anchor", "next_fire", "last_fire", "created", "updated"))
_RULE_KINDS = ("cron", "interval", "once")
_NAME_LENGTH = 255  # of what stands in a unique index
_CHUNK = 1_000  # placeholders in one statement; PostgreSQL takes 32,767, SQLite 32,766
_CLOSE_LIMIT = 1.0  # seconds: a server that is silent is not waited for
_TRIES = 5  # of a transaction to which others are preferred


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """The parts of the statements that differ between databases. All other text is shared."""

    table: str = "flowrra_schedule"
    mark: Callable[[int], str]  # the placeholder of value number n, from 1
    begin: str = "BEGIN"
    # Types, and what stands in and after CREATE TABLE.
    serial: str
    name: str = "TEXT"  # a text that an index may hold
    text: str = "TEXT"
    moment: str
    lease: str
    index: str
    index_in_table: str = ""
    table_end: str = ""
    # One who migrates keeps others out; a query that gives a row if there is a schema.
    lock: str | None = None
    unlock: str | None = None
    existing: str
    # Leases, on the clock of the database: `lease` is free again, and where a new one ends.
    free: str
    until: str
    # Handing out, and leaving alone what is there.
    hint: str = ""
    lock_rows: str = ""
    skip_locked: str = ""
    or_leave: str = "ON CONFLICT DO NOTHING"
    # Writes what was fired: `:rows` is a list in JSON of id, next_fire, last_fire and last_job of each schedule.
    advance: str
    # Moments as the driver takes and gives them.
    to_column: Callable[[dt.datetime], Any]
    from_column: Callable[[Any], dt.datetime]
    # What the driver's exceptions mean.
    code: Callable[[Exception], object]
    duplicate: object
    conflicts: Collection[object] = ()  # another transaction was preferred: to be done again

    def bind(self, text: str, values: Mapping[str, Any]) -> tuple[str, list[Any]]:
        """Return a statement and its values in the form that the driver takes.

        A word in braces becomes this dialect's word. `:name` becomes a placeholder; for a list, one per value.
        """
        while "{" in text:
            text = re.sub(r"{(\w+)}", lambda word: str(getattr(self, word[1])), text)
        bound: list[Any] = []

        def marks(name: re.Match[str]) -> str:
            value = values[name[1]]
            start = len(bound) + 1
            bound.extend(value if isinstance(value, list) else [value])
            return ", ".join(self.mark(number) for number in range(start, len(bound) + 1))

        return re.sub(r":(\w+)", marks, text), bound


class Link(Protocol):
    """A connection on which each statement commits itself, unless a transaction was begun."""

    async def is_alive(self) -> bool:
        """Whether the server still knows the connection, as far as this can be said without waiting for a dead one."""
        ...

    async def fetch(self, statement: str, values: Sequence[Any] = ()) -> Sequence[Sequence[Any]]:
        """Run a statement and return its rows."""
        ...

    async def execute(self, statement: str, values: Sequence[Any] = ()) -> int:
        """Run a statement and return how many rows it changed."""
        ...

    async def drop(self) -> bool:
        """Roll back what was begun, in any state and without asking the server. True: the link is now closed."""
        ...

    async def close(self) -> None:
        """Close the connection."""


class Database(NamedTuple):
    """The database of the schedules. `place` is for messages, without user and password."""

    dialect: Dialect
    place: str
    connect: Callable[[float], Awaitable[Link]]  # returns within that number of seconds; is not cancelled


# Statements --------------------------------------------------------------------------------------


def _column(field: str) -> str:
    return "unique_key" if field == "key" else field  # KEY is a word of MySQL's


def _one_of(values: Sequence[str]) -> str:
    return ", ".join(f"'{value}'" for value in values)


# Words in braces are the dialect's. Entry n takes a store from schema n to n + 1.
_MIGRATIONS = (
    (
        f"""CREATE TABLE IF NOT EXISTS {{table}} (
            seq {{serial}},  -- the order of creation
            id {{name}} NOT NULL UNIQUE,
            unique_key {{name}} NOT NULL UNIQUE,
            task {{text}} NOT NULL,
            kind {{name}} NOT NULL,
            rule {{text}} NOT NULL,
            tz {{text}} NOT NULL,
            payload {{text}} NOT NULL,
            options {{text}} NOT NULL,
            misfire {{name}} NOT NULL,
            overlap {{name}} NOT NULL,
            jitter DOUBLE PRECISION NOT NULL,
            enabled BOOLEAN NOT NULL,
            description {{text}},
            anchor {{moment}} NOT NULL,
            next_fire {{moment}},
            last_fire {{moment}},
            last_job {{text}},
            created {{moment}} NOT NULL,
            updated {{moment}} NOT NULL,
            turn BIGINT NOT NULL,
            lease {{lease}},
            CHECK (kind IN ({_one_of(_RULE_KINDS)})),
            CHECK (misfire IN ({_one_of(flowrra.MISFIRES)})),
            CHECK (overlap IN ({_one_of(flowrra.OVERLAPS)})),
            CHECK (jitter >= 0),
            CHECK (lease IS NULL OR (turn > 0 AND enabled = TRUE AND next_fire IS NOT NULL))
            {{index_in_table}}
        ) {{table_end}}""",
        "{index}",
        "CREATE TABLE IF NOT EXISTS {table}_meta (version INTEGER NOT NULL)",
    ),
)

_COLUMNS = ", ".join(map(_column, FIELDS))
_ADD = f"INSERT INTO {{table}} ({_COLUMNS}) VALUES ({', '.join(f':{field}' for field in FIELDS)}) {{or_leave}}"
_HOLDER = """
    SELECT id FROM {table} WHERE unique_key = :key OR id = :id
    ORDER BY CASE WHEN unique_key = :key THEN 0 ELSE 1 END LIMIT 1"""
_FIND = f"SELECT {_COLUMNS} FROM {{table}} ORDER BY seq"
_FIND_SOME = f"SELECT {_COLUMNS}, seq FROM {{table}} WHERE id IN (:ids)"

_DUE = f"""
    SELECT {_COLUMNS} FROM {{table}} {{hint}} WHERE enabled = TRUE AND next_fire <= :now AND {{free}}
    ORDER BY next_fire, seq LIMIT :limit {{skip_locked}}"""
_LEASE = "UPDATE {table} SET turn = turn + 1, lease = {until} WHERE id IN (:ids)"
_NEXT = """
    SELECT next_fire FROM {table} {hint} WHERE enabled = TRUE AND next_fire IS NOT NULL AND {free}
    ORDER BY next_fire LIMIT 1"""

_TAKEN = "SELECT id, turn FROM {table} WHERE id IN (:ids) AND lease IS NOT NULL ORDER BY seq {lock_rows}"
_REMOVE = "DELETE FROM {table} WHERE id = :id"
_PURGE = "DELETE FROM {table} WHERE next_fire IS NULL AND last_fire < :before"
_GET_VERSION = "SELECT coalesce(max(version), 0) FROM {table}_meta"
_FORGET_VERSION = "DELETE FROM {table}_meta"
_SET_VERSION = "INSERT INTO {table}_meta VALUES (:version)"


# The connection ----------------------------------------------------------------------------------


class _Connected(ScheduleStore):
    """The part of the store that connects: one link, reconnected when it was lost, with the schema up to date.

    It runs one call after the other. `SQLScheduleStore` says what a call guarantees.
    """

    def __init__(self, database: Database, clock: flowrra.Clock | None = None, *, timeout: float = 10.0) -> None:
        self._database = database
        self._dialect = database.dialect
        self._clock = clock or flowrra.Clock()
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
        await self._call(lambda link: link.is_alive())

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

    async def _transact(self, work: Callable[[Link], Awaitable[T]]) -> T:
        async def whole(link: Link) -> T:
            await link.execute(self._dialect.begin)
            done = await work(link)
            await link.execute("COMMIT")
            return done

        return await self._call(whole)

    async def _call(self, work: Callable[[Link], Awaitable[T]]) -> T:
        """Run `work` on the link, and again if another transaction had precedence.

        The time-out counts from the call, or from the latest answer to an earlier call: waiting in a long line is not a
        failure while the store answers. If it does not answer, all waiting calls fail at once.
        """
        loop, lock = asyncio.get_running_loop(), self._lock
        began = loop.time()
        try:
            async with lock or contextlib.nullcontext():
                if lock is None or lock is not self._lock:  # closed while this call was waiting
                    raise flowrra.BackendError(f"the store of schedules in {self._database.place} is not open")
                async with asyncio.timeout_at(max(began, self._answered) + self._timeout):
                    done = await self._try_again(work)
                self._answered = loop.time()
                return done
        except flowrra.FlowrraError:
            raise
        except TimeoutError as error:
            raise flowrra.BackendError(
                f"{self._database.place}: no answer in time (timeout={self._timeout:g})"
            ) from error
        except Exception as error:  # drivers raise what they like when a server goes away
            raise flowrra.BackendError(f"{self._database.place}: {flowrra.describe(error)}") from error

    async def _try_again(self, work: Callable[[Link], Awaitable[T]]) -> T:
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

    async def _migrate(self, link: Link) -> None:
        if await self._version(link) == len(_MIGRATIONS):
            return
        await link.execute(self._dialect.begin)
        if self._dialect.lock:
            await link.fetch(self._dialect.lock)  # the time-out of the call bounds the wait
        version = await self._version(link)
        for statement in itertools.chain.from_iterable(_MIGRATIONS[version:]):
            await self._execute(link, statement)
        await self._execute(link, _FORGET_VERSION)
        await self._execute(link, _SET_VERSION, {"version": len(_MIGRATIONS)})
        await link.execute("COMMIT")
        if self._dialect.unlock:
            await link.fetch(self._dialect.unlock)

    async def _version(self, link: Link) -> int:
        if not await self._fetch(link, "{existing}"):
            return 0
        rows = await self._fetch(link, _GET_VERSION)
        version, newest = int(rows[0][0]), len(_MIGRATIONS)
        if version > newest:
            raise flowrra.BackendError(
                f"{self._database.place} has schema {version} of schedules, newer than the {newest} of this flowrra: "
                "upgrade it"
            )
        return version

    async def _fetch(self, link: Link, text: str, values: Mapping[str, Any] | None = None) -> Sequence[Sequence[Any]]:
        return await link.fetch(*self._dialect.bind(text, {"clock": self._clock.monotonic(), **(values or {})}))

    async def _execute(self, link: Link, text: str, values: Mapping[str, Any] | None = None) -> int:
        return await link.execute(*self._dialect.bind(text, {"clock": self._clock.monotonic(), **(values or {})}))


# The store ---------------------------------------------------------------------------------------


class SQLScheduleStore(_Connected):
    """Schedules in a table that many processes share. `store_from_url` makes it.

    Uses one connection, and reconnects when it was lost. If a call does not finish within `timeout` seconds, or its
    connection fails, it raises a BackendError; the next call connects again. A cancelled call leaves nothing open: what
    it had begun is rolled back.
    """

    # Schedules ---------------------------------------------------------------------------------

    async def add(self, schedule: flowrra.Schedule) -> str:
        values = {field: self._to_column(field, getattr(schedule, field)) for field in FIELDS}

        async def work(link: Link) -> str:
            while True:  # whoever held the key may be removed between the two
                await self._execute(link, _ADD, values)
                if rows := await self._fetch(link, _HOLDER, values):
                    return str(rows[0][0])

        return await self._call(work)

    async def find(self, ids: Sequence[str] | None = None) -> list[flowrra.Schedule]:
        async def work(link: Link) -> list[Sequence[Any]]:
            if ids is None:
                return list(await self._fetch(link, _FIND))
            rows = [row for chunk in _chunks(set(ids)) for row in await self._fetch(link, _FIND_SOME, {"ids": chunk})]
            return sorted(rows, key=lambda row: row[-1])

        return [self._schedule(row) for row in await self._call(work)]

    async def change(self, schedule_id: str, changes: Mapping[str, Any]) -> bool:
        check_changes(changes)
        values = {field: self._to_column(field, value) for field, value in changes.items()}
        sets = "".join(f"{_column(field)} = :{field}, " for field in values)

        async def work(link: Link) -> int | None:
            change = f"UPDATE {{table}} SET {sets}turn = turn + 1, lease = NULL WHERE id = :id"
            try:
                return await self._execute(link, change, {**values, "id": schedule_id})
            except Exception as error:
                if self._dialect.code(error) != self._dialect.duplicate:
                    raise
                return None

        changed = await self._call(work)
        if changed is None:
            raise flowrra.ConfigError(
                f"schedule {schedule_id} cannot become the same as another schedule: {changes.get('key')!r}"
            )
        return changed > 0

    async def remove(self, schedule_id: str) -> bool:
        return await self._call(lambda link: self._execute(link, _REMOVE, {"id": schedule_id})) > 0

    async def purge(self, before: float) -> int:
        values = {"before": self._to_column("last_fire", before)}
        return await self._call(lambda link: self._execute(link, _PURGE, values))

    # Fires -------------------------------------------------------------------------------------

    async def take(self, *, now: float, lease: float, limit: int) -> list[flowrra.Schedule]:
        check_lease(lease)
        values = {"now": self._to_column("next_fire", now), "limit": limit, "lease": lease}

        async def work(link: Link) -> Sequence[Sequence[Any]]:
            rows = await self._fetch(link, _DUE, values)
            for ids in _chunks(row[0] for row in rows):
                await self._execute(link, _LEASE, {**values, "ids": ids})
            return rows

        taken = [self._schedule(row) for row in await self._transact(work)]
        for schedule in taken:
            schedule.turn += 1
        return taken

    async def advance(self, fired: Sequence[flowrra.Fired]) -> list[bool]:
        rows = [self._advanced(one) for one in fired]

        async def work(link: Link) -> list[bool]:
            held: dict[str, int] = {}
            for ids in _chunks(dict.fromkeys(one.schedule_id for one in fired)):
                held.update({row[0]: row[1] for row in await self._fetch(link, _TAKEN, {"ids": ids})})
            done = [_gives_back(held, one) for one in fired]
            if any(done):
                written = json.dumps([*itertools.compress(rows, done)], default=str)  # str: of a datetime
                await self._execute(link, "{advance}", {"rows": written})
            return done

        return await self._transact(work) if fired else []

    async def next_fire(self) -> float | None:
        rows = await self._call(lambda link: self._fetch(link, _NEXT))
        return self._seconds(rows[0][0]) if rows else None

    # Rows --------------------------------------------------------------------------------------

    def _schedule(self, row: Sequence[Any]) -> flowrra.Schedule:
        values = dict(zip(FIELDS, row, strict=False))
        for field in _MOMENTS:
            values[field] = self._seconds(values[field])
        values["options"], values["enabled"] = json.loads(values["options"]), bool(values["enabled"])
        return flowrra.Schedule(**values)

    def _seconds(self, moment: Any) -> float | None:
        return None if moment is None else self._dialect.from_column(moment).timestamp()

    def _advanced(self, fired: flowrra.Fired) -> Sequence[Any]:
        """Return the row of `Dialect.advance`."""
        moments = [self._to_column(field, getattr(fired, field)) for field in ("next_fire", "last_fire")]
        return (fired.schedule_id, *moments, self._to_column("last_job", fired.last_job))

    def _to_column(self, field: str, value: Any) -> Any:
        if field in _MOMENTS:
            return None if value is None else self._dialect.to_column(_moment(field, value))
        if field == "options":
            return json.dumps(dict(value))
        if isinstance(value, str):
            _check_text(field, value)
        return value


_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def _moment(field: str, seconds: float) -> dt.datetime:
    try:
        return _EPOCH + dt.timedelta(seconds=seconds)
    except (OverflowError, ValueError):
        raise flowrra.ConfigError(f"{field} must be a time in the years 1 to 9999, not {seconds!r}") from None


def _check_text(field: str, text: str) -> None:
    """Refuse text that some databases cannot store."""
    if "\0" in text or (not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text)):
        raise flowrra.ConfigError(f"{field} contains a NUL or half of a surrogate pair: {text!r}")
    if field in ("id", "key") and len(text) > _NAME_LENGTH:
        raise flowrra.ConfigError(
            f"{field} must be at most {_NAME_LENGTH} characters, not {len(text)}: {text[:40]!r}..."
        )


def _gives_back(held: dict[str, int], fired: flowrra.Fired) -> bool:
    """Whether it is of the turn that holds the schedule; if so, the next one of the same turn is not."""
    if held.get(fired.schedule_id) != fired.turn:
        return False
    del held[fired.schedule_id]
    return True


def _chunks(ids: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(ids)
    while chunk := list(itertools.islice(rest, _CHUNK)):
        yield chunk


# SQLite ------------------------------------------------------------------------------------------

SQLITE = Dialect(
    mark=lambda number: "?",
    begin="BEGIN IMMEDIATE",  # so that transactions wait for each other at their begin, where nothing is lost
    serial="INTEGER PRIMARY KEY",
    moment="TEXT",  # UTC, "2026-11-25 06:33:24.123456": of one length, so that they sort
    lease="REAL",  # on the monotonic clock of this boot: everyone is on one host
    index="""CREATE INDEX flowrra_schedule_due ON {table} (enabled, next_fire, seq)
        WHERE enabled = TRUE AND next_fire IS NOT NULL""",
    existing="SELECT 1 FROM sqlite_master WHERE name = 'flowrra_schedule_meta'",
    # A lease that is too long to be true is of an earlier boot.
    free=f"(lease IS NULL OR lease <= :clock OR lease > :clock + {flowrra.MAX_LEASE})",
    until=":clock + :lease",
    advance="""
        UPDATE flowrra_schedule AS s SET next_fire = json_extract(v.value, '$[1]'),
            last_fire = json_extract(v.value, '$[2]'), last_job = json_extract(v.value, '$[3]'), lease = NULL
        FROM json_each(:rows) AS v WHERE s.id = json_extract(v.value, '$[0]')""",
    to_column=lambda moment: moment.replace(tzinfo=None).isoformat(" ", "microseconds"),
    from_column=lambda text: dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC),
    code=lambda error: getattr(error, "sqlite_errorname", None),
    duplicate="SQLITE_CONSTRAINT_UNIQUE",
)


class _SQLiteLink:
    """A connection in a separate thread, which runs one operation after the other."""

    def __init__(self, thread: ThreadPoolExecutor, connection: sqlite3.Connection, *, is_private: bool) -> None:
        self._thread = thread
        self._connection = connection
        self._is_private = is_private

    def _run(self, work: Callable[[], T]) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def is_alive(self) -> bool:
        return True

    async def fetch(self, statement: str, values: Sequence[Any] = ()) -> Sequence[Sequence[Any]]:
        return await self._run(lambda: self._connection.execute(statement, values).fetchall())

    async def execute(self, statement: str, values: Sequence[Any] = ()) -> int:
        return await self._run(lambda: self._connection.execute(statement, values).rowcount)

    async def drop(self) -> bool:
        if self._is_private:  # all there is
            await asyncio.shield(self._run(self._connection.rollback))
        else:
            await self.close()
        return not self._is_private

    async def close(self) -> None:
        closing = self._run(self._connection.close)  # after what a cancelled caller has left in the thread
        self._thread.shutdown(wait=False)
        await asyncio.shield(closing)


def _open(path: str, patience: float) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=patience, isolation_level=None)
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


def sqlite_database(url: str) -> Database:
    """Return the database for a URL: a file, or private and in memory."""
    parts = urllib.parse.urlsplit(url)
    if parts.netloc or parts.fragment or parts.path == "/:memory:":
        form = "sqlite:///name.db or sqlite:////folder/name.db, with %23 for #; sqlite:// is private and in memory"
        raise flowrra.ConfigError(f"{url!r} names no file: the form is {form}")
    if parts.query:
        raise flowrra.ConfigError(f"{url!r} has options, but a SQLite store of schedules takes none")
    name = urllib.parse.unquote(parts.path)[1:]
    path = str(Path(name).absolute()) if name else ":memory:"

    async def connect(timeout: float) -> Link:
        thread = ThreadPoolExecutor(1, "flowrra-schedules")
        try:
            # Half the time, so that a file that stays locked is told as such and not as a time-out.
            opening = asyncio.get_running_loop().run_in_executor(thread, _open, path, timeout / 2)
            return _SQLiteLink(thread, await opening, is_private=not name)
        except BaseException:
            thread.shutdown(wait=False)
            raise

    return Database(SQLITE, path if name else "SQLite in memory", connect)
