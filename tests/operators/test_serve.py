"""The serve operator carries out what the task loop decides, in state and timers."""

from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

import pytest
from pyflink.common import Row
from pyflink.datastream import TimeDomain

from anabranch.operators.core.outputs import DeadLetterRecord
from anabranch.operators.core.scheduling.task_loop import Action, Settlement
from anabranch.operators.runtime.side_outputs import LETTERS_TAG
from anabranch.operators.serve import ServeFunction


class Script:
    """A task loop that always decides the same."""

    def __init__(self, *actions: Action) -> None:
        self.actions = actions
        self.calls: list[tuple[Any, ...]] = []

    def on_frame(self, frame: Any) -> Iterator[Action]:
        self.calls.append(("frame", bytes(frame)))
        return iter(self.actions)

    def on_timer(self, key: int, at_ms: int) -> Iterator[Action]:
        self.calls.append(("timer", key, at_ms))
        return iter(self.actions)

    def on_end(self, key: int) -> Iterator[Action]:
        self.calls.append(("end", key))
        return iter(self.actions)


def made_operator(*actions: Action) -> Any:
    operator: Any = object.__new__(ServeFunction)
    operator._loop, operator._waiting, operator._runtime = Script(*actions), Mock(), Mock()
    return operator


def test_serve_settlement_reaches_state_and_timers() -> None:
    operator, ctx = made_operator(Settlement([(3, b"c"), (4, b"d")], [1, 2], 70, 60)), Mock()
    assert list(operator.process_element(b"frame", ctx)) == []
    assert operator._loop.calls == [("frame", b"frame")]
    assert operator._waiting.method_calls == [
        ("remove", (1,), {}),
        ("remove", (2,), {}),
        ("put", (3, b"c"), {}),
        ("put", (4, b"d"), {}),
    ]
    timers = ctx.timer_service.return_value.method_calls
    assert timers == [("register_event_time_timer", (60,), {}), ("register_processing_time_timer", (70,), {})]
    operator._runtime.defect_log.report.assert_called_once_with()


def test_serve_settlement_without_timers_registers_none() -> None:
    ctx = Mock()
    assert list(made_operator(Settlement([], [1])).process_element(b"", ctx)) == []
    assert ctx.timer_service.return_value.method_calls == []


def test_serve_outputs_are_emitted_before_the_next_action() -> None:
    taken: list[str] = []

    def actions() -> Iterator[Action]:
        taken.append("first")
        yield [DeadLetterRecord(b"k", b"v")]
        taken.append("second")
        yield Settlement([], [])

    operator = made_operator()
    operator._loop.on_frame = lambda _: actions()
    emitted = operator.process_element(b"", Mock())
    assert next(emitted)[0] == LETTERS_TAG
    assert taken == ["first"]
    assert list(emitted) == []
    assert taken == ["first", "second"]


@pytest.mark.parametrize("key", [7, Row(7), (7,)])
def test_serve_timer_of_each_domain_reaches_the_loop(key: Any) -> None:
    operator = made_operator()
    for domain, call in ((TimeDomain.PROCESSING_TIME, ("timer", 7, 5)), (TimeDomain.EVENT_TIME, ("end", 7))):
        ctx = Mock(**{"get_current_key.return_value": key, "time_domain.return_value": domain})
        assert list(operator.on_timer(5, ctx)) == []
        assert operator._loop.calls[-1] == call
