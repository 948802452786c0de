"""What stores of schedules in SQL promise besides the contract: URLs, the schema, its index, what they refuse."""

import asyncio
import contextlib
import gc
import sqlite3
import sys
import urllib.parse
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowrra import FIRES_AT_ONCE, MAX_LEASE, BackendError, ConfigError, Fired, Schedule
from flowrra_extras.contracts.schedules import schedule
from flowrra_extras.scheduler import mysql, postgresql, sql, store_from_url
from flowrra_extras.scheduler.store import FIELDS
from flowrra_extras.testing import ManualClock
from tests.support.apps import make_app
from tests.support.processes import Site

NOW = 1_700_000_000.0


@pytest.fixture(params=["sqlite", "postgres_schema", "mysql_database"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/schedules.db"
    found: str = request.getfixturevalue(request.param)
    return found


def sql_store(url: str, clock: ManualClock | None = None) -> sql.SQLScheduleStore:
    made = store_from_url(url, clock, timeout=5.0)
    assert isinstance(made, sql.SQLScheduleStore)
    return made


async def link_to(url: str) -> sql.Link:
    makers = {
        "sqlite": sql.sqlite_database,
        "postgresql": postgresql.database_from_url,
        "mysql": mysql.database_from_url,
    }
    return await makers[urllib.parse.urlsplit(url).scheme](url).connect(5.0)


# ---------------------------------------------------------------------------
# URLs and drivers
# ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ("schedules.db", "scheme"),
        ("kafka://localhost/0", "scheme 'kafka'"),
        ("sqlite://schedules.db", "names no file: the form is sqlite:///name.db"),
        ("sqlite:///schedules#1.db", "names no file: the form is sqlite:///name.db"),
        ("sqlite:///schedules.db?mode=ro", "has options, but a SQLite store of schedules takes none"),
        ("mysql://u:secret@localhost", "names one database"),
        ("mysql://u:secret@one,two/app", "names several hosts"),
        ("mysql://u:secret@localhost/a/b", "names one database"),
        ("postgresql://u:secret@localhost:port/app", "must be a number from 1 to 65535"),
        ("mysql://u:se/cret@localhost:3306/app", "/ as %2F"),
        ("postgresql://u:secret@localhost/app?pool=5", "the unknown option 'pool'"),
        ("mysql://u:secret@localhost/app?sslmode=require", "unknown option 'sslmode'"),
        ("mysql://u:secret@localhost/app?ssl=true&ssl=false", "twice"),
        ("mysql://u:secret@localhost/app?ssl=yes", "true or false"),
    ],
)
def test_a_wrong_url_is_refused_without_its_password(wrong: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        store_from_url(wrong)
    assert "secret" not in str(caught.value)
    assert "cret" not in str(caught.value).replace("%-codes", "")


@pytest.mark.parametrize(
    ("url", "driver", "package"),
    [
        ("redis://localhost/0", "hiredis", r"flowrra\[redis\]'"),
        ("postgresql://localhost/app", "asyncpg", r"flowrra\[postgresql\]'"),
        ("postgres://localhost/app", "asyncpg", r"flowrra\[postgresql\]'"),
        ("mysql://localhost/app", "asyncmy", r"flowrra\[mysql\]'"),
        ("mariadb://localhost/app", "asyncmy", r"flowrra\[mysql\]'"),
    ],
)
def test_a_missing_driver_is_named(url: str, driver: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, driver, None)
    for name in [
        name for name in sys.modules if name.startswith(("flowrra_extras.redis", "flowrra_extras.scheduler."))
    ]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ConfigError, match=f"{driver}.*pip install '{package}"):
        store_from_url(url)


async def test_drivers_are_imported_when_they_are_used(tmp_path: Path) -> None:
    script = """
import sys
from flowrra_extras.scheduler import store_from_url
drivers = {"asyncpg", "asyncmy", "hiredis"}
assert not drivers & set(sys.modules)
store_from_url("sqlite://")
assert not drivers & set(sys.modules)
store_from_url("postgresql://localhost/app")
assert drivers & set(sys.modules) == {"asyncpg"}
"""
    with Site(tmp_path) as site:
        process = site.script(script)
        assert await process.ends() == 0, process.log


async def test_a_program_that_closes_nothing_ends(tmp_path: Path) -> None:
    script = f"""
from flowrra_extras.scheduler import store_from_url
async def main():
    global store
    store = store_from_url("sqlite:///{tmp_path}/schedules.db")
    await store.open()
    raise SystemExit(3)
asyncio.run(main())
"""
    with Site(tmp_path) as site:
        process = site.script(f"import asyncio{script}")
        assert await process.ends() == 3, process.log


