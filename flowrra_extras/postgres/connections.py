"""Connections: a few that carry statements, and the one that listens.

What the server cannot do now but will be able to (it restarts, fails over, is silent) is tried again on
another connection, for as long as a call may take.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import random
import re
import urllib.parse
from typing import TYPE_CHECKING, Any, TypeVar

import asyncpg

from flowrra import BrokerError, ConfigError, FlowrraError, SerializationError, describe
from flowrra_extras.batching import closed
from flowrra_extras.postgres.statements import in_schema
from flowrra_extras.urls import read_server_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

__all__ = ["SILENCE", "Address", "AwayError", "Link", "Listener", "Session", "callers_session"]

T = TypeVar("T")

logger = logging.getLogger("flowrra")

SILENCE = 5.0  # seconds after which a connection that does not answer is given up for a new one
STANDBY = "name the primary, or all hosts and target_session_attrs=read-write, which finds it"
_AGES = 3600.0  # seconds for an index of a large table
_LIBPQ = frozenset(
    ("application_name", "database", "dbname", "gsslib", "host", "krbsrvname", "passfile", "password", "port",
     "sslcert", "sslcrl", "sslkey", "sslmode", "sslnegotiation", "sslpassword", "sslrootcert",
     "ssl_max_protocol_version", "ssl_min_protocol_version", "target_session_attrs", "user")
)  # fmt: skip
# Of libpq's options, which hosted databases hand out: what goes to the server as it is, and what asyncpg has no use
# for. A connection that is silent is given up in any case, and TLS is as `sslmode` says.
_SETTINGS = frozenset(("options", "search_path"))
_UNUSED = frozenset(
    ("channel_binding", "client_encoding", "fallback_application_name", "gssencmode", "keepalives", "keepalives_count",
     "keepalives_idle", "keepalives_interval", "sslcompression", "sslsni", "tcp_user_timeout")
)  # fmt: skip
# asyncpg looks up what an array is when it first meets one, and turns jit off for that and on again: which may be in
# two sessions behind a pooler, unless it is in one transaction. So it meets all that the statements use in its first.
ARRAYS = ("bigint", "float8", "integer")
_LEARN_ARRAYS = "SELECT " + ", ".join(f"${number}::{name}[]" for number, name in enumerate(ARRAYS, 1))
_COMMITS = ("on", "off", "local", "remote_write", "remote_apply")
# Plans that are made while a table is empty are kept, and would read all of it when it is full: of what these forbid,
# no statement here has need. And none is worth compiling.
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
    asyncpg.UniqueViolationError,  # of two requeues with one key: the second look tells
    asyncpg.ObjectNotInPrerequisiteStateError,
    asyncpg.exceptions.InvalidCachedStatementError,
)
_NOT_AWAY = (
    asyncpg.DataError,
    asyncpg.QueryCanceledError,
    asyncpg.DiskFullError,
    asyncpg.exceptions.ClientConfigurationError,
)


def _is_away(error: BaseException) -> bool:
    """Whether another try, on another connection, may do."""
    if isinstance(error, asyncpg.ProtocolViolationError):  # what a pooler calls all its troubles: this one stays
        return "startup parameter" not in str(error)
    return isinstance(error, _AWAY) and not isinstance(error, _NOT_AWAY)


class AwayError(BrokerError):
    """The server could not be used for as long as a call may take."""


class Address:
    """Where a database is, as its URL says."""

    def __init__(self, url: str) -> None:
        parts = read_server_url(url)
        options = parts.options
        self.name = parts.shown + (f" ({options['host']})" if "host" in options else "")
        self.has_schema = "schema" in options
        self.schema = options.pop("schema", "flowrra")
        if not re.fullmatch(r"[a-z_][a-z0-9_]{0,39}", self.schema) or self.schema.startswith("pg_"):
            raise ConfigError(f"schema must be up to 40 of a-z, 0-9 and _, not {self.schema!r}")
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
                "synchronous_commit= is a setting of a session, of which a pooler in transaction mode has none"
            )
        self._url = f"{_without_options(url)}?{urllib.parse.urlencode(options)}"

    def _number(self, options: dict[str, str], name: str, default: int, least: int) -> int:
        text = options.pop(name, str(default))
        if not text.isdecimal() or int(text) < least:
            raise ConfigError(f"{name} must be a whole number of at least {least}, not {text!r}")
        return int(text)

    def _drop_unused(self, options: dict[str, str]) -> None:
        if options.get("gssencmode") == "require":
            raise ConfigError(f"{self.name}: gssencmode=require cannot be had with asyncpg; use sslmode=verify-full")
        if options.get("channel_binding") == "require":
            logger.warning(
                "%s: channel_binding=require cannot be had with asyncpg, and is left out; sslmode=verify-full makes "
                "sure of the server", self.name,
            )  # fmt: skip
        for name in _UNUSED & options.keys():
            del options[name]

    @property
    def is_pooled(self) -> bool:
        """Whether there is a pooler in between, so that a session is ours for one transaction only."""
        return self.cache == 0

    async def plain(self, settings: Mapping[str, str], timeout: float | None = None) -> asyncpg.Connection[Any]:
        """A connection with these settings of a session beside those of the URL."""
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
    """The URL as asyncpg reads it: with the scheme it knows, and every mark in user and password percent-encoded."""
    login, at, place = url.partition("://")[2].partition("?")[0].rpartition("@")
    return f"postgresql://{login.replace('@', '%40')}{at}{place}"


class Session:
    """A connection while it does one thing. Statements name the schema `flowrra`."""

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
        """A transaction around the body. Cancelling it leaves it open: the connection is of no use any more."""
        transaction = self.connection.transaction(isolation="read_committed")
        await transaction.start()
        try:
            yield
        except Exception:  # not when it is cancelled: a silent server would not answer a rollback either
            await transaction.rollback()
            raise
        await transaction.commit()

    async def store(self) -> tuple[int, str | None]:
        """The version of the schema that is found here, and what identifies the store; 0 and None if there is none."""
        if (await self.fetch("SELECT to_regclass('flowrra.meta') IS NULL"))[0][0]:
            return 0, None
        version, store = (await self.fetch("SELECT version, store::text FROM flowrra.meta"))[0]
        return version, store


class CallersSession(Session):
    """A connection of the user's, inside the user's transaction, which a failure of ours leaves as it was."""

    @contextlib.asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        if not self.is_in_transaction():
            raise ConfigError("the connection is in no transaction: begin one, which then decides over the job too")
        await self.fetch("SAVEPOINT flowrra_push")
        try:
            yield
        except BaseException:
            await self.fetch("ROLLBACK TO SAVEPOINT flowrra_push")
            await self.fetch("RELEASE SAVEPOINT flowrra_push")
            raise
        await self.fetch("RELEASE SAVEPOINT flowrra_push")


class PsycopgSession(CallersSession):
    """The same for psycopg 3.2 and later, whose connections may be plain ones: those block the loop meanwhile."""

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
        """Whether it is in one, or about to begin one."""
        return not self.connection.autocommit or self.connection.info.transaction_status != 0


def callers_session(connection: Any, schema: str) -> CallersSession:
    module = type(connection).__module__.partition(".")[0]
    if module == "psycopg":
        return PsycopgSession(connection, schema)
    if module == "asyncpg":
        return CallersSession(connection, schema)
    raise ConfigError(f"submit_in() takes a connection of asyncpg or psycopg here, not {type(connection).__name__}")


class Link:
    """A few connections, made when they are needed and given up when they fail."""

    def __init__(self, address: Address, timeout: float) -> None:
        self._address = address
        self._timeout = timeout
        self._gate = asyncio.Semaphore(address.pool_size)
        self._idle: list[asyncpg.Connection[Any]] = []
        self._busy: set[asyncpg.Connection[Any]] = set()
        self._endings: set[asyncio.Task[None]] = set()
        self._is_closed = False
        self.failed = -math.inf  # when the server last gave no answer, by the loop's clock
        self._is_away = False  # it did not answer the latest try, of which a warning was given

    async def run(self, work: Callable[[Session], Awaitable[T]], silence: float | None = SILENCE) -> T:
        """What `work` gives. It may be called again if a connection was lost, or silent for so many seconds.

        None: it may take its time.

        Cancelling leaves it open whether it was done.

        Raises:
            BrokerError: the server was away for as long as a call may take, or refuses this; or the link was closed.
            SerializationError: a value that the server cannot keep.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout
        failure: Exception | None = None
        for pause in itertools.chain((0.0, 0.02, 0.05, 0.1, 0.2), itertools.repeat(0.5)):
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
                self._note_failure(error)
            if loop.time() + pause >= deadline:
                break
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 (no secret)
        why = str(failure) or "it is silent"
        if isinstance(failure, asyncpg.ReadOnlySQLTransactionError):
            why += f"; {STANDBY}"
        raise AwayError(f"{self._address.name} has not answered for {self._timeout:g} s: {why}") from failure

    def _note_failure(self, error: Exception) -> None:
        """Say so at once when the server is away, and not again with each try."""
        is_silent = isinstance(error, (OSError, asyncpg.PostgresConnectionError, asyncpg.OperatorInterventionError))
        if is_silent and not self._is_away and not self._is_closed:
            self._is_away = True
            why = str(error) or "it is silent"
            logger.warning(
                "%s does not answer (%s); trying again for up to %g s", self._address.name, why, self._timeout
            )

    async def fetch(self, text: str, *values: Any, silence: float = SILENCE) -> Sequence[Any]:
        """The rows of one statement."""
        return await self.run(lambda session: session.fetch(text, *values), silence)

    async def _try(self, work: Callable[[Session], Awaitable[T]]) -> T:
        async with self._gate:
            connection = self._idle.pop() if self._idle else await self._address.connect()
            self._busy.add(connection)
            usable = False  # in the middle of something, or refused by its server, it is of no use to others
            try:
                result = await work(Session(connection, self._address.schema))
                usable, self._is_away = True, False
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
        """End a connection. What still runs on it is cancelled on the server, or it would block its next try."""
        if self._is_closed or connection.is_closed():
            drop(connection)
            return
        ending = asyncio.create_task(_end(connection))
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)

    def _explained(self, error: Exception) -> FlowrraError:
        name = self._address.name
        if isinstance(error, asyncpg.DataError):
            return SerializationError(f"{name} cannot keep this: {error}")
        if isinstance(error, asyncpg.InvalidAuthorizationSpecificationError):
            return BrokerError(f"{name} does not accept this user and password: {error}")
        if isinstance(error, asyncpg.DiskFullError):
            return BrokerError(f"{name} has a full disk: nothing of this was written; make room ({error})")
        if isinstance(error, asyncpg.InsufficientPrivilegeError):
            return BrokerError(
                f"{name} does not allow this user that: {error}; the tables of schema {self._address.schema} are made "
                "and changed by who may create them, and used with SELECT, INSERT, UPDATE and DELETE"
            )
        if isinstance(error, asyncpg.ProtocolViolationError):
            return BrokerError(
                f"{name}: {error}; behind a pooler in transaction mode, add statement_cache_size=0 to the URL"
            )
        return BrokerError(f"{name}: {error}")

    async def close(self) -> None:
        """Say good-bye to the server, within a second. Calls that are under way get a BrokerError."""
        self._is_closed = True
        for connection in self._busy:
            drop(connection)
        with contextlib.suppress(TimeoutError, *_AWAY):  # they are dropped then
            async with asyncio.timeout(1.0):
                await asyncio.gather(*(connection.close() for connection in self._idle))
        if self._endings:
            await asyncio.wait(self._endings)
        self.abandon()

    def abandon(self) -> None:
        """Drop the connections, as of a loop that has ended without closing them."""
        for connection in (*self._idle, *self._busy):
            drop(connection)


