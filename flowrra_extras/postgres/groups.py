"""Groups: concurrent pushes, settles and reads of results become one statement each. Also claims."""

from __future__ import annotations

import asyncio
import functools
import itertools
import math
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import flowrra
from flowrra_extras.batching import Batcher, end_task
from flowrra_extras.postgres import statements as sql
from flowrra_extras.postgres.connections import SILENCE, Address, AwayError, Link, Session
from flowrra_extras.postgres.notifications import Notifications
from flowrra_extras.postgres.store import Store, is_plain, jobs_of_claim, results_of_rows

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

T = TypeVar("T")

_CHUNK = 2_000  # jobs of one INSERT
_SETTLED = 1_000  # outcomes of one statement
_DOUBT = 60.0  # seconds during which claims look for the jobs of a claim whose answer was lost, from the first look
_STEADY = 0.005  # seconds: single pushes that follow each other, and take no longer, are a steady flow


class Settling:
    """Outcomes that are being sent. What was written is remembered while the rest is tried again."""

    def __init__(self, outcomes: Iterable[flowrra.Outcome], now: float) -> None:
        self.left = list(outcomes)
        self.now = now
        self.size = _SETTLED  # of a group: each try divides it by four, so that some groups succeed
        self.written: set[tuple[int, int]] = set()


class Claim(NamedTuple):
    """The arguments of a caller of `claim`."""

    queue: str
    limit: int
    worker: str
    now: float
    crashes: int


