"""The search line of the jobs page: `state:failed task:send queue:mail args.user:42 after:2h timeout`.

A line becomes a filter for the store, as far as the store can tell, and tests for the rest. `find_jobs` looks through
a store of any size within a given time.
"""

import dataclasses
import datetime as dt
import hashlib
import math
import re
import time
import urllib.parse
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from flowrra import Broker, ConfigError, Job, JobFilter, SerializationError, TaskStatus, decode_arguments

KEYS = (
    *("state", "task", "queue", "tag", "worker", "error", "alike", "parent", "id", "unique", "limit", "key", "args"),
    *("after", "before", "since", "until"),
)
LINE_LIMIT = 4_000  # characters: as many as a hundred ids have
_UNITS: Mapping[str, float] = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0, "w": 604_800.0}
# A word ends at white space, but for what stands in quotation marks.
_WORD = re.compile(r'(?:[^\s"]|"[^"]*(?:"|$))+')
_AGO = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)([smhdw])")


@dataclass(slots=True)
class Search:
    """The parsed search. `after` and `before` bound the submission, `since` and `until` the latest change of state.

    These are seconds since the epoch. `tests` must all hold of a job.
    `problems` are the words that cannot be understood, each with the reason.
    """

    which: JobFilter = field(default_factory=JobFilter)
    tests: list[Callable[[Job], bool]] = field(default_factory=list)
    after: float | None = None
    before: float | None = None
    since: float | None = None
    until: float | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def is_for_the_store(self) -> bool:
        """Whether the store alone can tell which jobs these are."""
        return not self.tests and {self.after, self.before, self.since, self.until} == {None}

    def matches(self, job: Job) -> bool:
        """Whether a job that the store has found is one of them."""
        return (
            (self.after is None or job.submitted >= self.after)
            and (self.before is None or job.submitted < self.before)
            and (self.since is None or changed(job) >= self.since)
            and (self.until is None or changed(job) <= self.until)
            and all(test(job) for test in self.tests)
        )


def changed(job: Job) -> float:
    """When the job came into its state: by its submission, the start or the end of an attempt, or an action."""
    moments = [job.submitted, job.started, job.finished, job.due if job.status is TaskStatus.PENDING else None]
    moments += [attempt.ended or attempt.started for attempt in job.history]
    return max(filter(None, moments), default=0.0)


@dataclass(slots=True, frozen=True)
class Surroundings:
    """The context in which a line is parsed.

    `named` gives the arguments of a job by name and position, and nothing for a job whose arguments are hidden.
    """

    now: float
    tasks: Sequence[str]
    named: Callable[[Job], Mapping[str, Any]]


def parse(line: str, around: Surroundings) -> Search:
    search = Search()
    if len(line) > LINE_LIMIT:
        search.problems.append(f"the search has {len(line)} characters; at most {LINE_LIMIT} are allowed")
        return search
    if "\0" in line:
        search.problems.append("the search contains a NUL character")
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
            search.problems.append(f"{word!r} has no value after the colon")
        else:
            try:
                read(search, key, value, around)
            except ConfigError as error:
                search.problems.append(str(error))
    return search


def words_in(line: str) -> list[str]:
    """The words of a line, as they stand there."""
    return _WORD.findall(line)


def _holds(word: str) -> Callable[[Job], bool]:
    """A bare word: part of the id, the task or the error."""
    wanted = word.lower()
    return lambda job: wanted in job.id.lower() or wanted in job.task.lower() or wanted in (job.error or "").lower()


# One reader a key: puts the word into the search, or raises a ConfigError -------------------------


def _read_state(search: Search, key: str, value: str, around: Surroundings) -> None:
    try:
        search.which.status = frozenset(TaskStatus(name) for name in value.lower().split(","))
    except ValueError:
        raise ConfigError(f"{value!r} is not a state; use one of {', '.join(TaskStatus)}") from None


def _read_task(search: Search, key: str, value: str, around: Surroundings) -> None:
    search.which.task = task_named(value, around.tasks)


def task_named(text: str, tasks: Sequence[str]) -> str:
    """The task of that name, or the only one whose last parts are that; else the text as it is."""
    if text in tasks:
        return text
    alike = [name for name in tasks if name.endswith(f".{text}")]
    return alike[0] if len(alike) == 1 else text


def _read_alike(search: Search, key: str, value: str, around: Surroundings) -> None:
    search.tests.append(lambda job: failure_key(job) == value)


def _read_exactly(search: Search, key: str, value: str, around: Surroundings) -> None:
    """A key that the store's filter has under the same name."""
    setattr(search.which, key, value)


