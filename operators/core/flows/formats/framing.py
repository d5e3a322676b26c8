"""Head of a framed event, as Confluent's serializers write it; a header may hold it instead.

    0, number of the schema: u32        or  1, GUID of the schema: 16 bytes

Behind it, Protobuf has the indexes of the message: their count and each as a varint, 0 alone for the first message.
"""

import struct
from uuid import UUID

from anabranch.operators.core.flows.formats.registered_schemas import Registered, SchemaId
from anabranch.schemas.errors import UnreadableRequest
from anabranch.schemas.limits import MAX_MESSAGE_INDEXES
from anabranch.schemas.wire.carried import header_of, with_header

_NUMBER = struct.Struct(">bI")
_GUID = struct.Struct(">b16s")
#: Header of a record whose value has no head.
HEADER = "__value_schema_id"


def read_schema_id(event: bytes) -> tuple[SchemaId, int]:
    """Return the schema of an event, and the end of its name; raise UnreadableRequest."""
    if event[:1] == b"\0" and len(event) >= _NUMBER.size:
        return _NUMBER.unpack_from(event)[1], _NUMBER.size
    if event[:1] == b"\1" and len(event) >= _GUID.size:
        return str(UUID(bytes=_GUID.unpack_from(event)[1])), _GUID.size
    raise UnreadableRequest(
        f"the event begins with {event[:1].hex() or 'nothing'}, expected 00 and the number of a schema: "
        'send it with a serializer of the registry, or set framing = "none" in the flow'
    )


def write_schema_id(named: Registered, like: SchemaId = 0) -> bytes:
    """Return the head of an event, with the GUID if there is one and `like` is one."""
    if isinstance(like, str) and named.guid:
        return _GUID.pack(1, UUID(named.guid).bytes)
    return _NUMBER.pack(0, named.number)


def with_head(event: bytes, carried: bytes, *, has_indexes: bool) -> bytes:
    """Return an event with its head, perhaps from the header.

    Raises:
        UnreadableRequest: The header is not a head.
    """
    head = header_of(carried, HEADER)
    if not head:
        return event
    size = _head_bytes(head, has_indexes=has_indexes)
    if size != len(head):
        raise UnreadableRequest(
            f"header {HEADER} has {len(head) - size} bytes behind the schema's name: send it with a serializer of the "
            "registry"
        )
    return head + event


def without_head(event: bytes, carried: bytes, *, has_indexes: bool) -> tuple[bytes, bytes]:
    """Put the head of an outgoing event where that of its origin was."""
    if not header_of(carried, HEADER):
        return event, carried
    size = _head_bytes(event, has_indexes=has_indexes)
    return event[size:], with_header(carried, HEADER, event[:size])


def _head_bytes(event: bytes, *, has_indexes: bool) -> int:
    _, end = read_schema_id(event)
    return read_indexes(event, end)[1] if has_indexes else end


def read_indexes(event: bytes, at: int) -> tuple[tuple[int, ...], int]:
    """Read the indexes of a message, as zigzag varints behind their count."""
    count, at = _read_index(event, at)
    if not count:
        return (0,), at
    if not 0 < count <= MAX_MESSAGE_INDEXES:
        raise UnreadableRequest(f"the event has {count} message indexes: send it with a serializer of the registry")
    indexes = []
    for _ in range(count):
        index, at = _read_index(event, at)
        indexes.append(index)
    if min(indexes) < 0:
        raise UnreadableRequest("the event has a negative message index: send it with a serializer of the registry")
    return tuple(indexes), at


def _read_index(event: bytes, at: int) -> tuple[int, int]:
    try:
        return read_varint(event, at, most_bytes=5)
    except (IndexError, ValueError):
        raise UnreadableRequest(
            "the event ends within its message indexes: send it with a serializer of the registry"
        ) from None


def read_varint(event: bytes, at: int, most_bytes: int = 10) -> tuple[int, int]:
    """Return a zigzag varint and its end; raise IndexError or ValueError."""
    number = shift = 0
    while True:
        byte = event[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number >> 1 ^ -(number & 1), at
        shift += 7
        if shift >= 7 * most_bytes:
            raise ValueError(f"a number of more than {most_bytes} bytes")


def write_varint(value: int) -> bytes:
    """Encode an integer of 64 bits as a zigzag varint."""
    number = value << 1 if value >= 0 else ~(value << 1)
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
