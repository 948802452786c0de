"""What all parts of the service share: the app, what is hidden of it, and the figures that take long to find."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from flowrra_extras.dashboard import search
from flowrra_extras.dashboard.counting import Counting

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from flowrra import Flowrra, Job, WorkerInfo
    from flowrra_extras.scheduler import Scheduler

logger = logging.getLogger("flowrra.dashboard")


class Base:
    """The app and the way to its store.

    Args:
        app: what is shown and steered. Its stores are opened at the first question.
        schedulers: those whose schedules are shown (None: those that the app has made).
        redact: True hides the arguments and results of all jobs; a function says of which.
    """

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
        self._counting = Counting(app)

    @property
    def schedulers(self) -> Sequence[Scheduler]:
        """The stores of schedules that are shown."""
        return self.app.schedulers if self._schedulers is None else self._schedulers

    async def close(self) -> None:
        """End what is being counted. The app's stores are left to the app."""
        await self._counting.close()

    def hides(self, job: Job) -> bool:
        """Whether the arguments and the result of the job are not to be shown. A function that fails hides them."""
        if isinstance(self._redact, bool):
            return self._redact
        try:
            return bool(self._redact(job))
        except Exception:
            logger.exception("redact= failed on a job of %s, which hides what is in it", job.task)
            return True

    def named_arguments(self, job: Job) -> Mapping[str, Any]:
        """The arguments by name, to search them; none where they are hidden."""
        if self.hides(job):
            return {}
        task = self.app.registry.get(job.task)
        return search.arguments_by_name(job, list(task.signature.parameters) if task is not None else ())

    async def known_tasks(self, workers: Sequence[WorkerInfo]) -> list[str]:
        """The names of all tasks that are registered here or known to a live worker."""
        return sorted({*self.app.registry, *(name for worker in workers for name in worker.tasks)})
