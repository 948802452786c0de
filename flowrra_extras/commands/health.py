"""`flowrra worker --health PORT`: answers probes and Prometheus, in a separate thread of the worker.

    /live       200 while the event loop runs, even if the store is unreachable; otherwise 503
    /ready      200 while the worker claims jobs and its lease is valid; otherwise 503
    /metrics    the metrics of the store; see `flowrra_extras.metrics`

By default it answers this host only. `--health 0.0.0.0:8081` answers other hosts too.
"""

import asyncio
import concurrent.futures
import http.server
import os
import socket
import threading
import time
from typing import Any

from flowrra import ConfigError, Flowrra, FlowrraError, logger
from flowrra_extras.metrics import CONTENT_TYPE, Exporter

BLOCKED = 5.0  # seconds without a turn after which the loop counts as blocked
_METRICS_WAIT = 10.0  # seconds
_CLIENT_WAIT = 10.0  # seconds for which a client may be silent


def serve(app: Flowrra, address: str, number: int = 0) -> "Server":
    """Serve the probes of the worker that `app` runs, until the process ends.

    The second process of a supervisor (`number` 2) uses the next port after that of the first, and so on.

    Raises:
        ConfigError: the address is not valid, or the port cannot be used.
    """
    host, port = address_of(address)
    port += max(0, number - 1) if port else 0
    try:
        server = Server((host, port), Probes(app))
    except OSError as error:
        raise ConfigError(f"--health cannot listen on {host}, port {port}: {error}") from None
    threading.Thread(target=server.serve_forever, name="flowrra-health", daemon=True).start()
    shown = f"[{host}]" if ":" in host else host
    logger.info("probes are answered on http://%s:%d/live, /ready and /metrics", shown, server.server_address[1])
    return server


def address_of(text: str) -> tuple[str, int]:
    """Return the host and port of an address such as `8081`, `0.0.0.0:8081` or `[::]:8081`."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
    if not (port.isascii() and port.isdecimal() and int(port) < 65_536):
        raise ConfigError(f"--health takes a port or HOST:PORT, such as 0.0.0.0:8081, not {text!r}")
    return host, int(port)


class Probes:
    """The answers, each with status, text and content type. Any thread can call these methods."""

    def __init__(self, app: Flowrra) -> None:
        self._app = app
        self._exporter = Exporter(app)
        self.routes = {"/live": self.live, "/ready": self.ready, "/metrics": self.metrics}

    def live(self) -> tuple[int, str, str]:
        """Answer whether the loop runs. If it is blocked for good, only a restart of the process helps."""
        session = self._app.sessions.present
        if session is None or not session.is_alive:
            return _said(200, "the worker is starting or stopping")
        turned = threading.Event()
        try:
            session.loop.call_soon_threadsafe(turned.set)
        except RuntimeError:  # the loop has just been closed
            return _said(200, "the worker is stopping")
        if turned.wait(BLOCKED):
            return _said(200, "the event loop runs")
        return _said(503, f"the event loop has been blocked for {BLOCKED:g} s")

    def ready(self) -> tuple[int, str, str]:
        """Answer whether the worker claims jobs and may start them."""
        worker = self._app.sessions.worker()
        if worker is None:
            return _said(503, "the worker has not started yet, or has stopped")
        if worker.is_draining:
            return _said(503, "the worker is draining")
        if time.monotonic() >= worker.keeper.lease_end:
            return _said(503, "the lease has ended: the store is unreachable, or the process was suspended")
        return _said(200, "the worker claims jobs")

    def metrics(self) -> tuple[int, str, str]:
        """Answer with the metrics of the whole store."""
        session = self._app.sessions.present
        if session is None or not session.is_open:
            return _said(503, "the store is not open")
        call = self._exporter.text()
        try:
            asked = asyncio.run_coroutine_threadsafe(call, session.loop)
        except RuntimeError:  # the loop has just been closed
            call.close()
            return _said(503, "the store has been closed")
        try:
            return 200, asked.result(_METRICS_WAIT), CONTENT_TYPE
        except (FlowrraError, TimeoutError, concurrent.futures.CancelledError) as error:
            asked.cancel()
            return _said(503, str(error) or f"the store has not answered for {_METRICS_WAIT:g} s")


def _said(status: int, text: str) -> tuple[int, str, str]:
    return status, f"{text}\n", "text/plain; charset=utf-8"


class Server(http.server.ThreadingHTTPServer):
    """The HTTP server of the probes. Each client has a thread, so that a silent client does not delay the others."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], probes: Probes) -> None:
        self.probes = probes
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Bind without looking up the name of this host, as HTTPServer does: that can take long."""
        if os.name == "posix":  # on Windows it would take the port from another program
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "flowrra", self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log a failed answer at level debug: a client that closed its connection is not an error of the worker."""
        logger.debug("a probe was not answered", exc_info=True)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]
    timeout = _CLIENT_WAIT
    server_version, sys_version = "flowrra", ""

    def do_GET(self) -> None:
        route = self.server.probes.routes.get(self.path.partition("?")[0])
        status, text, kind = route() if route else _said(404, "there are /live, /ready and /metrics")
        body = text.encode()
        self.send_response(status)
        for name, value in (("Content-Type", kind), ("Content-Length", str(len(body))), ("Cache-Control", "no-store")):
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        """Log a request at level debug, because probes come every few seconds."""
        logger.debug("probe: %s", format % args)
