"""Protobuf events for a trial, from lines of JSON."""

from collections.abc import Callable, Iterator
from typing import BinaryIO

from google.protobuf import json_format
from google.protobuf.message import Message

from anabranch.errors import UnusableArgument
from anabranch.operators.core.flows.flow_spec import FlowSpec
from anabranch.operators.core.flows.formats.protobuf_format import ProtobufFormat, write_frame
from anabranch.operators.core.flows.formats.protobuf_schema import ProtobufSchema, indexes_of
from anabranch.operators.core.flows.formats.registered_schemas import LocalRegistry, RegisteredSchema
from anabranch.schemas.model import ModelSpec


class ProtobufEvents:
    """Converts events of one flow.

    Args:
        registry: Registry of the trial, which gets the schema of the events.
        latest: Returns the topic's newest schema.
    """

    def __init__(
        self, spec: FlowSpec, model: ModelSpec, registry: LocalRegistry, latest: Callable[[], RegisteredSchema]
    ) -> None:
        self._spec = spec
        self._format = ProtobufFormat(spec, model, registry)
        self._registry = registry
        self._latest = latest

    def read(self, file: BinaryIO) -> Iterator[bytes]:
        """Yield events as the job reads them; raise UnusableArgument."""
        registered = self._spec.protobuf or self._latest()
        indexes = indexes_of(registered, self._spec.message) if self._spec.message else (0,)
        message = ProtobufSchema(registered, indexes, "the flow's schema").message
        head = b""
        if self._spec.is_framed:
            head = write_frame(self._registry.register("events", registered), indexes)
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    event: Message = json_format.Parse(line, message())
                except (json_format.ParseError, UnicodeDecodeError) as error:
                    raise UnusableArgument(
                        f"line {number} is not a {message.DESCRIPTOR.full_name}: {error}: give lines of JSON"
                    ) from None
                yield head + event.SerializeToString()

    def show(self, event: bytes) -> bytes:
        """Return an outgoing event as a line of JSON."""
        message = self._format.outgoing_message(event)
        return json_format.MessageToJson(message, preserving_proto_field_name=True, indent=None).encode()

    def outgoing_schema(self) -> str:
        """Return nothing: a descriptor is not for people."""
        return ""
