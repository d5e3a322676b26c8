"""Writes the quickstart's model and its input: `python -m examples.quickstart.make_model`.

The model returns the nearest of twelve named colours for each pixel, with its confidence.

    pixels FP32 [rows, 3] --> squared distances to the colours --> softmax --> confidence FP32 [rows]
                                                                         +--> name BYTES [rows]
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

FOLDER = Path(__file__).parent
MODEL = FOLDER / "models/colours/1/model.onnx"
PIXELS = FOLDER / "pixels.npy"

COLOURS = {
    "black": (0, 0, 0),
    "white": (255, 255, 255),
    "grey": (128, 128, 128),
    "red": (220, 20, 30),
    "orange": (255, 140, 0),
    "yellow": (250, 230, 40),
    "green": (30, 160, 60),
    "cyan": (0, 200, 220),
    "blue": (20, 60, 220),
    "purple": (130, 30, 160),
    "pink": (255, 160, 190),
    "brown": (120, 70, 30),
}
#: Divides the squared distances (of colours from 0 to 1).
_SPREAD = 0.05


def build_model() -> onnx.ModelProto:
    """Return the ONNX model; its bytes are reproducible."""
    colours = np.array(list(COLOURS.values()), np.float32) / 255
    # Softmax cancels |pixel|^2.
    constants = {
        "scale": np.array(1 / 255, np.float32),
        "directions": (2 * colours.T / _SPREAD).astype(np.float32),
        "offsets": (-(colours**2).sum(axis=1) / _SPREAD).astype(np.float32),
        "last_axis": np.array([1], np.int64),
    }
    names = numpy_helper.from_array(np.array(list(COLOURS), object), "names")
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["pixels", "scale"], ["scaled"]),
            helper.make_node("MatMul", ["scaled", "directions"], ["products"]),
            helper.make_node("Add", ["products", "offsets"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["shares"], axis=1),
            helper.make_node("ReduceMax", ["shares", "last_axis"], ["confidence"], keepdims=0),
            helper.make_node("ArgMax", ["shares"], ["index"], axis=1, keepdims=0),
            helper.make_node("Gather", ["names", "index"], ["name"], axis=0),
        ],
        "colours",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["rows", 3])],
        [
            helper.make_tensor_value_info("name", TensorProto.STRING, ["rows"]),
            helper.make_tensor_value_info("confidence", TensorProto.FLOAT, ["rows"]),
        ],
        [*(numpy_helper.from_array(array, name) for name, array in constants.items()), names],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    model.producer_name = "anabranch-quickstart"
    onnx.checker.check_model(model, full_check=True)
    return model


def make_pixels() -> npt.NDArray[np.float32]:
    """Return four pixels: strawberry, grass, sky, chocolate."""
    return np.array([[225, 40, 50], [60, 150, 50], [80, 190, 230], [110, 65, 35]], np.float32)


def main() -> None:
    """Write both files."""
    MODEL.parent.mkdir(parents=True, exist_ok=True)
    MODEL.write_bytes(build_model().SerializeToString(deterministic=True))
    np.save(PIXELS, make_pixels())


if __name__ == "__main__":
    main()
