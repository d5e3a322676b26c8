"""Events in Avro: fields are read by schema, and predictions are put between the bytes of the others.

framed    head (see `framing`), record    each event names its schema in a registry
unframed  record                          all have one schema
"""

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from anabranch.operators.core.flows.event_reader import MISSING, describe, value_at
from anabranch.operators.core.flows.event_tree import Tree, tree_of
from anabranch.operators.core.flows.field_path import format_path
from anabranch.operators.core.flows.flow_spec import FieldSpec, FlowSpec, OutputField
from anabranch.operators.core.flows.formats import framing
from anabranch.operators.core.flows.formats.avro_bounds import check_of, has_choices
from anabranch.operators.core.flows.formats.avro_schema import (
    EventSchema,
    Schema,
    Splice,
    converter_of,
    extended,
)
from anabranch.operators.core.flows.formats.framing import write_varint
from anabranch.operators.core.flows.formats.registered_schemas import RegisteredSchema, SchemaId, SchemaRegistry
from anabranch.operators.core.flows.output_mapping import column_of, text_of
from anabranch.schemas.errors import InvalidField, UnreadableRequest, WrongDatatype
from anabranch.schemas.model import ModelSpec
from anabranch.schemas.tensors import Array

_NULL, _VALUE = b"\0", b"\2"
_TYPES = {
    "BOOL": "boolean",
    "BYTES": "string",
    "FP16": "float",
    "FP32": "float",
    "FP64": "double",
    **dict.fromkeys(("UINT32", "UINT64", "INT64"), "long"),
}
_FLOAT_BYTES = {"float": "<f4", "double": "<f8"}
_PACKERS = {"float": struct.Struct("<f").pack, "double": struct.Struct("<d").pack, "boolean": struct.Struct("?").pack}
_LONG_END = 2**63


class AvroFormat:
    """The format of a flow of Avro records; see `EventFormat`."""

    def __init__(self, spec: FlowSpec, model: ModelSpec, registry: SchemaRegistry) -> None:
        self._spec = spec
        self._registry = registry
        self._is_framed = spec.is_framed
        self._kinds = [field for each in spec.inputs for field in each.fields]
        types = {output.name: (output.datatype, len(output.shape) - model.batchable) for output in model.outputs}
        self._outputs = [(field, _avro_type(field, *types[field.tensor])) for field in spec.outputs]
        paths: list[tuple[tuple[str, ...], Schema]] = [(field.path, _nested(*kind)) for field, kind in self._outputs]
        #: Fragment of the error's field; none of a good event has it.
        self._no_error: tuple[bytes, ...] = ()
        if spec.on_error != "letter":
            paths.append((spec.error_path, "string"))
            self._no_error = (_NULL,)
        self._tree = tree_of(paths)
        self._defaults: tuple[bytes, ...] = (_NULL,) * len(spec.outputs)
        if spec.on_error == "default":
            self._defaults = tuple(_default(field, *kind) for field, kind in self._outputs)
        self._reader_schema = EventSchema(RegisteredSchema(spec.schema), "the flow's schema") if spec.schema else None
        self._written: dict[SchemaId, _WrittenRecord] = {}

    def read_good(self, events: Sequence[bytes]) -> None:
        """Return None."""

    def read(self, event: bytes) -> Sequence[Any]:
        """Return the value of each path of the inputs."""
        written, at = self._open(event)
        record = written.read(event, at)
        values = [value_at(record, field.path) for field in self._kinds]
        for number, convert in written.conversions:
            value = values[number]
            if value is not None and value is not MISSING:
                try:
                    values[number] = convert(value)
                except OverflowError:
                    field = self._kinds[number]
                    raise _out_of_range(field, value) from None
        return values

    def read_key(self, event: bytes) -> Any:
        """Return the value of the key's path."""
        written, at = self._open(event)
        return value_at(written.read(event, at), self._spec.key or ())

    def decode(self, event: bytes) -> dict[str, Any]:
        """Return the whole event, with values of logical types."""
        written, at = self._open(event)
        record: dict[str, Any] = written.read(event, at, whole=True)
        return record

    def format(self, outputs: Mapping[str, Array]) -> list[tuple[bytes, ...]]:
        """Return the fragments of each row; each is a union of null and the field's type."""
        columns = []
        for field, (kind, _) in self._outputs:
            array = column_of(outputs[field.tensor], field)
            rows, encode = (array, _encode_row) if array.ndim > 1 else (array.tolist(), _encode)
            columns.append([_VALUE + encode(row, kind, field) for row in rows])
        return list(zip(*columns, strict=True))

    def write(self, event: bytes, fragments: Sequence[bytes]) -> bytes:
        """Return the outgoing event."""
        return self._put(event, (*fragments, *self._no_error))

    def write_failed(self, event: bytes, code: str) -> bytes:
        """Return the outgoing event of a failed one."""
        written, at = self._open(event)
        written.read(event, at)
        return self._put(event, (*self._defaults, _VALUE + _bytes(code.encode())))

    def outgoing_schema(self, event: bytes) -> str:
        """Return the schema of an outgoing event."""
        written, _ = self._open(event)
        return written.extended(self._tree)

    def _put(self, event: bytes, fragments: Sequence[bytes]) -> bytes:
        written, at = self._open(event)
        if written.splice is None:
            text = written.extended(self._tree)
            if self._is_framed:
                schema = RegisteredSchema(text, written.registered.references, written.registered.dependencies)
                named = self._registry.register(f"{self._spec.to}-value", schema)
                written.head = framing.write_schema_id(named, written.name)
            written.splice = Splice(written.schema, written.schema.record, self._tree)
        parts = [written.head]
        written.splice.put(event, at, fragments, parts, is_last=True)
        return b"".join(parts)

    def _open(self, event: bytes) -> tuple["_WrittenRecord", int]:
        """Return the schema by which an event was written, and where its record begins."""
        name: SchemaId = 0
        at = 0
        if self._is_framed:
            name, at = framing.read_schema_id(event)
        written = self._written.get(name)
        if written is None:
            schema = self._registry.schema(name) if self._is_framed else RegisteredSchema(self._spec.schema)
            title = f"schema {name}" if self._is_framed else "the flow's schema"
            reader = self._reader_schema if self._is_framed else None
            written = self._written[name] = _WrittenRecord(schema, name, title, reader, self._kinds)
        return written, at


