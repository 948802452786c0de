"""Schedules in MySQL (8.0.17 and later) or MariaDB (10.6 and later), through asyncmy."""

import contextlib
import datetime as dt
import math
from collections.abc import Sequence
from typing import Any

import asyncmy

from flowrra import ConfigError
from flowrra_extras.scheduler.sql import Database, Dialect, Link
from flowrra_extras.urls import check_options, read_server_url

# Every text differs from every other one: no folding of case and accents, no trailing blanks left out. The two servers
# have different names for that, and each reads its own comment.
_COLLATE = "COLLATE /*!80017 utf8mb4_0900_bin *//*M!100303 utf8mb4_nopad_bin */"

DIALECT = Dialect(
    mark=lambda number: "%s",
    serial="BIGINT AUTO_INCREMENT PRIMARY KEY",
    name="VARCHAR(255)",
    text="LONGTEXT",  # TEXT ends at 64 KiB
    moment="DATETIME(6)",  # UTC
    lease="DATETIME(6)",
    # Within the table, and so with it or not at all: here no transaction holds several of these statements.
    index_in_table=", INDEX flowrra_schedule_due (enabled, next_fire, seq)",
    index="DO 0",
    table_end=f"ENGINE = InnoDB CHARACTER SET utf8mb4 {_COLLATE}",
    lock="SELECT GET_LOCK('flowrra_schedule', 3600)",
    unlock="SELECT RELEASE_LOCK('flowrra_schedule')",
    existing="""SELECT 1 FROM information_schema.tables
        WHERE table_schema = DATABASE() AND table_name = 'flowrra_schedule_meta'""",
    free="(lease IS NULL OR lease <= UTC_TIMESTAMP(6))",
    until="UTC_TIMESTAMP(6) + INTERVAL :lease * 1000000 MICROSECOND",
    # A scan of the table would lock every row that is due, and others who take would come away with nothing.
    hint="FORCE INDEX (flowrra_schedule_due)",
    advance=f"""
        UPDATE JSON_TABLE(:rows, '$[*]' COLUMNS (id VARCHAR(255) PATH '$[0]', next_fire DATETIME(6) PATH '$[1]',
            last_fire DATETIME(6) PATH '$[2]', last_job LONGTEXT PATH '$[3]')) AS v
        STRAIGHT_JOIN flowrra_schedule AS s ON s.id = v.id {_COLLATE}
        SET s.next_fire = v.next_fire, s.last_fire = v.last_fire, s.last_job = v.last_job, s.lease = NULL""",
    lock_rows="FOR UPDATE",
    skip_locked="FOR UPDATE SKIP LOCKED",
    or_leave="ON DUPLICATE KEY UPDATE seq = seq",
    to_column=lambda moment: moment.replace(tzinfo=None),
    from_column=lambda moment: moment.replace(tzinfo=dt.UTC),
    code=lambda error: error.args[0] if error.args else None,
    duplicate=1062,
    conflicts=(1205, 1213),  # lock wait time-out, deadlock
)

# Whatever the server's defaults are: nothing is cut off to fit, locks are on rows and not on the gaps between them,
# and "table exists already" is no warning.
_SETTINGS = (
    "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', sql_notes = 0",
    "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
)


def database_from_url(url: str) -> Database:
    """The database that a URL names.

    Raises:
        ConfigError: it names no database, several hosts, or an unknown option.
    """
    parts = read_server_url(url)
    check_options(parts, ("ssl", "ssl_ca"))
    form = f"the form is {parts.scheme}://user:password@host:3306/database"
    if not parts.path or "/" in parts.path:
        raise ConfigError(f"a {parts.scheme}:// URL names one database, not {parts.path!r}: {form}")
    (host, port), *others = parts.hosts
    if others:
        raise ConfigError(f"{parts.shown} names several hosts, where one is expected: {form}")
    host, port = host or "localhost", port or 3306
    options = {
        "host": host, "port": port, "user": parts.user, "password": parts.password or "", "database": parts.path,
        "charset": "utf8mb4", "autocommit": True, "ssl": _ssl(**parts.options),
    }  # fmt: skip

    async def connect(timeout: float) -> Link:
        connection = await asyncmy.connect(connect_timeout=math.ceil(timeout), **options)
        link = _Link(connection)
        try:
            for setting in _SETTINGS:
                await link.execute(setting)
        except BaseException:
            await link.drop()
            raise
        return link

    return Database(DIALECT, f"MySQL at {host}:{port}/{parts.path}", connect)


class _Link:
    def __init__(self, connection: Any) -> None:  # asyncmy has no types
        self._connection = connection

    async def is_alive(self) -> bool:
        try:
            await self._connection.ping(reconnect=False)
        except Exception:  # what a lost stream raises depends on where it was lost
            return False
        return True

    async def fetch(self, statement: str, values: Sequence[Any] = ()) -> Sequence[Sequence[Any]]:
        async with self._connection.cursor() as cursor:
            await cursor.execute(statement, values)
            rows: Sequence[Sequence[Any]] = await cursor.fetchall()
            return rows

    async def execute(self, statement: str, values: Sequence[Any] = ()) -> int:
        async with self._connection.cursor() as cursor:
            number: int = await cursor.execute(statement, values)
            return number

    async def drop(self) -> bool:
        with contextlib.suppress(RuntimeError):  # its loop has ended, and the connection with it
            self._connection.close()
        return True

    async def close(self) -> None:
        await self._connection.ensure_closed()


def _ssl(ssl: str = "false", ssl_ca: str | None = None) -> dict[str, str] | bool | None:
    """The driver's idea of an encrypted connection; only with `ssl_ca` is the server's certificate checked."""
    if ssl not in ("true", "false"):
        raise ConfigError(f"the option ssl must be true or false, not {ssl!r}")
    if ssl_ca is not None:
        return {"ca": ssl_ca}
    return True if ssl == "true" else None
