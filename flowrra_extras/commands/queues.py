"""`flowrra pause | resume | limit`: claims from a queue, the jobs of a key, and the numbers and use of limits."""

import argparse
import getpass
from collections.abc import Sequence
from typing import Any

import flowrra
from flowrra_extras.commands import parser_of


def main(argv: Sequence[str]) -> int:
    command, *words = argv
    return _limit(words) if command == "limit" else _pause(words, paused=command == "pause")


# Queues, and the jobs of a key -------------------------------------------------------------------


def _pause(words: Sequence[str], *, paused: bool) -> int:
    """Stop claims from a queue, or jobs of a key; or allow them again."""
    parser = parser_of("pause" if paused else "resume")
    parser.add_argument("queue", nargs="?", help="the name of the queue")
    parser.add_argument("--key", metavar="KEY", help="instead of a queue: a key of limits, as in options(key=...)")
    parser.add_argument("--limit", metavar="NAME", help="with --key: of this limit only")
    flowrra.add_store(parser)
    arguments = flowrra.parsed(parser, words)
    if arguments.key is not None:
        if arguments.queue is not None and arguments.where is None:  # it is module:app
            arguments.queue, arguments.where = None, arguments.queue
        if arguments.queue is not None:
            parser.error("give a queue or --key, not both")
        return _pause_key(arguments, paused=paused)
    if arguments.queue is None or arguments.limit is not None:
        parser.error("give a queue, or --key, which --limit goes with")

    async def set_and_look(app: flowrra.Flowrra) -> list[flowrra.WorkerInfo]:
        await app.broker.set_queue(arguments.queue, paused=paused)
        return await app.broker.workers()

    serving = sum(arguments.queue in worker.queues for worker in flowrra.ask(arguments, set_and_look))
    workers = "1 live worker" if serving == 1 else f"{serving} live workers"
    print(f"{'paused' if paused else 'resumed'}: {arguments.queue}, served by {workers}")
    return 0


def _pause_key(arguments: argparse.Namespace, *, paused: bool) -> int:
    """Pause or resume a key, and return the exit status."""
    names, running = flowrra.ask(arguments, lambda app: _pause_key_of(app, arguments.key, arguments.limit, paused))
    left = f"; {running} of its jobs still run" if paused and running else ""
    verb, limits = "paused" if paused else "resumed", f"limit{'s' * (len(names) > 1)} {', '.join(names)}"
    print(f"{verb}: the key {arguments.key} of the {limits}{left}")
    return 0


async def _pause_key_of(app: flowrra.Flowrra, key: str, limit: str | None, paused: bool) -> tuple[list[str], int]:
    """Return the limits of which the key was paused or resumed, and how many of its jobs run."""
    uses = await app.broker.limits()
    known = [use.limit.name for use in uses]
    if limit is not None and limit not in known:
        raise flowrra.ConfigError(f"there is no limit {limit!r} in this store{flowrra.nearest(limit, known)}")
    states = await app.broker.limit_states(
        [flowrra.join_limit_key(name, key) for name in ([limit] if limit else known)]
    )
    in_use = [one for one in states if one.running or one.pending or one.has_waiting]
    chosen = [one for one in states if one.paused] if not paused else states if limit else in_use
    if not chosen:
        why = "no limit has jobs of the key: name one with --limit" if paused else "the key is not paused"
        raise flowrra.ConfigError(f"{key!r}: {why}")
    await app.broker.change([one.name for one in chosen], "pause" if paused else "resume", now=app.now())
    return [flowrra.split_limit_key(one.name)[0] for one in chosen], sum(one.running for one in chosen)


# Limits ------------------------------------------------------------------------------------------

_NUMBERS = ("concurrency", "rate", "burst", "turn")


def _limit(words: Sequence[str]) -> int:
    """Show limits and their use, or change the numbers of one until an app declares it again."""
    parser = parser_of("limit")
    parser.add_argument("name", nargs="?", help="the limit; without one, all are shown")
    parser.add_argument("--concurrency", metavar="N", help="jobs at once; 'none' for no limit")
    parser.add_argument("--rate", metavar="100/m", help="jobs in a time; 'none' for no limit")
    parser.add_argument(
        "--burst", metavar="N", help="jobs that may start at once after a pause; 'none' for the default"
    )
    parser.add_argument("--turn", metavar="N", help="of a fair queue: jobs of a key that are ready at once")
    flowrra.add_store(parser)
    arguments = flowrra.parsed(parser, words)
    numbers = {name: _number(name, text) for name in _NUMBERS if (text := getattr(arguments, name)) is not None}
    if arguments.name is not None and ":" in arguments.name and arguments.where is None:  # it is module:app
        arguments.name, arguments.where = None, arguments.name
    if numbers and arguments.name is None:
        parser.error("say which limit to change")
    before, uses = flowrra.ask(arguments, lambda app: _change(app, arguments.name, numbers))
    if before is not None:
        now = uses[0].limit
        print(f"{now.name}: {now}, was {before}; until a worker starts whose app declares another")
    else:
        heads = ["LIMIT", "NUMBERS", "RUNNING", "READY", "WAITING", "KEYS", "LONGEST", "PAUSED KEYS", "BY"]
        flowrra.print_table(heads, map(_row, uses), "no limits")
    return 0


def _number(name: str, text: str) -> Any:
    if text == "none":
        return None
    if name == "rate":
        return text
    try:
        return int(text)
    except ValueError:
        raise flowrra.ConfigError(f"--{name} is a number or 'none', not {text!r}") from None


async def _change(
    app: flowrra.Flowrra, name: str | None, numbers: dict[str, Any]
) -> tuple[flowrra.Limit | None, list[flowrra.LimitUse]]:
    """Return the limit as it was, if it is changed, and the limits."""
    uses = await app.broker.limits()
    if name is None:
        return None, uses
    found = [use for use in uses if use.limit.name == name]
    if not found:
        raise flowrra.ConfigError(
            f"there is no limit {name!r} in this store{flowrra.nearest(name, [use.limit.name for use in uses])}"
        )
    if not numbers:
        return None, found
    before = found[0].limit
    values = {one: getattr(before, one) for one in _NUMBERS} | numbers
    if values["rate"] is None and "burst" not in numbers:
        values["burst"] = None
    found[0].limit = flowrra.Limit(name=name, by=getpass.getuser(), **values)
    await app.broker.set_limit(found[0].limit, now=app.now())
    return before, found


def _row(use: flowrra.LimitUse) -> list[str]:
    longest = f"{use.longest} of {use.longest_key or '(no key)'}" if use.longest else ""
    numbers = str(use.limit) if use.is_declared else "not declared: nothing runs"
    counts = (use.running, use.pending, use.waiting, use.waiting_keys)
    paused = ", ".join(key or "(no key)" for key in use.paused[:5]) + ("..." if len(use.paused) > 5 else "")
    return [use.limit.name, numbers, *map(str, counts), longest, paused, use.limit.by]
