"""Emits outputs of the core: answers in frames, everything else as side outputs."""

from collections.abc import Iterable, Iterator
from functools import cache

from pyflink.datastream import OutputTag

from anabranch.operators.core.outputs import Answer, DeadLetterRecord, Offload, Output, Shard, Unit
from anabranch.operators.runtime.flink_compat import KeyedRow
from anabranch.operators.runtime.flink_types import BYTES, KAFKA_ROW, PARTS
from anabranch.schemas.frames import write_answers
from anabranch.schemas.limits import ANSWER_FRAME_BYTES

LETTERS_TAG = OutputTag("letters", KAFKA_ROW)
WORK_TAG = OutputTag("work", BYTES)
PARTS_TAG = OutputTag("parts", PARTS)


@cache
def units_tag(model: tuple[str, str]) -> OutputTag:
    """Return the tag of a model's units."""
    return OutputTag("units {}/{}".format(*model), BYTES)


def emit(outputs: Iterable[Output]) -> Iterator[object]:
    """Convert outputs of the core to the values that a Flink operator yields."""
    answers: list[Answer] = []
    size_bytes = 0
    for output in outputs:
        if type(output) is Answer:
            answers.append(output)
            size_bytes += len(output.value)
            if size_bytes >= ANSWER_FRAME_BYTES:
                yield write_answers(answers)
                answers, size_bytes = [], 0
        elif isinstance(output, DeadLetterRecord):
            yield LETTERS_TAG, KeyedRow(*output)
        elif isinstance(output, Shard | Offload):
            yield WORK_TAG, output.value
        elif isinstance(output, Unit):
            yield units_tag(output.model), output.value
        else:
            yield PARTS_TAG, KeyedRow(output.key, output.value)
    if answers:
        yield write_answers(answers)


def emit_rows(outputs: Iterable[Answer | DeadLetterRecord]) -> Iterator[object]:
    """Convert outputs of the windows, which leave one by one."""
    for output in outputs:
        row = KeyedRow(*output)
        yield row if isinstance(output, Answer) else (LETTERS_TAG, row)
