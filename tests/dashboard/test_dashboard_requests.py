"""Odd requests, the same through every framework: methods, slashes, values, encodings, and who may look from where."""

import asyncio
import json
from collections.abc import Callable
from typing import Any, get_type_hints

import pytest

from flowrra import Flowrra, JobFilter, ScheduleOptions, StoredOptions, SubmitOptions, TaskStatus
from flowrra_extras.dashboard import api_schema, create_asgi_app
from flowrra_extras.dashboard.auth import Access, stranger
from flowrra_extras.dashboard.html import VIEWS, View
from flowrra_extras.dashboard.http import BODY_LIMIT, Request
from flowrra_extras.dashboard.live import Hub
from tests.dashboard.test_dashboard_faces import ASGI, KEY, OPEN, PREFIX, WSGI, asking
from tests.dashboard.test_dashboard_live import Board, opened
from tests.support.dashboards import dashboard, finished, shop, submitted, visitor

ELSEWHERE = "203.0.113.9"
EVIL = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}
LINK = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}


@pytest.fixture
def app() -> Flowrra:
    return shop()


@pytest.fixture(params=[*ASGI, *WSGI])
def framework(request: pytest.FixtureRequest) -> tuple[Callable[..., Any], bool]:
    return {**ASGI, **WSGI}[request.param], request.param in WSGI


def an_example(path: str) -> str:
    """The path of a route with something in the place of its parts."""
    for part in ("task_id", "name", "schedule_id", "field"):
        path = path.replace(f"{{{part}}}", "mail")
    return path


# Methods, slashes and values --------------------------------------------------------------------


async def test_every_route_says_which_methods_it_has(app: Flowrra, framework: Any) -> None:
    make, wsgi = framework
    by_path: dict[str, set[str]] = {}
    for route in create_asgi_app(app).board.routes:
        by_path.setdefault(route.path, set()).add(route.method)
    async with app.client(), asking(make(app, OPEN), wsgi=wsgi, **KEY) as ask:
        for path, methods in by_path.items():
            expected = methods | {"OPTIONS"} | ({"HEAD"} if "GET" in methods else set())
            url = PREFIX + an_example(path)
            answer = await ask("OPTIONS", url)
            assert answer.status_code == 204, (path, answer.text)
            assert set(answer.headers["allow"].split(", ")) == expected, path
            assert not any(name.startswith("access-control") for name in answer.headers)
            for method in {"GET", "POST", "PUT", "PATCH", "DELETE"} - methods:
                answer = await ask(method, url, json={})
                assert answer.status_code == 405, (method, path)
                assert set(answer.headers["allow"].split(", ")) == expected, (method, path)


async def test_head_is_answered_as_get_without_a_body(app: Flowrra, framework: Any) -> None:
    make, wsgi = framework
    async with app.client(), asking(make(app, OPEN), wsgi=wsgi, **KEY) as ask:
        for path in {route.path for route in create_asgi_app(app).board.routes if route.method == "GET"}:
            if not path.endswith("/events"):
                url = PREFIX + an_example(path)
                head, whole = await ask("HEAD", url), await ask("GET", url)
                assert (head.status_code, head.content) == (whole.status_code, b""), path
                assert head.headers.get("content-type") == whole.headers.get("content-type"), path


async def test_a_slash_at_the_end_changes_nothing(app: Flowrra, framework: Any) -> None:
    make, wsgi = framework
    async with app, asking(make(app, OPEN), wsgi=wsgi, **KEY) as ask:
        job = await submitted(app, "shop.greet", "Ann")
        odd = await app.registry["shop.greet"].options(task_id="ends in/").submit("Ann")
        await finished(app, job, odd)
        for path in ("/jobs", "/tasks/shop.greet", f"/jobs/{job}", "/api/stats", f"/api/jobs/{job}", "/metrics"):
            assert (await ask("GET", f"{PREFIX}{path}/")).status_code == 200, path
        assert (await ask("GET", f"{PREFIX}/api/jobs/ends%20in/")).json()["id"] == odd
        for path, body in (
            ("/api/run", {"task_name": "shop.greet", "args": ["x"]}),
            ("/api/jobs/cancel", {"ids": ["x"]}),
        ):
            assert (await ask("POST", f"{PREFIX}{path}/", json=body)).status_code in (200, 201), path
        assert (await ask("POST", f"{PREFIX}/api/queues/mail/pause/", json={})).status_code == 200
        assert await app.broker.paused() == {"mail"}
        assert (await ask("GET", f"{PREFIX}/api/nothing/")).status_code == 404


