"""EventReader: values of paths, and every malformed event."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.operators.core.flows.event_reader import MISSING, EventReader
from anabranch.operators.core.flows.field_path import parse_path
from anabranch.schemas.errors import AnabranchError, InvalidField, UnreadableRequest
from tests.core.malformed_events import MALFORMED

PATHS = ("amount", "user.age", "items[0].price", "items[-1].price", 'map."a.b"', "user.tags[1]")
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def reader(*paths: str) -> EventReader:
    return EventReader([parse_path(path) for path in paths])


def test_reader_nested_fields_are_found() -> None:
    event = {
        "amount": 1.5,
        "other": {"amount": 2},
        "user": {"age": 41, "tags": ["a", "b"]},
        "items": [{"price": 1}, {"price": 2}],
        "map": {"a.b": None},
    }
    assert list(reader(*PATHS).read(json.dumps(event).encode())) == [1.5, 41, 1, 2, None, "b"]


def test_reader_missing_fields_are_marked() -> None:
    assert list(reader(*PATHS).read(b"{}")) == [MISSING] * 6
    assert list(reader(*PATHS).read(b'{"user": null, "items": [], "map": null}')) == [MISSING] * 6


def test_reader_repeated_key_last_value_counts() -> None:
    assert list(reader("a").read(b'{"a": 1, "b": 3, "a": 2}')) == [2]


def test_reader_of_many_good_events_reads_as_of_each() -> None:
    amounts = reader("amount", "user.age")
    good = [
        b'{"amount": 1, "user": {"age": 2}}',
        '{"amount": 1.5, "user": {"age": null}, "ä": 1}'.encode(),
        b"\xef\xbb\xbf{}",
    ]
    assert amounts.read_good(good[:2]) == [amounts.read(each) for each in good[:2]] == [(1, 2), (1.5, None)]
    for bad in (good[2], b'{"amount": 1}', b'{"amount": 1, "user": null}', *MALFORMED.values()):
        assert amounts.read_good([*good[:2], bad]) is None
    assert reader("items[0]").read_good([b'{"items": [1]}']) is None, "it walks into lists"


def test_reader_path_inside_another_gives_both() -> None:
    event = b'{"user": {"age": 41}}'
    assert list(reader("user", "user.age").read(event)) == [{"age": 41}, 41]
    assert list(reader("user.age", "user").read(event)) == [41, {"age": 41}]


def test_reader_large_integer_is_exact() -> None:
    assert list(reader("n").read(b'{"n": 123456789012345678901234567890}')) == [123456789012345678901234567890]


def test_reader_byte_order_mark_is_skipped() -> None:
    assert list(reader("a").read(b'\xef\xbb\xbf{"a": 1}')) == [1]


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (b"[1]", "the event is a list, expected an object"),
        (b"null", "the event is null, expected an object"),
        (b'{"user": 3}', "field 'user' is a number, expected an object"),
        (b'{"items": {"0": 1}}', "field 'items' is an object, expected a list"),
        (b'{"items": [7]}', r"field 'items\[0\]' is 7, expected an object"),
        (b'{"map": "text"}', "field 'map' is a text, expected an object"),
    ],
)
def test_reader_wrong_type_on_the_way_is_named(event: bytes, message: str) -> None:
    with pytest.raises(InvalidField, match=message):
        reader(*PATHS).read(event)


@pytest.mark.parametrize("name", MALFORMED)
def test_reader_malformed_event_is_refused(name: str) -> None:
    with pytest.raises((UnreadableRequest, InvalidField)):
        reader("amount", "user.age").read(MALFORMED[name])


@pytest.mark.slow
@given(st.dictionaries(st.sampled_from(["amount", "user", "items", "map", "x"]), VALUES))
def test_reader_any_event_is_read_or_refused(event: dict[str, Any]) -> None:
    message = json.dumps(event).encode()
    try:
        found = reader("amount", "user.age").read(message)
    except AnabranchError:
        assert not isinstance(event.get("user"), dict | None)
        return
    expected = [event.get("amount", MISSING), (event.get("user") or {}).get("age", MISSING)]
    assert list(found) == expected
