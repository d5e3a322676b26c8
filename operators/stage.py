"""Flink operator of a model's stage or of a chain's step."""

from collections.abc import Iterator
from time import time

from pyflink.datastream import OutputTag, ProcessFunction, RuntimeContext

from anabranch.operators.backends.base import Backend
from anabranch.operators.core.execution.stage import Stage, stage_name
from anabranch.operators.core.execution.step import Step
from anabranch.operators.core.outputs import Unit
from anabranch.operators.core.response_writer import ResponseWriter
from anabranch.operators.core.transport.claim_check import TransportOptions
from anabranch.operators.runtime.defect_log import DefectLog
from anabranch.operators.runtime.flink_compat import KeyedRow
from anabranch.operators.runtime.flink_metrics import FlinkMetrics
from anabranch.operators.runtime.flink_types import PARTS
from anabranch.operators.runtime.task_context import task_context_of
from anabranch.operators.sessions.session_pool import SessionPool
from anabranch.operators.sessions.step_functions import load_function
from anabranch.operators.transport.endpoints import AGGREGATE, Receiver, Sender, stage_receiver
from anabranch.schemas.model import ModelSpec

#: Rows that failed before the last stage.
FAILURES_TAG = OutputTag("failures", PARTS)


class StageFunction(ProcessFunction):
    """UNIT -> UNIT, with FAILUREs as a side output; last stage: UNIT -> Row(window, PARTIAL or FAILURE).

    Args:
        windows: Number of tasks that hold the windows.
    """

    def __init__(
        self,
        model: ModelSpec,
        index: int,
        backend: Backend,
        response_writer: ResponseWriter,
        exchange: TransportOptions,
        windows: int,
    ) -> None:
        self._model = model
        self._index = index
        self._backend = backend
        self._response_writer = response_writer
        self._exchange = exchange
        self._windows = windows
        self._is_last = index == len(model.stages) - 1

    def open(self, runtime_context: RuntimeContext) -> None:
        """Loads and warms up this stage only."""
        task = task_context_of(runtime_context)
        model, index, meter = self._model, self._index, self._response_writer.meter
        session = SessionPool(self._backend, task.index).session_of(model.stage(index))
        self._metrics = FlinkMetrics(meter, runtime_context)
        self._defect_log = DefectLog(self._response_writer.defects, stage_name(model, index), task)
        to, readers = AGGREGATE, self._windows
        if not self._is_last:
            to, readers = stage_receiver(model, index + 1), model.stages[index + 1].replicas
        sender = Sender(self._exchange, task, to, readers, meter)
        writer = self._response_writer
        arguments = (model, index, session, writer.now_ms, task.index, sender.pack, writer.defects)
        stage = model.stages[index]
        if model.is_chain:
            before = None if stage.before is None else load_function(stage.before)
            after = None if stage.after is None else load_function(stage.after)
            self._stage: Stage = Step(*arguments, before=before, after=after)
        else:
            self._stage = Stage(*arguments)
        self._receiver = Receiver(self._exchange, task, stage_receiver(model, index), meter)

    def process_element(self, value: bytes, ctx: ProcessFunction.Context) -> Iterator[object]:
        """Runs one unit."""
        for output in self._stage.on_unit(self._receiver.redeem(value), time() * 1000):
            if isinstance(output, Unit):
                yield output.value
            else:
                row = KeyedRow(output.key, output.value)
                yield row if self._is_last else (FAILURES_TAG, row)
        self._metrics.flush(at_once=self._defect_log.report())
