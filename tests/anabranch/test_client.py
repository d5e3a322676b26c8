import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from typing import Any

import numpy as np
import pytest

from anabranch import BrokerUnreachable, Client, ClientClosed, NoAnswer, Result, TopicMissing, UnknownProperty
from anabranch.schemas.errors import AnabranchError, InvalidParameter, RequestTooLarge, UnknownModel, WrongDatatype
from anabranch.schemas.latency_breakdown import PHASES
from anabranch.schemas.messages import ErrorResponse, InferRequest, InferResponse
from anabranch.schemas.tensors import Tensor
from anabranch.testing import Answer, FakeJob, echo
from tests.anabranch.conftest import KafkaJob, Topics


@pytest.fixture(params=["memory", pytest.param("kafka", marks=pytest.mark.system)])
def job(request: pytest.FixtureRequest) -> Iterator[FakeJob]:
    """A fake job in memory, and one behind a broker."""
    if request.param == "kafka":
        yield request.getfixturevalue("kafka_job")
    else:
        with FakeJob() as fake:
            yield fake


@pytest.fixture
def client(job: FakeJob) -> Iterator[Client]:
    with make_client(job) as made:
        yield made


def make_client(job: FakeJob, **options: Any) -> Client:
    options = {"timeout_s": 20.0, **options}
    if not isinstance(job, KafkaJob):
        return Client(connection=job.connection(), **options)
    topics = job.topics
    return Client(
        topics.bootstrap_servers,
        requests_topic=topics.requests_topic,
        responses_topic=topics.responses_topic,
        **options,
    )


def test_client_arrays_come_back_unchanged(client: Client) -> None:
    inputs: dict[str, Any] = {
        "floats": np.arange(6, dtype=np.float32).reshape(2, 3),
        "half": np.array([[1.5], [2.5]], np.float16),
        "big_endian": np.array([1, 2], dtype=">i4"),
        "transposed": np.arange(6, dtype=np.int64).reshape(3, 2).T,
        "flags": np.array([True, False]),
        "texts": ["an", "anabranch"],
        "numbers": [1.0, 2.0],
    }
    result = client.infer("m", inputs, version="7")
    assert isinstance(result, Result)
    assert list(result) == list(inputs)
    for name in set(inputs) - {"texts"}:
        np.testing.assert_array_equal(result[name], inputs[name])
    assert result["texts"].tolist() == [b"an", b"anabranch"]
    assert result["half"].dtype == np.float16
    assert (result.model_name, result.model_version, result.missing_rows) == ("m", "7", [])
    assert result.missing_members == []
    assert 0 < result.latency_ms < 20_000
    with pytest.raises(KeyError, match="unknown output 'logits'; available: floats"):
        result["logits"]


def test_client_bare_array_has_no_name(client: Client, job: FakeJob) -> None:
    assert client.infer("m", np.zeros((1, 2), np.float32))[""].shape == (1, 2)
    assert job.requests[-1].inputs[0].name == ""


def test_client_scheduling_arguments_become_parameters(client: Client, job: FakeJob) -> None:
    client.infer(
        "m",
        np.zeros(1),
        priority=1,
        deadline_ms=2_500.5,
        partial=True,
        outputs=["b", "a"],
        parameters={"explain": True, "tenant": "a", "temperature": 0.5, "seed": np.int32(7)},
        key="customer-1",
    )
    request = job.requests[-1]
    assert dict(request.parameters) == {
        "priority": 1,
        "timeout": 2_500_500,
        "partial": True,
        "explain": True,
        "tenant": "a",
        "temperature": 0.5,
        "seed": 7,
    }
    assert request.outputs == ("b", "a")
    assert job.received[-1].key == b"customer-1"


