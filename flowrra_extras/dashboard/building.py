"""Puts the parts of the dashboard together, for every face in the same way."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict, Unpack

from flowrra_extras.dashboard.access import Door
from flowrra_extras.dashboard.router import Router
from flowrra_extras.dashboard.service import Service

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flowrra import Flowrra, Job
    from flowrra_extras.scheduler import Scheduler


class Options(TypedDict, total=False):
    """What every face may be told.

    `auth` is asked with the framework's own request and answers "none", "read" or "full"; without it only
    this host is let in, unless `insecure` is True. `read_only` lets nobody change anything. `redact` hides the
    arguments and results of all jobs (True), or of those of which it says so. `schedulers` are those whose
    schedules are shown (the app's, unless told otherwise).
    """

    auth: Callable[..., object] | None
    insecure: bool
    read_only: bool
    redact: bool | Callable[[Job], bool]
    schedulers: Sequence[Scheduler] | None


def build(app: Flowrra, **options: Unpack[Options]) -> Router:
    """The dashboard of an app, without a face."""
    service = Service(app, schedulers=options.get("schedulers"), redact=options.get("redact", False))
    insecure, read_only = options.get("insecure", False), options.get("read_only", False)
    return Router(service, Door(options.get("auth"), insecure=insecure, read_only=read_only))
