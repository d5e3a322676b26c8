"""The process that reads answers: notes their times, then compares them.

    python -m bench.harness.response_log COMMAND

Decoding and comparing wait until the last answer: they would disturb the times.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, time_ns
from typing import Self

import numpy as np
import numpy.typing as npt
from confluent_kafka import Consumer, Message, TopicPartition
from google.protobuf.message import DecodeError

from anabranch.schemas.errors import DeadlineExceeded, Overloaded
from anabranch.schemas.latency_breakdown import PHASES, SUFFIX
from anabranch.schemas.open_inference_pb2 import InferParameter, ModelInferResponse
from anabranch.schemas.tensors import Array
from bench.harness.messages import ReadCommand
from bench.systems.flink import crayfish_wire
from bench.workloads.events import ScoredEvents
from bench.workloads.workload import Workload

#: Parameters of an explained answer.
_EXPLAINED = PHASES[0] + SUFFIX
#: Deviation of outputs of which the angle is not computed.
_CLOSE = 1e-2
_AFTER_THE_LAST_S = 0.5
_POLL_S = 0.1


@dataclass(frozen=True)
class ResponseLog:
    """Answers of one run in order of arrival.

    Attributes:
        ids: Request numbers; -1 for none.
        received_ns: Unix time at the reader.
        appended_ms: LogAppendTime.
        deviation: Largest difference from a direct run; NaN without output.
        cosine: Of the angle to the direct run's output; 1 for a small deviation.
        refused: The error is `overloaded`.
        expired: The error is `deadline_exceeded`.
        stages_us: Latency breakdown, [answers, phases]; NaN without one.
    """

    ids: npt.NDArray[np.int64]
    received_ns: npt.NDArray[np.int64]
    appended_ms: npt.NDArray[np.int64]
    deviation: npt.NDArray[np.float64]
    refused: npt.NDArray[np.bool_]
    expired: npt.NDArray[np.bool_]
    stages_us: npt.NDArray[np.float64]
    cosine: npt.NDArray[np.float64]

    def save(self, path: Path) -> None:
        """Write the answers for another process."""
        np.savez(
            path,
            ids=self.ids,
            received_ns=self.received_ns,
            appended_ms=self.appended_ms,
            deviation=self.deviation,
            refused=self.refused,
            expired=self.expired,
            stages_us=self.stages_us,
            cosine=self.cosine,
        )

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the file of `save`."""
        with np.load(path) as file:
            return cls(**file)


def main() -> None:
    """Collect, compare and save the answers."""
    command = ReadCommand.from_arguments()
    workload = Workload.load(Path(command.workload_path))
    received = collect(command)
    compare(received, workload).save(Path(command.out_path))


def collect(command: ReadCommand) -> list[tuple[int, Message]]:
    """Take answers until all are there, and a moment longer for duplicates."""
    consumer = Consumer(
        {
            "bootstrap.servers": command.bootstrap_servers,
            "group.id": "bench-reader",
            "enable.auto.commit": False,
            "fetch.min.bytes": 1,
            "fetch.queue.backoff.ms": 10,
        }
    )
    consumer.assign([TopicPartition(command.topic, *place) for place in enumerate(command.start_offsets)])
    received: list[tuple[int, Message]] = []
    give_up_at = monotonic() + command.patience_s
    poll, note = consumer.poll, received.append
    ready = False
    while True:
        message = poll(_POLL_S)
        if not ready:
            Path(command.ready_path).touch()
            ready = True
        if message is not None and message.error() is None:
            note((time_ns(), message))
            if len(received) < command.expected:
                give_up_at = monotonic() + command.patience_s
            elif len(received) == command.expected:
                give_up_at = monotonic() + _AFTER_THE_LAST_S
        elif monotonic() > give_up_at:
            break
    consumer.close()
    return received


def compare(received: list[tuple[int, Message]], workload: Workload) -> ResponseLog:
    """Decode the answers and compare each with a direct run."""
    count = len(received)
    ids = np.full(count, -1, np.int64)
    deviation, cosine = np.full(count, np.nan), np.ones(count)
    refused, expired = np.zeros(count, bool), np.zeros(count, bool)
    stages_us = np.full((count, len(PHASES)), np.nan)
    read = _read if workload.wire == "requests" else _reader_of_events(workload)
    for index, (_, message) in enumerate(received):
        try:
            ids[index], values, said = read(message.value() or b"")
        except (DecodeError, ValueError):
            continue
        if said is not None:
            code = said["error_code"].string_param
            refused[index], expired[index] = code == Overloaded.code, code == DeadlineExceeded.code
            if _EXPLAINED in said:
                stages_us[index] = [said[stage + SUFFIX].int64_param for stage in PHASES]
        expected = workload.answer(int(ids[index]))
        if len(values) == len(expected):
            deviation[index], cosine[index] = difference(values, expected)
    received_ns = np.array([time for time, _ in received], np.int64)
    appended_ms = np.array([message.timestamp()[1] for _, message in received], np.int64)
    return ResponseLog(ids, received_ns, appended_ms, deviation, refused, expired, stages_us, cosine)


def difference(values: Array, expected: Array) -> tuple[float, float]:
    """Return the largest difference of two outputs, and the cosine of their angle: 1 if they are close."""
    deviation = float(np.abs(values - expected).max())
    if not deviation > _CLOSE:
        return deviation, 1.0
    lengths = float(np.linalg.norm(values) * np.linalg.norm(expected))
    return deviation, float(values @ expected) / lengths if lengths else 0.0


def _reader_of_events(workload: Workload) -> Callable[[bytes], tuple[int, Array, None]]:
    events = ScoredEvents(workload)
    return lambda message: (*events.read(message), None)


def _read(message: bytes) -> tuple[int, Array, Mapping[str, InferParameter] | None]:
    """Request number, scores (float32 [values]) and parameters of an answer.

    Raises:
        DecodeError, ValueError: The message is not an answer to a known request.
    """
    if crayfish_wire.is_answer(message):
        return *crayfish_wire.read_answer(message), None
    answer = ModelInferResponse.FromString(message)
    raw = answer.raw_output_contents[0] if len(answer.raw_output_contents) == 1 else b""
    return int(answer.id), np.frombuffer(raw, np.float32), answer.parameters


if __name__ == "__main__":
    main()
