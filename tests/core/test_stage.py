"""Stage: tensors that travel, parts for windows, and failures of only the rows at fault."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from anabranch.operators.backends.fake import FakeSession
from anabranch.operators.core.admission import Admission
from anabranch.operators.core.defects import Defects
from anabranch.operators.core.execution import stage as staging
from anabranch.operators.core.execution.stage import Stage, UnavailableStage, stage_name
from anabranch.operators.core.merging.request_window import Window, answer_of
from anabranch.operators.core.merging.shards import opening, shards
from anabranch.operators.core.metrics import Meter
from anabranch.operators.core.outputs import Answer, Shard, Unit, WindowPart
from anabranch.operators.core.requests import Request
from anabranch.operators.core.response_writer import ResponseWriter
from anabranch.operators.core.scheduling.batch_cost_model import BatchCostModel
from anabranch.operators.core.scheduling.policy import SchedulingPolicy
from anabranch.operators.core.transport.claim_check import lost
from anabranch.schemas.messages import InferResponse
from anabranch.schemas.model import Catalog, Ensemble, ModelSpec, StageSpec, TensorSpec
from anabranch.schemas.records import (
    AnyRecord,
    FailureRecord,
    OpeningRecord,
    PartialRecord,
    RecordKind,
    ShardRecord,
    Source,
    UnitRecord,
    decode_record,
)
from anabranch.schemas.signatures import decode_signature
from anabranch.schemas.tensors import Array
from anabranch.schemas.wire import codec
from tests.core.models import MAX_MESSAGE_BYTES, NOW_MS, POISON, catalog, expected, now_ms, request, session_of
from tests.core.routed_queue import RoutedQueue

SERVED = catalog()
CUT = SERVED.find("cut", "")
BOTH = (("rows", "10"), ("cut", "1"))


def enter(parts: Sequence[Request] | Sequence[ShardRecord], model: ModelSpec) -> Unit:
    return Unit((model.name, model.version), staging.enter(parts, model).encode())


def admitted(values: Sequence[float], offset: int = 0, served: Catalog = SERVED, **options: Any) -> Request:
    message = request(options.pop("model", "cut"), values, request_id=f"r{offset}", **options)
    found = Admission(served, MAX_MESSAGE_BYTES, 5, Defects(Meter())).admit(
        message, Source(2, offset, int(NOW_MS)), NOW_MS
    )
    assert isinstance(found, Request)
    return found


def stage(index: int, model: ModelSpec = CUT, session: Any = None, task: int = 0) -> Stage:
    return Stage(model, index, session or session_of(model.stage(index)), now_ms, task)


def through(unit: Unit, model: ModelSpec = CUT, at_ms: float = NOW_MS) -> list[PartialRecord | FailureRecord]:
    """Records of a unit after the last stage."""
    flying: list[tuple[int, Unit | WindowPart]] = [(0, unit)]
    parts: list[PartialRecord | FailureRecord] = []
    while flying:
        index, record = flying.pop(0)
        if isinstance(record, Unit):
            flying += [(index + 1, output) for output in stage(index, model).on_unit(record.value, at_ms)]
        else:
            part = decode_record(record.value)
            assert isinstance(part, PartialRecord | FailureRecord)
            parts.append(part)
    return parts


def live(unit: Unit | WindowPart) -> list[str]:
    return [spec.name for spec in decode_signature(UnitRecord.decode(unit.value).signature).inputs]


def answer_to(asked: Request, parts: Sequence[AnyRecord]) -> InferResponse:
    window = Window(SchedulingPolicy())
    kept, closing = [], None
    for record in (opening(asked), *parts):
        keep, closing = window.on_record(record.encode(), NOW_MS)
        kept += [] if keep is None else [bytes(keep)]
    assert closing is not None
    [answer] = answer_of(closing, kept, ResponseWriter("requests", MAX_MESSAGE_BYTES, now_ms))
    assert isinstance(answer, Answer)
    decoded = codec.decode_response(answer.value)
    assert isinstance(decoded, InferResponse), decoded
    return decoded


def values_of(answer: InferResponse) -> dict[str, list[object]]:
    return {tensor.name: tensor.to_array().tolist() for tensor in answer.outputs}


# ---- tensors -------------------------------------------------------------------------------------------------------


def test_stage_unit_carries_only_needed_tensors() -> None:
    unit = enter([admitted([1.0, 2.0])], CUT)
    assert unit.model == ("cut", "1")
    assert live(unit) == ["x", "t"]
    [second] = stage(0).on_unit(unit.value, NOW_MS)
    assert sorted(live(second)) == ["h", "t", "x"]
    [third] = stage(1).on_unit(second.value, NOW_MS)
    assert sorted(live(third)) == ["h", "label"]  # past stage 2, and its output
    [part] = stage(2).on_unit(third.value, NOW_MS)
    assert isinstance(decode_record(part.value), PartialRecord)


def test_stage_unrequested_output_does_not_travel_or_run() -> None:
    asked = admitted([1.0, 2.0], outputs=("y",))
    [second] = stage(0).on_unit(enter([asked], CUT).value, NOW_MS)
    second_session = FakeSession(lambda _: pytest.fail("its output was not requested"))
    [third] = stage(1, session=second_session).on_unit(second.value, NOW_MS)
    assert live(third) == ["h"]
    parts = [decode_record(part.value) for part in stage(2).on_unit(third.value, NOW_MS)]
    assert values_of(answer_to(asked, parts)) == {"y": expected("cut", [1.0, 2.0])["y"]}


def test_stage_requests_of_one_unit_get_their_own_rows() -> None:
    asked = [admitted([1.0], 0), admitted([2.0, 3.0], 1), admitted([4.0], 2)]
    parts = through(enter(asked, CUT))
    for each, part, values in zip(asked, parts, ([1.0], [2.0, 3.0], [4.0]), strict=True):
        assert part.segment.source == each.source
        assert values_of(answer_to(each, [part])) == expected("cut", values)


def test_stage_shards_of_a_request_merge_in_any_order() -> None:
    values = [float(n) for n in range(9)]
    asked = admitted(values)
    parts = [part for shard in shards(asked, 4) for part in through(enter([shard], CUT))]
    assert values_of(answer_to(asked, parts[::-1])) == expected("cut", values)


def test_stage_session_time_is_summed_over_stages() -> None:
    clock = iter([NOW_MS + step for step in (1, 3, 10, 14, 20, 26, 30)])
    unit: Unit | WindowPart = enter([admitted([1.0])], CUT)
    for index, taken_ms in enumerate((NOW_MS, NOW_MS + 9, NOW_MS + 19)):
        session = session_of(CUT.stage(index))
        [unit] = Stage(CUT, index, session, lambda: next(clock), 0).on_unit(unit.value, taken_ms)
    part = PartialRecord.decode(unit.value)
    assert (part.taken_ms, part.ended_ms - part.started_ms, part.ended_ms) == (NOW_MS, 2 + 4 + 6, NOW_MS + 30)


# ---- failures ------------------------------------------------------------------------------------------------------


def test_stage_rows_at_fault_fail_and_others_continue() -> None:
    asked = [admitted([1.0, POISON, 2.0], 0), admitted([3.0], 1)]
    parts = through(enter(asked, CUT))
    told = sorted((part.kind, part.segment.source.offset, part.segment.first_row, part.segment.rows) for part in parts)
    assert told == [
        (RecordKind.PARTIAL, 0, 0, 1),
        (RecordKind.PARTIAL, 0, 2, 1),
        (RecordKind.PARTIAL, 1, 0, 1),
        (RecordKind.FAILURE, 0, 1, 1),
    ]
    [failure] = [part.failure for part in parts if isinstance(part, FailureRecord)]
    assert (failure.code, failure.message, failure.stage) == ("inference_failed", "row 1: poison", "stage 2")
    assert (failure.model_name, failure.model_version) == ("cut", "1")


def test_stage_failure_numbers_rows_as_the_request() -> None:
    asked = admitted([1.0] * 5 + [POISON, POISON, 2.0])
    _, second = shards(asked, 4)
    parts = through(enter([second], CUT))
    assert {(part.kind, part.segment.first_row, part.segment.rows) for part in parts} == {
        (RecordKind.PARTIAL, 4, 1),
        (RecordKind.PARTIAL, 7, 1),
        (RecordKind.FAILURE, 5, 1),
        (RecordKind.FAILURE, 6, 1),
    }


def test_stage_unit_past_all_deadlines_is_dropped() -> None:
    soon, later = admitted([1.0], 0, parameters={"timeout": 1_000}), admitted([2.0], 1, parameters={"timeout": 5_000})
    assert UnitRecord.decode(enter([soon, later], CUT).value).deadline_ms == NOW_MS + 5
    assert len(stage(0).on_unit(enter([soon, later], CUT).value, NOW_MS + 1)) == 1
    assert stage(0).on_unit(enter([soon, later], CUT).value, NOW_MS + 5) == []
    patient = enter([soon, admitted([3.0], 2)], CUT)
    assert len(stage(0).on_unit(patient.value, NOW_MS + 1e9)) == 1


@pytest.mark.parametrize("unknown", [b"", b"\x05", b"\x05" + b"\xff" * 50, b"\xff" * 100, b"\x05\x01" * 40])
def test_stage_bytes_without_segments_are_noted_only(unknown: bytes) -> None:
    defects = Defects(Meter())
    first = Stage(CUT, 0, session_of(CUT.stage(0)), now_ms, 0, defects=defects)
    assert first.on_unit(unknown, NOW_MS) == []
    [defect] = defects.drain()
    assert defect.phase == "batch"
    assert f"undecodable UNIT of {len(unknown)} bytes" in defect.detail


def test_stage_damaged_unit_fails_its_readable_segments() -> None:
    defects = Defects(Meter())
    first = Stage(CUT, 0, session_of(CUT.stage(0)), now_ms, 0, defects=defects)
    whole = enter([admitted([1.0], 0), admitted([2.0, 3.0], 1)], CUT).value
    for damaged in (whole[:-1], whole + b"x"):
        parts = [FailureRecord.decode(part.value) for part in first.on_unit(damaged, NOW_MS)]
        assert [(part.segment.id, part.segment.rows) for part in parts] == [("r0", 1), ("r1", 2)]
        assert {(part.failure.code, part.failure.model_name) for part in parts} == {("internal_error", "cut")}
    assert len(defects.drain()) == 2


def test_stage_defect_fails_all_segments() -> None:
    def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {"h": inputs["x"].astype(complex)}  # The protocol has no complex numbers

    parts = stage(0, session=FakeSession(run)).on_unit(
        enter([admitted([1.0], 0), admitted([2.0], 1)], CUT).value, NOW_MS
    )
    failures = [FailureRecord.decode(part.value).failure for part in parts]
    assert [(failure.code, failure.stage) for failure in failures] == [("internal_error", "stage 1")] * 2


def test_stage_lost_unit_fails_all_segments() -> None:
    unit = UnitRecord.decode(enter([admitted([1.0], 0), admitted([2.0, 3.0], 1)], CUT).value)
    parts = [FailureRecord.decode(part.value) for part in stage(1).on_unit(lost(unit).encode(), NOW_MS)]
    assert [(part.segment.source.offset, part.segment.rows) for part in parts] == [(0, 1), (1, 2)]
    assert {part.failure.code for part in parts} == {"exchange_failed"}


def test_stage_member_of_an_ensemble_may_be_cut() -> None:
    served = catalog(ensembles=True)
    served.models["both"] = {"1": replace(CUT, name="both", stages=(), ensemble=Ensemble(BOTH, "mean", (1, 1), 2))}
    asked = admitted([float(n) for n in range(9)], model="both", served=served)
    _, *work = RoutedQueue(served, lambda _: BatchCostModel()).take_in(asked, NOW_MS)
    assert [type(each) for each in work] == [Shard] * 3 + [Unit] * 3
    parts = [part for unit in work if isinstance(unit, Unit) for part in through(unit)]
    assert [(s.member, s.first_row, s.rows) for s in [part.segment for part in parts]] == [
        (1, 0, 4),
        (1, 4, 4),
        (1, 8, 1),
    ]


def test_stage_unit_of_another_cut_fails() -> None:
    """The job was restored after the model was cut otherwise."""
    [part] = stage(2).on_unit(enter([admitted([1.0])], CUT).value, NOW_MS)
    assert FailureRecord.decode(part.value).failure.code == "internal_error"


# ---- models of other kinds -----------------------------------------------------------------------------------------


def in_two(name: str, between: TensorSpec) -> tuple[Catalog, ModelSpec]:
    whole = SERVED.find(name, "")
    stages = (StageSpec("0", "", whole.inputs, (between,)), StageSpec("1", "", (between,), whole.outputs))
    cut = replace(whole, stages=stages)
    return Catalog({name: {"1": cut}}), cut


def two_sessions(last: Any) -> list[FakeSession]:
    return [FakeSession(lambda inputs: {"h": inputs["x"]}), FakeSession(lambda inputs: last({"x": inputs["h"]}))]


@pytest.mark.parametrize(
    ("name", "values", "shape"), [("whole", [1.0, 2.0, 3.0], (None,)), ("pairs", [1.0, 2.0, 3.0, 4.0], (2, 2))]
)
def test_stage_models_without_free_batch_axis_are_run(
    name: str, values: list[float], shape: tuple[int | None, ...]
) -> None:
    served, cut = in_two(name, TensorSpec("h", "FP32", shape))
    asked = admitted(values, model=name, served=served)
    session = session_of(SERVED.find(name, ""))
    first, last = two_sessions(session._run)
    [unit] = stage(0, cut, first).on_unit(enter([asked], cut).value, NOW_MS)
    [part] = stage(1, cut, last).on_unit(unit.value, NOW_MS)
    answer = answer_to(asked, [decode_record(part.value)])
    assert values_of(answer) == expected(name, values)
    assert [tensor.shape for tensor in answer.outputs] == [np.array(expected(name, values)["y"]).shape]


# ---- entry of requests --------------------------------------------------------------------------------------------


def no_costs(_: ModelSpec) -> Any:
    return pytest.fail("only who runs a model knows what it costs")


def test_stage_small_requests_share_a_unit_and_large_are_split() -> None:
    routed = RoutedQueue(SERVED, no_costs)
    small = [admitted([1.0], 0), admitted([2.0, 3.0], 1)]
    assert [routed.take_in(each, NOW_MS) for each in small] == [[], []]
    departure = routed.next(NOW_MS)
    assert departure is not None
    *openings, unit = routed.to_stages(departure.batch)
    assert [type(decode_record(each.value)) for each in openings] == [OpeningRecord] * 2
    assert [segment.rows for segment in UnitRecord.decode(unit.value).segments] == [1, 2]
    first, *units = routed.take_in(admitted([0.0] * 9, 2), NOW_MS)
    assert OpeningRecord.decode(first.value).segment.total_rows == 9
    assert [UnitRecord.decode(each.value).rows for each in units] == [4, 4, 1]
    assert all(isinstance(each, Unit) for each in units)


def test_stage_name_counts_from_one() -> None:
    assert [stage_name(CUT, index) for index in range(3)] == [f"cut/1 stage {number}/3" for number in (1, 2, 3)]


def test_stage_unavailable_fails_every_unit_with_the_reason() -> None:
    broken = UnavailableStage(CUT, 0, "no memory")
    parts = broken.on_unit(enter([admitted([1, 2]), admitted([3], offset=1)], CUT).value, NOW_MS)
    failures = [decode_record(part.value) for part in parts if isinstance(part, WindowPart)]
    assert len(failures) == 2
    for found in failures:
        assert isinstance(found, FailureRecord)
        assert found.failure.code == "model_unavailable"
        assert "no memory" in found.failure.message
