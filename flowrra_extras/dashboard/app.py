"""The dashboard: its options, the table of all pages and actions, and the checks of every request.

An entry of the table makes the page, the route of the API, its place in the OpenAPI document, the form and the notice.
Knows of no web framework: asgi.py, wsgi.py and the four frameworks make a Request of what they are asked, and send the
Response.
"""

import dataclasses
import gzip
import re
import urllib.parse
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypedDict, Unpack, cast

from flowrra import BackendError, ConfigError, Flowrra, FlowrraError, Job, SerializationError, TaskNotFoundError
from flowrra_extras.dashboard import api_schema, auth
from flowrra_extras.dashboard.api_schema import JOB_ID, NOTHING, OBJECT, SCHEDULE, STRING, Schema, query, schema_of
from flowrra_extras.dashboard.auth import Access
from flowrra_extras.dashboard.failures import FailureGroups, Failures
from flowrra_extras.dashboard.health import Health, HealthCheck, QueueRow, Verdict, store_is_away
from flowrra_extras.dashboard.html import Entered, PageHandler, Pages, notice_query
from flowrra_extras.dashboard.http import (
    BODY_LIMIT,
    FIELDS,
    Done,
    Fields,
    Request,
    Response,
    UnreadableError,
    UnsureError,
    json_answer,
    logger,
    media_type,
    read_fields,
    static_answer,
    takes_gzip,
)
from flowrra_extras.dashboard.jobs import JobPage, Jobs, JobView, Report
from flowrra_extras.dashboard.limits import LimitRow, Limits
from flowrra_extras.dashboard.live import Hub
from flowrra_extras.dashboard.overview import Overview, Stats, WorkerRow
from flowrra_extras.dashboard.schedules import Preview, ScheduleRow, Schedules
from flowrra_extras.dashboard.store import Store
from flowrra_extras.dashboard.tasks import TaskRow, Tasks, TaskView
from flowrra_extras.scheduler import Scheduler

_WORTH_PACKING = 600  # bytes


class Options(TypedDict, total=False):
    """The options that every framework takes.

    `auth` receives the framework's own request and returns "none", "read", "full" or an Access (False and None mean
    none, True full); it may be async. Without it, only requests from this host are allowed, unless `insecure` is True.
    With `read_only`, nobody can change anything. `redact` hides the arguments and results of all jobs (True), or of the
    jobs for which the function returns True. `schedulers`: whose schedules are shown (default: those of the app).
    `max_lag`: how many seconds the oldest ready job of a queue may wait before health reports a problem: one number for
    all queues, or by queue ("*" for the others). `searches`: search lines by name, which the page of jobs shows as
    links.
    """

    auth: Callable[..., object] | None
    insecure: bool
    read_only: bool
    redact: bool | Callable[[Job], bool]
    schedulers: Sequence[Scheduler] | None
    max_lag: float | Mapping[str, float]
    searches: Mapping[str, str]


class Look(NamedTuple):
    """Something to look at: a page at `path`, and at /api`path` (or `api`, empty: nowhere) what `data` or `raw` says.

    `{name}` in a path may hold slashes. `data` is given the parts of the path and of the `query`, and gives a value of
    the type `answer`, in an object under `listed` if that is said; `raw` is given the request and gives a response.
    The document of the API asks each Look and each Act for a `body`, a `status` and a `query`.
    """

    path: str
    text: str = ""
    answer: Schema = OBJECT
    page: PageHandler | None = None
    data: Callable[..., Awaitable[Any]] | None = None
    raw: Callable[..., Awaitable[Response]] | None = None
    listed: str = ""
    api: str | None = None
    query: tuple[Schema, ...] = ()
    media: str = "application/json"
    body: Schema | None = None
    status: int = 200


class Act(NamedTuple):
    """Something to do. A form is sent to `path`, JSON with the fields of `body` to /api`path` (or `api`; empty: none).

    The page that a form leads to says the `notice`, under its `name` in the URL. A form that was refused is shown
    again: `form` is the path of its page. `undo` is the path of the action that takes it back, if there is one.
    """

    name: str
    path: str
    text: str
    run: Callable[..., Awaitable[Done]]
    notice: str
    body: Schema = NOTHING
    answer: Schema = OBJECT
    status: int = 200
    form: str = ""
    undo: str = ""
    method: str = "POST"
    api: str | None = None
    listed: str = ""
    query: tuple[Schema, ...] = ()
    media: str = "application/json"


