"""The SQLite store as a file: where it is, what may be in it, whose transaction it joins, what its statements cost."""

import asyncio
import contextlib
import itertools
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import flowrra
from flowrra import (
    BackendConfig,
    BrokerError,
    Clock,
    ConfigError,
    Flowrra,
    Job,
    JobFilter,
    Outcome,
    SQLiteBroker,
    SQLiteTable,
    Step,
    TaskId,
    TaskNotFoundError,
    TaskStatus,
    WorkerInfo,
    claimed_job,
    result_of,
)

NOW = 1_700_000_000.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@contextlib.contextmanager
def plain(path: Path) -> Iterator[sqlite3.Connection]:
    """Another program's connection."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=30)) as connection:
        yield connection


@contextlib.asynccontextmanager
async def opened(path: Path, **options: Any) -> Any:
    broker = SQLiteBroker(str(path), **options)
    await broker.open()
    try:
        yield broker
    finally:
        await broker.close()


async def ids_in(path: Path) -> set[str]:
    async with opened(path) as broker:
        return {job.id for job in await broker.find(JobFilter())}


async def running(broker: SQLiteBroker) -> Job:
    """The first job, which a worker runs."""
    await broker.heartbeat(WorkerInfo("w"), lease=60, now=NOW)
    (job,) = await broker.claim("default", limit=1, worker="w", now=NOW)
    return job


async def keep_step(broker: SQLiteBroker, job: Job, name: str, text: str = "1") -> None:
    assert await broker.settle([Outcome.done(job, 1, Step(name, text, NOW, NOW))], now=NOW) == [True]


# ---------------------------------------------------------------------------
# Where it is
# ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("sqlite:///jobs.db", "jobs.db"),
        ("sqlite:///folder/jobs.db", "folder/jobs.db"),
        ("sqlite:///{root}/abs.db", "abs.db"),
        ("sqlite:///{root}/abs.db?synchronous=normal", "abs.db"),
        ("sqlite:///with%20blank%3F.db", "with blank?.db"),
        ("SQLITE:///jobs.db?synchronous=FULL", "jobs.db"),
    ],
)
async def test_a_url_names_a_file(url: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    app = Flowrra.from_urls(url.replace("{root}", str(tmp_path)))
    async with app.client():
        assert app.broker.path == str(tmp_path / name)  # type: ignore[attr-defined]  # a SQLiteBroker's
    assert (tmp_path / name).is_file()


async def test_a_relative_path_holds_when_the_program_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    app = Flowrra.from_urls("sqlite:///jobs.db")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    async with app.client():
        pass
    assert (tmp_path / "jobs.db").is_file()


async def test_without_a_path_each_store_is_private() -> None:
    one, two = Flowrra.from_urls("sqlite://"), Flowrra.from_urls("sqlite://")
    async with one.client(), two.client():
        await one.broker.push([Job("a", "task")], now=NOW)
        assert await two.broker.get(["a"]) == [None]
        assert one.broker.clone() is None


async def test_a_folder_that_is_missing(tmp_path: Path) -> None:
    broker = SQLiteBroker(str(tmp_path / "missing" / "jobs.db"))
    with pytest.raises(BrokerError, match=r"missing/jobs\.db cannot be opened: does its folder exist"):
        await broker.open()


async def test_a_path_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BrokerError, match="cannot be opened"):
        await SQLiteBroker(str(tmp_path / "file" / "jobs.db")).open()


async def test_a_path_that_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(BrokerError, match="cannot be opened"):
        await SQLiteBroker(str(tmp_path)).open()


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder with a store in it where nothing can be written: to root only a mount says no."""
    folder = tmp_path / "read-only"
    folder.mkdir()
    if os.getuid() != 0:
        yield from locked_folder(folder)
        return
    if sys.platform != "linux" or mount("-t", "tmpfs", "tmpfs", str(folder)) != 0:
        pytest.skip("root may write anywhere, and no file system can be mounted here")
    try:
        asyncio.run(ids_in(folder / "jobs.db"))
        assert mount("-o", "remount,ro", str(folder)) == 0
        yield folder
    finally:
        subprocess.run([shutil.which("umount") or "umount", "-l", folder], check=True)


def mount(*arguments: str) -> int:
    return subprocess.run([shutil.which("mount") or "mount", *arguments], check=False, capture_output=True).returncode


