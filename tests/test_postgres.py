"""PostgreSQL as broker: the contract, the model, and what is particular to it."""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from flowrra import Broker
from flowrra_extras.postgres import PostgresBroker
from flowrra_extras.testing import BrokerContract, ManualClock
from tests.postgres_server import age_leases, clean_schema, drop
from tests.services import POSTGRES_URL
from tests.test_state_machine import BrokerMachine

pytestmark = pytest.mark.usefixtures("postgres_url")


class TestPostgres(BrokerContract):
    @pytest.fixture(autouse=True)
    def use_schema(self) -> Iterator[None]:
        with clean_schema(POSTGRES_URL) as (self.connection, self.schema):
            yield

    async def make_broker(self, clock: ManualClock) -> Broker:
        """Some tests ask for several, each on an empty store."""
        drop(self.connection, self.schema)
        return PostgresBroker(f"{POSTGRES_URL}?schema={self.schema}", clock=clock)

    async def let_pass(self, broker: Broker, clock: ManualClock, seconds: float) -> None:
        clock.advance(seconds)
        age_leases(self.connection, self.schema, seconds)


class PostgresMachine(BrokerMachine):
    @staticmethod
    def make_broker(folder: Path, clock: ManualClock) -> Broker:
        return PostgresBroker(f"{POSTGRES_URL}?schema=test_{folder.name.lower()}", clock=clock)

    def __init__(self) -> None:
        super().__init__()
        self.schema = f"test_{Path(self.folder.name).name.lower()}"
        self.connection = psycopg.connect(POSTGRES_URL, autocommit=True)

    def let_pass(self, seconds: float) -> None:
        super().let_pass(seconds)
        age_leases(self.connection, self.schema, seconds)

    def teardown(self) -> None:
        super().teardown()
        drop(self.connection, self.schema)
        self.connection.close()


@pytest.mark.timeout(600)  # a failure is made small first, which takes its time
def test_the_broker_agrees_with_the_model() -> None:
    chosen = settings(
        max_examples=40, stateful_step_count=30, suppress_health_check=[HealthCheck.too_slow], deadline=None
    )
    run_state_machine_as_test(PostgresMachine, settings=chosen)
