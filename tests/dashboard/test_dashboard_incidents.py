"""Each incident, on a phone and on a laptop: the verdict is seen at once, and leads to the cause in one click."""

from collections.abc import Iterator

import pytest

from tests.dashboard.incidents import INCIDENTS, Incident
from tests.support.browser import Browser

HEIGHT = 844  # of a phone's window
WIDTHS = pytest.mark.parametrize("width", [390, 1280])


@pytest.fixture(scope="module", params=INCIDENTS)
def incident(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Incident]:
    with INCIDENTS[request.param](tmp_path_factory.mktemp("incident")) as made:
        yield made


def open_overview(tab: Browser, incident: Incident, width: int, *, script: bool = True) -> None:
    tab.base = incident.url
    tab.open("/", width=width, script=script)


@WIDTHS
@pytest.mark.parametrize("script", [True, False], ids=["script", "no script"])
def test_the_verdict_is_seen_at_once(script: bool, width: int, incident: Incident, browser: Browser) -> None:
    open_overview(browser, incident, width, script=script)
    verdict = browser.one("#verdict", incident.verdict)
    assert verdict.location["y"] + verdict.size["height"] < HEIGHT
    assert browser.driver.title.startswith(("1 problem · ", "no answer · ", "3 warnings · "))
    assert "%234a3fd0" not in (browser.one("#icon").get_attribute("href") or "")
    if script:
        assert browser.axe() == []
        browser.look(width=width, dark=True)
        assert browser.axe("color-contrast") == []
    browser.open("/static/nothing")  # no more news, so that what the console says of a store that is away is all
    browser.complaints()


@WIDTHS
def test_the_verdict_leads_to_the_cause(width: int, incident: Incident, browser: Browser) -> None:
    open_overview(browser, incident, width)
    what = incident.verdict.partition(":")[0]
    if what != "The store does not answer":  # whose cause stands there
        browser.click("#verdict a", what)
    browser.says(incident.cause)
    browser.open("/static/nothing")
    browser.complaints()


def test_every_page_begins_with_the_verdict(incident: Incident, browser: Browser) -> None:
    browser.base = incident.url
    for path in ("/jobs", "/schedules/new", "/workers"):
        browser.open(path, width=390)
        browser.says(incident.verdict, "#verdict")
        browser.open("/static/nothing")  # the tab asks no more for what it looked at
    browser.complaints()


@WIDTHS
def test_few_failed_payments_are_seen_beside_a_flood(width: int, incident: Incident, browser: Browser) -> None:
    if "images.resize" not in incident.verdict:
        pytest.skip("there is no flood of failures in this incident")
    open_overview(browser, incident, width)
    row = browser.one("#failures ~ table tr", "oc.charge")
    assert row.text.startswith("25")
    assert "card declined for order" in row.text
