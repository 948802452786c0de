"""The faces: ASGI and WSGI alone, and mounted in FastAPI, Flask, Quart and Django, each protected in its own way.

The frameworks are the real ones. Each is asked the same: pages at a prefix and behind a proxy, an action by form,
the API, static files, and whether its own means of protection stands before the dashboard.
"""

import asyncio
import contextlib
import gc
import re
import threading
import urllib.parse
from collections.abc import AsyncIterator, Callable
from typing import Any

import django
import fastapi
import flask
import httpx
import pytest
import quart
from django.conf import settings
from django.contrib.auth.decorators import login_required
from django.core.handlers.wsgi import WSGIHandler
from django.urls import include, path
from starlette.applications import Starlette
from starlette.routing import Mount

from flowrra import Flowrra, JobFilter, TaskStatus
from flowrra_extras.dashboard import app as dashboard_app
from flowrra_extras.dashboard import asgi, create_asgi_app, create_wsgi_app
from flowrra_extras.dashboard.app import Options
from flowrra_extras.dashboard.django import get_urls
from flowrra_extras.dashboard.fastapi import create_router
from flowrra_extras.dashboard.flask import create_blueprint as flask_blueprint
from flowrra_extras.dashboard.http import BODY_LIMIT, Response
from flowrra_extras.dashboard.live import Hub
from flowrra_extras.dashboard.quart import create_blueprint as quart_blueprint
from tests.support.apps import eventually
from tests.support.dashboards import LOOPBACK, in_state, shop, submitted

PREFIX = "/ops/flowrra"
KEY = {"X-Key": "sesame"}
OPEN: Options = {"auth": lambda request: "full"}


# The programs ----------------------------------------------------------------------------------


def with_fastapi(app: Flowrra, options: Options) -> Any:
    def check(request: fastapi.Request) -> None:
        if request.headers.get("x-key") != "sesame":
            raise fastapi.HTTPException(401)

    program = fastapi.FastAPI()
    program.include_router(create_router(app, **options), prefix=PREFIX, dependencies=[fastapi.Depends(check)])
    return program


def with_starlette(app: Flowrra, options: Options) -> Any:
    return Starlette(routes=[Mount(PREFIX, create_asgi_app(app, auth=_by_key if options else None))])


def _by_key(scope: Any) -> str:
    return "full" if (b"x-key", b"sesame") in scope["headers"] else "none"


def with_flask(app: Flowrra, options: Options) -> Any:
    blueprint = flask_blueprint(app, **options)

    @blueprint.before_request
    def check() -> None:
        if flask.request.headers.get("X-Key") != "sesame":
            flask.abort(401)

    program = flask.Flask(__name__)
    program.register_blueprint(blueprint, url_prefix=PREFIX)
    return program


def with_quart(app: Flowrra, options: Options) -> Any:
    blueprint = quart_blueprint(app, **options)

    @blueprint.before_request
    async def check() -> None:
        if quart.request.headers.get("X-Key") != "sesame":
            quart.abort(401)

    program = quart.Quart(__name__)
    program.register_blueprint(blueprint, url_prefix=PREFIX)
    return program


class _Authenticate:
    """Says who a request comes from, as Django's own middleware does from a session."""

    def __init__(self, get_response: Callable[[Any], Any]) -> None:
        self._get_response = get_response

    def __call__(self, request: Any) -> Any:
        known = request.headers.get("X-Key") == "sesame"
        request.user = type("User", (), {"is_authenticated": known})()
        return self._get_response(request)


if not settings.configured:
    settings.configure(
        ALLOWED_HOSTS=["*"],
        MIDDLEWARE=["django.middleware.csrf.CsrfViewMiddleware", f"{__name__}._Authenticate"],
        SECRET_KEY="for tests",  # noqa: S106
        INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes"],
        LOGIN_URL="/login",
        ROOT_URLCONF=None,
    )
    django.setup()


def with_django(app: Flowrra, options: Options) -> Any:
    urls = get_urls(app, decorator=login_required, **options)
    module = type("Urls", (), {"urlpatterns": [path(f"{PREFIX[1:]}/", include(urls))]})
    handler = WSGIHandler()

    def program(environ: Any, start_response: Any) -> Any:
        settings.ROOT_URLCONF = module
        return handler(environ, start_response)

    return program


ASGI = {"fastapi": with_fastapi, "quart": with_quart, "starlette": with_starlette}
WSGI = {"flask": with_flask, "django": with_django}