def locked_folder(folder: Path) -> Iterator[Path]:
    asyncio.run(ids_in(folder / "jobs.db"))
    (folder / "jobs.db").chmod(0o400)
    folder.chmod(0o500)
    yield folder
    folder.chmod(0o700)


@pytest.mark.parametrize("name", ["jobs.db", "new.db"])
def test_a_folder_that_cannot_be_written(read_only: Path, name: str) -> None:
    broker = SQLiteBroker(str(read_only / name))
    with pytest.raises(BrokerError, match=rf"{name} cannot be (written|opened): .* (writable for|may) this user"):
        asyncio.run(broker.open())


# ---------------------------------------------------------------------------
# What may be in it
# ---------------------------------------------------------------------------


def test_a_file_that_is_no_database(path: Path) -> None:
    path.write_text("Dear diary, " * 100)
    with pytest.raises(BrokerError, match=r"jobs\.db is not a SQLite database: choose another file"):
        asyncio.run(SQLiteBroker(str(path)).open())
    assert path.read_text() == "Dear diary, " * 100


def test_a_damaged_file(path: Path) -> None:
    asyncio.run(ids_in(path))
    with path.open("r+b") as file:
        file.seek(2_000)
        file.write(b"\xa5" * (path.stat().st_size - 2_000))
    with pytest.raises(BrokerError, match=r"jobs\.db is damaged .*restore a backup"):
        asyncio.run(SQLiteBroker(str(path)).open())


def test_an_empty_file_becomes_a_store(path: Path) -> None:
    path.touch()
    assert asyncio.run(ids_in(path)) == set()


async def test_a_newer_schema_is_refused_and_left_alone(path: Path) -> None:
    await ids_in(path)
    with plain(path) as db:
        db.execute("UPDATE flowrra_meta SET schema = 99")
        before = list(db.iterdump())
        with pytest.raises(BrokerError, match=r"jobs\.db has schema 99, newer than .*: upgrade this"):
            await SQLiteBroker(str(path)).open()
        assert list(db.iterdump()) == before


async def test_a_table_of_somebody_else_is_left_alone(path: Path) -> None:
    with plain(path) as db:
        db.execute("CREATE TABLE flowrra_tag AS SELECT 'kept' AS mine")
        with pytest.raises(
            BrokerError, match=r"jobs\.db has a table flowrra_tag that Flowrra has not made: use another"
        ):
            await SQLiteBroker(str(path)).open()
        assert [row[0] for row in db.execute("SELECT mine FROM flowrra_tag")] == ["kept"]


def schema_of(path: Path) -> list[int]:
    with plain(path) as db:
        return [row[0] for row in db.execute("SELECT schema FROM flowrra_meta")]


