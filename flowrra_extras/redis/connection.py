"""Two connections to a server that reconnect by themselves: one for scripts, one for published messages.

redis-py opens them: it supports Sentinel, TLS, users and credentials. This module packs commands and pairs them with
their answers, because redis-py's pipelines need 1.8 times the CPU per job. Used in this way, its connections cost no
more than a client of our own. This module knows scripts and channels by name, and no jobs.
"""

import asyncio
import collections
import contextlib
import itertools
import json
import math
import os
import re
import ssl
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import hiredis
import redis.asyncio
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthorizationError,
    ClusterDownError,
    MovedError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)

from flowrra import BrokerError, ConfigError, StoreStatus, Topic, WaiterHub, logger
from flowrra_extras.backoff import listen, note_outage, pauses
from flowrra_extras.batching import closed, end_task
from flowrra_extras.redis.scripts import SCRIPTS
from flowrra_extras.urls import ServerURL, check_options, read_server_url

ClientMaker = Callable[[], redis.asyncio.Redis]
PATIENCE = 5.0  # seconds without an answer after which a connection counts as dead
_SENTINEL_PATIENCE = 1.0  # the same for a sentinel; after that the next one is asked
_TLS_FILES = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")
_TLS_OPTIONS = (*_TLS_FILES, "ssl_cert_reqs", "ssl_check_hostname")
_SENTINEL_OPTIONS = ("sentinel_username", "sentinel_password")
# Errors of a server that can soon do it again, or that is no longer the master. Before Redis 7, the text of an error
# inside a script is in the middle of the message.
_PASSING = (AskError, ClusterDownError, ReadOnlyError, TryAgainError)
_PASSING_TEXTS = ("BUSY ", "READONLY", "NOREPLICAS")
_ANSWERED = (ResponseError, AuthenticationError)  # errors in the answer to a call
_STRANGER = "does not accept this user and password"
_UNSERVED = "Hash slot not served"
_FORBIDDEN = ("NOPERM", "user executing the script")
_SURROGATES = "surrogatepass"  # any str must be accepted
# For every client: texts are str, each call has its own time-out, and retries happen here, because a script must know
# that its call is a repetition.
_CLIENT_OPTIONS = {
    "decode_responses": True, "encoding": "utf-8", "encoding_errors": _SURROGATES, "socket_timeout": None,
    "retry": Retry(NoBackoff(), 0),
}  # fmt: skip


class Address:
    """The address of a server. `make_client` makes a client of redis-py for it; `hosts` are tried in turn."""

    def __init__(self, name: str, prefix: str, make_client: ClientMaker, hosts: Sequence[tuple[str, int]] = ()) -> None:
        if not prefix or set(prefix) & set("{}"):
            raise ConfigError(f"prefix must be a text without braces, not {prefix!r}")
        self.name = name
        self.prefix = f"{{{prefix}}}"
        self.database = 0
        self._make_client = make_client
        self._hosts = itertools.cycle(hosts or (None,))
        self._place = next(self._hosts)

    async def connect(self, on_message: Callable[[Any], None] | None = None) -> "Connection":
        """Open a connection. `on_message` receives published messages."""
        client = self._make_client()
        pool = client.connection_pool
        options = pool.connection_kwargs
        options.update(_CLIENT_OPTIONS)
        if self._place is not None:
            options["host"], options["port"] = self._place
        self.database = options.get("db") or 0
        raw: AbstractConnection = pool.make_connection()  # type: ignore[no-untyped-call]
        try:
            await raw.connect()  # type: ignore[no-untyped-call]
        except BaseException as error:
            await raw.disconnect(nowait=True)
            self.try_next()
            self._refuse(error)
            raise
        finally:
            if isinstance(pool, SentinelConnectionPool):
                for sentinel in pool.sentinel_manager.sentinels:
                    await sentinel.aclose()
        return Connection(raw, client, on_message)

    def _refuse(self, error: BaseException) -> None:
        """Raise a clear error for a failed connection, if there is one that is better than the original."""
        if isinstance(error.__context__, ssl.SSLCertVerificationError):
            raise BrokerError(f"{self.name} has a certificate that is not trusted: {error.__context__}") from None
        if isinstance(error, (AuthenticationError, AuthorizationError)):
            raise BrokerError(f"{self.name} {_STRANGER}: {error}") from None
        if isinstance(error, ResponseError) and not _is_passing(error):
            raise BrokerError(f"{self.name} refuses the connection: {error}") from None
        if isinstance(error, RedisError):
            raise ConnectionError(str(error)) from None

    def try_next(self) -> None:
        """Change to the next host, also from a node that a cluster has named, because the node may be down."""
        self._place = next(self._hosts)

    def follow(self, moved: str) -> None:
        """Change to the node of a cluster that `moved` (SLOT HOST:PORT) names."""
        host, _, port = moved.split()[-1].rpartition(":")
        self._place = host or (self._place or ("localhost", 0))[0], int(port)


