"""Random inputs for trials of a model."""

from pathlib import Path

import numpy as np
import pytest

from anabranch.partition.errors import UncarriedTensor, UnusableInputs
from anabranch.partition.profiling.inputs import generate, has_rows, read_inputs
from tests.partition.texts import graph_of


def taking(inputs: str) -> str:
    """Makes a model that ignores its inputs."""
    return f"g ({inputs}) => (float y) {{ y = Constant <value = float {{1}}> () }}"


@pytest.mark.parametrize(
    ("inputs", "rows"),
    [
        ("float[N, 4] x", True),
        ("float[N, 4] x, int64[N] i", True),
        ("float[N, 4] x, int64[M, 2] i", True),
        ("float[1, 4] x", False),
        ("float[N, 4] x, int64[3] i", False),
        ("float[N] x, int64 i", False),
        ("float x", False),
        ("float[] x", False),
    ],
)
def test_has_rows_all_open_axes_is_true(tmp_path: Path, inputs: str, rows: bool) -> None:
    assert has_rows(graph_of(tmp_path, taking(inputs))) is rows


def test_generate_batch_fits_the_declaration(tmp_path: Path) -> None:
    inputs = "float16[N, 3] h, bool[N] b, string[N, 2] s, int64[N, N] i, uint8[N, W] u, double[M] d"
    batch = next(generate(graph_of(tmp_path, taking(inputs)), 7))
    assert {name: (array.dtype.name, array.shape) for name, array in batch.items()} == {
        "h": ("float16", (7, 3)),
        "b": ("bool", (7,)),
        "s": ("object", (7, 2)),
        "i": ("int64", (7, 7)),
        "u": ("uint8", (7, 64)),
        "d": ("float64", (7,)),
    }
    assert all(isinstance(text, str) for text in batch["s"].ravel())


def test_generate_open_axes_are_tried_in_many_sizes(tmp_path: Path) -> None:
    batches = list(generate(graph_of(tmp_path, taking("float[W, 2] x, int64 i")), 7))
    assert {batch["x"].shape for batch in batches} == {(size, 2) for size in (64, 32, 16, 8, 4, 2, 1, 256)}


def test_generate_integers_become_smaller(tmp_path: Path) -> None:
    ends = [int(batch["i"].max()) for batch in generate(graph_of(tmp_path, taking("int64[N, 100] i")), 9)]
    assert ends == [9, 1, 0]


def test_generate_equal_seeds_give_equal_batches(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, taking("float[N, 3] x"))
    first, second = (next(generate(graph, 2, seed=5))["x"] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert (first != next(generate(graph, 2, seed=6))["x"]).any()


def test_generate_uncarried_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UncarriedTensor, match="'q' cannot travel: its type is sequence"):
        next(generate(graph_of(tmp_path, taking("float[N] x, seq(float[N]) q")), 1))


def test_read_inputs_returns_arrays_of_the_file(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, taking("float[N, 3] x, string[N] s"))
    np.savez(tmp_path / "in.npz", x=np.ones((2, 3), np.float32), s=np.array(["a", "bc"]), more=np.zeros(1))
    batch = read_inputs(tmp_path / "in.npz", graph)
    assert sorted(batch) == ["s", "x"]
    assert (batch["s"].dtype.name, batch["s"].tolist()) == ("object", ["a", "bc"])


def test_read_inputs_unfit_file_is_refused_in_one_line(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, taking("float[N, 3] x"))
    np.savez(tmp_path / "lacks.npz", z=np.ones(2))
    np.savez(tmp_path / "wide.npz", x=np.ones((2, 3)))
    np.savez(tmp_path / "objects.npz", x=np.array([{}], object))
    np.save(tmp_path / "one.npy", np.ones(2))
    (tmp_path / "text.npz").write_text("no archive")
    for name, reason in {
        "lacks.npz": "lacks 'x'; it has z",
        "wide.npz": "'x' is float64, expected FP32",
        "objects.npz": "cannot read inputs",
        "one.npy": "is a single array: save",
        "text.npz": "cannot read inputs",
        "missing.npz": "cannot read inputs",
    }.items():
        with pytest.raises(UnusableInputs, match=reason) as refused:
            read_inputs(tmp_path / name, graph)
        assert "\n" not in str(refused.value)
