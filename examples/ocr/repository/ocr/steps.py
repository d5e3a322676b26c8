"""The functions around rapidocr's models, which call rapidocr's own code.

    picture --> picture() [ detect ] lines() --> upright() [ orient ] turned() --> columns() [ recognise ] texts()

One picture becomes many lines of different sizes: `pixels` holds all their bytes, `sizes` their shapes.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from rapidocr import RapidOCR
from rapidocr.ch_ppocr_cls import TextClassifier
from rapidocr.ch_ppocr_cls.utils import ClsPostProcess
from rapidocr.ch_ppocr_det import TextDetector
from rapidocr.ch_ppocr_det.utils import DBPostProcess, DetPreProcess
from rapidocr.ch_ppocr_rec import TextRecognizer
from rapidocr.ch_ppocr_rec.utils import CTCLabelDecode
from rapidocr.utils.process_img import apply_vertical_padding, map_boxes_to_original

Array = npt.NDArray[Any]

#: Loads its models only when it reads.
_ocr = RapidOCR(params={"Global.log_level": "error"})
_detecting, _orienting, _recognising = _ocr.cfg.Det, _ocr.cfg.Cls, _ocr.cfg.Rec
_ORIENTED: Any = SimpleNamespace(cls_image_shape=_orienting.cls_image_shape)
_RECOGNISED: Any = SimpleNamespace(rec_image_shape=_recognising.rec_img_shape)

_find_boxes = DBPostProcess(
    thresh=_detecting.thresh,
    box_thresh=_detecting.box_thresh,
    max_candidates=_detecting.max_candidates,
    unclip_ratio=_detecting.unclip_ratio,
    use_dilation=_detecting.use_dilation,
    score_mode=_detecting.score_mode,
)
_scale = DetPreProcess(_detecting.limit_side_len, _detecting.limit_type, _detecting.mean, _detecting.std)
_label = ClsPostProcess(_orienting.label_list)
_decode = CTCLabelDecode(Path(__file__).with_name("characters.txt").read_text(encoding="utf-8").split("\n"))


# ---- detect


def picture(tensors: Mapping[str, Array]) -> list[dict[str, Array]]:
    """Scale the picture for the detector; a too narrow one has no run."""
    scaled = _scale(_frame(tensors["picture"])[0])
    return [] if scaled is None else [{"x": scaled}]


def lines(tensors: Mapping[str, Array], runs: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Cut out the lines that the detector found."""
    framed, done = _frame(tensors["picture"])
    boxes: Any = _find_boxes(runs[0]["fetch_name_0"], framed.shape[:2])[0] if runs else []
    if not len(boxes):
        return {"box": np.zeros((0, 4, 2), np.float32), **_pack([])}
    boxes = TextDetector.sorted_boxes(boxes)
    cut = _ocr.crop_text_regions(framed, boxes)
    height, width = tensors["picture"].shape[:2]
    return {"box": map_boxes_to_original(boxes, done, height, width).astype(np.float32), **_pack(cut)}


def _frame(picture: Array) -> tuple[Array, dict[str, Any]]:
    """Resize and pad a picture for the detector; return the operations, too."""
    resized, done = _ocr.preprocess_img(picture)
    framed, done = apply_vertical_padding(resized, done, _ocr.width_height_ratio, _ocr.min_height)
    return framed, done


# ---- orient


def upright(tensors: Mapping[str, Array]) -> list[dict[str, Array]]:
    """Batch lines of similar width for the orientation model."""
    cut = _unpack(tensors)
    return [
        {"x": np.stack([TextClassifier.resize_norm_img(_ORIENTED, cut[index]) for index in some]), "which": some}
        for some in _batches(cut, _orienting.cls_batch_num)
    ]


def turned(tensors: Mapping[str, Array], runs: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Rotate the lines that are upside down."""
    cut = _unpack(tensors)
    for run in runs:
        for index, (label, score) in zip(run["which"], _label(run["save_infer_model/scale_0.tmp_1"]), strict=True):
            if "180" in label and score > _orienting.cls_thresh:
                cut[index] = cv2.rotate(cut[index], cv2.ROTATE_180)
    return {"box": tensors["box"], **_pack(cut)}


# ---- recognise


def columns(tensors: Mapping[str, Array]) -> list[dict[str, Array]]:
    """Batch lines for the recogniser, padded to the widest."""
    cut = _unpack(tensors)
    feeds = []
    _, height, width = _recognising.rec_img_shape
    for some in _batches(cut, _recognising.rec_batch_num):
        widest = max([width / height, *(cut[index].shape[1] / cut[index].shape[0] for index in some)])
        scaled = [TextRecognizer.resize_norm_img(_RECOGNISED, cut[index], widest) for index in some]
        feeds.append({"x": np.stack(scaled), "which": some})
    return feeds


def texts(tensors: Mapping[str, Array], runs: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Decode the lines; drop empty and uncertain ones."""
    read: dict[int, tuple[str, float]] = {}
    for run in runs:
        said, _ = _decode(run["fetch_name_0"])
        read |= dict(zip(run["which"].tolist(), said, strict=True))
    kept = [index for index in sorted(read) if read[index][0].strip() and read[index][1] >= _ocr.text_score]
    return {
        "text": np.array([read[index][0] for index in kept], dtype=object),
        "score": np.array([read[index][1] for index in kept], dtype=np.float64),
        "box": tensors["box"][kept],
    }


# ---- lines of any size


def _batches(cut: Sequence[Array], size: int) -> Iterator[npt.NDArray[np.int64]]:
    """Yield indices of lines in batches, narrowest first."""
    order = np.argsort(np.array([line.shape[1] / float(line.shape[0]) for line in cut]))
    for start in range(0, len(cut), size):
        yield order[start : start + size]


def _pack(cut: Sequence[Array]) -> dict[str, Array]:
    return {
        "pixels": np.concatenate([line.ravel() for line in cut]) if cut else np.zeros(0, np.uint8),
        "sizes": np.array([line.shape for line in cut], np.int64).reshape(-1, 3),
    }


def _unpack(tensors: Mapping[str, Array]) -> list[Array]:
    sizes = tensors["sizes"]
    parts = np.split(tensors["pixels"], np.cumsum(sizes.prod(axis=1))[:-1]) if len(sizes) else []
    return [part.reshape(size) for part, size in zip(parts, sizes, strict=True)]
