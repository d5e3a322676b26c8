"""Flow: events to tensors and back, with paths or with a function."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from anabranch.operators.core.flows.flow import EventFunction, Flow
from anabranch.operators.core.flows.flow_spec import FieldSpec, FlowSpec, InputSpec, OutputField
from anabranch.schemas.errors import AnabranchError, InvalidField, MappingFailed, MissingField, UnreadableRequest
from anabranch.schemas.model import FunctionSpec, TensorSpec
from tests.core.malformed_events import MALFORMED
from tests.core.models import catalog

SPEC = FlowSpec(
    topic="payments",
    to="scored",
    model_name="rows",
    model_version="10",
    inputs=(
        InputSpec("x", "FP32", (2,), (FieldSpec(("amount",)), FieldSpec(("user", "age")))),
        InputSpec("t", "BYTES", (), (FieldSpec(("note",), default=""),)),
    ),
    outputs=(OutputField(("fraud", "score"), "y", (1,), -1.0), OutputField(("fraud", "label"), "label", (), None)),
    key=("user", "id"),
)
MODEL = catalog().find("rows", "10")
EVENT = b'{"amount": 1.50, "user": {"id": "u1", "age": 41}, "n": 12345678901234567890}'
OUTPUTS = {"y": np.array([[1, 0.1], [2, 0.2]], np.float32), "label": np.array([b"a", b"b"], object)}


def flow(**changes: Any) -> Flow:
    return Flow(replace(SPEC, **changes), MODEL)


def with_function(function: Any) -> Flow:
    called: EventFunction = function
    return Flow(replace(SPEC, inputs=(), function=FunctionSpec("f.py", "", "of")), MODEL, called)


def test_flow_event_becomes_the_tensors() -> None:
    x, t = flow().read(EVENT)
    assert x == (np.array([1.5, 41], "<f4").tobytes(), (2,))
    assert t == (b"\0\0\0\0", ())


ALONE = {
    **MALFORMED,
    "good": EVENT,
    "not ASCII": '{"amount": 2, "user": {"age": 3}, "note": "ä"}'.encode(),
    "missing": b'{"amount": 2, "user": {}}',
    "invalid UTF-8 of another field": b'{"amount": 2, "user": {"age": 3}, "note": "\xff"}',
    "byte order mark": b'\xef\xbb\xbf{"amount": 2, "user": {"age": 3}}',
    "no user": b'{"amount": 2}',
    "null": b'{"amount": null, "user": {"age": 3}}',
    "a text": b'{"amount": "2", "user": {"age": 3}}',
    "too large": b'{"amount": 1e39, "user": {"age": 3}}',
}


@pytest.mark.parametrize("name", ALONE)
def test_flow_reads_events_together_as_each_alone(name: str) -> None:
    mapped, one_by_one = flow(inputs=SPEC.inputs[:1]), flow(inputs=SPEC.inputs[:1])
    one_by_one._read_good = lambda events: None

    def outcome(found: Any) -> Any:
        return (type(found), str(found)) if isinstance(found, AnabranchError) else found

    together = mapped.read_all([EVENT, ALONE[name], EVENT])
    alone = one_by_one.read_all([EVENT, ALONE[name], EVENT])
    assert list(map(outcome, together)) == list(map(outcome, alone))
    assert together[0] == [(np.array([1.5, 41], "<f4").tobytes(), (2,))]


def test_flow_checks_values_that_a_packer_would_take() -> None:
    [refused] = flow(inputs=(InputSpec("x", "BOOL", (1,), (FieldSpec(("amount",)),)),)).read_all([EVENT])
    assert isinstance(refused, InvalidField)


def test_flow_event_gets_the_predictions() -> None:
    fragments = flow().format(OUTPUTS)
    assert flow().outputs == ("y", "label")
    assert flow().write(EVENT, fragments[1]) == EVENT[:-1] + b',"fraud":{"score":0.2,"label":"b"}}'


@pytest.mark.parametrize("name", MALFORMED)
def test_flow_malformed_event_is_refused(name: str) -> None:
    with pytest.raises(AnabranchError):
        flow().read(MALFORMED[name])


@pytest.mark.parametrize(
    ("event", "key"),
    [(EVENT, b"u1"), (b'{"user": {"id": 7}}', b"7"), ('{"user": {"id": "é"}}'.encode(), "é".encode())],
)
def test_flow_key_of_an_event_is_its_text(event: bytes, key: bytes) -> None:
    assert flow().key_of(event) == key
    assert flow(key=None).key_of(event) is None


def test_flow_event_without_key_is_refused() -> None:
    for event in (b"{}", b'{"user": {"id": null}}'):
        with pytest.raises(MissingField, match=r"'user\.id' is (missing|null), which the flow takes as key"):
            flow().key_of(event)
    for value in ("1.5", "true", "[1]", "{}"):
        with pytest.raises(InvalidField, match="expected a text or integer"):
            flow().key_of(b'{"user": {"id": ' + value.encode() + b"}}")


def test_flow_failed_event_goes_on_as_configured() -> None:
    event = b'{"amount": "x"}'
    assert flow().write_failed(event, "invalid_field") is None
    passed = flow(on_error="pass").write_failed(event, "invalid_field")
    assert passed == b'{"amount": "x","inference_error":"invalid_field"}'
    default = flow(on_error="default", error_path=("fraud", "error")).write_failed(event, "invalid_field")
    assert default == b'{"amount": "x","fraud":{"score":-1.0,"label":null,"error":"invalid_field"}}'


@pytest.mark.parametrize("event", [b"[1]", b"{", b"\xff", b'{"inference_error": {}, "a": }'])
def test_flow_failed_event_that_is_no_object_is_a_letter(event: bytes) -> None:
    assert flow(on_error="pass").write_failed(event, "invalid_field") is None
    assert flow(on_error="pass").write_failed(EVENT, UnreadableRequest.code) is None


def of(events: list[dict[str, Any]]) -> Mapping[str, Any]:
    x = np.array([[event["amount"], event["user"]["age"]] for event in events], np.float32)
    return {"x": x, "t": np.array([event.get("note", "") for event in events], object)}


def test_function_of_many_events_is_called_once() -> None:
    calls = []

    def counted(events: list[dict[str, Any]]) -> Mapping[str, Any]:
        calls.append(len(events))
        return of(events)

    events = [b'{"amount": %d, "user": {"age": 1}, "note": "n%d"}' % (number, number) for number in range(5)]
    mapped = with_function(counted).read_all(events)
    assert calls == [5]
    for number, tensors in enumerate(mapped):
        assert not isinstance(tensors, AnabranchError)
        assert tensors[0] == (np.array([number, 1], "<f4").tobytes(), (2,))
        assert tensors[1] == (b"\x02\0\0\0n%d" % number, ())


def test_function_that_fails_on_an_event_serves_the_others() -> None:
    events = [EVENT, b'{"amount": 1}', b"{", EVENT, b"[]", EVENT]
    mapped = with_function(of).read_all(events)
    kinds = [type(each).__name__ for each in mapped]
    assert kinds == ["list", "MappingFailed", "UnreadableRequest", "list", "InvalidField", "list"]
    assert str(mapped[1]) == "of raised KeyError: 'user'"
    with pytest.raises(MappingFailed):
        with_function(of).read(b'{"amount": 1}')


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": None}, "of returned t, expected a mapping with 'x'"),
        ({"x": np.zeros((1, 3), np.float32)}, r"'x' of shape \[1, 3\], expected \[1, 2\]"),
        ({"x": np.zeros((2, 2), np.float32)}, r"'x' of shape \[2, 2\], expected \[1, 2\]"),
        ({"x": np.zeros((1, 2))}, "'x' as float64, expected FP32"),
        ({"x": np.zeros((1, 2), complex)}, "no datatype for dtype complex"),
    ],
)
def test_function_with_a_wrong_array_is_named(changes: dict[str, Any], message: str) -> None:
    def wrong(events: list[dict[str, Any]]) -> Mapping[str, Any]:
        made = {**of(events), **changes}
        return {name: array for name, array in made.items() if array is not None}

    with pytest.raises(AnabranchError, match=message):
        with_function(wrong).read(EVENT)


def test_function_that_returns_no_mapping_is_named() -> None:
    with pytest.raises(MappingFailed, match="of returned list"):
        with_function(lambda events: events).read(EVENT)


def test_function_of_a_model_without_rows_gives_tensors() -> None:
    model = catalog().find("whole", "1")
    spec = replace(SPEC, model_name="whole", inputs=(), function=FunctionSpec("f.py", "", "of"), outputs=())
    assert model.inputs == (TensorSpec("x", "FP32", (None,)),)
    whole = Flow(spec, model, lambda events: {"x": np.ones((len(events), 3), np.float32)})
    assert whole.read(b"{}") == [(np.ones(3, "<f4").tobytes(), (3,))]


def test_flow_of_many_events_reads_each() -> None:
    mapped = flow().read_all([EVENT, b"{}", EVENT])
    assert [isinstance(each, MissingField) for each in mapped] == [False, True, False]