def _read_id(search: Search, key: str, value: str, around: Surroundings) -> None:
    search.which.ids = value.split(",")[:100]


def _read_moment(search: Search, key: str, value: str, around: Surroundings) -> None:
    moment = _moment(value, around.now)
    # All words must hold: of two for one key, the narrower.
    narrower, known = max if key in ("after", "since") else min, getattr(search, key)
    setattr(search, key, moment if known is None else narrower(known, moment))


def _moment(text: str, now: float) -> float:
    if ago := _AGO.fullmatch(text):
        return now - float(ago[1]) * _UNITS[ago[2]]
    try:
        read = dt.datetime.fromisoformat(text)
        return (read if read.tzinfo else read.replace(tzinfo=dt.UTC)).timestamp()
    except (ValueError, OverflowError):
        form = "2026-03-07, 2026-03-07T12:00 (UTC), or an age such as 90m, 2h or 3d"
        raise ConfigError(f"{text!r} is not a time; use {form}") from None


def _read_equal(search: Search, key: str, value: str, around: Surroundings) -> None:
    """A field of the job under the same name, for which the store's filter has none."""
    search.tests.append(lambda job: getattr(job, key) == value)


def _read_argument(search: Search, key: str, value: str, around: Surroundings) -> None:
    path = key.split(".")[1:]
    if not path or not all(path):
        raise ConfigError(f"{key!r} names no argument; use args.user:42, args.0:42 or args.order.id:42")
    named = around.named
    search.tests.append(lambda job: _says(_inside(_arguments(job, named), path), value))


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
    """Whether the text is the value, as Python or as JSON."""
    if value is None or isinstance(value, bool):
        return text.lower() in ({None: ("none", "null"), True: ("true",), False: ("false",)}[value])
    return isinstance(value, str | int | float | dt.date) and str(value) == text


_READERS: Mapping[str, Callable[[Search, str, str, Surroundings], None]] = {
    "state": _read_state,
    "task": _read_task,
    "queue": _read_exactly,
    "tag": _read_exactly,
    "worker": _read_exactly,
    "error": _read_exactly,
    "alike": _read_alike,
    "parent": _read_exactly,
    "id": _read_id,
    **dict.fromkeys(("unique", "limit", "key"), _read_equal),
    "args": _read_argument,
    **dict.fromkeys(("after", "before", "since", "until"), _read_moment),
}


def arguments_by_name(job: Job, parameters: Sequence[str]) -> dict[str, Any]:
    """The job's arguments under their names, as far as `parameters` tells them, and their positions."""
    args, kwargs = decode_arguments(job)
    return {**dict(zip(parameters, args, strict=False)), **{str(n): arg for n, arg in enumerate(args)}, **kwargs}


def written(line: str = "", /, **words: str | None) -> str:
    """A search line, with keys and values; what is None is left out."""
    return " ".join([*words_in(line), *(f"{key}:{quoted(value)}" for key, value in words.items() if value is not None)])


# Words whose match never changes for a job, so it stays the same during an action.
_LASTING = frozenset(("task", "queue", "tag", "parent", "id", "unique", "limit", "key", "args", "after", "before"))


def lasting(line: str) -> str:
    """The line with these words alone."""
    return " ".join(word for word in words_in(line) if word.partition(":")[0].partition(".")[0] in _LASTING)


def as_of(line: str, moment: str) -> str:
    """The line that matches only the jobs of `moment`, not jobs that are submitted or change later."""
    is_lasting = words_in(lasting(line)) == words_in(line)
    return written(line, **{"before" if is_lasting else "until": moment})


def search_path(line: str = "", **words: str | None) -> str:
    """Where the jobs are listed that a search line, or one of these words, asks for."""
    return f"/jobs?{urllib.parse.urlencode({'search': written(line, **words)})}"


def quoted(value: str) -> str:
    """A value as a line holds it."""
    plain = value.replace('"', " ")
    return f'"{plain}"' if not plain or any(char.isspace() for char in plain) else plain


# Completion ------------------------------------------------------------------------------------

_COMPLETIONS = 20  # values that are offered


def complete(word: str, choices: Mapping[str, Sequence[str]]) -> list[str]:
    """How the word that is being typed may go on: keys, or the values that a key may have."""
    key, colon, begun = word.partition(":")
    if not colon:
        return [f"{name}." if name == "args" else f"{name}:" for name in KEYS if name.startswith(word)]
    found = [value for value in choices.get(key, ()) if begun.lower() in value.lower()]
    found.sort(key=lambda value: not value.lower().startswith(begun.lower()))
    return [f"{key}:{quoted(value)}" for value in found[:_COMPLETIONS]]


# The plain controls of the page: each stands for a word of the line -----------------------------

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


