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

What runs in the server is in `scripts`, with the keys; their words and answers are in `calls`, the rules at work in
`changes`, the connections in `wire`, those who wait in `waiters`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import logging
import math
import os
from typing import TYPE_CHECKING, Any, cast

from flowrra import (
    ACTIVITY_KEPT,
    LAST_CHANCE,
    SUCCESS,
    UPKEEP_STEP,
    Action,
    BackendConfig,
    BrokerConfig,
    BrokerError,
    Clock,
    Config,
    Job,
    Lease,
    Notices,
    Outcome,
    Progress,
    TaskResult,
    Topic,
    Unit,
    Walk,
    WorkerInfo,
    activity_texts,
    adopt,
    change,
    check_queue,
    copy_of,
    encode,
    encode_arguments,
    encode_value,
    ended_job,
    expire,
    judge_leases,
    push,
    recorded,
    rescue,
    result_limit,
    settle,
    unknown_job,
)
from flowrra_extras.redis.calls import (
    Attempts,
    Calls,
    Claim,
    Claims,
    in_turns,
    is_plain,
    push_words,
    result_of_row,
    settle_words,
    to_json,
    worker_text,
)
from flowrra_extras.redis.changes import Changes
from flowrra_extras.redis.scripts import VERSION
from flowrra_extras.redis.searching import PAGE, SearchingBroker
from flowrra_extras.redis.waiters import Waiters
from flowrra_extras.redis.wire import Address, Call, Link

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

__all__ = ["RedisBroker", "broker_from_url"]

logger = logging.getLogger("flowrra")

