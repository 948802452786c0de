"""`flowrra pause | resume`: hand out no more jobs of a queue, or hand them out again."""

from collections.abc import Sequence

from flowrra import Flowrra, WorkerInfo, add_store, ask, parsed
from flowrra_extras.commands.parsing import parser_of


def main(argv: Sequence[str]) -> int:
    """Carry out one of the two, by its words from the name on; returns the exit status."""
    command, *words = argv
    parser = parser_of(command)
    parser.add_argument("queue")
    add_store(parser)
    arguments = parsed(parser, words)

    async def set_and_look(app: Flowrra) -> list[WorkerInfo]:
        await app.broker.set_queue(arguments.queue, paused=command == "pause")
        return await app.broker.workers()

    serving = sum(arguments.queue in worker.queues for worker in ask(arguments, set_and_look))
    workers = "1 live worker" if serving == 1 else f"{serving} live workers"
    print(f"{'paused' if command == 'pause' else 'resumed'}: {arguments.queue}, served by {workers}")
    return 0
