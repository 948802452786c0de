"""How pages are rendered: the frame and its main part, notices, numbers and times as text, small charts.

The main part of a view is the same for all who may do the same, so that one rendering serves every tab that looks at
it; a visitor's token is put into it at the very end. What a page shows stands in the file of the page.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import datetime as dt
import functools
import hashlib
import hmac
import math
import re
import secrets
import time
import urllib.parse
import zoneinfo
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2
from markupsafe import Markup, escape

import flowrra
from flowrra_extras.dashboard.auth import sealed
from flowrra_extras.dashboard.http import Response, static_path
from flowrra_extras.dashboard.job_search import as_of, line_of, quoted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowrra_extras.dashboard.auth import Access
    from flowrra_extras.dashboard.health import QueueRow, Verdict
    from flowrra_extras.dashboard.http import Request
    from flowrra_extras.dashboard.jobs import AttemptRow, Count, JobView
    from flowrra_extras.dashboard.overview import Minute

NAVIGATION = (
    ("/", "Overview"),
    ("/failures", "Failures"),
    ("/jobs", "Jobs"),
    ("/tasks", "Tasks"),
    ("/limits", "Limits"),
    ("/schedules", "Schedules"),
    ("/workers", "Workers"),
)
FRAGMENT = "x-flowrra-fragment"
# Tabs that ask for updates share a main part for SHARED seconds, and for REST times as long as its rendering took.
SHARED = 0.2
REST = 3
VIEWS = 100  # whose main parts are kept for that
AGAIN = 5  # seconds after which a page is loaded again if the store did not answer
PATIENCE = 2.5  # seconds that a page may wait for the store: a broker waits longer before it raises an error
NO_ANSWER = f"No answer within {PATIENCE:g} s"
_NOTICE = re.compile(r"([a-z]+)(?:\.(\d{1,12})\.(\d{1,12})(?:\.more\.(\d{1,18}))?)?(\.[0-9a-f]{32})?")
_SHORT_LINE = 50  # characters
_HEADLINES: Mapping[int, str] = {
    403: "Not allowed",
    404: "Not found",
    422: "The request is not valid",
    503: "The store does not answer",
}

Shown = tuple[str, str, dict[str, Any]]  # title, template, context
PageHandler = Callable[..., Awaitable[Shown]]  # is given the view, what was entered, and the parts of the path


class View(NamedTuple):
    """A page with its query, and the rights of its visitor. Two visitors with equal views see the same main part."""

    root: str
    path: str
    query: str = ""
    can_act: bool = False

    @property
    def parameters(self) -> dict[str, str]:
        """The query's parameters, without those of a notice."""
        given = urllib.parse.parse_qsl(self.query, keep_blank_values=True)
        return {name: value for name, value in given if not name.startswith("notice")}


class Entered(NamedTuple):
    """What came with a form that was refused, and why: the form is shown again, to be corrected.

    Without a `problem`, to be confirmed. `many` holds every value of a field that came more than once.
    """

    problem: str
    fields: Mapping[str, str]
    many: Mapping[str, Sequence[str]] = MappingProxyType({})


@dataclasses.dataclass(slots=True, frozen=True)
class Main:
    """A view's main part with its title. `digest` is the same as long as its text is.

    What its actions may act on was there `at` that moment.
    """

    title: str
    text: str
    digest: str
    verdict: Verdict | None = None
    at: str = ""


@dataclasses.dataclass(slots=True)
class Latest:
    """The latest main part of a view, and until when it can be used, on the monotonic clock."""

    lock: asyncio.Lock = dataclasses.field(default_factory=asyncio.Lock)
    main: Main | None = None
    until: float = 0.0


