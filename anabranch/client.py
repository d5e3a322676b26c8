"""The client: sends requests to a running job over Kafka and returns its answers."""

from __future__ import annotations

import functools
import itertools
import os
import sys
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, as_completed
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

import msgspec
import numpy as np
import numpy.typing as npt

from anabranch.casting import FrameLike, rows_of
from anabranch.casting import cast as cast_inputs
from anabranch.flink_job.kafka.security import KafkaSecurity, python_options, tls_context
from anabranch.messaging.answer_future import AnswerFuture
from anabranch.messaging.connection import Connection, Headers, IsolationLevel, KafkaConnection, known_options
from anabranch.messaging.errors import ClientForked
from anabranch.messaging.http_connection import HttpConnection
from anabranch.messaging.response_receiver import PendingRequest, ResponseReceiver, no_answer
from anabranch.result import Result
from anabranch.schemas.errors import InvalidParameter, RequestTooLarge, UnknownModel, UnknownVersion
from anabranch.schemas.messages import InferRequest, Parameter
from anabranch.schemas.tensors import Tensor
from anabranch.schemas.wire import codec

if TYPE_CHECKING:
    from typing_extensions import Self  # noqa: UP035 - Python 3.10's typing has no Self

    from anabranch.flink_job.config import Config
    from anabranch.flink_job.model_summary import ModelSummary
    from anabranch.spans import RequestSpan

Inputs = Mapping[str, npt.ArrayLike] | npt.ArrayLike
Parameters = Mapping[str, Parameter | np.generic]

_TRACEPARENT = "traceparent"
_INT64 = range(-(2**63), 2**63)


