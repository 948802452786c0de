"""The pages on data made by hand: what they show, to whom, and what they do with what is strange."""

import asyncio
import datetime as dt
import html.parser
import re
import types
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest

import flowrra
from flowrra import Attempt, BrokerError, Job, Progress, TaskNotFoundError, TaskStatus
from flowrra_extras.dashboard import html as pages
from flowrra_extras.dashboard import http, job_search, jobs, tasks
from flowrra_extras.dashboard.auth import Access, sealed
from flowrra_extras.dashboard.html import Entered, Pages, View
from flowrra_extras.dashboard.http import Request, Response
from flowrra_extras.dashboard.overview import Stats
from tests.support import dashboard_samples as samples

FULL = Access("full", "ada", "token-of-ada")
READ = Access("read", "bob", "token-of-bob")
JOB = samples.FAILED_JOB["id"]
PATHS = (
    *("/", "/failures", "/jobs", f"/jobs/{JOB}", f"/jobs/{JOB}/clone", "/tasks", "/tasks/shop.mail.send_receipt"),
    *("/schedules", "/schedules/new", "/schedules/monthly", "/workers"),
)
MARKUP = "<img src=x onerror=alert(1)>\"'&"


def make(*, is_empty: bool = False) -> Pages:
    return samples.pages_of(samples.SampleService(is_empty=is_empty))


async def get(path: str, access: Access = FULL, made: Pages | None = None, **request: Any) -> Response:
    path, _, query = path.partition("?")
    return await (made or make()).render(Request("GET", path, query=query, **request), access)