class Route(NamedTuple):
    """What stands at a path for a method."""

    method: str
    path: str
    entry: Look | Act

    @property
    def is_page(self) -> bool:
        return not self.path.startswith("/api/")


def looks(board: "Dashboard") -> list[Look]:
    overview, jobs, tasks, schedules = board.overview, board.jobs, board.tasks, board.schedules
    text, events = "text/plain", "text/event-stream"
    field = "/jobs/{task_id}/text/{field}"
    return [
        Look("/", "The overview: counts, queues, workers, failures and schedules", schema_of(Stats),
             overview.overview_page, overview.stats, api="/stats"),
        Look("/failures", "Failed jobs, grouped by error", schema_of(Failures), board.failures.page,
             board.failures.failures),
        Look("/health", "The health: status 503 if there is a problem", schema_of(Health),
             raw=board.health.health_answer),
        Look("/queues", "The queues", schema_of(list[QueueRow]), data=board.health.queues, listed="queues"),
        Look("/workers", "The live workers", schema_of(list[WorkerRow]), overview.workers_page, overview.workers,
             listed="workers"),
        Look("/limits", "The limits", schema_of(list[LimitRow]), board.limits.page, board.limits.limits,
             listed="limits"),
        Look("/jobs", "A page of jobs, the latest first", schema_of(JobPage), jobs.list_page, jobs.listed,
             query=api_schema.JOBS_QUERY),
        Look("/jobs/{task_id}", "A job", schema_of(JobView), jobs.job_page, jobs.job),
        Look("/jobs/{task_id}/clone", page=jobs.clone_page, api=""),
        Look("/jobs/{task_id}/emit", page=jobs.emit_page, api=""),
        Look(field, "The full text of a long value of a job", STRING, raw=jobs.whole_text, media=text),
        Look("/tasks", "The tasks", schema_of(list[TaskRow]), tasks.list_page, tasks.tasks, listed="tasks"),
        Look("/tasks/{name}", "A task", schema_of(TaskView), tasks.task_page, tasks.task),
        Look("/schedules", "The schedules", schema_of(list[ScheduleRow]), schedules.list_page, schedules.schedules,
             listed="schedules"),
        Look("/schedules/new", page=schedules.new_page, api=""),
        Look("/schedules/{schedule_id}", "A schedule", schema_of(ScheduleRow), schedules.schedule_page,
             schedules.schedule),
        Look("/preview", "What the rule of a schedule means", schema_of(Preview), data=schedules.preview,
             query=api_schema.PREVIEW_QUERY),
        Look("/complete", "Completions of a word in a search", schema_of(list[str]), data=jobs.complete,
             listed="words", query=(query("word", "the text that was typed so far"),)),
        Look("/metrics", "The metrics for Prometheus", STRING, raw=overview.metrics, media=text),
        Look("/events", "Updates of a page, as server-sent events",
             {"description": "an event `main` with the HTML of the page, each time that it changes"},
             raw=board.hub.answer, query=api_schema.EVENTS_QUERY, media=events),
        Look("/openapi.json", "This document", raw=board.openapi),
    ]  # fmt: skip


# Action on jobs: what it does to several, to one, and what is said of it.
_ON_JOBS = (
    ("cancel", "Cancel jobs", "Cancel a job", "Cancelled"),
    ("requeue", "Requeue failed and cancelled jobs", "Requeue a job", "Requeued"),
    ("delete", "Delete finished jobs", "Delete a finished job", "Deleted"),
)


