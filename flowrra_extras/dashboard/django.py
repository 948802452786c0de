"""The dashboard for Django: `path("flowrra/", include(get_urls(flowrra)))`."""

import dataclasses
from collections.abc import Callable
from typing import Unpack

from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern, re_path
from django.views.decorators.csrf import csrf_exempt

from flowrra import Flowrra
from flowrra_extras.dashboard import wsgi
from flowrra_extras.dashboard.app import Dashboard, Options


def get_urls(
    app: Flowrra,
    *,
    decorator: Callable[[Callable[..., HttpResponse]], Callable[..., HttpResponse]] | None = None,
    **options: Unpack[Options],
) -> list[URLPattern]:
    """Return the dashboard of `app` as a list of URL patterns.

    `decorator=login_required`, or another decorator of views, protects it; then also pass `auth=lambda request:
    "full"`, because without `auth=` only requests from this host are allowed. `auth` receives Django's request. The
    dashboard checks for requests from other sites itself, so Django's CSRF middleware may stay on.
    """
    board = Dashboard(app, **options)

    def dashboard(request: HttpRequest, path: str = "") -> HttpResponse:
        place = request.path.removesuffix(f"/{path}"), f"/{path}"
        asked = wsgi.request_from(request.META, place=place, native=request)
        asked = dataclasses.replace(asked, scheme=request.scheme or "http")
        response = wsgi.answer(board, asked, lambda: request.body)
        return HttpResponse(response.body, status=response.status, headers=response.headers)

    view = csrf_exempt(dashboard if decorator is None else decorator(dashboard))
    return [re_path(r"^(?P<path>.*)\Z", view, name="flowrra")]
