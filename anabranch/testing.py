"""A job for tests: answers the requests of real clients in this process, without Kafka, Flink or a model.

    from anabranch.testing import FakeJob

    def test_my_code():
        with FakeJob({"digits": lambda inputs: {"label": inputs["x"].argmax(axis=1)}}) as job, job.client() as client:
            assert my_code(client) == 7
        assert job.requests[0].parameters["priority"] == 1

Messages are encoded as on the wire, so dtypes, limits, parameters, time-outs and errors are those of a real job. An
error of `anabranch.errors` that a function raises is the answer.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

import numpy.typing as npt

from anabranch.client import Client
from anabranch.messaging.errors import TopicMissing
from anabranch.schemas.errors import AnabranchError, InferenceFailed, InternalError, UnknownModel, UnknownOutput
from anabranch.schemas.messages import ErrorResponse, InferRequest, InferResponse
from anabranch.schemas.tensors import Array, Tensor
from anabranch.schemas.wire import codec
from anabranch.served_models import ServedModels

if TYPE_CHECKING:
    from typing_extensions import Self  # noqa: UP035 - Python 3.10's typing has no Self

    from anabranch.messaging.connection import Connection, Headers

Answer = InferResponse | ErrorResponse
#: Replaces a model: outputs by name from inputs by name. An array without a name has the name "".
ModelFunction = Callable[[Mapping[str, Array]], Mapping[str, npt.ArrayLike]]
#: Answers a request with any number of messages; none for a silent job, several for repeated answers.
AnswerFunction = Callable[[InferRequest], Sequence[Answer]]

__all__ = [
    "Answer",
    "AnswerFunction",
    "ErrorResponse",
    "FakeJob",
    "InferRequest",
    "InferResponse",
    "ModelFunction",
    "ReceivedRequest",
    "Tensor",
    "echo",
]

_VERSION = "1"
_STOP_TIMEOUT_S = 30.0
_log = logging.getLogger(__name__)


def echo(request: InferRequest) -> Sequence[Answer]:
    """Answer with the inputs as outputs."""
    return [InferResponse(request.model_name, request.model_version or _VERSION, request.id, request.inputs)]


@dataclass(frozen=True)
class ReceivedRequest:
    """A request as it reached a fake job.

    Attributes:
        key: The key of its record: the caller's `key`, else the request's id.
        partition: The partition of its record; 0 without Kafka.
    """

    request: InferRequest
    key: bytes
    partition: int = 0


class FakeJob:
    """Answers requests on a thread of its own, and keeps them. Close it, or use it as a context manager.

    Args:
        models: A function for each model, by name. Without, every model answers with its inputs.
        answer: Answers whole requests, in place of `models`; see `AnswerFunction`.

    Attributes:
        answer: May be replaced at any time.
        received: All requests so far, in order.
    """

    def __init__(
        self, models: Mapping[str, ModelFunction] | None = None, *, answer: AnswerFunction | None = None
    ) -> None:
        if models is not None and answer is not None:
            raise ValueError("models and answer exclude each other: give one of them")
        self.answer: AnswerFunction = answer or (echo if models is None else _Models(models))
        self.received: list[ReceivedRequest] = []
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        #: Models that clients are told of; see `ServedModels.update`.
        self.served = ServedModels()
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._run, name="anabranch-fake-job", daemon=True)]
        self._threads[0].start()

    @property
    def requests(self) -> list[InferRequest]:
        """All requests so far, in order."""
        return [received.request for received in self.received]

    def client(self, *, timeout_s: float = 30.0, max_message_bytes: int = 16 * 1024 * 1024) -> Client:
        """Make a client of this job."""
        return Client(connection=self.connection(), timeout_s=timeout_s, max_message_bytes=max_message_bytes)

    def connection(self) -> Connection:
        """Make the connection for a client that the tested code makes: `Client(connection=…)`."""
        return _MemoryConnection(self)

    def listen(self, bootstrap_servers: str, *, requests_topic: str, responses_topic: str) -> None:
        """Also answers requests from a Kafka topic, for clients in other languages; returns when the job reads.

        Raises:
            TopicMissing: The broker has no requests topic.
        """
        from kafka import KafkaConsumer, KafkaProducer, TopicPartition  # noqa: PLC0415 - only here

        limit_bytes = 1 << 27
        consumer = KafkaConsumer(
            bootstrap_servers=bootstrap_servers,
            metrics_enabled=False,
            group_id=None,
            max_partition_fetch_bytes=limit_bytes,
        )
        numbers = consumer.partitions_for_topic(requests_topic)
        if not numbers:
            consumer.close()
            raise TopicMissing(f"the broker at {bootstrap_servers} has no topic {requests_topic!r}: make it first")
        partitions = [TopicPartition(requests_topic, number) for number in numbers]
        consumer.assign(partitions)
        for partition, offset in consumer.end_offsets(partitions).items():
            consumer.seek(partition, offset)
        producer = KafkaProducer(
            bootstrap_servers=bootstrap_servers, metrics_enabled=False, max_request_size=limit_bytes
        )
        producer.partitions_for(responses_topic)

        def run() -> None:
            while not self._stopped.is_set():
                for records in consumer.poll(timeout_ms=50).values():
                    for record in records:
                        for key, value in self.respond(record.value, record.key, record.partition):
                            asked = dict(record.headers).get("reply-partition")
                            to = None if asked is None else int(asked)
                            producer.send(responses_topic, value, key=key, partition=to)
            consumer.close()
            producer.close(timeout=5)

        thread = threading.Thread(target=run, name="anabranch-fake-job-kafka", daemon=True)
        self._threads.append(thread)
        thread.start()

    def respond(self, message: bytes, key: bytes, partition: int = 0) -> list[tuple[bytes, bytes]]:
        """Answer an encoded request with the keys and values of the answers' records.

        A message that cannot be decoded is logged and not answered.
        """
        try:
            request = codec.decode_request(message)
        except AnabranchError as error:
            _log.warning("undecodable request: %s", error)
            return []
        self.received.append(ReceivedRequest(request, key, partition))
        try:
            answers = self.answer(request)
        except AnabranchError as error:
            answers = [ErrorResponse(request.id, error.code, error.message)]
        except Exception as error:  # noqa: BLE001 - a function of the test; logged with its traceback
            _log.exception("the answer function failed")
            answers = [ErrorResponse(request.id, InternalError.code, f"{type(error).__name__}: {error}")]
        return [(answer.id.encode(), codec.encode_response(answer, request.encoding)) for answer in answers]

    def close(self) -> None:
        """End the job. May be called again."""
        self._stopped.set()
        self._work.put(None)
        for thread in self._threads:
            thread.join(_STOP_TIMEOUT_S)

    def __enter__(self) -> Self:
        """Return the job itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the job."""
        self.close()

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()


class _Models:
    """Answers with the function of a request's model; an unknown model is an error, as in a real job."""

    def __init__(self, models: Mapping[str, ModelFunction]) -> None:
        self._models = dict(models)

    def __call__(self, request: InferRequest) -> Sequence[Answer]:
        name = next(iter(self._models)) if not request.model_name and len(self._models) == 1 else request.model_name
        if name not in self._models:
            raise UnknownModel(f"unknown model {name!r}; available: {', '.join(sorted(self._models)) or 'none'}")
        inputs = {tensor.name: tensor.to_array() for tensor in request.inputs}
        try:
            outputs = self._models[name](inputs)
        except AnabranchError:
            raise
        except Exception as error:
            raise InferenceFailed(f"{type(error).__name__}: {error}") from error
        unknown = [output for output in request.outputs if output not in outputs]
        if unknown:
            raise UnknownOutput(f"unknown output {unknown[0]!r}; available: {', '.join(outputs)}")
        tensors = tuple(Tensor.from_array(output, outputs[output]) for output in request.outputs or outputs)
        return [InferResponse(name, request.model_version or _VERSION, request.id, tensors)]


class _MemoryConnection:
    """A `Connection` to a `FakeJob` of this process."""

    sends_at_once = False

    def __init__(self, job: FakeJob) -> None:
        self._job = job
        self._answers: queue.SimpleQueue[tuple[bytes, bytes]] = queue.SimpleQueue()

    def send(
        self,
        message: bytes,
        key: bytes,
        fail: Callable[[AnabranchError], None],  # noqa: ARG002
        headers: Headers = (),  # noqa: ARG002
    ) -> None:
        def work() -> None:
            for answer in self._job.respond(message, key):
                self._answers.put(answer)

        self._job._work.put(work)  # noqa: SLF001 - same module

    def receive(self, timeout_ms: int) -> Iterable[tuple[bytes | None, bytes]]:
        try:
            yield self._answers.get(timeout=timeout_ms / 1000)
        except queue.Empty:
            return

    def served_models(self) -> ServedModels:
        return self._job.served

    def close_sender(self) -> None:
        pass

    def close_receiver(self) -> None:
        pass
