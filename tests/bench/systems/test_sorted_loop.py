from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from bench.systems.in_memory.sorted_loop import run_sorted


def test_sorted_loop_gives_each_text_its_own_answer(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Add", ["input_ids", "attention_mask"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["y"], to=TensorProto.FLOAT),
    ]
    tensors = [
        helper.make_tensor_value_info(name, kind, ["n", "length"])
        for name, kind in (("input_ids", TensorProto.INT64), ("attention_mask", TensorProto.INT64), ("y", 1))
    ]
    graph = helper.make_graph(nodes, "sum", tensors[:2], tensors[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "model.onnx")
    rng = np.random.default_rng(1)
    texts = []
    for _ in range(70):
        ids = rng.integers(1, 100, (1, rng.integers(1, 9)))
        texts.append({"input_ids": ids, "attention_mask": np.ones_like(ids)})
    found = run_sorted(tmp_path / "model.onnx", texts)
    assert found.rate_per_s > 0
    for text, answer in zip(texts, found.answers, strict=True):
        assert answer.tolist() == (text["input_ids"][0] + 1).tolist()
