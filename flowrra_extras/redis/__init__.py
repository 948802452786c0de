"""Jobs in Redis 6.2+ or Valkey, for many machines: `pip install flowrra[redis]`.

    app = Flowrra.from_urls("redis://user:password@host:6379/0")
    app = Flowrra.from_urls("rediss://host/0?prefix=billing")     # TLS; keys under {billing}:
    app = Flowrra.from_urls("unix:///run/redis.sock?db=1")

Redis keeps on disk what it is told to. For "nothing is lost" configure

    appendonly yes                  # with appendfsync everysec a power cut undoes the last second,
    appendfsync always              # with always nothing that was acknowledged
    maxmemory-policy noeviction     # any other policy throws jobs away when memory is full

What runs in the server is in `scripts`, with the keys; the connections are in `wire`.
"""

from __future__ import annotations

import asyncio
import collections
import itertools
import json
import logging
from typing import TYPE_CHECKING, Any, cast

from flowrra import (
    PENDING,
    BackendConfig,
    Broker,
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
    check_queue,
    timed_out,
    unknown_job,
)
from flowrra_extras.batching import Batcher
from flowrra_extras.redis.news import News
from flowrra_extras.redis.operations import (
    Claim,
    Hands,
    Operation,
    Settle,
    job_of,
    kind_of,
    member_of,
    outside_parents,
    parts,
    recorded_fields,
    result_of_row,
    run_argument,
    send_group,
    to_json,
    worker_text,
)
from flowrra_extras.redis.wire import Address, Link

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

__all__ = ["RedisBroker", "broker_from_url"]

logger = logging.getLogger("flowrra")

_RUN = 1_000  # jobs in one argument of a push
_PAGE = 1_000  # jobs that one call of `find` looks at, so that it never holds the server for long


