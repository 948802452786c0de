"""The dashboard: see and steer every job, mounted in a web program or on its own.

    from flowrra_extras.dashboard import create_asgi_app, create_wsgi_app
    from flowrra_extras.dashboard.fastapi import create_router
    from flowrra_extras.dashboard.flask import create_blueprint
    from flowrra_extras.dashboard.quart import create_blueprint
    from flowrra_extras.dashboard.django import get_urls

All of them take an app and the same options. Without `auth=` they answer this host only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from flowrra_extras.dashboard.access import Access
from flowrra_extras.dashboard.asgi import AsgiApp
from flowrra_extras.dashboard.building import Options, build
from flowrra_extras.dashboard.command import main
from flowrra_extras.dashboard.service import Service
from flowrra_extras.dashboard.wsgi import WsgiApp

if TYPE_CHECKING:
    from flowrra import Flowrra

__all__ = ["Access", "AsgiApp", "Options", "Service", "WsgiApp", "create_asgi_app", "create_wsgi_app", "main"]


def create_asgi_app(app: Flowrra, **options: Unpack[Options]) -> AsgiApp:
    """The dashboard as an ASGI application, which Starlette, Litestar or any other can mount."""
    return AsgiApp(build(app, **options))


def create_wsgi_app(app: Flowrra, **options: Unpack[Options]) -> WsgiApp:
    """The dashboard as a WSGI application."""
    return WsgiApp(build(app, **options))
