"""Avro schemas of events: what a flow reads of them, and the schema of its outgoing events.

Named types are defined at their first use. Logical types are left out where values are read, so that no unneeded value
can fail.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from io import BytesIO
from typing import Any, TypeAlias

import fastavro
import msgspec
import orjson
from fastavro import _read_py
from fastavro.schema import SchemaParseException

from anabranch.operators.core.flows.event_tree import NewField, Tree
from anabranch.operators.core.flows.field_path import FieldPath, format_path
from anabranch.operators.core.flows.flow_spec import FieldKind
from anabranch.operators.core.flows.formats.registered_schemas import RegisteredSchema
from anabranch.schemas.errors import SchemaRefused, UnknownSchema, UnreadableRequest

#: A schema as JSON.
Schema: TypeAlias = Any

_NAMED = ("record", "error", "enum", "fixed")
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)  # noqa: UP017 - core
#: Logical types of times: a duration, and its part that is their unit.
_TICKS = {
    "date": (timedelta(days=1), 1),
    "timestamp-millis": (timedelta(milliseconds=1), 1),
    "timestamp-micros": (timedelta(microseconds=1), 1),
    "timestamp-nanos": (timedelta(microseconds=1), 1000),
}


class EventSchema:
    """The schema of a record.

    Raises:
        UnknownSchema: It is not the Avro schema of a record.
    """

    def __init__(self, registered: RegisteredSchema, name: str = "the schema") -> None:
        self.name = name
        self._named: dict[str, Schema] = {}
        try:
            for _, text in registered.dependencies:
                fastavro.parse_schema(_decode(text), named_schemas=self._named)
            others = set(self._named)
            self.raw = _decode(registered.text)
            record: Any = fastavro.parse_schema(self.raw, named_schemas=self._named)
        except (SchemaParseException, msgspec.DecodeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise UnknownSchema(f"{name} is not an Avro schema: {type(error).__name__}: {error}: correct it") from None
        if not isinstance(self.raw, dict) or self.raw.get("type") != "record":
            raise UnknownSchema(f"{name} is not that of a record: send the event's fields in one")
        self.record: dict[str, Any] = record
        self.own_types = {own: kind for own, kind in self._named.items() if own not in others}
        uses: dict[str, int] = {}
        self.is_recursive = _count(record, self._named, uses, ())
        if _has_empty_items(_inline(record, self._named, set()), self._named):
            raise UnknownSchema(
                f"{name} has a list of items without bytes, whose reading need not end: give them a field"
            )
        self.uses: Mapping[str, int] = uses

    def fields(self, chosen: Iterable[dict[str, Any]] | None = None, *, is_plain: bool = True) -> Schema:
        """Return a parsed record of some fields."""
        chosen = self.record["fields"] if chosen is None else chosen
        record = {"type": "record", "name": self.record["name"], "fields": list(chosen)}
        record = _inline(record, self._named, set())
        return fastavro.parse_schema(_without_logical_types(record) if is_plain else record)

    def read(self, event: bytes, at: int, writer: Schema, reader: Schema = None) -> tuple[Any, int]:
        """Read a record at a position; return its fields and their end.

        Raises:
            UnreadableRequest: The bytes are not of this schema.
        """
        # The compiled reader overflows the stack of its process at deep nesting.
        read = _read_py.schemaless_reader if self.is_recursive else fastavro.schemaless_reader
        stream = BytesIO(event)
        stream.seek(at)
        try:
            return read(stream, writer, reader), stream.tell()
        except (RecursionError, MemoryError) as error:
            raise UnreadableRequest(f"the event is nested too deeply: {type(error).__name__}: flatten it") from None
        except Exception as error:  # noqa: BLE001 - the library raises many kinds for corrupt bytes
            raise self.refused(f"{type(error).__name__}: {error}") from None

    def refused(self, reason: str) -> UnreadableRequest:
        """Return the refusal of bytes that are not of this schema."""
        return UnreadableRequest(f"the event is not Avro of {self.name}: {reason}: send the bytes of one record")

    def type_at(self, path: FieldPath) -> Schema:
        """Return the type of a field without null; None if it has several."""
        found: Schema = self.record
        for step in path:
            kind = found.get("type") if isinstance(found, dict) else None
            if kind in ("record", "error") and isinstance(step, str):
                found = next((field["type"] for field in found["fields"] if field["name"] == step), None)
            elif kind in ("array", "map") and isinstance(step, int) == (kind == "array"):
                found = found["items" if kind == "array" else "values"]
            else:
                return None
            found = self._resolve(found)
        return found

    def _resolve(self, schema: Schema) -> Schema:
        if isinstance(schema, list):
            others = [branch for branch in schema if branch != "null"]
            schema = others[0] if len(others) == 1 else None
        return self._named.get(schema, schema) if isinstance(schema, str) else schema


def _decode(text: str) -> Schema:
    return msgspec.json.decode(text) if text.lstrip()[:1] in ("{", "[", '"') else text.strip()


def _count(schema: Schema, named: Mapping[str, Schema], uses: dict[str, int], above: tuple[str, ...]) -> bool:
    """Count the uses of named types; return True if one contains itself."""
    if isinstance(schema, str):
        if schema not in named:
            return False
        if schema in uses:
            uses[schema] += 1
            return schema in above
        schema = named[schema]
    if isinstance(schema, list):
        return max([_count(branch, named, uses, above) for branch in schema], default=False)
    kind = schema["type"]
    if kind in _NAMED:
        uses[schema["name"]] = 1
        above = (*above, schema["name"])
        return max([_count(field["type"], named, uses, above) for field in schema.get("fields", ())], default=False)
    inner = {"array": "items", "map": "values"}.get(kind, "type") if isinstance(kind, str) else "type"
    return _count(schema[inner], named, uses, above)


def _has_empty_items(schema: Schema, named: Mapping[str, Schema]) -> bool:
    """Return True if an array of some bytes can have any number of items."""
    if isinstance(schema, list):
        return any(_has_empty_items(branch, named) for branch in schema)
    if isinstance(schema, str):
        return False
    if schema["type"] == "array" and _is_empty(schema["items"], named, ()):
        return True
    inner = [schema[key] for key in ("items", "values") if key in schema]
    inner += [field["type"] for field in schema.get("fields", ())]
    return any(_has_empty_items(each, named) for each in inner)


def _is_empty(schema: Schema, named: Mapping[str, Schema], above: tuple[str, ...]) -> bool:
    """Return True if values have no bytes."""
    if isinstance(schema, str):
        return schema == "null" or (schema in named and schema not in above and _is_empty(named[schema], named, above))
    if isinstance(schema, list):
        return False
    if schema["type"] == "fixed":
        return not schema["size"]
    if schema["type"] not in ("record", "error"):
        return bool(schema["type"] == "null")
    above = (*above, schema["name"])
    return all(_is_empty(field["type"], named, above) for field in schema["fields"])


def _inline(schema: Schema, named: Mapping[str, Schema], seen: set[str]) -> Schema:
    """Define each named type at its first use."""
    if isinstance(schema, list):
        return [_inline(branch, named, seen) for branch in schema]
    if isinstance(schema, str):
        return _inline(named[schema], named, seen) if schema in named and schema not in seen else schema
    copy = {key: value for key, value in schema.items() if not key.startswith("__")}
    kind = copy["type"]
    if kind in _NAMED:
        if copy["name"] in seen:
            return copy["name"]
        seen.add(copy["name"])
        if "fields" in copy:
            copy["fields"] = [{**field, "type": _inline(field["type"], named, seen)} for field in copy["fields"]]
        return copy
    inner = {"array": "items", "map": "values"}.get(kind) if isinstance(kind, str) else "type"
    return {**copy, inner: _inline(copy[inner], named, seen)} if inner else copy


def _without_logical_types(schema: Schema) -> Schema:
    if isinstance(schema, list):
        return [_without_logical_types(branch) for branch in schema]
    if isinstance(schema, str):
        return schema
    kept = {key: value for key, value in schema.items() if key != "logicalType"}
    for key in ("type", "items", "values"):
        if isinstance(kept.get(key), dict | list):
            kept[key] = _without_logical_types(kept[key])
    if "fields" in kept:
        kept["fields"] = [{**field, "type": _without_logical_types(field["type"])} for field in kept["fields"]]
    return kept


def converter_of(schema: Schema, kind: FieldKind) -> Callable[[Any], Any] | None:
    """Return the conversion of a raw value with a logical type; it may raise OverflowError."""
    if not isinstance(schema, dict):
        return None
    if schema["type"] == "array":
        convert = converter_of(schema["items"], kind)
        return convert and (lambda values: [each if each is None else convert(each) for each in values])
    logical = schema.get("logicalType", "")
    if logical == "decimal" and kind == "plain":
        scale = 10 ** schema.get("scale", 0)
        return lambda value: int.from_bytes(value, "big", signed=True) / scale
    ticks = _TICKS.get(logical.removeprefix("local-")) if kind == "timestamp" else None
    return ticks and (lambda value: _EPOCH + value * ticks[0] / ticks[1])


def extended(schema: EventSchema, tree: Tree) -> str:
    """Return the schema of events with further fields, all of which may be null.

    Raises:
        SchemaRefused: A field is within one that cannot be extended.
    """
    if schema.uses[schema.record["name"]] > 1:
        raise SchemaRefused(f"the record of {schema.name} contains itself, so that it cannot have predictions: wrap it")
    # A replaced field may define types of others.
    raw = schema.raw if not _replaces_types(schema.raw, tree) else schema.record
    record = _extended_record(schema, raw, tree, ())
    if raw is schema.record:
        record = _inline(record, schema.own_types, set())
    return orjson.dumps(record).decode()


def _replaces_types(record: Schema, tree: Tree) -> bool:
    fields = {field["name"]: field["type"] for field in record["fields"]}
    return any(key in fields and _defines_types(fields[key]) for key in tree)


def _defines_types(schema: Schema) -> bool:
    if isinstance(schema, list):
        return any(map(_defines_types, schema))
    if isinstance(schema, str):
        return False
    inner = (schema.get(key, "null") for key in ("type", "items", "values"))
    return schema["type"] in _NAMED or any(map(_defines_types, inner))


def _extended_record(schema: EventSchema, record: Schema, tree: Tree, path: tuple[str, ...]) -> Schema:
    fields = list(record["fields"])
    places = {field["name"]: at for at, field in enumerate(fields)}
    for key, below in tree.items():
        at = places.get(key)
        if at is not None and isinstance(below, dict):
            fields[at] = {**fields[at], "type": _extended_type(schema, fields[at]["type"], below, (*path, key))}
            continue
        field = {"name": key, "type": ["null", _new_type(schema, below, (*path, key))], "default": None}
        if at is None:
            fields.append(field)
        else:
            fields[at] = field
    return {**record, "fields": fields}


def _extended_type(schema: EventSchema, found: Schema, below: Tree, path: tuple[str, ...]) -> Schema:
    branches = found if isinstance(found, list) else [found]
    records = [at for at, each in enumerate(branches) if isinstance(each, dict) and each.get("type") == "record"]
    full = schema.type_at(path)
    if len(records) != 1 or not isinstance(full, dict) or schema.uses.get(full.get("name", ""), 0) != 1:
        raise SchemaRefused(
            f"field {format_path(path)!r} of {schema.name} is not a record that is used once: put the flow's outputs "
            "elsewhere"
        )
    [at] = records
    new = [*branches[:at], _extended_record(schema, branches[at], below, path), *branches[at + 1 :]]
    return new if isinstance(found, list) else new[0]


def _new_type(schema: EventSchema, below: Any, path: tuple[str, ...]) -> Schema:
    if isinstance(below, NewField):
        return below.type
    name = "_".join((schema.record["name"].rpartition(".")[2], *path))
    while name in schema.uses:
        name += "_"
    fields = [
        {"name": key, "type": ["null", _new_type(schema, each, (*path, key))], "default": None}
        for key, each in below.items()
    ]
    return {"type": "record", "name": name, "fields": fields}


class Splice:
    """Puts fragments into the bytes of a record, and copies all others."""

    def __init__(self, schema: EventSchema, record: dict[str, Any], tree: Tree, path: tuple[str, ...] = ()) -> None:
        self._schema = schema
        self._path = path
        fields = record["fields"]
        touched = [at for at, field in enumerate(fields) if field["name"] in tree]
        names = {field["name"] for field in fields}
        self._new = [below for key, below in tree.items() if key not in names]
        #: Copied fields, then one: the number of its fragment, or a branch and a splice.
        self._steps: list[tuple[Schema, Schema, Any]] = []
        start = 0
        for at in touched:
            below: Any = tree[fields[at]["name"]]
            if isinstance(below, dict):
                below = self._nested(fields[at], below)
            self._steps.append((schema.fields(fields[start:at]), schema.fields(fields[at : at + 1]), below))
            start = at + 1
        self._rest = schema.fields(fields[start:])

    def _nested(self, field: dict[str, Any], tree: Tree) -> tuple[int | None, "Splice"]:
        path = (*self._path, field["name"])
        kind, record = field["type"], self._schema.type_at(path)
        at = None
        if isinstance(kind, list):
            at = next(at for at, each in enumerate(kind) if each != "null")
        return at, Splice(self._schema, record, tree, path)

    def put(self, event: bytes, at: int, fragments: Sequence[bytes], parts: list[bytes], *, is_last: bool) -> int:
        """Add the parts of the record at a position, and return its end.

        Args:
            is_last: The event ends with the record.

        Raises:
            SchemaRefused: A record to extend is null.
        """
        for before, field, below in self._steps:
            start = at
            _, at = self._schema.read(event, at, before)
            if isinstance(below, NewField):
                parts += (event[start:at], fragments[below.number])
                _, at = self._schema.read(event, at, field)
                continue
            branch, splice = below
            if branch is not None:
                found, at = self._schema.read(event, at, "long")
                if found != branch:
                    name = format_path(splice._path)  # noqa: SLF001 - its own kind
                    raise SchemaRefused(f"field {name!r} is null: put the flow's outputs elsewhere")
            parts.append(event[start:at])
            at = splice.put(event, at, fragments, parts, is_last=False)
        start = at
        at = len(event) if is_last else self._schema.read(event, at, self._rest)[1]
        parts.append(event[start:at])
        parts += [_joined(below, fragments) for below in self._new]
        return at


def _joined(below: Any, fragments: Sequence[bytes]) -> bytes:
    """Return a new field; null if all fields in it are."""
    if isinstance(below, NewField):
        return fragments[below.number]
    parts = [_joined(each, fragments) for each in below.values()]
    return b"\0" if all(part == b"\0" for part in parts) else b"\2" + b"".join(parts)
