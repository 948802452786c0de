"""The page of limits: their use, and keys that are paused and resumed."""

import pytest

from flowrra import Flowrra, Job, Limit
from tests.support.dashboards import dashboard, led_to, shop, with_token

KEY = "<b>customer</b>:42"


@pytest.fixture
def app() -> Flowrra:
    return shop()


async def push(app: Flowrra, *keys: str | None, limit: str = "smtp") -> list[str]:
    jobs = []
    for key in keys:
        job = Job(app.new_id(), "shop.greet", ("Ann",))
        job.limit, job.key = limit, key
        jobs.append(job)
    return await app.broker.push(jobs, now=app.now())


async def test_limits_show_their_use_and_the_key_for_which_the_most_jobs_wait(app: Flowrra) -> None:
    async with app.client(), dashboard(app) as client:
        assert "No limit is declared." in (await client.get("/limits")).text
        await app.broker.set_limit(Limit(name="smtp", concurrency=2, rate="100/s", burst=5, by="web-1"), now=app.now())
        (job, *_) = await push(app, KEY, KEY, KEY, KEY, "a", None)
        await push(app, "a", limit="other")
        await client.post("/api/queues/none/pause", json={})  # the figures are counted anew
        other, smtp = (await client.get("/api/limits")).json()["limits"]
        assert {name: smtp[name] for name in ("concurrency", "rate", "burst", "turn", "by")} == {
            "concurrency": 2, "rate": "100/s", "burst": 5, "turn": None, "by": "web-1",
        }  # fmt: skip
        assert (smtp["running"], smtp["ready"], smtp["waiting"], smtp["waiting_keys"]) == (0, 4, 2, 1)
        assert (smtp["longest_key"], smtp["longest"], smtp["paused"]) == (KEY, 2, [])
        assert (other["declared"], other["waiting"]) == (None, 1)
        page = (await client.get("/limits")).text
        assert "&lt;b&gt;customer&lt;/b&gt;:42" in page
        assert "not declared, so its jobs wait" in page
        page = (await client.get(f"/jobs/{job}")).text
        assert "&lt;b&gt;customer&lt;/b&gt;:42" in page
        found = (await client.get("/api/jobs", params={"search": f'limit:smtp key:"{KEY}"'})).json()["jobs"]
        assert len(found) == 4


async def test_a_key_is_paused_and_resumed(app: Flowrra) -> None:
    async with app.client(), dashboard(app) as client:
        fields = await with_token(client)
        await app.broker.set_limit(Limit(name="smtp", concurrency=1), now=app.now())
        await push(app, KEY, KEY, None)
        answer = await client.post("/limits/smtp/pause", data={**fields, "key": KEY})
        assert led_to(answer) == "/limits?notice=hold"
        page = (await client.get(answer.headers["location"])).text
        assert "The key is paused." in page
        assert 'action="/limits/smtp/resume"' in page
        assert (await client.get("/api/limits")).json()["limits"][0]["paused"] == [KEY]
        await client.post("/api/limits/smtp/pause", json={})
        assert (await client.get("/api/limits")).json()["limits"][0]["paused"] == ["", KEY]
        await client.post("/api/limits/smtp/resume", json={"key": KEY})
        assert (await client.get("/api/limits")).json()["limits"][0]["paused"] == [""]
        answer = await client.post("/api/limits/none/pause", json={"key": KEY})
        assert (answer.status_code, answer.json()["error"]) == (404, "there is no limit 'none'")
