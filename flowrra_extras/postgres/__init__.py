"""Jobs in PostgreSQL 13+, for many machines, in the database you already run: `pip install flowrra[postgresql]`.

    app = Flowrra.from_urls("postgresql://user:password@host:5432/database")
    app = Flowrra.from_urls("postgresql:///app?host=/var/run/postgresql&schema=billing")
    app = Flowrra.from_urls("postgresql://one,two/app?target_session_attrs=read-write")  # whichever is the primary

User and password are percent-encoded. Flowrra's own options: `schema=` (flowrra), the schema of the tables, created
when the broker is first opened; `pool_size=` (4), the most connections, without the one that listens and the two of a
worker's heartbeat; `synchronous_commit=`, as in postgresql.conf (default: the setting of the server);
`statement_cache_size=0`, for a pooler in transaction mode such as pgbouncer: no prepared statements, no session
state, no LISTEN, and changes are polled once per second. The other options are those of libpq, as asyncpg takes them.
Options that hosted databases add and asyncpg does not know, such as `keepalives=`, have no effect.

A job is one row, and every change of it is guarded. The calls of concurrent callers become one statement over arrays
(`groups`). NOTIFY wakes waiting callers (`notifications`); they also poll once per second, in case one was lost.
The SQL is in `schema.sql` and `statements`, its use in `store`, the connections in `connections`.
"""

import asyncio
import contextlib
import dataclasses
import itertools
import math
import os
from collections.abc import Collection, Sequence
from typing import Any, Self, cast

import asyncpg

import flowrra
from flowrra_extras.postgres import statements as sql
from flowrra_extras.postgres.connections import SILENCE, Address, CallersSession, Link, Session, callers_session
from flowrra_extras.postgres.groups import Claim, Groups, encode_payloads
from flowrra_extras.postgres.notifications import LOOK_EVERY
from flowrra_extras.postgres.statements import counting, search
from flowrra_extras.postgres.store import Store, identify, jobs_of_rows, limit_keys_of_rows, migrate, recorded_columns

__all__ = ["PostgresBroker", "broker_from_url"]

_TRIES = 3  # tries of a push in a caller's transaction, while others take its unique keys


class _Life(flowrra.Broker):
    """How the broker is created, opened and closed."""

    def __init__(
        self,
        url: str,
        config: flowrra.BrokerConfig | None = None,
        retention: flowrra.BackendConfig | None = None,
        clock: flowrra.Clock | None = None,
    ) -> None:
        self.url = url
        self.config = config or flowrra.BrokerConfig()
        self.retention = retention or flowrra.BackendConfig()
        self._clock = clock or flowrra.Clock()
        self._address = Address(url)
        self.store_status = flowrra.StoreStatus()
        self._link: Link | None = None
        self._groups: Groups
        self._pid = 0
        self._inherited: object = None

    def clone(self) -> Self:
        return type(self)(self.url, self.config, self.retention, self._clock)

    async def open(self) -> None:
        if self._link is not None and self._pid == os.getpid():
            self._link.abandon()
            self._groups.notifications.listener.abandon()
        elif self._link is not None:  # of the parent of a fork, which still uses them: never used or collected
            self._inherited = self._link, self._groups
        self._link, self._pid = None, os.getpid()
        link = Link(self._address, self.config.timeout, self.store_status)
        try:
            await link.run(lambda session: session.refuse_standby(self._address.name))
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
            await asyncio.sleep(0)  # transports close their sockets in the next turn of the loop

    def _opened(self) -> Groups:
        if self._link is None:
            raise flowrra.BrokerError(f"the broker on {self._address.name} is not open")
        return self._groups

    async def _run(self, text: str, *values: Any, patience: float = SILENCE) -> Sequence[Any]:
        self._opened()
        return await cast("Link", self._link).fetch(text, *values, silence=patience)


