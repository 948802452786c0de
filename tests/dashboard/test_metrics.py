"""The metrics: text that Prometheus reads, from the store's own figures, with counters that never fall."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from flowrra import Activity, ActivitySums, Flowrra, Job, MemoryBroker, TaskStatus, WorkerInfo
from flowrra_extras.metrics import Exporter, _counters
from flowrra_extras.testing import ManualClock
from tests.support.apps import eventually
from tests.support.dashboards import finished, shop, store, submitted

LINE = re.compile(r'(\w+)(?:\{(\w+="(?:[^"\\]|\\.)*"(?:,\w+="(?:[^"\\]|\\.)*")*)\})? ([-+0-9.e]+)')


@pytest.fixture(params=["memory", "sqlite", "redis", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with store(request.param, tmp_path) as found:
        yield found


def read(text: str) -> dict[str, float]:
    """The samples by name and labels; each line must be one, or a comment on one to come."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        if not line.startswith("# "):
            match = LINE.fullmatch(line)
            assert match, line
            found[f"{match[1]}{{{match[2] or ''}}}"] = float(match[3])
    return found


async def test_what_is_there_and_what_was_done() -> None:
    app = shop()
    exporter = Exporter(app)
    async with app:
        await finished(app, await submitted(app, "shop.greet", "Ann"), await submitted(app, "shop.fail", "x"))
        await app.registry["shop.greet"].options(queue='odd "queue\\').submit("Bob")

        async def is_told() -> bool:
            return "shop.greet" in await exporter.text()

        await eventually(is_told)
        found = read(await exporter.text())
    assert found['flowrra_jobs{queue="default",state="success"}'] == 1
    assert found['flowrra_jobs{queue="mail",state="failed"}'] == 1
    assert found['flowrra_jobs{queue="odd \\"queue\\\\",state="pending"}'] == 1
    assert found["flowrra_workers{}"] == 1
    assert found['flowrra_attempts_total{task="shop.greet",outcome="succeeded"}'] == 1
    assert found['flowrra_attempts_total{task="shop.fail",outcome="failed"}'] == 1
    assert found['flowrra_run_seconds_bucket{task="shop.greet",le="+Inf"}'] == 1
    assert found['flowrra_run_seconds_count{task="shop.greet"}'] == 1


async def test_a_new_exporter_says_the_same(url: str) -> None:
    """A restart of the program that serves the metrics is neither a drop nor a day's work at once."""
    app = shop(url)
    async with app:
        await finished(app, await submitted(app, "shop.greet", "Ann"), await submitted(app, "shop.fail", "x"))

        async def is_told() -> bool:
            return "shop.fail" in await Exporter(app).text()

        await eventually(is_told)
    for program in (app, app if url == "memory://" else shop(url)):
        async with program.client():
            await program.broker.purge(program.now() + 1e9, 100)
            assert await program.broker.counts() == {}
            found = read(await Exporter(program).text())
        assert found['flowrra_attempts_total{task="shop.greet",outcome="succeeded"}'] == 1
        assert found['flowrra_attempts_total{task="shop.fail",outcome="failed"}'] == 1
        assert found['flowrra_wait_seconds_count{task="shop.fail"}'] == 1


async def test_the_sum_of_a_histogram_is_the_sum_of_the_lengths() -> None:
    clock = ManualClock()
    app = Flowrra(broker=MemoryBroker(clock=clock), clock=clock)
    async with app.client():
        broker = app.broker
        await broker.push([Job("a", "t"), Job("b", "t")], now=100.0)
        await broker.heartbeat(WorkerInfo("w", queues={"default": 9}), lease=60, now=100.0)
        first, second = await broker.claim("default", limit=2, worker="w", now=107.0)
        done = ActivitySums()
        for job, status in ((first, TaskStatus.SUCCESS), (second, TaskStatus.FAILED)):
            done[60, "t"].count(status, [(job, 107.0)], ended=110.0)
        worker = WorkerInfo("w", queues={"default": 9}, activity=done.in_order())
        await broker.heartbeat(worker, lease=60, now=110.0)
        found = read(await Exporter(app).text())
    assert found['flowrra_run_seconds_sum{task="t"}'] == 6.0
    assert found['flowrra_wait_seconds_sum{task="t"}'] == 14.0
    assert found['flowrra_run_seconds_count{task="t"}'] == 2


async def test_buckets_are_cumulative() -> None:
    total = Activity(0, "t", 7, runs={0: 1, 10: 2, 34: 4}, ran=9.0)
    found = read("\n".join(_counters([total])))
    buckets = [value for name, value in found.items() if name.startswith("flowrra_run_seconds_bucket")]
    assert buckets == sorted(buckets)
    assert (buckets[0], buckets[-2], buckets[-1]) == (1, 3, 7)


async def test_how_long_the_oldest_ready_job_has_waited() -> None:
    """By when it became ready: jobs that came early, and wait again only now, hide none that waits longer."""
    clock = ManualClock()
    app = Flowrra(broker=MemoryBroker(clock=clock), clock=clock)
    begin = clock.time()
    async with app.client():
        await app.broker.push([Job("early", "t", due=begin + 95.0), Job("gone", "t", queue="idle")], now=begin)
        await app.broker.push([Job("waits", "t")], now=begin + 40.0)
        await app.broker.cancel("gone", now=begin)
        clock.advance(100.0)
        await app.broker.heartbeat(WorkerInfo("w", queues={"idle": 1}), lease=60, now=clock.time())
        await app.broker.claim("idle", limit=1, worker="w", now=clock.time())  # that makes ready what is due
        found = read(await Exporter(app).text())
    assert found['flowrra_queue_lag_seconds{queue="default"}'] == 60.0
    assert found['flowrra_queue_lag_seconds{queue="idle"}'] == 0.0


async def test_a_restart_of_a_worker_begins_no_series() -> None:
    app = Flowrra.from_urls()
    async with app.client():
        for number, memory in enumerate((100, 20, None)):
            info = WorkerInfo(f"w{number}", "host", memory=memory, started=float(number))
            await app.broker.heartbeat(info, lease=60, now=app.now())
        text = await Exporter(app).text()
    assert read(text)['flowrra_worker_memory_bytes{host="host"}'] == 120
    assert "w0" not in text