def address_from_client(make_client: ClientMaker, prefix: str) -> Address:
    """Return the address of a server for which the caller makes clients."""
    options = make_client().connection_pool.connection_kwargs
    place = options.get("path") or "{}:{}".format(options.get("host", "sentinel"), options.get("port", ""))
    return Address(f"redis://{place.rstrip(':')}/{options.get('db') or 0}", prefix, make_client)


def address_from_url(url: str) -> Address:
    """Return the address in a URL.

    Raises:
        ConfigError: the URL is not valid.
    """
    parts = read_server_url(url)
    try:
        return _read_url(parts)
    except ValueError as error:
        raise ConfigError(f"{parts.shown!r} cannot be read: {error}") from None


def _read_url(parts: ServerURL) -> Address:
    scheme, _, kind = parts.scheme.partition("+")
    known = ["prefix", "client_name", "protocol", *(_TLS_OPTIONS if scheme == "rediss" else ())]
    known += {"unix": ["db"]}.get(scheme, _SENTINEL_OPTIONS if kind else ())
    check_options(parts, known)
    options = parts.options
    prefix, path = options.get("prefix", "flowrra"), parts.path.strip("/")
    database = options.get("db", "0") if scheme == "unix" else path.partition("/")[2] if kind else path
    common: dict[str, Any] = {
        "db": _number("database", database or "0"), "username": parts.user, "password": parts.password,
        "client_name": options.get("client_name"), "protocol": _number("protocol", options.get("protocol", "2")),
    }  # fmt: skip
    tls = _tls_options(options) if scheme == "rediss" else {}
    if scheme == "unix":
        return Address(parts.shown, prefix, lambda: redis.asyncio.Redis(unix_socket_path=f"/{parts.path}", **common))
    hosts = [(host or "localhost", port or (26_379 if kind else 6379)) for host, port in parts.hosts]
    if not kind:
        return Address(parts.shown, prefix, lambda: redis.asyncio.Redis(**common, **tls), hosts)
    asking = {
        "username": options.get("sentinel_username"), "password": options.get("sentinel_password"),
        "socket_timeout": _SENTINEL_PATIENCE, "retry": Retry(NoBackoff(), 0), **tls,
    }  # fmt: skip
    master = path.partition("/")[0]
    if not master:
        raise ValueError("the name of the master follows the hosts, such as /mymaster/0")

    def ask() -> redis.asyncio.Redis:
        sentinels = Sentinel(hosts, sentinel_kwargs=asking)  # type: ignore[no-untyped-call]
        client: redis.asyncio.Redis = sentinels.master_for(master, **common, **tls)
        return client

    return Address(parts.shown, prefix, ask)


def _number(name: str, text: str) -> int:
    if not (text.isdecimal() and text.isascii()):
        raise ValueError(f"the number of the {name} must be a number, not {text!r}")
    return int(text)


def _tls_options(options: Mapping[str, str]) -> dict[str, Any]:
    requirement = options.get("ssl_cert_reqs", "required")
    if requirement not in ("none", "required"):
        raise ValueError(f"ssl_cert_reqs must be none or required, not {requirement}")
    check = options.get("ssl_check_hostname", "true").lower()
    if check not in ("true", "false"):
        raise ValueError(f"ssl_check_hostname must be true or false, not {check}")
    files = {name: options[name] for name in _TLS_FILES if name in options}
    for name, path in files.items():
        if not os.access(path, os.R_OK):
            raise ValueError(f"there is no readable file {path} ({name})")
    checks = check == "true" and requirement == "required"
    return {"ssl": True, "ssl_cert_reqs": requirement, "ssl_check_hostname": checks, **files}


def _is_passing(error: RedisError) -> bool:
    return isinstance(error, _PASSING) or any(text in str(error) for text in _PASSING_TEXTS)


def _pack(words: Sequence[str | bytes]) -> bytes:
    """Return a command as bytes. Words with lone surrogates take longer."""
    try:
        return hiredis.pack_command(tuple(words))  # type: ignore[arg-type, no-any-return]
    except UnicodeEncodeError:
        return _pack([word.encode(errors=_SURROGATES) if isinstance(word, str) else word for word in words])


