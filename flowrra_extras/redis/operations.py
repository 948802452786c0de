"""Jobs and outcomes as arguments of scripts, and answers as jobs and results."""

from __future__ import annotations

import functools
import itertools
import json
import types
from typing import TYPE_CHECKING, Any

from flowrra import (
    NO_ARGUMENTS,
    RUNNING,
    SUCCESS,
    Attempt,
    BackendConfig,
    Job,
    Outcome,
    Progress,
    TaskResult,
    TaskStatus,
    WorkerInfo,
    decode,
    encode,
    encode_arguments,
    encode_value,
)
from flowrra_extras.redis.wire import Call

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from flowrra_extras.redis.wire import Link


class Hands:
    """What the workers of this process hold, so that a claim or a settle whose answer was lost can be mended."""

    def __init__(self) -> None:
        self._held: dict[str, dict[str, int]] = {}  # worker > id > attempt
        self._numbers: dict[str, int] = {}
        self._doubtful: set[str] = set()  # workers that may hold more than they know of
        self._open: set[tuple[str, int]] = set()  # attempts that may be settled already

    def show(self, worker: str) -> tuple[str, str]:
        """The last two arguments of a claim."""
        if worker in self._doubtful:
            self._doubtful.discard(worker)
            self._numbers[worker] = self._numbers.get(worker, 0) + 1
            return str(self._numbers[worker]), to_json(self._held.get(worker, {}))
        return str(self._numbers.get(worker, 0)), "false"

    def take(self, worker: str, jobs: Sequence[Job]) -> None:
        held = self._held.setdefault(worker, {})
        for job in jobs:
            held[job.id] = job.attempt

    def doubt(self, worker: str) -> None:
        """A claim of this worker has failed, and may have been carried out."""
        self._doubtful.add(worker)

    def is_open(self, outcome: Outcome) -> bool:
        """Whether this outcome may have been written by a call whose answer was lost."""
        return bool(self._open) and (outcome.job.id, outcome.attempt) in self._open

    def settle(self, outcomes: Sequence[Outcome], *, failed: bool) -> None:
        for outcome in outcomes:
            key = (outcome.job.id, outcome.attempt)
            if failed:
                self._open.add(key)
                continue
            if self._open:
                self._open.discard(key)
            if outcome.job.worker is not None:
                self._held.get(outcome.job.worker, {}).pop(outcome.job.id, None)


class Operation:
    """What a caller wants of a script. Those of one `merges` script that meet go out as one call."""

    __slots__ = ("answer", "arguments", "is_repeatable", "merges", "name")

    def __init__(self, name: str, *arguments: str, merges: bool = False, is_repeatable: bool = True) -> None:
        self.name = name
        self.arguments: Sequence[str] = arguments
        self.merges = merges
        self.is_repeatable = is_repeatable
        self.answer: Any = None

    def pack(self) -> Sequence[str]:
        """The arguments. Asked for when the call goes out."""
        return self.arguments

    def take(self, answer: Any) -> None:
        """Note the answer, an exception if it failed, before the next group goes out."""
        self.answer = answer


class Claim(Operation):
    __slots__ = ("_hands", "_now", "_queue", "_worker")

    def __init__(self, hands: Hands, queue: str, limit: int, worker: str, now: float, bury_at: float) -> None:
        super().__init__("claim", queue, str(limit), worker, repr(now), repr(bury_at), is_repeatable=False)
        self._hands = hands
        self._queue = queue
        self._worker = worker
        self._now = now

    def pack(self) -> Sequence[str]:
        return (*self.arguments, *self._hands.show(self._worker))

    def take(self, answer: Any) -> None:
        if isinstance(answer, BaseException):
            self._hands.doubt(self._worker)
            self.answer = answer
            return
        due, *rows = answer
        jobs = [_claimed_job(rows, i, self._queue, self._worker, self._now) for i in range(0, len(rows), 8)]
        self._hands.take(self._worker, jobs)
        self.answer = float(due) if due else None, jobs


