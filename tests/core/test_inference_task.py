"""InferenceTask: batches become answers, shards become parts, and a failure affects only its request."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from anabranch.operators.backends.base import ModelLoadFailed, Session
from anabranch.operators.backends.fake import FakeSession
from anabranch.operators.core.admission import Admission
from anabranch.operators.core.defects import Defects
from anabranch.operators.core.execution import inference_task as serving_module
from anabranch.operators.core.execution.batch_transfer import pack
from anabranch.operators.core.execution.inference_task import InferenceTask
from anabranch.operators.core.merging.request_window import window_key
from anabranch.operators.core.metrics import Meter
from anabranch.operators.core.outputs import Answer, DeadLetterRecord, Output, WindowPart
from anabranch.operators.core.requests import Request
from anabranch.operators.core.response_writer import ResponseWriter
from anabranch.operators.core.scheduling.batch_cost_model import BatchCostModel
from anabranch.operators.core.transport.claim_check import lost
from anabranch.schemas.messages import Encoding, ErrorResponse, InferResponse
from anabranch.schemas.model import Catalog, ModelSpec
from anabranch.schemas.records import FailureRecord, PartialRecord, RecordKind, ShardRecord, Source, kind_of
from anabranch.schemas.signatures import decode_output_signature
from anabranch.schemas.tensors import Array
from anabranch.schemas.wire import codec
from anabranch.schemas.wire.dead_letters import decode_dead_letter
from tests.core.models import (
    MAX_MESSAGE_BYTES,
    NOW_MS,
    POISON,
    catalog,
    expected,
    now_ms,
    request,
    run_rows,
    run_whole,
    session_of,
)
from tests.core.routed_queue import RoutedQueue

SERVED = catalog()


def serving(served: Catalog = SERVED, session: Any = session_of, task: int = 3) -> InferenceTask:
    return InferenceTask(served, session, ResponseWriter("requests", MAX_MESSAGE_BYTES, now_ms), task)


def admitted(request_id: str, values: list[float], model: str = "rows", offset: int = 7, **options: Any) -> Request:
    message = request(model, values, request_id=request_id, **options)
    found = Admission(SERVED, MAX_MESSAGE_BYTES, 5, Defects(Meter())).admit(
        message, Source(2, offset, int(NOW_MS)), NOW_MS
    )
    assert isinstance(found, Request)
    return found


def shards_of(values: list[float], **parameters: Any) -> list[bytes]:
    """An opening and its shards."""
    routed = RoutedQueue(SERVED, lambda _: BatchCostModel())
    return [output.value for output in routed.take_in(admitted("a", values, parameters=parameters), NOW_MS)]


def answers(outputs: Sequence[Output]) -> dict[str, InferResponse | ErrorResponse]:
    found: dict[str, InferResponse | ErrorResponse] = {}
    for output in outputs:
        if isinstance(output, Answer):
            answer = codec.decode_response(output.value)
            assert answer.id not in found
            assert output.key == answer.id.encode()
            found[answer.id] = answer
    dead_letters = [decode_dead_letter(output.value) for output in outputs if isinstance(output, DeadLetterRecord)]
    failed = {n: a for n, a in found.items() if isinstance(a, ErrorResponse) or "error_code" in a.parameters}
    assert sorted(dead_letter.id for dead_letter in dead_letters) == sorted(failed)
    return found


def values_of(answer: InferResponse | ErrorResponse) -> dict[str, list[object]]:
    assert isinstance(answer, InferResponse), answer
    return {tensor.name: tensor.to_array().tolist() for tensor in answer.outputs}


def code_of(answer: InferResponse | ErrorResponse) -> str:
    assert isinstance(answer, ErrorResponse), answer
    return answer.code


# ---- batches -------------------------------------------------------------------------------------------------------


def test_task_batch_answers_each_request_in_its_encoding() -> None:
    requests = {"a": [1.0], "b": [2.0, 3.0], "ü": [4.0]}
    forms = [Encoding.PROTOBUF, Encoding.JSON, Encoding.PROTOBUF]
    unit = [
        admitted(name, values, encoding=encoding)
        for (name, values), encoding in zip(requests.items(), forms, strict=True)
    ]
    outputs = serving().on_batch(unit, NOW_MS)
    assert [codec.encoding_of(output.value) is Encoding.JSON for output in outputs] == [False, True, False]
    assert {name: values_of(answer) for name, answer in answers(outputs).items()} == {
        name: expected("rows", values) for name, values in requests.items()
    }


def test_task_rows_at_fault_fail_only_their_request() -> None:
    unit = [admitted("a", [1.0]), admitted("b", [2.0, POISON, 3.0, POISON]), admitted("c", [4.0])]
    found = answers(serving().on_batch(unit, NOW_MS))
    assert (code_of(found["b"]), getattr(found["b"], "message", "")) == ("inference_failed", "row 1: poison")
    assert values_of(found["a"]) == expected("rows", [1.0])
    assert values_of(found["c"]) == expected("rows", [4.0])


def test_task_partial_request_gets_rows_and_dead_letter() -> None:
    unit = [admitted("a", [2.0, POISON, 3.0, POISON], parameters={"partial": True})]
    [answer] = answers(serving().on_batch(unit, NOW_MS)).values()
    assert values_of(answer) == expected("rows", [2.0, 3.0])
    assert isinstance(answer, InferResponse)
    assert answer.parameters["missing_rows"] == "1-1,3-3"
    assert answer.parameters["error_code"] == "inference_failed"
    all_bad = [admitted("a", [POISON], parameters={"partial": True})]
    assert code_of(answers(serving().on_batch(all_bad, NOW_MS))["a"]) == "inference_failed"


def test_task_requests_of_equal_id_are_all_answered() -> None:
    outputs = serving().on_batch([admitted("a", [1.0]), admitted("a", [2.0])], NOW_MS)
    assert [values_of(codec.decode_response(output.value)) for output in outputs] == [
        expected("rows", [1.0]),
        expected("rows", [2.0]),
    ]


@pytest.mark.parametrize(("without", "code"), [(["rows"], "unknown_model"), ([], "unknown_version")])
def test_task_removed_model_is_named_in_the_answer(without: list[str], code: str) -> None:
    served = catalog(without=without)
    if not without:
        del served.models["rows"]["10"]
    found = answers(serving(served).on_batch([admitted("a", [1.0]), admitted("b", [2.0])], NOW_MS))
    assert {code_of(answer) for answer in found.values()} == {code}
    assert isinstance(found["a"], ErrorResponse)
    assert (found["a"].model_name, found["a"].model_version) == ("rows", "10")


def test_task_defect_fails_only_its_request() -> None:
    def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
        outputs = run_rows(inputs)
        # The protocol has no complex numbers: no tensor can be made of this.
        return outputs if 7.0 not in inputs["x"] else outputs | {"y": outputs["y"].astype(complex)}

    unit = [admitted("a", [1.0]), admitted("b", [7.0]), admitted("c", [2.0])]
    found = answers(serving(session=lambda _: FakeSession(run)).on_batch(unit, NOW_MS))
    assert code_of(found["b"]) == "internal_error"
    assert values_of(found["a"]) == expected("rows", [1.0])
    assert values_of(found["c"]) == expected("rows", [2.0])


def test_task_failed_load_becomes_the_answer() -> None:
    def session(_: ModelSpec) -> Session:
        raise ModelLoadFailed("gone")

    found = answers(serving(session=session).on_batch([admitted("a", [1.0])], NOW_MS))
    assert (code_of(found["a"]), getattr(found["a"], "message", "")) == ("internal_error", "ModelLoadFailed: gone")


def test_task_request_of_a_changed_model_is_answered() -> None:
    whole = SERVED.find("whole", "")
    served = catalog(without=["rows"])
    served.models["rows"] = {"10": whole}
    found = answers(serving(served).on_batch([admitted("a", [1.0, 2.0])], NOW_MS))
    assert isinstance(found["a"], ErrorResponse)


@pytest.mark.parametrize("unknown", [b"", b"\x00", b"\x03", b"\x03" + b"\xff" * 50, b"\xff" * 100, b"\x01" * 80])
def test_task_undecodable_record_is_noted(unknown: bytes) -> None:
    task = serving()
    assert task.on_shard(unknown, NOW_MS) == []
    assert task.on_transferred(unknown, NOW_MS) == []
    found = task._response_writer.defects.drain()
    assert [each.detail for each in found] == [
        f"undecodable {kind} of {len(unknown)} bytes" for kind in ("SHARD", "BATCH")
    ]
    assert task._response_writer.meter.drain() == {("phase", "batch", "defects"): 2}


# ---- batches of other tasks -----------------------------------------------------------------------------------------


def travelled(*requests: Request) -> bytes:
    return pack(requests).encode()


def test_task_transferred_batch_gives_the_same_answers() -> None:
    requests = [admitted("a", [1.0]), admitted("b", [2.0, POISON]), admitted("ü", [3.0], encoding=Encoding.JSON)]
    there, here = serving().on_exchange(travelled(*requests), NOW_MS), serving().on_batch(requests, NOW_MS)
    assert there == here
    found = answers(there)
    assert values_of(found["ü"]) == expected("rows", [3.0])
    assert code_of(found["b"]) == "inference_failed"


@pytest.mark.parametrize("model", ["rows", "pairs", "whole"])
def test_task_transferred_tensors_are_not_copied(model: str) -> None:
    def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
        seen.append(inputs["x"])
        return run_whole(inputs) if model == "whole" else run_rows(inputs)

    seen: list[Array] = []
    requests = [admitted("a", [1.0, 2.0], model)] + ([] if model == "whole" else [admitted("b", [3.0, 4.0], model)])
    encoded = travelled(*requests)
    assert len(answers(serving(session=lambda _: FakeSession(run)).on_exchange(encoded, NOW_MS))) == len(requests)
    assert all(np.shares_memory(array, np.frombuffer(encoded, np.uint8)) for array in seen)


def test_task_late_request_of_a_batch_is_failed_and_not_run() -> None:
    session = session_of(SERVED.find("rows", ""))
    requests = [admitted("a", [1.0], parameters={"timeout": 5_000}), admitted("b", [2.0])]
    found = answers(serving(session=lambda _: session).on_exchange(travelled(*requests), NOW_MS + 5))
    assert code_of(found["a"]) == "deadline_exceeded"
    assert values_of(found["b"]) == expected("rows", [2.0])
    assert answers(serving(session=lambda _: session).on_exchange(travelled(requests[0]), NOW_MS + 5)).keys() == {"a"}
    assert session.batches == [1]


def test_task_explained_answer_names_the_task() -> None:
    explained = admitted("a", [1.0], parameters={"explain": True})
    for outputs in (
        serving(task=3).on_exchange(travelled(explained), NOW_MS),
        serving(task=3).on_batch([explained], 0),
    ):
        [answer] = answers(outputs).values()
        assert answer.parameters["task"] == 3  # type: ignore[union-attr]
    together = [admitted(name, [1.0], parameters={"explain": True}) for name in "ab"]
    one, other = answers(serving(task=3).on_batch(together, 0)).values()
    assert one.parameters["batch"] == other.parameters["batch"]  # type: ignore[union-attr]


@pytest.mark.parametrize("broken", [b"", b"\x06", b"\x06" * 80, b"\x06\x02" + bytes(90)])
def test_task_undecodable_batch_raises_nothing(broken: bytes) -> None:
    assert serving().on_exchange(broken, NOW_MS) == []


def test_task_damaged_batch_answers_its_readable_entries() -> None:
    whole = travelled(admitted("a", [1.0]), admitted("ü", [3.0], encoding=Encoding.JSON))
    task = serving()
    for damaged in (whole[:-1], whole + b"x"):
        found = answers(task.on_exchange(damaged, NOW_MS))
        assert {name: code_of(answer) for name, answer in found.items()} == dict.fromkeys("aü", "internal_error")
        dead_letters = [each for each in task.on_exchange(damaged, NOW_MS) if isinstance(each, DeadLetterRecord)]
        originals = [decode_dead_letter(each.value).original for each in dead_letters]
        assert originals == [
            request("rows", [1.0], request_id="a"),
            request("rows", [3.0], request_id="ü", encoding=Encoding.JSON),
        ]
    assert task._response_writer.meter.drain()["phase", "batch", "defects"] == 4


def test_task_damaged_shard_fails_its_rows() -> None:
    _, _, shard, _ = shards_of([1.0] * 9)
    task = serving()
    for damaged in (shard[:-1], shard + b"x"):
        [part] = task.on_exchange(damaged, NOW_MS)
        assert isinstance(part, WindowPart)
        record = FailureRecord.decode(part.value)
        assert (part.key, record.segment, record.failure.code) == (
            window_key(ShardRecord.decode(shard).segment.source),
            ShardRecord.decode(shard).segment,
            "internal_error",
        )
    assert task._response_writer.meter.drain() == {("phase", "batch", "defects"): 2}


# ---- shards --------------------------------------------------------------------------------------------------------


def test_task_shard_becomes_a_partial_for_its_window() -> None:
    _, *shards = shards_of([float(n) for n in range(9)])
    [part] = serving().on_shard(shards[1], NOW_MS)
    record, segment = PartialRecord.decode(part.value), ShardRecord.decode(shards[1]).segment
    assert (part.key, kind_of(part.value)) == (window_key(segment.source), RecordKind.PARTIAL)
    assert (segment.first_row, segment.rows, segment.total_rows, segment.id) == (4, 4, 9, "a")
    assert record.segment == segment
    signature = decode_output_signature(record.outputs)
    assert (signature.task, [spec.name for spec in signature.outputs]) == (3, ["y", "label"])
    assert np.frombuffer(record.tensors[0], "<f4")[0] == 9.0  # row 4: 2 * 4 + 1


def test_task_shard_failure_numbers_rows_as_the_request() -> None:
    _, _, shard = shards_of([1.0] * 5 + [POISON, 2.0])
    parts = serving().on_shard(shard, NOW_MS)
    good = [PartialRecord.decode(part.value).segment for part in parts[:2]]
    assert [(segment.first_row, segment.rows) for segment in good] == [(4, 1), (6, 1)]
    bad = FailureRecord.decode(parts[2].value)
    assert (len(parts), bad.segment.first_row, bad.segment.rows) == (3, 5, 1)
    failure = bad.failure
    assert (failure.code, failure.message, failure.model_name) == ("inference_failed", "row 5: poison", "rows")


def test_task_lost_shard_forwards_its_failure() -> None:
    _, shard, *_ = shards_of([1.0] * 9)
    failure = lost(ShardRecord.decode(shard)).encode()
    [part] = serving().on_shard(memoryview(failure), NOW_MS)
    assert (part.key, part.value) == (f"2-7-{int(NOW_MS)}", failure)
    assert FailureRecord.decode(part.value).failure.model_name == "rows"


def test_task_late_shard_gives_nothing() -> None:
    _, shard, *_ = shards_of([1.0] * 9, timeout=1_000)
    assert len(serving().on_shard(shard, NOW_MS)) == 1
    assert serving().on_shard(shard, NOW_MS + 1) == []


@pytest.mark.parametrize("defect", ["no model", "no session", "parts too large"])
def test_task_defect_on_a_shard_fails_its_rows(defect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> Any:
        raise RuntimeError("defect")

    if defect == "parts too large":
        monkeypatch.setattr(serving_module, "OutputSignature", fail)
    served = catalog(without=["rows"]) if defect == "no model" else SERVED
    task = serving(served, fail if defect == "no session" else session_of)
    _, _, shard, _ = shards_of([1.0] * 9)
    [part] = task.on_shard(shard, NOW_MS)
    record = FailureRecord.decode(part.value)
    assert (record.segment.first_row, record.segment.rows, part.key) == (4, 4, f"2-7-{int(NOW_MS)}")
    assert record.failure.code == ("unknown_model" if defect == "no model" else "internal_error")


# ---- batches that ran beside the task ------------------------------------------------------------------------------


def test_inference_batch_that_ran_apart_is_answered() -> None:
    session = FakeSession(run_rows)
    task = serving(session=lambda _: session)
    requests = [admitted("a", [1.0]), admitted("b", [POISON])]
    ran = task.run_apart(requests, NOW_MS)
    assert task._defects.drain() == []
    apart = list(session.batches)
    found = answers(task.on_ran(requests, ran))
    assert session.batches == apart
    assert isinstance(found["a"], InferResponse)
    assert isinstance(found["b"], ErrorResponse)
    # The task's thread counts the failed row.
    assert [defect.phase for defect in task._defects.drain()] == ["session"]


def test_inference_batch_that_fails_apart_runs_again() -> None:
    def fails(_: ModelSpec) -> Session:
        raise ModelLoadFailed("gone")

    task = serving(session=fails)
    ran = task.run_apart([admitted("a", [1.0])], NOW_MS)
    assert ran.result is None
    task._session_of = session_of
    assert isinstance(answers(task.on_ran([admitted("a", [1.0])], ran))["a"], InferResponse)
