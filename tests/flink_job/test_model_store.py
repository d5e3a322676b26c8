"""The model store: files by hash, copied once, and unaffected by the repository that they came from."""

import hashlib
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from anabranch.flink_job.config import Config, ModelDefaults
from anabranch.flink_job.errors import ModelStoreUnusable
from anabranch.flink_job.model_repository import store as stores
from anabranch.flink_job.model_repository.repository import read_repository
from anabranch.flink_job.model_repository.store import ModelStore, store_models, store_of
from anabranch.operators.backends.base import ModelLoadFailed
from anabranch.operators.backends.onnx import OnnxBackend
from anabranch.operators.sessions import model_cache
from anabranch.operators.sessions.model_cache import local_path
from anabranch.operators.sessions.session_pool import SessionPool
from anabranch.operators.sessions.step_functions import load_function
from anabranch.schemas.model import Catalog, SessionOptions
from tests.flink.models import FLOAT, Tensors, _write, write_plan

X: Tensors = {"x": (FLOAT, ["n", 4])}
H: Tensors = {"h": (FLOAT, ["n", 4])}
Y: Tensors = {"y": (FLOAT, ["n", 4])}
STEPS = """
import pathlib
LABEL = (pathlib.Path(__file__).parent / "data" / "label.txt").read_text()

def before(tensors):
    return {"x": tensors["x"], "label": LABEL}
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """`plain`, `heavy` with weights in a second file, `cut` in stages, `chain` with a step that reads a file."""
    folder = tmp_path / "repository"
    _write(folder / "plain" / "1", ["Add x x y"], X, Y)
    weights = numpy_helper.from_array(np.full((4, 4), 2, np.float32), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy"]
    model = helper.make_model(
        helper.make_graph([node], "g", values[:1], values[1:], [weights]),
        opset_imports=[helper.make_opsetid("", 13)],
        ir_version=8,
    )
    (folder / "heavy" / "1").mkdir(parents=True)
    path = str(folder / "heavy" / "1" / "model.onnx")
    onnx.save(model, path, save_as_external_data=True, location="w.data", size_threshold=0)
    (folder / "heavy" / "1" / "README.md").write_text("not of the model")
    version = folder / "cut" / "1"
    _write(version, ["Relu x h", "Neg h y"], X, Y, [])
    _write(version, ["Relu x h"], X, H, [], file="stage-0.onnx")
    _write(version, ["Neg h y"], H, Y, [], file="stage-1.onnx")
    write_plan(version, [(["x"], ["h"], 1), (["h"], ["y"], 1)])
    (folder / "cut" / "model.toml").write_text('stages = "plan.json"\n')
    _write(folder / "chain", ["Add x x y"], X, Y, file="twice.onnx")
    (folder / "chain" / "data").mkdir()
    (folder / "chain" / "data" / "label.txt").write_text("taken")
    (folder / "chain" / "steps.py").write_text(STEPS)
    (folder / "chain" / "model.toml").write_text(
        '[chain]\nsteps = [{ model = "twice.onnx", before = "steps.py:before" }, { model = "plain" }]\n'
        'inputs.x = { datatype = "FP32", shape = [-1, 4] }\noutputs.y = { datatype = "FP32", shape = [-1, 4] }\n'
    )
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv(model_cache.CACHE_VARIABLE, str(folder))
    monkeypatch.setattr(model_cache, "_PAUSE_S", 0)
    return folder


def read(repository: Path) -> Catalog:
    return read_repository(repository, ModelDefaults(), strict=True)


def stored(repository: Path, tmp_path: Path) -> stores.StoredModels:
    return ModelStore((tmp_path / "store ü").as_uri(), {}).add(read(repository))


def spoil(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(b"half a copy")


def run(catalog: Catalog, name: str) -> float:
    model = catalog.find(name, "")
    session = OnnxBackend().load(replace(model, path=str(local_path(model.path))))
    return float(session.run(["y"], {"x": np.ones((1, 4), np.float32)})[0][0, 0])


def test_store_models_survive_a_spoiled_repository(repository: Path, tmp_path: Path) -> None:
    catalog = stored(repository, tmp_path).catalog
    spoil(repository)
    assert (run(catalog, "plain"), run(catalog, "heavy")) == (2.0, 8.0)
    for index in range(2):
        stage = catalog.find("cut", "").stage(index)
        OnnxBackend().load(replace(stage, path=str(local_path(stage.path))))
    before = catalog.find("chain", "").stages[0].before
    assert before is not None
    assert load_function(before)({"x": 1})["label"] == "taken"


def test_store_again_copies_nothing_and_is_deterministic(repository: Path, tmp_path: Path) -> None:
    first = stored(repository, tmp_path)
    assert first.copied_bytes > 0
    files = sorted((tmp_path / "store ü").rglob("*"))
    again = stored(repository, tmp_path)
    assert (again.manifest, again.copied_bytes) == (first.manifest, 0)
    assert again.catalog == first.catalog
    assert sorted((tmp_path / "store ü").rglob("*")) == files
    for path in (tmp_path / "store ü" / "files").iterdir():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
    assert not any(path.read_bytes() == b"not of the model" for path in (tmp_path / "store ü" / "files").iterdir())
    # Models that are stored already stay as they are.
    assert ModelStore((tmp_path / "store ü").as_uri(), {}).add(first.catalog).catalog == first.catalog
    listed = json.loads((tmp_path / "store ü" / "manifests" / first.manifest.rpartition("/")[2]).read_text())
    assert [row[0] for row in listed] == ["chain", "cut", "heavy", "plain"]


def test_store_changed_model_copies_only_its_file(repository: Path, tmp_path: Path) -> None:
    first = stored(repository, tmp_path)
    _write(repository / "plain" / "1", ["Mul x x y"], X, Y)
    again = stored(repository, tmp_path)
    assert again.manifest != first.manifest
    assert again.copied_bytes == (repository / "plain" / "1" / "model.onnx").stat().st_size
    assert (run(first.catalog, "plain"), run(again.catalog, "plain")) == (2.0, 1.0)


def test_store_follows_links_of_a_hugging_face_cache(repository: Path, tmp_path: Path) -> None:
    folder = repository / "heavy" / "1"
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for number, name in enumerate(("model.onnx", "w.data")):
        (folder / name).rename(blobs / str(number))
        (folder / name).symlink_to(blobs / str(number))
    catalog = stored(repository, tmp_path).catalog
    spoil(blobs)
    assert run(catalog, "heavy") == 8.0


def test_store_model_that_changes_meanwhile_is_left_out(repository: Path, tmp_path: Path) -> None:
    catalog = read(repository)
    _write(repository / "plain" / "1", ["Mul x x y"], X, Y)
    taken = ModelStore((tmp_path / "store").as_uri(), {}).add(catalog).catalog
    [left_out] = [each for each in taken.left_out if each.name == "plain"]
    assert "changed while it was read" in left_out.reason
    assert "heavy" in taken.models


def test_store_half_written_file_is_copied_again(repository: Path, tmp_path: Path) -> None:
    first = stored(repository, tmp_path)
    for path in (tmp_path / "store ü" / "files").iterdir():
        path.chmod(0o644)
        path.write_bytes(path.read_bytes()[:-1])
    assert stored(repository, tmp_path).copied_bytes == first.copied_bytes
    assert run(first.catalog, "plain") == 2.0


def test_store_that_cannot_be_written_is_named(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelStoreUnusable, match=r"cannot make .*file/store"):
        ModelStore((tmp_path / "file" / "store").as_uri(), {}).add(read(repository))


def test_store_of_config_is_beside_the_checkpoints(tmp_path: Path) -> None:
    config = Config().replace(job={"checkpoint_dir": "s3://bucket/chk/"})
    assert store_of(config) == "s3://bucket/chk/.models"
    assert store_of(config.replace(models={"store": "s3://models/"})) == "s3://models"
    assert store_of(config.replace(models={"store": "models here"})) == f"{Path.cwd()}/models here"
    assert store_of(Config()) == ""
    _write(tmp_path / "plain" / "1", ["Add x x y"], X, Y)
    private = store_models(read(tmp_path), Config()).catalog
    spoil(tmp_path)
    assert run(private, "plain") == 2.0


def test_store_takes_libraries_of_custom_operators(repository: Path, tmp_path: Path) -> None:
    library = repository / "plain" / "1" / "ops.so"
    library.write_bytes(b"code")
    plain = read(repository).find("plain", "")
    session = SessionOptions(custom_ops=(str(library), "package:function"))
    catalog = Catalog({"plain": {"1": replace(plain, session=session)}})
    taken = ModelStore((tmp_path / "store").as_uri(), {}).add(catalog).catalog.find("plain", "")
    spoil(repository)
    first, second = taken.session.custom_ops
    assert local_path(first).read_bytes() == b"code"
    assert local_path(first).name == "ops.so"
    assert second == "package:function"


def test_errors_of_stored_files_name_no_cache_folder(repository: Path, tmp_path: Path) -> None:
    (repository / "chain" / "steps.py").write_text(
        "import no_such_package\n\ndef before(tensors):\n    return tensors\n"
    )
    catalog = stored(repository, tmp_path).catalog
    before = catalog.find("chain", "").stages[0].before
    assert before is not None
    with pytest.raises(ModelLoadFailed, match=r"^cannot load steps\.py: ModuleNotFoundError"):
        load_function(before)
    plain = replace(catalog.find("plain", ""), session=SessionOptions(providers=("None",)))
    pool = SessionPool(OnnxBackend(), 0, lambda _, make: make())
    with pytest.raises(ModelLoadFailed, match=r"^cannot load the model model\.onnx: unknown execution provider"):
        pool.session_of(plain)


# ---- the copies of a machine ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_cache_tasks_of_a_machine_share_one_copy(
    repository: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stored(repository, tmp_path).catalog.find("heavy", "").path
    fetched: list[str] = []
    fetch = model_cache._fetch

    def count(pairs: list[tuple[str, Path]]) -> None:
        fetched.extend(url for url, _ in pairs)
        time.sleep(0.1)  # The other tasks come meanwhile.
        fetch(pairs)

    monkeypatch.setattr(model_cache, "_fetch", count)
    with ThreadPoolExecutor(8) as tasks:
        paths = set(tasks.map(lambda _: local_path(path), range(8)))
    assert len(paths) == 1
    assert len(fetched) == 3  # the list, the model, its weights
    code = f"from anabranch.operators.sessions.model_cache import local_path; print(local_path({path!r}))"
    spoil(tmp_path / "no such store")
    (tmp_path / "store ü").rename(tmp_path / "moved")
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert Path(said.stdout.strip()) in paths
    assert not [each for each in cache.iterdir() if each.name.startswith(".copy")]


def test_cache_damaged_file_of_the_store_is_refused(repository: Path, tmp_path: Path, cache: Path) -> None:
    path = stored(repository, tmp_path).catalog.find("plain", "").path
    for file in (tmp_path / "store ü" / "files").iterdir():
        file.chmod(0o644)
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(ModelLoadFailed, match="is damaged: its SHA-256"):
        local_path(path)
    assert [each.suffix for each in cache.iterdir()] == [".lock"]


def test_cache_removes_the_longest_unused_over_its_limit(
    repository: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = stored(repository, tmp_path).catalog
    old, used, new = (catalog.find(name, "").path for name in ("plain", "heavy", "cut"))
    folders = [local_path(path).parent for path in (old, used)]
    os.utime(folders[0], (1, 1))
    monkeypatch.setenv(model_cache.LIMIT_VARIABLE, "1")
    local_path(new)
    # The second was used a moment ago, so a task may be about to open it.
    assert [folder.exists() for folder in folders] == [False, True]
    assert run(catalog, "plain") == 2.0


def test_cache_bundle_with_a_file_outside_is_refused(tmp_path: Path) -> None:
    store = tmp_path / "store"
    text = json.dumps([["../../escaped", "0" * 64, 1]]).encode()
    name = hashlib.sha256(text).hexdigest()
    (store / "bundles").mkdir(parents=True)
    (store / "bundles" / f"{name}.json").write_bytes(text)
    with pytest.raises(ModelLoadFailed, match="outside its bundle"):
        local_path(model_cache.stored_path(str(store), name, "model.onnx"))


def test_local_path_of_an_ordinary_file_is_itself() -> None:
    assert local_path("/models/m#2/1/model.onnx") == Path("/models/m#2/1/model.onnx")
