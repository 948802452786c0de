"""What forms do: they lead back to a page with a word on what was done, or are shown again to be put right."""

import dataclasses
import html
import inspect
import re
from typing import Any, get_type_hints

import pytest

from flowrra import ConfigError, Flowrra, StoredOptions, SubmitOptions, TaskStatus, current_job
from flowrra_extras.dashboard import jobs
from flowrra_extras.dashboard.tasks import call_from
from tests.support.apps import eventually, explains, within
from tests.support.dashboards import dashboard, finished, in_state, led_to, shop, submitted, with_token


@pytest.fixture
def app() -> Flowrra:
    app = shop()
    app.create_scheduler("memory://")
    return app


async def test_jobs_are_changed_one_by_one_and_together(app: Flowrra) -> None:
    async with app.client(), dashboard(app) as client:
        fields = await with_token(client)
        ids = [await submitted(app, "shop.greet", str(n)) for n in range(3)]
        answer = await client.post(f"/jobs/{ids[0]}/cancel", data=fields)
        assert (answer.status_code, led_to(answer)) == (303, f"/jobs/{ids[0]}?notice=cancel.1.0")
        assert "Cancelled 1 job" in (await client.get(answer.headers["location"])).text
        answer = await client.post(f"/jobs/{ids[0]}/cancel", data=fields)
        assert led_to(answer) == f"/jobs/{ids[0]}?notice=cancel.0.1"
        answer = await client.post(
            "/jobs/cancel", data={**fields, "ids": ids, "sure": "3", "back": "/jobs?search=state:pending"}
        )
        assert led_to(answer) == "/jobs?search=state:pending&notice=cancel.2.1"
        answer = await client.post("/jobs/requeue", data={**fields, "search": "state:cancelled"})
        assert led_to(answer) == "/jobs?notice=requeue.3.0"
        answer = await client.post(f"/jobs/{ids[1]}/delete", data=fields)
        assert led_to(answer) == f"/jobs/{ids[1]}?notice=delete.0.1"
        await client.post("/jobs/cancel", data={**fields, "search": ""})
        answer = await client.post(f"/jobs/{ids[1]}/delete", data=fields)
        assert led_to(answer) == "/jobs?notice=delete.1.0"
        assert (await client.post("/jobs/cancel", data=fields)).status_code == 422
        assert (await client.post("/jobs/none/cancel", data=fields)).status_code == 404


async def test_what_is_too_much_for_one_go_goes_on(app: Flowrra, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "ACTION_BATCH", 2)
    monkeypatch.setattr(jobs, "ACTION_SECONDS", 0.0)
    async with app.client(), dashboard(app) as client:
        fields = await with_token(client)
        for number in range(3):
            await submitted(app, "shop.greet", str(number))
        form = {**fields, "search": "state:pending", "back": "/jobs?search=state:pending"}
        answer = await client.post("/jobs/cancel", data=form)
        page = (await client.get(answer.headers["location"])).text
        assert "Cancelled 2 jobs. More jobs are left." in page
        (after,) = re.findall(r'name="after" value="(\d+)"', page)
        answer = await client.post("/jobs/cancel", data={**form, "after": after})
        assert led_to(answer).endswith("notice=cancel.1.0")


def asked(page: str) -> dict[str, str]:
    """The fields of the form that acts on many jobs."""
    found = dict(re.findall(r'type="hidden" name="(search|counted)" value="([^"]*)"', page))
    return {name: html.unescape(value) for name, value in found.items()}


