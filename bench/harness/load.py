"""The load generator: open loop, by a fixed schedule.

    python -m bench.harness.load COMMAND

All times are `time.time_ns`, the clock of the broker's timestamps.
"""

from pathlib import Path
from time import sleep, time_ns

import numpy as np
import numpy.typing as npt
from confluent_kafka import Producer

from bench.harness.messages import LoadCommand
from bench.workloads.workload import Workload, id_of

_LEAD_NS = 100_000_000
_GO_POLL_S = 0.005
_FLUSH_TIMEOUT_S = 120.0
_RETRY_S = 0.01


class LoadError(Exception):
    """The generator failed; the measurement is void."""


def main() -> None:
    """Send the requests, then write `scheduled_ns` and `sent_ns`."""
    command = LoadCommand.from_arguments()
    workload = Workload.load(Path(command.workload_path))
    if command.offsets_path is None:
        scheduled_ns = sent_ns = send_at_once(command, workload)
    else:
        scheduled_ns, sent_ns = send_by_schedule(command, workload, np.load(command.offsets_path))
    np.savez(command.out_path, scheduled_ns=scheduled_ns, sent_ns=sent_ns)


def send_by_schedule(
    command: LoadCommand, workload: Workload, offsets_ns: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Send each request at its time; return the scheduled and the actual times."""
    sent_ns = np.zeros(command.count, np.int64)
    producer = _producer(command, {"linger.ms": 0})
    producer.list_topics(command.topic, timeout=_FLUSH_TIMEOUT_S)
    _await_go(command)
    scheduled_ns = time_ns() + _LEAD_NS + offsets_ns
    for index, due_ns in enumerate(scheduled_ns.tolist()):
        number = command.first_id + index
        key, value = id_of(number), workload.message(number)
        wait_ns = due_ns - time_ns()
        if wait_ns > 0:
            sleep(wait_ns / 1e9)
        while True:
            now_ns = time_ns()
            try:
                producer.produce(command.topic, value, key, number % command.partitions, timestamp=now_ns // 1_000_000)
                break
            except BufferError:
                producer.poll(_RETRY_S)
        sent_ns[index] = now_ns
        producer.poll(0)  # frees the queue of delivered records
    _flush(producer)
    return scheduled_ns, sent_ns


def send_at_once(command: LoadCommand, workload: Workload) -> npt.NDArray[np.int64]:
    """Send all requests at full speed; return their send times."""
    producer = _producer(command, {"linger.ms": 5, "batch.size": 1_000_000})
    _await_go(command)
    sent_ns = np.zeros(command.count, np.int64)
    for index in range(command.count):
        number = command.first_id + index
        while True:
            try:
                producer.produce(command.topic, workload.message(number), id_of(number), number % command.partitions)
                break
            except BufferError:
                producer.poll(_RETRY_S)
        sent_ns[index] = time_ns()
    _flush(producer)
    return sent_ns


def _await_go(command: LoadCommand) -> None:
    while not Path(command.go_path).exists():
        sleep(_GO_POLL_S)


def _producer(command: LoadCommand, settings: dict[str, object]) -> Producer:
    return Producer(
        {
            "bootstrap.servers": command.bootstrap_servers,
            "queue.buffering.max.messages": 200_000,
            "queue.buffering.max.kbytes": 262_144,
            **settings,
        }
    )


def _flush(producer: Producer) -> None:
    left = producer.flush(_FLUSH_TIMEOUT_S)
    if left:
        raise LoadError(f"{left} requests did not reach the broker")


if __name__ == "__main__":
    main()