class _Awaited:
    """The expected answers to commands that were sent together."""

    __slots__ = ("answers", "future", "missing", "until")

    def __init__(self, number: int, until: float) -> None:
        self.answers: list[Any] = []
        self.missing = number
        self.until = until
        self.future: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()


class Connection:
    """A connection of redis-py that many callers share: answers come in the order of the commands.

    An error in the answer of the server is returned as an answer.
    """

    def __init__(
        self, raw: AbstractConnection, client: redis.asyncio.Redis, on_message: Callable[[Any], None] | None
    ) -> None:
        self._raw = raw
        self._client = client  # kept, because the connection has only a weak reference to its pool
        self._on_message = on_message
        self._loop = asyncio.get_running_loop()
        self._awaited: collections.deque[_Awaited] = collections.deque()
        self._watch: asyncio.TimerHandle | None = None
        self.lost: asyncio.Future[None] = self._loop.create_future()
        self._reader = self._loop.create_task(self._read())
        self._closing: asyncio.Task[None] | None = None

    async def _read(self) -> None:
        """Read answers and messages until the connection is lost."""
        reason = "it closed the connection"
        try:
            while True:
                try:
                    self._take(await self._raw.read_response(push_request=self._on_message is not None))
                except _ANSWERED as error:
                    self._take(error)
        except (RedisError, OSError) as error:
            reason = str(error)
        finally:
            self._end(reason)

    def _take(self, answer: Any) -> None:
        if self._awaited:
            awaited = self._awaited[0]
            awaited.answers.append(answer)
            awaited.missing -= 1
            if not awaited.missing:
                self._awaited.popleft()
                if not awaited.future.done():
                    awaited.future.set_result(awaited.answers)
        elif self._on_message is not None:
            self._on_message(answer)

    def _end(self, reason: str) -> None:
        if self._watch is not None:
            self._watch.cancel()
        if not self.lost.done():
            self.lost.set_result(None)
        while self._awaited:
            future = self._awaited.popleft().future
            if not future.done():
                future.set_exception(ConnectionError(reason))

    async def ask(self, commands: bytes, number: int, patience: float) -> list[Any]:
        """Send commands, and return their `number` answers. Without these after `patience` seconds, close it.

        The time starts when earlier commands, which may be large, have been answered.
        """
        until = self._loop.time() + patience
        if self._awaited:
            until = max(until, self._awaited[-1].until)
        awaited = _Awaited(number, until)
        self._awaited.append(awaited)
        if self._watch is None or self._watch.when() > until:
            self._watch_until(until)
        try:
            await self.write(commands)
        except BaseException:
            awaited.future.cancel()
            raise
        return await awaited.future

    async def write(self, commands: bytes) -> None:
        """Send commands without waiting for their answers."""
        if self.lost.done() or not self._raw.is_connected:  # redis-py would reconnect
            raise ConnectionError("it closed the connection")
        try:
            await self._raw.send_packed_command(commands, check_health=False)
        except RedisError as error:
            raise ConnectionError(str(error)) from None

    def _watch_until(self, moment: float) -> None:
        """Check at `moment` whether answers have come. One timer serves all calls."""
        if self._watch is not None:
            self._watch.cancel()
        self._watch = self._loop.call_at(moment, self._look)

    def _look(self) -> None:
        self._watch = None
        if self._awaited and self._awaited[0].until <= self._loop.time():
            self.close()
        elif self._awaited:
            self._watch_until(self._awaited[0].until)

    def close(self) -> None:
        """Close the connection. Waiting callers get a ConnectionError."""
        self._end("it is silent")
        if self._closing is None:
            self._closing = self._loop.create_task(self._shut())

    async def _shut(self) -> None:
        await self._raw.disconnect(nowait=True)  # also if the reader has not started
        self._reader.cancel()
        await asyncio.wait([self._reader])

    async def wait_closed(self) -> None:
        """Return when the socket is closed, after `close`."""
        if self._closing is not None:
            await asyncio.wait([self._closing])

    async def abandon(self) -> None:
        """Close the socket of a loop that has ended, in which no task can run."""
        with contextlib.suppress(RuntimeError):  # the loop was closed
            await self._raw.disconnect(nowait=True)


