"""Spans of a client's requests: under the caller's own, and with those of the job or of a gateway below them."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from anabranch import Client
from anabranch.messaging.connection import Headers
from anabranch.schemas.errors import RequestTooLarge, UnknownModel
from anabranch.schemas.latency_breakdown import PHASES
from anabranch.schemas.messages import ErrorResponse, InferRequest, InferResponse
from anabranch.testing import Answer, FakeJob
from tests.span_collector import await_own, own_spans

X = np.zeros((1, 2), np.float32)


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = own_spans()
    exporter.clear()
    yield exporter
    exporter.clear()


class Explaining(FakeJob):
    """A job that measures what it is asked to, and remembers requests and their headers."""

    def __init__(self) -> None:
        super().__init__(answer=self.explain)
        self.headers: list[Headers] = []
        self.batch = 7

    def explain(self, request: InferRequest) -> Sequence[Answer]:
        if request.model_name != "echo":
            return [ErrorResponse(request.id, "unknown_model", "no such model")]
        explained: dict[str, Any] = {}
        if request.parameters.get("explain"):
            explained = {f"{phase}_us": 100 for phase in PHASES} | {"task": 3, "batch": self.batch}
        return [InferResponse(request.model_name, "1", request.id, request.inputs, explained)]

    def connection(self) -> Any:
        connection = super().connection()
        send = connection.send

        def note(message: bytes, key: bytes, fail: Any, headers: Headers = ()) -> None:
            self.headers.append(headers)
            send(message, key, fail, headers)

        connection.send = note  # type: ignore[method-assign]
        return connection


@pytest.fixture
def job() -> Iterator[Explaining]:
    with Explaining() as made:
        yield made


@pytest.fixture
def client(job: Explaining) -> Iterator[Client]:
    with Client(connection=job.connection(), timeout_s=20, max_message_bytes=2_000) as made:
        yield made


@pytest.mark.usefixtures("spans")
def test_client_request_under_a_span_has_one_with_all_phases(client: Client, job: Explaining) -> None:
    with trace.get_tracer("shop").start_as_current_span("checkout") as checkout:
        client.infer("echo", {"x": X})
    found = await_own("infer echo")
    own = found["infer echo"]
    assert found.keys() == {"checkout", "infer echo", "answer", *PHASES}
    assert (own.kind, own.parent) == (trace.SpanKind.CLIENT, checkout.get_span_context())
    assert own.attributes == {"anabranch.model": "echo", "anabranch.task": 3}
    assert own.context is not None
    parents = [found[name].parent for name in (*PHASES, "answer")]
    assert parents == [own.context] * len(parents)
    assert found["session"].end_time - found["session"].start_time == 100_000  # type: ignore[operator]
    context = own.context
    [[(name, value)]] = job.headers
    assert (name, value.decode()) == (
        "traceparent",
        f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}",
    )


def test_client_sessions_of_one_batch_have_links(client: Client, job: Explaining, spans: InMemorySpanExporter) -> None:
    job.batch = 8
    with trace.get_tracer("shop").start_as_current_span("checkout"):
        for number in range(2):
            client.infer("echo", {"x": X})
            await_own("infer echo", 1 + number)
    first, second = [span for span in spans.get_finished_spans() if span.name == "session"]
    assert ([link.context for link in first.links], [link.context for link in second.links]) == ([], [first.context])


def test_client_requests_without_a_sampled_span_are_left_alone(
    client: Client, job: Explaining, spans: InMemorySpanExporter
) -> None:
    result = client.infer("echo", {"x": X})
    unsampled = trace.NonRecordingSpan(trace.SpanContext(1, 2, is_remote=False))
    with trace.use_span(unsampled):
        client.infer("echo", {"x": X})
    assert (result.parameters, job.headers, spans.get_finished_spans()) == ({}, [(), ()], ())


@pytest.mark.usefixtures("spans")
def test_client_span_of_a_failed_request_has_its_code(client: Client) -> None:
    with trace.get_tracer("shop").start_as_current_span("checkout"):
        with pytest.raises(UnknownModel):
            client.infer("none", {"x": X})
        with pytest.raises(RequestTooLarge):
            client.infer("echo", {"x": np.zeros(10_000, np.float32)})
    found = await_own("infer none") | await_own("infer echo")
    for name, code in (("infer none", "unknown_model"), ("infer echo", "request_too_large")):
        assert not found[name].status.is_ok
        assert found[name].attributes is not None
        assert found[name].attributes["error.type"] == code  # type: ignore[index]


@pytest.mark.usefixtures("spans")
def test_client_span_of_a_request_that_is_given_up_ends(client: Client, job: Explaining) -> None:
    job.answer = lambda _: []
    with trace.get_tracer("shop").start_as_current_span("checkout"):
        future = client.submit("echo", {"x": X})
    assert future.cancel()
    assert await_own("infer echo").keys() == {"checkout", "infer echo"}
