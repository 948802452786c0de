"""Creates a PostgreSQL database for one contestant on the server of BENCH_POSTGRES_URL, and drops it afterwards."""

from __future__ import annotations

import asyncio
import os
import secrets
import urllib.parse
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVER = os.environ.get("BENCH_POSTGRES_URL", "postgresql://postgres@127.0.0.1:5432/postgres")


def connect(url: str = SERVER) -> Any:
    import asyncpg

    return asyncpg.connect(url)


@contextmanager
def database() -> Iterator[str]:
    """Yield the URL of a new database, which contestants also find in BENCH_DATABASE and BENCH_URL."""
    name = f"flowrra_bench_{secrets.token_hex(6)}"
    asyncio.run(command(f"CREATE DATABASE {name}"))
    url = urllib.parse.urlsplit(SERVER)._replace(path=f"/{name}").geturl()
    os.environ["BENCH_DATABASE"] = os.environ["BENCH_URL"] = url
    try:
        yield url
    finally:
        asyncio.run(command(f"DROP DATABASE {name} WITH (FORCE)"))


async def command(text: str, url: str = SERVER) -> None:
    connection = await connect(url)
    await connection.execute(text)
    await connection.close()
