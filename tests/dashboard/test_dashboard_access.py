"""Who gets in and what they may do: every promise of safety, and the holes that other dashboards had."""

import html
import logging
import re
from typing import Any

import httpx
import pytest

from flowrra import ConfigError, Flowrra
from flowrra_extras.dashboard import Access, create_asgi_app
from flowrra_extras.dashboard.app import Act, Look
from flowrra_extras.dashboard.auth import HEADERS, Door, host_name, is_loopback
from flowrra_extras.dashboard.http import BODY_LIMIT
from tests.support.dashboards import dashboard, finished, led_to, shop, submitted, visitor, with_token

ELSEWHERE = "203.0.113.9"


@pytest.fixture
def app() -> Flowrra:
    return shop()


async def status_of(program: Any, path: str = "/", **visit: Any) -> int:
    async with visitor(program, **visit) as client:
        return (await client.get(path)).status_code


def ways_to_send(fields: dict[str, str]) -> list[dict[str, Any]]:
    """An action as JSON, and as a form with these fields."""
    return [{"json": {}}, {"data": fields}]


# Who gets in -----------------------------------------------------------------------------------


@pytest.mark.parametrize("client", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize("host", ["localhost", "localhost:8420", "127.0.0.1:8420", "[::1]:8420", "LOCALHOST"])
async def test_without_auth_this_host_is_let_in(app: Flowrra, client: str, host: str) -> None:
    assert await status_of(create_asgi_app(app), client=client, host=host) == 200


@pytest.mark.parametrize(
    ("visit", "reason"),
    [
        ({"client": ELSEWHERE}, "this request comes from 203.0.113.9"),
        ({"client": None}, "an unknown address"),
        ({"client": "testclient"}, "this request comes from testclient"),
        ({"host": "evil.example"}, "this request is for the host 'evil.example'"),
        ({"host": "localhost.evil.example"}, "this request is for the host"),
        ({"host": "127.0.0.1.evil.example"}, "this request is for the host"),
        ({"X-Forwarded-For": "203.0.113.9"}, "through a proxy"),
        ({"Forwarded": "for=203.0.113.9"}, "through a proxy"),
        ({"X-Real-IP": "127.0.0.1"}, "through a proxy"),
        ({"X-Forwarded-Proto": "https"}, "through a proxy"),
    ],
)
@pytest.mark.parametrize("path", ["/", "/jobs", "/api/stats", "/metrics", "/api/openapi.json", "/no-such-page"])
async def test_without_auth_others_are_told_what_to_do(
    app: Flowrra, visit: dict[str, Any], reason: str, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with visitor(create_asgi_app(app), **visit) as client:
        answer = await client.get(path)
    assert answer.status_code == 403
    said = html.unescape(answer.text)
    assert reason in said
    assert "auth=" in said
    assert "insecure=True" in said
    assert "refused" in caplog.text


async def test_insecure_lets_everybody_in(app: Flowrra) -> None:
    assert await status_of(create_asgi_app(app, insecure=True), client=ELSEWHERE, host="shop.example") == 200


@pytest.mark.parametrize(
    ("answer", "reads", "acts"),
    [
        ("none", 403, 403),
        (None, 403, 403),
        (False, 403, 403),
        (Access("none"), 403, 403),
        ("read", 200, 403),
        (Access("read", who="ann"), 200, 403),
        ("full", 200, 200),
        (True, 200, 200),
        (Access("full", who="ann"), 200, 200),
    ],
)
@pytest.mark.parametrize("style", ["plain", "async", "awaitable", "object"])
async def test_auth_decides(app: Flowrra, answer: Any, reads: int, acts: int, style: str) -> None:
    async def asynchronously(request: Any) -> Any:
        return answer

    class Callable:
        async def __call__(self, request: Any) -> Any:
            return answer

    ways: dict[str, Any] = {
        "plain": lambda request: answer,
        "async": asynchronously,
        "awaitable": lambda request: asynchronously(request),
        "object": Callable(),
    }
    async with visitor(create_asgi_app(app, auth=ways[style]), client=ELSEWHERE, host="shop.example") as client:
        assert (await client.get("/api/stats")).status_code == reads
        assert (await client.post("/api/queues/default/pause", json={})).status_code == acts


@pytest.mark.parametrize("answer", ["everything", 7, ["full"], "FULL", lambda: Access("admin")])  # type: ignore[arg-type]
async def test_an_answer_of_auth_that_is_none_lets_nobody_in(app: Flowrra, answer: Any) -> None:
    program = create_asgi_app(app, auth=lambda request: answer() if callable(answer) else answer)
    with pytest.raises(ConfigError, match="auth= must return"):
        await status_of(program)


def test_who_acts_is_a_text() -> None:
    with pytest.raises(ConfigError, match="who= of an Access must be a text"):
        Access("full", who=42)  # type: ignore[arg-type]


def test_auth_and_insecure_exclude_each_other(app: Flowrra) -> None:
    with pytest.raises(ConfigError, match="not both"):
        create_asgi_app(app, auth=lambda request: True, insecure=True)
    with pytest.raises(ConfigError, match="must be a function"):
        Door("secret")  # type: ignore[arg-type]


async def test_whoever_acts_is_named_on_the_job(app: Flowrra) -> None:
    async with app.client():
        task_id = await submitted(app, "shop.greet", "Ann")
        async with dashboard(app, auth=lambda request: Access("full", who="ann@example.com")) as client:
            assert (await client.post(f"/api/jobs/{task_id}/cancel", json={})).status_code == 200
        assert [attempt.worker for attempt in (await app.get_job(task_id)).attempts] == ["ann@example.com"]


def test_hosts_and_addresses_are_read_strictly() -> None:
    assert [host_name(host) for host in ("[::1]:80", "[::1]", "a:80", "A", "", "::1")] == [
        "::1",
        "::1",
        "a",
        "a",
        "",
        "::1",
    ]
    assert not any(map(is_loopback, ("", "localhost", "0.0.0.0", "::", "127.0.0.1.example", "::ffff:8.8.8.8")))  # noqa: S104


# Read-only -------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"auth": lambda request: "read"}, {"read_only": True}])
async def test_read_only_is_enforced_for_every_action(app: Flowrra, options: dict[str, Any]) -> None:
    """Flower hid the buttons and let the requests through."""
    program = create_asgi_app(app, **options)
    acting = [route for route in program.board.routes if route.method != "GET"]
    assert len(acting) > 20
    async with visitor(program) as client:
        fields = await with_token(client)
        for route in acting:
            path = re.sub(r"\{\w+\}", "x", route.path)
            for how in ways_to_send(fields):
                answer = await client.request(route.method, path, **how)
                assert answer.status_code == 403, (route.method, path)
                assert "you cannot change anything" in answer.text


async def test_every_route_that_is_no_get_is_for_those_who_may_act(app: Flowrra) -> None:
    for route in create_asgi_app(app).board.routes:
        assert isinstance(route.entry, Look if route.method == "GET" else Act)


async def test_looking_changes_nothing(app: Flowrra) -> None:
    """A GET, as an image on another site could send it, acts on no path of an action."""
    program = create_asgi_app(app)
    async with app.client(), visitor(program) as client:
        task_id = await submitted(app, "shop.greet", "Ann")
        for route in program.board.routes:
            if route.method != "GET":
                await client.get(re.sub(r"\{\w+\}", task_id, route.path))
        assert (await app.get_job(task_id)).status == "pending"
        assert await app.broker.paused() == set()


# Requests from other sites ---------------------------------------------------------------------


CROSSING = [
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"sec-fetch-site": "none"},
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"origin": "http://localhost.evil.example"},
    {"origin": "http://localhost:9999"},
]


