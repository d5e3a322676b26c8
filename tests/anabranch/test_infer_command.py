import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from anabranch.cli import app
from anabranch.schemas.latency_breakdown import PHASES
from anabranch.schemas.messages import ErrorResponse, InferRequest, InferResponse
from anabranch.schemas.tensors import Tensor
from anabranch.testing import Answer, FakeJob
from tests.anabranch.conftest import KafkaJob


@pytest.fixture
def job(kafka_job: KafkaJob) -> FakeJob:
    return kafka_job


@pytest.fixture
def config(kafka_job: KafkaJob, tmp_path: Path) -> Path:
    path = tmp_path / "anabranch.toml"
    topics = kafka_job.topics
    path.write_text(
        f'[kafka]\nbootstrap_servers = "{topics.bootstrap_servers}"\n'
        f'requests_topic = "{topics.requests_topic}"\nresponses_topic = "{topics.responses_topic}"\n'
    )
    return path


def infer(*arguments: str | Path) -> Result:
    return CliRunner(env={"COLUMNS": "160"}).invoke(app, ["infer", *map(str, arguments)])


def test_infer_command_files_print_a_table(config: Path, job: FakeJob, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(8, dtype=np.float32).reshape(2, 4) / 3)
    np.save(tmp_path / "y.npy", np.array(["an", "anabranch"]))
    options = ["--version", "3", "--priority", "1", "--deadline-ms", "5000", "--select", "x", "--select", "y:0"]
    result = infer(
        "m", "--input", f"x={tmp_path / 'x.npy'}", "--input", f"y:0={tmp_path / 'y.npy'}", "--config", config, *options
    )
    assert result.exit_code == 0, result.output
    for expected in ("FP32", "[2, 4]", "0, 0.33333, 0.66667", ", …", "BYTES", "an, anabranch", "m, version 3: ", " ms"):
        assert expected in result.stdout
    request = job.requests[-1]
    assert dict(request.parameters) == {"priority": 1, "timeout": 5_000_000}
    assert request.outputs == ("x", "y:0")


def test_infer_command_single_file_needs_no_name(config: Path, job: FakeJob, tmp_path: Path) -> None:
    folder = tmp_path / "a=b"
    folder.mkdir()
    np.save(folder / "x.npy", np.zeros((1, 2), np.int64))
    result = infer("m", "--input", folder / "x.npy", "--config", config)
    assert result.exit_code == 0, result.output
    assert [tensor.name for tensor in job.requests[-1].inputs] == [""]