# ---------------------------------------------------------------------------
# The schema
# ---------------------------------------------------------------------------


async def test_schedules_outlive_the_store(url: str) -> None:
    for _ in range(2):
        again = sql_store(url)
        await again.open()
        assert await again.add(schedule("a", next_fire=NOW)) == "a"
        assert await again.find() == [schedule("a", next_fire=NOW)]
        await again.close()


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # the first loops' connections, which nobody closed
def test_one_loop_after_the_other_may_use_a_store(url: str) -> None:
    """A script that calls asyncio.run() for each call, and closes nothing between them."""
    kept = sql_store(url)

    async def add(name: str) -> str:
        await kept.open()
        return await kept.add(schedule(name))

    async def look() -> list[str]:
        await kept.open()
        try:
            return [one.id for one in await kept.find()]
        finally:
            await kept.close()

    for name in ("a", "b", "c"):
        assert asyncio.run(add(name)) == name
    assert asyncio.run(look()) == ["a", "b", "c"]
    gc.collect()  # here, where the warnings are ignored


async def test_a_store_is_made_once_by_those_who_open_it_at_once(url: str) -> None:
    stores = [sql_store(url) for _ in range(8)]
    await asyncio.gather(*[one.open() for one in stores])
    await asyncio.gather(*[one.add(schedule(f"s{n}", key="same")) for n, one in enumerate(stores)])
    assert [len(await one.find()) for one in stores] == [1] * 8
    for one in stores:
        await one.close()


async def test_a_newer_schema_is_refused(url: str) -> None:
    made = sql_store(url)
    await made.open()
    await made.close()
    link = await link_to(url)
    await link.execute("UPDATE flowrra_schedule_meta SET version = 99")
    await link.close()
    with pytest.raises(BackendError, match="schema 99 of schedules, newer than the 1"):
        await sql_store(url).open()


async def test_a_schema_that_was_left_half_made_is_finished(mysql_database: str) -> None:
    """No transaction holds several of MySQL's changes of a schema: the process died before it noted the version."""
    made = sql_store(mysql_database)
    await made.open()
    await made.add(schedule("a"))
    await made.close()
    link = await link_to(mysql_database)
    await link.execute("DROP TABLE flowrra_schedule_meta")
    await link.close()
    await made.open()
    assert await made.find() == [schedule("a")]
    await made.close()


@pytest.mark.parametrize(
    "wrong",
    [{"kind": "daily"}, {"misfire": "none"}, {"overlap": "none"}, {"jitter": -1.0}],
    ids=str,
)
async def test_the_table_refuses_what_cannot_be(url: str, wrong: dict[str, object]) -> None:
    made = sql_store(url)
    await made.open()
    with pytest.raises(BackendError, match=r"(?i)check|constraint"):
        await made.add(schedule("a", **wrong))
    assert await made.add(schedule("a")) == "a"
    await made.close()


async def test_indexes_give_what_is_due_and_what_was_fired(url: str) -> None:
    """Among 2,000 schedules, the statements of a tick look at indexes and not at the table."""
    made = sql_store(url)
    await made.open()
    link = await link_to(url)
    later = [schedule(f"s{n}", next_fire=NOW + n) for n in range(2_000)]
    dialect = made._dialect
    bound = [
        dialect.bind(sql._ADD, {field: made._to_column(field, getattr(one, field)) for field in FIELDS})
        for one in later
    ]
    await link.execute(dialect.begin)
    for statement, row in bound:
        await link.execute(statement, row)
    await link.execute("COMMIT")
    explain = "EXPLAIN QUERY PLAN" if url.startswith("sqlite") else "EXPLAIN"
    for query in (sql._DUE, sql._NEXT):
        values = {"now": made._to_column("next_fire", NOW), "limit": 10, "clock": 0.0}
        text, given_values = dialect.bind(query, values)
        plan = " ".join(str(row) for row in await link.fetch(f"{explain} {text}", given_values))
        assert "flowrra_schedule_due" in plan, plan
        assert [word for word in ("filesort", "Sort", "TEMP B-TREE", "SCAN", "Seq Scan") if word in plan] == [], plan
    if not url.startswith("postgresql"):  # which knows the size of a table, and rightly scans this one
        text, given_values = dialect.bind("{advance}", {"rows": '[["s1", null, null, "job"]]'})
        plan = " ".join(str(row) for row in await link.fetch(f"{explain} {text}", given_values))
        index = "sqlite_autoindex_flowrra_schedule_1" if url.startswith("sqlite") else "'eq_ref', 'id'"
        assert index in plan, plan
    await link.close()
    await made.close()


