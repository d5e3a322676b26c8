"""Small ONNX models, each with one trait that the job must support."""

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from anabranch.operators.backends.onnx import sha256_of
from anabranch.schemas.stage_manifest import StageEntry, StageManifest, encode_manifest

FLOAT, INT64, FLOAT16, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.FLOAT16, TensorProto.STRING

#: Table of `write_cut_model`.
TABLE = np.arange(32, dtype=np.float32).reshape(8, 4) * 10
#: Element type and shape by name.
Tensors: TypeAlias = dict[str, tuple[int, list[str | int]]]


def write_repository(folder: Path) -> None:
    """Writes one model for each trait.

    double:  y = 2x + 1, any rows (FP32)                       lookup:  y = table[i]; fails on a row with i >= 8
    half:    y = x + x (FP16)                                   text:    s -> s (BYTES)
    pair:    (a, b) -> (a + b, a * b)                           single:  y = 3x, axis 0 fixed at 1
    wide:    y = mean over a dynamic axis 1                     scalar:  y = sum of everything: no batch axis
    tens:    y = 10i                                            most:    y = the largest of everything: no batch axis
    patient: wide, with batches that wait 400 ms

    and ensembles:
    halfway: mean of both versions of double                    extremes: scalar and most, stacked
    careful: the larger of lookup and tens, or tens alone       strict:   the same, but both must answer
    """
    _double(folder / "double" / "1", 1.0)
    _double(folder / "double" / "2", 2.0)
    _write(folder / "half" / "1", ["Add x x y"], {"x": (FLOAT16, ["n", 4])}, {"y": (FLOAT16, ["n", 4])})
    _write(
        folder / "pair" / "1",
        ["Add a b sum", "Mul a b product"],
        {"a": (FLOAT, ["n", 3]), "b": (FLOAT, ["n", 3])},
        {"sum": (FLOAT, ["n", 3]), "product": (FLOAT, ["n", 3])},
    )
    for name in ("wide", "patient"):
        _write(folder / name / "1", ["ReduceMean x y"], {"x": (FLOAT, ["n", "w"])}, {"y": (FLOAT, ["n", 1])}, axes=[1])
    (folder / "patient" / "model.toml").write_text("[batching]\nmax_rows = 1000\nmax_delay_ms = 400\n")
    table = numpy_helper.from_array(np.arange(8, dtype=np.float32) * 10, "table")
    _write(folder / "lookup" / "1", ["Gather table i y"], {"i": (INT64, ["n"])}, {"y": (FLOAT, ["n"])}, [table])
    _write(folder / "text" / "1", ["Identity s t"], {"s": (STRING, ["n", 2])}, {"t": (STRING, ["n", 2])})
    three = numpy_helper.from_array(np.array(3, np.float32), "three")
    _write(folder / "single" / "1", ["Mul x three y"], {"x": (FLOAT, [1, 2])}, {"y": (FLOAT, [1, 2])}, [three])
    _write(folder / "scalar" / "1", ["ReduceSum x y"], {"x": (FLOAT, ["n", 2])}, {"y": (FLOAT, [])}, keepdims=0)
    ten = numpy_helper.from_array(np.array(10, np.float32), "ten")
    nodes = ["CastLike i ten f", "Mul f ten y"]
    _write(folder / "tens" / "1", nodes, {"i": (INT64, ["n"])}, {"y": (FLOAT, ["n"])}, [ten])
    _write(folder / "most" / "1", ["ReduceMax x y"], {"x": (FLOAT, ["n", 2])}, {"y": (FLOAT, [])}, keepdims=0)
    _ensemble(folder / "halfway", 'members = ["double@1", "double"]')
    _ensemble(folder / "extremes", 'members = ["scalar", "most"]', 'merge = "stack"')
    _ensemble(folder / "strict", 'members = ["lookup", "tens"]', 'merge = "max"')
    _ensemble(folder / "careful", 'members = ["lookup", "tens"]', 'merge = "max"', 'on_failure = "rest"')
    (folder / "double" / "model.toml").write_text("[batching]\nshard_rows = 16\nmax_rows = 32\n")


def _ensemble(folder: Path, *lines: str) -> None:
    folder.mkdir()
    (folder / "model.toml").write_text("\n".join(("[ensemble]", *lines)))


def write_chain(folder: Path, toml: str, steps: str) -> None:
    """Writes a chain's `model.toml` and `steps.py`, and `twice.onnx`: y = 2x."""
    _write(folder, ["Add x x y"], {"x": (FLOAT, ["n"])}, {"y": (FLOAT, ["n"])}, file="twice.onnx")
    (folder / "model.toml").write_text(toml)
    (folder / "steps.py").write_text(steps)


