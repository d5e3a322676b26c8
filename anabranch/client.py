"""The client: asks a running job for answers, over Kafka.

Requests are sent with Kafka's own defaults, `acks=all` and idempotence: none is lost with a broker, none is sent twice,
and those with one key stay in order. A consumer, and so the job, is shown a record only when all in-sync replicas have
it, whatever the producer waits for; what it costs is that a partition takes one batch at a time. Measured at 200
requests/s: 0.4 ms at the median, 2 to 10 ms at the 99th percentile. `{"acks": 1, "enable_idempotence": False}` saves
that.
"""

import itertools
import socket
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Literal, Self

import kafka
import kafka.errors
import numpy as np
import numpy.typing as npt

from anabranch.flink_job.config import Config
from anabranch.response_receiver import ResponseReceiver, Waiting
from anabranch.result import Result
from anabranch.schemas import codec
from anabranch.schemas.errors import InvalidParameter, RequestTooLarge
from anabranch.schemas.messages import InferRequest, Parameter
from anabranch.schemas.tensors import Tensor
from anabranch.transport_errors import BrokerUnreachable, NotSent, TopicMissing

Inputs = Mapping[str, npt.ArrayLike] | npt.ArrayLike
Parameters = Mapping[str, Parameter | np.generic]

#: What a record's key and framing may add to a message of the largest size.
_FRAMING_BYTES = 64 * 1024
#: How long to wait for a broker that does not answer.
_CONNECT_S = 5.0
_INT64 = range(-(2**63), 2**63)


