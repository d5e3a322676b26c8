"""Admission: valid messages become requests, all others are refused with a code."""

import math
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.operators.core.admission import Admission
from anabranch.operators.core.defects import Defects
from anabranch.operators.core.metrics import Meter
from anabranch.operators.core.requests import Refused, Request
from anabranch.schemas.limits import MAX_BYTES_ELEMENTS, MAX_CACHED_TEMPLATE_BYTES, MAX_ID_BYTES, MAX_REQUEST_ROWS
from anabranch.schemas.messages import Encoding, InferRequest
from anabranch.schemas.model import Catalog, ModelSpec, SessionOptions, TensorSpec
from anabranch.schemas.records import NO_DEADLINE_MS, CarryingSource, Source
from anabranch.schemas.signatures import decode_signature
from anabranch.schemas.tensors import Tensor
from anabranch.schemas.wire import codec
from anabranch.schemas.wire.carried import Carried, decode_carried
from anabranch.schemas.wire.protobuf_wire import _write_varint
from tests.core.bad_requests import BAD, T, X, encoded, json
from tests.core.models import MAX_MESSAGE_BYTES, NOW_MS, SOURCE, catalog, request, tensors_of


def admission(served: Catalog | None = None) -> Admission:
    return Admission(served or catalog(), MAX_MESSAGE_BYTES, 5, Defects(Meter()))


def judge(message: bytes | None, source: Source = SOURCE, now_ms: float = NOW_MS, **options: Any) -> Request | Refused:
    return admission(catalog(**options)).admit(message, source, now_ms)


def admit(message: bytes, source: Source = SOURCE, **options: Any) -> Request:
    found = judge(message, source, **options)
    assert isinstance(found, Request), found
    return found


def code_of(found: Request | Refused) -> str:
    return found.failure.code if isinstance(found, Refused) else "admitted"


# ---- valid requests ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", list(Encoding))
def test_admission_valid_request_has_tensors_in_model_order(encoding: Encoding) -> None:
    message = codec.encode_request(InferRequest("rows", (T, X), "a", encoding=encoding))
    record = admit(message)
    signature = decode_signature(record.signature)
    assert (record.id, record.encoding, record.rows, record.source) == ("a", encoding, 2, SOURCE)
    assert [spec.name for spec in signature.inputs] == ["x", "t"]
    assert record.tensors == (X.data, T.data)
    assert (record.original, record.size_bytes) == (message, len(message))


def test_admission_protobuf_tensors_are_views() -> None:
    same, message = admission(), request(values=[float(n) for n in range(1000)])
    for _ in range(3):
        found = same.admit(message, SOURCE, NOW_MS)
        assert isinstance(found, Request)
        for tensor in found.tensors:
            assert isinstance(tensor, memoryview)
            assert tensor.obj is message


def test_admission_outputs_default_to_all_in_order() -> None:
    assert decode_signature(admit(encoded()).signature).outputs == ("y", "label")
    assert decode_signature(admit(encoded(outputs=("label", "y"))).signature).outputs == ("label", "y")
    assert decode_signature(admit(encoded(outputs=("label",))).signature).outputs == ("label",)


@pytest.mark.parametrize(("version", "served"), [("", "10"), ("1", "1"), ("2", "2"), ("10", "10")])
def test_admission_version_defaults_to_newest(version: str, served: str) -> None:
    assert decode_signature(admit(encoded(model_version=version)).signature).model_version == served


def test_admission_only_model_and_input_need_no_name() -> None:
    [x] = tensors_of("whole", [1.0, 2.0, 3.0])
    nameless = codec.encode_request(InferRequest("", (Tensor("", x.datatype, x.shape, x.data),)))
    record = admit(nameless, without=["rows", "pairs", "cut", "sums", "long"])
    assert decode_signature(record.signature).model_name == "whole"
    assert decode_signature(record.signature).inputs[0].name == "x"
    assert code_of(judge(nameless)) == "unknown_model"  # ambiguous among several models


def test_admission_without_batch_axis_counts_one_row() -> None:
    for size in (0, 1, 7):
        record = admit(request("whole", [1.0] * size))
        assert (record.rows, decode_signature(record.signature).inputs[0].shape) == (1, (size,))