def write_cut_model(folder: Path, toml: str = "", between_rows: int | str = "n", stages: int = 3) -> None:
    """Writes `steps/1`: a model, its manifest of three stages, and their models.

    x, i --> [ 1: twice = 2x ] -- twice, i --> [ 2: found = table[i] ] -- twice, found --> [ 3: y = twice + found ]

    Stage 2 fails on a row with i >= 8. `found` is an output of the whole model, too.

    Args:
        toml: Additional text of `model.toml`.
        between_rows: Axis 0 of `twice` in the stages' models.
        stages: 2 joins the last two stages.
    """
    version = folder / "steps" / "1"
    x: Tensors = {"x": (FLOAT, ["n", 4])}
    i: Tensors = {"i": (INT64, ["n"])}
    found: Tensors = {"found": (FLOAT, ["n", 4])}
    y: Tensors = {"y": (FLOAT, ["n", 4])}
    twice: Tensors = {"twice": (FLOAT, [between_rows, 4])}
    two = numpy_helper.from_array(np.array(2, np.float32), "two")
    table = numpy_helper.from_array(TABLE, "table")
    nodes = ["Mul x two twice", "Gather table i found", "Add twice found y"]
    _write(version, nodes, x | i, y | found, [two, table])
    _write(version, nodes[:1], x, twice, [two], file="stage-0.onnx")
    if stages == 2:
        _write(version, nodes[1:], twice | i, y | found, [table], file="stage-1.onnx")
        write_plan(version, [(["x"], ["twice"], 1), (["twice", "i"], ["y", "found"], 1)])
    else:
        _write(version, nodes[1:2], i, found, [table], file="stage-1.onnx")
        _write(version, nodes[2:], twice | found, y, file="stage-2.onnx")
        write_plan(version, [(["x"], ["twice"], 1), (["i"], ["found"], 2), (["twice", "found"], ["y"], 1)])
    (folder / "steps" / "model.toml").write_text(f'stages = "plan.json"\n{toml}')


def write_ensembles_with_stages(folder: Path) -> None:
    """Writes ensembles of `steps` (see `write_cut_model`) and `idle`: (x, i) -> y = 0, found = x, which never fails.

    either: the mean of both, or idle alone                     both:    the mean; both must answer
    """
    inputs: Tensors = {"x": (FLOAT, ["n", 4]), "i": (INT64, ["n"])}
    outputs: Tensors = {"y": (FLOAT, ["n", 4]), "found": (FLOAT, ["n", 4])}
    _write(folder / "idle" / "1", ["Sub x x y", "Identity x found"], inputs, outputs)
    _ensemble(folder / "either", 'members = ["steps", "idle"]', 'on_failure = "rest"')
    _ensemble(folder / "both", 'members = ["steps", "idle"]')


def write_plan(version: Path, stages: list[tuple[list[str], list[str], int]]) -> None:
    """Writes `plan.json` beside `model.onnx` and `stage-N.onnx`: inputs, outputs and replicas of each."""
    planned = [
        StageEntry(
            file=(file := f"stage-{number}.onnx"),
            sha256=sha256_of(version / file),
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            nodes=1,
            parameter_bytes=0,
            ms=1.0,
            output_bytes=0,
            replicas=replicas,
        )
        for number, (inputs, outputs, replicas) in enumerate(stages)
    ]
    plan = StageManifest(
        model_sha256=sha256_of(version / "model.onnx"), rows=1, bottleneck_ms=1.0, stages=tuple(planned)
    )
    (version / "plan.json").write_bytes(encode_manifest(plan))


def _double(folder: Path, addend: float) -> None:
    constants = [
        numpy_helper.from_array(np.array(2, np.float32), "two"),
        numpy_helper.from_array(np.array(addend, np.float32), "addend"),
    ]
    nodes = ["Mul x two twice", "Add twice addend y"]
    _write(folder, nodes, {"x": (FLOAT, ["n", 4])}, {"y": (FLOAT, ["n", 4])}, constants)


def _write(
    folder: Path,
    nodes: list[str],
    inputs: Tensors,
    outputs: Tensors,
    constants: list[onnx.TensorProto] | None = None,
    file: str = "model.onnx",
    **attributes: Any,
) -> None:
    graph = helper.make_graph(
        [_node(line, attributes) for line in nodes],
        "test",
        [helper.make_tensor_value_info(name, *spec) for name, spec in inputs.items()],
        [helper.make_tensor_value_info(name, *spec) for name, spec in outputs.items()],
        constants or [],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(folder / file))


def _node(line: str, attributes: dict[str, Any]) -> onnx.NodeProto:
    op_type, *inputs, output = line.split()
    return helper.make_node(op_type, inputs, [output], **attributes)
