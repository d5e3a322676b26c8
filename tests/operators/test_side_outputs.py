"""Outputs of the core become what a Flink operator yields."""

from collections.abc import Iterable
from typing import Any

from anabranch.operators.core.outputs import Answer, DeadLetterRecord, Offload, Output, Shard, Unit, WindowPart
from anabranch.operators.runtime import side_outputs
from anabranch.operators.runtime.side_outputs import LETTERS_TAG, PARTS_TAG, WORK_TAG, units_tag
from anabranch.schemas.frames import read_answers
from anabranch.schemas.limits import ANSWER_FRAME_BYTES


def answers_in(frames: Iterable[object]) -> list[list[tuple[bytes, bytes, bytes]]]:
    return [list(read_answers(frame)) for frame in frames if isinstance(frame, bytes)]


def test_emit_small_answers_share_a_frame() -> None:
    answers = [Answer(b"a", b"1"), Answer(b"b", b"2", b"carried")]
    assert answers_in(side_outputs.emit(answers)) == [[(b"a", b"1", b""), (b"b", b"2", b"carried")]]


def test_emit_large_answers_are_split_into_frames() -> None:
    answers = [Answer(name, bytes(ANSWER_FRAME_BYTES // 2)) for name in (b"a", b"b", b"c")]
    assert [len(frame) for frame in answers_in(side_outputs.emit(answers))] == [2, 1]


def test_emit_other_outputs_go_to_their_side_output() -> None:
    outputs: list[Output] = [
        DeadLetterRecord(b"k", b"v", b"carried"),
        Shard(b"s"),
        Offload(b"o"),
        Unit(("m", "1"), b"u"),
        WindowPart("w", b"p"),
    ]
    emitted: list[Any] = list(side_outputs.emit(outputs))
    letter, shard, offload, unit, part = emitted
    assert (shard, offload, unit) == ((WORK_TAG, b"s"), (WORK_TAG, b"o"), (units_tag(("m", "1")), b"u"))
    for (tag, row), expected in ((letter, (LETTERS_TAG, b"k", b"v")), (part, (PARTS_TAG, "w", b"p"))):
        assert (tag, row[0], row[1]) == expected
    assert list(letter[1]) == [b"k", b"v", b"carried"]