@pytest.mark.parametrize("path", ["/jobs?search=state:failed", "/failures"])
async def test_what_fails_after_the_page_was_read_is_left_alone(app: Flowrra, path: str) -> None:
    async with app, dashboard(app) as client:
        fields = await with_token(client)
        before = [await submitted(app, "shop.fail", "rain", number) for number in range(3)]
        later = await submitted(app, "shop.wait")  # it was there already
        await in_state(app, later, TaskStatus.RUNNING)
        await finished(app, *before)
        page = ""

        async def shows_all() -> bool:  # figures may be of a moment ago
            nonlocal page
            page = (await client.get(path)).text
            return bool(re.search(r"Requeue 3 (shop\.fail|jobs)\?", page))

        await eventually(shows_all, "the failures are counted")
        after = await submitted(app, "shop.fail", "rain", 4)
        await app.cancel(later)
        await finished(app, after, later)
        await app.broker.set_queue("mail", paused=True)
        await app.broker.delete(before[:1])
        answer = await client.post("/jobs/requeue", data={**fields, **asked(page)})
        assert led_to(answer) == "/jobs?notice=requeue.2.1"  # of the three, one was gone
        assert {job.id for job in await app.jobs(status=TaskStatus.PENDING)} == set(before[1:])


async def test_what_comes_after_the_page_was_read_is_left_alone(app: Flowrra) -> None:
    async with app.client(), dashboard(app) as client:
        fields = await with_token(client)
        before = [await submitted(app, "shop.greet", name) for name in ("Ann", "Bob")]
        page = (await client.get("/jobs?search=task:greet")).text
        assert "Cancel 2 greet?" in page
        await submitted(app, "shop.greet", "Cyd")
        answer = await client.post("/jobs/cancel", data={**fields, **asked(page)})
        assert led_to(answer) == "/jobs?notice=cancel.2.0"
        assert {job.id for job in await app.jobs(status=TaskStatus.CANCELLED)} == set(before)


@pytest.mark.parametrize("sure", ["", "1", "3"])
async def test_a_form_that_does_not_say_how_many_is_asked(app: Flowrra, sure: str) -> None:
    async with app.client(), dashboard(app) as client:
        fields = await with_token(client)
        ids = [await submitted(app, "shop.greet", name) for name in ("Ann", "Bob")]
        answer = await client.post("/jobs/cancel", data={**fields, "ids": ids, "sure": sure})
        assert answer.status_code == 200
        assert "Cancel these 2 jobs?" in answer.text
        assert set(re.findall(r'name="ids" value="([^"]*)"', answer.text)) == set(ids)
        assert 'type="checkbox" name="ids"' not in answer.text
        assert {job.status for job in await app.jobs()} == {TaskStatus.PENDING}


async def test_what_was_touched_is_listed_and_a_cancel_can_be_taken_back(app: Flowrra) -> None:
    async with app.client(), dashboard(app) as client:
        fields = await with_token(client)
        ids = [await submitted(app, "shop.greet", name) for name in ("Ann", "Bob")]
        other = await submitted(app, "shop.greet", "Cyd")
        answer = await client.post("/jobs/cancel", data={**fields, "ids": ids, "sure": "2", "back": "/tasks"})
        page = (await client.get(answer.headers["location"])).text
        (link,) = re.findall(r'href="(/jobs\?search=id[^"]*)"', page)
        listed = (await client.get(f"/api{html.unescape(link)}")).json()["jobs"]
        assert {job["id"] for job in listed} == set(ids)
        assert "Requeue 2 jobs</button>" in page
        answer = await client.post("/jobs/requeue", data={**fields, **asked(page), "back": "/tasks"})
        assert led_to(answer) == "/tasks?notice=requeue.2.0"
        assert {job.id for job in await app.jobs(status=TaskStatus.PENDING)} == {*ids, other}


async def test_what_was_touched_is_listed_where_it_is_too_much_to_name(app: Flowrra) -> None:
    async with app.client(), dashboard(app) as client:
        fields = await with_token(client)
        old = await submitted(app, "shop.greet", "Ann")
        await app.cancel(old)
        await app.submit_many(app.registry["shop.greet"], ((f"guest {n}",) for n in range(150)))
        await submitted(app, "shop.wait")
        form = {**fields, "search": "task:greet state:pending", "back": "/tasks"}
        answer = await client.post("/jobs/cancel", data=form)
        page = (await client.get(answer.headers["location"])).text
        (link,) = re.findall(r'href="(/jobs\?search=task[^"]*)"', page)
        listed = (await client.get(f"/api{html.unescape(link)}&limit=500")).json()["jobs"]
        assert len(listed) == 150
        assert old not in {job["id"] for job in listed}
        assert "Requeue 150 jobs" not in page  # who are they?