@pytest.mark.parametrize(
    "query",
    [
        "limit=-1", "limit=0", "limit=501", "limit=1e3", "limit=abc", "limit=", "limit=%C2%B2", f"limit={'9' * 50}",
        "after=abc", "after=-1", "after=1.5", "after=%00", "after=%F0%9F%98%80", f"after={'9' * 400}",
        "state=odd", "state=", "search=" + "x" * 5_000, "search=%00", "search=%22", "state=failed,odd",
    ],
)  # fmt: skip
async def test_absurd_values_are_refused_with_a_reason(app: Flowrra, query: str) -> None:
    async with dashboard(app) as client:
        answer = await client.get(f"/api/jobs?{query}")
        assert answer.status_code == 422, answer.text
        said = answer.json()
        assert said.get("problems") or len(said["error"]) > 10


@pytest.mark.parametrize("after", ["0", "1", str(2**52), "9" * 18])
async def test_any_place_may_be_gone_on_from(app: Flowrra, after: str) -> None:
    async with app.client(), dashboard(app) as client:
        await submitted(app, "shop.greet", "Ann")
        answer = await client.get(f"/api/jobs?after={after}")
        assert (answer.status_code, answer.json()["complete"]) == (200, True)


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "x-odd"])
async def test_a_compressed_body_is_refused(app: Flowrra, encoding: str) -> None:
    async with dashboard(app) as client:
        headers = {"content-type": "application/json", "content-encoding": encoding}
        answer = await client.post("/api/run", content=b"{}", headers=headers)
        assert (answer.status_code, encoding in answer.json()["error"]) == (415, True)


@pytest.mark.parametrize(
    "accepted", ["gzip;q=0", "br", "*;q=0", "identity", "gzip ; Q=0.000", "gzip, deflate", "\xff", ""]
)
async def test_what_a_visitor_cannot_unpack_is_not_packed(app: Flowrra, accepted: str) -> None:
    async with dashboard(app) as client:
        answer = await client.get("/api/openapi.json", headers={b"accept-encoding": accepted.encode("latin-1")})
        assert answer.status_code == 200
        assert ("content-encoding" in answer.headers) is (accepted == "gzip, deflate")


async def test_health_says_so_when_the_app_has_stopped(app: Flowrra) -> None:
    async with dashboard(app) as client:
        async with app:
            assert (await client.get("/api/health")).json()["healthy"] is True
        await app.stop()
        answer = await client.get("/api/health")
        assert (answer.status_code, answer.json()["healthy"]) == (503, False)
        assert answer.json()["problems"]


async def test_health_says_so_when_the_store_is_away() -> None:
    app = Flowrra.from_urls("redis://127.0.0.1:1/0")
    app.config.broker.timeout = 0.1
    async with dashboard(app) as client:
        answer = await client.get("/api/health")
        assert (answer.status_code, answer.json()["healthy"]) == (503, False)
        assert "redis://127.0.0.1:1" in answer.json()["problems"][0]


# Options and schedules --------------------------------------------------------------------------


def test_every_option_of_a_job_is_one_of_the_api() -> None:
    options = set(get_type_hints(SubmitOptions))
    for schema in (api_schema.RUN, api_schema.RUN_IT):
        assert set(schema["properties"]) - {"task_name", "args", "kwargs"} == options
    assert set(api_schema.SCHEDULE["cron"]["properties"]) - {"task_name", "args", "kwargs", "cron"} == set(
        get_type_hints(StoredOptions)
    )
    changed = set(api_schema.CHANGE["properties"]) - {"args", "kwargs", "cron", "interval", "run_at", "tz"}
    assert changed == set(get_type_hints(ScheduleOptions))


