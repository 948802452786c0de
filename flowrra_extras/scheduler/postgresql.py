"""Schedules in PostgreSQL, through asyncpg."""

import asyncio
import contextlib
import urllib.parse
from collections.abc import Sequence
from typing import Any

import asyncpg

from flowrra import BackendError, ConfigError
from flowrra_extras.postgres.connections import STANDBY, Address
from flowrra_extras.scheduler.database import Dialect

_DIALECT = Dialect(
    mark=lambda number: f"${number}",
    serial="BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
    moment="TIMESTAMPTZ",
    lease="TIMESTAMPTZ",
    index="""CREATE INDEX flowrra_schedule_due ON flowrra_schedule (enabled, next_fire, seq)
        WHERE enabled = TRUE AND next_fire IS NOT NULL""",
    lock="SELECT pg_advisory_xact_lock(7305461987402391)",  # ends with the transaction; the number means nothing
    # Not to_regclass(), which after the wait for the lock still says what it saw before.
    existing="SELECT 1 FROM pg_class WHERE relname = 'flowrra_schedule_meta' AND pg_table_is_visible(oid)",
    free="(lease IS NULL OR lease <= clock_timestamp())",
    until="clock_timestamp() + make_interval(secs => :lease)",
    lock_rows="FOR UPDATE",
    skip_locked="FOR UPDATE SKIP LOCKED",
    to_column=lambda moment: moment,
    from_column=lambda moment: moment,
    code=lambda error: getattr(error, "sqlstate", None),
    duplicate="23505",
    conflicts=("40001", "40P01"),  # serialization failure, deadlock
)


class PostgreSQL:
    """The database that a URL names."""

    dialect = _DIALECT

    def __init__(self, address: Address) -> None:
        self._address = address

    @property
    def place(self) -> str:
        return f"PostgreSQL at {self._address.name.partition('://')[2]}"

    async def connect(self, timeout: float) -> "_Link":
        schema = self._address.schema if self._address.has_schema else None
        connection = await self._address.plain({"search_path": schema} if schema else {}, timeout)
        try:
            if await connection.fetchval("SELECT pg_is_in_recovery()"):
                raise BackendError(f"{self.place} is a standby, which cannot be written to: {STANDBY}")
            if schema:
                await _make(schema, connection)
        except BaseException:
            connection.terminate()
            raise
        return _Link(connection)


async def _make(schema: str, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """Make the schema unless it is there. Asked first: even IF NOT EXISTS needs the right to make one."""
    if not await connection.fetch("SELECT FROM pg_namespace WHERE nspname = $1", schema):
        with contextlib.suppress(asyncpg.DuplicateSchemaError, asyncpg.UniqueViolationError):  # somebody else did
            await connection.execute(f'CREATE SCHEMA "{schema}"')


class _Link:
    def __init__(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()

    async def is_alive(self) -> bool:
        return self._loop is asyncio.get_running_loop() and not self._connection.is_closed()

    async def fetch(self, statement: str, values: Sequence[Any] = ()) -> Sequence[Sequence[Any]]:
        rows = await self._connection.fetch(statement, *values)
        return [tuple(row) for row in rows]

    async def execute(self, statement: str, values: Sequence[Any] = ()) -> int:
        status = await self._connection.execute(statement, *values)
        count = status.rpartition(" ")[2]  # "UPDATE 1", but "BEGIN"
        return int(count) if count.isdigit() else 0

    async def execute_each(self, statement: str, rows: Sequence[Sequence[Any]]) -> None:
        await self._connection.executemany(statement, rows)

    async def drop(self) -> bool:
        with contextlib.suppress(RuntimeError):  # its loop has ended, and the connection with it
            self._connection.terminate()
        return True

    async def close(self) -> None:
        await self._connection.close()


def database_from_url(url: str) -> PostgreSQL:
    """As for the broker on the same server. One database is to be named: which is the default may change."""
    parts = urllib.parse.urlsplit(url)
    options = urllib.parse.parse_qs(parts.query)
    if not parts.path.strip("/") and not {"dbname", "database"} & options.keys():
        raise ConfigError(f"a {parts.scheme}:// URL names one database: postgresql://user:password@host:5432/database")
    return PostgreSQL(Address(url))