async def test_an_event_is_emitted_from_the_page_of_a_job_that_waits_for_it(app: Flowrra) -> None:
    @app.task(name="order")
    async def order() -> Any:
        return await current_job().wait_event("<b>paid</b>")

    async with app, dashboard(app) as client:
        fields = await with_token(client)
        job = await app.submit("order")
        await eventually(lambda: explains(app, job, "waits for the event '<b>paid</b>'"))
        for path in (f"/jobs/{job}", "/jobs/event:%3Cb%3Epaid%3C%2Fb%3E"):
            assert "/emit" in (await client.get(path)).text
            form = (await client.get(f"{path}/emit")).text
            assert "Emit &lt;b&gt;paid&lt;/b&gt;" in form
            assert "1 job started to wait" in form
        answer = await client.post(f"/jobs/{job}/emit", data={**fields, "payload": "Ada"})
        assert answer.status_code == 422
        assert "&#39;Ada&#39; cannot be read as JSON" in answer.text
        answer = await client.post(f"/jobs/{job}/emit", data={**fields, "payload": '{"by": "Ada"}'})
        assert led_to(answer) == f"/jobs/{job}?notice=emit"
        assert (await within(app.wait_for_result(job))).result == {"by": "Ada"}
        assert "/emit" not in (await client.get(f"/jobs/{job}")).text
        answer = await client.post(f"/jobs/{job}/emit", data=fields)
        assert "does not wait for an event" in answer.text
        assert (await client.post("/jobs/none/emit", data=fields)).status_code == 404


async def test_an_event_is_emitted_once(app: Flowrra, monkeypatch: pytest.MonkeyPatch) -> None:
    async with app.client(), dashboard(app) as client:
        job = await submitted(app, "shop.greet", "Ann")
        await app.emit("paid", 1)
        monkeypatch.setattr(jobs, "event_of", lambda job: "paid")  # emitted between the look and the emit
        answer = await client.post(f"/api/jobs/{job}/emit", json={"payload": 2})
        assert (answer.status_code, answer.json()["error"]) == (
            422, "the event 'paid' was already emitted; its payload does not change",
        )  # fmt: skip
        assert (await app.get_result("event:paid")).result == 1  # type: ignore[union-attr]


async def test_a_job_is_cloned(app: Flowrra) -> None:
    async with app.client(), dashboard(app) as client:
        fields = await with_token(client)
        old = await submitted(app, "shop.greet", "Ann")
        answer = await client.post(f"/jobs/{old}/clone", data={**fields, "args": '["Bob"]', "kwargs": '{"loud": true}'})
        assert led_to(answer).endswith("?notice=clone")
        new = (await app.jobs())[0]
        assert (new.args, new.kwargs) == (("Bob",), {"loud": True})
        answer = await client.post(f"/jobs/{old}/clone", data={**fields, "args": '["Bob"', "kwargs": ""})
        assert answer.status_code == 422
        assert "cannot be read as a JSON list" in answer.text
        assert "[&#34;Bob&#34;" in answer.text  # what was typed is still there
        answer = await client.post(f"/jobs/{old}/clone", data={**fields, "kwargs": '{"loud": 3}'})
        assert "loud is 3, where bool is annotated" in answer.text
        assert len(await app.jobs()) == 2


