"""Events in Protobuf: predictions are fields behind the bytes of the others.

framed    head (see `framing`), message
unframed  message                 all have one schema
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

from google.protobuf.descriptor_pb2 import FieldDescriptorProto
from google.protobuf.message import DecodeError, Message

from anabranch.operators.core.flows.event_reader import MISSING, describe
from anabranch.operators.core.flows.event_tree import NewField, Tree, tree_of
from anabranch.operators.core.flows.field_path import FieldPath, format_path
from anabranch.operators.core.flows.flow_spec import FlowSpec, OutputField
from anabranch.operators.core.flows.formats import framing
from anabranch.operators.core.flows.formats.protobuf_schema import NewType, ProtobufSchema, indexes_of
from anabranch.operators.core.flows.formats.registered_schemas import (
    Registered,
    RegisteredSchema,
    SchemaId,
    SchemaRegistry,
)
from anabranch.operators.core.flows.output_mapping import column_of, text_of
from anabranch.schemas.errors import InvalidField, UnreadableRequest
from anabranch.schemas.model import ModelSpec
from anabranch.schemas.tensors import Array

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)  # noqa: UP017 - core
_TIMESTAMP = "google.protobuf.Timestamp"
_WRAPPERS = "google.protobuf."
_TYPES = {
    "BOOL": FieldDescriptorProto.TYPE_BOOL,
    "BYTES": FieldDescriptorProto.TYPE_STRING,
    "FP16": FieldDescriptorProto.TYPE_FLOAT,
    "FP32": FieldDescriptorProto.TYPE_FLOAT,
    "FP64": FieldDescriptorProto.TYPE_DOUBLE,
    **dict.fromkeys(("INT8", "INT16", "INT32"), FieldDescriptorProto.TYPE_INT32),
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), FieldDescriptorProto.TYPE_UINT32),
    "INT64": FieldDescriptorProto.TYPE_INT64,
    "UINT64": FieldDescriptorProto.TYPE_UINT64,
}
_CODE = NewType(FieldDescriptorProto.TYPE_STRING, is_repeated=False)


class ProtobufFormat:
    """The format of a flow of Protobuf messages; see `EventFormat`. Outputs are numbers, texts and lists of them."""

    def __init__(self, spec: FlowSpec, model: ModelSpec, registry: SchemaRegistry) -> None:
        self._spec = spec
        self._registry = registry
        self._paths = spec.paths
        types = {output.name: (output.datatype, len(output.shape) - model.batchable) for output in model.outputs}
        fields = [(field.path, _new_type(field, *types[field.tensor])) for field in spec.outputs]
        if spec.on_error != "letter":
            fields.append((spec.error_path, _CODE))
        self._tree: Tree = tree_of(fields)
        self._written: dict[tuple[SchemaId, tuple[int, ...]], _WrittenMessage] = {}

    def read_good(self, events: Sequence[bytes]) -> None:
        """Return None."""

    def read(self, event: bytes) -> Sequence[Any]:
        """Return the value of each path of the inputs."""
        message = self._parse(event)
        return [_value_at(message, path) for path in self._paths]

    def read_key(self, event: bytes) -> Any:
        """Return the value of the key's path."""
        return _value_at(self._parse(event), self._spec.key or ())

    def decode(self, event: bytes) -> dict[str, Any]:
        """Return the whole event; fields that are not set are left out."""
        decoded: dict[str, Any] = _plain(self._parse(event))
        return decoded

    def format(self, outputs: Mapping[str, Array]) -> list[tuple[Any, ...]]:
        """Return the values of each row."""
        columns = []
        for field in self._spec.outputs:
            values = column_of(outputs[field.tensor], field).tolist()
            columns.append([_text(value, field) for value in values])
        return list(zip(*columns, strict=True))

    def write(self, event: bytes, fragments: Sequence[Any]) -> bytes:
        """Return the outgoing event."""
        return self._put(event, fragments)

    def write_failed(self, event: bytes, code: str) -> bytes:
        """Return the outgoing event of a failed one."""
        self._parse(event)
        is_default = self._spec.on_error == "default"
        values = [field.default if is_default else None for field in self._spec.outputs]
        return self._put(event, (*values, code))

    def outgoing_message(self, event: bytes) -> Message:
        """Return an outgoing event, whose schema the registry has."""
        if self._spec.is_framed:
            return self._parse(event)
        schema, _ = self._open(event)
        _, message = schema.schema.extended(self._tree)
        return message.FromString(event)

    def check_defaults(self) -> None:
        """Raise TypeError or ValueError for a default of another type."""
        schema = RegisteredSchema("CgdldmVudC5wIgMKAUU=", kind="PROTOBUF")
        if self._spec.on_error == "default":
            _, message = ProtobufSchema(schema, (0,), "an empty message").extended(self._tree)
            _fill(message(), self._tree, [field.default for field in self._spec.outputs])

    def _put(self, event: bytes, values: Sequence[Any]) -> bytes:
        written, _ = self._open(event)
        if written.outgoing is None:
            schema, message = written.schema.extended(self._tree)
            if self._spec.is_framed:
                named = self._registry.register(f"{self._spec.to}-value", schema)
                written.head = framing.write_schema_id(named, written.name)
            written.outgoing = message
        added = written.outgoing()
        _fill(added, self._tree, values)
        # Behind the message, its bytes are merged into it.
        start = framing.read_schema_id(event)[1] if self._spec.is_framed else 0
        return b"".join((written.head, event[start:], added.SerializeToString(deterministic=True)))

    def _parse(self, event: bytes) -> Message:
        written, at = self._open(event)
        try:
            return written.schema.message.FromString(event[at:])
        except DecodeError as error:
            name = written.schema.descriptor.full_name
            raise UnreadableRequest(
                f"the event is not a {name} of {written.schema.name}: {error}: send the bytes of one message"
            ) from None

    def _open(self, event: bytes) -> tuple["_WrittenMessage", int]:
        """Return the schema by which an event was written, and where its message begins."""
        name: SchemaId = 0
        at = 0
        indexes: tuple[int, ...] = ()
        if self._spec.is_framed:
            name, at = framing.read_schema_id(event)
            indexes, at = framing.read_indexes(event, at)
        written = self._written.get((name, indexes))
        if written is None:
            if self._spec.is_framed:
                schema = ProtobufSchema(self._registry.schema(name, "PROTOBUF"), indexes, f"schema {name}")
            else:
                registered = self._spec.protobuf
                assert registered is not None  # noqa: S101 - the configuration has one
                schema = ProtobufSchema(registered, indexes_of(registered, self._spec.message), "the flow's schema")
            written = self._written[name, indexes] = _WrittenMessage(schema, name)
        return written, at