class Settle(Operation):
    __slots__ = ("_hands", "_order", "_outcomes")

    def __init__(self, hands: Hands, outcomes: Sequence[Outcome], now: float, retention: BackendConfig) -> None:
        text, self._order = _settle_argument(outcomes, now, retention, hands)
        super().__init__("settle", text, merges=True, is_repeatable=False)
        self._hands = hands
        self._outcomes = outcomes

    def take(self, answer: Any) -> None:
        failed = isinstance(answer, BaseException)
        self._hands.settle(self._outcomes, failed=failed)
        if failed:
            self.answer = answer
            return
        written = [False] * len(self._order)
        for index, flag in zip(self._order, answer, strict=True):
            written[index] = flag == "1"
        self.answer = written


async def send_group(link: Link, operations: Sequence[Operation]) -> list[Any]:
    """Send a group in one write, what merges as one call, and return the answers."""
    merged: dict[str, list[Operation]] = {}
    for number, operation in enumerate(operations):
        merged.setdefault(operation.name if operation.merges else str(number), []).append(operation)
    calls = []
    for kin in merged.values():
        arguments = itertools.chain.from_iterable(operation.pack() for operation in kin)
        calls.append(Call(kin[0].name, arguments, is_repeatable=kin[0].is_repeatable))
    await link.send(calls)
    for call, kin in zip(calls, merged.values(), strict=True):
        answers: Sequence[Any] = [call.answer] * len(kin)
        if kin[0].merges and not isinstance(call.answer, BaseException):
            answers = call.answer
        for operation, answer in zip(kin, answers, strict=True):
            operation.take(answer)
    return [operation.answer for operation in operations]


to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode  # raw: cjson refuses lone surrogates


def kind_of(job: Job) -> tuple[Any, ...]:
    """What jobs that can go in together have in common. One that needs care of its own is alone."""
    alone = job.id if job.unique is not None or job.parents else None
    return job.task, job.queue, job.priority, job.due, job.expires, job.overrides, job.unique, job.parents, alone


def run_argument(kind: tuple[Any, ...], jobs: Sequence[Job]) -> str:
    task, queue, priority, due, expires, overrides, unique, parents, _ = kind
    texts = itertools.chain.from_iterable((job.id, encode_arguments(job)) for job in jobs)
    return to_json([
        queue, f"{priority + _LOWEST:016x}", _plain_head(task) if not overrides else to_json([task, dict(overrides)]),
        False if due is None else repr(due), False if expires is None else repr(expires),
        False if unique is None else unique, list(dict.fromkeys(parents)) or False, list(texts),
    ])  # fmt: skip


@functools.lru_cache(maxsize=4096)
def _plain_head(task: str) -> str:
    return to_json([task, None])


_LOWEST = 2**63  # added to a priority, so that the lowest one is 0


def member_of(job: Job) -> str:
    """The job as it stands in its queue: PLACE ID."""
    return f"{job.priority + _LOWEST:016x}{job.seq:013x}{job.id}"


def outside_parents(jobs: Sequence[Job]) -> list[list[str]]:
    """Of each job with parents that are not among the jobs before it: its id, then those."""
    before: set[str] = set()
    needs = []
    for job in jobs:
        outside = [parent for parent in job.parents if parent not in before]
        if outside:
            needs.append([job.id, *outside])
        before.add(job.id)
    return needs


def parts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _settle_argument(
    outcomes: Sequence[Outcome], now: float, retention: BackendConfig, hands: Hands
) -> tuple[str, list[int]]:
    """The argument of a settle, and which outcome each flag of the answer is for."""
    successes: dict[tuple[Any, ...], tuple[list[Any], list[int]]] = {}
    others: list[tuple[list[Any], int]] = []
    bury_at = repr(now + retention.failed_ttl)
    for index, outcome in enumerate(outcomes):
        job, again = outcome.job, hands.is_open(outcome)
        if outcome.status is SUCCESS:
            rest, order = successes.setdefault((job.worker, outcome.keep, again), ([], []))
            rest += (job.id, outcome.attempt, encode_value(outcome) if outcome.text is None else outcome.text)
            order.append(index)
        else:
            keep = retention.failed_ttl if outcome.keep is None else outcome.keep
            due = False if outcome.due is None else repr(outcome.due)
            rest = [job.id, outcome.attempt, outcome.error or False, outcome.traceback or False, due, outcome.ending]
            others.append(([job.worker, outcome.status, repr(now), bury_at, repr(now + keep), again, rest], index))
    groups = []
    for (worker, keep, again), (rest, _) in successes.items():
        purge_at = now + (retention.result_ttl if keep is None else keep)
        groups.append([worker, SUCCESS, repr(now), bury_at, repr(purge_at), again, rest])
    order = [index for _, indices in successes.values() for index in indices]
    return to_json([*groups, *(group for group, _ in others)]), order + [index for _, index in others]


