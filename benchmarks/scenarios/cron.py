"""Cron expressions: parsing them, and finding the next fire after the previous one."""

from __future__ import annotations

import datetime as dt
import itertools
import time
from importlib import import_module
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from benchmarks.model import Check, Figures, Part, Scenario, Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

# Figure: expression, zone, fires to find in a go. Few of those that come once in years, or a peer takes for ever.
EXPRESSIONS = {
    "minutes": ("*/5 * * * *", "UTC", 4_000),
    "workdays": ("0 9 * * 1-5", "Europe/Riga", 1_000),
    "gap": ("30 2 * * *", "America/New_York", 1_000),
    "leap": ("0 0 29 2 *", "UTC", 100),
    "fifth": ("0 0 * 2 MON#5", "UTC", 20),
}
BEGIN = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
GOES = 5


def calls_a_second(calls: Callable[[], Iterable[Any]], count: int) -> float:
    """Return the best of several runs: disturbances can only make a loop of microseconds slower."""
    best = 0.0
    for _ in range(GOES):
        items = calls()
        begin = time.perf_counter()
        for _ in itertools.islice(items, count):
            pass
        best = max(best, count / (time.perf_counter() - begin))
    return best


def unseen() -> Iterator[str]:
    """Yield expressions that have no field in common except `*`."""
    for number in itertools.count():
        minutes = ",".join(str(number // size % 59) for size in (1, 59, 59 * 59))
        hours = ",".join(str(number // size % 23) for size in (1, 23, 23 * 23))
        yield f"{minutes} {hours} * * *"


def measured(parse: Callable[[str, str], Any], fires: Callable[[str, str], Iterator[Any]]) -> Figures:
    known = [(expr, zone) for expr, zone, _ in EXPRESSIONS.values()]
    fresh = unseen()
    found = {
        "parse": calls_a_second(lambda: (parse(*one) for one in itertools.cycle(known)), 5_000),
        "parse_unseen": calls_a_second(lambda: (parse(expr, "UTC") for expr in fresh), 2_000),
    }
    for name, (expr, zone, count) in EXPRESSIONS.items():
        found[name] = calls_a_second(lambda expr=expr, zone=zone: fires(expr, zone), count)  # type: ignore[misc]
    return found


def begin_in(zone: str) -> dt.datetime:
    return BEGIN.astimezone(dt.UTC if zone == "UTC" else ZoneInfo(zone))


def flowrra(settings: Settings) -> Figures:
    from flowrra import Cron

    def fires(expr: str, zone: str) -> Iterator[Any]:
        moment, cron = begin_in(zone), Cron(expr, zone)
        while True:
            moment = cron.next(moment)
            yield moment

    return measured(Cron, fires)


def cronsim(settings: Settings) -> Figures:
    CronSim = import_module("cronsim").CronSim  # noqa: N806 (a class)
    begins = {zone: begin_in(zone) for _, zone, _ in EXPRESSIONS.values()}
    return measured(lambda expr, zone: CronSim(expr, begins[zone]), lambda expr, zone: CronSim(expr, begins[zone]))


def croniter(settings: Settings) -> Figures:
    Croniter = import_module("croniter").croniter  # noqa: N806 (a class)
    begins = {zone: begin_in(zone) for _, zone, _ in EXPRESSIONS.values()}

    def fires(expr: str, zone: str) -> Iterator[Any]:
        found: Iterator[Any] = Croniter(expr, begins[zone], dt.datetime, max_years_between_matches=100).all_next()
        return found

    return measured(lambda expr, zone: Croniter(expr, begins[zone]), fires)


def checks() -> Iterator[Check]:
    yield Check(label="parse", ours="flowrra", figure="parse", against="cronsim", goal=1)
    yield Check(label="parse", ours="flowrra", figure="parse", against="croniter")
    yield Check(label="parse, fields unseen", ours="flowrra", figure="parse_unseen", against="cronsim")
    for name, (expr, zone, _) in EXPRESSIONS.items():
        for peer, goal in (("cronsim", 7), ("croniter", 12)):
            yield Check(label=f"next, {expr} {zone}", ours="flowrra", figure=name, against=peer, goal=goal)


SCENARIO = Scenario(
    title="cron expressions: parse, and next from the fire before",
    parts={
        "flowrra": Part(run=flowrra, needs="flowrra", setting="Cron.next"),
        "cronsim": Part(run=cronsim, needs="cronsim", setting="an iterator; it keeps its place"),
        "croniter": Part(run=croniter, needs="croniter", setting="all_next(), up to 100 years between two fires"),
    },
    checks=tuple(checks()),
)
