"""The behaviour suite of `flowrra_extras.contracts` on each store of schedules."""

import asyncio
from pathlib import Path

import pytest

from flowrra_extras.contracts import ScheduleStoreContract
from flowrra_extras.scheduler import MemoryScheduleStore, ScheduleStore, store_from_url
from flowrra_extras.testing import ManualClock


class TestMemory(ScheduleStoreContract):
    async def make_store(self, clock: ManualClock) -> ScheduleStore:
        return MemoryScheduleStore(clock)


class TestSQLiteInMemory(ScheduleStoreContract):
    async def make_store(self, clock: ManualClock) -> ScheduleStore:
        return store_from_url("sqlite://", clock)


class TestSQLiteFile(ScheduleStoreContract):
    @pytest.fixture(autouse=True)
    def use_file(self, tmp_path: Path) -> None:
        self.url = f"sqlite:///{tmp_path}/schedules.db"

    async def make_store(self, clock: ManualClock) -> ScheduleStore:
        return store_from_url(self.url, clock)

    async def make_twin(self, clock: ManualClock) -> ScheduleStore:
        return store_from_url(self.url, clock)


class OnServer(ScheduleStoreContract):
    """Leases run on the server's clock, which cannot be moved."""

    url: str
    lease = 0.15

    async def make_store(self, clock: ManualClock) -> ScheduleStore:
        return store_from_url(self.url, clock)

    async def make_twin(self, clock: ManualClock) -> ScheduleStore:
        return store_from_url(self.url, clock)

    async def let_pass(self, store: ScheduleStore, clock: ManualClock, seconds: float) -> None:
        clock.advance(seconds)
        await asyncio.sleep(seconds)


class TestPostgreSQL(OnServer):
    @pytest.fixture(autouse=True)
    def use_schema(self, postgres_schema: str) -> None:
        self.url = postgres_schema


class TestMySQL(OnServer):
    @pytest.fixture(autouse=True)
    def use_database(self, mysql_database: str) -> None:
        self.url = mysql_database


class TestRedis(OnServer):
    @pytest.fixture(autouse=True)
    def use_prefix(self, redis_prefix: str) -> None:
        self.url = redis_prefix
