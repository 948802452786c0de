"""Tasks that are declared without an app, and included in one."""

from pathlib import Path

import pytest

from flowrra import ConfigError, Flowrra, TaskSet
from tests.support.apps import make_app, within


@pytest.fixture
def tasks() -> TaskSet:
    tasks = TaskSet("mail")

    @tasks.cron("0 9 * * *", args=("all",))
    @tasks.task(max_retries=1)
    async def send(to: str) -> str:
        return f"sent to {to}"

    @tasks.task(queue="slow", name="report")
    def make_report() -> str:
        return "report"

    return tasks


async def test_the_tasks_of_a_set_run_in_the_app_that_includes_it(tasks: TaskSet) -> None:
    app = make_app()
    app.include(tasks)
    assert sorted(app.registry) == ["mail.tasks.<locals>.send", "report"]
    assert [schedule.task for schedule in app.schedules.values()] == ["mail.tasks.<locals>.send"]
    send = tasks.registry["mail.tasks.<locals>.send"]
    async with app:
        first, second = await send.submit("Ada"), await app.submit(send, "Bob")
        assert (await within(app.wait_for_result(first))).result == "sent to Ada"
        assert (await within(app.wait_for_result(second))).result == "sent to Bob"


async def test_a_task_that_is_declared_after_the_include_is_served_too(tasks: TaskSet) -> None:
    app = make_app()
    app.include(tasks, queue="mail")
    async with app:

        @tasks.every(3600)
        @tasks.task(name="late")
        async def late() -> str:
            return "late"

        assert late.queue == "mail"
        assert len(app.schedules) == 2
        assert (await within(app.wait_for_result(await late.submit()))).result == "late"


def test_the_queue_of_an_include_is_for_tasks_that_name_none(tasks: TaskSet) -> None:
    app = make_app()
    app.include(tasks, queue="mail")
    assert [task.queue for task in app.registry.values()] == ["mail", "slow"]
    app.include(tasks, queue="post")
    assert [task.queue for task in app.registry.values()] == ["post", "slow"]
    with pytest.raises(ConfigError, match="a queue's name"):
        app.include(tasks, queue="a,b")


async def test_options_given_before_the_include_keep_its_queue(tasks: TaskSet) -> None:
    send, report = tasks.registry.values()
    urgent, slow, elsewhere = send.options(priority=-1), report.options(priority=-1), report.options(queue="elsewhere")
    app = make_app()
    app.include(tasks, queue="mail")
    async with app.client():
        ids = [await urgent.submit("Ada"), await slow.submit(), await elsewhere.submit()]
        assert [(await app.get_job(task_id)).queue for task_id in ids] == ["mail", "slow", "elsewhere"]


async def test_tasks_of_no_app_cannot_be_submitted(tasks: TaskSet) -> None:
    report = tasks.registry["report"]
    assert report() == "report"
    with pytest.raises(ConfigError, match=r"belong to no app.*app\.include\(\)"):
        await report.submit()
    with pytest.raises(ConfigError, match="belong to no app"):
        await report.options(delay=5).submit()


async def test_a_set_belongs_to_the_app_that_included_it_last_and_to_none_that_runs(tasks: TaskSet) -> None:
    first, second = make_app(), make_app()
    first.include(tasks)
    report = tasks.registry["report"]
    async with first:
        with pytest.raises(ConfigError, match="run in another app"):
            second.include(tasks)
        await within(first.wait_for_result(await report.submit()))
    second.include(tasks)
    async with second:
        assert (await within(second.wait_for_result(await report.submit()))).result == "report"


def test_what_is_no_set_is_refused(tasks: TaskSet) -> None:
    app = make_app()
    for wrong in (app, make_app(), None, "shop.tasks"):
        with pytest.raises(ConfigError, match="takes a TaskSet"):
            app.include(wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="name must be a text"):
        TaskSet("")


def test_a_name_that_another_task_has_is_refused(tasks: TaskSet) -> None:
    app = make_app()

    @app.task(name="report")
    def other() -> None: ...

    with pytest.raises(ConfigError, match="two tasks are called 'report'"):
        app.include(tasks)


def test_a_schedule_stands_above_a_task_of_its_set(tasks: TaskSet) -> None:
    app = make_app()
    app.include(tasks)

    @app.task
    async def other() -> None: ...

    with pytest.raises(ConfigError, match="not a task of this app"):
        TaskSet().every(5)(other)
    with pytest.raises(ConfigError, match="two schedules"):
        tasks.cron("0 9 * * *", args=("all",))(tasks.registry["mail.tasks.<locals>.send"])


@pytest.mark.parametrize("url", ["memory://", "sqlite"])
async def test_the_name_of_a_set_stands_before_those_of_its_tasks(url: str, tmp_path: Path) -> None:
    app = Flowrra.from_urls(url if url == "memory://" else f"sqlite:///{tmp_path}/jobs.db")
    plain = TaskSet()

    @plain.task
    async def named() -> None: ...

    app.include(plain)
    assert [*app.registry] == [f"{__name__}.{named.__wrapped__.__qualname__}"]
