"""`[[flow]]` tables: read, resolved against models, and refused with the name of the key."""

import json
from pathlib import Path
from typing import Any

import pytest

from anabranch.flink_job.config import Config, load
from anabranch.flink_job.errors import ConfigError
from anabranch.flink_job.flows.resolution import resolve
from anabranch.operators.core.flows.flow_spec import FieldSpec, FlowSpec, InputSpec, OutputField
from anabranch.schemas.model import Catalog, ModelSpec, TensorSpec
from tests.core.models import catalog

FLOW: dict[str, Any] = {
    "from": "payments",
    "to": "payments-scored",
    "model": "rows",
    "inputs": {"x": ["amount", "user.age"], "t": "note"},
    "outputs": {"fraud.score": "y[1]", "fraud": {"label": {"from": "label", "default": "none"}}},
}
PICTURE = ModelSpec(
    "picture",
    "1",
    "",
    "",
    (TensorSpec("pixels", "UINT8", (None, 2, 2)), TensorSpec("flag", "BOOL", (None,))),
    (TensorSpec("grid", "FP32", (None, 2, None)), TensorSpec("y", "FP32", (None,))),
)
SERVED = Catalog({**catalog(ensembles=True).models, "picture": {"1": PICTURE}})


def written(tmp_path: Path, *flows: dict[str, Any], more: str = "") -> Path:
    path = tmp_path / "job.toml"
    path.write_text(f"flow = {toml(list(flows))}\n{more}\n")
    return path


