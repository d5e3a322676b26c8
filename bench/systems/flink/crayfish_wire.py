"""Crayfish's JSON wire (EDBT 2024).

    {"creationTimestamp":1000000000007,"dataPointSz1":1,"dataPointSz2":2,"dataPoint":"0.1,0.2,","prediction":null}

Numbers are text between commas, and the answer is the request with `prediction` filled in: "[[0.1, 0.9]]". The
creation time stands for the id: 10^12 and the request's number.
"""

import msgspec
import numpy as np

from anabranch.schemas.messages import InferRequest
from anabranch.schemas.tensors import Array
from anabranch.schemas.wire import codec
from bench.workloads.workload import PLACEHOLDER, Workload

_FIRST_ID = 10**12


class _Answer(msgspec.Struct):
    creationTimestamp: int  # noqa: N815 - Crayfish's
    prediction: str


def as_crayfish(workload: Workload) -> Workload:
    """Return the same requests, with the same numbers and answers, on Crayfish's wire."""
    texts = [_text_of(workload.message(number)) for number in range(len(workload.requests))]
    requests = [np.frombuffer(text.encode(), np.uint8) for text in texts]
    return Workload(f"{workload.name}, JSON", requests, workload.answers)


def is_answer(message: bytes) -> bool:
    """Return true for a message that starts like JSON."""
    return message.startswith(b"{")


def read_answer(message: bytes) -> tuple[int, Array]:
    """Return the request's number, and its scores, float32 [values].

    Raises:
        ValueError: It is not such an answer.
    """
    answer = msgspec.json.decode(message, type=_Answer)
    return answer.creationTimestamp - _FIRST_ID, np.array(msgspec.json.decode(answer.prediction), np.float32).ravel()


def _text_of(message: bytes) -> str:
    request = codec.decode_request(message)
    assert isinstance(request, InferRequest)  # noqa: S101 - a workload has no other
    rows = request.inputs[0].to_array()
    numbers = "".join(f"{value}," for value in rows.ravel())
    return (
        f'{{"creationTimestamp":1{PLACEHOLDER},"dataPointSz1":{rows.shape[0]},"dataPointSz2":{rows.shape[1]},'
        f'"dataPoint":"{numbers}","prediction":null}}'
    )
