"""The dashboard for Django: `path("flowrra/", include(get_urls(flowrra)))`."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Unpack

from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern, re_path
from django.views.decorators.csrf import csrf_exempt

from flowrra_extras.dashboard import wsgi
from flowrra_extras.dashboard.building import Options, build

if TYPE_CHECKING:
    from collections.abc import Callable

    from flowrra import Flowrra


def get_urls(
    app: Flowrra,
    *,
    decorator: Callable[[Callable[..., HttpResponse]], Callable[..., HttpResponse]] | None = None,
    **options: Unpack[Options],
) -> list[URLPattern]:
    """The dashboard of `app`.

    `decorator=login_required`, or any other decorator of views, protects it; say `auth=lambda request: "full"`
    then, since without `auth=` only this host is let in. `auth` is given Django's request. The dashboard has its
    own defence against requests from other sites, so that Django's middleware for that may stay on.
    """
    router = build(app, **options)

    def dashboard(request: HttpRequest, path: str = "") -> HttpResponse:
        place = wsgi.place_of(request.path, f"/{path}")
        asked = wsgi.request_from(request.META, place=place, native=request)
        asked = dataclasses.replace(asked, scheme=request.scheme or "http")
        response = wsgi.answer(router, asked, lambda: request.body)
        return HttpResponse(response.body, status=response.status, headers=response.headers)

    view = csrf_exempt(dashboard if decorator is None else decorator(dashboard))
    return [re_path(r"^(?P<path>.*)\Z", view, name="flowrra")]
