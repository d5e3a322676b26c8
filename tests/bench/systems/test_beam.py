from pathlib import Path

import apache_beam
import numpy as np
import pytest

from bench.systems.in_memory import beam
from bench.systems.in_memory.beam_pipeline import BATCH_ROWS, predictions
from bench.systems.onnx_session import open_session
from bench.workloads.models import FFNN, FFNN_WIDTHS, make_repository


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_repository(tmp_path_factory.mktemp("models")) / FFNN / "1" / "model.onnx"


@pytest.mark.slow
def test_beam_predictions_equal_the_models(model: Path) -> None:
    distinct = np.random.default_rng(0).random((3, FFNN_WIDTHS[0]), np.float32)
    (expected,) = open_session(model).run(None, {"x": distinct})
    count = BATCH_ROWS + 5

    def check(results: list[tuple[list[float], list[float]]]) -> None:
        assert len(results) == count
        rows, scores = (np.array(values, np.float32) for values in zip(*results, strict=True))
        which = np.abs(rows[:, np.newaxis] - distinct).max(axis=2).argmin(axis=1)
        assert np.bincount(which).tolist() == [23, 23, 23]
        assert np.allclose(scores, expected[which], atol=1e-5)

    with apache_beam.Pipeline(runner="DirectRunner") as pipeline:
        made = predictions(pipeline, model, distinct, count)
        pairs = made | apache_beam.Map(lambda result: (result.example.tolist(), result.inference.tolist()))
        _ = pairs | apache_beam.combiners.ToList() | apache_beam.Map(check)


@pytest.mark.slow
def test_beam_rate_is_measured_in_its_own_process(model: Path) -> None:
    assert beam.rows_per_s(model, 1_000) > 0


@pytest.mark.slow
def test_beam_failed_pipeline_says_why(tmp_path: Path) -> None:
    with pytest.raises(beam.BeamFailed, match=r"no-model\.onnx"):
        beam.rows_per_s(tmp_path / "no-model.onnx", 10)
