"""The pages: a request in, HTML out. Asks the service, and knows neither stores nor web frameworks.

A page is a frame around its `<main>`. The main part of a view is the same for all who may do the same, so that one
rendering serves every tab that looks at it; a visitor's token is put into it at the very end.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import datetime as dt
import functools
import hashlib
import hmac
import re
import secrets
import time
import urllib.parse
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2
from markupsafe import Markup, escape

import flowrra
from flowrra_extras.dashboard import charts, controls, search, static, wording
from flowrra_extras.dashboard.access import sealed
from flowrra_extras.dashboard.rows import REDACTED
from flowrra_extras.dashboard.web import Response

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from flowrra_extras.dashboard.access import Access
    from flowrra_extras.dashboard.service import Service
    from flowrra_extras.dashboard.shapes import QueueRow
    from flowrra_extras.dashboard.web import Request

PAGE_LENGTH = 50  # jobs in a list
NAVIGATION = (
    ("/", "Overview"),
    ("/failures", "Failures"),
    ("/jobs", "Jobs"),
    ("/tasks", "Tasks"),
    ("/schedules", "Schedules"),
    ("/workers", "Workers"),
)
STATES = ("pending", "running", "scheduled", "retrying", "blocked", "success", "failed", "cancelled")
# A job's way through the overview, from left to right.
FLOW = (
    ("Waiting", ("scheduled", "retrying", "blocked")),
    ("Ready", ("pending",)),
    ("Running", ("running",)),
    ("Finished", ("success", "failed", "cancelled")),
)
AGES = (("10m", "10 minutes"), ("1h", "hour"), ("24h", "day"), ("7d", "week"))
STALE = dt.timedelta(seconds=2)  # counts that are older say so
FRAGMENT = "x-flowrra-fragment"
# Tabs that look for news share a main part for so many seconds, and for so many times as long as its rendering took.
SHARED = 0.2
REST = 3
VIEWS = 100  # whose main parts are kept for that

# What a form's answer may say on the page it leads to: `?notice=requeue.12.3`. The URL chooses; it brings no text.
NOTICES: Mapping[str, str] = MappingProxyType(
    {
        "cancel": "Cancelled",
        "requeue": "Requeued",
        "delete": "Deleted",
        "clone": "Cloned: this is the new job.",
        "run": "Submitted: this is the job.",
        "pause": "Paused: no more jobs of the queue are handed out.",
        "resume": "Resumed.",
        "add": "The schedule is stored.",
        "update": "The schedule is changed.",
        "remove": "The schedule is deleted.",
        "enable": "Enabled.",
        "disable": "Disabled.",
        "fire": "Submitted: this is the job.",
    }
)
_NOTICE = re.compile(r"([a-z]+)(?:\.(\d{1,12})\.(\d{1,12})(?:\.more\.(\d{1,18})\.[0-9a-f]{32})?)?")


class View(NamedTuple):
    """What is looked at, and with which rights: two with equal views see the same main part."""

    root: str
    path: str
    query: str = ""
    can_act: bool = False

    @property
    def parameters(self) -> dict[str, str]:
        """The query's parameters, but for those that only say what happened before."""
        found = dict(urllib.parse.parse_qsl(self.query, keep_blank_values=True))
        found.pop("notice", None)
        return found


class Entered(NamedTuple):
    """What came with a form that was refused, and why: shown again to be put right."""

    problem: str
    fields: Mapping[str, str]


@dataclasses.dataclass(slots=True, frozen=True)
class Main:
    """A view's main part with its title. `digest` is the same as long as its text is."""

    title: str
    text: str
    digest: str


class Latest:
    """The latest main part of a view, and until when it will do, on the monotonic clock."""

    __slots__ = ("lock", "main", "until")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.main: Main | None = None
        self.until = 0.0


