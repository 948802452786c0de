"""Each page in a real browser: readable, without fault by axe-core, on every width, and small."""

import pytest

from flowrra import TaskStatus
from tests.support.browser import Browser
from tests.support.dashboard_shop import Shop

PATHS = {
    "overview": "/",
    "failures": "/failures",
    "jobs": "/jobs?search=shop",
    "failed job": "/jobs/FAILED",
    "long job": "/jobs/BLOCKED",
    "clone": "/jobs/FAILED/clone",
    "emit": "/jobs/FAILED/emit",
    "tasks": "/tasks",
    "limits": "/limits",
    "task": "/tasks/shop.greet",
    "schedules": "/schedules",
    "new schedule": "/schedules/new?kind=cron&rule=0+9+*+*+mon-fri&tz=Europe/Riga",
    "workers": "/workers",
    "not found": "/jobs/nothing",
}


# What a thumb has to hit has 24 pixels each way, but for a link in a text.
TOO_SMALL = """
return [...document.querySelectorAll("a, button, input, select, summary, textarea")]
  .filter((part) => part.checkVisibility() && !part.closest(".hidden, .skip"))
  .filter((part) => getComputedStyle(part).display !== "inline" || part.closest("#verdict, .notice, .kin"))
  .filter((part) => Math.min(part.getBoundingClientRect().width, part.getBoundingClientRect().height) < 24)
  .map((part) => part.outerHTML.slice(0, 200))
"""


def path_of(name: str, shop: Shop) -> str:
    failed = shop.jobs(TaskStatus.FAILED)[0].id
    return PATHS[name].replace("FAILED", failed).replace("BLOCKED", shop.jobs(TaskStatus.BLOCKED)[0].id)


@pytest.mark.parametrize("name", PATHS)
def test_a_page_is_without_fault(name: str, tab: Browser, shop: Shop) -> None:
    path = path_of(name, shop)
    tab.open(path, width=390, dark=True)
    assert tab.axe() == []
    assert tab.js("return document.documentElement.scrollWidth") <= 390
    assert tab.js(TOO_SMALL) == []
    assert all(link.size["height"] < 2 * 20 for link in tab.all("nav[aria-label=Pages] a"))  # a name stands in one line
    tab.look(width=1600)
    assert tab.axe("color-contrast") == []
    assert tab.js("return document.documentElement.scrollWidth") <= 1600
    title = tab.text("h1")
    tab.open(path, script=False)
    assert tab.text("h1") == title
    assert len(tab.text()) > 20
    if name == "not found":
        assert all("404" in complaint for complaint in tab.complaints())


@pytest.mark.parametrize("width", [390, 1280])
def test_a_question_is_without_fault(width: int, tab: Browser) -> None:
    for path, css in (("/failures", "td.act summary"), ("/jobs?search=shop", ".every > summary")):
        tab.open(path, width=width)
        tab.click(css)
        question = tab.one("[open] .pop")
        assert tab.axe() == []
        box = tab.js("const b = arguments[0].getBoundingClientRect(); return [b.left, b.right]", question)
        assert 0 <= box[0] < box[1] <= width


def test_a_fault_would_be_seen(tab: Browser) -> None:
    tab.open("/tasks", width=390)
    tab.js("document.getElementById('search').removeAttribute('aria-label')")
    tab.js("document.getElementById('search').placeholder = ''; document.body.style.color = '#ccc'")
    assert {found.partition(":")[0] for found in tab.axe()} >= {"label", "color-contrast"}


def test_a_first_visit_is_small(tab: Browser) -> None:
    tab.open("/")
    tab.until(lambda: tab.js("return source?.readyState === 1"), "the stream of news")
    asked = tab.asked()
    assert len(asked) <= 4, asked
    assert sum(request.size for request in asked) <= 24_000, asked


def test_a_second_visit_loads_the_page_alone(tab: Browser) -> None:
    tab.open("/tasks")
    tab.asked()
    tab.open("/workers")
    assert [request.url for request in tab.asked() if request.size and "/static/" in request.url] == []


def test_a_long_value_is_cut_and_can_be_had_whole(tab: Browser, shop: Shop) -> None:
    tab.open(f"/jobs/{shop.jobs(TaskStatus.BLOCKED)[0].id}")
    assert "of 6," in tab.text(".cut")
    tab.click(".cut a")
    tab.until(lambda: "x" * 6000 in tab.text("body"), "the whole text")
    assert all("favicon" in complaint for complaint in tab.complaints())  # a text has no icon to name


def test_the_state_of_a_job_is_said_by_word_shape_and_colour(tab: Browser) -> None:
    tab.open("/jobs?search=state:failed")
    state = tab.one("td .s-failed")
    assert state.text == "failed"
    shape = tab.js("return getComputedStyle(arguments[0], '::before').maskImage", state)
    assert shape.startswith("url(")
    assert state.value_of_css_property("color") != tab.one("td.wide a").value_of_css_property("color")
