"""Models of the benchmark: feed-forward networks, Magika and ResNet-50."""

import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from anabranch.demo.features import MODEL_NAME as MAGIKA
from anabranch.demo.features import MODEL_VERSION as MAGIKA_VERSION
from anabranch.demo.features import model_path as magika_path

FFNN = "ffnn"
RESNET = "resnet50"
#: onnx's test data: graphs of well-known models without weights.
LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
#: Has the inputs of `FFNN` and 100 times its time; an equally long name makes equally long requests.
HEAVY = "fnnn"
_HEAVY_WIDTHS = (784, 4096, 4096, 10)
#: The network of Crayfish (EDBT 2024).
FFNN_WIDTHS = (784, 32, 32, 32, 10)

_SEED = 0
_OPSET = 17
_IR_VERSION = 8


def make_repository(folder: Path) -> Path:
    """Make `folder` a repository of both models, and return it."""
    ffnn = folder / FFNN / "1" / "model.onnx"
    magika = folder / MAGIKA / MAGIKA_VERSION / "model.onnx"
    for path in (ffnn, magika):
        path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(make_ffnn(FFNN_WIDTHS), ffnn)
    shutil.copyfile(magika_path(), magika)
    return folder


def new_model(repository: Path, name: str) -> Path:
    """Make the folder of a model in a repository, and return the path of its file."""
    path = repository / name / "1" / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def add_resnet50(repository: Path) -> Path:
    """Add ResNet-50 to a repository, and return that."""
    onnx.save(make_resnet50(), new_model(repository, RESNET))
    return repository


def add_heavy(repository: Path) -> Path:
    """Add the heavy network to a repository, and return that."""
    onnx.save(make_ffnn(_HEAVY_WIDTHS), new_model(repository, HEAVY))
    return repository


def add_copies_in_stages(repository: Path, models: Sequence[str], plan: str) -> Path:
    """Add a copy of each model that is served in stages, and return the repository.

    Args:
        models: Names of models in the repository.
        plan: Name of the stage manifests.
    """
    for name in models:
        [original] = (repository / name).glob("*/model.onnx")
        copy = repository / in_stages(name) / "1" / original.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(original, copy)
        (copy.parent.parent / "model.toml").write_text(f'stages = "{plan}"\n')
    return repository


def in_stages(name: str) -> str:
    """Return the name of a model's copy that is served in stages."""
    return f"{name}-in-stages"


def make_resnet50() -> onnx.ModelProto:
    """ResNet-50's graph with random weights, for any number of pictures."""
    model = onnx.load(LIGHT / "light_resnet50.onnx")
    graph, rng = model.graph, np.random.default_rng(_SEED)
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in [node for node in graph.node if node.op_type == "ConstantOfShape"]:
        graph.node.remove(node)
        arrays[node.output[0]] = np.zeros(arrays.pop(node.input[0]), np.float32)
    for name, array in arrays.items():
        if name.endswith("_w_0"):
            fan_in = int(np.prod(array.shape[1:]))
            arrays[name] = (rng.standard_normal(array.shape) * np.sqrt(2 / fan_in)).astype(np.float32)
        elif name.endswith(("_bn_riv_0", "_bn_s_0")):
            # Weaker branches keep the probabilities apart from 0 and 1.
            arrays[name] = np.full(array.shape, 0.2 if name.endswith("branch2c_bn_s_0") else 1, np.float32)
        elif array.dtype == np.float32:
            arrays[name] = np.zeros(array.shape, np.float32)
        else:  # the shape before the classifier
            arrays[name] = np.array([-1, *array[1:]], array.dtype)
    del graph.initializer[:], graph.input[1:], graph.value_info[:]
    used = {name for node in graph.node for name in node.input}
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items() if name in used)
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    model.ir_version = _IR_VERSION
    return model


def make_ffnn(widths: tuple[int, ...]) -> onnx.ModelProto:
    """Return a feed-forward network with random, always equal weights: Relu between layers, Softmax at the end."""
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