async def test_an_older_schema_is_migrated_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All tables are made anew with the rows of the old ones; those of others in the file are left alone."""
    async with opened(path) as broker:
        await broker.push([Job("a", "task"), Job("last", "task", due=NOW + 60)], now=NOW)
        await keep_step(broker, await running(broker), "charge")
        await broker.cancel("last", now=NOW)
        await broker.delete(["last"])
    with plain(path) as db:
        db.execute("CREATE TABLE flowrra_schedule (id TEXT)")
    newer = flowrra._SCHEMA_VERSION + 1
    monkeypatch.setattr(flowrra, "_SCHEMA_VERSION", newer)
    schema = flowrra._SCHEMA.replace("waits INTEGER", "extra TEXT DEFAULT 'x', waits INTEGER")
    monkeypatch.setattr(flowrra, "_SCHEMA", schema + "CREATE TABLE flowrra_extra (name TEXT);\n")
    assert await ids_in(path) == {"a"}
    async with opened(path) as broker:  # a second time would fail
        await broker.push([Job("next", "task")], now=NOW)
    assert schema_of(path) == [newer]
    with plain(path) as db:
        assert db.execute("SELECT id, seq, extra FROM flowrra_job").fetchall() == [("a", 1, "x"), ("next", 3, "x")]
        assert db.execute("SELECT job, number, name FROM flowrra_step").fetchall() == [(1, 1, "charge")]
        tables = {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        assert {"flowrra_schedule", "flowrra_extra"} <= tables
        assert not any(name.startswith("old_") for name in tables)


async def test_a_migration_that_fails_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(path) as broker:
        await broker.push([Job("a", "task")], now=NOW)
    before = schema_of(path)
    with monkeypatch.context() as patch:
        patch.setattr(flowrra, "_SCHEMA_VERSION", flowrra._SCHEMA_VERSION + 1)
        patch.setattr(flowrra, "_LATER_RULES", "INSERT INTO nowhere VALUES (1);\n")
        with pytest.raises(BrokerError, match="nowhere"):
            await SQLiteBroker(str(path)).open()
    assert schema_of(path) == before
    assert await ids_in(path) == {"a"}
    with plain(path) as db:
        assert db.execute("SELECT count(*) FROM sqlite_master WHERE name LIKE 'old_%'").fetchone() == (0,)


async def test_many_may_open_a_new_file_at_once(path: Path) -> None:
    brokers = [SQLiteBroker(str(path)) for _ in range(8)]
    await asyncio.gather(*[broker.open() for broker in brokers])
    for number, broker in enumerate(brokers):
        await broker.push([Job(f"j{number}", "task")], now=NOW)
        await broker.close()
    assert await ids_in(path) == {f"j{n}" for n in range(8)}
    assert schema_of(path) == [flowrra._SCHEMA_VERSION]


async def test_it_lives_in_an_applications_database(path: Path) -> None:
    with plain(path) as db:
        db.executescript("CREATE TABLE job (id); INSERT INTO job VALUES (1); PRAGMA user_version = 7;")
        await ids_in(path)
        assert db.execute("SELECT * FROM job").fetchall() == [(1,)]
        assert db.execute("PRAGMA user_version").fetchone() == (7,)
        names = {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE sql IS NOT NULL")} - {"job"}
        assert all(name.startswith(("flowrra_", "sqlite_")) for name in names)  # sqlite_sequence is SQLite's own


@pytest.mark.parametrize(
    "change",
    [
        "status = 'sleeping'",
        "status = 'running'",
        "status = 'running', attempt = 1, worker = 'w'",
        "status = 'running', attempt = 0, worker = 'w', started = 1.0",
        "status = 'running', attempt = 1, worker = 'w', started = 1.0, finished = 2.0",
        "status = 'success', attempt = 1",
        "status = 'failed'",
        "status = 'cancelled'",
        "status = 'scheduled'",
        "status = 'scheduled', due = 1.0, finished = 1.0",
        "status = 'retrying', failures = 1",
        "status = 'retrying', due = 1.0",
        "finished = 1.0",
        "id = 'b'",
        "id = NULL",
        "payload = NULL",
        "unique_key = 'key'",
    ],
)
async def test_a_row_that_cannot_be_is_refused_by_the_database(path: Path, change: str) -> None:
    async with opened(path) as broker:
        await broker.push([Job("a", "task"), Job("b", "task", unique="key")], now=NOW)
    with plain(path) as db, pytest.raises(sqlite3.IntegrityError):
        db.execute(f"UPDATE flowrra_job SET {change} WHERE id = 'a'")  # noqa: S608 (the list above)


async def test_what_is_not_open_says_so(path: Path) -> None:
    broker = SQLiteBroker(str(path))
    for _ in range(2):
        for call in (broker.push([Job("a", "task")], now=NOW), broker.get(["a"]), broker.wait_for("a", 1)):
            with pytest.raises(BrokerError, match="is not open"):
                await call
        await broker.open()
        await broker.close()
        await broker.close()


# ---------------------------------------------------------------------------
# Inside a caller's transaction
# ---------------------------------------------------------------------------

app = Flowrra.from_urls("sqlite://")


@app.task
async def greet(name: str) -> str:
    return f"hello {name}"


@pytest.fixture
def filed(path: Path, monkeypatch: pytest.MonkeyPatch) -> Flowrra:
    monkeypatch.setattr(app, "broker", SQLiteBroker(str(path)))
    return app


async def test_a_job_comes_and_goes_with_the_callers_rows(filed: Flowrra, path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        async with filed.client():
            db.execute("CREATE TABLE orders (id)")
            db.execute("INSERT INTO orders VALUES (1)")
            lost = await filed.submit_in(db, greet, "nobody")
            assert await filed.get_result(lost) is None
            db.rollback()
            db.execute("INSERT INTO orders VALUES (2)")
            kept = await filed.submit_in(db, greet, "Ada")
            db.commit()
            assert await filed.get_result(lost) is None
            result = await filed.get_result(kept)
            assert result is not None
            assert result.status is TaskStatus.PENDING
        assert db.execute("SELECT id FROM orders").fetchall() == [(2,)]


async def test_submit_in_begins_a_transaction_that_the_caller_ends(filed: Flowrra, path: Path) -> None:
    with plain(path) as db:
        async with filed.client():
            task_id = await filed.submit_in(db, greet, "Ada")
            assert db.in_transaction
            assert await filed.get_result(task_id) is None
            db.execute("ROLLBACK")
            assert await filed.get_result(task_id) is None


async def test_a_worker_runs_what_the_caller_commits(filed: Flowrra, path: Path) -> None:
    with plain(path) as db:
        async with filed:
            task_id = await filed.submit_in(db, greet, name="Ada")
            db.execute("COMMIT")
            assert (await filed.wait_for_result(task_id, 30)).result == "hello Ada"


def as_dict(cursor: sqlite3.Cursor, row: tuple[Any, ...]) -> dict[str, Any]:
    return dict(zip((column[0] for column in cursor.description), row, strict=True))


@pytest.mark.parametrize("factory", [sqlite3.Row, as_dict])
async def test_a_connection_may_have_its_own_idea_of_rows(filed: Flowrra, path: Path, factory: Any) -> None:
    async with filed.client():
        parent = await filed.submit(greet, "Ada")
        with plain(path) as db:
            db.row_factory, db.text_factory = factory, bytes
            task_id = await filed.submit_in(db, greet, result_of(parent))
            assert (db.row_factory, db.text_factory) == (factory, bytes)
            db.execute("COMMIT")
        assert (await filed.get_job(task_id)).status is TaskStatus.BLOCKED


async def test_a_refused_job_leaves_nothing_in_the_transaction(filed: Flowrra, path: Path) -> None:
    async with filed.client():
        with plain(path) as db:
            db.execute("BEGIN")
            db.execute("CREATE TABLE orders (id)")
            with pytest.raises(TaskNotFoundError):
                await filed.submit_in(db, greet, result_of(TaskId[str]("nobody")))
            db.execute("COMMIT")
            assert db.execute("SELECT count(*) FROM orders").fetchall() == [(0,)]
        assert await filed.jobs() == []


async def test_another_database_is_refused(filed: Flowrra, tmp_path: Path) -> None:
    async with filed.client():
        for other, named in ((tmp_path / "other.db", r"other\.db"), (":memory:", "a private database")):
            with (
                contextlib.closing(sqlite3.connect(other)) as db,
                pytest.raises(ConfigError, match=f"the connection is on .*{named}, the jobs in .*jobs.db"),
            ):
                await filed.submit_in(db, greet, "Ada")


async def test_a_locked_database_is_explained(path: Path) -> None:
    async with opened(path) as broker:
        with plain(path) as holder, contextlib.closing(sqlite3.connect(path, timeout=0)) as db:
            holder.execute("BEGIN IMMEDIATE")
            with pytest.raises(BrokerError, match="has been locked for"):
                broker.push_in(db, [Job("a", "task")], now=NOW)


@pytest.mark.parametrize("url", ["sqlite://", "memory://"])
async def test_a_store_of_its_own_cannot_join(url: str, path: Path) -> None:
    other = Flowrra.from_urls(url)
    task = other.task(greet.function)
    with plain(path) as db:
        async with other.client():
            with pytest.raises(ConfigError):
                await other.submit_in(db, task, "Ada")


# ---------------------------------------------------------------------------
# What the statements cost: none walks through the jobs, none sorts them
# ---------------------------------------------------------------------------


class Desk:
    """A store with its statements in view."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db
        self.store = SQLiteTable(db, BackendConfig(), Clock())
        self.statements: dict[str, None] = {}
        self.worker = WorkerInfo("w1", "host", os.getpid(), {"default": 10}, ("task",))
        db.set_trace_callback(self.note)

    def note(self, statement: str) -> None:
        self.statements[statement] = None

    def plans(self) -> dict[str, list[str]]:
        """The plan of each statement that was run."""
        self.db.set_trace_callback(None)
        verbs = ("SELECT", "INSERT", "UPDATE", "DELETE")
        wanted = [text.strip() for text in self.statements if text.strip().startswith(verbs)]
        return {text: [row[3] for row in self.db.execute(f"EXPLAIN QUERY PLAN {text}")] for text in wanted}

    def claim(self, limit: int = 10) -> list[Job]:
        return [claimed_job(row, "w1", NOW) for row in self.store.claim("default", limit=limit, worker="w1", now=NOW)]


