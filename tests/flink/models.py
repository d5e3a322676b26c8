"""Small ONNX models, each with one trait that the job has to cope with."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64, FLOAT16, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.FLOAT16, TensorProto.STRING


def write_repository(folder: Path) -> None:
    """One model for each trait.

    double:  y = 2x + 1, any rows (FP32)                       lookup:  y = table[i]; fails on a row with i >= 8
    half:    y = x + x (FP16)                                   text:    s -> s (BYTES)
    pair:    (a, b) -> (a + b, a * b)                           single:  y = 3x, axis 0 fixed at 1
    wide:    y = mean over a dynamic axis 1                     scalar:  y = sum of everything: no batch axis
    tens:    y = 10i                                            most:    y = the largest of everything: no batch axis

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
    _write(folder / "wide" / "1", ["ReduceMean x y"], {"x": (FLOAT, ["n", "w"])}, {"y": (FLOAT, ["n", 1])}, axes=[1])
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
    inputs: dict[str, tuple[int, list[str | int]]],
    outputs: dict[str, tuple[int, list[str | int]]],
    constants: list[onnx.TensorProto] | None = None,
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
    folder.mkdir(parents=True)
    onnx.save(model, str(folder / "model.onnx"))


def _node(line: str, attributes: dict[str, Any]) -> onnx.NodeProto:
    op_type, *inputs, output = line.split()
    return helper.make_node(op_type, inputs, [output], **attributes)
