"""The JSON API: what each route reads from a request, asks of the service, and answers."""

from __future__ import annotations

import datetime as dt
import json
from typing import TYPE_CHECKING

from flowrra import ConfigError, FlowrraError
from flowrra_extras import metrics
from flowrra_extras.dashboard import openapi, search
from flowrra_extras.dashboard.web import Response

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flowrra_extras.dashboard import shapes
    from flowrra_extras.dashboard.access import Access
    from flowrra_extras.dashboard.service import Service
    from flowrra_extras.dashboard.web import Request


PATIENCE = 2.0  # seconds for which a search that has found nothing goes on: an empty answer is taken for "none"


def answer(value: object, status: int = 200) -> Response:
    """A JSON answer; moments in ISO 8601."""
    body = json.dumps(value, default=_plain, ensure_ascii=False).encode("utf-8", "replace")
    return Response(status, body, {"content-type": "application/json"})


def _plain(value: object) -> object:
    return value.isoformat() if isinstance(value, dt.datetime) else str(value)


def trouble(status: int, message: str) -> Response:
    """A JSON answer that says what is wrong."""
    return answer({"error": message}, status)


def number_in(parameters: Mapping[str, str], name: str, default: int) -> int:
    """A whole number from the query; ConfigError if it is none."""
    text = parameters.get(name, str(default))
    if not (text.isascii() and text.isdecimal() and len(text) <= 9):
        raise ConfigError(f"{name} must be a whole number, not {text[:40]!r}")
    return int(text)


class Api:
    """The handlers of the API: each is given the request, the visitor's access and the parts of the path."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._exporter = metrics.Exporter(service.app, service.tally)

    async def stats(self, request: Request, access: Access) -> Response:
        return answer(await self._service.overview())

    async def health(self, request: Request, access: Access) -> Response:
        """With `healthy` also where the store is away or the app has stopped: whoever probes reads no other word."""
        try:
            health: shapes.Health = await self._service.health()
        except FlowrraError as error:
            health = {"healthy": False, "problems": [str(error)], "workers": 0, "ready": 0, "lag": None}
        return answer(health, 200 if health["healthy"] else 503)

    async def tasks(self, request: Request, access: Access) -> Response:
        return answer({"tasks": await self._service.tasks()})

    async def task(self, request: Request, access: Access, name: str) -> Response:
        return answer(await self._service.task(name))

    async def jobs(self, request: Request, access: Access) -> Response:
        given = request.parameters
        words = search.written(state=given.get("state"), task=given.get("task"), queue=given.get("queue"))
        line, limit = f"{given.get('search', '')} {words}".strip(), number_in(given, "limit", 50)
        page = await self._service.jobs(line, after=given.get("after"), limit=limit, patience=PATIENCE)
        return answer(page, 422 if page["problems"] else 200)

    async def job(self, request: Request, access: Access, task_id: str) -> Response:
        return answer(await self._service.job(task_id))

    async def text(self, request: Request, access: Access, task_id: str, field: str) -> Response:
        whole = await self._service.text(task_id, field)
        return Response(200, whole.encode("utf-8", "replace"), {"content-type": "text/plain; charset=utf-8"})

    async def schedules(self, request: Request, access: Access) -> Response:
        return answer({"schedules": await self._service.schedules()})

    async def schedule(self, request: Request, access: Access, schedule_id: str) -> Response:
        return answer(await self._service.schedule(schedule_id))

    async def queues(self, request: Request, access: Access) -> Response:
        return answer({"queues": await self._service.queues()})

    async def workers(self, request: Request, access: Access) -> Response:
        return answer({"workers": await self._service.workers()})

    async def complete(self, request: Request, access: Access) -> Response:
        return answer({"words": await self._service.complete(request.parameters.get("word", "")[:200])})

    async def preview(self, request: Request, access: Access) -> Response:
        given = request.parameters
        kind, rule, tz = given.get("kind", "cron"), given.get("rule", ""), given.get("tz", "UTC")
        return answer(await self._service.preview(kind, rule, tz))

    async def metrics(self, request: Request, access: Access) -> Response:
        text = await self._exporter.text()
        return Response(200, text.encode("utf-8", "replace"), {"content-type": metrics.CONTENT_TYPE})

    async def openapi(self, request: Request, access: Access) -> Response:
        return answer(openapi.document(f"{request.root}/api"))
