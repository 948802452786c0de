"""A PostgreSQL of a test's own, which it may kill, and what tests need to look into any PostgreSQL."""

import contextlib
import os
import pwd
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import psycopg

from tests.support.redis_server import free_port
from tests.support.services import do_without

Connection = psycopg.Connection[tuple[Any, ...]]


@contextlib.contextmanager
def clean_schema(url: str) -> Iterator[tuple[Connection, str]]:
    """A connection to `url`, and the name of a schema that is gone afterwards."""
    schema = f"test_{secrets.token_hex(6)}"
    with psycopg.connect(url, autocommit=True) as connection:
        try:
            yield connection, schema
        finally:
            drop(connection, schema)


def drop(connection: Connection, schema: str) -> None:
    if connection.closed:  # with its server, which is gone as a whole
        return
    connection.execute("SET client_min_messages = warning")
    connection.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE".encode())


def empty(connection: Connection, schema: str) -> None:
    """Delete all rows of a broker, if it has made the schema: to make it again takes ten times as long."""
    tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = %s", [schema]).fetchall()
    rows = "".join(f"DELETE FROM {schema}.{table};" for (table,) in tables if table != "meta")  # noqa: S608 (our own name)
    if rows:
        connection.execute(rows.encode())


def age_leases(connection: Connection, schema: str, seconds: float) -> None:
    """Let time pass for leases, without waiting: all end so much earlier."""
    earlier = f"UPDATE {schema}.worker SET lease = lease - make_interval(secs => %s)"  # noqa: S608 (our own name)
    connection.execute(earlier.encode(), [seconds])


class Server:
    """`postgres` in a folder, on a port that it keeps when it is started again. It does not run as root."""

    def __init__(self, folder: Path) -> None:
        programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), key=lambda path: int(path.parts[-3]))
        found = shutil.which("pg_ctl") or (str(programs[-1]) if programs else None)
        if found is None:
            do_without("pg_ctl is not installed")
        self._programs = Path(found).parent
        self._user: dict[str, Any] = {}
        if os.geteuid() == 0:
            try:
                user = pwd.getpwnam("postgres")
            except KeyError:
                do_without("postgres does not run as root, and there is no user postgres")
            self._user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        # Not in pytest's folder, into which only root may go.
        self._folder = Path(f"/tmp/flowrra-{secrets.token_hex(6)}")  # noqa: S108 (a random name)
        self.port = free_port()
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        self._log = folder / "postgres.log"

    def __enter__(self) -> Self:
        self._folder.mkdir()
        if self._user:
            os.chown(self._folder, self._user["user"], self._user["group"])
        options = ("-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C")
        self._run("initdb", "-D", str(self._folder / "data"), *options)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._programs / program), *arguments]
        with self._log.open("ab") as log:
            subprocess.run(command, check=True, cwd="/", stdout=log, stderr=log, **self._user)

    def start(self) -> None:
        """Start it, and return when it answers."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c max_connections=50"
        options += f" -c unix_socket_directories={self.socket_folder}"
        self._run("pg_ctl", "-D", str(self._folder / "data"), "-w", "-o", options, "-l", f"{self._folder}/log", "start")

    @property
    def socket_folder(self) -> Path:
        return self._folder

    @property
    def pid(self) -> int:
        return int((self._folder / "data" / "postmaster.pid").read_text().split()[0])

    def processes(self) -> list[int]:
        """The server and its children, which serve one connection each."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [self.pid, *map(int, children)]

    def kill(self) -> None:
        """End it as a crash does, all its processes at once; what was committed is in its log."""
        if (self._folder / "data" / "postmaster.pid").exists():
            self._run("pg_ctl", "-D", str(self._folder / "data"), "-w", "-m", "immediate", "stop")

    def become_standby(self) -> None:
        """Start again as a server does that follows another, and that nothing can be written to."""
        self.kill()
        (self._folder / "data" / "standby.signal").touch()
        self.start()

    def read_only(self, on: bool) -> None:
        """Answer as a server does that has become a standby."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute("SET default_transaction_read_only = off")
            connection.execute(f"ALTER SYSTEM SET default_transaction_read_only = {'on' if on else 'off'}")
            connection.execute("SELECT pg_reload_conf()")
        while self._is_read_only() != on:  # the server tells its processes in its own time
            time.sleep(0.01)

    def _is_read_only(self) -> bool:
        with psycopg.connect(self.url) as connection:
            return connection.execute("SHOW default_transaction_read_only").fetchone() == ("on",)
