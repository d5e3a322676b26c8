"""Each alert fires in its own scenario and in no other, by Debian's promtool."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from anabranch.monitoring.alerts import ALERTS, GROUP, rules
from tests.monitoring.debian import prometheus_folder

JOB = 'flink_job="j"'
MODEL = f'{JOB},model="m",version="1"'
#: 30 minutes of a healthy job, every 15 s.
HEALTHY = {
    f'up{{job="{GROUP}",instance="g:80"}}': "1x120",
    "anabranch_flink_up": "1x120",
    "anabranch_jobs_running": "1x120",
    f"anabranch_job_restarts_total{{{JOB}}}": "0x120",
    f'anabranch_checkpoints_total{{{JOB},state="completed"}}': "0+3x120",
    f'anabranch_checkpoints_total{{{JOB},state="failed"}}': "0x120",
    f"anabranch_waiting_records{{{JOB}}}": "5x120",
    f"anabranch_models_left_out{{{JOB}}}": "0x120",
    f"anabranch_request_success_total{{{MODEL}}}": "0+1500x120",
    f'anabranch_request_failure_total{{{JOB},code="overloaded"}}': "0x120",
    f'anabranch_request_failure_total{{{JOB},code="deadline_exceeded"}}': "0+15x120",
    f'anabranch_defects_total{{{JOB},phase="merge"}}': "0x120",
    f"anabranch_exchange_lost_total{{{JOB}}}": "0x120",
}
#: What is different later, by alert, and the labels of the alert.
CHANGED: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "AnabranchGatewayDown": ({"up{": "1x60 0x60"}, {"job": GROUP, "instance": "g:80"}),
    "AnabranchFlinkDown": ({"anabranch_flink_up": "1x60 0x60", "anabranch_jobs_running": "1x60 _x60"}, {}),
    "AnabranchNoJob": ({"anabranch_jobs_running": "1x60 0x60"}, {}),
    "AnabranchRestarts": ({"anabranch_job_restarts_total": "0x60 1+1x5 6x60"}, {}),
    "AnabranchCheckpointsFail": (
        {'state="completed"': "0+3x20 60x100", 'state="failed"': "0x60 1+1x60"},
        {"state": "failed"},
    ),
    "AnabranchBacklogGrows": ({"anabranch_waiting_records": "5x20 5+100x100"}, {}),
    "AnabranchRefuses": ({'code="overloaded"': "0x60 1+10x60"}, {}),
    "AnabranchLate": ({'code="deadline_exceeded"': "0+15x60 900+300x60"}, {}),
    "AnabranchDefects": ({"anabranch_defects_total": "0x90 1x30"}, {"phase": "merge"}),
    "AnabranchModelLeftOut": ({"anabranch_models_left_out": "0x60 1x60"}, {}),
    "AnabranchRecordsLost": ({"anabranch_exchange_lost_total": "0x90 1x30"}, {}),
}
WITHOUT_JOB = {"AnabranchGatewayDown", "AnabranchFlinkDown", "AnabranchNoJob"}
#: Values in the texts of alerts, at minute 25.
VALUES = {"AnabranchBacklogGrows": "7905", "AnabranchModelLeftOut": "1"}


def expected(name: str) -> dict[str, Any]:
    """Returns the alert of its scenario, as promtool compares it."""
    [alert] = [alert for alert in ALERTS if alert.name == name]
    labels = CHANGED[name][1] | ({} if name in WITHOUT_JOB else {"flink_job": "j"})

    def filled(text: str) -> str:
        for label, value in labels.items():
            text = text.replace(f"{{{{ $labels.{label} }}}}", value)
        return text.replace("{{ $value }}", VALUES.get(name, ""))

    return {
        "exp_labels": labels | {"severity": alert.severity},
        "exp_annotations": {
            "summary": filled(alert.summary),
            "description": filled(f"To do: {alert.action}."),
        },
    }


def scenario(changed: str | None) -> dict[str, Any]:
    series = dict(HEALTHY)
    for part, values in CHANGED[changed][0].items() if changed else ():
        [name] = [name for name in series if part in name]
        series[name] = values
    return {
        "interval": "15s",
        "name": changed or "healthy",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "alert_rule_test": [
            {
                "eval_time": "25m",
                "alertname": alert.name,
                "exp_alerts": [expected(alert.name)] if alert.name == changed else [],
            }
            for alert in ALERTS
        ],
    }


@pytest.mark.long
def test_alerts_fire_in_their_own_scenario_alone(tmp_path: Path) -> None:
    assert {alert.name for alert in ALERTS} == set(CHANGED)
    (tmp_path / "alerts.yml").write_text(json.dumps(rules()))
    tests = [scenario(name) for name in (None, *CHANGED)]
    content = {"rule_files": ["alerts.yml"], "evaluation_interval": "15s", "tests": tests}
    (tmp_path / "scenarios.yml").write_text(json.dumps(content))
    command = [str(prometheus_folder(tmp_path) / "promtool"), "test", "rules", str(tmp_path / "scenarios.yml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
