"""Reading files that may not be models."""

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
def test_read_model_other_file_is_named_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(UnreadableModel, match=r"model\.onnx is not an ONNX model") as refused:
        read_model(path)
    assert "\n" not in str(refused.value)


def test_read_model_unreadable_file_is_named(tmp_path: Path) -> None:
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


def test_read_model_external_data_is_not_read(tmp_path: Path) -> None:
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
def test_size_bytes_is_that_of_the_values(array: np.typing.NDArray[np.generic], size: int) -> None:
    assert size_bytes(numpy_helper.from_array(array)) == size


def test_size_bytes_every_datatype_is_known() -> None:
    for datatype in TensorProto.DataType.values():
        assert size_bytes(TensorProto(dims=[2], data_type=datatype)) >= 0