@pytest.fixture
def desk(path: Path) -> Iterator[Desk]:
    asyncio.run(ids_in(path))
    with plain(path) as db:
        yield Desk(db)


def jobs(*ids: str, **fields: Any) -> list[Job]:
    return [Job(task_id, "task", payload="[[],{}]", **fields) for task_id in ids]


def live_a_life(desk: Desk) -> None:
    """Every statement of a job's life, its crash included."""
    store = desk.store
    store.heartbeat(desk.worker, lease=100, now=NOW)
    store.push(jobs("a", "b", "c", "d", "e"), now=NOW)
    store.push(jobs("k", unique="key") + jobs("k2", unique="key") + jobs("child", parents=("a",)), now=NOW)
    store.push(jobs("later", due=NOW + 9) + jobs("stale", expires=NOW + 1), now=NOW)
    a, b, c, d, e, *_ = desk.claim()
    store.settle([succeeded(a), Outcome.fail(b, "boom")], now=NOW)
    store.settle([Outcome.retry_at(c, NOW + 1, "boom"), Outcome.cancel(d, "why")], now=NOW)
    store.settle([Outcome.report(e, 1, flowrra.Progress(1)), Outcome.done(e, 1, Step("s", "1", 1, 2))], now=NOW)
    store.change(["child"], "cancel", now=NOW, by="Ada")
    store.change(["e"], "cancel", now=NOW)
    store.change(["b", "child", "unknown"], "requeue", now=NOW, by="Ada")
    store.change(["k", "e"], "hold", now=NOW, by="Ada")
    store.change(["k"], "unhold", now=NOW, by="Ada")
    store.find(JobFilter(parent="a"), limit=10, after=None, oldest_first=False)
    store.remove(["a", "b"])
    store.remove(["a", "b"], by="Ada")
    store.next_due()
    store.heartbeat(WorkerInfo("w2"), lease=100, now=NOW)
    store.claim("default", limit=1, worker="w2", now=NOW)
    desk.db.execute("UPDATE flowrra_worker SET lease = 0 WHERE id = 'w2'")
    store.claim("default", limit=10, worker="w1", now=NOW + 10)  # of what is due, expired and rescued by now
    store.heartbeat(desk.worker, lease=100, now=NOW)
    store.heartbeat(desk.worker, lease=0, now=NOW)
    store.heartbeat(desk.worker, lease=100, now=NOW)
    desk.claim()  # the job that was rescued, alone
    store.finished(["a", "b"])
    store.find(JobFilter(ids=["a", "b"]), limit=2, after=None, oldest_first=False)
    store.remove(before=NOW, limit=10)
    store.rescue_dead(NOW)


