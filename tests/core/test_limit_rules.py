"""The rules of limits alone, on a store that is a dictionary: places are never exceeded, and never left empty."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flowrra
from flowrra import FINISHED, BackendConfig, ConfigError, Job, Limit, LimitKey, Outcome, TaskStatus, Unit

T = TypeVar("T")
BEGIN = 1_700_000_000.0
KEEP = BackendConfig()
KEYS = (None, "k", "l")


class Store:
    """Jobs, and the rows of limit keys."""

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.now = BEGIN
        self.jobs: dict[str, Job] = {}
        self.rows: dict[str, LimitKey] = {}
        self.starts: dict[str, list[float]] = {}
        self.asked: list[flowrra.Find] = []

    def look(self, find: flowrra.Find) -> Sequence[Any]:
        self.asked.append(find)
        match find:
            case flowrra.Jobs(ids):
                return [self.jobs[task_id] for task_id in ids if task_id in self.jobs]
            case flowrra.LimitKeys(names):
                return [self.state(name) for name in names]
            case flowrra.WaitingFor(most):
                return [flowrra.LimitWaiter.of(job) for name, most in most.items() for job in self.waiting(name)[:most]]
            case flowrra.DueKeys(now, limit):
                return [name for name, row in self.rows.items() if row.due is not None and row.due <= now][:limit]
            case flowrra.Admitted(names):
                return [job for name in names for job in self.of(name) if job.status is TaskStatus.PENDING]
        return []

    def of(self, name: str) -> list[Job]:
        return [job for job in self.jobs.values() if flowrra.limit_key(job) == name]

    def waiting(self, name: str) -> list[Job]:
        return sorted(filter(flowrra.awaits_limit, self.of(name)), key=lambda job: (job.priority, job.seq))

    def state(self, name: str) -> LimitKey:
        mine = [job.status for job in self.of(name)]
        row = self.rows.get(name, LimitKey(name)).row
        counts = mine.count(TaskStatus.RUNNING), mine.count(TaskStatus.PENDING), bool(self.waiting(name))
        return LimitKey(name, self.limit, *counts, *row)

    def run(self, walk: Callable[[Unit], flowrra.Walk[T]], *touched: str) -> T:
        self.asked = []
        unit = Unit(self.now, KEEP, touched)
        answer = flowrra.drive(walk(unit), self.look)
        for _, job in unit.changes():
            job.seq = job.seq or len(self.jobs) + 1
            self.jobs[job.id] = job
        assert all(flowrra.admit_one(self.jobs[waiter.id]) for waiter in unit.admitted)
        self.rows |= {state.name: state for state in unit.changed_keys()}
        assert len([find for find in self.asked if isinstance(find, flowrra.LimitKeys)]) <= 1
        return answer

    def claim(self, number: int) -> list[Job]:
        self.run(lambda unit: flowrra.admit_due(unit, 100))
        ready = [job for job in self.jobs.values() if job.status is TaskStatus.PENDING]
        ready = sorted(ready, key=lambda job: (job.priority, job.seq))[:number]
        for job in ready:
            assert flowrra.start(job, "w", self.now)
            self.starts.setdefault(flowrra.limit_key(job), []).append(self.now)
        self.run(lambda unit: flowrra.charge(unit, map(flowrra.limit_key, ready)))
        return ready

    def settle(self, make: Callable[[Job], Outcome]) -> None:
        running = [job for job in self.jobs.values() if job.status is TaskStatus.RUNNING][:2]
        self.run(lambda unit: flowrra.settle(unit, [make(job) for job in running]))

    def check(self) -> None:
        """No key holds more places than it has, and none has a free one for which somebody waits."""
        limit = self.limit
        for name in {flowrra.limit_key(job) for job in self.jobs.values()}:
            state = self.state(name)
            assert state.running + state.pending <= (limit.concurrency or math.inf)
            assert limit.rate is None or state.pending <= limit.most_ready
            starts = self.starts.get(name, [])
            for first, moment in enumerate(starts if limit.rate else ()):
                later = starts[first:]
                assert all(
                    number <= limit.most + (at - moment + 1e-5) / limit.interval for number, at in enumerate(later, 1)
                )
            is_full = limit.concurrency is not None and state.running + state.pending >= limit.concurrency
            is_full = is_full or (limit.rate is not None and state.pending >= limit.most_ready)
            assert state.due is None or not is_full, "what only a claim changes must not keep the upkeep busy"
            if state.has_waiting and not is_full:
                assert state.due is not None
                assert state.due <= max(self.now, BEGIN) + limit.interval * (limit.most + 1) + 1e-5


LIMITS = st.builds(
    lambda concurrency, rate, burst: Limit(
        name="api", concurrency=concurrency, rate=rate, burst=None if rate is None else burst
    ),
    st.sampled_from((None, 1, 2, 3)),
    st.sampled_from((None, "1/s", "10/s", "3/10s", "1000/s", "7/m")),
    st.sampled_from((None, 1, 2, 5)),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.sampled_from(KEYS), st.integers(1, 4)),
        st.tuples(st.just("claim"), st.integers(1, 4)),
        st.tuples(st.just("settle"), st.sampled_from("SRPF")),
        st.tuples(st.just("cancel"), st.integers(0, 50)),
        st.tuples(st.just("pass"), st.sampled_from((0.001, 0.0333, 0.1, 0.5, 1.0, 7.3))),
    ),
    max_size=40,
)


@settings(deadline=None)
@given(LIMITS, STEPS)
def test_a_limit_is_never_exceeded_and_never_forgets_who_waits(limit: Limit, steps: list[tuple[Any, ...]]) -> None:
    store = Store(limit)
    for what, *values in steps:
        if what == "push":
            key, number = values
            new = [Job(f"j{len(store.jobs) + n}", "task", limit="api", key=key) for n in range(number)]
            store.run(lambda unit, new=new: flowrra.push(unit, new))  # type: ignore[misc]
        elif what == "claim":
            store.claim(values[0])
        elif what == "settle":
            store.settle(ENDINGS[values[0]])
        elif what == "cancel":
            ids = [f"j{values[0]}"]
            store.run(lambda unit, ids=ids: flowrra.change(unit, ids, "cancel", None))  # type: ignore[misc]
        else:
            store.now += values[0]
            due = [job for job in store.jobs.values() if flowrra.promote_one(job, store.now)]
            store.run(lambda unit: flowrra.admit_due(unit, 100), *map(flowrra.limit_key, due))
        store.check()
    for _ in range(200):  # what waits comes to its turn
        if all(job.status in FINISHED for job in store.jobs.values()):
            break
        store.now += 60.0
        due = [job for job in store.jobs.values() if flowrra.promote_one(job, store.now)]
        store.run(lambda unit: flowrra.admit_due(unit, 100), *map(flowrra.limit_key, due))
        store.claim(100)
        for _ in range(100):
            store.settle(ENDINGS["S"])
    assert all(job.status in FINISHED for job in store.jobs.values())


ENDINGS: dict[str, Callable[[Job], Outcome]] = {
    "S": lambda job: Outcome.succeed(job, 1),
    "F": lambda job: Outcome.fail(job, "boom"),
    "R": lambda job: Outcome.retry_at(job, BEGIN + 30, "boom"),
    "P": lambda job: Outcome.release(job, "why"),
}


def test_of_a_large_burst_a_thousand_jobs_are_ready_at_once_and_a_claim_makes_room() -> None:
    store = Store(Limit(name="api", rate="1/s", burst=2_500))
    new = [Job(f"j{n}", "task", limit="api") for n in range(3_000)]
    store.run(lambda unit: flowrra.push(unit, new))
    for left in (2_500, 1_800, 1_100, 400):
        assert store.state("api:").pending == min(1_000, left)
        assert len(store.claim(700)) == min(700, left)
        store.check()
    assert (store.state("api:").pending, store.state("api:").due) == (0, BEGIN + 1)


@pytest.mark.parametrize(
    ("rate", "interval"), [("100/m", 0.6), ("10/s", 0.1), ("5/h", 720.0), ("1000/d", 86.4), ("3/10s", 10 / 3)]
)
def test_a_rate_is_a_number_in_a_time(rate: str, interval: float) -> None:
    assert Limit(name="api", rate=rate).interval == pytest.approx(interval)


@pytest.mark.parametrize(("rate", "most"), [("1/s", 1), ("10/s", 1), ("100/m", 1), ("100/s", 10), ("1000/s", 100)])
def test_a_burst_is_what_comes_in_a_tenth_of_a_second(rate: str, most: int) -> None:
    assert Limit(name="api", rate=rate).most == most
    assert Limit(name="api", rate=rate, burst=7).most == 7


@pytest.mark.parametrize("rate", ["100/x", "0/s", "", "/s", "10", "10/0s", "-1/s", "1e3/s", "10 / s", "٣/s", 5, "10/w"])
def test_nonsense_is_no_rate(rate: Any) -> None:
    with pytest.raises(ConfigError, match=r"a rate is .*100/m"):
        Limit(name="api", rate=rate)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"concurrency": 0}, "concurrency must be at least 1, not 0"),
        ({"concurrency": True}, "concurrency must be an int"),
        ({"burst": 5}, "burst=5 needs rate="),
        ({"rate": "1/s", "burst": 0}, "burst must be at least 1"),
        ({"turn": 0}, "turn must be at least 1"),
        ({"name": "a:b"}, "the name of a limit"),
        ({"name": ""}, "the name of a limit"),
        ({"name": "x" * 201}, "the name of a limit"),
    ],
)
def test_numbers_that_make_no_limit_are_refused(numbers: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Limit(**{"name": "api", **numbers})


def test_a_limit_comes_back_from_its_text() -> None:
    limit = Limit(name="api", concurrency=5, rate="100/m", burst=20, declared=BEGIN, by="Ada")
    assert dataclasses.asdict(Limit.from_text(limit.text)) == dataclasses.asdict(limit)
    assert str(limit) == "5 at a time, 100/m with bursts of 20"