def test_admission_fixed_batch_takes_whole_batches() -> None:
    assert admit(request("pairs", [1.0] * 6)).rows == 6
    assert code_of(judge(request("pairs", [1.0] * 5))) == "wrong_shape"


def test_admission_nan_passes_unless_model_refuses() -> None:
    for value in (math.nan, math.inf, -math.inf):
        message = request("whole", [1.0, value])
        assert code_of(judge(message)) == "admitted"
        assert code_of(judge(message, require_finite=True)) == "non_finite_input"
        assert code_of(judge(request("rows", [1.0, 5e-324]), require_finite=True)) == "admitted"


def test_admission_scheduling_parameters_are_kept() -> None:
    record = admit(
        encoded(parameters={"priority": 3, "timeout": 2_000, "partial": True, "explain": True, "other": "x"})
    )
    assert (record.priority, record.deadline_ms) == (3, SOURCE.timestamp_ms + 2)
    assert (record.partial_allowed, record.explain) == (True, True)
    plain = admit(encoded())
    assert (plain.priority, plain.deadline_ms) == (5, NO_DEADLINE_MS)
    assert (plain.partial_allowed, plain.explain) == (False, False)
    assert admit(encoded(parameters={"timeout": 0})).deadline_ms == NO_DEADLINE_MS


@pytest.mark.parametrize(
    ("timestamp_ms", "timeout_us", "deadline_ms"),
    [
        (int(NOW_MS), 1, int(NOW_MS) + 1),  # rounded up
        (int(NOW_MS), 1_001, int(NOW_MS) + 2),
        (int(NOW_MS) - 5, 10_000, int(NOW_MS) + 5),  # from the record's timestamp
        (int(NOW_MS) + 60_000, 1_000, int(NOW_MS) + 1),  # sender's clock ahead
        (int(NOW_MS) + 1, 1_000, int(NOW_MS) + 1),
        (-1, 3_000, int(NOW_MS) + 3),  # no timestamp
        (2**63 - 1, 1_000_000, int(NOW_MS) + 1_000),
        (int(NOW_MS), 2**63 - 1, 2**53),
    ],
)
def test_admission_deadline_counts_from_timestamp(timestamp_ms: int, timeout_us: int, deadline_ms: int) -> None:
    record = admit(encoded(parameters={"timeout": timeout_us}), Source(0, 0, timestamp_ms))
    assert record.deadline_ms == deadline_ms


@pytest.mark.parametrize("timeout_us", [1, 5_000, 4_999_999])
def test_admission_late_request_is_refused(timeout_us: int) -> None:
    message = encoded(parameters={"timeout": timeout_us})
    assert code_of(judge(message, Source(0, 0, int(NOW_MS) - 5_000))) == "deadline_exceeded"


# ---- bad requests --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BAD)
def test_admission_bad_input_is_refused_with_code_and_id(kind: str) -> None:
    message, code = BAD[kind]
    source = Source(3, 4, 5)
    refused = judge(message, source)
    assert isinstance(refused, Refused)
    assert (refused.failure.code, refused.failure.stage) == (code, "admit"), refused.failure.message
    assert refused.id == ("" if code == "unreadable" else "a")
    assert refused.original == (message or b"")
    assert refused.source == source
    assert 5 < len(refused.failure.message) <= 2000


@pytest.mark.parametrize("kind", BAD)
def test_admission_bad_input_of_known_sender_is_refused(kind: str) -> None:
    message, code = BAD[kind]
    same = admission()
    for good in (encoded(), request("whole"), request("pairs", [1.0, 2.0])):
        same.admit(good, SOURCE, NOW_MS)
    for _ in range(2):
        assert code_of(same.admit(message, SOURCE, NOW_MS)) == code
    assert code_of(same.admit(encoded(), SOURCE, NOW_MS)) == "admitted"


@pytest.mark.parametrize("encoding", list(Encoding))
def test_admission_id_over_the_limit_is_refused(encoding: Encoding) -> None:
    for size, code in ((MAX_ID_BYTES, "admitted"), (MAX_ID_BYTES + 1, "malformed_request"), (70_000,) * 2):
        record = judge(request(request_id="i" * int(size), encoding=encoding))
        assert code_of(record) == (code if isinstance(code, str) else "malformed_request")
        assert record.id in ("i" * int(size), "0-0")
    assert code_of(judge(request(request_id="é" * 513, encoding=encoding))) == "malformed_request"


