"""Errors between a client and the job."""

from anabranch.schemas.errors import AnabranchError


class TransportError(AnabranchError):
    """Base of errors between a client and the job."""

    code = "transport_error"


class BrokerUnreachable(TransportError, ConnectionError):
    """No Kafka broker answers at the bootstrap address."""

    code = "broker_unreachable"


class TopicMissing(TransportError):
    """The broker has no such topic."""

    code = "topic_missing"


class NotSent(TransportError):
    """The broker did not take the request."""

    code = "not_sent"


class NoAnswer(TransportError, TimeoutError):
    """No answer came in time. The request may still be served."""

    code = "no_answer"


class ClientClosed(TransportError):
    """The client was closed before the answer came."""

    code = "client_closed"


class UnknownProperty(TransportError, ValueError):
    """The Kafka client has no property of that name."""

    code = "unknown_property"


class ClientForked(TransportError):
    """The client belongs to another process: its threads do not run in a child of `os.fork`."""

    code = "client_forked"


class WaitsForItself(TransportError):
    """A callback waits for an answer on the thread that receives all answers."""

    code = "waits_for_itself"


class CodecMissing(TransportError):
    """Answers are compressed with a codec whose package is not installed."""

    code = "codec_missing"


class GatewayUnreachable(TransportError, ConnectionError):
    """No gateway answers at the address."""

    code = "gateway_unreachable"


class GatewayRefused(TransportError):
    """The gateway did not take the request, for example without a key."""

    code = "gateway_refused"


class LetterMissing(TransportError):
    """The errors topic has no such dead letter."""

    code = "letter_missing"


class OriginalMissing(TransportError):
    """The bytes of a failed request are gone."""

    code = "original_missing"