async def test_a_task_is_run_by_its_form(app: Flowrra) -> None:
    async with app.client(), dashboard(app) as client:
        fields = await with_token(client)
        form = {"param.name": "42", "param.loud": "true", "option.priority": "3", "option.delay": ""}
        answer = await client.post("/tasks/shop.greet/run", data={**fields, **form})
        assert answer.status_code == 303
        (job,) = await app.jobs()
        assert (job.args, job.kwargs, job.priority) == (("42",), {"loud": True}, 3)
        for wrong, reason in (
            ({"param.name": ""}, "missing a required argument"),
            ({**form, "param.loud": "maybe"}, "loud must be one of true, false, not"),
            ({**form, "option.priority": "high"}, "priority"),
            ({**form, "option.colour": "red"}, "no option"),
            ({**form, "option.queue": "a\0b"}, "contains a NUL"),
        ):
            answer = await client.post("/tasks/shop.greet/run", data={**fields, **wrong})
            assert answer.status_code == 422
            assert reason in answer.text
        assert (await client.post("/tasks/gone/run", data=fields)).status_code == 404
        assert len(await app.jobs()) == 1


@pytest.mark.parametrize("name", ["42", "null", "true", "[1]"])
async def test_the_name_of_a_queue_is_a_text(app: Flowrra, name: str) -> None:
    async with app.client(), dashboard(app) as client:
        form = {**await with_token(client), "param.name": "Ann", "option.queue": name}
        assert (await client.post("/tasks/shop.greet/run", data=form)).status_code == 303
        assert [job.queue for job in await app.jobs()] == [name]


async def test_queues_are_paused_and_resumed(app: Flowrra) -> None:
    async with app, dashboard(app) as client:
        fields = await with_token(client)
        assert led_to(await client.post("/queues/default/pause", data=fields)) == "/?notice=pause"
        waiting = await submitted(app, "shop.greet", "Ann")
        assert "paused" in (await client.get("/")).text
        assert led_to(await client.post("/queues/default/resume", data=fields)) == "/?notice=resume"
        await in_state(app, waiting, TaskStatus.SUCCESS)


async def test_schedules_are_made_changed_and_deleted(app: Flowrra) -> None:
    async with app.client(), dashboard(app) as client:
        fields = await with_token(client)
        form = {
            **fields,
            "kind": "cron",
            "task": "shop.greet",
            "rule": "0 9 * * *",
            "tz": "Europe/Riga",
            "args": '["A"]',
        }
        answer = await client.post(
            "/schedules", data={**form, "kwargs": "", "description": "Morning", "misfire": "all"}
        )
        assert answer.status_code == 303, answer.text
        path = answer.headers["location"].removesuffix("?notice=add")
        (stored,) = await app.schedulers[0].list_scheduled_tasks()
        assert (stored.rule, stored.tz, stored.misfire, stored.description) == (
            "0 9 * * *",
            "Europe/Riga",
            "all",
            "Morning",
        )
        changed = {**fields, "kind": "cron", "rule": "30 9 * * *", "tz": "UTC", "args": '["B"]', "description": ""}
        answer = await client.post(path, data=changed)
        assert led_to(answer) == f"{path}?notice=update"
        (stored,) = await app.schedulers[0].list_scheduled_tasks()
        assert (stored.rule, stored.tz, stored.description, stored.payload) == ("30 9 * * *", "UTC", None, '[["B"],{}]')
        answer = await client.post(path, data={**changed, "rule": "61 * * * *"})
        assert answer.status_code == 422
        assert 'value="61 * * * *"' in answer.text
        answer = await client.post("/schedules", data={**form, "kind": "interval", "rule": "soon"})
        assert answer.status_code == 422
        assert answer.text.count("seconds, such as 300") == 1, "each problem is told once"
        for deed, notice in (("disable", "disable"), ("enable", "enable"), ("run", "fire")):
            answer = await client.post(f"{path}/{deed}", data=fields)
            assert led_to(answer).endswith(f"?notice={notice}"), deed
        answer = await client.post(f"{path}/delete", data=fields)
        assert led_to(answer) == "/schedules?notice=remove"
        assert await app.schedulers[0].list_scheduled_tasks() == []


