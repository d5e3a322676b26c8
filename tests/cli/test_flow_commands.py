"""`anabranch flow check` and `anabranch try` on a model of ONNX Runtime."""

import json
from pathlib import Path

import fastavro
import numpy as np
import onnx
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner, Result

from anabranch.cli import app
from anabranch.schemas.wire.dead_letters import decode_dead_letter
from tests.docs.pages import ROOT, blocks
from tests.ready_steps.exports import LABELS, write_text_model, write_tokenizer

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


SCHEMA = {
    "type": "record",
    "name": "Payment",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "amount", "type": "double"},
        {
            "name": "user",
            "type": ["null", {"type": "record", "name": "User", "fields": [{"name": "age", "type": "int"}]}],
        },
        {"name": "minute_of_day", "type": "int"},
    ],
}
AVRO_EVENT = '{"id": "a", "amount": 9.5, "user": {"User": {"age": 41}}, "minute_of_day": 771}'


@pytest.fixture(params=["confluent", "none"])
def avro_config(config: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    (tmp_path / "payment.avsc").write_text(json.dumps(SCHEMA))
    more = 'format = "avro"\nschema = "payment.avsc"\n'
    more += (
        'framing = "none"\n'
        if request.param == "none"
        else '[registry]\nurl = "http://127.0.0.1:1"\ntimeout_ms = 100\n'
    )
    config.write_text(config.read_text() + more)
    return config


def avro_file(path: Path, *amounts: float) -> Path:
    user = {"age": 41}
    with path.open("wb") as file:
        events = [{"id": "a", "amount": amount, "user": user, "minute_of_day": 771} for amount in amounts]
        fastavro.writer(file, SCHEMA, events)
    return path


def test_try_avro_file_prints_scored_events(avro_config: Path, tmp_path: Path) -> None:
    events = avro_file(tmp_path / "events.avro", 9.5, 0.5)
    result = run("try", avro_config, "--input", events)
    assert result.exit_code == 0, result.output
    assert "2 events in" in result.stderr
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [event["amount"] for event in found] == [9.5, 0.5]
    scores = [event["fraud"]["Payment_fraud"]["score"]["float"] for event in found]
    assert scores[1] > scores[0] > 0
    result = run("flow", "check", avro_config, "--sample", events)
    assert result.exit_code == 0, result.output
    assert "9.5, 41, 771" in result.stderr
    assert '"name":"Payment_fraud"' in result.stderr.replace("\n", "")
    assert json.loads(result.stdout) == found[0]


def test_try_avro_lines_need_their_schema(avro_config: Path) -> None:
    result = run("try", avro_config, "--input", "-", text=AVRO_EVENT + "\n")
    if "[registry]" in avro_config.read_text():
        assert "registry_unavailable: the registry http://127.0.0.1:1 has not answered" in result.stderr
        return
    assert json.loads(result.stdout)["id"] == "a"
    result = run("try", avro_config, "--input", "-", text="{]\n")
    assert "the events cannot be read" in result.stderr


def test_try_protobuf_lines_prints_scored_events(config: Path, tmp_path: Path) -> None:
    files = FileDescriptorSet()
    payment = files.file.add(name="payment.proto", package="shop", syntax="proto3").message_type.add(name="Payment")
    for number, (name, kind) in enumerate((("id", 9), ("amount", 1), ("user", 11), ("minute_of_day", 5)), 1):
        payment.field.add(name=name, number=number, type=kind, label=1)
    payment.field[2].type_name = ".shop.Payment.User"
    payment.nested_type.add(name="User").field.add(name="age", number=1, type=5, label=1)
    (tmp_path / "payment.desc").write_bytes(files.SerializeToString())
    more = 'format = "protobuf"\nframing = "none"\nschema = "payment.desc"\nmessage = "shop.Payment"\n'
    config.write_text(config.read_text() + more)
    result = run("try", config, "--input", "-", text=EVENT + "\n\n" + EVENT.replace("9.50", "0.5"))
    assert result.exit_code == 0, result.output
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [event["amount"] for event in found] == [9.5, 0.5]
    assert found[0]["user"] == {"age": 41}
    assert found[1]["fraud"]["score"] > found[0]["fraud"]["score"] > 0
    result = run("flow", "check", config, "--sample", EVENT)
    assert "9.5, 41, 771" in result.stderr
    assert json.loads(result.stdout) == found[0]
    result = run("try", config, "--input", "-", text='{"amount": "x"}')
    assert "line 1 is not a shop.Payment" in result.stderr


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


def test_flow_with_ready_steps_is_checked_and_tried(tmp_path: Path) -> None:
    write_text_model(tmp_path / "models" / "words" / "1" / "model.onnx", labels=len(LABELS))
    write_tokenizer(tmp_path / "tokenizer.json")
    path = tmp_path / "anabranch.toml"
    path.write_text(
        f'models.repository = "{tmp_path / "models"}"\n[[flow]]\nfrom = "reviews"\nto = "rated"\nmodel = "words"\n'
        'before = { step = "tokenize" }\nafter = { step = "labels", labels = ["no", "yes", "well"] }\n'
        'inputs.text = "body"\noutputs.label = "label"\noutputs.all = "scores"\n'
    )
    result = run("flow", "check", path, "--sample", '{"body": "a good film"}')
    assert result.exit_code == 0, result.output
    assert "reviews -> words-of-reviews, version 1 -> rated" in result.stderr
    events = [json.dumps({"body": "very " * (number % 5) + "bad"}) for number in range(40)]
    (tmp_path / "events").write_text("\n".join(events))
    result = run("try", path, "--input", tmp_path / "events", "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    for line, event in zip((tmp_path / "out").read_text().splitlines(), events, strict=True):
        answered = json.loads(line)
        assert answered["body"] == json.loads(event)["body"]
        assert answered["label"] == ["no", "yes", "well"][int(np.argmax(answered["all"]))]
    path.write_text(path.read_text().replace("tokenize", "tokenise"))
    result = run("flow", "check", path, "--sample", "{}")
    assert (result.exit_code, "flow[0].before: unknown step 'tokenise'; available: tokenize" in result.stderr) == (
        1,
        True,
    )
