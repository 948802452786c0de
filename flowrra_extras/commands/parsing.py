"""What the commands read their words with."""

import argparse
import datetime as dt

from flowrra import OPERATOR_COMMANDS, ConfigError


def parser_of(command: str) -> argparse.ArgumentParser:
    """A parser for the words after `flowrra COMMAND`."""
    return argparse.ArgumentParser(prog=f"flowrra {command}", description=OPERATOR_COMMANDS[command])


def iso_moment(text: str) -> dt.datetime:
    try:
        return dt.datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"a moment is given as in 2026-03-07T12:00, not {text!r}") from None
