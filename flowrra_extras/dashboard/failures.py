"""Failed jobs in groups of one kind: the same task and, but for the numbers in it, the same error."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

from flowrra_extras.dashboard import rows, search

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flowrra import Job
    from flowrra_extras.dashboard import shapes

# What differs from one job to the next: identifiers, addresses, numbers.
_VARYING = re.compile(r"0x[0-9a-f]+|\b[0-9a-f]{8,}(?:-[0-9a-f]{4,}){0,4}\b|\d+(?:\.\d+)?", re.IGNORECASE)
_COMPARED = 500  # characters


def pattern(error: str | None) -> str:
    """The error without what differs from job to job."""
    return _VARYING.sub("#", (error or "")[:_COMPARED].partition("\n")[0])


def key(job: Job) -> str:
    """What the failures of a group have in common, in a few characters."""
    return hashlib.sha256(f"{job.task}\n{pattern(job.error)}".encode()).hexdigest()[:10]


def groups(jobs: Iterable[Job]) -> list[shapes.FailureGroup]:
    """The groups of failed jobs, which come the latest first; those of most jobs first."""
    found: dict[str, list[Job]] = {}
    for job in jobs:
        found.setdefault(key(job), []).append(job)
    shown = [_group(name, alike) for name, alike in found.items()]
    return sorted(shown, key=lambda group: (-group["number"], group["key"]))


def _group(name: str, jobs: list[Job]) -> shapes.FailureGroup:
    ends = [job.finished or job.submitted for job in jobs]
    return {
        "key": name,
        "task": jobs[0].task,
        "error": rows.line(jobs[0].error or ""),
        "number": len(jobs),
        "first": rows.moment(min(ends)),
        "latest": rows.moment(max(ends)),
        "sample": jobs[0].id,
        "search": search.written(state="failed", task=jobs[0].task, alike=name),
    }
