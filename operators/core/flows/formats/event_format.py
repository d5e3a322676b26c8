"""Encoding of the events of one flow."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from anabranch.operators.core.flows.flow_spec import FlowSpec
from anabranch.operators.core.flows.formats.json_format import JsonFormat
from anabranch.operators.core.flows.formats.registered_schemas import LocalRegistry, SchemaRegistry
from anabranch.schemas.model import ModelSpec
from anabranch.schemas.tensors import Array


class EventFormat(Protocol):
    """Reads the fields of events, and writes others into them.

    All methods but `format` and `read_good` raise AnabranchError for an event at fault.
    """

    def read_good(self, events: Sequence[bytes]) -> list[Sequence[Any]] | None:
        """Read events; None if any needs a closer look."""

    def read(self, event: bytes) -> Sequence[Any]:
        """Return the value of each path of the inputs, MISSING without one."""

    def read_key(self, event: bytes) -> Any:
        """Return the value of the key's path."""

    def decode(self, event: bytes) -> dict[str, Any]:
        """Return the whole event."""

    def format(self, outputs: Mapping[str, Array]) -> list[Any]:
        """Return the fragments of each row, for `write`; raise AnabranchError for outputs that it cannot hold."""

    def write(self, event: bytes, fragments: Any) -> bytes:
        """Return the outgoing event."""

    def write_failed(self, event: bytes, code: str) -> bytes:
        """Return the outgoing event of a failed one."""


def format_of(spec: FlowSpec, model: ModelSpec, registry: SchemaRegistry | None = None) -> EventFormat:
    """Compile the format of a flow."""
    if spec.format == "json":
        return JsonFormat(spec)
    if spec.format == "avro":
        from anabranch.operators.core.flows.formats.avro_format import AvroFormat  # noqa: PLC0415 - for few jobs

        return AvroFormat(spec, model, registry or LocalRegistry())
    from anabranch.operators.core.flows.formats.protobuf_format import ProtobufFormat  # noqa: PLC0415 - for few jobs

    return ProtobufFormat(spec, model, registry or LocalRegistry())