def test_result_breakdown_adds_up_to_latency(client: Client, job: FakeJob) -> None:
    spent_us = dict(zip(PHASES, (100, 10, 20, 5, 300, 0, 40), strict=True))
    told = {f"{stage}_us": us for stage, us in spent_us.items()}

    def explained(request: InferRequest) -> list[Answer]:
        time.sleep(0.001)  # longer than the phases together, as on the way through Kafka
        return [InferResponse("m", "1", request.id, request.inputs, told)]

    job.answer = explained
    result = client.infer("m", np.zeros(1), parameters={"explain": True})
    assert list(result.breakdown_ms) == [*PHASES, "return"]
    assert sum(result.breakdown_ms.values()) == pytest.approx(result.latency_ms)
    assert result.breakdown_ms["session"] == 0.3
    job.answer = echo
    assert client.infer("m", np.zeros(1)).breakdown_ms == {}


def test_client_ids_are_keys_and_spread_over_partitions(client: Client, job: FakeJob) -> None:
    futures = [client.submit("m", np.full((1,), index)) for index in range(40)]
    values = [int(future.result()[""][0]) for future in futures]
    assert values == list(range(40))
    assert [received.key.decode() for received in job.received] == [request.id for request in job.requests]
    assert len({received.partition for received in job.received}) == (3 if isinstance(job, KafkaJob) else 1)


def test_client_failure_raises_error_of_its_code(client: Client, job: FakeJob) -> None:
    job.answer = lambda request: [ErrorResponse(request.id, "unknown_model", "no model 'm'")]
    with pytest.raises(UnknownModel, match="no model 'm'"):
        client.infer("m", np.zeros(1))
    job.answer = lambda request: [ErrorResponse(request.id, "of_the_future", "what is that")]
    with pytest.raises(AnabranchError, match="what is that") as caught:
        client.infer("m", np.zeros(1))
    assert caught.value.code == "of_the_future"


def test_result_partial_answer_names_missing_rows(client: Client, job: FakeJob) -> None:
    def half(request: InferRequest) -> list[InferResponse]:
        tensor = Tensor.from_array("y", np.zeros((2, 1), np.float32))
        parameters = {"missing_rows": "0-15,32-32", "missing_members": "a,b@2", "error_code": "deadline_exceeded"}
        return [InferResponse("m", "1", request.id, (tensor,), parameters)]

    job.answer = half
    result = client.infer("m", np.zeros((35, 1)), partial=True)
    assert result.missing_rows == [(0, 15), (32, 32)]
    assert result.missing_members == ["a", "b@2"]
    assert result.parameters["error_code"] == "deadline_exceeded"


def test_client_repeated_and_foreign_answers_are_ignored(client: Client, job: FakeJob) -> None:
    def three(request: InferRequest) -> list[Answer]:
        stranger = InferResponse("m", "1", "somebody-else", ())
        return [stranger, *echo(request), *echo(request)]

    job.answer = three
    for index in range(5):
        assert client.infer("m", np.array([index]))[""].tolist() == [index]


def test_client_two_at_once_get_their_own_answers(client: Client, job: FakeJob) -> None:
    with make_client(job) as other:
        futures = [made.submit("m", np.array([index])) for index in range(20) for made in (client, other)]
        assert [int(future.result()[""][0]) for future in futures] == [index for index in range(20) for _ in range(2)]