@pytest.mark.parametrize("headers", CROSSING)
async def test_other_sites_cannot_act(app: Flowrra, headers: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    async with app.client(), dashboard(app) as client:
        fields = await with_token(client)
        for how in ways_to_send(fields):
            answer = await client.post("/queues/mail/pause", headers=headers, **how)
            assert answer.status_code == 403
        assert await app.broker.paused() == set()
        assert "refused 'POST' '/queues/mail/pause'" in caplog.text


@pytest.mark.parametrize("headers", [{"sec-fetch-site": "same-origin"}, {"origin": "http://localhost"}, {}])
async def test_our_own_pages_can(app: Flowrra, headers: dict[str, str]) -> None:
    async with app.client(), dashboard(app) as client:
        fields = await with_token(client)
        assert (await client.post("/queues/mail/pause", data=fields, headers=headers)).status_code == 303
        assert (await client.post("/queues/post/pause", json={}, headers=headers)).status_code == 200
        assert await app.broker.paused() == {"mail", "post"}


async def test_a_proxy_that_changes_the_host_is_told_what_to_do(app: Flowrra) -> None:
    """Browsers say Sec-Fetch-Site by HTTPS and on the loopback only: on a plain network the host is all there is."""
    headers = {"origin": "http://jobs.example", "host": "10.0.0.7:8000"}
    async with visitor(create_asgi_app(app, insecure=True), **headers) as client:
        answer = await client.post("/api/queues/mail/pause", json={})
        assert answer.status_code == 403
        assert "Origin is 'http://jobs.example', but its Host is '10.0.0.7:8000'" in answer.json()["error"]
        assert "proxy_set_header Host $http_host" in answer.json()["error"]
        assert (
            await client.post("/api/queues/mail/pause", json={}, headers={"host": "jobs.example"})
        ).status_code == 200


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", None),
        (b"ids=x", "application/x-www-form-urlencoded"),
        (b"{}", "text/plain"),
        (b"{}", "application/json-seq"),
        (b"{}", "text/plain; application/json"),
        (b"token=", "application/x-www-form-urlencoded"),
        (b"token=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "application/x-www-form-urlencoded"),
        (b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n--x--', "multipart/form-data; boundary=x"),
    ],
)
async def test_an_action_needs_json_or_the_token(app: Flowrra, body: bytes, kind: str | None) -> None:
    """Another site can send forms and plain text, with the visitor's cookies even; it knows no token."""
    async with app.client(), dashboard(app) as client:
        await with_token(client)
        headers = {} if kind is None else {"content-type": kind}
        answer = await client.post("/api/queues/mail/pause", content=body, headers=headers)
        assert answer.status_code in (400, 403, 422), answer.text
        assert await app.broker.paused() == set()


async def test_the_token_is_bound_to_the_cookie(app: Flowrra) -> None:
    async with app.client(), dashboard(app) as client:
        fields = await with_token(client)
        client.cookies.clear()
        assert (await client.post("/queues/mail/pause", data=fields)).status_code == 403
        client.cookies.set("flowrra_token", "short")
        assert (await client.post("/queues/mail/pause", data={"token": "short"})).status_code == 403


async def test_the_tokens_cookie_stays_with_the_dashboard(app: Flowrra) -> None:
    async with visitor(create_asgi_app(app)) as client:
        cookie = (await client.get("/")).headers["set-cookie"]
        assert re.fullmatch(r"flowrra_token=[\w-]{32}; Path=/; HttpOnly; SameSite=Lax", cookie)
        assert "set-cookie" not in (await client.get("/")).headers


async def test_a_form_leads_to_pages_of_ours_only(app: Flowrra) -> None:
    async with app.client(), dashboard(app) as client:
        fields = await with_token(client)
        hostile = [
            "//evil.example",
            "https://evil.example",
            "/\\evil.example",
            "/x\r\nSet-Cookie: a=b",
            "javascript:1",
            "",
        ]
        for back in hostile:
            answer = await client.post("/queues/mail/pause", data={**fields, "back": back})
            assert led_to(answer) == "/?notice=pause", back
            assert "set-cookie" not in answer.headers
        answer = await client.post("/queues/mail/pause", data={**fields, "back": "/jobs?search=a"})
        assert led_to(answer) == "/jobs?search=a&notice=pause"


# What every answer says ------------------------------------------------------------------------


async def test_every_answer_has_the_headers_of_safety(app: Flowrra) -> None:
    async with app.client(), dashboard(app) as client:
        for path in ("/", "/jobs", "/jobs/none", "/no-such-page", "/api/stats", "/api/nothing", "/metrics"):
            answer = await client.get(path)
            for name, value in HEADERS.items():
                assert answer.headers[name] == value, (path, name)
        policy = HEADERS["content-security-policy"]
        assert policy.startswith("default-src 'none';")
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy


async def test_pages_hold_nothing_inline_and_ask_no_other_host(app: Flowrra) -> None:
    async with app, dashboard(app) as client:
        failed = await submitted(app, "shop.fail", "no answer")
        await finished(app, failed)
        for path in ("/", "/failures", "/jobs", f"/jobs/{failed}", "/tasks/shop.greet", "/schedules", "/workers"):
            page = (await client.get(path)).text
            assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|javascript:", page), path
            assert not re.search(r"""(?:src|href|action)=["'](?:https?:)?//""", page), path


MARKUP = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>{{7*7}}"


async def test_markup_in_every_field_is_shown_as_text() -> None:
    app = shop()

    @app.task(name=f"evil.{MARKUP}", max_retries=0, queue=MARKUP.replace(":", "").replace(",", ""))
    async def evil(text: str = MARKUP) -> None:
        raise RuntimeError(MARKUP)

    evil.function.__doc__ = MARKUP
    async with app, dashboard(app) as client:
        scheduler = app.create_scheduler("memory://")
        schedule = await scheduler.schedule_cron(evil, "0 0 * * *", [MARKUP], description=MARKUP, task_id=MARKUP)
        options = evil.options(unique=MARKUP, task_id=f"id{MARKUP}".replace("/", "|"))
        task_id = await options.submit(MARKUP)
        await finished(app, task_id)
        await app.broker.requeue([task_id], now=app.now(), by=MARKUP)
        await finished(app, task_id)
        assert (await app.get_job(task_id)).error == f"RuntimeError: {MARKUP}"
        for path in (
            *("/", "/failures", "/jobs", "/tasks", "/schedules", "/workers", f"/jobs?search={MARKUP}"),
            *(f"/jobs/{_quoted(task_id)}", f"/jobs/{_quoted(task_id)}/clone", f"/tasks/{_quoted(evil.name)}"),
            *(f"/schedules/{_quoted(schedule)}", f"/schedules/new?kind={MARKUP}&rule={MARKUP}", f"/{MARKUP}"),
            *(f"/jobs?notice={MARKUP}", f"/jobs/{MARKUP}", f"/jobs?task={MARKUP}&state={MARKUP}&after={MARKUP}"),
        ):
            answer = await client.get(path)
            assert answer.status_code in (200, 404, 422), (path, answer.text)
            assert answer.headers["content-type"] == "text/html; charset=utf-8"
            assert "<script>" not in answer.text, path
            assert "<img" not in answer.text, path
            assert "49" not in re.findall(r"alert\(1\)&gt;(\d\d)", answer.text), path


def _quoted(text: str) -> str:
    return httpx.QueryParams({"x": text}).__str__()[2:].replace("+", "%20")


# Files and sizes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/static/../service.py",
        "/static/..%2fservice.py",
        "/static/%2e%2e/service.py",
        "/static//etc/passwd",
        "/static/app.css/../../access.py",
        "/static/x/../app.css",
        "/static/..\\service.py",
        "/static/app.css%00.js",
        "/static/",
        "/static/service.py",
    ],
)
async def test_no_other_file_can_be_had(app: Flowrra, path: str) -> None:
    """arq's and rq's dashboards, and saq's under aiohttp, once served what a path led to."""
    async with dashboard(app) as client:
        answer = await client.get(httpx.URL("http://localhost", raw_path=path.encode()))
        assert answer.status_code == 404
        assert "import" not in answer.text


