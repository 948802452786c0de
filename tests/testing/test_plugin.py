"""The pytest plugin in a project of somebody else's."""

from importlib.metadata import entry_points

import pytest

pytest_plugins = ["pytester"]

APP = """
from flowrra import Flowrra
app = Flowrra.from_urls("redis://127.0.0.1:1/0")

@app.task
async def double(number: int) -> int:
    return 2 * number

def view(number):
    return app.sync.submit(double, number)
"""

TESTS = """
from shop import app, double, view

def test_a_view(flowrra_app):
    task_id = view(4)
    flowrra_app.assert_enqueued(double, 4)
    flowrra_app.sync.drain()
    assert app.sync.get_job(task_id).result == 8

def test_each_test_has_its_own(flowrra_app):
    assert flowrra_app.enqueued() == []
"""


def run(pytester: pytest.Pytester) -> pytest.RunResult:
    known = any(found.value == "flowrra_extras.testing.plugin" for found in entry_points(group="pytest11"))
    plugin = () if known else ("-p", "flowrra_extras.testing.plugin")
    return pytester.runpytest_inprocess("-p", "no:cacheprovider", *plugin)


def test_the_app_is_named_in_the_options(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nflowrra_app = shop:app\n")
    pytester.makepyfile(shop=APP, test_shop=TESTS)
    run(pytester).assert_outcomes(passed=2)


def test_the_app_is_given_by_a_fixture(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("import pytest, shop\n\n@pytest.fixture\ndef flowrra_target():\n    return shop.app\n")
    pytester.makepyfile(shop=APP, test_shop=TESTS)
    run(pytester).assert_outcomes(passed=2)


def test_without_either_it_is_said(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(shop=APP, test_shop=TESTS)
    result = run(pytester)
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["*Set flowrra_app = module:attribute*"])
