"""How jobs leave Redis for another store, and come from another one."""

from __future__ import annotations

from flowrra import Job, encode_arguments
from flowrra_extras.redis.calls import member_of, to_json

__all__ = ["adopted_words"]


def adopted_words(job: Job) -> tuple[str, ...]:
    """A job of another store as the script that adopts it takes it."""
    moments = {"submitted": job.submitted, "due": job.due, "expires": job.expires}
    numbers = {"attempt": job.attempt, "failures": job.failures, "crashes": job.crashes}
    values = {
        "head": to_json([job.task, dict(job.overrides) if job.overrides else None]), "payload": encode_arguments(job),
        "unique": job.unique, "parents": to_json(job.parents) if job.parents else None,
        "error": job.error, "traceback": job.traceback,
        **{name: None if moment is None else repr(moment) for name, moment in moments.items()},
        **{name: number or None for name, number in numbers.items()},  # a crash of 0 would count as one in Lua
    }  # fmt: skip
    fields = [text for name, value in values.items() if value is not None for text in (name, str(value))]
    expires = repr(job.expires) if job.expires is not None else ""
    history = [to_json(attempt) for attempt in job.history]
    return job.id, member_of(job)[:16], job.queue, job.unique or "", expires, to_json(fields), to_json(history)
