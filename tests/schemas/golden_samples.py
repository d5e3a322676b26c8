"""Samples of all messages, records and state, as bytes in `golden/`.

`golden/v2` has the records of today's layout, `golden/v3` those with carried fields, `golden/v1` all other samples and
the state of layout 1, which is only read. `python -m tests.schemas.golden_samples` writes missing files and never
overwrites one: changed bytes need a new folder, and code that reads the old files.
"""

import sys
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from anabranch.operators.core.merging.request_window import Window
from anabranch.operators.core.scheduling.policy import SchedulingPolicy
from anabranch.schemas.frames import write_answers, write_begun, write_requests, write_waiting
from anabranch.schemas.messages import Encoding, ErrorResponse, InferRequest, InferResponse, Parameter
from anabranch.schemas.model import Ensemble
from anabranch.schemas.open_inference_pb2 import ModelInferRequest
from anabranch.schemas.records import (
    NO_DEADLINE_MS,
    AnyRecord,
    BatchEntry,
    BatchRecord,
    CarryingSource,
    FailureRecord,
    OpeningRecord,
    PartialRecord,
    Segment,
    ShardRecord,
    Source,
    UnitRecord,
)
from anabranch.schemas.signatures import (
    Failure,
    OpeningSignature,
    OutputSignature,
    Signature,
    TensorSignature,
    encode_signature,
)
from anabranch.schemas.tensors import Tensor
from anabranch.schemas.wire import codec
from anabranch.schemas.wire.carried import Carried
from anabranch.schemas.wire.dead_letters import encode_dead_letter

FOLDER = Path(__file__).parent / "golden"
#: State of earlier layouts, which is only read.
OLD = ("v1/record_opening.bin", "v1/record_partial.bin", "v1/window.bin", "v2/window.bin")

INPUTS = (
    Tensor.from_array("numbers", np.array([[1.5, -2.0, 0.0], [3.25, 1e-3, 4e6]], np.float32)),
    Tensor.from_array("texts", np.array([["grüße"], [""]], dtype=object)),
)
OUTPUTS = (
    Tensor.from_array("scores", np.array([[0.25, 0.75], [1.0, 0.0]], np.float64)),
    Tensor.from_array("labels", np.array([3, -1], np.int64)),
)
PARAMETERS: dict[str, Parameter] = {
    "priority": 2,
    "timeout": 1_500_000,
    "partial": True,
    "tenant": "blue",
    "temperature": 0.5,
}
REQUEST = InferRequest("magika", INPUTS, "id-ü-1", "2", PARAMETERS, ("labels", "scores"))
JSON_REQUEST = InferRequest("magika", INPUTS, "id-ü-1", "2", PARAMETERS, ("labels", "scores"), Encoding.JSON)
RESPONSE = InferResponse("magika", "2", "id-ü-1", OUTPUTS, {"shards": 3, "tasks": 2})
ERROR = ErrorResponse("id-ü-1", "wrong_shape", "input 'numbers' has rank 1", "magika", "2")
FAILURE = Failure("inference_failed", "row 1: out of range", "infer", "magika", "2")
SOURCE = Source(partition=3, offset=9_000_000_000, timestamp_ms=1_767_225_600_000)
CARRIED = Carried("replies-ü", 7, b"key", (("traceparent", b"00-1"), ("empty", b""), ("null", None)))
CARRYING_SOURCE = CarryingSource(3, 9_000_000_000, 1_767_225_600_000, CARRIED.encode())
SIGNATURE = encode_signature(
    Signature(
        "magika",
        "2",
        (TensorSignature("numbers", "FP32", (3,)), TensorSignature("texts", "BYTES", (1,))),
        ("labels", "scores"),
    )
)
OUTPUT_SIGNATURE = encode_signature(
    OutputSignature(1, (TensorSignature("scores", "FP64", (2,)), TensorSignature("labels", "INT64", ())))
)

SEGMENT = Segment(SOURCE, "id-ü-1", 1_767_225_601_500, 1, 32, 2, 64)


def _typed_request() -> bytes:
    message = ModelInferRequest(model_name="magika", id="id-ü-1")
    numbers = message.inputs.add(name="numbers", datatype="FP32", shape=(2, 3))
    numbers.contents.fp32_contents.extend([1.5, -2.0, 0.0, 3.25, 1e-3, 4e6])
    texts = message.inputs.add(name="texts", datatype="BYTES", shape=(2, 1))
    texts.contents.bytes_contents.extend(["grüße".encode(), b""])
    return message.SerializeToString(deterministic=True)


