"""Reads the `[padding]` table of a `model.toml`.

[padding]
inputs = { input_ids = 1, token_type_ids = 1 }
mask = "attention_mask"
outputs = { last_hidden_state = 1 }
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import msgspec

from anabranch.flink_job.errors import ConfigError
from anabranch.schemas.model import ModelSpec, TensorSpec
from anabranch.schemas.padding import Padding
from anabranch.schemas.tensors import BYTES


class PaddingTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Inputs that are filled up, so that requests of different lengths share batches.

    Attributes:
        inputs: Axis of each input; axis 0 counts rows.
        values: Filling of an input, if it is not 0.
        mask: Input that is 0 for the filling, with the axis of the first input.
        outputs: Axis of each output that is cut back.
        max_waste: Largest share of filling in a batch.
    """

    inputs: dict[str, int]
    values: dict[str, float] = {}
    mask: str = ""
    outputs: dict[str, int] = {}
    max_waste: Annotated[float, msgspec.Meta(ge=0, le=0.9)] = 0.1


def read_padding(path: Path, table: PaddingTable, model: ModelSpec) -> Padding:
    """Check the table of a model.

    Raises:
        ConfigError: It names no open axis of a tensor.
    """
    if not table.inputs:
        raise ConfigError(f"{path}: padding.inputs is empty: name at least one input and its axis")
    axes = table.inputs
    if table.mask and table.mask not in axes:
        axes = {**axes, table.mask: next(iter(axes.values()))}
    _check_axes(f"{path}: padding.inputs", axes, model.inputs)
    _check_axes(f"{path}: padding.outputs", table.outputs, model.outputs)
    for name in table.values:
        if name not in axes or name == table.mask:
            raise ConfigError(f"{path}: padding.values has {name!r}, expected a name of padding.inputs but the mask")
    inputs = tuple((name, axis, table.values.get(name, 0.0)) for name, axis in axes.items())
    return Padding(inputs, tuple(table.outputs.items()), table.max_waste)


def _check_axes(where: str, axes: Mapping[str, int], specs: Sequence[TensorSpec]) -> None:
    known = {spec.name: spec for spec in specs}
    for name, axis in axes.items():
        spec = known.get(name)
        if spec is None:
            raise ConfigError(f"{where}: unknown tensor {name!r}; available: {', '.join(known)}")
        if spec.datatype == BYTES:
            raise ConfigError(f"{where}: {name!r} is a tensor of texts, expected numbers: remove it")
        # The rank of an output may be unknown.
        if axis < 1 or (spec.shape and (axis >= len(spec.shape) or spec.shape[axis] is not None)):
            shape = ", ".join("any" if size is None else str(size) for size in spec.shape)
            raise ConfigError(f"{where}: axis {axis} of {name!r} [{shape}] is not open: name one from 1 with any size")
