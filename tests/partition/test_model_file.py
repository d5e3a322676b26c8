"""Reading a file that may be no model."""

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from anabranch.partition.errors import UnreadableModel
from anabranch.partition.graph.model_file import MAX_FILE_BYTES, read_model, size_bytes
from tests.partition.texts import BRANCHES, model_of


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x08\x12\x04" * 100])
def test_a_file_that_is_no_model_is_named_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(UnreadableModel, match=r"model\.onnx is not an ONNX model") as refused:
        read_model(path)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_cut_short_or_missing_or_too_large_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(UnreadableModel, match=r"cannot read .*model\.onnx"):
        read_model(path)
    path.write_bytes(model_of(BRANCHES).SerializeToString()[:-9])
    with pytest.raises(UnreadableModel, match="not an ONNX model"):
        read_model(path)
    with path.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(UnreadableModel, match="over 2 GiB: save its weights as external data"):
        read_model(path)


def test_external_data_is_left_on_the_disk(tmp_path: Path) -> None:
    model = model_of("g (float[N, 512] x) => (float[N, 4] y) { y = MatMul(x, w) }")
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((512, 4), np.float32), "w"))
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, location="weights")
    (tmp_path / "weights").unlink()
    assert size_bytes(read_model(tmp_path / "model.onnx").graph.initializer[0]) == 512 * 4 * 4


@pytest.mark.parametrize(
    ("array", "size"),
    [
        (np.zeros((3, 4), np.float16), 24),
        (np.zeros((), np.int64), 8),
        (np.zeros((0, 4), np.float32), 0),
        (np.zeros((5,), ml_dtypes.int4), 3),
        (np.array(["a", "bcd"], object), 4),
    ],
)
def test_the_size_of_values(array: np.typing.NDArray[np.generic], size: int) -> None:
    assert size_bytes(numpy_helper.from_array(array)) == size


def test_the_size_of_every_datatype_is_known() -> None:
    for datatype in TensorProto.DataType.values():
        assert size_bytes(TensorProto(dims=[2], data_type=datatype)) >= 0
