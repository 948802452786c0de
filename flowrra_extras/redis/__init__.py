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
import itertools
import logging
import math
import os
from typing import TYPE_CHECKING, Any, cast

from flowrra import (
    ACTIVITY_KEPT,
    LAST_CHANCE,
    Action,
    BackendConfig,
    BrokerConfig,
    BrokerError,
    Clock,
    Config,
    Job,
    Notices,
    Outcome,
    Progress,
    TaskResult,
    Topic,
    WorkerInfo,
    activity_texts,
    check_queue,
    ended_job,
    result_limit,
    unknown_job,
)
from flowrra_extras.redis.calls import (
    Attempts,
    Calls,
    Claim,
    Claims,
    Settle,
    push_words,
    recorded_fields,
    result_of_row,
    to_json,
    worker_text,
)
from flowrra_extras.redis.moving import adopted_words
from flowrra_extras.redis.news import News
from flowrra_extras.redis.scripts import VERSION
from flowrra_extras.redis.searching import PAGE, SearchingBroker
from flowrra_extras.redis.wire import Address, Call, Link

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

__all__ = ["RedisBroker", "broker_from_url"]

logger = logging.getLogger("flowrra")

_LOOK_EVERY = 5.0  # seconds between looks for a result, should a message have been lost
_MOST = 500_000  # jobs in one push: Redis 6.2 takes a million words, and other callers wait for 5 s


class RedisBroker(SearchingBroker):
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
        self._pid = 0
        self._inherited: object = None

    def twin(self) -> RedisBroker:
        return RedisBroker(self.url, self.config, self.retention, self._clock)

    # Opening and closing -----------------------------------------------------------------------

    async def open(self) -> None:
        if self._is_open and self._pid == os.getpid():
            self._calls.abandon()
            self._news.abandon()
        elif self._is_open:  # by the parent of a fork, which goes on to use them: neither used nor collected
            self._inherited = self._calls, self._news
        self._pid = os.getpid()
        link = Link(self._address)
        link.open(self.config.timeout)
        self._calls, self._news, self._next_due, self._is_open = Calls(link), News(self._address), None, True
        try:
            await self._calls.run(Call("look"))
            settings = await link.settings()
            self.store_id = settings.get("store")
            _warn(self._address.name, settings)
            await self._bring_up_to_date()
        except BaseException:
            await self.close()
            raise

    async def _bring_up_to_date(self) -> None:
        """See that all jobs are in the indexes. Of several that do it at once each does it all, so that it is done."""
        state, _ = await self._look()
        version = int(state.get("version", 1))
        if version > VERSION:
            raise BrokerError(
                f"{self._address.name} has keys of version {version} under {self._address.prefix}, "
                f"newer than the {VERSION} of this flowrra: upgrade it"
            )
        last = "0"
        while version < VERSION and last:
            last = await self._calls.run(Call("index_all", f"({last}", str(PAGE)))

    async def close(self) -> None:
        if self._is_open:
            self._is_open = False
            await self._calls.close()
            await self._news.close()
            await asyncio.sleep(0)  # for the transports, which close their sockets in the next turn

    # Jobs --------------------------------------------------------------------------------------

    async def push(self, jobs: Sequence[Job], *, now: float, by: str | None = None) -> list[str]:
        if not jobs:
            return []
        if by is not None:
            taken = await self._calls.run(Call("adopt", by, *(word for job in jobs for word in adopted_words(job))))
            return [job.id if is_in else "" for job, is_in in zip(jobs, taken, strict=True)]
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
        is_new = not worker.term and not self._calls.was_away(lease)
        about = worker_text(worker, now), to_json(list(worker.queues)), str(int(is_new)), repr(now - ACTIVITY_KEPT)
        activity = (str(word) for pair in activity_texts(worker.activity).items() for word in pair)
        answer = await self._calls.run(Call("heartbeat", worker.id, *moments, *about, *activity))
        term, cancelled, paused, suspects, lost, endings = answer
        lapsed = worker.term not in ("", term) and lease > 0
        worker.seen, worker.term = now, term or worker.term
        return Notices(cancelled, lapsed, frozenset(paused), suspects, lost, [ended_job(text) for text in endings])

    async def report(self, progress: Mapping[tuple[str, int], Progress]) -> None:
        words = ((task_id, str(n), to_json([p.done, p.total, p.note])) for (task_id, n), p in progress.items())
        await self._calls.run(Call("report", *itertools.chain.from_iterable(words)))

    async def change(self, task_ids: Sequence[str], action: Action, *, now: float, by: str | None = None) -> list[bool]:
        end_at = repr(now + self.retention.failed_ttl)
        if action == "cancel":
            return [bool(await self._calls.run(Call("cancel", one, repr(now), end_at, by or ""))) for one in task_ids]
        if action == "requeue":
            call = Call("requeue", repr(now), by or "", *task_ids)
        elif action == "hold":
            call = Call("hold", by or "", *task_ids)
        else:
            call = Call("let_go", by or "", "0", repr(now), end_at, *task_ids)
        return [bool(flag) for flag in await self._calls.run(call)]

    async def remove(
        self, task_ids: Sequence[str] = (), *, by: str | None = None, before: float | None = None, limit: int = 1000
    ) -> Collection[str]:
        if before is not None:
            return cast("list[str]", await self._calls.run(Call("purge", repr(before), str(limit))))
        call = Call("delete", *task_ids) if by is None else Call("let_go", by, "1", "0", "0", *task_ids)
        return list(itertools.compress(task_ids, await self._calls.run(call)))

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

    async def wait(self, topics: Sequence[Topic], timeout: float | None) -> None:
        if not self._is_open:
            raise BrokerError(f"the broker on {self._address.name} is not open")
        timeout = math.inf if timeout is None else timeout
        if topics[0][0] == "queue" and self._next_due is not None:
            timeout = min(timeout, self._next_due - self._clock.time())
        await self._news.wait([f"jobs {name}" if kind == "queue" else "notices" for kind, name in topics], timeout)

    async def wait_for(self, task_id: str, timeout: float | None) -> TaskResult[Any]:
        topic = f"results {task_id}"
        try:
            async with result_limit(task_id, timeout) as answered:
                while True:
                    self._news.look(topic)  # first, so that no end falls between looking and waiting
                    (result,) = await self.get([task_id])
                    if result is None:
                        raise unknown_job(task_id)
                    if result.is_finished:
                        return result
                    answered()
                    await self._news.wait([topic], _LOOK_EVERY)
        finally:
            self._news.forget(topic)

    # Looking -----------------------------------------------------------------------------------

    async def get(self, task_ids: Sequence[str]) -> list[TaskResult[Any] | None]:
        if not task_ids:
            return []
        rows = await self._calls.join(Call("get", str(len(task_ids)), *task_ids), len(task_ids))
        return [result_of_row(task_id, row) if row else None for task_id, row in zip(task_ids, rows, strict=True)]


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
