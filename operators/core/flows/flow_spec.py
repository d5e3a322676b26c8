"""Flow as the job knows it: all names resolved against its model."""

from typing import Any, Literal, TypeAlias

import msgspec

from anabranch.operators.core.flows.field_path import FieldPath
from anabranch.operators.core.flows.formats.registered_schemas import RegisteredSchema
from anabranch.schemas.model import FunctionSpec

OnError: TypeAlias = Literal["letter", "pass", "default"]
Format: TypeAlias = Literal["json", "avro", "protobuf"]
FieldKind: TypeAlias = Literal["plain", "timestamp", "base64", "enum"]

#: Seconds of each unit of timestamps.
UNITS_S = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


class FieldSpec(msgspec.Struct, frozen=True):
    """A field of an event, as a value of a tensor.

    Attributes:
        unit: Of a timestamp since 1970.
        values: Texts of an enum, in order of their numbers.
        default: Of a missing or null field; UNSET refuses the event.
    """

    path: FieldPath
    kind: FieldKind = "plain"
    unit: str = "s"
    values: tuple[str, ...] = ()
    default: Any = msgspec.UNSET


class InputSpec(msgspec.Struct, frozen=True):
    """An input of the model, made of fields.

    Attributes:
        shape: Without the batch axis; None for any size.
        is_whole: The only field has all elements; else each field has one.
    """

    name: str
    datatype: str
    shape: tuple[int | None, ...]
    fields: tuple[FieldSpec, ...]
    is_whole: bool = False


class OutputField(msgspec.Struct, frozen=True):
    """An output of the model, as a field of the outgoing event.

    Attributes:
        path: Keys of objects.
        tensor: Output of the model.
        indices: Of one element or part of the row.
        default: Value for `on_error = "default"`.
    """

    path: tuple[str, ...]
    tensor: str
    indices: tuple[int, ...] = ()
    default: Any = msgspec.UNSET


class FlowSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A flow; `topic` is its name, too.

    Attributes:
        inputs: Empty with a function.
        function: Makes the tensors of a list of events.
        key: Field for the outgoing record's key; None keeps the record's own.
        deadline_ms: From the record's timestamp; 0 for none.
        priority: 0 for the job's default.
        error_path: Field for the code of an error, unless `on_error` is `letter`.
        schema: Of all events if they name none, else the one by which they are read; may be empty then.
        protobuf: As `schema`, of Protobuf.
        message: Full name of the message in it.
        is_framed: Events name their schemas, as Confluent's serializers write them.
    """

    topic: str
    to: str
    model_name: str
    model_version: str
    outputs: tuple[OutputField, ...]
    inputs: tuple[InputSpec, ...] = ()
    function: FunctionSpec | None = None
    key: FieldPath | None = None
    deadline_ms: int = 0
    priority: int = 0
    on_error: OnError = "letter"
    error_path: tuple[str, ...] = ("inference_error",)
    is_ordered: bool = False
    format: Format = "json"
    schema: str = ""
    protobuf: RegisteredSchema | None = None
    message: str = ""
    is_framed: bool = False

    @property
    def paths(self) -> list[FieldPath]:
        """Paths of all inputs."""
        return [field.path for each in self.inputs for field in each.fields]