class Client:
    """Asks a running job for answers. Every method may be called from any thread.

    Connects when it is made. Close it, or use it as a context manager: it holds two connections and a thread.

    Args:
        bootstrap_servers: `host:port` of one broker or several, separated by commas.
        requests_topic: As the job's configuration has it.
        responses_topic: As the job's configuration has it.
        max_message_bytes: The job's `kafka.max_message_bytes`: larger requests are refused here.
        timeout_s: How long to wait for an answer.
        isolation_level: `read_committed` waits for the job's transaction where it delivers exactly once, and makes no
            difference otherwise; `read_uncommitted` sees answers early, which a failure may then repeat.
        properties: Further options of the Kafka clients, in kafka-python's names or with dots in place of underscores
            (`{"security.protocol": "SSL"}`).

    Raises:
        BrokerUnreachable: Nobody answers at `bootstrap_servers`.
        TopicMissing: One of the two topics does not exist.
        ValueError: A property that kafka-python does not have.
    """

    def __init__(
        self,
        bootstrap_servers: str = "127.0.0.1:9092",
        *,
        requests_topic: str = "inference-requests",
        responses_topic: str = "inference-responses",
        max_message_bytes: int = 16 * 1024 * 1024,
        timeout_s: float = 30.0,
        isolation_level: Literal["read_committed", "read_uncommitted"] = "read_committed",
        properties: Mapping[str, Any] | None = None,
    ) -> None:
        self._requests_topic = requests_topic
        self._max_message_bytes = max_message_bytes
        self._timeout_s = timeout_s
        # Unique among clients: they all read the same responses topic.
        self._id_prefix = uuid.uuid4().hex[:16]
        self._id_count = itertools.count()
        own = {
            "bootstrap_servers": bootstrap_servers.split(","),
            "bootstrap_timeout_ms": int(_CONNECT_S * 1000),
            "allow_auto_create_topics": False,
            "metrics_enabled": False,
        }
        consuming = own | {
            "group_id": None,
            "enable_auto_commit": False,
            "isolation_level": isolation_level,
            "fetch_min_bytes": 1,
            "fetch_max_bytes": max(4 * max_message_bytes, 52_428_800),
            "max_partition_fetch_bytes": max_message_bytes + _FRAMING_BYTES,
        }
        producing = own | {
            "linger_ms": 0,
            "max_request_size": max_message_bytes + _FRAMING_BYTES,
            "max_block_ms": int(_CONNECT_S * 1000),
        }
        for_consumer, for_producer = _divide(properties or {})
        if not for_consumer.keys() & {"proxy_url", "socks5_proxy"}:
            _knock(bootstrap_servers)
        try:
            with ExitStack() as opened:
                consumer = kafka.KafkaConsumer(**consuming | for_consumer)
                opened.callback(consumer.close)
                _seek_to_end(consumer, requests_topic, responses_topic, bootstrap_servers)
                self._producer = kafka.KafkaProducer(**producing | for_producer)
                opened.callback(self._producer.close, timeout=0)
                # Looked up now, so that the first request does not wait for it.
                self._producer.partitions_for(requests_topic)
                opened.pop_all()
        except kafka.errors.KafkaError as error:
            raise _unreachable(bootstrap_servers, error) from error
        self._answers = ResponseReceiver(consumer)

    @classmethod
    def for_job(cls, config: Config, *, timeout_s: float = 30.0) -> Self:
        """A client with the topics, size limit and Kafka properties of a job's configuration.

        Raises:
            BrokerUnreachable, TopicMissing, ValueError: As the constructor.
        """
        kafka_config = config.kafka
        return cls(
            kafka_config.bootstrap_servers,
            requests_topic=kafka_config.requests_topic,
            responses_topic=kafka_config.responses_topic,
            max_message_bytes=kafka_config.max_message_bytes,
            timeout_s=timeout_s,
            properties=kafka_config.properties,
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
    ) -> Result:
        """Asks, and waits for the answer.

        Args:
            model: Name of the model; empty where the job serves only one.
            inputs: An array for each input of the model, axis 0 being the batch; or, for a model with a single input,
                the array alone. Strings and bytes become BYTES.
            version: Empty for the newest.
            outputs: The outputs wanted, in this order; empty for all.
            priority: 1 is the highest; 0 leaves it to the job.
            deadline_ms: The job has so long, counted from now; then it answers with `DeadlineExceeded`.
            partial: At the deadline, answer with the rows that are there: see `Result.missing_rows`.
            parameters: Further request parameters.
            key: Requests with the same key stay in order; without one, they are spread over all partitions.
            timeout_s: How long to wait here, instead of the client's own time-out.

        Raises:
            RequestError: The request is at fault; what kind of error says how.
            ServingError: The request was fine, but was not served.
            TransportError: No answer could be had; see `anabranch.transport_errors`.
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
    ) -> Future[Result]:
        """Asks, and returns at once; the future ends with the answer or with one of the errors of `infer`.

        The future's callbacks run on the thread that receives all answers: keep them short. Arrays must not be
        changed before this returns; afterwards they may.

        Raises:
            RequestTooLarge: The request is over `max_message_bytes`.
            WrongDatatype: The protocol has no datatype for an array's dtype.
            InvalidParameter: A parameter that the protocol cannot carry.
            ClientClosed: The client is closed.
        """
        if timeout_s is None:
            # An answer that says that the deadline has passed is worth waiting for.
            timeout_s = self._timeout_s if deadline_ms is None else max(self._timeout_s, deadline_ms / 1000 + 1)
        request_id = f"{self._id_prefix}-{next(self._id_count):x}"
        named = inputs if isinstance(inputs, Mapping) else {"": inputs}
        message = _encode(
            InferRequest(
                model_name=model,
                model_version=version,
                id=request_id,
                parameters=_check_parameters(parameters or {}) | _scheduling(priority, deadline_ms, partial=partial),
                inputs=tuple(Tensor.from_array(name, array) for name, array in named.items()),
                outputs=tuple(outputs),
            )
        )
        if len(message) > self._max_message_bytes:
            raise RequestTooLarge(
                f"the request takes {len(message)} bytes, over the limit of {self._max_message_bytes}: split it, or "
                "raise max_message_bytes of this client and kafka.max_message_bytes of the job"
            )
        return self._send(message, request_id.encode(), key, Waiting(Future(), time.monotonic(), timeout_s, model))

    def close(self) -> None:
        """Ends the connections; requests still without an answer end with `ClientClosed`. Safe to call again."""
        self._answers.close()
        self._producer.close(timeout=1)

    def __enter__(self) -> Self:
        """The client itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes it."""
        self.close()

    def _send(self, message: bytes, request_id: bytes, key: str | None, waiting: Waiting) -> Future[Result]:
        def fail(error: Exception) -> None:
            self._answers.settle(request_id, _not_sent(error, len(message)))

        self._answers.expect(request_id, waiting)
        try:
            sent = self._producer.send(self._requests_topic, message, key=request_id if key is None else key.encode())
        except kafka.errors.KafkaError as error:
            fail(error)
        else:
            sent.add_errback(fail)
        return waiting.future


def _encode(request: InferRequest) -> bytes:
    try:
        return codec.encode_request(request)
    except (ValueError, TypeError) as error:  # protobuf's own: a text with a lone surrogate, for example
        raise InvalidParameter(f"the request cannot be written: {error}") from None


def _scheduling(priority: int, deadline_ms: float | None, *, partial: bool) -> dict[str, Parameter]:
    parameters: dict[str, Parameter] = {}
    if priority:
        parameters["priority"] = priority
    if deadline_ms is not None:
        # 0 would mean "none" to some servers: the shortest deadline that there is says what was meant.
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


def _divide(properties: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The properties that a consumer knows, and those that a producer does."""
    named = {name.replace(".", "_"): value for name, value in properties.items()}
    consumer, producer = kafka.KafkaConsumer.DEFAULT_CONFIG, kafka.KafkaProducer.DEFAULT_CONFIG
    strangers = named.keys() - consumer.keys() - producer.keys()
    if strangers:
        raise ValueError(f"kafka-python has no option {', '.join(sorted(strangers))}")
    return (
        {name: value for name, value in named.items() if name in consumer},
        {name: value for name, value in named.items() if name in producer},
    )


