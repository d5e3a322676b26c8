"""The infer operator: slow batches of other tasks take turns with slow ones, quick ones with quick ones."""

from contextlib import contextmanager
from typing import Any
from unittest.mock import Mock

import pytest

from anabranch.operators.core.execution.batch_transfer import pack
from anabranch.operators.core.execution.inference_task import InferenceTask
from anabranch.operators.core.requests import Request
from anabranch.operators.core.response_writer import ResponseWriter
from anabranch.operators.core.scheduling.batch_cost_model import BatchCostModel, Measurement
from anabranch.operators.infer import InferFunction
from anabranch.schemas.records import BatchRecord
from anabranch.schemas.signatures import Signature, TensorSignature, encode_signature
from tests.core.models import MAX_MESSAGE_BYTES, now_ms, session_of
from tests.core.test_batch_transfer import SERVED, admitted


def a_batch(rows: int) -> bytes:
    signature = Signature("m", "1", (TensorSignature("x", "FP32", (1,)),), ("y",))
    return pack([Request(encode_signature(signature), 4, 1, 5, 0, tensors=(b"\0" * 4,))] * rows).encode()


def made_operator(log: list[str]) -> Any:
    def turn(name: str) -> Any:
        @contextmanager
        def enter() -> Any:
            log.append(name)
            yield

        return Mock(offloaded_batch=enter)

    def run(*_: Any) -> list[Any]:
        log.append("run")
        return []

    operator: Any = object.__new__(InferFunction)
    operator.slow_batch_ms = 50.0
    operator._costs_of = lambda _: BatchCostModel([Measurement(1, 20.0), Measurement(4, 80.0)])
    operator._receiver, operator._runtime = Mock(redeem=bytes), Mock()
    operator._inference = Mock(on_exchange=run)
    operator._lock, operator._lane = turn("lock"), turn("lane")
    return operator


def test_infer_batch_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    decode, decoded = BatchRecord.decode, list[Any]()

    def count(encoded: Any) -> BatchRecord:
        decoded.append(encoded)
        return decode(encoded)

    monkeypatch.setattr(BatchRecord, "decode", staticmethod(count))
    operator = made_operator([])
    writer = ResponseWriter("requests", MAX_MESSAGE_BYTES, now_ms)
    operator._inference = InferenceTask(SERVED, session_of, writer, task=0)
    batch = pack([admitted("a", [1.0]), admitted("b", [2.0])]).encode()
    assert len(list(operator.process_element(batch, Mock()))) == 1
    assert decoded == [batch]


def test_infer_damaged_batch_is_reported_by_its_run() -> None:
    log: list[str] = []
    list(made_operator(log).process_element(a_batch(4)[:20], Mock()))
    assert log == ["lock", "run"]


@pytest.mark.parametrize(("rows", "turn"), [(1, "lock"), (4, "lane")])
def test_infer_batch_takes_the_turn_of_its_kind(rows: int, turn: str) -> None:
    log: list[str] = []
    assert list(made_operator(log).process_element(a_batch(rows), Mock())) == []
    assert log == [turn, "run"]


def test_infer_shard_takes_no_turn() -> None:
    log: list[str] = []
    list(made_operator(log).process_element(b"\x01", Mock()))
    assert log == ["run"]
