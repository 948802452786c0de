"""The least that a polling worker does: look at the table every millisecond, run, write down."""

from __future__ import annotations

import sqlite3
import sys
import time

from benchmarks import work

SCHEMA = """
CREATE TABLE IF NOT EXISTS job(id INTEGER PRIMARY KEY, status TEXT NOT NULL, result INTEGER);
CREATE INDEX IF NOT EXISTS waiting ON job(id) WHERE status = 'pending';
"""
CLAIM = """
UPDATE job SET status = 'running'
WHERE id = (SELECT id FROM job WHERE status = 'pending' ORDER BY id LIMIT 1) RETURNING id
"""


def connect(filename: str) -> sqlite3.Connection:
    db = sqlite3.connect(filename, isolation_level=None, timeout=30)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    db.executescript(SCHEMA)
    return db


def main(filename: str) -> None:
    db = connect(filename)
    while True:
        if db.execute("SELECT 1 FROM job WHERE status = 'pending' LIMIT 1").fetchone():
            (found,) = db.execute(CLAIM).fetchall()
            db.execute("UPDATE job SET status = 'done', result = ? WHERE id = ?",
                       (work.stamp(), found[0]))  # fmt: skip
        time.sleep(0.001)


if __name__ == "__main__":
    main(sys.argv[1])
