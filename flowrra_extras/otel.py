"""Traces and metrics of jobs with OpenTelemetry: `pip install flowrra[otel]`.

    from flowrra_extras.otel import instrument

    instrument(app)     # once, in the module that declares the tasks: for submitting programs and for workers

Each submission and each attempt is a span, named after the semantic conventions for messaging. `submit TASK` is a
producer span, a child of the current span. `run TASK` is a consumer span, a child of `submit TASK`, on any machine. If
a task submits jobs, those spans are children of its attempt. An attempt has a link to the previous attempt, if that ran
in the same process, and to the submissions of the jobs whose results it takes. The job's `meta` carries the trace.
"""

import collections
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from opentelemetry import metrics, propagate, trace
from opentelemetry.context import Context
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, StatusCode, TracerProvider

from flowrra import Cancel, Flowrra, Job, JobFilter, Snooze, __version__, current_job, describe

__all__ = ["attempt_context", "instrument"]

_REMEMBERED = 10_000  # attempts that later ones can link to
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 30, 60, 300)


def instrument(
    app: Flowrra, *, tracer_provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None
) -> None:
    """Trace and measure the jobs of `app`.

    Call it before you register other middleware, so that their spans are children of the attempt. In the process of a
    CPU-bound task, start spans with `context=attempt_context()` to make them children of the attempt.

    Args:
        app: the app whose submissions and attempts are traced.
        tracer_provider: the provider of tracers; None: the global one.
        meter_provider: the provider of meters; None: the global one.
    """
    telemetry = _Telemetry(
        app,
        trace.get_tracer("flowrra", __version__, tracer_provider),
        metrics.get_meter("flowrra", __version__, meter_provider),
    )
    app.on_submit(telemetry.submit)
    app.middleware(telemetry.run)


def attempt_context() -> Context:
    """Return the context of the running attempt, for spans of a CPU-bound task: no span is current in its process.

    Raises:
        FlowrraError: it is not called inside a job.
    """
    return _context_of(current_job().meta)


class _Telemetry:
    """The hook of submissions and the middleware of attempts."""

    def __init__(self, app: Flowrra, tracer: trace.Tracer, meter: metrics.Meter) -> None:
        self._app = app
        self._tracer = tracer
        self._sent = meter.create_counter(
            "messaging.client.sent.messages", unit="{message}", description="Jobs that were submitted."
        )
        self._consumed = meter.create_counter(
            "messaging.client.consumed.messages", unit="{message}", description="Attempts that have begun."
        )
        self._duration = meter.create_histogram(
            "messaging.process.duration", unit="s", description="How long attempts took.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )  # fmt: skip
        self._lock = threading.Lock()
        self._latest: collections.OrderedDict[str, SpanContext] = collections.OrderedDict()  # attempts by job

    def submit(self, job: Job) -> None:
        """Record a submission, and add its trace to the job's `meta`."""
        attributes = _attributes(job, "submit", "create")
        with self._tracer.start_as_current_span(f"submit {job.task}", kind=SpanKind.PRODUCER, attributes=attributes):
            job.meta = {**(job.meta or {}), **_carried()}
        self._sent.add(1, _labels(attributes))

    async def run(self, job: Job, call_next: Callable[[Job], Awaitable[Any]]) -> Any:
        """Run an attempt in a span."""
        attributes = _attributes(job, "run", "process")
        labels, meta = _labels(attributes), job.meta
        links = [*self._link_to_latest(job), *await self._links_to_parents(job)]
        self._consumed.add(1, labels)
        began = time.perf_counter()
        with self._tracer.start_as_current_span(
            f"run {job.task}", _context_of(meta), SpanKind.CONSUMER, {**attributes, "flowrra.job.attempt": job.attempt},
            links, record_exception=False, set_status_on_exception=False,
        ) as span:  # fmt: skip
            self._remember(job, span)
            if (task := self._app.registry.get(job.task)) is not None and task.settings.cpu_bound:
                job.meta = {**(meta or {}), **_carried()}  # its process can continue this span
            try:
                return await call_next(job)
            except BaseException as error:
                labels |= _note_error(span, error)
                raise
            finally:
                job.meta = meta
                self._duration.record(time.perf_counter() - began, labels)

    def _remember(self, job: Job, span: Span) -> None:
        with self._lock:
            self._latest[job.id] = span.get_span_context()
            if len(self._latest) > _REMEMBERED:
                self._latest.popitem(last=False)

    def _link_to_latest(self, job: Job) -> list[Link]:
        with self._lock:
            latest = self._latest.pop(job.id, None)
        return [] if latest is None else [Link(latest, {"flowrra.link": "attempt"})]

    async def _links_to_parents(self, job: Job) -> list[Link]:
        if not job.parents:
            return []
        parents = await self._app.broker.find(JobFilter(ids=job.parents), limit=len(job.parents))
        found = [trace.get_current_span(_context_of(parent.meta)).get_span_context() for parent in parents]
        return [Link(context, {"flowrra.link": "parent"}) for context in found if context.is_valid]


def _carried() -> dict[str, str]:
    """Return the current trace in the form in which a job carries it."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return carrier


def _context_of(meta: Mapping[str, Any] | None) -> Context:
    """Return the trace that a job carries; without one, an empty trace, never that of the code that runs here."""
    carrier = {name: value for name, value in (meta or {}).items() if isinstance(value, str)}
    return propagate.extract(carrier, trace.set_span_in_context(trace.INVALID_SPAN))


def _attributes(job: Job, operation: str, kind: str) -> dict[str, str]:
    return {
        "messaging.system": "flowrra",
        "messaging.destination.name": job.queue,
        "messaging.operation.name": operation,
        "messaging.operation.type": kind,
        "messaging.message.id": job.id,
        "flowrra.task": job.task,
    }


def _labels(attributes: dict[str, str]) -> dict[str, str]:
    """Return the attributes that have few different values, as labels of a metric must."""
    return {name: value for name, value in attributes.items() if name != "messaging.message.id"}


def _note_error(span: Span, error: BaseException) -> dict[str, str]:
    """Record the exception of an attempt in its span. Return labels for metrics. Snooze and Cancel are no errors."""
    if isinstance(error, Snooze | Cancel):
        span.add_event(type(error).__name__.lower(), {"flowrra.reason": str(error)})
        return {}
    if isinstance(error, Exception):
        span.record_exception(error)
    span.set_status(StatusCode.ERROR, describe(error))
    kind = type(error).__qualname__
    span.set_attribute("error.type", kind)
    return {"error.type": kind}
