"""A connection that opens once the topics of a job exist."""

from collections.abc import Iterator

import pytest

from anabranch.flink_job.model_summary import encode_summaries
from anabranch.messaging.awaited_connection import AwaitedConnection
from anabranch.messaging.connection import Connection
from anabranch.messaging.errors import BrokerUnreachable, NotSent, TopicMissing
from anabranch.schemas.errors import AnabranchError
from anabranch.schemas.messages import InferRequest
from anabranch.schemas.wire import protobuf_wire
from anabranch.served_models import ServedModels
from anabranch.testing import FakeJob
from tests.gateway.conftest import MODELS


class Broker:
    """A broker that may lack the topics."""

    def __init__(self, job: FakeJob) -> None:
        self.has_topics = False
        self.tries = 0
        self._job = job

    def connect(self) -> Connection:
        self.tries += 1
        if not self.has_topics:
            raise TopicMissing("the broker has no topic 'requests'")
        return self._job.connection()


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Broker]:
    monkeypatch.setattr("anabranch.messaging.awaited_connection._RETRY_S", 0.0)
    with FakeJob() as job:
        yield Broker(job)


def request() -> bytes:
    return protobuf_wire.write_request(InferRequest("same", (), "1"))


def test_awaited_connection_opens_after_a_model_came(broker: Broker) -> None:
    served = ServedModels()
    connection = AwaitedConnection(broker.connect, served)
    failures: list[AnabranchError] = []
    connection.send(request(), b"1", failures.append)
    [failure] = failures
    assert isinstance(failure, NotSent)
    assert "no topic 'requests'; send the request again" in failure.message
    broker.has_topics = True
    assert list(connection.receive(1)) == []
    assert broker.tries == 1, "without a model there is nothing to ask"
    served.update("job", encode_summaries(MODELS).encode())
    assert list(connection.receive(1)) == []
    connection.send(request(), b"1", failures.append)
    [(key, _)] = list(connection.receive(5000))
    assert (key, len(failures)) == (b"1", 1)


def test_awaited_connection_other_errors_are_raised(broker: Broker) -> None:
    def connect() -> Connection:
        raise BrokerUnreachable("no broker")

    with pytest.raises(BrokerUnreachable):
        AwaitedConnection(connect, ServedModels())
    connection = AwaitedConnection(broker.connect, ServedModels())
    connection.close_sender()
    connection.close_receiver()