async def test_what_is_due_at_once_costs_as_many_statements_as_one_schedule(url: str) -> None:
    clock = ManualClock(NOW)
    app, made = make_app(clock=clock), sql_store(url, clock)
    app.task(name="tick")(lambda: None)
    scheduler = app.create_scheduler(made)
    counts: list[int] = []
    async with app.client():
        assert await scheduler.step() > 0.0  # opens and purges
        for number in range(FIRES_AT_ONCE // 2):
            await scheduler.schedule_cron("tick", "* * * * *", task_id=f"n{number}")
            if number in (0, FIRES_AT_ONCE // 2 - 1):
                clock.advance(60)
                with counted_statements(made) as statements:
                    assert await scheduler.step() == 0.0
                counts.append(len(statements))
        assert len(await app.jobs(limit=1_000)) == 1 + FIRES_AT_ONCE // 2
    assert 0 < counts[0] <= 10
    assert counts[1] == counts[0]


@contextlib.contextmanager
def counted_statements(store: sql.SQLScheduleStore) -> Iterator[list[str]]:
    """The statements that the store runs meanwhile."""
    link = store._link
    assert link is not None
    statements: list[str] = []

    def counted(run: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def run_it(statement: str, *values: Any) -> Any:
            statements.append(statement)
            return await run(statement, *values)

        return run_it

    with pytest.MonkeyPatch.context() as patch:
        for name in ("fetch", "execute"):
            patch.setattr(link, name, counted(getattr(link, name)))
        yield statements


# ---------------------------------------------------------------------------
# Values
# ---------------------------------------------------------------------------


@given(st.integers(-62_135_596_800 * 10**6, 253_402_300_799 * 10**6))
def test_a_moment_comes_back_to_the_microsecond(microseconds: int) -> None:
    seconds = microseconds / 10**6
    for dialect in (sql.SQLITE, postgresql.DIALECT, mysql.DIALECT):
        column = dialect.to_column(sql._moment("next_fire", seconds))
        back = dialect.from_column(column).timestamp()
        assert abs(back - seconds) <= 5e-6 if abs(seconds) > 2**33 else round(back * 10**6) == microseconds


@given(st.integers(-(10**15), 10**16), st.integers(-(10**15), 10**16))
def test_texts_of_moments_sort_as_moments(one: int, other: int) -> None:
    texts = [sql.SQLITE.to_column(sql._moment("now", value / 10**6)) for value in (one, other)]
    assert (texts[0] < texts[1]) == (one < other)


@pytest.mark.parametrize(
    "wrong",
    [
        {"task": "nul\0"},
        {"description": "half \ud83d"},
        {"id": "x" * 256},
        {"key": "x" * 256},
        {"next_fire": float("inf")},
        {"anchor": float("nan")},
        {"last_fire": 1e12},
    ],
    ids=str,
)
async def test_what_some_database_cannot_hold_is_refused_by_all(wrong: dict[str, object]) -> None:
    made = sql_store("sqlite://")
    await made.open()
    values: dict[str, object] = {"id": "a", "key": "k", "task": "t", "kind": "cron", "rule": "* * * * *", **wrong}
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        await made.add(Schedule(**values))  # type: ignore[arg-type]
    await made.close()


# ---------------------------------------------------------------------------
# SQLite
# ---------------------------------------------------------------------------


async def test_a_lease_of_an_earlier_boot_does_not_hold(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/schedules.db"
    before, after = ManualClock(monotonic=MAX_LEASE * 10), ManualClock(monotonic=5.0)
    first, second = sql_store(url, before), sql_store(url, after)
    await first.open()
    await second.open()
    await first.add(schedule("a", next_fire=NOW))
    (taken,) = await first.take(now=NOW, lease=60, limit=1)
    (again,) = await second.take(now=NOW, lease=60, limit=1)
    assert again.turn == taken.turn + 1
    assert await first.advance([Fired("a", taken.turn, None, NOW, None)]) == [False]
    for lease in (0.0, -1.0, MAX_LEASE + 1):
        with pytest.raises(ConfigError, match="lease"):
            await first.take(now=NOW, lease=lease, limit=1)
    await first.close()
    await second.close()


async def test_a_file_that_stays_locked_is_told_as_such(tmp_path: Path) -> None:
    made = store_from_url(f"sqlite:///{tmp_path}/schedules.db", timeout=0.4)
    await made.open()
    other = sqlite3.connect(tmp_path / "schedules.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(BackendError, match=r"schedules\.db.*locked"):
        await made.add(schedule("a"))
    assert await made.find() == []  # readers do not wait
    other.execute("ROLLBACK")
    other.close()
    assert await made.add(schedule("a")) == "a"
    await made.close()


async def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"nowhere.*unable to open"):
        await store_from_url(f"sqlite:///{tmp_path}/nowhere/schedules.db").open()