class Pages:
    """Renders the pages of a service, each with the verdict that `judge` gives."""

    def __init__(
        self,
        find: Callable[[str], tuple[PageHandler, Mapping[str, str]] | None],
        notices: Mapping[str, str],
        judge: Callable[[], Awaitable[Verdict]],
    ) -> None:
        self._find = find
        self.notices = notices
        self._judge = judge
        # Placeholders for the visitor's token and for the time of the main part, which do not count as changes. They
        # are random, so no text from a store contains them.
        self._token_mark, self._moment_mark = secrets.token_hex(16), secrets.token_hex(16)
        self._latest: dict[View, Latest] = {}

    async def render(self, request: Request, access: Access, entered: Entered | None = None) -> Response:
        """The page that a GET asks for, or with the header `x-flowrra-fragment` its main part alone.

        With `entered`, the page of a form that was refused, its fields as they were sent.

        Raises:
            TaskNotFoundError: there is no such page, or nothing of that id.
            ConfigError: a parameter of the URL is wrong.
            BrokerError: the store failed, or took too long.
        """
        view = View(request.root, request.path, request.query, access.allows("full"))
        if FRAGMENT in request.headers:
            main = await self._shared(view)
            return _answer(request, self.filled(main, access), main.digest)
        main = await self.main(view, entered)
        text = self._framed(request, access, main, is_still=entered is not None or _is_form(view.path))
        return _answer(request, text, _digest(text), status=422 if entered and entered.problem else 200)

    async def main(self, view: View, entered: Entered | None = None) -> Main:
        """The main part of a view, without a token; raises as `render` does."""
        found = self._find(view.path)
        if found is None:
            raise flowrra.TaskNotFoundError(f"there is no page at {view.path[:200]!r}")
        page, parts = found
        try:
            async with asyncio.timeout(PATIENCE):
                title, template, context = await page(view, entered, **parts)
        except TimeoutError:
            raise flowrra.BrokerError(NO_ANSWER) from None
        return self._rendered(view, title, template, context, await self._judge())

    async def _shared(self, view: View) -> Main:
        """The main part, or a recent one, so that many tabs that ask for updates cost little."""
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

    def error(self, request: Request, status: int, message: str, verdict: Verdict | None = None) -> Response:
        """A page that says what went wrong, or could not be done, and what to do."""
        view = View(request.root, request.path)
        headline = _HEADLINES.get(status, "The request failed")
        is_repeated = status == 503 and request.method == "GET"
        if is_repeated and verdict is not None:  # which has the message
            message = f"This page is loaded again every {AGAIN} s. Workers reconnect automatically."
        main = self._rendered(view, headline, "error.html", {"headline": headline, "message": message}, verdict)
        text = self._framed(request, None, main, is_still=True)
        headers = {"content-type": "text/html; charset=utf-8"} | ({"refresh": f"{AGAIN}"} if is_repeated else {})
        return Response(status, text.encode(), headers)

    def _rendered(
        self, view: View, title: str, template: str, context: Mapping[str, Any], verdict: Verdict | None
    ) -> Main:
        given = {
            "root": urllib.parse.quote(view.root),
            "can_act": view.can_act,
            "token_mark": self._token_mark,
            "moment_mark": self._moment_mark,
            "here_path": view.path,
            "problem": None,
            "verdict": verdict,
            **context,
        }
        text = _environment().get_template(template).render(given).strip()
        if verdict is not None:
            text = f"{_environment().get_template('verdict.html').render(given)}\n{text}"
        main, moment = Main(title, text, "", verdict), context.get("at")
        digest = _digest(self.filled(main, None))
        return dataclasses.replace(main, digest=digest, at=moment.isoformat() if moment else "")

    def _framed(self, request: Request, access: Access | None, main: Main, *, is_still: bool) -> str:
        """The page around a main part. A page that `is_still` gets no updates, which would overwrite typed text."""
        here = "/" + request.path.split("/")[1]
        live = "" if is_still else "events" if request.streams else "poll"
        shell = _environment().get_template("shell.html")
        return shell.render(
            root=urllib.parse.quote(request.root),
            title=main.title,
            verdict=main.verdict,
            main=Markup(self.filled(main, access)),  # noqa: S704 (a template made it)
            digest=main.digest,
            live=live,
            view=_address(request),
            here=here,
            nav=NAVIGATION,
            search=line_of(request.parameters) if request.path == "/jobs" else "",
            notice=notice_of(request.parameters, access.token if access else "", self.notices),
            token=access.token if access else "",
            token_mark=access.token if access else "",
            who=access.who if access else "",
            can_act=access is None or access.allows("full"),
            now=dt.datetime.now(dt.UTC),
            version=flowrra.__version__,
        )

    def filled(self, main: Main, access: Access | None) -> str:
        """The main part's text with the moment that it is of, and with the visitor's token.

        Without one, it may be sent to anybody: the script puts in the token of its page.
        """
        text = main.text.replace(self._moment_mark, main.at)
        return text.replace(self._token_mark, str(escape(access.token)) if access else "")


