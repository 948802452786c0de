"""The service: what it tells of an app on each broker, and what it does to its jobs."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from flowrra import ConfigError, Flowrra, Job, Progress, TaskNotFoundError, TaskStatus, current_job, result_of
from flowrra_extras.dashboard.jobs import progress_of
from tests.support.apps import eventually
from tests.support.dashboards import finished, in_state, service_of, shop, store, submitted

BROKERS = ["memory", "sqlite", "redis", "postgresql"]
BY = {"by": "ann"}


@pytest.fixture(params=BROKERS)
def app(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Flowrra]:
    with store(request.param, tmp_path) as url:
        yield shop(url)


async def test_the_overview_and_its_parts(app: Flowrra) -> None:
    async with app, service_of(app) as service:
        ended = [await submitted(app, "shop.greet", "Ann"), await submitted(app, "shop.fail", "no answer", 3)]
        running = await submitted(app, "shop.wait")
        await finished(app, *ended)
        await in_state(app, running, TaskStatus.RUNNING)
        await service.pause("mail", **BY)
        waiting = await submitted(app, "shop.fail", "never")

        async def workers_have_told() -> bool:
            service.forget()
            hour = (await service.overview())["last_hour"]
            return (hour["succeeded"], hour["failed"]) == (1, 1)

        await eventually(workers_have_told)
        overview = await service.overview()
        assert {state: number for state, number in overview["counts"].items() if number} == {
            "success": 1, "failed": 1, "running": 1, "pending": 1,
        }  # fmt: skip
        assert len(overview["minutes"]) == 60
        assert sum(minute["succeeded"] for minute in overview["minutes"]) == 1
        assert [group["sample"] for group in overview["failures"]] == [ended[1]]
        queues = {queue["name"]: queue for queue in overview["queues"]}
        assert (queues["mail"]["paused"], queues["mail"]["ready"], queues["mail"]["workers"]) == (True, 1, 1)
        assert queues["mail"]["lag"] is not None
        assert queues["default"]["running"] == 1
        (worker,) = await service.workers()
        assert [(job["id"], job["arguments"]) for job in worker["running"]] == [(running, "")]
        assert worker["running"][0]["started"] is not None
        assert [job["id"] for job in overview["longest"]] == [running]
        await service.resume("mail", **BY)
        await finished(app, waiting)
        await service.cancel([running], **BY)
        await finished(app, running)


async def test_jobs_come_in_pages_with_true_counts(app: Flowrra) -> None:
    async with app.client(), service_of(app) as service:
        ids = [await submitted(app, "shop.greet", f"guest {n}") for n in range(7)]
        first = await service.jobs(limit=3)
        second = await service.jobs(after=first["after"], limit=3)
        third = await service.jobs(after=second["after"], limit=3)
        assert [job["id"] for page in (first, second, third) for job in page["jobs"]] == ids[::-1]
        assert third["after"] is None
        assert first["count"] == {"number": 7, "is_exact": True}
        (one,) = (await service.jobs('args.name:"guest 4"'))["jobs"]
        assert (one["id"], one["arguments"], one["actions"]) == (ids[4], "'guest 4'", ["cancel", "clone"])
        assert (await service.jobs("state:failed"))["count"] == {"number": 0, "is_exact": True}
        assert (await service.jobs("before:1h"))["jobs"] == []
        assert len((await service.jobs("after:1h"))["jobs"]) == 7
        assert (await service.jobs("state:odd"))["problems"]


async def test_a_job_is_told_in_full(app: Flowrra) -> None:
    async with app, service_of(app) as service:
        failed = await submitted(app, "shop.fail", "no answer", number=7)
        await finished(app, failed)
        job = await service.job(failed)
        assert (job["args"]["text"], job["kwargs"]["text"]) == ('["no answer"]', '{"number": 7}')
        assert job["message"] == "ConnectionError: no answer after 7 s"
        assert job["traceback"] is not None
        assert "Traceback" in job["traceback"]["text"]
        assert [attempt["outcome"] for attempt in job["attempts"]] == ["failure"]
        assert (job["failures"], job["max_attempts"]) == (1, 1)
        assert [one["id"] for one in (await service.jobs(job["alike"]))["jobs"]] == [failed]
        assert job["explanation"].startswith("It ended as failed")
        assert await service.text(failed, "traceback") == await service.text(failed, "traceback-1")
        greeted = await submitted(app, "shop.greet", "Ann", loud=True)
        await finished(app, greeted)
        assert (await service.job(greeted))["result"] == {"text": '"Hello, ANN"', "size": 12, "is_cut": False}
        for unknown in (service.job("nobody"), service.text("nobody", "args"), service.text(greeted, "secrets")):
            with pytest.raises(TaskNotFoundError):
                await unknown


async def test_failures_are_grouped_by_what_they_have_in_common(app: Flowrra) -> None:
    async with app, service_of(app) as service:
        ids = [await submitted(app, "shop.fail", "no answer", n) for n in range(3)]
        ids.append(await submitted(app, "shop.fail", "no money"))
        await finished(app, *ids)
        shown = await service.failures()
        assert [(group["number"], group["error"]) for group in shown["groups"]] == [
            (3, "ConnectionError: no answer after 2 s"),
            (1, "ConnectionError: no money after 0 s"),
        ]
        assert shown["total"] == {"number": 4, "is_exact": True}
        listed = await service.jobs(shown["groups"][0]["search"])
        assert {job["id"] for job in listed["jobs"]} == set(ids[:3])


async def test_actions_leave_a_line_on_the_job(app: Flowrra) -> None:
    async with app.client(), service_of(app) as service:
        ids = [await submitted(app, "shop.fail", str(n)) for n in range(3)]
        assert (await service.cancel([*ids, "nobody"], **BY))["done"] == 3
        assert (await service.cancel(ids, **BY))["refused"] == 3
        assert (await service.requeue(ids[:1], **BY))["done"] == 1
        notes = [(a["worker"], a["error"]) for a in (await service.job(ids[0]))["attempts"] if a["outcome"] == "note"]
        assert notes == [("ann", "cancelled"), ("ann", "requeued")]
        report = await service.delete(ids, **BY)
        assert report == {"action": "delete", "done": 2, "refused": 1, "after": None, "jobs": ids[1:]}
        assert [job.id for job in await app.jobs()] == ids[:1]


async def test_an_action_over_a_search_takes_all_that_it_finds(app: Flowrra) -> None:
    async with app.client(), service_of(app) as service:
        rows = [("x", n) for n in range(450)]
        await app.submit_many(app.registry["shop.fail"], rows)
        spared = await submitted(app, "shop.greet", "Ann")
        report = await service.act("cancel", "task:shop.fail", **BY)
        done = report["done"]
        while report["after"] is not None:  # on a busy machine it may take more than one go
            report = await service.act("cancel", "task:shop.fail", after=report["after"], **BY)
            done += report["done"]
        assert (done, report["refused"]) == (450, 0)
        assert (await app.get_job(spared)).status is TaskStatus.PENDING
        with pytest.raises(ConfigError, match=r"nothing was changed: .*'odd' is not a state"):
            await service.act("delete", "state:odd", **BY)
        with pytest.raises(ConfigError, match="unknown action 'burn'"):
            await service.act("burn", "", **BY)


async def test_a_clone_has_other_arguments_and_the_same_options(app: Flowrra) -> None:
    async with app.client(), service_of(app) as service:
        old = await app.registry["shop.greet"].options(priority=3, max_retries=9, unique="k").submit("Ann", loud=True)
        same = await app.get_job(await service.clone(old, **BY))
        other = await app.get_job(await service.clone(old, args='["Bob"]', **BY))
        assert {(job.task, job.priority, job.unique) for job in (same, other)} == {("shop.greet", 3, None)}
        assert [dict(job.overrides or {}) for job in (same, other)] == [{"max_retries": 9}] * 2
        shown = [
            (job["args"]["text"], job["kwargs"]["text"]) for job in [await service.job(j.id) for j in (same, other)]
        ]
        assert shown == [('["Ann"]', '{"loud": true}'), ('["Bob"]', '{"loud": true}')]
        for args in ("[", "{}", "[1, 2, 3]", '[{"$": "nothing"}]'):
            with pytest.raises(ConfigError):
                await service.clone(old, args=args, **BY)


async def test_a_task_is_run_with_options(app: Flowrra) -> None:
    async with app.client(), service_of(app) as service:
        options = {"priority": 7, "run_at": "2099-01-01T00:00:00Z"}
        job = await app.get_job(await service.run("shop.greet", '["Ann"]', '{"loud": true}', options, **BY))
        assert (job.status, job.priority) == (TaskStatus.SCHEDULED, 7)
        with pytest.raises(TaskNotFoundError, match="'gone' is registered"):
            await service.run("gone", by="ann")
        for args, wrong in (
            ("[]", {}),
            ('["a"]', {"color": 1}),
            ('["a"]', {"run_at": "soon"}),
            ('["a"]', {"delay": "x"}),
        ):
            with pytest.raises(ConfigError):
                await service.run("shop.greet", args, "{}", wrong, **BY)


async def test_parents_and_children(app: Flowrra) -> None:
    async with app.client(), service_of(app) as service:
        parent = await app.submit(app.registry["shop.greet"], "Ann")
        child = await app.submit(app.registry["shop.greet"], result_of(parent))
        assert [one["id"] for one in (await service.job(parent))["children"]] == [child]
        assert [one["id"] for one in (await service.job(child))["parents"]] == [parent]
        assert (await service.job(child))["status"] == "blocked"


# What does not depend on the broker ------------------------------------------------------------


async def test_tasks_with_their_options_and_forms() -> None:
    app = shop()
    async with app.client(), service_of(app) as service:
        assert [task["name"] for task in await service.tasks()] == ["shop.fail", "shop.greet", "shop.wait"]
        task = await service.task("shop.greet")
        assert (task["kind"], task["queue"], task["summary"]) == ("async", "default", "Say hello.")
        assert [(p["name"], p["kind"], p["annotation"], p["default"], p["required"]) for p in task["parameters"]] == [
            ("name", "positional", "str", None, True),
            ("loud", "keyword", "bool", "False", False),
        ]
        assert task["options"]["retry_on"] == ["builtins.Exception"]
        with pytest.raises(TaskNotFoundError):
            await service.task("shop.gone")


async def test_a_task_that_only_the_store_knows_is_shown(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    writer, reader = shop(url), Flowrra.from_urls(url)
    async with writer.client(), reader.client(), service_of(reader) as service:
        await submitted(writer, "shop.greet", "Ann")
        task = await service.task("shop.greet")
        assert (task["is_registered"], task["kind"], len(task["latest"])) == (False, None, 1)
        assert (await service.jobs())["jobs"][0]["task"] == "shop.greet"


async def test_arguments_are_hidden_everywhere() -> None:
    app = shop()
    async with app.client(), service_of(app, redact=lambda job: job.task == "shop.greet") as service:
        secret = await submitted(app, "shop.greet", "hunter2")
        plain = await submitted(app, "shop.fail", "shown")
        assert "hunter2" not in repr(
            (await service.jobs(), await service.job(secret), await service.task("shop.greet"))
        )
        fields = ("args", "kwargs", "result")
        assert [await service.text(secret, field) for field in fields] == ["redacted", "redacted", "redacted"]
        assert (await service.jobs("args.name:hunter2"))["jobs"] == []  # nor can they be guessed by searching
        assert "shown" in (await service.job(plain))["args"]["text"]
        clone = await app.get_job(await service.clone(secret, **BY))
        assert clone.args == ("hunter2",)


async def test_a_hidden_result_is_hidden() -> None:
    app = shop()
    async with app, service_of(app, redact=True) as service:
        secret = await submitted(app, "shop.greet", "hunter2")
        await finished(app, secret)
        job = await service.job(secret)
        assert job["result"] == {"text": "redacted", "size": 8, "is_cut": False}
        assert "hunter2" not in repr((job, await service.overview(), await service.text(secret, "result")))


async def test_a_redact_that_fails_hides() -> None:
    app = shop()

    def fail(job: Job) -> bool:
        raise KeyError(job.id)

    async with app.client(), service_of(app, redact=fail) as service:
        job = await service.job(await submitted(app, "shop.greet", "hunter2"))
        assert (job["is_redacted"], job["arguments"]) == (True, "redacted")


async def test_long_texts_are_cut_and_whole_ones_can_be_had() -> None:
    app = shop()
    async with app.client(), service_of(app) as service:
        job = await service.job(await submitted(app, "shop.greet", "x" * 100_000))
        assert job["args"]["is_cut"]
        assert (len(job["args"]["text"]), job["args"]["size"]) == (4_000, 100_004)
        assert len(job["arguments"]) <= 200
        assert len(await service.text(job["id"], "args")) == 100_004


async def test_nothing_that_a_job_says_is_shown_without_a_limit() -> None:
    app = shop()

    @app.task(name="shop.chatter", max_retries=0)
    async def chatter(*parents: object) -> None:
        current_job().progress(1, 2, "n" * 100_000)
        raise RuntimeError("e" * 100_000)

    async with app, service_of(app) as service:
        parents = [await app.submit(app.registry["shop.greet"], str(n)) for n in range(60)]
        talking = await app.submit(chatter, *map(result_of, parents))
        await finished(app, talking)
        await service.requeue([talking], **BY)
        await finished(app, talking)
        job = await service.job(talking)
        assert len(repr(job)) < 60_000
        assert (len(job["parents"]), len(job["attempts"])) == (50, 3)
        assert len(repr(await service.overview())) < 20_000 + len(repr(await service.queues()))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf"), 10**400])
def test_progress_that_is_no_number_is_none(number: float) -> None:
    shown = progress_of(Progress(number, number, "far"))
    assert shown == {"done": 0, "total": None, "note": "far", "share": None}
    assert progress_of(Progress(1, 4)) == {"done": 1, "total": 4, "note": None, "share": 0.25}


async def test_health_says_what_is_wrong() -> None:
    app = shop()
    async with service_of(app) as service:
        await submitted(app, "shop.greet", "Ann")
        (problem,) = (await service.health())["problems"]
        assert problem.startswith("no worker is alive: 1 job waits, for ")
        async with app:
            assert (await service.health())["healthy"]
            await app.registry["shop.greet"].options(queue="elsewhere").submit("Ann")
            service.forget()

            async def is_seen() -> bool:
                return not (await service.health())["healthy"]

            await eventually(is_seen)
            (problem,) = (await service.health())["problems"]
            assert problem.startswith("queue elsewhere: 1 job waits, and no live worker serves the queue, for ")


@pytest.mark.parametrize("limit", [0, 501])
async def test_a_page_has_a_bounded_length(limit: int) -> None:
    app = shop()
    async with service_of(app) as service:
        with pytest.raises(ConfigError, match="between 1 and 500"):
            await service.jobs(limit=limit)
        with pytest.raises(ConfigError, match="is not a cursor"):
            await service.jobs(after="1; DROP TABLE")


async def test_completion_knows_the_store(app: Flowrra) -> None:
    async with app.client(), service_of(app) as service:
        await submitted(app, "shop.fail", "x")
        assert await service.complete("task:fa") == ["task:shop.fail"]
        assert await service.complete("queue:") == ["queue:mail"]
