"""An app with a few jobs for the dashboard's tests, and visitors that ask for its pages without a socket."""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from flowrra import FINISHED, ConfigError, Flowrra, TaskStatus, current_job
from flowrra_extras.dashboard import Access, api_schema, create_asgi_app
from flowrra_extras.dashboard.app import Dashboard
from flowrra_extras.dashboard.http import Fields, Request
from tests.support.apps import eventually, make_app
from tests.support.postgres_server import clean_schema
from tests.support.redis_server import clean
from tests.support.services import POSTGRES_URL, REDIS_URL, require

LOOPBACK = "127.0.0.1"
NO_FIELDS = Fields({}, {}, is_form=False)


@contextlib.contextmanager
def store(broker: str, folder: Path) -> Any:
    """The URL of an empty store of that kind."""
    with contextlib.ExitStack() as stack:
        if broker == "redis":
            _, prefix = stack.enter_context(clean(require(REDIS_URL)))
            yield f"{REDIS_URL}?prefix={prefix}"
        elif broker == "postgresql":
            _, schema = stack.enter_context(clean_schema(require(POSTGRES_URL)))
            yield f"{POSTGRES_URL}?schema={schema}"
        else:
            yield "memory://" if broker == "memory" else f"sqlite:///{folder / 'jobs.db'}"


def shop(url: str = "memory://", **settings: Any) -> Flowrra:
    """An app with some tasks."""
    app = make_app(url, heartbeat=0.05, lease=2.0, **settings)

    @app.task(name="shop.greet")
    async def greet(name: str, *, loud: bool = False) -> str:
        """Say hello."""
        return f"Hello, {name.upper() if loud else name}"

    @app.task(name="shop.fail", max_retries=0, queue="mail")
    async def fail(reason: str, number: int = 0) -> None:
        raise ConnectionError(f"{reason} after {number} s")

    @app.task(name="shop.wait", max_retries=0)
    async def wait() -> None:
        current_job().progress(1, 4, "begun")
        await asyncio.Event().wait()

    return app


async def finished(app: Flowrra, *ids: str) -> None:
    """Wait until these jobs have ended."""

    async def all_are() -> bool:
        return all(job.status in FINISHED for job in [await app.get_job(task_id) for task_id in ids])

    await eventually(all_are, "the jobs end")


async def in_state(app: Flowrra, task_id: str, status: TaskStatus) -> None:
    """Wait until the job is in that state."""

    async def is_so() -> bool:
        return (await app.get_job(task_id)).status is status

    await eventually(is_so, f"{task_id} is {status}")


async def submitted(app: Flowrra, name: str, *args: Any, **kwargs: Any) -> str:
    """Submit a job of the task of that name."""
    return await app.submit(app.registry[name], *args, **kwargs)


class Service:
    """All that a dashboard tells and does, without a request."""

    def __init__(self, board: Dashboard) -> None:
        overview, jobs, tasks, schedules = board.overview, board.jobs, board.tasks, board.schedules
        self._board = board
        self.overview, self.failures, self.health = overview.stats, board.failures.failures, board.health.health
        self.queues, self.workers = board.health.queues, overview.workers
        self.verdict = board.health.verdict
        self.jobs, self.job = jobs.jobs, jobs.job
        self.complete, self.act, self._change = jobs.complete, jobs.act, jobs.change
        self.tasks, self.task = tasks.tasks, tasks.task
        self.schedules, self.schedule, self.preview = schedules.schedules, schedules.schedule, schedules.preview
        self.forget = board.store.forget

    async def cancel(self, ids: Sequence[str], *, by: str) -> Mapping[str, Any]:
        return await self._change("cancel", ids, by=by)

    async def requeue(self, ids: Sequence[str], *, by: str) -> Mapping[str, Any]:
        return await self._change("requeue", ids, by=by)

    async def delete(self, ids: Sequence[str], *, by: str) -> Mapping[str, Any]:
        return await self._change("delete", ids, by=by)

    async def pause(self, queue: str, *, by: str) -> None:
        await self._board.overview.sets_queue(paused=True)(NO_FIELDS, Access("full", by), queue)

    async def resume(self, queue: str, *, by: str) -> None:
        await self._board.overview.sets_queue(paused=False)(NO_FIELDS, Access("full", by), queue)

    async def text(self, task_id: str, field: str) -> str:
        return (await self._board.jobs.whole_text(Request("GET", "/"), Access("read"), task_id, field)).body.decode()

    async def clone(self, task_id: str, *, by: str, **arguments: str) -> Any:
        """Send the form that submits a copy of a job."""
        fields = Fields(arguments, {}, is_form=True)
        return (await self._board.jobs.clone_it(fields, Access("full", by), task_id)).path.rpartition("/")[2]

    async def run(
        self, task: str, args: str = "[]", kwargs: str = "{}", options: Mapping[str, Any] | None = None, *, by: str
    ) -> Any:
        """Send the JSON that runs a task."""
        values = {"args": json.loads(args), "kwargs": json.loads(kwargs), **(options or {})}
        if fault := api_schema.fault(values, api_schema.RUN_IT):
            raise ConfigError(fault)
        fields = Fields(values, {}, is_form=False)
        return (await self._board.tasks.run_it(fields, Access("full", by), task)).path.rpartition("/")[2]


@contextlib.asynccontextmanager
async def service_of(app: Flowrra, **options: Any) -> AsyncIterator[Service]:
    """The service of an app, closed at the end."""
    board = Dashboard(app, **options)
    try:
        yield Service(board)
    finally:
        await board.close()


@contextlib.asynccontextmanager
async def visitor(
    program: Any, *, client: str | None = LOOPBACK, host: str = "localhost", **headers: str
) -> AsyncIterator[httpx.AsyncClient]:
    """Someone who asks an ASGI program, from that address and for that host."""
    transport = httpx.ASGITransport(program, client=None if client is None else (client, 50_000))  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}", headers=headers) as found:
        yield found


@contextlib.asynccontextmanager
async def dashboard(app: Flowrra, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A visitor of this host at the dashboard of an app."""
    program = create_asgi_app(app, **options)
    async with visitor(program) as client:
        yield client
    await program.board.close()


async def with_token(client: httpx.AsyncClient, path: str = "/jobs") -> dict[str, str]:
    """The fields that every form of a page has, after a look at a page."""
    answer = await client.get(path)
    assert answer.status_code == 200, answer.text
    return {"token": client.cookies["flowrra_token"]}


def led_to(answer: httpx.Response) -> str:
    """Where the answer to a form leads to, without the notice's seal, its link and its way back."""
    return re.sub(r"\.[0-9a-f]{32}(&notice-.*)?$", "", answer.headers["location"])