def _answer(request: Request, text: str, digest: str, status: int = 200) -> Response:
    """The text; status 304 if the browser has it already."""
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
        "number": number,
        "count": count,
        "duration": length,
        "share": share,
        "size": size,
        "iso": iso,
        "stamp": stamp,
        "short": short,
        "weekday": weekday,
        "quoted": quoted,
        "as_of": as_of,
        "spark": spark,
        "trend": trend,
        "path": lambda name: urllib.parse.quote(name, safe=""),
    }
    environment.globals |= {"file": static_path, "icon": icon}
    return environment


def _address(request: Request) -> str:
    """Where the page is below the root, without what is to be said there only once."""
    query = "&".join(part for part in request.query.split("&") if part and not part.startswith("notice"))
    return urllib.parse.quote(request.path) + (f"?{query}" if query else "")


def query_of(**parameters: str | None) -> str:
    """The query of a link; what is empty is left out."""
    given = {name: value for name, value in parameters.items() if value}
    return f"?{urllib.parse.urlencode(given)}" if given else ""


def filled(entered: Entered | None, fields: Mapping[str, str] = MappingProxyType({})) -> dict[str, Any]:
    """The values of a form's fields, and the problem with them."""
    given = entered.fields if entered else fields
    return {"filled": collections.defaultdict(str, given), "problem": entered.problem if entered else None}


def _is_form(path: str) -> bool:
    """Whether the page is a form, which must not change while it is filled in."""
    return path.endswith(("/clone", "/emit", "/schedules/new"))


# The icon of a tab: its colour and its shape show the level of the verdict.
_ICONS: Mapping[str, tuple[str, str]] = {
    "ok": ("4a3fd0", "M3 7h2v2H3zm3-.5h3v3H6zm4-.7h4.4v4.4H10z"),
    "warning": ("8a5a00", "M7 2.5h2l-.3 7H7.3zM7 11h2v2H7z"),
    "bad": ("b8282b", "M4.4 3 8 6.6 11.6 3 13 4.4 9.4 8l3.6 3.6-1.4 1.4L8 9.4 4.4 13 3 11.6 6.6 8 3 4.4z"),
}


def icon(level: str) -> str:
    """The icon for a level of the verdict, as the URL of an image."""
    colour, path = _ICONS[level]
    return (
        "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
        f"%3Crect width='16' height='16' rx='4' fill='%23{colour}'/%3E%3Cpath fill='%23fff' d='{path}'/%3E%3C/svg%3E"
    )


# Notices ---------------------------------------------------------------------------------------


class Notice(NamedTuple):
    """The result of an action as text. `at` is the page that shows it, and `undo` the action that reverts it.

    If one request could not change all jobs, `action` continues at `after` with the search `line`.
    """

    words: str
    action: str = ""
    after: str = ""
    jobs: str = ""  # how many
    at: str = ""
    undo: str = ""
    line: str = ""

    @property
    def seen(self) -> str:
        """The name of the link: the search line, if it is short, such as `queue:mail`."""
        return self.touched if 0 < len(self.touched) <= _SHORT_LINE else "what was changed"

    @property
    def touched(self) -> str:
        """The search line for the changed jobs; empty if something else was changed."""
        return dict(urllib.parse.parse_qsl(self.at.partition("?")[2])).get("search", "")


