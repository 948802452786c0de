"""Schedules in SQL: every statement, and how a row becomes a `Schedule`. Knows databases by `Database` only."""

import asyncio
import dataclasses
import datetime as dt
import itertools
import json
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from flowrra import (
    MAX_LEASE,
    MISFIRES,
    OVERLAPS,
    RULE_KINDS,
    BackendError,
    Clock,
    ConfigError,
    Fired,
    FlowrraError,
    Schedule,
    ScheduleStore,
)
from flowrra_extras.scheduler.database import Database, Link

T = TypeVar("T")

_FIELDS = tuple(field.name for field in dataclasses.fields(Schedule))
_MOMENTS = frozenset(("anchor", "next_fire", "last_fire", "created", "updated"))
_FIXED = frozenset(("id", "turn"))  # what change() leaves alone
_NAME_LENGTH = 255  # of what stands in a unique index
_CHUNK = 1_000  # placeholders in one statement; PostgreSQL takes 32,767, SQLite 32,766
_TRIES = 5  # of a transaction to which others are preferred


def _column(field: str) -> str:
    return "unique_key" if field == "key" else field  # KEY is a word of MySQL's


def _one_of(values: Sequence[str]) -> str:
    return ", ".join(f"'{value}'" for value in values)


# Words in braces are the dialect's. Entry n takes a store from schema n to n + 1.
_MIGRATIONS = (
    (
        f"""CREATE TABLE IF NOT EXISTS flowrra_schedule (
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
            CHECK (kind IN ({_one_of(RULE_KINDS)})),
            CHECK (misfire IN ({_one_of(MISFIRES)})),
            CHECK (overlap IN ({_one_of(OVERLAPS)})),
            CHECK (jitter >= 0),
            CHECK (lease IS NULL OR (turn > 0 AND enabled = TRUE AND next_fire IS NOT NULL))
            {{index_in_table}}
        ) {{table_end}}""",
        "{index}",
        "CREATE TABLE IF NOT EXISTS flowrra_schedule_meta (version INTEGER NOT NULL)",
    ),
)

_COLUMNS = ", ".join(map(_column, _FIELDS))
_ADD = f"INSERT INTO flowrra_schedule ({_COLUMNS}) VALUES ({', '.join(f':{field}' for field in _FIELDS)}) {{or_leave}}"
_HOLDER = """
    SELECT id FROM flowrra_schedule WHERE unique_key = :key OR id = :id
    ORDER BY CASE WHEN unique_key = :key THEN 0 ELSE 1 END LIMIT 1"""
_FIND = f"SELECT {_COLUMNS} FROM flowrra_schedule ORDER BY seq"
_FIND_SOME = f"SELECT {_COLUMNS}, seq FROM flowrra_schedule WHERE id IN (:ids)"

_DUE = f"""
    SELECT {_COLUMNS} FROM flowrra_schedule {{hint}} WHERE enabled = TRUE AND next_fire <= :now AND {{free}}
    ORDER BY next_fire, seq LIMIT :limit {{skip_locked}}"""
_LEASE = "UPDATE flowrra_schedule SET turn = turn + 1, lease = {until} WHERE id IN (:ids)"
_NEXT = """
    SELECT next_fire FROM flowrra_schedule {hint} WHERE enabled = TRUE AND next_fire IS NOT NULL AND {free}
    ORDER BY next_fire LIMIT 1"""

_TAKEN = "SELECT id, turn FROM flowrra_schedule WHERE id IN (:ids) AND lease IS NOT NULL ORDER BY seq {lock_rows}"
_ADVANCE = """
    UPDATE flowrra_schedule SET next_fire = :next_fire, last_fire = :last_fire, last_job = :last_job, lease = NULL
    WHERE id = :id"""
_REMOVE = "DELETE FROM flowrra_schedule WHERE id = :id"
_PURGE = "DELETE FROM flowrra_schedule WHERE next_fire IS NULL AND last_fire < :before"


