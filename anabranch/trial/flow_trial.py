"""Runs events through one flow of a configuration."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from anabranch.errors import UnusableArgument
from anabranch.flink_job.config import Config, load
from anabranch.flink_job.flows.flow_chains import with_chains
from anabranch.flink_job.flows.registry import registry_of
from anabranch.flink_job.flows.resolution import resolve
from anabranch.flink_job.model_repository.repository import read_repository
from anabranch.operators.backends.onnx import OnnxBackend
from anabranch.operators.core.flows.flow import Flow
from anabranch.operators.core.flows.flows import Flows
from anabranch.operators.core.flows.formats.registered_schemas import Kind, LocalRegistry, RegisteredSchema
from anabranch.operators.core.outputs import Answer, DeadLetterRecord
from anabranch.operators.sessions.step_functions import load_function
from anabranch.schemas.model import Catalog
from anabranch.schemas.records import Source
from anabranch.schemas.wire.carried import decode_carried
from anabranch.schemas.wire.dead_letters import decode_dead_letter
from anabranch.trial.local_run import LocalRun, event_record

if TYPE_CHECKING:
    from anabranch.trial.avro_events import AvroEvents
    from anabranch.trial.protobuf_events import ProtobufEvents

_LINE = "line"


class Outcome(msgspec.Struct, frozen=True):
    """Result of one event.

    Attributes:
        line: From 1.
        value: The outgoing event, or the dead letter.
        key: Of the outgoing event, if the flow sets one.
        failure: Code and message of a dead letter.
    """

    line: int
    value: bytes
    key: bytes | None = None
    failure: str = ""


class FlowTrial:
    """One flow of a configuration, with its model.

    Args:
        topic: Needed if the configuration has several flows.
        model_repository: Instead of the configured one.

    Raises:
        ConfigError: The configuration or the repository is at fault.
        UnusableArgument: The topic names no flow.
    """

    def __init__(self, path: Path, topic: str | None = None, model_repository: Path | None = None) -> None:
        self._config: Config = load(path)
        repository = model_repository or Path(self._config.models.repository)
        served: Catalog = read_repository(repository, self._config.defaults)
        self._catalog = with_chains(served, self._config.flow, str(path))
        flows = {spec.topic: spec for spec in resolve(self._config.flow, self._catalog, str(path))}
        available = ", ".join(flows) or "none"
        if topic is None and len(flows) != 1:
            raise UnusableArgument(f"{path} has {len(flows)} flows, expected one: name one with --flow; {available}")
        topic = next(iter(flows)) if topic is None else topic
        if topic not in flows:
            raise UnusableArgument(f"{path} has no flow of topic {topic!r}; available: {available}")
        self.spec = flows[topic]
        self.model = self._catalog.find(self.spec.model_name, self.spec.model_version)
        self._registry = LocalRegistry()
        self._events = self._converter()

    def _converter(self) -> AvroEvents | ProtobufEvents | None:
        """Return the converter of events that are not JSON."""
        if self.spec.format == "avro":
            from anabranch.trial.avro_events import AvroEvents  # noqa: PLC0415 - for few flows

            return AvroEvents(self.spec, self.model, self._registry, lambda: self._latest("AVRO"))
        if self.spec.format == "protobuf":
            from anabranch.trial.protobuf_events import ProtobufEvents  # noqa: PLC0415 - for few flows

            return ProtobufEvents(self.spec, self.model, self._registry, lambda: self._latest("PROTOBUF"))
        return None

    def _latest(self, kind: Kind) -> RegisteredSchema:
        registry = registry_of(self._config)
        if registry is None:
            raise LookupError("registry.url")
        return registry.latest(f"{self.spec.topic}-value", kind)

    def event(self, file: BinaryIO) -> bytes:
        """Return the event of a file, the first one if they are not JSON."""
        return file.read() if self._events is None else next(self._events.read(file), b"")

    def events(self, file: BinaryIO) -> Iterator[bytes]:
        """Yield the events of a file; raise UnusableArgument for one that cannot be read."""
        if self._events is not None:
            yield from self._events.read(file)
            return
        for line in file:
            if event := line.rstrip(b"\r\n"):
                yield event

    def show(self, event: bytes) -> bytes:
        """Return an outgoing event as a line of JSON."""
        return (event if self._events is None else self._events.show(event)).rstrip() + b"\n"

    def outgoing_schema(self) -> str:
        """Return the schema of the outgoing events so far; empty for JSON."""
        return "" if self._events is None else self._events.outgoing_schema()

    def compiled(self) -> Flow:
        """Return the flow with its function."""
        flow = (
            Flows([(self.spec, self.model)], registry=self._registry).with_functions(load_function).of(self.spec.topic)
        )
        if flow is None:
            raise LookupError(self.spec.topic)
        return flow

    def run(self, events: Iterable[bytes]) -> Iterator[Outcome]:
        """Run events; yield their outcomes in the same order."""
        done: dict[int, Outcome] = {}
        line = 1
        served = LocalRun(self._config, self._catalog, [self.spec], OnnxBackend(), self._registry)
        for output in served.serve(self._records(events)):
            outcome = _outcome_of(output, keyed=self.spec.key is not None)
            done[outcome.line] = outcome
            while line in done:
                yield done.pop(line)
                line += 1

    def _records(self, events: Iterable[bytes]) -> Iterator[tuple[bytes, Source]]:
        for line, event in enumerate(events, 1):
            yield event_record(self.spec.topic, line, event, headers={_LINE: b"%d" % line})


def _outcome_of(output: Answer | DeadLetterRecord, *, keyed: bool) -> Outcome:
    carried = decode_carried(output.carried)
    line = int(dict(carried.headers)[_LINE] or 0)
    if isinstance(output, Answer):
        return Outcome(line, output.value, carried.key if keyed else None)
    letter = decode_dead_letter(output.value)
    return Outcome(line, output.value, failure=f"{letter.code}: {letter.message}")
