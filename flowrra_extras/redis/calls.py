"""Calls of scripts: converts jobs and outcomes to arguments of scripts, and their answers to jobs and results."""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import time
import types
from typing import TYPE_CHECKING, Any, TypeVar, cast

import flowrra
from flowrra_extras.batching import Batcher
from flowrra_extras.redis.connection import Call, Link
from flowrra_extras.redis.scripts import CLAIMED_FIELDS, FIELDS, RESULT_FIELDS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence

    from flowrra_extras.redis.connection import Address

T = TypeVar("T")


class Calls(Link):
    """A link that sends calls alone or in groups."""

    def __init__(self, address: Address, status: flowrra.StoreStatus) -> None:
        super().__init__(address, status)
        self._batcher: Batcher[Call, Any] = Batcher(lambda calls: send_group(self, calls))
        self._is_joined = False  # whether a call is being sent; later calls wait for the next group

    async def run(self, call: Call) -> Any:
        """Send a call immediately, and return its answer. If cancelled, it may or may not be carried out."""
        await self.send([call])
        return _checked(call.answer)

    async def join(self, call: Call, weight: int) -> Any:
        """Send a call and return its answer. Calls during another one are sent together in one write."""
        if self._is_joined:
            return await self._batcher.put(call, weight)
        self._is_joined = True
        try:
            (answer,) = await send_group(self, [call])
        finally:
            self._is_joined = False
        return _checked(answer)

    def was_away(self, seconds: float) -> bool:
        """Whether a call had no answer from the server within the last `seconds` seconds."""
        return asyncio.get_running_loop().time() - self.failed < seconds

    async def close(self) -> None:
        """Close the link. Waiting callers get a BrokerError."""
        await super().close()
        await self._batcher.close()


def _checked(answer: Any) -> Any:
    if isinstance(answer, flowrra.BrokerError):
        raise answer
    return answer


