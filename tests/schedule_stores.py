"""A place for schedules that no other test uses, on each kind of store, given by its URL."""

import asyncio
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg

from flowrra_extras.scheduler.database import server_address
from tests.services import MYSQL_URL, POSTGRES_URL, require

KINDS = ("memory", "sqlite", "postgresql", "mysql")


@contextlib.contextmanager
def place(kind: str, folder: Path) -> Iterator[str]:
    """The URL of an empty store, which is gone at the end; the test is skipped where there is no server."""
    name = f"flowrra_test_{os.urandom(6).hex()}"
    if kind == "memory":
        yield "memory://"
    elif kind == "sqlite":
        yield f"sqlite:///{folder}/{name}.db"
    elif kind == "postgresql":
        with _postgres_schema(require(POSTGRES_URL), name) as url:
            yield url
    else:
        with _mysql_database(require(MYSQL_URL), name) as url:
            yield url


@contextlib.contextmanager
def _postgres_schema(server: str, name: str) -> Iterator[str]:
    async def execute(statement: str) -> None:
        connection = await asyncpg.connect(server)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    asyncio.run(execute(f"CREATE SCHEMA {name}"))
    try:
        yield f"{server}{'&' if '?' in server else '?'}search_path={name}"
    finally:
        asyncio.run(execute(f"DROP SCHEMA {name} CASCADE"))


@contextlib.contextmanager
def _mysql_database(server: str, name: str) -> Iterator[str]:
    import asyncmy

    address = server_address(server, port=3306, options=())
    options: dict[str, Any] = {"host": address.host, "port": address.port, "user": address.user}

    async def execute(statement: str) -> None:
        connection = await asyncmy.connect(**options, password=address.password or "")
        try:
            async with connection.cursor() as cursor:
                await cursor.execute(statement)
        finally:
            await connection.ensure_closed()

    asyncio.run(execute(f"CREATE DATABASE {name}"))
    try:
        yield f"{server.rpartition('/')[0]}/{name}"
    finally:
        asyncio.run(execute(f"DROP DATABASE {name}"))
