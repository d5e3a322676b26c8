"""Protobuf schemas of events: descriptors of files, and those of outgoing events with further fields."""

import base64
import binascii
from collections.abc import Sequence
from typing import Any, NamedTuple
from zlib import crc32

from google.protobuf import (
    any_pb2,
    descriptor_pool,
    duration_pb2,
    message_factory,
    struct_pb2,
    timestamp_pb2,
    wrappers_pb2,
)
from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet
from google.protobuf.message import DecodeError, Message

from anabranch.operators.core.flows.event_tree import NewField, Tree
from anabranch.operators.core.flows.field_path import format_path
from anabranch.operators.core.flows.formats.registered_schemas import RegisteredSchema
from anabranch.schemas.errors import SchemaRefused, UnknownSchema

_WELL_KNOWN = {
    module.DESCRIPTOR.name: module.DESCRIPTOR.serialized_pb
    for module in (any_pb2, duration_pb2, struct_pb2, timestamp_pb2, wrappers_pb2)
}
#: New fields have numbers from their names, far above those that people give: they stay when a schema grows.
_FIRST_NUMBER = 100_000
_NUMBERS = 400_000_000
_OPTIONAL, _REPEATED = FieldDescriptorProto.LABEL_OPTIONAL, FieldDescriptorProto.LABEL_REPEATED


class NewType(NamedTuple):
    """Type of a new field."""

    number: int
    is_repeated: bool


