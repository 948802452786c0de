"""Jobs in Redis 6.2+ or Valkey, for many machines: `pip install flowrra[redis]`.

    app = Flowrra.from_urls("redis://user:password@host:6379/0")
    app = Flowrra.from_urls("rediss://host/0?prefix=billing")     # TLS; keys under {billing}:
    app = Flowrra.from_urls("unix:///run/redis.sock?db=1")
    app = Flowrra.from_urls("redis+sentinel://host:26379,other:26379/mymaster/0")
    app = Flowrra(broker=RedisBroker(client=lambda: redis.asyncio.Redis(credential_provider=...)))

What Redis keeps on disk depends on its configuration. So that no job is lost, set

    appendonly yes
    # With `everysec`, a power failure loses the last second. With `always`, it loses nothing that was acknowledged.
    appendfsync always
    # Any other policy deletes jobs when memory is full.
    maxmemory-policy noeviction

`lua` has the scripts that run in the server, and in `common.lua` the keys; `scripts` loads them; `calls` has their
arguments and answers; `changes` applies the rules; `search` finds jobs; `connection` has the connections, and the
callers that wait for published messages.
"""

import asyncio
import copy
import dataclasses
import functools
import math
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

import flowrra
from flowrra_extras.redis.calls import (
    Attempts,
    Calls,
    Claim,
    Claims,
    in_turns,
    is_plain,
    limit_words,
    push_words,
    results_of_rows,
    settle_words,
    step_words,
    to_json,
    worker_text,
)
from flowrra_extras.redis.changes import Changes
from flowrra_extras.redis.connection import Call, ClientMaker, Notifications, address_from_client, address_from_url
from flowrra_extras.redis.scripts import FIELDS, VERSION
from flowrra_extras.redis.search import PAGE, Reader

__all__ = ["RedisBroker", "broker_from_url"]

_LEASES = 4  # the answer to a heartbeat if leases must be judged first
_LOOK_EVERY = 5.0  # seconds between polls for a result, in case a message was lost
_MOST = 500_000  # jobs in one push: Redis 6.2 takes a million arguments, and other callers wait for 5 s