class Client:
    """Sends requests to a running job, from any thread.

    A client holds two connections and a thread: close it, or use it as a context manager. Under a sampled span of
    OpenTelemetry, each request has a span of its own, with children for its phases in the job.

    Args:
        bootstrap_servers: `host:port` of one broker or several, separated by commas, also as `kafka://host:port`; or
            the address of a gateway, `http://host:port` or `https://host:port`, which makes arguments for Kafka void.
        api_key: Key of the gateway.
        requests_topic: The job's `kafka.requests_topic`.
        responses_topic: The job's `kafka.responses_topic`; the client reads one partition of it.
        reply_topic: Topic of this client's answers instead, one that the job's `kafka.reply_topics` allows.
        max_message_bytes: The job's `kafka.max_message_bytes`; larger requests are refused here.
        timeout_s: Longest wait for an answer.
        isolation_level: `read_committed` waits for the transaction of a job that delivers exactly once, and makes no
            difference otherwise; `read_uncommitted` sees answers early, and a failure may repeat them.
        security: Encryption and authentication, as the job's `[kafka.security]`; its certificates also for `https`.
        properties: Further options of the Kafka clients, in kafka-python's names, or with dots for underscores
            (`{"security.protocol": "SSL"}`).
        connection: Used instead of Kafka; `anabranch.testing.FakeJob.connection` makes one for tests.

    Raises:
        BrokerUnreachable: No broker answers at `bootstrap_servers`.
        GatewayUnreachable, GatewayRefused: No gateway answers there, or it refuses the key.
        TopicMissing: One of the two topics does not exist.
        CodecMissing: Answers are compressed with a codec that is not installed here.
        ConfigError: A secret or a file of `security` cannot be read.
        UnknownProperty: kafka-python has no such property.
    """

    def __init__(
        self,
        bootstrap_servers: str = "127.0.0.1:9092",
        *,
        requests_topic: str = "inference-requests",
        responses_topic: str = "inference-responses",
        reply_topic: str | None = None,
        max_message_bytes: int = 16 * 1024 * 1024,
        timeout_s: float = 30.0,
        isolation_level: IsolationLevel = "read_committed",
        security: KafkaSecurity | None = None,
        properties: Mapping[str, Any] | None = None,
        api_key: str | None = None,
        connection: Connection | None = None,
    ) -> None:
        self._max_message_bytes = max_message_bytes
        self._timeout_s = timeout_s
        # Unique among clients, which may share a partition of the responses topic.
        self._id_prefix = uuid.uuid4().hex[:16]
        self._id_count = itertools.count()
        self._process_id = os.getpid()
        self._summaries: dict[tuple[str, str], ModelSummary] = {}
        if connection is None and bootstrap_servers.startswith(("http://", "https://")):
            tls = tls_context(security) if security else None
            connection = HttpConnection(bootstrap_servers, api_key=api_key, timeout_s=timeout_s, tls=tls)
        self._connection = connection or KafkaConnection(
            bootstrap_servers.removeprefix("kafka://"),
            requests_topic=requests_topic,
            responses_topic=responses_topic,
            reply_topic=reply_topic,
            own_partition=True,
            max_message_bytes=max_message_bytes,
            isolation_level=isolation_level,
            properties={**(properties or {}), **(python_options(security) if security else {})},
            timeout_s=timeout_s,
        )
        self._receiver = ResponseReceiver(self._connection)

    @classmethod
    def for_job(cls, config: Config, *, timeout_s: float = 30.0) -> Self:
        """Make a client with the topics, size limit and Kafka properties of a job's configuration."""
        from anabranch.flink_job.kafka.properties import python_client_options  # noqa: PLC0415 - needs msgspec's TOML

        kafka_config = config.kafka
        return cls(
            kafka_config.bootstrap_servers,
            requests_topic=kafka_config.requests_topic,
            responses_topic=kafka_config.responses_topic,
            max_message_bytes=kafka_config.max_message_bytes,
            timeout_s=timeout_s,
            properties=known_options(python_client_options(kafka_config)),
        )

    def infer(
        self,
        model: str,
        inputs: Inputs,
        *,
        version: str = "",
        outputs: Sequence[str] = (),
        priority: int = 0,
        deadline_ms: float | None = None,
        partial: bool = False,
        parameters: Parameters | None = None,
        key: str | None = None,
        timeout_s: float | None = None,
        casts: bool = False,
    ) -> Result:
        """Send a request and wait for its answer.

        Args:
            model: Name of the model; empty if the job serves only one.
            inputs: An array for each input of the model, with the batch in axis 0; for a model with one input, also the
                array alone. Strings and bytes become BYTES.
            version: Version of the model; empty for the newest.
            outputs: The outputs to answer with, in this order; empty for all.
            priority: 1 is the highest; 0 leaves it to the job.
            deadline_ms: Time from now after which the job answers with `DeadlineExceeded`.
            partial: Asks the job to answer at the deadline with the rows that it has; see `Result.missing_rows`.
            parameters: Further request parameters.
            key: Requests with the same key stay in order; without one, they are spread over all partitions.
            timeout_s: Longest wait for the answer. Default: the client's `timeout_s`.
            casts: Casts arrays, lists and numbers to the model's types, and refuses values that would be lost.

        Raises:
            RequestError: The request is at fault; the class of the error says how.
            ServingError: The request was fine, but was not served.
            TransportError: No answer arrived.
        """
        return self.submit(
            model,
            inputs,
            version=version,
            outputs=outputs,
            priority=priority,
            deadline_ms=deadline_ms,
            partial=partial,
            parameters=parameters,
            key=key,
            timeout_s=timeout_s,
            casts=casts,
        ).result()

    def submit(
        self,
        model: str,
        inputs: Inputs,
        *,
        version: str = "",
        outputs: Sequence[str] = (),
        priority: int = 0,
        deadline_ms: float | None = None,
        partial: bool = False,
        parameters: Parameters | None = None,
        key: str | None = None,
        timeout_s: float | None = None,
        casts: bool = False,
    ) -> Future[Result]:
        """Send a request and return at once; the future ends with the answer, or with an error of `infer`.

        Takes the arguments of `infer`. Callbacks of the future run on the thread that receives all answers: keep them
        short. The arrays may be changed once this method has returned.

        Raises:
            RequestTooLarge: The request is over `max_message_bytes`.
            WrongDatatype, InvalidParameter: The protocol cannot carry an array or a parameter.
            ClientClosed: The client is closed.
            ClientForked: The client was made before `os.fork`, in another process.
        """
        sent_s = time.monotonic()
        if os.getpid() != self._process_id:
            raise ClientForked("the client was made in another process: make one after the fork")
        if timeout_s is None:
            # Waits beyond the deadline, for the answer that says that it has passed.
            timeout_s = self._timeout_s if deadline_ms is None else max(self._timeout_s, deadline_ms / 1000 + 1)
        request_id = f"{self._id_prefix}-{next(self._id_count):x}"
        named = inputs if isinstance(inputs, Mapping) else {"": inputs}
        if casts:
            named = cast_inputs(named, self.metadata(model, version).inputs)
        request = InferRequest(
            model_name=model,
            model_version=version,
            id=request_id,
            parameters=_check_parameters(parameters or {}) | _scheduling(priority, deadline_ms, partial=partial),
            inputs=tuple(Tensor.from_array(name, array) for name, array in named.items()),
            outputs=tuple(outputs),
        )
        span = _span(model)
        if span is None:
            return self._send(self._encode(request), request_id, key, sent_s, timeout_s, model)
        # A gateway goes on with the trace.
        has_phases = not isinstance(self._connection, HttpConnection)
        try:
            if has_phases:
                request = msgspec.structs.replace(request, parameters={**request.parameters, "explain": True})
            message = self._encode(request)
            span.sending()
            headers = [(_TRACEPARENT, span.traceparent.encode())]
            future = self._send(message, request_id, key, sent_s, timeout_s, model, headers)
        except BaseException as error:
            span.end(error)
            raise
        future.add_done_callback(functools.partial(span.end_with, has_phases=has_phases))
        return future

    def map(
        self,
        model: str,
        requests: Iterable[Inputs] | FrameLike,
        *,
        concurrency: int = 64,
        rows: int = 256,
        ordered: bool = True,
        progress: Callable[[int], None] | None = None,
        **options: Any,
    ) -> Iterator[Result]:
        """Send many requests, and yield their results.

        Args:
            requests: Inputs of each request, read as they are needed; or a pandas DataFrame, whose columns are the
                model's inputs.
            concurrency: Requests without an answer.
            rows: Rows of a DataFrame in one request.
            ordered: Yields results in the order of requests; otherwise as they come.
            progress: Called with the number of results so far.
            options: As for `infer`.

        Raises:
            AnabranchError: The first request that failed; later ones may have been served.
        """
        waiting: deque[Future[Result]] = deque()
        done = 0
        items = iter(self._requests_of(model, requests, rows, str(options.get("version", ""))))
        while True:
            more = itertools.islice(items, concurrency - len(waiting))
            waiting.extend(self.submit(model, inputs, **options) for inputs in more)
            if not waiting:
                return
            future = waiting[0]
            if not ordered:
                future = next(as_completed(waiting))
            waiting.remove(future)
            yield future.result()
            done += 1
            if progress is not None:
                progress(done)

    def _requests_of(self, model: str, requests: Any, rows: int, version: str) -> Iterable[Inputs]:
        if not hasattr(requests, "iloc"):
            return cast("Iterable[Inputs]", requests)
        specs = self.metadata(model, version).inputs
        return (rows_of(requests, specs, first, first + rows) for first in range(0, len(requests), rows))

    def models(self) -> dict[str, list[str]]:
        """Return the versions of each served model, the newest last."""
        return {name: list(versions) for name, versions in self._connection.served_models().models.items()}

    def is_ready(self, model: str = "", version: str = "") -> bool:
        """Tell whether a job has published the model, or any."""
        served = self._connection.served_models()
        try:
            return bool(served.find(model, version) if model else served.models)
        except (UnknownModel, UnknownVersion):
            return False

    def metadata(self, model: str, version: str = "") -> ModelSummary:
        """Describe a model: inputs and outputs with datatypes and shapes.

        Raises:
            UnknownModel, UnknownVersion: No job has published it.
        """
        found = self._summaries.get((model, version))
        if found is None:
            found = self._summaries[model, version] = self._connection.served_models().find(model, version)
        return found

    def close(self) -> None:
        """Close the connections; requests without an answer end with `ClientClosed`. May be called again."""
        if os.getpid() != self._process_id:
            return
        self._receiver.close()
        self._connection.close_sender()

    def __enter__(self) -> Self:
        """Return the client itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the client."""
        self.close()

    def _encode(self, request: InferRequest) -> bytes:
        try:
            message = codec.encode_request(request)
        except (ValueError, TypeError) as error:  # raised by protobuf, for a lone surrogate for example
            raise InvalidParameter(f"the request cannot be written: {error}") from None
        if len(message) > self._max_message_bytes:
            raise RequestTooLarge(
                f"the request takes {len(message)} bytes, over the limit of {self._max_message_bytes}: split it, or "
                "raise max_message_bytes of this client and kafka.max_message_bytes of the job"
            )
        return message

    def _send(
        self,
        message: bytes,
        request_id: str,
        key: str | None,
        sent_s: float,
        timeout_s: float,
        model: str,
        headers: Headers = (),
    ) -> Future[Result]:
        name = request_id.encode()
        future = AnswerFuture(self._receiver.thread, sent_s + timeout_s, no_answer(model, timeout_s))
        self._receiver.expect(name, PendingRequest(future, sent_s, timeout_s, model))
        record_key = name if key is None else key.encode()
        self._connection.send(message, record_key, lambda error: self._receiver.settle(name, error), headers)
        return future


def _span(model: str) -> RequestSpan | None:
    # Whoever traces has imported it.
    if "opentelemetry.trace" not in sys.modules:
        return None
    from anabranch.spans import client_span  # noqa: PLC0415 - needs OpenTelemetry

    return client_span(model)


def _scheduling(priority: int, deadline_ms: float | None, *, partial: bool) -> dict[str, Parameter]:
    parameters: dict[str, Parameter] = {}
    if priority:
        parameters["priority"] = priority
    if deadline_ms is not None:
        # Some servers read 0 as "no deadline": send the shortest deadline instead.
        parameters["timeout"] = max(1, round(deadline_ms * 1000))
    if partial:
        parameters["partial"] = True
    return parameters


def _check_parameters(parameters: Parameters) -> dict[str, Parameter]:
    checked: dict[str, Parameter] = {}
    for name, value in parameters.items():
        plain = value.item() if isinstance(value, np.generic) else value
        if type(plain) not in (bool, int, float, str) or (type(plain) is int and plain not in _INT64):
            raise InvalidParameter(f"parameter {name!r} is {plain!r}: use a bool, an int of 64 bits, a float or a str")
        checked[name] = plain
    return checked
