"""What scripts add to the pages: news as they come, without taking anything out of the reader's hands, and keys."""

import datetime as dt
from collections.abc import Iterator

import pytest
from selenium.webdriver import ActionChains, Keys

from flowrra import TaskStatus
from tests.support.browser import Browser
from tests.support.dashboard_shop import Shop
from tests.support.redis_server import free_port

WSGI = """
import socketserver, sys, wsgiref.simple_server as simple
from app import app
from flowrra_extras.dashboard import create_wsgi_app

class Server(socketserver.ThreadingMixIn, simple.WSGIServer):
    daemon_threads = True

simple.make_server("127.0.0.1", int(sys.argv[1]), create_wsgi_app(app), Server).serve_forever()
"""


@pytest.fixture(scope="module")
def polled(shop: Shop) -> str:
    """The dashboard by WSGI, where pages look for news."""
    port = free_port()
    return shop.program(["-c", WSGI, str(port)], port)


@pytest.fixture(params=["events", "poll"])
def live(request: pytest.FixtureRequest, tab: Browser) -> Iterator[Browser]:
    """A tab with news by events, and one that looks for them."""
    if request.param == "poll":
        tab.base = request.getfixturevalue("polled")
    yield tab
    tab.open("/tasks")
    assert tab.js("return document.body.dataset.live") == request.param


def submit(shop: Shop, name: str, queue: str) -> str:
    return shop.app.sync.submit_many(shop.tasks.greet.options(delay=3600, queue=queue), [(name, 1)])[0]


# News ------------------------------------------------------------------------------------------


def test_a_job_shows_as_soon_as_it_is_there(live: Browser, shop: Shop) -> None:
    live.open("/jobs?search=queue:fresh")
    live.js("window.sameDocument = true")
    job = submit(shop, "the newcomer", "fresh")
    live.says("the newcomer", f"[data-key='{job}']")
    shop.app.sync.cancel(job)
    live.says("cancelled", f"[data-key='{job}'] .state")
    assert live.js("return window.sameDocument")


def test_a_store_that_is_away_is_not_called_live(tab: Browser, shop: Shop) -> None:
    tab.open("/jobs?search=queue:away")
    tab.until(lambda: tab.js("return source?.readyState === 1"), "the stream of news")
    tab.js("source.dispatchEvent(new Event('trouble'))")
    tab.says("the store does not answer, as of", "#live-word")
    assert tab.driver.title == "no answer · queue:away · Flowrra"
    submit(shop, "back again", "away")
    tab.says("connected", "#live-word")
    assert tab.driver.title.startswith("OK · ")


def test_a_job_with_a_strange_id_has_news(live: Browser, shop: Shop) -> None:
    name = f"report@2026-01-01T09:00:00+02:00 50% ä?#/{live.base[-5:]}"
    (job,) = shop.app.sync.submit_many(shop.tasks.greet.options(delay=3600, queue="odd", task_id=name), [("x", 1)])
    assert job == name
    live.open("/jobs?search=queue:odd")
    live.click(f"[data-key='{name}'] a")
    live.says("scheduled", ".lead .state")
    live.js("window.sameDocument = true")
    shop.app.sync.cancel(name)
    live.says("cancelled", ".lead .state")
    assert live.js("return window.sameDocument")


def test_progress_moves(live: Browser, shop: Shop) -> None:
    name = f"hill {live.base.rpartition(':')[2]}"
    job = shop.app.sync.submit(shop.tasks.climb, name)
    live.open(f"/jobs/{job}")
    live.js("window.sameDocument = true")
    for step in (1, 3):
        shop.climb(name, step)
        live.says(f"{step} of 4 · climbing")
        assert float(live.one("progress").get_attribute("value") or 0) == step / 4
    shop.climb(name, 4)
    live.says("success", ".lead .state")
    live.says("4", "#result + .copied pre")
    assert live.js("return window.sameDocument")


