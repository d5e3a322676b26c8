"""The gRPC door: the protocol, its errors, streams, health and reflection; with a fake job."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from anabranch.gateway import inference_service_pb2 as pb2
from anabranch.gateway.access import Keys
from anabranch.gateway.grpc_door import CODE_KEY, SERVICE
from anabranch.schemas.open_inference_pb2 import ModelInferRequest, ModelInferResponse
from tests.gateway.conftest import Served, ones


class Caller:
    """Calls methods by name."""

    def __init__(self, served: Served) -> None:
        self.channel = grpc.insecure_channel(served.gateway.grpc_url)

    def __call__(self, name: str, request: Any, response: Any, **options: Any) -> Any:
        call = self.channel.unary_unary(f"/{SERVICE}/{name}", type(request).SerializeToString, response.FromString)
        return call(request, timeout=options.pop("timeout", 20), **options)

    def infer(self, request: ModelInferRequest, **options: Any) -> ModelInferResponse:
        answer: ModelInferResponse = self("ModelInfer", request, ModelInferResponse, **options)
        return answer

    def stream(self, *requests: ModelInferRequest) -> list[Any]:
        call = self.channel.stream_stream(
            f"/{SERVICE}/ModelStreamInfer", ModelInferRequest.SerializeToString, pb2.ModelStreamInferResponse.FromString
        )
        return list(call(iter(requests), timeout=20))


@pytest.fixture
def caller(served: Served) -> Iterator[Caller]:
    made = Caller(served)
    yield made
    made.channel.close()


def request(model: str = "same", request_id: str = "", rows: int = 1, **parameters: int) -> ModelInferRequest:
    message = ModelInferRequest(model_name=model, id=request_id)
    message.inputs.add(name="x", datatype="FP32", shape=(rows, 2))
    message.raw_input_contents.append(ones(rows).tobytes())
    for name, value in parameters.items():
        message.parameters[name].int64_param = value
    return message


def error_of(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    trailers = dict(caught.value.trailing_metadata() or ())
    return caught.value.code(), trailers.get(CODE_KEY, "")


def test_grpc_descriptions_are_as_the_protocol_says(caller: Caller) -> None:
    assert caller("ServerLive", pb2.ServerLiveRequest(), pb2.ServerLiveResponse).live
    assert caller("ServerReady", pb2.ServerReadyRequest(), pb2.ServerReadyResponse).ready
    server = caller("ServerMetadata", pb2.ServerMetadataRequest(), pb2.ServerMetadataResponse)
    assert server.name == "anabranch"
    assert caller("ModelReady", pb2.ModelReadyRequest(name="same", version="1"), pb2.ModelReadyResponse).ready
    assert not caller("ModelReady", pb2.ModelReadyRequest(name="nothing"), pb2.ModelReadyResponse).ready
    model = caller("ModelMetadata", pb2.ModelMetadataRequest(name="same"), pb2.ModelMetadataResponse)
    assert (list(model.versions), model.inputs[0].datatype, list(model.inputs[0].shape)) == (
        ["1", "2"],
        "FP32",
        [-1, 2],
    )
    config = caller("ModelConfig", pb2.ModelConfigRequest(name="text"), pb2.ModelConfigResponse).config
    assert (config.max_batch_size, config.input[0].data_type) == (8, pb2.TYPE_STRING)
    index = caller("RepositoryIndex", pb2.RepositoryIndexRequest(), pb2.RepositoryIndexResponse)
    assert len(index.models) == 6
    caller.infer(request())
    counts = caller("ModelStatistics", pb2.ModelStatisticsRequest(name="same"), pb2.ModelStatisticsResponse)
    assert [each.inference_stats.success.count for each in counts.model_stats] == [0, 1]


@pytest.mark.parametrize("request_id", ["", "mine-ü"])
def test_grpc_infer_gives_outputs_and_the_id(served: Served, caller: Caller, request_id: str) -> None:
    answer = caller.infer(request(request_id=request_id, rows=3, priority=2))
    assert (answer.id, answer.model_name, answer.model_version) == (request_id, "same", "2")
    assert answer.raw_output_contents[0] == ones(3).tobytes()
    assert served.job.requests[0].parameters == {"priority": 2, "timeout": 5_000_000}


@pytest.mark.slow
@pytest.mark.parametrize(("version", "served_by"), [("1", "1"), ("latest", "2"), ("", "2")])
def test_grpc_infer_version_is_resolved(caller: Caller, version: str, served_by: str) -> None:
    asked = request()
    asked.model_version = version
    assert caller.infer(asked).model_version == served_by


def test_grpc_infer_typed_contents_are_read(caller: Caller) -> None:
    asked = ModelInferRequest(model_name="same")
    asked.inputs.add(name="x", datatype="FP32", shape=(1, 2)).contents.fp32_contents.extend([1.5, 2.5])
    assert np.frombuffer(caller.infer(asked).raw_output_contents[0], np.float32).tolist() == [1.5, 2.5]


@pytest.mark.slow
def test_grpc_error_has_its_status_and_code(served: Served, caller: Caller) -> None:
    unknown = request()
    unknown.model_version = "9"
    unreadable = caller.channel.unary_unary(f"/{SERVICE}/ModelInfer")
    status = grpc.StatusCode
    found = {
        "model": error_of(lambda: caller.infer(request("nothing"))),
        "version": error_of(lambda: caller.infer(unknown)),
        "rows": error_of(lambda: caller.infer(request("bad"))),
        "timeout": error_of(lambda: caller.infer(request(timeout=-1))),
        "bytes": error_of(lambda: unreadable(b"\xff\xff\xff")),
        "late": error_of(lambda: caller.infer(request("slow", timeout=1000))),
        "size": error_of(lambda: caller.infer(request(rows=3_000_000))),
    }
    served.release.set()
    assert found == {
        "model": (status.NOT_FOUND, "unknown_model"),
        "version": (status.NOT_FOUND, "unknown_version"),
        "rows": (status.FAILED_PRECONDITION, "inference_failed"),
        "timeout": (status.INVALID_ARGUMENT, "invalid_parameter"),
        "bytes": (status.INVALID_ARGUMENT, "unreadable"),
        "late": (status.DEADLINE_EXCEEDED, "deadline_exceeded"),
        "size": (status.RESOURCE_EXHAUSTED, ""),
    }


def test_grpc_deadline_of_the_call_reaches_the_job(served: Served, caller: Caller) -> None:
    caller.infer(request(), timeout=2)
    assert 1_000_000 < int(served.job.requests[0].parameters["timeout"]) <= 2_010_000


def test_grpc_more_than_max_in_flight_is_exhausted(start: Callable[..., Served]) -> None:
    served = start(max_in_flight=1)
    caller = Caller(served)
    thread = threading.Thread(target=caller.infer, args=(request("slow"),))
    thread.start()
    while served.gateway.service.bridge.in_flight < 1:
        time.sleep(0.01)
    assert error_of(lambda: caller.infer(request())) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "overloaded")
    served.release.set()
    thread.join()
    caller.channel.close()


def test_grpc_stream_answers_in_order_and_wraps_errors(caller: Caller) -> None:
    asked = [request("bad" if number % 3 == 1 else "same", str(number)) for number in range(40)]
    answers = caller.stream(*asked)
    assert [each.infer_response.id for each in answers] == [str(number) for number in range(40)]
    assert [bool(each.error_message) for each in answers] == [number % 3 == 1 for number in range(40)]
    assert answers[1].error_message.startswith("inference_failed: ")


@pytest.mark.slow
def test_grpc_hang_up_ends_the_wait_and_keeps_the_place(served: Served, caller: Caller) -> None:
    call = caller.channel.unary_unary(f"/{SERVICE}/ModelInfer").future(request("slow").SerializeToString())
    while served.gateway.service.bridge.in_flight < 1:
        time.sleep(0.01)
    call.cancel()
    time.sleep(0.3)
    assert served.gateway.service.bridge.in_flight == 1
    served.release.set()
    while served.gateway.service.bridge.in_flight:
        time.sleep(0.01)


def test_grpc_health_says_serving(served: Served, caller: Caller) -> None:
    stub = health_pb2_grpc.HealthStub(caller.channel)
    for name in ("", SERVICE):
        status = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=20).status
        assert status == health_pb2.HealthCheckResponse.SERVING


def test_grpc_reflection_describes_the_service(caller: Caller) -> None:
    database = ProtoReflectionDescriptorDatabase(caller.channel)
    assert SERVICE in database.get_services()
    pool = DescriptorPool(database)
    methods = {each.name: each for each in pool.FindServiceByName(SERVICE).methods}
    assert len(methods) == 10
    described = GetMessageClass(methods["ModelInfer"].input_type)
    assert described.FromString(request(request_id="a").SerializeToString()).id == "a"  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize(("key", "is_admitted"), [("k" * 16, True), ("wrong", False), ("", False)])
def test_grpc_with_keys_needs_one(start: Callable[..., Served], key: str, is_admitted: bool) -> None:
    caller = Caller(start(keys=Keys(["k" * 16])))
    metadata = (("authorization", f"Bearer {key}"),) if key else ()
    if is_admitted:
        assert caller.infer(request(), metadata=metadata).model_name == "same"
    else:
        assert error_of(lambda: caller.infer(request(), metadata=metadata))[0] is grpc.StatusCode.UNAUTHENTICATED
    caller.channel.close()