class _WrittenMessage:
    """One schema by which events were written."""

    def __init__(self, schema: ProtobufSchema, name: SchemaId) -> None:
        self.schema = schema
        self.name = name
        self.outgoing: type[Message] | None = None
        self.head = b""


def _new_type(field: OutputField, datatype: str, rank: int) -> NewType:
    depth = rank - len(field.indices)
    if depth > 1:
        raise ValueError(
            f"output {format_path(field.path)!r} is nested {depth} lists deep, which Protobuf lacks: take one row of it"
        )
    return NewType(_TYPES[datatype], depth == 1)


def write_frame(named: Registered, indexes: Sequence[int]) -> bytes:
    """Return what is before a message of a registered schema."""
    places = (0,) if tuple(indexes) == (0,) else (len(indexes), *indexes)
    return b"".join((framing.write_schema_id(named), *map(framing.write_varint, places)))


def _value_at(message: Any, path: FieldPath) -> Any:
    """Return the value of a path, MISSING without one."""
    value, field = message, None
    for at, step in enumerate(path):
        is_map = field is not None and _is_map(field)
        if is_map or (field is not None and _is_list(field)):
            value, field = _item(value, field, step, path[:at])
        elif isinstance(value, Message) and isinstance(step, str):
            field = value.DESCRIPTOR.fields_by_name.get(step)
            if field is None or (field.has_presence and not value.HasField(step)):
                return MISSING
            value = getattr(value, step)
        else:
            raise _wrong(path[:at], value, "a list" if isinstance(step, int) else "a message")
        if value is MISSING:
            return MISSING
    if field is None:
        return _plain(value)
    return _plain_field(value, field)


