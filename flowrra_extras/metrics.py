"""Metrics for Prometheus: the state of the queues, and what the workers did, as text.

    exporter = Exporter(app)
    text = await exporter.text()        # serve it as CONTENT_TYPE

The dashboard serves it under `metrics`. All figures come from the store, and its counters never decrease, even if
workers or exporters restart. So all exporters on one store show the same figures: do not add them up.
"""

import collections
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

from flowrra import Activity, Broker, Flowrra, Job, JobFilter, TaskStatus, WorkerInfo

__all__ = ["CONTENT_TYPE", "Exporter", "oldest_ready", "quantile", "ready_since"]

Counts = Mapping[tuple[str, TaskStatus], int]
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BUCKETS = range(0, 32, 2)  # of the 35 buckets of a histogram: 0.1 ms to 30 hours, each four times the one before
_OLDEST_OF = 20  # ready jobs of a queue, the first submitted: one of them may have become ready just now


class Exporter:
    """Writes the metrics of an app's store.

    Args:
        app: the app whose store is measured.
        look: replaces the query for the numbers of jobs, and since when the oldest ready job of each queue waits. On a
            large SQLite file, that query takes a second.
    """

    def __init__(
        self, app: Flowrra, look: Callable[[], Awaitable[tuple[Counts, Mapping[str, float]]]] | None = None
    ) -> None:
        self._app = app
        self._look = look or self._count

    async def _count(self) -> tuple[Counts, Mapping[str, float]]:
        counts = await self._app.broker.counts()
        return counts, await oldest_ready(self._app.broker, counts)

    async def text(self) -> str:
        """Return the current metrics.

        Raises:
            BrokerError: the store failed.
        """
        await self._app.connect()
        broker = self._app.broker
        counts, oldest = await self._look()
        lines = [
            *_states(counts, await broker.paused()),
            *_lags(counts, oldest, self._app.now()),
            *_workers(await broker.workers()),
            *_counters(await broker.totals()),
        ]
        return "\n".join(lines) + "\n"


async def oldest_ready(broker: Broker, counts: Counts) -> dict[str, float]:
    """Return for each queue with ready jobs the time since when the oldest one has been waiting."""
    oldest = {}
    for queue in sorted(
        {queue for (queue, status), number in counts.items() if status is TaskStatus.PENDING and number}
    ):
        ready = JobFilter(queue=queue, status=frozenset({TaskStatus.PENDING}))
        jobs = await broker.find(ready, limit=_OLDEST_OF, oldest_first=True)
        if jobs:
            oldest[queue] = min(map(ready_since, jobs))
    return oldest


def ready_since(job: Job) -> float:
    """Return the time at which a job became ready for its latest attempt."""
    ended = job.history[-1].ended if job.history else None
    return max(job.submitted, job.due or 0.0, ended or 0.0)


def quantile(histogram: Mapping[int, int], share: float) -> float | None:
    """Return the duration in seconds that `share` (0 to 1) of the durations do not exceed; None if there are none.

    Durations inside a bucket (see `flowrra.length_bucket`) are assumed to be evenly spread on a logarithmic scale.
    """
    rank = share * sum(histogram.values())
    for bucket, number in sorted(histogram.items()):
        if 0 < number >= rank:
            return float(0.0001 * 2.0 ** (bucket - 1 + rank / number))
        rank -= number
    return None


def _lags(counts: Counts, oldest: Mapping[str, float], now: float) -> Iterator[str]:
    yield from _head("flowrra_queue_lag_seconds", "gauge", "How long the oldest ready job of a queue has waited.")
    for queue in sorted({queue for queue, _ in counts}):
        lag = max(0.0, now - oldest[queue]) if queue in oldest else 0.0
        yield _line("flowrra_queue_lag_seconds", round(lag, 3), queue=queue)


def _counters(totals: Sequence[Activity]) -> Iterator[str]:
    yield from _head("flowrra_attempts_total", "counter", "Attempts that have ended, by task and outcome.")
    for row in totals:
        for outcome in ("succeeded", "failed", "retried"):
            yield _line("flowrra_attempts_total", getattr(row, outcome), task=row.task, outcome=outcome)
    yield from _head("flowrra_run_seconds", "histogram", "How long attempts took.")
    for row in totals:
        yield from _histogram("flowrra_run_seconds", row.task, row.runs, row.ran)
    yield from _head("flowrra_wait_seconds", "histogram", "How long jobs waited for their first attempt.")
    for row in totals:
        yield from _histogram("flowrra_wait_seconds", row.task, row.waits, row.waited)


def _states(counts: Counts, paused: set[str]) -> list[str]:
    lines = _head("flowrra_jobs", "gauge", "Jobs in the store, by queue and state.")
    for queue in sorted({queue for queue, _ in counts}):
        lines += [
            _line("flowrra_jobs", counts.get((queue, status), 0), queue=queue, state=str(status))
            for status in TaskStatus
        ]
    lines += _head("flowrra_queue_paused", "gauge", "1 if the queue is paused.")
    for queue in sorted({queue for queue, _ in counts} | paused):
        lines.append(_line("flowrra_queue_paused", int(queue in paused), queue=queue))
    return lines


def _workers(workers: Sequence[WorkerInfo]) -> list[str]:
    capacity: collections.Counter[str] = collections.Counter()
    memory: collections.Counter[str] = collections.Counter()
    for worker in workers:
        capacity.update(worker.queues)
        memory[worker.host] += worker.memory or 0
    return [
        *_head("flowrra_workers", "gauge", "Live workers."),
        _line("flowrra_workers", len(workers)),
        *_head("flowrra_queue_capacity", "gauge", "Jobs of a queue that live workers can run at once."),
        *(_line("flowrra_queue_capacity", number, queue=queue) for queue, number in sorted(capacity.items())),
        # By host: with the worker's id, each restart would start a new time series.
        *_head("flowrra_worker_memory_bytes", "gauge", "Resident memory of the live workers of a host, summed."),
        *(_line("flowrra_worker_memory_bytes", number, host=host) for host, number in sorted((+memory).items())),
    ]


# The text --------------------------------------------------------------------------------------


def _head(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]


def _line(name: str, value: float, **labels: str) -> str:
    shown = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
    return f"{name}{{{shown}}} {value}" if shown else f"{name} {value}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _histogram(name: str, task: str, histogram: Mapping[int, int], seconds: float) -> Iterator[str]:
    """Yield the lines of cumulative buckets, with the number and the sum of the durations."""
    for bound in _BUCKETS:
        number = sum(n for bucket, n in histogram.items() if bucket <= bound)
        yield _line(f"{name}_bucket", number, task=task, le=f"{0.0001 * 2**bound:g}")
    total = sum(histogram.values())
    yield _line(f"{name}_bucket", total, task=task, le="+Inf")
    yield _line(f"{name}_sum", round(seconds, 6), task=task)
    yield _line(f"{name}_count", total, task=task)
