"""The dashboard: see and steer every job, mounted in a web program or on its own.

    from flowrra_extras.dashboard import create_asgi_app, create_wsgi_app
    from flowrra_extras.dashboard.fastapi import create_router
    from flowrra_extras.dashboard.flask import create_blueprint
    from flowrra_extras.dashboard.quart import create_blueprint
    from flowrra_extras.dashboard.django import get_urls

All of them take an app and the same options. Without `auth=` they answer this host only.
"""

from typing import Unpack

from flowrra import Flowrra
from flowrra_extras.dashboard.app import Dashboard, Options
from flowrra_extras.dashboard.asgi import AsgiApp
from flowrra_extras.dashboard.auth import Access
from flowrra_extras.dashboard.wsgi import WsgiApp

__all__ = ["Access", "AsgiApp", "Dashboard", "Options", "WsgiApp", "create_asgi_app", "create_wsgi_app"]


def create_asgi_app(app: Flowrra, **options: Unpack[Options]) -> AsgiApp:
    """Return the dashboard as an ASGI application, to mount in Starlette, Litestar or any other."""
    return AsgiApp(Dashboard(app, **options))


def create_wsgi_app(app: Flowrra, **options: Unpack[Options]) -> WsgiApp:
    """Return the dashboard as a WSGI application."""
    return WsgiApp(Dashboard(app, **options))
