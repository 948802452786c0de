"""The base of the commands of `manage.py`: it passes their arguments to Flowrra's command line."""

import os
import sys
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandParser, handle_default_options
from django.db import connections

from flowrra import main


class PassedOn(BaseCommand):
    """A command with the options of `flowrra COMMAND`, for the app of a backend in TASKS."""

    command: str

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--backend", default="default", metavar="ALIAS", help="a backend of TASKS (default)")
        parser.epilog = f"The options of `python -m flowrra {self.command}` are taken too; see its --help."

    def run_from_argv(self, argv: list[str]) -> None:
        """Parse the options of Django's commands, and pass on all others."""
        parser = self.create_parser(argv[0], argv[1], allow_abbrev=False)
        options, words = parser.parse_known_args(argv[2:])
        handle_default_options(options)
        try:
            self.execute(*words, **vars(options))
        finally:
            connections.close_all()

    def handle(self, *words: Any, **options: Any) -> None:
        # Processes that the command starts must find the project from any working directory.
        folders = [str(Path(sys.path[0]).resolve()), *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ["PYTHONPATH"] = os.pathsep.join(folders)
        sys.exit(main([self.command, f"flowrra_extras.django.serve:{options['backend']}", *words]))
