"""Runs `async def` tests, each on a new event loop, most in debug mode.

No plugin: a test needs a loop and nothing else. What a loop would only log (an exception
nobody fetched, a task destroyed while pending) fails the test.
"""

import asyncio
import contextlib
import functools
import inspect
import os
import signal
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis.configuration import set_hypothesis_home_dir

from tests.support.apps import SECONDS, flowrra_threads

# Compiled modules are kept, whatever the environment says: the tests start hundreds of processes.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# A shell that runs the tests in the background lets them ignore Ctrl-C, and so all processes that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["tests.support.services", "tests.support.browser", "tests.support.dashboard_shop"]
pytest.register_assert_rewrite("flowrra_extras.contracts")  # tests, but in no test file
set_hypothesis_home_dir(Path(__file__).parent.parent / ".cache" / "hypothesis")
# A loop in debug mode on a busy machine is slow; the time limit of the whole test is enough.
settings.register_profile("flowrra", settings.default, deadline=None)
settings.load_profile("flowrra")


# Kills, outages, browsers, installations, and moves that are stopped at each point: half of the time of all tests.
# `make test` leaves them out.
SLOW = frozenset((
    "test_backend", "test_crashes", "test_dashboard_browser_actions", "test_dashboard_browser_live",
    "test_dashboard_browser_mounted", "test_dashboard_browser_pages", "test_dashboard_incidents",
    "test_dashboard_programs", "test_limit_chaos", "test_migrate", "test_migrate_chaos",
    "test_outages", "test_packaging", "test_postgres_faults", "test_postgres_pooler",
    "test_recycling", "test_redis_faults", "test_schedule_processes", "test_shop", "test_worker_stop",
))  # fmt: skip


# Others that take half a minute or more.
LONG = frozenset(("test_broker_contract", "test_docs", "test_postgres"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem in SLOW:
            item.add_marker(pytest.mark.slow)
    # Long files first, so that no process is left alone with one at the end.
    items.sort(key=lambda item: item.path.stem not in SLOW | LONG)


@pytest.fixture(scope="module", autouse=True)
def _threads_end() -> Iterator[None]:
    """What a file starts ends with it; otherwise a test of another file would find it, sometimes."""
    yield
    deadline = time.monotonic() + SECONDS
    while (left := flowrra_threads()) and time.monotonic() < deadline:
        time.sleep(0.01)
    frames = sys._current_frames()
    for thread in left:
        print(thread.name, *traceback.format_stack(frames.get(thread.ident or 0)), sep="\n")
    assert not left, "threads were left running"


# Tests of what a worker does, which run on uvloop too, where there is one.
ON_UVLOOP_TOO = frozenset(("test_cpu_limits", "test_worker", "test_worker_attempts", "test_worker_stop"))
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
with contextlib.suppress(ImportError):
    import uvloop

    LOOPS["uvloop"] = uvloop.new_event_loop


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.definition.path.stem in ON_UVLOOP_TOO and inspect.iscoroutinefunction(metafunc.function):
        metafunc.fixturenames.append("loop")  # no fixture: the test does not see it
        metafunc.parametrize("loop", LOOPS)


# Where the loop is not in debug mode, which finds calls from other threads, and takes a third of the time.
PLAIN = frozenset((
    "cli", "dashboard", "django", "docs", "scheduler", "test_differential", "test_postgres_pooler",
    "test_redis_indexes", "test_redis_lookups",
))  # fmt: skip


def run_in_loop(
    test: Callable[..., Awaitable[None]], *args: Any, loop: str = "asyncio", debug: bool = True, **kwargs: Any
) -> None:
    complaints: list[dict[str, Any]] = []

    async def watched() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        loop.slow_callback_duration = 60.0  # else a busy machine gets a line into logs that tests compare
        await test(*args, **kwargs)

    with asyncio.Runner(debug=debug, loop_factory=LOOPS[loop]) as runner:
        runner.run(watched())
    assert not complaints, f"the event loop complained: {complaints}"


def looped(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def in_loop(*args: Any, **kwargs: Any) -> None:
        run_in_loop(test, *args, **kwargs)

    return in_loop


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    test = pyfuncitem.obj
    given = getattr(test, "hypothesis", None)
    if given and inspect.iscoroutinefunction(given.inner_test):
        # Each example gets a loop of its own; hypothesis itself stays synchronous.
        given.inner_test = looped(given.inner_test)
    if not inspect.iscoroutinefunction(test):
        return None
    names = inspect.signature(test).parameters
    loop: Any = pyfuncitem.funcargs.get("loop", "asyncio")
    debug = not PLAIN.intersection(pyfuncitem.path.with_suffix("").parts)
    run_in_loop(test, loop=loop, debug=debug, **{name: pyfuncitem.funcargs[name] for name in names})
    return True
