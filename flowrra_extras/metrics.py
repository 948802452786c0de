"""What Prometheus asks for: the state of the queues, and what the workers did, as text.

    exporter = Exporter(app)
    text = await exporter.text()        # serve it as CONTENT_TYPE

The dashboard serves it under `metrics`. Figures are the store's, so one exporter shows all workers; several
exporters on one store show the same and must not be added up.
"""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING

from flowrra import Activity, Broker, Flowrra, TaskStatus

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping

    Counts = Mapping[tuple[str, TaskStatus], int]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_DAY = 86_400.0
_BUCKETS = range(0, 32, 2)  # of the 35 that an histogram has: 0.1 ms to 30 hours, each four times the one before


class _Sum:
    """What workers did with the jobs of a task, since the first row that the store still had."""

    def __init__(self) -> None:
        self.numbers: collections.Counter[str] = collections.Counter()
        self.waits: collections.Counter[int] = collections.Counter()
        self.runs: collections.Counter[int] = collections.Counter()

    def add(self, row: Activity, sign: int) -> None:
        """Add a row, or take it off."""
        for name in ("succeeded", "failed", "retried"):
            self.numbers[name] += sign * getattr(row, name)
        for bucket, number in row.waits.items():
            self.waits[bucket] += sign * number
        for bucket, number in row.runs.items():
            self.runs[bucket] += sign * number


class Exporter:
    """Writes the metrics of an app's store.

    The store keeps what workers did for a day, and counters must not fall: so the exporter adds up what it has
    seen. A new one begins with what the store has, which Prometheus takes for a restart. `counts`
    stands in for the broker's own, which on a big SQLite file takes a second.
    """

    def __init__(self, app: Flowrra, counts: Callable[[], Awaitable[Counts]] | None = None) -> None:
        self._app = app
        self._counts = counts or app.broker.counts
        self._rows: dict[tuple[int, str], Activity] = {}
        self._sums: dict[str, _Sum] = collections.defaultdict(_Sum)

    async def text(self) -> str:
        """The metrics as they are now.

        Raises:
            BrokerError: the store failed.
        """
        await self._app.connect()
        broker, now = self._app.broker, self._app.now()
        newest = max((minute for minute, _ in self._rows), default=None)
        since = now - _DAY if newest is None else newest - 600  # workers tell of a minute until they have left it
        self._take(await broker.activity(since), since)
        lines = [*_states(await self._counts(), await broker.paused()), *await _workers(broker), *self._counters()]
        return "\n".join(lines) + "\n"

    def _take(self, rows: Iterable[Activity], since: float) -> None:
        for row in rows:
            key = row.minute, row.task
            if key in self._rows:
                self._sums[row.task].add(self._rows[key], -1)
            self._sums[row.task].add(row, 1)
            self._rows[key] = row
        self._rows = {key: row for key, row in self._rows.items() if key[0] >= since}

    def _counters(self) -> Iterator[str]:
        sums = sorted(self._sums.items())
        yield from _head("flowrra_attempts_total", "counter", "Attempts that have ended, by task and outcome.")
        for task, total in sums:
            for outcome, number in total.numbers.items():
                yield _line("flowrra_attempts_total", number, task=task, outcome=outcome)
        yield from _head("flowrra_run_seconds", "histogram", "How long attempts took.")
        for task, total in sums:
            yield from _histogram("flowrra_run_seconds", task, total.runs)
        yield from _head("flowrra_wait_seconds", "histogram", "How long jobs waited for their first attempt.")
        for task, total in sums:
            yield from _histogram("flowrra_wait_seconds", task, total.waits)


def _states(counts: Counts, paused: set[str]) -> list[str]:
    lines = _head("flowrra_jobs", "gauge", "Jobs in the store, by queue and state.")
    for queue in sorted({queue for queue, _ in counts}):
        lines += [
            _line("flowrra_jobs", counts.get((queue, status), 0), queue=queue, state=str(status))
            for status in TaskStatus
        ]
    lines += _head("flowrra_queue_paused", "gauge", "1 where no jobs of the queue are handed out.")
    for queue in sorted({queue for queue, _ in counts} | paused):
        lines.append(_line("flowrra_queue_paused", int(queue in paused), queue=queue))
    return lines


async def _workers(broker: Broker) -> list[str]:
    workers = await broker.workers()
    capacity: collections.Counter[str] = collections.Counter()
    for worker in workers:
        capacity.update(worker.queues)
    return [
        *_head("flowrra_workers", "gauge", "Live workers."),
        _line("flowrra_workers", len(workers)),
        *_head("flowrra_queue_capacity", "gauge", "Jobs of a queue that live workers can run at once."),
        *(_line("flowrra_queue_capacity", number, queue=queue) for queue, number in sorted(capacity.items())),
        *_head("flowrra_worker_memory_bytes", "gauge", "Resident memory of a worker's process."),
        *(
            _line("flowrra_worker_memory_bytes", worker.memory, worker=worker.id)
            for worker in workers
            if worker.memory is not None
        ),
    ]


# The text --------------------------------------------------------------------------------------


def _head(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]


def _line(name: str, value: float, **labels: str) -> str:
    shown = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
    return f"{name}{{{shown}}} {value}" if shown else f"{name} {value}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _histogram(name: str, task: str, histogram: Mapping[int, int]) -> Iterator[str]:
    """Cumulative buckets. The sum is reckoned from the buckets' upper bounds: the store keeps no other."""
    for bound in _BUCKETS:
        number = sum(n for bucket, n in histogram.items() if bucket <= bound)
        yield _line(f"{name}_bucket", number, task=task, le=f"{0.0001 * 2**bound:g}")
    total = sum(histogram.values())
    yield _line(f"{name}_bucket", total, task=task, le="+Inf")
    yield _line(f"{name}_sum", round(sum(n * 0.0001 * 2.0**bucket for bucket, n in histogram.items()), 4), task=task)
    yield _line(f"{name}_count", total, task=task)
