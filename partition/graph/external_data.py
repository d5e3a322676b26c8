"""Weights in files beside a model; only files inside its folder are read."""

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
    """Place of a tensor's values."""

    path: Path
    offset: int
    size_bytes: int

    def read(self) -> bytes:
        """Read all values."""
        return b"".join(self._chunks())

    def copy_to(self, file: BinaryIO) -> None:
        """Copy all values in chunks."""
        for chunk in self._chunks():
            file.write(chunk)

    def _chunks(self) -> Iterator[bytes]:
        left = self.size_bytes
        # O_NOFOLLOW: a link may have replaced the file since the check.
        with os.fdopen(os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            file.seek(self.offset)
            while left:
                chunk = file.read(min(left, _CHUNK_BYTES))
                if not chunk:
                    raise UnreadableModel(f"{self.path} became shorter while it was read: try again")
                left -= len(chunk)
                yield chunk


def is_external(tensor: TensorProto) -> bool:
    """Tell if a tensor's values are in another file."""
    return tensor.data_location == TensorProto.EXTERNAL


def locate(tensor: TensorProto, folder: Path) -> Weights:
    """Find the values of an external tensor.

    Raises:
        UnsafeModel: They are outside the folder, behind a link, or beyond the file's end.
        UnreadableModel: The file is missing.
    """
    said = {entry.key: entry.value for entry in tensor.external_data}
    location = said.get("location", "")
    parts = PurePosixPath(location).parts
    if not parts or location.startswith("/") or ".." in parts or "\\" in location or "\0" in location:
        raise UnsafeModel(f"external data of {tensor.name!r} is at {location!r}: move it into the model's folder")
    path = folder
    for part in parts:
        path /= part
        if path.is_symlink():
            raise UnsafeModel(f"external data of {tensor.name!r} is behind the link {path}: put the file there")
    if path.exists() and not path.is_file():
        raise UnsafeModel(f"external data of {tensor.name!r} is in {path}, which is not a plain file: put one there")
    expected = size_bytes(tensor)
    try:
        offset, size, end = int(said.get("offset", "0")), int(said.get("length", str(expected))), path.stat().st_size
    except ValueError:
        raise UnsafeModel(
            f"external data of {tensor.name!r} has an offset or length that is not a number: export the model again"
        ) from None
    except OSError as error:
        raise UnreadableModel(f"cannot read external data of {tensor.name!r}, {path}: {error.strerror}") from None
    if offset < 0 or size != expected or offset + size > end:
        raise UnsafeModel(
            f"external data of {tensor.name!r} is not {expected} bytes inside {path}: export the model again"
        )
    return Weights(path, offset, size)


def load_inline(tensor: TensorProto, folder: Path) -> None:
    """Move an external tensor's values into the tensor; raise like `locate`."""
    tensor.raw_data = locate(tensor, folder).read()
    tensor.ClearField("external_data")
    tensor.data_location = TensorProto.DEFAULT


def tensors_in_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[TensorProto]:
    """Yield the tensors in attributes and bodies of nodes."""
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t
            yield from attribute.tensors
        for body in bodies(node):
            yield from body.initializer
            yield from tensors_in_nodes(body.node)


def check_external_data(model: onnx.ModelProto, folder: Path) -> None:
    """Check the place of all external data without reading it; raise like `locate`."""
    functions = (tensor for function in model.functions for tensor in tensors_in_nodes(function.node))
    for group in (model.graph.initializer, tensors_in_nodes(model.graph.node), functions):
        for tensor in group:
            if is_external(tensor):
                locate(tensor, folder)
