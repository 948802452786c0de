"""Several cron expressions as one: `Cron("0 9 * * mon-fri") | Cron("0 10 * * sat")`."""

import contextlib
import datetime as dt
import itertools
from collections.abc import Callable, Iterator

from flowrra import Cron, NoFire

__all__ = ["CronUnion"]


class CronUnion:
    """Fires when any of its parts fires, once if several fire at the same moment: `Cron(a) | Cron(b)`.

    A naive datetime is the wall clock of each part's own zone.
    """

    __slots__ = ("_parts",)

    def __init__(self, *parts: "Cron | CronUnion") -> None:
        plain = (part._parts if isinstance(part, CronUnion) else (part,) for part in parts)
        self._parts: tuple[Cron, ...] = tuple(dict.fromkeys(itertools.chain.from_iterable(plain)))

    def __repr__(self) -> str:
        return " | ".join(map(repr, self._parts))

    def __eq__(self, other: object) -> bool:
        return set(self._parts) == set(other._parts) if isinstance(other, CronUnion) else NotImplemented

    def __hash__(self) -> int:
        return hash(frozenset(self._parts))

    def __or__(self, other: "Cron | CronUnion") -> "CronUnion":
        return CronUnion(self, other) if isinstance(other, Cron | CronUnion) else NotImplemented

    def __ror__(self, other: Cron) -> "CronUnion":
        return CronUnion(other, self) if isinstance(other, Cron) else NotImplemented

    def iter(self, after: dt.datetime) -> Iterator[dt.datetime]:
        """Iterate over the fires after `after`, in order. The iteration ends if the schedule ends."""
        with contextlib.suppress(NoFire):
            while True:
                after = self.next(after)
                yield after

    def next(self, after: dt.datetime) -> dt.datetime:
        """Return the first fire of any part after `after`, in the zone of that part."""
        return min(self._answers(Cron.next, after), key=dt.datetime.timestamp)

    def previous(self, before: dt.datetime) -> dt.datetime:
        """Return the last fire of any part before `before`, in the zone of that part."""
        return max(self._answers(Cron.previous, before), key=dt.datetime.timestamp)

    def _answers(self, ask: Callable[[Cron, dt.datetime], dt.datetime], moment: dt.datetime) -> list[dt.datetime]:
        """Return the answers of all parts that have one; ValueError if none has one."""
        answers = []
        for part in self._parts:
            with contextlib.suppress(NoFire):
                answers.append(ask(part, moment))
        if not answers:
            raise NoFire(f"{self!r} has no fire on that side of {moment}")
        return answers

    def matches(self, moment: dt.datetime) -> bool:
        """Whether any part fires in the minute (or second, see Cron) of `moment`."""
        return any(part.matches(moment) for part in self._parts)

    def explain(self) -> str:
        """Return the parts in words."""
        return "; ".join(part.explain() for part in self._parts)
