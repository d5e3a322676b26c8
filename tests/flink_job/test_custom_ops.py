"""Models with custom operators: a tokenizer of onnxruntime-extensions, from raw text to token ids."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime_extensions
import pytest
from onnx import TensorProto, helper

from anabranch.flink_job.config import ModelDefaults
from anabranch.flink_job.model_repository.repository import read_repository
from anabranch.operators.backends.base import ModelLoadFailed
from anabranch.operators.backends.onnx import OnnxBackend
from anabranch.schemas.tensors import Array
from tests.company import Company, alone, read

PACKAGE = "onnxruntime_extensions:get_library_path"
WORDS = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "the", "river", "leaves", "it", "and", "##s")


def write_models(folder: Path, library: str) -> None:
    """Writes `upper`, texts -> texts, and `tokens`, one text or a pair -> ids."""
    tokenizer: dict[str, Any] = {"vocab_file": "\n".join(WORDS), "do_lower_case": 1}
    _write(folder / "upper", library, "StringUpper", TensorProto.STRING, ["y"])
    _write(folder / "tokens", library, "BertTokenizer", TensorProto.INT64, ["y", "types", "mask"], **tokenizer)


def _write(folder: Path, library: str, operator: str, datatype: int, outputs: list[str], **attributes: Any) -> None:
    node = helper.make_node(operator, ["text"], outputs, domain="ai.onnx.contrib", **attributes)
    text = helper.make_tensor_value_info("text", TensorProto.STRING, ["N"])
    made = [helper.make_tensor_value_info(name, datatype, [None]) for name in outputs]
    graph = helper.make_graph([node], "g", [text], made)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.contrib", 1)]
    (folder / "1").mkdir(parents=True)
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), folder / "1" / "model.onnx")
    (folder / "model.toml").write_text(f"[session]\ncustom_ops = [{library!r}]\n")


def texts(*words: str) -> dict[str, Array]:
    return {"text": np.array([word.encode() for word in words], object)}


@pytest.mark.parametrize(
    ("name", "level", "feeds"),
    [
        ("upper", "strangers", [texts("river", "It"), texts("ü"), texts(*["leaves it"] * 40)]),
        ("tokens", "whole", [texts("The river leaves its"), texts("the river", "it and"), texts("nothing")]),
    ],
)
def test_custom_ops_of_a_package_serve_texts(
    tmp_path: Path, name: str, level: str, feeds: list[dict[str, Array]]
) -> None:
    write_models(tmp_path, PACKAGE)
    served = read(tmp_path)
    model = served.find(name, "")
    assert model.verdict.level == level, model.verdict
    for feed, answer in zip(feeds, Company(served).answer(name, feeds), strict=True):
        assert not isinstance(answer, str), answer
        expected = [item.encode() if isinstance(item, str) else item for item in alone(model, feed)["y"].tolist()]
        assert answer["y"].tolist() == expected
    assert alone(served.find("tokens", ""), texts("the river leaves its"))["y"].tolist() == [1, 5, 6, 7, 8, 10, 2]


def test_custom_ops_library_beside_a_model_is_found(tmp_path: Path) -> None:
    write_models(tmp_path, "operators.so")
    with pytest.raises(ModelLoadFailed, match=r"custom operators 'operators\.so'.*custom_ops under \[session\]"):
        read(tmp_path)
    for name in ("upper", "tokens"):
        shutil.copy(onnxruntime_extensions.get_library_path(), tmp_path / name / "1" / "operators.so")
    model = read(tmp_path).find("upper", "")
    assert model.session.custom_ops == (str(tmp_path / "upper" / "1" / "operators.so"),)
    assert OnnxBackend().load(model).run(["y"], texts("a"))[0].tolist() == ["A"]


@pytest.mark.parametrize("library", ["no_such_package:path", "json:no_such_function", "json:loads"])
def test_custom_ops_that_cannot_be_loaded_are_refused(tmp_path: Path, library: str) -> None:
    write_models(tmp_path, library)
    with pytest.raises(ModelLoadFailed, match="cannot load the custom operators"):
        read_repository(tmp_path, ModelDefaults(), strict=True)
