"""Notifications that wake callers who wait for jobs, notices and results, in this process and in others."""

import asyncio
import contextlib
import json
import math
import secrets
from collections.abc import Iterable, Iterator, Sequence

from flowrra import Clock, FlowrraError, Topic, WaiterHub, logger
from flowrra_extras.batching import Batcher, closed, end_task
from flowrra_extras.postgres import statements as sql
from flowrra_extras.postgres.connections import Address, Link, Listener

LOOK_EVERY = 1.0  # seconds after which a waiting caller polls, if it may get no notification


class Notifications:
    """The callers that wait here (`hub`), and the notifications that are received and sent.

    The name of a queue stands for its jobs, None for jobs of an unknown queue, "" for notices to a worker.
    """

    def __init__(self, address: Address, link: Link, clock: Clock) -> None:
        self.hub = WaiterHub()
        self._link = link
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._is_pooled = address.is_pooled
        self._token = secrets.token_hex(8)  # identifies our own notifications
        self._jobs, self._notices, self._results = (
            f"{address.schema}_{kind}" for kind in ("jobs", "notices", self._token)
        )
        self.listener = Listener(address, self._receive)
        self._awaited: set[str] = set()  # jobs whose end this process wants to know
        self._await: Batcher[str, None] = Batcher(self._await_group)
        self._unsent: dict[str, str] = {}  # channel -> the queue with jobs, "" for several
        self._unsent_ends: list[str] = []  # jobs that have ended
        self._sending: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """Send the remaining notifications, within a second. Waiting callers get a BrokerError."""
        await self._await.close()
        if self._sending is not None:
            await asyncio.wait([self._sending], timeout=1.0)
        await end_task(self._sending)
        await self.listener.close()
        self.hub.close(closed())

    # Sending -----------------------------------------------------------------------------------

    def notify(self, *, ready: Iterable[str | None] = (), notices: bool = False, finished: Sequence[str] = ()) -> None:
        """Notify this process and others of queues with jobs, of notices, and of jobs that have ended.

        Calls during one notification are collected for the next one.
        """
        for queue in (*ready, *([""] if notices else ())):
            self.wake(queue)
            channel = self._notices if queue == "" else self._jobs
            self._unsent[channel] = (queue or "") if self._unsent.get(channel, queue) == queue else ""
        self.ended(finished)
        self._unsent_ends += finished
        if self._sending is None and (self._unsent or self._unsent_ends):
            self._sending = self._loop.create_task(self._send())

    async def _send(self) -> None:
        try:
            while self._unsent or self._unsent_ends:
                finished, self._unsent_ends = self._unsent_ends, []
                signals, self._unsent = self._unsent, {}
                payloads = [f"{self._token} {queue}" for queue in signals.values()]
                await self._link.fetch(sql.NOTIFY, finished, list(signals), payloads)
        except FlowrraError as error:
            logger.warning("notifications cannot be sent; other processes find the changes by polling: %s", error)
        finally:
            self._sending = None

    def notice(self, queue: str) -> tuple[str, str]:
        """Return the channel and the payload that notify others of jobs in a queue."""
        return self._jobs, f"{self._token} {queue}"

    # Receiving ---------------------------------------------------------------------------------

    def _receive(self, channel: str, payload: str | None) -> None:
        """Handle a notification. A payload of None means that some may have been missed."""
        if channel == self._results:
            self.ended(json.loads(payload) if payload else self.hub.waiting("job"))
            return
        token, _, queue = (payload or "").partition(" ")
        if token != self._token:
            self.wake("" if channel == self._notices else queue or None)

    def wake(self, queue: str | None) -> None:
        """Wake the callers that wait here for this queue; None: for any."""
        if queue is None:
            self.hub.wake_all("queue")
        else:
            self.hub.wake(("queue", queue) if queue else ("worker", ""))

    def ended(self, ids: Iterable[str]) -> None:
        """Wake the callers that wait here for one of these jobs."""
        for task_id in ids:
            self._awaited.discard(task_id)
            self.hub.wake(("job", task_id))

    # Waiting -----------------------------------------------------------------------------------

    async def wait(self, topics: Sequence[Topic], timeout: float, next_due: float | None) -> None:
        """Wait for queues, or for notices. Before, the caller has claimed from each queue, or sent a heartbeat."""
        if topics[0][0] == "queue":
            self.listener.want(self._jobs)
            if not self.listener.receives(self._jobs):  # else 200 idle queues took 2 % of a core
                timeout = min(timeout, LOOK_EVERY)
            if next_due is not None:
                timeout = min(timeout, next_due - self._clock.time())
        else:
            self.listener.want(self._notices)
        await self.hub.wait(topics, None if timeout == math.inf else timeout)

    async def ask_for_ends(self, ids: Sequence[str]) -> None:
        """Ask that whoever ends one of these jobs notifies this process."""
        if not self._is_pooled and (new := [task_id for task_id in ids if task_id not in self._awaited]):
            self.listener.want(self._results)
            await asyncio.gather(*map(self._await.put, new))
            self._awaited.update(new)

    @contextlib.contextmanager
    def expecting_ends(self, topics: Sequence[Topic]) -> Iterator[asyncio.Future[None]]:
        """Yield a waiter for jobs: ask for their ends, read them, then wait up to LOOK_EVERY seconds."""
        try:
            with self.hub.expect(topics) as waiter:
                yield waiter
        finally:
            self._awaited.intersection_update(self.hub.waiting("job"))

    async def _await_group(self, ids: list[str]) -> list[None]:
        await self._link.fetch(sql.AWAIT, ids, self._results)
        return [None] * len(ids)
