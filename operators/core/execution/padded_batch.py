"""Batches of requests that differ in the length of one axis.

signature    [rows, 17]   the longest neighbour of all requests of a group
requests     [1, 14], [2, 16], [1, 17], as they came
run          [4, 17]      filled up to the longest in the batch
answers      [1, 14], [2, 16], [1, 17], cut back
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from math import prod
from typing import NamedTuple

import msgspec
import numpy as np

from anabranch.operators.core.merging.row_ranges import RowBlock
from anabranch.operators.core.requests import Request
from anabranch.schemas.padding import Padding, cut, pad
from anabranch.schemas.signatures import Signature, TensorSignature, decode_signature, encode_signature
from anabranch.schemas.tensors import Array, Buffer, Tensor, array_from_raw, raw_size_bytes


class PaddedInputs(NamedTuple):
    """Inputs of a batch.

    Attributes:
        lengths: Of each part.
        filled: Elements that were added.
        elements: All elements of padded inputs.
    """

    arrays: dict[str, Array]
    lengths: tuple[int, ...]
    filled: int
    elements: int


def with_neighbours(padding: Padding, signature: Signature) -> Signature:
    """Return the signature that requests of similar length share."""
    axes = {name: axis - 1 for name, axis, _ in padding.inputs}
    shapes = {spec.name: spec.shape for spec in signature.inputs if spec.name in axes}
    lengths = {shape[axes[name]] for name, shape in shapes.items()}
    if len(lengths) != 1 or not all(map(prod, shapes.values())):
        return signature  # Bytes do not tell the length, or the model refuses it.
    return _with_length(padding, signature, padding.longest_neighbour(lengths.pop()))


def by_length(padding: Padding, requests: Sequence[Request]) -> Iterator[list[Request]]:
    """Yield requests of one length, with their exact signature."""
    signature = decode_signature(requests[0].signature)
    lengths = {id(each): _length_of(padding, signature, each.tensors, each.rows) for each in requests}
    ordered = sorted(requests, key=lambda each: lengths[id(each)])
    for length, group in groupby(ordered, key=lambda each: lengths[id(each)]):
        exact = encode_signature(_with_length(padding, signature, length))
        yield [msgspec.structs.replace(request, signature=exact) for request in group]


def gather(padding: Padding, signature: Signature, parts: Sequence[tuple[int, Sequence[Buffer]]]) -> PaddedInputs:
    """Join parts of one signature, given as rows and tensors."""
    lengths = tuple([_length_of(padding, signature, tensors, rows) for rows, tensors in parts])
    longest = max(lengths)
    axes = {name: (axis, value) for name, axis, value in padding.inputs}
    arrays, filled, elements = {}, 0, 0
    for index, spec in enumerate(signature.inputs):
        joined = []
        for (rows, tensors), length in zip(parts, lengths, strict=True):
            if spec.name not in axes:
                joined.append(array_from_raw(spec.datatype, (rows, *spec.shape), tensors[index]))
                continue
            axis, value = axes[spec.name]
            shape = (rows, *_at(spec.shape, axis - 1, length))
            joined.append(pad(array_from_raw(spec.datatype, shape, tensors[index]), axis, longest, value))
            elements += joined[-1].size
            filled += joined[-1].size - prod(shape)
        array = joined[0] if len(joined) == 1 else np.concatenate(joined)
        arrays[spec.name] = array if array.flags.aligned else array.copy()
    return PaddedInputs(arrays, lengths, filled, elements)


def cut_back(padding: Padding, block: RowBlock, length: int) -> RowBlock:
    """Cut the outputs of a part back to its length."""
    axes = dict(padding.outputs)
    outputs = []
    for tensor in block.outputs:
        if tensor.name in axes and tensor.shape[axes[tensor.name]] != length:
            array = np.ascontiguousarray(cut(tensor.to_array(), axes[tensor.name], length))
            outputs.append(Tensor.from_array(tensor.name, array))
        else:
            outputs.append(tensor)
    return RowBlock(block.first_row, block.rows, tuple(outputs))


def _with_length(padding: Padding, signature: Signature, length: int) -> Signature:
    axes = {name: axis - 1 for name, axis, _ in padding.inputs}
    inputs = tuple(
        TensorSignature(spec.name, spec.datatype, _at(spec.shape, axes[spec.name], length))
        if spec.name in axes
        else spec
        for spec in signature.inputs
    )
    return msgspec.structs.replace(signature, inputs=inputs)


def _length_of(padding: Padding, signature: Signature, tensors: Sequence[Buffer], rows: int) -> int:
    name, axis, _ = padding.inputs[0]
    for spec, data in zip(signature.inputs, tensors, strict=True):
        if spec.name == name:
            unit = raw_size_bytes(spec.datatype, _at(spec.shape, axis - 1, 1))
            return len(data) // (unit * rows) if unit else spec.shape[axis - 1]
    raise AssertionError(f"no input {name!r}")


def _at(shape: tuple[int, ...], axis: int, size: int) -> tuple[int, ...]:
    return (*shape[:axis], size, *shape[axis + 1 :])
