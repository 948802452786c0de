"""All brokers do the same: random stories, told to several at once.

FLOWRRA_STORIES=300 tells so many in place of a few; FLOWRRA_FIRST_STORY=17 begins with that one.
"""

import os
from collections.abc import Iterator

import pytest

from flowrra import MemoryBroker, SQLiteBroker
from flowrra_extras.postgres import PostgresBroker
from flowrra_extras.redis import RedisBroker
from flowrra_extras.testing import ManualClock
from tests.support import postgres_server, redis_server
from tests.support.differential import Side, Story
from tests.support.services import POSTGRES_URL, REDIS_URL

FIRST = int(os.environ.get("FLOWRRA_FIRST_STORY", "0"))
STORIES = int(os.environ.get("FLOWRRA_STORIES", "0"))

pytestmark = pytest.mark.timeout(60 + 10 * STORIES)


def local_sides(clock: ManualClock) -> list[Side]:
    return [Side(broker, lambda seconds: None) for broker in (MemoryBroker(clock=clock), SQLiteBroker(clock=clock))]


async def tell(seed: int, sides: list[Side], clock: ManualClock, steps: int, *, has_limits: bool) -> None:
    for side in sides:
        await side.broker.open()
    try:
        await Story(seed, sides, clock, has_limits=has_limits).tell(steps)
    finally:
        for side in sides:
            await side.broker.close()


@pytest.mark.parametrize("seed", range(FIRST, FIRST + (STORIES or 8)))
async def test_memory_and_sqlite_agree(seed: int) -> None:
    clock = ManualClock()
    await tell(seed, local_sides(clock), clock, 120, has_limits=True)


@pytest.fixture
def servers(redis_url: str, postgres_url: str) -> Iterator[tuple[Side, Side, ManualClock]]:
    clock = ManualClock()
    with (
        redis_server.clean(REDIS_URL) as (client, prefix),
        postgres_server.clean_schema(POSTGRES_URL) as (link, schema),
    ):
        redis = RedisBroker(f"{REDIS_URL}?prefix={prefix}", clock=clock)
        postgres = PostgresBroker(f"{POSTGRES_URL}?schema={schema}", clock=clock)
        yield (
            Side(redis, lambda seconds: redis_server.age_leases(client, prefix, seconds)),
            Side(postgres, lambda seconds: postgres_server.age_leases(link, schema, seconds)),
            clock,
        )


@pytest.mark.parametrize("seed", range(FIRST + 1_000, FIRST + 1_000 + (STORIES or 3)))
async def test_all_brokers_agree(seed: int, servers: tuple[Side, Side, ManualClock]) -> None:
    *sides, clock = servers
    await tell(seed, [*local_sides(clock), *sides], clock, 80, has_limits=True)
