"""The operator's commands of `python -m flowrra`: look at jobs, steer queues and schedules, serve the dashboard, move.

What a lone copied `flowrra.py` has too (worker, enqueue, status, show, explain, demo) stands there.
"""

from collections.abc import Mapping, Sequence

from flowrra import import_extra

# Command: the module whose `main` takes the command's words, and what installs what that needs.
_COMMANDS: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys(("jobs", "cancel", "requeue", "purge"), ("flowrra_extras.commands.jobs", "flowrra")),
    **dict.fromkeys(("pause", "resume"), ("flowrra_extras.commands.queues", "flowrra")),
    "cron": ("flowrra_extras.commands.cron", "flowrra"),
    "schedules": ("flowrra_extras.commands.schedules", "flowrra"),
    "dashboard": ("flowrra_extras.dashboard.command", "flowrra[dashboard]"),
    "migrate": ("flowrra_extras.migrate", "flowrra"),
}


def main(argv: Sequence[str]) -> int:
    """Carry out a command that `flowrra.OPERATOR_COMMANDS` names, by its words from the name on; the exit status."""
    module, package = _COMMANDS[argv[0]]
    command = import_extra(module, "main", f"the command {argv[0]!r} cannot be run here", package)
    # The first word says which command it is where a module has several.
    status: int = command(argv if module.startswith("flowrra_extras.commands.") else argv[1:]) or 0
    return status
