import pytest

from anabranch.operators.core.flows.formats.framing import (
    HEADER,
    read_schema_id,
    with_head,
    without_head,
    write_schema_id,
    write_varint,
)
from anabranch.operators.core.flows.formats.registered_schemas import Registered, SchemaId
from anabranch.schemas.errors import UnreadableRequest
from anabranch.schemas.wire.carried import Carried, decode_carried

GUID = "12345678-9abc-def0-1234-56789abcdef0"
BY_GUID = b"\1" + bytes.fromhex(GUID.replace("-", ""))


@pytest.mark.parametrize(("name", "head"), [(258, b"\0\0\0\1\2"), (GUID, BY_GUID)])
def test_framing_names_of_schemas_are_read_and_written(name: SchemaId, head: bytes) -> None:
    assert write_schema_id(Registered(258, GUID), name) == head
    assert read_schema_id(head + b"record") == (name, len(head))


def test_framing_without_guid_has_the_number() -> None:
    assert write_schema_id(Registered(258), GUID) == b"\0\0\0\1\2"


@pytest.mark.parametrize(
    ("event", "found"), [(b"", "nothing"), (b"\0\0\0\1", "00"), (b'{"n": 1}', "7b"), (BY_GUID[:16], "01")]
)
def test_framing_event_without_schema_id_is_refused(event: bytes, found: str) -> None:
    with pytest.raises(UnreadableRequest, match=f"begins with {found}, expected 00"):
        read_schema_id(event)


def carried(*heads: bytes | None) -> bytes:
    others = (("a", HEADER.encode()), ("none", None))
    return Carried("t", 1, b"k", (others[0], *((HEADER, head) for head in heads), others[1])).encode()


@pytest.mark.parametrize("indexes", [b"", b"\0", b"\4\2\2"])
@pytest.mark.parametrize("head", [b"\0\0\0\0\7", BY_GUID])
def test_framing_head_in_a_header_stays_there(head: bytes, indexes: bytes) -> None:
    head += indexes
    has_indexes = bool(indexes)
    assert with_head(b"record", carried(head, b"second"), has_indexes=has_indexes) == head + b"record"
    new = b"\0\0\0\0\x09" + indexes
    value, fields = without_head(new + b"scored", carried(head, b"second"), has_indexes=has_indexes)
    assert (value, fields) == (b"scored", carried(new))
    assert decode_carried(fields).key == b"k"


@pytest.mark.parametrize("heads", [(), (None,), (b"",)])
def test_framing_without_header_is_in_the_value(heads: tuple[bytes | None, ...]) -> None:
    fields = carried(*heads)
    assert with_head(b"any", fields, has_indexes=False) == b"any"
    assert without_head(b"any", fields, has_indexes=False) == (b"any", fields)


@pytest.mark.parametrize("head", [b"\2", b"\0\0\0\1", b"\0\0\0\0\7x", BY_GUID + b"\0"])
def test_framing_header_that_is_no_head_is_refused(head: bytes) -> None:
    with pytest.raises(UnreadableRequest):
        with_head(b"record", carried(head), has_indexes=False)


@pytest.mark.parametrize(
    ("value", "encoded"),
    [(0, "00"), (-1, "01"), (1, "02"), (63, "7e"), (64, "8001"), (-65, "8101"), (2**63 - 1, "feffffffffffffffff01")],
)
def test_framing_varint_alternates_signs(value: int, encoded: str) -> None:
    assert write_varint(value).hex() == encoded
