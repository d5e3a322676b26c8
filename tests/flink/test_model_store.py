"""A job serves the models that it took, whatever happens to the repository and to TaskManagers."""

from pathlib import Path

import numpy as np
import pytest

from anabranch.flink_job.config import Config
from anabranch.flink_job.job import read_models
from anabranch.flink_job.model_repository.flink_files import FlinkFiles
from anabranch.flink_job.model_repository.store import ModelStore
from anabranch.jobs.control import JobControl
from anabranch.jobs.keeper import JobKeeper
from anabranch.operators.sessions import model_cache
from anabranch.schemas.messages import InferRequest, InferResponse
from anabranch.schemas.tensors import Tensor
from anabranch.stack.flink.cluster import FlinkCluster
from anabranch.stack.kafka.broker import KafkaBroker
from tests.flink.conftest import FIRST_THREAD
from tests.flink.models import FLOAT, Tensors, _write
from tests.flink.service import Topics, durable

X: Tensors = {"x": (FLOAT, ["n"])}
Y: Tensors = {"y": (FLOAT, ["n"])}


def ask(topics: Topics, run: str) -> dict[str, float]:
    """Returns an output of each model."""
    tensor = Tensor.from_array("x", np.full(1, 3, np.float32))
    answers = topics.ask(*(InferRequest(model, (tensor,), f"{model} {run}") for model in ("a", "b")), timeout_s=110)
    assert all(isinstance(answer, InferResponse) for answer in answers), answers
    return {
        answer.model_name: float(answer.outputs[0].to_array()[0])
        for answer in answers
        if isinstance(answer, InferResponse)
    }


@pytest.mark.recovery
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", FIRST_THREAD)
def test_overwritten_and_lost_models_change_nothing(
    broker: KafkaBroker, tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # TaskManagers inherit it: one that is new finds no copy of another run.
    monkeypatch.setenv(model_cache.CACHE_VARIABLE, str(tmp_path / "cache"))
    _write(tmp_path / "models" / "a" / "1", ["Add x x y"], X, Y)
    _write(tmp_path / "models" / "b" / "1", ["Mul x x y"], X, Y)
    config = durable("store", mode, tmp_path, tmp_path / "models", checkpoint_interval_ms=500)
    topics = Topics(broker, config)
    told: list[str] = []
    with FlinkCluster(tmp_path / "cluster", task_managers=2) as cluster:
        keeper = JobKeeper(topics.config, cluster.url, read_models(topics.config), told.append)
        keeper.start()
        keeper.await_serving(failures=3)
        assert ask(topics, "first") == {"a": 6.0, "b": 9.0}
        # Overwritten by another model, and by half a copy.
        _write(tmp_path / "models" / "a" / "1", ["Sub x x y"], X, Y)
        (tmp_path / "models" / "b" / "1" / "model.onnx").write_bytes(b"half a copy")
        cluster.kill_task_manager(max(cluster.task_managers))
        cluster.add_task_manager()
        assert ask(topics, "second") == {"a": 6.0, "b": 9.0}
        [summary] = JobControl(cluster.rest).summaries()
        assert summary.models_manifest.startswith(f"{config.job.checkpoint_dir}/.models/manifests/")
        assert any(line == f"Models: manifest {summary.models_manifest.rpartition('/')[2][:12]}." for line in told)
        keeper.running.cancel()
    topics.close()


def test_store_other_file_systems_are_read_by_flink(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path / "models" / "a" / "1", ["Add x x y"], X, Y)
    config = Config().replace(models={"repository": str(tmp_path / "models")})
    # Only Flink knows a path behind this scheme, for the process and for the one that fetches.
    monkeypatch.setattr(model_cache, "local_file", lambda _: None)
    monkeypatch.setattr("anabranch.flink_job.model_repository.store.local_file", lambda _: None)
    monkeypatch.setenv(model_cache.CACHE_VARIABLE, str(tmp_path / "cache"))
    store = ModelStore(f"file://{tmp_path}/store", {})
    assert isinstance(store._files, FlinkFiles)
    first = store.add(read_models(config))
    assert first.copied_bytes > 0
    assert ModelStore(f"file://{tmp_path}/store", {}).add(read_models(config)).copied_bytes == 0
    (tmp_path / "models" / "a" / "1" / "model.onnx").unlink()
    path = model_cache.local_path(first.catalog.find("a", "").path)
    assert model_cache.hash_of(path) == first.catalog.find("a", "").sha256
    assert sorted(each.name for each in (tmp_path / "store").iterdir()) == ["bundles", "files", "manifests"]
