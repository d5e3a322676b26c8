"""A peer: the PyFlink job that a competent user writes by hand, with one `map` for each event.

    Kafka value --> [ map: decode, three fields, session.run on one row, add the score, encode ] --> Kafka value

It has our settings of Flink and Kafka.
"""

from pathlib import Path

import numpy as np
from pyflink.datastream import MapFunction, RuntimeContext

from bench.harness.messages import ServeCommand
from bench.systems.flink.naive_map import run_map
from bench.systems.onnx_session import open_session
from bench.workloads.events import FRAUD, SCORE, EventCodec, EventFormat, features_of


class ScoreMap(MapFunction):
    """Event -> event with its score, one session call each."""

    def __init__(self, repository: str, form: EventFormat) -> None:
        self._repository = repository
        self._format = form

    def open(self, runtime_context: RuntimeContext) -> None:  # noqa: ARG002 - Flink's
        """Load the model."""
        self._session = open_session(Path(self._repository) / FRAUD / "1" / "model.onnx")
        self._codec = EventCodec(self._format)

    def map(self, value: bytes) -> bytes:
        """Score one event."""
        event = self._codec.read(value)
        row = np.array([features_of(event)], np.float32)
        event[SCORE] = float(self._session.run(None, {"x": row})[0][0, 1])
        return self._codec.write(event)


def run(command: ServeCommand) -> None:
    """Run the job until this process is stopped."""
    run_map(command, ScoreMap(command.repository, "avro" if command.events == "avro" else "json"))
