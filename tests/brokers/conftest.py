"""Fixtures of the tests of brokers."""

from collections.abc import Iterator

import pytest

from tests.support.postgres_server import Connection, clean_schema
from tests.support.services import POSTGRES_URL


@pytest.fixture
def schema(postgres_url: str) -> Iterator[str]:
    """The name of a schema that is gone afterwards."""
    with clean_schema(postgres_url) as (_, schema):
        yield schema


@pytest.fixture(scope="module")
def schema_of_module() -> Iterator[tuple[Connection, str]]:
    """One schema for all tests of a module, which empty it, and a connection to it."""
    with clean_schema(POSTGRES_URL) as connection_and_schema:
        yield connection_and_schema
