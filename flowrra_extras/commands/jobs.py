"""`flowrra jobs | cancel | requeue | purge | emit`: list jobs and change them; emit an event that jobs wait for."""

import argparse
import json
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import flowrra
from flowrra_extras.commands import parser_of

# The calls of a command, for one job and for many, and the word that it prints when they are done.
_CHANGES: Mapping[str, tuple[Callable[..., Awaitable[bool]], Callable[..., Awaitable[int]], str]] = {
    "cancel": (flowrra.Flowrra.cancel, flowrra.Flowrra.cancel_all, "cancelled"),
    "requeue": (flowrra.Flowrra.requeue, flowrra.Flowrra.requeue_all, "requeued"),
}


def main(argv: Sequence[str]) -> int:
    command, *words = argv
    parser = parser_of(command)
    if command == "jobs":
        states = f"only jobs in this state: {', '.join(flowrra.TaskStatus)}"
        parser.add_argument("--state", choices=list(map(str, flowrra.TaskStatus)), metavar="STATE", help=states)
        _add_filter(parser)
        parser.add_argument("--limit", type=int, default=50, metavar="N", help="list at most N jobs (50)")
        parser.add_argument("--json", action="store_true", help="print JSON")
    elif command in _CHANGES:
        parser.add_argument("id", nargs="?", help="the id of a job; or select jobs by --task, --queue and --tag")
        _add_filter(parser)
    elif command == "emit":
        parser.add_argument("event", help="the name of the event")
        parser.add_argument("--payload", default="null", metavar="JSON", help="what wait_event() returns (null)")
    flowrra.add_store(parser)
    arguments = flowrra.parsed(parser, words)
    if command in _CHANGES:
        one, many, done = _CHANGES[command]
        return _change_all(arguments, many, done) if any(_filter(arguments).values()) else _change(arguments, one, done)
    run = {"jobs": _list, "purge": _purge, "emit": _emit}[command]
    return run(arguments)


def _add_filter(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--task", metavar="NAME", help="only jobs of this task; with an app, the last part is enough")
    parser.add_argument("--queue", metavar="QUEUE", help="only jobs in this queue")
    parser.add_argument("--tag", metavar="TAG", help="only jobs with this tag")


def _filter(arguments: argparse.Namespace) -> dict[str, str | None]:
    return {name: getattr(arguments, name) for name in ("task", "queue", "tag")}


def _hint(task: str | None) -> str:
    """Return the end of a message that there are no jobs of the task."""
    return f" (the full name of a task has dots, as in shop.{task})" if task and "." not in task else ""


def _list(arguments: argparse.Namespace) -> int:
    which: dict[str, Any] = {"status": arguments.state, "limit": arguments.limit, **_filter(arguments)}
    jobs = flowrra.ask(arguments, lambda app: app.jobs(**which))
    if arguments.json:
        for job in jobs:
            print(json.dumps(flowrra.job_as_json(job)))
        return 0
    head = ["ID", "TASK", "QUEUE", "STATE", "ATTEMPT", "AGE", "ERROR"]
    flowrra.print_table(head, map(_row, jobs), f"no such jobs{_hint(arguments.task)}")
    return 0


def _row(job: flowrra.Job) -> list[str]:
    age = flowrra.duration(time.time() - job.submitted)
    return [job.id, job.task, job.queue, job.status, str(job.attempt), age, flowrra.first_line(job.error)]


def _change(arguments: argparse.Namespace, change: Callable[..., Awaitable[bool]], done: str) -> int:
    """Cancel or requeue one job and print the result. Return 1 if the state of the job does not allow it."""
    if arguments.id is None:
        raise flowrra.ConfigError("no jobs are selected: give an id, or --task, --queue or --tag")

    async def change_and_look(app: flowrra.Flowrra) -> tuple[bool, flowrra.Job]:
        return await change(app, arguments.id), await app.get_job(arguments.id)

    changed, job = flowrra.ask(arguments, change_and_look)
    if not changed:
        print(f"flowrra: job {job.id} is {job.status}, so it cannot be {done}", file=sys.stderr)
        return 1
    print(f"{done}: {job.id}" + (" (its worker was notified)" if job.status is flowrra.RUNNING else ""))
    return 0


def _change_all(arguments: argparse.Namespace, change: Callable[..., Awaitable[int]], done: str) -> int:
    """Cancel or requeue the jobs that match, and print their number."""
    if arguments.id is not None and arguments.where is not None:
        raise flowrra.ConfigError(f"give the id {arguments.id!r} or --task, --queue and --tag, not both")
    arguments.where = arguments.where or arguments.id  # with a filter, the only positional argument is the app
    count = flowrra.ask(arguments, lambda app: change(app, **_filter(arguments)))
    print(f"{done}: {count} job(s){'' if count else _hint(arguments.task)}")
    return 0


def _purge(arguments: argparse.Namespace) -> int:
    async def purge(app: flowrra.Flowrra) -> int:
        total = 0
        while count := await app.broker.purge(app.now(), 1000):
            total += count
        return total

    print(f"purged: {flowrra.ask(arguments, purge)} job(s)")
    return 0


def _emit(arguments: argparse.Namespace) -> int:
    """Emit the event. Return 1 if it was emitted before."""
    try:
        payload = json.loads(arguments.payload)
    except ValueError:
        raise flowrra.ConfigError(f"--payload {arguments.payload!r} is not JSON: write a text as '\"text\"'") from None
    if flowrra.ask(arguments, lambda app: app.emit(arguments.event, payload)):
        print(f"emitted: {arguments.event}")
        return 0
    print(f"flowrra: the event {arguments.event} was emitted before; its first payload is kept", file=sys.stderr)
    return 1
