"""A pgbouncer of a test's own, before the PostgreSQL that all tests use. Where there is none, its tests are skipped."""

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.redis_server import free_port

CONFIG = """
[databases]
* = host={host} port={port} user={user}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {own_port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {sessions}
logfile = {folder}/log
"""


@contextlib.contextmanager
def pgbouncer(url: str, *, sessions: int = 3) -> Iterator[str]:
    """The URL of a pooler in transaction mode, with so many sessions on the server of `url`."""
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None:
        pytest.skip("pgbouncer is not installed")
    server, own_port = urllib.parse.urlsplit(url), free_port()
    place = {"host": server.hostname, "port": server.port or 5432, "user": server.username or "postgres"}
    with tempfile.TemporaryDirectory(prefix="flowrra-") as folder:  # not in pytest's, into which only root may go
        config = Path(folder, "pgbouncer.ini")
        config.write_text(CONFIG.format(**place, own_port=own_port, folder=folder, sessions=sessions))
        running = subprocess.Popen([program, "-q", config], **_not_root(Path(folder)))
        try:
            _wait_for(own_port, running)
            yield f"postgresql://{place['user']}@127.0.0.1:{own_port}{server.path}"
        finally:
            running.kill()
            running.wait()


def _not_root(folder: Path) -> dict[str, Any]:
    """It does not run as root: whom to run it as then, for whom the folder is made."""
    if os.geteuid() != 0:
        return {}
    try:
        user = pwd.getpwnam("postgres")
    except KeyError:
        pytest.skip("pgbouncer does not run as root, and there is no user postgres")
    for path in (folder, *folder.iterdir()):
        os.chown(path, user.pw_uid, user.pw_gid)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _wait_for(port: int, running: subprocess.Popen[bytes]) -> None:
    for _ in range(500):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        assert running.poll() is None, "pgbouncer has ended"
        time.sleep(0.01)
    raise TimeoutError("pgbouncer does not answer")
