"""The search line of the jobs page: `state:failed task:send queue:mail args.user:42 after:2h timeout`.

A line becomes a filter for the store, as far as the store can tell, and tests for the rest. Pure: what a
line means is decided here, how the jobs are looked through is not.
"""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flowrra import JobFilter, SerializationError, TaskStatus, decode_arguments

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from flowrra import Job

KEYS = ("state", "task", "queue", "worker", "error", "alike", "parent", "id", "args", "after", "before")
LINE_LIMIT = 1_000  # characters
_UNITS: Mapping[str, float] = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0, "w": 604_800.0}
# A word ends at white space, but for what stands in quotation marks.
_WORD = re.compile(r'(?:[^\s"]|"[^"]*(?:"|$))+')
_AGO = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)([smhdw])")


@dataclass(slots=True)
class Search:
    """What a line asks for. `after` and `before` bound the submission, in seconds since the epoch.

    `tests` must all hold of a job.
    `problems` are the words that cannot be understood, each with the reason.
    """

    which: JobFilter = field(default_factory=JobFilter)
    tests: list[Callable[[Job], bool]] = field(default_factory=list)
    after: float | None = None
    before: float | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def is_for_the_store(self) -> bool:
        """Whether the store alone can tell which jobs these are."""
        return not self.tests and self.after is None and self.before is None

    def matches(self, job: Job) -> bool:
        """Whether a job that the store has found is one of them."""
        return (
            (self.after is None or job.submitted >= self.after)
            and (self.before is None or job.submitted < self.before)
            and all(test(job) for test in self.tests)
        )


@dataclass(slots=True, frozen=True)
class Surroundings:
    """What the meaning of a line depends on.

    `named` gives the arguments of a job by name and position, and nothing for a job whose arguments are hidden.
    `kind` gives the key of the group of failures that a job belongs to.
    """

    now: float
    tasks: Sequence[str]
    named: Callable[[Job], Mapping[str, Any]]
    kind: Callable[[Job], str]


def parse(line: str, around: Surroundings) -> Search:
    """The search that `line` stands for."""
    search = Search()
    if len(line) > LINE_LIMIT:
        search.problems.append(f"the line has {len(line)} characters, {LINE_LIMIT} are allowed")
        return search
    if "\0" in line:
        search.problems.append("the line has a character that no text has")
        return search
    if line.count('"') % 2:
        search.problems.append("a quotation mark is not closed")
        return search
    for word in (quoted.replace('"', "") for quoted in words_in(line)):
        key, colon, value = word.partition(":")
        read = _READERS.get(key.partition(".")[0]) if colon else None
        if read is None:
            search.tests.append(_holds(word))
        elif not value:
            search.problems.append(f"{word!r} wants a value behind the colon")
        elif problem := read(search, key, value, around):
            search.problems.append(problem)
    return search


def words_in(line: str) -> list[str]:
    """The words of a line, as they stand there."""
    return _WORD.findall(line)


def _holds(word: str) -> Callable[[Job], bool]:
    """A bare word: part of the id, the task or the error."""
    wanted = word.lower()
    return lambda job: wanted in job.id.lower() or wanted in job.task.lower() or wanted in (job.error or "").lower()


# One reader a key: puts the word into the search, or says what is wrong with it ------------------


def _read_state(search: Search, key: str, value: str, around: Surroundings) -> str | None:
    try:
        search.which.status = frozenset(TaskStatus(name) for name in value.lower().split(","))
    except ValueError:
        return f"{value!r} is no state: {', '.join(TaskStatus)}"
    return None


def _read_task(search: Search, key: str, value: str, around: Surroundings) -> str | None:
    search.which.task = task_named(value, around.tasks)
    return None


def task_named(text: str, tasks: Sequence[str]) -> str:
    """The task of that name, or the only one whose last parts are that; else the text as it is."""
    if text in tasks:
        return text
    alike = [name for name in tasks if name.endswith(f".{text}")]
    return alike[0] if len(alike) == 1 else text


