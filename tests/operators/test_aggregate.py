"""The aggregate operator carries out what the aggregator decides, and gives the memory of every part back."""

import os
from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

import pytest
from pyflink.datastream import TimeDomain

from anabranch.operators.aggregate import AggregateFunction
from anabranch.operators.core.merging.aggregator import Aggregator, WindowUpdate
from anabranch.operators.core.merging.request_window import Window
from anabranch.operators.core.metrics import Meter
from anabranch.operators.core.outputs import Answer, DeadLetterRecord
from anabranch.operators.core.response_writer import ResponseWriter
from anabranch.operators.core.scheduling.policy import SchedulingPolicy
from anabranch.operators.core.transport.claim_check import TransportOptions, is_claim
from anabranch.operators.runtime.side_outputs import LETTERS_TAG
from anabranch.operators.runtime.task_context import TaskContext
from anabranch.operators.transport.endpoints import AGGREGATE, Receiver, Sender
from anabranch.schemas.records import OpeningRecord, PartialRecord, Segment, Source
from anabranch.schemas.signatures import Signature, encode_signature

ALONE = TaskContext(0, 1, 0)
POLICY = SchedulingPolicy(window_timeout_ms=1000, remember_ms=1000)


def closed_window() -> bytes:
    window, source = Window(POLICY), Source(0, 0, 0)
    signature = encode_signature(Signature("m", "1", (), ()))
    window.on_record(OpeningRecord(Segment(source, deadline_ms=1, rows=2, total_rows=2), signature).encode(), 0)
    assert window.on_timer(2) is not None
    return window.snapshot()


def made_operator(options: TransportOptions, aggregator: Any) -> Any:
    operator: Any = AggregateFunction(ResponseWriter("requests", 1000, lambda: 0.0), POLICY, options)
    operator._receiver = Receiver(options, ALONE, AGGREGATE, Meter())
    operator._window, operator._kept, operator._runtime = Mock(), Mock(), Mock()
    operator._aggregator = aggregator
    return operator


def test_aggregate_late_part_is_redeemed_and_dropped() -> None:
    options = TransportOptions(job=os.urandom(8).hex(), shares_memory=True, claim_from_bytes=1000, arena_bytes=3000)
    writer = ResponseWriter("requests", 1000, lambda: 0.0)
    operator = made_operator(options, Aggregator(writer, POLICY, lambda: 0.0, lambda: 0.0, run=1))
    operator._window.value.return_value = closed_window()
    sender = Sender(options, ALONE, AGGREGATE, 1, Meter())
    for _ in range(5):
        message = sender.pack(PartialRecord(Segment(Source(0, 0, 0), total_rows=2), b"", (bytes(2000),)))
        assert is_claim(message), "the arena has room for one"
        assert list(operator.process_element(message, Mock())) == []
        operator._window.value.return_value = operator._window.update.call_args.args[0]
    operator._window.update.assert_called_once()
    operator._window.clear.assert_not_called()
    assert operator._kept.method_calls == []


class Script:
    """An aggregator that always gives the same update."""

    def __init__(self, update: WindowUpdate) -> None:
        self.update = update
        self.calls: list[tuple[Any, ...]] = []

    def on_record(self, record: bytes, snapshot: bytes | None, kept: Any) -> WindowUpdate:
        self.calls.append(("record", record, snapshot))
        return self.update

    def on_timer(self, at_ms: int | None, snapshot: bytes | None, kept: Any) -> WindowUpdate:
        self.calls.append(("timer", at_ms, snapshot))
        return self.update


def test_aggregate_update_reaches_state_and_timers() -> None:
    outputs: list[Answer | DeadLetterRecord] = [Answer(b"k", b"v"), DeadLetterRecord(b"l", b"w")]
    update = WindowUpdate(
        outputs, b"new", b"record", clears_kept=True, wake_at_ms=7, cancel_at_ms=5, count_at_ms=9, end_at_ms=3
    )
    operator, ctx = made_operator(TransportOptions(), Script(update)), Mock()
    operator._window.value.return_value = b"old"
    answer, letter = operator.process_element(b"record", ctx)
    assert operator._aggregator.calls == [("record", b"record", b"old")]
    assert (answer[0], answer[1]) == (b"k", b"v")
    assert (letter[0], letter[1][0], letter[1][1]) == (LETTERS_TAG, b"l", b"w")
    assert operator._kept.method_calls == [("clear", (), {}), ("add", (b"record",), {})]
    assert operator._window.method_calls == [("value", (), {}), ("update", (b"new",), {})]
    timers = ctx.timer_service.return_value.method_calls
    assert timers == [
        ("register_event_time_timer", (3,), {}),
        ("delete_processing_time_timer", (5,), {}),
        ("register_processing_time_timer", (7,), {}),
        ("register_processing_time_timer", (9,), {}),
    ]
    operator._runtime.defect_log.report.assert_called_once()


@pytest.fixture
def forgetting() -> Iterator[Any]:
    operator = made_operator(TransportOptions(), Script(WindowUpdate(clears_kept=True, forgets=True, end_at_ms=3)))
    operator._window.value.return_value = b"old"
    yield operator
    operator._window.clear.assert_called_once_with()
    operator._kept.clear.assert_called_once_with()


@pytest.mark.parametrize(
    ("domain", "call"),
    [(TimeDomain.PROCESSING_TIME, ("timer", 5, b"old")), (TimeDomain.EVENT_TIME, ("timer", None, b"old"))],
)
def test_aggregate_timer_of_each_domain_forgets_the_window(forgetting: Any, domain: Any, call: tuple[Any, ...]) -> None:
    ctx = Mock(**{"time_domain.return_value": domain})
    assert list(forgetting.on_timer(5, ctx)) == []
    assert forgetting._aggregator.calls == [call]
    assert ctx.timer_service.return_value.method_calls == [("delete_event_time_timer", (3,), {})]
