"""The one way in: a table of routes, and what every request has to pass before it gets to one.

Knows of no web framework. A face makes a Request of what it was asked, and sends the Response.
"""

from __future__ import annotations

import dataclasses
import gzip
import logging
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from flowrra import BackendError, ConfigError, FlowrraError, SerializationError, TaskNotFoundError
from flowrra_extras.dashboard import access as safety
from flowrra_extras.dashboard import actions, api, given, openapi, schema, static
from flowrra_extras.dashboard.acting import ACTIONS
from flowrra_extras.dashboard.live import Hub
from flowrra_extras.dashboard.pages import Entered, Pages
from flowrra_extras.dashboard.web import FIELDS, Response

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from flowrra_extras.dashboard.access import Access, Door, Level
    from flowrra_extras.dashboard.schema import Schema
    from flowrra_extras.dashboard.service import Service
    from flowrra_extras.dashboard.web import Request

logger = logging.getLogger("flowrra.dashboard")

BODY_LIMIT = 1_000_000  # bytes of a request
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]  # that a face hands on: others it refuses itself
_WORTH_PACKING = 600  # bytes


class Route(NamedTuple):
    """A path for a method, what it takes to use it, and what answers. `{name}` in a path may hold slashes.

    An action whose form was refused shows the `form` again, a path of a page with the same parts. JSON that an
    action is sent must be as its `schema` says.
    """

    method: str
    path: str
    level: Level
    handler: Callable[..., Awaitable[Any]]
    form: str = ""
    schema: Schema | None = None


class Router:
    """Answers requests. `handle` raises nothing but what is to stop the program."""

    def __init__(self, service: Service, door: Door) -> None:
        self.service = service
        self.door = door
        self.pages = Pages(service)
        self.hub = Hub(self.pages)
        self.routes = [*_reading(api.Api(service), self.hub, self._page), *_acting(actions.Actions(service))]
        self._paths = _by_path(self.routes)

    async def close(self) -> None:
        """End what the dashboard does by itself."""
        await self.hub.close()
        await self.service.close()

    def turned_away(self, request: Request, answer: Any = None) -> Response | None:
        """What a request is answered that is refused for its head alone, so that its body need not be read."""
        access = self.door.access(request, answer)
        judged = self._judged(request, access)
        return _finished(request, access, judged) if isinstance(judged, Response) else None

    async def handle(self, request: Request, answer: Any = None) -> Response:
        """Answer a request; `answer` is what `auth` said of it."""
        access = self.door.access(request, answer)
        try:
            response = await self._respond(request, access)
        except Exception as error:
            response = self._failed(request, error)
        return _finished(request, access, response)

    async def _respond(self, request: Request, access: Access) -> Response:
        judged = self._judged(request, access)
        if isinstance(judged, Response):
            return judged
        try:
            return await self._enter(request, access, *judged)
        except TaskNotFoundError:
            if not request.path.endswith("/"):
                raise
            return await self._respond(dataclasses.replace(request, path=request.path.rstrip("/")), access)

    def _judged(self, request: Request, access: Access) -> Response | tuple[Route, dict[str, str]]:
        """The route of a request with the parts of its path; or what it is answered where its head settles that."""
        if request.path.startswith("/static/") and request.method in safety.SAFE_METHODS:
            return static.answer(request) or self.error(request, 404, "There is no such file.")
        if not access.allows("read"):
            return self._refused(request, access, 403, self.door.why_closed(request))
        if request.method in safety.SAFE_METHODS and (reason := safety.prying(request)):
            return self._refused(request, access, 403, f"This request was sent by another site: {reason}.")
        if _length(request) > BODY_LIMIT:
            return self._refused(request, access, 413, f"A request may have {BODY_LIMIT:,} bytes.")
        if (encoding := request.headers.get("content-encoding", "identity").lower()) != "identity":
            return self._refused(request, access, 415, f"A body is read as it is, not as {encoding[:40]!r}.")
        if request.query.count("&") >= FIELDS:
            return self._refused(request, access, 422, f"A query may have {FIELDS} parameters.")
        if "\0" in request.path:
            return self.error(request, 404, "There is no such page.")
        method = "GET" if request.method == "HEAD" else request.method
        found = [one for path in (request.path, request.path.rstrip("/")) if (one := self._found(path))]
        if not found:
            return self.error(request, 404, "There is no such page.")
        routes, parts = next((one for one in found if method in one[0]), found[0])
        if method == "OPTIONS":
            return Response(204, b"", {"allow": _methods(routes)})
        if method not in routes:
            return self._not_so(request, _methods(routes))
        route = routes[method]
        if not access.allows(route.level):
            return self._refused(request, access, 403, "You may look at everything here, but change nothing.")
        if route.method != "GET" and (reason := safety.crossing(request)):
            return self._refused(request, access, 403, f"This request may have been sent by another site: {reason}.")
        return route, parts

    def _found(self, path: str) -> tuple[dict[str, Route], dict[str, str]] | None:
        """The routes of a path by method, and the parts of the path."""
        for pattern, routes in self._paths:
            if match := pattern.fullmatch(path):
                return routes, match.groupdict()
        return None

    async def _enter(self, request: Request, access: Access, route: Route, parts: dict[str, str]) -> Response:
        """What the route answers, if a request that changes something proves that the visitor has sent it."""
        if route.method == "GET":
            response: Response = await route.handler(request, access, **parts)
            return response
        fields = given.read(request)
        if reason := safety.unproven(request, fields.token or request.headers.get("x-flowrra-token")):
            return self._refused(request, access, 403, f"This request may have been sent by another site: {reason}.")
        if not fields.is_form and route.schema and (fault := schema.fault(fields.values, route.schema)):
            return self.error(request, 422, fault)
        try:
            return actions.answer(request, fields, await route.handler(fields, access, **parts))
        except (ConfigError, SerializationError) as error:
            if not (fields.is_form and route.form):
                raise
            entered = Entered(str(error), {name: str(value) for name, value in fields.values.items()})
            page = dataclasses.replace(request, method="GET", path=route.form.format_map(parts), query="")
            return await self.pages.render(page, access, entered)

    async def _page(self, request: Request, access: Access, **parts: str) -> Response:
        """Pages read the path themselves."""
        return await self.pages.render(request, access)

    # What goes wrong ---------------------------------------------------------------------------

    def too_late(self, request: Request) -> Response:
        """What a request is answered whose body does not come."""
        return _finished(request, safety.Access(), self.error(request, 408, "The body did not come in time."))

    def _not_so(self, request: Request, methods: str) -> Response:
        response = self.error(request, 405, f"{request.method[:20]} cannot be done here, but {methods}.")
        response.headers["allow"] = methods
        return response

    def _refused(self, request: Request, access: Access, status: int, message: str) -> Response:
        logger.warning(
            "refused %r %r of %s, who may do %s: %s",
            request.method[:20], request.path[:200], request.client, access.level, message[:300],
        )  # fmt: skip
        return self.error(request, status, message)

    def _failed(self, request: Request, error: Exception) -> Response:
        for kinds, status in _STATUSES:
            if isinstance(error, kinds):
                return self.error(request, status, str(error))
        logger.error("%r %r failed", request.method[:20], request.path[:200], exc_info=error)
        return self.error(request, 500, "This has failed. What has happened is in the log of the web program.")

    def error(self, request: Request, status: int, message: str) -> Response:
        """What is wrong, as JSON or as a page."""
        if request.path.startswith("/api/") or safety.media_type(request) == "application/json":
            return api.trouble(status, message)
        return self.pages.error(request, status, message)