def notice_query(key: str, token: str, **parts: str) -> str:
    """The part of a URL's query whose page says what was done: `key` is the action's name with its figures.

    `parts` are those of the Notice: `at`, `undo` and `line`, as far as there are any.
    """
    if any(parts.values()) or ".more." in key:
        key = f"{key}.{_seal(key, token, parts)}"
    return query_of(notice=key, **{f"notice-{name}": part for name, part in parts.items()})[1:]


def _seal(key: str, token: str, parts: Mapping[str, str]) -> str:
    """The signature of a notice, which only this dashboard can make for this visitor."""
    lines = [key, *(f"{name} {part}" for name, part in sorted(parts.items()) if part)]
    return sealed("\n".join(lines), token).rpartition(".")[2]


def notice_of(given: Mapping[str, str], token: str, notices: Mapping[str, str]) -> Notice | None:
    """The notice in the parameters of a URL; None if there is none, or its seal is wrong.

    A notice with a link or a button needs a seal made with the visitor's token. Otherwise a link on another site could
    show the visitor a button that deletes jobs.
    """
    found = _NOTICE.fullmatch(given.get("notice", ""))
    if found is None or found[1] not in notices:
        return None
    parts, after = {name: given.get(f"notice-{name}", "") for name in ("at", "undo", "line")}, found[4] or ""
    if any(parts.values()) or after:
        key, _, seal = found[0].rpartition(".")
        if not (token and hmac.compare_digest(seal, _seal(key, token, parts))):
            return None
    jobs = several(int(found[2] or 0), "job")
    return Notice(_said(found, notices[found[1]]), found[1], after, jobs, **parts)


def _said(found: re.Match[str], said: str) -> str:
    if found[2] is None:
        return said if said.endswith(".") else f"{said}."
    done, refused = int(found[2]), int(found[3])
    said = f"{said} {several(done, 'job')}." if done else f"No job was {said.lower()}."
    if refused:
        said += f" {several(refused, 'job')} not changed: deleted, or in a state that does not allow it."
    return said + (" More jobs are left." if found[4] else "")


# Numbers, lengths of time, sizes and moments in words --------------------------------------------

NOTHING = "\N{EN DASH}"


