"""Weights that lie beside a model's file: found only inside its folder, whatever the file says."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import onnx
from onnx import TensorProto

from anabranch.partition.errors import UnreadableModel, UnsafeModel
from anabranch.partition.graph.model_file import bodies, size_bytes

_CHUNK_BYTES = 1 << 24


@dataclass(frozen=True, slots=True)
class Weights:
    """Where a tensor's values lie."""

    path: Path
    offset: int
    size_bytes: int

    def read(self) -> bytes:
        """All of them."""
        return b"".join(self._chunks())

    def copy_to(self, file: BinaryIO) -> None:
        """Copies them without holding all of them in memory."""
        for chunk in self._chunks():
            file.write(chunk)

    def _chunks(self) -> Iterator[bytes]:
        left = self.size_bytes
        # Checked once more by the system: the file may have been exchanged for a link since.
        with os.fdopen(os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            file.seek(self.offset)
            while left:
                chunk = file.read(min(left, _CHUNK_BYTES))
                if not chunk:
                    raise UnreadableModel(f"{self.path} became shorter while it was read")
                left -= len(chunk)
                yield chunk


def is_external(tensor: TensorProto) -> bool:
    """Whether a tensor's values lie beside the file."""
    return tensor.data_location == TensorProto.EXTERNAL


def locate(tensor: TensorProto, folder: Path) -> Weights:
    """Where the values of an external tensor lie.

    Raises:
        UnsafeModel: Outside the model's folder, behind a link, or beyond the end of a file.
        UnreadableModel: There is no such file.
    """
    said = {entry.key: entry.value for entry in tensor.external_data}
    location = said.get("location", "")
    parts = PurePosixPath(location).parts
    if not parts or location.startswith("/") or ".." in parts or "\\" in location or "\0" in location:
        raise UnsafeModel(f"external data of {tensor.name!r} lies outside the model's folder, at {location!r}")
    path = folder
    for part in parts:
        path /= part
        if path.is_symlink():
            raise UnsafeModel(f"external data of {tensor.name!r} lies behind the link {path}: put the file there")
    if path.exists() and not path.is_file():
        raise UnsafeModel(f"external data of {tensor.name!r} is in {path}, which is no plain file")
    expected = size_bytes(tensor)
    try:
        offset, size, end = int(said.get("offset", "0")), int(said.get("length", str(expected))), path.stat().st_size
    except ValueError:
        raise UnsafeModel(f"external data of {tensor.name!r} has a place or length that is no number") from None
    except OSError as error:
        raise UnreadableModel(f"cannot read external data of {tensor.name!r}, {path}: {error.strerror}") from None
    if offset < 0 or size != expected or offset + size > end:
        raise UnsafeModel(f"external data of {tensor.name!r} is not {expected} bytes inside {path}")
    return Weights(path, offset, size)


def load_inline(tensor: TensorProto, folder: Path) -> None:
    """Takes an external tensor's values into the tensor itself.

    Raises:
        UnsafeModel: They lie where they must not.
        UnreadableModel: They are not there.
    """
    tensor.raw_data = locate(tensor, folder).read()
    tensor.ClearField("external_data")
    tensor.data_location = TensorProto.DEFAULT


def tensors_in_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[TensorProto]:
    """Every tensor inside nodes: attributes, and all that is in their bodies."""
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t
            yield from attribute.tensors
        for body in bodies(node):
            yield from body.initializer
            yield from tensors_in_nodes(body.node)


def check_external_data(model: onnx.ModelProto, folder: Path) -> None:
    """Looks where all external data of a model lies, and reads none of it.

    Raises:
        UnsafeModel: Some lies where it must not.
        UnreadableModel: Some is not there.
    """
    functions = (tensor for function in model.functions for tensor in tensors_in_nodes(function.node))
    for group in (model.graph.initializer, tensors_in_nodes(model.graph.node), functions):
        for tensor in group:
            if is_external(tensor):
                locate(tensor, folder)