class Pages:
    """Renders the pages of a service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        # Stands for the visitor's token. Nobody can know it, so that no text from a store contains it.
        self._token_mark = secrets.token_hex(16)
        self._latest: dict[View, Latest] = {}

    async def render(self, request: Request, access: Access, entered: Entered | None = None) -> Response:
        """The page that a GET asks for, or with the header `x-flowrra-fragment` its main part alone.

        With `entered`, the page of a form that was refused, its fields as they were sent.

        Raises:
            TaskNotFoundError: there is no such page, or nothing of that id.
            ConfigError: a parameter of the URL is wrong.
        """
        view = View(request.root, request.path, request.query, access.allows("full"))
        if FRAGMENT in request.headers:
            main = await self._shared(view)
            return _answer(request, self._with_token(main.text, access), main.digest)
        main = await self.main(view, entered)
        text = self._framed(request, access, main, is_still=entered is not None or _is_form(view.path))
        return _answer(request, text, _digest(text), status=422 if entered else 200)

    async def main(self, view: View, entered: Entered | None = None) -> Main:
        """The main part of a view, without a token; raises as `render` does."""
        for pattern, page in _PAGES.items():
            if found := pattern.fullmatch(view.path):
                title, template, context = await page(self, view, entered, *found.groups())
                return self._rendered(view, title, template, context)
        raise flowrra.TaskNotFoundError(f"there is no page at {view.path[:200]!r}")

    async def _shared(self, view: View) -> Main:
        """The main part, or one of a moment ago, so that any number of tabs that look for news cost little."""
        if len(self._latest) >= VIEWS and view not in self._latest:
            self._latest.clear()
        latest = self._latest.setdefault(view, Latest())
        async with latest.lock:
            began = time.monotonic()
            if latest.main is None or began >= latest.until:
                latest.main = await self.main(view)
                ended = time.monotonic()
                latest.until = ended + max(SHARED, REST * (ended - began))
            return latest.main

    def for_all(self, main: Main) -> str:
        """The main part's text as it may be sent to anybody: the script puts in the token of its page."""
        return main.text.replace(self._token_mark, "")

    def error(self, request: Request, status: int, message: str) -> Response:
        """A page that says what went wrong, or could not be done, and what to do."""
        view = View(request.root, request.path)
        headline = _HEADLINES.get(status, "That did not work")
        main = self._rendered(view, headline, "error.html", {"headline": headline, "message": message})
        text = self._framed(request, None, main, is_still=True)
        return Response(status, text.encode(), {"content-type": "text/html; charset=utf-8"})

    def _rendered(self, view: View, title: str, template: str, context: Mapping[str, Any]) -> Main:
        given = {
            "root": urllib.parse.quote(view.root),
            "can_act": view.can_act,
            "token_mark": self._token_mark,
            "here_path": view.path,
            "problem": None,
            **context,
        }
        text = _environment().get_template(template).render(given).strip()
        return Main(title, text, _digest(text.replace(self._token_mark, "")))

    def _framed(self, request: Request, access: Access | None, main: Main, *, is_still: bool) -> str:
        """The whole page around a main part. One that `is_still` gets no news, which would undo what was typed."""
        here = "/" + request.path.split("/")[1]
        live = "" if is_still else "events" if request.streams else "poll"
        shell = _environment().get_template("shell.html")
        return shell.render(
            root=urllib.parse.quote(request.root),
            title=main.title,
            main=Markup(self._with_token(main.text, access)),  # noqa: S704 (a template made it)
            digest=main.digest,
            live=live,
            view=_address(request),
            here=here,
            nav=NAVIGATION,
            search=controls.line_of(request.parameters) if request.path == "/jobs" else "",
            notice=notice_of(request.parameters.get("notice", ""), access.token if access else ""),
            token=access.token if access else "",
            who=access.who if access else "",
            can_act=access is None or access.allows("full"),
            now=dt.datetime.now(dt.UTC),
            version=flowrra.__version__,
        )

    def _with_token(self, text: str, access: Access | None) -> str:
        return text.replace(self._token_mark, str(escape(access.token)) if access else "")

    # What each page shows ----------------------------------------------------------------------

    async def _overview(self, view: View, entered: Entered | None) -> Shown:
        overview = await self._service.overview()
        minutes = overview["minutes"]
        drawn = {
            "finished": charts.finished(minutes),
            "wait": charts.spans(minutes, "wait"),
            "run": charts.spans(minutes, "run"),
        }
        context = {
            "view": overview,
            "hour": overview["last_hour"],
            "charts": drawn,
            "flow": FLOW,
            "is_stale": overview["at"] - overview["counted_at"] > STALE,
        }
        return "Overview", "overview.html", context

    async def _failures(self, view: View, entered: Entered | None) -> Shown:
        return "Failures", "failures.html", {"view": await self._service.failures()}

    async def _jobs(self, view: View, entered: Entered | None) -> Shown:
        given = view.parameters
        line = controls.line_of(given)
        after = given.get("after_job") or None
        page = await self._service.jobs(line, after=after, limit=PAGE_LENGTH)
        words = controls.words_of(line)
        rest = controls.without(line, ("task", "queue", "after"))
        context = {
            "page": page,
            "search": line,
            "state": words.get("state"),
            "chips_all": _query(search=controls.without(line, ("state",))),
            "chips": [(name, _query(search=controls.with_word(line, "state", name))) for name in STATES],
            "rest": rest,
            "words": words,
            "choices": await self._choices(words),
            "is_later": after is not None,
            "first": _query(search=line),
            "next": _query(search=line, after_job=page["after"]),
            "back": "/jobs" + _query(search=line, after_job=after),
        }
        return line or "Jobs", "jobs.html", context

    async def _choices(self, words: Mapping[str, str]) -> dict[str, list[tuple[str, str]]]:
        """What the plain controls offer, as values and texts; what the line already says is always among it."""
        names = {
            "task": [row["name"] for row in await self._service.tasks()],
            "queue": [row["name"] for row in await self._service.queues()],
        }
        choices = {key: {name: name for name in found} for key, found in names.items()} | {"after": dict(AGES)}
        for key, choice in choices.items():
            if key in words:
                choice.setdefault(words[key], words[key])
        return {key: list(choice.items()) for key, choice in choices.items()}

    async def _job(self, view: View, entered: Entered | None, job_id: str) -> Shown:
        job = await self._service.job(job_id)
        return f"{job['task']} {job['status']}", "job.html", {"job": job, "line": charts.timeline(job)}

    async def _clone(self, view: View, entered: Entered | None, job_id: str) -> Shown:
        job = await self._service.job(job_id)
        return f"Clone {job['task']}", "clone.html", {"job": job, **_filled(entered)}

    async def _tasks(self, view: View, entered: Entered | None) -> Shown:
        return "Tasks", "tasks.html", {"tasks": await self._service.tasks()}

    async def _task(self, view: View, entered: Entered | None, name: str) -> Shown:
        task = await self._service.task(name)
        drawn = {"finished": charts.finished(task["minutes"]), "run": charts.spans(task["minutes"], "run")}
        return name, "task.html", {"task": task, "charts": drawn, **_filled(entered)}

    async def _schedules(self, view: View, entered: Entered | None) -> Shown:
        return "Schedules", "schedules.html", {"schedules": await self._service.schedules()}

    async def _schedule(self, view: View, entered: Entered | None, schedule_id: str) -> Shown:
        row = await self._service.schedule(schedule_id)
        stored = {
            "rule": row["rule"],
            "tz": row["tz"],
            "description": row["description"] or "",
            "misfire": row["misfire"],
            "overlap": row["overlap"],
        }
        if row["arguments"] != REDACTED:  # what is left empty stays as it is
            stored |= {name: row[name]["text"] for name in ("args", "kwargs") if not row[name]["is_cut"]}
        typed = view.parameters
        context = await self._schedule_form(row["kind"], {**stored, **typed}, entered, preview="rule" in typed)
        return f"Schedule of {row['task']}", "schedule.html", {"row": row, **context}

    async def _new_schedule(self, view: View, entered: Entered | None) -> Shown:
        kind = (entered.fields if entered else view.parameters).get("kind", "cron")
        kind = kind if kind in ("interval", "once") else "cron"
        context = await self._schedule_form(kind, view.parameters, entered, preview=True)
        tasks = [(row["name"], row["name"]) for row in await self._service.tasks() if row["is_registered"]]
        return "New schedule", "schedule_new.html", {"tasks": tasks, **context}

    async def _schedule_form(
        self, kind: str, fields: Mapping[str, str], entered: Entered | None, *, preview: bool
    ) -> dict[str, Any]:
        """The form's fields, and what the rule in them means."""
        shown = _filled(entered, fields)
        rule, tz = shown["filled"]["rule"], shown["filled"]["tz"] or "UTC"
        meaning = await self._service.preview(kind, rule, tz) if rule and (preview or entered) else None
        return {"kind": kind, "preview": meaning, **shown}

    async def _workers(self, view: View, entered: Entered | None) -> Shown:
        workers = await self._service.workers()
        room = sum(sum(worker["queues"].values()) for worker in workers)
        return "Workers", "workers.html", {"workers": workers, "room": room}


