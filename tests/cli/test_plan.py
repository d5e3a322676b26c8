"""`anabranch plan`: from a model to stages that equal it."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from onnx.numpy_helper import from_array
from typer.testing import CliRunner, Result

from anabranch import cli
from anabranch.demo.features import model_path
from anabranch.partition.planning import cut_search
from anabranch.partition.profiling import profile, stage_timing
from anabranch.schemas.stage_manifest import decode_manifest
from tests.partition.decoders import decoder

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / "light_squeezenet.onnx"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "_BUDGET_S", 0.1)
    monkeypatch.setattr(stage_timing, "_BUDGET_S", 0.1)


def run(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "160"}).invoke(cli.app, ["plan", *map(str, arguments)])


@pytest.mark.slow
@pytest.mark.parametrize(("model", "stages"), [(LIGHT, 2), (LIGHT, 3), (model_path(), 2), (model_path(), 3)])
def test_plan_command_stages_are_written_and_proven(model: Path, stages: int, tmp_path: Path) -> None:
    result = run(model, "--stages", stages, "--out", tmp_path / "out", "--svg", tmp_path / "plan.svg")
    assert result.exit_code == 0, result.output
    plan = decode_manifest((tmp_path / "out" / "plan.json").read_bytes())
    assert len(plan.stages) == stages
    assert plan.rows == 1
    assert max(stage.ms for stage in plan.stages) <= plan.bottleneck_ms
    for stage in plan.stages:
        onnx.checker.check_model(tmp_path / "out" / stage.file)
    assert f"Predicted on {stages} machines: " in result.stdout
    assert "Written after a comparison with the model on " in result.stdout
    assert (tmp_path / "plan.svg").read_text().startswith("<svg")


@pytest.mark.slow
def test_plan_command_many_cuts_tells_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cut_search, "_MOST_CUTS", 0)
    onnx.save(decoder(6), tmp_path / "model.onnx")
    result = run(tmp_path / "model.onnx", "--stages", 2)
    assert result.exit_code == 0, result.output
    assert re.search(r"a better one may exist\. Even stages would take [\d.]+ ms\.", result.stdout)


@pytest.mark.slow
def test_plan_command_json_names_stages_and_manifest(tmp_path: Path) -> None:
    result = run(LIGHT, "--stages", 2, "--out", tmp_path / "out", "-o", "json")
    assert result.exit_code == 0, result.output
    written = json.loads(result.stdout)
    stages = decode_manifest((tmp_path / "out" / "plan.json").read_bytes()).stages
    assert [stage["nodes"] for stage in written["stages"]] == [stage.nodes for stage in stages]
    assert written["manifest"] == str(tmp_path / "out" / "plan.json")
    assert written["model_toml"] is None
    assert written["compared_batches"] >= 1


@pytest.mark.slow
def test_plan_command_unequal_machines_share_a_model(tmp_path: Path) -> None:
    for version in ("9", "10"):
        (tmp_path / "models" / "m" / version).mkdir(parents=True)
        shutil.copyfile(model_path(), tmp_path / "models" / "m" / version / "model.onnx")
    machines = tmp_path / "machines.toml"
    machines.write_text('[[machines]]\nname = "slow"\nspeed = 0.5\ncount = 2\n[[machines]]\nname = "fast"\n')
    result = run(tmp_path / "models" / "m", "--machines", machines, "--rows", 2)
    assert result.exit_code == 0, result.output
    plan = decode_manifest((tmp_path / "models" / "m" / "10" / "model-stages" / "plan.json").read_bytes())
    assert plan.rows == 2
    assert [stage.replicas for stage in plan.stages] == [3]
    served = f'stages = "model-stages/plan.json" in {tmp_path / "models" / "m" / "model.toml"}'
    for expected in ("m, 10", "2 x slow, 1 x fast", "replicas of the whole model are best", served):
        assert expected in result.stdout


def test_plan_command_small_model_fits_large_machines(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 17]>
        g (float[N, 4] x) => (float[N, 4] y) <float[4] w = {1, 2, 3, 4}> { y = Add(x, w) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "small.onnx")
    machines = tmp_path / "machines.toml"
    machines.write_text('[[machines]]\nname = "tiny"\nmemory_bytes = 1\n[[machines]]\nname = "large"\ncount = 2\n')
    result = run(tmp_path / "small.onnx", "--machines", machines)
    assert result.exit_code == 0, result.output
    assert "Predicted on 2 machines (1 left over): " in result.stdout
    assert "fits on these" in result.stdout
    assert "0.00 ms" not in result.stdout
    assert "model.toml" not in result.stdout
    result = run(tmp_path / "small.onnx", "--stages", 1)
    assert "Predicted on 1 machine: " in result.stdout


def test_plan_command_too_large_model_is_cut(tmp_path: Path) -> None:
    side = 256
    weights = [from_array(np.eye(side, dtype=np.float32), f"w{layer}") for layer in range(3)]
    layers = [make_node("MatMul", [f"t{layer}", f"w{layer}"], [f"t{layer + 1}"]) for layer in range(3)]
    start, end = ([make_tensor_value_info(name, TensorProto.FLOAT, ["N", side])] for name in ("t0", "t3"))
    graph = make_graph(layers, "g", start, end, weights)
    onnx.save(make_model(graph, opset_imports=[make_opsetid("", 17)], ir_version=8), tmp_path / "large.onnx")
    machines = tmp_path / "machines.toml"
    machines.write_text('[[machines]]\nname = "small"\nmemory_bytes = "600 kB"\ncount = 3\n')
    result = run(tmp_path / "large.onnx", "--machines", machines, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    stages = decode_manifest((tmp_path / "out" / "plan.json").read_bytes()).stages
    assert len(stages) > 1
    assert sum(stage.parameter_bytes for stage in stages) == 3 * side * side * 4
    assert all(stage.parameter_bytes <= 600_000 for stage in stages)


@pytest.mark.slow
def test_plan_command_inputs_give_the_rows(tmp_path: Path) -> None:
    np.savez(tmp_path / "batch.npz", bytes=np.zeros((3, 2048), np.int32))
    result = run(model_path(), "--stages", 2, "--inputs", tmp_path / "batch.npz", "--fresh", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert decode_manifest((tmp_path / "out" / "plan.json").read_bytes()).rows == 3
    assert "a batch of 3 every" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nothing.onnx", "--stages", "2"], "unreadable_model: cannot read the model nothing.onnx: No such file"),
        (["text.onnx", "--stages", "2"], "unreadable_model: text.onnx is not an ONNX model"),
        (["empty", "--stages", "2"], "unreadable_model: no model in empty: give an ONNX file"),
        ([str(LIGHT), "--stages", "999"], "no_plan: 999 stages are more than the model can be cut into: "),
        ([str(LIGHT), "--machines", "tiny.toml"], "no_plan: a stage of "),
        ([str(LIGHT), "--machines", "text.onnx"], "unusable_machines: text.onnx: "),
        (["sequences.onnx", "--stages", "2"], "no_plan: 2 stages are more than the model can be cut into: 1 at most"),
    ],
)
def test_plan_command_failure_is_one_line(
    arguments: list[str],
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("text.onnx").write_text("no model")
    Path("tiny.toml").write_text('[[machines]]\nname = "tiny"\nmemory_bytes = 1000\n')
    text = """<ir_version: 10, opset_import: ["" : 17]>
        g (float[N, 4] x) => (int64 y) { a = SequenceConstruct(x)  y = SequenceLength(a) }"""
    onnx.save(onnx.parser.parse_model(text), "sequences.onnx")
    monkeypatch.setattr(sys, "argv", ["anabranch", "plan", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(line)
    assert not list(tmp_path.glob("**/plan.json"))


def test_plan_command_without_stages_is_refused() -> None:
    result = run(LIGHT)
    assert result.exit_code == 2
    assert "neither --stages nor --machines is given: give --stages K" in result.stderr
