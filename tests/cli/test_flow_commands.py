"""`anabranch flow check` and `anabranch try` on a model of ONNX Runtime."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner, Result

from anabranch.cli import app
from anabranch.schemas.dead_letters import decode_dead_letter
from tests.docs.pages import ROOT, blocks

FLOW = """
[[flow]]
from = "payments"
to = "payments-scored"
model = "fraud"
key = "id"
inputs.x = ["amount", "user.age", "minute_of_day"]
outputs."fraud.score" = "probabilities[1]"
outputs."fraud.label" = "label"
deadline_ms = 1
"""
EVENT = '{"id": "a", "amount": 9.50, "user": {"age": 41}, "minute_of_day": 771}'


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration with a flow, and its model in `models` beside it."""
    weights = numpy_helper.from_array(np.array([[0.01, -0.01], [0.02, 0.01], [0.001, 0.003]], np.float32), "w")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["z"]),
        helper.make_node("Softmax", ["z"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["probabilities"], ["label"], axis=1, keepdims=0),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])
    y = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 2])
    label = helper.make_tensor_value_info("label", TensorProto.INT64, ["n"])
    graph = helper.make_graph(nodes, "fraud", [x], [y, label], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    folder = tmp_path / "models" / "fraud" / "1"
    folder.mkdir(parents=True)
    onnx.save(model, folder / "model.onnx")
    path = tmp_path / "anabranch.toml"
    path.write_text(f'[models]\nrepository = "{tmp_path / "models"}"\n{FLOW}')
    return path


def run(*arguments: object, text: str | None = None) -> Result:
    return CliRunner(env={"COLUMNS": "180"}).invoke(app, list(map(str, arguments)), input=text)


def scored(event: str, amount: float, age: float) -> str:
    z = np.array([amount, age, 771], np.float32) @ np.array([[0.01, -0.01], [0.02, 0.01], [0.001, 0.003]], np.float32)
    score = float(1 / (1 + np.exp(z[0] - z[1])))
    written = json.loads(event)
    assert abs(written["fraud"]["score"] - score) < 1e-6
    return event.partition(',"fraud":')[0] + "}"


@pytest.mark.parametrize("by", ["text", "file", "-"])
def test_check_sample_shows_tensors_and_event(config: Path, tmp_path: Path, by: str) -> None:
    (tmp_path / "event.json").write_text(EVENT)
    sample = {"text": EVENT, "file": tmp_path / "event.json", "-": "-"}[by]
    result = run("flow", "check", config, "--sample", sample, text=EVENT)
    assert result.exit_code == 0, result.output
    assert "9.5, 41, 771" in result.stderr
    assert "payments -> fraud, version 1 -> payments-scored" in result.stderr
    assert "key: a" in result.stderr
    assert scored(result.stdout.strip(), 9.5, 41) == EVENT


def test_check_bad_sample_names_the_field(config: Path) -> None:
    result = run("flow", "check", config, "--sample", '{"amount": "9.50"}')
    assert result.exit_code == 1
    assert result.stderr.strip() == "invalid_field: field 'amount' is \"9.50\", expected a number: correct it"
    result = run("flow", "check", config, "--sample", '{"amount": 1, "user": {"age": 2}, "minute_of_day": 3}')
    assert "the event becomes a dead letter, missing_field: field 'id' is missing" in result.stderr
    result = run("flow", "check", config, "--sample", "none.json")
    assert "cannot read 'none.json'" in result.stderr


def test_try_file_writes_events_in_order(config: Path, tmp_path: Path) -> None:
    bad = ['{"id": "b", "amount": 1}', "{", "[]"]
    lines = [EVENT.replace("9.50", str(number)) for number in range(600)]
    lines[10:10] = bad
    (tmp_path / "events.jsonl").write_text("\n".join(lines) + "\n\n")
    result = run(
        *("try", config, "--input", tmp_path / "events.jsonl"),
        *("--output", tmp_path / "out.jsonl", "--letters", tmp_path / "letters.jsonl"),
    )
    assert result.exit_code == 0, result.output
    assert "603 events in" in result.stderr
    assert "600 to payments-scored, 3 dead letters" in result.stderr
    found = (tmp_path / "out.jsonl").read_text().splitlines()
    good = lines[:10] + lines[13:]
    assert [scored(line, number, 41) for number, line in enumerate(found)] == good
    letters = [decode_dead_letter(line) for line in (tmp_path / "letters.jsonl").read_bytes().splitlines()]
    assert [(letter.original or b"").decode() for letter in letters] == bad


def test_try_standard_input_prints_events_and_failures(config: Path) -> None:
    result = run("try", config, "--input", "-", text=f"{EVENT}\n{{}}\n")
    assert scored(result.stdout.strip(), 9.5, 41) == EVENT
    assert "event 2: missing_field: field 'amount' is missing" in result.stderr


def test_try_with_several_flows_needs_a_name(config: Path) -> None:
    config.write_text(config.read_text() + FLOW.replace('"payments', '"orders'))
    result = run("try", config, "--input", "-", text=EVENT)
    assert "has 2 flows, expected one: name one with --flow; payments, orders" in result.stderr
    result = run("try", config, "--input", "-", "--flow", "sales", text=EVENT)
    assert "no flow of topic 'sales'; available: payments, orders" in result.stderr
    result = run("try", config, "--input", "-", "--flow", "orders", text=EVENT)
    assert "1 to orders-scored" in result.stderr


def test_page_commands_and_function_run(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = blocks(ROOT / "docs/how-to/events.md")
    [function] = [block.text for block in page if block.language == "python"]
    [commands] = [block.commands for block in page if block.language == "console"]
    (tmp_path / "features.py").write_text(function)
    (tmp_path / "events.jsonl").write_text(EVENT + "\n")
    monkeypatch.chdir(tmp_path)
    check, trial = (command.split(" ", 1)[1] for command in commands)
    sample = check.partition("--sample ")[2].strip("'")
    config.write_text(config.read_text().replace('key = "id"\n', ""))
    assert run("flow", "check", "anabranch.toml", "--sample", sample).exit_code == 0
    assert run(*trial.split()).exit_code == 0
    assert (tmp_path / "scored.jsonl").exists()
    entry = 'inputs.x = ["amount", "user.age", "minute_of_day"]'
    config.write_text(config.read_text().replace(entry, 'inputs = "features.py:of"'))
    event = '{"amount": 19.0, "limit": 2, "user": {"age": 41}, "items": [1, 2]}'
    result = run("flow", "check", "anabranch.toml", "--sample", event)
    assert "9.5, 41, 2" in result.stderr, result.output
