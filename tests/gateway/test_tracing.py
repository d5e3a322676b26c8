"""Spans of sampled requests reach a collector under the trace of their caller, from each door."""

import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import grpc
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Status
from opentelemetry.trace import SpanContext

from anabranch.gateway.grpc_door import SERVICE
from anabranch.gateway.tracing import Tracer
from anabranch.schemas.latency_breakdown import PHASES
from anabranch.schemas.messages import InferRequest, InferResponse
from anabranch.schemas.open_inference_pb2 import ModelInferRequest, ModelInferResponse
from anabranch.spans import Batches
from tests.gateway.conftest import Served, gateways, ones
from tests.span_collector import SpanCollector, check_phases, collecting

pytestmark = pytest.mark.slow

X = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}
SPAN = "00f067aa0ba902b7"
Ask = Callable[[Served, dict[str, str]], Any]


def trace(number: int, flags: str = "01") -> tuple[str, str]:
    trace_id = f"{number:032x}"
    return trace_id, f"00-{trace_id}-{SPAN}-{flags}"


@pytest.fixture(scope="module")
def collector() -> Iterator[SpanCollector]:
    with collecting() as found:
        yield found


@pytest.fixture(scope="module")
def traced(collector: SpanCollector) -> Iterator[Served]:
    with gateways() as start:
        served = start(tracer=Tracer(collector.url))
        answer = served.job.answer

        def explaining(request: InferRequest) -> list[Any]:
            given = [each for each in answer(request) if isinstance(each, InferResponse)]
            batch = {"batch": request.parameters["in_batch"]} if "in_batch" in request.parameters else {}
            explained = {f"{phase}_us": 100 for phase in PHASES} | {"task": 3} | batch
            asked = request.parameters.get("explain") is True
            return [
                InferResponse(each.model_name, each.model_version, each.id, each.outputs, explained if asked else {})
                for each in given
            ]

        served.job.answer = explaining
        yield served


def post(path: str) -> Ask:
    def ask(served: Served, headers: dict[str, str]) -> Any:
        request = Request(served.url + path, json.dumps({"inputs": [X]}).encode(), headers)
        with urlopen(request, timeout=20) as response:
            return response.read()

    return ask


def call(served: Served, headers: dict[str, str]) -> Any:
    message = ModelInferRequest(model_name="same")
    message.inputs.add(name="x", datatype="FP32", shape=(1, 2))
    message.raw_input_contents.append(ones().tobytes())
    with grpc.insecure_channel(served.gateway.grpc_url) as channel:
        infer = channel.unary_unary(
            f"/{SERVICE}/ModelInfer", ModelInferRequest.SerializeToString, ModelInferResponse.FromString
        )
        return infer(message, timeout=20, metadata=tuple(headers.items()))


DOORS: dict[str, Ask] = {
    "http": post("/v2/models/same/infer"),
    "events": post("/v2/models/same/infer_stream"),
    "grpc": call,
}


@pytest.mark.parametrize("door", DOORS)
def test_sampled_request_has_a_span_for_each_phase(traced: Served, collector: SpanCollector, door: str) -> None:
    trace_id, traceparent = trace(100 + list(DOORS).index(door))
    DOORS[door](traced, {"traceparent": traceparent})
    found = collector.of(trace_id, 1 + len(PHASES) + 1)
    check_phases(found, "infer same")
    assert found["infer same"].parent_span_id.hex() == SPAN
    assert found["session"].end_time_unix_nano - found["session"].start_time_unix_nano == 100_000
    attributes = {item.key: item.value for item in found["infer same"].attributes}
    assert attributes["anabranch.model"].string_value == "same"
    assert attributes["anabranch.task"].int_value == 3
    assert collector.services == {"anabranch-gateway"}


def test_sessions_of_one_batch_have_links_to_earlier_ones(traced: Served, collector: SpanCollector) -> None:
    sessions = []
    for number, batch in ((20, 5), (21, 5), (22, 6), (23, 5)):
        trace_id, traceparent = trace(number)
        body = {"inputs": [X], "parameters": {"in_batch": batch}}
        with urlopen(
            Request(f"{traced.url}/v2/models/same/infer", json.dumps(body).encode(), {"traceparent": traceparent})
        ):
            pass
        sessions.append(collector.of(trace_id, 2 + len(PHASES))["session"])
    first, second, other, third = sessions
    assert [[link.span_id for link in session.links] for session in sessions] == [
        [],
        [first.span_id],
        [],
        [first.span_id, second.span_id],
    ]
    assert [link.trace_id.hex()[-4:] for link in third.links] == ["0014", "0015"]
    assert other.trace_id not in {link.trace_id for link in third.links}


def test_links_of_long_past_batches_are_forgotten() -> None:
    batches, context = Batches(), SpanContext(1, 2, is_remote=False)
    batches.of(0, 0).append(context)
    for batch in range(255):
        batches.of(0, 1 + batch)
    assert batches.of(0, 0) == [context]
    batches.of(1, 0)
    assert batches.of(0, 0) == []


def test_requests_that_are_not_sampled_are_left_alone(traced: Served, collector: SpanCollector) -> None:
    asked, before = len(traced.job.requests), len(collector.spans)
    zero = trace(0)[1]
    for headers in ({}, {"traceparent": trace(7, "00")[1]}, {"traceparent": "nonsense"}, {"traceparent": zero}):
        for ask in DOORS.values():
            ask(traced, headers)
    assert all("explain" not in request.parameters for request in traced.job.requests[asked:])
    # A later one is exported after them.
    trace_id, traceparent = trace(8)
    DOORS["http"](traced, {"traceparent": traceparent})
    collector.of(trace_id, 9)
    assert len(collector.spans) == before + 9


def test_span_of_a_failed_request_has_its_code(traced: Served, collector: SpanCollector) -> None:
    trace_id, traceparent = trace(9)
    wrong = Request(
        f"{traced.url}/v2/models/same/infer",
        json.dumps({"inputs": [{**X, "data": [1]}]}).encode(),
        {"traceparent": traceparent},
    )
    with pytest.raises(HTTPError):
        urlopen(wrong, timeout=20)
    span = collector.of(trace_id, 1)["infer same"]
    assert span.status.code == Status.STATUS_CODE_ERROR
    assert {item.key: item.value.string_value for item in span.attributes}["error.type"] == "wrong_size"


def test_share_of_requests_without_parent_is_sampled(collector: SpanCollector) -> None:
    before = len(collector.spans)
    with gateways() as start:
        served = start(tracer=Tracer(collector.url, share=1.0))
        DOORS["http"](served, {})
    # The last spans leave as the gateway closes.
    [span] = collector.spans[before:]
    assert (span.name, span.parent_span_id) == ("infer same", b"")
