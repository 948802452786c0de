"""The dashboard as a WSGI application. What it asks runs on the loop of `app.sync`; pages look for news by polling."""

import dataclasses
import http
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from flowrra_extras.dashboard.app import Dashboard
from flowrra_extras.dashboard.auth import SAFE_METHODS
from flowrra_extras.dashboard.http import BODY_LIMIT, Request, Response


def answer(board: Dashboard, request: Request, body: Callable[[], bytes]) -> Response:
    """Answer a request from plain code: by its head if that settles it, else with its `body`.

    `auth` is asked in this thread, where the framework's request is at home.
    """
    run = board.store.app.sync.run
    granted = board.door.auth(request.native) if board.door.auth is not None else None
    if inspect.isawaitable(granted):
        granted = run(_awaited(granted))
    if request.method not in SAFE_METHODS:
        if refused := run(board.turned_away(request, granted)):
            return refused
        try:
            request = dataclasses.replace(request, body=body())
        except TimeoutError:
            return board.too_late(request)
    return run(board.handle(request, granted))


async def _awaited(answer: Any) -> Any:
    return await answer


class WsgiApp:
    """A WSGI application. If a framework mounts it, it takes the prefix from SCRIPT_NAME."""

    def __init__(self, board: Dashboard) -> None:
        self.board = board

    def __call__(self, environ: Mapping[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        response = answer(self.board, request_from(environ), lambda: body_of(environ))
        status = f"{response.status} {http.HTTPStatus(response.status).phrase}"
        start_response(status, list(response.headers.items()))
        return [response.body]


def request_from(environ: Mapping[str, Any], *, place: tuple[str, str] | None = None, native: object = None) -> Request:
    """The request as the dashboard knows it.

    A framework that has routed it tells the `place`, which is the dashboard's root and the path below it, and its own
    request.
    """
    root, path = place or (_text(environ.get("SCRIPT_NAME", "")).rstrip("/"), _text(environ.get("PATH_INFO", "")))
    return Request(
        method=environ["REQUEST_METHOD"],
        path=path or "/",
        root=root,
        query=environ.get("QUERY_STRING", ""),
        headers=dict(_headers(environ)),
        client=environ.get("REMOTE_ADDR") or None,
        scheme=environ.get("wsgi.url_scheme", "http"),
        native=environ if native is None else native,
    )


def _headers(environ: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in environ.items():
        if name.startswith("HTTP_") or name in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            yield name.removeprefix("HTTP_").replace("_", "-").lower(), value


def body_of(environ: Mapping[str, Any]) -> bytes:
    """The body, no more of it than is needed to see that it is too long."""
    length = environ.get("CONTENT_LENGTH") or "0"
    size = min(int(length), BODY_LIMIT + 1) if length.isascii() and length.isdecimal() else 0
    body: bytes = environ["wsgi.input"].read(size) if size else b""
    return body


def _text(path: str) -> str:
    """WSGI hands paths over as bytes in the shape of Latin-1."""
    return path.encode("latin-1").decode("utf-8", "replace")