Shown = tuple[str, str, dict[str, Any]]  # title, template, context
_PAGES: Mapping[re.Pattern[str], Callable[..., Awaitable[Shown]]] = MappingProxyType(
    {
        re.compile(pattern, re.DOTALL): page
        for pattern, page in (
            ("/", Pages._overview),
            ("/failures", Pages._failures),
            ("/jobs", Pages._jobs),
            ("/jobs/(.+)/clone", Pages._clone),
            ("/jobs/(.+)", Pages._job),
            ("/tasks", Pages._tasks),
            ("/tasks/(.+)", Pages._task),
            ("/schedules", Pages._schedules),
            ("/schedules/new", Pages._new_schedule),
            ("/schedules/(.+)", Pages._schedule),
            ("/workers", Pages._workers),
        )
    }
)
_HEADLINES: Mapping[int, str] = {
    403: "You may not do that",
    404: "Not found",
    422: "That cannot be done",
    503: "The store does not answer",
}


# How pages are answered and written ------------------------------------------------------------


def _answer(request: Request, text: str, digest: str, status: int = 200) -> Response:
    """The text; or that it is still the one which the browser has."""
    headers = {"content-type": "text/html; charset=utf-8", "etag": f'"{digest}"'}
    if status == 200 and digest in request.headers.get("if-none-match", ""):
        return Response(304, b"", headers)
    return Response(status, text.encode("utf-8", "replace"), headers)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=9).hexdigest()


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters |= {
        "number": wording.number,
        "count": wording.count,
        "duration": wording.length,
        "share": wording.share,
        "size": wording.size,
        "iso": wording.iso,
        "stamp": wording.stamp,
        "short": wording.short,
        "weekday": wording.weekday,
        "quoted": search.quoted,
        "path": lambda name: urllib.parse.quote(name, safe=""),
        "oldest": oldest,
    }
    environment.globals["file"] = static.path
    return environment