async def test_every_option_of_the_engine_is_in_the_forms(app: Flowrra) -> None:
    """As their types say it: one that the engine gains is there without a word here."""
    async with app.client(), dashboard(app) as client:
        fields = await with_token(client)
        page = (await client.get("/tasks/shop.greet")).text
        assert set(re.findall(r'name="option\.(\w+)"', page)) == set(get_type_hints(SubmitOptions))
        page = (await client.get("/schedules/new?kind=cron")).text
        assert set(re.findall(r'name="(\w+)"', page)) >= set(get_type_hints(StoredOptions))
        options = {
            "priority": "4",
            "queue": "42",
            "max_retries": "7",
            "jitter": "1.5",
            "enabled": "false",
            "task_id": "x",
        }
        form = {**fields, **options, "kind": "cron", "task": "shop.greet", "rule": "0 9 * * *", "args": '["A"]'}
        answer = await client.post("/schedules", data=form)
        assert led_to(answer) == "/schedules/x?notice=add", answer.text
        (stored,) = await app.schedulers[0].list_scheduled_tasks()
        assert (stored.options, stored.jitter) == ({"priority": 4, "queue": "42", "max_retries": 7}, 1.5)
        assert not stored.enabled
        page = (await client.get("/schedules/x")).text
        assert re.search(r'name="priority"[^>]* value="4"', page)
        changed = {**fields, "kind": "cron", "rule": "0 9 * * *", "tz": "UTC", "priority": "9"}
        assert (await client.post("/schedules/x", data=changed)).status_code == 303
        (stored,) = await app.schedulers[0].list_scheduled_tasks()
        assert (stored.options["priority"], stored.options["queue"]) == (9, "42")


async def test_the_form_of_a_schedule_that_is_sent_as_it_is_changes_nothing(app: Flowrra) -> None:
    given: dict[str, Any] = {"jitter": 86_400.125, "priority": 3, "retry_delay": 0.125, "description": 'a "b" <c>'}
    async with app.client(), dashboard(app) as client:
        fields, scheduler = await with_token(client), app.schedulers[0]
        schedule_id = await scheduler.schedule_interval("shop.greet", 86_400.000123, ["A"], {"loud": True}, **given)
        before = await scheduler.get_scheduled_task(schedule_id)
        page = (await client.get(f"/schedules/{schedule_id}")).text
        inputs = re.findall(r'<input[^>]* name="(\w+)"[^>]* value="([^"]*)"', page)
        form = {name: html.unescape(value) for name, value in inputs}
        assert form["description"] == given["description"]
        answer = await client.post(f"/schedules/{schedule_id}", data={**form, **fields})
        assert answer.status_code == 303, answer.text
        after = await scheduler.get_scheduled_task(schedule_id)
        assert before is not None
        assert after is not None
        assert after == dataclasses.replace(before, updated=after.updated, turn=after.turn)


async def test_a_schedule_with_hidden_arguments_keeps_them(app: Flowrra) -> None:
    async with app.client(), dashboard(app, redact=True) as client:
        fields = await with_token(client)
        schedule_id = await app.schedulers[0].schedule_cron("shop.greet", "0 9 * * *", ["hunter2"])
        page = (await client.get(f"/schedules/{schedule_id}")).text
        assert "hunter2" not in page
        (args,) = re.findall(r'name="args" value="([^"]*)"', page)
        changed = {**fields, "kind": "cron", "rule": "5 9 * * *", "tz": "UTC", "args": args, "kwargs": ""}
        assert (await client.post(f"/schedules/{schedule_id}", data=changed)).status_code == 303
        (stored,) = await app.schedulers[0].list_scheduled_tasks()
        assert (stored.rule, stored.payload) == ("5 9 * * *", '[["hunter2"],{}]')


