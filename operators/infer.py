"""Flink shells of `core.serving`: one in the chain, one behind the exchange, with the same sessions."""

from collections.abc import Iterator
from time import time

from pyflink.common import Types
from pyflink.datastream import OutputTag, ProcessFunction, RuntimeContext

from operators.backends.base import Backend
from operators.core.answering import Answer, Answering, Letter
from operators.core.serving import Serving, Shard
from operators.rows import KeyedRow
from operators.sessions import Sessions
from operators.task import task_of
from schemas.frames import write_answers
from schemas.model import Catalog

KEYED_BYTES = Types.ROW([Types.PRIMITIVE_ARRAY(Types.BYTE()), Types.PRIMITIVE_ARRAY(Types.BYTE())])
BYTES = Types.PRIMITIVE_ARRAY(Types.BYTE())
PARTS = Types.ROW([Types.STRING(), Types.PRIMITIVE_ARRAY(Types.BYTE())])

#: Java has no array of 2 GiB, and large answers gain nothing from company.
_FRAME_BYTES = 4 * 1024 * 1024

LETTERS_TAG = OutputTag("letters", KEYED_BYTES)
SHARDS_TAG = OutputTag("shards", BYTES)
PARTS_TAG = OutputTag("parts", PARTS)


class _Infer(ProcessFunction):
    def __init__(self, catalog: Catalog, backend: Backend, answering: Answering) -> None:
        self._catalog = catalog
        self._backend = backend
        self._answering = answering

    def open(self, runtime_context: RuntimeContext) -> None:
        """Loads every model and warms it up, before the first request."""
        task = task_of(runtime_context)
        sessions = Sessions(self._backend, task.index)
        sessions.load_all(self._catalog)
        self._serving = Serving(self._catalog, sessions.session_of, self._answering, task.index)


class InferFunction(_Infer):
    """UNIT, SHARD, OPENING and REJECTION -> frame of answers, and on the side dead letters, shards and window parts."""

    def process_element(self, value: bytes, ctx: ProcessFunction.Context) -> Iterator[object]:
        """Serves one record of the shard operator."""
        answers: list[Answer] = []
        size_bytes = 0
        for output in self._serving.on_record(value, time() * 1000):
            if isinstance(output, Answer):
                answers.append(output)
                size_bytes += len(output.value)
                if size_bytes >= _FRAME_BYTES:
                    yield write_answers(answers)
                    answers, size_bytes = [], 0
            elif isinstance(output, Letter):
                yield LETTERS_TAG, KeyedRow(output.key, output.value)
            elif isinstance(output, Shard):
                yield SHARDS_TAG, output.value
            else:
                yield PARTS_TAG, KeyedRow(output.key, output.value)
        if answers:
            yield write_answers(answers)


class InferShardFunction(_Infer):
    """SHARD -> Row(window, PARTIAL or FAILURE)."""

    def process_element(self, value: bytes, ctx: ProcessFunction.Context) -> Iterator[KeyedRow]:
        """Runs one shard."""
        for part in self._serving.on_shard(value, time() * 1000):
            yield KeyedRow(part.key, part.value)