class ProtobufSchema:
    """A file with the message of an event.

    Args:
        indexes: Of the message in the file, and of those nested in it.

    Raises:
        UnknownSchema: There is no such message.
    """

    def __init__(self, registered: RegisteredSchema, indexes: Sequence[int], name: str) -> None:
        self.name = name
        self.indexes = tuple(indexes)
        self.registered = registered
        try:
            self._others = [_file(text, other) for other, text in registered.dependencies]
            self.file = _file(registered.text)
            self.message = _class_of(self.file, self._others, self.indexes)
        except (binascii.Error, DecodeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise UnknownSchema(
                f"{name} is not a Protobuf descriptor with this message: {type(error).__name__}: {error}: correct it"
            ) from None

    @property
    def descriptor(self) -> Descriptor:
        """The message."""
        found: Any = self.message.DESCRIPTOR
        descriptor: Descriptor = found
        return descriptor

    def extended(self, tree: Tree) -> tuple[RegisteredSchema, type[Message]]:
        """Return the schema and the message of events with further fields; raise SchemaRefused."""
        file = FileDescriptorProto()
        file.CopyFrom(self.file)
        message = _proto_at(file, self.indexes)
        self._extend(file, message, f".{self.descriptor.full_name}", tree, ())
        kept = self.registered
        schema = RegisteredSchema(_text(file), kept.references, kept.dependencies, "PROTOBUF")
        return schema, _class_of(file, self._others, self.indexes)

    def _extend(
        self, file: FileDescriptorProto, message: DescriptorProto, full_name: str, tree: Tree, path: tuple[str, ...]
    ) -> None:
        fields = {field.name: field for field in message.field}
        for key, below in tree.items():
            at, field = (*path, key), fields.get(key)
            if isinstance(below, NewField):
                if field is None:
                    self._add(file, message, key, below.type, at)
                elif (field.type, field.label == _REPEATED) != tuple(below.type) or field.label == _REPEATED:
                    raise SchemaRefused(
                        f"field {format_path(at)!r} of {self.name} exists with another type, or is repeated: put the "
                        "flow's outputs elsewhere"
                    )
                continue
            if field is None:
                nested = message.nested_type.add(name=_free_name(message, key))
                field = self._add(file, message, key, NewType(FieldDescriptorProto.TYPE_MESSAGE, False), at)
                field.type_name = f"{full_name}.{nested.name}"
            inner, inner_name = self._message_of(file, field, at)
            self._extend(file, inner, inner_name, below, at)

    def _add(
        self, file: FileDescriptorProto, message: DescriptorProto, key: str, kind: NewType, path: tuple[str, ...]
    ) -> FieldDescriptorProto:
        number = _FIRST_NUMBER + crc32(key.encode()) % _NUMBERS
        if any(field.number == number for field in message.field):
            raise SchemaRefused(f"field {format_path(path)!r} has the number {number}, as another field: rename it")
        label = _REPEATED if kind.is_repeated else _OPTIONAL
        field = message.field.add(name=key, number=number, type=kind.number, label=label)
        is_scalar = kind.number != FieldDescriptorProto.TYPE_MESSAGE and not kind.is_repeated
        if is_scalar and file.syntax == "proto3":
            # A scalar of its own presence is the only one of a group.
            field.proto3_optional = True
            field.oneof_index = len(message.oneof_decl)
            message.oneof_decl.add(name=f"_{key}")
        return field

    def _message_of(
        self, file: FileDescriptorProto, field: FieldDescriptorProto, path: tuple[str, ...]
    ) -> tuple[DescriptorProto, str]:
        """Return the message type of a field, if it is in this file."""
        package = f".{file.package}." if file.package else "."
        name = field.type_name
        found: Any = None
        if field.type == FieldDescriptorProto.TYPE_MESSAGE and field.label != _REPEATED and name.startswith(package):
            inside: Any = file.message_type
            for part in name.removeprefix(package).split("."):
                found = next((each for each in inside if each.name == part), None)
                inside = found.nested_type if found is not None else ()
        if found is None:
            raise SchemaRefused(
                f"field {format_path(path)!r} of {self.name} is not a message of the same file: put the flow's outputs "
                "elsewhere"
            )
        return found, name


def indexes_of(registered: RegisteredSchema, message: str) -> tuple[int, ...]:
    """Return the indexes of a message by its full name; raise UnknownSchema."""
    file = _file(registered.text)
    inside: Any = file.message_type
    indexes = []
    for name in _names(file, message):
        at = next((at for at, each in enumerate(inside) if each.name == name), None)
        if at is None:
            raise UnknownSchema(f"the flow's schema has no message {message!r}: correct it")
        indexes.append(at)
        inside = inside[at].nested_type
    return tuple(indexes)


def schema_of_set(encoded: bytes, message: str) -> RegisteredSchema:
    """Return the schema of a message in a set of files, as `protoc --descriptor_set_out` writes it.

    Raises:
        UnknownSchema: It is not such a set, or lacks the message.
    """
    try:
        files = {file.name: file for file in FileDescriptorSet.FromString(encoded).file}
    except DecodeError as error:
        raise UnknownSchema(f"the flow's schema is not a descriptor set ({error}): write it with protoc") from None
    for name, file in files.items():
        top = _names(file, message)[0]
        if any(each.name == top for each in file.message_type):
            others = tuple((other, _text(each)) for other, each in files.items() if other != name)
            return RegisteredSchema(_text(file), (), others, "PROTOBUF")
    raise UnknownSchema(f"the flow's schema has no message {message!r}: name it with its package")


def _names(file: FileDescriptorProto, message: str) -> list[str]:
    """Return the names of a message, and of those that it is nested in."""
    return (message.removeprefix(f"{file.package}.") if file.package else message).split(".")


def _text(file: FileDescriptorProto) -> str:
    return base64.standard_b64encode(file.SerializeToString(deterministic=True)).decode()


def _file(text: str, name: str = "") -> FileDescriptorProto:
    file = FileDescriptorProto.FromString(base64.b64decode(text, validate=True))
    file.name = name or file.name or "event.proto"
    return file


def _class_of(
    file: FileDescriptorProto, others: Sequence[FileDescriptorProto], indexes: Sequence[int]
) -> type[Message]:
    pool = descriptor_pool.DescriptorPool()
    left = {each.name: each for each in others} | {file.name: file}

    def add(each: FileDescriptorProto) -> None:
        for name in each.dependency:
            if name in left:
                add(left.pop(name))
            elif name in well_known:
                pool.AddSerializedFile(well_known.pop(name))
        pool.Add(each)

    well_known = dict(_WELL_KNOWN)
    add(left.pop(file.name))
    found: Any = pool.FindFileByName(file.name)
    message: Any = list(found.message_types_by_name.values())[indexes[0]]
    for index in indexes[1:]:
        message = message.nested_types[index]
    return message_factory.GetMessageClass(message)


def _proto_at(file: FileDescriptorProto, indexes: Sequence[int]) -> DescriptorProto:
    message: Any = file.message_type[indexes[0]]
    for index in indexes[1:]:
        message = message.nested_type[index]
    found: DescriptorProto = message
    return found


def _free_name(message: DescriptorProto, key: str) -> str:
    name = "".join(part.capitalize() for part in key.split("_")) or "Outputs"
    kinds: tuple[Any, ...] = (message.nested_type, message.field, message.enum_type)
    taken = {each.name for kind in kinds for each in kind}
    while name in taken:
        name += "_"
    return name
