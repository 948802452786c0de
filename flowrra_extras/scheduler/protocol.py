"""What a store of schedules has to do, whoever writes one."""

from collections.abc import Mapping, Sequence
from typing import Any

from flowrra import Fired, Schedule


class ScheduleStore:
    """Keeps schedules. Carries out and holds no policy: when a schedule fires next, the scheduler says.

    `now` is the caller's wall clock in seconds since the epoch; the lease of a taken schedule runs on the
    store's own clock. Every change is guarded: a late or doubled call changes nothing and is told so.
    """

    async def open(self) -> None:
        """Get ready to be used on the running loop: connect, make or migrate the schema."""

    async def close(self) -> None:
        """Give everything back."""

    async def add(self, schedule: Schedule) -> str:
        """Keep a new schedule and return its id; one with its `key` or `id` is left as it is, and its id returned.

        Two callers at once get the same id: the keys are unique in the store, not looked up before.
        """
        raise NotImplementedError

    async def find(self, ids: Sequence[str] | None = None) -> list[Schedule]:
        """The schedules with these ids (None: all), in order of creation."""
        raise NotImplementedError

    async def change(self, schedule_id: str, changes: Mapping[str, Any]) -> bool:
        """Set fields of a schedule; whoever has taken it loses it. False: there is no such schedule.

        Raises:
            ConfigError: the changed `key` is that of another schedule.
        """
        raise NotImplementedError

    async def remove(self, schedule_id: str) -> bool:
        """Delete a schedule. False: there is none."""
        raise NotImplementedError

    async def take(self, *, now: float, lease: float, limit: int) -> list[Schedule]:
        """Take up to `limit` enabled schedules whose `next_fire` has come, earliest first, for `lease` seconds.

        Each comes with a new `turn`; until the lease runs out, nobody else gets it.
        """
        raise NotImplementedError

    async def advance(self, fired: Sequence[Fired]) -> list[bool]:
        """Write down what became of taken schedules and end their leases. False: another turn has begun."""
        raise NotImplementedError

    async def next_fire(self) -> float | None:
        """The earliest `next_fire` of an enabled schedule that nobody has taken, by an index."""
        raise NotImplementedError

    async def purge(self, before: float) -> int:
        """Delete the schedules that have nothing left to fire and fired last before then; how many went."""
        raise NotImplementedError
