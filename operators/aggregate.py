"""Flink operator that merges split requests: translates between Flink and `core.merging.aggregator`."""

from collections.abc import Iterator
from dataclasses import dataclass
from secrets import randbits

from pyflink.common import Types
from pyflink.datastream import KeyedProcessFunction, RuntimeContext, TimeDomain, TimerService
from pyflink.datastream.state import ListStateDescriptor, ValueStateDescriptor

from anabranch.operators.core.merging.aggregator import Aggregator, WindowUpdate
from anabranch.operators.core.response_writer import ResponseWriter
from anabranch.operators.core.scheduling.policy import SchedulingPolicy
from anabranch.operators.core.transport.claim_check import TransportOptions
from anabranch.operators.runtime.operator_runtime import OperatorRuntime, RuntimeOperator
from anabranch.operators.runtime.side_outputs import emit_rows
from anabranch.operators.runtime.task_context import now_ms
from anabranch.operators.transport.endpoints import AGGREGATE

_RUN_BITS = 30


@dataclass(eq=False)
class AggregateFunction(RuntimeOperator, KeyedProcessFunction):
    """Row(window, OPENING, PARTIAL or FAILURE) -> answers, and dead letters as a side output."""

    response_writer: ResponseWriter
    policy: SchedulingPolicy
    exchange: TransportOptions

    def open(self, runtime_context: RuntimeContext) -> None:
        """Open the state of windows."""
        writer = self.response_writer
        self._runtime = OperatorRuntime(runtime_context, "aggregate", self.exchange, writer)
        self._window = runtime_context.get_state(ValueStateDescriptor("window", Types.PICKLED_BYTE_ARRAY()))
        self._kept = runtime_context.get_list_state(ListStateDescriptor("partials", Types.PICKLED_BYTE_ARRAY()))
        self._receiver = self._runtime.receiver(AGGREGATE)
        self._aggregator = Aggregator(
            writer, self.policy, self._runtime.metrics.flush, now_ms, run=1 + randbits(_RUN_BITS)
        )

    def process_element(self, value: bytes, ctx: KeyedProcessFunction.Context) -> Iterator[object]:
        """Take one part; redeem late ones, too, because that frees memory."""
        update = self._aggregator.on_record(self._receiver.redeem(value), self._window.value(), self._kept.get)
        return self._carry_out(update, ctx.timer_service())

    def on_timer(self, timestamp: int, ctx: KeyedProcessFunction.OnTimerContext) -> Iterator[object]:
        """Close or forget a window; an event-time timer marks the end of the input."""
        at_ms = None if ctx.time_domain() == TimeDomain.EVENT_TIME else timestamp
        update = self._aggregator.on_timer(at_ms, self._window.value(), self._kept.get)
        return self._carry_out(update, ctx.timer_service())

    def _carry_out(self, update: WindowUpdate, timers: TimerService) -> Iterator[object]:
        if update.clears_kept:
            self._kept.clear()
        if update.keep is not None:
            self._kept.add(update.keep)
        if update.forgets:
            self._window.clear()
            timers.delete_event_time_timer(update.end_at_ms)
        elif update.snapshot is not None:
            self._window.update(update.snapshot)
            if update.end_at_ms is not None:
                timers.register_event_time_timer(update.end_at_ms)
        if update.cancel_at_ms is not None:
            timers.delete_processing_time_timer(update.cancel_at_ms)
        for at_ms in (update.wake_at_ms, update.count_at_ms):
            if at_ms is not None:
                timers.register_processing_time_timer(at_ms)
        yield from emit_rows(update.outputs)
        self._runtime.defect_log.report()