class Elements(html.parser.HTMLParser):
    """The elements of a page, each with its attributes."""

    def __init__(self, response: Response) -> None:
        super().__init__()
        self.found: list[tuple[str, Mapping[str, str | None]]] = []
        self.feed(response.body.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[Mapping[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


# Every page -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("access", [FULL, READ], ids=["full", "read"])
async def test_a_page_is_whole(path: str, access: Access) -> None:
    response = await get(path, access)
    assert response.status == 200
    elements = Elements(response)
    assert len(elements.all("h1")) == len(elements.all("main")) == len(elements.all("title")) == 1
    ids = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert not [attributes for _, attributes in elements.found if "style" in attributes]  # the policy forbids it


@pytest.mark.parametrize("path", ["/", "/failures", "/jobs", "/tasks", "/schedules", "/workers"])
async def test_an_empty_page_says_what_to_do(path: str) -> None:
    elements = Elements(await get(path, made=make(is_empty=True)))
    assert [attributes for attributes in elements.all("p") if (attributes.get("class") or "").startswith("empty")]


@pytest.mark.parametrize("path", PATHS)
async def test_every_link_and_form_stays_below_the_root(path: str) -> None:
    elements = Elements(await get(path, root="/the ops/flowrra"))
    places = [attributes[name] for _, attributes in elements.found for name in ("href", "action", "src", "formaction")
              if name in attributes]  # fmt: skip
    assert all(place and (place.startswith(("/the%20ops/flowrra/", "#", "data:image/svg+xml,"))) for place in places), (
        places
    )


@pytest.mark.parametrize("path", PATHS)
async def test_markup_from_outside_is_text(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in vars(samples).items():
        if name.isupper() and isinstance(value, list | dict):
            monkeypatch.setattr(samples, name, planted(value))
    wicked = Access("full", MARKUP, "token")
    path = path.replace("monthly", "monthly" + MARKUP).replace(JOB, "x")
    response = await get(f"{path}?search={MARKUP}&rule={MARKUP}&kind={MARKUP}&notice={MARKUP}", wicked)
    elements = Elements(response)
    assert elements.all("img") == []
    assert [name for _, attributes in elements.found for name in attributes if name.startswith("on")] == []
    assert len(elements.all("script")) == 1


def planted(value: Any) -> Any:
    """The data with markup behind every text."""
    if isinstance(value, str):
        return value + MARKUP
    if isinstance(value, list):
        return [planted(item) for item in value]
    if isinstance(value, dict):
        return {name: planted(item) for name, item in value.items()}
    return value


@pytest.mark.parametrize("path", PATHS)
async def test_who_may_only_look_is_offered_no_action(path: str) -> None:
    elements = Elements(await get(path, READ))
    assert [attributes for attributes in elements.all("form") if attributes.get("method") == "post"] == []


@pytest.mark.parametrize("path", PATHS)
async def test_every_form_that_acts_brings_the_token(path: str) -> None:
    elements = Elements(await get(path))
    acting = [attributes for attributes in elements.all("form") if attributes.get("method") == "post"]
    carriers = [attributes for _, attributes in elements.found if attributes.get("name") == "token"]
    assert len(carriers) == len(acting)
    assert {attributes["value"] for attributes in carriers} <= {FULL.token}


async def test_an_unknown_page_is_not_found() -> None:
    with pytest.raises(TaskNotFoundError):
        await get("/nothing")


@pytest.mark.parametrize("status", [403, 404, 422, 500])
def test_an_error_is_a_page(status: int) -> None:
    response = make().error(Request("GET", "/x"), status, f"Because of {MARKUP}")
    assert response.status == status
    assert b"Because of &lt;img" in response.body


# What is sent ----------------------------------------------------------------------------------


async def test_a_fragment_is_the_main_part_alone() -> None:
    made = make()
    whole = await get("/jobs", made=made)
    part = await get("/jobs", made=made, headers={"x-flowrra-fragment": "1"})
    assert b"<main" not in part.body
    assert part.body in whole.body


async def test_what_has_not_changed_is_not_sent_again() -> None:
    made = make()
    headers = {"x-flowrra-fragment": "1"}
    first = await get("/", made=made, headers=headers)
    again = await get("/", made=made, headers={**headers, "if-none-match": first.headers["etag"]})
    assert (again.status, again.body) == (304, b"")
    empty = make(is_empty=True)
    changed = await get("/", made=empty, headers={**headers, "if-none-match": first.headers["etag"]})
    assert changed.status == 200


async def test_a_main_part_is_the_same_for_all_who_may_do_the_same() -> None:
    made = make()
    one, other = [await made.main(View("", "/jobs", can_act=True)) for _ in range(2)]
    assert one.digest == other.digest
    assert FULL.token not in made.filled(one, None)
    assert (await get("/jobs", made=made)).body.decode().count(FULL.token) > 1
    assert (await made.main(View("", "/jobs"))).digest != one.digest


async def test_tabs_that_look_for_news_share_a_rendering(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Counted(samples.SampleService):
        async def tasks(self) -> list[tasks.TaskRow]:
            asked.append("tasks")
            return await super().tasks()

    made = samples.pages_of(Counted())
    headers = {"x-flowrra-fragment": "1"}
    clock = 1000.0
    monkeypatch.setattr("flowrra_extras.dashboard.html.time", types.SimpleNamespace(monotonic=lambda: clock))
    await asyncio.gather(*(get("/tasks", made=made, headers=headers) for _ in range(20)))
    assert asked == ["tasks"]
    await get("/tasks", READ, made=made, headers=headers)  # it has other rights: another view
    assert asked == ["tasks"] * 2
    clock += pages.SHARED
    await get("/tasks", made=made, headers=headers)
    await get("/tasks", made=made)  # who loads the page gets it as it is
    assert asked == ["tasks"] * 4


@pytest.mark.parametrize("status", ["running", "scheduled", "retrying", "success", "failed", "cancelled"])
async def test_time_that_goes_by_is_no_news_of_a_job(status: str) -> None:
    """The sentence of explain() holds lengths of time: it made five events a second of a job that just ran."""
    looks = iter(("0.03 s", "0.23 s"))
    moment = samples.FAILED_JOB["submitted"]

    class Told(samples.SampleService):
        async def job(self, job_id: str) -> jobs.JobView:
            times = {"due": moment, "started": moment, "finished": moment}
            return cast("jobs.JobView", {**samples.FAILED_JOB, **times, "status": status, "explanation": next(looks)})

    made, view = samples.pages_of(Told()), View("", f"/jobs/{JOB}")
    assert (await made.main(view)).digest == (await made.main(view)).digest


async def test_few_shared_renderings_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "VIEWS", 3)
    made = make()
    for number in range(10):
        await get(f"/jobs?search={number}", made=made, headers={"x-flowrra-fragment": "1"})
    assert len(made._latest) <= 3


@pytest.mark.parametrize("live", [True, False])
async def test_the_page_says_how_to_get_news(live: bool) -> None:
    body = Elements(await get("/", streams=live)).all("body")[0]
    assert body["data-live"] == ("events" if live else "poll")
    assert Elements(await get(f"/jobs/{JOB}/clone", streams=live)).all("body")[0]["data-live"] == ""


async def test_a_first_visit_is_small() -> None:
    page = await get("/")
    sizes = [len(http.static_file(name).packed) for name in http.NAMES]
    assert sum(sizes) + len(page.body) <= 40_000  # the page is packed as well, on its way


def test_styles_and_script_load_nothing() -> None:
    folder = Path(http.__file__).parent / "static"
    for name in http.NAMES:
        text = (folder / name).read_text()
        assert text.count("http") == text.count("xmlns='http://www.w3.org/2000/svg'")


async def test_a_job_shows_its_tags_its_notes_and_what_is_done() -> None:
    page = await get(f"/jobs/{JOB}")
    body = page.body.decode()
    assert "/jobs?search=tag%3Atenant%3A42" in {link.get("href") for link in Elements(page).all("a")}
    for text in ("<dt>user</dt>", '<h2 id="steps">Steps</h2>', "<b>charge</b>", "{&#34;cents&#34;: 1200}"):
        assert text in body


async def test_a_job_with_endless_texts_makes_a_page_of_bounded_length() -> None:
    endless = "x" * 1_000_000
    tries = tuple(Attempt(n, "w", 0.0, 1.0, "failure", endless, endless) for n in range(flowrra.HISTORY_LIMIT))
    job = Job("1", "shop.greet", args=(endless,), error=endless, traceback=endless, history=tries, attempt=20)
    job.status, job.progress = TaskStatus.RUNNING, Progress(1, 2, endless)
    view = jobs.job_view(job, 2.0, redacted=False, parents=[], children=[], max_attempts=4, explanation=endless)

    class One(samples.SampleService):
        async def job(self, job_id: str) -> jobs.JobView:
            return view

    assert len((await get("/jobs/1", made=samples.pages_of(One()))).body) < 50 * jobs.TEXT_LIMIT


# Forms -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "field"),
    [
        (f"/jobs/{JOB}/clone", "kwargs"),
        ("/tasks/shop.mail.send_receipt", "param.to"),
        ("/schedules/new", "rule"),
        ("/schedules/monthly", "description"),
    ],
)
async def test_a_refused_form_is_shown_again(path: str, field: str) -> None:
    entered = Entered("that is no JSON", {field: "what I typed", "kind": "cron"})
    response = await make().render(Request("POST", path), FULL, entered)
    assert response.status == 422
    assert b"that is no JSON" in response.body
    assert b"what I typed" in response.body
    assert Elements(response).all("body")[0]["data-live"] == ""  # news would undo it


async def test_a_new_schedule_is_explained_before_it_is_made() -> None:
    assert b"At 09:00 on Monday" not in (await get("/schedules/new?kind=cron")).body
    assert b"At 09:00 on Monday" in (await get("/schedules/new?kind=cron&rule=0+9+*+*+mon-fri&tz=Europe/Riga")).body


@pytest.mark.parametrize("kind", ["cron", "interval", "once", "nonsense"])
async def test_each_kind_of_schedule_has_its_form(kind: str) -> None:
    fields = [attributes.get("name") for attributes in Elements(await get(f"/schedules/new?kind={kind}")).all("input")]
    assert ("tz" in fields) == (kind != "interval")


# The search line and its controls --------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({}, ""),
        ({"search": " state:failed  x "}, "state:failed  x"),
        ({"search": "x", "state": "failed"}, "x state:failed"),
        ({"search": "state:failed x", "state": "success"}, "x state:success"),
        ({"search": "state:failed x", "state": ""}, "x"),
        ({"search": 'error:"a b" queue:mail', "task": "shop.mail", "queue": ""}, 'error:"a b" task:shop.mail'),
        ({"search": "", "queue": "two words"}, 'queue:"two words"'),
    ],
)
def test_controls_change_their_words(given: Mapping[str, str], line: str) -> None:
    assert job_search.line_of(given) == line


def test_the_words_of_a_line_are_read() -> None:
    assert job_search.words_of('state:failed queue:"two words" error:x task:') == {
        "state": "failed",
        "queue": "two words",
    }


async def test_the_page_shows_the_line_in_its_controls() -> None:
    elements = Elements(await get("/jobs?search=state:failed+queue:mail+refused"))
    assert next(a["value"] for a in elements.all("input") if a.get("name") == "search") == (
        "state:failed queue:mail refused"
    )
    current = [attributes["href"] for attributes in elements.all("a") if attributes.get("aria-current") == "true"]
    assert current == ["/jobs?search=queue%3Amail+refused+state%3Afailed"]


# Notices ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("requeue.1.0", "Requeued 1 job."),
        ("cancel.1200.3", "Cancelled 1,200 jobs. 3 jobs not changed: deleted, or in a state that does not allow it."),
        ("requeue.0.1", "No job was requeued. 1 job not changed: deleted, or in a state that does not allow it."),
        (sealed("delete.5000.0.more.77", "token"), "Deleted 5,000 jobs. More jobs are left."),
        ("enable", "The schedule is enabled."),
    ],
)
def test_what_was_done_is_said(key: str, said: str) -> None:
    notice = pages.notice_of({"notice": key}, "token", make().notices)
    assert notice is not None
    assert notice.words == said


