"""Metrics for Prometheus, from Flink's REST interface to the text that Prometheus reads."""

import json
import re
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from anabranch.monitoring.alerts import ALERTS
from anabranch.monitoring.dashboard import PANELS, dashboard
from anabranch.monitoring.metrics import (
    ClusterReading,
    GatewayReading,
    JobReading,
    exposition,
    families,
    read_cluster,
)
from anabranch.operators.core.metrics import LIMITS_US
from anabranch.stack.errors import StackError
from anabranch.stack.flink.rest import FlinkJob, FlinkRest

MODEL = ("model", "my-model-3")
COUNTS = {
    (*MODEL, "requests"): 10.0,
    (*MODEL, "rows"): 40.0,
    (*MODEL, "batches"): 5.0,
    (*MODEL, "queue", "us"): 2_500_000.0,
    (*MODEL, "session", "us"): 500_000.0,
    (*MODEL, "total", "us"): 4_000_000.0,
    (*MODEL, "total", "le", "128", "requests"): 4.0,
    (*MODEL, "total", "le", "512", "requests"): 9.0,
    (*MODEL, "total", "le", "inf", "requests"): 10.0,
    ("error", "overloaded", "requests"): 3.0,
    ("phase", "merge", "defects"): 1.0,
}
JOB = JobReading(
    name="ocr",
    is_running=True,
    counts=COUNTS,
    restarts=2,
    waiting=7,
    checkpoints={"completed": 5, "failed": 1},
    checkpoint_s=1_000.5,
    checkpoint_took_s=0.25,
    left_out=1,
)
GATEWAY = GatewayReading(
    statistics=[
        {
            "name": "my-model",
            "version": "3",
            "inference_stats": {"success": {"count": 8, "ns": 4_000_000_000}, "fail": {"count": 1, "ns": 0}},
        }
    ],
    in_flight=4,
)


def samples(text: bytes) -> dict[tuple[str, tuple[str, ...]], float]:
    """Returns the values by name and labels' values, in the order of the labels."""
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_exposition_of_a_job_has_all_its_counts() -> None:
    found = samples(exposition(GATEWAY, ClusterReading(is_up=True, jobs=[JOB])))
    labels = ("ocr", "my-model", "3")
    expected = {
        ("anabranch_gateway_requests_total", ("my-model", "success", "3")): 8,
        ("anabranch_gateway_requests_total", ("my-model", "fail", "3")): 1,
        ("anabranch_gateway_request_duration_seconds_total", ("my-model", "success", "3")): 4.0,
        ("anabranch_gateway_in_flight", ()): 4,
        ("anabranch_flink_up", ()): 1,
        ("anabranch_jobs_running", ()): 1,
        ("anabranch_job_restarts_total", ("ocr",)): 2,
        ("anabranch_waiting_records", ("ocr",)): 7,
        ("anabranch_models_left_out", ("ocr",)): 1,
        ("anabranch_checkpoints_total", ("ocr", "completed")): 5,
        ("anabranch_checkpoints_total", ("ocr", "failed")): 1,
        ("anabranch_checkpoint_timestamp_seconds", ("ocr",)): 1_000.5,
        ("anabranch_checkpoint_duration_seconds", ("ocr",)): 0.25,
        ("anabranch_request_success_total", labels): 10,
        ("anabranch_inference_count_total", labels): 40,
        ("anabranch_inference_exec_count_total", labels): 5,
        ("anabranch_queue_duration_seconds_total", labels): 2.5,
        ("anabranch_compute_infer_duration_seconds_total", labels): 0.5,
        ("anabranch_broker_duration_seconds_total", labels): 0.0,
        ("anabranch_request_duration_seconds_sum", labels): 4.0,
        ("anabranch_request_duration_seconds_count", labels): 10,
        ("anabranch_request_failure_total", ("overloaded", "ocr")): 3,
        ("anabranch_request_failure_total", ("deadline_exceeded", "ocr")): 0,
        ("anabranch_defects_total", ("ocr", "merge")): 1,
        ("anabranch_defects_total", ("ocr", "session")): 0,
        ("anabranch_exchange_lost_total", ("ocr",)): 0,
    }
    assert {key: found.get(key) for key in expected} == expected


def test_exposition_histogram_fills_empty_buckets() -> None:
    found = samples(exposition(GATEWAY, ClusterReading(is_up=True, jobs=[JOB])))
    buckets = [value for (name, _), value in found.items() if name == "anabranch_request_duration_seconds_bucket"]
    assert buckets == [0, 4, 4, *[9] * (len(LIMITS_US) - 4), 10]