def _read_alike(search: Search, key: str, value: str, around: Surroundings) -> str | None:
    kind = around.kind
    search.tests.append(lambda job: kind(job) == value)
    return None


def _read_exactly(search: Search, key: str, value: str, around: Surroundings) -> str | None:
    """A key that the store's filter has under the same name."""
    setattr(search.which, key, value)
    return None


def _read_id(search: Search, key: str, value: str, around: Surroundings) -> str | None:
    search.which.ids = value.split(",")[:100]
    return None


def _read_moment(search: Search, key: str, value: str, around: Surroundings) -> str | None:
    moment = _moment(value, around.now)
    if moment is None:
        return f"{value!r} is no moment: give 2026-03-07, 2026-03-07T12:00 (UTC), or how long ago, as in 90m, 2h or 3d"
    setattr(search, key, moment)
    return None


def _moment(text: str, now: float) -> float | None:
    if ago := _AGO.fullmatch(text):
        return now - float(ago[1]) * _UNITS[ago[2]]
    try:
        read = dt.datetime.fromisoformat(text)
        return (read if read.tzinfo else read.replace(tzinfo=dt.UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def _read_argument(search: Search, key: str, value: str, around: Surroundings) -> str | None:
    path = key.split(".")[1:]
    if not path or not all(path):
        return f"{key!r} names no argument: as in args.user:42, args.0:42 or args.order.id:42"
    named = around.named
    search.tests.append(lambda job: _says(_inside(_arguments(job, named), path), value))
    return None


def _arguments(job: Job, named: Callable[[Job], Mapping[str, Any]]) -> Mapping[str, Any]:
    try:
        return named(job)
    except SerializationError:
        return {}


def _inside(value: Any, path: Sequence[str]) -> Any:
    """What is at the path, or None."""
    for part in path:
        if isinstance(value, dict):
            value = value.get(part)
        elif isinstance(value, list | tuple) and part.isdecimal() and int(part[:9]) < len(value):
            value = value[int(part[:9])]
        else:
            return None
    return value


def _says(value: Any, text: str) -> bool:
    """Whether a value is written so, in Python or in JSON."""
    if value is None or isinstance(value, bool):
        return text.lower() in ({None: ("none", "null"), True: ("true",), False: ("false",)}[value])
    return isinstance(value, str | int | float | dt.date) and str(value) == text


_READERS: Mapping[str, Callable[[Search, str, str, Surroundings], str | None]] = {
    "state": _read_state,
    "task": _read_task,
    "queue": _read_exactly,
    "worker": _read_exactly,
    "error": _read_exactly,
    "alike": _read_alike,
    "parent": _read_exactly,
    "id": _read_id,
    "args": _read_argument,
    "after": _read_moment,
    "before": _read_moment,
}


def arguments_by_name(job: Job, parameters: Sequence[str]) -> dict[str, Any]:
    """The job's arguments under their names, as far as `parameters` tells them, and their positions."""
    args, kwargs = decode_arguments(job)
    return {**dict(zip(parameters, args, strict=False)), **{str(n): arg for n, arg in enumerate(args)}, **kwargs}


def written(**words: str | None) -> str:
    """A search line of keys and values; what is None is left out."""
    return " ".join(f"{key}:{quoted(value)}" for key, value in words.items() if value is not None)


def quoted(value: str) -> str:
    """A value as a line holds it."""
    plain = value.replace('"', " ")
    return f'"{plain}"' if not plain or any(char.isspace() for char in plain) else plain


# Completion ------------------------------------------------------------------------------------


def complete(word: str, choices: Mapping[str, Sequence[str]], limit: int = 20) -> list[str]:
    """How the word that is being typed may go on: keys, or the values that a key may have."""
    key, colon, begun = word.partition(":")
    if not colon:
        return [f"{name}." if name == "args" else f"{name}:" for name in KEYS if name.startswith(word)]
    found = [value for value in choices.get(key, ()) if begun.lower() in value.lower()]
    found.sort(key=lambda value: not value.lower().startswith(begun.lower()))
    return [f"{key}:{quoted(value)}" for value in found[:limit]]
