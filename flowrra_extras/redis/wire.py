"""One connection for commands, one for what is published. Both come back by themselves.

Knows scripts by name, and nothing of jobs.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import urllib.parse
from typing import TYPE_CHECKING, Any

import redis
import redis.asyncio
import redis.exceptions

from flowrra import BrokerError, ConfigError
from flowrra_extras.redis.scripts import SCRIPTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = ["Address", "Call", "Ear", "Link"]

logger = logging.getLogger("flowrra")

PATIENCE = 5.0  # seconds without an answer after which a connection counts as dead
_TLS_OPTIONS = frozenset(("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname"))
_AWAY = (redis.ConnectionError, redis.TimeoutError, OSError)
# What a server says that will soon be able to do it, or of which another one is the master by now.
_PASSING = (
    redis.exceptions.ReadOnlyError,
    redis.exceptions.TryAgainError,
    redis.exceptions.MovedError,
    redis.exceptions.ClusterDownError,
    redis.exceptions.MasterDownError,
)


class Address:
    """Where a server is, as its URL says."""

    def __init__(self, url: str) -> None:
        parts = urllib.parse.urlsplit(url)
        options = dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))
        self.prefix = "{" + options.pop("prefix", "flowrra") + "}"
        known = {"db"} if parts.scheme == "unix" else _TLS_OPTIONS if parts.scheme == "rediss" else frozenset()
        for name in options.keys() - known:
            raise ConfigError(f"{_without_password(parts)!r} has the unknown option {name!r}; there is prefix=, and "
                              f"{', '.join(sorted(known)) or 'no other'}")  # fmt: skip
        if parts.scheme != "unix" and not parts.path.strip("/").isdecimal() and parts.path.strip("/"):
            raise ConfigError(f"{_without_password(parts)!r}: the path is the number of the database, such as /0")
        if self.prefix == "{}" or set(self.prefix[1:-1]) & set("{}"):
            raise ConfigError(f"prefix must be a text without braces, not {self.prefix[1:-1]!r}")
        plain = parts._replace(query=urllib.parse.urlencode(options)).geturl()
        try:
            pool = redis.asyncio.ConnectionPool.from_url(plain)
        except ValueError as error:
            raise ConfigError(f"{_without_password(parts)!r} cannot be read: {error}") from None
        self.name = _without_password(parts._replace(query=""))
        self._class = pool.connection_class
        self._options = pool.connection_kwargs

    async def connect(self) -> Any:
        """A new connection, ready to be used."""
        options = {**self._options, "protocol": 2, "decode_responses": True, "encoding_errors": "surrogatepass"}
        connection: Any = self._class(**options, socket_timeout=None, socket_connect_timeout=PATIENCE)
        try:
            await connection.connect()
        except redis.AuthenticationError as error:
            raise BrokerError(f"{self.name} does not accept this user and password: {error}") from None
        return connection

    def follow(self, moved: str) -> None:
        """Go to the node of a cluster that `moved` (MOVED SLOT HOST:PORT) tells of."""
        host, _, port = moved.split()[-1].rpartition(":")
        self._options = {**self._options, "port": int(port), "host": host or self._options.get("host", "localhost")}


def _without_password(parts: urllib.parse.SplitResult) -> str:
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


class Call:
    """One script to be run. `answer` is what came of it, an exception if it failed."""

    __slots__ = ("answer", "arguments", "is_answered", "is_repeatable", "needs_text", "script")

    def __init__(self, name: str, arguments: Iterable[str], *, is_repeatable: bool = True) -> None:
        self.script = SCRIPTS[name]
        self.arguments = list(arguments)
        self.is_repeatable = is_repeatable
        self.is_answered = False
        self.needs_text = False  # the server does not know the script (any more)
        self.answer: Any = None

    def take(self, answer: Any) -> None:
        self.answer = answer
        self.is_answered = True

    def pack(self, prefix: bytes) -> bytes:
        """The command as bytes: redis-py's own packing costs three times as much."""
        script = (b"EVAL", self.script.text) if self.needs_text else (b"EVALSHA", self.script.sha)
        words = [*script, b"1", prefix, *[text.encode("utf-8", "surrogatepass") for text in self.arguments]]
        return b"*%d\r\n" % len(words) + b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in words])