_INPUTS = tuple(tensor.data for tensor in INPUTS)
_OUTPUTS = tuple(tensor.data for tensor in OUTPUTS)
RECORDS: dict[str, AnyRecord] = {
    "v2/record_shard.bin": ShardRecord(SEGMENT, SIGNATURE, _INPUTS),
    "v2/record_opening.bin": OpeningRecord(SEGMENT, SIGNATURE, Encoding.JSON, True, True, b'{"original": 1}', 1.5, 2.5),
    "v2/record_partial.bin": PartialRecord(SEGMENT, OUTPUT_SIGNATURE, _OUTPUTS, True, 1.5, 2.5, 3.5),
    "v2/record_failure.bin": FailureRecord(SEGMENT, FAILURE),
    "v2/record_unit.bin": UnitRecord(
        (replace(SEGMENT, rows=1), Segment(Source(0, 7, -1), "", NO_DEADLINE_MS)), SIGNATURE, _INPUTS, True, 1.5, 0.25
    ),
    "v2/record_unit_failed.bin": UnitRecord((SEGMENT,), SIGNATURE, failure=FAILURE),
    "v2/record_batch.bin": BatchRecord(
        [
            BatchEntry(SOURCE, "id-ü-1", Encoding.JSON, 1_767_225_601_500, 2, True, True, 1, b"one", 1.5, 2.5),
            BatchEntry(Source(0, 1, -1), original=b"\xff", read_ms=3.0),
        ],
        SIGNATURE,
        _INPUTS,
    ),
}
RECORDS |= {
    "v3/record_opening.bin": OpeningRecord(
        replace(SEGMENT, source=CARRYING_SOURCE), SIGNATURE, Encoding.JSON, True, True, b'{"original": 1}', 1.5, 2.5
    ),
    "v3/record_batch.bin": BatchRecord(
        [
            BatchEntry(SOURCE, "id-ü-1", Encoding.JSON, 1_767_225_601_500, 2, True, True, 1, b"one", 1.5, 2.5),
            BatchEntry(CarryingSource(0, 1, -1, CARRIED.encode()), original=b"\xff", read_ms=3.0),
        ],
        SIGNATURE,
        _INPUTS,
    ),
}
#: The contents of the samples in layout 1.
OLD_OPENING = OpeningRecord(
    replace(SEGMENT, member=0), SIGNATURE, Encoding.JSON, True, True, b'{"original": 1}', 0.0, 0.0
)
OLD_PARTIAL = PartialRecord(replace(SEGMENT, member=0), OUTPUT_SIGNATURE, _OUTPUTS)


#: Of the attempt that opened the window.
RUN = 77


def open_window() -> Window:
    """Makes a window of three members: rows of two, failures of one."""
    ensemble = Ensemble((("a", "1"), ("b", "1"), ("b", "2")), "mean", (1.0, 0.5, 0.25), 2)
    signature = OpeningSignature("magika", "2", (TensorSignature("numbers", "FP32", (3,)),), ("labels",), ensemble)
    window = Window(SchedulingPolicy(), run=RUN)
    for record in (
        OpeningRecord(SEGMENT, encode_signature(signature), partial_allowed=True),
        PartialRecord(replace(SEGMENT, member=0), OUTPUT_SIGNATURE),
        PartialRecord(replace(SEGMENT, first_row=62), OUTPUT_SIGNATURE),
        FailureRecord(replace(SEGMENT, member=2, first_row=0), FAILURE),
    ):
        window.on_record(record.encode(), 1_767_225_600_000.5)
    return window


def samples() -> dict[str, bytes]:
    """Returns the bytes that today's code writes, by file name."""
    wire = {
        "request_raw.pb": codec.encode_request(REQUEST),
        "request_typed.pb": _typed_request(),
        "request.json": codec.encode_request(JSON_REQUEST),
        "response.pb": codec.encode_response(RESPONSE, Encoding.PROTOBUF),
        "response.json": codec.encode_response(RESPONSE, Encoding.JSON),
        "error.pb": codec.encode_response(ERROR, Encoding.PROTOBUF),
        "error.json": codec.encode_response(ERROR, Encoding.JSON),
        "dead_letter.json": encode_dead_letter("inference-requests", SOURCE, "id-ü-1", FAILURE, b"\xff original"),
        "requests.frame": write_requests([(b"value", SOURCE), (None, Source(0, 1, -1)), (b"", SOURCE)]),
        "answers.frame": write_answers([(b"id-1", b"answer", b""), (b"", b"", b"")]),
        "waiting.frame": write_waiting(b"value", SOURCE),
        "begun.frame": write_begun(3_000_000_000),
    }
    return {
        **{f"v1/{name}": encoded for name, encoded in wire.items()},
        **{name: record.encode() for name, record in RECORDS.items()},
        "v3/window.bin": open_window().snapshot(),
        "v3/requests.frame": write_requests([(b"value", SOURCE), (None, CARRYING_SOURCE)]),
        "v3/answers.frame": write_answers([(b"id-1", b"answer", CARRIED.encode()), (b"", b"", b"")]),
        "v3/waiting.frame": write_waiting(b"value", CARRYING_SOURCE),
    }


def write_missing() -> int:
    """Writes missing files, and returns the number of changed ones."""
    changed = 0
    for name, encoded in samples().items():
        path = FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_bytes(encoded)
            print(f"wrote {path}")
        elif path.read_bytes() != encoded:
            changed += 1
            print(f"refused to overwrite {path}: its bytes have changed (see the top of {__file__})", file=sys.stderr)
    return changed


if __name__ == "__main__":
    sys.exit(write_missing())
