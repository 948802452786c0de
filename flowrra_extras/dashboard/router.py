"""The one way in: a table of routes, and what every request has to pass before it gets to one.

Knows of no web framework. A face makes a Request of what it was asked, and sends the Response.
"""

from __future__ import annotations

import gzip
import logging
import re
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from flowrra import BackendError, ConfigError, FlowrraError, SerializationError, TaskNotFoundError
from flowrra_extras.dashboard import access as safety
from flowrra_extras.dashboard import api, static
from flowrra_extras.dashboard.web import Response

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from flowrra_extras.dashboard.access import Access, Door, Level
    from flowrra_extras.dashboard.service import Service
    from flowrra_extras.dashboard.web import Request

logger = logging.getLogger("flowrra.dashboard")

BODY_LIMIT = 1_000_000  # bytes of a request
_WORTH_PACKING = 600  # bytes


class PageMaker(Protocol):
    """What makes the pages."""

    async def render(self, request: Request, access: Access) -> Response:
        """The page at the request's path."""

    def error(self, request: Request, status: int, message: str) -> Response:
        """A page that says what is wrong."""


class Route(NamedTuple):
    """A path for a method, what it takes to use it, and what answers. `{name}` in a path may hold slashes."""

    method: str
    path: str
    level: Level
    handler: Callable[..., Awaitable[Response]]

    @property
    def pattern(self) -> re.Pattern[str]:
        """The path as an expression."""
        return re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>.+)", re.escape(self.path)), re.DOTALL)


class Router:
    """Answers requests. `handle` never raises but what is to stop the program."""

    def __init__(self, service: Service, door: Door, pages: PageMaker) -> None:
        self.service = service
        self.door = door
        self.pages = pages
        self.routes = self._table()
        self._patterns = [(route, route.pattern) for route in self.routes]

    def _table(self) -> list[Route]:
        """What there is. The first route that fits is taken."""
        handlers = api.Api(self.service)
        page = self.pages.render
        return [
            Route("GET", "/api/stats", "read", handlers.stats),
            Route("GET", "/api/health", "read", handlers.health),
            Route("GET", "/api/tasks", "read", handlers.tasks),
            Route("GET", "/api/tasks/{name}", "read", handlers.task),
            Route("GET", "/api/jobs", "read", handlers.jobs),
            Route("GET", "/api/jobs/{task_id}", "read", handlers.job),
            Route("GET", "/api/queues", "read", handlers.queues),
            Route("GET", "/api/workers", "read", handlers.workers),
            *(Route("GET", path, "read", _page(page)) for path in PAGES),
        ]

    async def handle(self, request: Request, answer: Any = None) -> Response:
        """Answer a request; `answer` is what `auth` said of it."""
        access = self.door.access(request, answer)
        try:
            response = await self._respond(request, access)
        except Exception as error:
            response = self._failed(request, error)
        return _finished(request, access, response)

    async def _respond(self, request: Request, access: Access) -> Response:
        if len(request.body) > BODY_LIMIT:
            return self._refused(request, access, 413, f"a request may have {BODY_LIMIT} bytes")
        method = "GET" if request.method == "HEAD" else request.method
        if method == "GET" and (found := _static(request)) is not None:
            return found
        fitting = [(route, match) for route, pattern in self._patterns if (match := pattern.fullmatch(request.path))]
        if not access.allows("read"):
            return self._refused(request, access, 403, self.door.why_closed(request))
        for route, match in fitting:
            if route.method == method:
                return await self._checked(request, access, route, match.groupdict())
        if not fitting:
            return self.error(request, 404, "There is no such page.")
        allowed = sorted({route.method for route, _ in fitting})
        response = self.error(request, 405, f"{request.method} is not for this address, but {', '.join(allowed)}.")
        response.headers["allow"] = ", ".join(allowed)
        return response

    async def _checked(self, request: Request, access: Access, route: Route, parts: dict[str, str]) -> Response:
        """What the route answers, if the visitor may use it and has asked for it themself."""
        if not access.allows(route.level):
            return self._refused(request, access, 403, "You may look at everything here, but change nothing.")
        return await route.handler(request, access, **parts)

    def _refused(self, request: Request, access: Access, status: int, message: str) -> Response:
        logger.warning(
            "refused %s %r of %s, who may do %s: %s",
            request.method[:10], request.path[:200], request.client, access.level, message[:300],
        )  # fmt: skip
        return self.error(request, status, message)

    def _failed(self, request: Request, error: Exception) -> Response:
        for kinds, status in _STATUSES:
            if isinstance(error, kinds):
                return self.error(request, status, str(error))
        logger.exception("%s %r failed", request.method[:10], request.path[:200], exc_info=error)
        return self.error(request, 500, "This has failed. What has happened is in the log of the web program.")

    def error(self, request: Request, status: int, message: str) -> Response:
        """What is wrong, as JSON or as a page."""
        if request.path.startswith("/api/"):
            return api.trouble(status, message)
        return self.pages.error(request, status, message)


PAGES = (
    *("/", "/failures", "/jobs", "/jobs/{task_id}/clone", "/jobs/{task_id}", "/tasks", "/tasks/{name}"),
    *("/schedules", "/schedules/new", "/schedules/{schedule_id}", "/workers"),
)
_STATUSES: tuple[tuple[tuple[type[Exception], ...], int], ...] = (
    ((TaskNotFoundError,), 404),
    ((ConfigError, SerializationError), 422),
    ((BackendError,), 503),
    ((FlowrraError,), 409),
)


def _page(render: Callable[[Request, Access], Awaitable[Response]]) -> Callable[..., Awaitable[Response]]:
    """Pages read the path themselves."""

    async def answer(request: Request, access: Access, **parts: str) -> Response:
        return await render(request, access)

    return answer


def _static(request: Request) -> Response | None:
    """A file that pages load. It tells nothing, and anybody may have it."""
    if not request.path.startswith("/static/"):
        return None
    name, digest = request.path.removeprefix("/static/"), request.parameters.get("v", "")
    return static.answer(name, digest, packed=_takes_gzip(request))


def _takes_gzip(request: Request) -> bool:
    return "gzip" in request.headers.get("accept-encoding", "")


def _finished(request: Request, access: Access, response: Response) -> Response:
    """The response with what every one has: the headers of safety, the token's cookie, less bytes."""
    response.headers = {**safety.HEADERS, **response.headers}
    if response.headers.get("content-type", "").startswith("text/html"):
        if access.allows("read") and safety.token_of(request) != access.token:
            response.headers["set-cookie"] = safety.token_cookie(request, access.token)
        response.headers.setdefault("vary", "accept-encoding, cookie")
    is_plain = "content-encoding" not in response.headers and response.stream is None
    if is_plain and len(response.body) > _WORTH_PACKING and _takes_gzip(request):
        response.body = gzip.compress(response.body, 5, mtime=0)
        response.headers["content-encoding"] = "gzip"
    if response.stream is None and response.status != 304:
        response.headers["content-length"] = str(len(response.body))
    if request.method == "HEAD":
        response.body = b""
    return response
