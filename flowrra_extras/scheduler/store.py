"""Schedules in SQL: every statement, and how a row becomes a `Schedule`. Knows databases by `Database` only."""

import dataclasses
import datetime as dt
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from flowrra import (
    MAX_LEASE,
    MISFIRES,
    OVERLAPS,
    Clock,
    ConfigError,
    Fired,
    Schedule,
)
from flowrra_extras.scheduler.database import Database, Link
from flowrra_extras.scheduler.protocol import ScheduleStore
from flowrra_extras.scheduler.session import Session

_FIELDS = tuple(field.name for field in dataclasses.fields(Schedule))
_MOMENTS = frozenset(("anchor", "next_fire", "last_fire", "created", "updated"))
_FIXED = frozenset(("id", "turn"))  # what change() leaves alone
_RULE_KINDS = ("cron", "interval", "once")
_NAME_LENGTH = 255  # of what stands in a unique index
_CHUNK = 1_000  # placeholders in one statement; PostgreSQL takes 32,767, SQLite 32,766


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
            CHECK (kind IN ({_one_of(_RULE_KINDS)})),
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
        self._session = Session(database, _MIGRATIONS, timeout)
        self._dialect = database.dialect
        self._clock = clock or Clock()

    async def open(self) -> None:
        await self._session.open()

    async def close(self) -> None:
        await self._session.close()

    # Schedules ---------------------------------------------------------------------------------

    async def add(self, schedule: Schedule) -> str:
        values = {field: self._to_column(field, getattr(schedule, field)) for field in _FIELDS}

        async def work(link: Link) -> str:
            while True:  # whoever held the key may be removed between the two
                await self._execute(link, _ADD, values)
                if rows := await self._fetch(link, _HOLDER, values):
                    return str(rows[0][0])

        return await self._session.call(work)

    async def find(self, ids: Sequence[str] | None = None) -> list[Schedule]:
        async def work(link: Link) -> list[Sequence[Any]]:
            if ids is None:
                return list(await self._fetch(link, _FIND))
            rows = [row for chunk in _chunks(set(ids)) for row in await self._fetch(link, _FIND_SOME, {"ids": chunk})]
            return sorted(rows, key=lambda row: row[-1])

        return [self._schedule(row) for row in await self._session.call(work)]

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

        changed = await self._session.call(work)
        if changed is None:
            raise ConfigError(f"schedule {schedule_id} cannot become what another schedule is: {changes.get('key')!r}")
        return changed > 0

    async def remove(self, schedule_id: str) -> bool:
        return await self._session.call(lambda link: self._execute(link, _REMOVE, {"id": schedule_id})) > 0

    async def purge(self, before: float) -> int:
        values = {"before": self._to_column("last_fire", before)}
        return await self._session.call(lambda link: self._execute(link, _PURGE, values))

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

        rows = await self._session.transact(work)
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

        return await self._session.transact(work) if fired else []

    async def next_fire(self) -> float | None:
        rows = await self._session.call(lambda link: self._fetch(link, _NEXT))
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

    async def _fetch(self, link: Link, text: str, values: Mapping[str, Any] | None = None) -> Sequence[Sequence[Any]]:
        return await link.fetch(*self._dialect.bind(text, {"clock": self._clock.monotonic(), **(values or {})}))

    async def _execute(self, link: Link, text: str, values: Mapping[str, Any] | None = None) -> int:
        return await link.execute(*self._dialect.bind(text, {"clock": self._clock.monotonic(), **(values or {})}))


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
