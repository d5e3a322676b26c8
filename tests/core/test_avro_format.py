"""AvroFormat: Confluent's events become tensors, and the bytes that Confluent writes for the same with scores."""

import io
import json
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import fastavro
import numpy as np
import pytest
from msgspec.structs import replace

from anabranch.operators.core.flows.event_reader import MISSING
from anabranch.operators.core.flows.field_path import parse_path
from anabranch.operators.core.flows.flow import Flow
from anabranch.operators.core.flows.flow_spec import FieldSpec, FlowSpec, InputSpec, OutputField
from anabranch.operators.core.flows.formats.avro_format import AvroFormat
from anabranch.operators.core.flows.formats.registered_schemas import LocalRegistry
from anabranch.schemas.errors import InvalidField, MissingField, SchemaRefused, UnknownSchema, UnreadableRequest
from anabranch.schemas.model import ModelSpec, TensorSpec

GOLDEN = [json.loads(line) for line in (Path(__file__).parent / "golden_events/avro.jsonl").read_text().splitlines()]
SCORES = {
    "score": np.array([0.25], np.float32),
    "all": np.array([[0.75, 0.25]], np.float32),
    "label": np.array([b"bad"], object),
    "count": np.array([2**40], np.int64),
    "flags": np.array([[[True], [False]]]),
}


def model() -> ModelSpec:
    outputs = [("score", "FP32", ()), ("all", "FP32", (2,)), ("label", "BYTES", ()), ("count", "INT64", ())]
    outputs.append(("flags", "BOOL", (2, 1)))
    return ModelSpec(
        name="fraud",
        version="1",
        path="",
        sha256="",
        inputs=(TensorSpec("x", "FP64", (None, None)),),
        outputs=tuple(TensorSpec(name, datatype, (None, *shape)) for name, datatype, shape in outputs),
    )


def spec(*fields: str | FieldSpec, outputs: Any = ("score", "all", "label"), **changes: Any) -> FlowSpec:
    named = [FieldSpec(parse_path(field)) if isinstance(field, str) else field for field in fields]
    made = FlowSpec(
        topic="payments",
        to="scored",
        model_name="fraud",
        model_version="1",
        format="avro",
        is_framed=True,
        inputs=(InputSpec("x", "FP64", (len(named),), tuple(named)),),
        outputs=tuple(OutputField(("fraud", name), name) for name in outputs),
    )
    return replace(made, **changes)


def registry_of(case: dict[str, Any]) -> LocalRegistry:
    return LocalRegistry(*case["schemas"])


def decoded(schema: str, value: bytes) -> Any:
    return fastavro.schemaless_reader(io.BytesIO(value), json.loads(schema), None)


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_avro_event_by_confluent_gets_golden_scores(case: dict[str, Any]) -> None:
    registry = registry_of(case)
    flow = Flow(spec("amount"), model(), registry=registry)
    scored = flow.write(bytes.fromhex(case["event"]), flow.format(SCORES)[0])
    assert scored == bytes.fromhex(case["scored"]).replace(
        b"\0\0\0\0\1", b"\0\0\0\0" + bytes([len(registry.schemas)]), 1
    )
    assert json.loads(registry.schemas[-1].text) == json.loads(case["scored_schema"])


def test_avro_event_named_by_guid_gets_a_guid() -> None:
    event, flow = bytes.fromhex(GOLDEN[0]["event"]), Flow(spec("amount"), model(), registry=registry_of(GOLDEN[0]))
    scored = flow.write(b"\1" + UUID(int=1).bytes + event[5:], flow.format(SCORES)[0])
    assert scored == b"\1" + UUID(int=2).bytes + bytes.fromhex(GOLDEN[0]["scored"])[5:]


def test_avro_fields_of_all_kinds_become_numbers() -> None:
    fields: list[str | FieldSpec] = [
        *("amount", "user.age", "limits[1]", "limits[-2]", 'tags."x.y"', "price", "created"),
        FieldSpec(("created",), "timestamp", "h"),
        FieldSpec(("kind",), "enum", values=("CASH", "CARD")),
        FieldSpec(("country",), "enum", values=("FR", "DE"), default=-1),
    ]
    [(raw, shape)] = Flow(spec(*fields), model(), registry=registry_of(GOLDEN[0])).read(
        bytes.fromhex(GOLDEN[0]["event"])
    )
    expected = [9.5, 41, 2.5, 1.0, 7, -12.34, 1795953600000, 1795953600 / 3600, 0, -1]
    assert np.frombuffer(raw).tolist() == expected
    assert shape == (10,)


def test_avro_bytes_fill_a_whole_input() -> None:
    whole = InputSpec("x", "UINT8", (3,), (FieldSpec(("picture",), "base64"),), is_whole=True)
    flow = Flow(spec(inputs=(whole,)), model(), registry=registry_of(GOLDEN[0]))
    assert flow.read(bytes.fromhex(GOLDEN[0]["event"])) == [(b"\x00\xff\x10", (3,))]


