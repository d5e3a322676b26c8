"""Flink shell of `core.admission`: Kafka row in, lane and record out."""

from collections.abc import Iterator, Sequence
from time import time

from pyflink.common import Row
from pyflink.datastream import ProcessFunction, RuntimeContext

from operators.core.admission import Admission
from operators.core.lanes import lane_of
from operators.rows import KeyedRow
from operators.task import task_of
from schemas.model import Catalog
from schemas.records import Source


class AdmitFunction(ProcessFunction):
    """Row(value, partition, offset, timestamp) -> Row(lane, REQUEST or REJECTION)."""

    def __init__(self, catalog: Catalog, max_message_bytes: int, keys_by_group: Sequence[int]) -> None:
        self._catalog = catalog
        self._max_message_bytes = max_message_bytes
        self._keys_by_group = keys_by_group

    def open(self, runtime_context: RuntimeContext) -> None:
        """Finds the lane of this task."""
        task = task_of(runtime_context)
        self._lane = lane_of(task.index, task.parallelism, self._keys_by_group)
        self._admission = Admission(self._catalog, self._max_message_bytes)

    def process_element(self, value: Row, ctx: ProcessFunction.Context) -> Iterator[KeyedRow]:
        """Admits one Kafka record."""
        message, partition, offset, timestamp_ms = value
        source = Source(partition, offset, timestamp_ms)
        yield KeyedRow(self._lane, self._admission.admit(message, source, time() * 1000))
