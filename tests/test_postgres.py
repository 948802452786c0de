"""PostgreSQL as broker: the contract, and what is particular to it."""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest

from flowrra import Broker
from flowrra_extras.postgres import PostgresBroker
from flowrra_extras.testing import BrokerContract, ManualClock
from tests.services import POSTGRES_URL, postgres_url

__all__ = ["postgres_url"]

pytestmark = pytest.mark.usefixtures("postgres_url")


@asynccontextmanager
async def connected() -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    connection = await asyncpg.connect(POSTGRES_URL)
    try:
        yield connection
    finally:
        await connection.close()


class TestContract(BrokerContract):
    @pytest.fixture(autouse=True)
    def use_schema(self) -> None:
        self.schema = f"test_{secrets.token_hex(6)}"

    async def make_broker(self, clock: ManualClock) -> Broker:
        async with connected() as connection:
            await connection.execute(f"DROP SCHEMA IF EXISTS {self.schema} CASCADE")
        return PostgresBroker(f"{POSTGRES_URL}?schema={self.schema}", clock=clock)

    async def let_pass(self, broker: Broker, clock: ManualClock, seconds: float) -> None:
        """The server's clock is a function in the schema, so that it can be put forward too."""
        clock.advance(seconds)
        passed = clock.monotonic() - ManualClock().monotonic()
        async with connected() as connection:
            await connection.execute(
                f"CREATE OR REPLACE FUNCTION {self.schema}.clock() RETURNS timestamptz LANGUAGE sql "
                f"AS $$SELECT clock_timestamp() + interval '{passed} s'$$"
            )
