"""What the processes of `tests/test_children.py` run; they import it by name."""

import asyncio
import ctypes
import datetime as dt
import decimal
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from flowrra import Flowrra, Retry, current_job

app = Flowrra.from_urls("memory://")


class RefusalError(ValueError):
    """An error that only this module knows."""


def pid() -> int:
    return os.getpid()


def touch(path: str) -> None:
    Path(path).touch()


def wait_for(path: str) -> None:
    while not Path(path).exists():
        time.sleep(0.005)


def die(how: str) -> int:
    """At the first attempt the process ends, at the second it returns."""
    if current_job().attempt == 1:
        if how == "SIGKILL":
            os.kill(os.getpid(), signal.SIGKILL)
        elif how == "SIGSEGV":
            ctypes.string_at(0)
        else:
            os._exit(3)
    return current_job().attempt


def hang(path: str) -> None:
    """Say where it hangs, and hang."""
    Path(path + ".new").write_text(str(os.getpid()))
    Path(path + ".new").rename(path)
    time.sleep(60)


def meet(folder: str, number: int, others: int) -> tuple[float, float]:
    """Wait for so many others at the same time; when it began and ended."""
    began = time.monotonic()
    touch(f"{folder}/{number}")
    while len(list(Path(folder).iterdir())) < others:
        time.sleep(0.005)
    return began, time.monotonic()


def leave(code: int) -> None:
    sys.exit(code)


def be_noisy() -> tuple[str, str]:
    """Print by every way there is, and read what there is to read."""
    print("text from a task")
    os.write(1, b"\x00\x00\x00\x02[]" * 100)
    subprocess.run([sys.executable, "-c", "print('text from its child')"], check=True)
    child = subprocess.run([sys.executable, "-c", "import sys; print(repr(sys.stdin.read()))"], stdout=subprocess.PIPE)
    return sys.stdin.read(), child.stdout.decode().strip()


def report(path: str) -> None:
    current_job().progress(3, 10, "a third")
    wait_for(path)


def unfit() -> object:
    return {"kept": [1, object()]}


VALUES = {
    "moment": dt.datetime(2025, 3, 1, 12, 30, tzinfo=dt.UTC),
    "price": decimal.Decimal("9.90"),
    "id": uuid.UUID(int=7),
    "bytes": b"\x00\xff",
    "set": {1, 2},
    "tuple": (1, (2, "3")),
    "keys": {1: "one", (2, 3): None},
}


def echo(value: Any) -> Any:
    assert value == VALUES, value
    return value


def refuse() -> None:
    raise RefusalError("not today")


def ask_for_another_try() -> int:
    if current_job().attempt == 1:
        raise Retry("later", delay=0.05)
    return current_job().attempt


async def think(number: int) -> int:
    await asyncio.sleep(0.001)
    return number + 1


async def wait_for_another(task_id: str) -> None:
    await app.wait_for_result(task_id, timeout=5)


def wait_for_another_plainly(task_id: str) -> None:
    app.sync.wait_for_result(task_id, timeout=5)


class AgainError(Retry):
    """A request for another attempt that does not call the __init__() of its base."""

    def __init__(self) -> None:
        pass


def ask_again() -> tuple[int, int]:
    """At the first attempt it asks for another one."""
    if current_job().attempt == 1:
        raise AgainError
    return current_job().attempt, os.getpid()


def no_json() -> object:
    return [object()]
