"""Emits outputs of the core: answers in frames, everything else as side outputs."""

from collections.abc import Iterable, Iterator
from functools import cache

from pyflink.datastream import OutputTag

from anabranch.operators.core.outputs import Answer, DeadLetterRecord, Offload, Output, Shard, Unit
from anabranch.operators.runtime.flink_compat import KeyedRow
from anabranch.operators.runtime.flink_types import BYTES, KEYED_BYTES, PARTS
from anabranch.schemas.frames import write_answers

LETTERS_TAG = OutputTag("letters", KEYED_BYTES)
WORK_TAG = OutputTag("work", BYTES)
PARTS_TAG = OutputTag("parts", PARTS)


@cache
def units_tag(model: tuple[str, str]) -> OutputTag:
    """Returns the tag of units for a model, given by name and version."""
    return OutputTag("units {}/{}".format(*model), BYTES)


#: Frames save time for small answers only.
_FRAME_BYTES = 4 * 1024 * 1024


def emit(outputs: Iterable[Output]) -> Iterator[object]:
    """Converts outputs of the core to the values that a Flink operator yields."""
    answers: list[Answer] = []
    size_bytes = 0
    for output in outputs:
        if isinstance(output, Answer):
            answers.append(output)
            size_bytes += len(output.value)
            if size_bytes >= _FRAME_BYTES:
                yield write_answers(answers)
                answers, size_bytes = [], 0
        elif isinstance(output, DeadLetterRecord):
            yield LETTERS_TAG, KeyedRow(output.key, output.value)
        elif isinstance(output, Shard | Offload):
            yield WORK_TAG, output.value
        elif isinstance(output, Unit):
            yield units_tag(output.model), output.value
        else:
            yield PARTS_TAG, KeyedRow(output.key, output.value)
    if answers:
        yield write_answers(answers)
