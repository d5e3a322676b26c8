"""Decoders of a given depth, as exporters write them: shapes and a causal mask are computed, and read by all layers."""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WORDS, WIDTH, HEADS, INNER, LONGEST = 50, 16, 2, 32, 64


class Decoder:
    """A decoder under construction."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._rng = np.random.default_rng(0)

    def make(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        name = f"{op_type}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [name], name=name, **attributes))
        return name

    def number(self, *values: int) -> str:
        return self._stored(np.array(values, np.int64))

    def weight(self, *shape: int) -> str:
        return self._stored((self._rng.standard_normal(shape) / shape[0] ** 0.5).astype(np.float32))

    def normed(self, tensor: str) -> str:
        ones = [self._stored(np.ones(WIDTH, np.float32)) for _ in range(2)]
        return self.make("LayerNormalization", tensor, *ones, axis=-1)

    def linear(self, tensor: str, width: int, to: int) -> str:
        return self.make("Add", self.make("MatMul", tensor, self.weight(width, to)), self.weight(to))

    def _stored(self, array: np.typing.NDArray[np.generic]) -> str:
        self.weights.append(numpy_helper.from_array(array, f"w{len(self.weights)}"))
        return self.weights[-1].name


def decoder(layers: int) -> onnx.ModelProto:
    """[rows, words] -> [rows, words, scores]."""
    draft = Decoder()
    make, number = draft.make, draft.number
    shape = make("Shape", "tokens")
    rows, words = (make("Slice", shape, number(place), number(place + 1)) for place in (0, 1))
    zero, one = (make("Squeeze", number(value)) for value in (0, 1))
    places = make("Range", zero, make("Squeeze", words), one)
    later = make("Less", make("Unsqueeze", places, number(1)), make("Unsqueeze", places, number(0)))
    never = make("Cast", number(-100), to=TensorProto.FLOAT)
    mask = make("Where", later, never, make("Cast", number(0), to=TensorProto.FLOAT))
    split = make("Concat", rows, words, number(HEADS, WIDTH // HEADS), axis=0)
    joined = make("Concat", rows, words, number(WIDTH), axis=0)
    hidden = make("Gather", draft.weight(WORDS, WIDTH), "tokens")
    hidden = make("Add", hidden, make("Gather", draft.weight(LONGEST, WIDTH), places))
    for _ in range(layers):
        normed = draft.normed(hidden)
        query, key, value = (
            make("Transpose", make("Reshape", draft.linear(normed, WIDTH, WIDTH), split), perm=perm)
            for perm in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
        )
        chance = make("Softmax", make("Add", make("MatMul", query, key), mask), axis=-1)
        mixed = make("Reshape", make("Transpose", make("MatMul", chance, value), perm=[0, 2, 1, 3]), joined)
        hidden = make("Add", hidden, draft.linear(mixed, WIDTH, WIDTH))
        inner = make("Relu", draft.linear(draft.normed(hidden), WIDTH, INNER))
        hidden = make("Add", hidden, draft.linear(inner, INNER, WIDTH))
    draft.nodes.append(helper.make_node("MatMul", [draft.normed(hidden), draft.weight(WIDTH, WORDS)], ["scores"]))
    tokens = helper.make_tensor_value_info("tokens", TensorProto.INT64, ["rows", "words"])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["rows", "words", WORDS])
    graph = helper.make_graph(draft.nodes, "decoder", [tokens], [scores], draft.weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