@pytest.mark.parametrize("digits", [20, 400])
def test_admission_huge_timeout_is_capped(digits: int) -> None:
    x = '"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}]'
    assert admit(json(f'{x}, "parameters": {{"timeout": {"9" * digits}}}')).deadline_ms == 2**53


def test_admission_more_empty_rows_than_bytes_are_refused() -> None:
    x, y = TensorSpec("x", "FP32", (None, None)), TensorSpec("y", "FP32", (None,))
    served = Catalog({"flat": {"1": ModelSpec("flat", "1", "", "", (x,), (y,))}})
    for rows, code in ((3, "admitted"), (2**31, "wrong_shape"), (2**33, "wrong_shape")):
        empty = Tensor.from_array("x", np.zeros((1, 0), np.float32))
        message = codec.encode_request(InferRequest("flat", (Tensor("x", "FP32", (rows, 0), empty.data),)))
        assert code_of(admission(served).admit(message, SOURCE, NOW_MS)) == code


@pytest.mark.parametrize("rows", [MAX_REQUEST_ROWS, MAX_REQUEST_ROWS + 1])
def test_admission_rows_over_the_limit_are_refused(rows: int) -> None:
    x = TensorSpec("x", "UINT8", (None,))
    served = Catalog({"bytes": {"1": ModelSpec("bytes", "1", "", "", (x,), (x,))}})
    message = codec.encode_request(InferRequest("bytes", (Tensor("x", "UINT8", (rows,), bytes(rows)),)))
    same = Admission(served, 2 * MAX_REQUEST_ROWS, 5, Defects(Meter()))
    for _ in range(2):
        found = code_of(same.admit(message, SOURCE, NOW_MS))
        assert found == ("admitted" if rows == MAX_REQUEST_ROWS else "request_too_large")


def test_admission_many_texts_are_refused_unread() -> None:
    texts = TensorSpec("t", "BYTES", (None,))
    served = Catalog({"texts": {"1": ModelSpec("texts", "1", "", "", (texts,), (texts,))}})
    same = Admission(served, 1 << 24, 5, Defects(Meter()))
    for count, code in ((MAX_BYTES_ELEMENTS, "admitted"), (MAX_BYTES_ELEMENTS + 1, "request_too_large")):
        message = codec.encode_request(InferRequest("texts", (Tensor("t", "BYTES", (count,), bytes(4 * count)),)))
        assert code_of(same.admit(message, SOURCE, NOW_MS)) == code
    with patch("anabranch.operators.core.admission.bytes_offsets", side_effect=AssertionError):
        assert code_of(same.admit(message, SOURCE, NOW_MS)) == "request_too_large"


def test_admission_planted_defect_is_noted_and_answered() -> None:
    defects = Defects(Meter())
    same = Admission(catalog(), MAX_MESSAGE_BYTES, 5, defects)
    with patch.object(Admission, "_check", side_effect=RuntimeError("planted")):
        refused = same.admit(encoded(), Source(3, 4, 5), NOW_MS)
    assert isinstance(refused, Refused)
    assert (refused.id, refused.failure.code, refused.failure.stage) == ("a", "internal_error", "admit")
    assert refused.failure.message == "RuntimeError: planted"
    [defect] = defects.drain()
    assert (defect.phase, str(defect.error), defect.detail) == ("admit", "planted", "partition 3, offset 4")
    assert defect.error.__traceback__ is not None


def test_admission_bad_input_is_not_a_defect() -> None:
    defects = Defects(Meter())
    same = Admission(catalog(), MAX_MESSAGE_BYTES, 5, defects)
    for message, _ in BAD.values():
        same.admit(message, SOURCE, NOW_MS)
    assert defects.drain() == []


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("unknown input", "unknown input 'z' of model 'rows'; available: t, x"),
        ("missing input", "model 'rows' lacks inputs t, found x: send all of its inputs"),
        ("unknown output", "unknown output 'z' of model 'rows'; available: label, y"),
        ("wrong rank", "input 'x' has shape [4], expected [any, 2]: send the shape that the model takes"),
        ("wrong axis", "input 'x' has shape [2, 3], expected [any, 2]: send the shape that the model takes"),
        ("zero rows", "the request has 0 rows, expected at least 1: send one or more"),
        (
            "timeout is a fraction",
            "parameter timeout is 0.5, expected a positive integer: send microseconds, or leave it out",
        ),
    ],
)
def test_admission_message_says_found_expected_and_remedy(kind: str, message: str) -> None:
    refused = judge(BAD[kind][0])
    assert isinstance(refused, Refused)
    assert refused.failure.message == message


