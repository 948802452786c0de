"""What the processes of `test_cpu_processes` and `test_cpu_limits` in `tests/core/` run; they import it by name."""

import contextvars
import logging
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from flowrra import Flowrra, SoftTimeoutError, current_job
from tests.support.cpu_work import touch, wait_for

app = Flowrra.from_urls("memory://")
log = logging.getLogger("shop.prices")
leaked: list[bytearray] = []


def pid() -> int:
    return os.getpid()


def nap(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def hang() -> None:
    time.sleep(30)


def report_a_part(written: str) -> str:
    """Compute until the soft time limit, then tidy up and return what there is."""
    try:
        while True:
            touch(written)
    except SoftTimeoutError as error:
        Path(written).unlink()
        return str(error)


def go_on_regardless() -> None:
    while True:
        try:
            hang()
        except Exception as error:
            log.warning("not done yet: %s", error)


def report_all_the_time() -> int:
    """Write frames of all kinds until the soft time limit; how many."""
    count = 0
    try:
        while True:
            count += 1
            current_job().progress(count, note="x" * 5_000)
            log.warning("number %d%s", count, " " * 5_000)
    except SoftTimeoutError:
        return count


def end_programs() -> list[int]:
    """Start programs and end them by a signal each; how they ended."""
    codes = []
    for number in (signal.SIGTERM, signal.SIGINT):
        with subprocess.Popen(["/bin/sleep", "30"]) as program:
            program.send_signal(number)
            codes.append(program.wait(5))
    return codes


def end_forks(ready: str) -> list[int | None]:
    """The same with copies of this process."""
    codes: list[int | None] = []
    context = multiprocessing.get_context("fork")
    for number in (signal.SIGTERM, signal.SIGKILL):
        copy = context.Process(target=hang_in_copy, args=(ready,))
        copy.start()
        wait_for(ready)
        Path(ready).unlink()
        os.kill(copy.pid or 0, number)
        copy.join(5)
        codes.append(copy.exitcode)
        copy.kill()
    return codes


def hang_in_copy(ready: str) -> None:
    touch(ready)
    time.sleep(30)


def be_signalled() -> str:
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(os.getpid(), number)
        time.sleep(0.01)
    return "alive"


def log_lines() -> None:
    log.debug("not wanted")
    log.info("price of %s: %d", "tea", 3)
    try:
        raise ValueError("no price")
    except ValueError:
        log.exception("cannot tell")


def log_in_copy() -> None:
    copy = os.fork()
    if copy == 0:
        log.info("said in a copy")
        os._exit(0)
    os.waitpid(copy, 0)


def fork_and_forget(path: str, how: str) -> int:
    """Fork, and let the copy come back from the task as well."""
    copy = os.fork()
    if copy == 0:
        Path(path + ".new").write_text(str(os.getpid()))
        Path(path + ".new").rename(path)
        if how == "exit":
            sys.exit(3)
        return -1
    if how == "exit":
        return os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1])
    return os.getpid()


def run_out_of_memory() -> None:
    """Keep what there is, as a cache without limits does, until there is no more."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 200_000_000, resource.RLIM_INFINITY))
    try:
        while True:
            leaked.append(bytearray(1_000_000))
    except MemoryError as error:
        raise RuntimeError("the cache cannot grow") from error


def leak(size: int) -> int:
    leaked.append(bytearray(os.urandom(1)) * size)
    return os.getpid()


def need_memory() -> int:
    return len(bytearray(50_000_000))


def leave_a_thread(go: str, done: str) -> None:
    """Leave a thread behind that will report progress when it may."""

    def report() -> None:
        wait_for(go)
        current_job().progress(1, 100, "of another job")
        touch(done)

    threading.Thread(target=contextvars.copy_context().run, args=(report,), daemon=True).start()


def let_the_thread_report(go: str, done: str) -> None:
    touch(go)
    wait_for(done)
    current_job().progress(2, 2, "my own")


def submit_in_a_thread() -> list[str]:
    """Submit a job from a thread of the task; what came of it."""
    said: list[str] = []

    def submit() -> None:
        try:
            said.append(app.sync.submit(other))
        except Exception as error:
            said.append(str(error))

    thread = threading.Thread(target=submit)
    thread.start()
    thread.join()
    return said


@app.task
def other() -> None:
    raise AssertionError("nobody runs this")


def size_of(text: str) -> str:
    return text + "!"
