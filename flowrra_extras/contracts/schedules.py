"""The contract of stores of schedules: they store schedules, and give each fire to one scheduler."""

import asyncio
import contextlib
import dataclasses
import itertools
from collections.abc import AsyncIterator
from typing import Any

from flowrra import ConfigError, Fired, Schedule
from flowrra_extras.contracts.harness import raises, tests_take
from flowrra_extras.scheduler import ScheduleStore
from flowrra_extras.testing import ManualClock

LONG = 60.0  # seconds: a lease that does not end during a test


def schedule(schedule_id: str, **fields: Any) -> Schedule:
    """Return a schedule of the task `task`, with its own key."""
    values = {"key": f"key of {schedule_id}", "task": "task", "kind": "cron", "rule": "* * * * *", **fields}
    return Schedule(id=schedule_id, **values)


@dataclasses.dataclass
class ScheduleHarness:
    """An open store, its clock, and short calls for the tests."""

    store: ScheduleStore
    twin: ScheduleStore  # another handle on the same schedules, if the store supports that
    clock: ManualClock
    contract: "_ScheduleContract"

    @property
    def now(self) -> float:
        return self.clock.time()

    async def add(self, *schedules: Schedule) -> list[str]:
        return [await self.store.add(schedule) for schedule in schedules]

    async def add_due(self, *ids: str, **fields: Any) -> None:
        """Add schedules that are due, in this order."""
        start = self.now - len(ids)
        await self.add(*[schedule(one, next_fire=start + n, **fields) for n, one in enumerate(ids)])

    async def get(self, schedule_id: str) -> Schedule:
        (found,) = await self.store.find([schedule_id])
        return found

    async def ids(self) -> list[str]:
        return [found.id for found in await self.store.find()]

    async def take(self, limit: int = 100, lease: float = LONG) -> list[Schedule]:
        return await self.store.take(now=self.now, lease=lease, limit=limit)

    async def take_ids(self, limit: int = 100, lease: float = LONG) -> list[str]:
        return [taken.id for taken in await self.take(limit, lease)]

    async def advance(self, *taken: Schedule, by: float | None = 60.0) -> list[bool]:
        """Report that they have fired. Their next fire is `by` seconds from now; None: never."""
        following = None if by is None else self.now + by
        return await self.store.advance([Fired(one.id, one.turn, following, self.now, "job") for one in taken])

    async def lapse(self, share: float = 1.1) -> None:
        """Let this share of a short lease pass."""
        await self.contract.let_pass(self.store, self.clock, self.contract.lease * share)


class _ScheduleContract:
    """The base of both parts of the contract; see `ScheduleStoreContract`."""

    lease = 10.0

    async def make_store(self, clock: ManualClock) -> ScheduleStore:
        raise NotImplementedError("a subclass returns a store without schedules, not opened yet")

    async def make_twin(self, clock: ManualClock) -> ScheduleStore | None:
        return None

    async def let_pass(self, store: ScheduleStore, clock: ManualClock, seconds: float) -> None:
        clock.advance(seconds)

    @contextlib.asynccontextmanager
    async def harness(self) -> AsyncIterator[ScheduleHarness]:
        """Yield an open store without schedules, and close it at the end."""
        clock = ManualClock()
        store = await self.make_store(clock)
        twin = await self.make_twin(clock) or store
        try:
            await asyncio.gather(*[one.open() for one in {store, twin}])
            yield ScheduleHarness(store, twin, clock, self)
        finally:
            for one in {store, twin}:
                await one.close()


