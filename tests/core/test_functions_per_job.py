"""The count of the functions that one job passes through."""

import pytest

from benchmarks import passes


def test_the_functions_of_one_job_are_counted_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    passes.main(["--list"])
    said = capsys.readouterr().out
    for title in ("one job in memory", "one job on SQLite", "stop() with one job"):
        assert f"{title}: " in said
    for name in ("Flowrra.submit", "MemoryBroker.push", "SQLiteBroker.push", "Worker.stop"):
        assert f" {name}:" in said