def test_avro_missing_and_null_fields_follow_the_rules() -> None:
    event, registry = bytes.fromhex(GOLDEN[1]["event"]), registry_of(GOLDEN[1])
    for path in ("user.age", "country"):
        with pytest.raises(MissingField, match=f"field '{path}' is missing"):
            Flow(spec(path), model(), registry=registry).read(event)
    with pytest.raises(InvalidField, match=r"field 'amount' is 9.5, expected an object"):
        Flow(spec("amount.value"), model(), registry=registry).read(event)
    assert AvroFormat(spec("user"), model(), registry).read(event) == [None]
    assert AvroFormat(spec("user.age"), model(), registry).read(event) == [MISSING]


def test_avro_reader_schema_fills_defaults_and_aliases() -> None:
    fields = [
        {"name": "value", "type": "double", "aliases": ["amount"]},
        {"name": "country", "type": "int", "default": 49},
    ]
    schema = json.dumps({"type": "record", "name": "Payment", "namespace": "shop.events", "fields": fields})
    flow = Flow(spec("value", "country", schema=schema), model(), registry=registry_of(GOLDEN[0]))
    [(raw, _)] = flow.read(bytes.fromhex(GOLDEN[0]["event"]))
    assert np.frombuffer(raw).tolist() == [9.5, 49]


def test_avro_function_gets_decoded_events() -> None:
    event = AvroFormat(spec(), model(), registry_of(GOLDEN[0])).decode(bytes.fromhex(GOLDEN[0]["event"]))
    assert event["price"] == Decimal("-12.34")
    assert event["created"].isoformat() == "2026-11-29T12:00:00+00:00"
    assert event["user"] == {"age": 41, "naeme": "Jürgen €"}


@pytest.mark.parametrize("schema", ["", GOLDEN[2]["schemas"][1]], ids=["by the writer", "by a reader"])
def test_avro_malformed_events_are_refused(schema: str) -> None:
    event, registry = bytes.fromhex(GOLDEN[0]["event"]), registry_of(GOLDEN[0])
    flow = Flow(spec("amount", schema=schema), model(), registry=registry)
    bad = {
        "empty": b"",
        "no frame": event[5:],
        "JSON": b'{"amount": 1}',
        "frame only": event[:5],
        "other magic": b"\2" + event[1:],
        "more bytes": event + b"\0",
        "negative size": event[:5] + b"\1" + event[6:],
        "huge size": event[:5] + b"\xff" * 9 + b"\1" + event[6:],
        "no union branch": event.replace(b"\2\2\x52", b"\6\2\x52"),
        **{f"cut at {size}": event[:size] for size in range(5, len(event))},
    }
    mapped = dict(zip(bad, flow.read_all(list(bad.values())), strict=True))
    assert {name: type(each) for name, each in mapped.items()} == dict.fromkeys(bad, UnreadableRequest)
    with pytest.raises(UnknownSchema, match="no schema 9"):
        flow.read(b"\0\0\0\0\x09" + event[5:])


def test_avro_negative_branches_and_symbols_are_refused() -> None:
    """The library takes -1 for the last one."""
    country = {"type": "enum", "name": "Country", "symbols": ["DE", "FR"]}
    fields = [{"name": "v", "type": ["null", "int"]}, {"name": "country", "type": country}]
    registry = LocalRegistry(json.dumps({"type": "record", "name": "P", "fields": fields}))
    flow = Flow(spec("v"), model(), registry=registry)
    frame = b"\0\0\0\0\1"
    assert np.frombuffer(flow.read(frame + b"\2\6\2")[0][0]).tolist() == [3]
    for reason, event in (("branch -1 of 2", b"\1\6\2"), ("symbol -1 of 2", b"\2\6\1")):
        with pytest.raises(UnreadableRequest, match=reason):
            flow.read(frame + event)


def test_avro_deep_nesting_is_refused_without_a_crash() -> None:
    fields = [{"name": "v", "type": "int"}, {"name": "next", "type": ["null", "L"]}]
    registry = LocalRegistry(json.dumps({"type": "record", "name": "L", "fields": fields}))
    flow = Flow(spec("next.next.v"), model(), registry=registry)
    frame = b"\0\0\0\0\1"
    with pytest.raises(UnreadableRequest, match="nested too deeply"):
        flow.read(frame + b"\2\2" * 200_000 + b"\2\0")
    event = frame + b"\2\2\4\2\6\0"
    assert np.frombuffer(flow.read(event)[0][0]).tolist() == [3]
    with pytest.raises(SchemaRefused, match="contains itself"):
        flow.write(event, flow.format(SCORES)[0])


SHOP = {"type": "record", "name": "Shop", "fields": [{"name": "id", "type": "long"}]}


def nested(**more: Any) -> str:
    fields = [
        {"name": "a", "type": "string"},
        {"name": "shop", "type": ["null", SHOP]},
        {"name": "score", "type": "string"},
        {"name": "b", "type": {"type": "array", "items": "string"}},
        *[{"name": name, "type": kind} for name, kind in more.items()],
    ]
    return json.dumps({"type": "record", "name": "R", "fields": fields})


