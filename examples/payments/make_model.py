"""Writes the model of the payments: `python -m examples.payments.make_model`.

x FP32 [rows, 4]: amount, limit, is_new, country (0 at home) --> logistic regression --> probabilities FP32 [rows, 2]
                                                                                     +--> label BYTES [rows]
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

MODEL = Path(__file__).parent / "models/fraud/1/model.onnx"
LABELS = ("ok", "fraud")


def build_model() -> onnx.ModelProto:
    """Return the ONNX model; its bytes are reproducible."""
    constants: dict[str, npt.NDArray[Any]] = {
        "sizes": np.array([1, 1, 1, 1], np.int64),
        "zero": np.array(0, np.float32),
        # Of the share of the limit, is_new and abroad.
        "weights": np.array([[-2.0, 2.0], [-0.75, 0.75], [-0.5, 0.5]], np.float32),
        "offsets": np.array([2.0, -2.0], np.float32),
    }
    names = numpy_helper.from_array(np.array(list(LABELS), object), "names")
    graph = helper.make_graph(
        [
            helper.make_node("Split", ["x", "sizes"], ["amount", "limit", "is_new", "country"], axis=1),
            helper.make_node("Div", ["amount", "limit"], ["share"]),
            helper.make_node("Greater", ["country", "zero"], ["is_abroad"]),
            helper.make_node("Cast", ["is_abroad"], ["abroad"], to=TensorProto.FLOAT),
            helper.make_node("Concat", ["share", "is_new", "abroad"], ["features"], axis=1),
            helper.make_node("Gemm", ["features", "weights", "offsets"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
            helper.make_node("ArgMax", ["probabilities"], ["index"], axis=1, keepdims=0),
            helper.make_node("Gather", ["names", "index"], ["label"], axis=0),
        ],
        "fraud",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 4])],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["rows", 2]),
            helper.make_tensor_value_info("label", TensorProto.STRING, ["rows"]),
        ],
        [*(numpy_helper.from_array(array, name) for name, array in constants.items()), names],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    model.producer_name = "anabranch-payments"
    onnx.checker.check_model(model, full_check=True)
    return model


def main() -> None:
    """Write the model."""
    MODEL.parent.mkdir(parents=True, exist_ok=True)
    MODEL.write_bytes(build_model().SerializeToString(deterministic=True))


if __name__ == "__main__":
    main()
