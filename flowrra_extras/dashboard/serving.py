"""Serves the dashboard alone: by uvicorn, or by the standard library. Strangers cannot hold either for long."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import socketserver
import time
import wsgiref.simple_server
from typing import TYPE_CHECKING, Any, cast

from flowrra import ConfigError, FlowrraError
from flowrra_extras.dashboard.asgi import PATIENCE, AsgiApp
from flowrra_extras.dashboard.wsgi import WsgiApp

if TYPE_CHECKING:
    from flowrra_extras.dashboard.router import Router

HEAD_SECONDS = 10.0  # that a client may take to send the head of a request
CONNECTIONS = 500  # at once; a process may often open 1,024 files
THREADS = 100  # connections at once where each has a thread


def listening_on(host: str, port: int) -> socket.socket:
    """A socket on that address, of either family."""
    if not 0 <= port <= 65_535:
        raise ConfigError(f"--port is a number from 0 to 65535, not {port}")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, *_, address = found[0]
        plain = socket.create_server(address[:2], family=family)
    except OSError as error:
        raise FlowrraError(f"the dashboard cannot listen on {host}, port {port}: {error}") from None
    # asyncio sends at once (TCP_NODELAY) only on sockets that say they are of TCP; else each answer on a connection
    # that is kept waits 40 ms for the client's acknowledgement of its head.
    return socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, fileno=plain.detach())


def serve_asgi(router: Router, listening: socket.socket) -> int:
    """Serve by uvicorn until it is told to end; the exit status."""
    import uvicorn

    # The dashboard judges by itself who has come through a proxy: uvicorn must not put that client's address in.
    config = uvicorn.Config(
        AsgiApp(router), http=bounded_protocol(), log_level="warning", proxy_headers=False, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    server.run(sockets=[listening])
    return 0 if server.started else 1


def bounded_protocol() -> type[asyncio.Protocol]:
    """uvicorn's protocol, that closes what is one connection too many, or does not come to ask."""
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

    base: Any = AutoHTTPProtocol

    class BoundedProtocol(base):  # type: ignore[misc]
        _limit: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > CONNECTIONS:
                transport.abort()
            else:
                self._limit = asyncio.get_running_loop().call_later(HEAD_SECONDS, transport.abort)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            is_answering = self.cycle is not None and not self.cycle.response_complete
            if is_answering:
                self._end_limit()
            elif self._limit is None:  # the beginning of another head
                self._limit = asyncio.get_running_loop().call_later(HEAD_SECONDS, self.transport.abort)

        def connection_lost(self, exc: Exception | None) -> None:
            self._end_limit()
            super().connection_lost(exc)

        def _end_limit(self) -> None:
            if self._limit is not None:
                self._limit.cancel()
                self._limit = None

    return BoundedProtocol


class _Server(socketserver.ThreadingMixIn, wsgiref.simple_server.WSGIServer):
    daemon_threads = True

    def __init__(self, listening: socket.socket, program: WsgiApp) -> None:
        super().__init__(listening.getsockname()[:2], _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self.server_name, self.server_port = listening.getsockname()[:2]
        self._open: dict[Any, float] = {}  # until when each connection has to have sent its head
        self.setup_environ()
        self.set_app(program)

    def process_request(self, request: Any, client_address: Any) -> None:
        if len(self._open) >= THREADS:
            self.shutdown_request(request)
        else:
            self._open[request] = time.monotonic() + HEAD_SECONDS
            super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.pop(request, None)
        super().shutdown_request(request)

    def head_is_here(self, request: Any) -> None:
        """Let the connection live on, however long its answer takes."""
        self._open[request] = float("inf")

    def service_actions(self) -> None:
        """Called again and again: cut connections whose time is up. Their threads end by that."""
        now = time.monotonic()
        for request in [request for request, until in list(self._open.items()) if until < now]:
            with contextlib.suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)


class _Handler(wsgiref.simple_server.WSGIRequestHandler):
    disable_nagle_algorithm = True
    timeout = PATIENCE  # seconds that a piece of a body may take

    def parse_request(self) -> bool:
        is_one = super().parse_request()
        cast("_Server", self.server).head_is_here(self.connection)
        return is_one

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # the client has gone, or had no more time
            super().handle()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing of each request; refused ones are logged by the router."""


def serve_wsgi(router: Router, listening: socket.socket) -> int:
    """Serve by the standard library until Ctrl-C; the exit status."""
    try:
        with _Server(listening, WsgiApp(router)) as server:
            server.serve_forever()
    finally:
        router.service.app.sync.close()
    return 0
