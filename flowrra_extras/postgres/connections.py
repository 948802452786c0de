"""Connections to PostgreSQL: a pool for statements, and one that listens for notifications.

If the server cannot do something at the moment (it restarts, fails over or is silent), the call is tried again on
another connection, until the time-out of the call.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import urllib.parse
from typing import TYPE_CHECKING, Any, TypeVar

import asyncpg

from flowrra import BrokerError, ConfigError, FlowrraError, SerializationError, StoreStatus, logger
from flowrra_extras.backoff import listen, note_outage, pauses
from flowrra_extras.batching import closed, end_task
from flowrra_extras.postgres.statements import in_schema
from flowrra_extras.urls import read_server_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

T = TypeVar("T")

SILENCE = 5.0  # seconds without an answer after which a connection is replaced
STANDBY = "name the primary, or all hosts and target_session_attrs=read-write, which finds it"
_AGES = 3600.0  # seconds for an index of a large table
_LIBPQ = frozenset(
    ("application_name", "database", "dbname", "gsslib", "host", "krbsrvname", "passfile", "password", "port",
     "sslcert", "sslcrl", "sslkey", "sslmode", "sslnegotiation", "sslpassword", "sslrootcert",
     "ssl_max_protocol_version", "ssl_min_protocol_version", "target_session_attrs", "user")
)  # fmt: skip
# Options of libpq in the URLs of hosted databases: _SETTINGS are passed to the server, _UNUSED are ignored, because
# silent connections are always replaced, and `sslmode` controls TLS.
_SETTINGS = frozenset(("options", "search_path"))
_UNUSED = frozenset(
    ("channel_binding", "client_encoding", "fallback_application_name", "gssencmode", "keepalives", "keepalives_count",
     "keepalives_idle", "keepalives_interval", "sslcompression", "sslsni", "tcp_user_timeout")
)  # fmt: skip
# asyncpg looks up an array type on first use, and for that turns jit off and on again. Behind a pooler this could be in
# two sessions, except in one transaction. So the first transaction uses all array types of the statements.
ARRAYS = ("bigint", "boolean", "float8", "integer")
_LEARN_ARRAYS = "SELECT " + ", ".join(f"${number}::{name}[]" for number, name in enumerate(ARRAYS, 1))
_COMMITS = ("on", "off", "local", "remote_write", "remote_apply")
# Plans that were made for an empty table are kept, and would read the whole table when it is full. These settings
# forbid the plan nodes that no statement here needs. JIT would cost more than it saves.
_PLANS = {
    "enable_seqscan": "off", "enable_bitmapscan": "off", "enable_hashjoin": "off", "enable_mergejoin": "off",
    "jit": "off", "plan_cache_mode": "force_generic_plan",
}  # fmt: skip
_AWAY = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.TransactionRollbackError,  # deadlocks
    asyncpg.UniqueViolationError,  # two requeues with one key: the second read decides
    asyncpg.ObjectNotInPrerequisiteStateError,
    asyncpg.exceptions.InvalidCachedStatementError,
)
_SILENT = (OSError, asyncpg.PostgresConnectionError, asyncpg.OperatorInterventionError)  # an outage, and no refusal
_NOT_AWAY = (
    asyncpg.DataError,
    asyncpg.QueryCanceledError,
    asyncpg.DiskFullError,
    asyncpg.exceptions.ClientConfigurationError,
)


def _is_away(error: BaseException) -> bool:
    """Whether another try on another connection may succeed."""
    if isinstance(error, asyncpg.ProtocolViolationError):  # a pooler reports every problem so: this one is permanent
        return "startup parameter" not in str(error)
    return isinstance(error, _AWAY) and not isinstance(error, _NOT_AWAY)


class AwayError(BrokerError):
    """The server was unreachable until the time-out of the call."""


class Address:
    """The address of a database, from its URL."""

    def __init__(self, url: str) -> None:
        parts = read_server_url(url)
        options = parts.options
        self.name = parts.shown + (f" ({options['host']})" if "host" in options else "")
        self.has_schema = "schema" in options
        self.schema = options.pop("schema", "flowrra")
        if not re.fullmatch(r"[a-z_][a-z0-9_]{0,39}", self.schema) or self.schema.startswith("pg_"):
            raise ConfigError(f"schema must be up to 40 characters of a-z, 0-9 and _, not {self.schema!r}")
        self.cache = self._number(options, "statement_cache_size", 100, 0)
        self.pool_size = self._number(options, "pool_size", 4, 1)
        commit = options.pop("synchronous_commit", None)
        if commit not in (None, *_COMMITS):
            raise ConfigError(f"synchronous_commit must be one of {', '.join(_COMMITS)}, not {commit!r}")
        for name in options.keys() - _LIBPQ - _SETTINGS - _UNUSED - {"connect_timeout"}:
            raise ConfigError(f"{self.name} has the unknown option {name!r}; there are pool_size=, schema=, "
                              "statement_cache_size=, synchronous_commit=, search_path=, and libpq's own")  # fmt: skip
        self._patience = float(self._number(options, "connect_timeout", 0, 0)) or SILENCE
        self._drop_unused(options)
        self._settings = {"application_name": options.pop("application_name", "flowrra")}
        self._settings |= {name: options.pop(name) for name in _SETTINGS & options.keys()}
        if not self.is_pooled:
            self._settings |= {} if commit is None else {"synchronous_commit": commit}
        elif commit is not None:
            raise ConfigError(
                "synchronous_commit= is a setting of a session: leave it out behind a pooler in transaction mode"
            )
        self._url = f"{_without_options(url)}?{urllib.parse.urlencode(options)}"

    def _number(self, options: dict[str, str], name: str, default: int, least: int) -> int:
        text = options.pop(name, str(default))
        if not text.isdecimal() or int(text) < least:
            raise ConfigError(f"{name} must be a whole number of at least {least}, not {text!r}")
        return int(text)

    def _drop_unused(self, options: dict[str, str]) -> None:
        if options.get("gssencmode") == "require":
            raise ConfigError(f"{self.name}: gssencmode=require is not supported by asyncpg; use sslmode=verify-full")
        if options.get("channel_binding") == "require":
            logger.warning(
                "%s: channel_binding=require is not supported by asyncpg, and is left out; sslmode=verify-full "
                "verifies the server", self.name,
            )  # fmt: skip
        for name in _UNUSED & options.keys():
            del options[name]

    @property
    def is_pooled(self) -> bool:
        """Whether a pooler is between, so that a session lasts for one transaction only."""
        return self.cache == 0

    async def plain(self, settings: Mapping[str, str], timeout: float | None = None) -> asyncpg.Connection[Any]:
        """Open a connection with these settings of the session and those of the URL."""
        patience = self._patience if timeout is None else min(timeout, self._patience)
        connection: asyncpg.Connection[Any] = await asyncpg.connect(
            self._url, timeout=patience, statement_cache_size=self.cache, server_settings={**self._settings, **settings}
        )
        return connection

    async def connect(self) -> asyncpg.Connection[Any]:
        connection = await self.plain({} if self.is_pooled else _PLANS)
        if self.is_pooled:
            try:
                async with Session(connection, self.schema).transaction():
                    await connection.fetch(_LEARN_ARRAYS, *([] for _ in ARRAYS))
            except BaseException:
                drop(connection)
                raise
        return connection


def _without_options(url: str) -> str:
    """Return the URL for asyncpg: with a scheme that it knows, and user and password fully percent-encoded."""
    login, at, place = url.partition("://")[2].partition("?")[0].rpartition("@")
    return f"postgresql://{login.replace('@', '%40')}{at}{place}"


class Session:
    """A connection during one call. Its statements name the schema `flowrra`, which is replaced by that of the URL."""

    def __init__(self, connection: Any, schema: str) -> None:
        self.connection = connection
        self.schema = schema

    async def fetch(self, text: str, *values: Any) -> Sequence[Any]:
        rows: Sequence[Any] = await self.connection.fetch(in_schema(text, self.schema), *values)
        return rows

    async def script(self, text: str) -> None:
        """Run several statements without values."""
        await self.connection.execute(in_schema(text, self.schema))

    def is_in_transaction(self) -> bool:
        return bool(self.connection.is_in_transaction())

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        """A transaction around the body. If it is cancelled, it stays open, and the connection cannot be used again."""
        transaction = self.connection.transaction(isolation="read_committed")
        await transaction.start()
        try:
            yield
        except Exception:  # no rollback after a cancellation: a silent server would not answer it
            await transaction.rollback()
            raise
        await transaction.commit()

    async def refuse_standby(self, name: str) -> None:
        """Raise a BrokerError if the server cannot be written to."""
        if (await self.fetch("SELECT pg_is_in_recovery()"))[0][0]:
            raise BrokerError(f"{name} is a standby, which cannot be written to: {STANDBY}")

    async def make_schema(self) -> None:
        """Create the schema if it does not exist. Check first: even IF NOT EXISTS needs the right to create one."""
        if not await self.fetch("SELECT FROM pg_namespace WHERE nspname = $1", self.schema):
            await self.connection.execute(f'CREATE SCHEMA "{self.schema}"')

    async def store(self) -> tuple[int, str | None]:
        """Return the version of the existing schema and the identity of the store; 0 and None if there is none."""
        if (await self.fetch("SELECT to_regclass('flowrra.meta') IS NULL"))[0][0]:
            return 0, None
        version, store = (await self.fetch("SELECT version, store::text FROM flowrra.meta"))[0]
        return version, store


class CallersSession(Session):
    """A connection of the user, inside the user's transaction. A failed call does not change the transaction."""

    @contextlib.asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        if not self.is_in_transaction():
            raise ConfigError("the connection is not in a transaction: begin one, and the job exists if it commits")
        await self.fetch("SAVEPOINT flowrra_push")
        try:
            yield
        except BaseException:
            await self.fetch("ROLLBACK TO SAVEPOINT flowrra_push")
            await self.fetch("RELEASE SAVEPOINT flowrra_push")
            raise
        await self.fetch("RELEASE SAVEPOINT flowrra_push")


