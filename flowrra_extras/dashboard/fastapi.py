"""The dashboard for FastAPI: `app.include_router(create_router(flowrra), prefix="/flowrra")`."""

import contextlib
from collections.abc import AsyncIterator
from typing import Unpack

from fastapi import APIRouter
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from flowrra import Flowrra
from flowrra_extras.dashboard import asgi
from flowrra_extras.dashboard.app import Dashboard, Options
from flowrra_extras.dashboard.http import BODY_LIMIT, METHODS


class _Answer(Response):
    """Answers a request that FastAPI's dependencies have let through."""

    def __init__(self, board: Dashboard, request: Request) -> None:
        super().__init__()
        self._board, self._request = board, request

    async def __call__(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        asked = asgi.request_from(scope, f"/{self._request.path_params['path']}", self._request)
        await asgi.answer(self._board, asked, receive, send, lambda: _body_of(self._request))


async def _body_of(request: Request) -> bytes | None:
    """The body, which a dependency may have read before; None if the client has disconnected."""
    body = bytearray()
    try:
        async for piece in request.stream():
            body += piece
            if len(body) > BODY_LIMIT:
                break
    except ClientDisconnect:
        return None
    return bytes(body)


def create_router(app: Flowrra, **options: Unpack[Options]) -> APIRouter:
    """Return the dashboard of `app` as a router. It is not part of the OpenAPI document of your program.

    `dependencies=` of `include_router` protect it; then also pass `auth=lambda request: "full"`, because without
    `auth=` only requests from this host are allowed. `auth` receives Starlette's request.
    """
    board = Dashboard(app, **options)

    @contextlib.asynccontextmanager
    async def lifespan(program: object) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await board.close()

    mounted = APIRouter(lifespan=lifespan)

    async def dashboard(request: Request) -> Response:
        return _Answer(board, request)

    mounted.add_api_route("/{path:path}", dashboard, methods=METHODS, include_in_schema=False)
    return mounted
