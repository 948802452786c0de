"""Two connections to a server that come back by themselves: one for scripts, one for what is published.

They speak RESP through hiredis's parser and packer, without redis-py between, whose streams were the largest part of
what a lone submit cost its client. Knows scripts by name, and nothing of jobs.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
import logging
import math
import random
import re
import ssl
from typing import TYPE_CHECKING, Any, cast

import hiredis

from flowrra import BrokerError, ConfigError, describe
from flowrra_extras.batching import closed
from flowrra_extras.redis.scripts import SCRIPTS
from flowrra_extras.urls import check_options, read_server_url

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Address", "Call", "Link", "Subscription"]

logger = logging.getLogger("flowrra")

PATIENCE = 5.0  # seconds without an answer after which a connection counts as dead
_TLS_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname")
# What a server says that will soon be able to do it, or of which another one is the master by now. Before
# Redis 7, what is said inside a script stands in the middle of the text.
_PASSING = (
    "LOADING ", "TRYAGAIN ", "CLUSTERDOWN ", "MASTERDOWN ", "BUSY ", "MOVED ", "ASK ", "ERR max number of clients",
)  # fmt: skip
_UNSERVED = "CLUSTERDOWN Hash slot not served"
_PASSING_INSIDE = ("READONLY", "NOREPLICAS")
_FORBIDDEN = ("NOPERM", "user executing the script")
_SURROGATES = "surrogatepass"  # a text may be any str


class Address:
    """Where a server is, as its URL says."""

    def __init__(self, url: str) -> None:
        parts = read_server_url(url)
        is_socket = parts.scheme == "unix"
        self.name = parts.shown
        check_options(parts, ("prefix", *{"unix": ("db",), "rediss": _TLS_OPTIONS}.get(parts.scheme, ())))
        options = parts.options
        self.prefix = "{" + options.get("prefix", "flowrra") + "}"
        if self.prefix == "{}" or set(self.prefix[1:-1]) & set("{}"):
            raise ConfigError(f"prefix must be a text without braces, not {self.prefix[1:-1]!r}")
        database = options.get("db", "0") if is_socket else parts.path.strip("/") or "0"
        if not (database.isdecimal() and database.isascii()):
            raise self._error("the number of the database is a number, such as /0")
        (host, port), *others = parts.hosts
        if others:
            raise self._error("it names several hosts, where one is expected")
        self._path = f"/{parts.path}" if is_socket else None
        self._place = self._home = host or "localhost", port or 6379
        try:
            self._tls = _tls_context(options) if parts.scheme == "rediss" else None
        except (ValueError, OSError) as error:
            raise self._error(str(error)) from None
        words = [word for word in (parts.user, parts.password) if word]
        self._greeting = [("AUTH", *words)] if words else []
        self._greeting.append(("SELECT", database))
        self.database = database

    def _error(self, text: str) -> ConfigError:
        return ConfigError(f"{self.name!r} cannot be read: {text}")

    async def connect(self, on_message: Callable[[Any], None] | None = None) -> Connection:
        """A new connection, ready to be used. `on_message` gets what comes unasked."""
        loop = asyncio.get_running_loop()
        connection = Connection(on_message)
        try:
            if self._path is not None:
                await loop.create_unix_connection(lambda: connection, self._path)
            else:
                await loop.create_connection(lambda: connection, *self._place, ssl=self._tls)
        except BaseException as error:
            self._place = self._home  # a node that a cluster has named may be gone
            if isinstance(error, ssl.SSLCertVerificationError):
                raise BrokerError(f"{self.name} has a certificate that is not trusted: {error}") from None
            raise
        try:
            answers = await connection.ask(b"".join(map(_pack, self._greeting)), len(self._greeting), PATIENCE)
            for (word, *_), answer in zip(self._greeting, answers, strict=True):
                if _is_error(answer):
                    self._refuse(word, str(answer))
        except BaseException:
            connection.close()
            raise
        return connection

    def _refuse(self, word: str, text: str) -> None:
        """Raise the error that the server has answered to a greeting."""
        if text.startswith(_PASSING):
            raise ConnectionError(text)
        is_stranger = word == "AUTH" or text.startswith("NOAUTH")
        fault = "does not accept this user and password" if is_stranger else "refuses this database"
        raise BrokerError(f"{self.name} {fault}: {text}")

    def follow(self, moved: str) -> None:
        """Go to the node of a cluster that `moved` (MOVED SLOT HOST:PORT) tells of."""
        host, _, port = moved.split()[-1].rpartition(":")
        self._place = host or self._place[0], int(port)


def _tls_context(options: dict[str, str]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
    if "ssl_certfile" in options:
        context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"))
    requirement = options.get("ssl_cert_reqs", "required")
    if requirement not in ("none", "required"):
        raise ValueError(f"ssl_cert_reqs is none or required, not {requirement}")
    check = options.get("ssl_check_hostname", "true").lower()
    if check not in ("true", "false"):
        raise ValueError(f"ssl_check_hostname is true or false, not {check}")
    context.check_hostname = check == "true" and requirement == "required"
    if requirement == "none":
        context.verify_mode = ssl.CERT_NONE
    return context


def _is_error(answer: Any) -> bool:
    return isinstance(answer, hiredis.ReplyError)


def _pack(words: Sequence[str | bytes]) -> bytes:
    """A command as bytes. Lone surrogates, which a text may hold, take longer."""
    try:
        return hiredis.pack_command(tuple(words))  # type: ignore[arg-type, no-any-return]
    except UnicodeEncodeError:
        return _pack([word.encode(errors=_SURROGATES) if isinstance(word, str) else word for word in words])


class _Awaited:
    """The answers to some commands that have gone out together."""

    __slots__ = ("answers", "future", "missing", "until")

    def __init__(self, number: int, until: float) -> None:
        self.answers: list[Any] = []
        self.missing = number
        self.until = until
        self.future: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()


class Connection(asyncio.Protocol):
    """One socket: commands go out, answers come in, in order. An error that the server answers is an answer."""

    _transport: asyncio.Transport

    def __init__(self, on_message: Callable[[Any], None] | None) -> None:
        self._on_message = on_message
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(encoding="utf-8", errors=_SURROGATES)
        self._awaited: collections.deque[_Awaited] = collections.deque()
        self._watch: asyncio.TimerHandle | None = None
        self.lost: asyncio.Future[None] = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (answer := self._reader.gets()) is not False:  # no answer is false in RESP2
            if self._awaited:
                self._take(self._awaited[0], answer)
            elif self._on_message is not None:
                self._on_message(answer)

    def _take(self, awaited: _Awaited, answer: Any) -> None:
        awaited.answers.append(answer)
        awaited.missing -= 1
        if not awaited.missing:
            self._awaited.popleft()
            if not awaited.future.done():
                awaited.future.set_result(awaited.answers)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._watch is not None:
            self._watch.cancel()
        self.lost.set_result(None)
        for awaited in self._awaited:
            if not awaited.future.done():
                awaited.future.set_exception(ConnectionError(str(exc or "it closed the connection")))

    def ask(self, commands: bytes, number: int, patience: float) -> asyncio.Future[list[Any]]:
        """Send so many commands. Their answers come within `patience` seconds, or the connection is closed.

        Those before, which may be large, have their time first.
        """
        self.write(commands)
        until = self._loop.time() + patience
        if self._awaited:
            until = max(until, self._awaited[-1].until)
        self._awaited.append(_Awaited(number, until))
        if self._watch is None or self._watch.when() > until:
            self._watch_until(until)
        return self._awaited[-1].future

    def write(self, commands: bytes) -> None:
        """Send commands whose answers are not waited for."""
        if self._transport.is_closing():
            raise ConnectionError("the connection is closed")
        self._transport.write(commands)

    def _watch_until(self, moment: float) -> None:
        """Look at `moment` whether there are answers: one timer serves all calls meanwhile."""
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
        self._transport.abort()


class Call:
    """One run of a script. `answer` is what came of it, a BrokerError if it failed."""

    answer: Any

    def __init__(self, name: str, *words: str) -> None:
        self.name = name
        self.words: Sequence[str] = words
        self.is_answered = False
        self._sent = 0  # how often it has gone out, and may have been carried out
        self._needs_text = False  # the server does not know the script (any more)

    @property
    def is_repeated(self) -> bool:
        """Whether it has gone out more than once, as the server kept silent or its answer was lost."""
        return self._sent > 1

    def take(self, answer: Any) -> None:
        """Note what the script has answered, or a BrokerError."""
        self.answer = answer
        self.is_answered = True

    def pack(self, prefix: str) -> bytes:
        """The command, as it goes out for the first time or once more."""
        script = SCRIPTS[self.name]
        command = (b"EVAL", script.text) if self._needs_text else (b"EVALSHA", script.sha)
        packed = _pack((*command, b"1", prefix, b"1" if self._sent else b"0", *self.words))
        self._sent += 1
        return packed

    def spell_out(self) -> None:
        """Send the script itself the next time: it was not carried out."""
        self._needs_text = True
        self._sent -= 1


class Link:
    """The connection for scripts. Calls that meet share it, each with its answer."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._timeout = 0.0
        self.failed = -math.inf  # when a call was last left without an answer, by the loop's clock
        self._prefix = f"{address.prefix}:"
        self._connection: Connection | None = None
        self._connecting = asyncio.Lock()
        self._is_open = False
        self._is_away = False  # it did not answer the latest try, of which a warning was given

    def open(self, timeout: float) -> None:
        """Let calls begin, each of which may take so many seconds. The first of them connects."""
        self._timeout = timeout
        self._is_open = True

    async def send(self, calls: Sequence[Call]) -> None:
        """See that each call has an answer, within the time that a call may take.

        They go out in one write. What was on its way when the connection was lost is sent again, marked as
        such. Cancelling leaves it open whether they are carried out.
        """
        if not self._is_open:
            _give_up(calls, BrokerError(f"the broker on {self._address.name} is not open"))
            return
        deadline = asyncio.get_running_loop().time() + self._timeout
        left = calls
        for pause in itertools.chain((0.0, 0.02, 0.05, 0.1, 0.2), itertools.repeat(0.5)):
            try:
                await self._exchange(left, deadline)
            except BrokerError as error:
                _give_up(left, error)
            except OSError as error:  # a TimeoutError is one
                self.failed = asyncio.get_running_loop().time()
                self._note_failure(error)
                if not self._is_open:
                    _give_up(left, closed())
                elif asyncio.get_running_loop().time() + pause >= deadline:
                    _give_up(left, self._error(f"has not answered for {self._timeout:g} s: {error or 'it is silent'}"))
                else:
                    await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 (no secret)
            left = [call for call in left if not call.is_answered]
            if not left:
                return

    async def _exchange(self, calls: Sequence[Call], deadline: float) -> None:
        """Send the calls and read the answers, which may be errors that deserve another try."""
        connection = self._connection
        if connection is None or connection.lost.done():
            connection = await self._reconnect(deadline)
        packed = b"".join([call.pack(self._prefix) for call in calls])
        patience = min(PATIENCE + len(packed) / 1e6, deadline - asyncio.get_running_loop().time())
        answers = await connection.ask(packed, len(calls), patience)
        self._is_away = False
        for call, answer in zip(calls, answers, strict=True):
            if not _is_error(answer):
                call.take(answer)
            else:
                self._judge(call, str(answer))

    def _note_failure(self, error: OSError) -> None:
        """Say so at once when the server is away, and not again with each try."""
        if self._is_open and not self._is_away:
            self._is_away = True
            logger.warning(
                "%s does not answer (%s); trying again for up to %g s",
                self._address.name,
                str(error) or "it is silent",
                self._timeout,
            )

    async def _reconnect(self, deadline: float) -> Connection:
        """A connection that is there: one for all who have lost the last."""
        patience = min(deadline, asyncio.get_running_loop().time() + PATIENCE)
        async with asyncio.timeout_at(patience), self._connecting:
            if self._connection is None or self._connection.lost.done():
                self._connection = await self._address.connect()
            if not self._is_open:
                self._drop()
                raise ConnectionError
            return self._connection

    def _judge(self, call: Call, text: str) -> None:
        """An error that the server answered: for good, or worth another try, perhaps on another connection."""
        if text.startswith("NOSCRIPT"):
            call.spell_out()
            return
        if text.startswith(_UNSERVED):
            text = f"is a cluster in which no node has this hash slot: give out all, redis-cli --cluster fix ({text})"
        elif text.startswith(_PASSING) or any(word in text for word in _PASSING_INSIDE):
            if text.startswith("MOVED "):
                self._address.follow(text)
            self._drop()
            raise ConnectionError(text)
        elif "OOM" in text:
            text = f"is out of memory, so that nothing was written: raise maxmemory, or purge ({text})"
        elif any(words in text for words in _FORBIDDEN):
            text = f"does not allow this user the scripts, keys and channels of {self._address.prefix} ({text})"
        call.take(self._error(text))

    def _error(self, text: str) -> BrokerError:
        return BrokerError(f"{self._address.name} {text}")

    async def settings(self) -> dict[str, str]:
        """What the server says of how it keeps jobs; nothing where that is forbidden, or the connection was lost.

        Raises:
            BrokerError: this user may not publish. Scripts do that last, when all is written.
        """
        asked = ("CONFIG", "GET", "appendonly"), ("CONFIG", "GET", "maxmemory-policy")
        others = ("INFO", "server"), ("PUBLISH", f"{self._prefix}results", "[]")
        try:
            connection = await self._reconnect(asyncio.get_running_loop().time() + self._timeout)
            words = b"".join(map(_pack, (*asked, *others)))
            *answers, about, heard = await connection.ask(words, len(asked) + len(others), PATIENCE)
        except OSError:
            return {}
        if _is_error(heard) and str(heard).startswith("NOPERM"):
            raise self._error(f"does not allow this user to publish: its ACL needs +publish &{self._prefix}* ({heard})")
        run = re.search(r"^run_id:(\w+)", str(about), re.MULTILINE)
        found = {"store": f"{run[1]} {self._address.database} {self._prefix}"} if run else {}
        return found if any(map(_is_error, answers)) else found | dict(answer for answer in answers if answer)

    def close(self) -> None:
        """Close the connection for good. Those who wait for an answer get a BrokerError."""
        self._is_open = False
        self._drop()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _give_up(calls: Sequence[Call], error: BrokerError) -> None:
    for call in calls:
        if not call.is_answered:
            call.take(error)


