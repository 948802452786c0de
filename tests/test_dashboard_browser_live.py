"""What scripts add to the pages: news as they come, without taking anything out of the reader's hands, and keys."""

from collections.abc import Iterator

import pytest
from selenium.webdriver import Keys

from tests.browser import Browser
from tests.dashboard_shop import Shop


@pytest.fixture(scope="module")
def polled(shop: Shop) -> str:
    """The dashboard by WSGI, where pages look for news."""
    return shop.serve("--wsgi")


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
    tab.says("no news", "#live-word")
    submit(shop, "back again", "away")
    tab.says("live", "#live-word")


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
    live.says("4", "#result + pre")
    assert live.js("return window.sameDocument")


def test_news_take_nothing_out_of_ones_hands(tab: Browser, shop: Shop) -> None:
    jobs = [submit(shop, f"kept {number}", "kept") for number in range(3)]
    tab.open("/jobs?search=queue:kept")
    for job in jobs[:2]:
        tab.click(f"[value='{job}']")
    tab.click(".every summary")
    tab.js("arguments[0].focus()", tab.one(f"[data-key='{jobs[1]}'] a"))
    tab.js("window.blurs = 0; addEventListener('blur', () => window.blurs++, true)")
    for job in jobs[1:]:
        shop.app.sync.cancel(job)
    shop.app.sync.delete(jobs[2])
    newcomer = submit(shop, "another", "kept")
    tab.one(f"[data-key='{newcomer}']")
    tab.says("cancelled", f"[data-key='{jobs[1]}'] .state")
    assert tab.all(f"[data-key='{jobs[2]}']") == []
    assert tab.js("return window.blurs") == 0
    assert tab.js("return document.activeElement.closest('tr').dataset.key") == jobs[1]
    assert tab.js("return [...document.querySelectorAll('[name=ids]:checked')].map(box => box.value)") == jobs[1::-1]
    assert tab.one(".every").get_attribute("open")
    assert tab.text("#picked") == "2"


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


def test_pause_stops_the_news(live: Browser, shop: Shop) -> None:
    live.open("/jobs?search=queue:paused")
    live.click("#pause")
    live.says("paused", "#live-word")
    live.asked()
    job = submit(shop, "unseen", "paused")
    live.open("/jobs?search=queue:paused")  # the choice holds for the tab
    live.one(f"[data-key='{job}']")
    live.says("paused", "#live-word")
    assert [request.url for request in live.asked() if "events" in request.url] == []
    shop.app.sync.cancel(job)
    live.press("p")
    live.says("cancelled", f"[data-key='{job}'] .state")
    live.says("live", "#live-word")


def test_a_hidden_tab_asks_for_nothing(live: Browser, shop: Shop) -> None:
    live.open("/jobs?search=queue:hidden")
    hide(live, hidden=True)
    assert live.js("return source === null && (looking === null || looking.signal.aborted)")
    job = submit(shop, "behind the back", "hidden")
    assert live.all(f"[data-key='{job}']") == []
    hide(live, hidden=False)
    live.one(f"[data-key='{job}']")


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
