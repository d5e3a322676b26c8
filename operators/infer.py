"""Flink operator that runs shards of large requests, and offloaded batches of other tasks."""

from collections.abc import Iterator
from contextlib import nullcontext
from time import time

from pyflink.datastream import ProcessFunction, RuntimeContext

from anabranch.operators.backends.base import Backend
from anabranch.operators.core.execution.inference_task import InferenceTask
from anabranch.operators.core.response_writer import ResponseWriter
from anabranch.operators.core.transport.claim_check import TransportOptions
from anabranch.operators.runtime.defect_log import DefectLog
from anabranch.operators.runtime.flink_metrics import FlinkMetrics
from anabranch.operators.runtime.side_outputs import emit
from anabranch.operators.runtime.task_context import task_context_of
from anabranch.operators.runtime.task_lock import lock_of
from anabranch.operators.sessions.session_pool import SessionPool
from anabranch.operators.transport.endpoints import AGGREGATE, INFER, Receiver, Sender
from anabranch.schemas.model import Catalog
from anabranch.schemas.records import RecordKind


class InferFunction(ProcessFunction):
    """BATCH or SHARD -> frames of answers; side outputs: dead letters, PARTIALs, FAILUREs."""

    def __init__(
        self, catalog: Catalog, backend: Backend, response_writer: ResponseWriter, exchange: TransportOptions
    ) -> None:
        self._catalog = catalog
        self._backend = backend
        self._response_writer = response_writer
        self._exchange = exchange

    def open(self, runtime_context: RuntimeContext) -> None:
        """Loads and warms up the task's models."""
        task = task_context_of(runtime_context)
        sessions = SessionPool(self._backend, task.index)
        sessions.load_all(self._catalog)
        self._lock = lock_of(self._exchange.job, task.index)
        meter = self._response_writer.meter
        self._metrics = FlinkMetrics(meter, runtime_context)
        self._defect_log = DefectLog(self._response_writer.defects, "infer", task)
        sender = Sender(self._exchange, task, AGGREGATE, task.parallelism, meter)
        self._inference = InferenceTask(
            self._catalog, sessions.session_of, self._response_writer, task.index, sender.pack
        )
        self._receiver = Receiver(self._exchange, task, INFER, meter)

    def process_element(self, value: bytes, ctx: ProcessFunction.Context) -> Iterator[object]:
        """Runs one batch or shard."""
        record = self._receiver.redeem(value)
        with self._lock.offloaded_batch() if record[0] == RecordKind.BATCH else nullcontext():
            outputs = self._inference.on_exchange(record, time() * 1000)
        yield from emit(outputs)
        # Without timers, later counts wait for the next record.
        self._metrics.flush(at_once=self._defect_log.report())