def number(value: float) -> str:
    """1,234,567: with commas, and a fraction only where there is one."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def several(amount: int, what: str) -> str:
    """1 job, 1,234 jobs."""
    return f"{number(amount)} {what}{'' if amount == 1 else 's'}"


def count(value: Count) -> str:
    """A count: 1,234, or 10k+ if the store could not count all jobs."""
    if value["is_exact"]:
        return number(value["number"])
    thousands = value["number"] // 1000
    return f"{number(thousands)}k+" if thousands else f"{value['number']}+"


def length(seconds: float | None) -> str:
    """A length of time in few characters: 0.4 ms, 12 ms, 1.23 s, 42.1 s, 4 m 10 s, 3 h 5 m, 2 d 1 h."""
    if seconds is None:
        return NOTHING
    seconds = max(0.0, seconds)
    if seconds < 0.9995:
        return f"{seconds * 1000:.{1 if seconds < 0.00995 else 0}f} ms"
    if seconds < 99.95:
        return f"{seconds:.{2 if seconds < 9.995 else 1}f} s"
    return _long(round(seconds))


def _long(seconds: int) -> str:
    for size, unit, small, small_unit in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "m")):
        if seconds >= size:
            return f"{number(seconds // size)} {unit} {seconds % size // small} {small_unit}"
    return f"{seconds // 60} m {seconds % 60} s"


def share(value: float | None) -> str:
    """A share in per cent; a share above zero is never shown as 0 %."""
    if value is None:
        return NOTHING
    if 0 < value < 0.001:
        return "<0.1 %"
    return f"{value * 100:.{1 if value < 0.0995 and value else 0}f} %"


def size(value: int | None) -> str:
    """A size: 812 B, 4.2 kB, 118 MB."""
    if value is None:
        return NOTHING
    scaled = float(value)
    for unit in ("B", "kB", "MB"):
        if scaled < 999.5:
            return f"{scaled:.{1 if unit != 'B' and scaled < 9.95 else 0}f} {unit}"
        scaled /= 1000
    return f"{scaled:,.1f} GB"


def trend(queue: QueueRow) -> str:
    """How the number of ready jobs changes, and when none is left; rounded, so that the text changes rarely."""
    change = queue["change"] or 0.0
    if abs(change) < 1:
        return "stable"
    rate = number(float(f"{abs(change):.2g}"))
    if change > 0:
        return f"grows by {rate} per minute"
    minutes = math.ceil((queue["drained_in"] or 0.0) / 60)
    left = f"{minutes} m" if minutes < 100 else f"{number(round(minutes / 60))} h"
    return f"shrinks by {rate} per minute, empty in {left}"


def iso(moment: dt.datetime) -> str:
    """A moment for a machine: UTC, to the millisecond."""
    return moment.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def stamp(moment: dt.datetime, zone: str = "UTC") -> str:
    """A moment for people, by the clock of `zone`: 2026-11-25 09:42:44."""
    return moment.astimezone(_zone(zone)).strftime("%Y-%m-%d %H:%M:%S")


def short(moment: dt.datetime) -> str:
    """The same for a narrow column, without the year: 11-25 09:42:44."""
    return moment.astimezone(dt.UTC).strftime("%m-%d %H:%M:%S")


def weekday(moment: dt.datetime, zone: str = "UTC") -> str:
    """The day of the week there: Wed."""
    return moment.astimezone(_zone(zone)).strftime("%a")


def _zone(name: str) -> dt.tzinfo:
    """The zone; UTC where this machine does not know it, so that the page can be shown."""
    try:
        return dt.UTC if name == "UTC" else zoneinfo.ZoneInfo(name)
    except (ValueError, OSError, zoneinfo.ZoneInfoNotFoundError):
        return dt.UTC


# Charts: paths of an SVG, stretched to its place, and a sentence with the same content -----------

WIDTH = 240
HEIGHT = 48
TIMELINE_WIDTH = 1000
_GAP = 1.0  # between two bars
_LEAST = 1.5  # the minimum height of a bar, so that one failed job among thousands is visible


class Chart(NamedTuple):
    """A chart: `paths` by their CSS class, the two ends of the scale, and the content in words."""

    paths: dict[str, str]
    low: str
    high: str
    words: str


def finished(minutes: Sequence[Minute]) -> Chart:
    """Bars of the jobs that finished in each minute: those that failed stand on those that succeeded."""
    most = max((minute["succeeded"] + minute["failed"] for minute in minutes), default=0)
    good, bad = [], []
    for left, width, minute in _slots(minutes):
        foot = HEIGHT - _height(minute["succeeded"], most)
        good.append(_bar(left, width, foot, HEIGHT))
        bad.append(_bar(left, width, max(0.0, foot - _height(minute["failed"], most)), foot))
    succeeded, failed = (sum(minute[kind] for minute in minutes) for kind in ("succeeded", "failed"))
    words = f"Minute by minute in the last hour: {number(succeeded)} succeeded, {number(failed)} failed"
    if most:
        words += f", at most {number(most)} per minute"
    return Chart({"ok": "".join(good), "bad": "".join(bad)}, "0", f"{number(most)}/min", words + ".")


def spark(minutes: Sequence[int]) -> Chart:
    """A small bar for each minute of an hour: 60 wide and 16 high."""
    most = max(minutes, default=0)
    bars = (_bar(at, 0.8, 16 - max(_LEAST, 16 * value / most), 16) for at, value in enumerate(minutes) if value)
    words = f"{number(sum(minutes))} in the last hour" + (f", at most {number(most)} per minute" if most else "")
    return Chart({"bad": "".join(bars)}, "", "", words)


def spans(minutes: Sequence[Minute], what: str) -> Chart:
    """Each minute's span from the 50th to the 95th percentile of `what` ("wait", "run"), on a scale of decades."""
    pairs = [_quantiles(minute, what) for minute in minutes]
    known = [value for pair in pairs if pair for value in pair]
    if not known:
        return Chart({}, "", "", "No job ran in the last hour.")
    low, high = math.floor(math.log10(min(known))), math.ceil(math.log10(max(known)))
    high = max(high, low + 1)

    def y(value: float) -> float:
        return HEIGHT * (1 - (math.log10(value) - low) / (high - low))

    span, middle = [], []
    for (left, width, _), pair in zip(_slots(minutes), pairs, strict=True):
        if pair:
            span.append(_bar(left, width, min(y(pair[1]), y(pair[0]) - _LEAST), y(pair[0])))
            middle.append(_bar(left, width, y(pair[0]) - _LEAST, y(pair[0])))
    grid = "".join(f"M0 {_short(y(10.0**decade))}H{WIDTH}" for decade in range(low + 1, high))
    paths = {"grid": grid, "span": "".join(span), "mid": "".join(middle)}
    low_text, high_text = length(10.0**low), length(10.0**high)
    worst = length(max(known))
    words = f"Minute by minute in the last hour, from the 50th to the 95th percentile; the highest is {worst}."
    return Chart(paths, low_text, high_text, words)


