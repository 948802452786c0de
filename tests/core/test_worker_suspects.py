"""Which jobs a worker claims when some were running in crashes: suspects and others in turns."""

import asyncio

from flowrra import LAST_CHANCE, Config, ExecutorConfig, Flowrra, Job, MemoryBroker, Turns
from flowrra_extras.migrate import adopt_jobs, unhold_jobs
from flowrra_extras.testing import ManualClock
from tests.support.processes import until

LEASE = 10.0


async def test_a_worker_runs_suspects_and_others_in_turns() -> None:
    """Three suspects, and others of which there are always more."""
    broker, order = MemoryBroker(), list[str]()
    app = Flowrra(Config(executor=ExecutorConfig(io_workers=2, lease=1.0, heartbeat=0.02)), broker=broker)

    @app.task(name="work")
    async def work(name: str) -> None:
        order.append(name)
        await asyncio.sleep(0.002)
        if name == "other" and order.count("suspect") < 3:
            await app.submit(work, name)

    suspects = [Job(f"s{n}", "work", payload='[["suspect"],{}]', attempt=1, crashes=1) for n in range(3)]
    await adopt_jobs(broker, suspects, by="a move", now=1.0)
    await unhold_jobs(broker, [job.id for job in suspects], by="a move", gone=False, now=1.0)
    await broker.push([Job(f"o{n}", "work", payload='[["other"],{}]') for n in range(4)], now=1.0)
    async with app:
        await until(lambda: order.count("suspect") == 3, "all suspects have run")
    assert order[:2] == ["suspect", "other"]
    assert "suspect suspect" not in " ".join(order)


def turns() -> tuple[Turns, ManualClock, list[Job], list[Job]]:
    clock = ManualClock()
    return Turns(clock, LEASE), clock, [Job("suspect", "task", crashes=1)], [Job("other", "task")]


def test_after_a_suspect_it_is_the_turn_of_the_others_in_its_queue() -> None:
    rule, _, suspect, other = turns()
    rule.note("a", suspect)
    assert (rule.crashes("a"), rule.crashes("b")) == (0, LAST_CHANCE - 1)
    rule.note("a", other)
    assert rule.crashes("a") == LAST_CHANCE - 1
    rule.note("a", suspect)
    rule.note("a", [])
    assert rule.crashes("a") == LAST_CHANCE - 1, "nobody else waits"


def test_a_crash_that_would_be_the_last_is_risked_where_nothing_else_is_to_blame() -> None:
    rule, clock, _, other = turns()
    assert rule.crashes("a") == LAST_CHANCE, "in a worker that has just started"
    rule.note("a", [])
    assert rule.crashes("a") == rule.most == LAST_CHANCE - 1, "it has lived for a while now"
    assert rule.crashes("b") == LAST_CHANCE
    rule.note("a", other)
    assert rule.crashes("b") == LAST_CHANCE - 1
    clock.advance(3 * LEASE)
    assert rule.crashes("a") == rule.crashes("b") == rule.most == LAST_CHANCE