_STATUSES: tuple[tuple[tuple[type[Exception], ...], int], ...] = (
    ((given.UnreadableError,), 400),
    ((TaskNotFoundError,), 404),
    ((ConfigError, SerializationError, UnicodeError, RecursionError), 422),
    ((BackendError,), 503),
    ((FlowrraError,), 409),
)


def _length(request: Request) -> int:
    """How long the body is, or will be by its head."""
    said = request.headers.get("content-length", "")
    return max(len(request.body), int(said[:18]) if said.isascii() and said.isdecimal() else 0)


def _methods(routes: Iterable[str]) -> str:
    """The methods of a path as the header Allow names them."""
    return ", ".join(sorted({*routes, "OPTIONS", *(["HEAD"] if "GET" in routes else [])}))


# The table -------------------------------------------------------------------------------------


def _by_path(routes: Iterable[Route]) -> list[tuple[re.Pattern[str], dict[str, Route]]]:
    """The routes by path and method, the paths with most fixed characters first: those fit where others do too."""
    paths: dict[str, dict[str, Route]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method] = route
    ordered = sorted(paths, key=lambda path: -len(re.sub(r"{\w+}", "", path)))
    expressions = (re.sub(r"\\{(\w+)\\}", r"(?P<\1>.+)", re.escape(path)) for path in ordered)
    return [(re.compile(expr, re.DOTALL), paths[path]) for expr, path in zip(expressions, ordered, strict=True)]


