"""Messages, records and state keep their bytes; see `golden_samples` to add a sample."""

import re
import struct
from pathlib import Path

import msgspec
import pytest

from anabranch.operators.core.merging.request_window import SNAPSHOT_VERSION, Window
from anabranch.operators.core.scheduling.policy import SchedulingPolicy
from anabranch.schemas.frames import WAITING_VERSION, read_answers, read_begun, read_requests, read_waiting
from anabranch.schemas.messages import InferRequest
from anabranch.schemas.records import (
    CARRYING_VERSION,
    RECORD_CLASSES,
    VERSION,
    PartialRecord,
    RecordKind,
    ShardRecord,
    Source,
    decode_record,
)
from anabranch.schemas.records_v1 import read_kept_record
from anabranch.schemas.signatures import decode_output_signature, decode_signature
from anabranch.schemas.wire import codec
from anabranch.schemas.wire.carried import decode_carried
from anabranch.schemas.wire.dead_letters import DeadLetterSource, decode_dead_letter
from tests.schemas import golden_samples as golden

ROOT = Path(__file__).parents[2]
SAMPLES = golden.samples()


def stored(name: str) -> bytes:
    return (golden.FOLDER / (name if "/" in name else f"v1/{name}")).read_bytes()


def test_golden_files_are_the_samples_and_the_old_state() -> None:
    files = {path.relative_to(golden.FOLDER).as_posix() for path in golden.FOLDER.glob("*/*")}
    assert files == {*SAMPLES, *golden.OLD}
    assert {type(record) for record in golden.RECORDS.values()} == set(RECORD_CLASSES.values())


@pytest.mark.parametrize("name", SAMPLES)
def test_golden_samples_are_written_byte_for_byte(name: str) -> None:
    assert SAMPLES[name] == stored(name)


def content(request: InferRequest) -> tuple[object, ...]:
    return request.model_name, request.id, request.inputs


def test_golden_messages_are_read() -> None:
    assert codec.decode_request(stored("request_raw.pb")) == golden.REQUEST
    assert codec.decode_request(stored("request.json")) == golden.JSON_REQUEST
    assert content(codec.decode_request(stored("request_typed.pb"))) == content(golden.REQUEST)
    for encoding in ("pb", "json"):
        assert codec.decode_response(stored(f"response.{encoding}")) == golden.RESPONSE
        assert codec.decode_response(stored(f"error.{encoding}")) == golden.ERROR
    letter = decode_dead_letter(stored("dead_letter.json"))
    assert (letter.original, letter.code) == (b"\xff original", golden.FAILURE.code)
    assert letter.source == DeadLetterSource("inference-requests", 3, 9_000_000_000, 1_767_225_600_000)


@pytest.mark.parametrize("name", golden.RECORDS)
def test_golden_record_is_read(name: str) -> None:
    assert decode_record(stored(name)) == golden.RECORDS[name]
    assert stored(name)[1] == (CARRYING_VERSION if name.startswith("v3/") else VERSION)


def test_golden_frames_are_read() -> None:
    requests = [(b"value", golden.SOURCE), (None, Source(0, 1, -1)), (b"", golden.SOURCE)]
    assert read_requests(stored("requests.frame")) == requests
    assert list(read_answers(stored("answers.frame"))) == [(b"id-1", b"answer", b""), (b"", b"", b"")]
    assert read_requests(stored("v3/requests.frame")) == [(b"value", golden.SOURCE), (None, golden.CARRYING_SOURCE)]
    assert list(read_answers(stored("v3/answers.frame"))) == [
        (b"id-1", b"answer", golden.CARRIED.encode()),
        (b"", b"", b""),
    ]
    assert decode_carried(golden.CARRYING_SOURCE.carried) == golden.CARRIED


def test_golden_signatures_are_read() -> None:
    shard = ShardRecord.decode(stored("v2/record_shard.bin"))
    partial = PartialRecord.decode(stored("v2/record_partial.bin"))
    assert [spec.name for spec in decode_signature(shard.signature).inputs] == ["numbers", "texts"]
    assert decode_output_signature(partial.outputs).task == 1