def oldest(queue: QueueRow, at: dt.datetime) -> dt.datetime:
    """Since when the queue's oldest ready job waits, to the second: it is the same at each look."""
    return (at - dt.timedelta(seconds=queue["lag"] or 0.0)).replace(microsecond=0)


def _address(request: Request) -> str:
    """Where the page is below the root, without what is to be said there only once."""
    query = "&".join(part for part in request.query.split("&") if part and not part.startswith("notice="))
    return urllib.parse.quote(request.path) + (f"?{query}" if query else "")


def _query(**parameters: str | None) -> str:
    """The query of a link; what is empty is left out."""
    given = {name: value for name, value in parameters.items() if value}
    return f"?{urllib.parse.urlencode(given)}" if given else ""


def _filled(entered: Entered | None, fields: Mapping[str, str] = MappingProxyType({})) -> dict[str, Any]:
    """What stands in a form's fields, and what is wrong with it."""
    given = entered.fields if entered else fields
    return {"filled": collections.defaultdict(str, given), "problem": entered.problem if entered else None}


def _is_form(path: str) -> bool:
    """Whether the page is there to be filled in: it does not change under the visitor's hands."""
    return path.endswith(("/clone", "/schedules/new"))


# Notices ---------------------------------------------------------------------------------------


class Notice(NamedTuple):
    """What an action came to, in words. If there was too much for one go, `after` is where the `action` goes on."""

    words: str
    action: str = ""
    after: str = ""


def notice_of(key: str, token: str = "") -> Notice | None:
    """What the value of `?notice=` says; None if it is none of ours.

    One with a button that goes on has to bear the seal of the visitor's token, or else a link on another site could
    put a button before them that deletes what the link asks for.
    """
    found = _NOTICE.fullmatch(key)
    if found is None or found[1] not in NOTICES:
        return None
    if found[4] and not (token and hmac.compare_digest(key, sealed(key.rpartition(".")[0], token))):
        return None
    return Notice(_said(found), found[1], found[4] or "")


def _said(found: re.Match[str]) -> str:
    said = NOTICES[found[1]]
    if found[2] is None:
        return said if said.endswith(".") else f"{said}."
    done, refused = int(found[2]), int(found[3])
    said = f"{said} {wording.number(done)} job{'' if done == 1 else 's'}." if done else f"No job was {said.lower()}."
    if refused:
        said += f" {wording.number(refused)} left alone: gone, or in no state for that."
    return said + (" There are more." if found[4] else "")
