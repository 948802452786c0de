"""A request and a response as the dashboard knows them, whatever face they came through."""

from __future__ import annotations

import urllib.parse
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

FIELDS = 100  # parameters that a query may have


@dataclass(slots=True, frozen=True)
class Request:
    """What was asked. `path` is without the prefix that the dashboard is mounted under, and `root` is that prefix.

    Header names are in lower case. `client` is the address of the other end, as the server saw it.
    """

    method: str
    path: str
    root: str = ""
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    client: str | None = None
    scheme: str = "http"
    native: object = None  # the framework's own request, for `auth=`
    streams: bool = False  # whether an answer may go on for as long as the visitor stays

    @property
    def parameters(self) -> dict[str, str]:
        """The query's parameters, the first hundred; of several with one name, the last."""
        return dict(urllib.parse.parse_qsl("&".join(self.query.split("&", FIELDS)[:FIELDS]), keep_blank_values=True))


@dataclass(slots=True)
class Response:
    """What is answered. `stream` goes on after `body` where the face can send it piece by piece."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    stream: AsyncIterator[bytes] | None = None
