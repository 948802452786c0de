"""Puts the parts of the dashboard together, for every face in the same way."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, cast

from flowrra_extras.dashboard.access import Door
from flowrra_extras.dashboard.router import PageMaker, Router
from flowrra_extras.dashboard.service import Service

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flowrra import Flowrra, Job, Scheduler


class Options(TypedDict, total=False):
    """What every face may be told.

    `auth` is asked with the framework's own request and answers "none", "read" or "full"; without it only
    this host is let in, unless `insecure` is True. `read_only` lets nobody change anything. `redact` hides the
    arguments of all jobs (True), or of those of which it says so. `schedulers` are those whose schedules are
    shown (the app's, unless told otherwise).
    """

    auth: Callable[[Any], Any] | None
    insecure: bool
    read_only: bool
    redact: bool | Callable[[Job], bool]
    schedulers: Sequence[Scheduler] | None


def build(app: Flowrra, *, live: str, **options: Unpack[Options]) -> Router:
    """The dashboard of an app, without a face. `live` says how pages get news: "events" or "poll"."""
    service = Service(app, schedulers=options.get("schedulers"), redact=options.get("redact", False))
    door = Door(
        options.get("auth"), insecure=options.get("insecure", False), read_only=options.get("read_only", False)
    )
    pages = importlib.import_module("flowrra_extras.dashboard.pages").Pages(service, live=live)
    return Router(service, door, cast("PageMaker", pages))