@pytest.mark.parametrize(
    "key",
    [
        *("", "your password has expired", "shout.1.2", "cancel.1", "cancel.1.2.more.x", "delete.1.0.more.77"),
        *(f"delete.1.0.more.77.{'0' * 32}", sealed("delete.1.0.more.77", "another's"), sealed("delete.1.0.more.7", "")),
    ],
)
@pytest.mark.parametrize("token", ["token", ""])
def test_a_notice_that_is_none_of_ours_is_not_said(key: str, token: str) -> None:
    """Least of all with a button that goes on: whoever makes a link does not know the visitor's token."""
    assert pages.notice_of({"notice": key}, token, make().notices) is None


def test_a_notice_leads_to_what_was_done_and_takes_it_back() -> None:
    ways = {"at": "/jobs?search=queue:mail", "undo": "/queues/mail/resume"}
    given = dict(urllib.parse.parse_qsl(pages.notice_query("pause", "token", **ways)))
    notice = pages.notice_of(given, "token", make().notices)
    assert notice is not None
    assert (notice.at, notice.undo, notice.seen) == (*ways.values(), "queue:mail")
    for name in ("notice-at", "notice-undo"):  # one that somebody else has put there
        assert pages.notice_of({**given, name: "/queues/other/resume"}, "token", make().notices) is None
    swapped = {**given, "notice-at": given["notice-undo"], "notice-undo": given["notice-at"]}
    assert pages.notice_of(swapped, "token", make().notices) is None
    assert pages.notice_of({"notice": "pause", "notice-undo": "/x"}, "token", make().notices) is None


