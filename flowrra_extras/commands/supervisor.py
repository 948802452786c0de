"""`flowrra worker`: --processes N and --reload start worker processes and restart them; --log-format json."""

import argparse
import contextlib
import datetime as dt
import json
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

from flowrra import RECYCLED, logger, main, python

_LOOK_EVERY = 0.1  # seconds


def run(arguments: argparse.Namespace) -> int:
    """Supervise workers until a signal stops them. Return the exit status."""
    return Supervisor(arguments).run()


def supervised(argv: Sequence[str]) -> int:
    """Run the worker of a supervisor by its command line. It stops when its supervisor has ended."""
    threading.Thread(target=_stop_with_supervisor, name="flowrra-supervised", daemon=True).start()
    return main(argv)


def _stop_with_supervisor() -> None:
    os.read(0, 1)  # returns when the supervisor's end of the pipe is closed; sys.stdin would be locked at the exit
    os.kill(os.getpid(), signal.SIGTERM)


class Supervisor:
    """Restarts worker processes that have ended, and all of them when a source file has changed."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._argv: Sequence[str] = arguments.argv
        self._count: int = arguments.processes
        self._reload = arguments.reload
        self._processes: dict[int, subprocess.Popen[bytes]] = {}  # by number, from 1 on
        self._signals = 0
        self._failures = 0
        self._last_death = -math.inf
        self._start_at = -math.inf  # no process is started before then

    def run(self) -> int:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        seen = self._sources()
        while not self._signals:
            self._remove_ended()
            if self._reload and (now := self._sources()) != seen:
                seen = now
                logger.info("a source file has changed: restarting")
                self._terminate()
                self._wait()
                self._processes.clear()
                self._start_at = -math.inf
            if time.monotonic() >= self._start_at:
                self._start_missing()
            time.sleep(_LOOK_EVERY)
        # A process that was not ready yet had no handler: our signal has ended it. Another has just reached its limit.
        return max((abs(code) for code in self._wait() if code not in (-signal.SIGTERM, RECYCLED)), default=0)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1
        self._terminate()

    def _terminate(self) -> None:
        for process in list(self._processes.values()):
            process.terminate()

    def _wait(self) -> list[int]:
        return [process.wait() for process in self._processes.values()]

    def _remove_ended(self) -> None:
        """Remove processes that ended by themselves, with any status. If this repeats, restart after a longer pause."""
        for number, process in [item for item in self._processes.items() if item[1].poll() is not None]:
            del self._processes[number]
            if process.returncode == RECYCLED:
                logger.info("worker process %d has reached its limit; starting another", process.pid)
                continue
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
        for number in sorted(set(range(1, self._count + 1)) - self._processes.keys()):
            if self._signals:
                return
            argv = [*self._argv, "--supervised", str(number)]
            command = python(f"import_extra({__name__!r}, 'supervised', 'no worker can be supervised')({argv!r})")
            process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)  # noqa: S603 (our own)
            self._processes[number] = process
            if self._signals:  # the signal came before the handler knew this process
                process.terminate()

    def _sources(self) -> dict[Path, float]:
        """Return when each source file was changed; nothing without --reload."""
        if not self._reload:
            return {}
        seen = {}
        for folder, below, names in os.walk("."):
            below[:] = [name for name in below if name[0] != "." and name not in ("__pycache__", "site-packages")]
            for name in names:
                if name.endswith(".py"):
                    path = Path(folder, name)
                    with contextlib.suppress(OSError):  # an editor may just have renamed it
                        seen[path] = path.stat().st_mtime
        return seen


_FIELDS = ("job_id", "task", "attempt", "duration")  # attributes of records about jobs


class JsonLines(logging.Formatter):
    """Formats a log record as one JSON object on one line, with the attributes of records about jobs."""

    def format(self, record: logging.LogRecord) -> str:
        line = {"time": dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(), "level": record.levelname}
        line |= {"logger": record.name, "message": record.getMessage()}
        line |= {name: vars(record)[name] for name in _FIELDS if name in vars(record)}
        if record.exc_text:  # from a child process, which has formatted it
            line["traceback"] = record.exc_text
        elif record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)
