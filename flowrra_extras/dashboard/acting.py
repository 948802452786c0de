"""What the dashboard does to jobs and queues. Each action is logged, and leaves a line on the job that it changed."""

from __future__ import annotations

import asyncio
import datetime as dt
import difflib
import logging
import time
from typing import TYPE_CHECKING, Any

from flowrra import SUBMIT_OPTIONS, ConfigError, Job, TaskNotFoundError, check_queue, decode_arguments, parents_in
from flowrra_extras.dashboard.looking import Looking, position
from flowrra_extras.dashboard.planning import read_list, read_object, refusing_misfits, whole
from flowrra_extras.dashboard.seeking import seek

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from flowrra_extras.dashboard import shapes

logger = logging.getLogger("flowrra.dashboard")

ACTIONS = ("cancel", "requeue", "delete")
IDS_LIMIT = 1_000  # jobs that are named in one request
_AT_ONCE = 50
_BATCH = 200  # jobs of a filter that are changed at once
_SECONDS = 2.0  # that a request may spend on a filter; the rest is for another one


class Acting(Looking):
    """Changes jobs and queues. `by` says who did it."""

    async def cancel(self, ids: Sequence[str], *, by: str) -> shapes.Report:
        """End jobs: at once those that wait, by their workers those that run."""
        return await self._change("cancel", ids, by)

    async def requeue(self, ids: Sequence[str], *, by: str) -> shapes.Report:
        """Let failed and cancelled jobs run again, their failures forgotten."""
        return await self._change("requeue", ids, by)

    async def delete(self, ids: Sequence[str], *, by: str) -> shapes.Report:
        """Delete finished jobs before their retention ends."""
        return await self._change("delete", ids, by)

    async def act(self, action: str, line: str, *, after: str | None = None, by: str) -> shapes.Report:
        """Cancel, requeue or delete all jobs that a search line asks for, those that it does not fit left alone.

        If there are too many for one go, the report says `after` which to go on.

        Raises:
            ConfigError: a word of the line cannot be understood. Nothing was changed.
        """
        await self.app.connect()
        wanted, place = await self.understood(line), position(after)
        if wanted.problems:
            raise ConfigError(f"nothing was changed: {'; '.join(wanted.problems)}")
        report: shapes.Report = {"action": action, "done": 0, "refused": 0, "after": None}
        deadline = time.monotonic() + _SECONDS
        while True:
            found = await seek(self.app.broker, wanted, limit=_BATCH, after=place, seconds=_SECONDS)
            changed = await self._change(action, [job.id for job in found.jobs], by)
            report["done"], report["refused"] = report["done"] + changed["done"], report["refused"] + changed["refused"]
            place = found.after
            if place is None or time.monotonic() > deadline:
                return {**report, "after": None if place is None else str(place)}

    async def _change(self, action: str, ids: Sequence[str], by: str) -> shapes.Report:
        if action not in ACTIONS:
            raise ConfigError(f"{action!r} is not one of {', '.join(ACTIONS)}")
        if len(ids) > IDS_LIMIT:
            raise ConfigError(f"{len(ids)} jobs are too many for one request: {IDS_LIMIT}, or a search for all of them")
        await self.app.connect()
        broker, now = self.app.broker, self.app.now()
        if action == "cancel":
            done = []
            for first in range(0, len(ids), _AT_ONCE):  # brokers write what comes at once as one group
                some = ids[first : first + _AT_ONCE]
                done += await asyncio.gather(*(broker.cancel(task_id, now=now, by=by) for task_id in some))
        else:
            done = await (broker.requeue(ids, now=now, by=by) if action == "requeue" else broker.delete(ids))
        changed = [task_id for task_id, was in zip(ids, done, strict=True) if was]
        if changed:
            logger.info("%s: %s of %d job(s): %s", by, action, len(changed), ", ".join(changed))
            self.forget()
        return {"action": action, "done": len(changed), "refused": len(ids) - len(changed), "after": None}

    # New jobs ----------------------------------------------------------------------------------

    async def clone(self, task_id: str, args: str | None = None, kwargs: str | None = None, *, by: str) -> str:
        """Submit a job of the same task with the same options, its arguments changed where JSON texts are given.

        The new job's id. It has no `unique` key, and runs as soon as it can.
        """
        await self.app.connect()
        old = await self.app.get_job(task_id)
        new = Job(self.app.new_id(), old.task, old.args, old.kwargs, old.queue, old.priority, old.payload)
        new.parents, new.overrides = old.parents, old.overrides
        if args is not None or kwargs is not None:
            old_args, old_kwargs = decode_arguments(old)
            new.args = tuple(old_args if args is None else read_list(args))
            new.kwargs = old_kwargs if kwargs is None else read_object(kwargs)
            new.payload, new.parents = None, parents_in(new.args, new.kwargs)
            if old.task in self.app.registry:
                with refusing_misfits():
                    self.app.registry[old.task].check(new.args, new.kwargs)
        (job_id,) = await self.app.submit_jobs([new])
        logger.info("%s has cloned the job %s: job %s", by, task_id, job_id)
        self.forget()
        return job_id

    async def run(
        self, task: str, args: str = "[]", kwargs: str = "{}", options: Mapping[str, Any] | None = None, *, by: str
    ) -> str:
        """Submit a job of a task that is registered here; its id. `options` are those of `Task.options`."""
        await self.app.connect()
        registered = self.app.registry.get(task)
        if registered is None:
            raise unknown_task(task, list(self.app.registry))
        with refusing_misfits():
            submission = registered.options(**_options(options or {}))
            job = submission.make_job(read_list(args), read_object(kwargs))
        (job_id,) = await self.app.submit_jobs([job])
        logger.info("%s has run %s: job %s", by, task, job_id)
        self.forget()
        return job_id

    # Queues ------------------------------------------------------------------------------------

    async def pause(self, queue: str, *, by: str) -> None:
        """Hand out no more jobs of a queue."""
        await self._set_queue(queue, by, paused=True)

    async def resume(self, queue: str, *, by: str) -> None:
        """Hand out the jobs of a paused queue again."""
        await self._set_queue(queue, by, paused=False)

    async def _set_queue(self, queue: str, by: str, *, paused: bool) -> None:
        await self.app.connect()
        await self.app.broker.set_queue(check_queue(queue), paused=paused)
        logger.info("%s has %s the queue %s", by, "paused" if paused else "resumed", queue)


_MOMENTS = ("run_at", "expires")


def unknown_task(name: str, known: Iterable[str]) -> TaskNotFoundError:
    """The error that says which task may have been meant."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5) or [one for one in known if one.endswith(f".{name}")]
    hint = f": did you mean {near[0]!r}?" if near else ""
    return TaskNotFoundError(f"no task {name!r} is registered in this program, so that it cannot be run here{hint}")


def _options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a job as JSON brings them; ConfigError for one that there is not."""
    if unknown := given.keys() - SUBMIT_OPTIONS:
        raise ConfigError(f"a job has no option {min(unknown)!r}: {', '.join(sorted(SUBMIT_OPTIONS))}")
    options = whole({name: value for name, value in given.items() if value is not None})
    for name in _MOMENTS:
        if isinstance(options.get(name), str):
            try:
                options[name] = dt.datetime.fromisoformat(options[name])
            except ValueError:
                raise ConfigError(f"{name} must be a moment, such as 2026-12-24T18:00Z, not {given[name]!r}") from None
    return options
