"""Reads pictures with Pillow, and prepares them as transformers' image processors do.

bytes -> size from the header -> decode -> turn by EXIF -> RGB -> resize -> crop -> rescale -> normalise
"""

import base64
import binascii
import re
from collections.abc import Mapping
from io import BytesIO
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np

from anabranch.operators.backends.base import ModelLoadFailed
from anabranch.ready_steps.options import ROWS, PictureStep
from anabranch.ready_steps.row_groups import group_rows
from anabranch.ready_steps.signature import only_input
from anabranch.schemas.errors import UnreadableInput
from anabranch.schemas.model import StageSpec, TensorSpec
from anabranch.schemas.tensors import NUMPY_DTYPES, Array, show_axes

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

#: Other formats run programs, or have decoders that few use.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
#: Possessive: no text makes it slow.
_BASE64 = re.compile(rb"(?:data:image/[\w.+-]{1,40};base64,)?+([A-Za-z0-9+/\s]++={0,2}+)\s*+")


class PictureReader:
    """Makes the input of a model of encoded pictures; those of one size share a run if the model's trial allows.

    Raises:
        ModelLoadFailed: The model has not just one input.
    """

    def __init__(self, options: PictureStep, stage: StageSpec) -> None:
        from PIL import Image, ImageOps  # noqa: PLC0415 - an extra

        spec = only_input(stage, "pictures")
        self._image, self._turn = Image, ImageOps.exif_transpose
        self._options = options
        self._filter = Image.Resampling[options.resample.upper()]
        self._name, self._dtype = spec.name, NUMPY_DTYPES[spec.datatype]
        self._check_shape(spec)
        self._alone = stage.company == "alone"
        # Each value of a byte, rescaled in FP64 and rounded once.
        self._scaled = (np.arange(256) * options.rescale).astype(np.float32)
        self._mean, self._std = (np.array(each, np.float32) for each in (options.mean, options.std))

    def _check_shape(self, spec: TensorSpec) -> None:
        """Compare the model's input with pictures as they become."""
        options = self._options
        size: tuple[int | None, ...] = options.crop or (options.resize if len(options.resize) == 2 else (None, None))
        channels = 1 if options.channels == "L" else 3
        made = (channels, *size) if options.layout == "NCHW" else (*size, channels)
        axes = spec.shape[1:]
        if len(axes) != len(made) or any(a and b and a != b for a, b in zip(axes, made, strict=True)):
            raise ModelLoadFailed(
                f"input {spec.name!r} is {show_axes(spec.shape)}, but pictures become {show_axes((None, *made))}: "
                "correct resize, crop, channels or layout"
            )

    def __call__(self, tensors: Mapping[str, Array]) -> list[dict[str, Array]]:
        """Return inputs for each run of the model."""
        pixels = [self._read(item) for item in tensors[self._options.input].ravel().tolist()]
        groups = group_rows([each.shape for each in pixels], alone=self._alone)
        return [
            {self._name: np.stack([pixels[row] for row in rows]), ROWS: np.array(rows, np.int64)} for rows in groups
        ]

    def _read(self, item: object) -> Array:
        data = item if isinstance(item, bytes) else str(item).encode()
        try:
            with self._image.open(BytesIO(_decoded(data)), formats=_FORMATS) as picture:
                self._check_size(picture.size, "has")
                self._turn(picture, in_place=True)
                mode = "L" if self._options.channels == "L" else "RGB"
                return self._prepared(picture if picture.mode == mode else picture.convert(mode))
        except UnreadableInput:
            raise
        except Exception as error:  # noqa: BLE001 - decoders raise anything
            # Its own words have an address in memory.
            is_unknown = type(error).__name__ == "UnidentifiedImageError"
            reason = "an unknown format" if is_unknown else f"{type(error).__name__}: {error}"
            raise UnreadableInput(
                f"{self._options.input!r} is not a picture: {reason}; send one of {', '.join(_FORMATS)}"
            ) from None

    def _check_size(self, size: tuple[int, int], verb: str) -> None:
        width, height = size
        most = self._options.max_pixels
        if width * height > most:
            raise UnreadableInput(
                f"{self._options.input!r} {verb} {width} x {height} pixels, more than the {most} of max_pixels: send a "
                "smaller one"
            )

    def _prepared(self, picture: "Picture") -> Array:
        options = self._options
        if options.resize:
            size = _target(picture.size, options.resize)
            # A picture that is one pixel wide becomes very long.
            self._check_size(size, "would be resized to")
            picture = picture.resize(size, resample=self._filter)
        pixels: Array = np.asarray(picture)
        pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
        if options.crop:
            pixels = _cropped(pixels, options.crop[0], options.crop[1])
        if options.channels == "BGR":
            pixels = pixels[:, :, ::-1]
        if options.rescale != 1:
            pixels = self._scaled[pixels]
        if self._mean.size or self._std.size:
            pixels = pixels.astype(np.float32, copy=False)
            pixels = pixels - self._mean if self._mean.size else pixels
            pixels = pixels / self._std if self._std.size else pixels
        if options.layout == "NCHW":
            pixels = pixels.transpose(2, 0, 1)
        return np.ascontiguousarray(pixels, self._dtype)


def _decoded(data: bytes) -> bytes:
    """Decode base64, of which no picture consists."""
    found = _BASE64.fullmatch(data)
    if found is None:
        return data
    try:
        return base64.b64decode(found[1])
    except binascii.Error:
        return data


def _target(size: tuple[int, int], wanted: tuple[int, ...]) -> tuple[int, int]:
    """Return width and height after resizing."""
    if len(wanted) == 2:
        return wanted[1], wanted[0]
    width, height = size
    [short] = wanted
    if width <= height:
        return short, int(short * height / width)
    return int(short * width / height), short


def _cropped(pixels: Array, height: int, width: int) -> Array:
    """Cut the centre out, filled up with 0 where the picture is smaller."""
    rows, columns = pixels.shape[:2]
    top, left = (rows - height) // 2, (columns - width) // 2
    if top < 0 or left < 0:
        filled: Any = np.zeros((max(rows, height), max(columns, width), pixels.shape[2]), pixels.dtype)
        above, before = ceil((filled.shape[0] - rows) / 2), ceil((filled.shape[1] - columns) / 2)
        filled[above : above + rows, before : before + columns] = pixels
        pixels, top, left = filled, top + above, left + before
    return pixels[max(0, top) : top + height, max(0, left) : left + width]