def test_a_list_holds_still_while_a_row_is_ticked(live: Browser, shop: Shop) -> None:
    queue = f"kept{live.base[-5:]}"
    jobs = [submit(shop, f"kept {number}", queue) for number in range(3)]
    live.open(f"/jobs?search=queue:{queue}")
    for job in jobs[:2]:
        live.click(f"[value='{job}']")
    live.click(".every > summary")
    live.js("arguments[0].focus()", live.one(f"[data-key='{jobs[1]}'] a"))
    live.js("window.blurs = 0; addEventListener('blur', () => window.blurs++, true)")
    for job in jobs[1:]:
        shop.app.sync.cancel(job)
    shop.app.sync.delete(jobs[2])
    newcomers = [submit(shop, "another", queue) for _ in range(30)]
    live.says("30 new", "#new")
    newcomers += [submit(shop, "another", queue) for _ in range(30)]
    live.says("60 new", "#new")
    live.says("cancelled", f"[data-key='{jobs[1]}'] .state")  # a row says what has become of its job
    assert rows(live) == jobs[::-1]
    assert live.js("return window.blurs") == 0
    assert live.js("return document.activeElement.closest('tr').dataset.key") == jobs[1]
    assert live.one(".every").get_attribute("open")
    assert live.text(".bulk-word") == "2 selected:"
    live.press("n")
    live.until(lambda: rows(live) == newcomers[:9:-1], "the list as it is now")
    live.says("2 (2 not in view)", ".bulk-word")
    live.click("#bulk .sure > summary", "Cancel")
    live.says("Cancel the 2 (2 not in view) selected shop.greet?", "#bulk .pop")
    live.click("#bulk .pop button", "Cancel")
    live.says("Cancelled 1 job. 1 job not changed", ".notice")
    assert shop.job(jobs[0]).status is TaskStatus.CANCELLED


@pytest.mark.parametrize("hold", ["pointer", "focus"])
def test_a_list_holds_still_under_the_pointer_and_the_focus(hold: str, tab: Browser, shop: Shop) -> None:
    queue = f"still-{hold}"
    first = submit(shop, "first", queue)
    tab.open(f"/jobs?search=queue:{queue}")
    row = tab.one(f"tr[data-key='{first}']")
    if hold == "pointer":
        ActionChains(tab.driver, duration=0).move_to_element(row).perform()
    else:
        tab.press("j")
    second = submit(shop, "second", queue)
    tab.says("1 new", "#new")
    assert rows(tab) == [first]
    if hold == "pointer":
        ActionChains(tab.driver, duration=0).move_to_element(tab.one("h1")).perform()
    else:
        tab.press("/")
    tab.until(lambda: rows(tab) == [second, first], "the newcomer")
    assert not tab.one("#new").is_displayed()


def rows(tab: Browser) -> list[str]:
    found: list[str] = tab.js("return [...document.querySelectorAll('tbody tr')].map(row => row.dataset.key)")
    return found


def test_a_selection_is_counted_and_cleared(tab: Browser, shop: Shop) -> None:
    jobs = [submit(shop, f"chosen {number}", "chosen") for number in range(3)]
    tab.open("/jobs?search=queue:chosen")
    assert tab.text("#unpicked") == "Select jobs to change them."
    tab.click("#all")
    tab.says("3 selected:", ".bulk-word")
    shop.app.sync.cancel(jobs[0])
    shop.app.sync.delete(jobs[0])
    submit(shop, "later", "chosen")
    tab.says("1 new", "#new")
    tab.click("#unpick")
    tab.until(lambda: len(rows(tab)) == 3 and jobs[0] not in rows(tab), "the list as it is now")
    assert tab.js("return document.querySelectorAll('#bulk [name=ids]').length") == 0


def test_what_is_being_typed_stays(tab: Browser, shop: Shop) -> None:
    tab.open("/tasks/shop.greet")
    tab.fill("[name='param.name']", "half a na")
    job = submit(shop, "meanwhile", "typing")
    tab.says("meanwhile", f"[data-key='{job}']")
    assert tab.one("[name='param.name']").get_attribute("value") == "half a na"
    assert tab.js("return document.activeElement.name") == "param.name"
    assert tab.js("return [...document.querySelectorAll('[name=token]')].every(f => f.value.length > 20)")


def test_the_place_stays_where_one_reads(tab: Browser, shop: Shop) -> None:
    for number in range(50):
        submit(shop, f"row {number}", "long")
    tab.open("/jobs?search=queue:long")
    row = tab.all("tbody tr")[30]
    tab.js("arguments[0].scrollIntoView({block: 'center'})", row)
    place = "return arguments[0].getBoundingClientRect().top"
    before = tab.js(place, row)
    newcomer = submit(shop, "above", "long")
    tab.one(f"[data-key='{newcomer}']")
    tab.until(lambda: abs(tab.js(place, row) - before) < 2, "the row where it was")
    assert tab.js("return window.scrollY") > 200


