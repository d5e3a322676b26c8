"""Resolves the names in `[[flow]]` tables against the served models."""

import re
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from anabranch.flink_job.errors import ConfigError
from anabranch.flink_job.flows.flow_chains import chain_name, has_steps
from anabranch.flink_job.flows.flow_tables import FieldTable, FlowTable, OutputTable
from anabranch.flink_job.model_repository.chains import read_function
from anabranch.flink_job.toml_sections import read_section
from anabranch.operators.core.flows.field_path import FieldPath, format_path, parse_path
from anabranch.operators.core.flows.flow_spec import FieldKind, FieldSpec, FlowSpec, InputSpec, OutputField
from anabranch.operators.core.flows.formats.event_format import format_of
from anabranch.operators.core.flows.formats.protobuf_format import ProtobufFormat
from anabranch.operators.core.flows.formats.protobuf_schema import schema_of_set
from anabranch.operators.core.flows.formats.registered_schemas import RegisteredSchema
from anabranch.schemas.errors import ModelUnavailable, UnknownModel, UnknownSchema, UnknownVersion
from anabranch.schemas.model import Catalog, TensorSpec
from anabranch.schemas.tensors import BYTES, FLOATS, show_axes

_OUTPUT = re.compile(r"([^\[\]]+)((?:\[-?\d+\])*)")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_T = TypeVar("_T", bound=msgspec.Struct)


def resolve(flows: Sequence[FlowTable], catalog: Catalog, place: str) -> tuple[FlowSpec, ...]:
    """Resolve flows, or raise ConfigError."""
    return tuple(resolve_flow(flow, catalog, f"{place}: flow[{number}]") for number, flow in enumerate(flows))


def resolve_flow(flow: FlowTable, catalog: Catalog, where: str) -> FlowSpec:
    """Resolve a flow, which errors call `where`, or raise ConfigError."""
    return _Resolver(flow, catalog, where).resolve()


