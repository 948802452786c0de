"""Five incidents as somebody on call meets them, each with a dashboard that shows it.

python -m tests.dashboard.incidents blocked_queue      # says where, and keeps it up until Ctrl-C
"""

import asyncio
import contextlib
import sqlite3
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import httpx

from flowrra import Flowrra, TaskStatus
from tests.support.dashboard_shop import reachable
from tests.support.processes import SHORT_LEASE, Site, stand_in
from tests.support.redis_server import Server, free_port

TASKS = """
@app.task(name="mail.send", queue="mail")
async def send(to):
    await asyncio.sleep(3600 if to.startswith("hangs") else 0)

@app.task(name="images.resize", queue="images")
def resize(path):
    os.kill(os.getpid(), signal.SIGKILL)

@app.task(name="oc.charge", queue="pay", max_retries=0)
async def charge(order):
    raise ConnectionError(f"card declined for order {order}")

@app.task(name="stock.sync", queue="stock", max_retries=0)
async def sync(shelf):
    raise TimeoutError(f"no answer for shelf {shelf}")

@app.task(name="reports.daily", queue="reports")
async def daily():
    pass
"""
T = TypeVar("T")

QUEUES = "mail:4,images:2,pay:4,stock:10,reports:1"
WAITED = 124.0  # seconds that the jobs are made to have waited


class Incident(NamedTuple):
    """Where its dashboard is, a part of the verdict, and of the page that the verdict leads to, which is the cause."""

    url: str
    verdict: str
    cause: str


@contextlib.contextmanager
def blocked_queue(folder: Path) -> Iterator[Incident]:
    """Four hung jobs fill the queue `mail`, and 150 wait."""
    with place(folder) as site:
        site.begin_worker("--queues", QUEUES)
        submit(site, "mail.send", "mail", [f"hangs{n}@example.com" for n in range(4)])
        until(lambda: count(site, TaskStatus.RUNNING) == 4)
        submit(site, "mail.send", "mail", [f"guest{n}@example.com" for n in range(150)])
        with sqlite3.connect(site.store, timeout=10) as store:  # as if it had begun so long ago
            store.execute("UPDATE flowrra_job SET submitted = submitted - ?, started = started - ?", (WAITED, WAITED))
        yield Incident(serve(site), "queue mail: 150 jobs wait, all 4 slots are taken", "hangs0@example.com")


@contextlib.contextmanager
def poison_job(folder: Path) -> Iterator[Incident]:
    """A job kills each worker that takes it, until it is given up; 25 payments fail in a flood of another error."""
    with place(folder, env=SHORT_LEASE) as site:
        submit(site, "images.resize", "images", ["bomb.png"])
        for _ in range(3):
            worker = site.begin_worker("--queues", QUEUES)
            until(lambda worker=worker: worker.is_over)  # type: ignore[misc]
        site.begin_worker("--queues", QUEUES)
        submit(site, "oc.charge", "pay", list(range(25)))
        submit(site, "stock.sync", "stock", list(range(1200)))
        until(lambda: count(site, TaskStatus.FAILED) == 1226)
        yield Incident(serve(site), "task images.resize: 1 job failed: killed its worker 3 times", "bomb.png")


@contextlib.contextmanager
def dead_worker(folder: Path) -> Iterator[Incident]:
    """The only worker is killed in the midst of its jobs."""
    with place(folder, env=SHORT_LEASE) as site:
        worker = site.begin_worker("--queues", QUEUES)
        submit(site, "mail.send", "mail", ["hangs@example.com"])
        until(lambda: count(site, TaskStatus.RUNNING) == 1)
        worker.popen.kill()
        submit(site, "mail.send", "mail", ["guest@example.com"])
        url = serve(site)
        until(lambda: not ask(site, lambda app: app.broker.workers()))
        yield Incident(url, "no worker is alive", "No worker is alive.")


@contextlib.contextmanager
def overdue_schedule(folder: Path) -> Iterator[Incident]:
    """A stored schedule is ten minutes late, since no scheduler runs."""
    with place(folder) as site:
        site.begin_worker("--queues", QUEUES)
        schedules = folder / "schedules.db"

        async def make() -> None:
            app = Flowrra.from_urls(site.url)
            stand_in(app, "reports.daily", queue="reports")
            scheduler = app.create_scheduler(f"sqlite:///{schedules}")
            async with app.client():
                await scheduler.schedule_cron("reports.daily", "0 9 * * *", task_id="daily")

        asyncio.run(make())
        with sqlite3.connect(schedules, timeout=10) as store:
            store.execute("UPDATE flowrra_schedule SET next_fire = datetime('now', '-600 seconds')")
        url = serve(site, "--schedules", f"sqlite:///{schedules}")
        yield Incident(url, "schedule of reports.daily: it is overdue", "0 9 * * *")


@contextlib.contextmanager
def store_away(folder: Path) -> Iterator[Incident]:
    """The Redis server of the jobs is gone."""
    with Server(folder / "redis") as server, place(folder, server.url) as site:
        site.begin_worker("--queues", QUEUES)
        submit(site, "mail.send", "mail", ["guest@example.com"])
        url = serve(site)
        httpx.get(f"{url}/api/queues", timeout=20).raise_for_status()  # it has begun
        server.kill()
        yield Incident(url, "The store does not answer", "Connection refused")


INCIDENTS: Mapping[str, Callable[[Path], contextlib.AbstractContextManager[Incident]]] = {
    "blocked queue": blocked_queue,
    "poison job": poison_job,
    "dead worker": dead_worker,
    "overdue schedule": overdue_schedule,
    "store away": store_away,
}


# What they are made with --------------------------------------------------------------------------


@contextlib.contextmanager
def place(folder: Path, url: str | None = None, *, env: Mapping[str, str] | None = None) -> Iterator[Site]:
    with Site(folder, TASKS, url=url, env=env) as site:
        yield site


def ask(site: Site, question: Callable[[Flowrra], Awaitable[T]]) -> T:
    """What the store says."""

    async def asked() -> T:
        async with site.client() as app:
            return await question(app)

    return asyncio.run(asked())


def submit(site: Site, name: str, queue: str, values: Sequence[object]) -> None:
    def many(app: Flowrra) -> Awaitable[object]:
        return app.submit_many(stand_in(app, name, queue=queue, max_retries=0), [(value,) for value in values])

    ask(site, many)


def count(site: Site, status: TaskStatus) -> int:
    async def counted(app: Flowrra) -> int:
        return sum(number for (_, state), number in (await app.broker.counts()).items() if state is status)

    return ask(site, counted)


def serve(site: Site, *options: str) -> str:
    """Start a dashboard on the store, as an operator would; its address."""
    port = free_port()
    process = site.start("-m", "flowrra", "dashboard", "app:app", "--port", str(port), *options)
    return reachable(process, port)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def main(name: str) -> None:
    with tempfile.TemporaryDirectory() as folder, INCIDENTS[name.replace("_", " ")](Path(folder)) as incident:
        print(f"{name}: {incident.url}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(86_400)


if __name__ == "__main__":
    main(sys.argv[1])