@contextlib.asynccontextmanager
async def asking(program: Any, *, wsgi: bool, root: str = "", **headers: str) -> AsyncIterator["Asking"]:
    """Someone on this host who asks a program, behind a proxy that takes the prefix `root` off."""
    if wsgi:
        transport: Any = httpx.WSGITransport(_as_servers_ask(program, root), remote_addr=LOOPBACK)
        with httpx.Client(transport=transport, base_url="http://localhost", headers=headers) as client:
            yield Asking(client)
    else:
        transport = httpx.ASGITransport(program, client=(LOOPBACK, 5), root_path=root)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as client:
            yield Asking(client)


def _as_servers_ask(program: Any, root: str) -> Any:
    """httpx hands paths over as text and whole; servers, as bytes in the shape of Latin-1 without the mount point."""

    def asked(environ: dict[str, Any], start_response: Any) -> Any:
        path = environ["PATH_INFO"].removeprefix(root).encode().decode("latin-1")
        return program({**environ, "SCRIPT_NAME": root, "PATH_INFO": path}, start_response)

    return asked


class Asking:
    """One way to ask, whether it takes a thread or not."""

    def __init__(self, client: Any) -> None:
        self.client = client

    async def __call__(self, method: str, path: str, **options: Any) -> httpx.Response:
        if isinstance(self.client, httpx.Client):
            found: httpx.Response = await asyncio.to_thread(self.client.request, method, path, **options)
        else:
            found = await self.client.request(method, path, **options)
        return found


# What all of them do ---------------------------------------------------------------------------


@pytest.fixture(params=[*ASGI, *WSGI])
def framework(request: pytest.FixtureRequest) -> tuple[Callable[[Flowrra, Options], Any], bool]:
    return {**ASGI, **WSGI}[request.param], request.param in WSGI


@pytest.mark.parametrize("root", ["", "/behind/proxy"])
async def test_mounted_at_a_prefix(framework: Any, root: str) -> None:
    make, wsgi = framework
    app, home = shop(), root + PREFIX
    async with app, asking(make(app, OPEN), wsgi=wsgi, root=root, **KEY) as ask:
        running = await submitted(app, "shop.wait")
        await in_state(app, running, TaskStatus.RUNNING)
        pages = ["/", "/failures", "/jobs", f"/jobs/{running}", "/tasks/shop.greet", "/schedules", "/workers"]
        for page in pages:
            answer = await ask("GET", home + page)
            assert answer.status_code == 200, (page, answer.text)
            links = re.findall(r'(?:href|src|action)="(/[^"]*)"', answer.text)
            assert links
            assert all(link.startswith(f"{home}/") for link in links), (page, links)
        for file in re.findall(r'"(/[^"]*/static/[^"]*)"', answer.text):
            assert (await ask("GET", file)).status_code == 200, file
        token = ask.client.cookies["flowrra_token"]
        answer = await ask("POST", f"{home}/jobs/{running}/cancel", data={"token": token})
        assert answer.status_code == 303, answer.text
        assert answer.headers["location"] == f"{home}/jobs/{running}?notice=cancel.1.0"
        await in_state(app, running, TaskStatus.CANCELLED)
        answer = await ask("POST", f"{home}/api/run", json={"task_name": "shop.greet", "args": ["Ann"]})
        assert answer.status_code == 201
        answer = await ask("HEAD", f"{home}/jobs")
        assert (answer.content, int(answer.headers["content-length"]) > 1_000) == (b"", True)
        answer = await ask("GET", f"{home}/api/openapi.json")
        assert answer.json()["servers"] == [{"url": f"{home}/api"}]


async def test_its_own_protection_stands_before_the_dashboard(framework: Any) -> None:
    make, wsgi = framework
    app = shop()
    async with app.client(), asking(make(app, OPEN), wsgi=wsgi) as ask:
        for method, page in (("GET", "/"), ("GET", "/api/stats"), ("POST", "/api/queues/default/pause")):
            answer = await ask(method, PREFIX + page, json={})
            assert answer.status_code in (401, 403, 302), page
        assert await app.broker.paused() == set()


async def test_an_action_is_defended_from_other_sites(framework: Any) -> None:
    make, wsgi = framework
    app = shop()
    async with app.client(), asking(make(app, OPEN), wsgi=wsgi, **KEY) as ask:
        page = f"{PREFIX}/queues/default/pause"
        assert (await ask("POST", page, data={})).status_code == 403
        assert (await ask("POST", page, json={}, headers={"Sec-Fetch-Site": "cross-site"})).status_code == 403
        assert await app.broker.paused() == set()


