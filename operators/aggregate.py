"""Flink shell of `core.windows`: one window for each split request, in keyed state."""

from collections.abc import Iterator
from math import ceil
from time import time

from pyflink.common import Types
from pyflink.datastream import KeyedProcessFunction, RuntimeContext, TimeDomain
from pyflink.datastream.state import ListStateDescriptor, ValueStateDescriptor

from anabranch.operators.core.merging.request_window import Closing, Window, answer_of
from anabranch.operators.core.outputs import Answer
from anabranch.operators.core.response_writer import ResponseWriter
from anabranch.operators.core.transport.claim_check import TransportOptions
from anabranch.operators.runtime.defect_log import DefectLog
from anabranch.operators.runtime.flink_compat import KeyedRow
from anabranch.operators.runtime.flink_metrics import FlinkMetrics
from anabranch.operators.runtime.side_outputs import LETTERS_TAG
from anabranch.operators.runtime.task_context import task_context_of
from anabranch.operators.transport.endpoints import AGGREGATE, Receiver


class AggregateFunction(KeyedProcessFunction):
    """Row(window, OPENING, PARTIAL or FAILURE) -> answers, and dead letters on the side."""

    def __init__(
        self, response_writer: ResponseWriter, window_timeout_ms: float, remember_ms: float, exchange: TransportOptions
    ) -> None:
        self._response_writer = response_writer
        self._window_timeout_ms = window_timeout_ms
        self._remember_ms = remember_ms
        self._exchange = exchange

    def open(self, runtime_context: RuntimeContext) -> None:
        """Opens the state of windows."""
        self._window = runtime_context.get_state(ValueStateDescriptor("window", Types.PICKLED_BYTE_ARRAY()))
        self._metrics = FlinkMetrics(self._response_writer.meter, runtime_context)
        task = task_context_of(runtime_context)
        self._defect_log = DefectLog(self._response_writer.defects, "aggregate", task)
        self._inbox = Receiver(self._exchange, task, AGGREGATE, self._response_writer.meter)
        self._partials = runtime_context.get_list_state(ListStateDescriptor("partials", Types.PICKLED_BYTE_ARRAY()))

    def process_element(self, value: bytes, ctx: KeyedProcessFunction.Context) -> Iterator[object]:
        """Takes one part of a request's answer in."""
        now_ms = time() * 1000
        # What comes too late, too: its writer waits to use the memory again.
        record = self._inbox.redeem(value)
        window, is_new = self._load()
        if window.is_closed:
            return
        before_ms = window.next_deadline()
        keep, closing = window.on_record(record, now_ms)
        self._defect_log.report()
        if keep:
            self._partials.add(bytes(record))
        self._window.update(window.snapshot())
        if is_new:
            # Fires at the end of a bounded input; see `ServeFunction`.
            ctx.timer_service().register_event_time_timer(window.opened_at_ms)
        if window.next_deadline() != before_ms:
            ctx.timer_service().register_processing_time_timer(ceil(window.next_deadline()))
        if closing is not None:
            yield from self._close(closing)
            self._count(ctx)

    def on_timer(self, timestamp: int, ctx: KeyedProcessFunction.OnTimerContext) -> Iterator[object]:
        """Closes a window whose time is over, or forgets one that was closed long ago."""
        ended = ctx.time_domain() == TimeDomain.EVENT_TIME
        if not ended:
            self._count(ctx)
        window, is_new = self._load()
        if is_new:
            return
        # A clock that was set back meanwhile must not keep a window open: no other timer would close it.
        now_ms = window.next_deadline() if ended else max(time() * 1000, timestamp)
        if window.is_forgotten(now_ms):
            self._window.clear()
            self._partials.clear()
            ctx.timer_service().delete_event_time_timer(window.opened_at_ms)
            return
        closing = window.on_timer(now_ms)
        if closing is not None:
            self._window.update(window.snapshot())
            if not ended:
                ctx.timer_service().register_processing_time_timer(ceil(window.next_deadline()))
            yield from self._close(closing)

    def _load(self) -> tuple[Window, bool]:
        window = Window(self._window_timeout_ms, self._remember_ms)
        snapshot = self._window.value()
        if snapshot is not None:
            window.restore(bytes(snapshot))
        return window, snapshot is None

    def _close(self, closing: Closing) -> Iterator[object]:
        partials = [bytes(encoded) for encoded in self._partials.get() or ()]
        self._partials.clear()
        for output in answer_of(closing, partials, self._response_writer):
            row = KeyedRow(output.key, output.value)
            yield row if isinstance(output, Answer) else (LETTERS_TAG, row)
        self._defect_log.report()

    def _count(self, ctx: KeyedProcessFunction.Context) -> None:
        left_s = self._metrics.flush()
        if left_s:
            ctx.timer_service().register_processing_time_timer(ceil((time() + left_s) * 1000))