async def test_a_notice_has_its_link_and_its_button() -> None:
    query = pages.notice_query("pause", FULL.token, at="/jobs?search=queue:mail", undo="/queues/mail/resume")
    elements = Elements(await get(f"/?{query}", root="/ops"))
    assert "/ops/queues/mail/resume" in [attributes.get("action") for attributes in elements.all("form")]
    assert "/ops/jobs?search=queue:mail" in [attributes.get("href") for attributes in elements.all("a")]


# The verdict -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
async def test_every_page_begins_with_the_verdict(path: str) -> None:
    response = await get(path, root="/ops")
    page, elements = response.body.decode(), Elements(response)
    assert re.search(r"<title>1 problem · .+ · Flowrra</title>", page)
    (first, *_) = elements.found[elements.found.index(("main", elements.all("main")[0])) + 1 :]
    assert (first[0], first[1]["id"], first[1]["class"]) == ("section", "verdict", "v-bad")
    (found,) = [attributes for attributes in elements.all("link") if attributes.get("rel") == "icon"]
    assert found["href"] == first[1]["data-icon"] == pages.icon("bad")
    assert "/ops/jobs?search=queue%3Areports+state%3Apending" in [link.get("href") for link in elements.all("a")]


async def test_time_that_goes_by_is_no_news_of_a_verdict() -> None:
    made = make()
    assert (await made.main(View("", "/tasks"))).digest == (await made.main(View("", "/tasks"))).digest


async def test_a_page_waits_so_long_for_a_store_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    class Away(samples.SampleService):
        async def tasks(self) -> list[tasks.TaskRow]:
            await asyncio.Event().wait()
            raise AssertionError

    monkeypatch.setattr(pages, "PATIENCE", 0.01)
    with pytest.raises(BrokerError, match="No answer within"):
        await get("/tasks", made=samples.pages_of(Away()))


async def test_a_queue_that_is_paused_and_without_a_worker_says_both() -> None:
    class Alone(samples.SampleService):
        async def overview(self) -> Stats:
            return {**await super().overview(), "queues": [samples.queue("mail", 3, 0, 0, 9.0, paused=True)]}

    page = (await get("/", made=samples.pages_of(Alone()))).body.decode()
    assert re.search(r'paused</span>\s+·\s+<span class="bad">no worker', page)


@pytest.mark.parametrize("path", ["/", "/jobs", "/failures", "/workers", "/schedules", "/tasks"])
async def test_every_table_has_a_name(path: str) -> None:
    tables = Elements(await get(path)).all("table")
    assert all("aria-label" in table or "aria-labelledby" in table for table in tables)


