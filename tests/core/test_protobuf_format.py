"""ProtobufFormat: Confluent's events become tensors, and the bytes that Confluent writes for the same with scores."""

import base64
import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from msgspec.structs import replace

from anabranch.operators.core.flows.event_reader import MISSING
from anabranch.operators.core.flows.flow import Flow
from anabranch.operators.core.flows.flow_spec import FieldSpec, FlowSpec, InputSpec, OutputField
from anabranch.operators.core.flows.formats import framing
from anabranch.operators.core.flows.formats.protobuf_format import ProtobufFormat, write_frame
from anabranch.operators.core.flows.formats.protobuf_schema import ProtobufSchema
from anabranch.operators.core.flows.formats.registered_schemas import LocalRegistry, Registered, RegisteredSchema
from anabranch.schemas.errors import InvalidField, MissingField, SchemaRefused, UnknownSchema, UnreadableRequest
from anabranch.schemas.model import ModelSpec
from tests.core import test_avro_format as avro

GOLDEN = [
    json.loads(line) for line in (Path(__file__).parent / "golden_events/protobuf.jsonl").read_text().splitlines()
]
SCORES = avro.SCORES
FIRST = bytes.fromhex(GOLDEN[0]["event"])


def model() -> ModelSpec:
    return avro.model()


def spec(*fields: str | FieldSpec, **changes: Any) -> FlowSpec:
    return replace(avro.spec(*fields, **changes), format="protobuf")


def registry_of(case: dict[str, Any]) -> LocalRegistry:
    return LocalRegistry(*case["schemas"], kind="PROTOBUF")


def flow(*fields: str | FieldSpec, case: int = 0, **changes: Any) -> Flow:
    return Flow(spec(*fields, **changes), model(), registry=registry_of(GOLDEN[case]))


def decoded(registry: LocalRegistry, value: bytes) -> Any:
    made = FlowSpec(topic="t", to="t", model_name="m", model_version="1", outputs=(), format="protobuf", is_framed=True)
    return ProtobufFormat(made, model(), registry).decode(value)


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_protobuf_event_by_confluent_gets_golden_scores(case: dict[str, Any]) -> None:
    registry = registry_of(case)
    made = Flow(spec("amount"), model(), registry=registry)
    scored = made.write(bytes.fromhex(case["event"]), made.format(SCORES)[0])
    assert scored == b"\0\0\0\0\2" + bytes.fromhex(case["scored"])[5:]
    found, expected = (
        FileDescriptorProto.FromString(base64.b64decode(text))
        for text in (registry.schemas[1].text, case["scored_schema"])
    )
    assert found == expected


def test_protobuf_fields_of_all_kinds_become_numbers() -> None:
    fields: list[str | FieldSpec] = [
        *("amount", "user.age", "limits[1]", "limits[-2]", 'tags."x.y"', "price"),
        FieldSpec(("created",), "timestamp", "h"),
        FieldSpec(("kind",), "enum", values=("CASH", "CARD")),
        FieldSpec(("country",), "enum", values=("FR", "DE"), default=-1),
        FieldSpec(("limits", 7), default=-2),
        FieldSpec(("tags", "none"), default=-3),
    ]
    [(raw, _)] = flow(*fields).read(FIRST)
    expected = [9.5, 41, 2.5, 1.0, 7, -12.34, 1795953600 / 3600, 0, -1, -2, -3]
    assert np.frombuffer(raw).tolist() == expected
    assert np.frombuffer(flow(*fields, case=3).read(bytes.fromhex(GOLDEN[3]["event"]))[0][0])[8] == 0


def test_protobuf_bytes_and_lists_fill_whole_inputs() -> None:
    picture = InputSpec("x", "UINT8", (3,), (FieldSpec(("picture",), "base64"),), is_whole=True)
    assert flow(inputs=(picture,)).read(FIRST) == [(b"\x00\xff\x10", (3,))]
    limits = InputSpec("x", "FP32", (None,), (FieldSpec(("limits",)),), is_whole=True)
    assert flow(inputs=(limits,)).read(FIRST) == [(np.array([1, 2.5], np.float32).tobytes(), (2,))]


def test_protobuf_missing_fields_follow_the_rules() -> None:
    event = bytes.fromhex(GOLDEN[1]["event"])
    for path in ("user.age", "country"):
        with pytest.raises(MissingField, match=f"field '{path}' is missing"):
            flow(path, case=1).read(event)
    # A number without presence is its default.
    assert np.frombuffer(flow("amount", case=1).read(event)[0][0]).tolist() == [0]
    assert ProtobufFormat(spec("user"), model(), registry_of(GOLDEN[1])).read(event) == [MISSING]
    for path, message in (("amount.x", "'amount' is 9.5, expected a message"), ("user[0]", "'user' is a message")):
        with pytest.raises(InvalidField, match=message):
            flow(path).read(FIRST)
    with pytest.raises(InvalidField, match=r"field 'limits' is a list, expected a message"):
        flow("limits.x").read(FIRST)


