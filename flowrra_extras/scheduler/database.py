"""What the store asks of a database: a connection, and the words in which one database differs from another."""

import datetime as dt
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from flowrra import ConfigError
from flowrra_extras.urls import check_options, read_server_url


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
    """One server and a database on it."""

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
        ConfigError: it names no database, several hosts, or an option that is not among `options`; and as
            `read_server_url` does.
    """
    parts = read_server_url(url)
    check_options(parts, options)
    form = f"the form is {parts.scheme}://user:password@host:{port}/database"
    if not parts.path or "/" in parts.path:
        raise ConfigError(f"a {parts.scheme}:// URL names one database, not {parts.path!r}: {form}")
    (host, given_port), *others = parts.hosts
    if others:
        raise ConfigError(f"{parts.shown} names several hosts, where one is expected: {form}")
    return Address(host or None, given_port or port, parts.user, parts.password, parts.path, parts.options)
