"""The server that serves the dashboard alone: at once, and without room for those who only hold connections."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest
import uvicorn

from flowrra_extras.dashboard import command
from flowrra_extras.dashboard.app import Dashboard
from flowrra_extras.dashboard.asgi import AsgiApp
from tests.support.dashboards import shop

ASK = b"GET /api/health HTTP/1.1\r\nHost: localhost\r\n\r\n"


@contextlib.asynccontextmanager
async def by_uvicorn() -> AsyncIterator[int]:
    """The port of a dashboard that uvicorn serves in this loop."""
    board, listening = Dashboard(shop()), command.listening_on("127.0.0.1", 0)
    config = uvicorn.Config(AsgiApp(board), http=command.bounded_protocol(), log_level="error")
    server = uvicorn.Server(config)
    task = asyncio.create_task(server._serve(sockets=[listening]))
    try:
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        await task


async def asked(port: int, what: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(what)
    return reader, writer


async def rest_of(reader: asyncio.StreamReader) -> bytes:
    """What comes until the server closes the connection."""
    async with asyncio.timeout(20):
        try:
            return await reader.read()
        except ConnectionError:
            return b""


async def test_a_head_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "HEAD_SECONDS", 0.2)
    async with by_uvicorn() as port:
        halves = [await asked(port, what) for what in (b"", b"GET / HT", ASK[:-2], b"POST /api/run HTTP/1.1\r\nX-A: b")]
        assert [await rest_of(reader) for reader, _ in halves] == [b""] * 4
        for _, writer in halves:
            writer.close()
        reader, writer = await asked(port, ASK)
        assert (await reader.readline()).split()[1] == b"503"  # nobody works, but it is said
        writer.close()


async def test_the_second_head_of_a_connection_has_its_time_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "HEAD_SECONDS", 0.2)
    async with by_uvicorn() as port:
        reader, writer = await asked(port, ASK)
        assert b"503" in await reader.readline()
        writer.write(b"GET / HTTP/1.1\r\nHost: lo")
        assert b"GET" not in await rest_of(reader)
        writer.close()


async def test_there_is_a_limit_of_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "CONNECTIONS", 3)
    async with by_uvicorn() as port:
        held = [await asked(port, b"GET") for _ in range(3)]
        await asyncio.sleep(0.05)  # for the server to take them
        reader, writer = await asked(port, ASK)
        assert await rest_of(reader) == b""
        for _, one in [*held, (reader, writer)]:
            one.close()
        for _ in range(100):  # until it has seen that they are gone
            reader, writer = await asked(port, ASK)
            line = await reader.readline() if await asyncio.sleep(0.02, True) else b""
            writer.close()
            if line:
                break
        assert b" 503 " in line


async def test_what_is_answered_goes_out_at_once() -> None:
    """Without the wait for an acknowledgement, which takes 40 ms on a connection that is kept."""
    taken: asyncio.Future[socket.socket] = asyncio.get_running_loop().create_future()

    class Taking(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            taken.set_result(transport.get_extra_info("socket"))

    server = await asyncio.get_running_loop().create_server(Taking, sock=command.listening_on("127.0.0.1", 0))
    async with server:
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        assert (await taken).getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        writer.close()


async def test_the_body_of_a_stranger_is_not_read() -> None:
    """It is answered with the head, and what is sent behind it goes nowhere."""
    head = b"POST /api/run HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 900000\r\n\r\n"
    async with by_uvicorn() as port:
        reader, writer = await asked(port, head)
        async with asyncio.timeout(20):
            assert (await reader.readline()).split()[1] == b"403"
        writer.close()
