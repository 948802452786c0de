"""The operator's commands of `python -m flowrra`: they list and change jobs, queues and schedules, and serve pages.

The commands that a copied `flowrra.py` has too (worker, enqueue, status, show, explain, demo) are in that file.
"""

import argparse
import datetime as dt
from collections.abc import Mapping, Sequence

from flowrra import OPERATOR_COMMANDS, ConfigError, import_extra

# Command: the module whose `main` takes the command line (of `dashboard`, without its name) and returns the exit
# status, and the package that installs its dependencies.
_COMMANDS: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys(("jobs", "cancel", "requeue", "purge", "emit"), ("flowrra_extras.commands.jobs", "flowrra")),
    **dict.fromkeys(("pause", "resume", "limit"), ("flowrra_extras.commands.queues", "flowrra")),
    "cron": ("flowrra_extras.commands.cron", "flowrra"),
    "schedules": ("flowrra_extras.commands.schedules", "flowrra"),
    "dashboard": ("flowrra_extras.dashboard.command", "flowrra[dashboard]"),
    "migrate": ("flowrra_extras.commands.migrate", "flowrra"),
}


def main(argv: Sequence[str]) -> int:
    """Run a command of `flowrra.OPERATOR_COMMANDS` and return the exit status. `argv` starts with its name."""
    module, package = _COMMANDS[argv[0]]
    command = import_extra(module, "main", f"the command {argv[0]!r} cannot be run here", package)
    # A module with several commands needs the name.
    status: int = command(argv if module.startswith("flowrra_extras.commands.") else argv[1:]) or 0
    return status


def parser_of(command: str) -> argparse.ArgumentParser:
    """Return a parser for the arguments after `flowrra COMMAND`."""
    return argparse.ArgumentParser(prog=f"flowrra {command}", description=OPERATOR_COMMANDS[command])


def iso_moment(text: str) -> dt.datetime:
    try:
        return dt.datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"a time has the form 2026-03-07T12:00, not {text!r}") from None
