"""The servers that tests need, as fixtures that give a server's address.

A module or a class that needs one says `pytestmark = pytest.mark.usefixtures("postgres_url")`, or
its tests take the fixture. Where the server cannot be reached they are skipped with the reason;
with FLOWRRA_REQUIRE_SERVICES=1 in the environment, they fail with it. Others use the servers at
the same time: keep to names with a random part, and clean up; `postgres_schema`, `mysql_database`
and `redis_prefix` are such a part of a server, for one test.
"""

import asyncio
import functools
import os
import socket
import urllib.parse
import uuid
from collections.abc import Iterator
from typing import NoReturn

import pytest

REDIS_URL = os.environ.get("FLOWRRA_TEST_REDIS_URL", "redis://127.0.0.1:6379/0")
POSTGRES_URL = os.environ.get("FLOWRRA_TEST_POSTGRES_URL", "postgresql://postgres@127.0.0.1:5432/test")
MYSQL_URL = os.environ.get("FLOWRRA_TEST_MYSQL_URL", "mysql://root@127.0.0.1:3306/test")

_PORTS = {"redis": 6379, "rediss": 6379, "postgresql": 5432, "postgres": 5432, "mysql": 3306, "mariadb": 3306}


def address(url: str) -> tuple[str, int]:
    """Host and port of a URL, the usual ones where it names none."""
    parts = urllib.parse.urlsplit(url)
    return parts.hostname or "127.0.0.1", parts.port or _PORTS[parts.scheme]


@functools.cache
def trouble(url: str) -> str | None:
    """Why nothing answers at `url`; None if something does. Looked at once a run."""
    host, port = address(url)
    try:
        with socket.create_connection((host, port), timeout=2.0):
            return None
    except OSError as error:
        return f"nothing answers at {host}:{port} ({error})"


def do_without(reason: str) -> NoReturn:
    """End a test that cannot be run: skipped, or failed where services are required."""
    if os.environ.get("FLOWRRA_REQUIRE_SERVICES", "") not in ("", "0"):
        pytest.fail(f"FLOWRRA_REQUIRE_SERVICES is set, but {reason}", pytrace=False)
    pytest.skip(reason)


def require(url: str) -> str:
    """`url`, if something answers there; otherwise the test ends."""
    if reason := trouble(url):
        do_without(reason)
    return url


@pytest.fixture(scope="session")
def redis_url() -> str:
    return require(REDIS_URL)


@pytest.fixture(scope="session")
def postgres_url() -> str:
    return require(POSTGRES_URL)


@pytest.fixture(scope="session")
def mysql_url() -> str:
    return require(MYSQL_URL)


@pytest.fixture
def postgres_schema(postgres_url: str) -> Iterator[str]:
    """A URL whose tables are in a schema of their own."""
    name = f"flowrra_{uuid.uuid4().hex}"
    asyncio.run(in_postgres(postgres_url, f"CREATE SCHEMA {name}"))
    yield f"{postgres_url}?search_path={name}"
    asyncio.run(in_postgres(postgres_url, f"DROP SCHEMA {name} CASCADE"))


@pytest.fixture
def mysql_database(mysql_url: str) -> Iterator[str]:
    """A URL of a database of its own."""
    name = f"flowrra_{uuid.uuid4().hex}"
    asyncio.run(in_mysql(mysql_url, f"CREATE DATABASE {name}"))
    yield urllib.parse.urlsplit(mysql_url)._replace(path=f"/{name}").geturl()
    asyncio.run(in_mysql(mysql_url, f"DROP DATABASE {name}"))


@pytest.fixture
def redis_prefix(redis_url: str) -> Iterator[str]:
    """A URL with a prefix of its own."""
    name = f"flowrra_{uuid.uuid4().hex}"
    yield f"{redis_url}?prefix={name}"
    forget_prefix(redis_url, name)


def forget_prefix(url: str, name: str) -> None:
    """Delete the keys of a prefix."""
    import redis

    with redis.Redis.from_url(url) as client:
        for key in client.scan_iter(f"{{{name}}}:*", count=1000):
            client.unlink(key)


async def in_postgres(url: str, statement: str) -> None:
    """Run a statement on the server of `url`."""
    import asyncpg

    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def in_mysql(url: str, *statements: str) -> None:
    """Run statements on the server of `url`."""
    from flowrra_extras.scheduler.mysql import database_from_url

    link = await database_from_url(url).connect(10.0)
    try:
        for statement in statements:
            await link.execute(statement)
    finally:
        await link.close()
