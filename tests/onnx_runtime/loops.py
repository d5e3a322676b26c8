"""A model that loops as often as its input says."""

from pathlib import Path

import onnx
from onnx import TensorProto, helper


def write_loop(folder: Path, *, max_run_ms: int) -> None:
    """Write `y = n`, computed after as many turns as the largest n, and a model.toml with the limit.

    Args:
        folder: Folder of the version.
    """
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["goes_on"]),
            helper.make_node("Add", ["sum", "one_inside"], ["more"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum", TensorProto.INT64, [None, 1]),
        ],
        [
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("more", TensorProto.INT64, [None, 1]),
        ],
        initializer=[helper.make_tensor("one_inside", TensorProto.INT64, [1, 1], [1])],
    )
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMax", ["n"], ["most"], keepdims=0),
            helper.make_node("Mul", ["n", "zero"], ["none"]),
            helper.make_node("Loop", ["most", "", "none"], ["turns"], body=body),
            helper.make_node("Mul", ["turns", "zero"], ["nothing"]),
            helper.make_node("Add", ["n", "nothing"], ["y"]),
        ],
        "loop",
        [helper.make_tensor_value_info("n", TensorProto.INT64, ["rows", 1])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, ["rows", 1])],
        initializer=[helper.make_tensor("zero", TensorProto.INT64, [], [0])],
    )
    folder.mkdir(parents=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    (folder.parent / "model.toml").write_text(f"[session]\nmax_run_ms = {max_run_ms}\n")
