"""`python -m flowrra dashboard`: the dashboard alone, by uvicorn if it is installed, else by the standard library."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import logging
import os
import socket
import socketserver
import wsgiref.simple_server
from pathlib import Path
from typing import TYPE_CHECKING

from flowrra import ConfigError, Flowrra, FlowrraError, MemoryBroker, SQLiteBroker, load_app
from flowrra_extras.dashboard.asgi import AsgiApp
from flowrra_extras.dashboard.building import build
from flowrra_extras.dashboard.wsgi import WsgiApp

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowrra_extras.dashboard.router import Router

PORT = 8420


def main(argv: Sequence[str]) -> int:
    """Serve the dashboard until Ctrl-C; the exit status."""
    arguments = _parser().parse_args(argv)
    app = _app_for(arguments)
    if arguments.schedules:
        app.create_scheduler(arguments.schedules)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("flowrra.dashboard").setLevel(logging.INFO)  # who was refused, and who did what
    router = build(app, insecure=arguments.insecure, read_only=arguments.read_only)
    serve = _serve_asgi if importlib.util.find_spec("uvicorn") and not arguments.wsgi else _serve_wsgi
    with contextlib.suppress(KeyboardInterrupt), _listening(arguments.host, arguments.port) as listening:
        host, port = arguments.host, listening.getsockname()[1]
        print(f"Flowrra dashboard on http://{f'[{host}]' if ':' in host else host}:{port}/", flush=True)
        return serve(router, listening)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="flowrra dashboard", description="Serve the dashboard on this host.")
    parser.add_argument("where", nargs="?", metavar="module:app", help="the app to show (or FLOWRRA_APP)")
    parser.add_argument("--broker", metavar="URL", help="the store to show, without an app (or FLOWRRA_BROKER)")
    parser.add_argument("--schedules", metavar="URL", help="a store of schedules to show as well")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=int, default=PORT, help=f"the port to listen on ({PORT}; 0: a free one)")
    parser.add_argument("--read-only", action="store_true", help="let nobody change anything")
    parser.add_argument("--insecure", action="store_true", help="let in whoever comes, from other hosts too")
    parser.add_argument("--wsgi", action="store_true", help="serve by the standard library although uvicorn is there")
    return parser


def _app_for(arguments: argparse.Namespace) -> Flowrra:
    """The app, or one without tasks on the broker. To look must not make a store where there is none."""
    target = arguments.where or (None if arguments.broker else os.environ.get("FLOWRRA_APP"))
    url = arguments.broker or os.environ.get("FLOWRRA_BROKER")
    if target:
        app = load_app(target)
    elif url:
        app = Flowrra.from_urls(url)
    else:
        raise ConfigError("say which store: module:app, --broker URL, FLOWRRA_APP or FLOWRRA_BROKER")
    broker = app.broker
    if isinstance(broker, MemoryBroker) or (isinstance(broker, SQLiteBroker) and broker.path is None):
        raise ConfigError(f"{app.config.broker.url} lives in one process, out of reach of any other: use a file")
    if isinstance(broker, SQLiteBroker) and not Path(broker.path or "").exists():
        raise ConfigError(f"there is no {broker.path} yet: the first worker or submit makes it")
    return app


def _listening(host: str, port: int) -> socket.socket:
    """A socket on that address, of either family."""
    if not 0 <= port <= 65_535:
        raise ConfigError(f"--port is a number from 0 to 65535, not {port}")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, *_, address = found[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        raise FlowrraError(f"the dashboard cannot listen on {host}, port {port}: {error}") from None


def _serve_asgi(router: Router, listening: socket.socket) -> int:
    import uvicorn

    # The dashboard judges by itself who has come through a proxy: uvicorn must not put that client's address in.
    config = uvicorn.Config(AsgiApp(router), log_level="warning", proxy_headers=False, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    server.run(sockets=[listening])
    return 0 if server.started else 1


class _Server(socketserver.ThreadingMixIn, wsgiref.simple_server.WSGIServer):
    daemon_threads = True

    def __init__(self, listening: socket.socket, program: WsgiApp) -> None:
        super().__init__(listening.getsockname()[:2], _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self.server_name, self.server_port = listening.getsockname()[:2]
        self.setup_environ()
        self.set_app(program)


class _Handler(wsgiref.simple_server.WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing of each request; refused ones are logged by the router."""


def _serve_wsgi(router: Router, listening: socket.socket) -> int:
    try:
        with _Server(listening, WsgiApp(router)) as server:
            server.serve_forever()
    finally:
        router.service.app.sync.close()
    return 0