@tests_take(_ScheduleContract.harness)
class KeepContract(_ScheduleContract):
    """Adding, finding, changing and deleting schedules."""

    async def test_what_is_added_comes_back(self, t: ScheduleHarness) -> None:
        plain = schedule("plain")
        full = Schedule(
            id="full",
            key="key",
            task="mail.send",
            kind="interval",
            rule="30.5",
            tz="Europe/Riga",
            payload='[[1],{"k":"v"}]',
            options={"priority": -3, "queue": "mail", "retry_delay": 0.5, "unique": None},
            misfire="all",
            overlap="skip",
            jitter=2.25,
            enabled=False,
            description="every half minute",
            anchor=1_600_000_000.5,
            next_fire=1_700_000_000.000001,
            last_fire=1_699_999_999.999999,
            last_job="full@1699999999.999999",
            created=1_600_000_001.0,
            updated=1_600_000_002.0,
            turn=7,
        )
        assert await t.add(plain, full) == ["plain", "full"]
        assert await t.store.find() == [plain, full]
        assert await t.twin.find() == [plain, full]

    async def test_moments_are_kept_to_the_microsecond(self, t: ScheduleHarness) -> None:
        moments = [0.0, 0.000001, -0.5, 1_700_000_000.123456, 1_699_999_999.999999, 4_102_444_800.1, 253_402_300_799.0]
        for number, moment in enumerate(moments):
            kept = schedule(str(number), anchor=moment, next_fire=moment, created=moment, updated=moment)
            await t.add(kept)
            assert await t.get(kept.id) == kept
        await t.store.change("0", {"last_fire": 1_700_000_000.000001})
        assert (await t.get("0")).last_fire == 1_700_000_000.000001

    async def test_any_text_is_kept(self, t: ScheduleHarness) -> None:
        texts = [
            "", "a", "A", "a ", " a", "á", "a\u0301", "ключ 🗝", "new\nline", "tab\t", 'quote"d', "it's", "back\\slash",
            "' OR 1=1 --", "<script>alert('&')</script>", "%s %(id)s %", ":id", "$1", "?", "{free}", "{}", "ß", "ss",
        ]  # fmt: skip
        kept = [schedule(f"{text}", key=text, task=text, rule=text, payload=text, description=text) for text in texts]
        assert await t.add(*kept) == texts
        assert await t.store.find() == kept
        assert await t.store.find(["a ", "it's"]) == [kept[3], kept[11]]
        for text in texts:
            assert await t.store.change(text, {"last_job": text, "options": {text: text}})
            found = await t.get(text)
            assert (found.last_job, found.options) == (text, {text: text})

    async def test_texts_may_be_long(self, t: ScheduleHarness) -> None:
        long = "x" * 70_000 + "🗝" * 70_000
        kept = schedule("a", task=long, rule=long, payload=long, description=long, options={"queue": long})
        await t.add(kept)
        assert await t.get("a") == kept

    async def test_a_known_key_gives_the_schedule_that_has_it(self, t: ScheduleHarness) -> None:
        first = schedule("a", key="same", rule="0 1 * * *")
        assert await t.add(first, schedule("b", key="same", rule="0 2 * * *")) == ["a", "a"]
        assert await t.store.find() == [first]

    async def test_a_known_id_changes_nothing(self, t: ScheduleHarness) -> None:
        first, second = schedule("a", key="one"), schedule("b", key="two")
        assert await t.add(first, schedule("a", key="three"), second) == ["a", "a", "b"]
        assert await t.add(schedule("a", key="two")) == ["b"]  # its key decides, not its id
        assert await t.store.find() == [first, second]

    async def test_identical_schedules_at_once_are_one(self, t: ScheduleHarness) -> None:
        for key in ("x", "y", "z"):
            stores = itertools.cycle((t.store, t.twin))
            adding = [store.add(schedule(f"{key}{n}", key=key)) for n, store in zip(range(20), stores, strict=False)]
            assert len(set(await asyncio.gather(*adding))) == 1
        assert len(await t.ids()) == 3

    async def test_schedules_are_found_in_order_of_creation(self, t: ScheduleHarness) -> None:
        await t.add(*map(schedule, ["c", "a", "d", "b"]))
        assert await t.ids() == ["c", "a", "d", "b"]
        assert [found.id for found in await t.store.find(["b", "nobody", "c", "b"])] == ["c", "b"]
        assert await t.store.find([]) == []

    async def test_a_change_sets_the_fields_and_no_others(self, t: ScheduleHarness) -> None:
        changes: dict[str, Any] = {
            "key": "new", "task": "other", "kind": "once", "rule": "2026-01-01", "tz": "Asia/Tokyo",
            "payload": "[[2],{}]", "options": {"priority": 1}, "misfire": "skip", "overlap": "skip", "jitter": 1.5,
            "enabled": False, "description": None, "anchor": 1.0, "next_fire": 2.0, "last_fire": 3.0, "last_job": "j",
            "updated": 4.0,
        }  # fmt: skip
        expected = schedule("a", description="old", created=5.0)
        await t.add(expected, schedule("b"))
        for changed in ({}, *({name: value} for name, value in changes.items()), changes):
            assert await t.store.change("a", changed) is True
            expected = dataclasses.replace(expected, turn=expected.turn + 1, **changed)
            assert await t.get("a") == expected
        assert await t.get("b") == schedule("b")

    async def test_a_change_of_what_is_not_there_is_told(self, t: ScheduleHarness) -> None:
        assert await t.store.change("nobody", {"enabled": False}) is False
        assert await t.store.find() == []

    async def test_a_change_keeps_keys_unique(self, t: ScheduleHarness) -> None:
        await t.add(schedule("a", key="one"), schedule("b", key="two"))
        with raises(ConfigError):
            await t.store.change("b", {"key": "one", "rule": "other"})
        assert await t.get("b") == schedule("b", key="two")
        assert await t.store.change("b", {"key": "two"}) is True
        assert await t.add(schedule("c", key="one"), schedule("c", key="two")) == ["a", "b"]

    async def test_identity_and_turn_are_not_to_be_changed(self, t: ScheduleHarness) -> None:
        await t.add(schedule("a"))
        for name in ("id", "turn", "colour"):
            with raises(ConfigError):
                await t.store.change("a", {name: 1})
        assert await t.get("a") == schedule("a")

    async def test_what_is_removed_is_gone(self, t: ScheduleHarness) -> None:
        await t.add(schedule("a", key="same"), schedule("b"))
        assert await t.store.remove("a") is True
        assert await t.store.remove("a") is False
        assert await t.ids() == ["b"]
        assert await t.add(schedule("c", key="same")) == ["c"]
        assert await t.ids() == ["b", "c"]

    async def test_a_purge_takes_what_is_done(self, t: ScheduleHarness) -> None:
        await t.add(
            schedule("old", last_fire=t.now - 2),
            schedule("off", last_fire=t.now - 2, enabled=False),
            schedule("fresh", last_fire=t.now - 1),
            schedule("goes on", last_fire=t.now - 2, next_fire=t.now - 3),
            schedule("never fired"),
        )
        assert await t.store.purge(t.now - 1) == 2
        assert await t.ids() == ["fresh", "goes on", "never fired"]
        assert await t.store.purge(t.now - 1) == 0


