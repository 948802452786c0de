"""The metrics: text that Prometheus reads, from the store's own figures, with counters that never fall."""

import re

from flowrra import Activity, Flowrra
from flowrra_extras.metrics import Exporter
from tests.apps import eventually
from tests.dashboards import finished, shop, submitted

LINE = re.compile(r'(\w+)(?:\{(\w+="(?:[^"\\]|\\.)*"(?:,\w+="(?:[^"\\]|\\.)*")*)\})? ([-+0-9.e]+)')


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


def row(minute: int, succeeded: int, bucket: int = 3) -> Activity:
    app = Activity(minute, "shop.greet", succeeded)
    app.runs[bucket] = succeeded
    return app


def counted(exporter: Exporter, *rows: Activity, since: float = 0.0) -> float:
    exporter._take(rows, since)
    return read("\n".join(exporter._counters()))['flowrra_attempts_total{task="shop.greet",outcome="succeeded"}']


def test_counters_go_on_when_the_store_forgets() -> None:
    exporter = Exporter(Flowrra())
    assert counted(exporter, row(60, 5), row(120, 1)) == 6
    assert counted(exporter, row(120, 4)) == 9  # a minute that has grown is not counted twice
    assert counted(exporter, row(180, 2), since=150) == 11  # the store has forgotten what came before
    assert counted(exporter, row(180, 2), since=150) == 11


def test_buckets_are_cumulative() -> None:
    exporter = Exporter(Flowrra())
    exporter._take([row(60, 1, bucket=0), row(120, 2, bucket=10), row(180, 4, bucket=34)], 0.0)
    buckets = [
        value for name, value in read("\n".join(exporter._counters())).items()
        if name.startswith("flowrra_run_seconds_bucket")
    ]  # fmt: skip
    assert buckets == sorted(buckets)
    assert (buckets[0], buckets[-2], buckets[-1]) == (1, 3, 7)
