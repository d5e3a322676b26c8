"""Pictures: equal to what Pillow and numpy compute apart, and hostile ones fail before they are decoded."""

import base64
import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anabranch.operators.backends.base import ModelLoadFailed
from anabranch.ready_steps.options import PictureStep
from anabranch.ready_steps.pictures import PictureReader
from anabranch.schemas.errors import UnreadableInput
from anabranch.schemas.model import StageSpec, TensorSpec
from anabranch.schemas.tensors import Array

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def stage(datatype: str = "FP32", *axes: int | None, inputs: int = 1, company: Any = "equal") -> StageSpec:
    shape = (None, *(axes or (None, None, None)))
    specs = [TensorSpec(name, datatype, shape) for name in ("pixel_values", "pixel_mask")[:inputs]]
    return StageSpec("", "", tuple(specs), (), name="model", company=company)


def painted(width: int, height: int, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(width * height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).convert(mode)


def encoded(picture: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def read(*pictures: bytes | str, spec: StageSpec | None = None, **options: Any) -> list[dict[str, Array]]:
    return PictureReader(PictureStep(**options), spec or stage())({"picture": np.array(pictures, dtype=object)})


def pixels(picture: bytes | str, **options: Any) -> Array:
    [run] = read(picture, **options)
    found: Array = run["pixel_values"][0]
    return found


@pytest.mark.parametrize("size", [(40, 30), (30, 41), (24, 24), (9, 50)])
@pytest.mark.parametrize("resample", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_picture_shortest_edge_and_crop_equal_pillow(size: tuple[int, int], resample: str) -> None:
    picture = painted(*size)
    width, height = size
    # Cut at the centre of a picture whose shorter edge is 28, to 24 x 20.
    scaled = (28, 28 * height // width) if width <= height else (28 * width // height, 28)
    resized = np.asarray(picture.resize(scaled, Image.Resampling[resample.upper()]))
    top, left = (scaled[1] - 24) // 2, (scaled[0] - 20) // 2
    cut = resized[top : top + 24, left : left + 20].astype(np.float32) / 255
    expected = ((cut - np.array(MEAN, np.float32)) / np.array(STD, np.float32)).transpose(2, 0, 1)
    found = pixels(encoded(picture), resize=(28,), resample=resample, crop=(24, 20), mean=MEAN, std=STD)
    assert found.shape == (3, 24, 20)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_picture_height_and_width_ignore_the_aspect() -> None:
    picture = painted(33, 21)
    expected = np.asarray(picture.resize((12, 7), Image.Resampling.BILINEAR)) * (1 / 255)
    np.testing.assert_allclose(pixels(encoded(picture), resize=(7, 12)), expected.transpose(2, 0, 1), atol=1e-7)


@pytest.mark.parametrize(
    ("size", "rows", "columns"),
    [
        # Where the picture is in the crop of 9 x 8: an odd margin is larger above and on the left.
        ((5, 4), (3, 7), (2, 7)),
        ((4, 5), (2, 7), (2, 6)),
        ((8, 9), (0, 9), (0, 8)),
        ((6, 6), (2, 8), (1, 7)),
    ],
)
def test_picture_smaller_than_the_crop_is_filled_up(
    size: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    found = pixels(encoded(painted(*size)), crop=(9, 8), rescale=1).transpose(1, 2, 0)
    expected = np.zeros((9, 8, 3), np.float32)
    expected[slice(*rows), slice(*columns)] = np.asarray(painted(*size))
    np.testing.assert_array_equal(found, expected)


def test_picture_lower_but_wider_than_the_crop_is_cut() -> None:
    found = pixels(encoded(painted(20, 5)), crop=(9, 8), rescale=1).transpose(1, 2, 0)
    expected = np.zeros((9, 8, 3), np.float32)
    expected[2:7] = np.asarray(painted(20, 5))[:, 6:14]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("channels", "layout", "shape"), [("RGB", "NHWC", (4, 6, 3)), ("BGR", "NCHW", (3, 4, 6)), ("L", "NCHW", (1, 4, 6))]
)
def test_picture_channels_and_layout_are_as_asked(channels: str, layout: str, shape: tuple[int, ...]) -> None:
    picture = painted(6, 4)
    found = pixels(encoded(picture), channels=channels, layout=layout, rescale=1)
    assert found.shape == shape
    expected = np.asarray(picture.convert("L"))[None] if channels == "L" else np.asarray(picture)
    expected = expected[:, :, ::-1].transpose(2, 0, 1) if channels == "BGR" else expected
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "I;16"])
def test_picture_of_any_mode_becomes_rgb(mode: str) -> None:
    form = "TIFF" if mode == "CMYK" else "PNG"
    picture = Image.new("I;16", (5, 4), 300) if mode == "I;16" else painted(5, 4, mode)
    with Image.open(BytesIO(encoded(picture, form))) as again:
        expected = np.asarray(again.convert("RGB"))
    np.testing.assert_array_equal(pixels(encoded(picture, form), rescale=1), expected.transpose(2, 0, 1))


def test_picture_is_turned_as_its_exif_says() -> None:
    picture = painted(16, 8)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter to the right
    found = pixels(encoded(picture, exif=exif), rescale=1)
    np.testing.assert_array_equal(found.transpose(1, 2, 0), np.rot90(np.asarray(picture), -1))


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,", "\n"])
def test_picture_in_base64_equals_its_bytes(prefix: str) -> None:
    data = encoded(painted(5, 4))
    text = prefix + base64.encodebytes(data).decode()
    np.testing.assert_array_equal(pixels(text), pixels(data))


def test_pictures_of_one_size_share_a_run() -> None:
    pictures = [encoded(painted(*size)) for size in ((5, 4), (6, 4), (5, 4))]
    runs = read(*pictures)
    assert [run["rows"].tolist() for run in runs] == [[0, 2], [1]]
    alone = read(*pictures, spec=stage(company="alone"))
    assert [run["rows"].tolist() for run in alone] == [[0], [1], [2]]
    assert read(*pictures, resize=(4, 4))[0]["pixel_values"].shape == (3, 3, 4, 4)
    [run] = read(pictures[0], spec=stage("FP16"))
    assert run["pixel_values"].dtype == np.float16


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A picture whose header promises more than there is."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


HOSTILE: dict[str, tuple[bytes, dict[str, Any], str]] = {
    "nothing": (b"", {}, "'picture' is not a picture: an unknown format; send one of BMP, GIF"),
    "words": (b"no picture", {}, "is not a picture"),
    "a program": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", {}, "is not a picture"),
    "a rare format": (encoded(painted(5, 4), "PPM"), {}, "is not a picture: an unknown format"),
    "half a PNG": (encoded(painted(50, 50))[:300], {}, "is not a picture"),
    "half a JPEG": (encoded(painted(50, 50), "JPEG")[:200], {}, "is not a picture: OSError: Truncated"),
    "too few pixels": (png(4, 4, b"\0" * 5), {}, "is not a picture"),
    "a bomb": (png(9000, 9000), {}, "'picture' has 9000 x 9000 pixels, more than the 50000000 of max_pixels"),
    "a large bomb": (png(60_000, 60_000), {}, "DecompressionBombError"),
    "over the limit": (png(11, 10), {"max_pixels": 100}, "has 11 x 10 pixels, more than the 100"),
    "a thread": (
        encoded(painted(1, 400)),
        {"resize": (64,), "max_pixels": 10_000},
        "would be resized to 64 x 25600 pixels",
    ),
}


@pytest.mark.parametrize(("data", "options", "reason"), HOSTILE.values(), ids=HOSTILE)
def test_picture_hostile_bytes_are_refused(data: bytes, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnreadableInput, match=reason) as refused:
        pixels(data, **options)
    assert "\n" not in refused.value.message
    assert " at 0x" not in refused.value.message


def test_picture_base64_of_much_space_is_refused_at_once() -> None:
    # It would take hours if the pattern went back for each byte.
    with pytest.raises(UnreadableInput):
        pixels(b" " * 4_000_000 + b"\0")


def test_picture_model_of_two_inputs_is_refused() -> None:
    with pytest.raises(ModelLoadFailed, match="model has the inputs pixel_values, pixel_mask, expected one"):
        PictureReader(PictureStep(), stage(inputs=2))


@pytest.mark.parametrize(
    ("axes", "options"),
    [
        ((3, 8, 8), {"resize": (8, 9)}),
        ((3, 8, 8), {"resize": (8, 8), "crop": (6, 6)}),
        ((1, None, None), {}),
        ((3, None, None), {"channels": "L"}),
        ((8, 8, 3), {"resize": (8, 8)}),
        ((3, 8), {"resize": (8, 8)}),
    ],
)
def test_picture_of_another_shape_than_the_input_is_refused(
    axes: tuple[int | None, ...], options: dict[str, Any]
) -> None:
    with pytest.raises(ModelLoadFailed, match=r"'pixel_values' is .*, but pictures become .*: correct resize, crop"):
        PictureReader(PictureStep(**options), stage("FP32", *axes))
    PictureReader(PictureStep(resize=(8, 8)), stage("FP32", 3, 8, 8))
    PictureReader(PictureStep(resize=(9,), crop=(8, 8), layout="NHWC"), stage("FP32", 8, 8, 3))