def succeeded(job: Job) -> Outcome:
    outcome = Outcome.succeed(job, None)
    outcome.text = "null"
    return outcome


FIRST_ROW_IS_ENOUGH = ("SELECT NOT EXISTS (SELECT 1 FROM flowrra_family)",)
ORDERED_AFTER = "WHERE id IN (SELECT value"  # who asks for jobs by their ids knows how many there are to sort


def test_no_statement_of_a_jobs_life_walks_or_sorts(desk: Desk) -> None:
    live_a_life(desk)
    plans = desk.plans()
    assert len(plans) > 30
    for statement, plan in plans.items():
        for step in plan:
            walks = step.startswith(("SCAN flowrra_job", "SCAN flowrra_family", "SCAN flowrra_step"))
            assert not walks or statement in FIRST_ROW_IS_ENOUGH, (statement, plan)
            assert "TEMP B-TREE" not in step or ORDERED_AFTER in statement, (statement, plan)


INTENDED = {
    "a claim": ("crashes = 0 AND queue =", "flowrra_ready (queue=?)"),
    "a claim of a suspect": (
        "crashes > 0 AND crashes BETWEEN",
        "flowrra_suspect (queue=? AND crashes>? AND crashes<?)",
    ),
    "what a worker holds": ("SELECT crashes FROM flowrra_job WHERE status = 'running'", "flowrra_running (worker=?)"),
    "a promotion": ("SET status = CASE WHEN limit_key", "flowrra_due (due<?)"),
    "the next moment": ("SELECT min(due)", "flowrra_due"),
    "an expiry": ("AND expires <=", "flowrra_expiring (expires>? AND expires<?)"),
    "a rescue": ("worker IN (SELECT value", "flowrra_running (worker=?)"),
    "a request to end": ("cancel_requested = 1 AND worker =", "flowrra_cancelling (worker=?)"),
    "a unique key": ("unique_key IN (", "flowrra_unique (unique_key=?)"),
    "a purge": ("AND purge_at <", "flowrra_purge (purge_at>? AND purge_at<?)"),
    "a success": ("SET status = 'success'", "INTEGER PRIMARY KEY (rowid=?)"),
    "what waits for a parent": ("WHERE status = 'blocked' AND waits > 0 AND seq IN", "f USING PRIMARY KEY (parent=?)"),
    "children of what ended": ("SELECT f.parent FROM", "f USING PRIMARY KEY (parent=?)"),
    "a change": ("cancel_requested = 0, waits =", "INTEGER PRIMARY KEY (rowid=?)"),
    "jobs by id": (
        "NULL, error, traceback, progress, history, cancel_requested, waits, place, NULL FROM flowrra_job WHERE id IN",
        "sqlite_autoindex_flowrra_job_1 (id=?)",
    ),
    "all children": ("SELECT child FROM flowrra_family WHERE parent =", "flowrra_family USING PRIMARY KEY (parent=?)"),
}


