"""EventSchema: names, references, conversions, and the end of a record."""

import json
from datetime import datetime, timezone
from typing import Any

import pytest

from anabranch.operators.core.flows.event_tree import NewField
from anabranch.operators.core.flows.formats.avro_schema import EventSchema, converter_of, extended
from anabranch.operators.core.flows.formats.registered_schemas import RegisteredSchema
from anabranch.schemas.errors import UnknownSchema


def schema(*fields: Any, dependencies: tuple[tuple[str, str], ...] = (), name: str = "a.R") -> EventSchema:
    named = [{"name": f"f{number}", "type": kind} for number, kind in enumerate(fields)]
    text = json.dumps({"type": "record", "name": name, "fields": named})
    return EventSchema(RegisteredSchema(text, (), dependencies))


@pytest.mark.parametrize(
    "text", ["", "{", '"int"', '{"type": "array", "items": "int"}', '{"type": "record"}', "[]", "7"]
)
def test_event_schema_that_is_no_record_is_refused(text: str) -> None:
    with pytest.raises(UnknownSchema, match="the schema is not"):
        EventSchema(RegisteredSchema(text))


def test_event_schema_refers_to_schemas_of_others() -> None:
    money = json.dumps({"type": "record", "name": "m.Money", "fields": [{"name": "cents", "type": "long"}]})
    made = schema("m.Money", ["null", "m.Money"], dependencies=(("m.Money", money),))
    assert made.uses == {"a.R": 1, "m.Money": 2}
    assert not made.is_recursive
    assert made.type_at(("f1", "cents")) == "long"
    assert made.read(b"\2\2\4", 0, made.fields()) == ({"f0": {"cents": 1}, "f1": {"cents": 2}}, 3)
    # A part defines its types itself.
    assert made.read(b"\2\4", 0, made.fields(made.record["fields"][1:])) == ({"f1": {"cents": 2}}, 2)
    text = json.loads(extended(made, {"score": NewField(0, "float")}))
    assert [field["type"] for field in text["fields"]] == ["m.Money", ["null", "m.Money"], ["null", "float"]]


def test_event_schema_types_of_paths_are_found() -> None:
    made = schema({"type": "map", "values": ["null", "int"]}, {"type": "array", "items": "string"}, ["int", "string"])
    assert made.type_at(("f0", "key")) == "int"
    assert made.type_at(("f1", 3)) == "string"
    for path in (("f1", "key"), ("f0", 3), ("f2",), ("none",), ("f0", "key", "more")):
        assert made.type_at(path) is None


@pytest.mark.parametrize(
    ("logical", "value", "expected"),
    [
        ("timestamp-millis", 1500, "1970-01-01T00:00:01.500000"),
        ("timestamp-micros", -1, "1969-12-31T23:59:59.999999"),
        ("timestamp-nanos", 3000, "1970-01-01T00:00:00.000003"),
        ("local-timestamp-millis", 0, "1970-01-01T00:00:00"),
        ("date", 20000, "2024-10-04T00:00:00"),
    ],
)
def test_converter_of_times_gives_moments(logical: str, value: int, expected: str) -> None:
    convert = converter_of({"type": "long", "logicalType": logical}, "timestamp")
    assert convert is not None
    assert convert(value) == datetime.fromisoformat(expected).replace(tzinfo=timezone.utc)  # noqa: UP017
    with pytest.raises(OverflowError):
        convert(2**72)
    assert converter_of({"type": "long", "logicalType": logical}, "plain") is None


def test_converter_of_decimals_scales_lists_too() -> None:
    decimal = {"type": "bytes", "logicalType": "decimal", "precision": 4, "scale": 2}
    convert = converter_of({"type": "array", "items": decimal}, "plain")
    assert convert is not None
    assert convert([b"\xff", None, b"\4\xd2"]) == [-0.01, None, 12.34]


def test_extended_names_avoid_those_of_the_event() -> None:
    made = schema({"type": "enum", "name": "R_fraud", "symbols": ["A"]}, name="R")
    text = json.loads(extended(made, {"fraud": {"score": NewField(0, "float")}}))
    assert text["fields"][1]["type"][1]["name"] == "R_fraud_"


EMPTY: dict[str, Any] = {"type": "record", "name": "Empty", "fields": [{"name": "n", "type": "null"}]}


@pytest.mark.parametrize("items", ["null", EMPTY, {"type": "fixed", "name": "F", "size": 0}])
def test_event_schema_with_items_of_no_bytes_is_refused(items: Any) -> None:
    with pytest.raises(UnknownSchema, match="a list of items without bytes"):
        schema({"type": "map", "values": ["null", {"type": "array", "items": items}]})
    assert schema({"type": "array", "items": ["null", items] if items != "null" else "int"}).record["fields"]


def test_extended_keeps_types_that_a_replaced_field_defined() -> None:
    kind = {"type": "enum", "name": "Kind", "symbols": ["A"]}
    made = schema({"type": "array", "items": kind}, "Kind")
    text = json.loads(extended(made, {"f0": NewField(0, "float")}))
    assert text["fields"][0]["type"] == ["null", "float"]
    assert text["fields"][1]["type"] == {"type": "enum", "name": "a.Kind", "symbols": ["A"]}
