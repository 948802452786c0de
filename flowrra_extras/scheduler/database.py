"""What the store asks of a database: a connection, and the words in which one database differs from another."""

import datetime as dt
import re
import urllib.parse
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from flowrra import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """What a database says in its own way. The rest of the statements is one text for all."""

    mark: Callable[[int], str]  # the placeholder of value number n, from 1
    begin: str = "BEGIN"
    # Types, and what stands in and after CREATE TABLE.
    serial: str
    name: str = "TEXT"  # a text that an index may hold
    text: str = "TEXT"
    moment: str
    lease: str
    index: str
    index_in_table: str = ""
    table_end: str = ""
    # One who migrates keeps others out; a query that gives a row if there is a schema.
    lock: str | None = None
    unlock: str | None = None
    existing: str
    # Leases, on the clock of the database: `lease` is free again, and where a new one ends.
    free: str
    until: str
    # Handing out, and leaving alone what is there.
    hint: str = ""
    lock_rows: str = ""
    skip_locked: str = ""
    or_leave: str = "ON CONFLICT DO NOTHING"
    # Moments as the driver takes and gives them.
    to_column: Callable[[dt.datetime], Any]
    from_column: Callable[[Any], dt.datetime]
    # What the driver's exceptions mean.
    code: Callable[[Exception], object]
    duplicate: object
    conflicts: Collection[object] = ()  # another transaction was preferred: to be done again

    def bind(self, text: str, values: Mapping[str, Any]) -> tuple[str, list[Any]]:
        """A statement and its values as the driver takes them.

        A word in braces becomes this dialect's, `:name` a placeholder, of a list as many as it has values.
        """
        text = re.sub(r"{(\w+)}", lambda word: str(getattr(self, word[1])), text)
        bound: list[Any] = []

        def marks(name: re.Match[str]) -> str:
            value = values[name[1]]
            start = len(bound) + 1
            bound.extend(value if isinstance(value, list) else [value])
            return ", ".join(self.mark(number) for number in range(start, len(bound) + 1))

        return re.sub(r":(\w+)", marks, text), bound


class Link(Protocol):
    """A connection on which every statement commits itself unless a transaction was begun."""

    async def is_alive(self) -> bool:
        """Whether the server still knows it, as far as can be seen without waiting for a dead one."""
        ...

    async def fetch(self, statement: str, values: Sequence[Any] = ()) -> Sequence[Sequence[Any]]:
        """Run it and return its rows."""
        ...

    async def execute(self, statement: str, values: Sequence[Any] = ()) -> int:
        """Run it and return how many rows it changed."""
        ...

    async def execute_each(self, statement: str, rows: Sequence[Sequence[Any]]) -> None:
        """Run it once for each row of values."""
        ...

    async def drop(self) -> bool:
        """Undo what was begun, whatever the state and without asking the server. True: the link is closed now."""
        ...

    async def close(self) -> None:
        """Take leave of the server."""
        ...


class Database(Protocol):
    """Where the schedules are."""

    @property
    def dialect(self) -> Dialect: ...

    @property
    def place(self) -> str:
        """For messages: without user and password."""
        ...

    async def connect(self, timeout: float) -> Link:
        """A new link. It is not cancelled half-way unless it takes longer than `timeout`."""
        ...


class Address(NamedTuple):
    """The parts of a server's URL, percent-decoded."""

    host: str | None
    port: int
    user: str | None
    password: str | None
    database: str
    options: Mapping[str, str]

    @property
    def place(self) -> str:
        return f"{self.host or 'localhost'}:{self.port}/{self.database}"


def server_address(url: str, *, port: int, options: Collection[str]) -> Address:
    """Read `scheme://user:password@host:port/database?option=value`; messages hold no password.

    Raises:
        ConfigError: it names no database, a port that is none, or an option that is not among `options`.
    """
    parts = urllib.parse.urlsplit(url)
    form = f"{parts.scheme}://user:password@host:{port}/database"
    try:
        given_port = parts.port or port
    except ValueError:
        raise ConfigError(f"no port in the URL after its host; {form}, with %-codes in the password") from None
    database = urllib.parse.unquote(parts.path.removeprefix("/"))
    if not database or "/" in database:
        raise ConfigError(f"a {parts.scheme}:// URL names one database, not {database!r}: {form}")
    return Address(
        parts.hostname,
        given_port,
        _decoded(parts.username),
        _decoded(parts.password),
        database,
        url_options(url, options),
    )


def url_options(url: str, known: Collection[str]) -> dict[str, str]:
    """The options of a URL.

    Raises:
        ConfigError: one of them is not known, or given twice.
    """
    parts = urllib.parse.urlsplit(url)
    pairs = urllib.parse.parse_qsl(parts.query, keep_blank_values=True)
    options = dict(pairs)
    if unknown := options.keys() - set(known):
        there_is = f"there is {', '.join(sorted(known))}" if known else "there is none"
        raise ConfigError(f"a {parts.scheme}:// URL has no option {min(unknown)!r}; {there_is}")
    if len(options) < len(pairs):
        raise ConfigError(
            f"an option of the {parts.scheme}:// URL is given twice: {', '.join(name for name, _ in pairs)}"
        )
    return options


def _decoded(text: str | None) -> str | None:
    return None if text is None else urllib.parse.unquote(text)
