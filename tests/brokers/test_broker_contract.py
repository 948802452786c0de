"""The behaviour suite of `flowrra_extras.contracts` on each broker of the core."""

import itertools
from pathlib import Path

import pytest

from examples.dict_broker import DictBroker
from flowrra import Broker, MemoryBroker, SQLiteBroker
from flowrra_extras.contracts import BrokerContract
from flowrra_extras.testing import ManualClock


class TestMemoryBroker(BrokerContract):
    async def make_broker(self, clock: ManualClock) -> Broker:
        return MemoryBroker(clock=clock)


class TestSQLiteFile(BrokerContract):
    @pytest.fixture(autouse=True)
    def use_folder(self, tmp_path: Path) -> None:
        self.paths = (str(tmp_path / f"jobs{n}.db") for n in itertools.count())

    async def make_broker(self, clock: ManualClock) -> Broker:
        return SQLiteBroker(next(self.paths), clock=clock)


class TestSQLiteInMemory(BrokerContract):
    async def make_broker(self, clock: ManualClock) -> Broker:
        return SQLiteBroker(clock=clock)


class TestExample(BrokerContract):
    """What the documentation shows to those who write one."""

    async def make_broker(self, clock: ManualClock) -> Broker:
        return DictBroker(clock)