def test_admission_too_large_request_names_size_and_limit() -> None:
    message = BAD["over the size limit"][0]
    assert message is not None
    refused = judge(message)
    assert isinstance(refused, Refused)
    assert refused.failure.message == (
        f"the request has {len(message)} bytes, at most {MAX_MESSAGE_BYTES} are allowed: "
        "send fewer rows at a time, or raise kafka.max_message_bytes"
    )


# ---- cached heads ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["rows", "pairs", "whole", "nobody"]),
            st.lists(st.floats(width=32), max_size=4),
            st.sampled_from(["", "a", "ü"]),
            st.sampled_from([{}, {"priority": 1}, {"timeout": 1}, {"priority": -1}, {"partial": True}]),
            st.sampled_from([Encoding.PROTOBUF, Encoding.JSON]),
            st.integers(0, 3),
        ),
        max_size=8,
    )
)
def test_admission_cached_head_gives_the_same_result(sent: list[Any]) -> None:
    remembering = admission()
    for model, values, request_id, parameters, encoding, damage in sent:
        message = bytearray(request(model, values, request_id=request_id, parameters=parameters, encoding=encoding))
        if damage:
            del message[-damage:]
        for now_ms in (NOW_MS, NOW_MS + 5):
            fresh = admission().admit(bytes(message), SOURCE, now_ms)
            assert remembering.admit(bytes(message), SOURCE, now_ms) == fresh
            assert remembering.admit(memoryview(message), SOURCE, now_ms) == fresh


def test_admission_cached_heads_are_bounded() -> None:
    same = admission()
    for number in range(3000):
        same.admit(encoded(parameters={"trace": f"{number}"}), SOURCE, NOW_MS)
    for number in range(20):
        same.admit(encoded(parameters={"trace": f"{number}" + "x" * 100_000}), SOURCE, NOW_MS)
    assert len(same._heads) <= 1024
    assert sum(map(len, same._heads)) < 1024 * 4096


@pytest.mark.slow
@settings(max_examples=300)
@given(
    st.sampled_from(["rows", "pairs", "whole"]),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=3),
    st.text(max_size=3),
)
def test_admission_changed_byte_gives_the_same_result(
    model: str, damage: list[tuple[int, int]], request_id: str
) -> None:
    remembering = admission()
    good = request(model, [1.0, 2.0], request_id=request_id)
    remembering.admit(good, SOURCE, NOW_MS)
    broken = bytearray(good)
    for at, byte in damage:
        broken[at % len(broken)] = byte
    for message in (bytes(broken), memoryview(broken)):
        assert remembering.admit(message, SOURCE, NOW_MS) == judge(bytes(broken))


def test_admission_templates_of_one_size_coexist() -> None:
    same = admission()
    alike = [request("pairs", [1.0, 2.0], parameters={"trace": f"{number}"}) for number in range(3)]
    for message in alike * 2:
        same.admit(message, SOURCE, NOW_MS)
    assert len(same._templates[len(alike[0])]) == 3


@pytest.mark.slow
def test_admission_templates_are_bounded() -> None:
    same = admission()
    for size in range(3000):
        same.admit(request("whole", [1.0] * size), SOURCE, NOW_MS)
    for number in range(10, 99):
        same.admit(request("pairs", [1.0, 2.0], parameters={"trace": f"{number}"}), SOURCE, NOW_MS)
    assert 4 < len(same._templates) <= 1024
    assert max(map(len, same._templates.values())) <= 4


def _kept_bytes(of: Admission) -> int:
    return sum(len(part) for templates in of._templates.values() for each in templates for _, part in each.fixed)


def _field(tag: int, value: bytes) -> bytes:
    return bytes([tag << 3 | 2]) + _write_varint(len(value)) + value


