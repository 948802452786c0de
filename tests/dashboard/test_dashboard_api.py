"""The JSON API: every operation, and the document that describes it."""

import datetime as dt
import re
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, assume, settings
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import positive_data_acceptance

from flowrra import BrokerConfig, Config, Flowrra, decode
from flowrra_extras.dashboard import create_asgi_app
from tests.support.dashboards import dashboard, finished, shop, with_token

RUN = {"task_name": "shop.greet", "args": ["Ann"], "kwargs": {"loud": True}}


@pytest.fixture
def app() -> Flowrra:
    app = shop()
    app.create_scheduler("memory://")
    return app


async def test_a_jobs_life_over_the_api(app: Flowrra) -> None:
    async with app, dashboard(app) as client:
        answer = await client.post("/api/run", json={**RUN, "priority": 3, "task_id": "mine"})
        assert (answer.status_code, answer.json()) == (201, {"id": "mine"})
        await finished(app, "mine")
        job = (await client.get("/api/jobs/mine")).json()
        assert (job["status"], job["result"]["text"], job["priority"]) == ("success", '"Hello, ANN"', 3)
        assert job["submitted"].endswith("+00:00")
        assert (await client.get("/api/jobs/mine/text/args")).text == '["Ann"]'
        assert (await client.post("/api/jobs/mine/requeue", json={})).status_code == 409
        cloned = (await client.post("/api/jobs/mine/clone", json={"args": ["Bob"]})).json()["id"]
        await finished(app, cloned)
        assert [job["id"] for job in (await client.get("/api/jobs?state=success")).json()["jobs"]] == [cloned, "mine"]
        answer = await client.post("/api/jobs/delete", json={"search": "state:success"})
        report = answer.json()
        assert set(report.pop("jobs")) == {cloned, "mine"}
        assert report == {"action": "delete", "done": 2, "refused": 0, "after": None}
        assert (await client.get("/api/jobs/mine")).status_code == 404


async def test_schedules_over_the_api(app: Flowrra) -> None:
    async with app, dashboard(app) as client:
        made: list[tuple[str, dict[str, Any]]] = [
            ("cron", {"cron": "0 9 * * mon-fri", "tz": "Europe/Riga"}),
            ("interval", {"interval": 300}),
            ("once", {"run_at": "2099-01-01T00:00:00Z"}),
        ]
        for kind, rule in made:
            answer = await client.post(
                f"/api/schedules/{kind}", json={"task_name": "shop.greet", "args": ["x"], **rule}
            )
            assert answer.status_code == 201, answer.text
            assert answer.json()["id"] == answer.json()["schedule_id"]
        listed = (await client.get("/api/schedules")).json()["schedules"]
        assert [row["kind"] for row in listed] == ["cron", "interval", "once"]
        path = f"/api/schedules/{listed[0]['id']}"
        shown = (await client.get(path)).json()
        assert (len(shown["next_fires"]), shown["tz"]) == (10, "Europe/Riga")
        assert "09:00" in shown["explanation"]
        assert (await client.put(f"{path}/disable", json={})).status_code == 200
        assert (await client.get(path)).json()["enabled"] is False
        assert (await client.put(f"{path}/enable", json={})).status_code == 200
        job_id = (await client.post(f"{path}/run", json={})).json()["id"]
        await finished(app, job_id)
        assert (await client.request("DELETE", path, json={})).status_code == 200
        assert (await client.get(path)).status_code == 404


async def test_a_task_that_nobody_knows_gets_neither_a_schedule_nor_a_job(app: Flowrra) -> None:
    async with app.client(), dashboard(app) as client:
        schedule = {"task_name": "shop.gret", "interval": 300}
        answer = await client.post("/api/schedules/interval", json=schedule)
        assert answer.status_code == 422, answer.text
        assert "did you mean 'shop.greet'?" in answer.text
        assert (await client.get("/api/schedules")).json()["schedules"] == []
        answer = await client.post("/api/run", json={"task_name": "shop.gret"})
        assert answer.status_code == 404, answer.text


