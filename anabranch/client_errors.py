"""What can go wrong between a client and the job.

    ClientError
    ├── BrokerUnreachable   nobody answers at that address
    ├── TopicMissing        the broker has no such topic
    ├── NotSent             the broker did not take the request
    ├── NoAnswer            it was sent, but nothing came back in time
    └── ClientClosed        the client was closed before the answer came

A request that the job refused, or failed to serve, raises the error of `errors` that stands for it instead.
"""


class ClientError(Exception):
    """Base of what can go wrong between this process and the job."""


class BrokerUnreachable(ClientError, ConnectionError):
    """No Kafka broker answers at the bootstrap address."""


class TopicMissing(ClientError):
    """The broker has no such topic: the job has not made it yet, or it has another name."""


class NotSent(ClientError):
    """The broker did not take the request."""


class NoAnswer(ClientError, TimeoutError):
    """The request was sent, but no answer came in time. It may still be served."""


class ClientClosed(ClientError):
    """The client was closed before the answer came, or before it was asked."""
