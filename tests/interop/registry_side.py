"""Confluent's own serializers at a real registry.

`produce CONFIG PHASE` sends events, `consume CONFIG PHASES` checks those that flows wrote.
CONFIG: {"bootstrap", "registry", "topics": {"avro" | "avro-header" | "protobuf" | "protobuf-header": [FROM, TO]}}.
Phase 1 has the first schemas, phase 2 newer ones, phase 3 Protobuf whose schema is text, as Java registers it.
"""

import json
import struct
import sys
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.schema_registry.protobuf import ProtobufDeserializer, ProtobufSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from google.protobuf import json_format

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.interop import confluent_side as side

EVENTS, PARTITIONS = 20, 4
HEADER = "__value_schema_id"
PROTOBUF = {"use.deprecated.format": False}
TEXT = """\
syntax = "proto3";
package shop.events;
import "google/protobuf/timestamp.proto";
import "google/protobuf/wrappers.proto";
enum Kind { CARD = 0; CASH = 1; }
message Payment {
  message User { int32 age = 1; string naeme = 2; }
  string id = 1;
  double amount = 2;
  User user = 3;
  repeated float limits = 4;
  google.protobuf.Timestamp created = 5;
  Kind kind = 6;
  map<string, int64> tags = 7;
  bytes picture = 8;
  google.protobuf.DoubleValue price = 9;
  string country = 10;
  // Long enough that a descriptor's sizes are bytes above 127, which are not text.
  string the_remark_of_the_person_at_the_till_who_took_the_payment_and_printed_the_receipt = 200000;
}
"""
#: Readers: an older one without most fields, and a newer one with another.
READERS = [
    {
        "type": "record",
        "name": "Payment",
        "namespace": "shop.events",
        "fields": [{"name": "id", "type": "string"}, side.SCORE, *more],
    }
    for more in ((), ({"name": "currency", "type": "string", "default": "EUR"},))
]


def id_in_header(payload: bytes, context: Any, schema_id: Any) -> bytes:
    """Puts the number there: this registry gives no GUIDs."""
    context.headers.append((HEADER, schema_id.id_to_bytes()))
    return payload


def event_of(number: int, kind: str) -> dict[str, Any]:
    event = dict(side.EVENT if kind.startswith("avro") else side.TEXT_EVENT)
    event |= {"id": str(number), "amount": number + 0.5}
    if number >= EVENTS:
        event["country"] = "FR"
        if kind.startswith("avro"):
            del event["picture"]
            event["shop"] = "s"
    return event


def country_of(number: int, kind: str) -> int:
    """The last element of the model's input: -1 without the field, whose default a reader's schema has."""
    return 1 if number >= EVENTS else 0 if kind == "avro-header" else -1


def fraud_of(number: int, kind: str) -> dict[str, Any]:
    values = [2.0 * each + 2 for each in (number + 0.5, 41, 1.0, country_of(number, kind))]
    return {"score": values[1], "all": values}


def produce(config: dict[str, Any], phase: int) -> None:
    client = SchemaRegistryClient({"url": config["registry"]})
    producer = Producer({"bootstrap.servers": config["bootstrap"]})
    newer = phase > 1
    for kind, (topic, _) in config["topics"].items():
        if phase == 3 and kind != "protobuf":
            continue
        options = {"schema.id.serializer": id_in_header} if kind.endswith("header") else {}
        file = side.event_file(is_newer=newer)
        message = side.class_of(file)
        serializer: Any
        if kind.startswith("avro"):
            serializer = AvroSerializer(client, json.dumps(side.NEWER if newer else side.PAYMENT), conf=options)
        elif phase == 3:
            head = struct.pack(">bIb", 0, client.register_schema(f"{topic}-of-java", Schema(TEXT, "PROTOBUF")), 0)

            def serializer(event: Any, _: Any, head: bytes = head) -> bytes:
                encoded: bytes = event.SerializeToString()
                return head + encoded
        else:
            serializer = ProtobufSerializer(message, client, PROTOBUF | options)
        for number in range((phase - 1) * EVENTS, phase * EVENTS):
            event: Any = event_of(number, kind)
            if not kind.startswith("avro"):
                event = json_format.ParseDict(event, message())
            headers: list[tuple[str, str | bytes | None]] = [("trace", b"\x00\xff")]
            value = serializer(event, SerializationContext(topic, MessageField.VALUE, headers))
            producer.produce(topic, value, f"key {number}", headers=headers)
    producer.flush()


def consume(config: dict[str, Any], phases: int) -> None:
    client = SchemaRegistryClient({"url": config["registry"]})
    for kind, (_, topic) in config["topics"].items():
        count = EVENTS * (phases if kind == "protobuf" else min(phases, 2))
        check = AvroCheck(client) if kind.startswith("avro") else ProtobufCheck()
        consumer = Consumer({"bootstrap.servers": config["bootstrap"], "group.id": uuid.uuid4().hex})
        consumer.assign([TopicPartition(topic, number, 0) for number in range(PARTITIONS)])
        seen: Counter[int] = Counter()
        end = time.monotonic() + 150
        while sum(seen.values()) < count:
            assert time.monotonic() < end, f"{sum(seen.values())} of {count} events in {topic}"
            for record in consumer.consume(100, 1.0):
                assert record.error() is None
                number = int((record.key() or b"").decode().removeprefix("key "))
                headers: Any = record.headers()
                names = [name for name, _ in headers]
                assert names == (["trace", HEADER] if kind.endswith("header") else ["trace"]), names
                context = SerializationContext(topic, MessageField.VALUE, headers)
                check.compare(record.value(), context, event_of(number, kind), fraud_of(number, kind))
                seen[number] += 1
        consumer.close()
        assert seen == Counter(range(count)), (topic, seen)


class AvroCheck:
    """Reads by the writers' schemas, and by those of readers."""

    def __init__(self, client: SchemaRegistryClient) -> None:
        self._by_writer = AvroDeserializer(client)
        self._by_readers = [AvroDeserializer(client, json.dumps(reader)) for reader in READERS]

    def compare(self, value: Any, context: Any, event: dict[str, Any], fraud: dict[str, Any]) -> None:
        found = self._by_writer(value, context)
        assert found == event | {"fraud": fraud}, found
        for read, more in zip(self._by_readers, ({}, {"currency": "EUR"}), strict=True):
            found = read(value, context)
            assert found == {"id": event["id"], "fraud": fraud | {"label": None}} | more, found


class ProtobufCheck:
    """Reads without the registry, which gives no descriptor that it has."""

    def __init__(self) -> None:
        self._message = side.class_of(side.event_file(is_newer=True, is_scored=True))
        self._deserializer = ProtobufDeserializer(self._message, PROTOBUF)

    def compare(self, value: Any, context: Any, event: dict[str, Any], fraud: dict[str, Any]) -> None:
        found = self._deserializer(value, context)
        assert found == json_format.ParseDict(event | {"fraud": fraud}, self._message()), found


if __name__ == "__main__":
    {"produce": produce, "consume": consume}[sys.argv[1]](json.loads(Path(sys.argv[2]).read_text()), int(sys.argv[3]))
