"""`flowrra migrate SRC DST`: move jobs from one broker to another, and report the result."""

import argparse
import asyncio
import collections
import contextlib
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from flowrra import FINISHED, RUNNING, ConfigError, FlowrraError, SQLiteBroker, TaskStatus, split_limit_key
from flowrra_extras.migrate import Moved, count_open_events, migrate, opened, shared_broker


def main(argv: Sequence[str]) -> int:
    arguments = _parser().parse_args(argv[1:])
    for url in (arguments.source, arguments.target):
        broker = shared_broker(url)
        if url is arguments.source and isinstance(broker, SQLiteBroker) and not Path(broker.path or "").exists():
            raise ConfigError(f"the source {broker.path} does not exist: check the path")
    if arguments.dry_run:
        asyncio.run(_show(arguments.source, results=arguments.results))
        return 0
    return _run(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="flowrra migrate", description=_DESCRIPTION, epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("source", metavar="SRC", help="the URL of the broker that has the jobs")
    parser.add_argument("target", metavar="DST", help="the URL of the broker that receives them")
    parser.add_argument("--results", action="store_true", help="also copy the results of finished jobs")
    parser.add_argument("--wait", type=float, default=30.0, metavar="S",
                        help="how many seconds to wait for running jobs, which may be released (30)")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="show what would be moved, and move nothing")
    return parser


_DESCRIPTION = """\
Move unfinished jobs from one broker to another. Workers may run on both brokers: no job can
run on both. Jobs that are running on SRC finish there. If the move is interrupted, even by
kill -9, start it again to continue."""

_EPILOG = """\
examples:
  flowrra migrate sqlite:///jobs.db redis://localhost:6379/0 --dry-run   show what would be moved
  flowrra migrate sqlite:///jobs.db redis://localhost:6379/0 --results   move jobs, copy results
To change brokers without a pause: start workers on DST, submit new jobs to DST, run `migrate`,
then stop the workers on SRC. Results also stay on SRC until their retention ends. Schedules are
not moved. The exit status is 0 if no unfinished job is left on SRC, otherwise 1; the output then
names the jobs that are left."""


def _run(arguments: argparse.Namespace) -> int:
    line = _Line()
    seen: Moved | None = None

    def tell(moved: Moved) -> None:
        nonlocal seen
        seen = moved
        line.show(f"moved {_number(moved.jobs.total(), 'job')}, {moved.waiting:,} to go, {moved.results:,} results")

    try:
        moved = asyncio.run(
            migrate(arguments.source, arguments.target, results=arguments.results, wait=arguments.wait, tell=tell)
        )
    except ConfigError:
        raise
    except (FlowrraError, KeyboardInterrupt):
        line.clear()
        if seen is not None:  # the move had started
            print("\n".join(_came_over(seen)))
            print("The move was interrupted: start it again to continue.", file=sys.stderr)
        raise
    line.clear()
    print("\n".join([*_came_over(moved), *_stayed(moved)]))
    return 0 if moved.is_complete else 1


class _Line:
    """A line of progress that is updated on a terminal. If stderr is not a terminal, nothing is shown."""

    def __init__(self) -> None:
        self._is_live = sys.stderr.isatty()

    def show(self, text: str) -> None:
        if self._is_live:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        self.show("")


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _came_over(moved: Moved) -> Iterator[str]:
    states = ", ".join(f"{moved.jobs[status]:,} {status}" for status in TaskStatus if moved.jobs[status])
    yield f"moved {_number(moved.jobs.total(), 'job')}{states and ': ' + states}"
    if moved.resumed:
        yield f"finished the move of {_number(moved.resumed, 'job')} that an earlier run had started"
    if moved.results:
        yield f"copied {_number(moved.results, 'result')}"
    if moved.events:
        yield f"copied {_number(moved.events, 'emitted event')}"
    for queue in moved.paused:
        yield f"paused the queue {queue} at the target, as it is at the source"
    if moved.limits:
        yield f"declared at the target: {_limits(moved.limits)}"
    if moved.kept:
        yield f"the target has other numbers, and keeps them: {_limits(moved.kept)}"
    for limit, key in map(split_limit_key, moved.paused_keys):
        yield f"paused the key {key or '(no key)'} of the limit {limit} at the target, as it is at the source"


def _limits(names: Sequence[str]) -> str:
    return f"the limit{'s' * (len(names) > 1)} {', '.join(names)}"


def _stayed(moved: Moved) -> Iterator[str]:
    if moved.running:
        yield f"left {_number(moved.running, 'running job')} at the source: when they have ended, start the move again"
    if moved.relatives:
        yield f"left {_number(moved.relatives, 'job')} at the source, because a parent or child stays there"
    for task_id, why in itertools.islice(moved.stays.items(), 20):
        yield f"left {task_id} at the source: {why}"
    if len(moved.stays) > 20:
        yield f"and {len(moved.stays) - 20:,} more"


async def _show(url: str, *, results: bool) -> None:
    """Print what a move would do. The target is not opened, because that could create it."""
    async with contextlib.AsyncExitStack() as stack:
        broker = await opened(url, stack)
        counts, events = await broker.counts(), await count_open_events(broker)
    number = collections.Counter[TaskStatus]({TaskStatus.SCHEDULED: -events})
    for (_, status), count in counts.items():
        number[status] += count
    for status in TaskStatus:
        if number[status]:
            print(f"{number[status]:>10,} {status:<9} {_plan(status, results=results)}")
    if events:
        print(f"{events:>10,} events    stay: they have not been emitted, and moved jobs wait for them at the target")
    if not any(counts.values()):
        print("the source has no jobs")


def _plan(status: TaskStatus, *, results: bool) -> str:
    if status is RUNNING:
        return "migrate waits for them"
    if status in FINISHED:
        return "results are copied" if results else "stay (see --results)"
    return "are moved"
