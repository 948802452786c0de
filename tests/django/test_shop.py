"""The example project, from nothing: migrated, served by a worker, ordered from, looked at in the admin."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.django.test_backend import database
from tests.support.processes import ROOT, Process, Site, until
from tests.support.redis_server import free_port
from tests.support.services import POSTGRES_URL, in_postgres

pytestmark = pytest.mark.timeout(120)  # a dozen processes that load Django


class Shop:
    """The project in a folder of its own, with its database."""

    def __init__(self, site: Site, environment: Mapping[str, str]) -> None:
        self.site = site
        self.environment = {"PYTHONPATH": str(ROOT), **environment}
        shutil.copytree(ROOT / "examples" / "django_shop", site.folder, dirs_exist_ok=True)

    def begin(self, *words: str) -> Process:
        # From another folder: the processes that a command starts have to find the project all the same.
        return self.site.start(str(self.site.folder / "manage.py"), *words, env=self.environment)

    def manage(self, *words: str, stdin: str = "") -> str:
        command = [sys.executable, "-W", "error", "manage.py", *words]
        environment = {**os.environ, **self.environment}
        done = subprocess.run(
            command, cwd=self.site.folder, env=environment, input=stdin, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def shell(self, code: str) -> str:
        return self.manage("shell", "-v", "0", "-c", code).strip()


@pytest.fixture(params=["sqlite", "postgresql"])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    with database(request.param, tmp_path) as environment, Site(tmp_path) as site:
        if request.param == "postgresql":
            asyncio.run(in_postgres(POSTGRES_URL, f'CREATE DATABASE "{environment["DATABASE_NAME"]}"'))
        yield Shop(site, environment)
    if request.param == "postgresql":
        asyncio.run(in_postgres(POSTGRES_URL, f'DROP DATABASE "{environment["DATABASE_NAME"]}" WITH (FORCE)'))


def post(url: str, item: str) -> tuple[int, dict[str, str]]:
    data = urllib.parse.urlencode({"item": item}).encode()
    try:
        with urllib.request.urlopen(url, data) as response:  # noqa: S310 (our own server)
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


async def test_an_order_and_its_receipt_are_there_both_or_neither(shop: Shop) -> None:
    shop.manage("migrate", "-v", "0")
    assert shop.manage("check") == "System check identified no issues (0 silenced).\n"
    assert shop.manage("makemigrations", "--check", "--dry-run") == "No changes detected\n"
    worker = shop.begin("flowrra_worker", "--processes", "2", "--concurrency", "3")
    port = free_port()
    shop.begin("runserver", "--noreload", f"127.0.0.1:{port}")
    await worker.says("worker ready", times=2)
    assert worker.log.count("queues default:3") == 2
    await answers(f"http://127.0.0.1:{port}/")
    status, order = await asyncio.to_thread(post, f"http://127.0.0.1:{port}/order", "teapot")
    assert status == 200
    status, refused = await asyncio.to_thread(post, f"http://127.0.0.1:{port}/order", "spoon")
    assert (status, refused) == (409, {"error": "no spoon in stock"})
    ask = "from shop.models import Order; print([*Order.objects.values_list('item', 'receipt')])"
    await until(lambda: shop.shell(ask) == f"[('teapot', 'receipt {order['order']}: teapot')]", "the receipt")
    jobs = "from flowrra_extras.django import get_app; print([job.id for job in get_app().sync.jobs()])"
    assert shop.shell(jobs) == f"['{order['job']}']"


async def answers(url: str) -> None:
    def is_there() -> bool:
        try:
            urllib.request.urlopen(url).close()  # noqa: S310 (our own server)
        except urllib.error.HTTPError as error:
            error.close()  # an answer all the same
        except OSError:
            return False
        return True

    await until(lambda: asyncio.to_thread(is_there), f"an answer from {url}")


async def test_the_dashboard_is_served_on_its_own_too(shop: Shop) -> None:
    shop.manage("migrate", "-v", "0")
    shop.shell("from shop.tasks import send_receipt; send_receipt.enqueue(1)")
    dashboard = shop.begin("flowrra_dashboard", "--port", "0")
    line = (await dashboard.line()).decode()
    url = line.rpartition(" ")[2].strip()
    with await asyncio.to_thread(urllib.request.urlopen, f"{url}api/jobs") as response:
        (job,) = json.load(response)["jobs"]
    assert (job["task"], job["priority"]) == ("shop.tasks.send_receipt", -10)


async def test_a_wrong_word_and_a_wrong_backend_are_refused(shop: Shop) -> None:
    for words, message in (
        (("--proceses", "2"), "unrecognized arguments: --proceses"),
        (("--backend", "mail"), "'mail' is not an app in the module flowrra_extras.django.serve"),
    ):
        process = shop.begin("flowrra_worker", *words)
        assert await process.ends() == 2
        assert message in process.log


async def test_a_worker_starts_anew_when_a_source_file_changes(shop: Shop) -> None:
    shop.manage("migrate", "-v", "0")
    worker = shop.begin("flowrra_worker", "--reload")
    await worker.says("worker ready")
    tasks = shop.site.folder / "shop" / "tasks.py"
    tasks.write_text(tasks.read_text().replace("receipt {order.pk}", "bill {order.pk}"))
    await worker.says("worker ready", times=2)
