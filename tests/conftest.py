"""Runs `async def` tests, each on a new event loop in debug mode.

No plugin: a test needs a loop and nothing else. What a loop would only log (an exception
nobody fetched, a task destroyed while pending) fails the test.
"""

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis.configuration import set_hypothesis_home_dir

pytest_plugins = ["tests.services", "tests.browser", "tests.dashboard_shop"]
pytest.register_assert_rewrite("flowrra_extras.testing")  # tests, but in no test file
set_hypothesis_home_dir(Path(__file__).parent.parent / ".cache" / "hypothesis")
# A loop in debug mode on a busy machine is slow; the time limit of the whole test is enough.
settings.register_profile("flowrra", settings.default, deadline=None)
settings.load_profile("flowrra")


# Kills, outages, browsers and installations: half of the time of all tests. `make test` leaves them out.
SLOW = frozenset((
    "test_crashes", "test_dashboard_browser_actions", "test_dashboard_browser_live", "test_dashboard_browser_mounted",
    "test_dashboard_browser_pages", "test_dashboard_programs", "test_migrate_chaos", "test_outages", "test_packaging",
    "test_postgres_faults", "test_postgres_pooler", "test_redis_faults", "test_schedule_processes",
))  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem in SLOW:
            item.add_marker(pytest.mark.slow)


def run_in_loop(test: Callable[..., Awaitable[None]], *args: Any, **kwargs: Any) -> None:
    complaints: list[dict[str, Any]] = []

    async def watched() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        loop.slow_callback_duration = 60.0  # else a busy machine gets a line into logs that tests compare
        await test(*args, **kwargs)

    asyncio.run(watched(), debug=True)
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
    run_in_loop(test, **{name: pyfuncitem.funcargs[name] for name in names})
    return True
