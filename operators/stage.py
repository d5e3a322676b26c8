"""Flink operator of a model's stage or of a chain's step."""

from collections.abc import Iterator
from dataclasses import dataclass
from time import time

from pyflink.datastream import OutputTag, ProcessFunction, RuntimeContext

from anabranch.operators.backends.base import Backend, ModelLoadFailed
from anabranch.operators.core.execution.stage import Stage, UnavailableStage, stage_name
from anabranch.operators.core.execution.step import Step
from anabranch.operators.core.outputs import Unit
from anabranch.operators.core.response_writer import ResponseWriter
from anabranch.operators.core.transport.claim_check import TransportOptions
from anabranch.operators.runtime.flink_compat import KeyedRow
from anabranch.operators.runtime.flink_types import PARTS
from anabranch.operators.runtime.operator_runtime import OperatorRuntime, RuntimeOperator
from anabranch.operators.transport.endpoints import AGGREGATE, stage_receiver
from anabranch.schemas.model import LeftOut, ModelSpec

#: Rows that failed before the last stage.
FAILURES_TAG = OutputTag("failures", PARTS)


@dataclass(eq=False)
class StageFunction(RuntimeOperator, ProcessFunction):
    """UNIT -> UNIT, with FAILUREs as a side output; last stage: UNIT -> Row(window, PARTIAL or FAILURE).

    Args:
        windows: Number of tasks that hold the windows.
    """

    model: ModelSpec
    index: int
    backend: Backend
    response_writer: ResponseWriter
    exchange: TransportOptions
    windows: int

    def open(self, runtime_context: RuntimeContext) -> None:
        """Load this stage; one that does not load fails its units."""
        self._is_last = self.index == len(self.model.stages) - 1
        model, index, writer = self.model, self.index, self.response_writer
        self._runtime = runtime = OperatorRuntime(runtime_context, stage_name(model, index), self.exchange, writer)
        self._receiver = runtime.receiver(stage_receiver(model, index))
        left_out: tuple[LeftOut, ...] = ()
        try:
            self._stage = self._load()
        except ModelLoadFailed as error:
            self._stage = UnavailableStage(model, index, error.message)
            left_out = (LeftOut(model.name, model.version, f"{stage_name(model, index)}: {error.message}"),)
        runtime.note_opened(left_out)

    def _load(self) -> Stage:
        model, index, writer, runtime = self.model, self.index, self.response_writer, self._runtime
        sessions = runtime.sessions(self.backend)
        session = sessions.session_of(model.stage(index))
        to, readers = AGGREGATE, self.windows
        if not self._is_last:
            to, readers = stage_receiver(model, index + 1), model.stages[index + 1].replicas
        stage = model.stages[index]
        pack = runtime.sender(to, readers, None if self._is_last else self._receiver.pass_on).pack
        arguments = (model, index, session, writer.now_ms, runtime.task.index, pack, writer.defects)
        if not model.is_chain:
            return Stage(*arguments)
        before = after = None
        if stage.before is not None:
            before = sessions.function_of(model, stage.before, stage, by_row=model.batchable)
        if stage.after is not None:
            after = sessions.function_of(model, stage.after, stage)
        return Step(*arguments, before=before, after=after)

    def process_element(self, value: bytes, ctx: ProcessFunction.Context) -> Iterator[object]:
        """Run one unit."""
        for output in self._stage.on_unit(self._receiver.redeem(value), time() * 1000):
            if isinstance(output, Unit):
                yield output.value
            else:
                row = KeyedRow(output.key, output.value)
                yield row if self._is_last else (FAILURES_TAG, row)
        self._receiver.finish()
        self._runtime.metrics.flush(at_once=self._runtime.defect_log.report())