@tests_take(_ScheduleContract.harness)
class FireContract(_ScheduleContract):
    """Taking due schedules, and advancing them."""

    async def test_what_is_due_is_taken_earliest_first(self, t: ScheduleHarness) -> None:
        await t.add(
            schedule("third", next_fire=t.now),
            schedule("first", next_fire=t.now - 9),
            schedule("second", next_fire=t.now - 5),
            schedule("later", next_fire=t.now + 0.000001),
            schedule("off", next_fire=t.now - 9, enabled=False),
            schedule("done"),
        )
        assert await t.take_ids(limit=2) == ["first", "second"]
        assert await t.take_ids(limit=0) == []
        assert await t.take_ids() == ["third"]
        assert await t.take_ids() == []

    async def test_what_is_taken_has_a_new_turn(self, t: ScheduleHarness) -> None:
        await t.add_due("a", turn=4, options={"priority": 2}, payload="[[1],{}]")
        before = await t.get("a")
        (taken,) = await t.take()
        assert taken == dataclasses.replace(before, turn=5)
        assert await t.get("a") == taken

    async def test_a_lease_holds_until_it_runs_out(self, t: ScheduleHarness) -> None:
        await t.add_due("long", "short")
        assert await t.take_ids(limit=1, lease=LONG) == ["long"]
        (taken,) = await t.take(lease=self.lease)
        await t.lapse()
        (again,) = await t.take()
        assert (again.id, again.turn) == ("short", taken.turn + 1)

    async def test_wrong_wall_clocks_do_not_touch_leases(self, t: ScheduleHarness) -> None:
        await t.add_due("a")
        await t.take()
        t.clock.jump_wall(10 * LONG)
        assert await t.take() == []

    async def test_takers_share_nothing(self, t: ScheduleHarness) -> None:
        ids = [f"s{number}" for number in range(60)]
        await t.add_due(*ids)
        taken: list[str] = []

        async def take_all(store: ScheduleStore) -> None:
            while batch := await store.take(now=t.now, lease=LONG, limit=7):
                taken.extend(one.id for one in batch)

        await asyncio.gather(*[take_all(store) for store in (t.store, t.twin) * 4])
        await take_all(t.store)  # schedules that were locked when the others looked last
        assert sorted(taken) == sorted(ids)

    async def test_an_advance_writes_down_and_ends_the_lease(self, t: ScheduleHarness) -> None:
        await t.add_due("a", "b")
        one, two = await t.take()
        fired = [
            Fired("b", two.turn, t.now - 0.5, t.now - 1, "job of b"),
            Fired("a", one.turn, t.now + 0.000001, t.now, None),
        ]
        assert await t.store.advance(fired) == [True, True]
        following: dict[str, Any] = {"next_fire": t.now + 0.000001, "last_fire": t.now, "last_job": None}
        assert await t.get("a") == dataclasses.replace(one, **following)
        (again,) = await t.take()
        assert (again.id, again.turn, again.last_job) == ("b", two.turn + 1, "job of b")

    async def test_an_advance_of_many_tells_similar_ids_apart(self, t: ScheduleHarness) -> None:
        ids = ["a", "A", "a ", "\u00e4", "\u00c4", "a%", "a'", 'a"', "a\\", "a\\n", "[1]", "null", "\U0001f550"]
        await t.add_due(*ids)
        fired = []
        for n, one in enumerate(await t.take()):
            following, last_job = None if n % 3 == 0 else t.now + n + 0.25, None if n == 1 else f"{one.id}@{n}"
            fired.append(Fired(one.id, one.turn, following, t.now - n, last_job))
        assert await t.store.advance(fired) == [True] * len(ids)
        found = await t.store.find()
        assert [(one.id, one.turn, one.next_fire, one.last_fire, one.last_job) for one in found] == fired

    async def test_what_has_nothing_left_is_not_taken_again(self, t: ScheduleHarness) -> None:
        await t.add_due("a")
        assert await t.advance(*await t.take(), by=None) == [True]
        t.clock.advance(1e6)
        assert await t.take() == []
        assert await t.store.next_fire() is None

    async def test_an_advance_under_another_turn_changes_nothing(self, t: ScheduleHarness) -> None:
        await t.add_due("retaken", "changed", "removed", "held")
        retaken, changed, removed, held = await t.take(lease=self.lease)
        await t.store.change("changed", {"description": "new"})
        await t.store.remove("removed")
        await t.lapse()
        (again,) = await t.take(limit=1)
        assert again.id == "retaken"
        before = await t.store.find(["retaken", "changed"])
        unknown = schedule("unknown", turn=1)
        assert await t.advance(retaken, held, changed, removed, unknown) == [False, True, False, False, False]
        assert await t.store.find(["retaken", "changed"]) == before
        assert await t.advance(again) == [True]

    async def test_a_doubled_advance_changes_nothing(self, t: ScheduleHarness) -> None:
        await t.add_due("a")
        (taken,) = await t.take()
        assert await t.store.advance([]) == []
        late = [Fired("a", taken.turn, t.now + delay, t.now, f"job {delay}") for delay in (10, 20)]
        assert await t.store.advance(late) == [True, False]
        assert await t.advance(taken) == [False]
        assert ((await t.get("a")).next_fire, (await t.get("a")).last_job) == (t.now + 10, "job 10")

    async def test_a_late_advance_counts_if_nobody_came_between(self, t: ScheduleHarness) -> None:
        await t.add_due("a")
        taken = await t.take(lease=self.lease)
        await t.lapse()
        assert await t.advance(*taken) == [True]
        assert await t.take() == []

    async def test_a_change_takes_it_from_whoever_has_it(self, t: ScheduleHarness) -> None:
        await t.add_due("a")
        (taken,) = await t.take()
        await t.store.change("a", {"payload": "[[2],{}]"})
        (again,) = await t.take()
        assert (again.payload, again.turn) == ("[[2],{}]", taken.turn + 2)
        assert await t.advance(taken, again) == [False, True]

    async def test_what_is_disabled_is_not_taken(self, t: ScheduleHarness) -> None:
        await t.add_due("a")
        await t.take()
        await t.store.change("a", {"enabled": False})
        assert (await t.take(), await t.store.next_fire()) == ([], None)
        await t.store.change("a", {"enabled": True})
        assert await t.take_ids() == ["a"]

    async def test_the_next_fire_is_that_of_what_can_be_taken(self, t: ScheduleHarness) -> None:
        assert await t.store.next_fire() is None
        await t.add(schedule("done"), schedule("off", next_fire=1.0, enabled=False))
        assert await t.store.next_fire() is None
        await t.add_due("a")
        await t.add(schedule("b", next_fire=t.now + 500.000001), schedule("c", next_fire=t.now + 900))
        assert await t.store.next_fire() == t.now - 1
        taken = await t.take(lease=self.lease)
        assert await t.store.next_fire() == t.now + 500.000001
        await t.lapse()
        assert await t.store.next_fire() == taken[0].next_fire
        await t.advance(*await t.take(limit=1), by=1.0)
        assert await t.twin.next_fire() == t.now + 1

    async def test_a_cancelled_call_leaves_nothing_open(self, t: ScheduleHarness) -> None:
        await t.add_due("a", "b")
        for turns in range(12):
            calls = [t.take(lease=self.lease), t.store.next_fire(), t.add(schedule(f"x{turns}"))]
            begun = [asyncio.ensure_future(call) for call in calls]
            for _ in range(turns):
                await asyncio.sleep(0)
            for call in begun:
                call.cancel()
            await asyncio.gather(*begun, return_exceptions=True)
            assert await t.twin.add(schedule(f"y{turns}")) == f"y{turns}"
        await t.lapse()
        assert await t.take_ids() == ["a", "b"]


class ScheduleStoreContract(KeepContract, FireContract):
    """Tests that every store of schedules must pass. Write a subclass that makes your store:

        class TestMyStore(ScheduleStoreContract):
            async def make_store(self, clock):
                return MyStore("my://localhost/test", clock)

    `make_store` returns an empty store that is not open yet. If several processes can share a store,
    `make_twin` returns another handle on the store that was made last. Leases should use `clock`. If the
    store has its own clock, set `lease` and `let_pass` as for `BrokerContract`, whose docstring also
    explains how to run the tests.
    """
