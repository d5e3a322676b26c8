"""Spans of sampled requests, for OpenTelemetry: the gateway's own, and one for each phase in the job.

    POST /v2/models/fraud/infer  |-------------------------------------------|
      broker, admit, queue       |--||-||------|
      batch, session, merge                    |-||--------||-|
      encode, answer                                          |-||-----------|

The job measures the phases of requests with `explain`, for which the gateway asks; its tasks export nothing. A session
has links to those of earlier answers of its batch, if this gateway sampled them.
"""

from __future__ import annotations

import random
import re
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider, sampling
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from anabranch.schemas.errors import AnabranchError
from anabranch.schemas.latency_breakdown import PHASES, SUFFIX
from anabranch.schemas.open_inference_pb2 import ModelInferRequest, ModelInferResponse

#: W3C's header `traceparent`: trace, span, flags.
_PARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")
_EXPLAIN = ModelInferRequest()
_EXPLAIN.parameters["explain"].bool_param = True
_EXPLAIN_FIELD = _EXPLAIN.SerializeToString()
_ATTRIBUTES = ("task", "tasks", "shards")
_DELAY_MS = 1000
#: Batches whose sessions may get links, and links of one session.
_MOST_BATCHES, _MOST_LINKS = 256, 64
_SESSION = "session"


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


class Batches:
    """Sessions of the last batches, by task and batch."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[tuple[int, int], list[trace.SpanContext]] = OrderedDict()

    def of(self, task: int, batch: int) -> list[trace.SpanContext]:
        """Return the sessions of a batch so far, to add one; the oldest batch is forgotten."""
        sessions = self._sessions.setdefault((task, batch), [])
        if len(self._sessions) > _MOST_BATCHES:
            self._sessions.popitem(last=False)
        return sessions


class Traced:
    """A sampled request."""

    def __init__(self, tracer: trace.Tracer, span: trace.Span, batches: Batches) -> None:
        self._tracer = tracer
        self._span = span
        self._batches = batches
        self._sent_ns = self._answered_ns = time.time_ns()

    def sending(self, message: bytes) -> bytes:
        """Return an encoded request that the job measures; the last of repeated fields counts."""
        self._sent_ns = time.time_ns()
        return message + _EXPLAIN_FIELD

    def answered(self, answer: bytes) -> None:
        """Add the spans of the phases that an encoded answer names."""
        parameters = ModelInferResponse.FromString(answer).parameters
        for name in _ATTRIBUTES:
            if name in parameters:
                self._span.set_attribute(f"anabranch.{name}", parameters[name].int64_param)
        if f"{PHASES[0]}{SUFFIX}" not in parameters:
            return
        batch: list[trace.SpanContext] = []
        if "batch" in parameters:
            batch = self._batches.of(parameters["task"].int64_param, parameters["batch"].int64_param)
        at_ns = self._sent_ns
        for phase in PHASES:
            end_ns = at_ns + 1000 * parameters[f"{phase}{SUFFIX}"].int64_param
            child = self._child(phase, at_ns, end_ns, batch if phase == _SESSION else ())
            if phase == _SESSION and len(batch) < _MOST_LINKS:
                batch.append(child)
            at_ns = end_ns
        # Clocks of other machines may be ahead.
        self._answered_ns = max(at_ns, time.time_ns())
        self._child("answer", at_ns, self._answered_ns)

    def end(self, error: AnabranchError | None) -> None:
        """End the span."""
        if error is not None:
            self._span.set_attribute("error.type", error.code)
            self._span.set_status(trace.StatusCode.ERROR, error.message)
        self._span.end(max(self._answered_ns, time.time_ns()))

    def _child(
        self, name: str, start_ns: int, end_ns: int, linked: Sequence[trace.SpanContext] = ()
    ) -> trace.SpanContext:
        context = trace.set_span_in_context(self._span)
        links = [trace.Link(each) for each in linked]
        span = self._tracer.start_span(name, context, links=links, start_time=start_ns)
        span.end(end_ns)
        return span.get_span_context()