def _knock(bootstrap_servers: str) -> None:
    """Finds out at once that nobody is there; kafka-python would try again until its time is up."""
    refusal: Exception | None = None
    for server in bootstrap_servers.split(","):
        host, _, port = server.strip().rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
        except (OSError, ValueError) as error:
            refusal = error
        else:
            return
    raise _unreachable(bootstrap_servers, refusal) from refusal


def _unreachable(bootstrap_servers: str, error: Exception | None) -> BrokerUnreachable:
    return BrokerUnreachable(f"no Kafka broker at {bootstrap_servers}: is the stack up (anabranch up)? ({error})")


def _seek_to_end(
    consumer: kafka.KafkaConsumer, requests_topic: str, responses_topic: str, bootstrap_servers: str
) -> None:
    for topic in (requests_topic, responses_topic):
        if not consumer.partitions_for_topic(topic):
            raise TopicMissing(
                f"the broker at {bootstrap_servers} has no topic {topic!r}: start the job, which makes it "
                "(anabranch run), or name the topic that the job uses"
            )
    numbers = sorted(consumer.partitions_for_topic(responses_topic))
    partitions = [kafka.TopicPartition(responses_topic, number) for number in numbers]
    consumer.assign(partitions)
    # `seek_to_end` would look the end up at the first poll: after the first request, perhaps after its answer.
    for partition, offset in consumer.end_offsets(partitions).items():
        consumer.seek(partition, offset)


def _not_sent(error: Exception, size_bytes: int) -> Exception:
    if isinstance(error, kafka.errors.MessageSizeTooLargeError | kafka.errors.RecordListTooLargeError):
        return RequestTooLarge(
            f"the request takes {size_bytes} bytes, which the broker refuses: raise the topic's max.message.bytes"
        )
    return NotSent(f"the broker did not take the request: {error}")