def _reading(handlers: api.Api, hub: Hub, page: Callable[..., Awaitable[Response]]) -> list[Route]:
    """What can be looked at."""
    table: dict[str, Callable[..., Awaitable[Response]]] = {
        "/api/stats": handlers.stats,
        "/api/health": handlers.health,
        "/api/tasks": handlers.tasks,
        "/api/tasks/{name}": handlers.task,
        "/api/jobs": handlers.jobs,
        "/api/jobs/{task_id}/text/{field}": handlers.text,
        "/api/jobs/{task_id}": handlers.job,
        "/api/queues": handlers.queues,
        "/api/workers": handlers.workers,
        "/api/schedules": handlers.schedules,
        "/api/schedules/{schedule_id}": handlers.schedule,
        "/api/complete": handlers.complete,
        "/api/preview": handlers.preview,
        "/api/openapi.json": handlers.openapi,
        "/api/metrics": handlers.metrics,
        "/metrics": handlers.metrics,
        "/events": hub.answer,
        "/api/events": hub.answer,
        "/jobs/{task_id}/text/{field}": handlers.text,
        **dict.fromkeys(_PAGES, page),
    }
    return [Route("GET", path, "read", handler) for path, handler in table.items()]


_PAGES = (
    *("/", "/failures", "/jobs", "/jobs/{task_id}/clone", "/jobs/{task_id}", "/tasks", "/tasks/{name}"),
    *("/schedules", "/schedules/new", "/schedules/{schedule_id}", "/workers"),
)


def _acting(act: actions.Actions) -> list[Route]:
    """What changes something. Pages send forms to these paths, programs JSON to the same under /api."""
    both = [
        *(_action(f"/jobs/{name}", act.on_many(name), openapi.MANY) for name in ACTIONS),
        *(_action(f"/jobs/{{task_id}}/{name}", act.on_one(name)) for name in ACTIONS),
        _action("/jobs/{task_id}/clone", act.clone, openapi.CLONE, form="/jobs/{task_id}/clone"),
        _action("/tasks/{name}/run", act.run_task, openapi.RUN_IT, form="/tasks/{name}"),
        _action("/queues/{name}/pause", act.pause),
        _action("/queues/{name}/resume", act.resume),
        _action("/schedules/{schedule_id}/run", act.run_schedule),
    ]
    forms = [
        _action("/schedules", act.add_schedule, form="/schedules/new"),
        _action("/schedules/{schedule_id}", act.update_schedule, form="/schedules/{schedule_id}"),
        _action("/schedules/{schedule_id}/enable", act.enable_schedule),
        _action("/schedules/{schedule_id}/disable", act.disable_schedule),
        _action("/schedules/{schedule_id}/delete", act.remove_schedule),
    ]
    programs = [
        _action("/api/run", act.run, openapi.RUN),
        _action("/api/schedules/cron", act.adds("cron"), openapi.CRON),
        _action("/api/schedules/interval", act.adds("interval"), openapi.INTERVAL),
        _action("/api/schedules/once", act.adds("once"), openapi.ONCE),
        _action("/api/schedules/{schedule_id}/enable", act.enable_schedule, method="PUT"),
        _action("/api/schedules/{schedule_id}/disable", act.disable_schedule, method="PUT"),
        _action("/api/schedules/{schedule_id}", act.change_schedule, openapi.CHANGE, method="PATCH"),
        _action("/api/schedules/{schedule_id}", act.remove_schedule, method="DELETE"),
    ]
    return [*both, *forms, *(route._replace(path=f"/api{route.path}", form="") for route in both), *programs]


def _action(
    path: str,
    handler: Callable[..., Awaitable[Any]],
    schema: Schema = openapi.NOTHING,
    *,
    form: str = "",
    method: str = "POST",
) -> Route:
    return Route(method, path, "full", handler, form, schema)


# What every answer has -------------------------------------------------------------------------


def _finished(request: Request, access: Access, response: Response) -> Response:
    """The response with the headers of safety and the token's cookie, in less bytes where the visitor takes that."""
    response.headers = {**safety.HEADERS, **response.headers}
    if response.headers.get("content-type", "").startswith("text/html"):
        response.headers["vary"] = "accept-encoding, cookie, x-flowrra-fragment"
        if access.allows("read") and safety.token_of(request) != access.token:
            response.headers["set-cookie"] = safety.token_cookie(request, access.token)
    is_plain = "content-encoding" not in response.headers and response.stream is None
    if is_plain and len(response.body) > _WORTH_PACKING and static.takes_gzip(request):
        response.body = gzip.compress(response.body, 5, mtime=0)
        response.headers["content-encoding"] = "gzip"
    if response.stream is None and response.status not in (204, 304):
        response.headers["content-length"] = str(len(response.body))
    if request.method == "HEAD":
        response.body = b""
    return response
