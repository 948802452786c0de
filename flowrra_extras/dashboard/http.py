"""Requests and responses as the dashboard knows them, whatever framework they came through; fields, JSON, files."""

import collections
import contextlib
import datetime as dt
import functools
import gzip
import hashlib
import json
import logging
import math
import re
import urllib.parse
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, NamedTuple, NoReturn

from flowrra import ConfigError, FlowrraError, decode

logger = logging.getLogger("flowrra.dashboard")

BODY_LIMIT = 1_000_000  # bytes of a request
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]  # that a framework hands on: it refuses others
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
    """What is answered. `stream` goes on after `body` where the server can send it piece by piece."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    stream: AsyncIterator[bytes] | None = None


def media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def json_answer(value: object, status: int = 200) -> Response:
    """A JSON answer; moments in ISO 8601."""
    body = json.dumps(value, default=_plain, ensure_ascii=False).encode("utf-8", "replace")
    return Response(status, body, {"content-type": "application/json"})


def _plain(value: object) -> object:
    return value.isoformat() if isinstance(value, dt.datetime) else str(value)


def text_answer(text: str, media_type: str = "text/plain; charset=utf-8") -> Response:
    return Response(200, text.encode("utf-8", "replace"), {"content-type": media_type})


class Done(NamedTuple):
    """What came of an action: the value for JSON, and for a form the page to go on at, with the figures it says.

    `touched` is the path, below the dashboard's root, where what was changed can be seen. `undo` is that of the action
    that takes it back. `line` is the search line of an action that is not at its end.
    """

    value: object
    path: str
    figures: str = ""  # of the notice, as in `.12.3`
    status: int = 200
    touched: str = ""
    undo: str = ""
    line: str = ""


def submitted(job_id: str) -> Done:
    return Done({"id": job_id}, path_of("jobs", job_id), "", 201)


def path_of(*parts: str) -> str:
    """A path of these parts, whatever is in them."""
    return "".join(f"/{urllib.parse.quote(part, safe='')}" for part in parts)


# Fields of a form or of a JSON object -----------------------------------------------------------

TOKEN_FIELD = "token"  # noqa: S105 (its name)


class UnreadableError(ConfigError):
    """What was sent is not what it says it is: it cannot be parsed, or not in one way only."""


class UnsureError(ConfigError):
    """A form acts on more than one job, and does not say on how many: its visitor has not seen the number."""


FORM_FIELDS = 2_000
FORM = "application/x-www-form-urlencoded"
_UNWRITABLE = re.compile("[\0\ud800-\udfff]")


@dataclass(slots=True, frozen=True)
class Fields:
    """The fields. Those of a form are all texts; `many` holds every value of a name that came more than once."""

    values: Mapping[str, Any]
    many: Mapping[str, Sequence[str]]
    is_form: bool

    @property
    def token(self) -> str | None:
        return self.values.get(TOKEN_FIELD) if self.is_form else None

    def text(self, name: str, default: str | None = None) -> str:
        """A text; ConfigError if there is none, or it is something else."""
        value = self.values.get(name, default)
        if not isinstance(value, str):
            raise ConfigError(f"{name} must be a string, not {value!r:.80}")
        return value

    def texts(self, name: str) -> list[str]:
        """A list of texts; empty if there is none."""
        values = list(self.many.get(name, ())) if self.is_form else self.values.get(name, [])
        if not isinstance(values, list) or not all(
            isinstance(value, str) and not _UNWRITABLE.search(value) for value in values
        ):
            raise ConfigError(f"{name} must be a list of strings, not {values!r:.80}")
        return values

    def json_text(self, name: str, default: str | None = None) -> str | None:
        """A JSON value as its text, which a form brings as it is; `default` if there is none."""
        value = self.values.get(name)
        if value is None or (self.is_form and not value.strip()):
            return default
        return value if self.is_form else json.dumps(value)

    def named(self, prefix: str) -> dict[str, str]:
        """The fields of a form whose names begin so, without that; what was left empty is left out."""
        return {
            name.removeprefix(prefix): value
            for name, value in self.values.items()
            if name.startswith(prefix) and value.strip()
        }


def read_fields(request: Request) -> Fields:
    """The fields of the request's body; ConfigError if they cannot be read."""
    found = _read_form(request.body) if media_type(request) == FORM else _read_object(request.body)
    for name, value in found.values.items():
        if isinstance(value, str) and _UNWRITABLE.search(value):
            raise ConfigError(f"{name} contains a NUL character or half of a surrogate pair: {value!r:.80}")
    return found


