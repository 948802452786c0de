"""Calls of scripts: jobs and outcomes as their words, what they answer as jobs and results."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import json
import time
import types
from typing import TYPE_CHECKING, Any, TypeVar

from flowrra import (
    RUNNING,
    Attempt,
    BackendConfig,
    BrokerError,
    Job,
    JobFilter,
    Outcome,
    Progress,
    TaskResult,
    TaskStatus,
    WorkerInfo,
    decode,
    encode_arguments,
    first_status,
)
from flowrra_extras.batching import Batcher
from flowrra_extras.redis.scripts import CLAIMED_FIELDS, RESULT_FIELDS
from flowrra_extras.redis.wire import Call

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence

    from flowrra_extras.redis.wire import Link

T = TypeVar("T")


class Calls:
    """Carries calls out over a link, at once or in groups."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._batcher: Batcher[Call, Any] = Batcher(lambda calls: send_group(link, calls))
        self._is_joined = False  # a call is under way, and who comes now goes with the next group

    async def run(self, call: Call) -> Any:
        """The answer of a call that goes out at once. Cancelling leaves it open whether it is carried out."""
        await self._link.send([call])
        return _checked(call.answer)

    async def join(self, call: Call, weight: int) -> Any:
        """The same; with those that come while it is under way, it goes out in one write."""
        if self._is_joined:
            return await self._batcher.put(call, weight)
        self._is_joined = True
        try:
            (answer,) = await send_group(self._link, [call])
        finally:
            self._is_joined = False
        return _checked(answer)

    def was_away(self, seconds: float) -> bool:
        """Whether the server has left a call without an answer in the last so many seconds."""
        return asyncio.get_running_loop().time() - self._link.failed < seconds

    def abandon(self) -> None:
        """Give up the connection of a loop that has ended without closing it."""
        with contextlib.suppress(RuntimeError):  # the loop was closed
            self._link.close()

    async def close(self) -> None:
        """Close the link. Those who wait get a BrokerError."""
        self._link.close()
        await self._batcher.close()


def _checked(answer: Any) -> Any:
    if isinstance(answer, BrokerError):
        raise answer
    return answer


