"""The app and its store as all pages share them: hidden arguments, and counts that take long to find."""

import asyncio
import collections
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar, cast

from flowrra import Flowrra, Job, JobFilter, TaskStatus, WorkerInfo
from flowrra_extras.dashboard import job_search
from flowrra_extras.dashboard.http import logger
from flowrra_extras.metrics import oldest_ready, ready_since
from flowrra_extras.scheduler import Scheduler
from flowrra_extras.urls import shown_url

T = TypeVar("T")

REST = 20  # a search rests for REST times its own length, which limits its load to a twentieth of a core
LEAST_REST = 0.05  # seconds: a small store is counted again at each look
GLANCE = 0.005  # seconds to wait for an optional value
PATIENCE = 0.02  # seconds that a page waits for a newer value when it has an older one


_FORGOTTEN = float("-inf")


class _Found(NamedTuple, Generic[T]):
    value: T
    at: float  # on the loop's clock
    took: float


class Fresh(Generic[T]):
    """What `find` gave lately. Any number of askers cause one search at a time, and few of them.

    The first asker waits for the search; a later one gets what there is if a newer value takes too long.
    """

    def __init__(self, find: Callable[[], Awaitable[T]], *, rest: float | None = None) -> None:
        self._find = find
        self._rest = rest  # seconds between two searches at least; None: LEAST_REST
        self._found: _Found[T] | None = None
        self._search: asyncio.Task[_Found[T]] | None = None
        self._error: BaseException | None = None  # why the latest search has failed

    async def get(self) -> T:
        """The value. A search that fails raises its error only if there is no older value.

        Cancelling it leaves the search to those who come next.
        """
        search = self._current()
        if search is not None:
            await asyncio.wait({search}, timeout=None if self._found is None else PATIENCE)
        if self._found is None and search is not None:
            return search.result().value
        return cast("_Found[T]", self._found).value

    async def recent(self, most_age: float) -> T:
        """The value of the last `most_age` seconds, or of as long as a search rests; else it waits for a newer one.

        A search that fails raises its error.
        """
        search, found = self._current(), self._found
        if found is not None and found.at == _FORGOTTEN and search is not None:
            await asyncio.wait({search}, timeout=PATIENCE)
            found = self._found
        elif found is None or asyncio.get_running_loop().time() - found.at > max(most_age, (REST + 2) * found.took):
            return (await asyncio.shield(cast("asyncio.Task[_Found[T]]", search))).value
        if self._error is not None:
            raise self._error
        return cast("_Found[T]", found).value

    async def glance(self) -> T | None:
        """The value; None if it takes too long to find for the first time, or cannot be found."""
        search = self._current()
        if search is not None:
            await asyncio.wait({search}, timeout=GLANCE)
        return None if self._found is None else self._found.value

    def _current(self) -> asyncio.Task[_Found[T]] | None:
        """The latest search: a new one, if it is time for that."""
        if self._is_due():
            self._search = asyncio.create_task(self._look())
            self._search.add_done_callback(self._note)
        return self._search

    def _is_due(self) -> bool:
        loop = asyncio.get_running_loop()
        if self._search is not None and self._search.get_loop() is not loop:
            self._search = self._found = None  # an app that was opened again on another loop
        if self._search is not None and not self._search.done():
            return False
        rest = LEAST_REST if self._rest is None else self._rest
        return self._found is None or loop.time() - self._found.at > max(rest, REST * self._found.took)

    async def _look(self) -> _Found[T]:
        clock = asyncio.get_running_loop().time
        begin = clock()
        value = await self._find()
        end = clock()
        return _Found(value, end, end - begin)

    def _note(self, search: asyncio.Task[_Found[T]]) -> None:
        if search.cancelled():
            return
        error = search.exception()
        if error is None:
            self._found = search.result()
        elif self._error is None:  # once: it is tried again at each look
            logger.warning("a query failed, so the dashboard shows older figures: %s", error)
        self._error = error

    def forget(self) -> None:
        """Have the next asker wait for a new value: something was changed from here."""
        if self._found is not None:
            self._found = self._found._replace(at=_FORGOTTEN)

    async def close(self) -> None:
        if self._search is not None and not self._search.done():
            self._search.cancel()
            await asyncio.wait({self._search})


_KEPT = 32  # filters whose counts are kept


class Counted(NamedTuple):
    """A number of jobs, and the moment at which the count began."""

    number: int
    at: float


class Tally(NamedTuple):
    """The jobs by queue and state; the count began at `at`.

    `oldest` and `newest`: since when the oldest and the newest ready job of a queue wait.
    """

    at: float
    counts: Mapping[tuple[str, TaskStatus], int]
    oldest: Mapping[str, float]
    newest: Mapping[str, float]

    def total(self, *statuses: TaskStatus, queue: str | None = None) -> int:
        """How many jobs are in one of these states (in all queues, unless one is given)."""
        return sum(
            number
            for (name, status), number in self.counts.items()
            if status in statuses and (queue is None or name == queue)
        )


