"""Redis as broker: the contract, the model, and what is particular to it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from flowrra import Broker
from flowrra_extras.redis import RedisBroker
from flowrra_extras.testing import BrokerContract, ManualClock
from tests.redis_server import age_leases, clean, new_prefix
from tests.services import REDIS_URL
from tests.test_state_machine import BrokerMachine

pytestmark = pytest.mark.usefixtures("redis_url")


class TestRedis(BrokerContract):
    @pytest.fixture(autouse=True)
    def use_prefix(self) -> Iterator[None]:
        with clean(REDIS_URL) as (self.client, self.prefix):
            yield

    async def make_broker(self, clock: ManualClock) -> Broker:
        """Some tests ask for several, each on an empty store."""
        for key in self.client.scan_iter(f"{{{self.prefix}}}:*", count=1000):
            self.client.unlink(key)
        return RedisBroker(f"{REDIS_URL}?prefix={self.prefix}", clock=clock)

    async def let_pass(self, broker: Broker, clock: ManualClock, seconds: float) -> None:
        clock.advance(seconds)
        age_leases(self.client, self.prefix, seconds)


class RedisMachine(BrokerMachine):
    @staticmethod
    def make_broker(folder: Path, clock: ManualClock) -> Broker:
        return RedisBroker(f"{REDIS_URL}?prefix={new_prefix()}", clock=clock)

    def __init__(self) -> None:
        super().__init__()
        assert isinstance(self.broker, RedisBroker)
        self.prefix = self.broker.url.partition("prefix=")[2]
        self.client = redis.Redis.from_url(REDIS_URL)

    def let_pass(self, seconds: float) -> None:
        super().let_pass(seconds)
        age_leases(self.client, self.prefix, seconds)

    def teardown(self) -> None:
        super().teardown()
        for key in self.client.scan_iter(f"{{{self.prefix}}}:*", count=1000):
            self.client.unlink(key)
        self.client.close()


@pytest.mark.timeout(600)  # a failure is made small first, which takes its time
def test_the_broker_agrees_with_the_model() -> None:
    chosen = settings(
        max_examples=80, stateful_step_count=30, suppress_health_check=[HealthCheck.too_slow], deadline=None
    )
    run_state_machine_as_test(RedisMachine, settings=chosen)
