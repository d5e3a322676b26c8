"""Pictures of lines of text, for rapidocr's recognizer."""

from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib as mpl
import numpy as np
import onnx
from onnx import TensorProto, helper
from PIL import Image, ImageDraw, ImageFont
from rapidocr.ch_ppocr_rec import TextRecognizer

from anabranch.schemas.tensors import Array
from bench.workloads.models import new_model
from bench.workloads.workload import Workload, asking, workload_of

RECOGNIZER = "recognizer"
TEXTS = (
    "Total amount due",
    "Invoice No. 20418",
    "Platform 9, 14:25",
    "Keep out of reach",
    "Made in Portugal",
    "Handle with care",
    "Best before 06/27",
    "Gate closes 18:40",
    "Fragile: glass",
    "Net weight 250 g",
    "Customer copy",
    "VAT 23 % included",
    "Serial A7-0094",
    "Please ring twice",
    "Return by Friday",
    "Page 3 of 12",
)

_FILE = "PP-OCRv6_rec_small.onnx"
_INPUT = "x"
#: Channels, height and width of what rapidocr gives its recognizer for lines up to this wide.
_SHAPE = (3, 48, 320)
_FONT_SIZES = (22, 26, 30)
_MARGIN = 6
_INK_AND_PAPER = (((20, 20, 20), (255, 255, 255)), ((235, 235, 225), (40, 55, 70)), ((60, 40, 30), (240, 230, 205)))


def add_recognizer(repository: Path) -> Path:
    """Add rapidocr's text recognizer to a repository, and return that.

    Its outputs are the best of 18,710 probabilities of each place, and its index.
    """
    model = onnx.load_from_string(files("rapidocr").joinpath("models", _FILE).read_bytes())
    graph = model.graph
    (scores,) = graph.output
    graph.initializer.append(helper.make_tensor("one", TensorProto.INT64, [1], [1]))
    graph.node.extend(
        [
            helper.make_node("TopK", [scores.name, "one"], ["probability", "place"], axis=2),
            helper.make_node("Cast", ["place"], ["class"], to=TensorProto.FLOAT),
            helper.make_node("Concat", ["class", "probability"], ["best"], axis=2),
        ]
    )
    rows, places = (axis.dim_param for axis in scores.type.tensor_type.shape.dim[:2])
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("best", TensorProto.FLOAT, [rows, places, 2]))
    onnx.save(model, new_model(repository, RECOGNIZER))
    return repository


def text_lines(repository: Path, *, explain: bool = False) -> Workload:
    """Return rendered lines of text, one in each request, as rapidocr's own code scales and pads them."""
    tensors = [prepare(render(text, number))[np.newaxis] for number, text in enumerate(TEXTS)]
    return workload_of(RECOGNIZER, RECOGNIZER, _INPUT, tensors, repository, asking(explain=explain))


def render(text: str, number: int) -> Array:
    """Return a line as a picture; uint8, [height, width, 3]. Sizes and colours differ from one number to the next."""
    font_path = Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    font = ImageFont.truetype(font_path, _FONT_SIZES[number % len(_FONT_SIZES)])
    ink, paper = _INK_AND_PAPER[number % len(_INK_AND_PAPER)]
    left, top, right, bottom = font.getbbox(text)
    picture = Image.new("RGB", (round(right - left) + 2 * _MARGIN, round(bottom - top) + 2 * _MARGIN), paper)
    ImageDraw.Draw(picture).text((_MARGIN - left, _MARGIN - top), text, ink, font)
    return np.asarray(picture)


def prepare(picture: Array) -> Array:
    """Return the recognizer's input of a line, as rapidocr makes it; float32, [3, 48, 320]."""
    _, height, width = _SHAPE
    settings = SimpleNamespace(rec_image_shape=_SHAPE)
    # No more of a recognizer is needed for it, and a whole one would load a model.
    recognizer: Any = TextRecognizer
    prepared: Array = recognizer.resize_norm_img(settings, picture, width / height)
    return prepared
