"""JsonFormat: the methods that flows do not bind; tests of `Flow` drive the others."""

from msgspec.structs import replace

from anabranch.operators.core.flows.formats.json_format import JsonFormat
from tests.core.test_avro_format import spec

SPEC = replace(spec("amount", key=("user", "id")), format="json", on_error="default")


def test_json_format_reads_key_and_whole_event() -> None:
    form = JsonFormat(SPEC)
    assert form.read(b'{"amount": 2}') == (2,)
    assert form.read_key(b'{"user": {"id": "u"}}') == "u"
    assert form.decode(b'{"a": [1]}') == {"a": [1]}


def test_json_format_failed_event_gets_defaults_and_code() -> None:
    fields = tuple(replace(field, default=0) for field in SPEC.outputs[:1])
    failed = JsonFormat(replace(SPEC, outputs=fields)).write_failed(b'{"a":1}', "overloaded")
    assert failed == b'{"a":1,"fraud":{"score":0},"inference_error":"overloaded"}'
