"""What concurrent callers want, as one statement: jobs to push, outcomes to settle, results to get. And claims."""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from flowrra import BackendConfig, Clock, FlowrraError, Job, Notices, Outcome, TaskResult, WorkerInfo, encode_arguments
from flowrra_extras.batching import Batcher
from flowrra_extras.postgres import statements as sql
from flowrra_extras.postgres.connections import SILENCE, Address, AwayError, Link, Session
from flowrra_extras.postgres.rows import jobs_of_claim, result_of_row
from flowrra_extras.postgres.store import Store, is_plain
from flowrra_extras.postgres.waits import Waits

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

__all__ = ["Claim", "Groups", "encode_payloads"]

T = TypeVar("T")

logger = logging.getLogger("flowrra")

_CHUNK = 2_000  # jobs of one INSERT
_SETTLED = 1_000  # outcomes of one statement
_DOUBT = 60.0  # seconds for which a claim whose answer was lost is looked for
_STEADY = 0.005  # seconds between lone pushes, and for one, that are a steady flow which nobody holds up


class Settling:
    """Outcomes on their way to the server: what is written stays so while the rest is tried again."""

    def __init__(self, outcomes: Iterable[Outcome], now: float) -> None:
        self.left = list(outcomes)
        self.now = now
        self.size = _SETTLED  # of a group: a quarter at each try, so that some of it gets through
        self.written: set[tuple[int, int]] = set()


class Claim(NamedTuple):
    """What a caller of `claim` wants."""

    queue: str
    limit: int
    worker: str
    now: float
    crashes: int


class Claims:
    """Claims, and what is remembered from one to the next.

    Where a line's first jobs were taken, the index keeps their dead entries until a vacuum, or for as long as
    somebody's transaction is old. Each claim from the beginning walks over all of them: 1,000,000 cost 5 ms, 50 us a
    job. So a claim that got all it asked for leaves a mark behind the last job, and the next ones go on from there;
    every 50 ms, or less often if it takes long, one begins at the beginning and also looks at what has come due. What
    this handle puts before a mark takes it away; of what others put there, the next look tells.
    """

    def __init__(
        self, retention: BackendConfig, publish: Callable[[Store], None], go_on: Callable[[str, float], None]
    ) -> None:
        self._retention = retention
        self._publish = publish
        self._go_on = go_on  # with upkeep, beside the claims
        # queue and worker > priority, seq, from and until when
        self._marks: dict[tuple[str, str], tuple[int, int, float, float]] = {}
        self._doubts: list[tuple[float, Claim]] = []  # claims whose answer was lost, and until when to ask
        self._latest = 0.0  # when the latest try began
        self.next_due: float | None = None

    def forget(self, queue: str | None = None, priority: int | None = None) -> None:
        """Jobs of this priority have become ready; None: some jobs have."""
        if queue is None:
            self._marks.clear()
        for place in [place for place in self._marks if place[0] == queue]:
            if priority is None or priority < self._marks[place][0]:
                del self._marks[place]

    async def serve(self, claim: Claim, session: Session) -> list[Job]:
        """What the caller gets. It may be a new try, of which an earlier one was carried out and its answer lost."""
        loop = asyncio.get_running_loop()
        if self._doubts:
            self._doubts = [doubt for doubt in self._doubts if doubt[0] > loop.time()]
            if jobs := await self._resume(session, claim):
                return jobs
        now = claim.now
        if 0 <= self._latest - now < 1:  # what a try has taken is known by its start: each has its own
            claim = claim._replace(now=self._latest + 1e-6)
        self._latest = claim.now
        try:
            return await self._claim(session, claim, now)
        except BaseException:
            self._doubts.append((loop.time() + _DOUBT, claim))
            raise

    async def _resume(self, session: Session, claim: Claim) -> list[Job]:
        """What a claim has taken that never got to know of it."""
        for doubt in list(self._doubts):
            queue, _, worker, started, _ = doubt[1]
            if (queue, worker) == (claim.queue, claim.worker):
                rows = await session.fetch(sql.RESUME, queue, worker, started)
                if rows:
                    self._doubts = [other for other in self._doubts if other is not doubt]
                    return jobs_of_claim(rows, worker, started)
        return []

    async def _claim(self, session: Session, claim: Claim, now: float) -> list[Job]:
        place = claim.queue, claim.worker
        mark = self._marks.pop(place, None)
        if mark is not None and mark[2] <= claim.now < mark[3]:
            jobs = _jobs(claim, await self._look(session, claim, mark[:2]))
            if len(jobs) == claim.limit:
                self._marks[place] = (jobs[-1].priority, jobs[-1].seq, *mark[2:])
            if jobs:
                return jobs
        began = asyncio.get_running_loop().time()
        rows = await self._look(session, claim, upkeep=True, suspects=True)
        if rows[0]["may"] and rows[0]["upkeep"]:
            store = Store(session, self._retention)
            async with session.transaction():
                more_is_left = await store.upkeep(claim.worker, now)
            self._publish(store)
            if more_is_left:
                self._go_on(claim.worker, now)
            rows = await self._look(session, claim, suspects=True)
        if rows[0]["may"] and rows[0]["suspects"]:
            return await self._claim_carefully(session, claim)
        self.next_due = rows[0]["next_due"] if rows[0]["may"] else None
        jobs = _jobs(claim, rows)
        if len(jobs) == claim.limit:
            cost = asyncio.get_running_loop().time() - began
            until = claim.now + max(0.05, 20 * cost)
            self._marks[place] = (jobs[-1].priority, jobs[-1].seq, claim.now, until)
        return jobs

    async def _claim_carefully(self, session: Session, claim: Claim) -> list[Job]:
        """Claim while there are suspects: one alone for an idle worker, else only jobs without crashes."""
        for crashes in range(max(claim.crashes, 1), 0, -1):
            rows = await session.fetch(sql.CLAIM_SUSPECT, claim.queue, claim.worker, claim.now, crashes, claim.crashes)
            jobs = _jobs(claim, rows)
            if jobs or rows[0]["alone"]:
                self.forget()  # a claim behind a mark would not notice that this worker is to get nothing else
                return jobs
        return _jobs(claim, await self._look(session, claim))

    async def _look(
        self,
        session: Session,
        claim: Claim,
        mark: tuple[int, int] = (-(2**63), 0),
        *,
        upkeep: bool = False,
        suspects: bool = False,
    ) -> Sequence[Any]:
        queue, limit, worker, now, _ = claim
        return await session.fetch(sql.CLAIM, queue, worker, now, limit, *mark, upkeep, suspects)


