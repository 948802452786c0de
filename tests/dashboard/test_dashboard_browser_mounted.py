"""The examples as they stand, one for each framework, clicked through in a real browser."""

import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.browser import Browser
from tests.support.dashboard_shop import reachable
from tests.support.processes import ROOT, Process, Site
from tests.support.redis_server import free_port

EXAMPLES = sorted((ROOT / "examples").glob("*_app.py"))


@pytest.fixture
def program(request: pytest.FixtureRequest, browser: Browser, tmp_path: Path) -> Iterator[Process]:
    """An example that runs; the browser looks at its dashboard."""
    example: Path = request.param
    with Site(tmp_path) as site:
        shutil.copy(example, site.folder)
        port = free_port()
        process = site.start(example.name, str(port), program=[sys.executable, "-W", "error::ResourceWarning"])
        browser.base = f"{reachable(process, port)}/flowrra"
        yield process


@pytest.mark.parametrize("program", EXAMPLES, ids=lambda path: path.stem, indirect=True)
def test_an_example_is_clicked_through(program: Process, browser: Browser) -> None:
    browser.open("/")
    browser.says("There are no queues." if browser.all("#queues + .empty") else "default")
    for name in ("Failures", "Jobs", "Schedules", "Workers", "Tasks"):
        browser.click(".top nav a", name)
        browser.one("h1", name)
    browser.click("td a", "send_report")
    browser.fill("[name='param.recipient']", "ann@example.com")
    browser.fill("[name='param.pages']", "8")
    browser.click("button.main", "Run")
    browser.says("The job was submitted.", ".notice")
    browser.js("window.sameDocument = true")
    browser.says("page", ".note")
    browser.says('"sent 8 pages to ann@example.com"', "pre")
    assert browser.js("return window.sameDocument")
    browser.click(".acts summary", "Delete")
    browser.click(".pop button")
    browser.says("Deleted 1 job.", ".notice")
    browser.says("There are no jobs.")
    program.send(signal.SIGINT)  # while a tab looks on
    assert program.popen.wait(timeout=10) in (0, 130, -signal.SIGINT)
    browser.driver.get("about:blank")
    browser.complaints()  # that the server has gone