async def test_arguments_of_a_schedule_get_the_types_of_the_annotations(app: Flowrra) -> None:
    @app.task(name="shop.remind")
    async def remind(at: dt.datetime, *, days: int = 0) -> None: ...

    async with app.client(), dashboard(app) as client:
        new = {"task_name": "shop.remind", "interval": 300, "args": ["2026-12-24T18:00Z"]}
        made = await client.post("/api/schedules/interval", json=new)
        path = f"/api/schedules/{made.json()['id']}"
        assert (await client.patch(path, json={"kwargs": {"days": 2}})).status_code == 200
        (schedule,) = await app.schedulers[0].list_scheduled_tasks()
        assert decode(schedule.payload) == [[dt.datetime(2026, 12, 24, 18, tzinfo=dt.UTC)], {"days": 2}]
        assert (await client.patch(path, json={"args": ["2026-12-25T18:00Z"]})).status_code == 200
        for answer in (
            await client.patch(path, json={"kwargs": {"days": "two"}}),
            await client.post("/api/schedules/interval", json=new | {"args": ["soon"]}),
        ):
            assert (answer.status_code, "is annotated" in answer.text) == (422, True)
        (schedule,) = await app.schedulers[0].list_scheduled_tasks()
        assert decode(schedule.payload) == [[dt.datetime(2026, 12, 25, 18, tzinfo=dt.UTC)], {"days": 2}]
        shown = (await client.get(path)).json()
        form = {**await with_token(client), "args": shown["args"]["text"], "kwargs": shown["kwargs"]["text"]}
        assert (await client.post(f"/schedules/{schedule.id}", data=form)).status_code == 303
        (again,) = await app.schedulers[0].list_scheduled_tasks()
        assert again.payload == schedule.payload


async def test_a_schedule_in_code_can_be_run_and_not_changed(app: Flowrra) -> None:
    app.every(3600)(app.registry["shop.wait"])
    (schedule_id,) = app.schedules
    async with app.client(), dashboard(app) as client:
        path = f"/api/schedules/{schedule_id}"
        assert (await client.get(path)).json()["in_code"] is True
        assert (await client.put(f"{path}/disable", json={})).status_code == 422
        assert (await client.request("DELETE", path, json={})).status_code == 422
        assert (await client.post(f"{path}/run", json={})).status_code == 201


async def test_health_is_503_when_nobody_works(app: Flowrra) -> None:
    async with dashboard(app) as client:
        answer = await client.get("/api/health")
        assert (answer.status_code, answer.json()["problems"]) == (503, ["no worker is alive"])
        async with app:
            assert (await client.get("/api/health")).status_code == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/run", {}),
        ("/api/run", {"task_name": 7}),
        ("/api/run", {"task_name": "shop.greet"}),
        ("/api/run", {"task_name": "shop.greet", "args": {"name": 1}}),
        ("/api/run", {**RUN, "colour": "red"}),
        ("/api/run", {**RUN, "priority": "high"}),
        ("/api/run", {**RUN, "run_at": "soon"}),
        ("/api/run", {**RUN, "queue": "a,b"}),
        ("/api/run", {**RUN, "task_id": "a\0b"}),
        ("/api/run", {**RUN, "queue": "a\0b"}),
        ("/api/jobs/cancel", {}),
        ("/api/jobs/cancel", {"ids": "x"}),
        ("/api/jobs/cancel", {"ids": [1]}),
        ("/api/jobs/cancel", {"search": "state:odd"}),
        ("/api/jobs/cancel", {"search": "", "limit": 3}),
        ("/api/queues/a,b/pause", {}),
        ("/api/schedules/cron", {"task_name": "shop.greet"}),
        ("/api/jobs/cancel", {"ids": ["a"], "search": ""}),
        ("/api/schedules/cron", {"task_name": "shop.greet", "cron": 7}),
        ("/api/schedules/cron", {"task_name": "shop.greet", "cron": "0 9 * * *"}),
        ("/api/schedules/cron", {"task_name": "x", "cron": "0 9 * * *", "tz": "Mars/Olympus"}),
        ("/api/schedules/interval", {"task_name": "x", "interval": -1}),
        ("/api/schedules/interval", {"task_name": "x", "interval": 1e300}),
        ("/api/schedules/once", {"task_name": "x", "run_at": "soon"}),
        ("/api/schedules/cron", {"task_name": "x", "cron": "0 9 * * *", "misfire": "never"}),
    ],
)
async def test_bad_input_is_refused_with_a_reason(app: Flowrra, path: str, body: Any) -> None:
    async with dashboard(app) as client:
        answer = await client.post(path, json=body)
        assert answer.status_code == 422, answer.text
        assert len(answer.json()["error"]) > 10


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b'{"a": NaN}',
        b'{"a": 1e999}',
        b'{"a": -1e999}',
        b'{"task_name": "shop.greet", "task_name": "shop.fail"}',
        b'{"task_name": "shop.greet", "kwargs": {"name": "a", "name": "b"}}',
        b"[" * 100_000,
        b'{"a": ' + b"9" * 5000,
        b"\xff",
    ],
)
async def test_a_body_that_cannot_be_read_is_refused(app: Flowrra, body: bytes) -> None:
    """Nor one that others may read in another way: a number too large for one, a key that stands twice."""
    async with dashboard(app) as client:
        headers = {"content-type": "application/json"}
        answer = await client.post("/api/run", content=body, headers=headers)
        assert answer.status_code == 400, answer.text
        assert "body" in answer.json()["error"]


async def test_a_text_that_cannot_be_written_is_refused(app: Flowrra) -> None:
    async with dashboard(app) as client:
        headers = {"content-type": "application/json"}
        body = b'{"task_name": "\\ud800"}'
        assert (await client.post("/api/run", content=body, headers=headers)).status_code == 422