def test_protobuf_function_gets_decoded_events() -> None:
    assert decoded(registry_of(GOLDEN[0]), FIRST) == {
        "id": "a",
        "amount": 9.5,
        "user": {"age": 41, "naeme": "Jürgen €"},
        "limits": [1.0, 2.5],
        "created": datetime(2026, 11, 29, 12, tzinfo=timezone.utc),  # noqa: UP017
        "kind": "CASH",
        "tags": {"x.y": 7},
        "picture": b"\x00\xff\x10",
        "price": -12.34,
    }


def test_protobuf_malformed_events_are_refused() -> None:
    bad = {
        "empty": b"",
        "JSON": b'{"amount": 1}',
        "frame only": FIRST[:5],
        "other magic": b"\1" + FIRST[1:],
        "negative indexes": FIRST[:5] + b"\2\1" + FIRST[6:],
        "many indexes": FIRST[:5] + b"\x7e" + FIRST[6:],
        "endless varint": FIRST[:5] + b"\xff" * 8,
        "cut": FIRST[:-1],
        "deep": FIRST + b"\x53" * 200_000,
        "no UTF-8": FIRST + b"\x0a\1\xff",
    }
    mapped = dict(zip(bad, flow("amount").read_all(list(bad.values())), strict=True))
    assert {name: type(each) for name, each in mapped.items()} == dict.fromkeys(bad, UnreadableRequest)
    for unknown in (b"\0\0\0\0\x09" + FIRST[5:], FIRST[:5] + b"\2\x0c" + FIRST[6:]):
        with pytest.raises(UnknownSchema):
            flow("amount").read(unknown)


@pytest.mark.parametrize("text", ["", "!", "AA==", base64.b64encode(b"\n\1x").decode()])
def test_protobuf_unusable_schema_is_refused(text: str) -> None:
    with pytest.raises(UnknownSchema, match="the schema is not a Protobuf descriptor with this message"):
        ProtobufSchema(RegisteredSchema(text), (0,), "the schema")


def outputs(**paths: str) -> tuple[OutputField, ...]:
    return tuple(OutputField(tuple(path.split(".")), name) for name, path in paths.items())


def test_protobuf_existing_fields_are_merged() -> None:
    registry = registry_of(GOLDEN[0])
    made = Flow(spec("amount", outputs=()), model(), registry=registry)
    made = Flow(
        replace(made.spec, outputs=outputs(score="user.score", label="id", all="a.b")), model(), registry=registry
    )
    scored = made.write(FIRST, made.format(SCORES)[0])
    found = decoded(registry, scored)
    assert found["user"] == {"age": 41, "naeme": "Jürgen €", "score": 0.25}
    assert (found["id"], found["a"], found["amount"]) == ("bad", {"b": [0.75, 0.25]}, 9.5)


@pytest.mark.parametrize("path", ["amount", "limits", "created.score", "limits.score", "kind.score"])
def test_protobuf_field_of_another_type_is_refused(path: str) -> None:
    made = flow("amount")
    made = Flow(replace(made.spec, outputs=outputs(score=path)), model(), registry=registry_of(GOLDEN[0]))
    with pytest.raises(SchemaRefused, match="put the flow's outputs elsewhere"):
        made.write(FIRST, made.format(SCORES)[0])


@pytest.mark.parametrize("on_error", ["pass", "default"])
def test_protobuf_failed_event_gets_code_and_defaults(on_error: Any) -> None:
    fields = (OutputField(("fraud", "score"), "score", (), 0.5), OutputField(("fraud", "all"), "all", (), [1.0, 2.0]))
    registry = registry_of(GOLDEN[0])
    made = Flow(replace(spec("amount"), outputs=fields, on_error=on_error), model(), registry=registry)
    failed = made.write_failed(FIRST, "overloaded")
    assert failed is not None
    found = decoded(registry, failed)
    assert found["inference_error"] == "overloaded"
    assert found.get("fraud") == (None if on_error == "pass" else {"score": 0.5, "all": [1.0, 2.0]})
    good = decoded(registry, made.write(FIRST, made.format(SCORES)[0]))
    assert "inference_error" not in good
    assert good["fraud"] == {"score": 0.25, "all": [0.75, 0.25]}


def test_protobuf_event_named_by_guid_gets_a_guid() -> None:
    made = flow("amount")
    by_guid = framing.write_schema_id(Registered(1, str(UUID(int=1))), str(UUID(int=1)))
    number, guid = (made.write(head + FIRST[5:], made.format(SCORES)[0]) for head in (FIRST[:5], by_guid))
    assert guid == b"\1" + UUID(int=2).bytes + number[5:]


@pytest.mark.parametrize("indexes", [(0,), (1,), (2, 0), (200, 3, 16_384)])
def test_protobuf_frame_is_read_as_written(indexes: tuple[int, ...]) -> None:
    frame = write_frame(Registered(7), indexes)
    assert frame[:5] == b"\0\0\0\0\7"
    assert framing.read_indexes(frame + b"x", 5) == (indexes, len(frame))
    assert indexes != (0,) or frame[5:] == b"\0"


def test_protobuf_nested_lists_are_refused() -> None:
    with pytest.raises(ValueError, match=r"output 'fraud\.flags' is nested 2 lists deep"):
        flow("amount", outputs=("flags",))
