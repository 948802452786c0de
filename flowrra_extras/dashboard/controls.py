"""The plain controls of the jobs page: each stands for a word of the search line, and changes that word."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowrra_extras.dashboard.search import quoted, words_in

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

CONTROLS = ("state", "task", "queue", "after")


def words_of(line: str) -> dict[str, str]:
    """The values that the line gives to the controls; of two for one, the last."""
    pairs = (word.partition(":") for word in words_in(line))
    return {key: value.replace('"', "") for key, _, value in pairs if key in CONTROLS and value}


def without(line: str, keys: Collection[str]) -> str:
    """The line without the words for `keys`."""
    return " ".join(word for word in words_in(line) if word.partition(":")[0] not in keys)


def with_word(line: str, key: str, value: str) -> str:
    """The line in which `key` has this value; an empty one takes the word out."""
    rest = without(line, (key,))
    return f"{rest} {key}:{quoted(value)}".strip() if value else rest


def line_of(given: Mapping[str, str]) -> str:
    """The search line of a URL: its `search`, changed by those controls that came with it."""
    line = given.get("search", "").strip()
    for key in CONTROLS:
        if key in given:
            line = with_word(line, key, given[key].strip())
    return line