_LEASES = 4  # what a heartbeat answers if leases are to be judged first
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
        self._changes = Changes(self._calls, self.retention)
        self._waiters = Waiters(self._address)
        self._next_due: float | None = None
        self._is_open = False
        self._pid = 0
        self._inherited: object = None

    def clone(self) -> RedisBroker:
        return RedisBroker(self.url, self.config, self.retention, self._clock)

    # Opening and closing -----------------------------------------------------------------------

    async def open(self) -> None:
        if self._is_open and self._pid == os.getpid():
            self._calls.abandon()
            self._waiters.abandon()
        elif self._is_open:  # by the parent of a fork, which goes on to use them: neither used nor collected
            self._inherited = self._calls, self._waiters
        self._pid = os.getpid()
        link = Link(self._address)
        link.open(self.config.timeout)
        self._calls, self._waiters, self._next_due, self._is_open = Calls(link), Waiters(self._address), None, True
        self._changes = Changes(self._calls, self.retention)
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
        """See that the keys are of this version. Of several that do it at once each does it all, so that it is done."""
        state, _ = await self._look()
        version = int(state.get("version", 1))
        if version > VERSION:
            raise BrokerError(
                f"{self._address.name} has keys of version {version} under {self._address.prefix}, "
                f"newer than the {VERSION} of this flowrra: upgrade it"
            )
        last = "0"
        while version < VERSION and last:
            last = await self._calls.run(Call("upgrade", f"({last}", str(PAGE)))

    async def close(self) -> None:
        if self._is_open:
            self._is_open = False
            await self._calls.close()
            await self._waiters.close()
            await asyncio.sleep(0)  # for the transports, which close their sockets in the next turn

    # Jobs --------------------------------------------------------------------------------------

    async def push(self, jobs: Sequence[Job], *, now: float, by: str | None = None) -> list[str]:
        if not jobs:
            return []
        if len(jobs) > _MOST:
            raise BrokerError(f"at most {_MOST:,} jobs go into Redis at once, not {len(jobs):,}: submit them in parts")
        if by is None and all(map(is_plain, jobs)):
            await self._calls.join(Call("push", *await push_words(jobs, now)), len(jobs))
            return [job.id for job in jobs]
        async for job in in_turns(jobs):
            job.payload = encode_arguments(job)

        def take_in(unit: Unit) -> Walk[list[str]]:
            new = [copy_of(job) for job in jobs]  # for each time that it runs
            return push(unit, new) if by is None else adopt(unit, new, by)

        return (await self._changes.run(now, take_in, new=len(jobs)))[0]

    async def claim(self, queue: str, *, limit: int, worker: str, now: float, crashes: int = LAST_CHANCE) -> list[Job]:
        self._waiters.look(f"jobs {queue}")
        due, jobs = await self._claim(Claim(self._claims, queue, limit, worker, now, crashes))
        if due == "upkeep":
            is_left = await self._do_upkeep(worker, now, *jobs)
            due, jobs = await self._claim(Claim(self._claims, queue, limit, worker, now, crashes, goes_on=True))
            due = now if is_left else due
        self._next_due = due
        return cast("list[Job]", jobs)

    async def _claim(self, call: Claim) -> tuple[Any, Any]:
        try:
            first, *rest = await self._calls.run(call)
        except asyncio.CancelledError:
            call.lose()
            raise
        return first, rest if first == "upkeep" else rest[0]

    async def _do_upkeep(self, worker: str, now: float, expired: int, leases: Sequence[Any]) -> bool:
        """What the rules do before a claim: a bounded step. Whether more jobs may have expired."""
        if leases[3]:
            await self._judge(leases, now, worker)
        if not expired:
            return False
        unit, plan, is_left = await self._changes.attempt(now, lambda unit: expire(unit, UPKEEP_STEP))
        return not await self._changes.write(unit, plan) or is_left  # or another one was about the same jobs

    async def settle(self, outcomes: Sequence[Outcome], *, now: float) -> list[bool]:
        for outcome in outcomes:
            if outcome.status is SUCCESS and outcome.text is None:
                outcome.text = encode_value(outcome)
        try:
            flags = await self._settle_successes(outcomes, now)
            others = [outcome for outcome, flag in zip(outcomes, flags, strict=True) if flag == "2"]
            written = iter(await self._settle_by_rules(others, now) if others else ())
        except BrokerError:
            self._doubtful.update((outcome.job.id, outcome.attempt) for outcome in outcomes)
            raise
        if self._doubtful:
            self._doubtful.difference_update((outcome.job.id, outcome.attempt) for outcome in outcomes)
        return [next(written) if flag == "2" else flag == "1" for flag in flags]

    async def _settle_successes(self, outcomes: Sequence[Outcome], now: float) -> list[str]:
        """Of each outcome 1 if it was written, 0 if not, 2 if it is left to the rules, as all but successes."""
        first: dict[tuple[int, int], int] = {}
        for index, outcome in enumerate(outcomes):
            first.setdefault((outcome.job.seq, outcome.attempt), index)
        indices = [index for index in first.values() if outcomes[index].status is SUCCESS]
        flags = ["2"] * len(outcomes)
        if indices:
            words = settle_words([outcomes[index] for index in indices], now, self.retention, self._doubtful)
            answer = await self._calls.join(Call("settle", *words), len(indices))
            for index, flag in zip(indices, answer, strict=True):
                flags[index] = flag
        return flags

    async def _settle_by_rules(self, outcomes: Sequence[Outcome], now: float) -> list[bool]:
        as_text = [dataclasses.replace(outcome, result=outcome.text) for outcome in outcomes]
        written, unit = await self._changes.run(now, lambda unit: settle(unit, as_text))
        for index, outcome in enumerate(outcomes):
            found = unit.found.get(outcome.job.id)
            if (outcome.job.id, outcome.attempt) in self._doubtful and found is not None:
                is_same = (found.seq, found.attempt, found.status) == (outcome.job.seq, outcome.attempt, outcome.status)
                written[index] |= is_same  # a call wrote it whose answer was lost
        return written

    async def heartbeat(self, worker: WorkerInfo, *, lease: float, now: float) -> Notices:
        self._waiters.look("notices")
        is_new = not worker.term and not self._calls.was_away(lease)
        about = worker_text(worker, now), to_json(list(worker.queues)), repr(now - ACTIVITY_KEPT)
        activity = [str(word) for pair in activity_texts(worker.activity).items() for word in pair]
        lost: list[str] | None = None
        while True:
            call = Call("heartbeat", worker.id, repr(lease), str(int(lost is not None)), *about, *activity)
            answer = await self._calls.run(call)
            if len(answer) != _LEASES:
                break
            lost = await self._judge(answer, now, worker.id, beat=lease, is_new=is_new, is_sure=not call.is_repeated)
        if lease <= 0:
            await self._rescue([worker.id], now)
        term, cancelled, paused, suspects, endings = answer
        lapsed = worker.term not in ("", term) and lease > 0
        worker.seen, worker.term = now, term or worker.term
        return Notices(
            cancelled, lapsed, frozenset(paused), suspects, lost or [], [ended_job(text) for text in endings]
        )

    async def _judge(
        self,
        leases: Sequence[Any],
        now: float,
        by: str,
        *,
        beat: float = 0.0,
        is_new: bool = False,
        is_sure: bool = True,
    ) -> list[str] | None:
        """Put back what the dead held, and give others fresh leases; None if the leases have changed meanwhile.

        A claim leaves those in doubt to heartbeats. Not `is_sure`: the server has kept silent, or its answer was lost.
        """
        clock, until, length, lapsed = leases
        others = {w: Lease(float(end), float(size or beat), graced == "1") for w, end, size, graced in lapsed}
        mine = Lease(float(until), float(length or beat)) if until and is_sure else None
        dead, fresh = judge_leases(others, mine, float(clock), is_new=is_new and is_sure)
        renewed = {worker: float(clock) + others[worker].length for worker in fresh} if beat else {}
        ends = {worker: end for worker, end, *_ in lapsed if worker in dead or worker in renewed}
        return dead if await self._rescue(dead, now, ends, renewed) else None

    async def _rescue(
        self,
        workers: Sequence[str],
        now: float,
        ends: Mapping[str, str] | None = None,
        renewed: Mapping[str, float] | None = None,
    ) -> bool:
        """Put back what workers held. `ends`: their leases as they were judged; without, they take their leave."""
        while True:
            unit, plan, _ = await self._changes.attempt(
                now, lambda unit: rescue(unit, workers, crashed=ends is not None)
            )
            plan.leases.update(ends or {})
            plan.end_leases(workers)
            plan.renew_leases(renewed or {})
            if await self._changes.write(unit, plan):
                return True
            if ends is not None:
                return False

    async def report(self, progress: Mapping[tuple[str, int], Progress]) -> None:
        words = ((task_id, str(n), to_json([p.done, p.total, p.note])) for (task_id, n), p in progress.items())
        await self._calls.run(Call("report", *itertools.chain.from_iterable(words)))

    async def change(self, task_ids: Sequence[str], action: Action, *, now: float, by: str | None = None) -> list[bool]:
        return (await self._changes.run(now, lambda unit: change(unit, task_ids, action, by)))[0]

    async def remove(
        self, task_ids: Sequence[str] = (), *, by: str | None = None, before: float | None = None, limit: int = 1000
    ) -> Collection[str]:
        call = Call("remove", by or "", *task_ids) if before is None else Call("purge", repr(before), str(limit))
        return cast("list[str]", await self._calls.run(call))

    async def set_queue(self, queue: str, *, paused: bool) -> None:
        await self._calls.run(Call("set_queue", check_queue(queue), str(int(paused))))

    async def record(self, results: Sequence[TaskResult[Any]]) -> None:
        def keep(unit: Unit) -> Walk[None]:
            known = yield from unit.get(result.task_id for result in results)
            for result, job in zip(results, known, strict=True):
                if job is None or not job.queue:  # a job of this store, which is in a queue, is not written over
                    new = recorded(result, self.retention)
                    new.seq = 0 if job is None else job.seq
                    new.result = encode(result.result) if result.is_success else None
                    unit.write(new, is_reported=True)

        await self._changes.run(0.0, keep, new=len(results))

    # Waiting -----------------------------------------------------------------------------------

    async def wait(self, topics: Sequence[Topic], timeout: float | None) -> None:
        if not self._is_open:
            raise BrokerError(f"the broker on {self._address.name} is not open")
        timeout = math.inf if timeout is None else timeout
        if topics[0][0] == "queue" and self._next_due is not None:
            timeout = min(timeout, self._next_due - self._clock.time())
        await self._waiters.wait([f"jobs {name}" if kind == "queue" else "notices" for kind, name in topics], timeout)

    async def wait_for(self, task_id: str, timeout: float | None) -> TaskResult[Any]:
        topic = f"results {task_id}"
        try:
            async with result_limit(task_id, timeout) as answered:
                while True:
                    self._waiters.look(topic)  # first, so that no end falls between looking and waiting
                    (result,) = await self.get([task_id])
                    if result is None:
                        raise unknown_job(task_id)
                    if result.is_finished:
                        return result
                    answered()
                    await self._waiters.wait([topic], _LOOK_EVERY)
        finally:
            self._waiters.forget(topic)

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
