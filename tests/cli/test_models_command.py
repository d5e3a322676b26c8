"""`anabranch models` on a repository, with and without a job."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
from typer.testing import CliRunner, Result

from anabranch.cli import app
from anabranch.commands.repository import models
from anabranch.flink_job.config import Config
from anabranch.flink_job.model_repository.repository import read_repository
from anabranch.flink_job.model_summary import JOB_PARAMETER, decode_summaries, encode_summaries, summarize
from anabranch.stack.flink.rest import FlinkJob, FlinkRest
from tests.flink.models import FLOAT, Tensors, _write, write_plan

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart" / "models" / "colours"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """`digits` with the model of the quickstart, `panel` as an ensemble of it, and `cut` in two stages."""
    folder = tmp_path / "models"
    for number in ("1", "2"):
        shutil.copytree(QUICKSTART / "1", folder / "digits" / number)
    (folder / "digits" / "model.toml").write_text("[batching]\nmax_rows = 8\nmax_delay_ms = 2.5\n")
    (folder / "panel").mkdir()
    (folder / "panel" / "model.toml").write_text(
        '[ensemble]\nmembers = ["digits@1", "digits@2"]\noutputs = ["confidence"]\n'
    )
    x: Tensors = {"x": (FLOAT, ["n", 4])}
    h: Tensors = {"h": (FLOAT, ["n", 4])}
    y: Tensors = {"y": (FLOAT, ["n", 4])}
    version = folder / "cut" / "1"
    _write(version, ["Relu x h", "Neg h y"], x, y, [])
    _write(version, ["Relu x h"], x, h, [], file="stage-0.onnx")
    _write(version, ["Neg h y"], h, y, [], file="stage-1.onnx")
    write_plan(version, [(["x"], ["h"], 1), (["h"], ["y"], 2)])
    (folder / "cut" / "model.toml").write_text('stages = "plan.json"\n')
    return folder


def run(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "180"}).invoke(app, ["models", *map(str, arguments)])


def serve(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Lets a cluster run an old job, and a new one with the given summaries."""

    def get(_: FlinkRest, path: str) -> Any:
        parameters = {JOB_PARAMETER: text} if path == "/jobs/new/config" else {}
        return {"execution-config": {"user-config": parameters}}

    jobs = [FlinkJob("gone", "gone", "FAILED", 3), FlinkJob("other", "other", "RUNNING", 2)]
    monkeypatch.setattr(FlinkRest, "jobs", lambda _: [*jobs, FlinkJob("new", "serving", "RUNNING", 1)])
    monkeypatch.setattr(FlinkRest, "get", get)


def test_models_without_stack_lists_repository(repository: Path, tmp_path: Path) -> None:
    result = run("--model-repository", repository, "--data-dir", tmp_path / "stack", "-o", "json")
    assert result.exit_code == 0, result.output
    listed = json.loads(result.stdout)
    assert (listed["repository"], listed["job"]) == (str(repository), None)
    cut, first, second, panel = listed["models"]
    assert [each["version"] for each in (first, second)] == ["1", "2"]
    assert [each["kind"] for each in (cut, first, panel)] == ["stages", "model", "ensemble"]
    assert cut["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [None, 4], "any_rank": False}]
    assert first["batching"]["verdict"]["level"] == "strangers"
    assert [(part["replicas"], part["outputs"][0]["name"]) for part in cut["parts"]] == [(1, "h"), (2, "y")]
    assert (first["batching"]["max_rows"], first["batching"]["max_delay_ms"]) == (8, 2.5)
    assert (panel["members"], panel["merge"]) == (["digits/1", "digits/2"], "mean")
    assert {each["state"] for each in listed["models"]} == {None}


def test_models_table_shows_signatures_and_parts(repository: Path, tmp_path: Path) -> None:
    result = run("--model-repository", repository, "--data-dir", tmp_path / "stack")
    assert result.exit_code == 0, result.output
    text = re.sub(r"\s+", " ", result.stdout)
    for expected in (
        "x FP32 [any, 4]",
        "stage 1 -> stage 2 x 2",
        "mean of digits/1, digits/2",
        "up to 8 rows",
        "rows of any requests",
    ):
        assert expected in text
    assert "No job runs: start one with `anabranch run`" in text


def test_models_with_job_compares_states(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = summarize(read_repository(repository, Config().defaults))
    serve(monkeypatch, encode_summaries([model for model in served if model.name != "panel"]))
    path = repository / "digits" / "1" / "model.onnx"
    changed = onnx.load(path)
    changed.doc_string = "trained again"
    onnx.save(changed, path)
    shutil.rmtree(repository / "cut")
    result = run("--model-repository", repository, "--flink-url", "http://127.0.0.1:1", "-o", "json")
    assert result.exit_code == 0, result.output
    listed = json.loads(result.stdout)
    assert listed["job"] == {"job_id": "new", "name": "serving"}
    states = {(each["name"], each["version"]): each["state"] for each in listed["models"]}
    assert states == {
        ("cut", "1"): "only_in_job",
        ("digits", "1"): "changed",
        ("digits", "2"): "served",
        ("panel", "1"): "not_served",
    }
    table = run("--model-repository", repository, "--flink-url", "http://127.0.0.1:1").stdout
    assert "The job serving serves 3; start it again to serve 2 new or changed." in re.sub(r"\s+", " ", table)


def test_models_without_repository_lists_job(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path / "models" / "digits")
    serve(monkeypatch, encode_summaries(summarize(read_repository(repository, Config().defaults))))
    listed = json.loads(run("--flink-url", "http://127.0.0.1:1", "-o", "json").stdout)
    assert {each["state"] for each in listed["models"]} == {"only_in_job"}


def test_models_missing_repository_is_an_error(tmp_path: Path) -> None:
    result = run("--model-repository", tmp_path / "nowhere", "--data-dir", tmp_path)
    assert result.exit_code == 1
    assert result.stderr.startswith("config_error: no model repository at ")


def test_summaries_survive_encoding(repository: Path) -> None:
    summaries = summarize(read_repository(repository, Config().defaults))
    assert decode_summaries(encode_summaries(summaries)) == summaries
    assert models.compare(summaries, None)[0].name == "cut"