@pytest.mark.parametrize(
    ("cluster", "shown"), [(None, {}), (ClusterReading(is_up=False), {("anabranch_flink_up", ()): 0})]
)
def test_exposition_without_flink_shows_the_gateway(cluster: ClusterReading | None, shown: dict[Any, float]) -> None:
    found = samples(exposition(GATEWAY, cluster))
    assert {key: value for key, value in found.items() if not key[0].startswith("anabranch_gateway")} == shown
    assert found[("anabranch_gateway_in_flight", ())] == 4


ANSWERS: dict[str, Any] = {
    "/jobs/j": {
        "vertices": [
            {"id": "v", "name": "Source: requests -> serve", "parallelism": 2, "tasks": {"RUNNING": 2}},
            {"id": "w", "name": "aggregate", "parallelism": 2, "tasks": {"RUNNING": 2}},
        ]
    },
    "/jobs/j/config": {"execution-config": {"user-config": {}}},
    "/jobs/j/metrics?get=numRestarts": [{"id": "numRestarts", "value": "3"}],
    "/jobs/j/checkpoints": {
        "counts": {"completed": 5, "failed": 1, "restored": 0},
        "latest": {"completed": {"latest_ack_timestamp": 2_500, "end_to_end_duration": 40}},
    },
    "/jobs/j/vertices/v/subtasks/metrics": [
        {"id": "serve.anabranch.model.m-1.requests"},
        {"id": "Source__requests.pendingRecords"},
        {"id": "serve.numRecordsIn"},
    ],
    "/jobs/j/vertices/w/subtasks/metrics": [{"id": "aggregate.anabranch.model.m-1.requests"}],
    "/jobs/j/vertices/v/subtasks/metrics?agg=sum&get=serve.anabranch.model.m-1.requests": [
        {"id": "serve.anabranch.model.m-1.requests", "sum": 6.0}
    ],
    "/jobs/j/vertices/w/subtasks/metrics?agg=sum&get=aggregate.anabranch.model.m-1.requests": [
        {"id": "aggregate.anabranch.model.m-1.requests", "sum": 4.0}
    ],
    "/jobs/j/vertices/v/subtasks/metrics?agg=max,sum&get="
    "busyTimeMsPerSecond,backPressuredTimeMsPerSecond,Source__requests.pendingRecords": [
        {"id": "Source__requests.pendingRecords", "max": 5.0, "sum": 9.0}
    ],
    "/jobs/j/vertices/w/subtasks/metrics?agg=max,sum&get=busyTimeMsPerSecond,backPressuredTimeMsPerSecond": [],
}


def answer(rest: FlinkRest, path: str) -> Any:
    if path not in ANSWERS:
        raise StackError(f"{rest.url} has no {path}")
    return json.loads(json.dumps(ANSWERS[path]))


def test_read_cluster_adds_operators_and_leaves_ended_jobs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [FlinkJob("j", "ocr", "RUNNING", 2), FlinkJob("gone", "new", "CREATED", 1), FlinkJob("e", "o", "FAILED", 0)]
    monkeypatch.setattr(FlinkRest, "get", answer)
    monkeypatch.setattr(FlinkRest, "jobs", lambda _: jobs)
    assert read_cluster(FlinkRest("http://127.0.0.1:8081")) == ClusterReading(
        is_up=True,
        jobs=[
            JobReading(
                name="ocr",
                is_running=True,
                counts={("model", "m-1", "requests"): 10.0},
                restarts=3,
                waiting=9,
                checkpoints={"completed": 5, "failed": 1},
                checkpoint_s=2.5,
                checkpoint_took_s=0.04,
            ),
            JobReading(name="new", is_running=False),
        ],
    )


def test_read_cluster_that_does_not_answer_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: FlinkRest) -> None:
        raise StackError("no answer")

    monkeypatch.setattr(FlinkRest, "jobs", refuse)
    assert read_cluster(FlinkRest("http://127.0.0.1:8081")) == ClusterReading(is_up=False)


def test_queries_of_alerts_and_panels_name_exported_metrics() -> None:
    exported = {"up"}
    for family in families():
        ends = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
        exported |= {family.name + end for end in ends}
    queries = [alert.expression for alert in ALERTS] + [query for panel in PANELS for query in panel.queries]
    named = {name for query in queries for name in re.findall(r"\b(anabranch_\w+|up)\b", query)}
    assert len(named) > 15
    assert named <= exported


def test_dashboard_panels_do_not_overlap() -> None:
    places = [tuple(panel["gridPos"].values()) for panel in dashboard()["panels"]]
    assert len(set(places)) == len(places) == len(PANELS)