def _item(value: Any, field: Any, step: Any, path: FieldPath) -> tuple[Any, Any]:
    if not _is_map(field):
        if not isinstance(step, int):
            raise _wrong(path, list(value), "a message")
        inside = -len(value) <= step < len(value)
        return (value[step] if inside else MISSING), _Element(field)
    keys = field.message_type.fields_by_name["key"]
    if keys.cpp_type != keys.CPPTYPE_STRING:
        try:
            step = int(step)
        except ValueError:
            return MISSING, field
    # A map of messages makes those that are asked for.
    found = value[step] if step in value else MISSING  # noqa: SIM401
    return found, field.message_type.fields_by_name["value"]


class _Element:
    """The field of one element of a list."""

    label = FieldDescriptorProto.LABEL_OPTIONAL

    def __init__(self, field: Any) -> None:
        self.message_type = field.message_type
        self.enum_type = field.enum_type


def _is_list(field: Any) -> bool:
    # Newer versions of the library warn of `label`.
    found = getattr(field, "is_repeated", None)
    return bool(field.label == FieldDescriptorProto.LABEL_REPEATED if found is None else found)


def _is_map(field: Any) -> bool:
    return bool(_is_list(field) and field.message_type and field.message_type.GetOptions().map_entry)


def _wrong(path: FieldPath, value: Any, expected: str) -> InvalidField:
    found = "a message" if isinstance(value, Message) else describe(value)
    return InvalidField(f"field {format_path(path)!r} is {found}, expected {expected}: send one")


def _plain_field(value: Any, field: Any) -> Any:
    """Return a field's value as Python has it: names of enums, moments, dictionaries."""
    if _is_map(field):
        inner = field.message_type.fields_by_name["value"]
        return {key: _plain_field(each, inner) for key, each in value.items()}
    if _is_list(field):
        element = _Element(field)
        return [_plain_field(each, element) for each in value]
    if isinstance(value, Message):
        return _plain(value)
    if field.enum_type is not None:
        named = field.enum_type.values_by_number.get(value)
        return value if named is None else named.name
    return value


def _plain(message: Message) -> Any:
    found: Any = message
    name = found.DESCRIPTOR.full_name
    if name == _TIMESTAMP:
        try:
            return _EPOCH + timedelta(seconds=found.seconds, microseconds=found.nanos // 1000)
        except OverflowError:
            raise InvalidField(f"the timestamp {found.seconds} s is not from year 1 to 9999: correct it") from None
    if name.startswith(_WRAPPERS) and name.endswith("Value") and "value" in found.DESCRIPTOR.fields_by_name:
        return found.value
    set_fields: Iterable[Any] = [
        field for field in found.DESCRIPTOR.fields if not field.has_presence or found.HasField(field.name)
    ]
    return {field.name: _plain_field(getattr(found, field.name), field) for field in set_fields}


def _text(value: Any, field: OutputField) -> Any:
    if isinstance(value, list):
        return [_text(each, field) for each in value]
    if not isinstance(value, bytes):
        return value
    return text_of(value, field, "Protobuf")


def _fill(message: Message, tree: Tree, values: Sequence[Any]) -> None:
    """Set the fields of a tree that have values."""
    for key, below in tree.items():
        if not isinstance(below, NewField):
            _fill(getattr(message, key), below, values)
        elif below.number < len(values) and (value := values[below.number]) is not None:
            if below.type.is_repeated:
                getattr(message, key).extend(value)
            else:
                setattr(message, key, value)
