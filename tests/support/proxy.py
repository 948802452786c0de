"""A TCP proxy in front of a server, to be cut, silenced and restored by a test."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from tests.support.services import address


async def end_server(server: asyncio.Server) -> None:
    """Close a server. Python 3.11 fails to end a connection that was accepted just before: let it begin first."""
    for listening in server.sockets:
        asyncio.get_running_loop().remove_reader(listening.fileno())
    for _ in range(3):
        await asyncio.sleep(0)
    server.close()


class Proxy:
    """Passes bytes between its port and a server."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()
        self._speaks = asyncio.Event()
        self._speaks.set()
        self.port = 0
        self.accepted = 0  # connections so far
        self.holds = asyncio.Event()  # something came during a silence

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        """End every connection and take no more."""
        if self._server is not None:
            server, self._server = self._server, None
            await end_server(server)
        for serving in self._serving:
            serving.cancel()
        if self._serving:
            await asyncio.wait(self._serving)

    def silence(self) -> None:
        """Take everything and pass nothing on, as when a cable is pulled."""
        self._speaks.clear()
        self.holds.clear()

    def speak(self) -> None:
        """Pass on again, and what came meanwhile."""
        self._speaks.set()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._server is None:  # it had been accepted before the cut
            writer.transport.abort()
            return
        self.accepted += 1
        serving = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._serving.add(serving)
        serving.add_done_callback(self._serving.discard)
        serving.add_done_callback(lambda _: writer.transport.abort())  # also if it was ended before it began

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.ExitStack() as ends, contextlib.suppress(OSError):
            server_reader, server_writer = await asyncio.open_connection(*self._target)
            ends.callback(server_writer.transport.abort)
            ways = {
                asyncio.ensure_future(self._pass(reader, server_writer)),
                asyncio.ensure_future(self._pass(server_reader, writer)),
            }
            ends.callback(lambda: [way.cancel() for way in ways])
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                if not self._speaks.is_set():
                    self.holds.set()
                await self._speaks.wait()
                writer.write(data)
                await writer.drain()


@contextlib.asynccontextmanager
async def proxy_to(url: str) -> AsyncIterator[Proxy]:
    """A proxy in front of the server of `url`."""
    proxy = Proxy(*address(url))
    await proxy.start()
    try:
        yield proxy
    finally:
        proxy.speak()
        await proxy.cut()