async def test_every_option_is_taken(app: Flowrra) -> None:
    given: dict[str, Any] = {
        "priority": 3, "queue": "mail", "delay": 60, "expires": 3_600, "unique": "k", "task_id": "mine", "timeout": 5.5,
        "max_retries": 7, "retry_delay": 2, "backoff": 1.5, "max_delay": 9, "jitter": True, "result_ttl": 10,
    }  # fmt: skip
    async with app.client(), dashboard(app) as client:
        answer = await client.post("/api/run", json={"task_name": "shop.greet", "args": ["Ann"], **given})
        assert answer.status_code == 201, answer.text
        job = await app.get_job("mine")
        assert (job.priority, job.queue, job.unique) == (3, "mail", "k")
        assert job.overrides == {name: given[name] for name in (
            "timeout", "max_retries", "retry_delay", "backoff", "max_delay", "jitter", "result_ttl")}  # fmt: skip
        assert (job.due, job.expires) == pytest.approx((job.submitted + 60, job.submitted + 3_600), abs=1.0)
        moments = {"run_at": "2099-01-01T00:00:00Z", "expires": "2099-01-02T00:00:00Z"}
        answer = await client.post("/api/tasks/shop.greet/run", json={"args": ["Ann"], **moments})
        later = await app.get_job(answer.json()["id"])
        assert (later.expires or 0) - (later.due or 0) == 86_400


@pytest.mark.parametrize(
    ("asked", "meant"), [("shop.great", "shop.greet"), ("greet", "shop.greet"), ("no such thing", None)]
)
async def test_an_unknown_task_is_refused_with_the_nearest_one(app: Flowrra, asked: str, meant: str | None) -> None:
    async with app.client(), dashboard(app) as client:
        for path, body in (("/api/run", {"task_name": asked}), (f"/api/tasks/{asked}/run", {})):
            answer = await client.post(path, json=body)
            assert answer.status_code == 404
            assert (f"did you mean {meant!r}?" in answer.json()["error"]) is (meant is not None)
        assert await app.broker.counts() == {}


async def test_a_schedule_is_changed_by_json(app: Flowrra) -> None:
    app.create_scheduler("memory://")
    async with app.client(), dashboard(app) as client:
        body = {"task_name": "shop.greet", "cron": "0 9 * * *", "args": ["x"]}
        path = f"/api/schedules/{(await client.post('/api/schedules/cron', json=body)).json()['id']}"
        change = {"cron": "30 8 * * *", "tz": "Europe/Riga", "args": ["y"], "enabled": False, "priority": 4}
        answer = await client.patch(path, json={**change, "description": "earlier"})
        assert answer.status_code == 200, answer.text
        row = (await client.get(path)).json()
        shown = {name: row[name] for name in ("rule", "tz", "enabled", "description", "options")}
        assert shown == {
            "rule": "30 8 * * *", "tz": "Europe/Riga", "enabled": False, "description": "earlier",
            "options": {"priority": 4},
        }  # fmt: skip
        assert json.loads(row["args"]["text"]) == ["y"]
        for wrong in (
            {"interval": 5},
            {"cron": "0 0 * * *", "interval": 5},
            {"cron": "x"},
            {"colour": 1},
            {"cron": None},
        ):
            assert (await client.patch(path, json=wrong)).status_code == 422, wrong
        assert (await client.patch("/api/schedules/none", json={})).status_code == 404
        assert (await client.get(path)).json() == row


# Who may look, and from where -------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        EVIL,
        EVIL | {"sec-fetch-site": "same-site"},
        EVIL | {"sec-fetch-mode": "cors", "sec-fetch-dest": "empty"},
        LINK | {"sec-fetch-dest": "iframe"},
        {"sec-fetch-site": "cross-site"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
    ],
)
async def test_another_site_may_not_look(app: Flowrra, framework: Any, headers: dict[str, str]) -> None:
    make, wsgi = framework
    async with app.client(), asking(make(app, OPEN), wsgi=wsgi, **KEY) as ask:
        for path in ("/", "/events", "/api/stats", "/metrics", "/api/jobs"):
            for method in ("GET", "HEAD"):
                answer = await ask(method, PREFIX + path, headers=headers)
                assert answer.status_code == 403, (path, method)


@pytest.mark.parametrize("headers", [LINK, {"sec-fetch-site": "none"}, {"sec-fetch-site": "same-origin"}, {}])
async def test_our_own_pages_and_links_may(app: Flowrra, framework: Any, headers: dict[str, str]) -> None:
    make, wsgi = framework
    async with app.client(), asking(make(app, OPEN), wsgi=wsgi, **KEY) as ask:
        for path in ("/", "/jobs", "/api/stats"):
            assert (await ask("GET", PREFIX + path, headers=headers)).status_code == 200, path


