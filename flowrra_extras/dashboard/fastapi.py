"""The dashboard for FastAPI: `app.include_router(create_router(flowrra), prefix="/flowrra")`."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Unpack

from fastapi import APIRouter
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from flowrra_extras.dashboard import asgi
from flowrra_extras.dashboard.building import Options, build
from flowrra_extras.dashboard.router import BODY_LIMIT, METHODS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from flowrra import Flowrra
    from flowrra_extras.dashboard.router import Router


class _Answer(Response):
    """Answers a request that FastAPI's dependencies have let through."""

    def __init__(self, router: Router, request: Request) -> None:
        super().__init__()
        self._router, self._request = router, request

    async def __call__(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        asked = asgi.request_from(scope, f"/{self._request.path_params['path']}", self._request)
        await asgi.answer(self._router, asked, receive, send, lambda: _body_of(self._request))


async def _body_of(request: Request) -> bytes | None:
    """The body, which a dependency may have read before; None if the client has gone."""
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
    """The dashboard of `app`. It does not stand in the OpenAPI document of the program that it is mounted in.

    `dependencies=` of `include_router` protect it; say `auth=lambda request: "full"` then, since without `auth=`
    only this host is let in. `auth` is given Starlette's request.
    """
    router = build(app, **options)

    @contextlib.asynccontextmanager
    async def lifespan(program: object) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await router.close()

    mounted = APIRouter(lifespan=lifespan)

    async def dashboard(request: Request) -> Response:
        return _Answer(router, request)

    mounted.add_api_route("/{path:path}", dashboard, methods=METHODS, include_in_schema=False)
    return mounted
