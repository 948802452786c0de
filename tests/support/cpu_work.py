"""What the processes of `tests/core/test_cpu_isolation.py` run; they import it by name."""

import asyncio
import ctypes
import datetime as dt
import decimal
import importlib
import logging
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from flowrra import Cancel, Flowrra, Retry, Snooze, current_job

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
    await app.wait_for_result(task_id, timeout=20)


def wait_for_another_plainly(task_id: str) -> None:
    app.sync.wait_for_result(task_id, timeout=20)


class AgainError(Retry):
    """A request for another attempt that does not call the __init__() of its base."""

    def __init__(self) -> None:
        pass


def ask_again() -> tuple[int, int]:
    """At the first attempt it asks for another one."""
    if current_job().attempt == 1:
        raise AgainError
    return current_job().attempt, os.getpid()


def labels() -> tuple[tuple[str, ...], dict[str, Any]]:
    return current_job().tags, dict(current_job().meta)


def steps(path: str) -> str:
    """Two steps, a sleep, an event, rows; the process dies between them."""
    job = current_job()
    first = job.step_sync("one", write_line, path, "one")
    if job.attempt == 1:
        raise Retry("after a step", delay=0)
    if job.attempt == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    for row in job.resume_sync("rows", ["a", "b"]):
        write_line(path, row)
    return f"{first} {job.attempt} {job.step_sync('key', step_key)}"


async def waits(path: str) -> str:
    """The same in an async function."""
    job = current_job()
    both = await asyncio.gather(job.step("one", write_line, path, "one"), job.step("two", write_line, path, "two"))
    await job.sleep(0.01)
    return f"{both} {await job.wait_event('go')}"


def write_line(path: str, text: str) -> str:
    with Path(path).open("a") as file:
        file.write(f"{text}\n")
    return text


def same_step() -> int:
    return current_job().step_sync("one", pid) + current_job().step_sync("one", pid)


def step_key() -> str:
    return current_job().step_key


def snooze_once() -> str:
    if current_job().attempt == 1:
        raise Snooze(until=dt.datetime.now(dt.UTC), reason="429 Too Many Requests")
    return "done"


def cancel_itself() -> None:
    raise Cancel("user 7 is gone")


def no_json() -> object:
    return [object()]


def interpreter() -> tuple[int, int]:
    """The process, and the interpreter in it; 0 is the main one. From Python 3.14 on."""
    return os.getpid(), importlib.import_module("concurrent.interpreters").get_current().id


def spin(path: str) -> None:
    """Compute until somebody ends it."""
    try:
        while True:
            touch(path)
    except BaseException as error:
        Path(f"{path}.end").write_text(type(error).__name__)
        raise


def tell_of_itself() -> str:
    """Use what a running job has."""
    job = current_job()
    job.progress(1, 2, "half")
    logging.getLogger("shop").warning("low on %s", "ink")
    print("printed")
    return job.step_sync("charge", step_key)


def import_pydantic() -> None:
    importlib.import_module("pydantic_core")
