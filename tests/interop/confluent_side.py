"""Events by Confluent's own serializers: `golden FOLDER` writes them, `check FOLDER` reads the ones that flows wrote.

`by_guid FOLDER URL` and `check_by_guid FOLDER URL` do the same with a registry that names schemas by GUID, in a header.

A line of a file: {"name", "schemas": texts by number from 1, "event": hex, "scored_schema": text, "scored": hex}.
"""

import base64
import datetime as dt
import json
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any
from zlib import crc32

from confluent_kafka.schema_registry import Schema, SchemaRegistryClient, header_schema_id_serializer
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.schema_registry.protobuf import ProtobufDeserializer, ProtobufSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from google.protobuf import descriptor_pool, json_format, message_factory, timestamp_pb2, wrappers_pb2
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto

USER = {
    "type": "record",
    "name": "User",
    "fields": [{"name": "age", "type": ["null", "int"]}, {"name": "näme".replace("ä", "ae"), "type": "string"}],
}
PAYMENT: dict[str, Any] = {
    "type": "record",
    "name": "Payment",
    "namespace": "shop.events",
    "doc": "kept",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "amount", "type": "double"},
        {"name": "user", "type": ["null", USER], "default": None},
        {"name": "limits", "type": {"type": "array", "items": "float"}},
        {"name": "created", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}},
        {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["CARD", "CASH"]}},
        {"name": "tags", "type": {"type": "map", "values": "long"}},
        {"name": "picture", "type": "bytes"},
    ],
}
NEWER = {
    **PAYMENT,
    "fields": [
        {"name": "country", "type": "string", "default": "DE"},
        *[field for field in PAYMENT["fields"] if field["name"] != "picture"],
        {"name": "shop", "type": ["null", "string"], "default": None},
    ],
}
SCORE = {
    "name": "fraud",
    "type": [
        "null",
        {
            "type": "record",
            "name": "Payment_fraud",
            "fields": [
                {"name": "score", "type": ["null", "float"], "default": None},
                {"name": "all", "type": ["null", {"type": "array", "items": "float"}], "default": None},
                {"name": "label", "type": ["null", "string"], "default": None},
            ],
        },
    ],
    "default": None,
}
EVENT = {
    "id": "a",
    "amount": 9.5,
    "user": {"age": 41, "naeme": "Jürgen €"},
    "limits": [1.0, 2.5],
    "created": dt.datetime(2026, 11, 29, 12, 0, tzinfo=dt.UTC),
    "price": Decimal("-12.34"),
    "kind": "CASH",
    "tags": {"x.y": 7},
    "picture": b"\x00\xff\x10",
}
FRAUD = {"score": 0.25, "all": [0.75, 0.25], "label": "bad"}


def serialized(client: SchemaRegistryClient, topic: str, schema: dict[str, Any], event: dict[str, Any]) -> str:
    serializer = AvroSerializer(client, json.dumps(schema))
    value: bytes = serializer(event, SerializationContext(topic, MessageField.VALUE))
    return value.hex()


def golden(folder: Path) -> None:
    golden_protobuf(folder / "protobuf.jsonl")
    with (folder / "avro.jsonl").open("w") as file:
        for name, schemas, event in (
            ("first", [PAYMENT], EVENT),
            ("null user", [PAYMENT], EVENT | {"user": None}),
            ("evolved", [PAYMENT, NEWER], EVENT | {"country": "FR", "shop": "s"}),
        ):
            client = SchemaRegistryClient.new_client({"url": f"mock://{name.replace(' ', '-')}"})
            for schema in schemas:
                sent = serialized(client, "payments", schema, event)
            scored_schema = {**schemas[-1], "fields": [*schemas[-1]["fields"], SCORE]}
            scored = serialized(client, "scored", scored_schema, event | {"fraud": FRAUD})
            texts = [json.dumps(schema) for schema in schemas]
            line = {"name": name, "schemas": texts, "event": sent, "scored_schema": json.dumps(scored_schema)}
            file.write(json.dumps(line | {"scored": scored}) + "\n")