def acts(board: "Dashboard") -> list[Act]:
    overview, jobs, tasks, schedules = board.overview, board.jobs, board.tasks, board.schedules
    report, schedule, job = schema_of(Report), "/schedules/{schedule_id}", "/jobs/{task_id}"
    pause, resume = "/queues/{name}/pause", "/queues/{name}/resume"
    pause_key, resume_key = "/limits/{name}/pause", "/limits/{name}/resume"
    enable, disable = f"{schedule}/enable", f"{schedule}/disable"
    submitted, stored = "The job was submitted.", "The schedule was stored."
    kept: dict[str, Any] = {"answer": api_schema.SCHEDULE_ID, "status": 201}
    run_it: dict[str, Any] = {"answer": JOB_ID, "status": 201}
    return [
        *(Act(name, f"/jobs/{name}", many, jobs.on_many(name), said, api_schema.MANY, report, form="/jobs")
          for name, many, _, said in _ON_JOBS),
        *(Act(name, f"{job}/{name}", one, jobs.on_one(name), said, answer=report) for name, _, one, said in _ON_JOBS),
        Act("clone", f"{job}/clone", "Submit a copy of a job", jobs.clone_it,
            "The clone was submitted. This is the new job.", api_schema.CLONE, form=f"{job}/clone", **run_it),
        Act("emit", f"{job}/emit", "Emit the event that a job waits for", jobs.emit_it, "The event was emitted.",
            api_schema.EMIT, api_schema.EMITTED, form=f"{job}/emit"),
        Act("run", "/tasks/{name}/run", "Submit a job of a task", tasks.run_it, submitted, api_schema.RUN_IT,
            form="/tasks/{name}", **run_it),
        Act("run", "", "Submit a job of a task", tasks.run_named, submitted, api_schema.RUN, api="/run", **run_it),
        Act("pause", pause, "Pause a queue", overview.sets_queue(paused=True),
            "The queue is paused. Its jobs do not start until it is resumed.", undo=resume),
        Act("resume", resume, "Resume a queue", overview.sets_queue(paused=False),
            "The queue is resumed. Its jobs can start.", undo=pause),
        Act("hold", pause_key, "Pause a key of a limit", board.limits.sets_key(paused=True),
            "The key is paused. Its jobs do not start until it is resumed.", api_schema.LIMIT_KEY),
        Act("unhold", resume_key, "Resume a key of a limit", board.limits.sets_key(paused=False),
            "The key is resumed. Its jobs can start.", api_schema.LIMIT_KEY),
        Act("add", "/schedules", "Store a schedule", schedules.adds(), stored, form="/schedules/new", api="", **kept),
        Act("add", "", "Store a schedule with a cron expression", schedules.adds("cron"), stored, SCHEDULE["cron"],
            api="/schedules/cron", **kept),
        Act("add", "", "Store a schedule that fires at an interval", schedules.adds("interval"), stored,
            SCHEDULE["interval"], api="/schedules/interval", **kept),
        Act("add", "", "Store a schedule that fires once", schedules.adds("once"), stored, SCHEDULE["run_at"],
            api="/schedules/once", **kept),
        Act("update", schedule, "Change a stored schedule; fields that are not given stay unchanged", schedules.update,
            "The schedule was changed.", api_schema.CHANGE, method="PATCH", form=schedule),
        Act("remove", f"{schedule}/delete", "Delete a schedule", schedules.remove, "The schedule was deleted.",
            method="DELETE", api=schedule),
        Act("enable", enable, "Enable a schedule", schedules.switches("enable"), "The schedule is enabled.",
            undo=disable, method="PUT"),
        Act("disable", disable, "Disable a schedule", schedules.switches("disable"),
            "The schedule is disabled. It does not fire.", undo=enable, method="PUT"),
        Act("fire", f"{schedule}/run", "Submit the job of a schedule now", schedules.run_now, submitted, **run_it),
    ]  # fmt: skip


# Where pages and scripts find what else only the API has.
_BESIDE_PAGES = ("/events", "/metrics", "/jobs/{task_id}/text/{field}")


def _routes_of(entry: Look | Act) -> list[Route]:
    """The routes that an entry makes: of its page and form, and of the API."""
    at_page = isinstance(entry, Act) or entry.page is not None or entry.path in _BESIDE_PAGES
    api = entry.path if entry.api is None else entry.api
    found = [Route("GET" if isinstance(entry, Look) else "POST", entry.path, entry)] if at_page and entry.path else []
    if api:
        found.append(Route("GET" if isinstance(entry, Look) else entry.method, f"/api{api}", entry))
    return found


