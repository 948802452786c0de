"""The dashboard in Django's admin, for users with the permission to view or to change jobs."""

from typing import Any

from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern, path, re_path
from django.views.decorators.csrf import csrf_exempt

from flowrra import Flowrra
from flowrra_extras.dashboard.auth import Access, Level
from flowrra_extras.dashboard.django import get_urls
from flowrra_extras.django.backend import get_app
from flowrra_extras.django.models import Job

VIEW, CHANGE = "flowrra.view_job", "flowrra.change_job"


def access(request: HttpRequest) -> Access:
    """Return what a user may do in the dashboard, by Django's permissions."""
    user: Any = request.user
    level: Level = "full" if user.has_perm(CHANGE) else "read" if user.has_perm(VIEW) else "none"
    return Access(level, user.get_username())


@admin.register(Job)
class JobAdmin(admin.ModelAdmin):  # type: ignore[type-arg]  # Django's own is not generic
    """The entry in the admin. It opens the dashboard of `get_app()`."""

    _mounted: tuple[Flowrra, list[URLPattern]] | None = None

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Return False: jobs are enqueued by code."""
        return False

    def get_urls(self) -> list[URLPattern]:
        """Return the URLs of the dashboard, which replaces the lists and forms of a model."""
        view = self.admin_site.admin_view(csrf_exempt(self._dashboard))  # it protects itself against other sites
        name = f"{self.opts.app_label}_{self.opts.model_name}_changelist"
        return [path("", view, name=name), re_path(r"^(?P<path>.*)\Z", view)]

    def _dashboard(self, request: HttpRequest, path: str = "") -> HttpResponse:
        app = get_app()
        if self._mounted is None or self._mounted[0] is not app:
            self._mounted = app, get_urls(app, auth=access)
        response: HttpResponse = self._mounted[1][0].callback(request, path)
        return response
