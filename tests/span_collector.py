"""A collector of spans, as OpenTelemetry's exporters know it: OTLP over HTTP, in protobuf."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from anabranch.schemas import latency_breakdown

PHASES = (*latency_breakdown.PHASES, "answer")


@cache
def own_spans() -> InMemorySpanExporter:
    """Traces this process, whose tracing can be set once, into memory."""
    found, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(found))
    trace.set_tracer_provider(provider)
    return found


def await_own(name: str, count: int = 1, timeout_s: float = 20.0) -> dict[str, ReadableSpan]:
    """Waits for spans of this process, and returns all by name: a client ends its own after its answer."""
    end_s = time.monotonic() + timeout_s
    while True:
        spans = own_spans().get_finished_spans()
        if [span.name for span in spans].count(name) >= count:
            return {span.name: span for span in spans}
        assert time.monotonic() < end_s, f"{count} spans {name} are not among {[span.name for span in spans]}"
        time.sleep(0.01)


@dataclass
class SpanCollector:
    """All spans so far.

    Attributes:
        services: Names of their services.
    """

    url: str
    spans: list[Span]
    services: set[str]

    def of(self, trace_id: str, count: int, timeout_s: float = 20.0) -> dict[str, Span]:
        """Waits for the spans of a trace, and returns them by name."""
        end_s = time.monotonic() + timeout_s
        while time.monotonic() < end_s:
            found = [span for span in self.spans if span.trace_id.hex() == trace_id]
            if len(found) >= count:
                assert len(found) == count
                return {span.name: span for span in found}
            time.sleep(0.05)
        raise AssertionError(f"{count} spans of {trace_id} were expected, {len(self.spans)} of all traces came")


@contextmanager
def collecting() -> Iterator[SpanCollector]:
    """Runs a collector on a free port."""
    spans, services = list[Span](), set[str]()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            body = self.rfile.read(int(self.headers["Content-Length"]))
            for each in ExportTraceServiceRequest.FromString(body).resource_spans:
                named = {item.key: item.value.string_value for item in each.resource.attributes}
                services.add(named["service.name"])
                spans.extend(span for scope in each.scope_spans for span in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Be silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield SpanCollector(f"http://127.0.0.1:{server.server_port}", spans, services)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def check_phases(found: dict[str, Span], root: str) -> None:
    """Checks that the phases of a request follow each other inside of its span."""
    above = found[root]
    children = [found[phase] for phase in PHASES]
    assert {child.parent_span_id for child in children} == {above.span_id}
    for before, after in pairwise(children):
        assert before.end_time_unix_nano == after.start_time_unix_nano
    assert above.start_time_unix_nano <= children[0].start_time_unix_nano
    assert children[-1].end_time_unix_nano <= above.end_time_unix_nano
    assert above.status.code == Status.STATUS_CODE_UNSET
