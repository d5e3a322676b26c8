"""Spans of requests and of their phases in the job, for OpenTelemetry.

    infer fraud                |-------------------------------------------|
      broker, admit, queue       |--||-||------|
      batch, session, merge                    |-||--------||-|
      encode, answer                                          |-||-----------|

The job measures the phases of requests with `explain`, and exports nothing. A session has links to those of earlier
answers of its batch, of the same process.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from threading import Lock

from opentelemetry import trace

from anabranch.result import Result
from anabranch.schemas.errors import AnabranchError
from anabranch.schemas.latency_breakdown import PHASES, SUFFIX

_ATTRIBUTES = ("task", "tasks", "shards")
_SESSION = "session"
#: Batches whose sessions may get links, and links of one session.
_MOST_BATCHES, _MOST_LINKS = 256, 64


class Batches:
    """Sessions of the last batches, by task and batch."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[tuple[int, int], list[trace.SpanContext]] = OrderedDict()
        self._lock = Lock()

    def of(self, task: int, batch: int) -> list[trace.SpanContext]:
        """Return the sessions of a batch so far, to add one; the oldest batch is forgotten."""
        with self._lock:
            sessions = self._sessions.setdefault((task, batch), [])
            if len(self._sessions) > _MOST_BATCHES:
                self._sessions.popitem(last=False)
            return sessions


class RequestSpan:
    """The span of a sampled request."""

    def __init__(self, tracer: trace.Tracer, span: trace.Span, batches: Batches) -> None:
        self._tracer = tracer
        self._span = span
        self._batches = batches
        self._sent_ns = self._answered_ns = time.time_ns()

    @property
    def traceparent(self) -> str:
        """W3C's header for those who go on with the trace."""
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def sending(self) -> None:
        """Note that the request leaves now."""
        self._sent_ns = time.time_ns()

    def explained(self, parameter: Callable[[str], int | None]) -> None:
        """Add the spans of the phases that an answer names.

        Args:
            parameter: Returns a parameter of the answer.
        """
        for name in _ATTRIBUTES:
            value = parameter(name)
            if value is not None:
                self._span.set_attribute(f"anabranch.{name}", value)
        if parameter(f"{PHASES[0]}{SUFFIX}") is None:
            return
        batch, number = list[trace.SpanContext](), parameter("batch")
        if number is not None:
            batch = self._batches.of(parameter("task") or 0, number)
        at_ns = self._sent_ns
        for phase in PHASES:
            end_ns = at_ns + 1000 * (parameter(f"{phase}{SUFFIX}") or 0)
            child = self._child(phase, at_ns, end_ns, batch if phase == _SESSION else ())
            if phase == _SESSION and len(batch) < _MOST_LINKS:
                batch.append(child)
            at_ns = end_ns
        # Clocks of other machines may be ahead.
        self._answered_ns = max(at_ns, time.time_ns())
        self._child("answer", at_ns, self._answered_ns)

    def end(self, error: BaseException | None) -> None:
        """End the span."""
        if error is not None:
            code = error.code if isinstance(error, AnabranchError) else type(error).__name__
            self._span.set_attribute("error.type", code)
            self._span.set_status(trace.StatusCode.ERROR, str(error))
        self._span.end(max(self._answered_ns, time.time_ns()))

    def end_with(self, future: Future[Result], *, has_phases: bool = True) -> None:
        """End the span with the outcome of a request.

        Args:
            has_phases: Adds the spans of the phases.
        """
        error: BaseException | None = None
        if not future.cancelled():
            error = future.exception()
            if error is None and has_phases:
                found = future.result().parameters
                self.explained(lambda name: value if isinstance(value := found.get(name), int) else None)
        self.end(error)

    def _child(
        self, name: str, start_ns: int, end_ns: int, linked: Sequence[trace.SpanContext] = ()
    ) -> trace.SpanContext:
        context = trace.set_span_in_context(self._span)
        links = [trace.Link(each) for each in linked]
        span = self._tracer.start_span(name, context, links=links, start_time=start_ns)
        span.end(end_ns)
        return span.get_span_context()


#: Of all clients of this process.
_BATCHES = Batches()


def client_span(model: str) -> RequestSpan | None:
    """Begin the span of a client's request under the caller's current span; None if that is not sampled."""
    current = trace.get_current_span().get_span_context()
    if not current.is_valid or not current.trace_flags.sampled:
        return None
    tracer = trace.get_tracer("anabranch")
    attributes = {"anabranch.model": model}
    span = tracer.start_span(f"infer {model}", kind=trace.SpanKind.CLIENT, attributes=attributes)
    return RequestSpan(tracer, span, _BATCHES)
