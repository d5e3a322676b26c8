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
from anabranch.schemas.errors import ModelUnavailable, UnknownModel, UnknownVersion
from anabranch.schemas.model import Batching, Catalog, LeftOut, ModelSpec, TensorSpec
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
    return read_repository(folder, ModelDefaults(), strict=True).find(name, "")


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
    [(["1", "2", "10"], "10"), (["2", "10", "9"], "10"), (["0"], "0")],
)
def test_read_sorts_numeric_versions_as_numbers(tmp_path: Path, versions: list[str], newest: str) -> None:
    for version in versions:
        identity(tmp_path / "m" / version, ["n", 2])
    assert read(tmp_path).version == newest
    assert set(read_repository(tmp_path, ModelDefaults()).models["m"]) == set(versions)


@pytest.mark.parametrize("folder", ["v2", "1.9", "²", "01", "2 old", "latest"])
def test_read_folder_without_a_number_is_ignored(tmp_path: Path, folder: str) -> None:
    identity(tmp_path / "m" / "1", ["n", 2])
    identity(tmp_path / "m" / folder, ["n", 2])
    catalog = read_repository(tmp_path, ModelDefaults(), strict=True)
    assert set(catalog.models["m"]) == {"1"}
    assert catalog.ignored == (f"m/{folder} (not a number)",)


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
    catalog = read_repository(tmp_path, ModelDefaults())
    assert list(catalog.models) == ["m"]
    assert catalog.ignored == ("empty/1 (no model.onnx)", "empty (no empty/NUMBER/model.onnx)")


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
    with pytest.raises(ConfigError, match="NAME/NUMBER/model"):
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


# ---- models that cannot be served ----------------------------------------------------------------------------------


def lonely(folder: Path, nodes: list[onnx.NodeProto], opset: int = 13, weights: str = "") -> None:
    """Writes a model `x` to `y` that ONNX Runtime refuses; `weights` names missing external data."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:])
    if weights:
        tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2])
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=weights)
        graph.initializer.append(tensor)
    folder.mkdir(parents=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)]), str(folder / "model.onnx"))


def spoil(folder: Path, how: str) -> None:
    """Makes `bad` unservable."""
    version = folder / "bad" / "1"
    if how == "operator":
        lonely(version, [helper.make_node("NoSuchOperator", ["x"], ["y"])])
    elif how == "opset":
        lonely(version, [helper.make_node("Identity", ["x"], ["y"])], opset=999)
    elif how == "external data":
        lonely(version, [helper.make_node("Add", ["x", "w"], ["y"])], weights="gone.data")
    else:
        identity(version, ["n", 2])
    if how == "half a file":
        (version / "model.onnx").write_bytes((version / "model.onnx").read_bytes()[:-20])
    if how == "model.toml":
        (folder / "bad" / "model.toml").write_text("[batchin")
    if how == "stages":
        (folder / "bad" / "model.toml").write_text('stages = "gone.json"')


SPOILED = ["operator", "opset", "external data", "half a file", "model.toml", "stages"]


@pytest.mark.parametrize("how", SPOILED)
def test_read_unservable_model_is_left_out_with_reason(tmp_path: Path, how: str) -> None:
    identity(tmp_path / "good" / "1", ["n", 2])
    spoil(tmp_path, how)
    (tmp_path / "panel").mkdir()
    (tmp_path / "panel" / "model.toml").write_text('[ensemble]\nmembers = ["good", "bad"]\n')
    catalog = read_repository(tmp_path, ModelDefaults())
    assert list(catalog.models) == ["good"]
    assert [each.name for each in catalog.left_out] == ["bad", "panel"]
    assert str(tmp_path / "bad") in catalog.left_out[0].reason
    assert catalog.left_out[0].reason in catalog.left_out[1].reason
    for name in ("bad", "panel"):
        for version in ("", "1"):
            with pytest.raises(ModelUnavailable, match=str(tmp_path)):
                catalog.find(name, version)
    with pytest.raises(UnknownModel):
        catalog.find("", "")  # Two models: the empty name is not the good one's.
    with pytest.raises((ConfigError, ModelLoadFailed)):
        read_repository(tmp_path, ModelDefaults(), strict=True)


def test_read_older_version_serves_for_a_spoiled_newest(tmp_path: Path) -> None:
    for version in ("1", "2"):
        identity(tmp_path / "m" / version, ["n", 2])
    (tmp_path / "m" / "2" / "model.onnx").write_bytes(b"half a copy")
    catalog = read_repository(tmp_path, ModelDefaults())
    assert catalog.find("m", "").version == "1"
    with pytest.raises(ModelUnavailable, match="m/2 is not served: cannot load the model"):
        catalog.find("m", "2")
    with pytest.raises(UnknownVersion):
        catalog.find("m", "3")


def test_read_repository_without_a_servable_model_is_refused(tmp_path: Path) -> None:
    spoil(tmp_path, "half a file")
    with pytest.raises(ConfigError, match=r"no model in .* can be served: bad/1: cannot load the model"):
        read_repository(tmp_path, ModelDefaults())


def test_catalog_without_a_member_leaves_its_ensemble_out(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        identity(tmp_path / name / "1", ["n", 2])
    (tmp_path / "panel").mkdir()
    (tmp_path / "panel" / "model.toml").write_text('[ensemble]\nmembers = ["a", "b"]\n')
    catalog = read_repository(tmp_path, ModelDefaults()).without([LeftOut("b", "1", "no memory")])
    assert list(catalog.models) == ["a", "c"]
    assert {each.name for each in catalog.left_out} == {"b", "panel"}
    with pytest.raises(ModelUnavailable, match="its member b/1 is not served"):
        catalog.find("panel", "")


def test_read_model_with_a_map_is_left_out_with_advice(tmp_path: Path) -> None:
    identity(tmp_path / "m" / "1", ["n", 2])
    pair = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    maps = onnx.ValueInfoProto(name="y", type=helper.make_sequence_type_proto(pair))
    node = helper.make_node("ZipMap", ["x"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[0, 1])
    rows = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(helper.make_graph([node], "g", [rows], [maps]), opset_imports=opsets, ir_version=8)
    (tmp_path / "labels" / "1").mkdir(parents=True)
    onnx.save(model, tmp_path / "labels" / "1" / "model.onnx")
    catalog = read_repository(tmp_path, ModelDefaults())
    assert list(catalog.models) == ["m"]
    assert "convert the model with the option zipmap=False" in catalog.left_out[0].reason


def test_read_tells_any_rank_from_a_scalar(tmp_path: Path) -> None:
    node = helper.make_node("Mul", ["x", "k"], ["y"])
    x, k, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, []) for name in "xky")
    for value in (x, y):
        value.type.tensor_type.ClearField("shape")
    save(helper.make_graph([node], "g", [x, k], [y]), tmp_path / "m" / "1")
    model = read(tmp_path)
    assert [spec.any_rank for spec in (*model.inputs, *model.outputs)] == [True, False, True]
    assert model.verdict.reason == "input 'x' has no known shape"