def test_admission_repeated_ids_are_not_kept() -> None:
    same, message = admission(), request("pairs", [1.0, 2.0], request_id="last")
    for size in range(100_000, 100_020):
        found = same.admit(_field(3, bytes(size)) + message, SOURCE, NOW_MS)
        assert isinstance(found, Request)
        assert found.id == "last"
    assert _kept_bytes(same) == 0
    assert isinstance(same.admit(_field(3, b"first") + message, SOURCE, NOW_MS), Request)
    assert 0 < _kept_bytes(same) < 200


@pytest.mark.slow
def test_admission_all_templates_together_are_bounded() -> None:
    same, most = admission(), 0
    for size in range(2000):
        message = request("whole", [1.0] * (size // 2), parameters={"trace": f"{size:03}" + "x" * 3900})
        assert isinstance(same.admit(message, SOURCE, NOW_MS), Request)
        most = max(most, _kept_bytes(same))
        assert same._template_bytes == _kept_bytes(same)
    assert MAX_CACHED_TEMPLATE_BYTES * 0.9 < most <= MAX_CACHED_TEMPLATE_BYTES


@pytest.mark.slow
@settings(max_examples=500)
@given(st.binary(max_size=200), st.integers(-(2**62), 2**62))
def test_admission_any_bytes_never_raise(message: bytes, timestamp_ms: int) -> None:
    assert code_of(judge(message, Source(0, 0, timestamp_ms)))


# ---- senders -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", list(Encoding))
def test_admission_request_without_id_gets_its_place(encoding: Encoding) -> None:
    same = admission()
    for offset in range(3):
        record = same.admit(request(request_id="", encoding=encoding), Source(3, offset, 5), NOW_MS)
        assert record.id == f"3-{offset}"


def test_admission_bad_request_without_id_gets_its_place() -> None:
    refused = judge(request(values=[1.0], request_id="", encoding=Encoding.JSON, outputs=("nothing",)), Source(3, 4, 5))
    assert isinstance(refused, Refused)
    assert (refused.id, refused.encoding) == ("3-4", Encoding.JSON)


def test_admission_unreadable_with_headers_gets_its_place() -> None:
    carrying = CarryingSource(3, 4, 5, Carried(headers=(("correlation-id", b"a"),)).encode())
    for source, found in ((carrying, "3-4"), (Source(3, 4, 5), "")):
        refused = judge(b'{"inputs": ', source)
        assert isinstance(refused, Refused)
        assert (refused.id, refused.encoding, refused.source) == (found, Encoding.JSON, source)


def test_admission_reply_topic_that_is_not_allowed_is_refused() -> None:
    source = CarryingSource(3, 4, 5, Carried("inference-requests", 1, None, (("a", b"b"),)).encode())
    refused = admission().admit(encoded(), source, NOW_MS)
    assert isinstance(refused, Refused)
    assert (refused.failure.code, refused.id) == ("reply_refused", "a")
    # The answer goes to the responses topic.
    assert decode_carried(refused.source.carried) == Carried(headers=(("a", b"b"),))


def test_admission_reply_partition_alone_is_admitted() -> None:
    source = CarryingSource(3, 4, 5, Carried(partition=7).encode())
    request = admission().admit(encoded(), source, NOW_MS)
    assert isinstance(request, Request)
    assert request.source is source


def limited(**limits: Any) -> Catalog:
    model = replace(catalog().find("rows", ""), session=SessionOptions(**limits))
    return Catalog({"rows": {model.version: model}})


@pytest.mark.parametrize(("limit", "code"), [(5, "request_too_large"), (6, "admitted"), (0, "admitted")])
@pytest.mark.parametrize("encoding", list(Encoding))
def test_admission_elements_over_the_limit_are_refused(limit: int, code: str, encoding: Encoding) -> None:
    message = codec.encode_request(InferRequest("rows", (T, X), "a", encoding=encoding))
    judged = admission(limited(max_request_elements=limit)).admit(message, SOURCE, NOW_MS)
    assert code_of(judged) == code


@pytest.mark.parametrize("excess", [0, 1])
def test_admission_bytes_over_the_limit_are_refused(excess: int) -> None:
    message = codec.encode_request(InferRequest("rows", (T, X), "a"))
    judged = admission(limited(max_request_bytes=len(message) - excess)).admit(message, SOURCE, NOW_MS)
    assert code_of(judged) == ("request_too_large" if excess else "admitted")
