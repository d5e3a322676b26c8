"""What the processes of a benchmark are told: one JSON argument each."""

import sys
from typing import Final, Literal, Self

import msgspec

Mode = Literal["thread", "process"]
#: Ways from task to task.
MESSAGES: Final = "messages"
SHARED_MEMORY: Final = "shared memory"
Transport = Literal["messages", "shared memory"]


class _Command(msgspec.Struct, frozen=True, kw_only=True):
    """An command that travels as a command-line argument."""

    @classmethod
    def from_arguments(cls) -> Self:
        """The command that this process was started with."""
        return msgspec.json.decode(sys.argv[1], type=cls)

    def to_argument(self) -> str:
        """The command as the one argument of a process."""
        return msgspec.json.encode(self).decode()


class ServeCommand(_Command, frozen=True, kw_only=True):
    """Serve a model repository between two topics.

    Attributes:
        kind: Which program: a key of `bench.systems.registry.MODULES`.
        repository: A folder of `NAME/VERSION/model.onnx`.
        parallelism: Tasks of a Flink job.
        mode: PyFlink's execution mode.
        flink_url: A running cluster; None starts a MiniCluster in the system's own process.
        overload: What this project does with more than it can serve.
        balance: Whether its tasks hand batches to each other.
        busy_folder: Where its processes note how long their sessions ran; empty for nowhere.
        slowdown: How often one of these processes runs every batch.
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


class LoadCommand(_Command, frozen=True, kw_only=True):
    """Send requests.

    Attributes:
        workload_path: What to send, as `bench.workloads.workload.Workload.save` wrote it.
        first_id: The first request's id; the others count on.
        offsets_path: When to send each request, in nanoseconds after the first could be (`numpy.save`); None sends as
            fast as the broker takes it.
        go_path: A file that is there once it shall begin.
        out_path: Where the scheduled and the actual send times go.
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
    """Collect answers, note when each came, and compare each with a direct run of the model.

    Attributes:
        start_offsets: Where to start to read, by partition.
        expected: How many answers to wait for.
        patience_s: After this long without an answer, no more is waited for.
        ready_path: Written when the reader has its place in every partition.
        out_path: Where the answers go, as `bench.harness.response_log.ResponseLog.save` writes them.
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
    """Records of one size that go one way from task to task.

    Attributes:
        repeat: Which round; -1 warms up.
        interval_s: Between two of them; 0 for as fast as they are taken.
    """

    transport: Transport
    size_bytes: int
    repeat: int
    count: int
    interval_s: float


class TransportLog(msgspec.Struct, kw_only=True):
    """What the reader saw of a phase.

    Attributes:
        started_ms: Before the first record was packed, in Unix time.
        ended_ms: When all of the last had been read.
        spent_ms: Of each, from before it was packed until all of it had been read.
        claims: How many went by shared memory.
        wrong: How many were not what was sent.
    """

    started_ms: float = 0.0
    ended_ms: float = 0.0
    spent_ms: list[float] = []
    claims: int = 0
    wrong: int = 0


class TransportCommand(_Command, frozen=True, kw_only=True):
    """Write all phases, one after the other.

    Attributes:
        job: See `anabranch.operators.core.transport.claim_check.Options`.
        out_path: A file for a list of `TransportLog` in JSON, one for each phase.
    """

    flink_url: str
    job: str
    arena_bytes: int
    phases: list[TransportPhase]
    out_path: str
