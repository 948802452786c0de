"""Limits in SQLite: what the statements cost, and that a job without a limit pays nothing."""

import asyncio
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from flowrra import (
    BackendConfig,
    Clock,
    Job,
    JobFilter,
    Limit,
    Outcome,
    SQLiteBroker,
    SQLiteTable,
    WorkerInfo,
    jobs_of_rows,
)
from flowrra import claimed_job as job_of_claim

NOW = 1_700_000_000.0


class Table:
    """A store with its statements in view."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db
        self.store = SQLiteTable(db, BackendConfig(), Clock())
        self.statements: dict[str, None] = {}
        self.store.heartbeat(WorkerInfo("w1", "host", os.getpid(), {"default": 10}), lease=1_000, now=NOW)

    def declare(self, name: str, limit: Limit) -> None:
        self.store.change([name], "limit", now=NOW, by=limit.text)

    def push(self, *ids: str, limit: str | None = "api", key: str | None = None) -> None:
        self.store.push([Job(one, "t", payload="[[],{}]", limit=limit, key=key) for one in ids], now=NOW)

    def claim(self, limit: int = 10, now: float = NOW) -> list[Job]:
        rows = self.store.claim("default", limit=limit, worker="w1", now=now)
        return [job_of_claim(row, "w1", now) for row in rows]

    def settle(self, jobs: list[Job]) -> None:
        outcomes = [Outcome.succeed(job, None) for job in jobs]
        for outcome in outcomes:
            outcome.text = "null"
        self.store.settle(outcomes, now=NOW)

    def watch(self) -> None:
        self.statements.clear()
        self.db.set_trace_callback(lambda text: self.statements.setdefault(text))

    def plans(self) -> dict[str, list[str]]:
        """The plan of each statement that was run since the watch began."""
        self.db.set_trace_callback(None)
        verbs = ("SELECT", "INSERT", "UPDATE", "DELETE", "WITH")
        wanted = [text.strip() for text in self.statements if text.strip().startswith(verbs)]
        return {text: [row[3] for row in self.db.execute(f"EXPLAIN QUERY PLAN {text}")] for text in wanted}


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Table]:
    path = tmp_path / "jobs.db"

    async def create() -> None:
        broker = SQLiteBroker(str(path))
        await broker.open()
        await broker.close()

    asyncio.run(create())
    db = sqlite3.connect(path, isolation_level=None)
    yield Table(db)
    db.close()


def use_limits(table: Table) -> None:
    """Every statement that limits have."""
    store = table.store
    table.declare("api", Limit(name="api", concurrency=2, rate="10/s", burst=3))
    table.declare("queue q", Limit(name="queue q", turn=2))
    table.push(*(f"a{n}" for n in range(6)), key="k")
    table.push(*(f"b{n}" for n in range(6)), limit="queue q", key="l")
    table.settle(table.claim())
    table.claim(now=NOW + 5)
    store.change(["api:k"], "pause", now=NOW)
    store.change(["api:k"], "resume", now=NOW)
    table.declare("api", Limit(name="api", concurrency=3))
    store.limit_states(["api:k", "api:"], ["api:"])
    (waiting,) = jobs_of_rows(store.find(JobFilter(ids=["a5"]), limit=1, after=None, oldest_first=False))
    store.counts(JobFilter(ahead_of=waiting))
    store.next_due()
    store.remove(before=NOW, limit=10)


@pytest.mark.parametrize("is_analyzed", [False, True])
def test_no_statement_of_limits_walks_or_sorts(table: Table, is_analyzed: bool) -> None:
    if is_analyzed:
        table.push(*(f"x{n}" for n in range(500)), limit="other")
        table.push(*(f"y{n}" for n in range(500)), limit=None)
        table.db.execute("ANALYZE")
    table.watch()
    use_limits(table)
    plans = table.plans()
    assert len(plans) > 15
    for statement, plan in plans.items():
        for step in plan:
            is_group = statement.startswith("SELECT queue, status, count(*)")
            assert "SCAN flowrra_job" not in step, (statement, plan)
            assert "TEMP B-TREE" not in step or is_group or "WHERE id IN" in statement, (statement, plan)


INTENDED = {
    "who is next": ("ORDER BY priority, seq LIMIT", "n.value", "flowrra_waiting (limit_key=?)"),
    "places that are taken": ("instr(n.name", "", "flowrra_admitted (limit_key=? AND status=?)"),
    "whether one waits": ("instr(n.name", "", "flowrra_waiting (limit_key=?)"),
    "keys that are due": ("SELECT name FROM flowrra_limit_key", "", "flowrra_limit_due (due>? AND due<?)"),
    "what a change makes due": ("WITH RECURSIVE", "", "flowrra_waiting (limit_key>? AND limit_key<?)"),
    "the last place": ("max(place)", "", "flowrra_place"),
    "a claim": ("ORDER BY priority, place, seq", "", "flowrra_ready (queue=?)"),
    "what is paused": ("+status = 'pending'", "", "flowrra_admitted (limit_key=?"),
}


@pytest.mark.parametrize("name", INTENDED)
def test_a_statement_uses_the_index_made_for_it(table: Table, name: str) -> None:
    part, another, index = INTENDED[name]
    table.watch()
    use_limits(table)
    plans = [plan for text, plan in table.plans().items() if part in text and another in text]
    assert plans
    for plan in plans:
        assert any(index in step for step in plan), plan


def test_a_job_without_a_limit_runs_no_statement_more(table: Table) -> None:
    def live(name: str) -> list[str]:
        table.watch()
        table.push(f"{name}1", f"{name}2", limit=None)
        table.settle(table.claim())
        table.db.set_trace_callback(None)
        return [text.split("'", 1)[0] for text in table.statements]

    before = live("a")
    table.declare("api", Limit(name="api", concurrency=1, rate="1/s"))
    table.push("b1", "b2")
    table.claim()
    assert live("c") == before
    assert not [text for text in before if "flowrra_limit_key" in text and "EXISTS" not in text]


def test_a_batch_of_one_limit_key_is_one_insert(table: Table) -> None:
    table.declare("api", Limit(name="api", concurrency=2))
    table.watch()
    table.push(*(f"j{n}" for n in range(100)))
    table.db.set_trace_callback(None)
    inserts = [text for text in table.statements if "INTO flowrra_job" in text]
    assert len(inserts) == 1
    assert [job.id for job in table.claim()] == ["j0", "j1"]