class Link:
    """The connection for commands: a group of calls is one write, and their answers are read in order."""

    def __init__(self, address: Address, timeout: float) -> None:
        self._address = address
        self._timeout = timeout
        self._prefix = f"{address.prefix}:".encode()
        self._connection: Any = None

    async def send(self, calls: Sequence[Call]) -> None:
        """See that each call has an answer, within the time that a call may take.

        What was on its way when the connection was lost is sent again if it is repeatable; else its answer
        is a BrokerError. Cancelling drops the connection.
        """
        deadline = asyncio.get_running_loop().time() + self._timeout
        left = list(calls)
        for pause in itertools.chain((0.0, 0.02, 0.05, 0.1, 0.2), itertools.repeat(0.5)):
            try:
                await self._exchange(left, deadline)
            except BrokerError as error:
                self._give_up(left, error)
            except _AWAY as error:
                await self.drop()
                if asyncio.get_running_loop().time() + pause >= deadline:
                    text = f"has not answered for {self._timeout:g} s: {error or 'it is silent'}"
                    self._give_up(left, self._error(text))
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 (no secret)
            left = [call for call in left if not call.is_answered]
            if not left:
                return

    def _give_up(self, calls: Sequence[Call], error: BrokerError) -> None:
        for call in calls:
            if not call.is_answered:
                call.take(error)

    async def _exchange(self, calls: Sequence[Call], deadline: float) -> None:
        """Send the calls and read the answers, which may be errors that deserve another try."""
        packed = [call.pack(self._prefix) for call in calls]
        patience = PATIENCE + sum(map(len, packed)) / 1e6
        is_sent = False
        try:
            async with asyncio.timeout_at(min(deadline, asyncio.get_running_loop().time() + patience)):
                if self._connection is None:
                    self._connection = await self._address.connect()
                is_sent = True
                await self._connection.send_packed_command(packed, check_health=False)
                for call in calls:
                    await self._read(call)
        except _AWAY as error:
            if is_sent:
                unsure = [call for call in calls if not call.is_repeatable]
                self._give_up(unsure, self._error(f"was lost before it answered: {error or 'it is silent'}"))
            raise

    async def _read(self, call: Call) -> None:
        try:
            call.take(await self._connection.read_response())
        except redis.exceptions.NoScriptError:
            call.needs_text = True
        except redis.ResponseError as error:
            self._judge(call, error)

    def _judge(self, call: Call, error: redis.ResponseError) -> None:
        """An error that the server answered: for good, or worth another try on another connection."""
        text = str(error)
        if isinstance(error, _PASSING) or "READONLY" in text or text.startswith(("BUSY ", "MOVED ")):
            if isinstance(error, redis.exceptions.MovedError) or text.startswith("MOVED "):
                self._address.follow(text)
            raise redis.ConnectionError(text)
        if isinstance(error, redis.OutOfMemoryError) or "OOM" in text:
            text = f"is out of memory, so that nothing was written: raise maxmemory, or purge ({text})"
        elif isinstance(error, redis.exceptions.NoPermissionError):
            text = f"does not allow this user the scripts, keys and channels of {self._address.prefix} ({text})"
        call.take(self._error(text))

    def _error(self, text: str) -> BrokerError:
        return BrokerError(f"{self._address.name} {text}")

    async def settings(self) -> dict[str, str]:
        """What the server says of how it keeps jobs; nothing where that is forbidden."""
        try:
            await self._connection.send_command("CONFIG", "GET", "*append*")
            pairs = await self._connection.read_response()
            await self._connection.send_command("CONFIG", "GET", "maxmemory-policy")
            pairs += await self._connection.read_response()
        except redis.ResponseError:
            return {}
        return dict(zip(pairs[::2], pairs[1::2], strict=True))

    async def drop(self) -> None:
        """Close the connection; the next call opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)


class Ear:
    """The connection for what is published: channels that are wanted are subscribed to, again and again.

    `hear(channel, text)` is called for each message, and with None when a subscription begins: before
    that, anything may have been missed.
    """

    def __init__(self, address: Address, hear: Callable[[str, str | None], None]) -> None:
        self._address = address
        self._hear = hear
        self._wanted: list[str] = []
        self._connection: Any = None
        self._task: asyncio.Task[None] | None = None

    def want(self, channel: str) -> None:
        """Listen to `channel` from now on."""
        if channel in self._wanted:
            return
        self._wanted.append(channel)
        if self._task is not None:
            self._task.cancel()
        self._task = asyncio.create_task(self._listen())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    async def _listen(self) -> None:
        failures = 0
        while True:
            try:
                await self._follow()
            except (redis.RedisError, OSError) as error:
                failures += 1
                if failures % 20 == 1:
                    logger.warning(
                        "%s: what is published there is not heard (%s); trying again", self._address.name, error
                    )
            await asyncio.sleep(random.uniform(0.1, 0.5))  # noqa: S311 (no secret)

    async def _follow(self) -> None:
        """Listen until the connection is lost. One that is silent is asked whether it is still there."""
        connection = await self._address.connect()
        try:
            channels = [f"{self._address.prefix}:{channel}" for channel in self._wanted]
            await connection.send_command("SUBSCRIBE", *channels, check_health=False)
            silent = False
            while True:
                message = await connection.read_response(timeout=PATIENCE, disconnect_on_error=False)
                if message is None:
                    if silent:
                        raise redis.ConnectionError("no answer")
                    await connection.send_command("PING", check_health=False)
                silent = message is None
                if message is not None and message[0] in ("message", "subscribe"):
                    channel = message[1].rpartition(":")[2]
                    self._hear(channel, message[2] if message[0] == "message" else None)
        finally:
            await connection.disconnect(nowait=True)
