"""The `[[flow]]` tables of the configuration."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from anabranch.flink_job.errors import ConfigError
from anabranch.operators.core.flows.flow_spec import OnError
from anabranch.ready_steps.options import FILES
from anabranch.schemas.limits import MAX_PRIORITY, MAX_WAIT_MS
from anabranch.schemas.wire.carried import flow_number


class FlowTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A topic of events, and one for the same events with predictions.

    Attributes:
        source: Topic of events.
        to: Topic of events with predictions.
        model: Model of the repository, `NAME` or `NAME@VERSION`.
        format: Encoding of the events.
        framing: `confluent` events name their schemas in `[registry]`, as Confluent's serializers write them.
        schema: File beside this one: an Avro schema of all events, or by which framed events are read; for unframed
            Protobuf a descriptor set.
        message: Full name of the Protobuf message in it.
        before: Ready step that makes the inputs of the model, such as `{ step = "tokenize" }`; reads files beside this.
        after: Ready step behind the model, such as `{ step = "labels" }`.
        inputs: Fields of each input of the model, or of the step before it; or `FILE.py:FUNCTION` beside this file.
        outputs: Output of the model, or of the step behind it, for each path in the event.
        key: Field for the record's new key; empty keeps its own.
        deadline_ms: From the record's timestamp; 0 for none.
        priority: 1 is the most urgent; 0 is the job's default.
        on_error: `letter` sends a failed event to the errors topic; `pass` sends it on, with the error's code;
            `default` also with the defaults of `outputs`.
        error_field: Path of the error's code.
        order: `key` keeps the events of a partition in order.
    """

    source: Annotated[str, Meta(min_length=1)] = msgspec.field(name="from")
    to: Annotated[str, Meta(min_length=1)]
    model: str
    format: Literal["json", "avro", "protobuf"] = "json"
    framing: Literal["confluent", "none"] = "confluent"
    schema: str = ""
    message: str = ""
    before: dict[str, Any] = {}
    after: dict[str, Any] = {}
    inputs: dict[str, Any] | str
    outputs: dict[str, Any]
    key: str = ""
    deadline_ms: Annotated[int, Meta(ge=0, le=MAX_WAIT_MS)] = 0
    priority: Annotated[int, Meta(ge=0, le=MAX_PRIORITY)] = 0
    on_error: OnError = "letter"
    error_field: str = "inference_error"
    order: Literal["any", "key"] = "any"


class FieldTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A field of an event.

    Attributes:
        path: Keys with dots between them; indices of lists in brackets.
        type: `timestamp` reads RFC 3339 as time since 1970; `base64` reads bytes.
        unit: Of a timestamp.
        enum: Texts, numbered from 0.
        default: Of a missing or null field; without one, the event fails.
    """

    path: str
    type: Literal["plain", "timestamp", "base64"] = "plain"
    unit: Literal["ms", "s", "min", "h", "d"] = "s"
    enum: tuple[str, ...] = ()
    default: Any = msgspec.UNSET


class OutputTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An output of the model.

    Attributes:
        source: Name of the output, and indices into its row: `probabilities[1]`.
        default: Value for `on_error = "default"`.
    """

    source: str = msgspec.field(name="from")
    default: Any = msgspec.UNSET


def check_schemas(flows: Sequence[FlowTable], place: str, *, has_registry: bool) -> None:
    """Refuse flows without their schemas; raise ConfigError."""
    for number, flow in enumerate(flows):
        where = f"{place}: flow[{number}]"
        is_protobuf = flow.format == "protobuf"
        if flow.format == "json":
            if flow.schema or flow.message or flow.framing != "confluent":
                raise ConfigError(f"{where}.format is 'json', which has no schema: remove schema, message and framing")
        elif flow.message and not is_protobuf:
            raise ConfigError(f"{where}.message is for Protobuf: remove it")
        elif flow.framing == "none":
            if not flow.schema or (is_protobuf and not flow.message):
                needed = "schema and message" if is_protobuf else "schema"
                raise ConfigError(f"{where}.framing is 'none' without {needed}: name the file with the events' schema")
        elif not has_registry:
            raise ConfigError(
                f"{where}.format is {flow.format!r} without a registry: write registry.url, or framing = 'none' and "
                "schema"
            )
        elif is_protobuf and flow.schema:
            raise ConfigError(f"{where}.schema is not used, because the events name their schemas: remove it")


def check_topics(flows: Sequence[FlowTable], own_topics: Sequence[str], place: str) -> None:
    """Refuse flows with a common topic, or in a circle; raise ConfigError."""
    onwards: dict[str, str] = {}
    by_number: dict[int, str] = {}
    for number, flow in enumerate(flows):
        where = f"{place}: flow[{number}]"
        for key, topic in (("from", flow.source), ("to", flow.to)):
            if topic in own_topics:
                raise ConfigError(
                    f"{where}.{key} is {topic!r}, which [kafka] names for requests and answers: rename it"
                )
        if flow.source in onwards:
            raise ConfigError(f"{where}.from is {flow.source!r}, which another flow reads: use each topic once")
        onwards[flow.source] = flow.to
        other = by_number.setdefault(flow_number(flow.source), flow.source)
        if other != flow.source:
            raise ConfigError(
                f"{where}.from is {flow.source!r}, which clashes with {other!r} inside the job: rename one"
            )
    for topic in onwards:
        seen, at = {topic}, onwards.get(topic)
        while at is not None and at not in seen:
            seen.add(at)
            at = onwards.get(at)
        if at == topic:
            raise ConfigError(f"{place}: the flows lead from {topic!r} back to it: write to another topic")


def beside(flows: tuple[FlowTable, ...], folder: Path) -> tuple[FlowTable, ...]:
    """Return flows with absolute paths of files."""
    at = folder.resolve()
    return tuple(
        msgspec.structs.replace(
            flow,
            inputs=str(at / flow.inputs) if isinstance(flow.inputs, str) else flow.inputs,
            schema=str(at / flow.schema) if flow.schema else "",
            before=_beside(flow.before, at),
            after=_beside(flow.after, at),
        )
        for flow in flows
    )


def _beside(step: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the table of a step with absolute paths of files, also of those that it names by default."""
    named = {option: step.get(option, default) for option, default in FILES.get(step.get("step", ""), {}).items()}
    return step | {option: str(folder / file) for option, file in named.items() if isinstance(file, str)}
