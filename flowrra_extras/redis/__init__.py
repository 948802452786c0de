"""Jobs in Redis 6.2+ or Valkey, for many machines: `pip install flowrra[redis]`.

    app = Flowrra.from_urls("redis://user:password@host:6379/0")
    app = Flowrra.from_urls("rediss://host/0?prefix=billing")     # TLS; keys under {billing}:
    app = Flowrra.from_urls("unix:///run/redis.sock?db=1")

Redis keeps on disk what it is told to. For "nothing is lost" configure

    appendonly yes
    # With everysec a power cut undoes the last second, with always nothing that was acknowledged.
    appendfsync always
    # Any other policy throws jobs away when memory is full.
    maxmemory-policy noeviction

What runs in the server is in `scripts`, with the keys; what they are told and answer is in `calls`, the
connections are in `wire`, those who wait in `news`.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import itertools
import json
import logging
from typing import TYPE_CHECKING, Any, cast

from flowrra import (
    ACTIVITY_KEPT,
    LAST_CHANCE,
    PENDING,
    Activity,
    BackendConfig,
    BrokerConfig,
    BrokerError,
    Clock,
    Config,
    Job,
    JobFilter,
    Notices,
    Outcome,
    Progress,
    TaskResult,
    TaskStatus,
    WorkerInfo,
    activity_texts,
    check_queue,
    sum_of_activity,
    timed_out,
    unknown_job,
)
from flowrra_extras.redis.calls import (
    Attempts,
    Calls,
    Claim,
    Claims,
    Settle,
    counted,
    filter_text,
    job_of,
    member_of,
    push_words,
    recorded_fields,
    result_of_row,
    to_json,
    worker_text,
)
from flowrra_extras.redis.moving import MovingBroker
from flowrra_extras.redis.news import News
from flowrra_extras.redis.wire import Address, Call, Link

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

__all__ = ["RedisBroker", "broker_from_url"]

logger = logging.getLogger("flowrra")

_LOOK_EVERY = 5.0  # seconds between looks for a result, should a message have been lost
_MOST = 500_000  # jobs in one push: Redis 6.2 takes a million words, and other callers wait for 5 s
# What one call looks at, so that it never holds the server for long.
_PAGE = 1_000  # jobs
_MINUTES = 60  # of activity


class RedisBroker(MovingBroker):
    """Jobs in Redis, for many processes on many machines; `url` as at the top of this module.

    A call waits up to `config.timeout` seconds for a server that is away, restarts or fails over, and then
    raises a BrokerError. That leaves it open whether the call was carried out: `push` again with the same
    ids changes nothing. A connection that is silent for 5 s is given up for a new one.
    """

    keeps_text = keeps_activity = True

    def __init__(
        self,
        url: str,
        config: BrokerConfig | None = None,
        retention: BackendConfig | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.url = url
        self.config = config or BrokerConfig()
        self.retention = retention or BackendConfig()
        self._clock = clock or Clock()
        self._address = Address(url)
        self._claims = Claims()
        self._doubtful: Attempts = set()
        self._calls = Calls(Link(self._address))
        self._news = News(self._address)
        self._next_due: float | None = None
        self._is_open = False

    def twin(self) -> RedisBroker:
        return RedisBroker(self.url, self.config, self.retention, self._clock)

    # Opening and closing -----------------------------------------------------------------------

    async def open(self) -> None:
        with contextlib.suppress(RuntimeError):  # it was left open on a loop that is closed by now
            await self.close()
        link = Link(self._address)
        link.open(self.config.timeout)
        self._calls, self._news, self._next_due, self._is_open = Calls(link), News(self._address), None, True
        try:
            await self._calls.run(Call("look"))
            _warn(self._address.name, await link.settings())
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        if self._is_open:
            self._is_open = False
            await self._calls.close()
            await self._news.close()
            await asyncio.sleep(0)  # for the transports, which close their sockets in the next turn

    # Jobs --------------------------------------------------------------------------------------

    async def push(self, jobs: Sequence[Job], *, now: float) -> list[str]:
        if not jobs:
            return []
        if len(jobs) > _MOST:
            raise BrokerError(f"at most {_MOST:,} jobs go into Redis at once, not {len(jobs):,}: submit them in parts")
        words = await push_words(jobs)
        ids = await self._calls.join(Call("push", repr(now), repr(now + self.retention.failed_ttl), *words), len(jobs))
        if isinstance(ids, str):
            raise unknown_job(ids)
        return ids or [job.id for job in jobs]

    async def claim(self, queue: str, *, limit: int, worker: str, now: float, crashes: int = LAST_CHANCE) -> list[Job]:
        self._news.look(f"jobs {queue}")
        call = Claim(self._claims, queue, limit, worker, now, now + self.retention.failed_ttl, crashes)
        try:
            self._next_due, jobs = await self._calls.run(call)
        except asyncio.CancelledError:
            call.lose()
            raise
        return cast("list[Job]", jobs)

    async def settle(self, outcomes: Sequence[Outcome], *, now: float) -> list[bool]:
        if not outcomes:
            return []
        settle = Settle(outcomes, now, self.retention, self._doubtful)
        return cast("list[bool]", await self._calls.join(settle, len(outcomes)))

    async def heartbeat(self, worker: WorkerInfo, *, lease: float, now: float) -> Notices:
        self._news.look("notices")
        moments = repr(lease), repr(now), repr(now + self.retention.failed_ttl)
        about = worker_text(worker, now), to_json(list(worker.queues)), repr(now - ACTIVITY_KEPT)
        activity = (str(word) for pair in activity_texts(worker.activity).items() for word in pair)
        answer = await self._calls.run(Call("heartbeat", worker.id, *moments, *about, *activity))
        known, cancelled, paused, suspects, lost = answer
        lapsed = not known and worker.seen > 0
        worker.seen = now
        return Notices(cancelled, lapsed, frozenset(paused), suspects, lost)

    async def report(self, progress: Mapping[str, Progress]) -> None:
        pairs = ((task_id, to_json([p.done, p.total, p.note])) for task_id, p in progress.items())
        await self._calls.run(Call("report", *itertools.chain.from_iterable(pairs)))

    async def cancel(self, task_id: str, *, now: float, by: str | None = None) -> bool:
        bury_at = repr(now + self.retention.failed_ttl)
        return bool(await self._calls.run(Call("cancel", task_id, repr(now), bury_at, by or "")))

    async def requeue(self, task_ids: Sequence[str], *, now: float, by: str | None = None) -> list[bool]:
        return [bool(flag) for flag in await self._calls.run(Call("requeue", repr(now), by or "", *task_ids))]

    async def delete(self, task_ids: Sequence[str]) -> list[bool]:
        return [bool(flag) for flag in await self._calls.run(Call("delete", *task_ids))]

    async def purge(self, before: float, limit: int) -> int:
        return int(await self._calls.run(Call("purge", repr(before), str(limit))))

    async def set_queue(self, queue: str, *, paused: bool) -> None:
        await self._calls.run(Call("set_queue", check_queue(queue), str(int(paused))))

    async def record(self, results: Sequence[TaskResult[Any]]) -> None:
        arguments: list[str] = []
        for result in results:
            purge_at = (result.finished or 0.0) + self.retention.ttl(result.status)
            arguments += (result.task_id, repr(purge_at), to_json(recorded_fields(result)))
        if arguments:
            await self._calls.run(Call("record", *arguments))

    # Waiting -----------------------------------------------------------------------------------

    async def wait_ready(self, queues: Sequence[str], timeout: float) -> None:
        if not self._is_open:
            raise BrokerError(f"the broker on {self._address.name} is not open")
        if queues and self._next_due is not None:
            timeout = min(timeout, self._next_due - self._clock.time())
        await self._news.wait([f"jobs {queue}" for queue in queues] or ["notices"], timeout)

    async def wait_for(self, task_id: str, timeout: float | None) -> TaskResult[Any]:
        topic = f"results {task_id}"
        try:
            async with asyncio.timeout(None) as limit:
                while True:
                    self._news.look(topic)  # first, so that no end falls between looking and waiting
                    (result,) = await self.get([task_id])
                    if result is None:
                        raise unknown_job(task_id)
                    if result.is_finished:
                        return result
                    if timeout is not None and limit.when() is None:
                        limit.reschedule(asyncio.get_running_loop().time() + timeout)
                    await self._news.wait([topic], _LOOK_EVERY)
        except TimeoutError:
            raise timed_out(task_id, timeout) from None
        finally:
            self._news.forget(topic)

    # Looking -----------------------------------------------------------------------------------

    async def get(self, task_ids: Sequence[str]) -> list[TaskResult[Any] | None]:
        if not task_ids:
            return []
        rows = await self._calls.join(Call("get", str(len(task_ids)), *task_ids), len(task_ids))
        return [result_of_row(task_id, row) if row else None for task_id, row in zip(task_ids, rows, strict=True)]

    async def find(
        self, which: JobFilter, *, limit: int = 100, after: int | None = None, oldest_first: bool = False
    ) -> list[Job]:
        found: list[Job] = []
        async for job in self._search(which, after, limit, oldest_first=oldest_first):
            found.append(job)
            if len(found) == limit:
                break
        return found

    async def _search(
        self, which: JobFilter, after: int | None, limit: int, *, oldest_first: bool = False
    ) -> AsyncIterator[Job]:
        """The jobs in order, in steps that each look at a page of them."""
        low = "-inf" if which.from_seq is None else str(which.from_seq)
        high = "+inf"
        rest = dataclasses.replace(which, ids=None)
        last: Any = after
        while last != "":
            if last is not None:
                low, high = (f"({last}", high) if oldest_first else (low, f"({last}")
            call = Call("find", filter_text(which), str(limit), str(_PAGE), str(int(oldest_first)), low, high)
            last, *rows = await self._calls.run(call)
            jobs = [job_of(*rows[i : i + 3]) for i in range(0, len(rows), 3)]
            for job in sorted(jobs, key=lambda job: job.seq, reverse=not oldest_first):
                is_behind = after is None or (job.seq > after if oldest_first else job.seq < after)
                if is_behind and rest.matches(job):
                    yield job

    async def counts(self, which: JobFilter | None = None) -> dict[tuple[str, TaskStatus], int]:
        which = which or JobFilter()
        found: collections.Counter[tuple[str, TaskStatus]] = collections.Counter()
        if which == JobFilter(status=which.status, queue=which.queue):
            state, _ = await self._look()
            for status, queue, number in counted(state):
                if which.queue in (None, queue) and (which.status is None or status in which.status):
                    found[queue, status] += number
        elif which.ahead_of is not None and which == JobFilter(ahead_of=which.ahead_of):
            queue = which.ahead_of.queue
            found[queue, PENDING] = await self._calls.run(Call("ahead", queue, member_of(which.ahead_of)))
        else:
            async for job in self._search(which, None, _PAGE):
                found[job.queue, job.status] += 1
        return dict(+found)

    async def workers(self) -> list[WorkerInfo]:
        _, texts = await self._look()
        return sorted((WorkerInfo(*json.loads(text)) for text in texts), key=lambda info: info.started)

    async def paused(self) -> set[str]:
        state, _ = await self._look()
        return {queue for word, _, queue in (name.partition(" ") for name in state) if word == "paused"}

    async def _look(self) -> tuple[dict[str, str], list[str]]:
        """The state, and the workers."""
        pairs, workers = await self._calls.run(Call("look"))
        return dict(zip(pairs[::2], pairs[1::2], strict=True)), workers

    async def activity(self, since: float) -> list[Activity]:
        texts: list[str] = []
        first = repr(since)
        while first != "(":
            last, *found = await self._calls.run(Call("activity", first, str(_MINUTES)))
            texts += found
            first = f"({last}"
        return sum_of_activity(texts)


def _warn(name: str, settings: Mapping[str, str]) -> None:
    """Say so if the server is set up to lose jobs."""
    if settings.get("appendonly") == "no":
        logger.warning("%s keeps no append-only file: a restart loses jobs (set appendonly yes)", name)
    policy = settings.get("maxmemory-policy", "noeviction")
    if policy != "noeviction":
        logger.warning(
            "%s throws keys away when its memory is full: set maxmemory-policy noeviction, not %s", name, policy
        )


def broker_from_url(url: str, config: Config, clock: Clock) -> RedisBroker:
    """The broker that `redis://`, `rediss://` and `unix://` stand for."""
    return RedisBroker(url, config.broker, config.backend, clock)
