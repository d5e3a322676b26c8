"""The aggregate operator gives the memory of every part back, and closes a window when its timer says so."""

import os
from typing import Any
from unittest.mock import Mock

import pytest
from pyflink.datastream import TimeDomain

from anabranch.operators import aggregate
from anabranch.operators.aggregate import AggregateFunction
from anabranch.operators.core.merging.request_window import Window
from anabranch.operators.core.metrics import Meter
from anabranch.operators.core.response_writer import ResponseWriter
from anabranch.operators.core.transport.claim_check import TransportOptions, is_claim
from anabranch.operators.runtime.task_context import TaskContext
from anabranch.operators.transport.endpoints import AGGREGATE, Receiver, Sender
from anabranch.schemas.records import Record, RecordKind, Signature, Source, encode_signature

ALONE = TaskContext(0, 1, 0)


class ClosedWindow:
    """State of a window that has been closed."""

    def value(self) -> bytes:
        window, source = Window(1000, 1000), Source(0, 0, 0)
        signature = encode_signature(Signature("m", "1", (), ()))
        window.on_record(Record(RecordKind.OPENING, source, signature, total_rows=1, deadline_ms=1).encode(), 0)
        assert window.on_timer(2) is not None
        return window.snapshot()


def test_a_part_that_comes_too_late_is_redeemed_and_dropped() -> None:
    options = TransportOptions(job=os.urandom(8).hex(), shares_memory=True, claim_from_bytes=1000, arena_bytes=3000)
    operator: Any = AggregateFunction(ResponseWriter("requests", 1000, lambda: 0.0), 1000, 1000, options)
    operator._inbox = Receiver(options, ALONE, AGGREGATE, Meter())
    operator._window = ClosedWindow()
    outbox = Sender(options, ALONE, AGGREGATE, 1, Meter())
    for _ in range(5):
        message = outbox.pack(Record(RecordKind.PARTIAL, Source(0, 0, 0), b"", tensors=(bytes(2000),)))
        assert is_claim(message), "the arena has room for one"
        assert list(operator.process_element(message, None)) == []


def test_a_clock_that_was_set_back_keeps_no_window_open(monkeypatch: pytest.MonkeyPatch) -> None:
    opening = Record(
        RecordKind.OPENING,
        Source(0, 0, 0),
        encode_signature(Signature("m", "1", (), ())),
        total_rows=1,
        deadline_ms=2000,
    ).encode()
    window = Window(1000, 1000)
    window.on_record(opening, 1500)
    operator: Any = AggregateFunction(ResponseWriter("requests", 1000, lambda: 0.0), 1000, 1000, TransportOptions())
    operator._window = Mock(**{"value.return_value": window.snapshot()})
    operator._partials = Mock(**{"get.return_value": [opening]})
    operator._metrics = Mock(**{"flush.return_value": 0.0})
    operator._defect_log = Mock()
    ctx: Any = Mock(**{"time_domain.return_value": TimeDomain.PROCESSING_TIME})
    monkeypatch.setattr(aggregate, "time", lambda: 1.0)
    assert list(operator.on_timer(1999, ctx)) == [], "it was for something else"
    assert len(list(operator.on_timer(2000, ctx))) == 2, "an error, and its letter"