KINDS = FieldDescriptorProto
FIELDS: dict[str, list[tuple[Any, ...]]] = {
    "Payment": [
        ("id", 1, KINDS.TYPE_STRING),
        ("amount", 2, KINDS.TYPE_DOUBLE),
        ("user", 3, KINDS.TYPE_MESSAGE, ".shop.events.Payment.User"),
        ("limits", 4, KINDS.TYPE_FLOAT),
        ("created", 5, KINDS.TYPE_MESSAGE, ".google.protobuf.Timestamp"),
        ("kind", 6, KINDS.TYPE_ENUM, ".shop.events.Kind"),
        ("tags", 7, KINDS.TYPE_MESSAGE, ".shop.events.Payment.TagsEntry"),
        ("picture", 8, KINDS.TYPE_BYTES),
        ("price", 9, KINDS.TYPE_MESSAGE, ".google.protobuf.DoubleValue"),
    ],
    "User": [("age", 1, KINDS.TYPE_INT32), ("naeme", 2, KINDS.TYPE_STRING)],
    "TagsEntry": [("key", 1, KINDS.TYPE_STRING), ("value", 2, KINDS.TYPE_INT64)],
    "Fraud": [("score", 0, KINDS.TYPE_FLOAT), ("all", 0, KINDS.TYPE_FLOAT), ("label", 0, KINDS.TYPE_STRING)],
}
TEXT_EVENT = {
    "id": "a",
    "amount": 9.5,
    "user": {"age": 41, "naeme": "Jürgen €"},
    "limits": [1.0, 2.5],
    "created": "2026-11-29T12:00:00Z",
    "kind": "CASH",
    "tags": {"x.y": 7},
    "picture": "AP8Q",
    "price": -12.34,
}


def number_of(key: str) -> int:
    return 100_000 + crc32(key.encode()) % 400_000_000


def add_fields(message: DescriptorProto, name: str, fields: list[tuple[Any, ...]]) -> None:
    message.name = name
    for key, number, kind, *type_name in fields:
        is_list = key in ("limits", "tags", "all")
        label = KINDS.LABEL_REPEATED if is_list else KINDS.LABEL_OPTIONAL
        field = message.field.add(name=key, number=number or number_of(key), type=kind, label=label)
        if type_name:
            field.type_name = type_name[0]
        if not number and not is_list:
            field.proto3_optional = True
            field.oneof_index = len(message.oneof_decl)
            message.oneof_decl.add(name=f"_{key}")


def event_file(*, is_newer: bool = False, is_scored: bool = False, is_nested: bool = False) -> FileDescriptorProto:
    file = FileDescriptorProto(name="event.proto", package="shop.events", syntax="proto3")
    file.dependency.extend(["google/protobuf/timestamp.proto", "google/protobuf/wrappers.proto"])
    kinds = file.enum_type.add(name="Kind")
    kinds.value.add(name="CARD", number=0)
    kinds.value.add(name="CASH", number=1)
    if is_nested:
        file.message_type.add(name="First")
    payment = file.message_type.add()
    newer = [("country", 10, KINDS.TYPE_STRING)] if is_newer else []
    add_fields(payment, "Payment", FIELDS["Payment"] + newer)
    add_fields(payment.nested_type.add(), "User", FIELDS["User"])
    add_fields(payment.nested_type.add(), "TagsEntry", FIELDS["TagsEntry"])
    payment.nested_type[1].options.map_entry = True
    if is_scored:
        add_fields(payment.nested_type.add(), "Fraud", FIELDS["Fraud"])
        name = ".shop.events.Payment.Fraud"
        payment.field.add(
            name="fraud", number=number_of("fraud"), type=KINDS.TYPE_MESSAGE, label=KINDS.LABEL_OPTIONAL, type_name=name
        )
    return file


def class_of(file: FileDescriptorProto) -> Any:
    pool = descriptor_pool.DescriptorPool()
    for module in (timestamp_pb2, wrappers_pb2):
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("shop.events.Payment"))


def text_of(file: FileDescriptorProto) -> str:
    return base64.standard_b64encode(file.SerializeToString(deterministic=True)).decode()


def protobuf_serialized(client: SchemaRegistryClient, topic: str, file: FileDescriptorProto, event: Any) -> str:
    kind = class_of(file)
    serializer = ProtobufSerializer(kind, client, {"use.deprecated.format": False, "skip.known.types": True})
    message = json_format.ParseDict(event, kind())
    value: bytes = serializer(message, SerializationContext(topic, MessageField.VALUE))
    return value.hex()


