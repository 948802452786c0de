"""Tags and meta of a job: given at the submit, stamped by hooks, read by the task, found and changed by them."""

from pathlib import Path
from typing import Any

import pytest

from flowrra import ConfigError, Flowrra, Job, TaskStatus, current_job
from tests.support import cpu_work
from tests.support.apps import make_app, within


@pytest.fixture(params=["memory", "file"])
def app(request: pytest.FixtureRequest, tmp_path: Path) -> Flowrra:
    return make_app("memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/jobs.db")


def labels() -> tuple[tuple[str, ...], dict[str, Any]]:
    return current_job().tags, dict(current_job().meta)


@pytest.mark.parametrize("kind", ["async", "thread", "process"])
async def test_a_task_reads_its_tags_and_meta(app: Flowrra, kind: str) -> None:
    async def asynchronous() -> Any:
        return labels()

    functions = {"async": asynchronous, "thread": labels, "process": cpu_work.labels}
    task = app.task(name="task", cpu_bound=kind == "process")(functions[kind])
    async with app:
        given = await task.options(tags=["b", "a", "b"], meta={"user": 7}).submit()
        assert (await within(app.wait_for_result(given))).result == (("b", "a"), {"user": 7})
        bare = await task.submit()
        assert (await within(app.wait_for_result(bare))).result == ((), {})
    async with app.client():
        if app.broker.keeps_text:
            assert [(job.tags, job.meta) for job in await app.jobs()] == [((), None), (("b", "a"), {"user": 7})]


async def test_tags_are_options_of_a_submit_unless_the_task_has_such_a_parameter(app: Flowrra) -> None:
    @app.task(name="plain")
    async def plain() -> None: ...

    @app.task
    async def own(tags: list[str]) -> None: ...

    async with app.client():
        await app.submit("plain", tags=["t"])
        await app.submit(own, tags=["u"])
        (mine, tagged) = await app.jobs()
        assert (tagged.tags, mine.tags) == (("t",), ())
        assert [job.id for job in await app.jobs(tag="t")] == [tagged.id]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"tags": "urgent"}, "a list of texts.* not 'urgent'"),
        ({"tags": [""]}, "1 to 255 characters, not ''"),
        ({"tags": ["a" * 256]}, "1 to 255 characters"),
        ({"tags": [7]}, "not 7"),
        ({"tags": ["a\0"]}, "1 to 255 characters"),
        ({"tags": [f"t{n}" for n in range(21)]}, "20 tags at most, not 21"),
        ({"meta": ["user"]}, "meta is a dictionary"),
        ({"meta": {"user": [7]}}, r"not 'user': \[7\]"),
        ({"meta": {7: "user"}}, "not 7: 'user'"),
        ({"meta": {"x": float("nan")}}, "not 'x': nan"),
        ({"meta": {"x": 2**64}}, "not 'x'"),
        ({"meta": {"x": "\ud800"}}, "not 'x'"),
    ],
)
async def test_what_cannot_be_kept_is_refused(app: Flowrra, options: Any, why: str) -> None:
    @app.task
    async def task() -> None: ...

    with pytest.raises(ConfigError, match=why):
        task.options(**options)


# ---------------------------------------------------------------------------
# Hooks
# ---------------------------------------------------------------------------


async def test_a_hook_stamps_every_job_before_it_is_pushed(app: Flowrra) -> None:
    @app.on_submit
    def tenant(job: Job) -> None:
        job.tags = (*job.tags, "tenant:42")

    @app.on_submit
    def trace(job: Job) -> None:
        job.meta = {**(job.meta or {}), "trace": f"{job.task} {len(job.tags)}"}

    @app.every(3600)
    @app.task(name="t")
    async def task(number: int = 0) -> None: ...

    async with app.client():
        await task.submit()
        await task.options(tags=["x", "tenant:42"]).submit()
        await app.submit_many(task, [(1,), (2,)])
        await app.code_schedules.push([])
        stamped = [(job.tags, job.meta) for job in reversed(await app.jobs())]
    one = (("tenant:42",), {"trace": "t 1"})
    assert stamped == [one, (("x", "tenant:42"), {"trace": "t 3"}), one, one]


async def test_what_a_hook_raises_the_submit_raises_and_nothing_is_taken(app: Flowrra) -> None:
    @app.on_submit
    def refuse(job: Job) -> None:
        if job.args:
            raise PermissionError("no tenant")

    @app.on_submit
    def wrong(job: Job) -> None:
        job.tags = ("",) if not job.args else ()

    @app.task
    async def task(number: int = 0) -> None: ...

    async with app.client():
        with pytest.raises(PermissionError, match="no tenant"):
            await app.submit_many(task, [(1,), (2,)])
        with pytest.raises(ConfigError, match="a tag must be a text"):
            await task.submit()
        assert await app.jobs() == []


# ---------------------------------------------------------------------------
# Many at once
# ---------------------------------------------------------------------------


async def test_all_jobs_with_a_tag_are_cancelled_and_requeued(app: Flowrra) -> None:
    @app.task(name="task")
    async def task() -> None: ...

    async with app.client():
        await app.submit_many(task.options(tags=["old", "t"]), [()] * 1_203)
        await app.submit_many(task.options(tags=["t"]), [()] * 3)
        assert await app.cancel_all(tag="old", by="ops") == 1_203
        assert await app.cancel_all(tag="old") == 0
        assert len(await app.jobs(status="pending", tag="t")) == 3
        assert await app.requeue_all(tag="t", task="other") == 0
        assert await app.requeue_all(tag="t", task="task", queue="default") == 1_203
        assert len(await app.jobs(status="pending", limit=5_000)) == 1_206
        (last,) = await app.jobs(tag="old", limit=1)
        assert [(note.worker, note.error) for note in last.attempts] == [("ops", "cancelled")]


async def test_nothing_is_cancelled_unless_it_is_said_what(app: Flowrra) -> None:
    async with app.client():
        with pytest.raises(ConfigError, match="say which jobs to cancel: task=, queue= or tag="):
            await app.cancel_all()
        with pytest.raises(ConfigError, match="say which jobs to requeue"):
            await app.requeue_all(by="ops")


async def test_a_task_is_named_by_itself_or_by_the_last_part_of_its_name(app: Flowrra) -> None:
    @app.task(name="shop.add")
    async def add() -> None: ...

    app.task(name="till.count")(add.function)
    app.task(name="shop.count")(add.function)
    async with app.client():
        task_id = await add.submit()
        for task in (add, "add", "shop.add"):
            assert [job.id for job in await app.jobs(task=task)] == [task_id]
            assert await app.cancel_all(task=task) == 1
            assert await app.requeue_all(task=task) == 1
        for other in ("count", "dd", "elsewhere.add"):  # the first may be two
            assert await app.jobs(task=other) == []
        with pytest.raises(ConfigError, match="the name of a task must be a text of 1 to 255 characters, not 5"):
            await app.cancel_all(task=5)  # type: ignore[arg-type]


def test_plain_code_has_them_too(app: Flowrra) -> None:
    @app.task
    async def task() -> None: ...

    app.sync.submit(task.options(tags=["t"]))
    assert app.sync.cancel_all(tag="t") == 1
    assert [job.status for job in app.sync.jobs(tag="t")] == [TaskStatus.CANCELLED]
    assert app.sync.requeue_all(tag="t") == 1
    app.sync.close()
