"""Traces and metrics of jobs, seen by the SDK of OpenTelemetry."""

import asyncio
import contextvars
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from flowrra import Cancel, Flowrra, Snooze, current_job, result_of
from flowrra_extras import otel
from tests.support.processes import Site, stand_in

WHO: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="nobody")


class Telemetry:
    """Providers of a test's own."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self._exporter))
        self._reader = InMemoryMetricReader()
        self.meters = MeterProvider([self._reader])
        self.web = self.tracers.get_tracer("web")

    def instrument(self, app: Flowrra) -> None:
        otel.instrument(app, tracer_provider=self.tracers, meter_provider=self.meters)

    def spans(self, name: str) -> list[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if span.name == name]

    def span(self, name: str) -> ReadableSpan:
        (found,) = self.spans(name)
        return found

    def metrics(self) -> dict[str, list[Any]]:
        data = self._reader.get_metrics_data()
        assert data is not None
        found = [metric for of in data.resource_metrics for scope in of.scope_metrics for metric in scope.metrics]
        return {metric.name: list(metric.data.data_points) for metric in found}


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry()


@pytest.fixture
def app(telemetry: Telemetry) -> Flowrra:
    app = Flowrra.from_urls()
    telemetry.instrument(app)
    return app


def is_in(span: ReadableSpan, parent: ReadableSpan) -> bool:
    return span.parent is not None and span.parent.span_id == parent.context.span_id


def linked(span: ReadableSpan) -> list[int]:
    return [link.context.span_id for link in span.links]


async def test_a_job_is_in_the_trace_of_its_submission(app: Flowrra, telemetry: Telemetry) -> None:
    @app.task(name="greet", queue="mail")
    async def greet() -> str:
        return str(current_job().meta["traceparent"])

    async with app:
        with telemetry.web.start_as_current_span("request") as request:
            job = await app.submit(greet.options(meta={"user": 7}))
            assert trace.get_current_span() is request
        result = await app.wait_for_result(job, timeout=20)
        assert (await app.get_job(job)).meta == {"user": 7, "traceparent": result.result}
    submit, run = telemetry.span("submit greet"), telemetry.span("run greet")
    assert is_in(submit, telemetry.span("request"))
    assert is_in(run, submit)
    assert (submit.kind, run.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    assert dict(submit.attributes or {}) == {
        "messaging.system": "flowrra",
        "messaging.destination.name": "mail",
        "messaging.operation.name": "submit",
        "messaging.operation.type": "create",
        "messaging.message.id": job,
        "flowrra.task": "greet",
    }
    expected = {"messaging.operation.name": "run", "messaging.operation.type": "process", "flowrra.job.attempt": 1}
    assert dict(run.attributes or {}) == {**(submit.attributes or {}), **expected}
    assert run.status.status_code is StatusCode.UNSET


async def test_nothing_else_of_the_submitters_context_comes_along(app: Flowrra, telemetry: Telemetry) -> None:
    plain = Flowrra(broker=app.broker)

    @app.task(name="look")
    async def look() -> str:
        return WHO.get()

    @plain.task(name="look")
    async def never_run() -> None: ...

    async with app:
        WHO.set("the submitter")
        with telemetry.web.start_as_current_span("request"):
            traced = await app.submit(look)
            job = await app.broker.push([plain.registry["look"].make_job((), {})], now=app.now())  # by no hook
        for task_id in (traced, *job):
            assert (await app.wait_for_result(task_id, timeout=20)).result == "nobody"
    inside, alone = telemetry.spans("run look")
    assert is_in(inside, telemetry.span("submit look"))
    assert alone.parent is None


async def test_what_fails_is_marked_and_an_attempt_links_to_the_one_before(app: Flowrra, telemetry: Telemetry) -> None:
    @app.task(name="fail", max_retries=1, retry_delay=0.01)
    def fail() -> None:
        raise LookupError("no luck")

    async with app:
        await app.wait_for_result(await app.submit(fail), timeout=20)
    first, second = telemetry.spans("run fail")
    submit = telemetry.span("submit fail")
    assert is_in(first, submit)
    assert is_in(second, submit)
    assert (linked(first), linked(second)) == ([], [first.context.span_id])
    for span in (first, second):
        assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "LookupError: no luck")
        assert (span.attributes or {})["error.type"] == "LookupError"
        (event,) = span.events
        assert (event.attributes or {})["exception.message"] == "no luck"


async def test_a_child_links_to_the_submissions_of_its_parents(app: Flowrra, telemetry: Telemetry) -> None:
    @app.task(name="one")
    async def one() -> int:
        return 1

    @app.task(name="add")
    async def add(a: int, b: int) -> int:
        await app.submit(one)
        return a + b

    async with app:
        parents = [await app.submit(one) for _ in range(2)]
        total = await app.submit(add, result_of(parents[0]), result_of(parents[1]))
        assert (await app.wait_for_result(total, timeout=20)).result == 2
    run, submits = telemetry.span("run add"), telemetry.spans("submit one")
    assert sorted(linked(run)) == sorted(span.context.span_id for span in submits[:2])
    assert is_in(submits[2], run)


async def test_to_snooze_and_to_cancel_are_no_errors(app: Flowrra, telemetry: Telemetry) -> None:
    @app.task(name="ask")
    async def ask() -> None:
        raise Snooze(0.01) if current_job().attempt == 1 else Cancel("too late")

    async with app:
        await app.wait_for_result(await app.submit(ask), timeout=20)
    spans = telemetry.spans("run ask")
    assert [span.status.status_code for span in spans] == [StatusCode.UNSET] * 2
    assert [[event.name for event in span.events] for span in spans] == [["snooze"], ["cancel"]]


async def test_a_timeout_is_an_error_of_its_span(app: Flowrra, telemetry: Telemetry) -> None:
    @app.task(name="dawdle", timeout=0.01, max_retries=0)
    async def dawdle() -> None:
        await asyncio.sleep(60)

    async with app:
        await app.wait_for_result(await app.submit(dawdle), timeout=20)
    assert (telemetry.span("run dawdle").attributes or {})["error.type"] == "TaskTimeoutError"


async def test_jobs_are_counted_and_measured(app: Flowrra, telemetry: Telemetry) -> None:
    @app.task(name="divide", max_retries=0)
    async def divide(a: int, b: int) -> float:
        return a / b

    async with app:
        for job in await app.submit_many(divide, [(1, 1), (2, 1), (1, 0)]):
            await app.wait_for_result(job, timeout=20)
    found = telemetry.metrics()
    assert [point.value for point in found["messaging.client.sent.messages"]] == [3]
    assert [point.value for point in found["messaging.client.consumed.messages"]] == [3]
    counts = {point.attributes.get("error.type"): point.count for point in found["messaging.process.duration"]}
    assert counts == {None: 2, "ZeroDivisionError": 1}
    assert all("messaging.message.id" not in point.attributes for points in found.values() for point in points)


async def test_what_is_remembered_of_attempts_is_bounded(
    app: Flowrra, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(otel, "_REMEMBERED", 2)

    @app.task(name="fail", max_retries=1, retry_delay=0.3)
    async def fail(text: str) -> None:
        raise LookupError(text)

    async with app:
        for job in await app.submit_many(fail, [(str(number),) for number in range(3)]):
            await app.wait_for_result(job, timeout=20)
    spans = telemetry.spans("run fail")
    assert len(spans) == 6
    assert [linked(span) for span in spans] == [[]] * 6  # each was forgotten for another one, before its retry


TRACED = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
from flowrra_extras.otel import instrument

provider = TracerProvider()
write = lambda span: f"{span.context.trace_id:032x} {span.name}\\n"
out = open(HERE / "spans", "a", 1)
provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(out=out, formatter=write)))
trace.set_tracer_provider(provider)
instrument(app)
"""


