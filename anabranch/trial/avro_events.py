"""Avro events for a trial: from an Avro file, or from lines in Avro's JSON."""

import io
import json
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, BinaryIO

import fastavro
from fastavro.schema import SchemaParseException

from anabranch.errors import UnusableArgument
from anabranch.operators.core.flows.flow_spec import FlowSpec
from anabranch.operators.core.flows.formats.avro_format import AvroFormat
from anabranch.operators.core.flows.formats.framing import read_schema_id, write_schema_id
from anabranch.operators.core.flows.formats.registered_schemas import LocalRegistry, RegisteredSchema
from anabranch.schemas.model import ModelSpec

_FILE_MARK = b"Obj\1"


class AvroEvents:
    """Converts events of one flow.

    Args:
        registry: Registry of the trial, which gets the schema of the events.
        latest: Returns the topic's newest schema, for lines.
    """

    def __init__(
        self, spec: FlowSpec, model: ModelSpec, registry: LocalRegistry, latest: Callable[[], RegisteredSchema]
    ) -> None:
        self._spec = spec
        self._format = AvroFormat(spec, model, registry)
        self._registry = registry
        self._latest = latest

    def read(self, file: BinaryIO) -> Iterator[bytes]:
        """Yield events as the job reads them; raise UnusableArgument."""
        content = file.read()
        try:
            if content.startswith(_FILE_MARK):
                yield from self._of_file(io.BytesIO(content))
            else:
                yield from self._of_lines(content.decode())
        except (SchemaParseException, EOFError, LookupError, TypeError, ValueError) as error:
            raise UnusableArgument(
                f"the events cannot be read ({type(error).__name__}: {error}): give an Avro file, or lines of JSON as "
                "kafka-avro-console-consumer prints them"
            ) from None

    def show(self, event: bytes) -> bytes:
        """Return an outgoing event as a line of JSON."""
        schema = _parsed(self.outgoing_schema())
        start = read_schema_id(event)[1] if self._spec.is_framed else 0
        record = fastavro.schemaless_reader(io.BytesIO(event[start:]), schema, None)
        line = io.StringIO()
        fastavro.json_writer(line, schema, [record])
        return line.getvalue().encode()

    def outgoing_schema(self) -> str:
        """Return the schema of outgoing events."""
        if self._spec.is_framed:
            return self._registry.schemas[-1].text
        return self._format.outgoing_schema(b"")

    def _of_file(self, file: BinaryIO) -> Iterator[bytes]:
        whole = fastavro.reader(file)
        schema = whole.writer_schema
        if self._spec.is_framed:
            yield from self._encoded(json.dumps(schema), whole)
            return
        file.seek(0)
        yield from self._encoded(self._spec.schema, fastavro.reader(file, json.loads(self._spec.schema)))

    def _of_lines(self, lines: str) -> Iterator[bytes]:
        text = self._latest().text if self._spec.is_framed else self._spec.schema
        yield from self._encoded(text, fastavro.json_reader(io.StringIO(lines), json.loads(text)))

    def _encoded(self, text: str, records: Iterator[object]) -> Iterator[bytes]:
        head = b""
        if self._spec.is_framed:
            number = self._registry.register("events", RegisteredSchema(text))
            head = write_schema_id(number)
        schema = _parsed(text)
        for record in records:
            encoded = io.BytesIO()
            fastavro.schemaless_writer(encoded, schema, record)
            yield head + encoded.getvalue()


@lru_cache(maxsize=2)
def _parsed(text: str) -> Any:
    return fastavro.parse_schema(json.loads(text))