@pytest.mark.parametrize(
    "header",
    ["CF-Connecting-IP", "True-Client-IP", "X-Client-IP", "X-Cluster-Client-IP", "Fastly-Client-IP", "X-Forwarded",
     "Forwarded-For", "X-Original-Forwarded-For", "Client-IP", "X-Envoy-External-Address", "CF-Connecting-IPv6"],
)  # fmt: skip
async def test_the_marks_of_proxies_are_known(app: Flowrra, header: str) -> None:
    request = Request("GET", "/", headers={"host": "localhost", header.lower(): ELSEWHERE}, client="127.0.0.1")
    assert header.lower() in (stranger(request) or "")
    async with visitor(create_asgi_app(app), **{header: ELSEWHERE}) as client:
        assert (await client.get("/api/stats")).status_code == 403


@pytest.mark.parametrize(
    ("visit", "method", "path", "length", "status"),
    [
        ({"client": ELSEWHERE}, "POST", "/api/run", 900_000, 403),
        ({"client": ELSEWHERE}, "GET", "/", 900_000, 403),
        ({"client": ELSEWHERE}, "POST", "/no/such/page", 900_000, 403),
        ({"host": "evil.example"}, "POST", "/api/run", 900_000, 403),
        (EVIL, "POST", "/api/run", 900_000, 403),
        ({}, "POST", "/api/run", BODY_LIMIT + 1, 413),
        ({}, "PUT", "/api/run", 900_000, 405),
        ({}, "POST", "/no/such/page", 900_000, 404),
    ],
)
async def test_a_body_is_not_read_before_its_head_is_judged(
    app: Flowrra, visit: dict[str, str], method: str, path: str, length: int, status: int
) -> None:
    program = create_asgi_app(app)
    headers = {"host": "localhost", "content-type": "application/json", "content-length": str(length), **visit}
    client = headers.pop("client", "127.0.0.1")
    scope = {
        "type": "http", "method": method, "path": path, "query_string": b"", "client": (client, 5), "scheme": "http",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }  # fmt: skip
    sent: list[Any] = []

    async def receive() -> Any:
        raise AssertionError("the body is read")

    async def send(message: Any) -> None:
        sent.append(message)

    async with app.client():
        await program(scope, receive, send)
    assert sent[0]["status"] == status


async def test_a_body_that_does_not_come_is_not_waited_for(app: Flowrra, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowrra_extras.dashboard.asgi.PATIENCE", 0.01)
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/api/run", "headers": headers, "client": ("127.0.0.1", 5)}
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    async with app.client():
        await create_asgi_app(app)(scope, receive, send)
    assert sent[0]["status"] == 408
    assert (b"x-frame-options", b"DENY") in sent[0]["headers"]


async def test_no_visitor_takes_all_the_places() -> None:
    async with opened(Board()) as hub:
        held = [hub.follow(View("", f"/jobs/{number}", "", can_act=True), "", "eve") for number in range(VIEWS // 2)]
        await asyncio.gather(*map(anext, held))
        assert await status(hub, "eve", "/jobs/more") == 503
        assert await status(hub, "eve", "/jobs/1") == 200
        assert await status(hub, "ada", "/jobs/more") == 200
        await held[0].aclose()
        assert await status(hub, "eve", "/jobs/more") == 200


async def status(hub: Hub, who: str, view: str) -> int:
    request = Request("GET", "/events", query=f"view={view}", streams=True)
    return (await hub.answer(request, Access("full", who, "token"))).status


async def test_looking_leaves_the_jobs_alone(app: Flowrra) -> None:
    """OPTIONS and HEAD neither, on the paths of actions."""
    async with app.client(), dashboard(app) as client:
        job = await submitted(app, "shop.greet", "Ann")
        for method in ("OPTIONS", "HEAD", "GET"):
            for action in ("cancel", "delete", "requeue"):
                await client.request(method, f"/api/jobs/{job}/{action}")
        (left,) = await app.broker.find(JobFilter())
        assert (left.id, left.status) == (job, TaskStatus.PENDING)
