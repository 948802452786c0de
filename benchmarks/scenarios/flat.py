"""SQLite, Redis, PostgreSQL: whether a store full of waiting and finished jobs slows anything down.

A small store (1,000 finished) and a large one take turns. Both have enough waiting jobs for the
measured window, and fresh statistics. The program itself fills the large store: submit, drain, submit.
Results are looked up among the latest ones, as programs do, and among all in the store. For the latter,
bare sqlite3 shows the share of the higher tree and its cold pages.
"""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import statistics
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from benchmarks import databases, tools
from benchmarks.model import Check, Figures, Part, Scenario, Settings
from benchmarks.scenarios.drain import CONCURRENCY, WORKER, url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    # Gives the URL of a store for its name.
    Place = Callable[[str], str]

LARGE = 200_000
LARGE_FULL = 1_000_000
SMALL = 1_000
PART = 100_000  # jobs that are submitted in one call
WINDOW = 15_000
LOOKUPS = 2_000
SUBMITTERS = 64
EACH = 250  # so that about as many jobs are added as a window removes
ROUNDS = 5
REPEATS = {"lookup": 5, "spread": 5}  # short calls need more samples


async def noop(n: int) -> int:
    """Never called: the workers have their own task of this name."""
    return n


def client(database: str) -> tuple[Any, Any]:
    """Return an app on this store, and its task. One process uses both stores in turn."""
    from benchmarks.apps import ours
    from flowrra import BrokerConfig, Config, Flowrra

    app = Flowrra(Config(broker=BrokerConfig(url=database)))
    return app, app.task(name=ours.noop.name)(noop)


class Store:
    """A store with a number of finished jobs, and at least a number of waiting jobs."""

    def __init__(self, url: str, name: str, finished: int, waiting: int) -> None:
        self.name = name
        self.url = url
        self.marks = 0
        self.chance = random.Random(7)  # noqa: S311 - no secret
        self.done = asyncio.run(self._submit_many(finished))
        self._work(lambda marks: asyncio.run(self._wait_for_last()))
        asyncio.run(self._submit_many(waiting))

    async def _submit_many(self, jobs: int) -> list[Any]:
        app, task = client(self.url)
        async with app.client():
            parts = [range(first, min(first + PART, jobs)) for first in range(0, jobs, PART)]
            return [job for part in parts for job in await app.submit_many(task, ((n,) for n in part))]

    async def _wait_for_last(self) -> None:
        app, _ = client(self.url)
        async with app.client():
            for job in self.done[-2 * int(CONCURRENCY) :]:
                await app.wait_for_result(job, timeout=600)

    def _work(self, until: Callable[[Path], None]) -> Path:
        """Let a worker run on the store for a while."""
        self.marks += 1
        marks = tools.marks_folder(f"{self.name}-{self.marks}")
        os.environ["BENCH_URL"] = self.url
        with tools.process(*WORKER, BENCH_MARKS=str(marks)):
            until(marks)
        return marks

    def drain(self) -> float:
        def enough(marks: Path) -> None:
            tools.wait_until(lambda: begun(marks) >= WINDOW)

        return tools.window_rate(tools.read_marks(self._work(enough)), WINDOW)

    def enqueue(self) -> float:
        return asyncio.run(self._enqueue())

    async def _enqueue(self) -> float:
        app, task = client(self.url)

        async def submitter() -> None:
            for n in range(EACH):
                await app.submit(task, n)

        async with app.client():
            await app.submit(task, 0)
            begin = time.perf_counter()
            async with asyncio.TaskGroup() as group:
                for _ in range(SUBMITTERS):
                    group.create_task(submitter())
            return SUBMITTERS * EACH / (time.perf_counter() - begin)

    def lookup(self) -> float:
        """Look up results among the latest ones."""
        return asyncio.run(self._lookup(self.done[-SMALL:]))

    def spread(self) -> float:
        """Look up results among all."""
        return asyncio.run(self._lookup(self.done))

    async def _lookup(self, known: list[Any]) -> float:
        app, _ = client(self.url)
        chosen = self.chance.choices(known, k=LOOKUPS)
        async with app.client():
            await app.get_result(chosen[0])
            begin = time.perf_counter()
            for job in chosen:
                assert (await app.get_result(job)).is_success
            return LOOKUPS / (time.perf_counter() - begin)


def begun(folder: Path) -> int:
    return sum(worker[-1][1] for worker in tools.read_marks(folder))


@contextmanager
def sqlite_files() -> Iterator[Place]:
    yield lambda name: url("full", f"{name}.db")


@contextmanager
def redis_prefixes() -> Iterator[Place]:
    with tools.redis_server() as server:
        yield lambda name: f"{server}?prefix={name}"


