"""Spans of a gateway's requests, for OpenTelemetry, below those of their callers."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider, sampling
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from anabranch.schemas.open_inference_pb2 import ModelInferRequest, ModelInferResponse
from anabranch.spans import Batches, RequestSpan

#: W3C's header `traceparent`: trace, span, flags.
_PARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")
_EXPLAIN = ModelInferRequest()
_EXPLAIN.parameters["explain"].bool_param = True
_EXPLAIN_FIELD = _EXPLAIN.SerializeToString()
_DELAY_MS = 1000


class Tracer:
    """Makes spans under the trace of the caller, or a new one.

    Args:
        endpoint: Base URL of a collector that takes OTLP over HTTP.
        share: Share of the requests without `traceparent` that are sampled.
    """

    def __init__(self, endpoint: str, share: float = 0.0) -> None:
        self._share = share
        # The decision falls before there is a span.
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": "anabranch-gateway"}), sampler=sampling.ALWAYS_ON
        )
        exporter = OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces")
        self._provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=_DELAY_MS))
        self._tracer = self._provider.get_tracer("anabranch")
        self._batches = Batches()

    def begin(self, name: str, traceparent: str | None, attributes: Mapping[str, str]) -> Traced | None:
        """Begin the span of a request; None if it is not sampled.

        Args:
            traceparent: Decides, if it is valid.
        """
        parent = _PARENT.fullmatch(traceparent) if traceparent else None
        if not (int(parent[3], 16) & 1 if parent else random.random() < self._share):  # noqa: S311 - no secret
            return None
        context = None
        if parent:
            remote = trace.SpanContext(
                int(parent[1], 16), int(parent[2], 16), is_remote=True, trace_flags=trace.TraceFlags(1)
            )
            context = trace.set_span_in_context(trace.NonRecordingSpan(remote))
        span = self._tracer.start_span(name, context, kind=trace.SpanKind.SERVER, attributes=dict(attributes))
        return Traced(self._tracer, span, self._batches)

    def close(self) -> None:
        """Send the spans that are left."""
        self._provider.shutdown()


class Traced(RequestSpan):
    """A sampled request."""

    def sent(self, message: bytes) -> bytes:
        """Return an encoded request that leaves now and that the job measures; the last of repeated fields counts."""
        self.sending()
        return message + _EXPLAIN_FIELD

    def answered(self, answer: bytes) -> None:
        """Add the spans of the phases that an encoded answer names."""
        parameters = ModelInferResponse.FromString(answer).parameters
        self.explained(lambda name: parameters[name].int64_param if name in parameters else None)