TRACED_PROCESS = """
from flowrra_extras.otel import attempt_context


@app.task(cpu_bound=True, max_retries=1, retry_delay=0)
def render():
    with trace.get_tracer("shop").start_as_current_span("draw", attempt_context()):
        if flowrra.current_job().attempt == 1:
            raise LookupError("no ink")
    return {**flowrra.current_job().meta}
"""


async def test_the_process_of_a_cpu_bound_task_may_go_on_with_the_trace(telemetry: Telemetry, tmp_path: Path) -> None:
    code = TRACED.replace("{span.name}", "{span.context.span_id:016x} {span.parent.span_id:016x} {span.name}")
    with Site(tmp_path, code + TRACED_PROCESS) as site:
        await site.worker()
        async with site.client() as app:
            telemetry.instrument(app)
            job = await app.submit(stand_in(app, "app.render").options(meta={"user": 7}))
            result = await app.wait_for_result(job, timeout=20)
            meta = (await app.get_job(job)).meta
        spans = [line.split(maxsplit=3) for line in site.lines("spans")]
    submit = telemetry.span("submit app.render").context
    assert [name for *_, name in spans] == ["draw", "run app.render"] * 2
    assert {trace_id for trace_id, *_ in spans} == {f"{submit.trace_id:032x}"}
    runs = [span_id for _, span_id, parent_id, name in spans if parent_id == f"{submit.span_id:016x}"]
    assert [parent_id for _, _, parent_id, name in spans if name == "draw"] == runs
    assert str((meta or {})["traceparent"]).split("-")[1:3] == [f"{submit.trace_id:032x}", f"{submit.span_id:016x}"]
    assert result.result["user"] == 7


async def test_a_trace_goes_on_in_another_process(telemetry: Telemetry, tmp_path: Path) -> None:
    with Site(tmp_path, TRACED) as site:
        await site.worker()
        async with site.client() as app:
            telemetry.instrument(app)
            job = await app.submit(stand_in(app, "app.nap"), 0)
            await app.wait_for_result(job, timeout=20)
        context = telemetry.span("submit app.nap").context
        assert site.lines("spans") == [f"{context.trace_id:032x} run app.nap"]
