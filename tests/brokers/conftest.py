"""Fixtures of the tests of brokers."""

from collections.abc import Iterator

import pytest

from tests.support.postgres_server import clean_schema


@pytest.fixture
def schema(postgres_url: str) -> Iterator[str]:
    """The name of a schema that is gone afterwards."""
    with clean_schema(postgres_url) as (_, schema):
        yield schema
