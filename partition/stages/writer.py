"""Writer of stages: unchanged nodes, weights, operator sets, functions and metadata of a model."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os import SEEK_CUR
from pathlib import Path
from typing import BinaryIO

import onnx
from google.protobuf.message import Message
from onnx import TensorProto, numpy_helper

from anabranch.partition.errors import UncarriedTensor
from anabranch.partition.graph.external_data import is_external, load_inline, locate, tensors_in_nodes
from anabranch.partition.graph.model_file import size_bytes
from anabranch.partition.graph.model_graph import Graph, indices
from anabranch.schemas.stage_manifest import DATA_SHA256

#: More weights go into another file; half of protobuf's limit.
MAX_INLINE_BYTES = 1 << 30
#: Smaller weights stay inline for shape inference.
_MIN_EXTERNAL_BYTES = 1 << 10
#: ONNX Runtime maps page-aligned weights instead of copying them.
_PAGE_BYTES = 1 << 12


@dataclass(frozen=True, slots=True)
class StageFile:
    """Written stage.

    Attributes:
        sha256: Hash of the file, whose metadata `DATA_SHA256` holds that of its `.data`.
        nodes: Number of nodes, without copies of earlier ones.
    """

    path: Path
    sha256: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: int
    parameter_bytes: int


def write_stages(
    graph: Graph, downsets: Iterable[int], folder: Path, *, max_inline_bytes: int = MAX_INLINE_BYTES
) -> tuple[StageFile, ...]:
    """Write `stage-0.onnx` and so on, with `.data` files for many weights.

    Args:
        graph: The model.
        downsets: Growing cuts.
        folder: Target, which exists.
        max_inline_bytes: More weights go into `.data`.

    Raises:
        NoSuchCut: The cuts do not grow, or a stage would be empty.
        UncarriedTensor: The wire cannot carry a tensor.
        ModelError: External data is missing, or outside the model's folder.
    """
    downsets = list(downsets)
    parts = graph.parts(downsets)
    for name in (*graph.inputs, *graph.outputs):  # they travel, too
        graph.type_of(name)
    for downset in downsets:
        reason = graph.obstacle(downset)
        if reason is not None:
            raise UncarriedTensor(reason)
    stages = []
    for number, part in enumerate(parts):
        inputs, outputs = graph.stage_inputs(part), graph.stage_outputs(part)
        if number == len(parts) - 1:  # they need not travel
            outputs += graph.constant_outputs
        model = _stage_model(graph, part, inputs, outputs)
        path = folder / f"stage-{number}.onnx"
        _write(model, graph.path.parent, path, max_inline_bytes)
        stages.append(StageFile(path, sha256_of(path), inputs, outputs, part.bit_count(), graph.parameter_bytes(part)))
    return tuple(stages)


def data_path(stage: Path) -> Path:
    """Return the path of a stage's `.data` file."""
    return stage.with_name(f"{stage.name}.data")


def sha256_of(path: Path) -> str:
    """Compute the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stage_model(graph: Graph, part: int, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> onnx.ModelProto:
    """Make a stage's model, with the whole model's external data."""
    whole = graph.model.graph
    model = onnx.ModelProto()
    _copy(graph.model, model, without={"graph", "training_info"})
    stage = model.graph
    _copy(whole, stage, without=_OF_THE_WHOLE)
    constants = graph.stage_constants(part) | graph.constants_of(outputs)
    nodes = list(graph.members(graph.stage_nodes(part)))
    own = {*inputs, *(name for node in nodes for name in node.makes)}
    own |= {name for index in indices(constants) for name in graph.constants[index].makes}
    annotations = [entry for entry in whole.quantization_annotation if entry.tensor_name in own]
    constants |= graph.constants_of(
        entry.value for annotation in annotations for entry in annotation.quant_parameter_tensor_names
    )
    for index in indices(constants):
        proto = graph.constants[index].proto
        if isinstance(proto, onnx.NodeProto):
            stage.node.append(proto)
        elif isinstance(proto, onnx.SparseTensorProto):
            stage.sparse_initializer.append(proto)
        else:
            stage.initializer.append(proto)
    stage.node.extend(node.proto for node in nodes)
    stage.quantization_annotation.extend(annotations)
    declared = {value.name: value for value in (*whole.input, *whole.output)}
    stage.input.extend(_value(graph, name, declared) for name in inputs)
    stage.output.extend(_value(graph, name, declared) for name in outputs)
    if model.ir_version < 4:  # weights must be inputs
        stage.input.extend(_value(graph, tensor.name, declared) for tensor in stage.initializer)
    return model


#: Fields that are not copied to a stage.
_OF_THE_WHOLE = {
    "node",
    "initializer",
    "sparse_initializer",
    "input",
    "output",
    "value_info",
    "quantization_annotation",
}


def _copy(source: Message, target: Message, without: set[str]) -> None:
    for field, value in source.ListFields():
        if field.name in without:
            continue
        if isinstance(value, Message):
            getattr(target, field.name).CopyFrom(value)
        elif isinstance(value, int | str):
            setattr(target, field.name, value)
        else:
            getattr(target, field.name).extend(value)


def _value(graph: Graph, name: str, declared: Mapping[str, onnx.ValueInfoProto]) -> onnx.ValueInfoProto:
    """Declare a tensor like the model, with the inferred shape."""
    value = onnx.ValueInfoProto(name=name)
    if name in declared:
        value.CopyFrom(declared[name])
    if name not in graph.inputs:
        value.type.CopyFrom(graph.types[name])
    return value


def _write(model: onnx.ModelProto, source: Path, path: Path, max_inline_bytes: int) -> None:
    large = []
    if sum(map(size_bytes, model.graph.initializer)) > max_inline_bytes:
        large = [
            tensor
            for tensor in model.graph.initializer
            if tensor.data_type != TensorProto.STRING and size_bytes(tensor) >= _MIN_EXTERNAL_BYTES
        ]
    moved = {tensor.name for tensor in large}
    for tensor in (*model.graph.initializer, *tensors_in_nodes(model.graph.node)):
        if is_external(tensor) and tensor.name not in moved:
            load_inline(tensor, source)
    if large:
        with data_path(path).open("wb") as file:
            for tensor in large:
                _move(tensor, source, file)
        model.metadata_props.add(key=DATA_SHA256, value=sha256_of(data_path(path)))
    path.write_bytes(model.SerializeToString())


def _move(tensor: TensorProto, source: Path, file: BinaryIO) -> None:
    file.seek(-file.tell() % _PAGE_BYTES, SEEK_CUR)
    offset = file.tell()
    if is_external(tensor):
        locate(tensor, source).copy_to(file)
    else:
        file.write(tensor.raw_data or numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data)
    left = TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type, doc_string=tensor.doc_string)
    left.data_location = TensorProto.EXTERNAL
    place = {"location": Path(file.name).name, "offset": offset, "length": file.tell() - offset}
    for key, value in place.items():
        left.external_data.add(key=key, value=str(value))
    tensor.CopyFrom(left)
