from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from bench.workloads.text_lines import RECOGNIZER, TEXTS, add_recognizer, prepare, render, text_lines


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return add_recognizer(tmp_path_factory.mktemp("models"))


@pytest.mark.slow
def test_recognizer_rendered_text_is_read(repository: Path) -> None:
    session = onnxruntime.InferenceSession(repository / RECOGNIZER / "1" / "model.onnx")
    characters = ["", *session.get_modelmeta().custom_metadata_map["character"].split("\n"), " "]
    workload = text_lines(repository)
    for number, text in enumerate(TEXTS):
        classes, probabilities = workload.answer(number).reshape(-1, 2).T
        # Greedy decoding of CTC: class 0 is no character, and one that goes on is the same one.
        kept = [place for place, found in enumerate(classes) if found and (not place or found != classes[place - 1])]
        assert "".join(characters[int(classes[place])] for place in kept).replace(" ", "") == text.replace(" ", "")
        assert probabilities[kept].min() > 0.3


def test_recognizer_last_nodes_equal_numpy(repository: Path, tmp_path: Path) -> None:
    model = onnx.load(repository / RECOGNIZER / "1" / "model.onnx")
    (top,) = [node for node in model.graph.node if node.op_type == "TopK"]
    model.graph.output.append(onnx.helper.make_tensor_value_info(top.input[0], onnx.TensorProto.FLOAT, None))
    onnx.save(model, tmp_path / "both.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "both.onnx")
    best, scores = session.run(None, {"x": prepare(render("Flat is better", 0))[np.newaxis]})
    assert np.array_equal(best[..., 0], scores.argmax(axis=2))
    assert np.array_equal(best[..., 1], scores.max(axis=2))
