"""The minimum of a worker on SQLite: it waits, claims a job, runs it and writes the result.

python -m benchmarks.apps.poller FILE SYNCHRONOUS PORT: with a port it waits for a datagram on it,
with port 0 it polls every millisecond.
"""

from __future__ import annotations

import socket
import sqlite3
import sys
import time
from contextlib import suppress

from benchmarks import work

SCHEMA = """
CREATE TABLE IF NOT EXISTS job(id INTEGER PRIMARY KEY, status TEXT NOT NULL, result INTEGER);
CREATE INDEX IF NOT EXISTS waiting ON job(id) WHERE status = 'pending';
"""
CLAIM = """
UPDATE job SET status = 'running'
WHERE id = (SELECT id FROM job WHERE status = 'pending' ORDER BY id LIMIT 1) RETURNING id
"""
SETTLE = "UPDATE job SET status = 'done', result = ? WHERE id = ?"


def connect(filename: str, synchronous: str) -> sqlite3.Connection:
    db = sqlite3.connect(filename, isolation_level=None, timeout=30)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute(f"PRAGMA synchronous={synchronous}")
    db.executescript(SCHEMA)
    return db


def open_port(port: int) -> socket.socket | None:
    if not port:
        return None
    door = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    door.bind(("127.0.0.1", port))
    door.settimeout(1.0)
    return door


def wait(door: socket.socket | None) -> None:
    if door is None:
        time.sleep(0.001)
        return
    with suppress(TimeoutError):
        door.recv(16)


def run_one(db: sqlite3.Connection) -> None:
    if db.execute("SELECT 1 FROM job WHERE status = 'pending' LIMIT 1").fetchone():
        ((job,),) = db.execute(CLAIM).fetchall()
        db.execute(SETTLE, (work.stamp(), job))


def main(filename: str, synchronous: str, port: str) -> None:
    db, door = connect(filename, synchronous), open_port(int(port))
    while True:
        run_one(db)
        wait(door)


if __name__ == "__main__":
    main(*sys.argv[1:])
