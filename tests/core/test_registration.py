"""What becomes a task, under which name, and how a task looks to frameworks and to plain code."""

import asyncio
import functools
import gc
import importlib
import inspect
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import flowrra
from flowrra import ConfigError, Flowrra, current_job
from tests.support.apps import within


@pytest.fixture
def app() -> Flowrra:
    return Flowrra.from_urls()


def without_wraps(function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def with_wraps(function: Callable[..., Any]) -> Callable[..., Any]:
    return functools.wraps(function)(without_wraps(function))


def send_mail(to: str = "") -> str:
    return f"mail to {to}"


def delete_user(name: str = "") -> str:
    return f"{name} is gone"


class Mailer:
    def __init__(self, host: str) -> None:
        self.host = host

    def send(self) -> str:
        return self.host


# ---------------------------------------------------------------------------
# One name, one function
# ---------------------------------------------------------------------------


def test_two_functions_behind_one_decorator_are_refused(app: Flowrra) -> None:
    app.task(without_wraps(send_mail))
    with pytest.raises(ConfigError, match=r"two tasks are called .*wrapper.*name=.*functools\.wraps"):
        app.task(without_wraps(delete_user))


def test_two_functions_behind_a_decorator_with_wraps_are_two_tasks(app: Flowrra) -> None:
    mail, user = app.task(with_wraps(send_mail)), app.task(with_wraps(delete_user))
    assert (mail.name, user.name) == (
        "tests.core.test_registration.send_mail",
        "tests.core.test_registration.delete_user",
    )


def test_a_task_factory_that_gives_every_task_one_name_is_refused(app: Flowrra) -> None:
    def make(text: str) -> None:
        @app.task
        def say() -> str:
            return text

    make("one")
    with pytest.raises(ConfigError, match="two tasks are called"):
        make("two")


def test_two_bound_methods_of_one_name_are_refused(app: Flowrra) -> None:
    mailer = Mailer("a")
    app.task(mailer.send)
    app.task(mailer.send)  # the same one
    with pytest.raises(ConfigError, match=r"two tasks are called .*Mailer\.send"):
        app.task(Mailer("b").send)


class Postman:
    """Its methods want an object, which cannot be kept with a job."""

    def __init__(self, sender: str) -> None:
        self.sender = sender

    def send(self, to: str) -> str:
        return f"{self.sender} to {to}"

    @classmethod
    def count(cls) -> str:
        return cls.__name__

    @staticmethod
    def check(to: str) -> str:
        return f"{to} is fine"

    def __call__(self, to: str) -> str:
        return self.send(to)


async def test_methods_are_right_or_refused(app: Flowrra) -> None:
    for wrong in (Postman.send, Postman.__init__, Postman.__call__):
        with pytest.raises(ConfigError, match=r"is a method, whose object cannot be kept.*app\.task\(mailer\.send\)"):
            app.task(wrong)
    for odd in (Postman("Ada"), Postman.__dict__["count"], functools.partial(Postman.check, "Bob")):
        with pytest.raises(ConfigError, match="a task must be a function"):
            app.task(odd)
    own, check, count = app.task(Postman("Ada").send), app.task(Postman.check), app.task(Postman.count)
    async with app:
        for submitted, expected in (
            (await own.submit("Bob"), "Ada to Bob"),
            (await check.submit("Bob"), "Bob is fine"),
            (await count.submit(), "Postman"),
        ):
            assert (await within(app.wait_for_result(submitted))).result == expected


def test_what_has_no_signature_is_refused(app: Flowrra) -> None:
    with pytest.raises(ConfigError, match=r"<class 'str'> has no signature to check arguments by: wrap it"):
        app.task(str)


def test_a_name_of_the_first_version_says_what_does_its_work() -> None:
    for name in ("IOExecutor", "CPUExecutor", "TaskRegistry"):
        with pytest.raises(
            ImportError, match=rf"flowrra\.{name} was removed in version 0\.2: use .*flowrra-0\.1\.html"
        ):
            getattr(flowrra, name)
    assert not hasattr(flowrra, "nothing")


def test_one_function_with_two_sets_of_options_is_refused(app: Flowrra) -> None:
    app.task(max_retries=1)(send_mail)
    app.task(max_retries=1)(send_mail)
    with pytest.raises(ConfigError, match="registered twice, with different options"):
        app.task(max_retries=2)(send_mail)


def test_a_module_may_be_loaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "reload_app.py").write_text("from flowrra import Flowrra\napp = Flowrra.from_urls()\n")
    (tmp_path / "reload_tasks.py").write_text("from reload_app import app\n@app.task\ndef f() -> int:\n    return 1\n")
    tasks = importlib.import_module("reload_tasks")
    before = tasks.f
    assert importlib.reload(tasks).f is not before
    assert tasks.app.registry["reload_tasks.f"] is tasks.f
    for name in ("reload_app", "reload_tasks"):
        del sys.modules[name]


def run_cell(text: str, file: str, names: dict[str, Any]) -> None:
    exec(compile(text, file, "exec"), names)  # noqa: S102 (as a notebook does)


def test_a_cell_of_a_notebook_may_be_run_again(app: Flowrra) -> None:
    """Each run of a cell is compiled as a file of its own, in one namespace."""
    cells: dict[str, Any] = {"__name__": "cells", "app": app}
    for number in (1, 2):
        text = f"@app.task\ndef answer() -> int:\n    return {number}\n"
        run_cell(text, f"<ipython-input-{number}>", cells)
    assert app.registry["cells.answer"].function() == 2
    with pytest.raises(
        ConfigError, match=r"two tasks are called 'cells\.answer', at <ipython-input-2>:1 and <other>:1"
    ):
        run_cell(text, "<other>", {"__name__": "cells", "app": app})


