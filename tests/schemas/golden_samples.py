"""One sample of everything that stands on a topic or travels between operators, as bytes in `golden/v1/`.

`python -m tests.schemas.golden_samples` writes the files that are not there yet. It never writes over one: bytes that
differ are a change that running jobs and other people's clients would feel, so they need a folder of their own (`v2`)
and code that still reads the old ones. Whoever is sure that nobody has such bytes deletes the file by hand first.
"""

import sys
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from anabranch.schemas import codec
from anabranch.schemas.batches import BatchEntry, BatchRecord
from anabranch.schemas.dead_letters import encode_letter
from anabranch.schemas.frames import write_answers, write_requests
from anabranch.schemas.messages import Encoding, ErrorResponse, InferRequest, InferResponse, Parameter
from anabranch.schemas.open_inference_pb2 import ModelInferRequest
from anabranch.schemas.records import (
    NO_DEADLINE_MS,
    Failure,
    OutputSignature,
    Record,
    RecordKind,
    Signature,
    Source,
    TensorSignature,
    UnitSegment,
    encode_segments,
    encode_signature,
)
from anabranch.schemas.tensors import Tensor

FOLDER = Path(__file__).parent / "golden" / "v1"

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

MEMBERS = (
    UnitSegment(3, 9_000_000_000, 1_767_225_600_000, "id-ü-1", 1_767_225_601_500, 32, 1, 64),
    UnitSegment(0, 7, -1, "", NO_DEADLINE_MS, 0, 1, 1),
)


def _typed_request() -> bytes:
    message = ModelInferRequest(model_name="magika", id="id-ü-1")
    numbers = message.inputs.add(name="numbers", datatype="FP32", shape=(2, 3))
    numbers.contents.fp32_contents.extend([1.5, -2.0, 0.0, 3.25, 1e-3, 4e6])
    texts = message.inputs.add(name="texts", datatype="BYTES", shape=(2, 1))
    texts.contents.bytes_contents.extend(["grüße".encode(), b""])
    return message.SerializeToString(deterministic=True)


def _record(kind: RecordKind, signature: bytes, tensors: tuple[Tensor, ...] = (), original: bytes = b"") -> Record:
    return Record(
        kind=kind,
        source=SOURCE,
        signature=signature,
        id="id-ü-1",
        encoding=Encoding.JSON,
        deadline_ms=1_767_225_601_500,
        rank=2,
        partial_allowed=True,
        explain=True,
        first_row=32,
        rows=2,
        total_rows=64,
        original=original,
        tensors=tuple(tensor.data for tensor in tensors),
    )


def records() -> dict[str, Record]:
    """Every kind of record."""
    return {
        "record_shard.bin": _record(RecordKind.SHARD, SIGNATURE, INPUTS),
        "record_opening.bin": _record(RecordKind.OPENING, SIGNATURE, (), b'{"original": 1}'),
        "record_partial.bin": _record(RecordKind.PARTIAL, OUTPUT_SIGNATURE, OUTPUTS),
        "record_failure.bin": _record(RecordKind.FAILURE, encode_signature(FAILURE)),
        "record_unit.bin": replace(
            _record(RecordKind.UNIT, SIGNATURE, INPUTS, encode_segments(MEMBERS)), times_ms=(1.5, 0.25), is_whole=True
        ),
    }


BATCH = BatchRecord(
    SIGNATURE,
    [
        BatchEntry(SOURCE, "id-ü-1", Encoding.JSON, 1_767_225_601_500, 2, True, True, 1, b"one", 1.5, 2.5),
        BatchEntry(Source(0, 1, -1), original=b"\xff", read_ms=3.0),
    ],
    [tensor.data for tensor in INPUTS],
)


def samples() -> dict[str, bytes]:
    """File name -> the bytes that today's code writes."""
    return {
        "request_raw.pb": codec.encode_request(REQUEST),
        "request_typed.pb": _typed_request(),
        "request.json": codec.encode_request(JSON_REQUEST),
        "response.pb": codec.encode_response(RESPONSE, Encoding.PROTOBUF),
        "response.json": codec.encode_response(RESPONSE, Encoding.JSON),
        "error.pb": codec.encode_response(ERROR, Encoding.PROTOBUF),
        "error.json": codec.encode_response(ERROR, Encoding.JSON),
        "dead_letter.json": encode_letter("inference-requests", SOURCE, "id-ü-1", FAILURE, b"\xff original"),
        "requests.frame": write_requests([(b"value", SOURCE), (None, Source(0, 1, -1)), (b"", SOURCE)]),
        "answers.frame": write_answers([(b"id-1", b"answer"), (b"", b"")]),
        **{name: record.encode() for name, record in records().items()},
        "batch.bin": BATCH.encode(),
    }


def write_missing() -> int:
    """Writes what is not there; the number of files whose bytes have changed."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    changed = 0
    for name, encoded in samples().items():
        path = FOLDER / name
        if not path.exists():
            path.write_bytes(encoded)
            print(f"wrote {path}")
        elif path.read_bytes() != encoded:
            changed += 1
            print(f"refused to overwrite {path}: its bytes have changed (see the top of {__file__})", file=sys.stderr)
    return changed


if __name__ == "__main__":
    sys.exit(write_missing())