class _WrittenRecord:
    """One schema by which events were written."""

    def __init__(
        self,
        registered: RegisteredSchema,
        name: SchemaId,
        title: str,
        reader: EventSchema | None,
        fields: Sequence[FieldSpec],
    ) -> None:
        self.registered = registered
        self.name = name
        self.schema = schema = EventSchema(registered, title)
        self._whole = schema.fields(is_plain=False)
        self._plain = schema.fields()
        read_by = reader or schema
        self._reader_whole = None if reader is None else reader.fields(is_plain=False)
        self._reader = None if reader is None else reader.fields()
        found = [converter_of(read_by.type_at(field.path), field.kind) for field in fields]
        self.conversions = [(number, convert) for number, convert in enumerate(found) if convert]
        self.splice: Splice | None = None
        self.head = b""
        # What a reader leaves out may be cut: the library skips more bytes than there are.
        is_checked = reader is not None or has_choices(self._plain)
        self._check = check_of(self._plain) if is_checked else None

    def read(self, event: bytes, at: int, *, whole: bool = False) -> Any:
        """Return the fields of an event.

        Args:
            whole: With values of logical types.

        Raises:
            UnreadableRequest: The event is not one record of this schema.
        """
        writer, reader = (self._whole, self._reader_whole) if whole else (self._plain, self._reader)
        record, end = self.schema.read(event, at, writer, reader)
        if self._check is not None:
            try:
                end = self._check(event, at)
            except (IndexError, ValueError, RecursionError) as error:
                raise self.schema.refused(str(error)) from None
        if end != len(event):
            raise UnreadableRequest(
                f"the event has {len(event) - end} bytes behind the record of {self.schema.name}: send one record"
            )
        return record

    def extended(self, tree: Tree) -> str:
        """Return the schema of outgoing events; raise SchemaRefused."""
        return extended(self.schema, tree)


def _avro_type(field: OutputField, datatype: str, rank: int) -> tuple[str, int]:
    return _TYPES.get(datatype, "int"), rank - len(field.indices)


def _nested(kind: str, depth: int) -> Schema:
    schema: Schema = kind
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def _encode_row(row: Array, kind: str, field: OutputField) -> bytes:
    """Encode elements as an array, nested as they are."""
    if not len(row):
        return b"\0"
    if row.ndim > 1:
        items = [_encode_row(each, kind, field) for each in row]
    elif kind in _FLOAT_BYTES:
        items = [row.astype(_FLOAT_BYTES[kind]).tobytes()]
    else:
        items = [_encode(each, kind, field) for each in row.tolist()]
    return b"".join((write_varint(len(row)), *items, b"\0"))


def _encode(value: Any, kind: str, field: OutputField) -> bytes:
    if pack := _PACKERS.get(kind):
        return pack(value)
    if kind == "string":
        text_of(value, field, "Avro")
        return _bytes(value)
    if value >= _LONG_END:
        raise WrongDatatype(
            f"output {field.tensor!r} is {value}, which Avro's long cannot hold: leave {format_path(field.path)!r} out "
            "of the flow's outputs"
        )
    return write_varint(value)


def _bytes(value: bytes) -> bytes:
    return write_varint(len(value)) + value


def _default(field: OutputField, kind: str, depth: int) -> bytes:
    """Encode a default; raise ValueError for one of another type."""
    value = field.default.encode() if isinstance(field.default, str) else field.default
    try:
        array = np.array(value, object if kind == "string" else _FLOAT_BYTES.get(kind))
        if array.ndim == depth:
            return _VALUE + (_encode_row(array, kind, field) if depth else _encode(array.item(), kind, field))
    except (AttributeError, TypeError, ValueError, struct.error):
        pass
    what = f"{'list of ' * depth}{kind}"
    raise ValueError(f"the default of {format_path(field.path)!r} is {field.default!r}, expected a {what}: correct it")


def _out_of_range(field: FieldSpec, value: Any) -> InvalidField:
    path = format_path(field.path)
    return InvalidField(f"field {path!r} is {describe(value)}, expected a time from year 1 to 9999: correct it")
