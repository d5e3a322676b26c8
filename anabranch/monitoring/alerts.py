"""Alerts for Prometheus, and the configuration that scrapes a gateway."""

from __future__ import annotations

from typing import Any, NamedTuple

from anabranch.schemas.errors import DeadlineExceeded, Overloaded

GROUP = "anabranch"


class Alert(NamedTuple):
    """One alert.

    Attributes:
        holds: Time for which the expression must hold.
        summary: What is wrong, with labels as `{{ $labels.NAME }}`.
        action: What to do.
    """

    name: str
    expression: str
    holds: str
    severity: str
    summary: str
    action: str


_JOB = "{{ $labels.flink_job }}"
_FAILED = 'sum by (flink_job) (rate(anabranch_request_failure_total{{code="{}"}}[5m]))'
_LATE, _REFUSED = (_FAILED.format(error.code) for error in (DeadlineExceeded, Overloaded))

ALERTS = (
    Alert(
        "AnabranchGatewayDown",
        f'up{{job="{GROUP}"}} == 0',
        "1m",
        "critical",
        "the gateway {{ $labels.instance }} does not answer",
        "see whether its process runs: `anabranch status`",
    ),
    Alert(
        "AnabranchFlinkDown",
        "anabranch_flink_up == 0",
        "1m",
        "critical",
        "Flink's JobManager does not answer",
        "see whether its process runs: `anabranch status`",
    ),
    Alert(
        "AnabranchNoJob",
        "anabranch_jobs_running == 0",
        "2m",
        "critical",
        "no job runs, so that requests wait in Kafka",
        "read its failure with `anabranch status`, then `anabranch run`",
    ),
    Alert(
        "AnabranchRestarts",
        "increase(anabranch_job_restarts_total[15m]) > 2",
        "0m",
        "warning",
        f"the job {_JOB} restarts again and again",
        "read the cause with `anabranch status` and `anabranch logs --errors`",
    ),
    Alert(
        "AnabranchCheckpointsFail",
        'increase(anabranch_checkpoints_total{state="failed"}[10m]) > 0 '
        'unless on (flink_job) increase(anabranch_checkpoints_total{state="completed"}[10m]) > 0',
        "1m",
        "critical",
        f"checkpoints of the job {_JOB} fail: after a crash it would begin where the last one was",
        "read the cause with `anabranch status`",
    ),
    Alert(
        "AnabranchBacklogGrows",
        "anabranch_waiting_records > 1000 and deriv(anabranch_waiting_records[10m]) > 0",
        "10m",
        "warning",
        f"more requests arrive than the job {_JOB} serves: {{{{ $value }}}} wait in Kafka",
        "add TaskManagers, then `anabranch rescale`",
    ),
    Alert(
        "AnabranchRefuses",
        f"{_REFUSED} > 0",
        "5m",
        "warning",
        f"the job {_JOB} refuses requests, since its queues are full",
        "add TaskManagers, or send less",
    ),
    Alert(
        "AnabranchLate",
        f"{_LATE} > 0.05 * (sum by (flink_job) (rate(anabranch_request_success_total[5m])) + {_LATE})",
        "5m",
        "warning",
        f"more than 5 % of the requests to the job {_JOB} miss their deadline",
        "look for the slow phase with `anabranch top`",
    ),
    Alert(
        "AnabranchDefects",
        "increase(anabranch_defects_total[5m]) > 0",
        "0m",
        "warning",
        f"the job {_JOB} met a defect in the phase {{{{ $labels.phase }}}}",
        "the task's log has the traceback: `anabranch logs --errors`",
    ),
    Alert(
        "AnabranchModelLeftOut",
        "anabranch_models_left_out > 0",
        "1m",
        "warning",
        f"the job {_JOB} does not serve {{{{ $value }}}} of its models",
        "read the reason with `anabranch status`, and correct the model",
    ),
    Alert(
        "AnabranchRecordsLost",
        "increase(anabranch_exchange_lost_total[5m]) > 0",
        "0m",
        "critical",
        f"tasks of the job {_JOB} could not read records of other tasks",
        "read `anabranch logs --errors`",
    ),
)


def rules() -> dict[str, Any]:
    """Return the rule file."""
    return {
        "groups": [
            {
                "name": GROUP,
                "rules": [
                    {
                        "alert": alert.name,
                        "expr": alert.expression,
                        "for": alert.holds,
                        "labels": {"severity": alert.severity},
                        "annotations": {"summary": alert.summary, "description": f"To do: {alert.action}."},
                    }
                    for alert in ALERTS
                ],
            }
        ]
    }


def scraping(gateways: list[str], rule_file: str = "alerts.yml") -> dict[str, Any]:
    """Return Prometheus' configuration.

    Args:
        gateways: `HOST:PORT` of each.
    """
    return {
        "global": {"scrape_interval": "15s", "evaluation_interval": "15s"},
        "rule_files": [rule_file],
        "scrape_configs": [{"job_name": GROUP, "static_configs": [{"targets": gateways}]}],
    }
