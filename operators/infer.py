"""Flink shell of `core.serving` behind the exchange: runs shards of big requests, and whole ones of other tasks."""

from collections.abc import Iterator
from contextlib import nullcontext
from time import time

from pyflink.datastream import ProcessFunction, RuntimeContext

from operators.backends.base import Backend
from operators.core.answering import Answering
from operators.core.exchange import Options
from operators.core.serving import Serving
from operators.emission import emit
from operators.exchange import AGGREGATE, INFER, Inbox, Outbox
from operators.metrics import Metrics
from operators.sessions import Sessions
from operators.task import task_of
from operators.turns import turn_of
from schemas.model import Catalog
from schemas.records import Kind


class InferFunction(ProcessFunction):
    """BATCH or SHARD -> frames of answers, and on the side dead letters, and PARTIALs and FAILUREs for windows."""

    def __init__(self, catalog: Catalog, backend: Backend, answering: Answering, exchange: Options) -> None:
        self._catalog = catalog
        self._backend = backend
        self._answering = answering
        self._exchange = exchange

    def open(self, runtime_context: RuntimeContext) -> None:
        """Loads every model and warms it up; a session that the task has already is shared."""
        task = task_of(runtime_context)
        sessions = Sessions(self._backend, task.index)
        sessions.load_all(self._catalog)
        self._turn = turn_of(self._exchange.job, task.index)
        meter = self._answering.meter
        self._metrics = Metrics(meter, runtime_context)
        outbox = Outbox(self._exchange, task, AGGREGATE, task.parallelism, meter)
        self._serving = Serving(self._catalog, sessions.session_of, self._answering, task.index, outbox.pack)
        self._inbox = Inbox(self._exchange, task, INFER, meter)

    def process_element(self, value: bytes, ctx: ProcessFunction.Context) -> Iterator[object]:
        """Runs one batch or shard."""
        record = self._inbox.redeem(value)
        with self._turn.of_others() if record[0] == Kind.BATCH else nullcontext():
            outputs = self._serving.on_exchange(record, time() * 1000)
        yield from emit(outputs)
        # No timer counts what is left then: it waits for the next one.
        self._metrics.flush()
