"""Interpreters inside the worker's process, for tasks with `executor="interpreter"`. They need Python 3.14.

Each interpreter has its own lock (GIL), so calls in several interpreters run on several cores. They share nothing with
the worker: calls and answers go through a socket, in the same form as to a process.
"""

import asyncio
import atexit
import contextlib
import ctypes
import importlib
import io
import socket
import sys
import threading
import time
from typing import Any

from flowrra import answer_calls, logger

_EXIT_WAIT = 1.0  # seconds that the end of the worker's process waits for interpreters that are still ending


class Interpreter:
    """An interpreter in a thread of this process, with the methods of a `subprocess.Popen` that the executor uses."""

    def __init__(self) -> None:
        interpreters: Any = importlib.import_module("concurrent.interpreters")
        self._ours, theirs = socket.socketpair()
        self.stdin, self.stdout = self._ours.makefile("wb"), self._ours.makefile("rb")
        self.returncode: int | None = None  # 1: the interpreter could not start
        path = [entry for entry in sys.path if isinstance(entry, str)]
        code = f"import sys; sys.path[:] = {path!r}; from {__name__} import serve; serve({theirs.detach()})"
        try:
            interpreter = interpreters.create()
        except interpreters.InterpreterError as error:
            raise OSError(str(error)) from error
        # A daemon: a task that never ends does not keep the process.
        thread = threading.Thread(target=self._run, args=(interpreter, code), name="flowrra-interpreter", daemon=True)
        _threads.add(thread)
        thread.start()

    def _run(self, interpreter: Any, code: str) -> None:
        try:
            interpreter.exec(code)
            self.returncode = 0
        except Exception as error:  # the text of the exception that was raised inside
            self.returncode = 1
            logger.error("an interpreter for CPU-bound tasks has ended: %s", error)
        finally:
            self.kill()  # the caller that waits for an answer sees the end
            try:
                interpreter.close()
            finally:
                _threads.discard(threading.current_thread())

    def poll(self) -> int | None:
        """Return None as long as it runs."""
        return self.returncode

    def kill(self) -> None:
        """Close the connection. A running call ends at its next step of Python code."""
        with contextlib.suppress(OSError):  # it has been closed already
            self._ours.shutdown(socket.SHUT_RDWR)

    def communicate(self) -> None:
        """Only close the connection: nothing is left to read, and a call that cannot be ended is not waited for."""
        for end in (self.stdin, self.stdout, self._ours):
            with contextlib.suppress(OSError):  # what is left in the buffer cannot be sent any more
                end.close()


_threads: set[threading.Thread] = set()


@atexit.register
def _wait_for_ends() -> None:
    """Wait until interpreters whose connection was closed have ended, before the process ends."""
    end = time.monotonic() + _EXIT_WAIT
    for thread in list(_threads):
        thread.join(max(0.0, end - time.monotonic()))


def serve(number: int) -> None:
    """Run calls from the socket with this file number, in an interpreter. What they print goes to stderr."""
    sys.stdin, sys.stdout = io.StringIO(), sys.stderr
    caller = threading.get_ident()

    def end() -> None:
        """Raise a CancelledError in the thread that runs calls, as in an `async def` that is cancelled."""
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(caller), ctypes.py_object(asyncio.CancelledError))

    link = socket.socket(fileno=number)
    with contextlib.suppress(asyncio.CancelledError, OSError), link.makefile("rb") as calls, link.makefile("wb") as out:
        answer_calls(calls, out, end, daemon=False)
    link.close()
