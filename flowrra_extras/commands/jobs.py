"""`flowrra jobs | cancel | requeue | purge`: list jobs, end them, have them run again, delete the finished ones."""

import argparse
import json
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

from flowrra import (
    RUNNING,
    Flowrra,
    Job,
    TaskStatus,
    add_store,
    ask,
    duration,
    first_line,
    job_as_json,
    parsed,
    print_table,
)
from flowrra_extras.commands.parsing import parser_of

# Command: what it asks of the app, and what it says when that is done.
_CHANGES: Mapping[str, tuple[Callable[[Flowrra, str], Awaitable[bool]], str]] = {
    "cancel": (Flowrra.cancel, "cancelled"),
    "requeue": (Flowrra.requeue, "requeued"),
}


def main(argv: Sequence[str]) -> int:
    """Carry out one of these commands, by its words from the name on; returns the exit status."""
    command, *words = argv
    parser = parser_of(command)
    if command == "jobs":
        parser.add_argument("--state", choices=list(map(str, TaskStatus)), metavar="STATE", help=", ".join(TaskStatus))
        parser.add_argument("--task", metavar="NAME", help="of this task only, by its full name")
        parser.add_argument("--queue", metavar="QUEUE", help="of this queue only")
        parser.add_argument("--limit", type=int, default=50, metavar="N", help="so many at the most (50)")
        parser.add_argument("--json", action="store_true", help="print JSON")
    elif command in _CHANGES:
        parser.add_argument("id")
    add_store(parser)
    arguments = parsed(parser, words)
    if command in _CHANGES:
        return _change(arguments, *_CHANGES[command])
    return _list(arguments) if command == "jobs" else _purge(arguments)


def _list(arguments: argparse.Namespace) -> int:
    which = {"status": arguments.state, "task": arguments.task, "queue": arguments.queue, "limit": arguments.limit}
    jobs = ask(arguments, lambda app: app.jobs(**which))
    if arguments.json:
        for job in jobs:
            print(json.dumps(job_as_json(job)))
        return 0
    head = ["ID", "TASK", "QUEUE", "STATE", "ATTEMPT", "AGE", "ERROR"]
    print_table(head, map(_row, jobs), "no such jobs")
    return 0


def _row(job: Job) -> list[str]:
    age = duration(time.time() - job.submitted)
    return [job.id, job.task, job.queue, job.status, str(job.attempt), age, first_line(job.error)]


def _change(arguments: argparse.Namespace, change: Callable[[Flowrra, str], Awaitable[bool]], done: str) -> int:
    """Cancel or requeue one job and say what came of it; 1 if it is not in a state for that."""

    async def change_and_look(app: Flowrra) -> tuple[bool, Job]:
        return await change(app, arguments.id), await app.get_job(arguments.id)

    changed, job = ask(arguments, change_and_look)
    if not changed:
        print(f"flowrra: job {job.id} is {job.status}, so it cannot be {done}", file=sys.stderr)
        return 1
    print(f"{done}: {job.id}" + (" (its worker has been told)" if job.status is RUNNING else ""))
    return 0


def _purge(arguments: argparse.Namespace) -> int:
    async def purge(app: Flowrra) -> int:
        total = 0
        while count := await app.broker.purge(app.now(), 1000):
            total += count
        return total

    print(f"purged: {ask(arguments, purge)} job(s)")
    return 0
