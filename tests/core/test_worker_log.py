"""The log of a worker: lines of jobs that end together are written together; none is late, lost or out of order."""

import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flowrra import Flowrra, LogFormatter, LogHandler, _GroupLog, logger
from tests.support.apps import make_app
from tests.support.processes import Site, all_finished


class Writes(io.StringIO):
    """Keeps each write."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[str] = []

    def write(self, text: str) -> int:
        self.writes.append(text)
        return super().write(text)

    @property
    def lines(self) -> list[str]:
        return self.getvalue().splitlines()


@pytest.fixture
def stream() -> Iterator[Writes]:
    """What the worker's handler writes, at the root logger."""
    handler, written, root = LogHandler(), Writes(), logging.getLogger()
    handler.setStream(written)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield written
    root.removeHandler(handler)
    root.setLevel(level)


def write(log: _GroupLog, text: str, level: int = logging.INFO, **extra: object) -> None:
    log.write(level, "%s", (text,), extra)


# ---------------------------------------------------------------------------
# What is written when
# ---------------------------------------------------------------------------


def test_the_lines_of_a_group_are_one_write(stream: Writes) -> None:
    log = _GroupLog()
    with log:
        for number in range(10):
            write(log, f"{number}")
        assert stream.writes == []
    assert stream.writes == ["".join(f"INFO {number}\n" for number in range(10))]
    write(log, "alone")
    assert stream.lines[10:] == ["INFO alone"]


def test_a_warning_is_written_at_once_behind_what_came_before(stream: Writes) -> None:
    log = _GroupLog()
    with log:
        write(log, "one")
        logging.getLogger("elsewhere").info("two")
        write(log, "three", logging.WARNING)
        assert stream.lines == ["INFO one", "INFO two", "WARNING three"]
        write(log, "four")
    assert stream.lines[3:] == ["INFO four"]


def test_an_exception_in_a_group_loses_no_line(stream: Writes) -> None:
    def fail() -> None:
        log = _GroupLog()
        with log:
            write(log, "one")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert stream.lines == ["INFO one"]


def test_a_flush_writes_what_is_held(stream: Writes) -> None:
    """As `logging.shutdown` does at the end of the process."""
    log = _GroupLog()
    with log:
        write(log, "one")
        for handler in logging.getLogger().handlers:
            handler.flush()
        assert stream.lines == ["INFO one"]


def test_no_write_is_more_than_a_pipe_takes_in_one_piece(stream: Writes) -> None:
    log = _GroupLog()
    with log:
        for number in range(300):
            write(log, f"{number:0100}")
    assert [int(line.split()[1]) for line in stream.lines] == [*range(300)]
    assert all(written.endswith("\n") and len(written) <= 4096 for written in stream.writes)
    assert len(stream.writes) <= 10


def test_a_record_that_cannot_be_formatted_holds_up_no_other(stream: Writes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    (handler,) = [handler for handler in logging.getLogger().handlers if isinstance(handler, LogHandler)]
    for text in ("%d", "%s"):
        handler.handle(logging.makeLogRecord({"msg": text, "args": ("one",), "levelname": "INFO"}))
    assert stream.lines == ["INFO one"]


# ---------------------------------------------------------------------------
# Records
# ---------------------------------------------------------------------------


class Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def records() -> Iterator[list[logging.LogRecord]]:
    handler, level = Records(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler.records
    logger.removeHandler(handler)
    logger.setLevel(level)


def fields(record: logging.LogRecord) -> dict[str, Any]:
    """All but its moment, its place, and what other handlers have added."""
    others = {"created", "msecs", "relativeCreated", "lineno", "funcName", "message", "asctime"}
    return {name: value for name, value in vars(record).items() if name not in others}


def test_a_record_of_a_group_is_as_any_other(records: list[logging.LogRecord]) -> None:
    log = _GroupLog()
    write(log, "alone", job_id="a")
    with log:
        for name in ("alone", "other"):
            write(log, name, job_id=name[0])
        write(log, "a warning", logging.WARNING)
    alone, first, second, warning = records
    assert fields(first) == fields(alone)
    assert fields(second) == fields(alone) | {"args": ("other",), "job_id": "o"}
    assert (warning.levelno, warning.levelname, warning.getMessage()) == (30, "WARNING", "a warning")
    assert not hasattr(warning, "job_id")
    assert alone.created <= first.created <= second.created


def test_the_programs_own_factory_makes_each_record(records: list[logging.LogRecord]) -> None:
    made: list[logging.LogRecord] = []

    def factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
        made.append(logging.LogRecord(*args, **kwargs))
        return made[-1]

    before = logging.getLogRecordFactory()
    logging.setLogRecordFactory(factory)
    try:
        log = _GroupLog()
        with log:
            write(log, "one")
            write(log, "two")
    finally:
        logging.setLogRecordFactory(before)
    assert records == made
    assert len(made) == 2


def test_the_default_form_is_that_of_logging() -> None:
    usual = logging.Formatter("%(asctime)s %(levelname)-7s %(message)s")
    for created in (0.0, 1_700_000_000.0, 1_700_000_000.9996, 1_700_000_001.25):
        record = logging.makeLogRecord({"msg": "a line", "levelname": "INFO", "created": created})
        record.msecs = created % 1 * 1000
        assert LogFormatter().format(record) == usual.format(record)
        record.exc_text = "a traceback"
        assert LogFormatter().format(record) == usual.format(record) != ""


# ---------------------------------------------------------------------------
# Workers
# ---------------------------------------------------------------------------


async def test_jobs_that_end_together_are_one_write(stream: Writes) -> None:
    app: Flowrra = make_app()
    app.task(name="tick")(nothing)
    async with app:
        ids = [await app.submit("tick") for _ in range(100)]
        for task_id in ids:
            await app.wait_for_result(task_id, timeout=20)
    assert sorted(line.split()[2] for line in stream.lines if "attempt 1: success" in line) == sorted(ids)
    assert len([written for written in stream.writes if "success" in written]) <= 50


async def nothing() -> None:
    """Nothing to do."""


FAILING = """
@app.task
async def work(n):
    if n % 7 == 0:
        raise flowrra.Cancel("seven")


@app.task
async def end():
    asyncio.get_running_loop().stop()  # the interpreter ends by the exception of asyncio.run
"""


async def test_every_job_has_its_line_when_the_worker_ends_by_an_exception(tmp_path: Path) -> None:
    with Site(tmp_path, FAILING) as site:
        async with site.client() as app:
            ids = [await app.submit("app.work", n) for n in range(200)]
            worker = await site.worker()
            jobs = await all_finished(app)
            assert {job.id for job in jobs} == set(ids)
            await app.submit("app.end")
            assert await worker.ends() != 0
    lines = [line for line in worker.log.splitlines() if "job " in line]
    assert sorted(line.split("job ")[1].split()[0] for line in lines if "app.work" in line) == sorted(ids)
    assert sum(": cancel" in line for line in lines) == len(range(0, 200, 7))