class Call:
    """One run of a script. `answer` is its answer, or a BrokerError if it failed."""

    answer: Any

    def __init__(self, name: str, *words: str) -> None:
        self.name = name
        self.words: Sequence[str] = words
        self.is_answered = False
        self._sent = 0  # how often it was sent, and may have been carried out
        self._needs_text = False  # the server does not know the script (any more)

    @property
    def is_repeated(self) -> bool:
        """Whether it was sent more than once, because the server was silent or its answer was lost."""
        return self._sent > 1

    def take(self, answer: Any) -> None:
        """Store the answer of the script, or a BrokerError."""
        self.answer = answer
        self.is_answered = True

    def pack(self, prefix: str) -> bytes:
        """Return the command, for the first or a repeated call."""
        script = SCRIPTS[self.name]
        command = (b"EVAL", script.text) if self._needs_text else (b"EVALSHA", script.sha)
        packed = _pack((*command, b"1", prefix, b"1" if self._sent else b"0", *self.words))
        self._sent += 1
        return packed

    def spell_out(self) -> None:
        """Send the text of the script next time, because the server does not know its hash."""
        self._needs_text = True
        self._sent -= 1


class Link:
    """The connection for scripts. Concurrent calls share it."""

    def __init__(self, address: Address, status: StoreStatus | None = None) -> None:
        self._address = address
        self._status = status or StoreStatus()
        self._timeout = 0.0
        self.failed = -math.inf  # when a call last had no answer, by the loop's clock
        self._prefix = f"{address.prefix}:"
        self._connection: Connection | None = None
        self._connecting = asyncio.Lock()
        self._is_open = False

    def open(self, timeout: float) -> None:
        """Allow calls. Each may take `timeout` seconds. The first call connects."""
        self._timeout = timeout
        self._is_open = True

    async def send(self, calls: Sequence[Call]) -> None:
        """Send calls in one write, and wait until each one has an answer, at most for the time-out of a call.

        If the connection is lost, calls without an answer are sent again, marked as repeated. If cancelled, the calls
        may or may not be carried out.
        """
        if not self._is_open:
            _give_up(calls, BrokerError(f"the broker on {self._address.name} is not open"))
            return
        deadline = asyncio.get_running_loop().time() + self._timeout
        left = calls
        for pause in pauses():
            try:
                await self._exchange(left, deadline)
            except BrokerError as error:
                _give_up(left, error)
            except OSError as error:  # a TimeoutError is one
                self.failed = asyncio.get_running_loop().time()
                why = note_outage(self._status, self._address.name, error, self._timeout) if self._is_open else ""
                if not self._is_open:
                    _give_up(left, closed())
                elif asyncio.get_running_loop().time() + pause >= deadline:
                    _give_up(left, self._error(f"has not answered for {self._timeout:g} s: {why}"))
                else:
                    await asyncio.sleep(pause)
            left = [call for call in left if not call.is_answered]
            if not left:
                return

    async def _exchange(self, calls: Sequence[Call], deadline: float) -> None:
        """Send the calls and read the answers. Some errors lead to another try."""
        connection = self._connection
        if connection is None or connection.lost.done():
            connection = await self._reconnect(deadline)
        packed = b"".join([call.pack(self._prefix) for call in calls])
        patience = min(PATIENCE + len(packed) / 1e6, deadline - asyncio.get_running_loop().time())
        answers = await connection.ask(packed, len(calls), patience)
        self._status.problem = ""
        for call, answer in zip(calls, answers, strict=True):
            if isinstance(answer, _ANSWERED):
                self._judge(call, answer)
            else:
                call.take(answer)

    async def _reconnect(self, deadline: float) -> Connection:
        """Return the current connection, or open one for all callers that have lost the last one."""
        patience = min(deadline, asyncio.get_running_loop().time() + PATIENCE)
        async with asyncio.timeout_at(patience), self._connecting:
            if self._connection is None or self._connection.lost.done():
                self._connection = await self._address.connect()
            if not self._is_open:
                self._drop()
                raise ConnectionError
            return self._connection

    def _judge(self, call: Call, error: RedisError) -> None:
        """Handle an error in an answer: it is final, or the call is tried again, perhaps on another connection."""
        text = str(error)
        if isinstance(error, NoScriptError):
            call.spell_out()
            return
        if _UNSERVED in text:
            text = f"is a cluster in which no node has this hash slot: assign it, redis-cli --cluster fix ({text})"
        elif _is_passing(error):
            if isinstance(error, MovedError):
                self._address.follow(text)
            else:
                self._address.try_next()
            self._drop()
            raise ConnectionError(text or type(error).__name__)
        elif isinstance(error, AuthenticationError):
            text = f"{_STRANGER}: {text}"
        elif isinstance(error, OutOfMemoryError) or "OOM" in text:
            text = f"is out of memory, so that nothing was written: raise maxmemory, or purge ({text})"
        elif isinstance(error, NoPermissionError) or any(words in text for words in _FORBIDDEN):
            text = f"does not allow this user the scripts, keys and channels of {self._address.prefix} ({text})"
        call.take(self._error(text))

    def _error(self, text: str) -> BrokerError:
        return BrokerError(f"{self._address.name} {text}")

    async def settings(self) -> dict[str, str]:
        """Return the server's settings for persistence; empty if they are forbidden, or the connection was lost.

        Raises:
            BrokerError: this user may not publish. A script would notice only at its end, after its writes.
        """
        asked = ("CONFIG", "GET", "appendonly"), ("CONFIG", "GET", "maxmemory-policy")
        others = ("INFO", "server"), ("PUBLISH", f"{self._prefix}results", "[]")
        try:
            connection = await self._reconnect(asyncio.get_running_loop().time() + self._timeout)
            words = b"".join(map(_pack, (*asked, *others)))
            *answers, about, heard = await connection.ask(words, len(asked) + len(others), PATIENCE)
        except OSError:
            return {}
        if isinstance(heard, NoPermissionError):
            raise self._error(f"does not allow this user to publish: its ACL needs +publish &{self._prefix}* ({heard})")
        run = re.search(r"^run_id:(\w+)", str(about), re.MULTILINE)
        found = {"store": f"{run[1]} {self._address.database} {self._prefix}"} if run else {}
        for answer in answers:  # a mapping in RESP3
            if answer and not isinstance(answer, ResponseError):
                found |= answer if isinstance(answer, dict) else {answer[0]: answer[1]}
        return found

    async def close(self) -> None:
        """Close the connection and do not reconnect. Waiting callers get a BrokerError."""
        self._is_open = False
        connection = self._connection
        self._drop()
        if connection is not None:
            await connection.wait_closed()

    async def abandon(self) -> None:
        """Drop the connection of a loop that has ended."""
        self._is_open = False
        if self._connection is not None:
            await self._connection.abandon()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _give_up(calls: Sequence[Call], error: BrokerError) -> None:
    for call in calls:
        if not call.is_answered:
            call.take(error)


