"""The command `gateway` in front of a job: HTTP and gRPC, and models that the job has published."""

import json
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import grpc
import numpy as np
import pytest
from opentelemetry import trace
from pyflink.table import StreamTableEnvironment

from anabranch import Client
from anabranch.flink import environment
from anabranch.flink_job import job
from anabranch.flink_job.config import Config
from anabranch.schemas.latency_breakdown import PHASES
from anabranch.schemas.open_inference_pb2 import ModelInferRequest, ModelInferResponse
from anabranch.served_models import publish
from anabranch.stack.kafka.broker import KafkaBroker
from anabranch.stack.kafka.topics import Topic
from tests.flink.service import Topics, write_kafka_table
from tests.span_collector import SpanCollector, await_own, check_phases, collecting, own_spans

METHOD = "/inference.GRPCInferenceService/ModelInfer"


class Door:
    """A gateway as a process."""

    def __init__(self, config: Path, spans_to: str) -> None:
        command = [sys.executable, "-m", "anabranch", "gateway", "--config", str(config), "--json"]
        command += ["--otlp-endpoint", spans_to]
        self.process = subprocess.Popen(
            [*command, "--http-port", "0", "--grpc-port", "0"], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.urls: dict[str, Any] = json.loads(self.process.stdout.readline())

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        request = Request(self.urls["http_url"] + path, json.dumps(body).encode(), headers)
        try:
            with urlopen(request, timeout=60) as response:
                return response.status, json.loads(response.read())
        except HTTPError as error:
            return error.code, json.loads(error.read())

    def get(self, path: str) -> Any:
        with urlopen(self.urls["http_url"] + path, timeout=60) as response:
            return json.loads(response.read())

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@pytest.fixture(scope="module")
def spans() -> Iterator[SpanCollector]:
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
def door(
    service: Topics, broker: KafkaBroker, spans: SpanCollector, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Door]:
    models_topic = f"models-{uuid.uuid4().hex[:8]}"
    broker.create_topics(Topic(models_topic, 1, {"cleanup.policy": "compact"}))
    config = service.config.replace(kafka={"models_topic": models_topic})
    publish(config, job.read_models(config))
    door = Door(write_kafka_table(config, tmp_path_factory.mktemp("gateway") / "job.toml"), spans.url)
    yield door
    assert door.stop() == 0


def test_gateway_http_request_is_answered_by_the_job(door: Door) -> None:
    x = {"name": "x", "shape": [2, 4], "datatype": "FP32", "data": list(range(8))}
    for path in ("/v2/models/double/infer", "/v2/models/double/versions/latest/infer"):
        status, answer = door.post(path, {"id": "mine", "inputs": [x]})
        assert (status, answer["id"], answer["model_version"]) == (200, "mine", "2")
        assert len(answer["outputs"][0]["data"]) == 8


@pytest.mark.timeout(300)
def test_gateway_answers_a_thousand_rows_of_sql(door: Door) -> None:
    job = {"parallelism": 1, "flink": {"restart-strategy.type": "none"}}
    tables = StreamTableEnvironment.create(environment(Config().replace(job=job)))
    tables.get_config().set("table.exec.async-ml-predict.max-concurrent-operations", "300")
    tables.execute_sql(
        "CREATE TEMPORARY MODEL doubled INPUT (a FLOAT, b FLOAT, c FLOAT, d FLOAT) OUTPUT (y ARRAY<FLOAT>) "
        f"WITH ('provider' = 'anabranch', 'endpoint' = '{door.urls['http_url']}', 'model' = 'double')"
    )
    tables.execute_sql(
        "CREATE TEMPORARY TABLE numbers (n FLOAT) WITH ('connector' = 'datagen', 'number-of-rows' = '1000', "
        "'fields.n.kind' = 'sequence', 'fields.n.start' = '0', 'fields.n.end' = '999')"
    )
    query = "SELECT n, y FROM ML_PREDICT(TABLE numbers, MODEL doubled, DESCRIPTOR(n, n, n, n))"
    with tables.sql_query(query).execute().collect() as rows:
        found = sorted((row[0], row[1]) for row in rows)
    assert found == [(float(n), [2.0 * n + 2] * 4) for n in range(1000)]


@pytest.mark.parametrize("rows", [2, 100])
def test_gateway_traces_a_request_through_the_job(door: Door, spans: SpanCollector, rows: int) -> None:
    trace_id = uuid.uuid4().hex
    x = {"name": "x", "shape": [rows, 4], "datatype": "FP32", "data": [0] * 4 * rows}
    status, _ = door.post("/v2/models/double/infer", {"inputs": [x]}, traceparent=f"00-{trace_id}-{1:016x}-01")
    assert status == 200
    found = spans.of(trace_id, 9)
    check_phases(found, "infer double")
    assert found["session"].end_time_unix_nano > found["session"].start_time_unix_nano


@pytest.mark.parametrize("way", ["http", "kafka"])
def test_client_traces_a_request_through_the_job(service: Topics, door: Door, spans: SpanCollector, way: str) -> None:
    """Through a gateway, which goes on with the trace, and without one."""
    own_spans().clear()
    client = Client(door.urls["http_url"]) if way == "http" else Client.for_job(service.config)
    with client, trace.get_tracer("shop").start_as_current_span("checkout") as checkout:
        client.infer("double", {"x": np.zeros((2, 4), np.float32)})
    trace_id = f"{checkout.get_span_context().trace_id:032x}"
    own = await_own("infer double")
    if way == "kafka":
        assert own.keys() == {"checkout", "infer double", "answer", *PHASES}
        return
    assert own.keys() == {"checkout", "infer double"}
    found = spans.of(trace_id, 9)
    check_phases(found, "infer double")
    context = own["infer double"].context
    assert context is not None
    assert found["infer double"].parent_span_id.hex() == f"{context.span_id:016x}"


def test_gateway_describes_the_models_of_the_job(door: Door) -> None:
    metadata = door.get("/v2/models/double")
    assert metadata["versions"] == ["1", "2"]
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    assert door.get("/v2/health/ready") == {"ready": True}


def test_gateway_error_of_the_job_has_its_status(door: Door) -> None:
    x = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}
    assert door.post("/v2/models/double/infer", {"inputs": [x]})[1]["code"] == "wrong_shape"
    i = {"name": "i", "shape": [1], "datatype": "INT64", "data": [99]}
    status, answer = door.post("/v2/models/lookup/infer", {"inputs": [i]})
    assert (status, answer["code"]) == (422, "inference_failed")


def test_gateway_grpc_request_is_answered_by_the_job(door: Door) -> None:
    request = ModelInferRequest(model_name="double", id="mine")
    request.inputs.add(name="x", datatype="FP32", shape=(100, 4))
    request.raw_input_contents.append(np.ones((100, 4), np.float32).tobytes())
    with grpc.insecure_channel(door.urls["grpc_url"]) as channel:
        call = channel.unary_unary(METHOD, ModelInferRequest.SerializeToString, ModelInferResponse.FromString)
        answer = call(request, timeout=60)
    assert (answer.id, list(answer.outputs[0].shape)) == ("mine", [100, 4])
