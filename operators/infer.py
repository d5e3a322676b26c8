"""Flink shell of `core.serving` behind the exchange: runs the shards of big requests, whoever read them."""

from collections.abc import Iterator
from time import time

from pyflink.datastream import ProcessFunction, RuntimeContext

from operators.backends.base import Backend
from operators.core.answering import Answering
from operators.core.exchange import Options
from operators.core.serving import Serving
from operators.exchange import AGGREGATE, INFER, Inbox, Outbox
from operators.metrics import Metrics
from operators.rows import KeyedRow
from operators.sessions import Sessions
from operators.task import task_of
from schemas.model import Catalog


class InferFunction(ProcessFunction):
    """SHARD -> Row(window, PARTIAL or FAILURE)."""

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
        meter = self._answering.meter
        self._metrics = Metrics(meter, runtime_context)
        outbox = Outbox(self._exchange, task, AGGREGATE, task.parallelism, meter)
        self._serving = Serving(self._catalog, sessions.session_of, self._answering, task.index, outbox.pack)
        self._inbox = Inbox(self._exchange, task, INFER, meter)

    def process_element(self, value: bytes, ctx: ProcessFunction.Context) -> Iterator[KeyedRow]:
        """Runs one shard."""
        for part in self._serving.on_shard(self._inbox.redeem(value), time() * 1000):
            yield KeyedRow(part.key, part.value)
        self._metrics.flush()
