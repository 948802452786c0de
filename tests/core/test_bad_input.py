"""Wrong use: each message names the value and says what to do.

What goes wrong in other processes (crashes, locks, full disks) has files of its own.
"""

import datetime as dt
import functools
import math
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from flowrra import (
    BackendConfig,
    BrokerConfig,
    Config,
    ConfigError,
    ExecutorConfig,
    ExecutorNotRunningError,
    Flowrra,
    FlowrraError,
    Retry,
    SerializationError,
    TaskNotFoundError,
    TaskTimeoutError,
    result_of,
)
from tests.support.apps import make_app


@pytest.fixture
def app() -> Flowrra:
    app = Flowrra.from_urls()

    @app.task(name="send")
    async def send(to: str, *, subject: str = "") -> str:
        return to

    return app


def loose(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function without its types: these tests call what a type checker would refuse."""
    return function


# ---------------------------------------------------------------------------
# Submitting
# ---------------------------------------------------------------------------


async def test_a_function_that_is_no_task(app: Flowrra) -> None:
    def plain() -> None:
        """Not registered."""

    submit = loose(app.submit)
    with pytest.raises(TaskNotFoundError, match=r"<function .*plain.*> is not a task: decorate the function with @app"):
        await submit(plain)
    with pytest.raises(TaskNotFoundError, match=r"None is not a task: decorate"):
        await submit(None)


@pytest.mark.parametrize("call", ["submit", "submit_many", "submit_in"])
async def test_a_task_of_another_app(app: Flowrra, call: str) -> None:
    submit = functools.partial(loose(app.submit_in), None) if call == "submit_in" else getattr(app, call)
    row = [("a",)] if call == "submit_many" else "a"
    other = Flowrra.from_urls().task(name="send")(app.registry["send"].function)
    with pytest.raises(TaskNotFoundError, match="the task 'send' belongs to another app"):
        await submit(other, row)
    with pytest.raises(TaskNotFoundError, match="is not a task"):
        await submit(len, row)
    if call == "submit_many":
        with pytest.raises(TaskNotFoundError, match="the task 'send' belongs to another app"):
            await submit(other.options(priority=3), row)


@pytest.mark.parametrize(
    ("args", "kwargs", "why"),
    [
        ((), {}, "missing a required argument: 'to'"),
        (("a", "b"), {}, "too many positional arguments"),
        (("a",), {"cc": "b"}, "got an unexpected keyword argument 'cc'"),
        (("a",), {"to": "b"}, "multiple values for argument 'to'"),
    ],
)
async def test_wrong_arguments_fail_at_submit_and_name_the_task(
    app: Flowrra, args: tuple[str, ...], kwargs: dict[str, str], why: str
) -> None:
    task = app.registry["send"]
    calls: list[Callable[[], Awaitable[Any]]] = [
        lambda: app.submit(task, *args, **kwargs),
        lambda: task.submit(*args, **kwargs),
        lambda: task.options(priority=1).submit(*args, **kwargs),
    ]
    for call in calls:
        with pytest.raises(TypeError, match=rf"^send\(to: .*\) -> .*: {re.escape(why)}"):
            await call()


async def test_one_id_for_several_jobs_is_refused(app: Flowrra) -> None:
    send = app.registry["send"]
    async with app.client():
        named = send.options(task_id="x")
        with pytest.raises(ConfigError, match=r"^task_id='x' is the id of one job, and here of 3$"):
            await app.submit_many(named, [("a",), ("b",), {"to": "c"}])
        with pytest.raises(ConfigError, match=r"^task_id='x' is the id of one job, and here of 2$"):
            await app.submit_chain([named, send, named], "a")
        assert await app.jobs() == []
        assert await app.submit_many(named, [("a",)]) == ["x"]


async def test_a_row_that_is_no_row(app: Flowrra) -> None:
    with pytest.raises(TypeError, match=r"row 1 is 'abc': a row is a tuple of arguments, such as \('abc',\)"):
        await app.submit_many(app.registry["send"], [("a",), "abc"])


@pytest.mark.parametrize("row", [("b", "c"), {"nope": 1}, ("x" * 200_000, "c")], ids=["number", "name", "large"])
async def test_a_row_with_wrong_arguments_is_named(app: Flowrra, row: Any) -> None:
    """Among thousands, the message about the arguments alone does not lead to it."""
    with pytest.raises((TypeError, SerializationError)) as caught:
        await app.submit_many(app.registry["send"], [("a",), row])
    assert caught.value.__notes__ == ["Row 1 of submit_many has these arguments. No job was submitted."]
    assert await app.jobs() == []


@pytest.mark.parametrize(
    ("args", "path"),
    [
        ((object(),), r"args\[0\] is a builtins\.object"),
        (([1, {"x": {3: object()}}],), r"args\[0\]\[1\]\['x'\]\[3\] is"),
    ],
)
async def test_an_argument_that_cannot_be_kept_is_named_by_its_path(args: Any, path: str, tmp_path: Path) -> None:
    app = make_app(f"sqlite:///{tmp_path}/jobs.db")
    keep = app.task(name="keep")(lambda value: None)
    async with app.client():
        with pytest.raises(SerializationError, match=rf"an argument of keep: {path}.*pass plain data") as caught:
            await keep.submit(*args)
        assert isinstance(caught.value, TypeError)
        assert await app.jobs() == []


async def test_submitting_to_a_stopped_app(app: Flowrra) -> None:
    await app.stop()
    with pytest.raises(ExecutorNotRunningError, match=r"has been stopped: start\(\) it again"):
        await app.submit(app.registry["send"], "a")


# ---------------------------------------------------------------------------
# Options of a submission
# ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delay": -1}, "delay must be at least 0 s, not -1"),
        ({"delay": dt.timedelta(seconds=-1)}, "delay must be at least 0 s, not -1.0"),
        ({"delay": math.nan}, "delay must be a finite number of seconds, not nan"),
        ({"delay": "5"}, "delay must be a finite number of seconds, not '5'"),
        ({"delay": True}, "delay must be a finite number of seconds, not True"),
        ({"delay": 1, "run_at": dt.datetime(2030, 1, 1, tzinfo=dt.UTC)}, "give delay= or run_at=, not both"),
        ({"run_at": "tomorrow"}, "run_at must be a datetime, not 'tomorrow'"),
        ({"expires": -0.5}, "expires must be at least 0 s, not -0.5"),
        ({"priority": "high"}, "priority must be an int, not 'high'"),
        ({"priority": 1.5}, "priority must be an int, not 1.5"),
        ({"priority": 2**63}, f"priority must be at most 9223372036854775807, not {2**63}"),
        ({"queue": "a,b"}, "a queue's name is text without ',' and ':', and without blanks at its ends, not 'a,b'"),
        ({"queue": ""}, "a queue's name is text without ',' and ':', and without blanks at its ends, not ''"),
        ({"unique": ""}, "unique must be a text of 1 to 255 characters, not ''"),
        ({"task_id": 17}, "task_id must be a text of 1 to 255 characters, not 17"),
        ({"timeout": 0}, "timeout must be at least 0.001 s, not 0"),
        ({"max_retries": -1}, "max_retries must be at least 0, not -1"),
        ({"result_ttl": -1}, "result_ttl must be at least 0 s, not -1"),
    ],
    ids=str,
)
def test_an_option_out_of_range(app: Flowrra, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        app.registry["send"].options(**options)
    assert isinstance(caught.value, ValueError)


NOW = dt.datetime.now(dt.UTC)


@pytest.mark.parametrize(
    "start", [{"delay": 3600}, {"delay": dt.timedelta(hours=1)}, {"run_at": NOW + dt.timedelta(hours=1)}]
)
@pytest.mark.parametrize("expires", [0, 1200.5, dt.timedelta(seconds=10), NOW - dt.timedelta(days=9), NOW])
async def test_a_job_that_expires_before_it_may_start_is_refused(app: Flowrra, start: Any, expires: Any) -> None:
    async with app.client():
        with pytest.raises(
            ConfigError, match=r"^expires= ends at .*, before delay= or run_at=, .*: the job could never run$"
        ):
            await loose(app.submit)("send", "a", expires=expires, **start)
        assert await app.jobs() == []
        await loose(app.submit)("send", "a", expires=NOW + dt.timedelta(hours=2), **start)


async def test_a_priority_that_is_no_int(app: Flowrra) -> None:
    with pytest.raises(ConfigError, match="priority must be an int, not 'urgent'"):
        await loose(app.submit)(app.registry["send"], "a", priority="urgent")


# ---------------------------------------------------------------------------
# Results
# ---------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["memory://", "sqlite://"])
async def test_an_unknown_id_is_told_at_once(url: str) -> None:
    """Without a time-out: it must not wait for a job that will never be."""
    async with make_app(url).client() as app:
        for call in (app.wait_for_result("nobody"), app.get_job("nobody"), app.explain("nobody")):
            with pytest.raises(TaskNotFoundError, match="no job 'nobody' is known here: never submitted, or purged"):
                await call


async def test_a_time_out_says_that_the_job_goes_on(app: Flowrra) -> None:
    task_id = await app.submit(app.registry["send"], "a")
    with pytest.raises(TaskTimeoutError, match=f"job {task_id} has not finished within 0 s; the job continues"):
        await app.wait_for_result(task_id, timeout=0)


@pytest.mark.parametrize("timeout", [-1, -0.5, math.nan, "5"])
async def test_a_time_out_that_is_none(app: Flowrra, timeout: Any) -> None:
    task_id = await app.submit(app.registry["send"], "a")
    with pytest.raises(ConfigError, match=rf"timeout must be .*, not {timeout!r}"):
        await app.wait_for_result(task_id, timeout=timeout)


def test_result_of_takes_an_id(app: Flowrra) -> None:
    with pytest.raises(ConfigError, match=r"the id of a job is the text that submit\(\) returned, not 17"):
        loose(result_of)(17)


@pytest.mark.parametrize("url", ["memory://", "sqlite://"])
@pytest.mark.parametrize("call", ["wait_for_result", "get_result", "get_job", "explain", "cancel", "requeue", "delete"])
async def test_what_is_no_id_is_refused_on_every_broker(url: str, call: str) -> None:
    async with Flowrra.from_urls(url).client() as app:
        for wrong in (None, 17, b"id", ["id"], ("id",), object(), "a\0b", "\ud800"):
            message = f"the id of a job is the text that submit() returned, not {wrong!r}"
            with pytest.raises(ConfigError, match=re.escape(message)):
                await getattr(app, call)(wrong)


@pytest.mark.parametrize("how", [{"config": "sqlite:///a.db"}, {"broker": "sqlite:///a.db"}, {"backend": "sqlite://"}])
def test_a_url_where_an_object_belongs(how: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"for URLs, write Flowrra\.from_urls\(broker\)"):
        loose(Flowrra)(**how)


def test_a_part_of_the_configuration_of_another_type() -> None:
    with pytest.raises(ConfigError, match=r"^broker must be a BrokerConfig, not a str$"):  # which may hold a password
        loose(Config)(broker="redis://:secret@host")
    for queues in (["mail"], "mail:5", 5):
        with pytest.raises(ConfigError, match=re.escape(f"such as {{'mail': 5}}, not {queues!r}: leave it out")):
            loose(ExecutorConfig)(queues=queues)


@pytest.mark.parametrize("wrong", ["false", 0, 30, None])
def test_what_is_neither_true_nor_false(app: Flowrra, wrong: Any) -> None:
    with pytest.raises(ConfigError, match=f"scheduler must be True or False, not {wrong!r}"):
        ExecutorConfig(scheduler=wrong)
    for name in ("jitter", "cpu_bound"):
        with pytest.raises(ConfigError, match=f"{name} must be True or False, not {wrong!r}"):
            loose(app.task)(**{name: wrong})
    if wrong is not None:  # of one submission, it means that the option is not given
        with pytest.raises(ConfigError, match=f"jitter must be True or False, not {wrong!r}"):
            app.registry["send"].options(jitter=wrong)


@pytest.mark.parametrize("limit", [0, -1, 1.5])
async def test_a_limit_that_is_none(app: Flowrra, limit: Any) -> None:
    with pytest.raises(ConfigError, match=f"limit must be .*, not {limit}"):
        await app.jobs(limit=limit)


# ---------------------------------------------------------------------------
# Registering
# ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_retries": -1}, "max_retries must be at least 0, not -1"),
        ({"max_retries": 2.5}, "max_retries must be an int, not 2.5"),
        ({"retry_delay": -0.1}, "retry_delay must be at least 0 s, not -0.1"),
        ({"backoff": -2}, "backoff must be at least 0, not -2"),
        ({"retry_on": "ValueError"}, "retry_on takes exception types, not 'ValueError'"),
        ({"no_retry_on": (ValueError, 3)}, "no_retry_on takes exception types, not 3"),
        ({"timeout": -1}, "timeout must be at least 0.001 s, not -1"),
        ({"priority": None}, "priority must be an int, not None"),
        ({"linger": 5}, "linger= goes with batch=: it is how long a job waits for others of its batch"),
        ({"queue": " mail"}, "a queue's name is text without ',' and ':', and without blanks at its ends, not ' mail'"),
        ({"name": ""}, "the name of a task must be a text of 1 to 255 characters, not ''"),
        ({"retries": 3}, "@app.task has no option 'retries'; did you mean 'max_retries'?"),
    ],
    ids=str,
)
def test_a_task_option_out_of_range(app: Flowrra, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        loose(app.task)(**options)(lambda: None)


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ({"after": "x"}, "after must be an int, not 'x'"),
        ({"after": 2**63}, f"after must be at most {2**63 - 1}, not {2**63}"),
        ({"limit": 10**30}, f"limit must be at most {2**63 - 1}, not {10**30}"),
        ({"limit": 0}, "limit must be at least 1, not 0"),
    ],
    ids=str,
)
async def test_a_page_that_cannot_be(app: Flowrra, page: dict[str, Any], message: str) -> None:
    async with app.client():
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            await app.jobs(**page)


def test_what_is_no_function(app: Flowrra) -> None:
    with pytest.raises(ConfigError, match="a task must be a function, not 17"):
        loose(app.task)(17)


def test_a_lambda_and_a_closure_as_cpu_tasks(app: Flowrra) -> None:
    def closure() -> None:
        """Inside of a function."""

    for function in (closure, lambda: None):
        with pytest.raises(
            ConfigError, match=r"CPU-bound task 'heavy' is .*, which another process cannot import: .* top level"
        ):
            app.task(cpu_bound=True, name="heavy")(function)
    assert "heavy" not in app.registry


def test_two_tasks_of_one_name(app: Flowrra) -> None:
    here = re.escape(__file__)
    with pytest.raises(
        ConfigError, match=rf"two tasks are called 'send', at {here}:\d+ and {here}:\d+: give one another"
    ):
        app.task(name="send")(lambda: None)
    assert app.registry["send"].is_async


# ---------------------------------------------------------------------------
# URLs
# ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "a broker needs a URL such as sqlite:///jobs.db, not ''"),
        ("jobs.db", "'jobs.db' is not a URL: a file is sqlite:///jobs.db"),
        (
            "nosuch://host",
            "no broker has the scheme 'nosuch'; the schemes are memory://, sqlite://",
        ),
        ("memory://host", "the URL of the memory broker is memory://, not 'memory://host'"),
        ("sqlite://jobs.db", "'sqlite://jobs.db' names no file: the form is sqlite:///name.db or"),
        ("sqlite:///jobs#1.db", "'sqlite:///jobs#1.db' names no file: the form is sqlite:///name.db or"),
        ("sqlite:///:memory:", "; sqlite:// is private and in memory"),
        ("sqlite:///a%00b.db", "'sqlite:///a%00b.db' names no file: the form is sqlite:///name.db or"),
        ("sqlite:jobs.db", "'sqlite:jobs.db' is not a URL: a file is sqlite:///jobs.db"),
        ("sqlite:///jobs.db?sync=off", "has the unknown option 'sync'; there is synchronous=full|normal"),
        ("sqlite:///jobs.db?synchronous=off", "synchronous must be 'full' or 'normal', not 'off'"),
    ],
)
def test_a_url_that_leads_nowhere(url: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        Flowrra.from_urls(url)


def test_a_backend_url_that_leads_nowhere() -> None:
    with pytest.raises(ConfigError, match="no broker has the scheme 'nosuch'"):
        Flowrra.from_urls("memory://", "nosuch://x")


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Installs a distribution that serves the scheme parrot://."""

    def install(target: str) -> None:
        info = tmp_path / "flowrra_parrot-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: flowrra-parrot\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[flowrra.brokers]\nparrot = {target}\n")

    monkeypatch.syspath_prepend(str(tmp_path))
    return install


