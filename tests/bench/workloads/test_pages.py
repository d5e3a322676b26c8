from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from rapidocr.ch_ppocr_det.utils import DetPreProcess

from anabranch.schemas.messages import InferRequest
from anabranch.schemas.wire import codec
from bench.workloads.pages import DETECTOR, SIZES, add_detector, detector_bytes, pages


@pytest.mark.slow
def test_pages_of_all_sizes_have_text_that_is_found(tmp_path: Path) -> None:
    workload = pages(add_detector(tmp_path))
    shapes = set()
    for number in range(len(workload.requests)):
        request = codec.decode_request(workload.message(number))
        assert isinstance(request, InferRequest)
        _, height, width, _ = request.inputs[0].shape
        shapes.add((height, width))
        found = workload.answer(number).reshape(height // 4, width // 4)
        assert found.max() > 0.7
        assert (found > 0.3).mean() < 0.7, "there is paper too"
        assert len(workload.message(number)) < 1_000_000
    assert shapes == set(SIZES)


@pytest.mark.slow
def test_detector_scales_pixels_as_rapidocr_does(tmp_path: Path) -> None:
    session = onnxruntime.InferenceSession(add_detector(tmp_path) / DETECTOR / "1" / "model.onnx")
    page = np.random.default_rng(1).integers(0, 256, (64, 96, 3), np.uint8)
    original = onnxruntime.InferenceSession(detector_bytes())
    scaled = DetPreProcess(64, "min").normalize(page).astype(np.float32).transpose(2, 0, 1)[np.newaxis]
    whole = original.run(None, {"x": scaled})[0][0, 0]
    squares = whole.reshape(16, 4, 24, 4).max(axis=(1, 3))
    found = session.run(None, {"page": page[np.newaxis]})[0][0, 0]
    assert np.allclose(found, squares, atol=1e-4)
