"""Which functions of flowrra.py one job passes through: python -m benchmarks.passes [--list].

`sys.setprofile` counts each function once, in all threads, for a job that does nothing and for the stop of an app
that runs a job. The round with the fewest counts, because others may include a heartbeat or upkeep.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import flowrra

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from types import CodeType, FrameType

ROUNDS = 7

Passed = dict[str, int]  # the names of functions and the numbers of their calls, in the order of the first calls


class Profile:
    """Counts calls of functions of flowrra.py while it is switched on."""

    def __init__(self) -> None:
        self.passed: Passed = {}
        self._is_on = False
        self._names: dict[CodeType, str | None] = {}

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        if self._is_on and event == "call" and (name := self._name(frame.f_code)) is not None:
            self.passed[name] = self.passed.get(name, 0) + 1

    def _name(self, code: CodeType) -> str | None:
        """Return the name of a function of flowrra.py, otherwise None. A comprehension belongs to its function."""
        if code not in self._names:
            is_own = code.co_filename == flowrra.__file__ and not code.co_name.endswith(("comp>", "expr>"))
            self._names[code] = f"{code.co_qualname}:{code.co_firstlineno}" if is_own else None
        return self._names[code]

    @contextmanager
    def on(self) -> Iterator[None]:
        self.passed, self._is_on = {}, True
        try:
            yield
        finally:
            self._is_on = False


@contextmanager
def profiled() -> Iterator[Profile]:
    """Yield a profile that includes every thread that is started in the block."""
    profile = Profile()
    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        yield profile
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


async def one_job(profile: Profile, url: str) -> Passed:
    """Count from the call of submit() to the result, in an app that has already run jobs."""
    app = flowrra.Flowrra.from_urls(url)

    @app.task
    async def noop(number: int) -> int:
        return number

    rounds = []
    async with app:
        for number in range(ROUNDS):
            await asyncio.sleep(0.05)  # until the worker is idle
            with profile.on():
                await app.wait_for_result(await app.submit(noop, number))
            rounds.append(profile.passed)
    return min(rounds, key=len)


async def one_stop(profile: Profile, url: str) -> Passed:
    """Count a call of stop() while a job is running that ends within the drain time."""
    app = flowrra.Flowrra.from_urls(url)
    begun, may_end = asyncio.Event(), asyncio.Event()

    @app.task
    async def wait() -> None:
        begun.set()
        await may_end.wait()

    await app.start()
    await app.submit(wait)
    await begun.wait()
    await asyncio.sleep(0.05)
    asyncio.get_running_loop().call_later(0.05, may_end.set)
    with profile.on():
        await app.stop()
    return profile.passed


def measure(story: Callable[[Profile, str], Awaitable[Passed]], url: str) -> Passed:
    async def run() -> Passed:
        return await story(profile, url)

    with profiled() as profile:
        return asyncio.run(run())


def counts() -> dict[str, Passed]:
    """Return all counts by their names."""
    with tempfile.TemporaryDirectory() as folder:
        return {
            "one job in memory": measure(one_job, "memory://"),
            "one job on SQLite": measure(one_job, f"sqlite:///{folder}/jobs.db"),
            "stop() with one job": min((measure(one_stop, "memory://") for _ in range(ROUNDS)), key=len),
        }


def main(arguments: Any = None) -> None:
    parser = argparse.ArgumentParser(description="Which functions of flowrra.py one job passes through.")
    parser.add_argument("--list", action="store_true", help="name them, with the number of their calls")
    is_list = parser.parse_args(arguments).list
    for title, passed in counts().items():
        print(f"{title}: {len(passed)} functions, {sum(passed.values())} calls")
        for name, times in passed.items() if is_list else ():
            print(f"    {times:3} {name}")


if __name__ == "__main__":
    main()
