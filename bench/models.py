"""The model repository that every subject serves: a small feed-forward network, and Magika's own model."""

import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from anabranch.demo.features import MODEL_NAME as MAGIKA
from anabranch.demo.features import MODEL_VERSION as MAGIKA_VERSION
from anabranch.demo.features import model_path as magika_path

FFNN = "ffnn"
#: The network of Crayfish (EDBT 2024), which others can compare with.
FFNN_WIDTHS = (784, 32, 32, 32, 10)

_SEED = 0
_OPSET = 17
_IR_VERSION = 8


def make_repository(folder: Path) -> Path:
    """Makes `folder` a repository of both models, and returns it."""
    ffnn = folder / FFNN / "1" / "model.onnx"
    magika = folder / MAGIKA / MAGIKA_VERSION / "model.onnx"
    for path in (ffnn, magika):
        path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(make_ffnn(FFNN_WIDTHS), ffnn)
    shutil.copyfile(magika_path(), magika)
    return folder


def make_ffnn(widths: tuple[int, ...]) -> onnx.ModelProto:
    """A feed-forward network with random, always equal weights: Relu between layers, Softmax at the end."""
    rng = np.random.default_rng(_SEED)
    nodes, weights, current = [], [], "x"
    last = len(widths) - 2
    for layer, (width_in, width_out) in enumerate(pairwise(widths)):
        matrix = rng.standard_normal((width_in, width_out)) / np.sqrt(width_in)
        weights.append(numpy_helper.from_array(matrix.astype(np.float32), f"w{layer}"))
        weights.append(numpy_helper.from_array(np.zeros(width_out, np.float32), f"b{layer}"))
        nodes.append(helper.make_node("Gemm", [current, f"w{layer}", f"b{layer}"], [f"sum{layer}"]))
        current = "y" if layer == last else f"out{layer}"
        nodes.append(helper.make_node("Softmax" if layer == last else "Relu", [f"sum{layer}"], [current]))
    graph = helper.make_graph(
        nodes,
        FFNN,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", widths[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", widths[-1]])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
