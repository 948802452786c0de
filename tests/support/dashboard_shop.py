"""A shop whose jobs are looked at: its tasks, its store with jobs of every kind, a worker and a dashboard.

The tasks stand for themselves in the worker, and as stand-ins in the tests, which submit them.
"""

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import pytest

from flowrra import FINISHED, Flowrra, Job, Task, TaskStatus, current_job, result_of
from tests.support.browser import Browser
from tests.support.processes import Process, Site
from tests.support.redis_server import free_port

APP = """
from tests.support.dashboard_shop import register
register(app, HERE)
app.create_scheduler(f"sqlite:///{HERE}/schedules.db")
"""


class Tasks(NamedTuple):
    """The tasks of the shop."""

    greet: Task[[str, int], str]
    fail: Task[[str], None]
    climb: Task[[str], int]


def register(app: Flowrra, folder: Path) -> Tasks:
    """Give `app` the tasks; `climb` goes as far as the test has written into its file."""

    @app.task(name="shop.greet", max_retries=0)
    async def greet(name: str, times: int = 1) -> str:
        """Greet someone."""
        return f"Hello, {name}! " * times

    @app.task(name="shop.fail", max_retries=0, queue="mail")
    def fail(why: str) -> None:
        raise RuntimeError(f"it is broken: {why}")

    @app.task(name="shop.climb")
    def climb(name: str) -> int:
        step = -1
        while step < 4:
            file = folder / name
            step = int(file.read_text() or 0) if file.exists() else 0
            current_job().progress(step, 4, "climbing")
            time.sleep(0.01)
        return step

    return Tasks(greet, fail, climb)


class Shop:
    """A site with a worker and a dashboard. Tests submit through `app`, and look at the dashboard at `url`."""

    def __init__(self, folder: Path) -> None:
        self.site = Site(folder, APP)
        self.folder = folder
        self.app = Flowrra.from_urls(self.site.url)
        self.tasks = register(self.app, folder)

    def __enter__(self) -> Self:
        self.site.__enter__()
        return self

    def __exit__(self, *trouble: object) -> None:
        self.app.sync.close()
        self.site.__exit__(None, None, None)

    def serve(self, *options: str) -> str:
        """Start `python -m flowrra dashboard`; its address."""
        port = free_port()
        process = self.site.start("-m", "flowrra", "dashboard", "app:app", "--port", str(port), *options)
        return reachable(process, port)

    def program(self, arguments: Sequence[str], port: int, prefix: str = "") -> str:
        """Start a program that serves on that port; the address of its dashboard."""
        return reachable(self.site.start(*arguments), port) + prefix

    # Jobs ---------------------------------------------------------------------------------------

    def stock(self) -> None:
        """Put jobs of every kind into the store, and have those that can run have been run."""
        sync = self.app.sync
        sync.submit_many(self.tasks.greet, [(name, 1) for name in ("Ada", "Grace", "Edsger")])
        sync.submit_many(self.tasks.fail, [(why,) for why in ("rust", "rain")])
        top = sync.submit(self.tasks.climb, "top")
        sync.submit_many(self.tasks.greet.options(delay=3600, queue="long-" * 40 + "name"), [("w" * 300, 1)])
        sync.submit_many(self.tasks.greet.options(delay=3600, priority=3), [("later", 1)])
        sync.submit(self.tasks.greet, "after " + "x" * 6000, result_of(top))
        self.until(lambda: len(self.jobs(TaskStatus.FAILED)) == 2 and len(self.jobs(TaskStatus.SUCCESS)) == 3)

    def climb(self, name: str, step: int) -> None:
        """Let the job `climb(name)` go on to that step."""
        file = self.folder / f"{name}.new"
        file.write_text(str(step))
        file.rename(self.folder / name)

    def jobs(self, *states: TaskStatus) -> list[Job]:
        found = self.app.sync.jobs(limit=1000)
        return [job for job in found if not states or job.status in states]

    def job(self, job_id: str) -> Job:
        return next(job for job in self.jobs() if job.id == job_id)

    def finished(self, job_id: str) -> Job:
        """The job, once it has come to its end."""
        self.until(lambda: self.job(job_id).status in FINISHED)
        return self.job(job_id)

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something holds of the store."""
        deadline = time.monotonic() + 15
        while not condition():
            assert time.monotonic() < deadline, [(job.task, job.status) for job in self.jobs()]
            time.sleep(0.02)


def reachable(process: Process, port: int) -> str:
    """The address of a server, once it answers."""
    deadline = time.monotonic() + 20
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return f"http://127.0.0.1:{port}"
        except OSError:
            assert not process.is_over, process.log
            assert time.monotonic() < deadline, process.log
            time.sleep(0.02)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A shop with a worker and jobs of every kind. Tests share it, and act on jobs of their own only."""
    with Shop(tmp_path_factory.mktemp("shop")) as shop:
        shop.site.begin_worker("--queues", "default:10,mail:2")
        shop.stock()
        yield shop


@pytest.fixture(scope="module")
def dashboard(shop: Shop) -> str:
    """The dashboard of the shop, served alone by ASGI."""
    return shop.serve()


@pytest.fixture
def tab(browser: Browser, dashboard: str) -> Browser:
    """A tab that looks at it."""
    browser.base = dashboard
    return browser
