"""Jobs of tasks that another program has: submitted by name, checked by the worker."""

import logging
from pathlib import Path

import pytest

from flowrra import ConfigError, Flowrra, TaskStatus
from tests.support import cpu_work
from tests.support.apps import eventually, make_app, within


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/jobs.db"


def serving(url: str) -> Flowrra:
    app = make_app(url)

    @app.task(name="shop.send", retry_delay=0)
    async def send(to: str, *, subject: str = "Hello") -> str:
        return f"{subject}, {to}"

    app.task(name="shop.count", cpu_bound=True, retry_delay=0)(cpu_work.pid)
    return app


async def test_a_job_of_another_programs_task_is_submitted_by_its_name(url: str) -> None:
    web = make_app(url)
    async with web.client():
        first = await web.submit("shop.send", "Ada")
        second = await web.submit("shop.send", "Bob", subject="Bye", priority=-1)
        (third,) = await web.submit_many(web.task_named("shop.send").options(queue="default"), [("Eve",)])
        assert [job.priority for job in await web.jobs()] == [0, -1, 0]
        async with serving(url):
            for task_id, expected in ((first, "Hello, Ada"), (second, "Bye, Bob"), (third, "Hello, Eve")):
                assert (await within(web.wait_for_result(task_id))).result == expected


def test_the_same_goes_for_plain_code(url: str) -> None:
    web = make_app(url)
    task_id = web.sync.submit("shop.send", "Ada", queue="mail", delay=60)
    job = web.sync.get_job(task_id)
    assert (job.task, job.queue, job.status) == ("shop.send", "mail", TaskStatus.SCHEDULED)
    web.sync.close()


async def test_a_name_that_is_known_here_is_that_task_and_checked(url: str) -> None:
    app = serving(url)
    async with app.client():
        with pytest.raises(TypeError, match="missing a required argument: 'to'"):
            await app.submit("shop.send")
    assert app.task_named("shop.send") is app.registry["shop.send"]


@pytest.mark.parametrize("name", ["shop.send", "shop.count"])
async def test_arguments_that_do_not_fit_the_task_end_the_job_at_once(url: str, name: str) -> None:
    web = make_app(url)
    async with web.client(), serving(url):
        result = await within(web.wait_for_result(await web.submit(name, 1, 2, 3)))
    assert (result.status, result.attempts) == (TaskStatus.FAILED, 1)
    assert result.error is not None
    assert result.error.startswith(f"TypeError: {name}(")
    assert "too many positional arguments" in result.error


async def test_a_type_error_of_the_task_itself_is_retried(url: str) -> None:
    app = make_app(url)

    @app.task(retry_delay=0, max_retries=2)
    async def adds(text: str) -> int:
        return 1 + text  # type: ignore[operator]

    async with app:
        assert (await within(app.wait_for_result(await adds.submit("a")))).attempts == 3


async def test_the_worker_names_the_task_that_may_have_been_meant(url: str, caplog: pytest.LogCaptureFixture) -> None:
    app = serving(url)
    with caplog.at_level(logging.WARNING, "flowrra"):
        async with app:
            await app.submit("shop.sned", "Ada")
            await eventually(lambda: "does not know the task 'shop.sned'" in caplog.text)
            assert "hands back its jobs for 15 s at a time; did you mean 'shop.send'?\n" in caplog.text


async def test_a_name_that_no_task_can_have_is_refused(url: str) -> None:
    app = make_app(url)
    async with app.client():
        for wrong in ("", "a" * 256, "\0"):
            with pytest.raises(ConfigError, match="the name of a task must be a text of 1 to 255 characters"):
                await app.submit(wrong)
