"""Models as text, in ONNX's own notation."""

from pathlib import Path

import onnx

from anabranch.partition.graph.model_graph import Graph, load_graph


def model_of(text: str, *, ir_version: int = 10, opset: int = 17) -> onnx.ModelProto:
    """A model of the text `graph (inputs) => (outputs) <initializers> { nodes }`."""
    return onnx.parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["" : {opset}]>\n{text}')


def graph_of(folder: Path, text: str) -> Graph:
    """The graph of a model that is saved in a folder first."""
    path = folder / "model.onnx"
    onnx.save(model_of(text), path)
    return load_graph(path)


#: Both reshapes read a shape, which does not count rows.
SHAPES = """
g (float[N, 4] x) => (float[N, 4] y) <float[4] w = {1, 2, 3, 4}, int64[3] deep = {0, 2, 2}> {
    s = Shape(x)
    a = Mul(x, w)
    b = Reshape(a, deep)
    c = Softmax(b)
    d = Reshape(c, s)
    e = Mul(d, w)
    y = Reshape(e, s)
}
"""

#: The picture in `anabranch.partition.graph.model_graph`: two branches that meet again.
BRANCHES = """
g (float[N, 4] x) => (float[N, 4] y) {
    a = Relu(x)
    b = Neg(a)
    c = Abs(a)
    y = Add(b, c)
}
"""
