"""What concurrent callers want, as one statement: jobs to push, claims, outcomes to settle, results to get."""

from __future__ import annotations

import asyncio
import functools
import itertools
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from flowrra import BackendConfig, Clock, Job, Notices, Outcome, TaskResult, WorkerInfo, encode_arguments
from flowrra_extras.batching import Batcher
from flowrra_extras.postgres import statements as sql
from flowrra_extras.postgres.connections import SILENCE, Address, AwayError, Link, Session
from flowrra_extras.postgres.news import Waits
from flowrra_extras.postgres.rows import job_of_claim, jobs_of_claim, result_of_row
from flowrra_extras.postgres.store import Store

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

__all__ = ["CHUNK", "Claim", "Groups", "encode_payloads"]

T = TypeVar("T")

CHUNK = 2_000  # jobs of one INSERT: while the server takes one chunk in, the next is encoded
_DOUBT = 60.0  # seconds for which a claim whose answer was lost is looked for
_CONTENDED = 0.005  # seconds that a lone push takes when others hold it up


class Claim(NamedTuple):
    """What a caller of `claim` wants."""

    queue: str
    limit: int
    worker: str
    now: float


class Claims:
    """Claims, one after the other: what is remembered from one to the next.

    Where a line's first jobs were taken, the index keeps their dead entries until a vacuum, or for as long as
    somebody's transaction is old. Each claim from the beginning walks over all of them: 1,000,000 cost 5 ms, 50 us a
    job. So a claim that got all it asked for leaves a mark behind the last job, and the next ones go on from there;
    every 50 ms, or less often if it takes long, one begins at the beginning and also looks at what has come due. What
    this handle puts before a mark takes it away; of what others put there, the next look tells.
    """

    def __init__(self, retention: BackendConfig, publish: Callable[[Store], None]) -> None:
        self._retention = retention
        self._publish = publish
        self._marks: dict[str, tuple[int, int, float, float]] = {}  # queue > priority, seq, from and until when
        self._doubts: list[tuple[float, Claim]] = []  # claims whose answer was lost, and until when to ask
        self.next_due: float | None = None

    def forget(self, queue: str | None = None, priority: int | None = None) -> None:
        """Jobs of this priority have become ready; None: some jobs have."""
        if queue is None:
            self._marks.clear()
        elif queue in self._marks and (priority is None or priority < self._marks[queue][0]):
            del self._marks[queue]

    async def serve(self, wanted: Sequence[Claim], tries: list[int], session: Session) -> list[list[Job]]:
        """What each caller gets. `tries` counts: an earlier try may have been carried out, its answer lost."""
        tries[0] += 1
        found = []
        for claim in wanted:
            # The start tells what a try has taken from what other ones have: each has its own.
            claim = claim._replace(now=claim.now + (tries[0] - 1) * 1e-5)
            jobs = await self._resume(session, claim) if self._doubts else []
            if not jobs:
                doubt = (asyncio.get_running_loop().time() + _DOUBT, claim)
                self._doubts.append(doubt)
                jobs = await self._claim(session, claim)
                self._doubts.remove(doubt)
            found.append(jobs)
        return found

    async def _resume(self, session: Session, claim: Claim) -> list[Job]:
        """What a claim has taken that never got to know of it."""
        moment = asyncio.get_running_loop().time()
        self._doubts = [(until, doubt) for until, doubt in self._doubts if until > moment]
        for entry in [
            entry for entry in self._doubts if entry[1].worker == claim.worker and entry[1].queue == claim.queue
        ]:
            rows = await session.fetch(sql.RESUME, claim.queue, claim.worker, entry[1].now)
            if rows:
                self._doubts.remove(entry)
                return [job_of_claim(row, claim.worker, entry[1].now) for row in rows]
        return []

    async def _claim(self, session: Session, claim: Claim) -> list[Job]:
        mark = self._marks.pop(claim.queue, None)
        if mark is not None and mark[2] <= claim.now < mark[3]:
            rows = await self._look(session, claim, mark[:2])
            jobs = jobs_of_claim(rows, claim.worker, claim.now)
            if len(jobs) == claim.limit:
                self._marks[claim.queue] = (jobs[-1].priority, jobs[-1].seq, *mark[2:])
            if jobs:
                return jobs
        began = asyncio.get_running_loop().time()
        rows = await self._look(session, claim, upkeep=True, suspects=True)
        if rows[0]["may"] and rows[0]["upkeep"]:
            store = Store(session, self._retention)
            async with session.transaction():
                await store.upkeep(claim.worker, claim.now)
            self._publish(store)
            rows = await self._look(session, claim, suspects=True)
        if rows[0]["may"] and rows[0]["suspects"]:
            return await self._claim_carefully(session, claim)
        self.next_due = rows[0]["next_due"] if rows[0]["may"] else None
        jobs = jobs_of_claim(rows, claim.worker, claim.now)
        if len(jobs) == claim.limit:
            cost = asyncio.get_running_loop().time() - began
            until = claim.now + max(0.05, 20 * cost)
            self._marks[claim.queue] = (jobs[-1].priority, jobs[-1].seq, claim.now, until)
        return jobs

    async def _claim_carefully(self, session: Session, claim: Claim) -> list[Job]:
        """Claim while there are suspects: one alone for an idle worker, else only jobs without crashes."""
        rows = await session.fetch(sql.CLAIM_SUSPECT, claim.queue, claim.worker, claim.now)
        jobs = jobs_of_claim(rows, claim.worker, claim.now)
        if jobs or rows[0]["alone"]:
            return jobs
        return jobs_of_claim(await self._look(session, claim), claim.worker, claim.now)

    async def _look(
        self,
        session: Session,
        claim: Claim,
        mark: tuple[int, int] = (-(2**63), 0),
        *,
        upkeep: bool = False,
        suspects: bool = False,
    ) -> Sequence[Any]:
        queue, limit, worker, now = claim
        return await session.fetch(sql.CLAIM, queue, worker, now, limit, *mark, upkeep, suspects)