class PsycopgSession(CallersSession):
    """The same for psycopg 3.2 and later. A connection without async blocks the loop during the call."""

    async def fetch(self, text: str, *values: Any) -> Sequence[Any]:
        import psycopg
        from psycopg.rows import tuple_row

        query = in_schema(text, self.schema).encode()
        try:
            if isinstance(self.connection, psycopg.AsyncConnection):
                cursor = psycopg.AsyncRawCursor(self.connection, row_factory=tuple_row)
                await cursor.execute(query, values or None)
                return await cursor.fetchall() if cursor.description else []
            plain = psycopg.RawCursor(self.connection, row_factory=tuple_row).execute(query, values or None)
            return plain.fetchall() if plain.description else []
        except psycopg.errors.UniqueViolation as error:
            raise asyncpg.UniqueViolationError(str(error)) from error

    def is_in_transaction(self) -> bool:
        """Whether the connection is in a transaction, or its next statement begins one."""
        return not self.connection.autocommit or self.connection.info.transaction_status != 0


def callers_session(connection: Any, schema: str) -> CallersSession:
    module = type(connection).__module__.partition(".")[0]
    if module == "psycopg":
        return PsycopgSession(connection, schema)
    if module == "asyncpg":
        return CallersSession(connection, schema)
    raise ConfigError(f"submit_in() takes a connection of asyncpg or psycopg here, not {type(connection).__name__}")


