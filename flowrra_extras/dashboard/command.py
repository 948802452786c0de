"""`python -m flowrra dashboard`: the dashboard alone, by uvicorn if it is installed, else by the standard library."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from flowrra import ConfigError, Flowrra, MemoryBroker, SQLiteBroker, load_app
from flowrra_extras.dashboard.building import build
from flowrra_extras.dashboard.serving import listening_on, serve_asgi, serve_wsgi

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    serve = serve_asgi if importlib.util.find_spec("uvicorn") and not arguments.wsgi else serve_wsgi
    with contextlib.suppress(KeyboardInterrupt), listening_on(arguments.host, arguments.port) as listening:
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