def test_infer_command_json_request_prints_json(config: Path) -> None:
    request = {
        "inputs": [{"name": "x", "datatype": "INT32", "shape": [1, 2], "data": [[1, 2]]}],
        "parameters": {"tenant": "a"},
    }
    result = infer("m", "--request", json.dumps(request), "--config", config, "-o", "json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer["outputs"] == [{"name": "x", "datatype": "INT32", "shape": [1, 2], "data": [1, 2]}]
    assert (answer["model_name"], answer["model_version"]) == ("m", "1")


def test_infer_request_from_file_and_stdin(config: Path, job: FakeJob, tmp_path: Path) -> None:
    text = json.dumps({"inputs": [{"name": "x", "datatype": "INT32", "shape": [1], "data": [7]}]})
    (tmp_path / "request.json").write_text(text)
    for source in (str(tmp_path / "request.json"), "-"):
        runner = CliRunner(env={"COLUMNS": "160"})
        result = runner.invoke(app, ["infer", "m", "--request", source, "--config", str(config)], input=text)
        assert result.exit_code == 0, result.output
        assert job.requests[-1].inputs[0].to_array().tolist() == [7]


def test_infer_command_output_dir_has_files(config: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(3, dtype=np.float16))
    np.save(tmp_path / "y.npy", np.array([b"a", b"bc"]))
    out = tmp_path / "out" / "deep"
    inputs = ["--input", f"x={tmp_path / 'x.npy'}", "--input", f"a:0={tmp_path / 'y.npy'}"]
    result = infer("m", *inputs, "--config", config, "--output-dir", out)
    assert result.exit_code == 0, result.output
    np.testing.assert_array_equal(np.load(out / "x.npy"), np.arange(3, dtype=np.float16))
    assert np.load(out / "a_0.npy").tolist() == [b"a", b"bc"]


def test_infer_command_explain_draws_phases(config: Path, job: FakeJob, tmp_path: Path) -> None:
    def explained(request: InferRequest) -> list[Answer]:
        told = {f"{stage}_us": 1_000 * place for place, stage in enumerate(PHASES)} | {"shards": 3}
        return [InferResponse("m", "1", request.id, request.inputs, told)]

    job.answer = explained
    np.save(tmp_path / "x.npy", np.zeros((1, 1)))
    result = infer("m", "--input", tmp_path / "x.npy", "--config", config, "--explain")
    assert result.exit_code == 0, result.output
    assert job.requests[-1].parameters["explain"] is True
    lines = {line.split()[0]: line for line in result.stdout.splitlines() if line.strip()}
    assert [name for name in lines if name in PHASES] == list(PHASES)
    assert "6.00 ms" in lines["encode"]
    assert lines["encode"].count("█") > lines["batch"].count("█") > lines["broker"].count("█") == 0
    assert "return" in lines
    assert lines["shards:"] == "shards: 3"
    assert "_us" not in result.stdout


def test_infer_command_partial_answer_names_missing_rows(config: Path, job: FakeJob, tmp_path: Path) -> None:
    def half(request: InferRequest) -> list[Answer]:
        tensor = Tensor.from_array("y", np.zeros((1, 1)))
        return [InferResponse("m", "1", request.id, (tensor,), {"missing_rows": "1-3"})]

    job.answer = half
    np.save(tmp_path / "x.npy", np.zeros((4, 1)))
    assert "missing_rows: 1-3" in infer("m", "--input", tmp_path / "x.npy", "--config", config).stdout


def test_infer_command_failure_is_one_line_with_code(config: Path, job: FakeJob, tmp_path: Path) -> None:
    job.answer = lambda request: [ErrorResponse(request.id, "unknown_model", "no model 'm' is served")]
    np.save(tmp_path / "x.npy", np.zeros(1))
    result = infer("m", "--input", tmp_path / "x.npy", "--config", config)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "unknown_model: no model 'm' is served\n"


def test_infer_command_without_answer_times_out(config: Path, job: FakeJob, tmp_path: Path) -> None:
    job.answer = lambda request: []
    np.save(tmp_path / "x.npy", np.zeros(1))
    result = infer("m", "--input", tmp_path / "x.npy", "--config", config, "--timeout-s", "0.2")
    assert result.exit_code == 1
    assert result.stderr.startswith("no_answer: no answer from model 'm' within 0.2 s")


def test_infer_command_without_broker_is_one_line(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros(1))
    result = infer("m", "--input", tmp_path / "x.npy", "--bootstrap-servers", "127.0.0.1:1")
    assert result.exit_code == 1
    assert result.stderr.startswith(
        "broker_unreachable: no Kafka broker at 127.0.0.1:1: is the stack up (anabranch up)"
    )
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--input", "nowhere.npy"], "unusable_argument: cannot read nowhere.npy (No such file or directory): give"),
        (["--input", __file__], f"unusable_argument: {__file__} is not a .npy file ("),
        (["--request", '{"inputs": ['], "unreadable: the message is not JSON: "),
        (["--request", "[]"], "unreadable: "),
        (["--request", "nowhere.json"], "unusable_argument: cannot read --request 'nowhere.json' (No such"),
        (["--request", __file__], "unreadable: "),
        (["--request", '{"inputs": [{"name": "x"}]}'], "malformed_request: the JSON message breaks the protocol: "),
        (["--request", '{"inputs": []}', "--config", "nowhere.toml"], "config_error: cannot read the configuration"),
    ],
)
def test_infer_command_unusable_request_is_one_line(arguments: list[str], line: str) -> None:
    result = infer("m", *arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith(line)
    assert len(result.stderr.splitlines()) == 1


def test_infer_command_ambiguous_inputs_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.zeros(1), b=np.zeros(1))
    assert "holds several arrays" in infer("m", "--input", tmp_path / "x.npz").stderr
    np.save(tmp_path / "x.npy", np.zeros(1))
    twice = ["--input", f"x={tmp_path / 'x.npy'}"] * 2
    assert "--input 'x' is given twice: give each input once" in infer("m", *twice).stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the request has no inputs: give --input"),
        (["--input", "x.npy", "--request", "{}"], "--input and --request exclude each other: give one of them"),
    ],
)
def test_infer_command_without_one_source_is_refused(arguments: list[str], message: str) -> None:
    result = infer("m", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