class RedisBroker(Reader):
    """Stores jobs in Redis, for many processes on many machines.

    If the server is unreachable, restarts or fails over, a call waits up to `config.timeout` seconds, then raises a
    BrokerError. The call may or may not have been carried out: a `push` with the same ids can be repeated safely. A
    connection that is silent for 5 s is replaced by a new one.

    Args:
        url: the address of the server; see the docstring of the module. Give either `url` or `client`.
        config: settings of the broker, such as `timeout`.
        retention: how long finished jobs are kept.
        clock: the wall clock for due times. Leases use the server's clock.
        client: a function that makes an asyncio client of redis-py with your configuration. It is called for each
            connection, so it must make a new client each time. The broker uses one connection of the client, and sets
            how text is decoded, the time-out of the socket and the retries.
        prefix: with `client`, all keys begin with `{prefix}:`. A URL contains it as an option.
    """

    keeps_text = True
    has_limits = True

    def __init__(
        self,
        url: str = "",
        config: flowrra.BrokerConfig | None = None,
        retention: flowrra.BackendConfig | None = None,
        clock: flowrra.Clock | None = None,
        *,
        client: ClientMaker | None = None,
        prefix: str = "flowrra",
    ) -> None:
        if bool(url) == (client is not None):
            raise flowrra.ConfigError("a RedisBroker takes either a URL, which also contains the prefix, or a client")
        self._address = address_from_url(url) if client is None else address_from_client(client, prefix)
        self.url = url or self._address.name
        self.config = config or flowrra.BrokerConfig()
        self.retention = retention or flowrra.BackendConfig()
        self._clock = clock or flowrra.Clock()
        self._start_new()

    def _start_new(self) -> None:
        self._claims = Claims()
        self._doubtful: Attempts = set()
        self.store_status = flowrra.StoreStatus()
        self._make_parts()
        self._is_open = False
        self._pid = 0
        self._inherited: object = None

    def _make_parts(self) -> None:
        """Make the parts that belong to one loop."""
        self._calls = Calls(self._address, self.store_status)
        self._changes = Changes(self._calls, self.retention)
        self._notifications = Notifications(self._address)
        self._next_due: float | None = None

    def clone(self) -> "RedisBroker":
        new = copy.copy(self)
        new._start_new()
        return new

    # Opening and closing -----------------------------------------------------------------------

    async def open(self) -> None:
        if self._is_open and self._pid == os.getpid():
            await self._calls.abandon()
            await self._notifications.abandon()
        elif self._is_open:  # of the parent of a fork, which still uses them: never used or collected
            self._inherited = self._calls, self._notifications
        self._pid = os.getpid()
        self._make_parts()
        self._calls.open(self.config.timeout)
        self._is_open = True
        try:
            await self._calls.run(Call("look"))
            settings = await self._calls.settings()
            self.store_id = settings.get("store")
            _warn(self._address.name, settings)
            await self._bring_up_to_date()
        except BaseException:
            await self.close()
            raise

    async def _bring_up_to_date(self) -> None:
        """Migrate the keys to this version. Several processes may do it at once: each does all of it."""
        state, _ = await self.look()
        version = int(state.get("version", 1))
        if version > VERSION:
            raise flowrra.BrokerError(
                f"{self._address.name} has keys of version {version} under {self._address.prefix}, "
                f"newer than the {VERSION} of this flowrra: upgrade it"
            )
        while version < VERSION and await self._calls.run(Call("upgrade", str(PAGE), to_json(FIELDS))):
            pass

    async def close(self) -> None:
        if self._is_open:
            self._is_open = False
            await self._calls.close()
            await self._notifications.close()
            await asyncio.sleep(0)  # transports close their sockets in the next turn of the loop

    # Jobs --------------------------------------------------------------------------------------

    async def push(self, jobs: Sequence[flowrra.Job], *, now: float, by: str | None = None) -> list[str]:
        if not jobs:
            return []
        if len(jobs) > _MOST:
            raise flowrra.BrokerError(
                f"at most {_MOST:,} jobs go into Redis at once, not {len(jobs):,}: submit them in parts"
            )
        if by is None and all(map(is_plain, jobs)):
            await self._calls.join(Call("push", *await push_words(jobs, now)), len(jobs))
            return [job.id for job in jobs]
        async for job in in_turns(jobs):
            job.payload = flowrra.encode_arguments(job)

        def take_in(unit: flowrra.Unit) -> "flowrra.Walk[list[str]]":  # as text: not evaluated at each push
            new = [flowrra.copy_of(job) for job in jobs]  # for each run of the walk
            return flowrra.push(unit, new) if by is None else flowrra.adopt(unit, new, by)

        return (await self._changes.run(now, take_in, new=len(jobs)))[0]

    async def claim(
        self, queue: str, *, limit: int, worker: str, now: float, crashes: int = flowrra.LAST_CHANCE
    ) -> list[flowrra.Job]:
        self._notifications.hub.look(("queue", queue))
        due, jobs = await self._claim(Claim(self._claims, queue, limit, worker, now, crashes))
        if due == "upkeep":
            is_left = await self._do_upkeep(now, *jobs)
            due, jobs = await self._claim(Claim(self._claims, queue, limit, worker, now, crashes, goes_on=True))
            due = now if is_left else due
        self._next_due = due
        return cast("list[flowrra.Job]", jobs)

    async def _claim(self, call: Claim) -> tuple[Any, Any]:
        try:
            first, *rest = await self._calls.run(call)
        except asyncio.CancelledError:
            call.lose()
            raise
        return first, rest if first == "upkeep" else rest[0]

    async def _do_upkeep(self, now: float, expired: int, leases: Sequence[Any]) -> bool:
        """Run a bounded step of the upkeep that is due before a claim. Return whether more jobs may have expired."""
        if leases[3]:
            await self._changes.judge(leases, now)
        if not expired:
            return False
        unit, plan, is_left = await self._changes.attempt(now, lambda unit: flowrra.expire(unit, flowrra.UPKEEP_STEP))
        return not await self._changes.write(unit, plan) or is_left  # or another worker processed the same jobs

    async def settle(self, outcomes: Sequence[flowrra.Outcome], *, now: float) -> list[bool]:
        for outcome in outcomes:
            if outcome.status is flowrra.SUCCESS and outcome.text is None:
                outcome.text = flowrra.encode_value(outcome)
        try:
            flags = await self._settle_in_groups(outcomes, now)
            others = [outcome for outcome, flag in zip(outcomes, flags, strict=True) if flag == "2"]
            written = iter(await self._settle_by_rules(others, now) if others else ())
        except flowrra.BrokerError:
            self._doubtful.update((outcome.job.id, outcome.attempt) for outcome in outcomes)
            raise
        if self._doubtful:
            self._doubtful.difference_update((outcome.job.id, outcome.attempt) for outcome in outcomes)
        return [next(written) if flag == "2" else flag == "1" for flag in flags]

    async def _settle_in_groups(self, outcomes: Sequence[flowrra.Outcome], now: float) -> list[str]:
        """Write steps and successes. Return for each outcome 1 if written, 0 if not, 2 if it is left to the rules."""
        first: dict[tuple[int, int], int] = {}
        steps = [index for index, outcome in enumerate(outcomes) if outcome.step is not None]
        for index, outcome in enumerate(outcomes):
            if outcome.step is None:
                first.setdefault((outcome.job.seq, outcome.attempt), index)
        indices = [index for index in first.values() if outcomes[index].status is flowrra.SUCCESS]
        flags = ["2"] * len(outcomes)
        if steps:
            words = step_words([outcomes[index] for index in steps])
            for index, flag in zip(steps, await self._calls.join(Call("keep_steps", *words), len(steps)), strict=True):
                flags[index] = flag
        if indices:
            words = settle_words([outcomes[index] for index in indices], now, self.retention, self._doubtful)
            answer = await self._calls.join(Call("settle", *words), len(indices))
            for index, flag in zip(indices, answer, strict=True):
                flags[index] = flag
        return flags

    async def _settle_by_rules(self, outcomes: Sequence[flowrra.Outcome], now: float) -> list[bool]:
        as_text = [dataclasses.replace(outcome, result=outcome.text) for outcome in outcomes]
        plain = {outcome.job.id: outcome.job for outcome in outcomes if _is_plain_failure(outcome, self._doubtful)}
        walks = functools.partial(flowrra.settle, outcomes=as_text)
        events = sum(outcome.event is not None for outcome in outcomes)
        written, unit = await self._changes.run(now, walks, new=events, assumed=plain.values())
        for index, outcome in enumerate(outcomes):
            found = unit.found.get(outcome.job.id)
            if (outcome.job.id, outcome.attempt) in self._doubtful and found is not None:
                is_same = (found.seq, found.attempt, found.status) == (outcome.job.seq, outcome.attempt, outcome.status)
                written[index] |= is_same  # an earlier call wrote it, whose answer was lost
        return written

    async def heartbeat(self, worker: flowrra.WorkerInfo, *, lease: float, now: float) -> flowrra.Notices:
        self._notifications.hub.look(("worker", ""))
        is_new = not worker.term and not self._calls.was_away(lease)
        kept_from = repr(now - flowrra.ACTIVITY_KEPT)
        about = worker_text(worker, now), to_json(list(worker.queues)), self._claims.number(), kept_from
        activity = [str(word) for pair in flowrra.activity_texts(worker.activity).items() for word in pair]
        lost: list[str] | None = None
        while True:
            call = Call("heartbeat", worker.id, repr(lease), str(int(lost is not None)), *about, *activity)
            answer = await self._calls.run(call)
            if len(answer) != _LEASES:
                break
            lost = await self._changes.judge(answer, now, beat=lease, is_new=is_new, is_sure=not call.is_repeated)
        if lease <= 0:
            await self._changes.rescue([worker.id], now)
        term, cancelled, paused, suspects, endings = answer
        lapsed = worker.term not in ("", term) and lease > 0
        worker.seen, worker.term = now, term or worker.term
        return flowrra.Notices(
            cancelled, lapsed, frozenset(paused), suspects, lost or [], [flowrra.ended_job(text) for text in endings]
        )

    async def change(
        self, task_ids: Sequence[str], action: flowrra.Action, *, now: float, by: str | None = None
    ) -> list[bool]:
        if action in flowrra.LIMIT_ACTIONS:
            return await _change_limits(self._calls, task_ids, action, now, by)
        new = len(task_ids) if action == "emit" else 0
        unit, plan, done = await self._changes.attempt(
            now, lambda unit: flowrra.change(unit, task_ids, action, by), new=new
        )
        if await self._changes.write(unit, plan):
            return done
        if (middle := len(task_ids) // 2) == 0:
            return (await self._changes.run(now, lambda unit: flowrra.change(unit, task_ids, action, by), new=new))[0]
        # Workers may claim some of many jobs between the read and the write. The other jobs must not wait for those.
        halves = task_ids[:middle], task_ids[middle:]
        return [one for half in halves for one in await self.change(half, action, now=now, by=by)]

    async def remove(
        self, task_ids: Sequence[str] = (), *, by: str | None = None, before: float | None = None, limit: int = 1000
    ) -> Collection[str]:
        call = Call("remove", by or "", *task_ids) if before is None else Call("purge", repr(before), str(limit))
        return cast("list[str]", await self._calls.run(call))

    async def set_queue(self, queue: str, *, paused: bool) -> None:
        await self._calls.run(Call("set_queue", flowrra.check_queue(queue), str(int(paused))))

    async def record(self, results: Sequence[flowrra.TaskResult[Any]]) -> None:
        texts = [
            await flowrra.apart(flowrra.encode, result.result) if result.is_success else None for result in results
        ]

        def keep(unit: flowrra.Unit) -> "flowrra.Walk[None]":
            known = yield from unit.get(result.task_id for result in results)
            for result, job, text in zip(results, known, texts, strict=True):
                if job is None or not job.queue:  # a job of this store, which is in a queue, is not overwritten
                    new = flowrra.recorded(result, self.retention)
                    new.seq = 0 if job is None else job.seq
                    new.result = text
                    unit.write(new, is_reported=True)

        await self._changes.run(0.0, keep, new=len(results))

    # Waiting -----------------------------------------------------------------------------------

    async def wait(self, topics: Sequence[flowrra.Topic], timeout: float | None) -> None:
        if not self._is_open:
            raise flowrra.BrokerError(f"the broker on {self._address.name} is not open")
        hub, limit = self._notifications.hub, math.inf if timeout is None else timeout
        self._notifications.want(topics)
        if topics[0][0] == "queue" and self._next_due is not None:
            limit = min(limit, self._next_due - self._clock.time())
        if topics[0][0] != "job":
            await hub.wait(topics, None if limit == math.inf else limit)
            return
        with hub.expect(topics) as waiter:
            if all(result and not result.is_finished for result in await self.get([name for _, name in topics])):
                await flowrra.resolved(waiter, min(limit, _LOOK_EVERY))

    async def get(self, task_ids: Sequence[str]) -> list[flowrra.TaskResult[Any] | None]:
        if not task_ids:
            return []
        rows = await self._calls.join(Call("get", str(len(task_ids)), *task_ids), len(task_ids))
        return await flowrra.apart(results_of_rows, task_ids, rows)


async def _change_limits(
    calls: Calls, names: Sequence[str], action: flowrra.Action, now: float, by: str | None
) -> list[bool]:
    words = list(dict.fromkeys(names))
    if action == "limit":
        limit = flowrra.Limit.from_text(by or "")
        words = [word for name in words for word in limit_words(dataclasses.replace(limit, name=name))]
    changed = await calls.run(Call("limit", action, repr(now), os.urandom(8).hex(), *words))
    done = dict(zip(words, changed, strict=False))
    return [bool(done.get(name, True)) for name in names]


def _is_plain_failure(outcome: flowrra.Outcome, doubtful: Attempts) -> bool:
    """Whether the job is probably unchanged since its claim, so that it need not be read before it is written."""
    job = outcome.job
    is_first = job.attempt == 1 and job.status is flowrra.RUNNING and not (job.crashes or job.parents)
    has_failed = outcome.status in (flowrra.FAILED, flowrra.RETRYING)
    return is_first and has_failed and outcome.begun and (job.id, 1) not in doubtful


def _warn(name: str, settings: Mapping[str, str]) -> None:
    """Log a warning if the configuration of the server can lose jobs."""
    if settings.get("appendonly") == "no":
        flowrra.logger.warning("%s keeps no append-only file: a restart loses jobs (set appendonly yes)", name)
    policy = settings.get("maxmemory-policy", "noeviction")
    if policy != "noeviction":
        flowrra.logger.warning(
            "%s deletes keys when its memory is full: set maxmemory-policy noeviction, not %s", name, policy
        )


def broker_from_url(url: str, config: flowrra.Config, clock: flowrra.Clock) -> RedisBroker:
    """Return the broker for `redis://`, `rediss://`, `redis+sentinel://` and `unix://`."""
    return RedisBroker(url, config.broker, config.backend, clock)
