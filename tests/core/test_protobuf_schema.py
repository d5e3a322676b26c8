"""ProtobufSchema: messages of other files, numbers of new fields, and files that import each other."""

import base64

import pytest
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto

from anabranch.operators.core.flows.event_tree import tree_of
from anabranch.operators.core.flows.formats.protobuf_schema import NewType, ProtobufSchema
from anabranch.operators.core.flows.formats.registered_schemas import RegisteredSchema
from anabranch.schemas.errors import SchemaRefused, UnknownSchema

FLOAT = NewType(FieldDescriptorProto.TYPE_FLOAT, is_repeated=False)


def text(file: FileDescriptorProto) -> str:
    return base64.standard_b64encode(file.SerializeToString()).decode()


def event(*fields: tuple[str, int], syntax: str = "proto3") -> FileDescriptorProto:
    file = FileDescriptorProto(name="event.proto", syntax=syntax, dependency=["money.proto"])
    message = file.message_type.add(name="Event")
    price = message.field.add(name="price", number=1)
    price.type, price.label, price.type_name = price.TYPE_MESSAGE, price.LABEL_OPTIONAL, ".Money"
    for name, number in fields:
        field = message.field.add(name=name, number=number)
        field.type, field.label = field.TYPE_INT32, field.LABEL_OPTIONAL
    return file


MONEY = FileDescriptorProto(name="money.proto", syntax="proto3")
MONEY.message_type.add(name="Money")


def schema(file: FileDescriptorProto, *others: FileDescriptorProto) -> ProtobufSchema:
    dependencies = tuple((other.name, text(other)) for other in others)
    return ProtobufSchema(RegisteredSchema(text(file), (), dependencies, "PROTOBUF"), (0,), "schema 1")


def number_of_score(made: ProtobufSchema) -> int:
    _, message = made.extended(tree_of([(("score",), FLOAT)]))
    return int(message.DESCRIPTOR.fields_by_name["score"].number)


def test_protobuf_schema_imports_its_dependencies() -> None:
    made = schema(event(), MONEY)
    price = made.descriptor.fields_by_name["price"].message_type
    assert price is not None
    assert price.full_name == "Money"
    with pytest.raises(UnknownSchema, match="money"):
        schema(event())
    with pytest.raises(SchemaRefused, match="field 'price' of schema 1 is not a message of the same file"):
        made.extended(tree_of([(("price", "score"), FLOAT)]))


def test_protobuf_new_numbers_stay_when_a_schema_grows() -> None:
    first = number_of_score(schema(event(("a", 2)), MONEY))
    assert first == number_of_score(schema(event(("a", 2), ("b", 3)), MONEY)) >= 100_000
    with pytest.raises(SchemaRefused, match=f"has the number {first}, as another field"):
        number_of_score(schema(event(("b", first)), MONEY))
    assert number_of_score(schema(event(syntax="proto2"), MONEY)) == first


def test_protobuf_files_that_import_each_other_are_refused() -> None:
    money = FileDescriptorProto()
    money.CopyFrom(MONEY)
    money.dependency.append("event.proto")
    with pytest.raises(UnknownSchema):
        schema(event(), money)