class Claims:
    """The claims of a process, numbered in the order in which they go out."""

    def __init__(self) -> None:
        self._latest = 0
        self.lost: dict[tuple[str, str], list[str]] = {}  # queue and worker > numbers of claims without answer

    def number(self) -> str:
        """The next one. A clock, so that another broker on the same store, made later, goes on above it."""
        self._latest = max(self._latest + 1, time.monotonic_ns() // 1000)
        return str(self._latest)


class Claim(Call):
    """`goes_on`: upkeep has been done, and what is left of it is passed by.

    The answer is when the next job is due, and the jobs; or `upkeep` and what is to be done before.
    """

    def __init__(
        self, claims: Claims, queue: str, limit: int, worker: str, now: float, crashes: int, *, goes_on: bool = False
    ) -> None:
        self._claims = claims
        self._place = queue, worker
        self._now = now
        self._numbers = [claims.number(), *claims.lost.pop(self._place, ())]
        flags = str(crashes), str(int(goes_on))
        super().__init__("claim", queue, str(limit), worker, repr(now), *flags, *self._numbers)

    def take(self, answer: Any) -> None:
        if isinstance(answer, BrokerError) or answer[0] == "upkeep":
            self.lose()
            super().take(answer)
        else:
            due, *rows = answer
            jobs = [_claimed_job(rows[i : i + _ROW], *self._place, self._now) for i in range(0, len(rows), _ROW)]
            super().take((float(due) if due else None, jobs))

    def lose(self) -> None:
        """Have the next claim ask for what this one may have taken."""
        self._claims.lost[self._place] = self._numbers


Attempts = set[tuple[str, int]]  # ids and numbers


_JOINED = frozenset({"push", "settle", "get"})  # scripts that take the words of several calls


async def send_group(link: Link, calls: Sequence[Call]) -> list[Any]:
    """Send calls in one write, some of one script as one call that has an answer for each; return the answers."""
    kinds: dict[str, list[Call]] = {}
    alone: list[Call] = []
    for call in calls:
        (kinds.setdefault(call.name, []) if call.name in _JOINED else alone).append(call)
    merged = [Call(name, *itertools.chain.from_iterable(call.words for call in group)) for name, group in kinds.items()]
    await link.send([*merged, *alone])
    for whole, group in zip(merged, kinds.values(), strict=True):
        failed = isinstance(whole.answer, BrokerError)
        for call, answer in zip(group, itertools.repeat(whole.answer) if failed else whole.answer, strict=not failed):
            call.take(answer)
    return [call.answer for call in calls]


to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode  # raw: cjson refuses lone surrogates


async def in_turns(items: Sequence[T]) -> AsyncIterator[T]:
    """The items, while others have the loop now and then."""
    for number, item in enumerate(items, 1):
        yield item
        if number % 1000 == 0:
            await asyncio.sleep(0)


def _text(value: object) -> str:
    return "" if value is None else str(value)


def is_plain(job: Job) -> bool:
    """Whether it concerns no other job, so that a script takes it in as it is."""
    return job.unique is None and not job.parents


def _kind_of(job: Job) -> tuple[Any, ...]:
    """What jobs that can go in together have in common."""
    return job.task, job.queue, job.priority, job.due, job.expires, job.overrides


async def push_words(jobs: Sequence[Job], now: float) -> list[str]:
    """Plain jobs as the words of a push."""
    words = [repr(now), ""]
    runs = 0
    for (_, queue, priority, due, expires, _), run in itertools.groupby(jobs, _kind_of):
        some = list(run)
        words += (
            queue,
            f"{priority + _LOWEST:016x}",
            head_of(some[0]),
            first_status(due, now),
            _text(due),
            _text(expires),
        )
        words.append(str(len(some)))
        async for job in in_turns(some):
            words += job.id, encode_arguments(job)
        runs += 1
    words[1] = str(runs)
    return words


def head_of(job: Job) -> str:
    """The task and the options that this job has of its own."""
    return to_json([job.task, dict(job.overrides)]) if job.overrides else _plain_head(job.task)


@functools.lru_cache(maxsize=4096)
def _plain_head(task: str) -> str:
    return to_json([task, None])


_LOWEST = 2**63  # added to a priority, so that the lowest one is 0


def member_of(job: Job) -> str:
    """The job as it stands in its queue: PLACE ID."""
    return f"{job.priority + _LOWEST:016x}{job.seq:013x}{job.id}"


def settle_words(successes: Sequence[Outcome], now: float, retention: BackendConfig, doubtful: Attempts) -> list[str]:
    """Successes as the words of a settle. `doubtful`: attempts that a call may have settled whose answer was lost."""

    def kind_of(outcome: Outcome) -> tuple[str, str, str]:
        kept = retention.result_ttl if outcome.keep is None else outcome.keep
        again = "1" if doubtful and (outcome.job.id, outcome.attempt) in doubtful else "0"
        return _text(outcome.job.worker), repr(now + kept), again

    words: list[str] = []
    runs = 0
    for kind, run in itertools.groupby(successes, kind_of):
        words += *kind, ""
        at = len(words)
        for outcome in run:
            words += outcome.job.id, f"{outcome.job.seq:013x}", str(outcome.attempt), outcome.text or ""
        words[at - 1] = str((len(words) - at) // 4)
        runs += 1
    return [repr(now), str(runs), *words]


def filter_text(which: JobFilter) -> str:
    """As much of a filter as the server can judge; lower case is more than ASCII only here."""
    ahead, error = which.ahead_of, which.error
    parts = {
        "ids": None if which.ids is None else list(dict.fromkeys(which.ids)),
        "status": None if which.status is None else sorted(which.status),
        "queue": ahead.queue if which.queue is None and ahead else which.queue,
        "worker": which.worker,
        "head": None if which.task is None else f"[{to_json(which.task)},",
        "ahead": None if ahead is None else member_of(ahead)[:29],
        "error": error.lower() if error and error.isascii() else None,
        "parent": which.parent,
    }
    return to_json({name: part for name, part in parts.items() if part is not None})


def counted(state: Mapping[str, str]) -> Iterator[tuple[TaskStatus, str, int]]:
    """The status, the queue and the number in each count of the state; a suspect is pending."""
    for name, number in state.items():
        word, _, queue = name.partition(" ")
        status = "pending" if word == "suspect" else word
        if status in _STATUSES:
            yield TaskStatus(status), queue, int(number)


_STATUSES = frozenset(map(str, TaskStatus))


def worker_text(worker: WorkerInfo, now: float) -> str:
    values: list[Any] = [worker.id, worker.host, worker.pid, dict(worker.queues), list(worker.tasks), worker.started]
    return to_json([*values, now, worker.running, worker.version, worker.memory])


@functools.lru_cache(maxsize=4096)
def _head(text: str) -> tuple[str, Mapping[str, Any] | None]:
    """The name of the task and the overridden options; few differ, so that reading them once is enough."""
    task, overrides = json.loads(text)
    return task, overrides


_ROW = 1 + len(CLAIMED_FIELDS)


def _claimed_job(row: Sequence[Any], queue: str, worker: str, now: float) -> Job:
    member, attempt, head, payload, submitted, due, failures, crashes, parents = row
    task, overrides = _head(head)
    job = Job(member[29:], task, (), _NO_KEYWORDS, queue, int(member[:16], 16) - _LOWEST, payload)
    job.overrides = overrides
    job.status = RUNNING
    job.worker = worker
    job.started = now
    job.submitted = float(submitted)
    job.seq = int(member[16:29], 16)
    job.attempt = int(attempt)
    if due is not None:
        job.due = float(due)
    if failures is not None:
        job.failures = int(failures)
    if crashes is not None:
        job.crashes = int(crashes)
    if parents is not None:
        job.parents = tuple(json.loads(parents))
    return job


_NO_KEYWORDS: Mapping[str, Any] = types.MappingProxyType({})


_READ: Mapping[str, Callable[[str], Any]] = {
    **dict.fromkeys(("due", "expires", "submitted", "started", "finished", "purge_at"), float),
    **dict.fromkeys(("attempt", "failures", "crashes", "waits"), int),
    "status": TaskStatus,
    "parents": lambda text: tuple(json.loads(text)),
    "progress": lambda text: Progress(*json.loads(text)),
    "result": decode,
    "head": _head,
}


def _read(name: str, text: str | None) -> Any:
    return text if text is None or name not in _READ else _READ[name](text)


def job_of(task_id: str, pairs: Sequence[str], history: Sequence[str]) -> Job:
    """A job from its hash. Its fields are those of `Job`, but for a few."""
    values = {name: _read(name, text) for name, text in zip(pairs[::2], pairs[1::2], strict=True)}
    task, overrides = values.pop("head")
    place = values.pop("place")
    is_to_end = values.pop("cancel", None) is not None
    for name in ("children", "claim", "rev", "requeued"):
        values.pop(name, None)
    attempts = tuple(Attempt(*json.loads(entry)) for entry in history)
    return Job(
        task_id, task, priority=int(place[:16], 16) - _LOWEST, seq=int(place[16:], 16), overrides=overrides,
        history=attempts, cancel_requested=is_to_end, **values,
    )  # fmt: skip


def result_of_row(task_id: str, row: Sequence[Any]) -> TaskResult[Any]:
    """A result from the values of RESULT_FIELDS, which are in the order of its own."""
    (task, _), status, result, error, traceback, attempts, *rest = map(_read, RESULT_FIELDS, row)
    return TaskResult(task_id, task, status, result, error, traceback, attempts or 0, *rest)
