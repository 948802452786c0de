"""The files that pages load: a fixed table of names, read once. No path that comes from outside is opened."""

from __future__ import annotations

import functools
import gzip
import hashlib
import re
from importlib import resources
from typing import TYPE_CHECKING, NamedTuple

from flowrra_extras.dashboard.web import Response

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flowrra_extras.dashboard.web import Request

NAMES: Mapping[str, str] = {"app.css": "text/css; charset=utf-8", "app.js": "text/javascript; charset=utf-8"}
_DIGEST = re.compile("[0-9a-f]{12}")
FOREVER = "public, max-age=31536000, immutable"


class File(NamedTuple):
    """A static file. `digest` stands in its URL, so that it may be kept for ever."""

    body: bytes
    packed: bytes
    digest: str
    media_type: str


@functools.cache
def file(name: str) -> File:
    """The file with one of the NAMES."""
    body = resources.files("flowrra_extras.dashboard").joinpath("static", name).read_bytes()
    return File(body, gzip.compress(body, mtime=0), hashlib.sha256(body).hexdigest()[:12], NAMES[name])


def path(name: str) -> str:
    """Where the file is, from the dashboard's root on."""
    return f"/static/{file(name).digest}/{name}"


def answer(request: Request) -> Response | None:
    """The file that is asked for; None if there is none of that name. One of another digest is not kept."""
    digest, _, name = request.path.removeprefix("/static/").rpartition("/")
    if name not in NAMES or not _DIGEST.fullmatch(digest):
        return None
    found = file(name)
    headers = {"content-type": found.media_type, "vary": "accept-encoding"}
    if digest == found.digest:
        headers["cache-control"] = FOREVER
    if takes_gzip(request):
        return Response(200, found.packed, {**headers, "content-encoding": "gzip"})
    return Response(200, found.body, headers)


def takes_gzip(request: Request) -> bool:
    """Whether the visitor takes an answer in less bytes: says so, and not that it wants none of it (`gzip;q=0`)."""
    for part in request.headers.get("accept-encoding", "").lower().split(","):
        name, _, weight = part.partition(";")
        if name.strip() == "gzip":
            return weight.replace(" ", "").rstrip("0.") != "q="
    return False
