"""`flowrra worker --processes N` and `--reload`: keeps worker processes alive, and starts them anew."""

import argparse
import contextlib
import logging
import math
import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from flowrra import main, python

logger = logging.getLogger("flowrra")

_LOOK_EVERY = 0.1  # seconds


def run(arguments: argparse.Namespace) -> int:
    """Supervise workers until a signal says stop; returns the exit status."""
    return Supervisor(arguments).run()


def supervised(argv: Sequence[str]) -> int:
    """What a supervisor starts: the worker of a command line, which stops when its supervisor is gone."""
    threading.Thread(target=_stop_with_supervisor, name="flowrra-supervised", daemon=True).start()
    return main(argv)


def _stop_with_supervisor() -> None:
    os.read(0, 1)  # returns when the other end of the pipe is closed; sys.stdin would be locked at the exit
    os.kill(os.getpid(), signal.SIGTERM)


class Supervisor:
    """Keeps worker processes alive, and starts them anew when a source file has changed."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        argv = [*arguments.argv, "--supervised"]
        self._command = python(f"import_extra({__name__!r}, 'supervised', 'no worker can be supervised')({argv!r})")
        self._count = arguments.processes
        self._reload = arguments.reload
        self._processes: list[subprocess.Popen[bytes]] = []
        self._signals = 0
        self._failures = 0
        self._last_death = -math.inf
        self._start_at = -math.inf  # no process is started before then

    def run(self) -> int:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        seen = self._sources()
        while not self._signals:
            self._take_away_dead()
            if self._reload and (now := self._sources()) != seen:
                seen = now
                logger.info("a source file has changed: starting anew")
                self._terminate()
                self._wait()
                self._processes.clear()
                self._start_at = -math.inf
            if time.monotonic() >= self._start_at:
                self._start_missing()
            time.sleep(_LOOK_EVERY)
        # One that was not ready yet is ended by our signal itself.
        return max((abs(code) for code in self._wait() if code != -signal.SIGTERM), default=0)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1
        self._terminate()

    def _terminate(self) -> None:
        for process in self._processes:
            process.terminate()

    def _wait(self) -> list[int]:
        return [process.wait() for process in self._processes]

    def _take_away_dead(self) -> None:
        """Those that ended without being told to, whatever their status. If others do soon after, wait ever longer."""
        for process in [process for process in self._processes if process.poll() is not None]:
            self._processes.remove(process)
            now = time.monotonic()
            self._failures = self._failures + 1 if now - self._last_death < 30 else 0
            self._last_death = now
            pause = min(5.0, 0.2 * 2 ** min(self._failures, 5))
            self._start_at = now + pause
            logger.error(
                "worker process %d ended with status %d; starting another in %.1f s",
                process.pid, process.returncode, pause,
            )  # fmt: skip

    def _start_missing(self) -> None:
        while len(self._processes) < self._count and not self._signals:
            command = self._command  # our own, which nothing from outside has a part in
            process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)  # noqa: S603
            self._processes.append(process)
            if self._signals:  # it came while the process was being started, which the handler did not know of
                process.terminate()

    def _sources(self) -> dict[Path, float]:
        """When each source file was changed; nothing if nobody asks for that."""
        if not self._reload:
            return {}
        seen = {}
        for folder, below, names in os.walk("."):
            below[:] = [name for name in below if name[0] != "." and name not in ("__pycache__", "site-packages")]
            for name in names:
                if name.endswith(".py"):
                    path = Path(folder, name)
                    with contextlib.suppress(OSError):  # an editor may have renamed it away this moment
                        seen[path] = path.stat().st_mtime
        return seen
