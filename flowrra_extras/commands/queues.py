"""`flowrra pause | resume`: stop claims from a queue, or jobs of a key; or allow them again."""

from collections.abc import Sequence

from flowrra import Flowrra, WorkerInfo, add_store, ask, parsed
from flowrra_extras.commands import parser_of
from flowrra_extras.commands.limits import pause_key


def main(argv: Sequence[str]) -> int:
    """Run one of the two commands and return the exit status. `argv` starts with the command's name."""
    command, *words = argv
    parser = parser_of(command)
    parser.add_argument("queue", nargs="?", help="the name of the queue")
    parser.add_argument("--key", metavar="KEY", help="instead of a queue: a key of limits, as in options(key=...)")
    parser.add_argument("--limit", metavar="NAME", help="with --key: of this limit only")
    add_store(parser)
    arguments = parsed(parser, words)
    if arguments.key is not None:
        if arguments.queue is not None and arguments.where is None:  # it is module:app
            arguments.queue, arguments.where = None, arguments.queue
        if arguments.queue is not None:
            parser.error("give a queue or --key, not both")
        return pause_key(arguments, paused=command == "pause")
    if arguments.queue is None or arguments.limit is not None:
        parser.error("give a queue, or --key, which --limit goes with")

    async def set_and_look(app: Flowrra) -> list[WorkerInfo]:
        await app.broker.set_queue(arguments.queue, paused=command == "pause")
        return await app.broker.workers()

    serving = sum(arguments.queue in worker.queues for worker in ask(arguments, set_and_look))
    workers = "1 live worker" if serving == 1 else f"{serving} live workers"
    print(f"{'paused' if command == 'pause' else 'resumed'}: {arguments.queue}, served by {workers}")
    return 0