def golden_protobuf(path: Path) -> None:
    with path.open("w") as lines:
        for name, options, event in (
            ("first", {}, TEXT_EVENT),
            ("no user", {}, {key: value for key, value in TEXT_EVENT.items() if key not in ("user", "amount")}),
            ("second message", {"is_nested": True}, TEXT_EVENT),
            ("evolved", {"is_newer": True}, {**TEXT_EVENT, "country": "FR"}),
        ):
            client = SchemaRegistryClient.new_client({"url": f"mock://protobuf-{name.replace(' ', '-')}"})
            file, scored = event_file(**options), event_file(**options, is_scored=True)
            line = {"name": name, "schemas": [text_of(file)], "scored_schema": text_of(scored)}
            line["event"] = protobuf_serialized(client, "payments", file, event)
            line["scored"] = protobuf_serialized(client, "scored", scored, {**event, "fraud": FRAUD})
            lines.write(json.dumps(line) + "\n")


def check(folder: Path) -> None:
    for number, text in enumerate((folder / "avro.jsonl").read_text().splitlines()):
        case = json.loads(text)
        client = SchemaRegistryClient.new_client({"url": f"mock://check-{number}"})
        for schema in [*case["schemas"], case["scored_schema"]]:
            client.register_schema("any", Schema(schema, "AVRO"))
        context = SerializationContext("scored", MessageField.VALUE)
        deserializer = AvroDeserializer(client)
        event = deserializer(bytes.fromhex(case["event"]), context)
        assert deserializer(bytes.fromhex(case["scored"]), context) == event | {"fraud": FRAUD}
    for text in (folder / "protobuf.jsonl").read_text().splitlines():
        case = json.loads(text)
        file = FileDescriptorProto.FromString(base64.b64decode(case["scored_schema"]))
        deserializer = ProtobufDeserializer(class_of(file), {"use.deprecated.format": False})
        context = SerializationContext("scored", MessageField.VALUE)
        message = deserializer(bytes.fromhex(case["scored"]), context)
        assert message == deserializer(bytes.fromhex(case["golden"]), context)
        assert json_format.MessageToDict(message.fraud) == FRAUD


def by_guid(folder: Path, url: str) -> None:
    client = SchemaRegistryClient({"url": url})
    options = {"schema.id.serializer": header_schema_id_serializer}
    kind = class_of(event_file(is_nested=True))
    avro = AvroSerializer(client, json.dumps(PAYMENT), conf=options)
    protobuf = ProtobufSerializer(kind, client, {"use.deprecated.format": False} | options)
    sent: list[tuple[Any, Any]] = [(avro, EVENT), (protobuf, json_format.ParseDict(TEXT_EVENT, kind()))]
    with (folder / "events.jsonl").open("w") as lines:
        for serializer, event in sent:
            headers: Any = []
            value: Any = serializer(event, SerializationContext("payments", MessageField.VALUE, headers))
            [(name, head)] = headers
            lines.write(json.dumps({"event": value.hex(), "header": name, "head": head.hex()}) + "\n")


def check_by_guid(folder: Path, url: str) -> None:
    client = SchemaRegistryClient({"url": url})
    avro, protobuf = (json.loads(line) for line in (folder / "scored.jsonl").read_text().splitlines())
    contexts = [
        SerializationContext("scored", MessageField.VALUE, [(each["header"], bytes.fromhex(each["head"]))])
        for each in (avro, protobuf)
    ]
    assert AvroDeserializer(client)(bytes.fromhex(avro["event"]), contexts[0]) == EVENT | {"fraud": FRAUD}
    kind = class_of(event_file(is_nested=True, is_scored=True))
    # With the registry: it asks for the writer's schema.
    deserializer = ProtobufDeserializer(kind, {"use.deprecated.format": False}, client)
    found = deserializer(bytes.fromhex(protobuf["event"]), contexts[1])
    assert found == json_format.ParseDict(TEXT_EVENT | {"fraud": FRAUD}, kind())


if __name__ == "__main__":
    commands: dict[str, Any] = {"golden": golden, "check": check, "by_guid": by_guid, "check_by_guid": check_by_guid}
    commands[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