async def test_a_schedule_with_long_arguments_can_be_changed(app: Flowrra) -> None:
    async with app.client(), dashboard(app) as client:
        long = "x" * 5_000
        schedule_id = await app.schedulers[0].schedule_cron("shop.greet", "0 9 * * *", [long])
        page = (await client.get(f"/schedules/{schedule_id}")).text
        (args,) = re.findall(r'name="args" value="([^"]*)"', page)
        changed = {**await with_token(client), "kind": "cron", "rule": "5 9 * * *", "args": args, "kwargs": "{}"}
        assert (await client.post(f"/schedules/{schedule_id}", data=changed)).status_code == 303
        (stored,) = await app.schedulers[0].list_scheduled_tasks()
        assert (stored.rule, stored.payload) == ("5 9 * * *", f'[["{long}"],{{}}]')


async def test_an_emptied_zone_means_what_the_preview_says(app: Flowrra) -> None:
    async with app.client(), dashboard(app) as client:
        schedule_id = await app.schedulers[0].schedule_cron("shop.greet", "0 9 * * *", ["A"], tz="Europe/Riga")
        changed = {**await with_token(client), "kind": "cron", "rule": "0 9 * * *", "tz": " "}
        assert (await client.post(f"/schedules/{schedule_id}", data=changed)).status_code == 303
        (stored,) = await app.schedulers[0].list_scheduled_tasks()
        assert stored.tz == "UTC"


async def test_every_form_of_every_page_is_understood(app: Flowrra) -> None:
    """What a page can send is what a route takes: the path of each form is known, and each has the token."""
    async with app, dashboard(app) as client:
        schedule = await app.schedulers[0].schedule_cron("shop.greet", "0 9 * * *", ["Ann"])
        running = await submitted(app, "shop.wait")
        failed = await submitted(app, "shop.fail", "x")
        await in_state(app, running, TaskStatus.RUNNING)
        await in_state(app, failed, TaskStatus.FAILED)
        pages = [
            *("/", "/failures", "/jobs", f"/jobs/{running}", f"/jobs/{failed}", f"/jobs/{failed}/clone", "/schedules"),
            *("/tasks/shop.greet", f"/schedules/{schedule}", "/schedules/new?kind=cron", "/schedules/new?kind=once"),
        ]
        found = set()
        for page in pages:
            text = re.sub(r'<button[^>]* formmethod="get"[^>]*>', "", (await client.get(page)).text)
            assert text.count('method="post"') <= text.count('name="token"')
            found |= set(re.findall(r'(?:formaction|method="post" action)="(/[^"]*)"', text))
        assert len(found) > 10
        for path in found:
            answer = await client.post(path, data={"token": "wrong"})
            assert answer.status_code == 403, path  # it is known, and refused for its token alone
        await app.cancel(running)


# Forms made from signatures --------------------------------------------------------------------


def call(function: Any, **fields: str) -> tuple[list[Any], dict[str, Any]]:
    return call_from(inspect.signature(function), fields)


def test_arguments_come_by_position_as_far_as_none_is_left_out() -> None:
    def task(a: int, /, b: str = "", c: float = 0.0, *rest: int, d: bool = False, **more: Any) -> None: ...

    assert call(task, a="1", b="2", c="3", rest="[4, 5]", d="true", more='{"e": 6}') == (
        [1, "2", 3, 4, 5],
        {"d": True, "e": 6},
    )
    assert call(task, a="1", c="3.5") == ([1], {"c": 3.5})
    assert call(task, a='{"x": [1]}', b='"quoted"') == ([{"x": [1]}, "quoted"], {})
    assert call(task, a="plain text") == (["plain text"], {})


@pytest.mark.parametrize("fields", [{"rest": "4"}, {"rest": '{"a": 1}'}, {"more": "[1]"}])
def test_what_does_not_fit_a_variable_parameter_is_refused(fields: dict[str, str]) -> None:
    def task(*rest: int, **more: Any) -> None: ...

    with pytest.raises(ConfigError, match="must be a JSON"):
        call(task, **fields)