class Store:
    """The app, whose stores are opened at the first question, and counts of its jobs: of all, and of some filters."""

    def __init__(
        self,
        app: Flowrra,
        *,
        schedulers: Sequence[Scheduler] | None = None,
        redact: bool | Callable[[Job], bool] = False,
    ) -> None:
        self.app = app
        self._schedulers = schedulers
        self._redact = redact
        self._shared: list[Fresh[Any]] = []
        self._all = self.share(self._count)
        self._some: collections.OrderedDict[str, Fresh[Counted]] = collections.OrderedDict()
        self._one_at_a_time = asyncio.Lock()

    @property
    def schedulers(self) -> Sequence[Scheduler]:
        """The stores of schedules that are shown."""
        return self.app.schedulers if self._schedulers is None else self._schedulers

    async def close(self) -> None:
        """End what is being counted. The app's stores are left to the app."""
        for fresh in (*self._shared, *self._some.values()):
            await fresh.close()

    def explained(self, error: object) -> str:
        """The message of an error of the store, with its URL and the reason why it does not answer."""
        url, problem, text = shown_url(self.app.config.broker.url), self.app.broker.store_status.problem, str(error)
        said = text if url in text else f"{text} ({url})"
        return f"{said}: {problem}" if problem and problem not in text else said

    def hides(self, job: Job) -> bool:
        """Whether the arguments and the result of the job are not to be shown. A function that fails hides them."""
        if isinstance(self._redact, bool):
            return self._redact
        try:
            return bool(self._redact(job))
        except Exception:
            logger.exception("redact= failed for a job of %s, so its data is hidden", job.task)
            return True

    def named_arguments(self, job: Job) -> Mapping[str, Any]:
        """The arguments by name, to search them; none where they are hidden."""
        if self.hides(job):
            return {}
        task = self.app.registry.get(job.task)
        return job_search.arguments_by_name(job, list(task.signature.parameters) if task is not None else ())

    def known_tasks(self, workers: Sequence[WorkerInfo]) -> list[str]:
        """The names of all tasks that are registered here or known to a live worker."""
        return sorted({*self.app.registry, *(name for worker in workers for name in worker.tasks)})

    async def task_names(self) -> list[str]:
        """The known tasks, for a choice among them."""
        await self.app.connect()
        return self.known_tasks(await self.app.broker.workers())

    async def queue_names(self) -> list[str]:
        """The queues that hold jobs or are served."""
        await self.app.connect()
        tally, workers = await self.tally(), await self.app.broker.workers()
        return sorted({queue for queue, _ in tally.counts} | {queue for worker in workers for queue in worker.queues})

    def forget(self) -> None:
        """Find everything again, because this program has changed something."""
        for fresh in (*self._shared, *self._some.values()):
            fresh.forget()

    def share(self, find: Callable[[], Awaitable[T]], *, rest: float | None = None) -> Fresh[T]:
        """What `find` gives, shared by all who ask, found again after a change from here, and ended with the store."""
        fresh = Fresh(find, rest=rest)
        self._shared.append(fresh)
        return fresh

    # Counts --------------------------------------------------------------------------------------

    async def tally(self) -> Tally:
        """All jobs; a second old at the most where that takes less than 50 ms."""
        return await self._all.get()

    async def number(self, which: JobFilter) -> Counted | None:
        """How many jobs a filter finds; None while that is not known."""
        if which == JobFilter(status=which.status, queue=which.queue):
            tally = await self.tally()
            return Counted(tally.total(*(which.status or TaskStatus), queue=which.queue), tally.at)
        key = repr(which)
        fresh = self._some.setdefault(key, Fresh(lambda: self._count_some(which)))
        self._some.move_to_end(key)
        if len(self._some) > _KEPT:
            await self._some.popitem(last=False)[1].close()
        return await fresh.glance()

    async def _count_some(self, which: JobFilter) -> Counted:
        async with self._one_at_a_time:
            begin = self.app.now()
            return Counted(sum((await self.app.broker.counts(which)).values()), begin)

    async def _count(self) -> Tally:
        begin, counts = self.app.now(), await self.app.broker.counts()
        oldest = await oldest_ready(self.app.broker, counts)
        newest = {}
        for queue in oldest:
            ready = JobFilter(queue=queue, status=frozenset({TaskStatus.PENDING}))
            for job in await self.app.broker.find(ready, limit=1):
                newest[queue] = ready_since(job)
        return Tally(begin, counts, oldest, newest)
