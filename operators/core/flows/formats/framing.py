"""Bytes before a framed event, as Confluent's serializers write them: 0, and the number of its schema."""

import struct

from anabranch.schemas.errors import UnreadableRequest

_HEAD = struct.Struct(">bI")
HEAD_BYTES = _HEAD.size


def read_schema_id(event: bytes) -> int:
    """Return the number of an event's schema, or raise UnreadableRequest."""
    if len(event) < HEAD_BYTES or event[0]:
        raise UnreadableRequest(
            f"the event begins with {event[:1].hex() or 'nothing'}, expected 00 and the number of a schema: "
            'send it with a serializer of the registry, or set framing = "none" in the flow'
        )
    number: int = _HEAD.unpack_from(event)[1]
    return number


def write_schema_id(number: int) -> bytes:
    """Return the head of an event."""
    return _HEAD.pack(0, number)


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