def toml(value: Any) -> str:
    """Writes a value as TOML, tables in one line."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{json.dumps(key)} = {toml(each)}' for key, each in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    return json.dumps(value)


def specs(tmp_path: Path, *flows: dict[str, Any], more: str = "") -> tuple[FlowSpec, ...]:
    return resolve(load(written(tmp_path, *flows, more=more)).flow, SERVED, "job.toml")


def test_flow_of_a_file_is_resolved(tmp_path: Path) -> None:
    [flow] = specs(tmp_path, {**FLOW, "key": "user.id", "deadline_ms": 200, "priority": 2})
    assert flow == FlowSpec(
        topic="payments",
        to="payments-scored",
        model_name="rows",
        model_version="10",
        inputs=(
            InputSpec("x", "FP32", (2,), (FieldSpec(("amount",)), FieldSpec(("user", "age")))),
            InputSpec("t", "BYTES", (), (FieldSpec(("note",)),)),
        ),
        outputs=(OutputField(("fraud", "score"), "y", (1,)), OutputField(("fraud", "label"), "label", (), "none")),
        key=("user", "id"),
        deadline_ms=200,
        priority=2,
    )


def test_flow_with_a_version_takes_that_model(tmp_path: Path) -> None:
    [flow] = specs(tmp_path, {**FLOW, "model": "rows@2"})
    assert flow.model_version == "2"


def test_flow_whole_fields_and_tables_are_resolved(tmp_path: Path) -> None:
    inputs = {"pixels": {"path": "image", "type": "base64"}, "flag": {"path": "on", "default": True}}
    [flow] = specs(tmp_path, {**FLOW, "model": "picture", "inputs": inputs, "outputs": {"g": "grid[1][7]"}})
    assert flow.inputs == (
        InputSpec("pixels", "UINT8", (2, 2), (FieldSpec(("image",), "base64"),), is_whole=True),
        InputSpec("flag", "BOOL", (), (FieldSpec(("on",), default=True),)),
    )
    assert flow.outputs == (OutputField(("g",), "grid", (1, 7)),)


def test_flow_function_beside_the_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "features.py").write_text("def of(events):\n    return {}\n")
    path = written(tmp_path, {**FLOW, "inputs": "features.py:of"})
    monkeypatch.chdir("/")
    [flow] = resolve(load(path).flow, SERVED, "job.toml")
    assert flow.function is not None
    assert (flow.function.path, flow.function.name) == (str(tmp_path / "features.py"), "of")
    assert flow.inputs == ()
    with pytest.raises(ConfigError, match=r"unknown function 'off' of .*; available: of"):
        specs(tmp_path, {**FLOW, "inputs": "features.py:off"})


def test_flow_ordered_needs_a_whole_model_of_fixed_shape(tmp_path: Path) -> None:
    [flow] = specs(tmp_path, {**FLOW, "order": "key"})
    assert flow.is_ordered
    whole = {**FLOW, "model": "whole", "inputs": {"x": "v"}, "outputs": {"p": "y"}, "order": "key"}
    with pytest.raises(ConfigError, match="order is 'key', which model 'whole' cannot keep: input 'x' has a free axis"):
        specs(tmp_path, whole)
    with pytest.raises(ConfigError, match=r"on_error is 'pass', but order = 'key' needs 'letter'"):
        specs(tmp_path, {**FLOW, "order": "key", "on_error": "pass"})
    with pytest.raises(ConfigError, match="it is an ensemble"):
        specs(tmp_path, {**FLOW, "model": "cut", "order": "key"})


def test_flows_of_several_topics_may_follow_each_other(tmp_path: Path) -> None:
    onward = {**FLOW, "from": "payments-scored", "to": "checked"}
    assert [flow.topic for flow in specs(tmp_path, FLOW, onward)] == ["payments", "payments-scored"]


def inputs(**changes: Any) -> dict[str, Any]:
    return {"inputs": {**FLOW["inputs"], **changes}}


def outputs(text: Any) -> dict[str, Any]:
    return {"outputs": {"p": text}}


AVRO = {**FLOW, "format": "avro", "framing": "none", "schema": "event.avsc"}


def test_avro_flow_has_the_schema_of_its_file(tmp_path: Path) -> None:
    text = '{"type": "record", "name": "R", "fields": []}'
    (tmp_path / "event.avsc").write_text(text)
    [flow] = specs(tmp_path, AVRO)
    assert (flow.format, flow.schema, flow.is_framed) == ("avro", text, False)
    with pytest.raises(ConfigError, match=r"outputs: 'a-b' is not a name in avro"):
        specs(tmp_path, {**AVRO, "outputs": {"a-b": "y"}})
    with pytest.raises(ConfigError, match=r"the default of 'p' is 'x', expected a list of float: correct it"):
        specs(tmp_path, {**AVRO, "on_error": "default", "outputs": {"p": {"from": "y", "default": "x"}}})
    (tmp_path / "event.avsc").write_text('"int"')
    with pytest.raises(ConfigError, match="the flow's schema is not that of a record"):
        specs(tmp_path, AVRO)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"form": "json"},
            r"unknown key 'form' in \[flow\[0\]\]; available: after, before, deadline_ms, error_field, format",
        ),
        ({"format": "xml"}, r"unknown flow\[0\]\.format 'xml'; available: avro, json"),
        ({"format": "avro"}, r"flow\[0\]\.format is 'avro' without a registry: write registry\.url"),
        ({"format": "avro", "framing": "none"}, r"flow\[0\]\.framing is 'none' without schema"),
        ({"format": "avro", "framing": "none", "schema": "no.avsc"}, r"flow\[0\]\.schema: cannot read .*no\.avsc"),
        ({"schema": "a.avsc"}, r"flow\[0\]\.format is 'json', which has no schema: remove schema, message and framing"),
        ({"format": "protobuf", "framing": "none", "schema": "a.desc"}, r"is 'none' without schema and message"),
        ({"format": "avro", "message": "a.B"}, r"flow\[0\]\.message is for Protobuf: remove it"),
        ({"deadline_ms": -1}, r"flow\[0\]\.deadline_ms is -1, expected 0 to"),
        ({"deadline_ms": "1"}, r"flow\[0\]\.deadline_ms is '1', expected an integer"),
        ({"on_error": "drop"}, r"unknown flow\[0\]\.on_error 'drop'; available: default, letter, pass"),
        ({"to": "inference-requests"}, r"flow\[0\]\.to is 'inference-requests', which \[kafka\] names"),
        ({"to": "payments"}, "the flows lead from 'payments' back to it"),
        ({"model": "fraud"}, r"flow\[0\]\.model: unknown model 'fraud'; available: cut, less"),
        ({"model": "rows@3"}, r"flow\[0\]\.model: unknown version '3' of model 'rows'"),
        ({"model": "pairs"}, r"flow\[0\]\.model: 'pairs' has a fixed batch size of 2"),
        ({"key": "a..b"}, r"flow\[0\]\.key: 'a\.\.b' is not a path at character 2"),
        (inputs(z="a"), r"flow\[0\]\.inputs: unknown input 'z' of model 'rows'; available: x, t"),
        ({"inputs": {"x": ["a", "b"]}}, r"flow\[0\]\.inputs: model 'rows' also needs t"),
        (inputs(x=["a"]), r"flow\[0\]\.inputs\.x has 1 fields, .* shape \[2\]"),
        (inputs(x=[]), r"flow\[0\]\.inputs\.x has 0 fields"),
        (inputs(x=["a", 3]), r"flow\[0\]\.inputs\.x\[1\] is 3, expected a text or a table with 'path'"),
        (inputs(x=["a", "b["]), r"flow\[0\]\.inputs\.x\[1\]: 'b\[' is not a path"),
        (inputs(x=["a", {"path": "b", "typ": "x"}]), r"flow\[0\]\.inputs\.x\[1\]: unknown key 'typ'; available"),
        (inputs(x=["a", {"path": "b", "default": "x"}]), r"inputs\.x\[1\]\.default is 'x', which is not an element of"),
        (inputs(t={"path": "b", "default": 1}), r"inputs\.t\.default is 1, which is not an element of BYTES"),
        (inputs(t={"path": "b", "enum": ["a"]}), r"inputs\.t: enum makes a number, but input 't' is BYTES"),
        (inputs(x=["a", {"path": "b", "type": "base64"}]), r"inputs\.x\[1\]: base64 makes bytes"),
        (
            inputs(x=["a", {"path": "b", "type": "timestamp", "enum": ["a"]}]),
            r"inputs\.x\[1\]: enum and type = 'timestamp' exclude each other",
        ),
        ({"inputs": "features:of"}, "expected file.py:function"),
        ({"inputs": "none.py:of"}, r"flow\[0\]\.inputs: .*none\.py"),
        ({"outputs": {}}, r"flow\[0\]\.outputs is empty"),
        (outputs("z"), r"flow\[0\]\.outputs\.p: unknown output 'z' of model 'rows'; available: y, label"),
        (outputs("y[x]"), "unknown output"),
        (outputs("y[2]"), r"flow\[0\]\.outputs\.p: index \[2\] is outside the row of shape \[2\]"),
        (outputs("label[0]"), r"index \[0\] is outside the row of shape \[\]"),
        (outputs(3), r"flow\[0\]\.outputs\.p is 3, expected a text or a table with 'from'"),
        ({"outputs": {"a[0]": "y"}}, r"outputs\.a\[0\]: 'a\[0\]' has a list index"),
        ({"outputs": {"a": "y", "a.b": "y"}}, r"outputs: 'a\.b' and another field overlap"),
        ({"on_error": "pass", "error_field": "fraud"}, "and another field overlap"),
        ({"on_error": "default"}, r"outputs\.fraud\.score has no default, which on_error = 'default' writes"),
    ],
)
def test_flow_with_a_fault_names_the_key(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        specs(tmp_path, {**FLOW, **changes})
    assert "job.toml" in str(raised.value)


def test_flow_that_reads_a_topic_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"flow\[1\]\.from is 'payments', which another flow reads"):
        specs(tmp_path, FLOW, {**FLOW, "to": "other"})


def test_flows_in_a_circle_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="back to it"):
        specs(tmp_path, FLOW, {**FLOW, "from": "payments-scored", "to": "payments"})


def test_flow_free_axis_takes_any_number_of_fields(tmp_path: Path) -> None:
    whole = {**FLOW, "model": "whole", "inputs": {"x": ["a", "b", "c"]}, "outputs": {"p": "y"}}
    [flow] = specs(tmp_path, whole)
    assert [field.path for field in flow.inputs[0].fields] == [("a",), ("b",), ("c",)]


def test_config_with_flows_can_be_changed(tmp_path: Path) -> None:
    config = load(written(tmp_path, FLOW)).replace(job={"parallelism": 3})
    assert isinstance(config, Config)
    assert config.flow[0].source == "payments"
