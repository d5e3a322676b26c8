"""Ensembles: every member gets the whole request, and the outputs of members are merged."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from anabranch.operators.core.admission import Admission
from anabranch.operators.core.defects import Defects
from anabranch.operators.core.execution.inference_task import InferenceTask
from anabranch.operators.core.merging.ensemble import merge_members
from anabranch.operators.core.merging.request_window import Window, answer_of
from anabranch.operators.core.metrics import Meter
from anabranch.operators.core.outputs import Answer, Output, Shard, WindowPart
from anabranch.operators.core.requests import Request
from anabranch.operators.core.response_writer import ResponseWriter
from anabranch.operators.core.scheduling.batch_cost_model import BatchCostModel
from anabranch.operators.core.scheduling.policy import SchedulingPolicy
from anabranch.schemas.errors import InferenceFailed
from anabranch.schemas.messages import ErrorResponse, InferResponse
from anabranch.schemas.model import Batching, Ensemble
from anabranch.schemas.records import OpeningRecord, ShardRecord, Source, decode_record
from anabranch.schemas.signatures import decode_opening_signature, decode_signature
from anabranch.schemas.tensors import Tensor
from anabranch.schemas.wire import codec
from tests.core.models import (
    ENSEMBLES,
    MAX_MESSAGE_BYTES,
    MEMBERS,
    NOW_MS,
    catalog,
    expected_of_members,
    now_ms,
    request,
    session_of,
    tensors_of,
)
from tests.core.routed_queue import RoutedQueue

SERVED = catalog(by_model={"less": Batching(shard_rows=3)}, ensembles=True)
WRITER = ResponseWriter("requests", MAX_MESSAGE_BYTES, now_ms)


def test_ensemble_of_different_shapes_fails_by_name() -> None:
    outputs = [(n, (Tensor.from_array("y", np.zeros((2, n + 1), np.float32)),)) for n in range(2)]
    with pytest.raises(InferenceFailed, match=r"'y'.*rows FP32 \[2, 1\], less FP32 \[2, 2\]"):
        merge_members(ENSEMBLES["mean"], outputs)


def test_ensemble_weights_of_missing_members_are_ignored() -> None:
    weighted = replace(ENSEMBLES["mean"], merge="weighted_mean", weights=(1.0, 100.0, 3.0))
    outputs = [(n, (Tensor.from_array("y", np.full((1, 1), n, np.float32)),)) for n in (0, 2)]
    [merged] = merge_members(weighted, outputs)
    assert merged.to_array().tolist() == [[1.5]]


def test_ensemble_stack_without_batch_axis_adds_the_first_axis() -> None:
    whole = Ensemble((("a", "1"), ("b", "1")), "stack", (1.0, 1.0), needed=2, batchable=False)
    outputs = [(n, (Tensor.from_array("y", np.full((3,), n, np.float32)),)) for n in range(2)]
    [merged] = merge_members(whole, outputs)
    assert merged.shape == (2, 3)


# ---- a request's way through its members ---------------------------------------------------------------------------


def admitted(model: str, values: Sequence[float], **parameters: Any) -> Request:
    message = request(model, values, parameters=parameters)
    found = Admission(SERVED, MAX_MESSAGE_BYTES, 5, Defects(Meter())).admit(message, Source(0, 7, int(NOW_MS)), NOW_MS)
    assert isinstance(found, Request), found
    return found


def spread(model: str, values: Sequence[float], **parameters: Any) -> list[Output]:
    routed = RoutedQueue(SERVED, lambda _: BatchCostModel())
    return list(routed.take_in(admitted(model, values, **parameters), NOW_MS))


def answer(model: str, values: Sequence[float], without: Sequence[str] = (), **parameters: Any) -> Any:
    """The answer to a request that lost the outputs of some members."""
    serving = InferenceTask(SERVED, session_of, WRITER, 0)
    window, kept = Window(SchedulingPolicy()), []
    opening, *shards = spread(model, values, **parameters)
    records = [opening.value]
    for shard in shards:
        if decode_signature(ShardRecord.decode(shard.value).signature).model_name not in without:
            records += [part.value for part in serving.on_shard(shard.value, NOW_MS)]
    closing = None
    for record in records:
        keep, closing = window.on_record(record, NOW_MS)
        kept += [record] if keep else []
        if closing is not None:
            break
    closing = closing or window.on_timer(window.next_deadline())
    assert closing is not None
    [found] = [each for each in answer_of(closing, kept, WRITER) if isinstance(each, Answer)]
    return codec.decode_response(found.value)


def test_ensemble_member_gets_all_rows_in_its_input_order() -> None:
    opening, *shards = spread("mean", [float(n) for n in range(7)])
    assert isinstance(opening, WindowPart)
    record = OpeningRecord.decode(opening.value)
    assert record.segment.total_rows == 7
    assert decode_opening_signature(record.signature).ensemble == ENSEMBLES["mean"]
    assert decode_signature(record.signature).model_name == "mean"
    assert all(isinstance(shard, Shard) for shard in shards)
    records = [ShardRecord.decode(shard.value) for shard in shards]
    assert [(each.segment.member, each.segment.first_row, each.segment.rows) for each in records] == [
        *((0, 0, 4), (0, 4, 3)),
        *((1, 0, 3), (1, 3, 3), (1, 6, 1)),
        *((2, 0, 4), (2, 4, 3)),
    ]
    assert {each.segment.total_rows for each in records} == {7}
    whole = {tensor.name: tensor.to_array() for tensor in tensors_of("mean", [float(n) for n in range(7)])}
    for each in records:
        signature = decode_signature(each.signature)
        member, first, rows_here = each.segment.member, each.segment.first_row, each.segment.rows
        assert (signature.model_name, signature.model_version) == MEMBERS[member]
        assert [spec.name for spec in signature.inputs] == (["x", "t"] if member == 0 else ["t", "x"])
        assert signature.outputs == ("y",)
        for spec, data in zip(signature.inputs, each.tensors, strict=True):
            rows = Tensor(spec.name, spec.datatype, (rows_here, *spec.shape), data).to_array()
            assert rows.tolist() == whole[spec.name][first : first + rows_here].tolist()


def test_ensemble_single_row_goes_to_all_members() -> None:
    assert len(spread("vote", [1.0])) == 4
    assert answer("vote", [1.0]).outputs[0].to_array().tolist() == expected_of_members("vote", [1.0], [0, 1, 2])


def test_ensemble_member_timeout_caps_the_deadline() -> None:
    def deadlines(model: str, **parameters: Any) -> set[int]:
        records = [decode_record(each.value) for each in spread(model, [1.0, 2.0], **parameters)]
        return {each.segment.deadline_ms for each in records if isinstance(each, OpeningRecord | ShardRecord)}

    now = int(NOW_MS)
    assert deadlines("mean") == {0}
    assert deadlines("mean", timeout=7_000) == {now + 7}
    assert deadlines("stack") == {now + 30}
    assert deadlines("stack", timeout=7_000) == {now + 7}
    assert deadlines("stack", timeout=70_000) == {now + 30}


@pytest.mark.parametrize("model", list(ENSEMBLES))
def test_ensemble_complete_answer_has_no_parameters(model: str) -> None:
    values = [float(n) for n in range(9)]
    found = answer(model, values)
    assert isinstance(found, InferResponse)
    assert found.outputs[0].to_array().tolist() == expected_of_members(model, values, [0, 1, 2])
    assert (found.model_name, found.model_version, found.parameters) == (model, "1", {})


def test_ensemble_failed_member_is_named_and_others_answer() -> None:
    found = answer("vote", [5.0, -1.0])
    assert isinstance(found, InferResponse)
    assert found.parameters == {
        "missing_members": "rows",
        "error_code": "inference_failed",
        "error_message": "member rows: row 1: poison",
    }
    assert found.outputs[0].to_array().tolist() == expected_of_members("vote", [5.0, -1.0], [1, 2])


def test_ensemble_late_member_is_named_and_others_answer() -> None:
    found = answer("stack", [5.0, 6.0], without=["less"])
    assert isinstance(found, InferResponse)
    assert (found.parameters["missing_members"], found.parameters["error_code"]) == ("less", "deadline_exceeded")
    assert found.outputs[0].shape == (2, 2, 2)
    assert found.outputs[0].to_array().tolist() == expected_of_members("stack", [5.0, 6.0], [0, 2])


@pytest.mark.parametrize(
    ("model", "without", "code"),
    [
        ("mean", ["less"], "incomplete_answer"),
        ("vote", ["less", "rows"], "incomplete_answer"),
        ("stack", ["less", "rows", "more"], "deadline_exceeded"),
    ],
)
def test_ensemble_with_too_few_members_fails(model: str, without: list[str], code: str) -> None:
    found = answer(model, [1.0], without)
    assert isinstance(found, ErrorResponse)
    assert (found.code, found.model_name) == (code, model)
    assert all(name in found.message for name in without)


def test_ensemble_failure_names_member_and_row() -> None:
    found = answer("mean", [0.0, 1.0, 2.0, 3.0, 4.0, -3.0])
    assert isinstance(found, ErrorResponse)
    assert (found.code, found.message, found.model_name) == ("inference_failed", "member more: row 5: poison", "mean")


def test_ensemble_partial_answer_has_the_common_rows() -> None:
    values = [0.0, -1.0, 2.0, 3.0, -2.0, -3.0, 6.0]
    found = answer("mean", values, partial=True)
    assert isinstance(found, InferResponse)
    assert found.parameters["missing_rows"] == "1-1,4-5"
    assert "missing_members" not in found.parameters
    wanted = expected_of_members("mean", values, [0, 1, 2])
    assert found.outputs[0].to_array().tolist() == [wanted[row] for row in (0, 2, 3, 6)]


def test_ensemble_explained_answer_counts_all_shards() -> None:
    found = answer("mean", [1.0, 2.0, 3.0, 4.0, 5.0], explain=True)
    assert isinstance(found, InferResponse)
    assert (found.parameters["shards"], found.parameters["tasks"]) == (6, 1)
    assert found.parameters["session_us"] == 0