def _quantiles(minute: Minute, what: str) -> tuple[float, float] | None:
    """The two quantiles, above zero, because the scale is logarithmic."""
    low, high = (minute["wait_p50"], minute["wait_p95"]) if what == "wait" else (minute["run_p50"], minute["run_p95"])
    return None if low is None or high is None else (max(low, 0.0001), max(high, 0.0001))


def _slots(minutes: Sequence[Minute]) -> list[tuple[float, float, Minute]]:
    """Left edge and width of each minute's bar."""
    step = WIDTH / max(len(minutes), 1)
    return [(index * step, step - _GAP, minute) for index, minute in enumerate(minutes)]


def _height(value: int, most: int) -> float:
    return max(_LEAST, HEIGHT * value / most) if value else 0.0


def _bar(left: float, width: float, top: float, foot: float) -> str:
    if foot - top <= 0:
        return ""
    return f"M{_short(left)} {_short(foot)}V{_short(top)}h{_short(width)}V{_short(foot)}z"


def _short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def timeline(job: JobView) -> Chart | None:
    """A job's life from its submission on, as a line with its attempts on it. None before its first one."""
    tries = [attempt for attempt in job["attempts"] if attempt["outcome"] != "note"]
    if not tries:
        return None
    begin = min(job["submitted"], tries[0]["started"])
    last = max(attempt["ended"] or attempt["started"] for attempt in tries)
    # A running attempt extends to the edge, a tenth more: drawn to scale, it would change at each rendering.
    whole = max((last - begin).total_seconds(), 0.001) * (1.1 if tries[-1]["ended"] is None else 1.0)

    def x(moment: dt.datetime) -> float:
        return min(TIMELINE_WIDTH, (moment - begin).total_seconds() / whole * TIMELINE_WIDTH)

    paths: dict[str, str] = {"grid": f"M0 4H{TIMELINE_WIDTH}"}
    for attempt in tries:
        left = min(x(attempt["started"]), TIMELINE_WIDTH - 3)
        right = TIMELINE_WIDTH if attempt["ended"] is None else max(x(attempt["ended"]), left + 3)
        kind = _kind(attempt)
        paths[kind] = paths.get(kind, "") + f"M{_short(left)} 0V8H{_short(right)}V0z"
    words = "; ".join(f"attempt {attempt['number']}: {attempt['outcome']}" for attempt in tries)
    end = "now" if tries[-1]["ended"] is None else f"{length((last - begin).total_seconds())} later"
    return Chart(paths, "submitted", end, words)


def _kind(attempt: AttemptRow) -> str:
    return {"success": "ok", "failure": "bad", "crash": "bad", "running": "mid"}.get(attempt["outcome"], "off")