class Dashboard:
    """The dashboard of an app. `handle` answers requests, and raises no `Exception`."""

    def __init__(self, app: Flowrra, **options: Unpack[Options]) -> None:
        self.store = Store(app, schedulers=options.get("schedulers"), redact=options.get("redact", False))
        insecure, read_only = options.get("insecure", False), options.get("read_only", False)
        self.door = auth.Door(options.get("auth"), insecure=insecure, read_only=read_only)
        self.jobs = Jobs(self.store, options.get("searches"))
        self.tasks, self.schedules, self.limits = Tasks(self.store), Schedules(self.store), Limits(self.store)
        self.failures = FailureGroups(self.store)
        self.health = HealthCheck(self.store, self.failures, options.get("max_lag"))
        self.overview = Overview(self.store, self.health, self.failures, self.schedules)
        done: dict[str, str] = {}
        self.pages = Pages(self.page_at, done, self.health.verdict)
        self.hub = Hub(self.pages)
        actions = acts(self)
        done |= {act.name: act.notice for act in actions}
        entries: list[Look | Act] = [*looks(self), *actions]
        self.routes = [route for entry in entries for route in _routes_of(entry)]
        self._paths = _by_path(self.routes)

    async def close(self) -> None:
        """End what the dashboard does by itself."""
        await self.hub.close()
        await self.store.close()

    async def turned_away(self, request: Request, answer: Any = None) -> Response | None:
        """What a request is answered that is refused for its head alone, so that its body need not be read."""
        access = self.door.access(request, answer)
        try:
            judged = self._judged(request, access)
        except (_Refused, TaskNotFoundError) as refused:
            judged = await self._failed(request, access, refused)
        return _finished(request, access, judged) if isinstance(judged, Response) else None

    async def handle(self, request: Request, answer: Any = None) -> Response:
        """Answer a request; `answer` is what `auth` said of it."""
        access = self.door.access(request, answer)
        try:
            response = await self._respond(request, access)
        except Exception as error:
            response = await self._failed(request, access, error)
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
        """The route of a request with the parts of its path; or what it is answered where its head settles that.

        Raises:
            _Refused: the head is such that nothing will be done.
        """
        if request.path.startswith("/static/") and request.method in auth.SAFE_METHODS:
            return static_answer(request) or self.error(request, 404, "There is no such file.")
        if not access.allows("read"):
            raise _Refused(403, self.door.why_closed(request))
        if request.method in auth.SAFE_METHODS and (reason := auth.prying(request)):
            raise _Refused(403, f"This request was sent by another site: {reason}.")
        if _length(request) > BODY_LIMIT:
            raise _Refused(413, f"A request can have at most {BODY_LIMIT:,} bytes.")
        if (encoding := request.headers.get("content-encoding", "identity").lower()) != "identity":
            raise _Refused(
                415, f"The content encoding {encoding[:40]!r} is not supported: send the body without compression."
            )
        if request.query.count("&") >= FIELDS:
            raise _Refused(422, f"A query can have at most {FIELDS} parameters.")
        if "\0" in request.path:
            raise TaskNotFoundError("There is no such page.")
        method = "GET" if request.method == "HEAD" else request.method
        found = [one for path in (request.path, request.path.rstrip("/")) if (one := self._found(path))]
        if not found:
            raise TaskNotFoundError("There is no such page.")
        routes, parts = next((one for one in found if method in one[0]), found[0])
        if method == "OPTIONS":
            return Response(204, b"", {"allow": _methods(routes)})
        if method not in routes:
            methods = _methods(routes)
            raise _Refused(405, f"The method {request.method[:20]} is not allowed here. Allowed: {methods}.", methods)
        route = routes[method]
        if route.method != "GET" and not access.allows("full"):
            raise _Refused(403, "You have read-only access: you cannot change anything.")
        if route.method != "GET" and (reason := auth.crossing(request)):
            raise _Refused(403, f"This request may have been sent by another site: {reason}.")
        return route, parts

    def _found(self, path: str) -> tuple[dict[str, Route], dict[str, str]] | None:
        """The routes of a path by method, and the parts of the path."""
        for pattern, routes in self._paths:
            if match := pattern.fullmatch(path):
                return routes, match.groupdict()
        return None

    async def _enter(self, request: Request, access: Access, route: Route, parts: dict[str, str]) -> Response:
        """What the route answers, if a request that changes something proves that the visitor has sent it."""
        if isinstance(route.entry, Look):
            return await self._show(request, access, route, parts)
        fields = read_fields(request)
        if reason := auth.unproven(request, fields.token or request.headers.get("x-flowrra-token")):
            raise _Refused(403, f"This request may have been sent by another site: {reason}.")
        if not fields.is_form and (fault := api_schema.fault(fields.values, route.entry.body)):
            raise ConfigError(fault)
        try:
            done = await route.entry.run(fields, access, **parts)
            quoted = {name: urllib.parse.quote(part, safe="") for name, part in parts.items()}
            undo = route.entry.undo.format_map(quoted)
            return _done(request, fields, route.entry.name, done, undo)
        except (ConfigError, SerializationError) as error:
            if not (fields.is_form and route.entry.form):
                raise
            problem = "" if isinstance(error, UnsureError) else str(error)
            given = {name: str(value) for name, value in fields.values.items()} | {"action": route.entry.name}
            entered = Entered(problem, given, fields.many)
            page = dataclasses.replace(request, method="GET", path=route.entry.form.format_map(parts), query="")
            return await self.pages.render(page, access, entered)

    async def _show(self, request: Request, access: Access, route: Route, parts: dict[str, str]) -> Response:
        look = cast("Look", route.entry)
        if route.is_page and look.page is not None:
            return await self.pages.render(request, access)
        if look.raw is not None:
            return await look.raw(request, access, **parts)
        if look.data is None:
            raise TaskNotFoundError("There is no such page.")
        value = await look.data(**parts, **_query_in(request, look.query))
        status = 422 if isinstance(value, dict) and value.get("problems") else 200
        return json_answer({look.listed: value} if look.listed else value, status)

    def page_at(self, path: str) -> tuple[PageHandler, dict[str, str]] | None:
        """The page at a path, and the parts of the path."""
        found = self._found(path)
        route = found[0].get("GET") if found else None
        if found is None or route is None or not isinstance(route.entry, Look) or route.entry.page is None:
            return None
        return (route.entry.page, found[1]) if route.is_page else None

    async def openapi(self, request: Request, access: Access) -> Response:
        return json_answer(self.document(f"{request.root}/api"))

    def document(self, root: str) -> api_schema.Schema:
        """The OpenAPI document of the API under `root`."""
        return api_schema.document(root, (route for route in self.routes if route.path.startswith("/api/")))

    # What goes wrong ---------------------------------------------------------------------------

    def too_late(self, request: Request) -> Response:
        """What a request is answered whose body does not come."""
        return _finished(request, auth.Access(), self.error(request, 408, "The body was not received in time."))

    async def _failed(self, request: Request, access: Access, error: Exception) -> Response:
        """What a request is answered that is refused or has failed; with the verdict, for those who may see it."""
        status, message = self._told(request, error)
        if isinstance(error, _Refused):
            logger.warning(
                "refused %r %r of %s, who may do %s: %s",
                request.method[:20], request.path[:200], request.client, access.level, message[:300],
            )  # fmt: skip
        verdict = None
        if access.allows("read") and not _is_for_programs(request):
            verdict = store_is_away(message) if status == 503 else await self.health.verdict()
        response = self.error(request, status, message, verdict)
        if isinstance(error, _Refused) and error.methods:
            response.headers["allow"] = error.methods
        return response

    def _told(self, request: Request, error: Exception) -> tuple[int, str]:
        if isinstance(error, _Refused):
            return error.status, str(error)
        for kinds, status in _STATUSES:
            if isinstance(error, kinds):
                return status, self.store.explained(error) if status == 503 else str(error)
        logger.error("%r %r failed", request.method[:20], request.path[:200], exc_info=error)
        return 500, "The request failed. The error is in the log of the web program."

    def error(self, request: Request, status: int, message: str, verdict: Verdict | None = None) -> Response:
        """What is wrong, as JSON or as a page."""
        if _is_for_programs(request):
            return json_answer({"error": message}, status)
        return self.pages.error(request, status, message, verdict)


