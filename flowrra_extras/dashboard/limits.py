"""Limits: their numbers, their use, and the key for which the most jobs wait; a key can be paused and resumed."""

import datetime as dt
from collections.abc import Awaitable, Callable
from typing import TypedDict

from flowrra import Action, LimitUse, TaskNotFoundError, join_limit_key
from flowrra_extras.dashboard.auth import Access
from flowrra_extras.dashboard.html import Entered, Shown, View
from flowrra_extras.dashboard.http import Done, Fields, logger
from flowrra_extras.dashboard.job_search import search_path
from flowrra_extras.dashboard.jobs import moment_or_none
from flowrra_extras.dashboard.store import Store

REST = 1.0  # seconds between two counts: they read all jobs that wait for a limit


class LimitRow(TypedDict):
    """A limit and its use. Its numbers apply to each key. Jobs without a key have the key ""."""

    name: str
    concurrency: int | None
    rate: str | None
    burst: int | None
    turn: int | None
    declared: dt.datetime | None  # None: no running program has declared it, so its jobs wait
    by: str
    running: int
    ready: int
    waiting: int
    waiting_keys: int
    longest_key: str
    longest: int  # jobs that wait for this key
    paused: list[str]


class Limits:
    """The page of limits, and the actions on a key."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._uses = store.share(self._find, rest=REST)

    async def _find(self) -> list[LimitUse]:
        await self._store.app.connect()
        return await self._store.app.broker.limits()

    async def limits(self) -> list[LimitRow]:
        """All limits that are declared or have jobs, by name."""
        return [limit_row(use) for use in await self._uses.get()]

    async def page(self, view: View, entered: Entered | None) -> Shown:
        return "Limits", "limits.html", {"limits": await self.limits()}

    def sets_key(self, *, paused: bool) -> Callable[..., Awaitable[Done]]:
        action: Action = "pause" if paused else "resume"

        async def set_key(fields: Fields, access: Access, name: str) -> Done:
            app, key = self._store.app, fields.text("key", "")
            await app.connect()
            (state,) = await app.broker.limit_states([join_limit_key(name, key)])
            if state.limit is None and not (state.running or state.pending or state.has_waiting or state.paused):
                raise TaskNotFoundError(f"there is no limit {name!r}")
            await app.broker.change([state.name], action, now=app.now(), by=access.who)
            logger.info("%s: %s of the key %r of the limit %s", access.who, action, key, name)
            self._store.forget()
            return Done({"limit": name, "key": key, "paused": paused}, "/limits", touched=search_path(limit=name))

        return set_key


def limit_row(use: LimitUse) -> LimitRow:
    limit = use.limit
    return {
        "name": limit.name,
        "concurrency": limit.concurrency,
        "rate": limit.rate,
        "burst": limit.burst,
        "turn": limit.turn,
        "declared": moment_or_none(limit.declared if use.is_declared else None),
        "by": limit.by,
        "running": use.running,
        "ready": use.pending,
        "waiting": use.waiting,
        "waiting_keys": use.waiting_keys,
        "longest_key": use.longest_key,
        "longest": use.longest,
        "paused": list(use.paused),
    }