# Failures of one kind: the same task and, but for the numbers in it, the same error --------------

# What differs from one job to the next: identifiers, addresses, numbers.
_VARYING = re.compile(r"0x[0-9a-f]+|\b[0-9a-f]{8,}(?:-[0-9a-f]{4,}){0,4}\b|\d+(?:\.\d+)?", re.IGNORECASE)
_COMPARED = 500  # characters


def error_pattern(error: str | None) -> str:
    """The error without what differs from job to job."""
    return _VARYING.sub("#", (error or "")[:_COMPARED].partition("\n")[0])


def failure_key(job: Job) -> str:
    """What the failures of a group have in common, in a few characters."""
    return hashlib.sha256(f"{job.task}\n{error_pattern(job.error)}".encode()).hexdigest()[:10]


def failure_search(job: Job) -> str:
    """The search line that lists the failures of the job's group."""
    return written(state="failed", task=job.task, alike=failure_key(job))


# Looking through a store, a stretch after another ------------------------------------------------

SECONDS = 0.015  # that a page gives to a search which has found something
PATIENCE = 0.3  # seconds that a page gives to one which has found nothing yet
_STRETCH = 4_096  # numbers of submissions that are looked through at first; more if that was quick
_BATCH = 200  # jobs that are read at once to be tested
_CLOSE = 256  # jobs among which a moment need not be found more exactly


class Found(NamedTuple):
    """Jobs, the latest first. `after` goes on from there; None where nothing is left.

    `searched_to` is the moment back to which was looked when the time was up.
    """

    jobs: list[Job]
    after: int | None = None
    searched_to: float | None = None


class _Until(NamedTuple):
    """When a search ends, on the monotonic clock."""

    found: float  # where it has found something
    nothing: float  # where it has not


async def find_jobs(
    broker: Broker,
    wanted: Search,
    *,
    limit: int,
    after: int | None = None,
    seconds: float | None = None,
    patience: float | None = None,
) -> Found:
    """Up to `limit` of the jobs that are wanted, behind the position `after`.

    The search ends after `seconds`, or, if it has found nothing, after `patience` (None: the values for a page).
    """
    begin = time.monotonic()
    found, nothing = SECONDS if seconds is None else seconds, PATIENCE if patience is None else patience
    until = _Until(begin + found, begin + max(found, nothing))
    newest = await broker.find(JobFilter(), limit=1, after=after)
    if not newest or wanted.problems:
        return Found([])
    top, floor = newest[0].seq + 1, 0
    ends = [wanted.before, None if wanted.until is None else math.nextafter(wanted.until, math.inf)]
    if known := [end for end in ends if end is not None]:
        top = (await _around(broker, min(known), top))[1]
    if wanted.after is not None:
        floor = (await _around(broker, wanted.after, top))[0]
    return await _look_through(broker, wanted, limit, top, floor, until)


async def _around(broker: Broker, moment: float, top: int) -> tuple[int, int]:
    """Two positions below `top` with the first job since `moment` between them, by halving.

    Jobs are numbered as they come in, so that their moments grow with their numbers.
    """
    low, high = 0, top
    while high - low > _CLOSE:
        middle = (low + high) // 2
        found = await broker.find(JobFilter(), limit=1, after=middle)
        if found and found[0].submitted >= moment:
            high = found[0].seq
        else:
            low = middle
    return low, high


async def _look_through(broker: Broker, wanted: Search, limit: int, top: int, floor: int, until: _Until) -> Found:
    jobs: list[Job] = []
    batch = limit + 1 if wanted.is_for_the_store else _BATCH
    stretch = _STRETCH
    while top > floor:
        begin = time.monotonic()
        which = dataclasses.replace(wanted.which, from_seq=max(floor, top - stretch))
        read = await broker.find(which, limit=batch, after=top)
        for job in filter(wanted.matches, read):
            if len(jobs) == limit:
                return Found(jobs, jobs[-1].seq)
            jobs.append(job)
        top = read[-1].seq if len(read) == batch else max(floor, top - stretch)
        now, deadline = time.monotonic(), until.found if jobs else until.nothing
        if now >= deadline:
            return await _out_of_time(broker, jobs, top, floor)
        if now - begin < (deadline - now) / 8:
            stretch *= 4
    return Found(jobs)


async def _out_of_time(broker: Broker, jobs: list[Job], top: int, floor: int) -> Found:
    """What was found; it goes on from `top`, unless there is nothing behind it."""
    behind = await broker.find(JobFilter(from_seq=floor), limit=1, after=top)
    return Found(jobs, top, behind[0].submitted) if behind else Found(jobs)