def recorded_fields(result: TaskResult[Any]) -> list[str]:
    """A result from elsewhere as the fields of a job."""
    values = {
        "head": to_json([result.task, None]), "payload": NO_ARGUMENTS, "status": result.status,
        "submitted": repr(result.submitted), "attempt": str(result.attempts),
        "started": None if result.started is None else repr(result.started),
        "finished": repr(result.finished or 0.0), "error": result.error, "traceback": result.traceback,
        "result": encode(result.result) if result.is_success else None,
    }  # fmt: skip
    return [text for name, value in values.items() if value is not None for text in (name, str(value))]


def worker_text(worker: WorkerInfo, now: float) -> str:
    values: list[Any] = [worker.id, worker.host, worker.pid, dict(worker.queues), list(worker.tasks), worker.started]
    return to_json([*values, now, worker.running, worker.version])


@functools.lru_cache(maxsize=4096)
def _head(text: str) -> tuple[str, Mapping[str, Any] | None]:
    """The name of the task and the overridden options; few differ, so that reading them once is enough."""
    task, overrides = json.loads(text)
    return task, overrides


def _claimed_job(rows: Sequence[Any], at: int, queue: str, worker: str, now: float) -> Job:
    member, head, payload, submitted, attempt, failures, crashes, parents = rows[at : at + 8]
    task, overrides = _head(head)
    job = Job(member[29:], task, (), _NO_KEYWORDS, queue, int(member[:16], 16) - _LOWEST, payload)
    job.overrides = overrides
    job.status = RUNNING
    job.worker = worker
    job.started = now
    job.submitted = float(submitted)
    job.seq = int(member[16:29], 16)
    job.attempt = int(attempt)
    job.failures = int(failures)
    job.crashes = int(crashes)
    if parents is not None:
        job.parents = tuple(json.loads(parents))
    return job


_NO_KEYWORDS: Mapping[str, Any] = types.MappingProxyType({})


def job_of(task_id: str, pairs: Sequence[str], history: Sequence[str]) -> Job:
    """A job from its hash. Its fields are those of `Job`, but for `head` and `place`."""
    values: dict[str, Any] = dict(zip(pairs[::2], pairs[1::2], strict=True))
    task, overrides = _head(values.pop("head"))
    place = values.pop("place")
    values["cancel_requested"] = "cancel" in values
    for name in ("cancel", "children"):
        values.pop(name, None)
    for name in _FLOATS & values.keys():
        values[name] = float(values[name])
    for name in _COUNTERS & values.keys():
        values[name] = int(values[name])
    if "parents" in values:
        values["parents"] = tuple(json.loads(values["parents"]))
    if "result" in values:
        values["result"] = decode(values["result"])
    if "progress" in values:
        values["progress"] = Progress(*json.loads(values["progress"]))
    values["status"] = TaskStatus(values["status"])
    attempts = tuple(Attempt(*json.loads(entry)) for entry in history)
    priority, seq = int(place[:16], 16) - _LOWEST, int(place[16:], 16)
    return Job(task_id, task, priority=priority, seq=seq, overrides=overrides, history=attempts, **values)


_FLOATS = frozenset(("due", "expires", "submitted", "started", "finished", "purge_at"))
_COUNTERS = frozenset(("attempt", "failures", "crashes"))


def result_of_row(task_id: str, row: Sequence[Any]) -> TaskResult[Any]:
    head, status, result, error, traceback, attempt, submitted, started, finished, progress = row
    return TaskResult(
        task_id,
        _head(head)[0],
        TaskStatus(status),
        None if result is None else decode(result),
        error,
        traceback,
        int(attempt or 0),
        float(submitted),
        None if started is None else float(started),
        None if finished is None else float(finished),
        None if progress is None else Progress(*json.loads(progress)),
    )