class PostgresBroker(_Life):
    """Stores jobs in PostgreSQL, for many processes on many machines.

    If the server is unreachable, restarts or fails over, a call waits up to `config.timeout` seconds, then raises a
    BrokerError. The call may or may not have been carried out: a `push` with the same ids can be repeated safely. A
    connection that is silent for 5 s is replaced by a new one.

    Args:
        url: the address of the database; see the docstring of the module.
        config: settings of the broker, such as `timeout`.
        retention: how long finished jobs are kept.
        clock: the wall clock for due times. Leases use the server's clock.
    """

    keeps_text = True
    has_limits = True

    # Jobs --------------------------------------------------------------------------------------

    async def push(self, jobs: Sequence[flowrra.Job], *, now: float, by: str | None = None) -> list[str]:
        groups = self._opened()
        if by is not None:
            return await groups.transact(lambda store: store.adopt(jobs, by, now))
        return await groups.push(jobs, now) if jobs else []

    async def push_in(self, connection: Any, jobs: Sequence[flowrra.Job], *, now: float) -> list[str]:
        self._opened()
        encode_payloads(jobs)
        session = callers_session(connection, self._address.schema)
        for _ in range(_TRIES - 1):
            with contextlib.suppress(asyncpg.UniqueViolationError):
                return await self._push_through(session, jobs, now)
        return await self._push_through(session, jobs, now)

    async def _push_through(self, session: CallersSession, jobs: Sequence[flowrra.Job], now: float) -> list[str]:
        async with session.savepoint():
            if (await session.store())[1] != self.store_id:
                raise flowrra.ConfigError(
                    f"the connection is to another database than {self._address.name}, where the jobs are"
                )
            store = Store(session, self.retention)
            ids = await store.push(jobs, now)
            await store.ask()
            channels = [f"{self._address.schema}_jobs"]
            await session.fetch(sql.NOTIFY.replace(sql.LAZY, "true"), store.finished, channels, [" "])
        return ids

    async def claim(
        self, queue: str, *, limit: int, worker: str, now: float, crashes: int = flowrra.LAST_CHANCE
    ) -> list[flowrra.Job]:
        groups = self._opened()
        groups.notifications.hub.look(("queue", queue))
        return await groups.claim(Claim(queue, limit, worker, now, crashes))

    async def settle(self, outcomes: Sequence[flowrra.Outcome], *, now: float) -> list[bool]:
        groups = self._opened()
        if not outcomes:
            return []
        for outcome in outcomes:
            if outcome.status is flowrra.SUCCESS and outcome.text is None:
                outcome.text = flowrra.encode_value(outcome)
        return cast("list[bool]", await groups.settles.put((outcomes, now), len(outcomes)))

    async def change(
        self, task_ids: Sequence[str], action: flowrra.Action, *, now: float, by: str | None = None
    ) -> list[bool]:
        groups = self._opened()
        return await groups.transact(lambda store: store.change(task_ids, action, now, by))

    async def remove(
        self, task_ids: Sequence[str] = (), *, by: str | None = None, before: float | None = None, limit: int = 1000
    ) -> Collection[str]:
        groups = self._opened()
        if before is not None:
            await self._run(sql.FORGET_AWAITED, patience=self.config.timeout)
            await self._run(sql.FORGET_KEYS, before, patience=self.config.timeout)
            return [row[0] for row in await self._run(sql.PURGE, before, limit, patience=self.config.timeout)]
        return await groups.transact(lambda store: store.remove(task_ids, by))

    async def record(self, results: Sequence[flowrra.TaskResult[Any]]) -> None:
        latest = {result.task_id: result for result in results}
        if latest:
            chosen = [latest[i] for i in sorted(latest)]
            texts = [
                await flowrra.apart(flowrra.encode, result.result) if result.is_success else None for result in chosen
            ]
            await self._run(sql.RECORD, *recorded_columns(chosen, texts, self.retention))
            self._groups.notifications.notify(finished=list(latest))

    # Workers -----------------------------------------------------------------------------------

    async def heartbeat(self, worker: flowrra.WorkerInfo, *, lease: float, now: float) -> flowrra.Notices:
        groups = self._opened()
        groups.notifications.hub.look(("worker", ""))
        if lease <= 0:
            await groups.transact(lambda store: store.leave(worker, now))
            return flowrra.Notices()
        notices, term = await groups.beat(worker, lease, now)
        worker.seen, worker.term = now, term or worker.term
        return notices

    async def set_queue(self, queue: str, *, paused: bool) -> None:
        await self._run(sql.PAUSE if paused else sql.RESUME_QUEUE, flowrra.check_queue(queue))
        self._groups.notifications.notify(ready=[queue], notices=True)

    async def overview(self, since: float | None = None) -> flowrra.Overview:
        workers = [flowrra.worker_of_row(*row) for row in await self._run(sql.WORKERS)]
        paused = {row[0] for row in await self._run("SELECT queue FROM flowrra.paused")}
        if since is None:
            return flowrra.Overview(workers, paused, [], [])
        first = math.ceil(min(since, 2.0**31 - 1))
        texts = await self._run("SELECT counts FROM flowrra.activity WHERE minute >= $1", first)
        totals = await self._run("SELECT task, what, number FROM flowrra.total")
        return flowrra.Overview(
            workers, paused, flowrra.sum_of_activity(row[0] for row in texts), flowrra.totals_of_activity(totals)
        )

    async def limits(self) -> list[flowrra.LimitUse]:
        declared = [flowrra.Limit.from_text(row[0]) for row in await self._run(sql.LIMITS)]
        rows = await self._run(sql.LIMIT_USE, patience=self.config.timeout)
        return flowrra.uses_of(declared, [(name, *numbers) for name, *numbers in rows])

    async def limit_states(self, names: Sequence[str]) -> list[flowrra.LimitKey]:
        states = limit_keys_of_rows(await self._run(sql.LIMIT_KEYS, names, [0] * len(names), False, True))
        return [states[name] for name in names]

    # Waiting and looking -----------------------------------------------------------------------

    async def wait(self, topics: Sequence[flowrra.Topic], timeout: float | None) -> None:
        groups, limit = self._opened(), math.inf if timeout is None else timeout
        if topics[0][0] != "job":
            await groups.notifications.wait(topics, limit, groups.claims.next_due)
            return
        ids = [name for _, name in topics]
        with groups.notifications.expecting_ends(topics) as waiter:
            await groups.notifications.ask_for_ends(ids)
            if all(result is not None and not result.is_finished for result in await self.get(ids)):
                await flowrra.resolved(waiter, min(limit, LOOK_EVERY))

    async def get(self, task_ids: Sequence[str]) -> list[flowrra.TaskResult[Any] | None]:
        groups = self._opened()
        return cast("list[flowrra.TaskResult[Any] | None]", await groups.gets.put(task_ids, len(task_ids)))

    async def find(
        self, which: flowrra.JobFilter, *, limit: int = 100, after: int | None = None, oldest_first: bool = False
    ) -> list[flowrra.Job]:
        if which.status is not None and len(which.status) > 1 and flowrra.SUCCESS not in which.status:
            single = [dataclasses.replace(which, status=frozenset((status,))) for status in which.status]
            found = [await self.find(one, limit=limit, after=after, oldest_first=oldest_first) for one in single]
            jobs = itertools.chain.from_iterable(found)  # the index job_rare is sorted by state
            return sorted(jobs, key=lambda job: job.seq, reverse=not oldest_first)[:limit]
        query, values = search(which, limit=limit, after=after, oldest_first=oldest_first)
        rows = await self._run(query, *values, patience=self.config.timeout)
        return await flowrra.apart(jobs_of_rows, [tuple(row) for row in rows])

    async def counts(self, which: flowrra.JobFilter | None = None) -> dict[tuple[str, flowrra.TaskStatus], int]:
        query, values = counting(which or flowrra.JobFilter())

        async def count(session: Session) -> Sequence[Any]:
            async with session.transaction():
                await session.fetch(sql.READ_ALL)
                return await session.fetch(query, *values)

        self._opened()
        rows = await cast("Link", self._link).run(count, self.config.timeout)
        return {(queue, flowrra.TaskStatus(status)): number for queue, status, number in rows}


def broker_from_url(url: str, config: flowrra.Config, clock: flowrra.Clock) -> PostgresBroker:
    """Return the broker for `postgresql://` and `postgres://`."""
    return PostgresBroker(url, config.broker, config.backend, clock)
