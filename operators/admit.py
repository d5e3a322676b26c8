"""Flink shell of `core.admission`: a frame of Kafka records in, lane and a frame of our records out."""

from collections.abc import Iterator, Sequence
from time import time

from pyflink.datastream import ProcessFunction, RuntimeContext

from operators.core.admission import Admission
from operators.core.lanes import lane_of
from operators.rows import KeyedRow
from operators.task import task_of
from schemas.frames import read_requests
from schemas.model import Catalog
from schemas.records import join_records


class AdmitFunction(ProcessFunction):
    """A frame of Kafka records -> Row(lane, frame of REQUEST and REJECTION)."""

    def __init__(self, catalog: Catalog, max_message_bytes: int, keys_by_group: Sequence[int]) -> None:
        self._catalog = catalog
        self._max_message_bytes = max_message_bytes
        self._keys_by_group = keys_by_group

    def open(self, runtime_context: RuntimeContext) -> None:
        """Finds the lane of this task."""
        task = task_of(runtime_context)
        self._lane = lane_of(task.index, task.parallelism, self._keys_by_group)
        self._admission = Admission(self._catalog, self._max_message_bytes)

    def process_element(self, value: bytes, ctx: ProcessFunction.Context) -> Iterator[KeyedRow]:
        """Admits the Kafka records of a frame."""
        now_ms = time() * 1000
        admit = self._admission.admit
        records = [admit(message, source, now_ms) for message, source in read_requests(value)]
        yield KeyedRow(self._lane, join_records(records))
