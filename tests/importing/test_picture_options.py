"""Files of transformers' image processors, as options of the picture step."""

from typing import Any

import msgspec
import pytest

from anabranch.importing.errors import ExportIncomplete
from anabranch.importing.picture_options import picture_options
from anabranch.ready_steps.options import PictureStep

MEAN = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3]}


def options(kind: str, **config: Any) -> dict[str, Any]:
    found = picture_options({"image_processor_type": kind, "resample": 2, **MEAN, **config}, "preprocessor_config.json")
    msgspec.convert({"step": "picture", **found}, PictureStep)
    return found


@pytest.mark.parametrize(
    ("kind", "config", "resize", "crop"),
    [
        ("ViTImageProcessor", {"size": {"height": 224, "width": 200}}, [224, 200], None),
        ("ViTImageProcessorFast", {"size": 224}, [224, 224], None),
        ("ViTFeatureExtractor", {"size": [224, 192]}, [224, 192], None),
        ("CLIPImageProcessor", {"size": {"shortest_edge": 224}, "crop_size": 224}, [224], [224, 224]),
        ("CLIPFeatureExtractor", {"size": 224, "do_center_crop": True, "crop_size": 200}, [224], [200, 200]),
        ("CLIPImageProcessor", {"size": 224, "do_center_crop": False, "crop_size": 200}, [224], None),
        ("BitImageProcessor", {"size": {"shortest_edge": 256}, "crop_size": {"height": 8, "width": 9}}, [256], [8, 9]),
        ("DeiTImageProcessor", {"size": {"height": 256, "width": 256}, "crop_size": 224}, [256, 256], [224, 224]),
        ("ConvNextImageProcessor", {"size": {"shortest_edge": 224}, "crop_pct": 0.875}, [256], [224, 224]),
        ("ConvNextImageProcessor", {"size": {"shortest_edge": 224}}, [256], [224, 224]),
        ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}}, [384, 384], None),
        ("LevitImageProcessor", {"size": {"shortest_edge": 224}, "crop_size": 224}, [256], [224, 224]),
        ("MobileNetV2ImageProcessor", {"do_resize": False, "crop_size": 224}, None, [224, 224]),
    ],
)
def test_picture_options_have_the_sizes_of_the_kind(
    kind: str, config: dict[str, Any], resize: list[int] | None, crop: list[int] | None
) -> None:
    found = options(kind, **config)
    assert (found.get("resize"), found.get("crop")) == (resize, crop)


@pytest.mark.parametrize(
    ("number", "name"),
    [(0, "nearest"), (1, "lanczos"), (2, "bilinear"), (3, "bicubic"), (4, "box"), (5, "hamming")],
)
def test_picture_options_name_the_filter(number: int, name: str) -> None:
    assert options("ViTImageProcessor", size=8, resample=number)["resample"] == name


def test_picture_options_leave_out_what_is_switched_off() -> None:
    found = options("ViTImageProcessor", size=8, do_rescale=False, do_normalize=False)
    assert found == {"resize": [8, 8], "resample": "bilinear", "rescale": 1}
    found = options("ViTImageProcessor", size=8, rescale_factor=0.5)
    assert (found["rescale"], found["mean"], found["std"]) == (0.5, MEAN["image_mean"], MEAN["image_std"])


def test_picture_options_of_mobilevit_turn_the_channels() -> None:
    found = options("MobileViTImageProcessor", size={"shortest_edge": 288}, crop_size=256)
    assert (found["channels"], "mean" in found) == ("BGR", False)
    assert "channels" not in options("MobileViTImageProcessor", size=288, do_flip_channel_order=False)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"image_processor_type": "DonutImageProcessor"}, "is for DonutImageProcessor; available: Beit, DeiT"),
        ({"image_processor_type": None}, "is for an unnamed image processor; available: "),
        ({"size": None}, "has no 'size': add it"),
        ({"resample": None}, "has no 'resample'"),
        ({"resample": 9}, "resample = 9, expected 0 to 5"),
        ({"image_std": None}, "has no 'image_std'"),
        ({"do_center_crop": True}, "has no 'crop_size'"),
        ({"size": {"longest_edge": 3}}, "expected height and width, or the shortest edge"),
        ({"size": {"shortest_edge": 3, "longest_edge": 5}}, "expected height and width, or the shortest edge"),
    ],
)
def test_picture_options_unclear_file_is_refused(config: dict[str, Any], reason: str) -> None:
    told = {"image_processor_type": "ViTImageProcessor", "size": 8, "resample": 2, **MEAN, **config}
    with pytest.raises(ExportIncomplete, match=reason):
        picture_options(told, "preprocessor_config.json")
