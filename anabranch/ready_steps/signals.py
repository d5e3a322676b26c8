"""Cuts signals into frames."""

from collections.abc import Mapping

import numpy as np

from anabranch.ready_steps.options import FramesStep
from anabranch.ready_steps.signature import only_input
from anabranch.schemas.errors import UnreadableInput
from anabranch.schemas.model import StageSpec
from anabranch.schemas.tensors import NUMPY_DTYPES, Array


class Framer:
    """Makes the input of a model of a signal: a frame in each row.

    Raises:
        ModelLoadFailed: The model has not just one input.
    """

    def __init__(self, options: FramesStep, stage: StageSpec) -> None:
        spec = only_input(stage, "frames")
        self._name, self._dtype = spec.name, NUMPY_DTYPES[spec.datatype]
        self._options = options
        at = np.arange(options.size)
        # Periodic, as for a spectrum.
        self._window = (0.5 - 0.5 * np.cos(2 * np.pi * at / options.size)) if options.window == "hann" else None

    def __call__(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Return the frames."""
        options, samples = self._options, tensors[self._options.input]
        if samples.ndim != 1:
            raise UnreadableInput(f"{options.input!r} has shape {list(samples.shape)}, expected samples in one axis")
        if samples.dtype == np.int16:
            samples = samples.astype(np.float32) / 32768
        hop, size = options.hop or options.size, options.size
        count = max(0, len(samples) - size) // hop + 1
        if options.pad:
            count += len(samples) > max((count - 1) * hop + size, count * hop)
            samples = np.pad(samples, (0, max(0, (count - 1) * hop + size - len(samples))))
        if len(samples) < size or not len(tensors[options.input]):
            raise UnreadableInput(
                f"{options.input!r} has {len(tensors[options.input])} samples, expected {size} or more: send more"
            )
        frames = np.lib.stride_tricks.sliding_window_view(samples, size)[::hop][:count]
        if self._window is not None:
            frames = frames * self._window
        return {self._name: np.ascontiguousarray(frames, self._dtype)}