class Claims:
    """Claims, and the state that is kept between them.

    When the first jobs of a queue were claimed, their dead entries stay in the index until a vacuum, which a long
    transaction can delay. A claim from the start of the queue reads all of them: 1,000,000 cost 5 ms, 50 us per job. So
    a claim that got as many jobs as it asked for leaves a mark behind the last one, and the next claims start there.
    Every 50 ms, or less often if it takes long, a claim starts at the beginning and also checks for due jobs. If this
    handle adds a job before a mark, the mark is removed. Jobs that others add there are found by the next such claim.
    """

    def __init__(
        self, retention: flowrra.BackendConfig, publish: Callable[[Store], None], go_on: Callable[[str, float], None]
    ) -> None:
        self._retention = retention
        self._publish = publish
        self._go_on = go_on  # continues upkeep in the background
        # (queue, worker) -> (place of the last job, valid from, valid until)
        self._marks: dict[tuple[str, str], tuple[_Place, float, float]] = {}
        self._charged: set[str] = set()  # queues whose latest jobs have limits to which claims are charged
        self._doubts: dict[Claim, float] = {}  # claims whose answer was lost > until when to look for their jobs
        self._latest = 0.0  # when the latest try started
        self.next_due: float | None = None

    def forget(self, queue: str | None = None, priority: int | None = None) -> None:
        """Remove the marks behind new ready jobs of this queue and priority; None: of any."""
        if queue is None:
            self._marks.clear()
        for place in [place for place in self._marks if place[0] == queue]:
            if priority is None or priority < self._marks[place][0][0]:
                del self._marks[place]

    async def serve(self, claim: Claim, session: Session) -> list[flowrra.Job]:
        """Return the jobs for a claim. An earlier try of it may have claimed jobs although its answer was lost."""
        if self._doubts and (jobs := await self._resume(session, claim)):
            return jobs
        now = claim.now
        if 0 <= self._latest - now < _DOUBT:  # the jobs of a try are found by its start time, so it must be unique
            claim = claim._replace(now=self._latest + 1e-6)
        self._latest = claim.now
        try:
            return await self._claim(session, claim, now)
        except BaseException:
            self._doubts[claim] = math.inf  # however long the server cannot be reached
            raise

    async def _resume(self, session: Session, claim: Claim) -> list[flowrra.Job]:
        """Return the jobs of an earlier claim whose answer was lost. One statement looks for all such claims."""
        now, place = asyncio.get_running_loop().time(), (claim.queue, claim.worker)
        doubts = {doubt.now: doubt for doubt in self._doubts if (doubt.queue, doubt.worker) == place}
        rows = await session.fetch(sql.RESUME, *place, [*doubts]) if doubts else ()
        found = doubts[rows[0]["began"]] if rows else None  # the claim may be a doubt itself, if it is sent again
        jobs = await _jobs(session, found, [row for row in rows if row["began"] == found.now]) if found else []
        for doubt in doubts.values():
            self._doubts[doubt] = min(self._doubts[doubt], now + _DOUBT)
            if doubt is found or self._doubts[doubt] < now:
                del self._doubts[doubt]
        return jobs

    async def _claim(self, session: Session, claim: Claim, now: float) -> list[flowrra.Job]:
        place = claim.queue, claim.worker
        mark = self._marks.pop(place, None)
        if mark is not None and mark[1] <= claim.now < mark[2]:
            jobs = await _jobs(session, claim, await self._look(session, claim, now, mark[0]))
            if len(jobs) == claim.limit:
                self._marks[place] = (_place_of(jobs[-1]), *mark[1:])
            if jobs:
                return jobs
        began = asyncio.get_running_loop().time()
        rows = await self._look(session, claim, now, upkeep=True, suspects=True)
        if rows[0]["may"] and rows[0]["upkeep"]:
            store = Store(session, self._retention)
            async with session.transaction():
                more_is_left = await store.upkeep(claim.worker, now)
            self._publish(store)
            if more_is_left:
                self._go_on(claim.worker, now)
            rows = await self._look(session, claim, now, suspects=True)
        if rows[0]["may"] and rows[0]["suspects"]:
            return await self._claim_carefully(session, claim, now)
        self.next_due = rows[0]["next_due"] if rows[0]["may"] else None
        jobs = await _jobs(session, claim, rows)
        if len(jobs) == claim.limit:
            cost = asyncio.get_running_loop().time() - began
            until = claim.now + max(0.05, 20 * cost)
            self._marks[place] = (_place_of(jobs[-1]), claim.now, until)
        return jobs

    async def _claim_carefully(self, session: Session, claim: Claim, now: float) -> list[flowrra.Job]:
        """Claim while suspects are waiting: one suspect for an idle worker, otherwise only jobs without crashes."""
        for crashes in range(max(claim.crashes, 1), 0, -1):
            store = Store(session, self._retention)
            async with session.transaction():
                values = claim.queue, claim.worker, claim.now, crashes, claim.crashes
                rows = await session.fetch(sql.CLAIM_SUSPECT, *values)
                await store.charge([row["limit_key"] for row in rows if row["limit_key"] is not None], now)
            self._publish(store)
            jobs = await _jobs(session, claim, rows)
            if jobs or rows[0]["alone"]:
                self.forget()  # a claim behind a mark would not notice that this worker must get no other job
                return jobs
        return await _jobs(session, claim, await self._look(session, claim, now))

    async def _look(
        self,
        session: Session,
        claim: Claim,
        now: float,
        mark: _Place = (-(2**63), 0, 0),
        *,
        upkeep: bool = False,
        suspects: bool = False,
    ) -> Sequence[Any]:
        """Claim. In a transaction, if there are jobs with limits that are charged for it."""
        queue, limit, worker, moment, _ = claim
        values = queue, worker, moment, limit, *mark, upkeep, suspects
        if queue not in self._charged:
            rows = await session.fetch(sql.CLAIM, *values)
            if not rows[0]["charged"]:
                return rows
            self._charged.add(queue)
        store = Store(session, self._retention)
        async with session.transaction():
            rows = await session.fetch(sql.CLAIM_CHARGED, *values)
            charged = {limit.name: limit for limit in map(flowrra.Limit.from_text, rows[0]["texts"])}
            keys = [row["limit_key"] for row in rows if row["limit_key"] is not None]
            await store.charge([key for key in keys if flowrra.split_limit_key(key)[0] in charged], now, charged)
        self._publish(store)
        if rows[0]["seq"] is not None and not charged:
            self._charged.discard(queue)
        return rows


_Place = tuple[int, int, int]  # of a job among those that are ready


def _place_of(job: flowrra.Job) -> _Place:
    return job.priority, job.place, job.seq


async def _jobs(session: Session, claim: Claim, rows: Sequence[Any]) -> list[flowrra.Job]:
    return await jobs_of_claim(session, rows, claim.worker, claim.now)


