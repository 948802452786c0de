"""The dashboard for Flask: `app.register_blueprint(create_blueprint(flowrra), url_prefix="/flowrra")`."""

import urllib.parse
from typing import Unpack

import flask

from flowrra import Flowrra
from flowrra_extras.dashboard import wsgi
from flowrra_extras.dashboard.app import Dashboard, Options
from flowrra_extras.dashboard.http import METHODS


def _body() -> bytes:
    """The body, which a `before_request` may have read before, as bytes or as a form."""
    return flask.request.get_data() or urllib.parse.urlencode(list(flask.request.form.items(multi=True))).encode()


def create_blueprint(app: Flowrra, name: str = "flowrra", **options: Unpack[Options]) -> flask.Blueprint:
    """Return the dashboard of `app` as a blueprint.

    The blueprint's `before_request` protects it; then also pass `auth=lambda request: "full"`, because without `auth=`
    only requests from this host are allowed. `auth` receives Flask's request.
    """
    board = Dashboard(app, **options)
    blueprint = flask.Blueprint(name, __name__)

    def dashboard(path: str = "") -> flask.Response:
        whole = flask.request.root_path.rstrip("/") + flask.request.path
        place = whole.removesuffix(f"/{path}"), f"/{path}"
        request = wsgi.request_from(flask.request.environ, place=place, native=flask.request)
        response = wsgi.answer(board, request, _body)
        # As a list, of which Flask does not take the length: a HEAD has that of what it leaves out.
        return flask.Response([response.body], response.status, response.headers)

    for rule in ("/", "/<path:path>"):
        blueprint.add_url_rule(rule, "dashboard", dashboard, methods=METHODS, provide_automatic_options=False)
    return blueprint
