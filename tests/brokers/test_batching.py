"""The batcher: groups, failures that stay alone, callers that leave, and its end."""

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowrra import BrokerError
from flowrra_extras.batching import Batcher


class Store:
    """Answers an item with its double, an even hundred with an error; keeps the groups that came."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.has_sent = asyncio.Event()
        self.is_open = asyncio.Event()
        self.is_open.set()

    async def send(self, items: list[int]) -> Sequence[int | BaseException]:
        self.groups.append(items)
        self.has_sent.set()
        await self.is_open.wait()
        return [ValueError(item) if item % 100 == 0 else 2 * item for item in items]


async def test_a_lone_caller_waits_for_nobody() -> None:
    store = Store()
    batcher = Batcher(store.send)
    assert [await batcher.put(1), await batcher.put(2)] == [2, 4]
    assert store.groups == [[1], [2]]


async def test_what_comes_while_a_group_is_on_its_way_is_the_next_one() -> None:
    store = Store()
    store.is_open.clear()
    batcher = Batcher(store.send)
    first = asyncio.create_task(batcher.put(1))
    await store.has_sent.wait()
    others = [asyncio.create_task(batcher.put(n)) for n in (2, 3, 4)]
    await asyncio.sleep(0)
    assert store.groups == [[1]]
    store.is_open.set()
    assert await asyncio.gather(first, *others) == [2, 4, 6, 8]
    assert store.groups == [[1], [2, 3, 4]]


async def test_concurrent_callers_of_one_turn_go_out_together() -> None:
    store = Store()
    assert await asyncio.gather(*map(Batcher(store.send).put, range(1, 6))) == [2, 4, 6, 8, 10]
    assert store.groups == [[1, 2, 3, 4, 5]]


async def test_an_item_that_fails_fails_alone() -> None:
    batcher = Batcher(Store().send)
    answers = await asyncio.gather(*map(batcher.put, (1, 100, 2)), return_exceptions=True)
    assert [answers[0], str(answers[1]), answers[2]] == [2, "100", 4]
    assert isinstance(answers[1], ValueError)


async def test_a_send_that_raises_fails_its_group_and_no_other() -> None:
    calls = 0

    async def send(items: list[int]) -> Sequence[int | BaseException]:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise BrokerError("away")
        return items

    batcher = Batcher(send)
    answers = await asyncio.gather(*map(batcher.put, (1, 2)), return_exceptions=True)
    assert [str(answer) for answer in answers] == ["away", "away"]
    assert await batcher.put(3) == 3


async def test_a_caller_that_leaves_harms_no_neighbour() -> None:
    store = Store()
    store.is_open.clear()
    batcher = Batcher(store.send)
    sent = [asyncio.create_task(batcher.put(n)) for n in (1, 100)]
    await store.has_sent.wait()
    waiting = [asyncio.create_task(batcher.put(n)) for n in (3, 4)]
    await asyncio.sleep(0)
    for caller in (sent[1], waiting[0]):
        caller.cancel()
    store.is_open.set()
    assert [await sent[0], await waiting[1]] == [2, 8]
    assert store.groups == [[1, 100], [4]], "an item that had not left is not sent for nobody"
    assert sent[1].cancelled()


async def test_closing_ends_all_waits() -> None:
    store = Store()
    store.is_open.clear()
    batcher = Batcher(store.send)
    sent = asyncio.create_task(batcher.put(1))
    await store.has_sent.wait()
    waiting = asyncio.create_task(batcher.put(2))
    await asyncio.sleep(0)
    await batcher.close()
    for caller in (sent, waiting, asyncio.create_task(batcher.put(3))):
        with pytest.raises(BrokerError, match="closed"):
            await caller
    assert store.groups == [[1]]
    await batcher.close()
    assert len(asyncio.all_tasks()) == 1


async def test_in_place_a_lone_item_leaves_on_its_callers_task() -> None:
    senders: list[object] = []

    async def send(items: list[int]) -> Sequence[int | BaseException]:
        senders.append(asyncio.current_task())
        return [ValueError(item) if item == 100 else item for item in items]

    batcher = Batcher(send, in_place=True)
    assert await batcher.put(1) == 1
    with pytest.raises(ValueError, match="100"):
        await batcher.put(100)
    assert senders == [asyncio.current_task()] * 2


async def test_in_place_what_comes_meanwhile_is_the_next_group() -> None:
    """Whoever is answered and comes again at once goes out with those who have waited."""
    store = Store()

    async def send(items: list[int]) -> Sequence[int | BaseException]:
        await asyncio.sleep(0)
        return await store.send(items)

    batcher = Batcher(send, in_place=True)

    async def come_again(number: int) -> None:
        for turn in range(3):
            assert await batcher.put(number + turn) == 2 * (number + turn)

    await asyncio.gather(*(come_again(number) for number in (10, 20, 30)))
    assert [sorted(group) for group in store.groups] == [[10], [11, 20, 30], [12, 21, 31], [22, 32]]


async def test_in_place_a_caller_that_leaves_takes_its_item_along_and_no_other() -> None:
    store = Store()
    store.is_open.clear()
    batcher = Batcher(store.send, in_place=True)
    lone = asyncio.create_task(batcher.put(1))
    await store.has_sent.wait()
    waiting = [asyncio.create_task(batcher.put(n)) for n in (2, 3)]
    await asyncio.sleep(0)
    lone.cancel()
    store.is_open.set()
    assert await asyncio.gather(*waiting) == [4, 6]
    assert store.groups == [[1], [2, 3]]
    assert lone.cancelled()


async def test_in_place_closing_leaves_the_lone_caller_to_the_sender() -> None:
    store = Store()
    store.is_open.clear()
    batcher = Batcher(store.send, in_place=True)
    lone = asyncio.create_task(batcher.put(1))
    await store.has_sent.wait()
    waiting = asyncio.create_task(batcher.put(2))
    await asyncio.sleep(0)
    await batcher.close()
    with pytest.raises(BrokerError, match="closed"):
        await waiting
    store.is_open.set()
    assert await lone == 2
    assert store.groups == [[1]]


@given(weights=st.lists(st.integers(1, 12), min_size=1, max_size=30), limit=st.integers(1, 10))
async def test_groups_keep_the_order_and_the_limit(weights: list[int], limit: int) -> None:
    groups: list[list[int]] = []

    async def send(items: list[int]) -> Sequence[int]:
        groups.append(items)
        return items

    batcher = Batcher(send, limit=limit)
    puts = (batcher.put(number, weight) for number, weight in enumerate(weights))
    assert await asyncio.gather(*puts) == list(range(len(weights)))
    assert [number for group in groups for number in group] == list(range(len(weights)))
    for group, after in zip(groups, [*groups[1:], None], strict=True):
        total = sum(weights[number] for number in group)
        assert total <= limit or len(group) == 1
        assert after is None or total + weights[after[0]] > limit, "a group is no smaller than it need be"
