"""A real browser for the tests: Chromium without a window, one for the whole run, a fresh tab for each test.

A tab that has complained in its console, or has asked another host for anything, fails its test. Where there is no
Chromium, the tests are skipped with the reason, or fail where services are required.
"""

import json
import shutil
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from typing import Any, NamedTuple, TypeVar

import pytest
from selenium.common.exceptions import StaleElementReferenceException, WebDriverException
from selenium.webdriver import ActionChains, Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from tests.support.services import do_without

T = TypeVar("T")

PATIENCE = 10.0  # seconds that a page has to come to what a test waits for
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--host-resolver-rules=MAP shop.test 127.0.0.1",  # a host that is not the loopback, for browsers
)


def _is_gone(error: WebDriverException) -> bool:
    """Whether the page was changed under our eyes; chromedriver has two ways to say so."""
    return isinstance(error, StaleElementReferenceException) or "does not belong to the document" in str(error.msg)


class Asked(NamedTuple):
    """A request that a page has made. `size` is what came over the wire, headers included."""

    url: str
    size: int


class Browser:
    """A tab, and what a person does with it."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver
        self.base = ""

    # Looking ------------------------------------------------------------------------------------

    def open(self, path: str = "/", *, width: int = 1280, dark: bool = False, script: bool = True) -> None:
        """Go to a page of the dashboard at `base`."""
        self.look(width=width, dark=dark)
        self.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not script})
        self.driver.get(self.base + path)

    def look(self, *, width: int, dark: bool = False) -> None:
        """Through a window of that width, with light or dark colours."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    @property
    def path(self) -> str:
        """Where the tab is, below the dashboard."""
        return self.driver.current_url.removeprefix(self.base)

    def all(self, css: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def one(self, css: str, text: str = "") -> WebElement:
        """The first element, which holds `text`; waits for it."""
        return self.until(lambda: next((e for e in self.all(css) if text in e.text), None), f"{css} with {text!r}")

    def text(self, css: str = "main") -> str:
        return self.until(lambda: [found.text for found in self.all(css)[:1]], css)[0]

    def says(self, text: str, css: str = "main") -> None:
        """Wait until an element holds the text."""
        self.one(css, text)

    def js(self, script: str, *given: Any) -> Any:
        return self.driver.execute_script(script, *given)

    def until(self, look: Callable[[], T | None], what: str) -> T:
        """What `look` gives as soon as it gives something."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                if found := look():
                    return found
            except WebDriverException as error:
                if not _is_gone(error):
                    raise
            assert time.monotonic() < deadline, f"not within {PATIENCE:g} s: {what}; the page is {self.text('body')!r}"
            time.sleep(0.02)

    # Acting -------------------------------------------------------------------------------------

    def click(self, css: str, text: str = "") -> None:
        def clicked() -> bool:
            self.one(css, text).click()
            return True

        self.until(clicked, f"a click on {css}")

    def press(self, *keys: str) -> None:
        """Press keys where the focus is."""
        ActionChains(self.driver, duration=0).send_keys(*keys).perform()

    def fill(self, css: str, text: str) -> None:
        field = self.one(css)
        field.clear()
        field.send_keys(text)

    # Judging ------------------------------------------------------------------------------------

    def asked(self) -> list[Asked]:
        """The requests since the last call, but for those that take no wire."""
        urls: dict[str, str] = {}
        sizes: dict[str, int] = {}
        for entry in self._log("performance"):
            message = json.loads(entry["message"])["message"]
            given = message["params"]
            if message["method"] == "Network.requestWillBeSent":
                urls[given["requestId"]] = given["request"]["url"]
            elif message["method"] == "Network.responseReceived":
                sizes[given["requestId"]] = max(
                    sizes.get(given["requestId"], 0), given["response"]["encodedDataLength"]
                )
            elif message["method"] == "Network.loadingFinished":
                sizes[given["requestId"]] = given["encodedDataLength"]
        return [Asked(url, int(sizes.get(key, 0))) for key, url in urls.items() if url.startswith("http")]

    def complaints(self) -> list[str]:
        """What the console says since the last call."""
        return [entry["message"] for entry in self._log("browser")]

    def _log(self, name: str) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = self.driver.get_log(name)  # type: ignore[no-untyped-call]
        return entries

    def axe(self, *rules: str) -> list[str]:
        """What axe-core finds wrong with the page, by all its rules of WCAG A and AA or by these."""
        if not self.js("return 'axe' in window"):
            # Not as a script of the page, which the page's policy rightly forbids.
            source = resources.files("axe_core_python").joinpath("axe.min.js").read_text()
            self.driver.execute_cdp_cmd("Runtime.evaluate", {"expression": source})
        only = {"type": "rule", "values": rules} if rules else {"type": "tag", "values": _TAGS}
        found = self.driver.execute_async_script(
            "const done = arguments[1]; axe.run(document, {runOnly: arguments[0], resultTypes: ['violations']})"
            ".then(r => done(r.violations.map(v => v.id + ': ' + v.nodes.map(n => n.html).join(' '))))",
            only,
        )
        assert isinstance(found, list)
        return found


_TAGS: Sequence[str] = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice")


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """The program, started once."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if found is None or driver is None:
        do_without("there is no Chromium with its chromedriver here: apt-get install chromium chromium-driver")
    options = ChromeOptions()
    options.binary_location = found
    for flag in (*_FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = Chrome(options, ChromeService(driver))
    try:
        yield chrome
    finally:
        chrome.quit()


@pytest.fixture
def browser(chromium: Chrome) -> Iterator[Browser]:
    """An empty tab, which must not have complained and not have talked to strangers when the test is over.

    It is always the same one: another tab is another process, which takes 0.4 s of CPU time.
    """
    first, *others = chromium.window_handles
    for handle in others:
        chromium.switch_to.window(handle)
        chromium.close()
    chromium.switch_to.window(first)
    chromium.get("about:blank")
    for reset in ("Network.clearBrowserCookies", "Page.resetNavigationHistory"):
        chromium.execute_cdp_cmd(reset, {})
    tab = Browser(chromium)
    tab.asked()
    tab.complaints()
    yield tab
    hosts = {urllib.parse.urlsplit(asked.url).hostname for asked in tab.asked()}
    assert hosts <= {"127.0.0.1"}
    assert tab.complaints() == []
