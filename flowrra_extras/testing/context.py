"""Call a task directly that uses `current_job()`."""

import asyncio
import contextlib
from collections.abc import Coroutine, Iterator, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from flowrra import Job, JobContext, Progress, Step, current_job_var, encode

T = TypeVar("T")


class StandInJob(JobContext):
    """What `current_job()` returns inside `job_context()`. `reported` is the progress that the task reported."""

    __slots__ = ("_events", "_state", "reported")

    def __init__(self, job: Job, state: Any, events: Mapping[str, Any]) -> None:
        super().__init__(job)
        self._state = state
        self._events = events
        self.reported: list[Progress] = []

    @property
    def state(self) -> Any:
        return self._state

    def report(self, progress: Progress) -> None:
        self.reported.append(progress)

    def count_wait(self, change: int) -> None:
        pass  # there is no slot to be freed

    async def keep_step(self, step: Step) -> None:
        self.job.steps = (*self.job.steps, step)

    async def find_event(self, name: str) -> str | None:
        return encode(self._events[name]) if name in self._events else None

    def wait_until(self, call: Coroutine[Any, Any, T]) -> T:
        return asyncio.run(call)


@contextlib.contextmanager
def job_context(
    *,
    attempt: int = 1,
    failures: int | None = None,
    id: str = "test",
    queue: str = "default",
    state: Any = None,
    events: Mapping[str, Any] = MappingProxyType({}),
) -> Iterator[StandInJob]:
    """Call a task directly although it uses `current_job()`: it gets a job of this attempt.

        with job_context(attempt=3) as job:
            await fetch("https://example.com")
        assert job.reported[-1].done == 1

    Args:
        attempt: the number of the attempt.
        failures: the number of failures before it; None: one less than `attempt`.
        id: the id of the job.
        queue: the queue of the job.
        state: stands for the value that the app's lifespan yields.
        events: the events that have been emitted, with their payloads.
    """
    job = Job(id, "test", queue=queue, attempt=attempt, failures=attempt - 1 if failures is None else failures)
    context = StandInJob(job, state, events)
    token = current_job_var.set(context)
    try:
        yield context
    finally:
        current_job_var.reset(token)