def test_golden_shard_has_the_documented_layout() -> None:
    record = stored("v2/record_shard.bin")
    kind, version, flags, encoding, id_size, tensors, signature_size, body_size, member = struct.unpack_from(
        "<BBBBHHIII", record
    )
    assert (kind, version, flags, encoding) == (RecordKind.SHARD, 2, 0, 0)
    assert (id_size, tensors, body_size, member) == (7, 2, 0, 1)
    at = 60 + id_size
    assert record[60:at] + record[at : at + signature_size] == "id-ü-1".encode() + golden.SIGNATURE
    at += signature_size
    assert struct.unpack_from("<II", record, at) == (24, len(golden.INPUTS[1].data))
    at += 8
    at += -at % 16
    assert record[at : at + 24] == golden.INPUTS[0].data


# ---- state ---------------------------------------------------------------------------------------------------------

#: Name of a state in Flink -> its samples.
STATE = {
    "waiting": ["v1/waiting.frame", "v3/waiting.frame", "v1/begun.frame"],
    "window": ["v1/window.bin", "v2/window.bin", "v3/window.bin"],
    "partials": [f"{layout}/record_{kind}.bin" for layout in ("v1", "v2") for kind in ("opening", "partial")]
    + ["v3/record_opening.bin"],
}


def test_golden_state_of_every_descriptor_has_a_sample() -> None:
    sources = [path.read_text() for folder in ("operators", "flink_job") for path in (ROOT / folder).rglob("*.py")]
    names = [name for source in sources for name in re.findall(r"StateDescriptor\(\s*\"(\w+)\"", source)]
    assert sorted(names) == sorted(STATE)
    assert sum(source.count("StateDescriptor(") for source in sources) == len(names)
    for samples in STATE.values():
        assert all((golden.FOLDER / sample).exists() for sample in samples)


def test_golden_state_records_of_both_layouts_are_read() -> None:
    assert read_kept_record(stored("v1/record_opening.bin")) == golden.OLD_OPENING
    assert read_kept_record(stored("v1/record_partial.bin")) == golden.OLD_PARTIAL
    for name in ("v2/record_opening.bin", "v2/record_partial.bin", "v3/record_opening.bin"):
        assert read_kept_record(stored(name)) == golden.RECORDS[name]


def test_golden_mark_of_a_begun_request_is_read() -> None:
    assert read_begun(stored("v1/begun.frame")) == 3_000_000_000
    with pytest.raises(ValueError, match="version 2, expected 1"):
        read_begun(b"\2" + stored("v1/begun.frame")[1:])


@pytest.mark.parametrize(("name", "run"), [("v1/window.bin", 0), ("v2/window.bin", 0), ("v3/window.bin", golden.RUN)])
def test_golden_window_of_each_layout_is_restored(name: str, run: int) -> None:
    window = Window(SchedulingPolicy(), run=1)
    window.restore(stored(name))
    found, expected = (msgspec.msgpack.decode(each[1:]) for each in (window.snapshot(), stored("v3/window.bin")))
    assert found[:-1] == expected[:-1]
    assert found[-1] == run
    assert stored("v3/window.bin") == golden.open_window().snapshot()
    assert stored("v3/window.bin")[0] == SNAPSHOT_VERSION


@pytest.mark.parametrize("version", [0, 1, SNAPSHOT_VERSION + 1, 0x9A, 0x9C, 255])
def test_golden_window_of_another_version_is_refused(version: int) -> None:
    with pytest.raises(ValueError, match=f"version {version}"):
        Window(SchedulingPolicy()).restore(bytes((version,)) + stored("v3/window.bin")[1:])


def test_golden_queued_request_is_read_with_its_version() -> None:
    assert read_waiting(stored("waiting.frame")) == (b"value", golden.SOURCE)
    assert stored("waiting.frame")[0] == WAITING_VERSION
    assert read_waiting(stored("v3/waiting.frame")) == (b"value", golden.CARRYING_SOURCE)
    for broken in (b"", b"\x03" + stored("waiting.frame")[1:], stored("requests.frame")):
        with pytest.raises(ValueError, match="version"):
            read_waiting(broken)


def test_golden_changed_sample_is_refused_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(golden, "FOLDER", tmp_path)
    assert golden.write_missing() == 0
    path = golden.FOLDER / "v1/response.pb"
    path.write_bytes(b"other")
    assert golden.write_missing() == 1
    assert path.read_bytes() == b"other"
    assert "refused" in capsys.readouterr().err
