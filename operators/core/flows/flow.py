"""A flow, compiled: events to tensors, and outputs into events."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from anabranch.operators.core.flows.event_reader import MISSING, describe
from anabranch.operators.core.flows.field_path import format_path
from anabranch.operators.core.flows.flow_spec import FlowSpec
from anabranch.operators.core.flows.formats import framing
from anabranch.operators.core.flows.formats.event_format import format_of
from anabranch.operators.core.flows.formats.registered_schemas import SchemaRegistry
from anabranch.operators.core.flows.input_mapping import InputMapping, Mapped
from anabranch.schemas.errors import AnabranchError, InvalidField, MappingFailed, MissingField, UnreadableRequest
from anabranch.schemas.model import ModelSpec, TensorSpec
from anabranch.schemas.tensors import Array, datatype_of, fits, raw_from_array, show_axes

#: From events to arrays with an event in each element of axis 0.
EventFunction: TypeAlias = Callable[[list[dict[str, Any]]], Mapping[str, Any]]


class Flow:
    """One flow with its model.

    Args:
        function: The loaded function of the spec, if it has one.
        registry: Schemas of events that have some.
    """

    def __init__(
        self,
        spec: FlowSpec,
        model: ModelSpec,
        function: EventFunction | None = None,
        registry: SchemaRegistry | None = None,
    ) -> None:
        self.spec = spec
        self.model = model
        self.to = spec.to.encode()
        self._function = function
        self._format = format_of(spec, model, registry)
        #: Bound at once, for the hot path.
        self._read, self._read_good = self._format.read, self._format.read_good
        self.write: Callable[[bytes, Any], bytes] = self._format.write
        self._spans = []
        start = 0
        mappings = [InputMapping(each) for each in spec.inputs]
        self._map_good = mappings[0].map_good if len(mappings) == 1 else None
        for each in mappings:
            self._spans.append((each.map, start, start + len(each.paths)))
            start += len(each.paths)
        #: The outputs of the model that events need.
        self.outputs = tuple(dict.fromkeys(field.tensor for field in spec.outputs))

    @property
    def is_batchwise(self) -> bool:
        """True if a function maps many events at once."""
        return self._function is not None

    def with_head(self, event: bytes, carried: bytes) -> bytes:
        """Return a record's value as other methods take it, or raise UnreadableRequest."""
        spec = self.spec
        return framing.with_head(event, carried, has_indexes=spec.format == "protobuf") if spec.is_framed else event

    def without_head(self, event: bytes, carried: bytes) -> tuple[bytes, bytes]:
        """Return value and carried fields of an outgoing record."""
        spec = self.spec
        if not spec.is_framed:
            return event, carried
        return framing.without_head(event, carried, has_indexes=spec.format == "protobuf")

    def read(self, event: bytes) -> list[Mapped]:
        """Return each input of the model as raw bytes and shape without batch axis.

        Raises:
            AnabranchError: The event cannot be mapped.
        """
        [mapped] = self.read_all([event])
        if isinstance(mapped, AnabranchError):
            raise mapped
        return mapped

    def read_records(self, records: Sequence[tuple[bytes, bytes]]) -> list[list[Mapped] | AnabranchError]:
        """Map values with their carried fields; see `read_all`."""
        if not self.spec.is_framed:
            return self.read_all([event for event, _ in records])
        found: list[bytes | AnabranchError] = []
        for event, carried in records:
            try:
                found.append(self.with_head(event, carried))
            except AnabranchError as error:
                found.append(error)
        mapped = iter(self.read_all([event for event in found if isinstance(event, bytes)]))
        return [next(mapped) if isinstance(event, bytes) else event for event in found]

    def read_all(self, events: Sequence[bytes]) -> list[list[Mapped] | AnabranchError]:
        """Map many events, calling the function once; an event that fails does not affect the others."""
        if self._function is None:
            return self._read_fields(events)
        decoded: list[dict[str, Any] | AnabranchError] = []
        for event in events:
            try:
                decoded.append(self._format.decode(event))
            except AnabranchError as error:
                decoded.append(error)
        good = [event for event in decoded if not isinstance(event, AnabranchError)]
        mapped = iter(self._call(good) if good else ())
        return [event if isinstance(event, AnabranchError) else next(mapped) for event in decoded]

    def _read_fields(self, events: Sequence[bytes]) -> list[list[Mapped] | AnabranchError]:
        read, spans = self._read, self._spans
        only = spans[0][0] if len(spans) == 1 else None
        if self._map_good is not None and (values_of_all := self._read_good(events)) is not None:
            mapped = self._map_good(values_of_all)
            if mapped is not None:
                return [*mapped]
        found: list[list[Mapped] | AnabranchError] = []
        for event in events:
            try:
                values = read(event)
                if only is not None:
                    found.append([only(values)])
                else:
                    found.append([convert(values[start:stop]) for convert, start, stop in spans])
            except AnabranchError as error:
                found.append(error)
        return found

    def _call(self, events: list[dict[str, Any]]) -> list[list[Mapped] | AnabranchError]:
        assert self._function is not None and self.spec.function is not None  # noqa: S101, PT018 - by `read_all`
        name = self.spec.function.name
        try:
            arrays = self._function(events)
            columns = [_column(spec, arrays, len(events), self.model, name) for spec in self.model.inputs]
        except Exception as error:  # noqa: BLE001 - a function may raise anything
            if len(events) > 1:
                half = len(events) // 2
                return self._call(events[:half]) + self._call(events[half:])
            if isinstance(error, AnabranchError):
                return [error]
            return [MappingFailed(f"{name} raised {type(error).__name__}: {error}")]
        return [list(row) for row in zip(*columns, strict=True)]

    def format(self, outputs: Mapping[str, Array]) -> list[Any]:
        """Format the outputs of some rows for `write`; see `EventFormat.format`."""
        return self._format.format(outputs)

    def write_failed(self, event: bytes, code: str) -> bytes | None:
        """Return the outgoing event of a failed one; None if it has none.

        With `on_error = "letter"`, and without a place to put the code into, there is none.
        """
        if self.spec.on_error == "letter" or code == UnreadableRequest.code:
            return None
        try:
            return self._format.write_failed(event, code)
        except AnabranchError:
            return None

    def key_of(self, event: bytes) -> bytes | None:
        """Return the key that the flow takes from the event; None to keep the record's own.

        Raises:
            MissingField: The field is missing.
            InvalidField: The field is neither a text nor an integer.
        """
        if self.spec.key is None:
            return None
        value = self._format.read_key(event)
        if isinstance(value, str):
            return value.encode()
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value).encode()
        name = format_path(self.spec.key)
        if value is None or value is MISSING:
            raise MissingField(f"field {name!r} is {describe(value)}, which the flow takes as key: send it")
        raise InvalidField(f"field {name!r} is {describe(value)}, expected a text or integer for the key: correct it")


def _column(spec: TensorSpec, arrays: Any, events: int, model: ModelSpec, name: str) -> list[Mapped]:
    """Check an array that a function made, and divide it by events."""
    if not isinstance(arrays, Mapping) or spec.name not in arrays:
        found = ", ".join(map(str, arrays)) if isinstance(arrays, Mapping) else type(arrays).__name__
        raise MappingFailed(f"{name} returned {found or 'nothing'}, expected a mapping with {spec.name!r}: return it")
    array = np.asarray(arrays[spec.name])
    row = spec.shape[1:] if model.batchable else spec.shape
    if not fits(array.shape, (events, *row)):
        expected = show_axes((events, *row))
        raise MappingFailed(
            f"{name} returned {spec.name!r} of shape {list(array.shape)}, expected {expected}: "
            "return a row for each event"
        )
    if datatype_of(array.dtype) != spec.datatype:
        raise MappingFailed(f"{name} returned {spec.name!r} as {array.dtype}, expected {spec.datatype}: convert it")
    return [(bytes(raw_from_array(array[at : at + 1])), array.shape[1:]) for at in range(events)]
