"""`flowrra emit`: emit an event that jobs wait for with `current_job().wait_event`."""

import json
import sys
from collections.abc import Sequence

from flowrra import ConfigError, add_store, ask, parsed
from flowrra_extras.commands import parser_of


def main(argv: Sequence[str]) -> int:
    """Emit the event and return the exit status: 1 if it was emitted before. `argv` starts with the command's name."""
    parser = parser_of(argv[0])
    parser.add_argument("event", help="the name of the event")
    parser.add_argument("--payload", default="null", metavar="JSON", help="what wait_event() returns (null)")
    add_store(parser)
    arguments = parsed(parser, argv[1:])
    try:
        payload = json.loads(arguments.payload)
    except ValueError:
        raise ConfigError(f"--payload {arguments.payload!r} is not JSON: write a text as '\"text\"'") from None
    if ask(arguments, lambda app: app.emit(arguments.event, payload)):
        print(f"emitted: {arguments.event}")
        return 0
    print(f"flowrra: the event {arguments.event} was emitted before; its first payload is kept", file=sys.stderr)
    return 1