@pytest.mark.parametrize("depth", [60, 500, 900, 20_000])
async def test_arguments_that_are_nested_too_deep_are_refused(app: Flowrra, depth: int) -> None:
    async with dashboard(app) as client:
        body = b'{"task_name": "shop.greet", "args": [' + b"[" * depth + b"]" * depth + b"]}"
        answer = await client.post("/api/run", content=body, headers={"content-type": "application/json"})
        assert answer.status_code in (201, 400, 422), answer.text
        for job in await app.jobs():
            assert (await client.get(f"/api/jobs/{job.id}")).status_code == 200
            assert (await client.get(f"/jobs/{job.id}")).status_code == 200


async def test_what_is_not_there_and_what_cannot_be_done(app: Flowrra) -> None:
    async with dashboard(app) as client:
        assert (await client.get("/api/nothing")).status_code == 404
        assert (await client.post("/api/jobs/none/cancel", json={})).status_code == 404
        answer = await client.delete("/api/jobs")
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
        answer = await client.head("/api/jobs")
        assert (answer.status_code, answer.content) == (200, b"")
        assert int(answer.headers["content-length"]) > 0


async def test_a_store_that_is_away_is_503() -> None:
    app = Flowrra(Config(broker=BrokerConfig(url="redis://127.0.0.1:1/0", timeout=0.1)))
    async with dashboard(app) as client:
        assert (await client.get("/api/stats")).status_code == 503


async def test_completion_and_preview(app: Flowrra) -> None:
    async with dashboard(app) as client:
        assert (await client.get("/api/complete?word=task:gr")).json() == {"words": ["task:shop.greet"]}
        shown = (
            await client.get("/api/preview", params={"kind": "cron", "rule": "0 9 * * *", "tz": "Asia/Tokyo"})
        ).json()
        assert (shown["problem"], len(shown["fires"])) == (None, 10)
        assert shown["fires"][0].endswith("00:00:00+00:00")
        for rule, kind in (("", "cron"), ("x", "interval"), ("x", "once"), ("5", "never"), ("1999-01-01", "once")):
            assert (await client.get("/api/preview", params={"kind": kind, "rule": rule})).json()["problem"], rule


# The document ----------------------------------------------------------------------------------


def test_every_route_of_the_api_is_described() -> None:
    routes = {(route.path.removeprefix("/api"), route.method.lower()) for route in create_asgi_app(shop()).board.routes
              if route.path.startswith("/api/")}  # fmt: skip
    paths = create_asgi_app(shop()).board.document("/api")["paths"]
    described = {(path, method) for path, operations in paths.items() for method in operations}
    assert described == routes


async def test_the_document_knows_where_it_is_mounted(app: Flowrra) -> None:
    async with dashboard(app) as client:
        document = (await client.get("/api/openapi.json")).json()
        assert document["servers"] == [{"url": "/api"}]
        assert set(re.findall(r'"#/components/schemas/(\w+)"', str(document).replace("'", '"'))) <= set(
            document["components"]["schemas"]
        )


def examined() -> Any:
    """The API of an app with schedules; every example meets what others have left."""
    app = shop()
    app.create_scheduler("memory://")
    return create_asgi_app(app, insecure=True)


schema = schemathesis.openapi.from_asgi("/api/openapi.json", examined())


GRAMMARS = ("search", "schedules", "queues")  # what has texts with a grammar of their own, which no schema tells


BULK_ACTIONS = {"cancel", "requeue", "delete"}  # as ids of jobs, their paths are those of the actions on many jobs


def examine(case: schemathesis.Case[Any]) -> None:
    assume(BULK_ACTIONS.isdisjoint(map(str, (case.path_parameters or {}).values())))
    is_free = any(word in f"{case.path} {case.query!r} {case.body!r}" for word in GRAMMARS)
    excluded: list[Any] = [positive_data_acceptance] if is_free else []
    if case.path == "/health":  # 503 is what it is for
        excluded.append(not_a_server_error)
    case.call_and_validate(excluded_checks=excluded)


def examination(method: str, path: str) -> Any:
    """A test of its own for each operation: of those that schemathesis makes of one, all have one id."""

    @schema.include(method=method, path=path).parametrize()
    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @pytest.mark.timeout(300)
    def test(case: schemathesis.Case[Any]) -> None:
        examine(case)

    return test


for _operation in schema.exclude(path="/events").get_all_operations():  # which goes on for as long as somebody looks
    assert isinstance(_operation, Ok)
    _method, _path = _operation.ok().method.upper(), _operation.ok().path
    globals()[f"test_{_method}_{_path}_is_as_its_document_says"] = examination(_method, _path)


def test_the_api_is_examined() -> None:
    assert len([name for name in globals() if name.endswith("_is_as_its_document_says")]) > 30
