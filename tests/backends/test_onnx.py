"""ONNX Runtime behind the seam: options reach it, text comes and goes as bytes, and what cannot be loaded is named."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import pytest
from onnx import numpy_helper

from anabranch.flink_job.config import ModelDefaults
from anabranch.flink_job.model_repository.repository import read_repository
from anabranch.operators.backends import base
from anabranch.operators.backends import onnx as backend
from anabranch.operators.backends.base import ModelLoadFailed
from anabranch.operators.backends.onnx import OnnxBackend, read_signature, sha256_of
from anabranch.partition.graph.model_graph import load_graph
from anabranch.partition.stages.writer import data_path, write_stages
from anabranch.schemas.model import Catalog, SessionOptions
from tests.flink.models import FLOAT, INT64, _write, write_repository


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    folder = tmp_path_factory.mktemp("models")
    write_repository(folder)
    return read_repository(folder, ModelDefaults())


def test_onnx_model_computes_its_outputs(catalog: Catalog) -> None:
    session = OnnxBackend().load(catalog.find("pair", ""))
    a, b = np.full((2, 3), 2.0, np.float32), np.full((2, 3), 5.0, np.float32)
    product, total = session.run(["product", "sum"], {"a": a, "b": b})
    np.testing.assert_array_equal(total, a + b)
    np.testing.assert_array_equal(product, a * b)


@pytest.mark.parametrize("name", ["double", "half", "pair", "wide", "lookup", "text", "single", "scalar"])
def test_onnx_every_kind_of_model_loads(catalog: Catalog, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[dict[str, Any]] = []
    run = backend.OnnxSession.run

    def watch(session: backend.OnnxSession, outputs: Any, inputs: Any) -> Any:
        results = run(session, outputs, inputs)
        runs.append({"rows": next(iter(inputs.values())).shape[0], "outputs": results})
        return results

    monkeypatch.setattr(backend.OnnxSession, "run", watch)
    model = catalog.find(name, "")
    OnnxBackend().load(replace(model, session=SessionOptions(warm_up_rows=3)))
    [warm_up] = runs
    assert warm_up["rows"] == (model.fixed_rows or (3 if model.batchable else 1))
    assert len(warm_up["outputs"]) == len(model.outputs)
    OnnxBackend().load(replace(model, session=SessionOptions(warm_up_rows=0)))
    assert len(runs) == 1


def test_onnx_changed_external_data_is_refused(tmp_path: Path) -> None:
    table = numpy_helper.from_array(np.arange(4096, dtype=np.float32).reshape(1024, 4), "table")
    _write(tmp_path / "m" / "1", ["Gather table i y"], {"i": (INT64, ["n"])}, {"y": (FLOAT, ["n", 4])}, [table])
    [stage] = write_stages(load_graph(tmp_path / "m" / "1" / "model.onnx"), [], tmp_path, max_inline_bytes=0)
    model = replace(read_repository(tmp_path, ModelDefaults()).find("m", ""), path=str(stage.path), sha256=stage.sha256)
    assert OnnxBackend().load(model).run(["y"], {"i": np.array([3])})[0].tolist() == [[12.0, 13.0, 14.0, 15.0]]
    data = data_path(stage.path)
    data.write_bytes(data.read_bytes()[:-1] + b"?")
    with pytest.raises(ModelLoadFailed, match=rf"{data.name} is not the file"):
        OnnxBackend().load(model)


def test_onnx_failed_warm_up_is_ignored(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "NUMPY_DTYPES", {"INT64": np.dtype("<f4")})  # zeros of the wrong datatype
    session = OnnxBackend().load(catalog.find("lookup", ""))
    assert session.run(["y"], {"i": np.array([3])})[0].tolist() == [30.0]


def test_onnx_bytes_must_be_utf8(catalog: Catalog) -> None:
    session = OnnxBackend().load(catalog.find("text", ""))
    texts = np.array([["grüße".encode(), b""], ["😀".encode(), b"a\0b"]], dtype=object)
    [output] = session.run(["t"], {"s": texts})
    assert output.dtype == object
    assert [[text.encode() for text in row] for row in output.tolist()] == texts.tolist()
    with pytest.raises(UnicodeDecodeError):
        session.run(["t"], {"s": np.array([[b"\xff", b""]], dtype=object)})


def test_onnx_bad_row_raises_without_log(catalog: Catalog, capfd: pytest.CaptureFixture[str]) -> None:
    session = OnnxBackend().load(catalog.find("lookup", ""))
    with pytest.raises(Exception, match="out of data bounds"):
        session.run(["y"], {"i": np.array([1, 99])})
    assert session.run(["y"], {"i": np.array([1])})[0].tolist() == [10.0]
    assert capfd.readouterr() == ("", "")


Level = Literal["none", "basic", "extended", "all"]


@pytest.mark.parametrize(
    ("level", "name"),
    [("none", "DISABLE_ALL"), ("basic", "ENABLE_BASIC"), ("extended", "ENABLE_EXTENDED"), ("all", "ENABLE_ALL")],
)
def test_onnx_options_reach_the_session(catalog: Catalog, level: Level, name: str) -> None:
    options = SessionOptions(intra_op_threads=2, inter_op_threads=3, optimization=level)
    session = OnnxBackend().load(replace(catalog.find("double", ""), session=options))
    used = session._session.get_session_options()
    assert (used.intra_op_num_threads, used.inter_op_num_threads) == (2, 3)
    assert used.graph_optimization_level.name == f"ORT_{name}"
    assert used.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert session._session.get_providers() == ["CPUExecutionProvider"]


def test_onnx_every_configured_optimization_is_known() -> None:
    for level in ("none", "basic", "extended", "all"):
        msgspec.convert({"optimization": level}, SessionOptions)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"optimization": "most"}, SessionOptions)


def test_onnx_changed_file_is_refused(catalog: Catalog, tmp_path: Path) -> None:
    model = catalog.find("double", "")
    copy = tmp_path / "model.onnx"
    copy.write_bytes(Path(model.path).read_bytes())
    OnnxBackend().load(replace(model, path=str(copy)))
    copy.write_bytes(Path(catalog.find("half", "").path).read_bytes())
    with pytest.raises(ModelLoadFailed, match="not the file that the job was started with"):
        OnnxBackend().load(replace(model, path=str(copy)))
    copy.unlink()
    with pytest.raises(ModelLoadFailed, match="cannot read the model"):
        OnnxBackend().load(replace(model, path=str(copy)))


def test_onnx_missing_provider_lists_available_ones(catalog: Catalog) -> None:
    options = SessionOptions(providers=("TPUExecutionProvider", "CPUExecutionProvider"))
    with pytest.raises(ModelLoadFailed, match=r"provider TPUExecutionProvider; available: .*CPUExecutionProvider"):
        OnnxBackend().load(replace(catalog.find("double", ""), session=options))


def test_onnx_other_file_is_named_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(ModelLoadFailed, match=r"model\.onnx") as refused:
        read_signature(path)
    assert "\n" not in str(refused.value)


def test_onnx_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    assert sha256_of(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(ModelLoadFailed, match="cannot read"):
        sha256_of(tmp_path)