def _reading_flask(app: Flowrra, way: str) -> Any:
    blueprint = flask_blueprint(app)
    ways: dict[str, Callable[[], object]] = {
        "form": lambda: flask.request.form,
        "json": lambda: flask.request.get_json(silent=True),
        "bytes": lambda: flask.request.get_data(),
    }

    @blueprint.before_request
    def read() -> None:
        ways[way]()

    program = flask.Flask(__name__)
    program.register_blueprint(blueprint, url_prefix=PREFIX)
    return program


def _reading_fastapi(app: Flowrra, way: str) -> Any:
    async def read(request: fastapi.Request) -> None:
        await request.body()

    program = fastapi.FastAPI()
    program.include_router(create_router(app), prefix=PREFIX, dependencies=[fastapi.Depends(read)])
    return program


@pytest.mark.parametrize("way", ["form", "json", "bytes"])
@pytest.mark.parametrize(("make", "wsgi"), [(_reading_flask, True), (_reading_fastapi, False)])
async def test_what_stands_before_it_may_read_the_body(make: Any, wsgi: bool, way: str) -> None:
    app = shop()
    async with app.client(), asking(make(app, way), wsgi=wsgi) as ask:
        await ask("GET", f"{PREFIX}/jobs")
        fields = {"token": ask.client.cookies["flowrra_token"], "search": "é & ü"}
        assert (await ask("POST", f"{PREFIX}/jobs/cancel", data=fields)).status_code == 303
        answer = await ask("POST", f"{PREFIX}/api/run", json={"task_name": "shop.greet", "args": ["é"]})
        assert answer.status_code == 201, answer.text
        too_long = await ask("POST", f"{PREFIX}/api/run", json={"task_name": "x" * BODY_LIMIT})
        assert too_long.status_code == 413, too_long.text


async def test_without_auth_this_host_only(framework: Any) -> None:
    make, wsgi = framework
    app = shop()
    async with app.client(), asking(make(app, {}), wsgi=wsgi, **KEY) as ask:
        assert (await ask("GET", f"{PREFIX}/")).status_code == 200
        assert (await ask("GET", f"{PREFIX}/", headers={"X-Forwarded-For": "8.8.8.8"})).status_code == 403
        assert (await ask("GET", f"{PREFIX}/", headers={"Host": "evil.example"})).status_code == 403


@pytest.mark.parametrize(
    "path",
    ["/jobs/none", "/no/such/page", "/static/../service.py", "/static/%2e%2e/service.py", "/tasks/a%20b%2Fc", "/api/x"],
)
async def test_what_is_not_there_is_404(framework: Any, path: str) -> None:
    make, wsgi = framework
    app = shop()
    async with app.client(), asking(make(app, OPEN), wsgi=wsgi, **KEY) as ask:
        assert (await ask("GET", PREFIX + path)).status_code == 404


async def test_ids_of_any_kind_are_found(framework: Any) -> None:
    make, wsgi = framework
    app = shop()
    async with app.client(), asking(make(app, OPEN), wsgi=wsgi, **KEY) as ask:
        for name in ("a/b c?d=e&f%41#g", "schedule@2026-11-25T12:00:00Z", "naïve ✓"):
            await app.registry["shop.greet"].options(task_id=name).submit("Ann")
            page = (await ask("GET", f"{PREFIX}/jobs")).text
            (link,) = [link for link in re.findall(r'href="([^"]*/jobs/[^"]*)"', page) if link.endswith(_end(name))]
            answer = await ask("GET", link)
            assert answer.status_code == 200, (name, link)


def _end(name: str) -> str:
    return urllib.parse.quote(name, safe="")


@pytest.mark.parametrize("name", ["fastapi", "quart", "flask", "django"])
async def test_auth_is_given_the_frameworks_request(name: str) -> None:
    make, wsgi = {**ASGI, **WSGI}[name], name in WSGI
    seen: list[str] = []

    def auth(request: Any) -> str:
        seen.append(type(request).__module__.partition(".")[0])
        return "read"

    app = shop()
    async with app.client(), asking(make(app, {"auth": auth}), wsgi=wsgi, **KEY) as ask:
        assert (await ask("GET", f"{PREFIX}/")).status_code == 200
        assert (await ask("POST", f"{PREFIX}/api/queues/x/pause", json={})).status_code == 403
    assert set(seen) == {{"fastapi": "starlette", "flask": "werkzeug", "quart": "werkzeug"}.get(name, name)}


# Alone -----------------------------------------------------------------------------------------


async def test_a_wsgi_program_opens_the_app_by_itself() -> None:
    app = shop()
    async with asking(create_wsgi_app(app), wsgi=True) as ask:
        answer = await ask("POST", "/api/run", json={"task_name": "shop.greet", "args": ["Ann"]})
        assert answer.status_code == 201
        assert (await ask("GET", f"/api/jobs/{answer.json()['id']}")).json()["status"] == "pending"
        assert (await ask("GET", "/events")).status_code == 404
        assert (await ask("GET", "/")).text.count('data-live="poll"') == 1
    await asyncio.to_thread(app.sync.close)