class Subscription:
    """The connection for what is published: channels that are wanted are subscribed to, again and again.

    `on_message(channel, text)` is called for each message, and with None when a subscription begins: before
    that, anything may have been missed.
    """

    def __init__(self, address: Address, on_message: Callable[[str, str | None], None]) -> None:
        self._address = address
        self._on_message = on_message
        self._wanted: list[str] = []
        self._is_silent = False
        self._connection: Connection | None = None
        self._task: asyncio.Task[None] | None = None

    def want(self, channel: str) -> None:
        """Listen to `channel` from now on."""
        if channel in self._wanted:
            return
        self._wanted.append(channel)
        if self._task is not None:
            self._task.cancel()
        self._task = asyncio.create_task(self._listen())

    def abandon(self) -> None:
        """Stop listening for a loop that has ended, in which no task comes to its own end."""
        if self._connection is not None:
            with contextlib.suppress(RuntimeError):  # the loop was closed
                self._connection.close()

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    async def _listen(self) -> None:
        for failures in itertools.count():
            try:
                await self._follow()
            except (BrokerError, OSError) as error:
                if failures % 20 == 0:
                    why = describe(error)
                    logger.warning(
                        "%s: what is published there is not heard (%s); trying again", self._address.name, why
                    )
            await asyncio.sleep(random.uniform(0.1, 0.5))  # noqa: S311 (no secret)

    async def _follow(self) -> None:
        """Listen until the connection is lost. One that is silent is asked whether it is still there."""
        async with asyncio.timeout(PATIENCE):
            self._connection = connection = await self._address.connect(self._take)
        try:
            channels = [f"{self._address.prefix}:{channel}" for channel in self._wanted]
            connection.write(_pack(("SUBSCRIBE", *channels)))
            while not connection.lost.done():
                self._is_silent = True
                await asyncio.wait([connection.lost], timeout=PATIENCE)
                if self._is_silent:
                    connection.write(_pack(("PING",)))
                    await asyncio.wait([connection.lost], timeout=PATIENCE)
                if self._is_silent:
                    raise ConnectionError("it is silent")
        finally:
            self._connection = None
            connection.close()

    def _take(self, message: Any) -> None:
        self._is_silent = False
        if isinstance(message, list) and message[0] in ("message", "subscribe"):
            channel = message[1].rpartition(":")[2]
            self._on_message(channel, message[2] if message[0] == "message" else None)
        elif _is_error(message):
            logger.warning("%s: what is published there is not heard (%s)", self._address.name, message)
