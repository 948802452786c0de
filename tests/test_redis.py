"""Redis as broker: the contract, and what is particular to it."""

import asyncio
import itertools
import os
import secrets

import pytest

from flowrra import Broker
from flowrra_extras.redis import RedisBroker
from flowrra_extras.testing import BrokerContract, ManualClock

URL = os.environ.get("FLOWRRA_TEST_REDIS_URL", "redis://127.0.0.1:6379/0")


class TestRedis(BrokerContract):
    lease = 0.3

    async def make_broker(self, clock: ManualClock) -> Broker:
        return RedisBroker(f"{URL}?prefix=test-{secrets.token_hex(8)}", clock=clock)

    async def let_pass(self, broker: Broker, clock: ManualClock, seconds: float) -> None:
        clock.advance(seconds)
        await asyncio.sleep(seconds)
