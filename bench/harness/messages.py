"""Commands of the benchmark's processes, each one JSON argument."""

import sys
from typing import Final, Literal, Self

import msgspec

Mode = Literal["thread", "process"]
Delivery = Literal["at-least-once", "exactly-once"]
DELIVERIES: Final[tuple[Delivery, ...]] = ("at-least-once", "exactly-once")
MESSAGES: Final = "messages"
SHARED_MEMORY: Final = "shared memory"
Transport = Literal["messages", "shared memory"]
#: Formats of events; empty for requests.
Events = Literal["", "json", "avro"]


class _Command(msgspec.Struct, frozen=True, kw_only=True):
    """A command as a command-line argument."""

    @classmethod
    def from_arguments(cls) -> Self:
        """Read this process's command."""
        return msgspec.json.decode(sys.argv[1], type=cls)

    def to_argument(self) -> str:
        """Write the command."""
        return msgspec.json.encode(self).decode()


class ServeCommand(_Command, frozen=True, kw_only=True):
    """Serve a model repository between two topics.

    Attributes:
        kind: A key of `bench.systems.registry.MODULES`.
        repository: Folder of `NAME/VERSION/model.onnx`.
        flink_url: A running cluster; None starts a MiniCluster.
        overload: Overload policy.
        balance: Load balancing between tasks.
        busy_folder: Folder of session times, or empty.
        slowdown: Runs of each batch in one process.
        checkpoint_folder: Folder of checkpoints, or empty.
        checkpoint_interval_ms: 0 for the project's default.
        events: Format of events, or empty for requests.
        gateway_url: Of a query in SQL.
        rows_together: Rows that the query sends in one request; with 1, each row in a request of its own.
    """

    kind: str
    bootstrap_servers: str
    requests_topic: str
    responses_topic: str
    errors_topic: str
    group_id: str
    repository: str
    parallelism: int = 1
    mode: Mode = "thread"
    flink_url: str | None = None
    overload: Literal["wait", "refuse"] = "wait"
    balance: Literal["offload", "off"] = "offload"
    busy_folder: str = ""
    slowdown: int = 1
    delivery: Delivery = "at-least-once"
    checkpoint_folder: str = ""
    checkpoint_interval_ms: int = 0
    events: Events = ""
    gateway_url: str = ""
    rows_together: int = 0


class LoadCommand(_Command, frozen=True, kw_only=True):
    """Send requests.

    Attributes:
        workload_path: File of `Workload.save`.
        first_id: The first request's id.
        offsets_path: Send times in ns (`numpy.save`); None for full speed.
        go_path: File whose existence is the start signal.
        out_path: File of scheduled and actual send times.
    """

    bootstrap_servers: str
    topic: str
    partitions: int
    workload_path: str
    first_id: int
    count: int
    offsets_path: str | None
    go_path: str
    out_path: str


class ReadCommand(_Command, frozen=True, kw_only=True):
    """Collect answers with times, and compare them with a direct run.

    Attributes:
        start_offsets: First offsets, by partition.
        expected: Number of answers.
        patience_s: Longest time without an answer.
        ready_path: Written once the reader can read.
        out_path: File for `ResponseLog.save`.
    """

    bootstrap_servers: str
    topic: str
    start_offsets: tuple[int, ...]
    expected: int
    patience_s: float
    workload_path: str
    ready_path: str
    out_path: str


class TransportPhase(msgspec.Struct, frozen=True, kw_only=True):
    """Records of one size and one transport.

    Attributes:
        repeat: Round; -1 warms up.
        interval_s: Time between two records; 0 for full speed.
    """

    transport: Transport
    size_bytes: int
    repeat: int
    count: int
    interval_s: float


class TransportLog(msgspec.Struct, kw_only=True):
    """The reader's measurements of a phase.

    Attributes:
        started_ms: Unix time before the first record.
        ended_ms: Unix time after the last record.
        spent_ms: Time of each record, from packing to reading.
        claims: Records by shared memory.
        wrong: Records with wrong contents.
    """

    started_ms: float = 0.0
    ended_ms: float = 0.0
    spent_ms: list[float] = []
    claims: int = 0
    wrong: int = 0


class TransportCommand(_Command, frozen=True, kw_only=True):
    """Write all phases in turn.

    Attributes:
        job: See `anabranch.operators.core.transport.claim_check.Options`.
        out_path: File for one `TransportLog` per phase.
    """

    flink_url: str
    job: str
    arena_bytes: int
    phases: list[TransportPhase]
    out_path: str


#: How a client asks a server: the last one posts the protocol's gRPC message.
DoorProtocol = Literal["gRPC", "HTTP, binary", "HTTP, JSON", "HTTP, protobuf"]


class DoorCommand(_Command, frozen=True, kw_only=True):
    """Ask a server, and measure its answers.

    Attributes:
        address: HOST:PORT.
        connections: With one request under way on each.
        warm_up_s: Time before the measurement.
        offsets_path: Times of the requests in ns (`numpy.save`), with those of the warm-up; None for a closed loop.
        out_path: File for `DoorLog.save`.
    """

    address: str
    protocol: DoorProtocol
    workload_path: str
    connections: int
    warm_up_s: float
    seconds: float
    out_path: str
    offsets_path: str | None = None


class ServeDoorsCommand(_Command, frozen=True, kw_only=True):
    """Serve a model repository over HTTP and gRPC.

    Attributes:
        kind: Name of a peer.
        repository: Folder of `NAME/VERSION/model.onnx`.
        ready_path: Gets the addresses of both, once the peer serves.
    """

    kind: str
    repository: str
    ready_path: str