class _Refused(Exception):  # noqa: N818 (it is no error of ours)
    """A request is not done, for its head or for what it lacks. `methods` are those that its path has."""

    def __init__(self, status: int, message: str, methods: str = "") -> None:
        super().__init__(message)
        self.status, self.methods = status, methods


def _is_for_programs(request: Request) -> bool:
    """Whether the answer is JSON where it is no page."""
    return request.path.startswith("/api/") or media_type(request) == "application/json"


_STATUSES: tuple[tuple[tuple[type[Exception], ...], int], ...] = (
    ((UnreadableError,), 400),
    ((TaskNotFoundError,), 404),
    ((ConfigError, SerializationError, UnicodeError, RecursionError), 422),
    ((BackendError,), 503),
    ((FlowrraError,), 409),
)


def _query_in(request: Request, expected: Iterable[Schema]) -> dict[str, Any]:
    """The expected parameters that came with a request; ConfigError if a number is expected and not given."""
    given = request.parameters
    found: dict[str, Any] = {one["name"]: given[one["name"]] for one in expected if one["name"] in given}
    for one in expected:
        name, kind = one["name"], one["schema"]["type"]
        if kind == "integer" and name in found:
            text = found[name]
            if not (text.isascii() and text.isdecimal() and len(text) <= 9):
                raise ConfigError(f"{name} must be a whole number, not {text[:40]!r}")
            found[name] = int(text)
    return found


