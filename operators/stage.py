"""Flink shell of `core.staging` and `core.chaining`: one stage of a model that is cut, or one step of a chain."""

from collections.abc import Iterator
from time import time

from pyflink.datastream import OutputTag, ProcessFunction, RuntimeContext

from operators.backends.base import Backend
from operators.core.answering import Answering
from operators.core.chaining import Step
from operators.core.exchange import Options
from operators.core.outputs import Unit
from operators.core.staging import Stage
from operators.exchange import AGGREGATE, Inbox, Outbox, stage_inbox
from operators.functions import load_function
from operators.metrics import Metrics
from operators.rows import PARTS, KeyedRow
from operators.sessions import Sessions
from operators.task import task_of
from schemas.model import ModelSpec

#: Of a stage that is not the last: the rows on which it failed.
FAILURES_TAG = OutputTag("failures", PARTS)


class StageFunction(ProcessFunction):
    """UNIT -> UNIT, and on the side FAILUREs; the last stage: UNIT -> Row(window, PARTIAL or FAILURE).

    Args:
        windows: How many tasks have the windows that the last stage writes to.
    """

    def __init__(
        self, model: ModelSpec, index: int, backend: Backend, answering: Answering, exchange: Options, windows: int
    ) -> None:
        self._model = model
        self._index = index
        self._backend = backend
        self._answering = answering
        self._exchange = exchange
        self._windows = windows
        self._is_last = index == len(model.stages) - 1

    def open(self, runtime_context: RuntimeContext) -> None:
        """Loads the stage, and nothing else, and warms it up."""
        task = task_of(runtime_context)
        model, index, meter = self._model, self._index, self._answering.meter
        session = Sessions(self._backend, task.index).session_of(model.stage(index))
        self._metrics = Metrics(meter, runtime_context)
        to, readers = AGGREGATE, self._windows
        if not self._is_last:
            to, readers = stage_inbox(model, index + 1), model.stages[index + 1].replicas
        outbox = Outbox(self._exchange, task, to, readers, meter)
        arguments = (model, index, session, self._answering.now_ms, task.index, outbox.pack)
        stage = model.stages[index]
        if model.is_chain:
            before = None if stage.before is None else load_function(stage.before)
            after = None if stage.after is None else load_function(stage.after)
            self._stage: Stage = Step(*arguments, before=before, after=after)
        else:
            self._stage = Stage(*arguments)
        self._inbox = Inbox(self._exchange, task, stage_inbox(model, index), meter)

    def process_element(self, value: bytes, ctx: ProcessFunction.Context) -> Iterator[object]:
        """Runs one unit."""
        for output in self._stage.on_unit(self._inbox.redeem(value), time() * 1000):
            if isinstance(output, Unit):
                yield output.value
            else:
                row = KeyedRow(output.key, output.value)
                yield row if self._is_last else (FAILURES_TAG, row)
        self._metrics.flush()
