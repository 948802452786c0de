"""The dashboard for Flask: `app.register_blueprint(create_blueprint(flowrra), url_prefix="/flowrra")`."""

from __future__ import annotations

import urllib.parse
from typing import TYPE_CHECKING, Unpack

import flask

from flowrra_extras.dashboard import wsgi
from flowrra_extras.dashboard.building import Options, build
from flowrra_extras.dashboard.router import METHODS

if TYPE_CHECKING:
    from flowrra import Flowrra


def _body() -> bytes:
    """The body, which a `before_request` may have read before, as bytes or as a form."""
    return flask.request.get_data() or urllib.parse.urlencode(list(flask.request.form.items(multi=True))).encode()


def create_blueprint(app: Flowrra, name: str = "flowrra", **options: Unpack[Options]) -> flask.Blueprint:
    """The dashboard of `app`.

    The blueprint's `before_request` protects it; say `auth=lambda request: "full"` then, since without `auth=`
    only this host is let in. `auth` is given Flask's request.
    """
    router = build(app, **options)
    blueprint = flask.Blueprint(name, __name__)

    def dashboard(path: str = "") -> flask.Response:
        whole = flask.request.root_path.rstrip("/") + flask.request.path
        place = wsgi.place_of(whole, f"/{path}")
        request = wsgi.request_from(flask.request.environ, place=place, native=flask.request)
        response = wsgi.answer(router, request, _body)
        # As a list, of which Flask does not take the length: a HEAD has that of what it leaves out.
        return flask.Response([response.body], response.status, response.headers)

    for rule in ("/", "/<path:path>"):
        blueprint.add_url_rule(rule, "dashboard", dashboard, methods=METHODS, provide_automatic_options=False)
    return blueprint