# A path of our own that a form may lead back to. A second slash or a backslash would begin another host's name.
_BACK = re.compile(r"/(?![/\\])[!-\[\]-~]{0,2000}")


def _done(request: Request, fields: Fields, name: str, done: Done, undo: str) -> Response:
    """The answer to a form, which leads to a page that says so, or to JSON."""
    if not fields.is_form:
        return json_answer(done.value, done.status)
    back = fields.values.get("back", "")
    path = back if _BACK.fullmatch(back) else done.path
    mark = "&" if "?" in path else "?"
    parts = {"at": done.touched, "undo": done.undo or undo, "line": done.line}
    notice = notice_query(name + done.figures, auth.token_of(request) or "", **parts)
    place = urllib.parse.quote(request.root) + f"{path}{mark}{notice}"
    return Response(303, b"", {"location": place})


def _length(request: Request) -> int:
    """How long the body is, or will be by its head."""
    said = request.headers.get("content-length", "")
    return max(len(request.body), int(said[:18]) if said.isascii() and said.isdecimal() else 0)


def _methods(routes: Iterable[str]) -> str:
    """The methods of a path as the header Allow names them."""
    return ", ".join(sorted({*routes, "OPTIONS", *(["HEAD"] if "GET" in routes else [])}))


def _by_path(routes: Iterable[Route]) -> list[tuple[re.Pattern[str], dict[str, Route]]]:
    """The routes by path and method, the paths with most fixed characters first: those fit where others do too."""
    paths: dict[str, dict[str, Route]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method] = route
    ordered = sorted(paths, key=lambda path: -len(re.sub(r"{\w+}", "", path)))
    expressions = (re.sub(r"\\{(\w+)\\}", r"(?P<\1>.+)", re.escape(path)) for path in ordered)
    return [(re.compile(expr, re.DOTALL), paths[path]) for expr, path in zip(expressions, ordered, strict=True)]


# What every answer has -------------------------------------------------------------------------


def _finished(request: Request, access: Access, response: Response) -> Response:
    """The response with the headers of safety and the token's cookie, in less bytes where the visitor takes that."""
    response.headers = {**auth.HEADERS, **response.headers}
    if response.headers.get("content-type", "").startswith("text/html"):
        response.headers["vary"] = "accept-encoding, cookie, x-flowrra-fragment"
        if access.allows("read") and auth.token_of(request) != access.token:
            response.headers["set-cookie"] = auth.token_cookie(request, access.token)
    is_plain = "content-encoding" not in response.headers and response.stream is None
    if is_plain and len(response.body) > _WORTH_PACKING and takes_gzip(request):
        response.body = gzip.compress(response.body, 5, mtime=0)
        response.headers["content-encoding"] = "gzip"
    if response.stream is None and response.status not in (204, 304):
        response.headers["content-length"] = str(len(response.body))
    if request.method == "HEAD":
        response.body = b""
    return response
