"""Reply address, key and headers of a Kafka record, which travel with its request.

Little-endian, as in `CarriedFields.java` and `RecordWriter.java`:

    partition: i32 (-1 for any, -2 if unreadable), topic size: u16, key size: i32 (-1 for none), topic, key,
    (name size: u16, value size: i32 (-1 for null), name, value) each

Partition -3 marks an event: its topic, or `TIMESTAMP/TO` in an answer.
"""

import struct
from collections.abc import Iterable, Sequence
from zlib import crc32

import msgspec

from anabranch.schemas.errors import ReplyRefused
from anabranch.schemas.limits import MAX_REPLY_TOPICS
from anabranch.schemas.records import Source

ANY_PARTITION = -1
_UNREADABLE = -2
EVENT = -3
_EVENT_MARK = struct.pack("<i", EVENT)
#: Of partitions; flows use those above.
PARTITION_BITS = 17
#: Mask of a partition's number.
PARTITIONS = (1 << PARTITION_BITS) - 1
_MAX_FLOW = (1 << (31 - PARTITION_BITS)) - 1
_HEAD = struct.Struct("<iHi")
_HEADER = struct.Struct("<Hi")
_KEY_SIZE_AT = 6


class Carried(msgspec.Struct, frozen=True):
    """The fields of one record."""

    topic: str = ""
    partition: int = ANY_PARTITION
    key: bytes | None = None
    headers: tuple[tuple[str, bytes | None], ...] = ()

    def encode(self) -> bytes:
        """Encode the fields."""
        topic, key = self.topic.encode(), self.key
        parts = [_HEAD.pack(self.partition, len(topic), -1 if key is None else len(key)), topic, key or b""]
        for name, value in self.headers:
            encoded = name.encode()
            parts += (_HEADER.pack(len(encoded), -1 if value is None else len(value)), encoded, value or b"")
        return b"".join(parts)


def decode_carried(encoded: bytes) -> Carried:
    """Decode `Source.carried`, which may be empty; raise struct.error or UnicodeDecodeError."""
    if not encoded:
        return Carried()
    partition, topic_size, key_size = _HEAD.unpack_from(encoded)
    key_at = _HEAD.size + topic_size
    at = key_at + max(0, key_size)
    key = encoded[key_at:at] if key_size >= 0 else None
    headers = []
    while at < len(encoded):
        name_size, value_size = _HEADER.unpack_from(encoded, at)
        name_at = at + _HEADER.size
        value_at = name_at + name_size
        at = value_at + max(0, value_size)
        headers.append((encoded[name_at:value_at].decode(), encoded[value_at:at] if value_size >= 0 else None))
    return Carried(encoded[_HEAD.size : key_at].decode(), partition, key, tuple(headers))


def header_of(encoded: bytes, name: str) -> bytes | None:
    """Return the first header of a name."""
    if name.encode() not in encoded:
        return None
    return next((value for found, value in decode_carried(encoded).headers if found == name), None)


def with_header(encoded: bytes, name: str, value: bytes) -> bytes:
    """Replace all headers of a name."""
    carried = decode_carried(encoded)
    at = next(at for at, (found, _) in enumerate(carried.headers) if found == name)
    headers = [each for each in carried.headers if each[0] != name]
    headers.insert(at, (name, value))
    return msgspec.structs.replace(
        carried,
        headers=tuple(headers),
    ).encode()


def without_address(encoded: bytes) -> bytes:
    """Remove topic and partition."""
    _, topic_size, key_size = _HEAD.unpack_from(encoded)
    return _HEAD.pack(ANY_PARTITION, 0, key_size) + encoded[_HEAD.size + topic_size :]


def is_event(carried: bytes) -> bool:
    """Return True for an event."""
    return carried.startswith(_EVENT_MARK)


def topic_bytes(carried: bytes) -> bytes:
    """Return the topic."""
    _, topic_size, _ = _HEAD.unpack_from(carried)
    return carried[_HEAD.size : _HEAD.size + topic_size]


def is_of_one_topic(carried: Sequence[bytes]) -> bool:
    """Tell events of one topic."""
    first = carried[0]
    if not is_event(first):
        return False
    topic, start = topic_bytes(first), first[:_KEY_SIZE_AT]
    # Most keys are of one size.
    head = first[: _HEAD.size + len(topic)]
    others = [each for each in carried if not each.startswith(head)]
    return all(each.startswith(start) and each.startswith(topic, _HEAD.size) for each in others)


def event_topic(carried: bytes) -> str:
    """Return the topic."""
    return topic_bytes(carried).decode()


def address_event(carried: bytes, to: bytes, timestamp_ms: int, key: bytes | None) -> bytes:
    """Address an outgoing event, with a new key if given."""
    _, topic_size, key_size = _HEAD.unpack_from(carried)
    rest = _HEAD.size + topic_size
    address = b"%d/%b" % (timestamp_ms, to)
    if key is None:
        return b"%b%b%b" % (_HEAD.pack(EVENT, len(address), key_size), address, carried[rest:])
    rest, key_size = rest + max(0, key_size), len(key)
    return b"".join([_HEAD.pack(EVENT, len(address), key_size), address, key, carried[rest:]])


class Addresses:
    """Addresses events as `address_event`."""

    def __init__(self, to: bytes) -> None:
        self._to = to
        self._timestamp_ms = -1
        #: Of the last event.
        self._head, self._new_head = b"?", b""

    def of(self, carried: bytes, timestamp_ms: int) -> bytes:
        """Address an event."""
        if timestamp_ms != self._timestamp_ms or not carried.startswith(self._head):
            _, topic_size, key_size = _HEAD.unpack_from(carried)
            address = b"%d/%b" % (timestamp_ms, self._to)
            self._timestamp_ms, self._head = timestamp_ms, carried[: _HEAD.size + topic_size]
            self._new_head = _HEAD.pack(EVENT, len(address), key_size) + address
        return self._new_head + carried[len(self._head) :]


def flow_number(topic: str) -> int:
    """Return the flow's number in partitions, which state holds."""
    return crc32(topic.encode()) % _MAX_FLOW + 1


def event_id(topic: str, source: Source) -> str:
    """Return the id of an event."""
    return f"{topic}-{source.partition & PARTITIONS}-{source.offset}"


def event_source(source: Source) -> Source:
    """Return the source within its topic."""
    return Source(source.partition & PARTITIONS, source.offset, source.timestamp_ms)


class ReplyTopics:
    """Topics that requests may name for answers; `NAME*` allows all that start so."""

    def __init__(self, allowed: Iterable[str]) -> None:
        self._allowed = tuple(allowed)
        self._seen = {b""}

    def check(self, carried: bytes) -> None:
        """Raise `ReplyRefused` for a topic that is not allowed, or an unreadable partition."""
        partition, topic_size, _ = _HEAD.unpack_from(carried)
        if partition <= _UNREADABLE:
            raise ReplyRefused(
                "the reply address is unreadable: send reply-topic as a topic's name, and reply-partition as a number "
                "in text"
            )
        topic = carried[_HEAD.size : _HEAD.size + topic_size]
        if topic in self._seen:
            return
        name = topic.decode("utf-8", "replace")
        if not any(name.startswith(each[:-1]) if each.endswith("*") else name == each for each in self._allowed):
            raise ReplyRefused(
                f"the reply topic {name!r} is not allowed, expected one of {', '.join(self._allowed) or 'none'}: "
                "name one of them, or add it to kafka.reply_topics"
            )
        if len(self._seen) < MAX_REPLY_TOPICS:
            self._seen.add(topic)