def test_a_frozen_view_gets_no_news(live: Browser, shop: Shop) -> None:
    live.open("/jobs?search=queue:paused")
    live.click("#freeze")
    live.says("frozen, as of", "#live-word")
    assert live.driver.title.startswith("frozen · ")
    live.asked()
    job = submit(shop, "unseen", "paused")
    live.open("/jobs?search=queue:paused")  # the choice holds for the tab
    live.one(f"[data-key='{job}']")
    live.says("frozen, as of", "#live-word")
    assert [request.url for request in live.asked() if "events" in request.url] == []
    shop.app.sync.cancel(job)
    live.press("f")
    live.says("cancelled", f"[data-key='{job}'] .state")
    live.says("connected", "#live-word")


def test_a_hidden_tab_asks_for_nothing(live: Browser, shop: Shop) -> None:
    live.open("/jobs?search=queue:hidden")
    hide(live, hidden=True)
    assert live.js("return source === null && (looking === null || looking.signal.aborted)")
    job = submit(shop, "behind the back", "hidden")
    assert live.all(f"[data-key='{job}']") == []
    hide(live, hidden=False)
    live.one(f"[data-key='{job}']")


def test_the_title_of_a_hidden_tab_says_the_verdict(tab: Browser, shop: Shop) -> None:
    tab.open("/tasks")
    assert tab.driver.title == "OK · Tasks · Flowrra"
    hide(tab, hidden=True)
    shop.app.sync.submit_many(shop.tasks.greet.options(queue="unserved"), [("nobody", 1)])
    try:
        tab.until(lambda: tab.js("return glance()") or "1 problem" in tab.driver.title, "the problem in the title")
        assert "%23b8282b" in (tab.one("#icon").get_attribute("href") or "")
        assert tab.text("#verdict").startswith("No problems")  # what is shown waits until it is seen
    finally:
        for job in shop.jobs(TaskStatus.PENDING):
            shop.app.sync.cancel(job.id)


def hide(tab: Browser, *, hidden: bool) -> None:
    """Have the page believe that its tab is hidden, or is seen again."""
    tab.js("Object.defineProperty(document, 'hidden', {value: arguments[0], configurable: true})", hidden)
    tab.js("document.dispatchEvent(new Event('visibilitychange'))")


def test_a_job_that_is_deleted_elsewhere_is_not_found_any_more(tab: Browser, shop: Shop) -> None:
    job = submit(shop, "soon gone", "gone")
    shop.app.sync.cancel(job)
    tab.open(f"/jobs/{job}")
    tab.one("h1", "shop.greet")
    shop.app.sync.delete(job)
    tab.one("h1", "Not found")
    assert all("404" in complaint for complaint in tab.complaints())


def test_times_are_said_as_people_say_them(tab: Browser, shop: Shop) -> None:
    submit(shop, "just now", "clock")
    tab.open("/jobs?search=queue:clock")
    tab.until(lambda: tab.text("td.when").startswith(("now", "1 s ago", "2 s ago")), "the age of the job")
    assert "in 59 m" in tab.text("td.when .dim")


def test_a_moment_says_its_utc_where_one_points(tab: Browser, shop: Shop) -> None:
    job = submit(shop, "some time", "zones")
    tab.driver.execute_cdp_cmd("Emulation.setTimezoneOverride", {"timezoneId": "Asia/Tokyo"})
    try:
        tab.open(f"/jobs/{job}")
        time = tab.one(".facts time")
        shown, utc = time.text.partition(" · ")[0], time.get_attribute("title") or ""
        assert utc.endswith(" UTC")
        assert dt.datetime.fromisoformat(shown) - dt.datetime.fromisoformat(utc[:-4]) == dt.timedelta(hours=9)
        assert tab.text("#zone") == "Times are Asia/Tokyo. Point at a time to see UTC."
    finally:
        tab.driver.execute_cdp_cmd("Emulation.setTimezoneOverride", {"timezoneId": ""})


def test_an_id_is_copied(tab: Browser, shop: Shop) -> None:
    job = submit(shop, "copy me", "copies")
    tab.open(f"/jobs/{job}")
    tab.click(".crumb .copy")
    tab.says("Copied", ".crumb .copy")
    assert tab.js("return getSelection().toString()") == job


# Searches that go on ----------------------------------------------------------------------------

IMPATIENT = """
from flowrra_extras.dashboard import job_search
job_search.SECONDS = job_search.PATIENCE = 0.0
job_search._STRETCH = 20
"""


