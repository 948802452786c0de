"""Reads the URL of a server, for brokers, stores of schedules, the dashboard and moves.

A message never contains a password: it shows the part of a URL between its last "@" and its "?", and an ambiguous URL
is refused. This module does not know what the options mean.
"""

import urllib.parse
from collections.abc import Collection
from dataclasses import dataclass, field

from flowrra import ConfigError, nearest

__all__ = ["ServerURL", "check_options", "read_server_url", "shown_url"]


@dataclass(frozen=True, slots=True)
class ServerURL:
    """The parts of `scheme://user:password@host:port/path?option=value`, percent-decoded.

    `hosts` are one or more hosts with their ports, None where the URL gives no port; a host may be "". `path` has
    no leading slash. `shown` is the URL for messages: scheme, hosts and path.
    """

    scheme: str
    user: str | None
    password: str | None = field(repr=False)
    hosts: tuple[tuple[str, int | None], ...]
    path: str
    options: dict[str, str] = field(repr=False)
    shown: str


def read_server_url(url: str) -> ServerURL:
    """Return the parts of the URL of a server.

    Raises:
        ConfigError: a "/", "?", "#" or "@" that is not percent-encoded makes the URL ambiguous, a port is not a number
            from 1 to 65535, or an option is given twice.
    """
    scheme, _, rest = url.partition("://")
    login, at, address = rest.rpartition("@")
    if any(mark in login for mark in "/?#") or "#" in address:
        raise ConfigError(
            f"the {scheme}:// URL is ambiguous: inside a user name, a password or an option write "
            "/ as %2F, ? as %3F, # as %23 and @ as %40"
        )
    user, _, password = login.partition(":")
    place, _, query = address.partition("?")
    authority, _, path = place.partition("/")
    return ServerURL(
        scheme.lower(),
        urllib.parse.unquote(user) or None if at else None,
        urllib.parse.unquote(password) or None if at else None,
        tuple(_host_and_port(scheme, part) for part in authority.split(",")),
        urllib.parse.unquote(path),
        _options(scheme, query),
        f"{scheme}://{place}",
    )


def _host_and_port(scheme: str, text: str) -> tuple[str, int | None]:
    host, colon, port = (text, "", "") if text.endswith("]") else text.rpartition(":")
    if not colon:
        host, port = text, ""
    if colon and not (port.isdecimal() and port.isascii() and 0 < int(port) < 65_536):
        # The text itself is not shown: without an "@" it may be a password.
        raise ConfigError(
            f"the port in the {scheme}:// URL must be a number from 1 to 65535; "
            f"the form is {scheme}://user:password@host:port/..."
        )
    return urllib.parse.unquote(host.removeprefix("[").removesuffix("]")), int(port) if port else None


def _options(scheme: str, query: str) -> dict[str, str]:
    pairs = urllib.parse.parse_qsl(query, keep_blank_values=True)
    options = dict(pairs)
    if len(options) < len(pairs):
        twice = sorted({name for name, _ in pairs if [other for other, _ in pairs].count(name) > 1})
        raise ConfigError(f"the {scheme}:// URL gives an option twice: {', '.join(twice)}")
    return options


def check_options(url: ServerURL, known: Collection[str]) -> None:
    """Raise a ConfigError, with the nearest match, if the URL has an option that is not among `known`."""
    for name in sorted(url.options.keys() - set(known)):
        raise ConfigError(f"{url.shown} has the unknown option {name!r}{nearest(name, known)}")


def shown_url(url: str) -> str:
    """Return the URL of a store for a page, without password and options. The URL of a SQLite file is not changed."""
    scheme, mark, _ = url.partition("://")
    if not mark or scheme in ("sqlite", "memory"):
        return url
    try:
        parts = read_server_url(url)
    except ConfigError:
        return f"{scheme}://..."
    return parts.shown if parts.user is None else parts.shown.replace("://", f"://{parts.user}@", 1)