class Groups:
    """Sends concurrent calls in groups, and notifies others of the changes."""

    def __init__(self, address: Address, link: Link, retention: flowrra.BackendConfig, clock: flowrra.Clock) -> None:
        self._link = link
        self._retention = retention
        self._loop = asyncio.get_running_loop()
        self._steady_until = 0.0
        self._doubtful: set[tuple[int, int]] = set()  # attempts that a settle may have written, whose answer was lost
        self.notifications = Notifications(address, link, clock)
        self.claims = Claims(retention, self.publish, self._go_on)
        self._upkeep: asyncio.Task[None] | None = None
        self.pushes = self._batcher(self._push_group)
        self.limited_pushes = self._batcher(self._push_group)
        self.settles = self._batcher(self._settle_group)
        self.gets = self._batcher(self._get_group)

    def _batcher(self, send: Callable[[list[Any]], Awaitable[list[Any]]]) -> Batcher[Any, Any]:
        return Batcher(functools.partial(_apart, send), in_place=True)

    async def close(self) -> None:
        await end_task(self._upkeep)
        for batcher in (self.pushes, self.limited_pushes, self.settles, self.gets):
            await batcher.close()
        await self.notifications.close()

    # One at a time -----------------------------------------------------------------------------

    def publish(self, store: Store) -> None:
        """Notify others of changes, after their commit."""
        for queue in store.ready:
            self.claims.forget(queue)
        if store.ready or store.notices or store.finished:
            self.notifications.notify(ready=store.ready, notices=store.notices, finished=store.finished)

    async def transact(self, work: Callable[[Store], Awaitable[T]], silence: float = SILENCE) -> T:
        """Run `work` inside a transaction, and notify others of its changes.

        If the answer to a commit is lost, the server is asked whether it was committed, so `work` takes effect once.
        """
        tried: list[tuple[str, T, Store]] = []

        async def run(session: Session) -> T:
            if not (tried and await _is_committed(session, tried[-1][0])):
                store = Store(session, self._retention)
                async with session.transaction():
                    result = await work(store)
                    await store.admit()
                    ((name,),) = await session.fetch("SELECT pg_current_xact_id()::text")
                    tried.append((name, result, store))
            _, result, store = tried[-1]
            self.publish(store)
            return result

        return await self._link.run(run, silence)

    def _go_on(self, worker: str, now: float) -> None:
        """Continue the upkeep in the background. A claim has done its first step."""
        if self._upkeep is None:
            self._upkeep = self._loop.create_task(self._keep_up(worker, now))

    async def _keep_up(self, worker: str, now: float) -> None:
        try:
            while await self.transact(lambda store: store.upkeep(worker, now)):
                self.notifications.wake(None)
        except flowrra.FlowrraError as error:
            flowrra.logger.warning("upkeep of due and expired jobs failed, a later claim continues it: %s", error)
        finally:
            self._upkeep = None
            self.notifications.wake(None)

    async def claim(self, claim: Claim) -> list[flowrra.Job]:
        return await self._link.run(functools.partial(self.claims.serve, claim))

    async def beat(self, worker: flowrra.WorkerInfo, lease: float, now: float) -> tuple[flowrra.Notices, str]:
        """Send a heartbeat. Return the notices and the term. A silent connection is replaced before the lease ends.

        A repeated heartbeat rescues no jobs, and neither does a new worker if the server was unreachable just before.
        """
        silence = min(SILENCE, max(0.5, lease / 3))
        is_new = not worker.term and self._loop.time() - self._link.failed > lease
        tries = itertools.count()

        async def renew(session: Session) -> tuple[flowrra.Notices, str]:
            again = next(tries) > 0
            return await Store(session, self._retention).beat(worker, lease, now, is_new=is_new, again=again)

        notices, term = await self._link.run(renew, silence)
        if dead := notices.lost_workers:
            notices.lost_workers = await self.transact(lambda store: store.rescue(dead, now), silence)
            later, _ = await self._link.run(renew, silence)
            notices.suspects, notices.endings = later.suspects, [*notices.endings, *later.endings]
        return notices, term

    # Together ----------------------------------------------------------------------------------

    async def push(self, jobs: Sequence[flowrra.Job], now: float) -> list[str]:
        is_family = any(job.parents for job in jobs)
        if is_family or len(jobs) <= _CHUNK:
            encode_payloads(jobs)
        if not is_family:
            pushes = self.limited_pushes if any(job.limit is not None for job in jobs) else self.pushes
            ids: list[str] = await pushes.put((jobs, now), len(jobs))
            return ids
        ids = await self._push_on(jobs, now)
        self.claims.forget()
        return ids

    async def _push_group(self, items: Sequence[tuple[Sequence[flowrra.Job], float]]) -> list[list[str]]:
        jobs = list(itertools.chain.from_iterable(item[0] for item in items))
        now = items[0][1]
        if len(jobs) == 1 and is_plain(jobs[0]) and jobs[0].limit is None:
            await self._push_one(jobs[0], now)
            ids = iter([jobs[0].id])
        else:
            ids = iter(await self._push_on(jobs, now))
        for queue, priority in {(job.queue, job.priority) for job in jobs}:
            self.claims.forget(queue, priority)
        return [list(itertools.islice(ids, len(item[0]))) for item in items]

    async def _push_one(self, job: flowrra.Job, now: float) -> None:
        """Push with one statement, or with two, so that the job can start elsewhere before its commit is on disk.

        Use two after a pause: a worker is notified after 0.6 instead of 1.1 to 4 ms, and the caller waits 0.04 ms
        longer. Also if the push before was delayed: a commit with a NOTIFY makes all others wait for its disk write.
        """
        began = self._loop.time()
        early = began >= self._steady_until
        notice = self.notifications.notice(job.queue)

        await self._link.run(lambda session: Store(session, self._retention).push_one(job, now, *notice, early=early))
        self.notifications.wake(job.queue)
        ended = self._loop.time()
        self._steady_until = ended + _STEADY if ended - began < _STEADY else 0.0

    async def _push_on(self, jobs: Sequence[flowrra.Job], now: float) -> list[str]:
        async def run(session: Session) -> tuple[list[str], list[str]]:
            store = Store(session, self._retention)
            are_plain, is_limited = all(map(is_plain, jobs)), any(job.limit is not None for job in jobs)
            if not is_limited and (len(jobs) <= _CHUNK or not are_plain):
                return await store.push(jobs, now), store.finished
            async with session.transaction():
                ids = await (self._push_chunks(store, jobs, now) if are_plain else store.push(jobs, now))
                await store.admit()
            self.publish(store)
            return ids, []

        if any(job.conflict is not None for job in jobs):  # one that has replaced a job must not do so again
            ids, finished = await self.transact(lambda store: store.push(jobs, now)), list[str]()
        else:
            ids, finished = await self._link.run(run, SILENCE + len(jobs) / 1000)
        self.notifications.notify(ready={job.queue for job in jobs}, finished=finished)
        return ids

    async def _push_chunks(self, store: Store, jobs: Sequence[flowrra.Job], now: float) -> list[str]:
        """Push in chunks. While the server stores one chunk, the next one is encoded."""
        ids: list[str] = []
        sent: asyncio.Task[list[str]] | None = None
        try:
            for start in range(0, len(jobs), _CHUNK):
                chunk = jobs[start : start + _CHUNK]
                encode_payloads(chunk)
                ids += await sent if sent is not None else ()
                sent = asyncio.create_task(store.push(chunk, now))
                await asyncio.sleep(0)  # send it before the next one is encoded
            ids += await sent if sent is not None else ()
        except BaseException:
            await end_task(sent)
            raise
        return ids

    async def _settle_group(self, items: list[tuple[Sequence[flowrra.Outcome], float]]) -> list[list[bool]]:
        """Settle outcomes. Of two ends of one attempt, the first counts. Its steps and progress are written before."""
        now, chosen, going_on = items[0][1], dict[tuple[int, int], flowrra.Outcome](), list[flowrra.Outcome]()
        for outcome in itertools.chain.from_iterable(item[0] for item in items):
            if outcome.status is flowrra.RUNNING:
                going_on.append(outcome)
            else:
                chosen.setdefault(_key(outcome), outcome)
        told: set[tuple[int, int]] = set()
        if going_on:
            told = await self._link.run(functools.partial(self._tell, going_on, now), SILENCE + len(going_on) / 200)
        settling = Settling(chosen.values(), now)
        try:
            await self._link.run(functools.partial(self._settle, settling), SILENCE + len(chosen) / 200)
        except BaseException:
            self._doubtful.update(settling.written)  # the caller does not see these
            raise
        written = settling.written
        return [
            [
                _key(o) in told if o.status is flowrra.RUNNING else chosen[_key(o)] is o and _key(o) in written
                for o in outcomes
            ]
            for outcomes, _ in items
        ]

    async def _tell(self, outcomes: Sequence[flowrra.Outcome], now: float, session: Session) -> set[tuple[int, int]]:
        store, told = Store(session, self._retention), set[tuple[int, int]]()
        if steps := [outcome for outcome in outcomes if outcome.step is not None]:
            told |= await store.keep_steps(steps)
        if reports := [outcome for outcome in outcomes if outcome.step is None]:
            told |= await store.settle(reports, now, careful=True)
        self.publish(store)
        return told

    async def _settle(self, settling: Settling, session: Session) -> None:
        size, settling.size = settling.size, max(1, settling.size // 4)
        while settling.left:
            settling.written |= await self._settle_some(settling.left[:size], settling.now, session)
            del settling.left[:size]

    async def _settle_some(
        self, outcomes: Sequence[flowrra.Outcome], now: float, session: Session
    ) -> set[tuple[int, int]]:
        store = Store(session, self._retention)
        limited = [outcome for outcome in outcomes if outcome.job.limit is not None]
        free = [outcome for outcome in outcomes if outcome.job.limit is None] if limited else outcomes
        try:
            written = await self._settle_with(store, free, now) if free else set()
            if limited:
                async with session.transaction():
                    written |= await self._settle_with(store, limited, now)
                    await store.admit()
        except BaseException:
            self._doubtful.update(map(_key, outcomes))
            raise
        if self._doubtful:
            self._doubtful.difference_update(map(_key, outcomes))
        self.publish(store)
        return written

    async def _settle_with(self, store: Store, outcomes: Sequence[flowrra.Outcome], now: float) -> set[tuple[int, int]]:
        written = await store.settle(outcomes, now, careful=False)
        left = [outcome for outcome in outcomes if _key(outcome) not in written]
        doubtful = [outcome for outcome in left if _key(outcome) in self._doubtful]
        if doubtful:
            written |= await store.written(doubtful)
            left = [outcome for outcome in left if _key(outcome) not in written]
        if left:
            written |= await store.settle(left, now, careful=True)
        return written

    async def _get_group(self, items: list[Sequence[str]]) -> list[list[flowrra.TaskResult[Any] | None]]:
        wanted = list(set(itertools.chain.from_iterable(items)))
        found = [tuple(row) for row in await self._link.fetch(sql.GET, wanted)]
        results = {one.task_id: one for one in await flowrra.apart(results_of_rows, found)}
        return [[results.get(i) for i in ids] for ids in items]


async def _is_committed(session: Session, transaction: str) -> bool:
    """Whether a transaction whose answer was lost was committed."""
    ((fate,),) = await session.fetch(sql.FATE, transaction)
    if fate == "in progress":
        raise ConnectionError("an earlier try, whose connection was lost, is still running")
    return bool(fate == "committed")


async def _apart(send: Callable[[list[Any]], Awaitable[list[Any]]], items: list[Any]) -> list[Any]:
    """Send a group. If the server refuses it, send each half, and so on, so that only the wrong item fails."""
    try:
        return await send(items)
    except Exception as error:
        if len(items) == 1 or isinstance(error, AwayError):
            return [error] * len(items)
    middle = len(items) // 2
    return [*await _apart(send, items[:middle]), *await _apart(send, items[middle:])]


def _key(outcome: flowrra.Outcome) -> tuple[int, int]:
    return outcome.job.seq, outcome.attempt


def encode_payloads(jobs: Sequence[flowrra.Job]) -> None:
    for job in jobs:
        job.payload = flowrra.encode_arguments(job)