_CHANNELS = {"queue": "jobs", "job": "results", "worker": "notices"}
_KINDS = {channel: kind for kind, channel in _CHANNELS.items()}


class Notifications:
    """The callers that wait on this loop (`hub`), and the connection for the published messages that wake them.

    It reconnects by itself, and subscribes to all channels again.
    """

    def __init__(self, address: Address) -> None:
        self.hub = WaiterHub()
        self._address = address
        self._wanted: list[str] = []
        self._is_silent = False
        self._connection: Connection | None = None
        self._task: asyncio.Task[None] | None = None

    def want(self, topics: Sequence[Topic]) -> None:
        for kind, _ in topics:
            if _CHANNELS[kind] not in self._wanted:
                self._wanted.append(_CHANNELS[kind])
                if self._task is not None:
                    self._task.cancel()
                self._task = asyncio.create_task(listen(self._follow, self._address.name))

    async def abandon(self) -> None:
        """Stop listening for a loop that has ended, in which no task can run."""
        if self._connection is not None:
            await self._connection.abandon()

    async def close(self) -> None:
        """Stop listening. Waiting callers get a BrokerError."""
        await end_task(self._task)
        self._task = None
        self.hub.close(closed())

    async def _follow(self) -> None:
        """Listen until the connection is lost. A silent connection is checked."""
        async with asyncio.timeout(PATIENCE):
            self._connection = connection = await self._address.connect(self._take)
        try:
            channels = [f"{self._address.prefix}:{channel}" for channel in self._wanted]
            await connection.write(_pack(("SUBSCRIBE", *channels)))
            while not connection.lost.done():
                self._is_silent = True
                await asyncio.wait([connection.lost], timeout=PATIENCE)
                if self._is_silent:
                    await connection.write(_pack(("PING",)))
                    await asyncio.wait([connection.lost], timeout=PATIENCE)
                if self._is_silent:
                    raise ConnectionError("it is silent")
        finally:
            self._connection = None
            connection.close()
            await connection.wait_closed()

    def _take(self, message: Any) -> None:
        self._is_silent = False
        if isinstance(message, list) and message[0] in ("message", "subscribe"):
            kind = _KINDS[message[1].rpartition(":")[2]]
            self._wake(kind, message[2] if message[0] == "message" else "")  # some may have been missed before
        elif isinstance(message, ResponseError):
            logger.warning("%s: cannot receive published messages (%s)", self._address.name, message)

    def _wake(self, kind: str, text: str) -> None:
        """Wake those whom a message is for. One without a text is for all of its kind."""
        if not text:
            self.hub.wake_all(kind)
            return
        names: Iterable[str] = json.loads(text) if kind == "job" else [text if kind == "queue" else ""]
        for name in names:
            self.hub.wake((kind, name))
