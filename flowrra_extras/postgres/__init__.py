"""Jobs in PostgreSQL 13+, for many machines, in the database you already run: `pip install flowrra[postgresql]`.

    app = Flowrra.from_urls("postgresql://user:password@host:5432/database")
    app = Flowrra.from_urls("postgresql:///app?host=/var/run/postgresql&schema=billing")
    app = Flowrra.from_urls("postgresql://one,two/app?target_session_attrs=read-write")  # whichever is the primary

User and password are percent-encoded. Own options: `schema=` (flowrra), where the tables live, made at the first
opening; `pool_size=` (4), connections at most, beside one that listens; a worker's heartbeat has two more, so that
nothing holds it up; `synchronous_commit=` as in postgresql.conf,
for what is acknowledged (the server's own setting unless told otherwise); `statement_cache_size=0` for a pooler in
transaction mode such as pgbouncer: no prepared statements, no session state, no LISTEN, news by a look each second.
The others are libpq's, as asyncpg takes them; what hosted databases hand out beside, such as `keepalives=`, changes
nothing.

A job is one row, and every move of it is guarded. What concurrent callers want goes out as one statement over
arrays (`groups`). Whoever waits is told by NOTIFY, and looks each second in case a notification was lost (`waits`).
The schema and the SQL are in `statements`, what a call does with them in `store`, the connections in `connections`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import json
import math
import os
from typing import TYPE_CHECKING, Any, cast

import asyncpg

from flowrra import (
    LAST_CHANCE,
    SUCCESS,
    Action,
    BackendConfig,
    Broker,
    BrokerConfig,
    BrokerError,
    Clock,
    Config,
    ConfigError,
    Job,
    JobFilter,
    Notices,
    Outcome,
    Overview,
    Progress,
    TaskResult,
    TaskStatus,
    Topic,
    WorkerInfo,
    check_queue,
    encode_value,
    result_limit,
    sum_of_activity,
    totals_of_activity,
    unknown_job,
)
from flowrra_extras.postgres import statements as sql
from flowrra_extras.postgres.connections import SILENCE, STANDBY, Address, Link, Session, callers_session
from flowrra_extras.postgres.groups import Claim, Groups, encode_payloads
from flowrra_extras.postgres.rows import counting, job_of_row, recorded_columns, search, worker_of_row
from flowrra_extras.postgres.store import Store, identify, migrate

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from typing import Self

    from flowrra_extras.postgres.connections import CallersSession

__all__ = ["PostgresBroker", "broker_from_url"]

_TRIES = 3  # of a push in a caller's transaction, while others take its unique keys


class _Life(Broker):
    """How the broker is made, opened and closed."""

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
        self._link: Link | None = None
        self._groups: Groups
        self._pid = 0
        self._inherited: object = None

    def clone(self) -> Self:
        return type(self)(self.url, self.config, self.retention, self._clock)

    async def open(self) -> None:
        if self._link is not None and self._pid == os.getpid():
            self._link.abandon()
            self._groups.waits.listener.abandon()
        elif self._link is not None:  # of the parent of a fork, which goes on to use it: neither used nor collected
            self._inherited = self._link, self._groups
        self._link, self._pid = None, os.getpid()
        link = Link(self._address, self.config.timeout)
        try:
            if (await link.fetch("SELECT pg_is_in_recovery()"))[0][0]:
                raise BrokerError(f"{self._address.name} is a standby, which cannot be written to: {STANDBY}")
            while (store_id := await link.run(identify)) is None:
                await link.run(migrate, None)
        except BaseException:
            await link.close()
            raise
        self._groups = Groups(self._address, link, self.retention, self._clock)
        self._link, self.store_id = link, store_id

    async def close(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            await self._groups.close()
            await link.close()
            await asyncio.sleep(0)  # for the transports, which close their sockets in the next turn

    def _opened(self) -> Groups:
        if self._link is None:
            raise BrokerError(f"the broker on {self._address.name} is not open")
        return self._groups

    async def _run(self, text: str, *values: Any, patience: float = SILENCE) -> Sequence[Any]:
        """Have one statement run, and return its rows."""
        self._opened()
        return await cast("Link", self._link).fetch(text, *values, silence=patience)


class PostgresBroker(_Life):
    """Jobs in PostgreSQL, for many processes on many machines; `url` as at the top of this module.

    A call waits up to `config.timeout` seconds for a server that is away, restarts or fails over, and then
    raises a BrokerError. That leaves it open whether the call was carried out: `push` again with the same
    ids changes nothing. A connection that is silent for 5 s is given up for a new one.
    """

    keeps_text = keeps_activity = True

    # Jobs --------------------------------------------------------------------------------------

    async def push(self, jobs: Sequence[Job], *, now: float, by: str | None = None) -> list[str]:
        groups = self._opened()
        if by is not None:
            return await groups.transact(lambda store: store.adopt(jobs, by, now))
        return await groups.push(jobs, now) if jobs else []

    async def push_in(self, connection: Any, jobs: Sequence[Job], *, now: float) -> list[str]:
        self._opened()
        encode_payloads(jobs)
        session = callers_session(connection, self._address.schema)
        for _ in range(_TRIES - 1):
            with contextlib.suppress(asyncpg.UniqueViolationError):
                return await self._push_through(session, jobs, now)
        return await self._push_through(session, jobs, now)

    async def _push_through(self, session: CallersSession, jobs: Sequence[Job], now: float) -> list[str]:
        async with session.savepoint():
            if (await session.store())[1] != self.store_id:
                raise ConfigError(
                    f"the connection is to another database than {self._address.name}, where the jobs are"
                )
            store = Store(session, self.retention)
            ids = await store.push(jobs, now)
            channels = [f"{self._address.schema}_jobs"]
            await session.fetch(sql.NOTIFY.replace(sql.LAZY, "true"), store.finished, channels, [" "])
        return ids

    async def claim(self, queue: str, *, limit: int, worker: str, now: float, crashes: int = LAST_CHANCE) -> list[Job]:
        groups = self._opened()
        groups.waits.look(queue)
        return await groups.claim(Claim(queue, limit, worker, now, crashes))

    async def settle(self, outcomes: Sequence[Outcome], *, now: float) -> list[bool]:
        groups = self._opened()
        if not outcomes:
            return []
        for outcome in outcomes:
            if outcome.status is SUCCESS and outcome.text is None:
                outcome.text = encode_value(outcome)
        return cast("list[bool]", await groups.settles.put((outcomes, now), len(outcomes)))

    async def change(self, task_ids: Sequence[str], action: Action, *, now: float, by: str | None = None) -> list[bool]:
        groups = self._opened()
        return await groups.transact(lambda store: store.change(task_ids, action, now, by))

    async def remove(
        self, task_ids: Sequence[str] = (), *, by: str | None = None, before: float | None = None, limit: int = 1000
    ) -> Collection[str]:
        groups = self._opened()
        if before is not None:
            await self._run(sql.FORGET_AWAITED, patience=self.config.timeout)
            return [row[0] for row in await self._run(sql.PURGE, before, limit, patience=self.config.timeout)]
        return await groups.transact(lambda store: store.remove(task_ids, by))

    async def record(self, results: Sequence[TaskResult[Any]]) -> None:
        latest = {result.task_id: result for result in results}
        if latest:
            await self._run(sql.RECORD, *recorded_columns([latest[i] for i in sorted(latest)], self.retention))
            self._groups.waits.notify(finished=list(latest))

    # Workers -----------------------------------------------------------------------------------

    async def heartbeat(self, worker: WorkerInfo, *, lease: float, now: float) -> Notices:
        groups = self._opened()
        groups.waits.look("")
        if lease <= 0:
            await groups.transact(lambda store: store.leave(worker, now))
            return Notices()
        notices, term = await groups.beat(worker, lease, now)
        worker.seen, worker.term = now, term or worker.term
        return notices

    async def report(self, progress: Mapping[tuple[str, int], Progress]) -> None:
        texts = [json.dumps([p.done, p.total, p.note]) for p in progress.values()]
        await self._run(sql.REPORT, [task_id for task_id, _ in progress], [attempt for _, attempt in progress], texts)

    async def set_queue(self, queue: str, *, paused: bool) -> None:
        await self._run(sql.PAUSE if paused else sql.RESUME_QUEUE, check_queue(queue))
        self._groups.waits.notify(ready=[queue], notices=True)

    async def overview(self, since: float | None = None) -> Overview:
        workers = [worker_of_row(*row) for row in await self._run(sql.WORKERS)]
        paused = {row[0] for row in await self._run("SELECT queue FROM flowrra.paused")}
        if since is None:
            return Overview(workers, paused, [], [])
        first = math.ceil(min(since, 2.0**31 - 1))
        texts = await self._run("SELECT counts FROM flowrra.activity WHERE minute >= $1", first)
        totals = await self._run("SELECT task, what, number FROM flowrra.total")
        return Overview(workers, paused, sum_of_activity(row[0] for row in texts), totals_of_activity(totals))

    # Waiting and looking -----------------------------------------------------------------------

    async def wait(self, topics: Sequence[Topic], timeout: float | None) -> None:
        groups = self._opened()
        queues = [name for kind, name in topics if kind == "queue"]
        await groups.waits.wait_ready(queues, math.inf if timeout is None else timeout, groups.claims.next_due)

    async def wait_for(self, task_id: str, timeout: float | None) -> TaskResult[Any]:
        waits = self._opened().waits
        waiter = waits.expect(task_id)
        try:
            async with result_limit(task_id, timeout) as answered:
                while not (result := await self._known(task_id)).is_finished:
                    answered()
                    if not await waits.announce(task_id):
                        await waiter
                        waiter = waits.expect(task_id)
            return result
        finally:
            waits.expect_no_more(task_id, waiter)

    async def _known(self, task_id: str) -> TaskResult[Any]:
        (result,) = await self.get([task_id])
        if result is None:
            raise unknown_job(task_id)
        return result

    async def get(self, task_ids: Sequence[str]) -> list[TaskResult[Any] | None]:
        groups = self._opened()
        return cast("list[TaskResult[Any] | None]", await groups.gets.put(task_ids, len(task_ids)))

    async def find(
        self, which: JobFilter, *, limit: int = 100, after: int | None = None, oldest_first: bool = False
    ) -> list[Job]:
        if which.status is not None and len(which.status) > 1 and SUCCESS not in which.status:
            apart = [dataclasses.replace(which, status=frozenset((status,))) for status in which.status]
            found = [await self.find(one, limit=limit, after=after, oldest_first=oldest_first) for one in apart]
            jobs = itertools.chain.from_iterable(found)  # job_rare has one state after the other
            return sorted(jobs, key=lambda job: job.seq, reverse=not oldest_first)[:limit]
        query, values = search(which, limit=limit, after=after, oldest_first=oldest_first)
        return [job_of_row(row) for row in await self._run(query, *values, patience=self.config.timeout)]

    async def counts(self, which: JobFilter | None = None) -> dict[tuple[str, TaskStatus], int]:
        query, values = counting(which or JobFilter())

        async def count(session: Session) -> Sequence[Any]:
            async with session.transaction():
                await session.fetch(sql.READ_ALL)
                return await session.fetch(query, *values)

        self._opened()
        rows = await cast("Link", self._link).run(count, self.config.timeout)
        return {(queue, TaskStatus(status)): number for queue, status, number in rows}


def broker_from_url(url: str, config: Config, clock: Clock) -> PostgresBroker:
    """The broker that `postgresql://` and `postgres://` stand for."""
    return PostgresBroker(url, config.broker, config.backend, clock)
