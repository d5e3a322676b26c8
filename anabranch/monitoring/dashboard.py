"""A dashboard for Grafana."""

from __future__ import annotations

from typing import Any, NamedTuple

_WIDTH, _HEIGHT, _COLUMNS = 12, 8, 2


class Panel(NamedTuple):
    """One panel.

    Attributes:
        queries: Legend by expression.
        unit: Grafana's name of the unit.
    """

    title: str
    queries: dict[str, str]
    unit: str = "short"


_BUCKETS = "sum by (model, version, le) (rate(anabranch_request_duration_seconds_bucket[5m]))"
_BY_MODEL = "{{model}}/{{version}}"


def _mean(phase: str) -> str:
    return f"sum(rate(anabranch_{phase}_duration_seconds_total[5m])) / sum(rate(anabranch_request_success_total[5m]))"


PANELS = (
    Panel(
        "Requests answered, by model",
        {"sum by (model, version) (rate(anabranch_request_success_total[5m]))": _BY_MODEL},
        "reqps",
    ),
    Panel(
        "Requests failed, by code", {"sum by (code) (rate(anabranch_request_failure_total[5m]))": "{{code}}"}, "reqps"
    ),
    Panel("Latency p50", {f"histogram_quantile(0.5, {_BUCKETS})": _BY_MODEL}, "s"),
    Panel("Latency p99", {f"histogram_quantile(0.99, {_BUCKETS})": _BY_MODEL}, "s"),
    Panel(
        "Mean time of each phase",
        {
            _mean(family): family.replace("_", " ")
            for family in ("broker", "admit", "queue", "batch", "compute_infer", "encode")
        },
        "s",
    ),
    Panel(
        "Rows of a batch, by model",
        {
            "sum by (model, version) (rate(anabranch_inference_count_total[5m])) / "
            "sum by (model, version) (rate(anabranch_inference_exec_count_total[5m]))": _BY_MODEL
        },
    ),
    Panel("Records that wait in Kafka", {"anabranch_waiting_records": "{{flink_job}}"}),
    Panel(
        "Requests in flight at gateways, and their rate",
        {
            "anabranch_gateway_in_flight": "in flight at {{instance}}",
            "sum by (outcome) (rate(anabranch_gateway_requests_total[5m]))": "{{outcome}} per second",
        },
    ),
    Panel("Age of the last checkpoint", {"time() - anabranch_checkpoint_timestamp_seconds": "{{flink_job}}"}, "s"),
    Panel("Duration of the last checkpoint", {"anabranch_checkpoint_duration_seconds": "{{flink_job}}"}, "s"),
    Panel(
        "Jobs, restarts and models left out",
        {
            "anabranch_jobs_running": "jobs that run",
            "anabranch_job_restarts_total": "restarts of {{flink_job}}",
            "anabranch_models_left_out": "models left out of {{flink_job}}",
        },
    ),
    Panel("Defects, by phase", {"sum by (phase) (increase(anabranch_defects_total[5m]))": "{{phase}}"}),
)


def dashboard() -> dict[str, Any]:
    """Return Grafana's model of the dashboard; its data source is chosen at import."""
    source = {"type": "prometheus", "uid": "${source}"}
    panels = [
        {
            "id": number + 1,
            "type": "timeseries",
            "title": panel.title,
            "datasource": source,
            "gridPos": {
                "x": _WIDTH * (number % _COLUMNS),
                "y": _HEIGHT * (number // _COLUMNS),
                "w": _WIDTH,
                "h": _HEIGHT,
            },
            "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
            "targets": [
                {"refId": chr(ord("A") + at), "expr": expression, "legendFormat": legend, "datasource": source}
                for at, (expression, legend) in enumerate(panel.queries.items())
            ],
        }
        for number, panel in enumerate(PANELS)
    ]
    return {
        "uid": "anabranch",
        "title": "Anabranch",
        "schemaVersion": 39,
        "refresh": "15s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": [{"name": "source", "type": "datasource", "query": "prometheus"}]},
        "panels": panels,
    }
