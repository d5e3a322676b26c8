"""Profiles of small models; times are not compared."""

from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest

from anabranch.partition.errors import WholeModelFailed
from anabranch.partition.graph.model_graph import Graph, load_graph
from anabranch.partition.profiling import profile as module
from anabranch.partition.profiling.profile import costs_of, profile, rows_of, with_copies
from tests.partition.texts import BRANCHES, SHAPES, graph_of

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"

WEIGHTS = ", ".join(["0.01"] * 4096)
#: ONNX Runtime makes one kernel of the Gemm and the Relu, and none of the Identity.
MERGED = f"""
g (float[N, 64] x) => (float[N, 64] y) <float[64, 64] w = {{{WEIGHTS}}}> {{
    a = Gemm(x, w)
    b = Relu(a)
    c = Identity(b)
    d = Softmax(c)
    y = MatMul(d, w)
}}
"""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "_BUDGET_S", 0.02)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def merged(tmp_path: Path) -> Graph:
    return graph_of(tmp_path, MERGED)


def test_profile_node_times_sum_to_the_models(merged: Graph) -> None:
    known = profile(merged, 64)
    assert sum(known.node_ms) == pytest.approx(known.run_ms)
    assert len(known.node_ms) == len(merged.nodes) == 5
    assert known.node_ms[0] > 0
    assert known.node_ms[4] > 0
    assert known.tensor_bytes == dict.fromkeys("xabcdy", 64 * 64 * 4)


def test_profile_node_names_are_restored(merged: Graph) -> None:
    before = merged.model.SerializeToString()
    profile(merged, 1)
    assert merged.model.SerializeToString() == before


def test_profile_is_cached_by_file_and_rows(merged: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[float] = []
    first = profile(merged, 2, lambda done, _: told.append(done))
    assert told == sorted(told)
    assert told[-1] == 1
    monkeypatch.setattr(module, "_measure", None)
    assert profile(merged, 2) == first
    for rows, again in ((3, False), (2, True)):
        with pytest.raises(TypeError):
            profile(merged, rows, again=again)


def test_costs_of_branches_lists_tensors_and_weights(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, BRANCHES)
    costs = costs_of(graph, profile(graph, 2))
    assert [(each.producer, each.users, each.size_bytes, each.is_output) for each in costs.tensors] == [
        (None, (0,), 32, False),
        (0, (1, 2), 32, False),
        (1, (3,), 32, False),
        (2, (3,), 32, False),
        (3, (), 32, True),
    ]
    assert not costs.parameters


def test_costs_of_shared_weights_are_counted_once(merged: Graph) -> None:
    (weights,) = costs_of(merged, profile(merged, 1)).parameters
    assert (weights.size_bytes, weights.users) == (64 * 64 * 4, (0, 4))


def test_profile_unknown_shapes_are_measured(tmp_path: Path) -> None:
    text = """
    g (float[N, 4] x) => (int64[1, 1] y) {
        a = SequenceConstruct(x)
        zero = Constant<value = int64 {0}>()
        b = SequenceAt(a, zero)
        c = NonZero(b)
        y = ReduceSum(c)
    }
    """
    graph = graph_of(tmp_path, text)
    batch = {"x": np.eye(3, 4, dtype=np.float32)}
    assert rows_of(graph, 1, batch) == 3
    known = profile(graph, 3, batch=batch)
    assert "a" not in known.tensor_bytes
    assert known.tensor_bytes["c"] == 2 * 3 * 8
    may_cross = {each.producer: each.may_cross for each in costs_of(graph, known).tensors}
    assert may_cross == {None: True, 0: False, 1: True, 2: True, 3: True}


def test_rows_of_fixed_model_is_its_number() -> None:
    graph = load_graph(LIGHT / "light_squeezenet.onnx")
    assert rows_of(graph, 8) == 1
    known = profile(graph, 1)
    # All time is some node's, and convolutions have most of it.
    convolutions = sum(ms for node, ms in zip(graph.nodes, known.node_ms, strict=True) if node.op_type == "Conv")
    assert convolutions > known.run_ms / 2


def test_profile_model_that_never_runs_is_refused(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, "g (float[N, 4] x) => (float[N, 4] y) { y = NoSuchOperator(x) }")
    with pytest.raises(WholeModelFailed, match="does not load"):
        profile(graph, 1)


def test_random_inputs_unsuitable_asks_for_real_ones(tmp_path: Path) -> None:
    text = "g (float[N, W] x) => (float[M, 7] y) <int64[2] wide = {-1, 7}> { a = Reshape(x, wide) y = Relu(a) }"
    graph = graph_of(tmp_path, text)
    with pytest.raises(WholeModelFailed, match=r"give real ones \(`anabranch plan --inputs FILE.npz`\): ") as told:
        profile(graph, 1)
    assert "anabranch_node_" not in str(told.value)
    assert profile(graph, 2, batch={"x": np.ones((2, 7), np.float32)}).run_ms > 0
    with pytest.raises(WholeModelFailed, match="rejects the given inputs: "):
        profile(graph, 2, batch={"x": np.ones((2, 5), np.float32)})


def test_profile_model_without_inputs_works(tmp_path: Path) -> None:
    text = "g () => (float[2] y) <int64[1] size = {2}> { a = ConstantOfShape(size) y = Cos(a) }"
    graph = graph_of(tmp_path, text)
    assert profile(graph, 1).run_ms > 0


#: Words become rows, and sentences again at the end.
WORDS = """
g (float[N, 4, 8] x) => (float[N, 4, 8] y) <int64[2] flat = {-1, 8}, int64[3] deep = {-1, 4, 8}> {
    a = Relu(x)
    b = Reshape(a, flat)
    c = Relu(b)
    d = Reshape(c, deep)
    y = Relu(d)
}
"""


def test_profile_tensor_not_by_rows_may_not_cross(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, WORDS)
    known = profile(graph, 1)
    assert set(known.tensor_bytes) == set("xady")
    crosses = {tensor.producer: tensor.may_cross for tensor in costs_of(graph, known).tensors}
    assert crosses == {None: True, 0: True, 1: False, 2: False, 3: True, 4: True}


def test_with_copies_takes_quick_shapes_alone(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, SHAPES)
    known = profile(graph, 1)
    assert "s" not in known.tensor_bytes
    for node_ms, copied in (((0.1, 9, 1, 9, 1, 9, 1), 0b1), ((9, 9, 1, 9, 1, 9, 1), 0)):
        given = msgspec.structs.replace(known, node_ms=node_ms)
        graph = with_copies(graph, given)
        assert graph.copied == copied
        assert costs_of(graph, given).copied == ({0} if copied else set())
    random = graph_of(tmp_path, SHAPES.replace("s = Shape(x)", "r = RandomNormalLike(x) s = Shape(r)"))
    assert with_copies(random, profile(random, 1)).copied & 0b1 == 0


def test_profile_fixed_rows_are_compared(tmp_path: Path) -> None:
    assert set(profile(graph_of(tmp_path, WORDS.replace("N", "2")), 2).tensor_bytes) == set("xady")


def test_profile_model_without_rows_is_cut_anywhere(tmp_path: Path) -> None:
    text = WORDS.replace("(float[N, 4, 8] y)", "(float[M, 8] c)").replace("d = Reshape(c, deep)\n    y = Relu(d)\n", "")
    text = text.replace("N", "2").replace("M", "8").replace(", int64[3] deep = {-1, 4, 8}", "")
    assert set(profile(graph_of(tmp_path, text), 2).tensor_bytes) == set("xabc")