def _read_object(body: bytes) -> Fields:
    try:
        values = strictly(body) if body.strip() else {}
    except (ValueError, RecursionError) as error:
        raise UnreadableError(f"the body is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise UnreadableError(f"the body must be a JSON object, not {values!r:.80}")
    return Fields(values, {}, is_form=False)


def _read_form(body: bytes) -> Fields:
    try:
        many = urllib.parse.parse_qs(body.decode(), keep_blank_values=True, max_num_fields=FORM_FIELDS)
    except ValueError as error:
        raise UnreadableError(f"the form cannot be read: {error}") from None
    return Fields({name: values[-1] for name, values in many.items()}, many, is_form=True)


def strictly(text: str | bytes) -> Any:
    """A JSON text's value; ValueError where it is none, or readers would differ over it."""
    return json.loads(text, parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_without_doubles)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"the number {text[:40]} is too large")
    return number


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        ((double, _),) = collections.Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {double[:80]!r} occurs twice in an object")
    return found


def value_of(text: str) -> Any:
    """A field of a form that stands for any value: JSON, or else the text itself."""
    try:
        return strictly(text)
    except (ValueError, RecursionError):
        return text


# Arguments and options --------------------------------------------------------------------------


def read_list(text: str) -> list[Any]:
    """Positional arguments from a JSON text; ConfigError if it is no list."""
    found: list[Any] = _read_json(text or "[]", list, 'a JSON list, such as ["a", 1]')
    return found


def read_object(text: str) -> dict[str, Any]:
    """Named arguments from a JSON text; ConfigError if it is no object."""
    found: dict[str, Any] = _read_json(text or "{}", dict, 'a JSON object, such as {"name": "a"}')
    return found


def read_value(text: str) -> Any:
    """Any value from a JSON text; ConfigError if it is none."""
    return _read_json(text, object, "JSON (a text needs quotes)")


def _read_json(text: str, kind: type, wanted: str) -> Any:
    try:
        strictly(text)
        value = decode(text)
    except (FlowrraError, ValueError, RecursionError) as error:
        raise ConfigError(f"{text[:80]!r} cannot be read as {wanted}: {error}") from None
    if not isinstance(value, kind):
        raise ConfigError(f"{text[:80]!r} is not {wanted}")
    return value


@contextlib.contextmanager
def refusing_misfits() -> Iterator[None]:
    """Arguments and options that do not fit are the fault of whoever sent them."""
    try:
        yield
    except (TypeError, OverflowError) as error:
        raise ConfigError(str(error)) from None


def whole(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, 3.0 as 3 where a whole number belongs: to JSON they are the same."""
    numbers = {name: options[name] for name in ("priority", "max_retries") if isinstance(options.get(name), float)}
    return {**options, **{name: int(value) for name, value in numbers.items() if value.is_integer()}}


# Static files: a fixed table of names, read once. No path that comes from outside is opened ------

NAMES: Mapping[str, str] = {"app.css": "text/css; charset=utf-8", "app.js": "text/javascript; charset=utf-8"}
_DIGEST = re.compile("[0-9a-f]{12}")
FOREVER = "public, max-age=31536000, immutable"


class StaticFile(NamedTuple):
    """A static file. `digest` stands in its URL, so that it may be kept for ever."""

    body: bytes
    packed: bytes
    digest: str
    media_type: str


@functools.cache
def static_file(name: str) -> StaticFile:
    whole = resources.files("flowrra_extras.dashboard").joinpath("static", name).read_bytes()
    # Comments and indentation are a kilobyte of a first visit. No text in our files goes over several lines.
    lines = (line.strip() for line in whole.splitlines())
    body = b"\n".join(line for line in lines if line and not line.startswith(b"//"))
    return StaticFile(body, gzip.compress(body, mtime=0), hashlib.sha256(body).hexdigest()[:12], NAMES[name])


def static_path(name: str) -> str:
    """Where the file is, from the dashboard's root on."""
    return f"/static/{static_file(name).digest}/{name}"


def static_answer(request: Request) -> Response | None:
    """The file that is asked for; None if there is none of that name. One of another digest is not kept."""
    digest, _, name = request.path.removeprefix("/static/").rpartition("/")
    if name not in NAMES or not _DIGEST.fullmatch(digest):
        return None
    found = static_file(name)
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
