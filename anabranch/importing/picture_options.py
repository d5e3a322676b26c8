"""Options of the picture step, from a `preprocessor_config.json` of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anabranch.importing.errors import ExportIncomplete

#: Kinds of image processors, and what a single number as `size` means to them.
_SQUARE = ("Beit", "DeiT", "SigLIP", "Siglip", "ViT")
_EDGE = ("Bit", "CLIP", "ConvNext", "Levit", "MobileNetV1", "MobileNetV2", "MobileViT")
_FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
_ENDINGS = ("ImageProcessorFast", "ImageProcessorPil", "ImageProcessor", "FeatureExtractor")
#: ConvNext crops smaller pictures only.
_CONVNEXT_WHOLE = 384
_LEVIT = 256 / 224


def picture_options(config: Mapping[str, Any], file: str) -> dict[str, Any]:
    """Translate the file to options of `PictureStep`.

    Raises:
        ExportIncomplete: It lacks a value, or has what the step does not do.
    """
    return _Translation(config, file).options()


class _Translation:
    def __init__(self, config: Mapping[str, Any], file: str) -> None:
        self._config = config
        self._file = file
        named = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
        self._kind = next((named.removesuffix(end) for end in _ENDINGS if named.endswith(end)), named)
        if self._kind not in (*_SQUARE, *_EDGE):
            raise ExportIncomplete(
                f"{file} is for {named or 'an unnamed image processor'}; available: {', '.join((*_SQUARE, *_EDGE))}"
            )

    def options(self) -> dict[str, Any]:
        """Return the options that differ from the step's defaults."""
        config = self._config
        options: dict[str, Any] = {}
        crop = config.get("do_center_crop", "crop_size" in config)
        if config.get("do_resize", True):
            options["resize"], own_crop = self._size()
            options["resample"] = self._filter()
            if own_crop:
                options["crop"] = own_crop
        if crop and self._kind != "ConvNext":
            options["crop"] = self._pair(self._needed("crop_size"), "crop_size")
        options["rescale"] = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1
        if config.get("do_normalize", self._kind != "MobileViT"):
            options["mean"], options["std"] = self._needed("image_mean"), self._needed("image_std")
        if config.get("do_flip_channel_order", self._kind == "MobileViT"):
            options["channels"] = "BGR"
        return options

    def _needed(self, key: str) -> Any:
        value = self._config.get(key)
        if value is None:
            raise ExportIncomplete(f"{self._file} has no {key!r}: add it, as the model was trained with")
        return value

    def _filter(self) -> str:
        number = self._needed("resample")
        if not isinstance(number, int) or not 0 <= number < len(_FILTERS):
            raise ExportIncomplete(f"{self._file} has resample = {number!r}, expected 0 to {len(_FILTERS) - 1}")
        return _FILTERS[number]

    def _size(self) -> tuple[list[int], list[int]]:
        """Return the size after resizing, and that of a crop which belongs to it."""
        size = self._needed("size")
        edge = size if isinstance(size, int) and self._kind in _EDGE else None
        if isinstance(size, dict) and "shortest_edge" in size and "longest_edge" not in size:
            edge = int(size["shortest_edge"])
        if edge is None:
            return self._pair(size, "size"), []
        if self._kind == "Levit":
            return [int(_LEVIT * edge)], []
        if self._kind != "ConvNext":
            return [edge], []
        if edge >= _CONVNEXT_WHOLE:
            return [edge, edge], []
        return [int(edge / (self._config.get("crop_pct") or 224 / 256))], [edge, edge]

    def _pair(self, size: Any, key: str) -> list[int]:
        if isinstance(size, int):
            return [size, size]
        if isinstance(size, list) and len(size) == 2:
            return [int(each) for each in size]
        if isinstance(size, dict) and size.keys() >= {"height", "width"}:
            return [int(size["height"]), int(size["width"])]
        raise ExportIncomplete(f"{self._file} has {key} = {size!r}, expected height and width, or the shortest edge")
