"""Payments as events in JSON and Avro, a model that scores them, and the check of scored events.

An outgoing event is the incoming one with a field `score`, the model's second output.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import fastavro
import numpy as np
import onnx
import onnxruntime
import orjson
from onnx import numpy_helper

from anabranch.onnx_runtime.session import open_session
from anabranch.schemas.tensors import Array
from bench.workloads.models import make_ffnn, new_model
from bench.workloads.workload import PLACEHOLDER, Workload

EventFormat = Literal["json", "avro"]
FRAUD = "fraud"
SCORE = "score"
#: Paths of the three fields that the model takes.
PATHS: Final = ("amount", "user.age", "minute_of_day")

_WIDTHS = (len(PATHS), 32, 32, 2)
#: Usual sizes of the fields.
_SCALES = (500.0, 90.0, 1440.0)
_DISTINCT_EVENTS = 64
_SEED = 2
_NAMES = ("Ada Moreno", "Björn Åkesson", "Chidi Okafor", "Dana O'Neil")
_GOODS = ("running shoes", "espresso cups, set of 6", "USB-C cable 2 m", "garden hose", "novel, paperback")


def _schema_of(record: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "record", "name": record, "fields": [{"name": name, "type": fields[name]} for name in fields]}


_USER = _schema_of("User", {"name": "string", "age": "int", "country": "string"})
_ITEM = _schema_of("Item", {"sku": "string", "name": "string", "quantity": "int", "price": "double"})
_FIELDS: Mapping[str, Any] = {
    "id": "string",
    "amount": "double",
    "currency": "string",
    "minute_of_day": "int",
    "user": _USER,
    "items": {"type": "array", "items": _ITEM},
    "note": "string",
}
_SCORED = {"name": SCORE, "type": ["null", "float"], "default": None}
SCHEMA: Final = _schema_of("Payment", _FIELDS)
SCORED_SCHEMA: Final = {**SCHEMA, "fields": [*SCHEMA["fields"], _SCORED]}
_PARSED, _PARSED_SCORED = fastavro.parse_schema(SCHEMA), fastavro.parse_schema(SCORED_SCHEMA)


@dataclass(frozen=True)
class EventCodec:
    """How a hand-written program reads and writes these events: with the quickest libraries in general use.

    Avro events carry no schema number.
    """

    format: EventFormat

    def read(self, message: bytes) -> dict[str, Any]:
        """Decode an event."""
        if self.format == "json":
            event: dict[str, Any] = orjson.loads(message)
            return event
        return _record(message, _PARSED)

    def write(self, event: Mapping[str, Any], *, scored: bool = True) -> bytes:
        """Encode an event."""
        if self.format == "json":
            return orjson.dumps(event)
        out = io.BytesIO()
        fastavro.schemaless_writer(out, _PARSED_SCORED if scored else _PARSED, event)
        return out.getvalue()

    def read_scored(self, message: bytes) -> dict[str, Any]:
        """Decode an outgoing event."""
        return self.read(message) if self.format == "json" else _record(message, _PARSED_SCORED)


class ScoredEvents:
    """Reads outgoing events of a workload, and compares them with its incoming ones."""

    def __init__(self, workload: Workload) -> None:
        self._codec = EventCodec(_format_of(workload))
        self._is_whole = workload.wire != "rows"
        self._originals = []
        for row in workload.requests:
            event = self._codec.read(row.tobytes())
            del event["id"]
            self._originals.append(event)

    def read(self, message: bytes) -> tuple[int, Array]:
        """Return an event's number and score.

        Raises:
            ValueError: It is not a scored event, or another field has changed.
        """
        try:
            event = self._codec.read_scored(message)
            number, score = int(event.pop("id")), np.array([event.pop(SCORE)], np.float32)
        except (KeyError, TypeError, EOFError, IndexError) as error:
            raise ValueError(f"not a scored event: {error}") from error
        if self._is_whole and event != self._originals[number % len(self._originals)]:
            raise ValueError(f"event {number} has changed")
        return number, score


def features_of(event: Mapping[str, Any]) -> list[float]:
    """Return the three fields."""
    return [event["amount"], event["user"]["age"], event["minute_of_day"]]


def add_fraud(repository: Path) -> Path:
    """Add the model of payments to a repository, and return that."""
    model = make_ffnn(_WIDTHS)
    first = next(each for each in model.graph.initializer if each.name == "w0")
    scaled = numpy_helper.to_array(first) / np.array(_SCALES, np.float32)[:, np.newaxis]
    first.CopyFrom(numpy_helper.from_array(scaled, "w0"))
    onnx.save(model, new_model(repository, FRAUD))
    return repository


def payments(repository: Path, form: EventFormat, size_bytes: int) -> Workload:
    """Random payments, all of one size."""
    rng = np.random.default_rng(_SEED)
    codec = EventCodec(form)
    events = [_payment(rng, codec, size_bytes) for _ in range(_DISTINCT_EVENTS)]
    messages = [codec.write(event, scored=False) for event in events]
    session: onnxruntime.InferenceSession = open_session(repository / FRAUD / "1" / "model.onnx")
    rows = np.array([features_of(event) for event in events], np.float32)
    scores = np.concatenate([session.run(None, {"x": row[np.newaxis]})[0][:, 1:] for row in rows])
    requests = [np.frombuffer(message, np.uint8) for message in messages]
    return Workload(f"{name_of(form)} {size_bytes / 1000:g} KB", requests, [*scores], wire=form)


def name_of(form: EventFormat) -> str:
    """Return the name of a format for readers."""
    return {"json": "JSON", "avro": "Avro"}[form]


def _payment(rng: np.random.Generator, codec: EventCodec, size_bytes: int) -> dict[str, Any]:
    event: dict[str, Any] = {
        "id": PLACEHOLDER,
        "amount": round(float(rng.uniform(1, 500)), 2),
        "currency": "EUR",
        "minute_of_day": int(rng.integers(0, 1440)),
        "user": {
            "name": _NAMES[rng.integers(len(_NAMES))],
            "age": int(rng.integers(18, 90)),
            "country": ("DE", "FR", "IT")[rng.integers(3)],
        },
        "items": [],
        "note": "",
    }
    while True:
        item = {
            "sku": f"{rng.integers(10**8, 10**9)}",
            "name": _GOODS[rng.integers(len(_GOODS))],
            "quantity": int(rng.integers(1, 5)),
            "price": round(float(rng.uniform(1, 100)), 2),
        }
        event["items"].append(item)
        if len(codec.write(event, scored=False)) > size_bytes - 8:
            event["items"].pop()
            break
    # A length may take one more byte in Avro.
    while (missing := size_bytes - len(codec.write(event, scored=False))) > 0:
        event["note"] += "x" * max(1, missing - 2)
    return event


def _record(message: bytes, schema: Any) -> dict[str, Any]:
    record = fastavro.schemaless_reader(io.BytesIO(message), schema, None)
    assert isinstance(record, dict)  # noqa: S101 - by the schema
    return record


def _format_of(workload: Workload) -> EventFormat:
    return "avro" if workload.wire == "avro" else "json"
