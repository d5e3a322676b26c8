"""Vectors and labels, in the order of the rows."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anabranch.operators.backends.base import ModelLoadFailed
from anabranch.ready_steps.answers import Labeler, Pooler
from anabranch.ready_steps.options import LabelsStep, PoolStep
from anabranch.ready_steps.row_groups import join_rows
from anabranch.schemas.model import StageSpec, TensorSpec
from anabranch.schemas.tensors import Array

HIDDEN = TensorSpec("last_hidden_state", "FP32", (None, None, 2))
LOGITS = TensorSpec("logits", "FP32", (None, 3))
TOKENS = np.array([[[1, 2], [3, 4], [50, 60]], [[-1, 0], [2, 2], [5, 1]]], np.float32)
MASK = np.array([[1, 1, 0], [1, 1, 1]])


def stage(*outputs: TensorSpec) -> StageSpec:
    return StageSpec("", "", (), outputs, name="model")


def pooled(*runs: dict[str, Any], output: TensorSpec = HIDDEN, **options: Any) -> Array:
    return Pooler(PoolStep(**options), stage(output))({}, runs)["embedding"]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("mean", [[2, 3], [2, 1]]), ("max", [[3, 4], [5, 2]]), ("first", [[1, 2], [-1, 0]])],
)
def test_pool_leaves_padding_out(mode: str, expected: list[list[float]]) -> None:
    run = {"last_hidden_state": TOKENS, "attention_mask": MASK}
    found = pooled(run, mode=mode, normalize=False)
    assert found.tolist() == expected
    assert found.dtype == np.float32
    lengths = np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(pooled(run, mode=mode), expected / lengths, atol=1e-7)


def test_pool_of_a_vector_takes_it_as_it_is() -> None:
    output = TensorSpec("sentence_embedding", "FP16", (None, 2))
    vectors = np.array([[3, 4], [0, 0]], np.float16)
    run: dict[str, Any] = {"sentence_embedding": vectors}
    assert pooled(run, output=output, mode="none", normalize=False).tolist() == [[3, 4], [0, 0]]
    # A vector of zeros keeps its length.
    np.testing.assert_allclose(pooled(run, output=output, mode="none"), [[0.6, 0.8], [0.0, 0.0]], atol=1e-7)


def test_pool_of_a_row_without_tokens_is_zero() -> None:
    assert pooled({"last_hidden_state": TOKENS[:1], "attention_mask": np.zeros((1, 3))}).tolist() == [[0, 0]]


def test_rows_of_several_runs_return_in_order() -> None:
    runs = [{"rows": np.array([3, 0]), "x": np.array([3, 0])}, {"rows": np.array([2]), "x": np.array([2])}]
    runs.append({"rows": np.array([1]), "x": np.array([1])})
    assert join_rows(runs, lambda run: {"y": run["x"] * 2})["y"].tolist() == [0, 2, 4, 6]
    for run in runs:
        del run["rows"]
    assert join_rows(runs, lambda run: {"y": run["x"]})["y"].tolist() == [3, 0, 2, 1]


def labelled(logits: Any, **options: Any) -> dict[str, Array]:
    step = Labeler(LabelsStep(**{"labels": ("no", "yes", "may be"), **options}), Path(), stage(LOGITS))
    return step({}, [{"logits": np.array(logits, np.float32)}])


def softmax(row: list[float]) -> list[float]:
    powers = [math.exp(each - max(row)) for each in row]
    return [each / sum(powers) for each in powers]


def sigmoid(row: list[float]) -> list[float]:
    return [1 / (1 + math.exp(-each)) for each in row]


@pytest.mark.parametrize(("function", "of"), [("softmax", softmax), ("sigmoid", sigmoid), ("none", list)])
def test_labels_have_the_scores_of_their_function(function: str, of: Callable[[list[float]], list[float]]) -> None:
    logits: list[list[float]] = [[1, 3, 2], [0, -5, -1], [500, -500, 0]]
    found = labelled(logits, function=function)
    np.testing.assert_allclose(found["scores"], [of(row) for row in logits], atol=1e-7)
    assert found["label"].tolist() == [b"yes", b"no", b"no"]
    assert found["score"].tolist() == found["scores"].max(1).tolist()
    assert all(found[name].dtype == np.float32 for name in ("score", "scores"))


def test_labels_are_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"id2label": {"2": "c", "0": "a", "1": "ü"}}))
    step = Labeler(LabelsStep(), tmp_path, stage(LOGITS))
    assert step({}, [{"logits": np.eye(3, dtype=np.float32)}])["label"].tolist() == [b"a", "ü".encode(), b"c"]
    for content in ("{}", "[1]", '{"id2label": {"1": "a"}}', "no JSON", '{"id2label": null}'):
        path.write_text(content)
        with pytest.raises(ModelLoadFailed, match=r"cannot read the labels in .*config\.json"):
            Labeler(LabelsStep(), tmp_path, stage(LOGITS))


def test_labels_of_another_number_are_refused() -> None:
    with pytest.raises(ModelLoadFailed, match="'logits' of model has 3 columns, but there are 2 labels"):
        labelled([[1, 2, 3]], labels=("a", "b"))
    step = Labeler(LabelsStep(labels=("a",)), Path(), stage(TensorSpec("logits", "FP32", (None, None))))
    with pytest.raises(ValueError, match=r"'logits' has shape \[1, 3\], expected 1 columns"):
        step({}, [{"logits": np.zeros((1, 3), np.float32)}])


@pytest.mark.parametrize(
    ("outputs", "tensor", "found"),
    [
        ((HIDDEN, LOGITS), "", "last_hidden_state"),
        ((TensorSpec("h", "FP32", (None, None, 2)), LOGITS), "", "h"),
        ((TensorSpec("h", "FP32", (None, None, 2)), HIDDEN), "", "last_hidden_state"),
        ((TensorSpec("h", "FP32", (None, None, 2)), HIDDEN), "h", "h"),
        ((TensorSpec("token_embeddings", "FP16", ()), LOGITS), "", "token_embeddings"),
    ],
)
def test_pool_chooses_the_output_that_fits(outputs: tuple[TensorSpec, ...], tensor: str, found: str) -> None:
    assert Pooler(PoolStep(tensor=tensor), stage(*outputs)).tensor == found


@pytest.mark.parametrize(
    ("outputs", "tensor", "reason"),
    [
        ((LOGITS,), "", "model has 0 outputs of floats with 3 axes, found logits of 2 axes: name one as `tensor`"),
        ((HIDDEN,), "h", "model has no output 'h'"),
        ((TensorSpec("a", "FP32", (None,) * 3), TensorSpec("b", "FP32", (None,) * 3)), "", "2 outputs"),
        ((TensorSpec("a", "INT64", (None,) * 3),), "", "0 outputs"),
    ],
)
def test_pool_unclear_output_is_refused(outputs: tuple[TensorSpec, ...], tensor: str, reason: str) -> None:
    with pytest.raises(ModelLoadFailed, match=reason):
        Pooler(PoolStep(tensor=tensor), stage(*outputs))