class _Resolver:
    def __init__(self, flow: FlowTable, catalog: Catalog, where: str) -> None:
        self._flow = flow
        self._where = where
        name = chain_name(flow) if has_steps(flow) else flow.model
        try:
            self._model = catalog.find(*(name.split("@", 1) if "@" in name else (name, "")))
        except (UnknownModel, UnknownVersion, ModelUnavailable) as error:
            raise ConfigError(f"{where}.model: {error.message}") from None

    def resolve(self) -> FlowSpec:
        flow, model, where = self._flow, self._model, self._where
        if model.fixed_rows not in (None, 1):
            raise ConfigError(
                f"{where}.model: {model.name!r} has a fixed batch size of {model.fixed_rows}, but an event is one row: "
                "export it with a free batch axis"
            )
        error_path = self._keys(flow.error_field, f"{where}.error_field")
        outputs = tuple(self._outputs())
        if not outputs:
            raise ConfigError(f"{where}.outputs is empty: name a field of the event and an output of the model for it")
        paths = [field.path for field in outputs] + ([error_path] if flow.on_error != "letter" else [])
        for path in paths:
            if any(path[: len(other)] == other and path is not other for other in paths):
                raise ConfigError(f"{where}.outputs: {format_path(path)!r} and another field overlap: rename one")
        schema, protobuf = self._schemas()
        spec = FlowSpec(
            topic=flow.source,
            to=flow.to,
            model_name=model.name,
            model_version=model.version,
            inputs=() if isinstance(flow.inputs, str) else tuple(self._inputs(flow.inputs)),
            function=self._function(flow.inputs) if isinstance(flow.inputs, str) else None,
            outputs=outputs,
            key=self._path(flow.key, f"{where}.key") if flow.key else None,
            deadline_ms=flow.deadline_ms,
            priority=flow.priority,
            on_error=flow.on_error,
            error_path=error_path,
            is_ordered=flow.order == "key",
            format=flow.format,
            schema=schema,
            protobuf=protobuf,
            message=flow.message,
            is_framed=flow.format != "json" and flow.framing == "confluent",
        )
        self._check_format(spec, paths)
        if spec.is_ordered:
            self._check_order()
        return spec

    def _check_format(self, spec: FlowSpec, paths: Sequence[tuple[str, ...]]) -> None:
        if spec.format == "json":
            return
        for path in paths:
            for key in path:
                if not _NAME.fullmatch(key):
                    raise ConfigError(
                        f"{self._where}.outputs: {key!r} is not a name in {spec.format}: use letters, digits and '_'"
                    )
        try:
            form = format_of(spec, self._model)
            if isinstance(form, ProtobufFormat):
                form.check_defaults()
        except (UnknownSchema, TypeError, ValueError, OverflowError) as error:
            raise ConfigError(f"{self._where}: {error}") from None

    def _schemas(self) -> tuple[str, RegisteredSchema | None]:
        """Return the schema of Avro or Protobuf events."""
        flow = self._flow
        if not flow.schema:
            return "", None
        try:
            if flow.format == "protobuf":
                return "", schema_of_set(self._schema(), flow.message)
            return self._schema().decode(), None
        except UnknownSchema as error:
            raise ConfigError(f"{self._where}.schema: {error.message}") from None
        except UnicodeDecodeError:
            raise ConfigError(f"{self._where}.schema: {flow.schema} is not text: name an Avro schema") from None

    def _schema(self) -> bytes:
        path = self._flow.schema
        try:
            return Path(path).read_bytes() if path else b""
        except OSError as error:
            raise ConfigError(f"{self._where}.schema: cannot read {path}: {error.strerror}; check the path") from None

    def _check_order(self) -> None:
        model = self._model
        if self._flow.on_error != "letter":
            raise ConfigError(
                f"{self._where}.on_error is {self._flow.on_error!r}, but order = 'key' needs 'letter': "
                "failed events would overtake others"
            )
        free = [spec.name for spec in model.inputs if None in spec.shape[1 if model.batchable else 0 :]]
        if free or model.stages or model.ensemble is not None:
            obstacle = f"input {free[0]!r} has a free axis" if free else "it is an ensemble, a chain or in stages"
            raise ConfigError(
                f"{self._where}.order is 'key', which model {model.name!r} cannot keep: {obstacle}; "
                "use a whole model with inputs of fixed shape"
            )

    def _function(self, named: str) -> Any:
        file, _, name = named.rpartition(":")
        path = Path(file or named)
        function = read_function(path.parent, f"{path.name}:{name}", f"{self._where}.inputs")
        if function is None:
            raise ConfigError(f"{self._where}.inputs is empty, expected a table or FILE.py:FUNCTION")
        return function

    def _inputs(self, written: Mapping[str, Any]) -> Iterator[InputSpec]:
        where, model = f"{self._where}.inputs", self._model
        known = [spec.name for spec in model.inputs]
        for name in written:
            if name not in known:
                raise ConfigError(f"{where}: unknown input {name!r} of model {model.name!r}; available: {_list(known)}")
        if missing := [name for name in known if name not in written]:
            raise ConfigError(f"{where}: model {model.name!r} also needs {_list(missing)}: name fields for them")
        for spec in model.inputs:
            yield self._input(spec, written[spec.name], f"{where}.{spec.name}")

    def _input(self, spec: TensorSpec, written: Any, where: str) -> InputSpec:
        row = spec.shape[1:] if self._model.batchable else spec.shape
        elements = None if None in row else prod(axis or 0 for axis in row)
        if not isinstance(written, list):
            is_whole = elements != 1
            field = self._field(spec, written, where, is_whole=is_whole)
            return InputSpec(spec.name, spec.datatype, row, (field,), is_whole)
        fields = tuple(
            self._field(spec, each, f"{where}[{number}]", is_whole=False) for number, each in enumerate(written)
        )
        is_free = row.count(None) == 1 and all(axis in (None, 1) for axis in row)
        if not fields or (elements != len(fields) and not is_free):
            raise ConfigError(
                f"{where} has {len(fields)} fields, but an event's part of the input has shape {show_axes(row)}: "
                "name a field for each element, or one field with all of them, without brackets"
            )
        return InputSpec(spec.name, spec.datatype, row, fields)

    def _field(self, spec: TensorSpec, written: Any, where: str, *, is_whole: bool) -> FieldSpec:
        table = self._table(written, FieldTable, "path", where)
        if table.enum and table.type != "plain":
            raise ConfigError(f"{where}: enum and type = {table.type!r} exclude each other: remove one")
        kind: FieldKind = "enum" if table.enum else table.type
        is_number = spec.datatype not in (BYTES, "BOOL")
        if kind in ("enum", "timestamp") and not is_number:
            raise ConfigError(f"{where}: {kind} makes a number, but input {spec.name!r} is {spec.datatype}: remove it")
        if kind == "base64" and not is_whole and spec.datatype != BYTES:
            raise ConfigError(
                f"{where}: base64 makes bytes, but an element of {spec.name!r} is {spec.datatype}: remove it"
            )
        default = table.default
        if default is not msgspec.UNSET:
            expected: Any = {BYTES: str, "BOOL": bool}.get(
                spec.datatype, int | float if spec.datatype in FLOATS else int
            )
            good = isinstance(default, expected)
            if kind == "base64" or not good:
                raise ConfigError(
                    f"{where}.default is {default!r}, which is not an element of {spec.datatype}: correct or remove it"
                )
        return FieldSpec(self._path(table.path, where), kind, table.unit, table.enum, default)

    def _outputs(self) -> Iterator[OutputField]:
        known = {spec.name: spec for spec in self._model.outputs}
        for path, written in _flat(self._flow.outputs):
            where = f"{self._where}.outputs.{path}"
            table = self._table(written, OutputTable, "from", where)
            found = _OUTPUT.fullmatch(table.source)
            name = found[1] if found else table.source
            if found is None or name not in known:
                raise ConfigError(
                    f"{where}: unknown output {name!r} of model {self._model.name!r}; available: {_list(known)}"
                )
            indices = tuple(int(index) for index in re.findall(r"-?\d+", found[2]))
            self._check_indices(known[name], indices, where)
            if self._flow.on_error == "default" and table.default is msgspec.UNSET:
                raise ConfigError(f"{where} has no default, which on_error = 'default' writes: add one")
            yield OutputField(self._keys(path, where), name, indices, table.default)

    def _check_indices(self, spec: TensorSpec, indices: Sequence[int], where: str) -> None:
        row = spec.shape[1:] if self._model.batchable else spec.shape
        for depth, index in enumerate(indices):
            axis = row[depth] if depth < len(row) else 0
            if axis is not None and not -axis <= index < axis:
                shape = ", ".join("any" if each is None else str(each) for each in row)
                raise ConfigError(f"{where}: index [{index}] is outside the row of shape [{shape}]: correct it")

    def _table(self, written: Any, kind: type[_T], key: str, where: str) -> _T:
        if isinstance(written, str):
            written = {key: written}
        if not isinstance(written, dict):
            raise ConfigError(f"{where} is {written!r}, expected a text or a table with {key!r}")
        return read_section(written, kind, where)

    def _path(self, text: str, where: str) -> FieldPath:
        try:
            return parse_path(text)
        except ValueError as error:
            raise ConfigError(f"{where}: {error}") from None

    def _keys(self, text: str, where: str) -> tuple[str, ...]:
        keys = tuple(step for step in self._path(text, where) if isinstance(step, str))
        if len(keys) != len(self._path(text, where)):
            raise ConfigError(f"{where}: {text!r} has a list index, but predictions go into objects: use keys only")
        return keys


def _flat(outputs: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield path and value, also of nested tables."""
    for key, value in outputs.items():
        path = f"{prefix}.{key}" if prefix else key
        if isinstance(value, dict) and "from" not in value:
            yield from _flat(value, path)
        else:
            yield path, value


def _list(names: Any) -> str:
    return ", ".join(names) or "none"
