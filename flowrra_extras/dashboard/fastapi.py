"""The dashboard for FastAPI: `app.include_router(create_router(flowrra), prefix="/flowrra")`."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Unpack

from fastapi import APIRouter
from starlette.requests import Request  # noqa: TC002 (FastAPI looks it up when it reads the signature)
from starlette.responses import Response

from flowrra_extras.dashboard import asgi
from flowrra_extras.dashboard.building import Options, build

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from flowrra import Flowrra
    from flowrra_extras.dashboard.router import Router

METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE"]


class _Answer(Response):
    """Answers a request that FastAPI's dependencies have let through."""

    def __init__(self, router: Router, request: Request) -> None:
        super().__init__()
        self._router, self._request = router, request

    async def __call__(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        path = self._request.path_params["path"]
        await asgi.answer(self._router, scope, receive, send, path=f"/{path}", native=self._request)


def create_router(app: Flowrra, **options: Unpack[Options]) -> APIRouter:
    """The dashboard of `app`. It does not stand in the OpenAPI document of the program that it is mounted in.

    `dependencies=` of `include_router` protect it; say `auth=lambda request: "full"` then, since without `auth=`
    only this host is let in. `auth` is given Starlette's request.
    """
    router = build(app, **options)

    @contextlib.asynccontextmanager
    async def lifespan(program: object) -> AsyncIterator[None]:
        yield
        await router.close()

    mounted = APIRouter(lifespan=lifespan)

    async def dashboard(request: Request) -> Response:
        return _Answer(router, request)

    mounted.add_api_route("/{path:path}", dashboard, methods=METHODS, include_in_schema=False)
    return mounted
