"""The pytest plugin: fixtures for tests of code that submits jobs. It imports Flowrra when a test asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flowrra import Flowrra
    from flowrra_extras.testing import IsolatedApp


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("flowrra_app", "the app that the fixture flowrra_app isolates, as module:attribute")


@pytest.fixture
def flowrra_target(pytestconfig: pytest.Config) -> Flowrra:
    """The app that `flowrra_app` isolates, from the option `flowrra_app`. Override it to return another app."""
    from flowrra import load_app

    target = pytestconfig.getini("flowrra_app")
    if not target:
        pytest.fail("which app? Set flowrra_app = module:attribute in pytest's options, or override flowrra_target")
    return load_app(str(target))


@pytest.fixture
def flowrra_app(flowrra_target: Flowrra) -> Iterator[IsolatedApp]:
    """The app with its jobs in memory; they run when the test says so. See `flowrra_extras.testing.isolated`."""
    from flowrra_extras.testing import isolated

    with isolated(flowrra_target) as test:
        yield test