class Link:
    """A pool of connections, which are opened when needed and replaced when they fail."""

    def __init__(self, address: Address, timeout: float, status: StoreStatus | None = None) -> None:
        self._address = address
        self._status = status or StoreStatus()
        self._timeout = timeout
        self._gate = asyncio.Semaphore(address.pool_size)
        self._idle: list[asyncpg.Connection[Any]] = []
        self._busy: set[asyncpg.Connection[Any]] = set()
        self._endings: set[asyncio.Task[None]] = set()
        self._is_closed = False
        self.failed = -math.inf  # when the server last gave no answer, by the loop's clock

    async def run(self, work: Callable[[Session], Awaitable[T]], silence: float | None = SILENCE) -> T:
        """Return what `work` returns. If a connection is lost or silent for `silence` seconds, `work` is called again.

        A `silence` of None sets no limit. If the call is cancelled, the work may or may not have been done.

        Raises:
            BrokerError: the server was unreachable until the time-out of the call, or refused the call; or the link was
                closed.
            SerializationError: the server cannot store a value.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout
        failure: Exception | None = None
        for pause in pauses():
            if self._is_closed:
                raise closed()
            try:
                now = loop.time()
                async with asyncio.timeout_at(now + _AGES if silence is None else min(deadline, now + silence)):
                    return await self._try(work)
            except (asyncpg.PostgresError, *_AWAY) as error:
                if not _is_away(error):
                    raise self._explained(error) from error
                failure = error if str(error) or failure is None else failure
                self.failed = loop.time()
                if isinstance(error, _SILENT) and not self._is_closed:
                    note_outage(self._status, self._address.name, error, self._timeout)
            if loop.time() + pause >= deadline:
                break
            await asyncio.sleep(pause)
        why = str(failure) or "it is silent"
        if isinstance(failure, asyncpg.ReadOnlySQLTransactionError):
            why += f"; {STANDBY}"
        raise AwayError(f"{self._address.name} has not answered for {self._timeout:g} s: {why}") from failure

    async def fetch(self, text: str, *values: Any, silence: float = SILENCE) -> Sequence[Any]:
        return await self.run(lambda session: session.fetch(text, *values), silence)

    async def _try(self, work: Callable[[Session], Awaitable[T]]) -> T:
        async with self._gate:
            connection = self._idle.pop() if self._idle else await self._address.connect()
            self._busy.add(connection)
            usable = False  # a connection that was interrupted or refused cannot be used again
            try:
                result = await work(Session(connection, self._address.schema))
                usable, self._status.problem = True, ""
            except Exception as error:
                usable = not _is_away(error)
                raise
            finally:
                self._busy.discard(connection)
                if usable and not (self._is_closed or connection.is_closed() or connection.is_in_transaction()):
                    self._idle.append(connection)
                else:
                    self._give_up(connection)
            return result

    def _give_up(self, connection: asyncpg.Connection[Any]) -> None:
        """Close a connection. A statement that still runs on it is cancelled, or it would block the next try."""
        if self._is_closed or connection.is_closed():
            drop(connection)
            return
        ending = asyncio.create_task(_end(connection))
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)

    def _explained(self, error: Exception) -> FlowrraError:
        name = self._address.name
        if isinstance(error, asyncpg.DataError):
            return SerializationError(f"{name} cannot store a value: {error}")
        if isinstance(error, asyncpg.InvalidAuthorizationSpecificationError):
            return BrokerError(f"{name} does not accept this user and password: {error}")
        if isinstance(error, asyncpg.InvalidCatalogNameError):
            return BrokerError(f"{name}: {error}; create it, for example with createdb")
        if isinstance(error, asyncpg.DiskFullError):
            return BrokerError(f"the disk of {name} is full, and nothing was written: free some space ({error})")
        if isinstance(error, asyncpg.InsufficientPrivilegeError):
            return BrokerError(
                f"{name} refuses this to the user: {error}; a user needs SELECT, INSERT, UPDATE and DELETE on the "
                f"tables of schema {self._address.schema}, and to create or migrate them the right to create"
            )
        if isinstance(error, asyncpg.ProtocolViolationError):
            return BrokerError(
                f"{name}: {error}; if it is a pooler in transaction mode, add statement_cache_size=0 to the URL"
            )
        return BrokerError(f"{name}: {error}")

    async def close(self) -> None:
        """Close the connections, within a second. Current calls get a BrokerError."""
        self._is_closed = True
        for connection in self._busy:
            drop(connection)
        with contextlib.suppress(TimeoutError, *_AWAY):  # then they are dropped
            async with asyncio.timeout(1.0):
                await asyncio.gather(*(connection.close() for connection in self._idle))
        if self._endings:
            await asyncio.wait(self._endings)
        self.abandon()

    def abandon(self) -> None:
        """Drop the connections without closing them, because their loop has ended."""
        for connection in (*self._idle, *self._busy):
            drop(connection)


async def _end(connection: asyncpg.Connection[Any]) -> None:
    """Cancel the statement that still runs on the connection, and close it, within a second."""
    with contextlib.suppress(TimeoutError, asyncpg.PostgresError, *_AWAY):  # then it is dropped
        await connection.close(timeout=1.0)


def drop(connection: asyncpg.Connection[Any]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop was closed
        connection.terminate()


class Listener:
    """The connection that listens to channels. It reconnects by itself.

    `receive(channel, text)` is called for each notification. It is called with a text of None when listening starts,
    because earlier notifications may have been missed. Behind a pooler, no notification is received.
    """

    def __init__(self, address: Address, receive: Callable[[str, str | None], None]) -> None:
        self._address = address
        self._receive = receive
        self._wanted: list[str] = []
        self._subscribed: set[str] = set()
        self._connection: asyncpg.Connection[Any] | None = None
        self._task: asyncio.Task[None] | None = None
        self._call = asyncio.Event()
        self._is_closed = False

    def want(self, channel: str) -> None:
        if channel in self._wanted or self._address.is_pooled or self._is_closed:
            return
        self._wanted.append(channel)
        self._call.set()
        if self._task is None:
            lost = (asyncpg.PostgresError, *_AWAY)
            self._task = asyncio.create_task(listen(self._follow, self._address.name, lost))

    def receives(self, channel: str) -> bool:
        """Whether notifications arrive at present, or `receive` will be called after those that were missed."""
        return self._connection is not None and channel in self._subscribed

    async def close(self) -> None:
        self._is_closed = True
        await end_task(self._task)
        self._task = None

    def abandon(self) -> None:
        """Drop the connection without closing it, because its loop has ended."""
        if self._connection is not None:
            drop(self._connection)

    async def _follow(self) -> None:
        """Listen until the connection is lost. A silent connection is checked."""
        self._connection = connection = await self._address.connect()
        self._subscribed = set()
        connection.add_termination_listener(lambda _: self._call.set())
        try:
            while True:
                self._call.clear()
                for channel in self._wanted:
                    if channel not in self._subscribed:
                        async with asyncio.timeout(SILENCE):
                            await connection.add_listener(channel, self._take)
                        self._subscribed.add(channel)
                        self._receive(channel, None)
                try:
                    async with asyncio.timeout(SILENCE):  # wait_for() of CPython 3.11 may suppress the cancellation
                        await self._call.wait()
                except TimeoutError:
                    await connection.fetch("SELECT 1", timeout=SILENCE)
                if connection.is_closed():
                    raise ConnectionError("the connection was closed")
        finally:
            self._connection = None
            drop(connection)

    def _take(self, _connection: object, _pid: int, channel: str, payload: object) -> None:
        self._receive(channel, str(payload))
