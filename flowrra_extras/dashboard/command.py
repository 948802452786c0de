"""`python -m flowrra dashboard`: the dashboard alone, served by uvicorn, with bounded connections."""

import argparse
import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from flowrra import ConfigError, Flowrra, FlowrraError, SQLiteBroker, check_shared, load_app
from flowrra_extras.dashboard.app import Dashboard
from flowrra_extras.dashboard.asgi import AsgiApp

PORT = 8420


def main(argv: Sequence[str]) -> int:
    """Serve the dashboard until Ctrl-C; the exit status."""
    arguments = _parser().parse_args(argv)
    app = _app_for(arguments)
    if arguments.schedules:
        app.create_scheduler(arguments.schedules)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("flowrra.dashboard").setLevel(logging.INFO)  # refused requests, and all actions
    limits = _limits_in(arguments.max_lag)
    board = Dashboard(app, insecure=arguments.insecure, read_only=arguments.read_only, max_lag=limits)
    with contextlib.suppress(KeyboardInterrupt), listening_on(arguments.host, arguments.port) as listening:
        host, port = arguments.host, listening.getsockname()[1]
        print(f"Flowrra dashboard on http://{f'[{host}]' if ':' in host else host}:{port}/", flush=True)
        return serve(board, listening)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="flowrra dashboard", description="Serve the dashboard on this host.")
    parser.add_argument("where", nargs="?", metavar="module:app", help="the app to show (or FLOWRRA_APP)")
    parser.add_argument("--broker", metavar="URL", help="the store to show, without an app (or FLOWRRA_BROKER)")
    parser.add_argument("--schedules", metavar="URL", help="also show the schedules of this store")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=int, default=PORT, help=f"the port to listen on ({PORT}; 0: a free one)")
    parser.add_argument("--read-only", action="store_true", help="allow no changes")
    parser.add_argument(
        "--max-lag", action="append", default=[], metavar="[QUEUE=]SECONDS",
        help="how long the oldest ready job of a queue may wait before health reports a problem (60)",
    )  # fmt: skip
    parser.add_argument("--insecure", action="store_true", help="allow every request, also from other hosts")
    return parser


def _limits_in(texts: Sequence[str]) -> dict[str, float]:
    """Limits of the lag by queue; one without a queue is for the others."""
    limits = {}
    for text in texts:
        queue, _, seconds = text.rpartition("=")
        try:
            limits[queue or "*"] = float(seconds)
        except ValueError:
            raise ConfigError(f"--max-lag must be seconds, such as 60 or mail=60, not {text!r}") from None
    return limits


def _app_for(arguments: argparse.Namespace) -> Flowrra:
    """The app, or an app without tasks on the broker. The command never creates a store."""
    target = arguments.where or (None if arguments.broker else os.environ.get("FLOWRRA_APP"))
    url = arguments.broker or os.environ.get("FLOWRRA_BROKER")
    if target:
        app = load_app(target)
    elif url:
        app = Flowrra.from_urls(url)
    else:
        raise ConfigError("no store is given: give module:app or --broker URL, or set FLOWRRA_APP or FLOWRRA_BROKER")
    check_shared(app)
    if isinstance(app.broker, SQLiteBroker) and not Path(app.broker.path or "").exists():
        raise ConfigError(f"the file {app.broker.path} does not exist: the first worker or submit creates it")
    return app


# Serving -----------------------------------------------------------------------------------------

HEAD_SECONDS = 10.0  # that a client may take to send the head of a request
CONNECTIONS = 500  # at once; a process may often open 1,024 files


def listening_on(host: str, port: int) -> socket.socket:
    """A socket on that address, IPv4 or IPv6."""
    if not 0 <= port <= 65_535:
        raise ConfigError(f"--port must be a number from 0 to 65535, not {port}")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, *_, address = found[0]
        plain = socket.create_server(address[:2], family=family)
    except OSError as error:
        hint = "give another --host or --port"
        raise FlowrraError(f"the dashboard cannot listen on {host}, port {port}: {error}; {hint}") from None
    # asyncio sends at once (TCP_NODELAY) only on sockets that say they are of TCP; else each answer on a connection
    # that is kept waits 40 ms for the client's acknowledgement of its head.
    return socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, fileno=plain.detach())


def serve(board: Dashboard, listening: socket.socket) -> int:
    """Serve by uvicorn until it is told to end; the exit status."""
    # The dashboard judges by itself who has come through a proxy: uvicorn must not put that client's address in.
    config = uvicorn.Config(
        AsgiApp(board), http=bounded_protocol(), log_level="warning", proxy_headers=False, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    server.run(sockets=[listening])
    return 0 if server.started else 1


def bounded_protocol() -> type[asyncio.Protocol]:
    """uvicorn's protocol, which closes connections above the limit and connections without a request."""
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
