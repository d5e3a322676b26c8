"""Metrics of the jobs of a Flink cluster, by the names that Triton has for the same.

Flink's counters become counters, summed over the tasks of a job: a restart sets all of them back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from anabranch.jobs.activity import buckets_of, by_model, by_path, wanted
from anabranch.jobs.control import ENDED
from anabranch.jobs.left_out import left_out_models
from anabranch.jobs.operators import operator_loads
from anabranch.operators.core.metrics import LIMITS_US, TOTAL
from anabranch.schemas.errors import DeadlineExceeded, Overloaded
from anabranch.schemas.latency_breakdown import PHASES
from anabranch.stack.errors import StackError
from anabranch.stack.flink.rest import FlinkJob, FlinkRest

CONTENT_TYPE = CONTENT_TYPE_LATEST
_MODEL = ("flink_job", "model", "version")
#: Two phases have a name in Triton.
_DURATIONS = {
    "broker": "anabranch_broker_duration_seconds_total",
    "admit": "anabranch_admit_duration_seconds_total",
    "queue": "anabranch_queue_duration_seconds_total",
    "batch": "anabranch_batch_duration_seconds_total",
    "session": "anabranch_compute_infer_duration_seconds_total",
    "merge": "anabranch_merge_duration_seconds_total",
    "encode": "anabranch_encode_duration_seconds_total",
}
_COUNTS = {
    "requests": ("anabranch_request_success_total", "Requests that were answered with outputs."),
    "rows": ("anabranch_inference_count_total", "Rows that were answered."),
    "batches": ("anabranch_inference_exec_count_total", "Batches that were run."),
    "padded_elements": ("anabranch_padded_elements_total", "Elements of padded inputs."),
    "filled_elements": ("anabranch_filled_elements_total", "Padding among the elements of padded inputs."),
}
#: Alerts see a first increase only from a value before.
_ZEROS: dict[tuple[str, ...], float] = {
    **{("error", code, "requests"): 0.0 for code in (DeadlineExceeded.code, Overloaded.code)},
    **{("phase", phase, "defects"): 0.0 for phase in PHASES},
    ("exchange", "lost"): 0.0,
}


class JobReading(msgspec.Struct, frozen=True, kw_only=True):
    """One reading of a job.

    Attributes:
        counts: Sums over all tasks by path, see `anabranch.operators.core.metrics`.
        waiting: Records in Kafka that it has not read.
        checkpoints: Number of checkpoints by state.
        checkpoint_s, checkpoint_took_s: End of the last completed one since the epoch, and its duration.
        left_out: Models that it does not serve.
    """

    name: str
    is_running: bool
    counts: dict[tuple[str, ...], float] = {}
    restarts: int = 0
    waiting: int = 0
    checkpoints: dict[str, int] = {}
    checkpoint_s: float | None = None
    checkpoint_took_s: float = 0.0
    left_out: int = 0


class ClusterReading(msgspec.Struct, frozen=True, kw_only=True):
    """One reading of a cluster.

    Attributes:
        is_up: False if Flink does not answer.
        jobs: All that have not ended.
    """

    is_up: bool
    jobs: list[JobReading] = []


def read_cluster(flink: FlinkRest) -> ClusterReading:
    """Read the jobs of a cluster."""
    try:
        listed = flink.jobs()
    except StackError:
        return ClusterReading(is_up=False)
    found = []
    for job in listed:
        if job.state not in ENDED:
            try:
                found.append(_read_job(flink, job))
            except StackError:
                # It ended meanwhile, or starts.
                found.append(JobReading(name=job.name, is_running=False))
    return ClusterReading(is_up=True, jobs=found)


def _read_job(flink: FlinkRest, job: FlinkJob) -> JobReading:
    statistics = flink.get(f"/jobs/{job.job_id}/checkpoints")
    completed = (statistics.get("latest") or {}).get("completed") or {}
    ended_ms = completed.get("latest_ack_timestamp")
    restarts = {each["id"]: each["value"] for each in flink.get(f"/jobs/{job.job_id}/metrics?get=numRestarts")}
    return JobReading(
        name=job.name,
        is_running=job.state == "RUNNING",
        counts=by_path(flink.sums(job.job_id, wanted)),
        restarts=int(float(restarts.get("numRestarts", 0))),
        waiting=sum(load.waiting or 0 for load in operator_loads(flink, job.job_id)),
        checkpoints={state: statistics["counts"][state] for state in ("completed", "failed")},
        checkpoint_s=ended_ms / 1000 if ended_ms else None,
        checkpoint_took_s=completed.get("end_to_end_duration", 0) / 1000,
        left_out=len(left_out_models(flink, job.job_id)),
    )


class GatewayReading(msgspec.Struct, frozen=True, kw_only=True):
    """One reading of a gateway.

    Attributes:
        statistics: Counts by model, as Triton's statistics have them.
        in_flight: Requests without answer.
    """

    statistics: list[dict[str, Any]]
    in_flight: int


def exposition(gateway: GatewayReading, cluster: ClusterReading | None) -> bytes:
    """Write all metrics in Prometheus' text format.

    Args:
        cluster: None if the gateway knows none.
    """
    registry = CollectorRegistry(auto_describe=False)
    families = [*_of_gateway(gateway), *(_of_cluster(cluster) if cluster else ())]
    registry.register(_Collected(families))
    return generate_latest(registry)


def families() -> list[Metric]:
    """Return all metrics without values."""
    return [
        *_of_gateway(GatewayReading(statistics=[], in_flight=0)),
        *_of_cluster(ClusterReading(is_up=True)),
    ]


class _Collected(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _of_gateway(gateway: GatewayReading) -> Iterator[Metric]:
    labels = ["model", "version", "outcome"]
    requests = CounterMetricFamily(
        "anabranch_gateway_requests_total", "Requests that this gateway answered.", labels=labels
    )
    spent = CounterMetricFamily(
        "anabranch_gateway_request_duration_seconds_total",
        "Total time of these requests in this gateway.",
        labels=labels,
    )
    for model in gateway.statistics:
        for outcome, counted in model["inference_stats"].items():
            values = [model["name"], model["version"], outcome]
            requests.add_metric(values, counted["count"])
            spent.add_metric(values, counted["ns"] / 1e9)
    yield requests
    yield spent
    yield GaugeMetricFamily(
        "anabranch_gateway_in_flight", "Requests of this gateway without answer.", value=gateway.in_flight
    )


def _of_cluster(cluster: ClusterReading) -> Iterator[Metric]:
    yield GaugeMetricFamily("anabranch_flink_up", "1 if Flink answers.", value=cluster.is_up)
    if cluster.is_up:
        running = sum(job.is_running for job in cluster.jobs)
        yield GaugeMetricFamily("anabranch_jobs_running", "Jobs that run.", value=running)
        yield from _of_jobs(cluster.jobs)
        yield from _of_models(cluster.jobs)
        yield from _of_paths(cluster.jobs)


def _of_jobs(jobs: list[JobReading]) -> Iterator[Metric]:
    restarts = CounterMetricFamily(
        "anabranch_job_restarts_total", "Restarts of a job after failures.", labels=["flink_job"]
    )
    waiting = GaugeMetricFamily(
        "anabranch_waiting_records", "Records in Kafka that a job has not read.", labels=["flink_job"]
    )
    left_out = GaugeMetricFamily("anabranch_models_left_out", "Models that a job does not serve.", labels=["flink_job"])
    checkpoints = CounterMetricFamily(
        "anabranch_checkpoints_total", "Checkpoints of a job.", labels=["flink_job", "state"]
    )
    ended = GaugeMetricFamily(
        "anabranch_checkpoint_timestamp_seconds", "End of the last completed checkpoint.", labels=["flink_job"]
    )
    took = GaugeMetricFamily(
        "anabranch_checkpoint_duration_seconds", "Duration of the last completed checkpoint.", labels=["flink_job"]
    )
    for job in jobs:
        restarts.add_metric([job.name], job.restarts)
        waiting.add_metric([job.name], job.waiting)
        left_out.add_metric([job.name], job.left_out)
        for state, count in job.checkpoints.items():
            checkpoints.add_metric([job.name, state], count)
        if job.checkpoint_s is not None:
            ended.add_metric([job.name], job.checkpoint_s)
            took.add_metric([job.name], job.checkpoint_took_s)
    yield from (restarts, waiting, left_out, checkpoints, ended, took)


def _of_models(jobs: list[JobReading]) -> Iterator[Metric]:
    counters = {name: CounterMetricFamily(family, text, labels=_MODEL) for name, (family, text) in _COUNTS.items()}
    durations = {
        phase: CounterMetricFamily(
            _DURATIONS[phase],
            f"Total time of answered requests in the phase `{phase}`.",
            labels=_MODEL,
        )
        for phase in PHASES
    }
    total = HistogramMetricFamily(
        "anabranch_request_duration_seconds", "From a record's timestamp to its written answer.", labels=_MODEL
    )
    for job in jobs:
        for model, counts in by_model(job.counts).items():
            name, _, version = model.rpartition("-")
            values = [job.name, name, version]
            for count, counter in counters.items():
                if (count,) in counts:
                    counter.add_metric(values, counts[(count,)])
            for phase, counter in durations.items():
                counter.add_metric(values, counts.get((phase, "us"), 0.0) / 1e6)
            total.add_metric(values, _buckets(counts), counts.get((TOTAL, "us"), 0.0) / 1e6)
    yield from (*counters.values(), *durations.values(), total)


def _buckets(counts: Mapping[tuple[str, ...], float]) -> list[tuple[str, float]]:
    limits = ("+Inf" if limit_us is None else str(limit_us / 1e6) for limit_us in LIMITS_US)
    return list(zip(limits, buckets_of(counts), strict=True))


def _of_paths(jobs: list[JobReading]) -> Iterator[Metric]:
    failed = CounterMetricFamily(
        "anabranch_request_failure_total", "Requests that were answered with an error.", labels=["flink_job", "code"]
    )
    defects = CounterMetricFamily("anabranch_defects_total", "Unexpected exceptions.", labels=["flink_job", "phase"])
    lost = CounterMetricFamily(
        "anabranch_exchange_lost_total", "Unreadable records between tasks.", labels=["flink_job"]
    )
    for job in jobs:
        for path, count in sorted((_ZEROS | job.counts).items()):
            match path:
                case ("error", code, "requests"):
                    failed.add_metric([job.name, code], count)
                case ("phase", phase, "defects"):
                    defects.add_metric([job.name, phase], count)
                case ("exchange", "lost"):
                    lost.add_metric([job.name], count)
    yield from (failed, defects, lost)