@pytest.mark.parametrize("path", ["/failures", "/jobs"])
async def test_what_acts_on_many_jobs_asks_before(path: str) -> None:
    """Each button that does something to more than one job stands behind a question that says to how many."""
    page = (await get(path)).body.decode()
    buttons = re.findall(r'formaction="/jobs/(\w+)"', page)
    asked = re.findall(r'<div class="pop"><span>(\w+) [^?]*\?</span> <button formaction="/jobs/(\w+)"', page)
    assert [word.lower() for word, _ in asked] == [action for _, action in asked] == buttons
    assert len(buttons) >= 6


async def test_an_action_on_too_many_jobs_goes_on_where_it_stopped() -> None:
    query = pages.notice_query("cancel.200.3.more.77", FULL.token, line="queue:mail until:2026-11-25")
    page = (await get(f"/failures?{query}")).body.decode()
    (form,) = re.findall(r'<form method="post" action="/jobs/cancel".*?</form>', page, re.DOTALL)
    fields = dict(re.findall(r'name="(\w+)" value="([^"]*)"', form))
    del fields["token"]
    assert fields == {"after": "77", "search": "queue:mail until:2026-11-25", "back": "/failures"}


# Words and charts ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        *((None, "\N{EN DASH}"), (-1.0, "0.0 ms"), (0.0004, "0.4 ms"), (0.0099, "9.9 ms"), (0.01, "10 ms")),
        *((0.9994, "999 ms"), (0.9999, "1.00 s"), (1.234, "1.23 s"), (9.999, "10.0 s"), (99.94, "99.9 s")),
        *((99.96, "1 m 40 s"), (250, "4 m 10 s"), (11_100, "3 h 5 m"), (176_400, "2 d 1 h")),
    ],
)
def test_a_length_is_said_in_few_characters(seconds: float | None, said: str) -> None:
    assert pages.length(seconds) == said


def test_numbers_are_said_as_they_are_known() -> None:
    assert pages.number(1_234_567) == "1,234,567"
    assert pages.number(2.5) == "2.5"
    assert pages.count({"number": 1234, "is_exact": True}) == "1,234"
    assert pages.count({"number": 10_000, "is_exact": False}) == "10k+"
    assert pages.count({"number": 50, "is_exact": False}) == "50+"
    assert [pages.share(value) for value in (None, 0.0, 0.0004, 0.0155, 0.5)] == [
        "\N{EN DASH}", "0 %", "<0.1 %", "1.6 %", "50 %"]  # fmt: skip
    assert [pages.size(value) for value in (812, 4_200, 118_000_000, 2_500_000_000)] == [
        "812 B", "4.2 kB", "118 MB", "2.5 GB"]  # fmt: skip


def test_a_moment_is_said_by_the_clock_of_a_zone() -> None:
    moment = dt.datetime(2026, 7, 1, 22, 30, tzinfo=dt.UTC)
    assert pages.stamp(moment, "Europe/Riga") == "2026-07-02 01:30:00"
    assert pages.weekday(moment, "Europe/Riga") == "Thu"
    assert pages.stamp(moment, "No/Such_Zone") == pages.stamp(moment) == "2026-07-01 22:30:00"
    assert pages.iso(moment) == "2026-07-01T22:30:00.000Z"


def test_a_single_failure_among_thousands_is_drawn() -> None:
    drawn = pages.finished([{**samples.minute(40), "succeeded": 5000, "failed": 1}])
    assert drawn.paths["bad"]
    assert "5,000 succeeded, 1 failed, at most 5,001 per minute" in drawn.words


def test_charts_of_nothing_are_empty() -> None:
    assert pages.finished([]).paths == {"ok": "", "bad": ""}
    assert pages.spans([samples.minute(1)], "wait").words == "No job ran in the last hour."
    unstarted: Any = {**samples.FAILED_JOB, "attempts": []}
    assert pages.timeline(unstarted) is None


def test_a_length_of_zero_has_a_place_on_a_scale_of_decades() -> None:
    minute = samples.minute(40)
    drawn = pages.spans([{**minute, "run_p50": 0.0, "run_p95": 0.0}], "run")
    assert (drawn.low, drawn.high) == ("0.1 ms", "1.0 ms")


def test_the_timeline_of_a_running_job_stays_as_it_is() -> None:
    begun: Any = {**samples.FAILED_JOB, "attempts": [samples.attempt(1, 30, None, "running")]}
    assert pages.timeline(begun) == pages.timeline(begun)
    drawn = pages.timeline(begun)
    assert drawn is not None
    assert drawn.paths["mid"].count("M") == 1