class RedisBroker(Broker):
    """Jobs in Redis, for many processes on many machines; `url` as at the top of this module.

    A call waits up to `config.timeout` seconds for a server that is away, restarts or fails over, and then
    raises a BrokerError. That leaves it open whether the call was carried out: `push` again with the same
    ids changes nothing. A connection that is silent for 5 s is given up for a new one.
    """

    keeps_text = True

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
        self._hands = Hands()
        self._batcher: Batcher[Operation, Any] | None = None

    def twin(self) -> RedisBroker:
        return RedisBroker(self.url, self.config, self.retention, self._clock)

    # Opening and closing -----------------------------------------------------------------------

    async def open(self) -> None:
        self._link = Link(self._address, self.config.timeout)
        self._news = News(self._address)
        self._next_due: float | None = None
        self._batcher = Batcher(lambda operations: send_group(self._link, operations))
        try:
            await self._run(Operation("look"))
            _warn(self._address.name, await self._link.settings())
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        batcher, self._batcher = self._batcher, None
        if batcher is None:
            return
        await batcher.close()
        await self._news.close()
        await self._link.drop()
        await asyncio.sleep(0)  # for the transports, which close their sockets in the next turn

    async def _run(self, operation: Operation, weight: int = 1) -> Any:
        """Have a script run with the next group. Cancelling leaves it open whether it was."""
        if self._batcher is None:
            raise BrokerError(f"the broker on {self._address.name} is not open")
        return await self._batcher.put(operation, weight)

    def _bury_at(self, now: float) -> float:
        return now + self.retention.failed_ttl

    # Jobs --------------------------------------------------------------------------------------

    async def push(self, jobs: Sequence[Job], *, now: float) -> list[str]:
        if not jobs:
            return []
        runs: list[str] = []
        for kind, kin in itertools.groupby(jobs, kind_of):
            for part in parts(list(kin), _RUN):
                runs.append(run_argument(kind, part))
                if len(part) == _RUN:
                    await asyncio.sleep(0)  # let others have the loop
        header = to_json([repr(now), repr(self._bury_at(now)), len(runs), outside_parents(jobs)])
        ids = await self._run(Operation("push", header, *runs, merges=True), len(jobs))
        if isinstance(ids, str):
            raise unknown_job(ids)
        return ids or [job.id for job in jobs]

    async def claim(self, queue: str, *, limit: int, worker: str, now: float) -> list[Job]:
        self._news.look(queue)
        self._next_due, jobs = await self._run(Claim(self._hands, queue, limit, worker, now, self._bury_at(now)))
        return cast("list[Job]", jobs)

    async def settle(self, outcomes: Sequence[Outcome], *, now: float) -> list[bool]:
        if not outcomes:
            return []
        operation = Settle(self._hands, outcomes, now, self.retention)
        return cast("list[bool]", await self._run(operation, len(outcomes)))

    async def heartbeat(self, worker: WorkerInfo, *, lease: float, now: float) -> Notices:
        self._news.look(None)
        arguments = (worker.id, repr(lease), repr(now), repr(self._bury_at(now)), worker_text(worker, now))
        answer = await self._run(Operation("heartbeat", *arguments, to_json(list(worker.queues))))
        known, cancelled, paused, suspects, lost = answer
        lapsed = not known and worker.seen > 0
        worker.seen = now
        return Notices(cancelled, lapsed, frozenset(paused), bool(suspects), lost)

    async def report(self, progress: Mapping[str, Progress]) -> None:
        pairs = ((task_id, to_json([p.done, p.total, p.note])) for task_id, p in progress.items())
        await self._run(Operation("report", *itertools.chain.from_iterable(pairs)))

    async def cancel(self, task_id: str, *, now: float) -> bool:
        return bool(await self._run(Operation("cancel", task_id, repr(now), repr(self._bury_at(now)))))

    async def requeue(self, task_ids: Sequence[str], *, now: float) -> list[bool]:
        operation = Operation("requeue", to_json(list(task_ids)), repr(now), repr(self._bury_at(now)))
        return [flag == 1 for flag in await self._run(operation)]

    async def purge(self, before: float, limit: int) -> int:
        return int(await self._run(Operation("purge", repr(before), str(limit))))

    async def set_queue(self, queue: str, *, paused: bool) -> None:
        await self._run(Operation("set_queue", check_queue(queue), str(int(paused))))

    async def record(self, results: Sequence[TaskResult[Any]]) -> None:
        arguments: list[str] = []
        for result in results:
            purge_at = (result.finished or 0.0) + self.retention.ttl(result.status)
            arguments += (result.task_id, repr(purge_at), to_json(recorded_fields(result)))
        if arguments:
            await self._run(Operation("record", *arguments))

    # Waiting -----------------------------------------------------------------------------------

    async def wait_ready(self, queues: Sequence[str], timeout: float) -> None:
        if queues and self._next_due is not None:
            timeout = min(timeout, self._next_due - self._clock.time())
        await self._news.wait_ready(queues, timeout)

    async def wait_for(self, task_id: str, timeout: float | None) -> TaskResult[Any]:
        waiter = self._news.expect(task_id)  # first, so that no end falls between looking and listening
        try:
            result = await self._known(task_id)
            async with asyncio.timeout(timeout):
                while not result.is_finished:
                    self._news.listen()
                    await waiter
                    waiter = self._news.expect(task_id)
                    result = await self._known(task_id)
            return result
        except TimeoutError:
            raise timed_out(task_id, timeout) from None
        finally:
            self._news.forget(task_id, waiter)

    async def _known(self, task_id: str) -> TaskResult[Any]:
        (result,) = await self.get([task_id])
        if result is None:
            raise unknown_job(task_id)
        return result

    # Looking -----------------------------------------------------------------------------------

    async def get(self, task_ids: Sequence[str]) -> list[TaskResult[Any] | None]:
        rows = await self._run(Operation("get", to_json(list(task_ids)), merges=True), len(task_ids))
        return [result_of_row(task_id, row) if row else None for task_id, row in zip(task_ids, rows, strict=True)]

    async def find(self, which: JobFilter, *, limit: int = 100, after: int | None = None) -> list[Job]:
        found: list[Job] = []
        async for job in self._search(which, after, limit):
            found.append(job)
            if len(found) == limit:
                break
        return found

    async def _search(self, which: JobFilter, after: int | None, limit: int) -> AsyncIterator[Job]:
        """The jobs, the latest first, in steps that each look at a page of them."""
        ahead = None if which.ahead_of is None else member_of(which.ahead_of)[:29]
        queue = which.queue if which.ahead_of is None else which.ahead_of.queue
        if which.ahead_of is not None and which.queue not in (None, queue):
            return
        parts: list[Any] = [
            None if which.ids is None else list(dict.fromkeys(which.ids)),
            None if which.status is None else sorted(which.status),
            queue, which.worker, None if which.task is None else f"[{to_json(which.task)},", ahead,
        ]  # fmt: skip
        wanted = to_json([False if part is None else part for part in parts])
        below = "+inf" if after is None else f"({after}"
        while below != "(":
            operation = Operation("find", wanted, below, str(limit), str(_PAGE))
            next_seq, *rows = await self._run(operation)
            jobs = [job_of(*rows[i : i + 3]) for i in range(0, len(rows), 3)]
            for job in sorted(jobs, key=lambda job: -job.seq):
                if after is None or job.seq < after:
                    yield job
            below = f"({next_seq}"

    async def counts(self, which: JobFilter | None = None) -> dict[tuple[str, TaskStatus], int]:
        which = which or JobFilter()
        if which == JobFilter(status=which.status, queue=which.queue):
            (pairs, _, _) = await self._run(Operation("look"))
            names = (name.partition(" ") for name in pairs[::2])
            counts = {
                (queue, TaskStatus(status)): int(n) for (status, _, queue), n in zip(names, pairs[1::2], strict=True)
            }
            return {
                (queue, status): number for (queue, status), number in counts.items()
                if which.queue in (None, queue) and (which.status is None or status in which.status)
            }  # fmt: skip
        if which == JobFilter(ahead_of=which.ahead_of) and which.ahead_of is not None:
            number = await self._run(Operation("ahead", which.ahead_of.queue, member_of(which.ahead_of)))
            return {(which.ahead_of.queue, PENDING): number} if number else {}
        found: collections.Counter[tuple[str, TaskStatus]] = collections.Counter()
        async for job in self._search(which, None, _PAGE):
            found[job.queue, job.status] += 1
        return dict(found)

    async def workers(self) -> list[WorkerInfo]:
        (_, _, texts) = await self._run(Operation("look"))
        return sorted((WorkerInfo(*json.loads(text)) for text in texts), key=lambda info: info.started)

    async def paused(self) -> set[str]:
        (_, paused, _) = await self._run(Operation("look"))
        return set(paused)


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