class Claims:
    """The claims of a process, numbered in the order in which they are sent."""

    def __init__(self) -> None:
        self._latest = 0
        self.lost: dict[tuple[str, str], list[str]] = {}  # (queue, worker) -> numbers of claims without an answer

    def number(self) -> str:
        """Return the next number. It is from a clock, so that a later broker on the same store has higher numbers."""
        self._latest = max(self._latest + 1, time.monotonic_ns() // 1000)
        return str(self._latest)


class Claim(Call):
    """A claim. With `goes_on`, upkeep was done, and the claim skips the rest of it.

    The answer contains the time when the next job is due, and the jobs; or "upkeep", and the upkeep to do first.
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
        if isinstance(answer, flowrra.BrokerError) or answer[0] in ("upkeep", "lapsed"):
            self.lose()
            super().take((None, []) if answer == ["lapsed"] else answer)
        else:
            due, *rows = answer
            jobs = [_claimed_job(rows[i : i + _ROW], *self._place, self._now) for i in range(0, len(rows), _ROW)]
            super().take((float(due) if due else None, jobs))

    def lose(self) -> None:
        """Let the next claim ask for the jobs that this one may have taken."""
        self._claims.lost[self._place] = self._numbers


Attempts = set[tuple[str, int]]  # (job id, attempt number)


_JOINED = frozenset({"push", "settle", "keep_steps", "get"})  # scripts that take the arguments of several calls


async def send_group(link: Link, calls: Sequence[Call]) -> list[Any]:
    """Send calls in one write, and return their answers. Calls of a joined script become one call."""
    kinds: dict[str, list[Call]] = {}
    alone: list[Call] = []
    for call in calls:
        (kinds.setdefault(call.name, []) if call.name in _JOINED else alone).append(call)
    merged = [Call(name, *itertools.chain.from_iterable(call.words for call in group)) for name, group in kinds.items()]
    await link.send([*merged, *alone])
    for whole, group in zip(merged, kinds.values(), strict=True):
        failed = isinstance(whole.answer, flowrra.BrokerError)
        for call, answer in zip(group, itertools.repeat(whole.answer) if failed else whole.answer, strict=not failed):
            call.take(answer)
    return [call.answer for call in calls]


to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode  # raw: cjson refuses lone surrogates


async def in_turns(items: Iterable[T]) -> AsyncIterator[T]:
    """Yield the items, and let other tasks run after each thousand."""
    for number, item in enumerate(items, 1):
        yield item
        if number % 1000 == 0:
            await asyncio.sleep(0)


def _text(value: object) -> str:
    return "" if value is None else str(value)


def is_plain(job: flowrra.Job) -> bool:
    """Whether the job concerns no other job, so that a script can add it without the rules."""
    return job.unique is None and not job.parents


def _kind_of(job: flowrra.Job) -> tuple[Any, ...]:
    """Return what jobs must have in common to be pushed together."""
    labels, key = flowrra.labels_of(job), flowrra.stored_limit_key(job)
    return job.task, job.queue, job.priority, job.due, job.expires, labels, key


async def push_words(jobs: Sequence[flowrra.Job], now: float) -> list[str]:
    """Return plain jobs as the arguments of a push."""
    words = [repr(now), ""]
    runs = 0
    for (_, queue, priority, due, expires, _, limit), run in itertools.groupby(jobs, _kind_of):
        some = list(run)
        words += (
            queue,
            f"{priority + _LOWEST:016x}",
            head_of(some[0]),
            flowrra.first_status(due, now, limit),
            _text(due),
            _text(expires),
            _text(limit),
        )
        words.append(str(len(some)))
        async for job in in_turns(some):
            words += job.id, flowrra.encode_arguments(job)
        runs += 1
    words[1] = str(runs)
    return words


def head_of(job: flowrra.Job) -> str:
    """Return the name of the task and the labels of the job, as stored."""
    labels = flowrra.labels_of(job)
    return _plain_head(job.task) if labels is None else to_json([job.task, labels])


def task_index(job: flowrra.Job) -> str:
    """Return the name of the index of the job's task, as scripts do."""
    return "task:" + _plain_head(job.task).partition('",')[0][2:]


@functools.lru_cache(maxsize=4096)
def _plain_head(task: str) -> str:
    return to_json([task, None])


_LOWEST = 2**63  # added to a priority, so that the lowest priority is 0


def member_of(job: flowrra.Job) -> str:
    """Return the job's member in sorted sets: PLACE ID."""
    return f"{job.priority + _LOWEST:016x}{job.seq:013x}{job.id}"


def ready_place(job: flowrra.Job) -> str:
    """Return the place of the job in its queue, if it is ready: its PLACE, with the turn if it has one."""
    turn = f"g{job.place:013x}" if job.place else ""
    return f"{job.priority + _LOWEST:016x}{turn}{job.seq:013x}"


def limit_words(limit: flowrra.Limit) -> list[str]:
    """Return a limit as arguments of a script: its name, its text and its numbers."""
    burst = None if limit.rate is None else limit.most
    numbers = (limit.interval, burst, limit.concurrency, limit.turn)
    return [limit.name, limit.text, " ".join("-" if number is None else repr(number) for number in numbers)]


def limit_state(name: str, row: Sequence[Any]) -> flowrra.LimitKey:
    """Return the state of a limit key from an answer of the script `limit_states`."""
    text, running, pending, waiting, tat, due, paused = row
    limit = None if text is None else flowrra.Limit.from_text(text)
    due = None if due is None else float(due)
    return flowrra.LimitKey(name, limit, running, pending, waiting > 0, float(tat or 0.0), due, bool(paused))


def settle_words(
    successes: Sequence[flowrra.Outcome], now: float, retention: flowrra.BackendConfig, doubtful: Attempts
) -> list[str]:
    """Return successes as the arguments of a settle. `doubtful`: attempts that a lost call may have settled."""

    def kind_of(outcome: flowrra.Outcome) -> tuple[str, str, str]:
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


def step_words(outcomes: Sequence[flowrra.Outcome]) -> list[str]:
    """Return finished steps as the arguments of the script `keep_steps`."""
    words = [str(len(outcomes))]
    for outcome in outcomes:
        job, step = outcome.job, cast("flowrra.Step", outcome.step)
        words += job.id, f"{job.seq:013x}", str(outcome.attempt), step.name, to_json(step)
    return words


def _steps_of(values: Iterable[str]) -> tuple[flowrra.Step, ...]:
    """Return the steps of a job from the values of its hash, which come in any order."""
    placed = sorted((int(place), step) for place, _, step in (value.partition(" ") for value in values))
    return flowrra.steps_of(f"[{','.join(step for _, step in placed)}]")


def filter_text(which: flowrra.JobFilter) -> str:
    """Return the part of a filter that the server checks, as JSON. The server knows lower case of ASCII only."""
    ahead, error = which.ahead_of, which.error
    limit = None
    if ahead is not None and flowrra.awaits_limit(ahead):
        limit, ahead = flowrra.limit_key(ahead), None
    parts = {
        "ids": None if which.ids is None else list(dict.fromkeys(which.ids)),
        "status": None if which.status is None else sorted(which.status),
        "queue": ahead.queue if which.queue is None and ahead else which.queue,
        "worker": which.worker,
        "head": None if which.task is None else f"[{to_json(which.task)},",
        "ahead": None if ahead is None else ready_place(ahead),
        "limit": limit,
        "error": error.lower() if error and error.isascii() else None,
        "parent": which.parent,
        "tag": which.tag,
    }
    return to_json({name: part for name, part in parts.items() if part is not None})


def counted(state: Mapping[str, str]) -> Iterator[tuple[flowrra.TaskStatus, str, int]]:
    """Yield the status, the queue and the number of each count in the state. Suspects count as pending."""
    for name, number in state.items():
        word, _, queue = name.partition(" ")
        status = "pending" if word == "suspect" else word
        if status in _STATUSES:
            yield flowrra.TaskStatus(status), queue, int(number)


_STATUSES = frozenset(map(str, flowrra.TaskStatus))


def worker_text(worker: flowrra.WorkerInfo, now: float) -> str:
    values: list[Any] = [worker.id, worker.host, worker.pid, dict(worker.queues), list(worker.tasks), worker.started]
    return to_json([*values, now, worker.running, worker.version, worker.memory])


@functools.lru_cache(maxsize=4096)
def _head(text: str) -> tuple[str, Mapping[str, Any] | None]:
    """Return the name of the task and the labels. Few texts differ, so the answers are cached."""
    task, labels = json.loads(text)
    return task, labels


_ROW = 2 + len(CLAIMED_FIELDS)


def _claimed_job(row: Sequence[Any], queue: str, worker: str, now: float) -> flowrra.Job:
    member, attempt, head, payload, submitted, due, failures, crashes, parents, limit, steps = row
    task, labels = _head(head)
    job = flowrra.Job(member[29:], task, (), _NO_KEYWORDS, queue, int(member[:16], 16) - _LOWEST, payload)
    if labels is not None:
        flowrra.give_labels(job, labels)
    job.status = flowrra.RUNNING
    job.worker = worker
    job.submitted = float(submitted)
    job.started = max(now, job.submitted)
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
    if limit is not None:
        flowrra.give_limit_key(job, limit)
    if steps:
        job.steps = _steps_of(steps)
    return job


_NO_KEYWORDS: Mapping[str, Any] = types.MappingProxyType({})


_READ: Mapping[str, Callable[[str], Any]] = {
    **dict.fromkeys(("due", "expires", "submitted", "started", "finished", "purge_at"), float),
    **dict.fromkeys(("attempt", "failures", "crashes", "waits", "turn"), int),
    "status": flowrra.TaskStatus,
    "parents": lambda text: tuple(json.loads(text)),
    "progress": lambda text: flowrra.Progress(*json.loads(text)),
    "result": flowrra.decode,
    "head": _head,
}


def _read(name: str, text: str | None) -> Any:
    return text if text is None or name not in _READ else _READ[name](text)


_NAMES = {short: name for name, short in FIELDS.items()}


def job_of(task_id: str, pairs: Sequence[str], history: Sequence[str] = (), steps: Sequence[str] = ()) -> flowrra.Job:
    """Return the job of a hash. Most fields have the names of `Job`."""
    names = (_NAMES[short] for short in pairs[::2])
    values = {name: _read(name, text) for name, text in zip(names, pairs[1::2], strict=True)}
    task, labels = values.pop("head")
    place = values.pop("place")
    is_to_end = values.pop("cancel", None) is not None
    limit, turn = values.pop("limit", None), values.pop("turn", 0)
    for name in ("children", "claim", "rev"):
        values.pop(name, None)
    attempts = tuple(flowrra.Attempt(*json.loads(entry)) for entry in history)
    job = flowrra.Job(
        task_id, task, priority=int(place[:16], 16) - _LOWEST, seq=int(place[16:], 16), history=attempts,
        cancel_requested=is_to_end, steps=_steps_of(steps), **values,
    )  # fmt: skip
    job.place = turn
    flowrra.give_limit_key(job, limit)
    flowrra.give_labels(job, labels or {})
    return job


def results_of_rows(task_ids: Sequence[str], rows: Sequence[Any]) -> list[flowrra.TaskResult[Any] | None]:
    """Return the results of rows of RESULT_FIELDS, which are in the order of TaskResult's fields; None for no row."""
    return [_result_of_row(task_id, row) if row else None for task_id, row in zip(task_ids, rows, strict=True)]


def _result_of_row(task_id: str, row: Sequence[Any]) -> flowrra.TaskResult[Any]:
    (task, _), status, result, error, traceback, attempts, *rest = map(_read, RESULT_FIELDS, row)
    return flowrra.TaskResult(task_id, task, status, result, error, traceback, attempts or 0, *rest)
