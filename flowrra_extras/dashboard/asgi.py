"""The dashboard as an ASGI application, to be mounted anywhere or served alone."""

import asyncio
import contextlib
import dataclasses
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

from flowrra_extras.dashboard.app import Dashboard
from flowrra_extras.dashboard.auth import SAFE_METHODS
from flowrra_extras.dashboard.http import BODY_LIMIT, Request, Response

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

# How many seconds a client may take for a body, and for a piece of a stream.
PATIENCE = 20.0


async def asked(auth: Callable[[Any], Any] | None, native: object) -> Any:
    """What `auth` returns for the framework's request. A plain function runs in a thread, because it may block."""
    if auth is None:
        return None
    if inspect.iscoroutinefunction(auth) or inspect.iscoroutinefunction(getattr(auth, "__call__", None)):  # noqa: B004
        return await auth(native)
    answer = await asyncio.to_thread(auth, native)
    return await answer if inspect.isawaitable(answer) else answer


class AsgiApp:
    """An ASGI application. If a framework mounts it, it takes the prefix from the scope's `root_path`."""

    def __init__(self, board: Dashboard) -> None:
        self.board = board

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await answer(self.board, request_from(scope), receive, send, lambda: read_body(receive))
        else:  # a WebSocket
            await send({"type": "websocket.close", "code": 1000})

    async def _live(self, receive: Receive, send: Send) -> None:
        """Served alone: open the app's stores, and close them at the end."""
        async with contextlib.AsyncExitStack() as stack:
            await receive()
            try:
                await stack.enter_async_context(self.board.store.app.client())
            except Exception as error:
                await send({"type": "lifespan.startup.failed", "message": str(error)})
                return
            stack.push_async_callback(self.board.close)
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})


async def answer(
    board: Dashboard, request: Request, receive: Receive, send: Send, body: Callable[[], Awaitable[bytes | None]]
) -> None:
    """Answer a request: by its head if that settles it, else with its `body`, unless the client disconnects."""
    response = await response_to(board, request, body)
    if response is not None:
        await respond(response, receive, send)


async def response_to(
    board: Dashboard, request: Request, body: Callable[[], Awaitable[bytes | None]]
) -> Response | None:
    """What a request is answered; None if the client disconnects before its body was received."""
    granted = await asked(board.door.auth, request.native)
    if request.method in SAFE_METHODS:
        return await board.handle(request, granted)
    if refused := await board.turned_away(request, granted):
        return refused
    try:
        async with asyncio.timeout(PATIENCE):
            read = await body()
    except TimeoutError:
        return board.too_late(request)
    return None if read is None else await board.handle(dataclasses.replace(request, body=read), granted)


async def read_body(receive: Receive) -> bytes | None:
    """The request's body, up to the limit; None if the client has disconnected."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if not message.get("more_body") or len(body) > BODY_LIMIT:
            return bytes(body)


def request_from(scope: Scope, below: str | None = None, native: object = None) -> Request:
    """The request as the dashboard knows it. `below` is its path below the dashboard's root, if the framework knows."""
    root, path = scope.get("root_path", "").rstrip("/"), scope["path"]
    if f"{path}/".startswith(f"{root}/"):  # some servers leave the prefix in, as ASGI says since 2.5
        path = path[len(root) :]
    if below is not None and path.endswith(below):
        root, path = root + path[: len(path) - len(below)], below
    headers: dict[str, str] = {}
    for name, value in scope["headers"]:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        headers[key] = f"{headers[key]}{'; ' if key == 'cookie' else ', '}{text}" if key in headers else text
    client = scope.get("client")
    return Request(
        method=scope["method"],
        path=path if path.startswith("/") else f"/{path}",
        root=root,
        query=scope.get("query_string", b"").decode("latin-1"),
        headers=headers,
        client=client[0] if client else None,
        scheme=scope.get("scheme", "http"),
        native=scope if native is None else native,
        streams=True,
    )


async def respond(response: Response, receive: Receive, send: Send) -> None:
    """Send the response; a stream, until it ends or the client disconnects."""
    headers = [(name.encode(), value.encode("latin-1", "replace")) for name, value in response.headers.items()]
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    if response.stream is None:
        await send({"type": "http.response.body", "body": response.body})
        return
    await send({"type": "http.response.body", "body": response.body, "more_body": True})
    sending = asyncio.create_task(_send_pieces(response.stream, send))
    leaving = asyncio.create_task(_until_gone(receive))
    try:
        await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (sending, leaving):
            task.cancel()
        await asyncio.gather(sending, leaving, return_exceptions=True)


async def _send_pieces(pieces: AsyncIterator[bytes], send: Send) -> None:
    """Send a stream piece by piece. The stream is closed in any case."""
    try:
        async for piece in pieces:
            async with asyncio.timeout(PATIENCE):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    finally:
        close = getattr(pieces, "aclose", None)
        if close is not None:
            await close()


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
