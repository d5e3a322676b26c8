import pytest

from anabranch.operators.core.flows.formats.framing import HEAD_BYTES, read_schema_id, write_schema_id, write_varint
from anabranch.schemas.errors import UnreadableRequest


def test_framing_schema_id_is_behind_a_zero() -> None:
    head = write_schema_id(258)
    assert head == b"\0\0\0\1\2"
    assert len(head) == HEAD_BYTES
    assert read_schema_id(head + b"record") == 258


@pytest.mark.parametrize(("event", "found"), [(b"", "nothing"), (b"\0\0\0\1", "00"), (b'{"n": 1}', "7b")])
def test_framing_event_without_schema_id_is_refused(event: bytes, found: str) -> None:
    with pytest.raises(UnreadableRequest, match=f"begins with {found}, expected 00"):
        read_schema_id(event)


@pytest.mark.parametrize(
    ("value", "encoded"),
    [(0, "00"), (-1, "01"), (1, "02"), (63, "7e"), (64, "8001"), (-65, "8101"), (2**63 - 1, "feffffffffffffffff01")],
)
def test_framing_varint_alternates_signs(value: int, encoded: str) -> None:
    assert write_varint(value).hex() == encoded