@pytest.mark.parametrize("auth", [lambda environ: "read", None])
async def test_a_wsgi_program_asks_auth_in_the_servers_thread(auth: Any) -> None:
    threads: list[str] = []

    async def later(environ: Any) -> str:
        return "full"

    def asked(environ: Any) -> Any:
        threads.append(threading.current_thread().name)
        return auth(environ) if auth else later(environ)

    app = shop()
    async with app.client(), asking(create_wsgi_app(app, auth=asked), wsgi=True) as ask:
        assert (await ask("GET", "/")).status_code == 200
        assert (await ask("POST", "/api/queues/x/pause", json={})).status_code == (403 if auth else 200)
    assert not [name for name in threads if name.startswith("flowrra")]


async def test_the_lifespan_opens_and_closes_the_stores() -> None:
    app, said = shop(), asyncio.Queue[dict[str, Any]]()
    program = create_asgi_app(app)
    heard = asyncio.Queue[dict[str, Any]]()
    life = asyncio.create_task(program({"type": "lifespan"}, heard.get, said.put))  # type: ignore[arg-type]
    await heard.put({"type": "lifespan.startup"})
    assert (await said.get())["type"] == "lifespan.startup.complete"
    assert app.sessions.open_here() is not None
    await heard.put({"type": "lifespan.shutdown"})
    assert (await said.get())["type"] == "lifespan.shutdown.complete"
    await life
    assert app.sessions.open_here() is None


@pytest.mark.parametrize("name", ASGI)
async def test_a_stream_that_nobody_reads_any_more_leaves_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hubs: list[Hub] = []

    class Noted(Hub):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            hubs.append(self)

    monkeypatch.setattr(dashboard_app, "Hub", Noted)
    app, left, pieces = shop(), asyncio.Event(), asyncio.Queue[dict[str, Any]]()
    program = ASGI[name](app, OPEN)
    asked = iter([{"type": "http.request", "body": b""}])

    async def receive() -> dict[str, Any]:
        for message in asked:
            return message
        await left.wait()
        return {"type": "http.disconnect"}

    scope = {
        "type": "http", "http_version": "1.1", "asgi": {"version": "3.0"}, "method": "GET", "scheme": "http",
        "path": f"{PREFIX}/events", "raw_path": f"{PREFIX}/events".encode(), "query_string": b"view=/jobs",
        "root_path": "", "headers": [(b"host", b"localhost"), (b"x-key", b"sesame")], "client": (LOOPBACK, 1),
    }  # fmt: skip
    async with app.client():
        answering = asyncio.create_task(program(scope, receive, pieces.put))
        assert (await pieces.get())["status"] == 200
        while b"event: main" not in (await pieces.get()).get("body", b""):
            pass
        assert [hub.tabs for hub in hubs] == [1]
        left.set()
        await answering
        await eventually(lambda: [hub.tabs for hub in hubs] == [0])
        await hubs[0].close()


async def test_a_client_that_takes_nothing_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi, "PATIENCE", 0.01)
    closed = asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"news"
        finally:
            closed.set()

    async def send(message: Any) -> None:
        if message.get("body") == b"news":
            await asyncio.Event().wait()

    async def receive() -> Any:
        await asyncio.Event().wait()

    await asyncio.wait_for(asgi.respond(Response(stream=pieces()), receive, send), 20)
    assert closed.is_set()


async def test_a_websocket_is_refused() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await create_asgi_app(shop())({"type": "websocket"}, send, send)  # type: ignore[arg-type]
    assert sent == [{"type": "websocket.close", "code": 1000}]


def test_what_is_still_being_counted_ends_with_app_sync(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = shop()
    ended = threading.Event()

    async def count_for_ever(*_: Any) -> Any:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    monkeypatch.setattr(app.broker, "counts", count_for_ever)
    store = create_wsgi_app(app).board.store
    assert app.sync.run(store.number(JobFilter(task="shop.greet"))) is None
    assert not ended.is_set()
    app.sync.close()
    assert ended.is_set()
    gc.collect()
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("asked", "left"), [("/jobs", "/jobs"), ("/job/s", "/s"), ("/job", "/"), ("/job/", "/")], ids=str
)
def test_a_prefix_is_taken_off_as_a_whole(asked: str, left: str) -> None:
    request = asgi.request_from({"method": "GET", "path": asked, "root_path": "/job", "headers": []})
    assert (request.root, request.path) == ("/job", left)