def test_a_driver_that_is_missing(plugin: Callable[[str], None]) -> None:
    plugin("no_such_driver:ParrotBroker")
    with pytest.raises(
        ConfigError,
        match=r"parrot:// is served by flowrra-parrot, which needs more \(No module named 'no_such_driver'\): install",
    ):
        Flowrra.from_urls("parrot://cage")


def test_a_scheme_of_a_third_party(plugin: Callable[[str], None], tmp_path: Path) -> None:
    (tmp_path / "parrot_broker.py").write_text(
        "from flowrra import MemoryBroker\ndef make(url, config, clock):\n    return MemoryBroker()\n"
    )
    plugin("parrot_broker:make")
    assert type(Flowrra.from_urls("parrot://cage").broker).__name__ == "MemoryBroker"


# ---------------------------------------------------------------------------
# Configuration
# ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (ExecutorConfig, {"io_workers": 0}, "io_workers must be at least 1, not 0"),
        (ExecutorConfig, {"cpu_workers": 0}, "cpu_workers must be at least 1, not 0"),
        (ExecutorConfig, {"io_workers": "4"}, "io_workers must be an int, not '4'"),
        (ExecutorConfig, {"queues": {"mail": 0}}, "the capacity of queue 'mail' must be at least 1, not 0"),
        (ExecutorConfig, {"drain": -1}, "drain must be at least 0 s, not -1"),
        (ExecutorConfig, {"lease": 4.0, "heartbeat": 3.0}, "lease (4 s) must be at least twice heartbeat (3 s)"),
        (ExecutorConfig, {"lease": 1e6}, "lease must be at most 3600 s, not 1000000.0"),
        (BrokerConfig, {"max_queue_size": 0}, "max_queue_size must be at least 1, not 0"),
        (BrokerConfig, {"when_full": "drop"}, "when_full must be 'raise' or 'wait', not 'drop'"),
        (BrokerConfig, {"timeout": None}, "timeout must be a finite number of seconds, not None"),
        (BackendConfig, {"result_ttl": -1}, "result_ttl must be at least 0 s, not -1"),
        (BackendConfig, {"max_results": 0}, "max_results must be at least 1, not 0"),
        (Retry, {"delay": -1}, "delay must be at least 0 s, not -1"),
    ],
    ids=str,
)
def test_a_setting_out_of_range(kind: Callable[..., Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        kind(**options)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"FLOWRRA_EXECUTOR_IO_WORKERS": "many"}, "FLOWRRA_EXECUTOR_IO_WORKERS='many' cannot be read as int"),
        ({"FLOWRRA_EXECUTOR_DRAIN": "x"}, "FLOWRRA_EXECUTOR_DRAIN='x' cannot be read as float"),
        (
            {"FLOWRRA_EXECUTOR_QUEUES": "mail"},
            "FLOWRRA_EXECUTOR_QUEUES='mail' cannot be read as queues with their capacities, such",
        ),
        (
            {"FLOWRRA_EXECUTOR_WORKERS": "3"},
            "FLOWRRA_EXECUTOR_WORKERS is not an option; the options are cpu_workers, drain",
        ),
        ({"FLOWRRA_EXECUTOR_IO_WORKERS": "0"}, "io_workers must be at least 1, not 0"),
    ],
)
def test_an_environment_that_cannot_be_read(environ: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        Config.from_env(environ=environ)


def test_an_environment_that_can_be_read() -> None:
    config = Config.from_env(
        "SHOP_",
        {
            "SHOP_BROKER": "sqlite:///jobs.db",
            "SHOP_BACKEND_RESULT_TTL": "60",
            "SHOP_EXECUTOR_QUEUES": "default:50, cpu:2",
            "SHOP_BROKER_MAX_QUEUE_SIZE": "7",
            "OTHER_EXECUTOR_NONSENSE": "1",
        },
    )
    assert (config.broker.url, config.broker.max_queue_size) == ("sqlite:///jobs.db", 7)
    assert (config.backend.url, config.backend.result_ttl) == (None, 60.0)
    assert config.executor.queues == {"default": 50, "cpu": 2}


def test_every_error_is_a_flowrra_error() -> None:
    for kind in (ConfigError, TaskNotFoundError, TaskTimeoutError, ExecutorNotRunningError, SerializationError):
        assert issubclass(kind, FlowrraError)


# ---------------------------------------------------------------------------
# What cannot be
# ---------------------------------------------------------------------------


async def test_a_schedule_cannot_hold_a_placeholder(app: Flowrra) -> None:
    async with app.client():
        parent = await app.submit(app.registry["send"], "Ada")
        scheduler = app.create_scheduler("memory://")
        with pytest.raises(ConfigError, match=r"a schedule's arguments cannot hold result_of\(\)"):
            await scheduler.schedule_interval("send", 60, args=(result_of(parent),))
