"""What is on the wire and in state today can be read tomorrow, byte for byte; see `golden_samples` to add a sample."""

import struct
from pathlib import Path

import pytest

from anabranch.schemas import codec
from anabranch.schemas.batches import BatchRecord
from anabranch.schemas.dead_letters import LetterSource, decode_letter
from anabranch.schemas.frames import read_answers, read_requests
from anabranch.schemas.messages import InferRequest
from anabranch.schemas.records import (
    Record,
    RecordKind,
    Source,
    decode_output_signature,
    decode_segments,
    decode_signature,
)
from tests.schemas import golden_samples as golden

SAMPLES = golden.samples()


def stored(name: str) -> bytes:
    return (golden.FOLDER / name).read_bytes()


def test_every_file_has_a_sample_and_every_sample_a_file() -> None:
    assert {path.name for path in golden.FOLDER.iterdir()} == set(SAMPLES)


@pytest.mark.parametrize("name", SAMPLES)
def test_today_s_code_writes_the_same_bytes(name: str) -> None:
    assert SAMPLES[name] == stored(name)


def content(request: InferRequest) -> tuple[object, ...]:
    return request.model_name, request.id, request.inputs


def test_today_s_code_reads_the_messages() -> None:
    assert codec.decode_request(stored("request_raw.pb")) == golden.REQUEST
    assert codec.decode_request(stored("request.json")) == golden.JSON_REQUEST
    assert content(codec.decode_request(stored("request_typed.pb"))) == content(golden.REQUEST)
    for encoding in ("pb", "json"):
        assert codec.decode_response(stored(f"response.{encoding}")) == golden.RESPONSE
        assert codec.decode_response(stored(f"error.{encoding}")) == golden.ERROR
    letter = decode_letter(stored("dead_letter.json"))
    assert (letter.original, letter.code) == (b"\xff original", golden.FAILURE.code)
    assert letter.source == LetterSource("inference-requests", 3, 9_000_000_000, 1_767_225_600_000)


@pytest.mark.parametrize("name", golden.records())
def test_today_s_code_reads_the_records(name: str) -> None:
    assert Record.decode(stored(name)) == golden.records()[name]


def test_today_s_code_reads_the_frames() -> None:
    requests = [(b"value", golden.SOURCE), (None, Source(0, 1, -1)), (b"", golden.SOURCE)]
    assert read_requests(stored("requests.frame")) == requests
    assert list(read_answers(stored("answers.frame"))) == [(b"id-1", b"answer"), (b"", b"")]


def test_today_s_code_reads_the_batch() -> None:
    assert BatchRecord.decode(stored("batch.bin")) == golden.BATCH


def test_today_s_code_reads_the_signatures() -> None:
    shard, partial = Record.decode(stored("record_shard.bin")), Record.decode(stored("record_partial.bin"))
    assert [spec.name for spec in decode_signature(shard.signature).inputs] == ["numbers", "texts"]
    assert decode_output_signature(partial.signature).task == 1
    assert decode_segments(Record.decode(stored("record_unit.bin")).original) == golden.MEMBERS


def test_the_layout_is_the_one_that_the_drawing_describes() -> None:
    record = stored("record_shard.bin")
    kind, encoding, flags, id_size, tensors, signature_size = struct.unpack_from("<BBBxHHI", record)
    assert (kind, encoding, flags, id_size, tensors) == (RecordKind.SHARD, 1, 0b11, 7, 2)
    at = 60 + id_size
    assert record[60:at] + record[at : at + signature_size] == "id-ü-1".encode() + golden.SIGNATURE
    at += signature_size
    assert struct.unpack_from("<II", record, at) == (24, len(golden.INPUTS[1].data))
    at += 8
    at += -at % 16
    assert record[at : at + 24] == golden.INPUTS[0].data


def test_a_changed_sample_is_refused_and_the_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(golden, "FOLDER", tmp_path)
    assert golden.write_missing() == 0
    path = golden.FOLDER / "response.pb"
    path.write_bytes(b"other")
    assert golden.write_missing() == 1
    assert path.read_bytes() == b"other"
    assert "refused" in capsys.readouterr().err