def test_a_search_goes_on_by_itself(tab: Browser, shop: Shop) -> None:
    port = free_port()
    wanted = submit(shop, "the needle", "hay")
    shop.app.sync.submit_many(shop.tasks.greet.options(delay=3600, queue="hay"), [(f"n{n}", 1) for n in range(200)])
    tab.base = shop.program(["-c", IMPATIENT + WSGI, str(port)], port)
    tab.open('/jobs?search=args.name:"the+needle"', script=False)
    tab.says("Searched back to", "#more")  # one can go on by hand
    assert tab.one(".pager a", "Continue the search")
    tab.open('/jobs?search=args.name:"the+needle"')
    tab.one(f"tr[data-key='{wanted}']")
    tab.until(lambda: "Looked back" not in tab.text("#more") if tab.all("#more") else True, "the end of the search")
    newer = submit(shop, "the needle", "hay")
    tab.says("1 new", "#new")  # what was found holds still
    assert rows(tab) == [wanted]
    shop.app.sync.cancel(wanted)
    tab.click("#new")
    tab.one(f"tr[data-key='{newer}']")


def test_a_search_is_kept_on_this_browser(tab: Browser) -> None:
    tab.open("/jobs?search=state:failed+task:greet")
    tab.click("#save")
    tab.open("/jobs")
    tab.click("#saved a", "state:failed task:greet")
    tab.until(lambda: tab.one("#search").get_attribute("value") == "state:failed task:greet", "the search")
    tab.click("#save", "Remove this search")
    assert tab.all("#saved a") == []


# Keys ------------------------------------------------------------------------------------------


def test_everything_is_in_reach_of_the_keys(tab: Browser, shop: Shop) -> None:
    jobs = [submit(shop, f"key {number}", "keys") for number in range(3)][::-1]
    tab.open("/jobs?search=queue:keys")
    tab.press("j", "j", "x", "j", "x", "k")
    focused = "return document.activeElement.dataset.key"
    assert tab.js(focused) == jobs[1]
    assert tab.js("return [...document.querySelectorAll('[name=ids]:checked')].map(box => box.value)") == jobs[1:]
    outline = tab.js("const s = getComputedStyle(document.activeElement); return s.outlineStyle + s.outlineWidth")
    assert outline == "solid2px"
    tab.press("/")
    assert tab.js("return document.activeElement.id") == "search"
    tab.press("jx")  # letters in a field are letters
    assert tab.one("#search").get_attribute("value") == "jx"
    tab.press(Keys.ESCAPE)
    tab.js("document.activeElement.blur()")
    tab.press("?")
    assert tab.one("#help").is_displayed()
    tab.press(Keys.ESCAPE)
    assert not tab.one("#help").is_displayed()
    tab.press("k", Keys.ENTER)
    tab.until(lambda: tab.path.startswith("/jobs/"), "the job")


def test_the_keys_can_be_switched_off(tab: Browser) -> None:
    tab.open("/jobs")
    tab.press("?")
    tab.click("#keys-on")
    tab.press(Keys.ESCAPE)
    tab.open("/jobs")
    tab.press("/")
    assert tab.js("return document.activeElement.id") != "search"
    tab.js("localStorage.clear()")


def test_the_first_stop_leads_past_the_navigation(tab: Browser) -> None:
    tab.open("/jobs")
    tab.press(Keys.TAB)
    assert tab.js("return document.activeElement.className") == "skip"
    assert tab.js("return document.activeElement.getBoundingClientRect().width") > 50
    tab.press(Keys.ENTER)
    assert tab.js("return document.activeElement.id") == "main"


def test_each_stop_of_the_keys_is_seen(tab: Browser) -> None:
    tab.open("/jobs?search=state:failed")
    for _ in range(25):
        tab.press(Keys.TAB)
        stop, outline = tab.js(
            "const stop = document.activeElement; return [stop.outerHTML, getComputedStyle(stop).outlineStyle]"
        )
        assert outline != "none", stop


# Completion ------------------------------------------------------------------------------------


def test_the_search_line_is_completed(tab: Browser) -> None:
    tab.open("/jobs")
    tab.click("#search")
    tab.press("sta")
    tab.says("state:", "#words li")
    tab.press(Keys.ARROW_DOWN, Keys.ENTER)
    tab.says("state:failed", "#words li")
    assert tab.one("#search").get_attribute("aria-expanded") == "true"
    tab.press("fai")
    tab.until(lambda: len(tab.all("#words li")) == 1, "one word")
    tab.press(Keys.ARROW_DOWN, Keys.TAB)
    assert tab.one("#search").get_attribute("value") == "state:failed "
    tab.press("task:shop.f")
    tab.says("task:shop.fail", "#words li")
    tab.click("#words li")
    tab.press(Keys.ENTER)
    tab.until(lambda: tab.path == "/jobs?search=state%3Afailed+task%3Ashop.fail+", "the search")
    tab.says("match", ".lead")
