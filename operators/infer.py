"""Flink operator that runs shards of large requests, and offloaded batches of other tasks."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from time import time

from pyflink.datastream import ProcessFunction, RuntimeContext

from anabranch.operators.backends.base import Backend
from anabranch.operators.core.execution.batch_transfer import decode_batch, expect_ms
from anabranch.operators.core.execution.inference_task import InferenceTask
from anabranch.operators.core.response_writer import ResponseWriter
from anabranch.operators.core.transport.claim_check import TransportOptions
from anabranch.operators.runtime.operator_runtime import OperatorRuntime, RuntimeOperator
from anabranch.operators.runtime.side_outputs import emit
from anabranch.operators.transport.endpoints import AGGREGATE, INFER
from anabranch.schemas.model import Catalog
from anabranch.schemas.records import BatchRecord, RecordKind


@dataclass(eq=False)
class InferFunction(RuntimeOperator, ProcessFunction):
    """BATCH or SHARD -> frames of answers; side outputs: dead letters, PARTIALs, FAILUREs."""

    catalog: Catalog
    backend: Backend
    response_writer: ResponseWriter
    exchange: TransportOptions
    slow_batch_ms: float

    def open(self, runtime_context: RuntimeContext) -> None:
        """Load the task's models."""
        self._runtime = runtime = OperatorRuntime(runtime_context, "infer", self.exchange, self.response_writer)
        task, sessions = runtime.task, runtime.sessions(self.backend)
        catalog = sessions.load_all(self.catalog)
        runtime.note_opened(catalog.left_out[len(self.catalog.left_out) :])
        sender = runtime.sender(AGGREGATE, task.parallelism)
        self._inference = InferenceTask(catalog, sessions.session_of, self.response_writer, task.index, sender.pack)
        self._costs_of = lambda signature: sessions.costs_of(
            catalog.find(signature.model_name, signature.model_version)
        )
        self._receiver, self._lock, self._lane = runtime.receiver(INFER), runtime.lock(), runtime.slow_lane()

    def process_element(self, value: bytes, ctx: ProcessFunction.Context) -> Iterator[object]:
        """Run one batch or shard."""
        record = self._receiver.redeem(value)
        if record[0] == RecordKind.BATCH:
            batch = decode_batch(record)
            with self._turn_of(batch):
                self._receiver.begin()
                outputs = self._inference.on_exchange(record, time() * 1000, batch)
        else:
            outputs = self._inference.on_exchange(record, time() * 1000)
        yield from emit(outputs)
        self._receiver.finish()
        # Counts after it wait for the next record.
        self._runtime.metrics.flush(at_once=self._runtime.defect_log.report())

    def _turn_of(self, batch: BatchRecord | None) -> AbstractContextManager[None]:
        is_slow = expect_ms(batch, self._costs_of) > self.slow_batch_ms
        return self._lane.offloaded_batch() if is_slow else self._lock.offloaded_batch()