def test_client_many_threads_get_their_answers(client: Client) -> None:
    seen: dict[int, int] = {}

    def ask(start: int) -> None:
        for index in range(start, start + 25):
            seen[index] = int(client.infer("m", np.array([index]))[""][0])

    threads = [threading.Thread(target=ask, args=(start,)) for start in range(0, 100, 25)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {index: index for index in range(100)}


def test_client_largest_request_is_served(client: Client) -> None:
    array = np.arange(4_190_000, dtype=np.float32)
    result = client.infer("m", {"x": array})
    np.testing.assert_array_equal(result["x"], array)


def test_client_request_over_limit_is_refused(client: Client) -> None:
    with pytest.raises(RequestTooLarge, match=r"takes 167\d{5} bytes, over the limit of 16777216.*max_message_bytes"):
        client.submit("m", np.zeros(4_195_000, np.float32))


def test_client_request_refused_by_broker_is_too_large(kafka_job: KafkaJob) -> None:
    with (
        make_client(kafka_job, max_message_bytes=1 << 26) as generous,
        pytest.raises(RequestTooLarge, match=r"max\.message"),
    ):
        generous.infer("m", np.zeros(5_000_000, np.float32))


def test_client_values_outside_the_protocol_are_refused(client: Client) -> None:
    with pytest.raises(WrongDatatype, match="complex64"):
        client.submit("m", np.zeros(1, np.complex64))
    for value in (None, 2**63, [1]):
        with pytest.raises(InvalidParameter, match="parameter 'p' is"):
            client.submit("m", np.zeros(1), parameters={"p": value})  # type: ignore[dict-item]
    with pytest.raises(InvalidParameter):
        client.submit("\ud800", np.zeros(1))


def test_client_without_answer_times_out(client: Client, job: FakeJob) -> None:
    job.answer = lambda request: []
    start_s = time.monotonic()
    with pytest.raises(NoAnswer, match=r"'m' within 0\.3 s: is the job running"):
        client.infer("m", np.zeros(1), timeout_s=0.3)
    assert 0.3 <= time.monotonic() - start_s < 5
    assert issubclass(NoAnswer, TimeoutError)


def test_client_cancelled_future_leaves_client_usable(client: Client, job: FakeJob) -> None:
    job.answer = lambda request: []
    assert client.submit("m", np.zeros(1)).cancel()
    job.answer = echo
    assert client.infer("m", np.array([3]))[""].tolist() == [3]


def test_close_pending_requests_end_with_client_closed(job: FakeJob) -> None:
    job.answer = lambda request: []
    client = make_client(job)
    futures: list[Future[Result]] = [client.submit("m", np.zeros(1)) for _ in range(3)]
    client.close()
    client.close()
    assert not wait_for(futures, timeout=0).not_done
    for future in futures:
        with pytest.raises(ClientClosed):
            future.result()
    with pytest.raises(ClientClosed, match="the client is closed"):
        client.submit("m", np.zeros(1))


def test_close_from_callback_returns(job: FakeJob) -> None:
    client = make_client(job)
    client.submit("m", np.zeros(1)).add_done_callback(lambda _: client.close())
    deadline_s = time.monotonic() + 20
    while time.monotonic() < deadline_s:
        try:
            client.submit("m", np.zeros(1))
        except ClientClosed:
            return
        time.sleep(0.01)
    pytest.fail("the client is still open")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:1,127.0.0.1:2", "nonsense"])
def test_client_without_broker_is_unreachable(address: str) -> None:
    start_s = time.monotonic()
    with pytest.raises(BrokerUnreachable, match=rf"no Kafka broker at {address}: is the stack up \(anabranch up\)"):
        Client(address)
    assert time.monotonic() - start_s < 2


@pytest.mark.slow
def test_client_other_server_at_address_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anabranch.messaging.connection._CONNECT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(BrokerUnreachable):
        Client(f"127.0.0.1:{server.getsockname()[1]}")


@pytest.mark.parametrize("which", ["requests_topic", "responses_topic"])
def test_client_missing_topic_is_named(topics: Topics, which: str) -> None:
    names = {"requests_topic": topics.requests_topic, "responses_topic": topics.responses_topic, which: "nowhere"}
    with pytest.raises(TopicMissing, match=r"has no topic 'nowhere': start the job.*anabranch run"):
        Client(topics.bootstrap_servers, **names)  # type: ignore[arg-type]


def test_client_properties_reach_kafka_or_are_refused(kafka_job: KafkaJob) -> None:
    with make_client(
        kafka_job, properties={"acks": 1, "enable.idempotence": False, "fetch.max.wait.ms": 100}
    ) as client:
        assert client.infer("m", np.array([1]))[""].tolist() == [1]
    with pytest.raises(UnknownProperty, match="kafka-python has no option sasl_jaas_config: use the names") as caught:
        make_client(kafka_job, properties={"sasl.jaas.config": "x"})
    assert isinstance(caught.value, ValueError)