class SQLScheduleStore(ScheduleStore):
    """Schedules in a table that many processes share; `store_from_url` makes one.

    Uses one connection, made anew when it was lost. A call that does not come through within `timeout`
    seconds, or to whose connection something happens, raises a BackendError; the next one connects again.
    A call that is cancelled leaves nothing open: what it had begun is undone.
    """

    def __init__(self, database: Database, clock: Clock | None = None, *, timeout: float = 10.0) -> None:
        self._database = database
        self._dialect = database.dialect
        self._clock = clock or Clock()
        self._timeout = timeout
        self._link: Link | None = None
        self._lock: asyncio.Lock | None = None  # held by whoever uses the link; None: not open

    async def open(self) -> None:
        self._lock = asyncio.Lock()
        await self._call(lambda link: link.is_alive())

    async def close(self) -> None:
        lock, self._lock = self._lock, None
        if lock is None:
            return
        async with lock:
            link, self._link = self._link, None
            if link is not None:
                await self._leave(link)

    # Schedules ---------------------------------------------------------------------------------

    async def add(self, schedule: Schedule) -> str:
        values = {field: self._to_column(field, getattr(schedule, field)) for field in _FIELDS}

        async def work(link: Link) -> str:
            while True:  # whoever held the key may be removed between the two
                await self._execute(link, _ADD, values)
                if rows := await self._fetch(link, _HOLDER, values):
                    return str(rows[0][0])

        return await self._call(work)

    async def find(self, ids: Sequence[str] | None = None) -> list[Schedule]:
        async def work(link: Link) -> list[Sequence[Any]]:
            if ids is None:
                return list(await self._fetch(link, _FIND))
            rows = [row for chunk in _chunks(set(ids)) for row in await self._fetch(link, _FIND_SOME, {"ids": chunk})]
            return sorted(rows, key=lambda row: row[-1])

        return [self._schedule(row) for row in await self._call(work)]

    async def change(self, schedule_id: str, changes: Mapping[str, Any]) -> bool:
        if wrong := set(changes) - set(_FIELDS) | set(changes) & _FIXED:
            raise ConfigError(f"{min(wrong)!r} of a schedule cannot be changed")
        values = {field: self._to_column(field, value) for field, value in changes.items()}
        sets = "".join(f"{_column(field)} = :{field}, " for field in values)

        async def work(link: Link) -> int | None:
            change = f"UPDATE flowrra_schedule SET {sets}turn = turn + 1, lease = NULL WHERE id = :id"
            try:
                return await self._execute(link, change, {**values, "id": schedule_id})
            except Exception as error:
                if self._dialect.code(error) != self._dialect.duplicate:
                    raise
                return None

        changed = await self._call(work)
        if changed is None:
            raise ConfigError(f"schedule {schedule_id} cannot become what another schedule is: {changes.get('key')!r}")
        return changed > 0

    async def remove(self, schedule_id: str) -> bool:
        return await self._call(lambda link: self._execute(link, _REMOVE, {"id": schedule_id})) > 0

    async def purge(self, before: float) -> int:
        values = {"before": self._to_column("last_fire", before)}
        return await self._call(lambda link: self._execute(link, _PURGE, values))

    # Fires -------------------------------------------------------------------------------------

    async def take(self, *, now: float, lease: float, limit: int) -> list[Schedule]:
        if not 0 < lease <= MAX_LEASE:
            raise ConfigError(f"a lease is more than 0 and at most {MAX_LEASE:g} s, not {lease!r}")
        values = {"now": self._to_column("next_fire", now), "limit": limit, "lease": lease}

        async def work(link: Link) -> Sequence[Sequence[Any]]:
            rows = await self._fetch(link, _DUE, values)
            for ids in _chunks(row[0] for row in rows):
                await self._execute(link, _LEASE, {**values, "ids": ids})
            return rows

        rows = await self._transact(work)
        return [dataclasses.replace(taken, turn=taken.turn + 1) for taken in map(self._schedule, rows)]

    async def advance(self, fired: Sequence[Fired]) -> list[bool]:
        rows = [self._advanced(one) for one in fired]

        async def work(link: Link) -> list[bool]:
            held: dict[str, int] = {}
            for ids in _chunks(dict.fromkeys(one.schedule_id for one in fired)):
                held.update({row[0]: row[1] for row in await self._fetch(link, _TAKEN, {"ids": ids})})
            done = [_gives_back(held, one) for one in fired]
            bound = [self._dialect.bind(_ADVANCE, row) for row in itertools.compress(rows, done)]
            if bound:
                await link.execute_each(bound[0][0], [values for _, values in bound])
            return done

        return await self._transact(work) if fired else []

    async def next_fire(self) -> float | None:
        rows = await self._call(lambda link: self._fetch(link, _NEXT))
        return self._from_column("next_fire", rows[0][0]) if rows else None

    # Rows --------------------------------------------------------------------------------------

    def _schedule(self, row: Sequence[Any]) -> Schedule:
        return Schedule(**{field: self._from_column(field, value) for field, value in zip(_FIELDS, row, strict=False)})

    def _advanced(self, fired: Fired) -> dict[str, Any]:
        values = {"next_fire": fired.next_fire, "last_fire": fired.last_fire, "last_job": fired.last_job}
        return {"id": fired.schedule_id, **{name: self._to_column(name, value) for name, value in values.items()}}

    def _to_column(self, field: str, value: Any) -> Any:
        if field in _MOMENTS:
            return None if value is None else self._dialect.to_column(_moment(field, value))
        if field == "options":
            return json.dumps(dict(value))
        if isinstance(value, str):
            _check_text(field, value)
        return value

    def _from_column(self, field: str, value: Any) -> Any:
        if value is None:
            return None
        if field in _MOMENTS:
            return self._dialect.from_column(value).timestamp()
        if field == "options":
            return json.loads(value)
        return bool(value) if field == "enabled" else value

    # The connection ----------------------------------------------------------------------------

    async def _fetch(self, link: Link, text: str, values: Mapping[str, Any] | None = None) -> Sequence[Sequence[Any]]:
        return await link.fetch(*self._dialect.bind(text, {"clock": self._clock.monotonic(), **(values or {})}))

    async def _execute(self, link: Link, text: str, values: Mapping[str, Any] | None = None) -> int:
        return await link.execute(*self._dialect.bind(text, {"clock": self._clock.monotonic(), **(values or {})}))

    async def _transact(self, work: Callable[[Link], Awaitable[T]]) -> T:
        async def whole(link: Link) -> T:
            await link.execute(self._dialect.begin)
            done = await work(link)
            await link.execute("COMMIT")
            return done

        return await self._call(whole)

    async def _call(self, work: Callable[[Link], Awaitable[T]]) -> T:
        """Do `work` on the link, again if another transaction was preferred."""
        if self._lock is None:
            raise BackendError(f"the store of schedules in {self._database.place} is not open")
        try:
            async with asyncio.timeout(self._timeout), self._lock:
                return await self._insist(work)
        except FlowrraError:
            raise
        except TimeoutError as error:
            raise BackendError(f"{self._database.place}: no answer in time (timeout={self._timeout:g})") from error
        except Exception as error:  # drivers raise what they like when a server goes away
            raise BackendError(f"{self._database.place}: {type(error).__name__}: {error}") from error

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
        if self._link is not None and not await self._link.is_alive():
            await self._link.drop()
            self._link = None
        if self._link is None:
            connecting = asyncio.ensure_future(self._connect())
            try:
                self._link = await asyncio.shield(connecting)
            except asyncio.CancelledError:
                # Drivers leave loose ends if they are stopped half-way. The next caller will use it.
                await asyncio.wait([connecting])
                self._link = None if connecting.exception() else connecting.result()
                raise
        return self._link

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
        if await self._version(link) == len(_MIGRATIONS):
            return
        await link.execute(self._dialect.begin)
        if self._dialect.lock:
            await link.fetch(self._dialect.lock)  # the time-out of the call bounds the wait
        version = await self._version(link)
        for statement in itertools.chain.from_iterable(_MIGRATIONS[version:]):
            await self._execute(link, statement)
        await self._execute(link, "DELETE FROM flowrra_schedule_meta")
        await self._execute(link, "INSERT INTO flowrra_schedule_meta VALUES (:version)", {"version": len(_MIGRATIONS)})
        await link.execute("COMMIT")
        if self._dialect.unlock:
            await link.fetch(self._dialect.unlock)

    async def _version(self, link: Link) -> int:
        if not await link.fetch(self._dialect.existing):
            return 0
        rows = await link.fetch("SELECT coalesce(max(version), 0) FROM flowrra_schedule_meta")
        version = int(rows[0][0])
        if version > len(_MIGRATIONS):
            raise BackendError(
                f"{self._database.place} has schema {version} of schedules, newer than the {len(_MIGRATIONS)} of this "
                "flowrra: upgrade it"
            )
        return version

    async def _leave(self, link: Link) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                await link.close()
        except BaseException as error:
            await link.drop()
            if not isinstance(error, Exception):
                raise


_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def _moment(field: str, seconds: float) -> dt.datetime:
    try:
        return _EPOCH + dt.timedelta(seconds=seconds)
    except (OverflowError, ValueError):
        raise ConfigError(f"{field} must be a moment of the years 1 to 9999, not {seconds!r}") from None


def _check_text(field: str, text: str) -> None:
    """Refuse what not every database can hold."""
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ConfigError(f"{field} holds a NUL or half of a surrogate pair: {text!r}")
    if field in ("id", "key") and len(text) > _NAME_LENGTH:
        raise ConfigError(f"{field} must be at most {_NAME_LENGTH} characters, not {len(text)}: {text[:40]!r}...")


def _gives_back(held: dict[str, int], fired: Fired) -> bool:
    """Whether it is of the turn that holds the schedule; if so, the next one of the same turn is not."""
    if held.get(fired.schedule_id) != fired.turn:
        return False
    del held[fired.schedule_id]
    return True


def _chunks(ids: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(ids)
    while chunk := list(itertools.islice(rest, _CHUNK)):
        yield chunk
