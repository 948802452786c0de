"""A place for schedules that no other test uses, on each kind of store, given by its URL."""

import asyncio
import contextlib
import os
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

from tests.support.services import MYSQL_URL, POSTGRES_URL, REDIS_URL, forget_prefix, in_mysql, in_postgres, require

KINDS = ("memory", "sqlite", "postgresql", "mysql", "redis")


@contextlib.contextmanager
def place(kind: str, folder: Path) -> Iterator[str]:
    """The URL of an empty store, which is gone at the end; the test is skipped where there is no server."""
    name = f"flowrra_test_{os.urandom(6).hex()}"
    if kind == "memory":
        yield "memory://"
    elif kind == "sqlite":
        yield f"sqlite:///{folder}/{name}.db"
    elif kind == "postgresql":
        server = require(POSTGRES_URL)
        asyncio.run(in_postgres(server, f"CREATE SCHEMA {name}"))
        yield f"{server}?search_path={name}"
        asyncio.run(in_postgres(server, f"DROP SCHEMA {name} CASCADE"))
    elif kind == "redis":
        yield f"{require(REDIS_URL)}?prefix={name}"
        forget_prefix(REDIS_URL, name)
    else:
        server = require(MYSQL_URL)
        asyncio.run(in_mysql(server, f"CREATE DATABASE {name}"))
        yield urllib.parse.urlsplit(server)._replace(path=f"/{name}").geturl()
        asyncio.run(in_mysql(server, f"DROP DATABASE {name}"))
