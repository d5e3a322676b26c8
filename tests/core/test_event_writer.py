"""EventWriter: fields put in, all other bytes as before."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.operators.core.flows.event_writer import EventWriter
from anabranch.schemas.errors import InvalidField
from tests.core.test_event_reader import VALUES

WRITER = EventWriter([("fraud", "score"), ("fraud", "label"), ("z",)])
NEW = [b"0.1", b'"a"', b"[1,2]"]


@pytest.mark.parametrize(
    ("event", "written"),
    [
        (b"{}", b'{"fraud":{"score":0.1,"label":"a"},"z":[1,2]}'),
        (b" { } \n", b' { "fraud":{"score":0.1,"label":"a"},"z":[1,2]} \n'),
        (
            b'{"a": 1.50, "a" :12345678901234567890,"e":1E5}\r\n',
            b'{"a": 1.50, "a" :12345678901234567890,"e":1E5,"fraud":{"score":0.1,"label":"a"},"z":[1,2]}\r\n',
        ),
        (b'{"fraud" : null }', b'{"fraud" : {"score":0.1,"label":"a"} ,"z":[1,2]}'),
        (
            b'{"fraud":{"score": 9 , "x":{"score":1}},"z":"}"}',
            b'{"fraud":{"score": 0.1 , "x":{"score":1},"label":"a"},"z":[1,2]}',
        ),
        (
            b'{"n":{"fraud":1},"t":"\\"fraud\\":{","k":"z"}',
            b'{"n":{"fraud":1},"t":"\\"fraud\\":{","k":"z","fraud":{"score":0.1,"label":"a"},"z":[1,2]}',
        ),
        (b'{"z":0,"fraud":{},"z":[1] }', b'{"z":0,"fraud":{"score":0.1,"label":"a"},"z":[1,2] }'),
        (b'{"fr\\u0061ud":{"q":1}}', b'{"fr\\u0061ud":{"q":1,"score":0.1,"label":"a"},"z":[1,2]}'),
        (b'{"fraud":{"sc\\u006fre":1},"z":{}}', b'{"fraud":{"sc\\u006fre":0.1,"label":"a"},"z":[1,2]}'),
        ('{"é":"\u2028"}'.encode(), '{"é":"\u2028","fraud":{"score":0.1,"label":"a"},"z":[1,2]}'.encode()),
    ],
)
def test_writer_of_any_layout_copies_other_bytes(event: bytes, written: bytes) -> None:
    assert WRITER.put(event, NEW) == written


@pytest.mark.parametrize("old", [b"3", b'"a"', b"[{}]", b"true"])
def test_writer_path_through_another_value_is_refused(old: bytes) -> None:
    with pytest.raises(InvalidField, match="field 'fraud' of the event is not an object"):
        WRITER.put(b'{"fraud": ' + old + b"}", NEW)


def expected(event: dict[str, Any]) -> dict[str, Any]:
    fraud = event.get("fraud") or {}
    return {**event, "fraud": {**fraud, "score": 0.1, "label": "a"}, "z": [1, 2]}


@pytest.mark.slow
@given(st.dictionaries(st.text() | st.sampled_from(["fraud", "z"]), VALUES), st.booleans(), st.sampled_from([None, 2]))
def test_writer_any_event_gains_only_the_fields(event: dict[str, Any], ascii_only: bool, indent: int | None) -> None:
    if not isinstance(event.get("fraud"), dict | None):
        del event["fraud"]
    message = json.dumps(event, ensure_ascii=ascii_only, indent=indent).encode(errors="replace")
    event = json.loads(message)
    written = json.loads(WRITER.put(message, NEW))
    assert written == expected(event)
    assert [key for key in written if key in event] == list(event)
