from pathlib import Path

import msgspec
import numpy as np
import pytest

from anabranch.schemas.messages import InferRequest
from anabranch.schemas.open_inference_pb2 import ModelInferResponse
from anabranch.schemas.wire import codec
from bench.systems.flink import crayfish_wire
from bench.workloads.models import FFNN_WIDTHS, make_repository
from bench.workloads.workload import ffnn_rows


def test_crayfish_request_has_the_same_numbers(tmp_path: Path) -> None:
    ours = ffnn_rows(make_repository(tmp_path))
    theirs = crayfish_wire.as_crayfish(ours)
    request = codec.decode_request(ours.message(3))
    assert isinstance(request, InferRequest)
    read = msgspec.json.decode(theirs.message(3))
    assert read.pop("creationTimestamp") == 10**12 + 3
    numbers = [np.float32(number) for number in read.pop("dataPoint").removesuffix(",").split(",")]
    assert np.array_equal([numbers], request.inputs[0].to_array())
    assert read == {"dataPointSz1": 1, "dataPointSz2": FFNN_WIDTHS[0], "prediction": None}
    assert np.array_equal(theirs.answer(3), ours.answer(3))


def test_crayfish_answer_is_told_by_its_first_byte() -> None:
    answer = b'{"creationTimestamp":1000000000012,"dataPoint":"1,","prediction":"[[0.25, 1.0E-5]]"}'
    assert crayfish_wire.is_answer(answer)
    number, scores = crayfish_wire.read_answer(answer)
    assert number == 12
    assert np.array_equal(scores, np.array([0.25, 1e-5], np.float32))
    assert not crayfish_wire.is_answer(ModelInferResponse(model_name="m", id="1").SerializeToString())


@pytest.mark.parametrize(
    "answer", [b"{", b'{"creationTimestamp":1}', b'{"creationTimestamp":1,"prediction":"[[NaN]]"}']
)
def test_crayfish_bad_answer_raises_value_error(answer: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        crayfish_wire.read_answer(answer)
