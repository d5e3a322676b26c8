"""Sizes of tensors in a run."""

from pathlib import Path

import numpy as np
import pytest

from anabranch.partition.errors import UncarriedTensor, WholeModelFailed
from anabranch.partition.profiling.tensor_sizes import ObservedTensor, observe
from tests.partition.texts import graph_of


def test_observe_unknown_shapes_are_measured(tmp_path: Path) -> None:
    graph = graph_of(
        tmp_path,
        """g (float[N, 4] x, string[N] s) => (int64[2, F] y) {
            t = Identity(s) a = Relu(x) found = NonZero(a) h = Cast <to = 10> (a) y = Identity(found)
        }""",
    )
    batch = {"x": np.array([[1, 0, 2, 0]], np.float32), "s": np.array(["abc"], object)}
    assert graph.type_of("found").size_bytes(1) is None
    assert observe(graph, batch, ["found", "x", "h"]) == {
        "x": ObservedTensor("FP32", (1, 4), 16),
        "s": ObservedTensor("BYTES", (1,), 7),
        "found": ObservedTensor("INT64", (2, 2), 32),
        "h": ObservedTensor("FP16", (1, 4), 8),
    }
    assert len(graph.model.graph.output) == 1


def test_observe_uncarried_tensor_is_refused(tmp_path: Path) -> None:
    text = "g (float[N] x) => (int64 y) { s = SequenceConstruct(x) y = SequenceLength(s) }"
    with pytest.raises(UncarriedTensor):
        observe(graph_of(tmp_path, text), {"x": np.ones(1, np.float32)}, ["s"])


def test_observe_failing_model_is_refused(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, "g (float[N, 4] x) => (float[N, 4] y) { a = Neg(x) y = Relu(a) }")
    with pytest.raises(WholeModelFailed, match="does not run"):
        observe(graph, {"x": np.ones((1, 3), np.float32)}, ["a"])
