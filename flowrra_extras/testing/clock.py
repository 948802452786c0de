"""A clock that a test moves."""

from flowrra import Clock


class ManualClock(Clock):
    """A clock that moves only when a test moves it.

    Args:
        wall: the first time of the wall clock, in seconds since the epoch.
        monotonic: the first time of the clock for leases and waits, in seconds.
    """

    def __init__(self, wall: float = 1_700_000_000.0, monotonic: float = 1_000.0) -> None:
        self._wall = wall
        self._monotonic = monotonic

    def time(self) -> float:
        return self._wall

    def monotonic(self) -> float:
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Move the clock forward by that many seconds."""
        if seconds < 0:
            raise ValueError(f"advance() cannot go back ({seconds!r} s): jump_wall() sets a wrong wall clock")
        self._wall += seconds
        self._monotonic += seconds

    def jump_wall(self, seconds: float) -> None:
        """Set the wall clock forward or back, as an administrator or NTP does. No time passes."""
        self._wall += seconds
