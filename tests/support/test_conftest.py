"""The runner of `async def` tests: what it must run, and what it must not let pass."""

import asyncio

import pytest

pytest_plugins = ["pytester"]

SUITE = """
import asyncio

import pytest
from hypothesis import Phase, given, settings, strategies as st

async def failing():
    await asyncio.sleep(0)
    raise LookupError("seen")

async def test_passes(tmp_path):
    await asyncio.sleep(0)
    assert tmp_path.is_dir()

@settings(max_examples=3, phases=[Phase.generate])
@given(number=st.integers())
async def test_passes_under_hypothesis(number):
    await asyncio.sleep(0)
    assert number * 0 == 0

async def test_fails():
    await failing()

@settings(max_examples=3, phases=[Phase.generate])
@given(number=st.integers())
async def test_fails_under_hypothesis(number):
    await failing()

async def test_leaves_an_exception_that_nobody_fetches():
    task = asyncio.create_task(failing())
    await asyncio.wait([task])
"""


async def test_the_loop_is_in_debug_mode() -> None:
    await asyncio.sleep(0)
    assert asyncio.get_running_loop().get_debug()


def test_failures_are_failures(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("from tests.conftest import pytest_pyfunc_call")
    pytester.makepyfile(SUITE)
    result = pytester.runpytest("-p", "no:cacheprovider")
    result.assert_outcomes(passed=2, failed=3)
    result.stdout.fnmatch_lines(["*the event loop complained*never retrieved*"])
