"""The check of an Avro record's bytes: as the library reads them, but with the faults that it overlooks."""

import io
from typing import Any

import fastavro
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.operators.core.flows.formats.avro_bounds import check_of, has_choices

COLOUR = {"type": "enum", "name": "Colour", "symbols": ["red", "green"]}
NODE: dict[str, Any] = {"type": "record", "name": "Node", "fields": [{"name": "next", "type": ["null", "Node"]}]}
HASH = {"type": "fixed", "name": "Hash", "size": 3}
FIELDS = {
    "flag": "boolean",
    "count": "int",
    "total": "long",
    "ratio": "float",
    "score": "double",
    "text": "string",
    "raw": "bytes",
    "none": "null",
    "colour": COLOUR,
    "other": "Colour",
    "hash": HASH,
    "maybe": ["null", "string", {"type": "array", "items": "long"}],
    "tags": {"type": "array", "items": ["null", "string"]},
    "limits": {"type": "map", "values": {"type": "array", "items": "int"}},
    "node": NODE,
}
SCHEMA: Any = fastavro.parse_schema(
    {"type": "record", "name": "R", "fields": [{"name": name, "type": kind} for name, kind in FIELDS.items()]}
)
CHECK = check_of(SCHEMA)


def encoded(schema: Any, value: Any) -> bytes:
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, schema, value)
    return stream.getvalue()


NODES: st.SearchStrategy[dict[str, Any]] = st.recursive(
    st.just({"next": None}), lambda below: st.builds(lambda each: {"next": each}, below), max_leaves=3
)
RECORDS = st.fixed_dictionaries(
    {
        "flag": st.booleans(),
        "count": st.integers(-(2**31), 2**31 - 1),
        "total": st.integers(-(2**63), 2**63 - 1),
        "ratio": st.floats(width=32, allow_nan=False),
        "score": st.floats(allow_nan=False),
        "text": st.text(),
        "raw": st.binary(),
        "none": st.none(),
        "colour": st.sampled_from(["red", "green"]),
        "other": st.sampled_from(["red", "green"]),
        "hash": st.binary(min_size=3, max_size=3),
        "maybe": st.none() | st.text() | st.lists(st.integers(-(2**63), 2**63 - 1)),
        "tags": st.lists(st.none() | st.text()),
        "limits": st.dictionaries(st.text(), st.lists(st.integers(-5, 5))),
        "node": NODES,
    }
)


@settings(deadline=None)
@given(RECORDS, st.integers(0, 4))
def test_avro_check_ends_where_the_library_does(record: dict[str, Any], at: int) -> None:
    event = b"\xff" * at + encoded(SCHEMA, record)
    assert CHECK(event, at) == len(event)


@pytest.mark.parametrize(
    ("kind", "event"),
    [
        (["null", "long"], b"\x01"),
        (["null", "long"], b"\x04"),
        (COLOUR, b"\x01"),
        (COLOUR, b"\x03"),
        (COLOUR, b"\x04"),
        ("string", b"\x01"),
        ("long", b"\xff" * 11),
        ("long", b""),
        ({"type": "array", "items": ["null", "long"]}, b"\x02\x01\x00"),
        ({"type": "map", "values": COLOUR}, b"\x02\x02a\x01\x00"),
        ({"type": "array", "items": "long"}, b"\x02\x02"),
    ],
    ids=str,
)
def test_avro_check_refuses_what_is_no_value(kind: Any, event: bytes) -> None:
    with pytest.raises((ValueError, IndexError)):
        check_of(fastavro.parse_schema(kind))(event, 0)


def test_avro_check_reads_blocks_with_their_size() -> None:
    check = check_of({"type": "array", "items": "long"})
    assert check(b"\x03\x04\x02\x04\x02\x06\x00", 0) == 7


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("long", False),
        (["null", "long"], True),
        ({"type": "array", "items": COLOUR}, True),
        ({"type": "map", "values": "string"}, False),
        ({"type": "record", "name": "A", "fields": [{"name": "a", "type": {"type": "long"}}]}, False),
        ({"type": "record", "name": "A", "fields": [{"name": "a", "type": ["null", "int"]}]}, True),
    ],
    ids=str,
)
def test_avro_schema_with_choices_is_known(kind: Any, *, expected: bool) -> None:
    assert has_choices(fastavro.parse_schema(kind)) == expected
