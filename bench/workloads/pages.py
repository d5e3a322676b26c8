"""Pages with lines of text, of many sizes, for rapidocr's detector of text."""

from collections.abc import Iterator
from importlib.resources import files
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from PIL import Image

from anabranch.schemas.tensors import Array
from bench.workloads.models import new_model
from bench.workloads.text_lines import TEXTS, render
from bench.workloads.workload import Workload, workload_of

DETECTOR = "detector"
#: Heights and widths; the model takes multiples of 32.
SIZES = ((192, 320), (256, 256), (320, 480), (384, 288), (480, 640), (640, 448))

_FILE = "PP-OCRv6_det_small.onnx"
_INPUT = "page"
_PAGES_OF_A_SIZE = 4
#: Bytes become -1 to 1, as rapidocr scales them.
_SCALE, _OFFSET = 2 / 255, -1.0
#: The output has one value for so many pixels of each axis.
_STEP = 4
_PAPER = 250
_MARGIN, _LINE_GAP = 8, 12
_SEED = 1
#: Of a probability, between runs of several pages and of one.
_TOLERANCE = 1e-3


def add_detector(repository: Path) -> Path:
    """Add rapidocr's detector to a repository, and return that.

    It takes pixels as bytes, and returns the largest probability of text in each square of pixels.
    """
    model = onnx.load_from_string(detector_bytes())
    graph = model.graph
    (pixels,), (scores,) = graph.input, graph.output
    for name, value in (("scale", _SCALE), ("offset", _OFFSET)):
        graph.initializer.append(helper.make_tensor(name, TensorProto.FLOAT, [1], [value]))
    first = [
        helper.make_node("Cast", [_INPUT], ["levels"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["levels", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "offset"], ["centred"]),
        helper.make_node("Transpose", ["centred"], [pixels.name], perm=[0, 3, 1, 2]),
    ]
    last = helper.make_node("MaxPool", [scores.name], ["text"], kernel_shape=[_STEP] * 2, strides=[_STEP] * 2)
    nodes = [*first, *graph.node, last]
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend(nodes)
    graph.input.append(helper.make_tensor_value_info(_INPUT, TensorProto.UINT8, ["batch", "height", "width", 3]))
    graph.output.append(helper.make_tensor_value_info("text", TensorProto.FLOAT, ["batch", 1, "rows", "columns"]))
    onnx.save(model, new_model(repository, DETECTOR))
    return repository


def detector_bytes() -> bytes:
    """Return rapidocr's own model."""
    return files("rapidocr").joinpath("models", _FILE).read_bytes()


def pages(repository: Path) -> Workload:
    """Return rendered pages, one in each request, of all sizes in a random order."""
    tensors = [page[np.newaxis] for page in _pages()]
    order = np.random.default_rng(_SEED).permutation(len(tensors))
    chosen = [tensors[number] for number in order]
    return workload_of(DETECTOR, DETECTOR, _INPUT, chosen, repository, tolerance=_TOLERANCE)


def _pages() -> Iterator[Array]:
    for number, (height, width) in enumerate(SIZES * _PAGES_OF_A_SIZE):
        page = Image.new("RGB", (width, height), (_PAPER,) * 3)
        top = _MARGIN
        for place, text in enumerate(islice(cycle(TEXTS), number, None)):
            line = Image.fromarray(render(text, number + place))
            if top + line.height > height - _MARGIN:
                break
            page.paste(line, (_MARGIN, top))
            top += line.height + _LINE_GAP
        yield np.asarray(page)