async def test_the_pages_files_can_be_had_and_kept(app: Flowrra) -> None:
    async with dashboard(app) as client:
        page = (await client.get("/")).text
        files = re.findall(r'(?:href|src)="(/static/[^"]+)"', page)
        assert len(files) == 2
        for path in files:
            answer = await client.get(path)
            assert answer.status_code == 200
            assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
            stale = await client.get(re.sub(r"[0-9a-f]{12}", "0" * 12, path))
            assert stale.headers["cache-control"] == "no-store"


async def test_a_request_has_a_bounded_size(app: Flowrra) -> None:
    async with dashboard(app) as client:
        answer = await client.post("/api/run", json={"task_name": "x" * BODY_LIMIT})
        assert answer.status_code == 413
        ids = {"ids": ["x"] * 1_001}
        assert (await client.post("/api/jobs/cancel", json=ids)).status_code == 422
        assert (await client.get("/jobs?" + "&".join(f"a{n}=1" for n in range(200)))).status_code == 422


@pytest.mark.parametrize("rule", ["0 0 30 2 *", "* " * 300, "1-59/0 * * * *", "9" * 400])
async def test_a_cron_without_end_is_refused(app: Flowrra, rule: str) -> None:
    async with dashboard(app) as client:
        app.create_scheduler("memory://")
        shown = (await client.get("/api/preview", params={"kind": "cron", "rule": rule})).json()
        assert shown["problem"]
        answer = await client.post("/api/schedules/cron", json={"task_name": "shop.greet", "cron": rule})
        assert answer.status_code == 422
        assert await app.schedulers[0].list_scheduled_tasks() == []


async def test_what_fails_inside_is_logged_and_not_shown(
    app: Flowrra, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = create_asgi_app(app)

    async def fail(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(app, "connect", fail)
    with caplog.at_level(logging.ERROR):
        async with visitor(program) as client:
            answer = await client.get("/api/stats")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "secret detail" in caplog.text
