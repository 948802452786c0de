"""A Redis of a test's own, which it may kill, and what tests need to look into any Redis."""

import asyncio
import contextlib
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import redis

from tests.support.proxy import end_server
from tests.support.services import do_without


def new_prefix() -> str:
    return f"test-{secrets.token_hex(8)}"


def keys(client: redis.Redis, prefix: str) -> set[str]:
    """The keys of a prefix, without it."""
    start = f"{{{prefix}}}:"
    return {key.decode().removeprefix(start) for key in client.scan_iter(f"{start}*", count=1000)}


def forget(client: redis.Redis, prefix: str) -> None:
    """Delete all that a test has left."""
    for key in keys(client, prefix):
        client.unlink(f"{{{prefix}}}:{key}")


def age_leases(client: redis.Redis, prefix: str, seconds: float) -> None:
    """Let time pass for leases, without waiting: all end so much earlier."""
    key = f"{{{prefix}}}:leases"
    workers: Any = client.zrange(key, 0, -1)  # typed as awaitable too, before 8
    for worker in workers:
        client.zincrby(key, -seconds, worker)


def free_port(count: int = 1) -> int:
    """The first of so many ports that nobody listens on.

    They, and the ports of a cluster's buses 10,000 above, are none of those that Linux gives to outgoing connections,
    from 32,768 on: a connection of another test could take one before it is listened on.
    """
    while True:
        first = 10_000 + secrets.randbelow(12_000)
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for port in range(first, first + count):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            return first


class Server:
    """`redis-server` in a folder, on a port that it keeps when it is started again."""

    def __init__(self, folder: Path, *options: str) -> None:
        program = shutil.which("redis-server")
        if program is None:
            do_without("redis-server is not installed")
        folder.mkdir(exist_ok=True)
        self.port = free_port()
        self.socket = folder / "redis.sock"
        self.url = f"redis://127.0.0.1:{self.port}/0"
        kept = ("--save", "", "--loglevel", "warning", "--unixsocket", str(self.socket), "--dir", str(folder))
        self._command = [program, "--port", str(self.port), "--bind", "127.0.0.1", *kept, *options]
        self._password = options[options.index("--requirepass") + 1] if "--requirepass" in options else None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, password=self._password)

    def start(self) -> None:
        """Start it, and return when it answers."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        with self.client() as client:
            while time.monotonic() < deadline:
                with contextlib.suppress(redis.ConnectionError):
                    client.ping()
                    return
                time.sleep(0.01)
        raise AssertionError("redis-server does not answer")

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """`kill -9`, and wait until it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class Proxy:
    """A TCP proxy in front of a server. It can lose an answer, forget its connections, and cut them."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._server: asyncio.Server | None = None
        self._generation = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.lose_answer_to: bytes | None = None  # pass the request that holds this on, and cut
        self.loses_answers = False  # pass requests on, and nothing back

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        await end_server(self._server)
        self.cut()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def cut(self) -> None:
        """Cut all connections."""
        for writer in self._writers:
            writer.close()

    def forget(self) -> None:
        """Pass nothing more on of what is connected by now, and tell nobody."""
        self._generation += 1

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers |= {writer, back}
        for source, sink, is_answer in ((reader, back, False), (there, writer, True)):
            task = asyncio.create_task(self._pass_on(source, sink, self._generation, is_answer=is_answer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass_on(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, generation: int, *, is_answer: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                if generation == self._generation and not (is_answer and self.loses_answers):
                    losing = self.lose_answer_to is not None and self.lose_answer_to in data
                    if losing:
                        self.forget()
                    sink.write(data)
                    await sink.drain()
                    if losing:
                        self.lose_answer_to = None
                        await asyncio.sleep(0.05)  # for the server to carry it out
                        self.cut()
        sink.close()


@contextlib.contextmanager
def clean(url: str) -> Iterator[tuple[redis.Redis, str]]:
    """A client on `url`, and a prefix that is empty afterwards."""
    client, prefix = redis.Redis.from_url(url), new_prefix()
    try:
        yield client, prefix
    finally:
        forget(client, prefix)
        client.close()