@contextmanager
def postgres_schemas() -> Iterator[Place]:
    with databases.database() as database:
        yield lambda name: f"{database}?schema={name}"


def analyze(store: str) -> None:
    """Make fresh statistics, as a database does on its own, some time."""
    address = store.partition("?")[0]
    if address.startswith("sqlite:///"):
        connection = sqlite3.connect(address.removeprefix("sqlite:///"))
        connection.execute("ANALYZE")
        connection.close()
    elif address.startswith("postgresql:"):
        asyncio.run(databases.command("ANALYZE", address))


def flowrra(stores: Callable[[], AbstractContextManager[Place]]) -> Callable[[Settings], Figures]:
    def run(settings: Settings) -> Figures:
        size = LARGE_FULL if settings.full else LARGE
        with stores() as place:
            small = Store(place("small"), "small", SMALL, WINDOW)
            return measured(small, Store(place("large"), "large", size, size))

    return run


def measured(small: Store, large: Store) -> Figures:
    steps = {"enqueue": Store.enqueue, "drain": Store.drain, "lookup": Store.lookup, "spread": Store.spread}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for store in (small, large):
        analyze(store.url)
    for _ in range(ROUNDS):
        for name, step in steps.items():
            for _ in range(REPEATS.get(name, 1)):
                found[name].append((step(small), step(large)))
    return {key: value for name in steps for key, value in summary(name, found[name])}


def bare(settings: Settings) -> Figures:
    """Look up rows of the same length by a unique text."""
    small, large = (table(f"{size}.db", size) for size in (SMALL, 2 * (LARGE_FULL if settings.full else LARGE)))
    chance = random.Random(7)  # noqa: S311 - no secret
    pairs = [(selects(*small, chance), selects(*large, chance)) for _ in range(ROUNDS * REPEATS["spread"])]
    return dict(summary("spread", pairs))


def table(filename: str, rows: int) -> tuple[sqlite3.Connection, list[str]]:
    db = sqlite3.connect(filename, isolation_level=None)
    for pragma in ("page_size=2048", "journal_mode=WAL"):
        db.execute(f"PRAGMA {pragma}")
    db.execute("CREATE TABLE job(seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, result TEXT)")
    ids = [f"{n:031x}" for n in range(rows)]
    db.execute("BEGIN")
    db.executemany("INSERT INTO job(id, result) VALUES (?, ?)", ((task_id, "x" * 150) for task_id in ids))
    db.execute("COMMIT")
    return db, ids


def selects(db: sqlite3.Connection, ids: list[str], chance: random.Random) -> float:
    chosen = chance.choices(ids, k=LOOKUPS)
    begin = time.perf_counter()
    for task_id in chosen:
        assert db.execute("SELECT result FROM job WHERE id = ?", (task_id,)).fetchone()
    return LOOKUPS / (time.perf_counter() - begin)


def summary(name: str, pairs: list[tuple[float, float]]) -> list[tuple[str, float]]:
    """Return the median of each store, and of their ratio within a round."""
    ratios = [large / small for small, large in pairs]
    return [
        (f"{name}_small", statistics.median(small for small, _ in pairs)),
        (f"{name}_large", statistics.median(large for _, large in pairs)),
        (f"{name}_ratio", statistics.median(ratios)),
        (f"{name}_ratio_lowest", min(ratios)),
        (f"{name}_ratio_highest", max(ratios)),
    ]


STORES = {"SQLite": sqlite_files, "Redis": redis_prefixes, "PostgreSQL": postgres_schemas}
SETTINGS = {"SQLite": "synchronous=full", "Redis": "nothing is kept on disk", "PostgreSQL": "commits as it comes"}
TURNS = f"{ROUNDS} rounds of small, large"
SCENARIO = Scenario(
    title=f"{LARGE:,} waiting and as many finished jobs (--full: {LARGE_FULL:,}) against {SMALL:,}",
    rounds=1,
    parts={
        **{
            store: Part(run=flowrra(stores), needs="flowrra", setting=f"{SETTINGS[store]}, {TURNS}")
            for store, stores in STORES.items()
        },
        "sqlite3": Part(run=bare, setting="limit: SELECT by a unique text, all of the file's rows"),
    },
    checks=(
        *(
            Check(label=f"{store}: {label}, large / small", ours=store, figure=f"{name}_ratio", unit="x",
                  goal=0.95)
            for store in STORES
            for name, label in (
                ("drain", "drain"), ("enqueue", "enqueue"),
                ("lookup", f"look-up among the latest {SMALL:,}"), ("spread", "look-up among all"),
            )
        ),
        Check(label="SQLite: look-up among all, large / small", ours="SQLite", figure="spread_ratio",
              unit="x", against="sqlite3"),
    ),
)  # fmt: skip
