"""An app with a few jobs for the dashboard's tests, and visitors that ask for its pages without a socket."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from flowrra import FINISHED, Flowrra, TaskStatus, current_job
from flowrra_extras.dashboard import create_asgi_app
from flowrra_extras.dashboard.app import Dashboard
from tests.support.apps import eventually, make_app
from tests.support.postgres_server import clean_schema
from tests.support.redis_server import clean
from tests.support.services import POSTGRES_URL, REDIS_URL, require

LOOPBACK = "127.0.0.1"


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
        self.overview, self.failures, self.health = overview.stats, board.failures.failures, board.health.health
        self.queues, self.workers, self._set_queue = board.health.queues, overview.workers, overview.set_queue
        self.verdict = board.health.verdict
        self.jobs, self.job, self.text, self.clone = jobs.jobs, jobs.job, jobs.text, jobs.clone
        self.complete, self.act, self._change = jobs.complete, jobs.act, jobs.change
        self.tasks, self.task, self.run = tasks.tasks, tasks.task, tasks.run
        self.schedules, self.schedule, self.preview = schedules.schedules, schedules.schedule, schedules.preview
        self.forget = board.store.forget

    async def cancel(self, ids: Sequence[str], *, by: str) -> Mapping[str, Any]:
        return await self._change("cancel", ids, by=by)

    async def requeue(self, ids: Sequence[str], *, by: str) -> Mapping[str, Any]:
        return await self._change("requeue", ids, by=by)

    async def delete(self, ids: Sequence[str], *, by: str) -> Mapping[str, Any]:
        return await self._change("delete", ids, by=by)

    async def pause(self, queue: str, *, by: str) -> None:
        await self._set_queue(queue, paused=True, by=by)

    async def resume(self, queue: str, *, by: str) -> None:
        await self._set_queue(queue, paused=False, by=by)


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
