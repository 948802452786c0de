"""Schedules in PostgreSQL: its dialect, and a link over a connection such as the broker's."""

import asyncio
import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

import asyncpg

from flowrra_extras.postgres.connections import Address, Session, drop
from flowrra_extras.scheduler.sql import Database, Dialect

DIALECT = Dialect(
    mark=lambda number: f"${number}",
    serial="BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
    moment="TIMESTAMPTZ",
    lease="TIMESTAMPTZ",
    index="""CREATE INDEX flowrra_schedule_due ON {table} (enabled, next_fire, seq)
        WHERE enabled = TRUE AND next_fire IS NOT NULL""",
    lock="SELECT pg_advisory_xact_lock(7305461987402391)",  # ends with the transaction; the number means nothing
    # Not to_regclass(), which after the wait for the lock still says what it saw before.
    existing="SELECT 1 FROM pg_class WHERE relname = 'flowrra_schedule_meta' AND pg_table_is_visible(oid)",
    free="(lease IS NULL OR lease <= clock_timestamp())",
    until="clock_timestamp() + make_interval(secs => :lease)",
    advance="""
        UPDATE {table} AS s SET next_fire = CAST(v.value ->> 1 AS TIMESTAMPTZ),
            last_fire = CAST(v.value ->> 2 AS TIMESTAMPTZ), last_job = v.value ->> 3, lease = NULL
        FROM json_array_elements(CAST(:rows AS JSON)) AS v (value) WHERE s.id = v.value ->> 0""",
    lock_rows="FOR UPDATE",
    skip_locked="FOR UPDATE SKIP LOCKED",
    to_column=lambda moment: moment,
    from_column=lambda moment: moment,
    code=lambda error: getattr(error, "sqlstate", None),
    duplicate="23505",
    conflicts=("40001", "40P01"),  # serialization failure, deadlock
)


def in_schema(schema: str) -> Dialect:
    """The dialect that names the schema in each statement: behind a pooler no search_path stays ours."""
    existing = f"""SELECT 1 FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace
        WHERE relname = 'flowrra_schedule_meta' AND nspname = '{schema}'"""
    return dataclasses.replace(DIALECT, table=f'"{schema}".flowrra_schedule', existing=existing)


def database_from_url(url: str) -> Database:
    """The database that a URL names, which is read as for the broker on the same server."""
    address = Address(url)

    async def connect(timeout: float) -> _Link:
        connection = await address.plain({}, timeout)
        try:
            session = Session(connection, address.schema)
            await session.refuse_standby(address.name)
            if address.has_schema:
                with contextlib.suppress(asyncpg.DuplicateSchemaError, asyncpg.UniqueViolationError):  # made meanwhile
                    await session.make_schema()
        except BaseException:
            drop(connection)
            raise
        return _Link(connection)

    return Database(in_schema(address.schema) if address.has_schema else DIALECT, address.name, connect)


class _Link:
    def __init__(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()

    async def is_alive(self) -> bool:
        return self._loop is asyncio.get_running_loop() and not self._connection.is_closed()

    async def fetch(self, statement: str, values: Sequence[Any] = ()) -> Sequence[Sequence[Any]]:
        return [tuple(row) for row in await self._connection.fetch(statement, *values)]

    async def execute(self, statement: str, values: Sequence[Any] = ()) -> int:
        status = await self._connection.execute(statement, *values)
        count = status.rpartition(" ")[2]  # "UPDATE 1", but "BEGIN"
        return int(count) if count.isdigit() else 0

    async def drop(self) -> bool:
        drop(self._connection)
        return True

    async def close(self) -> None:
        await self._connection.close()