class Groups:
    """What concurrent callers want, as one statement: jobs to push, claims, outcomes to settle, results to get."""

    def __init__(self, address: Address, link: Link, retention: BackendConfig, clock: Clock) -> None:
        self._link = link
        self._retention = retention
        self._loop = asyncio.get_running_loop()
        self._alone_again = 0.0  # after a push that had to wait for others: none notifies by itself before then
        self.waits = Waits(address, link, clock)
        self.claims = Claims(retention, self.publish)
        self.pushes = self._batcher(self._push_group)
        self.settles = self._batcher(self._settle_group)
        self.gets = self._batcher(self._get_group)
        self.claiming: Batcher[Claim, list[Job]] = Batcher(self._claim_group)

    def _batcher(self, send: Callable[[list[Any]], Awaitable[list[Any]]]) -> Batcher[Any, Any]:
        return Batcher(functools.partial(_apart, send))

    async def close(self) -> None:
        for batcher in (self.pushes, self.settles, self.claiming, self.gets):
            await batcher.close()
        await self.waits.close()

    def publish(self, store: Store) -> None:
        """Tell of what has changed, after its commit."""
        if store.ready:
            self.claims.forget()
        if store.ready or store.finished:
            self.waits.tell(ready=[None] if store.ready else [], finished=store.finished)

    async def transact(self, work: Callable[[Store], Awaitable[T]]) -> T:
        """Run `work` inside a transaction, and tell of what it has changed."""
        return await self._link.run(functools.partial(self._transact_on, work))

    async def _transact_on(self, work: Callable[[Store], Awaitable[T]], session: Session) -> T:
        store = Store(session, self._retention)
        async with session.transaction():
            result = await work(store)
        self.publish(store)
        return result

    async def beat(self, worker: WorkerInfo, lease: float, now: float) -> Notices:
        """A heartbeat. It does not wait long for a silent connection: the lease would run out meanwhile."""
        beat = functools.partial(self._beat_on, worker, lease, now)
        return await self._link.run(beat, min(SILENCE, max(0.5, lease / 3)))

    async def _beat_on(self, worker: WorkerInfo, lease: float, now: float, session: Session) -> Notices:
        store = Store(session, self._retention)
        lapsed = await store.beat(worker, lease, now) and worker.seen > 0
        notices, some_are_lost = await store.notices(worker, lapsed=lapsed, lost=[])
        if some_are_lost:
            async with session.transaction():
                lost = await store.rescue(worker.id, now)
            self.publish(store)
            notices, _ = await store.notices(worker, lapsed=lapsed, lost=lost)
        return notices

    async def _push_group(self, items: list[tuple[Sequence[Job], float]]) -> list[Any]:
        """What has no parents goes in together; a family alone."""
        families = [any(job.parents for job in jobs) for jobs, _ in items]
        plain = [item for item, is_family in zip(items, families, strict=True) if not is_family]
        answers = iter(await self._push_plain(plain) if plain else ())
        return [
            await _caught(self._push_family(*item)) if is_family else next(answers)
            for item, is_family in zip(items, families, strict=True)
        ]

    async def _push_family(self, jobs: Sequence[Job], now: float) -> list[str]:
        ids = await self.transact(lambda store: store.push_family(jobs, now))
        self.claims.forget()
        self.waits.tell(ready={job.queue for job in jobs})
        return ids

    async def _push_plain(self, items: Sequence[tuple[Sequence[Job], float]]) -> list[list[str]]:
        jobs = list(itertools.chain.from_iterable(item[0] for item in items))
        now = items[0][1]
        queues = {job.queue for job in jobs}
        began = self._loop.time()
        if len(jobs) == 1 and jobs[0].unique is None and began >= self._alone_again:
            found = await self._link.run(functools.partial(self._push_alone, jobs[0], now))
            self.waits.tell_here(queues)
            if self._loop.time() - began > _CONTENDED:
                self._alone_again = self._loop.time() + 0.1
        else:
            whole = any(len(item[0]) > 1 and any(job.unique is not None for job in item[0]) for item in items)
            work = self._push_chunks if whole or len(jobs) > CHUNK else self._push_once
            found = await self._link.run(functools.partial(work, jobs, now), SILENCE + len(jobs) / 1000)
            self.waits.tell(ready=queues)
        for queue, priority in {(job.queue, job.priority) for job in jobs}:
            self.claims.forget(queue, priority)
        ids = iter(found)
        return [list(itertools.islice(ids, len(item[0]))) for item in items]

    async def _push_alone(self, job: Job, now: float, session: Session) -> list[str]:
        return await Store(session, self._retention).push_and_tell(job, now, *self.waits.notice(job.queue))

    async def _push_once(self, jobs: Sequence[Job], now: float, session: Session) -> list[str]:
        return await Store(session, self._retention).push(jobs, now)

    async def _push_chunks(self, jobs: Sequence[Job], now: float, session: Session) -> list[str]:
        """In one transaction: while the server takes one chunk in, the next is encoded."""
        store = Store(session, self._retention)
        sent: asyncio.Task[list[str]] | None = None
        ids: list[str] = []
        async with session.transaction():
            try:
                for start in range(0, len(jobs), CHUNK):
                    chunk = jobs[start : start + CHUNK]
                    encode_payloads(chunk)
                    ids += await sent if sent is not None else ()
                    sent = asyncio.create_task(store.push(chunk, now))
                    await asyncio.sleep(0)  # sent it is, before the next is encoded
                ids += await sent if sent is not None else ()
            except BaseException:
                if sent is not None:
                    await asyncio.wait([sent])
                raise
        return ids

    async def _claim_group(self, wanted: list[Claim]) -> list[list[Job]]:
        return await self._link.run(functools.partial(self.claims.serve, wanted, [0]))

    async def _settle_group(self, items: list[tuple[Sequence[Outcome], float]]) -> list[list[bool]]:
        outcomes = {
            (outcome.job.seq, outcome.attempt): outcome for item in reversed(items) for outcome in reversed(item[0])
        }
        written = await self._link.run(functools.partial(self._settle, list(outcomes.values()), items[0][1], [0]))
        return [[self._is_written(outcome, outcomes, written) for outcome in item[0]] for item in items]

    def _is_written(self, outcome: Outcome, chosen: Mapping[Any, Outcome], written: set[tuple[int, int]]) -> bool:
        """Of two outcomes of one attempt the first counts."""
        key = (outcome.job.seq, outcome.attempt)
        return chosen[key] is outcome and key in written

    async def _settle(
        self, outcomes: Sequence[Outcome], now: float, tries: list[int], session: Session
    ) -> set[tuple[int, int]]:
        tries[0] += 1
        store = Store(session, self._retention)
        written = await store.settle(outcomes, now, careful=False)
        left = [outcome for outcome in outcomes if (outcome.job.seq, outcome.attempt) not in written]
        if left and tries[0] > 1:
            written |= await store.written(left, now)
            left = [outcome for outcome in left if (outcome.job.seq, outcome.attempt) not in written]
        if left:
            async with session.transaction():
                written |= await store.settle(left, now, careful=True)
        self.publish(store)
        return written

    async def _get_group(self, items: list[Sequence[str]]) -> list[list[TaskResult[Any] | None]]:
        wanted = list(set(itertools.chain.from_iterable(items)))
        rows = await self._link.run(lambda session: session.fetch(sql.GET, wanted))
        found = {row[0]: row for row in rows}
        return [[result_of_row(found[i]) if i in found else None for i in ids] for ids in items]


async def _apart(send: Callable[[list[Any]], Awaitable[list[Any]]], items: list[Any]) -> list[Any]:
    """Send a group; where it is refused for one item, each goes alone, so that only that one fails."""
    try:
        return await send(items)
    except AwayError:
        raise
    except Exception:
        if len(items) == 1:
            raise
    return [await _caught(_first(send, item)) for item in items]


async def _first(send: Callable[[list[Any]], Awaitable[list[Any]]], item: Any) -> Any:
    (answer,) = await send([item])
    return answer


async def _caught(call: Awaitable[T]) -> T | Exception:
    try:
        return await call
    except Exception as error:
        return error


def encode_payloads(jobs: Sequence[Job]) -> None:
    for job in jobs:
        job.payload = encode_arguments(job)