@pytest.mark.parametrize("name", INTENDED)
def test_a_statement_uses_the_index_made_for_it(desk: Desk, name: str) -> None:
    part, index = INTENDED[name]
    live_a_life(desk)
    plans = [plan for statement, plan in desk.plans().items() if part in " ".join(statement.split())]
    assert plans
    for plan in plans:
        assert any(index in step for step in plan), plan


async def test_a_step_writes_few_pages_however_many_were_written_before(path: Path) -> None:
    async with opened(path) as broker:
        await broker.push([Job("a", "task")], now=NOW)
        job, log, sizes = await running(broker), path.with_name("jobs.db-wal"), list[int]()
        for number in range(200):
            await keep_step(broker, job, f"step {number}", f'"{number:01000}"')
            sizes.append(log.stat().st_size)
        assert max(after - before for before, after in itertools.pairwise(sizes)) < 25_000  # all steps take 200,000
        await broker.settle([Outcome.succeed(job, 1)], now=NOW)
        assert await broker.purge(1e10, 9) == 1
    with plain(path) as db:
        assert db.execute("SELECT count(*) FROM flowrra_step").fetchone() == (0,)


@pytest.mark.parametrize("status", sorted(set(TaskStatus) - {TaskStatus.SUCCESS}))
def test_a_search_by_state_reads_no_success(desk: Desk, status: TaskStatus) -> None:
    others: Sequence[dict[str, Any]] = ({}, {"task": "t"}, {"error": "x"}, {"from_seq": 5})
    for more in others:
        desk.store.find(JobFilter(status=frozenset((status,)), **more), limit=10, after=None, oldest_first=False)
    plans = desk.plans().values()
    assert len(plans) == len(others)
    for plan in plans:
        assert not [step for step in plan if step == "SCAN flowrra_job" or "TEMP B-TREE" in step], plan


def test_many_jobs_of_one_state_are_found_as_well(desk: Desk) -> None:
    """Where they are many, the search does without looking for the first of them."""
    desk.store.heartbeat(desk.worker, lease=100, now=NOW)
    desk.store.push(jobs(*[f"j{n}" for n in range(2_100)]), now=NOW)
    desk.claim(1_050)
    for status in (TaskStatus.PENDING, TaskStatus.RUNNING):
        which = JobFilter(status=frozenset((status,)))
        assert len(desk.store.find(which, limit=2_000, after=None, oldest_first=False)) == 1_050
