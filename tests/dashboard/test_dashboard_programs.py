"""The dashboard in programs of their own: `python -m flowrra dashboard`, and the examples as they stand."""

import asyncio
import json
import re
import shutil
import signal
import socket
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any

import pytest

from flowrra import main
from tests.support.processes import ROOT, Process, Site
from tests.support.redis_server import free_port

EXAMPLES = sorted((ROOT / "examples").glob("*_app.py"))


class Browser:
    """Asks a server on this host as a browser does: it keeps cookies and follows redirections."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.home = f"http://{host}:{port}"
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))

    def get(self, path: str) -> str:
        return self._open(path)

    def post(self, path: str, **fields: str) -> str:
        return self._open(path, urllib.parse.urlencode(fields).encode())

    def _open(self, path: str, body: bytes | None = None) -> str:
        with self._opener.open(self.home + path, body, timeout=20) as answer:
            text: str = answer.read().decode()
            return text

    def until_there(self, path: str, process: Process) -> None:
        """Wait until the server answers."""
        deadline = time.monotonic() + 30
        while True:
            try:
                self.get(path)
            except urllib.error.HTTPError:
                raise
            except OSError:
                assert not process.is_over, process.log
                assert time.monotonic() < deadline, process.log
                time.sleep(0.05)
            else:
                return


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with Site(tmp_path) as found:
        yield found


# python -m flowrra dashboard -------------------------------------------------------------------


async def told_port(process: Process, host: str = "127.0.0.1") -> int:
    """The port on which the dashboard says that it is, and listens by then."""
    line = (await process.line()).decode()
    found = re.fullmatch(rf"Flowrra dashboard on http://{re.escape(host)}:(\d+)/\n", line)
    assert found, (line, process.log)
    return int(found[1])


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="there is no IPv6 here")
async def test_it_listens_on_ipv6_too(site: Site) -> None:
    async with site.client():
        process = site.start("-m", "flowrra", "dashboard", "app:app", "--port", "0", "--host", "::1")
        browser = Browser(await told_port(process, "[::1]"), "[::1]")
        assert "Overview" in await asyncio.to_thread(browser.get, "/")


async def test_the_dashboard_alone_shows_and_steers(site: Site) -> None:
    await site.worker()
    process = site.start("-m", "flowrra", "dashboard", "app:app", "--port", "0")
    browser = Browser(await told_port(process))
    page = await asyncio.to_thread(browser.get, "/tasks/app.nap")
    (token,) = set(re.findall(r'name="token" value="([^"]+)"', page))
    job = await asyncio.to_thread(browser.post, "/tasks/app.nap/run", token=token, **{"param.seconds": "0"})
    assert "app.nap" in job
    assert "dashboard (127.0.0.1) has run app.nap" in process.log
    with pytest.raises(urllib.error.HTTPError, match="403"):
        await asyncio.to_thread(browser.post, "/queues/default/pause")
    assert "refused 'POST' '/queues/default/pause'" in process.log
    assert json.loads(await asyncio.to_thread(browser.get, "/api/stats"))["counts"].keys() >= {"success"}
    process.send(signal.SIGINT)
    assert await process.ends() == 0
    assert "Traceback" not in process.log


async def test_a_store_is_shown_without_its_program(site: Site) -> None:
    async with site.client() as app:
        await app.submit(app.task(name="elsewhere.do")(_do), 7)
    process = site.start("-m", "flowrra", "dashboard", "--broker", site.url, "--port", "0", "--read-only")
    browser = Browser(await told_port(process))
    (job,) = json.loads(await asyncio.to_thread(browser.get, "/api/jobs"))["jobs"]
    assert (job["task"], job["arguments"], job["status"]) == ("elsewhere.do", "7", "pending")
    with pytest.raises(urllib.error.HTTPError, match="403"):
        await asyncio.to_thread(browser.post, f"/jobs/{job['id']}/cancel")


async def _do(number: int) -> None: ...


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "no store is given"),
        (["nowhere:app"], "no module 'nowhere'"),
        (["--broker", "sqlite:///gone.db"], "gone.db does not exist: the first worker"),
        (["--broker", "memory://"], "is private to one process"),
    ],
)
def test_what_cannot_be_shown_is_said(
    arguments: list[str],
    reason: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FLOWRRA_APP", raising=False)
    monkeypatch.delenv("FLOWRRA_BROKER", raising=False)
    assert main(["dashboard", *arguments]) == 2
    assert reason in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_where_it_cannot_listen_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "jobs.db").touch()
    command = ["dashboard", "--broker", f"sqlite:///{tmp_path / 'jobs.db'}"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main([*command, "--port", str(port)]) == 1
        complaint = capsys.readouterr().err
        assert f"cannot listen on 127.0.0.1, port {port}" in complaint
        assert "give another --host or --port" in complaint
    assert main([*command, "--port", "70000"]) == 2
    said = capsys.readouterr()
    assert "from 0 to 65535, not 70000" in said.err
    assert said.out == ""


# The examples ----------------------------------------------------------------------------------


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
async def test_an_example_serves_its_dashboard(example: Path, site: Site) -> None:
    shutil.copy(example, site.folder)
    port = free_port()
    process = site.start(example.name, str(port), program=[sys.executable, "-W", "error::ResourceWarning"])
    browser = Browser(port)
    await asyncio.to_thread(browser.until_there, "/flowrra/", process)
    job = json.loads(await asyncio.to_thread(browser.post, "/reports/ann@example.com"))["job"]
    deadline = time.monotonic() + 20
    while (shown := await job_of(browser, job))["status"] != "success":
        assert time.monotonic() < deadline, shown
        await asyncio.sleep(0.05)
    assert shown["result"]["text"] == '"sent 3 pages to ann@example.com"'
    page = await asyncio.to_thread(browser.get, f"/flowrra/jobs/{job}/clone")
    (token,) = set(re.findall(r'name="token" value="([^"]+)"', page))
    clone = await asyncio.to_thread(
        browser.post, f"/flowrra/jobs/{job}/clone", token=token, args='["bob@example.com", 1]', kwargs="{}"
    )
    assert "bob@example.com" in clone
    process.send(signal.SIGINT)
    assert await process.ends() in (0, 130, -signal.SIGINT)
    assert "Traceback" not in process.log.replace("KeyboardInterrupt", ""), process.log


async def job_of(browser: Browser, job: str) -> Any:
    return json.loads(await asyncio.to_thread(browser.get, f"/flowrra/api/jobs/{job}"))
