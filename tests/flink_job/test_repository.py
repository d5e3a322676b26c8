"""The model repository: signatures come from the ONNX files, and an invalid repository is refused."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from anabranch.flink_job.config import ModelDefaults
from anabranch.flink_job.errors import ConfigError
from anabranch.flink_job.model_repository.repository import read_repository
from anabranch.operators.backends.base import ModelLoadFailed
from anabranch.operators.backends.onnx import OnnxBackend, sha256_of
from anabranch.schemas.model import Batching, Catalog, ModelSpec, TensorSpec
from tests.flink.models import write_repository

Axes = list[str | int] | None


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    folder = tmp_path_factory.mktemp("models")
    write_repository(folder)
    return read_repository(folder, ModelDefaults())


def identity(folder: Path, shape: Axes, output_shape: Axes = None, datatype: int = TensorProto.FLOAT) -> Path:
    """Writes a model `NAME/VERSION/model.onnx` whose output is its input."""
    values = [
        helper.make_tensor_value_info("x", datatype, shape),
        helper.make_tensor_value_info("y", datatype, output_shape if output_shape is not None else shape),
    ]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", values[:1], values[1:])
    return save(graph, folder)


def save(graph: onnx.GraphProto, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, str(folder / "model.onnx"))
    return folder


def read(folder: Path, name: str = "m") -> ModelSpec:
    return read_repository(folder, ModelDefaults()).find(name, "")


def toml(folder: Path, text: str) -> None:
    identity(folder / "m" / "1", ["n", 2])
    (folder / "m" / "model.toml").write_text(text)


# ---- reading -------------------------------------------------------------------------------------------------------


def test_read_takes_signatures_from_the_files(catalog: Catalog) -> None:
    pair = catalog.find("pair", "")
    assert pair.inputs == (TensorSpec("a", "FP32", (None, 3)), TensorSpec("b", "FP32", (None, 3)))
    assert [spec.name for spec in pair.outputs] == ["sum", "product"]
    assert catalog.find("text", "").inputs[0].datatype == "BYTES"
    assert catalog.find("half", "").inputs[0].datatype == "FP16"
    assert catalog.find("lookup", "").inputs == (TensorSpec("i", "INT64", (None,)),)


@pytest.mark.parametrize(
    ("name", "batchable", "fixed_rows"),
    [
        ("double", True, None),
        ("wide", True, None),
        ("single", True, 1),
        ("scalar", False, None),
        ("lookup", True, None),
    ],
)
def test_read_takes_the_batch_axis_from_shapes(
    catalog: Catalog, name: str, batchable: bool, fixed_rows: int | None
) -> None:
    model = catalog.find(name, "")
    assert (model.batchable, model.fixed_rows) == (batchable, fixed_rows)


@pytest.mark.parametrize(
    ("shape", "output_shape", "batchable", "fixed_rows"),
    [
        (["n", 2], ["n", 2], True, None),
        ([3, 2], [3, 2], True, 3),
        (["n", 2], [], True, None),  # as an output of unknown shape
        ([], [], False, None),
        ([0, 2], [0, 2], False, None),
        ([-1, 2], [-1, 2], True, None),
    ],
)
def test_read_batches_only_if_all_first_axes_agree(
    tmp_path: Path, shape: Axes, output_shape: Axes, batchable: bool, fixed_rows: int | None
) -> None:
    model = read(identity(tmp_path / "m" / "1", shape, output_shape).parent.parent)
    assert (model.batchable, model.fixed_rows) == (batchable, fixed_rows)


@pytest.mark.parametrize("shape", [[3, 2], ["n", 2]])
def test_read_output_without_a_row_axis_is_never_batched(tmp_path: Path, shape: Axes) -> None:
    graph = helper.make_graph(
        [helper.make_node("NonZero", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.INT64, [2, "found"])],
    )
    save(graph, tmp_path / "m" / "1")
    assert not read(tmp_path).batchable
    (tmp_path / "m" / "model.toml").write_text("[batching]\nenabled = true\n")
    with pytest.raises(ConfigError, match=r"model\.onnx.*fixed size"):
        read(tmp_path)


def test_read_model_without_inputs_is_not_batched(tmp_path: Path) -> None:
    node = helper.make_node("RandomUniform", [], ["y"], shape=[2])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])
    save(helper.make_graph([node], "g", [], [output]), tmp_path / "m" / "1")
    assert not read(tmp_path).batchable


@pytest.mark.parametrize(
    ("versions", "newest"),
    [(["1", "2", "10"], "10"), (["1.9", "1.10"], "1.10"), (["v2", "v10"], "v10"), (["a", "1"], "1"), (["²", "1"], "1")],
)
def test_read_sorts_numeric_versions_as_numbers(tmp_path: Path, versions: list[str], newest: str) -> None:
    for version in versions:
        identity(tmp_path / "m" / version, ["n", 2])
    assert read(tmp_path).version == newest
    assert set(read_repository(tmp_path, ModelDefaults()).models["m"]) == set(versions)


def test_read_names_files_by_absolute_path_and_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    identity(tmp_path / "models" / "m" / "1", ["n", 2])
    monkeypatch.chdir(tmp_path)
    model = read(Path("models"))
    assert Path(model.path).is_absolute()
    assert model.sha256 == sha256_of(Path(model.path))
    session = OnnxBackend().load(model)
    np.testing.assert_array_equal(session.run(["y"], {"x": np.ones((3, 2), np.float32)})[0], np.ones((3, 2)))


def test_model_toml_changes_only_the_named_keys(tmp_path: Path) -> None:
    toml(tmp_path, "[batching]\nmax_rows = 8\nmax_delay_ms = 1\n[session]\nintra_op_threads = 4\n")
    defaults = ModelDefaults(batching=Batching(shard_rows=7, max_rows=9))
    model = read_repository(tmp_path, defaults).find("m", "")
    assert model.batching == Batching(shard_rows=7, max_rows=8, max_delay_ms=1.0)
    assert (model.session.intra_op_threads, model.session.optimization) == (4, "all")
    assert not model.require_finite
    toml(tmp_path, "[validation]\nrequire_finite = true\n[batching]\nenabled = false\n")
    assert read(tmp_path).require_finite
    assert not read(tmp_path).batchable


def test_model_toml_enables_batching_of_unknown_outputs(tmp_path: Path) -> None:
    identity(tmp_path / "m" / "1", ["n", 2], [])
    (tmp_path / "m" / "model.toml").write_text("[batching]\nenabled = true\n")
    assert read(tmp_path).batchable


def test_read_ignores_folders_without_models(tmp_path: Path) -> None:
    identity(tmp_path / "m" / "1", ["n", 2])
    identity(tmp_path / ".ipynb_checkpoints" / "1", ["n", 2])
    (tmp_path / "empty" / "1").mkdir(parents=True)
    (tmp_path / "README.md").write_text("models")
    assert list(read_repository(tmp_path, ModelDefaults()).models) == ["m"]


# ---- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "[batching",
        "[batches]\n",
        "[batching]\nmax_row = 3\n",
        "[batching]\nmax_rows = 0\n",
        "[batching]\nmax_rows = 'many'\n",
        "[batching]\nmax_delay_ms = -1\n",
        "[batching]\nmax_delay_ms = inf\n",
        "[batching]\nshard_rows = 0\n",
        "[session]\nthreads = 2\n",
        "[session]\noptimization = 'most'\n",
        "[session]\nintra_op_threads = -1\n",
        "[session]\nproviders = []\n",
        "[validation]\nfinite = true\n",
        "batching = 3\n",
    ],
)
def test_model_toml_invalid_value_is_named_in_one_line(tmp_path: Path, text: str) -> None:
    toml(tmp_path, text)
    with pytest.raises(ConfigError, match=r"m/model\.toml") as refused:
        read(tmp_path)
    assert "\n" not in str(refused.value)


def test_model_toml_batching_without_axes_is_refused(tmp_path: Path) -> None:
    identity(tmp_path / "m" / "1", [])
    (tmp_path / "m" / "model.toml").write_text("[batching]\nenabled = true\n")
    with pytest.raises(ConfigError, match=r"model\.onnx.*no axis 0"):
        read(tmp_path)


def test_model_toml_unreadable_file_is_named(tmp_path: Path) -> None:
    identity(tmp_path / "m" / "1", ["n", 2])
    (tmp_path / "m" / "model.toml").mkdir()
    with pytest.raises(ConfigError, match=r"cannot read .*model\.toml"):
        read(tmp_path)


def test_read_empty_repository_names_the_layout(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="NAME/VERSION/model"):
        read(tmp_path)
    for missing in (tmp_path / "none", tmp_path / "file"):
        (tmp_path / "file").touch()
        with pytest.raises(ConfigError, match="--model-repository"):
            read(missing)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x08\x12\x04" * 100, None])
def test_read_invalid_model_is_named_in_one_line(tmp_path: Path, content: bytes | None) -> None:
    folder = identity(tmp_path / "m" / "1", ["n", 2])
    path = folder / "model.onnx"
    if content is None:
        path.write_bytes(path.read_bytes()[:-20])
    else:
        path.write_bytes(content)
    with pytest.raises(ModelLoadFailed, match=r"m/1/model\.onnx") as refused:
        read(tmp_path)
    assert "\n" not in str(refused.value)


def test_read_unsupported_datatype_is_named(tmp_path: Path) -> None:
    identity(tmp_path / "m" / "1", ["n", 2], datatype=TensorProto.COMPLEX64)
    with pytest.raises(ModelLoadFailed, match=r"model\.onnx"):
        read(tmp_path)
    identity(tmp_path / "m" / "1", ["n", 2], datatype=TensorProto.BFLOAT16)
    with pytest.raises(ModelLoadFailed, match=r"'x' is tensor\(bfloat16\)"):
        read(tmp_path)
