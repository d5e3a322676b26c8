"""Events in JSON."""

from typing import Any

import msgspec
import orjson

from anabranch.operators.core.flows.event_reader import EventReader, decode_json
from anabranch.operators.core.flows.event_writer import EventWriter
from anabranch.operators.core.flows.flow_spec import FlowSpec
from anabranch.operators.core.flows.output_mapping import OutputMapping

_event_decoder = msgspec.json.Decoder(dict[str, Any])


class JsonFormat:
    """The format of a flow of JSON objects; see `EventFormat`."""

    def __init__(self, spec: FlowSpec) -> None:
        self._spec = spec
        #: Bound at once, for the hot path.
        reader = EventReader(spec.paths)
        self.read, self.read_good = reader.read, reader.read_good
        self._key = EventReader([spec.key] if spec.key else [])
        self._outputs = OutputMapping(spec.outputs)
        self.format = self._outputs.format
        self._writer = EventWriter([field.path for field in spec.outputs])
        self.write = self._writer.put
        self._error_writer = EventWriter([spec.error_path])

    def read_key(self, event: bytes) -> Any:
        """Return the value of the key's path."""
        return self._key.read(event)[0]

    def decode(self, event: bytes) -> dict[str, Any]:
        """Return the whole event."""
        decoded: dict[str, Any] = decode_json(event, _event_decoder)
        return decoded

    def write_failed(self, event: bytes, code: str) -> bytes:
        """Return the outgoing event of a failed one."""
        decode_json(event, _event_decoder)
        if self._spec.on_error == "default":
            event = self._writer.put(event, self._outputs.defaults())
        return self._error_writer.put(event, [orjson.dumps(code)])
