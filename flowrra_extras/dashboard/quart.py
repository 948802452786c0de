"""The dashboard for Quart: `app.register_blueprint(create_blueprint(flowrra), url_prefix="/flowrra")`."""

from typing import Any, Unpack

import quart

from flowrra import Flowrra
from flowrra_extras.dashboard import asgi
from flowrra_extras.dashboard.app import Dashboard, Options
from flowrra_extras.dashboard.http import METHODS


def create_blueprint(app: Flowrra, name: str = "flowrra", **options: Unpack[Options]) -> quart.Blueprint:
    """Return the dashboard of `app` as a blueprint.

    The blueprint's `before_request` protects it; then also pass `auth=lambda request: "full"`, because without `auth=`
    only requests from this host are allowed. `auth` receives Quart's request.
    """
    board = Dashboard(app, **options)
    blueprint = quart.Blueprint(name, __name__)

    async def dashboard(path: str = "") -> quart.Response:
        native: Any = quart.request
        request = asgi.request_from(native.scope, f"/{path}", native)
        response = await asgi.response_to(board, request, lambda: native.get_data(cache=False, parse_form_data=False))
        if response is None:
            quart.abort(400)
        answer = quart.Response(response.body if response.stream is None else response.stream, response.status)
        answer.headers.clear()
        answer.headers.update(response.headers)
        answer.timeout = None if response.stream is not None else answer.timeout
        return answer

    for rule in ("/", "/<path:path>"):
        blueprint.add_url_rule(rule, "dashboard", dashboard, methods=METHODS, provide_automatic_options=False)
    blueprint.after_app_serving(board.close)
    return blueprint