def outputs(**paths: str) -> tuple[OutputField, ...]:
    return tuple(OutputField(tuple(path.split(".")), name) for name, path in paths.items())


def test_avro_existing_fields_are_replaced_and_extended() -> None:
    registry = LocalRegistry(nested())
    fields = outputs(all="x.y.z", score="score", count="shop.count", label="shop.label", flags="flags")
    flow = Flow(spec("shop.id", outputs=(), inputs=spec("shop.id").inputs), model(), registry=registry)
    flow = Flow(replace(spec("shop.id"), outputs=fields), model(), registry=registry)
    values = {"a": "1", "shop": {"id": 5}, "score": "old", "b": ["x", "y"]}
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, json.loads(nested()), values)
    event = b"\0\0\0\0\1" + stream.getvalue()
    assert np.frombuffer(flow.read(event)[0][0]).tolist() == [5]
    scored = flow.write(event, flow.format(SCORES)[0])
    assert scored[:5] == b"\0\0\0\0\2"
    assert decoded(registry.schemas[1].text, scored[5:]) == {
        "a": "1",
        "shop": {"id": 5, "count": 2**40, "label": "bad"},
        "score": 0.25,
        "b": ["x", "y"],
        "x": {"y": {"z": [0.75, 0.25]}},
        "flags": [[True], [False]],
    }
    # An event that passed through the flow passes again.
    again = Flow(flow.spec, model(), registry=registry).write(scored, flow.format(SCORES)[0])
    assert again[5:] == scored[5:]
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, json.loads(nested()), values | {"shop": None})
    with pytest.raises(SchemaRefused, match="field 'shop' is null"):
        flow.write(b"\0\0\0\0\1" + stream.getvalue(), flow.format(SCORES)[0])


def test_avro_shared_record_is_not_extended() -> None:
    registry = LocalRegistry(nested(other="Shop"))
    flow = Flow(replace(spec("shop.id"), outputs=outputs(score="shop.score")), model(), registry=registry)
    stream = io.BytesIO()
    values = {"a": "1", "shop": {"id": 5}, "score": "old", "b": [], "other": {"id": 6}}
    fastavro.schemaless_writer(stream, json.loads(nested(other="Shop")), values)
    event = b"\0\0\0\0\1" + stream.getvalue()
    with pytest.raises(SchemaRefused, match="'shop' of schema 1 is not a record that is used once"):
        flow.write(event, flow.format(SCORES)[0])
    # Skipped parts may use types that were defined before them.
    flow = Flow(replace(spec("shop.id"), outputs=outputs(score="score")), model(), registry=registry)
    scored = flow.write(event, flow.format(SCORES)[0])
    assert decoded(registry.schemas[1].text, scored[5:]) == values | {"score": 0.25}


@pytest.mark.parametrize("on_error", ["pass", "default"])
def test_avro_failed_event_gets_code_and_defaults(on_error: Any) -> None:
    fields = (OutputField(("fraud", "score"), "score", (), 0.5), OutputField(("fraud", "all"), "all", (), [1.0, 2.0]))
    registry = registry_of(GOLDEN[0])
    flow = Flow(replace(spec("amount"), outputs=fields, on_error=on_error), model(), registry=registry)
    event = bytes.fromhex(GOLDEN[0]["event"])
    failed = flow.write_failed(event, "overloaded")
    assert failed is not None
    found = decoded(registry.schemas[1].text, failed[5:])
    assert found["inference_error"] == "overloaded"
    assert found["fraud"] == (None if on_error == "pass" else {"score": 0.5, "all": [1.0, 2.0]})
    good = decoded(registry.schemas[1].text, flow.write(event, flow.format(SCORES)[0])[5:])
    assert good == found | {"fraud": {"score": 0.25, "all": [0.75, 0.25]}, "inference_error": None}
    assert flow.write_failed(b"\0\0\0\0\1", "missing_field") is None


def test_avro_events_without_frame_have_one_schema() -> None:
    schema = GOLDEN[0]["schemas"][0]
    flow = Flow(spec("amount", schema=schema, is_framed=False), model())
    event = bytes.fromhex(GOLDEN[0]["event"])[5:]
    assert flow.write(event, flow.format(SCORES)[0]) == bytes.fromhex(GOLDEN[0]["scored"])[5:]
    text = AvroFormat(flow.spec, model(), LocalRegistry()).outgoing_schema(event)
    assert json.loads(text) == json.loads(GOLDEN[0]["scored_schema"])


def test_avro_key_comes_from_a_field() -> None:
    event, registry = bytes.fromhex(GOLDEN[0]["event"]), registry_of(GOLDEN[0])
    assert Flow(spec("amount", key=("id",)), model(), registry=registry).key_of(event) == b"a"
    with pytest.raises(InvalidField, match="expected a text or integer"):
        Flow(spec("amount", key=("amount",)), model(), registry=registry).key_of(event)
