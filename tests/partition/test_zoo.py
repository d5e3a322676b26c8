"""Models that others made, cut into two, three and four stages.

The heavy ones run with `make zoo` only.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from anabranch.demo.features import model_path as magika_path
from anabranch.partition.errors import StageFailed
from anabranch.partition.graph.model_graph import Graph, load_graph
from anabranch.partition.profiling.inputs import NamedArrays
from anabranch.partition.profiling.runtime import open_session
from anabranch.partition.stages.equivalence import prove
from anabranch.partition.stages.writer import write_stages
from anabranch.schemas.tensors import Array
from deploy.environments import environment

HERE = Path(__file__).parent
LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
QUICK = ["densenet121", "inception_v1", "shufflenet", "squeezenet"]
HEAVY = ["bvlc_alexnet", "inception_v2", "resnet50", "vgg19", "zfnet512"]
ARCHITECTURES = [
    *(pytest.param(name, marks=pytest.mark.slow) for name in QUICK),
    *(pytest.param(name, marks=[pytest.mark.zoo, pytest.mark.timeout(600)]) for name in HEAVY),
]

stages_of = pytest.mark.parametrize("stages", [2, 3, 4])
architectures = pytest.mark.parametrize("name", ARCHITECTURES)


def even_cuts(graph: Graph, stages: int) -> list[int]:
    """Cuts with about as many nodes in each stage."""
    legal = [downset for downset in graph.prefixes() if graph.obstacle(downset) is None]
    return [legal[len(legal) * number // stages] for number in range(1, stages)]


def assert_cut_equals_whole(model: Path, stages: int, folder: Path, batches: list[NamedArrays] | None = None) -> None:
    graph = load_graph(model)
    proof = prove(graph, write_stages(graph, even_cuts(graph, stages), folder), batches or [])
    assert proof.batches > 0


# ---- nine architectures of computer vision ---------------------------------------------------------------------------


def light_input(graph: Graph) -> dict[str, Array]:
    """Returns the inputs of the outputs that onnx stores with these models."""
    [name] = graph.inputs
    shape = [axis for axis in graph.type_of(name).shape or () if isinstance(axis, int)]
    size = int(np.prod(shape))
    return {name: (np.arange(size).reshape(shape) / size).astype(np.float32)}


@architectures
@stages_of
def test_zoo_weightless_stages_give_stored_outputs(name: str, stages: int, tmp_path: Path) -> None:
    graph = load_graph(LIGHT / f"light_{name}.onnx")
    living: NamedArrays = light_input(graph)
    for stage in write_stages(graph, even_cuts(graph, stages), tmp_path):
        session = open_session(stage.path, failure=StageFailed, subject="stage")
        inputs = {key: living[key] for key in stage.inputs}
        living = {**living, **session.run(inputs, failure=StageFailed, subject="it")}
    stored = onnx.TensorProto.FromString((LIGHT / f"light_{name}_output_0.pb").read_bytes())
    np.testing.assert_allclose(living[graph.outputs[0]], numpy_helper.to_array(stored), rtol=1e-3, atol=1e-7)


def fill(model: onnx.ModelProto) -> onnx.ModelProto:
    """Random weights in place of the operators that stand for them, and what goes into the Softmax as an output too.

    So every path counts, and no class takes all of the probability and hides the others.
    """
    rng = np.random.default_rng(0)
    graph = model.graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    positive = {name for node in graph.node if node.op_type == "BatchNormalization" for name in node.input[1::3]}
    for node in [node for node in graph.node if node.op_type == "ConstantOfShape"]:
        shape = [int(axis) for axis in stored[node.input[0]]]
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 100
        array = rng.standard_normal(shape, np.float32) * np.float32(np.sqrt(2 / fan_in))
        [name] = node.output
        graph.initializer.append(numpy_helper.from_array(np.abs(array) + 0.5 if name in positive else array, name))
        graph.node.remove(node)
    graph.output.extend(
        onnx.helper.make_tensor_value_info(node.input[0], onnx.TensorProto.FLOAT, None)
        for node in graph.node
        if node.op_type == "Softmax"
    )
    stored |= {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in stored]
    del graph.input[:]
    graph.input.extend(inputs)
    model.ir_version = 8
    return model


@architectures
@stages_of
def test_zoo_random_weights_stages_equal_the_model(name: str, stages: int, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(fill(onnx.load(LIGHT / f"light_{name}.onnx")), path)
    assert_cut_equals_whole(path, stages, tmp_path)


# ---- models that packages carry --------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def silero_vad() -> Path:
    """The models in that package, which would bring PyTorch if it were not in an environment of its own."""
    [package] = (environment("zoo", HERE / "zoo.lock").parents[1] / "lib").glob("python*/site-packages/silero_vad")
    return package / "data"


@pytest.mark.slow
@stages_of
def test_zoo_magika_stages_equal_the_model(stages: int, tmp_path: Path) -> None:
    assert_cut_equals_whole(magika_path(), stages, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["det", "rec", "cls"])
@stages_of
def test_zoo_rapidocr_stages_equal_the_model(kind: str, stages: int, tmp_path: Path) -> None:
    # Found without importing the package, which would bring OpenCV.
    [package] = find_spec("rapidocr").submodule_search_locations  # type: ignore[union-attr, misc]  # it is installed
    [model] = Path(package).glob(f"models/*_{kind}_*.onnx")
    assert_cut_equals_whole(model, stages, tmp_path)


def speech() -> list[NamedArrays]:
    """Three steps of one recording, each with a state of its own."""
    rng = np.random.default_rng(0)
    time = np.arange(3 * 576) / 16000
    wave = (np.sin(2 * np.pi * 220 * time) * rng.uniform(0.2, 0.9, time.size)).astype(np.float32).reshape(3, 1, 576)
    states = rng.standard_normal((3, 2, 1, 128)).astype(np.float32)
    return [{"input": wave[i], "state": states[i], "sr": np.array(16000)} for i in range(3)]


@pytest.mark.slow
@pytest.mark.parametrize(("file", "nodes"), [("silero_vad", 4), ("silero_vad_16k_op15", 48)])
@stages_of
def test_zoo_silero_vad_stages_equal_the_model(
    file: str, nodes: int, stages: int, silero_vad: Path, tmp_path: Path
) -> None:
    """The first is one large If, which is never cut: it can be split off, and that is all."""
    model = silero_vad / f"{file}.onnx"
    assert len(load_graph(model).nodes) == nodes
    assert_cut_equals_whole(model, stages, tmp_path, speech())