def _jobs(claim: Claim, rows: Sequence[Any]) -> list[Job]:
    return jobs_of_claim(rows, claim.worker, claim.now)


class Groups:
    """What concurrent callers want, put together, and what others are to know of it."""

    def __init__(self, address: Address, link: Link, retention: BackendConfig, clock: Clock) -> None:
        self._link = link
        self._retention = retention
        self._loop = asyncio.get_running_loop()
        self._steady_until = 0.0
        self._doubtful: set[tuple[int, int]] = set()  # attempts that a settle may have written whose answer was lost
        self.waits = Waits(address, link, clock)
        self.claims = Claims(retention, self.publish, self._go_on)
        self._upkeep: asyncio.Task[None] | None = None
        self.pushes = self._batcher(self._push_group)
        self.settles = self._batcher(self._settle_group)
        self.gets = self._batcher(self._get_group)

    def _batcher(self, send: Callable[[list[Any]], Awaitable[list[Any]]]) -> Batcher[Any, Any]:
        return Batcher(functools.partial(_apart, send), in_place=True)

    async def close(self) -> None:
        if self._upkeep is not None:
            self._upkeep.cancel()
            await asyncio.wait([self._upkeep])
        for batcher in (self.pushes, self.settles, self.gets):
            await batcher.close()
        await self.waits.close()

    # One at a time -----------------------------------------------------------------------------

    def publish(self, store: Store) -> None:
        """Tell of what has changed, after its commit."""
        if store.ready:
            self.claims.forget()
        if store.ready or store.notices or store.finished:
            self.waits.notify(ready=[None] if store.ready else [], notices=store.notices, finished=store.finished)

    async def transact(self, work: Callable[[Store], Awaitable[T]], silence: float = SILENCE) -> T:
        """Run `work` inside a transaction, and tell of what it has changed.

        Where the answer to a commit was lost, the server is asked what became of it: `work` is carried out once.
        """
        tried: list[tuple[str, T, Store]] = []

        async def run(session: Session) -> T:
            if not (tried and await _is_committed(session, tried[-1][0])):
                store = Store(session, self._retention)
                async with session.transaction():
                    result = await work(store)
                    ((name,),) = await session.fetch("SELECT pg_current_xact_id()::text")
                    tried.append((name, result, store))
            _, result, store = tried[-1]
            self.publish(store)
            return result

        return await self._link.run(run, silence)

    def _go_on(self, worker: str, now: float) -> None:
        """Go on with the upkeep of which a claim has done one step, beside the claims."""
        if self._upkeep is None:
            self._upkeep = self._loop.create_task(self._keep_up(worker, now))

    async def _keep_up(self, worker: str, now: float) -> None:
        try:
            while await self.transact(lambda store: store.upkeep(worker, now)):
                self.waits.wake(None)
        except FlowrraError as error:
            logger.warning("what has come due or expired is left for a later claim: %s", error)
        finally:
            self._upkeep = None
            self.waits.wake(None)

    async def claim(self, claim: Claim) -> list[Job]:
        return await self._link.run(functools.partial(self.claims.serve, claim))

    async def beat(self, worker: WorkerInfo, lease: float, now: float) -> tuple[Notices, str]:
        """A heartbeat, and the term. It does not wait long for a silent connection: the lease would run out meanwhile.

        A repetition rescues nobody, nor does a new worker that has found the server away a moment ago.
        """
        silence = min(SILENCE, max(0.5, lease / 3))
        is_new = not worker.term and self._loop.time() - self._link.failed > lease
        tries = itertools.count()

        async def renew(session: Session) -> tuple[Notices, str]:
            again = next(tries) > 0
            return await Store(session, self._retention).beat(worker, lease, now, is_new=is_new, again=again)

        notices, term = await self._link.run(renew, silence)
        if dead := notices.lost_workers:
            notices.lost_workers = await self.transact(lambda store: store.rescue(dead, now), silence)
            later, _ = await self._link.run(renew, silence)
            notices.suspects, notices.endings = later.suspects, [*notices.endings, *later.endings]
        return notices, term

    # Together ----------------------------------------------------------------------------------

    async def push(self, jobs: Sequence[Job], now: float) -> list[str]:
        is_family = any(job.parents for job in jobs)
        if is_family or len(jobs) <= _CHUNK:
            encode_payloads(jobs)
        if not is_family:
            ids: list[str] = await self.pushes.put((jobs, now), len(jobs))
            return ids
        ids = await self._push_on(jobs, now)
        self.claims.forget()
        return ids

    async def _push_group(self, items: Sequence[tuple[Sequence[Job], float]]) -> list[list[str]]:
        jobs = list(itertools.chain.from_iterable(item[0] for item in items))
        now = items[0][1]
        if len(jobs) == 1 and is_plain(jobs[0]):
            await self._push_one(jobs[0], now)
            ids = iter([jobs[0].id])
        else:
            ids = iter(await self._push_on(jobs, now))
        for queue, priority in {(job.queue, job.priority) for job in jobs}:
            self.claims.forget(queue, priority)
        return [list(itertools.islice(ids, len(item[0]))) for item in items]

    async def _push_one(self, job: Job, now: float) -> None:
        """One statement; or two, so that the job may start elsewhere while its commit goes to disk.

        Two, if it comes after a pause: 0.6 instead of 1.1 to 4 ms until a worker hears of it, for 0.04 ms more of the
        caller's time. Or if the push before it was held up: a commit with a NOTIFY has all others wait for its disk.
        """
        began = self._loop.time()
        early = began >= self._steady_until
        notice = self.waits.notice(job.queue)

        async def run(session: Session) -> None:
            await Store(session, self._retention).push_one(job, now, *notice, early=early)

        await self._link.run(run)
        self.waits.wake(job.queue)
        ended = self._loop.time()
        self._steady_until = ended + _STEADY if ended - began < _STEADY else 0.0

    async def _push_on(self, jobs: Sequence[Job], now: float) -> list[str]:
        async def run(session: Session) -> tuple[list[str], list[str]]:
            store = Store(session, self._retention)
            if len(jobs) <= _CHUNK or not all(map(is_plain, jobs)):
                return await store.push(jobs, now), store.finished
            async with session.transaction():
                return await self._push_chunks(store, jobs, now), []

        ids, finished = await self._link.run(run, SILENCE + len(jobs) / 1000)
        self.waits.notify(ready={job.queue for job in jobs}, finished=finished)
        return ids

    async def _push_chunks(self, store: Store, jobs: Sequence[Job], now: float) -> list[str]:
        """While the server takes one chunk in, the next is encoded."""
        ids: list[str] = []
        sent: asyncio.Task[list[str]] | None = None
        try:
            for start in range(0, len(jobs), _CHUNK):
                chunk = jobs[start : start + _CHUNK]
                encode_payloads(chunk)
                ids += await sent if sent is not None else ()
                sent = asyncio.create_task(store.push(chunk, now))
                await asyncio.sleep(0)  # sent it is, before the next is encoded
            ids += await sent if sent is not None else ()
        except BaseException:
            if sent is not None:
                sent.cancel()
                await asyncio.wait([sent])
            raise
        return ids

    async def _settle_group(self, items: list[tuple[Sequence[Outcome], float]]) -> list[list[bool]]:
        """Of two outcomes of one attempt the first counts."""
        chosen: dict[tuple[int, int], Outcome] = {}
        for outcome in itertools.chain.from_iterable(item[0] for item in items):
            chosen.setdefault(_key(outcome), outcome)
        settling = Settling(chosen.values(), items[0][1])
        try:
            await self._link.run(functools.partial(self._settle, settling), SILENCE + len(chosen) / 200)
        except BaseException:
            self._doubtful.update(settling.written)  # of which the caller does not get to know
            raise
        written = settling.written
        return [[chosen[_key(o)] is o and _key(o) in written for o in outcomes] for outcomes, _ in items]

    async def _settle(self, settling: Settling, session: Session) -> None:
        size, settling.size = settling.size, max(1, settling.size // 4)
        while settling.left:
            settling.written |= await self._settle_some(settling.left[:size], settling.now, session)
            del settling.left[:size]

    async def _settle_some(self, outcomes: Sequence[Outcome], now: float, session: Session) -> set[tuple[int, int]]:
        store = Store(session, self._retention)
        try:
            written = await store.settle(outcomes, now, careful=False)
            left = [outcome for outcome in outcomes if _key(outcome) not in written]
            doubtful = [outcome for outcome in left if _key(outcome) in self._doubtful]
            if doubtful:
                written |= await store.written(doubtful)
                left = [outcome for outcome in left if _key(outcome) not in written]
            if left:
                written |= await store.settle(left, now, careful=True)
        except BaseException:
            self._doubtful.update(map(_key, outcomes))
            raise
        if self._doubtful:
            self._doubtful.difference_update(map(_key, outcomes))
        self.publish(store)
        return written

    async def _get_group(self, items: list[Sequence[str]]) -> list[list[TaskResult[Any] | None]]:
        wanted = list(set(itertools.chain.from_iterable(items)))
        found = {row[0]: row for row in await self._link.fetch(sql.GET, wanted)}
        return [[result_of_row(found[i]) if i in found else None for i in ids] for ids in items]


async def _is_committed(session: Session, transaction: str) -> bool:
    """What became of a transaction whose answer was lost."""
    ((fate,),) = await session.fetch(sql.FATE, transaction)
    if fate == "in progress":
        raise ConnectionError("an earlier try, whose connection was lost, is still under way")
    return bool(fate == "committed")


async def _apart(send: Callable[[list[Any]], Awaitable[list[Any]]], items: list[Any]) -> list[Any]:
    """Send a group; where it is refused for one item, its halves go alone, and so on, so that only that one fails."""
    try:
        return await send(items)
    except Exception as error:
        if len(items) == 1 or isinstance(error, AwayError):
            return [error] * len(items)
    middle = len(items) // 2
    return [*await _apart(send, items[:middle]), *await _apart(send, items[middle:])]


def _key(outcome: Outcome) -> tuple[int, int]:
    return outcome.job.seq, outcome.attempt


def encode_payloads(jobs: Sequence[Job]) -> None:
    for job in jobs:
        job.payload = encode_arguments(job)
