"""`anabranch prepare` cuts missing stages and prints their folders."""

import shutil
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
from typer.testing import CliRunner, Result

from anabranch import cli
from anabranch.demo.features import model_path
from anabranch.flink_job.model_repository.store import StoredModels
from anabranch.partition.profiling import profile, stage_timing
from anabranch.stack.flink.rest import FlinkJob


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(profile, "_BUDGET_S", 0.1)
    monkeypatch.setattr(stage_timing, "_BUDGET_S", 0.1)
    (tmp_path / "models" / "m" / "1").mkdir(parents=True)
    shutil.copyfile(model_path(), tmp_path / "models" / "m" / "1" / "model.onnx")
    (tmp_path / "models" / "m" / "model.toml").write_text("stages = 2\n")
    return tmp_path / "models"


def run(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "160"}).invoke(cli.app, ["prepare", *map(str, arguments)])


@pytest.mark.slow
def test_prepare_missing_stages_are_cut_once(repository: Path) -> None:
    stages = repository / "m" / "1" / "stages-2"
    for _ in range(2):
        result = run("--model-repository", repository)
        assert result.exit_code == 0, result.output
        assert f"m/1: 2 stages in {stages}" in result.stdout
        assert result.stdout.endswith("Every model is prepared.\n")
    assert sorted(path.name for path in stages.iterdir()) == ["plan.json", "stage-0.onnx", "stage-1.onnx"]


@pytest.mark.slow
def test_prepare_configured_repository_is_used(repository: Path, tmp_path: Path) -> None:
    config = tmp_path / "job.toml"
    config.write_text(f'[models]\nrepository = "{repository}"\n')
    assert run("--config", config).exit_code == 0
    assert (repository / "m" / "1" / "stages-2" / "plan.json").exists()


@pytest.mark.slow
def test_prepare_failure_is_one_line(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (repository / "m" / "model.toml").write_text("stages = 999\n")
    monkeypatch.setattr(sys, "argv", ["anabranch", "prepare", "--model-repository", str(repository)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert "cannot be cut into 999 stages" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_run_prepares_missing_stages_first(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from anabranch import topics  # noqa: PLC0415 - Kafka and Flink take a second
    from anabranch.flink_job import job  # noqa: PLC0415

    served: list[StoredModels] = []

    def start(*_: object, catalog: StoredModels, **__: object) -> Mock:
        served.append(catalog)
        return Mock(**{"status.return_value": "RUNNING", "flink_url": "http://flink:1", "job_id": "j"})

    monkeypatch.setattr(job, "start", start)
    monkeypatch.setattr(topics, "make_topics", Mock())
    monkeypatch.setattr(topics, "fit_to_topics", lambda config: config)
    monkeypatch.setattr(topics, "idle_task_count", Mock(return_value=0))
    job_of_cluster = FlinkJob("j", "inference", "RUNNING", 0, {"total": 2, "running": 2})
    monkeypatch.setattr("anabranch.jobs.keeper.FlinkRest.jobs", lambda _: [job_of_cluster])
    monkeypatch.setattr("anabranch.jobs.keeper.FlinkRest.get", lambda *_: {"vertices": []})
    monkeypatch.setattr("anabranch.stack.kafka.transactions.end_transactions", Mock())
    arguments = ["run", "--mini-cluster", "--model-repository", str(repository), "--data-dir", str(tmp_path / "stack")]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    [stored] = served
    assert len(stored.catalog.find("m", "").stages) == 2
