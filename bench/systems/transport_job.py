"""Two tasks on two TaskManagers of one host, and Flink's exchange between them.

    [ write: messages or claims, in turn ] --> rebalance --> [ read: all bytes, and how long they took ]

Each TaskManager has one slot for one operator.
"""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from time import sleep, time
from typing import Any
from urllib.parse import urlsplit

import msgspec
import numpy as np
from pyflink.common import Configuration, WatermarkStrategy
from pyflink.datastream import ProcessFunction, RuntimeContext, StreamExecutionEnvironment
from pyflink.datastream.connectors.number_seq import NumberSequenceSource
from pyflink.java_gateway import get_gateway

from anabranch.flink_job import installation
from anabranch.flink_job.config import Config
from anabranch.operators.core.metrics import Meter
from anabranch.operators.core.transport.claim_check import TransportOptions, is_claim
from anabranch.operators.runtime.flink_types import BYTES
from anabranch.operators.runtime.task_context import task_context_of
from anabranch.operators.transport.endpoints import Receiver, Sender
from anabranch.schemas.records import PartialRecord, Segment, Source
from bench.harness.messages import MESSAGES, SHARED_MEMORY, TransportCommand, TransportLog
from bench.systems.anabranch_job import peer_options

_READER = "read"
_SETTLE_S = 0.2


class Write(ProcessFunction):
    """Anything -> all records of all phases."""

    def __init__(self, command: TransportCommand) -> None:
        self._order = command

    def open(self, runtime_context: RuntimeContext) -> None:
        """Open both ways."""
        task = task_context_of(runtime_context)
        self._outboxes = {
            MESSAGES: Sender(TransportOptions(), task, _READER, 1, Meter()),
            SHARED_MEMORY: Sender(_options(self._order), task, _READER, 1, Meter()),
        }

    def process_element(self, value: Any, ctx: ProcessFunction.Context) -> Iterator[bytes]:  # noqa: ARG002 - Flink's
        """Write."""
        for number, phase in enumerate(self._order.phases):
            outbox = self._outboxes[phase.transport]
            data = np.arange(phase.size_bytes // 8, dtype=np.uint64)
            sleep(_SETTLE_S)
            for index in range(phase.count):
                data[0] = index
                tensors = (data.view(np.uint8).data,)
                yield outbox.pack(
                    PartialRecord(Segment(Source(number, index, 0)), b"", tensors, ended_ms=time() * 1000)
                )
                if phase.interval_s:
                    sleep(phase.interval_s)


class Read(ProcessFunction):
    """Records -> nothing; after the last, a file."""

    def __init__(self, command: TransportCommand) -> None:
        self._order = command

    def open(self, runtime_context: RuntimeContext) -> None:
        """Open the way in."""
        self._inbox = Receiver(_options(self._order), task_context_of(runtime_context), _READER, Meter())
        self._seen = [TransportLog() for _ in self._order.phases]

    def process_element(self, value: bytes, ctx: ProcessFunction.Context) -> Iterator[bytes]:  # noqa: ARG002 - Flink's
        """Read one."""
        record = PartialRecord.decode(self._inbox.redeem(value))
        number, index = record.segment.source.partition, record.segment.source.offset
        phase, seen = self._order.phases[number], self._seen[number]
        words = phase.size_bytes // 8
        total = int(np.frombuffer(record.tensors[0], np.uint64).sum())
        at_ms, sent_ms = time() * 1000, record.ended_ms
        seen.started_ms = seen.started_ms or sent_ms
        seen.ended_ms = at_ms
        seen.spent_ms.append(at_ms - sent_ms)
        seen.wrong += total != words * (words - 1) // 2 + index
        seen.claims += is_claim(value)
        if number == len(self._order.phases) - 1 and index == phase.count - 1:
            Path(self._order.out_path).write_bytes(msgspec.json.encode(self._seen))
        return iter(())


def run(command: TransportCommand) -> None:
    """Run the job to its end."""
    installation.activate()
    settings = Configuration()
    # No checkpoint comes in between: the writer is in one call from the first record to the last.
    for key, option in peer_options(Config().replace(job={"checkpoint_interval_ms": 3_600_000})).items():
        settings.set_string(key, option)
    address = urlsplit(command.flink_url)
    gateway: Any = get_gateway()
    java_environment = gateway.jvm.org.apache.flink.streaming.api.environment.StreamExecutionEnvironment
    env = StreamExecutionEnvironment(
        java_environment.createRemoteEnvironment(
            address.hostname,
            address.port,
            settings._j_configuration,  # noqa: SLF001 - PyFlink has no other way to a running cluster
            gateway.new_array(gateway.jvm.java.lang.String, 0),
        )
    )
    env.set_parallelism(1)
    once = env.from_source(NumberSequenceSource(0, 0), WatermarkStrategy.no_watermarks(), "start")
    started = once.slot_sharing_group("write")
    written = started.process(Write(command), BYTES).slot_sharing_group("write")
    written.rebalance().process(Read(command), BYTES).slot_sharing_group("read")
    env.execute("exchange")


def _options(command: TransportCommand) -> TransportOptions:
    return TransportOptions(job=command.job, shares_memory=True, claim_from_bytes=1, arena_bytes=command.arena_bytes)


if __name__ == "__main__":
    # Flink's tasks unpickle the operators: they must belong to a module that can be imported, not to `__main__`.
    import_module("bench.systems.transport_job").run(TransportCommand.from_arguments())