async def _end(connection: asyncpg.Connection[Any]) -> None:
    """Have the server cancel what still runs on the connection, and close it, within a second."""
    with contextlib.suppress(TimeoutError, asyncpg.PostgresError, *_AWAY):  # it is dropped then
        await connection.close(timeout=1.0)


def drop(connection: asyncpg.Connection[Any]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop was closed
        connection.terminate()


class Listener:
    """The connection that listens: to channels that are wanted, again and again.

    `receive(channel, text)` is called for each notification, and with None when listening begins: before that,
    anything may have been missed. Behind a pooler nothing is received.
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
        """Listen to `channel` from now on."""
        if channel in self._wanted or self._address.is_pooled or self._is_closed:
            return
        self._wanted.append(channel)
        self._call.set()
        if self._task is None:
            self._task = asyncio.create_task(self._listen())

    async def close(self) -> None:
        self._is_closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    def abandon(self) -> None:
        """Drop the connection of a loop that has ended without closing it."""
        if self._connection is not None:
            drop(self._connection)

    async def _listen(self) -> None:
        for failures in itertools.count(1):
            try:
                await self._follow()
            except (TimeoutError, asyncpg.PostgresError, *_AWAY) as error:
                if failures % 20 == 1:
                    why = describe(error)
                    logger.warning("%s: no notifications from there (%s); trying again", self._address.name, why)
            await asyncio.sleep(random.uniform(0.1, 0.5))  # noqa: S311 (no secret)

    async def _follow(self) -> None:
        """Listen until the connection is lost. One that is silent is asked whether it is still there."""
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
                    await asyncio.wait_for(self._call.wait(), SILENCE)
                except TimeoutError:
                    await connection.fetch("SELECT 1", timeout=SILENCE)
                if connection.is_closed():
                    raise ConnectionError("the connection was closed")
        finally:
            self._connection = None
            drop(connection)

    def _take(self, _connection: object, _pid: int, channel: str, payload: object) -> None:
        self._receive(channel, str(payload))