def test_two_lambdas_are_refused_wherever_they_are(app: Flowrra) -> None:
    cells: dict[str, Any] = {"__name__": "cells", "app": app}
    for text in ("app.task(lambda: 1), app.task(lambda: 2)", "app.task(lambda: 3)"):
        with pytest.raises(ConfigError, match=r"two tasks are called 'cells\.<lambda>'"):
            run_cell(text, f"<{text}>", cells)


def test_a_misspelt_option_of_a_task_gets_the_nearest_one(app: Flowrra) -> None:
    with pytest.raises(ConfigError, match=r"@app\.task has no option 'retries'; did you mean 'max_retries'\?"):
        app.task(retries=3)  # type: ignore[call-overload]


# ---------------------------------------------------------------------------
# A task looks like its function
# ---------------------------------------------------------------------------


def test_an_async_task_is_a_coroutine_function(app: Flowrra) -> None:
    @app.task
    async def add(left: int, right: int = 2) -> int:
        """Add."""
        return left + right

    @app.task
    def plain() -> None: ...

    assert inspect.iscoroutinefunction(add)
    assert not inspect.iscoroutinefunction(plain)
    assert (add.__name__, add.__doc__, add.__module__) == ("add", "Add.", __name__)
    assert inspect.unwrap(add) is add.function
    assert str(inspect.signature(add)) == "(left: int, right: int = 2) -> int"


def test_a_background_task_of_a_framework_runs_it(app: Flowrra) -> None:
    from starlette.background import BackgroundTasks

    done: list[int] = []

    @app.task
    async def work(number: int) -> None:
        done.append(number)

    background = BackgroundTasks()
    background.add_task(work, 7)
    asyncio.run(background())
    assert done == [7]


# ---------------------------------------------------------------------------
# Submitting
# ---------------------------------------------------------------------------


async def keep(**words: str) -> dict[str, str]:
    return words


async def tell(priority: str = "", **words: str) -> tuple[str, dict[str, str], int]:
    return priority, words, current_job().job.priority


async def test_the_options_of_submit_are_no_arguments_of_a_task_with_keywords(app: Flowrra) -> None:
    task = app.task(keep)
    async with app.client():
        job_id = await app.submit(task, priority=3, queue="mail", unique="k", delay=60, text="hello")
        job = await app.get_job(job_id)
    assert (job.priority, job.queue, job.unique, job.status) == (3, "mail", "k", "scheduled")
    assert job.kwargs == {"text": "hello"}


async def test_a_parameter_of_the_task_is_no_option_of_submit(app: Flowrra) -> None:
    task = app.task(tell)
    async with app:
        result = await app.wait_for_result(await app.submit(task, priority="high", text="a"), timeout=20)
    assert result.result == ("high", {"text": "a"}, 0)


async def test_what_options_returns_can_be_submitted_by_the_app(app: Flowrra) -> None:
    task = app.task(keep)
    async with app.client():
        job = await app.get_job(await app.submit(task.options(priority=5), text="a"))
    assert (job.priority, job.kwargs) == (5, {"text": "a"})


def test_what_options_returns_can_be_submitted_from_plain_code(app: Flowrra) -> None:
    task = app.task(keep)
    job_id = app.sync.submit(task.options(queue="mail", priority=5), text="a")
    assert [(job.id, job.queue, job.priority) for job in app.sync.jobs()] == [(job_id, "mail", 5)]
    app.sync.close()


def test_a_word_that_is_neither_a_parameter_nor_an_option_is_refused(app: Flowrra) -> None:
    task = app.task(send_mail)
    with pytest.raises(TypeError, match=r"'dealy', and submit has no such option; did you mean 'delay'\?"):
        asyncio.run(app.submit(task, dealy=5))  # type: ignore[call-overload]


@pytest.mark.parametrize("way", ["task", "options", "app", "many", "cancel", "emit"])
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
def test_a_submit_that_nobody_awaits_is_said(app: Flowrra, way: str, caplog: pytest.LogCaptureFixture) -> None:
    task = app.task(send_mail)
    calls: dict[str, Callable[[], object]] = {
        "task": lambda: task.submit("ann"),
        "options": lambda: task.options(priority=1).submit("ann"),
        "app": lambda: app.submit(task, "ann"),
        "many": lambda: app.submit_many(task, [("ann",)]),
        "cancel": lambda: app.cancel("an id"),
        "emit": lambda: app.emit("approved:42"),
    }
    with caplog.at_level(logging.ERROR, "flowrra"):
        calls[way]()
        gc.collect()
    assert "was called without await, so it did nothing: use app.sync in plain code" in caplog.text


def test_a_submit_that_is_run_by_asyncio_is_not_complained_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    app = Flowrra.from_urls(f"sqlite:///{tmp_path}/jobs.db")
    task = app.task(send_mail)

    async def call() -> None:
        await task.submit("ann")
        await app.broker.close()

    asyncio.run(call())
    for made in (task.submit("ann"), app.submit(task, "ann")):
        asyncio.run(made)
    gc.collect()
    assert caplog.text == ""
    with warnings.catch_warnings(action="ignore"):  # from Python 3.14 on it is deprecated, and still called by others
        assert asyncio.iscoroutinefunction(task.submit)
        assert asyncio.iscoroutinefunction(app.submit)


# ---------------------------------------------------------------------------
# Defaults
# ---------------------------------------------------------------------------


def test_none_is_the_default_everywhere() -> None:
    from flowrra import Config, MemoryBroker

    assert isinstance(Flowrra.from_urls(None, None).broker, MemoryBroker)
    assert Config(broker=None, backend=None, executor=None) == Config()  # type: ignore[arg-type]
